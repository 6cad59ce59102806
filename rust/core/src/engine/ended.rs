//! What follows a close: the steps of clean-up, in whatever order a handler takes them, and ReopenSession. The steps of a
//! restore come the same way; what they are is in `restore.rs`.
//!
//! An ended session is not in memory; its row in the store is all there is of it. One call at a time may change the ended
//! sessions of a tree (a *claim*): it reads their rows, decides, appends, and the next one reads when that is durable.
//! Forks share one, for as long as what they copy may not be deleted.

use super::keyring::Who;
use super::reload::{Effect, Located, Purpose};
use super::restore::{RestoreStep, unchanged};
use super::tree::{Line, Tree, TreeState};
use super::{Answer, Call, Engine, Found, Moment, Pending, SessionRow, Work, closed, count, not_found, quarantined};
use crate::error::{Quota, Reason, Refusal};
use crate::gen_store::{Cleanup, Receipt, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{Uid, repeats};
use crate::journal::{Held, Op, Reopen, Seq};
use parking_lot::Mutex;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The trees whose ended sessions a call may change, or that calls copy from, by root. By tree, because a session comes
/// back with its descendants.
pub(crate) type Claims = Mutex<HashMap<Uid, Claim>>;

#[derive(Debug, Default)]
pub(crate) struct Claim {
    /// How many calls copy from it, while nobody changes it; 0: one call may change it.
    shares: u32,
    /// The calls that wait for its end.
    waiting: Vec<Pending>,
}

/// How many of its closes and reopens a session remembers, for late repeats.
const REMEMBERED: usize = 8;
/// A tombstone that stands above others is looked at again after this time. Unit: milliseconds.
const LATER_MS: i64 = 3_600_000;

/// A dump that was read back and found whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpMade {
    pub bytes: u64,
    pub sha256: [u8; 32],
}

/// A step of clean-up that a handler has done, or found that it cannot do.
#[derive(Clone, Debug, PartialEq)]
pub enum CleanupStep {
    /// A SEALED session has its dump, now or since before, or needs none: it becomes CLOSED, or, while it has resources,
    /// these are released.
    Cleaned { dump: Option<DumpMade> },
    /// What was tried failed, for this reason; it is tried again later.
    Failed { error: String },
    /// Deletes these records, the newest that are left; `last` is then the newest. `acknowledged`: all that was committed
    /// belongs to acknowledged trajectories.
    Purge { records: Vec<Seq>, last: Seq, acknowledged: bool },
    /// Its content may not be deleted before it is acknowledged.
    Keep,
    /// Deletes the tombstone. Those below it are forgotten before: what is left of a tree shows where it was.
    Forget,
    /// It may not be forgotten yet, for there is something below it.
    Later,
    /// The next of what a restore brings back.
    Restore(Box<RestoreStep>),
}

#[derive(Debug)]
pub(crate) struct StepCall {
    pub(crate) session_id: String,
    uid: Uid,
    root: Uid,
    /// The row that the step was decided by.
    prev: Seq,
    step: CleanupStep,
}

impl StepCall {
    /// Whether it brings more into the store.
    pub(crate) fn grows(&self) -> bool {
        matches!(self.step, CleanupStep::Restore(_))
    }
}

/// Replies of [`Engine::cleanup_step`] and [`Engine::resource_step`].
pub(crate) const DONE: &[u8] = b"done";
pub(crate) const CHANGED: &[u8] = b"changed";

/// The first retry of a failed step comes after about this; each one after that takes twice as long.
const RETRY_MS: i64 = 1_000;
const RETRY_MOST_MS: i64 = 300_000;

