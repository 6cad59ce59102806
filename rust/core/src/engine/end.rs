//! How turns end: commit, abort, expiry; and repeats of a commit or abort, answered from the record it made.

use super::begin::{Taken, lease_lost, turn_ended};
use super::close::Ending;
use super::events::{Ended, Times, outcome_name};
use super::full::Met;
use super::interrupt::interrupted;
use super::keyring::Who;
use super::mail::returned;
use super::reload::{LoadedSession, Located, Wanted, Why};
use super::requests::{Begin, CommitOptions, End, Letter, Payload, TurnEnd};
use super::rewind::Base;
use super::trajectory::{found_turn, repeated_finish};
use super::tree::{InterruptMark, Lease, Line, Tree, TreeState};
use super::{Call, Engine, Found, MailFound, Moment, Pending, Timer, Work, closed, count, not_found};
use crate::chain;
use crate::error::{Reason, Refusal};
use crate::gen_store::{EndedBy, RecordMeta, RequestMark, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{Asked, LeaseToken, Uid, fingerprint, repeats};
use crate::journal::{Op, Record, Seq};
use prost::Message;
use std::sync::Arc;

/// A commit that nothing stands against.
struct Commit {
    ticket: u64,
    who: Who,
    lease: Lease,
    payload: Payload,
    mark: Option<RequestMark>,
    options: CommitOptions,
    /// What it is built on, if that is not the head.
    base: Option<Arc<Base>>,
    /// What was read for the turn that follows.
    mail: Option<Box<(Uid, Vec<MailFound>)>>,
    ended: Ended,
}

/// How a turn was left that did not commit.
pub(crate) struct Left {
    pub(crate) outcome: v1::TurnOutcome,
    pub(crate) by: EndedBy,
    /// For good: its record is never superseded.
    pub(crate) give_up: bool,
    pub(crate) mark: Option<RequestMark>,
    /// The InterruptSession that ended it, to be remembered in the same entry.
    pub(crate) interrupt: Option<Box<InterruptMark>>,
}

impl Left {
    /// Left by something else than its own AbortTurn.
    pub(crate) fn new(outcome: v1::TurnOutcome, by: EndedBy) -> Self {
        Left { outcome, by, give_up: false, mark: None, interrupt: None }
    }
}

impl Engine {
    pub(crate) fn end_turn(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let id = call.call.session_id().to_owned();
        match self.locate(call, &id, work) {
            Located::Gone => {}
            Located::Absent(call) => self.refuse(call.ticket, not_found(&id), work),
            // It may be the repeat of the commit that ended it.
            Located::Ended(call, past) => self.ask_repeat(call, past.uid, true, 0, work),
            Located::At(call, tree, index) => match Self::still_at(&tree, index, &id) {
                Some(mut state) => self.end_at(call, &tree, &mut state, index, work, now),
                None => work.calls.push_back(call),
            },
        }
    }

    /// The records of the session tell whether this lease has ended its turn before.
    fn ask_repeat(&self, call: Pending, uid: Uid, ended: bool, after: Seq, work: &mut Work) {
        let Call::End(end) = &call.call else { return };
        if end.lease.uid != uid {
            let why = "it belongs to another session";
            return self.refuse(call.ticket, lease_lost(&end.session_id, why), work);
        }
        self.ask_records(call, uid, Why::Repeat { ended }, after);
    }

    fn end_at(
        &self,
        call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let Some(line) = state.line(index) else { return };
        if !line.born {
            return self.refuse(call.ticket, not_found(&line.session_id), work);
        }
        let (uid, last_seq, ended) = (line.uid, state.last_seq, line.closed.is_some());
        let lease = match &call.call {
            Call::End(end) => {
                let lost = |why: &str, work: &mut Work| {
                    let refusal = lease_lost(&end.session_id, why);
                    self.log_end_conflict(tree.root, line, &call, &refusal, now);
                    self.reply(call.ticket, Err(refusal), tree, state, work);
                };
                if end.lease.uid != uid {
                    return lost("it belongs to another session", work);
                }
                let latest = line.lease.as_ref().filter(|l| l.token(uid) == end.lease);
                let Some(latest) = latest else {
                    let LeaseToken { fence, .. } = end.lease;
                    if !ended && (fence > line.fence || line.lease.as_ref().is_some_and(|l| l.fence == fence)) {
                        // Never given out: no record can bear it.
                        return lost("it is not the session's latest grant", work);
                    }
                    if line.running().is_some() && line.resident.is_none() {
                        // What a repeated commit went on with may be this very turn: its answer is made from memory.
                        return self.load(call, tree, state, index, Wanted::default());
                    }
                    return self.ask_repeat(call, uid, ended, last_seq, work);
                };
                (**latest).clone()
            }
            Call::Expire { fence, .. } => match line.running() {
                Some(lease) if lease.fence == *fence && lease.deadline_ms <= now.mono_ms => lease.clone(),
                _ => return,
            },
            _ => return,
        };
        let Some(resident) = &line.resident else {
            return self.load(call, tree, state, index, Wanted::default());
        };
        if let Call::End(end) = &call.call
            && call.new_since != Some(line.last)
            && resident.has_seen(Asked::End, end.mark.as_ref())
        {
            return self.ask_records(call, uid, Why::Used, last_seq);
        }
        let mut rewinds = false;
        if let Call::End(end) = &call.call
            && let TurnEnd::Commit(options) = &end.how
        {
            match self.check_rewind(line, resident, options.base_turn) {
                Err(refusal) => return self.reply(call.ticket, Err(refusal), tree, state, work),
                Ok(Some(base)) if call.base(base, line.last).is_none() => {
                    return self.ask_base(call, uid, base, last_seq);
                }
                Ok(base) => rewinds = base.is_some(),
            }
            if options.then == v1::Then::Continue
                && let Some(seqs) = self.mail_to_read(&call, line, false, now)
            {
                return self.ask_mail(call, uid, seqs, last_seq);
            }
        }
        let reload = u64::from(call.reload_ms);
        let Pending { ticket, who, call, found, mail, .. } = call;
        let end = match call {
            Call::End(end) => *end,
            _ => return self.expire(&lease, reload, tree, state, index, work, now),
        };
        let End { payload, mark, timings, how, .. } = end;
        let ended = Ended { reload, ..Ended::of(&payload, mark.as_ref(), timings) };
        let commit = match &how {
            TurnEnd::Commit(options) => Some(options),
            TurnEnd::Abort { .. } => None,
        };
        let base = match found {
            Some(Found::Base(base)) if rewinds => Some(base),
            _ => None,
        };
        if let Err(refusal) = check_span(state, index, base.as_deref(), &payload, commit) {
            return self.reply(ticket, Err(refusal), tree, state, work);
        }
        match how {
            TurnEnd::Commit(options) => {
                let commit = Commit { ticket, who, lease, payload, mark, options, base, mail, ended };
                self.commit(commit, tree, state, index, work, now);
            }
            TurnEnd::Abort { give_up } => {
                let outcome = match (lease.interrupted, give_up) {
                    (true, _) => v1::TurnOutcome::Interrupted,
                    (false, true) => v1::TurnOutcome::Failed,
                    (false, false) => v1::TurnOutcome::Aborted,
                };
                let left = Left { give_up, mark, ..Left::new(outcome, EndedBy::Abort) };
                self.stop(&lease, payload, left, ended, tree, state, index, work, now);
                count(&self.counters.turns_aborted);
                // A trajectory that was due has ended with the turn, and the record with it.
                let over = state.line(index).is_none_or(|l| l.provisional == 0);
                let status = record_status(give_up || over) as i32;
                let reply = v1::AbortTurnResponse { turn: lease.turn, attempt: lease.attempt, status, repeated: false };
                self.reply(ticket, Ok(reply.encode_to_vec()), tree, state, work);
            }
        }
    }

    /// The lease of the turn that runs has run out. It stays valid for a commit until a newer grant.
    #[allow(clippy::too_many_arguments)]
    fn expire(
        &self,
        lease: &Lease,
        reload: u64,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let left = Left::new(lease.expired_outcome(), EndedBy::Expiry);
        let ended = Ended { reload, ..Ended::default() };
        self.stop(lease, Payload::default(), left, ended, tree, state, index, work, now);
        count(&self.counters.turns_expired);
    }

    /// Ends the turn of `lease` with a record that the head does not move for.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn stop(
        &self,
        lease: &Lease,
        payload: Payload,
        left: Left,
        ended: Ended,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) {
        let (outcome, by) = (left.outcome, left.by);
        state.touch(now);
        let told = self.append_with(
            tree,
            state,
            index,
            now,
            |appending, line, ops| {
                leave(appending.seq, line, ops, lease, payload, left, now);
                self.return_mail(line, lease, returned(outcome), ops, now);
            },
            |appending, state, ops| {
                // An interrupt is silent.
                let kind = Some(v1::MessageKind::Failed).filter(|_| outcome == v1::TurnOutcome::Failed)?;
                let about = (lease.turn, v1::CloseReason::Unspecified);
                self.tell_parent(appending.seq, tree, state, index, kind, Letter::default(), about, ops, now)
            },
        );
        if let Some(line) = state.line(index) {
            let name = outcome_name(outcome);
            self.log_done(tree.root, line, lease, name, by, ended, state.last_seq, now);
            self.tell_ended(tree, state, index, lease, outcome, by, now);
        }
        if let Some((parent, wakes)) = told {
            self.mail_came(tree, state, parent, wakes, work, now);
        }
        self.turn_over(lease, tree, state, index, work, now);
    }

    fn commit(
        &self,
        commit: Commit,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let Commit { ticket, who, lease, payload, mark, mut options, base, mail, mut ended } = commit;
        let completion = options.completion.take().or_else(|| options.completed.then(Letter::default));
        let held_slot = lease.running;
        let outcome = if options.completed { v1::TurnOutcome::Completed } else { v1::TurnOutcome::Committed };
        let keep =
            (options.then == v1::Then::Continue).then(|| self.may_continue(&who, &lease, tree, state, index, now));
        let nonce = now.draw().to_le_bytes();
        let turn = base.as_ref().map_or(lease.turn, |b| b.turn + 1);
        let next = matches!(keep, Some(Ok(()))).then(|| Lease {
            nonce,
            turn: turn + 1,
            attempt: 1,
            fence: lease.fence + 1,
            begin_wall_ms: now.wall_ms,
            // The commit is the request that made it: a repeat of the commit finds it.
            request: None,
            running: true,
            answers: 1,
            deadline_ms: now.mono_ms + lease.lease_ms,
            timer: (0, 0),
            times: Times { asked: now.mono_ms as i64, granted: now.mono_ms as i64, ..Times::default() },
            ..lease.clone()
        });
        let next_fence = next.as_ref().map_or(0, |l| l.fence);
        let then = options.then;
        let below = if then == v1::Then::Close { state.subtree(index) } else { Vec::new() };
        let to_finish = Self::to_finish(state, &below);
        let next_refused = match &keep {
            Some(Err(refusal)) => refusal.reason.name().to_owned(),
            _ => String::new(),
        };
        ended.base_turn = base.as_ref().map(|b| b.turn);
        let (mut ending, mut ready): (Option<Ending>, _) = (None, None);
        let (mut told, mut taken) = (None, Taken::default());
        state.touch(now);
        let committed = self.append_with(
            tree,
            state,
            index,
            now,
            |appending, line, ops| {
                let seq = appending.seq;
                let Some(resident) = line.resident.as_mut() else { return };
                if line.provisional != 0 {
                    ops.push(Op::Status { seq: line.provisional, status: v1::RecordStatus::Superseded as i32 });
                    line.provisional = 0;
                }
                line.head = turn;
                line.head_version += 1;
                let mut attempt = lease.attempt;
                let base_turn = base.as_ref().map(|b| b.turn);
                let rewinds = base.is_some();
                if let Some(base) = base {
                    let base = Arc::unwrap_or_clone(base);
                    let superseded = v1::RecordStatus::Superseded as i32;
                    ops.extend(base.later.iter().map(|seq| Op::Status { seq: *seq, status: superseded }));
                    attempt = base.attempts + 1;
                    resident.forget_rewards_after(base.turn);
                    resident.checkpoint_tokens = base.tokens();
                    resident.attempts_ahead = base.attempts_ahead;
                    resident.checkpoint = Some(Box::new(base.checkpoint));
                    let (state_seq, state) = base.state.unzip();
                    resident.state_seq = state_seq.unwrap_or(0);
                    resident.state = state.map(Vec::into_boxed_slice);
                }
                let (offset, ids) = match &payload.span {
                    Some(span) => (span.offset, &span.token_ids[..]),
                    None => (resident.checkpoint_tokens, &[][..]),
                };
                if rewinds {
                    resident.checkpoint.get_or_insert_default().commit_rewound(line.head_version, offset, ids);
                } else if resident.checkpoint.is_some() || (resident.checkpoint_tokens == 0 && !ids.is_empty()) {
                    // One that is not at hand stays where it is, unless there is nothing of it yet.
                    resident.checkpoint.get_or_insert_default().commit(line.head_version, offset, ids);
                }
                resident.checkpoint_tokens = offset + (ids.len() / crate::checkpoint::TOKEN) as u64;
                let tried = if resident.attempts_ahead.is_empty() { 0 } else { resident.attempts_ahead.remove(0) };
                resident.attempts = tried + u32::from(next_fence > 0);
                let next = next.map(|l| Lease { attempt: resident.attempts, ..l });
                resident.head_seq = seq;
                // A trajectory that is due ends with this turn, in this very entry; so does one that would come due
                // after the session's end.
                let finishes =
                    line.finish_due_ms != 0 && (line.finish_due_ms <= now.wall_ms || then == v1::Then::Close);
                if let Some(state) = &options.state {
                    resident.state_seq = seq;
                    resident.state = Some(state.clone().into_boxed_slice());
                }
                let meta = RecordMeta {
                    turn,
                    attempt,
                    base_turn,
                    head_version: line.head_version,
                    new_segment: options.new_segment,
                    state_digest: options.state_digest,
                    then: then as i32,
                    next_fence,
                    finishes,
                    next_refused,
                    trajectory_base: if finishes { resident.trajectory_turns } else { 0 },
                    ..meta(&lease, outcome, EndedBy::Commit, mark, now)
                };
                ops.push(record(seq, line, meta, payload, v1::RecordStatus::Committed, options.state));
                if finishes {
                    line.finish_with_commit(seq, tree, now, ops);
                    ready = Some(seq);
                }
                line.lease = next.map(Box::new);
                line.fence += u64::from(next_fence > 0);
                self.consume_mail(line, lease.fence, ops, now);
                if next_fence > 0 {
                    taken = self.take_mail(line, mail.as_deref(), next_fence, ops, now);
                }
            },
            |appending, state, ops| {
                if let Some(letter) = completion {
                    let (kind, about) = (v1::MessageKind::Completed, (turn, v1::CloseReason::Unspecified));
                    told = self.tell_parent(appending.seq, tree, state, index, kind, letter, about, ops, now);
                }
                if then == v1::Then::Close {
                    let reason = v1::CloseReason::Quit;
                    ending = Some(self.seal(tree, state, &below, to_finish, reason, None, appending, ops, now));
                }
                state.line(index).map(|l| (l.head, l.head_version))
            },
        );
        count(&self.counters.turns_committed);
        if let Some(seq) = ready {
            self.told_ready(tree, seq);
        }
        if ended.base_turn.is_some() {
            count(&self.counters.turns_rewound);
        }
        let Some((turn, head_version)) = committed else { return };
        if let Some(line) = state.line(index) {
            let name = outcome_name(outcome);
            self.log_done(tree.root, line, &lease, name, EndedBy::Commit, ended, state.last_seq, now);
            self.tell_ended(tree, state, index, &lease, outcome, EndedBy::Commit, now);
        }
        if let Some((parent, wakes)) = told {
            self.mail_came(tree, state, parent, wakes, work, now);
        }
        let mut reply = v1::CommitTurnResponse { turn, head_version, ..Default::default() };
        if let Some(ending) = ending {
            // The turn was over before its session was: the receipt does not count its slot.
            if held_slot {
                self.untimer(lease.timer);
                self.free_slots(tree, state, index, work, now);
                self.release_header(tree, state, now);
            }
            reply.receipt = Some(super::read::receipt(&ending.receipt));
            self.sealed(ending, true, tree, state, work, now);
        } else if next_fence > 0 {
            self.granted(ticket, tree, index, next_fence, work);
            self.untimer(lease.timer);
            if let Some(line) = state.line_mut(index) {
                if let Some(next) = line.lease.as_mut() {
                    next.timer = self.timer(next.deadline_ms, Timer::Lease(tree.clone(), index, next_fence));
                }
                let known = Some(line.head_version);
                reply.next = line.resident.as_ref().and_then(|r| self.grant_message(line, r, known, 0, now));
            }
            if let Some(next) = &mut reply.next {
                (next.mail, next.more_mail) = taken;
            }
            self.charge_mail(tree, state, index, now);
            count(&self.counters.turns_begun);
            self.turn_began(tree, state, index, now);
        } else {
            self.turn_over(&lease, tree, state, index, work, now);
            if let Some(Err(refusal)) = keep {
                reply.next_refused = Some(refusal.to_proto());
            }
        }
        self.reply(ticket, Ok(reply.encode_to_vec()), tree, state, work);
    }

    /// Whether a turn that commits may keep its slot for the next one.
    fn may_continue(
        &self,
        who: &Who,
        lease: &Lease,
        tree: &Tree,
        state: &TreeState,
        index: u32,
        now: &Moment,
    ) -> Result<(), Refusal> {
        let Some(line) = state.line(index) else { return Ok(()) };
        if !lease.running {
            return Err(lease_lost(&line.session_id, "it ran out before the commit, which stands"));
        }
        if lease.interrupted {
            return Err(interrupted(&line.session_id));
        }
        self.admit_new(now)?;
        let (nodes, gates) = tree.gates(line);
        for ((node, _), gate) in nodes.iter().zip(gates) {
            let (cap, used) = node.cap_used();
            if used > cap {
                return Err(self.gate_refusal(who, *gate, Met::Above, tree, state, now));
            }
        }
        Ok(())
    }

    /// The end of the turn of `lease` is journaled: frees what it held.
    fn turn_over(
        &self,
        lease: &Lease,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) {
        if lease.running {
            self.untimer(lease.timer);
            self.unpin_line(state, index, now);
            self.release_header(tree, state, now);
            self.free_slots(tree, state, index, work, now);
        }
        self.mail_freed(tree, state, index, work, now);
        self.finish_if_due(tree, state, index, now);
        work.evict = true;
    }

    /// The records of a session were read: to answer a repeat from, or for what a call needs of an older turn.
    pub(crate) fn records_loaded(
        &self,
        mut call: Pending,
        why: Why,
        loaded: Option<LoadedSession>,
        work: &mut Work,
        now: &Moment,
    ) {
        let id = call.call.session_id().to_owned();
        let loaded = loaded.ok_or_else(|| not_found(&id)).and_then(|loaded| {
            if super::ended::is_purging(loaded.row.cleanup.as_deref()) {
                return Err(closed(&id));
            }
            let facts = SessionFacts::decode(&loaded.row.facts[..])
                .map_err(|_| Refusal::new(Reason::SessionCorrupt, "its facts do not decode"))?;
            let metas = chain::verify(&loaded.lines, loaded.row.last, &facts.chain)?;
            Ok((loaded, metas))
        });
        let (loaded, metas) = match loaded {
            Ok(loaded) => loaded,
            Err(refusal) => return self.refuse(call.ticket, refusal.with("session_id", &id), work),
        };
        let ended = match why {
            Why::Repeat { ended } => ended,
            Why::Base(turn) => {
                return match Base::of(loaded, &metas, turn) {
                    Err(refusal) => self.refuse(call.ticket, refusal.with("session_id", &id), work),
                    Ok(base) => {
                        call.found = Some(Found::Base(Arc::new(base)));
                        work.calls.push_back(call);
                    }
                };
            }
            Why::Turn(turn) => {
                call.found = Some(found_turn(turn, &loaded, &metas));
                work.calls.push_back(call);
                return;
            }
            Why::Used => {
                let Call::End(end) = &call.call else { return };
                let used = metas.iter().filter(|m| m.ended_by() != EndedBy::Finish);
                let used = used.map(|m| repeats(m.end_request.as_ref(), end.mark.as_ref())).find_map(Result::err);
                match used {
                    Some(refusal) => self.refuse(call.ticket, refusal, work),
                    None => {
                        call.new_since = Some(loaded.row.last);
                        work.calls.push_back(call);
                    }
                }
                return;
            }
        };
        // Read from the store, hence durable; but for what memory adds.
        let (mut after, mut grant) = (0, None);
        let result = match &call.call {
            Call::Begin(begin) => match repeated_begin(begin, &metas) {
                None => {
                    // Two request_ids of one fingerprint.
                    call.new_since = Some(loaded.row.last);
                    work.calls.push_back(call);
                    return;
                }
                Some(refusal) => Err(refusal),
            },
            Call::End(end) => match self.repeated_end(end, &call, ended, &loaded, &metas, now) {
                Ok(Repeated { unread: Some((uid, seqs)), after, .. }) => {
                    return self.ask_mail(call, uid, seqs, after);
                }
                Ok(repeated) if repeated.outdated => {
                    return self.ask_records(call, loaded.row.uid, Why::Repeat { ended }, repeated.after);
                }
                repeated => repeated.map(|repeated| {
                    (after, grant) = (repeated.after, repeated.grant);
                    repeated.reply
                }),
            },
            Call::Finish(finish) => match repeated_finish(finish, &loaded, &metas) {
                None if ended => Err(closed(&id)),
                None => {
                    call.new_since = Some(loaded.row.last);
                    work.calls.push_back(call);
                    return;
                }
                Some(result) => result,
            },
            _ => return,
        };
        if let Err(refusal) = &result
            && refusal.reason == Reason::LeaseLost
            && let Some((tree, index)) = call.tenant.directory.get(&id)
            && let Some(state) = Self::still_at(&tree, index, &id)
            && let Some(line) = state.line(index)
        {
            self.log_end_conflict(tree.root, line, &call, refusal, now);
        }
        if let Some((tree, index, fence)) = grant {
            self.granted(call.ticket, &tree, index, fence, work);
        }
        work.answers.push(super::Answer { ticket: call.ticket, result, after, root: None });
    }

    fn repeated_end(
        &self,
        end: &End,
        call: &Pending,
        ended: bool,
        loaded: &LoadedSession,
        metas: &[RecordMeta],
        now: &Moment,
    ) -> Result<Repeated, Refusal> {
        let LeaseToken { fence, nonce, .. } = end.lease;
        let lost = || {
            if ended {
                closed(&end.session_id)
            } else {
                lease_lost(&end.session_id, "it is not the latest grant, or its turn has ended")
            }
        };
        let made = |meta: &&RecordMeta| meta.fence == fence && meta.nonce == nonce;
        let commits = matches!(end.how, TurnEnd::Commit(_));
        // A lease can have two records: what its expiry left, and its late commit.
        let own =
            |m: &RecordMeta| made(&m) && chain::ended_by(m) == if commits { EndedBy::Commit } else { EndedBy::Abort };
        let Some((line, meta)) = loaded.lines.iter().zip(metas).find(|(_, m)| own(m)) else {
            return Err(match metas.iter().find(made) {
                Some(m) => lost().with("outcome", outcome_name(turn_outcome(m))),
                None => lost(),
            });
        };
        if let (Some(then), Some(now)) = (&meta.end_request, &end.mark) {
            repeats(Some(then), Some(now))?;
        }
        if !commits {
            let status = line.status;
            let reply = v1::AbortTurnResponse { turn: meta.turn, attempt: meta.attempt, status, repeated: true };
            return Ok(Repeated { reply: reply.encode_to_vec(), ..Repeated::default() });
        }
        let mut repeated = Repeated::default();
        let mut reply = v1::CommitTurnResponse {
            turn: meta.turn,
            head_version: meta.head_version,
            repeated: true,
            ..Default::default()
        };
        if meta.then == v1::Then::Close as i32 {
            reply.receipt = super::ended::receipt_since(&loaded.row, line.seq).as_ref().map(super::read::receipt);
        } else if meta.then == v1::Then::Continue as i32 {
            reply.next = self.next_of(call, loaded, meta, &mut repeated, now);
            if reply.next.is_none() {
                reply.next_refused = Some(no_next(&end.session_id, meta, metas).to_proto());
            }
        }
        repeated.reply = reply.encode_to_vec();
        Ok(repeated)
    }

    /// The grant that a repeated commit made, if its turn still runs.
    fn next_of(
        &self,
        call: &Pending,
        loaded: &LoadedSession,
        meta: &RecordMeta,
        repeated: &mut Repeated,
        now: &Moment,
    ) -> Option<v1::Grant> {
        let id = &loaded.row.session_id;
        let (tree, index) = call.tenant.directory.get(id)?;
        let mut state = Self::still_at(&tree, index, id)?;
        repeated.after = state.last_seq;
        let line = state.line_mut(index)?;
        repeated.outdated = line.uid == loaded.row.uid && line.last > loaded.row.last;
        let resident = line.resident.as_ref()?;
        line.lease.as_ref().filter(|l| l.running && l.fence == meta.next_fence)?;
        if let Some(seqs) = self.taken_to_read(call, line, meta.next_fence) {
            repeated.unread = Some((line.uid, seqs));
            return None;
        }
        let taken = self.taken_mail(call, line, meta.next_fence, now);
        let mut grant = self.grant_message(line, resident, Some(line.head_version), 0, now)?;
        (grant.mail, grant.more_mail) = taken;
        // One answer more: the end of one does not take the turn from the other.
        line.lease.as_mut()?.answers += 1;
        drop(state);
        repeated.outdated = false;
        repeated.grant = Some((tree, index, meta.next_fence));
        Some(grant)
    }
}

