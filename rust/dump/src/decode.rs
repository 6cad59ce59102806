//! From parts to rows.

use crate::lines::Line;
use crate::{Fault, MAX_PART_BYTES, Mail, Record, Session, Summary, Trajectory, fault, hex};
use roost_core::chain;
use roost_core::engine::verify_history;
use roost_core::ids::Uid;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use zstd::bulk::Decompressor;

/// What a line told.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    Session(Session),
    Record(Record),
    Trajectory(Trajectory),
    Mail(Mail),
}

/// Reads one dump, part after part. What it yields is verified line by line; that all of it is there, and that its chain
/// verifies, only [`Decoder::finish`] says.
#[derive(Debug)]
pub struct Decoder {
    session: Option<Session>,
    /// Oldest first, without payloads.
    history: Vec<chain::Line>,
    last_ready: u64,
    last_mail: u64,
    /// Of the messages so far.
    requests: HashSet<(Option<Uid>, String)>,
    all: Sha256,
    summary: Summary,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    pub fn new() -> Self {
        Decoder {
            session: None,
            history: Vec::new(),
            last_ready: 0,
            last_mail: 0,
            requests: HashSet::new(),
            all: Sha256::new(),
            summary: Summary::EMPTY,
        }
    }

    /// The rows of the next part, which must have `raw_bytes` bytes uncompressed, exactly: no more memory is taken.
    pub fn part(&mut self, data: &[u8], raw_bytes: u64) -> Result<Vec<Row>, Fault> {
        let raw = inflate(data, raw_bytes)?;
        self.all.update(&raw);
        self.summary.bytes += raw.len() as u64;
        if raw.last() != Some(&b'\n') {
            return fault("the part does not end with a whole line");
        }
        let mut rows = Vec::new();
        let mut scratch = Vec::new();
        for line in raw.split_inclusive(|byte| *byte == b'\n') {
            self.summary.lines += 1;
            let at = self.summary.lines;
            let named = |fault: Fault| Fault(format!("line {at}: {fault}"));
            let line = Line::read(line, &mut scratch).map_err(named)?;
            rows.push(self.accept(line).map_err(named)?);
        }
        Ok(rows)
    }

    /// All parts were read. A [`Fault`] if that is not a whole session whose history verifies (I23).
    pub fn finish(mut self) -> Result<Summary, Fault> {
        let Some(session) = self.session else { return fault("there is no session in it") };
        self.history.reverse();
        let statuses = verify_history(&self.history, session.last, &session.facts)?;
        if let Some((line, _)) = self.history.iter().zip(statuses).find(|(line, status)| line.status != *status) {
            return fault(format!("record {}: its status does not follow from its history", line.seq));
        }
        let expected = session.decoded()?.0.trajectories;
        if self.summary.trajectories != u64::from(expected) {
            return fault(format!("it has {} trajectories, of {expected}", self.summary.trajectories));
        }
        if self.summary.mail != session.mail {
            return fault(format!("it has {} messages, of {}", self.summary.mail, session.mail));
        }
        self.summary.sha256 = hex(&self.all.finalize());
        Ok(self.summary)
    }

    /// Takes a line if it may stand here.
    fn accept(&mut self, line: Line) -> Result<Row, Fault> {
        match line {
            Line::Session(session) => {
                if self.session.is_some() {
                    return fault("it is the line of a second session");
                }
                self.session = Some(session.clone());
                Ok(Row::Session(session))
            }
            _ if self.session.is_none() => fault("it stands before the session's"),
            Line::Record(record) => {
                let prev = self.history.last().map_or(0, |line| line.seq);
                let behind = self.summary.trajectories > 0 || self.summary.mail > 0;
                if behind || record.prev != prev || record.seq <= prev {
                    return fault(format!("record {}: it does not follow on the one before it", record.seq));
                }
                self.summary.records += 1;
                self.history.push(chain::Line {
                    seq: record.seq,
                    prev: record.prev,
                    status: record.status,
                    turn: record.turn,
                    meta: record.meta.clone(),
                    chain: record.chain.clone(),
                    tokens: None,
                });
                Ok(Row::Record(record))
            }
            Line::Trajectory(trajectory) => {
                self.summary.trajectories += 1;
                let in_order = self.summary.mail == 0
                    && u64::from(trajectory.number) == self.summary.trajectories
                    && trajectory.after_seq >= self.last_ready
                    && trajectory.ready_seq > trajectory.after_seq;
                if !in_order || self.history.binary_search_by_key(&trajectory.ready_seq, |line| line.seq).is_err() {
                    return fault(format!("trajectory {}: it is none of this history", trajectory.number));
                }
                self.last_ready = trajectory.ready_seq;
                Ok(Row::Trajectory(trajectory))
            }
            Line::Mail(mail) => {
                self.summary.mail += 1;
                if mail.seq <= std::mem::replace(&mut self.last_mail, mail.seq) {
                    return fault(format!("message {}: it does not follow on the one before it", mail.seq));
                }
                // I21: what a store holds only once.
                let request_id = mail.decoded()?.request.map(|request| request.request_id);
                if request_id.is_some_and(|request_id| !self.requests.insert((mail.sender, request_id))) {
                    return fault(format!("message {}: its request has made another one", mail.seq));
                }
                Ok(Row::Mail(mail))
            }
        }
    }
}

/// Decompresses a part into exactly `raw_bytes` bytes.
fn inflate(data: &[u8], raw_bytes: u64) -> Result<Vec<u8>, Fault> {
    if raw_bytes == 0 || raw_bytes > MAX_PART_BYTES as u64 {
        return fault(format!("a part of {raw_bytes} bytes is refused: {MAX_PART_BYTES} is the most there is"));
    }
    let mut raw = Vec::with_capacity(raw_bytes as usize);
    let done = Decompressor::new().and_then(|mut d| d.decompress_to_buffer(data, &mut raw));
    if done.is_err() {
        return fault(format!("the part is damaged, or holds more than the {raw_bytes} bytes that it should"));
    }
    if raw.len() as u64 != raw_bytes {
        return fault(format!("the part holds {} bytes, not {raw_bytes}", raw.len()));
    }
    Ok(raw)
}
