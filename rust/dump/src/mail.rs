//! The line of a message that ended with its session before any turn had consumed it.

use crate::lines::{B64, bytes, parse, put, reason_word, time, uid};
use crate::{Fault, fault};
use prost::Message;
use roost_core::ids::Uid;
use roost_core::proto::store_v1::MessageMeta;
use roost_core::proto::v1::MessageKind;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A message whose state is CLOSED. What it made runnable is over, and what request it bears its metadata say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    pub seq: u64,
    pub id: Uid,
    /// `None`: a host.
    pub sender: Option<Uid>,
    /// `roost.v1.MessageKind`.
    pub kind: i32,
    /// Unit: milliseconds since 1970; 0: never.
    pub expire: i64,
    pub deliveries: u32,
    pub fence: u64,
    /// Unit: milliseconds since 1970.
    pub create_ms: i64,
    /// `roost.store.v1.MessageMeta`.
    pub meta: Vec<u8>,
    pub content: Option<Vec<u8>>,
}

#[derive(Serialize)]
struct MailLine<'a> {
    kind: &'static str,
    seq: u64,
    message_id: String,
    message: Cow<'static, str>,
    sender: Option<String>,
    sender_session_id: &'a str,
    sender_path: &'a str,
    content_type: &'a str,
    labels: &'a BTreeMap<String, String>,
    trigger: bool,
    turn: u32,
    close_reason: Option<String>,
    create_time: String,
    expire_time: Option<String>,
    deliveries: u32,
    fence: u64,
    create_ms: i64,
    expire_ms: i64,
    meta: B64<'a>,
    content: Option<B64<'a>>,
}

/// What the line is made of; the rest of it follows.
#[derive(Deserialize)]
struct MailColumns<'a> {
    seq: u64,
    #[serde(borrow)]
    message_id: Cow<'a, str>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    sender: Option<Cow<'a, str>>,
    deliveries: u32,
    fence: u64,
    create_ms: i64,
    expire_ms: i64,
    #[serde(borrow)]
    meta: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

fn kind_word(kind: i32) -> Cow<'static, str> {
    let known = MessageKind::try_from(kind);
    known.map_or_else(|_| kind.to_string().into(), |k| k.as_str_name().trim_start_matches("MESSAGE_KIND_").into())
}

fn kind_of(word: &str) -> Option<i32> {
    (MessageKind::Message as i32..=MessageKind::Closed as i32).find(|&kind| kind_word(kind) == word)
}

impl Mail {
    /// Its metadata, decoded.
    pub(crate) fn decoded(&self) -> Result<MessageMeta, Fault> {
        MessageMeta::decode(&self.meta[..])
            .map_err(|_| Fault(format!("message {}: its metadata does not decode", self.seq)))
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let meta = self.decoded()?;
        if self.expire < 0 {
            return fault(format!("message {}: the time at which it expires is none", self.seq));
        }
        let line = MailLine {
            kind: "mail",
            seq: self.seq,
            message_id: self.id.to_string(),
            message: kind_word(self.kind),
            sender: self.sender.map(|sender| sender.to_string()),
            sender_session_id: &meta.sender_session_id,
            sender_path: &meta.sender_path,
            content_type: &meta.content_type,
            labels: &meta.labels,
            trigger: meta.trigger,
            turn: meta.turn,
            close_reason: (meta.close_reason != 0).then(|| reason_word(meta.close_reason)),
            create_time: time(self.create_ms),
            expire_time: (self.expire != 0).then(|| time(self.expire)),
            deliveries: self.deliveries,
            fence: self.fence,
            create_ms: self.create_ms,
            expire_ms: self.expire,
            meta: B64(&self.meta),
            content: self.content.as_deref().map(B64),
        };
        put(&line, out)
    }

    pub(crate) fn read(line: &[u8]) -> Result<Self, Fault> {
        let columns: MailColumns<'_> = parse(line)?;
        let kind = kind_of(&columns.message);
        Ok(Mail {
            seq: columns.seq,
            id: uid(&columns.message_id)?,
            sender: columns.sender.as_deref().map(uid).transpose()?,
            kind: kind.ok_or_else(|| Fault(format!("message {}: its kind is none", columns.seq)))?,
            expire: columns.expire_ms,
            deliveries: columns.deliveries,
            fence: columns.fence,
            create_ms: columns.create_ms,
            meta: bytes(&columns.meta)?,
            content: columns.content.map(|text| bytes(&text)).transpose()?,
        })
    }
}
