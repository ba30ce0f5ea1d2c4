//! Options of a connector as text, and their parsed forms. Every option must be known, and every value must parse; a
//! mistake is answered with the nearest name or the expected form. Nothing here touches a file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tidemill_abi::ConnectorSpec;

use crate::path::parse_path;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The most that a split is when its size is not given.
pub(crate) const SPLIT_DEFAULT_MAX_BYTES: u64 = 16 * MIB;
/// The least that a split is when its size is not given.
pub(crate) const SPLIT_DEFAULT_MIN_BYTES: u64 = 64 * KIB;
const LINE_DEFAULT_MAX_BYTES: u64 = 16 * MIB;
const ROLL_DEFAULT_BYTES: u64 = 128 * MIB;
const SOCKET_DEFAULT_TIMEOUT_MS: u64 = 10_000;

const SOURCES: [&str; 2] = ["files", "generator"];
const SINKS: [&str; 4] = ["files", "socket", "print", "discard"];

/// A connector or one of its options is not what a submission may ask for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No connector has this name.
    #[error(
        "there is no {role} `{kind}`{}; there are: {}",
        DidYouMean(nearest),
        List(known)
    )]
    UnknownConnector {
        /// `source` or `sink`.
        role: &'static str,
        /// The unknown name.
        kind: String,
        /// The known name that is most like it, if one is.
        nearest: Option<&'static str>,
        /// Every known name.
        known: &'static [&'static str],
    },
    /// The connector has no such option.
    #[error(
        "the {role} `{connector}` has no option `{option}`{}; it has: {}",
        DidYouMean(nearest),
        List(known)
    )]
    UnknownOption {
        /// `source` or `sink`.
        role: &'static str,
        /// The connector.
        connector: String,
        /// The unknown name.
        option: String,
        /// The known name that is most like it, if one is.
        nearest: Option<&'static str>,
        /// Every known name.
        known: &'static [&'static str],
    },
    /// A required option is not given.
    #[error("the {role} `{connector}` needs the option `{option}`")]
    Missing {
        /// `source` or `sink`.
        role: &'static str,
        /// The connector.
        connector: String,
        /// The option.
        option: &'static str,
    },
    /// A value is not what its option takes.
    #[error("the {role} `{connector}`: option `{option}` is `{value}`, expected {expected}")]
    WrongValue {
        /// `source` or `sink`.
        role: &'static str,
        /// The connector.
        connector: String,
        /// The option.
        option: &'static str,
        /// The value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

struct DidYouMean<'a>(&'a Option<&'static str>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, ": did you mean `{name}`?"),
            None => Ok(()),
        }
    }
}

struct List<'a>(&'a &'static [&'static str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, name) in self.0.iter().enumerate() {
            write!(f, "{}`{name}`", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A source connector with its options, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SourceOptions {
    Files(FilesSourceOptions),
    Generator(GeneratorOptions),
}

/// Options of the source `files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilesSourceOptions {
    pub(crate) path: PathBuf,
    /// `None`: chosen by the enumerator when it knows how much input there is.
    pub(crate) split_bytes: Option<u64>,
    /// Per subtask; 0 is unlimited.
    pub(crate) rate_per_second: u64,
    pub(crate) line_max_bytes: usize,
}

/// Options of the source `generator`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GeneratorOptions {
    /// Over all subtasks; 0 is unbounded.
    pub(crate) count: u64,
    /// Per second, over all subtasks; 0 is unlimited.
    pub(crate) rate: u64,
}

/// A sink connector with its options, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SinkOptions {
    Files(FilesSinkOptions),
    Socket(SocketSinkOptions),
    Print,
    Discard,
}

/// Options of the sink `files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilesSinkOptions {
    pub(crate) path: PathBuf,
    pub(crate) format: RecordFormat,
    pub(crate) roll_bytes: u64,
}

/// Options of the sink `socket`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketSinkOptions {
    /// `host:port`; the host is a name or an address.
    pub(crate) address: String,
    /// How long connecting may take, and how long a write may wait for the receiver.
    pub(crate) timeout: Duration,
}

/// How a record's bytes stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordFormat {
    Lines,
    Raw,
}

