//! Names and tokens: session ids, uids, path names, leases, request marks, and the rules they obey.

use crate::error::{Reason, Refusal};
use crate::gen_store::RequestMark;
use std::fmt;

/// One life of a session: a UUIDv7, so that uids sort by creation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(pub u128);

impl Uid {
    /// Builds a UUIDv7 (RFC 9562) from wall-clock milliseconds and 80 bits of entropy, of which it keeps 74.
    pub fn v7(wall_ms: i64, entropy: u128) -> Self {
        let ms = (wall_ms as u128 & 0xFFFF_FFFF_FFFF) << 80;
        let rand_a = (entropy >> 68 & 0xFFF) << 64;
        let rand_b = entropy & 0x3FFF_FFFF_FFFF_FFFF;
        Uid(ms | 0x7 << 76 | rand_a | 0x2 << 62 | rand_b)
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// `None` unless it is 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Uid(u128::from_be_bytes(bytes.try_into().ok()?)))
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What BeginTurn hands out: uid, fence and 16 random bytes. Only the server can make one that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    pub uid: Uid,
    pub fence: u64,
    pub nonce: [u8; 16],
}

impl LeaseToken {
    pub const LEN: usize = 40;

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend_from_slice(&self.uid.bytes());
        out.extend_from_slice(&self.fence.to_be_bytes());
        out.extend_from_slice(&self.nonce);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = || {
            let len = bytes.len();
            Refusal::new(Reason::LeaseMalformed, format!("a lease is {} bytes; this is {len}", Self::LEN))
                .with("size", len)
                .with("expected", Self::LEN)
        };
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| malformed())?;
        Ok(LeaseToken {
            uid: Uid::from_bytes(&bytes[..16]).ok_or_else(malformed)?,
            fence: u64::from_be_bytes(bytes[16..24].try_into().map_err(|_| malformed())?),
            nonce: bytes[24..].try_into().map_err(|_| malformed())?,
        })
    }
}

/// Names a trajectory for good: its session's uid and its number there, written `<uid>-<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrajectoryId {
    pub session: Uid,
    pub number: u32,
}

impl TrajectoryId {
    pub fn decode(text: &str) -> Result<Self, Refusal> {
        let parsed = || {
            let (uid, number) = text.rsplit_once('-')?;
            let hex: String = uid.split('-').collect();
            let id = TrajectoryId {
                session: Uid(u128::from_str_radix(&hex, 16).ok()?),
                number: number.parse().ok().filter(|n| *n > 0)?,
            };
            // One spelling only.
            (id.to_string() == text).then_some(id)
        };
        parsed().ok_or_else(|| Refusal::field("trajectory_ids", "is not the id of a trajectory"))
    }
}

impl fmt::Display for TrajectoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.number)
    }
}

/// A session id: 1-256 chars of `[A-Za-z0-9._:-]`.
pub fn check_session_id(field: &str, id: &str) -> Result<(), Refusal> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    if id.is_empty() {
        return Err(Refusal::field(field, "must not be empty"));
    }
    if id.len() > 256 {
        return Err(Refusal::field(field, format!("has {} characters; at most 256 are allowed", id.len()))
            .with("size", id.len())
            .with("limit", 256));
    }
    if !id.bytes().all(ok) {
        return Err(Refusal::field(field, "only A-Z a-z 0-9 . _ : - are allowed"));
    }
    Ok(())
}

/// Whether this is the name of a child in a path.
pub fn is_name(name: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let spelled = name.bytes().enumerate().all(|(i, b)| first(b) || (i > 0 && b == b'-'));
    spelled && (1..=63).contains(&name.len()) && name != "root"
}

/// A path name: `[a-z0-9_][a-z0-9_-]{0,62}`, `root` reserved.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    if !is_name(name) && name != "root" {
        return Err(Refusal::field("options.name", "must match [a-z0-9_][a-z0-9_-]{0,62}"));
    }
    if name == "root" {
        return Err(Refusal::field("options.name", "\"root\" is reserved"));
    }
    Ok(())
}

