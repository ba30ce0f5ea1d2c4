//! This test binary run again as another process, so that there is something to kill. The parent names a role; the
//! child tells what happens to it in lines that begin with a mark.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidemill_transport::{Credentials, Endpoint, TransportOptions, connect_liveness};

use crate::PATIENCE;
use crate::netns;

const ROLE: &str = "TIDEMILL_TRANSPORT_TEST_ROLE";
const MARK: &str = "@@ ";

/// A running child. Dropped, it is killed.
pub(crate) struct Role {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Role {
    /// Starts this binary in a role; in a network namespace, if one is named.
    pub(crate) fn start(namespace: Option<&str>, role: &[&str]) -> Self {
        let this = std::env::current_exe().expect("this binary has a path");
        let mut command = match namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(this);
                command
            }
            None => Command::new(this),
        };
        let mut process = command
            .args([
                "--exact",
                "child::plays_its_role",
                "--ignored",
                "--nocapture",
            ])
            .env(ROLE, role.join(" "))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let stdout = process.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The test harness writes on the same lines.
                if let Some((_, line)) = line.split_once(MARK) {
                    sender.send(line.to_owned()).ok();
                }
            }
        });
        Self { process, lines }
    }

    /// The next line that the child tells.
    pub(crate) fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("the child tells something in time")
    }

    /// Kills the child as `kill -9` does; when it was, in nanoseconds since the Unix epoch.
    pub(crate) fn kill(&mut self) -> u64 {
        let at = now_ns();
        self.process.kill().expect("killed");
        at
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // It may have ended on its own.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Nanoseconds since the Unix epoch: one clock for all processes of a machine.
pub(crate) fn now_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from(now.as_nanos()).expect("before 2554")
}

pub(crate) fn tell(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{line}").expect("the parent listens");
    stdout.flush().expect("the parent listens");
}

#[test]
#[ignore = "runs as a child process of other tests"]
fn plays_its_role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let words: Vec<_> = role.split(' ').collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match words.as_slice() {
            ["alive", address, token] => stay_alive(address, token).await,
            ["leader", directory, address] => lead(directory, address).await,
            ["netns-leader", directory, address] => netns::lead(directory, address).await,
            ["netns-worker", directory, address, leader] => {
                netns::work(directory, address, leader).await;
            }
            other => panic!("no such role: {other:?}"),
        }
    });
}

/// Shows a token and stays until it is killed or the other side is lost.
async fn stay_alive(address: &str, token: &str) {
    let address: SocketAddr = address.parse().expect("an address");
    let token = u128::from_str_radix(token, 16)
        .expect("a token")
        .to_be_bytes();
    let mut liveness = connect_liveness(address, token).await.expect("accepted");
    tell("connected");
    tell(&format!("lost {}", liveness.lost().await));
}

/// Accepts connections until it is killed.
async fn lead(directory: &str, address: &str) {
    let credentials =
        Credentials::load(directory.as_ref(), "leader").expect("written by the parent");
    let address = address.parse().expect("an address");
    let options = TransportOptions {
        idle_timeout: Duration::from_secs(60),
        ..TransportOptions::default()
    };
    let endpoint = Endpoint::bind(address, &credentials, options).expect("bound");
    tell(&endpoint.local_address().to_string());
    let mut accepted = Vec::new();
    while let Some(connection) = endpoint.accept().await {
        accepted.push(connection);
    }
}
