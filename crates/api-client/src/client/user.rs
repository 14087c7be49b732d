//! The calls of users.

use std::collections::BTreeMap;
use std::time::Duration;

use api::enrollment::Member;
use api::paths;
use api::user::{
    Acknowledgements, CaRow, CreateTokenRequest, CreateTokenResponse, DeployRequest,
    DeployResponse, DoctorRequest, EdgeRow, EndedRow, EnvRow, ImageRow, InstanceRow, LogsQuery,
    NetworkDiagnosis, NetworkSettingsRequest, NetworkStatus, NodeRow, RegistryLoginRequest,
    RegistryRow, RemoveNodeQuery, RevokeResponse, RolloutStatus, RotateCaRequest, ScaleRequest,
    Scheduling, SchedulingRequest, SecretRow, SetSecretsRequest, StopUnknownRequest,
    StopUnknownResponse, TokenRow, VolumeRow,
};
use api::user::{ExecQuery, LabelsRequest, SignalRequest, StatsRow};
use futures_util::StreamExt as _;
use model::{EdgeId, EnvKey, InstanceId, LabelKey, LabelValue, NodeId, ReleaseNumber, VolumeId};
use reqwest::Method;

use super::{ANSWER_GRACE, ApiClient, DEPLOY_TIMEOUT, millis};
use crate::{ClientError, LogStream, UserExec};

/// A user's calls.
impl ApiClient {
    /// Makes a one-time enrollment token.
    pub async fn create_token(
        &self,
        request: &CreateTokenRequest,
    ) -> Result<CreateTokenResponse, ClientError> {
        self.call("creating a token", self.post(paths::TOKENS).json(request))
            .await
    }

