//! Watches the sessions of a tenant and plays what it is told: the events of a session must follow from each other, tell
//! of nothing that is not durable, and come to what the store holds.

use super::store::{OPEN, Session, Store, ensure};
use roost_core::engine::{Engine, Filter, Watch};
use roost_core::proto::v1::{self, SessionEventKind as Kind};
use std::collections::{BTreeMap, HashMap};

pub(crate) struct Watcher {
    tenant: String,
    watch: Watch,
    /// By uid.
    lives: HashMap<String, Life>,
    /// How many of each kind.
    pub(crate) seen: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Life {
    open: bool,
    /// Number and attempt of its latest turn, and whether that runs.
    turn: (u32, u32),
    runs: bool,
}

impl Life {
    fn of(session: &Session) -> Self {
        let turn = session.grant.as_ref().map_or((0, 0), |g| (g.turn, g.attempt));
        Life { open: session.state == OPEN, turn, runs: session.row.running }
    }

    /// What the store knows too.
    fn known(&self) -> (bool, Option<(u32, u32)>) {
        (self.open, self.runs.then_some(self.turn))
    }
}

impl Watcher {
    /// From now on; what there is so far is as the store has it.
    pub(crate) fn new(tenant: &str, engine: &Engine, store: &Store) -> Self {
        let of_tenant = store.sessions.iter().filter(|(_, s)| &*s.row.tenant == tenant);
        let lives = of_tenant.map(|(uid, s)| (uid.to_string(), Life::of(s))).collect();
        let watch = engine.watch(tenant, Filter::default(), None);
        Watcher { tenant: tenant.to_owned(), watch, lives, seen: BTreeMap::new() }
    }

    /// Takes what there is.
    pub(crate) fn read(&mut self, engine: &Engine, store: &Store) -> Result<(), String> {
        while engine.watch_look(&mut self.watch) {
            let watched = engine.watch_take(&mut self.watch, 7, 1 << 20);
            ensure!(!watched.lost, "events of {} are missing", self.tenant);
            for told in &watched.events {
                let event = told.to_proto();
                self.play(&event, store).map_err(|e| format!("{e}: {event:?}"))?;
                *self.seen.entry(format!("told {}", event.kind().as_str_name())).or_default() += 1;
            }
        }
        Ok(())
    }

    fn play(&mut self, event: &v1::SessionEvent, store: &Store) -> Result<(), String> {
        let stored = store.by_id(&self.tenant, &event.session_id);
        let stored = stored.filter(|s| s.row.uid.to_string() == event.uid).ok_or("it tells of what is not durable")?;
        let root = &store.sessions[&stored.row.root].row.session_id;
        ensure!(stored.row.path == event.path && **root == *event.root_session_id, "it is elsewhere");
        if event.kind() == Kind::Opened {
            let life = Life { open: true, turn: (0, 0), runs: false };
            ensure!(self.lives.insert(event.uid.clone(), life).is_none(), "it was there before");
            return Ok(());
        }
        let life = self.lives.get_mut(&event.uid).ok_or("it was never opened")?;
        let turn = (event.turn, event.attempt);
        ensure!(life.open != (event.kind() == Kind::Reopened), "it does not follow from {life:?}");
        match event.kind() {
            Kind::TurnBegun => {
                ensure!(!life.runs, "I3: {life:?}");
                (life.turn, life.runs) = (turn, true);
            }
            // Twice where its lease had run out before.
            Kind::TurnEnded => {
                ensure!(life.turn == turn, "it is not its latest turn: {life:?}");
                life.runs = false;
            }
            Kind::Interrupted => ensure!(life.runs && life.turn == turn, "that turn does not run: {life:?}"),
            Kind::Closed => {
                ensure!(!life.runs, "its turn has not ended: {life:?}");
                life.open = false;
            }
            Kind::Reopened => life.open = true,
            _ => {}
        }
        Ok(())
    }

    /// At rest, what was told is what is so.
    pub(crate) fn agrees(&self, store: &Store) -> Result<(), String> {
        for session in store.sessions.values().filter(|s| *s.row.tenant == *self.tenant && !s.restoring) {
            let (told, is) = (self.lives.get(&session.row.uid.to_string()), Life::of(session));
            let same = told.is_some_and(|told| told.known() == is.known());
            ensure!(same, "{} is {is:?}, and was told as {told:?}", session.row.session_id);
        }
        Ok(())
    }
}
