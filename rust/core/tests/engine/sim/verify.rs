//! What each answer implies, checked against the store at the instant of its delivery: an answer may reveal only what
//! is durable (I6), must be at least as new as what was durable when its call began, and what was acknowledged stays.

use super::request::{Held, Req, TENANTS};
use super::store::{OPEN, Session, Store, ensure};
use super::world::OpenCall;
use prost::Message;
use roost_core::engine::{Event, Value};
use roost_core::error::{Reason, Refusal};
use roost_core::ids::{LeaseToken, TrajectoryId, Uid, derived_session_id};
use roost_core::proto::store_v1::{EndedBy, Receipt, RecordMeta};
use roost_core::proto::v1;
use std::collections::{HashMap, HashSet};

type Check<T = ()> = Result<T, String>;

/// What was durable when a call began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    exists: bool,
    closed: bool,
    head_version: u64,
    trajectories: usize,
    parent_exists: bool,
    reopens: u32,
    /// Of a fork: what it is to be forked from, if that was there; its live line, and its head_version.
    source: Option<Uid>,
    line: Vec<u64>,
    source_version: u64,
    last_seq: u64,
}

/// What was acknowledged.
#[derive(Default)]
pub(crate) struct Ledger {
    commits: HashMap<(Uid, u64), (u32, Vec<u8>)>,
    /// The lease that each BeginTurn with a request_id was answered with.
    begins: HashMap<(usize, String, String), Vec<u8>>,
    /// Those whose caller vanished: its grant may have been released, and a repeat begins anew.
    given_up: HashSet<(usize, String, String)>,
    /// The trajectory that each FinishTrajectory with a request_id was answered with.
    finishes: HashMap<(usize, String, String), String>,
    /// The message that each SendMessage was answered with, whom it is to and its content; and what tells a repeat.
    letters: HashMap<String, (Uid, Vec<u8>)>,
    sends: HashMap<(usize, String, String, String), String>,
    /// The grants that the log says have started, and have not ended, in this life of the server.
    started: HashSet<(String, i64)>,
}

fn id_of(tenant: usize, req: &Req) -> String {
    match req {
        Req::Open(r) if r.session_id.is_empty() => derived_session_id(TENANTS[tenant], &r.request_id),
        req => req.session_id().to_owned(),
    }
}

fn parent_of(req: &Req) -> &str {
    match req {
        Req::Open(r) => r.options.as_ref().map_or("", |o| &o.parent_session_id),
        Req::Begin(r) => r.open.as_ref().map_or("", |o| &o.parent_session_id),
        Req::Send(r) => &r.sender_session_id,
        _ => "",
    }
}

fn source_of(req: &Req) -> Option<&v1::ForkFrom> {
    match req {
        Req::Open(r) => r.fork_from.as_ref(),
        _ => None,
    }
}

impl Start {
    pub(crate) fn of(store: &Store, tenant: usize, req: &Req) -> Self {
        let session = store.by_id(TENANTS[tenant], &id_of(tenant, req));
        let source = source_of(req).and_then(|from| store.by_id(TENANTS[tenant], &from.session_id));
        Start {
            source: source.map(|s| s.row.uid),
            line: source.map(|s| s.turns.iter().map(|(seq, _)| *seq).collect()).unwrap_or_default(),
            source_version: source.map_or(0, |s| s.row.head_version),
            last_seq: store.last_seq,
            exists: session.is_some(),
            closed: session.is_some_and(|s| s.state != OPEN),
            head_version: session.map_or(0, |s| s.row.head_version),
            trajectories: session.map_or(0, |s| s.trajectories.len()),
            reopens: session.map_or(0, |s| s.reopens),
            parent_exists: store.by_id(TENANTS[tenant], parent_of(req)).is_some(),
        }
    }
}

impl Ledger {
    /// What a server has logged, the next one does not go on with.
    pub(crate) fn restarted(&mut self) {
        self.started.clear();
    }

    /// A line of the log tells of what is durable, and a turn that started ends once.
    pub(crate) fn logged(&mut self, store: &Store, event: &Event) -> Check {
        let field = |name: &str| event.fields.iter().find(|(n, _)| *n == name).map(|(_, v)| v);
        let (Some(Value::Text(session)), fence) = (field("session"), field("fence")) else {
            return Err(format!("{event:?}: of no session"));
        };
        let turn = match fence {
            Some(Value::Int(fence)) => (session.to_string(), *fence),
            _ => (session.to_string(), 0),
        };
        let mut of_id = TENANTS.iter().filter_map(|t| store.by_id(t, session));
        match event.name {
            "turn_start" => {
                ensure!(of_id.any(|s| s.row.fence as i64 >= turn.1), "{event:?}: it is not durable");
                self.started.insert(turn);
            }
            // A session of the other tenant may bear the same id, and a turn may have started in an earlier life.
            "turn_done" => drop(self.started.remove(&turn)),
            "session_closed" => ensure!(of_id.any(|s| s.closes > 0), "{event:?}: it is not durable"),
            _ => {}
        }
        Ok(())
    }

