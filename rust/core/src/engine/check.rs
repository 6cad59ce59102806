//! Recounts in memory what counters, queues and indexes claim. For tests: nothing in production calls it.
//!
//! Meant for moments at which no other call runs; it takes one tree's lock after the other.

use super::tree::{Gate, Tree, TreeState};
use super::{Engine, TicketState};
use crate::ids::Uid;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

/// What the trees in memory add up to.
#[derive(Default)]
struct Sums {
    running: u64,
    waiting: usize,
    wait_for_mail: usize,
    residents: usize,
    resident_bytes: u64,
    headers: usize,
    headers_filed: usize,
    header_bytes: u64,
    lines: usize,
    standing: usize,
    /// Of one tenant: session and wall-clock time of its begin.
    turns: Vec<(Uid, i64)>,
    /// A cap may have been lowered below what is in use.
    lowered: bool,
}

impl Engine {
    /// I1, I3, I9, I10, and that every place, pin and entry is somebody's. Without `full` only the sums that cost
    /// nothing.
    #[doc(hidden)]
    pub fn check(&self, full: bool) -> Result<(), String> {
        let running = self.running.load(Ordering::Relaxed);
        let held: u64 = self.tenants.read().values().map(|t| u64::from(t.slots.used())).sum();
        ensure!(running >= 0 && held == running as u64, "I1: {held} slots held, {running} turns in the gauge");
        let (owners, residents, headers) = (self.owners.lock().len(), self.residents.len(), self.headers.len());
        ensure!(owners == residents + headers, "{owners} owners of {residents} residents and {headers} headers");
        if full { self.recount() } else { Ok(()) }
    }

    fn recount(&self) -> Result<(), String> {
        let mut sums = Sums { lowered: self.limits.ever_set(), ..Sums::default() };
        let mut polling = 0;
        let tenants: Vec<_> = self.tenants.read().values().cloned().collect();
        for tenant in &tenants {
            let (before, lines, stood) = (sums.running, sums.lines, sums.standing);
            for tree in tenant.directory.trees() {
                let state = tree.state.lock();
                self.recount_tree(&tree, &state, &mut sums).map_err(|e| format!("tree {}: {e}", tree.root))?;
            }
            let (running, used) = (sums.running - before, u64::from(tenant.slots.used()));
            ensure!(running == used, "I1: tenant {} holds {used} slots, {running} turns run", tenant.name);
            let mut listed = tenant.turns.list();
            listed.sort_unstable();
            sums.turns.sort_unstable();
            ensure!(listed == sums.turns, "turns listed: {listed:?}, run: {:?}", sums.turns);
            sums.turns.clear();
            let listed = tenant.directory.lines();
            ensure!(listed == sums.lines - lines, "{listed} directory entries for {} lines", sums.lines - lines);
            self.recount_queue(&tenant.queue, Gate::Tenant)?;
            polling += tenant.polls.len();
            let (standing, found) = (tenant.polls.standing(), sums.standing - stood);
            ensure!(standing == found, "{standing} sessions stand for hosts of {}, {found} found", tenant.name);
        }
        let waiting = self.waiting.lock().total();
        let pooled = self.resources.check()?;
        let found = sums.waiting + sums.wait_for_mail + pooled + polling;
        ensure!(waiting == found, "{waiting} waiting calls counted, {found} found");
        let tickets = self.tickets.lock().values().filter(|t| matches!(t, TicketState::Pooled)).count();
        let mail = self.tickets.lock().values().filter(|t| matches!(t, TicketState::Mailbox(..))).count();
        ensure!(mail == sums.wait_for_mail, "{mail} tickets wait for mail for {} calls", sums.wait_for_mail);
        let polls = self.tickets.lock().values().filter(|t| matches!(t, TicketState::Polling(_))).count();
        ensure!(polls == polling, "{polls} tickets wait for sessions for {polling} calls");
        ensure!(tickets == pooled, "{tickets} tickets wait in pools for {pooled} calls");
        let (count, bytes) = (self.residents.len(), self.residents.bytes());
        ensure!(count == sums.residents, "I10: {count} residents in the index, {} in lines", sums.residents);
        ensure!(bytes == sums.resident_bytes, "I10: {bytes} bytes charged, {} held", sums.resident_bytes);
        let (count, filed) = (self.header_count.load(Ordering::Relaxed), self.headers.len());
        let bytes = self.header_bytes.load(Ordering::Relaxed);
        ensure!(count == sums.headers as u64, "{count} headers counted, {} in memory", sums.headers);
        ensure!(filed == sums.headers_filed, "{filed} headers in the index, {} that may go", sums.headers_filed);
        ensure!(bytes == sums.header_bytes, "{bytes} header bytes charged, {} held", sums.header_bytes);
        let waits = self.tickets.lock().values().filter(|t| matches!(t, TicketState::Waiting(..))).count();
        ensure!(waits == sums.waiting, "{waits} tickets wait for {} waiters", sums.waiting);
        let claimed = self.claims.lock().len();
        let busy = !self.flushed() || self.reads_open();
        ensure!(busy || claimed == 0, "{claimed} trees are claimed by nobody");
        Ok(())
    }

