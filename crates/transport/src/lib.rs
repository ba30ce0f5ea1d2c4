//! What carries a cluster's words: QUIC with mutual TLS between its processes, and one idle TCP connection beside it
//! that tells at once when a process has died. It carries protocol messages and frames; it never decides what they
//! mean, never retries on a caller's behalf (but for module fetches, which say so) and never speaks without TLS.
//!
//! Nouns: [`Credentials`] (who one is), [`Endpoint`] (one UDP port, all connections), [`ControlConnection`] (messages
//! between a JobManager and a TaskManager), [`DataPlane`] with [`ChannelSender`] and [`ChannelReceiver`] (frames
//! between TaskManagers) and [`PagesRequest`] (pages of images between them), [`BlobConnection`] (modules), [`Liveness`] (the idle TCP connection).
//!
//! Everything that a connection does in the background runs on the tokio runtime in which [`Endpoint::bind`] was
//! called; other runtimes and threads may use the handles freely. A body gives that runtime threads of its own, so that
//! guest work cannot starve keep-alives.
//!
//! ```
//! # use tidemill_transport::{Credentials, Endpoint, Incoming, TransportOptions};
//! # use tidemill_protocol::control::{FromLeader, ToLeader};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let credentials = Credentials::ephemeral()?;
//! let local = "127.0.0.1:0".parse()?;
//! let leader = Endpoint::bind(local, &credentials, TransportOptions::default())?;
//! let worker = Endpoint::bind(local, &credentials, TransportOptions::default())?;
//!
//! let (dialled, accepted) = tokio::join!(worker.connect_control(leader.local_address()), leader.accept());
//! let (mut to_leader, _, _) = dialled?.split();
//! let Some(Incoming::Control(accepted)) = accepted else { panic!("a control connection was dialled") };
//! let (_, mut from_worker, _) = accepted.split();
//!
//! let message = ToLeader::Report(tidemill_protocol::control::Report { tasks: vec![] });
//! to_leader.send(&message).await?;
//! assert_eq!(from_worker.recv::<ToLeader>().await?, Some(message));
//! # Ok(()) }
//! ```
#![deny(unsafe_code)]

mod blob;
mod certs;
mod control;
mod data;
mod endpoint;
mod hello;
#[cfg(test)]
mod hostile;
mod liveness;
mod loss;
mod options;
mod stream;
mod tls;
mod witness;

pub use blob::{BlobConnection, BlobServed, FetchError, FetchLimits, fetch_blob};
pub use certs::{CertificateError, ClusterCa, Credentials, NodeIdentity};
pub use control::{
    ConnectionHandle, ControlConnection, ControlReceiver, ControlSender, RecvError, SendError,
};
pub use data::{
    ChannelError, ChannelReceiver, ChannelSender, DataConnection, DataPlane, IncomingChannel,
    IncomingPages, PAGES_REQUEST_MAX, PagesError, PagesRequest,
};
pub use endpoint::{BindError, Endpoint, Incoming, ResolveError};
pub use liveness::{
    LIVENESS_TOKEN_BYTES, Liveness, LivenessBindError, LivenessError, LivenessListener,
    LivenessLoss, LivenessProbe, LivenessTicket, LivenessToken, connect_liveness, probe_liveness,
};
pub use loss::{ConnectError, ConnectionLoss, Peer};
pub use options::TransportOptions;
