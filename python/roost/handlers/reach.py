"""What a session's key reaches among the rows of the store (I17): the cold handlers' one gate.

The rule is the engine's (`rust/core/src/engine/access.rs`): the session and what descends from it through open edges,
the target's own excepted; of the rest of its tree the outline. What it may not reach looks like what does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.handlers.cold import is_purging

if TYPE_CHECKING:
    from roost.store.base import SessionRow, Store

_OPEN = 1  # roost.v1.SESSION_STATE_OPEN


class Reach:
    """Of the key of one life of a session. `look` reads what it is now, once a step of a handler; the rest answers from
    that."""

    def __init__(self, session_id: str, uid: bytes, life: int) -> None:
        self.session_id = session_id
        self.uid = uid
        self.life = life
        self.root = b""
        self.root_session_id = ""
        self.path = ""
        self._inside: frozenset[bytes] = frozenset()
        self._open: frozenset[bytes] = frozenset()

    def look(self, store: Store, tenant: str) -> str:
        """Read the session's tree. "" while that life of the session lasts; else why nothing is reached: "ended", or
        "gone" for one that is not there any more, or has been purged."""
        found = store.find(tenant, self.session_id)
        if found is None or found.uid != self.uid:
            return "gone"
        if found.state != _OPEN:
            return "gone" if is_purging(found.cleanup) else "ended"
        own = next(row for row in found.rows if row.uid == self.uid)
        life = own.closes + 1
        if self.life != life:  # a later one is of a store that was set back
            return "ended" if self.life < life else "gone"
        self.root, self.path = found.root, own.path
        self.root_session_id = found.rows[0].session_id  # parents come before their children
        inside = {self.uid}
        for row in found.rows:
            if row.parent in inside:
                inside.add(row.uid)
        self._inside = frozenset(inside)
        self._open = frozenset(row.uid for row in found.rows)
        return ""

    def reaches(self, row: SessionRow) -> bool:
        """Whether it is the session or descends from it."""
        return self.inside(row.uid, row.parent)

    def inside(self, uid: bytes, parent: bytes) -> bool:
        """As `reaches`, of the session of this uid and parent."""
        return uid in self._inside or parent in self._inside

    def sees(self, row: SessionRow) -> bool:
        """Whether its outline may be seen: it is of the tree."""
        return row.uid in self._open or row.parent in self._open
