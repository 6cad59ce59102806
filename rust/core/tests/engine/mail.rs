//! Mail, outcomes and polling, against the engine and a store in memory: the cases that the systems before this one are
//! known by, each with its right answer. Guards I1, I2, I5, I9, I11, I15, I18, I21.

use crate::sim::scene::{TENANT, World, begin, close, commit, go_on, interrupt};
use prost::Message as _;
use roost_core::engine::{Caller, Method, Outcome};
use roost_core::error::{Code, Reason};
use roost_core::limits::Limits;
use roost_core::proto::v1::{self, MessageKind, MessageState};

fn letter(content: &str, trigger: bool) -> v1::MessageInput {
    v1::MessageInput { content: content.into(), trigger, ..v1::MessageInput::default() }
}

fn send(id: &str, content: &str, trigger: bool) -> v1::SendMessageRequest {
    let message = Some(letter(content, trigger));
    v1::SendMessageRequest { session_id: id.into(), message, ..v1::SendMessageRequest::default() }
}

fn poll(wait_s: i64) -> v1::PollTurnRequest {
    let wait = Some(prost_types::Duration { seconds: wait_s, nanos: 0 });
    v1::PollTurnRequest { owner: "host".into(), wait, ..v1::PollTurnRequest::default() }
}

fn wait_mail(id: &str, wait_s: i64, after: u64) -> v1::WaitMailRequest {
    let wait = Some(prost_types::Duration { seconds: wait_s, nanos: 0 });
    v1::WaitMailRequest { session_id: id.into(), wait, after }
}

fn texts(grant: &v1::Grant) -> Vec<String> {
    grant.mail.iter().map(|m| String::from_utf8(m.content.clone()).expect("it is text")).collect()
}

trait Post {
    fn spawn(&mut self, id: &str, parent: &str, wakes: bool, first: Option<v1::MessageInput>);
    fn send(&mut self, id: &str, content: &str, trigger: bool) -> String;
    fn poll(&mut self) -> u64;
    fn polled(&mut self, ticket: u64) -> Option<v1::PollTurnResponse>;
    fn states(&self, id: &str) -> Vec<(String, MessageState)>;
    fn told(&self, id: &str) -> Vec<MessageKind>;
}

impl Post for World {
    fn spawn(&mut self, id: &str, parent: &str, wakes: bool, first: Option<v1::MessageInput>) {
        let options = v1::OpenOptions {
            parent_session_id: parent.into(),
            wake_on_completion: wakes,
            ..v1::OpenOptions::default()
        };
        let request = v1::OpenSessionRequest {
            session_id: id.into(),
            options: Some(options),
            first_message: first,
            ..v1::OpenSessionRequest::default()
        };
        self.call::<v1::OpenSessionResponse>(Method::OpenSession, &request).expect("it opens");
    }

    fn send(&mut self, id: &str, content: &str, trigger: bool) -> String {
        let sent: v1::SendMessageResponse =
            self.call(Method::SendMessage, &send(id, content, trigger)).expect("it is sent");
        sent.message_id
    }

    /// A PollTurn that waits.
    fn poll(&mut self) -> u64 {
        let ticket = self.start(Method::PollTurn, &poll(60));
        self.settle();
        ticket
    }

    fn polled(&mut self, ticket: u64) -> Option<v1::PollTurnResponse> {
        self.settle();
        self.done.contains_key(&ticket).then(|| self.answer(ticket).expect("it is not refused"))
    }

    fn states(&self, id: &str) -> Vec<(String, MessageState)> {
        let uid = self.store.by_id(TENANT, id).expect("it is stored").row.uid;
        let of = self.store.mail.values().filter(|l| l.row.recipient == uid);
        let text =
            |l: &crate::sim::store::mailroom::Letter| String::from_utf8(l.row.content.clone().unwrap_or_default());
        of.map(|l| (text(l).expect("it is text"), MessageState::try_from(l.now.state).expect("a state"))).collect()
    }

