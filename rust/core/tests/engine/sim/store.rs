//! A store in memory with the rules of the real one: compare-and-set by `prev`, unique ids and paths, and beside them
//! the invariants that every stored prefix must keep (I2, I4, I7, I8, I13, I16, I21, I23). An append that breaks one is
//! a bug of the engine.

use roost_core::chain::{FINISHED, Line, ended_by, link};
use roost_core::engine::{
    DueSession, DumpedRecord, DumpedSession, DumpedTrajectory, Effect, Engine, FoundSession, FoundTrajectory,
    HeaderRow, LoadedSession, Moment, RecordRow, ResourceSetup, SessionRow, StaleTree, StoredResource, Wanted,
};
use roost_core::ids::{TrajectoryId, Uid};
use roost_core::journal::{Batch, Finished, Record, RecordCopy, ResourceRow, Restore, Row, Seq};
use roost_core::proto::store_v1::{Cleanup, EndedBy, Receipt, RecordMeta, RequestMark, RunningGrant, SessionFacts};
use roost_core::proto::v1::{RecordStatus, ResourceState, SessionState};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;

pub(crate) mod mailroom;

pub(crate) const OPEN: i32 = SessionState::Open as i32;
const SEALED: i32 = SessionState::Sealed as i32;
const CLOSED: i32 = SessionState::Closed as i32;
const RELEASING: i32 = ResourceState::Releasing as i32;
/// Of every pool, in these tests.
pub(crate) const POOL_CAP: u32 = 3;
pub(crate) const POOL_KEY_CAP: u32 = 2;
const COMMITTED: i32 = RecordStatus::Committed as i32;
const PROVISIONAL: i32 = RecordStatus::Provisional as i32;
const ABORTED: i32 = RecordStatus::Aborted as i32;
const SUPERSEDED: i32 = RecordStatus::Superseded as i32;

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}
pub(crate) use ensure;

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) row: Row,
    pub(crate) state: i32,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) grant: Option<RunningGrant>,
    pub(crate) facts: SessionFacts,
    /// The live provisional as the records' statuses tell it.
    live: Option<Seq>,
    /// The line after each head_version, folded from the records alone.
    pub(crate) folds: Vec<Fold>,
    /// The COMMITTED records of the live line, turn after turn, and the head_version of each.
    pub(crate) turns: Vec<(Seq, u64)>,
    /// Turns that a commit has rewound past, and whose status does not say so yet.
    superseded: BTreeSet<Seq>,
    /// What the turns that it began with are copies of.
    pub(crate) copied: Vec<Seq>,
    /// head_version of the last commit that rewound.
    pub(crate) rewound: u64,
    pub(crate) trajectories: Vec<(Finished, bool)>,
    pub(crate) rewards: BTreeMap<Seq, f64>,
    /// Fence of the grant that each BeginTurn request_id became a record of.
    pub(crate) requests: HashMap<String, u64>,
    committed_fences: HashSet<u64>,
    pub(crate) closes: u32,
    pub(crate) reopens: u32,
    pub(crate) cleanup: Option<Vec<u8>>,
    pub(crate) cleanup_due: i64,
    /// Some of its content is deleted.
    pub(crate) purging: bool,
    /// It is being made from its dump.
    pub(crate) restoring: bool,
    pub(crate) stale_due: u64,
}

/// What a head_version stands for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fold {
    pub(crate) turns: u32,
    pub(crate) tokens: Vec<u8>,
    pub(crate) state: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Rec {
    pub(crate) session: Uid,
    prev: Seq,
    pub(crate) status: i32,
    turn: u32,
    /// Of a commit: the turn that it was built on, 0: none.
    below: Seq,
    meta: Vec<u8>,
    pub(crate) decoded: RecordMeta,
    chain: [u8; 32],
    tokens: Option<Vec<u8>>,
    state: Option<Vec<u8>>,
    pub(crate) content: Vec<u8>,
}

impl Rec {
    /// As a fork counts it.
    fn size(&self) -> u64 {
        let len = |v: &Option<Vec<u8>>| v.as_ref().map_or(0, Vec::len);
        (self.meta.len() + len(&self.tokens) + len(&self.state) + self.content.len()) as u64
    }
}

/// What the meta of a turn says of the turn itself, and not of its session's grants, requests and trajectories.
fn what_it_was(meta: &RecordMeta) -> RecordMeta {
    RecordMeta {
        content_type: meta.content_type.clone(),
        finish_reason: meta.finish_reason.clone(),
        labels: meta.labels.clone(),
        weight_versions: meta.weight_versions.clone(),
        owner: meta.owner.clone(),
        tokens_digest: meta.tokens_digest.clone(),
        content_digest: meta.content_digest.clone(),
        arrays_digest: meta.arrays_digest.clone(),
        state_digest: meta.state_digest.clone(),
        attachments: meta.attachments.clone(),
        turn: meta.turn,
        outcome: meta.outcome,
        create_ms: meta.create_ms,
        token_offset: meta.token_offset,
        token_count: meta.token_count,
        new_segment: meta.new_segment,
        prompt_tokens: meta.prompt_tokens,
        completion_tokens: meta.completion_tokens,
        cached_tokens: meta.cached_tokens,
        has_usage: meta.has_usage,
        logprobs_bytes: meta.logprobs_bytes,
        has_tokens: meta.has_tokens,
        ..RecordMeta::default()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) row: ResourceRow,
    pub(crate) due: i64,
    pub(crate) attempts: u32,
}

#[derive(Clone, Default)]
pub(crate) struct Store {
    pub(crate) sessions: HashMap<Uid, Session>,
    ids: HashMap<(String, String), Uid>,
    open_paths: HashMap<(Uid, String), Uid>,
    trees: HashMap<Uid, BTreeSet<Uid>>,
    pub(crate) records: BTreeMap<Seq, Rec>,
    pub(crate) last_seq: Seq,
    pub(crate) resources: BTreeMap<String, Resource>,
    /// All names that were ever given out.
    pub(crate) names: HashSet<String>,
    /// The limits that were set.
    pub(crate) limits: BTreeMap<String, u64>,
    /// Every message, by sequence.
    pub(crate) mail: BTreeMap<Seq, mailroom::Letter>,
    running: BTreeSet<Uid>,
    /// Trees that a batch was refused for alone: their turns run on in the store, but not in the engine.
    pub(crate) broken: HashSet<Uid>,
    pub(crate) tenant_cap: usize,
    pub(crate) tree_cap: usize,
    pub(crate) max_rewind: u64,
    pub(crate) max_fork_bytes: u64,
}

