//! Keys while their entries are on the way to disk: what is accepted, shown and counted at each step, and what is left
//! of a change that the store refuses (I6, I21, I22).

use prost::Message;
use roost_core::engine::{Appended, Caller, Effect, Engine, Keys, Method, Moment, Outcome, Space};
use roost_core::error::Reason;
use roost_core::ids::Uid;
use roost_core::journal::{Batch, KeyRow};
use roost_core::keys::{Maker, admin_key_hash, new_admin_key};
use roost_core::limits::Limits;
use roost_core::proto::v1;
use std::collections::HashMap;

struct World {
    engine: Engine,
    admin: String,
    rows: Vec<KeyRow>,
    moments: u64,
    done: HashMap<u64, Result<Vec<u8>, Reason>>,
}

enum Began<R> {
    Ended(Result<R, Reason>),
    Waits(u64),
}

impl World {
    fn new() -> Self {
        let admin = new_admin_key(&std::array::from_fn(|i| (i * 7) as u8));
        let mut world =
            World { engine: engine(&admin, &[]), admin, rows: Vec::new(), moments: 0, done: HashMap::new() };
        assert!(world.engine.keys_required());
        world.done.clear();
        world
    }

    fn now(&mut self) -> Moment {
        self.moments += 1;
        let mut entropy = [0; 32];
        entropy[..8].copy_from_slice(&self.moments.to_le_bytes());
        Moment::new(self.moments, 1_700_000_000_000 + self.moments as i64, entropy)
    }

    fn begin<R: Message + Default>(&mut self, method: Method, request: &impl Message, key: &str) -> Began<R> {
        let (now, bearer) = (self.now(), format!("Bearer {key}"));
        let caller = Caller { authorization: &bearer, tenant: "" };
        match self.engine.call(method, &request.encode_to_vec(), &caller, 0, now) {
            Outcome::Ticket(ticket) => Began::Waits(ticket),
            Outcome::Reply(reply) => Began::Ended(Ok(R::decode(&reply[..]).expect("a reply decodes"))),
            Outcome::Refused(refusal) => Began::Ended(Err(refusal.reason)),
        }
    }

    fn wait<R: Message + Default>(&mut self, method: Method, request: &impl Message) -> u64 {
        let admin = self.admin.clone();
        match self.begin::<R>(method, request, &admin) {
            Began::Waits(ticket) => ticket,
            Began::Ended(_) => panic!("it was answered before it was durable"),
        }
    }

    fn at_once<R: Message + Default>(
        &mut self,
        method: Method,
        request: &impl Message,
        key: &str,
    ) -> Result<R, Reason> {
        match self.begin(method, request, key) {
            Began::Ended(result) => result,
            Began::Waits(_) => panic!("it waits"),
        }
    }

    fn create(&mut self, tenant: &str, request_id: &str) -> u64 {
        let request = v1::CreateApiKeyRequest { tenant: tenant.into(), request_id: request_id.into() };
        self.wait::<v1::CreateApiKeyResponse>(Method::CreateApiKey, &request)
    }

    fn revoke(&mut self, key_id: &str) -> u64 {
        let request = v1::RevokeApiKeyRequest { key_id: key_id.into() };
        self.wait::<v1::RevokeApiKeyResponse>(Method::RevokeApiKey, &request)
    }

    fn listed(&mut self) -> Vec<v1::ApiKey> {
        let admin = self.admin.clone();
        let request = v1::ListApiKeysRequest::default();
        self.at_once::<v1::ListApiKeysResponse>(Method::ListApiKeys, &request, &admin)
            .expect("it is the admin")
            .api_keys
    }

    /// Whether a key is accepted: what it asks about does not exist, if it is.
    fn accepted(&mut self, key: &str) -> bool {
        match self.begin::<v1::BeginTurnResponse>(Method::BeginTurn, &v1::BeginTurnRequest::default(), key) {
            Began::Ended(Err(Reason::KeyInvalid)) => false,
            Began::Ended(Err(Reason::InvalidField)) => true,
            _ => panic!("an empty session id is refused"),
        }
    }

    fn apply(&mut self, batch: &Batch) {
        self.rows.extend(batch.keys.iter().map(|(_, row)| row.clone()));
        for (_, id, revoke_ms) in &batch.revoked_keys {
            let row = self.rows.iter_mut().find(|row| row.id == *id && row.revoke_ms == 0);
            row.expect("an active key is revoked").revoke_ms = *revoke_ms;
        }
    }

    fn append(&mut self, outcome: Appended) {
        let batch = self.engine.take_batch().expect("there are entries");
        if outcome == (Appended::Stored { quarantine: Vec::new() }) {
            self.apply(&batch);
        }
        let now = self.now();
        self.engine.appended(&outcome, now);
        for effect in self.engine.effects() {
            let Effect::Header { id, root } = effect else { panic!("nothing else is read") };
            let now = self.now();
            self.engine.header_loaded(id, root, "", &[], now);
        }
        self.done.extend(self.engine.completed().into_iter().map(|(t, r)| (t, r.map_err(|refusal| refusal.reason))));
        self.engine.check(true).expect("it adds up");
    }

