//! Servers that know each other. All of them end with the value, however a test ends.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::java::Java;
use crate::server::{Mode, Server};
use crate::{EnsembleError, Options, ports};

/// Between two looks at who leads.
const PAUSE: Duration = Duration::from_millis(20);

/// ZooKeeper servers that know each other, or one alone. Servers go by their index, from 0.
#[derive(Debug)]
pub struct Ensemble {
    java: Java,
    servers: Vec<Mutex<Server>>,
    start_timeout: Duration,
    /// Goes last: the servers write into it.
    _directory: TempDir,
}

/// What a server listens on.
struct Ports {
    address: IpAddr,
    clients: u16,
    tls_clients: u16,
    quorum: u16,
    election: u16,
}

impl Ensemble {
    /// Starts all servers and waits until each of them serves.
    ///
    /// # Errors
    /// When Java or ZooKeeper is not there, or a server does not come up.
    pub fn start(options: Options) -> Result<Self, EnsembleError> {
        let java = Java::find()?;
        let directory = TempDir::with_prefix("tidemill-zookeeper-").map_err(|source| {
            let path = std::env::temp_dir();
            EnsembleError::Directory { path, source }
        })?;
        // All are held until the last is found.
        let mut held = Vec::new();
        let mut ports = Vec::new();
        for (index, place) in options.places.iter().enumerate() {
            let [clients, tls_clients, quorum, election] = if place.launcher.is_empty() {
                let free = ports::free(place.address)?;
                let numbers = free
                    .each_ref()
                    .map(|port| port.local_addr().map_or(0, |it| it.port()));
                held.push(free);
                numbers
            } else {
                ports::fixed(index)
            };
            ports.push(Ports {
                address: place.address,
                clients,
                tls_clients,
                quorum,
                election,
            });
        }
        drop(held);
        let mut servers = Vec::new();
        for (index, place) in options.places.iter().enumerate() {
            let own = &ports[index];
            servers.push(Mutex::new(Server::prepare(
                index,
                place.clone(),
                SocketAddr::new(own.address, own.clients),
                options
                    .tls
                    .as_ref()
                    .map(|_| SocketAddr::new(own.address, own.tls_clients)),
                directory.path().join((index + 1).to_string()),
                &configuration(&options, &ports, index),
                properties(&options),
            )?));
        }
        let ensemble = Self {
            java,
            servers,
            start_timeout: options.start_timeout,
            _directory: directory,
        };
        ensemble.start_all()?;
        Ok(ensemble)
    }

    /// How many servers there are, running or not.
    #[must_use]
    pub fn size(&self) -> usize {
        self.servers.len()
    }