impl Store {
    pub(crate) fn by_id(&self, tenant: &str, id: &str) -> Option<&Session> {
        self.ids.get(&(tenant.to_owned(), id.to_owned())).map(|uid| &self.sessions[uid])
    }

    pub(crate) fn tree(&self, root: Uid) -> impl Iterator<Item = &Session> {
        self.trees[&root].iter().map(|u| &self.sessions[u])
    }

    /// The records of a session, newest first.
    pub(crate) fn line(&self, session: &Session) -> impl Iterator<Item = (Seq, &Rec)> {
        let mut next = session.row.last;
        std::iter::from_fn(move || {
            let record = self.records.get(&next)?;
            let seq = std::mem::replace(&mut next, record.prev);
            Some((seq, record))
        })
    }

    /// Stores a batch, or says which rule it breaks.
    pub(crate) fn apply(&mut self, batch: &Batch) -> Result<(), String> {
        let mut touched: BTreeSet<Uid> = BTreeSet::new();
        let uids: HashSet<Uid> = batch.sessions.iter().map(|(_, r)| r.uid).collect();
        ensure!(uids.len() == batch.sessions.len(), "a session row twice in a batch");
        let mut closes: HashMap<Uid, _> = HashMap::new();
        for (_, close) in &batch.closes {
            ensure!(closes.insert(close.uid, close).is_none(), "a session is closed twice in a batch");
        }
        for (_, root, stale_ms, due) in &batch.stales {
            let session = self.sessions.get_mut(root).ok_or("the staleness of an unknown tree")?;
            ensure!(session.state == OPEN && session.row.depth == 0, "the staleness of what is no open root");
            (session.row.stale_ms, session.stale_due) = (*stale_ms, *due);
        }
        ensure!(batch.reopens.is_empty() || batch.sessions.is_empty() && batch.closes.is_empty(), "not alone");
        // Paths that are left are free before others take them.
        let mut opened = Vec::new();
        for (_, reopen) in &batch.reopens {
            touched.insert(reopen.uid);
            let session = self.sessions.get_mut(&reopen.uid).ok_or("an unknown session is opened again")?;
            let id = &session.row.session_id;
            ensure!(session.row.seq == reopen.prev, "reopen of {id}: row is at {}", session.row.seq);
            ensure!(session.state == CLOSED && !session.purging, "reopen of {id}, which is not CLOSED and whole");
            session.row.seq = reopen.seq;
            session.row.facts.clone_from(&reopen.facts);
            session.facts = SessionFacts::decode(&reopen.facts[..]).expect("facts decode");
            // What came from a dump bears a sequence of another journal.
            let unplaced = |r: &Receipt| Receipt { close_seq: 0, ..r.clone() };
            let kept = session.facts.past_receipts.last().map(unplaced);
            ensure!(kept == session.receipt.as_ref().map(unplaced), "reopen of {id} loses its receipt");
            session.row.stale_ms = reopen.stale_ms;
            (session.state, session.receipt, session.cleanup) = (OPEN, None, None);
            (session.cleanup_due, session.stale_due) = (0, reopen.stale_due);
            session.reopens += 1;
            opened.push(reopen.uid);
        }
        for (_, row) in &batch.sessions {
            touched.insert(row.uid);
            self.upsert(row, &mut opened)?;
        }
        for (uid, close) in closes {
            touched.insert(uid);
            let session = self.sessions.get_mut(&uid).ok_or("a close of an unknown session")?;
            let id = &session.row.session_id;
            ensure!(session.row.seq == close.prev, "close of {id}: row is at {}, not {}", session.row.seq, close.prev);
            ensure!(session.state == OPEN && close.state > OPEN, "close of {id}, which is not open");
            session.closes += 1;
            ensure!(close.receipt.close_number == session.closes, "I12: close {} of {id}", close.receipt.close_number);
            ensure!(close.receipt.close_seq as u64 == close.seq, "I12: the receipt of {id} names another close");
            let at_once = close.receipt.dump_name.is_empty() && close.receipt.resources == 0;
            ensure!(at_once == (close.state == CLOSED), "I12: {id} has something to be cleaned up, or not");
            (session.cleanup, session.cleanup_due, session.stale_due) = (None, close.cleanup_due, 0);
            session.row.seq = close.seq;
            (session.row.running, session.row.lease, session.grant, session.row.provisional) = (false, None, None, 0);
            session.row.finish_due_ms = 0;
            session.state = close.state;
            session.receipt = Some(close.receipt.clone());
            self.open_paths.remove(&(session.row.root, session.row.path.clone()));
            self.running.remove(&uid);
        }
        for uid in opened {
            let session = &self.sessions[&uid];
            if session.state == OPEN {
                let place = (session.row.root, session.row.path.clone());
                ensure!(self.open_paths.insert(place, uid).is_none(), "I16: two open sessions at {}", session.row.path);
            }
        }
        for (_, row) in &batch.restores {
            touched.insert(row.uid);
            self.restore(row)?;
        }
        // Before what the batch appends: what is copied was durable before.
        let mut sizes: HashMap<Uid, u64> = HashMap::new();
        for (_, copy) in &batch.copies {
            touched.insert(copy.session);
            *sizes.entry(copy.session).or_default() += self.copy(copy)?;
        }
        ensure!(sizes.len() <= 1, "{} forks in one batch", sizes.len());
        ensure!(sizes.values().all(|size| *size <= self.max_fork_bytes), "a fork of {sizes:?} bytes");
        for (_, record) in &batch.records {
            touched.insert(record.session);
            self.append(record)?;
        }
        let mut statuses = HashSet::new();
        for (_, seq, status) in &batch.statuses {
            ensure!(statuses.insert(*seq), "the status of record {seq} is set twice in a batch");
            let record = self.records.get_mut(seq).ok_or("the status of an unknown record")?;
            let right = match record.status {
                PROVISIONAL => [SUPERSEDED, ABORTED].contains(status),
                COMMITTED => *status == SUPERSEDED,
                _ => false,
            };
            ensure!(right, "record {seq} goes from status {} to {status}", record.status);
            let was = std::mem::replace(&mut record.status, *status);
            touched.insert(record.session);
            let session = self.sessions.get_mut(&record.session).ok_or("a record without a session")?;
            ensure!(was != COMMITTED || session.superseded.remove(seq), "I4: turn {} leaves the line", record.turn);
            if session.live == Some(*seq) {
                session.live = None;
            }
        }
        for (_, finished) in &batch.finished {
            self.finish(finished)?;
        }
        for (_, uid, seq, value) in &batch.rewards {
            let record = self.records.get(seq).ok_or("the reward of an unknown record")?;
            ensure!(record.session == *uid && ended_by(&record.decoded) == EndedBy::Commit, "a reward of no turn");
            let session = self.sessions.get_mut(uid).ok_or("the reward of an unknown session")?;
            session.rewards.insert(*seq, *value);
        }
        let mut limits = HashSet::new();
        for (_, name, value) in &batch.limits {
            ensure!(limits.insert(name), "{name} is set twice in a batch");
            match value {
                Some(value) => drop(self.limits.insert((*name).to_owned(), *value)),
                None => drop(self.limits.remove(*name)),
            }
        }
        for (_, uid, number, _) in &batch.acks {
            let session = self.sessions.get_mut(uid).ok_or("an unknown session is acknowledged")?;
            let trajectory = session.trajectories.get_mut(*number as usize - 1);
            trajectory.ok_or("an unknown trajectory is acknowledged")?.1 = true;
        }
        for (_, step) in &batch.steps {
            let session = self.sessions.get_mut(&step.uid).ok_or("a step of an unknown session")?;
            let id = &session.row.session_id;
            ensure!(session.row.seq == step.prev, "step of {id}: row is at {}, not {}", session.row.seq, step.prev);
            ensure!(session.state > OPEN && step.state >= session.state, "I13: a step of {id} takes it back");
            ensure!(step.state == CLOSED || step.purge.is_empty(), "I14: {id} is purged while SEALED");
            let cleanup = Cleanup::decode(&step.cleanup[..]).expect("it decodes");
            let needs_dump = session.receipt.as_ref().is_some_and(|r| !r.dump_name.is_empty());
            let dumped = !needs_dump || cleanup.dump_ms > 0 || cleanup.restoring;
            ensure!(step.state != CLOSED || dumped, "{id} is CLOSED without its dump");
            ensure!(session.restoring || !cleanup.restoring, "{id} is restored after its end");
            ensure!(!session.restoring || step.state != CLOSED || cleanup.purging != (cleanup.restored_ms > 0), "half");
            session.restoring = cleanup.restoring;
            let seq = step.seq;
            (session.row.seq, session.row.last, session.state) = (seq, step.last, step.state);
            session.row.facts.clone_from(&step.facts);
            session.facts = SessionFacts::decode(&step.facts[..]).expect("facts decode");
            (session.cleanup, session.cleanup_due) = (Some(step.cleanup.clone()), step.cleanup_due);
            session.purging |= cleanup.purging;
            ensure!(session.purging || step.purge.is_empty(), "{id} is purged and does not say so");
            for seq in &step.purge {
                let record = self.records.remove(seq).ok_or("an unknown record is purged")?;
                ensure!(record.session == step.uid, "a record of another session is purged");
            }
            if step.purged {
                self.mail.retain(|_, letter| letter.row.recipient != step.uid);
            }
            touched.insert(step.uid);
        }
        for (_, uid, prev) in &batch.forgets {
            let session = self.sessions.remove(uid).ok_or("an unknown session is forgotten")?;
            let row = &session.row;
            ensure!(row.seq == *prev && session.state == CLOSED, "{} is forgotten too early", row.session_id);
            let purged = Cleanup::decode(&session.cleanup.unwrap_or_default()[..]).expect("it decodes").purged_ms;
            ensure!(purged > 0 && row.last == 0, "I14: {} is forgotten, and not purged", row.session_id);
            self.ids.remove(&(row.tenant.to_string(), row.session_id.to_string()));
            self.trees.entry(row.root).or_default().remove(uid);
            touched.remove(uid);
        }
        self.apply_mail(batch)?;
        self.apply_resources(batch)?;
        self.last_seq = self.last_seq.max(batch.last_seq);
        for uid in &touched {
            self.check_session(*uid).map_err(|e| format!("{}: {e}", self.sessions[uid].row.session_id))?;
        }
        self.check_caps()
    }

