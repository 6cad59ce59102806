//! One line: how a row is written as JSON, and read.

use crate::{Fault, Mail, Record, SCHEMA, Session, Trajectory, fault};
use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use roost_core::chain::{self, FINISHED};
use roost_core::ids::Uid;
use roost_core::proto::store_v1::{Receipt, RecordMeta, SessionFacts};
use roost_core::proto::v1::{CloseReason, RecordStatus, TurnOutcome};
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Any of the four.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Line {
    Session(Session),
    Record(Record),
    Trajectory(Trajectory),
    Mail(Mail),
}

/// Bytes that are written as base64 without a copy.
pub(crate) struct B64<'a>(pub(crate) &'a [u8]);

impl Serialize for B64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

#[derive(Serialize)]
struct SessionLine<'a> {
    kind: &'static str,
    schema: u32,
    uid: String,
    close_number: u32,
    close_reason: String,
    close_time: String,
    tenant: &'a str,
    session_id: &'a str,
    root: String,
    parent: Option<String>,
    path: &'a str,
    depth: u32,
    create_time: String,
    labels: &'a BTreeMap<String, String>,
    last_outcome: String,
    trajectories: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mail: Option<u64>,
    head: u32,
    head_version: u64,
    fence: u64,
    last: u64,
    create_ms: i64,
    facts: B64<'a>,
    receipt: B64<'a>,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
}

#[derive(Serialize)]
struct Attachment<'a> {
    name: &'a str,
    dtype: &'a str,
    shape: &'a [u64],
    uri: &'a str,
    sha256: String,
    size_bytes: u64,
}

#[derive(Serialize)]
struct RecordLine<'a> {
    kind: &'static str,
    seq: u64,
    prev: u64,
    status: Cow<'static, str>,
    turn: u32,
    attempt: u32,
    outcome: String,
    finish_reason: &'a str,
    owner: &'a str,
    labels: &'a BTreeMap<String, String>,
    usage: Option<Usage>,
    token_offset: u64,
    token_count: u64,
    content_type: &'a str,
    attachments: Vec<Attachment<'a>>,
    trajectory: u32,
    create_time: String,
    reward: Option<f64>,
    meta: B64<'a>,
    chain: B64<'a>,
    tokens: Option<B64<'a>>,
    state: Option<B64<'a>>,
    arrays: Option<B64<'a>>,
    content: Option<B64<'a>>,
}

#[derive(Serialize, Deserialize)]
struct TrajectoryLine<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    number: u32,
    ready_seq: u64,
    after_seq: u64,
    first_turn: u32,
    turn_count: u32,
    ready_ms: i64,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
}

/// What a line of a session is made of; the rest of it follows.
#[derive(Deserialize)]
struct SessionColumns<'a> {
    schema: u32,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    tenant: String,
    session_id: String,
    #[serde(borrow)]
    root: Cow<'a, str>,
    #[serde(borrow)]
    parent: Option<Cow<'a, str>>,
    path: String,
    depth: u32,
    mail: Option<u64>,
    head: u32,
    head_version: u64,
    fence: u64,
    last: u64,
    create_ms: i64,
    #[serde(borrow)]
    facts: Cow<'a, str>,
    #[serde(borrow)]
    receipt: Cow<'a, str>,
}

/// What a line of a record is made of; the rest of it follows.
#[derive(Deserialize)]
struct RecordColumns<'a> {
    seq: u64,
    prev: u64,
    #[serde(borrow)]
    status: Cow<'a, str>,
    turn: u32,
    reward: Option<f64>,
    #[serde(borrow)]
    meta: Cow<'a, str>,
    #[serde(borrow)]
    chain: Cow<'a, str>,
    #[serde(borrow)]
    tokens: Option<Cow<'a, str>>,
    #[serde(borrow)]
    state: Option<Cow<'a, str>>,
    #[serde(borrow)]
    arrays: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

/// Milliseconds since 1970 as RFC 3339.
pub(crate) fn time(ms: i64) -> String {
    let nanos = ms.rem_euclid(1000) as i32 * 1_000_000;
    prost_types::Timestamp { seconds: ms.div_euclid(1000), nanos }.to_string()
}

fn status_word(status: i32) -> Cow<'static, str> {
    match RecordStatus::try_from(status) {
        Ok(known) => Cow::Borrowed(known.as_str_name().trim_start_matches("RECORD_STATUS_")),
        Err(_) if status == FINISHED => Cow::Borrowed("FINISHED"),
        Err(_) => Cow::Owned(status.to_string()),
    }
}

