//! What the engine asks of the store, and what it makes of the answers.
//!
//! An id that is not in memory is looked up once, however many calls wait for it; so is a session's state. A read
//! starts when all entries of its tree are durable. Calls that waited run again from their start: whatever happened
//! meanwhile, they see it.

use super::ended::is_purging;
use super::tree::{Lease, Line, Loading, Resident, Tenant, Tree, TreeState};
use super::{Engine, Found, Known, Moment, Past, Pending, RecordRow, Timer, Work, count};
use crate::chain;
use crate::checkpoint::Checkpoint;
use crate::error::{Reason, Refusal};
use crate::gen_store::{EndedBy, RecordMeta, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{Asked, TrajectoryId, Uid, fingerprint};
use crate::journal::{Held, Seq};
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A read that the engine asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Look an id up; if it is open, read its tree's header.
    Find { id: u64, tenant: Arc<str>, session_id: Arc<str> },
    /// Read a tree's header.
    Header { id: u64, root: Uid },
    /// Read a session and its records.
    Session { id: u64, uid: Uid, wanted: Wanted },
    /// Read one session row.
    Read { id: u64, tenant: Arc<str>, session_id: Arc<str> },
    /// Look finished trajectories up.
    Trajectories { id: u64, wanted: Vec<TrajectoryId> },
    /// At most `limit` open sessions whose trajectory is due by `until_ms`, in order of (time, uid), behind `after`.
    Due { id: u64, until_ms: i64, after: Option<DueSession>, limit: usize },
    /// At most `limit` trees that may be stale by this service time, in order of (time, uid), behind `after`.
    Stale { id: u64, until_ms: u64, after: Option<StaleTree>, limit: usize },
    /// Read a session, whatever its state, and those below it that are not open, parents before children.
    Family { id: u64, uid: Uid },
    /// Read messages in full.
    Mail { id: u64, seqs: Vec<Seq> },
    /// Look for the message to this session that bears this request.
    Sent { id: u64, recipient: Uid, request: String },
    /// At most `limit` queued messages of a tenant that make their sessions runnable by then, in order of (time,
    /// sequence), behind `after`.
    Runnable { id: u64, tenant: Arc<str>, until_ms: i64, after: Option<RunnableSession>, limit: usize },
}

impl Effect {
    /// What its answer names.
    pub fn id(&self) -> u64 {
        match self {
            Effect::Find { id, .. }
            | Effect::Header { id, .. }
            | Effect::Session { id, .. }
            | Effect::Read { id, .. }
            | Effect::Trajectories { id, .. }
            | Effect::Due { id, .. }
            | Effect::Stale { id, .. }
            | Effect::Family { id, .. }
            | Effect::Mail { id, .. }
            | Effect::Sent { id, .. }
            | Effect::Runnable { id, .. } => *id,
        }
    }
}

/// What a read of a session brings beside its row and its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The records' tokens.
    pub tokens: bool,
    /// The live provisional in full.
    pub provisional: bool,
    /// The client's state after this turn, instead of the newest.
    pub state_turn: Option<u32>,
    /// How much the COMMITTED records up to that turn take.
    pub size: bool,
}

/// A session whose trajectory is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueSession {
    pub due_ms: i64,
    pub uid: Uid,
    pub tenant: String,
    pub session_id: String,
}

/// The root of a tree that may be stale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleTree {
    pub due_ms: u64,
    pub root: Uid,
    pub tenant: String,
    pub session_id: String,
}

/// A message that makes its session runnable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnableSession {
    pub due_ms: i64,
    pub seq: Seq,
    pub session_id: String,
}

/// A message in a mailbox, as its tree's header in the store holds it: QUEUED or DELIVERED.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailHead {
    pub seq: Seq,
    pub state: i32,
    pub due: i64,
    pub expire: i64,
    pub deliveries: u32,
    pub fence: u64,
    /// Bytes of its content.
    pub size: u64,
    /// Whether a child's end told it, for which the mailbox's bounds do not hold.
    pub outcome: bool,
}

/// A message in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailFound {
    pub seq: Seq,
    pub id: Uid,
    pub kind: i32,
    pub deliveries: u32,
    pub create_ms: i64,
    pub expire: i64,
    pub meta: Vec<u8>,
    pub content: Option<Vec<u8>>,
}

/// A finished trajectory as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTrajectory {
    pub tenant: String,
    pub root: Uid,
    pub root_session_id: String,
    pub acknowledged: bool,
}

