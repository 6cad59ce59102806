//! API keys as text: their three kinds, how they are made, how they are told from forgeries.
//!
//! `roost_<kind>_<id>_<secret>`, id and secret in lower-case hex. The id says which key it is and is no secret. An admin
//! key is the operator's: the server knows a hash of it. The secret of a tenant or session key is a MAC (keyed BLAKE3)
//! over the key's id under a subkey of the server's secret, one subkey a kind: so a key can be made again without having
//! been stored, and none is accepted for another kind. No randomness here: entropy comes in.

use crate::ids::Uid;
use std::fmt;

/// Bytes of a secret, of the server's and of a key's.
pub const SECRET_LEN: usize = 32;

/// What a key is for. None is accepted for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Admin,
    Tenant,
    Session,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Admin, Kind::Tenant, Kind::Session];

    /// What a key of this kind begins with, for people and for secret scanners.
    pub fn prefix(self) -> &'static str {
        match self {
            Kind::Admin => "roost_admin_",
            Kind::Tenant => "roost_tenant_",
            Kind::Session => "roost_session_",
        }
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Admin => "admin",
            Kind::Tenant => "tenant",
            Kind::Session => "session",
        }
    }
}

/// A key as it was presented, taken apart. Nothing is said yet about whether it is valid.
#[derive(Clone, PartialEq, Eq)]
pub struct Presented {
    pub kind: Kind,
    pub id: Vec<u8>,
    secret: [u8; SECRET_LEN],
}

/// Without the secret (I25).
impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Presented({})", self.kind.name())
    }
}

/// The longest id: of a session key whose tenant and session have names as long as may be.
const MAX_ID: usize = SessionRef::FIXED + 255 + 256;

/// Takes the text of a key apart; `None` if it is none. One spelling only.
pub fn parse(text: &[u8]) -> Option<Presented> {
    let kind = Kind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix().as_bytes()))?;
    let rest = &text[kind.prefix().len()..];
    let split = rest.len().checked_sub(2 * SECRET_LEN + 1)?;
    let (id, secret) = (&rest[..split], &rest[split + 1..]);
    if rest[split] != b'_' || id.len() > 2 * MAX_ID {
        return None;
    }
    let secret = unhex(secret)?.try_into().ok()?;
    Some(Presented { kind, id: unhex(id).filter(|id| !id.is_empty())?, secret })
}

fn text(kind: Kind, id: &[u8], secret: &[u8; SECRET_LEN]) -> String {
    let mut out = String::with_capacity(kind.prefix().len() + 2 * (id.len() + SECRET_LEN) + 1);
    out.push_str(kind.prefix());
    hex(id, &mut out);
    out.push('_');
    hex(secret, &mut out);
    out
}

fn hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let nibble = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}

/// A hash that is stored or kept in place of a key. Compared in constant time, as `blake3::Hash` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(blake3::Hash);

impl KeyHash {
    /// Of the key that was presented: of its kind, id and secret. A fast hash is enough, because secrets are 256 random
    /// bits or a MAC: there is nothing to guess.
    pub fn of(key: &Presented) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("roost 2026 hash of a key");
        hasher.update(key.kind.prefix().as_bytes()).update(&key.id).update(&key.secret);
        KeyHash(hasher.finalize())
    }

    /// What no key hashes to, so that an unknown key takes as long to refuse as a wrong one.
    pub fn none() -> Self {
        KeyHash(blake3::Hash::from_bytes([0; 32]))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// `None` unless it is 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(KeyHash(blake3::Hash::from_bytes(bytes.try_into().ok()?)))
    }
}

/// A new admin key from 48 bytes of entropy.
pub fn new_admin_key(entropy: &[u8; 48]) -> String {
    let (id, secret) = entropy.split_first_chunk::<16>().expect("it has 48 bytes");
    text(Kind::Admin, id, secret.try_into().expect("32 are left"))
}