    /// The row of a session that comes from its dump.
    fn restore(&mut self, row: &Restore) -> Result<(), String> {
        let id = &row.session_id;
        let is_root = row.depth == 0;
        ensure!(is_root == row.parent.is_none() && is_root == (row.root == row.uid), "{id} has no place");
        ensure!(row.closes > 0, "{id} was never closed");
        let inserted = Row {
            uid: row.uid,
            tenant: row.tenant.clone(),
            session_id: row.session_id.clone(),
            root: row.root,
            parent: row.parent,
            path: row.path.clone(),
            depth: row.depth,
            create_ms: row.create_ms,
            head: row.head,
            head_version: row.head_version,
            fence: row.fence,
            provisional: 0,
            last: 0,
            running: false,
            lease: None,
            facts: row.facts.clone(),
            outcome: row.outcome,
            wakes: row.wakes,
            owner: "".into(),
            finish_due_ms: 0,
            stale_ms: row.stale_ms,
            active_ms: 0,
            stale_due: 0,
            seq: row.seq,
            prev: 0,
        };
        self.upsert(&inserted, &mut Vec::new())?;
        let session = self.sessions.get_mut(&row.uid).ok_or("it was just made")?;
        session.state = SessionState::Sealed as i32;
        session.receipt = Some(Receipt::decode(&row.receipt[..]).expect("a receipt decodes"));
        session.closes = row.closes;
        (session.cleanup, session.cleanup_due) = (Some(row.cleanup.clone()), row.cleanup_due);
        session.restoring = Cleanup::decode(&row.cleanup[..]).expect("it decodes").restoring;
        ensure!(session.restoring, "{id} is restored and does not say so");
        Ok(())
    }

