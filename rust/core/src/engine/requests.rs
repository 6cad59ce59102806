//! Requests as the engine wants them: decoded, checked against every rule that needs no state, and digested.
//!
//! Nothing here looks at a session; a request that fails here has touched nothing (I22).

use super::access::Rule;
use super::keyring::{CreateKey, ListKeys, parse_key_id};
use super::mail::{SendCall, WaitCall};
use super::poll::PollCall;
use super::pool::Caps;
use super::resource::{AttachCall, DetachCall, PoolWish};
use super::set_limits::{self, LimitChange};
use crate::chain::digest;
use crate::checkpoint::TOKEN;
use crate::error::{Reason, Refusal};
use crate::gen_store::{self as store, RequestMark};
use crate::gen_v1 as v1;
use crate::ids::{self, LeaseToken, TrajectoryId, Uid};
use crate::keys::SessionRef;
use crate::limits::{LEASE_MS, LiveLimits, MAX_FINISH_AFTER_MS};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// The RPCs that the engine answers, numbered for the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Method {
    OpenSession,
    GetSession,
    UpdateSession,
    CloseSession,
    BeginTurn,
    RenewTurns,
    CommitTurn,
    AbortTurn,
    InterruptSession,
    SetReward,
    FinishTrajectory,
    AckTrajectories,
    GetCheckpoint,
    ReopenSession,
    CreateApiKey,
    RevokeApiKey,
    ListApiKeys,
    AttachResource,
    DetachResource,
    SendMessage,
    WaitMail,
    PollTurn,
    SetLimits,
}

impl Method {
    /// Every method with its full gRPC name; its number is its place.
    pub const ALL: &'static [(&'static str, Method)] = &[
        ("/roost.v1.SessionService/OpenSession", Method::OpenSession),
        ("/roost.v1.SessionService/GetSession", Method::GetSession),
        ("/roost.v1.SessionService/UpdateSession", Method::UpdateSession),
        ("/roost.v1.SessionService/CloseSession", Method::CloseSession),
        ("/roost.v1.TurnService/BeginTurn", Method::BeginTurn),
        ("/roost.v1.TurnService/RenewTurns", Method::RenewTurns),
        ("/roost.v1.TurnService/CommitTurn", Method::CommitTurn),
        ("/roost.v1.TurnService/AbortTurn", Method::AbortTurn),
        ("/roost.v1.SessionService/InterruptSession", Method::InterruptSession),
        ("/roost.v1.TrajectoryService/SetReward", Method::SetReward),
        ("/roost.v1.TrajectoryService/FinishTrajectory", Method::FinishTrajectory),
        ("/roost.v1.TrajectoryService/AckTrajectories", Method::AckTrajectories),
        // One part of its stream a call; the transport asks for the next.
        ("/roost.v1.TurnService/GetCheckpoint", Method::GetCheckpoint),
        ("/roost.v1.SessionService/ReopenSession", Method::ReopenSession),
        ("/roost.v1.AdminService/CreateApiKey", Method::CreateApiKey),
        ("/roost.v1.AdminService/RevokeApiKey", Method::RevokeApiKey),
        ("/roost.v1.AdminService/ListApiKeys", Method::ListApiKeys),
        ("/roost.v1.ResourceService/AttachResource", Method::AttachResource),
        ("/roost.v1.ResourceService/DetachResource", Method::DetachResource),
        ("/roost.v1.MailService/SendMessage", Method::SendMessage),
        ("/roost.v1.MailService/WaitMail", Method::WaitMail),
        ("/roost.v1.TurnService/PollTurn", Method::PollTurn),
        ("/roost.v1.AdminService/SetLimits", Method::SetLimits),
    ];

    /// What may be done with it. `None`: nothing, by nobody.
    pub(crate) fn rule(self) -> Option<Rule> {
        static RULES: LazyLock<Vec<Option<Rule>>> =
            LazyLock::new(|| Method::ALL.iter().map(|(name, _)| Rule::of(name)).collect());
        RULES.get(self as usize).copied().flatten()
    }
}

#[derive(Debug)]
pub(crate) struct OpenOptions {
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) stale_timeout_ms: i64,
    pub(crate) wakes: bool,
}

/// A message that is to be sent, checked.
#[derive(Debug, Default)]
pub(crate) struct Letter {
    pub(crate) content: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) trigger: bool,
    pub(crate) ttl_ms: Option<u64>,
}

/// The session whose history another begins with, and the last turn of it that is copied; 0: all of them.
#[derive(Debug)]
pub(crate) struct Fork {
    pub(crate) session_id: String,
    pub(crate) turn: u32,
}

