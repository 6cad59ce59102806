-- 0005: what sessions have outside.

-- One row a resource, from before it is made until it is released: there is a row, so it is owned.
--   pool:  '' for none, and then no key
--   due:   wall-clock milliseconds from which on it is to be released; 0: not yet
--   error: why the latest of `attempts` tries to release it failed
CREATE TABLE resource (
  name        TEXT    NOT NULL PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 63),
  session     BLOB    NOT NULL CHECK (length(session) = 16),
  root        BLOB    NOT NULL CHECK (length(root) = 16),
  tenant      TEXT    NOT NULL CHECK (tenant <> ''),
  kind        INTEGER NOT NULL CHECK (kind IN (1, 2, 3, 4)),  -- CLIENT, HTTP, PROCESS, TMUX
  state       INTEGER NOT NULL CHECK (state IN (1, 2, 3)),  -- PLANNED, LIVE, RELEASING
  owner       TEXT    NOT NULL,
  handle      TEXT    NOT NULL,
  pool        TEXT    NOT NULL,
  pool_key    TEXT    NOT NULL,
  idle_ttl_ms INTEGER NOT NULL CHECK (idle_ttl_ms >= 0),  -- 0: never
  create_ms   INTEGER NOT NULL,
  due         INTEGER NOT NULL CHECK (due >= 0 AND (due = 0 OR state = 3)),
  attempts    INTEGER NOT NULL CHECK (attempts >= 0),
  error       TEXT    NOT NULL,
  request     BLOB
) STRICT, WITHOUT ROWID;

-- What a close makes due, and lists in order of the name: of a session, of a tree, of a tenant.
CREATE INDEX resource_session ON resource (session, name);
CREATE INDEX resource_root ON resource (root, name);
CREATE INDEX resource_tenant ON resource (tenant, name);
-- What drivers are to release, by time; and what hosts are.
CREATE INDEX resource_due ON resource (due, name) WHERE due > 0 AND kind > 1;
CREATE INDEX resource_owner ON resource (tenant, owner, name) WHERE kind = 1 AND due > 0;
