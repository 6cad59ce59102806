//! Waiting for a slot: who waits where, who goes next, and how a wait ends.
//!
//! A waiter parks at the first gate that refused it and holds nothing. When something is given back to a gate, its
//! best waiter is tried on the whole chain with everything checked again; refused further on, it moves to that gate
//! with its old priority and arrival, and the next one here is tried. A lost wake-up cannot be: after it has parked,
//! the gate is looked at once more.

use super::full::Met;
use super::tree::{Gate, Place, Tree, TreeState, Waiter};
use super::{Call, Engine, Moment, Pending, TicketState, Timer, Work, closed};
use crate::error::{Reason, Refusal};
use crate::slots::reserve;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How many calls wait, in all and by connection. Only live waits count; a place that is kept does not.
#[derive(Default)]
pub(crate) struct Waiting {
    total: usize,
    /// Places that are kept for a repeat.
    kept: usize,
    by_connection: HashMap<u64, u32>,
    arrivals: u64,
}

impl Waiting {
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    fn leave(&mut self, connection: u64) {
        self.total -= 1;
        if let Some(n) = self.by_connection.get_mut(&connection) {
            *n -= 1;
            if *n == 0 {
                self.by_connection.remove(&connection);
            }
        }
    }
}

impl Engine {
    /// Takes the slots of a turn, or says at which gate there is no room.
    pub(crate) fn take_slots(
        &self,
        tree: &Arc<Tree>,
        state: &TreeState,
        index: u32,
        work: &mut Work,
    ) -> Result<(), Gate> {
        let Some(line) = state.line(index) else { return Err(Gate::Tenant) };
        let (nodes, gates) = tree.gates(line);
        reserve(&nodes[..gates.len()]).map_err(|refused| {
            // What a doomed chain gave back may be what somebody else was refused for.
            work.gates.extend(gates[..refused.given_back].iter().map(|g| (tree.clone(), *g)));
            gates[refused.level]
        })
    }

    /// Parks a call at a gate, until its deadline. Refuses it if as many wait as may.
    pub(crate) fn enqueue(
        &self,
        mut call: Pending,
        gate: Gate,
        arrival: Option<u64>,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) {
        // A record or mail of up to a megabyte is not kept for as long as a call may wait: it is read again with the grant,
        // which takes what has come until then.
        (call.found, call.mail) = (None, None);
        let Call::Begin(begin) = &call.call else { return };
        let (wait_ms, priority, request) = (begin.wait_ms, begin.priority, begin.mark.clone());
        let arrival = match self.enter_wait(call.connection) {
            Ok(next) => arrival.unwrap_or(next),
            Err(refusal) => {
                self.refuse(call.ticket, refusal, work);
                return self.drop_unborn(tree, state, index, now);
            }
        };
        let place = Place::of(priority, Some(arrival));
        let deadline_ms = call.since_ms.saturating_add(wait_ms);
        if let Some(ticket) = self.tickets.lock().get_mut(&call.ticket) {
            *ticket = TicketState::Waiting(tree.clone(), index, place);
        }
        let waiter = Waiter {
            stands: false,
            request,
            gate,
            place,
            since_ms: call.since_ms,
            deadline_ms,
            connection: call.connection,
            call: Some(Box::new(call)),
            timer: self.timer(deadline_ms, Timer::Wait(tree.clone(), index, place)),
        };
        let Some(line) = state.line_mut(index) else { return };
        line.waiter = Some(Box::new(waiter));
        self.hold_header(state);
        tree.queue(gate).put(place, tree.clone(), index);
        // Somebody may have given back between the refusal and now.
        work.gates.push((tree.clone(), gate));
    }

    /// Counts one more call that waits; its arrival. Refused if as many wait as may.
    pub(crate) fn enter_wait(&self, connection: u64) -> Result<u64, Refusal> {
        let mut waiting = self.waiting.lock();
        self.may_enter(&waiting, connection)?;
        waiting.total += 1;
        *waiting.by_connection.entry(connection).or_default() += 1;
        waiting.arrivals += 1;
        Ok(waiting.arrivals)
    }

    /// Whether one more call may wait.
    pub(crate) fn may_wait(&self, connection: u64) -> Result<(), Refusal> {
        self.may_enter(&self.waiting.lock(), connection)
    }

    fn may_enter(&self, waiting: &Waiting, connection: u64) -> Result<(), Refusal> {
        let here = waiting.by_connection.get(&connection).copied().unwrap_or(0);
        let caps = [
            ("max_waiters", waiting.total as u64, self.limits.max_waiters()),
            ("max_waiters_per_connection", u64::from(here), self.limits.max_waiters_per_connection()),
        ];
        if let Some((limit_name, used, limit)) = caps.into_iter().find(|(_, used, limit)| used >= limit) {
            let quota = crate::error::Quota { limit_name, limit, used, holders: Vec::new() };
            let message = format!("{used} calls wait; {limit_name} is {limit}");
            return Err(Refusal::new(Reason::QueueFull, message).quota(quota).retry_after(1_000));
        }
        Ok(())
    }

