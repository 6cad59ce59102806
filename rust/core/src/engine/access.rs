//! What a caller may reach (I17): one table of rules, and the one gate that every call of the engine passes.
//!
//! An admin's and a tenant's calls reach all of their tenant, and the tenant is where every look-up starts. A session's
//! call reaches the session and what descends from it through open edges, the target's own excepted; of the rest of its
//! tree it sees the outline. Whatever it may not reach is answered as if it did not exist. The gate runs whenever a call
//! runs, so that what happened while it was parked counts.

use super::keyring::{Caller, Who, beyond, invalid};
use super::reload::Located;
use super::requests::OpenOptions;
use super::tree::{Line, Tree, TreeState};
use super::{Answer, Call, Engine, Known, Pending, SessionRow, Work, closed, not_found};
use crate::error::Refusal;
use crate::ids::Uid;
use crate::journal::Seq;
use crate::keys::{Kind, SessionRef};
use std::collections::HashSet;
use std::sync::Arc;

/// What a session's key may do with a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nothing: the admin's alone. Of tenants' keys too.
    Admin,
    /// Nothing: it is the whole tenant's.
    Tenant,
    /// Use it on its session and the descendants.
    Inside,
    /// As [`Rule::Inside`]; of the other sessions of its tree it sees the outline.
    Outline,
    /// As [`Rule::Inside`], and make sessions below them.
    Make,
    /// As [`Rule::Inside`], for each thing that the request names by itself.
    Each,
}

impl Rule {
    /// Every method of the API and its rule. A method that is not here is refused to everybody.
    pub const TABLE: &'static [(&'static str, Rule)] = &[
        ("/roost.v1.SessionService/OpenSession", Rule::Make),
        ("/roost.v1.SessionService/GetSession", Rule::Outline),
        ("/roost.v1.SessionService/ListSessions", Rule::Outline),
        ("/roost.v1.SessionService/UpdateSession", Rule::Inside),
        ("/roost.v1.SessionService/ReadHistory", Rule::Inside),
        ("/roost.v1.SessionService/CloseSession", Rule::Inside),
        ("/roost.v1.SessionService/ReopenSession", Rule::Inside),
        ("/roost.v1.SessionService/InterruptSession", Rule::Inside),
        ("/roost.v1.SessionService/WatchSessions", Rule::Inside),
        ("/roost.v1.TurnService/BeginTurn", Rule::Make),
        ("/roost.v1.TurnService/RenewTurns", Rule::Each),
        ("/roost.v1.TurnService/CommitTurn", Rule::Inside),
        ("/roost.v1.TurnService/AbortTurn", Rule::Inside),
        ("/roost.v1.TurnService/GetCheckpoint", Rule::Inside),
        ("/roost.v1.TrajectoryService/SetReward", Rule::Inside),
        ("/roost.v1.TrajectoryService/FinishTrajectory", Rule::Inside),
        ("/roost.v1.TrajectoryService/AckTrajectories", Rule::Each),
        ("/roost.v1.TrajectoryService/ExportTrajectories", Rule::Each),
        ("/roost.v1.TrajectoryService/RestoreSessions", Rule::Tenant),
        ("/roost.v1.TurnService/WatchOwner", Rule::Tenant),
        ("/roost.v1.ResourceService/AttachResource", Rule::Inside),
        ("/roost.v1.ResourceService/DetachResource", Rule::Inside),
        ("/roost.v1.ResourceService/ListResources", Rule::Inside),
        ("/roost.v1.ResourceService/ReconcileInventory", Rule::Tenant),
        ("/roost.v1.MailService/SendMessage", Rule::Outline),
        ("/roost.v1.MailService/WaitMail", Rule::Inside),
        ("/roost.v1.MailService/ListMail", Rule::Inside),
        ("/roost.v1.TurnService/PollTurn", Rule::Each),
        ("/roost.v1.AdminService/GetStats", Rule::Admin),
        ("/roost.v1.AdminService/Sweep", Rule::Admin),
        ("/roost.v1.AdminService/SetLimits", Rule::Admin),
        ("/roost.v1.AdminService/CreateApiKey", Rule::Admin),
        ("/roost.v1.AdminService/RevokeApiKey", Rule::Admin),
        ("/roost.v1.AdminService/ListApiKeys", Rule::Admin),
    ];

    /// Its name, for tests.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Admin => "admin",
            Rule::Tenant => "tenant",
            Rule::Inside => "inside",
            Rule::Outline => "outline",
            Rule::Make => "make",
            Rule::Each => "each",
        }
    }

    /// The rule of a method by its full name.
    pub(crate) fn of(method: &str) -> Option<Rule> {
        Rule::TABLE.iter().find(|(name, _)| *name == method).map(|(_, rule)| *rule)
    }

    /// Whether a key of this kind may use such a method at all.
    pub(crate) fn admits(rule: Option<Rule>, kind: Kind) -> Result<(), Refusal> {
        match rule {
            None => Err(beyond(kind, "call a method that has no rule")),
            Some(Rule::Admin) if kind != Kind::Admin => Err(beyond(kind, "do what AdminService does")),
            Some(Rule::Tenant) if kind == Kind::Session => Err(beyond(kind, "do what concerns its whole tenant")),
            Some(_) => Ok(()),
        }
    }
}

