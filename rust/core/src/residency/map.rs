//! Key to slot: a fixed open-addressed table of cache lines, without locks and without tombstones.
//!
//! A line is seven words `fingerprint:32 | link:32` and one count of the entries that wanted this line, found it full
//! and went on (the "overflow count" of F14). A lookup goes on only past a line whose count is not zero; a removal
//! empties its word and takes its own passing back from the lines before it. So nothing ever has to be rebuilt, entries
//! never move, and no call pays for what others did before it, however long inserts and removals have gone on.
//!
//! The table stores no keys: a word that fits is a candidate, and the caller compares the slot's own key.

use crate::sync::{AtomicU64, Ordering, zeroed_box};

const WORDS: usize = 8;
const SEATS: usize = WORDS - 1;
/// Seats in use a line at capacity: 5 of 7, at which 95 entries of 100 sit in their home line.
const LOAD: usize = 5;

#[derive(Debug)]
pub(super) struct Map {
    words: Box<[AtomicU64]>,
    /// Words to skip so that lines start at cache lines; the allocator promises 16 bytes only.
    skip: usize,
    lines: usize,
}

/// 128 bits of server-made id to 64 bits, every input bit reaching every output bit (wyhash's fold; UUIDv7s of one
/// millisecond differ in their low half only). Not keyed: clients do not choose uids.
#[inline]
fn mix(key: u128) -> u64 {
    const A: u64 = 0xa076_1d64_78bd_642f;
    const B: u64 = 0xe703_7ed1_a0b4_28db;
    let fold = |a: u64, b: u64| {
        let p = u128::from(a) * u128::from(b);
        (p >> 64) as u64 ^ p as u64
    };
    fold(fold((key >> 64) as u64 ^ A, key as u64 ^ B) ^ A, B)
}

impl Map {
    pub(super) fn new(capacity: usize) -> Self {
        let lines = capacity.div_ceil(LOAD).max(1);
        let words = zeroed_box((lines + 1) * WORDS, || AtomicU64::new(0));
        let skip = words.as_ptr().align_offset(64).min(WORDS);
        Self { words, skip, lines }
    }

    #[inline]
    fn line(&self, line: usize) -> &[AtomicU64] {
        let start = self.skip + line * WORDS;
        &self.words[start..start + WORDS]
    }

    /// Home line from the high bits, fingerprint from the low ones.
    #[inline]
    fn home(&self, key: u128) -> (usize, u64) {
        let hash = mix(key);
        let line = (u128::from(hash) * self.lines as u128) >> 64;
        (line as usize, hash << 32)
    }

    #[inline]
    fn after(&self, line: usize) -> usize {
        if line + 1 == self.lines { 0 } else { line + 1 }
    }

