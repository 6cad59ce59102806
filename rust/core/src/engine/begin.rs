//! BeginTurn and RenewTurns: grants and their leases.

use super::end::{Left, leave};
use super::events::{Ended, Times, outcome_name};
use super::full::Met;
use super::mail::returned;
use super::mailbox::Returned;
use super::reload::{Located, Need, Wanted, Why};
use super::requests::{Begin, Payload};
use super::tree::{Lease, Line, Place, Resident, Tree, TreeState};
use super::{
    Answer, Call, Engine, Found, MailFound, Moment, Pending, TicketState, Timer, Work, closed, count, duration,
    not_found, timestamp,
};
use crate::error::{Reason, Refusal};
use crate::gen_store::EndedBy;
use crate::gen_v1 as v1;
use crate::ids::{Asked, LeaseToken, Uid, check_session_id, repeats};
use parking_lot::MutexGuard;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Engine {
    pub(crate) fn begin_turn(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Call::Begin(begin) = &call.call else { return };
        let id = begin.session_id.clone();
        match self.locate(call, &id, work) {
            Located::Gone => {}
            Located::Ended(call, ..) => self.refuse(call.ticket, closed(&id), work),
            Located::At(call, tree, index) => match Self::still_at(&tree, index, &id) {
                // It came to be there since the gate was passed.
                Some(state) if !call.who.reaches(&state, index) => work.calls.push_back(call),
                Some(mut state) => self.begin_at(call, &tree, &mut state, index, work, now),
                None => work.calls.push_back(call),
            },
            Located::Absent(call) => self.begin_new(call, &id, work, now),
        }
    }

    /// The session never existed: with `open` it is made in the same entry as its first grant.
    fn begin_new(&self, call: Pending, id: &str, work: &mut Work, now: &mut Moment) {
        let Call::Begin(Begin { open: Some(_), .. }) = &call.call else {
            return self.refuse(call.ticket, not_found(id), work);
        };
        let Some((call, site)) = self.site(call, work, now) else { return };
        let Call::Begin(Begin { open: Some(options), .. }) = &call.call else { return };
        let Some(mut state) = site.enter() else {
            work.calls.push_back(call);
            return;
        };
        if let Err(refusal) = self.check_birth(&state, site.parent, &options.name) {
            return self.reply(call.ticket, Err(refusal), &site.tree, &state, work);
        }
        let Some(index) = self.add_unborn(&site, &mut state, id, work) else {
            drop(state);
            work.calls.push_back(call);
            return;
        };
        self.begin_at(call, &site.tree, &mut state, index, work, now);
        self.drop_unborn(&site.tree, &mut state, index, now);
    }

    /// BeginTurn in a tree that is in memory and locked.
    fn begin_at(
        &self,
        call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        if let Some(loading) = state.line_mut(index).and_then(|l| l.loading.as_mut()).filter(|l| l.granted.is_some()) {
            // Another call has the slots and gets its grant when the session is in memory: then it is clear what this
            // one meets.
            return loading.calls.push(call);
        }
        if matches!(&call.call, Call::Begin(b) if !b.validate_only) {
            // The turn would be the first of the next trajectory.
            self.finish_if_due(tree, state, index, now);
        }
        let (Call::Begin(begin), Some(line)) = (&call.call, state.line(index)) else { return };
        let mut takes_over = false;
        if line.born || line.closed.is_some() {
            let seen = |r: &Resident| r.has_seen(Asked::Begin, begin.mark.as_ref());
            let is_new = call.new_since == Some(line.last);
            let (uid, after) = (line.uid, state.last_seq);
            match self.check_begin(begin, line, now) {
                Ok(Standing::Repeat) => return self.repeat_begin(call, tree, state, index, work, now),
                // A repeat whose turn is over is told so, whatever the session does by now.
                Err(refusal)
                    if matches!(refusal.reason, Reason::TurnMismatch | Reason::TurnInProgress)
                        && begin.mark.is_some()
                        && !is_new =>
                {
                    return match &line.resident {
                        None => self.load(call, tree, state, index, Wanted::default()),
                        Some(resident) if seen(resident) => {
                            self.ask_records(call, uid, Why::Repeat { ended: false }, after);
                        }
                        Some(_) => {
                            self.log_begin_conflict(tree.root, line, &call, begin, &refusal, now);
                            self.reply(call.ticket, Err(refusal), tree, state, work);
                        }
                    };
                }
                Err(refusal) => {
                    self.log_begin_conflict(tree.root, line, &call, begin, &refusal, now);
                    return self.reply(call.ticket, Err(refusal), tree, state, work);
                }
                Ok(Standing::New) => {}
                Ok(Standing::Takeover) => takes_over = true,
            }
            // What the grant's answer needs comes to memory before a slot is taken: a load can fail, a grant cannot.
            let Some(resident) = &line.resident else {
                let wanted = Wanted::of(begin, line);
                return self.load(call, tree, state, index, wanted);
            };
            if !is_new && seen(resident) {
                return self.ask_records(call, uid, Why::Repeat { ended: false }, after);
            }
            if !call.holds_answer(begin, line, resident) {
                let wanted = Wanted::of(begin, line);
                return self.load(call, tree, state, index, wanted);
            }
            if !begin.validate_only
                && let Some(seqs) = self.mail_to_read(&call, line, takes_over, now)
            {
                return self.ask_mail(call, uid, seqs, after);
            }
        } else if begin.open.is_none() {
            return self.refuse(call.ticket, not_found(&begin.session_id), work);
        } else if let Err(refusal) = check_expected(begin, line) {
            return self.reply(call.ticket, Err(refusal), tree, state, work);
        }
        // One waiter per session: a live one is in the way unless it is this very request, whose caller lost its
        // connection; a place that is kept yields to anybody, and goes on for its own repeat.
        let mut arrival = call.arrival;
        if let Some(waiter) = &line.waiter {
            let same = match repeats(waiter.request.as_ref(), begin.mark.as_ref()) {
                Ok(same) => same,
                Err(refusal) => return self.reply(call.ticket, Err(refusal), tree, state, work),
            };
            if waiter.call.is_some() && !same {
                let waited = now.mono_ms.saturating_sub(waiter.since_ms);
                let refusal = Refusal::new(
                    Reason::TurnInProgress,
                    format!("a turn of session {:?} waits for a slot since {waited} ms", line.session_id),
                );
                let refusal = refusal.with("session_id", &line.session_id).with("waited_ms", waited);
                self.log_begin_conflict(tree.root, line, &call, begin, &refusal, now);
                return self.reply(call.ticket, Err(refusal), tree, state, work);
            }
            let waits = begin.wait_ms > 0;
            if same && !waits && waiter.call.is_some() {
                // The call that waits is not given up for one that would not.
                let refusal = Refusal::new(Reason::TurnInProgress, "the same request waits for a slot in another call");
                return self.reply(call.ticket, Err(refusal), tree, state, work);
            }
            arrival = same.then_some(waiter.place.arrival);
            if !begin.validate_only {
                if let Some(old) = self.take_waiter(tree, state, index, work, now).and_then(|w| w.call) {
                    let refusal = Refusal::new(Reason::TurnInProgress, "the same request waits in another call");
                    self.reply(old.ticket, Err(refusal), tree, state, work);
                }
                let elsewhere = |l: &&Line| !l.born && begin.open.as_ref().is_some_and(|o| !state.below(l, &o.parent));
                if state.line(index).as_ref().is_some_and(elsewhere) {
                    // The line was to be born below another parent.
                    work.calls.push_back(call);
                    return self.drop_unborn(tree, state, index, now);
                }
            }
        }
        if matches!(&call.call, Call::Begin(b) if b.validate_only) {
            return self.preview_begin(&call, tree, state, index, arrival, work, now);
        }
        if takes_over {
            return self.take_over(call, tree, state, index, work, now);
        }
        match self.take_slots(tree, state, index, work) {
            Ok(()) => self.begin_with_slots(call, tree, state, index, arrival, work, now),
            Err(gate) => {
                let waits = matches!(&call.call, Call::Begin(b)
                    if b.wait_ms > 0 && call.since_ms.saturating_add(b.wait_ms) > now.mono_ms);
                if waits {
                    return self.enqueue(call, gate, arrival, tree, state, index, work, now);
                }
                let Call::Begin(begin) = &call.call else { return };
                let place = Place::of(begin.priority, arrival);
                let waited_ms = now.mono_ms.saturating_sub(call.since_ms);
                let waited = begin.wait_ms > 0;
                let met = if waited { Met::Waiting(place, waited_ms) } else { Met::AtOnce(place) };
                let refusal = self.gate_refusal(&call.who, gate, met, tree, state, now);
                self.reply(call.ticket, Err(refusal), tree, state, work);
                // It may have taken over the place of a call for which the line was kept.
                self.drop_unborn(tree, state, index, now);
            }
        }
    }

    /// The slots are taken: grants, unless the session changed while the call waited; then they go back.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn begin_with_slots(
        &self,
        mut call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        arrival: Option<u64>,
        work: &mut Work,
        now: &mut Moment,
    ) {
        if let Err(refusal) = self.keys.still_valid(&call.who) {
            // Its key was revoked while it waited.
            self.return_slots(tree, state, index, work);
            self.reply(call.ticket, Err(refusal), tree, state, work);
            return self.drop_unborn(tree, state, index, now);
        }
        let (Call::Begin(begin), Some(line)) = (&call.call, state.line(index)) else {
            return self.return_slots(tree, state, index, work);
        };
        let unborn = !line.born;
        let checked = if unborn {
            check_expected(begin, line).map(|()| Standing::New)
        } else {
            self.check_begin(begin, line, now)
        };
        // While it waited it may have been unloaded: nobody holds an idle session for a waiter. It keeps its slots while
        // it is loaded again, so that residency does not decide who goes first (I11).
        let ready = unborn || line.resident.as_ref().is_some_and(|r| call.holds_answer(begin, line, r));
        let need = if ready {
            self.mail_to_read(&call, line, false, now).map(Need::Mail)
        } else {
            Some(Need::Session(Wanted::of(begin, line)))
        };
        match (checked, need) {
            (Ok(Standing::New), None) => {}
            (Ok(Standing::New), Some(need)) => {
                (call.arrival, call.ran_ms) = (arrival, now.mono_ms);
                return self.load_granted(call, tree, state, index, need);
            }
            (other, _) => {
                call.arrival = arrival;
                self.return_slots(tree, state, index, work);
                return match other {
                    Err(refusal) => {
                        if let (Call::Begin(begin), Some(line)) = (&call.call, state.line(index)) {
                            self.log_begin_conflict(tree.root, line, &call, begin, &refusal, now);
                        }
                        self.refuse_begin(call, refusal, tree, state, work);
                        self.drop_unborn(tree, state, index, now);
                    }
                    Ok(_) => work.calls.push_back(call),
                };
            }
        }
        let waited = now.mono_ms.saturating_sub(call.since_ms);
        let times = call.times(now);
        let Pending { ticket, call: Call::Begin(mut begin), found, mail, .. } = call else { return };
        if unborn {
            let Some(options) = begin.open.take() else { return };
            // The session has no request of its own: the grant bears it.
            if let Err(refusal) = self.birth(tree, state, index, options, None, now) {
                self.return_slots(tree, state, index, work);
                self.reply(ticket, Err(refusal), tree, state, work);
                return self.drop_unborn(tree, state, index, now);
            }
        }
        if !unborn {
            // While it waited its trajectory may have come due.
            self.finish_if_due(tree, state, index, now);
        }
        let granted = self.grant(&begin, times, mail.as_deref(), tree, state, index, now);
        let (Some(line), Some((fence, taken))) = (state.line(index), granted) else { return };
        let Some(mut grant) =
            line.resident.as_ref().and_then(|r| self.grant_message(line, r, begin.known_head_version, waited, now))
        else {
            return;
        };
        grant.provisional = live_provisional(line, found.as_ref());
        (grant.mail, grant.more_mail) = taken;
        let reply = begun(&begin, line, grant, unborn);
        self.granted(ticket, tree, index, fence, work);
        self.reply(ticket, Ok(reply), tree, state, work);
        work.evict = true;
    }

    /// Notes whose grant it is: should the caller be gone before it has the answer, the grant is released.
    pub(crate) fn granted(&self, ticket: u64, tree: &Arc<Tree>, index: u32, fence: u64, work: &mut Work) {
        match self.tickets.lock().get_mut(&ticket) {
            Some(state) => *state = TicketState::Granted(tree.clone(), index, fence),
            // Gone while it was being made.
            None => work.releases.push((tree.clone(), index, fence)),
        }
    }

    /// Refuses a BeginTurn; a PollTurn waits for another session instead.
    pub(crate) fn refuse_begin(
        &self,
        call: Pending,
        refusal: Refusal,
        tree: &Tree,
        state: &TreeState,
        work: &mut Work,
    ) {
        if matches!(&call.call, Call::Begin(Begin { polled: Some(_), .. })) {
            return self.poll_again(call, work);
        }
        self.reply(call.ticket, Err(refusal), tree, state, work);
    }

    /// Makes the grant and journals it, with the mail that was read for it. The slots are the caller's and pass to it.
    #[allow(clippy::too_many_arguments)]
    fn grant(
        &self,
        begin: &Begin,
        times: Times,
        mail: Option<&(Uid, Vec<MailFound>)>,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        now: &mut Moment,
    ) -> Option<(u64, Taken)> {
        let nonce = now.draw().to_le_bytes();
        // A running session stays in memory (I9): this pin goes when the turn ends.
        self.pin(tree, state, index, now)?;
        self.hold_header(state);
        let line = state.line_mut(index)?;
        let resident = line.resident.as_mut()?;
        resident.attempts += 1;
        line.fence += 1;
        let fence = line.fence;
        let timer = self.timer(now.mono_ms + begin.lease_ms, Timer::Lease(tree.clone(), index, fence));
        let lease = Lease {
            fence,
            nonce,
            turn: line.head + 1,
            attempt: resident.attempts,
            timer,
            times,
            ..Lease::begun(begin, now)
        };
        line.owner = super::tree::owner_of(&begin.owner);
        line.lease = Some(Box::new(lease));
        state.touch(now);
        let mut taken = Taken::default();
        self.append(tree, state, index, now, |_, line, ops| taken = self.take_mail(line, mail, fence, ops, now));
        self.charge_mail(tree, state, index, now);
        self.running.fetch_add(1, Ordering::Relaxed);
        if let Some(line) = state.line(index) {
            self.resources.turn(line.uid, true, now);
            if let (Some(_), Some(mark)) = (&begin.polled, &begin.mark) {
                tree.tenant.polls.began(&mark.request_id, line.uid, &line.session_id);
            }
        }
        count(&self.counters.turns_begun);
        if begin.polled.is_none() {
            // A PollTurn waits for a session that is runnable, and not for a slot alone.
            self.measures.waits.record(times.queue_wait);
        }
        self.turn_began(tree, state, index, now);
        Some((fence, taken))
    }

    /// A grant was just journaled: the tenant's turns, the log and those who watch are told.
    pub(crate) fn turn_began(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) {
        if let Some((line, lease)) = state.line(index).and_then(|l| Some((l, l.lease.as_ref()?))) {
            tree.tenant.turns.began(line.uid, &line.session_id, lease.begin_wall_ms);
            self.log_start(tree.root, line, lease, state.last_seq, now);
        }
        self.tell_begun(tree, state, index, now);
    }

    /// The turn that runs ends as if its lease had run out; its slot passes to this call in the same entry, so there is
    /// no instant in which it is free, and no gate.
    fn take_over(
        &self,
        call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let times = call.times(now);
        let nonce = now.draw().to_le_bytes();
        let Pending { ticket, call: Call::Begin(begin), mail, .. } = call else { return };
        let Some(old) = state.line(index).and_then(|l| l.running()).cloned() else { return };
        let outcome = old.expired_outcome();
        let fence = old.fence + 1;
        let timer = self.timer(now.mono_ms + begin.lease_ms, Timer::Lease(tree.clone(), index, fence));
        let (mut trajectory, mut ready, mut taken) = (0, None, Taken::default());
        state.touch(now);
        self.append(tree, state, index, now, |appending, line, ops| {
            let left = Left::new(outcome, EndedBy::Takeover);
            trajectory = line.resident.as_ref().map_or(0, |r| r.trajectories + 1);
            leave(appending.seq, line, ops, &old, Payload::default(), left, now);
            self.return_mail(line, &old, returned(outcome), ops, now);
            taken = self.take_mail(line, mail.as_deref(), fence, ops, now);
            if line.is_due(now) {
                // As after an expiry: the turn that begins is of the next trajectory.
                ready = Some(line.finish(appending.another(), tree, None, now, ops).ready_seq);
            }
            let Some(resident) = line.resident.as_mut() else { return };
            resident.attempts += 1;
            line.owner = super::tree::owner_of(&begin.owner);
            line.fence = fence;
            line.lease = Some(Box::new(Lease {
                fence,
                nonce,
                turn: line.head + 1,
                attempt: resident.attempts,
                timer,
                times,
                ..Lease::begun(&begin, now)
            }));
        });
        if let Some(seq) = ready {
            self.told_ready(tree, seq);
        }
        self.charge_mail(tree, state, index, now);
        // Pin, header and slots were the old turn's and are the new one's.
        self.untimer(old.timer);
        count(&self.counters.turns_taken_over);
        count(&self.counters.turns_begun);
        let Some(line) = state.line(index) else { return };
        let (name, by) = (outcome_name(outcome), EndedBy::Takeover);
        self.log_done(tree.root, line, &old, name, by, Ended::default(), state.last_seq, now);
        self.tell_ended(tree, state, index, &old, outcome, by, now);
        self.turn_began(tree, state, index, now);
        let grant = line.resident.as_ref().and_then(|r| self.grant_message(line, r, begin.known_head_version, 0, now));
        let Some(mut grant) = grant else { return };
        if begin.want_provisional && line.provisional != 0 {
            grant.provisional = Some(v1::Record { trajectory, ..old.left_empty(outcome, now) });
        }
        (grant.mail, grant.more_mail) = taken;
        let reply =
            v1::BeginTurnResponse { grant: Some(grant), uid: line.uid.to_string(), created: false, receipt: None };
        self.granted(ticket, tree, index, fence, work);
        self.reply(ticket, Ok(reply.encode_to_vec()), tree, state, work);
    }

    /// What the client is told of its grant.
    pub(crate) fn grant_message(
        &self,
        line: &Line,
        resident: &Resident,
        known: Option<u64>,
        waited_ms: u64,
        now: &Moment,
    ) -> Option<v1::Grant> {
        let lease = line.lease.as_ref()?;
        let left = lease.deadline_ms.saturating_sub(now.mono_ms);
        Some(v1::Grant {
            lease: lease.token(line.uid).encode(),
            turn: lease.turn,
            attempt: lease.attempt,
            head_version: line.head_version,
            fence: lease.fence,
            expire_time: Some(timestamp(now.wall_ms + left as i64)),
            lease_duration: Some(duration(left)),
            checkpoint: Some(self.checkpoint_message(line, resident, known)),
            queue_wait: Some(duration(waited_ms)),
            provisional: None,
            mail: Vec::new(),
            more_mail: 0,
        })
    }

    pub(crate) fn checkpoint_message(&self, line: &Line, resident: &Resident, known: Option<u64>) -> v1::Checkpoint {
        let length = resident.checkpoint_tokens;
        if known == Some(line.head_version) {
            // The client has it all, its state too.
            return v1::Checkpoint { offset: length, length, ..v1::Checkpoint::default() };
        }
        let state = resident.state.as_deref().map(<[u8]>::to_vec).unwrap_or_default();
        let (offset, tokens) = resident.checkpoint.as_ref().map_or((0, &[][..]), |c| c.since(known, line.head_version));
        let omitted = tokens.len() as u64 > self.limits.max_inline_checkpoint_bytes();
        let token_ids = if omitted { Vec::new() } else { tokens.to_vec() };
        v1::Checkpoint { offset, token_ids, length, state, omitted }
    }

    fn preview_begin(
        &self,
        call: &Pending,
        tree: &Arc<Tree>,
        state: &TreeState,
        index: u32,
        arrival: Option<u64>,
        work: &mut Work,
        now: &Moment,
    ) {
        let (Call::Begin(begin), Some(line)) = (&call.call, state.line(index)) else { return };
        let (nodes, gates) = tree.gates(line);
        let place = Place::of(begin.priority, arrival);
        // Who takes over passes no gate.
        let gates = if line.running().is_some() { &[] } else { gates };
        let full = nodes.iter().zip(gates).find(|((node, n), _)| !node.has_room(*n)).map(|(_, gate)| *gate);
        let result = match full {
            // It would wait, if it may.
            Some(gate) => Err(match self.may_wait(call.connection) {
                Err(refusal) if begin.wait_ms > 0 && !line.waits() => refusal,
                _ => self.gate_refusal(&call.who, gate, Met::AtOnce(place), tree, state, now),
            }),
            None => {
                let checkpoint =
                    line.resident.as_ref().map(|r| self.checkpoint_message(line, r, begin.known_head_version));
                let grant = v1::Grant {
                    turn: line.head + 1,
                    attempt: line.resident.as_ref().map_or(0, |r| r.attempts) + 1,
                    head_version: line.head_version,
                    lease_duration: Some(duration(begin.lease_ms)),
                    checkpoint,
                    provisional: live_provisional(line, call.found.as_ref()),
                    more_mail: line.mail.as_ref().map_or(0, |m| m.queued(0, now.wall_ms).0),
                    ..v1::Grant::default()
                };
                let uid = if line.born { line.uid.to_string() } else { String::new() };
                Ok(v1::BeginTurnResponse { grant: Some(grant), uid, created: false, receipt: None }.encode_to_vec())
            }
        };
        self.reply(call.ticket, result, tree, state, work);
    }

    /// What stands between a BeginTurn and its slots, besides room.
    fn check_begin(&self, begin: &Begin, line: &Line, now: &Moment) -> Result<Standing, Refusal> {
        if line.closed.is_some() {
            return Err(closed(&line.session_id));
        }
        if let Some(lease) = &line.lease {
            // The request of a PollTurn is not that of a BeginTurn.
            if repeats(lease.request.as_ref().filter(|_| !lease.polled), begin.mark.as_ref())? {
                if lease.running {
                    return Ok(Standing::Repeat);
                }
                return Err(turn_ended(&line.session_id, lease.turn, lease.attempt, v1::TurnOutcome::Expired));
            }
            if lease.running && !begin.takeover {
                return Err(turn_in_progress(line, lease, now));
            }
        }
        check_expected(begin, line)?;
        Ok(if line.running().is_some() { Standing::Takeover } else { Standing::New })
    }

    /// The same request again while its turn runs: the same lease.
    pub(crate) fn repeat_begin(
        &self,
        call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let (Call::Begin(begin), Some(line)) = (&call.call, state.line(index)) else { return };
        let ready = line.resident.as_ref().filter(|r| call.holds_answer(begin, line, r));
        let Some(resident) = ready else {
            let wanted = Wanted::of(begin, line);
            return self.load(call, tree, state, index, wanted);
        };
        let Some(mut grant) = self.grant_message(line, resident, begin.known_head_version, 0, now) else { return };
        if let Some(seqs) = self.taken_to_read(&call, line, grant.fence) {
            let (uid, after) = (line.uid, state.last_seq);
            return self.ask_mail(call, uid, seqs, after);
        }
        grant.provisional = live_provisional(line, call.found.as_ref());
        (grant.mail, grant.more_mail) = self.taken_mail(&call, line, grant.fence, now);
        if begin.validate_only {
            // Who would only know is given nothing to hold.
            (grant.lease, grant.fence) = Default::default();
            let reply = begun(begin, line, grant, false);
            return self.reply(call.ticket, Ok(reply), tree, state, work);
        }
        let reply = begun(begin, line, grant, false);
        if let Some(lease) = state.line_mut(index).and_then(|l| l.lease.as_mut()) {
            // Its first caller may be gone and not noticed yet: that one's end must not take it from this one.
            lease.answers += 1;
            let fence = lease.fence;
            self.granted(call.ticket, tree, index, fence, work);
        }
        self.reply(call.ticket, Ok(reply), tree, state, work);
    }

    /// A grant that its caller never got is released at once and leaves no record; a repeat begins anew.
    pub(crate) fn release_grant(&self, tree: &Arc<Tree>, index: u32, fence: u64, work: &mut Work, now: &Moment) {
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        if self.admit_change().is_err() {
            // Nothing can be written: the grant lives until its lease ends.
            return;
        }
        let Some(line) = state.line_mut(index) else { return };
        if line.running().is_none_or(|l| l.fence != fence) || line.closed.is_some() {
            return;
        }
        if line.resident.is_none() {
            // Its header was read again since: the grant lives until its lease ends.
            return;
        }
        if let Some(lease) = line.lease.as_mut().filter(|l| l.answers > 1) {
            lease.answers -= 1;
            return;
        }
        let Some(lease) = line.lease.take() else { return };
        self.untimer(lease.timer);
        if let Some(resident) = line.resident.as_mut() {
            resident.attempts = resident.attempts.saturating_sub(1);
        }
        self.append(tree, &mut state, index, now, |_, line, ops| {
            self.return_mail(line, &lease, Returned::Undelivered, ops, now);
        });
        if let Some(line) = state.line(index) {
            let by = EndedBy::Unspecified;
            self.log_done(tree.root, line, &lease, "RELEASED", by, Ended::default(), state.last_seq, now);
            self.tell_ended(tree, &state, index, &lease, v1::TurnOutcome::Unspecified, by, now);
        }
        self.unpin_line(&state, index, now);
        self.release_header(tree, &mut state, now);
        self.free_slots(tree, &state, index, work, now);
        count(&self.counters.turns_released);
        self.mail_freed(tree, &mut state, index, work, now);
        self.finish_if_due(tree, &mut state, index, now);
        work.evict = true;
    }

    /// Each lease by itself. The header of a running turn is always in memory; only for one that is not there is the
    /// store asked what became of its session.
    pub(crate) fn renew(&self, mut call: Pending, work: &mut Work, now: &Moment) {
        let losses = self.losses.load(Ordering::Acquire);
        if let Call::Renew(renew) = &mut call.call
            && renew.losses != losses
        {
            // What the answers so far tell of may not have happened.
            renew.results.clear();
            (renew.after, renew.losses) = (0, losses);
        }
        loop {
            let Call::Renew(renew) = &mut call.call else { return };
            let Some(renewal) = renew.renewals.get(renew.results.len()) else { break };
            let id = renewal.session_id.clone();
            let checked =
                check_session_id("renewals.session_id", &id).and_then(|()| LeaseToken::decode(&renewal.lease));
            let result = match (checked, call.tenant.directory.get(&id)) {
                (Err(refusal), _) => Err(refusal),
                // A turn that runs is in memory: only what became of the session is still to be told.
                (Ok(_), None) => return self.ask_row(call, &id, 0),
                (Ok(token), Some((tree, index))) => {
                    let Some(state) = Self::still_at(&tree, index, &id) else {
                        // It left memory this moment: what it was is looked up again.
                        work.calls.push_back(call);
                        return;
                    };
                    if call.who.reaches(&state, index) {
                        renew_one(state, index, &id, &token, &mut renew.after, now)
                    } else {
                        renew.after = renew.after.max(state.last_seq);
                        Err(not_found(&id))
                    }
                }
            };
            let Call::Renew(renew) = &mut call.call else { return };
            renew.results.push(match result {
                Ok((deadline_ms, interrupt_requested)) => v1::RenewalResult {
                    refusal: None,
                    expire_time: Some(timestamp(now.wall_ms + (deadline_ms - now.mono_ms) as i64)),
                    interrupt_requested,
                },
                Err(refusal) => v1::RenewalResult { refusal: Some(refusal.to_proto()), ..Default::default() },
            });
        }
        let Call::Renew(renew) = call.call else { return };
        let reply = v1::RenewTurnsResponse { results: renew.results }.encode_to_vec();
        work.answers.push(Answer { ticket: call.ticket, result: Ok(reply), after: renew.after, root: None });
    }

    /// What the store says of a session whose lease is to be renewed and which is not in memory.
    pub(crate) fn renew_row_read(&self, mut call: Pending, row: Option<super::SessionRow>, work: &mut Work) {
        let reached = row.as_ref().is_some_and(|row| self.reaches_row(&call, row));
        let Call::Renew(renew) = &mut call.call else { return };
        let Some(id) = renew.renewals.get(renew.results.len()).map(|r| r.session_id.clone()) else { return };
        let refusal = match row {
            None => not_found(&id),
            Some(_) if !reached => not_found(&id),
            Some(row) if row.state != v1::SessionState::Open as i32 => closed(&id),
            // It came to memory meanwhile: there it is looked at.
            Some(_) if call.tenant.directory.get(&id).is_some() => {
                work.calls.push_back(call);
                return;
            }
            Some(row) if self.recovery.lock().quarantined.contains(&row.root) => super::quarantined(&id),
            Some(_) => lease_lost(&id, "no turn of it runs"),
        };
        renew.results.push(v1::RenewalResult { refusal: Some(refusal.to_proto()), ..Default::default() });
        work.calls.push_back(call);
    }
}

