//! Sessions that begin with a copy of another's history, against the engine and a store in memory. The store says no to a
//! copy that is not whole (I4, I7, I23); what holds whatever the order is in simulation.rs.

use crate::sim::scene::{TENANT, World, begin, close, commit};
use prost::Message as _;
use roost_core::engine::{Caller, CleanupStep, DumpMade, Effect, Method, Outcome, Wanted};
use roost_core::error::{Reason, Refusal};
use roost_core::limits::Limits;
use roost_core::proto::v1::{self, RecordStatus};

const COMMITTED: i32 = RecordStatus::Committed as i32;

/// A session of this id that is a fork; at the end of its tree's root if `parent` is empty.
fn fork(id: &str, parent: &str, source: &str, turn: u32) -> v1::OpenSessionRequest {
    let options = v1::OpenOptions { parent_session_id: parent.into(), ..v1::OpenOptions::default() };
    v1::OpenSessionRequest {
        session_id: id.into(),
        options: Some(options),
        fork_from: Some(v1::ForkFrom { session_id: source.into(), turn }),
        ..v1::OpenSessionRequest::default()
    }
}

/// A commit with content, two tokens made of `n`, and a state if `n` is odd.
fn turn(id: &str, grant: &v1::Grant, n: u32) -> v1::CommitTurnRequest {
    let ids = [n, n + 100].iter().flat_map(|t| t.to_le_bytes()).collect();
    let offset = grant.checkpoint.as_ref().map_or(0, |c| c.length);
    let tokens = v1::TokenSpan { offset, token_ids: ids, ..v1::TokenSpan::default() };
    let record = v1::RecordInput {
        content: format!("turn {n}").into_bytes(),
        content_type: "text/plain".into(),
        tokens: Some(tokens),
        labels: [("n".to_owned(), n.to_string())].into(),
        ..v1::RecordInput::default()
    };
    let state = (n % 2 == 1).then(|| format!("state {n}").into_bytes());
    let request_id = format!("commit-{n}");
    v1::CommitTurnRequest { record: Some(record), state, request_id, ..commit(id, &grant.lease) }
}

/// What a turn is, whatever its session's grants and requests were.
#[derive(Debug, PartialEq)]
struct Turn {
    content: Vec<u8>,
    tokens: Vec<u8>,
    labels: Vec<String>,
    create_ms: i64,
}

fn dumped() -> CleanupStep {
    CleanupStep::Cleaned { dump: Some(DumpMade { bytes: 10, sha256: [1; 32] }) }
}

impl World {
    fn fork(&mut self, id: &str, source: &str, turn: u32) -> Result<v1::Session, Reason> {
        let told: v1::OpenSessionResponse = self.call(Method::OpenSession, &fork(id, "", source, turn))?;
        assert!(told.created);
        Ok(told.session.expect("it is told"))
    }

    /// As [`World::fork`]; all that a refusal says.
    fn fork_refused(&mut self, request: &v1::OpenSessionRequest) -> Refusal {
        let ticket = self.start(Method::OpenSession, request);
        self.settle();
        self.done.remove(&ticket).expect("it has ended").expect_err("it is refused")
    }

    /// Turns `from..=to` of a session.
    fn play(&mut self, id: &str, from: u32, to: u32) {
        for n in from..=to {
            let request_id = format!("begin-{n}");
            let begun: v1::BeginTurnResponse = self
                .call(Method::BeginTurn, &v1::BeginTurnRequest { request_id, ..begin(id, "") })
                .expect("a slot is free");
            self.commit(&turn(id, &begun.grant.expect("it was granted"), n));
        }
    }

    /// The COMMITTED records of the live line, in order.
    fn line_of(&self, id: &str) -> Vec<Turn> {
        let session = self.store.by_id(TENANT, id).expect("it is stored");
        let live = self.store.line(session).filter(|(_, r)| r.status == COMMITTED).map(|(_, r)| Turn {
            content: r.content.clone(),
            tokens: r.decoded.tokens_digest.clone(),
            labels: r.decoded.labels.values().cloned().collect(),
            create_ms: r.decoded.create_ms,
        });
        let mut turns: Vec<_> = live.collect();
        turns.reverse();
        turns
    }

