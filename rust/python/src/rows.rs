//! Rows between the engine and Python: tuples in the column orders of `python/roost/store/base.py`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use roost_core::chain::Line;
use roost_core::engine::{
    CleanupStep, DueSession, DumpMade, DumpedMail, DumpedRecord, DumpedSession, DumpedTrajectory, FoundSession,
    FoundTrajectory, HeaderRow, LoadedSession, MailFound, MailHead, RecordRow, ReleaseStep, RestoreEnd, RestoreStep,
    RunnableSession, SessionRow, StaleTree, StoredResource,
};
use roost_core::ids::Uid;
use roost_core::journal::{
    Close, Finished, KeyRow, MailRow, Record, RecordCopy, Reopen, ResourceRow, ResourceUpdate, Restore, Row, Step,
};
use roost_core::keys::KeyHash;

/// A tuple of what each expression becomes in Python.
macro_rules! tuple {
    ($py:expr, $($value:expr),* $(,)?) => {
        PyTuple::new($py, [$($value.into_pyobject($py).map_err(PyErr::from)?.into_any(),)*])
    };
}
pub(crate) use tuple;

pub(crate) fn bytes<'py>(py: Python<'py>, value: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, value)
}

pub(crate) fn maybe<'py>(py: Python<'py>, value: &Option<Vec<u8>>) -> Option<Bound<'py, PyBytes>> {
    value.as_ref().map(|v| PyBytes::new(py, v))
}

pub(crate) fn uids<'py>(py: Python<'py>, uids: &[Uid]) -> Vec<Bound<'py, PyBytes>> {
    uids.iter().map(|uid| PyBytes::new(py, &uid.bytes())).collect()
}

pub(crate) fn upsert<'py>(py: Python<'py>, row: &Row) -> PyResult<Bound<'py, PyTuple>> {
    // roost.v1.SessionState.OPEN: a row is only ever written for an open session; a close has its own rows.
    const OPEN: i32 = 1;
    let parent = row.parent.map(Uid::bytes);
    tuple!(
        py,
        bytes(py, &row.uid.bytes()),
        &*row.tenant,
        &*row.session_id,
        bytes(py, &row.root.bytes()),
        bytes(py, parent.as_ref().map_or(&[][..], |p| p)),
        row.path.as_str(),
        row.depth,
        row.create_ms,
        row.stale_due,
        OPEN,
        row.head,
        row.head_version,
        row.fence,
        row.provisional,
        row.last,
        i32::from(row.running),
        maybe(py, &row.lease),
        bytes(py, &row.facts),
        row.outcome,
        i32::from(row.wakes),
        &*row.owner,
        row.finish_due_ms,
        row.stale_ms,
        row.active_ms,
        row.seq,
        row.prev,
    )
}

pub(crate) fn finished<'py>(py: Python<'py>, finished: &Finished) -> PyResult<Bound<'py, PyTuple>> {
    tuple!(
        py,
        bytes(py, &finished.session.bytes()),
        finished.number,
        &*finished.tenant,
        bytes(py, &finished.root.bytes()),
        finished.ready_seq,
        finished.after_seq,
        finished.first_turn,
        finished.turn_count,
        finished.ready_ms,
    )
}

pub(crate) fn insert<'py>(py: Python<'py>, record: &Record) -> PyResult<Bound<'py, PyTuple>> {
    tuple!(
        py,
        record.seq,
        bytes(py, &record.session.bytes()),
        record.prev,
        record.status,
        record.turn,
        bytes(py, &record.meta),
        bytes(py, &record.chain),
        maybe(py, &record.tokens),
        maybe(py, &record.state),
        maybe(py, &record.arrays),
        maybe(py, &record.content),
    )
}

pub(crate) fn copy<'py>(py: Python<'py>, copy: &RecordCopy) -> PyResult<Bound<'py, PyTuple>> {
    // roost.v1.RecordStatus.COMMITTED: only the live line is copied.
    const COMMITTED: i32 = 1;
    tuple!(
        py,
        copy.seq,
        bytes(py, &copy.session.bytes()),
        copy.prev,
        COMMITTED,
        copy.turn,
        bytes(py, &copy.meta),
        bytes(py, &copy.chain),
        copy.source,
    )
}

pub(crate) fn close<'py>(py: Python<'py>, close: &Close) -> PyResult<Bound<'py, PyTuple>> {
    let receipt = roost_core::engine::encode(&close.receipt);
    tuple!(
        py,
        bytes(py, &close.uid.bytes()),
        close.prev,
        close.seq,
        close.state,
        bytes(py, &receipt),
        close.cleanup_due
    )
}

