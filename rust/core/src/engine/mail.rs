//! SendMessage and WaitMail, what the ends of children tell their parents, and how turns get their mail.
//!
//! A mailbox is part of its tree's header: neither sending nor waiting loads a session. Content is in the store alone, and
//! is read for the one grant that takes it.

use super::begin::Taken;
use super::mailbox::Returned;
use super::reload::{Located, MailFound, Purpose};
use super::requests::Letter;
use super::tree::{Lease, Line, Tree, TreeState};
use super::{Call, Effect, Engine, Moment, Pending, TicketState, Timer, Work, count, not_found};
use crate::error::{Reason, Refusal};
use crate::gen_store::{MessageMeta, RequestMark};
use crate::gen_v1 as v1;
use crate::ids::{Asked, Uid, fingerprint, repeats};
use crate::journal::{MailRow, Op, Seq};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A SendMessage.
#[derive(Debug)]
pub(crate) struct SendCall {
    pub(crate) session_id: String,
    /// The session it says that it is from; empty: that of the caller's key, if it is one's.
    pub(crate) sender_id: String,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) letter: Letter,
    /// Once it is known.
    pub(crate) sender: Option<Sender>,
    /// Up to this entry the store was looked through for its request, and has none.
    pub(crate) looked: Option<Seq>,
    /// What the store has of its request.
    pub(crate) sent: Option<(Uid, Vec<u8>)>,
}

/// Whom a message is from. Without a uid: a host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sender {
    pub(crate) uid: Option<Uid>,
    session_id: String,
    path: String,
}

/// A WaitMail.
#[derive(Debug)]
pub(crate) struct WaitCall {
    pub(crate) session_id: String,
    pub(crate) wait_ms: u64,
    pub(crate) after: Seq,
}

/// A message on its way into a mailbox.
pub(crate) struct Post {
    pub(crate) kind: v1::MessageKind,
    pub(crate) letter: Letter,
    pub(crate) sender: Sender,
    pub(crate) mark: Option<RequestMark>,
    /// Of what a child's end tells.
    pub(crate) turn: u32,
    pub(crate) close_reason: v1::CloseReason,
}

impl Post {
    pub(crate) fn message(letter: Letter, sender: Sender, mark: Option<RequestMark>) -> Self {
        let (kind, close_reason) = (v1::MessageKind::Message, v1::CloseReason::Unspecified);
        Post { kind, letter, sender, mark, turn: 0, close_reason }
    }
}

/// What a request of this sender is found by among the messages to one session.
pub(crate) fn request_key(sender: Option<Uid>, mark: &RequestMark) -> String {
    match sender {
        Some(uid) => format!("{uid}/{}", mark.request_id),
        None => format!("/{}", mark.request_id),
    }
}

impl Sender {
    /// The session at `index`, as what it sends tells of it.
    pub(crate) fn at(state: &TreeState, index: u32) -> Self {
        let Some(line) = state.line(index) else { return Sender::default() };
        Sender { uid: Some(line.uid), session_id: line.session_id.to_string(), path: state.path(index) }
    }
}

