"""Settings: precedence, sources, units, and every way to get them wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from roost_server import roost

from roost.server.config import KEYS, LIMIT_KEYS, ConfigError, Settings, load


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "roost.toml"
    file.write_text("max_depth = 1\nmax_waiters = 1\nmax_wait_ms = 1\n")
    environment = {"ROOST_MAX_DEPTH": "2", "ROOST_MAX_WAITERS": "2"}
    found = load({"max_depth": "3"}, str(file), environment)
    values = found.settings
    assert (values.max_depth, values.max_waiters, values.max_wait_ms, values.max_turns_per_tree) == (3, 2, 1, 8)
    sources = [found.sources[key] for key in ("max_depth", "max_waiters", "max_wait_ms", "max_turns_per_tree")]
    assert sources == ["flag", "environment", "file", "default"]


def test_the_file_can_come_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "roost.toml"
    file.write_text('default_lease_ms = "90s"\nmax_resident_bytes = "2GiB"\ninsecure = true\n')
    settings = load({}, None, {"ROOST_CONFIG": str(file)}).settings
    assert (settings.default_lease_ms, settings.max_resident_bytes, settings.insecure) == (90_000, 2 << 30, True)


def test_defaults_are_those_of_the_design() -> None:
    settings = load({}, None, {}).settings
    assert settings.model_dump(include=set(LIMIT_KEYS)) == {
        "max_resident_sessions": 50_000,
        "max_resident_bytes": 4 << 30,
        "max_turns_per_tree": 8,
        "max_turns_per_tenant": 1_000,
        "max_sessions_per_tree": 1_000,
        "max_depth": 8,
        "max_waiters": 10_000,
        "max_waiters_per_connection": 512,
        "default_lease_ms": 60_000,
        "max_wait_ms": 300_000,
        "default_stale_ms": 3_600_000,
        "sweep_interval_ms": 60_000,
        "retention_ms": 7 * 86_400_000,
        "tombstone_retention_ms": 30 * 86_400_000,
        "purge_without_dump": False,
        "max_store_bytes": 0,
        "max_resources": 100_000,
        "max_resources_per_session": 100,
        "release_timeout_ms": 10_000,
        "max_turn_bytes": 1 << 20,
        "max_state_bytes": 65_536,
        "max_rewind": 8,
        "max_fork_bytes": 64 << 20,
        "max_mailbox_messages": 1_000,
        "max_mailbox_bytes": 8 << 20,
        "max_message_bytes": 256 << 10,
        "max_deliveries": 5,
        "max_watch_events": 65_536,
        "reward_finish_delay_ms": 0,
        "max_inline_checkpoint_bytes": 1 << 20,
        "journal_queue_bytes": 64 << 20,
        "max_journal_lag_ms": 1_000,
        "keep_place_ms": 30_000,
        "max_batch_entries": 4_096,
    }
    assert settings.connection_age_grace_ms > settings.max_wait_ms


def test_every_setting_is_described_and_its_default_is_in_range() -> None:
    for key, field in Settings.model_fields.items():
        assert field.description, key
    Settings.model_validate(Settings().model_dump())


@pytest.mark.parametrize(
    ("flags", "file", "environment", "says"),
    [
        ({}, "max_dept = 1", {}, "unknown key 'max_dept' in the configuration file {file}; did you mean 'max_depth'?"),
        ({}, "", {"ROOST_MAX_DEPHT": "1"}, "variable ROOST_MAX_DEPHT; did you mean 'ROOST_MAX_DEPTH'?"),
        ({}, "", {"ROOST_ZZZZZZZZZZ": "1"}, "unknown environment variable ROOST_ZZZZZZZZZZ"),
        ({"lissten": "x"}, "", {}, "unknown setting 'lissten'; did you mean 'listen'?"),
        ({"max_depth": "-1"}, "", {}, "max_depth = '-1' (from flag) is out of range: it must be 0 to 64"),
        (
            {},
            "max_turn_bytes = 0",
            {},
            "max_turn_bytes = 0 (from file) is out of range: it must be 1 to 67108864 bytes",
        ),
        ({}, "", {"ROOST_DEFAULT_LEASE_MS": "1s"}, "from environment) is out of range: it must be 5000 to 3600000 ms"),
        ({"max_resident_sessions": "9" * 30}, "", {}, "is out of range: it must be 1 to 50000000"),
        ({"max_depth": "many"}, "", {}, "must be a whole number"),
        ({"max_depth": "3s"}, "", {}, "must be a whole number"),
        ({}, "max_depth = 1.5", {}, "valid integer"),
        ({}, "max_depth = true", {}, "must be a whole number"),
        ({"log_format": "xml"}, "", {}, "is not one of 'json' or 'logfmt'"),
        ({"insecure": "perhaps"}, "", {}, "valid boolean"),
        ({}, "max_depth = [", {}, "is not valid TOML"),
        ({}, "[limits]\nmax_depth = 1", {}, "unknown key 'limits'"),
        ({"max_turn_bytes": "8MiB"}, "", {}, "cannot be above max_request_bytes"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, flags: dict[str, Any], file: str, environment: dict[str, str], says: str
) -> None:
    path = tmp_path / "roost.toml"
    path.write_text(file)
    with pytest.raises(ConfigError) as error:
        load(flags, str(path), environment)
    message = str(error.value)
    assert says.format(file=path) in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file"):
        load({}, str(tmp_path / "none.toml"), {})


def test_config_show_prints_each_value_with_its_source(tmp_path: Path) -> None:
    file = tmp_path / "roost.toml"
    file.write_text("max_depth = 5\n")
    arguments = ("config", "show", "--config", str(file), "--set", "max_waiters=7")
    shown = roost(*arguments, "-o", "json", ROOST_MAX_WAIT_MS="1s")
    assert (shown.returncode, shown.stderr) == (0, "")
    values = json.loads(shown.stdout)
    assert list(values) == list(KEYS)
    assert values["max_depth"] == {"value": 5, "source": "file"}
    assert values["max_waiters"] == {"value": 7, "source": "flag"}
    assert values["max_wait_ms"] == {"value": 1000, "source": "environment"}
    assert values["listen"] == {"value": "127.0.0.1:7117", "source": "default"}
    table = roost(*arguments)
    assert "max_depth" in table.stdout
    assert "file" in table.stdout


def test_a_bad_configuration_key_ends_serve_before_anything_is_made(tmp_path: Path) -> None:
    ended = roost("serve", "--data-dir", str(tmp_path / "data"), "--set", "max_dept=3")
    assert ended.returncode == 78
    assert ended.stderr == "roost: unknown setting 'max_dept'; did you mean 'max_depth'?\n"
    assert not (tmp_path / "data").exists()
