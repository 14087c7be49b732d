//! The workload network of one node: namespace, veth, taps, rules.
