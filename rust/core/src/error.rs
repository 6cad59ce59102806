//! The one table of error reasons, and how a refusal is written on the wire.
//!
//! Server, client and docs all read this table: the client makes its exceptions from it, `docs/API.md` prints it.
//! A refusal is a gRPC code, one sentence, and a `google.rpc.Status` with exactly one `ErrorInfo` (AIP-193: every
//! dynamic value of the sentence is in its metadata too), plus `RetryInfo` where waiting helps and `QuotaFailure`
//! where a cap refused.

use prost::Message;
use std::collections::BTreeMap;

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "roost";

/// The gRPC status codes that Roost uses, by their number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

macro_rules! reasons {
    ($($variant:ident $name:literal $code:ident $meaning:literal $advice:literal;)*) => {
        /// Why a call was refused. The name on the wire is stable for good.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $(#[doc = $meaning] $variant,)* }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The `reason` of the `ErrorInfo`.
            pub fn name(self) -> &'static str { match self { $(Reason::$variant => $name,)* } }
            /// The gRPC code that goes with it.
            pub fn code(self) -> Code { match self { $(Reason::$variant => Code::$code,)* } }
            /// What it means.
            pub fn meaning(self) -> &'static str { match self { $(Reason::$variant => $meaning,)* } }
            /// What the caller should do.
            pub fn advice(self) -> &'static str { match self { $(Reason::$variant => $advice,)* } }
            /// The reason of this name.
            pub fn from_name(name: &str) -> Option<Reason> {
                Self::ALL.iter().copied().find(|r| r.name() == name)
            }
        }
    };
}

