//! The sweep: trees in which nothing has happened for as long as their root allows are closed, whole.
//!
//! The store has an index of open roots by a time before which they are not stale. A use moves nothing there: the time
//! is a lower bound, looked at when it comes, and set anew by what the tree itself then says. So an idle tree costs
//! nothing, a busy one a write each time-out, and a sweep what is due.

use super::reload::{Effect, Located, Purpose, StaleTree, Wanted};
use super::tree::{Line, TreeState};
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
    /// One was asked for.
    forced: bool,
    /// Where the next look of this series goes on.
    after: Option<StaleTree>,
}

impl TreeState {
    /// Whether a turn of it runs, or waits.
    fn is_busy(&self) -> bool {
        let begins = |l: &Line| l.loading.as_ref().is_some_and(|l| l.granted.is_some());
        self.iter().any(|(_, l)| l.running().is_some() || l.waiter.is_some() || begins(l))
    }
}

impl Engine {
    /// Asks the store for trees that may be stale, once an interval.
    pub(crate) fn look_for_stale(&self, now: &Moment) {
        if self.admit_change().is_err() {
            return;
        }
        let after = {
            let mut stale = self.stale.lock();
            // With an interval of 0 it is looked when it is asked for, and to the end of that series.
            let never = self.limits.sweep_interval_ms() == 0 && !stale.forced && stale.after.is_none();
            if stale.looking || never || stale.next_ms > now.mono_ms {
                return;
            }
            stale.forced = false;
            stale.looking = true;
            stale.after.clone()
        };
        let until_ms = now.mono_ms;
        self.ask(0, Purpose::Stale, |id| Effect::Stale { id, until_ms, after, limit: AT_ONCE });
    }

    /// What a tree in memory says of its staleness: service time of its last activity (`None`: a turn runs or waits now),
    /// idle time that it allows (-1: its root's facts tell), open sessions. `None` if it is not in memory.
    pub fn tree_activity(&self, tenant: &str, root_session_id: &str) -> Option<(Option<u64>, i64, u32)> {
        let (tree, index) = self.tenant(tenant).directory.get(root_session_id)?;
        let state = Self::still_at(&tree, index, root_session_id)?;
        let active = (!state.is_busy()).then_some(state.active_ms);
        Some((active, state.stale_ms, state.open))
    }

    /// Has the next sweep begin at once.
    pub fn sweep_now(&self) {
        let mut stale = self.stale.lock();
        (stale.next_ms, stale.forced) = (0, true);
    }

    /// The answer to a Stale: trees in the order of their times. A page that is not full is the last of its series.
    pub fn stale_found(&self, id: u64, found: Vec<StaleTree>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Stale) = self.purpose(id) else { return };
        let mut work = Work::default();
        {
            let mut stale = self.stale.lock();
            stale.looking = false;
            stale.after = if found.len() < AT_ONCE { None } else { found.last().cloned() };
            let pause_ms = if stale.after.is_some() { 0 } else { self.limits.sweep_interval_ms() };
            stale.next_ms = now.mono_ms + pause_ms;
        }
        for tree in found {
            let tenant = self.tenant(&tree.tenant);
            work.calls.push_back(self.pending(0, tenant, 0, Call::Sweep(tree.session_id), &now));
        }
        self.finish(&mut work, &mut now);
    }

    /// The interval is another: the next look comes at once, and those after it in the new interval.
    pub(crate) fn sweep_sooner(&self) {
        self.stale.lock().next_ms = 0;
    }

    /// The look must not be made now: it is made again at the next tick.
    pub(crate) fn look_for_stale_again(&self) {
        let mut stale = self.stale.lock();
        (stale.looking, stale.next_ms, stale.forced) = (false, 0, true);
    }

    /// The look could not be made: it is made again an interval later.
    pub(crate) fn stale_failed(&self, now: &Moment) {
        let mut stale = self.stale.lock();
        (stale.looking, stale.next_ms) = (false, now.mono_ms + self.limits.sweep_interval_ms());
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
        if state.is_busy() {
            state.touch(now);
        }
        let due = state.stale_due();
        if due == 0 || due > now.mono_ms {
            let (root, stale_ms) = (tree.root, state.stale_ms);
            state.last_seq =
                self.journal.append().push(&tree, vec![Op::Stale { root, stale_ms, due }], Vec::new(), now.mono_ms);
            return;
        }
        count(&self.counters.trees_swept);
        self.close_tree(&tree, &mut state, index, v1::CloseReason::Stale, None, false, work, now);
    }
}
