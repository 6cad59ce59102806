//! Short scenarios against the engine and a store in memory, where the order of appends, refusals and cancellations must
//! be exact. What holds whatever the order is in simulation.rs.

use crate::sim::scene::{TENANT, World, begin, close, commit, go_on, interrupt, reward};
use prost::Message;
use roost_core::engine::{Caller, Effect, Method, Outcome};
use roost_core::error::Reason;
use roost_core::limits::Limits;
use roost_core::proto::v1;

/// A world in which every entry is a batch of its own.
fn slow() -> World {
    World::new(Limits { max_batch_entries: 1, ..Limits::default() })
}

/// A root with three children, each with a trajectory that is to finish in ten minutes; none of them in memory.
fn pending(limits: Limits) -> World {
    let mut world = World::new(limits);
    world.turn("root", "");
    for id in ["a", "b", "c"] {
        world.turn(id, "root");
        world.reward(id, Some(600)).expect("it is rewarded");
    }
    world.restart();
    world
}

/// I21: the request that was told NOT_STORED is as if it had never been, so its repeat has its whole effect.
#[test]
fn a_forced_interrupt_is_stored_whole_or_not_at_all() {
    let mut world = slow();
    world.begin("s");
    let request = interrupt("s", "i1", true);
    let ticket = world.start(Method::InterruptSession, &request);
    assert!(world.append(false));
    world.settle();
    assert_eq!(world.answer::<v1::InterruptSessionResponse>(ticket), Err(Reason::NotStored));
    assert_eq!(world.get("s").activity(), v1::Activity::Running);
    let told: v1::InterruptSessionResponse = world.call(Method::InterruptSession, &request).expect("it is open");
    assert_eq!((told.previous_activity(), told.turn, told.repeated), (v1::Activity::Running, 1, false));
    assert_eq!(world.get("s").activity(), v1::Activity::Idle);
    let again: v1::InterruptSessionResponse = world.call(Method::InterruptSession, &request).expect("it is open");
    assert!(again.repeated);
}

#[test]
fn what_one_call_writes_is_one_batch() {
    for (method, request) in [
        (Method::InterruptSession, interrupt("s", "i1", true).encode_to_vec()),
        (Method::CloseSession, close("s").encode_to_vec()),
        (Method::SetReward, reward("s", Some(0)).encode_to_vec()),
    ] {
        let mut world = slow();
        world.turn("s", "");
        match method {
            Method::InterruptSession => drop(world.begin("s")),
            Method::CloseSession => drop(world.reward("s", Some(600))),
            _ => {}
        }
        let now = world.now();
        let outcome = world.engine.call(method, &request, &Caller::of(TENANT), 0, now);
        assert!(matches!(outcome, Outcome::Ticket(_)), "{outcome:?}");
        assert!(world.append(true));
        assert!(!world.append(true), "{method:?} wrote a second batch");
    }
}

/// I22: nothing of a refused close happened, nor of a refused reward.
#[test]
fn a_refused_close_or_reward_leaves_the_trajectory_as_it_was() {
    let mut world = slow();
    world.turn("s", "");
    world.reward("s", Some(600)).expect("it is rewarded");
    let ticket = world.start(Method::CloseSession, &close("s"));
    assert!(world.append(false));
    world.settle();
    assert_eq!(world.answer::<v1::CloseSessionResponse>(ticket), Err(Reason::NotStored));
    let session = world.get("s");
    assert_eq!((session.state(), session.trajectory), (v1::SessionState::Open, 1));
    assert!(session.finish_time.is_some());
    let ticket = world.start(Method::SetReward, &reward("s", Some(0)));
    assert!(world.read());
    assert!(world.append(false));
    world.settle();
    assert_eq!(world.answer::<v1::SetRewardResponse>(ticket), Err(Reason::NotStored));
    assert_eq!(world.finished("s"), []);
    assert!(world.reward("s", Some(0)).expect("it is rewarded").finished);
    assert_eq!(world.finished("s"), [(1, 1, 1)]);
}

