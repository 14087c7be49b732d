//! The platform binary: the CLI and the roles.
