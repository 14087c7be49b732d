//! `platform dev`: a whole cluster in one terminal, for work on the platform itself.
//!
//! The three roles run as child processes of this same program, so that each can be killed and
//! watched as in a real cluster; their lines come out here behind their name. When this command
//! ends, everything it started ends: unlike a real cluster's, its microVMs too.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use api::enrollment::EnrollRole;
use api::user::CreateTokenRequest;
use api_client::{ApiClient, ClientConfig};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::failure::Failure;
use crate::output::note;

/// How long the server may take until it answers.
const SERVER_START: Duration = Duration::from_secs(20);
/// Time between two looks.
const POLL: Duration = Duration::from_millis(100);
/// How long a role may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the tokens work with which node and edge join at once.
const TOKEN_SECONDS: u64 = 60;

const EXAMPLES: &str = "\
Example:
  platform dev
and in another terminal:
  export PLATFORM_CONFIG=/var/lib/platform-dev/server/client.json
  platform nodes

Needs root, for the node's network. A second start goes on with the same cluster.";

/// Run a server, a node and an edge in this terminal, for work on the platform itself
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where the cluster's state is kept
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/platform-dev")]
    data_dir: PathBuf,
    /// Where sockets and records of running microVMs are kept
    #[arg(long, value_name = "FOLDER", default_value = "/run/platform-dev")]
    run_dir: PathBuf,
    /// Where the server listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7400")]
    listen: SocketAddr,
    /// Where the edge listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    edge_listen: SocketAddr,
    /// Where the edge listens for HTTPS [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    edge_listen_tls: Option<SocketAddr>,
    /// Folder with the guest's kernel and initramfs
    #[arg(long, value_name = "FOLDER")]
    guest: Option<PathBuf>,
    /// How much the roles say (`--log` of each)
    #[arg(
        long,
        value_name = "LEVEL",
        env = "RUST_LOG",
        hide_env_values = true,
        default_value = "info"
    )]
    log: String,
}

#[derive(Debug, Clone, Copy)]
enum Role {
    Server,
    Node,
    Edge,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Node => "node",
            Self::Edge => "edge",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Server => AnsiColor::Cyan.on_default(),
            Self::Node => AnsiColor::Green.on_default(),
            Self::Edge => AnsiColor::Magenta.on_default(),
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let asked = crate::shutdown::until_asked_to_stop()?;
    let mut roles: Vec<(Role, Child)> = Vec::new();
    let result = tokio::select! {
        result = serve(&arguments, &mut roles) => result,
        () = asked.cancelled() => Ok(()),
    };
    note("ending the cluster");
    // The agent before its microVMs, so that it does not start them again.
    for (role, child) in roles.iter_mut().rev() {
        end(*role, child).await;
    }
    if !roles.is_empty() {
        take_node_down(&arguments).await?;
    }
    result
}

/// Starts the roles, and returns when one of them has ended.
async fn serve(arguments: &Arguments, roles: &mut Vec<(Role, Child)>) -> Result<(), Failure> {
    let folder = |role: Role| arguments.data_dir.join(role.name());
    let config = folder(Role::Server).join("client.json");
    let server = [
        ("--listen", arguments.listen.to_string()),
        ("--data-dir", folder(Role::Server).display().to_string()),
    ];
    roles.push((
        Role::Server,
        start(Role::Server, &server, None, &arguments.log)?,
    ));
    let client = reach_server(&config, &mut roles[0].1).await?;

    let mut node = vec![
        ("--data-dir", folder(Role::Node).display().to_string()),
        ("--run-dir", arguments.run_dir.display().to_string()),
        ("--server", client.server().to_owned()),
    ];
    if let Some(guest) = &arguments.guest {
        node.push(("--guest", guest.display().to_string()));
    }
    let token = token(&client, EnrollRole::Node, &folder(Role::Node)).await?;
    roles.push((Role::Node, start(Role::Node, &node, token, &arguments.log)?));

    let mut edge = vec![
        ("--data-dir", folder(Role::Edge).display().to_string()),
        ("--listen", arguments.edge_listen.to_string()),
        ("--server", client.server().to_owned()),
    ];
    if let Some(address) = arguments.edge_listen_tls {
        edge.push(("--listen-tls", address.to_string()));
    }
    let token = self::token(&client, EnrollRole::Edge, &folder(Role::Edge)).await?;
    roles.push((Role::Edge, start(Role::Edge, &edge, token, &arguments.log)?));
    note(format!(
        "up: export PLATFORM_CONFIG={} and use `platform` in another terminal; apps answer at \
         http://{}/ by host name; Ctrl-C ends everything",
        config.display(),
        arguments.edge_listen
    ));
    first_to_end(roles).await
}

