//! Mail: mailboxes in the trees' headers, what turns take of them, and what becomes of it.

use super::reload::{MailFound, RunnableSession};
use super::{Engine, Moment};
use crate::ids::Uid;

impl Engine {
    /// The answer to a Mail.
    pub fn mail_read(&self, _id: u64, _found: Vec<MailFound>, _now: Moment) {}

    /// The answer to a Sent: the message's id and its encoded `MessageMeta`.
    pub fn sent_found(&self, _id: u64, _found: Option<(Uid, Vec<u8>)>, _now: Moment) {}

    /// The answer to a Runnable.
    pub fn runnable_found(&self, _id: u64, _found: Vec<RunnableSession>, _next_ms: Option<i64>, _now: Moment) {}
}
