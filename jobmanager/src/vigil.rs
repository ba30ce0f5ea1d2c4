//! What a JobManager that stands by does about the leader's process: it keeps a liveness connection to it, and when the
//! kernel closes that, the process has ended and its leadership is ended with it, instead of with its session some seconds
//! later. A leader that is only silent is none of its business: that is what the session is for.
//!
//! A reset is what such an end may look like, and also what is left of a network that kept the two apart for a while; so
//! the leader's machine is asked first whether anybody still listens there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_coordination::{KnownLeader, Registry};
use tidemill_protocol::control::{Command, FromLeader, ToLeader};
use tidemill_protocol::record::JobManagerRecord;
use tidemill_transport::{Endpoint, LivenessLoss, LivenessProbe, connect_liveness, probe_liveness};
use tracing::{debug, info, warn};

use crate::error_chain;

/// How long the leader may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Before it is called again, or the registry asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Watches whoever leads, for as long as this process lives. `me` is never watched.
pub(crate) async fn keep(endpoint: Endpoint, registry: Arc<dyn Registry>, me: JobManagerRecord) {
    let mut leader = registry.leader();
    loop {
        let known = leader.borrow_and_update().clone();
        let other = known.filter(|known| known.record.incarnation != me.incarnation);
        tokio::select! {
            changed = leader.changed() => if changed.is_err() { return },
            () = watch(&endpoint, registry.as_ref(), &me, other) => {}
        }
    }
}

/// Watches one leader, and deposes it when its process has ended. Ends only by being dropped.
async fn watch(
    endpoint: &Endpoint,
    registry: &dyn Registry,
    me: &JobManagerRecord,
    leader: Option<KnownLeader>,
) {
    let Some(leader) = leader else {
        return std::future::pending().await;
    };
    loop {
        match follow(endpoint, me, &leader.record).await {
            Ok((loss, port)) if is_the_end(&loss, port).await => break,
            Ok((loss, _)) => info!(leader = leader.record.id, "{loss}: nothing follows from it"),
            Err(reason) => debug!(
                leader = leader.record.id,
                "its process is not watched: {reason}"
            ),
        }
        tokio::time::sleep(RETRY).await;
    }
    let (id, epoch, seen) = (&leader.record.id, leader.epoch, Instant::now());
    info!(leader = %id, %epoch, "the leader's process has ended: its leadership is ended");
    loop {
        match registry.depose(&leader).await {
            Ok(()) => break,
            Err(error) => warn!(leader = %id, "not deposed yet: {}", error_chain(&error)),
        }
        tokio::time::sleep(RETRY).await;
    }
    debug!(leader = %id, %epoch, took = ?seen.elapsed(), "deposed");
    std::future::pending().await
}

/// Whether the loss of a liveness connection means that the process behind this port has ended.
async fn is_the_end(loss: &LivenessLoss, port: SocketAddr) -> bool {
    match loss {
        LivenessLoss::Ended { .. } => true,
        LivenessLoss::Reset { .. } => probe_liveness(port).await == LivenessProbe::Gone,
        LivenessLoss::Broken { .. } | LivenessLoss::Garbage { .. } => false,
    }
}

/// Opens a liveness connection to the leader's process, and waits until it is lost. Says how, and where it was.
async fn follow(
    endpoint: &Endpoint,
    me: &JobManagerRecord,
    leader: &JobManagerRecord,
) -> Result<(LivenessLoss, SocketAddr), String> {
    let address = endpoint.resolve(&leader.control_address).await;
    let address = address.map_err(|error| error_chain(&error))?;
    let control = endpoint.connect_control(address).await;
    let (mut sender, mut receiver, handle) = control.map_err(|error| error_chain(&error))?.split();
    let sent = sender.send(&ToLeader::Follow(me.clone())).await;
    sent.map_err(|error| error_chain(&error))?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, receiver.recv::<FromLeader>()).await;
    let answer = answer.map_err(|_| "it does not answer".to_owned())?;
    let Some(FromLeader {
        command:
            Command::Registered {
                liveness_token,
                liveness_port,
                ..
            },
        ..
    }) = answer.map_err(|error| error_chain(&error))?
    else {
        return Err("it answers something else".to_owned());
    };
    let port = SocketAddr::new(address.ip(), liveness_port);
    let liveness = connect_liveness(port, liveness_token).await;
    let mut liveness = liveness.map_err(|error| error_chain(&error))?;
    // The rest is up to the kernels.
    handle.close("watched by the liveness connection");
    Ok((liveness.lost().await, port))
}

#[cfg(test)]
mod tests {
    use std::io;

    use tidemill_transport::LivenessListener;

    use super::*;

    #[tokio::test]
    async fn after_a_reset_only_a_process_that_nobody_finds_any_more_has_ended() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = LivenessListener::bind(loopback).expect("a free port");
        let peer = listener.local_address();
        let broken = LivenessLoss::Broken {
            peer,
            source: io::ErrorKind::TimedOut.into(),
        };
        assert!(!is_the_end(&broken, peer).await);
        assert!(is_the_end(&LivenessLoss::Ended { peer }, peer).await);
        let reset = LivenessLoss::Reset { peer };
        assert!(!is_the_end(&reset, peer).await, "it lives");
        drop(listener);
        // The listener's task lets go of its port when it is scheduled next.
        while probe_liveness(peer).await != LivenessProbe::Gone {}
        assert!(is_the_end(&reset, peer).await);
    }
}
