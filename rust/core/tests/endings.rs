//! How sessions end, against the engine and a store in memory: closes, what follows them, how they come back, and the
//! sweep of stale trees. What holds whatever the order is in simulation.rs.
#![cfg(not(any(feature = "shuttle", roost_loom)))]

#[path = "sim/rng.rs"]
#[allow(dead_code)]
mod rng;
#[path = "sim/scene.rs"]
#[allow(dead_code)]
mod scene;
#[path = "sim/store.rs"]
#[allow(dead_code, unused_imports)]
mod store;

use roost_core::engine::{CleanupStep, DumpMade, Method};
use roost_core::error::Reason;
use roost_core::limits::Limits;
use roost_core::proto::v1;
use scene::{TENANT, World, begin, close, commit};

const OPEN: i32 = v1::SessionState::Open as i32;
const SEALED: i32 = v1::SessionState::Sealed as i32;
const CLOSED: i32 = v1::SessionState::Closed as i32;
const MINUTE: u64 = 60_000;

fn dumped() -> CleanupStep {
    CleanupStep::Cleaned { dump: Some(DumpMade { bytes: 10, sha256: [1; 32] }) }
}

fn reopen(id: &str, request_id: &str) -> v1::ReopenSessionRequest {
    v1::ReopenSessionRequest { session_id: id.into(), request_id: request_id.into() }
}

fn closing(id: &str, request_id: &str) -> v1::CloseSessionRequest {
    v1::CloseSessionRequest { request_id: request_id.into(), ..close(id) }
}

impl World {
    fn state(&self, id: &str) -> i32 {
        self.store.by_id(TENANT, id).expect("it is stored").state
    }

    fn reopen(&mut self, id: &str) -> Result<u32, Reason> {
        let told: v1::ReopenSessionResponse = self.call(Method::ReopenSession, &reopen(id, ""))?;
        let session = told.session.expect("it is told");
        assert_eq!((session.session_id.as_str(), session.state), (id, OPEN));
        Ok(told.reopened)
    }

    fn open(&mut self, id: &str, parent: &str, name: &str, stale_s: Option<i64>) -> Result<v1::Session, Reason> {
        let stale_timeout = stale_s.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        let options = v1::OpenOptions {
            parent_session_id: parent.into(),
            name: name.into(),
            stale_timeout,
            ..v1::OpenOptions::default()
        };
        let request = v1::OpenSessionRequest { session_id: id.into(), options: Some(options), ..Default::default() };
        let told: v1::OpenSessionResponse = self.call(Method::OpenSession, &request)?;
        Ok(told.session.expect("it is told"))
    }

    /// Everything is written out of memory: the next call reads it again.
    fn unload(&mut self) {
        self.restart();
    }
}

/// root -> a -> b, and root -> c, each with a turn.
fn family() -> World {
    let mut world = World::new(Limits::default());
    for (id, parent) in [("root", ""), ("a", "root"), ("b", "a"), ("c", "root")] {
        world.turn(id, parent);
    }
    world
}

// I12: a close that its caller gives up on while the session is looked up still closes it.
#[test]
fn a_close_outlives_its_caller() {
    let mut world = family();
    world.unload();
    let ticket = world.start(Method::CloseSession, &close("root"));
    let now = world.now();
    world.engine.cancel(ticket, now);
    world.settle();
    assert_eq!(["root", "a", "b", "c"].map(|id| world.state(id)), [CLOSED; 4]);
    assert_eq!(world.close("root").children_closed, 3);
}

// The last turn request of a client that can only quit so: no slot, no turn, the session's end and its receipt.
#[test]
fn session_final_is_a_close() {
    let mut world = World::new(Limits { max_turns_per_tenant: 1, ..Limits::default() });
    world.turn("s", "");
    world.begin("busy");
    let last = v1::BeginTurnRequest { session_final: true, request_id: "last".into(), ..begin("s", "") };
    let told: v1::BeginTurnResponse = world.call(Method::BeginTurn, &last).expect("it needs no slot");
    let receipt = told.receipt.expect("it has a receipt");
    assert!(told.grant.is_none() && receipt.turn_count == 1 && receipt.reason == v1::CloseReason::Quit as i32);
    assert_eq!(world.state("s"), CLOSED);
    let again: v1::BeginTurnResponse = world.call(Method::BeginTurn, &last).expect("it is answered again");
    assert_eq!(again.receipt, Some(receipt));
    // It makes nothing, not even what `open` would.
    let unknown = v1::BeginTurnRequest { session_final: true, ..begin("nobody", "") };
    assert_eq!(world.call::<v1::BeginTurnResponse>(Method::BeginTurn, &unknown), Err(Reason::SessionNotFound));
}

