"""The API key of a client: where it comes from, and how it goes with each call."""

from __future__ import annotations

import ipaddress
import logging
import os
import re

VARIABLE = "ROOST_API_KEY"

log = logging.getLogger("roost.client")


def metadata(target: str, api_key: str | None, tenant: str, encrypted: bool) -> list[tuple[str, str | bytes]]:
    """What each call bears. `api_key` None: that of ROOST_API_KEY, if it is set. ValueError, without the key, for what
    is no key."""
    key = os.environ.get(VARIABLE, "") if api_key is None else api_key
    key = key.strip()
    found: list[tuple[str, str | bytes]] = []
    if key:
        # grpc would say so too, and show it.
        if not re.fullmatch(r"[A-Za-z0-9_]+", key):
            where = VARIABLE if api_key is None else "api_key"
            raise ValueError(f"{where} is not an API key: those are roost_<kind>_<id>_<secret>")
        if not encrypted and not _local(target):
            log.warning("the API key goes to %s in plaintext; say tls=True (ROOST_TLS)", target)
        found.append(("authorization", f"Bearer {key}"))
    if tenant:
        found.append(("x-roost-tenant", tenant))
    return found


def _local(target: str) -> bool:
    """Whether what is sent there stays on this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
