//! The world around one engine: a clock, a store, callers that vanish, reads that are late, appends that fail, restarts.

use super::request::{Clients, Req, TENANTS};
use super::rng::Rng;
use super::store::{OPEN, Store};
use super::verify::{Ledger, Start};
use super::watcher::Watcher;
use prost::Message;
use roost_core::engine::{
    Appended, Caller, CleanupStep, DumpMade, Effect, Engine, LimitSetup, Method, Moment, Outcome, ReleaseStep, Space,
};
use roost_core::error::Refusal;
use roost_core::ids::Uid;
use roost_core::journal::Batch;
use roost_core::limits::Limits;
use roost_core::proto::v1;
use std::collections::{BTreeMap, BTreeSet};

/// What one run is like.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) ops: usize,
    pub(crate) limits: Limits,
    /// Percent of appends that are refused, of those quarantined, of reads that fail.
    pub(crate) refused: u64,
    pub(crate) quarantined: u64,
    pub(crate) failed_reads: u64,
    /// Of 10,000 steps, how many restart the server.
    pub(crate) restarts: u64,
    pub(crate) long_lives: bool,
}

/// A call that has no answer yet.
#[derive(Clone)]
pub(crate) struct OpenCall {
    pub(crate) tenant: usize,
    pub(crate) req: Req,
    pub(crate) start: Start,
}

/// What a read found, and has not said yet.
type Read = Box<dyn FnOnce(&Engine, Moment)>;

enum Flight {
    Taken(Box<Batch>),
    /// The store has decided, the engine does not know yet.
    Decided(Appended),
}

