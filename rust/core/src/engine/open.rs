//! Making sessions: OpenSession, and the unborn line that a BeginTurn with `open` waits on.

use super::fork::Forked;
use super::mail::{Post, Sender};
use super::reload::{Located, Wanted, Why};
use super::requests::{Begin, Open, OpenOptions, Update};
use super::tree::{Line, Resident, Tree, TreeState};
use super::{Call, Engine, Found, Moment, Pending, Work, closed, count, not_found};
use crate::error::{Reason, Refusal};
use crate::gen_store::RequestMark;
use crate::gen_v1 as v1;
use crate::ids::{self, Uid};
use crate::journal::{Appending, Op};
use parking_lot::MutexGuard;
use prost::Message;
use std::sync::Arc;

/// Where a new session goes.
pub(crate) struct Site {
    pub(crate) tree: Arc<Tree>,
    pub(crate) parent: Option<u32>,
    /// The parent's uid: indices are used again.
    parent_uid: Option<Uid>,
}

impl Site {
    /// The tree, locked, if it and the parent are still what they were.
    pub(crate) fn enter(&self) -> Option<MutexGuard<'_, TreeState>> {
        let state = self.tree.state.lock();
        let same = match self.parent {
            Some(index) => state.line(index).map(|l| l.uid) == self.parent_uid,
            None => true,
        };
        (same && !state.dropped).then_some(state)
    }
}

impl Engine {
    pub(crate) fn open_session(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Call::Open(open) = &call.call else { return };
        let id = open.session_id.clone();
        match self.locate(call, &id, work) {
            Located::Gone => {}
            Located::Ended(call, ..) => self.refuse_call(call, closed(&id), work),
            Located::At(mut call, tree, index) => {
                if !call.call.only_asks() {
                    // It is not to be made: what it would have begun with is of no use.
                    self.unclaim_call(&mut call, work);
                }
                match Self::still_at(&tree, index, &id) {
                    // It came to be there since the gate was passed.
                    Some(state) if !call.who.reaches(&state, index) => work.calls.push_back(call),
                    Some(state) if call.call.only_asks() && state.line(index).is_some_and(|l| !l.born) => {
                        // A BeginTurn waits to make it: this call would make it before that.
                        drop(state);
                        self.open_new(call, &id, work, now);
                    }
                    Some(mut state) => self.open_existing(call, &tree, &mut state, index, work, now),
                    None => work.calls.push_back(call),
                }
            }
            Located::Absent(call) => self.open_new(call, &id, work, now),
        }
    }

    fn open_existing(
        &self,
        call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let (Call::Open(open), Some(line)) = (&call.call, state.line(index)) else { return };
        if line.closed.is_some() {
            return self.reply(call.ticket, Err(closed(&open.session_id)), tree, state, work);
        }
        if !line.born {
            // A BeginTurn waits to make it, perhaps elsewhere. This call makes it now, where it says; the wait goes on
            // in what it made, at its old place.
            let waiter = self.take_waiter(tree, state, index, work, now);
            self.drop_unborn(tree, state, index, now);
            work.calls.push_back(call);
            if let Some((place, mut waiting)) = waiter.and_then(|w| Some((w.place, w.call?))) {
                waiting.arrival = Some(place.arrival);
                work.calls.push_back(*waiting);
            }
            return;
        }
        let Some(resident) = &line.resident else {
            return self.load(call, tree, state, index, Wanted::default());
        };
        let result = match ids::repeats(resident.open_request.as_deref(), open.mark.as_ref()) {
            Err(refusal) => Err(refusal),
            Ok(repeat) if repeat || open.return_existing => {
                let session = Some(self.line_view(state, index).to_proto());
                self.minted(open.mint_key, tree, line)
                    .map(|session_key| v1::OpenSessionResponse { session, created: false, session_key }.encode_to_vec())
            }
            Ok(_) => Err(exists(&open.session_id)),
        };
        self.reply(call.ticket, result, tree, state, work);
    }

    fn open_new(&self, call: Pending, id: &str, work: &mut Work, now: &mut Moment) {
        let Some((mut call, site)) = self.site(call, work, now) else { return };
        let Some(mut state) = site.enter() else {
            work.calls.push_back(call);
            return;
        };
        let Call::Open(open) = &call.call else { return };
        if let Err(refusal) = self.check_birth(&state, site.parent, &open.options.name) {
            self.unclaim_call(&mut call, work);
            return self.reply(call.ticket, Err(refusal), &site.tree, &state, work);
        }
        if open.fork.is_some() && call.forked().is_none() {
            drop(state);
            return self.ask_fork(call, work);
        }
        if open.validate_only {
            let result = self.may_mint(open.mint_key).map(|()| {
                let path = match site.parent {
                    Some(parent) => state.path(parent) + "/" + &free_name(&state, parent, &open.options.name, id, now),
                    None => "/root".to_owned(),
                };
                let root = state.line(0).map_or(id, |l| &l.session_id);
                let session = Some(preview(open, call.forked().map(|f| &**f), root, path, now));
                v1::OpenSessionResponse { session, ..Default::default() }.encode_to_vec()
            });
            return self.reply(call.ticket, result, &site.tree, &state, work);
        }
        let Some(index) = self.add_unborn(&site, &mut state, id, work) else {
            drop(state);
            work.calls.push_back(call);
            return;
        };
        self.open_unborn(call, &site.tree, &mut state, index, work, now);
    }