    /// What its children's ends have told a session.
    fn told(&self, id: &str) -> Vec<MessageKind> {
        let uid = self.store.by_id(TENANT, id).expect("it is stored").row.uid;
        let kinds = self.store.mail.values().filter(|l| l.row.recipient == uid).map(|l| l.row.kind);
        let kinds = kinds.map(|kind| MessageKind::try_from(kind).expect("a kind"));
        kinds.filter(|kind| *kind != MessageKind::Message).collect()
    }
}

fn small(max_resident_sessions: u64) -> Limits {
    Limits { max_resident_sessions, ..Limits::default() }
}

#[test]
fn mail_is_handed_out_in_order_and_consumed_by_the_commit_i15() {
    for limits in [Limits::default(), small(1)] {
        let mut world = World::new(limits);
        world.spawn("s", "", false, None);
        world.spawn("other", "", false, None);
        for text in ["one", "two", "three"] {
            world.send("s", text, false);
        }
        world.turn("other", "");
        let grant = world.begin("s");
        assert_eq!(texts(&grant), ["one", "two", "three"]);
        assert!(grant.mail.iter().all(|m| m.deliveries == 1 && m.state() == MessageState::Delivered));
        world.send("s", "four", false);
        world.commit(&commit("s", &grant.lease));
        let states: Vec<_> = world.states("s").into_iter().map(|s| s.1).collect();
        use MessageState::{Consumed, Queued};
        assert_eq!(states, [Consumed, Consumed, Consumed, Queued]);
        assert_eq!(texts(&world.begin("s")), ["four"]);
    }
}

/// "Mail sent to a running agent is in its next model request, with the slot never seen free in between."
#[test]
fn what_is_sent_to_a_running_session_is_in_the_turn_that_it_continues_with() {
    let mut world = World::new(Limits { max_turns_per_tenant: 1, ..Limits::default() });
    world.spawn("s", "", false, None);
    let grant = world.begin("s");
    world.send("s", "hello", false);
    // Somebody waits for the one slot, and would take it if it were ever free.
    world.spawn("t", "", false, None);
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let waits = world.start(Method::BeginTurn, &v1::BeginTurnRequest { wait, ..begin("t", "") });
    world.settle();
    let next = world.commit(&go_on("s", &grant.lease)).next.expect("it goes on");
    assert_eq!((texts(&next), next.turn, next.more_mail), (vec!["hello".to_owned()], 2, 0));
    world.settle();
    assert!(!world.done.contains_key(&waits));
    // Its repeat brings it again.
    let again = world.commit(&go_on("s", &grant.lease));
    assert!(again.repeated);
    assert_eq!(texts(&again.next.expect("its turn runs")), ["hello"]);
}

#[test]
fn a_message_that_kills_its_host_five_times_ends_dead_i15() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    world.send("s", "poison", true);
    world.send("s", "fine", false);
    for attempt in 1..=5 {
        let ticket = world.poll();
        // 1, 2, 4, 8 s: it is not handed out before.
        for _ in 0..20 {
            world.pass(1_000);
        }
        let polled = world.polled(ticket).unwrap_or_else(|| panic!("attempt {attempt}: nothing was handed out"));
        let grant = polled.grant.expect("a session became runnable");
        assert_eq!(texts(&grant), ["poison", "fine"]);
        assert!(grant.mail.iter().all(|m| m.deliveries == attempt));
        // The host is gone: the lease runs out.
        world.pass(61_000);
    }
    let dead: Vec<_> = world.states("s");
    assert_eq!(dead, [("poison".into(), MessageState::Dead), ("fine".into(), MessageState::Dead)]);
    assert_eq!(texts(&world.begin("s")), [""; 0]);
}

#[test]
fn what_an_abort_puts_back_pauses_before_it_is_handed_out_again() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    world.send("s", "do it", true);
    let first = world.poll();
    let grant = world.polled(first).and_then(|p| p.grant).expect("it is runnable");
    world.abort("s", &grant.lease);
    let second = world.poll();
    world.pass(500);
    assert!(world.polled(second).is_none(), "it was handed out at once");
    world.pass(600);
    assert_eq!(texts(&world.polled(second).and_then(|p| p.grant).expect("its pause is over")), ["do it"]);
}

