//! Trajectories: rewards, finishing the active one, acknowledging finished ones.
//!
//! A trajectory is a run of journal entries: its records come after the event that finished the one before it, up to
//! the event that finishes it. That event is on the session's hash chain (I23); rewards are not.

use super::begin::turn_in_progress;
use super::reload::{Effect, FoundTrajectory, LoadedSession, Purpose, Wanted, Why};
use super::requests::{Finish, Reward};
use super::tree::{LatestReward, Line, Resident, RewardedTurn, Tree, TreeState};
use super::{Answer, Call, Engine, Found, Moment, Pending, Work, count, quarantined, timestamp};
use crate::chain;
use crate::error::{Reason, Refusal};
use crate::gen_store::{EndedBy, RecordMeta, RequestMark, SessionFacts};
use crate::gen_v1 as v1;
use crate::ids::{Asked, TrajectoryId, Uid, fingerprint, repeats};
use crate::journal::{Appending, Finished, Held, Op, Record, Seq};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Pending {
    /// Whether it may be the repeat of a FinishTrajectory, which has its answer whatever became of the session since.
    pub(crate) fn may_repeat_finish(&self) -> bool {
        matches!(&self.call, Call::Finish(finish) if finish.mark.is_some())
    }
}

impl Engine {
    pub(crate) fn set_reward(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::Reward(reward) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, &reward.session_id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line(index) else { return };
        let Some(resident) = &line.resident else {
            return self.load(call, &tree, &mut state, index, Wanted::default());
        };
        match rewarded(line, resident, reward) {
            Err(refusal) => self.reply(call.ticket, Err(refusal), &tree, &state, work),
            Ok(Rewarded::Before(of)) => {
                let reply = reward_reply(line, resident, of, true);
                self.reply(call.ticket, Ok(reply), &tree, &state, work);
            }
            Ok(Rewarded::Now(turn)) => {
                let seq = match &call.found {
                    _ if turn == line.head => resident.head_seq,
                    Some(Found::Turn { head_version, turn: of, seq })
                        if (*head_version, *of) == (line.head_version, turn) && *seq != 0 =>
                    {
                        *seq
                    }
                    _ => {
                        let (uid, after) = (line.uid, state.last_seq);
                        return self.ask_records(call, uid, Why::Turn(turn), after);
                    }
                };
                let Pending { ticket, call: Call::Reward(reward), .. } = call else { return };
                self.reward_turn(&tree, &mut state, index, turn, seq, reward, now);
                let rewarded = state.line(index).and_then(|l| Some((l, l.resident.as_ref()?)));
                if let Some((line, resident)) = rewarded {
                    let of = resident.reward.as_ref().map(|r| r.of).unwrap_or_default();
                    let reply = reward_reply(line, resident, of, false);
                    self.reply(ticket, Ok(reply), &tree, &state, work);
                }
            }
        }
    }

    /// Writes a reward, and finishes the trajectory if that is to be at once: one entry.
    fn reward_turn(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        turn: u32,
        seq: Seq,
        reward: Reward,
        now: &Moment,
    ) {
        let Reward { mark, value, finish_after_ms, .. } = reward;
        let (mut due, mut ready) = (0, None);
        self.append(tree, state, index, now, |appending, line, ops| {
            let Some(resident) = line.resident.as_mut() else { return };
            ops.push(Op::Reward { session: line.uid, seq, value });
            resident.rewarded(turn, value, mark);
            if let Some(ms) = finish_after_ms {
                line.finish_due_ms = (now.wall_ms + ms as i64).max(1);
                due = line.finish_due_ms;
                if line.may_finish(now) {
                    ready = Some(line.finish(appending.seq, tree, None, now, ops).ready_seq);
                }
            }
        });
        match ready {
            Some(seq) => self.told_ready(tree, seq),
            None if due != 0 => self.due_at(due),
            None => {}
        }
    }

