//! What a dump must hold to be worth its name: every session comes back bit for bit, the same session gives the same bytes,
//! and nothing that is not such a dump is taken for one.

use proptest::prelude::*;
use prost::Message;
use roost_core::chain::{FINISHED, GENESIS, Line, digest, link};
use roost_core::ids::Uid;
use roost_core::proto::store_v1::{EndedBy, MessageMeta, Receipt, RecordMeta, RequestMark, SessionFacts};
use roost_core::proto::v1::{CloseReason, MessageKind, RecordStatus, TurnOutcome};
use roost_dump::{Decoder, Encoder, Fault, MAX_PART_BYTES, Mail, Part, Record, Row, Session, Summary, Trajectory};

/// A session whose history verifies.
#[derive(Clone, Debug)]
struct Whole {
    session: Session,
    /// Oldest first.
    records: Vec<Record>,
    trajectories: Vec<Trajectory>,
    mail: Vec<Mail>,
}

impl Whole {
    fn with_mail(mut self, mail: Vec<Mail>) -> Self {
        self.session.mail = mail.len() as u64;
        self.mail = mail;
        self
    }

    fn lines(&self) -> Vec<Line> {
        let line = |r: &Record| Line {
            seq: r.seq,
            prev: r.prev,
            status: r.status,
            turn: r.turn,
            meta: r.meta.clone(),
            chain: r.chain.clone(),
            tokens: None,
        };
        self.records.iter().rev().map(line).collect()
    }

    fn encode(&self, part_bytes: usize) -> Result<(Vec<Part>, Summary), Fault> {
        let mut encoder = Encoder::new(&self.session, &self.lines(), part_bytes)?;
        let mut parts = Vec::new();
        for record in &self.records {
            parts.extend(encoder.record(record.clone())?);
        }
        parts.extend(encoder.trajectories(&self.trajectories)?);
        for mail in &self.mail {
            parts.extend(encoder.mail(mail)?);
        }
        let (last, summary) = encoder.finish()?;
        parts.push(last);
        Ok((parts, summary))
    }
}

fn decode(parts: &[Part]) -> Result<(Vec<Row>, Summary), Fault> {
    let mut decoder = Decoder::new();
    let mut rows = Vec::new();
    for part in parts {
        rows.extend(decoder.part(&part.data, part.raw_bytes)?);
    }
    Ok((rows, decoder.finish()?))
}

/// The lines of all parts.
fn text(parts: &[Part]) -> Vec<u8> {
    parts.iter().flat_map(|p| zstd::bulk::decompress(&p.data, p.raw_bytes as usize).unwrap()).collect()
}

/// One part of these lines.
fn part(lines: &[u8]) -> Part {
    let data = zstd::bulk::compress(lines, 3).unwrap();
    Part { data, sha256: String::new(), raw_bytes: lines.len() as u64, lines: 0 }
}

#[derive(Clone, Debug)]
struct Step {
    /// 0, 1: a commit; 2: a provisional that the next record supersedes; 3: a trajectory is finished.
    what: u8,
    content: Option<Vec<u8>>,
    tokens: Option<Vec<u8>>,
    state: Option<Vec<u8>>,
    arrays: Option<Vec<u8>>,
    word: String,
    reward: Option<f64>,
    gap: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let blob = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    let reward = proptest::option::of(any::<f64>().prop_filter("a reward is finite", |r| r.is_finite()));
    (0u8..4, blob(), blob(), blob(), blob(), any::<String>(), reward, 1u64..5).prop_map(
        |(what, content, tokens, state, arrays, word, reward, gap)| Step {
            what,
            content,
            tokens,
            state,
            arrays,
            word,
            reward,
            gap,
        },
    )
}