#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) options: OpenOptions,
    pub(crate) return_existing: bool,
    pub(crate) validate_only: bool,
    pub(crate) mint_key: bool,
    pub(crate) first_message: Option<Letter>,
    pub(crate) fork: Option<Fork>,
}

#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) stale_timeout_ms: Option<i64>,
}

#[derive(Debug)]
pub(crate) struct CloseCall {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) reason: v1::CloseReason,
    /// It came as a BeginTurn with `session_final`.
    pub(crate) last_turn: bool,
}

#[derive(Debug)]
pub(crate) struct ReopenCall {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    /// How many sessions it has opened.
    pub(crate) done: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) open: Option<OpenOptions>,
    pub(crate) wait_ms: u64,
    pub(crate) expected_turn: Option<u32>,
    pub(crate) expected_head_version: Option<u64>,
    pub(crate) known_head_version: Option<u64>,
    pub(crate) lease_ms: u64,
    pub(crate) owner: String,
    pub(crate) priority: i32,
    pub(crate) validate_only: bool,
    pub(crate) takeover: bool,
    pub(crate) want_provisional: bool,
    /// It was a PollTurn before its session was found.
    pub(crate) polled: Option<Box<PollCall>>,
}

/// A turn's payload, checked and digested.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) content: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) finish_reason: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) usage: Option<v1::Usage>,
    pub(crate) span: Option<Span>,
    pub(crate) attachments: Vec<store::Attachment>,
    pub(crate) content_digest: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) token_ids: Vec<u8>,
    pub(crate) logprobs_bytes: u64,
    /// Logprobs, then loss mask.
    pub(crate) arrays: Vec<u8>,
    pub(crate) weight_versions: Vec<i64>,
    pub(crate) tokens_digest: Vec<u8>,
    pub(crate) arrays_digest: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct End {
    pub(crate) session_id: String,
    pub(crate) lease: LeaseToken,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) payload: Payload,
    /// The client's own times, for the log.
    pub(crate) timings: BTreeMap<String, f64>,
    pub(crate) how: TurnEnd,
}

#[derive(Debug)]
pub(crate) enum TurnEnd {
    Commit(CommitOptions),
    /// `give_up`: for good.
    Abort {
        give_up: bool,
    },
}

#[derive(Debug)]
pub(crate) struct CommitOptions {
    pub(crate) state: Option<Vec<u8>>,
    pub(crate) state_digest: Vec<u8>,
    pub(crate) max_trim: u64,
    pub(crate) new_segment: bool,
    pub(crate) then: v1::Then,
    pub(crate) completed: bool,
    /// What the parent is told, if the task is complete.
    pub(crate) completion: Option<Letter>,
    pub(crate) base_turn: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Interrupt {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) force: bool,
}

#[derive(Debug)]
pub(crate) struct Reward {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    /// 0: the last one.
    pub(crate) turn: u32,
    pub(crate) value: f64,
    pub(crate) finish_after_ms: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Finish {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) reward: Option<f64>,
}

/// Acknowledgements: what each names, if it names anything.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) wanted: Vec<Result<TrajectoryId, Refusal>>,
}

#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) session_id: String,
    pub(crate) lease: LeaseToken,
    pub(crate) known: Option<u64>,
    pub(crate) from: Option<u64>,
}

/// Renewals, and what became of those that are done.
#[derive(Debug)]
pub(crate) struct Renew {
    pub(crate) renewals: Vec<v1::Renewal>,
    pub(crate) results: Vec<v1::RenewalResult>,
    /// The entry that the refusals among them tell of.
    pub(crate) after: u64,
    /// `Engine::losses` when they were made.
    pub(crate) losses: u64,
}

/// One call to the engine.
#[derive(Debug)]
pub(crate) enum Call {
    Open(Open),
    Get(String),
    Update(Update),
    Close(CloseCall),
    Begin(Begin),
    Renew(Renew),
    End(Box<End>),
    Interrupt(Interrupt),
    Reward(Reward),
    Finish(Finish),
    Ack(Ack),
    Checkpoint(Checkpoint),
    Reopen(ReopenCall),
    /// A step of an ended session's clean-up.
    Step(Box<super::ended::StepCall>),
    /// A session is to be made from its dump.
    Restore(Box<super::restore::RestoreCall>),
    /// The engine's own: close the tree of this root if it is stale.
    Sweep(String),
    CreateKey(CreateKey),
    RevokeKey(Uid),
    ListKeys(ListKeys),
    SetLimits(LimitChange),
    Attach(Box<AttachCall>),
    Detach(DetachCall),
    Send(Box<SendCall>),
    WaitMail(WaitCall),
    Poll(PollCall),
    /// The engine's own: begin a turn of this session for who waits in PollTurn, if it is runnable.
    Poke {
        session_id: String,
        /// It is of a list: the next of it follows.
        listed: bool,
    },
    /// What came of an attempt to release a resource.
    Release(Box<super::resource::ReleaseCall>),
    /// The engine's own: finish the active trajectory of this session if it is due.
    FinishDue(String),
    /// The engine's own: end the grant of this fence, whose lease ran out.
    Expire {
        session_id: String,
        fence: u64,
    },
}

