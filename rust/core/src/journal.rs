//! The ordered journal: entries not yet durable, the batch in flight, and the answers that wait for durability.
//!
//! Order: a transition takes what it needs, appends its entry here, and only then frees anything; so every prefix of
//! the journal keeps every cap. One batch is in flight at a time. An answer about a tree is held until the tree's last
//! entry is durable (I6). A refused batch takes all queued behind it.

use crate::engine::{Answer, Event, KEYS_ROOT, KeyChange, LimitChange, ResourceChange, Telling, Told, Tree};
use crate::gen_store::{Receipt, RequestMark};
use crate::ids::Uid;
use crate::keys::KeyHash;
use crate::residency::Handle;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Position in the journal, from 1. A record's rowid is the sequence of its entry.
pub type Seq = u64;

/// A session row as it is to be stored; the columns of the store's `SessionUpsert`.
#[derive(Debug, Clone)]
pub struct Row {
    pub uid: Uid,
    pub tenant: Arc<str>,
    pub session_id: Arc<str>,
    pub root: Uid,
    pub parent: Option<Uid>,
    /// Empty where `prev` is not 0: it is written by the insert only.
    pub path: String,
    pub depth: u32,
    pub create_ms: i64,
    pub head: u32,
    pub head_version: u64,
    pub fence: u64,
    pub provisional: Seq,
    pub last: Seq,
    pub running: bool,
    pub lease: Option<Vec<u8>>,
    pub facts: Vec<u8>,
    /// roost.v1.TurnOutcome of its latest turn.
    pub outcome: i32,
    /// What its children's ends tell it makes it runnable.
    pub wakes: bool,
    /// Who began its latest turn.
    pub owner: Arc<str>,
    /// Wall-clock milliseconds from which on the active trajectory finishes by itself; 0: never.
    pub finish_due_ms: i64,
    /// Of a root: idle time after which its tree is stale; 0: never.
    pub stale_ms: i64,
    /// Service time of the last activity in its tree.
    pub active_ms: u64,
    /// Of a root: service time before which its tree is not stale, 0: never. Written by the insert only.
    pub stale_due: u64,
    pub seq: Seq,
    pub prev: Seq,
}

/// A trajectory that was finished.
#[derive(Debug, Clone)]
pub struct Finished {
    pub session: Uid,
    pub number: u32,
    pub tenant: Arc<str>,
    pub root: Uid,
    /// Sequence of the event that finished it.
    pub ready_seq: Seq,
    /// Sequence of the event that finished the one before it; its records come after that.
    pub after_seq: Seq,
    pub first_turn: u32,
    pub turn_count: u32,
    pub ready_ms: i64,
}

/// A record to append.
#[derive(Debug, Clone)]
pub struct Record {
    pub seq: Seq,
    pub session: Uid,
    pub prev: Seq,
    pub status: i32,
    pub turn: u32,
    pub meta: Vec<u8>,
    pub chain: [u8; 32],
    pub tokens: Option<Vec<u8>>,
    pub state: Option<Vec<u8>>,
    pub arrays: Option<Vec<u8>>,
    pub content: Option<Vec<u8>>,
}

/// A COMMITTED record that begins as a copy of a stored one: its payload is the store's to copy.
#[derive(Debug, Clone)]
pub struct RecordCopy {
    pub seq: Seq,
    pub session: Uid,
    pub prev: Seq,
    pub turn: u32,
    pub meta: Vec<u8>,
    pub chain: [u8; 32],
    /// The record whose payload it has: durable, and not to be deleted before this entry is.
    pub source: Seq,
}

/// The end of a session, from its header line alone.
#[derive(Debug, Clone)]
pub struct Close {
    pub uid: Uid,
    pub prev: Seq,
    pub seq: Seq,
    pub state: i32,
    pub receipt: Receipt,
    /// Wall-clock milliseconds of the next step of its clean-up.
    pub cleanup_due: i64,
}

