//! Loom models of the slot counters. Guards I2 (no admission above a cap), I22 (a refused chain leaves nothing), I24
//! (whatever the interleaving) and the orderings of docs/ARCHITECTURE.md.
#![cfg(roost_loom)]

use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};
use roost_core::slots::{SlotNode, reserve};

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_branches = 10_000;
    builder.check(f);
}

/// A word that every thread of a model writes first. Loom reorders threads where they conflict, but a load of one's own
/// hides from it that the write after it conflicts with another's load; the gate makes it try each thread first.
/// Relaxed, so that the gate itself orders nothing.
#[derive(Clone)]
struct Gate(Arc<AtomicU32>);

impl Gate {
    fn new() -> Self {
        Self(Arc::new(AtomicU32::new(0)))
    }
    fn start(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// I2 with a witness that is counted inside the time held; and at rest nothing is held. (A refusal without a holder is
// legal: a doomed chain may hold a lower level for an instant.)
#[test]
fn three_level_chains_never_exceed_a_cap_and_roll_back() {
    model(|| {
        let gate = Gate::new();
        // The tenant admits both, the worker one: who comes second at the worker gives tree and tenant back.
        let nodes = Arc::new([SlotNode::new(1), SlotNode::new(1), SlotNode::new(2), SlotNode::new(1)]);
        let inside = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..2)
            .map(|tree| {
                let (nodes, inside, gate) = (nodes.clone(), inside.clone(), gate.clone());
                thread::spawn(move || {
                    gate.start();
                    match reserve(&[(&nodes[tree], 1), (&nodes[2], 1), (&nodes[3], 1)]) {
                        Ok(()) => {
                            assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "I2: two inside a cap of one");
                            inside.fetch_sub(1, Ordering::Relaxed);
                            [tree, 2, 3].into_iter().for_each(|level| assert!(nodes[level].release(1)));
                        }
                        Err(refused) => assert!(refused.level == 2 && [0, 2].contains(&refused.given_back)),
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert!(nodes.iter().all(|node| node.used() == 0), "I22: a refused chain left something");
    });
}

// What the holder of a slot did happens before what its next holder does.
#[test]
fn release_happens_before_the_next_admission() {
    model(|| {
        let gate = Gate::new();
        let node = Arc::new(SlotNode::new(1));
        let cell = Arc::new(UnsafeCell::new(()));
        let work = |node: Arc<SlotNode>, cell: Arc<UnsafeCell<()>>| {
            let gate = gate.clone();
            move || {
                gate.start();
                if reserve(&[(&node, 1)]).is_ok() {
                    cell.with_mut(|_| ());
                    node.release(1);
                }
            }
        };
        let other = thread::spawn(work(node.clone(), cell.clone()));
        work(node, cell)();
        other.join().unwrap();
    });
}

// I2: a cap binds the very next reserve; from the instant it is set, use only falls.
#[test]
fn a_lowered_cap_binds_at_once() {
    model(|| {
        let gate = Gate::new();
        let node = Arc::new(SlotNode::new(2));
        let other = thread::spawn({
            let (node, gate) = (node.clone(), gate.clone());
            move || {
                gate.start();
                let _ = reserve(&[(&node, 1)]);
                let _ = reserve(&[(&node, 1)]);
            }
        });
        gate.start();
        node.set_cap(1);
        let used = node.used();
        other.join().unwrap();
        assert!(node.used() <= used.max(1), "admitted above the cap that was already set");
        assert_eq!(node.cap(), 1);
    });
}

// I2, I24: charging what already runs races with admissions; nothing is lost.
#[test]
fn forced_charges_and_admissions_add_up() {
    model(|| {
        let gate = Gate::new();
        let node = Arc::new(SlotNode::new(2));
        let other = thread::spawn({
            let (node, gate) = (node.clone(), gate.clone());
            move || {
                gate.start();
                node.force_add(2).unwrap();
            }
        });
        gate.start();
        let admitted = u32::from(reserve(&[(&node, 1)]).is_ok());
        other.join().unwrap();
        assert_eq!(node.used(), 2 + admitted);
        assert!(node.release(2 + admitted));
    });
}

// The rule by which waiters use the counters (tokio's, in short): park under the queue's lock and only then try once
// more; release first and only then look into the queue, under that lock. Then no wake-up is lost (I24).
#[test]
fn a_waiter_that_parks_while_a_slot_is_released_is_not_forgotten() {
    model(|| {
        let gate = Gate::new();
        let node = Arc::new(SlotNode::new(1));
        let queue = Arc::new(Mutex::new(0u32));
        let admitted = Arc::new(AtomicU32::new(0));
        reserve(&[(&node, 1)]).unwrap();
        let releaser = thread::spawn({
            let (node, queue, admitted) = (node.clone(), queue.clone(), admitted.clone());
            let gate = gate.clone();
            move || {
                gate.start();
                node.release(1);
                let mut waiting = queue.lock().unwrap();
                if *waiting == 1 && reserve(&[(&node, 1)]).is_ok() {
                    *waiting = 0;
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        gate.start();
        if reserve(&[(&node, 1)]).is_ok() {
            admitted.fetch_add(1, Ordering::Relaxed);
        } else {
            let mut waiting = queue.lock().unwrap();
            if reserve(&[(&node, 1)]).is_ok() {
                admitted.fetch_add(1, Ordering::Relaxed);
            } else {
                *waiting = 1;
            }
        }
        releaser.join().unwrap();
        assert_eq!(admitted.load(Ordering::Relaxed), 1, "the waiter sleeps beside a free slot");
        assert_eq!(node.used(), 1);
    });
}

// A waiter that is cancelled while a permit is handed to it passes it on: the permit ends up free or with the next.
#[test]
fn a_cancelled_waiter_gives_back_what_was_handed_to_it() {
    model(|| {
        let gate = Gate::new();
        const WAITING: u32 = 0;
        const HANDED: u32 = 1;
        const CANCELLED: u32 = 2;
        let node = Arc::new(SlotNode::new(1));
        let waiter = Arc::new(Mutex::new(WAITING));
        reserve(&[(&node, 1)]).unwrap();
        let releaser = thread::spawn({
            let (node, waiter, gate) = (node.clone(), waiter.clone(), gate.clone());
            move || {
                gate.start();
                node.release(1);
                let mut state = waiter.lock().unwrap();
                if *state == WAITING && reserve(&[(&node, 1)]).is_ok() {
                    *state = HANDED;
                }
            }
        });
        gate.start();
        let before = std::mem::replace(&mut *waiter.lock().unwrap(), CANCELLED);
        if before == HANDED {
            assert!(node.release(1));
        }
        releaser.join().unwrap();
        assert_eq!(node.used(), 0, "I24: a permit stayed with a waiter that is gone");
    });
}