fn letters() -> impl Strategy<Value = Vec<Mail>> {
    let blob = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    let numbers = (1u64..5, 1i32..5, 0..i64::MAX, any::<u32>(), any::<u64>(), any::<i64>());
    let one = (numbers, any::<u128>(), any::<Option<u128>>(), blob, any::<String>());
    let mail = |(seq, one)| {
        let ((_, kind, expire, deliveries, fence, create_ms), id, sender, content, word) = one;
        let (sender, word): (Option<u128>, String) = (sender, word);
        let request = RequestMark { request_id: format!("r{seq}"), hash: vec![1] };
        let meta = MessageMeta {
            sender_session_id: word.clone(),
            sender_path: word.clone(),
            content_type: word.clone(),
            labels: [(word, "x".to_owned())].into(),
            trigger: kind == 1,
            turn: deliveries,
            close_reason: kind,
            request: (kind == 1).then_some(request),
        };
        let meta = meta.encode_to_vec();
        Mail { seq, id: Uid(id), sender: sender.map(Uid), kind, expire, deliveries, fence, create_ms, meta, content }
    };
    proptest::collection::vec(one, 0..20).prop_map(move |all| {
        let sequence = |last: &mut u64, one: ((u64, _, _, _, _, _), _, _, _, _)| {
            *last += one.0.0;
            Some((*last, one))
        };
        all.into_iter().scan(0, sequence).map(mail).collect()
    })
}

fn whole(tenant: String, id: String, steps: &[Step]) -> Whole {
    let (mut chain, mut seq, mut turn, mut after, mut first) = (GENESIS, 0, 0, 0, 1);
    let (mut records, mut trajectories): (Vec<Record>, Vec<Trajectory>) = (Vec::new(), Vec::new());
    for step in steps {
        let prev = seq;
        seq += step.gap;
        let event = step.what == 3;
        let commit = step.what < 2;
        let at = if event { turn } else { turn + 1 };
        let payload = |blob: &Option<Vec<u8>>| if event { None } else { blob.clone() };
        let hashed = |blob: &Option<Vec<u8>>| digest(&[payload(blob).as_deref().unwrap_or_default()]);
        let meta = RecordMeta {
            turn: at,
            attempt: 1,
            outcome: if commit { TurnOutcome::Completed } else { TurnOutcome::Aborted } as i32,
            finish_reason: step.word.clone(),
            labels: [(step.word.clone(), "x".to_owned())].into(),
            create_ms: step.gap as i64 * 1_234_567_891,
            has_usage: commit,
            content_digest: hashed(&step.content),
            tokens_digest: hashed(&step.tokens),
            state_digest: hashed(&step.state),
            arrays_digest: hashed(&step.arrays),
            ended_by: match step.what {
                0 | 1 => EndedBy::Commit,
                2 => EndedBy::Abort,
                _ => EndedBy::Finish,
            } as i32,
            ..Default::default()
        }
        .encode_to_vec();
        chain = link(&chain, &meta);
        turn += u32::from(commit);
        records.push(Record {
            seq,
            prev,
            status: match step.what {
                0 | 1 => RecordStatus::Committed as i32,
                2 => RecordStatus::Superseded as i32,
                _ => FINISHED,
            },
            turn: at,
            meta,
            chain: chain.to_vec(),
            tokens: payload(&step.tokens),
            state: payload(&step.state),
            arrays: payload(&step.arrays),
            content: payload(&step.content),
            reward: step.reward.filter(|_| commit),
        });
        if event {
            let number = trajectories.len() as u32 + 1;
            let turn_count = turn + 1 - first;
            trajectories.push(Trajectory {
                number,
                ready_seq: seq,
                after_seq: after,
                first_turn: first,
                turn_count,
                ready_ms: 5,
            });
            (after, first) = (seq, turn + 1);
        }
    }
    let facts = SessionFacts {
        labels: [(id.clone(), tenant.clone())].into(),
        chain: if records.is_empty() { Vec::new() } else { chain.to_vec() },
        trajectories: trajectories.len() as u32,
        ..Default::default()
    };
    let receipt = Receipt { close_number: 2, close_ms: 1_700_000_000_123, reason: 1, ..Default::default() };
    let uid = Uid(0x0198_F6A0_0000_7000_8000_0000_0000_0001);
    Whole {
        session: Session {
            uid,
            tenant,
            session_id: id,
            root: uid,
            parent: None,
            path: "/root".into(),
            depth: 0,
            create_ms: -1,
            head: turn,
            head_version: u64::MAX,
            fence: 9,
            last: seq,
            facts: facts.encode_to_vec(),
            receipt: receipt.encode_to_vec(),
            mail: 0,
        },
        records,
        trajectories,
        mail: Vec::new(),
    }
}

