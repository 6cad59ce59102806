//! The engine: every state transition of sessions, turns and trees.
//!
//! Sans-IO: bytes come in, replies, refusals or tickets go out; what must be stored or read leaves as batches and
//! effects, whose results are reported back. Time and randomness come in with each call ([`Moment`]).
//!
//! Locks, outermost first: the world (shared by all but the undoing of lost entries), a tree, then a gate's queue, the
//! journal, or one of the small tables below; two trees are never locked at once. Whatever a transition sets off elsewhere (a waiter of another tree, an eviction, calls that
//! were parked) is noted in [`Work`] and done when the tree's lock is free.

mod access;
mod address;
mod begin;
mod check;
mod close;
mod directory;
mod due;
mod end;
mod ended;
mod events;
mod fork;
mod full;
mod interrupt;
mod keyring;
mod mail;
mod mailbox;
mod measure;
mod open;
mod poll;
mod pool;
mod read;
mod recover;
mod reload;
mod requests;
mod resident;
mod resource;
mod restore;
mod rewind;
mod set_limits;
mod stale;
mod trajectory;
mod tree;
mod wait;
mod watch;

use crate::error::{Reason, Refusal};
use crate::gen_v1 as v1;
use crate::ids::Uid;
use crate::journal::{Appending, Batch, Held, Journal, Op, Seq};
use crate::residency::{Handle, Index};
use crate::slots::SlotNode;
use crate::sync::Padded;
use directory::Directory;
use keyring::{Keyring, Who};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use tree::{Gate, Line, Place, Queue, Tenant, Tenants, TreeState};

pub use access::{Granted, Rule};
pub use address::check_address;
pub use ended::{CleanupStep, DumpMade};
pub use events::{Event, Value};
pub use keyring::{Caller, DEFAULT_TENANT, Keys, MAX_TENANT_KEYS, maker};
pub(crate) use keyring::{KEYS_ROOT, KeyChange};
pub use measure::Distribution;
pub use read::{Dress, RecordRow, SessionView, verify_history};
pub use recover::Appended;
pub use reload::{
    DueSession, Effect, FoundSession, FoundTrajectory, HeaderRow, LoadedSession, MailFound, MailHead, RunnableSession,
    SessionRow, StaleTree, Wanted,
};
pub(crate) use requests::Call;
pub use requests::Method;
pub(crate) use resource::ResourceChange;
pub use resource::{ReleaseStep, ResourceSetup, StoredResource};
pub use restore::{DumpedMail, DumpedRecord, DumpedSession, DumpedTrajectory, RestoreEnd, RestoreStep};
pub(crate) use set_limits::LimitChange;
pub use set_limits::{LimitInForce, LimitSetup};
pub(crate) use tree::Tree;
pub(crate) use watch::Telling;
pub use watch::{Filter, Owned, Told, Watch, Watched};

/// When a call happens, and what it may draw randomness from.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Monotonic service clock, milliseconds. Never goes back.
    pub mono_ms: u64,
    /// Wall clock, milliseconds since 1970. For people and for uids.
    pub wall_ms: i64,
    entropy: [u8; 32],
    drawn: u64,
}

impl Moment {
    /// `entropy` must be unpredictable: leases are made from it.
    pub fn new(mono_ms: u64, wall_ms: i64, entropy: [u8; 32]) -> Self {
        Moment { mono_ms, wall_ms, entropy, drawn: 0 }
    }

    pub(crate) fn draw(&mut self) -> u128 {
        self.drawn += 1;
        let hash = blake3::keyed_hash(&self.entropy, &self.drawn.to_le_bytes());
        u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes"))
    }

    /// Residency counts time in ticks of 100 ms.
    pub(crate) fn tick(&self) -> u32 {
        (self.mono_ms / 100) as u32
    }
}

/// What a call came to.
#[derive(Debug)]
pub enum Outcome {
    /// The encoded reply.
    Reply(Vec<u8>),
    Refused(Refusal),
    /// [`Engine::completed`] yields it later.
    Ticket(u64),
}

