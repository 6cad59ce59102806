//! The whole engine under a seeded, deterministic simulation: one thread, a simulated clock, a store in memory, callers
//! that vanish, late reads, refused appends, crashes. Guards I1-I13, I21-I24.
//!
//! A failure prints its seed; `ROOST_SIM_SEED=n ROOST_SIM_OPS=m cargo test --test engine replay -- --ignored`
//! replays it.
use crate::sim::rng::Rng;
use crate::sim::world::{Config, World};
use roost_core::limits::Limits;
use std::collections::BTreeMap;

/// A small world, so that everything meets everything; what exactly is small follows from the seed.
fn config(seed: u64, ops: usize) -> Config {
    let mut rng = Rng::new(!seed);
    let limits = Limits {
        max_resident_sessions: [1, 3, 7, 10_000][rng.below(4)],
        max_resident_bytes: [2_000, 20_000, 1 << 30, 1 << 30][rng.below(4)],
        max_turns_per_tree: [1, 2, 3, 8][rng.below(4)],
        max_turns_per_tenant: [1, 3, 5, 50][rng.below(4)],
        max_sessions_per_tree: [4, 1_000][rng.below(2)],
        max_depth: [1, 2, 8][rng.below(3)],
        max_waiters: [3, 100][rng.below(2)],
        max_waiters_per_connection: [2, 100][rng.below(2)],
        keep_place_ms: [0, 2_000, 30_000][rng.below(3)],
        max_mailbox_messages: [2, 1_000][rng.below(2)],
        max_deliveries: [1, 2, 5][rng.below(3)],
        max_fork_bytes: [300, 64 << 20, 64 << 20][rng.below(3)],
        journal_queue_bytes: [6_000, 64 << 20][rng.below(2)],
        max_batch_entries: [1, 4, 4_096][rng.below(3)],
        max_journal_lag_ms: if seed % 8 == 7 { 1_000 } else { 0 },
        ..Limits::default()
    };
    Config {
        seed,
        ops,
        limits,
        refused: [0, 0, 3, 10][rng.below(4)],
        quarantined: [0, 0, 0, 1][rng.below(4)],
        failed_reads: [0, 2, 10][rng.below(3)],
        restarts: [0, 2, 10][rng.below(3)],
        long_lives: rng.chance(40),
    }
}

fn simulate(seed: u64, ops: usize) -> Result<BTreeMap<String, u64>, String> {
    let config = config(seed, ops);
    let mut world = World::new(config.clone());
    world.run().map_err(|e| format!("seed {seed}, {ops} operations, step {}: {e}\n  {config:?}", world.step))?;
    Ok(world.seen)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect("a number"))
}

fn simulate_all(seeds: impl Iterator<Item = u64>, ops: usize) -> BTreeMap<String, u64> {
    let mut seen = BTreeMap::new();
    for seed in seeds {
        match simulate(seed, ops) {
            Ok(one) => one.into_iter().for_each(|(what, n)| *seen.entry(what).or_default() += n),
            Err(e) => panic!("{e}\n  replay: ROOST_SIM_SEED={seed} ROOST_SIM_OPS={ops}"),
        }
    }
    seen
}

