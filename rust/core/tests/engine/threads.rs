//! The engine under real threads: three callers, a writer whose appends are sometimes refused, a reader, a clock. What
//! one thread in a simulation cannot show: races between a call and the undoing of lost entries, lock order, lost
//! wake-ups. Guards I1, I2, I4, I6 (an acknowledged commit is in the store), I8, I9, I10, I23, I24.

use crate::sim::rng::Rng;
use crate::sim::store::Store;
use crate::sim::watcher::Watcher;
use prost::Message;
use roost_core::engine::{Appended, Caller, Engine, Method, Moment, Outcome};
use roost_core::error::{Reason, Refusal};
use roost_core::limits::Limits;
use roost_core::proto::v1;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

const CALLERS: u64 = 3;
const PAIRS: usize = 1_500;
const TENANT: &str = "t";
const TURNS: u64 = 4;

type Ended = Result<Vec<u8>, Refusal>;

struct World {
    engine: Engine,
    store: Mutex<Store>,
    clock: AtomicU64,
    done: Mutex<HashMap<u64, Ended>>,
    ended: Condvar,
    stop: AtomicBool,
}

impl World {
    fn now(&self) -> Moment {
        let n = self.clock.fetch_add(1, Ordering::Relaxed);
        Moment::new(n / 50, 1_700_000_000_000 + n as i64, Rng::new(n).bytes32())
    }

    /// Brings finished tickets to their callers.
    fn collect(&self) {
        let completed = self.engine.completed();
        if !completed.is_empty() {
            self.done.lock().unwrap().extend(completed);
            self.ended.notify_all();
        }
    }

    fn ticket(&self, method: Method, request: &[u8]) -> Result<Ended, u64> {
        match self.engine.call(method, request, &Caller::of(TENANT), 0, self.now()) {
            Outcome::Reply(reply) => Ok(Ok(reply)),
            Outcome::Refused(refusal) => Ok(Err(refusal)),
            Outcome::Ticket(ticket) => Err(ticket),
        }
    }

    fn call(&self, method: Method, request: &[u8]) -> Ended {
        let ticket = match self.ticket(method, request) {
            Ok(ended) => return ended,
            Err(ticket) => ticket,
        };
        let mut done = self.done.lock().unwrap();
        loop {
            if let Some(ended) = done.remove(&ticket) {
                return ended;
            }
            done = self.ended.wait(done).unwrap();
        }
    }

    fn writer(&self) {
        let mut rng = Rng::new(7);
        while !self.stop.load(Ordering::Acquire) || self.engine.has_entries() {
            let Some(batch) = self.engine.take_batch() else {
                self.collect();
                thread::yield_now();
                continue;
            };
            let outcome = if rng.chance(5) {
                Appended::Refused
            } else {
                self.store.lock().unwrap().apply(&batch).unwrap_or_else(|e| panic!("{e}: {batch:#?}"));
                Appended::Stored { quarantine: Vec::new() }
            };
            self.engine.appended(&outcome, self.now());
            self.collect();
        }
    }

    fn reader(&self) {
        while !self.stop.load(Ordering::Acquire) || self.engine.has_effects() {
            for effect in self.engine.effects() {
                let now = self.now();
                // The store is free again before the engine is told.
                let answer = self.store.lock().unwrap().answer(effect);
                answer(&self.engine, now);
            }
            self.collect();
            thread::yield_now();
        }
    }

    fn ticker(&self) {
        while !self.stop.load(Ordering::Acquire) {
            self.engine.tick(self.now());
            self.collect();
            thread::yield_now();
        }
    }

