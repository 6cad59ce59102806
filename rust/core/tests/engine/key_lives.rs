//! Keys of sessions that end, come back, are purged and forgotten: each key is of one life, and is nothing after it.

use crate::sim::scene::{TENANT, World, begin, close, opening};
use prost::Message;
use roost_core::engine::{Caller, CleanupStep, Effect, Method, Outcome};
use roost_core::error::Reason;
use roost_core::keys::{Maker, SessionRef};
use roost_core::limits::Limits;
use roost_core::proto::v1;

const OPEN: i32 = v1::SessionState::Open as i32;
const CLOSED: i32 = v1::SessionState::Closed as i32;

fn reopen(id: &str) -> v1::ReopenSessionRequest {
    v1::ReopenSessionRequest { session_id: id.into(), ..Default::default() }
}

fn get(id: &str) -> v1::GetSessionRequest {
    v1::GetSessionRequest { session_id: id.into() }
}

/// The BeginTurn that is a close.
fn last_turn(id: &str) -> v1::BeginTurnRequest {
    v1::BeginTurnRequest { session_id: id.into(), session_final: true, ..Default::default() }
}

impl World {
    /// The key of a session of now, which is opened if it never was.
    fn key(&mut self, id: &str, parent: &str) -> String {
        self.open_or_get("", id, parent).expect("it is open").session_key
    }

    fn open_or_get(&mut self, key: &str, id: &str, parent: &str) -> Result<v1::OpenSessionResponse, Reason> {
        let if_exists = v1::IfExists::Return as i32;
        let request = v1::OpenSessionRequest { if_exists, ..opening(id, parent, "") };
        self.call_as(key, Method::OpenSession, &request)
    }

    fn get_as(&mut self, key: &str, id: &str) -> Result<v1::Session, Reason> {
        let told: v1::GetSessionResponse = self.call_as(key, Method::GetSession, &get(id))?;
        Ok(told.session.expect("it is told"))
    }

    fn close_as(&mut self, key: &str, id: &str) -> Result<v1::CloseReceipt, Reason> {
        let told: v1::CloseSessionResponse = self.call_as(key, Method::CloseSession, &close(id))?;
        Ok(told.receipt.expect("it has a receipt"))
    }

    fn reopen_as(&mut self, key: &str, id: &str) -> Result<u32, Reason> {
        let told: v1::ReopenSessionResponse = self.call_as(key, Method::ReopenSession, &reopen(id))?;
        assert_eq!(told.session.map(|s| s.state), Some(OPEN));
        Ok(told.reopened)
    }

    /// A key that is over, or none, gets this answer to whatever it asks.
    fn assert_ended(&mut self, key: &str, id: &str, why: Reason) {
        assert_eq!(self.get_as(key, id).unwrap_err(), why);
        assert_eq!(self.open_or_get(key, id, "").unwrap_err(), why, "a dead key makes no live one");
        assert_eq!(self.open_or_get(key, "below", id).unwrap_err(), why);
        assert_eq!(self.reopen_as(key, id).unwrap_err(), why);
        assert_eq!(self.call_as::<v1::BeginTurnResponse>(key, Method::BeginTurn, &begin(id, "")).unwrap_err(), why);
        let renewals = vec![v1::Renewal { session_id: id.into(), ..Default::default() }];
        let renew = v1::RenewTurnsRequest { renewals };
        assert_eq!(self.call_as::<v1::RenewTurnsResponse>(key, Method::RenewTurns, &renew).unwrap_err(), why);
    }
}