/// The default name of a child, made from its id: lower case, what a name may not bear becomes `-`.
pub fn name_from_id(session_id: &str) -> String {
    let mut name: String = session_id
        .bytes()
        .take(56)
        .map(|b| match b.to_ascii_lowercase() {
            b @ (b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-') => b as char,
            _ => '-',
        })
        .collect();
    if name.starts_with('-') {
        name.replace_range(..1, "_");
    }
    if name == "root" { "root_".to_owned() } else { name }
}

/// A request_id: empty, or 1-128 printable ASCII characters.
pub fn check_request_id(id: &str) -> Result<(), Refusal> {
    if id.len() > 128 || !id.bytes().all(|b| (0x21..=0x7E).contains(&b)) {
        return Err(Refusal::field("request_id", "must be at most 128 printable ASCII characters without spaces"));
    }
    Ok(())
}

/// The mark that a request leaves on the thing it made; `None` without a request_id. `payload` is the request encoded
/// with its request_id cleared.
pub fn mark(request_id: &str, payload: impl FnOnce() -> Vec<u8>) -> Option<RequestMark> {
    (!request_id.is_empty()).then(|| RequestMark { request_id: request_id.to_owned(), hash: request_hash(&payload()) })
}

/// The hash of a request's payload in its mark.
pub fn request_hash(payload: &[u8]) -> Vec<u8> {
    blake3::hash(payload).as_bytes()[..16].to_vec()
}

/// Whether `now` repeats `then`: `Ok(true)` the same request, `Ok(false)` another id, `Err` same id, other payload.
pub fn repeats(then: Option<&RequestMark>, now: Option<&RequestMark>) -> Result<bool, Refusal> {
    match (then, now) {
        (Some(a), Some(b)) if a.request_id == b.request_id => {
            if a.hash == b.hash {
                Ok(true)
            } else {
                Err(Refusal::new(
                    Reason::RequestMismatch,
                    format!("request_id {:?} was used with another payload", b.request_id),
                )
                .with("request_id", &b.request_id))
            }
        }
        _ => Ok(false),
    }
}

/// What a request_id that records keep was of. Those of different RPCs do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Asked {
    Begin,
    /// CommitTurn or AbortTurn.
    End,
    Finish,
    /// SendMessage; the sender is part of it.
    Send,
}

/// A 64-bit fingerprint of a request_id, for the set of those a session has seen.
pub fn fingerprint(asked: Asked, request_id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let hash = hasher.update(&[asked as u8]).update(request_id.as_bytes()).finalize();
    u64::from_le_bytes(*hash.as_bytes().first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes"))
}

/// The session id of an OpenSession that gave none: the same for each repeat of its request_id.
pub fn derived_session_id(tenant: &str, request_id: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("roost 2026 session id from request id");
    hasher.update(&(tenant.len() as u64).to_le_bytes()).update(tenant.as_bytes()).update(request_id.as_bytes());
    format!("s-{}", &hasher.finalize().to_hex()[..32])
}

/// What stands for a tenant in names of files and objects: 32 hex characters that tell nothing of its name (I25).
pub fn tenant_uid(tenant: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("roost 2026 tenant uid of dumps");
    hasher.update(tenant.as_bytes()).finalize().to_hex()[..32].to_owned()
}

/// The name of the dump of one close of a session: `<tenant uid>/<uid>-<close number>`. Nothing in it was chosen by a client.
pub fn dump_name(tenant: &str, uid: Uid, close_number: u32) -> String {
    format!("{}/{uid}-{close_number}", tenant_uid(tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_name_is_made_of_hex_and_numbers_whatever_the_tenant_is_called() {
        let names: Vec<String> =
            ["default", "Default", "../../x", "a\0b", ""].iter().map(|t| dump_name(t, Uid(7), 2)).collect();
        for name in &names {
            let (tenant, rest) = name.split_once('/').unwrap();
            assert!(tenant.len() == 32 && tenant.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{name}");
            assert_eq!(rest, "00000000-0000-0000-0000-000000000007-2");
        }
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        // Dumps are found by it: it never changes.
        assert_eq!(tenant_uid("default"), "bedbfa66a4839fbb3c6911e1a058a34c");
    }

    #[test]
    fn uuid_v7_has_version_variant_and_time() {
        let uid = Uid::v7(0x0123_4567_89AB, u128::MAX);
        assert_eq!(uid.to_string(), "01234567-89ab-7fff-bfff-ffffffffffff");
        assert!(Uid::v7(1, u128::MAX) < Uid::v7(2, 0));
    }

    #[test]
    fn a_lease_round_trips_and_rejects_other_lengths() {
        let token = LeaseToken { uid: Uid(7), fence: 9, nonce: [3; 16] };
        assert_eq!(LeaseToken::decode(&token.encode()), Ok(token));
        assert_eq!(LeaseToken::decode(&[0; 39]).unwrap_err().reason, Reason::LeaseMalformed);
    }

    #[test]
    fn a_trajectory_id_round_trips_in_one_spelling() {
        let id = TrajectoryId { session: Uid(7), number: 12 };
        assert_eq!(id.to_string(), "00000000-0000-0000-0000-000000000007-12");
        assert_eq!(TrajectoryId::decode(&id.to_string()), Ok(id));
        for bad in ["", "-", "7-12", "00000000000000000000000000000007-12", &format!("{id} "), &format!("{}-0", Uid(7))]
        {
            assert_eq!(TrajectoryId::decode(bad).unwrap_err().reason, Reason::InvalidField, "{bad}");
        }
    }

    #[test]
    fn made_names_obey_the_rule() {
        for id in ["A.B:c", "-x", "root", "ROOT", &"z".repeat(256), ":"] {
            check_name(&name_from_id(id)).unwrap();
        }
    }
}
