//! Resources and pools, against the engine and a store in memory: how they are named, who gives way to whom, and what a
//! close leaves of them. What holds whatever the order is in simulation.rs.

use crate::sim::scene::{TENANT, World, close, commit};
use roost_core::engine::{CleanupStep, DumpMade, Method, ReleaseStep, ResourceSetup};
use roost_core::error::Reason;
use roost_core::limits::Limits;
use roost_core::proto::v1;

const SEALED: i32 = v1::SessionState::Sealed as i32;
const CLOSED: i32 = v1::SessionState::Closed as i32;
const PLANNED: i32 = v1::ResourceState::Planned as i32;
const LIVE: i32 = v1::ResourceState::Live as i32;
const RELEASING: i32 = v1::ResourceState::Releasing as i32;
const CLIENT: i32 = v1::ResourceKind::Client as i32;
const PROCESS: i32 = v1::ResourceKind::Process as i32;

fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

fn attach(id: &str, request_id: &str) -> v1::AttachResourceRequest {
    v1::AttachResourceRequest {
        session_id: id.into(),
        request_id: request_id.into(),
        kind: PROCESS,
        owner: "host".into(),
        wait: Some(seconds(0)),
        ..Default::default()
    }
}

/// A place in a pool with these caps.
fn pooled(id: &str, key: &str, max: Option<u32>, max_per_key: Option<u32>) -> v1::AttachResourceRequest {
    let pool = v1::Pool {
        name: "p".into(),
        key: key.into(),
        max_resources: max,
        max_resources_per_key: max_per_key,
        idle_ttl: None,
    };
    v1::AttachResourceRequest { pool: Some(pool), ..attach(id, "") }
}

fn waiting(request: v1::AttachResourceRequest) -> v1::AttachResourceRequest {
    v1::AttachResourceRequest { wait: Some(seconds(60)), ..request }
}

impl World {
    fn attach(&mut self, request: &v1::AttachResourceRequest) -> Result<v1::AttachResourceResponse, Reason> {
        self.call(Method::AttachResource, request)
    }

    fn name(&mut self, request: &v1::AttachResourceRequest) -> String {
        self.attach(request).expect("there is room").name
    }

    fn confirm(&mut self, id: &str, name: &str) -> Result<i32, Reason> {
        let request = v1::AttachResourceRequest { session_id: id.into(), name: name.into(), ..Default::default() };
        self.attach(&request).map(|told| told.state)
    }

    fn detach(&mut self, id: &str, name: &str) -> Result<bool, Reason> {
        let request = v1::DetachResourceRequest { session_id: id.into(), name: name.into() };
        self.call::<v1::DetachResourceResponse>(Method::DetachResource, &request).map(|told| told.released)
    }

    /// States of the resources that the store holds, by name.
    fn states(&self) -> Vec<(&str, i32)> {
        self.store.resources.iter().map(|(name, r)| (name.as_str(), r.row.state)).collect()
    }

    fn releasing(&self) -> Vec<String> {
        let due = self.store.resources.iter().filter(|(_, r)| r.row.state == RELEASING);
        due.map(|(name, _)| name.clone()).collect()
    }

    fn ended(&self, ticket: u64) -> bool {
        self.done.contains_key(&ticket)
    }
}

fn world(sessions: &[&str]) -> World {
    let mut world = World::new(Limits::default());
    for (i, id) in sessions.iter().enumerate() {
        world.ahead += 10 * i as u64;
        world.turn(id, "");
    }
    world
}

fn dumped() -> CleanupStep {
    CleanupStep::Cleaned { dump: Some(DumpMade { bytes: 10, sha256: [1; 32] }) }
}

