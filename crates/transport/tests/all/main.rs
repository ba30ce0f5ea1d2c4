//! Two or more endpoints talk over loopback, as processes of a cluster do; some are killed, cut off, foreign or mad.
//! Everything here uses the crate as a body does.

mod channels;
mod child;
mod control;
mod foreign;
mod garbage;
mod kill;
mod modules;
mod netns;
mod pages;
mod proxy;

use std::net::SocketAddr;
use std::time::Duration;

use tidemill_protocol::{AttemptId, ChannelHeader, ChannelId, Epoch, Frame, FrameBody, JobId};
use tidemill_transport::{
    ControlConnection, Credentials, DataPlane, Endpoint, Incoming, TransportOptions,
};

/// How long anything may take on a busy machine before a test calls it stuck.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("stuck: {what}"),
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// Busy machines stall processes for longer than a cluster's idle timeout; tests of other things shall not see that.
fn patient_options() -> TransportOptions {
    TransportOptions {
        idle_timeout: Duration::from_secs(20),
        ..TransportOptions::default()
    }
}

fn endpoint(credentials: &Credentials) -> Endpoint {
    Endpoint::bind(loopback(), credentials, patient_options()).expect("a free port")
}

async fn control_pair(
    client: &Endpoint,
    server: &Endpoint,
) -> (ControlConnection, ControlConnection) {
    let (dialled, accepted) = soon("control connection", async {
        tokio::join!(
            client.connect_control(server.local_address()),
            server.accept()
        )
    })
    .await;
    let Some(Incoming::Control(accepted)) = accepted else {
        panic!("expected a control connection");
    };
    (dialled.expect("connected"), accepted)
}

/// A TaskManager's data plane that adopts whatever dials it.
fn data_plane(credentials: &Credentials, options: TransportOptions) -> (DataPlane, SocketAddr) {
    let endpoint = Endpoint::bind(loopback(), credentials, options).expect("a free port");
    let address = endpoint.local_address();
    let plane = DataPlane::new(endpoint.clone());
    let adopting = plane.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            if let Incoming::Data(connection) = incoming {
                adopting.adopt(connection);
            }
        }
    });
    (plane, address)
}

fn header(number: u32) -> ChannelHeader {
    ChannelHeader {
        job: JobId([1; 16]),
        attempt: AttemptId::new(Epoch(1), 1),
        channel: ChannelId {
            edge: 0,
            from: 0,
            to: number,
        },
    }
}

fn data_frame(sequence: u64, payload: impl Into<bytes::Bytes>) -> Frame {
    Frame {
        sequence,
        body: FrameBody::Data(payload.into()),
    }
}