/// An OPEN session as its tree's header in the store holds it.
#[derive(Clone, Debug)]
pub struct HeaderRow {
    pub uid: Uid,
    pub session_id: String,
    pub parent: Option<Uid>,
    pub path: String,
    pub depth: u32,
    pub head: u32,
    pub head_version: u64,
    pub fence: u64,
    pub provisional: Seq,
    pub last: Seq,
    pub running: bool,
    pub lease: Option<Vec<u8>>,
    pub finish_due_ms: i64,
    pub closes: u32,
    pub stale_ms: i64,
    pub active_ms: u64,
    pub stale_due: u64,
    /// If `finish_due_ms` is not 0.
    pub facts: Option<Vec<u8>>,
    pub seq: Seq,
    pub outcome: i32,
    pub wakes: bool,
    pub owner: String,
    /// In order of sequence.
    pub mail: Vec<MailHead>,
}

/// Where a session id leads in the store.
#[derive(Clone, Debug)]
pub struct FoundSession {
    pub uid: Uid,
    pub root: Uid,
    /// `None` for a root.
    pub parent: Option<Uid>,
    pub state: i32,
    /// Of one that is not open.
    pub cleanup: Option<Vec<u8>>,
    pub rows: Vec<HeaderRow>,
}

/// One session row in full.
#[derive(Clone, Debug)]
pub struct SessionRow {
    pub uid: Uid,
    pub session_id: String,
    pub root: Uid,
    pub parent_session_id: String,
    pub root_session_id: String,
    pub path: String,
    pub depth: u32,
    pub create_ms: i64,
    pub state: i32,
    pub head: u32,
    pub head_version: u64,
    pub fence: u64,
    pub provisional: Seq,
    pub last: Seq,
    pub running: bool,
    pub lease: Option<Vec<u8>>,
    pub facts: Vec<u8>,
    pub receipt: Option<Vec<u8>>,
    pub finish_due_ms: i64,
    pub closes: u32,
    pub cleanup_due: i64,
    pub cleanup: Option<Vec<u8>>,
    pub seq: Seq,
    pub owner: String,
}

/// What a reload reads: records newest first; the client's state with the record that set it; the live provisional, if
/// it was asked for and there is one.
#[derive(Clone, Debug)]
pub struct LoadedSession {
    pub row: SessionRow,
    pub lines: Vec<chain::Line>,
    pub state: Option<(Seq, Vec<u8>)>,
    pub provisional: Option<RecordRow>,
    /// Bytes of payloads and metas, if that was asked for.
    pub size: u64,
}

/// What an answer of the store is for.
pub(crate) enum Purpose {
    Find {
        tenant: Arc<Tenant>,
        session_id: Arc<str>,
        departures: u64,
    },
    Load {
        tree: Arc<Tree>,
        index: u32,
        uid: Uid,
    },
    /// The records of a session, for one call.
    Records {
        call: Box<Pending>,
        why: Why,
    },
    Read {
        call: Box<Pending>,
    },
    Recover {
        root: Uid,
    },
    /// The session that a call forks from.
    Fork {
        call: Box<Pending>,
    },
    /// The trajectories that a call acknowledges.
    Ack {
        call: Box<Pending>,
    },
    Due,
    Stale,
    /// Mail for one call, of the session with this uid.
    Mail {
        call: Box<Pending>,
        uid: Uid,
    },
    /// The message that the request of a SendMessage made before.
    Sent {
        call: Box<Pending>,
    },
    /// What hosts of a tenant wait for.
    Runnable {
        tenant: Arc<Tenant>,
    },
    /// An ended session with its descendants, for the one call that may change it.
    Family {
        call: Box<Pending>,
    },
}

/// What a call that has its slots waits for.
pub(crate) enum Need {
    Session(Wanted),
    Mail(Vec<Seq>),
}

/// What a call wants of a session's records.
#[derive(Debug)]
pub(crate) enum Why {
    /// To be answered from them, if it is a repeat. `ended`: the session has ended.
    Repeat { ended: bool },
    /// To be refused, if its request_id was another commit's or abort's; else it goes on.
    Used,
    /// What a rewind to this turn starts from.
    Base(u32),
    /// Which record this turn is.
    Turn(u32),
}

#[derive(Default)]
pub(crate) struct Effects {
    queue: VecDeque<Effect>,
    open: HashMap<u64, (Effect, Purpose)>,
    next: u64,
}

pub(crate) enum Located {
    At(Pending, Arc<Tree>, u32),
    Absent(Pending),
    Ended(Pending, Past),
    /// Parked, or refused.
    Gone,
}

