-- 0001: the spine of the store: who it is (meta), who owns its shards, sessions, records.
-- Applied in one transaction; PRAGMA user_version is set to this file's number in the same transaction.

CREATE TABLE meta (
  key   TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row a shard (the embedded server has shard 0). Every append checks the epoch and advances last_seq.
CREATE TABLE shard (
  shard    INTEGER PRIMARY KEY,
  epoch    INTEGER NOT NULL CHECK (epoch >= 0),
  last_seq INTEGER NOT NULL CHECK (last_seq >= 0)
) STRICT;

INSERT INTO shard (shard, epoch, last_seq) VALUES (0, 0, 0);

-- One row a session. The short columns a tree header needs come first: facts and receipt, which may spill
-- to overflow pages, come last, so that loading a header or a compare-and-set reads one page a session.
CREATE TABLE session (
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
  seq          INTEGER NOT NULL CHECK (seq > 0),
  lease        BLOB,
  facts        BLOB    NOT NULL,
  receipt      BLOB,
  UNIQUE (tenant, session_id),
  -- A root is its own root and has no parent; only an OPEN session runs, and it has a grant while it does.
  CHECK ((depth = 0) = (length(parent) = 0) AND (depth = 0) = (root = uid) AND depth >= 0),
  CHECK (running = 0 OR (state = 1 AND lease IS NOT NULL)),
  -- I8: there is one place for a live provisional, and it is one of the session's own records.
  CHECK (provisional BETWEEN 0 AND last AND (provisional = 0 OR state = 1))
) STRICT, WITHOUT ROWID;

-- I16: paths are unique among OPEN siblings. Also what a header load reads.
CREATE UNIQUE INDEX session_open_path ON session (root, path) WHERE state = 1;
-- What start-up reads: the trees in which a turn runs.
CREATE INDEX session_running ON session (root) WHERE running = 1;
-- Lists, in order of uid: of one tree, and of a tenant.
CREATE INDEX session_root ON session (root, uid);
CREATE INDEX session_tenant ON session (tenant, state, uid);

-- One row a record, appended in journal order: the rowid is the journal sequence, `prev` links a session's
-- records backwards, so there is no secondary index to keep. What a reload walks stands before the payloads.
CREATE TABLE record (
  seq     INTEGER PRIMARY KEY CHECK (seq > 0),
  session BLOB    NOT NULL CHECK (length(session) = 16),
  prev    INTEGER NOT NULL CHECK (prev >= 0 AND prev < seq),
  status  INTEGER NOT NULL CHECK (status IN (1, 2, 3, 4)),  -- COMMITTED, PROVISIONAL, ABORTED, SUPERSEDED
  turn    INTEGER NOT NULL CHECK (turn > 0),
  chain   BLOB    NOT NULL CHECK (length(chain) = 32),
  meta    BLOB    NOT NULL,
  tokens  BLOB,
  state   BLOB,
  arrays  BLOB,
  content BLOB
) STRICT;