    /// What the next turn of a session starts from, read from the store and then given back.
    fn start_of(&mut self, id: &str) -> (u32, Vec<u8>, String) {
        self.restart();
        let grant = self.begin(id);
        self.abort(id, &grant.lease);
        let checkpoint = grant.checkpoint.unwrap_or_default();
        (grant.turn, checkpoint.token_ids, String::from_utf8(checkpoint.state).expect("it is text"))
    }

    /// What this many turns of a session take, as a fork counts it.
    fn size(&self, id: &str, turns: u32) -> u64 {
        let uid = self.store.by_id(TENANT, id).expect("it is stored").row.uid;
        let wanted = Wanted { size: true, state_turn: Some(turns), ..Wanted::default() };
        self.store.load(uid, wanted).expect("it is stored").size
    }

    /// Asks for a purge of all that an ended session has; not settled.
    fn ask_purge(&mut self, id: &str) -> u64 {
        let session = self.store.by_id(TENANT, id).expect("it is stored");
        let records = self.store.line(session).map(|(seq, _)| seq).collect();
        let (uid, root, seq) = (session.row.uid, session.row.root, session.row.seq);
        let step = CleanupStep::Purge { records, last: 0, acknowledged: true };
        let now = self.now();
        match self.engine.cleanup_step(TENANT, id, (uid, root), seq, step, now) {
            Outcome::Ticket(ticket) => ticket,
            ended => panic!("it ended at once: {ended:?}"),
        }
    }

    /// Answers the reads that are asked for now, and no others.
    fn read_once(&mut self) {
        for effect in self.engine.effects() {
            let now = self.now();
            self.store.answer(effect)(&self.engine, now);
        }
        self.done.extend(self.engine.completed());
    }

    /// A fork whose entry is in the journal, and no further.
    fn appended(&mut self, id: &str, source: &str) -> u64 {
        let ticket = self.start(Method::OpenSession, &fork(id, "", source, 0));
        while self.engine.backlog() == 0 {
            assert!(self.read(), "it comes to nothing");
        }
        ticket
    }

    fn purging(&self, id: &str) -> bool {
        self.store.by_id(TENANT, id).expect("it is stored").purging
    }
}

/// Tokens of turns `1..=to`, as `turn` makes them.
fn tokens(turns: &[u32]) -> Vec<u8> {
    turns.iter().flat_map(|n| [*n, n + 100]).flat_map(u32::to_le_bytes).collect()
}

// I4, I7, I9, I23: of a session that runs. What it did beside its live line is not copied, and from then on each goes its
// own way.
#[test]
fn a_fork_begins_with_the_live_line_and_shares_nothing() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 2);
    let grant = world.begin("a");
    world.abort("a", &grant.lease);
    world.play("a", 3, 3);
    let running = world.begin("a");
    let told = world.fork("b", "a", 0).expect("it is forked");
    assert_eq!((told.turn_count, told.head_version, told.checkpoint_tokens), (3, 3, 6));
    assert_eq!((told.trajectory, told.trajectory_first_turn), (1, 1));
    assert_eq!(told.last_outcome, v1::TurnOutcome::None as i32, "it has ended no turn itself");
    assert_eq!(world.line_of("b"), world.line_of("a"));
    assert_eq!(world.store.by_id(TENANT, "b").map(|s| world.store.line(s).count()), Some(3));
    world.commit(&turn("a", &running, 4));
    world.play("b", 5, 5);
    assert_eq!(world.start_of("a"), (5, tokens(&[1, 2, 3, 4]), "state 3".into()));
    assert_eq!(world.start_of("b"), (5, tokens(&[1, 2, 3, 5]), "state 5".into()));
    let grant = world.begin("b");
    // Its grants are its own: it had one for each turn that it began with, as far as their numbers tell.
    assert_eq!((grant.fence, grant.head_version, grant.attempt), (6, 4, 2));
    world.store.verify_all().expect("I23: chains verify");
}

