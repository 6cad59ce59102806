//! A store in memory with the rules of the real one: compare-and-set by `prev`, unique ids and paths, and beside them
//! the invariants that every stored prefix must keep (I2, I4, I7, I8, I13, I16, I21, I23). An append that breaks one is
//! a bug of the engine.

use roost_core::chain::{Line, link};
use roost_core::engine::{FoundSession, HeaderRow, LoadedSession, SessionRow};
use roost_core::ids::Uid;
use roost_core::journal::{Batch, Row, Seq};
use roost_core::proto::store_v1::{Receipt, RecordMeta, RunningGrant, SessionFacts};
use roost_core::proto::v1::{RecordStatus, SessionState, TurnOutcome};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;

pub(crate) const OPEN: i32 = SessionState::Open as i32;
const CLOSED: i32 = SessionState::Closed as i32;
const COMMITTED: i32 = RecordStatus::Committed as i32;
const PROVISIONAL: i32 = RecordStatus::Provisional as i32;

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}
pub(crate) use ensure;

#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) row: Row,
    pub(crate) state: i32,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) grant: Option<RunningGrant>,
    pub(crate) facts: SessionFacts,
    /// The live provisional as the records' statuses tell it.
    live: Option<Seq>,
    /// Checkpoint and client state after each head_version, folded from the records alone.
    pub(crate) folds: Vec<(Vec<u8>, Vec<u8>)>,
    /// Fence of the grant that each BeginTurn request_id became a record of.
    pub(crate) requests: HashMap<String, u64>,
    committed_fences: HashSet<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Rec {
    pub(crate) session: Uid,
    prev: Seq,
    pub(crate) status: i32,
    turn: u32,
    meta: Vec<u8>,
    pub(crate) decoded: RecordMeta,
    chain: [u8; 32],
    tokens: Option<Vec<u8>>,
    state: Option<Vec<u8>>,
    pub(crate) content: Vec<u8>,
}

#[derive(Clone, Default)]
pub(crate) struct Store {
    pub(crate) sessions: HashMap<Uid, Session>,
    ids: HashMap<(String, String), Uid>,
    open_paths: HashMap<(Uid, String), Uid>,
    trees: HashMap<Uid, BTreeSet<Uid>>,
    pub(crate) records: BTreeMap<Seq, Rec>,
    pub(crate) last_seq: Seq,
    running: BTreeSet<Uid>,
    /// Trees that a batch was refused for alone: their turns run on in the store, but not in the engine.
    pub(crate) broken: HashSet<Uid>,
    pub(crate) tenant_cap: usize,
    pub(crate) tree_cap: usize,
}

impl Store {
    pub(crate) fn by_id(&self, tenant: &str, id: &str) -> Option<&Session> {
        self.ids.get(&(tenant.to_owned(), id.to_owned())).map(|uid| &self.sessions[uid])
    }

    pub(crate) fn tree(&self, root: Uid) -> impl Iterator<Item = &Session> {
        self.trees[&root].iter().map(|u| &self.sessions[u])
    }

    /// The records of a session, newest first.
    pub(crate) fn line(&self, session: &Session) -> impl Iterator<Item = (Seq, &Rec)> {
        let mut next = session.row.last;
        std::iter::from_fn(move || {
            let record = self.records.get(&next)?;
            let seq = std::mem::replace(&mut next, record.prev);
            Some((seq, record))
        })
    }

