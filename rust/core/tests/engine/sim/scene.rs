//! An engine, a store in memory, and who carries between them one step at a time: for tests in which the order must be
//! exact.

use super::rng::Rng;
use super::store::Store;
use prost::Message;
use roost_core::engine::{
    Appended, Caller, CleanupStep, Effect, Engine, Keys, LimitSetup, Method, Moment, Outcome, ReleaseStep,
};
use roost_core::error::{Reason, Refusal};
use roost_core::ids::Uid;
use roost_core::keys::Maker;
use roost_core::limits::Limits;
use roost_core::proto::v1;
use std::collections::{BTreeMap, HashMap, HashSet};

pub(crate) type Ended = Result<Vec<u8>, Refusal>;

pub(crate) const TENANT: &str = "t";

/// An engine, its store, and who carries between them, one step at a time.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) limits: Limits,
    pub(crate) moments: u64,
    pub(crate) done: HashMap<u64, Ended>,
    /// Sessions that cannot be read.
    pub(crate) unreadable: HashSet<String>,
    /// Sessions read so far.
    pub(crate) loads: usize,
    /// Milliseconds by which its clocks are ahead of the moments that were asked for.
    pub(crate) ahead: u64,
    dumps: bool,
    epoch: u64,
}

impl World {
    pub(crate) fn new(limits: Limits) -> Self {
        let mut store = Store::default();
        (store.tenant_cap, store.tree_cap, store.max_rewind) = (1_000, 8, 8);
        store.max_fork_bytes = limits.max_fork_bytes;
        let engine = engine(&limits, &store, 0);
        let (done, unreadable) = (HashMap::new(), HashSet::new());
        World { engine, store, limits, moments: 0, done, unreadable, loads: 0, ahead: 0, dumps: false, epoch: 1 }
    }

    pub(crate) fn now(&mut self) -> Moment {
        self.moments += 1;
        let ms = self.moments + self.ahead;
        Moment::new(ms, 1_700_000_000_000 + ms as i64, Rng::new(self.moments).bytes32())
    }

    /// Another engine over what the store holds.
    pub(crate) fn restart(&mut self) {
        self.engine = engine(&self.limits, &self.store, self.store.last_seq);
        self.engine.set_dumps(self.dumps);
        self.epoch += 1;
        let now = self.now();
        self.store.bring_resources(&self.engine, self.epoch, &now);
        self.done.clear();
        self.loads = 0;
        for root in self.store.running_roots() {
            let (tenant, rows) = self.store.header(root);
            let now = self.now();
            self.engine.header_loaded(0, root, &tenant, &rows, now);
        }
    }

    /// Whether ended sessions are SEALED until they are dumped.
    pub(crate) fn set_dumps(&mut self, on: bool) {
        self.dumps = on;
        self.engine.set_dumps(on);
    }

