"""API keys over a real server: three kinds, none accepted for another; made, repeated, rotated, revoked (I5, I17, I21,
I25)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_keys import ADMIN, METHODS, OTHER_ADMIN, create, invoke, keyed, list_keys, opened, revoke, said
from roost_server import DEADLINE, Server, fresh, refused

from roost._core import RULES
from roost.v1 import admin_service_pb2, session_service_pb2, trajectory_service_pb2, turn_service_pb2

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
FAILED = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("keys") / "data", ROOST_ADMIN_KEY=ADMIN).start()
    yield made
    made.end()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may stop and kill."""
    made = Server(tmp_path / "data", ROOST_ADMIN_KEY=ADMIN).start()
    yield made
    made.end()


def flipped(key: str) -> str:
    """The key with one digit of its secret changed."""
    return key[:-1] + ("0" if key[-1] != "0" else "1")


def no_keys(server: Server) -> dict[str, str | None]:
    """What looks like a key and is none, by what is wrong with it."""
    tenant = fresh("t")
    active, gone = create(server, tenant), create(server, tenant)
    revoke(server, gone.api_key.key_id)
    with keyed(server, active.key) as api:
        session = opened(api, fresh())
    return {
        "none": None,
        "empty": "",
        "garbage": "hunter2",
        "another server's admin key": OTHER_ADMIN,
        "the admin key, one digit off": flipped(ADMIN),
        "a tenant's key, one digit off": flipped(active.key),
        "an id nobody has": active.key.replace(active.api_key.key_id, "f" * 32),
        "revoked": gone.key,
        "upper case": active.key.upper(),
        "a session's key, one digit off": flipped(session),
        "a session's key for another session": session.replace("roost_session_", "roost_session_ff", 1),
        "a tenant's key as an admin key": active.key.replace("roost_tenant_", "roost_admin_"),
        "a tenant's key as a session's": active.key.replace("roost_tenant_", "roost_session_"),
        "a session's key as a tenant's": session.replace("roost_session_", "roost_tenant_"),
        "a session's key as an admin key": session.replace("roost_session_", "roost_admin_"),
        "the admin key as a tenant's": ADMIN.replace("roost_admin_", "roost_tenant_"),
        "the admin key as a session's": ADMIN.replace("roost_admin_", "roost_session_"),
    }


def test_i17_every_method_has_a_rule() -> None:
    assert set(RULES) == set(METHODS)
    assert {path for path, rule in RULES.items() if rule == "admin"} == {p for p in METHODS if "AdminService" in p}


def test_i17_no_method_answers_without_a_valid_key(server: Server) -> None:
    for what, key in no_keys(server).items():
        with keyed(server, key) as api:
            for path in METHODS:
                refusal = said(api, path)
                assert refusal is not None, f"{path} answered to {what}"
                assert (refusal.code, refusal.reason) == (UNAUTHENTICATED, "KEY_INVALID"), (path, what, refusal)
                # Nothing tells an unknown key from a wrong or a revoked one.
                assert refusal.message == 'no valid API key: send one as "authorization: Bearer <key>"'
                assert refusal.metadata == {}


@pytest.mark.parametrize("value", ["Basic {}", "{}", "Bearer", "Bearer {} {}", "Bearer{}"])
def test_only_a_bearer_key_is_a_key(server: Server, value: str) -> None:
    with server.api() as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        metadata = (("authorization", value.replace("{}", ADMIN)),)
        api.admin.GetStats(admin_service_pb2.GetStatsRequest(), timeout=DEADLINE, metadata=metadata)


def test_two_keys_in_one_call_are_none(server: Server) -> None:
    with server.api() as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        metadata = (("authorization", f"Bearer {ADMIN}"),) * 2
        api.admin.GetStats(admin_service_pb2.GetStatsRequest(), timeout=DEADLINE, metadata=metadata)


def test_i17_admin_calls_are_the_admin_keys_alone(server: Server) -> None:
    tenant = create(server, fresh("t")).key
    with keyed(server, tenant) as api:
        session = opened(api, fresh())
    for key in (tenant, session):
        with keyed(server, key) as api:
            for path in (path for path in METHODS if "AdminService" in path):
                refusal = said(api, path)
                assert refusal is not None
                assert (refusal.code, refusal.reason) == (DENIED, "KEY_SCOPE")
    with keyed(server, ADMIN) as api:
        assert api.stats().version


