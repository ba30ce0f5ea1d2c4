//! Configuration: one [`Config`] for both kinds of process, layered from defaults, a file, the environment and overrides.
//!
//! It never keeps a global: a `Config` is made once in `main` and passed. It opens the one file that it is told to, and
//! no socket; whether an address can be bound or a directory written is found by who does it.
//!
//! Nouns: [`Config`] and its sections; an [`Origin`] (where a value came from, for messages).
//!
//! ```
//! use tidemill_config::Config;
//!
//! let environment = [("TIDEMILL_TASKMANAGER_SLOTS".to_owned(), "2".to_owned())];
//! let config = Config::load(None, environment, &["taskmanager.slots=4".to_owned()])?;
//! assert_eq!(config.taskmanager.slots(), 4);
//! # Ok::<(), tidemill_config::ConfigError>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod layers;
mod nearest;
mod secret;
mod sections;
mod validate;

pub use error::{ConfigError, Origin};
pub use nearest::nearest;
pub use secret::Secret;
pub use sections::{
    Checkpoints, Cluster, Config, Coordination, JobManager, Log, LogFormat, Recovery, Restart,
    RestartStrategyName, TaskManager, Tls, ZooKeeper, ZooKeeperAcl,
};

/// The sample configuration file: every key, commented out, with its default.
#[must_use]
pub fn sample() -> String {
    let mut text = String::with_capacity(sections::DEFAULTS.len() + 256);
    for line in sections::DEFAULTS.lines() {
        let is_setting = line.contains(" = ") && !line.starts_with('#');
        text.push_str(if is_setting { "#" } else { "" });
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Every key as `section.key`, in the order of the sample file.
#[must_use]
pub fn keys() -> Vec<String> {
    let mut section = "";
    let mut keys = Vec::new();
    for line in sections::DEFAULTS.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push(format!("{section}.{key}"));
        }
    }
    keys
}
