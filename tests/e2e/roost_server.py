"""Starts real servers for end-to-end tests, calls them by plain stubs, and reads what a refusal says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from roost.client.training import Assembler, Exported
from roost.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    mail_service_pb2,
    mail_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    trajectory_service_pb2,
    trajectory_service_pb2_grpc,
    turn_service_pb2,
    turn_service_pb2_grpc,
    types_pb2,
)

PYTHON = Path(__file__).resolve().parents[2] / "python"
DEADLINE = 30.0  # seconds any one step of a test may take


def until(true: Callable[[], Any]) -> None:
    """Ask until it is so; the test's timeout bounds it."""
    while not true():
        pass


def environment(**more: str) -> dict[str, str]:
    """This process's environment without ROOST_* settings, which would reach the servers under test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROOST_")}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PYTHON)]))
    return {**kept, "NO_COLOR": "1", **more}


def roost(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `roost ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "roost", *arguments],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


class Server:
    """A server process. `start` returns when it says that it is ready; what it logs is kept in `logged`."""

    def __init__(self, data_dir: Path, *flags: str, listen: str = "127.0.0.1:0", **env: str) -> None:
        self.data_dir = data_dir
        self.flags = flags
        self.listen = listen
        self.env = env
        self.address = ""
        self._logged: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def logged(self) -> str:
        """All of stderr; complete once the process has ended."""
        return "".join(self._logged)

    program: tuple[str, ...] = ("-m", "roost")

    def start(self) -> Server:
        serve = ["serve", "--listen", self.listen, "--data-dir", str(self.data_dir)]
        command = [sys.executable, *self.program, *serve]
        self._process = subprocess.Popen(
            [*command, *self.flags],
            env=environment(**self.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("roost is ready on "), self.wait() or self.logged
        self.address = line.split()[-1]
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._logged.append(line)

    def wait(self) -> int:
        """The exit code, once the process ends."""
        code = self.process.wait(DEADLINE)
        assert self._reader is not None
        self._reader.join(DEADLINE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()
        self.wait()

    def end(self) -> None:
        """Whatever state it is in: over."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    @contextlib.contextmanager
    def api(self) -> Iterator[Api]:
        """Stubs on a connection of their own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            yield Api(channel)


class Clock:
    """The test's end: moves the clock of the server that listens at this path."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.skipped_ms = 0

    def skip(self, seconds: float) -> None:
        """Move it forward."""
        ms = int(seconds * 1000)
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(self._path)
            control.sendall(b"%d\n" % ms)
            assert control.recv(16) == b"done\n"
        self.skipped_ms += ms


class ClockedServer(Server):
    """A server whose clock a test moves: `server.clock.skip(seconds)`. It goes on over restarts."""

    program = (str(Path(__file__).parents[1] / "support" / "clocked_roost.py"),)

    def __init__(self, data_dir: Path, *flags: str, **env: str) -> None:
        # In a directory of its own, because paths of sockets are short.
        self._directory = tempfile.TemporaryDirectory(prefix="roost-")
        self.clock = Clock(f"{self._directory.name}/clock")
        super().__init__(data_dir, *flags, listen=f"unix:{self._directory.name}/roost", **env)

    def start(self) -> ClockedServer:
        Path(self._directory.name, "clock").unlink(missing_ok=True)
        self.env |= {
            "CLOCK_SOCKET": f"{self._directory.name}/clock",
            "CLOCK_SKIPPED": str(self.clock.skipped_ms),
        }
        super().start()
        return self

    def end(self) -> None:
        super().end()
        self._directory.cleanup()


