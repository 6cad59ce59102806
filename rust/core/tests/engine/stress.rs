//! Real threads on real memory: what the model checkers cannot scale to. Guards I2, I22, G2, I9 and I10 by witnesses that
//! are counted inside the time held, and by a full recount at rest. A fixed number of operations; no clock.
use roost_core::{
    residency::{Evicted, Handle, Index},
    slots::{SlotNode, reserve},
};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

const OPS: u32 = if cfg!(debug_assertions) { 1_000_000 } else { 5_000_000 };

/// Deterministic per thread; the interleaving is not.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * u128::from(n)) >> 64) as u64
    }
}

// I2, I22: two trees share a tenant and a worker, one of whose caps moves.
#[test]
fn chains_never_exceed_caps_and_leave_nothing() {
    let trees = [SlotNode::new(2), SlotNode::new(2)];
    let (tenant, worker) = (SlotNode::new(3), SlotNode::new(40));
    let inside = AtomicU32::new(0);
    let tokens = AtomicU32::new(0);
    thread::scope(|scope| {
        for me in 0..2usize {
            let (trees, tenant, worker, inside, tokens) = (&trees, &tenant, &worker, &inside, &tokens);
            scope.spawn(move || {
                let mut rng = Rng(0x9e37_79b9 + me as u64);
                let mut held: Vec<(usize, u32)> = Vec::new();
                for _ in 0..OPS {
                    if rng.below(2) == 0 && held.len() < 3 {
                        let (tree, n) = (rng.below(2) as usize, rng.below(30) as u32);
                        if reserve(&[(&trees[tree], 1), (tenant, 1), (worker, n)]).is_ok() {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 3, "I2");
                            assert!(tokens.fetch_add(n, Ordering::SeqCst) + n <= 40, "I2");
                            held.push((tree, n));
                        }
                    } else if let Some((tree, n)) = held.pop() {
                        inside.fetch_sub(1, Ordering::SeqCst);
                        tokens.fetch_sub(n, Ordering::SeqCst);
                        assert!(worker.release(n) && tenant.release(1) && trees[tree].release(1));
                    }
                }
                for (tree, n) in held {
                    inside.fetch_sub(1, Ordering::SeqCst);
                    tokens.fetch_sub(n, Ordering::SeqCst);
                    assert!(worker.release(n) && tenant.release(1) && trees[tree].release(1));
                }
            });
        }
    });
    assert!(trees.iter().chain([&tenant, &worker]).all(|node| node.used() == 0), "I22");
}

const KEYS: u64 = 64;

// G2, I9, I10: both threads use, bring back, remove and evict a few hot entries, and what is pinned stays.
#[test]
fn pins_hold_against_evictions_and_the_sums_stay_exact() {
    let index = Index::new(KEYS as usize, 8);
    let clock = AtomicU32::new(1);
    thread::scope(|scope| {
        for me in 0..2u64 {
            let (index, clock) = (&index, &clock);
            scope.spawn(move || {
                let mut rng = Rng(0x1234_5678_9abc + me);
                let mut pinned: Vec<(Handle, u64)> = Vec::new();
                for _ in 0..OPS {
                    let key = rng.below(KEYS);
                    let tick = clock.load(Ordering::SeqCst);
                    match rng.below(10) {
                        // A key is brought back and removed by one thread only, as its tree's lock would have it.
                        0..=2 if key % 2 == me && index.get(u128::from(key)).is_none() => {
                            let _ = index.insert(u128::from(key), rng.below(1000), key as u32, tick);
                        }
                        3..=5 => {
                            if let Some(handle) = index.touch_key(u128::from(key), tick)
                                && pinned.len() < 4
                                && index.pin(handle, tick)
                            {
                                assert_eq!(index.peek(handle).map(|e| e.key), Some(u128::from(key)), "G2");
                                pinned.push((handle, key));
                            }
                        }
                        6 => {
                            if let Some((handle, key)) = pinned.pop() {
                                assert_eq!(index.peek(handle).map(|e| e.key), Some(u128::from(key)), "G2");
                                assert!(index.unpin(handle, tick), "G2: gone while pinned");
                            }
                        }
                        7 => {
                            if let Some(handle) = index.get(u128::from(key)) {
                                index.set_bytes(handle, rng.below(1000));
                            }
                        }
                        8 => {
                            if let Evicted::Victim { handle, .. } = index.evict(64, tick) {
                                assert!(!index.pin(handle, tick), "G2");
                            }
                        }
                        _ => {
                            if rng.below(20) == 0 {
                                clock.fetch_add(1, Ordering::SeqCst);
                                assert!(index.maintain(16, tick).steps <= 16, "G4");
                            }
                        }
                    }
                }
                for (handle, _) in pinned {
                    assert!(index.unpin(handle, u32::MAX), "G2: gone while pinned");
                }
            });
        }
    });
    let live: Vec<_> = (0..KEYS).filter_map(|key| index.peek(index.get(u128::from(key))?)).collect();
    assert_eq!(index.len(), live.len(), "I10");
    assert_eq!(index.bytes(), live.iter().map(|e| e.bytes).sum::<u64>(), "I10");
    let mut evicted = 0;
    while let Evicted::Victim { .. } = index.evict(1_000, u32::MAX) {
        evicted += 1;
    }
    assert_eq!(evicted, live.len(), "I11: an entry that no eviction finds");
    assert_eq!((index.len(), index.bytes()), (0, 0), "I10");
    for key in 0..KEYS {
        index.insert(u128::from(key), 0, 0, u32::MAX).expect("a slot leaked");
    }
}
