//! What a submission asks before a job is accepted. [`check_source`] and [`check_sink`] look at options alone;
//! [`preflight`] and [`sink_directory`] look at this machine's files too. Nothing is created.

use std::path::PathBuf;

use tidemill_abi::ConnectorSpec;

use crate::options::{SinkOptions, SourceOptions};
use crate::path::{canonical_directory, list_input};
use crate::{OptionError, SourceError};

/// What the execution graph must know of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceKind {
    /// Whether its splits come from an [`crate::Enumerator`], which needs a task of its own upstream.
    pub needs_enumerator: bool,
}

/// Checks a source's name and options.
///
/// # Errors
/// When the connector or an option is unknown, a required option is missing, or a value does not parse.
pub fn check_source(spec: &ConnectorSpec) -> Result<SourceKind, OptionError> {
    let needs_enumerator = match SourceOptions::parse(spec)? {
        SourceOptions::Files(_) => true,
        SourceOptions::Generator(_) => false,
    };
    Ok(SourceKind { needs_enumerator })
}

/// Checks a sink's name and options.
///
/// # Errors
/// When the connector or an option is unknown, a required option is missing, or a value does not parse.
pub fn check_sink(spec: &ConnectorSpec) -> Result<(), OptionError> {
    SinkOptions::parse(spec).map(|_| ())
}

/// The directory into which a sink writes, in its one absolute spelling, so that two jobs that would write to one
/// directory can be told. `None` for sinks that write to none, and for options that [`check_sink`] refuses.
#[must_use]
pub fn sink_directory(spec: &ConnectorSpec) -> Option<PathBuf> {
    match SinkOptions::parse(spec) {
        Ok(SinkOptions::Files(options)) => Some(canonical_directory(&options.path)),
        Ok(SinkOptions::Socket(_) | SinkOptions::Print | SinkOptions::Discard) | Err(_) => None,
    }
}

/// Looks on this machine for the input that a source names, so that a misspelt path is refused at submission.
///
/// # Errors
/// When the options are wrong, or the path does not exist, matches nothing or cannot be listed.
pub fn preflight(spec: &ConnectorSpec) -> Result<(), SourceError> {
    match SourceOptions::parse(spec)? {
        SourceOptions::Files(options) => list_input(&options.path).map(|_| ()),
        SourceOptions::Generator(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(path: &str) -> ConnectorSpec {
        ConnectorSpec {
            kind: "files".into(),
            options: [("path".into(), path.into())].into(),
        }
    }

    fn plain(kind: &str) -> ConnectorSpec {
        ConnectorSpec {
            kind: kind.into(),
            options: [].into(),
        }
    }

    #[test]
    fn sources_say_whether_they_need_an_enumerator() {
        assert!(check_source(&files("/in")).expect("valid").needs_enumerator);
        assert!(
            !check_source(&plain("generator"))
                .expect("valid")
                .needs_enumerator
        );
        assert!(check_source(&plain("print")).is_err());
    }

    #[test]
    fn only_file_sinks_have_a_directory() {
        assert_eq!(
            sink_directory(&files("/nonexistent/a/../b")),
            Some("/nonexistent/b".into())
        );
        assert_eq!(sink_directory(&plain("print")), None);
        assert_eq!(sink_directory(&plain("discard")), None);
        assert_eq!(sink_directory(&plain("files")), None);
    }

    #[test]
    fn preflight_finds_a_missing_input() {
        preflight(&files("/")).expect("the root exists");
        preflight(&plain("generator")).expect("nothing is needed");
        let message = preflight(&files("/nonexistent/input"))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`/nonexistent/input` does not exist"),
            "{message}"
        );
    }
}