/// The answer to a repeated commit or abort.
#[derive(Default)]
struct Repeated {
    reply: Vec<u8>,
    /// What it tells of is durable after this.
    after: Seq,
    /// A record has come since the records were read: how the next turn has ended may be in it.
    outdated: bool,
    /// Mail of the grant in it is to be read first: whose, and which.
    unread: Option<(Uid, Vec<Seq>)>,
    /// The grant in it: where, and its fence.
    grant: Option<(Arc<Tree>, u32, u64)>,
}

/// Why a commit that was to go on has no turn to go on with: what its answer said, or how that turn has ended since.
fn no_next(id: &str, meta: &RecordMeta, metas: &[RecordMeta]) -> Refusal {
    if let Some(reason) = Reason::from_name(&meta.next_refused) {
        return Refusal::new(reason, format!("no slot was kept for session {id:?}; the commit stands"))
            .with("session_id", id);
    }
    let next = metas.iter().find(|m| meta.next_fence != 0 && m.fence == meta.next_fence);
    match next {
        Some(m) => turn_ended(id, m.turn, m.attempt, turn_outcome(m)),
        None => turn_ended(id, meta.turn + 1, 1, v1::TurnOutcome::None),
    }
}

fn turn_outcome(meta: &RecordMeta) -> v1::TurnOutcome {
    v1::TurnOutcome::try_from(meta.outcome).unwrap_or(v1::TurnOutcome::Unspecified)
}

