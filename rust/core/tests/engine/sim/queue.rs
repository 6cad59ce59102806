//! Who goes next: priority, then arrival; a kept place is passed over, and is its repeat's again.

use super::request::{Req, TENANTS};
use super::verify::Start;
use super::world::{OpenCall, World};
use prost::Message;
use roost_core::engine::{Caller, Outcome};
use roost_core::error::Refusal;
use roost_core::proto::v1;
use std::collections::BTreeMap;

type Answers = Vec<(usize, OpenCall, Result<Vec<u8>, Refusal>)>;

impl World {
    fn ask(&mut self, n: usize, req: Req, calls: &mut BTreeMap<u64, (usize, OpenCall)>) -> (Option<u64>, Answers) {
        let (method, bytes) = req.encode();
        let (now, start) = (self.now(), Start::of(&self.store, 0, &req));
        let call = OpenCall { tenant: 0, req, start };
        let (mut ticket, mut answers) = (None, Vec::new());
        match self.engine.call(method, &bytes, &Caller::of(TENANTS[0]), 1, now) {
            Outcome::Ticket(t) => {
                ticket = Some(t);
                calls.insert(t, (n, call));
            }
            Outcome::Reply(reply) => answers.push((n, call, Ok(reply))),
            Outcome::Refused(refusal) => answers.push((n, call, Err(refusal))),
        }
        self.settle(calls, &mut answers).expect("it settles");
        (ticket, answers)
    }

    /// Many sessions wait for one slot; some callers leave, some come back. Returns the order in which they got it and
    /// the one in which they should have.
    pub(crate) fn queue_order(&mut self, waiters: usize) -> (Vec<usize>, Vec<usize>) {
        let mut calls = BTreeMap::new();
        let begin = |n: usize, priority, request_id: &str| {
            Req::Begin(v1::BeginTurnRequest {
                session_id: format!("q{n}"),
                request_id: request_id.to_owned(),
                open: Some(v1::OpenOptions::default()),
                wait: Some(prost_types::Duration { seconds: 200, nanos: 0 }),
                priority,
                ..Default::default()
            })
        };
        let (_, mut granted) = self.ask(waiters, begin(waiters, 0, ""), &mut calls);
        let mut should = Vec::new();
        let mut kept = Vec::new();
        for n in 0..waiters {
            let priority = self.rng.below(3) as i32;
            let request_id = if self.rng.chance(60) { format!("r{n}") } else { String::new() };
            let (ticket, answers) = self.ask(n, begin(n, priority, &request_id), &mut calls);
            assert!(answers.is_empty(), "it waits");
            let leaves = self.rng.chance(40);
            if leaves {
                let ticket = ticket.expect("it waits");
                calls.remove(&ticket);
                let now = self.now();
                self.engine.cancel(ticket, now);
            }
            let back = leaves && !request_id.is_empty() && self.rng.chance(60);
            if back {
                kept.push((n, priority, request_id));
            }
            if !leaves || back {
                should.push((-priority, n));
            }
        }
        for (n, priority, request_id) in kept {
            // In another order than they came would do as well: the place is the old one.
            self.ask(n, begin(n, priority, &request_id), &mut calls);
        }
        let mut order = Vec::new();
        while let Some((n, call, result)) = granted.pop() {
            if n < waiters {
                order.push(n);
            }
            let reply = v1::BeginTurnResponse::decode(&result.expect("it is granted")[..]).expect("a reply decodes");
            let lease = reply.grant.expect("a grant").lease;
            let session_id = call.req.session_id().to_owned();
            let abort = Req::Abort(v1::AbortTurnRequest { session_id, lease, ..Default::default() });
            let (_, answers) = self.ask(usize::MAX, abort, &mut calls);
            granted.extend(answers.into_iter().filter(|(n, ..)| *n != usize::MAX));
            assert!(granted.len() <= 1, "I2: one slot");
        }
        should.sort_unstable();
        (order, should.into_iter().map(|(_, n)| n).collect())
    }
}
