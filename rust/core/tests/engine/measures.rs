//! Histograms, refusals by reason, and which call a read is for.

use crate::sim::scene::{World, begin, commit, go_on};
use roost_core::engine::{Effect, Method};
use roost_core::error::Reason;
use roost_core::limits::Limits;
use roost_core::proto::v1;

/// Values and their sum, and the upper bounds of the buckets that have some (`None`: above all).
fn told(world: &World, name: &str) -> (u64, u64, Vec<Option<u64>>) {
    let all = world.engine.distributions();
    let one = all.iter().find(|d| d.name == name).expect("it is told");
    assert_eq!(one.counts.len(), one.bounds.len() + 1);
    let filled = one.counts.iter().enumerate().filter(|(_, count)| **count > 0);
    (one.counts.iter().sum(), one.sum, filled.map(|(i, _)| one.bounds.get(i).copied()).collect())
}

#[test]
fn a_wait_for_a_slot_and_the_time_that_it_was_held_are_measured() {
    let mut world = World::new(Limits { max_turns_per_tenant: 1, ..Limits::default() });
    let first = world.begin("a");
    assert_eq!(told(&world, "turn_wait_ms").2, [Some(1)]);
    assert_eq!(told(&world, "turn_held_ms").0, 0);
    let wait = Some(prost_types::Duration { seconds: 3_600, nanos: 0 });
    let waiting = world.start(Method::BeginTurn, &v1::BeginTurnRequest { wait, ..begin("b", "") });
    world.settle();
    world.pass(7_000);
    assert_eq!(told(&world, "turn_wait_ms").0, 1, "it waits still");
    world.commit(&commit("a", &first.lease));
    let begun: v1::BeginTurnResponse = world.answer(waiting).expect("the slot is free");
    let (count, sum, filled) = told(&world, "turn_wait_ms");
    assert_eq!((count, filled), (2, vec![Some(1), Some(10_000)]));
    assert!((7_000..7_100).contains(&sum), "{sum}");
    assert_eq!((told(&world, "turn_held_ms").0, told(&world, "turn_held_ms").2), (1, vec![Some(10_000)]));
    // The slot passes on: nobody waits for it, and each turn is one.
    let grant = begun.grant.expect("it was granted");
    let next = world.commit(&go_on("b", &grant.lease)).next.expect("it goes on");
    world.abort("b", &next.lease);
    assert_eq!((told(&world, "turn_wait_ms").0, told(&world, "turn_held_ms").0), (2, 3));
    // Late commits end nothing that runs.
    let late = world.begin("b").lease;
    world.pass(120_000);
    assert_eq!((world.stat("turns_expired"), told(&world, "turn_held_ms").0), (1, 4));
    world.commit(&commit("b", &late));
    assert_eq!(told(&world, "turn_held_ms").0, 4);
}

#[test]
fn batches_are_measured_by_their_entries() {
    let mut world = World::new(Limits::default());
    for n in 0..20 {
        let open = v1::OpenSessionRequest { session_id: format!("s{n}"), ..v1::OpenSessionRequest::default() };
        world.start(Method::OpenSession, &open);
        world.read();
        world.engine.completed();
    }
    world.read();
    world.settle();
    world.turn("t", "");
    let (count, sum, _) = told(&world, "batch_entries");
    assert_eq!((count as i64, sum as i64), (world.stat("batches_stored"), world.stat("entries_stored")));
    assert!(sum > 20 && count < sum, "{count} batches of {sum} entries");
    world.start(Method::OpenSession, &v1::OpenSessionRequest { session_id: "no".into(), ..Default::default() });
    world.read();
    assert!(world.append(false));
    world.settle();
    assert_eq!((told(&world, "batch_entries").0, world.stat("batches_refused")), (count, 1));
}

#[test]
fn refusals_are_counted_by_reason() {
    let mut world = World::new(Limits::default());
    assert_eq!(world.engine.refusals().len(), Reason::ALL.len());
    let get = |id: &str| v1::GetSessionRequest { session_id: id.into() };
    for _ in 0..2 {
        assert!(world.call::<v1::GetSessionResponse>(Method::GetSession, &get("nobody")).is_err());
    }
    assert!(world.call::<v1::GetSessionResponse>(Method::GetSession, &get("not an id")).is_err());
    world.begin("s");
    assert!(world.call::<v1::BeginTurnResponse>(Method::BeginTurn, &begin("s", "")).is_err());
    let counted: Vec<_> = world.engine.refusals().into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("INVALID_FIELD", 1), ("SESSION_NOT_FOUND", 2), ("TURN_IN_PROGRESS", 1)]);
    assert_eq!(world.stat("refusals"), 4);
}

#[test]
fn a_read_tells_for_which_call_it_is() {
    let mut world = World::new(Limits::default());
    world.turn("s", "");
    world.restart();
    let first = world.start(Method::BeginTurn, &begin("s", ""));
    // It waits for the same look at the store, and then for a read of its own.
    let second = world.start(Method::GetSession, &v1::GetSessionRequest { session_id: "s".into() });
    let mut kinds = Vec::new();
    loop {
        let effects = world.engine.effects();
        if effects.is_empty() {
            break;
        }
        for effect in effects {
            kinds.push(format!("{effect:?}").split_whitespace().next().unwrap_or_default().to_owned());
            let whose = if matches!(effect, Effect::Read { .. }) { second } else { first };
            assert_eq!(world.engine.read_for(effect.id()), Some(whose), "{effect:?}");
            let (id, now) = (effect.id(), world.now());
            world.store.answer(effect)(&world.engine, now);
            assert_eq!(world.engine.read_for(id), None, "it has been answered");
        }
    }
    kinds.sort();
    assert_eq!(kinds, ["Find", "Read", "Session"]);
    world.settle();
    // What the engine reads for itself is for nobody.
    world.engine.sweep_now();
    let now = world.now();
    world.engine.tick(now);
    let effects = world.engine.effects();
    assert!(!effects.is_empty() && effects.iter().all(|e| world.engine.read_for(e.id()).is_none()), "{effects:?}");
    assert_eq!(world.engine.read_for(9_999), None);
}
