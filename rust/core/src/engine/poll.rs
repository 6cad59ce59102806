//! PollTurn: hosts that wait for a session to become runnable, and the sessions that do.
//!
//! The store has an index of the messages that make their sessions runnable, by time, so that none of that costs memory or
//! is lost with it. While a host waits it is looked at; what becomes runnable in memory meanwhile is tried at once. A
//! session that finds its gates full stands in their queues behind every BeginTurn, as long as somebody waits for it.

use super::mail::is_runnable;
use super::reload::{Effect, Located, Purpose, RunnableSession};
use super::requests::Begin;
use super::tree::{Gate, Place, Tenant, Tree, TreeState, Waiter};
use super::{Call, Engine, Moment, Pending, TicketState, Work};
use crate::error::Refusal;
use crate::gen_store::RequestMark;
use crate::gen_v1 as v1;
use crate::ids::{Uid, repeats};
use parking_lot::Mutex;
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Messages that one look takes; what is left follows.
const AT_ONCE: usize = 256;
/// After a look that found something, another one follows within this time: what could not be begun then may be now.
const AGAIN_MS: i64 = 1_000;
/// Sessions of one tenant that stand at gates for hosts; each keeps its tree's header in memory.
const MOST_STANDING: usize = 4_096;

/// A PollTurn.
#[derive(Debug, Clone)]
pub(crate) struct PollCall {
    pub(crate) mark: Option<RequestMark>,
    pub(crate) owner: String,
    pub(crate) wait_ms: u64,
    pub(crate) lease_ms: u64,
    /// Only the tree of this root; empty: any.
    pub(crate) root: String,
    pub(crate) want_provisional: bool,
}

/// Of one tenant: who waits, and what is known of what they wait for.
#[derive(Debug, Default)]
pub(crate) struct Polls {
    inner: Mutex<Inner>,
    /// How many wait.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    /// In order of arrival.
    pollers: VecDeque<Pending>,
    /// Sessions that stand at gates.
    standing: usize,
    /// Wall-clock milliseconds at which to look in the store next.
    next_ms: i64,
    /// A look is under way, or the sessions that it found are still to be tried.
    looking: bool,
    listed: VecDeque<String>,
    after: Option<RunnableSession>,
    /// The turns that PollTurns with a request_id have begun and that run.
    begun: HashMap<String, (Uid, Arc<str>)>,
    requests: HashMap<Uid, String>,
}

