//! Dumps between `roost_dump` and Python: rows in, parts out, and back. All of the work is done with the GIL released.

use crate::rows::{self, blob, bytes, column, maybe, maybe_blob, maybe_uid, tuple, uid};
use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use roost_core::ids::{self, Uid};
use roost_dump::{Decoder, Encoder, Fault, Mail, Part, Record, Row, Session, Summary, Trajectory};
use std::collections::HashMap;

fn fault(fault: Fault) -> PyErr {
    PyValueError::new_err(fault.0)
}

fn used_up() -> PyErr {
    PyValueError::new_err("it has come to its end")
}

#[pyfunction]
pub(crate) fn tenant_uid(tenant: &str) -> String {
    ids::tenant_uid(tenant)
}

#[pyfunction]
pub(crate) fn dump_name(tenant: &str, uid: &[u8], close_number: u32) -> PyResult<String> {
    let uid = Uid::from_bytes(uid).ok_or_else(|| PyValueError::new_err("a uid has 16 bytes"))?;
    Ok(ids::dump_name(tenant, uid, close_number))
}

/// A `SessionRow`, and how many messages ended with it.
fn session(row: &Bound<'_, PyTuple>, mail: u64) -> PyResult<Session> {
    Ok(Session {
        uid: uid(row, 0)?,
        tenant: column(row, 1)?,
        session_id: column(row, 2)?,
        root: uid(row, 3)?,
        parent: maybe_uid(row, 4)?,
        path: column(row, 7)?,
        depth: column(row, 8)?,
        create_ms: column(row, 9)?,
        head: column(row, 11)?,
        head_version: column(row, 12)?,
        fence: column(row, 13)?,
        last: column(row, 15)?,
        facts: blob(row, 18)?,
        receipt: maybe_blob(row, 19)?.unwrap_or_default(),
        mail,
    })
}

/// A `RecordRow`.
fn record(row: &Bound<'_, PyTuple>, rewards: &HashMap<u64, f64>) -> PyResult<Record> {
    let seq = column(row, 0)?;
    Ok(Record {
        seq,
        prev: column(row, 1)?,
        status: column(row, 2)?,
        turn: column(row, 3)?,
        meta: blob(row, 4)?,
        chain: blob(row, 5)?,
        tokens: maybe_blob(row, 6)?,
        state: maybe_blob(row, 7)?,
        arrays: maybe_blob(row, 8)?,
        content: maybe_blob(row, 9)?,
        reward: rewards.get(&seq).copied(),
    })
}

/// A `TrajectoryRow`.
fn trajectory(row: &Bound<'_, PyTuple>) -> PyResult<Trajectory> {
    Ok(Trajectory {
        number: column(row, 1)?,
        ready_seq: column(row, 4)?,
        after_seq: column(row, 5)?,
        first_turn: column(row, 6)?,
        turn_count: column(row, 7)?,
        ready_ms: column(row, 8)?,
    })
}

/// An `UnreadMail`.
fn mail(row: &Bound<'_, PyTuple>) -> PyResult<Mail> {
    Ok(Mail {
        seq: column(row, 0)?,
        id: uid(row, 1)?,
        sender: maybe_blob(row, 2)?.and_then(|sender| Uid::from_bytes(&sender)),
        kind: column(row, 3)?,
        expire: column(row, 4)?,
        deliveries: column(row, 5)?,
        fence: column(row, 6)?,
        create_ms: column(row, 7)?,
        meta: blob(row, 8)?,
        content: maybe_blob(row, 9)?,
    })
}

fn part_tuple<'py>(py: Python<'py>, part: &Part) -> PyResult<Bound<'py, PyTuple>> {
    tuple!(py, bytes(py, &part.data), part.sha256.as_str(), part.raw_bytes, part.lines)
}

type Told = (u64, u64, u64, u64, u64, String);

fn summary_tuple(summary: Summary) -> Told {
    (summary.records, summary.trajectories, summary.mail, summary.lines, summary.bytes, summary.sha256)
}

fn row_tuple<'py>(py: Python<'py>, row: &Row) -> PyResult<Bound<'py, PyTuple>> {
    match row {
        Row::Session(s) => {
            let parent = s.parent.map(Uid::bytes);
            let columns = tuple!(
                py,
                bytes(py, &s.uid.bytes()),
                s.tenant.as_str(),
                s.session_id.as_str(),
                bytes(py, &s.root.bytes()),
                bytes(py, parent.as_ref().map_or(&[][..], |p| p)),
                s.path.as_str(),
                s.depth,
                s.create_ms,
                s.head,
                s.head_version,
                s.fence,
                s.last,
                bytes(py, &s.facts),
                bytes(py, &s.receipt),
                s.dump_name().map_err(fault)?,
            )?;
            tuple!(py, "session", columns)
        }
        Row::Record(r) => {
            let columns = tuple!(
                py,
                r.seq,
                r.prev,
                r.status,
                r.turn,
                bytes(py, &r.meta),
                bytes(py, &r.chain),
                maybe(py, &r.tokens),
                maybe(py, &r.state),
                maybe(py, &r.arrays),
                maybe(py, &r.content),
            )?;
            tuple!(py, "record", columns, r.reward)
        }
        Row::Trajectory(t) => {
            let columns = tuple!(py, t.number, t.ready_seq, t.after_seq, t.first_turn, t.turn_count, t.ready_ms)?;
            tuple!(py, "trajectory", columns)
        }
        Row::Mail(m) => {
            let sender = m.sender.map(Uid::bytes);
            let columns = tuple!(
                py,
                bytes(py, &m.id.bytes()),
                bytes(py, sender.as_ref().map_or(&[][..], |s| s)),
                m.kind,
                m.expire,
                m.deliveries,
                m.fence,
                m.create_ms,
                bytes(py, &m.meta),
                maybe(py, &m.content),
            )?;
            tuple!(py, "mail", columns)
        }
    }
}

