//! The control plane's state in SQL.