/// Waits until a role has ended: that is a failure, whatever its status.
async fn first_to_end(roles: &mut [(Role, Child)]) -> Result<(), Failure> {
    let ends = roles.iter_mut().map(|(role, child)| {
        let role = role.name();
        Box::pin(async move { (role, child.wait().await) })
    });
    let ((role, status), ..) = futures_util::future::select_all(ends).await;
    Err(
        Failure::new(format!("the {role} ended by itself, with {}", status?))
            .hint("its last lines say why"),
    )
}

fn start(
    role: Role,
    flags: &[(&str, String)],
    token: Option<String>,
    log: &str,
) -> Result<Child, Failure> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.arg(role.name()).env("RUST_LOG", log);
    for (flag, value) in flags {
        command.arg(flag).arg(value);
    }
    if let Some(token) = token {
        // Not on the command line, where everyone on the machine could read it.
        command.env("PLATFORM_TOKEN", token);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for this command, which ends the roles in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start the {}", role.name()))?;
    if let Some(out) = child.stdout.take() {
        tokio::spawn(pass_on(role, out));
    }
    if let Some(err) = child.stderr.take() {
        tokio::spawn(pass_on(role, err));
    }
    Ok(child)
}

/// Prints a role's lines behind its name.
async fn pass_on(role: Role, lines: impl AsyncRead + Unpin) {
    let style = role.style();
    let mut lines = BufReader::new(lines).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        note(format!("{style}{:<6} |{style:#} {line}", role.name()));
    }
}

/// A client for the first admin, once the server answers.
async fn reach_server(config: &Path, server: &mut Child) -> Result<ApiClient, Failure> {
    let deadline = Instant::now() + SERVER_START;
    loop {
        if let Some(status) = server.try_wait()? {
            return Err(Failure::new(format!(
                "the server ended at once, with {status}"
            )));
        }
        if let Ok(config) = ClientConfig::load(config) {
            let client = ApiClient::user(&config)?;
            if client.health().await.is_ok() {
                return Ok(client);
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::new(format!(
                "the server did not answer within {} s",
                SERVER_START.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A token to join with, where the role did not join yet.
async fn token(
    client: &ApiClient,
    role: EnrollRole,
    data_dir: &Path,
) -> Result<Option<String>, Failure> {
    if data_dir.join("member.json").exists() {
        return Ok(None);
    }
    let request = CreateTokenRequest::new(role, TOKEN_SECONDS);
    Ok(Some(client.create_token(&request).await?.token))
}

/// Asks a role to end, and makes it end.
async fn end(role: Role, child: &mut Child) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended this moment.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_TIMEOUT, child.wait())
        .await
        .is_err()
    {
        note(format!(
            "the {} did not end within {} s; killing it",
            role.name(),
            STOP_TIMEOUT.as_secs()
        ));
        let _ = child.kill().await;
    }
}

async fn take_node_down(arguments: &Arguments) -> Result<(), Failure> {
    let options = node_agent::DownOptions {
        data_dir: arguments.data_dir.join(Role::Node.name()),
        run_dir: arguments.run_dir.clone(),
    };
    Ok(node_agent::down(&options).await?)
}
