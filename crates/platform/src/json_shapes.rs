//! What each command prints with `--format json`. A command prints only a value of the type that is beside it here, and docs/json.md is made of
//! this table: there is no JSON whose shape is not documented.
//!
//! Shapes are stable: fields are added, none goes or changes its meaning.

use std::marker::PhantomData;

use api::acme::AcmeStatus;
use api::certificates::{CertificateRow, IngressCaRow};
use api::event::Event;
use api::node::LogLine;
use api::user::{
    AppRow, CreateTokenResponse, CreateUserTokenResponse, DeployResponse, EdgeRow, EndedRow,
    EnvRow, ImageRow, InstanceRow, NetworkDiagnosis, NetworkStatus, NodeRow, OrgRow, PlanResponse,
    RegistryRow, ReleaseDetails, ReleaseRow, RunResponse, SecretRow, StatsRow, TokenRow, UserRow,
    UserTokenRow, VolumeRow, WhoAmI,
};
use api::why::Why;
use model::VolumeId;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::commands::doctor::Finding;
use crate::printed::{
    BackedUp, CaRotation, ContextRow, Deployed, Destroyed, Forwarding, InspectedImage,
    JoinedMember, LoggedIn, Mistake, ProgramVersion, Removed, RestoredBackup, RootDiskReport,
    SecretsSet, ServerSetUp, Signalled, TakenDown,
};

/// A command prints one value.
pub(crate) struct Whole<T>(PhantomData<fn(T)>);

/// A command prints a value on each line.
pub(crate) struct Lines<T>(PhantomData<fn(T)>);

/// A command prints a list, and with `--watch` a list on each line.
pub(crate) struct Watched<T>(PhantomData<fn(T)>);

/// A shape of one value at the end of a command.
pub(crate) trait Prints<T> {}

impl<T> Prints<T> for Whole<T> {}
impl<T> Prints<Vec<T>> for Watched<T> {}

impl<T: JsonSchema> Whole<T> {
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

impl<T: JsonSchema> Lines<T> {
    /// That of a line.
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<T>()
    }
}

impl<T: JsonSchema> Watched<T> {
    /// That of the list.
    fn schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Vec<T>>()
    }
}

/// How often a command prints its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Whole,
    Lines,
    Watched,
}

/// A row of the table, for the page and for `platform schema`.
pub(crate) struct Documented {
    /// The words of the commands, with commas between.
    commands: &'static str,
    /// What it is, in a sentence without its full stop.
    pub(crate) what: &'static str,
    pub(crate) form: Form,
    pub(crate) schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Documented {
    /// The words of each command: `ps --ended`.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &'static str> {
        self.commands.split(", ")
    }
}

macro_rules! shapes {
    ($($name:ident = $form:ident of $of:ty, $commands:literal, $what:literal;)*) => {
        $(
            #[doc = $what]
            pub(crate) const $name: $form<$of> = $form(PhantomData);
        )*
        /// Every shape, in the order of `platform --help`.
        pub(crate) const SHAPES: &[Documented] = &[$(
            Documented {
                commands: $commands,
                what: $what,
                form: Form::$form,
                schema: $form::<$of>::schema,
            },
        )*];
    };
}

