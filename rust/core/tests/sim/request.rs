//! Requests as the clients of a simulation make them, and what those clients remember.

use super::rng::Rng;
use prost::Message;
use roost_core::engine::Method;
use roost_core::proto::v1;
use std::collections::{HashMap, VecDeque};

#[derive(Clone, Debug)]
pub(crate) enum Req {
    Open(v1::OpenSessionRequest),
    Get(v1::GetSessionRequest),
    Update(v1::UpdateSessionRequest),
    Close(v1::CloseSessionRequest),
    Begin(v1::BeginTurnRequest),
    Renew(v1::RenewTurnsRequest),
    Commit(v1::CommitTurnRequest),
    Abort(v1::AbortTurnRequest),
}

impl Req {
    pub(crate) fn encode(&self) -> (Method, Vec<u8>) {
        match self {
            Req::Open(r) => (Method::OpenSession, r.encode_to_vec()),
            Req::Get(r) => (Method::GetSession, r.encode_to_vec()),
            Req::Update(r) => (Method::UpdateSession, r.encode_to_vec()),
            Req::Close(r) => (Method::CloseSession, r.encode_to_vec()),
            Req::Begin(r) => (Method::BeginTurn, r.encode_to_vec()),
            Req::Renew(r) => (Method::RenewTurns, r.encode_to_vec()),
            Req::Commit(r) => (Method::CommitTurn, r.encode_to_vec()),
            Req::Abort(r) => (Method::AbortTurn, r.encode_to_vec()),
        }
    }

    pub(crate) fn session_id(&self) -> &str {
        match self {
            Req::Open(r) => &r.session_id,
            Req::Get(r) => &r.session_id,
            Req::Update(r) => &r.session_id,
            Req::Close(r) => &r.session_id,
            Req::Begin(r) => &r.session_id,
            Req::Renew(_) => "",
            Req::Commit(r) => &r.session_id,
            Req::Abort(r) => &r.session_id,
        }
    }
}

/// A grant as a client got it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) tenant: usize,
    pub(crate) session_id: String,
    pub(crate) lease: Vec<u8>,
    /// Length of the checkpoint it starts from.
    pub(crate) length: u64,
}

/// What the clients remember: grants, and requests to repeat.
#[derive(Default)]
pub(crate) struct Clients {
    pub(crate) grants: VecDeque<Held>,
    sent: VecDeque<(usize, Req)>,
    /// The newest of the ids in use; older ones go out of use.
    ids: usize,
    requests: u64,
    /// Checkpoint length of each session as last seen.
    pub(crate) lengths: HashMap<(usize, String), u64>,
}

pub(crate) const TENANTS: [&str; 2] = ["a", "b"];

fn seconds(s: usize) -> prost_types::Duration {
    prost_types::Duration { seconds: s as i64, nanos: 0 }
}

impl Clients {
    pub(crate) fn remember(&mut self, grant: Held) {
        self.lengths.insert((grant.tenant, grant.session_id.clone()), grant.length);
        self.grants.push_front(grant);
        self.grants.truncate(40);
    }

    /// A session id: mostly one of few, so that calls meet.
    fn id(&mut self, rng: &mut Rng) -> String {
        const IN_USE: usize = 12;
        if rng.chance(2) {
            self.ids += 1;
        }
        if rng.chance(2) {
            return format!("s{}", rng.below(self.ids + IN_USE));
        }
        format!("s{}", self.ids + rng.below(IN_USE))
    }

    fn request_id(&mut self, rng: &mut Rng) -> String {
        if rng.chance(40) {
            return String::new();
        }
        // Few enough that one is now and then used for something else.
        if rng.chance(1) {
            return format!("r{}", rng.below(self.requests as usize + 1));
        }
        self.requests += 1;
        format!("r{}", self.requests)
    }

    fn options(&mut self, rng: &mut Rng) -> v1::OpenOptions {
        let child = rng.chance(60);
        let parent_session_id = if child { self.id(rng) } else { String::new() };
        let name = if child && rng.chance(30) { format!("n{}", rng.below(3)) } else { String::new() };
        let labels = if rng.chance(20) { [("l".to_owned(), rng.below(3).to_string())].into() } else { [].into() };
        v1::OpenOptions { parent_session_id, name, labels, stale_timeout: None }
    }

    fn record(&mut self, rng: &mut Rng, length: u64) -> v1::RecordInput {
        let tokens = rng.chance(70).then(|| {
            let count = rng.below(6);
            let back = if rng.chance(15) { rng.below(12) as u64 } else { 0 };
            let offset = if rng.chance(3) { length + 1 } else { length.saturating_sub(back) };
            // Contexts stay short: the store model keeps every version.
            let offset = if length > 60 { 0 } else { offset };
            let ids = (0..count).flat_map(|_| (rng.next() as u32).to_le_bytes()).collect();
            v1::TokenSpan { offset, token_ids: ids, ..Default::default() }
        });
        let content = rng.next().to_le_bytes()[..rng.below(9)].to_vec();
        v1::RecordInput { content, tokens, ..Default::default() }
    }