    /// Resources: attached to open sessions, each under a name of its own, and gone before their session is CLOSED.
    fn apply_resources(&mut self, batch: &Batch) -> Result<(), String> {
        for (_, row) in &batch.resources {
            let name = row.name.to_string();
            ensure!(self.sessions.contains_key(&row.session), "I12: {name} is attached to nothing");
            ensure!(self.names.insert(name.clone()), "the name {name} is given out twice");
            self.resources.insert(name, Resource { row: row.clone(), due: 0, attempts: 0 });
        }
        let mut names = HashSet::new();
        for (_, update) in &batch.resource_updates {
            ensure!(names.insert(&update.name), "{} is updated twice in a batch", update.name);
            let resource = self.resources.get_mut(&*update.name).ok_or("an unknown resource is updated")?;
            ensure!(update.state >= resource.row.state, "{} was to be released, and is not", update.name);
            resource.row.state = update.state;
            (resource.due, resource.attempts) = (update.due, update.attempts);
        }
        for (_, session, due) in &batch.resources_due {
            for resource in self.resources.values_mut().filter(|r| r.row.session == *session) {
                (resource.row.state, resource.due) = (RELEASING, *due);
            }
        }
        for (_, name) in &batch.resource_deletes {
            self.resources.remove(&**name).ok_or("an unknown resource is released")?;
        }
        for (_, uid, due) in &batch.cleanups_due {
            if let Some(session) = self.sessions.get_mut(uid).filter(|s| s.state == SEALED) {
                session.cleanup_due = *due;
            }
        }
        let mut pools: HashMap<_, u32> = HashMap::new();
        for (name, resource) in &self.resources {
            let (row, session) = (&resource.row, &self.sessions[&resource.row.session]);
            ensure!(session.state != CLOSED, "I12, I20: {name} outlives its session");
            ensure!(session.state == OPEN || row.state == RELEASING, "I12: {name} is not released with its session");
            if !row.pool.is_empty() {
                *pools.entry((&*row.tenant, None)).or_default() += 1;
                *pools.entry((&*row.tenant, Some(&row.pool_key))).or_default() += 1;
            }
        }
        for ((tenant, key), used) in pools {
            let cap = if key.is_some() { POOL_KEY_CAP } else { POOL_CAP };
            ensure!(used <= cap, "{used} resources in the pool of {tenant}, key {key:?}; the cap is {cap}");
        }
        let steps = batch.steps.iter().map(|(_, step)| step.uid);
        let changed = batch.closes.iter().map(|(_, close)| close.uid).chain(steps);
        for uid in changed.chain(batch.cleanups_due.iter().map(|(_, uid, _)| *uid)) {
            let Some(session) = self.sessions.get(&uid).filter(|s| s.state == SEALED && s.cleanup_due == 0) else {
                continue;
            };
            // Nobody looks at it before the last of its resources is released.
            let mut left = self.resources.values().filter(|r| r.row.session == uid).peekable();
            let id = &session.row.session_id;
            ensure!(left.peek().is_some(), "I12: {id} waits for resources, and has none");
            ensure!(left.all(|r| r.due > 0), "I12: {id} waits for resources that wait for it");
        }
        Ok(())
    }

    /// Tells a server that starts for the `epoch`-th time what there is of resources.
    pub(crate) fn bring_resources(&self, engine: &Engine, epoch: u64, now: &Moment) {
        let (prefix, store_id) = ("roost".into(), "0123abcd".into());
        let setup = ResourceSetup { prefix, store_id, epoch, kinds: (1..=4).collect() };
        engine.set_resources(setup, self.stored_resources(), now);
    }

    fn stored_resources(&self) -> Vec<StoredResource> {
        let stored = |(name, r): (&String, &Resource)| StoredResource {
            name: name.clone(),
            session: r.row.session,
            root: r.row.root,
            tenant: r.row.tenant.to_string(),
            session_id: self.sessions[&r.row.session].row.session_id.to_string(),
            kind: r.row.kind,
            state: r.row.state,
            pool: r.row.pool.clone(),
            pool_key: r.row.pool_key.clone(),
            idle_ttl_ms: r.row.idle_ttl_ms,
            attempts: r.attempts,
            request: r.row.request.as_ref().map(|m| RequestMark::decode(&m[..]).expect("it decodes")),
        };
        self.resources.iter().map(stored).collect()
    }

    /// A trajectory is finished by an event of its own or by its last commit, and takes all records since the one before.
    fn finish(&mut self, finished: &Finished) -> Result<(), String> {
        let record = self.records.get(&finished.ready_seq).ok_or("a trajectory is finished by nothing")?;
        let session = self.sessions.get_mut(&finished.session).ok_or("a trajectory of an unknown session")?;
        let by = &record.decoded;
        ensure!(record.session == finished.session, "a trajectory is finished by another session");
        ensure!(record.status == FINISHED || by.finishes, "record {} finishes nothing", finished.ready_seq);
        let before = session.trajectories.last().map(|(f, _)| f);
        let (after, base) = before.map_or((0, 0), |f| (f.ready_seq, f.first_turn + f.turn_count - 1));
        let number = session.trajectories.len() as u32 + 1;
        ensure!(finished.number == number && by.trajectory == number, "trajectory {} after {number}", finished.number);
        ensure!(finished.after_seq == after, "trajectory {number} starts at {}, not {after}", finished.after_seq);
        ensure!(finished.first_turn == base + 1 && by.trajectory_base == base, "trajectory {number} starts elsewhere");
        ensure!(finished.root == session.row.root && *finished.tenant == *session.row.tenant, "of another tree");
        session.trajectories.push((finished.clone(), false));
        Ok(())
    }

