//! Trees in memory: the header (a line for each open session), what a resident session holds, grants, and waiters.
//!
//! One lock per tree orders its transitions. Nothing in here takes another tree's lock.

use crate::checkpoint::Checkpoint;
use crate::gen_store::{Receipt, RequestMark, RunningGrant, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{LeaseToken, Uid};
use crate::journal::{Row, Seq};
use crate::residency::Handle;
use crate::slots::SlotNode;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Moment;
use super::Pending;
use super::events::Times;

/// A tenant: who the caller is. Everything else lives inside one.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    /// Turns running for it; the slot counter of the second gate.
    pub(crate) slots: crate::sync::Padded<SlotNode>,
    /// Who waits at that gate.
    pub(crate) queue: Queue,
    /// Which they are.
    pub(crate) turns: super::full::Turns,
    /// Who waits for sessions that become runnable.
    pub(crate) polls: super::poll::Polls,
    /// Where each session in memory is.
    pub(crate) directory: super::directory::Directory,
}

/// One root session and its open descendants, as the header holds them.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: Uid,
    pub(crate) tenant: Arc<Tenant>,
    /// Turns running below the root. Its cap is the tree's cap less the place kept for the root, which needs no counter:
    /// a session runs at most one turn.
    pub(crate) children_slots: SlotNode,
    /// Who waits at the tree gate.
    pub(crate) queue: Queue,
    pub(crate) state: Mutex<TreeState>,
}

#[derive(Debug, Default)]
pub(crate) struct TreeState {
    /// It has left memory: whoever still holds the `Arc` looks the session up again.
    pub(crate) dropped: bool,
    /// Lines by index; a free index is `None`. The root's is 0.
    pub(crate) lines: Vec<Option<Box<Line>>>,
    pub(crate) free: Vec<u32>,
    /// OPEN sessions that the store knows or will know.
    pub(crate) open: u32,
    /// Sequence of its last journal entry.
    pub(crate) last_seq: Seq,
    /// Resident, running, waiting and parked calls: while not zero, the header stays.
    pub(crate) uses: u32,
    /// Its place in the index of headers that may go: `None` while it is in use.
    pub(crate) header: Option<Handle>,
    /// What it is charged.
    pub(crate) header_bytes: u64,
    /// Of that, the facts that lines keep.
    pub(crate) facts_bytes: u64,
    /// And the mailboxes.
    pub(crate) mail_bytes: u64,
    /// Service time of the last activity of any of its sessions. Unit: milliseconds.
    pub(crate) active_ms: u64,
    /// Idle time after which it is stale, as its root says; 0: never; -1: the root's facts tell.
    pub(crate) stale_ms: i64,
}

/// One open session in its tree's header; about 200 bytes. A closed one stays until its close is durable.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) uid: Uid,
    pub(crate) session_id: Arc<str>,
    /// Empty for the root.
    pub(crate) name: Box<str>,
    pub(crate) parent: Option<u32>,
    pub(crate) depth: u32,
    /// False while a BeginTurn with `open` waits for the slot with which the session will be made.
    pub(crate) born: bool,
    /// Set by its close.
    pub(crate) closed: Option<Box<Receipt>>,
    pub(crate) head: u32,
    pub(crate) head_version: u64,
    pub(crate) fence: u64,
    pub(crate) provisional: Seq,
    pub(crate) last: Seq,
    /// Wall-clock milliseconds from which on its active trajectory finishes by itself; 0: never.
    pub(crate) finish_due_ms: i64,
    /// Sequence of the entry that last wrote its row.
    pub(crate) seq: Seq,
    /// How often it was closed before.
    pub(crate) closes: u32,
    /// How its latest turn ended.
    pub(crate) outcome: v1::TurnOutcome,
    /// What its children's ends tell it makes it runnable.
    pub(crate) wakes: bool,
    /// Who began its latest turn; empty before the first.
    pub(crate) owner: Arc<str>,
    pub(crate) lease: Option<Box<Lease>>,
    pub(crate) waiter: Option<Box<Waiter>>,
    pub(crate) resident: Option<Box<Resident>>,
    /// The encoded facts of a session that is not resident and whose trajectory is to finish by itself: a close finishes
    /// it, and loads no session for that. Their bytes are the header's.
    pub(crate) facts: Option<Box<[u8]>>,
    /// What it has of mail; `None`: nothing, and nobody waits for any.
    pub(crate) mail: Option<Box<super::mailbox::Mailbox>>,
    /// Requests of messages up to this entry are told by the store alone; 0: there are none.
    pub(crate) mail_from: Seq,
    /// Calls that wait for a load of it; an entry means a load is under way.
    pub(crate) loading: Option<Box<Loading>>,
}

