"""Sessions by path: whom they lead to by every method, loaded or not, and what of it shows to whom (I16, I17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, create, keyed, said
from conftest import Start
from resources_api import Resources
from roost_server import DEADLINE, Api, Server, fresh, refused

from roost.client import Client
from roost.errors import SessionNotFound
from roost.v1 import (
    mail_service_pb2,
    resource_service_pb2,
    session_service_pb2,
    trajectory_service_pb2,
    turn_service_pb2,
    types_pb2,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
INVALID = grpc.StatusCode.INVALID_ARGUMENT
FAILED = grpc.StatusCode.FAILED_PRECONDITION


@dataclass
class Forest:
    """root - scout (whose key it is) - leaf - tip; root - scout2 - leaf; root - gone - below, closed; other - scout.

    Ids are the paths without what a path has: "root", "scout", "scout.leaf", ..., "other", "other.scout".
    """

    server: Server
    tenant_key: str
    keys: dict[str, str]


NAMES = {
    "root": ("", ""),
    "scout": ("root", "scout"),
    "scout.leaf": ("scout", "leaf"),
    "scout.leaf.tip": ("scout.leaf", "tip"),
    "scout2": ("root", "scout2"),
    "scout2.leaf": ("scout2", "leaf"),
    "gone": ("root", "gone"),
    "gone.below": ("gone", "below"),
    "other": ("", ""),
    "other.scout": ("other", "scout"),
}
# As the key of "scout" may write them.
INSIDE = {
    "/root/scout": "scout",
    "./leaf": "scout.leaf",
    "/root/scout/leaf": "scout.leaf",
    "root/root/scout/leaf": "scout.leaf",
    "./leaf/tip": "scout.leaf.tip",
}
OUTLINE = {"/root": "root", "/root/scout2": "scout2", "root/root/scout2/leaf": "scout2.leaf"}
HIDDEN = ("other/root", "other/root/scout", "nobody/root", "nobody/root/scout", "scout/root", "scout/root/leaf")
NOWHERE = ("/root/nobody", "./nobody", "./leaf/leaf", "/root/gone", "/root/gone/below", "/root/scout2x", "/root/scou")


@pytest.fixture(scope="module", params=["in memory", "after a restart", "unloaded"])
def forest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forest]:
    flags = ("--max-resident", "1") if request.param == "unloaded" else ()
    env = {"ROOST_ADMIN_KEY": ADMIN, "ROOST_MAX_TURNS_PER_TREE": "100"}
    server = Server(tmp_path_factory.mktemp("paths") / "data", *flags, **env).start()
    made = create(server, fresh("t"))
    keys = {}
    with keyed(server, made.key) as api:
        for session_id, (parent, name) in NAMES.items():
            request_ = session_service_pb2.OpenSessionRequest(session_id=session_id, mint_key=True)
            request_.options.parent_session_id = parent
            request_.options.name = name
            keys[session_id] = api.sessions.OpenSession(request_, timeout=DEADLINE).session_key
            api.turn(session_id, b"content of " + session_id.encode())
            api.finish(session_id)
        api.close("gone")
    if request.param == "after a restart":
        assert server.terminate() == 0
        server.start()
    yield Forest(server, made.key, keys)
    server.end()


@pytest.fixture
def agent(forest: Forest) -> Iterator[Api]:
    with keyed(forest.server, forest.keys["scout"]) as api:
        yield api


@pytest.fixture
def tenant(forest: Forest) -> Iterator[Api]:
    with keyed(forest.server, forest.tenant_key) as api:
        yield api


def test_a_session_of_a_key_writes_them_from_its_tree_and_from_itself(agent: Api) -> None:
    for path, session_id in {**INSIDE, **OUTLINE}.items():
        assert agent.get(path).session_id == session_id, path
    for path in (*HIDDEN, *NOWHERE):
        with refused(NOT_FOUND, "SESSION_NOT_FOUND") as why:
            agent.get(path)
        assert why.metadata == {"session_id": path}


def test_a_tenants_key_names_the_tree(tenant: Api) -> None:
    for session_id, (parent, _) in NAMES.items():
        if session_id.startswith("gone"):
            continue
        root = "other" if session_id.startswith("other") else "root"
        assert tenant.get(f"{root}{tenant.get(session_id).path}").session_id == session_id
        assert bool(parent) == (tenant.get(session_id).path != "/root")
    for path in ("root/root/gone", "root/root/gone/below", "nobody/root", "scout/root", "scout/root/leaf", "gone/root"):
        with refused(NOT_FOUND, "SESSION_NOT_FOUND") as why:
            tenant.get(path)
        assert why.metadata == {"session_id": path}
    for path in ("/root", "/root/scout", "./leaf"):
        for said_of in (lambda path=path: tenant.get(path), lambda path=path: tenant.history(path)):
            with refused(INVALID, "INVALID_FIELD") as why:
                said_of()
            assert why.metadata["field"] == "session_id"
            assert "<id of its root>/root/" in why.message


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/root/",
        "root/",
        "root/rootx",
        "./",
        ".//a",
        "../scout",
        "/root/Scout",
        "/root/root",
        "r r/root",
        "/x",
    ],
)
def test_i22_what_is_no_path_is_a_wrong_field_wherever_it_stands(agent: Api, path: str) -> None:
    for ask in (agent.get, agent.begin, agent.history, agent.close):
        with refused(INVALID, "INVALID_FIELD") as why:
            ask(path)
        assert why.metadata["field"] == "session_id"
    with refused(INVALID, "INVALID_FIELD") as why:
        agent.exported(session_ids=[path])
    assert why.metadata["field"] == "session_ids"
    with refused(INVALID, "INVALID_FIELD") as why:
        agent.open(parent_session_id=path)
    assert why.metadata["field"] == "options.parent_session_id"


def test_a_long_path_is_a_wrong_field(agent: Api) -> None:
    path = "/root" + "/a" * 1_022
    assert len(path) == 2_049
    for ask in (agent.get, agent.history):
        with refused(INVALID, "INVALID_FIELD") as why:
            ask(path)
        assert (why.metadata["size"], why.metadata["limit"]) == ("2049", "2048")
    # As long as it may be, it is in the metadata whole; what is refused fits its 4 KiB all the same.
    path = path[:-2]
    asks: list[tuple[Callable[[str], Any], str]] = [
        (agent.get, "SESSION_NOT_FOUND"),
        (agent.history, "SESSION_NOT_FOUND"),
        (lambda path: agent.open(parent_session_id=path), "PARENT_NOT_FOUND"),
    ]
    for ask, reason in asks:
        with refused(NOT_FOUND, reason) as why:
            ask(path)
        assert why.metadata == {"session_id": path}
        assert f"{path[:256]}..." in why.message


def cold(api: Api, path: str) -> dict[str, Any]:
    """What the reads that go to the store say of a session."""
    return {
        "history": [record.record.content for record in api.history(path)],
        "export": list(api.export(session_ids=[path])),
        "trajectories": [done.session.session_id for done in api.exported(session_ids=[path])],
        "resources": [one.session_id for one in Resources(api).list(session_id=path)],
        "mail": [message.content for message in api.list_mail(path)],
    }


def test_reads_of_the_store_take_paths_too(agent: Api, tenant: Api) -> None:
    by_id = {
        session_id: cold(tenant, session_id) for session_id in ("scout", "scout.leaf", "scout2.leaf", "other.scout")
    }
    assert by_id["scout"]["history"] == [b"content of scout"]
    for path, session_id in INSIDE.items():
        if session_id in by_id:
            assert cold(agent, path) == by_id[session_id], path
    for path, session_id in {"root/root/scout2/leaf": "scout2.leaf", "other/root/scout": "other.scout"}.items():
        assert cold(tenant, path) == by_id[session_id], path
    # A root is named by its id.
    for ask in (
        lambda: tenant.exported(root_session_id="root/root"),
        lambda: tenant.list_all(root_session_id="root/root"),
    ):
        with refused(INVALID, "INVALID_FIELD") as why:
            ask()
        assert why.metadata["field"] == "root_session_id"


def request_of(method: str, path: str) -> Any:
    """A request of a method that names a session by path."""
    lease, record = bytes(40), types_pb2.RecordInput(content=b"x")
    return {
        "UpdateSession": session_service_pb2.UpdateSessionRequest(session_id=path),
        "ReadHistory": session_service_pb2.ReadHistoryRequest(session_id=path),
        "CloseSession": session_service_pb2.CloseSessionRequest(session_id=path),
        "ReopenSession": session_service_pb2.ReopenSessionRequest(session_id=path),
        "InterruptSession": session_service_pb2.InterruptSessionRequest(session_id=path),
        "BeginTurn": turn_service_pb2.BeginTurnRequest(session_id=path),
        "CommitTurn": turn_service_pb2.CommitTurnRequest(session_id=path, lease=lease, record=record),
        "AbortTurn": turn_service_pb2.AbortTurnRequest(session_id=path, lease=lease),
        "GetCheckpoint": turn_service_pb2.GetCheckpointRequest(session_id=path, lease=lease),
        "SetReward": trajectory_service_pb2.SetRewardRequest(session_id=path, reward=1.0),
        "FinishTrajectory": trajectory_service_pb2.FinishTrajectoryRequest(session_id=path),
        "ExportTrajectories": trajectory_service_pb2.ExportTrajectoriesRequest(session_ids=[path]),
        "AttachResource": resource_service_pb2.AttachResourceRequest(
            session_id=path, kind="RESOURCE_KIND_CLIENT", owner="host"
        ),
        "DetachResource": resource_service_pb2.DetachResourceRequest(session_id=path, name="roost-1"),
        "ListResources": resource_service_pb2.ListResourcesRequest(session_id=path),
        "WaitMail": mail_service_pb2.WaitMailRequest(session_id=path),
        "ListMail": mail_service_pb2.ListMailRequest(session_id=path),
    }[method]


SERVICE_OF = {
    "SessionService": ["UpdateSession", "ReadHistory", "CloseSession", "ReopenSession", "InterruptSession"],
    "TurnService": ["BeginTurn", "CommitTurn", "AbortTurn", "GetCheckpoint"],
    "TrajectoryService": ["SetReward", "FinishTrajectory", "ExportTrajectories"],
    "ResourceService": ["AttachResource", "DetachResource", "ListResources"],
    "MailService": ["WaitMail", "ListMail"],
}
METHODS = [f"/roost.v1.{service}/{method}" for service, methods in SERVICE_OF.items() for method in methods]


@pytest.mark.parametrize("method", METHODS)
def test_i17_by_path_what_is_out_of_reach_looks_like_what_is_not_there(agent: Api, method: str) -> None:
    name = method.rpartition("/")[2]
    unknown = said(agent, method, request_of(name, "/root/nobody"))
    assert unknown is not None
    assert (unknown.code, unknown.reason) == (NOT_FOUND, "SESSION_NOT_FOUND")
    for path in (*OUTLINE, *HIDDEN, *NOWHERE):
        why = said(agent, method, request_of(name, path))
        assert why is not None, f"{method} answered about {path}"
        assert (why.code, why.reason, why.details) == (unknown.code, unknown.reason, unknown.details)
        assert why.message == unknown.message.replace("/root/nobody", path)
        assert why.metadata == {"session_id": path}


def test_a_turn_by_path_and_what_follows_it(agent: Api, tenant: Api) -> None:
    turn = agent.get("scout.leaf").turn_count + 1
    lease = agent.begin("./leaf", request_id=(again := fresh("r"))).grant.lease
    assert agent.begin("./leaf", request_id=again).grant.lease == lease
    assert tenant.get("root/root/scout/leaf").activity == types_pb2.ACTIVITY_RUNNING
    assert agent.interrupt("./leaf").turn == turn
    assert agent.commit("/root/scout/leaf", lease, b"by path").turn == turn
    assert agent.history("./leaf")[-1].record.content == b"by path"
    agent.reward("./leaf", 0.5)
    agent.finish("./leaf")
    made = fresh("s")
    options = types_pb2.OpenOptions(parent_session_id="./leaf")
    assert agent.begin(made, open=options).created
    assert agent.get(made).parent_session_id == "scout.leaf"
    assert agent.close(f"./leaf/{made}").closed
    for wrong in (f"./{made}", f"/root/{made}"):
        with refused(INVALID, "INVALID_FIELD"):
            agent.open(wrong, parent_session_id="./leaf")
        with refused(INVALID, "INVALID_FIELD"):
            agent.begin(wrong, open=options)
    renewal = turn_service_pb2.Renewal(session_id="./leaf", lease=lease)
    results = agent.turns.RenewTurns(turn_service_pb2.RenewTurnsRequest(renewals=[renewal]), timeout=DEADLINE).results
    assert results[0].refusal.reason == "INVALID_FIELD"


def test_i16_a_sibling_takes_the_path_of_one_that_ended(start: Start) -> None:
    server = start("--max-resident", "1")
    with server.api() as api:
        root, first, second = fresh(), fresh(), fresh()
        api.open(root)
        api.open(first, parent_session_id=root, name="scout")
        api.open(fresh(), parent_session_id=f"{root}/root/scout", name="below")
        path = f"{root}/root/scout"
        api.turn(path, b"first")
        # A list by path goes on with whom it began with, or not at all.
        lists = session_service_pb2.ListSessionsRequest(root_session_id=root, path_prefix="/root/scout")
        assert len(api.sessions.ListSessions(lists, timeout=DEADLINE).sessions) == 2
        assert api.close(path).receipt.children_closed == 1
        for gone in (path, f"{path}/below"):
            for ask in (api.get, api.history, api.begin):
                with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                    ask(gone)
        # By its id it is there still.
        assert [record.record.content for record in api.history(first)] == [b"first"]
        api.open(second, parent_session_id=f"{root}/root", name="scout")
        assert api.get(path).session_id == second
    server.kill()
    server.start()
    with server.api() as api:
        api.turn(path, b"second")
        assert [record.record.content for record in api.history(path)] == [b"second"]
        with refused(FAILED, "SESSION_CLOSED"):
            api.begin(first)
        api.close(root)
        for gone in (path, f"{root}/root"):
            with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                api.get(gone)
            with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                api.history(gone)


def test_mail_goes_by_path(agent: Api, tenant: Api) -> None:
    message = types_pb2.MessageInput(content=b"hello")
    request = mail_service_pb2.SendMessageRequest(
        session_id="/root/scout2", sender_session_id="./leaf", message=message, request_id=fresh("r")
    )
    send = agent.channel.unary_unary("/roost.v1.MailService/SendMessage")
    replies = [send(request.SerializeToString(), timeout=DEADLINE) for _ in range(2)]
    answers = [mail_service_pb2.SendMessageResponse.FromString(reply) for reply in replies]
    assert (answers[0].repeated, answers[1].repeated) == (False, True)
    assert answers[0].message_id == answers[1].message_id
    listed = tenant.channel.unary_unary("/roost.v1.MailService/ListMail")
    by_sender = mail_service_pb2.ListMailRequest(sender_session_id="root/root/scout/leaf", page_size=1)
    mail = mail_service_pb2.ListMailResponse.FromString(listed(by_sender.SerializeToString(), timeout=DEADLINE))
    assert [(one.session_id, one.sender_path) for one in mail.messages] == [("scout2", "/root/scout/leaf")]
    for path in ("/root", "./nobody", "other/root"):
        wrong = mail_service_pb2.SendMessageRequest(session_id="/root/scout2", sender_session_id=path, message=message)
        why = said(agent, "/roost.v1.MailService/SendMessage", wrong)
        assert why is not None
        assert (why.reason, why.metadata) == ("SESSION_NOT_FOUND", {"session_id": path})


def test_the_client_takes_paths_where_it_takes_ids(forest: Forest) -> None:
    with Client(forest.server.address, api_key=forest.keys["scout"]) as client:
        assert client.get_session("./leaf").session_id == "scout.leaf"
        assert [record.turn for record in client.read_history("./leaf")][:1] == [1]
        with pytest.raises(SessionNotFound) as raised:
            client.get_session("other/root")
        assert raised.value.metadata == {"session_id": "other/root"}
