//! The one place where the core takes its concurrency primitives from, so that the lock-free modules run unchanged
//! under three schedulers: the real one (std), loom (`--cfg roost_loom`: exhaustive, C11 orderings) and shuttle
//! (feature `shuttle`: random, sequentially consistent, thousands of steps).
//!
//! The cfg is private (`roost_loom`, not `loom`) because a global `cfg(loom)` would also switch our dependencies.

#[cfg(roost_loom)]
pub use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

#[cfg(all(feature = "shuttle", not(roost_loom)))]
pub use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

#[cfg(not(any(feature = "shuttle", roost_loom)))]
pub use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

/// Keeps a hot word alone on its cache lines. 128 bytes, because x86-64 prefetches lines in pairs and big aarch64 cores
/// have 128-byte lines. For the few shared words (root, tenant, worker); never for what exists once a session.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

impl<T> Padded<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// `n` values that are all "zero". With std, fresh zero pages from the system: nothing is written, so memory is
/// committed page by page as entries come to live there. The model checkers need their atomics constructed one by one.
#[cfg(not(any(feature = "shuttle", roost_loom)))]
pub(crate) fn zeroed_box<T: bytemuck::Zeroable>(n: usize, _zero: impl Fn() -> T) -> Box<[T]> {
    bytemuck::zeroed_slice_box(n)
}

#[cfg(any(feature = "shuttle", roost_loom))]
pub(crate) fn zeroed_box<T>(n: usize, zero: impl Fn() -> T) -> Box<[T]> {
    (0..n).map(|_| zero()).collect()
}
