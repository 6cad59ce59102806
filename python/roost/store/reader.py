"""What a store reads: tree headers, sessions, records, lists. One connection, for one thread at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import apsw

from .base import (
    ApiKeyRow,
    CleanupRow,
    DueResource,
    DueRow,
    Found,
    HeaderRow,
    ListedMail,
    ListedResource,
    LoadedSession,
    MailFilter,
    MailFound,
    MailHead,
    OwnerMail,
    OwnerRelease,
    ReadyFilter,
    RecordLine,
    RecordRow,
    ResourceFilter,
    ResourceRow,
    RunnableRow,
    SessionFilter,
    SessionRow,
    StaleRow,
    StoreError,
    StoreFailed,
    TrajectoryRow,
    UnreadMail,
)
from .facts import state_seq
from .statements import MAX_ROWS, OPEN_STATE

T = TypeVar("T", int, str, bytes)

# Tuples come from SQLite in the order of the fields of base's NamedTuples.
_HEADER = """
    SELECT uid, session_id, parent, path, depth, head, head_version, fence, provisional, last, running, lease,
           finish_due, closes, stale_ms, active_ms, stale_due, iif(finish_due > 0, facts, NULL), seq, outcome, wakes,
           owner
    FROM session WHERE root = ?1 AND state = 1 ORDER BY depth, path
"""
# The length of a content is in the row's head: the content is not read.
_MAILBOXES = """
    SELECT recipient, seq, state, due, expire, deliveries, fence, coalesce(length(content), 0), kind <> 1
    FROM message INDEXED BY message_live WHERE root = ?1 AND state <= 2 ORDER BY recipient, seq
"""
_MAIL = f"SELECT {', '.join(MailFound._fields)} FROM message WHERE +state <= 2 AND seq IN ({{}}) ORDER BY seq"
_SENT = "SELECT message_id, meta FROM message INDEXED BY message_request WHERE recipient = ?1 AND request = ?2"
# CROSS JOIN: the messages are read first, then a row for the session of each.
_RUNNABLE = """
    SELECT m.due, m.seq, s.session_id
    FROM message AS m INDEXED BY message_runnable CROSS JOIN session AS s ON s.uid = m.recipient
    WHERE m.tenant = ?1 AND m.state = 1 AND m.due >= 0 AND (m.due, m.seq) > (?2, ?3) ORDER BY m.due, m.seq LIMIT ?4
"""

_SESSION = """
    SELECT s.uid, s.tenant, s.session_id, s.root, s.parent, coalesce(p.session_id, ''), coalesce(r.session_id, ''),
           s.path, s.depth, s.create_ms, s.state, s.head, s.head_version, s.fence, s.provisional, s.last, s.running,
           s.lease, s.facts, s.receipt, s.finish_due, s.closes, s.cleanup_due, s.cleanup, s.seq, s.owner
    FROM {source} LEFT JOIN session AS p ON p.uid = s.parent LEFT JOIN session AS r ON r.uid = s.root
"""
_SESSION_BY_UID = _SESSION.format(source="session AS s") + "WHERE s.uid = ?1"
_SESSION_BY_ID = _SESSION.format(source="session AS s") + "WHERE s.tenant = ?1 AND s.session_id = ?2"
_SESSION_BY_PATH = (
    _SESSION.format(source="session AS s INDEXED BY session_open_path")
    + "WHERE s.root = ?1 AND s.path = ?2 AND s.state = 1"
)

# One statement for a line, newest first. The condition on seq ends it on any data, a damaged cycle too; the one on
# session keeps a damaged pointer from leading into another session. The limit -1 means all.
_LINE = """
    WITH RECURSIVE line (seq, prev, status, turn, meta, chain, tokens) AS (
        SELECT seq, prev, status, turn, meta, chain, {tokens} FROM record WHERE seq = ?1 AND session = ?2
        UNION ALL
        SELECT r.seq, r.prev, r.status, r.turn, r.meta, r.chain, {r_tokens}
        FROM line JOIN record AS r ON r.seq = line.prev WHERE r.seq < line.seq AND r.session = ?2
        LIMIT ?3
    )
    SELECT seq, prev, status, turn, meta, chain, tokens FROM line
