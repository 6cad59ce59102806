//! CloseSession: one transaction that ends a session and its open descendants, and its receipt.
//!
//! Everything is decided from the tree's header: no session is loaded, and all of it is one entry. Without a dump target
//! and resources clean-up has no step of its own, and SEALED is passed inside the transaction: CLOSED is what is stored.
//! What follows a close is in `ended.rs`.

use super::events::Ended;
use super::reload::Located;
use super::requests::{CloseCall, Letter};
use super::tree::{Lease, Tree, TreeState};
use super::{Answer, Call, Engine, Moment, Pending, Work, closed, count, not_found};
use crate::gen_store::{EndedBy, Receipt, RequestMark, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{Uid, dump_name, repeats};
use crate::journal::{Appending, Close, Held, Op, Seq};
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A close that is in the journal, and what is still to be freed.
pub(crate) struct Ending {
    /// The session that was to be closed, above all others.
    uid: Uid,
    pub(crate) receipt: Receipt,
    /// Lines that were closed, and whether a slot is to be freed.
    lines: Vec<(u32, bool)>,
    /// The turns that it ended.
    turns: Vec<(u32, Box<Lease>)>,
    /// The events that finished trajectories with it.
    ready: Vec<Seq>,
    /// The parent that was told, and whether that makes it runnable.
    told: Option<(u32, bool)>,
}

#[derive(Default)]
struct Below {
    slots: u32,
    children: u32,
    provisionals: u32,
}

fn ends(reason: v1::CloseReason) -> bool {
    use v1::CloseReason::{Fork, New, Reload, Resume};
    !matches!(reason, Reload | Fork | New | Resume)
}

impl Engine {
    pub(crate) fn close_session(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let id = call.call.session_id().to_owned();
        match self.locate(call, &id, work) {
            Located::Gone => {}
            Located::Absent(call) => self.refuse(call.ticket, not_found(&id), work),
            // Closing again returns the receipt.
            Located::Ended(call, ..) => self.ask_row(call, &id, 0),
            Located::At(call, tree, index) => match Self::still_at(&tree, index, &id) {
                Some(mut state) => self.close_at(call, &id, &tree, &mut state, index, work, now),
                None => work.calls.push_back(call),
            },
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn close_at(
        &self,
        call: Pending,
        id: &str,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let (Call::Close(close), Some(line)) = (&call.call, state.line(index)) else { return };
        // One that was closed before may be asked again about that close: its facts know.
        let again = line.closes > 0 && close.mark.is_some() && call.new_since.is_none();
        if line.closed.is_some() || again {
            let after = state.last_seq;
            return self.ask_row(call, id, after);
        }
        if !line.born {
            return self.refuse(call.ticket, not_found(id), work);
        }
        if !ends(close.reason) {
            let reply = v1::CloseSessionResponse { closed: false, receipt: None };
            return self.reply(call.ticket, Ok(reply.encode_to_vec()), tree, state, work);
        }
        let (reason, last_turn) = match close.reason {
            v1::CloseReason::Unspecified => (v1::CloseReason::Quit, false),
            reason => (reason, close.last_turn),
        };
        let mark = close.mark.clone();
        let receipt = self.close_tree(tree, state, index, reason, mark, last_turn, work, now);
        self.reply(call.ticket, Ok(closed_reply(Some(&receipt), last_turn)), tree, state, work);
    }

    /// Closes an open session and its open descendants. The tree is locked.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn close_tree(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        reason: v1::CloseReason,
        mark: Option<RequestMark>,
        last_turn: bool,
        work: &mut Work,
        now: &Moment,
    ) -> Receipt {
        // The journal is everybody's: what takes time is done before it is locked.
        let all = state.subtree(index);
        let to_finish = Self::to_finish(state, &all);
        let mut appending = self.journal.append();
        let mut ops = Vec::new();
        let ending = self.seal(tree, state, &all, to_finish, reason, mark, &mut appending, &mut ops, now);
        state.last_seq = appending.seq;
        appending.push(tree, ops, Vec::new(), now.mono_ms);
        let receipt = ending.receipt.clone();
        self.sealed(ending, last_turn, tree, state, work, now);
        receipt
    }

    /// Writes the end of a session and its open descendants (`all`, as [`TreeState::subtree`] gives them) into an entry,
    /// with what was to finish by itself before it.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn seal(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        all: &[u32],
        to_finish: Vec<(u32, SessionFacts)>,
        reason: v1::CloseReason,
        request: Option<RequestMark>,
        appending: &mut Appending<'_>,
        ops: &mut Vec<Op>,
        now: &Moment,
    ) -> Ending {
        let index = all[0];
        // What each close takes down with it, summed from the leaves up: children stand behind their parents.
        let mut sums: HashMap<u32, Below> = HashMap::with_capacity(all.len());
        for &i in all.iter().rev() {
            let Some(line) = state.line(i) else { continue };
            let mut below = sums.remove(&i).unwrap_or_default();
            below.slots += u32::from(line.running().is_some());
            below.provisionals += u32::from(line.provisional != 0);
            if let Some(parent) = line.parent.filter(|_| i != index) {
                let sum = sums.entry(parent).or_default();
                sum.slots += below.slots;
                sum.provisionals += below.provisionals;
                sum.children += below.children + u32::from(line.born);
            }
            sums.insert(i, below);
        }
        let mut lines = Vec::with_capacity(all.len());
        let dumps = self.dumps.load(Ordering::Relaxed);
        for &i in all {
            let (Some(line), Some(below)) = (state.line(i), sums.get(&i)) else { continue };
            let receipt = Receipt {
                reason: if i == index { reason } else { v1::CloseReason::ParentClosed } as i32,
                close_ms: now.wall_ms,
                slots_released: below.slots,
                children_closed: below.children,
                turn_count: line.head,
                close_number: line.closes + 1,
                provisionals_aborted: below.provisionals,
                request: request.clone().filter(|_| i == index),
                // Known once what is to finish has its sequences.
                close_seq: 0,
                dump_name: if dumps { dump_name(&tree.tenant.name, line.uid, line.closes + 1) } else { String::new() },
                // The journal is locked: nothing is attached or released meanwhile.
                resources: self.resources.left(line.uid),
                unread_messages: line.mail.as_ref().map_or(0, |m| m.unread(now.wall_ms)),
            };
            lines.push((i, line.running().is_some(), receipt));
        }
        let finish = |(i, facts)| self.finish_closing(appending, tree, state, i, facts, ops, now);
        let ready: Vec<Seq> = to_finish.into_iter().filter_map(finish).collect();
        let seq = if ready.is_empty() { appending.seq } else { appending.another() };
        let mut ended = Vec::with_capacity(lines.len());
        let mut turns = Vec::new();
        let mut own_receipt = Receipt::default();
        let (sealed, closed) = (v1::SessionState::Sealed as i32, v1::SessionState::Closed as i32);
        let retained = now.wall_ms.saturating_add(self.limits.retention_ms() as i64);
        for (i, slot, mut receipt) in lines {
            receipt.close_seq = seq as i64;
            if i == index {
                own_receipt = receipt.clone();
            }
            let Some(line) = state.line_mut(i) else { continue };
            if line.born {
                if line.provisional != 0 {
                    ops.push(Op::Status { seq: line.provisional, status: v1::RecordStatus::Aborted as i32 });
                }
                let prev = std::mem::replace(&mut line.seq, seq);
                let (uid, receipt) = (line.uid, receipt.clone());
                // Its resources are released after its dump, and the last of them is its next step.
                let has_resources = receipt.resources > 0;
                let (next, cleanup_due) = match (dumps, has_resources) {
                    (true, _) => (sealed, now.wall_ms),
                    (false, true) => (sealed, 0),
                    (false, false) => (closed, retained),
                };
                ops.push(Op::Close(Box::new(Close { uid, prev, seq, state: next, receipt, cleanup_due })));
                if has_resources {
                    ops.push(Op::ResourcesDue { session: uid, due: if dumps { 0 } else { now.wall_ms.max(1) } });
                }
                if let Some(mailbox) = &mut line.mail {
                    // What had expired by now has not ended with its session.
                    let expired = mailbox.expire(now.wall_ms, ops);
                    self.counters.messages_expired.fetch_add(expired, Ordering::Relaxed);
                    ops.push(Op::MailEnd { session: uid });
                }
                line.provisional = 0;
                line.finish_due_ms = 0;
                if let Some(lease) = line.lease.take() {
                    self.untimer(lease.timer);
                    if lease.running {
                        turns.push((i, lease));
                    }
                }
                state.open -= 1;
                count(&self.counters.sessions_closed);
            }
            if let Some(line) = state.line_mut(i) {
                line.closed = Some(Box::new(receipt));
            }
            ended.push((i, slot));
        }
        use v1::TurnOutcome::{Completed, Failed};
        let silent = state.line(index).is_none_or(|l| !l.born || matches!(l.outcome, Completed | Failed));
        let told = if silent {
            None
        } else {
            let (kind, about) = (v1::MessageKind::Closed, (0, reason));
            self.tell_parent(seq, tree, state, index, kind, Letter::default(), about, ops, now)
        };
        if all[0] != 0 && state.stale_ms > 0 {
            // What those who leave have done counts after they are gone.
            ops.push(Op::Stale { root: tree.root, stale_ms: state.stale_ms, due: state.stale_due() });
        }
        let uid = state.line(index).map_or(Uid(0), |l| l.uid);
        Ending { uid, receipt: own_receipt, lines: ended, turns, ready, told }
    }

    /// The close is journaled: frees slots, ends waits, forgets what was in memory. `last`: whether the last turn of the
    /// session said so itself.
    pub(crate) fn sealed(
        &self,
        ending: Ending,
        last: bool,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        work: &mut Work,
        now: &Moment,
    ) {
        let closed: Vec<u32> = ending.lines.iter().map(|(index, _)| *index).collect();
        for seq in ending.ready {
            self.told_ready(tree, seq);
        }
        for (index, lease) in ending.turns {
            if let Some(line) = state.line(index) {
                let (by, ended) = (EndedBy::Unspecified, Ended::default());
                self.log_done(tree.root, line, &lease, "CLOSED", by, ended, state.last_seq, now);
                self.tell_ended(tree, state, index, &lease, v1::TurnOutcome::Unspecified, by, now);
            }
        }
        for &index in &closed {
            let Some(line) = state.line(index).filter(|l| l.born) else { continue };
            if let Some(receipt) = &line.closed {
                let last = last && line.uid == ending.uid;
                self.log_closed(tree.root, line, receipt, last, state.last_seq, now);
                self.tell_closed(tree, state, index, now);
            }
        }
        if let Some((parent, wakes)) = ending.told {
            self.mail_came(tree, state, parent, wakes, work, now);
        }
        for (index, slot) in ending.lines {
            self.end_mailbox(tree, state, index, work, now);
            self.end_wait(tree, state, index, work, now);
            if slot {
                self.free_slots(tree, state, index, work, now);
                self.release_header(tree, state, now);
            }
            if let Some(mut loading) = state.line_mut(index).and_then(|l| l.loading.take()) {
                // They run again and find the session closed; the load itself ends on its own.
                self.rerun_load(&mut loading, tree, state, index, work);
                if let Some(line) = state.line_mut(index) {
                    line.loading = Some(loading);
                }
            }
            self.forget_resident(tree, state, index, now);
        }
        let ended = |call: &Pending| {
            let id = call.call.session_id();
            Arc::ptr_eq(&call.tenant, &tree.tenant)
                && closed.iter().filter_map(|i| state.line(*i)).any(|line| &*line.session_id == id)
        };
        self.wake_pools(ended, work);
        let seq = state.last_seq;
        if let Some(Held::Cleanup(tree, closed)) = self.journal.hold(seq, Held::Cleanup(tree.clone(), closed)) {
            // The writer was faster.
            work.cleanups.push((tree, closed));
        }
    }

    /// The row of a session that ended or is not in memory was read: for its receipt, or for GetSession.
    pub(crate) fn row_read(
        &self,
        mut call: Pending,
        row: Option<super::SessionRow>,
        work: &mut Work,
        now: &mut Moment,
    ) {
        match &call.call {
            Call::Renew(_) => return self.renew_row_read(call, row, work),
            Call::Step(_) => return self.cleanup_row_read(call, row, work, now),
            Call::Restore(_) => return self.parent_row_read(call, row, work),
            _ => {}
        }
        let id = call.call.session_id().to_owned();
        let result = match (&call.call, row) {
            (_, None) => Err(not_found(&id)),
            (_, Some(row)) if super::ended::is_restoring(row.cleanup.as_deref()) => Err(super::ended::restoring(&id)),
            (Call::Close(close), Some(row)) => match close_again(close, call.who.past_life(&row), &row) {
                Ok(None) => {
                    // No close of before: it is to be closed now.
                    call.new_since = Some(row.last);
                    return work.calls.push_back(call);
                }
                Ok(Some(reply)) => Ok(reply),
                Err(refusal) => Err(refusal),
            },
            (Call::Reopen(reopen), Some(row)) => self.row_view(&call.tenant, &row).map(|view| {
                let (session, reopened) = (Some(view.to_proto()), reopen.done.unwrap_or(0));
                v1::ReopenSessionResponse { session, reopened }.encode_to_vec()
            }),
            (_, Some(row)) => self
                .row_view(&call.tenant, &row)
                .map(|view| v1::GetSessionResponse { session: Some(view.shown(call.outline)) }.encode_to_vec()),
        };
        work.answers.push(Answer { ticket: call.ticket, result, after: 0, root: None });
    }
}

/// What became of the close of an earlier call; `None` if the session is open and none of its closes was this one. A key
/// of a life that is over (`past_life`) gets the receipt of its end, while that is known, and nothing of what came after.
fn close_again(
    close: &CloseCall,
    past_life: Option<u32>,
    row: &super::SessionRow,
) -> Result<Option<Vec<u8>>, crate::error::Refusal> {
    let past = SessionFacts::decode(&row.facts[..]).map(|f| f.past_receipts).unwrap_or_default();
    let stored = row.receipt.as_deref().and_then(|bytes| Receipt::decode(bytes).ok());
    if let Some(life) = past_life {
        let mut known = stored.iter().chain(&past);
        let receipt = known.find(|r| r.close_number == life).ok_or_else(|| closed(&row.session_id))?;
        repeats(receipt.request.as_ref(), close.mark.as_ref())?;
        return Ok(Some(closed_reply(Some(receipt), close.last_turn)));
    }
    for receipt in past.iter().rev().filter(|r| r.request.is_some()) {
        if repeats(receipt.request.as_ref(), close.mark.as_ref())? {
            return Ok(Some(closed_reply(Some(receipt), close.last_turn)));
        }
    }
    if row.state == v1::SessionState::Open as i32 {
        return Ok(None);
    }
    repeats(stored.as_ref().and_then(|r| r.request.as_ref()), close.mark.as_ref())?;
    Ok(Some(closed_reply(stored.as_ref(), close.last_turn)))
}

/// The answer to a close, or to the BeginTurn that was one.
fn closed_reply(receipt: Option<&Receipt>, last_turn: bool) -> Vec<u8> {
    let receipt = receipt.map(super::read::receipt);
    if last_turn {
        return v1::BeginTurnResponse { receipt, ..Default::default() }.encode_to_vec();
    }
    v1::CloseSessionResponse { closed: true, receipt }.encode_to_vec()
}
