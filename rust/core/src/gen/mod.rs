//! The messages of `proto/`, written by `make proto`; do not edit the `.rs` files beside this one.
//!
//! Maps are `BTreeMap`: encoding is deterministic, which the record chain depends on. `bytes` are `Vec<u8>`. (`gen` is a keyword of
//! edition 2024: name the module with `#[path = "gen/mod.rs"] pub mod proto;`.)
#![allow(clippy::all, clippy::pedantic, clippy::nursery, missing_docs, unreachable_pub, rustdoc::all)]

/// Package `roost.v1`: the API.
pub mod v1 {
    include!("roost.v1.rs");
}

/// Package `roost.store`: what the store's columns hold.
pub mod store {
    /// Version 1 of it.
    pub mod v1 {
        include!("roost.store.v1.rs");
    }
}

pub use store::v1 as store_v1;