    /// The next request of some client, with its tenant.
    pub(crate) fn make(&mut self, rng: &mut Rng) -> (usize, Req) {
        if rng.chance(8) && !self.sent.is_empty() {
            return self.sent[rng.below(self.sent.len())].clone();
        }
        let tenant = usize::from(rng.chance(25));
        let id = self.id(rng);
        let request_id = self.request_id(rng);
        let made = match rng.below(100) {
            0..12 => Req::Open(v1::OpenSessionRequest {
                session_id: if request_id.is_empty() || rng.chance(95) { id } else { String::new() },
                request_id,
                options: Some(self.options(rng)),
                if_exists: if rng.chance(40) { v1::IfExists::Return as i32 } else { 0 },
                validate_only: rng.chance(6),
            }),
            12..44 => {
                let head = rng.below(4) as u32;
                Req::Begin(v1::BeginTurnRequest {
                    session_id: id,
                    request_id,
                    open: rng.chance(80).then(|| self.options(rng)),
                    wait: rng.chance(60).then(|| seconds(rng.below(40))),
                    expected_turn: rng.chance(5).then_some(head + 1),
                    expected_head_version: rng.chance(5).then_some(u64::from(head)),
                    known_head_version: rng.chance(40).then_some(u64::from(head)),
                    lease_duration: Some(seconds(5 + rng.below(15))),
                    owner: if rng.chance(20) { "host".into() } else { String::new() },
                    priority: if rng.chance(20) { rng.below(5) as i32 - 2 } else { 0 },
                    validate_only: rng.chance(4),
                })
            }
            44..50 => {
                let count = rng.below(5);
                let renewals = (0..count).filter_map(|_| self.lease(rng)).map(|h| v1::Renewal {
                    session_id: h.session_id,
                    lease: h.lease,
                    tokens: 0,
                });
                Req::Renew(v1::RenewTurnsRequest { renewals: renewals.collect() })
            }
            50..74 => {
                let Some(held) = self.lease(rng) else {
                    return (tenant, Req::Get(v1::GetSessionRequest { session_id: id }));
                };
                let (then, max_trim) = (rng.below(8) as i32, if rng.chance(30) { 12 } else { 0 });
                let made = Req::Commit(v1::CommitTurnRequest {
                    record: Some(self.record(rng, held.length)),
                    session_id: held.session_id,
                    lease: held.lease,
                    request_id,
                    state: rng.chance(20).then(|| rng.next().to_le_bytes()[..rng.below(9)].to_vec()),
                    max_trim,
                    new_segment: held.length > 60 || rng.chance(10),
                    // Mostly IDLE.
                    then: if then > 3 {
                        1
                    } else if then == 3 && rng.chance(70) {
                        2
                    } else {
                        then
                    },
                    completed: rng.chance(10),
                });
                return self.keep(rng, held.tenant, made);
            }
            74..83 => {
                let Some(held) = self.lease(rng) else {
                    return (tenant, Req::Get(v1::GetSessionRequest { session_id: id }));
                };
                let made = Req::Abort(v1::AbortTurnRequest {
                    record: Some(self.record(rng, held.length)),
                    session_id: held.session_id,
                    lease: held.lease,
                    request_id,
                });
                return self.keep(rng, held.tenant, made);
            }
            83..87 => {
                let reason = if rng.chance(80) { rng.below(2) as i32 } else { 4 + rng.below(6) as i32 };
                Req::Close(v1::CloseSessionRequest { session_id: id, request_id, reason })
            }
            87..92 => {
                let labels = [("l".to_owned(), ["", "x", "y"][rng.below(3)].to_owned())].into();
                Req::Update(v1::UpdateSessionRequest { session_id: id, request_id, labels, stale_timeout: None })
            }
            _ => Req::Get(v1::GetSessionRequest { session_id: id }),
        };
        self.keep(rng, tenant, made)
    }

    fn keep(&mut self, rng: &mut Rng, tenant: usize, made: Req) -> (usize, Req) {
        if rng.chance(50) {
            self.sent.push_front((tenant, made.clone()));
            self.sent.truncate(30);
        }
        (tenant, made)
    }

    /// A lease: mostly a recent one, now and then forged or another session's.
    fn lease(&mut self, rng: &mut Rng) -> Option<Held> {
        let recent = if rng.chance(80) { self.grants.len().min(6) } else { self.grants.len() };
        let mut held = self.grants.get(rng.below(recent))?.clone();
        held.length = *self.lengths.get(&(held.tenant, held.session_id.clone())).unwrap_or(&held.length);
        match rng.below(60) {
            0 => held.session_id = self.id(rng),
            1 => *held.lease.last_mut()? ^= 1,
            2 => held.lease[23] = held.lease[23].wrapping_add(1),
            3 => held.tenant ^= 1,
            _ => {}
        }
        Some(held)
    }
}