    /// At rest, every turn that the log says has started has ended there too.
    pub(crate) fn log_is_whole(&self, store: &Store) -> Check {
        let broken = |id: &str| {
            let sessions = TENANTS.iter().filter_map(|t| store.by_id(t, id));
            sessions.into_iter().any(|s| store.broken.contains(&s.row.root))
        };
        let open: Vec<_> = self.started.iter().filter(|(id, _)| !broken(id)).collect();
        ensure!(open.is_empty(), "the log does not say how these ended: {open:?}");
        Ok(())
    }

    pub(crate) fn gave_up(&mut self, call: &OpenCall) {
        if let Req::Begin(r) = &call.req {
            self.given_up.insert((call.tenant, r.session_id.clone(), r.request_id.clone()));
        }
    }

    pub(crate) fn verify(&self, store: &Store, call: &OpenCall, result: &Result<Vec<u8>, Refusal>) -> Check {
        match result {
            Err(refusal) => refused(store, call, refusal.reason),
            Ok(reply) => replied(store, call, reply),
        }
    }

    /// The client has its answer: what it says holds from now on.
    pub(crate) fn acknowledged(&mut self, store: &Store, call: &OpenCall, reply: &[u8]) -> Check<Option<Held>> {
        let mut polled = String::new();
        let grant = match &call.req {
            Req::Begin(r) => {
                let grant = v1::BeginTurnResponse::decode(reply).ok().and_then(|r| r.grant);
                let grant = grant.filter(|_| !r.validate_only);
                let key = (call.tenant, r.session_id.clone(), r.request_id.clone());
                if let Some(grant) = grant.as_ref().filter(|_| !r.request_id.is_empty()) {
                    let before = self.begins.insert(key.clone(), grant.lease.clone());
                    let same = before.is_none_or(|lease| lease == grant.lease);
                    ensure!(same || self.given_up.contains(&key), "I21: {key:?} got two leases");
                }
                grant
            }
            Req::Commit(r) => {
                let reply = v1::CommitTurnResponse::decode(reply).expect("a reply decodes");
                let token = LeaseToken::decode(&r.lease).expect("it was accepted");
                if !reply.repeated {
                    let content = r.record.as_ref().map(|r| r.content.clone()).unwrap_or_default();
                    self.commits.insert((token.uid, token.fence), (reply.turn, content));
                }
                reply.next
            }
            Req::Poll(_) => {
                let reply = v1::PollTurnResponse::decode(reply).expect("a reply decodes");
                polled = reply.session_id;
                reply.grant
            }
            Req::Send(r) => {
                let id = v1::SendMessageResponse::decode(reply).expect("a reply decodes").message_id;
                if let Some(recipient) = store.by_id(TENANTS[call.tenant], &r.session_id) {
                    let content = r.message.clone().unwrap_or_default().content;
                    self.letters.insert(id.clone(), (recipient.row.uid, content));
                }
                let key = (call.tenant, r.session_id.clone(), r.sender_session_id.clone(), r.request_id.clone());
                if !r.request_id.is_empty() {
                    let before = self.sends.insert(key.clone(), id.clone());
                    ensure!(before.is_none_or(|b| b == id), "I21: {key:?} sent two messages");
                }
                None
            }
            Req::Finish(r) if !r.request_id.is_empty() => {
                let reply = v1::FinishTrajectoryResponse::decode(reply).expect("a reply decodes");
                let id = reply.trajectory.unwrap_or_default().trajectory_id;
                let key = (call.tenant, r.session_id.clone(), r.request_id.clone());
                let before = self.finishes.insert(key.clone(), id.clone());
                ensure!(before.is_none_or(|b| b == id), "I21: {key:?} finished two trajectories");
                None
            }
            _ => None,
        };
        let session_id = if polled.is_empty() { id_of(call.tenant, &call.req) } else { polled };
        let known = store.by_id(TENANTS[call.tenant], &session_id).is_some();
        Ok(grant.filter(|_| known).map(|g| Held {
            tenant: call.tenant,
            session_id,
            lease: g.lease,
            turn: g.turn,
            length: g.checkpoint.map_or(0, |c| c.length),
        }))
    }

