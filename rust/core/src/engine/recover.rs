//! What follows an append: answers set free, or, when the store refused, the way back to what it holds.

use super::{Answer, Call, Engine, Moment, Space, Timer, Work, count};
use crate::error::{Reason, Refusal};
use crate::ids::Uid;
use crate::journal::{Held, Released};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Default)]
pub(crate) struct Recovery {
    /// Trees whose headers are being re-read: until none is left nothing is admitted.
    reading: HashSet<Uid>,
    /// How often the re-reading of a header failed.
    failures: HashMap<Uid, u32>,
    /// Trees that the store refused alone, set aside until a restart.
    pub(crate) quarantined: HashSet<Uid>,
}

impl Recovery {
    /// The re-reading of a header failed. True if it is worth another try; else its tree is set aside, so that the others
    /// are served.
    pub(crate) fn failed(&mut self, root: Uid) -> bool {
        let failures = self.failures.entry(root).or_default();
        *failures += 1;
        if *failures < 10 {
            return true;
        }
        self.quarantined.insert(root);
        false
    }

    /// Whether the header of this tree is still to be re-read.
    pub(crate) fn awaits(&self, root: Uid) -> bool {
        self.reading.contains(&root)
    }
}

/// What the store made of the batch in flight. An unknown outcome is not here: the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Durable, but for these trees, which were refused alone.
    Stored { quarantine: Vec<Uid> },
    /// No room: nothing was stored.
    RefusedFull,
    /// Refused for another reason: nothing was stored.
    Refused,
}

impl Engine {
    /// Ends the batch in flight.
    pub fn appended(&self, outcome: &Appended, mut now: Moment) {
        let mut work = Work { evict: true, ..Work::default() };
        if *outcome == (Appended::Stored { quarantine: Vec::new() }) {
            let _going = self.world.read();
            count(&self.counters.batches_stored);
            let released = self.journal.stored(&[]);
            self.settle(released, false, &mut work, &mut now);
            return self.finish(&mut work, &mut now);
        }
        {
            let _alone = self.world.write();
            self.losses.fetch_add(1, Ordering::Release);
            let released = match outcome {
                Appended::Stored { quarantine } => {
                    count(&self.counters.batches_stored);
                    self.recovery.lock().quarantined.extend(quarantine);
                    self.journal.stored(quarantine)
                }
                Appended::RefusedFull | Appended::Refused => {
                    count(&self.counters.batches_refused);
                    if *outcome == Appended::RefusedFull {
                        self.set_space(Space::Full);
                    }
                    self.recovering.store(true, Ordering::Release);
                    self.journal.refused()
                }
            };
            self.settle(released, !matches!(outcome, Appended::Stored { .. }), &mut work, &mut now);
        }
        let _going = self.world.read();
        self.finish(&mut work, &mut now);
    }

    fn settle(&self, released: Released, reread: bool, work: &mut Work, now: &mut Moment) {
        self.counters.entries_stored.fetch_add(released.stored, Ordering::Relaxed);
        if released.stored > 0 {
            self.measures.batches.record(released.stored);
        }
        self.unpin(released.unpin, now);
        // Before any answer goes out: who has one finds what it did among the events.
        self.spread(now);
        let (mut seen, mut ask) = (HashSet::new(), Vec::new());
        // By pointer: an acknowledgement's tree may bear the root of one that is in memory, and both are lost.
        for tree in released.lost_trees.into_iter().filter(|t| seen.insert(Arc::as_ptr(t))) {
            if reread {
                let mut recovery = self.recovery.lock();
                if !recovery.quarantined.contains(&tree.root) && recovery.reading.insert(tree.root) {
                    ask.push(tree.root);
                }
            }
            self.lose_tree(&tree, work, now);
        }
        for held in released.lost_held {
            match held {
                Held::Answer(answer) => self.deliver(answer.ticket, Err(not_stored()), work),
                Held::Effect(id, _) => self.lost_effect(id, work),
                Held::Claim(root) => self.unclaim(root, work),
                Held::Key(change) => self.keys.lost(change),
                Held::Limits(_) => self.limits_lost(),
                Held::Resource(_, change) => self.resource_lost(change, work, now),
                Held::Cleanup(..) | Held::Event(_) | Held::Told(_) | Held::Ready(..) => {}
            }
        }
        for held in released.held {
            match held {
                Held::Answer(answer) => self.deliver(answer.ticket, answer.result, work),
                Held::Effect(id, _) => self.start_effect(id),
                Held::Cleanup(tree, closed) => self.clean_up(&tree, closed, now),
                Held::Claim(root) => self.unclaim(root, work),
                Held::Event(event) => self.emit(*event, now),
                // (These go another way.)
                Held::Told(_) => {}
                Held::Ready(_, seq) => self.ready(seq),
                Held::Key(change) => self.keys.happened(change),
                Held::Limits(change) => self.limits_set(&change, work),
                Held::Resource(_, change) => self.resource_changed(change, work),
            }
        }
        if reread {
            if self.recovery.lock().reading.is_empty() {
                self.recovering.store(false, Ordering::Release);
            }
            for root in ask {
                self.ask_header(root);
            }
        }
    }

