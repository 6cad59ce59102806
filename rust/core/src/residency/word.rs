//! The two words that decide an entry's fate, as pure functions: the state word and the bytes word.
//!
//! State: `gen:32 | LIVE | LINKED | seq:10 | pins:20`. Birth, death, pin and unpin are each ONE compare-and-swap on it,
//! so "pinned" and "evicted" exclude each other without a lock (G2).
//!
//! Bytes: `tag:16 | bytes:48`. The tag is odd while the entry lives and made from its generation, so that a late
//! `set_bytes` cannot reach the next tenant of the slot, and the total stays the exact sum (I10).

/// The slot holds an entry. Cleared by death, in the same swap that checks the pins.
pub(super) const LIVE: u64 = 1 << 31;
/// The calendar (or the inbox) holds the slot; survives death, so that a reused slot is never linked twice.
pub(super) const LINKED: u64 = 1 << 30;
const SEQ_ONE: u64 = 1 << 20;
const SEQ_MASK: u64 = 0x3ff << 20;
pub(super) const PINS_MASK: u64 = SEQ_ONE - 1;

/// What `bytes` may not exceed, 256 TiB.
pub(super) const BYTES_LIMIT: u64 = 1 << 48;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State(pub(super) u64);

impl State {
    pub(super) const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
    pub(super) const fn is_live(self) -> bool {
        self.0 & LIVE != 0
    }
    pub(super) const fn is_linked(self) -> bool {
        self.0 & LINKED != 0
    }
    pub(super) const fn pins(self) -> u32 {
        (self.0 & PINS_MASK) as u32
    }
    pub(super) const fn is(self, generation: u32) -> bool {
        self.is_live() && self.generation() == generation
    }
    /// The next entry of this slot. Generation 0 is skipped: with slot 0 it would make a handle of 0.
    pub(super) const fn born(self, pins: u32) -> Self {
        let next = match self.generation().wrapping_add(1) {
            0 => 1,
            generation => generation,
        };
        Self((next as u64) << 32 | LIVE | LINKED | pins as u64)
    }
    /// Dead, all handles stale; still linked if it was.
    pub(super) const fn dead(self) -> Self {
        Self(self.0 & !(LIVE | SEQ_MASK | PINS_MASK))
    }
    pub(super) const fn unlinked(self) -> Self {
        Self(self.0 & !LINKED)
    }
    /// `None` if the pin count is full.
    pub(super) const fn pinned(self) -> Option<Self> {
        if self.0 & PINS_MASK == PINS_MASK { None } else { Some(Self(self.0 + 1)) }
    }
    /// One pin less, and another `seq`: an evictor that read the state before this pin began must fail its swap even
    /// though the pin count is what it was. `None` if there is no pin.
    pub(super) const fn unpinned(self) -> Option<Self> {
        if self.0 & PINS_MASK == 0 {
            return None;
        }
        let seq = (self.0 & SEQ_MASK).wrapping_add(SEQ_ONE) & SEQ_MASK;
        Some(Self((self.0 - 1) & !SEQ_MASK | seq))
    }
}

pub(super) const fn bytes_word(generation: u32, bytes: u64) -> u64 {
    (((generation as u64) << 1 & 0xfffe) | 1) << 48 | bytes
}

pub(super) const fn bytes_of(word: u64) -> u64 {
    word & (BYTES_LIMIT - 1)
}

/// Whether `word` is the bytes word of a living entry of this generation.
pub(super) const fn bytes_belong(word: u64, generation: u32) -> bool {
    word >> 48 == bytes_word(generation, 0) >> 48
}

#[cfg(test)]
mod tests {
    use super::*;

    // G2: every transition touches its own field only, at the edges of all fields.
    #[test]
    fn transitions_keep_the_other_fields() {
        for generation in [0u64, 1, 7, u32::MAX as u64 - 1, u32::MAX as u64] {
            for flags in [0, LIVE, LINKED, LIVE | LINKED] {
                for seq in [0u64, 1, 1022, 1023] {
                    for pins in [0u64, 1, 2, PINS_MASK - 1, PINS_MASK] {
                        let s = State(generation << 32 | flags | seq << 20 | pins);
                        assert_eq!(s.generation() as u64, generation);
                        assert_eq!((s.is_live(), s.is_linked()), (flags & LIVE != 0, flags & LINKED != 0));
                        assert_eq!(s.pins() as u64, pins);
                        match s.pinned() {
                            None => assert_eq!(pins, PINS_MASK),
                            Some(p) => assert_eq!(p.0, generation << 32 | flags | seq << 20 | (pins + 1)),
                        }
                        match s.unpinned() {
                            None => assert_eq!(pins, 0),
                            Some(u) => {
                                assert_eq!(u.0, generation << 32 | flags | ((seq + 1) % 1024) << 20 | (pins - 1));
                            }
                        }
                        assert_eq!(s.dead().0, generation << 32 | flags & LINKED);
                        assert_eq!(s.unlinked().0, s.0 & !LINKED);
                        let born = s.born(3);
                        assert!(born.is_live() && born.is_linked() && born.pins() == 3 && born.generation() != 0);
                        assert_ne!(born.generation(), s.generation());
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_words_belong_to_one_generation() {
        for generation in [1u32, 2, 32767, 32768, u32::MAX] {
            for bytes in [0, 1, BYTES_LIMIT - 1] {
                let word = bytes_word(generation, bytes);
                assert_eq!(bytes_of(word), bytes);
                assert!(bytes_belong(word, generation));
                assert!(!bytes_belong(word, generation.wrapping_add(1)));
            }
            assert!(!bytes_belong(0, generation), "a dead slot's bytes belong to nobody");
        }
    }
}