// I21: the same request_id is the same resource, also after a restart; names are never given out twice.
#[test]
fn a_repeat_is_the_same_resource() {
    let mut world = world(&["s"]);
    let made = world.attach(&attach("s", "r")).expect("it is attached");
    assert!(made.created && made.state == PLANNED && made.name.len() <= 63, "{made:?}");
    let again = world.attach(&attach("s", "r")).expect("it is known");
    assert_eq!((again.created, &again.name), (false, &made.name));
    let other = v1::AttachResourceRequest { handle: "other".into(), ..attach("s", "r") };
    assert_eq!(world.attach(&other), Err(Reason::RequestMismatch));
    world.restart();
    assert_eq!(world.attach(&attach("s", "r")).expect("it is known").name, made.name);
    let second = world.name(&attach("s", "r2"));
    assert_ne!(second, made.name);
    assert_eq!(world.confirm("s", &made.name), Ok(LIVE));
    assert_eq!(world.attach(&attach("s", "r")).expect("it is known").state, LIVE);
}

// I22: what is refused changes nothing, and says why.
#[test]
fn what_cannot_be_attached() {
    let mut world = World::new(Limits { max_resources: 3, max_resources_per_session: 2, ..Limits::default() });
    for id in ["s", "t", "gone"] {
        world.turn(id, "");
    }
    world.close("gone");
    assert_eq!(world.attach(&attach("gone", "")), Err(Reason::SessionClosed));
    assert_eq!(world.attach(&attach("never", "")), Err(Reason::SessionNotFound));
    let nameless = v1::AttachResourceRequest { kind: CLIENT, owner: String::new(), ..attach("s", "") };
    assert_eq!(world.attach(&nameless), Err(Reason::InvalidField));
    assert_eq!(world.attach(&v1::AttachResourceRequest { kind: 0, ..attach("s", "") }), Err(Reason::InvalidField));
    assert_eq!(world.confirm("s", "roost-00000000-1-0123-1"), Err(Reason::ResourceNotFound));
    let setup = ResourceSetup { prefix: "x".into(), store_id: "00000000".into(), epoch: 1, kinds: vec![CLIENT] };
    let now = world.now();
    world.engine.set_resources(setup, Vec::new(), &now);
    assert_eq!(world.attach(&attach("s", "")), Err(Reason::DriverOff));
    let client = |id| v1::AttachResourceRequest { kind: CLIENT, ..attach(id, "") };
    let (first, _) = (world.name(&client("s")), world.name(&client("s")));
    assert_eq!(world.attach(&client("s")), Err(Reason::ResourceLimit));
    world.name(&client("t"));
    assert_eq!(world.attach(&client("t")), Err(Reason::ResourceLimit));
    assert_eq!(world.detach("s", &first), Ok(true));
    world.name(&client("t"));
    assert_eq!(world.store.resources.len(), 3);
    // Another session's name is none of this one's.
    assert_eq!(world.detach("t", &first), Err(Reason::ResourceNotFound));
    assert_eq!(world.confirm("t", &first), Err(Reason::ResourceNotFound));
}

// I12: each thing is released once, whoever says so how often.
#[test]
fn a_release_is_once() {
    let mut world = world(&["s"]);
    let client = world.name(&v1::AttachResourceRequest { kind: CLIENT, ..attach("s", "") });
    let process = world.name(&attach("s", "r"));
    assert_eq!((world.detach("s", &client), world.detach("s", &client)), (Ok(true), Ok(true)));
    // The server ends it: until it has, it is known.
    assert_eq!((world.detach("s", &process), world.detach("s", &process)), (Ok(false), Ok(false)));
    assert_eq!(world.confirm("s", &process), Err(Reason::ResourceReleasing));
    // Who asks again for what he may have missed learns that he must not make it.
    assert_eq!(world.attach(&attach("s", "r")), Err(Reason::ResourceReleasing));
    assert!(world.release(&process, ReleaseStep::Failed { error: "no".into(), retry_ms: 60_000 }));
    let later = world.store.resources[&process].due;
    world.restart();
    // Asked again, it is tried at once.
    assert_eq!(world.detach("s", &process), Ok(false));
    assert!(world.store.resources[&process].due < later);
    assert!(world.release(&process, ReleaseStep::Released));
    assert!(!world.release(&process, ReleaseStep::Released) && world.store.resources.is_empty());
    assert_eq!(world.detach("s", &process), Ok(true));
}

