//! What the log tells of turns and sessions: one event when a turn starts, one however it ends, one for each call that
//! met another's turn, one for each session that is closed.
//!
//! An event waits until what it tells of is durable, and is forgotten if that did not happen. None bears content,
//! labels, state or a lease (I25): ids, numbers, reasons, and the names that hosts give themselves.

use super::requests::{Begin, Payload};
use super::tree::{Lease, Line};
use super::{Engine, Moment, Pending};
use crate::error::{Reason, Refusal};
use crate::gen_store::{EndedBy, Receipt, RequestMark};
use crate::gen_v1 as v1;
use crate::ids::Uid;
use crate::journal::{Held, Seq};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One field of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(Arc<str>),
    Int(i64),
    Flag(bool),
    /// Milliseconds by name.
    Times(BTreeMap<String, f64>),
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: &'static str,
    pub fields: Vec<(&'static str, Value)>,
    /// When it was known to be durable, in milliseconds of the wall clock.
    pub wall_ms: i64,
    /// The tree it tells of.
    pub(crate) root: Uid,
    /// When the entry it tells of was appended, on the service clock.
    at_ms: u64,
    /// When what it tells of was asked for; negative: by an earlier life of the server.
    since_ms: i64,
    /// Whether it waits for an entry, and tells for how long.
    journaled: bool,
}

impl Event {
    #[cfg(test)]
    pub(crate) fn of(name: &'static str, fields: Vec<(&'static str, Value)>, wall_ms: i64) -> Self {
        Event { name, fields, wall_ms, root: Uid(0), at_ms: 0, since_ms: 0, journaled: true }
    }
}

/// Events that nobody has fetched yet. When there are too many, the newest are dropped and counted.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<Event>,
    dropped: u64,
}

/// More than a second's worth at a rate that no server reaches.
const MOST: usize = 65_536;

/// How a turn's times came to be, beside its lease. Unit: milliseconds, on the service clock (negative: in an earlier life
/// of the server).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// When its BeginTurn arrived.
    pub(crate) asked: i64,
    /// When its slot was taken.
    pub(crate) granted: i64,
    pub(crate) queue_wait: u64,
    pub(crate) reload: u64,
}

/// What a turn's end brings to its line in the log.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) request: Option<RequestMark>,
    pub(crate) usage: Option<v1::Usage>,
    pub(crate) timings: BTreeMap<String, f64>,
    /// What the call that ended it waited for reads.
    pub(crate) reload: u64,
    pub(crate) base_turn: Option<u32>,
}

impl Ended {
    pub(crate) fn of(payload: &Payload, mark: Option<&RequestMark>, timings: BTreeMap<String, f64>) -> Self {
        Ended { request: mark.cloned(), usage: payload.usage, timings, ..Ended::default() }
    }
}

struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn of(line: &Line) -> Self {
        let mut fields = Fields(Vec::with_capacity(20));
        fields.0.push(("session", Value::Text(line.session_id.clone())));
        fields
    }

    fn int(mut self, name: &'static str, value: impl TryInto<i64>) -> Self {
        self.0.push((name, Value::Int(value.try_into().unwrap_or(i64::MAX))));
        self
    }

    fn text(mut self, name: &'static str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.push((name, Value::Text(value.into())));
        }
        self
    }

    fn flag(mut self, name: &'static str, value: bool) -> Self {
        self.0.push((name, Value::Flag(value)));
        self
    }

    fn request(self, name: &'static str, mark: Option<&RequestMark>) -> Self {
        self.text(name, mark.map_or("", |m| &m.request_id))
    }

    fn turn(self, lease: &Lease) -> Self {
        self.int("turn", lease.turn)
            .int("attempt", lease.attempt)
            .int("fence", lease.fence)
            .request("request_id", lease.request.as_ref())
            .text("owner", &lease.owner)
    }
}

impl Engine {
    /// Turn events on or off; off, none is made.
    pub fn set_logging(&self, on: bool) {
        self.logging.store(on, Ordering::Relaxed);
    }

