-- How members are reached over the underlay (scheduler::underlay::RecordedUnderlay), and what edges need to be members of the overlay.
ALTER TABLE nodes ADD COLUMN endpoint TEXT;
ALTER TABLE nodes ADD COLUMN advertised INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN behind_nat INTEGER;             -- absent: it has not said how it is reached
ALTER TABLE nodes ADD COLUMN underlay_mtu INTEGER;
ALTER TABLE edges ADD COLUMN number INTEGER;                 -- of those that nodes have; absent: it has no key yet
ALTER TABLE edges ADD COLUMN wireguard_key TEXT;
ALTER TABLE edges ADD COLUMN endpoint TEXT;
ALTER TABLE edges ADD COLUMN advertised INTEGER NOT NULL DEFAULT 0;
ALTER TABLE edges ADD COLUMN behind_nat INTEGER;
ALTER TABLE edges ADD COLUMN underlay_mtu INTEGER;
