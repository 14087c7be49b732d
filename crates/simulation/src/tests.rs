//! Runs of the simulation.
