//! Residency: touch by handle and by key, pin+unpin, insert+evict against a mutex around `lru`, `quick_cache` and `moka`,
//! each with its default hasher and full of the same keys.

use crate::Scale;
use crate::report::Report;
use crate::rounds::{Contender, Times, measure, on_threads, uid, zipf};
use parking_lot::Mutex;
use roost_core::residency::{Evicted, Handle, Index};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A tick lasts this many uses by each thread: a second of a server that is busier than any we know.
const USES_A_TICK: usize = 1 << 16;
const HORIZON: u32 = 7 * 24 * 3600;
const BUDGET: usize = 64;

struct Rivals {
    lru: Mutex<lru::LruCache<u128, u64>>,
    quick: quick_cache::sync::Cache<u128, u64>,
    moka: moka::sync::Cache<u128, u64>,
}

impl Rivals {
    /// All hold `entries`; `spare` is room that approximate caches need to hold all of them.
    fn new(entries: usize, spare: usize) -> Self {
        let capacity = NonZeroUsize::new(entries).expect("not empty");
        let rivals = Self {
            lru: Mutex::new(lru::LruCache::new(capacity)),
            quick: quick_cache::sync::Cache::new(entries + spare),
            moka: moka::sync::Cache::builder()
                .max_capacity((entries + spare) as u64)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build(),
        };
        for n in 0..entries {
            rivals.lru.lock().put(uid(n), n as u64);
            rivals.quick.insert(uid(n), n as u64);
            rivals.moka.insert(uid(n), n as u64);
        }
        rivals.moka.run_pending_tasks();
        rivals
    }
}

fn filled(entries: usize) -> (Index, Vec<Handle>) {
    let index = Index::new(entries, HORIZON);
    let handles = (0..entries).map(|n| index.insert(uid(n), 1, 0, 1).expect("room")).collect();
    while !index.maintain(1 << 16, 1).done {}
    (index, handles)
}

/// Splits `ops` uses of a sequence over the threads; each sees its own part, another one each round.
fn each<T: Sync>(threads: usize, ops: usize, round: usize, sequence: &[T], work: impl Fn(&[T], u32) + Sync) -> usize {
    let share = ops / threads;
    let part = |me: usize| {
        let start = (round * ops + me * share) % (sequence.len() - share);
        for (n, chunk) in sequence[start..start + share].chunks(USES_A_TICK).enumerate() {
            work(chunk, (2 + round * (share / USES_A_TICK + 1) + n) as u32);
        }
    };
    if threads == 1 {
        part(0);
    } else {
        on_threads(threads, part);
    }
    share * threads
}

fn touches(scale: Scale, threads: usize, report: &mut Report) -> Times {
    let (index, handles) = filled(scale.entries);
    let rivals = Rivals::new(scale.entries, scale.entries / 20);
    let draws = zipf(scale.entries, scale.ops * 5, 7);
    let by_key: Vec<u128> = draws.iter().map(|n| uid(*n)).collect();
    let by_handle: Vec<Handle> = draws.iter().map(|n| handles[*n]).collect();
    let (index, rivals, by_key, by_handle) = (&index, &rivals, &by_key[..], &by_handle[..]);
    let ops = scale.ops;
    let times = measure(
        scale.rounds,
        vec![
            Contender::new("touch by handle", move |round| {
                each(threads, ops, round, by_handle, |chunk, tick| {
                    chunk.iter().for_each(|handle| assert!(index.touch(*handle, tick)));
                })
            }),
            Contender::new("touch by key", move |round| {
                each(threads, ops, round, by_key, |chunk, tick| {
                    chunk.iter().for_each(|key| assert!(index.touch_key(*key, tick).is_some()));
                })
            }),
            Contender::new("pin+unpin by handle", move |round| {
                each(threads, ops, round, by_handle, |chunk, tick| {
                    chunk.iter().for_each(|handle| assert!(index.pin(*handle, tick) && index.unpin(*handle, tick)));
                })
            }),
            Contender::new("lru get", move |round| {
                each(threads, ops, round, by_key, |chunk, _| {
                    chunk.iter().for_each(|key| assert!(rivals.lru.lock().get(key).copied().is_some()));
                })
            }),
            Contender::new("quick_cache get", move |round| {
                each(threads, ops, round, by_key, |chunk, _| {
                    chunk.iter().for_each(|key| assert!(rivals.quick.get(key).is_some()));
                })
            }),
            Contender::new("moka get", move |round| {
                each(threads, ops, round, by_key, |chunk, _| {
                    chunk.iter().for_each(|key| assert!(rivals.moka.get(key).is_some()));
                })
            }),
        ],
    );
    report.heading(&format!("uses of {} entries, Zipf, {threads} thread(s)", scale.entries));
    for name in times.names() {
        report.figure(&format!("residency/{threads}t/{name}"), times.nanos(name), "ns");
    }
    times
}