    /// Stores a batch, or says which rule it breaks.
    pub(crate) fn apply(&mut self, batch: &Batch) -> Result<(), String> {
        let mut touched: BTreeSet<Uid> = BTreeSet::new();
        let uids: HashSet<Uid> = batch.sessions.iter().map(|(_, r)| r.uid).collect();
        ensure!(uids.len() == batch.sessions.len(), "a session row twice in a batch");
        let mut closes: HashMap<Uid, _> = HashMap::new();
        for (_, close) in &batch.closes {
            ensure!(closes.insert(close.uid, close).is_none(), "a session is closed twice in a batch");
        }
        // Paths that are left are free before others take them.
        let mut opened = Vec::new();
        for (_, row) in &batch.sessions {
            touched.insert(row.uid);
            self.upsert(row, &mut opened)?;
        }
        for (uid, close) in closes {
            touched.insert(uid);
            let session = self.sessions.get_mut(&uid).ok_or("a close of an unknown session")?;
            let id = &session.row.session_id;
            ensure!(session.row.seq == close.prev, "close of {id}: row is at {}, not {}", session.row.seq, close.prev);
            ensure!(session.state == OPEN && close.state == CLOSED, "close of {id}, which is not open");
            session.row.seq = close.seq;
            (session.row.running, session.row.lease, session.grant, session.row.provisional) = (false, None, None, 0);
            session.state = close.state;
            session.receipt = Some(close.receipt.clone());
            self.open_paths.remove(&(session.row.root, session.row.path.clone()));
            self.running.remove(&uid);
        }
        for uid in opened {
            let session = &self.sessions[&uid];
            if session.state == OPEN {
                let place = (session.row.root, session.row.path.clone());
                ensure!(self.open_paths.insert(place, uid).is_none(), "I16: two open sessions at {}", session.row.path);
            }
        }
        for (_, record) in &batch.records {
            touched.insert(record.session);
            self.append(record)?;
        }
        let mut statuses = HashSet::new();
        for (_, seq, status) in &batch.statuses {
            ensure!(statuses.insert(*seq), "the status of record {seq} is set twice in a batch");
            let record = self.records.get_mut(seq).ok_or("the status of an unknown record")?;
            ensure!(record.status == PROVISIONAL, "record {seq} leaves status {}", record.status);
            record.status = *status;
            touched.insert(record.session);
            let session = self.sessions.get_mut(&record.session).ok_or("a record without a session")?;
            if session.live == Some(*seq) {
                session.live = None;
            }
        }
        self.last_seq = self.last_seq.max(batch.last_seq);
        for uid in &touched {
            self.check_session(*uid).map_err(|e| format!("{}: {e}", self.sessions[uid].row.session_id))?;
        }
        self.check_caps()
    }

    fn upsert(&mut self, row: &Row, opened: &mut Vec<Uid>) -> Result<(), String> {
        let id = &row.session_id;
        let grant = row.lease.as_deref().map(|b| RunningGrant::decode(b).expect("a grant decodes"));
        let facts = SessionFacts::decode(&row.facts[..]).expect("facts decode");
        if row.prev == 0 {
            let key = (row.tenant.to_string(), id.to_string());
            ensure!(self.ids.insert(key, row.uid).is_none(), "I13: {id} is made twice");
            ensure!(!row.path.is_empty(), "{id} has no path");
            let parent_open = row.parent.is_none_or(|p| self.sessions.get(&p).is_some_and(|p| p.row.root == row.root))
                || opened.iter().any(|u| Some(*u) == row.parent);
            ensure!(parent_open || self.broken.contains(&row.root), "{id} is below nothing");
            opened.push(row.uid);
            self.trees.entry(row.root).or_default().insert(row.uid);
            let session = Session {
                row: row.clone(),
                state: OPEN,
                receipt: None,
                grant,
                facts,
                live: None,
                folds: vec![Default::default()],
                requests: HashMap::new(),
                committed_fences: HashSet::new(),
            };
            ensure!(self.sessions.insert(row.uid, session).is_none(), "a uid twice");
        } else {
            let session = self.sessions.get_mut(&row.uid).ok_or_else(|| format!("{id} is changed, not known"))?;
            let old = &session.row;
            ensure!(old.seq == row.prev, "{id}: the row is at {}, not {}", old.seq, row.prev);
            ensure!(session.state == OPEN, "I13: {id} is changed after its end");
            ensure!(row.fence >= old.fence, "{id}: its fence goes back");
            ensure!(row.head >= old.head && row.head_version >= old.head_version, "{id}: its head goes back");
            let path = session.row.path.clone();
            session.row = Row { path, ..row.clone() };
            (session.grant, session.facts) = (grant, facts);
        }
        if row.running {
            self.running.insert(row.uid);
        } else {
            self.running.remove(&row.uid);
        }
        Ok(())
    }