impl Polls {
    /// Whether anybody waits.
    pub(crate) fn any(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// How many wait, as they are counted one by one.
    pub(crate) fn len(&self) -> usize {
        self.inner.lock().pollers.len()
    }

    /// How many sessions stand at gates.
    pub(crate) fn standing(&self) -> usize {
        self.inner.lock().standing
    }

    /// Something is runnable from then on.
    pub(crate) fn due_at(&self, wall_ms: i64) {
        let mut inner = self.inner.lock();
        inner.next_ms = inner.next_ms.min(wall_ms);
    }

    /// A session that stood at a gate does so no more.
    pub(crate) fn left(&self) {
        self.inner.lock().standing -= 1;
    }

    /// The turn of a session began by this request of a PollTurn.
    pub(crate) fn began(&self, request_id: &str, uid: Uid, session_id: &Arc<str>) {
        let mut inner = self.inner.lock();
        inner.begun.insert(request_id.to_owned(), (uid, session_id.clone()));
        inner.requests.insert(uid, request_id.to_owned());
    }

    /// The turn of a session is over.
    pub(crate) fn ended(&self, uid: Uid) {
        let mut inner = self.inner.lock();
        if inner.requests.is_empty() {
            return;
        }
        if let Some(request_id) = inner.requests.remove(&uid)
            && inner.begun.get(&request_id).is_some_and(|(of, _)| *of == uid)
        {
            inner.begun.remove(&request_id);
        }
    }

    fn begun(&self, request_id: &str) -> Option<Arc<str>> {
        self.inner.lock().begun.get(request_id).map(|(_, session_id)| session_id.clone())
    }

    /// Takes the waiting calls that `wanted` says.
    fn take(&self, wanted: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let mut inner = self.inner.lock();
        let (taken, left): (Vec<_>, VecDeque<_>) = {
            let pollers = std::mem::take(&mut inner.pollers);
            let mut left = VecDeque::with_capacity(pollers.len());
            let mut taken = Vec::new();
            for call in pollers {
                if wanted(&call) { taken.push(call) } else { left.push_back(call) }
            }
            (taken, left)
        };
        inner.pollers = left;
        self.waiting.store(inner.pollers.len(), Ordering::Release);
        taken
    }

    fn first(&self, wanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let mut inner = self.inner.lock();
        let at = inner.pollers.iter().position(wanted)?;
        let call = inner.pollers.remove(at);
        self.waiting.store(inner.pollers.len(), Ordering::Release);
        call
    }
}

fn deadline_ms(call: &Pending) -> u64 {
    match &call.call {
        Call::Poll(poll) => call.since_ms.saturating_add(poll.wait_ms),
        _ => 0,
    }
}

impl Engine {
    pub(crate) fn poll_turn(&self, mut call: Pending, work: &mut Work, now: &mut Moment) {
        let Call::Poll(poll) = &call.call else { return };
        let polls = &call.tenant.polls;
        if let Some(mark) = &poll.mark
            && let Some(session_id) = polls.begun(&mark.request_id)
            && let Some((tree, index)) = call.tenant.directory.get(&session_id)
        {
            let Some(mut state) = Self::still_at(&tree, index, &session_id) else {
                return work.calls.push_back(call);
            };
            let lease = state.line(index).and_then(|l| l.running());
            match repeats(lease.and_then(|l| l.request.as_ref()), Some(mark)) {
                Err(refusal) => return self.reply(call.ticket, Err(refusal), &tree, &state, work),
                Ok(true) if call.who.reaches(&state, index) => {
                    let call = begins(call, &session_id);
                    return self.repeat_begin(call, &tree, &mut state, index, work, now);
                }
                Ok(_) => {}
            }
        }
        if deadline_ms(&call) <= now.mono_ms {
            return self.refuse_poll(call, None, work);
        }
        if let Err(refusal) = self.enter_wait(call.connection) {
            return self.refuse_poll(call, Some(refusal), work);
        }
        let tenant = call.tenant.clone();
        (call.mail, call.found) = (None, None);
        self.stand_in(call, false);
        self.look_for_runnable(&tenant, now);
    }

    /// A call joins those that wait; in front of them if it was there before.
    fn stand_in(&self, call: Pending, in_front: bool) {
        if let Some(state) = self.tickets.lock().get_mut(&call.ticket) {
            *state = TicketState::Polling(call.tenant.clone());
        } else {
            // Cancelled meanwhile.
            return self.leave_wait(call.connection);
        }
        let tenant = call.tenant.clone();
        let mut inner = tenant.polls.inner.lock();
        if in_front {
            inner.pollers.push_front(call);
        } else {
            inner.pollers.push_back(call);
        }
        tenant.polls.waiting.store(inner.pollers.len(), Ordering::Release);
        inner.next_ms = 0;
    }

    fn refuse_poll(&self, call: Pending, refusal: Option<Refusal>, work: &mut Work) {
        let result = refusal.map_or_else(|| Ok(v1::PollTurnResponse::default().encode_to_vec()), Err);
        work.answers.push(super::Answer { ticket: call.ticket, result, after: 0, root: None });
    }

    /// What was to be begun for a PollTurn was not: the call waits on, in front.
    pub(crate) fn poll_again(&self, call: Pending, work: &mut Work) {
        let mut call = polls(call);
        (call.mail, call.found, call.arrival) = (None, None, None);
        match self.enter_wait(call.connection) {
            Ok(_) => self.stand_in(call, true),
            Err(refusal) => self.refuse_poll(call, Some(refusal), work),
        }
    }

    /// A waiting call is gone.
    pub(crate) fn cancel_poll(&self, tenant: &Tenant, ticket: u64) {
        for call in tenant.polls.take(|call| call.ticket == ticket) {
            self.leave_wait(call.connection);
        }
    }

    /// Ends the calls whose time is up, or all; looks at what is due for the others.
    pub(crate) fn look_at_polls(&self, all: bool, work: &mut Work, now: &Moment) {
        let tenants: Vec<Arc<Tenant>> = self.tenants.read().values().filter(|t| t.polls.any()).cloned().collect();
        for tenant in tenants {
            for call in tenant.polls.take(|call| all || deadline_ms(call) <= now.mono_ms) {
                self.leave_wait(call.connection);
                self.refuse_poll(call, all.then(super::shutting_down), work);
            }
            if tenant.polls.any() && self.admit_begin(now).is_ok() {
                self.look_for_runnable(&tenant, now);
            }
        }
    }

