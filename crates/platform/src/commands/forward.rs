//! `platform forward`: local ports that lead to ports of an instance, through the server and the instance's node.
//!
//! ```text
//! client --TCP--> this command --TLS--> server --TLS--> node --TCP--> instance
//! ```
//!
//! Each connection has a stream of its own (`api::forward`), so one that is slow holds up no other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::forward::{ForwardFailure, ForwardFailureKind, ForwardFrame};
use api::why::WhyQuery;
use api_client::{ApiClient, ClientError, ForwardStream, carry};
use clap::Args;
use model::{InstanceId, ProcessName};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::exec::{self, Candidate};
use crate::connection::{ClusterArguments, EnvArguments};
use crate::failure::Failure;
use crate::json_shapes;
use crate::output::{self, Format, FormatArguments};
use crate::printed::Forwarding;

const EXAMPLES: &str = "\
Examples:
  platform forward --process db 5432               psql -h localhost, as if the database ran here
  platform forward 1f0c2b7a 8080:80                localhost:8080 is port 80 of this instance
  platform forward --process web :8080 9229        a free local port for 8080, which is printed; and 9229
  platform forward --address 0.0.0.0 -p web 8080   for others, too: whoever reaches this machine

It reaches what listens on any address in the instance, also on 127.0.0.1 only. With --process each new
connection goes to the same instance as long as that is ready, else to another. It ends by Ctrl-C.";

/// Connections at a time; further ones wait until one has ended.
const MAX_CONNECTIONS: usize = 128;
/// How long the instance that one connection went to is the next one's without another look: many that come at once ask once.
const CHOICE_LIFETIME: Duration = Duration::from_secs(1);
/// Instances that are tried for one connection.
const MAX_TRIES: usize = 3;

/// Forward local ports to ports of an instance
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// An instance (`platform ps` shows the ids), unless --process is given; and ports: `5432`, `LOCAL:PORT`, or `:PORT` for a
    /// free local one
    #[arg(required = true, value_name = "[INSTANCE] [LOCAL:]PORT", value_parser = parse_word)]
    words: Vec<Word>,
    /// Any healthy instance of this process type
    #[arg(long, short, value_name = "PROCESS")]
    process: Option<ProcessName>,
    /// Where to listen [default: 127.0.0.1 and ::1]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    address: Vec<IpAddr>,
    #[command(flatten)]
    which: EnvArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
    #[command(flatten)]
    format: FormatArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Instance(InstanceId),
    Ports(Ports),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// 0: any that is free.
    local: u16,
    /// From 1.
    remote: u16,
}

/// An instance's id has 8 digits, and a port 5 at most.
fn parse_word(text: &str) -> Result<Word, String> {
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is no port, from 1 to 65535")),
        Ok(port) => Ok(port),
    };
    if let Some((local, remote)) = text.split_once(':') {
        let local = if local.is_empty() || local == "0" {
            0
        } else {
            port(local)?
        };
        let remote = port(remote)?;
        return Ok(Word::Ports(Ports { local, remote }));
    }
    if text.len() < 6 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let both = port(text)?;
        return Ok(Word::Ports(Ports {
            local: both,
            remote: both,
        }));
    }
    let instance = text
        .parse()
        .map_err(|error| format!("{error}; ports are written `5432`, `LOCAL:PORT` or `:PORT`"))?;
    Ok(Word::Instance(instance))
}