    fn recount_tree(&self, tree: &Arc<Tree>, state: &TreeState, sums: &mut Sums) -> Result<(), String> {
        ensure!(!state.dropped, "it was dropped and is still listed");
        let (mut uses, mut below, mut open, mut mail_bytes) = (0, 0, 0, 0);
        let mut names = HashSet::new();
        for (index, line) in state.iter() {
            let id = &line.session_id;
            sums.lines += 1;
            let listed = tree.tenant.directory.get(id);
            ensure!(listed.is_some_and(|(t, i)| Arc::ptr_eq(&t, tree) && i == index), "{id} is not listed here");
            ensure!(
                line.born || line.waiter.is_some() || line.closed.is_some(),
                "{id} was never born and nobody waits"
            );
            if line.is_open() {
                open += 1;
                if let Some(parent) = line.parent {
                    ensure!(names.insert((parent, &line.name)), "I16: {id} shares its name");
                    ensure!(state.line(parent).is_some_and(super::Line::is_open), "{id} is open below what is not");
                }
            } else {
                ensure!(line.lease.is_none() && line.resident.is_none(), "{id} is not open and holds something");
                ensure!(line.closed.is_none() || line.waiter.is_none(), "{id} has ended and waits");
            }
            if line.running().is_some() {
                uses += 1;
                below += u32::from(line.depth > 0);
                sums.running += 1;
                sums.turns.extend(line.running().map(|lease| (line.uid, lease.begin_wall_ms)));
            }
            if let Some(waiter) = &line.waiter {
                uses += 1;
                sums.waiting += usize::from(waiter.call.is_some());
                sums.standing += usize::from(waiter.stands);
                let queued = tree.queue(waiter.gate).at(waiter.place);
                ensure!(queued.is_some_and(|(t, i)| Arc::ptr_eq(&t, tree) && i == index), "{id} is not in its queue");
            }
            if let Some(mailbox) = &line.mail {
                uses += mailbox.waits.len() as u32;
                sums.wait_for_mail += mailbox.waits.len();
                mail_bytes += mailbox.bytes();
                ensure!(line.is_open() && !mailbox.is_idle(), "{id} keeps a mailbox for nothing");
                let taken = line.lease.as_ref().map_or(0, |l| mailbox.taken(l.fence).len());
                ensure!(
                    taken == mailbox.all_taken() && (taken == 0 || line.running().is_some()),
                    "I15: mail of {id} is with a turn that is none"
                );
            }
            let runs = self.resources.runs(line.uid).filter(|_| line.is_open());
            ensure!(
                runs.is_none_or(|runs| runs == line.running().is_some()),
                "{id} runs, or its resources are told so"
            );
            if line.is_open() {
                let keeps = line.finish_due_ms != 0 && line.resident.is_none();
                ensure!(line.facts.is_some() == keeps, "{id} keeps its facts: {}, and should: {keeps}", !keeps);
            }
            uses += u32::from(line.loading.is_some());
            if line.loading.as_ref().is_some_and(|l| l.granted.is_some()) {
                below += u32::from(line.depth > 0);
                sums.running += 1;
            }
            if let Some(resident) = &line.resident {
                uses += 1;
                let bytes = resident.bytes();
                sums.residents += 1;
                sums.resident_bytes += bytes;
                let entry = self.residents.peek(resident.handle);
                let Some(entry) = entry else { return Err(format!("I10: {id} is resident and not in the index")) };
                ensure!(entry.key == line.uid.0, "{id} is filed under another uid");
                ensure!(entry.bytes == bytes, "I10: {id} holds {bytes} bytes and is charged {}", entry.bytes);
                ensure!(line.running().is_none() || entry.pins > 0, "I9: {id} runs and is not pinned");
                self.owned(entry.aux, tree, index).map_err(|e| format!("{id}: {e}"))?;
            }
        }
        ensure!(state.open == open, "{} open sessions counted, {open} found", state.open);
        let kept: u64 = state.iter().filter_map(|(_, l)| l.facts.as_ref()).map(|f| f.len() as u64).sum();
        ensure!(state.facts_bytes == kept, "{} bytes of facts counted, {kept} kept", state.facts_bytes);
        ensure!(state.mail_bytes == mail_bytes, "{} bytes of mail charged, {mail_bytes} held", state.mail_bytes);
        let used = tree.children_slots.used();
        ensure!(used == below, "I1: {used} slots held below the root, {below} turns run");
        ensure!(sums.lowered || used <= tree.children_slots.cap(), "I2: {used} turns run below the root");
        ensure!(state.uses == uses, "{} uses counted, {uses} found", state.uses);
        sums.headers += usize::from(state.header_bytes > 0);
        sums.header_bytes += state.header_bytes;
        ensure!(uses == 0 || state.header.is_none(), "its header may go, and it has {uses} uses");
        if let Some(handle) = state.header {
            let entry = self.headers.peek(handle).ok_or("its header is not in the index")?;
            sums.headers_filed += 1;
            self.owned(entry.aux, tree, 0)?;
        }
        self.recount_queue(&tree.queue, Gate::Tree)
    }

    fn owned(&self, aux: u32, tree: &Arc<Tree>, index: u32) -> Result<(), String> {
        let owners = self.owners.lock();
        let owner = owners.get(aux as usize);
        ensure!(owner.is_some_and(|(t, i)| Arc::ptr_eq(t, tree) && *i == index), "its entry leads elsewhere");
        Ok(())
    }

    /// Every place in a queue is a waiter's. Trees are compared by what their lines were found to hold before, so the
    /// tree that the caller has locked is not locked again.
    fn recount_queue(&self, queue: &super::Queue, gate: Gate) -> Result<(), String> {
        let mut after = None;
        let mut seen = BTreeMap::new();
        while let Some((place, tree, index)) = queue.next(after) {
            after = Some(place);
            ensure!(seen.insert(place, ()).is_none(), "a place twice in one queue");
            // At the tree gate the caller holds the lock of the only tree there can be.
            let Some(state) = tree.state.try_lock() else { continue };
            let waiter = state.line(index).and_then(|l| l.waiter.as_ref());
            let here = waiter.is_some_and(|w| w.place == place && w.gate == gate);
            ensure!(!state.dropped && here, "a place in a queue that no waiter has");
        }
        Ok(())
    }
}