/// Rows of one session to parts.
#[pyclass(frozen)]
pub(crate) struct DumpEncoder {
    encoder: Mutex<Option<Encoder>>,
}

#[pymethods]
impl DumpEncoder {
    #[new]
    #[pyo3(signature = (row, lines, mail=0, part_bytes=roost_dump::PART_BYTES))]
    fn new(
        py: Python<'_>,
        row: &Bound<'_, PyTuple>,
        lines: Vec<Bound<'_, PyTuple>>,
        mail: u64,
        part_bytes: usize,
    ) -> PyResult<Self> {
        let session = session(row, mail)?;
        let lines = lines.iter().map(rows::record_line).collect::<PyResult<Vec<_>>>()?;
        let encoder = py.detach(|| Encoder::new(&session, &lines, part_bytes)).map_err(fault)?;
        Ok(DumpEncoder { encoder: Mutex::new(Some(encoder)) })
    }

    fn push<'py>(
        &self,
        py: Python<'py>,
        rows: Vec<Bound<'py, PyTuple>>,
        rewards: HashMap<u64, f64>,
    ) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let records = rows.iter().map(|row| record(row, &rewards)).collect::<PyResult<Vec<_>>>()?;
        let parts = py.detach(|| {
            let mut guard = self.encoder.lock();
            let encoder = guard.as_mut().ok_or_else(used_up)?;
            let parts: Result<Vec<_>, Fault> = records.into_iter().map(|r| encoder.record(r)).collect();
            parts.map_err(fault)
        })?;
        parts.iter().flatten().map(|part| part_tuple(py, part)).collect()
    }

    fn trajectories<'py>(
        &self,
        py: Python<'py>,
        trajectories: Vec<Bound<'py, PyTuple>>,
    ) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let trajectories = trajectories.iter().map(trajectory).collect::<PyResult<Vec<_>>>()?;
        let parts = py.detach(|| {
            let mut guard = self.encoder.lock();
            guard.as_mut().ok_or_else(used_up)?.trajectories(&trajectories).map_err(fault)
        })?;
        parts.iter().map(|part| part_tuple(py, part)).collect()
    }

    fn mail<'py>(&self, py: Python<'py>, rows: Vec<Bound<'py, PyTuple>>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let rows = rows.iter().map(mail).collect::<PyResult<Vec<_>>>()?;
        let parts = py.detach(|| {
            let mut guard = self.encoder.lock();
            let encoder = guard.as_mut().ok_or_else(used_up)?;
            let parts: Result<Vec<_>, Fault> = rows.iter().map(|m| encoder.mail(m)).collect();
            parts.map_err(fault)
        })?;
        parts.iter().flatten().map(|part| part_tuple(py, part)).collect()
    }

    fn finish<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, Told)> {
        let encoder = self.encoder.lock().take().ok_or_else(used_up)?;
        let (part, summary) = py.detach(|| encoder.finish()).map_err(fault)?;
        Ok((part_tuple(py, &part)?, summary_tuple(summary)))
    }
}

/// Parts of one dump to rows.
#[pyclass(frozen)]
pub(crate) struct DumpDecoder {
    decoder: Mutex<Option<Decoder>>,
}

#[pymethods]
impl DumpDecoder {
    #[new]
    fn new() -> Self {
        DumpDecoder { decoder: Mutex::new(Some(Decoder::new())) }
    }

    fn part<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyBytes>,
        raw_bytes: u64,
    ) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        self.read(py, data.as_bytes(), raw_bytes)?.iter().map(|row| row_tuple(py, row)).collect()
    }

    fn check(&self, py: Python<'_>, data: &Bound<'_, PyBytes>, raw_bytes: u64) -> PyResult<Option<String>> {
        let rows = self.read(py, data.as_bytes(), raw_bytes)?;
        let name = rows.iter().find_map(|row| if let Row::Session(s) = row { Some(s.dump_name()) } else { None });
        name.transpose().map_err(fault)
    }

    fn finish(&self, py: Python<'_>) -> PyResult<Told> {
        let decoder = self.decoder.lock().take().ok_or_else(used_up)?;
        py.detach(|| decoder.finish()).map(summary_tuple).map_err(fault)
    }
}

impl DumpDecoder {
    fn read(&self, py: Python<'_>, data: &[u8], raw_bytes: u64) -> PyResult<Vec<Row>> {
        py.detach(|| {
            let mut guard = self.decoder.lock();
            guard.as_mut().ok_or_else(used_up)?.part(data, raw_bytes).map_err(fault)
        })
    }
}