// I12: with a dump target a close is SEALED until its dump is there; a failure leaves it so and is told.
#[test]
fn a_dump_stands_between_sealed_and_closed() {
    let mut world = family();
    world.set_dumps(true);
    let receipt = world.close("a");
    assert!(receipt.dump_name.ends_with("-1") && receipt.dump_name.len() == 32 + 1 + 36 + 2, "{receipt:?}");
    assert_eq!((world.state("a"), world.state("b"), world.state("c")), (SEALED, SEALED, OPEN));
    assert!(!world.step("a", CleanupStep::Cleaned { dump: None }), "it is planned to be dumped");
    assert!(!world.step("a", CleanupStep::Keep) && !world.step("a", CleanupStep::Forget));
    assert!(world.step("a", CleanupStep::Failed { error: "full: no room".into() }));
    let told = world.get("a").cleanup.expect("it is told");
    assert_eq!((told.attempts, &*told.error, told.closed_time.is_some()), (1, "full: no room", false));
    assert!(told.due_time.is_some());
    assert!(world.step("a", dumped()));
    let session = world.get("a");
    let told = session.cleanup.expect("it is told");
    assert_eq!((session.state, told.attempts, told.dump_bytes), (CLOSED, 0, 10));
    assert!(told.closed_time.is_some() && told.error.is_empty() && told.dump_time.is_some());
    assert_eq!(world.state("b"), SEALED, "each by itself");
    assert!(!world.step("a", dumped()), "once");
    assert_eq!(session.receipt, Some(receipt.clone()));
    assert_eq!(world.close("a"), receipt);
}

#[test]
fn what_one_close_took_down_comes_back_with_it() {
    let mut world = family();
    world.turn("early", "root");
    world.close("early");
    let before = world.close("root");
    assert_eq!(before.children_closed, 3);
    assert_eq!(world.reopen("b"), Err(Reason::SessionClosed), "its parent has ended");
    assert_eq!(world.reopen("root"), Ok(4));
    assert_eq!(["root", "a", "b", "c", "early"].map(|id| world.state(id)), [OPEN, OPEN, OPEN, OPEN, CLOSED]);
    assert_eq!(world.reopen("root"), Ok(0), "it is open");
    // Their turns go on where they were, in this life of the server and in the next.
    world.turn("b", "");
    world.unload();
    world.turn("b", "");
    let session = world.get("b");
    assert_eq!((session.turn_count, session.path.as_str()), (3, "/root/a/b"));
    let after = world.close("root");
    assert_eq!((after.close_number, after.children_closed, after.turn_count), (2, 3, 1));
    assert_eq!(world.reopen("early"), Err(Reason::SessionClosed));
}

// I21: a repeat of a close or a reopen that comes late changes nothing.
#[test]
fn late_repeats_find_the_session_in_its_next_life() {
    let mut world = family();
    let first: v1::CloseSessionResponse = world.call(Method::CloseSession, &closing("a", "c1")).expect("it closes");
    let told: v1::ReopenSessionResponse = world.call(Method::ReopenSession, &reopen("a", "r1")).expect("it opens");
    assert_eq!(told.reopened, 2);
    let again: v1::CloseSessionResponse = world.call(Method::CloseSession, &closing("a", "c1")).expect("a repeat");
    assert_eq!((again, world.state("a")), (first, OPEN));
    let other = v1::CloseSessionRequest { reason: v1::CloseReason::Error as i32, ..closing("a", "c1") };
    assert_eq!(world.call::<v1::CloseSessionResponse>(Method::CloseSession, &other), Err(Reason::RequestMismatch));
    let second: v1::CloseSessionResponse = world.call(Method::CloseSession, &closing("a", "c2")).expect("it closes");
    assert_eq!(second.receipt.map(|r| r.close_number), Some(2));
    let repeat: v1::ReopenSessionResponse = world.call(Method::ReopenSession, &reopen("a", "r1")).expect("a repeat");
    assert_eq!((repeat.reopened, repeat.session.map(|s| s.state), world.state("a")), (0, Some(CLOSED), CLOSED));
}

