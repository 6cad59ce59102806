//! Three-level reserve+release (tree, tenant, worker) against three tokio semaphores and one mutex around three integers.

use crate::Scale;
use crate::report::Report;
use crate::rounds::{Contender, measure, on_threads};
use parking_lot::Mutex;
use roost_core::slots::{SlotNode, reserve};
use roost_core::sync::Padded;
use std::hint::black_box;
use tokio::sync::Semaphore;

const CAPS: [u32; 3] = [8, 1_000, 100_000];
/// Turns at the first two levels, tokens at the third.
const WEIGHTS: [u32; 3] = [1, 1, 4];

struct Levels([Padded<SlotNode>; 3]);

impl Levels {
    fn new() -> Self {
        Self(CAPS.map(|cap| Padded::new(SlotNode::new(cap))))
    }

    fn cycle(&self) {
        let [tree, tenant, worker] = &self.0;
        let levels = [(&**tree, WEIGHTS[0]), (&**tenant, WEIGHTS[1]), (&**worker, WEIGHTS[2])];
        if reserve(black_box(&levels)).is_ok() {
            worker.release(WEIGHTS[2]);
            tenant.release(WEIGHTS[1]);
            tree.release(WEIGHTS[0]);
        }
    }
}

struct Tokio([Semaphore; 3]);

impl Tokio {
    fn cycle(&self) {
        let [tree, tenant, worker] = black_box(&self.0);
        let Ok(a) = tree.try_acquire_many(WEIGHTS[0]) else { return };
        let Ok(b) = tenant.try_acquire_many(WEIGHTS[1]) else { return };
        let Ok(c) = worker.try_acquire_many(WEIGHTS[2]) else { return };
        drop((c, b, a));
    }
}

fn mutex_cycle(used: &Mutex<[u64; 3]>) {
    let fits = {
        let mut used = black_box(used).lock();
        let fits = (0..3).all(|l| used[l] + u64::from(WEIGHTS[l]) <= u64::from(black_box(CAPS[l])));
        if fits {
            (0..3).for_each(|l| used[l] += u64::from(WEIGHTS[l]));
        }
        fits
    };
    if fits {
        let mut used = black_box(used).lock();
        (0..3).for_each(|l| used[l] -= u64::from(WEIGHTS[l]));
    }
}

pub(crate) fn run(scale: Scale, report: &mut Report) {
    let ops = scale.ops * 2;
    let levels = Levels::new();
    let semaphores = Tokio(CAPS.map(|cap| Semaphore::new(cap as usize)));
    let mutex = Mutex::new([0; 3]);
    for threads in [1, 2] {
        let each = |cycle: &(dyn Fn() + Sync)| {
            // One thread runs here: no spawn in the measured time.
            if threads == 1 {
                (0..ops).for_each(|_| cycle());
            } else {
                on_threads(threads, |_| (0..ops / threads).for_each(|_| cycle()));
            }
            ops
        };
        let times = measure(
            scale.rounds,
            vec![
                Contender::new("roost", |_| each(&|| levels.cycle())),
                Contender::new("tokio", |_| each(&|| semaphores.cycle())),
                Contender::new("mutex", |_| each(&|| mutex_cycle(&mutex))),
            ],
        );
        report.heading(&format!("three-level reserve+release, {threads} thread(s), same nodes"));
        for name in times.names() {
            report.figure(&format!("slots/{threads}t/{name}"), times.nanos(name), "ns");
        }
        let (tokio, mutex) = (times.ratio("roost", "tokio"), times.ratio("roost", "mutex"));
        if threads == 1 {
            report.bar("slots/1t: roost to three tokio semaphores", tokio, 0.65, true, "x");
            report.bar("slots/1t: roost to one mutex around three integers", mutex, 2.0, true, "x");
        } else {
            // Contended same-node counters: a mutex is faster, and lock-free is not claimed to be; see the docs.
            report.bar("slots/2t: roost to three tokio semaphores", tokio, 0.65, true, "x");
            report.figure("slots/2t: roost to one mutex around three integers", mutex, "x");
        }
    }
}