    pub(crate) fn finish_trajectory(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::Finish(finish) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, &finish.session_id) else {
            work.calls.push_back(call);
            return;
        };
        if let Some(loading) = state.line_mut(index).and_then(|l| l.loading.as_mut()).filter(|l| l.granted.is_some()) {
            // A turn begins as soon as the session is in memory: then it is clear what this call meets.
            return loading.calls.push(call);
        }
        let Some(line) = state.line(index) else { return };
        let Some(resident) = &line.resident else {
            return self.load(call, &tree, &mut state, index, Wanted::default());
        };
        if call.new_since != Some(line.last) && resident.has_seen(Asked::Finish, finish.mark.as_ref()) {
            let (uid, after) = (line.uid, state.last_seq);
            return self.ask_records(call, uid, Why::Repeat { ended: false }, after);
        }
        if let Err(refusal) = check_finish(line, resident, finish, now) {
            return self.reply(call.ticket, Err(refusal), &tree, &state, work);
        }
        let Pending { ticket, call: Call::Finish(finish), .. } = call else { return };
        let finished = self.finish_active(&tree, &mut state, index, finish.mark, finish.reward, now);
        let reply = v1::FinishTrajectoryResponse { trajectory: finished, repeated: false };
        self.reply(ticket, Ok(reply.encode_to_vec()), &tree, &state, work);
    }

    /// The engine's own: a trajectory that the store says is due.
    pub(crate) fn finish_due(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::FinishDue(id) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line(index) else { return };
        // A turn that runs is waited for: its end finishes the trajectory.
        if !line.is_due(now) || line.running().is_some() {
            return;
        }
        if line.resident.is_none() {
            return self.load(call, &tree, &mut state, index, Wanted::default());
        }
        self.finish_if_due(&tree, &mut state, index, now);
        work.evict = true;
    }

    /// Finishes the active trajectory if it is due and nothing stands against it. The tree is locked.
    pub(crate) fn finish_if_due(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, now: &Moment) {
        if state.line(index).is_some_and(|l| l.may_finish(now)) {
            self.finish_active(tree, state, index, None, None, now);
        }
    }

    /// Makes the active trajectory READY and starts the next. The session is resident, and its tree locked.
    fn finish_active(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        mark: Option<RequestMark>,
        reward: Option<f64>,
        now: &Moment,
    ) -> Option<v1::Trajectory> {
        let mut told = None;
        self.append(tree, state, index, now, |appending, line, ops| {
            let uid = line.uid;
            let Some(resident) = line.resident.as_mut() else { return };
            if let Some(value) = reward {
                ops.push(Op::Reward { session: uid, seq: resident.head_seq, value });
                resident.rewarded(line.head, value, None);
            }
            let finished = line.finish(appending.seq, tree, mark, now, ops);
            told = Some(message(&line.session_id, &finished));
        });
        if let Some(told) = &told {
            self.told_ready(tree, told.ready_sequence);
        }
        told
    }

    /// Of these sessions, which are about to be closed, the facts of those whose trajectory was to finish by itself: it was
    /// promised, and a closed session has no time to come. Not of one whose facts are damaged.
    pub(crate) fn to_finish(state: &TreeState, all: &[u32]) -> Vec<(u32, SessionFacts)> {
        let due = all.iter().filter_map(|i| Some((*i, state.line(*i).filter(|l| l.finish_due_ms != 0)?)));
        let facts = |line: &Line| match (&line.resident, &line.facts) {
            (Some(resident), _) => Some(resident.facts(line)),
            (None, Some(kept)) => SessionFacts::decode(&kept[..]).ok(),
            (None, None) => None,
        };
        due.filter_map(|(index, line)| Some((index, facts(line)?))).collect()
    }

    /// Finishes the trajectory of such a session in the entry of its close.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn finish_closing(
        &self,
        appending: &mut Appending<'_>,
        tree: &Tree,
        state: &mut TreeState,
        index: u32,
        mut facts: SessionFacts,
        ops: &mut Vec<Op>,
        now: &Moment,
    ) -> Option<Seq> {
        // The commit that closes it may have finished it.
        let line = state.line_mut(index).filter(|l| l.finish_due_ms != 0)?;
        let mut active = Active::of(&facts)?;
        let seq = appending.another();
        line.finish_as(&mut active, seq, tree, None, now, ops);
        active.put(&mut facts);
        let prev = std::mem::replace(&mut line.seq, seq);
        ops.extend(state.row_of(tree, index, prev, &facts).map(|row| Op::Upsert(Box::new(row))));
        Some(seq)
    }

    /// The entry of this sequence finished a trajectory: counts it, and tells who follows once it is durable.
    pub(crate) fn told_ready(&self, tree: &Tree, seq: Seq) {
        count(&self.counters.trajectories_finished);
        if let Some(Held::Ready(_, seq)) = self.journal.hold(seq, Held::Ready(tree.root, seq)) {
            self.ready(seq);
        }
    }

    pub(crate) fn ack_trajectories(&self, call: Pending, work: &mut Work) {
        let Call::Ack(ack) = &call.call else { return };
        let wanted: Vec<TrajectoryId> = ack.wanted.iter().filter_map(|w| w.as_ref().ok()).copied().collect();
        if wanted.is_empty() {
            let results = ack.wanted.iter().map(|w| ack_result(w.as_ref().err(), false)).collect();
            let result = Ok(v1::AckTrajectoriesResponse { results }.encode_to_vec());
            return work.answers.push(Answer { ticket: call.ticket, result, after: 0, root: None });
        }
        self.ask(0, Purpose::Ack { call: Box::new(call) }, |id| Effect::Trajectories { id, wanted });
    }

    /// The answer to a Trajectories, in its order. Each is acknowledged by itself, in an entry of its tree; the sessions
    /// may have ended, so no tree need be in memory for that.
    pub fn trajectories_found(&self, id: u64, found: Vec<Option<FoundTrajectory>>, mut now: Moment) {
        let _going = self.world.read();
        let Some(Purpose::Ack { call }) = self.purpose(id) else { return };
        let Call::Ack(ack) = &call.call else { return };
        let mut work = Work::default();
        if let Err(refusal) = self.admit_change() {
            self.refuse(call.ticket, refusal, &mut work);
            return self.finish(&mut work, &mut now);
        }
        let reached = self.reached(&call);
        let mut found = found.into_iter();
        let mut ops: BTreeMap<Uid, (String, Vec<Op>)> = BTreeMap::new();
        let mut results = Vec::with_capacity(ack.wanted.len());
        for wanted in &ack.wanted {
            let id = match wanted {
                Ok(id) => id,
                Err(refusal) => {
                    results.push(ack_result(Some(refusal), false));
                    continue;
                }
            };
            let there = found.next().flatten().filter(|f| f.tenant == *call.tenant.name);
            let there = there.filter(|_| reached.as_ref().is_none_or(|r| r.contains(&id.session)));
            results.push(match there {
                None => ack_result(Some(&trajectory_not_found(*id)), false),
                Some(there) if self.recovery.lock().quarantined.contains(&there.root) => {
                    ack_result(Some(&quarantined(&id.session.to_string())), false)
                }
                Some(there) if there.acknowledged => ack_result(None, true),
                Some(there) => {
                    let op = Op::Ack { session: id.session, number: id.number, ack_ms: now.wall_ms };
                    ops.entry(there.root).or_insert((there.root_session_id, Vec::new())).1.push(op);
                    count(&self.counters.trajectories_acknowledged);
                    ack_result(None, false)
                }
            });
        }
        // What is out of reach may be so by a close that is not durable.
        let mut after = if reached.is_some() { self.journal.last_seq() } else { 0 };
        for (root, (session_id, ops)) in ops {
            let in_memory = call.tenant.directory.get(&session_id).map(|(tree, _)| tree).filter(|t| t.root == root);
            // Else one that carries the entry, no more: nobody looks it up.
            let tree = in_memory.unwrap_or_else(|| Arc::new(self.new_tree(root, call.tenant.clone())));
            let mut state = tree.state.lock();
            after = self.journal.append().push(&tree, ops, Vec::new(), now.mono_ms);
            state.last_seq = after;
        }
        let result = Ok(v1::AckTrajectoriesResponse { results }.encode_to_vec());
        work.answers.push(Answer { ticket: call.ticket, result, after, root: None });
        self.finish(&mut work, &mut now);
    }
}

