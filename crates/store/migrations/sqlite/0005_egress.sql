-- Whether a node's instances reach the world outside of the cluster.

ALTER TABLE nodes ADD COLUMN egress_json TEXT;  -- contract::api::EgressState; absent until it was reported
