//! Rewinds: a commit that is built on an earlier turn (`base_turn`).
//!
//! Nothing is undone before the commit is made: until then the good turns stay. What the commit starts from is read
//! from the store for it alone, because memory holds the newest checkpoint only.

use super::Found;
use super::reload::{LoadedSession, Purpose, Wanted, Why};
use super::tree::{Line, Resident};
use super::{Engine, Pending};
use crate::chain;
use crate::checkpoint::Checkpoint;
use crate::error::{Reason, Refusal};
use crate::gen_store::RecordMeta;
use crate::gen_v1::RecordStatus;
use crate::ids::Uid;
use crate::journal::Seq;
use std::collections::BTreeMap;

/// The line as it was after turn `turn`.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) turn: u32,
    /// The session's last record when it was read: with another one, the line is another.
    pub(crate) last: Seq,
    pub(crate) checkpoint: Checkpoint,
    /// The client's state, and the record that set it.
    pub(crate) state: Option<(Seq, Vec<u8>)>,
    /// COMMITTED records after it.
    pub(crate) later: Vec<Seq>,
    /// Tries at the turn after it so far, and at each of those behind that.
    pub(crate) attempts: u32,
    pub(crate) attempts_ahead: Vec<u32>,
}

impl Base {
    pub(crate) fn tokens(&self) -> u64 {
        self.checkpoint.len()
    }

    pub(crate) fn of(loaded: LoadedSession, metas: &[RecordMeta], turn: u32) -> Result<Self, Refusal> {
        let committed = |status: i32| status == RecordStatus::Committed as i32;
        let lines = loaded.lines.iter().zip(metas);
        let later = lines.clone().filter(|(l, m)| committed(l.status) && m.turn > turn).map(|(l, _)| l.seq).collect();
        let mut tries: BTreeMap<u32, u32> = BTreeMap::new();
        for (_, meta) in lines.clone().filter(|(l, m)| l.status != chain::FINISHED && m.turn > turn) {
            let most = tries.entry(meta.turn).or_default();
            *most = meta.attempt.max(*most);
        }
        let attempts = tries.remove(&(turn + 1)).unwrap_or(0);
        let furthest = tries.last_key_value().map_or(turn + 1, |(t, _)| *t);
        let attempts_ahead = (turn + 2..=furthest).map(|t| tries.get(&t).copied().unwrap_or(0)).collect();
        let checkpoint = Checkpoint::fold(&loaded.lines, metas, turn);
        verify_state(&loaded, metas)?;
        Ok(Base { turn, last: loaded.row.last, checkpoint, state: loaded.state, later, attempts, attempts_ahead })
    }
}

/// Whether the client's state that was read is what the record says that set it.
pub(crate) fn verify_state(loaded: &LoadedSession, metas: &[RecordMeta]) -> Result<(), Refusal> {
    let Some((seq, state)) = &loaded.state else { return Ok(()) };
    let setter = loaded.lines.iter().position(|l| l.seq == *seq).map(|at| &metas[at].state_digest);
    if setter != Some(&chain::digest(&[state])) {
        return Err(Refusal::new(Reason::SessionCorrupt, "its state does not match its digest"));
    }
    Ok(())
}

impl Engine {
    /// Whether a commit may be built on turn `base`. `None`: on the head, which is no rewind.
    pub(crate) fn check_rewind(
        &self,
        line: &Line,
        resident: &Resident,
        base: Option<u32>,
    ) -> Result<Option<u32>, Refusal> {
        let Some(base) = base.filter(|b| *b != line.head) else { return Ok(None) };
        let first = resident.trajectory_turns;
        let back = u64::from(line.head.saturating_sub(base));
        let max_rewind = self.limits.max_rewind();
        let message = if base > line.head {
            format!("base_turn {base} is above the turn count {}", line.head)
        } else if base < first {
            format!("base_turn {base} is before the active trajectory, which starts after turn {first}")
        } else if back > max_rewind {
            format!("base_turn {base} goes back by {back} turns; max_rewind is {max_rewind}")
        } else {
            return Ok(Some(base));
        };
        Err(Refusal::new(Reason::RewindRefused, message)
            .with("session_id", &line.session_id)
            .with("base_turn", base)
            .with("turn_count", line.head)
            .with("trajectory_turns", first)
            .with("back", back)
            .with("max_rewind", max_rewind))
    }

    /// Has what lies below a rewind read; the call runs again with it.
    pub(crate) fn ask_base(&self, call: Pending, uid: Uid, turn: u32, after: Seq) {
        let purpose = Purpose::Records { call: Box::new(call), why: Why::Base(turn) };
        let wanted = Wanted { tokens: true, state_turn: Some(turn), ..Wanted::default() };
        self.ask_session(after, purpose, uid, wanted);
    }
}

impl Pending {
    /// The base that was read for it, if the line is still the one it was read of.
    pub(crate) fn base(&self, turn: u32, last: Seq) -> Option<&std::sync::Arc<Base>> {
        match &self.found {
            Some(Found::Base(base)) if base.turn == turn && base.last == last => Some(base),
            _ => None,
        }
    }
}
