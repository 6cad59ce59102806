//! The hash chain of a session's history (I23), and the digests that tie payloads to it.
//!
//! `chain(n) = BLAKE3(chain(n-1) | meta(n))`, where meta holds the BLAKE3 digests of the payload columns: the chain
//! verifies without reading content, and content verifies against meta when it is read. Statuses are outside it.

use crate::error::{Reason, Refusal};
use crate::gen_store::{EndedBy, RecordMeta};
use crate::gen_v1::{RecordStatus, TurnOutcome};
use prost::Message;

/// The chain value before the first record.
pub const GENESIS: [u8; 32] = [0; 32];

/// The next chain value.
pub fn link(prev: &[u8; 32], meta: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(prev).update(meta).finalize().as_bytes()
}

/// The digest of a payload column; empty for an empty one.
pub fn digest(parts: &[&[u8]]) -> Vec<u8> {
    if parts.iter().all(|p| p.is_empty()) {
        return Vec::new();
    }
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().as_bytes().to_vec()
}

/// One record as a reload reads it, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub seq: u64,
    pub prev: u64,
    pub status: i32,
    pub turn: u32,
    pub meta: Vec<u8>,
    pub chain: Vec<u8>,
    pub tokens: Option<Vec<u8>>,
}

/// Verifies links and chain from the newest record to the first, and the tokens that were read; returns the decoded
/// metas in the same order.
pub fn verify(lines: &[Line], last: u64, head_chain: &[u8]) -> Result<Vec<RecordMeta>, Refusal> {
    let corrupt = |seq: u64, what: &str| {
        Refusal::new(Reason::SessionCorrupt, format!("record {seq}: {what}")).with("record", seq)
    };
    if lines.is_empty() && !head_chain.is_empty() {
        return Err(corrupt(last, "it is missing"));
    }
    let mut expect_seq = last;
    let mut expect_chain = head_chain;
    let mut metas = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        if line.seq != expect_seq || line.chain != expect_chain {
            return Err(corrupt(line.seq, "it is not the one that the record after it names"));
        }
        let before = lines.get(i + 1).map_or(&GENESIS[..], |l| &l.chain[..]);
        let before: &[u8; 32] = before.try_into().map_err(|_| corrupt(line.prev, "its chain value is not 32 bytes"))?;
        if link(before, &line.meta) != expect_chain {
            return Err(corrupt(line.seq, "its hash chain does not verify"));
        }
        let meta = RecordMeta::decode(&line.meta[..]).map_err(|_| corrupt(line.seq, "its metadata does not decode"))?;
        if let Some(tokens) = &line.tokens
            && digest(&[tokens]) != meta.tokens_digest
        {
            return Err(corrupt(line.seq, "its tokens do not match their digest"));
        }
        metas.push(meta);
        expect_seq = line.prev;
        expect_chain = lines.get(i + 1).map_or(&[], |l| &l.chain[..]);
    }
    if expect_seq != 0 {
        return Err(corrupt(expect_seq, "it is missing"));
    }
    Ok(metas)
}

/// The status in the store of an event that is no record: a trajectory was finished.
pub const FINISHED: i32 = 5;

/// What ended the turn of a record.
pub fn ended_by(meta: &RecordMeta) -> EndedBy {
    match meta.ended_by() {
        EndedBy::Unspecified => match TurnOutcome::try_from(meta.outcome) {
            Ok(TurnOutcome::Committed | TurnOutcome::Completed) => EndedBy::Commit,
            Ok(TurnOutcome::Aborted) => EndedBy::Abort,
            _ => EndedBy::Expiry,
        },
        said => said,
    }
}

/// The statuses that follow from the events alone, newest first, as of the newest: a commit is COMMITTED until a later
/// one rewinds past it. Of other records the events do not tell everything (a close aborts a provisional): theirs are
/// those of `lines`. An error where the turns of the live line are not 1..n (I4).
pub fn statuses(lines: &[Line], metas: &[RecordMeta]) -> Result<Vec<i32>, Refusal> {
    let mut found: Vec<i32> = lines.iter().map(|l| l.status).collect();
    let mut live: Vec<usize> = Vec::new();
    for (at, meta) in metas.iter().enumerate().rev() {
        if ended_by(meta) != EndedBy::Commit {
            continue;
        }
        let base = meta.base_turn.unwrap_or(live.len() as u32) as usize;
        if base > live.len() || meta.turn as usize != base + 1 {
            let (seq, turn) = (lines[at].seq, meta.turn);
            let message = format!("record {seq}: turn {turn} does not follow {} turns", live.len());
            return Err(Refusal::new(Reason::SessionCorrupt, message).with("record", seq));
        }
        for superseded in live.drain(base..) {
            found[superseded] = RecordStatus::Superseded as i32;
        }
        found[at] = RecordStatus::Committed as i32;
        live.push(at);
    }
    Ok(found)
}
