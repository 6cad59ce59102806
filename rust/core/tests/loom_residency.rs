//! Loom models of the residency index. Guards G2 (pins against eviction, handles against reuse), I9, I10 (exact sums),
//! I11 (nothing is lost between inbox, calendar and free list) and the orderings of docs/ARCHITECTURE.md.
#![cfg(roost_loom)]

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};
use roost_core::residency::{Evicted, Handle, Index};

fn model_at(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.max(Some(preemptions));
    builder.max_branches = 10_000;
    builder.check(f);
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    model_at(2, f);
}

/// An index, and a word that every thread of a model writes first. Loom reorders threads where they conflict, but a
/// load of one's own hides from it that the write after it conflicts with another's load: without the gate it would try
/// "evict, then unpin" and never the reverse. Relaxed, so that the gate itself orders nothing.
struct Raced {
    index: Index,
    gate: AtomicU32,
}

impl std::ops::Deref for Raced {
    type Target = Index;
    fn deref(&self) -> &Index {
        &self.index
    }
}

impl Raced {
    fn start(&self) -> &Index {
        self.gate.fetch_add(1, Ordering::Relaxed);
        &self.index
    }
}

fn index(capacity: usize) -> Arc<Raced> {
    Arc::new(Raced { index: Index::new(capacity, 2), gate: AtomicU32::new(0) })
}

fn is_victim(evicted: Evicted) -> bool {
    matches!(evicted, Evicted::Victim { .. })
}

/// At rest: the sums are those of `entries`, all of which can still be evicted, and every slot comes back.
fn settle(index: &Index, entries: usize, bytes: u64) {
    assert_eq!((index.len(), index.bytes()), (entries, bytes), "I10");
    for _ in 0..entries {
        assert!(is_victim(index.evict(64, 9)), "an entry that no eviction finds");
    }
    assert_eq!((index.len(), index.bytes()), (0, 0), "I10");
    assert_eq!(index.evict(64, 9), Evicted::Nothing);
    for key in 0..index.capacity() {
        index.insert(100 + key as u128, 0, 0, 9).expect("a slot leaked");
    }
}

#[test]
fn pin_or_evict_but_never_both() {
    model(|| {
        let index = index(1);
        let handle = index.insert(1, 10, 0, 1).unwrap();
        let pinner = thread::spawn({
            let index = index.clone();
            move || index.start().pin(handle, 2)
        });
        index.start();
        let evicted = is_victim(index.evict(8, 2));
        let pinned = pinner.join().unwrap();
        assert!(pinned != evicted, "G2: pinned {pinned}, evicted {evicted}");
        assert_eq!(index.get(1).is_some(), pinned);
        if pinned {
            assert!(index.unpin(handle, 3));
        }
        settle(&index, usize::from(pinned), if pinned { 10 } else { 0 });
    });
}

// An evictor that finds the pin gone knows until when it was there, and what the pinner did meanwhile is done.
#[test]
fn an_unpinned_victim_shows_its_last_use() {
    model(|| {
        let index = index(1);
        let cell = Arc::new(UnsafeCell::new(()));
        let handle = index.insert_pinned(1, 10, 0, 1).unwrap();
        let unpinner = thread::spawn({
            let (index, cell) = (index.clone(), cell.clone());
            move || {
                index.start();
                cell.with_mut(|_| ());
                assert!(index.unpin(handle, 5));
            }
        });
        index.start();
        let evicted = index.evict(8, 5);
        if let Evicted::Victim { last_tick, .. } = evicted {
            assert_eq!(last_tick, 5, "G1: evicted as idle since before the pin");
            cell.with_mut(|_| ());
        }
        unpinner.join().unwrap();
        let left = usize::from(!is_victim(evicted));
        settle(&index, left, 10 * left as u64);
    });
}