pub(crate) fn reopen<'py>(py: Python<'py>, reopen: &Reopen) -> PyResult<Bound<'py, PyTuple>> {
    tuple!(
        py,
        bytes(py, &reopen.uid.bytes()),
        reopen.prev,
        reopen.seq,
        reopen.stale_ms,
        reopen.stale_due,
        reopen.active_ms,
        bytes(py, &reopen.facts),
    )
}

pub(crate) fn restore<'py>(py: Python<'py>, row: &Restore) -> PyResult<Bound<'py, PyTuple>> {
    let parent = row.parent.map(Uid::bytes);
    tuple!(
        py,
        bytes(py, &row.uid.bytes()),
        &*row.tenant,
        &*row.session_id,
        bytes(py, &row.root.bytes()),
        bytes(py, parent.as_ref().map_or(&[][..], |p| p)),
        row.path.as_str(),
        row.depth,
        row.create_ms,
        row.head,
        row.head_version,
        row.fence,
        row.stale_ms,
        row.closes,
        row.cleanup_due,
        row.close_seq,
        row.seq,
        bytes(py, &row.facts),
        row.outcome,
        i32::from(row.wakes),
        bytes(py, &row.receipt),
        bytes(py, &row.cleanup),
    )
}

pub(crate) fn step<'py>(py: Python<'py>, step: &Step) -> PyResult<Bound<'py, PyTuple>> {
    tuple!(
        py,
        bytes(py, &step.uid.bytes()),
        step.prev,
        step.seq,
        step.state,
        step.last,
        bytes(py, &step.facts),
        bytes(py, &step.cleanup),
        step.cleanup_due,
    )
}

/// A step of clean-up as `_core.pyi` describes it.
pub(crate) fn cleanup_step(step: &Bound<'_, PyTuple>) -> PyResult<CleanupStep> {
    let kind: String = column(step, 0)?;
    Ok(match kind.as_str() {
        "cleaned" => CleanupStep::Cleaned { dump: None },
        "dumped" => CleanupStep::Cleaned { dump: Some(DumpMade { bytes: column(step, 1)?, sha256: column(step, 2)? }) },
        "failed" => CleanupStep::Failed { error: column(step, 1)? },
        "purge" => {
            CleanupStep::Purge { records: column(step, 1)?, last: column(step, 2)?, acknowledged: column(step, 3)? }
        }
        "keep" => CleanupStep::Keep,
        "forget" => CleanupStep::Forget,
        "later" => CleanupStep::Later,
        "restore" => CleanupStep::Restore(Box::new(restore_step(step)?)),
        other => return Err(pyo3::exceptions::PyValueError::new_err(format!("no step is called {other:?}"))),
    })
}

pub(crate) fn key_row<'py>(py: Python<'py>, key: &KeyRow) -> PyResult<Bound<'py, PyTuple>> {
    let request = key.request.as_ref().map(|mark| bytes(py, &roost_core::engine::encode(mark)));
    let hash = bytes(py, key.hash.bytes());
    tuple!(py, bytes(py, &key.id.bytes()), &*key.tenant, hash, key.create_ms, key.revoke_ms, request)
}

pub(crate) fn key(row: &Bound<'_, PyTuple>) -> PyResult<KeyRow> {
    let damaged = || pyo3::exceptions::PyValueError::new_err("the row of an API key is damaged");
    Ok(KeyRow {
        id: uid(row, 0)?,
        tenant: column::<String>(row, 1)?.into(),
        hash: KeyHash::from_bytes(&blob(row, 2)?).ok_or_else(damaged)?,
        create_ms: column(row, 3)?,
        revoke_ms: column(row, 4)?,
        request: match maybe_blob(row, 5)? {
            Some(mark) => Some(roost_core::engine::decode_mark(&mark).ok_or_else(damaged)?),
            None => None,
        },
    })
}

