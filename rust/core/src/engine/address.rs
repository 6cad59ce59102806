//! Sessions by path: what may stand for a session id in a request, and whom it leads to.
//!
//! Ids hold no slash. `/root/a` and `./a` are of the tree of the session whose key the call bears, from its root or from
//! that session on; `<id of a root>/root/a` is of any tree. A path is looked up once, when the call first gets so far,
//! among the OPEN sessions of the tree's header; from then on the call is about the session that had it. What leads
//! nowhere and what the caller may not see are answered alike (I17): with the path as it came.

use super::open::parent_not_found;
use super::reload::Located;
use super::tree::{Tenant, Tree, TreeState};
use super::{Call, Engine, Pending, Work, not_found};
use crate::error::Refusal;
use crate::ids::{check_session_id, is_name};
use crate::keys::SessionRef;
use std::sync::Arc;

/// The longest path. Unit: bytes.
const MAX_PATH: usize = 2_048;

/// What a field that names a session holds.
enum Address<'a> {
    Id,
    /// From the root of the caller's own tree: "/root" or "/root/...".
    Own(&'a str),
    /// From the caller's own session: names with "/" between.
    Below(&'a str),
    /// In the tree of the root of this id: "/root" or "/root/...".
    Tree(&'a str, &'a str),
}

impl<'a> Address<'a> {
    fn of(text: &'a str) -> Self {
        match text.find('/') {
            None => Address::Id,
            Some(0) => Address::Own(text),
            // A root whose id is "." can be named by that alone.
            Some(1) if text.starts_with('.') => Address::Below(&text[2..]),
            Some(at) => Address::Tree(&text[..at], &text[at..]),
        }
    }
}

/// A session id, or a path; `own`: the call bears the key of a session.
pub fn check_address(field: &str, text: &str, own: bool) -> Result<(), Refusal> {
    let address = Address::of(text);
    if matches!(address, Address::Id) {
        return check_session_id(field, text);
    }
    if text.len() > MAX_PATH {
        let rule = format!("has {} bytes; a path has at most {MAX_PATH}", text.len());
        return Err(Refusal::field(field, rule).with("size", text.len()).with("limit", MAX_PATH));
    }
    let below = match address {
        Address::Own(path) | Address::Tree(_, path) if path == "/root" => "",
        Address::Own(path) | Address::Tree(_, path) => path
            .strip_prefix("/root/")
            .ok_or_else(|| Refusal::field(field, "a path begins with /root, the path of the root"))?,
        Address::Below(names) => names,
        Address::Id => text,
    };
    let whole = below.is_empty() && !matches!(address, Address::Below(_)) && !text.ends_with('/');
    if !whole && !below.split('/').all(is_name) {
        let rule = "the names of a path match [a-z0-9_][a-z0-9_-]{0,62}, \"root\" stands for the root alone";
        return Err(Refusal::field(field, rule));
    }
    match address {
        Address::Tree(root, _) => check_session_id(field, root),
        _ if own => Ok(()),
        _ => {
            let rule = "only the key of a session says of which tree: name it, as <id of its root>/root/...";
            Err(Refusal::field(field, rule))
        }
    }
}

/// Which field of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Target,
    Parent,
    Source,
    Sender,
}

impl Call {
    fn field(&mut self, field: Field) -> Option<&mut String> {
        match (field, self) {
            (Field::Target, call) => call.target(),
            (Field::Parent, Call::Open(open)) => Some(&mut open.options.parent),
            (Field::Parent, Call::Begin(begin)) => begin.open.as_mut().map(|options| &mut options.parent),
            (Field::Source, Call::Open(open)) => open.fork.as_mut().map(|fork| &mut fork.session_id),
            (Field::Sender, Call::Send(send)) => Some(&mut send.sender_id),
            _ => None,
        }
    }

    /// The first of its fields that holds a path.
    fn path(&mut self) -> Option<(Field, String)> {
        let fields = [Field::Target, Field::Parent, Field::Source, Field::Sender];
        fields.into_iter().find_map(|field| {
            let text = self.field(field)?;
            text.contains('/').then(|| (field, text.clone()))
        })
    }
}

impl Pending {
    /// How the caller named the session of this id.
    pub(crate) fn shown<'a>(&'a self, id: &'a str) -> &'a str {
        self.given.iter().flat_map(|given| given.iter()).find(|(known, _)| known == id).map_or(id, |(_, path)| path)
    }
}

impl TreeState {
    /// The open session that these names lead to, from an open one on.
    fn follow(&self, from: u32, names: &str) -> Option<u32> {
        let open = |index: &u32| self.line(*index).is_some_and(super::Line::is_open);
        names.split('/').filter(|name| !name.is_empty()).try_fold(Some(from).filter(open)?, |at, name| {
            let child =
                |(_, line): &(u32, &super::Line)| line.is_open() && line.parent == Some(at) && *line.name == *name;
            self.iter().find(child).map(|(index, _)| index)
        })
    }

    /// The open session of this path, "/root" or below.
    fn at_path(&self, path: &str) -> Option<u32> {
        self.follow(0, path.strip_prefix("/root")?)
    }
}

