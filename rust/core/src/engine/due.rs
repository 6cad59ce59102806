//! Trajectories that finish by themselves (`SetReward.finish_after`): when to look for them in the store.
//!
//! The store has an index of the sessions that have one, by time; memory keeps only when the next of them is due. So a
//! pending finish costs no memory, survives a restart, and neither pins its session nor waits for it to be loaded.

use super::reload::{DueSession, Effect, Purpose};
use super::{Call, Engine, Moment, Work};
use crate::journal::Seq;

/// Rows that one look takes; what is left follows at once.
const AT_ONCE: usize = 256;
/// After a look that found something, another one follows within this time: what could not be finished then (its turn
/// ran on, its session could not be read) is looked at again. Unit: milliseconds.
const AGAIN_MS: i64 = 30_000;

#[derive(Debug, Default)]
pub(crate) struct Due {
    /// Wall-clock milliseconds at which to look next; at 0, the start, at once.
    next_ms: i64,
    /// A look is under way.
    looking: bool,
    /// Where the next look of this series goes on.
    after: Option<DueSession>,
    /// See `Engine::ready_sequence`. Who follows an export looks again when it grows.
    pub(crate) ready_seq: Seq,
}

impl Engine {
    /// A trajectory will be due at this wall-clock millisecond. Its entry is in the journal.
    pub(crate) fn due_at(&self, wall_ms: i64) {
        let mut due = self.due.lock();
        due.next_ms = due.next_ms.min(wall_ms);
    }

    /// A trajectory became READY by the entry `seq`.
    pub(crate) fn ready(&self, seq: Seq) {
        let mut due = self.due.lock();
        due.ready_seq = due.ready_seq.max(seq);
    }

    /// The largest sequence of a trajectory that became READY while this server has run; 0: none has.
    pub fn ready_sequence(&self) -> Seq {
        self.due.lock().ready_seq
    }

    /// Asks the store for what is due by now, unless nothing is.
    pub(crate) fn look_for_due(&self, now: &Moment) {
        let after = {
            let mut due = self.due.lock();
            if due.looking || due.next_ms > now.wall_ms {
                return;
            }
            due.looking = true;
            due.next_ms = i64::MAX;
            due.after.clone()
        };
        // Whoever has said a time has its entry in the journal: the store shows it once that is durable.
        self.ask(self.journal.last_seq(), Purpose::Due, |id| Effect::Due {
            id,
            until_ms: now.wall_ms,
            after,
            limit: AT_ONCE,
        });
    }

    /// The answer to a Due: sessions in the order of their times, and when the next one after them is due.
    pub fn due_found(&self, id: u64, found: Vec<DueSession>, next_ms: Option<i64>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Due) = self.purpose(id) else { return };
        let mut work = Work::default();
        {
            let mut due = self.due.lock();
            due.looking = false;
            let again = if found.is_empty() && due.after.is_none() { i64::MAX } else { now.wall_ms + AGAIN_MS };
            due.next_ms = due.next_ms.min(next_ms.unwrap_or(i64::MAX)).min(again);
            due.after = if found.len() < AT_ONCE { None } else { found.last().cloned() };
            if due.after.is_some() {
                due.next_ms = now.wall_ms;
            }
        }
        for session in found {
            let tenant = self.tenant(&session.tenant);
            work.calls.push_back(self.pending(0, tenant, 0, Call::FinishDue(session.session_id), &now));
        }
        self.finish(&mut work, &mut now);
    }

    /// The look must not be made now: it is made again at the next tick.
    pub(crate) fn look_again(&self) {
        let mut due = self.due.lock();
        (due.looking, due.next_ms) = (false, 0);
    }

    /// The look could not be made: it is made again a little later.
    pub(crate) fn due_failed(&self, now: &Moment) {
        let mut due = self.due.lock();
        due.looking = false;
        due.next_ms = due.next_ms.min(now.wall_ms + 1_000);
    }
}