def test_health_stays_open(server: Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with server.api() as api:
        answer = health_pb2_grpc.HealthStub(api.channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_i17_tenants_do_not_see_each_other(server: Server) -> None:
    one, two = fresh("t"), fresh("t")
    session_id = fresh()
    with keyed(server, create(server, one).key) as api:
        opened(api, session_id)
        api.turn(session_id)
    with keyed(server, create(server, two).key) as api:
        absent = fresh()
        for path in METHODS:
            request = about(path, session_id)
            if request is not None:
                there, nowhere = said(api, path, request), said(api, path, about(path, absent))
                assert there is not None, path
                assert there.code is NOT_FOUND, path
                assert nowhere is not None
                assert there.message == nowhere.message.replace(absent, session_id), path
        assert api.list_all() == []
        assert api.export() == {}
        # The same id is another session here.
        assert api.open(session_id).created
    with keyed(server, ADMIN) as api, refused(NOT_FOUND, "SESSION_NOT_FOUND"):
        api.get(session_id)  # of tenant "default"
    with keyed(server, ADMIN, one) as api:
        assert api.get(session_id).turn_count == 1
    with keyed(server, ADMIN, two) as api:
        assert api.get(session_id).turn_count == 0


def about(path: str, session_id: str) -> Any:
    """A request about a session, for the methods that take one and make none."""
    lease = bytes(40)
    requests = {
        "GetSession": session_service_pb2.GetSessionRequest(session_id=session_id),
        "UpdateSession": session_service_pb2.UpdateSessionRequest(session_id=session_id),
        "ReadHistory": session_service_pb2.ReadHistoryRequest(session_id=session_id),
        "CloseSession": session_service_pb2.CloseSessionRequest(session_id=session_id),
        "ReopenSession": session_service_pb2.ReopenSessionRequest(session_id=session_id),
        "InterruptSession": session_service_pb2.InterruptSessionRequest(session_id=session_id),
        "BeginTurn": turn_service_pb2.BeginTurnRequest(session_id=session_id),
        "CommitTurn": turn_service_pb2.CommitTurnRequest(session_id=session_id, lease=lease),
        "AbortTurn": turn_service_pb2.AbortTurnRequest(session_id=session_id, lease=lease),
        "GetCheckpoint": turn_service_pb2.GetCheckpointRequest(session_id=session_id, lease=lease),
        "SetReward": trajectory_service_pb2.SetRewardRequest(session_id=session_id, reward=1.0),
        "FinishTrajectory": trajectory_service_pb2.FinishTrajectoryRequest(session_id=session_id),
        "ExportTrajectories": trajectory_service_pb2.ExportTrajectoriesRequest(session_ids=[session_id]),
        "ListSessions": session_service_pb2.ListSessionsRequest(root_session_id=session_id),
    }
    return requests.get(path.rpartition("/")[2])


def test_a_tenants_key_names_no_other_tenant(server: Server) -> None:
    one, two = fresh("t"), fresh("t")
    key = create(server, one).key
    with keyed(server, key, two) as api, refused(DENIED, "KEY_SCOPE"):
        api.list_all()
    with keyed(server, key, one) as api:
        assert api.list_all() == []
    with keyed(server, ADMIN, "no/tenant") as api, refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        api.list_all()


def test_rotation_takes_two_active_keys_and_no_third(server: Server) -> None:
    tenant = fresh("t")
    first, second = create(server, tenant), create(server, tenant)
    with refused(EXHAUSTED, "TENANT_KEYS") as why:
        create(server, tenant)
    assert (why.metadata["limit"], why.metadata["used"], why.metadata["tenant"]) == ("2", "2", tenant)
    assert "QuotaFailure" in why.details
    session_id = fresh()
    for key in (first.key, second.key):
        with keyed(server, key) as api:
            assert key != first.key or api.open(session_id).created
            assert api.get(session_id).session_id == session_id
    answer = revoke(server, first.api_key.key_id)
    assert answer.api_key.HasField("revoke_time")
    assert not answer.repeated
    with keyed(server, first.key) as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        api.get(session_id)
    with keyed(server, second.key) as api:
        assert api.get(session_id).session_id == session_id
    third = create(server, tenant)
    with keyed(server, third.key) as api:
        assert api.get(session_id).session_id == session_id
    again = revoke(server, first.api_key.key_id)
    assert again.repeated
    assert again.api_key == answer.api_key
    with refused(NOT_FOUND, "KEY_NOT_FOUND"):
        revoke(server, "f" * 32)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        revoke(server, "FF")


def test_lists_page_and_never_show_a_key(server: Server) -> None:
    tenant, other = fresh("t"), fresh("t")
    made = [create(server, tenant), create(server, other), create(server, tenant)]
    revoke(server, made[0].api_key.key_id)
    made.append(create(server, tenant))
    ours = [m.api_key.key_id for m in made if m.api_key.tenant == tenant]
    for size in (0, 1, 2, 3):
        listed = list_keys(server, tenant, size)
        assert [key.key_id for key in listed] == ours
        assert [key.HasField("revoke_time") for key in listed] == [True, False, False]
    assert {m.api_key.key_id for m in made} <= {key.key_id for key in list_keys(server, page_size=2)}
    with keyed(server, ADMIN) as api:
        answer = b"".join(invoke(api, "/roost.v1.AdminService/ListApiKeys"))
        page = api.admin.ListApiKeys(admin_service_pb2.ListApiKeysRequest(page_size=1), timeout=DEADLINE)
        wrong = admin_service_pb2.ListApiKeysRequest(page_token=page.next_page_token, tenant=tenant)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "BAD_PAGE_TOKEN"):
            api.admin.ListApiKeys(wrong, timeout=DEADLINE)
    for m in made:
        assert m.key.rpartition("_")[2].encode() not in answer


def test_i21_a_repeat_shows_the_same_key(own: Server) -> None:
    first = create(own, "acme", "r-1")
    again = create(own, "acme", "r-1")
    assert (again.key, again.api_key, again.repeated) == (first.key, first.api_key, True)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MISMATCH"):
        create(own, "other", "r-1")
    assert own.terminate() == 0
    own.start()
    again = create(own, "acme", "r-1")
    assert (again.key, again.api_key, again.repeated) == (first.key, first.api_key, True)
    assert len(list_keys(own)) == 1
    revoke(own, first.api_key.key_id)
    again = create(own, "acme", "r-1")
    assert again.key == first.key
    assert again.api_key.HasField("revoke_time")
    with keyed(own, again.key) as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        api.list_all()


def test_i5_what_was_acknowledged_survives_a_kill(own: Server) -> None:
    kept, gone = create(own, "acme", "kept"), create(own, "acme")
    revoke(own, gone.api_key.key_id)
    own.kill()
    own.start()
    with keyed(own, kept.key) as api:
        session = opened(api, "root")
    with keyed(own, gone.key) as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        api.list_all()
    assert create(own, "acme", "kept").key == kept.key
    own.kill()
    own.start()
    with keyed(own, session) as api:
        assert api.get("root").session_id == "root"


def test_without_its_secret_a_server_keeps_tenants_keys_and_ends_those_of_sessions(own: Server) -> None:
    tenant = create(own, "acme", "r-1")
    with keyed(own, tenant.key) as api:
        session = opened(api, "root")
    assert own.terminate() == 0
    secret = own.data_dir / "roost.secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.unlink()
    own.start()
    with keyed(own, tenant.key) as api:
        assert api.get("root").session_id == "root"
        again = opened_again(api, "root")
    assert again != session
    with keyed(own, session) as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        api.get("root")
    with refused(FAILED, "KEY_LOST"):
        create(own, "acme", "r-1")
    assert own.terminate() == 0
    assert "roost.secret was missing" in own.logged


def opened_again(api: Any, session_id: str) -> str:
    request = session_service_pb2.OpenSessionRequest(session_id=session_id, mint_key=True, if_exists="IF_EXISTS_RETURN")
    return str(api.sessions.OpenSession(request, timeout=DEADLINE).session_key)


def test_i25_no_key_is_in_the_log_the_stats_an_error_or_the_store(own: Server) -> None:
    own.terminate()
    own.flags = ("--log-level", "debug")
    own.start()
    tenant = create(own, "acme", "r-1").key
    errors: list[str] = []
    with keyed(own, tenant) as api:
        session = opened(api, "root")
        api.turn("root")
    for key in (ADMIN, tenant, session):
        for sent in (key, flipped(key), key.upper(), key + " "):
            with keyed(own, sent) as api:
                refusals = [said(api, path) for path in METHODS]
                errors += [repr(refusal) for refusal in refusals if refusal is not None]
    with keyed(own, ADMIN) as api:
        stats = str(api.stats())
        assert api.stats().gauges["api_keys"] == 3  # the admin key made two above
    # While it runs, so that its write-ahead log is looked at too.
    stored = b"".join(
        path.read_bytes() for path in own.data_dir.iterdir() if path.is_file() and path.name != "roost.secret"
    )
    own.terminate()
    for key in (ADMIN, tenant, session):
        secret = key.rpartition("_")[2]
        assert secret not in own.logged
        assert secret not in stats
        assert not any(secret in error for error in errors)
        assert secret.encode() not in stored
        assert bytes.fromhex(secret) not in stored
    assert (own.data_dir / "roost.secret").read_bytes() not in stored


def test_a_call_that_waits_is_granted_nothing_once_its_key_is_revoked(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--max-turns-per-tenant", "1", ROOST_ADMIN_KEY=ADMIN).start()
    try:
        holder, waiter = create(server, "acme"), create(server, "acme")
        with keyed(server, holder.key) as api, keyed(server, waiter.key) as waiting:
            api.open("one")
            api.open("two")
            lease = api.begin("one").grant.lease
            request = turn_service_pb2.BeginTurnRequest(session_id="two")
            request.wait.seconds = 25
            call = waiting.turns.BeginTurn.future(request, timeout=DEADLINE)
            with keyed(server, ADMIN) as admin:
                poll = threading.Event()
                while admin.stats().gauges["waiting"] == 0:
                    poll.wait(0.01)  # a poll of something outside
                revoke(server, waiter.api_key.key_id)
                api.commit("one", lease)
                with refused(UNAUTHENTICATED, "KEY_INVALID"):
                    call.result()
                assert admin.stats().gauges["slots_held"] == 0
            assert api.begin("two").grant.turn == 1
    finally:
        server.end()


def test_a_stream_ends_when_its_key_is_revoked(server: Server) -> None:
    tenant = fresh("t")
    writer, follower = create(server, tenant), create(server, tenant)
    session_id = fresh()
    with keyed(server, writer.key) as api, keyed(server, follower.key) as following:
        api.open(session_id)
        api.turn(session_id)
        api.finish(session_id)
        request = trajectory_service_pb2.ExportTrajectoriesRequest(follow=True)
        stream = following.trajectories.ExportTrajectories(request, timeout=DEADLINE)
        assert next(stream).session_id == session_id
        revoke(server, follower.api_key.key_id)
        api.turn(session_id)
        api.finish(session_id)
        with refused(UNAUTHENTICATED, "KEY_INVALID"):
            for _ in stream:
                pass


def test_a_server_without_keys_makes_none_of_tenants(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    try:
        with server.api() as api:
            key = opened(api, "root")
            api.open("other")
            with refused(FAILED, "KEYS_OFF"):
                api.admin.CreateApiKey(admin_service_pb2.CreateApiKeyRequest(), timeout=DEADLINE)
        # Who brings a key is who the key says.
        with keyed(server, key) as api:
            assert api.get("root").session_id == "root"
            with refused(NOT_FOUND, "SESSION_NOT_FOUND"):
                api.get("other")
        with keyed(server, ADMIN) as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
            api.get("root")
    finally:
        server.end()


def test_a_store_with_active_keys_is_not_opened_to_everybody(own: Server) -> None:
    key = create(own, "acme")
    assert own.terminate() == 0
    own.env = {}
    own.start()
    with own.api() as api, refused(UNAUTHENTICATED, "KEY_INVALID"):
        api.list_all()
    with keyed(own, key.key) as api:
        assert api.list_all() == []
    own.terminate()
    assert "no_admin_key" in own.logged
    # Once its last key is revoked it is as it was before.
    own.env = {"ROOST_ADMIN_KEY": ADMIN}
    own.start()
    revoke(own, key.api_key.key_id)
    own.terminate()
    own.env = {}
    own.start()
    with own.api() as api:
        assert api.list_all() == []
