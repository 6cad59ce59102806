-- 0003: how sessions end: staleness of trees, clean-up after a close. The session table is made anew, because its short
-- columns stand before those that may spill; the records are not touched.

-- As in 0002, with
--   closes:      how often the session was closed
--   stale_ms:    of a root: idle time after which its tree is stale, 0: never, -1: its facts tell (rows of before)
--   active_ms:   service time of the last activity in its tree when the row was written
--   stale_due:   of an OPEN root: service time before which its tree is not stale (a lower bound), 0: never
--   cleanup_due: of an ended session: wall-clock milliseconds of its next step; 0: none, -1: when it is acknowledged
--   cleanup:     roost.store.v1.Cleanup
CREATE TABLE session_3 (
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

-- Every root is looked at once (stale_due 1 is past), and every session that ended gets its first step.
INSERT INTO session_3
SELECT uid, tenant, session_id, root, parent, path, depth, create_ms, state, head, head_version, fence, provisional,
       last, running, finish_due, iif(state = 1, 0, 1), -1, 0, iif(state = 1 AND depth = 0, 1, 0), iif(state = 1, 0, 1),
       seq, lease, facts, receipt, NULL
FROM session;

DROP TABLE session;
ALTER TABLE session_3 RENAME TO session;

CREATE UNIQUE INDEX session_open_path ON session (root, path) WHERE state = 1;
CREATE INDEX session_running ON session (root) WHERE running = 1;
CREATE INDEX session_root ON session (root, uid);
CREATE INDEX session_tenant ON session (tenant, state, uid);
CREATE INDEX session_finish ON session (finish_due, uid) WHERE finish_due > 0;
-- Trees that may be stale, and the next steps of clean-ups, by time; sessions kept until they are acknowledged.
CREATE INDEX session_stale ON session (stale_due, uid) WHERE stale_due > 0;
CREATE INDEX session_cleanup ON session (cleanup_due, uid) WHERE cleanup_due > 0;
CREATE INDEX session_kept ON session (uid) WHERE cleanup_due = -1;

-- Milliseconds that this store has been served, over all starts.
ALTER TABLE shard ADD COLUMN service_ms INTEGER NOT NULL DEFAULT 0 CHECK (service_ms >= 0);
