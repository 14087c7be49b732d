//! The real scheduler and the real node under a simulated clock, network and faults.