impl Engine {
    /// Finds the session of `id` for a call, or parks the call until the store has said where it is.
    pub(crate) fn locate(&self, mut call: Pending, id: &str, work: &mut Work) -> Located {
        if let Some((tree, index)) = call.tenant.directory.get(id) {
            // What the store said before is of before: should this call run again, it must not be believed.
            call.known.retain(|(known, _)| &**known != id);
            return Located::At(call, tree, index);
        }
        if let Some(at) = call.known.iter().position(|(known, _)| &**known == id) {
            return match call.known.swap_remove(at).1 {
                Known::Absent => Located::Absent(call),
                Known::Ended(past) => Located::Ended(call, past),
                // Its own tree it would have met first.
                Known::Quarantined if call.who.is_beyond(id) => {
                    Located::Ended(call, Past { uid: Uid(0), root: Uid(0), parent: None, purging: false })
                }
                Known::Quarantined => {
                    self.refuse_part(call, super::quarantined(id), work);
                    Located::Gone
                }
            };
        }
        // What is known of its own id would be stale when this call runs again.
        let own = call.call.session_id();
        if let Some(at) = call.known.iter().position(|(known, _)| &**known == own) {
            call.known.swap_remove(at);
        }
        let tenant = call.tenant.clone();
        let mut call = Some(call);
        match tenant.directory.get_or_park(id, || call.take().expect("parked once")) {
            super::directory::Lookup::At(tree, index) => match call.take() {
                Some(call) => Located::At(call, tree, index),
                None => Located::Gone,
            },
            super::directory::Lookup::Parked(first) => {
                if first {
                    let session_id: Arc<str> = id.into();
                    let departures = tenant.directory.departures(id);
                    self.ask_find(tenant, session_id, departures);
                }
                Located::Gone
            }
        }
    }

    /// A session of the call cannot be looked up: the call is refused; of a RenewTurns, which answers each lease by
    /// itself, only the lease that it stands at.
    pub(crate) fn refuse_part(&self, mut call: Pending, refusal: Refusal, work: &mut Work) {
        self.unclaim_call(&mut call, work);
        if let super::Call::Poke { session_id, listed: true } = &mut call.call {
            // The next one of its list is tried.
            session_id.clear();
            return work.calls.push_back(call);
        }
        if let super::Call::Renew(renew) = &mut call.call {
            let refusal = Some(refusal.to_proto());
            renew.results.push(v1::RenewalResult { refusal, ..Default::default() });
            work.calls.push_back(call);
            return;
        }
        self.refuse(call.ticket, refusal, work);
    }