fn ack_result(refusal: Option<&Refusal>, repeated: bool) -> v1::AckResult {
    v1::AckResult { refusal: refusal.map(Refusal::to_proto), repeated }
}

fn trajectory_not_found(id: TrajectoryId) -> Refusal {
    Refusal::new(Reason::TrajectoryNotFound, format!("no finished trajectory {id} is known")).with("trajectory_id", id)
}

/// What a SetReward comes to.
enum Rewarded {
    /// It was said before, of this turn.
    Before(RewardedTurn),
    /// This turn is to be rewarded.
    Now(u32),
}

fn rewarded(line: &Line, resident: &Resident, reward: &Reward) -> Result<Rewarded, Refusal> {
    let latest = resident.reward.as_deref();
    if let Some((mark, of)) = latest.and_then(|r| r.request.as_ref())
        && repeats(Some(mark), reward.mark.as_ref())?
    {
        return Ok(Rewarded::Before(*of));
    }
    let (id, head, first) = (&line.session_id, line.head, resident.trajectory_turns + 1);
    let turn = if reward.turn == 0 { head } else { reward.turn };
    if turn > head {
        let message = format!("session {id:?} has {head} turns, and no turn {turn}");
        let refusal = Refusal::new(Reason::TurnNotFound, message);
        return Err(refusal.with("session_id", id).with("turn", turn).with("turn_count", head));
    }
    if turn >= first && turn > 0 {
        return Ok(Rewarded::Now(turn));
    }
    let same = |r: &&LatestReward| r.of.turn == turn && r.value.to_bits() == reward.value.to_bits();
    if let Some(latest) = latest.filter(same).filter(|_| turn > 0) {
        return Ok(Rewarded::Before(latest.of));
    }
    if reward.turn == 0 {
        return Err(empty(line, "no committed turn to reward"));
    }
    let message =
        format!("turn {turn} of session {id:?} belongs to a finished trajectory; the active one starts at {first}");
    let refusal = Refusal::new(Reason::TrajectoryFinished, message);
    Err(refusal.with("session_id", id).with("turn", turn).with("trajectory_first_turn", first))
}

