"""Settings of `roost serve`: flags > ROOST_* environment > TOML file > defaults, each value with its source.

One model says every key, default, range and meaning; an unknown key in any layer is an error with a guess at
what was meant. Sizes are bytes and durations milliseconds; where a person writes them they may bear a unit
("4GiB", "60s").
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from roost.server import admin_key

PREFIX: Final = "ROOST_"
# ROOST_* variables that belong to the command line, not to the server.
CLIENT_ENVIRONMENT: Final = frozenset(
    {"ROOST_CONFIG", "ROOST_TARGET", "ROOST_OUTPUT", "ROOST_API_KEY", "ROOST_API_KEY_FILE", "ROOST_TENANT"}
    | {"ROOST_TLS", "ROOST_TLS_CA", "ROOST_TLS_CERT", "ROOST_TLS_KEY", "ROOST_TLS_SERVER_NAME"}
)
FAILPOINT: Final = "ROOST_FAILPOINT"  # a development build reads it, see docs/DEVELOPING.md

_SIZE_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_TIME_UNITS = {"": 1, "ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


class ConfigError(Exception):
    """The configuration cannot be used. The message is one sentence for a person."""


def _with_unit(value: Any, units: Mapping[str, int], fold: bool, example: str) -> Any:
    """Turn "4GiB" or "60s" into an int; what is not a string goes to pydantic as it is."""
    if isinstance(value, bool):  # which Python takes for 0 or 1
        raise ValueError("must be a whole number")
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(-?\d+)\s*([A-Za-z]*)\s*", value)
    unit = match[2].upper() if match and fold else match[2] if match else ""
    if match is None or unit not in units:
        raise ValueError(f"must be a whole number, with a unit if you like (for example {example})")
    return int(match[1]) * units[unit]


def _size(value: Any) -> Any:
    return _with_unit(value, _SIZE_UNITS, True, "4GiB")


def _duration(value: Any) -> Any:
    return _with_unit(value, _TIME_UNITS, False, "60s")


def _number(value: Any) -> Any:
    return _with_unit(value, {"": 1}, False, "1000")


Size = Annotated[int, BeforeValidator(_size)]
Millis = Annotated[int, BeforeValidator(_duration)]
Count = Annotated[int, BeforeValidator(_number)]

_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000


class Limits(BaseModel):
    """What the engine enforces. Field names are the keys that `roost._core.Engine` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    max_resident_sessions: Count = Field(50_000, ge=1, le=50_000_000, description="sessions kept in memory")
    max_resident_bytes: Size = Field(4 * _GIB, ge=_MIB, le=64 * _TIB, description="memory for resident sessions")
    max_turns_per_tree: Count = Field(8, ge=1, le=10_000, description="turns that run at once in one tree")
    max_turns_per_tenant: Count = Field(1_000, ge=0, le=1_000_000, description="turns that run at once; 0 pauses")
    max_sessions_per_tree: Count = Field(1_000, ge=1, le=10_000, description="open sessions in one tree")
    max_depth: Count = Field(8, ge=0, le=64, description="levels below the root of a tree")
    max_waiters: Count = Field(10_000, ge=0, le=1_000_000, description="BeginTurn calls that may queue")
    max_waiters_per_connection: Count = Field(512, ge=0, le=1_000_000, description="of them, from one connection")
    default_lease_ms: Millis = Field(_MINUTE, ge=5 * _SECOND, le=_HOUR, description="lease where none is asked for")
    max_wait_ms: Millis = Field(5 * _MINUTE, ge=0, le=_HOUR, description="the longest a BeginTurn may queue")
    default_stale_ms: Millis = Field(_HOUR, ge=0, le=3_650 * _DAY, description="idle time of a stale tree; 0: never")
    sweep_interval_ms: Millis = Field(_MINUTE, ge=0, le=_DAY, description="how often stale trees are closed; 0: never")
    retention_ms: Millis = Field(
        7 * _DAY, ge=0, le=3_650 * _DAY, description="content of a closed session is kept so long"
    )
    tombstone_retention_ms: Millis = Field(
        30 * _DAY, ge=0, le=3_650 * _DAY, description="its id stays taken for so long after that"
    )
    purge_without_dump: bool = Field(False, description="delete content that was neither dumped nor acknowledged")
    max_store_bytes: Size = Field(
        0, ge=0, le=1024 * _TIB, description="store size from which on no session is made; 0: none"
    )
    max_resources: Count = Field(100_000, ge=0, le=10_000_000, description="resources attached in all")
    max_resources_per_session: Count = Field(100, ge=0, le=100_000, description="resources of one session")
    release_timeout_ms: Millis = Field(
        10 * _SECOND,
        ge=100,
        le=_HOUR,
        description="time that one try to release a resource gets, and that a pool waits for it",
    )
    max_turn_bytes: Size = Field(_MIB, ge=1, le=64 * _MIB, description="inline payload of one record")
    max_state_bytes: Size = Field(64 * _KIB, ge=0, le=_MIB, description="the client's own state")
    max_inline_checkpoint_bytes: Size = Field(_MIB, ge=0, le=64 * _MIB, description="checkpoint tokens in a grant")
    max_rewind: Count = Field(8, ge=0, le=1_000_000, description="turns that a commit may go back (`base_turn`)")
    max_fork_bytes: Size = Field(
        64 * _MIB, ge=0, le=_GIB, description="what a session that is a fork (`fork_from`) may copy"
    )
    reward_finish_delay_ms: Millis = Field(
        0, ge=0, le=30 * _DAY, description="a trajectory finishes this long after its latest reward; 0: not by itself"
    )
    journal_queue_bytes: Size = Field(64 * _MIB, ge=64 * _KIB, le=16 * _GIB, description="entries not yet on disk")
    max_journal_lag_ms: Millis = Field(
        _SECOND, ge=0, le=_HOUR, description="age of an entry not on disk from which on new work is refused; 0: any"
    )
    keep_place_ms: Millis = Field(30 * _SECOND, ge=0, le=10 * _MINUTE, description="place kept for a cancelled wait")
    max_mailbox_messages: Count = Field(1_000, ge=1, le=100_000, description="messages in one mailbox")
    max_mailbox_bytes: Size = Field(8 * _MIB, ge=_KIB, le=_GIB, description="content of the messages in one mailbox")
    max_message_bytes: Size = Field(256 * _KIB, ge=1, le=_MIB, description="content of one message")
    max_deliveries: Count = Field(5, ge=1, le=1_000, description="turns that a message is given to before it is DEAD")
    max_watch_events: Count = Field(
        65_536, ge=1, le=1 << 24, description="events in memory for those who watch; one of over 512 bytes is several"
    )
    max_batch_entries: Count = Field(4_096, ge=1, le=65_536, description="journal entries in one transaction")