reasons! {
    MalformedRequest "MALFORMED_REQUEST" InvalidArgument "The bytes are not a message of this method." "Fix the client; do not retry.";
    InvalidField "INVALID_FIELD" InvalidArgument "A field breaks its rule; `field` names it." "Fix the request; do not retry.";
    TooLarge "TOO_LARGE" InvalidArgument "A field is over its size limit; `field`, `size` and `limit` say by how much." "Send less, or put large arrays in your own object store.";
    BadPageToken "BAD_PAGE_TOKEN" InvalidArgument "The page or resume token is not one of this list, or watch, with these filters and this key." "Start again without it.";
    LeaseMalformed "LEASE_MALFORMED" InvalidArgument "The bytes are not a lease of this server." "Send the lease of BeginTurn as it came.";
    RequestMismatch "REQUEST_MISMATCH" InvalidArgument "This request_id was used with another payload." "Use a new request_id for a new request.";
    KeyInvalid "KEY_INVALID" Unauthenticated "The call bears no API key that is valid here: none, one that is not known, or one that was revoked." "Send a valid key as `authorization: Bearer <key>`.";
    KeyScope "KEY_SCOPE" PermissionDenied "A key of this kind may not do this, whatever it is done to." "Use a key that may: an admin key for AdminService, a tenant key for new trees, restores and `force`.";
    KeyNotFound "KEY_NOT_FOUND" NotFound "No API key of this id is known." "List the keys; the ids are there.";
    TenantKeys "TENANT_KEYS" ResourceExhausted "The tenant has as many active API keys as it may." "Revoke the one that is no longer used.";
    KeysOff "KEYS_OFF" FailedPrecondition "The server runs without keys: it has no admin key." "Start it with an admin key.";
    KeyLost "KEY_LOST" FailedPrecondition "The key cannot be shown again: the server's secret was replaced since it was made." "Revoke it and create another.";
    SessionNotFound "SESSION_NOT_FOUND" NotFound "No session of this id is known." "Open it first.";
    ParentNotFound "PARENT_NOT_FOUND" NotFound "No session of the parent's id is known." "Open the parent first.";
    TurnNotFound "TURN_NOT_FOUND" NotFound "The session's live line has no turn of this number." "Read the session's history.";
    TrajectoryNotFound "TRAJECTORY_NOT_FOUND" NotFound "No finished trajectory of this id is known." "Export what is READY; the ids are there.";
    ResourceNotFound "RESOURCE_NOT_FOUND" NotFound "The session never had a resource of this name, or has it no more." "Use the name that AttachResource gave; attach again.";
    DumpNotFound "DUMP_NOT_FOUND" NotFound "The dump target holds no dump of this name." "Look for its name with `roost dumps list`; receipts bear it.";
    SessionExists "SESSION_EXISTS" AlreadyExists "A session of this id is open; of a restore: the session, or another of its id, is known." "Use it, choose another id, or say if_exists RETURN; a session is restored where it is not known.";
    PathCollision "PATH_COLLISION" AlreadyExists "An open sibling has this name." "Choose another name.";
    SessionClosed "SESSION_CLOSED" FailedPrecondition "The session has ended; it never comes back by itself." "Open another one.";
    SessionSealed "SESSION_SEALED" FailedPrecondition "The session has ended and its clean-up, or that of a descendant which ended with it, still runs." "Retry after the delay; GetSession tells how far it is.";
    SessionPurged "SESSION_PURGED" FailedPrecondition "The session has ended and its content is deleted, or is being deleted." "Restore it from its dump, where it is not known: on another server, or here once its tombstone is over.";
    SessionRestoring "SESSION_RESTORING" FailedPrecondition "The session is being made from its dump, or what is left of a try is being deleted." "Retry after the delay.";
    TurnInProgress "TURN_IN_PROGRESS" FailedPrecondition "A turn of this session runs or waits already." "Wait until it ends, or end it.";
    TurnMismatch "TURN_MISMATCH" FailedPrecondition "The session's head is not what the caller expected." "Read the session and decide again.";
    TurnEnded "TURN_ENDED" FailedPrecondition "The turn that this request_id began is over; `outcome` says how." "Begin a new turn with a new request_id.";
    TurnInterrupted "TURN_INTERRUPTED" FailedPrecondition "InterruptSession ended the wait, or asked the turn to end." "Begin again when the session is to go on.";
    LeaseLost "LEASE_LOST" FailedPrecondition "The lease is not the session's latest grant, or its turn has ended. Nothing was written." "Begin the turn again.";
    TokenPrefixMismatch "TOKEN_PREFIX_MISMATCH" FailedPrecondition "The token span does not continue the checkpoint." "Send the right offset, raise max_trim, or set new_segment.";
    RewindRefused "REWIND_REFUSED" FailedPrecondition "`base_turn` is not a turn that the session may go back to. Nothing was written." "Go back by at most max_rewind turns, and not into a finished trajectory.";
    TrajectoryEmpty "TRAJECTORY_EMPTY" FailedPrecondition "The active trajectory has nothing to finish, or no committed turn to reward." "Run a turn first.";
    TrajectoryFinished "TRAJECTORY_FINISHED" FailedPrecondition "The turn belongs to a trajectory that is finished: its rewards are fixed." "Set rewards before the trajectory is finished.";
    NoDumpTarget "NO_DUMP_TARGET" FailedPrecondition "The server has no dump target." "Set `dump_target` to where the dumps lie.";
    DumpNewer "DUMP_NEWER" FailedPrecondition "A newer version of Roost wrote the dump." "Restore it on that version or a newer one.";
    ResourceReleasing "RESOURCE_RELEASING" FailedPrecondition "The resource is to end: its pool needed the place, it was idle for too long, or it was detached." "Do not make it; if it is there, end it and detach it. Attach another.";
    DriverOff "DRIVER_OFF" FailedPrecondition "The server has no driver for resources of this kind." "Configure the driver, or use kind CLIENT.";
    TreeTurns "TREE_TURNS" ResourceExhausted "The tree runs as many turns as it may." "Wait for a slot (`wait`), or end a turn that the details name.";
    TenantTurns "TENANT_TURNS" ResourceExhausted "The tenant runs as many turns as it may." "Wait for a slot (`wait`), or end a turn that the details name; ListSessions has the rest by activity RUNNING.";
    TreeSessions "TREE_SESSIONS" ResourceExhausted "The tree has as many open sessions as it may." "Close sessions of the tree.";
    ResourceLimit "RESOURCE_LIMIT" ResourceExhausted "The session, or the server, has as many resources as it may." "Detach resources, or raise the limit that the details name.";
    PoolFull "POOL_FULL" ResourceExhausted "The pool has no place: it admits nothing, all its holders run turns, or none ended in time." "Wait until a holder's turn ends, or raise the cap.";
    StoreBytes "STORE_BYTES" ResourceExhausted "The store is as large as it may be; no session is made." "Close and acknowledge sessions, shorten the retention, or raise max_store_bytes.";
    TreeDepth "TREE_DEPTH" ResourceExhausted "The tree is as deep as it may be." "Open the session higher up.";
    MailboxFull "MAILBOX_FULL" ResourceExhausted "The session's mailbox is as full as it may be." "Have it run a turn, which takes its mail; send less, or with a ttl.";
    RootTrigger "ROOT_TRIGGER" FailedPrecondition "A descendant may not make the root of its tree runnable." "Send without `trigger`; open the root with wake_on_completion to be woken by its children's ends.";
    QueueFull "QUEUE_FULL" ResourceExhausted "As many calls wait as may, on this connection or in all." "Wait less, or spread waiting calls over connections.";
    Overloaded "OVERLOADED" ResourceExhausted "Calls wait too long at the door; some of the new work is refused there." "Retry after the delay, with the same request_id.";
    JournalBehind "JOURNAL_BEHIND" ResourceExhausted "The disk is behind; new work is held off." "Retry after the delay.";
    JournalFull "JOURNAL_FULL" Unavailable "The disk is far behind; nothing is taken." "Retry after the delay.";
    StoreLow "STORE_LOW" ResourceExhausted "The disk is almost full; new work is refused, running work may end." "Free disk space; the server goes on by itself.";
    StoreFull "STORE_FULL" Unavailable "The disk is full; nothing can be written." "Free disk space; the server goes on by itself.";
    NotStored "NOT_STORED" Unavailable "The change was not stored, and nothing of it happened." "Retry with the same request_id.";
    Recovering "RECOVERING" Unavailable "The server re-reads its state after a write that the store refused." "Retry after the delay.";
    LoadFailed "LOAD_FAILED" Unavailable "The session could not be read from the store." "Retry; if it stays, look at the server's log.";
    DumpUnreadable "DUMP_UNREADABLE" Unavailable "The dump target cannot be read; the message says why." "Retry; if it stays, look at the target.";
    ShuttingDown "SHUTTING_DOWN" Unavailable "The server is stopping." "Retry; another process, or the next one, answers.";
    SessionCorrupt "SESSION_CORRUPT" DataLoss "What the store holds of this session does not verify; it is quarantined, the others are served." "Restore it from a dump or backup.";
    DumpDamaged "DUMP_DAMAGED" DataLoss "The dump is not what Roost wrote. Nothing of it was restored." "Restore another dump or a backup; `roost dumps verify` says what is wrong.";
    TreeQuarantined "TREE_QUARANTINED" DataLoss "The store refused this tree's entries alone; it is set aside until a restart." "Report it with the server's log; restart the server.";
    InternalError "INTERNAL_ERROR" Internal "The server has a bug." "Report it with the server's log.";
}

