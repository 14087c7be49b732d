//! The calls of users.

use std::collections::BTreeMap;
use std::time::Duration;

use api::enrollment::Member;
use api::event::{EventPage, EventsQuery};
use api::exec::EXEC_PROTOCOL;
use api::forward::FORWARD_PROTOCOL;
use api::user::{
    Acknowledgements, CaRow, CreateTokenRequest, CreateTokenResponse, DeployRequest,
    DeployResponse, DoctorRequest, EdgeRow, EndedRow, EnvRow, EnvsQuery, ImageRow, InstanceRow,
    InstancesQuery, LogsQuery, NetworkDiagnosis, NetworkSettingsRequest, NetworkStatus,
    NodeOrgRequest, NodeRow, NodesQuery, RegistryLoginRequest, RegistryRow, ReleaseDetails,
    ReleaseRow, RemoveNodeQuery, RevokeResponse, RollbackRequest, RolloutStatus, RotateCaRequest,
    ScaleRequest, Scheduling, SchedulingRequest, SecretRow, SetSecretsRequest, StopUnknownRequest,
    StopUnknownResponse, TokenRow, VolumeRow, VolumesQuery,
};
use api::user::{AttachQuery, PlanResponse, RunRequest, RunResponse};
use api::user::{ExecQuery, LabelsRequest, SignalRequest, StatsRow};
use api::why::{Why, WhyQuery};
use api::{IDEMPOTENCY_KEY, paths};
use futures_util::StreamExt as _;
use model::{
    AppName, EdgeId, EnvKey, EnvName, InstanceId, LabelKey, LabelValue, NodeId, OrgName,
    ReleaseNumber, VolumeId,
};
use reqwest::Method;