impl Engine {
    pub(crate) fn send_message(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some(call) = self.know_sender(call, work) else { return };
        let Some((mut call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::Send(send) = &mut call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, &send.session_id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line(index) else { return };
        let after = state.last_seq;
        let sender = send.sender.clone().unwrap_or_default();
        if let Some(mark) = &send.mark {
            if let Some((id, meta)) = send.sent.take() {
                let result = repeated_send(id, &meta, mark);
                return self.reply(call.ticket, result, &tree, &state, work);
            }
            let key = request_key(sender.uid, mark);
            let seen = line.mail.as_ref().and_then(|m| m.asked_before(fingerprint(Asked::Send, &key)));
            // Before that, only the store knows.
            let unknown = seen.unwrap_or(0).max(line.mail_from);
            if unknown > 0 && send.looked.is_none_or(|looked| looked < unknown) {
                send.looked = Some(after.max(self.journal.durable()));
                let recipient = line.uid;
                let purpose = Purpose::Sent { call: Box::new(call) };
                return self.ask(after, purpose, |id| Effect::Sent { id, recipient, request: key });
            }
        }
        if let Err(refusal) = self.check_send(send, &sender, &tree, &state, index, now) {
            return self.reply(call.ticket, Err(refusal), &tree, &state, work);
        }
        let Pending { ticket, call: Call::Send(send), .. } = call else { return };
        let SendCall { mark, letter, .. } = *send;
        let trigger = letter.trigger;
        let (appending, mut ops) = (self.journal.append(), Vec::with_capacity(2));
        let seq = appending.seq;
        let id = self.post(seq, &tree, &mut state, index, Post::message(letter, sender, mark), &mut ops, now);
        if state.stale_ms > 0 {
            // Nothing else that is written says that the tree is alive.
            ops.push(Op::Stale { root: tree.root, stale_ms: state.stale_ms, due: state.stale_due() });
        }
        state.last_seq = appending.push(&tree, ops, Vec::new(), now.mono_ms);
        self.mail_came(&tree, &mut state, index, trigger, work, now);
        let reply = v1::SendMessageResponse { message_id: id.to_string(), repeated: false };
        self.reply(ticket, Ok(reply.encode_to_vec()), &tree, &state, work);
    }

    /// Whom a message is from: parks or refuses the call where that cannot be told.
    fn know_sender(&self, mut call: Pending, work: &mut Work) -> Option<Pending> {
        let Call::Send(send) = &mut call.call else { return None };
        if send.sender.is_some() {
            return Some(call);
        }
        if send.sender_id.is_empty() {
            match &call.who.session {
                Some(own) => send.sender_id.clone_from(&own.session_id),
                None => {
                    send.sender = Some(Sender::default());
                    return Some(call);
                }
            }
        }
        let id = send.sender_id.clone();
        let (mut call, sender) = match self.locate(call, &id, work) {
            Located::Gone => return None,
            Located::Absent(call) => (call, None),
            Located::Ended(call, past) => {
                let sender = Sender { uid: Some(past.uid), session_id: id.clone(), path: String::new() };
                // What ended below the session of a key is not told from what never was.
                let known = call.who.session.is_none() && past.uid != Uid(0);
                (call, known.then_some(sender))
            }
            Located::At(call, tree, index) => {
                let Some(state) = Self::still_at(&tree, index, &id) else {
                    work.calls.push_back(call);
                    return None;
                };
                let born = state.line(index).is_some_and(|l| l.born) && call.who.reaches(&state, index);
                (call, born.then(|| Sender::at(&state, index)))
            }
        };
        let Call::Send(send) = &mut call.call else { return None };
        send.sender = sender;
        if send.sender.is_none() {
            // It may tell of what is not durable yet.
            let (result, after) = (Err(not_found(&id)), self.journal.last_seq());
            work.answers.push(super::Answer { ticket: call.ticket, result, after, root: None });
            return None;
        }
        Some(call)
    }

    fn check_send(
        &self,
        send: &SendCall,
        sender: &Sender,
        tree: &Tree,
        state: &TreeState,
        index: u32,
        now: &Moment,
    ) -> Result<(), Refusal> {
        let Some(line) = state.line(index) else { return Ok(()) };
        if send.letter.trigger && line.depth == 0 {
            let below = |uid| uid != tree.root && state.iter().any(|(_, l)| l.uid == uid);
            if sender.uid.is_some_and(below) {
                let message = format!("session {:?} is the root of the sender's tree", send.session_id);
                return Err(Refusal::new(Reason::RootTrigger, message).with("session_id", &send.session_id));
            }
        }
        let (count, bytes) = line.mail.as_ref().map_or((0, 0), |m| m.bounded(now.wall_ms));
        let size = send.letter.content.len() as u64;
        let full = if count >= self.limits.max_mailbox_messages() {
            Some(("max_mailbox_messages", self.limits.max_mailbox_messages(), count))
        } else if bytes + size > self.limits.max_mailbox_bytes() {
            Some(("max_mailbox_bytes", self.limits.max_mailbox_bytes(), bytes))
        } else {
            None
        };
        match full {
            Some((name, limit, used)) => {
                let refusal = Refusal::cap(Reason::MailboxFull, name, limit, used);
                Err(refusal.with("session_id", &send.session_id).retry_after(1_000))
            }
            None => Ok(()),
        }
    }

    /// Puts a message in the mailbox of the session at `index`, in an entry of which `seq` is a sequence. Its id.
    pub(crate) fn post(
        &self,
        seq: Seq,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        post: Post,
        ops: &mut Vec<Op>,
        now: &Moment,
    ) -> Uid {
        state.touch(now);
        let durable = self.journal.durable();
        let Some(line) = state.line_mut(index) else { return Uid(0) };
        let id = message_id(line.uid, seq, now);
        let Post { kind, letter, sender, mark, turn, close_reason } = post;
        let outcome = kind != v1::MessageKind::Message;
        let due = if letter.trigger { 0 } else { -1 };
        let expire = letter.ttl_ms.map_or(0, |ttl| now.wall_ms.saturating_add(ttl as i64).max(1));
        let request = mark.as_ref().map(|mark| request_key(sender.uid, mark));
        let mailbox = line.mail.get_or_insert_default();
        let expired = mailbox.expire(now.wall_ms, ops);
        self.counters.messages_expired.fetch_add(expired, Ordering::Relaxed);
        mailbox.add(seq, due, expire, letter.content.len(), outcome);
        if let Some(key) = &request
            && let Some(left) = mailbox.remember(seq, fingerprint(Asked::Send, key), durable)
        {
            line.mail_from = line.mail_from.max(left);
        }
        let meta = MessageMeta {
            sender_session_id: sender.session_id,
            sender_path: sender.path,
            content_type: letter.content_type,
            labels: letter.labels,
            trigger: letter.trigger,
            turn,
            close_reason: close_reason as i32,
            request: mark,
        };
        ops.push(Op::Mail(Box::new(MailRow {
            seq,
            id,
            recipient: line.uid,
            root: tree.root,
            tenant: tree.tenant.name.clone(),
            sender: sender.uid,
            kind: kind as i32,
            due,
            expire,
            create_ms: now.wall_ms,
            meta: meta.encode_to_vec(),
            content: (!letter.content.is_empty()).then_some(letter.content),
            request,
        })));
        count(&self.counters.messages_sent);
        id
    }

    /// What a child's end tells its direct parent, in the entry of that end. Where the parent is, and whether it makes it
    /// runnable.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn tell_parent(
        &self,
        seq: Seq,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        kind: v1::MessageKind,
        mut letter: Letter,
        (turn, close_reason): (u32, v1::CloseReason),
        ops: &mut Vec<Op>,
        now: &Moment,
    ) -> Option<(u32, bool)> {
        let parent = state.line(index)?.parent?;
        let wakes = state.line(parent).filter(|l| l.is_open())?.wakes;
        letter.trigger = wakes;
        let sender = Sender::at(state, index);
        let post = Post { kind, letter, sender, mark: None, turn, close_reason };
        self.post(seq, tree, state, parent, post, ops, now);
        Some((parent, wakes))
    }

    /// A message came into a mailbox, and its entry is in the journal.
    pub(crate) fn mail_came(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        trigger: bool,
        work: &mut Work,
        now: &Moment,
    ) {
        self.tell_mail(tree, state, index, trigger, now);
        self.mail_moved(tree, state, index, trigger, work, now);
    }

    /// There is other mail in a mailbox than before: who waits for it is told; `poke`: so is who waits for sessions.
    fn mail_moved(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        poke: bool,
        work: &mut Work,
        now: &Moment,
    ) {
        self.wake_waits(tree, state, index, work, now);
        self.charge_mail(tree, state, index, now);
        if poke {
            self.poke_line(tree, state, index, work, now);
        }
    }

    /// Charges the header what a mailbox takes now; one with nothing in it goes.
    pub(crate) fn charge_mail(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, now: &Moment) {
        let Some(line) = state.line_mut(index) else { return };
        let Some(mailbox) = &mut line.mail else { return };
        let bytes = if mailbox.is_idle() { 0 } else { mailbox.bytes() };
        let before = std::mem::replace(&mut mailbox.charged, bytes);
        if bytes == 0 {
            line.mail = None;
        }
        state.mail_bytes = state.mail_bytes + bytes - before;
        if state.header_bytes > 0 {
            self.charge_header(tree, state, now);
        }
    }

    // ---- what a turn takes

    /// What is to be read before a turn begins: nothing if there is no mail, or if the first of it is at hand. What has
    /// come since then is for the turn after.
    pub(crate) fn mail_to_read(&self, call: &Pending, line: &Line, over: bool, now: &Moment) -> Option<Vec<Seq>> {
        let wanted = line.mail.as_ref()?.next(over, self.limits.max_deliveries() as u32, now.wall_ms);
        let first = wanted.first()?;
        let at_hand = |(uid, found): &(Uid, Vec<MailFound>)| *uid == line.uid && found.iter().any(|f| f.seq == *first);
        (!call.mail.as_deref().is_some_and(at_hand)).then_some(wanted)
    }

    /// What is to be read before a grant is told once more.
    pub(crate) fn taken_to_read(&self, call: &Pending, line: &Line, fence: u64) -> Option<Vec<Seq>> {
        let taken = line.mail.as_ref()?.taken(fence);
        let found = call.mail.as_deref().filter(|(uid, _)| *uid == line.uid).map_or(&[][..], |(_, found)| found);
        let at_hand = |seq: &Seq| found.iter().any(|f| f.seq == *seq);
        (!taken.iter().all(at_hand)).then_some(taken)
    }

    /// Has mail read for one call, which runs again then.
    pub(crate) fn ask_mail(&self, call: Pending, uid: Uid, seqs: Vec<Seq>, after: Seq) {
        let purpose = Purpose::Mail { call: Box::new(call), uid };
        self.ask(after, purpose, |id| Effect::Mail { id, seqs });
    }

    /// Hands the grant of `fence` what was read for its call: messages, and how many are left.
    pub(crate) fn take_mail(
        &self,
        line: &mut Line,
        read: Option<&(Uid, Vec<MailFound>)>,
        fence: u64,
        ops: &mut Vec<Op>,
        now: &Moment,
    ) -> Taken {
        let (uid, session_id) = (line.uid, line.session_id.clone());
        let Some(mailbox) = &mut line.mail else { return (Vec::new(), 0) };
        let found = read.filter(|(of, _)| *of == uid).map_or(&[][..], |(_, found)| found);
        let messages = mailbox.take(fence, found, &session_id, now.wall_ms, ops);
        self.counters.messages_delivered.fetch_add(messages.len() as u64, Ordering::Relaxed);
        let (left, _) = mailbox.queued(0, now.wall_ms);
        (messages, left)
    }

    /// The turn of `fence` has committed.
    pub(crate) fn consume_mail(&self, line: &mut Line, fence: u64, ops: &mut Vec<Op>) {
        let Some(mailbox) = &mut line.mail else { return };
        self.counters.messages_consumed.fetch_add(mailbox.consume(fence, ops), Ordering::Relaxed);
    }

    /// The wait of a session was interrupted: what is in its mailbox makes it runnable no more.
    pub(crate) fn disarm_mail(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, now: &Moment) {
        let mut ops = Vec::new();
        if let Some(mailbox) = state.line_mut(index).and_then(|l| l.mail.as_mut()) {
            mailbox.disarm(&mut ops);
        }
        if !ops.is_empty() {
            state.last_seq = self.journal.append().push(tree, ops, Vec::new(), now.mono_ms);
        }
    }

    /// What a grant has taken, once more for its answer; it was read for this call.
    pub(crate) fn taken_mail(&self, call: &Pending, line: &Line, fence: u64, now: &Moment) -> Taken {
        let Some(mailbox) = &line.mail else { return Taken::default() };
        let found = call.mail.as_deref().map_or(&[][..], |(_, found)| found);
        (mailbox.shown(fence, found, &line.session_id), mailbox.queued(0, now.wall_ms).0)
    }

    /// A turn is over, and its mail consumed or put back: who waits for mail is told, and who waits for sessions.
    pub(crate) fn mail_freed(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) {
        if state.line(index).is_some_and(|l| l.mail.is_some()) {
            self.mail_moved(tree, state, index, true, work, now);
        }
    }

    /// What the turn of `lease` had taken goes back. `ended` by an interrupt or for good, only new mail makes the session
    /// runnable.
    pub(crate) fn return_mail(&self, line: &mut Line, lease: &Lease, how: Returned, ops: &mut Vec<Op>, now: &Moment) {
        let Some(mailbox) = &mut line.mail else { return };
        let dead = mailbox.put_back(lease.fence, how, self.limits.max_deliveries() as u32, now.wall_ms, ops);
        self.counters.messages_dead.fetch_add(dead, Ordering::Relaxed);
    }

    /// The answer to a Mail.
    pub fn mail_read(&self, id: u64, mut found: Vec<MailFound>, mut now: Moment) {
        let _going = self.world.read();
        let mut work = Work { evict: true, ..Work::default() };
        found.sort_by_key(|f| f.seq);
        match self.purpose(id) {
            Some(Purpose::Mail { mut call, uid }) => {
                call.mail = Some(Box::new((uid, found)));
                work.calls.push_back(*call);
            }
            Some(Purpose::Load { tree, index, uid }) => {
                self.mail_loaded(&tree, index, uid, found, &mut work, &mut now);
            }
            _ => {}
        }
        self.finish(&mut work, &mut now);
    }

    /// The answer to a Sent: the message's id and its encoded `MessageMeta`.
    pub fn sent_found(&self, id: u64, found: Option<(Uid, Vec<u8>)>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Sent { mut call }) = self.purpose(id) else { return };
        let mut work = Work::default();
        if let Call::Send(send) = &mut call.call {
            send.sent = found;
        }
        work.calls.push_back(*call);
        self.finish(&mut work, &mut now);
    }

