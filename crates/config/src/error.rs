//! What can be wrong with a configuration, and where it was said.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The embedded defaults.
    Default,
    /// A configuration file.
    File {
        /// Which.
        path: PathBuf,
        /// The line of the key, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// `--set` on the command line.
    Override {
        /// The argument's text.
        text: String,
    },
    /// An option of a job's submission.
    Submission,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Override { text } => write!(f, "--set {text}"),
            Self::Submission => f.write_str("the submission"),
        }
    }
}

/// Why a configuration was refused. Each message names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("the configuration file {} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not valid TOML: {message}", path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// The parser's words, with the line.
        message: String,
    },
    /// An override without an equals sign.
    #[error("--set {text} is not of the form section.key=value")]
    OverrideForm {
        /// The argument's text.
        text: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no setting `{key}`{}", did_you_mean(.suggestion))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// What was written.
        key: String,
        /// The nearest that exists.
        suggestion: Option<String>,
    },
    /// A value of the wrong type.
    #[error("{origin}: `{key}` must be {expected}, but it is {found}")]
    Type {
        /// Where.
        origin: Origin,
        /// Which key.
        key: String,
        /// The type it must have.
        expected: &'static str,
        /// The type it has, and the value.
        found: String,
    },
    /// A value of the right type that cannot be.
    #[error("{origin}: `{key}` cannot be used: {reason}")]
    Value {
        /// Where.
        origin: Origin,
        /// Which key.
        key: String,
        /// Why, and what can.
        reason: String,
    },
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion
        .as_ref()
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default()
}
