//! What callers see: sessions and records as messages of the API, from memory or from the store alike (I11).

use super::begin::lease_lost;
use super::reload::Wanted;
use super::requests::Call;
use super::tree::{Lease, Tenant, TreeState};
use super::{Engine, Pending, Work, duration, not_found, timestamp};
use crate::chain::{self, digest};
use crate::checkpoint::{Checkpoint, TOKEN};
use crate::error::{Reason, Refusal};
use crate::gen_store::{Receipt, RecordMeta, RunningGrant, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::Uid;
use crate::rows::mask_of;
use prost::Message;
use std::collections::BTreeMap;

/// A session as `roost.v1.Session` tells it.
#[derive(Clone, Debug)]
pub struct SessionView {
    session_id: String,
    uid: Uid,
    parent_session_id: String,
    root_session_id: String,
    path: String,
    state: i32,
    activity: v1::Activity,
    last_outcome: i32,
    residency: v1::Residency,
    turn_count: u32,
    head_version: u64,
    checkpoint_tokens: u64,
    labels: BTreeMap<String, String>,
    stale_timeout_ms: i64,
    create_ms: i64,
    running: Option<v1::RunningTurn>,
    receipt: Option<v1::CloseReceipt>,
    has_provisional: bool,
    trajectories: u32,
    trajectory_turns: u32,
    finish_due_ms: i64,
    cleanup: Option<v1::Cleanup>,
    wakes: bool,
    owner: String,
}

impl SessionView {
    /// As it is shown to a caller who may see it whole, or its outline: where it stands and whether it runs, none of what
    /// it was given or what it made.
    pub fn shown(&self, outline: bool) -> v1::Session {
        let whole = self.to_proto();
        if !outline {
            return whole;
        }
        v1::Session {
            session_id: whole.session_id,
            uid: whole.uid,
            parent_session_id: whole.parent_session_id,
            root_session_id: whole.root_session_id,
            path: whole.path,
            state: whole.state,
            activity: whole.activity,
            last_outcome: whole.last_outcome,
            residency: whole.residency,
            turn_count: whole.turn_count,
            create_time: whole.create_time,
            ..v1::Session::default()
        }
    }

    pub fn to_proto(&self) -> v1::Session {
        v1::Session {
            session_id: self.session_id.clone(),
            uid: self.uid.to_string(),
            parent_session_id: self.parent_session_id.clone(),
            root_session_id: self.root_session_id.clone(),
            path: self.path.clone(),
            state: self.state,
            activity: self.activity as i32,
            last_outcome: self.last_outcome,
            residency: self.residency as i32,
            turn_count: self.turn_count,
            head_version: self.head_version,
            checkpoint_tokens: self.checkpoint_tokens,
            labels: self.labels.clone(),
            stale_timeout: Some(duration(self.stale_timeout_ms as u64)),
            create_time: Some(timestamp(self.create_ms)),
            running: self.running.clone(),
            receipt: self.receipt.clone(),
            // A provisional always stands at the number after the head (I8).
            provisional_turn: if self.has_provisional { self.turn_count + 1 } else { 0 },
            trajectory: self.trajectories + 1,
            trajectory_first_turn: self.trajectory_turns + 1,
            finish_time: (self.finish_due_ms != 0).then(|| timestamp(self.finish_due_ms)),
            cleanup: self.cleanup.clone(),
            wake_on_completion: self.wakes,
            owner: self.owner.clone(),
        }
    }
}

fn running_turn(turn: u32, attempt: u32, owner: &str, begin_ms: i64, interrupt_requested: bool) -> v1::RunningTurn {
    let (owner, begin_time) = (owner.to_owned(), Some(timestamp(begin_ms)));
    v1::RunningTurn { turn, attempt, owner, begin_time, interrupt_requested }
}

pub(crate) fn receipt(r: &Receipt) -> v1::CloseReceipt {
    v1::CloseReceipt {
        reason: r.reason,
        close_time: Some(timestamp(r.close_ms)),
        slots_released: r.slots_released,
        children_closed: r.children_closed,
        turn_count: r.turn_count,
        close_number: r.close_number,
        provisionals_aborted: r.provisionals_aborted,
        dump_name: r.dump_name.clone(),
        resources: r.resources,
        unread_messages: r.unread_messages,
    }
}

pub(crate) fn decode_receipt(bytes: &[u8]) -> Option<v1::CloseReceipt> {
    Receipt::decode(bytes).ok().as_ref().map(receipt)
}

impl Engine {
    pub(crate) fn get_session(&self, call: Pending, work: &mut Work) {
        let Call::Get(id) = &call.call else { return };
        let id = id.clone();
        // Reads load nothing: a session that is not in memory is read from the store, once its tree is durable.
        let Some((tree, index)) = call.tenant.directory.get(&id) else {
            return self.ask_row(call, &id, 0);
        };
        let Some(state) = Self::still_at(&tree, index, &id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line(index) else { return };
        if !line.born {
            self.refuse(call.ticket, not_found(&id), work);
        } else if line.closed.is_some() || line.resident.is_none() {
            let after = state.last_seq;
            self.ask_row(call, &id, after);
        } else {
            let session = Some(self.line_view(&state, index).shown(call.outline));
            self.reply(call.ticket, Ok(v1::GetSessionResponse { session }.encode_to_vec()), &tree, &state, work);
        }
    }

    /// One part of the checkpoint that a lease starts from.
    pub(crate) fn get_checkpoint(&self, call: Pending, work: &mut Work) {
        const PART: usize = 1 << 20;
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::Checkpoint(asked) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, &asked.session_id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line(index) else { return };
        if line.lease.as_ref().is_none_or(|l| l.token(line.uid) != asked.lease) {
            let refusal = lease_lost(&asked.session_id, "it is not the session's latest grant, or its turn has ended");
            return self.reply(call.ticket, Err(refusal), &tree, &state, work);
        }
        let Some(resident) = line.resident.as_ref().filter(|r| r.has_tokens()) else {
            return self.load(call, &tree, &mut state, index, Wanted { tokens: true, ..Wanted::default() });
        };
        let whole = Checkpoint::default();
        let checkpoint = resident.checkpoint.as_deref().unwrap_or(&whole);
        let (first, tokens) = checkpoint.since(asked.known, line.head_version);
        let offset = asked.from.unwrap_or(first).max(first);
        if offset > resident.checkpoint_tokens {
            let length = resident.checkpoint_tokens;
            let refusal = Refusal::field("from_offset", format!("{offset} is behind the checkpoint's end at {length}"));
            let refusal = refusal.with("from_offset", offset).with("checkpoint_tokens", length);
            return self.reply(call.ticket, Err(refusal), &tree, &state, work);
        }
        let tokens = &tokens[(offset - first) as usize * TOKEN..];
        let part = &tokens[..tokens.len().min(PART)];
        let state_of = resident.state.as_deref().filter(|_| asked.from.is_none());
        let reply = v1::GetCheckpointResponse {
            checkpoint: Some(v1::Checkpoint {
                offset,
                token_ids: part.to_vec(),
                length: resident.checkpoint_tokens,
                state: state_of.map(<[u8]>::to_vec).unwrap_or_default(),
                omitted: false,
            }),
            head_version: line.head_version,
            last: part.len() == tokens.len(),
        };
        self.reply(call.ticket, Ok(reply.encode_to_vec()), &tree, &state, work);
    }

    /// A resident session. The tree is locked.
    pub(crate) fn line_view(&self, state: &TreeState, index: u32) -> SessionView {
        let line = state.line(index).expect("the caller has just looked at it");
        let resident = line.resident.as_ref().expect("the caller has just seen it resident");
        let id_of = |i: Option<u32>| i.and_then(|i| state.line(i)).map(|l| l.session_id.to_string());
        let mut root = index;
        while let Some(parent) = state.line(root).and_then(|l| l.parent) {
            root = parent;
        }
        let running = line.running();
        SessionView {
            session_id: line.session_id.to_string(),
            uid: line.uid,
            parent_session_id: id_of(line.parent).unwrap_or_default(),
            root_session_id: id_of(Some(root)).unwrap_or_default(),
            path: state.path(index),
            state: v1::SessionState::Open as i32,
            activity: activity(running, line.waits()),
            last_outcome: line.outcome as i32,
            residency: v1::Residency::Resident,
            turn_count: line.head,
            head_version: line.head_version,
            checkpoint_tokens: resident.checkpoint_tokens,
            labels: resident.labels.clone(),
            stale_timeout_ms: resident.stale_timeout_ms,
            create_ms: resident.create_ms,
            running: running.map(|l| running_turn(l.turn, l.attempt, &l.owner, l.begin_wall_ms, l.interrupted)),
            receipt: None,
            has_provisional: line.provisional != 0,
            trajectories: resident.trajectories,
            trajectory_turns: resident.trajectory_turns,
            finish_due_ms: line.finish_due_ms,
            cleanup: None,
            wakes: line.wakes,
            owner: line.owner.to_string(),
        }
    }

    /// A session as the store holds it; whether it waits and is resident comes from memory.
    pub(crate) fn row_view(&self, tenant: &Tenant, row: &super::SessionRow) -> Result<SessionView, Refusal> {
        let corrupt = |what: &str| {
            Refusal::new(Reason::SessionCorrupt, format!("session {:?}: {what}", row.session_id))
                .with("session_id", &row.session_id)
        };
        let facts = SessionFacts::decode(&row.facts[..]).map_err(|_| corrupt("its facts do not decode"))?;
        let grant = match row.lease.as_deref().filter(|_| row.running) {
            Some(bytes) => Some(RunningGrant::decode(bytes).map_err(|_| corrupt("its grant does not decode"))?),
            None => None,
        };
        let (mut waits, mut resident) = (false, false);
        if let Some((tree, index)) = tenant.directory.get(&row.session_id)
            && let Some(state) = Self::still_at(&tree, index, &row.session_id)
            && let Some(line) = state.line(index).filter(|l| l.uid == row.uid)
        {
            (waits, resident) = (line.waits(), line.resident.is_some());
        }
        let activity = match (&grant, waits) {
            (Some(_), _) => v1::Activity::Running,
            (None, true) => v1::Activity::Waiting,
            (None, false) => v1::Activity::Idle,
        };
        Ok(SessionView {
            session_id: row.session_id.clone(),
            uid: row.uid,
            parent_session_id: row.parent_session_id.clone(),
            root_session_id: row.root_session_id.clone(),
            path: row.path.clone(),
            state: row.state,
            activity,
            last_outcome: facts.last_outcome,
            residency: if resident { v1::Residency::Resident } else { v1::Residency::Unloaded },
            turn_count: row.head,
            head_version: row.head_version,
            checkpoint_tokens: facts.checkpoint_tokens,
            labels: facts.labels,
            stale_timeout_ms: facts.stale_timeout_ms,
            create_ms: row.create_ms,
            running: grant.map(|g| running_turn(g.turn, g.attempt, &g.owner, g.begin_ms, g.interrupted)),
            receipt: row.receipt.as_deref().and_then(decode_receipt),
            has_provisional: row.provisional != 0,
            trajectories: facts.trajectories,
            trajectory_turns: facts.trajectory_turns,
            finish_due_ms: row.finish_due_ms,
            cleanup: super::ended::view(row),
            wakes: facts.wake_on_completion,
            owner: row.owner.clone(),
        })
    }

    /// A session row as an encoded `roost.v1.Session`, or its outline.
    pub fn describe(&self, tenant: &str, row: &super::SessionRow, outline: bool) -> Result<Vec<u8>, Refusal> {
        Ok(self.row_view(&self.tenant(tenant), row)?.shown(outline).encode_to_vec())
    }
}

fn activity(running: Option<&Lease>, waits: bool) -> v1::Activity {
    match (running, waits) {
        (Some(_), _) => v1::Activity::Running,
        (None, true) => v1::Activity::Waiting,
        (None, false) => v1::Activity::Idle,
    }
}

/// A record in full, as the store reads it.
#[derive(Clone, Debug)]
pub struct RecordRow {
    pub seq: u64,
    pub status: i32,
    pub meta: Vec<u8>,
    pub tokens: Option<Vec<u8>>,
    pub state: Option<Vec<u8>>,
    pub arrays: Option<Vec<u8>>,
    pub content: Option<Vec<u8>>,
}

/// What an export makes of a record beside what is stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dress {
    pub omit_payload: bool,
    /// Its span has a loss mask: of zeros unless it is COMMITTED.
    pub exported: bool,
    pub reward: Option<f64>,
    pub discounted_reward: Option<f64>,
}

impl RecordRow {
    /// As [`Self::to_proto`], dressed.
    pub fn dressed(self, dress: Dress) -> Result<v1::Record, Refusal> {
        let mut record = self.to_proto(dress.omit_payload)?;
        (record.reward, record.discounted_reward) = (dress.reward, dress.discounted_reward);
        let span = record.record.as_ref().and_then(|r| r.tokens.as_ref()).filter(|_| dress.exported);
        let mask = span.map(|span| {
            let count = span.token_ids.len() / TOKEN;
            let committed = record.status == v1::RecordStatus::Committed as i32;
            if committed { mask_of(&record, span, count) } else { vec![0; count] }
        });
        if let (Some(mask), Some(span)) = (mask, record.record.as_mut().and_then(|r| r.tokens.as_mut())) {
            span.loss_mask = mask;
        }
        Ok(record)
    }

    /// As `roost.v1.Record`. With payloads they are verified against their digests.
    pub fn to_proto(self, omit_payload: bool) -> Result<v1::Record, Refusal> {
        let corrupt = |what: &str| {
            Refusal::new(Reason::SessionCorrupt, format!("record {}: {what}", self.seq)).with("record", self.seq)
        };
        let meta = RecordMeta::decode(&self.meta[..]).map_err(|_| corrupt("its metadata does not decode"))?;
        let content = self.content.unwrap_or_default();
        let tokens = self.tokens.unwrap_or_default();
        let arrays = self.arrays.unwrap_or_default();
        if !omit_payload {
            let state = self.state.as_deref().unwrap_or_default();
            let pairs = [
                (digest(&[&content]), &meta.content_digest, "its content does not match its digest"),
                (digest(&[&tokens]), &meta.tokens_digest, "its tokens do not match their digest"),
                (digest(&[&arrays]), &meta.arrays_digest, "its arrays do not match their digest"),
                (digest(&[state]), &meta.state_digest, "its state does not match its digest"),
            ];
            for (is, should, what) in pairs {
                if is != *should {
                    return Err(corrupt(what));
                }
            }
        }
        let split = (meta.logprobs_bytes as usize).min(arrays.len());
        let payload = |bytes: Vec<u8>| if omit_payload { Vec::new() } else { bytes };
        let span = meta.has_tokens.then(|| v1::TokenSpan {
            offset: meta.token_offset,
            logprobs: payload(arrays[..split].to_vec()),
            loss_mask: payload(arrays[split..].to_vec()),
            token_ids: payload(tokens),
            weight_versions: meta
                .weight_versions
                .chunks_exact(2)
                .map(|run| v1::WeightVersionRun { version: run[0], count: run[1] as u32 })
                .collect(),
        });
        let usage = meta.has_usage.then_some(v1::Usage {
            prompt_tokens: meta.prompt_tokens,
            completion_tokens: meta.completion_tokens,
            cached_tokens: meta.cached_tokens,
        });
        Ok(v1::Record {
            turn: meta.turn,
            attempt: meta.attempt,
            status: self.status,
            record: Some(v1::RecordInput {
                content: payload(content),
                content_type: meta.content_type,
                tokens: span,
                usage,
                finish_reason: meta.finish_reason,
                labels: meta.labels,
                attachments: meta
                    .attachments
                    .into_iter()
                    .map(|a| v1::Attachment {
                        name: a.name,
                        dtype: a.dtype,
                        shape: a.shape,
                        uri: a.uri,
                        sha256: a.sha256,
                        size_bytes: a.size_bytes,
                    })
                    .collect(),
            }),
            create_time: Some(timestamp(meta.create_ms)),
            outcome: meta.outcome,
            head_version: meta.head_version,
            fence: meta.fence,
            new_segment: meta.new_segment,
            owner: meta.owner,
            reward: None,
            trajectory: meta.trajectory.max(1),
            discounted_reward: None,
            base_turn: meta.base_turn,
        })
    }
}

/// Verifies the hash chain of a session's events, newest first, against its facts. Returns their statuses as of the
/// newest: a rewind since then has changed what is stored of older ones.
pub fn verify_history(lines: &[chain::Line], last: u64, facts: &[u8]) -> Result<Vec<i32>, Refusal> {
    let facts = SessionFacts::decode(facts)
        .map_err(|_| Refusal::new(Reason::SessionCorrupt, "the session's facts do not decode"))?;
    let metas = chain::verify(lines, last, &facts.chain)?;
    chain::statuses(lines, &metas)
}