/// A CLOSED session that is OPEN again.
#[derive(Debug, Clone)]
pub struct Reopen {
    pub uid: Uid,
    pub prev: Seq,
    pub seq: Seq,
    pub stale_ms: i64,
    pub stale_due: u64,
    pub active_ms: u64,
    pub facts: Vec<u8>,
}

/// A session that is made from its dump: SEALED and not to be seen before a step says otherwise.
#[derive(Debug, Clone)]
pub struct Restore {
    pub uid: Uid,
    pub tenant: Arc<str>,
    pub session_id: Arc<str>,
    pub root: Uid,
    pub parent: Option<Uid>,
    pub path: String,
    pub depth: u32,
    pub create_ms: i64,
    pub head: u32,
    pub head_version: u64,
    pub fence: u64,
    pub stale_ms: i64,
    pub closes: u32,
    pub cleanup_due: i64,
    /// As its receipt has it: of another journal. Those that one close ended come back together.
    pub close_seq: i64,
    pub seq: Seq,
    pub facts: Vec<u8>,
    pub outcome: i32,
    pub wakes: bool,
    pub receipt: Vec<u8>,
    pub cleanup: Vec<u8>,
}

/// A step of an ended session's clean-up.
#[derive(Debug, Clone)]
pub struct Step {
    pub uid: Uid,
    pub prev: Seq,
    pub seq: Seq,
    pub state: i32,
    /// The newest record that is left.
    pub last: Seq,
    pub facts: Vec<u8>,
    pub cleanup: Vec<u8>,
    /// Wall-clock milliseconds of the next one; -1: when all of it is acknowledged.
    pub cleanup_due: i64,
    /// Records to delete with it.
    pub purge: Vec<Seq>,
    /// Whether those are the last: rewards and trajectories go too.
    pub purged: bool,
}

/// The key of a tenant, without the key.
#[derive(Debug, Clone)]
pub struct KeyRow {
    pub id: Uid,
    pub tenant: Arc<str>,
    pub hash: KeyHash,
    pub create_ms: i64,
    /// 0: it is active.
    pub revoke_ms: i64,
    /// What made it.
    pub request: Option<RequestMark>,
}

/// A resource that was attached.
#[derive(Debug, Clone)]
pub struct ResourceRow {
    pub name: Arc<str>,
    pub session: Uid,
    pub root: Uid,
    pub tenant: Arc<str>,
    pub kind: i32,
    pub state: i32,
    pub owner: String,
    pub handle: String,
    /// Empty: it is in none.
    pub pool: String,
    pub pool_key: String,
    pub idle_ttl_ms: u64,
    pub create_ms: i64,
    /// Encoded `RequestMark` of what made it.
    pub request: Option<Vec<u8>>,
}

/// What became of a resource.
#[derive(Debug, Clone)]
pub struct ResourceUpdate {
    pub name: Arc<str>,
    pub state: i32,
    /// `None`: as it is.
    pub handle: Option<String>,
    /// Wall-clock milliseconds from which on it is to be released; 0: not yet.
    pub due: i64,
    pub attempts: u32,
    pub error: String,
}

/// A message that was sent.
#[derive(Debug, Clone)]
pub struct MailRow {
    pub seq: Seq,
    pub id: Uid,
    pub recipient: Uid,
    pub root: Uid,
    pub tenant: Arc<str>,
    /// `None`: a host.
    pub sender: Option<Uid>,
    /// roost.v1.MessageKind.
    pub kind: i32,
    /// Wall-clock milliseconds from which on it makes its session runnable; -1: it does not.
    pub due: i64,
    /// Wall-clock milliseconds at which it expires while it is queued; 0: never.
    pub expire: i64,
    pub create_ms: i64,
    /// Encoded `MessageMeta`.
    pub meta: Vec<u8>,
    pub content: Option<Vec<u8>>,
    /// What tells a repeat: sender and request_id; `None`: no repeat is told.
    pub request: Option<String>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy)]
