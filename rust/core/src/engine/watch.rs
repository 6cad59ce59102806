//! What WatchSessions and WatchOwner tell: the latest events of sessions, in memory.
//!
//! An event comes here when what it tells of is durable, those of one tree in the order of its entries; what was lost
//! never shows (see `Journal::tell`). Each tenant has a ring with positions of its own. One bound holds for all of them:
//! where it is reached, the oldest event of the tenant that takes up the most goes. So a tenant that takes no more than
//! an equal part of the room loses nothing by the noise of others.
//!
//! A reader has a place in the ring and nothing else: whoever reads slowly costs nothing, and is told when it has lost
//! what it had not read.

use super::tree::{Lease, Line, Tree, TreeState};
use super::{Engine, Moment, Timer, timestamp};
use crate::gen_store::EndedBy;
use crate::gen_v1 as v1;
use crate::gen_v1::SessionEventKind as Kind;
use crate::gen_v1::watch_owner_response::Event as OwnerEvent;
use crate::ids::Uid;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One that is larger counts as several: so a bound on their number bounds their memory. Unit: bytes.
const UNIT: usize = 512;
/// Events that one look passes over at most: it holds up whoever has something to tell.
const AT_ONCE: usize = 4_096;
const ROOT: &str = "/root";

/// Something that has happened to a session.
#[derive(Debug)]
pub struct Told {
    kind: Kind,
    session_id: Arc<str>,
    uid: Uid,
    root: Uid,
    root_session_id: Arc<str>,
    /// Empty for a root: most trees are one session.
    path: Box<str>,
    /// Those it descends from.
    above: Box<[Uid]>,
    /// Who began the turn that it tells of, else the session's latest.
    owner: Arc<str>,
    turn: u32,
    attempt: u32,
    fence: u64,
    outcome: v1::TurnOutcome,
    close_reason: v1::CloseReason,
    /// Of a turn's end: somebody else ended it.
    lost: bool,
    /// Messages in its mailbox that no turn has taken.
    queued: u32,
    trigger: bool,
    /// Of a message and of a turn's end: from then on it is runnable, and runs no turn. Wall-clock milliseconds.
    runnable: Option<i64>,
    wall_ms: i64,
}

impl Told {
    fn units(&self) -> u64 {
        let strings = self.session_id.len() + self.path.len() + self.owner.len() + self.root_session_id.len();
        ((size_of::<Self>() + strings + size_of_val(&*self.above)) / UNIT + 1) as u64
    }

    fn path(&self) -> &str {
        if self.path.is_empty() { ROOT } else { &self.path }
    }

    /// Whether it tells of this session or of one that descended from it.
    fn inside(&self, uid: Uid) -> bool {
        self.uid == uid || self.above.contains(&uid)
    }

    pub(crate) fn root(&self) -> Uid {
        self.root
    }

    /// As callers see it.
    pub fn to_proto(&self) -> v1::SessionEvent {
        let of_turn = matches!(self.kind, Kind::TurnBegun | Kind::TurnEnded | Kind::Interrupted);
        v1::SessionEvent {
            kind: self.kind as i32,
            session_id: self.session_id.to_string(),
            uid: self.uid.to_string(),
            root_session_id: self.root_session_id.to_string(),
            path: self.path().to_owned(),
            time: Some(timestamp(self.wall_ms)),
            turn: self.turn,
            attempt: self.attempt,
            owner: if of_turn { self.owner.to_string() } else { String::new() },
            outcome: self.outcome as i32,
            close_reason: self.close_reason as i32,
            queued: self.queued,
            trigger: self.trigger,
        }
    }

    /// What its owner makes of it.
    fn to_owner(&self) -> Owned {
        let session_id = self.session_id.to_string();
        let (turn, fence) = (self.turn, self.fence);
        let event = match self.kind {
            Kind::Interrupted => Some(OwnerEvent::Interrupt(v1::Interrupt { session_id, turn, fence })),
            Kind::Closed => {
                let reason = self.close_reason as i32;
                Some(OwnerEvent::Closed(v1::OwnedSessionClosed { session_id, reason }))
            }
            Kind::TurnEnded if self.lost => {
                let outcome = self.outcome as i32;
                Some(OwnerEvent::LeaseLost(v1::LeaseLost { session_id, turn, fence, outcome }))
            }
            _ => None,
        };
        Owned { uid: self.uid, fence, runnable: self.runnable, event }
    }