    fn append(&mut self, record: &roost_core::journal::Record) -> Result<(), String> {
        let seq = record.seq;
        let session = self.sessions.get_mut(&record.session).ok_or("a record without a session")?;
        let before = self.records.get(&record.prev);
        ensure!(record.prev == 0 || before.is_some_and(|b| b.session == record.session), "{seq}: follows nothing");
        let prev_chain = before.map_or([0; 32], |b| b.chain);
        ensure!(record.chain == link(&prev_chain, &record.meta), "I23: {seq} breaks the chain");
        let meta = RecordMeta::decode(&record.meta[..]).expect("a meta decodes");
        ensure!(meta.turn == record.turn, "{seq}: two turn numbers");
        if let Some(request) = &meta.begin_request {
            let fence = *session.requests.entry(request.request_id.clone()).or_insert(meta.fence);
            ensure!(
                fence == meta.fence,
                "I21: request {} began the grants {fence} and {}",
                request.request_id,
                meta.fence
            );
        }
        let (tokens, state) = session.folds.last().expect("there is the empty one");
        let length = tokens.len() as u64 / 4;
        ensure!(meta.token_offset <= length, "{seq}: its span starts behind the checkpoint");
        if record.status == COMMITTED {
            ensure!(
                record.turn as usize == session.folds.len(),
                "I4: turn {} after {}",
                record.turn,
                session.folds.len() - 1
            );
            ensure!(meta.head_version == session.folds.len() as u64, "{seq}: head_version {}", meta.head_version);
            ensure!(session.committed_fences.insert(meta.fence), "I21: grant {} is committed twice", meta.fence);
            let (mut tokens, mut state) = (tokens.clone(), state.clone());
            if meta.has_tokens {
                tokens.truncate(meta.token_offset as usize * 4);
                tokens.extend_from_slice(record.tokens.as_deref().unwrap_or_default());
            }
            if let Some(new) = &record.state {
                state.clone_from(new);
            }
            session.folds.push((tokens, state));
        } else {
            ensure!(record.status == PROVISIONAL, "{seq} is born with status {}", record.status);
            session.live = Some(seq);
        }
        let stored = Rec {
            session: record.session,
            prev: record.prev,
            status: record.status,
            turn: record.turn,
            meta: record.meta.clone(),
            decoded: meta,
            chain: record.chain,
            tokens: record.tokens.clone(),
            state: record.state.clone(),
            content: record.content.clone().unwrap_or_default(),
        };
        ensure!(self.records.insert(seq, stored).is_none(), "record {seq} twice");
        Ok(())
    }

    fn check_session(&self, uid: Uid) -> Result<(), String> {
        let s = &self.sessions[&uid];
        let live = s.live.unwrap_or(0);
        ensure!(s.row.provisional == live, "I8: row says provisional {}, records say {live}", s.row.provisional);
        if let Some(record) = self.records.get(&live) {
            ensure!(record.turn == s.row.head + 1, "I8: provisional of turn {} at head {}", record.turn, s.row.head);
        }
        ensure!(s.row.head as usize == s.folds.len() - 1, "I4: head {} of {} commits", s.row.head, s.folds.len() - 1);
        ensure!(s.row.head_version == u64::from(s.row.head), "head_version {}", s.row.head_version);
        let (tokens, _) = s.folds.last().expect("there is the empty one");
        ensure!(s.facts.checkpoint_tokens == tokens.len() as u64 / 4, "I7: {} tokens", s.facts.checkpoint_tokens);
        let last = self.records.get(&s.row.last);
        ensure!(s.row.last == 0 || last.is_some_and(|r| r.session == uid), "its last record is not its own");
        let chain = last.map_or(&[][..], |r| &r.chain[..]);
        ensure!(s.facts.chain == chain, "I23: its facts tell another chain");
        ensure!(!s.row.running || (s.state == OPEN && s.grant.is_some()), "it runs without a grant");
        if let Some(g) = &s.grant {
            ensure!(g.fence == s.row.fence && g.expired != s.row.running, "its grant is not its latest");
            ensure!(g.turn == s.row.head + 1, "a grant of turn {} at head {}", g.turn, s.row.head);
        }
        if s.state != OPEN {
            let open = self.trees[&s.row.root].iter().map(|u| &self.sessions[u]);
            for child in open.filter(|c| c.row.parent == Some(uid)) {
                ensure!(child.state != OPEN, "its child {} outlives it", child.row.session_id);
            }
        }
        Ok(())
    }

    /// I2, of what is durable: order in the journal keeps every cap at every prefix.
    fn check_caps(&self) -> Result<(), String> {
        let (mut tenants, mut trees): (HashMap<&str, usize>, HashMap<Uid, usize>) = Default::default();
        for uid in &self.running {
            let row = &self.sessions[uid].row;
            if self.broken.contains(&row.root) {
                continue;
            }
            *tenants.entry(&row.tenant).or_default() += 1;
            *trees.entry(row.root).or_default() += usize::from(row.depth > 0);
        }
        // Turns of a broken tree run again after a restart, cap or no cap.
        ensure!(
            !self.broken.is_empty() || tenants.values().all(|n| *n <= self.tenant_cap),
            "I2: tenants run {tenants:?}"
        );
        ensure!(trees.values().all(|n| *n < self.tree_cap), "I2: trees run {trees:?}");
        Ok(())
    }

