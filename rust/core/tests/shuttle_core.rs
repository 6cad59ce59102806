//! Shuttle runs: the same code under a random scheduler, thousands of steps deep, where loom's exhaustive models cannot
//! go. Sequentially consistent, so it finds races of logic, not of memory order. Guards G1 (victims are the oldest), G2,
//! I2, I10 and I22. A failure prints its schedule; `SHUTTLE_ITERATIONS` sets how many are tried (default 2,000).
#![cfg(all(feature = "shuttle", not(roost_loom)))]

use roost_core::{
    residency::{Evicted, Index},
    slots::{SlotNode, reserve},
};
use shuttle::{
    rand::{Rng, thread_rng},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

fn iterations() -> usize {
    std::env::var("SHUTTLE_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
}

fn check(f: fn()) {
    shuttle::check_random(f, iterations());
    shuttle::check_pct(f, iterations(), 3);
}

// I2, I22: three threads, three levels, random weights; a witness inside the time held.
#[test]
fn chains_stay_within_caps() {
    check(|| {
        let nodes = Arc::new([SlotNode::new(3), SlotNode::new(4), SlotNode::new(5)]);
        let inside: Arc<[AtomicU32; 3]> = Arc::new(std::array::from_fn(|_| AtomicU32::new(0)));
        let caps = [3, 4, 5];
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (nodes, inside) = (nodes.clone(), inside.clone());
                thread::spawn(move || {
                    for _ in 0..6 {
                        let n: [u32; 3] = std::array::from_fn(|_| thread_rng().gen_range(0..4));
                        if reserve(&[(&nodes[0], n[0]), (&nodes[1], n[1]), (&nodes[2], n[2])]).is_ok() {
                            for level in 0..3 {
                                let now = inside[level].fetch_add(n[level], Ordering::SeqCst) + n[level];
                                assert!(now <= caps[level], "I2: {now} in a cap of {}", caps[level]);
                            }
                            for level in 0..3 {
                                inside[level].fetch_sub(n[level], Ordering::SeqCst);
                                assert!(nodes[level].release(n[level]));
                            }
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert!(nodes.iter().all(|node| node.used() == 0), "I22");
    });
}

const KEYS: u128 = 5;

// G2, I10: users pin, touch, resize, remove and bring back; one evicts and maintains.
#[test]
fn pins_hold_and_sums_add_up() {
    check(|| {
        let index = Arc::new(Index::new(KEYS as usize, 4));
        let clock = Arc::new(AtomicU32::new(1));
        // Key k is brought back by one thread only, as a tree's lock would have it; all may use it.
        let threads: Vec<_> = (0..2)
            .map(|me| {
                let (index, clock) = (index.clone(), clock.clone());
                thread::spawn(move || {
                    for _ in 0..12 {
                        let key = thread_rng().gen_range(0..KEYS);
                        let tick = clock.load(Ordering::SeqCst);
                        let Some(handle) = index.touch_key(key, tick) else {
                            if key % 2 == me {
                                let _ = index.insert(key, 10, key as u32, tick);
                            }
                            continue;
                        };
                        match thread_rng().gen_range(0..6) {
                            0 | 1 => {
                                index.set_bytes(handle, thread_rng().gen_range(0..100));
                            }
                            2 if key % 2 == me => {
                                index.remove(handle);
                            }
                            _ if index.pin(handle, tick) => {
                                thread::yield_now();
                                // Its owner may remove it, pinned or not; an eviction may not.
                                let there = index.peek(handle).map(|e| e.key);
                                assert!(there == Some(key) || key % 2 != me, "G2: gone while pinned");
                                let unpinned = index.unpin(handle, clock.load(Ordering::SeqCst));
                                assert!(unpinned || key % 2 != me, "G2: gone while pinned");
                            }
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        for _ in 0..10 {
            let tick = clock.fetch_add(thread_rng().gen_range(0..3), Ordering::SeqCst);
            if thread_rng().gen_bool(0.3) {
                let _ = index.maintain(3, tick);
            } else if let Evicted::Victim { handle, .. } = index.evict(4, tick) {
                assert!(!index.touch(handle, tick));
            }
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        let live: Vec<_> = (0..KEYS).filter_map(|key| index.get(key)).filter_map(|h| index.peek(h)).collect();
        assert_eq!(index.len(), live.len(), "I10");
        assert_eq!(index.bytes(), live.iter().map(|e| e.bytes).sum::<u64>(), "I10");
        // G1, at rest: out they go, oldest first, and none is lost.
        let mut before = 0;
        for _ in 0..live.len() {
            let Evicted::Victim { last_tick, .. } = index.evict(1_000, 1_000) else {
                panic!("an entry that no eviction finds")
            };
            assert!(before <= last_tick, "G1");
            before = last_tick;
        }
        assert_eq!((index.len(), index.bytes()), (0, 0), "I10");
    });
}
