//! The greeting that opens every connection: the dialler says of which kind it is, the other agrees. Only then has each
//! side seen that its certificate was accepted. It says nothing about jobs.

use serde::{Deserialize, Serialize};
use tidemill_protocol::codec::{self, DecodeError, Versioned};

use crate::stream::{Inbox, MessageError, Outbox};

/// The longest greeting, in bytes.
const HELLO_MAX_BYTES: usize = 1 << 10;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ConnectionKind {
    /// Messages between a TaskManager, who dials, and a JobManager, on the greeting's own stream.
    Control,
    /// Channels between two TaskManagers, each on its own unidirectional stream, and requests for pages, each on a
    /// bidirectional one; both in both directions.
    Data,
    /// One module, on the greeting's own stream.
    Blob,
}

/// The dialler's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hello {
    kind: ConnectionKind,
    release: String,
}

impl Versioned for Hello {
    const KIND: [u8; 2] = *b"HI";
    const VERSION: u16 = 1;
    const NAME: &'static str = "greeting";
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Welcome {
    release: String,
}

impl Versioned for Welcome {
    const KIND: [u8; 2] = *b"WE";
    const VERSION: u16 = 1;
    const NAME: &'static str = "answer to a greeting";
}

/// The two directions of the stream on which a connection was greeted.
pub(crate) struct GreetedStream {
    pub(crate) outbox: Outbox,
    pub(crate) inbox: Inbox,
}

/// Why a greeting failed.
#[derive(Debug)]
pub(crate) enum HelloError {
    /// The connection broke.
    Connection(quinn::ConnectionError),
    /// The other side said something else; the text is for people on both sides.
    Other(String),
}

/// The dialler's part.
pub(crate) async fn say_hello(
    connection: &quinn::Connection,
    kind: ConnectionKind,
) -> Result<GreetedStream, HelloError> {
    let (send, recv) = connection.open_bi().await.map_err(HelloError::Connection)?;
    let mut stream = GreetedStream {
        outbox: Outbox::new(send),
        inbox: Inbox::new(recv),
    };
    stream.outbox.put_message(codec::encode(&Hello {
        kind,
        release: release(),
    }));
    if let Err(error) = stream.outbox.flush().await {
        return Err(write_failure(connection, &error));
    }
    let welcome = stream.inbox.message::<Welcome>(HELLO_MAX_BYTES).await;
    let welcome = understood(connection, welcome)?;
    tracing::debug!(peer = %connection.remote_address(), release = welcome.release, ?kind, "connected");
    Ok(stream)
}

/// The listener's part.
pub(crate) async fn hear_hello(
    connection: &quinn::Connection,
) -> Result<(ConnectionKind, GreetedStream), HelloError> {
    let (send, recv) = connection
        .accept_bi()
        .await
        .map_err(HelloError::Connection)?;
    let mut stream = GreetedStream {
        outbox: Outbox::new(send),
        inbox: Inbox::new(recv),
    };
    let hello = stream.inbox.message::<Hello>(HELLO_MAX_BYTES).await;
    let hello = understood(connection, hello)?;
    stream
        .outbox
        .put_message(codec::encode(&Welcome { release: release() }));
    if let Err(error) = stream.outbox.flush().await {
        return Err(write_failure(connection, &error));
    }
    tracing::debug!(peer = %connection.remote_address(), release = hello.release, kind = ?hello.kind, "accepted");
    Ok((hello.kind, stream))
}

fn release() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn understood<T: Versioned>(
    connection: &quinn::Connection,
    message: Result<Option<T>, MessageError>,
) -> Result<T, HelloError> {
    let reason = match message {
        Ok(Some(message)) => return Ok(message),
        Ok(None) | Err(MessageError::CutShort) => "the greeting is cut short".to_owned(),
        Err(MessageError::Read(error)) => {
            return Err(match connection.close_reason() {
                Some(reason) => HelloError::Connection(reason),
                None => HelloError::Other(error.to_string()),
            });
        }
        Err(MessageError::TooLong(len)) => {
            format!("a greeting of {len} bytes is no greeting of Tidemill's")
        }
        Err(MessageError::Decode(error @ DecodeError::Version { .. })) => error.to_string(),
        Err(MessageError::Decode(_)) => "this is no greeting of Tidemill's".to_owned(),
    };
    Err(HelloError::Other(reason))
}

fn write_failure(connection: &quinn::Connection, error: &quinn::WriteError) -> HelloError {
    match connection.close_reason() {
        Some(reason) => HelloError::Connection(reason),
        None => HelloError::Other(error.to_string()),
    }
}
