//! The HTTPS API, from the caller's side: a typed method for every path of
//! [`api::paths`], and errors that tell the three kinds of failure apart (the server
//! cannot be reached, it is not the right one, it refuses).
//!
//! Callers come in three kinds, as the API knows them: users with a token ([`ApiClient::user`]),
//! nodes and edges with their certificate ([`ApiClient::member`]), and a machine that joins
//! ([`ApiClient::enroll`]). The only root that is trusted is the cluster's own CA, and proxies of
//! the environment are not asked: a control plane is dialled directly.
//!
//! A cluster may have several servers, of which any may be asked: when one cannot be reached, the next one is.
//!
//! A user's call that found no leader is sent again for a while, where nothing was done: another server takes over within 10 s.
//!
//! Deliberately absent: other retries. The caller knows whether and how long to go on; [`ClientError::is_transient`] says whether
//! it makes sense.

mod client;
mod config;
mod error;
mod exec;
mod forward;
mod logs;
mod silence;

pub use client::{
    ANSWER_GRACE, ApiClient, CONNECT_TIMEOUT, DEPLOY_TIMEOUT, MAX_ANSWER_BYTES, REQUEST_TIMEOUT,
};
pub use config::{ClientConfig, ConfigError};
pub use error::ClientError;
pub use exec::{ExecReader, ExecStream, ExecWriter, NodeExec, UserExec};
pub use forward::{ForwardStream, carry};
pub use logs::LogStream;
pub use silence::{STREAM_LOST, STREAM_SIGN_OF_LIFE, STREAM_SILENCE, unless_silent};
