//! ZooKeeper servers on this machine, for tests: real ones, which can be killed, frozen, thawed and restarted each. It
//! never configures one for production: what it writes does not survive a crash of the machine.
//!
//! Nouns: [`Ensemble`] (servers that know each other, or one alone), [`Options`], [`Mode`] (what a server says it is).
//!
//! Debian's packages `default-jre-headless` and `libzookeeper-java` are enough. `TIDEMILL_ZOOKEEPER_CLASSPATH` names
//! other jars, and `TIDEMILL_JAVA` another Java.
//!
//! ```no_run
//! use tidemill_zookeeper_ensemble::{Ensemble, Mode, Options};
//!
//! let ensemble = Ensemble::start(Options::with_servers(3))?;
//! let leader = ensemble.leader().expect("an ensemble that has started has a leader");
//! ensemble.kill(leader)?;
//! ensemble.wait_for_leader()?;
//! ensemble.restart(leader)?;
//! assert_eq!(ensemble.mode(leader), Some(Mode::Follower));
//! # Ok::<(), tidemill_zookeeper_ensemble::EnsembleError>(())
//! ```

mod ensemble;
mod java;
mod ports;
mod server;
pub mod signal;

use std::path::PathBuf;
use std::time::Duration;

pub use ensemble::Ensemble;
pub use server::Mode;

/// What an ensemble is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where each server runs; their number is the ensemble's.
    pub places: Vec<Place>,
    /// ZooKeeper's unit of time, in milliseconds: sessions last from 2 ticks on.
    pub tick_ms: u32,
    /// The longest session that is granted.
    pub session_timeout_max: Duration,
    /// After this time a server that does not hear the others gives up leading or following.
    pub sync_limit: Duration,
    /// TLS for clients, on a second port of each server.
    pub tls: Option<ServerTls>,
    /// More of Java's system properties, such as `zookeeper.DigestAuthenticationProvider.superDigest`.
    pub properties: Vec<(String, String)>,
    /// How long a server may take until it serves.
    pub start_timeout: Duration,
}

/// Where a server runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// The address that it listens on and is reached at.
    pub address: std::net::IpAddr,
    /// What its command begins with, such as `ip netns exec zk1`; it must become the server by `exec`.
    pub launcher: Vec<String>,
}

/// Files in PEM format for servers that speak TLS.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// The key and then the certificate, in one file whose name ends with `.pem`.
    pub key_store: PathBuf,
    /// The authority of clients, in a file whose name ends with `.pem`.
    pub trust_store: PathBuf,
    /// Whether clients must show a certificate.
    pub client_certificates: bool,
}

impl Options {
    /// That many servers on loopback, with a tick of 200 ms.
    #[must_use]
    pub fn with_servers(number: usize) -> Self {
        let place = Place {
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            launcher: Vec::new(),
        };
        Self {
            places: vec![place; number],
            tick_ms: 200,
            session_timeout_max: Duration::from_secs(60),
            sync_limit: Duration::from_secs(2),
            tls: None,
            properties: Vec::new(),
            start_timeout: Duration::from_secs(60),
        }
    }
}

/// Looks whether this machine has what servers need. It starts none.
///
/// # Errors
/// When Java or ZooKeeper is missing; the error says what to install.
pub fn check_installation() -> Result<(), EnsembleError> {
    java::Java::find()?.check()
}

/// Why servers do not run.
#[derive(Debug, thiserror::Error)]
pub enum EnsembleError {
    /// There is no Java.
    #[error(
        "cannot run `{java}`: install Java (`apt-get install default-jre-headless`) or set TIDEMILL_JAVA"
    )]
    NoJava {
        /// What was to be run.
        java: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// There is no ZooKeeper.
    #[error(
        "there is no {}: install ZooKeeper (`apt-get install libzookeeper-java libslf4j-java`) or set \
         TIDEMILL_ZOOKEEPER_CLASSPATH to its jars",
        jar.display()
    )]
    NoZooKeeper {
        /// What was looked for.
        jar: PathBuf,
    },
    /// No port is free.
    #[error("no TCP port is free at {address}: does the machine have that address?")]
    NoPort {
        /// Where.
        address: std::net::IpAddr,
    },
    /// Its directory cannot be used.
    #[error("cannot write {}", path.display())]
    Directory {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It ended, or does not serve in time.
    #[error("server {server} of the ensemble {what}; the end of its log:\n{log}")]
    NotServing {
        /// Its index.
        server: usize,
        /// What it does instead.
        what: String,
        /// Its last lines.
        log: String,
    },
    /// Nobody was elected.
    #[error("the ensemble has no leader after {waited:?}: are most of its servers running?")]
    NoLeader {
        /// How long was waited.
        waited: Duration,
    },
    /// A signal cannot be sent: the server does not run.
    #[error("server {server} cannot be {what}: it does not run")]
    NotRunning {
        /// Its index.
        server: usize,
        /// What was asked.
        what: &'static str,
    },
}
