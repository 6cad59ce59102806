//! The residency index: which sessions are in memory, how many bytes they take, and which of them goes first.
//!
//! A "calendar LRU". A use writes the current tick into the entry and moves nothing; the calendar files entries by tick
//! and looks at `last` only when an entry comes up for eviction. Time comes in as `tick`; a tick of d seconds makes the
//! order exact to d. A thread may bring a tick that it read a while ago: an entry's last use does not go back for it.
//!
//! What is promised (tests name these):
//!
//! * **G1 tick-exact LRU.** Use = insert, touch, or being pinned. For each victim v, and each entry u that is live and
//!   unpinned during the whole call and not used concurrently with it: `tick(last use of v) <= tick(last use of u)`.
//!   The error is a time, less than one tick; it depends on neither the number of entries nor that of threads.
//!   *Why:* v comes from the oldest list, due b, with `last(v) <= b`; u is filed, since the inbox was emptied first, and
//!   filed entries have `last >= filed >= b`.
//! * **G2 pins.** A pinned entry is never evicted; an evicted, removed or reused one is never pinned, touched or resized
//!   through an old handle. Birth, death, pin and unpin are one compare-and-swap each on one word (`word.rs`).
//! * **G3 amortised O(1).** An unpinned entry is filed again only if it was used since it was filed (and once each
//!   horizon while it waits); a pinned one once a round of [`Index::evict`] calls, when everything older is gone, and
//!   once a tick by [`Index::maintain`].
//! * **G4 bounded calls.** `evict` and `maintain` look at no more than `budget` entries, emptying the inbox included;
//!   every other call takes a bounded number of steps but for retries against other threads. The map keeps no
//!   tombstones and the calendar skips empty lists by bitmap, so nothing is ever rebuilt, whatever happened before.
//! * **G5 progress.** touch and lookups are wait-free; pin, unpin, insert, set_bytes and remove are lock-free. Only
//!   `evict` and `maintain` share a lock, with each other.
//! * **I10.** [`Index::len`] and [`Index::bytes`] are exact sums whenever no call is running, and while calls run never
//!   less than the sum over live entries: births and growth count before they show, deaths and shrinking after.

mod calendar;
mod evict;
mod map;
mod slab;
mod word;

use std::num::NonZeroU64;

use crate::sync::{AtomicU64, Mutex, Ordering, Padded};
use calendar::Calendar;
pub use evict::{Evicted, Maintained};
use map::Map;
use slab::{Slab, Slot};
use word::{BYTES_LIMIT, State, bytes_belong, bytes_of, bytes_word};

/// Names one entry for as long as it lives: `generation:32 | slot:32`. Stale handles are recognised, never misdirected
/// (a slot would have to be reused 2^32 times in between).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(NonZeroU64);

impl Handle {
    fn new(generation: u32, index: u32) -> Self {
        let bits = u64::from(generation) << 32 | u64::from(index);
        Self(NonZeroU64::new(bits).expect("generations of live entries start at 1"))
    }

    /// For callers that store handles in words of their own.
    pub fn to_bits(self) -> NonZeroU64 {
        self.0
    }

    /// Any bits are safe: what names no live entry is stale.
    pub fn from_bits(bits: NonZeroU64) -> Self {
        Self(bits)
    }

    fn index(self) -> u32 {
        self.0.get() as u32
    }

    fn generation(self) -> u32 {
        (self.0.get() >> 32) as u32
    }
}

/// Every slot is in use: evict first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A live entry, as [`Index::peek`] saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub key: u128,
    pub aux: u32,
    pub bytes: u64,
    pub last_tick: u32,
    pub pins: u32,
}

/// See the module's own text.
#[derive(Debug)]
pub struct Index {
    slab: Slab,
    /// `None` where entries are only ever found by handle.
    map: Option<Map>,
    len: Padded<AtomicU64>,
    bytes: Padded<AtomicU64>,
    calendar: Mutex<Calendar>,
}

impl Index {
    /// At most `capacity` entries, ever. 48 bytes an entry are committed as slots are first used, and 8 bytes an entry
    /// of `capacity` as keys come to fall on the map's pages. `horizon_ticks`, rounded up to a power of two, is how far apart uses
    /// may lie before lists share a place (4 bytes each): the time after which an unused entry would be gone anyway.
    /// It affects cost, never order.
    pub fn new(capacity: usize, horizon_ticks: u32) -> Self {
        Self::with_map(capacity, horizon_ticks, Some(Map::new(capacity)))
    }

    /// As [`Self::new`], for a caller that keeps the handles: there is no map, `get` and `touch_key` find nothing.
    pub fn by_handle(capacity: usize, horizon_ticks: u32) -> Self {
        Self::with_map(capacity, horizon_ticks, None)
    }