/// Two completed turns give exactly two notices; an interrupted one gives none, and its own mail does not start it again.
#[test]
fn completions_are_told_once_each_and_interrupts_not_at_all_i18() {
    let mut world = World::new(Limits::default());
    world.spawn("root", "", false, None);
    world.spawn("child", "root", false, None);
    for turn in 1..=2 {
        let lease = world.begin("child").lease;
        let completion = Some(letter(&format!("result {turn}"), false));
        let request = v1::CommitTurnRequest { completion, ..commit("child", &lease) };
        world.commit(&request);
        assert!(world.commit(&request).repeated);
    }
    let grant = world.begin("root");
    assert_eq!(texts(&grant), ["result 1", "result 2"]);
    let told: Vec<_> = grant.mail.iter().map(|m| (m.kind(), m.turn, &*m.sender_session_id, &*m.sender_path)).collect();
    let completed = MessageKind::Completed;
    assert_eq!(told, [(completed, 1, "child", "/root/child"), (completed, 2, "child", "/root/child")]);
    world.commit(&commit("root", &grant.lease));

    world.send("child", "work", true);
    let first = world.poll();
    let grant = world.polled(first).and_then(|p| p.grant).expect("it is runnable");
    world.send("child", "more work", true);
    let asked: v1::InterruptSessionResponse =
        world.call(Method::InterruptSession, &interrupt("child", "", false)).expect("it is open");
    assert_eq!(asked.previous_activity(), v1::Activity::Running);
    world.abort("child", &grant.lease);
    assert_eq!(world.get("child").last_outcome(), v1::TurnOutcome::Interrupted);
    let second = world.poll();
    for _ in 0..61 {
        world.pass(1_000);
    }
    assert_eq!(world.polled(second).expect("its wait is over").session_id, "", "its own mail restarted it");
    assert_eq!(world.told("root"), [completed, completed]);
    // A new message does.
    world.send("child", "again", true);
    let third = world.poll();
    let grant = world.polled(third).and_then(|p| p.grant).expect("it is runnable again");
    assert_eq!(texts(&grant), ["work", "more work", "again"]);
}