    fn logs(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// The events since the last time, and how many were dropped because nobody had fetched them.
    pub fn events(&self) -> (Vec<Event>, u64) {
        let mut events = self.events.lock();
        (std::mem::take(&mut events.queue).into(), std::mem::take(&mut events.dropped))
    }

    fn running_now(&self) -> i64 {
        self.running.load(Ordering::Relaxed)
    }

    /// Keeps an event until `after` is durable.
    fn note(&self, name: &'static str, fields: Fields, root: Uid, since_ms: i64, after: Seq, now: &Moment) {
        let event = Event {
            name,
            fields: fields.0,
            wall_ms: 0,
            root,
            at_ms: now.mono_ms,
            since_ms,
            journaled: name != "turn_conflict",
        };
        if let Some(Held::Event(event)) = self.journal.hold(after, Held::Event(Box::new(event))) {
            self.emit(*event, now);
        }
    }

    /// What the event tells of is durable.
    pub(crate) fn emit(&self, mut event: Event, now: &Moment) {
        event.wall_ms = now.wall_ms;
        if event.journaled {
            let since = |ms: i64| Value::Int((now.mono_ms as i64 - ms).max(0));
            event.fields.push(("journal_ms", since(event.at_ms as i64)));
            event.fields.push(("total_ms", since(event.since_ms)));
        }
        let mut events = self.events.lock();
        if events.queue.len() < MOST {
            events.queue.push_back(event);
        } else {
            events.dropped += 1;
        }
    }

    /// A grant was journaled.
    pub(crate) fn log_start(&self, root: Uid, line: &Line, lease: &Lease, after: Seq, now: &Moment) {
        if !self.logs() {
            return;
        }
        let fields = Fields::of(line)
            .turn(lease)
            .int("queue_wait_ms", lease.times.queue_wait)
            .int("reload_ms", lease.times.reload)
            .int("running", self.running_now());
        self.note("turn_start", fields, root, lease.times.asked, after, now);
    }

    /// The end of a turn was journaled. Its slot may still be counted in `running`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn log_done(
        &self,
        root: Uid,
        line: &Line,
        lease: &Lease,
        outcome: &str,
        by: EndedBy,
        ended: Ended,
        after: Seq,
        now: &Moment,
    ) {
        let held = (now.mono_ms as i64 - lease.times.granted).max(0);
        if lease.running {
            self.measures.held.record(held as u64);
        }
        if !self.logs() {
            return;
        }
        // A turn that left no record says so by its outcome alone.
        let by = match by {
            EndedBy::Unspecified => String::new(),
            by => by.as_str_name().trim_start_matches("ENDED_BY_").to_ascii_lowercase(),
        };
        let mut fields = Fields::of(line)
            .turn(lease)
            .request("end_request_id", ended.request.as_ref())
            .text("outcome", outcome)
            .text("by", &by)
            .flag("late", !lease.running)
            .int("head", line.head);
        if let Some(base) = ended.base_turn {
            fields = fields.int("base_turn", base);
        }
        if let Some(usage) = ended.usage {
            fields = fields
                .int("prompt_tokens", usage.prompt_tokens)
                .int("completion_tokens", usage.completion_tokens)
                .int("cached_tokens", usage.cached_tokens);
        }
        if !ended.timings.is_empty() {
            fields.0.push(("timings", Value::Times(ended.timings)));
        }
        let fields = fields
            .int("queue_wait_ms", lease.times.queue_wait)
            .int("reload_ms", lease.times.reload + ended.reload)
            .int("held_ms", held)
            .int("running", self.running_now());
        self.note("turn_done", fields, root, lease.times.asked, after, now);
    }

