//! What every implementation of the traits of [`crate::host`] does.