pub struct MailUpdate {
    pub seq: Seq,
    /// roost.v1.MessageState.
    pub state: i32,
    pub due: i64,
    pub deliveries: u32,
    /// The grant that took it last; 0: none.
    pub fence: u64,
}

/// One row operation.
#[derive(Debug, Clone)]
pub enum Op {
    Upsert(Box<Row>),
    Append(Box<Record>),
    Copy(Box<RecordCopy>),
    Status {
        seq: Seq,
        status: i32,
    },
    Close(Box<Close>),
    /// The reward of the record with this sequence.
    Reward {
        session: Uid,
        seq: Seq,
        value: f64,
    },
    Finish(Box<Finished>),
    /// A trajectory was acknowledged, at this wall-clock millisecond.
    Ack {
        session: Uid,
        number: u32,
        ack_ms: i64,
    },
    /// Before this service time the tree of this open root, which allows so much idle time, is not stale.
    Stale {
        root: Uid,
        stale_ms: i64,
        due: u64,
    },
    Reopen(Box<Reopen>),
    Restore(Box<Restore>),
    Step(Box<Step>),
    /// The row of a session whose content is purged is deleted.
    Forget {
        uid: Uid,
        prev: Seq,
    },
    Key(Box<KeyRow>),
    /// A key was revoked, at this wall-clock millisecond.
    RevokeKey {
        id: Uid,
        revoke_ms: i64,
    },
    /// A limit was set, or is as the configuration says.
    Limit {
        name: &'static str,
        value: Option<u64>,
    },
    Resource(Box<ResourceRow>),
    ResourceUpdate(Box<ResourceUpdate>),
    /// All resources of a session are to be released: from this wall-clock millisecond on, or, if it is 0, later.
    ResourcesDue {
        session: Uid,
        due: i64,
    },
    /// A resource is released.
    ResourceGone {
        name: Arc<str>,
    },
    /// The next step of the clean-up of this session is due then, if it is SEALED.
    CleanupDue {
        session: Uid,
        due: i64,
    },
    Mail(Box<MailRow>),
    MailUpdate(MailUpdate),
    /// What this session has not consumed ends with it.
    MailEnd {
        session: Uid,
    },
}

impl Op {
    fn bytes(&self) -> u64 {
        let len = |v: &Option<Vec<u8>>| v.as_ref().map_or(0, Vec::len);
        let variable = match self {
            Op::Upsert(r) => r.facts.len() + len(&r.lease) + r.session_id.len() + r.path.len(),
            Op::Append(r) => r.meta.len() + len(&r.tokens) + len(&r.state) + len(&r.arrays) + len(&r.content),
            // What it takes in memory: its payload is read and written by the store alone.
            Op::Copy(c) => c.meta.len(),
            Op::Status { .. }
            | Op::Reward { .. }
            | Op::Finish(_)
            | Op::Ack { .. }
            | Op::Stale { .. }
            | Op::Forget { .. }
            | Op::RevokeKey { .. }
            | Op::Limit { .. }
            | Op::ResourcesDue { .. }
            | Op::ResourceGone { .. }
            | Op::CleanupDue { .. }
            | Op::MailUpdate(_)
            | Op::MailEnd { .. } => 0,
            Op::Mail(m) => m.meta.len() + len(&m.content) + m.request.as_ref().map_or(0, String::len),
            Op::Resource(r) => r.owner.len() + r.handle.len() + len(&r.request),
            Op::ResourceUpdate(r) => r.handle.as_ref().map_or(0, String::len) + r.error.len(),
            Op::Close(c) => c.receipt.encoded_len(),
            Op::Reopen(r) => r.facts.len(),
            Op::Restore(r) => r.facts.len() + r.receipt.len() + r.session_id.len() + r.path.len(),
            Op::Step(s) => s.facts.len() + s.cleanup.len() + s.purge.len() * 8,
            Op::Key(k) => k.tenant.len() + k.request.as_ref().map_or(0, Message::encoded_len),
        };
        (variable + 256) as u64
    }
}

