-- What a node runs that the store does not know, as after a restore (ADR 0001): JSON, instance to what it holds and whether it is to stop.
ALTER TABLE nodes ADD COLUMN unknown_json TEXT;
