//! Control connections between processes that mean well.

use tidemill_protocol::Epoch;
use tidemill_protocol::control::{
    CONTROL_MESSAGE_MAX_BYTES, Command, FromLeader, Report, ToLeader,
};
use tidemill_transport::{
    BindError, ClusterCa, ConnectError, ConnectionLoss, Credentials, Endpoint, LivenessBindError,
    LivenessListener, SendError, TransportOptions,
};

use crate::{control_pair, endpoint, loopback, soon};

fn refused(reason: String) -> FromLeader {
    FromLeader {
        epoch: Epoch(3),
        command: Command::Refused { reason },
    }
}

#[tokio::test]
async fn messages_arrive_whole_and_in_order_both_ways() {
    let ca = ClusterCa::generate().expect("a CA");
    let credentials =
        |name| Credentials::new(&ca, &ca.issue(name).expect("issued")).expect("usable");
    let leader = endpoint(&credentials("leader"));
    let worker = endpoint(&credentials("worker-7"));
    let (dialled, accepted) = control_pair(&worker, &leader).await;
    assert_eq!(dialled.peer().name, "leader");
    assert_eq!(accepted.peer().name, "worker-7");
    assert_eq!(accepted.peer().address, worker.local_address());

    let (mut to_leader, mut from_leader, _) = dialled.split();
    let (mut to_worker, mut from_worker, _) = accepted.split();
    let up = async {
        for _ in 0..1000 {
            to_leader
                .send(&ToLeader::Report(Report { tasks: vec![] }))
                .await
                .expect("sent");
        }
        drop(to_leader);
    };
    let down = async {
        // Far more than a stream's window.
        for len in [0, 1, 300_000, 3_000_000] {
            to_worker
                .send(&refused("x".repeat(len)))
                .await
                .expect("sent");
        }
    };
    let worker_hears = async {
        for len in [0, 1, 300_000, 3_000_000] {
            let message = from_leader.recv::<FromLeader>().await.expect("received");
            assert_eq!(message, Some(refused("x".repeat(len))));
        }
    };
    let leader_hears = async {
        let mut count = 0;
        while from_worker
            .recv::<ToLeader>()
            .await
            .expect("received")
            .is_some()
        {
            count += 1;
        }
        assert_eq!(count, 1000);
    };
    soon("messages", async {
        tokio::join!(up, down, worker_hears, leader_hears)
    })
    .await;
}

#[tokio::test]
async fn a_receive_that_is_dropped_loses_nothing() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
    let (dialled, accepted) = control_pair(&worker, &leader).await;
    let (_, mut from_leader, _) = dialled.split();
    let (mut to_worker, _, _) = accepted.split();
    let sending = tokio::spawn(async move {
        for number in 0..50_usize {
            to_worker
                .send(&refused(number.to_string().repeat(20_000)))
                .await
                .expect("sent");
        }
        to_worker
    });
    for number in 0..50_usize {
        // Polled once and dropped, over and over, as a `select!` does.
        let message = soon("a message", async {
            loop {
                tokio::select! {
                    biased;
                    message = from_leader.recv::<FromLeader>() => break message,
                    () = tokio::task::yield_now() => {}
                }
            }
        });
        let expected = refused(number.to_string().repeat(20_000));
        assert_eq!(message.await.expect("received"), Some(expected));
    }
    sending.await.expect("the sender went well");
}

#[tokio::test]
async fn the_reason_of_a_close_reaches_the_other_side() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
    let (dialled, accepted) = control_pair(&worker, &leader).await;
    let (_, _, handle) = accepted.split();
    let (mut to_leader, mut from_leader, dialled) = dialled.split();
    handle.close("a newer registration of the same TaskManager");
    assert_eq!(
        soon("the local end", handle.closed()).await,
        ConnectionLoss::ClosedHere
    );
    let reason =
        ConnectionLoss::ClosedByPeer("a newer registration of the same TaskManager".into());
    assert_eq!(soon("the remote end", dialled.closed()).await, reason);
    let error = from_leader.recv::<FromLeader>().await.expect_err("closed");
    assert!(
        error
            .to_string()
            .contains(&leader.local_address().to_string()),
        "{error}"
    );
    let report = ToLeader::Report(Report { tasks: vec![] });
    assert!(
        matches!(to_leader.send(&report).await, Err(SendError::Lost { loss, .. }) if loss == reason)
    );
}

