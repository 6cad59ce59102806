//! The limits in force, and SetLimits, which changes them while the server runs.
//!
//! What is set wins over the configuration, at every start, until it is reset. A change is in force when its entry is
//! durable, from the step on that releases its answer; one that is lost has changed nothing. Lowering a cap ends nothing
//! that runs: the gate compares what is in use with the new cap, and so admits nothing more until use is below (I2).
//! Raising it looks at every gate concerned. Lock order: this table, then tenants, trees and the journal.

use super::keyring::{DEFAULT_TENANT, KEYS_ROOT};
use super::tree::{Gate, Tree};
use super::{Answer, Call, Engine, Moment, Pending, Work};
use crate::error::Refusal;
use crate::gen_v1 as v1;
use crate::journal::{Held, Op, Seq};
use crate::limits::{Change, Limits, LiveLimits};
use crate::slots::SlotNode;
use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The source of a limit that was set while a server ran.
const SET: &str = "set";

type Values = BTreeMap<&'static str, u64>;

/// What a server knows of its limits when it starts.
#[derive(Clone, Debug, Default)]
pub struct LimitSetup {
    configured: Limits,
    /// Where the configured values came from, by name.
    sources: BTreeMap<String, String>,
    set: Values,
    /// More than this may not be set while the server runs.
    most: Values,
    left_aside: Vec<String>,
}

impl From<Limits> for LimitSetup {
    fn from(configured: Limits) -> Self {
        LimitSetup::new(configured, BTreeMap::new(), &BTreeMap::new(), [])
    }
}

impl LimitSetup {
    /// `most`: what else of the configuration bounds a limit from above; `stored`: what was set before this start. Of
    /// that, what this server cannot do is left aside.
    pub fn new(
        configured: Limits,
        sources: BTreeMap<String, String>,
        most: &BTreeMap<String, u64>,
        stored: impl IntoIterator<Item = (String, u64)>,
    ) -> Self {
        let mut setup = LimitSetup { configured, sources, ..LimitSetup::default() };
        setup.most.extend(most.iter().filter_map(|(name, value)| Some((entry(name)?.0, *value))));
        for (name, value) in stored {
            let fits = entry(&name).filter(|(name, _, min, max)| {
                let allowed = setup.most.get(name).is_none_or(|most| value <= *most);
                (*min..=*max).contains(&value) && allowed && change_of(name) != Change::Fixed
            });
            match fits {
                Some((name, ..)) => drop(setup.set.insert(name, value)),
                None => setup.left_aside.push(name),
            }
        }
        for (name, _) in Limits::CHANGES.iter().filter(|(_, change)| *change == Change::LaidOut) {
            let values = [setup.configured.get(name), setup.set.get(name).copied()];
            setup.most.extend(values.into_iter().flatten().max().map(|most| (*name, most)));
        }
        setup
    }

    /// What was set before and cannot be any more: the configuration rules there.
    pub fn left_aside(&self) -> &[String] {
        &self.left_aside
    }

    /// The most that a limit can be while the server runs.
    pub(crate) fn most(&self, name: &str) -> u64 {
        let greatest = || entry(name).map_or(0, |(_, _, _, max)| *max);
        self.most.get(name).copied().unwrap_or_else(greatest)
    }
}

fn change_of(name: &str) -> Change {
    Limits::CHANGES.iter().find(|(known, _)| *known == name).map_or(Change::Fixed, |(_, change)| *change)
}

fn entry(name: &str) -> Option<&'static (&'static str, u64, u64, u64)> {
    Limits::TABLE.iter().find(|(known, ..)| *known == name)
}

/// The limits in force, and where they come from.
#[derive(Debug)]
pub(crate) struct InForce {
    live: LiveLimits,
    configured: Limits,
    sources: BTreeMap<String, String>,
    most: Values,
    set: Mutex<SetValues>,
}

impl Deref for InForce {
    type Target = LiveLimits;
    fn deref(&self) -> &LiveLimits {
        &self.live
    }
}

#[derive(Debug, Default)]
struct SetValues {
    /// As the store has it.
    durable: Values,
    /// As it will be when what is in the journal is durable.
    planned: Values,
    /// The last entry about it.
    seq: Seq,
}

/// Some limits' new values; `None`: as the configuration says.
pub(crate) type LimitChange = BTreeMap<&'static str, Option<u64>>;

impl InForce {
    pub(crate) fn new(setup: LimitSetup) -> Self {
        let live = LiveLimits::new(&setup.configured);
        for (name, value) in &setup.set {
            live.put(name, *value);
        }
        let set = SetValues { planned: setup.set.clone(), durable: setup.set, seq: 0 };
        let LimitSetup { configured, sources, most, .. } = setup;
        InForce { live, configured, sources, most, set: Mutex::new(set) }
    }

