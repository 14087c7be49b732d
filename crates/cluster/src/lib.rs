//! Every decision of the platform, as pure functions over values.

pub mod world;
