//! Requests as the clients of a simulation make them, and what those clients remember.

use super::rng::Rng;
use super::store::{POOL_CAP, POOL_KEY_CAP};
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
    Interrupt(v1::InterruptSessionRequest),
    Reward(v1::SetRewardRequest),
    Finish(v1::FinishTrajectoryRequest),
    Ack(v1::AckTrajectoriesRequest),
    Checkpoint(v1::GetCheckpointRequest),
    Reopen(v1::ReopenSessionRequest),
    Attach(v1::AttachResourceRequest),
    Detach(v1::DetachResourceRequest),
    Send(v1::SendMessageRequest),
    WaitMail(v1::WaitMailRequest),
    Poll(v1::PollTurnRequest),
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
            Req::Interrupt(r) => (Method::InterruptSession, r.encode_to_vec()),
            Req::Reward(r) => (Method::SetReward, r.encode_to_vec()),
            Req::Finish(r) => (Method::FinishTrajectory, r.encode_to_vec()),
            Req::Ack(r) => (Method::AckTrajectories, r.encode_to_vec()),
            Req::Checkpoint(r) => (Method::GetCheckpoint, r.encode_to_vec()),
            Req::Reopen(r) => (Method::ReopenSession, r.encode_to_vec()),
            Req::Attach(r) => (Method::AttachResource, r.encode_to_vec()),
            Req::Detach(r) => (Method::DetachResource, r.encode_to_vec()),
            Req::Send(r) => (Method::SendMessage, r.encode_to_vec()),
            Req::WaitMail(r) => (Method::WaitMail, r.encode_to_vec()),
            Req::Poll(r) => (Method::PollTurn, r.encode_to_vec()),
        }
    }

    pub(crate) fn session_id(&self) -> &str {
        match self {
            Req::Open(r) => &r.session_id,
            Req::Get(r) => &r.session_id,
            Req::Update(r) => &r.session_id,
            Req::Close(r) => &r.session_id,
            Req::Begin(r) => &r.session_id,
            Req::Renew(_) | Req::Ack(_) | Req::Poll(_) => "",
            Req::Commit(r) => &r.session_id,
            Req::Abort(r) => &r.session_id,
            Req::Interrupt(r) => &r.session_id,
            Req::Reward(r) => &r.session_id,
            Req::Finish(r) => &r.session_id,
            Req::Checkpoint(r) => &r.session_id,
            Req::Reopen(r) => &r.session_id,
            Req::Attach(r) => &r.session_id,
            Req::Detach(r) => &r.session_id,
            Req::Send(r) => &r.session_id,
            Req::WaitMail(r) => &r.session_id,
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
    pub(crate) turn: u32,
}

/// What the clients remember: grants, and requests to repeat.
#[derive(Default)]
pub(crate) struct Clients {
    pub(crate) grants: VecDeque<Held>,
    sent: VecDeque<(usize, Req)>,
    /// The newest of the ids in use; older ones go out of use.
    ids: usize,
    /// Sessions live long: ids go out of use slowly, and hardly one is closed.
    long_lives: bool,
    requests: u64,
    /// Ids that were made up for forks.
    forks: u64,
    /// Checkpoint length of each session as last seen.
    pub(crate) lengths: HashMap<(usize, String), u64>,
    /// Of the latest WaitMail.
    cursor: u64,
    /// Trajectories that were finished, with their tenants.
    pub(crate) finished: VecDeque<(usize, String)>,
    /// Resources that were attached: tenant, session, name.
    attached: VecDeque<(usize, String, String)>,
}

pub(crate) const TENANTS: [&str; 2] = ["a", "b"];

fn seconds(s: usize) -> prost_types::Duration {
    prost_types::Duration { seconds: s as i64, nanos: 0 }
}

impl Clients {
    pub(crate) fn new(long_lives: bool) -> Self {
        Clients { long_lives, ..Clients::default() }
    }

    pub(crate) fn remember(&mut self, grant: Held) {
        self.lengths.insert((grant.tenant, grant.session_id.clone()), grant.length);
        self.grants.push_front(grant);
        self.grants.truncate(40);
    }

    /// What answers tell beside grants.
    pub(crate) fn learn(&mut self, tenant: usize, req: &Req, reply: &[u8]) {
        if let Req::Finish(_) = req {
            let reply = v1::FinishTrajectoryResponse::decode(reply).expect("a reply decodes");
            self.finished.push_front((tenant, reply.trajectory.unwrap_or_default().trajectory_id));
            self.finished.truncate(20);
        }
        if let Req::WaitMail(_) = req {
            self.cursor = v1::WaitMailResponse::decode(reply).expect("a reply decodes").cursor;
        }
        if let Req::Attach(r) = req {
            let reply = v1::AttachResourceResponse::decode(reply).expect("a reply decodes");
            self.attached.push_front((tenant, r.session_id.clone(), reply.name));
            self.attached.truncate(20);
        }
    }

    /// A session id: mostly one of few, so that calls meet.
    fn id(&mut self, rng: &mut Rng) -> String {
        const IN_USE: usize = 12;
        if rng.below(1_000) < if self.long_lives { 2 } else { 20 } {
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
        // Some are stale before long.
        let stale_timeout = rng.chance(30).then(|| seconds(rng.below(60)));
        let wake_on_completion = rng.chance(40);
        v1::OpenOptions { parent_session_id, name, labels, stale_timeout, wake_on_completion }
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
        let mut tenant = usize::from(rng.chance(25));
        let mut id = self.id(rng);
        let request_id = self.request_id(rng);
        let kind = rng.below(174);
        if kind >= 100
            && rng.chance(70)
            && let Some(held) = self.grants.get(rng.below(self.grants.len().clamp(1, 6)))
        {
            // Mostly of a session that has turns.
            (tenant, id) = (held.tenant, held.session_id.clone());
        }
        let made = match kind {
            0..12 | 166..174 => {
                let fork_from = (kind >= 166).then(|| self.source(rng, &mut tenant));
                if fork_from.is_some() && rng.chance(80) {
                    // Of an id that nobody has, so that it is made.
                    self.forks += 1;
                    id = format!("f{}", self.forks);
                }
                Req::Open(v1::OpenSessionRequest {
                    session_id: if request_id.is_empty() || rng.chance(95) { id } else { String::new() },
                    request_id,
                    options: Some(self.options(rng)),
                    if_exists: if rng.chance(40) { v1::IfExists::Return as i32 } else { 0 },
                    validate_only: rng.chance(6),
                    mint_key: false,
                    first_message: rng.chance(30).then(|| letter(rng)),
                    fork_from,
                })
            }
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
                    if_running: if rng.chance(12) { v1::IfRunning::Takeover as i32 } else { 0 },
                    want_provisional: rng.chance(30),
                    session_final: false,
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
                let then = if self.long_lives {
                    rng.below(3) as i32 + 5 * i32::from(rng.chance(50))
                } else {
                    rng.below(8) as i32
                };
                let max_trim = if rng.chance(30) { 12 } else { 0 };
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
                    completion: rng
                        .chance(10)
                        .then(|| v1::MessageInput { content: b"done".to_vec(), ..Default::default() }),
                    base_turn: rng
                        .chance(if self.long_lives { 40 } else { 20 })
                        .then(|| held.turn.saturating_sub(1 + rng.below(4) as u32)),
                    timings: [("engine".to_owned(), 1.5)].into(),
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
                    r#final: rng.chance(20),
                    timings: [].into(),
                });
                return self.keep(rng, held.tenant, made);
            }
            83..87 => {
                let ends = if self.long_lives { 5 } else { 80 };
                let reason = if rng.chance(ends) { rng.below(2) as i32 } else { 6 + rng.below(4) as i32 };
                Req::Close(v1::CloseSessionRequest { session_id: id, request_id, reason })
            }
            87..92 => {
                let labels = [("l".to_owned(), ["", "x", "y"][rng.below(3)].to_owned())].into();
                let stale_timeout = rng.chance(20).then(|| seconds(rng.below(60)));
                Req::Update(v1::UpdateSessionRequest { session_id: id, request_id, labels, stale_timeout })
            }
            100..104 => {
                Req::Interrupt(v1::InterruptSessionRequest { session_id: id, request_id, force: rng.chance(30) })
            }
            104..108 => Req::Reward(v1::SetRewardRequest {
                session_id: id,
                request_id,
                turn: if rng.chance(50) { 0 } else { rng.below(5) as u32 },
                reward: rng.below(3) as f64,
                finish_after: rng.chance(40).then(|| seconds([0, 0, 3, 20][rng.below(4)])),
            }),
            108..112 => {
                let reward = rng.chance(40).then(|| rng.below(3) as f64);
                Req::Finish(v1::FinishTrajectoryRequest { session_id: id, request_id, reward })
            }
            112..115 => {
                let mut trajectory_ids = Vec::new();
                for _ in 0..rng.below(4) {
                    // Now and then one of the other tenant's.
                    let known = self.finished.get(rng.below(self.finished.len().max(1)));
                    let known = known.filter(|(of, _)| *of == tenant || rng.chance(10)).map(|(_, id)| id.clone());
                    trajectory_ids.push(known.filter(|_| rng.chance(90)).unwrap_or_else(|| "x-1".into()));
                }
                return (tenant, Req::Ack(v1::AckTrajectoriesRequest { trajectory_ids }));
            }
            115..118 => {
                let Some(held) = self.lease(rng) else {
                    return (tenant, Req::Get(v1::GetSessionRequest { session_id: id }));
                };
                let known_head_version = rng.chance(40).then(|| rng.below(4) as u64);
                let from_offset = rng.chance(20).then(|| rng.below(8) as u64);
                return (
                    held.tenant,
                    Req::Checkpoint(v1::GetCheckpointRequest {
                        session_id: held.session_id,
                        lease: held.lease,
                        known_head_version,
                        from_offset,
                    }),
                );
            }
            118..122 => Req::Reopen(v1::ReopenSessionRequest { session_id: id, request_id }),
            136..154 => {
                let sender_session_id = if rng.chance(40) { self.id(rng) } else { String::new() };
                let message = Some(letter(rng));
                Req::Send(v1::SendMessageRequest { session_id: id, request_id, message, sender_session_id })
            }
            154..158 => {
                let (wait, after) = (Some(seconds(rng.below(20))), if rng.chance(50) { 0 } else { self.cursor });
                return (tenant, Req::WaitMail(v1::WaitMailRequest { session_id: id, wait, after }));
            }
            158..166 => Req::Poll(v1::PollTurnRequest {
                request_id,
                owner: "host".into(),
                wait: rng.chance(70).then(|| seconds(rng.below(10))),
                lease_duration: Some(seconds(5 + rng.below(15))),
                root_session_id: if rng.chance(20) { id } else { String::new() },
                want_provisional: rng.chance(30),
            }),
            122..130 => Req::Attach(self.attach(rng, id, request_id)),
            130..136 => {
                let known = self.attached.get(rng.below(self.attached.len().max(1))).cloned();
                let Some((of, session_id, name)) = known.filter(|(of, ..)| *of == tenant || rng.chance(20)) else {
                    return (tenant, Req::Get(v1::GetSessionRequest { session_id: id }));
                };
                let session_id = if rng.chance(5) { id } else { session_id };
                let made = if rng.chance(40) {
                    let handle = if rng.chance(50) { "h".into() } else { String::new() };
                    Req::Attach(v1::AttachResourceRequest { session_id, name, handle, ..Default::default() })
                } else {
                    Req::Detach(v1::DetachResourceRequest { session_id, name })
                };
                return (if rng.chance(95) { of } else { tenant }, made);
            }
            _ => Req::Get(v1::GetSessionRequest { session_id: id }),
        };
        self.keep(rng, tenant, made)
    }

    /// What a session is forked from: mostly one that has turns, also if it ended long ago.
    fn source(&mut self, rng: &mut Rng, tenant: &mut usize) -> v1::ForkFrom {
        let turn = if rng.chance(60) { 0 } else { 1 + rng.below(3) as u32 };
        let held = self.grants.get(rng.below(self.grants.len().max(1))).filter(|_| rng.chance(85));
        let Some(held) = held else { return v1::ForkFrom { session_id: self.id(rng), turn } };
        *tenant = held.tenant;
        v1::ForkFrom { session_id: held.session_id.clone(), turn }
    }

    fn attach(&mut self, rng: &mut Rng, session_id: String, request_id: String) -> v1::AttachResourceRequest {
        // Caps are those of the call: they are the same in all, so that the store can tell.
        let pool = rng.chance(70).then(|| v1::Pool {
            name: "p".into(),
            key: format!("k{}", rng.below(3)),
            max_resources: Some(POOL_CAP),
            max_resources_per_key: Some(POOL_KEY_CAP),
            idle_ttl: rng.chance(40).then(|| seconds(1 + rng.below(30))),
        });
        v1::AttachResourceRequest {
            session_id,
            request_id,
            kind: 1 + rng.below(4) as i32,
            owner: "host".into(),
            handle: if rng.chance(30) { "h".into() } else { String::new() },
            pool,
            wait: Some(seconds(if rng.chance(60) { rng.below(40) } else { 0 })),
            ..Default::default()
        }
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

/// Something to send.
fn letter(rng: &mut Rng) -> v1::MessageInput {
    v1::MessageInput {
        content: rng.next().to_le_bytes()[..=rng.below(8)].to_vec(),
        trigger: rng.chance(40),
        ttl: rng.chance(15).then(|| seconds(1 + rng.below(60))),
        ..Default::default()
    }
}
