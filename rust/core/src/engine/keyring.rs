//! Who a call is from: the admin key, the keys of tenants, the keys of sessions; and the making and revoking of tenants'
//! keys.
//!
//! Tenants' keys are all in memory, by id, with the hash that the store holds. What is changed takes effect when its
//! entry is durable, with the answer: until then a new key is not accepted, and one being revoked is. Session keys are
//! verified from themselves; whether their session still runs, and in that life, is seen at it ([`super::access`]).

use super::tree::{Line, Tree};
use super::{Answer, Call, Engine, Moment, Pending, Work, timestamp};
use crate::error::{Quota, Reason, Refusal};
use crate::gen_store::RequestMark;
use crate::gen_v1 as v1;
use crate::ids::{self, Uid};
use crate::journal::{Held, KeyRow, Op, Seq};
use crate::keys::{self, KeyHash, Kind, Maker, Presented, SECRET_LEN, SessionRef};
use parking_lot::RwLock;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// The tenant of a caller who names none.
pub const DEFAULT_TENANT: &str = "default";
/// Active keys of one tenant: one, and one to replace it.
pub const MAX_TENANT_KEYS: u64 = 2;
/// What entries about keys and limits name as their tree: no session has this uid.
pub(crate) const KEYS_ROOT: Uid = Uid(0);

/// What a call's metadata say of its caller. Its `Debug` shows no key (I25).
#[derive(Clone, Copy, Default)]
pub struct Caller<'a> {
    /// The value of `authorization`, as it came; empty if there is none.
    pub authorization: &'a str,
    /// The value of `x-roost-tenant`: the tenant that an admin acts for; empty if there is none.
    pub tenant: &'a str,
}

impl<'a> Caller<'a> {
    /// A caller without a key who acts for a tenant.
    pub fn of(tenant: &'a str) -> Self {
        Caller { authorization: "", tenant }
    }
}

impl fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// What a server knows of keys when it starts.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// What makes tenants' and sessions' keys. Without it there are none.
    pub maker: Option<Maker>,
    /// The hash of the admin key. With one, a call without a key is refused.
    pub admin: Option<KeyHash>,
    /// The keys of tenants as they are stored. With an active one among them, a call without a key is refused.
    pub rows: Vec<KeyRow>,
}

/// Who a call is from.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) kind: Kind,
    /// The id of the tenant's key that it bears, which may be revoked while the call waits.
    key: Option<Uid>,
    /// The session whose key it bears.
    pub(crate) session: Option<Arc<SessionRef>>,
}

impl Who {
    /// The operator, or the engine itself: everything.
    pub(crate) const ADMIN: Who = Who { kind: Kind::Admin, key: None, session: None };
}

#[derive(Debug)]
struct Entry {
    tenant: Arc<str>,
    hash: KeyHash,
    create_ms: i64,
    request: Option<RequestMark>,
    /// The entry that made it, and whether that is durable.
    seq: Seq,
    stored: bool,
    /// The entry that revokes it, and when that was.
    revoking: Option<(Seq, i64)>,
    /// When it was revoked, durably; 0: it is active.
    revoke_ms: i64,
}

impl Entry {
    fn active(&self) -> bool {
        self.stored && self.revoke_ms == 0
    }