    // ---- WaitMail

    pub(crate) fn wait_mail(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::WaitMail(wait) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, &wait.session_id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line(index) else { return };
        let (queued, cursor) = line.mail.as_ref().map_or((0, wait.after), |m| m.queued(wait.after, now.wall_ms));
        let deadline_ms = call.since_ms.saturating_add(wait.wait_ms);
        let refusal = if queued > 0 || deadline_ms <= now.mono_ms {
            None
        } else if self.draining.load(Ordering::Acquire) {
            Some(super::shutting_down())
        } else {
            match self.enter_wait(call.connection) {
                Ok(_) => return self.park_for_mail(call, &tree, &mut state, index, deadline_ms, now),
                Err(refusal) => Some(refusal),
            }
        };
        let runnable = is_runnable(line, now);
        let reply = v1::WaitMailResponse { queued, cursor, runnable };
        let result = refusal.map_or_else(|| Ok(reply.encode_to_vec()), Err);
        self.reply(call.ticket, result, &tree, &state, work);
    }

    fn park_for_mail(
        &self,
        call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        deadline_ms: u64,
        now: &Moment,
    ) {
        let ticket = call.ticket;
        if let Some(at) = self.tickets.lock().get_mut(&ticket) {
            *at = TicketState::Mailbox(tree.clone(), index);
        }
        let Some(line) = state.line_mut(index) else { return };
        line.mail.get_or_insert_default().waits.push(call);
        self.hold_header(state);
        self.charge_mail(tree, state, index, now);
        self.timer(deadline_ms, Timer::Mail(tree.clone(), index, ticket));
    }