fn renew_one(
    mut state: MutexGuard<'_, TreeState>,
    index: u32,
    id: &str,
    token: &LeaseToken,
    after: &mut u64,
    now: &Moment,
) -> Result<(u64, bool), Refusal> {
    let gone = || lease_lost(id, "it ran out, or the turn has ended");
    let last_seq = state.last_seq;
    let line = state.line_mut(index).ok_or_else(gone)?;
    let uid = line.uid;
    let valid = |l: &&mut Box<Lease>| l.running && l.deadline_ms > now.mono_ms && l.token(uid) == *token;
    if let Some(lease) = line.lease.as_mut().filter(valid) {
        lease.deadline_ms = now.mono_ms + lease.lease_ms;
        if lease.interrupted {
            // That it is asked to end may not be durable yet.
            *after = (*after).max(last_seq);
        }
        let renewed = (lease.deadline_ms, lease.interrupted);
        state.touch(now);
        return Ok(renewed);
    }
    // A refusal tells of a change, and waits until it is durable.
    *after = (*after).max(last_seq);
    Err(match (line.closed.is_some(), line.born) {
        (true, _) => closed(id),
        (_, false) => not_found(id),
        _ => gone(),
    })
}

/// Mail that a grant has taken, and how many messages are left.
pub(crate) type Taken = (Vec<v1::Message>, u32);

