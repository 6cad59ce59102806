//! InterruptSession: asks the running turn of one session to end, or ends its wait. It touches one session (I18).

use super::end::Left;
use super::events::Ended;
use super::reload::Wanted;
use super::requests::{Interrupt, Payload};
use super::tree::{InterruptMark, Tree, TreeState};
use super::{Call, Engine, Moment, Pending, Work, count};
use crate::error::{Reason, Refusal};
use crate::gen_store::EndedBy;
use crate::gen_v1 as v1;
use crate::ids::repeats;
use prost::Message;
use std::sync::Arc;

impl Engine {
    pub(crate) fn interrupt_session(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::Interrupt(interrupt) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, &interrupt.session_id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line(index) else { return };
        // An idle session is not loaded for it, unless it must remember the request: a repeat of that must not meet a
        // turn that began after the first.
        let needs_facts = interrupt.mark.is_some() || line.running().is_some();
        let answer = match &line.resident {
            None if needs_facts => return self.load(call, &tree, &mut state, index, Wanted::default()),
            None => None,
            Some(resident) => {
                let latest = resident.interrupt_request.as_deref();
                match repeats(latest.map(|r| &r.mark), interrupt.mark.as_ref()) {
                    Err(refusal) => return self.reply(call.ticket, Err(refusal), &tree, &state, work),
                    Ok(repeat) => latest.filter(|_| repeat).map(|r| (r.activity, r.turn)),
                }
            }
        };
        let Pending { ticket, call: Call::Interrupt(interrupt), .. } = call else { return };
        let repeated = answer.is_some();
        let (activity, turn) = answer.unwrap_or_else(|| self.interrupt(interrupt, &tree, &mut state, index, work, now));
        let reply = v1::InterruptSessionResponse { previous_activity: activity as i32, turn, repeated };
        self.reply(ticket, Ok(reply.encode_to_vec()), &tree, &state, work);
    }

    fn interrupt(
        &self,
        interrupt: Interrupt,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) -> (v1::Activity, u32) {
        let Interrupt { mark, force, .. } = interrupt;
        let running = state.line(index).and_then(|l| l.running()).cloned();
        let (activity, turn) = match &running {
            Some(lease) => (v1::Activity::Running, lease.turn),
            None if self.end_waiting(tree, state, index, work, now) => (v1::Activity::Waiting, 0),
            None => (v1::Activity::Idle, 0),
        };
        if activity == v1::Activity::Waiting {
            self.disarm_mail(tree, state, index, now);
        }
        let flag = running.as_ref().is_some_and(|l| !l.interrupted);
        let interrupt = mark.map(|mark| Box::new(InterruptMark { mark, activity, turn }));
        match running {
            Some(lease) if force => {
                let left = Left { interrupt, ..Left::new(v1::TurnOutcome::Interrupted, EndedBy::Interrupt) };
                self.stop(&lease, Payload::default(), left, Ended::default(), tree, state, index, work, now);
                count(&self.counters.turns_interrupted);
            }
            _ if flag || interrupt.is_some() => {
                self.append(tree, state, index, now, |appending, line, _| {
                    if let Some(lease) = line.lease.as_mut().filter(|l| l.running && !l.interrupted) {
                        (lease.interrupted, lease.interrupted_seq) = (true, appending.seq);
                    }
                    if let (Some(_), Some(resident)) = (&interrupt, line.resident.as_mut()) {
                        resident.interrupt_request = interrupt;
                    }
                });
                if flag {
                    self.tell_interrupted(tree, state, index, now);
                }
            }
            _ => {}
        }
        (activity, turn)
    }

    /// Ends the wait of a session, if it waits: in a queue, or with its slots for its load.
    fn end_waiting(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, work: &mut Work, now: &Moment) -> bool {
        let Some(line) = state.line(index) else { return false };
        let refusal = interrupted(&line.session_id);
        if let Some(mut loading) = state.line_mut(index).and_then(|l| l.loading.take()) {
            let granted = self.take_granted(&mut loading);
            if let Some(line) = state.line_mut(index) {
                line.loading = Some(loading);
            }
            if let Some(call) = granted {
                self.return_slots(tree, state, index, work);
                self.refuse_begin(call, refusal, tree, state, work);
                return true;
            }
        }
        // A place that is kept for a repeat goes too: the repeat is told by the queue that it must begin anew.
        match self.take_waiter(tree, state, index, work, now) {
            Some(waiter) => {
                if let Some(call) = waiter.call {
                    self.reply(call.ticket, Err(refusal), tree, state, work);
                    return true;
                }
                false
            }
            None => false,
        }
    }
}

/// The refusal of what an interrupt stands against.
pub(crate) fn interrupted(session_id: &str) -> Refusal {
    Refusal::new(Reason::TurnInterrupted, format!("session {session_id:?} was interrupted"))
        .with("session_id", session_id)
}