class Settings(Limits):
    """All settings: those of the engine and those of the door."""

    listen: str = Field("127.0.0.1:7117", description="host:port, or unix:PATH")
    admin_listen: str = Field(
        "", description="host:port or unix:PATH of /metrics, /healthz and /readyz, over plain HTTP; empty: off"
    )
    data_dir: str = Field("roost-data", min_length=1, description="directory of the store")
    migration_backups: Count = Field(
        2, ge=0, le=100, description="backups from before migrations of the store that are kept; 0: none is made"
    )
    admin_key_file: str = Field("", description="file with the admin key; with one, every call needs a key")
    tls_cert_file: str = Field("", description="PEM file with the server's certificate and its chain; empty: no TLS")
    tls_key_file: str = Field("", description="PEM file with its private key, which other users cannot read")
    tls_client_ca_file: str = Field(
        "", description="PEM file with authorities; with one, every client needs a certificate of theirs (mTLS)"
    )
    dump_target: str = Field(
        "",
        max_length=2_048,
        description="directory or URL (s3://, gs://, az://) that ended sessions are dumped to; empty: none",
    )
    dump_timeout_ms: Millis = Field(_MINUTE, ge=100, le=_HOUR, description="time that one operation of it gets")
    resource_prefix: str = Field("roost", description="what the names of resources begin with")
    process_driver: bool = Field(False, description="release processes on this machine")
    tmux_driver: bool = Field(False, description="release tmux sessions on this machine")
    tmux_socket: str = Field(
        "", max_length=1_024, description="socket of tmux, by name (as -L) or path (as -S); empty: the user's default"
    )
    http_release_url: str = Field(
        "", max_length=2_048, description="URL that releases a resource, with {name}, {uid}, {session_id}; empty: none"
    )
    http_release_method: Literal["DELETE", "POST", "PUT", "GET"] = Field("DELETE", description="method of that request")
    http_release_hosts: str = Field(
        "", max_length=8_192, description="hosts that it may go to: host, host:port, http://host:port; comma-separated"
    )
    http_release_expected: str = Field(
        "", max_length=1_024, description="statuses that mean released, comma-separated; empty: 2xx; always 404 and 410"
    )
    http_release_headers_file: str = Field("", description='file with its headers, a line "Name: value" each')
    reap: str = Field(
        "", max_length=100, description="drivers (process, tmux) whose orphans are ended, comma-separated; empty: none"
    )
    insecure: bool = Field(False, description="allow plaintext on an address that is not loopback")
    introspection: Literal["auto", "on", "off"] = Field(
        "auto", description="reflection and channelz; auto: on loopback and Unix sockets only"
    )
    log_format: Literal["json", "logfmt"] = Field("json", description="how log lines are written to stderr")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least level logged")
    turn_log: bool = Field(True, description="log a line for the start and the end of each turn, at level info")
    heartbeat_ms: Millis = Field(30 * _SECOND, ge=0, le=_DAY, description="time between heartbeat lines; 0: none")
    drain_timeout_ms: Millis = Field(30 * _SECOND, ge=0, le=_HOUR, description="time running calls get at SIGTERM")
    max_request_bytes: Size = Field(4 * _MIB, ge=64 * _KIB, le=256 * _MIB, description="one request message")
    max_concurrent_streams: Count = Field(1_024, ge=1, le=1_000_000, description="calls at once on one connection")
    max_concurrent_rpcs: Count = Field(20_000, ge=1, le=10_000_000, description="backstop: calls at once in all")
    overload_delay_ms: Millis = Field(
        _SECOND, ge=0, le=_MINUTE, description="wait at the door from which on new work is refused there; 0: never"
    )
    max_connections: Count = Field(4_000, ge=1, le=1_000_000, description="connections at once")
    max_metadata_bytes: Size = Field(8_192, ge=1_024, le=_MIB, description="metadata of one request")
    handshake_timeout_ms: Millis = Field(5 * _SECOND, ge=100, le=10 * _MINUTE, description="time to connect in")
    settings_timeout_ms: Millis = Field(5 * _SECOND, ge=100, le=10 * _MINUTE, description="time to ack SETTINGS in")
    keepalive_time_ms: Millis = Field(60 * _SECOND, ge=_SECOND, le=_DAY, description="silence before a ping")
    keepalive_timeout_ms: Millis = Field(10 * _SECOND, ge=100, le=_HOUR, description="time to answer a ping in")
    connection_idle_ms: Millis = Field(5 * _MINUTE, ge=_SECOND, le=_DAY, description="idle time of a connection")
    connection_age_ms: Millis = Field(30 * _MINUTE, ge=_SECOND, le=30 * _DAY, description="life of a connection")
    # Longer than max_wait_ms: a BeginTurn that queues on an ageing connection must not be cut off.
    connection_age_grace_ms: Millis = Field(330 * _SECOND, ge=0, le=_DAY, description="time its calls then get")