impl Engine {
    /// Grows whenever a close became durable: whoever cleans up looks again.
    pub fn ended_count(&self) -> u64 {
        self.ended.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Journals a step of the clean-up of the session whose row has this uid and sequence. The reply is "done", or
    /// "changed" where the row is another by now, or the step is not one of its state: nothing was done then.
    pub fn cleanup_step(
        &self,
        tenant: &str,
        session_id: &str,
        (uid, root): (Uid, Uid),
        prev: Seq,
        step: CleanupStep,
        now: Moment,
    ) -> super::Outcome {
        let call = Call::Step(Box::new(StepCall { session_id: session_id.to_owned(), uid, root, prev, step }));
        self.start(call, tenant, Who::ADMIN, 0, now)
    }

    pub(crate) fn cleanup(&self, call: Pending) {
        let Call::Step(step) = &call.call else { return };
        let (root, id) = (step.root, step.session_id.clone());
        if let Some(call) = self.claim(call, root) {
            self.ask_row(call, &id, 0);
        }
    }

    /// Makes this the one call that may change the ended sessions of a tree, or parks it behind the one that is.
    pub(crate) fn claim(&self, mut call: Pending, root: Uid) -> Option<Pending> {
        if call.claimed == Some(root) {
            return Some(call);
        }
        let mut claims = self.claims.lock();
        if let Some(claim) = claims.get_mut(&root) {
            claim.waiting.push(call);
            return None;
        }
        claims.insert(root, Claim::default());
        call.claimed = Some(root);
        Some(call)
    }

    /// Makes this one of the calls that copy from a tree: until its claim is over nothing of it is deleted. Parks it behind
    /// one that may delete something, or waits to.
    pub(crate) fn share(&self, mut call: Pending, root: Uid) -> Option<Pending> {
        if call.claimed == Some(root) {
            return Some(call);
        }
        let mut claims = self.claims.lock();
        match claims.get_mut(&root) {
            // Who waits is not passed by: else forks that follow each other would hold clean-up off for good.
            Some(claim) if claim.shares == 0 || !claim.waiting.is_empty() => {
                claim.waiting.push(call);
                return None;
            }
            Some(claim) => claim.shares += 1,
            None => drop(claims.insert(root, Claim { shares: 1, waiting: Vec::new() })),
        }
        call.claimed = Some(root);
        Some(call)
    }

    /// The claim is over: who waited for it runs from the start, after the last of those who shared it.
    pub(crate) fn unclaim(&self, root: Uid, work: &mut Work) {
        let mut claims = self.claims.lock();
        if let Some(claim) = claims.get_mut(&root).filter(|claim| claim.shares > 1) {
            claim.shares -= 1;
            return;
        }
        work.calls.extend(claims.remove(&root).into_iter().flat_map(|claim| claim.waiting));
    }

    pub(crate) fn unclaim_call(&self, call: &mut Pending, work: &mut Work) {
        call.found = None;
        if let Some(root) = call.claimed.take() {
            self.unclaim(root, work);
        }
    }

    /// A refusal of a call that may hold a claim.
    pub(crate) fn refuse_call(&self, mut call: Pending, refusal: Refusal, work: &mut Work) {
        self.unclaim_call(&mut call, work);
        self.refuse(call.ticket, refusal, work);
    }

    /// The entry of a call is in the journal: what it has claimed it has no more when that is durable, or lost.
    pub(crate) fn hold_claim(&self, claimed: Option<Uid>, seq: Seq, work: &mut Work) {
        let held = claimed.and_then(|root| self.journal.hold(seq, Held::Claim(root)));
        if let Some(Held::Claim(root)) = held {
            self.unclaim(root, work);
        }
    }

    /// The row of a session was read for a step of its clean-up.
    pub(crate) fn cleanup_row_read(
        &self,
        mut call: Pending,
        row: Option<SessionRow>,
        work: &mut Work,
        now: &mut Moment,
    ) {
        if let Err(refusal) = self.admit(&call.call, now) {
            return self.refuse_call(call, refusal, work);
        }
        let Call::Step(step) = &mut call.call else { return };
        let open = v1::SessionState::Open as i32;
        let same = |row: &SessionRow| (row.uid, row.root, row.seq) == (step.uid, step.root, step.prev);
        let row = row.filter(|row| same(row) && row.state != open && !self.is_quarantined(row.root));
        let part = match (&row, &step.step) {
            (Some(row), CleanupStep::Restore(part)) => match self.restore_step(row, part, now).transpose() {
                Ok(step) => step.map(|step| Op::Step(Box::new(step))),
                Err(refusal) => return self.refuse_call(call, refusal, work),
            },
            _ => None,
        };
        // A tree to carry the entry, no more: an ended session is in nobody's memory.
        let root = row.as_ref().map_or(Uid(0), |row| row.root);
        let tree = Arc::new(self.new_tree(root, call.tenant.clone()));
        let mut state = tree.state.lock();
        let mut appending = self.journal.append();
        // While the journal is locked none of its resources is released: whoever is last finds what is planned here.
        let planned = row.and_then(|row| {
            let plan = || self.plan(&row, &step.step, self.resources.left(row.uid), now);
            let op = part.or_else(plan)?;
            Some((row, op))
        });
        let Some((row, op)) = planned else {
            drop(appending);
            self.unclaim_call(&mut call, work);
            return work.answers.push(answer(call.ticket, CHANGED, 0));
        };
        self.count_step(&step.step, &op);
        let step = std::mem::replace(&mut step.step, CleanupStep::Keep);
        let (mut seq, mut restored, mut waits) = (appending.seq, false, false);
        let ops = match (step, op) {
            (CleanupStep::Restore(part), Op::Step(made)) => {
                restored = part.end.is_some();
                let mut ops = Vec::with_capacity(part.records.len() * 2 + part.trajectories.len() + 1);
                seq = part.put(*made, &row, &tree.tenant.name, &mut appending, &mut ops);
                ops
            }
            (step, Op::Step(mut made)) => {
                made.seq = seq;
                let sealed = made.state == v1::SessionState::Sealed as i32;
                waits = sealed && matches!(step, CleanupStep::Cleaned { .. });
                let due = waits.then(|| Op::ResourcesDue { session: made.uid, due: now.wall_ms.max(1) });
                std::iter::once(Op::Step(made)).chain(due).collect()
            }
            (_, op) => vec![op],
        };
        state.last_seq = appending.push(&tree, ops, Vec::new(), now.mono_ms);
        drop(state);
        if restored {
            self.restored(row.root, seq);
        }
        if waits {
            self.hold_due(root, seq, work);
        }
        self.hold_claim(call.claimed.take(), seq, work);
        work.answers.push(answer(call.ticket, DONE, seq));
    }

    pub(crate) fn is_quarantined(&self, root: Uid) -> bool {
        self.recovery.lock().quarantined.contains(&root)
    }

    /// What a step makes of a row; `None` if it is not one of its state, or not allowed (I14).
    /// `resources`: how many it has left.
    fn plan(&self, row: &SessionRow, step: &CleanupStep, resources: u32, now: &mut Moment) -> Option<Op> {
        let sealed = row.state == v1::SessionState::Sealed as i32;
        let closed = v1::SessionState::Closed as i32;
        let mut cleanup = cleanup_of(row)?;
        let later = |ms: u64| now.wall_ms.saturating_add(ms as i64).max(1);
        let mut made = unchanged(row);
        match step {
            CleanupStep::Cleaned { dump } if sealed && !cleanup.restoring => {
                let wanted = receipt_of(row).is_some_and(|r| !r.dump_name.is_empty());
                if wanted && dump.is_none() && cleanup.dump_ms == 0 {
                    return None;
                }
                if let Some(dump) = dump {
                    cleanup.dump_bytes = dump.bytes;
                    cleanup.dump_sha256 = dump.sha256.to_vec();
                    cleanup.dump_ms = now.wall_ms;
                }
                (cleanup.attempts, cleanup.error) = (0, String::new());
                if resources > 0 {
                    // They are released now, and the last of them is its next step.
                    made.cleanup_due = 0;
                } else {
                    cleanup.closed_ms = now.wall_ms;
                    (made.state, made.cleanup_due) = (closed, later(self.limits.retention_ms()));
                }
            }
            CleanupStep::Failed { error } if cleanup.purged_ms == 0 => {
                let wait = (RETRY_MS << cleanup.attempts.min(16)).min(RETRY_MOST_MS);
                // Spread: what failed together is not tried again together.
                let wait = wait - (now.draw() % (wait as u128 / 4)) as i64;
                cleanup.attempts += 1;
                cleanup.error = error.chars().take(500).collect();
                made.cleanup_due = now.wall_ms + wait;
            }
            CleanupStep::Keep if !sealed && !cleanup.purging => made.cleanup_due = -1,
            // What a restore left half made is deleted without a trace: its dump is there.
            CleanupStep::Purge { records, last, acknowledged }
                if (!sealed || cleanup.restoring) && cleanup.purged_ms == 0 =>
            {
                made.state = closed;
                let given = *acknowledged || cleanup.restoring || self.limits.purge_without_dump() > 0;
                let allowed = cleanup.purging || cleanup.dump_ms > 0 || given;
                if !allowed || *last > row.last {
                    return None;
                }
                cleanup.purging = true;
                (made.last, made.purge) = (*last, records.clone());
                if made.cleanup_due < 0 {
                    made.cleanup_due = now.wall_ms;
                }
                if *last == 0 {
                    cleanup.purged_ms = now.wall_ms;
                    made.purged = true;
                    made.facts = tombstone(&row.facts);
                    made.cleanup_due = if cleanup.restoring {
                        now.wall_ms.max(1)
                    } else {
                        later(self.limits.tombstone_retention_ms())
                    };
                }
            }
            CleanupStep::Later if cleanup.purged_ms > 0 => made.cleanup_due = now.wall_ms + LATER_MS,
            CleanupStep::Forget if cleanup.purged_ms > 0 => return Some(Op::Forget { uid: row.uid, prev: row.seq }),
            _ => return None,
        }
        made.cleanup = cleanup.encode_to_vec();
        Some(Op::Step(Box::new(made)))
    }

    fn count_step(&self, step: &CleanupStep, op: &Op) {
        match (step, op) {
            (CleanupStep::Cleaned { dump: Some(_) }, _) => count(&self.counters.sessions_dumped),
            (CleanupStep::Failed { .. }, _) => count(&self.counters.cleanup_failures),
            (_, Op::Step(made)) if made.purged => count(&self.counters.sessions_purged),
            _ => {}
        }
    }

    pub(crate) fn reopen_session(&self, mut call: Pending, work: &mut Work, now: &mut Moment) {
        if let Some(Found::Family(family)) = &call.found {
            let family = family.clone();
            return self.reopen_family(call, &family, work, now);
        }
        if let Call::Reopen(reopen) = &mut call.call {
            reopen.done = None;
        }
        let id = call.call.session_id().to_owned();
        match self.locate(call, &id, work) {
            Located::Gone => {}
            Located::Absent(call) => self.refuse_call(call, not_found(&id), work),
            Located::Ended(call, past) => self.ask_family(call, past.uid, 0),
            Located::At(mut call, tree, index) => {
                let Some(state) = Self::still_at(&tree, index, &id) else {
                    work.calls.push_back(call);
                    return;
                };
                let Some(line) = state.line(index) else { return };
                let (uid, after) = (line.uid, state.last_seq);
                if line.closed.is_some() {
                    drop(state);
                    self.unclaim_call(&mut call, work);
                    self.ask_family(call, uid, after);
                } else if line.born {
                    drop(state);
                    self.unclaim_call(&mut call, work);
                    self.ask_row(call, &id, after);
                } else {
                    drop(state);
                    self.refuse_call(call, not_found(&id), work);
                }
            }
        }
    }

    fn ask_family(&self, call: Pending, uid: Uid, after: Seq) {
        self.ask(after, Purpose::Family { call: Box::new(call) }, |id| Effect::Family { id, uid });
    }

    /// The answer to a Family: the session first.
    pub fn family_read(&self, id: u64, rows: Vec<SessionRow>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Family { call }) = self.purpose(id) else { return };
        let mut work = Work::default();
        self.family_found(*call, rows, &mut work);
        self.finish(&mut work, &mut now);
    }