    /// Whether any was ever set: what was admitted before may be above a cap of now.
    pub(crate) fn ever_set(&self) -> bool {
        let set = self.set.lock();
        set.seq > 0 || !set.durable.is_empty()
    }

    fn check(&self, change: &LimitChange) -> Result<(), Refusal> {
        if let Some((name, value)) = change.iter().find(|(name, _)| change_of(name) == Change::Fixed) {
            let rule = format!("{name} cannot be changed while the server runs: set it in the configuration");
            let field = if value.is_some() { "limits" } else { "reset" };
            return Err(Refusal::field(field, rule).with("name", name));
        }
        let above = |(name, value): (&&'static str, &Option<u64>)| {
            let most = *self.most.get(name)?;
            Some((*name, (*value)?, most)).filter(|(_, value, most)| value > most)
        };
        let Some((name, value, most)) = change.iter().find_map(above) else { return Ok(()) };
        let why = if change_of(name) == Change::LaidOut {
            "memory for it is laid out at the start; raise it in the configuration"
        } else {
            "the configuration allows no more"
        };
        let rule = format!("{name} can be at most {most} while the server runs, not {value}: {why}");
        Err(Refusal::field("limits", rule).with("name", name).with("value", value).with("limit", most))
    }
}

/// The limits that a SetLimits names. Refuses what can never be.
pub(crate) fn wanted(r: v1::SetLimitsRequest) -> Result<LimitChange, Refusal> {
    let mut change = LimitChange::new();
    let known = |field: &str, name: &str| {
        let unknown = || Refusal::field(field, format!("there is no limit called {name:?}")).with("name", name);
        entry(name).ok_or_else(unknown)
    };
    for (name, value) in &r.limits {
        let (name, _, min, max) = known("limits", name)?;
        let in_range = u64::try_from(*value).ok().filter(|value| (min..=max).contains(&value));
        let Some(value) = in_range else {
            let rule = format!("{name} must be between {min} and {max}, not {value}");
            let refusal = Refusal::field("limits", rule).with("name", name).with("value", value);
            return Err(refusal.with("min", min).with("max", max));
        };
        change.insert(name, Some(value));
    }
    for name in &r.reset {
        let (name, ..) = known("reset", name)?;
        if change.insert(name, None).is_some_and(|given| given.is_some()) {
            let rule = format!("{name} is given a value as well");
            return Err(Refusal::field("reset", rule).with("name", name));
        }
    }
    if change.is_empty() {
        return Err(Refusal::field("limits", "name a limit to set or to reset"));
    }
    Ok(change)
}