/// For whom a method that the engine does not answer itself is to be answered.
#[derive(Clone, Debug)]
pub struct Granted {
    pub tenant: Arc<str>,
    /// The session whose key it is, if it is one's.
    pub session: Option<Arc<SessionRef>>,
}

/// Where a session stands to the one whose key a call bears.
enum Standing {
    Inside,
    /// Elsewhere in its tree.
    Outline,
    /// Out of its sight.
    Elsewhere,
    /// Never known.
    Absent,
}

impl Who {
    /// Whether an id that the store was asked for is none of the caller's business: all that a session's key reaches is in
    /// memory once its own session is. That such an id cannot be read is not for it to know.
    pub(crate) fn is_beyond(&self, id: &str) -> bool {
        self.session.as_ref().is_some_and(|own| own.session_id != id)
    }

    /// The life that the caller's key is of, if this is its session and that life is over.
    pub(crate) fn past_life(&self, row: &SessionRow) -> Option<u32> {
        let own = self.session.as_ref().filter(|own| own.uid == row.uid && own.life <= row.closes);
        own.map(|own| own.life)
    }

    /// Whether a call may reach the line at `index`.
    pub(crate) fn reaches(&self, state: &TreeState, index: u32) -> bool {
        self.session.as_ref().is_none_or(|own| state.descends(index, own.uid))
    }
}

impl TreeState {
    /// Whether a line is this session's or descends from it; every edge is open but perhaps the line's own.
    fn descends(&self, index: u32, from: Uid) -> bool {
        let mut line = self.line(index);
        while let Some(at) = line {
            if at.uid == from && at.born {
                return true;
            }
            line = at.parent.and_then(|p| self.line(p)).filter(|p| p.is_open());
        }
        false
    }

    /// The line of an open session by its uid.
    pub(crate) fn of_uid(&self, uid: Uid) -> Option<u32> {
        self.iter().find(|(_, line)| line.uid == uid && line.is_open()).map(|(index, _)| index)
    }
}

impl Engine {
    /// Whether a caller may use a method that is answered elsewhere, and as whom. What a session's key reaches is then
    /// looked at there.
    pub fn authorize(&self, method: &str, caller: &Caller<'_>) -> Result<Granted, Refusal> {
        let (tenant, who) = self.keys.authenticate(caller)?;
        Rule::admits(Rule::of(method), who.kind)?;
        Ok(Granted { tenant, session: who.session })
    }