    fn stored(&mut self) {
        self.append(Appended::Stored { quarantine: Vec::new() });
    }

    fn answer<R: Message + Default>(&mut self, ticket: u64) -> Result<R, Reason> {
        self.done.remove(&ticket).expect("it has ended").map(|reply| R::decode(&reply[..]).expect("a reply decodes"))
    }

    fn created(&mut self, tenant: &str, request_id: &str) -> v1::CreateApiKeyResponse {
        let ticket = self.create(tenant, request_id);
        self.stored();
        self.answer(ticket).expect("it is made")
    }

    fn restart(&mut self) {
        self.engine = engine(&self.admin, &self.rows);
    }
}

fn engine(admin: &str, rows: &[KeyRow]) -> Engine {
    let keys = Keys {
        maker: Some(Maker::new(&[3; 32])),
        admin: Some(admin_key_hash(admin).expect("it is a good one")),
        rows: rows.to_vec(),
    };
    Engine::new(Limits::default(), 0, 1).with_keys(keys)
}

/// The key that a CreateApiKey will answer with, before it has.
fn key_in(world: &World) -> String {
    let row = world.rows.last().expect("one was stored");
    Maker::new(&[3; 32]).tenant_key(row.id).0
}

#[test]
fn i6_a_key_is_accepted_shown_and_revoked_when_that_is_durable() {
    let mut world = World::new();
    let ticket = world.create("acme", "r-1");
    assert!(world.listed().is_empty());
    let batch = world.engine.take_batch().expect("there is an entry");
    world.apply(&batch);
    let key = key_in(&world);
    assert!(!world.accepted(&key), "it is not acknowledged yet");
    let now = world.now();
    world.engine.appended(&Appended::Stored { quarantine: Vec::new() }, now);
    assert!(world.accepted(&key));
    world.done.extend(world.engine.completed().into_iter().map(|(t, r)| (t, r.map_err(|refusal| refusal.reason))));
    let made: v1::CreateApiKeyResponse = world.answer(ticket).expect("it is made");
    assert_eq!((made.key.as_str(), made.repeated), (key.as_str(), false));

    let id = made.api_key.expect("it is told").key_id;
    let first = world.revoke(&id);
    assert!(world.accepted(&key), "that it is revoked is not durable");
    assert!(world.listed()[0].revoke_time.is_none());
    let second = world.revoke(&id);
    world.stored();
    assert!(!world.accepted(&key));
    let first: v1::RevokeApiKeyResponse = world.answer(first).expect("it is revoked");
    let second: v1::RevokeApiKeyResponse = world.answer(second).expect("it is revoked");
    assert_eq!((first.repeated, second.repeated, &first.api_key), (false, true, &second.api_key));
    assert_eq!(world.listed(), vec![first.api_key.expect("it is told")]);
}

/// As the store's answer to every look-up: there is none.
fn nobody(world: &mut World) {
    for effect in world.engine.effects() {
        let Effect::Find { id, .. } = effect else { panic!("nothing else is read") };
        let now = world.now();
        world.engine.found(id, None, now);
    }
}

#[test]
fn i6_what_is_out_of_reach_by_a_close_is_so_when_the_close_is_durable() {
    let mut world = World::new();
    let admin = world.admin.clone();
    let mut keys = Vec::new();
    for (id, parent) in [("r", ""), ("c", "r"), ("g", "c")] {
        let options = Some(v1::OpenOptions { parent_session_id: parent.into(), ..Default::default() });
        let request = v1::OpenSessionRequest { session_id: id.into(), options, mint_key: true, ..Default::default() };
        let ticket = world.wait::<v1::OpenSessionResponse>(Method::OpenSession, &request);
        nobody(&mut world);
        world.stored();
        keys.push(world.answer::<v1::OpenSessionResponse>(ticket).expect("it is made").session_key);
    }
    let get = v1::GetSessionRequest { session_id: "g".into() };
    let seen: Result<v1::GetSessionResponse, _> = world.at_once(Method::GetSession, &get, &keys[0]);
    assert!(seen.is_ok());
    let close = v1::CloseSessionRequest { session_id: "c".into(), ..Default::default() };
    let Began::Waits(_) = world.begin::<v1::CloseSessionResponse>(Method::CloseSession, &close, &admin) else {
        panic!("it is not durable yet")
    };
    // The edge above it is not open any more: it is gone for its root's key, and that waits for the close.
    let Began::Waits(ticket) = world.begin::<v1::GetSessionResponse>(Method::GetSession, &get, &keys[0]) else {
        panic!("it tells of a close that is not durable")
    };
    world.stored();
    assert_eq!(world.answer::<v1::GetSessionResponse>(ticket), Err(Reason::SessionNotFound));
}