LIMIT_KEYS: Final = tuple(Limits.model_fields)
KEYS: Final = tuple(Settings.model_fields)


@dataclass(frozen=True)
class Configuration:
    """Validated settings and where each value came from."""

    settings: Settings
    sources: Mapping[str, str]  # key -> "default", "file", "environment" or "flag"
    admin_key: str | None = field(default=None, repr=False)  # no setting: it is never shown

    def limits(self) -> dict[str, int]:
        """The engine's limits by name."""
        return {key: int(getattr(self.settings, key)) for key in LIMIT_KEYS}


def amount(key: str, text: str) -> int:
    """The value of a limit as a person writes it, with a unit if it is a size or a time. ConfigError for what is none;
    whether it is in range is not looked at, nor whether there is such a limit."""
    read = _size if key.endswith("_bytes") else _duration if key.endswith("_ms") else _number
    if key == "purge_without_dump":
        text = {"true": "1", "false": "0"}.get(text.strip().lower(), text)
    try:
        return int(read(text))
    except ValueError as error:
        raise ConfigError(f"{key} = {text!r}: {error}") from None


def _suggest(key: str, known: tuple[str, ...] | list[str]) -> str:
    """A "did you mean" for an unknown key, or nothing."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _read_file(path: str) -> dict[str, Any]:
    """The keys of a TOML file. ConfigError where it cannot be read or has an unknown key."""
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} is not valid TOML: {error}") from error
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"unknown key {key!r} in the configuration file {path}{_suggest(key, KEYS)}")
    return values


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The ROOST_* variables by key. ConfigError for one that names no setting."""
    known = {PREFIX + key.upper(): key for key in KEYS}
    values: dict[str, Any] = {}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name in CLIENT_ENVIRONMENT or name in {FAILPOINT, admin_key.VARIABLE}:
            continue
        if name not in known:
            raise ConfigError(f"unknown environment variable {name}{_suggest(name, [*known, *CLIENT_ENVIRONMENT])}")
        values[known[name]] = value
    return values