    fn to_proto(&self, id: Uid) -> v1::ApiKey {
        let revoke_ms = self.revoking.map_or(self.revoke_ms, |(_, ms)| ms);
        v1::ApiKey {
            key_id: key_id(id),
            tenant: self.tenant.to_string(),
            create_time: Some(timestamp(self.create_ms)),
            revoke_time: (revoke_ms != 0).then(|| timestamp(revoke_ms)),
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    keys: BTreeMap<Uid, Entry>,
    /// The keys by the request_ids that made them.
    by_request: HashMap<String, Uid>,
}

#[derive(Debug)]
pub(crate) struct Keyring {
    maker: Option<Maker>,
    admin: Option<KeyHash>,
    /// A call without a key is refused. Else it is the operator's.
    required: bool,
    default: Arc<str>,
    table: RwLock<Table>,
}

/// A change of the table that is durable, or was lost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyChange {
    Made(Uid),
    Revoked(Uid),
}

fn key_id(id: Uid) -> String {
    format!("{:032x}", id.0)
}

/// The refusal of a call that bears no valid key: the same words whatever is wrong with it.
pub(crate) fn invalid() -> Refusal {
    Refusal::new(Reason::KeyInvalid, "no valid API key: send one as \"authorization: Bearer <key>\"")
}

/// The refusal of what a key of this kind may not do, whatever it is done to.
pub(crate) fn beyond(kind: Kind, what: &str) -> Refusal {
    let kind = kind.name();
    Refusal::new(Reason::KeyScope, format!("a {kind} key may not {what}")).with("kind", kind)
}

fn check_tenant(field: &str, name: &str) -> Result<(), Refusal> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(ok) {
        return Err(Refusal::field(field, "must be 1 to 64 characters of [A-Za-z0-9._-]"));
    }
    Ok(())
}

/// The key in an `authorization` value.
fn bearer(authorization: &str) -> Option<Presented> {
    let (scheme, key) = authorization.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") { keys::parse(key.trim_ascii().as_bytes()) } else { None }
}

impl Keyring {
    pub(crate) fn new(keys: Keys) -> Self {
        let mut table = Table::default();
        for row in keys.rows {
            if let Some(mark) = &row.request {
                table.by_request.insert(mark.request_id.clone(), row.id);
            }
            let entry = Entry {
                tenant: row.tenant,
                hash: row.hash,
                create_ms: row.create_ms,
                request: row.request,
                seq: 0,
                stored: true,
                revoking: None,
                revoke_ms: row.revoke_ms,
            };
            table.keys.insert(row.id, entry);
        }
        let required = keys.admin.is_some() || table.keys.values().any(Entry::active);
        Keyring {
            maker: keys.maker,
            admin: keys.admin,
            required,
            default: DEFAULT_TENANT.into(),
            table: RwLock::new(table),
        }
    }

    /// The caller's tenant, and who it is. KEY_INVALID for a key that is none, is not known, wrong or revoked, and where
    /// there must be one and is not.
    pub(crate) fn authenticate(&self, caller: &Caller<'_>) -> Result<(Arc<str>, Who), Refusal> {
        if caller.authorization.is_empty() && !self.required {
            return Ok((self.named(caller.tenant)?, Who::ADMIN));
        }
        // Who brings a key is who the key says, also where none is needed.
        let key = bearer(caller.authorization).ok_or_else(invalid)?;
        let (tenant, who) = match key.kind {
            Kind::Admin => {
                let expected = self.admin.unwrap_or(KeyHash::none());
                if expected != KeyHash::of(&key) {
                    return Err(invalid());
                }
                return Ok((self.named(caller.tenant)?, Who::ADMIN));
            }
            Kind::Tenant => {
                let id = Uid::from_bytes(&key.id).ok_or_else(invalid)?;
                let given = KeyHash::of(&key);
                let table = self.table.read();
                let entry = table.keys.get(&id);
                // An unknown id is compared too: that there is such a key must not show in the time.
                let right = entry.map_or(KeyHash::none(), |e| e.hash) == given;
                let entry = entry.filter(|e| right && e.active()).ok_or_else(invalid)?;
                (entry.tenant.clone(), Who { kind: Kind::Tenant, key: Some(id), session: None })
            }
            Kind::Session => {
                let made = self.maker.as_ref().and_then(|maker| maker.verify_session(&key));
                let session = made.ok_or_else(invalid)?;
                let tenant = session.tenant.as_str().into();
                (tenant, Who { kind: Kind::Session, key: None, session: Some(Arc::new(session)) })
            }
        };
        if !caller.tenant.is_empty() && *caller.tenant != *tenant {
            return Err(beyond(who.kind, "name another tenant"));
        }
        Ok((tenant, who))
    }

    /// The tenant that an admin acts for.
    fn named(&self, tenant: &str) -> Result<Arc<str>, Refusal> {
        if tenant.is_empty() || tenant == DEFAULT_TENANT {
            return Ok(self.default.clone());
        }
        check_tenant("x-roost-tenant", tenant)?;
        Ok(tenant.into())
    }