#[test]
fn a_close_finishes_what_was_to_finish_and_loads_nothing() {
    for limits in [Limits::default(), Limits { max_resident_sessions: 1, ..Limits::default() }] {
        let mut world = pending(limits);
        assert_eq!(world.close("root").children_closed, 3);
        assert_eq!(world.loads, 0);
        for id in ["a", "b", "c"] {
            assert_eq!(world.finished(id), [(1, 1, 1)]);
        }
        assert_eq!(world.finished("root"), []);
    }
}

#[test]
fn so_does_the_last_commit_of_the_root() {
    let mut world = pending(Limits { max_resident_sessions: 1, ..Limits::default() });
    let lease = world.begin("root").lease;
    let last = v1::CommitTurnRequest { then: v1::Then::Close as i32, ..commit("root", &lease) };
    assert_eq!(world.commit(&last).receipt.expect("it has a receipt").children_closed, 3);
    for id in ["a", "b", "c"] {
        assert_eq!(world.finished(id), [(1, 1, 1)]);
    }
}

#[test]
fn a_session_that_cannot_be_read_keeps_no_other_from_its_finish() {
    let mut world = pending(Limits::default());
    world.unreadable.insert("a".into());
    world.close("root");
    for id in ["a", "b", "c"] {
        assert_eq!(world.finished(id), [(1, 1, 1)]);
    }
}

/// What an evicted session keeps for its finish is what it would have had in memory.
#[test]
fn i11_a_close_finishes_the_evicted_as_the_resident() {
    let mut world = World::new(Limits { max_resident_sessions: 1, ..Limits::default() });
    world.turn("root", "");
    for id in ["a", "b"] {
        world.turn(id, "root");
        world.turn(id, "root");
        world.reward(id, Some(0)).expect("it is rewarded");
        world.turn(id, "root");
        let lease = world.begin(id).lease;
        world.abort(id, &lease);
        world.reward(id, Some(600)).expect("it is rewarded");
    }
    for _ in 0..10 {
        let now = world.now();
        world.engine.tick(now);
    }
    assert_eq!(world.close("root").provisionals_aborted, 2);
    for id in ["a", "b"] {
        assert_eq!(world.finished(id), [(1, 1, 2), (2, 3, 1)]);
    }
}

#[test]
fn an_abort_with_which_its_trajectory_ended_says_aborted() {
    let mut world = World::new(Limits::default());
    world.turn("s", "");
    let lease = world.begin("s").lease;
    assert!(!world.reward("s", Some(0)).expect("it is rewarded").finished);
    let told = world.abort("s", &lease);
    assert_eq!((told.status(), told.repeated), (v1::RecordStatus::Aborted, false));
    assert_eq!((world.get("s").provisional_turn, world.get("s").trajectory), (0, 2));
    let again = world.abort("s", &lease);
    assert_eq!((again.status(), again.repeated), (v1::RecordStatus::Aborted, true));
}

#[test]
fn a_takeover_ends_a_trajectory_that_waited_for_the_turn() {
    let mut world = World::new(Limits::default());
    world.turn("s", "");
    world.begin("s");
    world.reward("s", Some(0)).expect("it is rewarded");
    let grant = world.take_over("s", "t1");
    assert_eq!(grant.provisional, None);
    assert_eq!(world.finished("s"), [(1, 1, 1)]);
    world.commit(&commit("s", &grant.lease));
    let finish = v1::FinishTrajectoryRequest { session_id: "s".into(), ..v1::FinishTrajectoryRequest::default() };
    world.call::<v1::FinishTrajectoryResponse>(Method::FinishTrajectory, &finish).expect("there is a turn");
    assert_eq!(world.finished("s"), [(1, 1, 1), (2, 2, 1)]);
}

/// I11: what the first answer says of the provisional, its repeat reads from the store.
#[test]
fn a_takeover_and_its_repeat_tell_the_same_of_what_was_left() {
    let mut world = World::new(Limits::default());
    world.begin("s");
    let [first, again] = [(); 2].map(|()| world.take_over("s", "t1").provisional);
    assert_eq!(first.as_ref().map(|p| (p.trajectory, p.attempt)), Some((1, 1)));
    assert_eq!(first, again);
}

