//! Certificates of another cluster, of no cluster, and of yesterday: refused on both sides, by name, with the remedy.

use std::sync::{Arc, Mutex};

use tidemill_transport::{ClusterCa, ConnectError, Credentials};
use tracing_subscriber::fmt::MakeWriter;

use crate::{control_pair, endpoint, soon};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .expect("not poisoned")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Captured {
    /// Captures what this thread logs, and so all of a current-thread runtime.
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let captured = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(captured.clone())
            .with_ansi(false)
            .finish();
        (captured, tracing::subscriber::set_default(subscriber))
    }

    async fn until(&self, text: &str) -> String {
        soon("a log line", async {
            loop {
                let log =
                    String::from_utf8_lossy(&self.0.lock().expect("not poisoned")).into_owned();
                if let Some(line) = log.lines().find(|line| line.contains(text)) {
                    return line.to_owned();
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

/// What a directory holds whose `ca.pem` is of one cluster and whose node certificate is of another.
fn mixed(trusted: &ClusterCa, issuer: &ClusterCa) -> Credentials {
    let directory = tempfile::tempdir().expect("a directory");
    trusted.write(directory.path()).expect("written");
    issuer
        .issue("stray")
        .expect("issued")
        .write(directory.path())
        .expect("written");
    Credentials::load(directory.path(), "stray").expect("all files parse")
}

fn of(ca: &ClusterCa, name: &str) -> Credentials {
    Credentials::new(ca, &ca.issue(name).expect("issued")).expect("usable")
}

async fn assert_refused(server: &Credentials, client: &Credentials) {
    let (log, _guard) = Captured::begin();
    let (leader, stray) = (endpoint(server), endpoint(client));
    let error = soon("the refusal", stray.connect_control(leader.local_address()))
        .await
        .expect_err("a foreign certificate");
    assert!(matches!(error, ConnectError::Foreign { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&leader.local_address().to_string()), "{text}");
    assert!(text.contains("tidemill certs"), "{text}");

    // The listener's side names the stranger's address and the same remedy.
    let line = log.until(&format!("peer={}", stray.local_address())).await;
    assert!(
        line.contains("WARN") && line.contains("tidemill certs"),
        "{line}"
    );

    // The leader goes on with its own.
    let own = endpoint(server);
    control_pair(&own, &leader).await;
}

#[tokio::test]
async fn a_process_of_another_cluster_is_refused_by_both_sides() {
    let (ours, theirs) = (
        ClusterCa::generate().expect("a CA"),
        ClusterCa::generate().expect("a CA"),
    );
    assert_refused(&of(&ours, "leader"), &of(&theirs, "worker")).await;
}

#[tokio::test]
async fn a_client_certificate_of_another_cluster_is_refused_by_the_server() {
    let (ours, theirs) = (
        ClusterCa::generate().expect("a CA"),
        ClusterCa::generate().expect("a CA"),
    );
    assert_refused(&of(&ours, "leader"), &mixed(&ours, &theirs)).await;
}

#[tokio::test]
async fn a_server_certificate_of_another_cluster_is_refused_by_the_client() {
    let (ours, theirs) = (
        ClusterCa::generate().expect("a CA"),
        ClusterCa::generate().expect("a CA"),
    );
    let (log, _guard) = Captured::begin();
    let (stray, worker) = (
        endpoint(&mixed(&ours, &theirs)),
        endpoint(&of(&ours, "worker")),
    );
    let error = soon("the refusal", worker.connect_control(stray.local_address()))
        .await
        .expect_err("a foreign certificate");
    let ConnectError::Foreign { reason, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(reason.contains("this process refuses"), "{reason}");
    let line = log.until("the other refuses").await;
    assert!(
        line.contains(&format!("peer={}", worker.local_address())),
        "{line}"
    );
}
