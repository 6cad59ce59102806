//! Module `roost._core`: the engine as Python sees it. Documented in `python/roost/_core.pyi`.
//!
//! Thin on purpose: it brings clock and entropy, turns rows into tuples and back, and lets the writer and the reader
//! thread sleep with the GIL released until there is something for them.

mod dump;
mod failpoint;
mod rows;
mod watch;

use parking_lot::{Condvar, Mutex};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use roost_core::engine::{
    self, Appended, Caller, Dress, Effect, Filter, Keys, LimitSetup, Method, Moment, Outcome, Rule, Space, Wanted,
};
use roost_core::error::{Reason, Refusal};
use roost_core::ids::Uid;
use roost_core::keys;
use roost_core::limits::Limits;
use roost_core::lines::{self, Form};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use watch::Watch;

/// Requests from this size on are handled with the GIL released: digests take longer than letting go of it.
const LARGE: usize = 8 << 10;

/// Something one thread sleeps on.
#[derive(Default)]
struct Signal {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Signal {
    fn wake(&self) {
        *self.woken.lock() = true;
        self.condvar.notify_one();
    }

    /// Sleeps until woken or the time is up.
    fn sleep(&self, timeout: Duration) {
        let mut woken = self.woken.lock();
        if !*woken {
            self.condvar.wait_for(&mut woken, timeout);
        }
        *woken = false;
    }
}

#[pyclass(frozen)]
struct Engine {
    /// In a box of its own: parts of it stand on cache lines of their own, and Python aligns objects to 16 bytes only.
    engine: Box<engine::Engine>,
    started: Instant,
    writer: Signal,
    reader: Signal,
    /// Entries that were stored or queued when the last batch ended: as many callers are about.
    company: AtomicU64,
    /// By how much the clocks were moved forward. Unit: milliseconds.
    skipped: AtomicU64,
    /// For how long the store had been served before. Unit: milliseconds.
    served: u64,
    /// Limits that were set and cannot be in force here.
    left_aside: Vec<String>,
}

impl Engine {
    fn now(&self) -> Moment {
        let skipped = self.skipped.load(Ordering::Relaxed);
        let mono_ms = self.served + self.started.elapsed().as_millis() as u64 + skipped;
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64) + skipped as i64;
        let mut entropy = [0; 32];
        getrandom::fill(&mut entropy).expect("the operating system gives random bytes");
        Moment::new(mono_ms, wall_ms, entropy)
    }

    /// Wakes whom the last step gave something to do.
    fn stir(&self) {
        if self.engine.has_entries() {
            self.writer.wake();
        }
        if self.engine.has_effects() {
            self.reader.wake();
        }
    }

    fn stirred(&self) -> bool {
        self.stir();
        self.engine.has_completed()
    }
}

fn refusal_tuple<'py>(py: Python<'py>, refusal: &Refusal) -> PyResult<Bound<'py, PyTuple>> {
    let status = PyBytes::new(py, &refusal.to_status());
    (refusal.reason.code() as i32, refusal.message.as_str(), status).into_pyobject(py)
}

fn method(number: u32) -> PyResult<Method> {
    let entry = Method::ALL.get(number as usize);
    entry.map(|(_, m)| *m).ok_or_else(|| PyValueError::new_err(format!("no method has number {number}")))
}

fn outcome_object<'py>(py: Python<'py>, outcome: Outcome) -> PyResult<Bound<'py, PyAny>> {
    Ok(match outcome {
        Outcome::Reply(reply) => PyBytes::new(py, &reply).into_any(),
        Outcome::Ticket(ticket) => ticket.into_pyobject(py)?.into_any(),
        Outcome::Refused(refusal) => refusal_tuple(py, &refusal)?.into_any(),
    })
}

