//! A disk that is late: from some age of the oldest entry on, new work is refused and waits are not ended, while what
//! runs goes on (I2, I22).

use crate::sim::scene::{TENANT, World, begin, close, commit};
use roost_core::engine::Method;
use roost_core::error::Reason;
use roost_core::limits::Limits;
use roost_core::proto::v1;

fn world(max_journal_lag_ms: u64) -> World {
    World::new(Limits { max_journal_lag_ms, max_turns_per_tenant: 2, ..Limits::default() })
}

impl World {
    /// A SetReward whose entry stays in the journal, and so much time.
    fn late_by(&mut self, id: &str, ms: u64) {
        let request = v1::SetRewardRequest { session_id: id.into(), reward: 1.0, ..Default::default() };
        self.start(Method::SetReward, &request);
        self.ahead += ms;
    }
}

fn open(id: &str) -> v1::OpenSessionRequest {
    v1::OpenSessionRequest { session_id: id.into(), ..Default::default() }
}

fn letter(id: &str) -> v1::SendMessageRequest {
    let message = Some(v1::MessageInput { content: b"x".to_vec(), ..Default::default() });
    v1::SendMessageRequest { session_id: id.into(), message, ..Default::default() }
}

#[test]
fn new_work_is_refused_while_the_oldest_entry_is_too_old_and_what_runs_goes_on() {
    let mut world = world(1_000);
    world.turn("s", "");
    let running = world.begin("t");
    world.late_by("s", 2_000);
    for refusal in [
        world.refused_at_once(Method::OpenSession, &open("new")),
        world.refused_at_once(Method::BeginTurn, &begin("s", "")),
        world.refused_at_once(Method::SendMessage, &letter("s")),
    ] {
        let refusal = refusal.expect("it is new work");
        assert_eq!((refusal.reason, refusal.retry_ms), (Reason::JournalBehind, Some(1_000)));
        assert_eq!(refusal.metadata["limit_ms"], "1000");
        assert!(refusal.metadata["lag_ms"].parse::<u64>().expect("a number") >= 2_000);
        assert!(refusal.message.contains(&refusal.metadata["lag_ms"]));
    }
    let commit_t = world.start(Method::CommitTurn, &commit("t", &running.lease));
    let close_s = world.start(Method::CloseSession, &close("s"));
    world.settle();
    world.answer::<v1::CommitTurnResponse>(commit_t).expect("it commits");
    world.answer::<v1::CloseSessionResponse>(close_s).expect("it closes");
    assert!(world.store.by_id(TENANT, "new").is_none());
    world.begin("new");
}

#[test]
fn an_entry_as_old_as_the_limit_holds_nothing_off_and_without_a_limit_none_does() {
    for (limit, ms) in [(1_000, 900), (0, 3_600_000)] {
        let mut world = world(limit);
        world.turn("s", "");
        world.late_by("s", ms);
        assert!(world.refused_at_once(Method::OpenSession, &open("new")).is_none());
    }
}

#[test]
fn who_waits_is_served_once_the_disk_has_caught_up() {
    let mut world = world(1_000);
    world.turn("s", "");
    let (first, _second) = (world.begin("a"), world.begin("b"));
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let waiting = world.waits(&v1::BeginTurnRequest { wait, ..begin("c", "") });
    world.late_by("s", 2_000);
    // The slot that this frees is given to nobody as long as the disk is late.
    let ended = world.start(Method::CommitTurn, &commit("a", &first.lease));
    let now = world.now();
    world.engine.tick(now);
    assert_eq!(world.stat("waiting"), 1);
    world.settle();
    world.answer::<v1::CommitTurnResponse>(ended).expect("it commits");
    world.pass(1);
    let begun: v1::BeginTurnResponse = world.answer(waiting).expect("it is granted");
    assert!(begun.grant.is_some());
}