// Section 7: a reopened session has its history, not its keys; one of the new life is minted by who may open it.
#[test]
fn i17_reopen_does_not_bring_a_key_back() {
    let mut world = World::new(Limits::default());
    let first = world.key("s", "");
    world.turn("s", "");
    let receipt = world.close("s");
    world.assert_ended(&first, "s", Reason::SessionClosed);
    assert_eq!(world.close_as(&first, "s"), Ok(receipt.clone()), "its own receipt is what a key is left");
    assert_eq!(world.reopen_as("", "s"), Ok(1));

    for restarted in [false, true] {
        if restarted {
            world.restart();
        }
        world.assert_ended(&first, "s", Reason::SessionClosed);
        // It closes nothing of the new life: it is told how its own ended.
        assert_eq!(world.close_as(&first, "s"), Ok(receipt.clone()));
        let told: v1::BeginTurnResponse = world.call_as(&first, Method::BeginTurn, &last_turn("s")).expect("a close");
        assert_eq!((told.receipt, told.grant), (Some(receipt.clone()), None));
        assert_eq!(world.state("s"), OPEN);
    }

    let second = world.key("s", "");
    assert_ne!(first, second);
    assert_eq!(world.key("s", ""), second, "one life, one key");
    assert_eq!(world.get_as(&second, "s").map(|s| s.turn_count), Ok(1));
    let begun: v1::BeginTurnResponse = world.call_as(&second, Method::BeginTurn, &begin("s", "")).expect("it may");
    assert!(begun.grant.is_some());
    let later = world.close_as(&second, "s").expect("it closes");
    assert_eq!((receipt.close_number, later.close_number), (1, 2));
    // Each gets the receipt of its own life.
    let told = (Ok(receipt), Ok(later.clone()));
    assert_eq!((world.close_as(&first, "s"), world.close_as(&second, "s")), told);
    assert_eq!(world.reopen_as("", "s"), Ok(1));
    assert_eq!((world.close_as(&first, "s"), world.close_as(&second, "s")), told);
    for _ in 0..7 {
        world.close("s");
        assert_eq!(world.reopen_as("", "s"), Ok(1));
    }
    // Of a life that long ago nothing is known any more.
    assert_eq!((world.close_as(&first, "s"), world.close_as(&second, "s")), (Err(Reason::SessionClosed), Ok(later)));
    assert_eq!(world.state("s"), OPEN);
}

// I17: what each key may bring back: its own descendants that ended below open ones, while its own session runs.
#[test]
fn i17_reopen_reaches_as_far_as_its_key() {
    let mut world = World::new(Limits::default());
    let keys = [("r", ""), ("c", "r"), ("g", "c"), ("d", "r")].map(|(id, parent)| world.key(id, parent));
    let [root, child, grandchild, sibling] = keys.each_ref();
    assert_eq!(world.reopen_as(child, "g"), Ok(0), "it is open");
    assert_eq!(world.reopen_as(child, "c"), Ok(0), "so is its own");
    world.close("c");
    for (key, id, why) in [
        (sibling, "c", Reason::SessionNotFound),
        (sibling, "nobody", Reason::SessionNotFound),
        (sibling, "r", Reason::SessionNotFound),
        (child, "c", Reason::SessionClosed),
        (child, "g", Reason::SessionClosed),
        (grandchild, "g", Reason::SessionClosed),
        // The edge above it is not open.
        (root, "g", Reason::SessionNotFound),
    ] {
        assert_eq!(world.reopen_as(key, id), Err(why), "{id}");
    }
    assert_eq!(world.reopen_as(root, "c"), Ok(2), "with what its close took down");
    for (key, id) in [(child, "c"), (grandchild, "g")] {
        world.assert_ended(key, id, Reason::SessionClosed);
    }
    let (child, grandchild) = (world.key("c", ""), world.key("g", ""));
    assert!(world.get_as(&child, "g").is_ok() && world.get_as(&grandchild, "g").is_ok());
    // Closed by its own key, it is brought back by one above it.
    world.close_as(&grandchild, "g").expect("it closes");
    assert_eq!(world.reopen_as(&child, "g"), Ok(1));
    assert_eq!(world.reopen_as(sibling, "g"), Err(Reason::SessionNotFound));
    let lone = v1::OpenSessionRequest { session_id: "other".into(), mint_key: true, ..Default::default() };
    let lone: v1::OpenSessionResponse = world.call(Method::OpenSession, &lone).expect("it is made");
    world.close_as(&child, "c").expect("it closes");
    assert_eq!(world.reopen_as(&lone.session_key, "c"), Err(Reason::SessionNotFound));
}