/// The answer to a BeginTurn, or to the PollTurn that it was.
fn begun(begin: &Begin, line: &Line, grant: v1::Grant, created: bool) -> Vec<u8> {
    let (uid, grant) = (line.uid.to_string(), Some(grant));
    if begin.polled.is_some() {
        return v1::PollTurnResponse { session_id: line.session_id.to_string(), uid, grant }.encode_to_vec();
    }
    v1::BeginTurnResponse { grant, uid, created, receipt: None }.encode_to_vec()
}

enum Standing {
    New,
    /// The same request, and its turn runs.
    Repeat,
    /// A turn runs, and this one takes its place.
    Takeover,
}

impl Wanted {
    /// What the answer to a BeginTurn needs in memory.
    fn of(begin: &Begin, line: &Line) -> Self {
        Wanted {
            tokens: begin.known_head_version != Some(line.head_version),
            provisional: begin.want_provisional && line.provisional != 0,
            ..Wanted::default()
        }
    }
}

impl Pending {
    fn holds_answer(&self, begin: &Begin, line: &Line, resident: &Resident) -> bool {
        let wanted = Wanted::of(begin, line);
        let has_provisional = || matches!(&self.found, Some(Found::Provisional(seq, _)) if *seq == line.provisional);
        (!wanted.tokens || resident.has_tokens()) && (!wanted.provisional || has_provisional())
    }

