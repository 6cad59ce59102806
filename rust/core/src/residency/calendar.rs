//! The order of eviction: a ring of lists, one a tick, that only the holder of the lock touches.
//!
//! Invariant: every linked entry is *filed at or before its last use* (being pinned is use), or waits in the inbox or
//! in `pending`. Hence whatever is examined first is at least as old as anything filed later, and a use need not move
//! anything: an entry found to have been used since it was filed is filed again then ("lazy promotion").
//!
//! A ring of H lists stands for the ticks `cursor .. cursor + H`; what was used later than that waits in one list, `far`,
//! filed at the earliest of those uses. A cursor that moves back lets some lists be visited early. Both only cost a
//! second look, never the order.

use super::slab::Slab;
use crate::sync::Ordering;

#[derive(Debug)]
pub(super) struct Calendar {
    /// Link of each list's first slot; a power of two of them.
    heads: Box<[u32]>,
    filled: Bitmap,
    /// No list of the ring is older than this tick.
    cursor: u32,
    /// What lies beyond the ring, and the earliest tick in it. Lists are (first, last) links, so that they can be joined.
    far: (u32, u32),
    far_due: u32,
    /// The latest tick that any call on the calendar brought.
    pub(super) now: u32,
    /// Taken from the inbox, not yet filed.
    pending: u32,
    /// Found pinned by evict in this round; out of the way until the round or the tick ends. Without it a list full of
    /// pinned entries would hide the one behind them from every budgeted call.
    held: (u32, u32),
    held_at: u32,
    /// A victim was returned in this round, after which the caller did what it liked: what is held may be unpinned by
    /// now, so the round's end proves nothing.
    victim_in_round: bool,
    /// A list that `maintain` is working through, all filed at `sweep_due`, and where it goes on.
    sweep: u32,
    sweep_due: u32,
    sweep_next: u32,
}

impl Calendar {
    pub(super) fn new(horizon: u32) -> Self {
        let lists = (horizon.clamp(2, 1 << 24) as usize).next_power_of_two();
        Self {
            heads: vec![0; lists].into_boxed_slice(),
            filled: Bitmap::new(lists),
            cursor: 0,
            far: (0, 0),
            far_due: u32::MAX,
            now: 0,
            pending: 0,
            held: (0, 0),
            held_at: 0,
            victim_in_round: false,
            sweep: 0,
            sweep_due: 0,
            sweep_next: 0,
        }
    }

    fn place(&self, tick: u32) -> usize {
        tick as usize & (self.heads.len() - 1)
    }

    /// Every call begins here: time does not go back, and what was pinned in an earlier tick has its turn again.
    pub(super) fn advance(&mut self, slab: &Slab, tick: u32) {
        self.now = self.now.max(tick);
        if self.held.0 != 0 && self.held_at < self.now {
            self.release_held(slab);
        }
    }

    /// Files a list of slots at `tick`, moving the cursor if that is what it takes to stay at or before it.
    fn file_list(&mut self, slab: &Slab, (first, last): (u32, u32), tick: u32) {
        if tick < self.cursor || self.filled.is_empty() {
            self.cursor = tick;
        }
        let place = self.place(tick);
        let head = if tick - self.cursor < self.heads.len() as u32 {
            self.filled.set(place);
            &mut self.heads[place]
        } else {
            if self.far.0 == 0 {
                self.far.1 = last;
            }
            self.far_due = self.far_due.min(tick);
            &mut self.far.0
        };
        slab.slot(last - 1).next.store(*head, Ordering::Relaxed);
        *head = first;
    }

    pub(super) fn file(&mut self, slab: &Slab, index: u32, tick: u32) {
        self.file_list(slab, (index + 1, index + 1), tick);
    }

    /// Sets a pinned entry aside for the rest of the round.
    pub(super) fn hold(&mut self, slab: &Slab, index: u32) {
        self.held_at = self.now;
        if self.held.0 == 0 {
            self.held.1 = index + 1;
        }
        push(slab, &mut self.held.0, index);
    }

