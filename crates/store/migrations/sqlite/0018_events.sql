-- What happened (api::event). Numbers grow; the oldest are deleted (scheduler::event_log).
CREATE TABLE events (
    number          INTEGER PRIMARY KEY,
    at              INTEGER NOT NULL,
    kind            TEXT NOT NULL,
    org             TEXT,                       -- absent: it is of the cluster
    app             TEXT,
    env             TEXT,
    process         TEXT,
    instance        INTEGER,
    node            INTEGER,
    event_json      TEXT NOT NULL,
    json_version    INTEGER NOT NULL
) STRICT;
CREATE INDEX events_of_env ON events (app, env, number) WHERE app IS NOT NULL;
CREATE INDEX events_of_org ON events (org, number) WHERE org IS NOT NULL;
CREATE INDEX events_of_instance ON events (instance, number) WHERE instance IS NOT NULL;
CREATE INDEX events_of_node ON events (node, number) WHERE node IS NOT NULL;
