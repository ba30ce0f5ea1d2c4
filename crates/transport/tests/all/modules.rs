//! Modules on their way to TaskManagers.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use tidemill_protocol::ModuleHash;
use tidemill_transport::{
    BlobServed, ClusterCa, ConnectError, Credentials, Endpoint, FetchError, FetchLimits, Incoming,
    TransportOptions, fetch_blob,
};
use tokio::sync::mpsc;

use crate::proxy::Proxy;
use crate::{endpoint, loopback, soon};

fn module(len: usize) -> (ModuleHash, Bytes) {
    let mut bytes = vec![0; len];
    rand::rngs::SmallRng::seed_from_u64(len as u64).fill_bytes(&mut bytes);
    (ModuleHash(*blake3::hash(&bytes).as_bytes()), bytes.into())
}

/// Serves one set of bytes under one hash, whether they fit or not; says what it did.
fn serve(
    endpoint: Endpoint,
    hash: ModuleHash,
    bytes: Bytes,
) -> mpsc::UnboundedReceiver<BlobServed> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Incoming::Blob(request)) = endpoint.accept().await {
            let (bytes, sender) = (bytes.clone(), sender.clone());
            tokio::spawn(async move {
                let served = request
                    .serve(|asked| (asked == hash).then_some(bytes))
                    .await;
                sender.send(served).ok();
            });
        }
    });
    receiver
}

async fn fetch(
    worker: &Endpoint,
    from: SocketAddr,
    hash: ModuleHash,
    held: &mut Vec<u8>,
) -> Result<Bytes, FetchError> {
    fetch_blob(worker, from, hash, held, &FetchLimits::default()).await
}

#[tokio::test]
async fn modules_of_all_sizes_arrive_whole() {
    let credentials = Credentials::ephemeral().expect("credentials");
    for len in [0, 1, 27 << 10, 5 << 20] {
        let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
        let (hash, bytes) = module(len);
        let mut served = serve(leader.clone(), hash, bytes.clone());
        let mut held = Vec::new();
        let fetched = fetch(&worker, leader.local_address(), hash, &mut held);
        assert_eq!(soon("the module", fetched).await.expect("fetched"), bytes);
        assert_eq!(
            soon("the server", served.recv()).await,
            Some(BlobServed::Sent { hash, offset: 0 })
        );
    }
}

#[tokio::test]
async fn a_fetch_that_is_cut_in_the_middle_goes_on_where_it_was() {
    const LEN: usize = 6 << 20;
    const CUT_EVERY: u64 = 4 << 20;
    let credentials = Credentials::ephemeral().expect("credentials");
    let options = TransportOptions {
        // How soon the cut is noticed.
        idle_timeout: Duration::from_secs(1),
        ..TransportOptions::default()
    };
    let bind = || Endpoint::bind(loopback(), &credentials, options.clone()).expect("bound");
    let (leader, worker) = (bind(), bind());
    let (hash, bytes) = module(LEN);
    let _served = serve(leader.clone(), hash, bytes.clone());
    let proxy = Proxy::start(leader.local_address(), Some(CUT_EVERY)).await;

    let mut held = Vec::new();
    let fetched = fetch(&worker, proxy.address(), hash, &mut held);
    assert_eq!(soon("the module", fetched).await.expect("fetched"), bytes);
    let carried = proxy.to_client_bytes();
    println!(
        "{} cuts, {carried} bytes carried for a module of {LEN}",
        proxy.cuts()
    );
    assert!(proxy.cuts() >= 1);
    assert!(
        carried < LEN as u64 * 3 / 2,
        "a new beginning would have taken at least 10 MiB"
    );
}

#[tokio::test]
async fn what_an_earlier_fetch_left_is_not_fetched_again_and_not_trusted() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
    let (hash, bytes) = module(100_000);
    let mut served = serve(leader.clone(), hash, bytes.clone());
    let mut held = bytes[..60_000].to_vec();
    let fetched = fetch(&worker, leader.local_address(), hash, &mut held);
    assert_eq!(soon("the rest", fetched).await.expect("fetched"), bytes);
    assert_eq!(
        soon("the server", served.recv()).await,
        Some(BlobServed::Sent {
            hash,
            offset: 60_000
        })
    );

    // A damaged beginning costs a new one, not an error.
    let mut held = vec![0; 60_000];
    let fetched = fetch(&worker, leader.local_address(), hash, &mut held);
    assert_eq!(soon("all of it", fetched).await.expect("fetched"), bytes);
}

#[tokio::test]
async fn wrong_missing_and_oversized_modules_are_refused_by_name() {
    let credentials = Credentials::ephemeral().expect("credentials");
    let (leader, worker) = (endpoint(&credentials), endpoint(&credentials));
    let (hash, bytes) = module(100_000);
    let mut damaged = bytes.to_vec();
    damaged[50_000] ^= 1;
    let _served = serve(leader.clone(), hash, damaged.into());
    let address = leader.local_address();
    let limits = FetchLimits::default();
    let fetch = async |hash, limits: &FetchLimits| {
        let mut held = Vec::new();
        soon(
            "the refusal",
            fetch_blob(&worker, address, hash, &mut held, limits),
        )
        .await
        .expect_err("refused")
    };

    let error = fetch(hash, &limits).await;
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    assert!(error.to_string().contains(&hash.to_string()), "{error}");

    let error = fetch(module(5).0, &limits).await;
    assert!(matches!(error, FetchError::Missing { .. }), "{error}");

    let small = FetchLimits {
        len_max_bytes: 99_999,
        ..limits
    };
    let error = fetch(hash, &small).await;
    assert!(
        matches!(error, FetchError::TooLong { len: 100_000, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_fetch_gives_up_on_a_dead_leader_after_its_attempts_and_on_a_foreign_one_at_once() {
    let ca = ClusterCa::generate().expect("a CA");
    let credentials = Credentials::new(&ca, &ca.issue("worker").expect("issued")).expect("usable");
    let options = TransportOptions {
        idle_timeout: Duration::from_millis(200),
        ..TransportOptions::default()
    };
    let worker = Endpoint::bind(loopback(), &credentials, options).expect("bound");
    let (hash, bytes) = module(10);
    let limits = FetchLimits {
        fruitless_attempts_max: 2,
        ..FetchLimits::default()
    };

    let mute = std::net::UdpSocket::bind(loopback()).expect("a mute port");
    let address = mute.local_addr().expect("bound");
    let error = soon(
        "giving up",
        fetch_blob(&worker, address, hash, &mut Vec::new(), &limits),
    )
    .await;
    let Err(FetchError::Connect { source, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(source, ConnectError::Silent { address });

    let foreign = endpoint(&Credentials::ephemeral().expect("credentials"));
    let _served = serve(foreign.clone(), hash, bytes);
    let patient =
        Endpoint::bind(loopback(), &credentials, crate::patient_options()).expect("bound");
    let error = fetch_blob(
        &patient,
        foreign.local_address(),
        hash,
        &mut Vec::new(),
        &limits,
    )
    .await;
    let Err(FetchError::Connect { source, .. }) = error else {
        panic!("{error:?}");
    };
    assert!(matches!(source, ConnectError::Foreign { .. }), "{source}");
}
