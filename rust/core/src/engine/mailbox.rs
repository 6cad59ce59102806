//! A mailbox in memory: of each message that is queued or delivered, what decides who gets it and when. Content stays in
//! the store.

use super::Pending;
use super::reload::{MailFound, MailHead};
use crate::gen_store::MessageMeta;
use crate::gen_v1 as v1;
use crate::journal::{MailUpdate, Op, Seq};
use prost::Message;
use std::collections::VecDeque;

/// What one turn takes at most.
const MOST: usize = 100;
const MOST_BYTES: u64 = 1 << 20;
/// The longest pause before a message that was not consumed makes its session runnable again.
const MOST_PAUSE_MS: i64 = 60_000;
/// Requests that are told from memory before the older ones are left to the store.
const RECENT: usize = 1_024;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Mail {
    pub(crate) seq: Seq,
    /// Wall-clock milliseconds from which on it makes its session runnable; -1: it does not.
    due: i64,
    /// Wall-clock milliseconds at which it expires while it is queued; 0: never.
    expire: i64,
    /// The grant that took it last; 0: none.
    fence: u64,
    deliveries: u32,
    size: u32,
    /// The turn of that grant runs.
    taken: bool,
    /// A child's end told it: bounds do not hold for it.
    outcome: bool,
}

impl Mail {
    fn expired(&self, wall_ms: i64) -> bool {
        !self.taken && self.expire != 0 && self.expire <= wall_ms
    }

    fn update(&self, state: v1::MessageState) -> Op {
        let Mail { seq, due, deliveries, fence, .. } = *self;
        let ended = !matches!(state, v1::MessageState::Queued | v1::MessageState::Delivered);
        Op::MailUpdate(MailUpdate { seq, state: state as i32, due: if ended { -1 } else { due }, deliveries, fence })
    }
}

/// What becomes of the mail of a turn that did not commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Returned {
    /// It makes the session runnable again, after a pause that grows with its deliveries.
    Later,
    /// Neither it nor what came meanwhile does: only a new message will.
    Disarmed,
    /// As if it had never been handed out.
    Undelivered,
}

#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// In order of sequence.
    mail: VecDeque<Mail>,
    /// Fingerprints of the requests of its latest messages.
    recent: Vec<(Seq, u64)>,
    /// Calls that wait for mail.
    pub(crate) waits: Vec<Pending>,
    /// What its tree's header is charged for it.
    pub(crate) charged: u64,
}

impl Mailbox {
    /// As the store has it.
    pub(crate) fn of(heads: &[MailHead]) -> Option<Box<Self>> {
        let mail = heads.iter().map(|head| Mail {
            seq: head.seq,
            due: head.due,
            expire: head.expire,
            fence: head.fence,
            deliveries: head.deliveries,
            size: head.size as u32,
            taken: head.state == v1::MessageState::Delivered as i32,
            outcome: head.outcome,
        });
        (!heads.is_empty()).then(|| Box::new(Mailbox { mail: mail.collect(), ..Mailbox::default() }))
    }

