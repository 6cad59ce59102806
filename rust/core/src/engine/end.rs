//! How turns end: commit, abort, expiry; and repeats of a commit or abort, answered from the record it made.

use super::begin::{lease_lost, turn_ended};
use super::close::Ending;
use super::reload::{LoadedSession, Located};
use super::requests::{Begin, CommitOptions, End, Payload};
use super::tree::{Lease, Line, Tree, TreeState};
use super::{Call, Engine, Moment, Pending, Timer, Work, closed, count, not_found};
use crate::chain;
use crate::error::{Reason, Refusal};
use crate::gen_store::{RecordMeta, RequestMark, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{LeaseToken, Uid, fingerprint, repeats};
use crate::journal::{Op, Record, Seq};
use prost::Message;
use std::sync::Arc;

impl Engine {
    pub(crate) fn end_turn(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let id = call.call.session_id().to_owned();
        match self.locate(call, &id, work) {
            Located::Gone => {}
            Located::Absent(call) => self.refuse(call.ticket, not_found(&id), work),
            // It may be the repeat of the commit that ended it.
            Located::Ended(call, uid) => self.ask_repeat(call, uid, true, 0, work),
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
        self.ask_records(call, uid, ended, after);
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
                if end.lease.uid != uid {
                    let refusal = lease_lost(&end.session_id, "it belongs to another session");
                    return self.reply(call.ticket, Err(refusal), tree, state, work);
                }
                let latest = line.lease.as_ref().filter(|l| l.token(uid) == end.lease);
                let Some(latest) = latest else {
                    let LeaseToken { fence, .. } = end.lease;
                    if !ended && (fence > line.fence || line.lease.as_ref().is_some_and(|l| l.fence == fence)) {
                        // Never given out: no record can bear it.
                        let refusal = lease_lost(&end.session_id, "it is not the session's latest grant");
                        return self.reply(call.ticket, Err(refusal), tree, state, work);
                    }
                    if line.running().is_some() && line.resident.is_none() {
                        // What a repeated commit went on with may be this very turn: its answer is made from memory.
                        return self.load(call, tree, state, index, false);
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
        if line.resident.is_none() {
            return self.load(call, tree, state, index, false);
        }
        let Pending { ticket, call, .. } = call;
        match call {
            Call::End(end) => {
                let End { payload, mark, commit, .. } = *end;
                if let Err(refusal) = check_span(state, index, &payload, commit.as_ref()) {
                    return self.reply(ticket, Err(refusal), tree, state, work);
                }
                match commit {
                    Some(options) => self.commit(ticket, lease, payload, mark, options, tree, state, index, work, now),
                    None => self.abort(ticket, lease, payload, mark, tree, state, index, work, now),
                }
            }
            _ => {
                self.provisional(&lease, Payload::default(), None, v1::TurnOutcome::Expired, tree, state, index, now);
                count(&self.counters.turns_expired);
                self.turn_over(&lease, tree, state, index, work, now);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn commit(
        &self,
        ticket: u64,
        lease: Lease,
        payload: Payload,
        mark: Option<RequestMark>,
        options: CommitOptions,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let held_slot = lease.running;
        let outcome = if options.completed { v1::TurnOutcome::Completed } else { v1::TurnOutcome::Committed };
        let keep = (options.then == v1::Then::Continue).then(|| self.may_continue(&lease, tree, state, index));
        let nonce = now.draw().to_le_bytes();
        let next = matches!(keep, Some(Ok(()))).then(|| Lease {
            nonce,
            turn: lease.turn + 1,
            attempt: 1,
            fence: lease.fence + 1,
            begin_wall_ms: now.wall_ms,
            // The commit is the request that made it: a repeat of the commit finds it.
            request: None,
            running: true,
            answers: 1,
            deadline_ms: now.mono_ms + lease.lease_ms,
            timer: (0, 0),
            ..lease.clone()
        });
        let next_fence = next.as_ref().map_or(0, |l| l.fence);
        let then = options.then;
        let below = if then == v1::Then::Close { state.subtree(index) } else { Vec::new() };
        let mut ending: Option<Ending> = None;
        let committed = self.append_with(
            tree,
            state,
            index,
            now,
            |seq, line, ops| {
                let Some(resident) = line.resident.as_mut() else { return };
                if line.provisional != 0 {
                    ops.push(Op::Status { seq: line.provisional, status: v1::RecordStatus::Superseded as i32 });
                    line.provisional = 0;
                }
                line.head += 1;
                line.head_version += 1;
                let (offset, ids) = match &payload.span {
                    Some(span) => (span.offset, &span.token_ids[..]),
                    None => (resident.checkpoint_tokens, &[][..]),
                };
                // One that is not at hand stays where it is, unless there is nothing of it yet.
                if resident.checkpoint.is_some() || (resident.checkpoint_tokens == 0 && !ids.is_empty()) {
                    resident.checkpoint.get_or_insert_default().commit(line.head_version, offset, ids);
                }
                resident.checkpoint_tokens = offset + (ids.len() / crate::checkpoint::TOKEN) as u64;
                resident.attempts = u32::from(next_fence > 0);
                resident.head_seq = seq;
                if let Some(state) = &options.state {
                    resident.state_seq = seq;
                    resident.state = Some(state.clone().into_boxed_slice());
                }
                let meta = RecordMeta {
                    head_version: line.head_version,
                    new_segment: options.new_segment,
                    state_digest: options.state_digest,
                    then: then as i32,
                    next_fence,
                    ..meta(&lease, outcome, mark, now)
                };
                ops.push(record(seq, line, meta, payload, v1::RecordStatus::Committed, options.state));
                line.lease = next.map(Box::new);
                line.fence += u64::from(next_fence > 0);
            },
            |seq, state, ops| {
                if then == v1::Then::Close {
                    let request = None;
                    ending = Some(self.seal(state, &below, v1::CloseReason::Quit, request, seq, ops, now));
                }
                state.line(index).map(|l| (l.head, l.head_version))
            },
        );
        count(&self.counters.turns_committed);
        let Some((turn, head_version)) = committed else { return };
        let mut reply = v1::CommitTurnResponse { turn, head_version, ..Default::default() };
        if let Some(ending) = ending {
            // The turn was over before its session was: the receipt does not count its slot.
            if held_slot {
                self.untimer(lease.timer);
                self.free_slots(tree, state.line(index).map_or(0, |l| l.depth), work);
                self.release_header(tree, state, now);
            }
            reply.receipt = Some(super::read::receipt(&ending.receipt));
            self.sealed(ending, tree, state, work, now);
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
            count(&self.counters.turns_begun);
        } else {
            self.turn_over(&lease, tree, state, index, work, now);
            if let Some(Err(refusal)) = keep {
                reply.next_refused = Some(refusal.to_proto());
            }
        }
        self.reply(ticket, Ok(reply.encode_to_vec()), tree, state, work);
    }

    /// Whether a turn that commits may keep its slot for the next one.
    fn may_continue(&self, lease: &Lease, tree: &Tree, state: &TreeState, index: u32) -> Result<(), Refusal> {
        let Some(line) = state.line(index) else { return Ok(()) };
        if !lease.running {
            return Err(lease_lost(&line.session_id, "it ran out before the commit, which stands"));
        }
        self.admit_new()?;
        let (nodes, gates) = tree.gates(line);
        for ((node, _), gate) in nodes.iter().zip(gates) {
            let (cap, used) = node.cap_used();
            if used > cap {
                return Err(super::tree::gate_refusal(tree, state, *gate, self.limits.max_turns_per_tree, 0));
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn abort(
        &self,
        ticket: u64,
        lease: Lease,
        payload: Payload,
        mark: Option<RequestMark>,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        self.provisional(&lease, payload, mark, v1::TurnOutcome::Aborted, tree, state, index, now);
        count(&self.counters.turns_aborted);
        self.turn_over(&lease, tree, state, index, work, now);
        let status = v1::RecordStatus::Provisional as i32;
        let reply = v1::AbortTurnResponse { turn: lease.turn, attempt: lease.attempt, status, repeated: false };
        self.reply(ticket, Ok(reply.encode_to_vec()), tree, state, work);
    }

    /// Appends a PROVISIONAL record; at most one is live (I8). Head and checkpoint do not move. An expired lease stays
    /// valid until a newer grant.
    #[allow(clippy::too_many_arguments)]
    fn provisional(
        &self,
        lease: &Lease,
        payload: Payload,
        mark: Option<RequestMark>,
        outcome: v1::TurnOutcome,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        now: &Moment,
    ) {
        self.append(tree, state, index, now, |seq, line, ops| {
            if line.provisional != 0 {
                ops.push(Op::Status { seq: line.provisional, status: v1::RecordStatus::Superseded as i32 });
            }
            let meta = meta(lease, outcome, mark, now);
            ops.push(record(seq, line, meta, payload, v1::RecordStatus::Provisional, None));
            line.provisional = seq;
            if outcome == v1::TurnOutcome::Expired {
                if let Some(lease) = line.lease.as_mut() {
                    lease.running = false;
                }
            } else {
                line.lease = None;
            }
        });
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
            self.free_slots(tree, state.line(index).map_or(0, |l| l.depth), work);
        }
        work.evict = true;
    }

    /// The records of a session were read, to answer a repeat from.
    pub(crate) fn records_loaded(
        &self,
        mut call: Pending,
        ended: bool,
        loaded: Option<LoadedSession>,
        work: &mut Work,
        now: &Moment,
    ) {
        let id = call.call.session_id().to_owned();
        let loaded = loaded.ok_or_else(|| not_found(&id)).and_then(|loaded| {
            let facts = SessionFacts::decode(&loaded.row.facts[..])
                .map_err(|_| Refusal::new(Reason::SessionCorrupt, "its facts do not decode"))?;
            let metas = chain::verify(&loaded.lines, loaded.row.last, &facts.chain)?;
            Ok((loaded, metas))
        });
        let (loaded, metas) = match loaded {
            Ok(loaded) => loaded,
            Err(refusal) => return self.refuse(call.ticket, refusal.with("session_id", &id), work),
        };
        // Read from the store, hence durable; but for what memory adds.
        let mut after = 0;
        let result = match &call.call {
            Call::Begin(begin) => match repeated_begin(begin, &metas) {
                None => {
                    // Two request_ids of one fingerprint.
                    call.request_is_new = true;
                    work.calls.push_back(call);
                    return;
                }
                Some(refusal) => Err(refusal),
            },
            Call::End(end) => self.repeated_end(end, &call, ended, &loaded, &metas, &mut after, now),
            _ => return,
        };
        work.answers.push(super::Answer { ticket: call.ticket, result, after, root: None });
    }

    fn repeated_end(
        &self,
        end: &End,
        call: &Pending,
        ended: bool,
        loaded: &LoadedSession,
        metas: &[RecordMeta],
        after: &mut Seq,
        now: &Moment,
    ) -> Result<Vec<u8>, Refusal> {
        let LeaseToken { fence, nonce, .. } = end.lease;
        let lost = || {
            if ended {
                closed(&end.session_id)
            } else {
                lease_lost(&end.session_id, "it is not the latest grant, or its turn has ended")
            }
        };
        let made = |meta: &&RecordMeta| meta.fence == fence && meta.nonce == nonce;
        let by_commit = |m: &RecordMeta| {
            m.outcome == v1::TurnOutcome::Committed as i32 || m.outcome == v1::TurnOutcome::Completed as i32
        };
        let by_abort = |m: &RecordMeta| m.outcome == v1::TurnOutcome::Aborted as i32;
        // A lease can have two records: what its expiry left, and its late commit.
        let own = |m: &RecordMeta| made(&m) && if end.commit.is_some() { by_commit(m) } else { by_abort(m) };
        let Some((line, meta)) = loaded.lines.iter().zip(metas).find(|(_, m)| own(m)) else {
            return Err(match metas.iter().find(made) {
                Some(m) => lost().with("outcome", outcome_name(m.outcome)),
                None => lost(),
            });
        };
        if let (Some(then), Some(now)) = (&meta.end_request, &end.mark) {
            repeats(Some(then), Some(now))?;
        }
        if end.commit.is_none() {
            let status = line.status;
            let reply = v1::AbortTurnResponse { turn: meta.turn, attempt: meta.attempt, status, repeated: true };
            return Ok(reply.encode_to_vec());
        }
        let mut reply = v1::CommitTurnResponse {
            turn: meta.turn,
            head_version: meta.head_version,
            repeated: true,
            ..Default::default()
        };
        if meta.then == v1::Then::Close as i32 {
            reply.receipt = loaded.row.receipt.as_deref().and_then(super::read::decode_receipt);
        } else if meta.then == v1::Then::Continue as i32 {
            match self.next_of(call, &end.session_id, meta, after, now) {
                Some(next) => reply.next = Some(next),
                None => {
                    let over = turn_ended(&end.session_id, meta.turn + 1, 1, v1::TurnOutcome::None);
                    reply.next_refused = Some(over.to_proto());
                }
            }
        }
        Ok(reply.encode_to_vec())
    }

    /// The grant that a repeated commit made, if its turn still runs. What it tells of is durable after `after`.
    fn next_of(&self, call: &Pending, id: &str, meta: &RecordMeta, after: &mut Seq, now: &Moment) -> Option<v1::Grant> {
        let (tree, index) = call.tenant.directory.get(id)?;
        let mut state = Self::still_at(&tree, index, id)?;
        *after = state.last_seq;
        let line = state.line_mut(index)?;
        // One answer more: the end of one does not take the turn from the other.
        line.lease.as_mut().filter(|l| l.running && l.fence == meta.next_fence)?.answers += 1;
        let resident = line.resident.as_ref()?;
        self.grant_message(line, resident, Some(line.head_version), 0, now)
    }
}

fn outcome_name(outcome: i32) -> &'static str {
    let outcome = v1::TurnOutcome::try_from(outcome).unwrap_or(v1::TurnOutcome::Unspecified);
    outcome.as_str_name().trim_start_matches("TURN_OUTCOME_")
}

/// The refusal of a BeginTurn whose request_id a record bears; `None` if none does.
fn repeated_begin(begin: &Begin, metas: &[RecordMeta]) -> Option<Refusal> {
    for meta in metas {
        match repeats(meta.begin_request.as_ref(), begin.mark.as_ref()) {
            Err(refusal) => return Some(refusal),
            Ok(false) => {}
            Ok(true) => {
                let outcome = v1::TurnOutcome::try_from(meta.outcome).unwrap_or(v1::TurnOutcome::Unspecified);
                return Some(turn_ended(&begin.session_id, meta.turn, meta.attempt, outcome));
            }
        }
    }
    None
}

/// Whether the span continues the checkpoint.
fn check_span(state: &TreeState, index: u32, payload: &Payload, commit: Option<&CommitOptions>) -> Result<(), Refusal> {
    let (Some(span), Some(line)) = (&payload.span, state.line(index)) else { return Ok(()) };
    let length = line.resident.as_ref().map_or(0, |r| r.checkpoint_tokens);
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

/// What every record says of its turn.
fn meta(lease: &Lease, outcome: v1::TurnOutcome, mark: Option<RequestMark>, now: &Moment) -> RecordMeta {
    RecordMeta {
        turn: lease.turn,
        attempt: lease.attempt,
        fence: lease.fence,
        outcome: outcome as i32,
        create_ms: now.wall_ms,
        nonce: lease.nonce.to_vec(),
        begin_request: lease.request.clone(),
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
    if let Some(request) = &meta.begin_request {
        resident.requests.push(fingerprint(&request.request_id));
    }
    resident.last_outcome = v1::TurnOutcome::try_from(meta.outcome).unwrap_or(v1::TurnOutcome::None);
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
