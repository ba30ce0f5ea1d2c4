//! Noise thrown at every port by those who have no certificate: the port goes on serving.

use std::net::UdpSocket;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use tidemill_protocol::control::{Report, ToLeader};
use tidemill_transport::{
    Credentials, LIVENESS_TOKEN_BYTES, LivenessError, LivenessListener, LivenessLoss,
    LivenessProbe, connect_liveness, probe_liveness,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::Proxy;
use crate::{control_pair, endpoint, loopback, soon};

/// A QUIC version 1 Initial header (RFC 9000, section 17.2.2) before noise.
fn initial(random: &mut impl Rng, len: usize) -> Vec<u8> {
    let mut packet = vec![0xc0 | random.random_range(0..4_u8), 0, 0, 0, 1, 8];
    packet.extend(random.random::<[u8; 8]>());
    packet.push(8);
    packet.extend(random.random::<[u8; 8]>());
    packet.push(0);
    let rest = u16::try_from(len).expect("short") | 0x4000;
    packet.extend(rest.to_be_bytes());
    packet.resize_with(len.max(packet.len()), || random.random());
    packet
}

#[tokio::test]
async fn datagrams_of_noise_disturb_nobody() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));

    // A real handshake, so that its packets can be damaged.
    let proxy = Proxy::start(leader.local_address(), None).await;
    let through_proxy = soon("a connection", worker.connect_control(proxy.address())).await;
    let _first = soon("the greeting", leader.accept())
        .await
        .expect("listening");
    drop(through_proxy.expect("connected"));
    let real = proxy.captured();
    assert!(!real.is_empty());

    let (dialled, accepted) = control_pair(&worker, &leader).await;
    let (mut to_leader, _keep, _) = dialled.split();
    let (_keep_too, mut from_worker, _) = accepted.split();
    let attacker = UdpSocket::bind(loopback()).expect("a port");
    let report = ToLeader::Report(Report { tasks: vec![] });
    for round in 0..3000 {
        let packet = match round % 4 {
            0 => (0..random.random_range(0..1500))
                .map(|_| random.random())
                .collect(),
            1 => {
                let len = random.random_range(20..1400);
                initial(&mut random, len)
            }
            2 => {
                let whole = &real[random.random_range(0..real.len())];
                whole[..random.random_range(0..=whole.len())].to_vec()
            }
            _ => {
                let mut packet = real[random.random_range(0..real.len())].clone();
                let at = random.random_range(0..packet.len());
                packet[at] ^= 1 << random.random_range(0..8);
                packet
            }
        };
        // A full socket buffer is the attacker's problem.
        attacker.send_to(&packet, leader.local_address()).ok();
        if round % 100 == 0 {
            to_leader.send(&report).await.expect("sent");
            let received = soon("a message amid noise", from_worker.recv()).await;
            assert_eq!(received.expect("received"), Some(report.clone()));
        }
    }
    let newcomer = endpoint(&credentials);
    control_pair(&newcomer, &leader).await;
}

#[tokio::test]
async fn strangers_on_the_liveness_port_are_closed_and_tokens_still_work() {
    let listener = LivenessListener::bind(loopback()).expect("a free port");
    let address = listener.local_address();

    // A wrong token, whole or in part, and an HTTP client.
    for garbage in [
        &[0x5a; 16][..],
        &[1, 2, 3],
        b"GET / HTTP/1.1\r\nHost: tidemill\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(garbage).await.expect("sent");
        stream.shutdown().await.expect("shut down");
        let mut answer = [0; 16];
        let closed = soon("the close", stream.read(&mut answer)).await;
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }

    // More strangers than are heard at once, all silent.
    let mut strangers = Vec::new();
    for _ in 0..300 {
        strangers.push(TcpStream::connect(address).await.expect("connected"));
    }
    soon("silent strangers to be closed", async {
        for stranger in &mut strangers {
            let mut answer = [0; 1];
            assert!(matches!(stranger.read(&mut answer).await, Ok(0) | Err(_)));
        }
    })
    .await;

    let ticket = listener.issue();
    let token = ticket.token();
    let (shown, expected) = tokio::join!(
        connect_liveness(address, token),
        ticket.connected(Duration::from_secs(20))
    );
    let (_one, _other) = (shown.expect("accepted"), expected.expect("connected"));

    // Used once, revoked, or never issued.
    let revoked = listener.issue().token();
    for token in [token, revoked, [9; 16]] {
        let error = soon("the refusal", connect_liveness(address, token))
            .await
            .expect_err("refused");
        assert!(matches!(error, LivenessError::Refused { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_task_manager_that_does_not_connect_is_an_error_with_a_remedy() {
    let listener = LivenessListener::bind(loopback()).expect("a free port");
    let error = listener
        .issue()
        .connected(Duration::from_millis(20))
        .await
        .expect_err("nobody");
    assert!(error.to_string().contains("TCP"), "{error}");
    let address = listener.local_address();
    drop(listener);
    // The port is closed as soon as the runtime has dropped the listener's task.
    soon("the port to close", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let error = connect_liveness(address, [0; 16])
        .await
        .expect_err("closed");
    assert!(matches!(error, LivenessError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn data_on_a_liveness_connection_ends_it() {
    let listener = LivenessListener::bind(loopback()).expect("a free port");
    let ticket = listener.issue();
    let mut stream = TcpStream::connect(listener.local_address())
        .await
        .expect("connected");
    stream.write_all(&ticket.token()).await.expect("sent");
    let mut liveness = ticket
        .connected(Duration::from_secs(20))
        .await
        .expect("connected");
    stream.write_all(b"more").await.expect("sent");
    let loss = soon("the loss", liveness.lost()).await;
    assert!(matches!(loss, LivenessLoss::Garbage { .. }), "{loss}");
}

#[tokio::test]
async fn a_connection_that_is_reset_says_so_and_a_probe_tells_whether_the_process_lives() {
    let listener = TcpListener::bind(loopback()).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let peer = async {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut token = [0; LIVENESS_TOKEN_BYTES];
        stream.read_exact(&mut token).await.expect("shown");
        stream.write_all(&[1]).await.expect("answered");
        stream
    };
    let connecting = connect_liveness(address, [7; LIVENESS_TOKEN_BYTES]);
    let (liveness, stream) = soon("the connection", async { tokio::join!(connecting, peer) }).await;
    let mut liveness = liveness.expect("accepted");
    // What is not read when a socket is closed makes its kernel answer with a reset.
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .expect("a socket");
    drop(stream);
    let loss = soon("the loss", liveness.lost()).await;
    assert!(matches!(loss, LivenessLoss::Reset { .. }), "{loss}");
    assert_eq!(probe_liveness(address).await, LivenessProbe::Listens);
    drop(listener);
    assert_eq!(probe_liveness(address).await, LivenessProbe::Gone);
}
