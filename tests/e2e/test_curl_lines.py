"""The lines of docs/API.md for buf curl and grpcurl do against a server what they say, one for each method.

buf comes with what builds Roost; grpcurl is there after `make test-clients`, which says in ROOST_CLIENTS that it has to
be.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from api_keys import ADMIN, METHODS, keyed
from conftest import Start
from roost_server import Api, Server, environment, until

from roost.v1 import types_pb2 as types
from roost.v1.session_service_pb2 import GetSessionRequest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/API.md").read_text().partition("<!-- curl lines:")[2].partition("<!-- end of curl lines -->")[0]
ADDRESS = "127.0.0.1:7117"
LINES = {tool: re.findall(rf"^{tool} .*$", PAGE, re.MULTILINE) for tool in ("buf curl", "grpcurl")}
BINARIES = {"buf curl": Path(sys.executable).parent, "grpcurl": ROOT / ".tools/bin"}
ENDLESS = {"WatchSessions", "WatchOwner"}
# What must be in the answer where it is not empty by itself.
TOLD = {
    "OpenSession": "created",
    "GetSession": "session",
    "ListSessions": "sessions",
    "UpdateSession": "session",
    "CloseSession": "receipt",
    "ReopenSession": "reopened",
    "InterruptSession": "previousActivity",
    "WatchSessions": "resumeToken",
    "BeginTurn": "grant",
    "RenewTurns": "results",
    "CommitTurn": "headVersion",
    "AbortTurn": "status",
    "WatchOwner": "interrupt",
    "SendMessage": "messageId",
    "WaitMail": "queued",
    "ListMail": "messages",
    "AttachResource": "name",
    "DetachResource": "released",
    "ReconcileInventory": "next",
    "SetReward": "trajectoryId",
    "FinishTrajectory": "trajectory",
    "ExportTrajectories": "session",
    "AckTrajectories": "results",
    "RestoreSessions": "results",
    "GetStats": "counters",
    "CreateApiKey": "key",
    "RevokeApiKey": "apiKey",
    "SetLimits": "limits",
    "ListApiKeys": "apiKeys",
}


def binary(tool: str) -> str:
    name = tool.partition(" ")[0]
    found = shutil.which(name, path=f"{BINARIES[tool]}{os.pathsep}{os.environ['PATH']}")
    if found is None and name in os.environ.get("ROOST_CLIENTS", ""):
        pytest.fail(f"{name} is not there: make test-clients")
    if found is None:
        pytest.skip(f"{name} is not there: make test-clients")
    return found


def method(line: str) -> str:
    found = re.search(r"\b(roost\.v1\.\w+/\w+)$", line)
    assert found is not None, line
    return f"/{found[1]}"


class Shell:
    """Runs lines of the page in a shell, with another address and what their variables stand for."""

    def __init__(self, tool: str, server: Server) -> None:
        self._path = str(Path(binary(tool)).parent)
        self._address = server.address

    def popen(self, line: str, **variables: str) -> subprocess.Popen[str]:
        assert line.count(ADDRESS) == 1, line
        head, found, tail = line.partition(" -d ")
        line = f'{head} -H "authorization: Bearer $ROOST_KEY"{found}{tail}'.replace(ADDRESS, self._address)
        env = environment(**variables, HOME="/nonexistent", TMPDIR="/tmp")
        env |= {"ROOST_KEY": ADMIN, "PATH": f"{self._path}{os.pathsep}{env['PATH']}"}
        return subprocess.Popen(
            ["bash", "-eu", "-c", f"exec {line}"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def first(self, line: str, **variables: str) -> Any:
        """The first answer; for a stream that does not end, the one that comes at once. None where there is none."""
        with self.popen(line, **variables) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            said = ""
            for more in process.stdout:
                said += more
                if more.rstrip() == "}" or said.rstrip() == "{}":
                    break
            if method(line).rpartition("/")[2] in ENDLESS:
                process.kill()
            else:
                process.stdout.read()
                assert process.wait(60) == 0, f"{line}: {process.stderr.read()}"
        return camel(json.loads(said)) if said else None


def camel(answer: Any) -> Any:
    """Names as JSON has them: grpcurl prints those of the protos, because reflection in Python tells no others."""
    if isinstance(answer, dict):
        return {re.sub("_([a-z])", lambda found: found[1].upper(), k): camel(v) for k, v in answer.items()}
    return [camel(one) for one in answer] if isinstance(answer, list) else answer


class Story:
    """What must have happened before a line, and what its variables stand for, beyond what the lines before it did."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.known: dict[str, str] = {}

    def before(self, name: str) -> None:
        match name:
            case "ReopenSession":
                until(lambda: self._state() == types.SESSION_STATE_CLOSED)
            case "AbortTurn" | "GetCheckpoint":
                grant = self._api.begin("task-17", owner="me").grant
                self.known["LEASE"] = base64.b64encode(grant.lease).decode()
            case "WatchOwner":
                self._api.interrupt("task-17")
            case "FinishTrajectory":
                self._api.abort("task-17", base64.b64decode(self.known["LEASE"]))

    def after(self, name: str, answer: Any) -> None:
        match name:
            case "CloseSession":
                self.known["DUMP"] = answer["receipt"]["dumpName"]
            case "BeginTurn":
                self.known["LEASE"] = answer["grant"]["lease"]
            case "AttachResource":
                self.known["NAME"] = answer["name"]
            case "FinishTrajectory":
                self.known["TRAJECTORY"] = answer["trajectory"]["trajectoryId"]
            case "CreateApiKey":
                self.known["KEY_ID"] = answer["apiKey"]["keyId"]

    def _state(self) -> int:
        state: int = self._api.sessions.GetSession(GetSessionRequest(session_id="task-17")).session.state
        return state


def test_each_method_has_its_lines() -> None:
    for tool, lines in LINES.items():
        assert sorted(map(method, lines)) == sorted(METHODS), tool


@pytest.mark.parametrize("tool", LINES)
def test_each_line_does_what_it_says(tool: str, start: Start, tmp_path: Path) -> None:
    binary(tool)
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    server = start("--dump-target", str(dumps), ROOST_ADMIN_KEY=ADMIN)
    shell = Shell(tool, server)
    with keyed(server, ADMIN) as api:
        story = Story(api)
        for line in LINES[tool]:
            name = method(line).rpartition("/")[2]
            story.before(name)
            answer = shell.first(line, **story.known)
            assert name not in TOLD or TOLD[name] in (answer or {}), f"{line}: {answer}"
            story.after(name, answer)
        (record, *_) = api.history("task-17")
        assert (record.status, record.record.content) == (types.RECORD_STATUS_COMMITTED, b"hello")
        session = api.sessions.GetSession(GetSessionRequest(session_id="task-17")).session
        assert session.labels == {"team": "blue"}
        assert {limit.name: limit.value for limit in api.stats().limits}["max_turns_per_tree"] == 16


def test_the_protos_do_for_a_server_that_tells_none(start: Start) -> None:
    """Without reflection buf takes the protos of a checkout."""
    server = start("--introspection", "off", ROOST_ADMIN_KEY=ADMIN)
    (line,) = [line for line in LINES["buf curl"] if line.endswith("/OpenSession")]
    shell = Shell("buf curl", server)
    with shell.popen(line) as process:
        assert process.wait(60) != 0
    answer = shell.first(line.replace("buf curl", f"buf curl --schema {ROOT}/proto"))
    assert answer["session"]["sessionId"] == "task-17"