/// New keys at capacity, so that each insert costs an eviction.
fn churn(scale: Scale, threads: usize, report: &mut Report) -> Times {
    let (index, _) = filled(scale.entries);
    let rivals = Rivals::new(scale.entries, 0);
    let ops = scale.ops / 2;
    let next: [AtomicUsize; 4] = std::array::from_fn(|_| AtomicUsize::new(scale.entries));
    let fresh = |who: usize, work: &(dyn Fn(u128, u32) + Sync)| {
        let share = ops / threads;
        let start = next[who].fetch_add(share * threads, Ordering::Relaxed);
        let part = |me: usize| {
            for n in start + me * share..start + (me + 1) * share {
                work(uid(n), (2 + n / USES_A_TICK) as u32);
            }
        };
        if threads == 1 {
            part(0);
        } else {
            on_threads(threads, part);
        }
        share * threads
    };
    let (index, rivals, fresh) = (&index, &rivals, &fresh);
    let times = measure(
        scale.rounds,
        vec![
            Contender::new("insert+evict", move |_| {
                fresh(0, &|key, tick| {
                    // As the engine does: make room, then insert; another thread may have taken the room.
                    while index.insert(key, 1, 0, tick).is_err() {
                        while index.evict(BUDGET, tick) == Evicted::BudgetExhausted {}
                    }
                })
            }),
            Contender::new("lru put", move |_| fresh(1, &|key, _| assert!(rivals.lru.lock().put(key, 1).is_none()))),
            Contender::new("quick_cache insert", move |_| fresh(2, &|key, _| rivals.quick.insert(key, 1))),
            Contender::new("moka insert", move |_| fresh(3, &|key, _| rivals.moka.insert(key, 1))),
        ],
    );
    report.heading(&format!("insert+evict at capacity, {} entries, {threads} thread(s)", scale.entries));
    for name in times.names() {
        report.figure(&format!("residency/{threads}t/{name}"), times.nanos(name), "ns");
    }
    times
}

pub(crate) fn run(scale: Scale, report: &mut Report) {
    let one = touches(scale, 1, report);
    let mut bar = |name: &str, ours: &str, theirs: &str, target: f64| {
        report.bar(&format!("residency/1t: {name}"), one.ratio(ours, theirs), target, true, "x");
    };
    bar("touch by handle to mutex<lru> get", "touch by handle", "lru get", 1.0 / 5.0);
    bar("touch by key to mutex<lru> get", "touch by key", "lru get", 1.0 / 1.8);
    bar("touch by key to quick_cache get", "touch by key", "quick_cache get", 1.0);
    bar("touch by key to moka get", "touch by key", "moka get", 1.0 / 8.0);
    bar("pin+unpin to mutex<lru> get", "pin+unpin by handle", "lru get", 0.4);

    let two = touches(scale, 2, report);
    let gain = 1.0 / two.ratio("touch by key", "lru get");
    report.bar("residency/2t: touch by key over mutex<lru>, throughput", gain, 5.0, false, "x");
    for name in ["touch by key", "touch by handle", "pin+unpin by handle"] {
        report.figure(&format!("residency/2t: {name}, gain over 1 thread"), one.nanos(name) / two.nanos(name), "x");
    }

    for threads in [1, 2] {
        let times = churn(scale, threads, report);
        let ratio = times.ratio("insert+evict", "quick_cache insert");
        if threads == 1 {
            report.bar("residency/1t: insert+evict to quick_cache", ratio, 1.1, true, "x");
        } else {
            report.figure("residency/2t: insert+evict to quick_cache", ratio, "x");
            report.figure("residency/2t: insert+evict to mutex<lru>", times.ratio("insert+evict", "lru put"), "x");
        }
    }
}