    /// The calls that wait for mail of a line run again.
    pub(crate) fn wake_waits(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) {
        self.take_waits(tree, state, index, |_| true, work, now);
    }

    /// The session of a line has ended, and its mail with it; who waits for more learns that.
    pub(crate) fn end_mailbox(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) {
        self.wake_waits(tree, state, index, work, now);
        let Some(mailbox) = state.line_mut(index).and_then(|l| l.mail.take()) else { return };
        state.mail_bytes -= mailbox.charged;
        self.charge_header(tree, state, now);
    }

    /// One that waits for mail is gone, or its time is up: then it runs again.
    pub(crate) fn end_wait_for_mail(
        &self,
        tree: &Arc<Tree>,
        index: u32,
        ticket: u64,
        again: bool,
        work: &mut Work,
        now: &Moment,
    ) {
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        let mut taken = Work::default();
        self.take_waits(tree, &mut state, index, |call| call.ticket == ticket, &mut taken, now);
        self.charge_mail(tree, &mut state, index, now);
        if again {
            work.calls.extend(taken.calls);
        }
    }

    fn take_waits(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        wanted: impl Fn(&Pending) -> bool,
        work: &mut Work,
        now: &Moment,
    ) {
        let Some(mailbox) = state.line_mut(index).and_then(|l| l.mail.as_mut()) else { return };
        let waits = std::mem::take(&mut mailbox.waits);
        let (taken, left): (Vec<_>, Vec<_>) = waits.into_iter().partition(|call| wanted(call));
        mailbox.waits = left;
        for call in taken {
            self.leave_wait(call.connection);
            if let Some(at) = self.tickets.lock().get_mut(&call.ticket) {
                *at = TicketState::Open;
            }
            self.release_header(tree, state, now);
            work.calls.push_back(call);
        }
    }

