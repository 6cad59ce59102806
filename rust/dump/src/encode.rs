//! From rows to parts.

use crate::{Fault, MAX_PART_BYTES, Mail, Record, Session, Summary, Trajectory, fault, hex};
use roost_core::chain::Line;
use roost_core::engine::verify_history;
use sha2::{Digest, Sha256};
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

/// Part of the format only in so far as it does not change from one dump to the next of the same version.
const LEVEL: i32 = 3;

/// One file of a dump: one zstd frame of whole lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub data: Vec<u8>,
    /// Of `data`, in hex.
    pub sha256: String,
    /// Bytes of its lines, uncompressed.
    pub raw_bytes: u64,
    pub lines: u64,
}

/// A record that is to come, as it was verified.
#[derive(Debug)]
struct Expected {
    seq: u64,
    status: i32,
    chain: [u8; 32],
}

/// Writes one session. The same session gives the same parts.
#[derive(Debug)]
pub struct Encoder {
    expected: std::vec::IntoIter<Expected>,
    prev: u64,
    chain: [u8; 32],
    trajectories: u32,
    /// Messages that are to come, and the sequence of the last one.
    mail: u64,
    last_mail: u64,
    part_bytes: usize,
    buffer: Vec<u8>,
    line: Vec<u8>,
    part_lines: u64,
    all: Sha256,
    summary: Summary,
}

impl Encoder {
    /// `lines` are all records of the session, newest first, without payloads; a history that does not verify is a
    /// [`Fault`] (I23).
    pub fn new(session: &Session, lines: &[Line], part_bytes: usize) -> Result<Self, Fault> {
        let statuses = verify_history(lines, session.last, &session.facts)?;
        let expected: Result<Vec<Expected>, Fault> = lines
            .iter()
            .zip(statuses)
            .rev()
            .map(|(line, status)| {
                let chain = line.chain[..].try_into().map_err(|_| Fault(format!("record {}: its chain", line.seq)))?;
                Ok(Expected { seq: line.seq, status, chain })
            })
            .collect();
        let mut encoder = Encoder {
            expected: expected?.into_iter(),
            prev: 0,
            chain: roost_core::chain::GENESIS,
            trajectories: session.decoded()?.0.trajectories,
            mail: session.mail,
            last_mail: 0,
            part_bytes,
            buffer: Vec::new(),
            line: Vec::new(),
            part_lines: 0,
            all: Sha256::new(),
            summary: Summary::EMPTY,
        };
        session.write(&mut encoder.line)?;
        let first = encoder.take_line()?;
        debug_assert!(first.is_none(), "the first line closes no part");
        Ok(encoder)
    }

    /// The next record, oldest first, with its payloads. A part, if it did not fit into that one any more.
    pub fn record(&mut self, mut record: Record) -> Result<Option<Part>, Fault> {
        let differs = || Fault(format!("record {}: it is not the one that was verified", record.seq));
        let expected = self.expected.next().ok_or_else(differs)?;
        if (record.seq, record.prev) != (expected.seq, self.prev)
            || record.chain != expected.chain
            || roost_core::chain::link(&self.chain, &record.meta) != expected.chain
        {
            return Err(differs());
        }
        (self.prev, self.chain) = (expected.seq, expected.chain);
        record.status = expected.status;
        record.write(&mut self.line)?;
        self.summary.records += 1;
        self.take_line()
    }

    /// The trajectories, in order of number, once all records were written. The parts that are full.
    pub fn trajectories(&mut self, trajectories: &[Trajectory]) -> Result<Vec<Part>, Fault> {
        if let Some(missing) = self.expected.next() {
            return fault(format!("record {}: it is missing", missing.seq));
        }
        if trajectories.len() as u64 != u64::from(self.trajectories) {
            return fault(format!("it has {} trajectories, of {}", trajectories.len(), self.trajectories));
        }
        let mut parts = Vec::new();
        for trajectory in trajectories {
            trajectory.write(&mut self.line)?;
            self.summary.trajectories += 1;
            parts.extend(self.take_line()?);
        }
        Ok(parts)
    }

    /// The next message, in order of sequence, once the trajectories were written. As [`Encoder::record`].
    pub fn mail(&mut self, mail: &Mail) -> Result<Option<Part>, Fault> {
        if mail.seq <= std::mem::replace(&mut self.last_mail, mail.seq) {
            return fault(format!("message {}: it does not follow on the one before it", mail.seq));
        }
        mail.write(&mut self.line)?;
        self.summary.mail += 1;
        self.take_line()
    }

    /// The end: the last part.
    pub fn finish(mut self) -> Result<(Part, Summary), Fault> {
        if self.summary.trajectories != u64::from(self.trajectories) {
            return fault(format!("it has {} trajectories, of {}", self.summary.trajectories, self.trajectories));
        }
        if self.summary.mail != self.mail {
            return fault(format!("it has {} messages, of {}", self.summary.mail, self.mail));
        }
        let part = self.close_part()?;
        self.summary.sha256 = hex(&self.all.finalize());
        Ok((part, self.summary))
    }

    /// Moves the line that was written to the part, after closing that if it would become too long.
    fn take_line(&mut self) -> Result<Option<Part>, Fault> {
        if self.line.len() > MAX_PART_BYTES {
            return fault(format!("a line has {} bytes, and a dump takes {MAX_PART_BYTES}", self.line.len()));
        }
        let full = !self.buffer.is_empty() && self.buffer.len() + self.line.len() > self.part_bytes;
        let part = if full { Some(self.close_part()?) } else { None };
        self.summary.lines += 1;
        self.summary.bytes += self.line.len() as u64;
        self.part_lines += 1;
        self.all.update(&self.line);
        self.buffer.append(&mut self.line);
        Ok(part)
    }

    fn close_part(&mut self) -> Result<Part, Fault> {
        let failed = |_| Fault("it cannot be compressed".into());
        let mut compressor = Compressor::new(LEVEL).map_err(failed)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
        let data = compressor.compress(&self.buffer).map_err(failed)?;
        let part = Part {
            sha256: hex(&Sha256::digest(&data)),
            raw_bytes: self.buffer.len() as u64,
            lines: self.part_lines,
            data,
        };
        self.buffer.clear();
        self.part_lines = 0;
        Ok(part)
    }
}
