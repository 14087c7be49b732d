//! The commands, a module each: its arguments with their help, and what it does.

pub(crate) mod deploy;
pub(crate) mod destroy;
pub(crate) mod dev;
pub(crate) mod edge;
pub(crate) mod envs;
pub(crate) mod exec;
pub(crate) mod fmt;
pub(crate) mod image;
pub(crate) mod images;
pub(crate) mod logs;
pub(crate) mod manifest_file;
pub(crate) mod node;
pub(crate) mod nodes;
pub(crate) mod normalize;
pub(crate) mod ps;
pub(crate) mod registries;
pub(crate) mod scale;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod server;
pub(crate) mod signal;
pub(crate) mod tokens;
pub(crate) mod top;
pub(crate) mod validate;
pub(crate) mod volumes;