/// The instance and the ports that were named.
fn parse_words(
    words: &[Word],
    process: Option<&ProcessName>,
) -> Result<(Option<InstanceId>, Vec<Ports>), Failure> {
    let mut instance = None;
    let mut ports = Vec::new();
    for word in words {
        match word {
            Word::Instance(id) if instance.is_none() && ports.is_empty() => instance = Some(*id),
            Word::Instance(id) => {
                return Err(Failure::new(format!(
                    "{id} is an instance, and one instance stands before the ports"
                )));
            }
            Word::Ports(both) => ports.push(*both),
        }
    }
    match (instance, process) {
        (None, None) => Err(Failure::new("it is not said to which instance to forward")
            .hint("name a process type with --process, or an instance before the ports; `platform ps` lists them")),
        (Some(_), Some(_)) => Err(Failure::new("an instance and --process are both given: one of them is enough")),
        _ if ports.is_empty() => Err(Failure::new("it is not said which port to forward")
            .hint("name it after the instance, as in `platform forward 1f0c2b7a 5432`")),
        _ => Ok((instance, ports)),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let (named, ports) = parse_words(&arguments.words, arguments.process.as_ref())?;
    let client = arguments.cluster.connect()?;
    let target = match (named, arguments.process) {
        (None, Some(process)) => {
            let env = arguments.which.choose(&client).await?;
            let candidate = Candidate { env, process };
            let instance = exec::choose(&client, &candidate, None, &[]).await?;
            Target {
                current: Mutex::new(Choice::now(instance)),
                candidate: Some(candidate),
            }
        }
        (Some(instance), _) => {
            // One that is not there is an error now, and not for whoever connects.
            let subject = WhyQuery {
                subject: instance.to_string(),
                app: None,
                env: None,
            };
            client.why(&subject).await?;
            Target {
                current: Mutex::new(Choice::now(instance)),
                candidate: None,
            }
        }
        // Refused above.
        (None, None) => return Err(Failure::Said),
    };
    let instance = target.current.lock().await.instance;
    let mut listeners = Vec::new();
    for both in ports {
        for listener in listen(&arguments.address, both.local).await? {
            let local = listener.local_addr()?;
            match arguments.format.format {
                Format::Text => output::line(format_args!(
                    "forwarding {local} to port {} of instance {instance}",
                    both.remote
                ))?,
                Format::Json => {
                    let forwarding = Forwarding {
                        local,
                        port: both.remote,
                        instance,
                    };
                    output::json_line(json_shapes::FORWARDINGS, &forwarding)?;
                }
            }
            listeners.push((listener, both.remote));
        }
    }
    let shared = Arc::new(Shared { client, target });
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut accepting = JoinSet::new();
    for (listener, port) in listeners {
        accepting.spawn(accept(shared.clone(), places.clone(), listener, port));
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = accepting.join_next() => match ended {
            Some(Ok(failure)) => Err(failure.into()),
            _ => Err(Failure::new("no port is listened on any more")),
        },
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

/// Listens on the addresses; on the loopback ones where none is named. All have the same port.
async fn listen(addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, Failure> {
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let is_default = addresses.is_empty();
    let addresses = if is_default { &loopback[..] } else { addresses };
    let mut listeners: Vec<TcpListener> = Vec::new();
    for address in addresses {
        let port = match listeners.first() {
            Some(first) => first.local_addr()?.port(),
            None => port,
        };
        match TcpListener::bind(SocketAddr::new(*address, port)).await {
            Ok(listener) => listeners.push(listener),
            // A machine without IPv6 has no ::1.
            Err(error)
                if is_default
                    && address.is_ipv6()
                    && error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) => {
                let context = format!("cannot listen on {}", SocketAddr::new(*address, port));
                let failure = Failure::from(anyhow::Error::new(error).context(context));
                return Err(failure.hint(
                    "name another local port, as in `15432:5432`, or none for a free one, as in `:5432`",
                ));
            }
        }
    }
    Ok(listeners)
}

/// To where connections go.
struct Target {
    current: Mutex<Choice>,
    /// Of which another instance is chosen when the current one is not ready.
    candidate: Option<Candidate>,
}

struct Shared {
    client: ApiClient,
    target: Target,
}

/// Accepts connections; returns only when that fails.
async fn accept(
    shared: Arc<Shared>,
    places: Arc<Semaphore>,
    listener: TcpListener,
    port: u16,
) -> io::Error {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return io::Error::other("the places are gone");
        };
        match listener.accept().await {
            Ok((connection, _)) => {
                open.spawn(serve(shared.clone(), connection, port, place));
            }
            // Its client has left already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return error,
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    connection: TcpStream,
    port: u16,
    _place: OwnedSemaphorePermit,
) {
    // Bytes are passed on as they come.
    let _ = connection.set_nodelay(true);
    let carried = match open(&shared, port).await {
        Ok(stream) => carry(connection, stream, std::future::pending(), || {
            output::note(format_args!("port {port}: {}", exec::silence()));
        })
        .await
        .map_err(|failure| failure.to_string()),
        Err(reason) => {
            // Its client learns that there was no connection, as if it had dialled the port itself.
            let _ = connection.set_zero_linger();
            Err(reason)
        }
    };
    if let Err(reason) = carried {
        output::note(format_args!("port {port}: {}", output::one_line(&reason)));
    }
}

/// Opens a stream to the current instance as long as that is ready, else to another one.
async fn open(shared: &Shared, port: u16) -> Result<ForwardStream, String> {
    let mut gone = Vec::new();
    loop {
        let instance = shared.target.choose(&shared.client, &gone).await?;
        let reason = match opened(&shared.client, instance, port).await {
            Ok(stream) => return Ok(stream),
            Err(Refused::Because(reason)) => return Err(reason),
            Err(Refused::Gone(reason)) => reason,
        };
        gone.push(instance);
        if shared.target.candidate.is_none() || gone.len() >= MAX_TRIES {
            return Err(reason);
        }
    }
}

impl Target {
    /// The instance of a new connection: the one that connections went to before, as long as it is ready and none of `gone`.
    async fn choose(&self, client: &ApiClient, gone: &[InstanceId]) -> Result<InstanceId, String> {
        // Connections that come together choose once.
        let mut current = self.current.lock().await;
        let Some(candidate) = &self.candidate else {
            return Ok(current.instance);
        };
        let is_new = current.chosen_at.elapsed() < CHOICE_LIFETIME;
        if is_new && !gone.contains(&current.instance) {
            return Ok(current.instance);
        }
        let chosen = exec::choose(client, candidate, Some(current.instance), gone).await;
        let chosen = chosen.map_err(|failure| match failure {
            Failure::Because { error, .. } => format!("{error:#}"),
            _ => "no instance can be chosen".to_owned(),
        })?;
        if current.instance != chosen {
            output::note(format_args!(
                "instance {} is not ready; new connections go to instance {chosen}",
                current.instance
            ));
        }
        *current = Choice::now(chosen);
        Ok(chosen)
    }
}

/// To which instance connections go.
struct Choice {
    instance: InstanceId,
    chosen_at: Instant,
}

impl Choice {
    fn now(instance: InstanceId) -> Self {
        Self {
            instance,
            chosen_at: Instant::now(),
        }
    }
}

/// Why there is no stream.
enum Refused {
    /// Another instance may do.
    Gone(String),
    Because(String),
}

async fn opened(
    client: &ApiClient,
    instance: InstanceId,
    port: u16,
) -> Result<ForwardStream, Refused> {
    let mut stream = match client.forward(instance, port).await {
        Ok(stream) => stream,
        Err(error) => {
            let is_gone = matches!(
                &error,
                ClientError::Api { error, .. }
                    if ["instance_not_found", "node_offline", "node_silent"].contains(&error.code.as_str())
            );
            let reason = display::chain(&error);
            return Err(if is_gone {
                Refused::Gone(reason)
            } else {
                Refused::Because(reason)
            });
        }
    };
    match stream.reader.next().await {
        Ok(Some(ForwardFrame::Opened)) => Ok(stream),
        Ok(Some(ForwardFrame::Failed(ForwardFailure { kind, reason }))) => Err(match kind {
            ForwardFailureKind::InstanceGone => Refused::Gone(reason),
            _ => Refused::Because(reason),
        }),
        Ok(Some(_)) => Err(Refused::Because(
            "the stream has what does not belong there".to_owned(),
        )),
        Ok(None) => Err(Refused::Because("the stream was cut".to_owned())),
        Err(error) => Err(Refused::Because(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn ports_and_instances_are_told_apart() {
        let ports = |local, remote| Ok(Word::Ports(Ports { local, remote }));
        assert_eq!(parse_word("5432"), ports(5432, 5432));
        assert_eq!(parse_word("8080:80"), ports(8080, 80));
        assert_eq!(parse_word(":80"), ports(0, 80));
        assert_eq!(parse_word("0:80"), ports(0, 80));
        let instance = "12345678".parse().unwrap();
        assert_eq!(parse_word("12345678"), Ok(Word::Instance(instance)));
        for wrong in ["0", "65536", "70000:80", "80:", "80:0", "web", "a:b", "-1"] {
            assert!(parse_word(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_instance_or_a_process_stands_before_the_ports() {
        let word = |text: &str| parse_word(text).unwrap();
        let web = "web".parse().unwrap();
        let named = parse_words(&[word("12345678"), word("80"), word("81")], None).unwrap();
        assert_eq!(named.0, "12345678".parse().ok());
        assert_eq!(named.1.len(), 2);
        assert!(parse_words(&[word("80")], Some(&web)).is_ok());
        for (words, process) in [
            (vec!["80"], None),
            (vec!["12345678"], None),
            (vec!["80", "12345678"], None),
            (vec!["12345678", "12345679", "80"], None),
            (vec!["12345678", "80"], Some(&web)),
        ] {
            let words: Vec<_> = words.into_iter().map(word).collect();
            assert!(parse_words(&words, process).is_err(), "{words:?}");
        }
    }
}
