-- Runs of commands that are found by the keys of their callers (scheduler::keyed_runs).
ALTER TABLE envs ADD COLUMN runs_json TEXT NOT NULL DEFAULT '[]';
