-- Registries that the cluster is logged in to. The secret is sealed (identity::SealKey) under a key that is not here.

CREATE TABLE registry_logins (
    registry        TEXT PRIMARY KEY,           -- as in image references
    user            TEXT,                       -- absent for a token
    sealed          BLOB NOT NULL,              -- contract::api::PullSecret as JSON, sealed
    by              TEXT NOT NULL,              -- the name of the user's token
    at              INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
