//! What only the registry in ZooKeeper promises: how it takes lost connections, sessions, answers and servers, and whom
//! it lets in. Real servers on this machine; without ZooKeeper installed these tests fail and say what to install.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::proxy::{Proxy, Weather};
use common::{job, job_id, job_manager, options, pointers, soon, task_manager};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tidemill_coordination::{
    Access, Connection, Credentials, KnownLeader, LeadError, Leading, ReadError, Registry,
    TlsFiles, WriteError, ZooKeeper, ZooKeeperOptions,
};
use tidemill_protocol::Incarnation;
use tidemill_protocol::record::{CheckpointPointers, TaskManagerRecord};
use tidemill_zookeeper_ensemble::{Ensemble, Options, ServerTls};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zookeeper_client::Client;

const ROOT: &str = "/tidemill/main";

fn one_server() -> Ensemble {
    Ensemble::start(Options::with_servers(1)).unwrap()
}

fn open(options: ZooKeeperOptions) -> Arc<ZooKeeper> {
    Arc::new(ZooKeeper::open(options).unwrap())
}

async fn wait_for<T>(what: &str, mut watched: watch::Receiver<T>, fits: impl FnMut(&T) -> bool) {
    drop(soon(what, watched.wait_for(fits)).await.unwrap());
}

async fn connected(registry: &ZooKeeper, connection: Connection) {
    let what = format!("{connection:?}");
    wait_for(&what, registry.connection(), |known| *known == connection).await;
}

async fn announced(registry: &ZooKeeper, records: &[TaskManagerRecord]) {
    let what = format!("{} TaskManagers", records.len());
    wait_for(&what, registry.task_managers(), |known| known == records).await;
}

/// Stands for election in the background.
fn stand(registry: &Arc<ZooKeeper>, number: u8) -> JoinHandle<Leading> {
    let registry = Arc::clone(registry);
    tokio::spawn(async move { registry.lead(&job_manager(number)).await.unwrap() })
}

async fn standing(registry: &ZooKeeper, number: u8) {
    let candidates = registry.job_managers();
    wait_for("the candidate", candidates, |known| {
        known.contains(&job_manager(number))
    })
    .await;
}

