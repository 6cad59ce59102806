"""I17: what a session's key reaches, by every method, in memory or not: its session and the descendants; of its tree
the outline; nothing else, and nothing tells that there is anything else."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, METHODS, create, keyed, opened, said
from roost_server import DEADLINE, Api, ClockedServer, Server, fresh, refused

from roost._core import RULES
from roost.v1 import (
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
    types_pb2,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED
EXISTS = grpc.StatusCode.ALREADY_EXISTS
FAILED = grpc.StatusCode.FAILED_PRECONDITION

CLOSED = types_pb2.SESSION_STATE_CLOSED


@dataclass
class Trees:
    """Two trees of one tenant and one of another; each session has a turn, a finished trajectory and a label.

    root - a (whose key it is) - a1 - a2, and `a0`, closed; root - b - b1, and `b0`, closed; other - o1, elsewhere.
    `alien` is another tenant's.
    """

    server: Server
    tenant: str
    tenant_key: str
    keys: dict[str, str] = field(default_factory=dict)
    leases: dict[str, bytes] = field(default_factory=dict)
    ready: dict[str, str] = field(default_factory=dict)

    INSIDE = ("a", "a1", "a2")
    OUTLINE = ("root", "b", "b1")
    HIDDEN = ("other", "o1", "b0x", "alien")
    GONE_INSIDE = "a0"
    GONE_OUTLINE = "b0"


PARENTS = {
    "root": "", "a": "root", "a1": "a", "a2": "a1", "a0": "a", "b": "root", "b1": "b", "b0": "b", "b0x": "b0",
    "other": "", "o1": "other",
}  # fmt: skip


def planted(server: Server) -> Trees:
    made = create(server, fresh("t"))
    trees = Trees(server, made.api_key.tenant, made.key)

    def plant(api: Api, name: str, parent: str) -> None:
        trees.keys[name] = opened(api, name, parent, team=f"secret-{name}")
        api.turn(name, b"content of " + name.encode())
        trees.ready[name] = api.finish(name).trajectory.trajectory_id
        if name not in ("a0", "b0", "b0x"):
            trees.leases[name] = api.begin(name, lease=3600, owner=f"owner-{name}").grant.lease

    with keyed(server, create(server, fresh("t")).key) as api:
        plant(api, "alien", "")
    with keyed(server, trees.tenant_key) as api:
        for name, parent in PARENTS.items():
            plant(api, name, parent)
        api.close("a0")
        api.close("b0")  # and b0x with it: below an edge that is not open
    return trees


@pytest.fixture(scope="module", params=["in memory", "after a restart", "unloaded"])
def trees(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trees]:
    flags = ("--max-resident", "1") if request.param == "unloaded" else ()
    env = {"ROOST_ADMIN_KEY": ADMIN, "ROOST_MAX_TURNS_PER_TREE": "100"}
    server = Server(tmp_path_factory.mktemp("scope") / "data", *flags, **env).start()
    made = planted(server)
    if request.param == "after a restart":
        assert server.terminate() == 0
        server.start()
    yield made
    server.end()


@pytest.fixture
def agent(trees: Trees) -> Iterator[Api]:
    """Calls with the key of session `a`."""
    with keyed(trees.server, trees.keys["a"]) as api:
        yield api


def about(method: str, name: str, trees: Trees) -> Any:
    """A request of a method about a session (for those of the rules inside, outline and make)."""
    lease = trees.leases.get(name, bytes(40))
    record = types_pb2.RecordInput(content=b"x")
    return {
        "OpenSession": session_service_pb2.OpenSessionRequest(session_id=name, if_exists="IF_EXISTS_RETURN"),
        "GetSession": session_service_pb2.GetSessionRequest(session_id=name),
        "ListSessions": session_service_pb2.ListSessionsRequest(root_session_id=name),
        "UpdateSession": session_service_pb2.UpdateSessionRequest(session_id=name),
        "ReadHistory": session_service_pb2.ReadHistoryRequest(session_id=name),
        "WatchSessions": session_service_pb2.WatchSessionsRequest(root_session_id=name),
        "CloseSession": session_service_pb2.CloseSessionRequest(session_id=name),
        "ReopenSession": session_service_pb2.ReopenSessionRequest(session_id=name),
        "InterruptSession": session_service_pb2.InterruptSessionRequest(session_id=name),
        "BeginTurn": turn_service_pb2.BeginTurnRequest(session_id=name, if_running="IF_RUNNING_TAKEOVER"),
        "CommitTurn": turn_service_pb2.CommitTurnRequest(session_id=name, lease=lease, record=record),
        "AbortTurn": turn_service_pb2.AbortTurnRequest(session_id=name, lease=lease),
        "GetCheckpoint": turn_service_pb2.GetCheckpointRequest(session_id=name, lease=lease),
        "SendMessage": mail_service_pb2.SendMessageRequest(
            session_id=name, message=types_pb2.MessageInput(content=b"x")
        ),
        "WaitMail": mail_service_pb2.WaitMailRequest(session_id=name),
        "ListMail": mail_service_pb2.ListMailRequest(session_id=name),
        "SetReward": trajectory_service_pb2.SetRewardRequest(session_id=name, reward=1.0, turn=1),
        "FinishTrajectory": trajectory_service_pb2.FinishTrajectoryRequest(session_id=name),
        "ExportTrajectories": trajectory_service_pb2.ExportTrajectoriesRequest(session_ids=[name]),
        "AttachResource": resource_service_pb2.AttachResourceRequest(
            session_id=name, kind="RESOURCE_KIND_CLIENT", owner="host"
        ),
        "DetachResource": resource_service_pb2.DetachResourceRequest(session_id=name, name="roost-1"),
        "ListResources": resource_service_pb2.ListResourcesRequest(session_id=name),
    }[method]


ABOUT_ONE = [path for path, rule in RULES.items() if rule in ("inside", "outline", "make")]


def test_every_rule_is_tried_here() -> None:
    each = {"RenewTurns", "AckTrajectories", "ExportTrajectories", "PollTurn"}
    assert {path.rpartition("/")[2] for path, rule in RULES.items() if rule == "each"} == each
    tenant = {"WatchOwner", "ReconcileInventory", "RestoreSessions"}
    assert {path.rpartition("/")[2] for path, rule in RULES.items() if rule == "tenant"} == tenant
    assert set(RULES.values()) == {"admin", "tenant", "inside", "outline", "make", "each"}


@pytest.mark.parametrize("path", [path for path, rule in RULES.items() if rule == "tenant"])
def test_i17_what_is_for_hosts_and_operators_is_not_for_it(agent: Api, path: str) -> None:
    refusal = said(agent, path)
    assert refusal is not None
    assert (refusal.code, refusal.reason) == (DENIED, "KEY_SCOPE")


@pytest.mark.parametrize("path", [*ABOUT_ONE, "/roost.v1.TrajectoryService/ExportTrajectories"])
def test_i17_what_is_out_of_reach_looks_like_what_does_not_exist(trees: Trees, agent: Api, path: str) -> None:
    method = path.rpartition("/")[2]
    nobody = "nobody"
    unknown = said(agent, path, about(method, nobody, trees))
    assert unknown is not None
    # A new tree is none of its business, whatever the id is.
    expected = (DENIED, "KEY_SCOPE") if method == "OpenSession" else (NOT_FOUND, "SESSION_NOT_FOUND")
    assert (unknown.code, unknown.reason) == expected
    outline = () if RULES[path] == "outline" else (*Trees.OUTLINE, Trees.GONE_OUTLINE)
    for name in (*Trees.HIDDEN, *outline):
        refusal = said(agent, path, about(method, name, trees))
        assert refusal is not None, f"{path} answered about {name}"
        assert refusal.message == unknown.message.replace(nobody, name)
        assert (refusal.code, refusal.reason, refusal.details) == (unknown.code, unknown.reason, unknown.details)
        assert {k: v.replace(name, nobody) for k, v in refusal.metadata.items()} == unknown.metadata
    # I22: nothing of it happened.
    with keyed(trees.server, trees.tenant_key) as api:
        for name in ("root", "b", "b1", "other", "o1"):
            session = api.get(name)
            assert (session.state, session.turn_count) == (types_pb2.SESSION_STATE_OPEN, 1)
            assert (session.running.turn, session.running.interrupt_requested) == (2, False)


@pytest.mark.parametrize("resident", [100, 1], ids=["in memory", "unloaded"])
def test_i17_its_own_session_and_all_below_are_in_its_reach(tmp_path: Path, resident: int) -> None:
    """By every method, from the leaf up; what has ended is told as such."""
    server = Server(
        tmp_path / "data", "--max-resident", str(resident), ROOST_ADMIN_KEY=ADMIN, ROOST_MAX_TURNS_PER_TREE="100"
    ).start()
    try:
        trees = planted(server)
        ends = {"ReopenSession", "CloseSession"}
        methods = sorted((path.rpartition("/")[2], path) for path in ABOUT_ONE)
        with keyed(server, trees.keys["a"]) as agent:
            for name in ("a0", "a2", "a1", "a"):
                for method, path in sorted(methods, key=lambda one: one[0] in ends):
                    refusal = said(agent, path, about(method, name, trees))
                    reason = "" if refusal is None else refusal.reason
                    if method == "InterruptSession" and name == "a":
                        assert reason == "KEY_SCOPE", (path, name, reason)
                    elif method in ("ListSessions", "WatchSessions"):  # no root
                        assert reason == "INVALID_FIELD", (path, name, reason)
                    else:
                        assert reason not in ("SESSION_NOT_FOUND", "KEY_SCOPE"), (path, name, reason)
        with keyed(server, trees.tenant_key) as api:
            still = {s.session_id for s in api.list_all() if s.state == types_pb2.SESSION_STATE_OPEN}
            assert still == {"root", "b", "b1", "other", "o1"}
    finally:
        server.end()


def test_i17_of_the_rest_of_its_tree_it_sees_the_outline(trees: Trees, agent: Api) -> None:
    with keyed(trees.server, trees.tenant_key) as api:
        whole = {name: api.get(name) for name in PARENTS}
    for name in (*Trees.OUTLINE, Trees.GONE_OUTLINE):
        seen = agent.get(name)
        assert (seen.session_id, seen.path, seen.state) == (name, whole[name].path, whole[name].state)
        assert (seen.turn_count, seen.activity) == (1, whole[name].activity)
        text = str(seen)
        assert "secret" not in text
        assert "owner" not in text
        kept = {field.name for field, _ in seen.ListFields()}
        assert kept <= {
            "session_id", "uid", "parent_session_id", "root_session_id", "path", "state", "activity", "last_outcome",
            "residency", "turn_count", "create_time",
        }  # fmt: skip
    for name in (*Trees.INSIDE, Trees.GONE_INSIDE):
        assert agent.get(name) == whole[name]


def test_i17_lists_show_its_tree(trees: Trees, agent: Api) -> None:
    visible = [*Trees.INSIDE, *Trees.OUTLINE, Trees.GONE_INSIDE, Trees.GONE_OUTLINE]
    for fields in ({}, {"root_session_id": "root"}, {"page_size": 1}):
        listed = {session.session_id: session for session in agent.list_all(**fields)}
        assert sorted(listed) == sorted(visible)
        assert dict(listed["a1"].labels) == {"team": "secret-a1"}
        assert not listed["b"].labels
    assert [s.session_id for s in agent.list_all(labels={"team": "secret-b"})] == []
    assert [s.session_id for s in agent.list_all(labels={"team": "secret-a"})] == ["a"]
    assert {s.session_id for s in agent.list_all(state=CLOSED)} == {"a0", "b0"}
    with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        agent.list_all(root_session_id="other")


def test_i17_its_exports_are_of_its_own(trees: Trees, agent: Api) -> None:
    inside = {*Trees.INSIDE, Trees.GONE_INSIDE}
    assert set(agent.export()) == inside
    assert {done.session.session_id for done in agent.exported()} == inside
    with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        agent.exported(root_session_id="root")
    for name in (*Trees.OUTLINE, *Trees.HIDDEN):
        # Before anything is sent, as for one that never was.
        request = trajectory_service_pb2.ExportTrajectoriesRequest(trajectory_ids=[trees.ready["a"], trees.ready[name]])
        stream = agent.trajectories.ExportTrajectories(request, timeout=DEADLINE)
        with refused(NOT_FOUND, "TRAJECTORY_NOT_FOUND"):
            next(stream)
    found = agent.exported(trajectory_ids=[trees.ready[name] for name in ("a", "a1", "a0")])
    assert [done.session.session_id for done in found] == ["a", "a1", "a0"]
    with keyed(trees.server, trees.keys["root"]) as root:
        assert {d.session.session_id for d in root.exported(root_session_id="root")} == {*PARENTS} - {
            "other",
            "o1",
            "b0x",
        }


def test_i17_renewals_and_acknowledgements_are_looked_at_one_by_one(trees: Trees, agent: Api) -> None:
    names = ["a", "b", "o1", "a1", "nobody", "b0", "a0"]
    renewals = [turn_service_pb2.Renewal(session_id=n, lease=trees.leases.get(n, bytes(40))) for n in names]
    request = turn_service_pb2.RenewTurnsRequest(renewals=renewals)
    results = agent.turns.RenewTurns(request, timeout=DEADLINE).results
    reasons = [result.refusal.reason for result in results]
    hidden = "SESSION_NOT_FOUND"
    assert reasons == ["", hidden, hidden, "", hidden, hidden, "SESSION_CLOSED"]
    assert results[1].refusal.message.replace('"b"', '"nobody"') == results[4].refusal.message
    acks = agent.ack(*(trees.ready[name] for name in ("b", "o1", "root")))
    assert [ack.refusal.reason for ack in acks] == ["TRAJECTORY_NOT_FOUND"] * 3
    acks = agent.ack(trees.ready["a1"])
    assert [ack.refusal.reason for ack in acks] == [""]


def test_i17_it_makes_sessions_below_its_own_and_nowhere_else(trees: Trees, agent: Api) -> None:
    child, grandchild = fresh("c"), fresh("c")
    assert agent.open(child, parent_session_id="a").session.path.startswith("/root/a/")
    assert agent.open(grandchild, parent_session_id=child).created
    options = types_pb2.OpenOptions(parent_session_id=grandchild)
    assert agent.begin(fresh("c"), open=options).grant.turn == 1
    for parent in (*Trees.OUTLINE, *Trees.HIDDEN, "nobody", "b0"):
        with refused(NOT_FOUND, "PARENT_NOT_FOUND"):
            agent.open(fresh(), parent_session_id=parent)
        with refused(NOT_FOUND, "PARENT_NOT_FOUND"):
            agent.begin(fresh(), open=types_pb2.OpenOptions(parent_session_id=parent))
    with refused(FAILED, "SESSION_CLOSED"):
        agent.open(fresh(), parent_session_id="a0")
    for name in ("nobody", "o1", "b", "b0"):  # whether or not the id is taken
        with refused(DENIED, "KEY_SCOPE"):
            agent.begin(name, open=types_pb2.OpenOptions())
    # Ids are one for a tenant: that one is taken is all that shows, not by what.
    said_of = []
    for name in ("o1", "b", "b0", "b0x"):
        for if_exists in ("IF_EXISTS_REFUSE", "IF_EXISTS_RETURN"):
            request = session_service_pb2.OpenSessionRequest(session_id=name, if_exists=if_exists, mint_key=True)
            request.options.parent_session_id = "a"
            with refused(EXISTS, "SESSION_EXISTS") as why:
                agent.sessions.OpenSession(request, timeout=DEADLINE)
            said_of.append(why.message.replace(f'"{name}"', "it"))
        with refused(EXISTS, "SESSION_EXISTS"):
            agent.begin(name, open=types_pb2.OpenOptions(parent_session_id="a"))
    assert len(set(said_of)) == 1
    with refused(FAILED, "SESSION_CLOSED"):
        agent.open("a0", parent_session_id="a")
    agent.close(child)


def test_i17_it_writes_to_all_of_its_tree_in_its_own_name_alone(trees: Trees, agent: Api) -> None:
    before = {name: len(listed(trees, name)) for name in Trees.OUTLINE}
    for name in Trees.OUTLINE:
        agent.send(name, b"from a")
        agent.send(name, b"from a1", sender_session_id="a1")
    for name in (*Trees.OUTLINE, *Trees.HIDDEN, Trees.GONE_OUTLINE, "nobody"):
        with refused(NOT_FOUND, "SESSION_NOT_FOUND") as why:
            agent.send("root", sender_session_id=name)
        assert why.message == f'no session "{name}" is known'  # as of one that never was
    with refused(FAILED, "ROOT_TRIGGER"):
        agent.send("root", trigger=True)
    for name in Trees.OUTLINE:
        told = [(m.content, m.sender_session_id) for m in listed(trees, name)[before[name] :]]
        assert told == [(b"from a", "a"), (b"from a1", "a1")]
        with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
            agent.list_mail(name)
    # What became of its own it sees, whoever it was to.
    assert {m.session_id for m in agent.list_mail(sender_session_id="a")} >= set(Trees.OUTLINE)
    with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        agent.list_mail(sender_session_id="b")


def listed(trees: Trees, name: str) -> list[Any]:
    with keyed(trees.server, trees.tenant_key) as api:
        return api.list_mail(name)


def test_i17_it_polls_turns_of_its_own_sessions(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", ROOST_ADMIN_KEY=ADMIN).start()
    try:
        with keyed(server, create(server, "t").key) as api:
            keys = {name: opened(api, name, parent) for name, parent in (("root", ""), ("a", "root"), ("b", "root"))}
            for name in ("root", "b"):
                api.send(name, b"go", trigger=True)
            with keyed(server, keys["a"]) as agent:
                assert not agent.poll().session_id
                api.send("a", b"go", trigger=True)
                assert agent.poll().session_id == "a"
            assert {api.poll().session_id for _ in range(2)} == {"root", "b"}
    finally:
        server.end()


def test_an_id_made_from_a_request_id_is_the_sessions_own(trees: Trees) -> None:
    """Else one agent could tell what another has asked for."""
    ids = []
    for name in ("a", "b"):
        with keyed(trees.server, trees.keys[name]) as api:
            request = session_service_pb2.OpenSessionRequest(request_id="same")
            request.options.parent_session_id = name
            first = api.sessions.OpenSession(request, timeout=DEADLINE)
            assert api.sessions.OpenSession(request, timeout=DEADLINE).session == first.session
            ids.append(first.session.session_id)
            api.close(first.session.session_id)
    assert ids[0] != ids[1]


def test_it_interrupts_its_descendants_without_force_and_not_itself(trees: Trees, agent: Api) -> None:
    assert agent.interrupt("a1", request_id=fresh()).turn == 2
    for name, force in (("a", False), ("a1", True), ("b", True), ("nobody", True)):
        with refused(DENIED, "KEY_SCOPE"):
            agent.interrupt(name, force=force)
    with keyed(trees.server, trees.keys["root"]) as api, refused(DENIED, "KEY_SCOPE"):
        api.interrupt("root")


def test_a_childs_key_is_minted_by_its_parent_and_no_other(trees: Trees, agent: Api) -> None:
    request = session_service_pb2.OpenSessionRequest(session_id="a1", if_exists="IF_EXISTS_RETURN", mint_key=True)
    assert agent.sessions.OpenSession(request, timeout=DEADLINE).session_key == trees.keys["a1"]
    with keyed(trees.server, trees.keys["a1"]) as api:
        for name in ("a", "a0"):  # its parent and its sibling are no more to it than the rest of the tree
            assert not api.get(name).labels
        with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
            api.history("a")
        assert len(api.history("a1")) >= 1


def test_work_goes_on_inside(trees: Trees, agent: Api) -> None:
    name = fresh("w")
    agent.open(name, parent_session_id="a1")
    assert agent.turn(name, b"one").turn == 1
    agent.reward(name, 0.5)
    assert agent.finish(name).trajectory.turn_count == 1
    assert [r.record.content for r in agent.history(name)] == [b"one"]
    assert agent.close(name).receipt.turn_count == 1
    assert agent.get(name).state == CLOSED
    with refused(FAILED, "SESSION_CLOSED"):
        agent.begin(name)
    assert agent.history(name)
    assert agent.close(name).closed


def test_i17_a_tree_that_cannot_be_read_is_not_told_of(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", ROOST_ADMIN_KEY=ADMIN, ROOST_MAX_TURNS_PER_TREE="100").start()
    try:
        trees = planted(server)
        assert server.terminate() == 0
        with contextlib.closing(sqlite3.connect(server.data_dir / "roost.db")) as store, store:
            store.execute("UPDATE session SET lease = x'ff' WHERE session_id = 'other'")
        server.start()
        with keyed(server, trees.tenant_key) as api, refused(grpc.StatusCode.DATA_LOSS, "TREE_QUARANTINED"):
            api.begin("other")
        with keyed(server, trees.keys["a"]) as agent:
            for name in ("other", "o1", "nobody"):
                for path in ABOUT_ONE:
                    method = path.rpartition("/")[2]
                    if method != "OpenSession":
                        refusal = said(agent, path, about(method, name, trees))
                        assert refusal is not None
                        assert refusal.reason == "SESSION_NOT_FOUND", (path, name, refusal)
    finally:
        server.end()


# -- the end of the session


@pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])
def test_the_key_of_a_session_that_ended_reaches_its_receipt_alone(tmp_path: Path, restarted: bool) -> None:
    server = Server(tmp_path / "data", ROOST_ADMIN_KEY=ADMIN, ROOST_MAX_TURNS_PER_TREE="100").start()
    try:
        trees = planted(server)
        with keyed(server, trees.tenant_key) as api:
            receipt = api.close("a").receipt
            assert receipt.children_closed == 2
        if restarted:
            server.kill()
            server.start()
        for name in ("a", "a1"):
            assert_over(trees, name, "SESSION_CLOSED")
        with keyed(server, trees.keys["a"]) as agent:
            assert agent.close("a").receipt == receipt
    finally:
        server.end()


def assert_over(trees: Trees, name: str, reason: str) -> None:
    """Whatever the key of a session is used for is refused so, but for its own CloseSession if that has ended."""
    with keyed(trees.server, trees.keys[name]) as agent:
        for path in METHODS:
            method, rule = path.rpartition("/")[2], RULES[path]
            for target in ("a", "a1", "b", "other", "nobody"):
                if method == "CloseSession" and target == name and reason == "SESSION_CLOSED":
                    continue
                plain = rule in ("admin", "tenant", "each")
                refusal = said(agent, path, None if plain else about(method, target, trees))
                assert refusal is not None, (path, target)
                expected = "KEY_SCOPE" if rule in ("admin", "tenant") else reason
                assert refusal.reason == expected, (path, target, refusal)


@pytest.mark.parametrize("by", ["root", "tenant", "admin"])
@pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])
def test_i17_a_reopened_session_has_another_key(tmp_path: Path, by: str, restarted: bool) -> None:
    """Those of its former life stay what they were when it ended, and close nothing of the new one."""
    server = Server(tmp_path / "data", ROOST_ADMIN_KEY=ADMIN, ROOST_MAX_TURNS_PER_TREE="100").start()
    try:
        trees = planted(server)
        key = {"root": trees.keys["root"], "tenant": trees.tenant_key, "admin": ADMIN}[by]
        with keyed(server, key, trees.tenant) as api:
            receipt = api.close("a").receipt
            for other in ("b", "a", "a1"):
                expected = (NOT_FOUND, "SESSION_NOT_FOUND") if other == "b" else (FAILED, "SESSION_CLOSED")
                with keyed(server, trees.keys[other]) as agent, refused(*expected):
                    agent.reopen("a")
            assert api.reopen("a").reopened == 3
            if restarted:
                server.kill()
                server.start()
        with keyed(server, key, trees.tenant) as api:
            for name in ("a", "a1"):
                assert_over(trees, name, "SESSION_CLOSED")
            with keyed(server, trees.keys["a"]) as agent:
                assert agent.close("a").receipt == receipt
            assert api.get("a").state == api.get("a1").state == types_pb2.SESSION_STATE_OPEN
            request = session_service_pb2.OpenSessionRequest(
                session_id="a", if_exists="IF_EXISTS_RETURN", mint_key=True
            )
            again = api.sessions.OpenSession(request, timeout=DEADLINE).session_key
        assert again != trees.keys["a"]
        with keyed(server, again) as agent:
            assert [r.record.content for r in agent.history("a")] == [b"content of a"]
            assert agent.get("root").state == types_pb2.SESSION_STATE_OPEN
            assert {s.session_id for s in agent.list_all()} >= {"root", "a", "a1", "b"}
            assert set(agent.export()) == {"a", "a1", "a2", "a0"}
            assert agent.turn("a", b"of its next life").turn == 2
            assert agent.close("a").receipt.close_number == 2
        trees.keys["a"] = again
        assert_over(trees, "a", "SESSION_CLOSED")
    finally:
        server.end()


def test_i17_a_key_of_a_purged_session_is_none(tmp_path: Path) -> None:
    flags = ("--set", "retention_ms=1d", "--set", "purge_without_dump=true")
    server = ClockedServer(tmp_path / "data", *flags, ROOST_ADMIN_KEY=ADMIN, ROOST_MAX_TURNS_PER_TREE="100").start()
    try:
        trees = planted(server)
        with keyed(server, trees.tenant_key) as api:
            api.close("a")
            assert_over(trees, "a", "SESSION_CLOSED")
            server.clock.skip(86_400.0 + 60)
            while not api.get("a").cleanup.HasField("purged_time"):
                pass
            assert_over(trees, "a", "KEY_INVALID")
            with refused(FAILED, "SESSION_PURGED"):
                api.reopen("a")
        # Its parent's key reads of it what there is to read.
        with keyed(server, trees.keys["root"]) as agent:
            assert agent.get("a").cleanup.HasField("purged_time")
            with refused(FAILED, "SESSION_PURGED"):
                agent.history("a")
    finally:
        server.end()


def test_a_key_of_an_id_that_another_session_has_is_no_key(tmp_path: Path) -> None:
    """The id is the client's, the key the session's: a store from elsewhere with the same ids and the same secret."""
    one = Server(tmp_path / "one", ROOST_ADMIN_KEY=ADMIN).start()
    two = Server(tmp_path / "two", ROOST_ADMIN_KEY=ADMIN).start()
    try:
        with keyed(one, ADMIN) as api:
            key = opened(api, "root")
        with keyed(two, ADMIN) as api:
            opened(api, "root")
        two.terminate()
        (tmp_path / "two" / "roost.secret").write_bytes((tmp_path / "one" / "roost.secret").read_bytes())
        two.start()
        with keyed(two, key) as api:
            for path in METHODS:
                if RULES[path] not in ("admin", "tenant"):
                    request = (
                        None if RULES[path] == "each" else about(path.rpartition("/")[2], "root", Trees(two, "", ""))
                    )
                    refusal = said(api, path, request)
                    assert refusal is not None
                    assert refusal.reason == "KEY_INVALID", path
    finally:
        one.end()
        two.end()