    /// Lets a call pass that may reach what it addresses. Answers or parks it otherwise.
    pub(crate) fn within(&self, call: Pending, work: &mut Work) -> Option<Pending> {
        if let Err(refusal) = self.keys.still_valid(&call.who) {
            self.refuse_whole(call, refusal, 0, work);
            return None;
        }
        let Some(own) = call.who.session.clone() else { return Some(call) };
        let (call, tree, index) = match self.locate(call, &own.session_id, work) {
            Located::Gone => return None,
            Located::Ended(call, past) if past.uid == own.uid && !past.purging => {
                return self.after_its_end(call, &own, 0, work);
            }
            // Purged, or another session has the id by now.
            Located::Absent(call) | Located::Ended(call, _) => {
                self.refuse_whole(call, invalid(), 0, work);
                return None;
            }
            Located::At(call, tree, index) => (call, tree, index),
        };
        let Some(state) = Self::still_at(&tree, index, &own.session_id) else {
            work.calls.push_back(call);
            return None;
        };
        let line = state.line(index).filter(|l| l.born && l.uid == own.uid);
        let after = state.last_seq;
        // A later life has other keys. One that has not come yet is of a store that was set back.
        let line = line.filter(|l| own.life <= l.life());
        let ended = line.map(|l| l.closed.is_some() || own.life < l.life());
        drop(state);
        match ended {
            None => self.refuse_whole(call, invalid(), after, work),
            Some(true) => return self.after_its_end(call, &own, after, work),
            Some(false) => return self.within_tree(call, &own, &tree, work),
        }
        None
    }

    /// A call whose session is open, in this tree.
    fn within_tree(&self, mut call: Pending, own: &SessionRef, tree: &Arc<Tree>, work: &mut Work) -> Option<Pending> {
        let target = call.call.session_id().to_owned();
        if let Call::Interrupt(interrupt) = &call.call {
            // Neither tells whether the target exists.
            let what = if interrupt.force { Some("use force") } else { None };
            let what = what.or_else(|| (target == own.session_id).then_some("interrupt its own session"));
            if let Some(what) = what {
                self.refuse_whole(call, beyond(Kind::Session, what), 0, work);
                return None;
            }
        }
        // Of these each thing is looked at by itself.
        if matches!(call.call, Call::Renew(_) | Call::Ack(_) | Call::Poll(_)) || target == own.session_id {
            return Some(call);
        }
        let parent = call.call.makes().map(|options| options.parent.clone());
        let (back, standing) = self.standing(call, &target, own, tree, work)?;
        call = back;
        let refusal = match (standing, parent) {
            (Standing::Inside, _) => return Some(call),
            (Standing::Outline, None) if matches!(call.call, Call::Get(_)) => {
                call.outline = true;
                return Some(call);
            }
            // To whom it may write is all that it sees.
            (Standing::Outline, None) if matches!(call.call, Call::Send(_)) => return Some(call),
            (_, None) => not_found(&target),
            // A new tree is no descendant: so it is whether the id is taken or not.
            (_, Some(parent)) if parent.is_empty() => beyond(Kind::Session, "make a new tree"),
            (standing, Some(parent)) => {
                let (back, above) = self.standing(call, &parent, own, tree, work)?;
                call = back;
                match (above, standing) {
                    (Standing::Inside, Standing::Absent) => return self.within_source(call, own, tree, work),
                    // Ids are one for a tenant: this is all that shows of a session elsewhere, and not what became of it.
                    (Standing::Inside, _) => super::open::exists(&target),
                    _ => super::open::parent_not_found(&parent),
                }
            }
        };
        // It tells what stands where by now, in whatever tree: not before that is durable (I6).
        self.refuse_whole(call, refusal, self.journal.last_seq(), work);
        None
    }

    /// A call that may make its session: so may it what that is to be a copy of, if of anything.
    fn within_source(&self, call: Pending, own: &SessionRef, tree: &Arc<Tree>, work: &mut Work) -> Option<Pending> {
        let Some(source) = call.call.copies().map(ToOwned::to_owned) else { return Some(call) };
        let (call, standing) = self.standing(call, &source, own, tree, work)?;
        if matches!(standing, Standing::Inside) {
            return Some(call);
        }
        self.refuse_whole(call, not_found(&source), self.journal.last_seq(), work);
        None
    }