    /// Every enrollment token whose record is kept.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, ClientError> {
        self.call("listing tokens", self.get(paths::TOKENS)).await
    }

    /// Revokes an enrollment token.
    pub async fn revoke_token(&self, id: &str) -> Result<(), ClientError> {
        let path = paths::TOKEN.replace("{token}", id);
        let request = self.request(Method::DELETE, &path);
        self.call_empty("revoking a token", request).await
    }

    /// The cluster's CA.
    pub async fn ca(&self) -> Result<CaRow, ClientError> {
        self.call("asking for the CA", self.get(paths::CA)).await
    }

    /// Has another CA sign, or ends the trust in the one before.
    pub async fn rotate_ca(&self, finish: bool) -> Result<CaRow, ClientError> {
        let request = self.post(paths::CA).json(&RotateCaRequest { finish });
        self.call("replacing the CA", request).await
    }

    /// The overlay: its settings, its members and their links.
    pub async fn network(&self) -> Result<NetworkStatus, ClientError> {
        self.call("asking for the network", self.get(paths::NETWORK))
            .await
    }

    /// Changes settings of the overlay, which every member follows.
    pub async fn set_network(
        &self,
        settings: &NetworkSettingsRequest,
    ) -> Result<NetworkStatus, ClientError> {
        let request = self.request(Method::PATCH, paths::NETWORK).json(settings);
        self.call("changing the network", request).await
    }

    /// Has the members measure the network between them, and gives what they found.
    pub async fn diagnose_network(
        &self,
        request: &DoctorRequest,
    ) -> Result<NetworkDiagnosis, ClientError> {
        let request = self.post(paths::NETWORK_DOCTOR).json(request);
        let request = request.timeout(DEPLOY_TIMEOUT);
        self.answer("measuring the network", request, DEPLOY_TIMEOUT)
            .await
    }

    /// Every edge.
    pub async fn edges(&self) -> Result<Vec<EdgeRow>, ClientError> {
        self.call("listing edges", self.get(paths::EDGES)).await
    }

    /// Removes an edge that was revoked.
    pub async fn remove_edge(&self, edge: EdgeId) -> Result<(), ClientError> {
        let path = paths::EDGE.replace("{edge}", &edge.to_string());
        let request = self.request(Method::DELETE, &path);
        self.call_empty("removing an edge", request).await
    }

    /// Lets a member in that waits for approval, and approves what hardware it claims.
    pub async fn approve(&self, member: Member) -> Result<(), ClientError> {
        let request = self.post(&member_path(paths::APPROVE, member));
        self.call_empty("approving a member", request).await
    }

    /// Revokes a member: it may do nothing any more.
    pub async fn revoke(&self, member: Member) -> Result<RevokeResponse, ClientError> {
        let request = self.post(&member_path(paths::REVOKE, member));
        self.call("revoking a member", request).await
    }

    /// Asks a member for other keys.
    pub async fn rotate_keys(&self, member: Member) -> Result<(), ClientError> {
        let request = self.post(&member_path(paths::ROTATE_KEYS, member));
        self.call_empty("asking a member for other keys", request)
            .await
    }

    /// Which members have applied the membership with this counter, or a later one.
    pub async fn acknowledgements(&self, counter: u64) -> Result<Acknowledgements, ClientError> {
        let request = self.get(paths::MEMBERS).query(&[("counter", counter)]);
        self.call("asking who has acknowledged", request).await
    }

    /// Every node.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, ClientError> {
        self.call("listing nodes", self.get(paths::NODES)).await
    }

    /// Every registry that the cluster is logged in to.
    pub async fn registries(&self) -> Result<Vec<RegistryRow>, ClientError> {
        self.call("listing registries", self.get(paths::REGISTRIES))
            .await
    }

    /// Logs the cluster in to a registry.
    pub async fn registry_login(
        &self,
        request: &RegistryLoginRequest,
    ) -> Result<RegistryRow, ClientError> {
        let request = self
            .post(paths::REGISTRIES)
            .json(request)
            .timeout(DEPLOY_TIMEOUT);
        self.answer("logging in to a registry", request, DEPLOY_TIMEOUT)
            .await
    }

    /// Logs the cluster out of a registry.
    pub async fn registry_logout(&self, registry: &str) -> Result<(), ClientError> {
        let request = self
            .request(Method::DELETE, paths::REGISTRIES)
            .query(&[("registry", registry)]);
        self.call_empty("logging out of a registry", request).await
    }

    /// The image caches of the nodes that are online.
    pub async fn images(&self) -> Result<Vec<ImageRow>, ClientError> {
        self.call("listing images", self.get(paths::IMAGES)).await
    }

    /// Every instance, or those of one env.
    pub async fn instances(&self, env: Option<&EnvKey>) -> Result<Vec<InstanceRow>, ClientError> {
        let mut request = self.get(paths::INSTANCES);
        if let Some(key) = env {
            request = request.query(&[("app", key.app.as_str()), ("env", key.env.as_str())]);
        }
        self.call("listing instances", request).await
    }

    /// The instances that are gone and whose records are kept.
    pub async fn ended_instances(&self) -> Result<Vec<EndedRow>, ClientError> {
        self.call("listing ended instances", self.get(paths::ENDED_INSTANCES))
            .await
    }

    /// Runs a command beside the app of an instance.
    pub async fn exec(
        &self,
        instance: InstanceId,
        query: &ExecQuery,
    ) -> Result<UserExec, ClientError> {
        let request = self.get(&instance_path(paths::EXEC, instance)).query(query);
        self.upgrade("running a command", request).await
    }

    /// Sends a signal to the app of an instance.
    pub async fn signal(
        &self,
        instance: InstanceId,
        request: &SignalRequest,
    ) -> Result<(), ClientError> {
        let path = instance_path(paths::SIGNAL, instance);
        self.call_empty("sending a signal", self.post(&path).json(request))
            .await
    }

    /// The stats of every instance, or of those of one env.
    pub async fn stats(&self, env: Option<&EnvKey>) -> Result<Vec<StatsRow>, ClientError> {
        let mut request = self.get(paths::STATS);
        if let Some(key) = env {
            request = request.query(&[("app", key.app.as_str()), ("env", key.env.as_str())]);
        }
        self.call("asking for stats", request).await
    }

    /// Says whether a node takes instances from now on.
    pub async fn set_scheduling(
        &self,
        node: NodeId,
        scheduling: Scheduling,
    ) -> Result<(), ClientError> {
        let request = self.request(Method::PUT, &node_path(paths::NODE_SCHEDULING, node));
        let request = request.json(&SchedulingRequest { scheduling });
        self.call_empty("changing whether a node takes instances", request)
            .await
    }

    /// Sets and removes labels of a node.
    pub async fn set_labels(
        &self,
        node: NodeId,
        labels: BTreeMap<LabelKey, Option<LabelValue>>,
    ) -> Result<(), ClientError> {
        let request = self.request(Method::PATCH, &node_path(paths::NODE_LABELS, node));
        let request = request.json(&LabelsRequest { labels });
        self.call_empty("labelling a node", request).await
    }

    /// Has a node stop instances that it runs and the store does not know; empty: all of them.
    pub async fn stop_unknown(
        &self,
        node: NodeId,
        instances: Vec<InstanceId>,
    ) -> Result<StopUnknownResponse, ClientError> {
        let request = self.post(&node_path(paths::NODE_STOP_UNKNOWN, node));
        let request = request.json(&StopUnknownRequest { instances });
        self.call("stopping unknown instances", request).await
    }

    /// Removes a node. `lost`: with what it has.
    pub async fn remove_node(&self, node: NodeId, lost: bool) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &node_path(paths::NODE, node));
        let request = request.query(&RemoveNodeQuery { lost });
        self.call_empty("removing a node", request).await
    }

    /// Every env.
    pub async fn envs(&self) -> Result<Vec<EnvRow>, ClientError> {
        self.call("listing envs", self.get(paths::ENVS)).await
    }

    /// Records a release of the env; its rollout begins.
    pub async fn deploy(
        &self,
        env: &EnvKey,
        request: &DeployRequest,
    ) -> Result<DeployResponse, ClientError> {
        let request = self
            .post(&env_path(paths::ENV, env))
            .json(request)
            .timeout(DEPLOY_TIMEOUT);
        self.answer("deploying", request, DEPLOY_TIMEOUT).await
    }

    /// How the rollout of a release goes (absent: of the newest), once its revision is another
    /// than `after`; the same again when nothing changed within `wait`.
    pub async fn rollout(
        &self,
        env: &EnvKey,
        release: Option<ReleaseNumber>,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<RolloutStatus, ClientError> {
        let mut request = self
            .get(&env_path(paths::ROLLOUT, env))
            .query(&[("wait_ms", millis(wait))]);
        if let Some(release) = release {
            request = request.query(&[("release", release.0)]);
        }
        if let Some(revision) = after {
            request = request.query(&[("after", revision)]);
        }
        let limit = wait + ANSWER_GRACE;
        self.answer("asking for the rollout", request.timeout(limit), limit)
            .await
    }

    /// Sets how many instances of processes are wanted.
    pub async fn scale(&self, env: &EnvKey, request: &ScaleRequest) -> Result<EnvRow, ClientError> {
        let request = self.post(&env_path(paths::SCALE, env)).json(request);
        self.call("scaling", request).await
    }

    /// Begins to destroy the env; it is gone from [`Self::envs`] when nothing of it is left.
    pub async fn destroy(&self, env: &EnvKey) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &env_path(paths::ENV, env));
        self.call_empty("destroying", request).await
    }

    /// A new release as the wanted one, with the newest versions of its secret bundles.
    pub async fn redeploy(&self, env: &EnvKey) -> Result<DeployResponse, ClientError> {
        let request = self.post(&env_path(paths::REDEPLOY, env));
        self.call("deploying again", request).await
    }

    /// The secret bundles of an env.
    pub async fn secrets(&self, env: &EnvKey) -> Result<Vec<SecretRow>, ClientError> {
        let request = self.get(&env_path(paths::SECRETS, env));
        self.call("listing secret bundles", request).await
    }

    /// Makes a new version of a secret bundle.
    pub async fn set_secrets(
        &self,
        env: &EnvKey,
        bundle: &str,
        request: &SetSecretsRequest,
    ) -> Result<SecretRow, ClientError> {
        let path = env_path(paths::SECRET, env).replace("{bundle}", bundle);
        self.call("setting secrets", self.post(&path).json(request))
            .await
    }

    /// Deletes a secret bundle.
    pub async fn delete_secrets(&self, env: &EnvKey, bundle: &str) -> Result<(), ClientError> {
        let path = env_path(paths::SECRET, env).replace("{bundle}", bundle);
        let request = self.request(Method::DELETE, &path);
        self.call_empty("deleting a secret bundle", request).await
    }

    /// Every volume, or those of one env.
    pub async fn volumes(&self, env: Option<&EnvKey>) -> Result<Vec<VolumeRow>, ClientError> {
        let mut request = self.get(paths::VOLUMES);
        if let Some(key) = env {
            request = request.query(&[("app", key.app.as_str()), ("env", key.env.as_str())]);
        }
        self.call("listing volumes", request).await
    }

    /// Begins to delete a volume; it is gone from [`Self::volumes`] when its disk is.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<(), ClientError> {
        let path = paths::VOLUME.replace("{volume}", &id.to_string());
        let request = self.request(Method::DELETE, &path);
        self.call_empty("deleting a volume", request).await
    }

    /// Log lines of the env. With `follow`, until the returned stream is dropped.
    pub async fn logs(&self, env: &EnvKey, query: &LogsQuery) -> Result<LogStream, ClientError> {
        let operation = "reading logs";
        let request = self.get(&env_path(paths::LOGS, env)).query(query);
        // No time limit on the whole: a stream may last for days.
        let response = self.send(operation, request, Duration::ZERO).await?;
        let response = self.accepted(operation, response).await?;
        Ok(LogStream::new(
            self.server.clone(),
            response.bytes_stream().boxed(),
        ))
    }
}

fn env_path(template: &str, env: &EnvKey) -> String {
    template
        .replace("{app}", env.app.as_str())
        .replace("{env}", env.env.as_str())
}

fn node_path(template: &str, node: NodeId) -> String {
    template.replace("{node}", &node.to_string())
}

fn instance_path(template: &str, instance: InstanceId) -> String {
    template.replace("{instance}", &instance.to_string())
}

fn member_path(path: &str, member: Member) -> String {
    path.replace("{member}", &member.to_string())
}
