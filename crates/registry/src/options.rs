//! The settings of a registry client.

use std::collections::{BTreeMap, BTreeSet};

use crate::addresses::Addresses;
use crate::credentials::Credentials;
use crate::limits::Limits;

/// The settings of a registry client.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Registries, their token services and the storage that they redirect to (`host` or `host:port`, as in references)
    /// that may be reached over plain HTTP. Loopback registries always are.
    pub insecure: BTreeSet<String>,
    /// Mirrors by the registry that they mirror (`docker.io`), in the order in which they are asked. Mirrors serve
    /// manifests and blobs by digest, never tags; where no mirror has the digest, the registry itself is asked.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Credentials for the registries that require them.
    pub credentials: Credentials,
    /// To which addresses it connects.
    pub addresses: Addresses,
    /// Bounds.
    pub limits: Limits,
}
