//! The HTTPS API, from the caller's side.
