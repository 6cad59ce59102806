//! The numbers that bound the engine. Defaults and their meaning are documented with the server's configuration.
//!
//! [`Limits`] are values as a configuration gives them, [`LiveLimits`] those in force: they change while the server runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// Whether a limit can be changed while the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Free,
    /// Memory is laid out for it at the start: it can be lowered, and raised again up to what it was.
    LaidOut,
    /// Something was made with it at the start.
    Fixed,
}

impl Change {
    /// Its name, for docs.
    pub fn name(self) -> &'static str {
        match self {
            Change::Free => "free",
            Change::LaidOut => "laid out",
            Change::Fixed => "fixed",
        }
    }
}

macro_rules! change {
    () => {
        Change::Free
    };
    ($change:ident) => {
        Change::$change
    };
}

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $default:expr, $min:expr, $max:expr $(, $change:ident)?;)*) => {
        /// What the engine enforces. All are integers; times are in milliseconds, sizes in bytes.
        #[derive(Clone, Debug)]
        pub struct Limits { $($(#[$doc])* pub $name: u64,)* }

        impl Default for Limits {
            fn default() -> Self { Limits { $($name: $default,)* } }
        }

        impl Limits {
            /// Every limit by name: default, least and greatest value.
            pub const TABLE: &'static [(&'static str, u64, u64, u64)] =
                &[$((stringify!($name), $default, $min, $max),)*];

            /// Every limit by name, and whether it can be changed while the server runs.
            pub const CHANGES: &'static [(&'static str, Change)] =
                &[$((stringify!($name), change!($($change)?)),)*];

            /// Sets one by name; an error names what is wrong.
            pub fn set(&mut self, name: &str, value: u64) -> Result<(), String> {
                match name {
                    $(stringify!($name) => {
                        let (min, max): (u64, u64) = ($min, $max);
                        if !(min..=max).contains(&value) {
                            return Err(format!("{name} must be between {min} and {max}, not {value}"));
                        }
                        self.$name = value;
                        Ok(())
                    })*
                    _ => Err(format!("there is no limit called {name}")),
                }
            }

            /// One by name.
            pub fn get(&self, name: &str) -> Option<u64> {
                match name {
                    $(stringify!($name) => Some(self.$name),)*
                    _ => None,
                }
            }
        }

        /// The limits in force. Each is read by itself: who needs two that agree with each other finds none here.
        #[derive(Debug)]
        pub struct LiveLimits { $($name: AtomicU64,)* }

        impl LiveLimits {
            pub fn new(limits: &Limits) -> Self {
                LiveLimits { $($name: AtomicU64::new(limits.$name),)* }
            }

            /// Puts one in force.
            pub(crate) fn put(&self, name: &str, value: u64) {
                match name {
                    $(stringify!($name) => self.$name.store(value, Ordering::Relaxed),)*
                    _ => debug_assert!(false, "there is no limit called {name}"),
                }
            }

            /// One by name.
            pub fn get(&self, name: &str) -> Option<u64> {
                match name {
                    $(stringify!($name) => Some(self.$name()),)*
                    _ => None,
                }
            }

            // Relaxed: a limit publishes nothing but itself; where one must not be missed, a lock orders its readers.
            $($(#[$doc])* #[inline] pub(crate) fn $name(&self) -> u64 { self.$name.load(Ordering::Relaxed) })*
        }
    };
}