/// What nobody has read: from a session, with all that a message may have, and from a child that was closed.
fn sample_mail() -> Vec<Mail> {
    let sender = Some(Uid(0x0198_F6A0_0000_7000_8000_0000_0000_0002));
    let asked = MessageMeta {
        sender_session_id: "chat-2".into(),
        sender_path: "/root/a".into(),
        content_type: "text/plain".into(),
        labels: [("k".to_owned(), "v".to_owned())].into(),
        trigger: true,
        request: Some(RequestMark { request_id: "once".into(), hash: vec![9; 32] }),
        ..MessageMeta::default()
    };
    let told = MessageMeta { close_reason: CloseReason::Stale as i32, turn: 3, ..MessageMeta::default() };
    let letter = |seq, kind, expire, meta: &MessageMeta, content: Option<&[u8]>| Mail {
        seq,
        id: Uid(0x0198_F6A0_0000_7000_8000_0000_0000_0100 + u128::from(seq)),
        sender,
        kind: kind as i32,
        expire,
        deliveries: 2,
        fence: 7,
        create_ms: 1_700_000_000_000,
        meta: meta.encode_to_vec(),
        content: content.map(<[u8]>::to_vec),
    };
    vec![
        letter(3, MessageKind::Message, 1_700_000_060_000, &asked, Some(b"unread \xFF")),
        letter(6, MessageKind::Closed, 0, &told, None),
    ]
}