// A line is what it was at the turn: neither what came after it nor what a rewind has taken back.
#[test]
fn a_fork_of_an_earlier_turn_is_that_turn() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 4);
    let grant = world.begin("a");
    let checkpoint = Some(v1::Checkpoint { length: 2, ..v1::Checkpoint::default() });
    let back = v1::Grant { checkpoint, ..grant };
    world.commit(&v1::CommitTurnRequest { base_turn: Some(1), ..turn("a", &back, 12) });
    world.play("a", 13, 14);
    let now = [1, 12, 13, 14];
    for n in 1..=4_u32 {
        let id = format!("b{n}");
        let told = world.fork(&id, "a", n).expect("it is forked");
        assert_eq!((told.turn_count, told.head_version), (n, u64::from(n)));
        let state = if n < 3 { "state 1" } else { "state 13" };
        assert_eq!(world.start_of(&id), (n + 1, tokens(&now[..n as usize]), state.into()), "at turn {n}");
    }
    assert_eq!(world.fork("b5", "a", 5), Err(Reason::TurnNotFound));
    // A session without turns can be copied as well; there is nothing to it.
    let options = Some(v1::OpenOptions::default());
    let open = v1::OpenSessionRequest { session_id: "empty".into(), options, ..Default::default() };
    let _: v1::OpenSessionResponse = world.call(Method::OpenSession, &open).expect("it is made");
    assert_eq!(world.fork("c", "empty", 0).map(|s| s.turn_count), Ok(0));
    world.play("c", 1, 1);
    assert_eq!(world.fork("d", "empty", 1), Err(Reason::TurnNotFound));
    world.store.verify_all().expect("I23: chains verify");
}

// All that a session does a fork does with the turns that it began with: go back into them, be told a delta, reward them,
// finish them as its first trajectory, be forked, be closed and opened again.
#[test]
fn what_a_fork_began_with_is_its_own() {
    let mut world = World::new(Limits { max_rewind: 2, ..Limits::default() });
    world.play("a", 1, 4);
    let finish = |id: &str| v1::FinishTrajectoryRequest { session_id: id.into(), ..Default::default() };
    let _: v1::FinishTrajectoryResponse = world.call(Method::FinishTrajectory, &finish("a")).expect("it finishes");
    world.fork("b", "a", 0).expect("it is forked");
    for unloaded in [false, true] {
        if unloaded {
            world.restart();
        }
        let begun: v1::BeginTurnResponse = world
            .call(Method::BeginTurn, &v1::BeginTurnRequest { known_head_version: Some(3), ..begin("b", "") })
            .expect("a slot is free");
        let grant = begun.grant.expect("it was granted");
        let delta = grant.checkpoint.expect("it has tokens");
        assert_eq!((delta.offset, delta.token_ids), (6, tokens(&[4])), "I11: unloaded: {unloaded}");
        world.abort("b", &grant.lease);
    }
    let grant = world.begin("b");
    let far = v1::CommitTurnRequest { base_turn: Some(1), ..commit("b", &grant.lease) };
    assert_eq!(world.call::<v1::CommitTurnResponse>(Method::CommitTurn, &far), Err(Reason::RewindRefused));
    let checkpoint = Some(v1::Checkpoint { length: 4, ..v1::Checkpoint::default() });
    let back = v1::Grant { checkpoint, ..grant };
    world.commit(&v1::CommitTurnRequest { base_turn: Some(2), ..turn("b", &back, 9) });
    assert_eq!(world.start_of("b"), (4, tokens(&[1, 2, 9]), "state 9".into()));
    let reward = v1::SetRewardRequest { session_id: "b".into(), turn: 1, reward: 0.5, ..Default::default() };
    let _: v1::SetRewardResponse = world.call(Method::SetReward, &reward).expect("it is rewarded");
    let _: v1::FinishTrajectoryResponse = world.call(Method::FinishTrajectory, &finish("b")).expect("it finishes");
    assert_eq!(world.finished("b"), [(1, 1, 3)], "its first trajectory begins with what it copied");
    world.fork("c", "b", 0).expect("it is forked");
    assert_eq!(world.start_of("c"), (4, tokens(&[1, 2, 9]), "state 9".into()));
    world.close("b");
    let reopen = v1::ReopenSessionRequest { session_id: "b".into(), ..Default::default() };
    let _: v1::ReopenSessionResponse = world.call(Method::ReopenSession, &reopen).expect("it comes back");
    assert_eq!(world.start_of("b"), (4, tokens(&[1, 2, 9]), "state 9".into()));
    world.store.verify_all().expect("I23: chains verify");
}