    /// I23 of everything: each chain from its end to its beginning.
    pub(crate) fn verify_all(&self) -> Result<(), String> {
        let mut seen = 0;
        for session in self.sessions.values() {
            let lines = self.lines(session, true);
            seen += lines.len();
            roost_core::engine::verify_history(&lines, session.row.last, &session.row.facts)
                .map_err(|e| format!("I23: {}: {}", session.row.session_id, e.message))?;
        }
        ensure!(seen == self.records.len(), "I23: {seen} records of {} are on a line", self.records.len());
        Ok(())
    }

    // ---- what the engine reads

    fn lines(&self, session: &Session, with_tokens: bool) -> Vec<Line> {
        let line = |(seq, r): (Seq, &Rec)| Line {
            seq,
            prev: r.prev,
            status: r.status,
            turn: r.turn,
            meta: r.meta.clone(),
            chain: r.chain.to_vec(),
            tokens: r.tokens.clone().filter(|_| with_tokens),
        };
        self.line(session).map(line).collect()
    }

    pub(crate) fn running_roots(&self) -> BTreeSet<Uid> {
        self.running.iter().map(|u| self.sessions[u].row.root).collect()
    }

    pub(crate) fn header(&self, root: Uid) -> (String, Vec<HeaderRow>) {
        let Some(tree) = self.trees.get(&root) else { return (String::new(), Vec::new()) };
        let mut open: Vec<&Session> = tree.iter().map(|u| &self.sessions[u]).filter(|s| s.state == OPEN).collect();
        open.sort_by(|a, b| (a.row.depth, &a.row.path).cmp(&(b.row.depth, &b.row.path)));
        let row = |s: &&Session| HeaderRow {
            uid: s.row.uid,
            session_id: s.row.session_id.to_string(),
            parent: s.row.parent,
            path: s.row.path.clone(),
            depth: s.row.depth,
            head: s.row.head,
            head_version: s.row.head_version,
            fence: s.row.fence,
            provisional: s.row.provisional,
            last: s.row.last,
            running: s.row.running,
            lease: s.row.lease.clone(),
            seq: s.row.seq,
        };
        (self.sessions[&root].row.tenant.to_string(), open.iter().map(row).collect())
    }

    pub(crate) fn find(&self, tenant: &str, id: &str) -> Option<FoundSession> {
        let s = self.by_id(tenant, id)?;
        let rows = if s.state == OPEN { self.header(s.row.root).1 } else { Vec::new() };
        Some(FoundSession { uid: s.row.uid, root: s.row.root, state: s.state, rows })
    }

    pub(crate) fn read(&self, tenant: &str, id: &str) -> Option<SessionRow> {
        let s = self.by_id(tenant, id)?;
        let id_of = |uid: Option<Uid>| uid.map(|u| self.sessions[&u].row.session_id.to_string()).unwrap_or_default();
        Some(SessionRow {
            uid: s.row.uid,
            session_id: s.row.session_id.to_string(),
            root: s.row.root,
            parent_session_id: id_of(s.row.parent),
            root_session_id: id_of(Some(s.row.root)),
            path: s.row.path.clone(),
            create_ms: s.row.create_ms,
            state: s.state,
            head: s.row.head,
            head_version: s.row.head_version,
            provisional: s.row.provisional,
            last: s.row.last,
            running: s.row.running,
            lease: s.row.lease.clone(),
            facts: s.row.facts.clone(),
            receipt: s.receipt.as_ref().map(Message::encode_to_vec),
            seq: s.row.seq,
        })
    }

    pub(crate) fn load(&self, uid: Uid, with_tokens: bool) -> Option<LoadedSession> {
        let s = self.sessions.get(&uid)?;
        let row = self.read(&s.row.tenant, &s.row.session_id)?;
        let setter = self.records.get(&(s.facts.state_seq as u64));
        Some(LoadedSession { row, lines: self.lines(s, with_tokens), state: setter.and_then(|r| r.state.clone()) })
    }

    pub(crate) fn committed(meta: &RecordMeta) -> bool {
        meta.outcome == TurnOutcome::Committed as i32 || meta.outcome == TurnOutcome::Completed as i32
    }
}