    /// I5, I23: every acknowledged record is there, once, and counts.
    pub(crate) fn all_there(&self, store: &Store) -> Check {
        let mut found = HashMap::new();
        for record in store.records.values().filter(|r| Store::committed(&r.decoded)) {
            found.insert((record.session, record.decoded.fence), record);
        }
        for (id, (recipient, content)) in &self.letters {
            if store.sessions.get(recipient).is_some_and(|s| s.purging) {
                continue;
            }
            let letter = store.mail.values().find(|l| l.row.id.to_string() == *id);
            let letter = letter.ok_or_else(|| format!("I5: the message {id} is lost"))?;
            ensure!(letter.row.content.as_ref() == Some(content), "I5: another message {id}");
        }
        for (key, (turn, content)) in &self.commits {
            if store.sessions.get(&key.0).is_some_and(|s| s.purging) {
                continue;
            }
            let record = found.get(key).ok_or_else(|| format!("I5: the commit of {key:?} is lost"))?;
            ensure!(record.decoded.turn == *turn && record.content == *content, "I5: another commit of {key:?}");
        }
        Ok(())
    }
}

fn refused(store: &Store, call: &OpenCall, reason: Reason) -> Check {
    let (tenant, start) = (TENANTS[call.tenant], &call.start);
    let session = store.by_id(tenant, &id_of(call.tenant, &call.req));
    let parent = store.by_id(tenant, parent_of(&call.req));
    let ended = |s: Option<&Session>| s.is_some_and(|s| s.state != OPEN);
    let came_back = session.is_some_and(|s| s.reopens > start.reopens);
    match reason {
        Reason::InternalError | Reason::SessionCorrupt | Reason::MalformedRequest | Reason::LeaseMalformed => {
            return Err(format!("{}: never right here", reason.name()));
        }
        Reason::SessionNotFound => {
            let sender = !parent_of(&call.req).is_empty() && !start.parent_exists;
            let other = sender || matches!(call.req, Req::Open(_));
            ensure!(!start.exists || other, "it was there before the call");
            ensure!(source_of(&call.req).is_none() || start.source.is_none(), "its source was there before the call");
        }
        Reason::ParentNotFound => ensure!(!start.parent_exists, "the parent was there before the call"),
        Reason::SessionExists => ensure!(session.is_some(), "I6: no such session is durable"),
        Reason::SessionClosed => {
            // One that was waiting to be made ends with its parent.
            let parent_ended = ended(parent) || parent.is_some_and(|p| p.reopens > 0);
            ensure!(session.is_none() || ended(session) || came_back || parent_ended, "I6: it is open");
        }
        Reason::TurnEnded => {
            let Req::Begin(r) = &call.req else { return Err("TURN_ENDED of what is no BeginTurn".into()) };
            let session = session.ok_or("I6: TURN_ENDED of an unknown session")?;
            ensure!(session.requests.contains_key(&r.request_id), "I6: no record bears the request");
        }
        Reason::LeaseLost => {
            let (Req::Commit(v1::CommitTurnRequest { lease, .. })
            | Req::Abort(v1::AbortTurnRequest { lease, .. })
            | Req::Checkpoint(v1::GetCheckpointRequest { lease, .. })) = &call.req
            else {
                return Err("LEASE_LOST of what bears no lease".into());
            };
            let grant = session.filter(|s| s.state == OPEN).and_then(|s| Some((s.row.uid, s.grant.as_ref()?)));
            let valid = grant.map(|(uid, g)| LeaseToken { uid, fence: g.fence, nonce: nonce(&g.nonce) }.encode());
            ensure!(valid.as_ref() != Some(lease), "LEASE_LOST, and the lease is valid");
            if let (Req::Commit(_), Some(s)) = (&call.req, session) {
                let token = LeaseToken::decode(lease).expect("it was accepted");
                let done = token.uid == s.row.uid && made(store, s, &token).any(Store::committed);
                ensure!(!done, "I21: LEASE_LOST of a lease that has committed");
            }
        }
        Reason::TrajectoryFinished => {
            ensure!(session.is_some_and(|s| !s.trajectories.is_empty()), "I6: no trajectory is durably finished");
        }
        Reason::TrajectoryEmpty => {
            ensure!(session.is_some(), "I6: no such session is durable");
        }
        Reason::RewindRefused => {
            let Req::Commit(r) = &call.req else { return Err("REWIND_REFUSED of what is no commit".into()) };
            ensure!(r.base_turn.is_some(), "REWIND_REFUSED without base_turn");
        }
        Reason::TurnNotFound if source_of(&call.req).is_some() => {
            let (from, source) = (source_of(&call.req), source(store, call));
            let later = source.map(|s| &s.folds[start.source_version as usize..]).unwrap_or_default();
            let turn = from.map_or(0, |f| f.turn);
            ensure!(turn > 0 && later.iter().any(|f| f.turns < turn), "its source has turn {turn}");
        }
        Reason::SessionPurged if source_of(&call.req).is_some() => {
            ensure!(source(store, call).is_none_or(|s| s.purging), "I6: its source is not being purged");
        }
        Reason::TooLarge if matches!(call.req, Req::Open(_)) => {
            ensure!(source_of(&call.req).is_some(), "too large, and nothing is copied");
        }
        Reason::TreeQuarantined => {
            let broken = |s: Option<&Session>| s.is_some_and(|s| store.broken.contains(&s.row.root));
            ensure!(broken(session) || broken(parent) || broken(source(store, call)), "nothing of it is set aside");
        }
        _ => {}
    }
    Ok(())
}

