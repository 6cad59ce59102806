//! Where entries live: a flat array of 48-byte slots, a lock-free free list, and the inbox of slots that wait to be
//! filed in the calendar.
//!
//! Links are `index + 1`, 0 = none, so that fresh zero pages are a valid empty slab. Memory is committed as slots are
//! first used: the free list is preferred, so the slab never grows past the peak of live entries.

use crate::sync::{AtomicU32, AtomicU64, Ordering, Padded, zeroed_box};

/// 48 bytes. `state`, `last` and `aux` share 16 aligned bytes: a touch by handle reads one cache line.
#[derive(Debug)]
#[cfg_attr(not(any(feature = "shuttle", roost_loom)), derive(bytemuck::Zeroable))]
#[repr(C)]
pub(super) struct Slot {
    pub(super) key_hi: AtomicU64,
    pub(super) key_lo: AtomicU64,
    pub(super) state: AtomicU64,
    /// Tick of the last use; only grows while the entry lives.
    pub(super) last: AtomicU32,
    pub(super) aux: AtomicU32,
    pub(super) bytes: AtomicU64,
    /// Link of the one list that holds the slot: inbox, calendar bucket. Guarded by LINKED and the calendar's lock.
    pub(super) next: AtomicU32,
    /// Link of the free list, apart from `next` because a free slot may still be linked in the calendar.
    free_next: AtomicU32,
}

impl Slot {
    fn zero() -> Self {
        Self {
            key_hi: AtomicU64::new(0),
            key_lo: AtomicU64::new(0),
            state: AtomicU64::new(0),
            last: AtomicU32::new(0),
            aux: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
            next: AtomicU32::new(0),
            free_next: AtomicU32::new(0),
        }
    }

    pub(super) fn key(&self) -> u128 {
        // Acquire pairs with `set_key`: a reader that sees a later entry's key must then see, in `state`, that the
        // entry it came for is dead.
        let hi = self.key_hi.load(Ordering::Acquire);
        let lo = self.key_lo.load(Ordering::Acquire);
        u128::from(hi) << 64 | u128::from(lo)
    }

    pub(super) fn set_key(&self, key: u128) {
        // Release: see `key`. (That readers of a LIVE state see the key follows from the state's own Release.)
        self.key_hi.store((key >> 64) as u64, Ordering::Release);
        self.key_lo.store(key as u64, Ordering::Release);
    }

    /// Wait-free: one load in a tick that saw a use already, else one read-modify-write. A plain store would be
    /// cheaper, but a late thread with an older tick could then take back a newer use.
    #[inline]
    pub(super) fn touch(&self, tick: u32) {
        // Relaxed: only compared. The evictor learns of a use through the state word, or it raced with it.
        if self.last.load(Ordering::Relaxed) < tick {
            self.last.fetch_max(tick, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
pub(super) struct Slab {
    slots: Box<[Slot]>,
    /// `tag:32 | link:32`. The tag changes with every push and pop, so a pop that slept cannot swing the head to a link
    /// that was read in another age of the list.
    free: Padded<AtomicU64>,
    /// Slots handed out at least once; those above were never written.
    fresh: Padded<AtomicU32>,
    /// Link of the newest slot that waits for the calendar.
    inbox: Padded<AtomicU32>,
}

impl Slab {
    pub(super) fn new(capacity: usize) -> Self {
        assert!(capacity < u32::MAX as usize, "links are 32 bits");
        Self {
            slots: zeroed_box(capacity, Slot::zero),
            free: Padded::new(AtomicU64::new(0)),
            fresh: Padded::new(AtomicU32::new(0)),
            inbox: Padded::new(AtomicU32::new(0)),
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    /// A dead slot that nobody else will hand out, or `None` if all are in use.
    pub(super) fn alloc(&self) -> Option<u32> {
        // Acquire: the slot's last owner wrote `free_next` (and its death) before it pushed.
        let mut head = self.free.load(Ordering::Acquire);
        while head as u32 != 0 {
            let index = head as u32 - 1;
            // Relaxed: may be stale or garbage if another thread popped meanwhile; then the tag differs and we fail.
            let next = self.slot(index).free_next.load(Ordering::Relaxed);
            match self.free.compare_exchange_weak(head, retag(head, next), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(seen) => head = seen,
            }
        }
        self.fresh
            // Relaxed: hands out numbers; a fresh slot holds nothing that anyone wrote.
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| ((n as usize) < self.slots.len()).then(|| n + 1))
            .ok()
    }

    pub(super) fn free(&self, index: u32) {
        let slot = self.slot(index);
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            slot.free_next.store(head as u32, Ordering::Relaxed);
            // Release: who pops this slot sees `free_next` and the dead state. (A pop in between is an RMW, so it
            // continues the release sequence of the pushes below it.)
            match self.free.compare_exchange_weak(head, retag(head, index + 1), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => head = seen,
            }
        }
    }

    /// Puts a slot whose LINKED bit the caller has just set in front of the calendar's door.
    pub(super) fn push_inbox(&self, index: u32) {
        let slot = self.slot(index);
        let mut head = self.inbox.load(Ordering::Relaxed);
        loop {
            slot.next.store(head, Ordering::Relaxed);
            // Release: the drainer sees `next`, and the entry as it was born. No ABA: nobody pops single slots.
            match self.inbox.compare_exchange_weak(head, index + 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => head = seen,
            }
        }
    }

    /// The whole inbox as a list, newest first.
    pub(super) fn take_inbox(&self) -> u32 {
        // The common case of an empty inbox should not take the line away from the inserters.
        if self.inbox.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        // Acquire: see `push_inbox`; a later push continues the release sequence of those below it.
        self.inbox.swap(0, Ordering::Acquire)
    }
}

const fn retag(head: u64, link: u32) -> u64 {
    ((head >> 32) as u32).wrapping_add(1) as u64 * (1 << 32) + link as u64
}