/// What one operation writes: stored whole or not at all. It has as many sequences as it needs.
struct Entry {
    sent: Sent,
    ops: Vec<Op>,
    seqs: u64,
}

impl Entry {
    /// Whether it must be alone in its batch: a session that is open again may take the path of one that the same batch
    /// closes, or be closed in it again, and no one order of statements suits both.
    fn alone(&self) -> bool {
        matches!(self.ops.first(), Some(Op::Reopen(_)))
    }

    /// Whether its batch ends with it: how much it has the store copy does not show in its bytes, and one fork is enough
    /// for a transaction.
    fn last(&self) -> bool {
        matches!(self.ops.first(), Some(Op::Copy(_)))
    }
}

/// What the journal keeps of an entry while it is in flight.
struct Sent {
    tree: Arc<Tree>,
    /// Sessions that may not leave memory before the entry is durable.
    pinned: Vec<Handle>,
    bytes: u64,
    /// When it was appended, on the service clock.
    at_ms: u64,
}

/// What waits for durability.
pub(crate) enum Held {
    Answer(Answer),
    /// A read of the store that must see the entry; the tree it is of, if it is of one alone.
    Effect(u64, Option<Uid>),
    /// Lines of a tree that are closed and can go.
    Cleanup(Arc<Tree>, Vec<u32>),
    /// A claim of the tree of this root is over: the entry that was made under it is stored, or lost.
    Claim(Uid),
    /// Something to log, which did not happen before.
    Event(Box<Event>),
    /// Something to tell those who watch.
    Told(Telling),
    /// A trajectory of this tree is READY: who follows an export is told.
    Ready(Uid, Seq),
    /// What becomes of a key.
    Key(KeyChange),
    /// What becomes of limits.
    Limits(LimitChange),
    /// What becomes of a resource of a session of this tree.
    Resource(Uid, ResourceChange),
}

/// Rows to store in one transaction.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    pub first_seq: Seq,
    pub last_seq: Seq,
    /// The trees concerned, in the order of their first entries; rows name them by index.
    pub roots: Vec<Uid>,
    pub sessions: Vec<(u32, Row)>,
    pub records: Vec<(u32, Record)>,
    pub copies: Vec<(u32, RecordCopy)>,
    pub statuses: Vec<(u32, Seq, i32)>,
    pub closes: Vec<(u32, Close)>,
    pub rewards: Vec<(u32, Uid, Seq, f64)>,
    pub finished: Vec<(u32, Finished)>,
    pub acks: Vec<(u32, Uid, u32, i64)>,
    pub stales: Vec<(u32, Uid, i64, u64)>,
    pub reopens: Vec<(u32, Reopen)>,
    pub restores: Vec<(u32, Restore)>,
    pub steps: Vec<(u32, Step)>,
    pub forgets: Vec<(u32, Uid, Seq)>,
    pub keys: Vec<(u32, KeyRow)>,
    pub revoked_keys: Vec<(u32, Uid, i64)>,
    pub limits: Vec<(u32, &'static str, Option<u64>)>,
    pub resources: Vec<(u32, ResourceRow)>,
    pub resource_updates: Vec<(u32, ResourceUpdate)>,
    pub resources_due: Vec<(u32, Uid, i64)>,
    pub resource_deletes: Vec<(u32, Arc<str>)>,
    pub cleanups_due: Vec<(u32, Uid, i64)>,
    pub mail: Vec<(u32, MailRow)>,
    pub mail_updates: Vec<(u32, MailUpdate)>,
    pub mail_ends: Vec<(u32, Uid)>,
}

