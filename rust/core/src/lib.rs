//! The Roost engine. Pure: no I/O, no clock, no randomness, no threads; time and ids come in as arguments.
#![forbid(unsafe_code)]

pub mod residency;
pub mod slots;
pub mod sync;
