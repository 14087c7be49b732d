-- Volumes outlive instances, releases and envs, so nothing here refers to those.

CREATE TABLE volumes (
    id              INTEGER PRIMARY KEY,
    app             TEXT NOT NULL,
    env             TEXT NOT NULL,
    process         TEXT NOT NULL,
    name            TEXT NOT NULL,
    ordinal         INTEGER NOT NULL,
    node            INTEGER NOT NULL REFERENCES nodes (id),
    size_bytes      INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    made            INTEGER NOT NULL DEFAULT 0,
    deleting        INTEGER NOT NULL DEFAULT 0,
    deletion_acknowledged INTEGER NOT NULL DEFAULT 0,
    UNIQUE (app, env, process, name, ordinal)
) STRICT;
