//! What the tests of this folder share.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use model::instance::{InstanceSpec, PinnedImage, RestartPolicy, RestartWhen, StopPolicy};
use model::{Digest, InstanceId, ReleaseNumber};

/// An instance without anything.
pub(super) fn spec() -> InstanceSpec {
    InstanceSpec {
        runs: model::instance::Runs::App,
        id: InstanceId(1),
        app: "shop".parse().unwrap(),
        env: "prod".parse().unwrap(),
        process: "web".parse().unwrap(),
        release: ReleaseNumber(1),
        image: PinnedImage {
            registry: "registry.example".to_owned(),
            repository: "shop".to_owned(),
            digest: Digest::from_sha256(&[1; 32]),
        },
        command: None,
        user: None,
        init: None,
        variables: BTreeMap::new(),
        ports: Vec::new(),
        healthcheck: None,
        liveness: None,
        stop: StopPolicy {
            signal: None,
            timeout_ms: 1000,
        },
        restart: RestartPolicy {
            when: RestartWhen::Always,
            max_retries: 1,
        },
        cpu_millis: 100,
        memory_bytes: 64 << 20,
        scratch_bytes: 16 << 20,
        address: "fd12::1".parse().unwrap(),
        egress: model::instance::EgressPolicy::All,
        secrets: Vec::new(),
        volumes: Vec::new(),
    }
}
