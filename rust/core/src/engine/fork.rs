//! Forks: sessions that begin with a copy of another's history (OpenSession's `fork_from`).
//!
//! The source is read once, for the one call: its chain is verified, and its live line up to the turn is numbered anew.
//! What comes of that is journaled in the entry that makes the session; payloads pass through nobody's hands, the store
//! copies them. From before the read until that entry is durable the call shares the claim of the source's tree: no purge
//! takes what is to be copied, whatever becomes of the source meanwhile. Then nothing is shared any more.

use super::ended::{is_purging, is_restoring, restoring};
use super::reload::{LoadedSession, Located, Purpose, Wanted, verify_line};
use super::requests::{Fork, Open};
use super::rewind::verify_state;
use super::tree::Line;
use super::{Call, Engine, Found, Pending, Work, not_found};
use crate::chain;
use crate::checkpoint::Checkpoint;
use crate::error::{Reason, Refusal};
use crate::gen_store::{EndedBy, RecordMeta};
use crate::gen_v1::RecordStatus;
use crate::ids::Uid;
use crate::journal::{Appending, Op, RecordCopy, Seq};
use prost::Message;
use std::sync::Arc;

/// The line of a session up to a turn, as another begins with it.
#[derive(Clone, Debug)]
pub(crate) struct Forked {
    pub(crate) turns: u32,
    /// One a turn, in order; sequences and session are given when they are appended.
    copies: Vec<RecordCopy>,
    checkpoint: Checkpoint,
    /// The client's state, and the record of the source that set it.
    state: Option<(Seq, Vec<u8>)>,
}

impl Forked {
    /// What a session begins with that is a fork of the one read; `limit`: how many bytes may be copied.
    fn of(mut loaded: LoadedSession, fork: &Fork, limit: u64) -> Result<Self, Refusal> {
        let (facts, metas) = verify_line(&loaded)?;
        verify_state(&loaded, &metas)?;
        let (id, head, size) = (&fork.session_id, loaded.row.head, loaded.size);
        let turns = if fork.turn == 0 { head } else { fork.turn };
        if turns > head {
            let message = format!("session {id:?} has {head} turns, and no turn {turns}");
            return Err(Refusal::new(Reason::TurnNotFound, message).with("turn", turns).with("turn_count", head));
        }
        if size > limit {
            let message = format!("{turns} turns of session {id:?} are {size} bytes; max_fork_bytes is {limit}");
            let refusal = Refusal::new(Reason::TooLarge, message).with("field", "fork_from").with("turn", turns);
            return Err(refusal.with("size", size).with("limit", limit));
        }
        let copied =
            |line: &chain::Line, meta: &RecordMeta| line.status == RecordStatus::Committed as i32 && meta.turn <= turns;
        let lines = std::mem::take(&mut loaded.lines).into_iter().zip(metas);
        let (lines, metas): (Vec<_>, Vec<_>) =
            lines.filter(|(l, m)| copied(l, m)).map(|(l, m)| (l, renumbered(m))).unzip();
        let checkpoint = Checkpoint::fold(&lines, &metas, turns);
        if turns == head && checkpoint.len() != facts.checkpoint_tokens {
            let what = "its checkpoint is not as long as its records make it";
            return Err(Refusal::new(Reason::SessionCorrupt, what));
        }
        let mut link = chain::GENESIS;
        let copies = lines.iter().zip(&metas).rev().map(|(line, meta)| {
            let meta = meta.encode_to_vec();
            link = chain::link(&link, &meta);
            let (turn, source) = (line.turn, line.seq);
            RecordCopy { seq: 0, session: Uid(0), prev: 0, turn, meta, chain: link, source }
        });
        Ok(Forked { turns, copies: copies.collect(), checkpoint, state: loaded.state })
    }

    /// Length of the checkpoint.
    pub(crate) fn tokens(&self) -> u64 {
        self.checkpoint.len()
    }

