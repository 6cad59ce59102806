"""Durable commits a second at the store interface: in batches against one row at a time, in one run.

A commit is one entry that was acknowledged: alternately a turn's begin (its session row changes) and its end
(session row and a new record). Arms, run in turns so that each meets the same machine:

  batches   SqliteStore.append with --batch entries each, as the journal's group commit gives them
  single    SqliteStore.append with one entry each
  rows      plain SQLite, no Roost: the same session and record rows, each statement its own durable transaction

The slow disk is a SQLite VFS whose xSync also sleeps --delay-ms, in all arms alike (a cloud volume's fdatasync;
the sleep releases the GIL). The undelayed runs use no shim. The bar: under the delay `batches` is at least 10 times
`rows`. How long a store takes to open is measured by start_up.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from roost.store import Outcome, SqliteStore
from roost.store.base import RecordInsert, SessionUpsert
from roost.store.connect import connect, make_durable

BAR = 10.0


class SlowSync(apsw.VFS):
    """The default VFS with slow syncs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.vfs_name = "slowsync"
        super().__init__(self.vfs_name, "")

    def xOpen(self, name: Any, flags: Any) -> SlowFile:  # noqa: N802
        return SlowFile(self.seconds, name, flags)


class SlowFile(apsw.VFSFile):
    """A file of SlowSync."""

    def __init__(self, seconds: float, name: Any, flags: Any) -> None:
        self._seconds = seconds
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        time.sleep(self._seconds)


@dataclass
class Rows:
    """A batch (base.Batch) of this benchmark."""

    first_seq: int
    last_seq: int
    session_rows: list[tuple[Any, ...]] = field(default_factory=list)
    record_rows: list[tuple[Any, ...]] = field(default_factory=list)
    roots: list[bytes] = field(default_factory=list)

    def sessions(self) -> list[tuple[Any, ...]]:
        return self.session_rows

    def records(self) -> list[tuple[Any, ...]]:
        return self.record_rows

    def statuses(self) -> list[tuple[Any, ...]]:
        return []

    closes = rewards = finished = acks = stales = reopens = restores = steps = forgets = keys = revoked_keys = statuses
    copies = resources = resource_updates = resources_due = cleanups_due = mail = mail_updates = statuses

    def purged_records(self) -> list[int]:
        return []

    def purged_sessions(self) -> list[bytes]:
        return []

    def resource_deletes(self) -> list[str]:
        return []

    mail_ends = purged_sessions

    def split(self) -> list[Rows]:
        return [self]


class Load:
    """Sessions whose turns begin and end, one session after the other."""

    def __init__(self, sessions: int, record_bytes: int) -> None:
        self.seq = 0
        self.rows: list[SessionUpsert] = []
        self.content = bytes(record_bytes)
        self.count = sessions
        self.next = 0

    def open(self, first: int, count: int) -> Rows:
        """Opens sessions."""
        batch = Rows(self.seq + 1, self.seq + count)
        for n in range(first, first + count):
            self.seq += 1
            uid = hashlib.blake2b(n.to_bytes(8, "big"), digest_size=8).digest()
            uid = n.to_bytes(8, "big") + uid
            row = SessionUpsert(
                uid, "tenant", f"session-{n:012}", uid, b"", "/root", 0, 1_700_000_000_000 + n, 0, 1, 0, 0, 0, 0,
                0, 0, None, b"f" * 200, 0, 0, "", 0, 0, 0, self.seq, 0,
            )  # fmt: skip
            batch.session_rows.append(tuple(row))
            self.rows.append(row)
        return batch

    def entries(self, count: int) -> Rows:
        """The next entries: begin or end of a turn, each of another session (while `count` allows)."""
        batch = Rows(self.seq + 1, self.seq + count)
        for _ in range(count):
            self.seq += 1
            row = self.rows[self.next]
            if row.running:
                record = RecordInsert(
                    self.seq, row.uid, row.last, 1, row.head + 1, b"m" * 200, b"c" * 32, b"t" * 400, None, None,
                    self.content,
                )  # fmt: skip
                batch.record_rows.append(tuple(record))
                new = row._replace(
                    head=row.head + 1, head_version=row.head + 1, running=0, lease=None, last=self.seq, seq=self.seq
                )
            else:
                new = row._replace(running=1, lease=b"g" * 80, fence=row.fence + 1, seq=self.seq)
            self.rows[self.next] = new
            batch.session_rows.append(tuple(new._replace(prev=row.seq)))
            self.next = (self.next + 1) % self.count
        return batch


