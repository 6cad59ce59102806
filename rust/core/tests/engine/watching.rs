//! What is told of sessions, against the engine and a store in memory: each kind of event, that only what is durable is
//! told, and what owners are told. What holds whatever the order is in simulation.rs and threads.rs.

use crate::sim::scene::{TENANT, World, begin, close, commit, go_on, interrupt};
use roost_core::engine::{Appended, Filter, Method, Watch};
use roost_core::limits::Limits;
use roost_core::proto::v1;
use roost_core::proto::v1::SessionEventKind::{self as Kind, *};
use roost_core::proto::v1::watch_owner_response::Event;

/// A world in which every entry is a batch of its own.
fn slow() -> World {
    World::new(Limits { max_batch_entries: 1, ..Limits::default() })
}

fn watch(world: &World) -> Watch {
    world.engine.watch(TENANT, Filter::default(), None)
}

fn of_owner(world: &World, owner: &str) -> Watch {
    world.engine.watch(TENANT, Filter { owner: Some(owner.into()), ..Filter::default() }, None)
}

fn events(world: &World, watch: &mut Watch) -> Vec<v1::SessionEvent> {
    let watched = world.engine.watch_take(watch, 1_000, 1 << 20);
    assert!(!watched.lost && !watched.more);
    watched.events.iter().map(|told| told.to_proto()).collect()
}

fn kinds(world: &World, watch: &mut Watch) -> Vec<(Kind, String)> {
    events(world, watch).into_iter().map(|event| (event.kind(), event.session_id)).collect()
}

fn owned(world: &World, watch: &mut Watch) -> Vec<Event> {
    let (owned, lost, more) = world.engine.watch_owned(watch, 1_000);
    assert!(!lost && !more);
    owned.into_iter().filter_map(|told| told.event).collect()
}

fn begun_by(world: &mut World, id: &str, owner: &str, takeover: bool) -> v1::Grant {
    let if_running = if takeover { v1::IfRunning::Takeover } else { v1::IfRunning::Refuse } as i32;
    let request = v1::BeginTurnRequest { owner: owner.into(), if_running, ..begin(id, "") };
    let begun: v1::BeginTurnResponse = world.call(Method::BeginTurn, &request).expect("a slot is free");
    begun.grant.expect("it was granted")
}

fn asked_to_end(world: &mut World, id: &str, force: bool) {
    let asked = world.call::<v1::InterruptSessionResponse>(Method::InterruptSession, &interrupt(id, "", force));
    asked.expect("it is open");
}

fn interrupt_of(id: &str, turn: u32, fence: u64) -> Event {
    Event::Interrupt(v1::Interrupt { session_id: id.into(), turn, fence })
}

fn lost(id: &str, turn: u32, fence: u64, outcome: v1::TurnOutcome) -> Event {
    Event::LeaseLost(v1::LeaseLost { session_id: id.into(), turn, fence, outcome: outcome as i32 })
}

fn closed(id: &str, reason: v1::CloseReason) -> Event {
    Event::Closed(v1::OwnedSessionClosed { session_id: id.into(), reason: reason as i32 })
}

