//! The format of dumps: a session's rows as zstd-compressed JSON lines in parts, and back. Pure: no I/O, no clock.
//!
//! One `session` line, then the `record` lines, oldest first, then the `trajectory` lines, then the `mail` lines. Each has
//! a part for people and the raw columns that a restore needs (base64). A line has exactly one spelling: what was read is
//! written again and must be the same, so that neither part can be changed alone and a session has one dump. Every change
//! of what a line holds, new kinds included, is a new [`SCHEMA`]: an older reader says so instead of passing over what it
//! does not know. A dump is of the lowest schema that can hold its session, so that one which was dumped before has the
//! same dump still.
//!
//! Both ways the whole history is verified (I23): the chain, and each payload against its digest.
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod lines;
mod mail;

use roost_core::error::Refusal;
use roost_core::ids::{Uid, dump_name};
use std::fmt::{self, Write as _};

pub use decode::{Decoder, Row};
pub use encode::{Encoder, Part};
pub use mail::Mail;

/// The newest version of the format; 2 has mail. A kind planned for later ones: `resource`.
pub const SCHEMA: u32 = 2;

/// A part is closed before the line that would make it longer. Unit: bytes, uncompressed.
pub const PART_BYTES: usize = 8 << 20;

/// The longest part there is: one line with the largest payloads that a server can be told to accept, and room. A reader takes
/// no memory for more, whatever a part says of itself. Unit: bytes, uncompressed.
pub const MAX_PART_BYTES: usize = 128 << 20;

/// What a session's line holds. Acknowledgements, `state` and the row's sequence are left out: they may change after
/// the seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub uid: Uid,
    pub tenant: String,
    pub session_id: String,
    pub root: Uid,
    pub parent: Option<Uid>,
    pub path: String,
    pub depth: u32,
    /// Unit: milliseconds since 1970.
    pub create_ms: i64,
    pub head: u32,
    pub head_version: u64,
    pub fence: u64,
    /// Sequence of the newest record, 0 if there is none.
    pub last: u64,
    /// `roost.store.v1.SessionFacts`.
    pub facts: Vec<u8>,
    /// `roost.store.v1.Receipt`.
    pub receipt: Vec<u8>,
    /// Messages that ended with it.
    pub mail: u64,
}

impl Session {
    /// The schema of its dump.
    pub fn schema(&self) -> u32 {
        if self.mail > 0 { 2 } else { 1 }
    }

    /// The name of the dump of its latest close.
    pub fn dump_name(&self) -> Result<String, Fault> {
        Ok(dump_name(&self.tenant, self.uid, self.decoded()?.1.close_number))
    }
}

/// A record, or the event that finished a trajectory. `None` and empty are different things, as in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub seq: u64,
    pub prev: u64,
    pub status: i32,
    pub turn: u32,
    /// `roost.store.v1.RecordMeta`.
    pub meta: Vec<u8>,
    pub chain: Vec<u8>,
    pub tokens: Option<Vec<u8>>,
    pub state: Option<Vec<u8>>,
    pub arrays: Option<Vec<u8>>,
    pub content: Option<Vec<u8>>,
    pub reward: Option<f64>,
}

/// A trajectory that was finished: the records with `after_seq < seq <= ready_seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trajectory {
    pub number: u32,
    pub ready_seq: u64,
    pub after_seq: u64,
    pub first_turn: u32,
    pub turn_count: u32,
    /// Unit: milliseconds since 1970.
    pub ready_ms: i64,
}

/// What a whole dump holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub records: u64,
    pub trajectories: u64,
    pub mail: u64,
    pub lines: u64,
    /// Of all lines, uncompressed.
    pub bytes: u64,
    /// SHA-256 over all lines, uncompressed, in hex: the same whatever version of zstd compressed them.
    pub sha256: String,
}

/// Why a session or a dump cannot be taken. It names sequences and fields, never content (I25).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Fault(refusal.message)
    }
}

impl Summary {
    /// Of nothing.
    const EMPTY: Summary = Summary { records: 0, trajectories: 0, mail: 0, lines: 0, bytes: 0, sha256: String::new() };
}

fn fault<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault(message.into()))
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}
