-- PostgreSQL's first schema: that of migrations/sqlite up to the same number. Times are milliseconds since 1970, texts named
-- *_json are serde_json of the type that the comment names. Truth values are 0 and 1, as in SQLite.

CREATE TABLE cluster (
    one             BIGINT PRIMARY KEY CHECK (one = 1),
    incarnation     TEXT NOT NULL,              -- model::Incarnation
    settings_json   TEXT NOT NULL,              -- scheduler::cluster_state::ClusterSettings
    ca_cert_pem     TEXT NOT NULL,
    ca_key_pem      TEXT NOT NULL,              -- empty: the keys are wrapped
    ca_key_wrapped  BYTEA,
    seal_key_wrapped BYTEA,
    created_at      BIGINT NOT NULL,
    last_node       BIGINT NOT NULL DEFAULT 0,  -- numbers are never given twice
    last_edge       BIGINT NOT NULL DEFAULT 0,
    last_network    BIGINT NOT NULL DEFAULT 0,
    last_route_table BIGINT NOT NULL DEFAULT 0, -- scheduler::routes::RouteIndex
    json_version    BIGINT NOT NULL
);

-- Which server leads (scheduler::lease). Every write of a leader locks the row, and so does who takes it over.
CREATE TABLE lease (
    one             BIGINT PRIMARY KEY CHECK (one = 1),
    term            BIGINT NOT NULL,            -- model::Term; grows with every leader
    holder          TEXT NOT NULL,              -- the server's id, another one at each start
    address         TEXT NOT NULL,              -- the URL at which other servers reach it
    renewals        BIGINT NOT NULL,            -- another number at each renewal
    expires_at      BIGINT NOT NULL             -- by the database's clock
);
INSERT INTO lease (one, term, holder, address, renewals, expires_at) VALUES (1, 0, '', '', 0, 0);

CREATE TABLE user_tokens (
    hash            BYTEA PRIMARY KEY CHECK (length(hash) = 32),
    name            TEXT NOT NULL,
    role            TEXT NOT NULL CHECK (role IN ('admin')),
    created_at      BIGINT NOT NULL
);

CREATE TABLE enrollment_tokens (
    hash            BYTEA PRIMARY KEY CHECK (length(hash) = 32),
    role            TEXT NOT NULL CHECK (role IN ('node', 'edge')),
    expires_at      BIGINT NOT NULL,
    used_at         BIGINT,
    used_by         TEXT
);

CREATE TABLE nodes (
    id              BIGINT PRIMARY KEY CHECK (id BETWEEN 1 AND 65535),
    name            TEXT NOT NULL UNIQUE,
    region          TEXT NOT NULL,
    hardware_json   TEXT NOT NULL,              -- api::enrollment::Hardware
    wireguard_key   TEXT,
    driver_json     TEXT,                       -- api::node::DriverChoice
    egress_json     TEXT,                       -- api::node::EgressState; absent until it was reported
    seen_at         BIGINT,
    generation      BIGINT NOT NULL,            -- of its desired state
    enrolled_at     BIGINT NOT NULL,
    json_version    BIGINT NOT NULL
);

CREATE TABLE edges (
    id              BIGINT PRIMARY KEY CHECK (id BETWEEN 1 AND 65535),
    name            TEXT NOT NULL UNIQUE,
    region          TEXT NOT NULL,
    enrolled_at     BIGINT NOT NULL
);

CREATE TABLE envs (
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    network         BIGINT NOT NULL UNIQUE CHECK (network BETWEEN 1 AND 4294967295),
    rollout_json    TEXT NOT NULL,              -- scheduler::cluster_state::Rollout
    scale_json      TEXT NOT NULL,              -- process type to instances
    destroying      BIGINT NOT NULL,
    json_version    BIGINT NOT NULL,
    PRIMARY KEY (app, env)
);

CREATE TABLE releases (
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    number          BIGINT NOT NULL,
    release_json    TEXT NOT NULL,              -- scheduler::cluster_state::Release
    json_version    BIGINT NOT NULL,
    PRIMARY KEY (app, env, number),
    FOREIGN KEY (app, env) REFERENCES envs (app, env) ON DELETE CASCADE
);

CREATE TABLE instances (
    id              BIGINT PRIMARY KEY,
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    node            BIGINT NOT NULL REFERENCES nodes (id),
    spec_json       TEXT NOT NULL,              -- model::instance::InstanceSpec
    phase           TEXT NOT NULL,              -- scheduler::cluster_state::InstancePhase
    was_ready       BIGINT NOT NULL,
    reason          TEXT,
    created_at      BIGINT NOT NULL,
    report_json     TEXT,                       -- api::node::InstanceReport
    json_version    BIGINT NOT NULL,
    FOREIGN KEY (app, env) REFERENCES envs (app, env)
);

CREATE INDEX instances_by_node ON instances (node);
CREATE INDEX instances_by_env ON instances (app, env);

-- Volumes outlive instances, releases and envs, so nothing here refers to those.
CREATE TABLE volumes (
    id              BIGINT PRIMARY KEY,
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    process         TEXT NOT NULL,
    name            TEXT NOT NULL,
    ordinal         BIGINT NOT NULL,
    node            BIGINT NOT NULL REFERENCES nodes (id),
    size_bytes      BIGINT NOT NULL,
    created_at      BIGINT NOT NULL,
    phase           TEXT NOT NULL,              -- scheduler::cluster_state::VolumePhase
    made            BIGINT NOT NULL,
    UNIQUE (app, env, process, name, ordinal)
);

-- Every version sealed as a whole. An env may have bundles before its first release, so nothing here refers to it.
CREATE TABLE secret_bundles (
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    name            TEXT NOT NULL,
    version         BIGINT NOT NULL,
    sealed          BYTEA NOT NULL,
    created_at      BIGINT NOT NULL,
    PRIMARY KEY (app, env, name, version)
);

CREATE TABLE registry_logins (
    registry        TEXT PRIMARY KEY,           -- as in image references
    "user"          TEXT,                       -- absent for a token
    sealed          BYTEA NOT NULL,             -- api::node::PullSecret as JSON, sealed
    "by"            TEXT NOT NULL,              -- the name of the user's token
    "at"            BIGINT NOT NULL
);

-- They outlive their envs, so nothing here refers to those.
CREATE TABLE ended_instances (
    id              BIGINT PRIMARY KEY,
    ended_json      TEXT NOT NULL,              -- scheduler::cluster_state::EndedInstance
    json_version    BIGINT NOT NULL
);

CREATE TABLE routes (
    host            TEXT PRIMARY KEY,
    route_json      TEXT NOT NULL,              -- api::edge::Route
    changed         BIGINT NOT NULL,            -- the counter of the table in which it led there first
    json_version    BIGINT NOT NULL
);