// I12, I20: a session with resources is SEALED until they are gone; with a dump target its dump comes before.
#[test]
fn a_close_releases_after_the_dump() {
    for dumps in [false, true] {
        let mut world = world(&["s"]);
        world.set_dumps(dumps);
        let names = [world.name(&attach("s", "")), world.name(&attach("s", ""))];
        let receipt = world.close("s");
        assert_eq!((receipt.resources, world.state("s")), (2, SEALED));
        assert_eq!(world.close("s"), receipt);
        let due = |world: &World| world.store.resources.values().filter(|r| r.due > 0).count();
        assert_eq!(due(&world), if dumps { 0 } else { 2 });
        if dumps {
            assert_eq!(world.detach("s", &names[0]), Ok(false));
            assert_eq!(due(&world), 0, "its dump comes first");
            assert!(world.step("s", dumped()));
            assert_eq!((world.state("s"), due(&world)), (SEALED, 2));
        }
        world.restart();
        assert!(world.release(&names[0], ReleaseStep::Released));
        assert_eq!(world.store.by_id(TENANT, "s").expect("it is there").cleanup_due, 0);
        assert!(world.release(&names[1], ReleaseStep::Released));
        assert!(world.store.by_id(TENANT, "s").expect("it is there").cleanup_due > 0);
        assert!(world.step("s", CleanupStep::Cleaned { dump: None }));
        assert_eq!(world.state("s"), CLOSED);
        assert_eq!(world.close("s"), receipt);
    }
}

// A host that detaches after the close lets its session go on.
#[test]
fn a_host_detaches_after_the_end() {
    let mut world = world(&["s"]);
    let name = world.name(&v1::AttachResourceRequest { kind: CLIENT, ..attach("s", "") });
    world.close("s");
    assert!(!world.step("s", CleanupStep::Keep));
    assert_eq!(world.detach("s", &name), Ok(true));
    assert!(world.step("s", CleanupStep::Cleaned { dump: None }));
    assert_eq!(world.state("s"), CLOSED);
}

// The least recently used whose session runs no turn, its own key's first; the place is free when it is gone.
#[test]
fn who_gives_way() {
    let mut world = world(&["a", "b", "c", "d"]);
    let a = world.name(&pooled("a", "x", Some(3), Some(2)));
    world.ahead += 10;
    let b = world.name(&pooled("b", "y", Some(3), Some(2)));
    world.ahead += 10;
    let c = world.name(&pooled("c", "x", Some(3), Some(2)));
    // Both caps are reached. Without waiting nobody is released.
    assert_eq!(world.attach(&pooled("d", "x", Some(3), Some(2))), Err(Reason::PoolFull));
    assert!(world.releasing().is_empty());
    // By key first: of x the least recently used; b, older than c, is left alone. A turn is a use.
    world.ahead += 10;
    world.turn("a", "");
    let ticket = world.start(Method::AttachResource, &waiting(pooled("d", "x", Some(3), Some(2))));
    world.settle();
    assert_eq!(world.releasing(), [&*c]);
    assert!(!world.ended(ticket), "the place is not free before it is gone");
    assert!(world.release(&c, ReleaseStep::Released));
    let d: v1::AttachResourceResponse = world.answer(ticket).expect("it has the place");
    assert!(d.created);
    // Of the whole pool: b runs, a was used after d's session was.
    let grant = world.begin("b");
    let ticket = world.start(Method::AttachResource, &waiting(pooled("c", "z", Some(3), None)));
    world.settle();
    assert_eq!(world.releasing(), [&*a]);
    assert!(world.release(&a, ReleaseStep::Released));
    world.answer::<v1::AttachResourceResponse>(ticket).expect("it has the place");
    world.commit(&commit("b", &grant.lease));
    assert!(world.states().iter().any(|(name, _)| *name == b));
}