fn message<M: Message + Default>(bytes: &[u8]) -> Result<M, Refusal> {
    M::decode(bytes).map_err(|e| {
        Refusal::new(Reason::MalformedRequest, format!("the request does not decode: {e}"))
            .with("size", bytes.len())
            .with("error", e)
    })
}

/// A duration in milliseconds, rounded down; refused when negative, malformed or over a century.
fn millis(field: &str, d: &prost_types::Duration) -> Result<u64, Refusal> {
    const CENTURY_S: i64 = 100 * 366 * 86_400;
    let valid = (0..=CENTURY_S).contains(&d.seconds) && (0..1_000_000_000).contains(&d.nanos);
    if !valid {
        return Err(Refusal::field(field, "must be a duration from 0 to 100 years")
            .with("seconds", d.seconds)
            .with("nanos", d.nanos));
    }
    Ok(d.seconds as u64 * 1000 + d.nanos as u64 / 1_000_000)
}

fn check_labels(field: &str, labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if labels.len() > 64 {
        return Err(Refusal::field(field, format!("has {} labels; at most 64 are allowed", labels.len()))
            .with("size", labels.len())
            .with("limit", 64));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > 63 || value.len() > 256 {
            return Err(Refusal::field(field, "keys have 1 to 63 bytes, values at most 256"));
        }
    }
    Ok(())
}

fn check_len(field: &str, len: usize, limit: usize) -> Result<(), Refusal> {
    if len > limit { Err(Refusal::too_large(field, len, limit)) } else { Ok(()) }
}

/// As long a list as a call may bring.
fn check_count(field: &str, count: usize, limit: usize) -> Result<(), Refusal> {
    if count <= limit {
        return Ok(());
    }
    Err(Refusal::field(field, format!("has {count} entries; at most {limit} are allowed"))
        .with("size", count)
        .with("limit", limit))
}

fn check_timings(timings: &BTreeMap<String, f64>) -> Result<(), Refusal> {
    check_count("timings", timings.len(), 16)?;
    let name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if timings.keys().any(|k| k.is_empty() || k.len() > 32 || !k.bytes().all(name)) {
        return Err(Refusal::field("timings", "names have 1 to 32 characters of [a-z0-9_]"));
    }
    if timings.values().any(|v| !v.is_finite()) {
        return Err(Refusal::field("timings", "values must be finite"));
    }
    Ok(())
}

fn check_reward(field: &str, value: f64) -> Result<(), Refusal> {
    if value.is_finite() { Ok(()) } else { Err(Refusal::field(field, "must be finite")) }
}

fn attachments(given: Vec<v1::Attachment>) -> Result<Vec<store::Attachment>, Refusal> {
    check_count("record.attachments", given.len(), 64)?;
    let mut names = BTreeSet::new();
    let in_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    for a in &given {
        if a.name.is_empty() || a.name.len() > 128 || !a.name.bytes().all(in_name) {
            return Err(Refusal::field("record.attachments.name", "must be 1 to 128 characters of [A-Za-z0-9._-]"));
        }
        if !names.insert(&a.name) {
            return Err(Refusal::field("record.attachments.name", "must be unique in its record").with("name", &a.name));
        }
        check_len("record.attachments.dtype", a.dtype.len(), 32)?;
        check_count("record.attachments.shape", a.shape.len(), 8)?;
        check_len("record.attachments.uri", a.uri.len(), 2_048)?;
        if a.uri.is_empty() {
            return Err(Refusal::field("record.attachments.uri", "must not be empty"));
        }
        if !matches!(a.sha256.len(), 0 | 32) {
            return Err(Refusal::field("record.attachments.sha256", "must be 32 bytes, or empty")
                .with("size", a.sha256.len())
                .with("expected", 32));
        }
    }
    Ok(given
        .into_iter()
        .map(|a| store::Attachment {
            name: a.name,
            dtype: a.dtype,
            shape: a.shape,
            uri: a.uri,
            sha256: a.sha256,
            size_bytes: a.size_bytes,
        })
        .collect())
}

fn unknown_enum(field: &str, value: i32) -> Refusal {
    Refusal::field(field, format!("{value} is not a value of this enum")).with("value", value)
}