fn status_of(word: &str) -> Option<i32> {
    (RecordStatus::Committed as i32..=FINISHED).find(|&status| status_word(status) == word)
}

fn outcome_word(outcome: i32) -> String {
    let known = TurnOutcome::try_from(outcome);
    known.map_or_else(|_| outcome.to_string(), |o| o.as_str_name().trim_start_matches("TURN_OUTCOME_").to_owned())
}

pub(crate) fn reason_word(reason: i32) -> String {
    let known = CloseReason::try_from(reason);
    known.map_or_else(|_| reason.to_string(), |r| r.as_str_name().trim_start_matches("CLOSE_REASON_").to_owned())
}

pub(crate) fn put(line: &impl Serialize, out: &mut Vec<u8>) -> Result<(), Fault> {
    serde_json::to_writer(&mut *out, line).map_err(|_| Fault("it cannot be written as JSON".into()))?;
    out.push(b'\n');
    Ok(())
}

impl Session {
    /// Its facts and receipt, decoded.
    pub(crate) fn decoded(&self) -> Result<(SessionFacts, Receipt), Fault> {
        let facts = SessionFacts::decode(&self.facts[..]).map_err(|_| Fault("its facts do not decode".into()))?;
        let receipt = Receipt::decode(&self.receipt[..]).map_err(|_| Fault("its receipt does not decode".into()))?;
        if receipt.close_number == 0 {
            return fault("it has no receipt of a close");
        }
        Ok((facts, receipt))
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let (facts, receipt) = self.decoded()?;
        let line = SessionLine {
            kind: "session",
            schema: self.schema(),
            uid: self.uid.to_string(),
            close_number: receipt.close_number,
            close_reason: reason_word(receipt.reason),
            close_time: time(receipt.close_ms),
            tenant: &self.tenant,
            session_id: &self.session_id,
            root: self.root.to_string(),
            parent: self.parent.map(|parent| parent.to_string()),
            path: &self.path,
            depth: self.depth,
            create_time: time(self.create_ms),
            labels: &facts.labels,
            last_outcome: outcome_word(facts.last_outcome),
            trajectories: facts.trajectories,
            mail: (self.mail > 0).then_some(self.mail),
            head: self.head,
            head_version: self.head_version,
            fence: self.fence,
            last: self.last,
            create_ms: self.create_ms,
            facts: B64(&self.facts),
            receipt: B64(&self.receipt),
        };
        put(&line, out)
    }

    fn read(line: &[u8]) -> Result<Self, Fault> {
        let columns: SessionColumns<'_> = parse(line)?;
        if !(1..=SCHEMA).contains(&columns.schema) {
            let schema = columns.schema;
            return fault(format!("it is of schema {schema}, and this version of Roost reads up to {SCHEMA}"));
        }
        Ok(Session {
            uid: uid(&columns.uid)?,
            tenant: columns.tenant,
            session_id: columns.session_id,
            root: uid(&columns.root)?,
            parent: columns.parent.as_deref().map(uid).transpose()?,
            path: columns.path,
            depth: columns.depth,
            create_ms: columns.create_ms,
            head: columns.head,
            head_version: columns.head_version,
            fence: columns.fence,
            last: columns.last,
            facts: bytes(&columns.facts)?,
            receipt: bytes(&columns.receipt)?,
            mail: columns.mail.unwrap_or(0),
        })
    }
}

