//! The link and who it is linked with: successors, leaders of the past, and the pauses between.

use std::time::Duration;

use tidemill_coordination::{Connection, KnownLeader};
use tidemill_core::worker::Worker;
use tidemill_protocol::control::{Command, Registration};
use tidemill_protocol::record::JobManagerRecord;
use tidemill_protocol::{Epoch, Incarnation, TaskManagerId};
use tidemill_transport::{Credentials, Endpoint, TransportOptions};
use tokio::sync::{mpsc, watch};

use super::leader::{TestLeader, soon};
use crate::leaders::{Leaders, Named};
use crate::link::{Introduction, LinkEvent, LinkOptions, run};

/// What a test sees of the link, in order.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Connected(std::net::SocketAddr),
    Heard(Epoch),
    Lost,
}

fn registration() -> Registration {
    Registration {
        id: TaskManagerId("tm".to_owned()),
        incarnation: Incarnation(1),
        data_address: "127.0.0.1:1".to_owned(),
        slots: 1,
        cluster_config_hash: 0,
        version: String::new(),
        draining: false,
        running: Vec::new(),
        warm: Vec::new(),
    }
}

/// A link with a driver that obeys as a real one does, and tells what happens.
fn linked(credentials: &Credentials, leaders: Leaders) -> mpsc::UnboundedReceiver<Seen> {
    let local = "127.0.0.1:0".parse().expect("an address");
    let endpoint = Endpoint::bind(local, credentials, TransportOptions::default());
    let options = LinkOptions {
        reconnect_max: Duration::from_millis(100),
    };
    let (events, mut link) = mpsc::channel(16);
    tokio::spawn(run(
        endpoint.expect("a free port"),
        leaders,
        options,
        events,
    ));
    let (tell, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut worker = Worker::default();
        // Held: a voice that is dropped ends the session.
        let mut _voice = None;
        while let Some(event) = link.recv().await {
            let news = match event {
                LinkEvent::Register(ask) => {
                    let (voice, afterwards) = mpsc::unbounded_channel();
                    _voice = Some(voice);
                    let _ = ask.send(Introduction {
                        registration: registration(),
                        afterwards,
                    });
                    continue;
                }
                LinkEvent::Met(epoch, answer) => {
                    let _ = answer.send(worker.met(epoch));
                    continue;
                }
                LinkEvent::Connected(leader) => Seen::Connected(leader.address),
                LinkEvent::Message(message) => Seen::Heard(message.epoch),
                LinkEvent::Lost => Seen::Lost,
            };
            if tell.send(news).is_err() {
                return;
            }
        }
    });
    seen
}

/// A registry that is in reach.
fn watched(leader: watch::Receiver<Option<KnownLeader>>) -> Leaders {
    let (_, job_managers) = watch::channel(Vec::new());
    let (_, connection) = watch::channel(Connection::Connected);
    Leaders::Named(Named {
        leader,
        job_managers,
        connection,
    })
}

fn known(epoch: u64, leader: &TestLeader) -> Option<KnownLeader> {
    let record = JobManagerRecord {
        id: "jm".to_owned(),
        incarnation: Incarnation(1),
        control_address: leader.address().to_string(),
        rest_url: String::new(),
    };
    let epoch = Epoch(epoch);
    Some(KnownLeader { epoch, record })
}

async fn next(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Seen {
    soon("news of the link", seen.recv())
        .await
        .expect("it runs")
}

#[tokio::test]
async fn a_named_successor_is_linked_with_at_once_and_the_old_leader_is_heard_no_more() {
    let credentials = Credentials::ephemeral().expect("certificates");
    let (old, new) = (
        TestLeader::start(&credentials),
        TestLeader::start(&credentials),
    );
    let (tell, leaders) = watch::channel(None);
    let mut seen = linked(&credentials, watched(leaders));

    tell.send_replace(known(3, &old));
    let mut with_old = old.accept(old.registering().await, 3).await;
    assert_eq!(next(&mut seen).await, Seen::Connected(old.address()));
    with_old.say(Command::Drained).await;
    assert_eq!(next(&mut seen).await, Seen::Heard(Epoch(3)));

    // The registry is away for a while, and then names a leader that was succeeded: neither changes anything.
    tell.send_replace(None);
    tell.send_replace(known(2, &new));
    with_old.say(Command::Drained).await;
    assert_eq!(next(&mut seen).await, Seen::Heard(Epoch(3)));

    // The old leader lives and has not noticed anything.
    tell.send_replace(known(5, &new));
    let with_new = new.accept(new.registering().await, 5).await;
    assert!(with_new.is_linked());
    with_old.say(Command::Drained).await;
    assert_eq!(next(&mut seen).await, Seen::Lost);
    assert_eq!(next(&mut seen).await, Seen::Connected(new.address()));
    assert_eq!(with_old.next().await, None, "its connection is closed");
}

#[tokio::test]
async fn whoever_speaks_for_an_older_epoch_than_the_registry_names_is_not_linked_with() {
    let credentials = Credentials::ephemeral().expect("certificates");
    let leader = TestLeader::start(&credentials);
    let (_tell, leaders) = watch::channel(known(5, &leader));
    let mut seen = linked(&credentials, watched(leaders));
    // It stood for election again at the same address, and the call reached the end of its former life.
    let stale = leader.accept(leader.registering().await, 4).await;
    assert!(!stale.is_linked());
    let fresh = leader.accept(leader.registering().await, 5).await;
    assert!(fresh.is_linked());
    assert_eq!(next(&mut seen).await, Seen::Connected(leader.address()));
}

#[tokio::test]
async fn without_a_registry_the_greatest_epoch_met_decides() {
    let credentials = Credentials::ephemeral().expect("certificates");
    let (one, other) = (
        TestLeader::start(&credentials),
        TestLeader::start(&credentials),
    );
    let addresses = [&one, &other].map(|leader| leader.address().to_string());
    let mut seen = linked(&credentials, Leaders::Fixed(addresses.into()));
    let link = one.accept(one.registering().await, 7).await;
    assert_eq!(next(&mut seen).await, Seen::Connected(one.address()));
    link.close();
    assert_eq!(next(&mut seen).await, Seen::Lost);
    let stale = other.accept(other.registering().await, 6).await;
    assert!(!stale.is_linked());
    let again = one.accept(one.registering().await, 7).await;
    assert!(again.is_linked());
    assert_eq!(next(&mut seen).await, Seen::Connected(one.address()));
}

#[tokio::test]
async fn a_call_that_hangs_is_given_up_for_the_successor() {
    let credentials = Credentials::ephemeral().expect("certificates");
    let (frozen, new) = (
        TestLeader::start(&credentials),
        TestLeader::start(&credentials),
    );
    let (tell, leaders) = watch::channel(known(1, &frozen));
    let mut seen = linked(&credentials, watched(leaders));
    let unanswered = frozen.registering().await;
    tell.send_replace(known(2, &new));
    let link = new.accept(new.registering().await, 2).await;
    assert!(link.is_linked());
    assert_eq!(next(&mut seen).await, Seen::Connected(new.address()));
    let too_late = frozen.accept(unanswered, 1).await;
    assert!(!too_late.is_linked());
}