fn options(o: v1::OpenOptions, limits: &LiveLimits) -> Result<OpenOptions, Refusal> {
    if !o.parent_session_id.is_empty() {
        ids::check_session_id("options.parent_session_id", &o.parent_session_id)?;
    }
    if !o.name.is_empty() {
        if o.parent_session_id.is_empty() {
            return Err(Refusal::field("options.name", "a root has no name; give a parent"));
        }
        ids::check_name(&o.name)?;
    }
    check_labels("options.labels", &o.labels)?;
    let stale_timeout_ms = match &o.stale_timeout {
        Some(d) => millis("options.stale_timeout", d)?,
        None => limits.default_stale_ms(),
    };
    Ok(OpenOptions {
        parent: o.parent_session_id,
        name: o.name,
        labels: o.labels,
        stale_timeout_ms: stale_timeout_ms as i64,
        wakes: o.wake_on_completion,
    })
}

/// A message; one in `field` that may be without content (`sent`: not this one) tells that something has happened.
fn letter(field: &str, m: v1::MessageInput, sent: bool, limits: &LiveLimits) -> Result<Letter, Refusal> {
    if sent && m.content.is_empty() {
        return Err(Refusal::field(&format!("{field}.content"), "must not be empty"));
    }
    check_len(&format!("{field}.content"), m.content.len(), limits.max_message_bytes() as usize)?;
    check_len(&format!("{field}.content_type"), m.content_type.len(), 128)?;
    check_labels(&format!("{field}.labels"), &m.labels)?;
    let ttl_ms = m.ttl.as_ref().map(|d| millis(&format!("{field}.ttl"), d)).transpose()?;
    if ttl_ms == Some(0) {
        return Err(Refusal::field(&format!("{field}.ttl"), "must be at least 1 ms"));
    }
    if !sent && (m.trigger || ttl_ms.is_some()) {
        return Err(Refusal::field(field, "takes no trigger and no ttl: the parent's wake_on_completion says it"));
    }
    let (content_type, labels) = (m.content_type, m.labels);
    Ok(Letter { content: m.content, content_type, labels, trigger: m.trigger, ttl_ms })
}

fn check_parent(session_id: &str, options: &OpenOptions) -> Result<(), Refusal> {
    if options.parent == session_id {
        return Err(Refusal::field("options.parent_session_id", "a session is not its own parent"));
    }
    Ok(())
}

fn fork(session_id: &str, from: v1::ForkFrom) -> Result<Fork, Refusal> {
    ids::check_session_id("fork_from.session_id", &from.session_id)?;
    if from.session_id == session_id {
        return Err(Refusal::field("fork_from.session_id", "a session is not forked from itself"));
    }
    Ok(Fork { session_id: from.session_id, turn: from.turn })
}

/// The mark of a request: its id, and the hash of the rest of it.
fn mark<M: Message>(request: &mut M, id: impl Fn(&mut M) -> &mut String) -> Result<Option<RequestMark>, Refusal> {
    let request_id = std::mem::take(id(request));
    ids::check_request_id(&request_id)?;
    Ok(ids::mark(&request_id, || request.encode_to_vec()))
}

fn payload(record: v1::RecordInput, limits: &LiveLimits) -> Result<Payload, Refusal> {
    check_len("record.content_type", record.content_type.len(), 128)?;
    check_len("record.finish_reason", record.finish_reason.len(), 64)?;
    check_labels("record.labels", &record.labels)?;
    let mut size = record.content.len();
    if let Some(t) = &record.tokens {
        size += t.token_ids.len() + t.logprobs.len() + t.loss_mask.len();
    }
    check_len("record", size, limits.max_turn_bytes() as usize)?;
    let span = record.tokens.map(span).transpose()?;
    let attachments = attachments(record.attachments)?;
    let content_digest = digest(&[&record.content]);
    Ok(Payload {
        content: record.content,
        content_type: record.content_type,
        finish_reason: record.finish_reason,
        labels: record.labels,
        usage: record.usage,
        span,
        attachments,
        content_digest,
    })
}

