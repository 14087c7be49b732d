//! A netlink socket that asks and waits: of the namespace in which it was made, whatever becomes of that one's name.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The kernel gives a dump in parts of up to so many bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Does something on a thread of its own, in a network namespace; absent: in the caller's. Blocks.
pub(crate) fn within<T: Send>(
    namespace: Option<&Path>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let Some(path) = namespace else {
        return work();
    };
    let inside = move || {
        enter(path)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned());
        let answer = thread.spawn_scoped(scope, inside)?.join();
        answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the thread into a network namespace.
pub(crate) fn enter(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// A socket of a protocol of netlink.
#[derive(Debug)]
pub(crate) struct Netlink(Socket);

impl Netlink {
    /// A socket in the namespace of the thread.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Asks for a change, and waits until it is done. `flags` are added to those of every request.
    pub(crate) fn change<M>(&self, message: NetlinkMessage<M>, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
    {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for all that there is of something.
    pub(crate) fn dump<M>(&self, message: NetlinkMessage<M>) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
    {
        self.exchange(message, NLM_F_DUMP)
    }

    /// Asks for one thing.
    pub(crate) fn get<M>(&self, message: NetlinkMessage<M>) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
    {
        self.exchange(message, NLM_F_ACK)
    }

    fn exchange<M>(&self, mut message: NetlinkMessage<M>, flags: u16) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
    {
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let mut received = Vec::with_capacity(MAX_ANSWER);
            self.0.recv(&mut received, 0)?;
            let mut rest = &received[..];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
                // Messages begin at multiples of four bytes (netlink(7)).
                let len = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(len.max(4)..).unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    // An acknowledgement, and the end of a dump.
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}