    fn look_for_runnable(&self, tenant: &Arc<Tenant>, now: &Moment) {
        let after = {
            let mut inner = tenant.polls.inner.lock();
            if inner.looking || inner.next_ms > now.wall_ms || inner.standing >= MOST_STANDING {
                return;
            }
            (inner.looking, inner.next_ms) = (true, i64::MAX);
            inner.after.take()
        };
        let (name, until_ms) = (tenant.name.clone(), now.wall_ms);
        let purpose = Purpose::Runnable { tenant: tenant.clone() };
        self.ask(self.journal.last_seq(), purpose, |id| Effect::Runnable {
            id,
            tenant: name,
            until_ms,
            after,
            limit: AT_ONCE,
        });
    }

    /// The answer to a Runnable.
    pub fn runnable_found(&self, id: u64, found: Vec<RunnableSession>, next_ms: Option<i64>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Runnable { tenant }) = self.purpose(id) else { return };
        let mut work = Work::default();
        {
            let mut inner = tenant.polls.inner.lock();
            let again = if found.is_empty() { i64::MAX } else { now.wall_ms + AGAIN_MS };
            inner.next_ms = inner.next_ms.min(next_ms.unwrap_or(i64::MAX)).min(again);
            if found.len() == AT_ONCE {
                inner.after = found.last().cloned();
                inner.next_ms = 0;
            }
            for session in found {
                // A session's messages mostly follow each other.
                if inner.listed.back() != Some(&session.session_id) {
                    inner.listed.push_back(session.session_id);
                }
            }
        }
        self.poke_next(&tenant, &mut work, &now);
        self.finish(&mut work, &mut now);
    }

    /// Tries the next session of the list. One after the other: whose tree is in memory must not decide who goes first
    /// (I11).
    pub(crate) fn poke_next(&self, tenant: &Arc<Tenant>, work: &mut Work, now: &Moment) {
        let mut inner = tenant.polls.inner.lock();
        if inner.pollers.is_empty() {
            inner.listed.clear();
        }
        match inner.listed.pop_front() {
            Some(session_id) => {
                let call = Call::Poke { session_id, listed: true };
                work.calls.push_back(self.pending(0, tenant.clone(), 0, call, now));
            }
            None => inner.looking = false,
        }
    }

    /// Nothing can begin now: the list is made again a little later.
    pub(crate) fn stop_poking(&self, tenant: &Tenant, now: &Moment) {
        let mut inner = tenant.polls.inner.lock();
        inner.listed.clear();
        inner.looking = false;
        inner.next_ms = inner.next_ms.min(now.wall_ms + AGAIN_MS);
    }

    /// The look could not be made: it is made again a little later.
    pub(crate) fn runnable_failed(&self, tenant: &Tenant, now: &Moment) {
        self.stop_poking(tenant, now);
    }

    /// A line may have become runnable: tried, if anybody waits.
    pub(crate) fn poke_line(&self, tree: &Arc<Tree>, state: &TreeState, index: u32, work: &mut Work, now: &Moment) {
        if !tree.tenant.polls.any() {
            return;
        }
        let Some(line) = state.line(index) else { return };
        let Some(due) = line.mail.as_ref().and_then(|m| m.runnable_from(now.wall_ms)) else { return };
        if due > now.wall_ms {
            tree.tenant.polls.due_at(due);
        } else if line.running().is_none() {
            let call = Call::Poke { session_id: line.session_id.to_string(), listed: false };
            work.calls.push_back(self.pending(0, tree.tenant.clone(), 0, call, now));
        }
    }

    /// The engine's own: begin a turn of this session, if it is runnable and somebody waits for that.
    pub(crate) fn poked(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Call::Poke { session_id, listed } = &call.call else { return };
        let (id, listed) = (session_id.clone(), *listed);
        if id.is_empty() {
            return self.poke_next(&call.tenant, work, now);
        }
        let tenant = match self.locate(call, &id, work) {
            Located::Gone => return,
            Located::Absent(call) | Located::Ended(call, _) => call.tenant,
            Located::At(call, tree, index) => {
                let Some(mut state) = Self::still_at(&tree, index, &id) else {
                    return work.calls.push_back(call);
                };
                self.try_runnable(&tree, &mut state, index, work, now);
                call.tenant
            }
        };
        if listed {
            self.poke_next(&tenant, work, now);
        }
    }