// One that was named a moment ago, and is perhaps being made, goes after those that are there.
#[test]
fn who_is_being_made_goes_last() {
    let mut world = world(&["a", "b", "c"]);
    let planned = world.name(&pooled("a", "", Some(2), None));
    world.ahead += 10;
    let live = world.name(&pooled("b", "", Some(2), None));
    assert_eq!(world.confirm("b", &live), Ok(LIVE));
    world.start(Method::AttachResource, &waiting(pooled("c", "", Some(2), None)));
    world.settle();
    assert_eq!(world.releasing(), [&*live]);
    // Not for ever: who named it may be gone.
    assert!(world.release(&live, ReleaseStep::Released));
    world.pass(world.limits.release_timeout_ms + 10);
    let c =
        world.states().iter().map(|(name, _)| (*name).to_owned()).find(|name| *name != planned).expect("it is there");
    assert_eq!(world.confirm("c", &c), Ok(LIVE));
    world.turn("c", "");
    world.start(Method::AttachResource, &waiting(pooled("b", "", Some(2), None)));
    world.settle();
    assert_eq!(world.releasing(), [&*planned]);
}

// Every holder runs: refused at once. A cap of 0 admits nothing, and releases nobody for that.
#[test]
fn who_runs_stays() {
    let mut world = world(&["a", "b", "c"]);
    for id in ["a", "b"] {
        world.name(&pooled(id, "", Some(2), None));
    }
    let grants = ["a", "b"].map(|id| world.begin(id));
    assert_eq!(world.attach(&waiting(pooled("c", "", Some(2), None))), Err(Reason::PoolFull));
    assert_eq!(world.attach(&waiting(pooled("c", "", None, Some(0)))), Err(Reason::PoolFull));
    world.commit(&commit("a", &grants[0].lease));
    assert_eq!(world.attach(&waiting(pooled("c", "", Some(0), None))), Err(Reason::PoolFull));
    assert!(world.releasing().is_empty());
    // After a restart who runs is still known.
    world.restart();
    let ticket = world.start(Method::AttachResource, &waiting(pooled("c", "", Some(2), None)));
    world.settle();
    let released = world.releasing();
    assert_eq!(released.len(), 1);
    let session = world.store.resources[&released[0]].row.session;
    assert_eq!(Some(session), world.store.by_id(TENANT, "a").map(|s| s.row.uid));
    assert!(world.release(&released[0], ReleaseStep::Released) && world.ended(ticket));
}

// A release that does not end holds its own place and nobody's hopes: after the time that it may take another gives way.
#[test]
fn a_stuck_release_holds_up_itself() {
    let mut world = world(&["a", "b", "c"]);
    for id in ["a", "b"] {
        world.ahead += 10;
        world.name(&pooled(id, "", Some(2), None));
    }
    let ticket = world.start(Method::AttachResource, &waiting(pooled("c", "", Some(2), None)));
    world.settle();
    assert_eq!(world.releasing().len(), 1);
    world.pass(world.limits.release_timeout_ms + 10);
    assert_eq!(world.releasing().len(), 2);
    let second = world.releasing().pop().expect("there are two");
    assert!(world.release(&second, ReleaseStep::Released) && world.ended(ticket));
    // A wait that comes to nothing says so at its end.
    let ticket = world.start(Method::AttachResource, &waiting(pooled("b", "", Some(1), None)));
    world.settle();
    for _ in 0..8 {
        world.pass(10_000);
    }
    assert_eq!(world.answer::<v1::AttachResourceResponse>(ticket), Err(Reason::PoolFull));
}

// The idle time begins with the end of the last turn, and a turn that runs is never idle.
#[test]
fn what_is_idle_goes() {
    let mut world = world(&["a", "b"]);
    let mut request = pooled("a", "", None, None);
    request.pool.as_mut().expect("it has one").idle_ttl = Some(seconds(60));
    world.name(&request);
    request.session_id = "b".into();
    let other = world.name(&request);
    let grant = world.begin("a");
    for _ in 0..3 {
        world.pass(20_000);
        let renewal = v1::Renewal { session_id: "a".into(), lease: grant.lease.clone(), tokens: 0 };
        let request = v1::RenewTurnsRequest { renewals: vec![renewal] };
        world.call::<v1::RenewTurnsResponse>(Method::RenewTurns, &request).expect("it is renewed");
    }
    world.pass(1_000);
    assert_eq!(world.releasing(), [other]);
    world.commit(&commit("a", &grant.lease));
    world.pass(59_000);
    assert_eq!(world.releasing().len(), 1);
    world.pass(2_000);
    assert_eq!(world.releasing().len(), 2);
}