"""
_LINE_LIGHT = _LINE.format(tokens="NULL", r_tokens="NULL")
_LINE_TOKENS = _LINE.format(tokens="tokens", r_tokens="r.tokens")
_ALL = -1

_TRAJECTORY = """
    SELECT t.session, t.number, t.tenant, t.root, t.ready_seq, t.after_seq, t.first_turn, t.turn_count, t.ready_ms,
           t.ack_ms, coalesce(r.session_id, '')
    FROM trajectory AS t {} LEFT JOIN session AS r ON r.uid = t.root
"""
_TRAJECTORY_BY_NUMBER = _TRAJECTORY.format("") + " WHERE t.session = ?1 AND t.number = ?2"
_TRAJECTORIES_OF_SESSION = _TRAJECTORY.format("") + " WHERE t.session = ?1 ORDER BY t.number"
_READY = " WHERE {} AND t.ack_ms = 0 AND t.ready_seq > :after ORDER BY t.ready_seq LIMIT :limit"
_LAST_READY = "SELECT max(ready_seq) FROM trajectory INDEXED BY trajectory_ready WHERE tenant = ?1 AND ack_ms = 0"

_API_KEYS = f"SELECT {', '.join(ApiKeyRow._fields)} FROM api_key ORDER BY key_id"

_LIMITS = "SELECT name, value FROM server_limit ORDER BY name"

_RESOURCES = """
    SELECT r.name, r.session, r.root, r.tenant, s.session_id, r.kind, r.state, r.pool, r.pool_key, r.idle_ttl_ms,
           r.attempts, r.request
    FROM resource AS r LEFT JOIN session AS s ON s.uid = r.session ORDER BY r.name
"""
# CROSS JOIN: the resources are read first, then a row for the session of each.
_DUE_RESOURCES = """
    SELECT r.name, r.session, r.root, r.tenant, s.session_id, r.kind, r.handle, r.attempts, r.due
    FROM resource AS r INDEXED BY resource_due CROSS JOIN session AS s ON s.uid = r.session
    WHERE r.due > 0 AND r.kind > 1 AND (r.due, r.name) > (?1, ?2) AND r.due <= ?3 ORDER BY r.due, r.name LIMIT ?4
"""
# The messages that one step examines, and the sessions of those that are this host's.
_OWNER_MAIL = """
    SELECT m.due, m.seq, iif(s.state = 1 AND s.owner = ?5, s.uid, NULL)
    FROM message AS m INDEXED BY message_runnable CROSS JOIN session AS s ON s.uid = m.recipient
    WHERE m.tenant = ?1 AND m.state = 1 AND m.due >= 0 AND (m.due, m.seq) > (?2, ?3) ORDER BY m.due, m.seq LIMIT ?4
"""
_MAILBOXES_OF = """
    SELECT s.uid, s.session_id, count(*), min(iif(m.due >= 0, m.seq, NULL)), max(iif(m.due >= 0, m.seq, 0)),
           min(iif(m.due >= 0, m.due, NULL)), max(m.due)
    FROM session AS s CROSS JOIN message AS m INDEXED BY message_live ON m.root = s.root AND m.recipient = s.uid
    WHERE s.uid IN ({}) AND s.state = 1 AND s.running = 0 AND s.owner = ? AND m.state = 1 AND m.state <= 2
          AND (m.expire = 0 OR m.expire > ?)
    GROUP BY s.uid HAVING max(m.due) >= 0
"""
_OWNER_RELEASES = """
    SELECT r.name, s.session_id, r.handle
    FROM resource AS r INDEXED BY resource_owner CROSS JOIN session AS s ON s.uid = r.session
    WHERE r.kind = 1 AND r.due > 0 AND r.tenant = ?1 AND r.owner = ?2 AND r.name > ?3 ORDER BY r.name LIMIT ?4
"""
# The names that one page examines, and those of their resources that match: a filter that nearly nothing matches reads
# no more than that.
_EXAMINED = "SELECT name FROM resource INDEXED BY resource_{} WHERE {} AND name > :after ORDER BY name LIMIT :examine"
_LIST_RESOURCES = """
    SELECT r.name, r.session, r.root, r.tenant, r.kind, r.state, r.owner, r.handle, r.pool, r.pool_key, r.idle_ttl_ms,
           r.create_ms, r.due, r.attempts, r.error, s.session_id, s.parent
    FROM ({}) AS page CROSS JOIN resource AS r ON r.name = page.name CROSS JOIN session AS s ON s.uid = r.session
    {} ORDER BY r.name LIMIT :limit