/// A small one with a bit of everything.
fn sample() -> Whole {
    let step = |what, content: &str| Step {
        what,
        content: Some(content.into()),
        tokens: Some(vec![1, 0, 0, 0]),
        state: None,
        arrays: Some(Vec::new()),
        word: "stop".into(),
        reward: Some(0.1),
        gap: 1,
    };
    whole(
        "default".into(),
        "chat-1".into(),
        &[step(0, "one"), step(2, "tail"), step(0, "two"), step(3, ""), step(1, "")],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_session_comes_back_bit_for_bit(
        tenant in any::<String>(),
        id in any::<String>(),
        steps in proptest::collection::vec(step(), 0..20),
        mail in letters(),
        part_bytes in 1usize..20_000,
    ) {
        let whole = whole(tenant, id, &steps).with_mail(mail);
        let (parts, summary) = whole.encode(part_bytes).unwrap();
        let (again, _) = whole.encode(part_bytes).unwrap();
        prop_assert_eq!(&parts, &again);
        let (rows, read) = decode(&parts).unwrap();
        prop_assert_eq!(&read, &summary);
        let mut expected = vec![Row::Session(whole.session.clone())];
        expected.extend(whole.records.iter().cloned().map(Row::Record));
        expected.extend(whole.trajectories.iter().cloned().map(Row::Trajectory));
        expected.extend(whole.mail.iter().cloned().map(Row::Mail));
        prop_assert_eq!(summary.mail, whole.mail.len() as u64);
        // Equal numbers are not enough: 0.0 and -0.0 are two rewards.
        let bits = |rows: &[Row]| -> Vec<Option<u64>> {
            rows.iter().map(|r| if let Row::Record(r) = r { r.reward.map(f64::to_bits) } else { None }).collect()
        };
        prop_assert_eq!(bits(&rows), bits(&expected));
        prop_assert_eq!(rows, expected);
        // However it is cut: the same lines.
        let (one, whole_summary) = whole.encode(usize::MAX).unwrap();
        prop_assert_eq!(one.len(), 1);
        prop_assert_eq!(text(&one), text(&parts));
        prop_assert_eq!(whole_summary.sha256, summary.sha256);
        for part in &parts {
            prop_assert!(part.lines == 1 || part.raw_bytes <= part_bytes as u64);
        }
    }

    #[test]
    fn a_changed_byte_is_seen(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (parts, summary) = sample().with_mail(sample_mail()).encode(usize::MAX).unwrap();
        let mut lines = text(&parts);
        let at = at.index(lines.len());
        lines[at] ^= 1 << bit;
        // Not on the chain, and not tied to it: rewards, and most columns of the session, of its trajectories and of its
        // mail. The manifest's digest covers them.
        let start = lines[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let before = String::from_utf8_lossy(&lines[start..at]).into_owned();
        let in_reward = before.contains("\"reward\":") && !before.contains("\"meta\":");
        let chained = before.starts_with("{\"kind\":\"record\"") && !in_reward;
        let read = decode(&[part(&lines)]);
        prop_assert!(read.is_err() || !chained, "{}", before);
        if let Ok((_, read)) = read {
            prop_assert_ne!(read.sha256, summary.sha256);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..500), raw in any::<u64>(), lines in any::<Vec<u8>>()) {
        let _ = Decoder::new().part(&data, raw);
        let _ = Decoder::new().part(&data, raw % 1_000);
        if !lines.is_empty() {
            prop_assert!(decode(&[part(&lines)]).is_err());
        }
    }
}

/// The format never changes under one schema: dumps are kept for years.
#[test]
fn the_lines_are_those_of_schema_1() {
    let (parts, summary) = sample().encode(usize::MAX).unwrap();
    let golden = include_str!("schema-1.jsonl");
    assert_eq!(String::from_utf8(text(&parts)).unwrap(), golden);
    assert_eq!(summary.sha256, "f3839377da0a3fa8b79b2fd1df0dfdb193d368a1e9eca95b3cffcf0f588cca3e");
    assert_eq!((summary.records, summary.trajectories, summary.lines), (5, 1, 7));
    assert_eq!(summary.bytes, golden.len() as u64);
}

#[test]
fn the_lines_are_those_of_schema_2() {
    let whole = sample().with_mail(sample_mail());
    let (parts, summary) = whole.encode(usize::MAX).unwrap();
    let golden = include_str!("schema-2.jsonl");
    assert_eq!(String::from_utf8(text(&parts)).unwrap(), golden);
    assert_eq!(summary.sha256, "4277d505ad0858b97eb0138ad7c119d05e039966691fd8848aa774e8ffe6db6b");
    assert_eq!((summary.records, summary.trajectories, summary.mail, summary.lines), (5, 1, 2, 9));
    assert_eq!(summary.bytes, golden.len() as u64);
    assert_eq!((whole.session.schema(), sample().session.schema()), (2, 1));
}

/// What was dumped before there was mail has the same dump still, to the byte.
#[test]
fn a_session_without_unread_mail_has_a_dump_of_schema_1() {
    let (with, _) = sample().with_mail(sample_mail()).encode(usize::MAX).unwrap();
    let (without, _) = sample().with_mail(Vec::new()).encode(usize::MAX).unwrap();
    assert_eq!(text(&without), include_bytes!("schema-1.jsonl"));
    let lines = String::from_utf8(text(&with)).unwrap();
    let plain: String = lines.split_inclusive('\n').filter(|line| !line.starts_with("{\"kind\":\"mail\"")).collect();
    assert_eq!(plain.replace("\"schema\":2", "\"schema\":1").replace("\"mail\":2,", "").as_bytes(), text(&without));
}

#[test]
fn mail_that_cannot_be_is_refused() {
    let good = sample().with_mail(sample_mail());
    let broken: [(&str, fn(&mut Whole)); 6] = [
        ("has 1 messages, of 2", |w| w.mail.truncate(1)),
        ("has 2 messages, of 0", |w| w.session.mail = 0),
        ("message 3: it does not follow", |w| w.mail.swap(0, 1)),
        ("message 3: it does not follow", |w| w.mail[1].seq = 3),
        ("message 6: its metadata does not decode", |w| w.mail[1].meta = vec![0xFF]),
        ("message 3: the time at which it expires", |w| w.mail[0].expire = -1),
    ];
    for (why, change) in broken {
        let mut whole = good.clone();
        change(&mut whole);
        let said = whole.encode(usize::MAX).unwrap_err().0;
        assert!(said.contains(why), "{why}: {said}");
    }
    let (parts, _) = good.encode(usize::MAX).unwrap();
    let all = String::from_utf8(text(&parts)).unwrap();
    let lines: Vec<&str> = all.split_inclusive('\n').collect();
    let put = |lines: &[&str]| decode(&[part(lines.concat().as_bytes())]).unwrap_err().0;
    assert!(put(&lines[..8]).contains("has 1 messages, of 2"));
    assert!(put(&[&lines[..7], &[lines[8], lines[7]]].concat()).contains("message 3: it does not follow"));
    assert!(put(&[&lines[..6], &lines[7..], &lines[6..7]].concat()).contains("none of this history"));
    assert!(put(&[&lines[..7], &lines[7..], &lines[5..6]].concat()).contains("does not follow on the one"));
    let replaced = |from: &str, to: &str| {
        assert!(all.contains(from), "{from}");
        decode(&[part(all.replacen(from, to, 1).as_bytes())]).unwrap_err().0
    };
    assert!(replaced("\"message\":\"MESSAGE\"", "\"message\":\"9\"").contains("its kind is none"));
    for (from, to) in [
        ("\"schema\":2", "\"schema\":1"),
        ("\"mail\":2,", ""),
        ("\"mail\":2", "\"mail\":0"),
        ("\"trigger\":true", "\"trigger\":false"),
        ("\"content_type\":\"text/plain\"", "\"content_type\":\"text/html\""),
        ("\"close_reason\":\"STALE\"", "\"close_reason\":\"QUIT\""),
        ("\"sender_path\":\"/root/a\"", "\"sender_path\":\"/root/b\""),
    ] {
        assert!(replaced(from, to).contains("it was changed"), "{to}");
    }
    assert!(replaced("\"mail\":2", "\"mail\":3").contains("has 2 messages, of 3"));
    // I21: no store holds two of one request, and a restore must not try.
    let mut two = good;
    two.mail[1].meta = two.mail[0].meta.clone();
    assert!(decode(&two.encode(usize::MAX).unwrap().0).unwrap_err().0.contains("message 6: its request"));
    two.mail[1].sender = None;
    decode(&two.encode(usize::MAX).unwrap().0).unwrap();
}

#[test]
fn a_history_that_does_not_verify_is_not_dumped() {
    let good = sample();
    good.encode(usize::MAX).unwrap();
    let broken: [(&str, fn(&mut Whole)); 10] = [
        ("record 2: its hash chain", |w| w.records[1].meta.push(0)),
        ("it is missing", |w| w.records.truncate(0)),
        ("record 4: its hash chain", |w| w.records[2].chain[0] ^= 1),
        ("its content does not match", |w| w.records[0].content = Some(b"other".to_vec())),
        ("its tokens do not match", |w| w.records[0].tokens = None),
        ("has 0 trajectories, of 1", |w| w.trajectories.clear()),
        ("facts do not decode", |w| w.session.facts = vec![0xFF]),
        ("its reward is not a number", |w| w.records[0].reward = Some(f64::NAN)),
        ("its turn is not", |w| w.records[0].turn += 1),
        ("no receipt", |w| w.session.receipt.clear()),
    ];
    for (why, change) in broken {
        let mut whole = good.clone();
        change(&mut whole);
        let said = whole.encode(usize::MAX).unwrap_err().0;
        assert!(said.contains(why), "{why}: {said}");
    }
}

#[test]
fn a_record_that_changed_since_it_was_verified_is_refused() {
    let whole = sample();
    let lines = whole.lines();
    let start = || Encoder::new(&whole.session, &lines, usize::MAX).unwrap();
    assert!(start().record(whole.records[1].clone()).is_err());
    let mut other = whole.records[0].clone();
    other.meta.extend([0xF8, 0x07, 1]); // a field that nobody knows
    assert!(start().record(other).unwrap_err().0.contains("not the one that was verified"));
    assert!(start().trajectories(&whole.trajectories).unwrap_err().0.contains("it is missing"));
    // The statuses are those that were verified, not those that a payload was read with.
    let mut encoder = start();
    for record in &whole.records {
        encoder.record(Record { status: 2, ..record.clone() }).unwrap();
    }
    assert!(encoder.trajectories(&whole.trajectories).unwrap().is_empty());
    let (part, _) = encoder.finish().unwrap();
    assert_eq!([part], whole.encode(usize::MAX).unwrap().0[..]);
}

#[test]
fn what_is_no_whole_dump_is_refused() {
    let (parts, _) = sample().encode(usize::MAX).unwrap();
    let all = String::from_utf8(text(&parts)).unwrap();
    let lines: Vec<&str> = all.split_inclusive('\n').collect();
    let put = |lines: &[&str]| decode(&[part(lines.concat().as_bytes())]).unwrap_err().0;
    let without = |n: usize| put(&[&lines[..n], &lines[n + 1..]].concat());
    assert!(without(0).contains("before the session's"));
    assert!(without(1).contains("does not follow"));
    assert!(put(&lines[..5]).contains("it is not the one"), "the newest record is gone");
    assert!(put(&lines[..6]).contains("has 0 trajectories, of 1"));
    assert!(put(&[lines[0], lines[0]]).contains("second session"));
    assert!(put(&[&lines[..], &lines[6..]].concat()).contains("none of this history"));
    assert!(put(&[&lines[..], &lines[1..2]].concat()).contains("does not follow"));
    assert!(put(&[lines[0].trim_end()]).contains("whole line"));
    assert!(decode(&[]).unwrap_err().0.contains("no session"));
    let replaced = |from: &str, to: &str| {
        assert!(all.contains(from), "{from}");
        decode(&[part(all.replacen(from, to, 1).as_bytes())]).unwrap_err().0
    };
    assert!(replaced("\"kind\":\"trajectory\"", "\"kind\":\"resource\"").contains("kind that this version"));
    assert!(replaced("\"schema\":1", "\"schema\":3").contains("schema 3"));
    assert!(replaced("\"schema\":1", "\"schema\":0").contains("schema 0"));
    // The readable part says what the raw columns say, and nothing else is in a line.
    for (from, to) in [
        ("\"attempt\":1", "\"attempt\":2"),
        ("\"outcome\":\"COMPLETED\"", "\"outcome\":\"ABORTED\""),
        ("\"finish_reason\":\"stop\"", "\"finish_reason\":\"length\""),
        ("\"turn\":1,", "\"turn\":1,\"more\":0,"),
        ("\"turn\":1,", "\"turn\": 1,"),
        ("\"close_number\":2", "\"close_number\":3"),
    ] {
        assert!(replaced(from, to).contains("it was changed"), "{to}");
    }
    assert!(replaced("\"status\":\"COMMITTED\"", "\"status\":\"SUPERSEDED\"").contains("its status"));
    assert!(replaced("\"status\":\"COMMITTED\"", "\"status\":\"9\"").contains("its status"));
    for (from, to) in [
        ("\"ready_seq\":4", "\"ready_seq\":6"),
        ("\"after_seq\":0", "\"after_seq\":4"),
        ("\"number\":1", "\"number\":2"),
    ] {
        assert!(replaced(from, to).contains("none of this history"), "{to}");
    }
    // Two that overlap.
    let step = |what| Step {
        what,
        content: None,
        tokens: None,
        state: None,
        arrays: None,
        word: String::new(),
        reward: None,
        gap: 1,
    };
    let mut two = whole("t".into(), "s".into(), &[step(0), step(3), step(0), step(3)]);
    two.encode(usize::MAX).map(|(parts, _)| decode(&parts).unwrap()).unwrap();
    two.trajectories[1].after_seq = 1;
    assert!(decode(&two.encode(usize::MAX).unwrap().0).unwrap_err().0.contains("trajectory 2"));
}

#[test]
fn a_bomb_takes_no_memory() {
    // 1 GiB of zeros in some 32 KiB.
    let bomb = zstd::bulk::compress(&vec![0; 1 << 30], 3).unwrap();
    assert!(bomb.len() < 1 << 17);
    let read = |raw| Decoder::new().part(&bomb, raw).unwrap_err().0;
    assert!(read(1_000).contains("more than the 1000 bytes"));
    assert!(read(1 << 30).contains("is the most there is"));
    assert!(read(MAX_PART_BYTES as u64).contains("more than"));
    assert!(read(u64::MAX).contains("is the most there is"));
    assert!(read(0).contains("refused"));
    // And one that holds less than it should.
    let (parts, _) = sample().encode(usize::MAX).unwrap();
    assert!(Decoder::new().part(&parts[0].data, parts[0].raw_bytes + 1).unwrap_err().0.contains("not"));
}