    /// The tree of a located session, locked, if it is still there; else the call is run again.
    pub(crate) fn still_at<'a>(tree: &'a Tree, index: u32, id: &str) -> Option<MutexGuard<'a, TreeState>> {
        let state = tree.state.lock();
        let valid = !state.dropped && state.line(index).is_some_and(|l| &*l.session_id == id);
        valid.then_some(state)
    }

    pub(crate) fn ask(&self, after: Seq, purpose: Purpose, effect: impl FnOnce(u64) -> Effect) {
        let root = match &purpose {
            Purpose::Load { tree, .. } => Some(tree.root),
            _ => None,
        };
        let id = {
            let mut effects = self.effects.lock();
            effects.next += 1;
            let id = effects.next;
            effects.open.insert(id, (effect(id), purpose));
            id
        };
        if let Some(Held::Effect(id, _)) = self.journal.hold(after, Held::Effect(id, root)) {
            self.start_effect(id);
        }
    }

    /// What an effect had to wait for is durable.
    pub(crate) fn start_effect(&self, id: u64) {
        let mut effects = self.effects.lock();
        if let Some((effect, _)) = effects.open.get(&id) {
            let effect = effect.clone();
            effects.queue.push_back(effect);
        }
    }

    /// What an effect had to wait for did not happen. What its call made of it is not so: it is decided again.
    pub(crate) fn lost_effect(&self, id: u64, work: &mut Work) {
        let mut effects = self.effects.lock();
        match effects.open.remove(&id) {
            Some((
                _,
                Purpose::Records { call, .. }
                | Purpose::Read { call }
                | Purpose::Fork { call }
                | Purpose::Ack { call }
                | Purpose::Mail { call, .. }
                | Purpose::Family { call },
            )) => work.calls.push_back(*call),
            Some((_, Purpose::Sent { mut call })) => {
                // The store was not looked through after all.
                if let super::Call::Send(send) = &mut call.call {
                    send.looked = None;
                }
                work.calls.push_back(*call);
            }
            Some((_, Purpose::Due)) => self.look_again(),
            Some((_, Purpose::Stale)) => self.look_for_stale_again(),
            Some(other) => {
                effects.open.insert(id, other);
                drop(effects);
                self.start_effect(id);
            }
            None => {}
        }
    }

    fn ask_find(&self, tenant: Arc<Tenant>, session_id: Arc<str>, departures: u64) {
        let name = tenant.name.clone();
        let purpose = Purpose::Find { tenant, session_id: session_id.clone(), departures };
        self.ask(0, purpose, |id| Effect::Find { id, tenant: name, session_id });
    }

    pub(crate) fn ask_header(&self, root: Uid) {
        self.ask(0, Purpose::Recover { root }, |id| Effect::Header { id, root });
    }

    /// Parks a call until its session is in memory. The tree is locked.
    pub(crate) fn load(&self, call: Pending, tree: &Arc<Tree>, state: &mut TreeState, index: u32, wanted: Wanted) {
        let after = state.last_seq;
        let Some(line) = state.line_mut(index) else { return };
        let uid = line.uid;
        match &mut line.loading {
            // A load that is under way and brings less than is wanted is of no use: it is asked for again after it.
            Some(loading) => loading.calls.push(call),
            None => {
                line.loading = Some(Box::new(Loading { calls: vec![call], ..Loading::default() }));
                self.hold_header(state);
                let purpose = Purpose::Load { tree: tree.clone(), index, uid };
                self.ask_session(after, purpose, uid, wanted);
            }
        }
    }

    /// Has a session read.
    pub(crate) fn ask_session(&self, after: Seq, purpose: Purpose, uid: Uid, wanted: Wanted) {
        self.ask(after, purpose, |id| Effect::Session { id, uid, wanted });
    }

    /// As [`Self::load`], for a call that has its slots.
    pub(crate) fn load_granted(&self, call: Pending, tree: &Arc<Tree>, state: &mut TreeState, index: u32, need: Need) {
        self.running.fetch_add(1, Ordering::Relaxed);
        match need {
            Need::Session(wanted) => self.load(call, tree, state, index, wanted),
            Need::Mail(seqs) => self.load_mail(call, tree, state, index, seqs),
        }
        if let Some(loading) = state.line_mut(index).and_then(|l| l.loading.as_mut()) {
            loading.granted = loading.calls.pop().map(Box::new);
            loading.granted_after = self.losses.load(Ordering::Acquire);
        }
    }

    /// As [`Self::load`], of mail alone. A load that is under way comes first.
    fn load_mail(&self, call: Pending, tree: &Arc<Tree>, state: &mut TreeState, index: u32, seqs: Vec<Seq>) {
        let after = state.last_seq;
        let Some(line) = state.line_mut(index) else { return };
        let uid = line.uid;
        match &mut line.loading {
            Some(loading) => loading.calls.push(call),
            None => {
                line.loading = Some(Box::new(Loading { calls: vec![call], ..Loading::default() }));
                self.hold_header(state);
                let purpose = Purpose::Load { tree: tree.clone(), index, uid };
                self.ask(after, purpose, |id| Effect::Mail { id, seqs });
            }
        }
    }

    /// The mail was read for which a call waits with its slots.
    pub(crate) fn mail_loaded(
        &self,
        tree: &Arc<Tree>,
        index: u32,
        uid: Uid,
        found: Vec<MailFound>,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        let line = state.line_mut(index).filter(|l| l.uid == uid);
        let Some(mut loading) = line.and_then(|l| l.loading.take()) else { return };
        if let Some(mut call) = self.take_granted(&mut loading) {
            call.mail = Some(Box::new((uid, found)));
            self.resume_granted(call, loading.granted_after, tree, &mut state, index, work, now);
        }
        work.calls.extend(loading.calls);
        self.release_header(tree, &mut state, now);
    }

    /// What a call needed that has its slots was read: its turn begins, if nothing stands against it.
    #[allow(clippy::too_many_arguments)]
    fn resume_granted(
        &self,
        mut call: Pending,
        granted_after: u64,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        call.reload_ms += now.mono_ms.saturating_sub(call.ran_ms) as u32;
        let sound = granted_after == self.losses.load(Ordering::Acquire);
        if sound && self.admit_begin(now).is_ok() && self.tickets.lock().contains_key(&call.ticket) {
            let arrival = call.arrival;
            self.begin_with_slots(call, tree, state, index, arrival, work, now);
        } else {
            self.return_slots(tree, state, index, work);
            work.calls.push_back(call);
        }
    }

    /// Takes the call out that has slots; they are the caller's now. For those who end a load.
    pub(crate) fn take_granted(&self, loading: &mut Loading) -> Option<Pending> {
        let call = loading.granted.take()?;
        self.running.fetch_sub(1, Ordering::Relaxed);
        Some(*call)
    }

    /// A load does not end as its calls hoped: gives back the slots of the one that has them, and all calls.
    fn give_up_load(
        &self,
        loading: &mut Loading,
        tree: &Arc<Tree>,
        state: &TreeState,
        index: u32,
        work: &mut Work,
    ) -> Vec<Pending> {
        let mut calls = std::mem::take(&mut loading.calls);
        if let Some(call) = self.take_granted(loading) {
            self.return_slots(tree, state, index, work);
            calls.insert(0, call);
        }
        calls
    }

    /// As `give_up_load`; the calls run again.
    pub(crate) fn rerun_load(
        &self,
        loading: &mut Loading,
        tree: &Arc<Tree>,
        state: &TreeState,
        index: u32,
        work: &mut Work,
    ) {
        let calls = self.give_up_load(loading, tree, state, index, work);
        work.calls.extend(calls);
    }

    /// Has the records of a session read, for this call alone.
    pub(crate) fn ask_records(&self, call: Pending, uid: Uid, why: Why, after: Seq) {
        let purpose = Purpose::Records { call: Box::new(call), why };
        self.ask_session(after, purpose, uid, Wanted::default());
    }

    /// Has one session row read.
    pub(crate) fn ask_row(&self, call: Pending, session_id: &str, after: Seq) {
        let tenant = call.tenant.name.clone();
        let session_id: Arc<str> = session_id.into();
        self.ask(after, Purpose::Read { call: Box::new(call) }, |id| Effect::Read { id, tenant, session_id });
    }

    /// The reads to do, in order.
    pub fn effects(&self) -> Vec<Effect> {
        self.effects.lock().queue.drain(..).collect()
    }

    /// Whether a read has not been answered yet.
    pub(crate) fn reads_open(&self) -> bool {
        !self.effects.lock().open.is_empty()
    }

    /// Whether [`Engine::effects`] has something.
    pub fn has_effects(&self) -> bool {
        !self.effects.lock().queue.is_empty()
    }

    /// Looks at what a read that is under way is for.
    pub(crate) fn with_purpose<T>(&self, id: u64, look: impl FnOnce(&Purpose) -> T) -> Option<T> {
        self.effects.lock().open.get(&id).map(|(_, purpose)| look(purpose))
    }

    pub(crate) fn purpose(&self, id: u64) -> Option<Purpose> {
        self.effects.lock().open.remove(&id).map(|(_, purpose)| purpose)
    }

    /// The answer to a Find.
    pub fn found(&self, id: u64, found: Option<FoundSession>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Find { tenant, session_id, departures }) = self.purpose(id) else { return };
        let current = tenant.directory.departures(&session_id);
        if current != departures {
            // Since the question, a session of this id may have come and gone: the answer may be of before.
            return self.ask_find(tenant, session_id, current);
        }
        let mut work = Work::default();
        let known = match found {
            None => Some(Known::Absent),
            Some(f) if f.state != v1::SessionState::Open as i32 => {
                let purging = is_purging(f.cleanup.as_deref());
                Some(Known::Ended(Past { uid: f.uid, root: f.root, parent: f.parent, purging }))
            }
            Some(f) if self.recovery.lock().quarantined.contains(&f.root) => Some(Known::Quarantined),
            Some(f) => {
                count(&self.counters.header_loads);
                match self.insert_tree(&tenant, f.root, &f.rows, &mut work, &now) {
                    Ok(()) => None,
                    Err(refusal) => {
                        for mut call in tenant.directory.found(&session_id) {
                            if call.who.is_beyond(&session_id) {
                                call.known.push((session_id.clone(), Known::Quarantined));
                                work.calls.push_back(call);
                            } else {
                                self.refuse_part(call, refusal.clone(), &mut work);
                            }
                        }
                        None
                    }
                }
            }
        };
        for mut call in tenant.directory.found(&session_id) {
            call.known.extend(known.map(|k| (session_id.clone(), k)));
            work.calls.push_back(call);
        }
        self.finish(&mut work, &mut now);
    }

    /// The answer to a Header, and what start-up brings in (`id` 0).
    pub fn header_loaded(&self, id: u64, root: Uid, tenant: &str, rows: &[HeaderRow], mut now: Moment) {
        let _going = self.world.read();
        let purpose = self.purpose(id);
        let mut work = Work::default();
        if let Some(Purpose::Recover { root }) = &purpose
            && !self.recovery.lock().awaits(*root)
        {
            // Answered before; by now the tree may have come, changed and gone.
            return;
        }
        if !rows.is_empty() {
            count(&self.counters.header_loads);
            if self.insert_tree(&self.tenant(tenant), root, rows, &mut work, &now).is_err() {
                self.recovery.lock().quarantined.insert(root);
            }
        }
        if let Some(Purpose::Recover { root }) = purpose {
            self.recovered(root);
        }
        self.finish(&mut work, &mut now);
    }

    /// Brings a tree's header to memory, charges what runs, and gives it a full lease from now.
    fn insert_tree(
        &self,
        tenant: &Arc<Tenant>,
        root: Uid,
        rows: &[HeaderRow],
        work: &mut Work,
        now: &Moment,
    ) -> Result<(), Refusal> {
        let corrupt = |row: &HeaderRow, what: &str| {
            Refusal::new(Reason::SessionCorrupt, format!("session {:?}: {what}", row.session_id))
                .with("session_id", &row.session_id)
        };
        let tree = Arc::new(self.new_tree(root, tenant.clone()));
        let mut state = tree.state.lock();
        let mut by_uid: HashMap<Uid, u32> = HashMap::new();
        for row in rows {
            let mut line = Line::new(row.uid, row.session_id.as_str().into());
            if let Some(parent) = row.parent {
                line.parent = Some(*by_uid.get(&parent).ok_or_else(|| corrupt(row, "its parent is not in its tree"))?);
            }
            line.name =
                if line.parent.is_none() { "".into() } else { row.path.rsplit('/').next().unwrap_or("").into() };
            line.depth = row.depth;
            line.head = row.head;
            line.head_version = row.head_version;
            line.fence = row.fence;
            line.provisional = row.provisional;
            line.last = row.last;
            line.finish_due_ms = row.finish_due_ms;
            line.closes = row.closes;
            line.outcome = v1::TurnOutcome::try_from(row.outcome).unwrap_or(v1::TurnOutcome::None);
            line.wakes = row.wakes;
            line.owner = super::tree::owner_of(&row.owner);
            line.mail = super::mailbox::Mailbox::of(&row.mail);
            line.mail_from = self.journal.durable().max(1);
            line.seq = row.seq;
            state.active_ms = state.active_ms.max(row.active_ms);
            if row.parent.is_none() {
                state.stale_ms = row.stale_ms;
                // Sessions that have ended were active too: what they moved is the time before which it is not stale.
                if row.stale_ms > 0 {
                    state.active_ms = state.active_ms.max(row.stale_due.saturating_sub(row.stale_ms as u64));
                }
            }
            if let Some(bytes) = &row.lease {
                let lease = Lease::decode(bytes, row.running, now);
                line.lease = Some(Box::new(lease.ok_or_else(|| corrupt(row, "its grant does not decode"))?));
            }
            let index = state.add(line);
            by_uid.insert(row.uid, index);
            if let Some(facts) = row.facts.as_ref().filter(|_| row.finish_due_ms != 0) {
                state.keep_facts(index, Some(facts.clone().into()));
            }
        }
        state.open = rows.len() as u32;
        // The root's id first: if it is in memory already, so is the whole tree, and newer than what was read.
        for index in 0..state.lines.len() as u32 {
            let Some(line) = state.line(index) else { continue };
            match tenant.directory.insert(&line.session_id, &tree, index) {
                Ok(calls) => work.calls.extend(calls),
                Err(()) if index == 0 => return Ok(()),
                Err(()) => {}
            }
        }
        self.set_tree_cap(&tree);
        for index in 0..state.lines.len() as u32 {
            self.charge_mail(&tree, &mut state, index, now);
        }
        self.charge_header(&tree, &mut state, now);
        for index in 0..state.lines.len() as u32 {
            let Some(line) = state.line_mut(index) else { continue };
            let (depth, uid, session_id) = (line.depth, line.uid, line.session_id.clone());
            let Some(lease) = line.lease.as_mut().filter(|l| l.running) else { continue };
            if let (true, Some(mark)) = (lease.polled, &lease.request) {
                tenant.polls.began(&mark.request_id, uid, &session_id);
            }
            lease.timer = self.timer(lease.deadline_ms, Timer::Lease(tree.clone(), index, lease.fence));
            tenant.turns.began(uid, &session_id, lease.begin_wall_ms);
            tree.tenant.slots.force_add(1).expect("fewer than 2^32 turns run");
            if depth > 0 {
                tree.children_slots.force_add(1).expect("fewer than 2^32 turns run");
            }
            self.running.fetch_add(1, Ordering::Relaxed);
            self.resources.turn(uid, true, now);
            self.hold_header(&mut state);
        }
        Ok(())
    }

    pub(crate) fn new_tree(&self, root: Uid, tenant: Arc<Tenant>) -> Tree {
        Tree {
            root,
            tenant,
            children_slots: self.children_slots(),
            queue: super::Queue::default(),
            state: Mutex::default(),
        }
    }

    /// The answer to a Session: a reload, the records that a repeat is answered from, or what is copied.
    pub fn session_loaded(&self, id: u64, loaded: Option<LoadedSession>, mut now: Moment) {
        let _going = self.world.read();
        let mut work = Work::default();
        match self.purpose(id) {
            Some(Purpose::Load { tree, index, uid }) => self.loaded(&tree, index, uid, loaded, &mut work, &mut now),
            Some(Purpose::Records { call, why }) => self.records_loaded(*call, why, loaded, &mut work, &now),
            Some(Purpose::Fork { call }) => self.fork_loaded(*call, loaded, &mut work),
            _ => {}
        }
        work.evict = true;
        self.finish(&mut work, &mut now);
    }

    fn loaded(
        &self,
        tree: &Arc<Tree>,
        index: u32,
        uid: Uid,
        loaded: Option<LoadedSession>,
        work: &mut Work,
        now: &mut Moment,
    ) {
        // Verified and folded before the tree is locked: a long history holds up nobody.
        let made = loaded
            .ok_or_else(|| Refusal::new(Reason::SessionCorrupt, "the store does not hold it"))
            .and_then(|loaded| Reloaded::verify(&loaded).map(|made| (loaded, made)));
        let mut state = tree.state.lock();
        if state.dropped {
            // Who dropped the tree has run its calls again.
            return;
        }
        let Some(line) = state.line_mut(index).filter(|l| l.uid == uid) else { return };
        let Some(mut loading) = line.loading.take() else { return };
        let (closed, seq) = (line.closed.is_some(), line.seq);
        match made {
            Err(refusal) if !closed => {
                count(&self.counters.load_failures);
                let id = line.session_id.clone();
                let refusal = refusal.with("session_id", &id);
                for call in self.give_up_load(&mut loading, tree, &state, index, work) {
                    self.refuse_begin(call, refusal.clone(), tree, &state, work);
                }
            }
            Ok((loaded, mut made)) if !closed && loaded.row.seq == seq => {
                if let Some((seq, record)) = made.provisional.take() {
                    let record = Arc::new(record);
                    let calls = loading.calls.iter_mut().chain(loading.granted.as_deref_mut());
                    for call in calls.filter(|c| c.call.wants_provisional()) {
                        call.found = Some(Found::Provisional(seq, record.clone()));
                    }
                }
                self.make_resident(tree, &mut state, index, loaded, made, now);
                if let Some(call) = self.take_granted(&mut loading) {
                    self.resume_granted(call, loading.granted_after, tree, &mut state, index, work, now);
                }
                work.calls.extend(loading.calls);
            }
            // The session has ended, or changed while the store was read: its calls run again and see.
            _ => self.rerun_load(&mut loading, tree, &state, index, work),
        }
        self.release_header(tree, &mut state, now);
    }

    fn make_resident(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        loaded: LoadedSession,
        made: Reloaded,
        now: &Moment,
    ) {
        let Reloaded { facts, metas, checkpoint, .. } = made;
        if let Some(resident) = state.line_mut(index).and_then(|l| l.resident.as_mut()) {
            // Only its checkpoint was missing; nothing was committed since, or the row would have moved.
            resident.checkpoint = resident.checkpoint.take().or(checkpoint);
            return self.charge(state, index);
        }
        count(&self.counters.reloads);
        if let Some(line) = state.line_mut(index) {
            // Rows of before 0.2 have it in their facts alone.
            line.outcome = v1::TurnOutcome::try_from(facts.last_outcome).unwrap_or(v1::TurnOutcome::None);
        }
        let marks = metas.iter().flat_map(|m| {
            let ended = if m.ended_by() == EndedBy::Finish { Asked::Finish } else { Asked::End };
            [(Asked::Begin, m.begin_request.as_ref()), (ended, m.end_request.as_ref())]
        });
        let requests = marks.filter_map(|(asked, m)| Some(fingerprint(asked, &m?.request_id))).collect();
        let state_of = loaded.state.map(|(_, state)| state.into_boxed_slice());
        let make = |handle| Resident { requests, state: state_of, checkpoint, ..Resident::from_facts(handle, facts) };
        self.admit_resident(tree, state, index, make, now);
    }

    /// The answer to a Read.
    pub fn session_read(&self, id: u64, row: Option<SessionRow>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Read { call }) = self.purpose(id) else { return };
        let mut work = Work::default();
        self.row_read(*call, row, &mut work, &mut now);
        self.finish(&mut work, &mut now);
    }

    /// A read failed: its calls get a clear error, and nothing else changes.
    pub fn load_failed(&self, id: u64, message: &str, mut now: Moment) {
        let _going = self.world.read();
        let mut work = Work::default();
        let refusal =
            Refusal::new(Reason::LoadFailed, format!("the store could not be read: {message}")).retry_after(1_000);
        count(&self.counters.load_failures);
        match self.purpose(id) {
            Some(Purpose::Find { tenant, session_id, .. }) => {
                for call in tenant.directory.found(&session_id) {
                    self.refuse_part(call, refusal.clone(), &mut work);
                }
            }
            Some(Purpose::Load { tree, index, uid }) => {
                let mut state = tree.state.lock();
                let line = state.line_mut(index).filter(|l| l.uid == uid);
                if let Some(mut loading) = line.and_then(|l| l.loading.take()) {
                    for call in self.give_up_load(&mut loading, &tree, &state, index, &mut work) {
                        self.refuse_begin(call, refusal.clone(), &tree, &state, &mut work);
                    }
                    self.release_header(&tree, &mut state, &now);
                }
            }
            Some(
                Purpose::Records { call, .. }
                | Purpose::Read { call }
                | Purpose::Fork { call }
                | Purpose::Ack { call }
                | Purpose::Mail { call, .. }
                | Purpose::Sent { call }
                | Purpose::Family { call },
            ) => {
                self.refuse_part(*call, refusal, &mut work);
            }
            Some(Purpose::Due) => self.due_failed(&now),
            Some(Purpose::Stale) => self.stale_failed(&now),
            Some(Purpose::Runnable { tenant }) => self.runnable_failed(&tenant, &now),
            // Until it is re-read nothing is admitted: it is asked for again.
            Some(Purpose::Recover { root }) => {
                let again = self.recovery.lock().failed(root);
                if again { self.ask_header(root) } else { self.recovered(root) }
            }
            None => {}
        }
        self.finish(&mut work, &mut now);
    }
}

