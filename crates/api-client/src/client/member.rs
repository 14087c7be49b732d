//! The calls of members: nodes and edges.

use std::time::Duration;

use api::edge::{HasRoutes, RouteTable};
use api::exec::EXEC_PROTOCOL;
use api::forward::FORWARD_PROTOCOL;
use api::member::{
    CertificateRequest, CertificateResponse, Measurement, MemberState, OverlayReport,
};
use api::node::{
    DesiredState, DirectoryChanges, PullSecret, ReportAnswer, ReportDelta, StreamRefused,
    StreamRequest,
};
use api::paths;
use bytes::Bytes;
use futures_util::Stream;
use model::instance::SecretBundle;
use model::{Generation, InstanceId};
use reqwest::{Method, RequestBuilder};
use serde::Serialize;

use super::{ApiClient, millis};
use crate::{ClientError, ForwardStream, NodeExec};

/// A node's calls.
impl ApiClient {
    /// The node's desired state, once it is newer than `after`; `None` when nothing newer came
    /// within `wait`.
    pub async fn desired(
        &self,
        after: Generation,
        wait: Duration,
    ) -> Result<Option<DesiredState>, ClientError> {
        let request = self
            .get(paths::NODE_DESIRED)
            .query(&[("after", after.counter)])
            .query(&[("incarnation", after.incarnation)])
            .query(&[("wait_ms", millis(wait))]);
        self.poll("fetching the desired state", request, wait).await
    }

    /// What changed in the node's directory since counter `after` of `session`, where the server knows that, else all; `None` when nothing
    /// newer came within `wait`. 0 and 0: the node has none.
    pub async fn directory(
        &self,
        session: u64,
        after: u64,
        wait: Duration,
    ) -> Result<Option<DirectoryChanges>, ClientError> {
        let request = self
            .get(paths::NODE_DIRECTORY)
            .query(&[("session", session), ("after", after)])
            .query(&[("wait_ms", millis(wait))]);
        self.poll("fetching the directory", request, wait).await
    }

    /// What to show to a registry that an instance of this node comes from; `None` when the cluster is not logged
    /// in there.
    pub async fn pull_secret(&self, registry: &str) -> Result<Option<PullSecret>, ClientError> {
        let request = self
            .get(paths::NODE_PULL_SECRET)
            .query(&[("registry", registry)]);
        self.poll("asking for a pull secret", request, Duration::ZERO)
            .await
    }

    /// Tells the server what changed on the node, and gives what the server has.
    pub async fn report(&self, report: &ReportDelta) -> Result<ReportAnswer, ClientError> {
        self.call("reporting", self.post(paths::NODE_REPORT).json(report))
            .await
    }

    /// The secret bundles that an instance of this node boots with.
    pub async fn instance_secrets(&self, id: InstanceId) -> Result<Vec<SecretBundle>, ClientError> {
        let request = self.get(paths::NODE_SECRETS);
        let request = request.query(&[("instance", id.to_string())]);
        self.call("fetching secret bundles", request).await
    }

    /// Streams that the node is asked to open; empty when none was asked for within `wait`.
    pub async fn streams(&self, wait: Duration) -> Result<Vec<StreamRequest>, ClientError> {
        let request = self
            .get(paths::NODE_STREAMS)
            .query(&[("wait_ms", millis(wait))]);
        Ok(self
            .poll("asking for streams to open", request, wait)
            .await?
            .unwrap_or_default())
    }