#[test]
fn a_failed_child_tells_its_parent_and_a_closed_one_that_has_told_nothing() {
    use MessageKind::{Closed, Completed, Failed};
    let mut world = World::new(small(1));
    world.spawn("root", "", false, None);
    for id in ["fails", "quits", "completes", "interrupted"] {
        world.spawn(id, "root", false, None);
    }
    world.spawn("below", "quits", false, None);
    let lease = world.begin("fails").lease;
    let give_up =
        v1::AbortTurnRequest { session_id: "fails".into(), lease, r#final: true, ..v1::AbortTurnRequest::default() };
    world.call::<v1::AbortTurnResponse>(Method::AbortTurn, &give_up).expect("it aborts");
    assert_eq!(world.told("root"), [Failed]);
    // An interrupt is silent, also where the client gives up on it.
    let lease = world.begin("interrupted").lease;
    let _: v1::InterruptSessionResponse =
        world.call(Method::InterruptSession, &interrupt("interrupted", "", false)).expect("it is open");
    let give_up = v1::AbortTurnRequest { session_id: "interrupted".into(), lease, ..give_up };
    world.call::<v1::AbortTurnResponse>(Method::AbortTurn, &give_up).expect("it aborts");
    assert_eq!(world.told("root"), [Failed]);
    // It takes its child with it, which tells nobody.
    world.close("quits");
    assert_eq!(world.told("root"), [Failed, Closed]);
    let lease = world.begin("completes").lease;
    let last = v1::CommitTurnRequest { completed: true, then: v1::Then::Close as i32, ..commit("completes", &lease) };
    world.commit(&last);
    world.close("fails");
    assert_eq!(world.told("root"), [Failed, Closed, Completed]);
    let told = world.begin("root").mail;
    assert_eq!(told[1].close_reason(), v1::CloseReason::Quit);
    assert_eq!(world.close("root").unread_messages, 3);
    assert!(world.states("root").iter().all(|s| s.1 == MessageState::Closed));
}

/// Trigger mail to an idle target while the cap is full waits, and starts when a slot is freed; who called BeginTurn goes
/// first.
#[test]
fn a_triggered_session_starts_when_the_cap_has_room_i2() {
    let mut world = World::new(Limits { max_turns_per_tenant: 1, ..Limits::default() });
    world.store.tenant_cap = 1;
    for id in ["busy", "target", "caller"] {
        world.spawn(id, "", false, None);
    }
    let busy = world.begin("busy").lease;
    let ticket = world.poll();
    world.send("target", "go", true);
    let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
    let caller = world.start(Method::BeginTurn, &v1::BeginTurnRequest { wait, ..begin("caller", "") });
    world.settle();
    assert!(world.polled(ticket).is_none() && !world.done.contains_key(&caller));
    world.commit(&commit("busy", &busy));
    let begun: v1::BeginTurnResponse = world.answer(caller).expect("it has the slot");
    assert!(world.polled(ticket).is_none());
    world.commit(&commit("caller", &begun.grant.expect("it was granted").lease));
    let polled = world.polled(ticket).expect("the slot is free");
    assert_eq!((&*polled.session_id, texts(&polled.grant.expect("a grant"))), ("target", vec!["go".to_owned()]));
}

#[test]
fn a_parent_that_wants_it_is_woken_by_its_childs_completion_though_it_is_unloaded() {
    let mut world = World::new(Limits::default());
    world.spawn("root", "", true, None);
    world.spawn("child", "root", false, None);
    world.restart();
    let lease = world.begin("child").lease;
    world.commit(&v1::CommitTurnRequest { completion: Some(letter("done", false)), ..commit("child", &lease) });
    world.restart();
    let ticket = world.poll();
    let polled = world.polled(ticket).expect("it is runnable");
    assert_eq!((&*polled.session_id, texts(&polled.grant.expect("a grant"))), ("root", vec!["done".to_owned()]));
}

#[test]
fn a_first_message_comes_with_its_session_or_not_at_all() {
    let mut world = World::new(Limits { max_batch_entries: 1, max_sessions_per_tree: 2, ..Limits::default() });
    world.spawn("root", "", false, None);
    world.spawn("child", "root", false, Some(letter("start", true)));
    let ticket = world.poll();
    let polled = world.polled(ticket).expect("it is runnable");
    let grant = polled.grant.expect("a grant");
    assert_eq!((&*polled.session_id, texts(&grant)), ("child", vec!["start".to_owned()]));
    assert_eq!((&*grant.mail[0].sender_session_id, &*grant.mail[0].sender_path), ("root", "/root"));
    // The tree is full: nothing is left behind.
    let before = world.store.last_seq;
    let options = v1::OpenOptions { parent_session_id: "root".into(), ..v1::OpenOptions::default() };
    let request = v1::OpenSessionRequest {
        session_id: "more".into(),
        options: Some(options),
        first_message: Some(letter("start", true)),
        ..v1::OpenSessionRequest::default()
    };
    let refused = world.call::<v1::OpenSessionResponse>(Method::OpenSession, &request);
    assert_eq!(refused.unwrap_err(), Reason::TreeSessions);
    assert_eq!(world.store.last_seq, before);
}

#[test]
fn mail_neither_loads_nor_pins_its_session() {
    // The session at the head of the eviction order has mail: it is a victim as any other.
    let mut world = World::new(small(2));
    world.spawn("mailed", "", false, None);
    world.send("mailed", "later", false);
    for id in ["b", "c"] {
        world.spawn(id, "", false, None);
    }
    assert_eq!(world.get("mailed").residency(), v1::Residency::Unloaded);
    let loads = world.loads;
    world.send("mailed", "more", true);
    let waited: v1::WaitMailResponse = world.call(Method::WaitMail, &wait_mail("mailed", 0, 0)).expect("it is open");
    assert_eq!((waited.queued, waited.runnable, world.loads), (2, true, loads));
    assert_eq!(world.get("mailed").residency(), v1::Residency::Unloaded);
    assert_eq!(texts(&world.begin("mailed")), ["later", "more"]);
}

#[test]
fn a_repeated_send_is_one_message_across_restarts_i21() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    world.spawn("sender", "", false, None);
    let request = v1::SendMessageRequest { request_id: "r1".into(), ..send("s", "once", false) };
    let first: v1::SendMessageResponse = world.call(Method::SendMessage, &request).expect("it is sent");
    let other = v1::SendMessageRequest { sender_session_id: "sender".into(), ..request.clone() };
    let apart: v1::SendMessageResponse = world.call(Method::SendMessage, &other).expect("it is sent");
    assert!(!apart.repeated, "another sender's request is another request");
    let lease = world.begin("s").lease;
    world.commit(&commit("s", &lease));
    for restarts in 0..2 {
        let again: v1::SendMessageResponse = world.call(Method::SendMessage, &request).expect("it is known");
        assert_eq!((again.repeated, &again.message_id), (true, &first.message_id), "after {restarts} restarts");
        let changed = v1::SendMessageRequest { message: Some(letter("twice", false)), ..request.clone() };
        let refused = world.call::<v1::SendMessageResponse>(Method::SendMessage, &changed);
        assert_eq!(refused.unwrap_err(), Reason::RequestMismatch);
        world.restart();
    }
    assert_eq!(world.states("s").len(), 2);
}