    /// How long it queued and was loaded for, at its grant.
    fn times(&self, now: &Moment) -> Times {
        let waited = now.mono_ms.saturating_sub(self.since_ms);
        Times {
            asked: self.since_ms as i64,
            granted: now.mono_ms as i64,
            queue_wait: waited.saturating_sub(self.reload_ms.into()),
            reload: self.reload_ms.into(),
        }
    }
}

impl Lease {
    /// A lease of this call, but for what tells one grant from another.
    fn begun(begin: &Begin, now: &Moment) -> Self {
        Lease {
            fence: 0,
            nonce: [0; 16],
            turn: 0,
            attempt: 0,
            owner: super::tree::owner_of(&begin.owner),
            lease_ms: begin.lease_ms,
            begin_wall_ms: now.wall_ms,
            request: begin.mark.clone(),
            running: true,
            interrupted: false,
            interrupted_seq: 0,
            polled: begin.polled.is_some(),
            answers: 1,
            deadline_ms: now.mono_ms + begin.lease_ms,
            timer: (0, 0),
            times: Times::default(),
        }
    }

    /// How the turn ended if its lease ran out now.
    pub(crate) fn expired_outcome(&self) -> v1::TurnOutcome {
        if self.interrupted { v1::TurnOutcome::Interrupted } else { v1::TurnOutcome::Expired }
    }