class Api:
    """Plain stubs, and the few calls that most tests need."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.sessions: Any = session_service_pb2_grpc.SessionServiceStub(channel)
        self.turns: Any = turn_service_pb2_grpc.TurnServiceStub(channel)
        self.mail: Any = mail_service_pb2_grpc.MailServiceStub(channel)
        self.trajectories: Any = trajectory_service_pb2_grpc.TrajectoryServiceStub(channel)
        self.admin: Any = admin_service_pb2_grpc.AdminServiceStub(channel)

    def open(self, session_id: str = "", request_id: str = "", **options: Any) -> Any:
        request = session_service_pb2.OpenSessionRequest(
            session_id=session_id or fresh(), request_id=request_id, options=types_pb2.OpenOptions(**options)
        )
        return self.sessions.OpenSession(request, timeout=DEADLINE)

    def get(self, session_id: str) -> Any:
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        return self.sessions.GetSession(request, timeout=DEADLINE).session

    def close(self, session_id: str, **fields: Any) -> Any:
        request = session_service_pb2.CloseSessionRequest(session_id=session_id, **fields)
        return self.sessions.CloseSession(request, timeout=DEADLINE)

    def reopen(self, session_id: str, **fields: Any) -> Any:
        request = session_service_pb2.ReopenSessionRequest(session_id=session_id, **fields)
        return self.sessions.ReopenSession(request, timeout=DEADLINE)

    def begin(self, session_id: str, *, wait: float = 0, lease: float = 0, **fields: Any) -> Any:
        request = turn_service_pb2.BeginTurnRequest(session_id=session_id, **fields)
        if wait:
            request.wait.FromMilliseconds(int(wait * 1000))
        if lease:
            request.lease_duration.FromMilliseconds(int(lease * 1000))
        return self.turns.BeginTurn(request, timeout=DEADLINE)

    def commit(self, session_id: str, lease: bytes, content: bytes = b"", **fields: Any) -> Any:
        record = fields.pop("record", None) or record_input(content)
        request = turn_service_pb2.CommitTurnRequest(session_id=session_id, lease=lease, record=record, **fields)
        return self.turns.CommitTurn(request, timeout=DEADLINE)

    def abort(self, session_id: str, lease: bytes, content: bytes = b"", **fields: Any) -> Any:
        record = fields.pop("record", None) or record_input(content)
        request = turn_service_pb2.AbortTurnRequest(session_id=session_id, lease=lease, record=record, **fields)
        return self.turns.AbortTurn(request, timeout=DEADLINE)

    def turn(self, session_id: str, content: bytes = b"x", **commit: Any) -> Any:
        """Begin and commit one turn."""
        return self.commit(session_id, self.begin(session_id).grant.lease, content, **commit)

    def poll(self, *, wait: float = 1, **fields: Any) -> Any:
        """PollTurn; by default for as long as the server takes at least."""
        request = turn_service_pb2.PollTurnRequest(**fields)
        request.wait.FromMilliseconds(int(wait * 1000))
        return self.turns.PollTurn(request, timeout=DEADLINE)

    def send(self, session_id: str, content: bytes = b"x", *, ttl: float = 0, **fields: Any) -> Any:
        """SendMessage; what is no field of the request is one of the message."""
        outer = {name: fields.pop(name) for name in ("request_id", "sender_session_id") if name in fields}
        message = types_pb2.MessageInput(content=content, **fields)
        if ttl:
            message.ttl.FromMilliseconds(int(ttl * 1000))
        request = mail_service_pb2.SendMessageRequest(session_id=session_id, message=message, **outer)
        return self.mail.SendMessage(request, timeout=DEADLINE)

    def wait_mail(self, session_id: str, *, wait: float = 0, after: int = 0) -> Any:
        request = mail_service_pb2.WaitMailRequest(session_id=session_id, after=after)
        request.wait.FromMilliseconds(int(wait * 1000))
        return self.mail.WaitMail(request, timeout=DEADLINE)

    def list_mail(self, session_id: str = "", **fields: Any) -> list[Any]:
        """All pages of ListMail."""
        request = mail_service_pb2.ListMailRequest(session_id=session_id, **fields)
        found: list[Any] = []
        while True:
            page = self.mail.ListMail(request, timeout=DEADLINE)
            found += page.messages
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def interrupt(self, session_id: str, **fields: Any) -> Any:
        request = session_service_pb2.InterruptSessionRequest(session_id=session_id, **fields)
        return self.sessions.InterruptSession(request, timeout=DEADLINE)

    def reward(self, session_id: str, reward: float, *, finish_after: float | None = None, **fields: Any) -> Any:
        request = trajectory_service_pb2.SetRewardRequest(session_id=session_id, reward=reward, **fields)
        if finish_after is not None:
            request.finish_after.FromMilliseconds(int(finish_after * 1000))
        return self.trajectories.SetReward(request, timeout=DEADLINE)

    def finish(self, session_id: str, **fields: Any) -> Any:
        request = trajectory_service_pb2.FinishTrajectoryRequest(session_id=session_id, **fields)
        return self.trajectories.FinishTrajectory(request, timeout=DEADLINE)

    def ack(self, *ids: str) -> list[Any]:
        request = trajectory_service_pb2.AckTrajectoriesRequest(trajectory_ids=ids)
        return list(self.trajectories.AckTrajectories(request, timeout=DEADLINE).results)

    def exported(self, **fields: Any) -> list[Exported]:
        """Whole trajectories."""
        request = trajectory_service_pb2.ExportTrajectoriesRequest(**fields)
        whole = Assembler()
        parts = self.trajectories.ExportTrajectories(request, timeout=DEADLINE)
        return [done for part in parts if (done := whole.add(part)) is not None]

    def history(self, session_id: str, **fields: Any) -> list[Any]:
        request = session_service_pb2.ReadHistoryRequest(session_id=session_id, **fields)
        return [record for page in self.sessions.ReadHistory(request, timeout=DEADLINE) for record in page.records]

    def export(self, **fields: Any) -> dict[str, list[Any]]:
        """Records by session id, of every trajectory; checks the shape of the stream."""
        fields.setdefault("selection", trajectory_service_pb2.TRAJECTORY_SELECTION_ALL)
        request = trajectory_service_pb2.ExportTrajectoriesRequest(**fields)
        found: dict[str, list[Any]] = {}
        ended = True
        for part in self.trajectories.ExportTrajectories(request, timeout=DEADLINE):
            assert part.HasField("session") == ended, "the first part of a session bears it, the others do not"
            found.setdefault(part.session_id, []).extend(part.records)
            ended = part.last
        assert ended
        return found

    def list_all(self, **fields: Any) -> list[Any]:
        """All pages of a list."""
        request = session_service_pb2.ListSessionsRequest(**fields)
        found: list[Any] = []
        while True:
            page = self.sessions.ListSessions(request, timeout=DEADLINE)
            found += page.sessions
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def stats(self) -> Any:
        return self.admin.GetStats(admin_service_pb2.GetStatsRequest(), timeout=DEADLINE)


@dataclass
class Refusal:
    """What a failed call said."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    details: list[str] = field(default_factory=list)