/// The error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_is_replaced_and_comes_back_as_a_candidate() {
    let ensemble = one_server();
    let proxy = Proxy::before(&ensemble.addresses()[0]).await;
    let away = open(options(vec![proxy.address.clone()], ROOT));
    let here = open(options(ensemble.addresses(), ROOT));
    let old = away.lead(&job_manager(1)).await.unwrap();
    away.put_job(&old, &job(1)).await.unwrap();
    let _presence = away.announce(task_manager(1));
    announced(&here, &[task_manager(1)]).await;
    let successor = stand(&here, 2);
    standing(&here, 2).await;

    let cut = Instant::now();
    proxy.set(Weather::Cut);
    connected(&away, Connection::Suspended).await;
    let late = away.put_job(&old, &job(2)).await.unwrap_err();
    assert!(
        matches!(late, WriteError::Unknown { .. } | WriteError::Fenced { .. }),
        "{late:?}"
    );
    let new = soon("the successor", successor).await.unwrap();
    println!("elected {:?} after the connection was cut", cut.elapsed());
    assert!(new.epoch() > old.epoch());
    here.put_pointers(&new, job_id(1), &pointers(1))
        .await
        .unwrap();
    soon("the end of the first", old.lost()).await;
    announced(&here, &[]).await;

    proxy.set(Weather::Fair);
    connected(&away, Connection::Connected).await;
    announced(&here, &[task_manager(1)]).await;
    let leader = away.leader();
    wait_for("word of the successor", leader, |known| {
        known
            .as_ref()
            .is_some_and(|known| known.record == job_manager(2))
    })
    .await;
    let refused = away.put_pointers(&old, job_id(1), &pointers(2)).await;
    let Err(WriteError::Fenced { ours, stored }) = refused else {
        panic!("{refused:?} instead of a refusal");
    };
    assert_eq!((ours, stored), (old.epoch(), Some(new.epoch())));
    assert_eq!(away.jobs().await.unwrap(), [Ok(job(1))]);
    assert_eq!(away.pointers(job_id(1)).await.unwrap(), pointers(1));

    let again = stand(&away, 1);
    standing(&here, 1).await;
    let resigned = Instant::now();
    here.resign(&new).await.unwrap();
    let again = soon("the first again", again).await.unwrap();
    println!("elected {:?} after a resignation", resigned.elapsed());
    assert!(again.epoch() > new.epoch());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_process_has_ended_is_deposed_long_before_its_session() {
    let ensemble = one_server();
    let proxy = Proxy::before(&ensemble.addresses()[0]).await;
    let session_timeout = Duration::from_secs(8);
    let mut patient = options(vec![proxy.address.clone()], ROOT);
    patient.session_timeout = session_timeout;
    let away = open(patient);
    let old = away.lead(&job_manager(1)).await.unwrap();
    away.put_job(&old, &job(1)).await.unwrap();
    let (second, third) = (
        open(options(ensemble.addresses(), ROOT)),
        open(options(ensemble.addresses(), ROOT)),
    );
    let successor = stand(&second, 2);
    standing(&third, 2).await;
    let after_it = stand(&third, 3);
    standing(&third, 3).await;

    // Nothing tells the servers that it is gone.
    proxy.set(Weather::Cut);
    let known = KnownLeader {
        epoch: old.epoch(),
        record: job_manager(1),
    };
    let ended = Instant::now();
    third.depose(&known).await.unwrap();
    let new = soon("the successor", successor).await.unwrap();
    let took = ended.elapsed();
    println!("elected {took:?} after the end of the leader's process was told");
    assert!(took < session_timeout / 2, "{took:?}");
    assert!(new.epoch() > old.epoch());
    wait_for("the others to be left", third.job_managers(), |known| {
        known == &[job_manager(2), job_manager(3)]
    })
    .await;

    // Others that saw the same end say it late: nothing comes of it.
    for registry in [&second, &third] {
        registry.depose(&known).await.unwrap();
    }
    second.put_job(&new, &job(2)).await.unwrap();
    let lost = tokio::time::timeout(Duration::ZERO, new.lost()).await;
    assert!(lost.is_err(), "the successor was deposed");
    assert!(!after_it.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_deposed_by_mistake_is_fenced_and_stands_again() {
    let ensemble = one_server();
    let leader = open(options(ensemble.addresses(), ROOT));
    let second = open(options(ensemble.addresses(), ROOT));
    let old = leader.lead(&job_manager(1)).await.unwrap();
    leader.put_job(&old, &job(1)).await.unwrap();
    let successor = stand(&second, 2);
    standing(&second, 2).await;
    let known = second.leader().borrow().clone().unwrap();
    assert_eq!((known.epoch, &known.record), (old.epoch(), &job_manager(1)));

    second.depose(&known).await.unwrap();
    soon("the end of the first", old.lost()).await;
    let new = soon("the successor", successor).await.unwrap();
    let refused = [
        leader.put_job(&old, &job(2)).await,
        leader.put_pointers(&old, job_id(1), &pointers(1)).await,
        leader.remove_job(&old, job_id(1)).await,
        leader.confirm(&old).await,
    ];
    for outcome in refused {
        assert!(
            matches!(outcome, Err(WriteError::Fenced { ours, .. }) if ours == old.epoch()),
            "{outcome:?} instead of a refusal"
        );
    }
    assert_eq!(second.jobs().await.unwrap(), [Ok(job(1))]);

    // It has its session still, and a node that it made afterwards is not the one that was deposed.
    let again = stand(&leader, 1);
    standing(&second, 1).await;
    second.depose(&known).await.unwrap();
    second.confirm(&new).await.unwrap();
    second.resign(&new).await.unwrap();
    let again = soon("the first again", again).await.unwrap();
    assert!(again.epoch() > new.epoch());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_connection_is_not_a_lost_session() {
    let ensemble = one_server();
    let proxy = Proxy::before(&ensemble.addresses()[0]).await;
    let mut patient = options(vec![proxy.address.clone()], ROOT);
    patient.session_timeout = Duration::from_secs(8);
    let registry = open(patient);
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    let lock = registry.lock("graph").await.unwrap();
    assert_eq!(registry.session_timeout(), Some(Duration::from_secs(8)));

    // The write is done, its answer is not heard: nothing but reading tells.
    registry.put_job(&leading, &job(1)).await.unwrap();
    let mut changed = job(1);
    changed.restarts += 1;
    proxy.set(Weather::AnswersLost);
    let unknown = registry.put_job(&leading, &changed).await.unwrap_err();
    assert!(matches!(unknown, WriteError::Unknown { .. }), "{unknown:?}");
    connected(&registry, Connection::Suspended).await;
    proxy.set(Weather::Cut);
    // Whoever asks meanwhile waits.
    let read = {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move { registry.jobs().await.unwrap() })
    };
    proxy.set(Weather::Fair);
    assert_eq!(soon("the read", read).await.unwrap(), [Ok(changed)]);
    connected(&registry, Connection::Connected).await;
    registry.confirm(&leading).await.unwrap();
    let lost = tokio::time::timeout(Duration::ZERO, leading.lost()).await;
    assert!(lost.is_err(), "the leadership was lost");
    let lost = tokio::time::timeout(Duration::ZERO, lock.lost()).await;
    assert!(lost.is_err(), "the lock was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_freezes_beyond_the_session_ends_it_and_what_it_held() {
    let ensemble = one_server();
    let registry = open(options(ensemble.addresses(), ROOT));
    let old = registry.lead(&job_manager(1)).await.unwrap();
    registry.put_job(&old, &job(1)).await.unwrap();
    let lock = registry.lock("graph").await.unwrap();

    ensemble.freeze(0).unwrap();
    connected(&registry, Connection::Suspended).await;
    soon("the end of the leadership", old.lost()).await;
    soon("the end of the lock", lock.lost()).await;
    connected(&registry, Connection::Connecting).await;
    let unreadable = registry.jobs().await.unwrap_err();
    assert!(
        matches!(unreadable, ReadError::Unavailable { .. }),
        "{unreadable:?}"
    );

    let new = stand(&registry, 1);
    ensemble.thaw(0).unwrap();
    let new = soon("the next leadership", new).await.unwrap();
    assert!(new.epoch() > old.epoch());
    let refused = registry.put_job(&old, &job(2)).await.unwrap_err();
    assert!(matches!(refused, WriteError::Fenced { .. }), "{refused:?}");
    assert_eq!(registry.jobs().await.unwrap(), [Ok(job(1))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_its_nodes_is_noticed() {
    let ensemble = one_server();
    let registry = open(options(ensemble.addresses(), ROOT));
    let other = Client::connect(&ensemble.addresses()[0]).await.unwrap();
    let leading = registry.lead(&job_manager(1)).await.unwrap();
    for number in 1..=3 {
        registry.put_job(&leading, &job(number)).await.unwrap();
    }
    registry
        .put_pointers(&leading, job_id(3), &pointers(1))
        .await
        .unwrap();

    // Records that nobody can read, and nodes that are none of ours.
    let path = |below: &str| format!("{ROOT}/{below}");
    let options =
        zookeeper_client::CreateMode::Persistent.with_acls(zookeeper_client::Acls::anyone_all());
    other
        .create(&path("jobs/none-of-ours"), b"", &options)
        .await
        .unwrap();
    other
        .create(&path("leader/none-of-ours"), b"", &options)
        .await
        .unwrap();
    other
        .create(&path("taskmanagers/none-of-ours"), b"", &options)
        .await
        .unwrap();
    other
        .set_data(&path(&format!("jobs/{}", job_id(2))), b"garbage", None)
        .await
        .unwrap();
    other
        .set_data(
            &path(&format!("checkpoints/{}", job_id(3))),
            b"CP\x02\x00later",
            None,
        )
        .await
        .unwrap();
    let jobs = registry.jobs().await.unwrap();
    assert_eq!((&jobs[0], &jobs[2]), (&Ok(job(1)), &Ok(job(3))));
    assert_eq!(jobs[1].as_ref().unwrap_err().job, job_id(2));
    let damaged = registry.pointers(job_id(3)).await.unwrap_err();
    assert!(matches!(damaged, ReadError::DamagedPointers { job, .. } if job == job_id(3)));
    registry.remove_job(&leading, job_id(2)).await.unwrap();
    // Pointers without their job, which only others leave: they go too.
    other
        .create(&path(&format!("checkpoints/{}", job_id(9))), b"", &options)
        .await
        .unwrap();
    registry.remove_job(&leading, job_id(9)).await.unwrap();
    assert_eq!(
        registry.pointers(job_id(9)).await.unwrap(),
        CheckpointPointers::default()
    );

    // What ZooKeeper cannot hold is refused before it ends the connection.
    let mut large = job(4);
    large.name = "x".repeat(2 << 20);
    let refused = registry.put_job(&leading, &large).await.unwrap_err();
    assert!(matches!(refused, WriteError::Failed { .. }), "{refused:?}");
    assert!(
        chain(&refused).contains("a node holds"),
        "{}",
        chain(&refused)
    );
    let mut fits = job(4);
    fits.name = "x".repeat(900_000);
    registry.put_job(&leading, &fits).await.unwrap();

    // Somebody deletes the leader's node: it does not lead any more, and may stand again.
    let nodes = other.list_children(&path("leader")).await.unwrap();
    let node = nodes.iter().find(|name| name.starts_with("n-")).unwrap();
    other
        .delete(&path(&format!("leader/{node}")), None)
        .await
        .unwrap();
    soon("the end of the leadership", leading.lost()).await;
    let refused = registry.confirm(&leading).await.unwrap_err();
    assert!(
        matches!(refused, WriteError::Fenced { stored: None, .. }),
        "{refused:?}"
    );
    let again = registry.lead(&job_manager(1)).await.unwrap();
    assert!(again.epoch() > leading.epoch());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_managers_name_belongs_to_who_announced_himself_last() {
    let ensemble = one_server();
    let (one, two) = (
        open(options(ensemble.addresses(), ROOT)),
        open(options(ensemble.addresses(), ROOT)),
    );
    let first = one.announce(task_manager(1));
    let _other = one.announce(task_manager(2));
    announced(&two, &[task_manager(1), task_manager(2)]).await;
    let restarted = TaskManagerRecord {
        incarnation: Incarnation(7),
        ..task_manager(1)
    };
    let second = two.announce(restarted.clone());
    announced(&one, &[restarted, task_manager(2)]).await;
    // Who was outdone is there again when the name is free.
    soon("the withdrawal", second.withdraw()).await;
    announced(&two, &[task_manager(1), task_manager(2)]).await;
    drop(first);
    announced(&two, &[task_manager(2)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_shorter_than_the_servers_allow_is_told() {
    let ensemble = one_server();
    let mut hasty = options(ensemble.addresses(), ROOT);
    hasty.session_timeout = Duration::from_millis(150);
    hasty.connection_timeout = Duration::from_millis(100);
    let registry = open(hasty);
    assert_eq!(registry.session_timeout(), Some(Duration::from_millis(150)));
    connected(&registry, Connection::Connected).await;
    // Two ticks.
    assert_eq!(registry.session_timeout(), Some(Duration::from_millis(400)));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_are_not_there_are_waited_for_and_named() {
    let registry = open(options(vec!["127.0.0.1:1".into()], ROOT));
    let mut leading = stand(&registry, 1);
    let error = registry.jobs().await.unwrap_err();
    let message = chain(&error);
    assert!(
        message.contains("127.0.0.1:1") && message.contains("check that they run"),
        "{message}"
    );
    assert_eq!(*registry.connection().borrow(), Connection::Connecting);
    assert!(
        tokio::time::timeout(Duration::ZERO, &mut leading)
            .await
            .is_err()
    );
    leading.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_creator_is_let_in() {
    let ensemble = one_server();
    let user = |user: &str, password: &str| ZooKeeperOptions {
        acl: Access::Creator,
        credentials: Some(Credentials {
            user: user.into(),
            password: password.into(),
        }),
        ..options(ensemble.addresses(), ROOT)
    };
    let owner = open(user("tidemill", "right"));
    let leading = owner.lead(&job_manager(1)).await.unwrap();
    owner.put_job(&leading, &job(1)).await.unwrap();
    let _presence = owner.announce(task_manager(1));
    announced(&owner, &[task_manager(1)]).await;

    let nobody = options(ensemble.addresses(), ROOT);
    for stranger in [user("tidemill", "wrong"), user("else", "right"), nobody] {
        let stranger = open(stranger);
        let unreadable = soon("a refusal", stranger.jobs()).await.unwrap_err();
        assert!(
            chain(&unreadable).contains("check zookeeper.user"),
            "{}",
            chain(&unreadable)
        );
        let refused = soon("a refusal", stranger.lead(&job_manager(2)))
            .await
            .unwrap_err();
        assert!(
            matches!(refused, LeadError::Unavailable { .. }),
            "{refused:?}"
        );
    }
    let second = open(user("tidemill", "right"));
    assert_eq!(second.jobs().await.unwrap(), [Ok(job(1))]);
}

/// An authority, and what it signs, in files.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&authority_key).unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let signed = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])
                .unwrap()
                .signed_by(&key, &issuer)
                .unwrap();
            let (key, signed) = (key.serialize_pem(), signed.pem());
            let file = |suffix: &str| directory.path().join(format!("{name}{suffix}.pem"));
            std::fs::write(file("-key"), &key).unwrap();
            std::fs::write(file(""), &signed).unwrap();
            std::fs::write(file("-both"), format!("{key}{signed}")).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(Path::new(name))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_clients_prove_themselves_with_certificates() {
    let (ours, foreign) = (Certificates::make(), Certificates::make());
    let tls = ServerTls {
        key_store: ours.path("server-both.pem"),
        trust_store: ours.path("ca.pem"),
        client_certificates: true,
    };
    let ensemble = Ensemble::start(Options {
        tls: Some(tls),
        ..Options::with_servers(1)
    })
    .unwrap();
    let with = |ca: std::path::PathBuf, identity: Option<&Certificates>| ZooKeeperOptions {
        session_timeout: Duration::from_secs(4),
        connection_timeout: Duration::from_secs(2),
        tls: Some(TlsFiles {
            ca,
            identity: identity.map(|of| (of.path("client.pem"), of.path("client-key.pem"))),
        }),
        ..options(ensemble.tls_addresses(), ROOT)
    };
    let registry = open(with(ours.path("ca.pem"), Some(&ours)));
    let leading = soon("the leadership", registry.lead(&job_manager(1)))
        .await
        .unwrap();
    registry.put_job(&leading, &job(1)).await.unwrap();

    let strangers = [
        with(foreign.path("ca.pem"), Some(&ours)),
        with(ours.path("ca.pem"), Some(&foreign)),
        with(ours.path("ca.pem"), None),
        options(ensemble.tls_addresses(), ROOT),
    ]
    .map(|stranger| tokio::spawn(async move { open(stranger).jobs().await }));
    for stranger in strangers {
        let error = stranger.await.unwrap().unwrap_err();
        assert!(chain(&error).contains("zookeeper.tls"), "{}", chain(&error));
    }
    assert_eq!(registry.jobs().await.unwrap(), [Ok(job(1))]);
}

/// The newest transaction that a server knows.
fn newest_transaction(ensemble: &Ensemble, server: usize) -> u64 {
    let answer = ensemble.ask(server, "srvr").unwrap();
    let zxid = answer
        .lines()
        .find_map(|line| line.strip_prefix("Zxid: 0x"));
    u64::from_str_radix(zxid.unwrap(), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_is_told_wrong_when_servers_are_killed() {
    let started = Instant::now();
    let ensemble = Ensemble::start(Options::with_servers(3)).unwrap();
    println!("three servers after {:?}", started.elapsed());
    let mut patient = options(ensemble.addresses(), ROOT);
    patient.session_timeout = Duration::from_secs(4);
    let registry = open(patient);
    let mut leading = registry.lead(&job_manager(1)).await.unwrap();

    // A confirmation is a transaction of the whole ensemble, a read is none.
    let first = ensemble.leader().unwrap();
    let before = newest_transaction(&ensemble, first);
    registry.jobs().await.unwrap();
    assert_eq!(newest_transaction(&ensemble, first), before);
    registry.confirm(&leading).await.unwrap();
    assert!(newest_transaction(&ensemble, first) > before);

    let (mut done, mut failed, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    let killed = Instant::now();
    for number in 0..200 {
        if number == 40 {
            ensemble.kill(first).unwrap();
        }
        if number == 120 {
            ensemble.restart(first).unwrap();
        }
        match registry.put_job(&leading, &job(number)).await {
            Ok(()) => done.push(number),
            Err(WriteError::Failed { .. }) => failed.push(number),
            Err(WriteError::Unknown { .. }) => unknown.push(number),
            Err(WriteError::Fenced { .. }) => {
                failed.push(number);
                leading = registry.lead(&job_manager(1)).await.unwrap();
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    println!(
        "{} written, {failed:?} not, {unknown:?} unknown in {:?}",
        done.len(),
        killed.elapsed()
    );
    assert!(done.len() > 100);
    let stored: Vec<u8> = registry
        .jobs()
        .await
        .unwrap()
        .into_iter()
        .map(|job| job.unwrap().id.0[0])
        .collect();
    for number in 0..200 {
        if done.contains(&number) {
            assert!(
                stored.contains(&number),
                "{number} was answered and is lost"
            );
        }
        if failed.contains(&number) {
            assert!(
                !stored.contains(&number),
                "{number} was refused and is there"
            );
        }
    }

    // Without most of the servers nothing is confirmed.
    for follower in ensemble.followers() {
        ensemble.kill(follower).unwrap();
    }
    let unconfirmed = soon("an answer", registry.confirm(&leading))
        .await
        .unwrap_err();
    assert!(
        matches!(
            unconfirmed,
            WriteError::Unknown { .. } | WriteError::Fenced { .. }
        ),
        "{unconfirmed:?}"
    );
    soon("the end of the leadership", leading.lost()).await;
    tokio::task::block_in_place(|| ensemble.start_all()).unwrap();
    let again = soon("another leadership", registry.lead(&job_manager(1)))
        .await
        .unwrap();
    assert!(again.epoch() > leading.epoch());
    assert_eq!(registry.jobs().await.unwrap().len(), stored.len());
}