    /// Time passes, and what is due by then is done.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.ahead += ms;
        let now = self.now();
        self.engine.tick(now);
        self.settle();
    }

    /// A step of the clean-up of an ended session, decided by its row of now; whether it was done.
    pub(crate) fn step(&mut self, id: &str, step: CleanupStep) -> bool {
        let session = self.store.by_id(TENANT, id).expect("it is stored");
        let (uid, seq) = (session.row.uid, session.row.seq);
        self.step_by(id, uid, seq, step)
    }

    /// As [`Self::step`], decided by a row of this sequence.
    pub(crate) fn step_by(&mut self, id: &str, uid: Uid, seq: u64, step: CleanupStep) -> bool {
        let now = self.now();
        let root = self.store.sessions[&uid].row.root;
        let ticket = match self.engine.cleanup_step(TENANT, id, (uid, root), seq, step, now) {
            Outcome::Ticket(ticket) => ticket,
            ended => panic!("it ended at once: {ended:?}"),
        };
        self.settle();
        let told = self.done.remove(&ticket).expect("it has ended").expect("it is not refused");
        assert!(told == b"done" || told == b"changed", "{told:?}");
        told == b"done"
    }

    /// What came of an attempt to release a resource; whether that was one to be released.
    pub(crate) fn release(&mut self, name: &str, step: ReleaseStep) -> bool {
        let now = self.now();
        let ticket = match self.engine.resource_step(name, step, now) {
            Outcome::Ticket(ticket) => ticket,
            Outcome::Reply(told) => return told == b"done",
            Outcome::Refused(refusal) => panic!("{refusal:?}"),
        };
        self.settle();
        self.done.remove(&ticket).expect("it has ended").expect("it is not refused") == b"done"
    }

    /// Stores the next batch, or refuses it. False if there is none.
    pub(crate) fn append(&mut self, stored: bool) -> bool {
        let now = self.now();
        let Some(batch) = self.engine.take_batch() else { return false };
        if stored {
            self.store.apply(&batch).expect("the store takes what the engine makes");
            self.engine.appended(&Appended::Stored { quarantine: Vec::new() }, now);
        } else {
            self.engine.appended(&Appended::Refused, now);
        }
        true
    }

    pub(crate) fn read(&mut self) -> bool {
        let effects = self.engine.effects();
        let any = !effects.is_empty();
        for effect in effects {
            let now = self.now();
            if let Effect::Session { id, uid, .. } = effect {
                self.loads += 1;
                assert!(self.loads < 1_000, "sessions are read again and again");
                if self.store.sessions.get(&uid).is_some_and(|s| self.unreadable.contains(&*s.row.session_id)) {
                    self.engine.load_failed(id, "it cannot be read", now);
                    continue;
                }
            }
            self.store.answer(effect)(&self.engine, now);
        }
        any
    }

    /// Everything there is to store and to read, until nothing is left.
    pub(crate) fn settle(&mut self) {
        while self.append(true) || self.read() {}
        self.done.extend(self.engine.completed());
        self.engine.check(true).expect("it adds up");
    }

    /// Starts a call, which waits for the store.
    pub(crate) fn start(&mut self, method: Method, request: &impl Message) -> u64 {
        let now = self.now();
        match self.engine.call(method, &request.encode_to_vec(), &Caller::of(TENANT), 0, now) {
            Outcome::Ticket(ticket) => ticket,
            ended => panic!("it ended at once: {ended:?}"),
        }
    }

    /// The answer to a call that has ended.
    pub(crate) fn answer<R: Message + Default>(&mut self, ticket: u64) -> Result<R, Reason> {
        let ended = self.done.remove(&ticket).expect("it has ended");
        ended.map(|reply| R::decode(&reply[..]).expect("a reply decodes")).map_err(|refusal| refusal.reason)
    }

    pub(crate) fn call<R: Message + Default>(&mut self, method: Method, request: &impl Message) -> Result<R, Reason> {
        self.call_as("", method, request)
    }

    /// A call that bears a key, unless that is empty: then it is the operator's, for its tenant.
    pub(crate) fn call_as<R: Message + Default>(
        &mut self,
        key: &str,
        method: Method,
        request: &impl Message,
    ) -> Result<R, Reason> {
        let told = self.told_as(key, method, request).map_err(|refusal| refusal.reason)?;
        Ok(R::decode(&told[..]).expect("a reply decodes"))
    }

    /// As [`Self::call_as`]; the reply's bytes, and all that a refusal says.
    pub(crate) fn told_as(&mut self, key: &str, method: Method, request: &impl Message) -> Ended {
        let (now, bearer) = (self.now(), if key.is_empty() { String::new() } else { format!("Bearer {key}") });
        let caller = Caller { authorization: &bearer, tenant: TENANT };
        match self.engine.call(method, &request.encode_to_vec(), &caller, 0, now) {
            Outcome::Reply(reply) => Ok(reply),
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Ticket(ticket) => {
                self.settle();
                self.done.remove(&ticket).expect("it has ended")
            }
        }
    }

    /// What a call is refused with at once; None for one that is not.
    pub(crate) fn refused_at_once(&mut self, method: Method, request: &impl Message) -> Option<Refusal> {
        let now = self.now();
        match self.engine.call(method, &request.encode_to_vec(), &Caller::of(TENANT), 0, now) {
            Outcome::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// A number of the engine's.
    pub(crate) fn stat(&self, name: &str) -> i64 {
        self.engine.stats().iter().find(|(n, _)| *n == name).expect("it is counted").1
    }

    /// Starts a BeginTurn that must wait.
    pub(crate) fn waits(&mut self, request: &v1::BeginTurnRequest) -> u64 {
        let ticket = self.start(Method::BeginTurn, request);
        self.settle();
        assert!(!self.done.contains_key(&ticket), "{} need not wait", request.session_id);
        ticket
    }

    /// Makes a session of this name and returns its key.
    pub(crate) fn open(&mut self, id: &str, parent: &str, name: &str) -> String {
        self.open_as("", id, parent, name).expect("it opens").session_key
    }

    pub(crate) fn open_as(
        &mut self,
        key: &str,
        id: &str,
        parent: &str,
        name: &str,
    ) -> Result<v1::OpenSessionResponse, Reason> {
        self.call_as(key, Method::OpenSession, &opening(id, parent, name))
    }

    /// The state that the store holds.
    pub(crate) fn state(&self, id: &str) -> i32 {
        self.store.by_id(TENANT, id).expect("it is stored").state
    }

    pub(crate) fn begin(&mut self, id: &str) -> v1::Grant {
        let begun: v1::BeginTurnResponse = self.call(Method::BeginTurn, &begin(id, "")).expect("a slot is free");
        begun.grant.expect("it was granted")
    }

    /// A turn that runs, of a session that it makes if need be.
    pub(crate) fn begin_at(&mut self, id: &str, parent: &str) -> v1::Grant {
        let begun: v1::BeginTurnResponse = self.call(Method::BeginTurn, &begin(id, parent)).expect("a slot is free");
        begun.grant.expect("it was granted")
    }

    /// A turn in the place of the one that runs, with what that one leaves.
    pub(crate) fn take_over(&mut self, id: &str, request_id: &str) -> v1::Grant {
        let request = v1::BeginTurnRequest {
            if_running: v1::IfRunning::Takeover as i32,
            want_provisional: true,
            request_id: request_id.into(),
            ..begin(id, "")
        };
        let begun: v1::BeginTurnResponse = self.call(Method::BeginTurn, &request).expect("it takes over");
        begun.grant.expect("it was granted")
    }

    pub(crate) fn commit(&mut self, request: &v1::CommitTurnRequest) -> v1::CommitTurnResponse {
        self.call(Method::CommitTurn, request).expect("it commits")
    }

    /// A turn of a session, which it makes if need be.
    pub(crate) fn turn(&mut self, id: &str, parent: &str) {
        let begun: v1::BeginTurnResponse = self.call(Method::BeginTurn, &begin(id, parent)).expect("a slot is free");
        self.commit(&commit(id, &begun.grant.expect("it was granted").lease));
    }

    pub(crate) fn abort(&mut self, id: &str, lease: &[u8]) -> v1::AbortTurnResponse {
        let request =
            v1::AbortTurnRequest { session_id: id.into(), lease: lease.to_vec(), ..v1::AbortTurnRequest::default() };
        self.call(Method::AbortTurn, &request).expect("it aborts")
    }

    pub(crate) fn reward(&mut self, id: &str, finish_after: Option<i64>) -> Result<v1::SetRewardResponse, Reason> {
        self.call(Method::SetReward, &reward(id, finish_after))
    }

    pub(crate) fn close(&mut self, id: &str) -> v1::CloseReceipt {
        let closed: v1::CloseSessionResponse = self.call(Method::CloseSession, &close(id)).expect("it closes");
        closed.receipt.expect("it has a receipt")
    }

    pub(crate) fn get(&mut self, id: &str) -> v1::Session {
        let got: v1::GetSessionResponse =
            self.call(Method::GetSession, &v1::GetSessionRequest { session_id: id.into() }).expect("it is there");
        got.session.expect("it is there")
    }

    /// Number, first turn and turns of a session's finished trajectories.
    pub(crate) fn finished(&self, id: &str) -> Vec<(u32, u32, u32)> {
        let session = self.store.by_id(TENANT, id).expect("it is stored");
        session.trajectories.iter().map(|(f, _)| (f.number, f.first_turn, f.turn_count)).collect()
    }
}

/// No key is needed, and one that is brought is looked at.
fn engine(limits: &Limits, store: &Store, last_seq: u64) -> Engine {
    let keys = Keys { maker: Some(Maker::new(&[3; 32])), ..Keys::default() };
    let limits = LimitSetup::new(limits.clone(), BTreeMap::new(), &BTreeMap::new(), store.limits.clone());
    Engine::new(limits, last_seq, 1).with_keys(keys)
}

/// An OpenSession that asks for a key.
pub(crate) fn opening(id: &str, parent: &str, name: &str) -> v1::OpenSessionRequest {
    let options = v1::OpenOptions { parent_session_id: parent.into(), name: name.into(), ..Default::default() };
    v1::OpenSessionRequest { session_id: id.into(), options: Some(options), mint_key: true, ..Default::default() }
}

pub(crate) fn begin(id: &str, parent: &str) -> v1::BeginTurnRequest {
    let open = v1::OpenOptions { parent_session_id: parent.into(), ..v1::OpenOptions::default() };
    v1::BeginTurnRequest { session_id: id.into(), open: Some(open), ..v1::BeginTurnRequest::default() }
}

pub(crate) fn commit(id: &str, lease: &[u8]) -> v1::CommitTurnRequest {
    v1::CommitTurnRequest { session_id: id.into(), lease: lease.to_vec(), ..v1::CommitTurnRequest::default() }
}

pub(crate) fn go_on(id: &str, lease: &[u8]) -> v1::CommitTurnRequest {
    v1::CommitTurnRequest { then: v1::Then::Continue as i32, ..commit(id, lease) }
}

pub(crate) fn reward(id: &str, finish_after: Option<i64>) -> v1::SetRewardRequest {
    let finish_after = finish_after.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
    v1::SetRewardRequest { session_id: id.into(), reward: 1.0, finish_after, ..v1::SetRewardRequest::default() }
}

pub(crate) fn close(id: &str) -> v1::CloseSessionRequest {
    v1::CloseSessionRequest { session_id: id.into(), ..v1::CloseSessionRequest::default() }
}

pub(crate) fn interrupt(id: &str, request_id: &str, force: bool) -> v1::InterruptSessionRequest {
    v1::InterruptSessionRequest { session_id: id.into(), request_id: request_id.into(), force }
}