def store_arm(directory: Path, args: argparse.Namespace, vfs: str | None, size: int, entries: int) -> float:
    """Entries a second through SqliteStore in batches of `size`."""
    store = SqliteStore(directory, reserve_bytes=4096, reserve_margin=0, vfs=vfs)
    load = Load(args.working_set, args.record_bytes)
    append(store, load.open(0, args.working_set))
    batches = [load.entries(size) for _ in range(max(1, entries // size))]
    begin = time.perf_counter()
    for batch in batches:
        append(store, batch)
    took = time.perf_counter() - begin
    store.close()
    return len(batches) * size / took


def append(store: SqliteStore, batch: Rows) -> None:
    """Append or say why not."""
    outcome = store.append(0, store.epoch, batch.first_seq, batch)
    if outcome is not Outcome.STORED:
        raise SystemExit(f"the store answered {outcome}")


def rows_arm(directory: Path, args: argparse.Namespace, vfs: str | None, entries: int) -> float:
    """Entries a second with plain SQLite: each row its own durable transaction, one statement a row."""
    directory.mkdir()
    SqliteStore(directory, reserve_bytes=4096, reserve_margin=0).close()
    conn = connect(directory / "roost.db", vfs=vfs)
    make_durable(conn)
    conn.wal_autocheckpoint(1000)
    load = Load(args.working_set, args.record_bytes)
    columns = (*SessionUpsert._fields[:-1], "closes", "cleanup_due", "close_seq")
    insert = f"INSERT INTO session ({', '.join(columns)}) VALUES ({','.join('?' * len(columns))})"
    with conn:
        for row in load.open(0, args.working_set).session_rows:
            conn.execute(insert, (*row[:-1], 0, 0, 0))
    update = (
        "UPDATE session SET head = ?, head_version = ?, fence = ?, last = ?, running = ?, lease = ?, facts = ?, "
        "seq = ? WHERE uid = ? AND seq = ?"
    )
    batch = load.entries(entries)
    records = {row[0]: row for row in batch.record_rows}
    record = "INSERT INTO record (seq, session, prev, status, turn, meta, chain, tokens, state, arrays, content) "
    record += f"VALUES ({','.join('?' * 11)})"
    begin = time.perf_counter()
    for row in map(SessionUpsert._make, batch.session_rows):
        if row.seq in records:
            conn.execute(record, records[row.seq])
        values = (row.head, row.head_version, row.fence, row.last, row.running, row.lease, row.facts, row.seq)
        conn.execute(update, (*values, row.uid, row.prev))
    took = time.perf_counter() - begin
    conn.close()
    return entries / took


def commits(args: argparse.Namespace) -> dict[str, Any]:
    """All arms, with and without the delay; medians over the rounds, and the ratios."""
    shim = SlowSync(args.delay_ms / 1000)
    report: dict[str, Any] = {"batch": args.batch, "record_bytes": args.record_bytes, "rounds": args.rounds}
    for name, vfs, scale in (("no_delay", None, 1.0), (f"delay_{args.delay_ms:g}ms", shim.vfs_name, args.slow_share)):
        arms: dict[str, Callable[[Path], float]] = {
            "batches": lambda path, v=vfs: store_arm(path, args, v, args.batch, args.entries),  # type: ignore[misc]
            "single": lambda path, v=vfs, s=scale: store_arm(path, args, v, 1, int(args.singles * s)),  # type: ignore[misc]
            "rows": lambda path, v=vfs, s=scale: rows_arm(path, args, v, int(args.singles * s)),  # type: ignore[misc]
        }
        measured: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(args.rounds):
            for arm, run in arms.items():
                with tempfile.TemporaryDirectory(dir=args.dir) as made:
                    measured[arm].append(run(Path(made) / "data"))
        rates = {arm: statistics.median(values) for arm, values in measured.items()}
        report[name] = {
            **{f"{arm}_per_s": round(rate, 1) for arm, rate in rates.items()},
            "batches_to_single": round(rates["batches"] / rates["single"], 1),
            "batches_to_rows": round(rates["batches"] / rates["rows"], 1),
        }
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="entries a batch (default %(default)s)")
    parser.add_argument("--entries", type=int, default=12_800, help="entries of a round of `batches`")
    parser.add_argument("--singles", type=int, default=2_000, help="entries of a round of `single` and `rows`")
    parser.add_argument("--slow-share", type=float, default=0.1, help="share of --singles under the delay")
    parser.add_argument("--working-set", type=int, default=2_000, help="sessions (default %(default)s)")
    parser.add_argument("--record-bytes", type=int, default=2_000, help="content of a record (default %(default)s)")
    parser.add_argument("--delay-ms", type=float, default=5.0, help="added to each sync (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round with fewer entries")
    parser.add_argument("--dir", help="where to make the stores (default: the system's temporary directory)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds, args.entries, args.singles = 1, args.entries // 4, args.singles // 4
    report = commits(args)
    ratio = report[f"delay_{args.delay_ms:g}ms"]["batches_to_rows"]
    report["reached"] = ratio >= BAR
    if args.json:
        print(json.dumps(report))
        return 0 if report["reached"] else 1
    for name, value in report.items():
        if isinstance(value, dict):
            print(name)
            for key, number in value.items():
                print(f"  {key:20} {number:>12,}")
        else:
            print(f"{name:22} {value}")
    return 0 if report["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())