/// The hash of an admin key as the operator configured it; an error says in words what is wrong with it, never what it
/// is.
pub fn admin_key_hash(configured: &str) -> Result<KeyHash, &'static str> {
    let key =
        parse(configured.as_bytes()).ok_or("it is not of the form roost_admin_<32 hex digits>_<64 hex digits>")?;
    if key.kind != Kind::Admin {
        return Err("it is a key of another kind; an admin key begins with roost_admin_");
    }
    if key.id.len() != 16 {
        return Err("it is not of the form roost_admin_<32 hex digits>_<64 hex digits>");
    }
    // 32 random bytes have 30 distinct ones on average, and fewer than 20 never: this finds what a person typed.
    let mut distinct = key.secret;
    distinct.sort_unstable();
    if distinct.chunk_by(|a, b| a == b).count() < 20 {
        return Err("its last part is not random");
    }
    Ok(KeyHash::of(&key))
}

/// The session that a session key is for, and which of its lives, counted from 1: each ReopenSession begins another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRef {
    pub tenant: String,
    pub session_id: String,
    pub uid: Uid,
    pub life: u32,
}

impl SessionRef {
    const FIXED: usize = 16 + 4 + 1;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::FIXED + self.tenant.len() + self.session_id.len());
        out.extend_from_slice(&self.uid.bytes());
        out.extend_from_slice(&self.life.to_be_bytes());
        // Names of tenants have at most 64 bytes.
        out.push(self.tenant.len() as u8);
        out.extend_from_slice(self.tenant.as_bytes());
        out.extend_from_slice(self.session_id.as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (uid, rest) = bytes.split_first_chunk::<16>()?;
        let (life, rest) = rest.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first()?;
        let (tenant, session_id) = rest.split_at_checked(usize::from(*len))?;
        Some(SessionRef {
            tenant: str::from_utf8(tenant).ok()?.to_owned(),
            session_id: str::from_utf8(session_id).ok()?.to_owned(),
            uid: Uid::from_bytes(uid)?,
            life: u32::from_be_bytes(*life),
        })
    }
}

/// The server's secret, as the subkeys that make keys. Whoever has it can make any tenant or session key.
#[derive(Clone)]
pub struct Maker {
    tenant: [u8; 32],
    session: [u8; 32],
}

impl fmt::Debug for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maker")
    }
}

impl Maker {
    pub fn new(secret: &[u8; SECRET_LEN]) -> Self {
        // Never changed: keys outlive releases.
        Maker {
            tenant: blake3::derive_key("roost 2026 secret of a tenant key", secret),
            session: blake3::derive_key("roost 2026 secret of a session key", secret),
        }
    }

    /// The tenant key with this id, and the hash that is stored of it.
    pub fn tenant_key(&self, id: Uid) -> (String, KeyHash) {
        let id = id.bytes();
        let secret = *blake3::keyed_hash(&self.tenant, &id).as_bytes();
        let hash = KeyHash::of(&Presented { kind: Kind::Tenant, id: id.to_vec(), secret });
        (text(Kind::Tenant, &id, &secret), hash)
    }

    /// The key of a session.
    pub fn session_key(&self, session: &SessionRef) -> String {
        let id = session.encode();
        text(Kind::Session, &id, blake3::keyed_hash(&self.session, &id).as_bytes())
    }

