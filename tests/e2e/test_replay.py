"""`roost replay`, `roost load` and `roost demo` as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from roost_server import Server, fresh, roost

from roost.workload import generate, transcripts

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "airline-trajectories.jsonl"
TRACE = RECORDED.with_name("conversation-trace.jsonl")
Start = Callable[..., Server]


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("workload") / "generated.jsonl"
    path.write_bytes(b"".join(generate.lines(20, seed=3)))
    return path


def replay(file: Path, server: Server, *more: str, code: int = 0) -> dict[str, Any]:
    done = roost("replay", str(file), "--target", server.address, "-o", "json", *more)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else {"stderr": done.stderr}


def test_i23_what_was_generated_comes_back_byte_for_byte(shared: Server, generated: Path) -> None:
    result = replay(generated, shared, "--verify", "--run-id", fresh())
    assert result["verified"]
    assert (result["sessions"], result["lost"], result["duplicated"]) == (20, 0, 0)
    assert result["played"] == result["turns"] == result["exported_turns"]


@pytest.mark.skipif(not RECORDED.is_file(), reason="the recorded sessions are not on this machine")
def test_i11_the_recorded_sessions_survive_a_server_with_room_for_ten(start: Start) -> None:
    server = start("--max-resident", "10")
    result = replay(RECORDED, server, "--verify")
    assert (result["verified"], result["sessions"], result["turns"]) == (True, 150, 1808)
    assert (result["lost"], result["duplicated"], result["differences"]) == (0, 0, [])
    with server.api() as api:
        stats = api.stats()
    assert stats.gauges["slots_held"] == 0  # I1
    assert stats.counters["reloads"] > 500
    assert stats.counters["evictions"] > 500


def test_a_run_that_exists_is_an_error_and_resume_goes_on_with_it(shared: Server, generated: Path) -> None:
    run = fresh()
    first = replay(generated, shared, "--run-id", run, "--limit", "5")
    refused = replay(generated, shared, "--run-id", run, code=1)
    assert "exists already" in refused["stderr"]
    assert "--resume" in refused["stderr"]
    rest = replay(generated, shared, "--run-id", run, "--resume", "--verify", "--close")
    assert rest["already_played"] == first["played"]
    assert rest["played"] == rest["turns"] - first["played"]
    assert rest["verified"]
    again = replay(generated, shared, "--run-id", run, "--resume", "--verify")  # closed, but complete
    assert (again["played"], again["verified"]) == (0, True)


def test_a_partly_played_session_goes_on_where_it_stopped(shared: Server, generated: Path) -> None:
    run = fresh()
    conversation = transcripts.read(generated)[0]
    with shared.api() as api:
        name = f"{run}:{conversation.session}"
        api.open(name)
        for number, content in enumerate(conversation.turns[:3], 1):
            record = {"content": content, "labels": {"replay-turn": str(number)}}
            api.commit(name, api.begin(name).grant.lease, record=_record(record))
    result = replay(generated, shared, "--run-id", run, "--resume", "--verify", "--limit", "1")
    assert (result["already_played"], result["verified"]) == (3, True)


def test_a_server_that_holds_something_else_fails_the_verification(shared: Server, generated: Path) -> None:
    run = fresh()
    conversation = transcripts.read(generated)[0]
    with shared.api() as api:
        name = f"{run}:{conversation.session}"
        api.open(name)
        wrong = conversation.turns[0].replace(b"a", b"b", 1)
        record = _record({"content": wrong, "labels": {"replay-turn": "1"}})
        api.commit(name, api.begin(name).grant.lease, record=record)
    done = roost("replay", str(generated), "--target", shared.address, "--run-id", run, "--resume", "--verify")
    assert done.returncode == 4
    assert f"session {name}, turn 1: differs from byte" in done.stderr


def _record(fields: dict[str, Any]) -> Any:
    from roost.v1 import types_pb2

    return types_pb2.RecordInput(**fields)


def test_bad_input_and_an_absent_server_have_their_own_codes(tmp_path: Path, generated: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"session":"s","messages":[]}\n')
    done = roost("replay", str(bad))
    assert (done.returncode, "bad.jsonl, line 1" in done.stderr) == (2, True)
    assert roost("replay", str(tmp_path / "absent")).returncode == 2
    assert roost("replay", str(generated), "--resume").returncode == 2
    done = roost("replay", str(generated), "--target", f"unix:{tmp_path / 'nobody'}", "--patience", "0.3")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def load(server: Server, *more: str, code: int = 0) -> dict[str, Any]:
    done = roost("load", "--target", server.address, "--json", "--run-id", fresh(), "--sessions", "50", *more)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_load_in_closed_loop(shared: Server) -> None:
    report = load(shared, "--clients", "8", "--duration", "1", "--warmup", "0.2", "--tokens", "10")
    assert report["pairs"] > 0
    assert report["errors"] == {}
    assert sum(report["correctness"].values()) == 0
    for name in ("begin", "commit", "pair"):
        assert report["latency"][name]["count"] >= report["pairs"]
    assert report["latency"]["pair"]["p50_ms"] >= report["latency"]["begin"]["p50_ms"]
    assert report["generator"]["cpu_share"] > 0


@pytest.mark.parametrize("arrivals", ["poisson", "constant"])
def test_load_in_open_loop(shared: Server, arrivals: str) -> None:
    report = load(shared, "--rate", "50", "--arrivals", arrivals, "--duration", "2", "--warmup", "0.5")
    counted = report["arrivals"]
    assert 50 < counted["offered"] < 160
    assert counted["started"] + counted["dropped"] == counted["offered"]
    assert report["pairs"] == counted["started"]
    assert report["errors"] == {}


@pytest.mark.skipif(not TRACE.is_file(), reason="the recorded trace is not on this machine")
def test_load_plays_a_trace(shared: Server, tmp_path: Path) -> None:
    part = tmp_path / "trace.jsonl"
    part.write_bytes(b"".join(TRACE.read_bytes().splitlines(keepends=True)[:200]))
    report = load(shared, "--trace", str(part), "--speed-up", "100", "--payload-bytes", "100")
    assert report["config"]["trace_turns"] == 200
    assert report["pairs"] == report["arrivals"]["started"] == 200
    assert report["errors"] == {}
    assert sum(report["correctness"].values()) == 0


@pytest.mark.crash
def test_the_demo_ends_with_its_one_screen(tmp_path: Path) -> None:
    done = roost("demo", "--generated", "--sessions", "12", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slots held 0, lost 0, duplicated 0, export verified" in done.stdout
    assert not list(tmp_path.iterdir())  # it leaves nothing behind
