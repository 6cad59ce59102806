"""I5, I13, I22 under kill -9: a server that dies before or after any step of a restore leaves the session whole or,
once it has cleared up, no trace of it; then its dump is restored as if nothing had been."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from restored import CLOSED, exported, play, restore, until
from roost_server import Api, Server, refusal
from samples import some

from roost.handlers.restore import FAILPOINTS, STEP_RECORDS

pytestmark = pytest.mark.crash

BATCHES = [f"journal.append.{when}:{n}" for when in ("before", "after") for n in (1, 2, 3, 4)]
CLEARING = [
    f"cleanup.{step}.{when}:{n}" for step in ("purge", "forget") for when in ("before", "after") for n in (1, 2)
]
DONE = {"restore.end.after"}  # from here on it is there


@dataclass
class Dumped:
    """A long session that was dumped, and what it exports."""

    place: Path
    name: str
    parts: list[bytes]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    where = tmp_path_factory.mktemp("first")
    place = where / "dumps"
    place.mkdir()
    server = Server(where / "data", "--dump-target", str(place)).start()
    with server.api() as api:
        play(api, "s", [b"turn %d" % n for n in range(STEP_RECORDS)])  # with its aborts more than one step
        name = api.close("s").receipt.dump_name
        until(lambda: api.get("s").state == CLOSED)
        yield Dumped(place, name, exported(api))
    server.end()


def server_of(dumped: Dumped, data: Path, failpoint: str = "") -> Server:
    env = {"ROOST_FAILPOINT": failpoint} if failpoint else {}
    return Server(data, "--dump-target", str(dumped.place), "--log-level", "error", **env).start()


def known(api: Api) -> Any:
    """The session, or None if it is not known; once clearing up is over."""
    while True:
        try:
            return api.get("s")
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            if refusal(error).reason != "SESSION_RESTORING":
                raise


def dies(server: Server, names: list[str]) -> bool:
    """Restores; whether the server died of it."""
    with server.api() as api:
        try:
            restore(api, names)
        except grpc.RpcError:
            assert server.wait() == -signal.SIGKILL
            return True
    return False


def whole(dumped: Dumped, data: Path, there: bool | None) -> None:
    """After the next start: there and whole, or not at all; and then restored."""
    server = server_of(dumped, data)
    with server.api() as api:
        session = known(api)
        if there is not None:
            assert (session is not None) == there
        (result,) = restore(api, [dumped.name])
        assert result.refusal.reason == ("SESSION_EXISTS" if session is not None else "")
        assert exported(api) == dumped.parts
        assert api.reopen("s").reopened == 1
        api.turn("s")
    server.end()


@pytest.mark.parametrize(
    "hit", some([*(f"{name}:1" for name in FAILPOINTS), "restore.rows.before:2", "restore.rows.after:2"])
)
def test_a_kill_at_each_step_leaves_the_session_whole_or_none(dumped: Dumped, tmp_path: Path, hit: str) -> None:
    server = server_of(dumped, tmp_path, hit)
    assert dies(server, [dumped.name])
    whole(dumped, tmp_path, hit.partition(":")[0] in DONE)


@pytest.mark.parametrize("hit", some(BATCHES))
def test_a_kill_around_each_of_its_batches_leaves_the_session_whole_or_none(
    dumped: Dumped, tmp_path: Path, hit: str
) -> None:
    server = server_of(dumped, tmp_path, hit)
    assert dies(server, [dumped.name])
    whole(dumped, tmp_path, None)


@pytest.mark.parametrize("hit", some(CLEARING))
def test_a_kill_while_half_of_it_is_deleted_leaves_none(dumped: Dumped, tmp_path: Path, hit: str) -> None:
    server = server_of(dumped, tmp_path, "restore.rows.after:1")
    assert dies(server, [dumped.name])
    server = server_of(dumped, tmp_path, hit)
    try:
        with server.api() as api:
            assert known(api) is None  # it does not come there so often
        died = False
    except (grpc.RpcError, AssertionError):
        died = server.wait() == -signal.SIGKILL
    server.end()
    assert died or (hit.startswith("cleanup.forget") and hit.endswith(":2"))
    whole(dumped, tmp_path, there=False)