    /// Another call may come before the round ends, and it may find what is held unpinned.
    pub(super) fn victim_found(&mut self) {
        self.victim_in_round = self.held.0 != 0;
    }

    /// Called when there are no candidates left: whether every entry was seen pinned since the caller last got an
    /// answer. If not, another round begins. (Rounds that nobody interrupts by taking a victim do end, whatever their
    /// budgets: a caller that repeats until Nothing terminates.)
    pub(super) fn round_is_over(&mut self, slab: &Slab) -> bool {
        let over = !self.victim_in_round;
        self.release_held(slab);
        over
    }

    /// Files all that is held at the tick in which it was seen pinned. O(1).
    fn release_held(&mut self, slab: &Slab) {
        self.victim_in_round = false;
        let held = std::mem::take(&mut self.held);
        if held.0 != 0 {
            self.file_list(slab, held, self.held_at);
        }
    }

    /// Whether slots wait to be filed. The inbox is taken at most once a call (`taken`): what is pushed later was
    /// inserted while the call ran.
    pub(super) fn has_pending(&mut self, slab: &Slab, taken: &mut bool) -> bool {
        if self.pending == 0 && !*taken {
            *taken = true;
            self.pending = slab.take_inbox();
        }
        self.pending != 0
    }

    pub(super) fn pop_pending(&mut self, slab: &Slab) -> Option<u32> {
        pop(slab, &mut self.pending)
    }

    /// Whether `pop_oldest` would give something.
    pub(super) fn has_candidates(&self) -> bool {
        self.sweep != 0 || self.far.0 != 0 || !self.filled.is_empty()
    }

    /// A slot from the oldest list and the tick at which it counts as filed.
    pub(super) fn pop_oldest(&mut self, slab: &Slab) -> Option<(u32, u32)> {
        let ring = self.first_from(self.cursor);
        let due = ring.map_or(u32::MAX, |(_, due)| due);
        if self.far.0 != 0 && self.far_due <= due {
            self.sweep_far(slab);
        }
        if self.sweep != 0 && self.sweep_due <= due {
            return pop(slab, &mut self.sweep).map(|index| (index, self.sweep_due));
        }
        let (place, due) = ring?;
        self.cursor = due;
        self.pop_at(slab, place).map(|index| (index, due))
    }

    /// The ring has nothing older than the far list: its entries are looked at one by one, and filed around the cursor
    /// that now stands where they begin. What a sweep had in hand is looked at early.
    fn sweep_far(&mut self, slab: &Slab) {
        let (first, last) = std::mem::take(&mut self.far);
        let due = std::mem::replace(&mut self.far_due, u32::MAX);
        self.cursor = self.cursor.max(due);
        self.sweep_due = if self.sweep == 0 { due } else { due.min(self.sweep_due) };
        slab.slot(last - 1).next.store(self.sweep, Ordering::Relaxed);
        self.sweep = first;
    }

    /// The next slot of the sweep through all lists before `now`, or `None` at its end (the next call starts anew).
    pub(super) fn pop_sweep(&mut self, slab: &Slab) -> Option<(u32, u32)> {
        if self.sweep == 0 {
            let next = self.first_from(self.sweep_next.max(self.cursor)).filter(|(_, due)| *due < self.now);
            if let Some((place, due)) = next {
                self.sweep = std::mem::take(&mut self.heads[place]);
                self.filled.clear(place);
                self.sweep_due = due;
                self.sweep_next = due + 1;
            } else if self.filled.is_empty() && self.far.0 != 0 && self.far_due < self.now {
                self.sweep_far(slab);
                self.sweep_next = self.sweep_due;
            } else {
                self.sweep_next = 0;
                return None;
            }
        }
        pop(slab, &mut self.sweep).map(|index| (index, self.sweep_due))
    }

    fn pop_at(&mut self, slab: &Slab, place: usize) -> Option<u32> {
        let index = pop(slab, &mut self.heads[place]);
        if self.heads[place] == 0 {
            self.filled.clear(place);
        }
        index
    }