#[test]
fn a_refused_batch_takes_its_message_along_i5() {
    let mut world = World::new(Limits { max_batch_entries: 1, ..Limits::default() });
    world.spawn("s", "", false, None);
    let request = v1::SendMessageRequest { request_id: "r1".into(), ..send("s", "lost?", true) };
    let ticket = world.start(Method::SendMessage, &request);
    assert!(world.append(false));
    world.settle();
    assert_eq!(world.answer::<v1::SendMessageResponse>(ticket).unwrap_err(), Reason::NotStored);
    assert_eq!(world.states("s"), []);
    let again: v1::SendMessageResponse = world.call(Method::SendMessage, &request).expect("it is sent");
    assert!(!again.repeated);
    assert_eq!(texts(&world.begin("s")), ["lost?"]);
}

#[test]
fn a_full_mailbox_says_so_and_outcomes_still_come_in() {
    let limits = Limits { max_mailbox_messages: 2, max_mailbox_bytes: 1_024, ..Limits::default() };
    let mut world = World::new(limits);
    world.spawn("root", "", false, None);
    world.spawn("child", "root", false, None);
    world.send("root", "a", false);
    let big = "x".repeat(1_024);
    let now = world.now();
    let (request, caller) = (send("root", &big, false).encode_to_vec(), Caller::of(TENANT));
    let Outcome::Refused(refusal) = world.engine.call(Method::SendMessage, &request, &caller, 0, now) else {
        panic!("it was taken");
    };
    assert_eq!((refusal.reason, refusal.reason.code()), (Reason::MailboxFull, Code::ResourceExhausted));
    assert_eq!((&*refusal.metadata["limit_name"], &*refusal.metadata["used"]), ("max_mailbox_bytes", "1"));
    world.send("root", "b", false);
    let full = world.call::<v1::SendMessageResponse>(Method::SendMessage, &send("root", "c", false));
    assert_eq!(full.unwrap_err(), Reason::MailboxFull);
    let lease = world.begin("child").lease;
    world.commit(&v1::CommitTurnRequest { completed: true, ..commit("child", &lease) });
    assert_eq!(texts(&world.begin("root")), ["a", "b", ""]);
}