    /// A tree's header was re-read; the last one opens the gates again.
    pub(crate) fn recovered(&self, root: Uid) {
        let mut recovery = self.recovery.lock();
        recovery.reading.remove(&root);
        recovery.failures.remove(&root);
        if recovery.reading.is_empty() {
            self.recovering.store(false, Ordering::Release);
        }
    }

    /// Drops a tree whose latest entries were not stored: what it holds in memory did not happen.
    fn lose_tree(&self, tree: &Arc<super::Tree>, work: &mut Work, now: &Moment) {
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        for index in 0..state.lines.len() as u32 {
            self.wake_waits(tree, &mut state, index, work, now);
            let waiter = self.take_waiter(tree, &mut state, index, work, now);
            let Some(line) = state.line_mut(index) else { continue };
            if let Some(call) = waiter.and_then(|w| w.call) {
                work.answers.push(Answer { ticket: call.ticket, result: Err(not_stored()), after: 0, root: None });
            }
            if let Some(mut loading) = line.loading.take() {
                self.rerun_load(&mut loading, tree, &state, index, work);
            }
            let Some(line) = state.line_mut(index) else { continue };
            let running = line.running().is_some();
            if let Some(lease) = line.lease.take() {
                self.untimer(lease.timer);
            }
            if running {
                self.free_slots(tree, &state, index, work, now);
            }
        }
        self.drop_tree(tree, &mut state, now);
    }

    /// A close is durable: its lines leave memory, the store answers for them from now on.
    pub(crate) fn clean_up(&self, tree: &Arc<super::Tree>, closed: Vec<u32>, now: &Moment) {
        count(&self.ended);
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        let durable = self.journal.durable();
        let mut sealed = Vec::new();
        for index in closed {
            let gone = state.line(index).is_some_and(|l| l.closed.is_some() && l.seq <= durable);
            if !gone {
                continue;
            }
            if let Some(line) = state.line(index) {
                tree.tenant.directory.remove(&line.session_id, tree);
                sealed.push(line.uid);
            }
            if state.line_mut(index).and_then(|l| l.loading.take()).is_some() {
                // Its load ends on a line that is gone.
                self.release_header(tree, &mut state, now);
            }
            state.keep_facts(index, None);
            state.lines[index as usize] = None;
            state.free.push(index);
        }
        self.resources.sealed(&sealed, now);
        if state.lines.iter().all(Option::is_none) {
            self.drop_tree(tree, &mut state, now);
        } else {
            self.charge_header(tree, &mut state, now);
        }
    }

    /// A lease may be over: unless it was renewed or ended, its turn is.
    pub(crate) fn lease_due(&self, tree: &Arc<super::Tree>, index: u32, fence: u64, work: &mut Work, now: &Moment) {
        let mut state = tree.state.lock();
        if state.dropped {
            return;
        }
        let Some(line) = state.line_mut(index) else { return };
        let Some(lease) = line.lease.as_mut().filter(|l| l.running && l.fence == fence) else { return };
        let due = lease.deadline_ms <= now.mono_ms;
        if due && self.admit_change().is_err() {
            // While nothing can be written nothing may end.
            lease.timer = self.timer(now.mono_ms + 200, Timer::Lease(tree.clone(), index, fence));
            return;
        }
        // The expiry may be refused, or its session's load may fail: until the turn has ended it comes back.
        let next = if due { now.mono_ms + 1_000 } else { lease.deadline_ms };
        lease.timer = self.timer(next, Timer::Lease(tree.clone(), index, fence));
        if !due {
            return;
        }
        let call = Call::Expire { session_id: line.session_id.to_string(), fence };
        work.calls.push_back(self.pending(0, tree.tenant.clone(), 0, call, now));
    }
}

pub(crate) fn not_stored() -> Refusal {
    Refusal::new(Reason::NotStored, "the change was not stored, and nothing of it happened").retry_after(200)
}
