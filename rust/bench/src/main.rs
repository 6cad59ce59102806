//! Ratios of roost-core's slot counters and residency index against what else one could use, each measured within one
//! run: contenders take turns in short rounds, and a ratio is the median over the rounds. Absolute times are printed
//! for orientation only; they say more about the machine than about the code.
//!
//! `roost-bench [--quick] [--json]`. Exit code 0 if every bar is met, 1 if one is missed, 2 on bad usage.

mod latency;
mod report;
mod residency;
mod rounds;
mod slots;

use report::Report;

/// How much work a run does.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    /// Operations of a contender a round.
    ops: usize,
    entries: usize,
    many_entries: usize,
}

fn main() {
    let (mut quick, mut json) = (false, false);
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--quick" => quick = true,
            "--json" => json = true,
            _ => {
                eprintln!("usage: roost-bench [--quick] [--json]");
                std::process::exit(2);
            }
        }
    }
    // Quick keeps the 1,000,000 entries of the bars (ratios depend on cache misses) and saves on rounds.
    let scale = if quick {
        Scale { rounds: 7, ops: 200_000, entries: 1_000_000, many_entries: 1_000_000 }
    } else {
        Scale { rounds: 21, ops: 500_000, entries: 1_000_000, many_entries: 10_000_000 }
    };
    let mut report = Report::new(json);
    // First, while the process is small: resident memory is read from the system.
    latency::run(scale, &mut report);
    slots::run(scale, &mut report);
    residency::run(scale, &mut report);
    std::process::exit(i32::from(!report.finish()));
}
