"""The admin key that an operator gives the server: from a file, or from the environment.

It is checked before anything else starts, and no message says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from roost._core import admin_key_fault
from roost.server import secret_file

VARIABLE: Final = "ROOST_ADMIN_KEY"
_MAKE: Final = "make one with `roost keys new-admin-key FILE`"


class AdminKeyError(Exception):
    """The admin key cannot be used. The message is one sentence for a person, without the key."""


def read(file: str, environment: Mapping[str, str]) -> str | None:
    """The key, or None if none is configured. AdminKeyError says what is wrong."""
    given = environment.get(VARIABLE)
    if given is not None and file:
        raise AdminKeyError(f"{VARIABLE} and admin_key_file are both set: set one of them")
    if given is not None:
        return _checked(given.strip(), VARIABLE)
    if not file:
        return None
    try:
        content = secret_file.read(file, "admin key file")
    except secret_file.SecretFileError as error:
        raise AdminKeyError(str(error)) from None
    return _checked(content.strip(), f"the file {file}")


def _checked(key: str, where: str) -> str:
    fault = admin_key_fault(key)
    if fault is not None:
        raise AdminKeyError(f"the admin key of {where} cannot be used: {fault}; {_MAKE}")
    return key
