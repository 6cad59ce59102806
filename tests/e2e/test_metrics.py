"""The admin port of a real server: exact counts after a known workload, probes over its life, and hostile clients, of
gRPC (whose ids must not be told) and of HTTP (who must be in nobody's way)."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from admin_port import Scrape, address_of, get, say
from conftest import Start
from roost_server import DEADLINE, Server, fresh, record_input, refused, roost, until

from roost.server.admin_http import CONNECTIONS
from roost.server.metrics import FAMILIES
from roost.v1 import (
    mail_service_pb2,
    mail_service_pb2_grpc,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
    types_pb2,
)

ON = ("--admin-listen", "127.0.0.1:0")


def started(start: Start, *flags: str, **env: str) -> tuple[Server, tuple[str, int]]:
    server = start(*ON, *flags, **env)
    return server, address_of(server)


def test_counts_after_a_known_workload_are_exact(start: Start) -> None:
    server, where = started(start, "--max-turns-per-tenant", "2")
    before = Scrape(where)
    with server.api() as api:
        mail: Any = mail_service_pb2_grpc.MailServiceStub(api.channel)
        a, b, c = (api.open().session.session_id for _ in range(3))
        for _ in range(3):
            api.turn(a, b"x")
        api.abort(b, api.begin(b).grant.lease)
        api.begin(b)
        api.begin(c)
        for _ in range(2):
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "TENANT_TURNS"):
                api.begin(a)
        with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
            api.get(fresh())
        sending = mail_service_pb2.SendMessageRequest(session_id=a)
        sending.message.content = b"m"
        for _ in range(2):
            mail.SendMessage(sending, timeout=DEADLINE)
        api.close(c)
        delivered = api.begin(a).grant
        assert len(delivered.mail) == 2
        api.reward(a, 1.0)
        list(api.history(a))
    after = Scrape(where)

    def grew(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert grew("turns_begun_total") == 7
    assert grew("turns_committed_total") == 3
    assert grew("turns_aborted_total") == 1
    assert grew("sessions_opened_total") == 3
    assert grew("sessions_closed_total") == 1
    assert grew("messages_sent_total") == 2
    assert grew("messages_delivered_total") == 2
    assert grew("messages_consumed_total") == 0
    assert (after("turns_running"), after("slots_held"), after("waiting")) == (2, 2, 0)
    assert after("limit", limit="max_turns_per_tenant") == 2
    # By reason and by code.
    reasons = {reason: count for reason, count in after.all("refusals_total").items() if count}
    assert reasons == {"TENANT_TURNS": 2, "SESSION_NOT_FOUND": 1}
    handled = {
        (dict(labels)["method"], dict(labels)["code"]): count
        for (name, labels), count in after.samples.items()
        if name == "roost_rpc_handled_total" and count
    }
    assert handled == {
        ("OpenSession", "OK"): 3,
        ("BeginTurn", "OK"): 7,
        ("BeginTurn", "RESOURCE_EXHAUSTED"): 2,
        ("CommitTurn", "OK"): 3,
        ("AbortTurn", "OK"): 1,
        ("GetSession", "NOT_FOUND"): 1,
        ("SendMessage", "OK"): 2,
        ("CloseSession", "OK"): 1,
        ("SetReward", "OK"): 1,
        ("ReadHistory", "OK"): 1,
    }
    # Histograms count what they are of.
    assert grew("rpc_duration_seconds_count", method="BeginTurn") == grew("rpc_started_total", method="BeginTurn") == 9
    assert grew("turn_wait_seconds_count") == 7
    assert grew("turn_held_seconds_count") == 5
    entries, batches = grew("entries_stored_total"), grew("batches_stored_total")
    assert (grew("batch_entries_sum"), grew("batch_entries_count")) == (entries, batches)
    assert grew("store_append_seconds_count") == batches
    assert entries >= 15
    assert after("store_read_seconds_count", kind="find") >= 3
    # The store's numbers and `roost stats` tell the same.
    with server.api() as api:
        stats = api.stats()
    for name in ("turns_begun", "sessions_opened", "entries_stored"):
        assert stats.counters[name] == after(f"{name}_total")


def test_a_wait_is_in_the_histogram_with_its_length(start: Start) -> None:
    server, where = started(start, "--max-turns-per-tenant", "1", "--set", "max_waiters=10")
    with server.api() as api:
        holder, waiter = api.open().session.session_id, api.open().session.session_id
        lease = api.begin(holder).grant.lease
        request = turn_service_pb2.BeginTurnRequest(session_id=waiter)
        request.wait.FromSeconds(25)
        future = api.turns.BeginTurn.future(request, timeout=DEADLINE)
        until(lambda: Scrape(where)("waiting") == 1)
        told = Scrape(where)
        assert (told("rpc_started_total", method="BeginTurn"), told("turn_wait_seconds_count")) == (2, 1)
        api.commit(holder, lease)
        waited = future.result().grant.queue_wait.ToMilliseconds() / 1_000
    told = Scrape(where)
    assert (told("waiting"), told("turn_wait_seconds_count")) == (0, 2)
    assert waited <= told("turn_wait_seconds_sum") <= waited + 0.5
    bounds = sorted(
        (float(dict(labels)["le"]), n) for (name, labels), n in told.samples.items() if "turn_wait_seconds_b" in name
    )
    assert bounds[-1] == (math.inf, 2)
    assert all(count == 2 for bound, count in bounds if bound >= waited + 0.5)


def test_both_formats_parse_and_have_every_metric_of_the_table(start: Start) -> None:
    _, where = started(start)
    for openmetrics in (False, True):
        told = Scrape(where, openmetrics)
        wanted = {f.name if openmetrics else f.exported.removesuffix("_total") for f in FAMILIES}
        assert set(told.families) == wanted
        assert all(family.documentation for family in told.families.values())
    # What /proc tells is of the server.
    assert told.samples["process_resident_memory_bytes", ()] > 1e7


def test_dumps_evictions_and_reloads_are_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "dumps").mkdir()
    server, where = started(start, "--max-resident", "1", "--dump-target", str(tmp_path / "dumps"))
    with server.api() as api:
        names = [api.open().session.session_id for _ in range(4)]
        for name in names * 2:
            api.turn(name, b"x" * 1_000)
        api.close(names[0])
        until(lambda: api.get(names[0]).cleanup.HasField("dump_time"))
        size = api.get(names[0]).cleanup.dump_bytes
    told = Scrape(where)
    assert told("sessions_dumped_total") == 1
    assert told("dump_seconds_count", result="ok") == 1
    assert told("dump_seconds_count", result="failed") == 0
    assert told("dump_bytes_total") == size > 0
    assert told("evictions_total") > 0
    assert told("reloads_total") == told("store_read_seconds_count", kind="session") >= 4
    assert told("resident_sessions") <= 4


def test_a_dump_that_fails_is_told(start: Start, tmp_path: Path) -> None:
    server, where = started(start, "--dump-target", str(tmp_path / "dumps"))
    with server.api() as api:
        name = api.open().session.session_id
        api.turn(name)
        api.close(name)
    until(lambda: Scrape(where)("dump_seconds_count", result="failed") >= 1)
    told = Scrape(where)
    assert told("cleanup_failures_total") >= 1
    assert (told("dump_seconds_count", result="ok"), told("dump_bytes_total")) == (0, 0)


HOSTILE = [
    'x"}\nroost_fake_total 1\n#',
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "roost_turns_begun_total",
    '{le="+Inf"} 9e9',
    "canary-0451",
    "кириллица",
    "\\n\\",
]


def test_i25_no_id_no_tenant_no_label_and_no_content_is_told_and_the_series_are_bounded(start: Start) -> None:
    """Whatever clients call things: the series after them are those of before, but for codes that nobody had got."""
    secret = "canary-zebra-4711"
    server, where = started(start)
    before = Scrape(where)
    with server.api() as api:
        mail: Any = mail_service_pb2_grpc.MailServiceStub(api.channel)
        for number in range(60):
            tenant = f"{secret}-tenant-{number}"
            metadata = (("x-roost-tenant", tenant), ("user-agent", secret), (secret, secret))
            name = f"{secret}-{number}"
            options = types_pb2.OpenOptions(labels={secret: f"{secret}-{number}"})
            request = session_service_pb2.OpenSessionRequest(
                session_id=name, request_id=f"{secret}-{number}", options=options
            )
            api.sessions.OpenSession(request, timeout=DEADLINE, metadata=metadata)
            beginning = turn_service_pb2.BeginTurnRequest(session_id=name, owner=f"{secret}-{number}")
            grant = api.turns.BeginTurn(beginning, timeout=DEADLINE, metadata=metadata).grant
            record = record_input(secret.encode())
            record.finish_reason = secret
            commit = turn_service_pb2.CommitTurnRequest(
                session_id=name, lease=grant.lease, record=record, timings={"canary": 1}
            )
            api.turns.CommitTurn(commit, timeout=DEADLINE, metadata=metadata)
            sending = mail_service_pb2.SendMessageRequest(session_id=name)
            sending.message.content = secret.encode()
            mail.SendMessage(sending, timeout=DEADLINE, metadata=metadata)
        for hostile in HOSTILE:
            with pytest.raises(grpc.RpcError):
                api.get(hostile)
            metadata = (("x-roost-tenant-bin", hostile.encode()), ("x-roost-tenant", "no tenant!"))
            with pytest.raises(grpc.RpcError):
                api.sessions.GetSession(session_service_pb2.GetSessionRequest(session_id="x"), metadata=metadata)
        for path in ("/roost.v1.SessionService/" + secret, "/" + secret + "/x", "/roost.v1.TurnService/BeginTurn2"):
            with pytest.raises(grpc.RpcError):
                api.channel.unary_unary(path)(b"")
        for path in ("/roost.v1.TurnService/CommitTurn", "/roost.v1.AdminService/GetStats"):
            with pytest.raises(grpc.RpcError):
                api.channel.unary_unary(path)(secret.encode())
    get(where, f"/metrics?name={secret}", Accept=secret, Cookie=secret)
    after = Scrape(where)
    assert after("turns_committed_total") == 60
    assert secret not in after.text
    assert not re.search(r"fake|passwd|<script|canary|tenant-\d|[^\x00-\x7f]", after.text)
    assert not [word for word in HOSTILE if word in after.text and word != "roost_turns_begun_total"]
    new = {series for series in after.samples if series not in before.samples}
    assert {name for name, _ in new} <= {"roost_rpc_handled_total"}
    assert {dict(labels)["method"] for _, labels in new} <= {"GetSession", "CommitTurn", "GetStats"}
    assert len(new) <= 4
    assert len(after.samples) < 3_000


def test_ready_is_said_from_the_ready_line_until_the_drain_and_health_until_the_end(
    start: Start, tmp_path: Path
) -> None:
    server, where = started(start, "--drain-timeout", "60s")
    assert [get(where, path)[0::2] for path in ("/healthz", "/readyz")] == [(200, "ok\n"), (200, "ready\n")]
    with server.api() as api:
        name = api.open().session.session_id
        for _ in range(40):
            api.turn(name, bytes(1_000_000))
        # An export that nobody reads keeps a call running, and so the drain.
        everything = trajectory_service_pb2.TRAJECTORY_SELECTION_ALL
        request = trajectory_service_pb2.ExportTrajectoriesRequest(selection=everything)
        stream = api.trajectories.ExportTrajectories(request, timeout=DEADLINE)
        next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        until(lambda: get(where, "/readyz")[0] == 503)
        assert get(where, "/readyz")[2] == "draining\n"
        assert get(where, "/healthz")[0::2] == (200, "ok\n")
        assert Scrape(where)("ready") == 0
        stream.cancel()
        assert server.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        get(where, "/healthz")


def test_a_server_that_starts_lives_and_is_not_ready(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = taken.getsockname()
    server = Server(tmp_path / "data", "--admin-listen", f"127.0.0.1:{where[1]}", HOLD=str(tmp_path / "go"))
    server.program = (str(Path(__file__).parents[1] / "support" / "held_roost.py"),)

    def answers() -> bool:
        try:
            return get(where, "/healthz")[0] == 200
        except ConnectionError:
            return False

    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        until(answers)
        assert get(where, "/readyz")[0::2] == (503, "starting\n")
        assert Scrape(where)("ready") == 0
        (tmp_path / "go").touch()
        starting.join(DEADLINE)
        until(lambda: get(where, "/readyz")[0] == 200)
        with server.api() as api:
            assert api.open().created
    finally:
        (tmp_path / "go").touch()
        starting.join(DEADLINE)
        server.end()


def test_hostile_http_clients_are_in_nobodys_way(start: Start) -> None:
    server, where = started(start)
    held: list[socket.socket] = []
    try:
        with server.api() as api:
            name = api.open().session.session_id
            for said in (
                b"",
                b"GET /met",
                b"GET /metrics HTTP/1.1\r\nHost: x\r\n",
                b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            ):
                held += [say(where, said) for _ in range(CONNECTIONS)]
                assert get(where, "/healthz")[0] == 200
                api.turn(name)
            with say(where, b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000) as greedy:
                assert greedy.recv(100).startswith(b"HTTP/1.1 431 ")
            assert Scrape(where)("turns_committed_total") == 4
            # Its connections are few, whatever came: those of gRPC and the store's files beside them.
            assert Scrape(where).samples["process_open_fds", ()] < CONNECTIONS + 60
    finally:
        for connection in held:
            connection.close()
    assert server.terminate() == 0


def test_it_is_off_unless_it_is_asked_for(start: Start) -> None:
    server = start()
    until(lambda: '"event": "ready"' in server.logged)
    ready = next(entry for line in server.logged.splitlines() if (entry := json.loads(line))["event"] == "ready")
    assert (ready["admin"], ready["traces"]) == (None, False)


def test_a_unix_socket_serves_too_and_goes_with_the_server(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    server = start("--admin-listen", f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1_000).startswith(b"HTTP/1.1 200 ")
    assert server.terminate() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("listen", "code", "says"),
    [
        ("nonsense", 78, "admin_listen = 'nonsense' is neither host:port"),
        ("127.0.0.1:65536", 78, "admin_listen = '127.0.0.1:65536' is neither host:port"),
        ("unix:", 78, "admin_listen = 'unix:': a path must follow"),
        ("no.such.host.invalid:1", 69, "admin_listen: the host 'no.such.host.invalid' is not known"),
    ],
)
def test_a_bad_address_is_said_and_nothing_is_made(tmp_path: Path, listen: str, code: int, says: str) -> None:
    ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--admin-listen", listen)
    assert (ended.returncode, says in ended.stderr) == (code, True), ended.stderr
    assert not (tmp_path / "data").exists()


def test_a_port_in_use_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = roost("serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--admin-listen", at)
    assert (ended.returncode, ended.stderr) == (69, f"roost: cannot listen on {at}: the port is in use\n")
    assert not (tmp_path / "data").exists()
    same = roost("serve", "--listen", at, "--data-dir", str(tmp_path / "data"), "--admin-listen", at)
    assert same.returncode == 78
    assert "gRPC needs an address of its own" in same.stderr
    assert not (tmp_path / "data").exists()
