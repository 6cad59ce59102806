//! Sessions by path: whom a path leads to, loaded or not, and what of it shows to whom (I16, I17).

use crate::sim::scene::{TENANT, World, begin, close, commit, interrupt, reward};
use prost::Message;
use roost_core::engine::{Caller, Effect, Method, Outcome};
use roost_core::error::{Reason, Refusal};
use roost_core::limits::Limits;
use roost_core::proto::v1;
use std::collections::BTreeMap;

fn get(id: &str) -> v1::GetSessionRequest {
    v1::GetSessionRequest { session_id: id.into() }
}

fn bare(id: &str) -> v1::BeginTurnRequest {
    v1::BeginTurnRequest { session_id: id.into(), ..Default::default() }
}

impl World {
    /// Whom a path leads to.
    fn whom(&mut self, key: &str, path: &str) -> Result<String, Reason> {
        let told: v1::GetSessionResponse = self.call_as(key, Method::GetSession, &get(path))?;
        Ok(told.session.expect("it is told").session_id)
    }

    /// r - a (its key) - a1 - a2; r - b - b1; other - o1. Keys by id.
    fn family(limits: Limits) -> (World, BTreeMap<&'static str, String>) {
        let mut world = World::new(limits);
        let mut keys = BTreeMap::new();
        for (id, parent, name) in [
            ("r", "", ""),
            ("a", "r", "one"),
            ("a1", "a", "leaf"),
            ("a2", "a1", "leaf"),
            ("b", "r", "two"),
            ("b1", "b", "leaf"),
            ("other", "", ""),
            ("o1", "other", "one"),
        ] {
            keys.insert(id, world.open(id, parent, name));
        }
        (world, keys)
    }
}

#[test]
fn a_path_leads_to_the_open_session_that_has_it_in_memory_or_not() {
    for resident in [1_000, 1] {
        let (mut world, keys) = World::family(Limits { max_resident_sessions: resident, ..Limits::default() });
        for restarted in [false, true] {
            if restarted {
                world.restart();
            }
            for (path, id) in
                [("r/root", "r"), ("r/root/one/leaf/leaf", "a2"), ("other/root/one", "o1"), ("r/root/two/leaf", "b1")]
            {
                assert_eq!(world.whom("", path), Ok(id.to_owned()), "{path}");
            }
            let own = [
                ("/root", "r"),
                ("/root/one", "a"),
                ("./leaf", "a1"),
                ("./leaf/leaf", "a2"),
                ("/root/two/leaf", "b1"),
                ("r/root/two", "b"),
            ];
            for (path, id) in own {
                assert_eq!(world.whom(&keys["a"], path), Ok(id.to_owned()), "{path}");
            }
            assert_eq!(world.whom(&keys["a1"], "./leaf"), Ok("a2".to_owned()), "from its own session on");
            for path in ["a/root", "a/root/leaf", "none/root", "r/root/leaf", "r/root/one/two"] {
                assert_eq!(world.whom("", path), Err(Reason::SessionNotFound), "{path}");
            }
        }
    }
}

