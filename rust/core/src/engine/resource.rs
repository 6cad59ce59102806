//! Resources: what sessions have outside. AttachResource, DetachResource, and what becomes of a release.
//!
//! Each attached resource is in memory (`pool.rs`) and a row of the store; the row is deleted when the resource is
//! released, so whoever has a row is owned. What drivers end is asked of them by a handler that looks at the rows
//! that are due; what a host ends it learns from WatchOwner. Lock order: a tree, the journal, this table.

use super::ended::{CHANGED, DONE};
use super::keyring::Who;
use super::pool::{Attached, Caps, Full, LIVE, PLANNED, PoolId, RELEASING, Room, Spot, Table};
use super::reload::Located;
use super::tree::{Tree, TreeState};
use super::{Answer, Call, Engine, Moment, Outcome, Pending, TicketState, Work, count, not_found};
use crate::error::{Quota, Reason, Refusal};
use crate::gen_store::RequestMark;
use crate::gen_v1 as v1;
use crate::ids::{Uid, repeats};
use crate::journal::{Appending, Held, Op, ResourceRow, ResourceUpdate, Seq};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Resources whose idle time is looked at in one tick.
const AT_ONCE: usize = 256;
/// The longest name: that of a DNS label.
const MAX_NAME: usize = 63;
const CLIENT: i32 = v1::ResourceKind::Client as i32;

/// What the server knows of resources when it starts.
#[derive(Clone, Debug)]
pub struct ResourceSetup {
    /// What every name begins with.
    pub prefix: String,
    /// The id of the store, 8 hex characters.
    pub store_id: String,
    /// Which of its starts this is.
    pub epoch: u64,
    /// The kinds (`roost.v1.ResourceKind`) that may be attached.
    pub kinds: Vec<i32>,
}

/// A resource as the store has it.
#[derive(Clone, Debug)]
pub struct StoredResource {
    pub name: String,
    pub session: Uid,
    pub root: Uid,
    pub tenant: String,
    pub session_id: String,
    pub kind: i32,
    pub state: i32,
    pub pool: String,
    pub pool_key: String,
    pub idle_ttl_ms: u64,
    pub attempts: u32,
    pub request: Option<RequestMark>,
}

/// What came of an attempt to release a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseStep {
    /// It has ended, or was there no more.
    Released,
    /// It could not be ended, for this reason; it is tried again after this time.
    Failed { error: String, retry_ms: u64 },
}

/// A change of a resource that is durable, or was lost.
#[derive(Clone, Debug)]
pub(crate) enum ResourceChange {
    Made(Arc<str>),
    /// It is to be released.
    Releasing(Arc<str>),
    /// One that is to be released is due again.
    Due,
    Gone(Arc<str>),
}

#[derive(Debug)]
pub(crate) struct AttachCall {
    pub(crate) session_id: String,
    pub(crate) mark: Option<RequestMark>,
    /// To confirm: which.
    pub(crate) name: Option<String>,
    pub(crate) kind: i32,
    pub(crate) owner: String,
    pub(crate) handle: String,
    pub(crate) pool: Option<PoolWish>,
    pub(crate) wait_ms: u64,
}

/// The place that a call wants.
#[derive(Debug)]
pub(crate) struct PoolWish {
    pub(crate) name: String,
    pub(crate) key: String,
    pub(crate) caps: Caps,
    pub(crate) ttl_ms: u64,
}

#[derive(Debug)]
pub(crate) struct DetachCall {
    pub(crate) session_id: String,
    pub(crate) name: String,
}

#[derive(Debug)]
pub(crate) struct ReleaseCall {
    name: String,
    step: ReleaseStep,
}

/// What an attach comes to.
enum Attaching {
    /// Its answer, and the sequence that this waits for.
    Done(v1::AttachResourceResponse, Seq),
    /// There is no place, and somebody is being released; who waits had been woken so often.
    Waits(u64),
}

pub(crate) struct Resources {
    setup: RwLock<ResourceSetup>,
    table: Mutex<Table>,
    /// How many are attached: without any nobody looks further.
    count: AtomicU64,
    /// Names given out since the start.
    names: AtomicU64,
    /// Grows when a resource came to be due for its release.
    pub(crate) releases: AtomicU64,
}