    /// The tenant of a call that was accepted, whatever became of its key since.
    pub(crate) fn tenant_of(&self, caller: &Caller<'_>) -> Option<Arc<str>> {
        match bearer(caller.authorization) {
            Some(key) if key.kind == Kind::Tenant => {
                self.table.read().keys.get(&Uid::from_bytes(&key.id)?).map(|entry| entry.tenant.clone())
            }
            _ => self.authenticate(caller).ok().map(|(tenant, _)| tenant),
        }
    }

    /// Whether the key of a call that waited is still accepted.
    pub(crate) fn still_valid(&self, who: &Who) -> Result<(), Refusal> {
        match who.key {
            Some(id) if !self.table.read().keys.get(&id).is_some_and(Entry::active) => Err(invalid()),
            _ => Ok(()),
        }
    }

    /// The entry of a change is durable.
    pub(crate) fn happened(&self, change: KeyChange) {
        let mut table = self.table.write();
        match change {
            KeyChange::Made(id) => {
                if let Some(entry) = table.keys.get_mut(&id) {
                    entry.stored = true;
                }
            }
            KeyChange::Revoked(id) => {
                if let Some(entry) = table.keys.get_mut(&id) {
                    entry.revoke_ms = entry.revoking.take().map_or(entry.revoke_ms, |(_, ms)| ms);
                }
            }
        }
    }

    /// The entry of a change was lost: nothing of it happened.
    pub(crate) fn lost(&self, change: KeyChange) {
        let mut table = self.table.write();
        match change {
            KeyChange::Made(id) => {
                if let Some(mark) = table.keys.remove(&id).and_then(|entry| entry.request) {
                    table.by_request.remove(&mark.request_id);
                }
            }
            KeyChange::Revoked(id) => {
                if let Some(entry) = table.keys.get_mut(&id) {
                    entry.revoking = None;
                }
            }
        }
    }

    /// How many keys are active.
    pub(crate) fn active(&self) -> usize {
        self.table.read().keys.values().filter(|entry| entry.active()).count()
    }
}

/// A CreateApiKey.
#[derive(Debug)]
pub(crate) struct CreateKey {
    tenant: String,
    mark: Option<RequestMark>,
}

/// A ListApiKeys.
#[derive(Debug)]
pub(crate) struct ListKeys {
    size: usize,
    after: Option<Uid>,
    tenant: String,
}

impl CreateKey {
    pub(crate) fn of(r: v1::CreateApiKeyRequest, mark: Option<RequestMark>) -> Result<Self, Refusal> {
        let tenant = if r.tenant.is_empty() { DEFAULT_TENANT.to_owned() } else { r.tenant };
        check_tenant("tenant", &tenant)?;
        Ok(CreateKey { tenant, mark })
    }
}

/// The id of a key in a request.
pub(crate) fn parse_key_id(text: &str) -> Result<Uid, Refusal> {
    let id = u128::from_str_radix(text, 16).ok().map(Uid).filter(|id| key_id(*id) == text);
    id.ok_or_else(|| Refusal::field("key_id", "must be 32 lower-case hex digits"))
}

impl ListKeys {
    pub(crate) fn of(r: v1::ListApiKeysRequest) -> Result<Self, Refusal> {
        if r.page_size < 0 {
            let rule = format!("must not be negative, and is {}", r.page_size);
            return Err(Refusal::field("page_size", rule).with("value", r.page_size));
        }
        if !r.tenant.is_empty() {
            check_tenant("tenant", &r.tenant)?;
        }
        let after = match r.page_token.as_str() {
            "" => None,
            token => {
                let id = token.strip_suffix(&mark_of(&r.tenant)).and_then(|id| parse_key_id(id).ok());
                let message = "page_token: is not a token of this list with these filters";
                Some(id.ok_or_else(|| Refusal::new(Reason::BadPageToken, message))?)
            }
        };
        let size = if r.page_size == 0 { 100 } else { r.page_size.min(1_000) } as usize;
        Ok(ListKeys { size, after, tenant: r.tenant })
    }
}