impl SourceOptions {
    pub(crate) fn parse(spec: &ConnectorSpec) -> Result<Self, OptionError> {
        let reader = OptionReader {
            role: "source",
            spec,
        };
        match spec.kind.as_str() {
            "files" => {
                reader.known(&["path", "split_bytes", "rate_per_second", "line_max_bytes"])?;
                Ok(Self::Files(FilesSourceOptions {
                    path: reader.path("path")?,
                    split_bytes: reader.size("split_bytes", 1, u64::MAX)?,
                    rate_per_second: reader.number("rate_per_second")?.unwrap_or(0),
                    line_max_bytes: reader
                        .size("line_max_bytes", 1, GIB)?
                        .unwrap_or(LINE_DEFAULT_MAX_BYTES)
                        as usize,
                }))
            }
            "generator" => {
                reader.known(&["count", "rate"])?;
                Ok(Self::Generator(GeneratorOptions {
                    count: reader.number("count")?.unwrap_or(0),
                    rate: reader.number("rate")?.unwrap_or(0),
                }))
            }
            _ => Err(reader.unknown_connector(&SOURCES)),
        }
    }
}

impl SinkOptions {
    pub(crate) fn parse(spec: &ConnectorSpec) -> Result<Self, OptionError> {
        let reader = OptionReader { role: "sink", spec };
        match spec.kind.as_str() {
            "files" => {
                reader.known(&["path", "records", "roll_bytes"])?;
                Ok(Self::Files(FilesSinkOptions {
                    path: reader.path("path")?,
                    format: match reader.text("records") {
                        None | Some("lines") => RecordFormat::Lines,
                        Some("raw") => RecordFormat::Raw,
                        Some(value) => {
                            return Err(reader.wrong("records", value, "`lines` or `raw`"));
                        }
                    },
                    roll_bytes: reader
                        .size("roll_bytes", 1, u64::MAX)?
                        .unwrap_or(ROLL_DEFAULT_BYTES),
                }))
            }
            "socket" => {
                reader.known(&["address", "timeout_ms"])?;
                let timeout_ms = match reader.number("timeout_ms")? {
                    Some(0) => {
                        return Err(reader.wrong("timeout_ms", "0", "milliseconds, at least 1"));
                    }
                    Some(ms) => ms,
                    None => SOCKET_DEFAULT_TIMEOUT_MS,
                };
                Ok(Self::Socket(SocketSinkOptions {
                    address: reader.address("address")?,
                    timeout: Duration::from_millis(timeout_ms),
                }))
            }
            "print" => reader.known(&[]).map(|()| Self::Print),
            "discard" => reader.known(&[]).map(|()| Self::Discard),
            _ => Err(reader.unknown_connector(&SINKS)),
        }
    }
}

struct OptionReader<'a> {
    role: &'static str,
    spec: &'a ConnectorSpec,
}

impl OptionReader<'_> {
    fn unknown_connector(&self, known: &'static [&'static str]) -> OptionError {
        OptionError::UnknownConnector {
            role: self.role,
            kind: self.spec.kind.clone(),
            nearest: nearest(&self.spec.kind, known),
            known,
        }
    }

    fn known(&self, known: &'static [&'static str]) -> Result<(), OptionError> {
        match self
            .spec
            .options
            .keys()
            .find(|option| !known.contains(&option.as_str()))
        {
            None => Ok(()),
            Some(option) => Err(OptionError::UnknownOption {
                role: self.role,
                connector: self.spec.kind.clone(),
                option: option.clone(),
                nearest: nearest(option, known),
                known,
            }),
        }
    }

    fn wrong(&self, option: &'static str, value: &str, expected: &'static str) -> OptionError {
        OptionError::WrongValue {
            role: self.role,
            connector: self.spec.kind.clone(),
            option,
            value: value.into(),
            expected,
        }
    }

    fn text(&self, option: &str) -> Option<&str> {
        self.spec.options.get(option).map(String::as_str)
    }

    fn number(&self, option: &'static str) -> Result<Option<u64>, OptionError> {
        self.text(option)
            .map(|text| {
                u64::from_str(text)
                    .map_err(|_| self.wrong(option, text, "a whole number, 0 or more"))
            })
            .transpose()
    }

    fn size(&self, option: &'static str, min: u64, max: u64) -> Result<Option<u64>, OptionError> {
        let expected = if max == u64::MAX {
            "a size in bytes above 0, such as 65536, 64KiB or 16MiB"
        } else {
            "a size in bytes above 0 and up to 1GiB, such as 65536, 64KiB or 16MiB"
        };
        self.text(option)
            .map(|text| {
                parse_size(text)
                    .filter(|size| (min..=max).contains(size))
                    .ok_or_else(|| self.wrong(option, text, expected))
            })
            .transpose()
    }

    fn required(&self, option: &'static str) -> Result<&str, OptionError> {
        self.text(option).ok_or_else(|| OptionError::Missing {
            role: self.role,
            connector: self.spec.kind.clone(),
            option,
        })
    }

    fn address(&self, option: &'static str) -> Result<String, OptionError> {
        let text = self.required(option)?;
        let parts = text.rsplit_once(':');
        match parts.map(|(host, port)| (host, port.parse::<u16>())) {
            Some((host, Ok(_))) if !host.is_empty() => Ok(text.to_owned()),
            _ => Err(self.wrong(option, text, "`host:port`")),
        }
    }

    fn path(&self, option: &'static str) -> Result<PathBuf, OptionError> {
        let text = self.required(option)?;
        parse_path(text)
            .ok_or_else(|| self.wrong(option, text, "a local path, with or without `file://`"))
    }
}