/// The latest grant, while it can still be committed.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) fence: u64,
    pub(crate) nonce: [u8; 16],
    pub(crate) turn: u32,
    pub(crate) attempt: u32,
    pub(crate) owner: Arc<str>,
    pub(crate) lease_ms: u64,
    pub(crate) begin_wall_ms: i64,
    pub(crate) request: Option<RequestMark>,
    /// Holds a slot. False once the lease ran out.
    pub(crate) running: bool,
    /// InterruptSession asked it to end.
    pub(crate) interrupted: bool,
    /// The entry that says so; 0: one of an earlier time.
    pub(crate) interrupted_seq: Seq,
    /// A PollTurn began it.
    pub(crate) polled: bool,
    /// Answers that bear it: it is released undelivered only when none of them was delivered. Never journaled.
    pub(crate) answers: u32,
    /// On the service clock; moved by renewals, never journaled.
    pub(crate) deadline_ms: u64,
    /// Looks at the deadline; a renewal leaves it where it is.
    pub(crate) timer: super::TimerKey,
    /// For the log; never journaled.
    pub(crate) times: Times,
}

impl Lease {
    pub(crate) fn token(&self, uid: Uid) -> LeaseToken {
        LeaseToken { uid, fence: self.fence, nonce: self.nonce }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        RunningGrant {
            fence: self.fence,
            nonce: self.nonce.to_vec(),
            turn: self.turn,
            attempt: self.attempt,
            owner: self.owner.to_string(),
            lease_ms: self.lease_ms as i64,
            begin_ms: self.begin_wall_ms,
            request: self.request.clone(),
            expired: !self.running,
            interrupted: self.interrupted,
            polled: self.polled,
        }
        .encode_to_vec()
    }

    /// From the store; a running one gets a full lease from now.
    pub(crate) fn decode(bytes: &[u8], running: bool, now: &Moment) -> Option<Self> {
        let grant = RunningGrant::decode(bytes).ok()?;
        // Its BeginTurn was answered by an earlier server, some time ago.
        let began = now.mono_ms as i64 - (now.wall_ms - grant.begin_ms).max(0);
        Some(Lease {
            fence: grant.fence,
            nonce: grant.nonce.try_into().ok()?,
            turn: grant.turn,
            attempt: grant.attempt,
            owner: owner_of(&grant.owner),
            lease_ms: grant.lease_ms as u64,
            begin_wall_ms: grant.begin_ms,
            request: grant.request,
            running,
            interrupted: grant.interrupted,
            interrupted_seq: 0,
            polled: grant.polled,
            answers: 1,
            deadline_ms: now.mono_ms + grant.lease_ms as u64,
            timer: (0, 0),
            times: Times { asked: began, granted: began, ..Times::default() },
        })
    }
}

/// A BeginTurn that waits for a slot. It holds nothing.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Its call; a ghost (cancelled with a request_id) has none and is passed over.
    pub(crate) call: Option<Box<Pending>>,
    /// It is no call: a runnable session that who waits in PollTurn may have.
    pub(crate) stands: bool,
    pub(crate) request: Option<RequestMark>,
    pub(crate) gate: Gate,
    pub(crate) place: Place,
    pub(crate) since_ms: u64,
    /// The end of its wait, or of the place it keeps.
    pub(crate) deadline_ms: u64,
    pub(crate) connection: u64,
    pub(crate) timer: super::TimerKey,
}

