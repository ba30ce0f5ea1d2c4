//! One server: its files, its process, and what it says of itself. It never takes a process that runs for one that
//! serves.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::java::Java;
use crate::{EnsembleError, Place, signal};

/// How long a server may take to answer what it is.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// What a server says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It leads the ensemble.
    Leader,
    /// It follows.
    Follower,
    /// It is alone.
    Standalone,
}

/// One server of an ensemble.
#[derive(Debug)]
pub(crate) struct Server {
    index: usize,
    place: Place,
    pub(crate) clients: SocketAddr,
    pub(crate) tls_clients: Option<SocketAddr>,
    directory: PathBuf,
    properties: Vec<(String, String)>,
    process: Option<Child>,
    frozen: bool,
}

impl Server {
    /// Writes its files; it does not run yet. `configuration` is its `zoo.cfg` but for its own data directory.
    pub(crate) fn prepare(
        index: usize,
        place: Place,
        clients: SocketAddr,
        tls_clients: Option<SocketAddr>,
        directory: PathBuf,
        configuration: &str,
        properties: Vec<(String, String)>,
    ) -> Result<Self, EnsembleError> {
        let data = directory.join("data");
        let text = format!("{configuration}dataDir={}\n", data.display());
        fs::create_dir_all(&data).map_err(|source| unwritable(&data, source))?;
        write(&data.join("myid"), &format!("{}\n", index + 1))?;
        write(&directory.join("zoo.cfg"), &text)?;
        Ok(Self {
            index,
            place,
            clients,
            tls_clients,
            directory,
            properties,
            process: None,
            frozen: false,
        })
    }

    /// Starts the process, where there is none.
    pub(crate) fn launch(&mut self, java: &Java) -> Result<(), EnsembleError> {
        if self.process.is_some() {
            return Ok(());
        }
        let path = self.directory.join("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|source| unwritable(&path, source))?;
        let errors = log
            .try_clone()
            .map_err(|source| unwritable(&path, source))?;
        let launcher = &self.place.launcher;
        let mut command = java.server(launcher, &self.properties, &self.directory.join("zoo.cfg"));
        command
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let process = command
            .spawn()
            .map_err(|source| java.missing(launcher, source))?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until it serves.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<Mode, EnsembleError> {
        let started = Instant::now();
        loop {
            if let Some(mode) = self.mode() {
                return Ok(mode);
            }
            let ended = match &mut self.process {
                Some(process) => process.try_wait().ok().flatten(),
                None => return Err(self.not_running("waited for")),
            };
            let what = match ended {
                Some(status) => format!("has ended ({status})"),
                None if started.elapsed() > timeout => {
                    format!("does not serve after {timeout:?}")
                }
                None => {
                    thread::sleep(PAUSE);
                    continue;
                }
            };
            return Err(EnsembleError::NotServing {
                server: self.index,
                what,
                log: self.log_end(),
            });
        }
    }

    /// What it says it is; `None` when it does not serve.
    pub(crate) fn mode(&self) -> Option<Mode> {
        if self.process.is_none() || self.frozen {
            return None;
        }
        let answer = self.ask("srvr")?;
        let mode = answer
            .lines()
            .find_map(|line| line.strip_prefix("Mode: "))?;
        match mode.trim() {
            "leader" => Some(Mode::Leader),
            "follower" => Some(Mode::Follower),
            "standalone" => Some(Mode::Standalone),
            _ => None,
        }
    }

    /// What it answers to one of ZooKeeper's four-letter words.
    pub(crate) fn ask(&self, word: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.clients, ANSWER_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).ok()?;
        stream.write_all(word.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Ends it as `kill -9` does, and waits until it is gone. One that does not run is left so.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        self.frozen = false;
    }

    /// Stops it where it is, or lets it go on. It has stopped with all its threads when this returns.
    pub(crate) fn set_frozen(&mut self, frozen: bool) -> Result<(), EnsembleError> {
        let what = if frozen { "frozen" } else { "thawed" };
        let set = if frozen { signal::freeze } else { signal::thaw };
        let done = self.process.as_ref().is_some_and(|it| set(it).is_ok());
        if !done {
            return Err(self.not_running(what));
        }
        self.frozen = frozen;
        Ok(())
    }

    /// The id of its process, while it runs.
    pub(crate) fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    fn not_running(&self, what: &'static str) -> EnsembleError {
        EnsembleError::NotRunning {
            server: self.index,
            what,
        }
    }

    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(self.directory.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn write(path: &Path, text: &str) -> Result<(), EnsembleError> {
    fs::write(path, text).map_err(|source| unwritable(path, source))
}

fn unwritable(path: &Path, source: std::io::Error) -> EnsembleError {
    EnsembleError::Directory {
        path: path.to_owned(),
        source,
    }
}