shapes! {
    DEPLOYED = Whole of Deployed, "deploy, rollback", "The release and how its rollout ended";
    RECORDED = Whole of DeployResponse, "deploy --no-wait, rollback --no-wait", "The release";
    PLAN = Whole of PlanResponse, "plan", "What a deploy would change";
    RELEASES = Whole of Vec<ReleaseRow>, "releases", "The releases of the env, the newest first";
    RELEASE = Whole of ReleaseDetails, "releases show", "A release with its manifest";
    INSTANCES = Watched of InstanceRow, "ps", "The instances";
    ENDED = Watched of EndedRow, "ps --ended", "The instances that have ended of late";
    LOG_LINES = Lines of LogLine, "logs", "The lines that instances wrote, in the order in which they are printed";
    EVENTS = Lines of Event, "events", "The events, the oldest first";
    WHY = Whole of Why, "why", "The story of an instance, a process type or a node";
    STARTED = Whole of RunResponse, "run --detach", "The instance that runs the command; without `--detach` nothing of this command is JSON";
    FORWARDINGS = Lines of Forwarding, "forward", "Each local address, once it is listened on";
    STATS = Watched of StatsRow, "top", "What the instances use";
    SIGNALLED = Whole of Signalled, "signal", "The signal that was sent";
    SCALED = Whole of EnvRow, "scale", "The env, with the number of instances that are wanted now";
    ENVS = Watched of EnvRow, "envs", "The envs";
    SECRETS_SET = Whole of SecretsSet, "secrets set", "The bundle, and the release that runs with it";
    SECRETS = Whole of Vec<SecretRow>, "secrets list", "The secret bundles of the env, without what is in them";
    REMOVED = Whole of Removed, "secrets delete, nodes remove, edges remove, registries logout, certificates remove, tokens revoke, users remove, users tokens revoke, orgs remove, apps remove, contexts remove", "What is gone";
    VOLUMES = Whole of Vec<VolumeRow>, "volumes", "The volumes";
    VOLUMES_DELETED = Whole of Vec<VolumeId>, "volumes delete", "The volumes that are gone";
    DESTROYED = Whole of Destroyed, "destroy", "The env that was destroyed";
    MISTAKES = Whole of Vec<Mistake>, "validate", "The mistakes, of all files; none: an empty list";
    MANIFEST_SCHEMA = Whole of Value, "schema", "A JSON Schema (2020-12): of a manifest, or of what the command that is named prints";
    IMAGE = Whole of InspectedImage, "image inspect", "The image";
    ROOT_DISK = Whole of RootDiskReport, "image disk", "The disk that was built";
    NODES = Watched of NodeRow, "nodes", "The nodes";
    NODE = Whole of NodeRow, "nodes cordon, nodes uncordon, nodes drain, nodes label, nodes set-org, nodes stop-unknown, nodes approve, nodes revoke, nodes rotate-keys", "The node, as it is now";
    EDGES = Whole of Vec<EdgeRow>, "edges", "The edges";
    EDGE = Whole of EdgeRow, "edges approve, edges revoke, edges rotate-keys", "The edge, as it is now";
    NETWORK = Whole of NetworkStatus, "network, network set", "The overlay network and its members";
    DIAGNOSIS = Whole of NetworkDiagnosis, "network doctor", "All that the members measured, and what is wrong";
    IMAGES = Whole of Vec<ImageRow>, "images", "The images in the caches of the nodes";
    REGISTRIES = Whole of Vec<RegistryRow>, "registries", "The registries that the cluster is logged in to";
    REGISTRY = Whole of RegistryRow, "registries login", "The login";
    CERTIFICATES = Whole of Vec<CertificateRow>, "certificates, certificates list", "The certificates of hosts";
    CERTIFICATE = Whole of CertificateRow, "certificates add", "The certificate that was added";
    INGRESS_CA = Whole of IngressCaRow, "certificates ca", "The CA of the hosts that have no certificate of their own";
    ACME = Whole of AcmeStatus, "certificates acme, certificates acme show, certificates acme on, certificates acme off, certificates acme retry", "The certificates by ACME: how it goes";
    TOKEN = Whole of CreateTokenResponse, "tokens create", "The token, which is shown once";
    TOKENS = Whole of Vec<TokenRow>, "tokens list", "The enrollment tokens, without their secrets";
    USERS = Whole of Vec<UserRow>, "users", "The users";
    USER = Whole of UserRow, "users grant", "The user, as it is now";
    USER_LEFT = Whole of Option<UserRow>, "users revoke", "The user, with the roles that are left; null where `platform users` does not list the user any more";
    USER_TOKENS = Whole of Vec<UserTokenRow>, "users tokens", "The tokens of users, without their secrets";
    USER_TOKEN = Whole of CreateUserTokenResponse, "users tokens create", "The token, which is shown once";
    ORGS = Whole of Vec<OrgRow>, "orgs", "The orgs";
    ORG = Whole of OrgRow, "orgs create", "The org";
    APPS = Whole of Vec<AppRow>, "apps", "The apps";
    APP = Whole of AppRow, "apps move", "The app, as it is now";
    LOGGED_IN = Whole of LoggedIn, "login", "The cluster, as it is kept here, and who you are in it";
    WHO_AM_I = Whole of WhoAmI, "whoami", "Who you are in the cluster";
    CONTEXTS = Whole of Vec<ContextRow>, "contexts", "The clusters that are known here";
    CONTEXT = Whole of ContextRow, "contexts use", "The cluster that commands are for now";
    SERVER_SET_UP = Whole of ServerSetUp, "server init", "What was set up";
    CA = Whole of CaRotation, "server rotate-ca", "The cluster's CA, and who has learnt of it";
    BACKUP = Whole of BackedUp, "server backup", "The backup";
    RESTORED = Whole of RestoredBackup, "server restore", "What the backup has";
    JOINED = Whole of JoinedMember, "node join, edge join", "Who this machine is in the cluster";
    TAKEN_DOWN = Whole of TakenDown, "node down, edge down", "The role of which nothing is left running";
    FINDINGS = Whole of Vec<Finding>, "doctor", "What was checked on this machine";
    VERSION = Whole of ProgramVersion, "version", "This program's version";
}

/// A generator of the schemas of what is printed.
pub(crate) fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator()
}

/// The JSON Schema of what a command prints; `None`: it prints no JSON.
pub(crate) fn schema_of(command: &str) -> Option<Value> {
    let documented =
        (SHAPES.iter()).find(|documented| documented.commands().any(|words| words == command))?;
    let mut generator = generator();
    let shape = (documented.schema)(&mut generator).to_value();
    let of_lines = match documented.form {
        Form::Whole => "",
        Form::Lines => "; one on each line",
        Form::Watched => "; with `--watch` one on each line",
    };
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("platform {command} --format json"),
        "description": format!("{}{of_lines}", documented.what),
        "allOf": [shape],
        "$defs": generator.take_definitions(true),
    });
    api::openapi::tidy(&mut schema);
    Some(schema)
}

#[cfg(test)]
mod tests;
