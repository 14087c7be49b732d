-- Secret bundles of envs, every version sealed as a whole. An env may have bundles before its first release, so
-- nothing here refers to it; they go with it.

CREATE TABLE secret_bundles (
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    name            TEXT NOT NULL,
    version         INTEGER NOT NULL,
    sealed          BLOB NOT NULL,
    created_at      INTEGER NOT NULL,
    PRIMARY KEY (app, env, name, version)
) STRICT, WITHOUT ROWID;