// In whatever state the source is: unloaded, SEALED, CLOSED, on its way to disk. Its commit that is not durable yet is
// waited for (I6).
#[test]
fn a_source_may_be_in_any_state_but_purged() {
    let mut world = World::new(Limits::default());
    world.set_dumps(true);
    world.play("a", 1, 2);
    world.restart();
    world.fork("unloaded", "a", 0).expect("it is forked");
    let grant = world.begin("a");
    let committing = world.start(Method::CommitTurn, &turn("a", &grant, 3));
    let forking = world.start(Method::OpenSession, &fork("newest", "", "a", 0));
    while world.read() {}
    assert_eq!(world.engine.backlog(), 1, "I6: the commit is not durable yet");
    let closing = world.start(Method::CloseSession, &close("a"));
    let closed = world.start(Method::OpenSession, &fork("closing", "", "a", 0));
    world.settle();
    for ticket in [committing, closing] {
        assert!(world.done.remove(&ticket).is_some_and(|told| told.is_ok()));
    }
    for ticket in [forking, closed] {
        let told: v1::OpenSessionResponse = world.answer(ticket).expect("it is forked");
        assert_eq!(told.session.map(|s| s.turn_count), Some(3));
    }
    world.fork("sealed", "a", 0).expect("it is forked");
    assert!(world.step("a", dumped()));
    world.fork("closed", "a", 2).expect("it is forked");
    for (id, turns) in [("unloaded", 2), ("newest", 3), ("closing", 3), ("sealed", 3), ("closed", 2)] {
        assert_eq!(world.line_of(id), world.line_of("a")[..turns], "{id}");
        assert_eq!(world.get(id).state, v1::SessionState::Open as i32);
    }
    // The first step of a purge deletes nothing, and it is one.
    let last = world.store.by_id(TENANT, "a").expect("it is stored").row.last;
    assert!(world.step("a", CleanupStep::Purge { records: vec![], last, acknowledged: false }));
    assert_eq!(world.fork("late", "a", 0), Err(Reason::SessionPurged));
    let purge = world.ask_purge("a");
    world.settle();
    assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()));
    assert_eq!(world.fork("late", "a", 0), Err(Reason::SessionPurged));
    assert_eq!(world.fork("late", "nobody", 0), Err(Reason::SessionNotFound));
    world.restart();
    // Nothing was shared: what is gone of the one is there of the others.
    assert_eq!(world.start_of("newest"), (4, tokens(&[1, 2, 3]), "state 3".into()));
    assert!(world.store.by_id(TENANT, "late").is_none());
    world.store.verify_all().expect("I23: chains verify");
}

// I22: what is too large is not made, and the refusal says by how much. What is copied counts, not what is not.
#[test]
fn a_fork_is_as_large_as_it_may_be() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 3);
    let size = world.size("a", 2);
    assert!(size > 0 && size < world.size("a", 3));
    world.limits.max_fork_bytes = size - 1;
    world.restart();
    let request = fork("b", "", "a", 2);
    let refusal = world.fork_refused(&request);
    assert_eq!(refusal.reason, Reason::TooLarge);
    let of = |name: &str| refusal.metadata.get(name).cloned().unwrap_or_default();
    assert_eq!((of("size"), of("limit")), (size.to_string(), (size - 1).to_string()));
    assert_eq!((of("field"), of("session_id"), of("turn")), ("fork_from".into(), "a".into(), "2".into()));
    assert!(world.store.by_id(TENANT, "b").is_none() && world.engine.backlog() == 0);
    world.limits.max_fork_bytes = size;
    world.restart();
    assert_eq!(world.fork("b", "a", 0), Err(Reason::TooLarge));
    assert_eq!(world.fork("b", "a", 2).map(|s| s.turn_count), Ok(2));
}