#[test]
fn i22_of_a_key_that_was_not_stored_nothing_is_left() {
    let mut world = World::new();
    // The last: the entries about keys alone are refused, which would be a bug.
    let alone = Appended::Stored { quarantine: vec![Uid(0)] };
    for refused in [Appended::Refused, Appended::RefusedFull, alone] {
        let tickets = [world.create("acme", "r-1"), world.create("acme", "r-1"), world.create("acme", "r-2")];
        world.append(refused);
        for ticket in tickets {
            assert_eq!(world.answer::<v1::CreateApiKeyResponse>(ticket), Err(Reason::NotStored));
        }
        assert!(world.listed().is_empty());
        world.engine.set_space(Space::Ok);
    }
    // Neither the request_ids nor the places of the two are taken.
    let request = v1::CreateApiKeyRequest { tenant: "other".into(), request_id: "r-1".into() };
    let ticket = world.wait::<v1::CreateApiKeyResponse>(Method::CreateApiKey, &request);
    world.stored();
    assert!(!world.answer::<v1::CreateApiKeyResponse>(ticket).expect("it is made").repeated);
    world.created("acme", "r-3");
    world.created("acme", "");
    let third = v1::CreateApiKeyRequest { tenant: "acme".into(), request_id: String::new() };
    let admin = world.admin.clone();
    let refused = world.at_once::<v1::CreateApiKeyResponse>(Method::CreateApiKey, &third, &admin);
    assert_eq!(refused, Err(Reason::TenantKeys));
}

#[test]
fn i22_a_revoke_that_was_not_stored_did_not_happen() {
    let mut world = World::new();
    let made = world.created("acme", "");
    let id = made.api_key.expect("it is told").key_id;
    let ticket = world.revoke(&id);
    world.append(Appended::Refused);
    assert_eq!(world.answer::<v1::RevokeApiKeyResponse>(ticket), Err(Reason::NotStored));
    assert!(world.accepted(&made.key));
    let ticket = world.revoke(&id);
    world.stored();
    assert!(!world.answer::<v1::RevokeApiKeyResponse>(ticket).expect("it is revoked").repeated);
    assert!(!world.accepted(&made.key));
}

#[test]
fn keys_not_yet_durable_count_against_the_cap() {
    let mut world = World::new();
    let (one, two) = (world.create("acme", ""), world.create("acme", ""));
    let third = v1::CreateApiKeyRequest { tenant: "acme".into(), request_id: String::new() };
    let admin = world.admin.clone();
    let refused = world.at_once::<v1::CreateApiKeyResponse>(Method::CreateApiKey, &third, &admin);
    assert_eq!(refused, Err(Reason::TenantKeys));
    world.stored();
    let one: v1::CreateApiKeyResponse = world.answer(one).expect("it is made");
    world.answer::<v1::CreateApiKeyResponse>(two).expect("it is made");
    // One that is being revoked still counts: its entry may be lost.
    let ticket = world.revoke(&one.api_key.expect("it is told").key_id);
    let refused = world.at_once::<v1::CreateApiKeyResponse>(Method::CreateApiKey, &third, &admin);
    assert_eq!(refused, Err(Reason::TenantKeys));
    world.stored();
    world.answer::<v1::RevokeApiKeyResponse>(ticket).expect("it is revoked");
    world.created("acme", "");
}

#[test]
fn i21_a_repeat_waits_for_the_first_and_shows_its_key_also_after_a_restart() {
    let mut world = World::new();
    let (first, again) = (world.create("acme", "r-1"), world.create("acme", "r-1"));
    world.stored();
    let first: v1::CreateApiKeyResponse = world.answer(first).expect("it is made");
    let again: v1::CreateApiKeyResponse = world.answer(again).expect("it is repeated");
    assert_eq!((&again.key, &again.api_key, again.repeated), (&first.key, &first.api_key, true));
    assert_eq!(world.rows.len(), 1);
    world.restart();
    let request = v1::CreateApiKeyRequest { tenant: "acme".into(), request_id: "r-1".into() };
    let admin = world.admin.clone();
    let later: v1::CreateApiKeyResponse =
        world.at_once(Method::CreateApiKey, &request, &admin).expect("there is nothing to wait for");
    assert_eq!((&later.key, later.repeated), (&first.key, true));
    assert!(world.accepted(&first.key));
    let other = v1::CreateApiKeyRequest { tenant: "other".into(), ..request };
    let mismatch = world.at_once::<v1::CreateApiKeyResponse>(Method::CreateApiKey, &other, &admin);
    assert_eq!(mismatch, Err(Reason::RequestMismatch));
}