impl Resident {
    /// Whether a record may bear this request_id.
    pub(crate) fn has_seen(&self, asked: Asked, mark: Option<&RequestMark>) -> bool {
        mark.is_some_and(|m| self.requests.contains(&fingerprint(asked, &m.request_id)))
    }

    /// A rewind took the turns after this one back: what was said of their rewards is not of those that come now.
    pub(crate) fn forget_rewards_after(&mut self, turn: u32) {
        if let Some(latest) = self.reward.as_mut().filter(|r| r.of.turn > turn) {
            latest.of = RewardedTurn::default();
        }
    }

    fn rewarded(&mut self, turn: u32, value: f64, mark: Option<RequestMark>) {
        let of = RewardedTurn { turn, trajectory: self.trajectories + 1 };
        let before = self.reward.take().and_then(|r| r.request);
        let request = mark.map(|m| (m, of)).or(before);
        self.reward = Some(Box::new(LatestReward { of, value, request }));
    }
}

fn reward_reply(line: &Line, resident: &Resident, of: RewardedTurn, repeated: bool) -> Vec<u8> {
    let finished = of.trajectory <= resident.trajectories;
    let due = (!finished && line.finish_due_ms != 0).then(|| timestamp(line.finish_due_ms));
    v1::SetRewardResponse {
        turn: of.turn,
        trajectory_id: TrajectoryId { session: line.uid, number: of.trajectory }.to_string(),
        finished,
        finish_time: due,
        repeated,
    }
    .encode_to_vec()
}

fn check_finish(line: &Line, resident: &Resident, finish: &Finish, now: &Moment) -> Result<(), Refusal> {
    if let Some(lease) = line.running() {
        return Err(turn_in_progress(line, lease, now));
    }
    if line.last == resident.trajectory_seq {
        return Err(empty(line, "no record"));
    }
    if finish.reward.is_some() && line.head == resident.trajectory_turns {
        return Err(empty(line, "no committed turn to reward"));
    }
    Ok(())
}