#[test]
fn whatever_happens_to_a_session_is_told_in_order() {
    let mut world = World::new(Limits::default());
    let mut all = watch(&world);
    let options = v1::OpenOptions { ..v1::OpenOptions::default() };
    let open = v1::OpenSessionRequest { session_id: "root".into(), options: Some(options), ..Default::default() };
    world.call::<v1::OpenSessionResponse>(Method::OpenSession, &open).expect("it is new");
    let begun: v1::BeginTurnResponse = world
        .call(Method::BeginTurn, &v1::BeginTurnRequest { owner: "host".into(), ..begin("kid", "root") })
        .expect("a slot is free");
    let lease = begun.grant.expect("it was granted").lease;
    asked_to_end(&mut world, "kid", false);
    // Once more changes nothing.
    asked_to_end(&mut world, "kid", false);
    world.abort("kid", &lease);
    let lease = world.begin("kid").lease;
    let next = world.commit(&go_on("kid", &lease)).next.expect("it went on");
    for (key, value) in [("a", "1"), ("a", "1")] {
        let labels = [(key.to_owned(), value.to_owned())].into();
        let update = v1::UpdateSessionRequest { session_id: "kid".into(), labels, ..Default::default() };
        world.call::<v1::UpdateSessionResponse>(Method::UpdateSession, &update).expect("it is open");
    }
    world.close("root");
    let reopen = v1::ReopenSessionRequest { session_id: "root".into(), ..Default::default() };
    world.call::<v1::ReopenSessionResponse>(Method::ReopenSession, &reopen).expect("it comes back");
    let events = events(&world, &mut all);
    let told: Vec<_> = events.iter().map(|e| (e.kind(), &*e.session_id, e.turn, e.attempt)).collect();
    assert_eq!(
        told,
        [
            (Opened, "root", 0, 0),
            (Opened, "kid", 0, 0),
            (TurnBegun, "kid", 1, 1),
            (Interrupted, "kid", 1, 1),
            (TurnEnded, "kid", 1, 1),
            (TurnBegun, "kid", 1, 2),
            (TurnEnded, "kid", 1, 2),
            (TurnBegun, "kid", 2, 1),
            (Updated, "kid", 0, 0),
            (TurnEnded, "kid", 2, 1),
            (Closed, "root", 0, 0),
            (Closed, "kid", 0, 0),
            (Reopened, "root", 0, 0),
            (Reopened, "kid", 0, 0),
        ]
    );
    let outcomes: Vec<_> = events.iter().filter(|e| e.kind() == TurnEnded).map(v1::SessionEvent::outcome).collect();
    use v1::TurnOutcome::{Committed, Interrupted as Ended, Unspecified};
    assert_eq!(outcomes, [Ended, Committed, Unspecified]);
    let reasons: Vec<_> = events.iter().filter(|e| e.kind() == Closed).map(v1::SessionEvent::close_reason).collect();
    assert_eq!(reasons, [v1::CloseReason::Quit, v1::CloseReason::ParentClosed]);
    let owners: Vec<_> = events.iter().map(|e| &*e.owner).filter(|owner| !owner.is_empty()).collect();
    assert_eq!(owners, ["host"; 3]);
    for event in &events {
        let stored = world.store.by_id(TENANT, &event.session_id).expect("it is stored");
        assert_eq!((event.uid.clone(), &event.path), (stored.row.uid.to_string(), &stored.row.path));
        assert_eq!(event.root_session_id, "root");
        assert!(event.time.is_some_and(|t| t.seconds >= 1_700_000_000));
    }
    assert!(!next.lease.is_empty());
}

/// I6: nothing is told before it is durable.
#[test]
fn an_event_is_told_when_it_is_durable() {
    let mut world = slow();
    let mut all = watch(&world);
    world.start(Method::BeginTurn, &begin("s", ""));
    world.start(Method::BeginTurn, &begin("t", ""));
    world.read();
    assert!(!world.engine.watch_look(&mut all));
    assert!(world.append(true));
    assert_eq!(kinds(&world, &mut all), [(Opened, "s".into()), (TurnBegun, "s".into())]);
    assert!(world.append(true));
    assert_eq!(kinds(&world, &mut all), [(Opened, "t".into()), (TurnBegun, "t".into())]);
    assert_eq!((world.engine.watch_count(), all.position()), (4, 4));
}

#[test]
fn what_a_refused_batch_held_is_never_told() {
    let mut world = slow();
    let lease = world.begin("s").lease;
    let (mut all, count) = (watch(&world), world.engine.watch_count());
    world.start(Method::CommitTurn, &commit("s", &lease));
    world.start(Method::BeginTurn, &begin("s", ""));
    world.start(Method::BeginTurn, &begin("other", ""));
    world.read();
    assert!(world.append(false));
    world.settle();
    assert_eq!((kinds(&world, &mut all), world.engine.watch_count()), (vec![], count));
    world.commit(&commit("s", &lease));
    assert_eq!(kinds(&world, &mut all), [(TurnEnded, "s".into())]);
}

#[test]
fn of_a_tree_that_is_set_aside_nothing_more_is_told() {
    let mut world = World::new(Limits::default());
    let mut all = watch(&world);
    world.start(Method::BeginTurn, &begin("good", ""));
    world.start(Method::BeginTurn, &begin("bad", ""));
    world.read();
    let batch = world.engine.take_batch().expect("there are two entries");
    let (good, bad) = (&batch.split()[0], batch.roots[1]);
    world.store.apply(good).expect("the store takes it");
    let now = world.now();
    world.engine.appended(&Appended::Stored { quarantine: vec![bad] }, now);
    assert_eq!(kinds(&world, &mut all), [(Opened, "good".into()), (TurnBegun, "good".into())]);
}