impl Default for Resources {
    fn default() -> Self {
        let setup = ResourceSetup {
            prefix: "roost".into(),
            store_id: "00000000".into(),
            epoch: 1,
            kinds: (1..=v1::ResourceKind::Tmux as i32).collect(),
        };
        Resources {
            setup: RwLock::new(setup),
            table: Mutex::default(),
            count: AtomicU64::new(0),
            names: AtomicU64::new(0),
            releases: AtomicU64::new(0),
        }
    }
}

impl Resources {
    fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Resources of a session that a close of it would have to release.
    pub(crate) fn left(&self, session: Uid) -> u32 {
        if self.any() { self.table.lock().left(session) as u32 } else { 0 }
    }

    /// A turn of a session has begun or ended.
    /// How many are attached.
    pub(crate) fn attached(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn turn(&self, session: Uid, running: bool, now: &Moment) {
        if self.any() {
            self.table.lock().turn(session, running, now.mono_ms);
        }
    }

    /// The close of these sessions is durable.
    pub(crate) fn sealed(&self, sessions: &[Uid], now: &Moment) {
        if !self.any() {
            return;
        }
        let mut table = self.table.lock();
        let due = sessions.iter().filter(|uid| table.sealed(**uid, now.mono_ms)).count();
        if due > 0 {
            self.releases.fetch_add(1, Ordering::Release);
        }
    }

    /// Recounts, for tests; how many calls wait in pools.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let table = self.table.lock();
        let counted = self.count.load(Ordering::Relaxed);
        if counted != table.len() as u64 {
            return Err(format!("{counted} resources counted, {} attached", table.len()));
        }
        table.check()
    }

    /// Whether a turn of a session with resources runs, as they are told. For tests.
    pub(crate) fn runs(&self, session: Uid) -> Option<bool> {
        self.table.lock().runs(session)
    }

    pub(crate) fn stats(&self) -> [(&'static str, i64); 3] {
        let table = self.table.lock();
        [
            ("resources", table.len() as i64),
            ("resources_releasing", table.releasing() as i64),
            ("pool_waiting", table.waiting() as i64),
        ]
    }
}

impl Engine {
    /// Says what names are made of and what may be attached, and brings in what is. Before anything else.
    pub fn set_resources(&self, setup: ResourceSetup, rows: Vec<StoredResource>, now: &Moment) {
        *self.resources.setup.write() = setup;
        let mut table = self.resources.table.lock();
        for row in rows {
            let tenant = self.tenant(&row.tenant);
            let spot = (!row.pool.is_empty()).then(|| Spot {
                pool: (tenant.name.clone(), row.pool.as_str().into()),
                key: row.pool_key.into(),
                ttl_ms: row.idle_ttl_ms,
            });
            let attached = Attached {
                session: row.session,
                session_id: row.session_id.into(),
                root: row.root,
                tenant,
                kind: row.kind,
                state: row.state,
                before: row.state,
                spot,
                mark: row.request,
                attempts: row.attempts,
                stored: true,
                ending: false,
                seq: 0,
                since_ms: now.mono_ms,
                look_ms: 0,
            };
            table.insert(row.name.into(), attached, false, now.mono_ms);
        }
        self.resources.count.store(table.len() as u64, Ordering::Release);
    }

    /// Grows whenever a resource came to be due for its release: who releases, and who watches, looks again.
    pub fn releases_count(&self) -> u64 {
        self.resources.releases.load(Ordering::Acquire)
    }

    /// Journals what came of an attempt to release a resource. The reply is "done", or "changed" where it is not one to
    /// be released any more.
    pub fn resource_step(&self, name: &str, step: ReleaseStep, now: Moment) -> Outcome {
        let tenant = self.resources.table.lock().get(name).map(|a| a.tenant.name.clone());
        let Some(tenant) = tenant else { return Outcome::Reply(CHANGED.to_vec()) };
        let call = Call::Release(Box::new(ReleaseCall { name: name.to_owned(), step }));
        self.start(call, &tenant, Who::ADMIN, 0, now)
    }