    fn try_runnable(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, work: &mut Work, now: &mut Moment) {
        let Some(line) = state.line(index) else { return };
        // Who has called BeginTurn and waits takes the mail.
        if line.waiter.is_some() || !is_runnable(line, now) || !self.is_awaited(tree, state, index) {
            return;
        }
        match self.take_slots(tree, state, index, work) {
            Ok(()) => self.hand_out(tree, state, index, work, now),
            Err(gate) => self.stand(tree, state, index, gate, work),
        }
    }

    /// Whether a host waits that may have this session.
    fn is_awaited(&self, tree: &Tree, state: &TreeState, index: u32) -> bool {
        tree.tenant.polls.any() && {
            let inner = tree.tenant.polls.inner.lock();
            inner.pollers.iter().any(|call| may_have(call, state, index))
        }
    }

    /// A runnable session waits at a gate for its hosts, behind all BeginTurns.
    fn stand(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, gate: Gate, work: &mut Work) {
        {
            let mut inner = tree.tenant.polls.inner.lock();
            if inner.standing >= MOST_STANDING {
                return;
            }
            inner.standing += 1;
        }
        let place = Place { against_priority: Place::BEHIND_ALL, arrival: self.next_arrival() };
        let Some(line) = state.line_mut(index) else { return };
        line.waiter = Some(Box::new(Waiter {
            call: None,
            stands: true,
            request: None,
            gate,
            place,
            since_ms: 0,
            deadline_ms: u64::MAX,
            connection: 0,
            timer: (0, 0),
        }));
        self.hold_header(state);
        tree.queue(gate).put(place, tree.clone(), index);
        // Somebody may have given back between the refusal and now.
        work.gates.push((tree.clone(), gate));
    }

    /// Whether a session that stands at a gate still has what for.
    pub(crate) fn still_stands(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) -> bool {
        state.line(index).is_some_and(|line| is_runnable(line, now)) && self.is_awaited(tree, state, index)
    }

    /// The slots of a runnable session are taken: its turn begins for the first who waits and may have it.
    pub(crate) fn hand_out(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let poller = loop {
            let Some(poller) = tree.tenant.polls.first(|call| may_have(call, state, index)) else { break None };
            self.leave_wait(poller.connection);
            if let Some(at) = self.tickets.lock().get_mut(&poller.ticket) {
                *at = TicketState::Open;
                break Some(poller);
            }
        };
        let (Some(call), Some(line)) = (poller, state.line(index)) else {
            return self.return_slots(tree, state, index, work);
        };
        let session_id = line.session_id.clone();
        let mut call = begins(call, &session_id);
        call.ran_ms = now.mono_ms;
        self.begin_with_slots(call, tree, state, index, None, work, now);
    }
}

/// Whether this PollTurn may have the session at `index`.
fn may_have(call: &Pending, state: &TreeState, index: u32) -> bool {
    let Call::Poll(poll) = &call.call else { return false };
    let root = || state.line(0).is_some_and(|root| *root.session_id == *poll.root);
    (poll.root.is_empty() || root()) && call.who.reaches(state, index)
}

/// The PollTurn that came to this BeginTurn.
pub(crate) fn polls(mut call: Pending) -> Pending {
    if let Call::Begin(Begin { polled: Some(poll), .. }) = call.call {
        call.call = Call::Poll(*poll);
    }
    call
}

/// The BeginTurn that a PollTurn comes to.
fn begins(mut call: Pending, session_id: &str) -> Pending {
    if let Call::Poll(poll) = call.call {
        call.call = Call::Begin(Begin {
            session_id: session_id.to_owned(),
            mark: poll.mark.clone(),
            open: None,
            wait_ms: 0,
            expected_turn: None,
            expected_head_version: None,
            known_head_version: None,
            lease_ms: poll.lease_ms,
            owner: poll.owner.clone(),
            priority: 0,
            validate_only: false,
            takeover: false,
            want_provisional: poll.want_provisional,
            polled: Some(Box::new(poll)),
        });
    }
    call
}