    fn upsert(&mut self, row: &Row, opened: &mut Vec<Uid>) -> Result<(), String> {
        let id = &row.session_id;
        let grant = row.lease.as_deref().map(|b| RunningGrant::decode(b).expect("a grant decodes"));
        let facts = SessionFacts::decode(&row.facts[..]).expect("facts decode");
        if row.prev == 0 {
            let key = (row.tenant.to_string(), id.to_string());
            ensure!(self.ids.insert(key, row.uid).is_none(), "I13: {id} is made twice");
            ensure!(!row.path.is_empty(), "{id} has no path");
            let parent_open = row.parent.is_none_or(|p| self.sessions.get(&p).is_some_and(|p| p.row.root == row.root))
                || opened.iter().any(|u| Some(*u) == row.parent);
            ensure!(parent_open || self.broken.contains(&row.root), "{id} is below nothing");
            opened.push(row.uid);
            self.trees.entry(row.root).or_default().insert(row.uid);
            let session = Session {
                row: row.clone(),
                state: OPEN,
                receipt: None,
                grant,
                facts,
                live: None,
                folds: vec![Fold::default()],
                turns: Vec::new(),
                superseded: BTreeSet::new(),
                copied: Vec::new(),
                rewound: 0,
                trajectories: Vec::new(),
                rewards: BTreeMap::new(),
                requests: HashMap::new(),
                committed_fences: HashSet::new(),
                closes: 0,
                reopens: 0,
                cleanup: None,
                cleanup_due: 0,
                purging: false,
                restoring: false,
                stale_due: row.stale_due,
            };
            ensure!(self.sessions.insert(row.uid, session).is_none(), "a uid twice");
        } else {
            let session = self.sessions.get_mut(&row.uid).ok_or_else(|| format!("{id} is changed, not known"))?;
            let old = &session.row;
            ensure!(old.seq == row.prev, "{id}: the row is at {}, not {}", old.seq, row.prev);
            ensure!(session.state == OPEN, "I13: {id} is changed after its end");
            ensure!(row.fence >= old.fence, "{id}: its fence goes back");
            ensure!(row.head_version >= old.head_version, "{id}: its head_version goes back");
            let rewinds = row.head_version > old.head_version;
            ensure!(row.head >= old.head || rewinds, "{id}: its head goes back without a commit");
            let path = session.row.path.clone();
            session.row = Row { path, ..row.clone() };
            (session.grant, session.facts) = (grant, facts);
        }
        if row.running {
            self.running.insert(row.uid);
        } else {
            self.running.remove(&row.uid);
        }
        Ok(())
    }

    /// A turn that a session begins with: a copy of one that stood on another's live line, right above what its turn
    /// before is a copy of. Its size as a fork counts it.
    fn copy(&mut self, copy: &RecordCopy) -> Result<u64, String> {
        let seq = copy.seq;
        let source = self.records.get(&copy.source).ok_or_else(|| format!("{seq} is a copy of what is gone"))?.clone();
        let (from, session) = (&self.sessions[&source.session], &self.sessions[&copy.session]);
        let id = &from.row.session_id;
        ensure!(!from.purging && !from.restoring, "{seq} is copied from {id}, of which not all is there");
        ensure!(from.row.tenant == session.row.tenant, "I17: {seq} is copied from {id}, which is another tenant's");
        ensure!(Self::committed(&source.decoded), "{seq} is a copy of what is no turn");
        ensure!(session.turns.len() == session.copied.len(), "{seq} is copied behind what is no copy");
        let below = session.copied.last().copied().unwrap_or(0);
        ensure!(source.below == below, "I4: {} does not stand on {below}, {seq} is a copy of it", copy.source);
        let meta = RecordMeta::decode(&copy.meta[..]).expect("a meta decodes");
        ensure!(meta.nonce.is_empty() && meta.begin_request.is_none() && meta.end_request.is_none(), "I21: {seq}");
        ensure!(meta.base_turn.is_none() && !meta.finishes && meta.next_fence == 0, "{seq} does what its source did");
        ensure!(what_it_was(&meta) == what_it_was(&source.decoded), "I23: {seq} is another turn than its source");
        let (size, version) = (source.size(), source.decoded.head_version as usize);
        self.append(&Record {
            seq,
            session: copy.session,
            prev: copy.prev,
            status: COMMITTED,
            turn: copy.turn,
            meta: copy.meta.clone(),
            chain: copy.chain,
            tokens: source.tokens,
            state: source.state,
            arrays: None,
            content: Some(source.content),
        })?;
        let fold = self.sessions[&source.session].folds[version].clone();
        let session = self.sessions.get_mut(&copy.session).ok_or("it was just there")?;
        ensure!(session.folds.last() == Some(&fold), "I7: {seq} does not fold as what it is a copy of");
        session.copied.push(copy.source);
        Ok(size)
    }

