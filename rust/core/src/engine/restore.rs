//! RestoreSessions: sessions made from their dumps, in bounded entries.
//!
//! The first entry makes the row, SEALED and marked as restoring: whoever reads it is told so and nothing else. The next
//! ones append what the dump holds, under sequences of this journal; the last one makes it CLOSED. They are steps like
//! those of clean-up, each decided by the row that the one before it left. A row that nobody goes on with is purged and
//! forgotten by clean-up. Chains cover what does not change on the way, so they verify as they did.

use super::ended::{cleanup_of, is_purging, is_restoring};
use super::keyring::Who;
use super::mail::request_key;
use super::open::parent_not_found;
use super::reload::Located;
use super::tree::Line;
use super::{Answer, Call, Engine, Moment, Pending, SessionRow, Work, count};
use crate::chain::FINISHED;
use crate::error::{Reason, Refusal};
use crate::gen_store::{Cleanup, MessageMeta, Receipt, RequestMark, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{Uid, check_name, check_session_id};
use crate::journal::{Appending, Finished, Held, MailRow, MailUpdate, Op, Record, Restore, Seq, Step};
use prost::Message;
use std::sync::Arc;

/// The session of a dump, as its line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpedSession {
    pub uid: Uid,
    pub session_id: String,
    pub root: Uid,
    pub parent: Option<Uid>,
    pub path: String,
    pub depth: u32,
    pub create_ms: i64,
    pub head: u32,
    pub head_version: u64,
    pub fence: u64,
    pub facts: Vec<u8>,
    pub receipt: Vec<u8>,
}

/// A record or event of a dump; its sequences are given anew.
#[derive(Clone, Debug, PartialEq)]
pub struct DumpedRecord {
    pub status: i32,
    pub turn: u32,
    pub meta: Vec<u8>,
    pub chain: Vec<u8>,
    pub tokens: Option<Vec<u8>>,
    pub state: Option<Vec<u8>>,
    pub arrays: Option<Vec<u8>>,
    pub content: Option<Vec<u8>>,
    pub reward: Option<f64>,
}

/// A finished trajectory of a dump, under the sequences that its records have here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpedTrajectory {
    pub number: u32,
    pub ready_seq: Seq,
    pub after_seq: Seq,
    pub first_turn: u32,
    pub turn_count: u32,
    pub ready_ms: i64,
}

/// A message of a dump that ended with its session; its sequence is given anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpedMail {
    pub id: Uid,
    pub sender: Option<Uid>,
    pub kind: i32,
    pub expire: i64,
    pub deliveries: u32,
    pub fence: u64,
    pub create_ms: i64,
    pub meta: Vec<u8>,
    pub content: Option<Vec<u8>>,
}

/// What one step brings back. The records have consecutive sequences, and the row's `last` is that of the last one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestoreStep {
    pub records: Vec<DumpedRecord>,
    pub trajectories: Vec<DumpedTrajectory>,
    pub mail: Vec<DumpedMail>,
    /// In the last one.
    pub end: Option<RestoreEnd>,
}

/// What makes a session that is all there CLOSED. Sequences of the session's facts, as they are here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreEnd {
    pub state_seq: Seq,
    pub head_seq: Seq,
    pub trajectory_seq: Seq,
    /// For each of the past receipts the last record before that close; 0: none was.
    pub closed_seqs: Vec<Seq>,
    /// Size and SHA-256 of the dump, which was verified.
    pub dump_bytes: u64,
    pub dump_sha256: [u8; 32],
    /// The request that asked for it, and its hash.
    pub request: Option<(String, Vec<u8>)>,
}

#[derive(Debug)]
pub(crate) struct RestoreCall {
    pub(crate) session: DumpedSession,
    receipt: Receipt,
    facts: SessionFacts,
    /// The id of its parent; empty for a root.
    parent_session_id: String,
    /// The parent's row, read while the tree is claimed.
    parent: Option<SessionRow>,
}

/// The largest integer that a store keeps.
const LARGEST: u64 = i64::MAX as u64;

impl Engine {
    /// Begins to restore a session: journals its row. The reply is "done". The caller has verified the dump, has seen
    /// that the store does not know the uid, and restores one session at a time. `parent_session_id` is the id of the
    /// session of the parent's uid; empty for a root.
    pub fn restore_session(
        &self,
        tenant: &str,
        session: DumpedSession,
        parent_session_id: &str,
        now: Moment,
    ) -> super::Outcome {
        match RestoreCall::checked(session, parent_session_id) {
            Ok(call) => self.start(Call::Restore(Box::new(call)), tenant, Who::ADMIN, 0, now),
            Err(refusal) => {
                self.refused(&refusal);
                super::Outcome::Refused(refusal)
            }
        }
    }