    /// The next arrival, of what waits without being a call.
    pub(crate) fn next_arrival(&self) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.arrivals += 1;
        waiting.arrivals
    }

    /// A call of this connection waits no more.
    pub(crate) fn leave_wait(&self, connection: u64) {
        self.waiting.lock().leave(connection);
    }

    /// Takes the waiter of a line out of its queue.
    pub(crate) fn take_waiter(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) -> Option<Box<Waiter>> {
        let waiter = state.line_mut(index)?.waiter.take()?;
        tree.queue(waiter.gate).remove(waiter.place);
        self.untimer(waiter.timer);
        if waiter.gate == Gate::Tenant {
            // It may be the one that stood for its tree at the tenant's gate.
            work.gates.push((tree.clone(), Gate::Tree));
        }
        if waiter.stands {
            tree.tenant.polls.left();
        } else if waiter.call.is_none() {
            self.waiting.lock().kept -= 1;
        }
        if let Some(call) = &waiter.call {
            self.waiting.lock().leave(waiter.connection);
            if let Some(ticket) = self.tickets.lock().get_mut(&call.ticket) {
                *ticket = TicketState::Open;
            }
        }
        self.release_header(tree, state, now);
        Some(waiter)
    }

    /// Something was given back to a gate: whoever can go, goes, in order.
    pub(crate) fn pump(&self, from: &Arc<Tree>, gate: Gate, work: &mut Work, now: &mut Moment) {
        // While nothing new may begin, who waits goes on waiting; `tick` comes back to it.
        if self.admit_begin(now).is_err() {
            return self.stalled.store(true, Ordering::Release);
        }
        let mut after = None;
        loop {
            let Some((place, tree, index)) = from.queue(gate).next(after) else { return };
            after = Some(place);
            let mut state = tree.state.lock();
            let waiter = state.line(index).and_then(|l| l.waiter.as_ref()).filter(|w| w.place == place);
            let Some(waiter) = waiter.filter(|w| !state.dropped && (w.call.is_some() || w.stands)) else { continue };
            let stands = waiter.stands;
            if stands && !self.still_stands(&tree, &state, index, now) {
                self.take_waiter(&tree, &mut state, index, work, now);
                continue;
            }
            match self.take_slots(&tree, &state, index, work) {
                Ok(()) if stands => {
                    self.take_waiter(&tree, &mut state, index, work, now);
                    self.hand_out(&tree, &mut state, index, work, now);
                }
                Ok(()) => self.grant_waiter(&tree, &mut state, index, work, now),
                Err(full) if full == gate => return,
                Err(full) => {
                    // It goes on waiting further up, in its old place.
                    tree.queue(gate).remove(place);
                    if let Some(waiter) = state.line_mut(index).and_then(|l| l.waiter.as_mut()) {
                        waiter.gate = full;
                    }
                    tree.queue(full).put(place, tree.clone(), index);
                    work.gates.push((tree.clone(), full));
                    // Those behind it would be refused there too; when it leaves that gate, this one is looked at again.
                    return;
                }
            }
        }
    }

    /// The slots of a waiter were just taken: checks again all that may have changed while it waited.
    fn grant_waiter(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, work: &mut Work, now: &mut Moment) {
        let Some(waiter) = self.take_waiter(tree, state, index, work, now) else { return };
        let (since_ms, place) = (waiter.since_ms, waiter.place);
        let Some(mut call) = waiter.call else { return };
        // It stood in a queue, and was not parked for a read.
        call.ran_ms = now.mono_ms;
        if now.mono_ms >= waiter.deadline_ms && waiter.deadline_ms > since_ms {
            let met = Met::Waiting(place, now.mono_ms.saturating_sub(since_ms));
            let refusal = self.gate_refusal(&call.who, waiter.gate, met, tree, state, now);
            self.return_slots(tree, state, index, work);
            self.reply(call.ticket, Err(refusal), tree, state, work);
            return self.drop_unborn(tree, state, index, now);
        }
        self.begin_with_slots(*call, tree, state, index, Some(place.arrival), work, now);
    }

    /// Gives back slots for which no turn was begun.
    pub(crate) fn return_slots(&self, tree: &Arc<Tree>, state: &TreeState, index: u32, work: &mut Work) {
        let Some(line) = state.line(index) else { return };
        let (nodes, gates) = tree.gates(line);
        for ((node, n), gate) in nodes.iter().zip(gates) {
            node.release(*n);
            work.gates.push((tree.clone(), *gate));
        }
    }

    /// A wait's time is up, or the time for which a cancelled one keeps its place.
    pub(crate) fn wait_due(&self, tree: &Arc<Tree>, index: u32, place: Place, work: &mut Work, now: &Moment) {
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        let waiter = state.line_mut(index).and_then(|l| l.waiter.as_mut());
        let Some(waiter) = waiter.filter(|w| w.place == place) else { return };
        if waiter.deadline_ms > now.mono_ms {
            waiter.timer = self.timer(waiter.deadline_ms, Timer::Wait(tree.clone(), index, place));
            return;
        }
        let gate = waiter.gate;
        let Some(waiter) = self.take_waiter(tree, &mut state, index, work, now) else { return };
        if let Some(call) = waiter.call {
            let met = Met::Waiting(place, now.mono_ms.saturating_sub(waiter.since_ms));
            let refusal = self.gate_refusal(&call.who, gate, met, tree, &state, now);
            self.reply(call.ticket, Err(refusal), tree, &state, work);
        }
        self.drop_unborn(tree, &mut state, index, now);
    }

    /// A waiting call is gone: with a request_id it keeps its place for a while, else it leaves at once.
    pub(crate) fn cancel_wait(&self, tree: &Arc<Tree>, index: u32, place: Place, work: &mut Work, now: &Moment) {
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        let waits = |w: &&mut Box<Waiter>| w.place == place && w.call.is_some();
        let Some(waiter) = state.line_mut(index).and_then(|l| l.waiter.as_mut()).filter(waits) else { return };
        let crowded = {
            let waiting = self.waiting.lock();
            (waiting.total + waiting.kept) as u64 > self.limits.max_waiters()
        };
        if waiter.request.is_none() || self.limits.keep_place_ms() == 0 || crowded {
            self.take_waiter(tree, &mut state, index, work, now);
            return self.drop_unborn(tree, &mut state, index, now);
        }
        waiter.call = None;
        let gate = waiter.gate;
        self.waiting.lock().kept += 1;
        waiter.deadline_ms = now.mono_ms + self.limits.keep_place_ms();
        let connection = waiter.connection;
        self.untimer(waiter.timer);
        waiter.timer = self.timer(waiter.deadline_ms, Timer::Wait(tree.clone(), index, place));
        self.waiting.lock().leave(connection);
        tree.queue(gate).keep(place);
        // Who is behind it need not wait for it.
        work.gates.push((tree.clone(), Gate::Tree));
        work.gates.push((tree.clone(), Gate::Tenant));
    }

    /// Ends the wait of a session whose close was just journaled.
    pub(crate) fn end_wait(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, work: &mut Work, now: &Moment) {
        let Some(waiter) = self.take_waiter(tree, state, index, work, now) else { return };
        let (Some(call), Some(line)) = (waiter.call, state.line(index)) else { return };
        let refusal = closed(&line.session_id);
        self.reply(call.ticket, Err(refusal), tree, state, work);
    }

    /// Once turns may begin again, every gate that somebody waits at is looked at.
    pub(crate) fn resume_waits(&self, work: &mut Work, now: &Moment) {
        if !self.stalled.load(Ordering::Acquire) || self.admit_begin(now).is_err() {
            return;
        }
        self.stalled.store(false, Ordering::Release);
        let mut seen = HashSet::new();
        for state in self.tickets.lock().values() {
            let TicketState::Waiting(tree, ..) = state else { continue };
            if seen.insert(Arc::as_ptr(tree).cast::<()>()) {
                work.gates.push((tree.clone(), Gate::Tree));
            }
            if seen.insert(Arc::as_ptr(&tree.tenant).cast::<()>()) {
                work.gates.push((tree.clone(), Gate::Tenant));
            }
        }
    }

    /// Ends all waits: the server stops.
    pub(crate) fn end_all_waits(&self, work: &mut Work, now: &Moment) {
        let waits: Vec<(u64, Arc<Tree>, u32, Place)> = self
            .tickets
            .lock()
            .iter()
            .filter_map(|(ticket, state)| match state {
                TicketState::Waiting(tree, index, place) => Some((*ticket, tree.clone(), *index, *place)),
                _ => None,
            })
            .collect();
        for (ticket, tree, index, place) in waits {
            let mut state = tree.state.lock();
            if state.line(index).and_then(|l| l.waiter.as_ref()).is_none_or(|w| w.place != place) {
                continue;
            }
            self.take_waiter(&tree, &mut state, index, work, now);
            self.refuse(ticket, super::shutting_down(), work);
            self.drop_unborn(&tree, &mut state, index, now);
        }
    }
}
