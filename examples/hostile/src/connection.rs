//! vsock connections to the node like init's own, and malformed frames.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use guest_protocol::{
    CONTRACT_VERSION, Channel, Frame as _, FrameBuffer, GuestFrame, HOST_CID, HOST_PORT, Hello,
    HostFrame, Phase,
};
use vsock::VsockStream;

/// Time in which the node must close a connection or answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection to the node.
pub(crate) struct Connection {
    stream: VsockStream,
    incoming: FrameBuffer,
}

impl Connection {
    /// Dials as init does, and sends nothing yet.
    pub(crate) fn dial() -> io::Result<Self> {
        let stream = VsockStream::connect_with_cid_port(HOST_CID, HOST_PORT)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            incoming: FrameBuffer::default(),
        })
    }

    /// Dials and sends a hello, as init would.
    pub(crate) fn hello(channel: Channel, phase: Phase) -> io::Result<Self> {
        let mut connection = Self::dial()?;
        connection.send(&hello(CONTRACT_VERSION, channel, phase))?;
        Ok(connection)
    }

    pub(crate) fn send(&mut self, frame: &GuestFrame) -> io::Result<()> {
        self.write(&frame.encode())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The node's next frame; none when it closed the connection.
    pub(crate) fn receive(&mut self) -> io::Result<Option<HostFrame>> {
        let mut chunk = [0; 4096];
        loop {
            match self.incoming.next() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.incoming.push(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the node closes the connection, whatever it sends before.
    pub(crate) fn is_closed_by_the_node(&mut self) -> bool {
        while let Ok(frame) = self.receive() {
            if frame.is_none() {
                return true;
            }
        }
        false
    }
}

/// A hello of any version.
pub(crate) fn hello(contract: u32, channel: Channel, phase: Phase) -> GuestFrame {
    GuestFrame::Hello(Hello {
        contract,
        channel,
        phase,
        // Init's own is random and known to init only.
        token: "00".repeat(32),
    })
}

/// A frame of any type and body, with its true length.
pub(crate) fn raw(frame_type: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.push(frame_type);
    bytes.extend_from_slice(body);
    bytes
}