fn restore_step(step: &Bound<'_, PyTuple>) -> PyResult<RestoreStep> {
    let records: Vec<(Bound<'_, PyTuple>, Option<f64>)> = column(step, 1)?;
    let trajectories: Vec<Bound<'_, PyTuple>> = column(step, 2)?;
    let mail: Vec<Bound<'_, PyTuple>> = column(step, 3)?;
    let end: Option<Bound<'_, PyTuple>> = column(step, 4)?;
    Ok(RestoreStep {
        records: records.iter().map(|(row, reward)| dumped_record(row, *reward)).collect::<PyResult<_>>()?,
        trajectories: trajectories.iter().map(dumped_trajectory).collect::<PyResult<_>>()?,
        mail: mail.iter().map(dumped_mail).collect::<PyResult<_>>()?,
        end: end.as_ref().map(restore_end).transpose()?,
    })
}

/// From `base.RecordRow`.
fn dumped_record(row: &Bound<'_, PyTuple>, reward: Option<f64>) -> PyResult<DumpedRecord> {
    Ok(DumpedRecord {
        status: column(row, 2)?,
        turn: column(row, 3)?,
        meta: blob(row, 4)?,
        chain: blob(row, 5)?,
        tokens: maybe_blob(row, 6)?,
        state: maybe_blob(row, 7)?,
        arrays: maybe_blob(row, 8)?,
        content: maybe_blob(row, 9)?,
        reward,
    })
}

/// From `reader.DumpedTrajectory`.
fn dumped_trajectory(row: &Bound<'_, PyTuple>) -> PyResult<DumpedTrajectory> {
    Ok(DumpedTrajectory {
        number: column(row, 0)?,
        ready_seq: column(row, 1)?,
        after_seq: column(row, 2)?,
        first_turn: column(row, 3)?,
        turn_count: column(row, 4)?,
        ready_ms: column(row, 5)?,
    })
}

/// From `reader.DumpedMail`.
fn dumped_mail(row: &Bound<'_, PyTuple>) -> PyResult<DumpedMail> {
    Ok(DumpedMail {
        id: uid(row, 0)?,
        sender: maybe_uid(row, 1)?,
        kind: column(row, 2)?,
        expire: column(row, 3)?,
        deliveries: column(row, 4)?,
        fence: column(row, 5)?,
        create_ms: column(row, 6)?,
        meta: blob(row, 7)?,
        content: maybe_blob(row, 8)?,
    })
}

fn restore_end(row: &Bound<'_, PyTuple>) -> PyResult<RestoreEnd> {
    Ok(RestoreEnd {
        state_seq: column(row, 0)?,
        head_seq: column(row, 1)?,
        trajectory_seq: column(row, 2)?,
        closed_seqs: column(row, 3)?,
        dump_bytes: column(row, 4)?,
        dump_sha256: column(row, 5)?,
        request: column(row, 6)?,
    })
}

/// From `reader.DumpedSession`.
pub(crate) fn dumped_session(row: &Bound<'_, PyTuple>) -> PyResult<DumpedSession> {
    Ok(DumpedSession {
        uid: uid(row, 0)?,
        session_id: column(row, 2)?,
        root: uid(row, 3)?,
        parent: maybe_uid(row, 4)?,
        path: column(row, 5)?,
        depth: column(row, 6)?,
        create_ms: column(row, 7)?,
        head: column(row, 8)?,
        head_version: column(row, 9)?,
        fence: column(row, 10)?,
        facts: blob(row, 12)?,
        receipt: blob(row, 13)?,
    })
}

pub(crate) fn resource_row<'py>(py: Python<'py>, row: &ResourceRow) -> PyResult<Bound<'py, PyTuple>> {
    // Due, attempts, error: nothing of its release is known yet.
    tuple!(
        py,
        &*row.name,
        bytes(py, &row.session.bytes()),
        bytes(py, &row.root.bytes()),
        &*row.tenant,
        row.kind,
        row.state,
        row.owner.as_str(),
        row.handle.as_str(),
        row.pool.as_str(),
        row.pool_key.as_str(),
        row.idle_ttl_ms,
        row.create_ms,
        0_i64,
        0_u32,
        "",
        maybe(py, &row.request),
    )
}

pub(crate) fn resource_update<'py>(py: Python<'py>, update: &ResourceUpdate) -> PyResult<Bound<'py, PyTuple>> {
    let handle = update.handle.as_deref();
    tuple!(py, &*update.name, update.state, handle, update.due, update.attempts, update.error.as_str())
}

/// What came of an attempt to release a resource, as `_core.pyi` describes it.
pub(crate) fn release_step(step: &Bound<'_, PyTuple>) -> PyResult<ReleaseStep> {
    let kind: String = column(step, 0)?;
    Ok(match kind.as_str() {
        "released" => ReleaseStep::Released,
        "failed" => ReleaseStep::Failed { error: column(step, 1)?, retry_ms: column(step, 2)? },
        other => return Err(pyo3::exceptions::PyValueError::new_err(format!("no step is called {other:?}"))),
    })
}