/// What a call forks from, if that is known.
fn source<'a>(store: &'a Store, call: &OpenCall) -> Option<&'a Session> {
    source_of(&call.req).and_then(|from| store.by_id(TENANTS[call.tenant], &from.session_id))
}

/// A session that a call made begins with the line of its source, as that was at some instant of the call.
fn forked(call: &OpenCall, session: &Session) -> Check {
    let (copied, start) = (&session.copied, &call.start);
    let Some(from) = source_of(&call.req) else {
        ensure!(copied.is_empty(), "I17: it begins with what nobody asked for");
        return Ok(());
    };
    let turns = copied.len();
    ensure!(from.turn == 0 || turns == from.turn as usize, "I4: it begins with {turns} turns");
    let Some(last) = copied.last() else {
        ensure!(start.line.is_empty(), "I4: it begins with no turn");
        return Ok(());
    };
    let was_live = if from.turn == 0 { start.line.last() == Some(last) } else { start.line.contains(last) };
    ensure!(was_live || *last > start.last_seq, "I6: it begins with turns from before the call");
    Ok(())
}

fn nonce(bytes: &[u8]) -> [u8; 16] {
    bytes.try_into().expect("16 bytes")
}

/// The metas of the records that a lease made.
fn made<'a>(store: &'a Store, session: &'a Session, token: &'a LeaseToken) -> impl Iterator<Item = &'a RecordMeta> {
    let own = |m: &&RecordMeta| m.fence == token.fence && m.nonce == token.nonce;
    store.line(session).map(|(_, r)| &r.decoded).filter(own)
}

