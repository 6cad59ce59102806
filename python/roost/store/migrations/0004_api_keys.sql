-- 0004: the keys of tenants.

-- One row a key, revoked ones too: a request_id is remembered as long as what it made. The hash is all there is of a key.
CREATE TABLE api_key (
  key_id    BLOB    NOT NULL PRIMARY KEY CHECK (length(key_id) = 16),
  tenant    TEXT    NOT NULL CHECK (tenant <> ''),
  hash      BLOB    NOT NULL CHECK (length(hash) = 32),
  create_ms INTEGER NOT NULL,
  revoke_ms INTEGER NOT NULL CHECK (revoke_ms >= 0),  -- 0: it is active
  request   BLOB
) STRICT, WITHOUT ROWID;