def refusal(error: Any) -> Refusal:
    """Read a refusal and check the rules that hold for each: one ErrorInfo of domain roost, details under 4 KiB, every
    number of the message in the metadata too."""
    trailers = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    assert len(trailers) == 1, f"{error.code()}: {error.details()}"
    assert len(trailers[0]) < 4096
    status = status_pb2.Status.FromString(trailers[0])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert len(infos) == 1
    assert infos[0].domain == "roost"
    metadata = dict(infos[0].metadata)
    for number in re.findall(r"\d+", status.message):
        assert any(number in value for value in metadata.values()), f"{number} of {status.message!r} not in {metadata}"
    kinds = sorted(detail.type_url.rpartition(".")[2] for detail in status.details)
    return Refusal(error.code(), infos[0].reason, status.message, metadata, kinds)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[Refusal]:
    """The block must fail with this refusal; afterwards the yielded object says what it was."""
    seen = Refusal(grpc.StatusCode.OK, "", "", {})
    try:
        yield seen
    except grpc.RpcError as error:
        found = refusal(error)
        assert (found.code, found.reason) == (code, reason), found
        seen.__dict__.update(found.__dict__)
        return
    raise AssertionError(f"expected {code.name} {reason}, but the call succeeded")


def record_input(content: bytes = b"", tokens: int = 0, offset: int = 0, **fields: Any) -> Any:
    """A record with `tokens` made-up token ids."""
    record = types_pb2.RecordInput(content=content, content_type="text/plain" if content else "", **fields)
    if tokens:
        record.tokens.offset = offset
        record.tokens.token_ids = b"".join((offset + i).to_bytes(4, "little") for i in range(tokens))
    return record


def fresh(prefix: str = "s") -> str:
    """A session id that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex}"