fn replied(store: &Store, call: &OpenCall, reply: &[u8]) -> Check {
    let (tenant, start) = (TENANTS[call.tenant], &call.start);
    let session = store.by_id(tenant, &id_of(call.tenant, &call.req));
    let known = || session.ok_or_else(|| "I6: the answer tells of a session that is not durable".to_owned());
    if session.is_some_and(|s| s.purging) && !matches!(call.req, Req::Get(_) | Req::Close(_)) {
        // What it tells of was read before that.
        return Ok(());
    }
    match &call.req {
        Req::Open(r) => {
            let reply = v1::OpenSessionResponse::decode(reply).expect("a reply decodes");
            ensure!(!(r.validate_only && reply.created), "I22: validate_only makes a session");
            if r.validate_only && !start.exists {
                return Ok(());
            }
            let told = reply.session.ok_or("no session")?;
            ensure!(!reply.created || !start.exists, "it was there before the call");
            if reply.created {
                ensure!(told.parent_session_id == parent_of(&call.req), "opened below {:?}", told.parent_session_id);
                forked(call, known()?)?;
            }
            tells(store, known()?, &told, start)
        }
        Req::Get(_) => {
            let told = v1::GetSessionResponse::decode(reply).expect("a reply decodes").session.ok_or("no session")?;
            tells(store, known()?, &told, start)
        }
        Req::Update(r) => {
            let told =
                v1::UpdateSessionResponse::decode(reply).expect("a reply decodes").session.ok_or("no session")?;
            for (key, value) in r.labels.iter().filter(|_| r.request_id.is_empty()) {
                ensure!(told.labels.get(key).map_or("", |v| v) == value, "the label is not as asked");
            }
            tells(store, known()?, &told, start)
        }
        Req::Close(r) => {
            let reply = v1::CloseSessionResponse::decode(reply).expect("a reply decodes");
            let goes_on = (6..=9).contains(&r.reason);
            let session = known()?;
            ensure!(reply.closed || goes_on, "not closed");
            if !reply.closed {
                return Ok(());
            }
            if session.state == OPEN && (session.reopens > start.reopens || !session.facts.past_receipts.is_empty()) {
                return Ok(());
            }
            ensure!(session.state != OPEN, "I6: closed, and durably open");
            receipt(store, session, reply.receipt.as_ref())
        }
        Req::Reopen(_) => {
            let reply = v1::ReopenSessionResponse::decode(reply).expect("a reply decodes");
            let session = known()?;
            ensure!(reply.reopened == 0 || session.reopens > start.reopens, "I6: it is not durably open again");
            tells(store, session, &reply.session.ok_or("no session")?, start)
        }
        Req::Attach(r) => {
            let reply = v1::AttachResourceResponse::decode(reply).expect("a reply decodes");
            ensure!(store.names.contains(&reply.name), "I6: {} is not durable", reply.name);
            ensure!(r.name.is_empty() || reply.name == r.name, "another resource is confirmed");
            let (uid, of) = (known()?.row.uid, store.resources.get(&reply.name).map(|r| r.row.session));
            ensure!(of.is_none_or(|of| of == uid) || session.is_some_and(|s| s.reopens > 0), "it is another session's");
            Ok(())
        }
        Req::Detach(r) => {
            let reply = v1::DetachResourceResponse::decode(reply).expect("a reply decodes");
            ensure!(!reply.released || !store.resources.contains_key(&r.name), "I6: {} is not durably gone", r.name);
            Ok(())
        }
        Req::Send(_) => {
            let reply = v1::SendMessageResponse::decode(reply).expect("a reply decodes");
            let durable = store.mail.values().any(|l| l.row.id.to_string() == reply.message_id);
            ensure!(durable, "I6: the message is not durable");
            Ok(())
        }
        Req::WaitMail(r) => {
            let reply = v1::WaitMailResponse::decode(reply).expect("a reply decodes");
            ensure!(reply.queued == 0 || store.mail.contains_key(&reply.cursor), "I6: the mail is not durable");
            ensure!(reply.queued > 0 || reply.cursor == r.after, "no mail, and the cursor moves");
            Ok(())
        }
        Req::Poll(_) => {
            let reply = v1::PollTurnResponse::decode(reply).expect("a reply decodes");
            let Some(told) = reply.grant else {
                ensure!(reply.session_id.is_empty(), "a session without a grant");
                return Ok(());
            };
            let session = store.by_id(tenant, &reply.session_id).ok_or("I6: the session is not durable")?;
            ensure!(reply.uid == session.row.uid.to_string(), "another uid");
            ensure!(session.row.fence >= told.fence, "I6: the grant is not durable");
            mail(store, session, &told)
        }
        Req::Begin(r) => {
            let reply = v1::BeginTurnResponse::decode(reply).expect("a reply decodes");
            let told = reply.grant.ok_or("no grant")?;
            if r.validate_only {
                ensure!(told.lease.is_empty() && told.fence == 0, "validate_only takes something");
                return session.map_or(Ok(()), |s| checkpoint(s, &told, r.known_head_version));
            }
            let session = known()?;
            ensure!(reply.uid == session.row.uid.to_string(), "another uid");
            ensure!(!reply.created || !start.exists, "it was there before the call");
            ensure!(!start.closed || session.reopens > start.reopens, "I13: a turn of an ended session");
            if reply.created {
                let parent = session.row.parent.map(|p| store.sessions[&p].row.session_id.to_string());
                ensure!(parent.unwrap_or_default() == parent_of(&call.req), "opened below another parent");
            }
            ensure!(r.expected_turn.is_none_or(|t| t == told.turn), "not the expected turn");
            ensure!(r.expected_head_version.is_none_or(|v| v == told.head_version), "not the expected version");
            ensure!(told.head_version >= start.head_version, "a turn from before the call");
            if let Some(provisional) = &told.provisional {
                ensure!(r.want_provisional, "a provisional that was not asked for");
                ensure!(provisional.turn == told.turn, "I8: the provisional of another turn");
                let (_, record) = store
                    .line(session)
                    .find(|(_, r)| r.decoded.fence == provisional.fence && !Store::committed(&r.decoded))
                    .ok_or("I6: the provisional is not durable")?;
                let content = provisional.record.as_ref().map_or(&[][..], |r| &r.content);
                ensure!(record.content == content, "another provisional than stored");
            }
            grant(store, session, &told, r.known_head_version)
        }
        Req::Renew(r) => {
            let reply = v1::RenewTurnsResponse::decode(reply).expect("a reply decodes");
            ensure!(reply.results.len() == r.renewals.len(), "as many results as renewals");
            for (renewal, result) in r.renewals.iter().zip(reply.results) {
                let session = store.by_id(tenant, &renewal.session_id);
                match result.refusal.as_ref().map(|r| &*r.reason) {
                    None => ensure!(session.is_some(), "I6: a turn of an unknown session is renewed"),
                    // A session that is waiting to be made ends with its parent: there never was a lease of it.
                    Some("SESSION_CLOSED") => {
                        let open = session.is_some_and(|s| s.state == OPEN && s.reopens == 0);
                        ensure!(!open, "I6: {} is open", renewal.session_id);
                    }
                    Some("LEASE_LOST" | "SESSION_NOT_FOUND" | "LOAD_FAILED" | "TREE_QUARANTINED" | "NOT_STORED") => {}
                    Some(other) => return Err(format!("{other} for a renewal")),
                }
            }
            Ok(())
        }
        Req::Commit(r) => {
            let reply = v1::CommitTurnResponse::decode(reply).expect("a reply decodes");
            let session = known()?;
            let token = LeaseToken::decode(&r.lease).expect("it was accepted");
            let (_, record) = store
                .line(session)
                .find(|(_, r)| {
                    Store::committed(&r.decoded)
                        && (r.decoded.fence, &r.decoded.nonce[..]) == (token.fence, &token.nonce)
                })
                .ok_or("I6: the commit is not durable")?;
            ensure!(token.uid == session.row.uid, "a lease of another session");
            let meta = &record.decoded;
            ensure!((reply.turn, reply.head_version) == (meta.turn, meta.head_version), "other numbers than stored");
            if !reply.repeated {
                let content = r.record.as_ref().map(|r| &r.content[..]).unwrap_or_default();
                ensure!(record.content == content, "other content than sent");
            }
            if meta.then == v1::Then::Close as i32 {
                if session.reopens > 0 {
                    ensure!(reply.receipt.is_some(), "I12: the receipt of the close is lost");
                } else {
                    ensure!(session.state != OPEN, "I6: closed, and durably open");
                    receipt(store, session, reply.receipt.as_ref())?;
                }
            }
            match (&reply.next, &reply.next_refused) {
                (Some(next), None) => grant(store, session, next, Some(reply.head_version)),
                (None, Some(_)) => Ok(()),
                (None, None) => {
                    ensure!(meta.then != v1::Then::Continue as i32, "CONTINUE, and not a word of the next turn");
                    Ok(())
                }
                _ => Err("both a next turn and none".into()),
            }
        }
        Req::Abort(r) => {
            let reply = v1::AbortTurnResponse::decode(reply).expect("a reply decodes");
            let session = known()?;
            let token = LeaseToken::decode(&r.lease).expect("it was accepted");
            let aborted = |m: &&RecordMeta| m.ended_by() == EndedBy::Abort;
            let meta = made(store, session, &token).find(aborted).ok_or("I6: the abort is not durable")?;
            ensure!((reply.turn, reply.attempt) == (meta.turn, meta.attempt), "other numbers than stored");
            let status = v1::RecordStatus::try_from(reply.status).map_err(|e| e.to_string())?;
            ensure!(status != v1::RecordStatus::Committed, "an abort that committed");
            let aborted = status == v1::RecordStatus::Aborted;
            ensure!(reply.repeated || aborted || !r.r#final, "{status:?} of a final abort");
            // A finish that was due comes with the end of the turn, and its answer says so.
            let finished = session.facts.trajectories >= meta.trajectory;
            let may_be = reply.repeated || r.r#final || finished || session.state != OPEN;
            ensure!(!aborted || may_be, "{status:?} of an abort");
            Ok(())
        }
        Req::Interrupt(_) => {
            let reply = v1::InterruptSessionResponse::decode(reply).expect("a reply decodes");
            known()?;
            let running = reply.previous_activity == v1::Activity::Running as i32;
            ensure!(running == (reply.turn > 0), "turn {} of activity {}", reply.turn, reply.previous_activity);
            Ok(())
        }
        Req::Reward(r) => {
            let reply = v1::SetRewardResponse::decode(reply).expect("a reply decodes");
            let session = known()?;
            let id = TrajectoryId::decode(&reply.trajectory_id).map_err(|e| e.message)?;
            ensure!(id.session == session.row.uid && id.number >= 1, "the trajectory of another session");
            ensure!(
                !reply.finished || id.number as usize <= session.trajectories.len(),
                "I6: it is not durably finished"
            );
            ensure!(r.turn == 0 || reply.repeated || reply.turn == r.turn, "another turn was rewarded");
            // A later one may have come over it already.
            let of_turn = |seq: &u64| store.records.get(seq).is_some_and(|r| r.decoded.turn == reply.turn);
            ensure!(session.rewards.keys().any(of_turn), "I6: the reward is not durable");
            Ok(())
        }
        Req::Finish(_) => {
            let told = v1::FinishTrajectoryResponse::decode(reply).expect("a reply decodes");
            let session = known()?;
            let trajectory = told.trajectory.ok_or("no trajectory")?;
            let stored = session.trajectories.get(trajectory.number as usize - 1).ok_or("I6: it is not durable")?;
            let is = (stored.0.ready_seq, stored.0.first_turn, stored.0.turn_count);
            ensure!(is == (trajectory.ready_sequence, trajectory.first_turn, trajectory.turn_count), "not as stored");
            ensure!(
                told.repeated || session.trajectories.len() > start.trajectories,
                "it was finished before the call"
            );
            Ok(())
        }
        Req::Ack(r) => {
            let told = v1::AckTrajectoriesResponse::decode(reply).expect("a reply decodes");
            ensure!(told.results.len() == r.trajectory_ids.len(), "as many results as ids");
            for (id, result) in r.trajectory_ids.iter().zip(told.results) {
                let id = TrajectoryId::decode(id).ok();
                let found = id.and_then(|id| {
                    let session = store.sessions.get(&id.session).filter(|s| *s.row.tenant == *tenant)?;
                    session.trajectories.get(id.number as usize - 1)
                });
                match result.refusal.as_ref().map(|r| &*r.reason) {
                    None => ensure!(found.is_some_and(|f| f.1), "I6: {id:?} is not durably acknowledged"),
                    Some("INVALID_FIELD") => ensure!(id.is_none(), "it is the id of a trajectory"),
                    Some("TRAJECTORY_NOT_FOUND") => ensure!(found.is_none(), "it is there"),
                    Some("TREE_QUARANTINED") => {}
                    Some(other) => return Err(format!("{other} for an acknowledgement")),
                }
            }
            Ok(())
        }
        Req::Checkpoint(r) => {
            let told = v1::GetCheckpointResponse::decode(reply).expect("a reply decodes");
            let session = known()?;
            let fold = session.folds.get(told.head_version as usize).ok_or("I6: the version is not durable")?;
            let part = told.checkpoint.ok_or("no checkpoint")?;
            ensure!(told.last && part.length == fold.tokens.len() as u64 / 4, "I7: length {}", part.length);
            ensure!(fold.tokens[part.offset as usize * 4..] == part.token_ids, "I7: the checkpoint is not the fold");
            ensure!(r.from_offset.is_some() || part.state == fold.state, "I7: another state");
            Ok(())
        }
    }
}

/// A session as it was told: some durable version of it, not older than the call.
fn tells(store: &Store, session: &Session, told: &v1::Session, start: &Start) -> Check {
    let row = &session.row;
    let id = |uid: Option<Uid>| uid.map(|u| store.sessions[&u].row.session_id.to_string()).unwrap_or_default();
    ensure!(told.uid == row.uid.to_string() && told.path == row.path, "another uid or path");
    ensure!(told.parent_session_id == id(row.parent), "another parent");
    ensure!(told.root_session_id == id(Some(row.root)), "another root");
    let version = told.head_version;
    ensure!(version <= row.head_version, "I6: version {version} of {} is not durable", row.head_version);
    ensure!(version >= start.head_version, "version {version} is from before the call");
    let fold = &session.folds[version as usize];
    ensure!(told.turn_count == fold.turns, "I4: {} turns at version {version}", told.turn_count);
    ensure!(told.checkpoint_tokens == fold.tokens.len() as u64 / 4, "I7: {} tokens", told.checkpoint_tokens);
    let finished = told.trajectory as usize - 1;
    ensure!(finished <= session.trajectories.len(), "I6: trajectory {finished} is not durable");
    ensure!(finished >= start.trajectories, "trajectory {finished} is from before the call");
    ensure!([0, told.turn_count + 1].contains(&told.provisional_turn), "I8: provisional {}", told.provisional_turn);
    let came_back = session.reopens > start.reopens;
    if told.state != OPEN {
        if came_back {
            return Ok(());
        }
        ensure!(session.state != OPEN, "I6: closed, and durably open");
        return receipt(store, session, told.receipt.as_ref());
    }
    ensure!(!start.closed || came_back, "I13: an ended session is told as open");
    Ok(())
}

fn receipt(store: &Store, session: &Session, told: Option<&v1::CloseReceipt>) -> Check {
    let told = told.ok_or("no receipt")?;
    let is: &Receipt = session.receipt.as_ref().ok_or("I6: a receipt of what is open")?;
    let a = (told.reason, told.slots_released, told.children_closed, told.turn_count, told.provisionals_aborted);
    let b = (is.reason, is.slots_released, is.children_closed, is.turn_count, is.provisionals_aborted);
    ensure!(a == b, "I12: another receipt than the first: {b:?}");
    let below = |s: &&Session| {
        let mut at = s.row.parent;
        while let Some(uid) = at.filter(|u| *u != session.row.uid) {
            at = store.sessions[&uid].row.parent;
        }
        at.is_some() && s.receipt.as_ref().is_some_and(|r| r.close_seq == is.close_seq)
    };
    let tree = store.tree(session.row.root);
    let children = tree.filter(below).count();
    ensure!(children == told.children_closed as usize, "I12: {children} descendants were closed");
    ensure!(told.turn_count == session.row.head, "I12: the receipt tells of another head");
    Ok(())
}

fn grant(store: &Store, session: &Session, told: &v1::Grant, known: Option<u64>) -> Check {
    mail(store, session, told)?;
    let token = LeaseToken::decode(&told.lease).expect("a lease decodes");
    let row = &session.row;
    ensure!(token.uid == row.uid && token.fence == told.fence, "a lease of something else");
    ensure!(row.fence >= told.fence, "I6: grant {} is not durable, {} is", told.fence, row.fence);
    if let Some(grant) = session.grant.as_ref().filter(|_| row.fence == told.fence) {
        ensure!(grant.nonce == token.nonce, "I3: two grants of one fence");
        ensure!((grant.turn, grant.attempt) == (told.turn, told.attempt), "other numbers than stored");
    }
    let ended = session.state != OPEN || row.fence > told.fence || made(store, session, &token).next().is_some();
    ensure!(session.grant.is_some() || ended, "the grant was released before it was handed out");
    checkpoint(session, told, known)
}

/// I7: the checkpoint handed out completes what the client knows to the fold of the COMMITTED records.
fn checkpoint(session: &Session, told: &v1::Grant, known: Option<u64>) -> Check {
    let fold = session.folds.get(told.head_version as usize);
    let fold = fold.ok_or_else(|| format!("I6: version {} is not durable", told.head_version))?;
    ensure!(told.turn == fold.turns + 1, "turn {} after {} turns", told.turn, fold.turns);
    let (tokens, state) = (&fold.tokens, &fold.state);
    let Some(given) = &told.checkpoint else {
        ensure!(tokens.is_empty() && state.is_empty(), "I7: no checkpoint");
        return Ok(());
    };
    ensure!(given.length == tokens.len() as u64 / 4, "I7: length {}", given.length);
    let held = known.and_then(|v| session.folds.get(v as usize)).filter(|_| known <= Some(told.head_version));
    let mut whole = held.map(|fold| fold.tokens.clone()).unwrap_or_default();
    let rewound = known < Some(session.rewound) && told.head_version >= session.rewound;
    ensure!(!rewound || given.offset == 0, "I7: a delta over a rewind");
    ensure!(given.offset as usize * 4 <= whole.len(), "I7: the delta starts behind what the client holds");
    whole.truncate(given.offset as usize * 4);
    whole.extend_from_slice(&given.token_ids);
    ensure!(whole == *tokens, "I7: the checkpoint is not the fold of the records");
    ensure!(known == Some(told.head_version) || given.state == *state, "I7: another state");
    Ok(())
}

/// What a grant brings of mail is durably its own, in order, and was sent as it is told (I15).
fn mail(store: &Store, session: &Session, grant: &v1::Grant) -> Check {
    let mut last = 0;
    for told in &grant.mail {
        let letter = store.mail.values().find(|l| l.row.id.to_string() == told.message_id);
        let letter = letter.ok_or_else(|| format!("I6: the message {} is not durable", told.message_id))?;
        ensure!(letter.row.seq > last, "I15: mail out of order");
        last = letter.row.seq;
        let content = letter.row.content.clone().unwrap_or_default();
        ensure!(letter.row.recipient == session.row.uid && told.content == content, "I15: another message");
        ensure!(letter.now.fence >= grant.fence, "I15: {} was taken by {}", told.message_id, letter.now.fence);
    }
    Ok(())
}