fn span(t: v1::TokenSpan) -> Result<Span, Refusal> {
    if !t.token_ids.len().is_multiple_of(TOKEN) {
        return Err(
            Refusal::field("record.tokens.token_ids", "must be 4 bytes a token").with("size", t.token_ids.len())
        );
    }
    let count = t.token_ids.len() / TOKEN;
    let sized = |field: &str, len: usize, width: usize| {
        if len == 0 || len == count * width {
            return Ok(());
        }
        Err(Refusal::field(field, format!("has {len} bytes; {count} tokens need {}", count * width))
            .with("size", len)
            .with("tokens", count)
            .with("expected", count * width))
    };
    sized("record.tokens.logprobs", t.logprobs.len(), 4)?;
    sized("record.tokens.loss_mask", t.loss_mask.len(), 1)?;
    if t.loss_mask.iter().any(|b| *b > 1) {
        return Err(Refusal::field("record.tokens.loss_mask", "must be 0 or 1 for each token"));
    }
    let covered: u64 = t.weight_versions.iter().map(|r| u64::from(r.count)).sum();
    let valid = t.weight_versions.iter().all(|r| r.version >= -1 && r.count > 0);
    if !t.weight_versions.is_empty() && (covered != count as u64 || !valid) {
        return Err(Refusal::field(
            "record.tokens.weight_versions",
            format!("cover {covered} tokens of {count}; versions are at least -1, counts at least 1"),
        )
        .with("covered", covered)
        .with("tokens", count));
    }
    // Far beyond any context, and safe to add to.
    if t.offset > 1 << 40 {
        return Err(Refusal::field("record.tokens.offset", "is absurdly large").with("offset", t.offset));
    }
    let arrays_digest = digest(&[&t.logprobs, &t.loss_mask]);
    let logprobs_bytes = t.logprobs.len() as u64;
    let mut arrays = t.logprobs;
    arrays.extend_from_slice(&t.loss_mask);
    Ok(Span {
        offset: t.offset,
        tokens_digest: digest(&[&t.token_ids]),
        token_ids: t.token_ids,
        logprobs_bytes,
        arrays,
        weight_versions: t.weight_versions.iter().flat_map(|r| [r.version, i64::from(r.count)]).collect(),
        arrays_digest,
    })
}

impl Call {
    /// The session it addresses; empty for RenewTurns and AckTrajectories, which address many, for PollTurn, and for what is about keys.
    pub(crate) fn session_id(&self) -> &str {
        match self {
            Call::Open(c) => &c.session_id,
            Call::Get(id) | Call::FinishDue(id) | Call::Sweep(id) => id,
            Call::Reopen(c) => &c.session_id,
            Call::Step(c) => &c.session_id,
            Call::Restore(c) => &c.session.session_id,
            Call::Update(c) => &c.session_id,
            Call::Close(c) => &c.session_id,
            Call::Begin(c) => &c.session_id,
            Call::End(c) => &c.session_id,
            Call::Interrupt(c) => &c.session_id,
            Call::Reward(c) => &c.session_id,
            Call::Finish(c) => &c.session_id,
            Call::Checkpoint(c) => &c.session_id,
            Call::Expire { session_id, .. } | Call::Poke { session_id, .. } => session_id,
            Call::Attach(c) => &c.session_id,
            Call::Detach(c) => &c.session_id,
            Call::Send(c) => &c.session_id,
            Call::WaitMail(c) => &c.session_id,
            Call::Renew(_)
            | Call::Ack(_)
            | Call::CreateKey(_)
            | Call::RevokeKey(_)
            | Call::ListKeys(_)
            | Call::Poll(_)
            | Call::SetLimits(_)
            | Call::Release(_) => "",
        }
    }

    /// Whether it is to say what would happen, and have nothing happen.
    pub(crate) fn only_asks(&self) -> bool {
        match self {
            Call::Open(open) => open.validate_only,
            Call::Begin(begin) => begin.validate_only,
            _ => false,
        }
    }

    /// Whether its answer brings the live provisional.
    pub(crate) fn wants_provisional(&self) -> bool {
        matches!(self, Call::Begin(begin) if begin.want_provisional)
    }

