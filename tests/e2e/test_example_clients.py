"""The clients of examples/clients, each in its language, against a real server: all of them say the same.

`make test-clients` builds them and says in ROOST_CLIENTS which are to be there; the one in Python always is.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Start
from lossy_relay import lossy_relay
from roost_server import environment

from roost._core import new_admin_key
from roost.client import Client
from roost.errors import SessionNotFound
from roost.v1 import types_pb2 as types

CLIENTS = Path(__file__).resolve().parents[2] / "examples/clients"
JAVA = CLIENTS / "java/target"
COMMANDS = {
    "go": [f"{CLIENTS}/go/build/client"],
    "typescript": ["node", f"{CLIENTS}/typescript/build/src/main.js"],
    "java": ["java", "-cp", f"{JAVA}/classes:{JAVA}/lib/*", "example.Client"],
    "rust": [f"{CLIENTS}/rust/target/debug/roost-example-client"],
    "python": [sys.executable, "-W", "error", f"{CLIENTS}/python/client.py"],
}
BUILT = os.environ.get("ROOST_CLIENTS", "").split()
SAID = """\
opened ID
began turn 1, attempt 1
refused: RESOURCE_EXHAUSTED: 1 turn runs for this tenant, and max_turns_per_tenant is 1; the longest is that of \
session "ID", for TIME; this call would be number 1 in the queue: wait for a place (`wait`), or end a turn
  reason: TENANT_TURNS
  holders: ID=TIME
  limit: 1
  limit_name: max_turns_per_tenant
  queue_position: 1
  used: 1
  waiting: 0
  retry after: 1000 ms
  quota: max_turns_per_tenant: 1 of 1 in use; limit max_turns_per_tenant; held by ID (TIME)
committed turn 1, head version 1
closed after turn 1
"""


def command(client: str) -> list[str]:
    if client not in BUILT and client != "python":
        pytest.skip(f"the client in {client} is not built here: make test-clients")
    return COMMANDS[client]


def run(client: str, address: str, **env: str) -> tuple[int, str, str]:
    """Exit code, what it said on stdout with what differs from run to run left out, and its session's id."""
    done = subprocess.run(
        [*command(client), address], env=environment(**env), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stderr == ""
    return done.returncode, *plain(done.stdout)


def plain(said: str) -> tuple[str, str]:
    opened = re.match(r"opened (\S+)\n", said)
    session_id = opened[1] if opened else ""
    said = said.replace(session_id, "ID") if session_id else said
    # Times: in words, as milliseconds of a holder, as whole seconds.
    return re.sub(r"(?<=for )[\d.]+ m?s|(?<=ID=)\d+|(?<=ID \()\d+ s", "TIME", said), session_id


def kept(address: str, session_id: str) -> None:
    """The session is there, ended, with its one turn; the second one never was."""
    with Client(address) as client:
        session = client.get_session(session_id)
        assert session.state == types.SESSION_STATE_CLOSED
        (record,) = client.read_history(session_id)
        assert (record.record.content, record.record.content_type) == (b"hello", "text/plain")
        assert record.status == types.RECORD_STATUS_COMMITTED
        with pytest.raises(SessionNotFound):
            client.get_session(f"{session_id}.second")
        counters = client.get_stats().counters
        assert (counters["sessions_opened"], counters["turns_begun"], counters["turns_committed"]) == (1, 1, 1)


@pytest.mark.parametrize("client", COMMANDS)
def test_a_session_with_a_refusal(client: str, start: Start) -> None:
    command(client)
    address = start("--max-turns-per-tenant", "1").address
    code, said, session_id = run(client, address)
    assert (code, said) == (0, SAID)
    kept(address, session_id)


@pytest.mark.parametrize("client", COMMANDS)
def test_lost_answers_are_asked_for_again(client: str, start: Start) -> None:
    """I21: the service config has UNAVAILABLE repeated, and with a request_id a repeat has one effect."""
    command(client)
    address = start("--max-turns-per-tenant", "1").address
    with lossy_relay(address) as (relayed, relay):
        code, said, session_id = run(client, relayed)
    assert (code, said) == (0, SAID)
    assert relay.calls == {"OpenSession": 2, "BeginTurn": 3, "CommitTurn": 2, "CloseSession": 2}
    kept(address, session_id)


@pytest.mark.parametrize("client", COMMANDS)
def test_the_key_goes_with_each_call(client: str, start: Start) -> None:
    command(client)
    admin = new_admin_key()
    address = start(ROOST_ADMIN_KEY=admin).address
    with Client(address, api_key=admin) as roost:
        key = roost.create_api_key("team").key
    code, said, _ = run(client, address)
    assert code == 1
    assert re.match(r"refused: UNAUTHENTICATED: .*\n  reason: KEY_INVALID\n", said), said
    code, said, _ = run(client, address, ROOST_API_KEY=key)
    # This server has room.
    assert (code, said.splitlines()[2:]) == (
        0,
        ["the server has room for a second turn", "committed turn 1, head version 1", "closed after turn 1"],
    )
    with Client(address, api_key=key) as roost:
        states = [session.state for session in roost.list_sessions()]
    assert states == [types.SESSION_STATE_CLOSED] * 2


@pytest.mark.parametrize("client", COMMANDS)
def test_it_waits_for_a_server_that_is_not_there_yet(client: str, start: Start) -> None:
    """Each connection is broken until a client without `waitForReady` would have used up its attempts."""
    started = command(client)
    if not BUILT:
        pytest.skip("takes ten seconds: make test-clients")
    server = start("--max-turns-per-tenant", "1")
    with contextlib.ExitStack() as stack:
        door = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"127.0.0.1:{door.getsockname()[1]}"
        program = stack.enter_context(
            subprocess.Popen([*started, address], env=environment(), stdout=subprocess.PIPE, text=True)
        )
        door.settimeout(30)  # it has given up
        for _ in range(4):
            door.accept()[0].close()
        door.close()
        stack.enter_context(lossy_relay(server.address, address))
        said, _ = program.communicate(timeout=100)
    assert (program.returncode, plain(said)[0]) == (0, SAID)


@pytest.mark.parametrize("client", COMMANDS)
def test_it_wants_an_address(client: str) -> None:
    done = subprocess.run(command(client), env=environment(), capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "usage: client ADDRESS\n")
