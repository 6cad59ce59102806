"""ListSessions, ReadHistory, ExportTrajectories and GetStats over a real socket."""

from __future__ import annotations

import base64

import grpc
import pytest
from roost_server import DEADLINE, Api, fresh, record_input, refused

from roost.v1 import admin_service_pb2, session_service_pb2, trajectory_service_pb2, types_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def tree(api: Api) -> list[str]:
    """A root with four children: three below /root/a (one of them closed), and /root/ab."""
    root = api.open(labels={"kind": "root"}).session.session_id
    a = api.open(parent_session_id=root, name="a", labels={"kind": "leaf"}).session.session_id
    x = api.open(parent_session_id=a, name="x", labels={"kind": "leaf", "n": "1"}).session.session_id
    ab = api.open(parent_session_id=root, name="ab", labels={"kind": "leaf"}).session.session_id
    y = api.open(parent_session_id=a, name="y").session.session_id
    api.close(y)
    return [root, a, x, ab, y]


def ids(found: list[types_pb2.Session]) -> list[str]:
    return [session.session_id for session in found]


def page(api: Api, **fields: object) -> session_service_pb2.ListSessionsResponse:
    answer = api.sessions.ListSessions(session_service_pb2.ListSessionsRequest(**fields), timeout=DEADLINE)
    assert isinstance(answer, session_service_pb2.ListSessionsResponse)
    return answer


def test_lists_are_in_order_of_creation_and_filters_all_match(api: Api, tree: list[str]) -> None:
    root, a, x, ab, y = tree
    assert ids(api.list_all(root_session_id=root)) == tree
    assert ids(api.list_all(root_session_id=root, path_prefix="/root/a")) == [a, x, y]
    assert ids(api.list_all(root_session_id=root, path_prefix="/root")) == tree
    assert ids(api.list_all(root_session_id=root, state=types_pb2.SESSION_STATE_OPEN)) == [root, a, x, ab]
    assert ids(api.list_all(root_session_id=root, state=types_pb2.SESSION_STATE_CLOSED)) == [y]
    assert ids(api.list_all(root_session_id=root, labels={"kind": "leaf"})) == [a, x, ab]
    assert ids(api.list_all(root_session_id=root, labels={"kind": "leaf", "n": "1"})) == [x]
    assert ids(api.list_all(root_session_id=root, labels={"kind": ""})) == []
    api.begin(x)
    running = types_pb2.ACTIVITY_RUNNING
    assert ids(api.list_all(root_session_id=root, activity=running)) == [x]
    resident = api.list_all(root_session_id=root, residency=types_pb2.RESIDENCY_RESIDENT)
    assert x in ids(resident)
    assert all(session.residency == types_pb2.RESIDENCY_RESIDENT for session in resident)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_pages_join_to_the_whole(api: Api, tree: list[str], size: int) -> None:
    assert ids(api.list_all(root_session_id=tree[0], page_size=size)) == tree
    assert ids(api.list_all(root_session_id=tree[0], page_size=size, labels={"n": "1"})) == [tree[2]]
    assert len(page(api, root_session_id=tree[0], page_size=size).sessions) == min(size, len(tree))


def test_what_a_list_says_is_what_get_says(api: Api, tree: list[str]) -> None:
    for session in api.list_all(root_session_id=tree[0]):
        assert session == api.get(session.session_id)


def test_a_token_is_bound_to_its_filters(api: Api, tree: list[str]) -> None:
    token = page(api, root_session_id=tree[0], page_size=2).next_page_token
    assert token
    assert ids(list(page(api, root_session_id=tree[0], page_size=3, page_token=token).sessions)) == tree[2:]
    for changed in ({"labels": {"kind": "leaf"}}, {"path_prefix": "/root/a"}, {"state": types_pb2.SESSION_STATE_OPEN}):
        with refused(INVALID, "BAD_PAGE_TOKEN"):
            page(api, root_session_id=tree[0], page_token=token, **changed)
    raw = base64.urlsafe_b64decode(token)
    other = base64.urlsafe_b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode()
    for bad in ("x", "not base64 at all!", token[:-4], other, "é"):
        with refused(INVALID, "BAD_PAGE_TOKEN"):
            page(api, root_session_id=tree[0], page_token=bad)


def test_bad_filters_are_named(api: Api, tree: list[str]) -> None:
    for field, fields in {
        "page_size": {"page_size": -1},
        "state": {"state": 99},
        "activity": {"activity": types_pb2.ACTIVITY_IDLE},
        "residency": {"residency": types_pb2.RESIDENCY_UNLOADED},
        "path_prefix": {"path_prefix": "/root/a"},
        "root_session_id": {"root_session_id": "no spaces"},
    }.items():
        with refused(INVALID, "INVALID_FIELD") as why:
            page(api, **fields)
        assert why.metadata["field"] == field
    with refused(INVALID, "INVALID_FIELD"):
        page(api, root_session_id=tree[1])  # a child, not a root
    with refused(INVALID, "INVALID_FIELD"):
        page(api, root_session_id=tree[0], path_prefix="root")
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        page(api, root_session_id=fresh("unknown"))


