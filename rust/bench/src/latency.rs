//! Memory an entry, and the longest single calls: at rest, and right after every entry was touched.

use crate::Scale;
use crate::report::Report;
use crate::rounds::{Rng, uid};
use roost_core::residency::{Evicted, Handle, Index};
use std::time::Instant;

const BUDGET: usize = 64;
const HORIZON: u32 = 7 * 24 * 3600;
/// A hundred-thousandth part of these is still a hundred calls.
const CALLS: usize = 1_000_000;

/// Single calls of one kind, in nanoseconds.
#[derive(Default)]
struct Calls(Vec<u32>);

impl Calls {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = call();
        self.0.push(start.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32);
        value
    }

    fn report(mut self, what: &str, report: &mut Report) {
        self.0.sort_unstable();
        let at = |part: f64| f64::from(self.0[((self.0.len() - 1) as f64 * part) as usize]) / 1e3;
        report.figure(&format!("latency/{what}: p50"), at(0.5), "us");
        // p99.99 of fewer than some ten thousand calls would be their maximum.
        report.bar(&format!("latency/{what}: p99.99"), at(0.9999), 50.0, true, "us");
        // Whatever else runs on the machine shows here, hence no bar.
        report.figure(&format!("latency/{what}: max of {}", self.0.len()), at(1.0), "us");
    }
}

/// Resident set in bytes, or `None` where the system does not say.
fn resident() -> Option<f64> {
    let pages: f64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096.0)
}

pub(crate) fn run(scale: Scale, report: &mut Report) {
    let entries = scale.many_entries;
    let mut inserts = Calls(Vec::with_capacity(entries));
    // Written once, so that our own bookkeeping is resident before the first reading.
    inserts.0.resize(entries, 1);
    let mut handles: Vec<Handle> = vec![Handle::from_bits(std::num::NonZeroU64::MAX); entries];
    inserts.0.clear();
    let before = resident();
    let index = Index::new(entries, HORIZON);
    for (n, handle) in handles.iter_mut().enumerate() {
        *handle = inserts.time(|| index.insert(uid(n), 1, 0, 1)).expect("room");
    }
    let mut maintains = Calls::default();
    let mut tick = 2;
    while !maintains.time(|| index.maintain(BUDGET, tick)).done {}
    report.heading(&format!("memory and single calls, {entries} entries"));
    if let (Some(before), Some(after)) = (before, resident()) {
        report.bar("memory/an entry, all in", (after - before) / entries as f64, 64.0, true, "bytes");
    }
    inserts.report("insert into a growing index", report);

    // Everything is used: every filing is stale now, the worst history for who must find the oldest.
    let mut touches = Calls::default();
    let mut rng = Rng(3);
    for storm in 0..2 {
        tick += 1;
        for n in 0..entries {
            let n = if storm == 0 { n } else { rng.below(entries) };
            assert!(index.touch(handles[n], tick));
        }
    }
    tick += 1;
    let (mut evicts, mut again, mut pins) = (Calls::default(), Calls::default(), Calls::default());
    let mut fresh = entries;
    while evicts.0.len() < CALLS {
        match evicts.time(|| index.evict(BUDGET, tick)) {
            Evicted::Victim { .. } => {
                again.time(|| index.insert(uid(fresh), 1, 0, tick)).expect("room");
                fresh += 1;
            }
            Evicted::BudgetExhausted => {}
            Evicted::Nothing => unreachable!("nothing is pinned"),
        }
        let handle = handles[rng.below(entries)];
        if touches.time(|| index.touch(handle, tick)) && pins.time(|| index.pin(handle, tick)) {
            index.unpin(handle, tick);
        }
        if evicts.0.len().is_multiple_of(1000) {
            tick += 1;
            maintains.time(|| index.maintain(BUDGET, tick));
        }
    }
    evicts.report("evict right after touching every entry", report);
    again.report("insert at capacity", report);
    touches.report("touch by handle", report);
    pins.report("pin", report);
    maintains.report("maintain", report);
}