/// The cap that refused, for `QuotaFailure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The name of the limit, as in the configuration.
    pub limit_name: &'static str,
    /// Its value.
    pub limit: u64,
    /// How much is in use.
    pub used: u64,
    /// At most eight who hold it, longest first: session id and how long in ms.
    pub holders: Vec<(String, u64)>,
}

/// Why a call did not happen. A refused call has changed nothing (I22).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub message: String,
    pub metadata: BTreeMap<String, String>,
    pub retry_ms: Option<u64>,
    pub quota: Option<Box<Quota>>,
}

impl Refusal {
    /// A refusal with its sentence; `with` adds the values that the sentence mentions.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Refusal { reason, message: message.into(), metadata: BTreeMap::new(), retry_ms: None, quota: None }
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, ms: u64) -> Self {
        self.retry_ms = Some(ms);
        self
    }

    #[must_use]
    pub fn quota(mut self, quota: Quota) -> Self {
        self.metadata.insert("limit_name".into(), quota.limit_name.into());
        self.metadata.insert("limit".into(), quota.limit.to_string());
        self.metadata.insert("used".into(), quota.used.to_string());
        let mut holders = String::new();
        for (id, ms) in quota.holders.iter().take(8) {
            let one = format!("{}{id}={ms}", if holders.is_empty() { "" } else { " " });
            // All details are to fit 4 KiB, and those of the violation name them again.
            if holders.len() + one.len() > 600 {
                break;
            }
            holders += &one;
        }
        if !holders.is_empty() {
            self.metadata.insert("holders".into(), holders);
        }
        self.quota = Some(Box::new(quota));
        self
    }

    /// A cap that has no room.
    pub fn cap(reason: Reason, limit_name: &'static str, limit: u64, used: u64) -> Self {
        let quota = Quota { limit_name, limit, used, holders: Vec::new() };
        Refusal::new(reason, format!("{limit_name} is {limit}; {used} in use")).quota(quota)
    }

    /// A field that breaks its rule.
    pub fn field(field: &str, rule: impl Into<String>) -> Self {
        let rule = rule.into();
        Refusal::new(Reason::InvalidField, format!("{field}: {rule}")).with("field", field).with("rule", rule)
    }

    /// A field over its size.
    pub fn too_large(field: &str, size: usize, limit: usize) -> Self {
        Refusal::new(Reason::TooLarge, format!("{field} is {size} bytes; the limit is {limit}"))
            .with("field", field)
            .with("size", size)
            .with("limit", limit)
    }

    /// As part of an answer, for calls that answer each of their parts by itself.
    pub fn to_proto(&self) -> crate::gen_v1::Refusal {
        crate::gen_v1::Refusal {
            code: self.reason.code() as i32,
            reason: self.reason.name().to_owned(),
            message: self.message.clone(),
            metadata: self.metadata.clone(),
        }
    }

    /// The encoded `google.rpc.Status` for the `grpc-status-details-bin` trailer; under 4 KiB.
    pub fn to_status(&self) -> Vec<u8> {
        let mut details = vec![any(
            "google.rpc.ErrorInfo",
            &ErrorInfo {
                reason: self.reason.name().to_owned(),
                domain: DOMAIN.to_owned(),
                metadata: self.metadata.clone(),
            },
        )];
        if let Some(ms) = self.retry_ms {
            let retry_delay =
                prost_types::Duration { seconds: (ms / 1000) as i64, nanos: ((ms % 1000) * 1_000_000) as i32 };
            details.push(any("google.rpc.RetryInfo", &RetryInfo { retry_delay: Some(retry_delay) }));
        }
        if let Some(q) = &self.quota {
            let mut description = format!("{} of {} in use; limit {}", q.used, q.limit, q.limit_name);
            for (i, (holder, ms)) in q.holders.iter().take(8).enumerate() {
                description.push_str(if i == 0 { "; held by " } else { ", " });
                description.push_str(&format!("{holder} ({} s)", ms / 1000));
            }
            let violation = Violation { subject: q.limit_name.to_owned(), description };
            details.push(any("google.rpc.QuotaFailure", &QuotaFailure { violations: vec![violation] }));
        }
        Status { code: self.reason.code() as i32, message: self.message.clone(), details }.encode_to_vec()
    }
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

// The few messages of google.rpc that Roost writes, by their published field numbers.

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[derive(Clone, PartialEq, Message)]
struct QuotaFailure {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<Violation>,
}

#[derive(Clone, PartialEq, Message)]
struct Violation {
    #[prost(string, tag = "1")]
    subject: String,
    #[prost(string, tag = "2")]
    description: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_well_formed() {
        let mut seen = std::collections::HashSet::new();
        for r in Reason::ALL {
            assert!(seen.insert(r.name()), "{} twice", r.name());
            assert!(r.name().len() <= 63 && r.name().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
            assert_eq!(Reason::from_name(r.name()), Some(*r));
        }
    }

    #[test]
    fn the_largest_quota_failure_stays_under_four_kib() {
        let quota = Quota {
            limit_name: "max_turns_per_tenant",
            limit: u64::MAX,
            used: u64::MAX,
            holders: vec![("s".repeat(256), u64::MAX); 20],
        };
        let status = Refusal::new(Reason::TenantTurns, "m".repeat(600)).quota(quota).retry_after(1).to_status();
        assert!(status.len() < 4096, "{}", status.len());
    }
}