    fn concerns_owner(&self) -> bool {
        matches!(self.kind, Kind::Interrupted | Kind::Closed) || self.lost || self.runnable.is_some()
    }
}

/// What an owner is told, or is to look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Owned {
    /// The session.
    pub uid: Uid,
    /// That of the grant that it tells of.
    pub fence: u64,
    /// It may be runnable from then on, by the wall clock: the store knows.
    pub runnable: Option<i64>,
    pub event: Option<OwnerEvent>,
}

/// Which events a reader wants; all of it must match.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this session and what descended from it then.
    pub inside: Option<Uid>,
    /// Of the tree of this root.
    pub root: Option<Uid>,
    /// Of this path and what is below it.
    pub path_prefix: Option<String>,
    /// Empty: of all kinds.
    pub kinds: Vec<i32>,
    /// What concerns this owner.
    pub owner: Option<String>,
}

impl Filter {
    fn matches(&self, told: &Told) -> bool {
        self.root.is_none_or(|root| told.root == root)
            && self.inside.is_none_or(|uid| told.inside(uid))
            && (self.kinds.is_empty() || self.kinds.contains(&(told.kind as i32)))
            && self.owner.as_ref().is_none_or(|owner| *told.owner == **owner && told.concerns_owner())
            && self.path_prefix.as_ref().is_none_or(|prefix| is_below(told.path(), prefix))
    }

    /// Whether it tells of the end of the session that the reader may see no more than: then the reader is to be looked
    /// at, whichever events it wants.
    fn ends(&self, told: &Told) -> bool {
        told.kind == Kind::Closed && self.inside == Some(told.uid)
    }
}

/// Whether a path is this one or below it, on the boundaries of names.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A reader of a tenant's events, and its place.
#[derive(Clone, Debug)]
pub struct Watch {
    tenant: Arc<str>,
    filter: Filter,
    /// The position of the next event that it has not seen.
    at: u64,
}

impl Watch {
    /// Where it is: another goes on from here.
    pub fn position(&self) -> u64 {
        self.at
    }
}

/// What a reader gets at once.
#[derive(Debug, Default)]
pub struct Watched {
    pub events: Vec<Arc<Told>>,
    /// Its place is not in the ring any more: events are missing. It reads on from now.
    pub lost: bool,
    /// There may be more at once.
    pub more: bool,
}

#[derive(Debug, Default)]
struct Ring {
    /// The position of the oldest event.
    first: u64,
    events: VecDeque<Arc<Told>>,
    units: u64,
}

impl Ring {
    fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    fn pop(&mut self) -> u64 {
        let Some(oldest) = self.events.pop_front() else { return 0 };
        self.first += 1;
        let units = oldest.units();
        self.units -= units;
        if self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
        units
    }
}

#[derive(Debug, Default)]
struct Rings {
    /// As of the latest event.
    bound: u64,
    units: u64,
    events: u64,
    tenants: HashMap<Arc<str>, Ring>,
    by_units: BTreeSet<(u64, Arc<str>)>,
}

impl Rings {
    fn push(&mut self, tenant: &Arc<str>, told: Arc<Told>) {
        let units = told.units();
        self.resize(tenant, |ring| {
            ring.units += units;
            ring.events.push_back(told);
        });
        self.units += units;
        self.events += 1;
        while self.units > self.bound {
            let Some((_, largest)) = self.by_units.last().cloned() else { break };
            let mut gone = 0;
            self.resize(&largest, |ring| gone = ring.pop());
            self.units -= gone;
            self.events -= 1;
        }
    }

    fn resize(&mut self, tenant: &Arc<str>, change: impl FnOnce(&mut Ring)) {
        let ring = self.tenants.entry(tenant.clone()).or_default();
        let before = ring.units;
        change(ring);
        let after = ring.units;
        self.by_units.remove(&(before, tenant.clone()));
        if after > 0 {
            self.by_units.insert((after, tenant.clone()));
        }
    }

    fn end(&self, tenant: &str) -> u64 {
        self.tenants.get(tenant).map_or(0, Ring::end)
    }

    /// Moves a reader on to the next event that it wants, or as far as one look goes. Whether there is something for it
    /// to take: that event, more to look at, or that it has lost some.
    fn look(&self, watch: &mut Watch) -> bool {
        let (first, end) = self.tenants.get(&watch.tenant).map_or((0, 0), |ring| (ring.first, ring.end()));
        if watch.at < first || watch.at > end {
            return true;
        }
        let Some(ring) = self.tenants.get(&watch.tenant) else { return false };
        for told in ring.events.range((watch.at - first) as usize..).take(AT_ONCE) {
            if watch.filter.matches(told) || watch.filter.ends(told) {
                return true;
            }
            watch.at += 1;
        }
        watch.at < end
    }