/// The refusal of a BeginTurn whose request_id a record bears; `None` if none does.
fn repeated_begin(begin: &Begin, metas: &[RecordMeta]) -> Option<Refusal> {
    for meta in metas {
        match repeats(meta.begin_request.as_ref(), begin.mark.as_ref()) {
            Err(refusal) => return Some(refusal),
            Ok(false) => {}
            Ok(true) => {
                return Some(turn_ended(&begin.session_id, meta.turn, meta.attempt, turn_outcome(meta)));
            }
        }
    }
    None
}

/// Whether the span continues the checkpoint.
fn check_span(
    state: &TreeState,
    index: u32,
    base: Option<&Base>,
    payload: &Payload,
    commit: Option<&CommitOptions>,
) -> Result<(), Refusal> {
    let (Some(span), Some(line)) = (&payload.span, state.line(index)) else { return Ok(()) };
    let newest = || line.resident.as_ref().map_or(0, |r| r.checkpoint_tokens);
    let length = base.map_or_else(newest, Base::tokens);
    let mismatch = |message: String| {
        Refusal::new(Reason::TokenPrefixMismatch, message)
            .with("session_id", &line.session_id)
            .with("offset", span.offset)
            .with("checkpoint_tokens", length)
    };
    if span.offset > length {
        return Err(mismatch(format!("offset {} is behind the checkpoint's end at {length} tokens", span.offset)));
    }
    let trimmed = length - span.offset;
    match commit {
        Some(options) if trimmed > options.max_trim && !options.new_segment => Err(mismatch(format!(
            "offset {} drops {trimmed} of {length} checkpoint tokens; max_trim is {}",
            span.offset, options.max_trim
        ))
        .with("trimmed", trimmed)
        .with("max_trim", options.max_trim)),
        _ => Ok(()),
    }
}