// I22: a batch that the store refuses takes the fork with it: no session, no line, no claim is left.
#[test]
fn a_fork_that_is_not_stored_did_not_happen() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 2);
    world.close("a");
    let before = world.store.records.len();
    let ticket = world.appended("b", "a");
    assert!(world.append(false));
    world.settle();
    assert_eq!(world.answer::<v1::OpenSessionResponse>(ticket), Err(Reason::NotStored));
    assert!(world.store.by_id(TENANT, "b").is_none());
    assert_eq!(world.store.records.len(), before);
    assert_eq!(world.fork("b", "a", 0).map(|s| s.turn_count), Ok(2), "its id is free");
    let purge = world.ask_purge("a");
    world.settle();
    assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()) && world.purging("a"));
}

// A purge that meets a fork comes after it, or before it: what is copied is all there, or the fork is refused.
#[test]
fn a_purge_waits_for_those_who_copy() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 2);
    let lines = world.line_of("a");
    world.close("a");
    let first = world.appended("b", "a");
    let second = world.start(Method::OpenSession, &fork("c", "", "a", 0));
    while world.read() {}
    assert_eq!(world.engine.backlog(), 2, "forks do not wait for each other");
    let purge = world.ask_purge("a");
    // Who comes behind the purge waits for it: else those who copy could hold it off for good.
    let late = world.start(Method::OpenSession, &fork("d", "", "a", 0));
    while world.read() {}
    assert_eq!(world.engine.backlog(), 2, "the purge waits");
    let batch = world.engine.take_batch().expect("there are entries");
    assert_eq!(batch.roots.len(), 1, "one fork is enough for a transaction");
    world.store.apply(&batch).expect("the store takes it");
    let now = world.now();
    world.engine.appended(&roost_core::engine::Appended::Stored { quarantine: Vec::new() }, now);
    while world.read() {}
    assert!(!world.purging("a") && world.engine.backlog() == 1, "the second is not durable");
    world.settle();
    for (ticket, id) in [(first, "b"), (second, "c")] {
        assert!(world.answer::<v1::OpenSessionResponse>(ticket).is_ok_and(|told| told.created));
        assert_eq!(world.line_of(id), lines);
    }
    assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()) && world.purging("a"));
    assert_eq!(world.answer::<v1::OpenSessionResponse>(late), Err(Reason::SessionPurged));
    world.store.verify_all().expect("I23: chains verify");
}

// The same of a source that was OPEN when it was read, and is closed and purged before the copy is made.
#[test]
fn a_source_that_ends_meanwhile_stays_until_it_is_copied() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 2);
    let lines = world.line_of("a");
    let forking = world.start(Method::OpenSession, &fork("b", "", "a", 0));
    // Whether there is a "b"; then the source; then, of the call that runs again, whether there is a "b".
    world.read_once();
    world.read_once();
    let asked = world.engine.effects();
    assert!(matches!(&asked[..], [Effect::Find { session_id, .. }] if &**session_id == "b"), "{asked:?}");
    let closing = world.start(Method::CloseSession, &close("a"));
    assert!(world.append(true));
    let purge = world.ask_purge("a");
    while world.append(true) || world.read() {}
    assert!(!world.purging("a"), "the purge waits");
    for effect in asked {
        let now = world.now();
        world.store.answer(effect)(&world.engine, now);
    }
    world.settle();
    assert!(world.answer::<v1::OpenSessionResponse>(forking).is_ok_and(|told| told.created));
    assert!(world.answer::<v1::CloseSessionResponse>(closing).is_ok_and(|told| told.closed));
    assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()) && world.purging("a"));
    assert_eq!(world.line_of("b"), lines);
}

// I24: a caller that vanishes before its session is made makes none, and holds nothing.
#[test]
fn a_vanished_caller_leaves_no_fork_and_no_claim() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 2);
    world.close("a");
    for reads in 0..4 {
        let ticket = world.start(Method::OpenSession, &fork("b", "", "a", 0));
        for _ in 0..reads {
            world.read_once();
        }
        assert_eq!(world.engine.backlog(), 0);
        let now = world.now();
        world.engine.cancel(ticket, now);
        world.settle();
        assert!(world.store.by_id(TENANT, "b").is_none(), "after {reads} reads");
    }
    let purge = world.ask_purge("a");
    world.settle();
    assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()) && world.purging("a"));
}