fn empty(line: &Line, what: &str) -> Refusal {
    let message = format!("the active trajectory of session {:?} has {what}", line.session_id);
    Refusal::new(Reason::TrajectoryEmpty, message).with("session_id", &line.session_id)
}

/// Which record a turn of the live line is; 0 if there is no such turn.
pub(crate) fn found_turn(turn: u32, loaded: &LoadedSession, metas: &[RecordMeta]) -> Found {
    let committed = v1::RecordStatus::Committed as i32;
    let line = loaded.lines.iter().zip(metas).find(|(l, m)| l.status == committed && m.turn == turn);
    Found::Turn { head_version: loaded.row.head_version, turn, seq: line.map_or(0, |(l, _)| l.seq) }
}

/// The answer to the repeat of a FinishTrajectory; `None` if no event bears its request_id.
pub(crate) fn repeated_finish(
    finish: &Finish,
    loaded: &LoadedSession,
    metas: &[RecordMeta],
) -> Option<Result<Vec<u8>, Refusal>> {
    let events = loaded.lines.iter().zip(metas).filter(|(_, m)| m.ended_by() == EndedBy::Finish);
    for (line, meta) in events {
        match repeats(meta.end_request.as_ref(), finish.mark.as_ref()) {
            Err(refusal) => return Some(Err(refusal)),
            Ok(false) => {}
            Ok(true) => {
                let id = TrajectoryId { session: loaded.row.uid, number: meta.trajectory };
                let trajectory = v1::Trajectory {
                    trajectory_id: id.to_string(),
                    session_id: loaded.row.session_id.clone(),
                    number: meta.trajectory,
                    state: v1::TrajectoryState::Ready as i32,
                    first_turn: meta.trajectory_base + 1,
                    turn_count: meta.turn - meta.trajectory_base,
                    ready_time: Some(timestamp(meta.create_ms)),
                    ready_sequence: line.seq,
                };
                let reply = v1::FinishTrajectoryResponse { trajectory: Some(trajectory), repeated: true };
                return Some(Ok(reply.encode_to_vec()));
            }
        }
    }
    None
}

/// A finished trajectory as callers see it.
fn message(session_id: &str, finished: &Finished) -> v1::Trajectory {
    v1::Trajectory {
        trajectory_id: TrajectoryId { session: finished.session, number: finished.number }.to_string(),
        session_id: session_id.to_owned(),
        number: finished.number,
        state: v1::TrajectoryState::Ready as i32,
        first_turn: finished.first_turn,
        turn_count: finished.turn_count,
        ready_time: Some(timestamp(finished.ready_ms)),
        ready_sequence: finished.ready_seq,
    }
}

/// What finishing the active trajectory needs of a session's facts, and changes.
pub(crate) struct Active {
    chain: [u8; 32],
    /// Trajectories finished so far.
    finished: u32,
    /// Turns on the live line when the last of them was.
    turns: u32,
    /// The event that finished it.
    seq: Seq,
}

impl Active {
    fn of(facts: &SessionFacts) -> Option<Self> {
        let chain = if facts.chain.is_empty() { chain::GENESIS } else { facts.chain[..].try_into().ok()? };
        let (finished, turns, seq) = (facts.trajectories, facts.trajectory_turns, facts.trajectory_seq as u64);
        Some(Active { chain, finished, turns, seq })
    }

    fn put(self, facts: &mut SessionFacts) {
        facts.chain = self.chain.to_vec();
        facts.trajectories = self.finished;
        facts.trajectory_turns = self.turns;
        facts.trajectory_seq = self.seq as i64;
    }