def _range(key: str) -> str:
    """The range of a numeric key in words, with bytes and milliseconds named."""
    low = high = None
    for constraint in Settings.model_fields[key].metadata:
        low = getattr(constraint, "ge", low)
        high = getattr(constraint, "le", high)
    unit = " bytes" if key.endswith("_bytes") else " ms" if key.endswith("_ms") else ""
    return f"{low} to {high}{unit}"


def _explain(error: ValidationError, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """One sentence for the first thing wrong."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    given = f"{key} = {values[key]!r} (from {sources[key]})"
    if first["type"] in {"greater_than_equal", "less_than_equal"}:
        return f"{given} is out of range: it must be {_range(key)}"
    if first["type"] == "literal_error":
        return f"{given} is not one of {first['ctx']['expected']}"
    return f"{given}: {first['msg'].removeprefix('Value error, ')}"


def load(
    flags: Mapping[str, Any] | None = None,
    file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Configuration:
    """Merge the layers and validate. `flags` holds only what was given; ConfigError says what is wrong."""
    environment = os.environ if environment is None else environment
    file = file or environment.get("ROOST_CONFIG") or None
    flags = dict(flags or {})
    for key in flags:
        if key not in KEYS:
            raise ConfigError(f"unknown setting {key!r}{_suggest(key, KEYS)}")
    values: dict[str, Any] = {}
    sources = dict.fromkeys(KEYS, "default")
    layers = (
        ("file", _read_file(file) if file else {}),
        ("environment", _read_environment(environment)),
        ("flag", flags),
    )
    for source, layer in layers:
        values |= layer
        sources |= dict.fromkeys(layer, source)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise ConfigError(_explain(error, values, sources)) from None
    if settings.max_turn_bytes > settings.max_request_bytes:
        raise ConfigError(
            f"max_turn_bytes = {settings.max_turn_bytes} cannot be above "
            f"max_request_bytes = {settings.max_request_bytes}: no request could carry such a turn"
        )
    try:
        given = admin_key.read(settings.admin_key_file, environment)
    except admin_key.AdminKeyError as error:
        raise ConfigError(str(error)) from None
    return Configuration(settings, sources, given)