#[test]
fn the_root_takes_no_trigger_message_from_below() {
    let mut world = World::new(Limits::default());
    world.spawn("root", "", false, None);
    world.spawn("child", "root", false, None);
    let from_child = v1::SendMessageRequest { sender_session_id: "child".into(), ..send("root", "wake up", true) };
    let refused = world.call::<v1::SendMessageResponse>(Method::SendMessage, &from_child);
    assert_eq!(refused.unwrap_err(), Reason::RootTrigger);
    let quiet = v1::SendMessageRequest { message: Some(letter("note", false)), ..from_child.clone() };
    world.call::<v1::SendMessageResponse>(Method::SendMessage, &quiet).expect("it starts nothing");
    let from_root = v1::SendMessageRequest { sender_session_id: "root".into(), ..send("child", "go", true) };
    world.call::<v1::SendMessageResponse>(Method::SendMessage, &from_root).expect("down is allowed");
    let unknown = v1::SendMessageRequest { sender_session_id: "nobody".into(), ..from_root };
    let refused = world.call::<v1::SendMessageResponse>(Method::SendMessage, &unknown);
    assert_eq!(refused.unwrap_err(), Reason::SessionNotFound);
}

#[test]
fn what_is_still_queued_after_its_time_is_expired_i15() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    let ttl = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let message = Some(v1::MessageInput { ttl, ..letter("now or never", true) });
    let request = v1::SendMessageRequest { message: message.clone(), ..send("s", "", false) };
    world.call::<v1::SendMessageResponse>(Method::SendMessage, &request).expect("it is sent");
    world.pass(6_000);
    let ticket = world.poll();
    world.pass(61_000);
    assert_eq!(world.polled(ticket).expect("its wait is over").session_id, "");
    assert_eq!(texts(&world.begin("s")), [""; 0]);
    assert_eq!(world.states("s")[0].1, MessageState::Expired);
    // One that a turn has taken in time does not expire with it.
    world.pass(120_000);
    world.call::<v1::SendMessageResponse>(Method::SendMessage, &request).expect("it is sent");
    let lease = world.begin("s").lease;
    world.pass(6_000);
    world.commit(&commit("s", &lease));
    assert_eq!(world.states("s")[1].1, MessageState::Consumed);
}

#[test]
fn a_late_commit_consumes_what_its_turn_had_taken() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    world.send("s", "work", true);
    let grant = world.begin("s");
    world.pass(61_000);
    assert_eq!(world.states("s")[0].1, MessageState::Queued);
    world.commit(&commit("s", &grant.lease));
    assert_eq!(world.states("s")[0].1, MessageState::Consumed);
    let ticket = world.poll();
    world.pass(61_000);
    assert_eq!(world.polled(ticket).expect("its wait is over").session_id, "");
}

#[test]
fn a_late_commit_does_not_bring_back_what_has_expired_since_i15() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    let ttl = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let message = Some(v1::MessageInput { ttl, ..letter("now or never", false) });
    let request = v1::SendMessageRequest { message, ..send("s", "", false) };
    world.call::<v1::SendMessageResponse>(Method::SendMessage, &request).expect("it is sent");
    world.send("s", "whenever", false);
    let grant = world.begin("s");
    assert_eq!(texts(&grant), ["now or never", "whenever"]);
    // Its lease runs out: both are queued again, and one of them for too long by now.
    world.pass(61_000);
    world.commit(&commit("s", &grant.lease));
    // What comes next finds it expired.
    world.send("s", "next", false);
    let states: Vec<_> = world.states("s").into_iter().map(|s| s.1).collect();
    assert_eq!(states, [MessageState::Expired, MessageState::Consumed, MessageState::Queued]);
}

/// A call that waited takes what is in the mailbox when it is granted, not what was when it came.
#[test]
fn who_waited_takes_what_came_meanwhile_i15() {
    for limits in [Limits::default(), small(1)] {
        let mut world = World::new(Limits { max_turns_per_tenant: 1, ..limits });
        world.store.tenant_cap = 1;
        for id in ["busy", "s"] {
            world.spawn(id, "", false, None);
        }
        let busy = world.begin("busy").lease;
        world.send("s", "before", false);
        let wait = Some(prost_types::Duration { seconds: 60, nanos: 0 });
        let ticket = world.start(Method::BeginTurn, &v1::BeginTurnRequest { wait, ..begin("s", "") });
        world.settle();
        world.send("s", "meanwhile", false);
        world.commit(&commit("busy", &busy));
        let begun: v1::BeginTurnResponse = world.answer(ticket).expect("it has the slot");
        let grant = begun.grant.expect("it was granted");
        assert_eq!((texts(&grant), grant.more_mail), (vec!["before".to_owned(), "meanwhile".to_owned()], 0));
    }
}