    /// Nobody waits for mail any more: the server stops.
    pub(crate) fn end_waits_for_mail(&self, work: &mut Work, now: &Moment) {
        let at = |(ticket, state): (&u64, &TicketState)| match state {
            TicketState::Mailbox(tree, index) => Some((*ticket, tree.clone(), *index)),
            _ => None,
        };
        let waits: Vec<_> = self.tickets.lock().iter().filter_map(at).collect();
        for (ticket, tree, index) in waits {
            self.end_wait_for_mail(&tree, index, ticket, true, work, now);
        }
    }
}

/// Whether a line's mail makes its session runnable now.
pub(crate) fn is_runnable(line: &Line, now: &Moment) -> bool {
    let granted = line.loading.as_ref().is_some_and(|l| l.granted.is_some());
    let due = || line.mail.as_ref().and_then(|m| m.runnable_from(now.wall_ms)).is_some_and(|due| due <= now.wall_ms);
    line.is_open() && line.running().is_none() && !granted && due()
}

/// How the mail of a turn that ends without a commit goes back.
pub(crate) fn returned(outcome: v1::TurnOutcome) -> Returned {
    match outcome {
        v1::TurnOutcome::Interrupted | v1::TurnOutcome::Failed => Returned::Disarmed,
        _ => Returned::Later,
    }
}

/// The id of a message: no two have the same recipient and sequence.
fn message_id(recipient: Uid, seq: Seq, now: &Moment) -> Uid {
    let mut hasher = blake3::Hasher::new();
    let hash = hasher.update(&recipient.bytes()).update(&seq.to_le_bytes()).finalize();
    Uid::v7(now.wall_ms, u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")))
}

/// The answer to a repeated SendMessage.
fn repeated_send(id: Uid, meta: &[u8], mark: &RequestMark) -> Result<Vec<u8>, Refusal> {
    let meta = MessageMeta::decode(meta).unwrap_or_default();
    repeats(meta.request.as_ref(), Some(mark))?;
    Ok(v1::SendMessageResponse { message_id: id.to_string(), repeated: true }.encode_to_vec())
}