    /// The first list that is not empty at or after `tick` (which is not before the cursor), and its tick.
    fn first_from(&self, tick: u32) -> Option<(usize, u32)> {
        let lists = self.heads.len() as u32;
        let from = self.place(tick);
        let wrap = self.place(self.cursor);
        // Ring order: the window ends just before the cursor's own place.
        let place = if tick - self.cursor >= lists {
            return None;
        } else if from >= wrap {
            self.filled.first_in(from, self.heads.len()).or_else(|| self.filled.first_in(0, wrap))?
        } else {
            self.filled.first_in(from, wrap)?
        };
        let ahead = (place as u32).wrapping_sub(wrap as u32) & (lists - 1);
        // Saturating: a list visited early may count as due at a tick that does not exist.
        Some((place, self.cursor.saturating_add(ahead)))
    }
}

/// Relaxed throughout: LINKED gives the slot to one list, and the lock gives the lists to one thread.
fn push(slab: &Slab, head: &mut u32, index: u32) {
    slab.slot(index).next.store(*head, Ordering::Relaxed);
    *head = index + 1;
}

fn pop(slab: &Slab, head: &mut u32) -> Option<u32> {
    let index = head.checked_sub(1)?;
    *head = slab.slot(index).next.load(Ordering::Relaxed);
    Some(index)
}

/// Which lists are not empty, 64 to the word, with words over words: finding the next one takes the same few steps
/// after a week without a use as after one tick.
#[derive(Debug)]
struct Bitmap {
    /// `levels[0]` has a bit a list; a bit of `levels[k + 1]` says that a word of `levels[k]` is not 0. The last is one
    /// word.
    levels: Vec<Box<[u64]>>,
}

impl Bitmap {
    fn new(bits: usize) -> Self {
        let mut levels = Vec::new();
        let mut words = bits;
        loop {
            words = words.div_ceil(64);
            levels.push(vec![0; words].into_boxed_slice());
            if words == 1 {
                return Self { levels };
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.levels.last().is_none_or(|top| top[0] == 0)
    }

    fn set(&mut self, mut bit: usize) {
        for level in &mut self.levels {
            level[bit / 64] |= 1 << (bit % 64);
            bit /= 64;
        }
    }

    fn clear(&mut self, mut bit: usize) {
        for level in &mut self.levels {
            level[bit / 64] &= !(1 << (bit % 64));
            if level[bit / 64] != 0 {
                return;
            }
            bit /= 64;
        }
    }

    /// The first bit set in `from..to`.
    fn first_in(&self, from: usize, to: usize) -> Option<usize> {
        let mut at = from;
        let mut depth = 0;
        // Up, until a word has a bit at or after `at`; then down again along first bits.
        loop {
            let level = self.levels.get(depth)?;
            let rest = level.get(at / 64).map_or(0, |word| word & (u64::MAX << (at % 64)));
            if rest != 0 {
                at = at / 64 * 64 + rest.trailing_zeros() as usize;
                break;
            }
            at = at / 64 + 1;
            depth += 1;
        }
        while depth > 0 {
            depth -= 1;
            at = at * 64 + self.levels[depth][at].trailing_zeros() as usize;
        }
        (at < to).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::Bitmap;

    #[test]
    fn bitmap_finds_what_a_scan_finds() {
        for bits in [2usize, 64, 128, 4096, 8192, 1 << 18] {
            let mut map = Bitmap::new(bits);
            assert!(map.is_empty());
            let on: Vec<usize> =
                [0, 1, 63, 64, 65, 4095, 4096, 5000, bits - 1].into_iter().filter(|b| *b < bits).collect();
            for b in &on {
                map.set(*b);
            }
            for from in (0..bits).step_by(bits / 128 + 1).chain(on.iter().copied()) {
                for to in [bits, bits / 2, from] {
                    let expected = on.iter().copied().filter(|b| (from..to).contains(b)).min();
                    assert_eq!(map.first_in(from, to), expected, "{bits} {from} {to}");
                }
            }
            for b in &on {
                map.clear(*b);
            }
            assert!(map.is_empty() && map.first_in(0, bits).is_none());
        }
    }
}
