-- 0006: mail. The session table is made anew, because its short columns stand before those that may spill.

-- As in 0003, with
--   outcome: roost.v1.TurnOutcome of its latest turn; of rows of before its facts tell
--   wakes:   1: what its children's ends tell it makes it runnable
--   owner:   who began its latest turn; of rows of before nobody knows
CREATE TABLE session_6 (
  uid          BLOB    NOT NULL PRIMARY KEY CHECK (length(uid) = 16),
  tenant       TEXT    NOT NULL,
  session_id   TEXT    NOT NULL,
  root         BLOB    NOT NULL CHECK (length(root) = 16),
  parent       BLOB    NOT NULL CHECK (length(parent) IN (0, 16)),
  path         TEXT    NOT NULL,
  depth        INTEGER NOT NULL,
  create_ms    INTEGER NOT NULL,
  state        INTEGER NOT NULL CHECK (state IN (1, 2, 3)),  -- OPEN, SEALED, CLOSED
  head         INTEGER NOT NULL CHECK (head >= 0),
  head_version INTEGER NOT NULL CHECK (head_version >= 0),
  fence        INTEGER NOT NULL CHECK (fence >= 0),
  provisional  INTEGER NOT NULL,
  last         INTEGER NOT NULL,
  running      INTEGER NOT NULL CHECK (running IN (0, 1)),
  finish_due   INTEGER NOT NULL CHECK (finish_due >= 0 AND (finish_due = 0 OR state = 1)),
  closes       INTEGER NOT NULL CHECK (closes >= 0 AND (closes > 0 OR state = 1)),
  stale_ms     INTEGER NOT NULL CHECK (stale_ms >= -1),
  active_ms    INTEGER NOT NULL CHECK (active_ms >= 0),
  stale_due    INTEGER NOT NULL CHECK (stale_due >= 0 AND (stale_due = 0 OR (state = 1 AND depth = 0))),
  cleanup_due  INTEGER NOT NULL CHECK (cleanup_due >= -1 AND (cleanup_due = 0 OR state > 1)),
  close_seq    INTEGER NOT NULL CHECK (close_seq >= 0),
  outcome      INTEGER NOT NULL DEFAULT 0 CHECK (outcome >= 0),
  wakes        INTEGER NOT NULL DEFAULT 0 CHECK (wakes IN (0, 1)),
  owner        TEXT    NOT NULL DEFAULT '',
  seq          INTEGER NOT NULL CHECK (seq > 0),
  lease        BLOB,
  facts        BLOB    NOT NULL,
  receipt      BLOB,
  cleanup      BLOB,
  UNIQUE (tenant, session_id),
  CHECK ((depth = 0) = (length(parent) = 0) AND (depth = 0) = (root = uid) AND depth >= 0),
  CHECK (running = 0 OR (state = 1 AND lease IS NOT NULL)),
  CHECK (provisional BETWEEN 0 AND last AND (provisional = 0 OR state = 1)),
  CHECK ((receipt IS NULL) = (state = 1) AND (cleanup IS NULL OR state > 1))
) STRICT, WITHOUT ROWID;

INSERT INTO session_6
SELECT uid, tenant, session_id, root, parent, path, depth, create_ms, state, head, head_version, fence, provisional,
       last, running, finish_due, closes, stale_ms, active_ms, stale_due, cleanup_due, close_seq, 0, 0, '', seq, lease,
       facts, receipt, cleanup
FROM session;

DROP TABLE session;
ALTER TABLE session_6 RENAME TO session;

CREATE UNIQUE INDEX session_open_path ON session (root, path) WHERE state = 1;
CREATE INDEX session_running ON session (root) WHERE running = 1;
CREATE INDEX session_root ON session (root, uid);
CREATE INDEX session_tenant ON session (tenant, state, uid);
CREATE INDEX session_finish ON session (finish_due, uid) WHERE finish_due > 0;
CREATE INDEX session_stale ON session (stale_due, uid) WHERE stale_due > 0;
CREATE INDEX session_cleanup ON session (state, cleanup_due, uid) WHERE cleanup_due > 0;
CREATE INDEX session_kept ON session (uid) WHERE cleanup_due = -1;
CREATE INDEX session_close ON session (root, close_seq) WHERE state > 1;

-- One row a message, those that have ended too, until the content of its recipient is purged. The rowid is the journal
-- sequence: the order of sending, and of delivery (I15). What a header load reads stands before what may spill.
--   due:     wall-clock milliseconds from which on it makes its session runnable, -1: it does not
--   expire:  wall-clock milliseconds at which it expires while it is QUEUED, 0: never
--   fence:   of the grant that took it last, 0: none has
--   request: sender and request_id, NULL: no repeat is told
CREATE TABLE message (
  seq        INTEGER PRIMARY KEY CHECK (seq > 0),
  message_id BLOB    NOT NULL CHECK (length(message_id) = 16),
  recipient  BLOB    NOT NULL CHECK (length(recipient) = 16),
  root       BLOB    NOT NULL CHECK (length(root) = 16),  -- of the recipient's tree
  tenant     TEXT    NOT NULL CHECK (tenant <> ''),
  sender     BLOB    CHECK (length(sender) = 16),  -- NULL: a host
  kind       INTEGER NOT NULL CHECK (kind IN (1, 2, 3, 4)),  -- MESSAGE, COMPLETED, FAILED, CLOSED
  state      INTEGER NOT NULL CHECK (state IN (1, 2, 3, 4, 5, 6)),  -- QUEUED, DELIVERED, CONSUMED, EXPIRED, DEAD, CLOSED
  due        INTEGER NOT NULL CHECK (due >= -1 AND (due = -1 OR state <= 2)),
  expire     INTEGER NOT NULL CHECK (expire >= 0 AND (expire > 0 OR state <> 4)),
  deliveries INTEGER NOT NULL CHECK (deliveries >= 0 AND (deliveries > 0 OR state <> 5)),
  fence      INTEGER NOT NULL CHECK (fence >= 0 AND (fence > 0 OR state NOT IN (2, 3))),
  create_ms  INTEGER NOT NULL,
  meta       BLOB    NOT NULL,
  content    BLOB,
  request    TEXT
) STRICT;

-- Lists in order of sending (an index bears the rowid behind its columns): to a session, and from one.
CREATE INDEX message_recipient ON message (recipient);
CREATE INDEX message_sender ON message (sender) WHERE sender IS NOT NULL;
-- What a header load reads, and what ends with a session: the mailboxes of a tree.
CREATE INDEX message_live ON message (root, recipient) WHERE state <= 2;
-- What makes sessions of a tenant runnable, by time.
CREATE INDEX message_runnable ON message (tenant, due) WHERE state = 1 AND due >= 0;
-- What a dump holds of a session's mail.
CREATE INDEX message_unread ON message (recipient) WHERE state = 6;
-- I21: one message to a session of one request.
CREATE UNIQUE INDEX message_request ON message (recipient, request) WHERE request IS NOT NULL;
