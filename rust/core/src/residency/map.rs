//! Key to slot: a fixed open-addressed table of cache lines, without locks and without tombstones.
//!
//! A line has twelve seats (a one-byte tag and a link each) and one count of the entries that wanted this line, found it
//! full and went on (the layout and the "overflow count" of F14). A lookup compares all tags of a line at once, without a
//! branch that the key decides, and goes on only past a line whose count is not zero. A removal empties its seat and
//! takes its own passing back from the lines before it. So nothing ever has to be rebuilt, entries never move, and no
//! call pays for what others did before it, however long inserts and removals have gone on.
//!
//! The table stores no keys: a seat that fits is a candidate, and the caller compares the slot's own key.

use crate::sync::{AtomicU32, AtomicU64, Ordering, zeroed_box};

const SEATS: usize = 12;
/// Seats in use a line at capacity: 8 of 12, at which 98 entries of 100 sit in their home line.
const LOAD: usize = 8;

/// 64 bytes. A tag of 0 is an empty seat; a link of 0 one whose owner is about to sit down or to leave.
#[derive(Debug)]
#[cfg_attr(not(any(feature = "shuttle", roost_loom)), derive(bytemuck::Zeroable))]
#[repr(C)]
struct Line {
    /// Tags of seats 0 to 7.
    low: AtomicU64,
    /// Tags of seats 8 to 11.
    high: AtomicU32,
    passed: AtomicU32,
    links: [AtomicU32; SEATS],
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// A bit for each byte of `tags` that is 0: bit 0 of that byte. The lowest one is always right; above it a byte of 1 may
/// be taken for 0, which the seat's link or the slot's key then denies.
#[inline]
const fn zero_bytes(tags: u64) -> u64 {
    (tags.wrapping_sub(ONES) & !tags & (ONES << 7)) >> 7
}

/// Seats to try, as bits: seats 0 to 7 at 8n, seats 8 to 11 at 8n + 1, so that both words make one loop.
struct Fits(u64);

impl Iterator for Fits {
    type Item = usize;
    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(bit / 8 + (bit & 1) * 8)
    }
}