/// A takeover hands the older attempt's mail on in the same entry; a grant that nobody got gives it back untouched.
#[test]
fn mail_follows_the_turn_that_has_it() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    world.send("s", "work", false);
    world.begin("s");
    let grant = world.take_over("s", "t1");
    assert_eq!((texts(&grant), grant.mail[0].deliveries), (vec!["work".to_owned()], 2));
    assert_eq!(texts(&world.take_over("s", "t1")), ["work"], "its repeat");
    world.abort("s", &grant.lease);
    let request = begin("s", "");
    let ticket = world.start(Method::BeginTurn, &request);
    while world.append(true) || world.read() {}
    let now = world.now();
    world.engine.cancel(ticket, now);
    world.settle();
    assert_eq!(world.begin("s").mail[0].deliveries, 3, "a grant that nobody got was counted");
}

#[test]
fn wait_mail_ends_with_mail_with_its_time_or_with_its_session() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    let ticket = world.start(Method::WaitMail, &wait_mail("s", 60, 0));
    world.settle();
    assert!(!world.done.contains_key(&ticket));
    world.send("s", "hello", false);
    let told: v1::WaitMailResponse = world.answer(ticket).expect("it is open");
    assert_eq!((told.queued, told.runnable), (1, false));
    // Only what comes after that counts.
    let next = world.start(Method::WaitMail, &wait_mail("s", 60, told.cursor));
    world.settle();
    assert!(!world.done.contains_key(&next));
    world.pass(61_000);
    let none: v1::WaitMailResponse = world.answer(next).expect("its time is up");
    assert_eq!((none.queued, none.cursor), (0, told.cursor));
    let last = world.start(Method::WaitMail, &wait_mail("s", 60, told.cursor));
    world.settle();
    world.close("s");
    assert_eq!(world.answer::<v1::WaitMailResponse>(last).unwrap_err(), Reason::SessionClosed);
    let refused = world.call::<v1::WaitMailResponse>(Method::WaitMail, &wait_mail("s", 60, 0));
    assert_eq!(refused.unwrap_err(), Reason::SessionClosed);
}

#[test]
fn sessions_are_polled_in_the_order_in_which_they_became_runnable() {
    let mut world = World::new(small(1));
    for id in ["a", "b", "c", "d"] {
        world.spawn(id, "", false, None);
    }
    for id in ["c", "a", "d", "b"] {
        world.send(id, "go", true);
    }
    world.restart();
    let tickets: Vec<u64> = (0..4).map(|_| world.poll()).collect();
    let order: Vec<String> = tickets.into_iter().map(|t| world.polled(t).expect("it is runnable").session_id).collect();
    assert_eq!(order, ["c", "a", "d", "b"]);
}

#[test]
fn a_polled_turn_is_found_again_by_its_request_while_it_runs_i21() {
    let mut world = World::new(Limits::default());
    world.spawn("s", "", false, None);
    world.send("s", "go", true);
    let request = v1::PollTurnRequest { request_id: "p1".into(), ..poll(60) };
    let ask = |world: &mut World| -> Option<v1::PollTurnResponse> {
        let ticket = world.start(Method::PollTurn, &request);
        world.polled(ticket)
    };
    let first = ask(&mut world).expect("it is runnable").grant.expect("a grant");
    let again = ask(&mut world).expect("its turn runs").grant.expect("a grant");
    assert_eq!((&first.lease, texts(&again)), (&again.lease, vec!["go".to_owned()]));
    world.restart();
    let after = ask(&mut world).expect("its turn runs on").grant.expect("a grant");
    assert_eq!(first.lease, after.lease);
    // A BeginTurn of the same request_id is another request.
    let other = v1::BeginTurnRequest { request_id: "p1".into(), ..begin("s", "") };
    let refused = world.call::<v1::BeginTurnResponse>(Method::BeginTurn, &other);
    assert_eq!(refused.unwrap_err(), Reason::TurnInProgress);
    world.commit(&commit("s", &first.lease));
    assert!(ask(&mut world).is_none(), "it waits as a new call");
}