impl Record {
    /// The decoded meta, once every payload matches its digest in it.
    pub(crate) fn verified(&self) -> Result<RecordMeta, Fault> {
        let corrupt = |what: &str| Fault(format!("record {}: {what}", self.seq));
        let meta = RecordMeta::decode(&self.meta[..]).map_err(|_| corrupt("its metadata does not decode"))?;
        let pairs = [
            (&self.content, &meta.content_digest, "its content does not match its digest"),
            (&self.tokens, &meta.tokens_digest, "its tokens do not match their digest"),
            (&self.arrays, &meta.arrays_digest, "its arrays do not match their digest"),
            (&self.state, &meta.state_digest, "its state does not match its digest"),
        ];
        if self.turn != meta.turn {
            return Err(corrupt("its turn is not that of its metadata"));
        }
        for (payload, should, what) in pairs {
            if chain::digest(&[payload.as_deref().unwrap_or_default()]) != *should {
                return Err(corrupt(what));
            }
        }
        Ok(meta)
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let meta = self.verified()?;
        if self.reward.is_some_and(|reward| !reward.is_finite()) {
            return fault(format!("record {}: its reward is not a number", self.seq));
        }
        let line = RecordLine {
            kind: "record",
            seq: self.seq,
            prev: self.prev,
            status: status_word(self.status),
            turn: self.turn,
            attempt: meta.attempt,
            outcome: outcome_word(meta.outcome),
            finish_reason: &meta.finish_reason,
            owner: &meta.owner,
            labels: &meta.labels,
            usage: meta.has_usage.then_some(Usage {
                prompt_tokens: meta.prompt_tokens,
                completion_tokens: meta.completion_tokens,
                cached_tokens: meta.cached_tokens,
            }),
            token_offset: meta.token_offset,
            token_count: meta.token_count,
            content_type: &meta.content_type,
            attachments: meta
                .attachments
                .iter()
                .map(|a| Attachment {
                    name: &a.name,
                    dtype: &a.dtype,
                    shape: &a.shape,
                    uri: &a.uri,
                    sha256: crate::hex(&a.sha256),
                    size_bytes: a.size_bytes,
                })
                .collect(),
            trajectory: meta.trajectory.max(1),
            create_time: time(meta.create_ms),
            reward: self.reward,
            meta: B64(&self.meta),
            chain: B64(&self.chain),
            tokens: self.tokens.as_deref().map(B64),
            state: self.state.as_deref().map(B64),
            arrays: self.arrays.as_deref().map(B64),
            content: self.content.as_deref().map(B64),
        };
        put(&line, out)
    }

    fn read(line: &[u8]) -> Result<Self, Fault> {
        let columns: RecordColumns<'_> = parse(line)?;
        let maybe = |text: Option<Cow<'_, str>>| text.map(|text| bytes(&text)).transpose();
        let status = status_of(&columns.status);
        Ok(Record {
            seq: columns.seq,
            prev: columns.prev,
            status: status.ok_or_else(|| Fault(format!("record {}: its status is none", columns.seq)))?,
            turn: columns.turn,
            meta: bytes(&columns.meta)?,
            chain: bytes(&columns.chain)?,
            tokens: maybe(columns.tokens)?,
            state: maybe(columns.state)?,
            arrays: maybe(columns.arrays)?,
            content: maybe(columns.content)?,
            reward: columns.reward,
        })
    }
}

impl Trajectory {
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let line = TrajectoryLine {
            kind: Cow::Borrowed("trajectory"),
            number: self.number,
            ready_seq: self.ready_seq,
            after_seq: self.after_seq,
            first_turn: self.first_turn,
            turn_count: self.turn_count,
            ready_ms: self.ready_ms,
        };
        put(&line, out)
    }

    fn read(line: &[u8]) -> Result<Self, Fault> {
        let line: TrajectoryLine<'_> = parse(line)?;
        Ok(Trajectory {
            number: line.number,
            ready_seq: line.ready_seq,
            after_seq: line.after_seq,
            first_turn: line.first_turn,
            turn_count: line.turn_count,
            ready_ms: line.ready_ms,
        })
    }
}

impl Line {
    /// Reads a line, its end included. `scratch` is for the comparison with what would be written.
    pub(crate) fn read(line: &[u8], scratch: &mut Vec<u8>) -> Result<Self, Fault> {
        let kind = parse::<Kind<'_>>(line)?.kind;
        let read = match &*kind {
            "session" => Line::Session(Session::read(line)?),
            "record" => Line::Record(Record::read(line)?),
            "trajectory" => Line::Trajectory(Trajectory::read(line)?),
            "mail" => Line::Mail(Mail::read(line)?),
            _ => return fault("it is of a kind that this version of Roost does not know"),
        };
        scratch.clear();
        match &read {
            Line::Session(session) => session.write(scratch)?,
            Line::Record(record) => record.write(scratch)?,
            Line::Trajectory(trajectory) => trajectory.write(scratch)?,
            Line::Mail(mail) => mail.write(scratch)?,
        }
        if scratch != line {
            return fault("it is not written as Roost writes it: it was changed");
        }
        Ok(read)
    }
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, Fault> {
    // serde's own words may quote content.
    serde_json::from_slice(line).map_err(|_| Fault("it is not JSON of the kind it should be".into()))
}

pub(crate) fn bytes(text: &str) -> Result<Vec<u8>, Fault> {
    STANDARD.decode(text).map_err(|_| Fault("one of its values is not base64".into()))
}

pub(crate) fn uid(text: &str) -> Result<Uid, Fault> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let bits = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
    bits.map(Uid).ok_or_else(|| Fault("one of its uids is none".into()))
}