"""
_KNOWN = "SELECT name FROM resource WHERE name IN ({})"

# As of resources: what one page examines, and what of that matches.
_EXAMINED_MAIL = (
    "SELECT seq FROM message INDEXED BY message_{0} WHERE {0} = :{0} AND seq > :after ORDER BY seq LIMIT :examine"
)
_LIST_MAIL = """
    SELECT m.seq, m.message_id, s.session_id, m.kind,
           iif(m.state = 1 AND m.expire BETWEEN 1 AND :now_ms, 4, m.state) AS shown, m.deliveries, m.create_ms,
           m.expire, m.meta, iif(:content, m.content, NULL),
           length(m.meta) + iif(:content, coalesce(length(m.content), 0), 0)
    FROM ({}) AS page CROSS JOIN message AS m ON m.seq = page.seq CROSS JOIN session AS s ON s.uid = m.recipient
    WHERE :states = 0 OR :states >> shown & 1 ORDER BY page.seq LIMIT :limit
"""
_UNREAD = f"""
    SELECT {", ".join(UnreadMail._fields)} FROM message INDEXED BY message_unread
    WHERE recipient = ?1 AND state = 6 AND seq > ?2 ORDER BY seq
"""
_COUNT_UNREAD = "SELECT count(*) FROM message INDEXED BY message_unread WHERE recipient = ?1 AND state = 6"

_REWARDS = "SELECT seq, value FROM reward WHERE session = ?1"

_DUE = """
    SELECT finish_due, uid, tenant, session_id FROM session INDEXED BY session_finish
    WHERE finish_due > 0 AND (finish_due, uid) > (?1, ?2) ORDER BY finish_due, uid LIMIT ?3
"""
_STALE = """
    SELECT stale_due, uid, tenant, session_id FROM session INDEXED BY session_stale
    WHERE stale_due > 0 AND (stale_due, uid) > (?1, ?2) ORDER BY stale_due, uid LIMIT ?3
"""
_CLEANUPS = """
    SELECT cleanup_due, uid FROM session INDEXED BY session_cleanup
    WHERE cleanup_due > 0 AND state = ?1 AND (cleanup_due, uid) > (?2, ?3) AND cleanup_due <= ?4
    ORDER BY cleanup_due, uid LIMIT ?5
"""
# Children are made after their parents, and uids bear their time.
_CHILDREN = "SELECT 1 FROM session INDEXED BY session_root WHERE root = ?1 AND uid > ?2 AND parent = ?2 LIMIT 1"
_KEPT = "SELECT uid FROM session INDEXED BY session_kept WHERE cleanup_due = -1 AND uid > ?1 ORDER BY uid LIMIT ?2"
# Each is an index's, and reads no row.
_COUNTS = """
    SELECT (SELECT count(*) FROM session INDEXED BY session_kept WHERE cleanup_due = -1),
           (SELECT count(*) FROM session INDEXED BY session_cleanup WHERE state = 2 AND cleanup_due > 0),
           (SELECT count(*) FROM message INDEXED BY message_live WHERE state <= 2)
