"""The command line against a real server: output, exit codes, one-sentence errors, help with examples."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from roost_server import Api, Server, fresh, roost

from roost.client import Client, token_span
from roost.client.training import AREAL_FIELDS, SAMPLE_FIELDS
from roost.v1 import types_pb2 as types

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
    ("keys",),
    ("keys", "create"),
    ("keys", "list"),
    ("keys", "revoke"),
    ("keys", "new-admin-key"),
    ("stats",),
    ("config",),
    ("config", "show"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_answers_and_leaves_have_examples(command: tuple[str, ...]) -> None:
    shown = roost(*command, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    if command not in (("sessions",), ("trajectories",), ("keys",), ("config",)):
        assert "Example" in shown.stdout


def test_help_imports_nothing_slow_and_names_the_exit_codes() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "roost", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in shown.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"grpc", "google", "numpy", "pydantic", "apsw", "structlog"}
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


def played(server: Server) -> str:
    """A session with an attempt given up, a rewind, a reward and an ABORTED tail."""
    name = fresh()
    with Client(server.address) as client:
        with client.turn(name, open=True) as turn:
            turn.record("half", tokens=[1, 2], finish_reason="abort")
            turn.abort()
        for text, tokens, base in (
            ("first", token_span([1, 2, 3]), None),
            ("second", token_span([4, 5], offset=3), None),
            ("again", token_span([9], offset=3), 1),
        ):
            with client.turn(name) as turn:
                turn.record(text, tokens=tokens, base_turn=base, finish_reason="stop")
        with client.turn(name) as turn:
            turn.abort(final=True)
    return name


def test_history_shows_attempts_and_statuses(shared: Server) -> None:
    name = played(shared)
    shown = roost("sessions", "history", name, "--target", shared.address)
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = [line.split() for line in shown.stdout.splitlines() if line.strip() and "─" not in line]
    # turn, try, status, outcome; "2 < 1": turn 2 was taken back to turn 1.
    assert [" ".join(row[:4]) for row in rows[1:4]] == [
        "1 1 superseded aborted",
        "1 2 committed committed",
        "2 1 superseded committed",
    ]
    assert " ".join(rows[4][:6]) == "2 < 1 2 committed committed"
    assert " ".join(rows[5][:4]) == "3 1 aborted failed"
    for text in ("half", "first", "second", "again"):
        assert text in shown.stdout


def test_trajectories_from_reward_to_acknowledgement(shared: Server, tmp_path: Path) -> None:
    name = played(shared)

    def run(*arguments: str) -> str:
        ended = roost("trajectories", *arguments, ROOST_TARGET=shared.address)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    rewarded = json.loads(run("reward", name, "0.5", "--turn", "1", "-o", "json"))
    assert (rewarded["turn"], rewarded["finished"]) == (1, False)
    done = json.loads(run("finish", name, "--reward", "1", "-o", "json"))
    assert (done["state"], done["turn_count"]) == ("TRAJECTORY_STATE_READY", 2)
    listed = run("list", "--session", name)
    assert done["trajectory_id"] in listed
    assert "1.5" in listed
    assert [one["trajectory_id"] for one in json.loads(run("list", "--session", name, "-o", "json"))] == [
        done["trajectory_id"]
    ]

    whole = json.loads(run("export", "--session", name, "--discount", "0.5"))
    kept = [(one["turn"], one["status"][14:], one.get("discounted_reward")) for one in whole["records"]]
    assert kept == [(1, "COMMITTED", 1.0), (2, "COMMITTED", 1.0), (3, "ABORTED", None)]
    (row,) = json.loads(run("export", "--session", name, "--style", "concat"))["rows"]
    assert (row["tokens"], row["loss_mask"], row["aborted"]) == ([1, 2, 3, 9], [1, 1, 1, 1], True)
    for shape in ("slime", "miles"):
        samples = [
            json.loads(line) for line in run("export", "--id", done["trajectory_id"], "--format", shape).splitlines()
        ]
        assert [tuple(sample) for sample in samples] == [SAMPLE_FIELDS] * 3
        assert [sample["index"] for sample in samples] == [0, 1, 2]
        assert [sample["status"] for sample in samples] == ["completed", "completed", "aborted"]

    arrays = tmp_path / "batch.npz"
    assert run("export", "--session", name, "--format", "areal", "--out", str(arrays), "--ack") == ""
    with np.load(arrays) as loaded:
        assert sorted(loaded.files) == sorted(AREAL_FIELDS)
        assert loaded["input_ids"].tolist() == [[1, 2, 3, 0], [1, 2, 3, 9], [1, 2, 3, 9]]
        assert loaded["loss_mask"].tolist() == [[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert run("export", "--session", name) == ""
    assert "acknowledged" in run("list", "--session", name, "--all")
    assert run("ack", done["trajectory_id"]) == ""


def test_an_export_is_acknowledged_when_it_is_on_disk(shared: Server, tmp_path: Path) -> None:
    name = played(shared)
    with Client(shared.address) as client:
        client.finish_trajectory(name)
    out = ("trajectories", "export", "--session", name, "--ack", "--target", shared.address, "--out")
    for refused in ("/dev/full", str(tmp_path / "none" / "x")):
        ended = roost(*out, refused)
        assert (ended.returncode, ended.stdout) == (69, "")
        assert ended.stderr.startswith("roost: ")
        assert ended.stderr.count("\n") == 1
    done = roost(*out, str(tmp_path / "x"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "x").read_text())["trajectory"]["session_id"] == name
    assert roost(*out, str(tmp_path / "y")).returncode == 0
    assert (tmp_path / "y").read_text() == ""


def test_an_export_loses_no_file(shared: Server, tmp_path: Path) -> None:
    """What was acknowledged may be in this file alone."""
    path = tmp_path / "out.jsonl"
    out = ("trajectories", "export", "--ack", "--out", str(path))

    def ready() -> str:
        name = played(shared)
        with Client(shared.address) as client:
            client.finish_trajectory(name)
        return name

    names = [ready()]
    assert roost(*out, "--session", names[0], "--target", shared.address).returncode == 0
    before = path.read_bytes()
    for flags, code in (
        (("--session", names[0], "--target", shared.address), 2),
        (("--session", names[0], "--target", shared.address, "--format", "areal"), 2),
        (("--append", "--format", "areal", "--target", shared.address), 2),
        (("--append", "--session", fresh("unknown"), "--target", shared.address), 1),
        (("--append", "--target", "127.0.0.1:1", "--timeout", "1"), 3),
    ):
        ended = roost(*out, *flags)
        assert (ended.returncode, path.read_bytes()) == (code, before), ended.stderr
    names.append(ready())
    assert roost(*out, "--append", "--session", names[1], "--target", shared.address).returncode == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["trajectory"]["session_id"] for line in lines] == names
    # Killed in the middle of a line, or edited by a person.
    for torn, kept in ((b'{"trajectory": {"tra', b""), (b'{"mine": 1}', b'{"mine": 1}\n')):
        whole = path.read_bytes()
        path.write_bytes(whole + torn)
        name = ready()
        ended = roost(*out, "--append", "--session", name, "--target", shared.address)
        assert (ended.returncode, "half a line" in ended.stderr) == (0, not kept)
        assert path.read_bytes().startswith(whole + kept)
        added = path.read_bytes()[len(whole + kept) :]
        assert json.loads(added)["trajectory"]["session_id"] == name
    other = tmp_path / "none.jsonl"
    for flags in (("--target", "127.0.0.1:1", "--timeout", "1"), ("--session", "x", "--target", shared.address)):
        assert roost("trajectories", "export", "--out", str(other), *flags).returncode in (1, 3)
        assert not other.exists()


def test_a_reward_may_be_negative(shared: Server) -> None:
    name = played(shared)
    done = roost("trajectories", "reward", name, "-1.5", "--turn", "1", "--target", shared.address, "-o", "json")
    assert (done.returncode, json.loads(done.stdout)["turn"]) == (0, 1)
    with Client(shared.address) as client:
        assert [r.reward for r in client.read_history(name) if r.HasField("reward")] == [-1.5]


def test_interrupt_asks_or_ends(shared: Server, api: Api) -> None:
    name = api.open().session.session_id
    api.begin(name)
    for flags, running in (((), True), (("--force",), False)):
        ended = roost("sessions", "interrupt", name, *flags, "--target", shared.address, "-o", "json")
        told = json.loads(ended.stdout)
        assert (told["previous_activity"], told["turn"]) == ("ACTIVITY_RUNNING", 1)
        assert (api.get(name).activity == types.ACTIVITY_RUNNING) is running


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
        (("sessions", "interrupt", fresh("unknown")), 1, "SESSION_NOT_FOUND"),
        (("trajectories", "reward", fresh("unknown"), "1"), 1, "SESSION_NOT_FOUND"),
        (("trajectories", "finish", fresh("unknown")), 1, "SESSION_NOT_FOUND"),
        (("trajectories", "list", "--session", fresh("unknown")), 1, "SESSION_NOT_FOUND"),
        (("trajectories", "export", "--id", f"{uuid.UUID(int=1)}-1"), 1, "TRAJECTORY_NOT_FOUND"),
        (("trajectories", "ack", "nonsense"), 1, "nonsense"),
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
    [
        ("no-such-command",),
        ("sessions", "get"),
        ("sessions", "list", "--state", "ajar"),
        ("stats", "--no-such-flag"),
        ("trajectories", "reward", "s", "much"),
        ("trajectories", "export", "--format", "areal"),
        ("trajectories", "export", "--format", "areal", "--out", "x", "--follow"),
        ("trajectories", "export", "--ack"),
        ("trajectories", "export", "--discount", "1.5"),
        ("trajectories", "export", "--limit", "5000000000"),
        ("trajectories", "list", "--limit", "4294967295"),
        ("trajectories", "reward", "s", "1", "--turn", "5000000000"),
        ("trajectories", "reward", "s", "1", "--finish-after", "inf"),
        ("trajectories", "reward", "s", "1", "--finish-after", "nan"),
        ("trajectories", "reward", "s", "1", "--trun", "3"),
        ("sessions", "history", "s", "--from-turn", "5000000000"),
        ("trajectories", "export", "--id", "x", "--all"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    ended = roost(*arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