    fn append(&mut self, record: &Record) -> Result<(), String> {
        let seq = record.seq;
        let session = self.sessions.get_mut(&record.session).ok_or("a record without a session")?;
        let before = self.records.get(&record.prev);
        ensure!(record.prev == 0 || before.is_some_and(|b| b.session == record.session), "{seq}: follows nothing");
        let prev_chain = before.map_or([0; 32], |b| b.chain);
        ensure!(record.chain == link(&prev_chain, &record.meta), "I23: {seq} breaks the chain");
        let meta = RecordMeta::decode(&record.meta[..]).expect("a meta decodes");
        ensure!(meta.turn == record.turn, "{seq}: two turn numbers");
        // What comes from a dump comes as it ended. It is told again as it was born.
        let born = match (session.restoring, ended_by(&meta)) {
            (false, _) => record.status,
            (true, EndedBy::Commit) => COMMITTED,
            (true, EndedBy::Finish) => FINISHED,
            (true, _) => ABORTED,
        };
        if let Some(request) = &meta.begin_request {
            let fence = *session.requests.entry(request.request_id.clone()).or_insert(meta.fence);
            ensure!(
                fence == meta.fence,
                "I21: request {} began the grants {fence} and {}",
                request.request_id,
                meta.fence
            );
        }
        let finished: u32 = session.trajectories.iter().map(|(f, _)| f.turn_count).sum();
        // An earlier record of this batch may have finished one, whose row is still to come.
        ensure!(meta.trajectory > session.trajectories.len() as u32, "{seq}: of a trajectory that is finished");
        let heads = session.turns.len() as u32;
        let mut below = 0;
        if born == COMMITTED {
            let base = meta.base_turn.unwrap_or(heads);
            ensure!(record.turn == base + 1 && base <= heads, "I4: turn {} after {heads}", record.turn);
            ensure!(base >= finished, "{seq}: rewinds into a finished trajectory");
            ensure!(u64::from(heads - base) <= self.max_rewind, "{seq}: rewinds by {}", heads - base);
            ensure!(meta.base_turn.is_none() || base < heads, "{seq}: rewinds by nothing");
            ensure!(meta.head_version == session.folds.len() as u64, "{seq}: head_version {}", meta.head_version);
            ensure!(session.committed_fences.insert(meta.fence), "I21: grant {} is committed twice", meta.fence);
            session.superseded.extend(session.turns.drain(base as usize..).map(|(seq, _)| seq));
            let version;
            (below, version) = session.turns.last().copied().unwrap_or((0, 0));
            let mut fold = session.folds[version as usize].clone();
            ensure!(meta.token_offset * 4 <= fold.tokens.len() as u64, "{seq}: its span starts behind the checkpoint");
            if meta.has_tokens {
                fold.tokens.truncate(meta.token_offset as usize * 4);
                fold.tokens.extend_from_slice(record.tokens.as_deref().unwrap_or_default());
            }
            if let Some(new) = &record.state {
                fold.state.clone_from(new);
            }
            fold.turns = record.turn;
            if meta.base_turn.is_some() {
                session.rewound = meta.head_version;
            }
            session.turns.push((seq, meta.head_version));
            session.folds.push(fold);
        } else {
            ensure!([PROVISIONAL, ABORTED, FINISHED].contains(&born), "{seq} is born as {born}");
            let length = session.folds.last().map_or(0, |f| f.tokens.len() as u64 / 4);
            ensure!(meta.token_offset <= length, "{seq}: its span starts behind the checkpoint");
            ensure!((born == FINISHED) == (meta.ended_by() == EndedBy::Finish), "{seq}: an event, or not");
            if born == PROVISIONAL {
                session.live = Some(seq);
            }
        }
        let stored = Rec {
            session: record.session,
            prev: record.prev,
            status: record.status,
            turn: record.turn,
            below,
            meta: record.meta.clone(),
            decoded: meta,
            chain: record.chain,
            tokens: record.tokens.clone(),
            state: record.state.clone(),
            content: record.content.clone().unwrap_or_default(),
        };
        ensure!(self.records.insert(seq, stored).is_none(), "record {seq} twice");
        if session.restoring {
            let records = &self.records;
            session.superseded.retain(|seq| records.get(seq).is_none_or(|r| r.status != SUPERSEDED));
        }
        Ok(())
    }

    fn check_session(&self, uid: Uid) -> Result<(), String> {
        let s = &self.sessions[&uid];
        if s.purging || s.restoring {
            return Ok(());
        }
        let live = s.live.unwrap_or(0);
        ensure!(s.row.provisional == live, "I8: row says provisional {}, records say {live}", s.row.provisional);
        if let Some(record) = self.records.get(&live) {
            ensure!(record.turn == s.row.head + 1, "I8: provisional of turn {} at head {}", record.turn, s.row.head);
        }
        ensure!(s.row.head as usize == s.turns.len(), "I4: head {} of {} turns", s.row.head, s.turns.len());
        ensure!(s.row.head_version as usize == s.folds.len() - 1, "head_version {}", s.row.head_version);
        let fold = s.folds.last().expect("there is the empty one");
        ensure!(s.facts.checkpoint_tokens == fold.tokens.len() as u64 / 4, "I7: {} tokens", s.facts.checkpoint_tokens);
        ensure!(s.superseded.is_empty(), "I4: records {:?} were rewound past and stay COMMITTED", s.superseded);
        let ended =
            s.trajectories.last().map_or((0, 0, 0), |(f, _)| (f.number, f.first_turn + f.turn_count - 1, f.ready_seq));
        let told = (s.facts.trajectories, s.facts.trajectory_turns, s.facts.trajectory_seq as u64);
        ensure!(told == ended, "its facts tell of trajectory {told:?}, its events of {ended:?}");
        let last = self.records.get(&s.row.last);
        ensure!(s.row.last == 0 || last.is_some_and(|r| r.session == uid), "its last record is not its own");
        let chain = last.map_or(&[][..], |r| &r.chain[..]);
        ensure!(s.facts.chain == chain, "I23: its facts tell another chain");
        ensure!(!s.row.running || (s.state == OPEN && s.grant.is_some()), "it runs without a grant");
        if let Some(g) = &s.grant {
            ensure!(g.fence == s.row.fence && g.expired != s.row.running, "its grant is not its latest");
            ensure!(g.turn == s.row.head + 1, "a grant of turn {} at head {}", g.turn, s.row.head);
        }
        if s.state != OPEN {
            let open = self.trees[&s.row.root].iter().map(|u| &self.sessions[u]);
            for child in open.filter(|c| c.row.parent == Some(uid)) {
                ensure!(child.state != OPEN, "its child {} outlives it", child.row.session_id);
            }
        }
        Ok(())
    }

    /// I2, of what is durable: order in the journal keeps every cap at every prefix.
    fn check_caps(&self) -> Result<(), String> {
        let (mut tenants, mut trees): (HashMap<&str, usize>, HashMap<Uid, usize>) = Default::default();
        for uid in &self.running {
            let row = &self.sessions[uid].row;
            if self.broken.contains(&row.root) {
                continue;
            }
            *tenants.entry(&row.tenant).or_default() += 1;
            *trees.entry(row.root).or_default() += usize::from(row.depth > 0);
        }
        // Turns of a broken tree run again after a restart, cap or no cap.
        ensure!(
            !self.broken.is_empty() || tenants.values().all(|n| *n <= self.tenant_cap),
            "I2: tenants run {tenants:?}"
        );
        ensure!(trees.values().all(|n| *n < self.tree_cap), "I2: trees run {trees:?}");
        Ok(())
    }

    /// I23 of everything: each chain from its end to its beginning.
    pub(crate) fn verify_all(&self) -> Result<(), String> {
        let mut seen = 0;
        for session in self.sessions.values() {
            let lines = self.lines(session, true);
            seen += lines.len();
            if session.purging || session.restoring {
                continue;
            }
            roost_core::engine::verify_history(&lines, session.row.last, &session.row.facts)
                .map_err(|e| format!("I23: {}: {}", session.row.session_id, e.message))?;
        }
        ensure!(seen == self.records.len(), "I23: {seen} records of {} are on a line", self.records.len());
        Ok(())
    }