/// A call under way, wherever it is parked. Its size shows in what a resident session takes: eight bytes more, and the
/// allocator leaves a hole of 90 beside each (tests/e2e/test_memory.py).
#[derive(Debug)]
pub(crate) struct Pending {
    /// 0 for the engine's own calls: nobody waits for the answer.
    pub(crate) ticket: u64,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) who: Who,
    pub(crate) connection: u64,
    pub(crate) since_ms: u64,
    pub(crate) call: Call,
    /// What the store said of ids that are not in memory: of its own id, this very moment; of its parent's, at some
    /// moment of this call (which is enough to refuse it).
    pub(crate) known: Vec<(Arc<str>, Known)>,
    /// The store holds no record of its request_id, though the fingerprint is known: so it was when this record was the
    /// session's last.
    pub(crate) new_since: Option<Seq>,
    /// The sessions that it named by path: their ids, and the paths. Boxed, because few do and all take the room.
    #[expect(clippy::box_collection)]
    pub(crate) given: Option<Box<Vec<(String, String)>>>,
    /// The place in the queue that it had before it had to be run again.
    pub(crate) arrival: Option<u64>,
    /// It may see the outline of its session, no more.
    pub(crate) outline: bool,
    /// What was read for it alone.
    pub(crate) found: Option<Found>,
    /// Mail that was read for it, and whose.
    pub(crate) mail: Option<Box<(Uid, Vec<MailFound>)>>,
    /// It is the one call that may change ended sessions of this tree, and runs to its end whoever waits for it; or one of
    /// those that copy from it.
    pub(crate) claimed: Option<Uid>,
    /// When it was last run, and for how long it has been parked for reads before that. Unit: milliseconds.
    pub(crate) ran_ms: u64,
    pub(crate) reload_ms: u32,
}

impl Pending {
    /// Whether it runs to its end though nobody waits for its answer any more.
    fn outlives_its_caller(&self) -> bool {
        match self.call {
            Call::Close(_) => true,
            // What is copied only had to stay for as long as it was to be.
            Call::Open(_) => false,
            _ => self.claimed.is_some(),
        }
    }
}

/// What was read of a session for one call alone, never kept in memory.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// The record with this sequence, with its payload: the live provisional.
    Provisional(Seq, Arc<v1::Record>),
    /// The checkpoint that a rewind starts from.
    Base(Arc<rewind::Base>),
    /// At this head_version, the turn of this number is the record with this sequence.
    Turn { head_version: u64, turn: u32, seq: Seq },
    /// A session that ended, and those below it that the same close took down.
    Family(Arc<Vec<SessionRow>>),
    /// What a session begins with that is a fork.
    Forked(Arc<fork::Forked>),
}

/// A session that is not open, as the store tells it to who looks its id up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) uid: Uid,
    /// Of its tree.
    pub(crate) root: Uid,
    /// Unless it is a root.
    pub(crate) parent: Option<Uid>,
    /// Its content is deleted, in part or whole.
    pub(crate) purging: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Absent,
    /// Known, and not open.
    Ended(Past),
    /// Its tree is set aside.
    Quarantined,
}

/// The end of a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ticket: u64,
    pub(crate) result: Result<Vec<u8>, Refusal>,
    /// Not to be given before this entry is durable.
    pub(crate) after: Seq,
    /// The tree it tells of.
    pub(crate) root: Option<Uid>,
}

/// What remains to be done once no tree is locked.
#[derive(Default)]
pub(crate) struct Work {
    calls: VecDeque<Pending>,
    answers: Vec<Answer>,
    /// Gates that something was given back to.
    gates: Vec<(Arc<Tree>, Gate)>,
    /// Grants whose callers were gone before they were made.
    releases: Vec<(Arc<Tree>, u32, u64)>,
    /// Trees with closes that are durable already.
    cleanups: Vec<(Arc<Tree>, Vec<u32>)>,
    /// Changes of resources that are durable already.
    resources: Vec<resource::ResourceChange>,
    /// Something was made resident or became evictable.
    evict: bool,
    /// There was more to evict than one step does.
    crowded: bool,
    /// The ticket of the call being made, and its result if it came at once.
    direct: Option<u64>,
    direct_result: Option<Result<Vec<u8>, Refusal>>,
}

/// Where the caller of a ticket stands, for its cancellation.
#[derive(Debug)]
enum TicketState {
    Open,
    Waiting(Arc<Tree>, u32, Place),
    /// It waits for a place in a pool.
    Pooled,
    /// It waits for mail.
    Mailbox(Arc<Tree>, u32),
    /// It waits for a session that is runnable.
    Polling(Arc<Tenant>),
    /// A grant was made for it and the answer is not yet with the transport.
    Granted(Arc<Tree>, u32, u64),
}

/// When, and a number that makes it unique.
pub(crate) type TimerKey = (u64, u64);

#[derive(Debug, Clone)]
enum Timer {
    Lease(Arc<Tree>, u32, u64),
    Wait(Arc<Tree>, u32, Place),
    /// The end of a WaitMail, by its ticket.
    Mail(Arc<Tree>, u32, u64),
}

/// How much room the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Space {
    Ok = 0,
    /// The reserve is used: what ends work goes on, new work is refused.
    Low = 1,
    /// Nothing can be written.
    Full = 2,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// Counts that only grow while the server runs.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }
        impl Counters {
            fn list(&self) -> Vec<(&'static str, i64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed) as i64),)*]
            }
        }
    };
}

