//! Guards G1 (tick-exact LRU), G2 (pins), G3 (amortised cost), G4 (bounded calls) and I10 (exact sums): the residency
//! index against a naive exact LRU that keeps its entries in a plain map and scans them all.
use proptest::prelude::*;
use roost_core::residency::{Evicted, Full, Handle, Index};
use std::collections::HashMap;

#[derive(Debug, Clone, Copy)]
enum Op {
    Insert {
        key: u8,
        bytes: u32,
        pinned: bool,
    },
    Touch(u8),
    TouchKey(u8),
    Pin(u8),
    Unpin(u8),
    SetBytes(u8, u32),
    Remove(u8),
    Evict(u8),
    Maintain(u8),
    Tick(u32),
    /// Everything that takes a handle, with one that has died.
    Stale(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..24u8;
    prop_oneof![
        6 => (key(), 0..1000u32, prop::bool::weighted(0.2)).prop_map(|(key, bytes, pinned)| Op::Insert { key, bytes, pinned }),
        6 => key().prop_map(Op::Touch),
        3 => key().prop_map(Op::TouchKey),
        3 => key().prop_map(Op::Pin),
        4 => key().prop_map(Op::Unpin),
        2 => (key(), 0..1000u32).prop_map(|(key, bytes)| Op::SetBytes(key, bytes)),
        2 => key().prop_map(Op::Remove),
        5 => (0..20u8).prop_map(Op::Evict),
        2 => (0..20u8).prop_map(Op::Maintain),
        4 => prop_oneof![8 => 1..4u32, 1 => 5..100u32].prop_map(Op::Tick),
        1 => any::<u8>().prop_map(Op::Stale),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Naive {
    handle: Handle,
    bytes: u64,
    pins: u32,
    last: u32,
}

struct Pair {
    index: Index,
    live: HashMap<u8, Naive>,
    dead: Vec<Handle>,
    tick: u32,
    capacity: usize,
    /// The last evict of this tick ran out of budget, so that the next Nothing may speak for both.
    round_open: bool,
}

/// Spreads the small keys of the model as uids are spread.
fn uid(key: u8) -> u128 {
    (u128::from(key) + 1).wrapping_mul(0x0193_7a5c_94d1_7c3b_8f2e_6b5a_1d4c_9e87)
}

impl Pair {
    fn new(capacity: usize, horizon: u32, tick: u32) -> Self {
        let index = Index::new(capacity, horizon);
        Self { index, live: HashMap::new(), dead: Vec::new(), tick, capacity, round_open: false }
    }

    fn apply(&mut self, op: Op) {
        let (index, tick) = (&self.index, self.tick);
        match op {
            Op::Insert { key, .. } if self.live.contains_key(&key) => {}
            Op::Insert { key, bytes, pinned } => {
                let bytes = u64::from(bytes);
                let insert = if pinned { Index::insert_pinned } else { Index::insert };
                match insert(index, uid(key), bytes, u32::from(key), tick) {
                    Ok(handle) => {
                        self.live.insert(key, Naive { handle, bytes, pins: u32::from(pinned), last: tick });
                        assert!(self.live.len() <= self.capacity);
                    }
                    Err(Full) => assert_eq!(self.live.len(), self.capacity),
                }
            }
            Op::TouchKey(key) => {
                let entry = self.live.get_mut(&key);
                assert_eq!(index.touch_key(uid(key), tick), entry.as_ref().map(|e| e.handle));
                if let Some(entry) = entry {
                    entry.last = tick;
                }
            }
            Op::Touch(key) => {
                if let Some(entry) = self.live.get_mut(&key) {
                    assert!(index.touch(entry.handle, tick));
                    entry.last = tick;
                }
            }
            Op::Pin(key) => {
                if let Some(entry) = self.live.get_mut(&key) {
                    assert!(index.pin(entry.handle, tick));
                    (entry.pins, entry.last) = (entry.pins + 1, tick);
                }
            }
            Op::Unpin(key) => {
                if let Some(entry) = self.live.get_mut(&key).filter(|e| e.pins > 0) {
                    assert!(index.unpin(entry.handle, tick));
                    (entry.pins, entry.last) = (entry.pins - 1, tick);
                }
            }
            Op::SetBytes(key, bytes) => {
                if let Some(entry) = self.live.get_mut(&key) {
                    assert!(index.set_bytes(entry.handle, u64::from(bytes)));
                    entry.bytes = u64::from(bytes);
                }
            }
            Op::Remove(key) => {
                if let Some(entry) = self.live.remove(&key) {
                    assert!(index.remove(entry.handle));
                    self.dead.push(entry.handle);
                }
            }
            Op::Evict(budget) => {
                self.evict(usize::from(budget));
            }
            Op::Maintain(budget) => {
                assert!(index.maintain(usize::from(budget), tick).steps <= usize::from(budget), "G4");
            }
            Op::Tick(by) => {
                self.tick += by;
                self.round_open = false;
            }
            Op::Stale(at) => {
                if !self.dead.is_empty() {
                    let handle = self.dead[usize::from(at) % self.dead.len()];
                    assert!(!index.touch(handle, tick) && !index.pin(handle, tick) && !index.unpin(handle, tick));
                    assert!(!index.set_bytes(handle, 1) && !index.remove(handle));
                    assert!(index.pins(handle) == 0 && index.peek(handle).is_none());
                }
            }
        }
    }

    fn evict(&mut self, budget: usize) -> Evicted {
        let evicted = self.index.evict(budget, self.tick);
        match evicted {
            Evicted::Victim { key, aux, handle, bytes, last_tick } => {
                let small = aux as u8;
                let naive = self.live.remove(&small).expect("the victim lives");
                assert_eq!((key, handle, bytes, last_tick), (uid(small), naive.handle, naive.bytes, naive.last));
                assert_eq!(naive.pins, 0, "G2: a pinned victim");
                for other in self.live.values().filter(|other| other.pins == 0) {
                    assert!(naive.last <= other.last, "G1: {naive:?} went before {other:?}");
                }
                self.dead.push(handle);
            }
            Evicted::Nothing if !self.round_open => {
                assert!(self.live.values().all(|e| e.pins > 0), "nothing to evict, says the index: {:?}", self.live);
            }
            Evicted::Nothing | Evicted::BudgetExhausted => {}
        }
        self.round_open = evicted == Evicted::BudgetExhausted;
        evicted
    }

    fn check(&self) {
        assert_eq!(self.index.len(), self.live.len(), "I10");
        assert_eq!(self.index.bytes(), self.live.values().map(|e| e.bytes).sum::<u64>(), "I10");
        for key in 0..24 {
            let naive = self.live.get(&key);
            assert_eq!(self.index.get(uid(key)), naive.map(|e| e.handle));
            if let Some(naive) = naive {
                let entry = self.index.peek(naive.handle).expect("live");
                assert_eq!((entry.key, entry.aux), (uid(key), u32::from(key)));
                assert_eq!((entry.bytes, entry.pins), (naive.bytes, naive.pins));
                // An evictor that saw the pin took it for a use.
                let latest = if naive.pins > 0 { self.tick } else { naive.last };
                assert!((naive.last..=latest).contains(&entry.last_tick), "{entry:?}, used at {}", naive.last);
                assert_eq!(self.index.pins(naive.handle), naive.pins);
            }
        }
    }

    /// Unpins and evicts all: the order is that of last uses, and every slot comes back.
    fn drain(&mut self) {
        for entry in self.live.values_mut() {
            (0..entry.pins).for_each(|_| assert!(self.index.unpin(entry.handle, self.tick)));
            if entry.pins > 0 {
                (entry.pins, entry.last) = (0, self.tick);
            }
        }
        self.round_open = true;
        let mut before = 0;
        while !self.live.is_empty() {
            if let Evicted::Victim { last_tick, .. } = self.evict(3) {
                assert!(before <= last_tick, "G1");
                before = last_tick;
            }
        }
        self.check();
        for key in 0..self.capacity {
            self.index.insert(key as u128, 1, 0, self.tick).expect("no slot leaked");
        }
        assert_eq!(self.index.insert(u128::MAX, 1, 0, self.tick), Err(Full));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    // Small horizons on purpose: the ring wraps, jumps lie beyond it, and none of it may show. Ticks near the end of
    // time too.
    #[test]
    fn index_follows_the_naive_lru(
        capacity in 1..20usize,
        horizon in prop_oneof![Just(2u32), Just(8), Just(64), Just(1024)],
        start in prop_oneof![Just(0u32), 0..5000u32, Just(u32::MAX - 120_000)],
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let mut pair = Pair::new(capacity, horizon, start);
        for op in ops {
            pair.apply(op);
            pair.check();
        }
        pair.drain();
    }

    // G1: threads bring the tick they read a while ago, and the order is that of the uses all the same.
    #[test]
    fn late_clocks_keep_the_order(
        horizon in prop_oneof![Just(2u32), Just(64)],
        ops in prop::collection::vec((op(), prop_oneof![2 => Just(0u32), 1 => 1..6u32]), 1..300),
    ) {
        let mut pair = Pair::new(6, horizon, 100);
        for (op, late) in ops {
            let late = if matches!(op, Op::Evict(_) | Op::Maintain(_) | Op::Tick(_)) { 0 } else { late };
            pair.tick -= late;
            pair.apply(op);
            pair.tick += late;
            for entry in pair.live.values_mut() {
                entry.last = pair.index.peek(entry.handle).expect("live").last_tick;
            }
        }
        pair.drain();
    }

    // G3: with a budget of 1 each call is one step, so the steps can be counted from outside.
    #[test]
    fn steps_are_paid_for_by_uses(ops in prop::collection::vec(op(), 1..400)) {
        let mut pair = Pair::new(20, 1 << 17, 0);
        let (mut steps, mut paid) = (0usize, 0usize);
        for op in ops {
            // One filing a use, and one look to unlink what was removed.
            paid += match op {
                Op::Insert { .. } => 2,
                Op::Touch(_) | Op::TouchKey(_) | Op::Pin(_) | Op::Unpin(_) | Op::Remove(_) => 1,
                _ => 0,
            };
            match op {
                Op::Maintain(_) => {}
                Op::Evict(_) => {
                    // A round meets each pinned entry once, and twice if it was used after it was filed.
                    paid += 1 + 2 * pair.live.values().filter(|e| e.pins > 0).count();
                    loop {
                        steps += 1;
                        if pair.evict(1) != Evicted::BudgetExhausted {
                            break;
                        }
                        assert!(steps <= paid, "G3: {steps} steps, {paid} paid");
                    }
                }
                op => pair.apply(op),
            }
        }
    }
}

// G4: a round of calls with small budgets ends, and finds the one unpinned entry behind many pinned ones.
#[test]
fn a_crowd_of_pinned_entries_hides_nobody() {
    let index = Index::new(1000, 64);
    let handles: Vec<Handle> =
        (0..1000u32).map(|n| index.insert_pinned(u128::from(n), 1, n, 7).expect("room")).collect();
    let round = || {
        (0..1000 / 16 * 3).map(|_| index.evict(16, 7)).find(|e| *e != Evicted::BudgetExhausted).expect("the round ends")
    };
    assert_eq!(round(), Evicted::Nothing);
    assert!(index.unpin(handles[123], 7));
    assert!(matches!(round(), Evicted::Victim { aux: 123, .. }));
    assert_eq!(round(), Evicted::Nothing);
}

// G4: once maintain has caught up with a storm of uses, evict finds its victim in one look.
#[test]
fn maintain_takes_the_filing_off_the_evictors_path() {
    let index = Index::new(1000, 64);
    let handles: Vec<Handle> = (0..1000u32).map(|n| index.insert(u128::from(n), 1, n, 1).expect("room")).collect();
    assert!(index.maintain(1000, 2).steps == 1000, "the inbox");
    for (n, handle) in handles.iter().enumerate() {
        assert!(index.touch(*handle, 3 + u32::from(n >= 500)));
    }
    let mut calls = 0;
    while !index.maintain(64, 5).done {
        calls += 1;
    }
    assert!(calls <= 2 * 1000 / 64 + 1);
    for _ in 0..500 {
        assert!(matches!(index.evict(1, 5), Evicted::Victim { last_tick: 3, .. }));
    }
}

// G4: a year without a use is skipped, not walked.
#[test]
fn empty_ticks_cost_nothing() {
    let index = Index::new(2, 1 << 20);
    index.insert(1, 1, 1, 0).expect("room");
    index.insert(2, 1, 2, 1 << 19).expect("room");
    assert!(matches!(index.evict(3, 1 << 30), Evicted::Victim { aux: 1, .. }));
    assert!(matches!(index.evict(1, 1 << 30), Evicted::Victim { aux: 2, .. }));
    assert_eq!(index.evict(0, 1 << 30), Evicted::Nothing);
}

#[test]
fn a_zero_capacity_index_is_full() {
    let index = Index::new(0, 0);
    assert_eq!(index.insert(1, 1, 1, 0), Err(Full));
    assert_eq!(index.evict(1, 0), Evicted::Nothing);
    assert_eq!(index.get(1), None);
}