// I16, and the caps: who comes back needs a path and room, or nobody comes.
#[test]
fn who_comes_back_needs_its_path_and_room() {
    let mut world = World::new(Limits { max_sessions_per_tree: 3, ..Limits::default() });
    world.open("root", "", "", None).expect("it opens");
    world.open("a", "root", "scout", None).expect("it opens");
    world.open("b", "a", "", None).expect("it opens");
    world.close("a");
    world.open("c", "root", "scout", None).expect("the name is free");
    assert_eq!(world.reopen("a"), Err(Reason::TreeSessions));
    world.open("d", "root", "", None).expect("there is room");
    world.close("d");
    world.close("b");
    world.close("c");
    assert_eq!(world.reopen("a"), Ok(2));
    assert_eq!(world.reopen("c"), Err(Reason::TreeSessions));
    world.close("b");
    assert_eq!(world.reopen("c"), Err(Reason::PathCollision));
    assert_eq!(["a", "b", "c"].map(|id| world.state(id)), [OPEN, CLOSED, CLOSED]);
}

#[test]
fn nobody_comes_back_before_the_clean_up_or_after_the_purge() {
    let mut world = family();
    world.set_dumps(true);
    world.close("a");
    assert!(world.step("a", dumped()));
    assert_eq!(world.reopen("a"), Err(Reason::SessionSealed), "its child is not dumped yet");
    assert!(world.step("b", dumped()));
    assert_eq!(world.reopen("a"), Ok(2));
    let receipt = world.close("a");
    assert!(receipt.dump_name.ends_with("-2"), "another close, another dump: {receipt:?}");
    assert!(world.step("a", dumped()) && world.step("b", dumped()));
    let last = world.store.by_id(TENANT, "b").expect("it is stored").row.last;
    assert!(world.step("b", CleanupStep::Purge { records: vec![], last, acknowledged: false }));
    assert_eq!(world.reopen("a"), Err(Reason::SessionPurged));
    assert_eq!(world.state("a"), CLOSED);
}

// I14: nothing is purged that was not dumped, acknowledged, or released by the operator.
#[test]
fn a_purge_needs_leave() {
    for (purge_without_dump, dumps, acknowledged) in
        [(0, false, false), (1, false, false), (0, true, false), (0, false, true)]
    {
        let mut world = World::new(Limits { purge_without_dump, ..Limits::default() });
        world.turn("s", "");
        world.turn("s", "");
        world.set_dumps(dumps);
        world.close("s");
        let session = world.store.by_id(TENANT, "s").expect("it is stored");
        let records: Vec<_> = world.store.line(session).map(|(seq, _)| seq).collect();
        let purge = |records: Vec<u64>, last| CleanupStep::Purge { records, last, acknowledged };
        if dumps {
            assert!(!world.step("s", purge(records.clone(), 0)), "it is SEALED");
            assert!(world.step("s", dumped()));
        }
        let leave = purge_without_dump > 0 || dumps || acknowledged;
        assert_eq!(world.step("s", purge(vec![records[0]], records[1])), leave);
        if !leave {
            assert!(world.step("s", CleanupStep::Keep));
            continue;
        }
        assert!(!world.step("s", CleanupStep::Forget), "its content is there");
        assert!(world.step("s", purge(vec![records[1]], 0)));
        let told = world.get("s");
        assert_eq!((told.state, told.turn_count, told.labels.len()), (CLOSED, 2, 0));
        assert!(told.cleanup.is_some_and(|c| c.purged_time.is_some() && c.due_time.is_some()));
        // I13: the id stays taken, and nothing brings it back.
        let late = world.call::<v1::BeginTurnResponse>(Method::BeginTurn, &begin("s", ""));
        assert_eq!(late, Err(Reason::SessionClosed));
        assert_eq!(world.reopen("s"), Err(Reason::SessionPurged));
        assert_eq!(world.close("s").turn_count, 2);
    }
}