fn corrupt(refusal: Refusal) -> PyErr {
    PyValueError::new_err(refusal.message)
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (
        limits, last_seq, served_ms = 0, secret = None, admin_key = None, api_keys = None, sources = None,
        most = None, set_limits = None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        limits: &Bound<'_, PyDict>,
        last_seq: u64,
        served_ms: u64,
        secret: Option<&[u8]>,
        admin_key: Option<&str>,
        api_keys: Option<Vec<Bound<'_, PyTuple>>>,
        sources: Option<BTreeMap<String, String>>,
        most: Option<BTreeMap<String, u64>>,
        set_limits: Option<Vec<(String, u64)>>,
    ) -> PyResult<Self> {
        let mut set = Limits::default();
        for (key, value) in limits {
            set.set(&key.extract::<String>()?, value.extract()?).map_err(PyValueError::new_err)?;
        }
        let missing: Vec<&str> =
            Limits::TABLE.iter().map(|l| l.0).filter(|name| !limits.contains(name).unwrap_or(false)).collect();
        if !missing.is_empty() {
            return Err(PyValueError::new_err(format!("limits are missing: {}", missing.join(", "))));
        }
        let maker = secret.map(|s| engine::maker(s).ok_or_else(|| PyValueError::new_err("a secret has 32 bytes")));
        let keys = Keys {
            maker: maker.transpose()?,
            admin: admin_key.map(keys::admin_key_hash).transpose().map_err(PyValueError::new_err)?,
            rows: api_keys.unwrap_or_default().iter().map(rows::key).collect::<PyResult<_>>()?,
        };
        let (sources, most) = (sources.unwrap_or_default(), most.unwrap_or_default());
        let limits = LimitSetup::new(set, sources, &most, set_limits.unwrap_or_default());
        let left_aside = limits.left_aside().to_vec();
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the operating system gives random bytes");
        Ok(Engine {
            engine: Box::new(engine::Engine::new(limits, last_seq, u64::from_ne_bytes(seed)).with_keys(keys)),
            started: Instant::now(),
            writer: Signal::default(),
            reader: Signal::default(),
            company: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            served: served_ms,
            left_aside,
        })
    }

    fn call<'py>(
        &self,
        py: Python<'py>,
        method_number: u32,
        request: &[u8],
        authorization: &str,
        tenant: &str,
        connection: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let method = method(method_number)?;
        let caller = Caller { authorization, tenant };
        let run = || {
            let outcome = self.engine.call(method, request, &caller, connection, self.now());
            self.stir();
            outcome
        };
        let outcome = if request.len() >= LARGE { py.detach(run) } else { run() };
        outcome_object(py, outcome)
    }

    #[allow(clippy::too_many_arguments)]
    fn cleanup_step<'py>(
        &self,
        py: Python<'py>,
        tenant: &str,
        session_id: &str,
        uid: [u8; 16],
        root: [u8; 16],
        prev: u64,
        step: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let names = (Uid(u128::from_be_bytes(uid)), Uid(u128::from_be_bytes(root)));
        let step = rows::cleanup_step(step)?;
        let outcome = py.detach(|| {
            let outcome = self.engine.cleanup_step(tenant, session_id, names, prev, step, self.now());
            self.stir();
            outcome
        });
        outcome_object(py, outcome)
    }

    fn restore_session<'py>(
        &self,
        py: Python<'py>,
        tenant: &str,
        session: &Bound<'py, PyTuple>,
        parent_session_id: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        let session = rows::dumped_session(session)?;
        let outcome = py.detach(|| {
            let outcome = self.engine.restore_session(tenant, session, parent_session_id, self.now());
            self.stir();
            outcome
        });
        outcome_object(py, outcome)
    }

    fn set_resources(
        &self,
        prefix: String,
        store_id: String,
        epoch: u64,
        kinds: Vec<i32>,
        rows: Vec<Bound<'_, PyTuple>>,
    ) -> PyResult<()> {
        let rows = rows.iter().map(rows::stored_resource).collect::<PyResult<_>>()?;
        self.engine.set_resources(engine::ResourceSetup { prefix, store_id, epoch, kinds }, rows, &self.now());
        Ok(())
    }

    fn resource_step<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        step: &Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let step = rows::release_step(step)?;
        let outcome = py.detach(|| {
            let outcome = self.engine.resource_step(name, step, self.now());
            self.stir();
            outcome
        });
        outcome_object(py, outcome)
    }

    fn releases_count(&self) -> u64 {
        self.engine.releases_count()
    }

    fn ended_count(&self) -> u64 {
        self.engine.ended_count()
    }

    fn watch_count(&self) -> u64 {
        self.engine.watch_count()
    }

    #[pyo3(signature = (tenant, *, inside = None, root = None, path_prefix = None, kinds = None, at = None))]
    fn watch_sessions(
        &self,
        tenant: &str,
        inside: Option<[u8; 16]>,
        root: Option<[u8; 16]>,
        path_prefix: Option<String>,
        kinds: Option<Vec<i32>>,
        at: Option<u64>,
    ) -> Watch {
        let uid = |bytes| Uid(u128::from_be_bytes(bytes));
        let (inside, root) = (inside.map(uid), root.map(uid));
        let filter = Filter { inside, root, path_prefix, kinds: kinds.unwrap_or_default(), owner: None };
        Watch::new(self.engine.watch(tenant, filter, at))
    }

    fn watch_owner(&self, tenant: &str, owner: String) -> Watch {
        Watch::new(self.engine.watch(tenant, Filter { owner: Some(owner), ..Filter::default() }, None))
    }

    fn watch_look(&self, watch: &Watch) -> bool {
        watch.look(&self.engine)
    }

    fn watch_events<'py>(
        &self,
        py: Python<'py>,
        watch: &Watch,
        most: usize,
        most_bytes: usize,
    ) -> (Bound<'py, PyBytes>, u64, bool) {
        let (events, position, more) = py.detach(|| watch.events(&self.engine, most, most_bytes));
        (PyBytes::new(py, &events), position, more)
    }

    fn watch_owned<'py>(&self, py: Python<'py>, watch: &Watch, most: usize) -> (Vec<watch::Owned<'py>>, bool, bool) {
        let (owned, lost, more) = watch.owned(&self.engine, most);
        (owned.into_iter().map(|told| watch::owned(py, &told)).collect(), lost, more)
    }

    fn interrupts_of<'py>(&self, py: Python<'py>, tenant: &str, owner: &str) -> Vec<watch::Owned<'py>> {
        let found = py.detach(|| self.engine.interrupts_of(tenant, owner));
        found.iter().map(|told| watch::owned(py, told)).collect()
    }

    fn tree_activity(&self, tenant: &str, root_session_id: &str) -> Option<(Option<u64>, i64, u32)> {
        self.engine.tree_activity(tenant, root_session_id)
    }

    fn sweep_now(&self) {
        self.engine.sweep_now();
    }

    fn set_dumps(&self, on: bool) {
        self.engine.set_dumps(on);
    }

    fn set_store_bytes(&self, bytes: u64) {
        self.engine.set_store_bytes(bytes);
    }

    fn service_ms(&self) -> u64 {
        self.now().mono_ms
    }

    fn wall_ms(&self) -> i64 {
        self.now().wall_ms
    }

    fn completed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (ticket, result) in self.engine.completed() {
            match result {
                Ok(reply) => list.append((ticket, PyBytes::new(py, &reply)))?,
                Err(refusal) => list.append((ticket, refusal_tuple(py, &refusal)?))?,
            }
        }
        Ok(list)
    }

    fn cancel(&self, ticket: u64) {
        self.engine.cancel(ticket, self.now());
        self.stir();
    }

    fn undelivered(
        &self,
        method_number: u32,
        request: &[u8],
        reply: &[u8],
        authorization: &str,
        tenant: &str,
    ) -> PyResult<()> {
        let caller = Caller { authorization, tenant };
        self.engine.undelivered(method(method_number)?, request, reply, &caller, self.now());
        self.stir();
        Ok(())
    }

    fn authorize<'py>(
        &self,
        py: Python<'py>,
        path: &str,
        authorization: &str,
        tenant: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.engine.authorize(path, &Caller { authorization, tenant }) {
            Err(refusal) => {
                self.engine.refused(&refusal);
                Ok(refusal_tuple(py, &refusal)?.into_any())
            }
            Ok(granted) => {
                let session = granted.session.as_deref();
                let session = session.map(|s| (s.session_id.as_str(), PyBytes::new(py, &s.uid.bytes()), s.life));
                Ok((&*granted.tenant, session).into_pyobject(py)?.into_any())
            }
        }
    }

    /// Name, value, source, use (-1: that is no one number).
    fn limits(&self) -> Vec<(&'static str, u64, String, i64)> {
        let told = |used: Option<u64>| used.map_or(-1, |used| used as i64);
        self.engine.limits().into_iter().map(|l| (l.name, l.value, l.source, told(l.used))).collect()
    }

    fn limit(&self, name: &str) -> PyResult<u64> {
        self.engine.limit(name).ok_or_else(|| PyValueError::new_err(format!("there is no limit called {name}")))
    }

    #[getter]
    fn limits_left_aside(&self) -> Vec<String> {
        self.left_aside.clone()
    }

    fn check_address<'py>(
        &self,
        py: Python<'py>,
        field: &str,
        text: &str,
        keyed: bool,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        engine::check_address(field, text, keyed).err().map(|refusal| refusal_tuple(py, &refusal)).transpose()
    }

    fn keys_required(&self) -> bool {
        self.engine.keys_required()
    }

    #[pyo3(signature = (reason, message, metadata, retry_ms=None))]
    fn refuse<'py>(
        &self,
        py: Python<'py>,
        reason: &str,
        message: String,
        metadata: BTreeMap<String, String>,
        retry_ms: Option<u64>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let reason = Reason::from_name(reason)
            .ok_or_else(|| PyValueError::new_err(format!("{reason} is not in the table of reasons")))?;
        let mut refusal = Refusal::new(reason, message);
        refusal.metadata = metadata;
        refusal.retry_ms = retry_ms;
        self.engine.refused(&refusal);
        refusal_tuple(py, &refusal)
    }

    fn skip_time(&self, ms: u64) {
        self.skipped.fetch_add(ms, Ordering::Relaxed);
    }

    fn tick(&self, py: Python<'_>) -> u64 {
        let next = py.detach(|| self.engine.tick(self.now()));
        self.stir();
        next
    }

    #[pyo3(signature = (rows, outline=false))]
    fn describe<'py>(
        &self,
        py: Python<'py>,
        rows: Vec<Bound<'py, PyTuple>>,
        outline: bool,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        rows.iter()
            .map(|row| {
                let tenant: String = row.get_item(1)?.extract()?;
                let row = rows::session_row(row)?;
                Ok(PyBytes::new(py, &self.engine.describe(&tenant, &row, outline).map_err(corrupt)?))
            })
            .collect()
    }

    #[pyo3(signature = (row, omit_payload, exported=false, reward=None, discounted_reward=None))]
    fn describe_record<'py>(
        &self,
        py: Python<'py>,
        row: &Bound<'py, PyTuple>,
        omit_payload: bool,
        exported: bool,
        reward: Option<f64>,
        discounted_reward: Option<f64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let row = rows::record_row(row)?;
        let dress = Dress { omit_payload, exported, reward, discounted_reward };
        let encoded = py.detach(|| row.dressed(dress).map(|r| engine::encode(&r)));
        Ok(PyBytes::new(py, &encoded.map_err(corrupt)?))
    }

    fn verify_chain(&self, py: Python<'_>, lines: Vec<Bound<'_, PyTuple>>, facts: &[u8]) -> PyResult<Vec<i32>> {
        let lines = lines.iter().map(rows::record_line).collect::<PyResult<Vec<_>>>()?;
        let last = lines.first().map_or(0, |l| l.seq);
        py.detach(|| engine::verify_history(&lines, last, facts)).map_err(corrupt)
    }

    fn stats(&self) -> BTreeMap<&'static str, i64> {
        let mut stats: BTreeMap<_, _> = self.engine.stats().into_iter().collect();
        stats.insert("journal_lag_ms", self.engine.journal_lag(&self.now()) as i64);
        stats
    }

    fn distributions(&self) -> BTreeMap<&'static str, (&'static [u64], Vec<u64>, u64)> {
        let told = self.engine.distributions().into_iter();
        told.map(|d| (d.name, (d.bounds, d.counts, d.sum))).collect()
    }

    fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.engine.refusals().into_iter().collect()
    }

    fn read_for(&self, effect: u64) -> Option<u64> {
        self.engine.read_for(effect)
    }

    fn ready_sequence(&self) -> u64 {
        self.engine.ready_sequence()
    }

    fn begin_drain(&self) {
        self.engine.begin_drain(self.now());
        self.stir();
    }

    fn flushed(&self) -> bool {
        self.engine.flushed()
    }

    fn next_batch(&self, py: Python<'_>, timeout_ms: u64, linger_us: u64) -> Option<Batch> {
        py.detach(|| {
            if !self.engine.has_entries() {
                self.writer.sleep(Duration::from_millis(timeout_ms));
            }
            if !self.engine.has_entries() {
                self.company.store(0, Ordering::Relaxed);
                return None;
            }
            // Whoever was in flight a moment ago comes back together; a lone caller waits for nobody.
            let expected = self.company.load(Ordering::Relaxed);
            let until = Instant::now() + Duration::from_micros(linger_us);
            while self.engine.backlog() < expected {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.writer.sleep(left);
            }
            self.engine.take_batch().map(|batch| Batch { batch })
        })
    }

    fn appended(&self, py: Python<'_>, batch: &Batch, outcome: &str, quarantine: Vec<Vec<u8>>) -> PyResult<bool> {
        let quarantine = quarantine
            .iter()
            .map(|root| Uid::from_bytes(root).ok_or_else(|| PyValueError::new_err("a uid has 16 bytes")))
            .collect::<PyResult<Vec<Uid>>>()?;
        if let Some(stray) = quarantine.iter().find(|root| !batch.batch.roots.contains(root)) {
            return Err(PyValueError::new_err(format!("tree {stray} is not in this batch")));
        }
        let outcome = match outcome {
            "stored" => Appended::Stored { quarantine },
            "full" => Appended::RefusedFull,
            "constraint" => Appended::Refused,
            other => return Err(PyValueError::new_err(format!("no outcome is called {other:?}"))),
        };
        Ok(py.detach(|| {
            self.company.store(self.engine.backlog(), Ordering::Relaxed);
            self.engine.appended(&outcome, self.now());
            self.stirred()
        }))
    }

    fn set_space(&self, space: &str) -> PyResult<bool> {
        self.engine.set_space(match space {
            "ok" => Space::Ok,
            "low" => Space::Low,
            "full" => Space::Full,
            other => return Err(PyValueError::new_err(format!("no space is called {other:?}"))),
        });
        Ok(self.stirred())
    }

    fn wake_writer(&self) {
        self.writer.wake();
    }

    fn next_effects<'py>(&self, py: Python<'py>, timeout_ms: u64) -> PyResult<Bound<'py, PyList>> {
        let effects = py.detach(|| {
            if !self.engine.has_effects() {
                self.reader.sleep(Duration::from_millis(timeout_ms));
            }
            self.engine.effects()
        });
        let list = PyList::empty(py);
        for effect in effects {
            match effect {
                Effect::Find { id, tenant, session_id } => list.append(("find", id, &*tenant, &*session_id))?,
                Effect::Header { id, root } => list.append(("header", id, PyBytes::new(py, &root.bytes())))?,
                Effect::Session { id, uid, wanted } => {
                    let Wanted { tokens, provisional, state_turn, size } = wanted;
                    let uid = PyBytes::new(py, &uid.bytes());
                    list.append(("session", id, uid, tokens, provisional, state_turn, size))?;
                }
                Effect::Trajectories { id, wanted } => {
                    let ids: Vec<_> = wanted.iter().map(|w| (PyBytes::new(py, &w.session.bytes()), w.number)).collect();
                    list.append(("trajectories", id, ids))?;
                }
                Effect::Due { id, until_ms, after, limit } => {
                    let after = after.map(|a| (a.due_ms, PyBytes::new(py, &a.uid.bytes())));
                    list.append(("due", id, until_ms, after, limit))?;
                }
                Effect::Stale { id, until_ms, after, limit } => {
                    let after = after.map(|a| (a.due_ms, PyBytes::new(py, &a.root.bytes())));
                    list.append(("stale", id, until_ms, after, limit))?;
                }
                Effect::Family { id, uid } => list.append(("family", id, PyBytes::new(py, &uid.bytes())))?,
                Effect::Read { id, tenant, session_id } => list.append(("read", id, &*tenant, &*session_id))?,
                Effect::Mail { id, seqs } => list.append(("mail", id, seqs))?,
                Effect::Sent { id, recipient, request } => {
                    list.append(("sent", id, PyBytes::new(py, &recipient.bytes()), request))?;
                }
                Effect::Runnable { id, tenant, until_ms, after, limit } => {
                    let after = after.map(|a| (a.due_ms, a.seq));
                    list.append(("runnable", id, &*tenant, until_ms, after, limit))?;
                }
            }
        }
        Ok(list)
    }

    #[pyo3(signature = (effect, found))]
    fn found(&self, py: Python<'_>, effect: u64, found: Option<Bound<'_, PyTuple>>) -> PyResult<bool> {
        let found = found.as_ref().map(rows::found).transpose()?;
        Ok(py.detach(|| {
            self.engine.found(effect, found, self.now());
            self.stirred()
        }))
    }

    fn header_loaded(
        &self,
        py: Python<'_>,
        effect: u64,
        tenant: &str,
        rows: Vec<Bound<'_, PyTuple>>,
    ) -> PyResult<bool> {
        let rows = rows.iter().map(rows::header_row).collect::<PyResult<Vec<_>>>()?;
        let root = rows.first().map_or(Uid(0), |r| r.uid);
        Ok(py.detach(|| {
            self.engine.header_loaded(effect, root, tenant, &rows, self.now());
            self.stirred()
        }))
    }

    #[pyo3(signature = (effect, loaded))]
    fn session_loaded(&self, py: Python<'_>, effect: u64, loaded: Option<Bound<'_, PyTuple>>) -> PyResult<bool> {
        let loaded = loaded.as_ref().map(rows::loaded).transpose()?;
        Ok(py.detach(|| {
            self.engine.session_loaded(effect, loaded, self.now());
            self.stirred()
        }))
    }

    #[pyo3(signature = (effect, row))]
    fn session_read(&self, py: Python<'_>, effect: u64, row: Option<Bound<'_, PyTuple>>) -> PyResult<bool> {
        let row = row.as_ref().map(rows::session_row).transpose()?;
        Ok(py.detach(|| {
            self.engine.session_read(effect, row, self.now());
            self.stirred()
        }))
    }

    fn mail_read(&self, py: Python<'_>, effect: u64, found: Vec<Bound<'_, PyTuple>>) -> PyResult<bool> {
        let found = found.iter().map(rows::mail_found).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            self.engine.mail_read(effect, found, self.now());
            self.stirred()
        }))
    }

    #[pyo3(signature = (effect, found))]
    fn sent_found(&self, py: Python<'_>, effect: u64, found: Option<Bound<'_, PyTuple>>) -> PyResult<bool> {
        let found = found.as_ref().map(|row| Ok::<_, PyErr>((rows::uid(row, 0)?, rows::blob(row, 1)?))).transpose()?;
        Ok(py.detach(|| {
            self.engine.sent_found(effect, found, self.now());
            self.stirred()
        }))
    }

    #[pyo3(signature = (effect, found, next_ms))]
    fn runnable_found(
        &self,
        py: Python<'_>,
        effect: u64,
        found: Vec<Bound<'_, PyTuple>>,
        next_ms: Option<i64>,
    ) -> PyResult<bool> {
        let found = found.iter().map(rows::runnable).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            self.engine.runnable_found(effect, found, next_ms, self.now());
            self.stirred()
        }))
    }

    fn trajectories_found(
        &self,
        py: Python<'_>,
        effect: u64,
        found: Vec<Option<Bound<'_, PyTuple>>>,
    ) -> PyResult<bool> {
        let found = found.iter().map(|f| f.as_ref().map(rows::trajectory).transpose()).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            self.engine.trajectories_found(effect, found, self.now());
            self.stirred()
        }))
    }

    #[pyo3(signature = (effect, found, next_ms))]
    fn due_found(
        &self,
        py: Python<'_>,
        effect: u64,
        found: Vec<Bound<'_, PyTuple>>,
        next_ms: Option<i64>,
    ) -> PyResult<bool> {
        let found = found.iter().map(rows::due).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            self.engine.due_found(effect, found, next_ms, self.now());
            self.stirred()
        }))
    }

    fn stale_found(&self, py: Python<'_>, effect: u64, found: Vec<Bound<'_, PyTuple>>) -> PyResult<bool> {
        let found = found.iter().map(rows::stale).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            self.engine.stale_found(effect, found, self.now());
            self.stirred()
        }))
    }

    fn family_read(&self, py: Python<'_>, effect: u64, found: Vec<Bound<'_, PyTuple>>) -> PyResult<bool> {
        let found = found.iter().map(rows::session_row).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| {
            self.engine.family_read(effect, found, self.now());
            self.stirred()
        }))
    }

    fn set_logging(&self, on: bool) {
        self.engine.set_logging(on);
    }

    fn event_lines<'py>(&self, py: Python<'py>, form: &str) -> PyResult<(Bound<'py, PyBytes>, u64)> {
        let form = match form {
            "json" => Form::Json,
            "logfmt" => Form::Logfmt,
            other => return Err(PyValueError::new_err(format!("no form is called {other:?}"))),
        };
        let (lines, dropped) = py.detach(|| {
            let (events, dropped) = self.engine.events();
            let mut lines = String::with_capacity(events.len() * 512);
            events.iter().for_each(|event| lines::write(event, form, std::process::id(), &mut lines));
            (lines, dropped)
        });
        Ok((PyBytes::new(py, lines.as_bytes()), dropped))
    }

    fn load_failed(&self, effect: u64, message: &str) -> bool {
        self.engine.load_failed(effect, message, self.now());
        self.stirred()
    }

    fn wake_reader(&self) {
        self.reader.wake();
    }
}

