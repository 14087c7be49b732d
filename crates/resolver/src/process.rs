//! The process that answers (`platform resolver`): it opens what it needs, gives up what it does not need any more, and serves.

use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use guest_protocol::RESOLVER;
use process_handle::detached::{self, StepError, cannot};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::LocalSet;

use crate::control::{self, NamespaceId};
use crate::sandbox::SANDBOX;
use crate::serve::Server;

/// The port of DNS.
const PORT: u16 = 53;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// What the kernel may keep of questions that wait, in bytes: some thousands.
const RECEIVE_BUFFER: usize = 2 << 20;

/// What the process is started with.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The file of the network namespace in which it answers. It asks in the namespace of the caller.
    pub namespace: PathBuf,
    /// Where it listens for its agent.
    pub control: PathBuf,
}

/// Answers until the agent says to end. The process has one thread, is in a session of its own, and gives up its rights before the first question:
/// afterwards it is the user nobody, without a capability, in a list of system calls.
///
/// # Errors
/// What it needs is not there.
pub fn run(options: &ProcessOptions) -> Result<(), StepError> {
    let wrong = |what| cannot::<io::Error>(what);
    detached::begin()?;
    let (udp, tcp) = sockets_in(&options.namespace).map_err(wrong("listen for questions"))?;
    let control = UnixListener::bind(&options.control).map_err(wrong("listen for the agent"))?;
    control
        .set_nonblocking(true)
        .map_err(wrong("listen for the agent"))?;
    let namespace = NamespaceId::of(&options.namespace).map_err(wrong("look at the namespace"))?;
    let runtime = (tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build())
    .map_err(wrong("start"))?;
    runtime.block_on(LocalSet::new().run_until(async move {
        let udp = UdpSocket::from_std(udp.into()).map_err(wrong("listen for questions"))?;
        let tcp = TcpListener::from_std(tcp.into()).map_err(wrong("listen for questions"))?;
        let control =
            tokio::net::UnixListener::from_std(control).map_err(wrong("listen for the agent"))?;
        detached::serve(&SANDBOX)?;
        let server = Server::new(namespace);
        tokio::task::spawn_local(server.clone().serve_udp(Rc::new(udp)));
        tokio::task::spawn_local(server.clone().serve_tcp(tcp));
        control::serve(server, control).await;
        Ok(())
    }))
}

/// The sockets of questions, in this network namespace; the caller's thread is where it was afterwards.
fn sockets_in(namespace: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let own = File::open("/proc/thread-self/ns/net")?;
    let entered = File::open(namespace)?;
    let into = |namespace: &File| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
    };
    into(&entered)?;
    let sockets = sockets();
    into(&own)?;
    sockets
}

fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let open = |kind| -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
        // The address may come later, and come again.
        sockopt::set_ip_freebind(&socket, true)?;
        sockopt::set_socket_reuseaddr(&socket, kind == SocketType::STREAM)?;
        bind(&socket, &SocketAddrV4::new(RESOLVER, PORT))?;
        Ok(socket)
    };
    let udp = open(SocketType::DGRAM)?;
    // Less where that is refused: questions that are lost are asked again.
    let _ = sockopt::set_socket_recv_buffer_size_force(&udp, RECEIVE_BUFFER);
    let tcp = open(SocketType::STREAM)?;
    listen(&tcp, BACKLOG)?;
    Ok((udp, tcp))
}