// A step that was decided by a row of before does nothing: not after another step, not in another life.
#[test]
fn a_step_of_yesterday_does_nothing() {
    let mut world = family();
    world.set_dumps(true);
    world.close("c");
    let session = world.store.by_id(TENANT, "c").expect("it is stored");
    let (uid, seq) = (session.row.uid, session.row.seq);
    assert!(world.step_by("c", uid, seq, dumped()));
    assert!(!world.step_by("c", uid, seq, dumped()));
    let session = world.store.by_id(TENANT, "c").expect("it is stored");
    let (seq, last) = (session.row.seq, session.row.last);
    assert_eq!(world.reopen("c"), Ok(1));
    let purge = CleanupStep::Purge { records: vec![last], last: 0, acknowledged: true };
    assert!(!world.step_by("c", uid, seq, purge.clone()), "it is open");
    world.close("c");
    assert!(!world.step_by("c", uid, seq, purge), "it is another close");
    assert_eq!(world.state("c"), SEALED);
}

// A purge and a reopen that meet: one of them is first, and the other sees it.
#[test]
fn a_purge_and_a_reopen_have_one_order() {
    for purge_first in [true, false] {
        let mut world = family();
        world.close("c");
        let session = world.store.by_id(TENANT, "c").expect("it is stored");
        let (uid, seq, last) = (session.row.uid, session.row.seq, session.row.last);
        let step = CleanupStep::Purge { records: vec![last], last: 0, acknowledged: true };
        let purge = |world: &mut World| {
            let now = world.now();
            match world.engine.cleanup_step(TENANT, "c", uid, seq, step.clone(), now) {
                roost_core::engine::Outcome::Ticket(ticket) => ticket,
                ended => panic!("{ended:?}"),
            }
        };
        let (purged, opened) = if purge_first {
            let purged = purge(&mut world);
            (purged, world.start(Method::ReopenSession, &reopen("c", "")))
        } else {
            let opened = world.start(Method::ReopenSession, &reopen("c", ""));
            world.read();
            (purge(&mut world), opened)
        };
        world.settle();
        let purged = world.done.remove(&purged).expect("it has ended").expect("it is not refused");
        let opened: Result<v1::ReopenSessionResponse, _> = world.answer(opened);
        if purge_first {
            assert_eq!((&purged[..], opened.map(|o| o.reopened)), (&b"done"[..], Err(Reason::SessionPurged)));
        } else {
            assert_eq!((&purged[..], opened.map(|o| o.reopened)), (&b"changed"[..], Ok(1)));
            world.turn("c", "");
        }
    }
}

// A batch that the store refuses takes a reopen and a step with it; the next ones are not locked out.
#[test]
fn what_is_not_stored_did_not_happen_to_ended_sessions_either() {
    let mut world = family();
    world.close("c");
    let ticket = world.start(Method::ReopenSession, &reopen("c", ""));
    while world.read() {}
    assert!(world.append(false));
    world.settle();
    let told: Result<v1::ReopenSessionResponse, _> = world.answer(ticket);
    assert!(matches!(told, Err(Reason::NotStored | Reason::Recovering)), "{told:?}");
    assert_eq!(world.state("c"), CLOSED);
    assert_eq!(world.reopen("c"), Ok(1));
    world.turn("c", "");
}