// A pin and unpin between the evictor's look and its swap must not go unseen (`seq`).
#[test]
fn a_pin_that_came_and_went_is_seen() {
    model(|| {
        let index = index(1);
        let handle = index.insert(1, 10, 0, 1).unwrap();
        let pinner = thread::spawn({
            let index = index.clone();
            move || index.start().pin(handle, 5) && index.unpin(handle, 5)
        });
        index.start();
        let evicted = index.evict(8, 5);
        let pinned = pinner.join().unwrap();
        if let (Evicted::Victim { last_tick, .. }, true) = (evicted, pinned) {
            assert_eq!(last_tick, 5, "G1: evicted by a look from before the pin");
        }
        let left = usize::from(!is_victim(evicted));
        settle(&index, left, 10 * left as u64);
    });
}

#[test]
fn one_of_remove_and_evict_ends_it_whoever_pins() {
    model(|| {
        let index = index(1);
        let handle = index.insert(1, 10, 0, 1).unwrap();
        let pinner = thread::spawn({
            let index = index.clone();
            move || index.start().pin(handle, 2)
        });
        let remover = thread::spawn({
            let index = index.clone();
            move || index.start().remove(handle)
        });
        index.start();
        let evicted = is_victim(index.evict(8, 2));
        let (pinned, removed) = (pinner.join().unwrap(), remover.join().unwrap());
        assert!(removed != evicted, "I12: ended by {}", u8::from(removed) + u8::from(evicted));
        assert!(!(pinned && evicted), "G2");
        assert!(!index.unpin(handle, 3) && index.pins(handle) == 0);
        settle(&index, 0, 0);
    });
}

#[test]
fn a_slot_reused_while_linked_is_linked_once_and_not_lost() {
    model(|| {
        let index = index(2);
        let first = index.insert(1, 10, 0, 1).unwrap();
        let _ = index.maintain(8, 1);
        let user = thread::spawn({
            let index = index.clone();
            move || {
                index.start();
                if index.remove(first) {
                    index.insert(2, 20, 0, 2).unwrap();
                    true
                } else {
                    false
                }
            }
        });
        index.start();
        let evicted = index.evict(8, 2);
        let reused = user.join().unwrap();
        let left = match evicted {
            Evicted::Victim { key: 1, .. } => {
                assert!(!reused);
                0
            }
            Evicted::Victim { last_tick, bytes, .. } => {
                assert_eq!((last_tick, bytes), (2, 20));
                0
            }
            _ => 1,
        };
        assert!(!index.touch(first, 3));
        settle(&index, left, 20 * left as u64);
    });
}

#[test]
fn inserts_are_drained_whole() {
    model(|| {
        let index = index(2);
        let inserter = thread::spawn({
            let index = index.clone();
            move || index.start().insert(1, 10, 0, 1).unwrap()
        });
        index.start();
        let _ = index.maintain(1, 1);
        index.insert(2, 10, 0, 1).unwrap();
        let evicted = index.evict(4, 1);
        assert!(index.bytes() <= 20 && index.len() <= 2, "I10: a death was counted before its birth");
        inserter.join().unwrap();
        let left = 2 - usize::from(is_victim(evicted));
        settle(&index, left, 10 * left as u64);
    });
}

#[test]
fn two_inserters_meet_at_the_inbox() {
    model(|| {
        let index = index(2);
        let inserter = thread::spawn({
            let index = index.clone();
            move || index.start().insert(1, 10, 0, 1).unwrap()
        });
        index.start();
        let b = index.insert(2, 10, 0, 1).unwrap();
        let a = inserter.join().unwrap();
        assert_ne!(a, b);
        assert_eq!((index.get(1), index.get(2)), (Some(a), Some(b)));
        settle(&index, 2, 20);
    });
}

