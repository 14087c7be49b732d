//! The calls about certificates of hosts: of users, and of edges.

use std::time::Duration;

use api::acme::{AcmeRequest, AcmeStatus};
use api::certificates::{AddCertificateRequest, CertificateRow, IngressCaRow};
use api::edge::{
    CertificateTable, ChallengeTable, HasRoutes, HostCertificateRequest, HostCertificateResponse,
};
use api::paths;
use reqwest::Method;

use super::{ApiClient, millis};
use crate::ClientError;

impl ApiClient {
    /// Every certificate.
    pub async fn certificates(&self) -> Result<Vec<CertificateRow>, ClientError> {
        self.call("listing certificates", self.get(paths::CERTIFICATES))
            .await
    }

    /// Adds a certificate; one of the same name is replaced.
    pub async fn add_certificate(
        &self,
        request: &AddCertificateRequest,
    ) -> Result<CertificateRow, ClientError> {
        let request = self.post(paths::CERTIFICATES).json(request);
        self.call("adding a certificate", request).await
    }

    /// Removes the certificate of this name.
    pub async fn remove_certificate(&self, name: &str) -> Result<(), ClientError> {
        let request = self
            .request(Method::DELETE, paths::CERTIFICATES)
            .query(&[("name", name)]);
        self.call_empty("removing a certificate", request).await
    }

    /// The CA of the hosts that have no certificate of their own.
    pub async fn ingress_ca(&self) -> Result<IngressCaRow, ClientError> {
        self.call("asking for the CA of hosts", self.get(paths::INGRESS_CA))
            .await
    }

    /// An edge's call: the certificates, once they are others than those that the edge has. `None` when nothing newer came within `wait`.
    pub async fn edge_certificates(
        &self,
        has: HasRoutes,
        wait: Duration,
    ) -> Result<Option<CertificateTable>, ClientError> {
        let request = self
            .get(paths::EDGE_CERTIFICATES)
            .query(&[("after", has.generation.counter)])
            .query(&[("incarnation", has.generation.incarnation)])
            .query(&[("session", has.session)])
            .query(&[("wait_ms", millis(wait))]);
        self.poll("fetching the certificates", request, wait).await
    }

    /// An edge's call: what it is to answer to authorities of ACME, once that is other than what it has. `None` when nothing newer came within `wait`. `https`:
    /// whether it has a port for HTTPS.
    pub async fn edge_challenges(
        &self,
        has: HasRoutes,
        https: bool,
        wait: Duration,
    ) -> Result<Option<ChallengeTable>, ClientError> {
        let request = self
            .get(paths::EDGE_CHALLENGES)
            .query(&[("after", has.generation.counter)])
            .query(&[("incarnation", has.generation.incarnation)])
            .query(&[("session", has.session)])
            .query(&[("https", https)])
            .query(&[("wait_ms", millis(wait))]);
        self.poll("fetching the challenges of ACME", request, wait)
            .await
    }

    /// Whether certificates are ordered by ACME, and how it goes.
    pub async fn acme(&self) -> Result<AcmeStatus, ClientError> {
        self.call("asking about ACME", self.get(paths::ACME)).await
    }

    /// Has certificates ordered by ACME.
    pub async fn set_acme(&self, request: &AcmeRequest) -> Result<AcmeStatus, ClientError> {
        let request = self.request(Method::PUT, paths::ACME).json(request);
        self.call("turning ACME on", request).await
    }

    /// Has no certificate ordered any more.
    pub async fn unset_acme(&self) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, paths::ACME);
        self.call_empty("turning ACME off", request).await
    }

    /// Has a name tried again whose order failed.
    pub async fn retry_acme(&self, name: &str) -> Result<(), ClientError> {
        let request = self.post(paths::ACME_RETRY).query(&[("name", name)]);
        self.call_empty("trying a name again", request).await
    }

    /// An edge's call: a certificate of the ingress CA for a host that a route leads from.
    pub async fn host_certificate(
        &self,
        request: &HostCertificateRequest,
    ) -> Result<HostCertificateResponse, ClientError> {
        let request = self.post(paths::EDGE_HOST_CERTIFICATE).json(request);
        self.call("asking for a host's certificate", request).await
    }
}