impl Engine {
    pub(crate) fn set_limits(&self, call: Pending, work: &mut Work, now: &Moment) {
        let Call::SetLimits(wanted) = &call.call else { return };
        if let Err(refusal) = self.limits.check(wanted) {
            return self.refuse(call.ticket, refusal, work);
        }
        let mut set = self.limits.set.lock();
        let news = |(name, value): &(&&'static str, &Option<u64>)| set.planned.get(*name) != value.as_ref();
        let change: LimitChange = wanted.iter().filter(news).map(|(name, value)| (*name, *value)).collect();
        if !change.is_empty() {
            let ops = change.iter().map(|(name, value)| Op::Limit { name, value: *value }).collect();
            let tenant = self.tenant(DEFAULT_TENANT);
            set.seq = self.append_apart(self.journal.append(), (KEYS_ROOT, tenant), ops, now);
            merge(&mut set.planned, &change);
            // The table stays locked until the change is held: so changes take effect in their order.
            if let Some(Held::Limits(change)) = self.journal.hold(set.seq, Held::Limits(change)) {
                self.put_in_force(&mut set, &change, work);
            }
        }
        let limits = self.list_limits(&set.planned).into_iter().map(Into::into).collect();
        let (result, after) = (Ok(v1::SetLimitsResponse { limits }.encode_to_vec()), set.seq);
        drop(set);
        work.answers.push(Answer { ticket: call.ticket, result, after, root: Some(KEYS_ROOT) });
    }

    /// The entry of a change is durable.
    pub(crate) fn limits_set(&self, change: &LimitChange, work: &mut Work) {
        self.put_in_force(&mut self.limits.set.lock(), change, work);
    }

    /// The entry of a change was lost, and with it every later one: nothing of them happened.
    pub(crate) fn limits_lost(&self) {
        let mut set = self.limits.set.lock();
        set.planned = set.durable.clone();
    }

    fn put_in_force(&self, set: &mut MutexGuard<'_, SetValues>, change: &LimitChange, work: &mut Work) {
        merge(&mut set.durable, change);
        for (name, value) in change {
            let value = value.or_else(|| self.limits.configured.get(name)).unwrap_or_default();
            self.limits.live.put(name, value);
        }
        let changed = |name: &str| change.contains_key(name);
        if changed("journal_queue_bytes") {
            self.journal.set_bound(self.limits.journal_queue_bytes());
        }
        if changed("sweep_interval_ms") {
            self.sweep_sooner();
        }
        if changed("max_turns_per_tree") {
            self.reach_trees(work);
        }
        if changed("max_turns_per_tenant") {
            self.reach_tenants(work);
        }
    }

    /// Brings the cap of trees to every one in memory. One that comes there meanwhile reads it under its own lock, as
    /// this does: whoever is second has the new one.
    fn reach_trees(&self, work: &mut Work) {
        let tenants: Vec<_> = self.tenants.read().values().cloned().collect();
        for tree in tenants.iter().flat_map(|tenant| tenant.directory.trees()) {
            let state = tree.state.lock();
            self.set_tree_cap(&tree);
            drop(state);
            if tree.queue.next(None).is_some() {
                work.gates.push((tree, Gate::Tree));
            }
        }
    }

    fn reach_tenants(&self, work: &mut Work) {
        let cap = self.limits.max_turns_per_tenant() as u32;
        // A tenant that is made meanwhile is made with the new one, or is in here.
        for tenant in self.tenants.write().values() {
            tenant.slots.set_cap(cap);
            if let Some((_, tree, _)) = tenant.queue.next(None) {
                work.gates.push((tree, Gate::Tenant));
            }
        }
    }

    /// Gives a tree the cap of now, once it is in the directory. The caller holds its lock.
    pub(crate) fn set_tree_cap(&self, tree: &Arc<Tree>) {
        tree.children_slots.set_cap(self.children_cap());
    }

    /// A counter of turns below a root: one place of its tree is the root's own.
    pub(crate) fn children_slots(&self) -> SlotNode {
        SlotNode::new(self.children_cap())
    }

    fn children_cap(&self) -> u32 {
        self.limits.max_turns_per_tree() as u32 - 1
    }

    /// A limit in force, by name.
    pub fn limit(&self, name: &str) -> Option<u64> {
        self.limits.get(name)
    }

    /// All limits in force, as the store has them.
    pub fn limits(&self) -> Vec<LimitInForce> {
        let set = self.limits.set.lock().durable.clone();
        self.list_limits(&set)
    }

    fn list_limits(&self, set: &Values) -> Vec<LimitInForce> {
        let one = |(name, default, ..): &(&'static str, u64, u64, u64)| {
            let configured = || self.limits.configured.get(name).unwrap_or(*default);
            let source = || self.limits.sources.get(*name).map_or("default", |source| source);
            match set.get(name) {
                Some(value) => LimitInForce { name, value: *value, source: SET.to_owned(), used: self.used(name) },
                None => LimitInForce { name, value: configured(), source: source().to_owned(), used: self.used(name) },
            }
        };
        Limits::TABLE.iter().map(one).collect()
    }

    /// How much of a limit is in use, where that is one number.
    fn used(&self, name: &str) -> Option<u64> {
        match name {
            "max_resident_sessions" => Some(self.residents.len() as u64),
            "max_resident_bytes" => Some(self.memory()),
            "max_waiters" => Some(self.waiting.lock().total() as u64),
            "max_resources" => Some(self.resources.attached()),
            "max_store_bytes" => Some(self.store_bytes.load(Ordering::Relaxed)),
            "journal_queue_bytes" => Some(self.journal.backlog().1),
            _ => None,
        }
    }
}

/// A limit as GetStats tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitInForce {
    pub name: &'static str,
    pub value: u64,
    /// Where the value came from; "set": SetLimits.
    pub source: String,
    /// How much of it is in use, where that is one number.
    pub used: Option<u64>,
}

impl From<LimitInForce> for v1::Limit {
    fn from(limit: LimitInForce) -> Self {
        v1::Limit {
            name: limit.name.to_owned(),
            value: limit.value as i64,
            source: limit.source,
            used: limit.used.map_or(-1, |used| used as i64),
        }
    }
}

fn merge(values: &mut Values, change: &LimitChange) {
    for (name, value) in change {
        match value {
            Some(value) => drop(values.insert(name, *value)),
            None => drop(values.remove(name)),
        }
    }
}
