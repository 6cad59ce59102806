//! What a full gate answers: the cap, who holds it, where a call stands in the queue; and that `validate_only` answers as
//! the real call would and takes nothing.

use crate::sim::scene::{World, begin, commit, go_on};
use prost::Message;
use roost_core::engine::Method;
use roost_core::error::{Reason, Refusal};
use roost_core::limits::Limits;
use roost_core::proto::v1;
use std::collections::BTreeSet;

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn patient(id: &str, parent: &str, priority: i32) -> v1::BeginTurnRequest {
    v1::BeginTurnRequest { wait: Some(seconds(60)), priority, ..begin(id, parent) }
}

impl World {
    fn refused(&mut self, request: &v1::BeginTurnRequest) -> Refusal {
        self.told_as("", Method::BeginTurn, request).expect_err("the gate is full")
    }
}

fn holders(refusal: &Refusal) -> Vec<&str> {
    refusal.quota.as_ref().expect("a cap refused").holders.iter().map(|(id, _)| id.as_str()).collect()
}

/// The numbers of a message are in its metadata, one by one.
fn check_words(refusal: &Refusal) {
    let values: Vec<&String> = refusal.metadata.values().collect();
    for number in refusal.message.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty()) {
        assert!(values.iter().any(|v| v.contains(number)), "{number} of {:?} is not in {values:?}", refusal.message);
    }
    assert!(refusal.to_status().len() < 4_096);
    assert!(refusal.retry_ms.is_some());
}

#[test]
fn a_full_tree_says_who_holds_it_and_where_a_call_would_stand() {
    let mut world = World::new(Limits { max_turns_per_tree: 3, ..Limits::default() });
    world.turn("root", "");
    let first = world.begin_at("a", "root");
    world.pass(2_000);
    world.begin_at("b", "root");
    world.pass(500);
    let refusal = world.refused(&begin("c", "root"));
    assert_eq!(refusal.reason, Reason::TreeTurns);
    assert_eq!(
        refusal.message,
        "2 turns run in this tree, and max_turns_per_tree is 3, one place of which is kept for the root; the longest \
         is that of session \"a\", for 2 s; this call would be number 1 in the queue: wait for a place (`wait`), or end \
         a turn"
    );
    check_words(&refusal);
    assert_eq!(holders(&refusal), ["a", "b"]);
    let told = |name: &str| refusal.metadata[name].as_str();
    assert_eq!((told("limit_name"), told("limit"), told("used")), ("max_turns_per_tree", "3", "2"));
    assert_eq!((told("queue_position"), told("waiting")), ("1", "0"));
    let held: Vec<_> = told("holders").split(' ').map(|one| one.split_once('=').expect("id=ms").0).collect();
    assert_eq!(held, ["a", "b"]);
    // The root's own place is free, and counts once it is taken.
    world.begin_at("root", "");
    let refusal = world.refused(&begin("c", "root"));
    assert_eq!((refusal.metadata["used"].as_str(), holders(&refusal)), ("3", vec!["a", "b", "root"]));
    // A session that goes on holds its slot since its new turn.
    world.commit(&go_on("a", &first.lease));
    assert_eq!(holders(&world.refused(&begin("c", "root"))), ["b", "root", "a"]);
}