/// What binds a page token to its filter.
fn mark_of(tenant: &str) -> String {
    format!("-{}", &blake3::hash(tenant.as_bytes()).to_hex()[..8])
}

impl Engine {
    /// As the server's configuration and store say; before the first call.
    #[must_use]
    pub fn with_keys(mut self, keys: Keys) -> Self {
        self.keys = Keyring::new(keys);
        self
    }

    /// Whether a call without a key is refused.
    pub fn keys_required(&self) -> bool {
        self.keys.required
    }

    /// Whether the key of a session can be made, should it be asked for.
    pub(crate) fn may_mint(&self, asked: bool) -> Result<(), Refusal> {
        if asked && self.keys.maker.is_none() {
            return Err(Refusal::new(Reason::KeysOff, "the server has no secret to make keys from"));
        }
        Ok(())
    }

    /// The key of an open session in its present life, if it is asked for.
    pub(crate) fn minted(&self, asked: bool, tree: &Tree, line: &Line) -> Result<String, Refusal> {
        self.may_mint(asked)?;
        let maker = self.keys.maker.as_ref().filter(|_| asked);
        Ok(maker.map_or_else(String::new, |maker| {
            maker.session_key(&SessionRef {
                tenant: tree.tenant.name.to_string(),
                session_id: line.session_id.to_string(),
                uid: line.uid,
                life: line.life(),
            })
        }))
    }

    pub(crate) fn create_key(&self, call: Pending, work: &mut Work, now: &mut Moment) {
        let Call::CreateKey(create) = &call.call else { return };
        match self.make_key(create, now) {
            Err(refusal) => self.refuse(call.ticket, refusal, work),
            Ok((reply, after)) => {
                let result = Ok(reply.encode_to_vec());
                work.answers.push(Answer { ticket: call.ticket, result, after, root: Some(KEYS_ROOT) });
            }
        }
    }

    fn make_key(&self, create: &CreateKey, now: &mut Moment) -> Result<(v1::CreateApiKeyResponse, Seq), Refusal> {
        let Some(maker) = self.keys.maker.as_ref().filter(|_| self.keys.admin.is_some()) else {
            let message = "the server runs without keys; start it with an admin key to make others";
            return Err(Refusal::new(Reason::KeysOff, message));
        };
        let mut table = self.keys.table.write();
        let before = create.mark.as_ref().and_then(|m| table.by_request.get(&m.request_id)).copied();
        if let Some((id, entry)) = before.and_then(|id| Some((id, table.keys.get(&id)?))) {
            ids::repeats(entry.request.as_ref(), create.mark.as_ref())?;
            let (key, hash) = maker.tenant_key(id);
            if hash != entry.hash {
                let (id, message) = (key_id(id), "the server's secret was replaced since it was made");
                return Err(Refusal::new(Reason::KeyLost, format!("the key {id} cannot be shown again: {message}"))
                    .with("key_id", id));
            }
            let after = entry.revoking.map_or(entry.seq, |(seq, _)| seq);
            let reply = v1::CreateApiKeyResponse { api_key: Some(entry.to_proto(id)), key, repeated: true };
            return Ok((reply, after));
        }
        let used = table.keys.values().filter(|e| *e.tenant == *create.tenant && e.revoke_ms == 0).count() as u64;
        if used >= MAX_TENANT_KEYS {
            let (limit_name, limit) = ("max_tenant_keys", MAX_TENANT_KEYS);
            let tenant = &create.tenant;
            let refusal =
                Refusal::new(Reason::TenantKeys, format!("tenant {tenant:?} has {used} active keys of {limit}"));
            return Err(refusal.with("tenant", tenant).quota(Quota { limit_name, limit, used, holders: Vec::new() }));
        }
        let id = Uid::v7(now.wall_ms, now.draw());
        let (key, hash) = maker.tenant_key(id);
        let tenant: Arc<str> = create.tenant.as_str().into();
        let row = KeyRow {
            id,
            tenant: tenant.clone(),
            hash,
            create_ms: now.wall_ms,
            revoke_ms: 0,
            request: create.mark.clone(),
        };
        let seq = self.append_key(&tenant, Op::Key(Box::new(row)), now);
        let entry = Entry {
            tenant,
            hash,
            create_ms: now.wall_ms,
            request: create.mark.clone(),
            seq,
            stored: false,
            revoking: None,
            revoke_ms: 0,
        };
        let api_key = Some(entry.to_proto(id));
        table.keys.insert(id, entry);
        if let Some(mark) = &create.mark {
            table.by_request.insert(mark.request_id.clone(), id);
        }
        drop(table);
        self.hold_change(seq, KeyChange::Made(id));
        Ok((v1::CreateApiKeyResponse { api_key, key, repeated: false }, seq))
    }