use super::{ANSWER_GRACE, ApiClient, DEPLOY_TIMEOUT, millis, random_key};
use crate::{ClientError, ForwardStream, LogStream, UserExec};

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
        self.find_nodes(&NodesQuery::default()).await
    }

    /// The nodes that a query keeps.
    pub async fn find_nodes(&self, query: &NodesQuery) -> Result<Vec<NodeRow>, ClientError> {
        self.pages("listing nodes", paths::NODES, query).await
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
        self.find_instances(&InstancesQuery {
            app: env.map(|key| key.app.clone()),
            env: env.map(|key| key.env.clone()),
            ..InstancesQuery::default()
        })
        .await
    }

    /// The instances that a query keeps.
    pub async fn find_instances(
        &self,
        query: &InstancesQuery,
    ) -> Result<Vec<InstanceRow>, ClientError> {
        self.pages("listing instances", paths::INSTANCES, query)
            .await
    }

    /// The instances that are gone and whose records are kept.
    pub async fn ended_instances(&self) -> Result<Vec<EndedRow>, ClientError> {
        self.find_ended_instances(&InstancesQuery::default()).await
    }

    /// Those of them that a query keeps.
    pub async fn find_ended_instances(
        &self,
        query: &InstancesQuery,
    ) -> Result<Vec<EndedRow>, ClientError> {
        self.pages("listing ended instances", paths::ENDED_INSTANCES, query)
            .await
    }

    /// Runs a command beside the app of an instance.
    pub async fn exec(
        &self,
        instance: InstanceId,
        query: &ExecQuery,
    ) -> Result<UserExec, ClientError> {
        let request = self.get(&instance_path(paths::EXEC, instance)).query(query);
        self.upgrade("running a command", EXEC_PROTOCOL, request)
            .await
    }

    /// What a deploy would do.
    pub async fn plan(
        &self,
        env: &EnvKey,
        request: &DeployRequest,
    ) -> Result<PlanResponse, ClientError> {
        let asked = self
            .post(&env_path(paths::PLAN, env))
            .query(&[("org", self.org.as_ref())])
            .json(request)
            .timeout(DEPLOY_TIMEOUT);
        self.answer("planning a deploy", asked, DEPLOY_TIMEOUT)
            .await
    }

    /// Makes the instance of a command.
    pub async fn run(
        &self,
        env: &EnvKey,
        request: &RunRequest,
    ) -> Result<RunResponse, ClientError> {
        let asked = self.post(&env_path(paths::RUNS, env)).json(request);
        let asked = asked.header(IDEMPOTENCY_KEY, random_key());
        self.call("running a command", asked).await
    }

    /// Runs the command that an instance was made for, with its streams at this end.
    pub async fn attach(
        &self,
        instance: InstanceId,
        query: &AttachQuery,
    ) -> Result<UserExec, ClientError> {
        let request = self.get(&instance_path(paths::ATTACH, instance));
        self.upgrade("running a command", EXEC_PROTOCOL, request.query(query))
            .await
    }

    /// Ends the command that an instance was made for.
    pub async fn end_run(&self, instance: InstanceId) -> Result<(), ClientError> {
        let path = instance_path(paths::RUN, instance);
        self.call_empty("ending a command", self.request(Method::DELETE, &path))
            .await
    }

    /// Opens one TCP connection to a port of an instance. The node's first frame says whether the port has accepted it.
    pub async fn forward(
        &self,
        instance: InstanceId,
        port: u16,
    ) -> Result<ForwardStream, ClientError> {
        let path = instance_path(paths::FORWARD, instance).replace("{port}", &port.to_string());
        self.upgrade("forwarding a connection", FORWARD_PROTOCOL, self.get(&path))
            .await
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

    /// The stats of every instance, or of those of an app, or of envs of this name.
    pub async fn stats(
        &self,
        app: Option<&AppName>,
        env: Option<&EnvName>,
    ) -> Result<Vec<StatsRow>, ClientError> {
        let request = self.get(paths::STATS);
        let request = request.query(&[("app", app)]).query(&[("env", env)]);
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

    /// Gives a node to an org, or to all.
    pub async fn set_node_org(
        &self,
        node: NodeId,
        org: Option<OrgName>,
    ) -> Result<(), ClientError> {
        let path = paths::NODE_ORG.replace("{node}", &node.to_string());
        let request = self.request(Method::PUT, &path);
        let request = request.json(&NodeOrgRequest { org });
        self.call_empty("giving a node to an org", request).await
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

    /// Every env, those that cannot be read too.
    pub async fn envs(&self) -> Result<Vec<EnvRow>, ClientError> {
        self.find_envs(&EnvsQuery::default()).await
    }

    /// This env, where there is one.
    pub async fn env(&self, key: &EnvKey) -> Result<Option<EnvRow>, ClientError> {
        let query = EnvsQuery {
            app: Some(key.app.clone()),
            env: Some(key.env.clone()),
            ..EnvsQuery::default()
        };
        Ok(self.find_envs(&query).await?.pop())
    }

    /// The envs that a query keeps, those that cannot be read too.
    pub async fn find_envs(&self, query: &EnvsQuery) -> Result<Vec<EnvRow>, ClientError> {
        self.pages("listing envs", paths::ENVS, query).await
    }

    /// Records a release of the env; its rollout begins.
    pub async fn deploy(
        &self,
        env: &EnvKey,
        request: &DeployRequest,
    ) -> Result<DeployResponse, ClientError> {
        self.deploy_after(env, request, None).await
    }

    /// The same, where this is the env's newest release (0: it has none), and refused otherwise.
    pub async fn deploy_after(
        &self,
        env: &EnvKey,
        request: &DeployRequest,
        newest: Option<u32>,
    ) -> Result<DeployResponse, ClientError> {
        let request = self
            .post(&env_path(paths::ENV, env))
            .query(&[("org", self.org.as_ref())])
            .query(&[("newest_release", newest)])
            .header(IDEMPOTENCY_KEY, random_key())
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

    /// Events, of those that the caller sees. With [`EventsQuery::after`], the next one is waited for, for as long as `wait`.
    pub async fn events(
        &self,
        query: &EventsQuery,
        wait: Duration,
    ) -> Result<EventPage, ClientError> {
        let query = EventsQuery {
            wait_ms: (!wait.is_zero()).then(|| millis(wait)),
            ..query.clone()
        };
        let limit = wait + ANSWER_GRACE;
        let request = self.get(paths::EVENTS).query(&query).timeout(limit);
        self.answer("asking for events", request, limit).await
    }

    /// Why something is as it is.
    pub async fn why(&self, query: &WhyQuery) -> Result<Why, ClientError> {
        let request = self.get(paths::WHY).query(query);
        self.call("asking why", request).await
    }

    /// The releases of an env that are kept, the newest first.
    pub async fn releases(&self, env: &EnvKey) -> Result<Vec<ReleaseRow>, ClientError> {
        let request = self.get(&env_path(paths::RELEASES, env));
        self.call("listing releases", request).await
    }

    /// A release of an env with its manifest.
    pub async fn release(
        &self,
        env: &EnvKey,
        release: ReleaseNumber,
    ) -> Result<ReleaseDetails, ClientError> {
        let path = env_path(paths::RELEASE, env).replace("{release}", &release.0.to_string());
        self.call("asking for a release", self.get(&path)).await
    }

    /// A new release that is the same as an older one; absent: as the one before.
    pub async fn rollback(
        &self,
        env: &EnvKey,
        release: Option<ReleaseNumber>,
    ) -> Result<DeployResponse, ClientError> {
        let request = self.post(&env_path(paths::ROLLBACK, env));
        let request = request.header(IDEMPOTENCY_KEY, random_key());
        let request = request.json(&RollbackRequest { release });
        self.call("rolling back", request).await
    }

    /// A new release as the wanted one, with the newest versions of its secret bundles.
    pub async fn redeploy(&self, env: &EnvKey) -> Result<DeployResponse, ClientError> {
        let request = self.post(&env_path(paths::REDEPLOY, env));
        let request = request.header(IDEMPOTENCY_KEY, random_key());
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
        let request = self.post(&path).json(request);
        let request = request.query(&[("org", self.org.as_ref())]);
        self.call("setting secrets", request).await
    }

    /// Deletes a secret bundle.
    pub async fn delete_secrets(&self, env: &EnvKey, bundle: &str) -> Result<(), ClientError> {
        let path = env_path(paths::SECRET, env).replace("{bundle}", bundle);
        let request = self.request(Method::DELETE, &path);
        self.call_empty("deleting a secret bundle", request).await
    }

    /// Every volume, or those of one env.
    pub async fn volumes(&self, env: Option<&EnvKey>) -> Result<Vec<VolumeRow>, ClientError> {
        self.find_volumes(&VolumesQuery {
            app: env.map(|key| key.app.clone()),
            env: env.map(|key| key.env.clone()),
            ..VolumesQuery::default()
        })
        .await
    }

    /// The volumes that a query keeps.
    pub async fn find_volumes(&self, query: &VolumesQuery) -> Result<Vec<VolumeRow>, ClientError> {
        self.pages("listing volumes", paths::VOLUMES, query).await
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
