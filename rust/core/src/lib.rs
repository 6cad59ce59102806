//! The Roost engine. Pure: no I/O, no clock, no randomness, no threads; time and ids come in as arguments.
#![forbid(unsafe_code)]

pub mod residency;
pub mod slots;
pub mod sync;

// The model checkers look at the lock-free parts alone.
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod chain;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod checkpoint;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod engine;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod error;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod ids;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod journal;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod keys;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod limits;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod lines;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
#[path = "gen/mod.rs"]
pub mod proto;
#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub mod rows;

#[cfg(not(any(roost_loom, feature = "shuttle")))]
pub(crate) use proto::{store_v1 as gen_store, v1 as gen_v1};
