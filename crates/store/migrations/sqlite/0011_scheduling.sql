-- scheduler::cluster_state::Scheduling: schedulable, cordoned, draining, draining_with_volumes.
ALTER TABLE nodes ADD COLUMN scheduling TEXT NOT NULL DEFAULT 'schedulable';