    /// The record of a turn that ended without a word of its own.
    fn left_empty(&self, outcome: v1::TurnOutcome, now: &Moment) -> v1::Record {
        v1::Record {
            turn: self.turn,
            attempt: self.attempt,
            status: v1::RecordStatus::Provisional as i32,
            record: Some(v1::RecordInput::default()),
            create_time: Some(timestamp(now.wall_ms)),
            outcome: outcome as i32,
            fence: self.fence,
            owner: self.owner.to_string(),
            ..v1::Record::default()
        }
    }
}

/// The live provisional for an answer, if it was asked for.
fn live_provisional(line: &Line, found: Option<&Found>) -> Option<v1::Record> {
    match found {
        Some(Found::Provisional(seq, record)) if *seq == line.provisional => Some((**record).clone()),
        _ => None,
    }
}

/// The refusal of what a running turn stands against.
pub(crate) fn turn_in_progress(line: &Line, lease: &Lease, now: &Moment) -> Refusal {
    let elapsed = (now.wall_ms - lease.begin_wall_ms).max(0);
    let (turn, attempt, id) = (lease.turn, lease.attempt, &line.session_id);
    Refusal::new(
        Reason::TurnInProgress,
        format!("turn {turn} (attempt {attempt}) of session {id:?} runs since {elapsed} ms"),
    )
    .with("session_id", id)
    .with("turn", turn)
    .with("attempt", attempt)
    .with("owner", &lease.owner)
    .with("elapsed_ms", elapsed)
}