// I22, I24: what came to stand against a fork while its source was read refuses it, and it holds nothing then.
#[test]
fn what_came_between_refuses_a_fork_and_leaves_no_claim() {
    let named = |id: &str| {
        let mut request = fork(id, "root", "a", 0);
        request.options.as_mut().expect("it has some").name = "scout".into();
        request
    };
    let rival = |id: &str| v1::OpenSessionRequest { fork_from: None, ..named(id) };
    for reason in [Reason::PathCollision, Reason::SessionClosed, Reason::SessionExists] {
        let mut world = World::new(Limits::default());
        world.turn("root", "");
        world.play("a", 1, 2);
        world.close("a");
        let ticket = world.start(Method::OpenSession, &named("b"));
        // Whether there is a "b"; then where the source is; whether there is a "b"; then the source; again "b".
        let reads = if reason == Reason::SessionExists { 3 } else { 4 };
        for _ in 0..reads {
            world.read_once();
        }
        let asked = world.engine.effects();
        assert!(matches!(&asked[..], [Effect::Find { .. } | Effect::Session { .. }]), "{asked:?}");
        let other = match reason {
            Reason::PathCollision => world.start(Method::OpenSession, &rival("c")),
            Reason::SessionExists => world.start(Method::OpenSession, &rival("b")),
            _ => world.start(Method::CloseSession, &close("root")),
        };
        while world.read() {}
        for effect in asked {
            let now = world.now();
            world.store.answer(effect)(&world.engine, now);
        }
        world.settle();
        let refusal = world.done.remove(&ticket).expect("it has ended").expect_err("it is refused");
        assert_eq!(refusal.reason, reason);
        assert!(world.done.remove(&other).is_some_and(|told| told.is_ok()));
        let purge = world.ask_purge("a");
        world.settle();
        assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()) && world.purging("a"));
    }
}

// I21, I22: a repeat is answered from the session, whatever it was forked from; an id that is in use is not forked into.
#[test]
fn a_repeated_fork_is_the_session_that_it_made() {
    let mut world = World::new(Limits { purge_without_dump: 1, ..Limits::default() });
    world.play("a", 1, 3);
    let request = v1::OpenSessionRequest { request_id: "once".into(), ..fork("b", "", "a", 2) };
    let first: v1::OpenSessionResponse = world.call(Method::OpenSession, &request).expect("it is forked");
    world.play("b", 4, 4);
    world.close("a");
    let purge = world.ask_purge("a");
    world.settle();
    assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()) && world.purging("a"));
    for _ in 0..2 {
        let again: v1::OpenSessionResponse = world.call(Method::OpenSession, &request).expect("it is a repeat");
        assert!(first.created && !again.created);
        let (first, again) = (first.session.clone().expect("told"), again.session.expect("told"));
        assert_eq!((again.uid, again.turn_count), (first.uid, 3));
        world.restart();
    }
    let other = v1::OpenSessionRequest { request_id: "once".into(), ..fork("b", "", "a", 3) };
    assert_eq!(world.fork_refused(&other).reason, Reason::RequestMismatch);
    assert_eq!(world.fork("b", "a", 0), Err(Reason::SessionExists));
    let exists = v1::OpenSessionRequest { if_exists: v1::IfExists::Return as i32, ..fork("b", "", "nobody", 7) };
    let told: v1::OpenSessionResponse = world.call(Method::OpenSession, &exists).expect("it is there");
    assert_eq!((told.created, told.session.map(|s| s.turn_count)), (false, Some(3)));
    let itself = world.call::<v1::OpenSessionResponse>(Method::OpenSession, &fork("x", "", "x", 0));
    assert_eq!(itself, Err(Reason::InvalidField));
}