pub(crate) struct World {
    config: Config,
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) rng: Rng,
    /// In place of fresh entropy for each moment.
    pub(crate) entropy: Option<[u8; 32]>,
    pub(crate) ledger: Ledger,
    watchers: Vec<Watcher>,
    clients: Clients,
    mono: u64,
    wall: i64,
    calls: BTreeMap<u64, OpenCall>,
    /// Tickets of steps of clean-ups.
    steps: BTreeSet<u64>,
    /// Changes of limits under way.
    tunings: BTreeSet<u64>,
    flight: Option<Flight>,
    asked: Vec<Effect>,
    read: Vec<(u64, Read)>,
    pub(crate) space: Space,
    pub(crate) step: usize,
    /// Which life of the server this is.
    epoch: u64,
    /// Counts of what happened, for the test to see that everything did.
    pub(crate) seen: BTreeMap<String, u64>,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        let mut rng = Rng::new(config.seed);
        let mut store = Store::default();
        store.tenant_cap = config.limits.max_turns_per_tenant as usize;
        store.tree_cap = config.limits.max_turns_per_tree as usize;
        store.max_rewind = config.limits.max_rewind;
        store.max_fork_bytes = config.limits.max_fork_bytes;
        let engine = Engine::new(config.limits.clone(), 0, rng.next());
        engine.set_logging(true);
        engine.set_dumps(config.seed.is_multiple_of(2));
        World {
            engine,
            store,
            rng,
            entropy: None,
            ledger: Ledger::default(),
            watchers: Vec::new(),
            clients: Clients::new(config.long_lives),
            mono: 1_000,
            wall: 1_700_000_000_000,
            calls: BTreeMap::new(),
            steps: BTreeSet::new(),
            tunings: BTreeSet::new(),
            flight: None,
            asked: Vec::new(),
            read: Vec::new(),
            space: Space::Ok,
            step: 0,
            epoch: 1,
            seen: BTreeMap::new(),
            config,
        }
    }

    pub(crate) fn now(&mut self) -> Moment {
        let entropy = self.entropy.unwrap_or_else(|| self.rng.bytes32());
        Moment::new(self.mono, self.wall, entropy)
    }

    pub(crate) fn count(&mut self, what: impl Into<String>) {
        *self.seen.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn pass(&mut self, ms: u64) {
        self.mono += ms;
        self.wall += ms as i64;
        // The wall clock is set now and then.
        if self.rng.chance(1) {
            self.wall += self.rng.below(20_000) as i64 - 5_000;
        }
    }

    /// Runs the whole simulation.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        self.watch();
        for step in 0..self.config.ops {
            self.step = step;
            self.act()?;
            self.drain()?;
            self.engine.check(step.is_multiple_of(100))?;
            if step % 5_000 == 4_999 {
                self.quiesce()?;
            }
        }
        self.quiesce()?;
        self.restart();
        self.quiesce()?;
        self.store.verify_all()?;
        self.ledger.all_there(&self.store)
    }

    fn act(&mut self) -> Result<(), String> {
        match self.rng.below(1_000) {
            0..420 => self.request(),
            420..580 => self.write(),
            580..760 => {
                self.serve();
                Ok(())
            }
            760..900 => {
                let ms = if self.rng.chance(10) { 5_000 } else { self.rng.below(800) as u64 };
                self.pass(ms);
                let now = self.now();
                self.engine.tick(now);
                Ok(())
            }
            900..930 if !self.config.long_lives || self.rng.chance(5) => {
                let open: Vec<u64> = self.calls.keys().copied().collect();
                if let Some(ticket) = self.rng.pick(&open).copied() {
                    let call = self.calls.remove(&ticket).expect("it is open");
                    self.ledger.gave_up(&call);
                    self.count("cancelled");
                    let now = self.now();
                    self.engine.cancel(ticket, now);
                }
                Ok(())
            }
            930..932 if !self.config.long_lives => {
                self.space = [Space::Low, Space::Full, Space::Ok][self.rng.below(3)];
                self.engine.set_space(self.space);
                Ok(())
            }
            932..942 => {
                self.clean();
                Ok(())
            }
            942..952 => {
                self.release();
                Ok(())
            }
            952..960 => {
                self.space = Space::Ok;
                self.engine.set_space(Space::Ok);
                Ok(())
            }
            960..964 => {
                self.set_limits();
                Ok(())
            }
            _ => {
                if self.rng.below(10_000) < self.config.restarts as usize * 25 {
                    self.crash()?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn next_call(&mut self) -> OpenCall {
        let (tenant, req) = self.clients.make(&mut self.rng);
        let start = Start::of(&self.store, tenant, &req);
        OpenCall { tenant, req, start }
    }

    /// As [`Self::answered`], by a transport that delivers everything.
    pub(crate) fn calmly_answered(&mut self, call: &OpenCall, result: Result<Vec<u8>, Refusal>) -> Result<(), String> {
        self.ledger.verify(&self.store, call, &result).map_err(|e| format!("{e}: {:?}: {result:?}", call.req))?;
        if let Ok(reply) = result {
            self.clients.learn(call.tenant, &call.req, &reply);
            if let Some(grant) = self.ledger.acknowledged(&self.store, call, &reply)? {
                self.clients.remember(grant);
            }
        }
        Ok(())
    }

    fn request(&mut self) -> Result<(), String> {
        let call = self.next_call();
        let (method, bytes) = call.req.encode();
        let connection = 1 + self.rng.below(3) as u64;
        let now = self.now();
        match self.engine.call(method, &bytes, &Caller::of(TENANTS[call.tenant]), connection, now) {
            Outcome::Reply(reply) => self.answered(&call, Ok(reply)),
            Outcome::Refused(refusal) => self.answered(&call, Err(refusal)),
            Outcome::Ticket(ticket) => {
                self.calls.insert(ticket, call);
                Ok(())
            }
        }
    }

    /// One step of the clean-up of some ended session, mostly one of its state; decided by its row of now.
    fn clean(&mut self) {
        let mut ended: Vec<_> = self.store.sessions.values().filter(|s| s.state != OPEN).collect();
        ended.sort_by_key(|s| (s.cleanup_due, s.row.uid));
        let at = if ended.is_empty() { return } else { self.rng.below(ended.len().min(6)) };
        let session = ended[at];
        let (tenant, id) = (session.row.tenant.to_string(), session.row.session_id.to_string());
        let (uid, root, prev) = (session.row.uid, session.row.root, session.row.seq);
        let records: Vec<_> = self.store.line(session).take(3).map(|(seq, _)| seq).collect();
        let last = self.store.line(session).nth(3).map_or(0, |(seq, _)| seq);
        let acknowledged = session.trajectories.iter().all(|(_, acknowledged)| *acknowledged)
            && session.facts.trajectory_turns == session.row.head;
        let step = match self.rng.below(8) {
            0..4 => CleanupStep::Cleaned { dump: Some(DumpMade { bytes: 1, sha256: [7; 32] }) },
            4 => CleanupStep::Failed { error: "injected".into() },
            5 => CleanupStep::Keep,
            _ => CleanupStep::Purge { records, last, acknowledged },
        };
        let now = self.now();
        match self.engine.cleanup_step(&tenant, &id, (uid, root), prev, step, now) {
            Outcome::Ticket(ticket) => drop(self.steps.insert(ticket)),
            Outcome::Reply(reply) => self.count(format!("step {}", String::from_utf8_lossy(&reply))),
            Outcome::Refused(_) => {}
        }
    }

    /// An operator changes some caps: below what is configured, or back to that.
    fn set_limits(&mut self) {
        let mut request = v1::SetLimitsRequest::default();
        for name in ["max_turns_per_tree", "max_turns_per_tenant", "max_depth", "max_waiters", "max_resident_sessions"]
        {
            let (_, _, least, _) = Limits::TABLE.iter().find(|(known, ..)| *known == name).expect("there is one");
            let most = self.config.limits.get(name).expect("there is one");
            match self.rng.below(6) {
                0 => drop(request.limits.insert(name.into(), (*least).max(self.rng.next() % (most + 1)) as i64)),
                1 | 2 => request.reset.push(name.into()),
                _ => {}
            }
        }
        let now = self.now();
        match self.engine.call(Method::SetLimits, &request.encode_to_vec(), &Caller::of(TENANTS[0]), 0, now) {
            Outcome::Ticket(ticket) => drop(self.tunings.insert(ticket)),
            Outcome::Reply(_) => self.count("SetLimits OK"),
            Outcome::Refused(refusal) => self.count(format!("SetLimits {}", refusal.reason.name())),
        }
    }

    /// An attempt to release some resource that is due.
    fn release(&mut self) {
        let due: Vec<&String> = self.store.resources.iter().filter(|(_, r)| r.due > 0).map(|(name, _)| name).collect();
        let Some(name) = self.rng.pick(&due).map(|name| (*name).clone()) else { return };
        let failed = ReleaseStep::Failed { error: "injected".into(), retry_ms: 1_000 };
        let step = if self.rng.chance(70) { ReleaseStep::Released } else { failed };
        let now = self.now();
        match self.engine.resource_step(&name, step, now) {
            Outcome::Ticket(ticket) => drop(self.steps.insert(ticket)),
            Outcome::Reply(reply) => self.count(format!("step {}", String::from_utf8_lossy(&reply))),
            Outcome::Refused(_) => {}
        }
    }

    fn answered(&mut self, call: &OpenCall, result: Result<Vec<u8>, Refusal>) -> Result<(), String> {
        let name = format!("{:?}", call.req.encode().0);
        let what = result.as_ref().map_or_else(|r| r.reason.name(), |_| "OK");
        self.count(format!("{name} {what}"));
        self.ledger
            .verify(&self.store, call, &result)
            .map_err(|e| format!("step {}: {e}\n  request: {:?}\n  answer: {result:?}", self.step, call.req))?;
        if let Ok(reply) = result {
            if self.rng.chance(2) {
                // The transport could not write it.
                self.count("undelivered");
                self.ledger.gave_up(call);
                let (method, bytes) = call.req.encode();
                let now = self.now();
                self.engine.undelivered(method, &bytes, &reply, &Caller::of(TENANTS[call.tenant]), now);
            } else {
                self.clients.learn(call.tenant, &call.req, &reply);
                if let Some(grant) = self.ledger.acknowledged(&self.store, call, &reply)? {
                    self.clients.remember(grant);
                }
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        for (ticket, result) in self.engine.completed() {
            if self.steps.remove(&ticket) {
                let told = result.map_or_else(|r| r.reason.name().into(), |r| String::from_utf8(r).expect("a word"));
                self.count(format!("step {told}"));
                continue;
            }
            if self.tunings.remove(&ticket) {
                let told = result.as_ref().map_or_else(|refusal| refusal.reason.name(), |_| "OK");
                self.count(format!("SetLimits {told}"));
                continue;
            }
            let Some(call) = self.calls.remove(&ticket) else { return Err(format!("ticket {ticket} ends unasked")) };
            self.answered(&call, result)?;
        }
        self.asked.extend(self.engine.effects());
        let (events, dropped) = self.engine.events();
        if dropped > 0 {
            return Err(format!("{dropped} events were dropped"));
        }
        for event in events {
            self.count(event.name);
            self.ledger.logged(&self.store, &event)?;
        }
        for watcher in &mut self.watchers {
            watcher.read(&self.engine, &self.store)?;
        }
        Ok(())
    }

    /// One step of the writer.
    fn write(&mut self) -> Result<(), String> {
        match self.flight.take() {
            None => self.flight = self.engine.take_batch().map(|batch| Flight::Taken(Box::new(batch))),
            Some(Flight::Taken(batch)) => {
                let decided = self.append(&batch)?;
                self.flight = Some(Flight::Decided(decided));
            }
            Some(Flight::Decided(decided)) => {
                let now = self.now();
                self.engine.appended(&decided, now);
                if decided == Appended::RefusedFull {
                    self.space = Space::Full;
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, batch: &Batch) -> Result<Appended, String> {
        if self.rng.chance(self.config.refused) {
            self.count("refused");
            return Ok(if self.rng.chance(50) { Appended::RefusedFull } else { Appended::Refused });
        }
        if self.rng.chance(self.config.quarantined) {
            let broken = batch.roots[self.rng.below(batch.roots.len())];
            self.count("quarantined");
            // What is of no tree runs no turns.
            if broken != Uid(0) {
                self.store.broken.insert(broken);
            }
            for part in batch.split().iter().filter(|p| p.roots[0] != broken) {
                self.store.apply(part)?;
            }
            return Ok(Appended::Stored { quarantine: vec![broken] });
        }
        self.store.apply(batch).map_err(|e| format!("step {}: {e}\n  batch: {batch:#?}", self.step))?;
        for (_, copy) in &batch.copies {
            self.count("turns copied");
            let source = &self.store.records[&copy.source].session;
            if self.store.sessions[source].state != OPEN {
                self.count("turns copied from what has ended");
            }
        }
        Ok(Appended::Stored { quarantine: Vec::new() })
    }

    /// One step of a reader: a read is done, or the engine is told what it found, in any order.
    fn serve(&mut self) {
        if !self.asked.is_empty() && self.rng.chance(50) {
            let effect = self.asked.swap_remove(self.rng.below(self.asked.len()));
            let read = (effect.id(), self.store.answer(effect));
            self.read.push(read);
            return;
        }
        if self.read.is_empty() {
            return;
        }
        let (id, read) = self.read.swap_remove(self.rng.below(self.read.len()));
        let fails = self.rng.chance(self.config.failed_reads);
        let now = self.now();
        if fails {
            self.count("failed read");
            self.engine.load_failed(id, "injected", now);
        } else {
            read(&self.engine, now);
        }
    }

    /// kill -9 at any point: what was in flight is stored or not.
    fn crash(&mut self) -> Result<(), String> {
        if let Some(Flight::Taken(batch)) = self.flight.take()
            && self.rng.chance(50)
        {
            self.store.apply(&batch)?;
        }
        self.restart();
        Ok(())
    }

    /// What this life of the server did that no answer tells by itself.
    pub(crate) fn count_kinds(&mut self) {
        for (name, n) in self.engine.stats() {
            if ["turns_", "trajectories_", "sessions_", "trees_", "resources_", "pool_", "messages_"]
                .iter()
                .any(|kind| name.starts_with(kind))
            {
                *self.seen.entry(name.to_owned()).or_default() += n as u64;
            }
        }
    }

    /// Somebody watches from now on.
    fn watch(&mut self) {
        for watcher in std::mem::take(&mut self.watchers) {
            watcher.seen.into_iter().for_each(|(what, n)| *self.seen.entry(what).or_default() += n);
        }
        self.watchers = TENANTS.iter().map(|tenant| Watcher::new(tenant, &self.engine, &self.store)).collect();
    }

    fn restart(&mut self) {
        self.count("restart");
        self.count_kinds();
        for call in std::mem::take(&mut self.calls).values() {
            self.ledger.gave_up(call);
        }
        self.flight = None;
        (self.asked, self.read) = Default::default();
        self.space = Space::Ok;
        let seed = self.rng.next();
        let none = BTreeMap::new();
        let limits = LimitSetup::new(self.config.limits.clone(), BTreeMap::new(), &none, self.store.limits.clone());
        self.engine = Engine::new(limits, self.store.last_seq, seed);
        self.engine.set_logging(true);
        self.engine.set_dumps(self.config.seed.is_multiple_of(2));
        self.steps.clear();
        self.tunings.clear();
        self.ledger.restarted();
        self.watch();
        self.epoch += 1;
        let now = self.now();
        self.store.bring_resources(&self.engine, self.epoch, &now);
        for root in self.store.running_roots() {
            let (tenant, rows) = self.store.header(root);
            let now = self.now();
            self.engine.header_loaded(0, root, &tenant, &rows, now);
        }
    }

    /// Nobody calls any more: everything under way comes to an end, and nothing is held.
    fn quiesce(&mut self) -> Result<(), String> {
        let config = self.config.clone();
        (self.config.refused, self.config.quarantined, self.config.failed_reads) = (0, 0, 0);
        for round in 0.. {
            self.space = Space::Ok;
            self.engine.set_space(Space::Ok);
            for _ in 0..40 {
                self.write()?;
                self.drain()?;
                self.serve();
                self.drain()?;
            }
            let gauge = |name| self.engine.stats().iter().find(|(n, _)| *n == name).map_or(0, |(_, v)| *v);
            let over = gauge("resident_sessions") > config.limits.max_resident_sessions as i64;
            let held = gauge("slots_held") + gauge("waiting") + gauge("turns_running");
            if self.engine.flushed() && held == 0 && !over && self.asked.is_empty() && self.read.is_empty() {
                break;
            }
            if round > 400 {
                let open: Vec<_> = self.calls.values().map(|c| &c.req).collect();
                return Err(format!("it does not come to rest: {:?}\n  open: {open:#?}", self.engine));
            }
            self.pass(1_000);
            let now = self.now();
            self.engine.tick(now);
            self.drain()?;
        }
        self.config = config;
        if !self.calls.is_empty() {
            return Err(format!("{} calls were never answered", self.calls.len()));
        }
        self.engine.check(true)?;
        self.ledger.log_is_whole(&self.store)?;
        for watcher in &self.watchers {
            watcher.agrees(&self.store)?;
        }
        self.count("came to rest");
        Ok(())
    }
}