/// What a batch holds already.
#[derive(Default)]
struct Folded {
    /// Place of a session's row.
    rows: HashMap<Uid, usize>,
    /// Place of what is said of a tree's staleness.
    stales: HashMap<Uid, usize>,
    acks: HashSet<(Uid, u32)>,
    /// Place of a resource's update.
    resources: HashMap<Arc<str>, usize>,
    /// Place of a message's update.
    mail: HashMap<Seq, usize>,
}

impl Batch {
    fn add(&mut self, root: u32, op: Op, folded: &mut Folded) {
        match op {
            Op::Upsert(row) => match folded.rows.get(&row.uid) {
                // Only the last image of a row is stored; what it must replace, and what only an insert writes, stays.
                Some(&i) => {
                    let old = &mut self.sessions[i].1;
                    let (prev, path, stale_due) = (old.prev, std::mem::take(&mut old.path), old.stale_due);
                    *old = Row { prev, path, stale_due, ..*row };
                }
                None => {
                    folded.rows.insert(row.uid, self.sessions.len());
                    self.sessions.push((root, *row));
                }
            },
            Op::Append(record) => self.records.push((root, *record)),
            Op::Copy(copy) => self.copies.push((root, *copy)),
            Op::Status { seq, status } => self.statuses.push((root, seq, status)),
            Op::Close(close) => self.closes.push((root, *close)),
            Op::Reward { session, seq, value } => self.rewards.push((root, session, seq, value)),
            Op::Finish(finished) => self.finished.push((root, *finished)),
            Op::Key(key) => self.keys.push((root, *key)),
            Op::RevokeKey { id, revoke_ms } => self.revoked_keys.push((root, id, revoke_ms)),
            Op::Limit { name, value } => match self.limits.iter_mut().find(|(_, known, _)| *known == name) {
                Some(limit) => limit.2 = value,
                None => self.limits.push((root, name, value)),
            },
            Op::Ack { session, number, ack_ms } => {
                // Twice in one batch is once: the store counts the rows that change.
                if folded.acks.insert((session, number)) {
                    self.acks.push((root, session, number, ack_ms));
                }
            }
            Op::Stale { root: uid, stale_ms, due } => {
                let inserted = folded.rows.get(&uid).map(|i| &mut self.sessions[*i].1).filter(|row| row.prev == 0);
                if let Some(row) = inserted {
                    (row.stale_ms, row.stale_due) = (stale_ms, due);
                } else if let Some(&i) = folded.stales.get(&uid) {
                    self.stales[i] = (root, uid, stale_ms, due);
                } else {
                    folded.stales.insert(uid, self.stales.len());
                    self.stales.push((root, uid, stale_ms, due));
                }
            }
            Op::Reopen(reopen) => self.reopens.push((root, *reopen)),
            Op::Restore(restore) => self.restores.push((root, *restore)),
            Op::Step(step) => self.steps.push((root, *step)),
            Op::Forget { uid, prev } => self.forgets.push((root, uid, prev)),
            Op::Resource(resource) => self.resources.push((root, *resource)),
            Op::ResourceUpdate(update) => match folded.resources.get(&update.name) {
                Some(&i) => {
                    let old = &mut self.resource_updates[i].1;
                    let handle = update.handle.clone().or_else(|| old.handle.take());
                    *old = ResourceUpdate { handle, ..*update };
                }
                None => {
                    folded.resources.insert(update.name.clone(), self.resource_updates.len());
                    self.resource_updates.push((root, *update));
                }
            },
            Op::ResourcesDue { session, due } => self.resources_due.push((root, session, due)),
            Op::ResourceGone { name } => self.resource_deletes.push((root, name)),
            Op::CleanupDue { session, due } => self.cleanups_due.push((root, session, due)),
            Op::Mail(mail) => self.mail.push((root, *mail)),
            Op::MailUpdate(update) => match folded.mail.get(&update.seq) {
                Some(&i) => self.mail_updates[i].1 = update,
                None => {
                    folded.mail.insert(update.seq, self.mail_updates.len());
                    self.mail_updates.push((root, update));
                }
            },
            Op::MailEnd { session } => self.mail_ends.push((root, session)),
        }
    }