    pub(crate) fn restore(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Call::Restore(restore) = &call.call else { return };
        let (id, root) = (restore.session.session_id.clone(), restore.session.root);
        // What it comes below is neither purged nor forgotten meanwhile.
        let Some(call) = self.claim(call, root) else { return };
        if let Call::Restore(restore) = &call.call
            && restore.session.depth > 0
            && restore.parent.is_none()
        {
            let above = restore.parent_session_id.clone();
            return self.ask_row(call, &above, 0);
        }
        match self.locate(call, &id, work) {
            Located::Gone => {}
            Located::Ended(call, _) => self.refuse_call(call, exists(&id), work),
            Located::At(mut call, tree, index) => match Self::still_at(&tree, index, &id) {
                Some(state) => {
                    self.unclaim_call(&mut call, work);
                    self.reply(call.ticket, Err(exists(&id)), &tree, &state, work);
                }
                None => work.calls.push_back(call),
            },
            Located::Absent(call) => self.restore_absent(call, work, now),
        }
    }

    /// The row of the parent was read.
    pub(crate) fn parent_row_read(&self, mut call: Pending, row: Option<SessionRow>, work: &mut Work) {
        let Call::Restore(restore) = &mut call.call else { return };
        let same = |row: &SessionRow| (Some(row.uid), row.root) == (restore.session.parent, restore.session.root);
        match row.filter(|row| same(row) && !is_restoring(row.cleanup.as_deref())) {
            Some(row) => {
                restore.parent = Some(row);
                work.calls.push_back(call);
            }
            None => {
                let refusal = parent_not_found(&restore.parent_session_id);
                self.refuse_call(call, refusal, work);
            }
        }
    }

    /// Its id is nobody's: makes the row, and a line in memory until that is durable, so that nobody else takes the id.
    fn restore_absent(&self, mut call: Pending, work: &mut Work, now: &mut Moment) {
        let Call::Restore(restore) = &call.call else { return };
        let session = &restore.session;
        let allowed = if self.is_quarantined(session.root) {
            Err(super::quarantined(&session.session_id))
        } else {
            self.check_store_bytes()
        };
        if let Err(refusal) = allowed {
            return self.refuse_call(call, refusal, work);
        }
        // A tree to carry the entry: an ended session is in nobody's tree.
        let tree = Arc::new(self.new_tree(session.root, call.tenant.clone()));
        let mut state = tree.state.lock();
        let mut line = Line::new(session.uid, session.session_id.as_str().into());
        (line.depth, line.closes) = (session.depth, restore.receipt.close_number);
        line.closed = Some(Box::new(restore.receipt.clone()));
        let session_id = line.session_id.clone();
        let index = state.add(line);
        let Ok(calls) = tree.tenant.directory.insert(&session_id, &tree, index) else {
            drop(state);
            return work.calls.push_back(call);
        };
        work.calls.extend(calls);
        let cleanup = Cleanup { restoring: true, ..Cleanup::default() };
        let row = |seq| Restore {
            uid: session.uid,
            tenant: call.tenant.name.clone(),
            session_id: session_id.clone(),
            root: session.root,
            parent: session.parent,
            path: session.path.clone(),
            depth: session.depth,
            create_ms: session.create_ms,
            head: session.head,
            head_version: session.head_version,
            fence: session.fence,
            stale_ms: if session.depth == 0 { restore.facts.stale_timeout_ms.max(0) } else { 0 },
            closes: restore.receipt.close_number,
            cleanup_due: now.wall_ms.max(1),
            close_seq: restore.receipt.close_seq,
            seq,
            facts: session.facts.clone(),
            outcome: restore.facts.last_outcome,
            wakes: restore.facts.wake_on_completion,
            receipt: session.receipt.clone(),
            cleanup: cleanup.encode_to_vec(),
        };
        let appending = self.journal.append();
        let seq = appending.seq;
        if let Some(line) = state.line_mut(index) {
            line.seq = seq;
        }
        let mut ops = vec![Op::Restore(Box::new(row(seq)))];
        // A tombstone that was to be forgotten has something below it now: whoever decided that has to look again.
        let parent = restore.parent.as_ref().filter(|parent| is_purging(parent.cleanup.as_deref()));
        ops.extend(parent.map(|parent| Op::Step(Box::new(Step { seq, ..unchanged(parent) }))));
        state.last_seq = appending.push(&tree, ops, Vec::new(), now.mono_ms);
        self.charge_header(&tree, &mut state, now);
        drop(state);
        if let Some(Held::Cleanup(tree, lines)) = self.journal.hold(seq, Held::Cleanup(tree.clone(), vec![index])) {
            // The writer was faster.
            work.cleanups.push((tree, lines));
        }
        self.hold_claim(call.claimed.take(), seq, work);
        let root = Some(tree.root);
        work.answers.push(Answer { ticket: call.ticket, result: Ok(b"done".to_vec()), after: seq, root });
    }