fn record_status(give_up: bool) -> v1::RecordStatus {
    if give_up { v1::RecordStatus::Aborted } else { v1::RecordStatus::Provisional }
}

/// Writes what a turn leaves that did not commit into the entry of sequence `seq`: a PROVISIONAL record, of which at
/// most one is live (I8), or an ABORTED one. Head and checkpoint do not move. A lease that ran out stays valid until a
/// newer grant; any other end ends it.
pub(crate) fn leave(
    seq: Seq,
    line: &mut Line,
    ops: &mut Vec<Op>,
    lease: &Lease,
    payload: Payload,
    left: Left,
    now: &Moment,
) {
    if line.provisional != 0 {
        ops.push(Op::Status { seq: line.provisional, status: v1::RecordStatus::Superseded as i32 });
    }
    let meta = meta(lease, left.outcome, left.by, left.mark, now);
    ops.push(record(seq, line, meta, payload, record_status(left.give_up), None));
    line.provisional = if left.give_up { 0 } else { seq };
    if let (Some(interrupt), Some(resident)) = (left.interrupt, line.resident.as_mut()) {
        resident.interrupt_request = Some(interrupt);
    }
    if left.by == EndedBy::Expiry {
        if let Some(lease) = line.lease.as_mut() {
            lease.running = false;
        }
    } else {
        line.lease = None;
    }
}