    fn take(&self, watch: &mut Watch, most: usize, most_bytes: usize) -> Watched {
        let (first, end) = self.tenants.get(&watch.tenant).map_or((0, 0), |ring| (ring.first, ring.end()));
        if watch.at < first || watch.at > end {
            watch.at = end;
            return Watched { lost: true, ..Watched::default() };
        }
        let mut events = Vec::new();
        let mut bytes = 0;
        let ring = self.tenants.get(&watch.tenant).map(|ring| ring.events.range((watch.at - first) as usize..));
        for told in ring.into_iter().flatten().take(AT_ONCE) {
            if watch.filter.matches(told) {
                bytes += told.units() as usize * UNIT;
                if !events.is_empty() && (events.len() == most || bytes > most_bytes) {
                    break;
                }
                events.push(told.clone());
            }
            watch.at += 1;
        }
        Watched { events, lost: false, more: watch.at < end }
    }
}

/// The rings of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    rings: Mutex<Rings>,
    /// Grows with every event.
    count: AtomicU64,
}

impl Watches {
    /// Events that are in memory.
    pub(crate) fn events(&self) -> u64 {
        self.rings.lock().events
    }
}

impl Engine {
    /// Grows with every event that comes into a ring: who watches looks again.
    pub fn watch_count(&self) -> u64 {
        self.watches.count.load(Ordering::Acquire)
    }

    /// A reader of the events of a tenant from this position on, or from now on.
    pub fn watch(&self, tenant: &str, filter: Filter, at: Option<u64>) -> Watch {
        let at = at.unwrap_or_else(|| self.watches.rings.lock().end(tenant));
        Watch { tenant: tenant.into(), filter, at }
    }

    /// Whether there is something to take for a reader; what it does not want is passed over.
    pub fn watch_look(&self, watch: &mut Watch) -> bool {
        self.watches.rings.lock().look(watch)
    }

    /// The next events for a reader: at most so many, and about so many bytes.
    pub fn watch_take(&self, watch: &mut Watch, most: usize, most_bytes: usize) -> Watched {
        self.watches.rings.lock().take(watch, most, most_bytes)
    }

    /// As [`Self::watch_take`], of what concerns an owner.
    pub fn watch_owned(&self, watch: &mut Watch, most: usize) -> (Vec<Owned>, bool, bool) {
        let Watched { events, lost, more } = self.watch_take(watch, most, usize::MAX);
        (events.iter().map(|told| told.to_owner()).collect(), lost, more)
    }

    /// The turns of an owner that run and were asked to end, as far as that is durable: what is not comes into the ring.
    pub fn interrupts_of(&self, tenant: &str, owner: &str) -> Vec<Owned> {
        let _going = self.world.read();
        let mut seen = HashSet::new();
        // Whatever runs has a timer.
        let trees: Vec<Arc<Tree>> = {
            let timers = self.timers.lock();
            let running = timers.values().filter_map(|timer| match timer {
                Timer::Lease(tree, ..) if *tree.tenant.name == *tenant => Some(tree),
                _ => None,
            });
            running.filter(|tree| seen.insert(Arc::as_ptr(tree))).cloned().collect()
        };
        let mut found = Vec::new();
        for tree in trees {
            let state = tree.state.lock();
            let durable = self.journal.durable();
            let running = state.iter().filter(|(_, line)| line.closed.is_none() && !state.dropped);
            found.extend(running.filter_map(|(_, line)| {
                let lease = line.running().filter(|l| *l.owner == *owner)?;
                let asked = lease.interrupted && lease.interrupted_seq <= durable;
                asked.then(|| {
                    let (session_id, turn, fence) = (line.session_id.to_string(), lease.turn, lease.fence);
                    let event = Some(OwnerEvent::Interrupt(v1::Interrupt { session_id, turn, fence }));
                    Owned { uid: line.uid, fence, runnable: None, event }
                })
            }));
        }
        found
    }

    /// What was told is durable: it comes into the rings.
    pub(crate) fn spread(&self, now: &Moment) {
        // The order of the two locks is that of the events: who takes them puts them in before anybody takes the next.
        let mut rings = self.watches.rings.lock();
        rings.bound = self.limits.max_watch_events();
        for (tenant, mut told) in self.journal.take_told() {
            if let Some(told) = Arc::get_mut(&mut told) {
                told.wall_ms = now.wall_ms;
            }
            rings.push(&tenant, told);
            self.watches.count.fetch_add(1, Ordering::Release);
        }
    }