    fn with_map(capacity: usize, horizon_ticks: u32, map: Option<Map>) -> Self {
        Self {
            slab: Slab::new(capacity),
            map,
            len: Padded::new(AtomicU64::new(0)),
            bytes: Padded::new(AtomicU64::new(0)),
            calendar: Mutex::new(Calendar::new(horizon_ticks)),
        }
    }

    pub fn capacity(&self) -> usize {
        self.slab.capacity()
    }

    pub fn len(&self) -> usize {
        // Relaxed, as are all accesses to the two sums: each is exact by itself and publishes nothing.
        self.len.load(Ordering::Relaxed) as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A new entry. The caller makes sure that `key` is not live (the engine's tree lock does); two entries of one key
    /// would both be counted and evicted correctly, but lookups would find either. `bytes` must be below 2^48.
    pub fn insert(&self, key: u128, bytes: u64, aux: u32, tick: u32) -> Result<Handle, Full> {
        self.insert_with_pins(key, bytes, aux, tick, 0)
    }

    /// A new entry that is born with one pin, so that no eviction fits between insert and pin.
    pub fn insert_pinned(&self, key: u128, bytes: u64, aux: u32, tick: u32) -> Result<Handle, Full> {
        self.insert_with_pins(key, bytes, aux, tick, 1)
    }

    fn insert_with_pins(&self, key: u128, bytes: u64, aux: u32, tick: u32, pins: u32) -> Result<Handle, Full> {
        assert!(bytes < BYTES_LIMIT, "an entry of 256 TiB");
        let index = self.slab.alloc().ok_or(Full)?;
        let slot = self.slab.slot(index);
        // Counted before it shows: a concurrent death must find it in the sums.
        self.len.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        slot.set_key(key);
        slot.aux.store(aux, Ordering::Relaxed);
        // Relaxed, like `aux` and `bytes`: published by the state below. If the slot is still linked from an earlier
        // entry, it is filed no later than that one's last use, which a thread with a later clock may have made: not
        // going below it keeps the calendar's invariant.
        slot.touch(tick);
        // Relaxed: the calendar, the only other writer, may clear LINKED until our swap says LIVE.
        let mut old = State(slot.state.load(Ordering::Relaxed));
        let generation = old.born(pins).generation();
        slot.bytes.store(bytes_word(generation, bytes), Ordering::Relaxed);
        // Seated before it lives: once it lives, an evictor may want to unseat it.
        if let Some(map) = &self.map {
            map.insert(key, index);
        }
        loop {
            // Release: who sees LIVE sees the entry. Acquire: if LINKED was cleared, `next` is ours to write.
            match slot.state.compare_exchange_weak(old.0, old.born(pins).0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(seen) => old = State(seen),
            }
        }
        if !old.is_linked() {
            self.slab.push_inbox(index);
        }
        Ok(Handle::new(generation, index))
    }

    /// The slot if the handle's entry lives, and the state that says so.
    #[inline]
    fn live(&self, handle: Handle) -> Option<(&Slot, State)> {
        let slot = self.slab.get(handle.index())?;
        // Acquire: sees the entry as it was born.
        let state = State(slot.state.load(Ordering::Acquire));
        state.is(handle.generation()).then_some((slot, state))
    }

    /// Marks a use; `false` if the handle is stale. An eviction that runs meanwhile may still take the entry, as if the
    /// use had come just before: what must stay is pinned.
    #[inline]
    pub fn touch(&self, handle: Handle, tick: u32) -> bool {
        self.live(handle).is_some_and(|(slot, _)| {
            slot.touch(tick);
            true
        })
    }

    /// [`Self::get`] and [`Self::touch`] in one.
    #[inline]
    pub fn touch_key(&self, key: u128, tick: u32) -> Option<Handle> {
        self.find(key).map(|(handle, slot)| {
            slot.touch(tick);
            handle
        })
    }

    /// The live entry of `key`. No use: reads, lists and exports do not touch.
    #[inline]
    pub fn get(&self, key: u128) -> Option<Handle> {
        self.find(key).map(|(handle, _)| handle)
    }

    #[inline]
    fn find(&self, key: u128) -> Option<(Handle, &Slot)> {
        self.map.as_ref()?.find(key, |index| {
            let slot = self.slab.slot(index);
            let state = State(slot.state.load(Ordering::Acquire));
            // The key may be a later entry's, if this one died since; then the second look at the state shows it.
            let same = state.is_live()
                && slot.key() == key
                && State(slot.state.load(Ordering::Relaxed)).is(state.generation());
            same.then(|| (Handle::new(state.generation(), index), slot))
        })
    }

    /// Keeps the entry in memory until the matching unpin; `false` if it is gone already.
    pub fn pin(&self, handle: Handle, tick: u32) -> bool {
        let Some((slot, mut state)) = self.live(handle) else {
            return false;
        };
        loop {
            let pinned = state.pinned().expect("a million pins on one entry: one of them leaks");
            // Acquire: sees the entry as it was born, though `live` may have seen less than the swap. Release: the
            // evictor that reads this state also reads what the states before it published.
            match slot.state.compare_exchange_weak(state.0, pinned.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    slot.touch(tick);
                    return true;
                }
                Err(seen) if State(seen).is(handle.generation()) => state = State(seen),
                Err(_) => return false,
            }
        }
    }

    /// Takes back one pin, which counts as a use until now. `false`, and nothing done, if the entry was removed while it
    /// was pinned. An unpin without a pin is a bug of the caller: it panics in debug builds, else it does nothing.
    pub fn unpin(&self, handle: Handle, tick: u32) -> bool {
        let Some((slot, mut state)) = self.live(handle) else {
            return false;
        };
        // The use first: an evictor that sees the pin gone must see until when it was there.
        slot.touch(tick);
        loop {
            let Some(unpinned) = state.unpinned() else {
                debug_assert!(false, "unpin without pin");
                return false;
            };
            // Release: publishes `last` to the evictor's Acquire.
            match slot.state.compare_exchange_weak(state.0, unpinned.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(seen) if State(seen).is(handle.generation()) => state = State(seen),
                Err(_) => return false,
            }
        }
    }

    /// 0 for a stale handle.
    pub fn pins(&self, handle: Handle) -> u32 {
        self.live(handle).map_or(0, |(_, state)| state.pins())
    }

    /// The entry behind a handle.
    pub fn peek(&self, handle: Handle) -> Option<Entry> {
        let (slot, _) = self.live(handle)?;
        let key = slot.key();
        let aux = slot.aux.load(Ordering::Acquire);
        let bytes = slot.bytes.load(Ordering::Acquire);
        let last_tick = slot.last.load(Ordering::Acquire);
        // Read between two looks at the same life.
        let (_, state) = self.live(handle)?;
        bytes_belong(bytes, handle.generation()).then_some(Entry {
            key,
            aux,
            bytes: bytes_of(bytes),
            last_tick,
            pins: state.pins(),
        })
    }

    /// The entry takes `bytes` from now on; `false` if the handle is stale. The total stays exact against concurrent
    /// deaths: whoever swaps an entry's bytes word accounts for the difference, and death swaps it last.
    pub fn set_bytes(&self, handle: Handle, bytes: u64) -> bool {
        assert!(bytes < BYTES_LIMIT, "an entry of 256 TiB");
        let Some((slot, _)) = self.live(handle) else {
            return false;
        };
        let new = bytes_word(handle.generation(), bytes);
        // Relaxed throughout: the word and the sum carry numbers, and publish nothing.
        let mut old = slot.bytes.load(Ordering::Relaxed);
        loop {
            if !bytes_belong(old, handle.generation()) {
                return false;
            }
            let grown = bytes.saturating_sub(bytes_of(old));
            if grown > 0 {
                self.bytes.fetch_add(grown, Ordering::Relaxed);
            }
            match slot.bytes.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.subtract_bytes(bytes_of(old).saturating_sub(bytes));
                    return true;
                }
                Err(seen) => {
                    self.subtract_bytes(grown);
                    old = seen;
                }
            }
        }
    }

    fn subtract_bytes(&self, bytes: u64) {
        if bytes > 0 {
            let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            debug_assert!(before >= bytes, "more bytes given back than counted");
        }
    }

    /// Ends the entry, pinned or not (a closed session goes whoever held it; later unpins are stale and do nothing).
    /// `true` for exactly one of the calls and evictions that race for it.
    pub fn remove(&self, handle: Handle) -> bool {
        let Some((slot, mut state)) = self.live(handle) else {
            return false;
        };
        loop {
            // Acquire: what users of the entry wrote before. Release: the calendar may find it dead and unlink it.
            match slot.state.compare_exchange_weak(state.0, state.dead().0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(seen) if State(seen).is(handle.generation()) => state = State(seen),
                Err(_) => return false,
            }
        }
        self.bury(slot, handle.index());
        true
    }

    /// What is left to do for an entry whose death the caller won: out of the map, out of the sums, slot to the free
    /// list (also while the calendar still links it). Returns its key and bytes.
    fn bury(&self, slot: &Slot, index: u32) -> (u128, u64) {
        let key = slot.key();
        if let Some(map) = &self.map {
            map.remove(key, index);
        }
        // Relaxed: see `set_bytes`; from here on no handle of this life can change the sum.
        let bytes = bytes_of(slot.bytes.swap(0, Ordering::Relaxed));
        self.subtract_bytes(bytes);
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.slab.free(index);
        (key, bytes)
    }
}