// A tree is as active as any session in it.
#[test]
fn a_tree_is_stale_one_time_out_after_its_last_activity() {
    let mut world = World::new(Limits::default());
    world.open("root", "", "", Some(600)).expect("it opens");
    world.open("child", "root", "", None).expect("it opens");
    world.pass(9 * MINUTE);
    let grant = {
        let request = v1::BeginTurnRequest {
            lease_duration: Some(prost_types::Duration { seconds: 3_600, nanos: 0 }),
            ..begin("grandchild", "child")
        };
        let told: v1::BeginTurnResponse = world.call(Method::BeginTurn, &request).expect("a slot is free");
        told.grant.expect("it was granted")
    };
    for _ in 0..20 {
        world.pass(MINUTE);
    }
    assert_eq!(world.state("root"), OPEN, "a grandchild runs");
    world.commit(&commit("grandchild", &grant.lease));
    world.unload();
    for _ in 0..9 {
        world.pass(MINUTE);
    }
    assert_eq!(world.state("root"), OPEN, "nine minutes after the last activity");
    world.pass(2 * MINUTE);
    assert_eq!(["root", "child", "grandchild"].map(|id| world.state(id)), [CLOSED; 3]);
    let receipt = world.get("root").receipt.expect("it has one");
    assert_eq!((receipt.reason, receipt.children_closed), (v1::CloseReason::Stale as i32, 2));
    let child = world.get("child").receipt.expect("it has one");
    assert_eq!(child.reason, v1::CloseReason::ParentClosed as i32);
}

// What a child has done counts after it is closed, also when the header is read again.
#[test]
fn who_has_left_the_tree_has_kept_it_alive() {
    let mut world = World::new(Limits::default());
    world.open("root", "", "", Some(600)).expect("it opens");
    world.pass(9 * MINUTE);
    world.turn("child", "root");
    world.close("child");
    world.unload();
    world.pass(5 * MINUTE);
    world.pass(3 * MINUTE);
    assert_eq!(world.state("root"), OPEN);
    world.pass(3 * MINUTE);
    assert_eq!(world.state("root"), CLOSED);
}

#[test]
fn signs_of_life_and_other_time_outs() {
    let mut world = World::new(Limits { default_stale_ms: 10 * MINUTE, ..Limits::default() });
    for id in ["idle", "alive", "never", "longer", "shorter"] {
        world.open(id, "", "", None).expect("it opens");
    }
    let update = |id: &str, stale_s: Option<i64>| v1::UpdateSessionRequest {
        session_id: id.into(),
        stale_timeout: stale_s.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
        ..Default::default()
    };
    for (id, stale_s) in [("never", Some(0)), ("longer", Some(3_600)), ("shorter", Some(60))] {
        world.call::<v1::UpdateSessionResponse>(Method::UpdateSession, &update(id, stale_s)).expect("it is open");
    }
    world.pass(2 * MINUTE);
    assert_eq!(["idle", "shorter"].map(|id| world.state(id)), [OPEN, CLOSED]);
    world.pass(4 * MINUTE);
    world.call::<v1::UpdateSessionResponse>(Method::UpdateSession, &update("alive", None)).expect("it is open");
    world.unload();
    world.pass(5 * MINUTE);
    assert_eq!(["idle", "alive", "never", "longer"].map(|id| world.state(id)), [CLOSED, OPEN, OPEN, OPEN]);
    for _ in 0..60 {
        world.pass(MINUTE);
    }
    assert_eq!(["alive", "never", "longer"].map(|id| world.state(id)), [CLOSED, OPEN, CLOSED]);
    for _ in 0..2_000 {
        world.pass(60 * MINUTE);
    }
    assert_eq!(world.state("never"), OPEN);
}

// One that waits for a slot is not idle.
#[test]
fn a_tree_that_waits_is_not_stale() {
    let mut world = World::new(Limits { max_turns_per_tenant: 1, max_wait_ms: 3_600_000, ..Limits::default() });
    let long = Some(prost_types::Duration { seconds: 3_600, nanos: 0 });
    let request = v1::BeginTurnRequest { lease_duration: long, ..begin("busy", "") };
    world.call::<v1::BeginTurnResponse>(Method::BeginTurn, &request).expect("a slot is free");
    world.open("s", "", "", Some(60)).expect("it opens");
    let waiting = world.start(Method::BeginTurn, &v1::BeginTurnRequest { wait: long, ..begin("s", "") });
    for _ in 0..5 {
        world.pass(MINUTE);
    }
    assert_eq!(world.state("s"), OPEN);
    let now = world.now();
    world.engine.cancel(waiting, now);
    for _ in 0..3 {
        world.pass(MINUTE);
    }
    assert_eq!(world.state("s"), CLOSED);
}
