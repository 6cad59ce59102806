//! A full gate: who holds its places, where in its queue a call stands or would, and how it is told.

use super::keyring::Who;
use super::tree::{Gate, Line, Place, Queue, Tree, TreeState};
use super::{Engine, Moment};
use crate::error::{Quota, Reason, Refusal};
use crate::ids::Uid;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Holders that a refusal names.
const NAMED: usize = 8;
/// Places of a queue that are looked at to say where a call stands: that must not cost what the queue is long.
const COUNTED: usize = 1_000;

/// The turns of a tenant that run, in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    inner: Mutex<Ordered>,
}

#[derive(Debug, Default)]
struct Ordered {
    /// By wall-clock time of their begin.
    order: BTreeMap<(i64, Uid), Arc<str>>,
    since: HashMap<Uid, i64>,
}

impl Turns {
    /// A turn of this session began; it takes the place of an earlier one that passed its slot on.
    pub(crate) fn began(&self, session: Uid, session_id: &Arc<str>, since_ms: i64) {
        let mut inner = self.inner.lock();
        if let Some(before) = inner.since.insert(session, since_ms) {
            inner.order.remove(&(before, session));
        }
        inner.order.insert((since_ms, session), session_id.clone());
    }

    pub(crate) fn ended(&self, session: Uid) {
        let mut inner = self.inner.lock();
        if let Some(since) = inner.since.remove(&session) {
            inner.order.remove(&(since, session));
        }
    }

    /// Those that have run for longest, and for how long.
    fn longest(&self, wall_ms: i64) -> Vec<(String, u64)> {
        let inner = self.inner.lock();
        inner.order.iter().take(NAMED).map(|((since, _), id)| (id.to_string(), elapsed(*since, wall_ms))).collect()
    }

    /// Since when each runs, for tests.
    pub(crate) fn list(&self) -> Vec<(Uid, i64)> {
        self.inner.lock().order.keys().map(|(since, session)| (*session, *since)).collect()
    }
}

impl TreeState {
    /// Who runs in this tree, longest first.
    fn longest(&self, wall_ms: i64) -> Vec<(String, u64)> {
        let mut found: Vec<(i64, &Line)> =
            self.iter().filter_map(|(_, l)| Some((l.running()?.begin_wall_ms, l))).collect();
        found.sort_by_key(|(since, line)| (*since, line.uid));
        let told = |(since, line): (i64, &Line)| (line.session_id.to_string(), elapsed(since, wall_ms));
        found.into_iter().take(NAMED).map(told).collect()
    }
}

fn elapsed(since_ms: i64, wall_ms: i64) -> u64 {
    (wall_ms - since_ms).max(0) as u64
}

impl Place {
    /// Where a call of this priority goes: at `arrival`, or behind all that are there.
    pub(crate) fn of(priority: i32, arrival: Option<u64>) -> Self {
        Place { against_priority: -priority, arrival: arrival.unwrap_or(u64::MAX) }
    }
}

/// How a call that is refused met a full gate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Met {
    /// It did not wait; it would have had this place.
    AtOnce(Place),
    /// It waited for so long (milliseconds) at this place.
    Waiting(Place, u64),
    /// It had a slot, and would have gone on with it.
    Above,
}

impl Engine {
    /// The refusal of a full gate. It names those whom the caller may see: with a session's key who runs in its tree.
    pub(crate) fn gate_refusal(
        &self,
        who: &Who,
        gate: Gate,
        met: Met,
        tree: &Tree,
        state: &TreeState,
        now: &Moment,
    ) -> Refusal {
        let (reason, limit_name, limit, used) = match gate {
            Gate::Tree => {
                let (cap, below) = tree.children_slots.cap_used();
                let root = state.line(0).is_some_and(|l| l.running().is_some());
                (Reason::TreeTurns, "max_turns_per_tree", cap + 1, below + u32::from(root))
            }
            Gate::Tenant => {
                let (cap, used) = tree.tenant.slots.cap_used();
                (Reason::TenantTurns, "max_turns_per_tenant", cap, used)
            }
        };
        let holders = match gate {
            Gate::Tenant if who.session.is_none() => tree.tenant.turns.longest(now.wall_ms),
            _ => state.longest(now.wall_ms),
        };
        let run = match used {
            0 => "no turn runs".to_owned(),
            1 => "1 turn runs".to_owned(),
            used => format!("{used} turns run"),
        };
        let mut message = match (gate, limit) {
            (Gate::Tree, _) => {
                format!("{run} in this tree, and {limit_name} is {limit}, one place of which is kept for the root")
            }
            (Gate::Tenant, 0) => format!("the tenant is paused: {limit_name} is 0, and {run}"),
            (Gate::Tenant, _) => format!("{run} for this tenant, and {limit_name} is {limit}"),
        };
        if let Some((id, ms)) = holders.first() {
            let whose = if gate == Gate::Tenant && who.session.is_some() { " of this tree" } else { "" };
            message += &format!("; the longest{whose} is that of session {id:?}, for {}", for_people(*ms));
        }
        let mut metadata = BTreeMap::new();
        if let Met::AtOnce(place) | Met::Waiting(place, _) = met {
            let (ahead, waiting) = tree.queue(gate).count(place);
            let number = format!("number {}{}", ahead + 1, if ahead < COUNTED { "" } else { " or more" });
            metadata.insert("queue_position", (ahead + 1).to_string());
            metadata.insert("waiting", waiting.to_string());
            message += &match met {
                Met::Waiting(_, ms) => {
                    metadata.insert("waited_ms", ms.to_string());
                    format!("; this call waited {ms} ms and was {number} in the queue")
                }
                _ => format!("; this call would be {number} in the queue"),
            };
        }
        message += match met {
            Met::AtOnce(_) => ": wait for a place (`wait`), or end a turn",
            Met::Waiting(..) => ": wait longer (`wait`), or end a turn",
            Met::Above => "",
        };
        let quota = Quota { limit_name, limit: u64::from(limit), used: u64::from(used), holders };
        let refusal = Refusal::new(reason, message).quota(quota).retry_after(1_000);
        metadata.into_iter().fold(refusal, |refusal, (key, value)| refusal.with(key, value))
    }
}

fn for_people(ms: u64) -> String {
    if ms < 1_000 { format!("{ms} ms") } else { format!("{} s", ms / 1_000) }
}

impl Queue {
    /// How many calls wait before this place, and how many in all. What keeps its place without a call does not count.
    /// Only the first places are looked at.
    fn count(&self, place: Place) -> (usize, usize) {
        let (mut ahead, mut waiting) = (0, 0);
        self.look(COUNTED, |at| {
            ahead += usize::from(at < place);
            waiting += 1;
        });
        (ahead, waiting)
    }
}
