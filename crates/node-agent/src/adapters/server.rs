//! The control plane by its API.

use std::time::Duration;

use api::node::{DesiredState, ReportAnswer, ReportDelta};
use api_client::{ApiClient, ClientError};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use model::instance::SecretBundle;
use model::{Generation, InstanceId};

use crate::host::{HostError, HostResult, Server};
use display::chain;

impl Server for ApiClient {
    fn desired(
        &self,
        after: Generation,
        wait: Duration,
    ) -> BoxFuture<'_, HostResult<Option<DesiredState>>> {
        async move { Self::desired(self, after, wait).await.map_err(host_error) }.boxed()
    }

    fn report(&self, report: ReportDelta) -> BoxFuture<'_, HostResult<ReportAnswer>> {
        async move { Self::report(self, &report).await.map_err(host_error) }.boxed()
    }

    fn secrets(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Vec<SecretBundle>>> {
        async move { self.instance_secrets(id).await.map_err(host_error) }.boxed()
    }
}

fn host_error(error: ClientError) -> HostError {
    HostError {
        transient: error.is_transient(),
        reason: chain(&error),
    }
}
