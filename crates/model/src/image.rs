//! The fields of an OCI image config that are used (OCI image spec, config.md).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The `config` of an image, as values. Absent and empty mean the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageConfig {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// Comes before the command.
    pub entrypoint: Vec<String>,
    /// The command, where the manifest gives none.
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Working directory; empty: `/`.
    pub working_dir: String,
    /// `user[:group]`; empty: root.
    pub user: String,
    /// Signal name or number; empty: SIGTERM.
    pub stop_signal: String,
    /// Directories declared as volumes, sorted.
    pub volumes: Vec<String>,
    /// Ports declared (`8080/tcp`), sorted.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}