    /// One batch a tree, in the order of their first entries.
    pub fn split(&self) -> Vec<Batch> {
        (0..self.roots.len() as u32)
            .map(|n| Batch {
                first_seq: self.first_seq,
                last_seq: self.last_seq,
                roots: vec![self.roots[n as usize]],
                sessions: self.sessions.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                records: self.records.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                copies: self.copies.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                statuses: self.statuses.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2)).collect(),
                closes: self.closes.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                rewards: self.rewards.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2, r.3)).collect(),
                finished: self.finished.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                acks: self.acks.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2, r.3)).collect(),
                stales: self.stales.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2, r.3)).collect(),
                reopens: self.reopens.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                restores: self.restores.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                steps: self.steps.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                forgets: self.forgets.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2)).collect(),
                keys: self.keys.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                revoked_keys: self.revoked_keys.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2)).collect(),
                limits: self.limits.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2)).collect(),
                resources: self.resources.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                resource_updates: self.resource_updates.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                resources_due: self.resources_due.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2)).collect(),
                resource_deletes: self.resource_deletes.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                cleanups_due: self.cleanups_due.iter().filter(|r| r.0 == n).map(|r| (0, r.1, r.2)).collect(),
                mail: self.mail.iter().filter(|r| r.0 == n).map(|r| (0, r.1.clone())).collect(),
                mail_updates: self.mail_updates.iter().filter(|r| r.0 == n).map(|r| (0, r.1)).collect(),
                mail_ends: self.mail_ends.iter().filter(|r| r.0 == n).map(|r| (0, r.1)).collect(),
            })
            .collect()
    }
}

pub(crate) struct Journal {
    inner: Mutex<Inner>,
    durable: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
    bound: AtomicU64,
}

struct Inner {
    next: Seq,
    /// The first sequence of the queue.
    queued: Seq,
    queue: VecDeque<Entry>,
    flight: Vec<Sent>,
    flight_last: Seq,
    held: BTreeMap<Seq, Vec<Held>>,
    /// What is durable and not yet told, in order.
    told: VecDeque<Telling>,
}

/// The journal while one entry is being made: its sequences are fixed.
pub(crate) struct Appending<'a> {
    inner: MutexGuard<'a, Inner>,
    journal: &'a Journal,
    /// The latest of them.
    pub(crate) seq: Seq,
}

impl Appending<'_> {
    /// Another sequence in the same entry: each record needs one of its own.
    pub(crate) fn another(&mut self) -> Seq {
        self.seq += 1;
        self.seq
    }

    pub(crate) fn push(mut self, tree: &Arc<Tree>, ops: Vec<Op>, pinned: Vec<Handle>, at_ms: u64) -> Seq {
        let bytes = ops.iter().map(Op::bytes).sum();
        let seqs = self.seq + 1 - self.inner.next;
        self.inner.next += seqs;
        self.inner.queue.push_back(Entry { sent: Sent { tree: tree.clone(), pinned, bytes, at_ms }, ops, seqs });
        self.journal.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.journal.entries.fetch_add(1, Ordering::Relaxed);
        self.seq
    }
}

/// What an append's end sets free.
#[derive(Default)]
pub(crate) struct Released {
    /// How many entries are durable now.
    pub(crate) stored: u64,
    pub(crate) held: Vec<Held>,
    pub(crate) unpin: Vec<Handle>,
    /// Held by the entries that were lost, and the trees concerned.
    pub(crate) lost_held: Vec<Held>,
    pub(crate) lost_trees: Vec<Arc<Tree>>,
}

