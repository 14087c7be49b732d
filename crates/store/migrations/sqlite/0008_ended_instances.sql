-- Instances that are gone: where their logs are kept, and how they ended. They outlive their envs, so nothing here refers to
-- those.

CREATE TABLE ended_instances (
    id              INTEGER PRIMARY KEY,
    ended_json      TEXT NOT NULL,              -- scheduler::cluster_state::EndedInstance
    json_version    INTEGER NOT NULL
) STRICT;
