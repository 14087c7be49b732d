//! Contract types: what crosses a process or machine boundary, and nothing else.
//!
//! Three parties talk by these types: the control plane, the nodes (and edges), and the guests.
//! - [`ids`]: the names and numbers that everything is called by.
//! - [`instance`]: the complete description of one instance, as the planner chose it.
//! - [`api`]: the messages of the HTTPS API (design: nodes only dial out).
//! - [`calls`]: exec, signals and figures of running instances.
//! - [`image`]: what of an image's config the platform honours.
//! - [`guest`]: the boot contract between a node and `platform-init` over vsock (ADR 0003).
//!
//! There is one explicit version per boundary and no compatibility layer: the other version is
//! refused with a message that names both. This crate imports nothing of ours, does no I/O, and
//! decides nothing.

pub mod api;
pub mod calls;
pub mod guest;
pub mod ids;
pub mod image;
pub mod instance;

pub use ids::{
    AppName, Digest, EdgeId, EnvKey, EnvName, EnvNetwork, Generation, InstanceId, NameError,
    NodeId, ProcessName, ReleaseNumber, Timestamp, VolumeId,
};