/// Verifies the records of a session and that its live line is what they make it; its facts, and the decoded metas.
pub(crate) fn verify_line(loaded: &LoadedSession) -> Result<(SessionFacts, Vec<RecordMeta>), Refusal> {
    let corrupt = |what: &str| Refusal::new(Reason::SessionCorrupt, what.to_owned());
    let facts = SessionFacts::decode(&loaded.row.facts[..]).map_err(|_| corrupt("its facts do not decode"))?;
    let metas = chain::verify(&loaded.lines, loaded.row.last, &facts.chain)?;
    let statuses = chain::statuses(&loaded.lines, &metas)?;
    let committed = v1::RecordStatus::Committed as i32;
    if statuses.iter().zip(&loaded.lines).any(|(status, line)| *status != line.status)
        || statuses.iter().filter(|s| **s == committed).count() != loaded.row.head as usize
    {
        return Err(corrupt("its records' statuses or its turn count are not what its records make them"));
    }
    Ok((facts, metas))
}

/// What a reload read, verified.
struct Reloaded {
    facts: SessionFacts,
    /// Newest first.
    metas: Vec<RecordMeta>,
    /// If its tokens were read, and there are any.
    checkpoint: Option<Box<Checkpoint>>,
    /// If it was read.
    provisional: Option<(Seq, v1::Record)>,
}