"""
_CLOSE_SEQ = "SELECT close_seq FROM session WHERE uid = ?1"
_FAMILY = (
    _SESSION.format(source="session AS s INDEXED BY session_close")
    + "WHERE s.root = :root AND s.close_seq = :close AND s.state > 1 AND s.path >= :below AND s.path < :past "
    "ORDER BY s.depth, s.uid"
)
_COMMITTED = 1  # roost.v1.RECORD_STATUS_COMMITTED

_RECORD = "SELECT seq, prev, status, turn, meta, chain, tokens, state, arrays, content FROM record WHERE seq IN ({})"

# A length is in the row's head: the payloads are not read.
_SIZE = (
    "SELECT sum(length(meta) + coalesce(length(tokens), 0) + coalesce(length(state), 0) + coalesce(length(arrays), 0) "
    "+ coalesce(length(content), 0)) FROM record WHERE seq IN ({})"
)

# The uids of one page of a list, each over an index that yields them in order. The paths below a path are a range.
_PATH = " AND (path = :path OR (path >= :below AND path < :past))"
_PAGE_OF_STATE = "SELECT uid FROM session WHERE tenant = :tenant AND state = {} AND uid > :after{}"


def list_sql(where: SessionFilter) -> str:
    """The statement that reads one page. Its text depends on which filters are set, never on their values."""
    path = _PATH if where.path_prefix is not None else ""
    state = " AND state = :state" if where.state is not None else ""
    if where.running:
        root = " AND root = :root" if where.root is not None else ""
        # The running sessions are few: at most as many as there are slots.
        page = (
            "SELECT uid FROM session INDEXED BY session_running "
            f"WHERE running = 1 AND tenant = :tenant AND uid > :after{root}{state}{path} ORDER BY uid LIMIT :limit"
        )
    elif where.root is not None:
        page = (
            "SELECT uid FROM session INDEXED BY session_root "
            f"WHERE root = :root AND tenant = :tenant AND uid > :after{state}{path} ORDER BY uid LIMIT :limit"
        )
    elif where.state is not None:
        page = _PAGE_OF_STATE.format(":state", path) + " ORDER BY uid LIMIT :limit"
    else:
        # SQLite merges the three in order, reading of each only what the page takes.
        page = " UNION ALL ".join(_PAGE_OF_STATE.format(n, path) for n in (1, 2, 3)) + " ORDER BY uid LIMIT :limit"
    # CROSS JOIN: the page is read first, then a row for each of its uids.
    source = f"({page}) AS page CROSS JOIN session AS s ON s.uid = page.uid"
    return _SESSION.format(source=source) + "ORDER BY s.uid"


def ready_sql(where: ReadyFilter) -> tuple[str, dict[str, Any]]:
    """The statement that reads one page of trajectories that are not acknowledged, and what its filters bind."""
    bindings: dict[str, Any] = {"tenant": where.tenant}
    if where.sessions is not None:
        named = {f"s{n}": uid for n, uid in enumerate(where.sessions)}
        bindings |= named
        source, condition = "", f"t.tenant = :tenant AND t.session IN ({', '.join(':' + name for name in named)})"
    elif where.root is not None:
        bindings["root"] = where.root
        source, condition = "INDEXED BY trajectory_ready_root", "t.root = :root AND t.tenant = :tenant"
    else:
        source, condition = "INDEXED BY trajectory_ready", "t.tenant = :tenant"
    return _TRAJECTORY.format(source) + _READY.format(condition), bindings


def resources_sql(where: ResourceFilter) -> tuple[str, str]:
    """The statements that read one page of resources, and the last of the names that it examined if there are so many
    (`examine`)."""
    index = "session" if where.session is not None else "root" if where.root is not None else "tenant"
    examined = _EXAMINED.format(index, f"{index} = :{index}")
    given = [name for name in ("tenant", "root", "owner", "state", "pool") if getattr(where, name) is not None]
    page = _LIST_RESOURCES.format(examined, "WHERE " + " AND ".join(f"r.{name} = :{name}" for name in given))
    return page, f"SELECT name FROM ({examined}) AS page LIMIT 1 OFFSET :examine - 1"


def mail_sql(where: MailFilter) -> tuple[str, str]:
    """As `resources_sql`, of messages."""
    examined = _EXAMINED_MAIL.format("sender" if where.recipient is None else "recipient")
    return _LIST_MAIL.format(examined), f"SELECT seq FROM ({examined}) AS page LIMIT 1 OFFSET :examine - 1"


class Reader:
    """Reads in snapshots. Its connection is made at the first read, in the thread that reads."""

    def __init__(self, connect: Callable[[], apsw.Connection]) -> None:
        self._connect = connect
        self._conn: apsw.Connection | None = None

    @contextmanager
    def _snapshot(self) -> Iterator[apsw.Connection]:
        """One read transaction. Raises StoreFailed for whatever SQLite says: a read has no refusals."""
        try:
            if self._conn is None:
                self._conn = self._connect()
            conn = self._conn
            conn.execute("BEGIN")
            try:
                yield conn
            finally:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
        except apsw.Error as error:
            raise StoreFailed(f"read: {type(error).__name__}: {error}") from error

    def running_roots(self) -> list[bytes]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows: list[Any] = conn.execute("SELECT DISTINCT root FROM session WHERE running = 1").fetchall()
            return [root for (root,) in rows]

    def find(self, tenant: str, session_id: str) -> Found | None:
        """See base.Store."""
        with self._snapshot() as conn:
            row: Any = conn.execute(
                "SELECT uid, root, state, parent, iif(state = 1, NULL, cleanup) FROM session "
                "WHERE tenant = ?1 AND session_id = ?2",
                (tenant, session_id),
            ).fetchone()
            if row is None:
                return None
            uid, root, state, parent, cleanup = row
            return Found(uid, root, state, _header(conn, root) if state == OPEN_STATE else [], parent, cleanup)

    def load_header(self, root: bytes) -> tuple[str, list[HeaderRow]]:
        """See base.Store. A tree that does not exist has the tenant "" and no rows."""
        with self._snapshot() as conn:
            tenant: Any = conn.execute("SELECT tenant FROM session WHERE uid = ?1", (root,)).get
            return tenant or "", _header(conn, root)

    def load_session(
        self,
        uid: bytes,
        with_tokens: bool,
        with_provisional: bool = False,
        state_turn: int | None = None,
        with_size: bool = False,
    ) -> LoadedSession | None:
        """See base.Store."""
        with self._snapshot() as conn:
            row = _session(conn, uid)
            if row is None:
                return None
            records = _line(conn, uid, row.last, _LINE_TOKENS if with_tokens else _LINE_LIGHT, _ALL)
            place, state = _state(conn, row) if state_turn is None else _state_after(conn, records, state_turn)
            provisional = None
            if with_provisional and row.provisional:
                found = conn.execute(_RECORD.format("?"), (row.provisional,)).fetchone()
                provisional = None if found is None else RecordRow._make(found)
            size = _size(conn, records, state_turn) if with_size else 0
            return LoadedSession(row, records, place, state, provisional, size)

    def read_session(self, tenant: str, session_id: str) -> SessionRow | None:
        """See base.Store."""
        with self._snapshot() as conn:
            row = conn.execute(_SESSION_BY_ID, (tenant, session_id)).fetchone()
            return None if row is None else SessionRow._make(row)

    def read_path(self, root: bytes, path: str) -> SessionRow | None:
        """See base.Store."""
        with self._snapshot() as conn:
            row = conn.execute(_SESSION_BY_PATH, (root, path)).fetchone()
            return None if row is None else SessionRow._make(row)

    def list_sessions(self, where: SessionFilter, after: bytes, limit: int) -> list[SessionRow]:
        """See base.Store."""
        path = where.path_prefix
        below = "" if path is None else path.rstrip("/") + "/"
        bindings = {
            "tenant": where.tenant,
            "after": after,
            "limit": limit,
            "root": where.root,
            "state": where.state,
            "path": path,
            "below": below,
            "past": below[:-1] + "0",  # the character after "/"
        }
        sql = list_sql(where)
        with self._snapshot() as conn:
            return [SessionRow._make(row) for row in conn.execute(sql, bindings)]

    def record_lines(self, uid: bytes, limit: int) -> tuple[SessionRow, list[RecordLine]] | None:
        """See base.Store."""
        with self._snapshot() as conn:
            row = _session(conn, uid)
            return None if row is None else (row, _line(conn, uid, row.last, _LINE_LIGHT, limit))

    def older_lines(self, uid: bytes, line: RecordLine, limit: int) -> list[RecordLine]:
        """See base.Store."""
        if line.prev >= line.seq:  # damaged: as within one statement, the walk ends here
            return []
        with self._snapshot() as conn:
            return _line(conn, uid, line.prev, _LINE_LIGHT, limit)

    def read_records(self, seqs: Sequence[int]) -> list[RecordRow]:
        """See base.Store. Sequences that are not stored are left out."""
        found: dict[int, RecordRow] = {}
        with self._snapshot() as conn:
            for part, marks in _parts(seqs):
                for row in conn.execute(_RECORD.format(marks), part):
                    record = RecordRow._make(row)
                    found[record.seq] = record
        return [found[seq] for seq in seqs if seq in found]

    def read_tokens(self, seqs: Sequence[int]) -> list[tuple[int, bytes | None]]:
        """See base.Store. Sequences that are not stored are left out."""
        found: dict[int, Any] = {}
        with self._snapshot() as conn:
            for part, marks in _parts(seqs):
                rows: Any = conn.execute(f"SELECT seq, tokens FROM record WHERE seq IN ({marks})", part).fetchall()
                found.update(rows)
        return [(seq, found[seq]) for seq in seqs if seq in found]

    def read_rewards(self, uid: bytes) -> dict[int, float]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows: Any = conn.execute(_REWARDS, (uid,)).fetchall()
            return dict(rows)

    def read_trajectories(self, ids: Sequence[tuple[bytes, int]]) -> list[TrajectoryRow | None]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows = [conn.execute(_TRAJECTORY_BY_NUMBER, key).fetchone() for key in ids]
        return [None if row is None else TrajectoryRow._make(row) for row in rows]

    def session_trajectories(self, uid: bytes) -> list[TrajectoryRow]:
        """See base.Store."""
        with self._snapshot() as conn:
            return [TrajectoryRow._make(row) for row in conn.execute(_TRAJECTORIES_OF_SESSION, (uid,))]

    def last_ready(self, tenant: str) -> int:
        """See base.Store."""
        with self._snapshot() as conn:
            newest: Any = conn.execute(_LAST_READY, (tenant,)).get
            return newest or 0

    def ready_trajectories(self, where: ReadyFilter, after_seq: int, limit: int) -> list[TrajectoryRow]:
        """See base.Store."""
        sql, bindings = ready_sql(where)
        with self._snapshot() as conn:
            rows = conn.execute(sql, bindings | {"after": after_seq, "limit": limit})
            return [TrajectoryRow._make(row) for row in rows]

    def due(self, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> tuple[list[DueRow], int | None]:
        """See base.Store."""
        rows, following = self._due_by(_DUE, until_ms, after or (0, b""), limit)
        return [DueRow._make(row) for row in rows], following

    def stale(self, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> tuple[list[StaleRow], int | None]:
        """See base.Store."""
        rows, following = self._due_by(_STALE, until_ms, after or (0, b""), limit)
        return [StaleRow._make(row) for row in rows], following

    def _due_by(self, sql: str, until_ms: int, where: tuple[Any, ...], limit: int) -> tuple[list[Any], int | None]:
        """Rows, in order of the time they begin with, whose time has come; and the time of the next one after them."""
        with self._snapshot() as conn:
            rows: list[Any] = conn.execute(sql, (*where, limit + 1)).fetchall()
        now = [row for row in rows[:limit] if row[0] <= until_ms]
        return now, rows[len(now)][0] if len(now) < len(rows) else None

    def family(self, uid: bytes) -> list[SessionRow]:
        """See base.Store."""
        with self._snapshot() as conn:
            row = _session(conn, uid)
            if row is None:
                return []
            close: Any = conn.execute(_CLOSE_SEQ, (uid,)).get
            bindings = {"root": row.root, "close": close, "below": row.path + "/", "past": row.path + "0"}
            return [row, *(SessionRow._make(found) for found in conn.execute(_FAMILY, bindings))]

    def has_children(self, root: bytes, uid: bytes) -> bool:
        """See base.Store."""
        with self._snapshot() as conn:
            return conn.execute(_CHILDREN, (root, uid)).get is not None

    def cleanups(self, state: int, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> list[CleanupRow]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows = conn.execute(_CLEANUPS, (state, *(after or (0, b"")), until_ms, limit))
            return [CleanupRow._make(row) for row in rows]

    def kept(self, after: bytes, limit: int) -> list[bytes]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows: list[Any] = conn.execute(_KEPT, (after, limit)).fetchall()
            return [uid for (uid,) in rows]

    def counts(self) -> dict[str, int]:
        """See base.Store."""
        with self._snapshot() as conn:
            found: Any = conn.execute(_COUNTS).get
            return dict(zip(("sessions_kept", "sessions_sealed", "messages_live"), found, strict=True))

    def session_by_uid(self, uid: bytes) -> SessionRow | None:
        """See base.Store."""
        with self._snapshot() as conn:
            return _session(conn, uid)

    def read_mail(self, seqs: Sequence[int]) -> list[MailFound]:
        """See base.Store."""
        found: list[MailFound] = []
        with self._snapshot() as conn:
            for part, marks in _parts(sorted(seqs)):
                found += [MailFound._make(row) for row in conn.execute(_MAIL.format(marks), part)]
        return found

    def sent(self, recipient: bytes, request: str) -> tuple[bytes, bytes] | None:
        """See base.Store."""
        with self._snapshot() as conn:
            row: Any = conn.execute(_SENT, (recipient, request)).fetchone()
            return None if row is None else tuple(row)

    def runnable(
        self, tenant: str, until_ms: int, after: tuple[int, int] | None, limit: int
    ) -> tuple[list[RunnableRow], int | None]:
        """See base.Store."""
        rows, following = self._due_by(_RUNNABLE, until_ms, (tenant, *(after or (0, 0))), limit)
        return [RunnableRow._make(row) for row in rows], following

    def list_mail(
        self, where: MailFilter, after: int, limit: int, examine: int, size: int
    ) -> tuple[list[ListedMail], int | None]:
        """See base.Store."""
        page, last = mail_sql(where)
        limit += 1  # one more than needed tells whether more follow
        bindings = {**vars(where), "after": after, "limit": limit, "examine": examine if where.states else limit}
        rows: list[ListedMail] = []
        with self._snapshot() as conn:
            # Row by row: what does not fit is not read.
            for row in conn.execute(page, bindings):
                if len(rows) + 1 == limit or (rows and size <= 0):
                    return rows, rows[-1].seq
                rows.append(ListedMail._make(row))
                size -= rows[-1].size
            examined: Any = conn.execute(last, bindings).get
            return rows, examined

    def count_unread(self, uid: bytes) -> int:
        """See base.Store."""
        with self._snapshot() as conn:
            count: Any = conn.execute(_COUNT_UNREAD, (uid,)).get
            return int(count)

    def unread_mail(self, uid: bytes, after: int, size: int) -> list[UnreadMail]:
        """See base.Store."""
        rows: list[UnreadMail] = []
        with self._snapshot() as conn:
            for row in conn.execute(_UNREAD, (uid, after)):
                rows.append(UnreadMail._make(row))
                size -= len(rows[-1].meta) + len(rows[-1].content or b"")
                if size <= 0:
                    break
        return rows

    def api_keys(self) -> list[ApiKeyRow]:
        """See base.Store."""
        with self._snapshot() as conn:
            return [ApiKeyRow._make(row) for row in conn.execute(_API_KEYS)]

    def limits(self) -> list[tuple[str, int]]:
        """See base.Store."""
        with self._snapshot() as conn:
            return list(conn.execute(_LIMITS))

    def resources(self) -> list[ResourceRow]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows = [ResourceRow._make(row) for row in conn.execute(_RESOURCES)]
        lost = next((row for row in rows if row.session_id is None), None)
        if lost is not None:
            raise StoreError("CORRUPT", f"The session of the resource {lost.name} is lost: restore the newest backup.")
        return rows

    def due_resources(self, until_ms: int, after: tuple[int, str] | None, limit: int) -> list[DueResource]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows = conn.execute(_DUE_RESOURCES, (*(after or (0, "")), until_ms, limit))
            return [DueResource._make(row) for row in rows]

    def list_resources(
        self, where: ResourceFilter, after: str, limit: int, examine: int
    ) -> tuple[list[ListedResource], str | None]:
        """See base.Store."""
        page, last = resources_sql(where)
        limit += 1  # one more than needed tells whether more follow
        filtered = (where.owner, where.state, where.pool) != (None, None, None)
        bindings = {**vars(where), "after": after, "limit": limit, "examine": examine if filtered else limit}
        with self._snapshot() as conn:
            rows = [ListedResource._make(row) for row in conn.execute(page, bindings)]
            if len(rows) == limit:
                return rows[:-1], rows[-2].name
            examined: Any = conn.execute(last, bindings).get
            return rows, examined

    def owner_releases(self, tenant: str, owner: str, after: str, limit: int) -> list[OwnerRelease]:
        """See base.Store."""
        with self._snapshot() as conn:
            return [OwnerRelease._make(row) for row in conn.execute(_OWNER_RELEASES, (tenant, owner, after, limit))]

    def owner_mail(
        self, tenant: str, owner: str, after: tuple[int, int] | None, examine: int
    ) -> tuple[set[bytes], tuple[int, int] | None]:
        """See base.Store."""
        with self._snapshot() as conn:
            rows: list[Any] = conn.execute(_OWNER_MAIL, (tenant, *(after or (-1, 0)), examine, owner)).fetchall()
        last = rows[-1][:2] if len(rows) == examine else None
        return {uid for *_, uid in rows if uid is not None}, last

    def mailboxes(self, owner: str, sessions: Sequence[bytes], now_ms: int) -> list[OwnerMail]:
        """See base.Store."""
        found: list[OwnerMail] = []
        with self._snapshot() as conn:
            for part, marks in _parts(sessions):
                rows = conn.execute(_MAILBOXES_OF.format(marks), (*part, owner, now_ms))
                found += [OwnerMail._make(row) for row in rows]
        return found

    def known_resources(self, names: Sequence[str]) -> set[str]:
        """See base.Store."""
        found: set[str] = set()
        with self._snapshot() as conn:
            for part, marks in _parts(names):
                rows: Any = conn.execute(_KNOWN.format(marks), part).fetchall()
                found.update(name for (name,) in rows)
        return found

    def close(self) -> None:
        """Close the connection. The next read would open another."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None