/// I24: who polls and is gone leaves nothing behind; what it would have got goes to the next.
#[test]
fn a_poll_that_is_cancelled_takes_nothing_i24() {
    let mut world = World::new(Limits { max_turns_per_tenant: 1, ..Limits::default() });
    world.store.tenant_cap = 1;
    for id in ["busy", "s"] {
        world.spawn(id, "", false, None);
    }
    let lease = world.begin("busy").lease;
    let gone = world.poll();
    let stays = world.poll();
    world.send("s", "go", true);
    let now = world.now();
    world.engine.cancel(gone, now);
    world.settle();
    world.commit(&commit("busy", &lease));
    let polled = world.polled(stays).expect("it is its turn");
    assert_eq!(polled.session_id, "s");
    // One that is cancelled with its grant on the way gives it back.
    world.commit(&commit("s", &polled.grant.expect("a grant").lease));
    world.send("s", "again", true);
    let ticket = world.start(Method::PollTurn, &poll(60));
    while world.append(true) || world.read() {}
    let now = world.now();
    world.engine.cancel(ticket, now);
    world.settle();
    assert_eq!(world.begin("s").mail[0].deliveries, 1);
}

#[test]
fn nested_spawns_share_one_cap_and_never_lock_the_root_out_i2() {
    let mut world = World::new(Limits { max_turns_per_tree: 3, ..Limits::default() });
    world.store.tree_cap = 3;
    world.spawn("root", "", false, None);
    world.spawn("a", "root", false, None);
    world.spawn("b", "a", false, None);
    world.spawn("c", "b", false, None);
    let (a, _b) = (world.begin("a"), world.begin("b"));
    let full = world.call::<v1::BeginTurnResponse>(Method::BeginTurn, &begin("c", "b"));
    assert_eq!(full.unwrap_err(), Reason::TreeTurns);
    world.begin("root");
    // A second end of one turn frees nothing more, and a stranger's lease nothing at all.
    world.abort("a", &a.lease);
    assert!(world.abort("a", &a.lease).repeated);
    let stranger = v1::AbortTurnRequest { session_id: "b".into(), lease: a.lease, ..v1::AbortTurnRequest::default() };
    let refused = world.call::<v1::AbortTurnResponse>(Method::AbortTurn, &stranger);
    assert_eq!(refused.unwrap_err(), Reason::LeaseLost);
    world.begin("c");
    let full = world.call::<v1::BeginTurnResponse>(Method::BeginTurn, &begin("a", "root"));
    assert_eq!(full.unwrap_err(), Reason::TreeTurns);
}

#[test]
fn a_close_takes_the_mail_of_its_whole_subtree_and_what_waits_for_it() {
    let mut world = World::new(Limits::default());
    world.spawn("root", "", false, None);
    world.spawn("child", "root", false, None);
    world.send("child", "unread", true);
    let waits = world.start(Method::WaitMail, &wait_mail("root", 60, 0));
    world.settle();
    let closed: v1::CloseSessionResponse = world.call(Method::CloseSession, &close("root")).expect("it closes");
    assert_eq!(closed.receipt.expect("a receipt").unread_messages, 0);
    assert_eq!(world.answer::<v1::WaitMailResponse>(waits).unwrap_err(), Reason::SessionClosed);
    assert_eq!(world.states("child")[0].1, MessageState::Closed);
    let ticket = world.poll();
    world.pass(61_000);
    assert_eq!(world.polled(ticket).expect("its wait is over").session_id, "");
}
