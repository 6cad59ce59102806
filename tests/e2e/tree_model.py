"""What the sessions of a tenant's trees should do beside each other, written as plainly as can be: names and caps,
turns and who waits for one, mail and what becomes of it, interrupts, ends, and what the key of a session reaches.

The state machine of test_tree_machine.py compares a real server with it. An operation changes the model or raises
`Refuses` with the reason of the refusal, and then it has changed nothing (I22). Times are in steps of a clock that only
the test moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from turn_model import Refuses

LEASE, WAIT, TTL = 4, 4, 2  # steps of the clock


@dataclass(frozen=True)
class Caps:
    """What the server was started with."""

    tree_turns: int = 3
    tenant_turns: int = 4
    sessions: int = 8
    depth: int = 3
    mailbox: int = 3
    deliveries: int = 2


@dataclass
class Mail:
    """One message, whatever has become of it."""

    number: int  # in order of sending
    kind: str
    sender: str
    path: str
    content: bytes
    trigger: bool
    turn: int = 0
    why: str = ""
    request: tuple[str, str] = ("", "")  # sender and request_id
    expires: int | None = None
    armed: bool = False  # it makes its session runnable
    since: int | None = None  # it pauses from this step on, for less than a step
    state: str = "QUEUED"
    deliveries: int = 0
    fence: int = 0
    id: str = ""


@dataclass
class Record:
    """One entry of a history."""

    turn: int
    status: str
    outcome: str
    fence: int
    content: bytes
    ended_by: str
    request_id: str = ""  # of its BeginTurn
    then: str = "idle"
    next_fence: int = 0
    next_refused: str = ""


@dataclass
class Grant:
    """The latest grant while it can still be committed."""

    fence: int
    lease: bytes
    turn: int
    until: int
    request_id: str = ""
    polled: bool = False
    running: bool = True
    interrupted: bool = False


@dataclass
class Waiter:
    """A BeginTurn that waits."""

    priority: int
    arrival: int
    until: int
    request_id: str
    owner: str

    @property
    def place(self) -> tuple[int, int]:
        return -self.priority, self.arrival


@dataclass
class Receipt:
    """What a close has decided."""

    reason: str
    slots: int
    children: int
    turns: int
    number: int
    provisionals: int
    unread: int


@dataclass(eq=False)
class Node:
    """A session."""

    id: str
    parent: Node | None
    name: str
    wakes: bool = False
    request_id: str = ""
    owner: str = ""
    closed_by: int = 0  # which close; 0: it is open
    receipts: list[Receipt] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    turns: int = 0
    outcome: str = "NONE"
    fence: int = 0
    grant: Grant | None = None
    provisional: Record | None = None
    waiter: Waiter | None = None
    mail: list[Mail] = field(default_factory=list)
    interrupts: dict[str, tuple[str, int]] = field(default_factory=dict)
    key: str = ""

    @property
    def open(self) -> bool:
        return not self.closed_by

    @property
    def running(self) -> bool:
        return self.grant is not None and self.grant.running

    @property
    def root(self) -> Node:
        return self if self.parent is None else self.parent.root

    @property
    def path(self) -> str:
        return "/root" if self.parent is None else f"{self.parent.path}/{self.name}"

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1


class Trees:
    """All sessions of one tenant."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.now = 0
        self.nodes: dict[str, Node] = {}
        self.lost: list[tuple[Node, Waiter, str]] = []  # waits that ended without a turn, and why
        self.moved: set[Node] = set()  # whose mailbox is not what it was
        self._count = 0

    # -- what is derived

    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.running]

    def waiting(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.waiter is not None]

    def keyed(self) -> list[Node]:
        """Whose key reaches something."""
        return [node for node in self.nodes.values() if node.open and node.key]

    def roots(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.parent is None]

    def open_in(self, root: Node) -> int:
        return sum(node.open for node in self.nodes.values() if node.root is root)

    def below(self, top: Node) -> Iterator[Node]:
        """A session and what descends from it, parents first."""
        yield top
        for node in self.nodes.values():
            if node.parent is top:
                yield from self.below(node)

    def full(self, node: Node) -> str:
        """At which cap there is no room for a turn of this session (I2). One place of its tree is the root's."""
        children = sum(1 for n in self.running() if n.root is node.root and n.parent is not None)
        if node.parent is not None and children >= self.caps.tree_turns - 1:
            return "TREE_TURNS"
        return "TENANT_TURNS" if len(self.running()) >= self.caps.tenant_turns else ""

    def may_run(self) -> list[Node]:
        """Whose wait must end with a turn now."""
        return [n for n in self.waiting() if not self.full(n)]

    def state(self, mail: Mail) -> str:
        past = mail.expires is not None and mail.expires <= self.now
        return "EXPIRED" if mail.state == "QUEUED" and past else mail.state

    def queued(self, node: Node) -> list[Mail]:
        return [mail for mail in node.mail if self.state(mail) == "QUEUED"]

    def unread(self, node: Node) -> list[Mail]:
        return [mail for mail in node.mail if self.state(mail) in ("QUEUED", "DELIVERED")]

    def runnable(self, node: Node) -> bool | None:
        """Whether its mail makes a session runnable; None where a pause decides that is shorter than a step."""
        armed = [mail for mail in self.queued(node) if mail.armed]
        if not node.open or node.running or not armed:
            return False
        return True if any(mail.since is None or mail.since < self.now for mail in armed) else None

    def reaches(self, own: Node, node: Node) -> bool:
        """I17: whether the key of one session reaches another: through open edges, the target's own excepted."""
        at: Node | None = node
        while at is not None:
            if at is own:
                return True
            at = at.parent if at.parent is not None and at.parent.open else None
        return False

    def sees(self, own: Node, node: Node) -> bool:
        """I17: whether it sees its outline."""
        return node.root is own.root and (node.parent is None or node.parent.open)

    # -- making sessions

    def check_open(self, id: str, parent: str, name: str) -> None:
        """What stands against a new session."""
        if id == parent:
            raise Refuses("INVALID_FIELD")
        if id in self.nodes:
            raise Refuses("SESSION_EXISTS" if self.nodes[id].open else "SESSION_CLOSED")
        if not parent:
            return
        above = self.nodes.get(parent)
        if above is None:
            raise Refuses("PARENT_NOT_FOUND")
        if not above.open:
            raise Refuses("SESSION_CLOSED")
        if above.depth >= self.caps.depth:
            raise Refuses("TREE_DEPTH")
        if self.open_in(above.root) >= self.caps.sessions:
            raise Refuses("TREE_SESSIONS")
        if name and self._taken(above, name):
            raise Refuses("PATH_COLLISION")

    def add(self, id: str, parent: str, name: str, wakes: bool = False, request_id: str = "") -> Node:
        """A session was made, under this name (I16)."""
        above = self.nodes[parent] if parent else None
        assert above is None or not self._taken(above, name)
        node = self.nodes[id] = Node(id, above, name, wakes, request_id)
        return node

    # -- turns

    def check_begin(self, node: Node, request_id: str, takeover: bool) -> str:
        """What a BeginTurn comes to before the gates: "repeat", "takeover" or "new"."""
        self._open(node)
        grant = node.grant
        if grant is not None and request_id and grant.request_id == request_id and not grant.polled:
            if grant.running:
                return "repeat"
            raise Refuses("TURN_ENDED")
        over = bool(request_id) and any(record.request_id == request_id for record in node.records)
        if node.running and not takeover:
            raise Refuses("TURN_ENDED" if over else "TURN_IN_PROGRESS")
        if over:
            raise Refuses("TURN_ENDED")
        if node.waiter is not None:
            raise Refuses("TURN_IN_PROGRESS")
        return "takeover" if node.running else "new"

    def take_over(self, node: Node) -> None:
        grant = self._granted(node)
        self._leave(node, "INTERRUPTED" if grant.interrupted else "EXPIRED", "takeover")

    def begin(
        self, node: Node, fence: int, lease: bytes, owner: str, request_id: str, polled: bool = False
    ) -> list[Mail]:
        """A turn was granted, with this fence; the mail that it takes (I15)."""
        assert fence > node.fence
        node.owner, node.waiter, node.fence = owner, None, fence
        node.grant = Grant(fence, lease, node.turns + 1, self.now + LEASE, request_id, polled)
        taken = self.queued(node)
        for mail in taken:
            mail.state, mail.fence = "DELIVERED", fence
            mail.deliveries += 1
        self._moves(node, taken)
        return taken

    def wait(self, node: Node, priority: int, request_id: str, owner: str) -> None:
        self._count += 1
        node.waiter = Waiter(priority, self._count, self.now + WAIT, request_id, owner)

    def give_up(self, node: Node) -> None:
        """The caller of a wait is gone (I24)."""
        node.waiter = None

    def renew(self, node: Node, fence: int | None) -> bool:
        self._open(node)
        grant = node.grant
        if grant is None or not grant.running or grant.fence != fence:
            raise Refuses("LEASE_LOST")
        grant.until = self.now + LEASE
        return grant.interrupted

    def commit(self, node: Node, fence: int | None, content: bytes, then: str, completion: bytes | None) -> Record:
        """The record that the commit has made, or had made before: `next_refused` says why it does not go on. What it
        goes on with begins with `begin`."""
        grant = self._valid(node, fence, "commit")
        if isinstance(grant, Record):
            return grant
        if node.provisional is not None:
            node.provisional.status, node.provisional = "SUPERSEDED", None
        node.turns += 1
        outcome = "COMMITTED" if completion is None else "COMPLETED"
        made = Record(
            node.turns,
            "COMMITTED",
            outcome,
            grant.fence,
            content,
            "commit",
            grant.request_id * (not grant.polled),
            then,
        )
        node.records.append(made)
        node.outcome, node.grant = outcome, None
        consumed = [m for m in node.mail if m.fence == fence and self.state(m) in ("QUEUED", "DELIVERED")]
        for mail in consumed:
            mail.state = "CONSUMED"
        self._moves(node, consumed)
        if completion is not None:
            self._tell(node, "COMPLETED", completion, turn=node.turns)
        if then == "continue" and (grant.interrupted or not grant.running):
            made.next_refused = "TURN_INTERRUPTED" if grant.running else "LEASE_LOST"
        elif then == "close":
            self.close(node)
        return made

    def abort(self, node: Node, fence: int | None, content: bytes, final: bool) -> Record:
        grant = self._valid(node, fence, "abort")
        if isinstance(grant, Record):
            return grant
        outcome = "INTERRUPTED" if grant.interrupted else "FAILED" if final else "ABORTED"
        made = self._leave(node, outcome, "abort", content, final)
        if outcome == "FAILED":
            self._tell(node, "FAILED", b"", turn=made.turn)
        return made

    def interrupt(self, node: Node, request_id: str, force: bool) -> tuple[str, int]:
        """What the session did, and the number of its turn. No other session is touched (I18)."""
        self._open(node)
        if request_id in node.interrupts:
            return node.interrupts[request_id]
        grant = node.grant
        answer = ("IDLE", 0)
        if grant is not None and grant.running:
            answer, grant.interrupted = ("RUNNING", grant.turn), True
        elif node.waiter is not None:
            answer = ("WAITING", 0)
            self._lose(node, "TURN_INTERRUPTED")
            self._disarm(node)
        node.interrupts = {request_id: answer} if request_id else node.interrupts
        if force and node.running:
            self._leave(node, "INTERRUPTED", "interrupt")
        return answer

    # -- mail

    def check_send(self, node: Node, sender: Node | None, trigger: bool) -> None:
        self._open(node)
        if trigger and node.parent is None and sender is not None and sender.root is node and sender is not node:
            raise Refuses("ROOT_TRIGGER")
        if sum(mail.kind == "MESSAGE" for mail in self.unread(node)) >= self.caps.mailbox:
            raise Refuses("MAILBOX_FULL")

    def sent(self, node: Node, sender: str, request_id: str) -> Mail | None:
        """What an earlier call of this request has sent."""
        return next((m for m in node.mail if request_id and m.request == (sender, request_id)), None)

    def send(
        self,
        node: Node,
        sender: Node | None,
        content: bytes,
        trigger: bool,
        expires: int | None = None,
        request_id: str = "",
    ) -> Mail:
        # Where one was that has ended is not known any more.
        of, path = (sender.id, sender.path if sender.open else "") if sender is not None else ("", "")
        mail = Mail(0, "MESSAGE", of, path, content, trigger, request=(of, request_id), expires=expires)
        return self._post(node, mail)

    # -- ends

    def close(self, node: Node, reason: str = "QUIT") -> Receipt:
        """I12: what is closed already keeps its receipt."""
        if not node.open:
            return node.receipts[-1]
        self._count += 1
        silent = node.outcome in ("COMPLETED", "FAILED")
        self._seal(node, reason, self._count)
        if not silent:
            self._tell(node, "CLOSED", b"", why=reason)
        return node.receipts[-1]

    def reopen(self, node: Node) -> int:
        """How many sessions came back."""
        if node.open:
            return 0
        if node.parent is not None and not node.parent.open:
            raise Refuses("SESSION_CLOSED")
        back = [n for n in self.below(node) if n.closed_by == node.closed_by]
        if self.open_in(node.root) + len(back) > self.caps.sessions:
            raise Refuses("TREE_SESSIONS")
        if node.parent is not None and self._taken(node.parent, node.name):
            raise Refuses("PATH_COLLISION")
        for each in back:
            each.closed_by, each.key = 0, ""  # that was of its former life
        return len(back)

    # -- time

    def skip(self, steps: int) -> None:
        """Waits and leases whose time is up end."""
        self.now += steps
        for node in self.waiting():
            if node.waiter is not None and node.waiter.until <= self.now:
                self._lose(node, "TREE_TURNS or TENANT_TURNS")
        for node in self.running():
            grant = self._granted(node)
            if grant.until <= self.now:
                self._leave(node, "INTERRUPTED" if grant.interrupted else "EXPIRED", "expiry")
                grant.running, node.grant = False, grant  # a late commit is taken
        self.moved |= {n for n in self.nodes.values() if any(m.expires is not None for m in n.mail)}

    def restarted(self, graceful: bool) -> None:
        """Waits are lost; what runs goes on with a full lease (I5)."""
        for node in self.waiting():
            self._lose(node, "SHUTTING_DOWN" if graceful else "")
        for node in self.running():
            self._granted(node).until = self.now + LEASE

    # -- inside

    def _open(self, node: Node) -> None:
        if not node.open:
            raise Refuses("SESSION_CLOSED")

    def _granted(self, node: Node) -> Grant:
        assert node.grant is not None
        return node.grant

    def _taken(self, above: Node, name: str) -> bool:
        return any(n.open and n.parent is above and n.name == name for n in self.nodes.values())

    def _valid(self, node: Node, fence: int | None, ended_by: str) -> Grant | Record:
        """The grant of this fence if it can still end; the record that it has made by the same call; or a refusal."""
        if node.open and node.grant is not None and node.grant.fence == fence:
            return node.grant
        for record in node.records:
            if record.fence == fence and record.ended_by == ended_by:
                return record
        # The lease of another session never was this one's.
        raise Refuses("LEASE_LOST" if node.open or fence is None else "SESSION_CLOSED")

    def _lose(self, node: Node, why: str) -> None:
        if node.waiter is not None:
            self.lost.append((node, node.waiter, why))
        node.waiter = None

    def _leave(self, node: Node, outcome: str, ended_by: str, content: bytes = b"", final: bool = False) -> Record:
        grant = self._granted(node)
        if node.provisional is not None:
            node.provisional.status = "SUPERSEDED"
        status = "ABORTED" if final else "PROVISIONAL"
        request_id = grant.request_id * (not grant.polled)
        made = Record(grant.turn, status, outcome, grant.fence, content, ended_by, request_id)
        node.records.append(made)
        node.provisional = None if final else made
        node.outcome, node.grant = outcome, None
        taken = [mail for mail in node.mail if mail.state == "DELIVERED"]
        for mail in taken:
            mail.state, mail.since = "QUEUED", self.now
            if mail.deliveries >= self.caps.deliveries:
                mail.state = "DEAD"
        self._moves(node, taken)
        if outcome in ("INTERRUPTED", "FAILED"):
            self._disarm(node)
        return made

    def _disarm(self, node: Node) -> None:
        for mail in node.mail:
            mail.armed = False

    def _seal(self, node: Node, reason: str, close: int) -> None:
        own = Receipt(reason, int(node.running), 0, node.turns, len(node.receipts) + 1, 0, len(self.unread(node)))
        for child in [n for n in self.nodes.values() if n.parent is node and n.open]:
            self._seal(child, "PARENT_CLOSED", close)
            under = child.receipts[-1]
            own.slots += under.slots
            own.children += under.children + 1
            own.provisionals += under.provisionals
        if node.provisional is not None:
            own.provisionals += 1
            node.provisional.status, node.provisional = "ABORTED", None
        unread = self.unread(node)
        for mail in unread:
            mail.state, mail.armed = "CLOSED", False
        self._moves(node, unread)
        self._lose(node, "SESSION_CLOSED")
        node.grant, node.closed_by = None, close
        node.receipts.append(own)

    def _tell(self, node: Node, kind: str, content: bytes, turn: int = 0, why: str = "") -> None:
        """What a child's end tells its direct parent."""
        if node.parent is not None and node.parent.open:
            told = Mail(0, kind, node.id, node.path, content, node.parent.wakes, turn=turn, why=why)
            self._post(node.parent, told)

    def _post(self, node: Node, mail: Mail) -> Mail:
        self._count += 1
        mail.number, mail.armed = self._count, mail.trigger
        node.mail.append(mail)
        self._moves(node, [mail])
        return mail

    def _moves(self, node: Node, mail: list[Mail]) -> None:
        if mail:
            self.moved.add(node)
