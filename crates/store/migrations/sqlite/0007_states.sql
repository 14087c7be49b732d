-- One phase instead of flags that admit combinations which cannot be, and a version for the JSON of each row.

-- scheduler::cluster_state::InstancePhase: new, established, terminating (with was_ready and reason), gone.
ALTER TABLE instances ADD COLUMN phase TEXT NOT NULL DEFAULT 'new';
UPDATE instances SET phase = CASE
    WHEN terminating AND stop_acknowledged THEN 'gone'
    WHEN terminating THEN 'terminating'
    WHEN was_ready THEN 'established'
    ELSE 'new' END;
ALTER TABLE instances DROP COLUMN terminating;
ALTER TABLE instances DROP COLUMN stop_acknowledged;
ALTER TABLE instances RENAME COLUMN leave_reason TO reason;

-- scheduler::cluster_state::VolumePhase: planned, made, deleting (with made), deleted.
ALTER TABLE volumes ADD COLUMN phase TEXT NOT NULL DEFAULT 'planned';
UPDATE volumes SET phase = CASE
    WHEN deleting AND deletion_acknowledged THEN 'deleted'
    WHEN deleting THEN 'deleting'
    WHEN made THEN 'made'
    ELSE 'planned' END;
ALTER TABLE volumes DROP COLUMN deleting;
ALTER TABLE volumes DROP COLUMN deletion_acknowledged;

-- store::record::JSON_VERSION of the server that wrote the row. Rows from before this migration have version 1.
ALTER TABLE cluster ADD COLUMN json_version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE nodes ADD COLUMN json_version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE envs ADD COLUMN json_version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE releases ADD COLUMN json_version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE instances ADD COLUMN json_version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE route_table ADD COLUMN json_version INTEGER NOT NULL DEFAULT 1;