    /// The session that a session key is for, if this server made it.
    pub fn verify_session(&self, key: &Presented) -> Option<SessionRef> {
        let made = blake3::keyed_hash(&self.session, &key.id);
        // Compared before anything of the id is believed, in constant time.
        let genuine = key.kind == Kind::Session && made == blake3::Hash::from_bytes(key.secret);
        genuine.then(|| SessionRef::decode(&key.id)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn session() -> SessionRef {
        SessionRef { tenant: "acme".into(), session_id: "task-17".into(), uid: Uid(7), life: 1 }
    }

    /// Keys outlive releases: these may never change.
    #[test]
    fn keys_are_made_as_ever() {
        let maker = Maker::new(&[1; 32]);
        assert_eq!(
            maker.tenant_key(Uid(7)).0,
            "roost_tenant_00000000000000000000000000000007_\
             1bf619a72de9d684e00a44732b1621fe47fa0b6c9be4781e48754510b5055e07"
        );
        assert_eq!(
            maker.session_key(&session()),
            "roost_session_00000000000000000000000000000007000000010461636d657461736b2d3137_\
             899093dfaf4b1bc88b2bc96456f0e50d7560c67e12bc3fc318890fe0f23aafb6"
        );
    }

    #[test]
    fn no_key_is_accepted_for_another_kind() {
        let maker = Maker::new(&[1; 32]);
        let (tenant, hash) = maker.tenant_key(Uid(7));
        let session_key = maker.session_key(&session());
        let admin = new_admin_key(&std::array::from_fn(|i| i as u8));
        for (key, kind) in [(&tenant, Kind::Tenant), (&session_key, Kind::Session), (&admin, Kind::Admin)] {
            let parsed = parse(key.as_bytes()).unwrap();
            assert_eq!(parsed.kind, kind);
            for other in Kind::ALL.into_iter().filter(|k| *k != kind) {
                let relabelled = key.replacen(kind.prefix(), other.prefix(), 1);
                let forged = parse(relabelled.as_bytes()).unwrap();
                assert_eq!(maker.verify_session(&forged), None, "{kind:?} as {other:?}");
                assert_ne!(KeyHash::of(&forged), hash, "{kind:?} as {other:?}");
                assert_ne!(KeyHash::of(&forged), admin_key_hash(&admin).unwrap(), "{kind:?} as {other:?}");
            }
        }
        assert_eq!(maker.verify_session(&parse(session_key.as_bytes()).unwrap()), Some(session()));
        assert_eq!(KeyHash::of(&parse(tenant.as_bytes()).unwrap()), hash);
        assert_eq!(KeyHash::of(&parse(admin.as_bytes()).unwrap()), admin_key_hash(&admin).unwrap());
    }

    #[test]
    fn another_servers_keys_are_not_accepted() {
        let key = Maker::new(&[1; 32]).session_key(&session());
        assert_eq!(Maker::new(&[2; 32]).verify_session(&parse(key.as_bytes()).unwrap()), None);
        assert_ne!(Maker::new(&[1; 32]).tenant_key(Uid(7)), Maker::new(&[2; 32]).tenant_key(Uid(7)));
    }

    #[test]
    fn a_weak_admin_key_is_refused_without_being_told() {
        for (bad, why) in [
            ("", "form"),
            ("secret", "form"),
            ("roost_admin_00_11", "form"),
            (&format!("roost_admin_{}_{}", "0".repeat(32), "0".repeat(64)), "random"),
            (&format!("roost_admin_{}_{}", "0".repeat(32), "deadbeef".repeat(8)), "random"),
            (&format!("roost_admin_{}_{}", "0".repeat(30), "0".repeat(64)), "form"),
            (&Maker::new(&[1; 32]).tenant_key(Uid(7)).0, "kind"),
        ] {
            let said = admin_key_hash(bad).unwrap_err();
            assert!(said.contains(why), "{said}");
            assert!(bad.is_empty() || !said.contains(bad));
        }
    }

    #[test]
    fn a_presented_key_does_not_show_itself() {
        let (key, _) = Maker::new(&[1; 32]).tenant_key(Uid(7));
        let shown = format!("{:?} {:?}", parse(key.as_bytes()).unwrap(), Maker::new(&[1; 32]));
        assert_eq!(shown, "Presented(tenant) Maker");
    }

    proptest! {
        #[test]
        fn whatever_is_presented_is_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(key) = parse(&bytes) {
                prop_assert_eq!(text(key.kind, &key.id, &key.secret).into_bytes(), bytes);
            }
        }

        /// One changed character makes another key, or none.
        #[test]
        fn no_near_miss_is_accepted(at in 0usize..200, to in 0u8..128) {
            let maker = Maker::new(&[1; 32]);
            let key = maker.session_key(&session());
            let mut bytes = key.clone().into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let accepted = parse(&bytes).and_then(|k| maker.verify_session(&k));
            prop_assert_eq!(accepted, None);
        }

        #[test]
        fn session_keys_name_their_session(
            tenant in "[a-z0-9-]{1,64}", id in "[A-Za-z0-9._:-]{1,256}", uid: u128, life: u32, secret: [u8; 32],
        ) {
            let maker = Maker::new(&secret);
            let of = SessionRef { tenant, session_id: id, uid: Uid(uid), life };
            let key = parse(maker.session_key(&of).as_bytes()).unwrap();
            prop_assert_eq!(maker.verify_session(&key), Some(of));
        }
    }
}