#[test]
fn random_worlds_keep_every_invariant() {
    let seen = simulate_all(1..=60, 10_000);
    for (what, n) in &seen {
        println!("{n:>9} {what}");
    }
    // A simulation in which something never happens says nothing of it.
    for what in [
        "SetLimits OK",
        "SetLimits NOT_STORED",
        "messages_sent",
        "messages_delivered",
        "messages_consumed",
        "messages_expired",
        "messages_dead",
        "PollTurn OK",
        "WaitMail OK",
        "SendMessage MAILBOX_FULL",
        "SendMessage ROOT_TRIGGER",
        "resources_attached",
        "resources_released",
        "pool_evictions",
        "AttachResource POOL_FULL",
        "sessions_reopened",
        "sessions_forked",
        "turns copied",
        "turns copied from what has ended",
        "OpenSession TURN_NOT_FOUND",
        "OpenSession TOO_LARGE",
        "OpenSession SESSION_PURGED",
        "OpenSession SESSION_NOT_FOUND",
        "sessions_dumped",
        "sessions_purged",
        "trees_swept",
        "step changed",
        "turns_aborted",
        "turns_expired",
        "turns_interrupted",
        "turns_released",
        "turns_taken_over",
        "told SESSION_EVENT_KIND_OPENED",
        "told SESSION_EVENT_KIND_TURN_BEGUN",
        "told SESSION_EVENT_KIND_TURN_ENDED",
        "told SESSION_EVENT_KIND_INTERRUPTED",
        "told SESSION_EVENT_KIND_CLOSED",
        "told SESSION_EVENT_KIND_REOPENED",
        "told SESSION_EVENT_KIND_UPDATED",
        "trajectories_acknowledged",
        "trajectories_finished",
        "quarantined",
        "refused",
        "restart",
    ] {
        assert!(seen.get(what).is_some_and(|n| *n >= 5), "{what}: {:?}", seen.get(what));
    }
}

#[test]
#[ignore = "replays one seed"]
fn replay() {
    let (seed, ops) = (number("ROOST_SIM_SEED", 1), number("ROOST_SIM_OPS", 10_000));
    for (what, n) in simulate_all(std::iter::once(seed), ops as usize) {
        println!("{n:>9} {what}");
    }
}

/// I11: eviction and reload are invisible.
#[test]
fn residency_is_invisible() {
    let (first, last) = (number("ROOST_SIM_SEED", 1), number("ROOST_SIM_SEED", 8));
    let mut rewound = 0;
    for seed in first..=last {
        let worlds = [(1, 1), (1, 1 << 30), (7, 1 << 30), (1_000_000, 1 << 40)];
        let mut runs: Vec<_> = worlds
            .into_iter()
            .map(|(max_resident_sessions, max_resident_bytes)| {
                let mut config = config(seed, 0);
                config.limits = Limits {
                    max_resident_sessions,
                    max_resident_bytes,
                    // How full and how late the journal is at an instant depends on what had to be read: here it is
                    // neither.
                    journal_queue_bytes: 64 << 20,
                    max_journal_lag_ms: 0,
                    ..config.limits
                };
                (World::new(config), BTreeMap::new())
            })
            .collect();
        for step in 0..number("ROOST_SIM_OPS", 5_000) {
            let mut first: Option<Vec<String>> = None;
            for ((world, calls), (count, bytes)) in runs.iter_mut().zip(worlds) {
                let told = world.calm_step(calls).unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}"));
                let same = first.get_or_insert_with(|| told.clone());
                assert_eq!(*same, told, "seed {seed}, step {step}: {count} sessions, {bytes} bytes in memory");
            }
        }
        for (world, _) in &mut runs {
            world.count_kinds();
            rewound += world.seen["turns_rewound"];
        }
    }
    // Where reads are late a rewind is mostly overtaken; here they all come to their end.
    println!("{rewound} rewinds");
    assert!(first == last || rewound >= 100, "only {rewound} commits rewound");
}

/// Order at a gate: priority, then arrival; a cancelled wait keeps its place for its repeat.
#[test]
fn waiters_go_in_order() {
    for seed in 1..=100 {
        let limits = Limits { max_turns_per_tenant: 1, ..Limits::default() };
        let config = Config {
            seed,
            ops: 0,
            limits,
            refused: 0,
            quarantined: 0,
            failed_reads: 0,
            restarts: 0,
            long_lives: false,
        };
        let mut world = World::new(config);
        let (order, should) = world.queue_order(12);
        assert_eq!(order, should, "seed {seed}");
        world.engine.check(true).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// The long one; `make test-long` runs it.
#[test]
#[ignore = "ten million operations: a minute"]
fn ten_million_operations() {
    let first = number("ROOST_SIM_SEED", 1_000);
    simulate_all(first..first + 200, 50_000);
}