#[pyclass(frozen)]
struct Batch {
    batch: roost_core::journal::Batch,
}

#[pymethods]
impl Batch {
    #[getter]
    fn first_seq(&self) -> u64 {
        self.batch.first_seq
    }

    #[getter]
    fn last_seq(&self) -> u64 {
        self.batch.last_seq
    }

    #[getter]
    fn roots<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        rows::uids(py, &self.batch.roots)
    }

    fn sessions<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.sessions.iter().map(|(_, row)| rows::upsert(py, row)).collect()
    }

    fn records<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.records.iter().map(|(_, record)| rows::insert(py, record)).collect()
    }

    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.copies.iter().map(|(_, copy)| rows::copy(py, copy)).collect()
    }

    fn statuses<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.statuses.iter().map(|(_, seq, status)| (*seq, *status).into_pyobject(py)).collect()
    }

    fn closes<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.closes.iter().map(|(_, close)| rows::close(py, close)).collect()
    }

    fn rewards<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u64, f64)> {
        let rewards = self.batch.rewards.iter();
        rewards.map(|(_, session, seq, value)| (PyBytes::new(py, &session.bytes()), *seq, *value)).collect()
    }

    fn finished<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.finished.iter().map(|(_, finished)| rows::finished(py, finished)).collect()
    }

    fn acks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32, i64)> {
        let acks = self.batch.acks.iter();
        acks.map(|(_, session, number, ms)| (PyBytes::new(py, &session.bytes()), *number, *ms)).collect()
    }

    fn stales<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, i64, u64)> {
        self.batch.stales.iter().map(|(_, root, ms, due)| (PyBytes::new(py, &root.bytes()), *ms, *due)).collect()
    }

    fn reopens<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.reopens.iter().map(|(_, reopen)| rows::reopen(py, reopen)).collect()
    }

    fn restores<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.restores.iter().map(|(_, restore)| rows::restore(py, restore)).collect()
    }

    fn steps<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.steps.iter().map(|(_, step)| rows::step(py, step)).collect()
    }

    fn purged_records(&self) -> Vec<u64> {
        self.batch.steps.iter().flat_map(|(_, step)| step.purge.iter().copied()).collect()
    }

    fn purged_sessions<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let purged = self.batch.steps.iter().filter(|(_, step)| step.purged);
        purged.map(|(_, step)| PyBytes::new(py, &step.uid.bytes())).collect()
    }

    fn forgets<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u64)> {
        self.batch.forgets.iter().map(|(_, uid, prev)| (PyBytes::new(py, &uid.bytes()), *prev)).collect()
    }

    fn keys<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.keys.iter().map(|(_, key)| rows::key_row(py, key)).collect()
    }

    fn revoked_keys<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, i64)> {
        self.batch.revoked_keys.iter().map(|(_, id, ms)| (PyBytes::new(py, &id.bytes()), *ms)).collect()
    }

    fn limits(&self) -> Vec<(&'static str, Option<u64>)> {
        self.batch.limits.iter().map(|(_, name, value)| (*name, *value)).collect()
    }

    fn resources<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.resources.iter().map(|(_, row)| rows::resource_row(py, row)).collect()
    }

    fn resource_updates<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.resource_updates.iter().map(|(_, update)| rows::resource_update(py, update)).collect()
    }

    fn mail<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.batch.mail.iter().map(|(_, row)| rows::mail_row(py, row)).collect()
    }

    fn mail_updates(&self) -> Vec<(u64, i32, i64, u32, u64)> {
        self.batch.mail_updates.iter().map(|(_, u)| (u.seq, u.state, u.due, u.deliveries, u.fence)).collect()
    }

    fn mail_ends<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.batch.mail_ends.iter().map(|(_, uid)| PyBytes::new(py, &uid.bytes())).collect()
    }

    fn resources_due<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, i64)> {
        self.batch.resources_due.iter().map(|(_, uid, due)| (PyBytes::new(py, &uid.bytes()), *due)).collect()
    }

    fn resource_deletes(&self) -> Vec<&str> {
        self.batch.resource_deletes.iter().map(|(_, name)| &**name).collect()
    }

    fn cleanups_due<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, i64)> {
        self.batch.cleanups_due.iter().map(|(_, uid, due)| (PyBytes::new(py, &uid.bytes()), *due)).collect()
    }

    fn split(&self) -> Vec<Batch> {
        self.batch.split().into_iter().map(|batch| Batch { batch }).collect()
    }
}