    fn family_found(&self, mut call: Pending, mut rows: Vec<SessionRow>, work: &mut Work) {
        let open = v1::SessionState::Open as i32;
        let Call::Reopen(reopen) = &call.call else { return };
        let Some(row) = rows.first().filter(|r| r.state != open && r.session_id == reopen.session_id) else {
            // It was opened, or forgotten, since it was looked up.
            self.unclaim_call(&mut call, work);
            return work.calls.push_back(call);
        };
        let (id, uid, root) = (row.session_id.clone(), row.uid, row.root);
        if call.claimed != Some(root) {
            // Which tree it is of is known now: what was read before the claim is read again.
            if let Some(call) = self.claim(call, root) {
                self.ask_family(call, uid, 0);
            }
            return;
        }
        let Some(facts) = facts_of(row) else {
            return self.refuse_call(call, corrupt(&id, "its facts do not decode"), work);
        };
        for request in facts.reopen_requests.iter().rev() {
            match repeats(Some(request), reopen.mark.as_ref()) {
                Err(refusal) => return self.refuse_call(call, refusal, work),
                Ok(true) => {
                    self.unclaim_call(&mut call, work);
                    return self.ask_row(call, &id, 0);
                }
                Ok(false) => {}
            }
        }
        let close = close_of(row);
        rows.retain(|row| row.session_id == id || close_of(row) == close);
        if let Some(refusal) = rows.iter().find_map(|row| may_reopen(row, &id)) {
            return self.refuse_call(call, refusal, work);
        }
        call.found = Some(Found::Family(Arc::new(rows)));
        work.calls.push_back(call);
    }

