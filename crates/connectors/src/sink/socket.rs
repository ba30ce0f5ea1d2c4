//! The sink `socket`: each record a line over one TCP connection, sent at once. Not transactional: what was sent since
//! the checkpoint that a recovery goes back to is sent again.
//!
//! It never waits longer than its timeout, and never opens a second connection by itself: a lost one fails the attempt,
//! so that the next attempt sends again what the checkpoint does not contain.

use std::fmt;
use std::io::{self, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};

use crate::SinkError;
use crate::options::SocketSinkOptions;

/// One connection and the lines that are collected for it.
pub(crate) struct SocketSink {
    options: SocketSinkOptions,
    stream: TcpStream,
    lines: Vec<u8>,
}

impl fmt::Debug for SocketSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketSink")
            .field("address", &self.options.address)
            .finish_non_exhaustive()
    }
}

impl SocketSink {
    /// Connects.
    pub(crate) fn open(options: SocketSinkOptions) -> Result<Self, SinkError> {
        match connect(&options) {
            Ok(stream) => Ok(Self {
                options,
                stream,
                lines: Vec::new(),
            }),
            Err(source) => Err(SinkError::Connect {
                address: options.address,
                source,
            }),
        }
    }

    /// Collects a record for the next [`SocketSink::send`].
    pub(crate) fn add(&mut self, record: &[u8]) {
        self.lines.extend_from_slice(record);
        self.lines.push(b'\n');
    }

    /// Hands what was collected to the operating system.
    pub(crate) fn send(&mut self) -> Result<(), SinkError> {
        let sent = self.stream.write_all(&self.lines);
        self.lines.clear();
        sent.map_err(|source| SinkError::Send {
            address: self.options.address.clone(),
            source,
        })
    }
}

fn connect(options: &SocketSinkOptions) -> io::Result<TcpStream> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in options.address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, options.timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(options.timeout))?;
                return Ok(stream);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}