impl Reloaded {
    fn verify(loaded: &LoadedSession) -> Result<Self, Refusal> {
        let corrupt = |what: &str| Refusal::new(Reason::SessionCorrupt, what.to_owned());
        let (facts, metas) = verify_line(loaded)?;
        if facts.state_seq != 0 {
            let setter = loaded.lines.iter().position(|l| l.seq == facts.state_seq as u64);
            let digest = chain::digest(&[loaded.state.as_ref().map_or(&[][..], |(_, state)| state)]);
            if setter.is_none_or(|i| metas[i].state_digest != digest) {
                return Err(corrupt("its state does not match its digest"));
            }
        }
        let with_tokens = facts.checkpoint_tokens > 0 && loaded.lines.iter().any(|l| l.tokens.is_some());
        let checkpoint = with_tokens.then(|| Box::new(Checkpoint::fold(&loaded.lines, &metas, u32::MAX)));
        if checkpoint.as_ref().is_some_and(|c| c.len() != facts.checkpoint_tokens) {
            return Err(corrupt("its checkpoint is not as long as its records make it"));
        }
        let provisional = match &loaded.provisional {
            Some(row) => Some((row.seq, row.clone().to_proto(false)?)),
            None => None,
        };
        Ok(Reloaded { facts, metas, checkpoint, provisional })
    }
}