/// Whatever a call does with a session it does with one that it names by path.
#[test]
fn every_call_takes_a_path_where_it_takes_an_id() {
    let (mut world, keys) = World::family(Limits::default());
    let key = keys["a"].clone();
    for restarted in [false, true] {
        if restarted {
            world.restart();
        }
        let path = "./leaf";
        let begun: v1::BeginTurnResponse = world.call_as(&key, Method::BeginTurn, &bare(path)).expect("a slot is free");
        let lease = begun.grant.expect("it is granted").lease;
        assert_eq!(world.get("a1").activity(), v1::Activity::Running);
        let asked: v1::InterruptSessionResponse =
            world.call_as(&key, Method::InterruptSession, &interrupt(path, "", false)).expect("it runs");
        assert_eq!(asked.previous_activity(), v1::Activity::Running);
        let read = v1::GetCheckpointRequest { session_id: path.into(), lease: lease.clone(), ..Default::default() };
        world.told_as(&key, Method::GetCheckpoint, &read).expect("it runs");
        let turn = world.call_as::<v1::CommitTurnResponse>(&key, Method::CommitTurn, &commit(path, &lease));
        assert_eq!(turn.map(|t| t.turn), Ok(if restarted { 3 } else { 1 }));
        let lease = world.begin("a1").lease;
        let abort = v1::AbortTurnRequest { session_id: path.into(), lease, r#final: true, ..Default::default() };
        world.call_as::<v1::AbortTurnResponse>(&key, Method::AbortTurn, &abort).expect("it runs");
        world.turn("a1", "");
        world.call_as::<v1::SetRewardResponse>(&key, Method::SetReward, &reward(path, None)).expect("there is a turn");
        let finish = v1::FinishTrajectoryRequest { session_id: path.into(), ..Default::default() };
        world.call_as::<v1::FinishTrajectoryResponse>(&key, Method::FinishTrajectory, &finish).expect("there is one");
        let update = v1::UpdateSessionRequest {
            session_id: path.into(),
            labels: [("n".to_owned(), restarted.to_string())].into(),
            ..Default::default()
        };
        world.call_as::<v1::UpdateSessionResponse>(&key, Method::UpdateSession, &update).expect("it is open");
        assert_eq!(world.get("a1").labels["n"], restarted.to_string());
        let send = v1::SendMessageRequest {
            session_id: "/root/two".into(),
            sender_session_id: path.into(),
            message: Some(v1::MessageInput { content: b"hello".to_vec(), ..Default::default() }),
            ..Default::default()
        };
        world.call_as::<v1::SendMessageResponse>(&key, Method::SendMessage, &send).expect("it may write there");
        let wait = v1::WaitMailRequest { session_id: "r/root/two".into(), ..Default::default() };
        let mail: v1::WaitMailResponse = world.call(Method::WaitMail, &wait).expect("it is open");
        assert_eq!(mail.queued, if restarted { 2 } else { 1 });
    }
    // A parent and a source; the new session itself has an id.
    let opened = world.open_as(&key, "new", "./leaf/leaf", "n").expect("its parent is inside");
    assert_eq!(opened.session.expect("it is told").path, "/root/one/leaf/leaf/n");
    let options =
        v1::OpenOptions { parent_session_id: "r/root/two".into(), name: "forked".into(), ..Default::default() };
    let from = v1::ForkFrom { session_id: "r/root/one/leaf".into(), ..Default::default() };
    let fork = v1::OpenSessionRequest {
        session_id: "fork".into(),
        options: Some(options),
        fork_from: Some(from),
        ..Default::default()
    };
    let forked: v1::OpenSessionResponse = world.call(Method::OpenSession, &fork).expect("there are turns");
    assert_eq!(forked.session.map(|s| (s.path, s.turn_count)), Some(("/root/two/forked".to_owned(), 4)));
    let request = v1::BeginTurnRequest {
        session_id: "begun".into(),
        open: Some(v1::OpenOptions { parent_session_id: "./leaf".into(), ..Default::default() }),
        ..Default::default()
    };
    let begun: v1::BeginTurnResponse = world.call_as(&key, Method::BeginTurn, &request).expect("a slot is free");
    assert!(begun.created);
    assert_eq!(world.get("begun").parent_session_id, "a1");
    for refused in [
        world.open_as(&key, "./leaf/x", "./leaf", "").map(|_| ()),
        world.call_as::<v1::BeginTurnResponse>(&key, Method::BeginTurn, &begin("/root/one/x", "./leaf")).map(|_| ()),
    ] {
        assert_eq!(refused, Err(Reason::InvalidField), "what is made is named by id");
    }
    let renewals = vec![v1::Renewal { session_id: "./leaf".into(), ..Default::default() }];
    let renewed: v1::RenewTurnsResponse =
        world.call_as(&key, Method::RenewTurns, &v1::RenewTurnsRequest { renewals }).expect("each by itself");
    assert_eq!(renewed.results[0].refusal.as_ref().map(|r| &*r.reason), Some("INVALID_FIELD"));
    let closed: v1::CloseSessionResponse =
        world.call_as(&key, Method::CloseSession, &close("./leaf")).expect("it closes");
    assert_eq!(closed.receipt.expect("it has one").children_closed, 3);
    assert_eq!(world.whom(&key, "./leaf"), Err(Reason::SessionNotFound));
}

#[test]
fn a_path_goes_to_the_sibling_that_took_it() {
    let (mut world, keys) = World::family(Limits::default());
    // From the close on, though it is not durable yet; that it is gone is told when it is (I6).
    let closing = world.start(Method::CloseSession, &close("b"));
    let asking = world.start(Method::GetSession, &get("r/root/two"));
    world.settle();
    world.answer::<v1::CloseSessionResponse>(closing).expect("it closes");
    assert_eq!(world.answer::<v1::GetSessionResponse>(asking).map(|_| ()), Err(Reason::SessionNotFound));
    for (path, key) in [("r/root/two", ""), ("/root/two", &*keys["a"]), ("r/root/two/leaf", "")] {
        assert_eq!(world.whom(key, path), Err(Reason::SessionNotFound), "{path}: closed with what is below");
    }
    world.open("b2", "r", "two");
    assert_eq!(world.whom(&keys["a"], "/root/two"), Ok("b2".to_owned()));
    assert_eq!(world.whom("", "r/root/two/leaf"), Err(Reason::SessionNotFound));
    world.restart();
    assert_eq!(world.whom("", "r/root/two"), Ok("b2".to_owned()));
    // A session that is not born yet has no path.
    world.set_cap("max_turns_per_tenant", 0);
    let waiting =
        v1::BeginTurnRequest { wait: Some(prost_types::Duration { seconds: 60, nanos: 0 }), ..begin("unborn", "r") };
    let ticket = world.start(Method::BeginTurn, &waiting);
    world.settle();
    assert!(!world.done.contains_key(&ticket));
    assert_eq!(world.whom("", "r/root/unborn"), Err(Reason::SessionNotFound));
}

/// A call is about the session that had the path when it came, however long it waits.
#[test]
fn a_path_is_looked_up_once() {
    let (mut world, keys) = World::family(Limits { max_turns_per_tenant: 0, ..Limits::default() });
    let waiting =
        v1::BeginTurnRequest { wait: Some(prost_types::Duration { seconds: 60, nanos: 0 }), ..bare("/root/one/leaf") };
    let now = world.now();
    let bearer = format!("Bearer {}", keys["a"]);
    let caller = Caller { authorization: &bearer, tenant: "" };
    let Outcome::Ticket(ticket) = world.engine.call(Method::BeginTurn, &waiting.encode_to_vec(), &caller, 0, now)
    else {
        panic!("it does not wait")
    };
    world.settle();
    world.close("a1");
    assert_eq!(world.answer::<v1::BeginTurnResponse>(ticket), Err(Reason::SessionClosed));
}

/// I17: what a caller may not see and what is not there get the same words, with the path as it came.
#[test]
fn i17_a_path_shows_nothing_that_its_caller_may_not_see() {
    let (mut world, keys) = World::family(Limits::default());
    let key = keys["a"].clone();
    for restarted in [false, true] {
        if restarted {
            world.restart();
        }
        let unknown = world.told_as(&key, Method::BeginTurn, &bare("/root/nobody")).expect_err("there is nobody");
        assert_eq!(unknown.metadata, BTreeMap::from([("session_id".to_owned(), "/root/nobody".to_owned())]));
        // Out of scope in its tree; other trees, there or not; no root; a path that is one of another tree.
        for path in [
            "/root",
            "/root/two",
            "/root/two/leaf",
            "r/root/two",
            "other/root",
            "other/root/one",
            "o1/root",
            "none/root",
            "a/root",
            "other/root/none",
        ] {
            let refusal = world.told_as(&key, Method::BeginTurn, &bare(path)).expect_err("it is out of reach");
            let told = Refusal::clone(&refusal);
            assert_eq!(told.message.replace(path, "/root/nobody"), unknown.message, "{path}");
            assert_eq!(
                (told.reason, told.retry_ms, told.quota),
                (unknown.reason, unknown.retry_ms, unknown.quota.clone())
            );
            assert_eq!(told.metadata, BTreeMap::from([("session_id".to_owned(), path.to_owned())]));
        }
        for path in ["/root", "/root/two", "other/root", "none/root", "./none"] {
            let refused = world.open_as(&key, "new", path, "");
            assert_eq!(refused.map(|_| ()), Err(Reason::ParentNotFound), "{path}");
        }
        let parent = |world: &mut World, path: &str| {
            let options = v1::OpenOptions { parent_session_id: path.into(), ..Default::default() };
            let request =
                v1::OpenSessionRequest { session_id: "new".into(), options: Some(options), ..Default::default() };
            world.told_as(&key, Method::OpenSession, &request).expect_err("it is out of reach")
        };
        let (hidden, none) = (parent(&mut world, "/root/two"), parent(&mut world, "/root/xxx"));
        assert_eq!(hidden.message.replace("two", "xxx"), none.message);
        assert_eq!(hidden.metadata["session_id"], "/root/two");
        // Its tree's outline is seen by path as by id.
        assert_eq!(world.whom(&key, "/root/two"), Ok("b".to_owned()));
        for path in ["other/root", "none/root", "o1/root/one"] {
            assert_eq!(world.whom(&key, path), Err(Reason::SessionNotFound), "{path}");
        }
    }
    // What was not asked of the store cannot have shown in the time.
    world.restart();
    let now = world.now();
    let bearer = format!("Bearer {key}");
    let caller = Caller { authorization: &bearer, tenant: "" };
    world.engine.call(Method::BeginTurn, &bare("other/root").encode_to_vec(), &caller, 0, now);
    let effects = world.engine.effects();
    assert!(matches!(&effects[..], [Effect::Find { session_id, .. }] if &**session_id == "a"), "{effects:?}");
}

#[test]
fn interrupts_keep_their_rules_by_path() {
    let (mut world, keys) = World::family(Limits::default());
    let refused = |world: &mut World, key: &str, path: &str, force: bool| {
        world.told_as(key, Method::InterruptSession, &interrupt(path, "", force)).expect_err("it may not").reason
    };
    assert_eq!(refused(&mut world, &keys["a"], "/root/one", false), Reason::KeyScope, "its own session");
    assert_eq!(refused(&mut world, &keys["a"], "/root", false), Reason::SessionNotFound);
    for path in ["./leaf", "/root/nobody", "other/root"] {
        assert_eq!(refused(&mut world, &keys["a"], path, true), Reason::KeyScope, "{path}");
    }
    assert_eq!(refused(&mut world, &keys["r"], "/root", false), Reason::KeyScope, "the root is its own session");
}

#[test]
fn a_path_that_names_no_tree_is_a_wrong_field_without_a_sessions_key() {
    let (mut world, keys) = World::family(Limits::default());
    for path in ["/root", "/root/one", "./leaf"] {
        let refusal = world.told_as("", Method::GetSession, &get(path)).expect_err("of which tree?");
        assert_eq!((refusal.reason, refusal.metadata["field"].as_str()), (Reason::InvalidField, "session_id"));
        assert!(refusal.message.contains("<id of its root>/root/"), "{refusal:?}");
    }
    for path in ["r/root/", "/root//one", "r/one", "./Leaf", "../two", "/root/one/."] {
        let refusal = world.told_as(&keys["a"], Method::GetSession, &get(path)).expect_err("it is no path");
        assert_eq!(
            (refusal.reason, refusal.metadata["field"].as_str()),
            (Reason::InvalidField, "session_id"),
            "{path}"
        );
    }
}

/// I24: a grant by path that nobody got is released as one by id, and nobody else's is.
#[test]
fn i24_a_grant_by_path_that_could_not_be_written_is_released() {
    let (mut world, keys) = World::family(Limits::default());
    for (key, path) in [("", "r/root/one/leaf"), (&*keys["a"], "./leaf"), (&*keys["a"], "/root/one/leaf")] {
        let request = bare(path);
        let reply = world.told_as(key, Method::BeginTurn, &request).expect("a slot is free");
        assert_eq!(world.get("a1").activity(), v1::Activity::Running);
        let (now, bearer) = (world.now(), if key.is_empty() { String::new() } else { format!("Bearer {key}") });
        let caller = Caller { authorization: &bearer, tenant: TENANT };
        world.engine.undelivered(Method::BeginTurn, &request.encode_to_vec(), &reply, &caller, now);
        world.settle();
        assert_eq!(world.get("a1").activity(), v1::Activity::Idle, "{path}");
        // One that names another life leaves the turn alone that runs there by now, whatever its fence.
        let mut late = v1::BeginTurnResponse::decode(&reply[..]).expect("it decodes");
        let again = world.begin("a1");
        if let Some(grant) = &mut late.grant {
            grant.lease.clone_from(&again.lease);
            grant.lease[0] ^= 1;
        }
        let now = world.now();
        world.engine.undelivered(Method::BeginTurn, &request.encode_to_vec(), &late.encode_to_vec(), &caller, now);
        world.settle();
        assert_eq!(world.get("a1").activity(), v1::Activity::Running);
        world.commit(&commit("a1", &again.lease));
    }
}

impl World {
    fn set_cap(&mut self, name: &str, value: i64) {
        let request = v1::SetLimitsRequest { limits: [(name.to_owned(), value)].into(), reset: Vec::new() };
        self.call::<v1::SetLimitsResponse>(Method::SetLimits, &request).expect("it is set");
    }
}