    /// Tells of the session at `index`, once the last entry of its tree is durable.
    fn tell(&self, tree: &Tree, state: &TreeState, index: u32, kind: Kind, more: impl FnOnce(&mut Told), now: &Moment) {
        let Some(line) = state.line(index) else { return };
        let root_session_id = state.line(0).map_or_else(|| line.session_id.clone(), |root| root.session_id.clone());
        let mut told = Told {
            kind,
            session_id: line.session_id.clone(),
            uid: line.uid,
            root: tree.root,
            root_session_id,
            path: if line.parent.is_none() { Box::default() } else { state.path(index).into() },
            above: state.above(line),
            owner: line.owner.clone(),
            turn: 0,
            attempt: 0,
            fence: 0,
            outcome: v1::TurnOutcome::Unspecified,
            close_reason: v1::CloseReason::Unspecified,
            lost: false,
            queued: 0,
            trigger: false,
            runnable: None,
            wall_ms: 0,
        };
        more(&mut told);
        if self.journal.tell(state.last_seq, &tree.tenant.name, told) {
            self.spread(now);
        }
    }

    /// The session was made: its first entry is in the journal.
    pub(crate) fn tell_opened(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) {
        self.tell(tree, state, index, Kind::Opened, |_| (), now);
    }

    /// The turn that runs has begun.
    pub(crate) fn tell_begun(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) {
        let Some(lease) = state.line(index).and_then(|l| l.lease.as_deref()) else { return };
        self.tell(tree, state, index, Kind::TurnBegun, |told| told.of(lease), now);
    }

    /// The turn of `lease` has ended, in this way; UNSPECIFIED: of a grant that was released, or with its session.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn tell_ended(
        &self,
        tree: &Tree,
        state: &TreeState,
        index: u32,
        lease: &Lease,
        outcome: v1::TurnOutcome,
        by: EndedBy,
        now: &Moment,
    ) {
        let lost = match by {
            EndedBy::Expiry | EndedBy::Interrupt => true,
            // Its owner may have begun another in its place itself.
            EndedBy::Takeover => state.line(index).is_some_and(|l| l.owner != lease.owner),
            _ => false,
        };
        let runnable = state.line(index).and_then(|l| runnable_from(l, now));
        let of = |told: &mut Told| {
            told.of(lease);
            (told.outcome, told.lost, told.runnable) = (outcome, lost, runnable);
        };
        self.tell(tree, state, index, Kind::TurnEnded, of, now);
    }

    /// The turn that runs was asked to end.
    pub(crate) fn tell_interrupted(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) {
        let Some(lease) = state.line(index).and_then(|l| l.lease.as_deref()) else { return };
        self.tell(tree, state, index, Kind::Interrupted, |told| told.of(lease), now);
    }

    /// The session was closed.
    pub(crate) fn tell_closed(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) {
        let Some(receipt) = state.line(index).and_then(|l| l.closed.as_deref()) else { return };
        let reason = v1::CloseReason::try_from(receipt.reason).unwrap_or_default();
        self.tell(tree, state, index, Kind::Closed, |told| told.close_reason = reason, now);
    }

    /// The session is open again.
    pub(crate) fn tell_reopened(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) {
        self.tell(tree, state, index, Kind::Reopened, |_| (), now);
    }

    /// A message came into the mailbox of the session; `trigger`: it makes it runnable.
    pub(crate) fn tell_mail(&self, tree: &Tree, state: &TreeState, index: u32, trigger: bool, now: &Moment) {
        let Some(line) = state.line(index) else { return };
        let queued = line.mail.as_ref().map_or(0, |m| m.queued(0, now.wall_ms).0);
        let runnable = runnable_from(line, now).filter(|_| trigger);
        let of = |told: &mut Told| (told.queued, told.trigger, told.runnable) = (queued, trigger, runnable);
        self.tell(tree, state, index, Kind::Mail, of, now);
    }

    /// What the session is known by has changed.
    pub(crate) fn tell_updated(&self, tree: &Tree, state: &TreeState, index: u32, now: &Moment) {
        self.tell(tree, state, index, Kind::Updated, |_| (), now);
    }
}

/// From when on the mail of a session that runs no turn makes it runnable.
fn runnable_from(line: &Line, now: &Moment) -> Option<i64> {
    let idle = line.is_open() && line.running().is_none();
    line.mail.as_ref().filter(|_| idle)?.runnable_from(now.wall_ms)
}