// I22: validate_only refuses what would be refused, and makes nothing of what would not.
#[test]
fn validate_only_checks_a_fork_and_makes_nothing() {
    let mut world = World::new(Limits { max_turns_per_tenant: 1, ..Limits::default() });
    world.play("a", 1, 3);
    world.limits.max_fork_bytes = world.size("a", 2);
    world.restart();
    let ask = |source: &str, turn| v1::OpenSessionRequest { validate_only: true, ..fork("b", "", source, turn) };
    let told: v1::OpenSessionResponse = world.call(Method::OpenSession, &ask("a", 2)).expect("it may be");
    let session = told.session.expect("it is told");
    assert_eq!((session.turn_count, session.head_version, session.checkpoint_tokens), (2, 2, 4));
    assert_eq!((told.created, session.uid.as_str(), session.path.as_str()), (false, "", "/root"));
    let below = v1::OpenSessionRequest { validate_only: true, ..fork("b", "a", "a", 1) };
    let told: v1::OpenSessionResponse = world.call(Method::OpenSession, &below).expect("it may be");
    assert_eq!(told.session.map(|s| (s.path, s.turn_count)), Some(("/root/b".into(), 1)));
    // Nor does it make what a BeginTurn waits to make.
    let running = world.begin("else");
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let waiting = world.start(Method::BeginTurn, &v1::BeginTurnRequest { wait, ..begin("b", "") });
    world.settle();
    let told: v1::OpenSessionResponse = world.call(Method::OpenSession, &ask("a", 2)).expect("it may be");
    assert_eq!((told.created, told.session.map(|s| s.turn_count)), (false, Some(2)));
    let now = world.now();
    world.engine.cancel(waiting, now);
    world.abort("else", &running.lease);
    assert_eq!(world.fork_refused(&ask("a", 0)).reason, Reason::TooLarge);
    assert_eq!(world.fork_refused(&ask("a", 4)).reason, Reason::TurnNotFound);
    assert_eq!(world.fork_refused(&ask("nobody", 0)).reason, Reason::SessionNotFound);
    world.close("a");
    let seq = world.store.last_seq;
    let _: v1::OpenSessionResponse = world.call(Method::OpenSession, &ask("a", 2)).expect("it may be");
    assert_eq!(world.store.last_seq, seq, "nothing was written");
    let purge = world.ask_purge("a");
    world.settle();
    assert!(world.done.remove(&purge).is_some_and(|told| told.is_ok()));
    assert_eq!(world.fork_refused(&ask("a", 2)).reason, Reason::SessionPurged);
    assert!(world.store.by_id(TENANT, "b").is_none());
}

// I17: of a session's key the source is its session or a descendant; all else looks like what never was.
#[test]
fn a_key_forks_from_what_it_reaches() {
    let mut world = World::new(Limits::default());
    for (id, parent) in [("root", ""), ("s", "root"), ("child", "s"), ("gone", "s"), ("sibling", "root"), ("else", "")]
    {
        world.turn(id, parent);
    }
    world.turn("deep", "gone");
    world.close("gone");
    let mint = |id: &str| v1::OpenSessionRequest {
        session_id: id.into(),
        if_exists: v1::IfExists::Return as i32,
        mint_key: true,
        ..Default::default()
    };
    let minted: v1::OpenSessionResponse = world.call(Method::OpenSession, &mint("s")).expect("it is open");
    let key = minted.session_key;
    for loaded in [true, false] {
        if !loaded {
            world.restart();
        }
        for (n, source) in ["s", "child", "gone"].iter().enumerate() {
            let request = fork(&format!("new{n}{loaded}"), "s", source, 0);
            let told: v1::OpenSessionResponse =
                world.call_as(&key, Method::OpenSession, &request).expect("it is forked");
            assert_eq!(told.session.map(|s| s.turn_count), Some(1), "from {source}");
        }
        let mut said = Vec::new();
        // Below a session that has ended is out of reach as well.
        for source in ["root", "sibling", "else", "deep", "nobody"] {
            let bearer = format!("Bearer {key}");
            for validate_only in [false, true] {
                let request = v1::OpenSessionRequest { validate_only, ..fork("x", "s", source, 0) };
                let now = world.now();
                let caller = Caller { authorization: &bearer, tenant: TENANT };
                let refusal = match world.engine.call(Method::OpenSession, &request.encode_to_vec(), &caller, 0, now) {
                    Outcome::Ticket(ticket) => {
                        world.settle();
                        world.done.remove(&ticket).expect("it has ended").expect_err("it is refused")
                    }
                    Outcome::Refused(refusal) => refusal,
                    told @ Outcome::Reply(_) => panic!("{source}: {told:?}"),
                };
                assert_eq!(refusal.metadata.get("session_id").map(String::as_str), Some(source));
                said.push((refusal.reason, refusal.message.replace(source, "it"), refusal.retry_ms));
            }
        }
        said.dedup();
        assert_eq!(said, [(Reason::SessionNotFound, "no session \"it\" is known".into(), None)]);
    }
    // A tenant's key: any session of the tenant, and no other's.
    assert!(world.fork("free", "deep", 0).is_ok());
    let now = world.now();
    let request = fork("theirs", "", "root", 0).encode_to_vec();
    let Outcome::Ticket(ticket) = world.engine.call(Method::OpenSession, &request, &Caller::of("other"), 0, now) else {
        panic!("it reads first")
    };
    world.settle();
    assert_eq!(world.answer::<v1::OpenSessionResponse>(ticket), Err(Reason::SessionNotFound));
}