    fn open_unborn(
        &self,
        call: Pending,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &mut Moment,
    ) {
        let Pending { ticket, who, call: Call::Open(open), found, claimed, .. } = call else { return };
        let born =
            self.may_mint(open.mint_key).and_then(|()| self.birth(tree, state, index, open.options, open.mark, now));
        if let Err(refusal) = born {
            if let Some(root) = claimed {
                self.unclaim(root, work);
            }
            self.reply(ticket, Err(refusal), tree, state, work);
            return self.drop_unborn(tree, state, index, now);
        }
        let forked = match found {
            Some(Found::Forked(forked)) => Some(Arc::unwrap_or_clone(forked)),
            _ => None,
        };
        if forked.is_some() {
            count(&self.counters.sessions_forked);
        }
        let trigger = open.first_message.as_ref().map(|letter| letter.trigger);
        let own = who.session.as_ref().and_then(|own| state.of_uid(own.uid));
        let from = own.or(state.line(index).and_then(|l| l.parent));
        let begin = |appending: &mut Appending<'_>, line: &mut Line, ops: &mut Vec<Op>| {
            if let Some(forked) = forked {
                forked.put(appending, line, ops);
            }
        };
        let tail = |appending: &mut Appending<'_>, state: &mut TreeState, ops: &mut Vec<Op>| {
            if let Some(letter) = open.first_message {
                let sender = from.map(|from| Sender::at(state, from)).unwrap_or_default();
                self.post(appending.seq, tree, state, index, Post::message(letter, sender, None), ops, now);
            }
        };
        self.append_with(tree, state, index, now, begin, tail);
        self.hold_claim(claimed, state.last_seq, work);
        if let Some(trigger) = trigger {
            self.mail_came(tree, state, index, trigger, work, now);
        }
        let session = Some(self.line_view(state, index).to_proto());
        let Some(line) = state.line(index) else { return };
        let reply = self
            .minted(open.mint_key, tree, line)
            .map(|session_key| v1::OpenSessionResponse { session, created: true, session_key }.encode_to_vec());
        self.reply(ticket, reply, tree, state, work);
        work.evict = true;
    }

    /// The tree in which the new session of this call goes; parks or refuses the call where it cannot be told.
    pub(crate) fn site(&self, call: Pending, work: &mut Work, now: &mut Moment) -> Option<(Pending, Site)> {
        let parent = match &call.call {
            Call::Open(Open { options, .. }) | Call::Begin(Begin { open: Some(options), .. }) => options.parent.clone(),
            _ => return None,
        };
        if parent.is_empty() {
            let uid = Uid::v7(now.wall_ms, now.draw());
            let tree = Arc::new(self.new_tree(uid, call.tenant.clone()));
            return Some((call, Site { tree, parent: None, parent_uid: None }));
        }
        match self.locate(call, &parent, work) {
            Located::Gone => None,
            Located::Absent(call) => {
                self.refuse_call(call, parent_not_found(&parent), work);
                None
            }
            Located::Ended(call, ..) => {
                self.refuse_call(call, closed(&parent), work);
                None
            }
            Located::At(mut call, tree, index) => {
                let Some(state) = Self::still_at(&tree, index, &parent) else {
                    work.calls.push_back(call);
                    return None;
                };
                let line = state.line(index)?;
                let refusal = match (line.closed.is_some(), line.born) {
                    (true, _) => Some(closed(&parent)),
                    (_, false) => Some(parent_not_found(&parent)),
                    _ => None,
                };
                if let Some(refusal) = refusal {
                    self.unclaim_call(&mut call, work);
                    self.reply(call.ticket, Err(refusal), &tree, &state, work);
                    return None;
                }
                let parent_uid = Some(line.uid);
                drop(state);
                Some((call, Site { tree, parent: Some(index), parent_uid }))
            }
        }
    }

    /// Whether a session may be born below `parent`. The caller holds the tree's lock.
    pub(crate) fn check_birth(&self, state: &TreeState, parent: Option<u32>, name: &str) -> Result<(), Refusal> {
        self.check_store_bytes()?;
        let Some(parent_index) = parent else { return Ok(()) };
        let Some(parent) = state.line(parent_index).filter(|l| l.is_open()) else {
            return Err(Refusal::new(Reason::SessionClosed, "the parent session has ended"));
        };
        let (limit, used) = (self.limits.max_depth(), u64::from(parent.depth));
        if used >= limit {
            return Err(Refusal::cap(Reason::TreeDepth, "max_depth", limit, used));
        }
        let (limit, used) = (self.limits.max_sessions_per_tree(), u64::from(state.open));
        if used >= limit {
            return Err(Refusal::cap(Reason::TreeSessions, "max_sessions_per_tree", limit, used));
        }
        if !name.is_empty() && state.name_taken(parent_index, name) {
            return Err(Refusal::new(Reason::PathCollision, "an open sibling has this name").with("name", name));
        }
        Ok(())
    }

    /// Adds the line of a session that is about to be, unknown to everybody but waits. `None` if the id came to be
    /// meanwhile. The tree is locked.
    pub(crate) fn add_unborn(&self, site: &Site, state: &mut TreeState, id: &str, work: &mut Work) -> Option<u32> {
        let session_id: Arc<str> = id.into();
        // The uid is given at birth; the root's is its tree's.
        let mut line = Line::new(site.tree.root, session_id.clone());
        line.born = false;
        line.parent = site.parent;
        line.depth = site.parent.and_then(|p| state.line(p)).map_or(0, |p| p.depth + 1);
        let index = state.add(line);
        if let Ok(calls) = site.tree.tenant.directory.insert(&session_id, &site.tree, index) {
            work.calls.extend(calls);
            if index == 0 {
                self.set_tree_cap(&site.tree);
            }
            return Some(index);
        }
        state.lines[index as usize] = None;
        state.free.push(index);
        None
    }

    /// Takes out a line whose session was not made after all, unless somebody still waits on it.
    pub(crate) fn drop_unborn(&self, tree: &Arc<Tree>, state: &mut TreeState, index: u32, now: &Moment) {
        let Some(line) = state.line(index).filter(|l| !l.born && l.waiter.is_none()) else { return };
        tree.tenant.directory.remove(&line.session_id, tree);
        state.lines[index as usize] = None;
        state.free.push(index);
        if state.lines.iter().all(Option::is_none) {
            self.drop_tree(tree, state, now);
        }
    }

    /// Makes the session of an unborn line, in memory; the caller appends the entry that says so.
    pub(crate) fn birth(
        &self,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        options: OpenOptions,
        mark: Option<RequestMark>,
        now: &mut Moment,
    ) -> Result<(), Refusal> {
        let parent = state.line(index).and_then(|l| l.parent);
        self.check_birth(state, parent, &options.name)?;
        let uid = if parent.is_none() { tree.root } else { Uid::v7(now.wall_ms, now.draw()) };
        let id = state.line(index).map(|l| l.session_id.clone()).unwrap_or_default();
        let name = parent.map_or_else(String::new, |parent| free_name(state, parent, &options.name, &id, now));
        if let Some(line) = state.line_mut(index) {
            line.wakes = options.wakes;
            line.born = true;
            line.uid = uid;
            line.name = name.into();
        }
        state.open += 1;
        state.touch(now);
        if parent.is_none() {
            state.stale_ms = options.stale_timeout_ms;
        }
        self.charge_header(tree, state, now);
        let make = |handle| Resident {
            labels: options.labels,
            stale_timeout_ms: options.stale_timeout_ms,
            open_request: mark.map(Box::new),
            ..Resident::new(handle, now.wall_ms)
        };
        self.admit_resident(tree, state, index, make, now);
        count(&self.counters.sessions_opened);
        Ok(())
    }

    pub(crate) fn update_session(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::Update(Update { session_id, .. }) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, session_id) else {
            work.calls.push_back(call);
            return;
        };
        let Some(line) = state.line_mut(index) else { return };
        let Some(resident) = line.resident.as_mut() else {
            return self.load(call, &tree, &mut state, index, Wanted::default());
        };
        let Call::Update(update) = call.call else { return };
        let result = ids::repeats(resident.update_request.as_deref(), update.mark.as_ref()).and_then(|repeat| {
            let mut labels = resident.labels.clone();
            for (key, value) in update.labels {
                if value.is_empty() {
                    labels.remove(&key);
                } else {
                    labels.insert(key, value);
                }
            }
            if labels.len() > 64 {
                return Err(Refusal::field("labels", format!("would be {}; at most 64 are allowed", labels.len()))
                    .with("size", labels.len())
                    .with("limit", 64));
            }
            Ok((repeat, labels))
        });
        match result {
            Err(refusal) => self.reply(call.ticket, Err(refusal), &tree, &state, work),
            Ok((repeat, labels)) => {
                if !repeat {
                    let stale_timeout_ms = update.stale_timeout_ms.unwrap_or(resident.stale_timeout_ms);
                    let changes = (&labels, stale_timeout_ms) != (&resident.labels, resident.stale_timeout_ms);
                    (resident.labels, resident.stale_timeout_ms) = (labels, stale_timeout_ms);
                    resident.update_request = update.mark.map(Box::new).or(resident.update_request.take());
                    state.touch(now);
                    let root = state.line(index).filter(|l| l.depth == 0).map(|l| l.uid);
                    if let Some((_, stale_ms)) = root.zip(update.stale_timeout_ms) {
                        state.stale_ms = stale_ms;
                    }
                    let (stale_ms, due) = (state.stale_ms, state.stale_due());
                    let moved = root.filter(|_| update.stale_timeout_ms.is_some());
                    let moved = moved.map(|root| Op::Stale { root, stale_ms, due });
                    self.append_with(&tree, &mut state, index, now, |_, _, _| (), |_, _, ops| ops.extend(moved));
                    // Without a change it was a sign of life.
                    if changes {
                        self.tell_updated(&tree, &state, index, now);
                    }
                }
                let session = Some(self.line_view(&state, index).to_proto());
                let reply = v1::UpdateSessionResponse { session }.encode_to_vec();
                self.reply(call.ticket, Ok(reply), &tree, &state, work);
            }
        }
    }

    /// Finds the open session of a call; answers or parks the call otherwise.
    pub(crate) fn locate_open(&self, call: Pending, work: &mut Work) -> Option<(Pending, Arc<Tree>, u32)> {
        let id = call.call.session_id().to_owned();
        let (call, refusal) = match self.locate(call, &id, work) {
            Located::Gone => return None,
            Located::Absent(call) => (call, not_found(&id)),
            Located::Ended(call, past) => {
                if call.may_repeat_finish() {
                    self.ask_records(call, past.uid, Why::Repeat { ended: true }, 0);
                    return None;
                }
                (call, closed(&id))
            }
            Located::At(call, tree, index) => {
                let Some(state) = Self::still_at(&tree, index, &id) else {
                    work.calls.push_back(call);
                    return None;
                };
                let refusal = match state.line(index) {
                    Some(line) if line.closed.is_some() => {
                        if call.may_repeat_finish() {
                            self.ask_records(call, line.uid, Why::Repeat { ended: true }, state.last_seq);
                            return None;
                        }
                        closed(&id)
                    }
                    Some(line) if line.born => {
                        drop(state);
                        return Some((call, tree, index));
                    }
                    _ => not_found(&id),
                };
                self.reply(call.ticket, Err(refusal), &tree, &state, work);
                return None;
            }
        };
        self.refuse(call.ticket, refusal, work);
        None
    }
}

