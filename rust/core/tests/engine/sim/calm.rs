//! I11: the same calls with one, seven and any number of sessions in memory get the same answers. Each call is settled
//! before the next, so that only residency differs; what reports it, and what is random, is masked.

use super::request::{Req, TENANTS};
use super::world::{OpenCall, World};
use prost::Message;
use roost_core::engine::{Appended, Caller, Outcome};
use roost_core::error::Refusal;
use roost_core::ids::LeaseToken;
use roost_core::proto::v1;
use std::collections::BTreeMap;

impl World {
    /// One call and all that follows from it; the answers, by the number of their call.
    pub(crate) fn calm_step(&mut self, calls: &mut BTreeMap<u64, (usize, OpenCall)>) -> Result<Vec<String>, String> {
        self.step += 1;
        self.entropy = Some(self.rng.bytes32());
        let (kind, ms) = (self.rng.below(10), self.rng.below(3_000) as u64);
        let mut answers = Vec::new();
        match kind {
            0 => {
                self.pass(ms);
                let now = self.now();
                self.engine.tick(now);
            }
            1 if !calls.is_empty() => {
                let at = self.rng.below(calls.len());
                let ticket = *calls.keys().nth(at).expect("there are that many");
                let (_, call) = calls.remove(&ticket).expect("it is open");
                self.ledger.gave_up(&call);
                let now = self.now();
                self.engine.cancel(ticket, now);
            }
            _ => {
                let mut call = self.next_call();
                if let Req::Begin(begin) = &mut call.req {
                    // Who of two waiters goes first depends on whose session must be loaded: a slot is not held for it.
                    begin.wait = None;
                }
                if let Req::Attach(attach) = &mut call.req {
                    // A place is free when its last holder is gone: that takes steps which this test does not make.
                    attach.wait = Some(prost_types::Duration::default());
                }
                let (method, bytes) = call.req.encode();
                let now = self.now();
                match self.engine.call(method, &bytes, &Caller::of(TENANTS[call.tenant]), 1, now) {
                    Outcome::Ticket(ticket) => drop(calls.insert(ticket, (self.step, call))),
                    Outcome::Reply(reply) => answers.push((self.step, call, Ok(reply))),
                    Outcome::Refused(refusal) => answers.push((self.step, call, Err(refusal))),
                }
            }
        }
        self.settle(calls, &mut answers)?;
        answers.sort_by_key(|(n, ..)| *n);
        let mut told = Vec::new();
        for (n, call, result) in answers {
            let (method, _) = call.req.encode();
            told.push(format!("call {n} {method:?} {}: {}", call.req.session_id(), masked(&call.req, &result)));
            self.calmly_answered(&call, result)?;
        }
        self.engine.check(self.step.is_multiple_of(100))?;
        Ok(told)
    }

    /// Stores and reads until there is nothing left to do.
    pub(crate) fn settle(
        &mut self,
        calls: &mut BTreeMap<u64, (usize, OpenCall)>,
        answers: &mut Vec<(usize, OpenCall, Result<Vec<u8>, Refusal>)>,
    ) -> Result<(), String> {
        for _ in 0..1_000 {
            for (ticket, result) in self.engine.completed() {
                let (n, call) = calls.remove(&ticket).ok_or("a ticket ends unasked")?;
                answers.push((n, call, result));
            }
            let now = self.now();
            if let Some(batch) = self.engine.take_batch() {
                self.store.apply(&batch)?;
                self.engine.appended(&Appended::Stored { quarantine: Vec::new() }, now);
                continue;
            }
            let effects = self.engine.effects();
            if effects.is_empty() {
                return Ok(());
            }
            for effect in effects {
                let now = self.now();
                self.store.answer(effect)(&self.engine, now);
            }
        }
        Err("it does not settle".into())
    }
}

fn grant(grant: &mut v1::Grant) {
    grant.mail.iter_mut().for_each(|m| m.message_id.clear());
    if let Ok(token) = LeaseToken::decode(&grant.lease) {
        grant.lease = token.fence.to_be_bytes().to_vec();
    }
}

fn session(session: &mut Option<v1::Session>) {
    if let Some(session) = session {
        session.uid = String::new();
        session.residency = 0;
        session.receipt.iter_mut().for_each(|r| r.dump_name.clear());
    }
}