// Spawned all at once: below a parent, under a name, with its first message; or not at all.
#[test]
fn a_fork_is_spawned_whole_or_not_at_all() {
    let mut world = World::new(Limits { max_depth: 2, ..Limits::default() });
    world.play("root", 1, 2);
    let grant = world.begin("root");
    world.commit(&v1::CommitTurnRequest { completed: true, ..turn("root", &grant, 3) });
    let spawn = |id: &str, parent: &str| {
        let message = v1::MessageInput { content: b"go on".to_vec(), ..v1::MessageInput::default() };
        let mut request = v1::OpenSessionRequest { first_message: Some(message), ..fork(id, parent, "root", 0) };
        request.options.as_mut().expect("it has some").name = "scout".into();
        request
    };
    let told: v1::OpenSessionResponse = world.call(Method::OpenSession, &spawn("s", "root")).expect("it is made");
    let session = told.session.expect("it is told");
    assert_eq!((session.path.as_str(), session.turn_count), ("/root/scout", 3));
    let before = (world.store.records.len(), world.store.last_seq);
    assert_eq!(world.fork_refused(&spawn("t", "root")).reason, Reason::PathCollision);
    assert_eq!(world.fork_refused(&spawn("t", "nobody")).reason, Reason::ParentNotFound);
    assert_eq!(before, (world.store.records.len(), world.store.last_seq));
    let grant = world.begin("s");
    assert_eq!(grant.mail.iter().map(|m| m.content.clone()).collect::<Vec<_>>(), [b"go on".to_vec()]);
    world.abort("s", &grant.lease);
    // The root's turn was completed, and not the fork's: its end is news to the parent.
    world.close("s");
    let grant = world.begin("root");
    let told: Vec<_> = grant.mail.iter().map(roost_core::proto::v1::Message::kind).collect();
    assert_eq!(told, [v1::MessageKind::Closed]);
}

// A session that is being restored is nobody's yet.
#[test]
fn half_a_session_is_not_forked() {
    let mut world = World::new(Limits::default());
    world.play("a", 1, 2);
    world.close("a");
    let (session, ..) = world.store.dump(world.store.by_id(TENANT, "a").expect("it is stored"));
    let mut other = World::new(Limits::default());
    other.moments = 1_000_000;
    let now = other.now();
    let Outcome::Ticket(ticket) = other.engine.restore_session(TENANT, session, "", now) else {
        panic!("it reads first")
    };
    other.settle();
    assert!(other.done.remove(&ticket).is_some_and(|told| told.is_ok()));
    let refusal = other.fork_refused(&fork("b", "", "a", 0));
    assert_eq!((refusal.reason, refusal.retry_ms), (Reason::SessionRestoring, Some(1_000)));
}
