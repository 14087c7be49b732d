//! The line to the node: vsock connections like init's own, and the frames that are none.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use guest_protocol::{
    CONTRACT_VERSION, Channel, Frame as _, FrameBuffer, GuestFrame, HOST_CID, HOST_PORT, Hello,
    HostFrame, Phase,
};
use vsock::VsockStream;

/// How long the node is given to close what it must close, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection to the node.
pub(crate) struct Line {
    stream: VsockStream,
    heard: FrameBuffer,
}

impl Line {
    /// Dials as init does, and says nothing yet.
    pub(crate) fn dial() -> io::Result<Self> {
        let stream = VsockStream::connect_with_cid_port(HOST_CID, HOST_PORT)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            heard: FrameBuffer::default(),
        })
    }

    /// Dials and says hello, as init would.
    pub(crate) fn hello(channel: Channel, phase: Phase) -> io::Result<Self> {
        let mut line = Self::dial()?;
        line.say(&hello(CONTRACT_VERSION, channel, phase))?;
        Ok(line)
    }

    pub(crate) fn say(&mut self, frame: &GuestFrame) -> io::Result<()> {
        self.write(&frame.encode())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame of the node; none when it closed the connection.
    pub(crate) fn hear(&mut self) -> io::Result<Option<HostFrame>> {
        let mut chunk = [0; 4096];
        loop {
            match self.heard.next() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.heard.push(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the node closes it, whatever it says before.
    pub(crate) fn is_closed_by_the_node(&mut self) -> bool {
        while let Ok(heard) = self.hear() {
            if heard.is_none() {
                return true;
            }
        }
        false
    }

    /// Another handle of the connection, for a reader.
    pub(crate) fn reader(&self) -> io::Result<Self> {
        Ok(Self {
            stream: self.stream.try_clone()?,
            heard: FrameBuffer::default(),
        })
    }
}

/// A hello of any version.
pub(crate) fn hello(contract: u32, channel: Channel, phase: Phase) -> GuestFrame {
    GuestFrame::Hello(Hello {
        contract,
        channel,
        phase,
    })
}

/// A frame by its parts, with the length that it has.
pub(crate) fn raw(frame_type: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).unwrap_or(u32::MAX);
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.push(frame_type);
    bytes.extend_from_slice(body);
    bytes
}