    /// What a dump of an ended session holds, each record with its sequence.
    pub(crate) fn dump(&self, id: &Session) -> (DumpedSession, Vec<(Seq, DumpedRecord)>, Vec<DumpedTrajectory>) {
        let row = &id.row;
        let session = DumpedSession {
            uid: row.uid,
            session_id: row.session_id.to_string(),
            root: row.root,
            parent: row.parent,
            path: row.path.clone(),
            depth: row.depth,
            create_ms: row.create_ms,
            head: row.head,
            head_version: row.head_version,
            fence: row.fence,
            facts: row.facts.clone(),
            receipt: id.receipt.as_ref().expect("it has ended").encode_to_vec(),
        };
        let record = |(seq, r): (Seq, &Rec)| {
            let record = DumpedRecord {
                status: r.status,
                turn: r.turn,
                meta: r.meta.clone(),
                chain: r.chain.to_vec(),
                tokens: r.tokens.clone(),
                state: r.state.clone(),
                arrays: None,
                content: Some(r.content.clone()),
                reward: id.rewards.get(&seq).copied(),
            };
            (seq, record)
        };
        let mut records: Vec<_> = self.line(id).map(record).collect();
        records.reverse();
        let trajectory = |(f, _): &(Finished, bool)| DumpedTrajectory {
            number: f.number,
            ready_seq: f.ready_seq,
            after_seq: f.after_seq,
            first_turn: f.first_turn,
            turn_count: f.turn_count,
            ready_ms: f.ready_ms,
        };
        (session, records, id.trajectories.iter().map(trajectory).collect())
    }

    // ---- what the engine reads

    fn lines(&self, session: &Session, with_tokens: bool) -> Vec<Line> {
        let line = |(seq, r): (Seq, &Rec)| Line {
            seq,
            prev: r.prev,
            status: r.status,
            turn: r.turn,
            meta: r.meta.clone(),
            chain: r.chain.to_vec(),
            tokens: r.tokens.clone().filter(|_| with_tokens),
        };
        self.line(session).map(line).collect()
    }

    pub(crate) fn running_roots(&self) -> BTreeSet<Uid> {
        self.running.iter().map(|u| self.sessions[u].row.root).collect()
    }

    /// What a store with which nothing is wrong says to a read of the engine, once it is told.
    pub(crate) fn answer(&self, effect: Effect) -> Box<dyn FnOnce(&Engine, Moment)> {
        match effect {
            Effect::Find { id, tenant, session_id } => {
                let found = self.find(&tenant, &session_id);
                Box::new(move |engine, now| engine.found(id, found, now))
            }
            Effect::Header { id, root } => {
                let (tenant, rows) = self.header(root);
                Box::new(move |engine, now| engine.header_loaded(id, root, &tenant, &rows, now))
            }
            Effect::Session { id, uid, wanted } => {
                let loaded = self.load(uid, wanted);
                Box::new(move |engine, now| engine.session_loaded(id, loaded, now))
            }
            Effect::Trajectories { id, wanted } => {
                let found = self.found_trajectories(&wanted);
                Box::new(move |engine, now| engine.trajectories_found(id, found, now))
            }
            Effect::Due { id, until_ms, after, limit } => {
                let (due, next) = self.due(until_ms, after.as_ref(), limit);
                Box::new(move |engine, now| engine.due_found(id, due, next, now))
            }
            Effect::Stale { id, until_ms, after, limit } => {
                let stale = self.stale(until_ms, after.as_ref(), limit);
                Box::new(move |engine, now| engine.stale_found(id, stale, now))
            }
            Effect::Family { id, uid } => {
                let family = self.family(uid);
                Box::new(move |engine, now| engine.family_read(id, family, now))
            }
            Effect::Mail { id, seqs } => {
                let found = self.mail_found(&seqs);
                Box::new(move |engine, now| engine.mail_read(id, found, now))
            }
            Effect::Sent { id, recipient, request } => {
                let found = self.sent(recipient, &request);
                Box::new(move |engine, now| engine.sent_found(id, found, now))
            }
            Effect::Runnable { id, tenant, until_ms, after, limit } => {
                let (found, next) = self.runnable(&tenant, until_ms, after.as_ref(), limit);
                Box::new(move |engine, now| engine.runnable_found(id, found, next, now))
            }
            Effect::Read { id, tenant, session_id } => {
                let row = self.read(&tenant, &session_id);
                Box::new(move |engine, now| engine.session_read(id, row, now))
            }
        }
    }

    pub(crate) fn header(&self, root: Uid) -> (String, Vec<HeaderRow>) {
        let Some(tree) = self.trees.get(&root) else { return (String::new(), Vec::new()) };
        let mut open: Vec<&Session> = tree.iter().map(|u| &self.sessions[u]).filter(|s| s.state == OPEN).collect();
        open.sort_by(|a, b| (a.row.depth, &a.row.path).cmp(&(b.row.depth, &b.row.path)));
        let row = |s: &&Session| HeaderRow {
            uid: s.row.uid,
            session_id: s.row.session_id.to_string(),
            parent: s.row.parent,
            path: s.row.path.clone(),
            depth: s.row.depth,
            head: s.row.head,
            head_version: s.row.head_version,
            fence: s.row.fence,
            provisional: s.row.provisional,
            last: s.row.last,
            running: s.row.running,
            lease: s.row.lease.clone(),
            finish_due_ms: s.row.finish_due_ms,
            closes: s.closes,
            stale_ms: s.row.stale_ms,
            active_ms: s.row.active_ms,
            stale_due: s.stale_due,
            facts: (s.row.finish_due_ms != 0).then(|| s.row.facts.clone()),
            seq: s.row.seq,
            outcome: s.row.outcome,
            wakes: s.row.wakes,
            owner: s.row.owner.to_string(),
            mail: self.mail_heads(s.row.uid),
        };
        (self.sessions[&root].row.tenant.to_string(), open.iter().map(row).collect())
    }