counters! {
    turns_begun, turns_committed, turns_rewound, turns_aborted, turns_expired, turns_taken_over, turns_interrupted,
    turns_released, trajectories_finished, trajectories_acknowledged, sessions_opened, sessions_closed, sessions_reopened,
    sessions_dumped, sessions_purged, sessions_restored, sessions_forked, trees_swept, cleanup_failures,
    evictions, header_evictions, reloads, header_loads, load_failures, refusals, batches_stored, entries_stored, batches_refused,
    messages_sent, messages_delivered, messages_consumed, messages_expired, messages_dead,
    resources_attached, resources_released, releases_failed, pool_evictions,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The engine of one shard. All methods may be called from any thread.
pub struct Engine {
    limits: set_limits::InForce,
    hash_seed: u64,
    tenants: Tenants,
    journal: Journal,
    residents: Index,
    /// The headers that may go: those of trees without a resident, running, waiting or loading session.
    headers: Index,
    header_count: AtomicU64,
    header_bytes: AtomicU64,
    /// What a residency entry's tag leads to.
    owners: Mutex<slab::Slab<(Arc<Tree>, u32)>>,
    tickets: Mutex<HashMap<u64, TicketState, ahash::RandomState>>,
    next_ticket: AtomicU64,
    done: Mutex<Vec<(u64, Result<Vec<u8>, Refusal>, TicketState)>>,
    effects: Mutex<reload::Effects>,
    timers: Mutex<BTreeMap<TimerKey, Timer>>,
    next_timer: AtomicU64,
    waiting: Mutex<wait::Waiting>,
    /// Held shared by whatever makes a transition, and alone while lost entries are undone: nothing is decided by a tree
    /// whose last entries were lost and which is still to be dropped.
    world: RwLock<()>,
    recovery: Mutex<recover::Recovery>,
    /// How often entries were lost. What a call decided before and holds across a wait may not have happened.
    losses: AtomicU64,
    recovering: AtomicBool,
    space: AtomicU8,
    draining: AtomicBool,
    /// A slot was given back while nothing new could begin: who waits for it is still to be looked at.
    stalled: AtomicBool,
    running: AtomicI64,
    counters: Counters,
    measures: measure::Measures,
    events: Mutex<events::Events>,
    watches: watch::Watches,
    logging: AtomicBool,
    due: Mutex<due::Due>,
    keys: Keyring,
    stale: Mutex<stale::Sweeper>,
    claims: ended::Claims,
    resources: resource::Resources,
    /// Whether there is a dump target: ended sessions are SEALED until they are dumped.
    dumps: AtomicBool,
    /// Grows with every close that is durable: whoever cleans up looks again.
    ended: AtomicU64,
    /// Bytes of the store in use, as its handler finds them.
    store_bytes: AtomicU64,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over a store whose highest journal sequence is `last_seq`. `hash_seed` keys hash tables.
    pub fn new(limits: impl Into<LimitSetup>, last_seq: Seq, hash_seed: u64) -> Self {
        let limits: LimitSetup = limits.into();
        // Room for all that residency may hold above its cap: running, loading and not yet durable sessions are bounded
        // by the tenant cap, the waiters and the journal (an entry is charged at least 256 bytes), each as high as it
        // can be set. Memory is committed as it is used. The ring's horizon (in ticks) is a week.
        let most = |name| limits.most(name);
        let slack = most("max_turns_per_tenant") + most("max_waiters") + most("journal_queue_bytes") / 256 + 65_536;
        let capacity = (most("max_resident_sessions") + slack) as usize;
        let header_capacity = (most("max_resident_bytes") / Tree::LINE_BYTES + slack).min(1 << 27) as usize;
        const WEEK_TICKS: u32 = 7 * 24 * 3600 * 10;
        let limits = set_limits::InForce::new(limits);
        Engine {
            journal: Journal::new(last_seq, limits.journal_queue_bytes()),
            residents: Index::by_handle(capacity, WEEK_TICKS),
            headers: Index::by_handle(header_capacity, WEEK_TICKS),
            header_count: AtomicU64::new(0),
            header_bytes: AtomicU64::new(0),
            owners: Mutex::default(),
            tenants: Tenants::default(),
            tickets: Mutex::new(HashMap::with_hasher(ahash::RandomState::with_seeds(hash_seed, 1, 2, 3))),
            next_ticket: AtomicU64::new(1),
            done: Mutex::default(),
            effects: Mutex::default(),
            timers: Mutex::default(),
            next_timer: AtomicU64::new(0),
            waiting: Mutex::default(),
            world: RwLock::new(()),
            recovery: Mutex::default(),
            losses: AtomicU64::new(0),
            recovering: AtomicBool::new(false),
            space: AtomicU8::new(Space::Ok as u8),
            draining: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            running: AtomicI64::new(0),
            counters: Counters::default(),
            measures: measure::Measures::default(),
            events: Mutex::default(),
            watches: watch::Watches::default(),
            logging: AtomicBool::new(false),
            due: Mutex::default(),
            keys: Keyring::new(Keys::default()),
            stale: Mutex::default(),
            claims: ended::Claims::default(),
            resources: resource::Resources::default(),
            dumps: AtomicBool::new(false),
            ended: AtomicU64::new(0),
            store_bytes: AtomicU64::new(0),
            limits,
            hash_seed,
        }
    }

    /// Runs one RPC. `connection` tells connections apart; only waiting calls are counted by it.
    pub fn call(&self, method: Method, request: &[u8], caller: &Caller<'_>, connection: u64, now: Moment) -> Outcome {
        let accepted = self.keys.authenticate(caller).and_then(|(tenant, who)| {
            Rule::admits(method.rule(), who.kind)?;
            let call = Call::parse(method, request, &tenant, who.session.as_deref(), &self.limits)?;
            Ok((call, tenant, who))
        });
        let (call, tenant, who) = match accepted {
            Ok(accepted) => accepted,
            Err(refusal) => {
                self.refused(&refusal);
                return Outcome::Refused(refusal);
            }
        };
        self.start(call, &tenant, who, connection, now)
    }

    /// Runs a call that was accepted, or one of the server's own.
    fn start(&self, call: Call, tenant: &str, who: Who, connection: u64, mut now: Moment) -> Outcome {
        let _going = self.world.read();
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        self.tickets.lock().insert(ticket, TicketState::Open);
        let mut work = Work { direct: Some(ticket), ..Work::default() };
        let pending = Pending { who, ..self.pending(ticket, self.tenant(tenant), connection, call, &now) };
        work.calls.push_back(pending);
        self.finish(&mut work, &mut now);
        match work.direct_result {
            Some(Ok(reply)) => Outcome::Reply(reply),
            Some(Err(refusal)) => Outcome::Refused(refusal),
            None => Outcome::Ticket(ticket),
        }
    }

    /// Calls that ended since the last time.
    pub fn completed(&self) -> Vec<(u64, Result<Vec<u8>, Refusal>)> {
        let done = std::mem::take(&mut *self.done.lock());
        done.into_iter().map(|(ticket, result, _)| (ticket, result)).collect()
    }

    /// Whether [`Engine::completed`] has something.
    pub fn has_completed(&self) -> bool {
        !self.done.lock().is_empty()
    }

    /// The caller of `ticket` is gone. A wait leaves its queue (or keeps its place for its repeat), a grant not yet
    /// answered is released; a journaled entry is never undone.
    pub fn cancel(&self, ticket: u64, mut now: Moment) {
        let _going = self.world.read();
        let state = self.tickets.lock().remove(&ticket).or_else(|| {
            // It has ended, and nobody has fetched that yet.
            let mut done = self.done.lock();
            let at = done.iter().position(|(t, ..)| *t == ticket)?;
            Some(done.swap_remove(at).2)
        });
        let mut work = Work::default();
        let Some(state) = state else { return };
        match state {
            TicketState::Open => {}
            TicketState::Waiting(tree, index, place) => self.cancel_wait(&tree, index, place, &mut work, &now),
            TicketState::Pooled => self.leave_pool(ticket),
            TicketState::Mailbox(tree, index) => {
                self.end_wait_for_mail(&tree, index, ticket, false, &mut work, &now);
            }
            TicketState::Polling(tenant) => self.cancel_poll(&tenant, ticket),
            TicketState::Granted(tree, index, fence) => self.release_grant(&tree, index, fence, &mut work, &now),
        }
        self.finish(&mut work, &mut now);
    }

    /// The reply to `request` could not be written. A grant in it is released at once.
    pub fn undelivered(&self, method: Method, request: &[u8], reply: &[u8], caller: &Caller<'_>, mut now: Moment) {
        let _going = self.world.read();
        let lease = match method {
            Method::BeginTurn => v1::BeginTurnResponse::decode(reply).ok().and_then(|r| r.grant),
            Method::CommitTurn => v1::CommitTurnResponse::decode(reply).ok().and_then(|r| r.next),
            Method::PollTurn => v1::PollTurnResponse::decode(reply).ok().and_then(|r| r.grant),
            // (A repeated one counts as an answer of its own, see `Lease::answers`.)
            _ => None,
        };
        let lease = lease.and_then(|g| crate::ids::LeaseToken::decode(&g.lease).ok());
        let session_id = match method {
            Method::BeginTurn => v1::BeginTurnRequest::decode(request).ok().map(|r| r.session_id),
            Method::PollTurn => v1::PollTurnResponse::decode(reply).ok().map(|r| r.session_id),
            _ => v1::CommitTurnRequest::decode(request).ok().map(|r| r.session_id),
        };
        let (Some(lease), Some(session_id)) = (lease, session_id) else { return };
        let Some(tenant) = self.keys.tenant_of(caller) else { return };
        let own = self.keys.authenticate(caller).ok().and_then(|(_, who)| who.session);
        let Some((tree, index)) = self.in_memory(&self.tenant(&tenant), own.as_deref(), &session_id) else { return };
        if tree.state.lock().line(index).is_none_or(|line| line.uid != lease.uid) {
            return;
        }
        let mut work = Work::default();
        self.release_grant(&tree, index, lease.fence, &mut work, &now);
        self.finish(&mut work, &mut now);
    }

    /// Does what is due: leases, waits, evictions. Returns the milliseconds until something is due again, at most 100.
    pub fn tick(&self, mut now: Moment) -> u64 {
        /// Timers handled in one call: the rest follows in the next, so that no call is long.
        const AT_ONCE: usize = 256;
        let _going = self.world.read();
        let mut work = Work { evict: true, ..Work::default() };
        let mut next = 100;
        let due: Vec<Timer> = {
            let mut timers = self.timers.lock();
            let later = timers.split_off(&(now.mono_ms + 1, 0));
            let mut due = std::mem::replace(&mut *timers, later);
            if due.len() > AT_ONCE {
                let key = *due.keys().nth(AT_ONCE).expect("there are more than that");
                timers.extend(due.split_off(&key));
            }
            if let Some(((at, _), _)) = timers.first_key_value() {
                next = at.saturating_sub(now.mono_ms).clamp(1, 100);
            }
            due.into_values().collect()
        };
        for timer in due {
            match timer {
                Timer::Lease(tree, index, fence) => self.lease_due(&tree, index, fence, &mut work, &now),
                Timer::Wait(tree, index, place) => self.wait_due(&tree, index, place, &mut work, &now),
                Timer::Mail(tree, index, ticket) => {
                    self.end_wait_for_mail(&tree, index, ticket, true, &mut work, &now);
                }
            }
        }
        self.resume_waits(&mut work, &now);
        self.look_for_due(&now);
        self.look_for_stale(&now);
        self.look_at_pools(&mut work, &now);
        self.look_at_polls(false, &mut work, &now);
        self.residents.maintain(256, now.tick());
        self.headers.maintain(256, now.tick());
        self.finish(&mut work, &mut now);
        // One step of eviction is bounded; while more is to go, the next follows soon.
        if work.crowded { 1 } else { next }
    }

    /// The next batch to store, if none is in flight.
    pub fn take_batch(&self) -> Option<Batch> {
        self.journal.take(self.limits.max_batch_entries() as usize)
    }

    /// Whether entries wait to be taken.
    pub fn has_entries(&self) -> bool {
        self.journal.has_queue()
    }

    /// Entries not yet durable.
    pub fn backlog(&self) -> u64 {
        self.journal.backlog().0
    }

    /// For how long the oldest of them has waited. Unit: milliseconds.
    pub fn journal_lag(&self, now: &Moment) -> u64 {
        self.journal.lag(now.mono_ms)
    }

    /// How much room the store has, as its handler finds it.
    pub fn set_space(&self, space: Space) {
        self.space.store(space as u8, Ordering::Release);
    }

    pub(crate) fn space(&self) -> Space {
        match self.space.load(Ordering::Acquire) {
            0 => Space::Ok,
            1 => Space::Low,
            _ => Space::Full,
        }
    }

    /// How many bytes of the store are in use, as its handler finds them.
    pub fn set_store_bytes(&self, bytes: u64) {
        self.store_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether there is a dump target.
    pub fn set_dumps(&self, on: bool) {
        self.dumps.store(on, Ordering::Relaxed);
    }

    /// From now on turns are not begun and waits end; what runs may end.
    pub fn begin_drain(&self, mut now: Moment) {
        let _going = self.world.read();
        self.draining.store(true, Ordering::Release);
        let mut work = Work::default();
        self.end_all_waits(&mut work, &now);
        self.wake_pools(|_| true, &mut work);
        self.end_waits_for_mail(&mut work, &now);
        self.look_at_polls(true, &mut work, &now);
        self.finish(&mut work, &mut now);
    }

    /// Every entry is durable and no call is open.
    pub fn flushed(&self) -> bool {
        self.journal.backlog().0 == 0 && self.tickets.lock().is_empty()
    }

    /// Counters and gauges by name.
    pub fn stats(&self) -> Vec<(&'static str, i64)> {
        let mut stats = self.counters.list();
        let (entries, bytes) = self.journal.backlog();
        let slots: u32 = self.tenants.read().values().map(|t| t.slots.used()).sum();
        let quarantined = self.recovery.lock().quarantined.len();
        stats.extend([
            ("slots_held", i64::from(slots)),
            ("turns_running", self.running.load(Ordering::Relaxed)),
            ("waiting", self.waiting.lock().total() as i64),
            ("resident_sessions", self.residents.len() as i64),
            ("resident_bytes", self.memory() as i64),
            ("tree_headers", self.header_count.load(Ordering::Relaxed) as i64),
            ("journal_entries", entries as i64),
            ("journal_bytes", bytes as i64),
            ("api_keys", self.keys.active() as i64),
            ("store_low", i64::from(self.space() != Space::Ok)),
            ("quarantined_trees", quarantined as i64),
            ("watch_events", self.watches.events() as i64),
            ("calls_in_flight", self.tickets.lock().len() as i64),
        ]);
        stats.extend(self.resources.stats());
        stats
    }

    // ---- inside

    fn pending(&self, ticket: u64, tenant: Arc<Tenant>, connection: u64, call: Call, now: &Moment) -> Pending {
        Pending {
            ticket,
            tenant,
            who: Who::ADMIN,
            connection,
            since_ms: now.mono_ms,
            call,
            known: Vec::new(),
            new_since: None,
            given: None,
            arrival: None,
            outline: false,
            found: None,
            mail: None,
            claimed: None,
            ran_ms: now.mono_ms,
            reload_ms: 0,
        }
    }

    pub(crate) fn tenant(&self, name: &str) -> Arc<Tenant> {
        if let Some(tenant) = self.tenants.read().get(name) {
            return tenant.clone();
        }
        let mut tenants = self.tenants.write();
        let name: Arc<str> = name.into();
        let new = || {
            Arc::new(Tenant {
                name: name.clone(),
                slots: Padded::new(SlotNode::new(self.limits.max_turns_per_tenant() as u32)),
                queue: Queue::default(),
                turns: full::Turns::default(),
                polls: poll::Polls::default(),
                directory: Directory::new(self.hash_seed),
            })
        };
        tenants.entry(name.clone()).or_insert_with(new).clone()
    }

    /// Does all the work there is, in an order that cannot recurse.
    fn finish(&self, work: &mut Work, now: &mut Moment) {
        loop {
            if let Some(answer) = work.answers.pop() {
                self.answer(answer, work);
            } else if let Some(mut call) = work.calls.pop_front() {
                if call.ticket == 0 || call.outlives_its_caller() || self.tickets.lock().contains_key(&call.ticket) {
                    self.run(call, work, now);
                } else {
                    self.unclaim_call(&mut call, work);
                }
            } else if let Some((tree, gate)) = work.gates.pop() {
                self.pump(&tree, gate, work, now);
            } else if let Some((tree, index, fence)) = work.releases.pop() {
                self.release_grant(&tree, index, fence, work, now);
            } else if let Some((tree, closed)) = work.cleanups.pop() {
                self.clean_up(&tree, closed, now);
            } else if let Some(change) = work.resources.pop() {
                self.resource_changed(change, work);
            } else if work.evict {
                work.evict = false;
                work.crowded = self.evict(now);
            } else {
                return;
            }
        }
    }

    fn run(&self, mut call: Pending, work: &mut Work, now: &mut Moment) {
        // Whatever it was parked for since it last ran was a read.
        call.reload_ms += now.mono_ms.saturating_sub(call.ran_ms) as u32;
        call.ran_ms = now.mono_ms;
        let Some(call) = self.within(call, work) else { return };
        match &call.call {
            Call::Get(_) => return self.get_session(call, work),
            Call::Renew(_) => return self.renew(call, work, now),
            Call::Checkpoint(_) => return self.get_checkpoint(call, work),
            Call::ListKeys(_) => return self.list_keys(call, work),
            Call::WaitMail(_) => return self.wait_mail(call, work, now),
            _ => {}
        }
        if let Err(refusal) = self.admit(&call.call, now) {
            if matches!(call.call, Call::Poke { .. }) {
                return self.stop_poking(&call.tenant, now);
            }
            return self.refuse_call(call, refusal, work);
        }
        match &call.call {
            Call::Open(_) => self.open_session(call, work, now),
            Call::Update(_) => self.update_session(call, work, now),
            Call::Close(_) => self.close_session(call, work, now),
            // What it was to begin may have changed under it.
            Call::Begin(begin) if begin.polled.is_some() => self.poll_turn(poll::polls(call), work, now),
            Call::Begin(_) => self.begin_turn(call, work, now),
            Call::Poll(_) => self.poll_turn(call, work, now),
            Call::Poke { .. } => self.poked(call, work, now),
            Call::Send(_) => self.send_message(call, work, now),
            Call::End(_) | Call::Expire { .. } => self.end_turn(call, work, now),
            Call::Interrupt(_) => self.interrupt_session(call, work, now),
            Call::Reward(_) => self.set_reward(call, work, now),
            Call::Finish(_) => self.finish_trajectory(call, work, now),
            Call::FinishDue(_) => self.finish_due(call, work, now),
            Call::Ack(_) => self.ack_trajectories(call, work),
            Call::CreateKey(_) => self.create_key(call, work, now),
            Call::RevokeKey(_) => self.revoke_key(call, work, now),
            Call::SetLimits(_) => self.set_limits(call, work, now),
            Call::Reopen(_) => self.reopen_session(call, work, now),
            Call::Step(_) => self.cleanup(call),
            Call::Restore(_) => self.restore(call, work, now),
            Call::Sweep(_) => self.sweep(call, work, now),
            Call::Attach(_) => self.attach_resource(call, work, now),
            Call::Detach(_) => self.detach_resource(call, work, now),
            Call::Release(_) => self.release_step(call, work, now),
            Call::Get(_) | Call::Renew(_) | Call::Checkpoint(_) | Call::ListKeys(_) | Call::WaitMail(_) => {}
        }
    }

    /// Whether a call may go on at all.
    fn admit(&self, call: &Call, now: &Moment) -> Result<(), Refusal> {
        match call {
            Call::Open(_)
            | Call::Begin(_)
            | Call::Reopen(_)
            | Call::Restore(_)
            | Call::Send(_)
            | Call::Poll(_)
            | Call::Poke { .. } => self.admit_begin(now),
            Call::Step(step) if step.grows() => self.admit_begin(now),
            Call::Attach(attach) if attach.name.is_none() => self.admit_begin(now),
            _ => self.admit_change(),
        }
    }

    /// Whether a turn may begin or a session be made.
    fn admit_begin(&self, now: &Moment) -> Result<(), Refusal> {
        self.admit_change()?;
        self.admit_new(now)
    }

    /// Whether anything may be changed.
    fn admit_change(&self) -> Result<(), Refusal> {
        if self.recovering.load(Ordering::Acquire) {
            return Err(Refusal::new(Reason::Recovering, "the server re-reads its state; try again").retry_after(100));
        }
        if self.space() == Space::Full {
            return Err(Refusal::new(Reason::StoreFull, "the disk is full; nothing can be written").retry_after(5_000));
        }
        if self.journal.full() {
            return Err(Refusal::new(Reason::JournalFull, "the disk is far behind; try again").retry_after(500));
        }
        Ok(())
    }

    /// Whether new work may begin.
    fn admit_new(&self, now: &Moment) -> Result<(), Refusal> {
        if self.draining.load(Ordering::Acquire) {
            return Err(shutting_down());
        }
        if self.space() != Space::Ok {
            let message = "the disk is almost full; new work is refused";
            return Err(Refusal::new(Reason::StoreLow, message).retry_after(5_000));
        }
        if self.journal.behind() {
            return Err(Refusal::new(Reason::JournalBehind, "the disk is behind; try again").retry_after(200));
        }
        // A queue that is short in bytes may be long in time: who waits in it would rather have gone elsewhere.
        let (lag, limit) = (self.journal.lag(now.mono_ms), self.limits.max_journal_lag_ms());
        if limit > 0 && lag > limit {
            let refusal = Refusal::new(Reason::JournalBehind, format!("the disk is {lag} ms behind; try again"));
            return Err(refusal.with("lag_ms", lag).with("limit_ms", limit).retry_after(limit));
        }
        Ok(())
    }

    /// A refusal that tells of no tree.
    fn refuse(&self, ticket: u64, refusal: Refusal, work: &mut Work) {
        work.answers.push(Answer { ticket, result: Err(refusal), after: 0, root: None });
    }

    /// An answer about a tree: it waits until what it may reveal is durable.
    fn reply(&self, ticket: u64, result: Result<Vec<u8>, Refusal>, tree: &Tree, state: &TreeState, work: &mut Work) {
        work.answers.push(Answer { ticket, result, after: state.last_seq, root: Some(tree.root) });
    }

    fn answer(&self, answer: Answer, work: &mut Work) {
        if answer.ticket == 0 {
            return;
        }
        if let Some(Held::Answer(answer)) = self.journal.hold(answer.after, Held::Answer(answer)) {
            self.deliver(answer.ticket, answer.result, work);
        }
    }

    fn deliver(&self, ticket: u64, result: Result<Vec<u8>, Refusal>, work: &mut Work) {
        let Some(state) = self.tickets.lock().remove(&ticket) else {
            // Cancelled in the meantime.
            return;
        };
        if let Err(refusal) = &result {
            self.refused(refusal);
        }
        if work.direct == Some(ticket) {
            work.direct_result = Some(result);
        } else {
            self.done.lock().push((ticket, result, state));
        }
    }

    /// Appends one entry: `change` alters the (resident) line at `index`, whose row is written, then `tail` may add
    /// what follows from it. The session stays in memory until the entry is durable. The tree is locked.
    fn append_with<T>(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        now: &Moment,
        change: impl FnOnce(&mut Appending<'_>, &mut Line, &mut Vec<Op>),
        tail: impl FnOnce(&mut Appending<'_>, &mut TreeState, &mut Vec<Op>) -> T,
    ) -> T {
        let pinned = self.pin(tree, state, index, now);
        let mut appending = self.journal.append();
        let (mut ops, mut opened) = (Vec::with_capacity(3), false);
        if let Some(line) = state.line_mut(index) {
            change(&mut appending, line, &mut ops);
            let prev = std::mem::replace(&mut line.seq, appending.seq);
            opened = prev == 0;
            if let Some(row) = state.row(tree, index, prev) {
                ops.push(Op::Upsert(Box::new(row)));
            }
        }
        let out = tail(&mut appending, state, &mut ops);
        state.last_seq = appending.seq;
        appending.push(tree, ops, pinned.into_iter().collect(), now.mono_ms);
        self.charge(state, index);
        if opened {
            self.tell_opened(tree, state, index, now);
        }
        out
    }

    fn append(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        now: &Moment,
        change: impl FnOnce(&mut Appending<'_>, &mut Line, &mut Vec<Op>),
    ) {
        self.append_with(tree, state, index, now, change, |_, _, _| ());
    }

    /// Appends an entry that is of a tree and changes nothing that is in memory of it: a tree to carry it, no more.
    fn append_apart(
        &self,
        appending: Appending<'_>,
        (root, tenant): (Uid, Arc<Tenant>),
        ops: Vec<Op>,
        now: &Moment,
    ) -> Seq {
        appending.push(&Arc::new(self.new_tree(root, tenant)), ops, Vec::new(), now.mono_ms)
    }

    /// Sets a timer; the key takes it back.
    fn timer(&self, at_ms: u64, timer: Timer) -> TimerKey {
        let key = (at_ms, self.next_timer.fetch_add(1, Ordering::Relaxed));
        self.timers.lock().insert(key, timer);
        key
    }

    fn untimer(&self, key: TimerKey) {
        self.timers.lock().remove(&key);
    }

    /// Gives back what a turn of a line held, once, after its end was journaled.
    fn free_slots(&self, tree: &Arc<Tree>, state: &TreeState, index: u32, work: &mut Work, now: &Moment) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        let Some(line) = state.line(index) else { return };
        self.resources.turn(line.uid, false, now);
        tree.tenant.turns.ended(line.uid);
        tree.tenant.polls.ended(line.uid);
        if line.depth > 0 {
            tree.children_slots.release(1);
            work.gates.push((tree.clone(), Gate::Tree));
        }
        tree.tenant.slots.release(1);
        // Looked at first: who waits at the tenant's gate, in whatever tree, goes before those of this tree alone.
        work.gates.push((tree.clone(), Gate::Tenant));
    }

    fn unpin(&self, handles: Vec<Handle>, now: &Moment) {
        for handle in handles {
            self.residents.unpin(handle, now.tick());
        }
    }
}

/// The refusal of what a server that stops does not take.
pub(crate) fn shutting_down() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the server is stopping").retry_after(1_000)
}

/// The refusal of an id that nobody knows, or of a path.
pub(crate) fn not_found(session_id: &str) -> Refusal {
    let message = format!("no session {:?} is known", short(session_id));
    Refusal::new(Reason::SessionNotFound, message).with("session_id", session_id)
}

/// An id whole; a long path so that message and metadata together fit the details of an error.
pub(crate) fn short(address: &str) -> Cow<'_, str> {
    match address.get(..256) {
        Some(start) if address.len() > 256 => format!("{start}...").into(),
        _ => address.into(),
    }
}

/// The refusal of a session that ended.
pub(crate) fn closed(session_id: &str) -> Refusal {
    Refusal::new(Reason::SessionClosed, format!("session {session_id:?} has ended")).with("session_id", session_id)
}

/// The refusal of a session whose tree is set aside.
pub(crate) fn quarantined(session_id: &str) -> Refusal {
    Refusal::new(
        Reason::TreeQuarantined,
        format!("the tree of session {session_id:?} is set aside: the store refused its entries"),
    )
    .with("session_id", session_id)
}

pub(crate) fn duration(ms: u64) -> prost_types::Duration {
    prost_types::Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}

pub(crate) fn timestamp(wall_ms: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: wall_ms.div_euclid(1000), nanos: wall_ms.rem_euclid(1000) as i32 * 1_000_000 }
}

/// A request_id and the hash of its request, as they are stored.
pub fn decode_mark(bytes: &[u8]) -> Option<crate::gen_store::RequestMark> {
    Message::decode(bytes).ok()
}

/// Encodes a message, for who has no use for prost otherwise.
pub fn encode(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}
