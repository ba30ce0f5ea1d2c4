//! Processes that are killed, and how soon the others know.

use std::time::{Duration, Instant};

use tidemill_transport::{
    ClusterCa, ConnectionLoss, Credentials, Endpoint, LivenessListener, LivenessLoss,
    TransportOptions, connect_liveness,
};

use crate::child::Role;
use crate::{PATIENCE, loopback, soon};

/// What the design promises, on a machine that is not shared.
const PROMISED: Duration = Duration::from_millis(50);
/// What is asserted of the quickest of several, as tests share their machine. Silence would be noticed after seconds.
const ASSERTED: Duration = Duration::from_millis(500);

fn hex(token: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(token))
}

#[tokio::test]
async fn a_killed_process_is_seen_at_once_by_its_liveness_connection() {
    let listener = LivenessListener::bind(loopback()).expect("a free port");
    let mut detected = Vec::new();
    for _ in 0..5 {
        let ticket = listener.issue();
        let address = listener.local_address().to_string();
        let mut child = Role::start(None, &["alive", &address, &hex(ticket.token())]);
        let mut liveness = ticket.connected(PATIENCE).await.expect("connected");
        assert_eq!(child.line(), "connected");

        let silent = tokio::time::timeout(Duration::from_millis(20), liveness.lost()).await;
        assert!(silent.is_err(), "alive until it is killed");
        let killed_at = Instant::now();
        child.kill();
        let loss = soon("the loss", liveness.lost()).await;
        detected.push(killed_at.elapsed());
        assert!(matches!(loss, LivenessLoss::Ended { .. }), "{loss}");
    }
    println!("five detections: {detected:?} (promised {PROMISED:?} plus teardown)");
    assert!(detected.iter().min() < Some(&ASSERTED), "{detected:?}");
}

#[tokio::test]
async fn a_liveness_connection_tells_the_other_side_too() {
    let listener = LivenessListener::bind(loopback()).expect("a free port");
    let ticket = listener.issue();
    let (worker, leader) = soon("the connection", async {
        tokio::join!(
            connect_liveness(listener.local_address(), ticket.token()),
            ticket.connected(PATIENCE)
        )
    })
    .await;
    let (mut worker, leader) = (worker.expect("accepted"), leader.expect("connected"));
    drop(listener);
    drop(leader);
    let loss = soon("the loss", worker.lost()).await;
    assert!(matches!(loss, LivenessLoss::Ended { .. }), "{loss}");
}

#[tokio::test]
async fn a_restarted_process_is_recognised_long_before_the_idle_timeout() {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = ClusterCa::generate().expect("a CA");
    ca.write(directory.path()).expect("written");
    for name in ["leader", "worker"] {
        ca.issue(name)
            .expect("issued")
            .write(directory.path())
            .expect("written");
    }
    let options = TransportOptions {
        idle_timeout: PATIENCE,
        ..TransportOptions::default()
    };
    let path = directory.path().to_str().expect("plain").to_owned();
    let mut first = Role::start(None, &["leader", &path, "127.0.0.1:0"]);
    let address = first.line();

    let credentials = Credentials::load(directory.path(), "worker").expect("written");
    let worker = Endpoint::bind(loopback(), &credentials, options).expect("bound");
    let leader = address.parse().expect("an address");
    let connection = soon("the connection", worker.connect_control(leader))
        .await
        .expect("connected");
    let (_sender, _receiver, handle) = connection.split();
    first.kill();
    drop(first);
    let restarted_at = Instant::now();
    let second = Role::start(None, &["leader", &path, &address]);
    assert_eq!(second.line(), address);
    let loss = soon("the loss", handle.closed()).await;
    assert_eq!(loss, ConnectionLoss::Restarted);
    println!(
        "recognised {:?} after the new process was started",
        restarted_at.elapsed()
    );
    soon("a new connection", worker.connect_control(leader))
        .await
        .expect("connected");
}