#[test]
fn the_repeat_of_a_commit_that_kept_no_slot_says_why_again() {
    let mut world = World::new(Limits::default());
    let lease = world.begin("s").lease;
    world.call::<v1::InterruptSessionResponse>(Method::InterruptSession, &interrupt("s", "", false)).expect("it runs");
    let told: Vec<_> = (0..2).map(|_| world.commit(&go_on("s", &lease))).collect();
    for (n, told) in told.iter().enumerate() {
        assert_eq!(told.next_refused.as_ref().map(|r| &*r.reason), Some("TURN_INTERRUPTED"));
        assert_eq!((told.turn, told.repeated), (1, n == 1));
    }
}

#[test]
fn the_repeat_of_a_commit_whose_next_turn_is_over_says_how_it_ended() {
    let mut world = World::new(Limits::default());
    let lease = world.begin("s").lease;
    let next = world.commit(&go_on("s", &lease)).next.expect("it went on");
    world.abort("s", &next.lease);
    let refused = world.commit(&go_on("s", &lease)).next_refused.expect("that turn is over");
    assert_eq!(refused.reason, "TURN_ENDED");
    assert!(refused.message.contains("turn 2 (attempt 1)") && refused.message.ends_with("ABORTED"), "{refused:?}");
}

/// The end may come between the read of the records and the look at what runs.
#[test]
fn so_does_one_whose_next_turn_ends_just_then() {
    let mut world = World::new(Limits::default());
    let lease = world.begin("s").lease;
    let next = world.commit(&go_on("s", &lease)).next.expect("it went on");
    let ticket = world.start(Method::CommitTurn, &go_on("s", &lease));
    let effects = world.engine.effects();
    let [Effect::Session { id, uid, wanted }] = effects[..] else { panic!("{effects:?}") };
    let loaded = world.store.load(uid, wanted);
    let abort = v1::AbortTurnRequest { session_id: "s".into(), lease: next.lease, ..v1::AbortTurnRequest::default() };
    world.start(Method::AbortTurn, &abort);
    let now = world.now();
    world.engine.session_loaded(id, loaded, now);
    world.settle();
    let refused = world.answer::<v1::CommitTurnResponse>(ticket).expect("it stands").next_refused;
    assert!(refused.expect("that turn is over").message.ends_with("ABORTED"));
}

/// I21: one request_id, one commit.
#[test]
fn a_request_id_of_another_turns_end_is_refused() {
    let mut world = World::new(Limits::default());
    let request = |lease: &[u8]| v1::CommitTurnRequest { request_id: "c1".into(), ..commit("s", lease) };
    let lease = world.begin("s").lease;
    assert_eq!(world.commit(&request(&lease)).turn, 1);
    for restarted in [false, true] {
        if restarted {
            world.restart();
        }
        // The second time that turn runs still.
        let grant = if restarted { world.take_over("s", "") } else { world.begin("s") };
        let lease = grant.lease;
        let refused = world.call::<v1::CommitTurnResponse>(Method::CommitTurn, &request(&lease));
        assert_eq!(refused.map(|r| r.turn), Err(Reason::RequestMismatch));
        let abort = v1::AbortTurnRequest {
            session_id: "s".into(),
            request_id: "c1".into(),
            lease: lease.clone(),
            ..v1::AbortTurnRequest::default()
        };
        let refused = world.call::<v1::AbortTurnResponse>(Method::AbortTurn, &abort);
        assert_eq!(refused.map(|r| r.turn), Err(Reason::RequestMismatch));
        assert_eq!(world.get("s").turn_count, 1);
    }
    let other =
        v1::BeginTurnRequest { if_running: v1::IfRunning::Takeover as i32, request_id: "c1".into(), ..begin("s", "") };
    // The ids of different RPCs do not meet.
    let begun: v1::BeginTurnResponse = world.call(Method::BeginTurn, &other).expect("it takes over");
    world.commit(&commit("s", &begun.grant.expect("it was granted").lease));
}