// The free list's tag: a pop that sleeps while others pop and push must not hand out what is in use.
#[test]
fn the_free_list_hands_each_slot_to_one() {
    model(|| {
        let index = index(4);
        let old: Vec<Handle> = (0..4).map(|key| index.insert(key, 0, 0, 1).unwrap()).collect();
        old.iter().take(3).for_each(|handle| assert!(index.remove(*handle)));
        let inserter = thread::spawn({
            let index = index.clone();
            move || index.start().insert(10, 1, 0, 1).unwrap()
        });
        index.start();
        // Pops two and pushes the first: the head is again what the other may have read, what follows it is not.
        let a = index.insert(11, 1, 0, 1).unwrap();
        index.insert(12, 1, 0, 1).unwrap();
        assert!(index.remove(a));
        inserter.join().unwrap();
        index.insert(13, 1, 0, 1).unwrap();
        for key in [3, 10, 12, 13] {
            let handle = index.get(key).expect("G2: a slot was handed out twice");
            assert_eq!(index.peek(handle).map(|e| e.key), Some(key));
        }
        settle(&index, 4, 3);
    });
}

#[test]
fn bytes_stay_the_exact_sum() {
    model(|| {
        let index = index(1);
        let handle = index.insert(1, 10, 0, 1).unwrap();
        let writer = thread::spawn({
            let index = index.clone();
            move || {
                index.start();
                let grown = index.set_bytes(handle, 50);
                assert!(index.bytes() < 1 << 40, "the sum went below zero");
                grown
            }
        });
        index.start();
        let evicted = index.evict(8, 2);
        assert!(is_victim(evicted));
        // The slot's next tenant must not be resized through the old handle.
        let next = index.insert(2, 7, 0, 3).unwrap();
        writer.join().unwrap();
        assert_eq!(index.peek(next).map(|e| e.bytes), Some(7), "G2");
        settle(&index, 1, 7);
    });
}

// While the slot changes hands and back, a lookup answers with a life of the key it was asked for.
#[test]
fn a_lookup_never_answers_with_anothers_handle() {
    model_at(3, || {
        let index = index(1);
        let first = index.insert(1, 0, 0, 1).unwrap();
        let finder = thread::spawn({
            let index = index.clone();
            move || index.start().touch_key(1, 2)
        });
        index.start();
        assert!(index.remove(first));
        let other = index.insert(2, 0, 0, 2).unwrap();
        assert!(index.remove(other));
        let again = index.insert(1, 0, 0, 2).unwrap();
        let found = finder.join().unwrap();
        assert!(found.is_none_or(|h| h == first || h == again), "G2: {other:?} was never key 1's");
    });
}

// Who finds an entry by key sees it as it was born.
#[test]
fn an_entry_that_is_found_is_whole() {
    model(|| {
        let index = index(1);
        let finder = thread::spawn({
            let index = index.clone();
            move || {
                index.start();
                if let Some(entry) = index.get(7).and_then(|handle| index.peek(handle)) {
                    assert_eq!((entry.key, entry.aux, entry.bytes, entry.last_tick), (7, 3, 10, 4));
                }
            }
        });
        index.start();
        index.insert(7, 10, 3, 4).unwrap();
        finder.join().unwrap();
    });
}

// A touch from a slower thread does not take a newer use back.
#[test]
fn uses_only_move_forward() {
    model(|| {
        let index = index(1);
        let handle = index.insert(1, 0, 0, 1).unwrap();
        let slow = thread::spawn({
            let index = index.clone();
            move || assert!(index.start().touch(handle, 2))
        });
        index.start();
        assert!(index.touch(handle, 3));
        slow.join().unwrap();
        assert_eq!(index.peek(handle).map(|e| e.last_tick), Some(3), "G1");
    });
}

// I10, while calls run: the sums are never less than what lives, so they never fall below zero either.
#[test]
fn a_death_is_never_counted_before_its_birth() {
    model(|| {
        let index = index(1);
        let inserter = thread::spawn({
            let index = index.clone();
            move || index.start().insert(1, 10, 0, 1).unwrap()
        });
        index.start();
        let evicted = index.evict(4, 1);
        assert!(index.bytes() <= 10 && index.len() <= 1, "I10: below zero");
        inserter.join().unwrap();
        let left = usize::from(!is_victim(evicted));
        settle(&index, left, 10 * left as u64);
    });
}