def test_history_returns_what_was_stored_in_pages(api: Api) -> None:
    name = api.open().session.session_id
    contents = [bytes([i]) * size for i, size in enumerate([0, 10, 900_000, 900_000, 5, 1_000_000, 3])]
    for i, content in enumerate(contents):
        record = record_input(content, tokens=4, offset=4 * i, labels={"i": str(i)}, finish_reason="stop")
        record.tokens.logprobs = b"\0" * 16
        record.tokens.loss_mask = b"\1" * 4
        record.tokens.weight_versions.add(version=7, count=4)
        record.usage.prompt_tokens = i
        api.commit(name, api.begin(name, owner="me").grant.lease, record=record)
    request = session_service_pb2.ReadHistoryRequest(session_id=name)
    pages = list(api.sessions.ReadHistory(request, timeout=DEADLINE))
    assert len(pages) >= 3
    assert all(p.ByteSize() < 2_100_000 for p in pages)
    records = [record for p in pages for record in p.records]
    assert [r.record.content for r in records] == contents
    for i, r in enumerate(records):
        assert (r.turn, r.head_version, r.owner, r.record.finish_reason) == (i + 1, i + 1, "me", "stop")
        assert dict(r.record.labels) == {"i": str(i)}
        assert r.record.usage.prompt_tokens == i
        assert (r.record.tokens.offset, len(r.record.tokens.token_ids)) == (4 * i, 16)
        assert (r.record.tokens.logprobs, r.record.tokens.loss_mask) == (b"\0" * 16, b"\1" * 4)
        assert [(w.version, w.count) for w in r.record.tokens.weight_versions] == [(7, 4)]
    assert [r.turn for r in api.history(name, from_turn=6)] == [6, 7]
    bare = api.history(name, omit_payload=True)
    assert [(r.turn, r.record.content, r.record.tokens.token_ids) for r in bare] == [(i, b"", b"") for i in range(1, 8)]
    assert dict(bare[3].record.labels) == {"i": "3"}


def test_history_of_many_small_records_comes_a_hundred_at_a_time(api: Api) -> None:
    name = api.open().session.session_id
    for _ in range(270):  # more than one page of their list
        api.turn(name, b"small")
    request = session_service_pb2.ReadHistoryRequest(session_id=name)
    sizes = [len(p.records) for p in api.sessions.ReadHistory(request, timeout=DEADLINE)]
    assert (sum(sizes), max(sizes)) == (270, 100)


def test_history_refuses_what_it_cannot_read(api: Api) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        api.history(fresh("unknown"))
    with refused(INVALID, "INVALID_FIELD"):
        api.history("")
    name = api.open().session.session_id
    assert api.history(name) == []
    for status in (0, 99):
        with refused(INVALID, "INVALID_FIELD"):
            api.history(name, statuses=[status])


def test_i23_exports_hold_the_live_line_and_more_when_asked(api: Api) -> None:
    name, empty = api.open().session.session_id, api.open().session.session_id
    api.turn(name, b"1")
    api.abort(name, api.begin(name).grant.lease, b"half")
    api.turn(name, b"2")
    api.abort(name, api.begin(name).grant.lease, b"tail")
    committed = types_pb2.RECORD_STATUS_COMMITTED
    assert [(r.status, r.record.content) for r in api.export(session_ids=[name])[name]] == [
        (committed, b"1"),
        (committed, b"2"),
    ]
    provisional = api.export(session_ids=[name], include_provisional=True)[name]
    assert [r.record.content for r in provisional] == [b"1", b"2", b"tail"]
    everything = api.export(session_ids=[name], include_provisional=True, include_superseded=True)[name]
    assert [r.record.content for r in everything] == [b"1", b"half", b"2", b"tail"]
    both = api.export(session_ids=[empty, name])
    assert list(both) == [empty, name]
    assert both[empty] == []
    everyone = api.export()
    assert {name, empty} <= set(everyone)
    assert [r.record.content for r in everyone[name]] == [b"1", b"2"]
    assert list(api.export(root_session_id=name)) == [name]


def test_an_export_of_unknown_ids_gives_nothing_at_all(api: Api) -> None:
    name = api.open().session.session_id
    api.turn(name)
    request = trajectory_service_pb2.ExportTrajectoriesRequest(session_ids=[name, fresh("unknown")])
    stream = iter(api.trajectories.ExportTrajectories(request, timeout=DEADLINE))
    with refused(grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND"):
        next(stream)
    for fields in ({"session_ids": [name], "root_session_id": name}, {"session_ids": [name] * 1001}):
        with refused(INVALID, "INVALID_FIELD"):
            api.export(**fields)


def test_stats_count_what_happened(api: Api) -> None:
    before = api.stats()
    name = api.open().session.session_id
    api.turn(name)
    lease = api.begin(name).grant.lease
    after = api.stats()
    assert after.counters["turns_begun"] == before.counters["turns_begun"] + 2
    assert after.counters["turns_committed"] == before.counters["turns_committed"] + 1
    assert after.counters["sessions_opened"] == before.counters["sessions_opened"] + 1
    assert after.gauges["slots_held"] == before.gauges["slots_held"] + 1
    assert after.gauges["slots_held"] == after.gauges["turns_running"]  # I1
    limits = {limit.name: limit for limit in after.limits}
    assert (limits["max_turns_per_tree"].value, limits["max_turns_per_tree"].source) == (8, "default")
    assert limits["max_resident_sessions"].used == after.gauges["resident_sessions"]
    assert (len(after.store_id), after.epoch) == (8, 1)
    assert after.gauges["store_bytes"] > 0
    assert after.uptime.ToMilliseconds() > 0
    assert set(admin_service_pb2.GetStatsResponse.DESCRIPTOR.fields_by_name) >= {"counters", "gauges"}
    api.abort(name, lease)
