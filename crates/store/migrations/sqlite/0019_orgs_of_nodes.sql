-- Nodes of one org: the org whose apps a node runs, and no other's (scheduler::cluster_state::Node::org).
ALTER TABLE nodes ADD COLUMN org TEXT;
ALTER TABLE enrollment_tokens ADD COLUMN org TEXT;