fn nearest(name: &str, known: &'static [&'static str]) -> Option<&'static str> {
    let name = name.to_lowercase();
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, candidate), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(2))
        .map(|(_, candidate)| candidate)
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, options: &[(&str, &str)]) -> ConnectorSpec {
        ConnectorSpec {
            kind: kind.into(),
            options: options
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        }
    }

    #[test]
    fn defaults_and_given_values_of_every_option() {
        let parsed = SourceOptions::parse(&spec("files", &[("path", "/in")]));
        assert_eq!(
            parsed,
            Ok(SourceOptions::Files(FilesSourceOptions {
                path: "/in".into(),
                split_bytes: None,
                rate_per_second: 0,
                line_max_bytes: 16 << 20,
            }))
        );
        let given = [
            ("path", "file:///in"),
            ("split_bytes", "64KiB"),
            ("rate_per_second", "7"),
            ("line_max_bytes", "100"),
        ];
        let parsed = SourceOptions::parse(&spec("files", &given));
        assert_eq!(
            parsed,
            Ok(SourceOptions::Files(FilesSourceOptions {
                path: "/in".into(),
                split_bytes: Some(65_536),
                rate_per_second: 7,
                line_max_bytes: 100,
            }))
        );
        let parsed = SinkOptions::parse(&spec("files", &[("path", "/out"), ("records", "raw")]));
        assert_eq!(
            parsed,
            Ok(SinkOptions::Files(FilesSinkOptions {
                path: "/out".into(),
                format: RecordFormat::Raw,
                roll_bytes: 128 << 20,
            }))
        );
        let parsed = SourceOptions::parse(&spec("generator", &[("count", "10"), ("rate", "5")]));
        assert_eq!(
            parsed,
            Ok(SourceOptions::Generator(GeneratorOptions {
                count: 10,
                rate: 5
            }))
        );
        assert_eq!(
            SinkOptions::parse(&spec("print", &[])),
            Ok(SinkOptions::Print)
        );
        assert_eq!(
            SinkOptions::parse(&spec("discard", &[])),
            Ok(SinkOptions::Discard)
        );
    }

    #[test]
    fn each_mistake_is_named_with_its_remedy() {
        let source = |kind: &str, options: &[(&str, &str)]| {
            SourceOptions::parse(&spec(kind, options))
                .unwrap_err()
                .to_string()
        };
        let sink = |kind: &str, options: &[(&str, &str)]| {
            SinkOptions::parse(&spec(kind, options))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            sink("files", &[("path", "/out"), ("roll_byte", "1MiB")]),
            "the sink `files` has no option `roll_byte`: did you mean `roll_bytes`?; it has: `path`, `records`, \
             `roll_bytes`"
        );
        assert_eq!(
            source("file", &[]),
            "there is no source `file`: did you mean `files`?; there are: `files`, `generator`"
        );
        assert_eq!(
            sink("kafka", &[]),
            "there is no sink `kafka`; there are: `files`, `socket`, `print`, `discard`"
        );
        assert_eq!(
            sink("print", &[("path", "/x")]),
            "the sink `print` has no option `path`; it has: none"
        );
        assert_eq!(
            source("files", &[]),
            "the source `files` needs the option `path`"
        );
        assert_eq!(
            source("generator", &[("rate", "fast")]),
            "the source `generator`: option `rate` is `fast`, expected a whole number, 0 or more"
        );
        for (option, value) in [
            ("split_bytes", "0"),
            ("split_bytes", "-1"),
            ("split_bytes", "16MB"),
            ("split_bytes", "99999999999GiB"),
            ("line_max_bytes", "2GiB"),
            ("path", ""),
            ("path", "s3://bucket/x"),
        ] {
            let mut options = vec![("path", "/in")];
            options.retain(|(known, _)| *known != option);
            options.push((option, value));
            let message = source("files", &options);
            assert!(
                message.contains(option) && message.contains(value),
                "{message}"
            );
        }
        let message = sink("files", &[("path", "/o"), ("records", "json")]);
        assert!(message.contains("expected `lines` or `raw`"), "{message}");
    }
}
