//! What a client's connection has from one request to the next. Its memory is used again.

use std::time::{Duration, Instant};

use http1::{Framing, RequestHead, ResponseHead, Version};

use crate::backend::BackendConnection;
use crate::client::Client;
use crate::https_policy::Scheme;
use crate::limits::IDLE_TIMEOUT;
use crate::timer::Timer;

#[derive(Debug)]
pub(crate) struct Session<S> {
    pub(crate) client: Client<S>,
    pub(crate) timer: Timer,
    /// The connection to the backend that answered last, for the next request to the same one.
    pub(crate) held: Option<BackendConnection>,
    pub(crate) request: RequestHead,
    pub(crate) response: ResponseHead,
    /// The request's head, as backends get it.
    pub(crate) to_backend: Vec<u8>,
    /// What is written to the client before a body.
    pub(crate) to_client: Vec<u8>,
    /// The host that the request is for: lower case, without port and final dot.
    pub(crate) host: String,
    pub(crate) request_id: String,
    /// The address of the client, as text: of who connected, or what a trusted proxy said.
    pub(crate) client_address: String,
    /// Where the instance that its cookie names is among those of the route.
    pub(crate) wanted: Option<usize>,
    /// How long the connection is kept without a request: as the route of the last one says.
    pub(crate) idle_timeout: Duration,
    /// How many trusted proxies were behind the one that named the client.
    pub(crate) behind: usize,
    /// By what the client came: what it speaks to the edge, or what a trusted proxy said.
    pub(crate) scheme: Scheme,
}

impl<S> Session<S> {
    pub(crate) fn new(client: Client<S>, timer: Timer) -> Self {
        Self {
            client,
            timer,
            held: None,
            request: RequestHead::default(),
            response: ResponseHead::default(),
            to_backend: Vec::new(),
            to_client: Vec::new(),
            host: String::new(),
            request_id: String::new(),
            client_address: String::new(),
            wanted: None,
            idle_timeout: IDLE_TIMEOUT,
            behind: 0,
            scheme: Scheme::Http,
        }
    }

    /// Frees what the next request can have anew: a connection that waits costs next to nothing.
    pub(crate) fn shrink(&mut self) {
        self.request = RequestHead::default();
        self.response = ResponseHead::default();
        self.to_backend = Vec::new();
        self.to_client = Vec::new();
    }
}

/// What a request is, of that which is needed when its bytes are gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) since: Instant,
    pub(crate) version: Version,
    pub(crate) framing: Framing,
    pub(crate) is_head: bool,
    pub(crate) is_safe: bool,
    pub(crate) wants_upgrade: bool,
    pub(crate) wants_json: bool,
    pub(crate) expects_continue: bool,
    /// Whether the connection is kept for another request, as far as client and edge want.
    pub(crate) keeps: bool,
}

/// What is to be reported of a request when it is over.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) app_seconds: Option<f64>,
    pub(crate) backend: Option<std::net::SocketAddr>,
    pub(crate) error: Option<String>,
}

/// What becomes of the connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// It serves the next request.
    Next,
    /// It is closed. The client knows.
    Close,
    /// It is closed when the client has the answer, which it may not read before it has sent all it wants.
    Linger,
    /// It is cut off: the answer is not whole, or nobody is there to read it.
    Cut,
}
