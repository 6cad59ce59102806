//! The two calls that own the calendar: [`Index::evict`] takes the oldest entry out, [`Index::maintain`] does ahead of
//! time, off the path of those who wait for room, what evict would have to do first.
//!
//! Both unlink an entry, judge it by one look at its state (and, in this order, at its last use), and file it again or end
//! it. An entry that nobody links is nobody's but the lock holder's to link.

use super::calendar::Calendar;
use super::word::State;
use super::{Handle, Index};
use crate::sync::{MutexGuard, Ordering};

/// What [`Index::evict`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    /// This entry is out: its handle is stale, its count and bytes are given back.
    Victim { key: u128, aux: u32, handle: Handle, bytes: u64, last_tick: u32 },
    /// Every entry was found pinned, in this call or in those of the same tick right before it that ran out of budget.
    /// What was unpinned after they had seen it is found by the next call. Repeating until this comes terminates.
    Nothing,
    /// Looked at `budget` entries and must go on in another call.
    BudgetExhausted,
}

/// What [`Index::maintain`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maintained {
    /// Entries looked at.
    pub steps: usize,
    /// The sweep reached the present; the next call begins another.
    pub done: bool,
}

/// What an entry that came up turned out to be.
enum Seen {
    /// Dead, and no longer linked.
    Gone,
    Pinned,
    /// Used at this tick, after it was filed.
    Used(u32),
    /// Not used since: its state, and its last use.
    Idle(State, u32),
}

impl Index {
    fn calendar(&self) -> MutexGuard<'_, Calendar> {
        self.calendar.lock().expect("a panic inside the calendar left it half done")
    }

    /// Ends the entry whose last use lies furthest back (G1) and that is not pinned (G2), looking at no more than
    /// `budget` entries (G4). After many uses most entries have to be filed anew before the oldest is known; calling
    /// [`Self::maintain`] once a tick keeps that off this path.
    pub fn evict(&self, budget: usize, tick: u32) -> Evicted {
        let mut calendar = self.calendar();
        calendar.advance(&self.slab, tick);
        let mut left = budget;
        if !self.drain(&mut calendar, &mut left) {
            return Evicted::BudgetExhausted;
        }
        loop {
            if !calendar.has_candidates() && calendar.round_is_over(&self.slab) {
                return Evicted::Nothing;
            }
            if left == 0 {
                return Evicted::BudgetExhausted;
            }
            left -= 1;
            let Some((index, due)) = calendar.pop_oldest(&self.slab) else { continue };
            let slot = self.slab.slot(index);
            match self.look(index, due, calendar.now) {
                Seen::Gone => {}
                Seen::Pinned => calendar.hold(&self.slab, index),
                Seen::Used(last) => calendar.file(&self.slab, index, last),
                Seen::Idle(state, last_tick) => {
                    // Acquire: the entry's last users are done. Release: as in `remove`. Fails if it was pinned (or
                    // removed, or reused, or pinned and unpinned: `seq`) since we looked.
                    let dead = state.dead().unlinked();
                    if slot.state.compare_exchange(state.0, dead.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                        calendar.file(&self.slab, index, due);
                        continue;
                    }
                    let aux = slot.aux.load(Ordering::Relaxed);
                    let handle = Handle::new(state.generation(), index);
                    calendar.victim_found();
                    // Unseating and freeing need no lock, but a victim half buried is no use to who waits for room.
                    let (key, bytes) = self.bury(slot, index);
                    return Evicted::Victim { key, aux, handle, bytes, last_tick };
                }
            }
        }
    }

    /// The off-path share of eviction: empties the inbox and files anew what was used since, oldest first, `budget`
    /// entries a call. Called once a tick with `budget >= len / horizon`, it bounds what an evict may find stale.
    pub fn maintain(&self, budget: usize, tick: u32) -> Maintained {
        let mut calendar = self.calendar();
        calendar.advance(&self.slab, tick);
        let mut left = budget;
        let mut done = false;
        if self.drain(&mut calendar, &mut left) {
            while left > 0 {
                let Some((index, due)) = calendar.pop_sweep(&self.slab) else {
                    done = true;
                    break;
                };
                left -= 1;
                let tick = match self.look(index, due, calendar.now) {
                    Seen::Gone => continue,
                    Seen::Pinned => calendar.now,
                    Seen::Used(last) => last,
                    Seen::Idle(..) => due,
                };
                calendar.file(&self.slab, index, tick);
            }
        }
        Maintained { steps: budget - left, done }
    }

    /// Files what was inserted before the call; `false` if the budget ended first.
    fn drain(&self, calendar: &mut Calendar, left: &mut usize) -> bool {
        let mut taken = false;
        while calendar.has_pending(&self.slab, &mut taken) {
            if *left == 0 {
                return false;
            }
            let Some(index) = calendar.pop_pending(&self.slab) else { break };
            *left -= 1;
            match self.look(index, 0, calendar.now) {
                Seen::Gone => {}
                Seen::Pinned => {
                    // Filed where an unpinned one would be: it is in use now, hence not before then.
                    let last = self.slab.slot(index).last.load(Ordering::Relaxed);
                    calendar.file(&self.slab, index, last);
                }
                Seen::Used(last) | Seen::Idle(_, last) => calendar.file(&self.slab, index, last),
            }
        }
        true
    }

    /// Judges an entry that the calendar has just unlinked, as of one load of its state.
    fn look(&self, index: u32, due: u32, now: u32) -> Seen {
        let slot = self.slab.slot(index);
        // Acquire, and before `last`: a state without pins brings the `last` that the last unpin wrote.
        let mut state = State(slot.state.load(Ordering::Acquire));
        while !state.is_live() {
            // Release: `next` is no longer ours once an insert sees LINKED gone. Fails if an insert was faster; the slot
            // is then an entry again, and ours to file.
            match slot.state.compare_exchange(state.0, state.unlinked().0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Seen::Gone,
                Err(seen) => state = State(seen),
            }
        }
        debug_assert!(state.is_linked());
        if state.pins() > 0 {
            // In use now, and filed as such: the unpin may bring an older tick, from before this call.
            slot.touch(now);
            return Seen::Pinned;
        }
        // Relaxed: ordered by the state's Acquire.
        match slot.last.load(Ordering::Relaxed) {
            last if last > due => Seen::Used(last),
            last => Seen::Idle(state, last),
        }
    }
}
