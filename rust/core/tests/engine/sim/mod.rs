//! A store in memory, callers, and two worlds that carry between them and an engine: `scene` in the order that a test
//! says, `world` in the order that a seed says.

pub(crate) mod calm;
pub(crate) mod queue;
pub(crate) mod request;
pub(crate) mod rng;
pub(crate) mod scene;
pub(crate) mod store;
pub(crate) mod verify;
pub(crate) mod watcher;
pub(crate) mod world;