    /// What it takes in memory. Unit: bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let waits = self.waits.iter().map(|call| (size_of::<Pending>() + call.call.session_id().len()) as u64);
        (size_of::<Self>() + self.mail.capacity() * size_of::<Mail>() + self.recent.capacity() * 16) as u64
            + waits.sum::<u64>()
    }

    /// Whether nothing in it is worth its memory.
    pub(crate) fn is_idle(&self) -> bool {
        self.mail.is_empty() && self.recent.is_empty() && self.waits.is_empty()
    }

    pub(crate) fn add(&mut self, seq: Seq, due: i64, expire: i64, size: usize, outcome: bool) {
        let mail = Mail { seq, due, expire, fence: 0, deliveries: 0, size: size as u32, taken: false, outcome };
        self.mail.push_back(mail);
    }

    /// Remembers the request of a message. What is durable and old is left to the store: up to which sequence.
    pub(crate) fn remember(&mut self, seq: Seq, fingerprint: u64, durable: Seq) -> Option<Seq> {
        self.recent.push((seq, fingerprint));
        if self.recent.len() <= RECENT {
            return None;
        }
        let left = self.recent.iter().map(|r| r.0).filter(|seq| *seq <= durable).max()?;
        self.recent.retain(|r| r.0 > left);
        Some(left)
    }

    /// The latest message whose request has this fingerprint.
    pub(crate) fn asked_before(&self, fingerprint: u64) -> Option<Seq> {
        self.recent.iter().rev().find(|r| r.1 == fingerprint).map(|r| r.0)
    }

    /// Messages that no turn has consumed, and that have not expired.
    pub(crate) fn unread(&self, wall_ms: i64) -> u32 {
        self.mail.iter().filter(|m| !m.expired(wall_ms)).count() as u32
    }

    /// Messages that no turn has taken, behind `after`: how many, and the last of them.
    pub(crate) fn queued(&self, after: Seq, wall_ms: i64) -> (u32, Seq) {
        let queued = self.mail.iter().filter(|m| m.seq > after && !m.taken && !m.expired(wall_ms));
        queued.fold((0, after), |(count, _), m| (count + 1, m.seq))
    }

    /// Of what its bounds hold for: how many messages, and their bytes.
    pub(crate) fn bounded(&self, wall_ms: i64) -> (u64, u64) {
        let bounded = self.mail.iter().filter(|m| !m.outcome && !m.expired(wall_ms));
        bounded.fold((0, 0), |(count, bytes), m| (count + 1, bytes + u64::from(m.size)))
    }

    /// Wall-clock milliseconds from which on it makes its session runnable.
    pub(crate) fn runnable_from(&self, wall_ms: i64) -> Option<i64> {
        self.mail.iter().filter(|m| !m.taken && m.due >= 0 && !m.expired(wall_ms)).map(|m| m.due).min()
    }

    /// What the next turn would take, were it to begin now. `over`: in place of the one that runs, whose mail comes back.
    pub(crate) fn next(&self, over: bool, max_deliveries: u32, wall_ms: i64) -> Vec<Seq> {
        let mut bytes = 0;
        let free = |m: &&Mail| !m.expired(wall_ms) && (!m.taken || (over && m.deliveries < max_deliveries));
        let fits = |m: &&Mail| {
            bytes += u64::from(m.size);
            bytes <= MOST_BYTES || bytes == u64::from(m.size)
        };
        self.mail.iter().filter(free).take_while(fits).take(MOST).map(|m| m.seq).collect()
    }

    /// What the turn of this grant has taken.
    pub(crate) fn taken(&self, fence: u64) -> Vec<Seq> {
        self.mail.iter().filter(|m| m.taken && m.fence == fence).map(|m| m.seq).collect()
    }

    /// Hands a grant what it may take, as far as it was read; what has expired goes.
    pub(crate) fn take(
        &mut self,
        fence: u64,
        found: &[MailFound],
        session_id: &str,
        wall_ms: i64,
        ops: &mut Vec<Op>,
    ) -> Vec<v1::Message> {
        self.expire(wall_ms, ops);
        let mut messages = Vec::new();
        for seq in self.next(false, 0, wall_ms) {
            let read = found.binary_search_by_key(&seq, |f| f.seq).ok().map(|at| &found[at]);
            let (Some(read), Some(mail)) = (read, self.mail.iter_mut().find(|m| m.seq == seq)) else { break };
            (mail.taken, mail.fence) = (true, fence);
            mail.deliveries += 1;
            ops.push(mail.update(v1::MessageState::Delivered));
            messages.push(message(read, mail.deliveries, session_id));
        }
        messages
    }

    /// How many messages are with a turn, whichever it is.
    pub(crate) fn all_taken(&self) -> usize {
        self.mail.iter().filter(|m| m.taken).count()
    }

    /// What the grant has taken, once more for its answer.
    pub(crate) fn shown(&self, fence: u64, found: &[MailFound], session_id: &str) -> Vec<v1::Message> {
        let taken = self.mail.iter().filter(|m| m.taken && m.fence == fence);
        let read = |m: &Mail| found.binary_search_by_key(&m.seq, |f| f.seq).ok().map(|at| (&found[at], m.deliveries));
        taken.filter_map(read).map(|(read, deliveries)| message(read, deliveries, session_id)).collect()
    }

    /// The turn of this grant has committed. Its lease may have run out before: then its mail is queued again, and still
    /// what it was handed.
    pub(crate) fn consume(&mut self, fence: u64, ops: &mut Vec<Op>) -> u64 {
        let before = self.mail.len();
        self.mail.retain(|m| {
            let consumed = m.fence == fence;
            if consumed {
                ops.push(m.update(v1::MessageState::Consumed));
            }
            !consumed
        });
        (before - self.mail.len()) as u64
    }

    /// The turn of this grant did not commit: what it had taken goes back to its place. How many are dead with that.
    pub(crate) fn put_back(
        &mut self,
        fence: u64,
        how: Returned,
        max_deliveries: u32,
        wall_ms: i64,
        ops: &mut Vec<Op>,
    ) -> u64 {
        let before = self.mail.len();
        self.mail.retain_mut(|m| {
            if !(m.taken && m.fence == fence) {
                if how == Returned::Disarmed && m.due >= 0 {
                    m.due = -1;
                    ops.push(m.update(v1::MessageState::Queued));
                }
                return true;
            }
            m.taken = false;
            match how {
                Returned::Undelivered => m.deliveries -= 1,
                _ if m.deliveries >= max_deliveries => {
                    ops.push(m.update(v1::MessageState::Dead));
                    return false;
                }
                Returned::Later if m.due >= 0 => m.due = wall_ms + pause_ms(m.deliveries),
                Returned::Later => {}
                Returned::Disarmed => m.due = -1,
            }
            ops.push(m.update(v1::MessageState::Queued));
            true
        });
        (before - self.mail.len()) as u64
    }

    /// Nothing that is in it makes the session runnable any more.
    pub(crate) fn disarm(&mut self, ops: &mut Vec<Op>) {
        for mail in self.mail.iter_mut().filter(|m| m.due >= 0) {
            mail.due = -1;
            ops.push(mail.update(if mail.taken { v1::MessageState::Delivered } else { v1::MessageState::Queued }));
        }
    }

    /// What has expired goes.
    pub(crate) fn expire(&mut self, wall_ms: i64, ops: &mut Vec<Op>) -> u64 {
        let before = self.mail.len();
        self.mail.retain(|m| {
            let expired = m.expired(wall_ms);
            if expired {
                ops.push(m.update(v1::MessageState::Expired));
            }
            !expired
        });
        (before - self.mail.len()) as u64
    }
}

