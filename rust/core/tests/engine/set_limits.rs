//! Limits that change while the server runs: when they are in force, whom they reach, and what is left of a change that
//! the store refuses (I2, I22).

use crate::sim::scene::{World, begin, commit, go_on};
use prost::Message;
use roost_core::engine::{Appended, Caller, Engine, LimitSetup, Method, Outcome};
use roost_core::error::Reason;
use roost_core::limits::Limits;
use roost_core::proto::v1;
use std::collections::BTreeMap;

const TREE: &str = "max_turns_per_tree";
const WHOLE: &str = "max_turns_per_tenant";

fn change(limits: &[(&str, i64)], reset: &[&str]) -> v1::SetLimitsRequest {
    v1::SetLimitsRequest {
        limits: limits.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        reset: reset.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// A BeginTurn that waits.
fn patient(id: &str, parent: &str) -> v1::BeginTurnRequest {
    v1::BeginTurnRequest { wait: Some(prost_types::Duration { seconds: 60, nanos: 0 }), ..begin(id, parent) }
}

impl World {
    fn set(&mut self, limits: &[(&str, i64)]) -> Result<Vec<v1::Limit>, Reason> {
        self.change(&change(limits, &[]))
    }

    fn change(&mut self, request: &v1::SetLimitsRequest) -> Result<Vec<v1::Limit>, Reason> {
        self.call::<v1::SetLimitsResponse>(Method::SetLimits, request).map(|told| told.limits)
    }

    /// Value and source of a limit in force.
    fn limit(&self, name: &str) -> (u64, String) {
        let limit = self.engine.limits().into_iter().find(|limit| limit.name == name).expect("there is such a limit");
        assert_eq!(self.engine.limit(name), Some(limit.value));
        (limit.value, limit.source)
    }

    fn lease(&mut self, id: &str, parent: &str) -> Result<Vec<u8>, Reason> {
        self.call::<v1::BeginTurnResponse>(Method::BeginTurn, &begin(id, parent))
            .map(|begun| begun.grant.expect("it was granted").lease)
    }

    fn granted(&self, ticket: u64) -> bool {
        self.done.get(&ticket).is_some_and(Result::is_ok)
    }
}

fn found(limits: &[v1::Limit], name: &str) -> (i64, String) {
    let limit = limits.iter().find(|limit| limit.name == name).expect("all are told");
    (limit.value, limit.source.clone())
}

/// I2: what runs goes on, and nothing more is admitted until use is below the cap.
#[test]
fn i2_lowering_a_cap_ends_nothing_and_admits_nothing_until_use_is_below() {
    for name in [TREE, WHOLE] {
        let mut world = World::new(Limits::default());
        world.turn("root", "");
        let leases: Vec<_> = ["a", "b", "c"].map(|id| (id, world.lease(id, "root").expect("there is room"))).into();
        // Of a tree's two places one is the root's own.
        let left = if name == TREE { 2 } else { 1 };
        assert_eq!(world.set(&[(name, left)]).map(|l| found(&l, name)), Ok((left, "set".to_owned())));
        let full = if name == TREE { Reason::TreeTurns } else { Reason::TenantTurns };
        for (n, (id, lease)) in leases.iter().enumerate() {
            assert_eq!(world.get(id).activity(), v1::Activity::Running);
            assert_eq!(world.lease("d", "root"), Err(full), "{name}: {} turns run", 3 - n);
            world.commit(&commit(id, lease));
        }
        world.lease("d", "root").expect("use is below the cap");
        assert_eq!(world.lease("a", "root"), Err(full));
    }
}

#[test]
fn i2_a_turn_above_a_lowered_cap_does_not_go_on() {
    for name in [TREE, WHOLE] {
        let mut world = World::new(Limits::default());
        world.turn("root", "");
        let a = world.lease("a", "root").expect("there is room");
        let b = world.lease("b", "root").expect("there is room");
        world.set(&[(name, if name == TREE { 2 } else { 1 })]).expect("it is set");
        let told = world.commit(&go_on("a", &a));
        assert_eq!((told.turn, told.next), (1, None));
        let why = told.next_refused.expect("it says why");
        assert_eq!(why.metadata.get("limit_name").map(String::as_str), Some(name));
        // At the cap the slot is kept: it stays where it is.
        assert!(world.commit(&go_on("b", &b)).next.is_some());
    }
}

/// Who waits is woken at every gate concerned, in whatever tree or tenant.
#[test]
fn raising_a_cap_wakes_who_waits_at_every_gate_concerned() {
    let mut world = World::new(Limits { max_turns_per_tree: 1, max_turns_per_tenant: 100, ..Limits::default() });
    world.store.tree_cap = 8;
    for root in ["r1", "r2"] {
        world.turn(root, "");
    }
    let tickets = [("a", "r1"), ("b", "r1"), ("c", "r2")].map(|(id, root)| world.waits(&patient(id, root)));
    world.set(&[(TREE, 2)]).expect("it is set");
    assert_eq!(tickets.map(|t| world.granted(t)), [true, false, true], "one place below each root");
    world.set(&[(TREE, 3)]).expect("it is set");
    assert!(world.granted(tickets[1]));

    let mut world = World::new(Limits { max_turns_per_tenant: 0, ..Limits::default() });
    let tickets = ["a", "b", "c"].map(|id| world.waits(&patient(id, "")));
    world.set(&[(WHOLE, 2)]).expect("it is set");
    assert_eq!(tickets.map(|t| world.granted(t)), [true, true, false], "first come, first served");
    world.change(&change(&[], &[WHOLE])).expect("it is reset");
    assert!(!world.granted(tickets[2]), "the configuration pauses the tenant");
    world.set(&[(WHOLE, 3)]).expect("it is set");
    assert!(world.granted(tickets[2]));
}

/// Another tenant is reached as well, and one that is made later, and a tree that is loaded later.
#[test]
fn a_cap_is_that_of_every_tenant_and_tree_known_or_not() {
    let mut world = World::new(Limits { max_turns_per_tenant: 0, max_turns_per_tree: 1, ..Limits::default() });
    (world.store.tree_cap, world.store.tenant_cap) = (8, 8);
    let other = |world: &mut World, tenant: &str, id: &str| {
        let now = world.now();
        let request = patient(id, "").encode_to_vec();
        match world.engine.call(Method::BeginTurn, &request, &Caller::of(tenant), 0, now) {
            Outcome::Ticket(ticket) => ticket,
            ended => panic!("it ended at once: {ended:?}"),
        }
    };
    let known = other(&mut world, "known", "k");
    world.settle();
    assert!(!world.done.contains_key(&known));
    world.set(&[(WHOLE, 1)]).expect("it is set");
    let made = other(&mut world, "later", "m");
    world.settle();
    assert!(world.granted(known) && world.granted(made));

    world.set(&[(WHOLE, 8)]).expect("it is set");
    world.turn("root", "");
    world.restart();
    world.set(&[(TREE, 2)]).expect("it is set");
    // Now the tree is loaded, and a new one is made.
    world.lease("a", "root").expect("there is a place below the root");
    assert_eq!(world.lease("b", "root"), Err(Reason::TreeTurns));
    world.turn("new", "");
    world.lease("c", "new").expect("there is a place below the root");
    assert_eq!(world.lease("d", "new"), Err(Reason::TreeTurns));
}

/// I22: a change that is not stored was never in force, nor the one behind it.
#[test]
fn i22_a_refused_batch_leaves_the_old_values() {
    let mut world = World::new(Limits { max_batch_entries: 1, ..Limits::default() });
    world.set(&[("max_depth", 5)]).expect("it is set");
    let first = world.start(Method::SetLimits, &change(&[("max_depth", 1), (WHOLE, 0)], &[]));
    let second = world.start(Method::SetLimits, &change(&[("max_depth", 2)], &[]));
    assert_eq!(world.limit("max_depth"), (5, "set".to_owned()), "not in force before it is durable");
    assert!(world.append(false));
    world.settle();
    for ticket in [first, second] {
        assert_eq!(world.answer::<v1::SetLimitsResponse>(ticket), Err(Reason::NotStored));
    }
    assert_eq!(world.limit("max_depth"), (5, "set".to_owned()));
    assert_eq!(world.limit(WHOLE), (1_000, "default".to_owned()));
    assert_eq!(world.store.limits, BTreeMap::from([("max_depth".to_owned(), 5)]));
    world.turn("root", "");
    // What was lost is not taken for what is there: the same change again is a change.
    let told = world.set(&[("max_depth", 2)]).expect("it is set");
    assert_eq!(found(&told, "max_depth"), (2, "set".to_owned()));
    assert_eq!((world.limit("max_depth").0, world.store.limits["max_depth"]), (2, 2));
}

/// I6: an answer tells what is on disk when it comes, also one to a change that changes nothing any more.
#[test]
fn changes_take_effect_in_their_order_with_their_answers() {
    let mut world = World::new(Limits { max_batch_entries: 1, ..Limits::default() });
    let requests =
        [change(&[("max_depth", 1)], &[]), change(&[("max_depth", 2)], &[]), change(&[("max_depth", 2)], &[])];
    let tickets = requests.map(|request| world.start(Method::SetLimits, &request));
    for (n, value) in [(0, 1), (1, 2)] {
        assert_ne!(world.limit("max_depth").0, value);
        assert!(world.append(true));
        assert_eq!(world.limit("max_depth"), (value, "set".to_owned()));
        let done: Vec<u64> = world.engine.completed().into_iter().map(|(ticket, _)| ticket).collect();
        assert_eq!(done, tickets[n..][..=n], "after batch {n}");
    }
    assert!(!world.append(true), "what changes nothing writes nothing");
}

#[test]
fn of_two_changes_in_one_batch_the_last_is_stored() {
    let mut world = World::new(Limits::default());
    let requests = [change(&[("max_depth", 1), (TREE, 3)], &[]), change(&[("max_depth", 2)], &[TREE])];
    for ticket in requests.map(|request| world.start(Method::SetLimits, &request)) {
        world.settle();
        world.answer::<v1::SetLimitsResponse>(ticket).expect("it is set");
    }
    assert_eq!(world.store.limits, BTreeMap::from([("max_depth".to_owned(), 2)]));
}

#[test]
fn i22_what_is_wrong_changes_nothing() {
    let mut world = World::new(Limits::default());
    world.set(&[("max_depth", 5)]).expect("it is set");
    let bad: [(v1::SetLimitsRequest, &str, &str); 9] = [
        (change(&[("max_depth", 3), ("max_turn", 1)], &[]), "limits", "max_turn"),
        (change(&[("max_depth", 3)], &["Max_depth"]), "reset", "Max_depth"),
        (change(&[("max_depth", 3), (WHOLE, -1)], &[]), "limits", WHOLE),
        (change(&[("max_depth", 3), (TREE, 0)], &[]), "limits", TREE),
        (change(&[("max_depth", 3), (TREE, 10_001)], &[]), "limits", TREE),
        (change(&[("max_depth", 3)], &["max_depth"]), "reset", "max_depth"),
        (change(&[("max_depth", 3), ("release_timeout_ms", 20_000)], &[]), "limits", "release_timeout_ms"),
        (change(&[("max_depth", 3)], &["release_timeout_ms"]), "reset", "release_timeout_ms"),
        (change(&[("max_depth", 3), ("journal_queue_bytes", 1 << 30)], &[]), "limits", "journal_queue_bytes"),
    ];
    for (request, field, name) in bad {
        let refusal = world.refused_at_once(Method::SetLimits, &request).expect("it is refused");
        assert_eq!(refusal.reason, Reason::InvalidField);
        assert_eq!((refusal.metadata["field"].as_str(), refusal.metadata["name"].as_str()), (field, name));
    }
    assert_eq!(
        world.refused_at_once(Method::SetLimits, &change(&[], &[])).expect("it is refused").reason,
        Reason::InvalidField
    );
    assert!(!world.append(true), "nothing was written");
    assert_eq!(world.limit("max_depth"), (5, "set".to_owned()));
    assert_eq!(world.limit(TREE), (8, "default".to_owned()));
}

/// What memory is laid out for at the start goes down, and up again as far as it was.
#[test]
fn a_limit_that_memory_is_laid_out_for_goes_down_and_back() {
    let mut world = World::new(Limits { max_resident_sessions: 10, ..Limits::default() });
    for id in ["a", "b", "c"] {
        world.turn(id, "");
    }
    world.set(&[("max_resident_sessions", 1)]).expect("it is set");
    world.pass(1_000);
    let resident = |world: &World| {
        world.engine.limits().into_iter().find(|l| l.name == "max_resident_sessions").and_then(|l| l.used)
    };
    assert_eq!(resident(&world), Some(1), "the others were evicted");
    world.restart();
    world.set(&[("max_resident_sessions", 10)]).expect("as much as is configured");
    let raised = change(&[("max_resident_sessions", 11)], &[]);
    let refusal = world.refused_at_once(Method::SetLimits, &raised).expect("it is refused");
    assert_eq!(refusal.metadata["limit"], "10");
    // Stored, it is what the next start lays memory out for, whatever is configured then.
    world.limits.max_resident_sessions = 4;
    world.restart();
    assert_eq!(world.limit("max_resident_sessions"), (10, "set".to_owned()));
    world.change(&change(&[], &["max_resident_sessions"])).expect("it is reset");
    assert_eq!(world.limit("max_resident_sessions"), (4, "default".to_owned()));
    world.set(&[("max_resident_sessions", 10)]).expect("there is memory for it");
}

#[test]
fn what_was_set_is_there_after_a_restart_until_it_is_reset() {
    let mut world = World::new(Limits::default());
    world.set(&[(WHOLE, 0), ("max_depth", 1)]).expect("it is set");
    world.restart();
    assert_eq!((world.limit(WHOLE), world.limit("max_depth").0), ((0, "set".to_owned()), 1));
    assert_eq!(world.lease("root", ""), Err(Reason::TenantTurns));
    let told = world.change(&change(&[("max_depth", 2)], &[WHOLE, TREE])).expect("it is set");
    assert_eq!(found(&told, WHOLE), (1_000, "default".to_owned()));
    world.turn("root", "");
    assert_eq!(world.store.limits, BTreeMap::from([("max_depth".to_owned(), 2)]));
    world.restart();
    assert_eq!((world.limit(WHOLE).1, world.limit("max_depth").0), ("default".to_owned(), 2));
}

#[test]
fn what_a_server_cannot_do_any_more_is_left_aside() {
    let stored = [
        ("max_depth", 3),
        ("max_depth_of_old", 3),
        (TREE, 0),
        ("release_timeout_ms", 200),
        ("max_turn_bytes", 2 << 20),
    ];
    let stored = stored.map(|(name, value)| (name.to_owned(), value));
    let sources = BTreeMap::from([(TREE.to_owned(), "file".to_owned())]);
    let most = BTreeMap::from([("max_turn_bytes".to_owned(), 2 << 20)]);
    let setup = LimitSetup::new(Limits::default(), sources.clone(), &most, stored.clone());
    assert_eq!(setup.left_aside(), ["max_depth_of_old", TREE, "release_timeout_ms"]);
    let engine = Engine::new(setup, 0, 1);
    let told: BTreeMap<_, _> = engine.limits().into_iter().map(|l| (l.name, (l.value, l.source))).collect();
    assert_eq!(told["max_depth"], (3, "set".to_owned()));
    assert_eq!(told[TREE], (8, "file".to_owned()));
    assert_eq!(told["max_turn_bytes"], (2 << 20, "set".to_owned()));
    // A configuration that bounds it more tightly by now.
    let most = BTreeMap::from([("max_turn_bytes".to_owned(), 1 << 20)]);
    let setup = LimitSetup::new(Limits::default(), sources, &most, stored);
    assert_eq!(setup.left_aside(), ["max_depth_of_old", TREE, "release_timeout_ms", "max_turn_bytes"]);
}

#[test]
fn a_quarantine_of_the_entry_alone_loses_the_change() {
    let mut world = World::new(Limits::default());
    let ticket = world.start(Method::SetLimits, &change(&[("max_depth", 1)], &[]));
    let batch = world.engine.take_batch().expect("it is to be stored");
    let now = world.now();
    world.engine.appended(&Appended::Stored { quarantine: batch.roots.clone() }, now);
    world.settle();
    assert_eq!(world.answer::<v1::SetLimitsResponse>(ticket), Err(Reason::NotStored));
    assert_eq!(world.limit("max_depth"), (8, "default".to_owned()));
}
