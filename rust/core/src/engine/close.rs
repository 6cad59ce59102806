//! CloseSession: one transaction that ends a session and its open descendants, and its receipt.
//!
//! Everything is decided from the tree's header: no session is loaded, and all of it is one entry. With nothing to dump and no resource to
//! release, clean-up has no step of its own, and SEALED is passed inside the transaction: CLOSED is what is stored.

use super::events::Ended;
use super::reload::Located;
use super::tree::{Lease, Tree, TreeState};
use super::{Answer, Call, Engine, Moment, Pending, Work, count, not_found};
use crate::gen_store::{EndedBy, Receipt, RequestMark, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{Uid, repeats};
use crate::journal::{Appending, Close, Held, Op, Seq};
use prost::Message;
use std::collections::HashMap;
use std::sync::Arc;

/// A close that is in the journal, and what is still to be freed.
pub(crate) struct Ending {
    /// The session that was to be closed, above all others.
    uid: Uid,
    pub(crate) receipt: Receipt,
    /// Lines that were closed, with their depth where a slot is to be freed.
    lines: Vec<(u32, Option<u32>)>,
    /// The turns that it ended.
    turns: Vec<(u32, Box<Lease>)>,
    /// The events that finished trajectories with it.
    ready: Vec<Seq>,
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
        if line.closed.is_some() {
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
        let reason = match close.reason {
            v1::CloseReason::Unspecified => v1::CloseReason::Quit,
            reason => reason,
        };
        // The journal is everybody's: what takes time is done before it is locked.
        let all = state.subtree(index);
        let to_finish = Self::to_finish(state, &all);
        let mark = close.mark.clone();
        let mut appending = self.journal.append();
        let mut ops = Vec::new();
        let ending = self.seal(tree, state, &all, to_finish, reason, mark, &mut appending, &mut ops, now);
        state.last_seq = appending.seq;
        appending.push(tree, ops, Vec::new(), now.mono_ms);
        let receipt = Some(super::read::receipt(&ending.receipt));
        self.sealed(ending, false, tree, state, work, now);
        let reply = v1::CloseSessionResponse { closed: true, receipt };
        self.reply(call.ticket, Ok(reply.encode_to_vec()), tree, state, work);
    }

    /// Writes the end of a session and its open descendants (`all`, as [`TreeState::subtree`] gives them) into an entry,
    /// with what was to finish by itself before it.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn seal(
        &self,
        tree: &Tree,
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
        let mut own_receipt = Receipt::default();
        for &i in all {
            let (Some(line), Some(below)) = (state.line(i), sums.get(&i)) else { continue };
            let receipt = Receipt {
                reason: if i == index { reason } else { v1::CloseReason::ParentClosed } as i32,
                close_ms: now.wall_ms,
                slots_released: below.slots,
                children_closed: below.children,
                turn_count: line.head,
                close_number: 1,
                provisionals_aborted: below.provisionals,
                request: request.clone().filter(|_| i == index),
            };
            if i == index {
                own_receipt = receipt.clone();
            }
            lines.push((i, line.running().map(|_| line.depth), receipt));
        }
        let finish = |(i, facts)| self.finish_closing(appending, tree, state, i, facts, ops, now);
        let ready: Vec<Seq> = to_finish.into_iter().filter_map(finish).collect();
        let seq = if ready.is_empty() { appending.seq } else { appending.another() };
        let mut ended = Vec::with_capacity(lines.len());
        let mut turns = Vec::new();
        for (i, depth, receipt) in lines {
            let Some(line) = state.line_mut(i) else { continue };
            if line.born {
                if line.provisional != 0 {
                    ops.push(Op::Status { seq: line.provisional, status: v1::RecordStatus::Aborted as i32 });
                }
                let prev = std::mem::replace(&mut line.seq, seq);
                let closed = v1::SessionState::Closed as i32;
                ops.push(Op::Close(Box::new(Close {
                    uid: line.uid,
                    prev,
                    seq,
                    state: closed,
                    receipt: receipt.clone(),
                })));
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
            ended.push((i, depth));
        }
        let uid = state.line(index).map_or(Uid(0), |l| l.uid);
        Ending { uid, receipt: own_receipt, lines: ended, turns, ready }
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
            }
        }
        for line in closed.iter().filter_map(|i| state.line(*i)).filter(|l| l.born) {
            if let Some(receipt) = &line.closed {
                let last = last && line.uid == ending.uid;
                self.log_closed(tree.root, line, receipt, last, state.last_seq, now);
            }
        }
        for (index, slot) in ending.lines {
            self.end_wait(tree, state, index, work, now);
            if let Some(depth) = slot {
                self.free_slots(tree, depth, work);
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
        let seq = state.last_seq;
        if let Some(Held::Cleanup(tree, closed)) = self.journal.hold(seq, Held::Cleanup(tree.clone(), closed)) {
            // The writer was faster.
            work.cleanups.push((tree, closed));
        }
    }

    /// The row of a session that ended or is not in memory was read: for its receipt, or for GetSession.
    pub(crate) fn row_read(&self, call: Pending, row: Option<super::SessionRow>, work: &mut Work) {
        if let Call::Renew(_) = &call.call {
            return self.renew_row_read(call, row, work);
        }
        let id = call.call.session_id().to_owned();
        let result = match (&call.call, row) {
            (_, None) => Err(not_found(&id)),
            (Call::Close(close), Some(row)) => close_again(close.mark.as_ref(), &row),
            (_, Some(row)) => self
                .row_view(&call.tenant, &row)
                .map(|view| v1::GetSessionResponse { session: Some(view.shown(call.outline)) }.encode_to_vec()),
        };
        work.answers.push(Answer { ticket: call.ticket, result, after: 0, root: None });
    }
}

fn close_again(mark: Option<&RequestMark>, row: &super::SessionRow) -> Result<Vec<u8>, crate::error::Refusal> {
    let stored = row.receipt.as_deref().and_then(|bytes| Receipt::decode(bytes).ok());
    repeats(stored.as_ref().and_then(|r| r.request.as_ref()), mark)?;
    let receipt = stored.as_ref().map(super::read::receipt);
    Ok(v1::CloseSessionResponse { closed: true, receipt }.encode_to_vec())
}
