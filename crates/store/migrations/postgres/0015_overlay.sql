-- How members are reached over the underlay (scheduler::underlay::RecordedUnderlay), and what edges need to be members of the overlay.
ALTER TABLE nodes ADD COLUMN endpoint TEXT;
ALTER TABLE nodes ADD COLUMN advertised BIGINT NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN behind_nat BIGINT;             -- absent: it has not said how it is reached
ALTER TABLE nodes ADD COLUMN underlay_mtu BIGINT;
ALTER TABLE edges ADD COLUMN number BIGINT;                 -- of those that nodes have; absent: it has no key yet
ALTER TABLE edges ADD COLUMN wireguard_key TEXT;
ALTER TABLE edges ADD COLUMN endpoint TEXT;
ALTER TABLE edges ADD COLUMN advertised BIGINT NOT NULL DEFAULT 0;
ALTER TABLE edges ADD COLUMN behind_nat BIGINT;
ALTER TABLE edges ADD COLUMN underlay_mtu BIGINT;
