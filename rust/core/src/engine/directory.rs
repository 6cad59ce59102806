//! Where a tenant's sessions are: which tree and line a session id leads to, or that the store is being asked.
//!
//! Sharded reader-writer locks, held for one map operation. Only what is in memory has an entry.

use super::Pending;
use super::tree::Tree;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SHARDS: usize = 16;
/// Buckets of departure counters; see [`Directory::departures`].
const BUCKETS: usize = 4096;

#[derive(Debug)]
pub(crate) enum Place {
    /// In this tree, at this line.
    At(Arc<Tree>, u32),
    /// The store is being asked; these calls go on when it has answered. Boxed: there is an entry for every session in
    /// memory, and hardly one of them is this.
    #[allow(clippy::box_collection)]
    Finding(Box<Vec<Pending>>),
}

type Shard = RwLock<HashMap<Arc<str>, Place, ahash::RandomState>>;

#[derive(Debug)]
pub(crate) struct Directory {
    shards: [Shard; SHARDS],
    hasher: ahash::RandomState,
    departures: Box<[AtomicU64]>,
}

/// What a look-up found.
pub(crate) enum Lookup {
    At(Arc<Tree>, u32),
    /// Parked; true if this call is the first, which must have the store asked.
    Parked(bool),
}

impl Directory {
    /// `seed` keys the hash: session ids are the client's choice.
    pub(crate) fn new(seed: u64) -> Self {
        let hasher = ahash::RandomState::with_seeds(seed, !seed, seed.rotate_left(17), 0x0520_2026);
        Directory {
            shards: std::array::from_fn(|_| RwLock::new(HashMap::with_hasher(hasher.clone()))),
            departures: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            hasher,
        }
    }

    fn shard(&self, id: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(id) as usize >> 7 & (SHARDS - 1)]
    }

    fn bucket(&self, id: &str) -> &AtomicU64 {
        &self.departures[self.hasher.hash_one(id) as usize >> 20 & (BUCKETS - 1)]
    }

    /// How often an id of this bucket left the directory. What the store answers about an id is only as good as this
    /// count unchanged since the question: in between, a tree may have come, changed, become durable and gone.
    pub(crate) fn departures(&self, id: &str) -> u64 {
        self.bucket(id).load(Ordering::Acquire)
    }

    pub(crate) fn get(&self, id: &str) -> Option<(Arc<Tree>, u32)> {
        match self.shard(id).read().get(id) {
            Some(Place::At(tree, index)) => Some((tree.clone(), *index)),
            _ => None,
        }
    }

    /// The ticket of the first call that waits until the store has said where this id is.
    pub(crate) fn asking(&self, id: &str) -> Option<u64> {
        match self.shard(id).read().get(id) {
            Some(Place::Finding(calls)) => calls.first().map(|call| call.ticket),
            _ => None,
        }
    }

    /// Looks up, or parks the call that `park` makes.
    pub(crate) fn get_or_park(&self, id: &str, park: impl FnOnce() -> Pending) -> Lookup {
        let mut shard = self.shard(id).write();
        match shard.get_mut(id) {
            Some(Place::At(tree, index)) => Lookup::At(tree.clone(), *index),
            Some(Place::Finding(calls)) => {
                calls.push(park());
                Lookup::Parked(false)
            }
            None => {
                shard.insert(id.into(), Place::Finding(Box::new(vec![park()])));
                Lookup::Parked(true)
            }
        }
    }

    /// The store has answered: takes the calls that waited.
    pub(crate) fn found(&self, id: &str) -> Vec<Pending> {
        let mut shard = self.shard(id).write();
        match shard.get(id) {
            Some(Place::Finding(_)) => match shard.remove(id) {
                Some(Place::Finding(calls)) => *calls,
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Puts a line in; an error if the id has one already. Returns the calls that waited for the store's answer about the
    /// id, to be run again: they find the line.
    pub(crate) fn insert(&self, id: &Arc<str>, tree: &Arc<Tree>, index: u32) -> Result<Vec<Pending>, ()> {
        let mut shard = self.shard(id).write();
        match shard.get_mut(&**id) {
            Some(Place::At(..)) => Err(()),
            Some(Place::Finding(calls)) => {
                let calls = std::mem::take(&mut **calls);
                shard.insert(id.clone(), Place::At(tree.clone(), index));
                Ok(calls)
            }
            None => {
                shard.insert(id.clone(), Place::At(tree.clone(), index));
                Ok(Vec::new())
            }
        }
    }

    /// Takes a line out, if it is still this tree's.
    pub(crate) fn remove(&self, id: &str, tree: &Arc<Tree>) {
        let mut shard = self.shard(id).write();
        if matches!(shard.get(id), Some(Place::At(t, _)) if Arc::ptr_eq(t, tree)) {
            // Counted before the entry goes: who sees it gone sees the count moved.
            self.bucket(id).fetch_add(1, Ordering::Release);
            shard.remove(id);
        }
    }

    /// How many lines are in memory.
    pub(crate) fn lines(&self) -> usize {
        let at = |place: &&Place| matches!(place, Place::At(..));
        self.shards.iter().map(|shard| shard.read().values().filter(at).count()).sum()
    }

    /// The trees in memory, each once.
    pub(crate) fn trees(&self) -> Vec<Arc<Tree>> {
        let mut trees: Vec<Arc<Tree>> = Vec::new();
        for shard in &self.shards {
            // A tree is listed by its root's line alone.
            trees.extend(shard.read().values().filter_map(|place| match place {
                Place::At(tree, 0) => Some(tree.clone()),
                _ => None,
            }));
        }
        trees
    }
}