/// An answer without what is random or reports residency.
fn masked(req: &Req, result: &Result<Vec<u8>, Refusal>) -> String {
    let reply = match result {
        Err(refusal) => return format!("{} {:?}", refusal.reason.name(), refusal.metadata),
        Ok(reply) => &reply[..],
    };
    match req {
        Req::Open(_) => {
            let mut reply = v1::OpenSessionResponse::decode(reply).expect("a reply decodes");
            session(&mut reply.session);
            format!("{reply:?}")
        }
        Req::Get(_) => {
            let mut reply = v1::GetSessionResponse::decode(reply).expect("a reply decodes");
            session(&mut reply.session);
            format!("{reply:?}")
        }
        Req::Update(_) => {
            let mut reply = v1::UpdateSessionResponse::decode(reply).expect("a reply decodes");
            session(&mut reply.session);
            format!("{reply:?}")
        }
        Req::Close(_) => {
            let mut reply = v1::CloseSessionResponse::decode(reply).expect("a reply decodes");
            reply.receipt.iter_mut().for_each(|r| r.dump_name.clear());
            format!("{reply:?}")
        }
        Req::Reopen(_) => {
            let mut reply = v1::ReopenSessionResponse::decode(reply).expect("a reply decodes");
            session(&mut reply.session);
            format!("{reply:?}")
        }
        // The name bears the uid.
        Req::Attach(_) => {
            let reply = v1::AttachResourceResponse::decode(reply).expect("a reply decodes");
            format!("{} {} {:?}", reply.state, reply.created, reply.name.rsplit('-').next())
        }
        Req::Detach(_) => format!("{:?}", v1::DetachResourceResponse::decode(reply).expect("a reply decodes")),
        Req::Begin(_) => {
            let mut reply = v1::BeginTurnResponse::decode(reply).expect("a reply decodes");
            reply.uid.clear();
            reply.grant.iter_mut().for_each(grant);
            format!("{reply:?}")
        }
        Req::Renew(_) => {
            let reply = v1::RenewTurnsResponse::decode(reply).expect("a reply decodes");
            let results = reply.results.iter();
            let told: Vec<_> = results.map(|r| (r.refusal.as_ref().map(|r| &r.reason), &r.expire_time)).collect();
            format!("{told:?}")
        }
        Req::Commit(_) => {
            let mut reply = v1::CommitTurnResponse::decode(reply).expect("a reply decodes");
            reply.next.iter_mut().for_each(grant);
            format!("{reply:?}")
        }
        Req::Abort(_) => format!("{:?}", v1::AbortTurnResponse::decode(reply)),
        Req::Interrupt(_) => format!("{:?}", v1::InterruptSessionResponse::decode(reply)),
        Req::Reward(_) => {
            let mut reply = v1::SetRewardResponse::decode(reply).expect("a reply decodes");
            reply.trajectory_id.clear();
            format!("{reply:?}")
        }
        Req::Finish(_) => {
            let mut reply = v1::FinishTrajectoryResponse::decode(reply).expect("a reply decodes");
            reply.trajectory.iter_mut().for_each(|t| (t.trajectory_id, t.ready_sequence) = (String::new(), 0));
            format!("{reply:?}")
        }
        Req::Ack(_) => format!("{:?}", v1::AckTrajectoriesResponse::decode(reply)),
        Req::Send(_) => {
            format!("{}", v1::SendMessageResponse::decode(reply).expect("a reply decodes").repeated)
        }
        // The cursor is a sequence of the journal, of which a session that must be read again may take one more.
        Req::WaitMail(_) => {
            let reply = v1::WaitMailResponse::decode(reply).expect("a reply decodes");
            format!("{} {} {}", reply.queued, reply.runnable, reply.cursor > 0)
        }
        Req::Poll(_) => {
            let mut reply = v1::PollTurnResponse::decode(reply).expect("a reply decodes");
            reply.uid.clear();
            reply.grant.iter_mut().for_each(grant);
            format!("{reply:?}")
        }
        Req::Checkpoint(_) => format!("{:?}", v1::GetCheckpointResponse::decode(reply)),
    }
}
