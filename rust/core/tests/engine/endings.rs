//! How sessions end, against the engine and a store in memory: closes, what follows them, how they come back, and the
//! sweep of stale trees. What holds whatever the order is in simulation.rs.

use crate::sim::scene::{TENANT, World, begin, close, commit};
use prost::Message;
use roost_core::engine::{
    CleanupStep, DumpMade, DumpedMail, DumpedRecord, DumpedSession, DumpedTrajectory, Method, Outcome, RestoreEnd,
    RestoreStep,
};
use roost_core::error::Reason;
use roost_core::ids::Uid;
use roost_core::limits::Limits;
use roost_core::proto::store_v1::{MessageMeta, Receipt, RequestMark, SessionFacts};
use roost_core::proto::v1;

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
    fn reopen(&mut self, id: &str) -> Result<u32, Reason> {
        let told: v1::ReopenSessionResponse = self.call(Method::ReopenSession, &reopen(id, ""))?;
        let session = told.session.expect("it is told");
        assert_eq!((session.session_id.as_str(), session.state), (id, OPEN));
        Ok(told.reopened)
    }

    fn opened(&mut self, id: &str, parent: &str, name: &str, stale_s: Option<i64>) -> Result<v1::Session, Reason> {
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

/// What a dump holds, with the sequences that it names.
type Dump = (DumpedSession, Vec<(u64, DumpedRecord)>, Vec<DumpedTrajectory>);

impl World {
    fn dump(&self, id: &str) -> Dump {
        self.store.dump(self.store.by_id(TENANT, id).expect("it is stored"))
    }

    fn dump_of_ended(&mut self, id: &str) -> Dump {
        self.close(id);
        self.dump(id)
    }

    /// Asks for a restore below the session of its parent's uid.
    fn ask_restore(&mut self, session: &DumpedSession) -> Outcome {
        let above = session.parent.and_then(|parent| self.store.sessions.get(&parent));
        let above = above.map_or(String::new(), |above| above.row.session_id.to_string());
        let now = self.now();
        self.engine.restore_session(TENANT, session.clone(), &above, now)
    }

    /// Begins to restore; how that ended.
    fn begin_restore(&mut self, session: &DumpedSession) -> Result<(), Reason> {
        let ticket = match self.ask_restore(session) {
            Outcome::Ticket(ticket) => ticket,
            Outcome::Refused(refusal) => return Err(refusal.reason),
            Outcome::Reply(_) => panic!("nothing was read"),
        };
        self.settle();
        self.done.remove(&ticket).expect("it has ended").map(|_| ()).map_err(|refusal| refusal.reason)
    }

    /// Restores a session, two records a step, up to and without step `stop`. Whether it is whole.
    fn restore_up_to(&mut self, dump: &Dump, stop: usize) -> Result<bool, Reason> {
        self.restore_with(dump, stop, &[])
    }

    /// As [`Self::restore_up_to`], with its mail, two messages a step.
    fn restore_with(&mut self, dump: &Dump, stop: usize, mail: &[DumpedMail]) -> Result<bool, Reason> {
        let (session, records, trajectories) = dump;
        if stop == 0 {
            return Ok(false);
        }
        self.begin_restore(session)?;
        let id = &*session.session_id;
        let mut places: Vec<(u64, u64)> = vec![(0, 0)];
        for (n, part) in records.chunks(2).enumerate() {
            if n + 1 >= stop {
                return Ok(false);
            }
            let step = RestoreStep { records: part.iter().map(|(_, r)| r.clone()).collect(), ..RestoreStep::default() };
            assert!(self.step(id, CleanupStep::Restore(Box::new(step))));
            let last = self.store.by_id(TENANT, id).expect("it is stored").row.last;
            let first = last + 1 - part.len() as u64;
            places.extend(part.iter().map(|(then, _)| *then).zip(first..));
        }
        for part in mail.chunks(2) {
            let step = RestoreStep { mail: part.to_vec(), ..RestoreStep::default() };
            assert!(self.step(id, CleanupStep::Restore(Box::new(step))));
        }
        if records.len().div_ceil(2) + 1 >= stop {
            return Ok(false);
        }
        let at = |then: u64| places.iter().find(|(t, _)| *t == then).expect("it is there").1;
        let facts = SessionFacts::decode(&session.facts[..]).expect("facts decode");
        let last_by =
            |r: &Receipt| places.iter().rfind(|(then, _)| *then <= r.close_seq as u64).map_or(0, |(_, now)| *now);
        let end = RestoreEnd {
            state_seq: at(facts.state_seq as u64),
            head_seq: at(facts.head_seq as u64),
            trajectory_seq: at(facts.trajectory_seq as u64),
            closed_seqs: facts.past_receipts.iter().map(last_by).collect(),
            dump_bytes: 10,
            ..RestoreEnd::default()
        };
        let here = |t: &DumpedTrajectory| DumpedTrajectory {
            ready_seq: at(t.ready_seq),
            after_seq: at(t.after_seq),
            ..t.clone()
        };
        let trajectories = trajectories.iter().map(here).collect();
        let step = RestoreStep { trajectories, end: Some(end), ..RestoreStep::default() };
        assert!(self.step(id, CleanupStep::Restore(Box::new(step))));
        Ok(true)
    }

    fn restore(&mut self, dump: &Dump) -> Result<bool, Reason> {
        self.restore_up_to(dump, usize::MAX)
    }

    /// What clean-up does with a restore that nobody goes on with.
    fn clear_up(&mut self, id: &str) {
        let row = |world: &World| world.store.by_id(TENANT, id).expect("it is stored").row.last;
        let last = row(self);
        assert!(self.step(id, CleanupStep::Purge { records: vec![], last, acknowledged: false }));
        if last > 0 {
            let session = self.store.by_id(TENANT, id).expect("it is stored");
            let records = self.store.line(session).map(|(seq, _)| seq).collect();
            assert!(self.step(id, CleanupStep::Purge { records, last: 0, acknowledged: false }));
        }
        assert!(self.step(id, CleanupStep::Forget));
    }
}

/// A session with a bit of everything, closed twice: retries, a rewind, rewards, two trajectories, a tail.
fn played(id: &str, parent: &str, world: &mut World) {
    for n in 0..3 {
        world.turn(id, parent);
        let lease = world.begin(id).lease;
        world.abort(id, &lease);
        world.reward(id, if n == 1 { Some(0) } else { None }).expect("it is rewarded");
    }
    let lease = world.begin(id).lease;
    let back = v1::CommitTurnRequest { base_turn: Some(2), state: Some(b"mine".to_vec()), ..commit(id, &lease) };
    world.commit(&back);
    let lease = world.begin(id).lease;
    world.commit(&v1::CommitTurnRequest {
        then: v1::Then::Close as i32,
        request_id: "last".into(),
        ..commit(id, &lease)
    });
}

// I4, I7, I8, I13, I23: a restored session is CLOSED, is what it was, and goes on from there once it is opened again.
#[test]
fn what_is_restored_is_what_was_dumped_and_goes_on() {
    let mut world = World::new(Limits::default());
    played("root", "", &mut world);
    assert_eq!(world.reopen("root"), Ok(1));
    for id in ["a", "b"] {
        played(id, "root", &mut world);
    }
    world.turn("root", "");
    world.close("root");
    let dumps: Vec<Dump> = ["root", "a", "b"].map(|id| world.dump(id)).into();
    let there = ["root", "a", "b"].map(|id| world.get(id));
    // A journal with other sequences; the second one is far ahead of where the dumps come from.
    for turns in [0, 100] {
        let mut other = World::new(Limits::default());
        other.moments = 1_000_000;
        for n in 0..turns {
            other.turn(&format!("else{n}"), "");
        }
        for dump in &dumps {
            assert_eq!(other.restore(dump), Ok(true));
        }
        for (dump, was) in dumps.iter().zip(&there) {
            let id = &*dump.0.session_id;
            let mut is = other.get(id);
            assert!(is.cleanup.take().is_some_and(|c| c.restored_time.is_some() && c.dump_time.is_some()));
            assert_eq!(is, v1::Session { cleanup: None, ..was.clone() });
            assert_eq!(other.state(id), CLOSED);
            let again = other.dump(id);
            assert_eq!(
                again.1.iter().map(|(_, r)| r).collect::<Vec<_>>(),
                dump.1.iter().map(|(_, r)| r).collect::<Vec<_>>()
            );
        }
        other.store.verify_all().expect("I23: chains verify");
        // I21: a repeat that comes in the next life is told of its own close.
        let last = |world: &mut World, id: &str| {
            let request = v1::CloseSessionRequest { session_id: id.into(), ..Default::default() };
            world.call::<v1::CloseSessionResponse>(Method::CloseSession, &request).expect("it ended").receipt
        };
        assert_eq!(last(&mut other, "a"), there[1].receipt.clone());
        assert_eq!(other.reopen("a"), Err(Reason::SessionClosed), "its parent has ended");
        assert_eq!(other.reopen("root"), Ok(1), "its children were closed by themselves");
        assert_eq!(other.reopen("a"), Ok(1));
        for id in ["root", "a"] {
            other.turn(id, "");
            other.unload();
            other.turn(id, "");
        }
        other.store.verify_all().expect("I23: chains verify");
        let receipt = other.close("root");
        assert_eq!((receipt.close_number, receipt.children_closed), (3, 1));
    }
}

// I13: a known session and a known id are refused, whether it is open or has ended; and nothing is changed by that (I22).
#[test]
fn what_is_known_is_not_restored() {
    let mut world = World::new(Limits::default());
    played("s", "", &mut world);
    let dump = world.dump("s");
    assert_eq!(world.restore(&dump), Err(Reason::SessionExists), "it has ended");
    assert_eq!(world.reopen("s"), Ok(1));
    assert_eq!(world.restore(&dump), Err(Reason::SessionExists), "it is open");
    let mut other = World::new(Limits::default());
    let waiting =
        other.start(Method::OpenSession, &v1::OpenSessionRequest { session_id: "s".into(), ..Default::default() });
    assert_eq!(other.restore(&dump), Err(Reason::SessionExists), "another of its id is being opened");
    let opened: Result<v1::OpenSessionResponse, _> = other.answer(waiting);
    assert!(opened.is_ok_and(|o| o.created));
}

// What of a dump's session the store's rules would not let in is refused before it is journaled: a dump is not trusted.
#[test]
fn a_session_that_cannot_be_is_refused() {
    let mut world = World::new(Limits::default());
    played("s", "", &mut world);
    let (session, records, _) = world.dump("s");
    let mut other = World::new(Limits::default());
    let cases: [fn(&mut DumpedSession); 8] = [
        |s| s.session_id = "a/b".into(),
        |s| s.depth = 1,
        |s| s.parent = Some(s.uid),
        |s| s.path = "/root/x".into(),
        |s| s.path = "/other".into(),
        |s| s.fence = u64::MAX,
        |s| s.receipt = vec![],
        |s| s.facts = vec![0xFF],
    ];
    for (n, change) in cases.iter().enumerate() {
        let mut changed = session.clone();
        change(&mut changed);
        assert_eq!(other.begin_restore(&changed), Err(Reason::DumpDamaged), "case {n}");
    }
    assert_eq!(other.engine.backlog(), 0);
    other.begin_restore(&session).expect("this one can be");
    let mut record = records[0].1.clone();
    record.chain.pop();
    let mut steps = vec![RestoreStep { records: vec![record], ..RestoreStep::default() }];
    let broken: [fn(&mut DumpedMail); 5] =
        [|m| m.kind = 0, |m| m.kind = 5, |m| m.expire = -1, |m| m.fence = u64::MAX, |m| m.meta = vec![0xFF]];
    for change in broken {
        let mut letter = letter_of(1);
        change(&mut letter);
        steps.push(RestoreStep { mail: vec![letter_of(2), letter], ..RestoreStep::default() });
    }
    for (n, step) in steps.into_iter().enumerate() {
        let (uid, seq) = (session.uid, other.store.by_id(TENANT, "s").expect("it is stored").row.seq);
        let now = other.now();
        let Outcome::Ticket(ticket) =
            other.engine.cleanup_step(TENANT, "s", (uid, uid), seq, CleanupStep::Restore(Box::new(step)), now)
        else {
            panic!("it reads first")
        };
        other.settle();
        let told = other.done.remove(&ticket).expect("it has ended").map_err(|refusal| refusal.reason);
        assert_eq!(told, Err(Reason::DumpDamaged), "step {n}");
    }
    assert!(other.store.mail.is_empty());
}

/// A message of a dump.
fn letter_of(n: u8) -> DumpedMail {
    let request = RequestMark { request_id: format!("r{n}"), hash: vec![n] };
    let meta = MessageMeta { request: Some(request), trigger: true, ..MessageMeta::default() };
    DumpedMail {
        id: Uid(u128::from(n)),
        sender: (n > 1).then_some(Uid(77)),
        kind: v1::MessageKind::Message as i32,
        expire: i64::from(n),
        deliveries: 3,
        fence: 9,
        create_ms: 5,
        meta: meta.encode_to_vec(),
        content: Some(vec![n]),
    }
}

// I15, I21: mail that had ended with its session comes back as that, delivers nothing when the session is reopened, and is
// told from a repeat as before.
#[test]
fn mail_that_ended_with_a_session_comes_back_ended() {
    let mut world = World::new(Limits::default());
    played("s", "", &mut world);
    let (session, records, trajectories) = world.dump("s");
    let mut other = World::new(Limits::default());
    let whole = (session.clone(), records.clone(), trajectories);
    let mail = [letter_of(1), letter_of(2), letter_of(3)];
    assert_eq!(other.restore_with(&whole, records.len().div_ceil(2) + 1, &mail), Ok(false));
    let last = other.store.by_id(TENANT, "s").expect("it is stored").row.last;
    assert!(other.store.records.contains_key(&last), "mail is no record");
    let there: Vec<_> = other.store.mail.values().cloned().collect();
    assert!(there.is_sorted_by(|a, b| a.row.seq < b.row.seq) && there.len() == 3);
    for (n, letter) in (1..).zip(&there) {
        let (row, now) = (&letter.row, letter.now);
        assert_eq!((now.state, now.due, now.deliveries, now.fence), (v1::MessageState::Closed as i32, -1, 3, 9));
        let of = (row.recipient, row.root, &*row.tenant, row.sender, row.expire, row.create_ms);
        assert_eq!(of, (session.uid, session.root, TENANT, letter_of(n).sender, i64::from(n), 5));
        assert_eq!((row.id, &row.meta, &row.content), (Uid(u128::from(n)), &letter_of(n).meta, &Some(vec![n])));
    }
    let host = there[0].row.request.clone().expect("it bears one");
    assert_eq!(host, "/r1");
    assert_eq!(there[1].row.request, Some(format!("{}/r2", Uid(77))));
    other.clear_up("s");
    assert!(other.store.mail.is_empty(), "it goes with what it was restored with");
    assert_eq!(other.restore_with(&whole, usize::MAX, &mail), Ok(true));
    assert_eq!(other.reopen("s"), Ok(1));
    assert!(other.begin("s").mail.is_empty());
    let again = v1::SendMessageRequest {
        session_id: "s".into(),
        request_id: "r1".into(),
        message: Some(v1::MessageInput { content: b"other".to_vec(), ..v1::MessageInput::default() }),
        ..v1::SendMessageRequest::default()
    };
    let told = other.call::<v1::SendMessageResponse>(Method::SendMessage, &again);
    assert_eq!(told, Err(Reason::RequestMismatch));
    let fresh = v1::SendMessageRequest { request_id: "r9".into(), ..again };
    assert!(other.call::<v1::SendMessageResponse>(Method::SendMessage, &fresh).is_ok_and(|sent| !sent.repeated));
}

// Nobody sees half of a session, whatever step it broke off at; what is left is deleted, and it can be restored again.
#[test]
fn half_a_session_is_nobodys() {
    let mut world = World::new(Limits::default());
    played("s", "", &mut world);
    let dump = world.dump("s");
    let steps = dump.1.len().div_ceil(2) + 2;
    let mut other = World::new(Limits::default());
    for stop in 1..steps {
        assert_eq!(other.restore_up_to(&dump, stop), Ok(false));
        for lives in [false, true] {
            if lives {
                other.unload();
            }
            let id = v1::GetSessionRequest { session_id: "s".into() };
            assert_eq!(other.call::<v1::GetSessionResponse>(Method::GetSession, &id), Err(Reason::SessionRestoring));
            let closing = other.call::<v1::CloseSessionResponse>(Method::CloseSession, &close("s"));
            assert_eq!(closing, Err(Reason::SessionRestoring));
            assert_eq!(other.reopen("s"), Err(Reason::SessionRestoring));
            let begun = other.call::<v1::BeginTurnResponse>(Method::BeginTurn, &begin("s", ""));
            assert_eq!(begun, Err(Reason::SessionClosed));
            assert_eq!(other.begin_restore(&dump.0), Err(Reason::SessionExists));
        }
        // It is no session that is dumped, kept or forgotten either.
        assert!(!other.step("s", dumped()) && !other.step("s", CleanupStep::Keep));
        assert!(!other.step("s", CleanupStep::Forget));
        other.clear_up("s");
        assert!(other.store.by_id(TENANT, "s").is_none() && other.store.records.is_empty());
    }
    assert_eq!(other.restore(&dump), Ok(true));
    assert_eq!(other.state("s"), CLOSED);
    let last = other.store.by_id(TENANT, "s").expect("it is stored").row.last;
    let step = RestoreStep { end: Some(RestoreEnd::default()), ..RestoreStep::default() };
    assert!(!other.step("s", CleanupStep::Restore(Box::new(step))), "once");
    // A dump that was verified is leave to purge (I14).
    assert!(other.step("s", CleanupStep::Purge { records: vec![], last, acknowledged: false }));
}

/// A root that is a tombstone, and the dump of a session that was below it.
fn tombstone() -> (World, Dump) {
    let mut world = World::new(Limits { purge_without_dump: 1, ..Limits::default() });
    world.turn("root", "");
    let root = world.dump_of_ended("root");
    let mut other = World::new(Limits::default());
    other.moments = 1_000_000;
    assert_eq!(other.restore(&root), Ok(true));
    assert_eq!(other.reopen("root"), Ok(1));
    other.turn("child", "root");
    let child = other.dump_of_ended("child");
    let records = root.1.iter().map(|(seq, _)| *seq).collect();
    assert!(world.step("root", CleanupStep::Purge { records, last: 0, acknowledged: false }));
    (world, child)
}

// A child is restored below a tombstone, which then stays as long as the child does: whoever has decided by the tombstone
// alone that it goes has to look again.
#[test]
fn a_tombstone_that_gets_a_child_is_not_forgotten_as_it_was() {
    let root = |world: &World| world.store.by_id(TENANT, "root").map(|session| (session.row.uid, session.row.seq));
    let (mut world, child) = tombstone();
    let (uid, decided) = root(&world).expect("it is stored");
    let now = world.now();
    let forget = world.engine.cleanup_step(TENANT, "root", (uid, uid), decided, CleanupStep::Forget, now);
    let (Outcome::Ticket(forget), Outcome::Ticket(restore)) = (forget, world.ask_restore(&child.0)) else {
        panic!("both read first")
    };
    world.settle();
    assert!(world.done.remove(&forget).is_some_and(|told| told.is_ok()));
    let told = world.done.remove(&restore).expect("it has ended").map_err(|refusal| refusal.reason);
    assert_eq!((told, root(&world)), (Err(Reason::ParentNotFound), None));

    let (mut world, child) = tombstone();
    let (uid, decided) = root(&world).expect("it is stored");
    assert_eq!(world.restore(&child), Ok(true));
    assert!(!world.step_by("root", uid, decided, CleanupStep::Forget));
    assert_eq!(world.state("child"), CLOSED);
    assert_eq!(world.reopen("child"), Err(Reason::SessionClosed));
    assert!(world.step("root", CleanupStep::Later));
}

// A child goes below the session that its parent was, and no other: not one that took its id, nor half of one.
#[test]
fn a_child_is_restored_below_its_own_parent_alone() {
    let (mut other, child) = tombstone();
    assert!(other.step("root", CleanupStep::Forget));
    let ask = |world: &mut World, above: &str| {
        let now = world.now();
        let Outcome::Ticket(ticket) = world.engine.restore_session(TENANT, child.0.clone(), above, now) else {
            panic!("it reads first")
        };
        world.settle();
        world.done.remove(&ticket).expect("it has ended").map(|_| ()).map_err(|refusal| refusal.reason)
    };
    assert_eq!(ask(&mut other, "root"), Err(Reason::ParentNotFound));
    other.turn("root", "");
    assert_eq!(ask(&mut other, "root"), Err(Reason::ParentNotFound), "another has its id");
    assert_eq!(ask(&mut other, ""), Err(Reason::ParentNotFound));
}

// A batch that the store refuses takes a restore's step with it; its id is free, or its row as it was.
#[test]
fn a_step_of_a_restore_that_is_not_stored_did_not_happen() {
    let mut world = World::new(Limits::default());
    played("s", "", &mut world);
    let dump = world.dump("s");
    let mut other = World::new(Limits::default());
    let Outcome::Ticket(ticket) = other.ask_restore(&dump.0) else { panic!("it reads first") };
    while other.read() {}
    assert!(other.append(false));
    other.settle();
    let told = other.done.remove(&ticket).expect("it has ended").map_err(|refusal| refusal.reason);
    assert!(matches!(told, Err(Reason::NotStored | Reason::Recovering)), "{told:?}");
    assert!(other.store.by_id(TENANT, "s").is_none());
    assert_eq!(other.restore(&dump), Ok(true));
    // The tree that a child would have come below is as it was.
    world.reopen("s").expect("it comes back");
    world.turn("child", "s");
    world.close("child");
    let child = world.dump("child");
    other.reopen("s").expect("it comes back");
    let lease = other.begin("s").lease;
    let Outcome::Ticket(ticket) = other.ask_restore(&child.0) else { panic!("it reads first") };
    while other.read() {}
    assert!(other.append(false));
    other.settle();
    assert!(other.done.remove(&ticket).is_some_and(|told| told.is_err()));
    other.commit(&commit("s", &lease));
    assert_eq!(other.restore(&child), Ok(true));
    assert_eq!(other.reopen("child"), Ok(1));
    other.turn("child", "s");
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
    world.opened("root", "", "", None).expect("it opens");
    world.opened("a", "root", "scout", None).expect("it opens");
    world.opened("b", "a", "", None).expect("it opens");
    world.close("a");
    world.opened("c", "root", "scout", None).expect("the name is free");
    assert_eq!(world.reopen("a"), Err(Reason::TreeSessions));
    world.opened("d", "root", "", None).expect("there is room");
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
        let (uid, seq, last) = ((session.row.uid, session.row.root), session.row.seq, session.row.last);
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
            // Looked up, its tree found, its claim made.
            assert!(world.read() && world.read());
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

// A reopen changes all of a family: no step of any of them comes in between, in whichever order they meet.
#[test]
fn a_step_of_a_child_and_a_reopen_of_its_parent_have_one_order() {
    for step_first in [true, false] {
        let mut world = family();
        world.close("root");
        let row = |world: &World, id: &str| {
            let session = world.store.by_id(TENANT, id).expect("it is stored");
            ((session.row.uid, session.row.root), session.row.seq)
        };
        let (names, seq) = row(&world, "b");
        let step = |world: &mut World| {
            let now = world.now();
            match world.engine.cleanup_step(TENANT, "b", names, seq, CleanupStep::Keep, now) {
                roost_core::engine::Outcome::Ticket(ticket) => ticket,
                ended => panic!("{ended:?}"),
            }
        };
        let (kept, opened) = if step_first {
            let kept = step(&mut world);
            // Decided, and not stored.
            while world.read() {}
            (kept, world.start(Method::ReopenSession, &reopen("root", "")))
        } else {
            let opened = world.start(Method::ReopenSession, &reopen("root", ""));
            while world.read() {}
            (step(&mut world), opened)
        };
        while world.read() {}
        world.settle();
        let kept = world.done.remove(&kept).expect("it has ended").expect("it is not refused");
        let opened: v1::ReopenSessionResponse = world.answer(opened).expect("it is whole");
        assert_eq!((&kept[..], opened.reopened), (if step_first { &b"done"[..] } else { b"changed" }, 4));
        world.turn("b", "");
    }
}

// Two reopens at once, of a session and of what came back with it: both see it open.
#[test]
fn reopens_that_overlap_agree() {
    let mut world = family();
    world.close("root");
    let whole = world.start(Method::ReopenSession, &reopen("root", ""));
    let part = world.start(Method::ReopenSession, &reopen("a", ""));
    world.settle();
    let whole: v1::ReopenSessionResponse = world.answer(whole).expect("it opens");
    let part: Result<v1::ReopenSessionResponse, _> = world.answer(part);
    assert_eq!(whole.reopened, 4);
    // It may have been first, when its parent was closed.
    assert!(matches!(part.map(|p| p.reopened), Ok(0) | Err(Reason::SessionClosed)));
    assert_eq!(["root", "a", "b", "c"].map(|id| world.state(id)), [OPEN; 4]);
}

// A tombstone above that is over is no reason to look for ever.
#[test]
fn who_has_lost_its_place_does_not_come_back() {
    let mut world = World::new(Limits { purge_without_dump: 1, ..Limits::default() });
    for (id, parent) in [("root", ""), ("middle", "root"), ("leaf", "middle")] {
        world.opened(id, parent, "", None).expect("it opens");
    }
    world.turn("leaf", "");
    world.close("root");
    assert!(world.step("middle", CleanupStep::Purge { records: vec![], last: 0, acknowledged: true }));
    assert_eq!(world.reopen("root"), Err(Reason::SessionPurged));
    assert!(world.step("middle", CleanupStep::Later), "there is something below it");
    assert!(world.step("middle", CleanupStep::Forget));
    assert_eq!(world.reopen("root"), Err(Reason::SessionPurged));
    assert_eq!(world.reopen("leaf"), Err(Reason::SessionClosed));
    world.turn("another", "");
}

// I6: a refusal tells of a sibling, so it waits until that is durable.
#[test]
fn a_refused_reopen_tells_only_what_is_durable() {
    let mut world = family();
    world.opened("first", "root", "scout", None).expect("it opens");
    world.close("first");
    let options = v1::OpenOptions { parent_session_id: "root".into(), name: "scout".into(), ..Default::default() };
    let request = v1::OpenSessionRequest { session_id: "second".into(), options: Some(options), ..Default::default() };
    world.start(Method::OpenSession, &request);
    while world.read() {}
    let refused = world.start(Method::ReopenSession, &reopen("first", ""));
    while world.read() {}
    assert!(world.engine.completed().is_empty(), "nothing of it is stored yet");
    world.settle();
    assert_eq!(world.answer::<v1::ReopenSessionResponse>(refused).err(), Some(Reason::PathCollision));
}

// I21: repeats from before the last close, too.
#[test]
fn repeats_of_earlier_lives_change_nothing() {
    let mut world = family();
    for n in 1..=3 {
        let closed: v1::CloseSessionResponse =
            world.call(Method::CloseSession, &closing("c", &format!("c{n}"))).expect("it closes");
        assert_eq!(closed.receipt.map(|r| r.close_number), Some(n));
        let told: v1::ReopenSessionResponse =
            world.call(Method::ReopenSession, &reopen("c", &format!("r{n}"))).expect("it opens");
        assert_eq!(told.reopened, 1);
    }
    let late: v1::CloseSessionResponse = world.call(Method::CloseSession, &closing("c", "c1")).expect("a repeat");
    assert_eq!((late.receipt.map(|r| r.close_number), world.state("c")), (Some(1), OPEN));
    world.close("c");
    let late: v1::CloseSessionResponse = world.call(Method::CloseSession, &closing("c", "c2")).expect("a repeat");
    assert_eq!(late.receipt.map(|r| r.close_number), Some(2));
    for n in 1..=3 {
        let told: v1::ReopenSessionResponse =
            world.call(Method::ReopenSession, &reopen("c", &format!("r{n}"))).expect("a repeat");
        assert_eq!((told.reopened, world.state("c")), (0, CLOSED));
    }
}

#[test]
fn a_sweep_that_is_asked_for_comes_though_none_comes_by_itself() {
    let mut world = World::new(Limits { sweep_interval_ms: 0, ..Limits::default() });
    world.opened("s", "", "", Some(60)).expect("it opens");
    world.pass(2 * MINUTE);
    world.pass(2 * MINUTE);
    assert_eq!(world.state("s"), OPEN);
    world.engine.sweep_now();
    world.pass(1_000);
    assert_eq!(world.state("s"), CLOSED);
}

// Roots of before the sweep say in their facts when they are stale; what is found there stays found.
#[test]
fn a_root_of_an_earlier_version_grows_stale() {
    let mut world = World::new(Limits::default());
    world.opened("s", "", "", Some(600)).expect("it opens");
    let uid = world.store.by_id(TENANT, "s").expect("it is stored").row.uid;
    let session = world.store.sessions.get_mut(&uid).expect("it is stored");
    (session.row.stale_ms, session.stale_due, session.row.active_ms) = (-1, 1, 0);
    world.unload();
    for _ in 0..4 {
        world.pass(2 * MINUTE);
        world.unload();
    }
    assert_eq!(world.state("s"), OPEN);
    world.pass(5 * MINUTE);
    world.pass(MINUTE);
    assert_eq!(world.state("s"), CLOSED);
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
    world.opened("root", "", "", Some(600)).expect("it opens");
    world.opened("child", "root", "", None).expect("it opens");
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
    world.opened("root", "", "", Some(600)).expect("it opens");
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
        world.opened(id, "", "", None).expect("it opens");
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
    world.opened("s", "", "", Some(60)).expect("it opens");
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
