"""Two servers and one dump target: what the one has dumped is restored by the other, and must export the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from roost_server import DEADLINE, Api

from roost.handlers.dump.reader import list_dumps
from roost.handlers.dump.target import open_target
from roost.v1 import trajectory_service_pb2 as pb
from roost.v1 import types_pb2 as types

CLOSED = types.SESSION_STATE_CLOSED
LONG = 300.0


def until(true: Callable[[], Any]) -> None:
    """Ask until it is so; the test's timeout bounds it."""
    while not true():
        pass


def dump_names(where: Path) -> list[str]:
    """The names of all dumps there."""
    return asyncio.run(list_dumps(open_target(str(where))))


def restore(api: Api, names: Iterable[str], request_id: str = "") -> list[Any]:
    """RestoreSessions, one result a name."""
    request = pb.RestoreSessionsRequest(dump_names=names, request_id=request_id)
    return list(api.trajectories.RestoreSessions(request, timeout=LONG).results)


def restored(api: Api, names: Iterable[str]) -> list[Any]:
    """The sessions; none may be refused."""
    results = restore(api, names)
    assert [result.refusal.reason for result in results] == [""] * len(results), results
    return [result.session for result in results]


def exported(api: Api, **fields: Any) -> list[bytes]:
    """ExportTrajectories ALL, part by part, to the byte, but for what tells of one server alone: how its clean-up went,
    and a place in the order of its own journal. That there is one is kept."""
    request = pb.ExportTrajectoriesRequest(
        selection=pb.TRAJECTORY_SELECTION_ALL, include_provisional=True, include_superseded=True, **fields
    )
    parts = []
    for part in api.trajectories.ExportTrajectories(request, timeout=LONG):
        if part.HasField("session"):
            assert part.session.state == CLOSED
            assert part.session.cleanup.HasField("dump_time")
            part.session.ClearField("cleanup")
            part.trajectory.ready_sequence = min(part.trajectory.ready_sequence, 1)
        parts.append(part.SerializeToString(deterministic=True))
    return parts


def ready(api: Api) -> list[str]:
    """The trajectories that are READY and not acknowledged, in that order."""
    request = pb.ExportTrajectoriesRequest()
    parts = api.trajectories.ExportTrajectories(request, timeout=DEADLINE)
    return [part.trajectory.trajectory_id for part in parts if part.HasField("trajectory")]


def span(count: int, offset: int) -> Any:
    """Tokens with everything that may come with them."""
    return types.TokenSpan(
        offset=offset,
        token_ids=b"".join(n.to_bytes(4, "little") for n in range(offset, offset + count)),
        logprobs=bytes(4 * count),
        loss_mask=bytes([1]) * count,
        weight_versions=[types.WeightVersionRun(version=7, count=count)],
    )


def play(api: Api, name: str, contents: Iterable[bytes], **options: Any) -> None:
    """A session with a bit of everything: tokens, state, retries, rewards, a finished trajectory, a rewind."""
    api.open(name, labels={"k": name}, **options)
    offset = 0
    for number, content in enumerate(contents, 1):
        if number % 3 == 2:
            api.abort(name, api.begin(name).grant.lease, content[: len(content) // 2])
        record = types.RecordInput(content=content, tokens=span(3, offset), finish_reason="stop", labels={"n": "1"})
        offset += 3
        api.commit(name, api.begin(name).grant.lease, record=record, state=b"state %d" % number)
        if number % 2:
            api.reward(name, number / 10)
        if number == 2:
            api.finish(name)
    if offset >= 12:
        api.commit(name, api.begin(name).grant.lease, b"another way", base_turn=offset // 3 - 1)


def forest(api: Api, size: int) -> Iterator[str]:
    """Trees of a root, two children and a grandchild, some of them in mid-turn; their names."""
    for tree in range(size):
        root, a, b, leaf = (f"t{tree}-{name}" for name in ("root", "a", "b", "leaf"))
        for name, parent in ((root, ""), (a, root), (b, root), (leaf, a)):
            play(api, name, [b"%s turn %d \xff" % (name.encode(), n) for n in range(5)], parent_session_id=parent)
            yield name
        api.abort(a, api.begin(a).grant.lease, b"half of it")  # leaves a PROVISIONAL
        api.begin(b, lease=5)  # whose lease runs out
