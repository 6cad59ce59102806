//! Slot counters: who may run a turn now, counted at every level (tree, tenant, worker) without a lock.
//!
//! One word a node, `cap:32 | used:32`, so that a changed cap and the check against it can never be seen apart.
//!
//! * **Never over-admits** (I2): `used` grows under [`reserve`] only by a compare-and-swap that saw `used + n <= cap`, so
//!   each admission takes effect at one instant at which the count stayed within the cap.
//! * **All or nothing** (I22): a chain that is refused at level `i` gives levels `0..i` back, in reverse.
//! * **A refusal is honest but conservative**: at some instant inside the call `used + n > cap` held at the named level,
//!   counting requests in flight which may themselves have been refused a moment later. A chain that gave something back
//!   says so ([`Refused::given_back`]), because for whoever waits at those levels that was a release.
//! * **Progress**: lock-free. A thread that is preempted anywhere delays nobody.
//!
//! Exactly-once release (I1, I12) is the engine's duty, not this module's: a count has no identity. The engine keeps the
//! grant beside its tree's lock, ends it there once, and only then calls [`SlotNode::release`] with what was charged.
//! There is no guard type here, because a grant outlives every stack frame (it ends by commit, expiry or takeover).

use crate::sync::{AtomicU64, Ordering};

/// A cap that never refuses (short of 2^32 units in use, which no counter could hold).
pub const NO_LIMIT: u32 = u32::MAX;

/// One level's counter. 8 bytes; wrap the few that all trees share in [`crate::sync::Padded`].
#[derive(Debug)]
pub struct SlotNode {
    word: AtomicU64,
}

/// The first level that refused a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Index into the levels of the call.
    pub level: usize,
    /// How many levels (`0..given_back`) had been taken and were given back, in reverse. The caller treats each as a
    /// release and tries its waiters again. 0 when the first look already refused: then nothing was taken, and nobody
    /// need be woken (waking them anyway could make two waiters refuse each other for ever).
    pub given_back: usize,
}

/// The count would not fit in 32 bits; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountOverflow;

const fn pack(cap: u32, used: u32) -> u64 {
    (cap as u64) << 32 | used as u64
}

const fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl SlotNode {
    pub fn new(cap: u32) -> Self {
        Self { word: AtomicU64::new(pack(cap, 0)) }
    }

    pub fn cap(&self) -> u32 {
        self.cap_used().0
    }

    pub fn used(&self) -> u32 {
        self.cap_used().1
    }

    /// Cap and use as they were at one instant.
    pub fn cap_used(&self) -> (u32, u32) {
        // Relaxed: a number for people and for the first look; every decision is made by a CAS.
        unpack(self.word.load(Ordering::Relaxed))
    }

    /// Binds the very next reserve. Ends nothing: `used` may stay above a lowered cap until it drains. 0 = pause.
    pub fn set_cap(&self, cap: u32) {
        // Relaxed: the word is all there is; nothing else is published through a cap.
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(pack(cap, unpack(word).1)));
    }

    /// Whether `n` more would fit now; only a hint.
    pub fn has_room(&self, n: u32) -> bool {
        admit(self.word.load(Ordering::Relaxed), n).is_some()
    }

    /// Charges what already runs (read from the store at start, or an estimate that proved too low), cap or no cap.
    #[must_use = "a charge that did not fit was not made"]
    pub fn force_add(&self, n: u32) -> Result<(), CountOverflow> {
        self.word
            // AcqRel as in `try_add`: a charge is an admission as far as ordering goes.
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                let (cap, used) = unpack(word);
                used.checked_add(n).map(|used| pack(cap, used))
            })
            .map(drop)
            .map_err(|_| CountOverflow)
    }

    /// Gives `n` back. Giving back more than is held is a bug in the caller: it panics in debug builds; in release the
    /// count stops at 0, which can only admit as much as a correct count would have, and `false` lets the caller raise
    /// the alarm.
    pub fn release(&self, n: u32) -> bool {
        let mut underflow = false;
        let _ = self
            .word
            // Release: what the holder did happens before whatever the next holder of this slot does.
            .fetch_update(Ordering::Release, Ordering::Relaxed, |word| {
                let (cap, used) = unpack(word);
                underflow = used < n;
                Some(pack(cap, used.saturating_sub(n)))
            });
        debug_assert!(!underflow, "released {n} slots that were not held");
        !underflow
    }

    fn try_add(&self, n: u32) -> bool {
        self.word
            // Acquire pairs with `release`. Release keeps this word's chain of holders whole when a holder never
            // released through this thread (force_add, then a reserve on top of it).
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| admit(word, n))
            .is_ok()
    }
}

/// The word after `n` more, if the cap allows it.
fn admit(word: u64, n: u32) -> Option<u64> {
    let (cap, used) = unpack(word);
    let after = used.checked_add(n)?;
    (after <= cap).then(|| pack(cap, after))
}

/// Takes `n` at every level or at none. All callers name the levels in one fixed order (tree, tenant, worker): two
/// chains that meet then contend at the first level they share, instead of each rolling the other back for ever.
pub fn reserve(levels: &[(&SlotNode, u32)]) -> Result<(), Refused> {
    // A doomed chain should not hold lower levels even for nanoseconds, since that could refuse somebody else.
    if let Some(level) = levels.iter().position(|(node, n)| !node.has_room(*n)) {
        return Err(Refused { level, given_back: 0 });
    }
    for (level, (node, n)) in levels.iter().enumerate() {
        if !node.try_add(*n) {
            for (taken, n) in levels[..level].iter().rev() {
                taken.release(*n);
            }
            return Err(Refused { level, given_back: level });
        }
    }
    Ok(())
}