/// What every record says of its turn.
fn meta(lease: &Lease, outcome: v1::TurnOutcome, by: EndedBy, mark: Option<RequestMark>, now: &Moment) -> RecordMeta {
    RecordMeta {
        turn: lease.turn,
        attempt: lease.attempt,
        fence: lease.fence,
        outcome: outcome as i32,
        ended_by: by as i32,
        create_ms: now.wall_ms,
        nonce: lease.nonce.to_vec(),
        // A PollTurn is told from its repeat only while its turn runs: it does not say which session to look at.
        begin_request: lease.request.clone().filter(|_| !lease.polled),
        end_request: mark,
        owner: lease.owner.to_string(),
        ..RecordMeta::default()
    }
}

/// Builds the record's row and moves the session's chain and tail to it.
fn record(
    seq: Seq,
    line: &mut Line,
    mut meta: RecordMeta,
    payload: Payload,
    status: v1::RecordStatus,
    state: Option<Vec<u8>>,
) -> Op {
    let Some(resident) = line.resident.as_mut() else { unreachable!("a turn ends in memory") };
    let some = |bytes: Vec<u8>| (!bytes.is_empty()).then_some(bytes);
    meta.content_type = payload.content_type;
    meta.finish_reason = payload.finish_reason;
    meta.labels = payload.labels;
    meta.attachments = payload.attachments;
    meta.trajectory = resident.trajectories + 1;
    meta.content_digest = payload.content_digest;
    if let Some(usage) = payload.usage {
        meta.has_usage = true;
        meta.prompt_tokens = usage.prompt_tokens;
        meta.completion_tokens = usage.completion_tokens;
        meta.cached_tokens = usage.cached_tokens;
    }
    let (mut tokens, mut arrays) = (None, None);
    if let Some(span) = payload.span {
        meta.has_tokens = true;
        meta.token_offset = span.offset;
        meta.token_count = (span.token_ids.len() / crate::checkpoint::TOKEN) as u64;
        meta.weight_versions = span.weight_versions;
        meta.tokens_digest = span.tokens_digest;
        meta.arrays_digest = span.arrays_digest;
        meta.logprobs_bytes = span.logprobs_bytes;
        tokens = some(span.token_ids);
        arrays = some(span.arrays);
    }
    for (asked, request) in [(Asked::Begin, &meta.begin_request), (Asked::End, &meta.end_request)] {
        resident.requests.extend(request.as_ref().map(|r| fingerprint(asked, &r.request_id)));
    }
    line.outcome = v1::TurnOutcome::try_from(meta.outcome).unwrap_or(v1::TurnOutcome::None);
    let turn = meta.turn;
    let meta = meta.encode_to_vec();
    resident.chain = chain::link(&resident.chain, &meta);
    let prev = std::mem::replace(&mut line.last, seq);
    Op::Append(Box::new(Record {
        seq,
        session: line.uid,
        prev,
        status: status as i32,
        turn,
        meta,
        chain: resident.chain,
        tokens,
        state,
        arrays,
        content: some(payload.content),
    }))
}