    /// Whether a step may follow on this row; `None`: the row is no such.
    pub(crate) fn restore_step(
        &self,
        row: &SessionRow,
        part: &RestoreStep,
        now: &Moment,
    ) -> Option<Result<Step, Refusal>> {
        if row.state != v1::SessionState::Sealed as i32 || cleanup_of(row).is_none_or(|c| !c.restoring || c.purging) {
            return None;
        }
        Some(part.check(row).map(|()| {
            let mut step = unchanged(row);
            if let Some(end) = &part.end {
                step.state = v1::SessionState::Closed as i32;
                step.facts = end.facts(&row.facts).encode_to_vec();
                let cleanup = Cleanup {
                    closed_ms: now.wall_ms,
                    dump_bytes: end.dump_bytes,
                    dump_sha256: end.dump_sha256.to_vec(),
                    dump_ms: now.wall_ms,
                    restored_ms: now.wall_ms,
                    ..Cleanup::default()
                };
                step.cleanup = cleanup.encode_to_vec();
                step.cleanup_due = now.wall_ms.saturating_add(self.limits.retention_ms() as i64).max(1);
            }
            step
        }))
    }

    /// Who follows exports is told of what came back READY.
    pub(crate) fn restored(&self, root: Uid, seq: Seq) {
        count(&self.counters.sessions_restored);
        if let Some(Held::Ready(_, seq)) = self.journal.hold(seq, Held::Ready(root, seq)) {
            self.ready(seq);
        }
    }
}

impl RestoreCall {
    /// A row that every rule of the store lets in, whatever the dump says of itself.
    fn checked(session: DumpedSession, parent_session_id: &str) -> Result<Self, Refusal> {
        let damaged = |what: &str| Refusal::new(Reason::DumpDamaged, format!("its session cannot be: {what}"));
        check_session_id("session_id", &session.session_id).map_err(|_| damaged("its id is none"))?;
        let names: Vec<&str> = session.path.split('/').collect();
        let named = names.len() == session.depth as usize + 2
            && names[..2] == ["", "root"]
            && names[2..].iter().all(|name| check_name(name).is_ok());
        let is_root = session.depth == 0;
        if !named || is_root != session.parent.is_none() || is_root != (session.root == session.uid) {
            return Err(damaged("its place in its tree is none"));
        }
        if session.head_version > LARGEST || session.fence > LARGEST {
            return Err(damaged("one of its numbers is none"));
        }
        let receipt = Receipt::decode(&session.receipt[..]).ok().filter(|r| r.close_number > 0 && r.close_seq >= 0);
        let facts = SessionFacts::decode(&session.facts[..]).ok();
        match (receipt, facts) {
            (Some(receipt), Some(facts)) => {
                let parent_session_id = parent_session_id.to_owned();
                Ok(RestoreCall { session, receipt, facts, parent_session_id, parent: None })
            }
            _ => Err(damaged("its receipt or its facts do not decode")),
        }
    }
}

impl RestoreStep {
    /// Whether the store's rules let it in.
    fn check(&self, row: &SessionRow) -> Result<(), Refusal> {
        let damaged = |what: &str| Err(Refusal::new(Reason::DumpDamaged, what.to_owned()));
        for record in &self.records {
            let event = record.status == FINISHED;
            if record.chain.len() != 32 || !(1..=FINISHED).contains(&record.status) || (record.turn == 0 && !event) {
                return damaged("one of its records cannot be");
            }
        }
        for t in &self.trajectories {
            let last = row.last + self.records.len() as u64;
            if t.number == 0 || t.first_turn == 0 || t.after_seq >= t.ready_seq || t.ready_seq > last {
                return damaged("one of its trajectories cannot be");
            }
        }
        for mail in &self.mail {
            let known = (v1::MessageKind::Message as i32..=v1::MessageKind::Closed as i32).contains(&mail.kind);
            if !known || mail.expire < 0 || mail.fence > LARGEST || MessageMeta::decode(&mail.meta[..]).is_err() {
                return damaged("one of its messages cannot be");
            }
        }
        Ok(())
    }

