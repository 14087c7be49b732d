-- scheduler::cluster_state::Node::labels: key to value.
ALTER TABLE nodes ADD COLUMN labels_json TEXT NOT NULL DEFAULT '{}';
