//! The mail of the store in memory, and what every stored prefix must keep of it (I15).

use super::{OPEN, Store, ensure};
use roost_core::engine::{MailFound, MailHead, RunnableSession};
use roost_core::ids::Uid;
use roost_core::journal::{Batch, MailRow, MailUpdate, Seq};
use roost_core::proto::v1::{MessageKind, MessageState};
use std::collections::HashSet;

pub(crate) const QUEUED: i32 = MessageState::Queued as i32;
pub(crate) const DELIVERED: i32 = MessageState::Delivered as i32;
const EXPIRED: i32 = MessageState::Expired as i32;
const DEAD: i32 = MessageState::Dead as i32;
const ENDED: i32 = MessageState::Closed as i32;

#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) row: MailRow,
    pub(crate) now: MailUpdate,
}

impl Letter {
    pub(crate) fn is_live(&self) -> bool {
        self.now.state <= DELIVERED
    }
}

impl Store {
    pub(super) fn apply_mail(&mut self, batch: &Batch) -> Result<(), String> {
        let mut touched = HashSet::new();
        for (_, row) in &batch.mail {
            let session = self.sessions.get(&row.recipient).ok_or("a message to an unknown session")?;
            ensure!(session.row.root == row.root, "a message to {} in another tree", session.row.session_id);
            let again =
                |l: &Letter| l.row.recipient == row.recipient && row.request.is_some() && l.row.request == row.request;
            ensure!(!self.mail.values().any(again), "I21: two messages of one request");
            touched.insert(row.recipient);
            let now = MailUpdate { seq: row.seq, state: QUEUED, due: row.due, deliveries: 0, fence: 0 };
            let fresh = self.mail.insert(row.seq, Letter { row: row.clone(), now }).is_none();
            ensure!(fresh, "two messages of sequence {}", row.seq);
        }
        let mut seqs = HashSet::new();
        for (_, update) in &batch.mail_updates {
            ensure!(seqs.insert(update.seq), "message {} is updated twice in a batch", update.seq);
            let letter = self.mail.get_mut(&update.seq).ok_or("an unknown message is updated")?;
            ensure!(letter.is_live(), "I15: message {} has ended and is changed", update.seq);
            let (old, new) = (letter.now, *update);
            ensure!((QUEUED..=DEAD).contains(&new.state), "message {} gets state {}", new.seq, new.state);
            ensure!(new.state != EXPIRED || letter.row.expire > 0, "I15: message {} expires, and has no ttl", new.seq);
            ensure!(new.state != DELIVERED || new.fence > 0, "I15: message {} is delivered to nobody", new.seq);
            // A grant that its caller never got takes its delivery back.
            ensure!(new.deliveries + 1 >= old.deliveries, "message {} forgets deliveries", new.seq);
            touched.insert(letter.row.recipient);
            letter.now = new;
        }
        for (_, session) in &batch.mail_ends {
            for letter in self.mail.values_mut().filter(|l| l.row.recipient == *session && l.is_live()) {
                (letter.now.state, letter.now.due) = (ENDED, -1);
            }
            touched.insert(*session);
        }
        for (_, close) in &batch.closes {
            touched.insert(close.uid);
        }
        for uid in touched {
            let Some(session) = self.sessions.get(&uid) else { continue };
            let id = &session.row.session_id;
            let live: Vec<_> = self.mail.values().filter(|l| l.row.recipient == uid && l.is_live()).collect();
            ensure!(live.is_empty() || session.state == OPEN, "I15: mail of {id} outlives it");
            let taken = live.iter().take_while(|l| l.now.state == DELIVERED).count();
            let delivered = live.iter().filter(|l| l.now.state == DELIVERED).count();
            ensure!(taken == delivered, "I15: mail of {id} is delivered out of order");
            ensure!(delivered == 0 || session.row.running, "I15: mail of {id} is delivered to no turn");
        }
        Ok(())
    }

    pub(super) fn mail_heads(&self, uid: Uid) -> Vec<MailHead> {
        let live = self.mail.values().filter(|l| l.row.recipient == uid && l.is_live());
        live.map(|l| MailHead {
            seq: l.row.seq,
            state: l.now.state,
            due: l.now.due,
            expire: l.row.expire,
            deliveries: l.now.deliveries,
            fence: l.now.fence,
            size: l.row.content.as_ref().map_or(0, |c| c.len() as u64),
            outcome: l.row.kind != MessageKind::Message as i32,
        })
        .collect()
    }

    pub(super) fn mail_found(&self, seqs: &[Seq]) -> Vec<MailFound> {
        let live = seqs.iter().filter_map(|seq| self.mail.get(seq)).filter(|l| l.is_live());
        live.map(|l| MailFound {
            seq: l.row.seq,
            id: l.row.id,
            kind: l.row.kind,
            deliveries: l.now.deliveries,
            create_ms: l.row.create_ms,
            expire: l.row.expire,
            meta: l.row.meta.clone(),
            content: l.row.content.clone(),
        })
        .collect()
    }

    pub(super) fn sent(&self, recipient: Uid, request: &str) -> Option<(Uid, Vec<u8>)> {
        let mut letters = self.mail.values();
        let letter = letters.find(|l| l.row.recipient == recipient && l.row.request.as_deref() == Some(request))?;
        Some((letter.row.id, letter.row.meta.clone()))
    }

    pub(super) fn runnable(
        &self,
        tenant: &str,
        until_ms: i64,
        after: Option<&RunnableSession>,
        limit: usize,
    ) -> (Vec<RunnableSession>, Option<i64>) {
        let waits = |l: &&Letter| &*l.row.tenant == tenant && l.now.state == QUEUED && l.now.due >= 0;
        let mut all: Vec<(i64, Seq, Uid)> =
            self.mail.values().filter(waits).map(|l| (l.now.due, l.row.seq, l.row.recipient)).collect();
        all.sort();
        let next = all.iter().map(|l| l.0).find(|due| *due > until_ms);
        let found = all.iter().filter(|l| l.0 <= until_ms && after.is_none_or(|a| (l.0, l.1) > (a.due_ms, a.seq)));
        let found = found.take(limit).map(|&(due_ms, seq, uid)| RunnableSession {
            due_ms,
            seq,
            session_id: self.sessions[&uid].row.session_id.to_string(),
        });
        (found.collect(), next)
    }
}