    /// Sends a stream that was asked for. Returns when the body has ended or the reader has left,
    /// whichever comes first; both are fine.
    pub async fn open_stream<S, E>(&self, stream: &str, body: S) -> Result<(), ClientError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let operation = "sending a stream";
        let path = paths::NODE_STREAM.replace("{stream}", stream);
        let request = self
            .stream_request(Method::POST, &path)
            .body(reqwest::Body::wrap_stream(body));
        let response = self.send(operation, request, Duration::ZERO).await?;
        self.accepted(operation, response).await.map(|_| ())
    }

    /// Answers a stream that asked for one value.
    pub async fn answer_stream<T: Serialize>(
        &self,
        stream: &str,
        answer: &T,
    ) -> Result<(), ClientError> {
        let path = paths::NODE_STREAM.replace("{stream}", stream);
        self.call_empty("answering a call", self.post(&path).json(answer))
            .await
    }

    /// Says that the node cannot open a stream that was asked for.
    pub async fn refuse_stream(
        &self,
        stream: &str,
        refused: &StreamRefused,
    ) -> Result<(), ClientError> {
        let path = paths::NODE_STREAM_REFUSED.replace("{stream}", stream);
        self.call_empty("refusing a stream", self.post(&path).json(refused))
            .await
    }

    /// Opens a stream that asked for a command: its user is at the other end.
    pub async fn open_exec(&self, stream: &str) -> Result<NodeExec, ClientError> {
        let path = paths::NODE_STREAM.replace("{stream}", stream);
        let request = self.stream_request(Method::GET, &path);
        self.upgrade("opening a command's stream", EXEC_PROTOCOL, request)
            .await
    }

    /// Opens a stream that asked for a connection to a port: its user is at the other end.
    pub async fn open_forward(&self, stream: &str) -> Result<ForwardStream, ClientError> {
        let path = paths::NODE_STREAM.replace("{stream}", stream);
        let request = self.stream_request(Method::GET, &path);
        self.upgrade("opening a connection's stream", FORWARD_PROTOCOL, request)
            .await
    }
}

/// The calls of nodes and edges alike.
impl ApiClient {
    /// What the member is told about the cluster, once it is newer than what it has applied: the membership of this generation, and of the
    /// overlay what came up to counter `seen` of `session` (0 and 0: nothing). `None` when nothing newer came within `wait`.
    pub async fn member_state(
        &self,
        applied: Generation,
        position: (u64, u64),
        wait: Duration,
    ) -> Result<Option<MemberState>, ClientError> {
        let request = self.member_request(applied, position, wait);
        self.poll("following the membership", request, wait).await
    }

    /// [`Self::member_state`] of a member that measures when it is asked to: `measured` is the run that it took last, 0 for none.
    pub async fn member_state_to_measure(
        &self,
        applied: Generation,
        position: (u64, u64),
        measured: u64,
        wait: Duration,
    ) -> Result<Option<MemberState>, ClientError> {
        let request = self.member_request(applied, position, wait);
        let request = request.query(&[("measured", measured)]);
        self.poll("following the membership", request, wait).await
    }

    fn member_request(
        &self,
        applied: Generation,
        (session, seen): (u64, u64),
        wait: Duration,
    ) -> RequestBuilder {
        self.get(paths::MEMBER)
            .query(&[("after", applied.counter)])
            .query(&[("incarnation", applied.incarnation)])
            .query(&[("session", session), ("seen", seen)])
            .query(&[("wait_ms", millis(wait))])
    }

    /// Says how the member is reached, and what it knows of its links.
    pub async fn report_overlay(&self, report: &OverlayReport) -> Result<(), ClientError> {
        let call = self.post(paths::MEMBER_OVERLAY).json(report);
        self.call_empty("reporting of the overlay", call).await
    }

    /// Says what the member was asked to measure.
    pub async fn report_measurement(&self, measurement: &Measurement) -> Result<(), ClientError> {
        let call = self.post(paths::MEMBER_MEASUREMENT).json(measurement);
        self.call_empty("saying what was measured", call).await
    }

    /// A certificate for the member's key, or for the one that is to replace it.
    pub async fn certificate(
        &self,
        request: &CertificateRequest,
    ) -> Result<CertificateResponse, ClientError> {
        let call = self.post(paths::MEMBER_CERTIFICATE).json(request);
        self.call("renewing the certificate", call).await
    }
}

/// An edge's calls.
impl ApiClient {
    /// The routes, once they are others than those that the edge has: what changed since, where the server knows that, else all.
    /// `None` when nothing newer came within `wait`.
    pub async fn routes(
        &self,
        has: HasRoutes,
        wait: Duration,
    ) -> Result<Option<RouteTable>, ClientError> {
        let request = self
            .get(paths::EDGE_ROUTES)
            .query(&[("after", has.generation.counter)])
            .query(&[("incarnation", has.generation.incarnation)])
            .query(&[("session", has.session)])
            .query(&[("wait_ms", millis(wait))]);
        self.poll("fetching the routes", request, wait).await
    }
}
