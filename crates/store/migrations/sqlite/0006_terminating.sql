-- The field's word: an instance that goes is terminating (Kubernetes).
ALTER TABLE instances RENAME COLUMN leaving TO terminating;