def _header(conn: apsw.Connection, root: bytes) -> list[HeaderRow]:
    rows: list[Any] = conn.execute(_HEADER, (root,)).fetchall()
    mailboxes: dict[Any, list[MailHead]] = {}
    for recipient, *head in conn.execute(_MAILBOXES, (root,)):
        mailboxes.setdefault(recipient, []).append(MailHead._make(head))
    return [HeaderRow._make((*row, mailboxes.get(row[0], []))) for row in rows]


def _session(conn: apsw.Connection, uid: bytes) -> SessionRow | None:
    row = conn.execute(_SESSION_BY_UID, (uid,)).fetchone()
    return None if row is None else SessionRow._make(row)


def _line(conn: apsw.Connection, uid: bytes, newest: int, sql: str, limit: int) -> list[RecordLine]:
    if not newest:
        return []
    return [RecordLine._make(line) for line in conn.execute(sql, (newest, uid, limit)).fetchall()]


def _parts(values: Sequence[T]) -> Iterator[tuple[tuple[T, ...], str]]:
    """Values in parts that one statement takes, each with its placeholders."""
    for start in range(0, len(values), MAX_ROWS):
        part = tuple(values[start : start + MAX_ROWS])
        yield part, ",".join("?" * len(part))


def _state(conn: apsw.Connection, row: SessionRow) -> tuple[int, bytes | None]:
    """The client's newest state, and the record that set it."""
    place = state_seq(row.facts)
    if not place:
        return 0, None
    state: Any = conn.execute("SELECT state FROM record WHERE seq = ?1 AND session = ?2", (place, row.uid)).get
    return place, state


def _up_to(records: list[RecordLine], turn: int | None) -> list[int]:
    """The records of the live line up to a turn, newest first."""
    return [line.seq for line in records if line.status == _COMMITTED and (turn is None or line.turn <= turn)]


def _size(conn: apsw.Connection, records: list[RecordLine], turn: int | None) -> int:
    """How many bytes of payloads and metas the records of the live line up to a turn have."""
    size = 0
    for part, marks in _parts(_up_to(records, turn)):
        found: Any = conn.execute(_SIZE.format(marks), part).get
        size += found or 0
    return size


def _state_after(conn: apsw.Connection, records: list[RecordLine], turn: int) -> tuple[int, bytes | None]:
    """The client's state after a turn of the live line, and the record that set it."""
    for part, marks in _parts(_up_to(records, turn)):
        sql = f"SELECT seq, state FROM record WHERE seq IN ({marks}) AND state IS NOT NULL ORDER BY seq DESC LIMIT 1"
        found: Any = conn.execute(sql, part).fetchone()
        if found is not None:
            place, state = found
            return place, state
    return 0, None