/// A resource that the store holds.
pub(crate) fn stored_resource(row: &Bound<'_, PyTuple>) -> PyResult<StoredResource> {
    let damaged = || pyo3::exceptions::PyValueError::new_err("the row of a resource is damaged");
    Ok(StoredResource {
        name: column(row, 0)?,
        session: uid(row, 1)?,
        root: uid(row, 2)?,
        tenant: column(row, 3)?,
        session_id: column(row, 4)?,
        kind: column(row, 5)?,
        state: column(row, 6)?,
        pool: column(row, 7)?,
        pool_key: column(row, 8)?,
        idle_ttl_ms: column(row, 9)?,
        attempts: column(row, 10)?,
        request: match maybe_blob(row, 11)? {
            Some(mark) => Some(roost_core::engine::decode_mark(&mark).ok_or_else(damaged)?),
            None => None,
        },
    })
}

/// Column `i` of a row.
pub(crate) fn column<'py, T: for<'a> FromPyObject<'a, 'py>>(row: &Bound<'py, PyTuple>, i: usize) -> PyResult<T> {
    row.get_item(i)?.extract().map_err(Into::into)
}

pub(crate) fn uid(row: &Bound<'_, PyTuple>, i: usize) -> PyResult<Uid> {
    maybe_uid(row, i)?.ok_or_else(|| pyo3::exceptions::PyValueError::new_err("a uid has 16 bytes"))
}

pub(crate) fn maybe_uid(row: &Bound<'_, PyTuple>, i: usize) -> PyResult<Option<Uid>> {
    Ok(Uid::from_bytes(row.get_item(i)?.cast::<PyBytes>()?.as_bytes()))
}

pub(crate) fn blob(row: &Bound<'_, PyTuple>, i: usize) -> PyResult<Vec<u8>> {
    Ok(row.get_item(i)?.cast::<PyBytes>()?.as_bytes().to_vec())
}

pub(crate) fn maybe_blob(row: &Bound<'_, PyTuple>, i: usize) -> PyResult<Option<Vec<u8>>> {
    let item = row.get_item(i)?;
    if item.is_none() { Ok(None) } else { Ok(Some(item.cast::<PyBytes>()?.as_bytes().to_vec())) }
}

fn mail_head(row: &Bound<'_, PyTuple>) -> PyResult<MailHead> {
    Ok(MailHead {
        seq: column(row, 0)?,
        state: column(row, 1)?,
        due: column(row, 2)?,
        expire: column(row, 3)?,
        deliveries: column(row, 4)?,
        fence: column(row, 5)?,
        size: column(row, 6)?,
        outcome: column::<i64>(row, 7)? != 0,
    })
}

/// A message in full, as `base.MailFound` has it.
pub(crate) fn mail_found(row: &Bound<'_, PyTuple>) -> PyResult<MailFound> {
    Ok(MailFound {
        seq: column(row, 0)?,
        id: uid(row, 1)?,
        kind: column(row, 2)?,
        deliveries: column(row, 3)?,
        create_ms: column(row, 4)?,
        expire: column(row, 5)?,
        meta: blob(row, 6)?,
        content: maybe_blob(row, 7)?,
    })
}

pub(crate) fn runnable(row: &Bound<'_, PyTuple>) -> PyResult<RunnableSession> {
    Ok(RunnableSession { due_ms: column(row, 0)?, seq: column(row, 1)?, session_id: column(row, 2)? })
}

pub(crate) fn mail_row<'py>(py: Python<'py>, mail: &MailRow) -> PyResult<Bound<'py, PyTuple>> {
    // roost.v1.MessageState.QUEUED; deliveries and fence: no turn has taken it yet.
    const QUEUED: i32 = 1;
    tuple!(
        py,
        mail.seq,
        bytes(py, &mail.id.bytes()),
        bytes(py, &mail.recipient.bytes()),
        bytes(py, &mail.root.bytes()),
        &*mail.tenant,
        mail.sender.map(|s| PyBytes::new(py, &s.bytes())),
        mail.kind,
        QUEUED,
        mail.due,
        mail.expire,
        0_u32,
        0_u64,
        mail.create_ms,
        bytes(py, &mail.meta),
        maybe(py, &mail.content),
        mail.request.as_deref(),
    )
}

pub(crate) fn header_row(row: &Bound<'_, PyTuple>) -> PyResult<HeaderRow> {
    let mail: Vec<Bound<'_, PyTuple>> = row.get_item(22)?.extract()?;
    Ok(HeaderRow {
        uid: uid(row, 0)?,
        session_id: column(row, 1)?,
        parent: maybe_uid(row, 2)?,
        path: column(row, 3)?,
        depth: column(row, 4)?,
        head: column(row, 5)?,
        head_version: column(row, 6)?,
        fence: column(row, 7)?,
        provisional: column(row, 8)?,
        last: column(row, 9)?,
        running: column::<i64>(row, 10)? != 0,
        lease: maybe_blob(row, 11)?,
        finish_due_ms: column(row, 12)?,
        closes: column(row, 13)?,
        stale_ms: column(row, 14)?,
        active_ms: column(row, 15)?,
        stale_due: column(row, 16)?,
        facts: maybe_blob(row, 17)?,
        seq: column(row, 18)?,
        outcome: column(row, 19)?,
        wakes: column::<i64>(row, 20)? != 0,
        owner: column(row, 21)?,
        mail: mail.iter().map(mail_head).collect::<PyResult<_>>()?,
    })
}