    /// Where the session of `id` stands; parks the call where the store must say it.
    fn standing(
        &self,
        call: Pending,
        id: &str,
        own: &SessionRef,
        tree: &Arc<Tree>,
        work: &mut Work,
    ) -> Option<(Pending, Standing)> {
        match self.locate(call, id, work) {
            Located::Gone => None,
            Located::Absent(call) => Some((call.knowing(id, Known::Absent), Standing::Absent)),
            Located::Ended(call, past) => {
                let state = tree.state.lock();
                let standing = match past.parent.and_then(|p| state.of_uid(p)) {
                    Some(above) if state.descends(above, own.uid) => Standing::Inside,
                    Some(_) => Standing::Outline,
                    None => Standing::Elsewhere,
                };
                Some((call.knowing(id, Known::Ended(past)), standing))
            }
            Located::At(call, there, index) => {
                let Some(state) = Self::still_at(&there, index, id) else {
                    work.calls.push_back(call);
                    return None;
                };
                let line = state.line(index)?;
                let standing = if !Arc::ptr_eq(&there, tree) {
                    Standing::Elsewhere
                } else if state.descends(index, own.uid) {
                    Standing::Inside
                } else if line.born && line.parent.and_then(|p| state.line(p)).is_none_or(Line::is_open) {
                    Standing::Outline
                } else {
                    Standing::Elsewhere
                };
                Some((call, standing))
            }
        }
    }

    /// A call whose own session has ended, in the life that its key is of: it learns that, and its CloseSession the
    /// receipt.
    fn after_its_end(&self, call: Pending, own: &SessionRef, after: Seq, work: &mut Work) -> Option<Pending> {
        if matches!(&call.call, Call::Close(close) if close.session_id == own.session_id) {
            self.ask_row(call, &own.session_id, after);
        } else {
            self.refuse_whole(call, closed(&own.session_id), after, work);
        }
        None
    }

    /// Refuses a call, whatever it holds already: what it may reach is asked again whenever it runs again.
    fn refuse_whole(&self, mut call: Pending, refusal: Refusal, after: Seq, work: &mut Work) {
        self.unclaim_call(&mut call, work);
        work.answers.push(Answer { ticket: call.ticket, result: Err(refusal), after, root: None });
    }

    /// Whether a call may reach a session that the store holds and memory does not: one that ended, below one that is
    /// open.
    pub(crate) fn reaches_row(&self, call: &Pending, row: &SessionRow) -> bool {
        if call.who.session.is_none() {
            return true;
        }
        let above = call.tenant.directory.get(&row.parent_session_id);
        above.is_some_and(|(tree, index)| {
            Self::still_at(&tree, index, &row.parent_session_id)
                .is_some_and(|state| state.line(index).is_some_and(Line::is_open) && call.who.reaches(&state, index))
        })
    }

    /// The sessions that a call may reach, if it may not reach all: the open ones.
    pub(crate) fn reached(&self, call: &Pending) -> Option<HashSet<Uid>> {
        let own = call.who.session.as_ref()?;
        let Some((tree, _)) = call.tenant.directory.get(&own.session_id) else { return Some(HashSet::new()) };
        let state = tree.state.lock();
        let inside = state.iter().filter(|(index, line)| line.is_open() && state.descends(*index, own.uid));
        Some(inside.map(|(_, line)| line.uid).collect())
    }
}

impl Call {
    /// What it makes a session with, should there be none.
    fn makes(&self) -> Option<&OpenOptions> {
        match self {
            Call::Open(open) => Some(&open.options),
            Call::Begin(begin) => begin.open.as_ref(),
            _ => None,
        }
    }

    /// The session whose history the one that it makes is to begin with.
    fn copies(&self) -> Option<&str> {
        match self {
            Call::Open(open) => open.fork.as_ref().map(|fork| &*fork.session_id),
            _ => None,
        }
    }
}

impl Pending {
    /// What the store said, kept for whoever looks the id up next: this call, at this very moment.
    fn knowing(mut self, id: &str, known: Known) -> Self {
        self.known.push((id.into(), known));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Method;
    use crate::error::Reason;

    #[test]
    fn every_method_of_the_engine_has_a_rule_i17() {
        for (name, _) in Method::ALL {
            assert!(Rule::of(name).is_some(), "{name} has no rule");
        }
        assert_eq!(Rule::admits(None, Kind::Admin).unwrap_err().reason, Reason::KeyScope);
    }
}
