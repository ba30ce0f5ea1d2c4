//! Detection of a killed process over a real link under full traffic: two network namespaces with a pair of virtual
//! Ethernet devices between them. Needs root; the addresses exist in the test's own namespaces only.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidemill_protocol::control::{Command as LeaderCommand, FromLeader, Registration, ToLeader};
use tidemill_protocol::{Epoch, Incarnation, TaskManagerId};
use tidemill_transport::{
    ClusterCa, Credentials, DataPlane, Endpoint, Incoming, LivenessListener, TransportOptions,
    connect_liveness,
};

use crate::child::{Role, now_ns, tell};
use crate::{PATIENCE, data_frame, header};

const LEADER_ADDRESS: &str = "198.18.77.1";
const WORKER_ADDRESS: &str = "198.18.77.2";
const PORT: u16 = 6123;
const CHANNELS: u32 = 4;
/// Silence is noticed after two seconds; this is what need not be waited for, on a machine that is shared.
const ASSERTED: Duration = Duration::from_millis(1_500);

/// Two joined namespaces. Dropped, they are gone, and the devices with them.
struct Namespaces {
    leader: String,
    worker: String,
}

impl Namespaces {
    fn create() -> Result<Self, String> {
        let number = std::process::id();
        let namespaces = Self {
            leader: format!("tidemill-a-{number}"),
            worker: format!("tidemill-b-{number}"),
        };
        let (leader, worker) = (&namespaces.leader, &namespaces.worker);
        // Device names are short and, until they are moved, shared with the machine.
        let (near, far) = (format!("tma{number}"), format!("tmb{number}"));
        ip(&["netns", "add", leader])?;
        ip(&["netns", "add", worker])?;
        ip(&[
            "link", "add", &near, "netns", leader, "type", "veth", "peer", "name", &far, "netns",
            worker,
        ])?;
        for (namespace, device, address) in [
            (leader, &near, LEADER_ADDRESS),
            (worker, &far, WORKER_ADDRESS),
        ] {
            ip(&[
                "-n",
                namespace,
                "address",
                "add",
                &format!("{address}/30"),
                "dev",
                device,
            ])?;
            ip(&["-n", namespace, "link", "set", device, "up"])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        Ok(namespaces)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [&self.leader, &self.worker] {
            // Creation may have failed before this one.
            ip(&["netns", "delete", namespace]).ok();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|error| format!("`ip` cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!(
        "`ip {}` failed: {}",
        arguments.join(" "),
        reason.trim()
    ))
}

#[test]
fn a_process_killed_under_full_traffic_is_seen_at_once_over_a_real_link() {
    let namespaces = match Namespaces::create() {
        Ok(namespaces) => namespaces,
        Err(reason) => {
            println!("skipped: network namespaces need root and iproute2 ({reason})");
            return;
        }
    };
    let directory = tempfile::tempdir().expect("a directory");
    let ca = ClusterCa::generate().expect("a CA");
    ca.write(directory.path()).expect("written");
    for name in ["leader", "worker"] {
        ca.issue(name)
            .expect("issued")
            .write(directory.path())
            .expect("written");
    }
    let path = directory.path().to_str().expect("plain");
    let leader_address = format!("{LEADER_ADDRESS}:{PORT}");
    let worker_address = format!("{WORKER_ADDRESS}:{PORT}");

    let leader = Role::start(
        Some(&namespaces.leader),
        &["netns-leader", path, &leader_address],
    );
    assert_eq!(leader.line(), "listening");
    let worker_role = ["netns-worker", path, &worker_address, &leader_address];
    let mut worker = Role::start(Some(&namespaces.worker), &worker_role);
    assert_eq!(leader.line(), "registered");
    assert_eq!(leader.line(), "traffic");

    let killed_at_ns = worker.kill();
    let mut rate = String::new();
    let mut detected = Vec::new();
    for _ in 0..3 {
        let line = leader.line();
        println!("{line}");
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["rate", mib_per_second] => rate = (*mib_per_second).to_owned(),
            [by, at_ns] => {
                let at_ns: u64 = at_ns.parse().expect("a time");
                let after = Duration::from_nanos(at_ns.saturating_sub(killed_at_ns));
                detected.push(((*by).to_owned(), after));
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
    println!("at {rate} MiB/s, a killed process was seen: {detected:?}");
    let (_, by_liveness) = detected
        .iter()
        .find(|(by, _)| by == "liveness")
        .expect("told");
    assert!(*by_liveness < ASSERTED, "{by_liveness:?}");
}

/// Registers one worker, takes its frames as fast as they come, and tells when it knows that the worker is lost.
pub(crate) async fn lead(directory: &str, address: &str) {
    let address: std::net::SocketAddr = address.parse().expect("an address");
    let credentials = Credentials::load(directory.as_ref(), "leader").expect("written");
    let endpoint =
        Endpoint::bind(address, &credentials, TransportOptions::default()).expect("bound");
    let listener = LivenessListener::bind(address).expect("bound");
    tell("listening");

    let Some(Incoming::Control(control)) = endpoint.accept().await else {
        panic!("the worker registers first");
    };
    let (mut to_worker, mut from_worker, handle) = control.split();
    let registered = from_worker.recv::<ToLeader>().await.expect("received");
    assert!(
        matches!(registered, Some(ToLeader::Register(_))),
        "{registered:?}"
    );
    let ticket = listener.issue();
    let command = LeaderCommand::Registered {
        liveness_token: ticket.token(),
        liveness_port: listener.local_address().port(),
        report_interval_ms: 1000,
    };
    to_worker
        .send(&FromLeader {
            epoch: Epoch(1),
            command,
        })
        .await
        .expect("sent");
    let mut liveness = ticket.connected(PATIENCE).await.expect("connected");
    tell("registered");

    let plane = DataPlane::new(endpoint.clone());
    let Some(Incoming::Data(data)) = endpoint.accept().await else {
        panic!("the worker sends data next");
    };
    plane.adopt(data);
    let received = Arc::<AtomicUsize>::default();
    let traffic = tokio::spawn(take_all(plane, Arc::clone(&received)));
    // Full speed is reached: congestion control has left its beginnings.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = received.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rate = (received.load(Ordering::Relaxed) - before) >> 20;
    tell("traffic");
    tell(&format!("rate {rate}"));
    let by_liveness = async {
        liveness.lost().await;
        tell(&format!("liveness {}", now_ns()));
    };
    let by_silence = async {
        handle.closed().await;
        tell(&format!("silence {}", now_ns()));
    };
    tokio::join!(by_liveness, by_silence);
    traffic.await.expect("readers end with their connection");
}

/// Takes frames as fast as they come, until their connection is lost.
async fn take_all(plane: DataPlane, received: Arc<AtomicUsize>) {
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..CHANNELS {
        let mut receiver = plane.accept_channel().await.receiver;
        let received = Arc::clone(&received);
        readers.spawn(async move {
            while let Ok(Some(frame)) = receiver.recv().await {
                received.fetch_add(frame.weight(), Ordering::Relaxed);
            }
        });
    }
    readers.join_all().await;
}

/// Registers and sends frames as fast as they are taken, until it is killed.
pub(crate) async fn work(directory: &str, address: &str, leader: &str) {
    let credentials = Credentials::load(directory.as_ref(), "worker").expect("written");
    let address = address.parse().expect("an address");
    let leader: std::net::SocketAddr = leader.parse().expect("an address");
    let endpoint =
        Endpoint::bind(address, &credentials, TransportOptions::default()).expect("bound");
    let control = endpoint.connect_control(leader).await.expect("connected");
    let (mut to_leader, mut from_leader, _handle) = control.split();
    let registration = Registration {
        id: TaskManagerId("worker".into()),
        incarnation: Incarnation(1),
        data_address: address.to_string(),
        slots: 1,
        cluster_config_hash: 0,
        version: "test".into(),
        draining: false,
        running: vec![],
        warm: Vec::new(),
    };
    to_leader
        .send(&ToLeader::Register(registration))
        .await
        .expect("sent");
    let answer = from_leader
        .recv::<FromLeader>()
        .await
        .expect("received")
        .expect("an answer");
    let LeaderCommand::Registered {
        liveness_token,
        liveness_port,
        ..
    } = answer.command
    else {
        panic!("{answer:?}");
    };
    let liveness_address = (leader.ip(), liveness_port).into();
    let _liveness = connect_liveness(liveness_address, liveness_token)
        .await
        .expect("accepted");

    let plane = DataPlane::new(endpoint);
    let payload = bytes::Bytes::from(vec![0x55; 32 << 10]);
    let mut senders = tokio::task::JoinSet::new();
    for number in 0..CHANNELS {
        let mut sender = plane
            .open_channel(leader, header(number))
            .await
            .expect("opened");
        let payload = payload.clone();
        senders.spawn(async move {
            for sequence in 0.. {
                sender
                    .send(data_frame(sequence, payload.clone()))
                    .await
                    .expect("sent");
            }
        });
    }
    senders.join_all().await;
}
