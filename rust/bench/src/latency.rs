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

/// How often the whole history is played. The index has no clock and no randomness, so the n-th call does the same in
/// each: the least of its times is what the call costs, the rest is what else the machine did meanwhile.
const PLAYS: usize = 3;

/// Single calls of one kind, in nanoseconds.
#[derive(Default)]
struct Calls {
    best: Vec<u32>,
    /// Calls of this play so far.
    at: usize,
}

impl Calls {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let value = call();
        let nanos = start.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32;
        match self.best.get_mut(self.at) {
            Some(best) => *best = nanos.min(*best),
            None => self.best.push(nanos),
        }
        self.at += 1;
        value
    }

    fn report(&mut self, what: &str, report: &mut Report) {
        self.best.sort_unstable();
        let at = |part: f64| f64::from(self.best[((self.best.len() - 1) as f64 * part) as usize]) / 1e3;
        report.figure(&format!("latency/{what}: p50"), at(0.5), "us");
        report.bar(&format!("latency/{what}: p99.99"), at(0.9999), 50.0, true, "us");
        report.figure(&format!("latency/{what}: max of {}", self.best.len()), at(1.0), "us");
    }
}

#[derive(Default)]
struct AllCalls {
    growing: Calls,
    evict: Calls,
    insert: Calls,
    touch: Calls,
    pin: Calls,
    maintain: Calls,
}

impl AllCalls {
    fn each(&mut self) -> [(&'static str, &mut Calls); 6] {
        [
            ("insert into a growing index", &mut self.growing),
            ("evict right after touching every entry", &mut self.evict),
            ("insert at capacity", &mut self.insert),
            ("touch by handle", &mut self.touch),
            ("pin", &mut self.pin),
            ("maintain", &mut self.maintain),
        ]
    }
}

/// Resident set in bytes, or `None` where the system does not say.
fn resident() -> Option<f64> {
    let pages: f64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096.0)
}

/// One play; returns what the filled index took of memory.
fn play(entries: usize, calls: &mut AllCalls, handles: &mut [Handle]) -> Option<f64> {
    calls.each().into_iter().for_each(|(_, calls)| calls.at = 0);
    let before = resident();
    let index = Index::new(entries, HORIZON);
    for (n, handle) in handles.iter_mut().enumerate() {
        *handle = calls.growing.time(|| index.insert(uid(n), 1, 0, 1)).expect("room");
    }
    let mut tick = 2;
    while !calls.maintain.time(|| index.maintain(BUDGET, tick)).done {}
    let memory = Some(resident()? - before?);

    // Everything is used: every filing is stale now, the worst history for who must find the oldest.
    let mut rng = Rng(3);
    for storm in 0..2 {
        tick += 1;
        for n in 0..entries {
            let n = if storm == 0 { n } else { rng.below(entries) };
            assert!(index.touch(handles[n], tick));
        }
    }
    tick += 1;
    let mut fresh = entries;
    for n in 0..CALLS {
        match calls.evict.time(|| index.evict(BUDGET, tick)) {
            Evicted::Victim { .. } => {
                calls.insert.time(|| index.insert(uid(fresh), 1, 0, tick)).expect("room");
                fresh += 1;
            }
            Evicted::BudgetExhausted => {}
            Evicted::Nothing => unreachable!("nothing is pinned"),
        }
        let handle = handles[rng.below(entries)];
        if calls.touch.time(|| index.touch(handle, tick)) && calls.pin.time(|| index.pin(handle, tick)) {
            index.unpin(handle, tick);
        }
        if n.is_multiple_of(1000) {
            tick += 1;
            calls.maintain.time(|| index.maintain(BUDGET, tick));
        }
    }
    memory
}

pub(crate) fn run(scale: Scale, report: &mut Report) {
    let entries = scale.many_entries;
    let mut calls = AllCalls::default();
    // Written before the first reading of memory, so that our own bookkeeping is not counted as the index's.
    calls.growing.best = vec![u32::MAX; entries];
    calls.maintain.best = vec![u32::MAX; entries / BUDGET * 4];
    let mut handles = vec![Handle::from_bits(std::num::NonZeroU64::MAX); entries];
    let memory = play(entries, &mut calls, &mut handles);
    for _ in 1..PLAYS {
        play(entries, &mut calls, &mut handles);
    }
    calls.maintain.best.truncate(calls.maintain.at);
    report.heading(&format!("memory and single calls, {entries} entries"));
    if let Some(memory) = memory {
        report.bar("memory/an entry, all in", memory / entries as f64, 64.0, true, "bytes");
    }
    for (what, calls) in calls.each() {
        calls.report(what, report);
    }
}
