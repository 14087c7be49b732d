//! Reconciles one node: desired state to running microVMs.
