//! The ingress proxy.
