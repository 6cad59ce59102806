"""`roost` of a version to come: it has one more migration of the store, and uses what that made.

Run in place of `-m roost`.
"""

from __future__ import annotations

from roost.cli.main import main
from roost.store import schema

KNOWN = schema.migrations()
NUMBER = KNOWN[-1][0] + 1
# As migrations do: a table more, and one that bears rows gets a column that was not there.
MIGRATION = """
CREATE TABLE shelf (name TEXT NOT NULL PRIMARY KEY, place INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO shelf SELECT session_id, head FROM session;
ALTER TABLE record ADD COLUMN shelf INTEGER NOT NULL DEFAULT 7;
"""


def migrations() -> tuple[tuple[int, str], ...]:
    return (*KNOWN, (NUMBER, MIGRATION))


if __name__ == "__main__":
    schema.migrations = migrations  # type: ignore[assignment]
    main()