    pub(crate) fn find(&self, tenant: &str, id: &str) -> Option<FoundSession> {
        let s = self.by_id(tenant, id)?;
        let rows = if s.state == OPEN { self.header(s.row.root).1 } else { Vec::new() };
        let (uid, root, parent) = (s.row.uid, s.row.root, s.row.parent);
        Some(FoundSession { uid, root, parent, state: s.state, cleanup: s.cleanup.clone(), rows })
    }

    pub(crate) fn read(&self, tenant: &str, id: &str) -> Option<SessionRow> {
        let s = self.by_id(tenant, id)?;
        let above = |uid: Option<Uid>| uid.and_then(|u| self.sessions.get(&u));
        let id_of = |uid: Option<Uid>| above(uid).map(|s| s.row.session_id.to_string()).unwrap_or_default();
        Some(SessionRow {
            uid: s.row.uid,
            session_id: s.row.session_id.to_string(),
            root: s.row.root,
            parent_session_id: id_of(s.row.parent),
            root_session_id: id_of(Some(s.row.root)),
            path: s.row.path.clone(),
            depth: s.row.depth,
            create_ms: s.row.create_ms,
            state: s.state,
            head: s.row.head,
            head_version: s.row.head_version,
            fence: s.row.fence,
            provisional: s.row.provisional,
            last: s.row.last,
            running: s.row.running,
            lease: s.row.lease.clone(),
            facts: s.row.facts.clone(),
            receipt: s.receipt.as_ref().map(Message::encode_to_vec),
            finish_due_ms: s.row.finish_due_ms,
            closes: s.closes,
            cleanup_due: s.cleanup_due,
            cleanup: s.cleanup.clone(),
            seq: s.row.seq,
            owner: s.row.owner.to_string(),
        })
    }

    /// A session and what has ended below it, parents before children.
    pub(crate) fn family(&self, uid: Uid) -> Vec<SessionRow> {
        let Some(session) = self.sessions.get(&uid) else { return Vec::new() };
        let below = format!("{}/", session.row.path);
        let close = |s: &Session| s.receipt.as_ref().map(|r| r.close_seq);
        let same = |s: &Session| s.state != OPEN && close(s) == close(session);
        let in_it = |s: &&Session| s.row.uid == uid || (same(s) && s.row.path.starts_with(&below));
        let mut family: Vec<&Session> = self.tree(session.row.root).filter(in_it).collect();
        family.sort_by_key(|s| (s.row.depth, s.row.uid));
        family.iter().filter_map(|s| self.read(&s.row.tenant, &s.row.session_id)).collect()
    }

    pub(crate) fn stale(&self, until_ms: u64, after: Option<&StaleTree>, limit: usize) -> Vec<StaleTree> {
        let mut stale: Vec<StaleTree> = self
            .sessions
            .values()
            .filter(|s| s.stale_due > 0 && s.stale_due <= until_ms)
            .map(|s| StaleTree {
                due_ms: s.stale_due,
                root: s.row.uid,
                tenant: s.row.tenant.to_string(),
                session_id: s.row.session_id.to_string(),
            })
            .filter(|d| after.is_none_or(|a| (d.due_ms, d.root) > (a.due_ms, a.root)))
            .collect();
        stale.sort_by_key(|d| (d.due_ms, d.root));
        stale.truncate(limit);
        stale
    }

    pub(crate) fn load(&self, uid: Uid, wanted: Wanted) -> Option<LoadedSession> {
        let s = self.sessions.get(&uid)?;
        let row = self.read(&s.row.tenant, &s.row.session_id)?;
        let setter = match wanted.state_turn {
            None => self.records.get(&(s.facts.state_seq as u64)).map(|r| (s.facts.state_seq as u64, r)),
            Some(turn) => self.line(s).find(|(_, r)| r.status == COMMITTED && r.turn <= turn && r.state.is_some()),
        };
        let state = setter.and_then(|(seq, r)| Some((seq, r.state.clone()?)));
        let live = self.records.get(&s.row.provisional).filter(|_| wanted.provisional);
        let provisional = live.map(|r| RecordRow {
            seq: s.row.provisional,
            status: r.status,
            meta: r.meta.clone(),
            tokens: r.tokens.clone(),
            state: r.state.clone(),
            arrays: None,
            content: Some(r.content.clone()),
        });
        let up_to = |r: &Rec| r.status == COMMITTED && wanted.state_turn.is_none_or(|turn| r.turn <= turn);
        let copied = self.line(s).map(|(_, r)| r).filter(|r| wanted.size && up_to(r));
        let size = copied.map(Rec::size).sum();
        Some(LoadedSession { row, lines: self.lines(s, wanted.tokens), state, provisional, size })
    }

    pub(crate) fn found_trajectories(&self, wanted: &[TrajectoryId]) -> Vec<Option<FoundTrajectory>> {
        let find = |id: &TrajectoryId| {
            let session = self.sessions.get(&id.session)?;
            let (_, acknowledged) = session.trajectories.get(id.number as usize - 1)?;
            Some(FoundTrajectory {
                tenant: session.row.tenant.to_string(),
                root: session.row.root,
                root_session_id: self.sessions[&session.row.root].row.session_id.to_string(),
                acknowledged: *acknowledged,
            })
        };
        wanted.iter().map(find).collect()
    }

    pub(crate) fn due(
        &self,
        until_ms: i64,
        after: Option<&DueSession>,
        limit: usize,
    ) -> (Vec<DueSession>, Option<i64>) {
        let mut due: Vec<DueSession> = self
            .sessions
            .values()
            .filter(|s| s.row.finish_due_ms > 0)
            .map(|s| DueSession {
                due_ms: s.row.finish_due_ms,
                uid: s.row.uid,
                tenant: s.row.tenant.to_string(),
                session_id: s.row.session_id.to_string(),
            })
            .filter(|d| after.is_none_or(|a| (d.due_ms, d.uid) > (a.due_ms, a.uid)))
            .collect();
        due.sort_by_key(|d| (d.due_ms, d.uid));
        let now = due.iter().take_while(|d| d.due_ms <= until_ms).count().min(limit);
        let next = due.get(now).map(|d| d.due_ms);
        due.truncate(now);
        (due, next)
    }

    pub(crate) fn committed(meta: &RecordMeta) -> bool {
        ended_by(meta) == EndedBy::Commit
    }
}
