//! Readers of events, as Python holds them.

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use roost_core::engine::{self, Engine, encode};
use roost_core::proto::v1::{self, watch_owner_response::Event};

/// A place among the events of a tenant.
#[pyclass(frozen)]
pub(crate) struct Watch {
    watch: Mutex<engine::Watch>,
}

impl Watch {
    pub(crate) fn new(watch: engine::Watch) -> Self {
        Watch { watch: Mutex::new(watch) }
    }

    pub(crate) fn look(&self, engine: &Engine) -> bool {
        engine.watch_look(&mut self.watch.lock())
    }

    /// The next events as an answer without its token, the place after them, and whether there may be more at once.
    pub(crate) fn events(&self, engine: &Engine, most: usize, most_bytes: usize) -> (Vec<u8>, u64, bool) {
        let (watched, position) = {
            let mut watch = self.watch.lock();
            (engine.watch_take(&mut watch, most, most_bytes), watch.position())
        };
        let events = watched.events.iter().map(|told| told.to_proto()).collect();
        let answer = v1::WatchSessionsResponse { events, resync: watched.lost, ..Default::default() };
        (encode(&answer), position, watched.more)
    }

    pub(crate) fn owned(&self, engine: &Engine, most: usize) -> (Vec<engine::Owned>, bool, bool) {
        engine.watch_owned(&mut self.watch.lock(), most)
    }
}

#[pymethods]
impl Watch {
    #[getter]
    fn position(&self) -> u64 {
        self.watch.lock().position()
    }
}

/// What an owner is told: what it is, session, fence, from when on it may be runnable, the encoded answer.
pub(crate) type Owned<'py> = (&'static str, Bound<'py, PyBytes>, u64, Option<i64>, Bound<'py, PyBytes>);

pub(crate) fn owned<'py>(py: Python<'py>, told: &engine::Owned) -> Owned<'py> {
    let what = match &told.event {
        Some(Event::Interrupt(_)) => "interrupt",
        Some(Event::Closed(_)) => "closed",
        Some(Event::LeaseLost(_)) => "lease_lost",
        _ => "",
    };
    let answer = encode(&v1::WatchOwnerResponse { event: told.event.clone() });
    (what, PyBytes::new(py, &told.uid.bytes()), told.fence, told.runnable, PyBytes::new(py, &answer))
}