impl Line {
    fn zero() -> Self {
        Self {
            low: AtomicU64::new(0),
            high: AtomicU32::new(0),
            passed: AtomicU32::new(0),
            links: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// The seats whose tag is `tag`.
    #[inline]
    fn fits(&self, tag: u8) -> Fits {
        let pattern = ONES * tag as u64;
        // Acquire: a tag brings the link that its seat's last owner left (0), so that no link outlives its tag.
        let low = zero_bytes(self.low.load(Ordering::Acquire) ^ pattern);
        let high = zero_bytes(self.high.load(Ordering::Acquire) as u64 ^ pattern & 0xffff_ffff) & 0xffff_ffff;
        Fits(low | high << 1)
    }

    /// Claims an empty seat for `tag`, or says that there is none.
    fn claim(&self, tag: u8) -> Option<usize> {
        let mut tags = self.low.load(Ordering::Relaxed);
        while let Some(seat) = Fits(zero_bytes(tags)).next() {
            let taken = tags | u64::from(tag) << (seat * 8);
            // Acquire: the last owner's farewell to the link comes before our own link. Release: keeps that so for who
            // reads the tag from us.
            match self.low.compare_exchange_weak(tags, taken, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(seat),
                Err(seen) => tags = seen,
            }
        }
        let mut tags = self.high.load(Ordering::Relaxed);
        while let Some(seat) = Fits(zero_bytes(u64::from(tags)) & 0xffff_ffff).next() {
            let taken = tags | u32::from(tag) << (seat * 8);
            match self.high.compare_exchange_weak(tags, taken, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Some(seat + 8),
                Err(seen) => tags = seen,
            }
        }
        None
    }

    fn vacate(&self, seat: usize) {
        // Release, both: link before tag, so that the seat's next owner and its readers find the link gone.
        self.links[seat].store(0, Ordering::Release);
        if seat < 8 {
            self.low.fetch_and(!(0xff << (seat * 8)), Ordering::Release);
        } else {
            self.high.fetch_and(!(0xff << ((seat - 8) * 8)), Ordering::Release);
        }
    }
}

#[derive(Debug)]
pub(super) struct Map {
    lines: Box<[Line]>,
}

/// 128 bits of server-made id to 64 bits (wyhash's fold): every input bit reaches the high bits, which choose the line.
/// Not keyed: clients do not choose uids.
#[inline]
fn mix(key: u128) -> u64 {
    let high = (key >> 64) as u64 ^ 0xa076_1d64_78bd_642f;
    let low = key as u64 ^ 0xe703_7ed1_a0b4_28db;
    let product = u128::from(high) * u128::from(low);
    (product >> 64) as u64 ^ product as u64
}

impl Map {
    pub(super) fn new(capacity: usize) -> Self {
        Self { lines: zeroed_box(capacity.div_ceil(LOAD).max(1), Line::zero) }
    }

    /// Home line from the high bits, tag from the low ones.
    #[inline]
    fn home(&self, key: u128) -> (usize, u8) {
        let hash = mix(key);
        let line = (u128::from(hash) * self.lines.len() as u128) >> 64;
        (line as usize, (hash as u8).max(1))
    }

    #[inline]
    fn after(&self, line: usize) -> usize {
        if line + 1 == self.lines.len() { 0 } else { line + 1 }
    }

    /// The first candidate slot for `key` that `pick` accepts.
    #[inline]
    pub(super) fn find<T>(&self, key: u128, mut pick: impl FnMut(u32) -> Option<T>) -> Option<T> {
        let (mut at, tag) = self.home(key);
        for _ in 0..self.lines.len() {
            let line = &self.lines[at];
            for seat in line.fits(tag) {
                // Acquire: pairs with `insert`, so that the slot's fields are those its owner wrote before.
                let link = line.links[seat].load(Ordering::Acquire);
                if link != 0
                    && let Some(found) = pick(link - 1)
                {
                    return Some(found);
                }
            }
            // Acquire: whoever sees the count of an insert goes on; the insert raised it before it took its seat.
            if line.passed.load(Ordering::Acquire) == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Seats `index`. There is always a free seat: the slab hands out fewer slots than there are seats, and a slot is
    /// unseated before it is freed. (A racer may take the seat we saw, but then it left another.)
    pub(super) fn insert(&self, key: u128, index: u32) {
        let (mut at, tag) = self.home(key);
        loop {
            let line = &self.lines[at];
            if let Some(seat) = line.claim(tag) {
                // Release: a finder that sees the link sees the slot's fields.
                line.links[seat].store(index + 1, Ordering::Release);
                return;
            }
            // Release: before the seat further on, so that nobody can see the entry seated yet unreachable.
            line.passed.fetch_add(1, Ordering::Release);
            at = self.after(at);
        }
    }

    /// Unseats `index`, which its owner seated under `key`.
    pub(super) fn remove(&self, key: u128, index: u32) {
        let (home, tag) = self.home(key);
        let mut at = home;
        loop {
            let line = &self.lines[at];
            // Relaxed: only the owner of `index` writes this link, and owners hand over through the slot's state.
            if let Some(seat) = line.fits(tag).find(|seat| line.links[*seat].load(Ordering::Relaxed) == index + 1) {
                line.vacate(seat);
                break;
            }
            at = self.after(at);
            assert_ne!(at, home, "a seated slot is in no line of its path");
        }
        let found = at;
        at = home;
        while at != found {
            // Release: our use of the path ends before the count says so.
            self.lines[at].passed.fetch_sub(1, Ordering::Release);
            at = self.after(at);
        }
    }

    /// Sums of seats in use and of passings, for tests at rest: both are 0 when no entry lives.
    #[cfg(all(test, not(any(feature = "shuttle", roost_loom))))]
    fn residue(&self) -> (usize, u32) {
        self.lines.iter().fold((0, 0), |(seats, passed), line| {
            let low = line.low.load(Ordering::Relaxed).to_le_bytes();
            let high = line.high.load(Ordering::Relaxed).to_le_bytes();
            let taken = low.iter().chain(&high).filter(|tag| **tag != 0).count();
            let linked = line.links.iter().filter(|link| link.load(Ordering::Relaxed) != 0).count();
            assert_eq!(taken, linked);
            (seats + taken, passed + line.passed.load(Ordering::Relaxed))
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
    fn every_key_bit_moves_the_line() {
        let map = Map::new(1 << 20);
        for bit in 0..128 {
            let (a, b) = (
                map.home(0x0192_0000_0000_7000_8000_0000_0000_0001),
                map.home(0x0192_0000_0000_7000_8000_0000_0000_0001 ^ 1 << bit),
            );
            assert!(a.0 != b.0, "bit {bit}");
        }
    }
}

#[cfg(all(test, roost_loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    /// Every thread writes the gate first, so that loom tries each of them first (see tests/loom_residency.rs).
    fn model(f: impl Fn(Arc<Map>, [u128; SEATS + 2], Arc<AtomicU32>) + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(2));
        builder.max_branches = 10_000;
        builder.check(move || {
            // Two lines; every key wants the first, and the slot of a key is its place in the array.
            let map = Arc::new(Map::new(LOAD + 1));
            let mut keys = (0u128..).filter(|key| map.home(*key).0 == 0);
            let keys = std::array::from_fn(|_| keys.next().unwrap_or_default());
            f(map, keys, Arc::new(AtomicU32::new(0)));
        });
    }

    fn has(map: &Map, keys: &[u128], slot: usize) -> bool {
        map.find(keys[slot], |index| (index as usize == slot).then_some(())).is_some()
    }

    // I11: an entry that lives in its second line is found at every instant, while others leave and enter its first.
    #[test]
    fn an_overflowed_entry_is_always_found() {
        model(|map, keys, gate| {
            for (index, key) in keys[..=SEATS].iter().enumerate() {
                map.insert(*key, index as u32);
            }
            let changer = thread::spawn({
                let (map, gate) = (map.clone(), gate.clone());
                move || {
                    gate.fetch_add(1, Ordering::Relaxed);
                    map.remove(keys[0], 0);
                    map.insert(keys[SEATS + 1], SEATS as u32 + 1);
                }
            });
            gate.fetch_add(1, Ordering::Relaxed);
            assert!(has(&map, &keys, SEATS));
            changer.join().expect("no panic");
            assert!(has(&map, &keys, SEATS) && has(&map, &keys, SEATS + 1) && !has(&map, &keys, 0));
        });
    }

    // Two inserts race for the last seat of a line: one goes on, both are found, and both leave nothing behind.
    #[test]
    fn the_last_seat_goes_to_one() {
        model(|map, keys, gate| {
            for (index, key) in keys[..SEATS - 1].iter().enumerate() {
                map.insert(*key, index as u32);
            }
            let (a, b) = (SEATS - 1, SEATS);
            let other = thread::spawn({
                let (map, gate) = (map.clone(), gate.clone());
                move || {
                    gate.fetch_add(1, Ordering::Relaxed);
                    map.insert(keys[a], a as u32);
                    map.remove(keys[1], 1);
                }
            });
            gate.fetch_add(1, Ordering::Relaxed);
            map.insert(keys[b], b as u32);
            assert!(has(&map, &keys, b));
            other.join().expect("no panic");
            assert!(has(&map, &keys, a) && has(&map, &keys, b) && !has(&map, &keys, 1));
            (0..=b).filter(|slot| *slot != 1).for_each(|slot| map.remove(keys[slot], slot as u32));
            let passed: u32 = map.lines.iter().map(|line| line.passed.load(Ordering::Relaxed)).sum();
            assert_eq!(passed, 0);
        });
    }

    // G2: a seat that is being taken does not still show its last owner's slot, which would let that slot, seated
    // elsewhere by now under the same tag, clear the wrong seat.
    #[test]
    fn a_seat_being_taken_is_not_its_last_owners() {
        model(|map, keys, gate| {
            let mut alike = (0u128..).filter(|key| map.home(*key) == map.home(keys[0]));
            let alike: [u128; 3] = std::array::from_fn(|_| alike.next().unwrap_or_default());
            map.insert(alike[0], 0);
            map.remove(alike[0], 0);
            let other = thread::spawn({
                let (map, gate) = (map.clone(), gate.clone());
                move || {
                    gate.fetch_add(1, Ordering::Relaxed);
                    map.insert(alike[1], 1);
                }
            });
            gate.fetch_add(1, Ordering::Relaxed);
            map.insert(alike[2], 0);
            map.remove(alike[2], 0);
            other.join().expect("no panic");
            assert!(has(&map, &alike, 1));
        });
    }

    // A seat that changes hands while a finder looks at it never shows the old owner's slot for good.
    #[test]
    fn a_reused_seat_shows_its_new_owner() {
        model(|map, keys, gate| {
            map.insert(keys[0], 0);
            let finder = thread::spawn({
                let (map, gate) = (map.clone(), gate.clone());
                move || {
                    gate.fetch_add(1, Ordering::Relaxed);
                    has(&map, &keys, 1)
                }
            });
            gate.fetch_add(1, Ordering::Relaxed);
            map.remove(keys[0], 0);
            map.insert(keys[1], 1);
            assert!(has(&map, &keys, 1) && !has(&map, &keys, 0));
            finder.join().expect("no panic");
            assert!(has(&map, &keys, 1));
        });
    }
}