#[test]
fn a_place_in_the_queue_counts_those_who_go_first_and_are_still_there() {
    let mut world = World::new(Limits { max_turns_per_tree: 2, ..Limits::default() });
    world.turn("root", "");
    world.begin_at("a", "root");
    let low = world.waits(&patient("w1", "root", -5));
    let named = v1::BeginTurnRequest { request_id: "r2".into(), ..patient("w2", "root", 0) };
    let gone = world.waits(&named);
    world.waits(&patient("w3", "root", 7));
    let position = |world: &mut World, priority: i32| {
        let refusal = world.refused(&v1::BeginTurnRequest { priority, ..begin("c", "root") });
        check_words(&refusal);
        let number = |name: &str| refusal.metadata[name].parse::<u32>().expect("a number");
        (number("queue_position"), number("waiting"))
    };
    assert_eq!([8, 7, 0, -5].map(|p| position(&mut world, p)), [(1, 3), (2, 3), (3, 3), (4, 3)]);
    // A call that is gone keeps its place for its repeat, and nobody is told of it.
    let now = world.now();
    world.engine.cancel(gone, now);
    world.settle();
    assert_eq!(position(&mut world, -5), (3, 2));
    // Its repeat has that place again.
    world.waits(&v1::BeginTurnRequest { wait: Some(seconds(20)), ..named });
    assert_eq!(position(&mut world, -5), (4, 3));
    // A wait that is over says where it stood at its end.
    world.pass(20_000);
    world.pass(40_000);
    let refusal = world.done.remove(&low).expect("it has waited").expect_err("the gate is full");
    check_words(&refusal);
    assert_eq!((refusal.metadata["queue_position"].as_str(), refusal.metadata["waiting"].as_str()), ("2", "1"));
    let waited = refusal.metadata["waited_ms"].parse::<u64>().expect("a number");
    assert!((60_000..60_100).contains(&waited), "{waited}");
    let words =
        format!("; this call waited {waited} ms and was number 2 in the queue: wait longer (`wait`), or end a turn");
    assert!(refusal.message.ends_with(&words), "{}", refusal.message);
}

/// Who asks for a call that waits, or that keeps its place, is told of that place.
#[test]
fn a_call_that_waits_already_is_told_of_its_own_place() {
    let mut world = World::new(Limits { max_turns_per_tenant: 0, ..Limits::default() });
    let first = v1::BeginTurnRequest { request_id: "r1".into(), ..patient("w1", "", 0) };
    let ticket = world.waits(&first);
    world.waits(&patient("w2", "", 0));
    let position = |world: &mut World, request: v1::BeginTurnRequest| {
        let refusal = world.refused(&v1::BeginTurnRequest { validate_only: true, ..request });
        (refusal.metadata["queue_position"].clone(), refusal.metadata["waiting"].clone())
    };
    assert_eq!(position(&mut world, first.clone()), ("1".to_owned(), "2".to_owned()));
    let now = world.now();
    world.engine.cancel(ticket, now);
    world.settle();
    assert_eq!(position(&mut world, first.clone()), ("1".to_owned(), "1".to_owned()));
    assert_eq!(position(&mut world, patient("w3", "", 0)), ("2".to_owned(), "1".to_owned()));
}

/// A refusal costs what it tells, not what the queue is long.
#[test]
fn of_a_long_queue_the_first_thousand_are_counted() {
    let mut world =
        World::new(Limits { max_turns_per_tenant: 0, max_waiters_per_connection: 2_000, ..Limits::default() });
    for n in 0..1_005 {
        world.start(Method::BeginTurn, &patient(&format!("w{n}"), "", 0));
    }
    let refusal = world.refused(&begin("c", ""));
    check_words(&refusal);
    assert!(
        refusal.message.starts_with("the tenant is paused: max_turns_per_tenant is 0, and no turn runs; this call")
    );
    assert!(refusal.message.contains("number 1001 or more in the queue"), "{}", refusal.message);
    assert_eq!((refusal.metadata["queue_position"].as_str(), refusal.metadata["waiting"].as_str()), ("1001", "1000"));
    let first = world.refused(&v1::BeginTurnRequest { priority: 1, ..begin("c", "") });
    assert_eq!(first.metadata["queue_position"], "1");
}