impl Journal {
    pub(crate) fn new(last_seq: Seq, bound: u64) -> Self {
        let inner = Inner {
            next: last_seq + 1,
            queued: last_seq + 1,
            queue: VecDeque::new(),
            flight: Vec::new(),
            flight_last: last_seq,
            held: BTreeMap::new(),
            told: VecDeque::new(),
        };
        Journal {
            inner: Mutex::new(inner),
            durable: AtomicU64::new(last_seq),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            bound: AtomicU64::new(bound),
        }
    }

    /// Begins an entry. The caller holds its tree's lock.
    pub(crate) fn append(&self) -> Appending<'_> {
        let inner = self.inner.lock();
        let seq = inner.next;
        Appending { inner, journal: self, seq }
    }

    pub(crate) fn durable(&self) -> Seq {
        self.durable.load(Ordering::Acquire)
    }

    /// Entries and bytes not yet durable.
    pub(crate) fn backlog(&self) -> (u64, u64) {
        (self.entries.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// For how long the oldest entry has not been durable. Unit: milliseconds.
    pub(crate) fn lag(&self, now_ms: u64) -> u64 {
        let inner = self.inner.lock();
        let oldest = inner.flight.first().or_else(|| inner.queue.front().map(|e| &e.sent));
        oldest.map_or(0, |sent| now_ms.saturating_sub(sent.at_ms))
    }

    /// The sequence of the last entry appended.
    pub(crate) fn last_seq(&self) -> Seq {
        self.inner.lock().next - 1
    }

    /// From now on so many bytes may wait. What waits already stays.
    pub(crate) fn set_bound(&self, bound: u64) {
        self.bound.store(bound, Ordering::Relaxed);
    }

    pub(crate) fn full(&self) -> bool {
        self.backlog().1 >= self.bound.load(Ordering::Relaxed)
    }

    pub(crate) fn behind(&self) -> bool {
        self.backlog().1 >= self.bound.load(Ordering::Relaxed) / 4 * 3
    }

    pub(crate) fn has_queue(&self) -> bool {
        !self.inner.lock().queue.is_empty()
    }

    /// Keeps `held` until `seq` is durable; gives it back if it is.
    pub(crate) fn hold(&self, seq: Seq, held: Held) -> Option<Held> {
        if seq <= self.durable() {
            return Some(held);
        }
        let mut inner = self.inner.lock();
        if seq <= self.durable() {
            return Some(held);
        }
        inner.held.entry(seq).or_default().push(held);
        None
    }

    /// Has those who watch told once `seq` is durable. True if it is: then somebody must take what there is to tell.
    ///
    /// What is told of one tree keeps its order, though one of two events may be held and the other come late: both go
    /// the way over `told`, and the tree's lock makes the earlier one come first.
    pub(crate) fn tell(&self, seq: Seq, tenant: &Arc<str>, told: Told) -> bool {
        let telling = (tenant.clone(), Arc::new(told));
        let mut inner = self.inner.lock();
        if seq <= self.durable() {
            inner.told.push_back(telling);
            return true;
        }
        inner.held.entry(seq).or_default().push(Held::Told(telling));
        false
    }

    /// What is durable and was not told before.
    pub(crate) fn take_told(&self) -> VecDeque<Telling> {
        std::mem::take(&mut self.inner.lock().told)
    }

    /// The next batch, if none is in flight and there is something to store.
    pub(crate) fn take(&self, max_entries: usize) -> Option<Batch> {
        // A batch this large is worth an fsync of its own; more would only hold its answers back.
        const MAX_BYTES: u64 = 16 << 20;
        let mut inner = self.inner.lock();
        if inner.queue.is_empty() || !inner.flight.is_empty() {
            return None;
        }
        let mut batch = Batch { first_seq: inner.queued, ..Batch::default() };
        let (mut folded, mut roots, mut bytes, mut count) = (Folded::default(), HashMap::new(), 0, 0);
        while inner.queue.front().is_some_and(|entry| count == 0 || !entry.alone()) {
            let Some(entry) = inner.queue.pop_front() else { break };
            let ends = entry.alone() || entry.last();
            bytes += entry.sent.bytes;
            count += 1;
            inner.queued += entry.seqs;
            let root = *roots.entry(entry.sent.tree.root).or_insert_with(|| {
                batch.roots.push(entry.sent.tree.root);
                batch.roots.len() as u32 - 1
            });
            for op in entry.ops {
                batch.add(root, op, &mut folded);
            }
            inner.flight.push(entry.sent);
            if ends || count >= max_entries || bytes >= MAX_BYTES {
                break;
            }
        }
        batch.last_seq = inner.queued - 1;
        inner.flight_last = batch.last_seq;
        Some(batch)
    }

    /// The batch in flight is durable, but for the trees in `quarantine`, which lose it and all queued behind it.
    pub(crate) fn stored(&self, quarantine: &[Uid]) -> Released {
        let mut inner = self.inner.lock();
        let mut out = Released::default();
        let lost = |tree: &Arc<Tree>| quarantine.contains(&tree.root);
        for sent in std::mem::take(&mut inner.flight) {
            self.forget(&sent, &mut out);
            if lost(&sent.tree) {
                out.lost_trees.push(sent.tree);
            } else {
                out.stored += 1;
            }
        }
        if !quarantine.is_empty() {
            // The entries stay, emptied: their sequences are spent.
            for entry in inner.queue.iter_mut().filter(|e| lost(&e.sent.tree)) {
                entry.ops.clear();
                out.lost_trees.push(entry.sent.tree.clone());
            }
            for held in std::mem::take(&mut inner.held) {
                let (gone, kept): (Vec<_>, Vec<_>) = held.1.into_iter().partition(|h| match h {
                    // One of several trees (RenewTurns) may tell of one that was lost.
                    Held::Answer(a) => a.root.is_none_or(|r| quarantine.contains(&r)),
                    Held::Cleanup(t, _) => lost(t),
                    // Where it is not known which tree it is of, what it is for is decided again.
                    Held::Effect(_, root) => root.is_none_or(|r| quarantine.contains(&r)),
                    Held::Event(e) => quarantine.contains(&e.root),
                    Held::Told((_, told)) => quarantine.contains(&told.root()),
                    Held::Claim(root) | Held::Ready(root, _) | Held::Resource(root, _) => quarantine.contains(root),
                    Held::Key(_) | Held::Limits(_) => quarantine.contains(&KEYS_ROOT),
                });
                out.lost_held.extend(gone);
                inner.held.insert(held.0, kept);
            }
        }
        let last = inner.flight_last;
        self.durable.store(last, Ordering::Release);
        let later = inner.held.split_off(&(last + 1));
        for held in std::mem::replace(&mut inner.held, later).into_values().flatten() {
            match held {
                Held::Told(telling) => inner.told.push_back(telling),
                held => out.held.push(held),
            }
        }
        out
    }

    /// The batch in flight was refused: it and all queued behind it did not happen.
    pub(crate) fn refused(&self) -> Released {
        let mut inner = self.inner.lock();
        let mut out = Released::default();
        let queued = std::mem::take(&mut inner.queue).into_iter().map(|e| e.sent);
        for sent in std::mem::take(&mut inner.flight).into_iter().chain(queued) {
            self.forget(&sent, &mut out);
            out.lost_trees.push(sent.tree);
        }
        // The sequences are spent: nothing will ever bear them, and what waits for them must not wait for ever.
        inner.queued = inner.next;
        self.durable.store(inner.next - 1, Ordering::Release);
        out.lost_held.extend(std::mem::take(&mut inner.held).into_values().flatten());
        out
    }

    fn forget(&self, sent: &Sent, out: &mut Released) {
        self.bytes.fetch_sub(sent.bytes, Ordering::Relaxed);
        self.entries.fetch_sub(1, Ordering::Relaxed);
        out.unpin.extend(&sent.pinned);
    }
}