    pub(crate) fn revoke_key(&self, call: Pending, work: &mut Work, now: &Moment) {
        let Call::RevokeKey(id) = call.call else { return };
        let mut table = self.keys.table.write();
        let Some(entry) = table.keys.get_mut(&id).filter(|e| e.stored) else {
            let text = key_id(id);
            let refusal = Refusal::new(Reason::KeyNotFound, format!("no API key {text} is known"));
            return self.refuse(call.ticket, refusal.with("key_id", text), work);
        };
        let repeated = entry.revoke_ms != 0 || entry.revoking.is_some();
        let mut changed = None;
        if !repeated {
            let seq = self.append_key(&entry.tenant, Op::RevokeKey { id, revoke_ms: now.wall_ms }, now);
            entry.revoking = Some((seq, now.wall_ms));
            changed = Some(seq);
        }
        let after = entry.revoking.map_or(0, |(seq, _)| seq);
        let reply = v1::RevokeApiKeyResponse { api_key: Some(entry.to_proto(id)), repeated };
        drop(table);
        if let Some(seq) = changed {
            self.hold_change(seq, KeyChange::Revoked(id));
        }
        let result = Ok(reply.encode_to_vec());
        work.answers.push(Answer { ticket: call.ticket, result, after, root: Some(KEYS_ROOT) });
    }

    pub(crate) fn list_keys(&self, call: Pending, work: &mut Work) {
        let Call::ListKeys(list) = &call.call else { return };
        let table = self.keys.table.read();
        let from = list.after.map_or(Unbounded, Excluded);
        let wanted = |e: &Entry| e.stored && (list.tenant.is_empty() || *e.tenant == *list.tenant);
        let mut found = table.keys.range((from, Unbounded)).filter(|(_, entry)| wanted(entry));
        let page: Vec<(Uid, v1::ApiKey)> =
            found.by_ref().take(list.size).map(|(id, e)| (*id, e.durable(*id))).collect();
        let next_page_token = match (page.last(), found.next()) {
            (Some((id, _)), Some(_)) => key_id(*id) + &mark_of(&list.tenant),
            _ => String::new(),
        };
        let api_keys = page.into_iter().map(|(_, key)| key).collect();
        let result = Ok(v1::ListApiKeysResponse { api_keys, next_page_token }.encode_to_vec());
        work.answers.push(Answer { ticket: call.ticket, result, after: 0, root: None });
    }

    /// Appends an entry about a key, which is of no tree.
    fn append_key(&self, tenant: &str, op: Op, now: &Moment) -> Seq {
        self.append_apart(self.journal.append(), (KEYS_ROOT, self.tenant(tenant)), vec![op], now)
    }

    fn hold_change(&self, seq: Seq, change: KeyChange) {
        if self.journal.hold(seq, Held::Key(change)).is_some() {
            // The writer was faster.
            self.keys.happened(change);
        }
    }
}

impl Entry {
    /// As it is on disk.
    fn durable(&self, id: Uid) -> v1::ApiKey {
        let revoke_time = (self.revoke_ms != 0).then(|| timestamp(self.revoke_ms));
        v1::ApiKey { revoke_time, ..self.to_proto(id) }
    }
}

/// The server's secret as it is stored.
pub fn maker(secret: &[u8]) -> Option<Maker> {
    Some(Maker::new(<&[u8; SECRET_LEN]>::try_from(secret).ok()?))
}
