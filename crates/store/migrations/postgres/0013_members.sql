-- By what members are known (scheduler::membership::MemberIdentity). A member from before this has no key here until it comes with its certificate.
ALTER TABLE nodes ADD COLUMN public_key BYTEA;
ALTER TABLE nodes ADD COLUMN next_key BYTEA;
ALTER TABLE nodes ADD COLUMN approval TEXT NOT NULL DEFAULT 'approved';     -- pending, approved, revoked
ALTER TABLE nodes ADD COLUMN revoked_at BIGINT;
ALTER TABLE nodes ADD COLUMN rotate_since BIGINT;
ALTER TABLE edges ADD COLUMN public_key BYTEA;
ALTER TABLE edges ADD COLUMN next_key BYTEA;
ALTER TABLE edges ADD COLUMN approval TEXT NOT NULL DEFAULT 'approved';
ALTER TABLE edges ADD COLUMN revoked_at BIGINT;
ALTER TABLE edges ADD COLUMN rotate_since BIGINT;

-- api::enrollment::Hardware: what was approved (absent: what is in hardware_json), and what the node says where that is more.
ALTER TABLE nodes ADD COLUMN approved_json TEXT;
ALTER TABLE nodes ADD COLUMN claimed_json TEXT;

-- scheduler::cluster_state::TokenRecord.
ALTER TABLE enrollment_tokens ADD COLUMN region TEXT;
ALTER TABLE enrollment_tokens ADD COLUMN approve BIGINT NOT NULL DEFAULT 0;
ALTER TABLE enrollment_tokens ADD COLUMN replaces TEXT;
ALTER TABLE enrollment_tokens ADD COLUMN made_by TEXT;

-- scheduler::cluster_state::ClusterState::last_membership.
ALTER TABLE cluster ADD COLUMN last_membership BIGINT NOT NULL DEFAULT 1;