    /// The first candidate slot for `key` that `pick` accepts.
    #[inline]
    pub(super) fn find<T>(&self, key: u128, mut pick: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let (mut at, fingerprint) = self.home(key);
        for _ in 0..self.lines {
            let line = self.line(at);
            for seat in &line[..SEATS] {
                // Acquire: pairs with `insert`, so that the slot's fields are those its owner wrote before.
                let word = seat.load(Ordering::Acquire);
                if word & !0xffff_ffff == fingerprint
                    && word as u32 != 0
                    && let Some(found) = pick(word as u32 - 1)
                {
                    return Some(found);
                }
            }
            // Acquire: whoever sees the count of an insert goes on; the insert raised it before it took its seat.
            if line[SEATS].load(Ordering::Acquire) == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Seats `index`. There is always a free seat: the slab hands out fewer slots than there are seats, and a slot is
    /// unseated before it is freed. (A racer may take the seat we saw, but then it left another.)
    pub(super) fn insert(&self, key: u128, index: u32) {
        let (mut at, fingerprint) = self.home(key);
        let word = fingerprint | u64::from(index + 1);
        loop {
            let line = self.line(at);
            for seat in &line[..SEATS] {
                // Relaxed look, then Release: a finder that sees the word sees the slot's fields.
                if seat.load(Ordering::Relaxed) == 0
                    && seat.compare_exchange(0, word, Ordering::Release, Ordering::Relaxed).is_ok()
                {
                    return;
                }
            }
            // Release: before the seat further on, so that nobody can see the entry seated yet unreachable.
            line[SEATS].fetch_add(1, Ordering::Release);
            at = self.after(at);
        }
    }

    /// Unseats `index`, which its owner seated under `key`.
    pub(super) fn remove(&self, key: u128, index: u32) {
        let (home, fingerprint) = self.home(key);
        let word = fingerprint | u64::from(index + 1);
        let mut at = home;
        let found = 'search: loop {
            for seat in &self.line(at)[..SEATS] {
                // Relaxed: only the owner of `index` writes this word, and owners hand over through the slot's state.
                if seat.load(Ordering::Relaxed) == word {
                    // Release, with the counts below: orders our use of the seat before the next one's.
                    seat.store(0, Ordering::Release);
                    break 'search at;
                }
            }
            at = self.after(at);
            assert_ne!(at, home, "a seated slot is in no line of its path");
        };
        let mut at = home;
        while at != found {
            self.line(at)[SEATS].fetch_sub(1, Ordering::Release);
            at = self.after(at);
        }
    }

    /// Sums of seats in use and of passings, for tests at rest: both are 0 when no entry lives.
    #[cfg(test)]
    fn residue(&self) -> (usize, u64) {
        let lines = (0..self.lines).map(|l| self.line(l));
        lines.fold((0, 0), |(seats, passed), line| {
            let taken = line[..SEATS].iter().filter(|w| w.load(Ordering::Relaxed) != 0).count();
            (seats + taken, passed + line[SEATS].load(Ordering::Relaxed))
        })
    }
}

#[cfg(all(test, not(any(feature = "shuttle", roost_loom))))]
mod tests {
    use super::*;

    // G4: churn leaves nothing behind, so that a lookup costs the same after any history.
    #[test]
    fn churn_leaves_no_residue() {
        let capacity = 500;
        let map = Map::new(capacity);
        let key = |n: u64| u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let mut live: Vec<(u64, u32)> = (0..capacity as u32).map(|i| (u64::from(i), i)).collect();
        for (n, i) in &live {
            map.insert(key(*n), *i);
        }
        for n in 500..200_000u64 {
            let at = (n.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % capacity;
            let (old, index) = live[at];
            map.remove(key(old), index);
            map.insert(key(n), index);
            live[at] = (n, index);
        }
        for (n, i) in &live {
            assert_eq!(map.find(key(*n), |c| (c == *i).then_some(c)), Some(*i));
        }
        assert_eq!(map.residue().0, capacity);
        for (n, i) in live {
            map.remove(key(n), i);
        }
        assert_eq!(map.residue(), (0, 0));
    }

    #[test]
    fn every_key_bit_moves_line_and_fingerprint() {
        let map = Map::new(1 << 20);
        for bit in 0..128 {
            let (a, b) = (
                map.home(0x0192_0000_0000_7000_8000_0000_0000_0001),
                map.home(0x0192_0000_0000_7000_8000_0000_0000_0001 ^ 1 << bit),
            );
            assert!(a.0 != b.0 && a.1 != b.1, "bit {bit}");
        }
    }
}

#[cfg(all(test, roost_loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    // I11: an entry that lives in its second line is found at every instant, while others leave and enter its first.
    #[test]
    fn loom_an_overflowed_entry_is_always_found() {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(2));
        builder.max_branches = 10_000;
        builder.check(|| {
            let map = Arc::new(Map::new(2 * LOAD));
            let mut keys = (0u128..).filter(|key| map.home(*key).0 == 0);
            let keys: [u128; SEATS + 2] = std::array::from_fn(|_| keys.next().unwrap_or_default());
            for (index, key) in keys[..=SEATS].iter().enumerate() {
                map.insert(*key, index as u32);
            }
            let (last, late) = (SEATS as u32, SEATS as u32 + 1);
            let changer = thread::spawn({
                let map = map.clone();
                move || {
                    map.remove(keys[0], 0);
                    map.insert(keys[SEATS + 1], late);
                }
            });
            assert_eq!(map.find(keys[SEATS], |index| (index == last).then_some(index)), Some(last));
            changer.join().expect("no panic");
            assert_eq!(map.find(keys[SEATS + 1], |index| (index == late).then_some(index)), Some(late));
        });
    }
}
