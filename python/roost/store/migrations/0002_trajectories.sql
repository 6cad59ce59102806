-- 0002: trajectories, rewards, finishes that come by themselves. Two tables are made anew, because SQLite cannot change
-- the CHECK of one or add a column in its middle; a store needs twice its size again while this runs.

-- As in 0001, with `finish_due`: wall-clock milliseconds from which on the active trajectory finishes by itself, 0: never.
CREATE TABLE session_2 (
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
  seq          INTEGER NOT NULL CHECK (seq > 0),
  lease        BLOB,
  facts        BLOB    NOT NULL,
  receipt      BLOB,
  UNIQUE (tenant, session_id),
  CHECK ((depth = 0) = (length(parent) = 0) AND (depth = 0) = (root = uid) AND depth >= 0),
  CHECK (running = 0 OR (state = 1 AND lease IS NOT NULL)),
  CHECK (provisional BETWEEN 0 AND last AND (provisional = 0 OR state = 1))
) STRICT, WITHOUT ROWID;

INSERT INTO session_2
SELECT uid, tenant, session_id, root, parent, path, depth, create_ms, state, head, head_version, fence, provisional,
       last, running, 0, seq, lease, facts, receipt
FROM session;

DROP TABLE session;
ALTER TABLE session_2 RENAME TO session;

CREATE UNIQUE INDEX session_open_path ON session (root, path) WHERE state = 1;
CREATE INDEX session_running ON session (root) WHERE running = 1;
CREATE INDEX session_root ON session (root, uid);
CREATE INDEX session_tenant ON session (tenant, state, uid);
-- Finishes that come by themselves, by time.
CREATE INDEX session_finish ON session (finish_due, uid) WHERE finish_due > 0;

-- As in 0001. Status 5 is an event that is no record: a trajectory was finished. It stands on the session's chain.
CREATE TABLE record_2 (
  seq     INTEGER PRIMARY KEY CHECK (seq > 0),
  session BLOB    NOT NULL CHECK (length(session) = 16),
  prev    INTEGER NOT NULL CHECK (prev >= 0 AND prev < seq),
  status  INTEGER NOT NULL CHECK (status IN (1, 2, 3, 4, 5)),  -- COMMITTED, PROVISIONAL, ABORTED, SUPERSEDED, event
  turn    INTEGER NOT NULL CHECK (turn > 0 OR (turn = 0 AND status = 5)),
  chain   BLOB    NOT NULL CHECK (length(chain) = 32),
  meta    BLOB    NOT NULL,
  tokens  BLOB,
  state   BLOB,
  arrays  BLOB,
  content BLOB
) STRICT;

INSERT INTO record_2 SELECT seq, session, prev, status, turn, chain, meta, tokens, state, arrays, content FROM record;

DROP TABLE record;
ALTER TABLE record_2 RENAME TO record;

-- What SetReward gave a record. Beside it, because setting a column of a record would write all of its content again.
CREATE TABLE reward (
  session BLOB    NOT NULL CHECK (length(session) = 16),
  seq     INTEGER NOT NULL,
  value   REAL    NOT NULL,
  PRIMARY KEY (session, seq)
) STRICT, WITHOUT ROWID;

-- One row a finished trajectory: the records with after_seq < seq <= ready_seq of its session.
CREATE TABLE trajectory (
  session    BLOB    NOT NULL CHECK (length(session) = 16),
  number     INTEGER NOT NULL CHECK (number > 0),
  tenant     TEXT    NOT NULL,
  root       BLOB    NOT NULL CHECK (length(root) = 16),
  ready_seq  INTEGER NOT NULL,
  after_seq  INTEGER NOT NULL CHECK (after_seq >= 0 AND after_seq < ready_seq),
  first_turn INTEGER NOT NULL CHECK (first_turn > 0),
  turn_count INTEGER NOT NULL CHECK (turn_count >= 0),
  ready_ms   INTEGER NOT NULL,
  ack_ms     INTEGER NOT NULL CHECK (ack_ms >= 0),  -- 0: not acknowledged
  PRIMARY KEY (session, number)
) STRICT, WITHOUT ROWID;

-- What an export takes, in the order in which it became READY: of a tenant, and of a tree.
CREATE UNIQUE INDEX trajectory_ready ON trajectory (tenant, ready_seq) WHERE ack_ms = 0;
CREATE INDEX trajectory_ready_root ON trajectory (root, ready_seq) WHERE ack_ms = 0;
