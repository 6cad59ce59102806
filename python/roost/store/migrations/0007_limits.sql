-- 0007: limits that were set while a server ran.

-- One row a limit; a limit that is as the configuration says has none.
CREATE TABLE server_limit (
  name  TEXT    NOT NULL PRIMARY KEY CHECK (name <> ''),
  value INTEGER NOT NULL CHECK (value >= 0)
) STRICT, WITHOUT ROWID;
