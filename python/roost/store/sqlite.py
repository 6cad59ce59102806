"""SqliteStore: the embedded store. Opens and claims a data directory, then hands out its writer and reader."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import apsw

from . import backup, claim, connect, restore, schema, secret, upgrade
from .base import (
    ApiKeyRow,
    Batch,
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
    Outcome,
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
from .checkpoint import Checkpointer
from .reader import Reader
from .space import MARGIN_BYTES, RESERVE_BYTES, SMALL_BYTES, Reserve
from .writer import Writer

log = logging.getLogger(__name__)

# Room for the index of a 512 MiB log. A shared-memory file that cannot grow is an I/O error to SQLite, not a
# full disk, and would stop a server that could still have refused: so it gets its room while there is some.
_SHM_BYTES = 1024 * 1024


class SqliteStore:
    """A store in one SQLite file (implements base.Store). Threads as base.py says."""

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        *,
        reserve_bytes: int = RESERVE_BYTES,
        reserve_margin: int = MARGIN_BYTES,
        vfs: str | None = None,
        background_checkpoint: bool = True,
        migration_backups: int = upgrade.KEPT,
        at: Callable[[str], None] = backup.onward,
    ) -> None:
        """Open or create the store in `data_dir` and claim it. Raises StoreError, and then has changed nothing
        but an empty directory or file it made. `migration_backups`: how many backups from before migrations are kept;
        0: none is made. The other arguments are for tests."""
        connect.check_library()
        self._migration_backups = migration_backups
        self._at = at
        self._vfs = vfs
        self._shm: int | None = None
        self._closed = False
        directory = claim.prepare_directory(Path(data_dir))
        self._path = directory / claim.STORE_FILE
        self._claim = claim.Claim(directory)
        conn: apsw.Connection | None = None
        try:
            restore.check_finished(directory)
            claim.check_file(self._path, directory)
            self._reserve = Reserve(directory / claim.RESERVE_FILE, reserve_bytes, reserve_margin)
            self._make_reserve(directory)
            conn = self._open_writer(directory)
            known = (directory / secret.SECRET_FILE).exists()
            self.secret = self._read_secret(directory)
            if not known and conn.execute("SELECT 1 FROM api_key").get is not None:
                log.warning(
                    "the file %s was missing: the keys of sessions end, those of tenants stay", secret.SECRET_FILE
                )
            self._checkpointer = Checkpointer(
                conn, lambda: connect.connect(self._path, vfs=vfs), background=background_checkpoint
            )
        except BaseException:
            if conn is not None:
                conn.close()
            self._release()
            raise
        self._conn = conn
        self._writer = Writer(conn, self._reserve, self._checkpointer, self.last_seq)
        self._reader = Reader(lambda: connect.connect(self._path, vfs=vfs, reader=True))

    def _make_reserve(self, directory: Path) -> None:
        try:
            self._reserve.make()
        except OSError as error:
            # A store that exists opens on a full disk (what it holds can be read, and room be made): it is "low".
            if self._path.stat().st_size == 0:
                raise claim.unwritable(directory, error) from error
            log.warning("the reserve file cannot be made: %s", error)

    def _read_secret(self, directory: Path) -> bytes:
        """The server's secret; made where there is none."""
        try:
            return secret.read_or_make(directory)
        except StoreError as error:
            # As for the file itself: once more with the room of the reserve.
            if error.reason != "DISK_FULL" or not self._reserve.give_up():
                raise
            return secret.read_or_make(directory)

    def _open_writer(self, directory: Path) -> apsw.Connection:
        """The writing connection, with the schema up to date and the epoch grown by one."""
        try:
            try:
                return self._prepare()
            except apsw.FullError:
                # Once more with the room of the reserve: reads and closes must go on over a restart.
                if not self._reserve.give_up():
                    raise
                return self._prepare()
        except (apsw.NotADBError, apsw.CorruptError) as error:
            raise StoreError("CORRUPT", f"{self._path} is damaged ({error}): restore the newest backup.") from error
        except apsw.BusyError as error:
            raise StoreError(
                "LOCKED", f"Another program uses {self._path}: close it first, then start again."
            ) from error
        except apsw.FullError as error:
            raise claim.disk_full(directory) from error
        except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError) as error:
            raise StoreError(
                "UNWRITABLE", f"Cannot write {self._path} ({error}): make it and its directory writable for this user."
            ) from error
        except (apsw.Error, OSError) as error:
            free = os.statvfs(directory)
            if free.f_bavail * free.f_frsize < SMALL_BYTES:
                raise claim.disk_full(directory) from error
            raise StoreError("IO_ERROR", f"The disk failed while {self._path} was opened ({error}).") from error

    def _prepare(self) -> apsw.Connection:
        conn = connect.connect(self._path, vfs=self._vfs)
        try:
            version = upgrade.check_version(conn, self._path)
            connect.make_durable(conn)
            if version:
                connect.check_pages(conn, self._path)
            if 0 < version < schema.newest_version():
                keep = self._migration_backups
                upgrade.prepare(self._path, version, keep, self._reserve.size(), self._at, self._vfs)
                schema.migrate(conn, version)
                upgrade.prune(self._path, keep)
            else:
                schema.migrate(conn, version)
            self.store_id = schema.store_id(conn)
            # Durable before it is used: an epoch that a crash could take back would not fence anybody.
            row = conn.execute(
                "UPDATE shard SET epoch = epoch + 1, "
                "last_seq = max(last_seq, (SELECT coalesce(max(seq), 0) FROM record), "
                "(SELECT coalesce(max(seq), 0) FROM message)) "
                "WHERE shard = 0 RETURNING epoch, last_seq, service_ms"
            ).fetchall()
            if len(row) != 1:
                raise StoreError("CORRUPT", f"{self._path} has lost its shard: restore the newest backup.")
            epoch, last_seq, service_ms = row[0]
            assert isinstance(epoch, int)  # STRICT columns
            assert isinstance(last_seq, int)
            assert isinstance(service_ms, int)
            self.epoch, self.last_seq, self.service_ms = epoch, last_seq, service_ms
            self._reserve_shm()
            claim.fsync_dir(self._path.parent)
            return conn
        except BaseException:
            conn.close()
            self._close_shm()
            raise

    def _reserve_shm(self) -> None:
        # The descriptor stays open until SQLite's are closed: closing it would drop their POSIX locks.
        self._shm = os.open(f"{self._path}-shm", os.O_RDWR | os.O_CLOEXEC)
        with suppress(OSError):
            if os.fstat(self._shm).st_size < _SHM_BYTES:
                os.posix_fallocate(self._shm, 0, _SHM_BYTES)

    def append(self, shard: int, epoch: int, first_seq: int, batch: Batch, service_ms: int = 0) -> Outcome:
        """See base.Store."""
        return self._writer.append(shard, epoch, first_seq, batch, service_ms)

    def keep_time(self, service_ms: int) -> None:
        """See base.Store."""
        self._writer.keep_time(self.epoch, service_ms)

    def probe_space(self) -> str:
        """See base.Store."""
        return self._writer.probe_space()

    def used_bytes(self) -> int:
        """See base.Store."""
        return self._writer.used_bytes()

    def idle(self) -> None:
        """For the writer thread, when nothing has been queued for a while: empties the log. Raises StoreFailed."""
        self._writer.idle()

    def running_roots(self) -> list[bytes]:
        """See base.Store."""
        return self._reader.running_roots()

    def find(self, tenant: str, session_id: str) -> Found | None:
        """See base.Store."""
        return self._reader.find(tenant, session_id)

    def load_header(self, root: bytes) -> tuple[str, list[HeaderRow]]:
        """See base.Store."""
        return self._reader.load_header(root)

    def load_session(
        self,
        uid: bytes,
        with_tokens: bool,
        with_provisional: bool = False,
        state_turn: int | None = None,
        with_size: bool = False,
    ) -> LoadedSession | None:
        """See base.Store."""
        return self._reader.load_session(uid, with_tokens, with_provisional, state_turn, with_size)

    def read_session(self, tenant: str, session_id: str) -> SessionRow | None:
        """See base.Store."""
        return self._reader.read_session(tenant, session_id)

    def read_path(self, root: bytes, path: str) -> SessionRow | None:
        """See base.Store."""
        return self._reader.read_path(root, path)

    def list_sessions(self, where: SessionFilter, after: bytes, limit: int) -> list[SessionRow]:
        """See base.Store."""
        return self._reader.list_sessions(where, after, limit)

    def record_lines(self, uid: bytes, limit: int) -> tuple[SessionRow, list[RecordLine]] | None:
        """See base.Store."""
        return self._reader.record_lines(uid, limit)

    def older_lines(self, uid: bytes, line: RecordLine, limit: int) -> list[RecordLine]:
        """See base.Store."""
        return self._reader.older_lines(uid, line, limit)

    def read_records(self, seqs: Sequence[int]) -> list[RecordRow]:
        """See base.Store."""
        return self._reader.read_records(seqs)

    def read_tokens(self, seqs: Sequence[int]) -> list[tuple[int, bytes | None]]:
        """See base.Store."""
        return self._reader.read_tokens(seqs)

    def read_rewards(self, uid: bytes) -> dict[int, float]:
        """See base.Store."""
        return self._reader.read_rewards(uid)

    def read_trajectories(self, ids: Sequence[tuple[bytes, int]]) -> list[TrajectoryRow | None]:
        """See base.Store."""
        return self._reader.read_trajectories(ids)

    def session_trajectories(self, uid: bytes) -> list[TrajectoryRow]:
        """See base.Store."""
        return self._reader.session_trajectories(uid)

    def last_ready(self, tenant: str) -> int:
        """See base.Store."""
        return self._reader.last_ready(tenant)

    def ready_trajectories(self, where: ReadyFilter, after_seq: int, limit: int) -> list[TrajectoryRow]:
        """See base.Store."""
        return self._reader.ready_trajectories(where, after_seq, limit)

    def due(self, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> tuple[list[DueRow], int | None]:
        """See base.Store."""
        return self._reader.due(until_ms, after, limit)

    def stale(self, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> tuple[list[StaleRow], int | None]:
        """See base.Store."""
        return self._reader.stale(until_ms, after, limit)

    def family(self, uid: bytes) -> list[SessionRow]:
        """See base.Store."""
        return self._reader.family(uid)

    def has_children(self, root: bytes, uid: bytes) -> bool:
        """See base.Store."""
        return self._reader.has_children(root, uid)

    def cleanups(self, state: int, until_ms: int, after: tuple[int, bytes] | None, limit: int) -> list[CleanupRow]:
        """See base.Store."""
        return self._reader.cleanups(state, until_ms, after, limit)

    def kept(self, after: bytes, limit: int) -> list[bytes]:
        """See base.Store."""
        return self._reader.kept(after, limit)

    def counts(self) -> dict[str, int]:
        """See base.Store."""
        return self._reader.counts()

    def session_by_uid(self, uid: bytes) -> SessionRow | None:
        """See base.Store."""
        return self._reader.session_by_uid(uid)

    def read_mail(self, seqs: Sequence[int]) -> list[MailFound]:
        """See base.Store."""
        return self._reader.read_mail(seqs)

    def sent(self, recipient: bytes, request: str) -> tuple[bytes, bytes] | None:
        """See base.Store."""
        return self._reader.sent(recipient, request)

    def runnable(
        self, tenant: str, until_ms: int, after: tuple[int, int] | None, limit: int
    ) -> tuple[list[RunnableRow], int | None]:
        """See base.Store."""
        return self._reader.runnable(tenant, until_ms, after, limit)

    def list_mail(
        self, where: MailFilter, after: int, limit: int, examine: int, size: int
    ) -> tuple[list[ListedMail], int | None]:
        """See base.Store."""
        return self._reader.list_mail(where, after, limit, examine, size)

    def count_unread(self, uid: bytes) -> int:
        """See base.Store."""
        return self._reader.count_unread(uid)

    def unread_mail(self, uid: bytes, after: int, size: int) -> list[UnreadMail]:
        """See base.Store."""
        return self._reader.unread_mail(uid, after, size)

    def api_keys(self) -> list[ApiKeyRow]:
        """See base.Store."""
        return self._reader.api_keys()

    def limits(self) -> list[tuple[str, int]]:
        """See base.Store."""
        return self._reader.limits()

    def resources(self) -> list[ResourceRow]:
        """See base.Store."""
        return self._reader.resources()

    def due_resources(self, until_ms: int, after: tuple[int, str] | None, limit: int) -> list[DueResource]:
        """See base.Store."""
        return self._reader.due_resources(until_ms, after, limit)

    def list_resources(
        self, where: ResourceFilter, after: str, limit: int, examine: int
    ) -> tuple[list[ListedResource], str | None]:
        """See base.Store."""
        return self._reader.list_resources(where, after, limit, examine)

    def owner_releases(self, tenant: str, owner: str, after: str, limit: int) -> list[OwnerRelease]:
        """See base.Store."""
        return self._reader.owner_releases(tenant, owner, after, limit)

    def owner_mail(
        self, tenant: str, owner: str, after: tuple[int, int] | None, examine: int
    ) -> tuple[set[bytes], tuple[int, int] | None]:
        """See base.Store."""
        return self._reader.owner_mail(tenant, owner, after, examine)

    def mailboxes(self, owner: str, sessions: Sequence[bytes], now_ms: int) -> list[OwnerMail]:
        """See base.Store."""
        return self._reader.mailboxes(owner, sessions, now_ms)

    def known_resources(self, names: Sequence[str]) -> set[str]:
        """See base.Store."""
        return self._reader.known_resources(names)

    def sizes(self) -> dict[str, int]:
        """See base.Store."""

        def size(suffix: str) -> int:
            try:
                return Path(f"{self._path}{suffix}").stat().st_size
            except FileNotFoundError:
                return 0

        return {"store_bytes": size(""), "wal_bytes": size("-wal"), "reserve_bytes": self._reserve.size()}

    def close(self) -> None:
        """See base.Store. To be called when neither thread uses the store; again is nothing. Raises StoreFailed
        if the last checkpoint fails (what was acknowledged is in the log and safe)."""
        if self._closed:
            return
        self._closed = True
        self._reader.close()
        self._checkpointer.stop()
        failed = self._writer.failed or self._checkpointer.failure is not None
        try:
            if not failed:
                self._conn.set_busy_timeout(0)  # a backup that goes on is not waited for
                self._conn.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except (apsw.FullError, apsw.BusyError):
            pass  # the log keeps everything for the next start
        except apsw.Error as error:
            failed = True
            raise StoreFailed(f"close: {type(error).__name__}: {error}") from error
        finally:
            if failed:
                # After a failed fsync nothing may be copied out of the log by this process.
                self._conn.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            try:
                self._conn.close()
            except apsw.Error:
                log.exception("closing the store")
            self._release()

    def _close_shm(self) -> None:
        if self._shm is not None:
            os.close(self._shm)
            self._shm = None

    def _release(self) -> None:
        self._close_shm()
        self._claim.release()
