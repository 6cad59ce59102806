//! What is measured beside the counters: how long calls wait for a slot and turns run, how large batches are, why calls
//! are refused. Buckets and labels are fixed, so that nothing a client sends can add to them.
//!
//! Each number is an atomic of its own, and relaxed: a reader may see one of two numbers that grow together a moment
//! before the other.

use super::reload::Purpose;
use super::tree::{Tenant, Tree};
use super::{Engine, count};
use crate::error::{Reason, Refusal};
use crate::ids::Uid;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds, up to what a BeginTurn may wait by default and a long turn takes.
const TIMES: &[u64] = &[
    1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000,
];
const SIZES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 16_384, 65_536];

/// Counts of values by the first bound that is not below them; the last count is of those above all.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [u64],
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        Histogram { bounds, counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    pub(crate) fn record(&self, value: u64) {
        count(&self.counts[self.bounds.partition_point(|bound| *bound < value)]);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }
}

/// A histogram as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    pub name: &'static str,
    /// The buckets' upper bounds, included in them.
    pub bounds: &'static [u64],
    /// Values in each bucket, and above the last bound.
    pub counts: Vec<u64>,
    pub sum: u64,
}

#[derive(Debug)]
pub(crate) struct Measures {
    /// How long the BeginTurns that were granted had waited for their slots. Unit: milliseconds.
    pub(crate) waits: Histogram,
    /// How long turns held their slots. Unit: milliseconds.
    pub(crate) held: Histogram,
    /// Entries that one append made durable.
    pub(crate) batches: Histogram,
    refusals: Box<[AtomicU64]>,
}

impl Default for Measures {
    fn default() -> Self {
        Measures {
            waits: Histogram::new(TIMES),
            held: Histogram::new(TIMES),
            batches: Histogram::new(SIZES),
            refusals: Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

/// Where the calls stand that wait for a read.
enum At {
    Call(u64),
    Id(Arc<Tenant>, Arc<str>),
    Line(Arc<Tree>, u32, Uid),
}

impl Engine {
    /// Counts a refusal that a caller gets. Those of the engine itself are counted already.
    pub fn refused(&self, refusal: &Refusal) {
        count(&self.counters.refusals);
        count(&self.measures.refusals[refusal.reason as usize]);
    }

    /// How often calls were refused, by reason; every reason is there.
    pub fn refusals(&self) -> Vec<(&'static str, u64)> {
        let counts = self.measures.refusals.iter().map(|c| c.load(Ordering::Relaxed));
        Reason::ALL.iter().map(|reason| reason.name()).zip(counts).collect()
    }

    /// The histograms: `turn_wait_ms`, `turn_held_ms`, `batch_entries`.
    pub fn distributions(&self) -> Vec<Distribution> {
        let Measures { waits, held, batches, .. } = &self.measures;
        [("turn_wait_ms", waits), ("turn_held_ms", held), ("batch_entries", batches)]
            .map(|(name, histogram)| Distribution {
                name,
                bounds: histogram.bounds,
                counts: histogram.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect(),
                sum: histogram.sum.load(Ordering::Relaxed),
            })
            .into()
    }

    /// The ticket of a call that waits for a read, while it is under way: of the first, if several do. `None`: no caller
    /// does.
    pub fn read_for(&self, effect: u64) -> Option<u64> {
        let at = self.with_purpose(effect, |purpose| match purpose {
            Purpose::Find { tenant, session_id, .. } => At::Id(tenant.clone(), session_id.clone()),
            Purpose::Load { tree, index, uid } => At::Line(tree.clone(), *index, *uid),
            Purpose::Records { call, .. }
            | Purpose::Read { call }
            | Purpose::Ack { call }
            | Purpose::Fork { call }
            | Purpose::Mail { call, .. }
            | Purpose::Sent { call }
            | Purpose::Family { call } => At::Call(call.ticket),
            Purpose::Recover { .. } | Purpose::Due | Purpose::Stale | Purpose::Runnable { .. } => At::Call(0),
        })?;
        let ticket = match at {
            At::Call(ticket) => Some(ticket),
            At::Id(tenant, session_id) => tenant.directory.asking(&session_id),
            At::Line(tree, index, uid) => {
                let state = tree.state.lock();
                let loading = state.line(index).filter(|line| line.uid == uid)?.loading.as_ref()?;
                loading.granted.as_deref().or_else(|| loading.calls.first()).map(|call| call.ticket)
            }
        };
        ticket.filter(|ticket| *ticket != 0)
    }
}