impl Told {
    fn of(&mut self, lease: &Lease) {
        (self.turn, self.attempt, self.fence) = (lease.turn, lease.attempt, lease.fence);
        self.owner = lease.owner.clone();
    }
}

impl TreeState {
    /// The sessions above a line, its parent first.
    fn above(&self, line: &Line) -> Box<[Uid]> {
        let parent = |line: &Line| line.parent.and_then(|p| self.line(p));
        std::iter::successors(parent(line), |line| parent(line)).map(|line| line.uid).collect()
    }
}

/// What waits in the journal to be told: whose it is, and what.
pub(crate) type Telling = (Arc<str>, Arc<Told>);

#[cfg(test)]
mod tests {
    use super::*;

    fn told(session: u128, kind: Kind) -> Arc<Told> {
        Arc::new(Told {
            kind,
            session_id: format!("s{session}").into(),
            uid: Uid(session),
            root: Uid(1),
            root_session_id: "s1".into(),
            path: Box::default(),
            above: Box::default(),
            owner: "".into(),
            turn: 0,
            attempt: 0,
            fence: 0,
            outcome: v1::TurnOutcome::Unspecified,
            close_reason: v1::CloseReason::Unspecified,
            lost: false,
            queued: 0,
            trigger: false,
            runnable: None,
            wall_ms: 0,
        })
    }

    fn at(path: &str, above: &[u128]) -> Arc<Told> {
        let told = Arc::into_inner(told(9, Kind::Updated)).expect("it is nobody else's");
        Arc::new(Told { path: path.into(), above: above.iter().map(|uid| Uid(*uid)).collect(), ..told })
    }

    fn bounded(bound: u64) -> Rings {
        Rings { bound, ..Rings::default() }
    }

    fn watch(rings: &Rings, tenant: &str, filter: Filter) -> Watch {
        Watch { tenant: tenant.into(), filter, at: rings.end(tenant) }
    }

    fn sessions(watched: &Watched) -> Vec<u128> {
        watched.events.iter().map(|told| told.uid.0).collect()
    }

    fn push(rings: &mut Rings, tenant: &str, sessions: std::ops::Range<u128>) {
        for session in sessions {
            rings.push(&tenant.into(), told(session, Kind::Opened));
        }
        let units: u64 = rings.tenants.values().map(|ring| ring.units).sum();
        let events: usize = rings.tenants.values().map(|ring| ring.events.len()).sum();
        assert!(units <= rings.bound && units == rings.units && events as u64 == rings.events);
        assert_eq!(rings.by_units.iter().map(|(units, _)| units).sum::<u64>(), units);
    }

    #[test]
    fn a_reader_gets_every_event_in_order_and_no_more_at_once_than_it_asks_for() {
        let mut rings = bounded(100);
        push(&mut rings, "t", 0..3);
        let mut watch = watch(&rings, "t", Filter::default());
        assert!(!rings.look(&mut watch));
        push(&mut rings, "t", 3..13);
        assert!(rings.look(&mut watch));
        let (first, rest) = (rings.take(&mut watch, 4, 1 << 20), rings.take(&mut watch, 100, 1 << 20));
        assert_eq!((sessions(&first), first.more, first.lost), ((3..7).collect(), true, false));
        assert_eq!((sessions(&rest), rest.more, rest.lost), ((7..13).collect(), false, false));
        assert!(!rings.look(&mut watch));
        push(&mut rings, "t", 13..20);
        // Two of them are more than this; one is given whatever it takes.
        assert_eq!(sessions(&rings.take(&mut watch, 100, UNIT)), [13]);
        assert_eq!(sessions(&rings.take(&mut watch, 100, 1)), [14]);
    }

    #[test]
    fn a_reader_that_falls_behind_is_told_once_and_goes_on_from_now() {
        let mut rings = bounded(4);
        let mut slow = watch(&rings, "t", Filter::default());
        push(&mut rings, "t", 0..4);
        let mut in_time = slow.clone();
        assert_eq!(sessions(&rings.take(&mut in_time, 9, 1 << 20)), [0, 1, 2, 3]);
        push(&mut rings, "t", 4..5);
        assert!(rings.look(&mut slow));
        let watched = rings.take(&mut slow, 9, 1 << 20);
        assert!(watched.lost && watched.events.is_empty());
        push(&mut rings, "t", 5..6);
        let watched = rings.take(&mut slow, 9, 1 << 20);
        assert_eq!((sessions(&watched), watched.lost), (vec![5], false));
        // A place that is still to come is none.
        slow.at = 7;
        assert!(rings.look(&mut slow) && rings.take(&mut slow, 9, 1 << 20).lost);
    }