limits! {
    /// Sessions in memory; the least recently used goes first.
    max_resident_sessions: 50_000, 1, 50_000_000, LaidOut;
    /// Bytes of sessions and tree headers in memory.
    max_resident_bytes: 4 << 30, 1 << 20, 1 << 46, LaidOut;
    /// Turns running at once in one tree; one place is always kept for the root.
    max_turns_per_tree: 8, 1, 10_000;
    /// Turns running at once for one tenant; 0 = pause.
    max_turns_per_tenant: 1_000, 0, 1_000_000;
    /// Open sessions in one tree.
    max_sessions_per_tree: 1_000, 1, 10_000;
    /// Levels below the root.
    max_depth: 8, 0, 64;
    /// BeginTurn calls that wait, in all.
    max_waiters: 10_000, 0, 1_000_000;
    /// BeginTurn calls that wait, on one connection.
    max_waiters_per_connection: 512, 0, 1_000_000;
    /// Lease of a turn that asks for none.
    default_lease_ms: 60_000, 5_000, 3_600_000;
    /// Longest wait for a slot.
    max_wait_ms: 300_000, 0, 3_600_000;
    /// Staleness of a tree that asks for none; 0 = never.
    default_stale_ms: 3_600_000, 0, 1 << 50;
    /// How often trees that may be stale are looked at; 0 = never.
    sweep_interval_ms: 60_000, 0, 86_400_000;
    /// How long the content of a CLOSED session is kept.
    retention_ms: 7 * 86_400_000, 0, 1 << 50;
    /// How long a session whose content is purged is known after that.
    tombstone_retention_ms: 30 * 86_400_000, 0, 1 << 50;
    /// Whether content goes that was neither dumped nor acknowledged: 1 = yes.
    purge_without_dump: 0, 0, 1;
    /// Bytes of the store from which on no session is made; 0 = no limit.
    max_store_bytes: 0, 0, 1 << 50;
    /// Resources that are attached, in all: each is in memory.
    max_resources: 100_000, 0, 10_000_000;
    /// Resources of one session.
    max_resources_per_session: 100, 0, 100_000;
    /// How long a place in a pool is waited for that an earlier release should have freed, before another resource is
    /// released for it.
    release_timeout_ms: 10_000, 100, 3_600_000, Fixed;
    /// Inline payload of one turn: content and token arrays together.
    max_turn_bytes: 1 << 20, 1, 64 << 20;
    /// The client's own state in a checkpoint.
    max_state_bytes: 64 << 10, 0, 1 << 20;
    /// How many turns a commit may go back.
    max_rewind: 8, 0, 1_000_000;
    /// What a session that begins with a copy of another's history may copy: payloads and what is stored with them.
    max_fork_bytes: 64 << 20, 0, 1 << 30;
    /// How long after a SetReward its trajectory finishes by itself; 0 = never.
    reward_finish_delay_ms: 0, 0, 30 * 86_400_000;
    /// Checkpoint tokens that an answer carries inline.
    max_inline_checkpoint_bytes: 1 << 20, 0, 64 << 20;
    /// Journal entries not yet durable.
    journal_queue_bytes: 64 << 20, 1 << 16, 16 << 30, LaidOut;
    /// Age of the oldest of them from which on new work is refused; 0 = whatever their age.
    max_journal_lag_ms: 1_000, 0, 3_600_000;
    /// How long a cancelled wait with a request_id keeps its place for its repeat.
    keep_place_ms: 30_000, 0, 600_000;
    /// Events of sessions in memory for those who watch, of all tenants together; one of more than 512 bytes counts as
    /// several.
    max_watch_events: 65_536, 1, 16 << 20;
    /// Messages in a mailbox; what the ends of children tell is not counted.
    max_mailbox_messages: 1_000, 1, 100_000;
    /// Their content.
    max_mailbox_bytes: 8 << 20, 1_024, 1 << 30;
    /// Content of one message.
    max_message_bytes: 256 << 10, 1, 1 << 20;
    /// How often a message is handed to a turn before it is DEAD.
    max_deliveries: 5, 1, 1_000;
    /// Entries that one batch takes at most.
    max_batch_entries: 4_096, 1, 65_536;
}

/// The longest delay of a finish that a caller may ask for.
pub const MAX_FINISH_AFTER_MS: u64 = 30 * 86_400_000;

/// Shortest and longest lease a caller may ask for.
pub const LEASE_MS: std::ops::RangeInclusive<u64> = 5_000..=3_600_000;