    /// `own`: the session whose key the call bears.
    pub(crate) fn parse(
        method: Method,
        bytes: &[u8],
        tenant: &str,
        own: Option<&SessionRef>,
        limits: &LiveLimits,
    ) -> Result<Call, Refusal> {
        Ok(match method {
            Method::OpenSession => {
                let mut r: v1::OpenSessionRequest = message(bytes)?;
                let if_exists =
                    v1::IfExists::try_from(r.if_exists).map_err(|_| unknown_enum("if_exists", r.if_exists))?;
                let validate_only = std::mem::take(&mut r.validate_only);
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                if r.session_id.is_empty() {
                    let id = mark
                        .as_ref()
                        .ok_or_else(|| Refusal::field("session_id", "give one, or a request_id to derive it from"))?;
                    // Of a session's own, so that it does not meet those of others. No tenant's name has a slash.
                    let space = own.map(|own| format!("{tenant}/{}", own.uid));
                    r.session_id = ids::derived_session_id(space.as_deref().unwrap_or(tenant), &id.request_id);
                }
                ids::check_session_id("session_id", &r.session_id)?;
                let options = options(r.options.unwrap_or_default(), limits)?;
                check_parent(&r.session_id, &options)?;
                let first_message = r.first_message.map(|m| letter("first_message", m, true, limits)).transpose()?;
                let fork = r.fork_from.map(|f| fork(&r.session_id, f)).transpose()?;
                Call::Open(Open {
                    session_id: r.session_id,
                    mark,
                    options,
                    return_existing: if_exists == v1::IfExists::Return,
                    validate_only,
                    mint_key: r.mint_key,
                    first_message,
                    fork,
                })
            }
            Method::GetSession => {
                let r: v1::GetSessionRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                Call::Get(r.session_id)
            }
            Method::UpdateSession => {
                let mut r: v1::UpdateSessionRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                check_labels("labels", &r.labels)?;
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                let stale = r.stale_timeout.as_ref().map(|d| millis("stale_timeout", d)).transpose()?;
                Call::Update(Update {
                    session_id: r.session_id,
                    mark,
                    labels: r.labels,
                    stale_timeout_ms: stale.map(|ms| ms as i64),
                })
            }
            Method::CloseSession => {
                let mut r: v1::CloseSessionRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                let reason = v1::CloseReason::try_from(r.reason).map_err(|_| unknown_enum("reason", r.reason))?;
                if matches!(reason, v1::CloseReason::ParentClosed | v1::CloseReason::Stale) {
                    return Err(Refusal::field("reason", "only the server closes for this reason"));
                }
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                Call::Close(CloseCall { session_id: r.session_id, mark, reason, last_turn: false })
            }
            Method::ReopenSession => {
                let mut r: v1::ReopenSessionRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                Call::Reopen(ReopenCall { session_id: r.session_id, mark, done: None })
            }
            Method::BeginTurn => {
                let r: v1::BeginTurnRequest = message(bytes)?;
                if r.session_final { last_turn(r)? } else { Call::Begin(begin(r, limits)?) }
            }
            Method::RenewTurns => {
                let r: v1::RenewTurnsRequest = message(bytes)?;
                let count = r.renewals.len();
                check_count("renewals", count, 1_000)?;
                Call::Renew(Renew { results: Vec::with_capacity(count), renewals: r.renewals, after: 0, losses: 0 })
            }
            Method::CommitTurn => {
                let mut r: v1::CommitTurnRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                let then = v1::Then::try_from(r.then).map_err(|_| unknown_enum("then", r.then))?;
                // A repeat may have taken other times.
                let timings = std::mem::take(&mut r.timings);
                check_timings(&timings)?;
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                if let Some(state) = &r.state {
                    check_len("state", state.len(), limits.max_state_bytes() as usize)?;
                }
                let completion = r.completion.take().map(|m| letter("completion", m, false, limits)).transpose()?;
                let commit = CommitOptions {
                    state_digest: r.state.as_deref().map(|s| digest(&[s])).unwrap_or_default(),
                    state: r.state,
                    max_trim: r.max_trim,
                    new_segment: r.new_segment,
                    then,
                    completed: r.completed || completion.is_some(),
                    completion,
                    base_turn: r.base_turn,
                };
                Call::End(Box::new(End {
                    session_id: r.session_id,
                    lease: LeaseToken::decode(&r.lease)?,
                    mark,
                    payload: payload(r.record.unwrap_or_default(), limits)?,
                    timings,
                    how: TurnEnd::Commit(commit),
                }))
            }
            Method::AbortTurn => {
                let mut r: v1::AbortTurnRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                let timings = std::mem::take(&mut r.timings);
                check_timings(&timings)?;
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                Call::End(Box::new(End {
                    session_id: r.session_id,
                    lease: LeaseToken::decode(&r.lease)?,
                    mark,
                    payload: payload(r.record.unwrap_or_default(), limits)?,
                    timings,
                    how: TurnEnd::Abort { give_up: r.r#final },
                }))
            }
            Method::InterruptSession => {
                let mut r: v1::InterruptSessionRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                Call::Interrupt(Interrupt { session_id: r.session_id, mark, force: r.force })
            }
            Method::SetReward => Call::Reward(reward(message(bytes)?, limits)?),
            Method::FinishTrajectory => {
                let mut r: v1::FinishTrajectoryRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                r.reward.map_or(Ok(()), |value| check_reward("reward", value))?;
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                Call::Finish(Finish { session_id: r.session_id, mark, reward: r.reward })
            }
            Method::AckTrajectories => {
                let r: v1::AckTrajectoriesRequest = message(bytes)?;
                check_count("trajectory_ids", r.trajectory_ids.len(), 1_000)?;
                Call::Ack(Ack { wanted: r.trajectory_ids.iter().map(|id| TrajectoryId::decode(id)).collect() })
            }
            Method::GetCheckpoint => {
                let r: v1::GetCheckpointRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                Call::Checkpoint(Checkpoint {
                    lease: LeaseToken::decode(&r.lease)?,
                    session_id: r.session_id,
                    known: r.known_head_version,
                    from: r.from_offset,
                })
            }
            Method::CreateApiKey => {
                let mut r: v1::CreateApiKeyRequest = message(bytes)?;
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                Call::CreateKey(CreateKey::of(r, mark)?)
            }
            Method::RevokeApiKey => {
                let r: v1::RevokeApiKeyRequest = message(bytes)?;
                Call::RevokeKey(parse_key_id(&r.key_id)?)
            }
            Method::ListApiKeys => Call::ListKeys(ListKeys::of(message(bytes)?)?),
            Method::SetLimits => Call::SetLimits(set_limits::wanted(message(bytes)?)?),
            Method::AttachResource => Call::Attach(Box::new(attach(message(bytes)?, limits)?)),
            Method::DetachResource => {
                let r: v1::DetachResourceRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                if r.name.is_empty() {
                    return Err(Refusal::field("name", "must not be empty"));
                }
                check_len("name", r.name.len(), 63)?;
                Call::Detach(DetachCall { session_id: r.session_id, name: r.name })
            }
            Method::SendMessage => {
                let mut r: v1::SendMessageRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                if !r.sender_session_id.is_empty() {
                    ids::check_session_id("sender_session_id", &r.sender_session_id)?;
                }
                let mark = mark(&mut r, |r| &mut r.request_id)?;
                Call::Send(Box::new(SendCall {
                    session_id: r.session_id,
                    sender_id: r.sender_session_id,
                    mark,
                    letter: letter("message", r.message.unwrap_or_default(), true, limits)?,
                    sender: None,
                    looked: None,
                    sent: None,
                }))
            }
            Method::WaitMail => {
                let r: v1::WaitMailRequest = message(bytes)?;
                ids::check_session_id("session_id", &r.session_id)?;
                let wait_ms = r.wait.as_ref().map(|d| millis("wait", d)).transpose()?.unwrap_or(0);
                let wait_ms = wait_ms.min(limits.max_wait_ms());
                Call::WaitMail(WaitCall { session_id: r.session_id, wait_ms, after: r.after })
            }
            Method::PollTurn => Call::Poll(poll(message(bytes)?, limits)?),
        })
    }
}

/// A BeginTurn that says that the session quits is its CloseSession.
fn last_turn(mut r: v1::BeginTurnRequest) -> Result<Call, Refusal> {
    ids::check_session_id("session_id", &r.session_id)?;
    if r.validate_only {
        return Err(Refusal::field("session_final", "ends the session: it cannot be validated only"));
    }
    let mark = mark(&mut r, |r| &mut r.request_id)?;
    Ok(Call::Close(CloseCall { session_id: r.session_id, mark, reason: v1::CloseReason::Quit, last_turn: true }))
}

fn lease_ms(asked: Option<&prost_types::Duration>, limits: &LiveLimits) -> Result<u64, Refusal> {
    let lease_ms = asked.map(|d| millis("lease_duration", d)).transpose()?.unwrap_or(limits.default_lease_ms());
    if !LEASE_MS.contains(&lease_ms) {
        return Err(Refusal::field("lease_duration", "must be from 5 s to 1 h").with("milliseconds", lease_ms));
    }
    Ok(lease_ms)
}

fn poll(mut r: v1::PollTurnRequest, limits: &LiveLimits) -> Result<PollCall, Refusal> {
    check_len("owner", r.owner.len(), 128)?;
    if !r.root_session_id.is_empty() {
        ids::check_session_id("root_session_id", &r.root_session_id)?;
    }
    let lease_ms = lease_ms(r.lease_duration.as_ref(), limits)?;
    let wait_ms = r.wait.take().map(|d| millis("wait", &d)).transpose()?.unwrap_or(0);
    let mark = mark(&mut r, |r| &mut r.request_id)?;
    Ok(PollCall {
        mark,
        owner: r.owner,
        // Whether anything is runnable is for the store to say.
        wait_ms: wait_ms.clamp(1_000, limits.max_wait_ms().max(1_000)),
        lease_ms,
        root: r.root_session_id,
        want_provisional: r.want_provisional,
    })
}

fn begin(mut r: v1::BeginTurnRequest, limits: &LiveLimits) -> Result<Begin, Refusal> {
    ids::check_session_id("session_id", &r.session_id)?;
    check_len("owner", r.owner.len(), 128)?;
    if !(-1_000..=1_000).contains(&r.priority) {
        return Err(Refusal::field("priority", "must be from -1000 to 1000").with("priority", r.priority));
    }
    let lease_ms = lease_ms(r.lease_duration.as_ref(), limits)?;
    let wait_ms = r.wait.as_ref().map(|d| millis("wait", d)).transpose()?.unwrap_or(0);
    // How long a repeat waits is not part of what was asked for, nor whether it would only know.
    r.wait = None;
    let validate_only = std::mem::take(&mut r.validate_only);
    let mark = mark(&mut r, |r| &mut r.request_id)?;
    let if_running = v1::IfRunning::try_from(r.if_running).map_err(|_| unknown_enum("if_running", r.if_running))?;
    if r.expected_turn == Some(0) {
        return Err(Refusal::field("expected_turn", "turns are numbered from 1").with("expected_turn", 0));
    }
    let open = r.open.map(|o| options(o, limits)).transpose()?;
    open.iter().try_for_each(|o| check_parent(&r.session_id, o))?;
    Ok(Begin {
        session_id: r.session_id,
        mark,
        open,
        wait_ms: wait_ms.min(limits.max_wait_ms()),
        expected_turn: r.expected_turn,
        expected_head_version: r.expected_head_version,
        known_head_version: r.known_head_version,
        lease_ms,
        owner: r.owner,
        priority: r.priority,
        validate_only,
        takeover: if_running == v1::IfRunning::Takeover,
        want_provisional: r.want_provisional,
        polled: None,
    })
}

fn reward(mut r: v1::SetRewardRequest, limits: &LiveLimits) -> Result<Reward, Refusal> {
    ids::check_session_id("session_id", &r.session_id)?;
    check_reward("reward", r.reward)?;
    let finish_after_ms = match &r.finish_after {
        Some(d) => Some(millis("finish_after", d)?),
        None => Some(limits.reward_finish_delay_ms()).filter(|ms| *ms > 0),
    };
    if let Some(ms) = finish_after_ms.filter(|ms| *ms > MAX_FINISH_AFTER_MS) {
        return Err(Refusal::field("finish_after", "must be at most 30 days").with("milliseconds", ms));
    }
    let mark = mark(&mut r, |r| &mut r.request_id)?;
    Ok(Reward { session_id: r.session_id, mark, turn: r.turn, value: r.reward, finish_after_ms })
}

fn attach(mut r: v1::AttachResourceRequest, limits: &LiveLimits) -> Result<AttachCall, Refusal> {
    ids::check_session_id("session_id", &r.session_id)?;
    check_len("owner", r.owner.len(), 128)?;
    check_len("handle", r.handle.len(), 1_024)?;
    if r.handle.chars().any(char::is_control) {
        return Err(Refusal::field("handle", "must not hold control characters"));
    }
    let wait_ms = r.wait.take().map(|d| millis("wait", &d)).transpose()?.unwrap_or(limits.max_wait_ms());
    let wait_ms = wait_ms.min(limits.max_wait_ms());
    let mark = mark(&mut r, |r| &mut r.request_id)?;
    let kind = v1::ResourceKind::try_from(r.kind).map_err(|_| unknown_enum("kind", r.kind))?;
    let name = Some(r.name).filter(|name| !name.is_empty());
    if let Some(name) = &name {
        check_len("name", name.len(), 63)?;
    } else if kind == v1::ResourceKind::Unspecified {
        return Err(Refusal::field("kind", "says how the resource is ended; give one"));
    } else if kind == v1::ResourceKind::Client && r.owner.is_empty() {
        return Err(Refusal::field("owner", "names who ends a resource of kind CLIENT; give one"));
    }
    let pool = r.pool.map(pool).transpose()?;
    Ok(AttachCall {
        session_id: r.session_id,
        mark,
        name,
        kind: r.kind,
        owner: r.owner,
        handle: r.handle,
        pool,
        wait_ms,
    })
}

fn pool(p: v1::Pool) -> Result<PoolWish, Refusal> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    if p.name.is_empty() || p.name.len() > 64 || !p.name.bytes().all(ok) {
        return Err(Refusal::field("pool.name", "must be 1 to 64 characters of [A-Za-z0-9._:-]"));
    }
    if p.key.len() > 128 || !p.key.bytes().all(ok) {
        return Err(Refusal::field("pool.key", "must be at most 128 characters of [A-Za-z0-9._:-]"));
    }
    let ttl_ms = p.idle_ttl.as_ref().map(|d| millis("pool.idle_ttl", d)).transpose()?.unwrap_or(0);
    let caps = Caps { max: p.max_resources.map(u64::from), max_per_key: p.max_resources_per_key.map(u64::from) };
    Ok(PoolWish { name: p.name, key: p.key, caps, ttl_ms })
}
