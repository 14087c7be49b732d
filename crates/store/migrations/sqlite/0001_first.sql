-- The control plane's first schema. Times are milliseconds since 1970, texts named *_json are
-- serde_json of the type that the comment names.

CREATE TABLE cluster (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    settings_json   TEXT NOT NULL,              -- cluster::world::ClusterSettings
    ca_cert_pem     TEXT NOT NULL,
    ca_key_pem      TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    last_node       INTEGER NOT NULL DEFAULT 0, -- numbers are never given twice
    last_edge       INTEGER NOT NULL DEFAULT 0,
    last_network    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE user_tokens (
    hash            BLOB PRIMARY KEY CHECK (length(hash) = 32),
    name            TEXT NOT NULL,
    role            TEXT NOT NULL CHECK (role IN ('admin')),
    created_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE enrollment_tokens (
    hash            BLOB PRIMARY KEY CHECK (length(hash) = 32),
    role            TEXT NOT NULL CHECK (role IN ('node', 'edge')),
    expires_at      INTEGER NOT NULL,
    used_at         INTEGER,
    used_by         TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE nodes (
    id              INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 65535),
    name            TEXT NOT NULL UNIQUE,
    region          TEXT NOT NULL,
    hardware_json   TEXT NOT NULL,              -- contract::api::Hardware
    wireguard_key   TEXT,
    driver_json     TEXT,                       -- contract::api::DriverChoice
    seen_at         INTEGER,                    -- coarse: see store::SEEN_GRANULARITY_MS
    generation      INTEGER NOT NULL DEFAULT 1, -- of its desired state
    enrolled_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE edges (
    id              INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 65535),
    name            TEXT NOT NULL UNIQUE,
    region          TEXT NOT NULL,
    enrolled_at     INTEGER NOT NULL
) STRICT;

CREATE TABLE envs (
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    network         INTEGER NOT NULL UNIQUE CHECK (network BETWEEN 1 AND 4294967295),
    rollout_json    TEXT NOT NULL,              -- cluster::world::Rollout
    scale_json      TEXT NOT NULL,              -- process type to instances
    destroying      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (app, env)
) STRICT, WITHOUT ROWID;

CREATE TABLE releases (
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    number          INTEGER NOT NULL,
    release_json    TEXT NOT NULL,              -- cluster::world::Release
    PRIMARY KEY (app, env, number),
    FOREIGN KEY (app, env) REFERENCES envs (app, env) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE TABLE instances (
    id              INTEGER PRIMARY KEY,
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    node            INTEGER NOT NULL REFERENCES nodes (id),
    spec_json       TEXT NOT NULL,              -- contract::instance::InstanceSpec
    leaving         INTEGER NOT NULL DEFAULT 0,
    leave_reason    TEXT,
    created_at      INTEGER NOT NULL,
    report_json     TEXT,                       -- contract::api::InstanceReport
    was_ready       INTEGER NOT NULL DEFAULT 0,
    stop_acknowledged INTEGER NOT NULL DEFAULT 0,
    FOREIGN KEY (app, env) REFERENCES envs (app, env)
) STRICT;

CREATE INDEX instances_by_node ON instances (node);

CREATE TABLE route_table (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    generation      INTEGER NOT NULL,
    routes_json     TEXT NOT NULL               -- host name to contract::api::Route
) STRICT;