    /// Moves on to the next trajectory; the entry of sequence `seq` holds the event that says so.
    fn advance(&mut self, seq: Seq, line: &mut Line, tree: &Tree, now: &Moment) -> Finished {
        let finished = Finished {
            session: line.uid,
            number: self.finished + 1,
            tenant: tree.tenant.name.clone(),
            root: tree.root,
            ready_seq: seq,
            after_seq: self.seq,
            first_turn: self.turns + 1,
            turn_count: line.head - self.turns,
            ready_ms: now.wall_ms,
        };
        *self = Active { chain: self.chain, finished: finished.number, turns: line.head, seq };
        line.finish_due_ms = 0;
        finished
    }
}

impl Resident {
    fn active(&self) -> Active {
        Active {
            chain: self.chain,
            finished: self.trajectories,
            turns: self.trajectory_turns,
            seq: self.trajectory_seq,
        }
    }

    fn set_active(&mut self, active: Active) {
        self.chain = active.chain;
        self.trajectories = active.finished;
        self.trajectory_turns = active.turns;
        self.trajectory_seq = active.seq;
    }
}

impl Line {
    /// Whether its active trajectory is to finish by now.
    pub(crate) fn is_due(&self, now: &Moment) -> bool {
        self.finish_due_ms != 0 && self.finish_due_ms <= now.wall_ms
    }

    /// Whether it is due and nothing stands against it: no turn that runs or is about to.
    fn may_finish(&self, now: &Moment) -> bool {
        let begins = self.loading.as_ref().is_some_and(|l| l.granted.is_some());
        let stands = self.running().is_some() || begins || self.closed.is_some();
        self.is_due(now) && !stands && self.resident.is_some()
    }

    /// Finishes the active trajectory of a resident session with an event of its own, of sequence `seq`.
    pub(crate) fn finish(
        &mut self,
        seq: Seq,
        tree: &Tree,
        mark: Option<RequestMark>,
        now: &Moment,
        ops: &mut Vec<Op>,
    ) -> Finished {
        let Some(resident) = self.resident.as_mut() else { unreachable!("a trajectory is finished in memory") };
        resident.requests.extend(mark.as_ref().map(|m| fingerprint(Asked::Finish, &m.request_id)));
        let mut active = resident.active();
        let finished = self.finish_as(&mut active, seq, tree, mark, now, ops);
        if let Some(resident) = self.resident.as_mut() {
            resident.set_active(active);
        }
        finished
    }

    /// Finishes the active trajectory with the commit that is in the entry of sequence `seq` and says so.
    pub(crate) fn finish_with_commit(&mut self, seq: Seq, tree: &Tree, now: &Moment, ops: &mut Vec<Op>) {
        let Some(mut active) = self.resident.as_ref().map(|r| r.active()) else { return };
        let finished = active.advance(seq, self, tree, now);
        if let Some(resident) = self.resident.as_mut() {
            resident.set_active(active);
        }
        ops.push(Op::Finish(Box::new(finished)));
    }

    fn finish_as(
        &mut self,
        active: &mut Active,
        seq: Seq,
        tree: &Tree,
        mark: Option<RequestMark>,
        now: &Moment,
        ops: &mut Vec<Op>,
    ) -> Finished {
        if self.provisional != 0 {
            ops.push(Op::Status { seq: self.provisional, status: v1::RecordStatus::Aborted as i32 });
            self.provisional = 0;
        }
        if self.running().is_none() {
            // A late commit would come into another trajectory than its turn.
            self.lease = None;
        }
        let meta = RecordMeta {
            turn: self.head,
            create_ms: now.wall_ms,
            end_request: mark,
            ended_by: EndedBy::Finish as i32,
            trajectory: active.finished + 1,
            trajectory_base: active.turns,
            ..RecordMeta::default()
        }
        .encode_to_vec();
        active.chain = chain::link(&active.chain, &meta);
        ops.push(Op::Append(Box::new(Record {
            seq,
            session: self.uid,
            prev: std::mem::replace(&mut self.last, seq),
            status: chain::FINISHED,
            turn: self.head,
            meta,
            chain: active.chain,
            tokens: None,
            state: None,
            arrays: None,
            content: None,
        })));
        let finished = active.advance(seq, self, tree, now);
        ops.push(Op::Finish(Box::new(finished.clone())));
        finished
    }
}
