//! What is attached, in memory: each resource of a session that is not released yet, and the pools whose places they take.
//!
//! A pool is nothing but the resources that name it: caps come with each call that wants a place. A place is free when
//! the release of who had it is durable, so every prefix of the journal keeps every cap. Who is released for another is
//! the one whose session has run no turn for longest; never one whose session runs.

use super::Pending;
use super::tree::Tenant;
use crate::gen_store::RequestMark;
use crate::gen_v1 as v1;
use crate::ids::Uid;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

pub(crate) const PLANNED: i32 = v1::ResourceState::Planned as i32;
pub(crate) const LIVE: i32 = v1::ResourceState::Live as i32;
pub(crate) const RELEASING: i32 = v1::ResourceState::Releasing as i32;

/// Names a pool: its tenant, and its name there.
pub(crate) type PoolId = (Arc<str>, Arc<str>);

/// The place of a resource in a pool.
#[derive(Debug)]
pub(crate) struct Spot {
    pub(crate) pool: PoolId,
    pub(crate) key: Box<str>,
    /// Idle time after which it is released; 0: never. Unit: milliseconds.
    pub(crate) ttl_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) session: Uid,
    pub(crate) session_id: Arc<str>,
    pub(crate) root: Uid,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) kind: i32,
    pub(crate) state: i32,
    /// What it was before it began to be released: so it is again if that is lost.
    pub(crate) before: i32,
    pub(crate) spot: Option<Spot>,
    pub(crate) mark: Option<RequestMark>,
    pub(crate) attempts: u32,
    /// Its row is durable.
    pub(crate) stored: bool,
    /// The deletion of its row is in the journal.
    pub(crate) ending: bool,
    /// Sequence of the last entry about it.
    pub(crate) seq: u64,
    /// Service time at which its release began.
    pub(crate) since_ms: u64,
    /// When it is looked at for idleness; 0: never.
    pub(crate) look_ms: u64,
}

/// A session with resources.
#[derive(Debug, Default)]
struct Holder {
    names: Vec<Arc<str>>,
    running: bool,
    /// Service time at which a turn of it last began or ended, or it attached something.
    used_ms: u64,
}

#[derive(Debug, Default)]
struct Pool {
    members: BTreeSet<Arc<str>>,
    /// Calls that wait for a place, in their order.
    waiters: VecDeque<Pending>,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    attached: HashMap<Arc<str>, Attached>,
    holders: HashMap<Uid, Holder>,
    pools: HashMap<PoolId, Pool>,
    /// When to look whether a resource has been idle for too long: a lower bound, by service time.
    idle: BTreeSet<(u64, Arc<str>)>,
    /// When to look at a call that waits: by service time and ticket.
    looks: BTreeMap<(u64, u64), PoolId>,
    /// How often who waits was woken: who was refused a place before and parks after that would sleep through it.
    wakes: u64,
    waiting: usize,
    releasing: usize,
}

/// What a call wants of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    pub(crate) max: Option<u64>,
    pub(crate) max_per_key: Option<u64>,
}

/// Whether a pool has room.
#[derive(Debug)]
pub(crate) enum Room {
    Yes,
    /// Not now: somebody is being released, or may be: this one first.
    Later {
        victim: Option<Arc<str>>,
        full: Full,
    },
    /// All holders run turns, or the cap is 0.
    No(Full),
}