/// The rows of one trajectory; see `roost_core::rows`.
#[pyclass(frozen)]
struct Rows {
    rows: Mutex<roost_core::rows::Rows>,
}

#[pymethods]
impl Rows {
    #[new]
    fn new() -> Self {
        Rows { rows: Mutex::default() }
    }

    fn context(&self, py: Python<'_>, meta: &[u8], tokens: &[u8]) -> PyResult<()> {
        py.detach(|| self.rows.lock().context(meta, tokens)).map_err(corrupt)
    }

    fn context_part<'py>(&self, py: Python<'py>, n: usize) -> Option<Bound<'py, PyBytes>> {
        let part = py.detach(|| self.rows.lock().context_part(n).as_ref().map(engine::encode));
        part.map(|p| PyBytes::new(py, &p))
    }

    fn copy(&self, py: Python<'_>) -> Self {
        py.detach(|| Rows { rows: Mutex::new(self.rows.lock().clone()) })
    }

    #[pyo3(signature = (row, discounted_reward, train))]
    fn push(
        &self,
        py: Python<'_>,
        row: &Bound<'_, PyTuple>,
        discounted_reward: Option<f64>,
        train: bool,
    ) -> PyResult<()> {
        let row = rows::record_row(row)?;
        py.detach(|| {
            let record = row.to_proto(false)?;
            self.rows.lock().push(&record, discounted_reward, train);
            Ok(())
        })
        .map_err(corrupt)
    }

    fn finish(&self, py: Python<'_>) {
        py.detach(|| self.rows.lock().finish());
    }

    fn part<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let part = py.detach(|| self.rows.lock().part().as_ref().map(engine::encode));
        part.map(|p| PyBytes::new(py, &p))
    }
}

