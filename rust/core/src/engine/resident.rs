//! Residency upkeep: what is charged, pinned, evicted. The index is lock-free; lines are changed under their tree's lock.
//!
//! A victim has left the index before its tree is locked. A touch in between finds the session in its line, sees that
//! the handle is stale, and files it anew: the eviction then finds another handle there and leaves it alone.

use super::tree::{Resident, Tree, TreeState};
use super::{Engine, Moment, count};
use crate::ids::Uid;
use crate::residency::{Evicted, Handle};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Engine {
    /// Pins the resident session at `index` (the tree is locked); `None` if it is not resident.
    pub(crate) fn pin(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, now: &Moment) -> Option<Handle> {
        let line = state.line_mut(index)?;
        let resident = line.resident.as_mut()?;
        if self.residents.pin(resident.handle, now.tick()) {
            return Some(resident.handle);
        }
        self.file(tree, index, line.uid, resident, now);
        Some(resident.handle)
    }

    /// Files a session in the index, pinned once.
    fn file(&self, tree: &Arc<Tree>, index: u32, uid: Uid, resident: &mut Resident, now: &Moment) {
        let owner = self.owners.lock().insert((tree.clone(), index)) as u32;
        let handle = self
            .residents
            .insert_pinned(uid.0, resident.bytes(), owner, now.tick())
            .expect("the index has room for every session that limits let be resident");
        resident.handle = handle;
    }

    /// Makes a session resident. One that runs is pinned once, for its turn; another may go as soon as it is idle.
    pub(crate) fn admit_resident(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        make: impl FnOnce(Handle) -> Resident,
        now: &Moment,
    ) {
        let Some(uid) = state.line(index).map(|l| l.uid) else { return };
        let owner = self.owners.lock().insert((tree.clone(), index)) as u32;
        let handle = self
            .residents
            .insert_pinned(uid.0, 0, owner, now.tick())
            .expect("the index has room for every session that limits let be resident");
        let resident = make(handle);
        self.residents.set_bytes(handle, resident.bytes());
        let Some(line) = state.line_mut(index) else { return };
        let running = line.running().is_some();
        line.resident = Some(Box::new(resident));
        if line.facts.is_some() {
            state.keep_facts(index, None);
            self.charge_header(tree, state, now);
        }
        self.hold_header(state);
        // A running session stays pinned until its turn ends (I9).
        if !running {
            self.residents.unpin(handle, now.tick());
        }
    }

    /// The session's turn is over, or never was: it may be evicted once its entries are durable.
    pub(crate) fn unpin_line(&self, state: &TreeState, index: u32, now: &Moment) {
        if let Some(resident) = state.line(index).and_then(|l| l.resident.as_ref()) {
            self.residents.unpin(resident.handle, now.tick());
        }
    }

    /// Charges what the session holds now.
    pub(crate) fn charge(&self, state: &TreeState, index: u32) {
        if let Some(resident) = state.line(index).and_then(|l| l.resident.as_ref()) {
            self.residents.set_bytes(resident.handle, resident.bytes());
        }
    }

    /// One more reason to keep the tree's header.
    pub(crate) fn hold_header(&self, state: &mut TreeState) {
        state.uses += 1;
        if state.uses == 1 {
            self.unfile_header(state);
        }
    }

    /// One reason less: without any it may go.
    pub(crate) fn release_header(&self, tree: &Arc<Tree>, state: &mut TreeState, now: &Moment) {
        state.uses -= 1;
        if state.uses == 0 {
            self.file_header(tree, state, now);
        }
    }

    /// Charges what the header holds now; the first time, the tree has come to memory.
    pub(crate) fn charge_header(&self, tree: &Arc<Tree>, state: &mut TreeState, now: &Moment) {
        let bytes = size_of::<Tree>() as u64
            + state.lines.capacity() as u64 * 8
            + (state.lines.len() - state.free.len()) as u64 * Tree::LINE_BYTES
            + state.facts_bytes
            + state.mail_bytes;
        let before = std::mem::replace(&mut state.header_bytes, bytes);
        if before == 0 {
            self.header_count.fetch_add(1, Ordering::Relaxed);
            if state.uses == 0 {
                self.file_header(tree, state, now);
            }
        }
        // Wrapping: the sum is exact whatever the order of two trees' charges.
        self.header_bytes.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    fn file_header(&self, tree: &Arc<Tree>, state: &mut TreeState, now: &Moment) {
        if state.header.is_some() || state.dropped || state.header_bytes == 0 {
            return;
        }
        let owner = self.owners.lock().insert((tree.clone(), 0)) as u32;
        // Full (more headers than there are bytes allowed for): it stays unfiled until its next use is over.
        state.header = self.headers.insert(tree.root.0, 0, owner, now.tick()).ok();
        if state.header.is_none() {
            self.owners.lock().remove(owner as usize);
        }
    }

    fn unfile_header(&self, state: &mut TreeState) {
        let Some(handle) = state.header.take() else { return };
        if let Some(entry) = self.headers.peek(handle)
            && self.headers.remove(handle)
        {
            self.owners.lock().try_remove(entry.aux as usize);
        }
    }

    /// Bytes of sessions and headers in memory.
    pub(crate) fn memory(&self) -> u64 {
        self.residents.bytes() + self.header_bytes.load(Ordering::Relaxed)
    }

    /// Takes a session out of memory without a trace in the index.
    pub(crate) fn forget_resident(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, now: &Moment) {
        let Some(resident) = state.line_mut(index).and_then(|l| l.resident.take()) else { return };
        if let Some(entry) = self.residents.peek(resident.handle)
            && self.residents.remove(resident.handle)
        {
            self.owners.lock().try_remove(entry.aux as usize);
        }
        self.release_header(tree, state, now);
    }

    /// Takes a tree out of memory: the directory forgets it, whoever holds it looks again.
    pub(crate) fn drop_tree(&self, tree: &Arc<Tree>, state: &mut TreeState, now: &Moment) {
        state.dropped = true;
        for index in 0..state.lines.len() as u32 {
            self.forget_resident(tree, state, index, now);
            if let Some(line) = state.line(index) {
                tree.tenant.directory.remove(&line.session_id, tree);
            }
        }
        self.unfile_header(state);
        let bytes = std::mem::take(&mut state.header_bytes);
        if bytes > 0 {
            self.header_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.header_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Brings count and bytes below their limits as far as what may go suffices, a bounded number of steps at a time.
    ///
    /// True if there is more to do.
    pub(crate) fn evict(&self, now: &Moment) -> bool {
        const STEPS: usize = 64;
        const AT_ONCE: usize = 32;
        let over = |bytes: u64| bytes > self.limits.max_resident_bytes();
        for _ in 0..AT_ONCE {
            let crowded = self.residents.len() as u64 > self.limits.max_resident_sessions();
            let heavy = over(self.memory());
            // A header that may go has no session in memory: all of them were colder than any that is resident.
            if !crowded
                && heavy
                && let Evicted::Victim { aux, handle, .. } = self.headers.evict(STEPS, now.tick())
            {
                self.evict_header(aux, handle, now);
                continue;
            }
            if !crowded && !heavy {
                return false;
            }
            match self.residents.evict(STEPS, now.tick()) {
                Evicted::Victim { aux, handle, .. } => self.evict_session(aux, handle, now),
                Evicted::BudgetExhausted => return true,
                Evicted::Nothing => return false,
            }
        }
        true
    }

    fn evict_session(&self, owner: u32, handle: Handle, now: &Moment) {
        let Some((tree, index)) = self.owners.lock().try_remove(owner as usize) else { return };
        let mut state = tree.state.lock();
        let Some(line) = state.line_mut(index) else { return };
        let Some(resident) = line.resident.take_if(|r| r.handle == handle) else { return };
        if line.finish_due_ms != 0 {
            let facts = resident.facts(line).encode_to_vec();
            state.keep_facts(index, Some(facts.into()));
            self.charge_header(&tree, &mut state, now);
        }
        count(&self.counters.evictions);
        self.release_header(&tree, &mut state, now);
    }

    fn evict_header(&self, owner: u32, handle: Handle, now: &Moment) {
        let Some((tree, _)) = self.owners.lock().try_remove(owner as usize) else { return };
        let mut state = tree.state.lock();
        if state.header != Some(handle) || state.dropped {
            return;
        }
        state.header = None;
        if state.last_seq > self.journal.durable() {
            self.file_header(&tree, &mut state, now);
            return;
        }
        self.drop_tree(&tree, &mut state, now);
        self.counters.header_evictions.fetch_add(1, Ordering::Relaxed);
    }
}