// A key that ends while its ReopenSession waits takes nothing with it: the session can still be brought back.
#[test]
fn i24_a_reopen_whose_key_ends_meanwhile_holds_nothing() {
    let mut world = World::new(Limits::default());
    let root = world.key("r", "");
    world.key("c", "r");
    world.close("c");
    let (now, bearer) = (world.now(), format!("Bearer {root}"));
    let caller = Caller { authorization: &bearer, tenant: "" };
    let request = reopen("c").encode_to_vec();
    let outcome = world.engine.call(Method::ReopenSession, &request, &caller, 0, now);
    let Outcome::Ticket(ticket) = outcome else { panic!("it waits for the store") };
    // Until it holds the claim and waits for the family; then the root ends.
    let family = loop {
        let mut effects = world.engine.effects();
        let effect = effects.pop().expect("it reads");
        assert!(effects.is_empty());
        if matches!(effect, Effect::Family { .. }) {
            break effect;
        }
        let now = world.now();
        world.store.answer(effect)(&world.engine, now);
    };
    let closing = world.start(Method::CloseSession, &close("r"));
    while world.append(true) {}
    let now = world.now();
    world.store.answer(family)(&world.engine, now);
    world.settle();
    assert_eq!(world.answer::<v1::ReopenSessionResponse>(ticket), Err(Reason::SessionClosed));
    world.answer::<v1::CloseSessionResponse>(closing).expect("it closes");
    assert_eq!((world.state("r"), world.state("c")), (CLOSED, CLOSED));
    assert_eq!(world.reopen_as("", "r"), Ok(1));
    assert_eq!(world.reopen_as("", "c"), Ok(1), "its claim is free");
}

// Section 6: a key authenticates until its session is purged; then, and when it is forgotten, it is none. Nor is it one
// for another session of the same id.
#[test]
fn i17_a_key_of_a_purged_session_is_none() {
    let mut world = World::new(Limits { purge_without_dump: 1, ..Limits::default() });
    let key = world.key("s", "");
    world.turn("s", "");
    world.close("s");
    let last = world.store.by_id(TENANT, "s").expect("it is stored").row.last;
    world.assert_ended(&key, "s", Reason::SessionClosed);
    assert!(world.step("s", CleanupStep::Purge { records: vec![last], last: 0, acknowledged: false }));
    world.assert_ended(&key, "s", Reason::KeyInvalid);
    assert_eq!(world.close_as(&key, "s"), Err(Reason::KeyInvalid));
    assert_eq!(world.reopen_as("", "s"), Err(Reason::SessionPurged), "who may see it is told");
    assert!(world.step("s", CleanupStep::Forget));
    world.assert_ended(&key, "s", Reason::KeyInvalid);
    let other = world.key("s", "");
    assert_ne!(key, other);
    world.assert_ended(&key, "s", Reason::KeyInvalid);
    assert_eq!(world.close_as(&key, "s"), Err(Reason::KeyInvalid));
    assert!(world.get_as(&other, "s").is_ok());
}

// A store that was set back to before a reopen does not know the keys made after it.
#[test]
fn a_key_of_a_life_that_has_not_come_is_none() {
    let mut world = World::new(Limits::default());
    world.key("s", "");
    let uid = world.store.by_id(TENANT, "s").expect("it is stored").row.uid;
    let of = |life| SessionRef { tenant: TENANT.into(), session_id: "s".into(), uid, life };
    let maker = Maker::new(&[3; 32]);
    assert!(world.get_as(&maker.session_key(&of(1)), "s").is_ok());
    for life in [2, u32::MAX] {
        assert_eq!(world.get_as(&maker.session_key(&of(life)), "s").unwrap_err(), Reason::KeyInvalid);
    }
    assert_eq!(world.get_as(&maker.session_key(&of(0)), "s").unwrap_err(), Reason::SessionClosed);
}