/// Where in a queue: higher priority first, then earlier arrival. Unique, so it names the waiter as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) against_priority: i32,
    pub(crate) arrival: u64,
}

impl Place {
    /// In place of a priority: behind every call.
    pub(crate) const BEHIND_ALL: i32 = i32::MAX;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Tree,
    Tenant,
}

/// A gate's queue. Never locked while a tree is being waited for.
///
/// No wake-up is lost, because whoever gives back looks into the queue after that, and whoever parks looks at the gate
/// again after that, both through this lock: one of them comes second and sees the other.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    places: Mutex<BTreeMap<Place, Queued>>,
}

#[derive(Debug)]
struct Queued {
    tree: Arc<Tree>,
    index: u32,
    /// A call waits here. Else the place is kept for its repeat, or a runnable session's.
    called: bool,
}

impl Queue {
    pub(crate) fn put(&self, place: Place, tree: Arc<Tree>, index: u32) {
        let called = place.against_priority != Place::BEHIND_ALL;
        self.places.lock().insert(place, Queued { tree, index, called });
    }

    /// Its call is gone, and the place is kept.
    pub(crate) fn keep(&self, place: Place) {
        if let Some(queued) = self.places.lock().get_mut(&place) {
            queued.called = false;
        }
    }

    /// Shows the places, at most so many, where calls wait.
    pub(crate) fn look(&self, most: usize, see: impl FnMut(Place)) {
        let places = self.places.lock();
        places.iter().take(most).filter(|(_, queued)| queued.called).map(|(place, _)| *place).for_each(see);
    }

    pub(crate) fn remove(&self, place: Place) {
        self.places.lock().remove(&place);
    }

    /// Who has this place.
    pub(crate) fn at(&self, place: Place) -> Option<(Arc<Tree>, u32)> {
        self.places.lock().get(&place).map(|queued| (queued.tree.clone(), queued.index))
    }

    /// The first waiter behind `after`.
    pub(crate) fn next(&self, after: Option<Place>) -> Option<(Place, Arc<Tree>, u32)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let places = self.places.lock();
        places.range((from, Unbounded)).next().map(|(place, queued)| (*place, queued.tree.clone(), queued.index))
    }
}

/// What a resident session holds beside its line.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) handle: Handle,
    pub(crate) create_ms: i64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) stale_timeout_ms: i64,
    pub(crate) chain: [u8; 32],
    pub(crate) checkpoint_tokens: u64,
    pub(crate) state_seq: Seq,
    pub(crate) open_request: Option<Box<RequestMark>>,
    pub(crate) update_request: Option<Box<RequestMark>>,
    pub(crate) attempts: u32,
    /// As SessionFacts has it; mostly empty.
    pub(crate) attempts_ahead: Vec<u32>,
    pub(crate) head_seq: Seq,
    /// How many trajectories were finished, the turns on the live line when the last of them was, and the event that
    /// finished it: the active one's records come after that.
    pub(crate) trajectories: u32,
    pub(crate) trajectory_turns: u32,
    pub(crate) trajectory_seq: Seq,
    /// The latest reward, and the latest InterruptSession with its answer.
    pub(crate) reward: Option<Box<LatestReward>>,
    pub(crate) interrupt_request: Option<Box<InterruptMark>>,
    /// If it was closed and opened again: what it keeps of that.
    pub(crate) reopened: Option<Box<Reopened>>,
    /// Fingerprints of the request_ids of all its records (what began and what ended their turns) and of its
    /// FinishTrajectory ones: a repeat is told from a new call without a read.
    pub(crate) requests: Vec<u64>,
    /// The client's own state after the last commit.
    pub(crate) state: Option<Box<[u8]>>,
    /// The checkpoint, once asked for; one without tokens needs none.
    pub(crate) checkpoint: Option<Box<Checkpoint>>,
}