    /// A BeginTurn was refused: a conflict if it met a turn that runs or waits, or another head than it expected.
    pub(crate) fn log_begin_conflict(
        &self,
        root: Uid,
        line: &Line,
        call: &Pending,
        begin: &Begin,
        refusal: &Refusal,
        now: &Moment,
    ) {
        if !self.logs() || !matches!(refusal.reason, Reason::TurnMismatch | Reason::TurnInProgress) {
            return;
        }
        let mut fields = Fields::of(line).text("rpc", "BeginTurn").text("reason", refusal.reason.name());
        if let Some(turn) = begin.expected_turn {
            fields = fields.int("expected_turn", turn);
        }
        if let Some(version) = begin.expected_head_version {
            fields = fields.int("expected_head_version", version);
        }
        let fields = fields.request("request_id", begin.mark.as_ref()).text("owner", &begin.owner);
        self.log_conflict(root, line, fields, call.since_ms, now);
    }

    /// A commit or abort came with a lease that is not good any more.
    pub(crate) fn log_end_conflict(&self, root: Uid, line: &Line, call: &Pending, refusal: &Refusal, now: &Moment) {
        let super::Call::End(end) = &call.call else { return };
        if !self.logs() {
            return;
        }
        let rpc = if matches!(end.how, super::requests::TurnEnd::Commit(_)) { "CommitTurn" } else { "AbortTurn" };
        let fields = Fields::of(line)
            .text("rpc", rpc)
            .text("reason", refusal.reason.name())
            .int("expected_fence", end.lease.fence)
            .int("fence", line.fence)
            .request("request_id", end.mark.as_ref());
        self.log_conflict(root, line, fields, call.since_ms, now);
    }

    fn log_conflict(&self, root: Uid, line: &Line, fields: Fields, since_ms: u64, now: &Moment) {
        let mut fields = fields.int("turn", line.head + 1).int("head_version", line.head_version);
        if let Some(lease) = line.running() {
            let elapsed = (now.mono_ms as i64 - lease.times.granted).max(0);
            fields = fields
                .int("running_turn", lease.turn)
                .int("running_attempt", lease.attempt)
                .request("running_request_id", lease.request.as_ref())
                .text("running_owner", &lease.owner)
                .int("elapsed_ms", elapsed);
        }
        let fields = fields.int("running", self.running_now());
        self.note("turn_conflict", fields, root, since_ms as i64, 0, now);
    }

    /// The close of a session was journaled. `last`: whether its own last turn said so (`then: CLOSE`).
    pub(crate) fn log_closed(&self, root: Uid, line: &Line, receipt: &Receipt, last: bool, after: Seq, now: &Moment) {
        if !self.logs() {
            return;
        }
        let reason = receipt_reason(receipt);
        let fields = Fields::of(line)
            .text("reason", reason)
            .flag("final", last)
            .int("turns", receipt.turn_count)
            .int("close_number", receipt.close_number)
            .int("slots_released", receipt.slots_released)
            .int("children_closed", receipt.children_closed)
            .int("provisionals_aborted", receipt.provisionals_aborted)
            .request("request_id", receipt.request.as_ref())
            .int("running", self.running_now());
        self.note("session_closed", fields, root, now.mono_ms as i64, after, now);
    }
}

impl Engine {
    /// A session came back, and `sessions` with it, itself counted.
    pub(crate) fn log_reopened(&self, root: Uid, line: &Line, sessions: usize, after: Seq, now: &Moment) {
        if !self.logs() {
            return;
        }
        let fields = Fields::of(line).int("turns", line.head).int("closes", line.closes).int("sessions", sessions);
        self.note("session_reopened", fields, root, now.mono_ms as i64, after, now);
    }
}

fn receipt_reason(receipt: &Receipt) -> &'static str {
    let reason = v1::CloseReason::try_from(receipt.reason).unwrap_or(v1::CloseReason::Unspecified);
    reason.as_str_name().trim_start_matches("CLOSE_REASON_")
}

/// The outcome of a turn as the log says it.
pub(crate) fn outcome_name(outcome: v1::TurnOutcome) -> &'static str {
    outcome.as_str_name().trim_start_matches("TURN_OUTCOME_")
}