    #[test]
    fn the_noise_of_one_tenant_takes_nothing_from_another() {
        let mut rings = bounded(12);
        let mut quiet = watch(&rings, "quiet", Filter::default());
        let mut third = watch(&rings, "third", Filter::default());
        push(&mut rings, "quiet", 0..4);
        push(&mut rings, "loud", 0..1_000);
        push(&mut rings, "third", 0..4);
        push(&mut rings, "loud", 0..1_000);
        assert_eq!(sessions(&rings.take(&mut quiet, 9, 1 << 20)), [0, 1, 2, 3]);
        assert_eq!(sessions(&rings.take(&mut third, 9, 1 << 20)), [0, 1, 2, 3]);
        // Above its part it is the one that gives.
        push(&mut rings, "quiet", 4..10);
        assert!(rings.tenants["quiet"].events.len() <= 5);
        assert_eq!(rings.tenants["third"].events.len(), 4);
    }

    #[test]
    fn a_large_event_counts_as_several() {
        let mut rings = bounded(10);
        push(&mut rings, "t", 0..10);
        rings.push(&"t".into(), at(&"/root/x".repeat(700), &[]));
        assert_eq!((rings.events, rings.units), (1, 10));
        // One that is larger than all the room is not kept, and whoever waits for it has lost it.
        let mut watch = watch(&rings, "t", Filter::default());
        rings.push(&"t".into(), at(&"/root/x".repeat(800), &[]));
        assert_eq!((rings.events, rings.units), (0, 0));
        assert!(rings.take(&mut watch, 9, 1 << 20).lost);
    }

    #[test]
    fn filters_are_kept_on_the_boundaries_of_names_and_trees() {
        let matches = |filter: &Filter, told: &Arc<Told>| filter.matches(told);
        let below = Filter { path_prefix: Some("/root/a".into()), ..Filter::default() };
        assert!(matches(&below, &at("/root/a", &[1])) && matches(&below, &at("/root/a/b", &[1])));
        assert!(!matches(&below, &at("/root/ab", &[1])) && !matches(&below, &at("/root", &[])));
        let whole = Filter { path_prefix: Some("/root".into()), ..Filter::default() };
        assert!(matches(&whole, &at("", &[])) && matches(&whole, &at("/root/a", &[1])));
        let inside = Filter { inside: Some(Uid(3)), ..Filter::default() };
        assert!(matches(&inside, &at("/root/a/b", &[3, 1])) && matches(&inside, &told(3, Kind::Closed)));
        assert!(!matches(&inside, &at("/root/a", &[1])));
        let tree = Filter { root: Some(Uid(2)), ..Filter::default() };
        assert!(!matches(&tree, &told(3, Kind::Closed)));
        let kinds = Filter { kinds: vec![Kind::Closed as i32, Kind::Mail as i32], ..Filter::default() };
        assert!(matches(&kinds, &told(3, Kind::Closed)) && !matches(&kinds, &told(3, Kind::Opened)));
    }

    #[test]
    fn a_look_passes_over_what_a_reader_does_not_want() {
        let mut rings = bounded(3 * AT_ONCE as u64);
        let filter = Filter { kinds: vec![Kind::Closed as i32], ..Filter::default() };
        let mut watch = watch(&rings, "t", filter);
        push(&mut rings, "t", 0..10);
        assert!(!rings.look(&mut watch));
        assert_eq!(watch.position(), 10);
        // One look is bounded.
        push(&mut rings, "t", 0..AT_ONCE as u128 + 1);
        assert!(rings.look(&mut watch));
        assert!(!rings.look(&mut watch));
        rings.push(&"t".into(), told(7, Kind::Closed));
        assert!(rings.look(&mut watch));
        assert_eq!(sessions(&rings.take(&mut watch, 9, 1 << 20)), [7]);
        // So it loses nothing where nothing that it wants is lost.
        push(&mut rings, "t", 0..AT_ONCE as u128);
        assert!(!rings.look(&mut watch));
        push(&mut rings, "t", 0..3 * AT_ONCE as u128 - 1);
        while rings.look(&mut watch) {
            assert!(!rings.take(&mut watch, 9, 1 << 20).lost);
        }
    }
}
