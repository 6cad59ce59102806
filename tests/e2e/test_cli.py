"""The command line against a real server: output, exit codes, one-sentence errors, help with examples."""

from __future__ import annotations

import json
import time

import pytest
from roost_server import Api, Server, fresh, roost

COMMANDS = [
    (),
    ("serve",),
    ("sessions",),
    ("sessions", "list"),
    ("sessions", "get"),
    ("sessions", "history"),
    ("sessions", "interrupt"),
    ("sessions", "close"),
    ("trajectories",),
    ("trajectories", "reward"),
    ("trajectories", "finish"),
    ("trajectories", "list"),
    ("trajectories", "export"),
    ("trajectories", "ack"),
    ("stats",),
    ("config",),
    ("config", "show"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_answers_and_leaves_have_examples(command: tuple[str, ...]) -> None:
    shown = roost(*command, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    if command not in (("sessions",), ("trajectories",), ("config",)):
        assert "Example" in shown.stdout


def test_help_is_quick_and_names_the_exit_codes() -> None:
    best = 60.0
    for _ in range(3):
        began = time.perf_counter()
        shown = roost("--help")
        best = min(best, time.perf_counter() - began)
    assert best < 1.0  # about 0.2 s on an idle machine
    for code in ("0  done", "1  the server refused", "2  wrong usage", "3  the server cannot", "69", "70", "78"):
        assert code in shown.stdout


def test_version() -> None:
    shown = roost("--version")
    assert shown.returncode == 0
    assert shown.stdout.startswith("roost ")


def test_sessions_list_get_history_close(shared: Server, api: Api) -> None:
    root = api.open(labels={"team": "[red]"}).session.session_id
    child = api.open(parent_session_id=root, name="scout").session.session_id
    api.turn(child, b'{"text": "hello"}')
    api.turn(child, b"\xff\x00")
    target = ("--target", shared.address)

    listed = roost("sessions", "list", "--root", root, *target, "-o", "json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [session["session_id"] for session in json.loads(listed.stdout)] == [root, child]
    table = roost("sessions", "list", "--root", root, "--path", "/root/scout", *target)
    assert child in table.stdout
    assert "committed" in table.stdout
    assert f"{root} " not in table.stdout
    by_label = roost("sessions", "list", "--label", "team=[red]", "--root", root, *target, "-o", "json")
    assert [session["session_id"] for session in json.loads(by_label.stdout)] == [root]
    limited = roost("sessions", "list", "--root", root, "--limit", "1", *target, "-o", "json")
    assert len(json.loads(limited.stdout)) == 1
    assert "more than 1" in limited.stderr

    got = json.loads(roost("sessions", "get", child, "-o", "json", ROOST_TARGET=shared.address).stdout)
    assert (got["turn_count"], got["path"], got["state"]) == (2, "/root/scout", "SESSION_STATE_OPEN")
    assert got["head_version"] == 2  # a number, not proto's string

    records = json.loads(roost("sessions", "history", child, *target, "-o", "json").stdout)
    assert [record["record"]["content"] for record in records] == ['{"text": "hello"}', None]
    assert records[1]["record"]["content_base64"] == "/wA="
    assert "hello" in roost("sessions", "history", child, *target).stdout

    closed = roost("sessions", "close", child, "--reason", "admin", *target, "-o", "json")
    receipt = json.loads(closed.stdout)
    assert (receipt["reason"], receipt["turn_count"]) == ("CLOSE_REASON_ADMIN", 2)
    again = roost("sessions", "close", child, *target, "-o", "json")
    assert json.loads(again.stdout) == receipt


def test_stats(shared: Server) -> None:
    shown = roost("stats", "--target", shared.address, "-o", "json")
    values = json.loads(shown.stdout)
    assert values["counters"]["batches_stored"] >= 0
    assert {limit["name"] for limit in values["limits"]} >= {"max_depth", "max_resident_sessions"}
    table = roost("stats", "--target", shared.address)
    assert "slots_held" in table.stdout
    assert "max_resident_sessions" in table.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("sessions", "get", fresh("unknown")), 1, "SESSION_NOT_FOUND"),
        (("sessions", "get", "bad id"), 1, "INVALID_FIELD"),
        (("sessions", "history", fresh("unknown")), 1, "SESSION_NOT_FOUND"),
        (("sessions", "close", fresh("unknown")), 1, "SESSION_NOT_FOUND"),
        (("sessions", "list", "--path", "/root/x"), 1, "INVALID_FIELD"),
    ],
)
def test_refusals_are_one_sentence_and_exit_1(shared: Server, arguments: tuple[str, ...], code: int, says: str) -> None:
    ended = roost(*arguments, "--target", shared.address)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith("roost: ")
    assert ended.stderr.count("\n") == 1
    assert says in ended.stderr


def test_a_server_that_cannot_be_reached_is_exit_3() -> None:
    ended = roost("stats", "--target", "127.0.0.1:1", "--timeout", "2")
    assert ended.returncode == 3
    assert ended.stderr.startswith("roost: cannot reach the server")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [("no-such-command",), ("sessions", "get"), ("sessions", "list", "--state", "ajar"), ("stats", "--no-such-flag")],
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    ended = roost(*arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
