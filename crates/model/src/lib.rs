//! Values that every other crate speaks in. No logic beyond parsing and printing, no I/O.
//!
//! - [`ids`]: the names and numbers that everything is called by.
//! - [`instance`]: the complete description of one instance, as the planner chose it.
//! - [`image`]: what of an image's config the platform honours.
//! - [`public_key`]: by what a member is known.
//! - [`route_name`]: by what a route is known.

pub mod ids;
pub mod image;
pub mod instance;
pub mod public_key;
pub mod route_name;
pub mod route_settings;

pub use ids::{
    AppName, BundleName, Digest, EdgeId, EnvKey, EnvName, EnvNetwork, Generation, Incarnation,
    InstanceId, LabelKey, LabelValue, LeaderSession, NameError, NodeId, OrgName, ProcessName,
    ReleaseNumber, Term, Timestamp, UserName, VolumeId,
};
pub use public_key::PublicKey;
pub use route_settings::{Hsts, PlainHttp, RateLimit, RouteSettings, TlsMode};