// I24: who waits for a place and is gone, or whose session ends, or whose server stops, holds nothing.
#[test]
fn waits_end() {
    let mut world = world(&["a", "b"]);
    world.name(&pooled("a", "", Some(1), None));
    let wish = waiting(pooled("b", "", Some(1), None));
    let ticket = world.start(Method::AttachResource, &wish);
    world.settle();
    let now = world.now();
    world.engine.cancel(ticket, now);
    world.settle();
    let ticket = world.start(Method::AttachResource, &wish);
    world.settle();
    assert!(!world.ended(ticket));
    let closing = world.start(Method::CloseSession, &close("b"));
    world.settle();
    assert!(world.ended(closing));
    assert_eq!(world.answer::<v1::AttachResourceResponse>(ticket), Err(Reason::SessionClosed));
    world.turn("c", "");
    let ticket = world.start(Method::AttachResource, &waiting(pooled("c", "", Some(1), None)));
    world.settle();
    let now = world.now();
    world.engine.begin_drain(now);
    world.settle();
    assert_eq!(world.answer::<v1::AttachResourceResponse>(ticket), Err(Reason::ShuttingDown));
}

// What the store refused did not happen: no resource, no release, and the place is as it was.
#[test]
fn what_is_not_stored_did_not_happen() {
    let mut world = world(&["a", "b"]);
    let a = world.name(&pooled("a", "", Some(1), None));
    let lost = world.start(Method::AttachResource, &attach("b", "r"));
    while world.read() {}
    assert!(world.append(false));
    world.settle();
    assert_eq!(world.answer::<v1::AttachResourceResponse>(lost), Err(Reason::NotStored));
    assert_eq!(world.store.resources.len(), 1);
    // The one that was to give way stays, and gives way to the next.
    let wish = waiting(pooled("b", "", Some(1), None));
    let first = world.start(Method::AttachResource, &wish);
    while world.read() {}
    assert!(world.append(false));
    world.settle();
    assert_eq!(world.states(), [(&*a, PLANNED)]);
    let now = world.now();
    world.engine.cancel(first, now);
    let ticket = world.start(Method::AttachResource, &wish);
    world.settle();
    assert_eq!(world.states(), [(&*a, RELEASING)]);
    // Nor was it released.
    let now = world.now();
    world.engine.resource_step(&a, ReleaseStep::Released, now);
    assert!(world.append(false));
    world.settle();
    assert!(!world.ended(ticket) && world.store.resources.len() == 1);
    assert!(world.release(&a, ReleaseStep::Released) && world.ended(ticket));
}

// I17: a session's key attaches to what descends from it, and learns of nobody else who holds a place.
#[test]
fn a_sessions_key_reaches_its_own() {
    let mut world = world(&["other"]);
    let open = |id: &str, parent: &str| v1::OpenSessionRequest {
        session_id: id.into(),
        options: Some(v1::OpenOptions { parent_session_id: parent.into(), ..Default::default() }),
        mint_key: true,
        ..Default::default()
    };
    let opened: v1::OpenSessionResponse = world.call(Method::OpenSession, &open("root", "")).expect("it opens");
    let key = opened.session_key;
    assert!(!key.is_empty());
    world.turn("child", "root");
    let theirs = world.name(&attach("other", ""));
    for id in ["root", "child"] {
        let told: v1::AttachResourceResponse =
            world.call_as(&key, Method::AttachResource, &attach(id, "")).expect("it is its own");
        let request = v1::DetachResourceRequest { session_id: id.into(), name: told.name };
        world.call_as::<v1::DetachResourceResponse>(&key, Method::DetachResource, &request).expect("it is its own");
    }
    let refused = world.call_as::<v1::AttachResourceResponse>(&key, Method::AttachResource, &attach("other", ""));
    assert_eq!(refused, Err(Reason::SessionNotFound));
    let request = v1::DetachResourceRequest { session_id: "other".into(), name: theirs };
    let refused = world.call_as::<v1::DetachResourceResponse>(&key, Method::DetachResource, &request);
    assert_eq!(refused, Err(Reason::SessionNotFound));
}