/// The cap that has no room.
#[derive(Debug)]
pub(crate) struct Full {
    pub(crate) limit_name: &'static str,
    pub(crate) limit: u64,
    pub(crate) used: u64,
    /// Sessions that run: those used for longest ago first.
    pub(crate) holders: Vec<(Uid, Arc<str>, u64)>,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.attached.len()
    }

    pub(crate) fn releasing(&self) -> usize {
        self.releasing
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn wakes(&self) -> u64 {
        self.wakes
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Attached> {
        self.attached.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Attached> {
        self.attached.get_mut(name)
    }

    /// The resources of a session that are not about to be forgotten.
    pub(crate) fn left(&self, session: Uid) -> usize {
        let names = self.holders.get(&session).map(|h| &h.names[..]).unwrap_or_default();
        names.iter().filter(|name| self.attached.get(*name).is_some_and(|a| !a.ending)).count()
    }

    /// What the call with this mark has made.
    pub(crate) fn made_by(&self, session: Uid, mark: &RequestMark) -> Option<(&Arc<str>, &Attached)> {
        self.holders.get(&session)?.names.iter().find_map(|name| {
            let attached = self.attached.get(name)?;
            let same = attached.mark.as_ref().is_some_and(|m| m.request_id == mark.request_id) && !attached.ending;
            same.then_some((name, attached))
        })
    }

    pub(crate) fn insert(&mut self, name: Arc<str>, mut attached: Attached, running: bool, now_ms: u64) {
        let holder = self.holders.entry(attached.session).or_default();
        holder.running |= running;
        holder.used_ms = holder.used_ms.max(now_ms);
        holder.names.push(name.clone());
        if let Some(spot) = &attached.spot {
            self.pools.entry(spot.pool.clone()).or_default().members.insert(name.clone());
            if spot.ttl_ms > 0 && attached.state != RELEASING {
                attached.look_ms = now_ms.saturating_add(spot.ttl_ms);
                self.idle.insert((attached.look_ms, name.clone()));
            }
        }
        self.releasing += usize::from(attached.state == RELEASING);
        self.attached.insert(name, attached);
    }

    /// Forgets a resource. Who waited for its place looks again.
    pub(crate) fn remove(&mut self, name: &str) -> Vec<Pending> {
        let Some(attached) = self.attached.remove(name) else { return Vec::new() };
        self.releasing -= usize::from(attached.state == RELEASING);
        self.idle.remove(&(attached.look_ms, name.into()));
        if let Some(holder) = self.holders.get_mut(&attached.session) {
            holder.names.retain(|n| &**n != name);
            if holder.names.is_empty() {
                self.holders.remove(&attached.session);
            }
        }
        let Some(spot) = attached.spot else { return Vec::new() };
        self.wakes += 1;
        let calls = self.wake(&spot.pool);
        if let Some(pool) = self.pools.get_mut(&spot.pool) {
            pool.members.remove(name);
            if pool.members.is_empty() {
                self.pools.remove(&spot.pool);
            }
        }
        calls
    }

    /// It is to be released from now on.
    pub(crate) fn begin_release(&mut self, name: &str, now_ms: u64) {
        if let Some(attached) = self.attached.get_mut(name).filter(|a| a.state != RELEASING) {
            attached.before = std::mem::replace(&mut attached.state, RELEASING);
            attached.since_ms = now_ms;
            let look = (std::mem::take(&mut attached.look_ms), name.into());
            self.idle.remove(&look);
            self.releasing += 1;
        }
    }

    /// That it is to be released did not happen.
    pub(crate) fn release_lost(&mut self, name: &str, now_ms: u64) {
        let Some(attached) = self.attached.get_mut(name).filter(|a| a.state == RELEASING) else { return };
        attached.state = attached.before;
        self.releasing -= 1;
        if let Some(ttl_ms) = attached.spot.as_ref().map(|s| s.ttl_ms).filter(|ms| *ms > 0) {
            attached.look_ms = now_ms.saturating_add(ttl_ms);
            let look = (attached.look_ms, name.into());
            self.idle.insert(look);
        }
    }

    /// A turn of a session has begun or ended.
    pub(crate) fn turn(&mut self, session: Uid, running: bool, now_ms: u64) {
        if let Some(holder) = self.holders.get_mut(&session) {
            (holder.running, holder.used_ms) = (running, now_ms);
        }
    }

    /// The close of a session is durable: all that it has is to be released. True if it has anything.
    pub(crate) fn sealed(&mut self, session: Uid, now_ms: u64) -> bool {
        let Some(holder) = self.holders.get_mut(&session) else { return false };
        holder.running = false;
        let names = holder.names.clone();
        for name in &names {
            self.begin_release(name, now_ms);
        }
        true
    }

    /// Whether a pool has room for one more of this key.
    pub(crate) fn room(&self, id: &PoolId, key: &str, caps: Caps, now_ms: u64, release_ms: u64) -> Room {
        let none = Pool::default();
        let pool = self.pools.get(id).unwrap_or(&none);
        let members = || pool.members.iter().filter_map(|name| Some((name, self.attached.get(name)?)));
        let of_key = |a: &Attached| a.spot.as_ref().is_some_and(|s| &*s.key == key);
        let (all, same) = (pool.members.len() as u64, members().filter(|(_, a)| of_key(a)).count() as u64);
        let (limit_name, limit, used, keyed) = match (caps.max_per_key, caps.max) {
            (Some(limit), _) if same >= limit => ("max_resources_per_key", limit, same, true),
            (_, Some(limit)) if all >= limit => ("max_resources", limit, all, false),
            _ => return Room::Yes,
        };
        let (mut freeing, mut soon, mut victim, mut holders) = (0, false, None, Vec::new());
        // One that its host makes at this moment goes after all others.
        let fresh = |a: &Attached, used_ms: u64| a.state == PLANNED && now_ms.saturating_sub(used_ms) < release_ms;
        for (name, attached) in members().filter(|(_, a)| !keyed || of_key(a)) {
            let Some(holder) = self.holders.get(&attached.session) else { continue };
            if attached.ending {
                freeing += 1;
            } else if attached.state == RELEASING {
                // One whose release does not end keeps its place, but nobody counts on that any more.
                freeing += usize::from(now_ms.saturating_sub(attached.since_ms) < release_ms);
                soon = true;
            } else if holder.running {
                holders.push((attached.session, attached.session_id.clone(), now_ms.saturating_sub(holder.used_ms)));
            } else if !attached.stored {
                soon = true;
            } else {
                let place = (fresh(attached, holder.used_ms), holder.used_ms, name.clone());
                if victim.as_ref().is_none_or(|v| place < *v) {
                    victim = Some(place);
                }
            }
        }
        holders.sort_by_key(|(uid, _, ms)| (std::cmp::Reverse(*ms), *uid));
        let full = Full { limit_name, limit, used, holders };
        if limit == 0 {
            return Room::No(full);
        }
        if freeing > pool.waiters.len() {
            return Room::Later { victim: None, full };
        }
        match victim {
            Some((.., name)) => Room::Later { victim: Some(name), full },
            None if freeing > 0 || soon => Room::Later { victim: None, full },
            None => Room::No(full),
        }
    }

    /// Parks a call until a place of its pool may be free, or this time has come. Gives it back if somebody was woken
    /// since `wakes` was read, which was when it was refused.
    pub(crate) fn park(&mut self, id: PoolId, call: Pending, look_ms: u64, wakes: u64) -> Option<Pending> {
        if self.wakes != wakes {
            return Some(call);
        }
        self.looks.insert((look_ms, call.ticket), id.clone());
        self.waiting += 1;
        let pool = self.pools.entry(id).or_default();
        // A call that had waited before keeps its place.
        let since = |c: &Pending| (c.since_ms, c.ticket);
        let at = pool.waiters.iter().position(|c| since(c) > since(&call)).unwrap_or(pool.waiters.len());
        pool.waiters.insert(at, call);
        None
    }

    /// Takes out all calls that wait for a place in a pool.
    fn wake(&mut self, id: &PoolId) -> Vec<Pending> {
        let Some(pool) = self.pools.get_mut(id) else { return Vec::new() };
        let calls: Vec<Pending> = pool.waiters.drain(..).collect();
        if pool.members.is_empty() {
            self.pools.remove(id);
        }
        self.unparked(&calls);
        calls
    }

    fn unparked(&mut self, calls: &[Pending]) {
        if calls.is_empty() {
            return;
        }
        self.waiting -= calls.len();
        let tickets: BTreeSet<u64> = calls.iter().map(|c| c.ticket).collect();
        self.looks.retain(|(_, ticket), _| !tickets.contains(ticket));
    }

    /// Takes the calls out that `wanted` names, in whatever pool.
    pub(crate) fn take_waiters(&mut self, wanted: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        self.wakes += 1;
        if self.waiting == 0 {
            return Vec::new();
        }
        let mut calls = Vec::new();
        self.pools.retain(|_, pool| {
            let (out, kept): (Vec<_>, VecDeque<_>) = {
                let (mut out, mut kept) = (Vec::new(), VecDeque::new());
                for call in pool.waiters.drain(..) {
                    if wanted(&call) { out.push(call) } else { kept.push_back(call) }
                }
                (out, kept)
            };
            pool.waiters = kept;
            calls.extend(out);
            !(pool.members.is_empty() && pool.waiters.is_empty())
        });
        self.unparked(&calls);
        calls
    }

    /// The calls that are to be looked at by now, with all that wait for the same pools: places go in their order.
    pub(crate) fn due_waiters(&mut self, now_ms: u64) -> Vec<Pending> {
        let mut calls = Vec::new();
        while let Some((_, id)) = self.looks.first_key_value().filter(|((at, _), _)| *at <= now_ms) {
            let id = id.clone();
            calls.extend(self.wake(&id));
        }
        calls
    }

    /// Resources that have been idle for too long; looks at most at so many.
    pub(crate) fn expired(&mut self, now_ms: u64, most: usize) -> Vec<Arc<str>> {
        let mut found = Vec::new();
        for _ in 0..most {
            let Some((at, name)) = self.idle.pop_first() else { break };
            if at > now_ms {
                self.idle.insert((at, name));
                break;
            }
            let Some(attached) = self.attached.get_mut(&name).filter(|a| a.state != RELEASING && !a.ending) else {
                continue;
            };
            let (Some(spot), Some(holder)) = (&attached.spot, self.holders.get(&attached.session)) else { continue };
            let last = if holder.running { now_ms } else { holder.used_ms };
            let due = last.saturating_add(spot.ttl_ms);
            if due <= now_ms && attached.stored {
                attached.look_ms = 0;
                found.push(name);
            } else {
                attached.look_ms = due.max(now_ms + 1);
                self.idle.insert((attached.look_ms, name));
            }
        }
        found
    }

    /// Whether a turn of a session with resources runs.
    pub(crate) fn runs(&self, session: Uid) -> Option<bool> {
        self.holders.get(&session).map(|h| h.running)
    }

    /// Recounts what the maps say of each other; how many calls wait.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let names: usize = self.holders.values().map(|h| h.names.len()).sum();
        let members: usize = self.pools.values().map(|p| p.members.len()).sum();
        let pooled = self.attached.values().filter(|a| a.spot.is_some()).count();
        let releasing = self.attached.values().filter(|a| a.state == RELEASING).count();
        let waiters: usize = self.pools.values().map(|p| p.waiters.len()).sum();
        let idle =
            self.idle.iter().filter(|(at, name)| self.attached.get(name).is_none_or(|a| a.look_ms != *at)).count();
        let sums = [
            ("resources by session", names, self.attached.len()),
            ("members of pools", members, pooled),
            ("resources to be released", self.releasing, releasing),
            ("calls that wait", self.waiting, waiters),
            ("looks at calls that wait", self.looks.len(), waiters),
            ("looks at nothing", idle, 0),
        ];
        for (what, counted, found) in sums {
            if counted != found {
                return Err(format!("{what}: {counted} counted, {found} found"));
            }
        }
        Ok(waiters)
    }
}