#[tokio::test]
async fn the_last_word_before_a_close_is_heard() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
    let (dialled, accepted) = control_pair(&worker, &leader).await;
    let (mut to_worker, _, handle) = accepted.split();
    to_worker
        .send(&refused("another configuration".into()))
        .await
        .expect("sent");
    soon("the delivery", to_worker.finish()).await;
    handle.close("refused");
    let (_sender, mut from_leader, dialled) = dialled.split();
    soon("the close", dialled.closed()).await;
    let message = from_leader.recv().await.expect("received before the close");
    assert_eq!(message, Some(refused("another configuration".into())));
}

#[tokio::test]
async fn a_message_above_the_bound_is_refused_where_it_is_sent() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
    let (dialled, accepted) = control_pair(&worker, &leader).await;
    let (mut to_worker, _, _keep) = accepted.split();
    let (_keep_too, mut from_leader, _) = dialled.split();
    let error = to_worker
        .send(&refused("x".repeat(CONTROL_MESSAGE_MAX_BYTES)))
        .await;
    assert!(matches!(error, Err(SendError::TooLong { .. })), "{error:?}");
    to_worker
        .send(&refused("short".into()))
        .await
        .expect("the connection stays usable");
    let message = soon("the short one", from_leader.recv())
        .await
        .expect("received");
    assert_eq!(message, Some(refused("short".into())));
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_remedy() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let first = endpoint(&credentials);
    let address = first.local_address();
    let error =
        Endpoint::bind(address, &credentials, TransportOptions::default()).expect_err("taken");
    assert!(matches!(error, BindError::InUse { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("another port"),
        "{text}"
    );

    let listener = LivenessListener::bind(loopback()).expect("a free port");
    let address = listener.local_address();
    let error = LivenessListener::bind(address).err().expect("taken");
    assert!(
        matches!(error, LivenessBindError::InUse { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    let elsewhere = "192.0.2.1:0".parse().expect("an address");
    let error = Endpoint::bind(elsewhere, &credentials, TransportOptions::default());
    assert!(matches!(error, Err(BindError::Address { .. })), "{error:?}");
}

#[tokio::test]
async fn nobody_at_an_address_is_an_error_within_the_idle_timeout() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let socket = std::net::UdpSocket::bind(loopback()).expect("a mute port");
    let mute = socket.local_addr().expect("bound");
    let worker =
        Endpoint::bind(loopback(), &credentials, TransportOptions::default()).expect("bound");
    let error = soon("the timeout", worker.connect_control(mute))
        .await
        .expect_err("nobody there");
    assert_eq!(error, ConnectError::Silent { address: mute });
    assert!(error.to_string().contains(&mute.to_string()), "{error}");
}

#[tokio::test]
async fn names_are_resolved_to_addresses_that_can_be_dialled() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let worker = endpoint(&credentials);
    let address = worker
        .resolve("localhost:6123")
        .await
        .expect("localhost is known");
    assert_eq!(address, "127.0.0.1:6123".parse().expect("an address"));
    let error = worker
        .resolve("no port here")
        .await
        .expect_err("no address")
        .to_string();
    assert!(error.contains("`no port here`"), "{error}");
}

#[tokio::test]
async fn a_dropped_endpoint_closes_what_it_had() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
    let (dialled, _accepted) = control_pair(&worker, &leader).await;
    let (_, _, handle) = dialled.split();
    drop(leader);
    let loss = soon("the close", handle.closed()).await;
    assert!(matches!(loss, ConnectionLoss::ClosedByPeer(_)), "{loss}");
}