    /// Begins the session of a line that was just made, and is resident, with this: into its first entry.
    pub(crate) fn put(self, appending: &mut Appending<'_>, line: &mut Line, ops: &mut Vec<Op>) {
        let Some(resident) = line.resident.as_mut() else { unreachable!("a session is made in memory") };
        (line.head, line.head_version, line.fence) = (self.turns, self.turns.into(), self.turns.into());
        let state_from = self.state.as_ref().map(|(source, _)| *source);
        ops.reserve(self.copies.len() + 2);
        for mut copy in self.copies {
            copy.seq = if line.last == 0 { appending.seq } else { appending.another() };
            copy.prev = std::mem::replace(&mut line.last, copy.seq);
            copy.session = line.uid;
            resident.chain = copy.chain;
            if state_from == Some(copy.source) {
                resident.state_seq = copy.seq;
            }
            ops.push(Op::Copy(Box::new(copy)));
        }
        resident.head_seq = line.last;
        resident.checkpoint_tokens = self.checkpoint.len();
        resident.checkpoint = (!self.checkpoint.is_empty()).then(|| Box::new(self.checkpoint));
        resident.state = self.state.map(|(_, state)| state.into_boxed_slice());
    }
}

/// The meta of a record as its copy has it: what the turn was stays; what names grants, requests and trajectories of its
/// session goes. So the copy's turns are those of a session that never did anything else, one grant and one commit each.
fn renumbered(meta: RecordMeta) -> RecordMeta {
    RecordMeta {
        attempt: 1,
        fence: meta.turn.into(),
        head_version: meta.turn.into(),
        nonce: Vec::new(),
        begin_request: None,
        end_request: None,
        then: 0,
        next_fence: 0,
        next_refused: String::new(),
        ended_by: EndedBy::Commit as i32,
        base_turn: None,
        trajectory: 1,
        trajectory_base: 0,
        finishes: false,
        ..meta
    }
}

impl Engine {
    /// Has what an OpenSession forks from read; the call runs again with it.
    pub(crate) fn ask_fork(&self, call: Pending, work: &mut Work) {
        let Call::Open(Open { fork: Some(fork), validate_only, .. }) = &call.call else { return };
        let (id, turn, made) = (fork.session_id.clone(), fork.turn, !validate_only);
        let (call, uid, root, after) = match self.locate(call, &id, work) {
            Located::Gone => return,
            Located::Absent(call) => return self.refuse_call(call, not_found(&id), work),
            Located::Ended(call, past) => (call, past.uid, past.root, 0),
            Located::At(call, tree, index) => {
                let Some(state) = Self::still_at(&tree, index, &id) else {
                    return work.calls.push_back(call);
                };
                let Some(uid) = state.line(index).filter(|l| l.born).map(|l| l.uid) else {
                    drop(state);
                    return self.refuse_call(call, not_found(&id), work);
                };
                (call, uid, tree.root, state.last_seq)
            }
        };
        // What is copied must still be there when its copy is stored.
        let call = if made { self.share(call, root) } else { Some(call) };
        let Some(call) = call else { return };
        let state_turn = Some(if turn == 0 { u32::MAX } else { turn });
        let wanted = Wanted { tokens: true, provisional: false, state_turn, size: true };
        self.ask_session(after, Purpose::Fork { call: Box::new(call) }, uid, wanted);
    }

    /// What an OpenSession forks from was read.
    pub(crate) fn fork_loaded(&self, mut call: Pending, loaded: Option<LoadedSession>, work: &mut Work) {
        let Call::Open(Open { fork: Some(fork), .. }) = &call.call else { return };
        let id = &fork.session_id;
        let forked = loaded.ok_or_else(|| not_found(id)).and_then(|loaded| {
            let cleanup = loaded.row.cleanup.as_deref();
            if is_restoring(cleanup) {
                return Err(restoring(id));
            }
            if is_purging(cleanup) {
                let message = format!("the content of session {id:?} is deleted");
                return Err(Refusal::new(Reason::SessionPurged, message));
            }
            Forked::of(loaded, fork, self.limits.max_fork_bytes())
        });
        match forked {
            Err(refusal) => {
                let refusal = refusal.with("session_id", id);
                self.refuse_call(call, refusal, work);
            }
            Ok(forked) => {
                call.found = Some(Found::Forked(Arc::new(forked)));
                work.calls.push_back(call);
            }
        }
    }
}

impl Pending {
    /// What was read for it to begin a session with.
    pub(crate) fn forked(&self) -> Option<&Arc<Forked>> {
        match &self.found {
            Some(Found::Forked(forked)) => Some(forked),
            _ => None,
        }
    }
}