/// What is wrong with an admin key as it is configured, in words that do not tell it; `None` for a good one.
#[pyfunction]
fn admin_key_fault(key: &str) -> Option<&'static str> {
    keys::admin_key_hash(key).err()
}

#[pyfunction]
fn new_admin_key() -> String {
    let mut entropy = [0; 48];
    getrandom::fill(&mut entropy).expect("the operating system gives random bytes");
    keys::new_admin_key(&entropy)
}

/// The hash that a request_id is kept with: of the request without it.
#[pyfunction]
fn request_hash<'py>(py: Python<'py>, payload: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &roost_core::ids::request_hash(payload))
}

#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::dump::{DumpDecoder, DumpEncoder, dump_name, tenant_uid};
    #[pymodule_export]
    use super::failpoint::failpoint;
    #[pymodule_export]
    use super::watch::Watch;
    #[pymodule_export]
    use super::{Batch, Engine, Rows, admin_key_fault, new_admin_key, request_hash};
    use super::{Limits, Method, Reason, Rule};
    use pyo3::prelude::*;
    use pyo3::types::PyDict;
    use std::collections::BTreeMap;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let methods = PyDict::new(module.py());
        for (number, (name, _)) in Method::ALL.iter().enumerate() {
            methods.set_item(name, number)?;
        }
        module.add("METHODS", methods)?;
        let rules: BTreeMap<_, _> = Rule::TABLE.iter().map(|(name, rule)| (*name, rule.name())).collect();
        module.add("RULES", rules)?;
        let reasons: Vec<_> =
            Reason::ALL.iter().map(|r| (r.name(), r.code() as i32, r.meaning(), r.advice())).collect();
        module.add("REASONS", reasons)?;
        module.add("LIMITS", Limits::TABLE.to_vec())?;
        let changes: BTreeMap<_, _> = Limits::CHANGES.iter().map(|(name, change)| (*name, change.name())).collect();
        module.add("LIMIT_CHANGES", changes)?;
        module.add("DUMP_SCHEMA", roost_dump::SCHEMA)?;
        module.add("VERSION", env!("CARGO_PKG_VERSION"))
    }
}