    /// One caller: begins, then commits, aborts, closes, or vanishes.
    fn caller(&self, seed: u64) {
        let mut rng = Rng::new(seed);
        for n in 0..PAIRS {
            let id = format!("s{}", rng.below(12) + 12 * (n / 25));
            let parent = if rng.chance(50) { format!("p{}", rng.below(2)) } else { String::new() };
            let begin = v1::BeginTurnRequest {
                session_id: id.clone(),
                request_id: format!("r{seed}-{n}"),
                open: Some(v1::OpenOptions { parent_session_id: parent, ..Default::default() }),
                wait: rng.chance(70).then_some(prost_types::Duration { seconds: 1, nanos: 0 }),
                if_running: if rng.chance(15) { v1::IfRunning::Takeover as i32 } else { 0 },
                want_provisional: rng.chance(20),
                ..Default::default()
            }
            .encode_to_vec();
            if rng.chance(5) {
                if let Err(ticket) = self.ticket(Method::BeginTurn, &begin) {
                    self.engine.cancel(ticket, self.now());
                }
                continue;
            }
            let begun = loop {
                match self.call(Method::BeginTurn, &begin) {
                    Err(r) if matches!(r.reason, Reason::NotStored | Reason::Recovering) => thread::yield_now(),
                    ended => break ended,
                }
            };
            let grant = match begun {
                Ok(reply) => v1::BeginTurnResponse::decode(&reply[..]).unwrap().grant.unwrap(),
                Err(refusal) => {
                    let known = [
                        Reason::TurnInProgress,
                        Reason::TenantTurns,
                        Reason::TreeTurns,
                        Reason::SessionClosed,
                        Reason::TurnEnded,
                        Reason::TurnInterrupted,
                        Reason::ParentNotFound,
                    ];
                    assert!(known.contains(&refusal.reason), "{refusal:?}");
                    continue;
                }
            };
            if rng.chance(10) {
                let force = rng.chance(50);
                let r = v1::InterruptSessionRequest { session_id: id.clone(), force, ..Default::default() };
                let _ = self.call(Method::InterruptSession, &r.encode_to_vec());
            }
            if rng.chance(10) {
                let r = v1::SetRewardRequest {
                    session_id: id.clone(),
                    reward: 1.0,
                    finish_after: Some(prost_types::Duration { seconds: i64::from(rng.chance(50)), nanos: 0 }),
                    ..Default::default()
                };
                let _ = self.call(Method::SetReward, &r.encode_to_vec());
            }
            let record = Some(v1::RecordInput { content: vec![seed as u8; 8], ..Default::default() });
            let lease = grant.lease;
            let roll = rng.below(100);
            let (method, request) = if roll < 75 {
                let then = if roll < 5 { v1::Then::Close } else { v1::Then::Idle } as i32;
                let base_turn = rng.chance(20).then(|| grant.turn.saturating_sub(2));
                let session_id = id.clone();
                let r = v1::CommitTurnRequest { session_id, lease, record, then, base_turn, ..Default::default() };
                (Method::CommitTurn, r.encode_to_vec())
            } else if roll < 90 {
                let r = v1::AbortTurnRequest { session_id: id.clone(), lease, record, ..Default::default() };
                (Method::AbortTurn, r.encode_to_vec())
            } else {
                let r = v1::CloseSessionRequest { session_id: id.clone(), ..Default::default() };
                (Method::CloseSession, r.encode_to_vec())
            };
            // A call that was not stored is repeated until there is an answer about the turn itself.
            loop {
                match self.call(method, &request) {
                    Err(r) if matches!(r.reason, Reason::NotStored | Reason::Recovering) => thread::yield_now(),
                    Err(r) => {
                        let known =
                            [Reason::LeaseLost, Reason::SessionClosed, Reason::SessionNotFound, Reason::RewindRefused];
                        assert!(known.contains(&r.reason), "{r:?}");
                        break;
                    }
                    Ok(reply) => {
                        if method == Method::CommitTurn {
                            let told = v1::CommitTurnResponse::decode(&reply[..]).unwrap();
                            let store = self.store.lock().unwrap();
                            let version = store.by_id(TENANT, &id).map_or(0, |s| s.row.head_version);
                            assert!(version >= told.head_version, "{id}: {told:?}, and the store holds {version}");
                        }
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn threads_keep_what_one_thread_keeps() {
    let limits = Limits {
        max_resident_sessions: 4,
        max_resident_bytes: 40_000,
        max_turns_per_tenant: TURNS,
        max_turns_per_tree: 3,
        keep_place_ms: 5,
        ..Limits::default()
    };
    let mut store = Store::default();
    store.max_rewind = limits.max_rewind;
    (store.tenant_cap, store.tree_cap) = (TURNS as usize, 3);
    let world = World {
        engine: Engine::new(limits, 0, 1),
        store: Mutex::new(store),
        clock: AtomicU64::new(0),
        done: Mutex::default(),
        ended: Condvar::new(),
        stop: AtomicBool::new(false),
    };
    let mut watcher = Watcher::new(TENANT, &world.engine, &world.store.lock().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| world.writer());
        scope.spawn(|| world.reader());
        scope.spawn(|| world.ticker());
        for n in 0..2 {
            let open = v1::OpenSessionRequest { session_id: format!("p{n}"), ..Default::default() }.encode_to_vec();
            while world.call(Method::OpenSession, &open).is_err() {}
        }
        let callers: Vec<_> = (1..=CALLERS)
            .map(|seed| {
                scope.spawn({
                    let world = &world;
                    move || world.caller(seed)
                })
            })
            .collect();
        let results: Vec<_> = callers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        world.stop.store(true, Ordering::Release);
        for result in results {
            result.unwrap();
        }
    });
    // At rest: every lease and kept place runs out, and nothing is held.
    for _ in 0..2_000 {
        world.clock.fetch_add(50_000, Ordering::Relaxed);
        world.engine.tick(world.now());
        for effect in world.engine.effects() {
            // Trajectories come due and trees grow stale: of sessions that have left memory, too.
            let answer = world.store.lock().unwrap().answer(effect);
            answer(&world.engine, world.now());
        }
        if let Some(batch) = world.engine.take_batch() {
            world.store.lock().unwrap().apply(&batch).unwrap();
            world.engine.appended(&Appended::Stored { quarantine: Vec::new() }, world.now());
        }
    }
    world.engine.check(true).unwrap();
    let store = world.store.lock().unwrap();
    store.verify_all().unwrap();
    // Whatever threads told of it, the events of a session are in their order, and nothing is missing.
    watcher.read(&world.engine, &store).unwrap();
    watcher.agrees(&store).unwrap();
    let stats: HashMap<_, _> = world.engine.stats().into_iter().collect();
    assert_eq!((stats["slots_held"], stats["waiting"], stats["calls_in_flight"]), (0, 0, 0), "{stats:?}");
    for kind in ["turns_rewound", "turns_taken_over", "turns_interrupted", "trajectories_finished"] {
        assert!(stats[kind] > 0, "{kind}: {stats:?}");
    }
    assert!(stats["turns_committed"] > 100 && stats["batches_refused"] > 0 && stats["reloads"] > 0, "{stats:?}");
}