/// The refusal of an id that is in use.
pub(crate) fn exists(session_id: &str) -> Refusal {
    Refusal::new(Reason::SessionExists, format!("there is a session {session_id:?} already"))
        .with("session_id", session_id)
}

pub(crate) fn parent_not_found(parent: &str) -> Refusal {
    Refusal::new(Reason::ParentNotFound, format!("no parent session {parent:?} is known")).with("session_id", parent)
}

/// The name that was asked for; else one made from the id, which gives way until it is free: nobody asked for it.
fn free_name(state: &TreeState, parent: u32, name: &str, session_id: &str, now: &mut Moment) -> String {
    if !name.is_empty() {
        return name.to_owned();
    }
    let made = ids::name_from_id(session_id);
    let mut name = made.clone();
    while state.name_taken(parent, &name) {
        name = format!("{made}-{:06x}", now.draw() & 0xFF_FFFF);
    }
    name
}

/// A session as it would be.
fn preview(open: &Open, forked: Option<&Forked>, root: &str, path: String, now: &Moment) -> v1::Session {
    let turns = forked.map_or(0, |f| f.turns);
    v1::Session {
        session_id: open.session_id.clone(),
        parent_session_id: open.options.parent.clone(),
        root_session_id: root.to_owned(),
        path,
        state: v1::SessionState::Open as i32,
        activity: v1::Activity::Idle as i32,
        last_outcome: v1::TurnOutcome::None as i32,
        residency: v1::Residency::Unloaded as i32,
        turn_count: turns,
        head_version: turns.into(),
        checkpoint_tokens: forked.map_or(0, Forked::tokens),
        labels: open.options.labels.clone(),
        stale_timeout: Some(super::duration(open.options.stale_timeout_ms as u64)),
        create_time: Some(super::timestamp(now.wall_ms)),
        wake_on_completion: open.options.wakes,
        ..v1::Session::default()
    }
}