fn check_expected(begin: &Begin, line: &Line) -> Result<(), Refusal> {
    let next = line.head + 1;
    let turn_differs = begin.expected_turn.is_some_and(|t| t != next);
    let version_differs = begin.expected_head_version.is_some_and(|v| v != line.head_version);
    if !turn_differs && !version_differs {
        return Ok(());
    }
    let mut refusal = Refusal::new(
        Reason::TurnMismatch,
        format!("the next turn of session {:?} is {next}, its head_version {}", line.session_id, line.head_version),
    )
    .with("session_id", &line.session_id)
    .with("turn", next)
    .with("head_version", line.head_version);
    if let Some(t) = begin.expected_turn {
        refusal.message.push_str(&format!("; expected turn {t}"));
        refusal = refusal.with("expected_turn", t);
    }
    if let Some(v) = begin.expected_head_version {
        refusal.message.push_str(&format!("; expected head_version {v}"));
        refusal = refusal.with("expected_head_version", v);
    }
    Err(refusal)
}

/// The refusal of a BeginTurn whose turn is over.
pub(crate) fn turn_ended(session_id: &str, turn: u32, attempt: u32, outcome: v1::TurnOutcome) -> Refusal {
    let outcome = outcome.as_str_name().trim_start_matches("TURN_OUTCOME_");
    Refusal::new(
        Reason::TurnEnded,
        format!("turn {turn} (attempt {attempt}) of session {session_id:?} has ended: {outcome}"),
    )
    .with("session_id", session_id)
    .with("turn", turn)
    .with("attempt", attempt)
    .with("outcome", outcome)
}

pub(crate) fn lease_lost(session_id: &str, why: &str) -> Refusal {
    Refusal::new(Reason::LeaseLost, format!("the lease of session {session_id:?} is lost: {why}"))
        .with("session_id", session_id)
}