    /// The session and those that come back with it are as `family` says, for the claim is held.
    fn reopen_family(&self, mut call: Pending, family: &[SessionRow], work: &mut Work, now: &mut Moment) {
        let Some(row) = family.first() else { return };
        if self.is_quarantined(row.root) {
            return self.refuse_call(call, quarantined(&row.session_id), work);
        }
        if call.tenant.directory.get(&row.session_id).is_some() {
            // It has come back with another reopen, before this call had its claim.
            self.unclaim_call(&mut call, work);
            return work.calls.push_back(call);
        }
        let parent = row.parent_session_id.clone();
        if row.depth == 0 {
            let tree = Arc::new(self.new_tree(row.root, call.tenant.clone()));
            let mut state = tree.state.lock();
            return self.reopen_at(call, &tree, &mut state, None, family, work, now);
        }
        match self.locate(call, &parent, work) {
            Located::Gone => {}
            Located::Absent(call) | Located::Ended(call, _) => {
                self.refuse_call(call, closed(&parent), work);
            }
            Located::At(call, tree, index) => {
                let Some(mut state) = Self::still_at(&tree, index, &parent) else {
                    work.calls.push_back(call);
                    return;
                };
                let there = state.line(index).is_some_and(Line::is_open) && tree.root == row.root;
                if there && row.path.starts_with(&(state.path(index) + "/")) {
                    return self.reopen_at(call, &tree, &mut state, Some(index), family, work, now);
                }
                let mut call = call;
                self.unclaim_call(&mut call, work);
                self.reply(call.ticket, Err(closed(&parent)), &tree, &state, work);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn reopen_at(
        &self,
        mut call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        parent: Option<u32>,
        family: &[SessionRow],
        work: &mut Work,
        now: &mut Moment,
    ) {
        let returns = self.check_return(state, parent, family).and_then(|()| {
            family
                .iter()
                .map(|row| facts_of(row).ok_or_else(|| corrupt(&row.session_id, "its facts do not decode")))
                .collect()
        });
        let all_facts: Vec<SessionFacts> = match returns {
            Ok(facts) => facts,
            Err(refusal) => {
                self.unclaim_call(&mut call, work);
                // It may tell of a sibling that is not durable yet.
                return self.reply(call.ticket, Err(refusal), tree, state, work);
            }
        };
        let Some(lines) = self.bring_back(tree, state, parent, family, work, now) else {
            // One of them is still in memory, on its way out: it is looked up again.
            self.unclaim_call(&mut call, work);
            return work.calls.push_back(call);
        };
        state.touch(now);
        // Should the entry be lost, the call runs from its start.
        call.found = None;
        let Call::Reopen(reopen) = &mut call.call else { return };
        let mut mark = reopen.mark.clone();
        let appending = self.journal.append();
        let seq = appending.seq;
        let mut ops = Vec::with_capacity(lines.len());
        for ((&index, row), mut facts) in lines.iter().zip(family).zip(all_facts) {
            facts.past_receipts.extend(receipt_to_keep(row));
            facts.reopen_requests.extend(mark.take());
            let (receipts, requests) = (facts.past_receipts.len(), facts.reopen_requests.len());
            facts.past_receipts.drain(..receipts.saturating_sub(REMEMBERED));
            facts.reopen_requests.drain(..requests.saturating_sub(REMEMBERED));
            if row.depth == 0 {
                state.stale_ms = facts.stale_timeout_ms;
            }
            let stale_due = if row.depth == 0 { state.stale_due() } else { 0 };
            let Some(line) = state.line_mut(index) else { continue };
            line.seq = seq;
            ops.push(Op::Reopen(Box::new(Reopen {
                uid: row.uid,
                prev: row.seq,
                seq,
                stale_ms: if row.depth == 0 { state.stale_ms } else { 0 },
                stale_due,
                active_ms: state.active_ms,
                facts: facts.encode_to_vec(),
            })));
            count(&self.counters.sessions_reopened);
        }
        reopen.done = Some(ops.len() as u32);
        state.last_seq = appending.push(tree, ops, Vec::new(), now.mono_ms);
        state.open += lines.len() as u32;
        self.charge_header(tree, state, now);
        if let Some(line) = lines.first().and_then(|index| state.line(*index)) {
            self.log_reopened(tree.root, line, lines.len(), seq, now);
        }
        for index in &lines {
            self.tell_reopened(tree, state, *index, now);
        }
        self.hold_claim(call.claimed.take(), seq, work);
        let id = call.call.session_id().to_owned();
        self.ask_row(call, &id, seq);
    }

    /// Whether there is room and a path for those who come back.
    fn check_return(&self, state: &TreeState, parent: Option<u32>, family: &[SessionRow]) -> Result<(), Refusal> {
        self.check_store_bytes()?;
        let (limit, used) = (self.limits.max_sessions_per_tree(), u64::from(state.open));
        if used + family.len() as u64 > limit {
            let quota = Quota { limit_name: "max_sessions_per_tree", limit, used, holders: Vec::new() };
            let message = format!("max_sessions_per_tree is {limit}; {used} in use, {} would return", family.len());
            return Err(Refusal::new(Reason::TreeSessions, message).with("returning", family.len()).quota(quota));
        }
        // Each needs what it stood below; a tombstone above it may be over by now.
        let known: HashSet<&str> = family.iter().map(|row| &*row.session_id).collect();
        if let Some(lost) = family.iter().skip(1).find(|row| !known.contains(&*row.parent_session_id)) {
            let message = format!("what session {:?} stood below is deleted", lost.session_id);
            return Err(Refusal::new(Reason::SessionPurged, message).with("session_id", &lost.session_id));
        }
        let name = family.first().map_or("", |row| name_of(&row.path));
        if parent.is_some_and(|parent| state.name_taken(parent, name)) {
            return Err(Refusal::new(Reason::PathCollision, "an open sibling has this name by now").with("name", name));
        }
        Ok(())
    }

    /// Puts lines for all of them in, or none. Each stands below one that is in already: `check_return` has seen to it.
    fn bring_back(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        parent: Option<u32>,
        family: &[SessionRow],
        work: &mut Work,
        now: &Moment,
    ) -> Option<Vec<u32>> {
        let mut by_id: HashMap<&str, u32> = HashMap::new();
        let mut lines = Vec::with_capacity(family.len());
        for (place, row) in family.iter().enumerate() {
            let above = if place == 0 { parent } else { by_id.get(&*row.parent_session_id).copied() };
            let mut line = Line::new(row.uid, row.session_id.as_str().into());
            line.parent = above;
            line.name = if row.depth == 0 { "".into() } else { name_of(&row.path).into() };
            line.depth = row.depth;
            line.head = row.head;
            line.head_version = row.head_version;
            line.fence = row.fence;
            line.last = row.last;
            line.closes = row.closes;
            line.seq = row.seq;
            if let Some(facts) = facts_of(row) {
                line.outcome = v1::TurnOutcome::try_from(facts.last_outcome).unwrap_or(v1::TurnOutcome::None);
                line.wakes = facts.wake_on_completion;
            }
            line.owner = super::tree::owner_of(&row.owner);
            line.mail_from = self.journal.durable().max(1);
            let id = line.session_id.clone();
            let index = state.add(line);
            let Ok(calls) = tree.tenant.directory.insert(&id, tree, index) else {
                for index in lines.into_iter().chain([index]) {
                    if let Some(line) = state.lines[index as usize].take() {
                        tree.tenant.directory.remove(&line.session_id, tree);
                    }
                    state.free.push(index);
                }
                if state.lines.iter().all(Option::is_none) {
                    self.drop_tree(tree, state, now);
                }
                return None;
            };
            work.calls.extend(calls);
            by_id.insert(&row.session_id, index);
            lines.push(index);
        }
        self.set_tree_cap(tree);
        Some(lines)
    }

    /// Whether the store is small enough for another session.
    pub(crate) fn check_store_bytes(&self) -> Result<(), Refusal> {
        let (limit, used) =
            (self.limits.max_store_bytes(), self.store_bytes.load(std::sync::atomic::Ordering::Relaxed));
        if limit == 0 || used < limit {
            return Ok(());
        }
        Err(Refusal::cap(Reason::StoreBytes, "max_store_bytes", limit, used).retry_after(30_000))
    }
}

fn answer(ticket: u64, reply: &[u8], after: Seq) -> Answer {
    Answer { ticket, result: Ok(reply.to_vec()), after, root: None }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or("")
}

fn facts_of(row: &SessionRow) -> Option<SessionFacts> {
    SessionFacts::decode(&row.facts[..]).ok()
}

fn corrupt(session_id: &str, what: &str) -> Refusal {
    Refusal::new(Reason::SessionCorrupt, format!("session {session_id:?}: {what}")).with("session_id", session_id)
}

fn receipt_of(row: &SessionRow) -> Option<Receipt> {
    row.receipt.as_deref().and_then(|bytes| Receipt::decode(bytes).ok())
}

/// `None` if it does not decode.
pub(crate) fn cleanup_of(row: &SessionRow) -> Option<Cleanup> {
    decode_cleanup(row.cleanup.as_deref())
}

fn decode_cleanup(bytes: Option<&[u8]>) -> Option<Cleanup> {
    bytes.map_or(Some(Cleanup::default()), |bytes| Cleanup::decode(bytes).ok())
}

/// Whether the content of a session with this clean-up is not all there: it is deleted, in part or whole, or still being
/// restored.
pub(crate) fn is_purging(cleanup: Option<&[u8]>) -> bool {
    decode_cleanup(cleanup).is_none_or(|cleanup| cleanup.purging || cleanup.restoring)
}

/// Whether a session with this clean-up is being made from its dump, or what is left of that is being deleted.
pub(crate) fn is_restoring(cleanup: Option<&[u8]>) -> bool {
    decode_cleanup(cleanup).is_some_and(|cleanup| cleanup.restoring)
}

/// The refusal of such a one.
pub(crate) fn restoring(session_id: &str) -> Refusal {
    let message = format!("session {session_id:?} is being restored");
    Refusal::new(Reason::SessionRestoring, message).with("session_id", session_id).retry_after(1_000)
}

/// The receipt of a session that is to be open again, as its facts keep it. One that came from a dump names a sequence of
/// another journal; here all that was recorded by then, and nothing else, came before that close.
fn receipt_to_keep(row: &SessionRow) -> Option<Receipt> {
    let mut receipt = receipt_of(row)?;
    if cleanup_of(row).is_some_and(|cleanup| cleanup.restored_ms > 0) {
        receipt.close_seq = row.last.max(1) as i64;
    }
    Some(receipt)
}

/// The receipt of the close that came with, or first after, the record of this sequence: it may have been opened and
/// closed again since. The last few closes are known.
pub(crate) fn receipt_since(row: &SessionRow, seq: Seq) -> Option<Receipt> {
    let before = facts_of(row).map(|facts| facts.past_receipts).unwrap_or_default();
    let after = |r: &Receipt| r.close_seq == 0 || r.close_seq as u64 >= seq;
    // Whatever an ended session holds was there at its last close.
    before.into_iter().find(after).or_else(|| receipt_of(row))
}

/// Which close ended it: sessions that one close took down have the same. (Receipts of 0.1.0 name the time alone.)
fn close_of(row: &SessionRow) -> Option<(i64, i64)> {
    receipt_of(row).map(|r| (r.close_seq, r.close_ms))
}

/// Why a session of the family cannot come back, if it cannot.
fn may_reopen(row: &SessionRow, id: &str) -> Option<Refusal> {
    if is_restoring(row.cleanup.as_deref()) {
        return Some(restoring(&row.session_id).with("asked_for", id));
    }
    if is_purging(row.cleanup.as_deref()) {
        let message = format!("the content of session {:?} is deleted", row.session_id);
        return Some(Refusal::new(Reason::SessionPurged, message).with("session_id", &row.session_id));
    }
    if row.state == v1::SessionState::Sealed as i32 {
        let message = format!("session {:?} is still being cleaned up", row.session_id);
        let refusal = Refusal::new(Reason::SessionSealed, message).with("session_id", &row.session_id);
        return Some(refusal.with("asked_for", id).retry_after(1_000));
    }
    None
}

/// What is kept of the facts of a session whose content is purged: numbers, nothing of the client's.
fn tombstone(facts: &[u8]) -> Vec<u8> {
    let facts = SessionFacts::decode(facts).unwrap_or_default();
    SessionFacts {
        create_ms: facts.create_ms,
        stale_timeout_ms: facts.stale_timeout_ms,
        last_outcome: facts.last_outcome,
        checkpoint_tokens: facts.checkpoint_tokens,
        trajectories: facts.trajectories,
        trajectory_turns: facts.trajectory_turns,
        ..SessionFacts::default()
    }
    .encode_to_vec()
}

/// How far the clean-up of an ended session is, as callers see it.
pub(crate) fn view(row: &SessionRow) -> Option<v1::Cleanup> {
    if row.state == v1::SessionState::Open as i32 {
        return None;
    }
    let cleanup = cleanup_of(row).unwrap_or_default();
    let time = |ms: i64| (ms > 0).then(|| super::timestamp(ms));
    let sealed = row.state == v1::SessionState::Sealed as i32;
    let closed = receipt_of(row).map_or(0, |r| r.close_ms).max(cleanup.closed_ms);
    Some(v1::Cleanup {
        closed_time: if sealed { None } else { time(closed) },
        dump_time: time(cleanup.dump_ms),
        dump_bytes: cleanup.dump_bytes,
        dump_sha256: cleanup.dump_sha256,
        attempts: cleanup.attempts,
        error: cleanup.error,
        due_time: time(row.cleanup_due),
        purged_time: time(cleanup.purged_ms),
        restored_time: time(cleanup.restored_ms),
    })
}