    pub(crate) fn attach_resource(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Some((call, tree, index)) = self.locate_open(call, work) else { return };
        let Call::Attach(attach) = &call.call else { return };
        let Some(mut state) = Self::still_at(&tree, index, &attach.session_id) else {
            return work.calls.push_back(call);
        };
        let after = state.last_seq;
        match self.attach_at(&call, attach, &tree, &mut state, index, work, now) {
            Ok(Attaching::Done(reply, seq)) => {
                let answer = Ok(reply.encode_to_vec());
                work.answers.push(Answer { ticket: call.ticket, result: answer, after: seq, root: Some(tree.root) });
            }
            Err(refusal) => {
                work.answers.push(Answer { ticket: call.ticket, result: Err(refusal), after, root: Some(tree.root) });
            }
            Ok(Attaching::Waits(wakes)) => {
                drop(state);
                self.wait_for_place(call, wakes, work, now);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn attach_at(
        &self,
        call: &Pending,
        attach: &AttachCall,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        index: u32,
        work: &mut Work,
        now: &Moment,
    ) -> Result<Attaching, Refusal> {
        let Some(line) = state.line(index) else { return Err(not_found(&attach.session_id)) };
        let (uid, session_id, running) = (line.uid, line.session_id.clone(), line.running().is_some());
        let appending = self.journal.append();
        let mut table = self.resources.table.lock();
        if let Some(name) = &attach.name {
            return self.confirm(attach, name, uid, appending, &mut table, tree, state, now);
        }
        if let Some((name, made)) = attach.mark.as_ref().and_then(|mark| table.made_by(uid, mark)) {
            repeats(made.mark.as_ref(), attach.mark.as_ref())?;
            if made.state == RELEASING {
                return Err(releasing(name));
            }
            let reply = v1::AttachResourceResponse { name: name.to_string(), state: made.state, created: false };
            return Ok(Attaching::Done(reply, state.last_seq.max(made.seq)));
        }
        self.check_room(&table, uid)?;
        let setup = self.resources.setup.read();
        if !setup.kinds.contains(&attach.kind) {
            let kind = v1::ResourceKind::try_from(attach.kind).map_or("", |k| k.as_str_name());
            let message = format!("the server has no driver for {kind}");
            return Err(Refusal::new(Reason::DriverOff, message).with("kind", kind));
        }
        let id = attach.pool.as_ref().map(|p| (tree.tenant.name.clone(), Arc::from(p.name.as_str())));
        if let (Some(wish), Some(id)) = (&attach.pool, &id) {
            let room = table.room(id, &wish.key, wish.caps, now.mono_ms, self.limits.release_timeout_ms());
            let waited_ms = now.mono_ms.saturating_sub(call.since_ms);
            match room {
                Room::Yes => {}
                Room::No(full) => return Err(self.pool_full(call, wish, full, state, waited_ms)),
                Room::Later { full, .. } if waited_ms >= attach.wait_ms => {
                    return Err(self.pool_full(call, wish, full, state, waited_ms).retry_after(1_000));
                }
                Room::Later { victim, .. } => {
                    if let Some(victim) = victim {
                        count(&self.counters.pool_evictions);
                        self.release(&victim, appending, &mut table, work, now);
                    }
                    return Ok(Attaching::Waits(table.wakes()));
                }
            }
        }
        let n = self.resources.names.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("{}-{}-{}-{:032x}-{n}", setup.prefix, setup.store_id, setup.epoch, uid.0);
        if name.len() > MAX_NAME {
            let message =
                format!("the name would have {} characters of {MAX_NAME}: choose a shorter prefix", name.len());
            return Err(Refusal::new(Reason::ResourceLimit, message).with("size", name.len()));
        }
        let name: Arc<str> = name.into();
        let (pool, pool_key, ttl_ms) = match &attach.pool {
            Some(wish) => (wish.name.clone(), wish.key.clone(), wish.ttl_ms),
            None => Default::default(),
        };
        let spot = id.map(|pool| Spot { pool, key: pool_key.as_str().into(), ttl_ms });
        let row = ResourceRow {
            name: name.clone(),
            session: uid,
            root: tree.root,
            tenant: tree.tenant.name.clone(),
            kind: attach.kind,
            state: PLANNED,
            owner: attach.owner.clone(),
            handle: attach.handle.clone(),
            pool,
            pool_key,
            idle_ttl_ms: ttl_ms,
            create_ms: now.wall_ms,
            request: attach.mark.as_ref().map(Message::encode_to_vec),
        };
        let seq = appending.push(tree, vec![Op::Resource(Box::new(row))], Vec::new(), now.mono_ms);
        state.last_seq = seq;
        let attached = Attached {
            session: uid,
            session_id,
            root: tree.root,
            tenant: tree.tenant.clone(),
            kind: attach.kind,
            state: PLANNED,
            before: PLANNED,
            spot,
            mark: attach.mark.clone(),
            attempts: 0,
            stored: false,
            ending: false,
            seq,
            since_ms: 0,
            look_ms: 0,
        };
        table.insert(name.clone(), attached, running, now.mono_ms);
        self.resources.count.store(table.len() as u64, Ordering::Release);
        count(&self.counters.resources_attached);
        self.hold_resource(tree.root, seq, ResourceChange::Made(name.clone()), work);
        let reply = v1::AttachResourceResponse { name: name.to_string(), state: PLANNED, created: true };
        Ok(Attaching::Done(reply, seq))
    }

    /// Its host says that it is there.
    #[allow(clippy::too_many_arguments)]
    fn confirm(
        &self,
        attach: &AttachCall,
        name: &str,
        uid: Uid,
        appending: Appending<'_>,
        table: &mut Table,
        tree: &Arc<Tree>,
        state: &mut TreeState,
        now: &Moment,
    ) -> Result<Attaching, Refusal> {
        let unknown = || resource_not_found(name);
        let attached = table.get_mut(name).filter(|a| a.session == uid && !a.ending).ok_or_else(unknown)?;
        if attached.state == RELEASING {
            return Err(releasing(name));
        }
        let update = ResourceUpdate {
            name: name.into(),
            state: LIVE,
            handle: (!attach.handle.is_empty()).then(|| attach.handle.clone()),
            due: 0,
            attempts: 0,
            error: String::new(),
        };
        let seq = appending.push(tree, vec![Op::ResourceUpdate(Box::new(update))], Vec::new(), now.mono_ms);
        state.last_seq = seq;
        (attached.state, attached.before, attached.seq) = (LIVE, LIVE, seq);
        let reply = v1::AttachResourceResponse { name: name.to_owned(), state: LIVE, created: false };
        Ok(Attaching::Done(reply, seq))
    }

    /// Whether one more may be attached at all.
    fn check_room(&self, table: &Table, uid: Uid) -> Result<(), Refusal> {
        let caps = [
            ("max_resources", self.limits.max_resources(), table.len()),
            ("max_resources_per_session", self.limits.max_resources_per_session(), table.left(uid)),
        ];
        let full = caps.into_iter().find(|(_, limit, used)| *used as u64 >= *limit);
        full.map_or(Ok(()), |(name, limit, used)| Err(Refusal::cap(Reason::ResourceLimit, name, limit, used as u64)))
    }

    fn pool_full(&self, call: &Pending, wish: &PoolWish, full: Full, state: &TreeState, waited_ms: u64) -> Refusal {
        let Full { limit_name, limit, used, holders } = full;
        // A session's key sees those that it reaches (I17).
        let seen = |uid: &Uid| {
            call.who.session.is_none() || state.iter().any(|(i, line)| line.uid == *uid && call.who.reaches(state, i))
        };
        let holders = holders.into_iter().filter(|(uid, ..)| seen(uid));
        let holders = holders.take(8).map(|(_, id, ms)| (id.to_string(), ms)).collect();
        let message = format!("{used} resources are in pool {:?}; {limit_name} is {limit}", wish.name);
        let refusal = Refusal::new(Reason::PoolFull, message).with("pool", &wish.name).with("waited_ms", waited_ms);
        refusal.quota(Quota { limit_name, limit, used, holders })
    }

    /// Parks a call until a place of its pool may be free; `wakes` as it was when there was none.
    fn wait_for_place(&self, call: Pending, wakes: u64, work: &mut Work, now: &Moment) {
        let Call::Attach(attach) = &call.call else { return };
        let Some(wish) = &attach.pool else { return work.calls.push_back(call) };
        if let Err(refusal) = self.enter_wait(call.connection) {
            return self.refuse(call.ticket, refusal, work);
        }
        let id: PoolId = (call.tenant.name.clone(), wish.name.as_str().into());
        let deadline_ms = call.since_ms.saturating_add(attach.wait_ms);
        let look_ms = deadline_ms.min(now.mono_ms + self.limits.release_timeout_ms());
        if let Some(ticket) = self.tickets.lock().get_mut(&call.ticket) {
            *ticket = TicketState::Pooled;
        }
        let ticket = call.ticket;
        let back = self.resources.table.lock().park(id, call, look_ms, wakes);
        if let Some(call) = back {
            return self.resume(vec![call], work);
        }
        if !self.tickets.lock().contains_key(&ticket) {
            // Cancelled in between.
            self.leave_pool(ticket);
        }
    }

    /// The caller of a call that waits for a place is gone.
    pub(crate) fn leave_pool(&self, ticket: u64) {
        let gone = self.resources.table.lock().take_waiters(|call| call.ticket == ticket);
        self.left_wait(&gone);
    }

    /// Calls that waited for a place are to be looked at again.
    fn resume(&self, calls: Vec<Pending>, work: &mut Work) {
        self.left_wait(&calls);
        work.calls.extend(calls);
    }

    fn left_wait(&self, calls: &[Pending]) {
        for call in calls {
            self.leave_wait(call.connection);
            if let Some(ticket) = self.tickets.lock().get_mut(&call.ticket) {
                *ticket = TicketState::Open;
            }
        }
    }

    /// Sessions have ended, or the server stops: the calls that this is about run again and learn it.
    pub(crate) fn wake_pools(&self, wanted: impl Fn(&Pending) -> bool, work: &mut Work) {
        if !self.resources.any() {
            return;
        }
        let calls = self.resources.table.lock().take_waiters(wanted);
        self.resume(calls, work);
    }

    /// Releases what has been idle for too long, and looks at who waits.
    pub(crate) fn look_at_pools(&self, work: &mut Work, now: &Moment) {
        if !self.resources.any() {
            return;
        }
        let calls = self.resources.table.lock().due_waiters(now.mono_ms);
        self.resume(calls, work);
        if self.admit_change().is_err() {
            return;
        }
        let expired = self.resources.table.lock().expired(now.mono_ms, AT_ONCE);
        for name in expired {
            let appending = self.journal.append();
            let mut table = self.resources.table.lock();
            count(&self.counters.pool_evictions);
            self.release(&name, appending, &mut table, work, now);
        }
    }

    /// Has a resource of an open session released, whatever its session does.
    fn release(&self, name: &str, appending: Appending<'_>, table: &mut Table, work: &mut Work, now: &Moment) {
        let Some(attached) = table.get_mut(name) else { return };
        attached.attempts = 0;
        let (of, again) = ((attached.root, attached.tenant.clone()), attached.state == RELEASING);
        let root = of.0;
        table.begin_release(name, now.mono_ms);
        let name: Arc<str> = name.into();
        let update = ResourceUpdate {
            name: name.clone(),
            state: RELEASING,
            handle: None,
            due: now.wall_ms.max(1),
            attempts: 0,
            error: String::new(),
        };
        let seq = self.append_apart(appending, of, vec![Op::ResourceUpdate(Box::new(update))], now);
        if let Some(attached) = table.get_mut(&name) {
            attached.seq = seq;
        }
        let change = if again { ResourceChange::Due } else { ResourceChange::Releasing(name) };
        self.hold_resource(root, seq, change, work);
    }

    pub(crate) fn detach_resource(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let id = call.call.session_id().to_owned();
        let (call, uid, after, over) = match self.locate(call, &id, work) {
            Located::Gone => return,
            Located::Absent(call) => return self.refuse(call.ticket, not_found(&id), work),
            Located::Ended(call, past) => (call, past.uid, 0, true),
            Located::At(call, tree, index) => {
                let Some(state) = Self::still_at(&tree, index, &id) else {
                    return work.calls.push_back(call);
                };
                let Some(line) = state.line(index).filter(|l| l.born) else {
                    return self.refuse(call.ticket, not_found(&id), work);
                };
                (call, line.uid, state.last_seq, line.closed.is_some())
            }
        };
        let Call::Detach(detach) = &call.call else { return };
        let name: Arc<str> = detach.name.as_str().into();
        let appending = self.journal.append();
        let mut table = self.resources.table.lock();
        let (mut seq, mut root) = (after, None);
        let released = match table.get(&name).filter(|a| a.session == uid) {
            None if is_name_of(&name, uid) => true,
            None => {
                drop(table);
                return self.refuse(call.ticket, resource_not_found(&name), work);
            }
            Some(a) if a.ending => {
                (seq, root) = (seq.max(a.seq), Some(a.root));
                true
            }
            Some(a) if a.kind == CLIENT => {
                root = Some(a.root);
                seq = seq.max(self.forget_resource(&name, appending, &mut table, work, now));
                true
            }
            Some(a) => {
                root = Some(a.root);
                // Of a session that has ended it is released by and by; one that failed is tried again now.
                if (a.state != RELEASING && !over) || (a.state == RELEASING && a.attempts > 0) {
                    self.release(&name, appending, &mut table, work, now);
                    seq = seq.max(table.get(&name).map_or(0, |a| a.seq));
                } else {
                    seq = seq.max(a.seq);
                }
                false
            }
        };
        drop(table);
        let result = Ok(v1::DetachResourceResponse { released }.encode_to_vec());
        work.answers.push(Answer { ticket: call.ticket, result, after: seq, root });
    }

    /// Deletes the row of a resource. The last one of a SEALED session lets that go on.
    fn forget_resource(
        &self,
        name: &str,
        appending: Appending<'_>,
        table: &mut Table,
        work: &mut Work,
        now: &Moment,
    ) -> Seq {
        let Some(attached) = table.get_mut(name) else { return 0 };
        attached.ending = true;
        let (root, session, tenant) = (attached.root, attached.session, attached.tenant.clone());
        let name: Arc<str> = name.into();
        let mut ops = vec![Op::ResourceGone { name: name.clone() }];
        if table.left(session) == 0 {
            ops.push(Op::CleanupDue { session, due: now.wall_ms.max(1) });
        }
        let seq = self.append_apart(appending, (root, tenant), ops, now);
        if let Some(attached) = table.get_mut(&name) {
            attached.seq = seq;
        }
        count(&self.counters.resources_released);
        self.hold_resource(root, seq, ResourceChange::Gone(name), work);
        seq
    }

    pub(crate) fn release_step(&self, call: Pending, work: &mut Work, now: &Moment) {
        let Call::Release(release) = &call.call else { return };
        let appending = self.journal.append();
        let mut table = self.resources.table.lock();
        let due = table.get(&release.name).filter(|a| a.state == RELEASING && !a.ending && a.stored);
        let Some((root, tenant)) = due.map(|a| (a.root, a.tenant.clone())) else {
            let result = Ok(CHANGED.to_vec());
            return work.answers.push(Answer { ticket: call.ticket, result, after: 0, root: None });
        };
        let seq = match &release.step {
            ReleaseStep::Released => self.forget_resource(&release.name, appending, &mut table, work, now),
            ReleaseStep::Failed { error, retry_ms } => {
                count(&self.counters.releases_failed);
                let Some(attached) = table.get_mut(&release.name) else { return };
                attached.attempts = attached.attempts.saturating_add(1);
                let update = ResourceUpdate {
                    name: release.name.as_str().into(),
                    state: RELEASING,
                    handle: None,
                    due: now.wall_ms.saturating_add(*retry_ms as i64).max(1),
                    attempts: attached.attempts,
                    error: error.chars().take(500).collect(),
                };
                self.append_apart(appending, (root, tenant), vec![Op::ResourceUpdate(Box::new(update))], now)
            }
        };
        work.answers.push(Answer { ticket: call.ticket, result: Ok(DONE.to_vec()), after: seq, root: Some(root) });
    }

    fn hold_resource(&self, root: Uid, seq: Seq, change: ResourceChange, work: &mut Work) {
        if let Some(Held::Resource(_, change)) = self.journal.hold(seq, Held::Resource(root, change)) {
            // The writer was faster. The table is locked now.
            work.resources.push(change);
        }
    }

    /// By this entry the resources of a session are due.
    pub(crate) fn hold_due(&self, root: Uid, seq: Seq, work: &mut Work) {
        self.hold_resource(root, seq, ResourceChange::Due, work);
    }

    /// A change of a resource is durable.
    pub(crate) fn resource_changed(&self, change: ResourceChange, work: &mut Work) {
        let mut table = self.resources.table.lock();
        match change {
            ResourceChange::Made(name) => {
                if let Some(attached) = table.get_mut(&name) {
                    attached.stored = true;
                }
            }
            ResourceChange::Releasing(_) | ResourceChange::Due => {
                self.resources.releases.fetch_add(1, Ordering::Release);
            }
            ResourceChange::Gone(name) => {
                let calls = table.remove(&name);
                self.resources.count.store(table.len() as u64, Ordering::Release);
                drop(table);
                self.resume(calls, work);
            }
        }
    }

    /// A change of a resource was lost: nothing of it happened.
    pub(crate) fn resource_lost(&self, change: ResourceChange, work: &mut Work, now: &Moment) {
        let mut table = self.resources.table.lock();
        match change {
            ResourceChange::Made(name) => {
                let calls = table.remove(&name);
                self.resources.count.store(table.len() as u64, Ordering::Release);
                drop(table);
                self.resume(calls, work);
            }
            ResourceChange::Releasing(name) => table.release_lost(&name, now.mono_ms),
            ResourceChange::Due => {}
            ResourceChange::Gone(name) => {
                if let Some(attached) = table.get_mut(&name) {
                    attached.ending = false;
                }
            }
        }
    }
}

/// Whether a name is one that a session with this uid may have had.
fn is_name_of(name: &str, uid: Uid) -> bool {
    let mut fields = name.rsplit('-');
    let n = fields.next().is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > 0));
    n && fields.next() == Some(&format!("{:032x}", uid.0)) && name.len() <= MAX_NAME
}

fn resource_not_found(name: &str) -> Refusal {
    Refusal::new(Reason::ResourceNotFound, format!("the session has no resource {name:?}")).with("name", name)
}

fn releasing(name: &str) -> Refusal {
    Refusal::new(Reason::ResourceReleasing, format!("resource {name:?} is to end")).with("name", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;

    // Between its refusal and its parking the place may have come free: who would wake it has been there then.
    #[test]
    fn who_parks_too_late_runs_again() {
        let now = Moment::new(1, 1, [0; 32]);
        let engine = Engine::new(Limits::default(), 0, 1);
        let tenant = engine.tenant("t");
        let id: PoolId = (tenant.name.clone(), "p".into());
        let call = |ticket| engine.pending(ticket, tenant.clone(), 0, Call::Get("s".into()), &now);
        let attached = Attached {
            session: Uid(1),
            session_id: "s".into(),
            root: Uid(1),
            tenant: tenant.clone(),
            kind: CLIENT,
            state: RELEASING,
            before: LIVE,
            spot: Some(Spot { pool: id.clone(), key: "".into(), ttl_ms: 0 }),
            mark: None,
            attempts: 0,
            stored: true,
            ending: true,
            seq: 1,
            since_ms: 0,
            look_ms: 0,
        };
        let mut table = engine.resources.table.lock();
        table.insert("r".into(), attached, false, 0);
        let refused = table.wakes();
        assert!(table.park(id.clone(), call(1), 10, refused).is_none());
        assert_eq!(table.remove("r").len(), 1);
        assert!(table.park(id.clone(), call(2), 10, refused).is_some());
        let refused = table.wakes();
        assert!(table.take_waiters(|_| true).is_empty());
        assert!(table.park(id, call(3), 10, refused).is_some());
        assert_eq!(table.check(), Ok(0));
    }
}
