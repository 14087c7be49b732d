//! The TOML manifest: decode with spans, validate, format, canonical JSON, JSON Schema (ADR 0002).

mod model;

pub use model::{Deploy, Manifest, Process, Resources, RouteTarget, Scaling, Strategy};
