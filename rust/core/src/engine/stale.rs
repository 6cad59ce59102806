//! The sweep: trees in which nothing has happened for as long as their root allows are closed, whole.
//!
//! The store has an index of open roots by a time before which they are not stale. A use moves nothing there: the time
//! is a lower bound, looked at when it comes, and set anew by what the tree itself then says. So an idle tree costs
//! nothing, a busy one a write each time-out, and a sweep what is due.

use super::reload::{Effect, Located, Purpose, StaleTree, Wanted};
use super::tree::Line;
use super::{Call, Engine, Moment, Pending, Work, count};
use crate::gen_v1 as v1;
use crate::journal::Op;

/// Trees that one look takes; what is left follows at once.
const AT_ONCE: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    /// Service time at which to look next; at 0, the start, at once.
    next_ms: u64,
    /// A look is under way.
    looking: bool,
    /// Where the next look of this series goes on.
    after: Option<StaleTree>,
}

impl Engine {
    /// Asks the store for trees that may be stale, once an interval.
    pub(crate) fn look_for_stale(&self, now: &Moment) {
        if self.limits.sweep_interval_ms == 0 || self.admit_change().is_err() {
            return;
        }
        let after = {
            let mut stale = self.stale.lock();
            if stale.looking || stale.next_ms > now.mono_ms {
                return;
            }
            stale.looking = true;
            stale.after.clone()
        };
        let until_ms = now.mono_ms;
        self.ask(0, Purpose::Stale, |id| Effect::Stale { id, until_ms, after, limit: AT_ONCE });
    }

    /// Has the next sweep begin at once.
    pub fn sweep_now(&self) {
        self.stale.lock().next_ms = 0;
    }

    /// The answer to a Stale: trees in the order of their times, and when the next one after them is due.
    pub fn stale_found(&self, id: u64, found: Vec<StaleTree>, next_ms: Option<u64>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Stale) = self.purpose(id) else { return };
        let mut work = Work::default();
        {
            let mut stale = self.stale.lock();
            stale.looking = false;
            stale.after = if found.len() < AT_ONCE { None } else { found.last().cloned() };
            stale.next_ms = match (&stale.after, next_ms) {
                (Some(_), _) => now.mono_ms,
                (None, _) => now.mono_ms + self.limits.sweep_interval_ms,
            };
        }
        for tree in found {
            let tenant = self.tenant(&tree.tenant);
            work.calls.push_back(self.pending(0, tenant, 0, Call::Sweep(tree.session_id), &now));
        }
        self.finish(&mut work, &mut now);
    }

    /// The look must not be made now: it is made again at the next tick.
    pub(crate) fn look_for_stale_again(&self) {
        let mut stale = self.stale.lock();
        (stale.looking, stale.next_ms) = (false, 0);
    }

    /// The look could not be made: it is made again an interval later.
    pub(crate) fn stale_failed(&self, now: &Moment) {
        let mut stale = self.stale.lock();
        (stale.looking, stale.next_ms) = (false, now.mono_ms + self.limits.sweep_interval_ms);
    }

    /// Closes the tree of this root if it is stale; else says in the store before when it is not.
    pub(crate) fn sweep(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let id = call.call.session_id().to_owned();
        let Located::At(call, tree, index) = self.locate(call, &id, work) else { return };
        let Some(mut state) = Self::still_at(&tree, index, &id) else {
            return work.calls.push_back(call);
        };
        let Some(line) = state.line(index).filter(|l| l.is_open() && l.depth == 0) else { return };
        if state.stale_ms < 0 {
            let Some(resident) = &line.resident else {
                return self.load(call, &tree, &mut state, index, Wanted::default());
            };
            state.stale_ms = resident.stale_timeout_ms;
        }
        let begins = |l: &Line| l.loading.as_ref().is_some_and(|l| l.granted.is_some());
        let busy = state.iter().any(|(_, l)| l.running().is_some() || l.waiter.is_some() || begins(l));
        if busy {
            state.touch(now);
        }
        let due = state.stale_due();
        if due == 0 || due > now.mono_ms {
            let root = tree.root;
            state.last_seq = self.journal.append().push(&tree, vec![Op::Stale { root, due }], Vec::new(), now.mono_ms);
            return;
        }
        count(&self.counters.trees_swept);
        self.close_tree(&tree, &mut state, index, v1::CloseReason::Stale, None, false, work, now);
    }
}
