//! What the long-running verbs share: configuration, logging, credentials, signals, and the file that tells which
//! addresses were bound.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;

use serde::Serialize;
use tidemill_config::{Config, Log, LogFormat};
use tidemill_transport::Credentials;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::arguments::Process;
use crate::failure::{Exit, Failure};

/// The file in a process's data directory that tells where it listens, for tools and tests that let it choose ports.
const ADDRESSES_FILE: &str = "addresses.json";

/// The target of what the client of ZooKeeper logs.
const ZOOKEEPER_CLIENT: &str = "zookeeper_client";

/// The configuration that the command line asks for.
pub(crate) fn load_config(process: &Process) -> Result<Config, Failure> {
    Config::load(process.config.as_deref(), environment(), &process.settings).map_err(|error| {
        Failure::of(Exit::Usage, &error)
            .help("docs/configuration.md and conf/tidemill.toml describe every setting")
    })
}

/// The variables that are text; no setting can come from others.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Begins to log to standard error.
pub(crate) fn start_logging(log: &Log) -> Result<(), Failure> {
    let wrong = |error: &dyn std::error::Error| {
        Failure::because(Exit::Usage, "log.level cannot be used", error)
    };
    let filter = EnvFilter::try_new(log_filter(&log.level)).map_err(|error| wrong(&error))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Failure::because(Exit::Failed, "logging cannot be started", &*error))
}

/// What is logged at this level. The client of ZooKeeper warns of each connection that fails, several times a second
/// while its servers are away; the registry says that once. Whoever names the client's target hears it all.
fn log_filter(level: &str) -> String {
    if level == "off" || level.contains(ZOOKEEPER_CLIENT) {
        return level.to_owned();
    }
    format!("{level},{ZOOKEEPER_CLIENT}=error")
}

/// The runtime of this program's own few tasks; the processes' work has threads of its own.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("tidemill")
        .enable_all()
        .build()
        .map_err(|error| Failure::because(Exit::Failed, "the system gives no threads", &error))
}

/// This process's certificate from the configured directory; `kind` names it when the configuration does not.
pub(crate) fn credentials(config: &Config, kind: &str) -> Result<Credentials, Failure> {
    let directory = config.tls.dir.as_path();
    let name = config.tls.name.as_deref().unwrap_or(kind);
    if !directory.is_dir() {
        let message = format!(
            "there is no directory {} (tls.dir) with this cluster's certificates",
            directory.display()
        );
        return Err(Failure::new(Exit::Failed, message).help(format!(
            "make them with `tidemill certs --out {}`, or name another directory with --set tls.dir=DIR; on one machine `tidemill local` needs none",
            directory.display()
        )));
    }
    Credentials::load(directory, name).map_err(|error| {
        Failure::of(Exit::Failed, &error).help(format!(
            "this process is called `{name}`: `tidemill certs --out {} {name}` makes its certificate, --set tls.name=NAME chooses another",
            directory.display()
        ))
    })
}

/// The signals that end a process.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over from the system. To be called inside a runtime.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::because(Exit::Failed, "signals cannot be received", &error)
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Where the first signal arrives. A second one ends the process at once: whoever asks twice does not want to wait for an
/// orderly end either.
pub(crate) fn interrupts(runtime: &Runtime) -> Result<mpsc::Receiver<()>, Failure> {
    let (interrupt, interrupts) = mpsc::channel();
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    runtime.spawn(async move {
        signals.next().await;
        let _ = interrupt.send(());
        signals.next().await;
        std::process::exit(Exit::Interrupted as i32);
    });
    Ok(interrupts)
}

/// Writes where a process listens, whole or not at all.
pub(crate) fn write_addresses(data_dir: &Path, addresses: &impl Serialize) -> Result<(), Failure> {
    let path = data_dir.join(ADDRESSES_FILE);
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
        serde_json::to_writer_pretty(&mut file, addresses)?;
        file.write_all(b"\n")?;
        file.persist(&path)?;
        // Whoever may list the directory may know the ports; temporary files are private otherwise.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
    };
    write().map_err(|error| {
        Failure::because(
            Exit::Failed,
            format!("{} cannot be written", path.display()),
            &error,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::Output;
    use serde_json::json;

    #[test]
    fn addresses_replace_those_of_an_earlier_life() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for port in [1, 2] {
            write_addresses(
                directory.path(),
                &json!({ "rest_address": format!("127.0.0.1:{port}") }),
            )
            .expect("a writable directory");
        }
        let text = fs::read_to_string(directory.path().join(ADDRESSES_FILE)).expect("a file");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["rest_address"], "127.0.0.1:2");
        assert_eq!(
            fs::read_dir(directory.path()).expect("a directory").count(),
            1
        );
    }

    #[test]
    fn the_client_of_zookeeper_is_quiet_unless_it_is_asked() {
        for (level, filter) in [
            ("info", "info,zookeeper_client=error"),
            ("off", "off"),
            (
                "warn,tidemill_transport=debug",
                "warn,tidemill_transport=debug,zookeeper_client=error",
            ),
            ("info,zookeeper_client=debug", "info,zookeeper_client=debug"),
        ] {
            assert_eq!(log_filter(level), filter);
            EnvFilter::try_new(log_filter(level)).expect("a filter");
        }
    }

    #[test]
    fn missing_certificates_are_explained() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config::default();
        let text = |config: &Config| {
            credentials(config, "jobmanager")
                .unwrap_err()
                .rendered(Output::Text)
        };
        config.tls.dir = directory.path().join("none");
        assert!(text(&config).contains("tidemill certs --out"));
        config.tls.dir = directory.path().to_owned();
        let missing = text(&config);
        assert!(
            missing.contains("`jobmanager`") && missing.contains("ca.pem"),
            "{missing}"
        );
    }

    #[test]
    fn a_bad_setting_is_a_usage_error() {
        let process = Process {
            config: None,
            settings: vec!["taskmanager.slot=1".to_owned()],
        };
        let failure = load_config(&process).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure
                .rendered(Output::Text)
                .contains("did you mean `taskmanager.slots`")
        );
    }
}