impl Engine {
    /// Puts ids in place of the paths in a call. Refuses it where one leads nowhere, parks it where the store must say.
    /// `own`: the session whose key it bears, and its tree.
    pub(crate) fn resolve(
        &self,
        mut call: Pending,
        own: Option<(&SessionRef, &Arc<Tree>)>,
        work: &mut Work,
    ) -> Option<Pending> {
        while let Some((field, path)) = call.call.path() {
            let found = match (own, Address::of(&path)) {
                (Some((own, tree)), address) => {
                    let state = tree.state.lock();
                    if state.dropped {
                        drop(state);
                        work.calls.push_back(call);
                        return None;
                    }
                    let found = in_own_tree(&state, own, &address).map(|line| line.session_id.to_string());
                    // What is hidden and what is not there are told at the same time: when all is durable.
                    found.ok_or_else(|| self.journal.last_seq())
                }
                (None, Address::Tree(root, below)) => match self.locate(call, root, work) {
                    Located::Gone => return None,
                    Located::Absent(back) | Located::Ended(back, _) => {
                        call = back;
                        Err(0)
                    }
                    Located::At(back, tree, index) => {
                        call = back;
                        let Some(state) = Self::still_at(&tree, index, root) else {
                            work.calls.push_back(call);
                            return None;
                        };
                        let line = (index == 0).then(|| state.at_path(below)).flatten().and_then(|i| state.line(i));
                        line.map(|line| line.session_id.to_string()).ok_or(state.last_seq)
                    }
                },
                // Refused before.
                (None, _) => Err(0),
            };
            match found {
                Ok(id) => {
                    if let Some(text) = call.call.field(field) {
                        text.clone_from(&id);
                    }
                    call.given.get_or_insert_default().push((id, path));
                }
                Err(after) => {
                    let refusal = if field == Field::Parent { parent_not_found(&path) } else { not_found(&path) };
                    self.refuse_whole(call, refusal, after, work);
                    return None;
                }
            }
        }
        Some(call)
    }

    /// Where the session is that a call was about which a caller made a moment ago, if it is in memory.
    pub(crate) fn in_memory(&self, tenant: &Tenant, own: Option<&SessionRef>, text: &str) -> Option<(Arc<Tree>, u32)> {
        let directory = &tenant.directory;
        let (tree, index) = match (Address::of(text), own) {
            (Address::Id, _) => return directory.get(text),
            (Address::Tree(root, path), None) => {
                let (tree, _) = directory.get(root)?;
                let index = tree.state.lock().at_path(path)?;
                (tree, index)
            }
            (address, own) => {
                let own = own?;
                let (tree, _) = directory.get(&own.session_id)?;
                let index = {
                    let state = tree.state.lock();
                    let uid = in_own_tree(&state, own, &address)?.uid;
                    state.of_uid(uid)?
                };
                (tree, index)
            }
        };
        Some((tree, index))
    }
}

fn in_own_tree<'a>(state: &'a TreeState, own: &SessionRef, address: &Address<'_>) -> Option<&'a super::Line> {
    let index = match address {
        Address::Own(path) => state.at_path(path),
        Address::Below(names) => state.follow(state.of_uid(own.uid)?, names),
        Address::Tree(root, path) => {
            state.line(0).filter(|line| *line.session_id == **root).and_then(|_| state.at_path(path))
        }
        Address::Id => None,
    };
    state.line(index?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_holds_an_id_or_a_path() {
        let good = ["a", ".", "s:1", "r/root", "r/root/a", "r/root/a/b_-1", ".../root"];
        let own = ["/root", "/root/a", "./a", "./a/b"];
        for text in good {
            assert_eq!(check_address("session_id", text, false), Ok(()), "{text}");
        }
        for text in good.into_iter().chain(own) {
            assert_eq!(check_address("session_id", text, true), Ok(()), "{text}");
        }
        for text in own {
            let refusal = check_address("session_id", text, false).expect_err("it names no tree");
            assert!(refusal.message.contains("<id of its root>/root/"), "{text}: {refusal:?}");
        }
        let long = format!("/root/{}", ["a"; 1_022].join("/"));
        assert_eq!(
            (long.len(), check_address("session_id", &long, true)),
            (2_049, {
                let rule = "has 2049 bytes; a path has at most 2048";
                Err(Refusal::field("session_id", rule).with("size", 2_049).with("limit", 2_048))
            })
        );
        let bad = [
            "",
            "/",
            "//",
            "./",
            "../a",
            ".//a",
            "/root/",
            "/root//a",
            "/root/a/",
            "/rootx",
            "/a",
            "/root/A",
            "/root/-a",
            "/root/root",
            "./root",
            "./a/",
            "r/",
            "r/a",
            "r/root/",
            "r//root",
            "r r/root",
            "r/root/a b",
            "/root/\u{e9}",
            "./..",
            "/root/..",
            "a/b/root",
        ];
        for text in bad {
            let refusal = check_address("session_id", text, true).expect_err(text);
            assert_eq!(refusal.metadata["field"], "session_id", "{text}");
        }
    }
}