    /// Writes what it brings, with a sequence for each record and message, and the row that follows. The row's sequence is returned.
    pub(crate) fn put(
        self,
        mut step: Step,
        row: &SessionRow,
        tenant: &Arc<str>,
        appending: &mut Appending<'_>,
        ops: &mut Vec<Op>,
    ) -> Seq {
        let mut next = appending.seq;
        for record in self.records {
            let (seq, prev) = (next, std::mem::replace(&mut step.last, next));
            if let Some(value) = record.reward {
                ops.push(Op::Reward { session: row.uid, seq, value });
            }
            ops.push(Op::Append(Box::new(Record {
                seq,
                session: row.uid,
                prev,
                status: record.status,
                turn: record.turn,
                meta: record.meta,
                chain: record.chain.try_into().unwrap_or_default(),
                tokens: record.tokens,
                state: record.state,
                arrays: record.arrays,
                content: record.content,
            })));
            next = appending.another();
        }
        for t in self.trajectories {
            ops.push(Op::Finish(Box::new(Finished {
                session: row.uid,
                number: t.number,
                tenant: tenant.clone(),
                root: row.root,
                ready_seq: t.ready_seq,
                after_seq: t.after_seq,
                first_turn: t.first_turn,
                turn_count: t.turn_count,
                ready_ms: t.ready_ms,
            })));
        }
        let any_mail = !self.mail.is_empty();
        for mail in self.mail {
            mail.put(next, row, tenant, ops);
            next = appending.another();
        }
        if any_mail {
            ops.push(Op::MailEnd { session: row.uid });
        }
        step.seq = next;
        ops.push(Op::Step(Box::new(step)));
        next
    }
}

impl DumpedMail {
    /// As it was sent, and as its last turn had left it; it ends with its session in the same entry.
    fn put(self, seq: Seq, row: &SessionRow, tenant: &Arc<str>, ops: &mut Vec<Op>) {
        let meta = MessageMeta::decode(&self.meta[..]).unwrap_or_default();
        let request = meta.request.as_ref().map(|mark| request_key(self.sender, mark));
        let DumpedMail { id, sender, kind, expire, deliveries, fence, create_ms, meta, content } = self;
        let mail = MailRow {
            seq,
            id,
            recipient: row.uid,
            root: row.root,
            tenant: tenant.clone(),
            sender,
            kind,
            due: -1,
            expire,
            create_ms,
            meta,
            content,
            request,
        };
        ops.push(Op::Mail(Box::new(mail)));
        let state = v1::MessageState::Queued as i32;
        ops.push(Op::MailUpdate(MailUpdate { seq, state, due: -1, deliveries, fence }));
    }
}

impl RestoreEnd {
    /// The facts of a dump, with the sequences of this journal.
    fn facts(&self, dumped: &[u8]) -> SessionFacts {
        let mut facts = SessionFacts::decode(dumped).unwrap_or_default();
        facts.state_seq = self.state_seq as i64;
        facts.head_seq = self.head_seq as i64;
        facts.trajectory_seq = self.trajectory_seq as i64;
        for (receipt, closed_seq) in facts.past_receipts.iter_mut().zip(&self.closed_seqs) {
            // Never 0, which is before everything: the row itself took a sequence, and nothing of it is older.
            receipt.close_seq = (*closed_seq).max(1) as i64;
        }
        let mark =
            |(request_id, hash): &(String, Vec<u8>)| RequestMark { request_id: request_id.clone(), hash: hash.clone() };
        facts.restore_request = self.request.as_ref().map(mark);
        facts
    }
}

/// The step that leaves a row as it is, but for its sequence.
pub(crate) fn unchanged(row: &SessionRow) -> Step {
    Step {
        uid: row.uid,
        prev: row.seq,
        seq: 0,
        state: row.state,
        last: row.last,
        facts: row.facts.clone(),
        cleanup: row.cleanup.clone().unwrap_or_default(),
        cleanup_due: row.cleanup_due,
        purge: Vec::new(),
        purged: false,
    }
}

/// The refusal of a session that is known.
fn exists(session_id: &str) -> Refusal {
    Refusal::new(Reason::SessionExists, format!("session {session_id:?} is known")).with("session_id", session_id)
}