    /// Where clients reach the servers: `host:port` each.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        (0..self.size())
            .map(|index| self.server(index).clients.to_string())
            .collect()
    }

    /// Where clients reach them with TLS; empty without.
    #[must_use]
    pub fn tls_addresses(&self) -> Vec<String> {
        (0..self.size())
            .filter_map(|index| self.server(index).tls_clients)
            .map(|address| address.to_string())
            .collect()
    }

    /// What a server says it is; `None` when it does not serve.
    #[must_use]
    pub fn mode(&self, server: usize) -> Option<Mode> {
        self.server(server).mode()
    }

    /// What a server answers to one of ZooKeeper's four-letter words, `ruok` or `srvr`.
    #[must_use]
    pub fn ask(&self, server: usize, word: &str) -> Option<String> {
        self.server(server).ask(word)
    }

    /// The id of a server's process, while it runs.
    #[must_use]
    pub fn process_id(&self, server: usize) -> Option<u32> {
        self.server(server).process_id()
    }

    /// The end of a server's log.
    #[must_use]
    pub fn log_end(&self, server: usize) -> String {
        self.server(server).log_end()
    }

    /// Which server leads, or is alone.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        (0..self.size())
            .find(|index| matches!(self.mode(*index), Some(Mode::Leader | Mode::Standalone)))
    }

    /// The servers that follow.
    #[must_use]
    pub fn followers(&self) -> Vec<usize> {
        (0..self.size())
            .filter(|index| self.mode(*index) == Some(Mode::Follower))
            .collect()
    }

    /// Waits until one leads that serves.
    ///
    /// # Errors
    /// When none does in time.
    pub fn wait_for_leader(&self) -> Result<usize, EnsembleError> {
        let started = Instant::now();
        loop {
            if let Some(leader) = self.leader() {
                return Ok(leader);
            }
            let waited = started.elapsed();
            if waited > self.start_timeout {
                return Err(EnsembleError::NoLeader { waited });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Kills a server as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, server: usize) -> Result<(), EnsembleError> {
        let mut running = self.server(server);
        if running.process_id().is_none() {
            let what = "killed";
            return Err(EnsembleError::NotRunning { server, what });
        }
        running.kill();
        Ok(())
    }

    /// Kills all servers that run.
    pub fn kill_all(&self) {
        for index in 0..self.size() {
            self.server(index).kill();
        }
    }

    /// Freezes a server (SIGSTOP): its connections stay, and nothing is answered.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self, server: usize) -> Result<(), EnsembleError> {
        self.server(server).set_frozen(true)
    }

    /// Lets a frozen server go on (SIGCONT).
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self, server: usize) -> Result<(), EnsembleError> {
        self.server(server).set_frozen(false)
    }

    /// Starts a killed server again, with its data and its ports, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up: a server of an ensemble serves only with most of the others.
    pub fn restart(&self, server: usize) -> Result<Mode, EnsembleError> {
        let mut restarted = self.server(server);
        restarted.kill();
        restarted.launch(&self.java)?;
        restarted.wait(self.start_timeout)
    }

    /// Starts all servers that do not run, and waits until all serve.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start_all(&self) -> Result<(), EnsembleError> {
        for index in 0..self.size() {
            self.server(index).launch(&self.java)?;
        }
        for index in 0..self.size() {
            self.server(index).wait(self.start_timeout)?;
        }
        Ok(())
    }

    /// # Panics
    /// When there is no server of that index.
    fn server(&self, index: usize) -> MutexGuard<'_, Server> {
        let server = &self.servers[index];
        server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server's `zoo.cfg`, but for its data directory.
fn configuration(options: &Options, ports: &[Ports], index: usize) -> String {
    let own = &ports[index];
    let tick = options.tick_ms.max(1);
    let ticks = |time: Duration| (time.as_millis() / u128::from(tick)).max(1);
    let mut text = format!(
        "tickTime={tick}\ninitLimit={}\nsyncLimit={}\nmaxSessionTimeout={}\nmaxClientCnxns=0\n\
         clientPort={}\nclientPortAddress={}\nadmin.enableServer=false\n4lw.commands.whitelist=ruok,srvr\n",
        ticks(Duration::from_secs(10)),
        ticks(options.sync_limit),
        options.session_timeout_max.as_millis(),
        own.clients,
        own.address,
    );
    if options.tls.is_some() {
        let (port, address) = (own.tls_clients, own.address);
        let _ = write!(
            text,
            "secureClientPort={port}\nsecureClientPortAddress={address}\n"
        );
    }
    if ports.len() > 1 {
        for (number, server) in ports.iter().enumerate() {
            let host = match server.address {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let (quorum, election) = (server.quorum, server.election);
            let _ = writeln!(text, "server.{}={host}:{quorum}:{election}", number + 1);
        }
    }
    text
}

fn properties(options: &Options) -> Vec<(String, String)> {
    let mut properties = options.properties.clone();
    if let Some(tls) = &options.tls {
        let client_authentication = if tls.client_certificates {
            "need"
        } else {
            "none"
        };
        let factory = "org.apache.zookeeper.server.NettyServerCnxnFactory";
        for (name, value) in [
            ("serverCnxnFactory", factory.to_owned()),
            ("ssl.keyStore.location", tls.key_store.display().to_string()),
            ("ssl.keyStore.type", "PEM".into()),
            (
                "ssl.trustStore.location",
                tls.trust_store.display().to_string(),
            ),
            ("ssl.trustStore.type", "PEM".into()),
            ("ssl.clientAuth", client_authentication.into()),
        ] {
            properties.push((format!("zookeeper.{name}"), value));
        }
    }
    properties
}
