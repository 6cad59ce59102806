"""What a session's key reaches among the rows of the store (I17): the cold handlers' one gate.

The rule is the engine's (`rust/core/src/engine/access.rs`): the session and what descends from it through open edges,
the target's own excepted; of the rest of its tree the outline. What it may not reach looks like what does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roost.store.base import SessionRow, Store

_OPEN = 1  # roost.v1.SESSION_STATE_OPEN


class Reach:
    """Of the key of one session. `look` reads what it is now, once a step of a handler; the rest answers from that."""

    def __init__(self, session_id: str, uid: bytes) -> None:
        self.session_id = session_id
        self.uid = uid
        self.root = b""
        self._inside: frozenset[bytes] = frozenset()
        self._open: frozenset[bytes] = frozenset()

    def look(self, store: Store, tenant: str) -> str:
        """Read the session's tree. "" while the session is open; else why nothing is reached: "ended", or "gone" for
        one that is not there any more."""
        found = store.find(tenant, self.session_id)
        if found is None or found.uid != self.uid:
            return "gone"
        if found.state != _OPEN:
            return "ended"
        self.root = found.root
        inside = {self.uid}
        for row in found.rows:  # parents come before their children
            if row.parent in inside:
                inside.add(row.uid)
        self._inside = frozenset(inside)
        self._open = frozenset(row.uid for row in found.rows)
        return ""

    def reaches(self, row: SessionRow) -> bool:
        """Whether it is the session or descends from it."""
        return row.uid in self._inside or row.parent in self._inside

    def sees(self, row: SessionRow) -> bool:
        """Whether its outline may be seen: it is of the tree."""
        return row.uid in self._open or row.parent in self._open