#[test]
fn a_grant_that_nobody_got_is_told_as_ended_without_an_outcome() {
    let mut world = World::new(Limits::default());
    world.turn("s", "");
    let mut all = watch(&world);
    let ticket = world.start(Method::BeginTurn, &begin("s", ""));
    let now = world.now();
    world.engine.cancel(ticket, now);
    world.settle();
    let events = events(&world, &mut all);
    let told: Vec<_> = events.iter().map(|e| (e.kind(), e.outcome())).collect();
    assert_eq!(told, [(TurnBegun, v1::TurnOutcome::Unspecified), (TurnEnded, v1::TurnOutcome::Unspecified)]);
}

#[test]
fn an_owner_is_told_what_others_do_to_its_turns_and_sessions() {
    let mut world = World::new(Limits::default());
    let (mut mine, mut theirs) = (of_owner(&world, "mine"), of_owner(&world, "theirs"));
    use v1::TurnOutcome::{Expired, Interrupted as Ended};
    // Its own commits and aborts it knows.
    let lease = begun_by(&mut world, "s", "mine", false).lease;
    world.commit(&commit("s", &lease));
    let lease = begun_by(&mut world, "s", "mine", false).lease;
    world.abort("s", &lease);
    assert_eq!(owned(&world, &mut mine), []);
    // What it takes over from itself too.
    let first = begun_by(&mut world, "s", "mine", false);
    let second = begun_by(&mut world, "s", "mine", true);
    assert_eq!((owned(&world, &mut mine), second.fence), (vec![], first.fence + 1));
    let third = begun_by(&mut world, "s", "theirs", true);
    assert_eq!(owned(&world, &mut mine), [lost("s", 2, second.fence, Expired)]);
    asked_to_end(&mut world, "s", false);
    asked_to_end(&mut world, "s", true);
    let told = owned(&world, &mut theirs);
    assert_eq!(told, [interrupt_of("s", 2, third.fence), lost("s", 2, third.fence, Ended)]);
    let fourth = begun_by(&mut world, "s", "mine", false);
    world.pass(100_000);
    assert_eq!(owned(&world, &mut mine), [lost("s", 2, fourth.fence, Expired)]);
    // Whose session it is follows from its latest turn, whether or not that runs.
    world.close("s");
    assert_eq!(owned(&world, &mut mine), [closed("s", v1::CloseReason::Quit)]);
    assert_eq!(owned(&world, &mut theirs), []);
}

#[test]
fn turns_that_are_asked_to_end_are_found_again() {
    let mut world = slow();
    for (id, owner) in [("a", "mine"), ("b", "mine"), ("c", "theirs"), ("d", "mine")] {
        begun_by(&mut world, id, owner, false);
    }
    let found = |world: &World| {
        let mut found: Vec<_> =
            world.engine.interrupts_of(TENANT, "mine").into_iter().filter_map(|told| told.event).collect();
        found.sort_by_key(|event| format!("{event:?}"));
        found
    };
    assert_eq!(found(&world), []);
    let mut mine = of_owner(&world, "mine");
    asked_to_end(&mut world, "a", false);
    asked_to_end(&mut world, "c", false);
    assert_eq!(found(&world), [interrupt_of("a", 1, 1)]);
    assert_eq!(world.engine.interrupts_of("another", "mine"), []);
    assert_eq!(owned(&world, &mut mine), [interrupt_of("a", 1, 1)]);
    // What is not durable is in neither place, and what the store refused never comes.
    world.start(Method::InterruptSession, &interrupt("b", "", false));
    assert_eq!(found(&world), [interrupt_of("a", 1, 1)]);
    assert!(world.append(false));
    world.settle();
    assert_eq!((found(&world), owned(&world, &mut mine)), (vec![interrupt_of("a", 1, 1)], vec![]));
    asked_to_end(&mut world, "b", false);
    // An entry of the line that is not durable yet hides nothing that is.
    let update = v1::UpdateSessionRequest { session_id: "b".into(), ..Default::default() };
    world.start(Method::UpdateSession, &update);
    let both = [interrupt_of("a", 1, 1), interrupt_of("b", 1, 1)];
    assert_eq!(found(&world), both);
    world.settle();
    world.restart();
    assert_eq!(found(&world), both);
    world.call::<v1::CloseSessionResponse>(Method::CloseSession, &close("a")).expect("it closes");
    assert_eq!(found(&world), both[1..]);
}