#[test]
fn a_full_tenant_names_the_longest_of_all_trees_over_every_way_a_turn_ends() {
    let mut world = World::new(Limits { max_turns_per_tenant: 4, ..Limits::default() });
    let mut leases: Vec<_> = ["a", "b", "c", "d"].map(|id| (id, world.begin_at(id, "").lease)).into();
    let named = |world: &mut World| {
        let refusal = world.refused(&begin("x", ""));
        assert_eq!((refusal.reason, refusal.metadata["used"].as_str()), (Reason::TenantTurns, "4"));
        check_words(&refusal);
        holders(&refusal).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(named(&mut world), ["a", "b", "c", "d"]);
    // A turn that goes on, one that is taken over, one that is committed and begun again.
    let next = world.commit(&go_on("a", &leases[0].1)).next.expect("it goes on");
    leases[0].1 = next.lease;
    assert_eq!(named(&mut world), ["b", "c", "d", "a"]);
    world.take_over("b", "");
    assert_eq!(named(&mut world), ["c", "d", "a", "b"]);
    world.commit(&commit("c", &leases[2].1));
    world.begin_at("c", "");
    assert_eq!(named(&mut world), ["d", "a", "b", "c"]);
    world.abort("d", &leases[3].1);
    world.begin_at("e", "");
    assert_eq!(named(&mut world), ["a", "b", "c", "e"]);
    world.close("b");
    world.begin_at("f", "");
    assert_eq!(named(&mut world), ["a", "c", "e", "f"]);
    // What runs is charged again at a start, in the same order.
    world.restart();
    assert_eq!(named(&mut world), ["a", "c", "e", "f"]);
    // A batch that is refused, and the trees that are read again.
    let ticket = world.start(Method::CommitTurn, &commit("a", &leases[0].1));
    while !world.append(false) {
        assert!(world.read(), "its session is loaded first");
    }
    world.settle();
    assert_eq!(world.answer::<v1::CommitTurnResponse>(ticket), Err(Reason::NotStored));
    assert_eq!(named(&mut world), ["a", "c", "e", "f"]);
    // Leases that run out.
    world.pass(61_000);
    world.pass(2_000);
    let again: BTreeSet<_> = ["a", "c", "e", "f"].into();
    again.iter().for_each(|id| drop(world.begin_at(id, "")));
    assert_eq!(named(&mut world), again.into_iter().collect::<Vec<_>>());
}

/// I17: with a session's key a tenant's cap names who runs in its tree; that others run too shows in the count alone.
#[test]
fn i17_a_sessions_key_is_told_of_its_own_tree() {
    let mut world = World::new(Limits { max_turns_per_tenant: 3, ..Limits::default() });
    world.begin_at("elsewhere", "");
    world.open("root", "", "");
    let key = world.open("child", "root", "");
    world.begin_at("root", "");
    world.begin_at("sibling", "root");
    let refusal = world.told_as(&key, Method::BeginTurn, &begin("child", "root")).expect_err("the gate is full");
    check_words(&refusal);
    assert_eq!((refusal.reason, refusal.metadata["used"].as_str()), (Reason::TenantTurns, "3"));
    assert_eq!(holders(&refusal), ["root", "sibling"]);
    assert!(refusal.message.contains("the longest of this tree is that of session \"root\""), "{}", refusal.message);
    assert!(!format!("{refusal:?}").contains("elsewhere"));
    let whole = world.refused(&begin("child", "root"));
    assert_eq!(holders(&whole), ["elsewhere", "root", "sibling"]);
}

#[test]
fn eight_are_named_and_ids_of_any_length_fit() {
    let mut world = World::new(Limits { max_turns_per_tenant: 12, ..Limits::default() });
    let ids: Vec<String> = (0..12).map(|n| format!("{n:0>256}")).collect();
    for id in &ids {
        world.begin_at(id, "");
    }
    world.pass(50_000);
    let refusal = world.refused(&begin("x", ""));
    check_words(&refusal);
    assert_eq!(holders(&refusal), ids[..8]);
    assert!(refusal.metadata["holders"].starts_with(&format!("{}=50", ids[0])));
}

// ---- validate_only

/// What tells nothing of when it was asked.
fn timeless(refusal: Refusal) -> (Reason, String, Vec<(String, String)>, Vec<String>) {
    let digits = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let quota = refusal.quota.map_or(Vec::new(), |q| q.holders.into_iter().map(|(id, _)| id).collect());
    let metadata = refusal.metadata.iter().map(|(k, v)| (k.clone(), digits(v))).collect();
    (refusal.reason, digits(&refusal.message), metadata, quota)
}

/// Asks first, then calls: the same refusal.
fn refused_alike(world: &mut World, key: &str, request: &v1::BeginTurnRequest) -> Reason {
    let asks = v1::BeginTurnRequest { validate_only: true, ..request.clone() };
    let asked = world.told_as(key, Method::BeginTurn, &asks).expect_err("it would be refused");
    let called = world.told_as(key, Method::BeginTurn, request).expect_err("it is refused");
    let reason = asked.reason;
    assert_eq!(timeless(asked), timeless(called));
    reason
}

#[test]
fn i22_a_begin_that_only_asks_is_answered_as_the_real_one_and_takes_nothing() {
    let mut world =
        World::new(Limits { max_turns_per_tree: 2, max_turns_per_tenant: 3, max_waiters: 2, ..Limits::default() });
    world.turn("root", "");
    world.turn("a", "root");
    let request = v1::BeginTurnRequest { request_id: "r1".into(), ..begin("a", "root") };
    let asks = v1::BeginTurnRequest { validate_only: true, ..request.clone() };
    for _ in 0..2 {
        let asked: v1::BeginTurnResponse = world.call(Method::BeginTurn, &asks).expect("there is room");
        let grant = asked.grant.expect("as it would be");
        assert_eq!((grant.lease.len(), grant.fence, grant.turn, grant.attempt), (0, 0, 2, 1));
        assert_eq!(world.get("a").activity(), v1::Activity::Idle);
    }
    let real: v1::BeginTurnResponse = world.call(Method::BeginTurn, &request).expect("it took nothing");
    let real = real.grant.expect("it is granted");
    assert_eq!((real.turn, real.attempt), (2, 1));
    // The repeat of a request that runs would get the same turn; who only asks is given no lease for it.
    let again: v1::BeginTurnResponse = world.call(Method::BeginTurn, &asks).expect("it runs");
    let again = again.grant.expect("the turn that runs");
    assert_eq!((again.lease.len(), again.fence, again.turn, again.attempt), (0, 0, 2, 1));

    assert_eq!(refused_alike(&mut world, "", &begin("a", "root")), Reason::TurnInProgress);
    assert_eq!(refused_alike(&mut world, "", &begin("b", "root")), Reason::TreeTurns);
    assert_eq!(refused_alike(&mut world, "", &begin("b", "nobody")), Reason::ParentNotFound);
    let late = v1::BeginTurnRequest { expected_turn: Some(7), ..begin("root", "") };
    assert_eq!(refused_alike(&mut world, "", &late), Reason::TurnMismatch);
    let unknown = v1::BeginTurnRequest { open: None, ..begin("b", "") };
    assert_eq!(refused_alike(&mut world, "", &unknown), Reason::SessionNotFound);
    for id in ["x", "y"] {
        world.begin_at(id, "");
    }
    assert_eq!(refused_alike(&mut world, "", &begin("z", "")), Reason::TenantTurns);
    // One that would wait is told where; one that could not even do that, so.
    world.waits(&patient("w1", "", 0));
    let asked = world.refused(&v1::BeginTurnRequest { validate_only: true, ..patient("w2", "", 0) });
    assert_eq!((asked.reason, asked.metadata["queue_position"].as_str()), (Reason::TenantTurns, "2"));
    world.waits(&patient("w2", "", 0));
    assert_eq!(refused_alike(&mut world, "", &patient("w3", "", 0)), Reason::QueueFull);
    // Its own place is its own, whatever the rest do.
    assert_eq!(world.stat("waiting"), 2);
    world.close("a");
    assert_eq!(refused_alike(&mut world, "", &begin("a", "root")), Reason::SessionClosed);
}

#[test]
fn i22_an_open_that_only_asks_is_answered_as_the_real_one_and_makes_nothing() {
    let mut world =
        World::new(Limits { max_depth: 1, max_sessions_per_tree: 3, max_turns_per_tree: 1, ..Limits::default() });
    let request = |id: &str, parent: &str, name: &str| v1::OpenSessionRequest {
        session_id: id.into(),
        request_id: format!("r-{id}"),
        options: Some(v1::OpenOptions {
            parent_session_id: parent.into(),
            name: name.into(),
            wake_on_completion: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let open = |world: &mut World, request: &v1::OpenSessionRequest| {
        world.told_as("", Method::OpenSession, request).map(|reply| {
            let told = v1::OpenSessionResponse::decode(&reply[..]).expect("a reply decodes");
            (told.session.expect("it is told"), told.created)
        })
    };
    let alike = |world: &mut World, request: &v1::OpenSessionRequest| {
        let asked = open(world, &v1::OpenSessionRequest { validate_only: true, ..request.clone() });
        match (asked, open(world, request)) {
            (Ok((asked, false)), Ok((made, true))) => {
                assert_eq!(made.uid.len(), 36);
                let made = v1::Session { uid: String::new(), residency: asked.residency, ..made };
                assert_eq!(
                    (asked.path.as_str(), asked.root_session_id.as_str()),
                    (&*made.path, &*made.root_session_id)
                );
                assert_eq!((asked.wake_on_completion, asked.state, asked.uid), (true, made.state, made.uid));
                None
            }
            // There already: the same session.
            (Ok(asked), Ok(told)) => {
                assert_eq!(asked, told);
                None
            }
            (Err(asked), Err(called)) => {
                let reason = asked.reason;
                assert_eq!(timeless(asked), timeless(called));
                Some(reason)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(alike(&mut world, &request("root", "", "")), None);
    assert_eq!(alike(&mut world, &request("root", "", "")), None, "its repeat");
    assert_eq!(alike(&mut world, &request("a", "root", "")), None);
    let other = v1::OpenSessionRequest { request_id: "r-other".into(), ..request("a", "root", "") };
    assert_eq!(alike(&mut world, &other), Some(Reason::SessionExists));
    assert_eq!(alike(&mut world, &request("b", "root", "a")), Some(Reason::PathCollision));
    assert_eq!(alike(&mut world, &request("b", "a", "")), Some(Reason::TreeDepth));
    assert_eq!(alike(&mut world, &request("b", "nobody", "")), Some(Reason::ParentNotFound));
    // A BeginTurn waits to make it: who only asks does not take its place in the queue.
    let waits = world.waits(&patient("c", "root", 0));
    let asks = v1::OpenSessionRequest { validate_only: true, ..request("c", "root", "elsewhere") };
    let asked = open(&mut world, &asks).expect("it would be made");
    assert_eq!((asked.0.path.as_str(), asked.1), ("/root/elsewhere", false));
    let behind = world.refused(&begin("d", "root"));
    assert_eq!(behind.metadata["queue_position"], "2");
    assert!(!world.done.contains_key(&waits));
    assert_eq!(alike(&mut world, &request("e", "root", "")), None);
    assert_eq!(alike(&mut world, &request("f", "root", "")), Some(Reason::TreeSessions));
    world.engine.set_store_bytes(10);
    let set = v1::SetLimitsRequest { limits: [("max_store_bytes".to_owned(), 10)].into(), reset: Vec::new() };
    world.call::<v1::SetLimitsResponse>(Method::SetLimits, &set).expect("it is set");
    assert_eq!(alike(&mut world, &request("other", "", "")), Some(Reason::StoreBytes));
}

/// A made name that is taken gives way, asked or made.
#[test]
fn an_open_that_only_asks_shows_no_path_that_is_taken() {
    let mut world = World::new(Limits::default());
    world.open("root", "", "");
    world.open("A", "root", "");
    let options = Some(v1::OpenOptions { parent_session_id: "root".into(), ..Default::default() });
    let request = v1::OpenSessionRequest { session_id: "a".into(), options, validate_only: true, ..Default::default() };
    let asked: v1::OpenSessionResponse = world.call(Method::OpenSession, &request).expect("it would be made");
    let path = asked.session.expect("it is told").path;
    assert!(path.starts_with("/root/a-"), "{path}");
}