#[test]
fn a_reward_that_a_rewind_took_back_is_not_the_new_turns() {
    let mut world = World::new(Limits::default());
    world.turn("s", "");
    world.turn("s", "");
    assert_eq!(world.reward("s", None).expect("it is rewarded").turn, 2);
    let lease = world.begin("s").lease;
    assert_eq!(world.commit(&v1::CommitTurnRequest { base_turn: Some(1), ..commit("s", &lease) }).turn, 2);
    let finish = v1::FinishTrajectoryRequest { session_id: "s".into(), ..v1::FinishTrajectoryRequest::default() };
    world.call::<v1::FinishTrajectoryResponse>(Method::FinishTrajectory, &finish).expect("there are turns");
    let named = v1::SetRewardRequest { turn: 2, ..reward("s", None) };
    let refused = world.call::<v1::SetRewardResponse>(Method::SetReward, &named);
    assert_eq!(refused.map(|r| r.turn), Err(Reason::TrajectoryFinished));
}

#[test]
fn attempts_at_a_number_count_on_after_a_rewind() {
    let mut world = World::new(Limits::default());
    for _ in 0..3 {
        world.turn("s", "");
    }
    let lease = world.begin("s").lease;
    world.abort("s", &lease);
    let lease = world.begin("s").lease;
    let told = world.commit(&v1::CommitTurnRequest { base_turn: Some(1), ..go_on("s", &lease) });
    let next = told.next.expect("it went on");
    // Turn 3 was tried once before, turn 4 once too.
    assert_eq!((next.turn, next.attempt), (3, 2));
    world.commit(&commit("s", &next.lease));
    world.restart();
    let grant = world.begin("s");
    assert_eq!((grant.turn, grant.attempt), (4, 2));
    world.commit(&commit("s", &grant.lease));
    let grant = world.begin("s");
    assert_eq!((grant.turn, grant.attempt), (5, 1));
}

/// I24: a turn that nobody was told of is released, whichever of its answers is given up last.
#[test]
fn a_repeated_commit_whose_callers_are_all_gone_keeps_no_slot() {
    for gone in [[0, 1], [1, 0]] {
        let mut world = World::new(Limits::default());
        let lease = world.begin("s").lease;
        let tickets = [
            world.start(Method::CommitTurn, &go_on("s", &lease)),
            world.start(Method::CommitTurn, &go_on("s", &lease)),
        ];
        assert!(world.append(true));
        assert!(world.read());
        for n in gone {
            assert_eq!(world.get("s").activity(), v1::Activity::Running);
            let now = world.now();
            world.engine.cancel(tickets[n], now);
        }
        world.settle();
        assert_eq!(world.get("s").activity(), v1::Activity::Idle);
    }
}

/// I21: what the store said of a request_id is not believed when a record has come since.
#[test]
fn two_finishes_of_one_request_id_are_one_though_a_turn_bore_it_too() {
    let mut world = World::new(Limits::default());
    let request = v1::BeginTurnRequest { request_id: "x".into(), ..begin("s", "") };
    let begun: v1::BeginTurnResponse = world.call(Method::BeginTurn, &request).expect("a slot is free");
    world.commit(&commit("s", &begun.grant.expect("it was granted").lease));
    let finish = v1::FinishTrajectoryRequest { session_id: "s".into(), request_id: "x".into(), reward: None };
    let tickets = [world.start(Method::FinishTrajectory, &finish), world.start(Method::FinishTrajectory, &finish)];
    world.settle();
    let told: Vec<v1::FinishTrajectoryResponse> =
        tickets.iter().map(|t| world.answer(*t).expect("it is finished")).collect();
    assert_eq!(told[0].trajectory, told[1].trajectory);
    assert_eq!(world.finished("s"), [(1, 1, 1)]);
}