/// A turn that was rewarded, and its trajectory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RewardedTurn {
    pub(crate) turn: u32,
    pub(crate) trajectory: u32,
}

/// The latest reward, and the latest SetReward that bore a request_id.
#[derive(Debug, Clone, Default)]
pub(crate) struct LatestReward {
    pub(crate) of: RewardedTurn,
    pub(crate) value: f64,
    pub(crate) request: Option<(RequestMark, RewardedTurn)>,
}

/// What a session keeps of the closes that it came back from, and of the restore, as SessionFacts has it.
#[derive(Debug, Clone)]
pub(crate) struct Reopened {
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) requests: Vec<RequestMark>,
    pub(crate) restored: Option<RequestMark>,
}

/// An InterruptSession request, and what the session did and ran then.
#[derive(Debug, Clone)]
pub(crate) struct InterruptMark {
    pub(crate) mark: RequestMark,
    pub(crate) activity: v1::Activity,
    pub(crate) turn: u32,
}

impl Resident {
    /// What it holds in memory; what the residency index charges. Unit: bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let labels: usize = self.labels.iter().map(|(k, v)| k.len() + v.len() + 64).sum();
        let mark = |m: &Option<Box<RequestMark>>| {
            m.as_ref().map_or(0, |m| size_of::<RequestMark>() + m.request_id.len() + m.hash.len())
        };
        let variable = labels
            + mark(&self.open_request)
            + mark(&self.update_request)
            + self.reward.as_ref().map_or(0, |r| {
                size_of::<LatestReward>() + r.request.as_ref().map_or(0, |(m, _)| m.request_id.len() + m.hash.len())
            })
            + self
                .interrupt_request
                .as_ref()
                .map_or(0, |m| size_of::<InterruptMark>() + m.mark.request_id.len() + m.mark.hash.len())
            + self.reopened.as_ref().map_or(0, |r| {
                let of = |m: &RequestMark| size_of::<RequestMark>() + m.request_id.len() + m.hash.len();
                let receipt = |r: &Receipt| size_of::<Receipt>() + r.dump_name.len() + r.request.as_ref().map_or(0, of);
                size_of::<Reopened>()
                    + r.receipts.iter().map(receipt).sum::<usize>()
                    + r.requests.iter().chain(&r.restored).map(of).sum::<usize>()
            })
            + self.requests.capacity() * 8
            + self.attempts_ahead.capacity() * 4
            + self.state.as_ref().map_or(0, |s| s.len())
            + self.checkpoint.as_ref().map_or(0, |c| c.bytes());
        (size_of::<Self>() + variable) as u64
    }

    /// Whether the checkpoint's tokens are at hand.
    pub(crate) fn has_tokens(&self) -> bool {
        self.checkpoint_tokens == 0 || self.checkpoint.is_some()
    }

    /// With what its line has of them.
    pub(crate) fn facts(&self, line: &Line) -> SessionFacts {
        let reward = self.reward.as_deref();
        let reward_of = reward.map(|r| r.of).unwrap_or_default();
        let (reward_request, answered) = reward.and_then(|r| r.request.clone()).unzip();
        let answered = answered.unwrap_or_default();
        SessionFacts {
            create_ms: self.create_ms,
            labels: self.labels.clone(),
            stale_timeout_ms: self.stale_timeout_ms,
            last_outcome: line.outcome as i32,
            chain: if self.chain == crate::chain::GENESIS { Vec::new() } else { self.chain.to_vec() },
            checkpoint_tokens: self.checkpoint_tokens,
            state_seq: self.state_seq as i64,
            open_request: self.open_request.as_deref().cloned(),
            update_request: self.update_request.as_deref().cloned(),
            attempts: self.attempts,
            attempts_ahead: self.attempts_ahead.clone(),
            head_seq: self.head_seq as i64,
            trajectories: self.trajectories,
            trajectory_turns: self.trajectory_turns,
            trajectory_seq: self.trajectory_seq as i64,
            reward_request,
            reward_request_turn: answered.turn,
            reward_request_trajectory: answered.trajectory,
            reward_turn: reward_of.turn,
            reward_trajectory: reward_of.trajectory,
            reward_value: reward.map_or(0.0, |r| r.value),
            interrupt_request: self.interrupt_request.as_ref().map(|m| m.mark.clone()),
            interrupt_activity: self.interrupt_request.as_ref().map_or(0, |m| m.activity as i32),
            interrupt_turn: self.interrupt_request.as_ref().map_or(0, |m| m.turn),
            past_receipts: self.reopened.as_ref().map(|r| r.receipts.clone()).unwrap_or_default(),
            reopen_requests: self.reopened.as_ref().map(|r| r.requests.clone()).unwrap_or_default(),
            restore_request: self.reopened.as_ref().and_then(|r| r.restored.clone()),
            wake_on_completion: line.wakes,
        }
    }

    /// What a session that was never trained on or spoken to is made of, beside what its maker gives.
    pub(crate) fn new(handle: Handle, create_ms: i64) -> Self {
        Resident {
            handle,
            create_ms,
            labels: BTreeMap::new(),
            stale_timeout_ms: 0,
            chain: crate::chain::GENESIS,
            checkpoint_tokens: 0,
            state_seq: 0,
            open_request: None,
            update_request: None,
            attempts: 0,
            attempts_ahead: Vec::new(),
            head_seq: 0,
            trajectories: 0,
            trajectory_turns: 0,
            trajectory_seq: 0,
            reward: None,
            interrupt_request: None,
            reopened: None,
            requests: Vec::new(),
            state: None,
            checkpoint: None,
        }
    }

    /// From the store: its facts; what its records add is put in by the caller.
    pub(crate) fn from_facts(handle: Handle, facts: SessionFacts) -> Self {
        let answered = RewardedTurn { turn: facts.reward_request_turn, trajectory: facts.reward_request_trajectory };
        let reward = (facts.reward_turn > 0 || facts.reward_request.is_some()).then(|| {
            Box::new(LatestReward {
                of: RewardedTurn { turn: facts.reward_turn, trajectory: facts.reward_trajectory },
                value: facts.reward_value,
                request: facts.reward_request.map(|mark| (mark, answered)),
            })
        });
        let interrupt_activity = v1::Activity::try_from(facts.interrupt_activity).unwrap_or(v1::Activity::Idle);
        let interrupt_turn = facts.interrupt_turn;
        let (receipts, requests, restored) = (facts.past_receipts, facts.reopen_requests, facts.restore_request);
        let reopened = (!receipts.is_empty() || !requests.is_empty() || restored.is_some())
            .then(|| Box::new(Reopened { receipts, requests, restored }));
        Resident {
            labels: facts.labels,
            stale_timeout_ms: facts.stale_timeout_ms,
            chain: <[u8; 32]>::try_from(&facts.chain[..]).unwrap_or(crate::chain::GENESIS),
            checkpoint_tokens: facts.checkpoint_tokens,
            state_seq: facts.state_seq as u64,
            open_request: facts.open_request.map(Box::new),
            update_request: facts.update_request.map(Box::new),
            attempts: facts.attempts,
            attempts_ahead: facts.attempts_ahead,
            head_seq: facts.head_seq as u64,
            trajectories: facts.trajectories,
            trajectory_turns: facts.trajectory_turns,
            trajectory_seq: facts.trajectory_seq as u64,
            reward,
            reopened,
            interrupt_request: facts
                .interrupt_request
                .map(|mark| Box::new(InterruptMark { mark, activity: interrupt_activity, turn: interrupt_turn })),
            ..Resident::new(handle, facts.create_ms)
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Loading {
    pub(crate) calls: Vec<Pending>,
    /// A BeginTurn that waited while its session was unloaded: it has its slots, so nobody overtakes it, and gets its
    /// grant when the session is in memory. From here on its turn counts as running (I1).
    pub(crate) granted: Option<Box<Pending>>,
    /// How many batches had been refused when it got them. One more, and what freed its slots may not have happened.
    pub(crate) granted_after: u64,
}

impl Line {
    pub(crate) fn new(uid: Uid, session_id: Arc<str>) -> Self {
        Line {
            uid,
            session_id,
            name: "".into(),
            parent: None,
            depth: 0,
            born: true,
            closed: None,
            head: 0,
            head_version: 0,
            fence: 0,
            provisional: 0,
            last: 0,
            finish_due_ms: 0,
            seq: 0,
            closes: 0,
            outcome: v1::TurnOutcome::None,
            wakes: false,
            owner: owner_of(""),
            lease: None,
            waiter: None,
            resident: None,
            facts: None,
            mail: None,
            mail_from: 0,
            loading: None,
        }
    }

    pub(crate) fn running(&self) -> Option<&Lease> {
        self.lease.as_deref().filter(|l| l.running)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.born && self.closed.is_none()
    }

    /// Which of its lives this is, counted from 1: each ReopenSession begins another. One that has ended is still that.
    pub(crate) fn life(&self) -> u32 {
        self.closes + 1
    }

    /// A waiter whose caller is still there.
    pub(crate) fn waits(&self) -> bool {
        self.waiter.as_ref().is_some_and(|w| w.call.is_some())
    }
}

impl Tree {
    /// Lines cost this much, roughly, in a header. Unit: bytes.
    pub(crate) const LINE_BYTES: u64 = size_of::<Line>() as u64 + 96;

    /// The slot counters that a turn of this line passes, in the one fixed order.
    pub(crate) fn gates(&self, line: &Line) -> ([(&SlotNode, u32); 2], &'static [Gate]) {
        let tree = (&self.children_slots, 1);
        let tenant = (&*self.tenant.slots, 1);
        if line.depth == 0 {
            // The root's place is kept: only the tenant's gate is left. The second element is unused.
            ([tenant, tenant], &[Gate::Tenant])
        } else {
            ([tree, tenant], &[Gate::Tree, Gate::Tenant])
        }
    }

    pub(crate) fn queue(&self, gate: Gate) -> &Queue {
        match gate {
            Gate::Tree => &self.queue,
            Gate::Tenant => &self.tenant.queue,
        }
    }
}

impl TreeState {
    pub(crate) fn line(&self, index: u32) -> Option<&Line> {
        self.lines.get(index as usize).and_then(|l| l.as_deref())
    }

    pub(crate) fn line_mut(&mut self, index: u32) -> Option<&mut Line> {
        self.lines.get_mut(index as usize).and_then(|l| l.as_deref_mut())
    }

    pub(crate) fn add(&mut self, line: Line) -> u32 {
        if let Some(index) = self.free.pop() {
            self.lines[index as usize] = Some(Box::new(line));
            return index;
        }
        // Most trees are one session: no room for more until there are.
        if self.lines.is_empty() {
            self.lines.reserve_exact(1);
        }
        self.lines.push(Some(Box::new(line)));
        (self.lines.len() - 1) as u32
    }

    /// Keeps or forgets the facts of a line. What it is charged for that is the caller's to say.
    pub(crate) fn keep_facts(&mut self, index: u32, facts: Option<Box<[u8]>>) {
        let Some(line) = self.line_mut(index) else { return };
        let new = facts.as_ref().map_or(0, |f| f.len() as u64);
        let old = std::mem::replace(&mut line.facts, facts).map_or(0, |f| f.len() as u64);
        self.facts_bytes = self.facts_bytes + new - old;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Line)> {
        self.lines.iter().enumerate().filter_map(|(i, l)| Some((i as u32, l.as_deref()?)))
    }

    pub(crate) fn path(&self, index: u32) -> String {
        let mut names = Vec::new();
        let mut at = Some(index);
        while let Some(line) = at.and_then(|i| self.line(i)) {
            names.push(if line.parent.is_none() { "root" } else { &*line.name });
            at = line.parent;
        }
        names.iter().rev().fold(String::new(), |path, name| path + "/" + name)
    }

    /// The open descendants of `index`, parents before children, itself first.
    pub(crate) fn subtree(&self, index: u32) -> Vec<u32> {
        let leaf = !self.iter().any(|(_, l)| l.parent == Some(index) && l.closed.is_none());
        if leaf {
            return vec![index];
        }
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (i, line) in self.iter().filter(|(_, l)| l.closed.is_none()) {
            if let Some(parent) = line.parent {
                children.entry(parent).or_default().push(i);
            }
        }
        let mut all = vec![index];
        let mut next = 0;
        while next < all.len() {
            all.extend(children.get(&all[next]).into_iter().flatten());
            next += 1;
        }
        all
    }

    /// Whether the parent of this line has this id; a root's is empty.
    pub(crate) fn below(&self, line: &Line, parent: &str) -> bool {
        line.parent.and_then(|p| self.line(p)).map_or("", |p| &p.session_id) == parent
    }

    pub(crate) fn name_taken(&self, parent: u32, name: &str) -> bool {
        self.iter().any(|(_, l)| l.is_open() && l.parent == Some(parent) && &*l.name == name)
    }

    /// The row of a resident session as it is now.
    pub(crate) fn row(&self, tree: &Tree, index: u32, prev: Seq) -> Option<Row> {
        let line = self.line(index)?;
        let facts = line.resident.as_ref()?.facts(line);
        self.row_of(tree, index, prev, &facts)
    }

    /// The row of a session with these facts.
    pub(crate) fn row_of(&self, tree: &Tree, index: u32, prev: Seq, facts: &SessionFacts) -> Option<Row> {
        let line = self.line(index)?;
        Some(Row {
            uid: line.uid,
            tenant: tree.tenant.name.clone(),
            session_id: line.session_id.clone(),
            root: tree.root,
            parent: line.parent.and_then(|p| self.line(p)).map(|p| p.uid),
            path: if prev == 0 { self.path(index) } else { String::new() },
            depth: line.depth,
            create_ms: facts.create_ms,
            head: line.head,
            head_version: line.head_version,
            fence: line.fence,
            provisional: line.provisional,
            last: line.last,
            running: line.running().is_some(),
            lease: line.lease.as_ref().map(|l| l.encode()),
            facts: facts.encode_to_vec(),
            outcome: line.outcome as i32,
            wakes: line.wakes,
            owner: line.owner.clone(),
            finish_due_ms: line.finish_due_ms,
            stale_ms: if line.depth == 0 { self.stale_ms } else { 0 },
            active_ms: self.active_ms,
            stale_due: if line.depth == 0 { self.stale_due() } else { 0 },
            seq: line.seq,
            prev,
        })
    }

    /// A session of it did something.
    pub(crate) fn touch(&mut self, now: &Moment) {
        self.active_ms = self.active_ms.max(now.mono_ms);
    }

    /// Service time before which it is not stale, as far as is known now; 0: never.
    pub(crate) fn stale_due(&self) -> u64 {
        if self.stale_ms > 0 { (self.active_ms + self.stale_ms as u64).max(1) } else { 0 }
    }
}

/// The name of a host. Most name none: that is one for all.
pub(crate) fn owner_of(name: &str) -> Arc<str> {
    static NOBODY: std::sync::LazyLock<Arc<str>> = std::sync::LazyLock::new(|| "".into());
    if name.is_empty() { NOBODY.clone() } else { name.into() }
}

/// The tenants by name.
pub(crate) type Tenants = RwLock<HashMap<Arc<str>, Arc<Tenant>>>;