pub(crate) fn found(row: &Bound<'_, PyTuple>) -> PyResult<FoundSession> {
    let rows: Vec<Bound<'_, PyTuple>> = row.get_item(3)?.extract()?;
    Ok(FoundSession {
        uid: uid(row, 0)?,
        root: uid(row, 1)?,
        parent: maybe_uid(row, 4)?,
        state: column(row, 2)?,
        cleanup: maybe_blob(row, 5)?,
        rows: rows.iter().map(header_row).collect::<PyResult<_>>()?,
    })
}

pub(crate) fn session_row(row: &Bound<'_, PyTuple>) -> PyResult<SessionRow> {
    Ok(SessionRow {
        uid: uid(row, 0)?,
        session_id: column(row, 2)?,
        root: uid(row, 3)?,
        parent_session_id: column(row, 5)?,
        root_session_id: column(row, 6)?,
        path: column(row, 7)?,
        depth: column(row, 8)?,
        create_ms: column(row, 9)?,
        state: column(row, 10)?,
        head: column(row, 11)?,
        head_version: column(row, 12)?,
        fence: column(row, 13)?,
        provisional: column(row, 14)?,
        last: column(row, 15)?,
        running: column::<i64>(row, 16)? != 0,
        lease: maybe_blob(row, 17)?,
        facts: blob(row, 18)?,
        receipt: maybe_blob(row, 19)?,
        finish_due_ms: column(row, 20)?,
        closes: column(row, 21)?,
        cleanup_due: column(row, 22)?,
        cleanup: maybe_blob(row, 23)?,
        seq: column(row, 24)?,
        owner: column(row, 25)?,
    })
}

pub(crate) fn record_line(row: &Bound<'_, PyTuple>) -> PyResult<Line> {
    Ok(Line {
        seq: column(row, 0)?,
        prev: column(row, 1)?,
        status: column(row, 2)?,
        turn: column(row, 3)?,
        meta: blob(row, 4)?,
        chain: blob(row, 5)?,
        tokens: maybe_blob(row, 6)?,
    })
}

pub(crate) fn loaded(row: &Bound<'_, PyTuple>) -> PyResult<LoadedSession> {
    let lines: Vec<Bound<'_, PyTuple>> = row.get_item(1)?.extract()?;
    Ok(LoadedSession {
        row: session_row(row.get_item(0)?.cast::<PyTuple>()?)?,
        lines: lines.iter().map(record_line).collect::<PyResult<_>>()?,
        state: maybe_blob(row, 3)?.map(|state| Ok::<_, PyErr>((column(row, 2)?, state))).transpose()?,
        provisional: match row.get_item(4)? {
            record if record.is_none() => None,
            record => Some(record_row(record.cast::<PyTuple>()?)?),
        },
        size: column(row, 5)?,
    })
}

pub(crate) fn trajectory(row: &Bound<'_, PyTuple>) -> PyResult<FoundTrajectory> {
    Ok(FoundTrajectory {
        tenant: column(row, 0)?,
        root: uid(row, 1)?,
        root_session_id: column(row, 2)?,
        acknowledged: column::<i64>(row, 3)? != 0,
    })
}

pub(crate) fn due(row: &Bound<'_, PyTuple>) -> PyResult<DueSession> {
    Ok(DueSession { due_ms: column(row, 0)?, uid: uid(row, 1)?, tenant: column(row, 2)?, session_id: column(row, 3)? })
}

pub(crate) fn stale(row: &Bound<'_, PyTuple>) -> PyResult<StaleTree> {
    Ok(StaleTree { due_ms: column(row, 0)?, root: uid(row, 1)?, tenant: column(row, 2)?, session_id: column(row, 3)? })
}

pub(crate) fn record_row(row: &Bound<'_, PyTuple>) -> PyResult<RecordRow> {
    Ok(RecordRow {
        seq: column(row, 0)?,
        status: column(row, 2)?,
        meta: blob(row, 4)?,
        tokens: maybe_blob(row, 6)?,
        state: maybe_blob(row, 7)?,
        arrays: maybe_blob(row, 8)?,
        content: maybe_blob(row, 9)?,
    })
}
