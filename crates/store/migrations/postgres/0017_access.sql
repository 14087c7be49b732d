-- Who may do what (scheduler::access).
CREATE TABLE orgs (
    name            TEXT PRIMARY KEY,
    created_at      BIGINT NOT NULL
);
INSERT INTO orgs (name, created_at) VALUES ('default', CAST(extract(epoch FROM now()) * 1000 AS BIGINT));

-- Whose an app is. Its name is one in the whole cluster.
CREATE TABLE apps (
    name            TEXT PRIMARY KEY,
    org             TEXT NOT NULL REFERENCES orgs (name)
);
INSERT INTO apps (name, org)
    SELECT app, 'default' FROM envs
    UNION SELECT app, 'default' FROM secret_bundles
    UNION SELECT app, 'default' FROM volumes;

CREATE TABLE users (
    name            TEXT PRIMARY KEY,
    grants_json     TEXT NOT NULL,              -- api::user::Grants
    created_at      BIGINT NOT NULL,
    json_version    BIGINT NOT NULL
);
INSERT INTO users (name, grants_json, created_at, json_version)
    SELECT name, '{"cluster":"admin"}', MIN(created_at), 1 FROM user_tokens GROUP BY name;

ALTER TABLE user_tokens RENAME TO user_tokens_before;
CREATE TABLE user_tokens (
    hash            BYTEA PRIMARY KEY CHECK (length(hash) = 32),
    of_user         TEXT NOT NULL REFERENCES users (name),
    org             TEXT,                       -- absent: wherever the user may
    role            TEXT,                       -- absent: all that the user may
    created_at      BIGINT NOT NULL,
    expires_at      BIGINT,                    -- absent: never
    made_by         TEXT,                       -- absent: a server
    note            TEXT NOT NULL
);
INSERT INTO user_tokens (hash, of_user, created_at, note)
    SELECT hash, name, created_at, 'of the first admin' FROM user_tokens_before;
DROP TABLE user_tokens_before;

-- How the rollout of each release ended (scheduler::cluster_state::Env::outcomes): JSON.
ALTER TABLE envs ADD COLUMN outcomes_json TEXT NOT NULL DEFAULT '{}';