/// 1, 2, 4 .. 60 s.
fn pause_ms(deliveries: u32) -> i64 {
    (1_000_i64 << deliveries.saturating_sub(1).min(6)).min(MOST_PAUSE_MS)
}

/// A message as a turn gets it.
fn message(found: &MailFound, deliveries: u32, session_id: &str) -> v1::Message {
    let meta = MessageMeta::decode(&found.meta[..]).unwrap_or_default();
    v1::Message {
        message_id: found.id.to_string(),
        kind: found.kind,
        session_id: session_id.to_owned(),
        sender_session_id: meta.sender_session_id,
        sender_path: meta.sender_path,
        content: found.content.clone().unwrap_or_default(),
        content_type: meta.content_type,
        labels: meta.labels,
        trigger: meta.trigger,
        state: v1::MessageState::Delivered as i32,
        deliveries,
        create_time: Some(super::timestamp(found.create_ms)),
        expire_time: (found.expire != 0).then(|| super::timestamp(found.expire)),
        turn: meta.turn,
        close_reason: meta.close_reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(seq: Seq) -> MailFound {
        let id = crate::ids::Uid(u128::from(seq));
        MailFound { seq, id, kind: 1, deliveries: 0, create_ms: 0, expire: 0, meta: Vec::new(), content: None }
    }

    fn boxed(sizes: &[usize]) -> Mailbox {
        let mut mailbox = Mailbox::default();
        for (at, size) in sizes.iter().enumerate() {
            mailbox.add(at as Seq + 1, 0, 0, *size, false);
        }
        mailbox
    }

    #[test]
    fn a_turn_takes_a_hundred_messages_and_a_mebibyte_at_most() {
        assert_eq!(boxed(&[1; 150]).next(false, 5, 0).len(), 100);
        let quarter = 1 << 18;
        assert_eq!(boxed(&[quarter, quarter, quarter, quarter, 1]).next(false, 5, 0), [1, 2, 3, 4]);
        // One is always taken, however large it is.
        assert_eq!(boxed(&[2 << 20, 1]).next(false, 5, 0), [1]);
    }

    #[test]
    fn what_comes_back_pauses_longer_each_time_and_dies_at_last() {
        let (mut mailbox, mut ops) = (boxed(&[1]), Vec::new());
        for (fence, pause) in (1..=4).zip([1_000, 2_000, 4_000, 8_000]) {
            assert_eq!(mailbox.take(fence, &[found(1)], "s", 0, &mut ops).len(), 1);
            assert_eq!(mailbox.put_back(fence, Returned::Later, 5, 0, &mut ops), 0);
            assert_eq!(mailbox.runnable_from(0), Some(pause));
        }
        mailbox.take(5, &[found(1)], "s", 0, &mut ops);
        assert_eq!(mailbox.put_back(5, Returned::Later, 5, 0, &mut ops), 1);
        assert_eq!((mailbox.unread(0), mailbox.runnable_from(0)), (0, None));
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 7, 8].map(pause_ms),
            [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
        );
    }

    #[test]
    fn an_interrupt_disarms_what_came_meanwhile_too() {
        let (mut mailbox, mut ops) = (boxed(&[1, 1]), Vec::new());
        mailbox.take(1, &[found(1)], "s", 0, &mut ops);
        mailbox.put_back(1, Returned::Disarmed, 5, 0, &mut ops);
        assert_eq!((mailbox.unread(0), mailbox.runnable_from(0)), (2, None));
        mailbox.add(9, 0, 0, 1, false);
        assert_eq!(mailbox.runnable_from(0), Some(0));
    }

    proptest! {
        /// I15: what is handed out is the front of the queue, in order; each message is consumed at most once.
        #[test]
        fn mail_is_handed_out_in_order_i15(steps in prop::collection::vec((0u8..5, 1usize..40), 1..60)) {
            let (mut mailbox, mut ops, mut next, mut fence) = (Mailbox::default(), Vec::new(), 0, 0);
            let (mut running, mut consumed) = (false, Vec::new());
            for (step, n) in steps {
                match step {
                    0 => for _ in 0..n { next += 1; mailbox.add(next, 0, 0, 1, false); },
                    1 if !running => {
                        fence += 1;
                        let wanted = mailbox.next(false, 5, 0);
                        let read: Vec<_> = wanted.iter().take(n).map(|seq| found(*seq)).collect();
                        let got = mailbox.take(fence, &read, "s", 0, &mut ops);
                        prop_assert_eq!(got.len(), read.len());
                        prop_assert_eq!(mailbox.taken(fence), wanted[..read.len()].to_vec());
                        running = true;
                    }
                    2 if running => {
                        consumed.extend(mailbox.taken(fence));
                        mailbox.consume(fence, &mut ops);
                        running = false;
                    }
                    3 if running => {
                        mailbox.put_back(fence, Returned::Later, u32::MAX, 0, &mut ops);
                        running = false;
                    }
                    _ => {}
                }
                let order: Vec<Seq> = mailbox.mail.iter().map(|m| m.seq).collect();
                prop_assert!(order.is_sorted());
            }
            prop_assert!(consumed.is_sorted_by(|a, b| a < b), "{consumed:?}");
        }
    }
}
