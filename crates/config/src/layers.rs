//! Layers the defaults, a file, the environment and overrides into one [`Config`], remembering where each value came
//! from. Later layers win, key by key.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::nearest::{nearest, nearest_key};
use crate::sections::DEFAULTS;
use crate::{Config, ConfigError, Origin, keys};

/// What the environment variables of settings begin with.
const VARIABLE_PREFIX: &str = "TIDEMILL_";

/// The sections that a job may overrule for itself.
const JOB_SECTIONS: [&str; 2] = ["checkpoints.", "restart."];

impl Config {
    /// Layers the defaults, then `file`, then `environment` (all variables of the process; those that name no setting are
    /// left alone), then `overrides` (each `section.key=value`), and checks the outcome.
    ///
    /// # Errors
    /// When the file cannot be read or parsed, a key does not exist, or a value cannot be; with the place it was said.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[String],
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::new();
        if let Some(path) = file {
            layers.file(path)?;
        }
        let mut environment: Vec<_> = environment.into_iter().collect();
        environment.sort();
        for (variable, text) in environment {
            layers.variable(variable, &text)?;
        }
        for text in overrides {
            layers.override_with(text)?;
        }
        layers.finish()
    }

    /// This configuration with the settings of one job laid over it: keys of `[checkpoints]` and `[restart]` alone.
    ///
    /// # Errors
    /// When a key does not exist or is of another section, or a value cannot be.
    pub fn for_job(
        &self,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::new();
        layers.values = Table::try_from(self).expect("plain values have a TOML form");
        layers
            .known
            .retain(|key| JOB_SECTIONS.iter().any(|section| key.starts_with(section)));
        for (key, text) in settings {
            if !layers.known.contains(&key) {
                return Err(layers.unknown(Origin::Submission, key));
            }
            layers.set_text(Origin::Submission, key, &text)?;
        }
        layers.finish()
    }
}

/// The values so far, and where those that are not defaults came from.
struct Layers {
    known: Vec<String>,
    defaults: Table,
    values: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn new() -> Self {
        let defaults: Table = DEFAULTS
            .parse()
            .expect("the embedded defaults are checked by a test");
        Self {
            known: keys(),
            values: defaults.clone(),
            defaults,
            origins: BTreeMap::new(),
        }
    }

    fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        let lines = lines_of_keys(&text).map_err(syntax)?;
        let table: Table = text.parse().map_err(syntax)?;
        let origin = |key: &str| Origin::File {
            path: path.to_owned(),
            line: lines.get(key).copied().unwrap_or(1),
        };
        for (section, value) in table {
            let Value::Table(settings) = value else {
                return Err(self.unknown(origin(&section), section));
            };
            if !self.defaults.contains_key(&section) {
                return Err(self.unknown_section(origin(&section), section));
            }
            for (name, value) in settings {
                let key = format!("{section}.{name}");
                self.set(origin(&key), key, value)?;
            }
        }
        Ok(())
    }

    fn variable(&mut self, variable: String, text: &str) -> Result<(), ConfigError> {
        if !variable.starts_with(VARIABLE_PREFIX) {
            return Ok(());
        }
        if let Some(key) = self.known.iter().find(|key| variable_of(key) == variable) {
            let key = key.clone();
            return self.set_text(Origin::Environment { variable }, key, text);
        }
        // Other programs, this one's own flags among them, have variables with this prefix: only what begins with
        // a section's name or looks like a slip is taken for a setting.
        let rest = variable[VARIABLE_PREFIX.len()..].to_lowercase();
        let section = self.defaults.keys().find_map(|section| {
            let name = rest.strip_prefix(section.as_str())?.strip_prefix('_')?;
            Some(format!("{section}.{name}"))
        });
        let variables: Vec<String> = self
            .known
            .iter()
            .map(|key| variable_of(key).to_lowercase())
            .collect();
        let slip = nearest(&variable, variables.iter().map(String::as_str))
            .filter(|known| strsim::osa_distance(known, &variable.to_lowercase()) <= 2);
        match (section, slip) {
            (Some(key), _) => Err(self.unknown(Origin::Environment { variable }, key)),
            (None, Some(known)) => Err(ConfigError::UnknownKey {
                suggestion: Some(known.to_uppercase()),
                key: variable.clone(),
                origin: Origin::Environment { variable },
            }),
            (None, None) => Ok(()),
        }
    }

    fn override_with(&mut self, text: &str) -> Result<(), ConfigError> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(ConfigError::OverrideForm {
                text: text.to_owned(),
            });
        };
        self.set_text(
            Origin::Override {
                text: text.to_owned(),
            },
            key.trim().to_owned(),
            value,
        )
    }

    /// Sets a key from text, read as the type that the key has.
    fn set_text(&mut self, origin: Origin, key: String, text: &str) -> Result<(), ConfigError> {
        let Some(default) = self.default_of(&key) else {
            return Err(self.unknown(origin, key));
        };
        let trimmed = text.trim();
        let value = match default {
            Value::Integer(_) => trimmed.replace('_', "").parse().ok().map(Value::Integer),
            Value::Array(_) => {
                let items = trimmed
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty());
                Some(Value::Array(
                    items.map(|item| Value::String(item.to_owned())).collect(),
                ))
            }
            _ => Some(Value::String(text.to_owned())),
        };
        let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
        self.set(origin, key, value)
    }

    /// Sets a key, if it exists and the value is of its type and range.
    fn set(&mut self, origin: Origin, key: String, value: Value) -> Result<(), ConfigError> {
        let Some(default) = self.default_of(&key) else {
            return Err(self.unknown(origin, key));
        };
        if !is_like(&value, default) {
            let expected = describe_type(default);
            return Err(ConfigError::Type {
                origin,
                key,
                expected,
                found: describe_value(&value),
            });
        }
        // With every other key at its default, what serde refuses can only be this one.
        let mut trial = self.defaults.clone();
        place(&mut trial, &key, value.clone());
        if let Err(error) = trial.try_into::<Config>() {
            let reason = error.message().trim_end().to_owned();
            return Err(ConfigError::Value {
                origin,
                key,
                reason,
            });
        }
        place(&mut self.values, &key, value);
        self.origins.insert(key, origin);
        Ok(())
    }

    fn finish(self) -> Result<Config, ConfigError> {
        let config: Config = self
            .values
            .try_into()
            .expect("each value was checked when it was set");
        match config.problem() {
            None => Ok(config),
            Some(problem) => Err(ConfigError::Value {
                origin: self
                    .origins
                    .get(problem.key)
                    .cloned()
                    .unwrap_or(Origin::Default),
                key: problem.key.to_owned(),
                reason: problem.reason,
            }),
        }
    }

    fn default_of(&self, key: &str) -> Option<&Value> {
        let (section, name) = key.split_once('.')?;
        self.defaults.get(section)?.as_table()?.get(name)
    }

    fn unknown(&self, origin: Origin, key: String) -> ConfigError {
        let suggestion = nearest_key(&key, &self.known).map(str::to_owned);
        ConfigError::UnknownKey {
            origin,
            key,
            suggestion,
        }
    }

    fn unknown_section(&self, origin: Origin, section: String) -> ConfigError {
        let suggestion =
            nearest(&section, self.defaults.keys().map(String::as_str)).map(str::to_owned);
        ConfigError::UnknownKey {
            origin,
            key: section,
            suggestion,
        }
    }
}

fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

fn place(table: &mut Table, key: &str, value: Value) {
    if let Some((section, name)) = key.split_once('.')
        && let Some(Value::Table(settings)) = table.get_mut(section)
    {
        settings.insert(name.to_owned(), value);
    }
}

/// The line of every section and setting in a file, by `section` and `section.key`.
fn lines_of_keys(text: &str) -> Result<BTreeMap<String, usize>, toml::de::Error> {
    let line_at = |offset: usize| text[..offset].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let mut lines = BTreeMap::new();
    for (section, value) in DeTable::parse(text)?.get_ref() {
        lines.insert(section.get_ref().to_string(), line_at(section.span().start));
        if let DeValue::Table(settings) = value.get_ref() {
            for name in settings.keys() {
                let key = format!("{}.{}", section.get_ref(), name.get_ref());
                lines.insert(key, line_at(name.span().start));
            }
        }
    }
    Ok(lines)
}

fn is_like(value: &Value, default: &Value) -> bool {
    match (value, default) {
        (Value::Array(items), Value::Array(_)) => items.iter().all(Value::is_str),
        _ => value.same_type(default),
    }
}

fn describe_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date or time",
        Value::Array(_) => "a list of texts",
        Value::Table(_) => "a section",
    }
}

fn describe_value(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text `{text}`"),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the fraction {number}"),
        Value::Boolean(truth) => format!("the truth value {truth}"),
        Value::Datetime(time) => format!("the time {time}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a section".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn load_file(text: &str) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes())
            .expect("room for a few bytes");
        let name = file.path().display().to_string();
        Config::load(Some(file.path()), [], &[])
            .map_err(|error| error.to_string().replace(&name, "FILE"))
    }

    fn load_set(overrides: &[&str]) -> Result<Config, String> {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Config::load(None, [], &overrides).map_err(|error| error.to_string())
    }

    fn load_variable(variable: &str, text: &str) -> Result<Config, String> {
        let environment = [(variable.to_owned(), text.to_owned())];
        Config::load(None, environment, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_valid_and_load_from_nothing() {
        assert_eq!(load_set(&[]), Ok(Config::default()));
        let options = Config::default().job_options(Some(4));
        assert_eq!(
            (
                options.parallelism,
                options.checkpoint_interval_ms,
                options.retained_checkpoints
            ),
            (4, 1000, 2)
        );
    }

    #[test]
    fn the_sample_file_names_every_key_and_changes_nothing() {
        assert_eq!(load_file(&crate::sample()), Ok(Config::default()));
        let uncommented: String = crate::sample()
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .fold(String::new(), |text, line| text + line + "\n");
        assert_eq!(load_file(&uncommented), Ok(Config::default()));
        let sample = include_str!("../../../conf/tidemill.toml");
        assert!(
            sample == crate::sample(),
            "conf/tidemill.toml is not the sample: run `cargo run -p tidemill-config --example sample > conf/tidemill.toml`"
        );
    }

    #[test]
    fn the_documentation_has_every_key() {
        let documentation = include_str!("../../../docs/configuration.md");
        for key in keys() {
            assert!(
                documentation.contains(&format!("`{key}`")),
                "docs/configuration.md does not have `{key}`"
            );
        }
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(
            b"[taskmanager]\nslots = 2\nid = \"a\"\nlog_lines_max = 7\n[log]\nformat = \"json\"\n",
        )
        .expect("room for a few bytes");
        let environment = [
            ("TIDEMILL_TASKMANAGER_SLOTS".to_owned(), "3".to_owned()),
            ("TIDEMILL_TASKMANAGER_ID".to_owned(), "b".to_owned()),
            (
                "TIDEMILL_TASKMANAGER_JOBMANAGERS".to_owned(),
                "one:1, two:2".to_owned(),
            ),
        ];
        let config = Config::load(
            Some(file.path()),
            environment,
            &["taskmanager.slots=4".to_owned()],
        )
        .expect("every layer is good");
        assert_eq!(config.taskmanager.slots(), 4);
        assert_eq!(config.taskmanager.id.as_deref(), Some("b"));
        assert_eq!(config.taskmanager.jobmanagers, ["one:1", "two:2"]);
        assert_eq!(config.taskmanager.log_lines_max, 7);
        assert_eq!(config.log.format, crate::LogFormat::Json);
        assert_eq!(config.taskmanager.memory_max_bytes, 1 << 32);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
        assert_eq!(
            load_file("[taskmanager]\nslots = 2\n\nslotz = 3\n").unwrap_err(),
            "FILE:4: there is no setting `taskmanager.slotz`; did you mean `taskmanager.slots`?"
        );
        assert_eq!(
            load_file("[task-manager]\nslots = 2\n").unwrap_err(),
            "FILE:1: there is no setting `task-manager`; did you mean `taskmanager`?"
        );
        assert_eq!(
            load_file("slots = 2\n").unwrap_err(),
            "FILE:1: there is no setting `slots`; did you mean `taskmanager.slots`?"
        );
        assert_eq!(
            load_file("checkpoints.intervall_ms = 2\n").unwrap_err(),
            "FILE:1: there is no setting `checkpoints.intervall_ms`; did you mean `checkpoints.interval_ms`?"
        );
        assert_eq!(
            load_set(&["taskmanager.slot=2"]).unwrap_err(),
            "--set taskmanager.slot=2: there is no setting `taskmanager.slot`; did you mean `taskmanager.slots`?"
        );
        assert_eq!(
            load_variable("TIDEMILL_TASKMANAGER_SLOT", "2").unwrap_err(),
            "environment variable TIDEMILL_TASKMANAGER_SLOT: there is no setting `taskmanager.slot`; \
             did you mean `taskmanager.slots`?"
        );
        assert!(
            load_variable("TIDEMILL_CHECKPOINT_INTERVAL_MS", "2")
                .unwrap_err()
                .contains("TIDEMILL_CHECKPOINTS_INTERVAL_MS")
        );
    }

    #[test]
    fn variables_of_others_are_left_alone() {
        for variable in [
            "TIDEMILL_JOBMANAGER",
            "TIDEMILL_SDK_PATH",
            "TIDEMILL_",
            "HOME",
        ] {
            assert_eq!(
                load_variable(variable, "x"),
                Ok(Config::default()),
                "{variable}"
            );
        }
    }

    #[test]
    fn a_wrong_type_names_key_expected_and_found() {
        assert_eq!(
            load_file("[taskmanager]\nslots = \"four\"\n").unwrap_err(),
            "FILE:2: `taskmanager.slots` must be a whole number, but it is the text `four`"
        );
        assert_eq!(
            load_set(&["checkpoints.interval_ms=1s"]).unwrap_err(),
            "--set checkpoints.interval_ms=1s: `checkpoints.interval_ms` must be a whole number, but it is the text `1s`"
        );
        assert_eq!(
            load_file("[taskmanager]\njobmanagers = [1]\n").unwrap_err(),
            "FILE:2: `taskmanager.jobmanagers` must be a list of texts, but it is a list"
        );
        assert_eq!(
            load_file("[taskmanager.slots]\nx = 1\n").unwrap_err(),
            "FILE:1: `taskmanager.slots` must be a whole number, but it is a section"
        );
    }

    #[test]
    fn a_value_that_cannot_be_says_what_can() {
        let refused = [
            ("taskmanager.slots=1025", "from 1 to 1024"),
            (
                "taskmanager.slots=-1",
                "invalid value: integer `-1`, expected u32",
            ),
            ("taskmanager.slots=4294967296", "expected u32"),
            ("checkpoints.retained=0", "at least 1"),
            ("jobmanager.quic_address=localhost", "expected IP:PORT"),
            (
                "jobmanager.rest_address=0.0.0.0:7421",
                "jobmanager.rest_token",
            ),
            (
                "taskmanager.data_address=0.0.0.0:0",
                "taskmanager.advertised_host",
            ),
            ("taskmanager.jobmanagers=one", "host:port"),
            ("taskmanager.jobmanagers=", "at least one"),
            ("taskmanager.memory_max_bytes=4294967297", "4 GiB"),
            ("cluster.coordination=zoo", "`embedded`"),
            ("cluster.checkpoint_store_url=/tmp/x", "file:///"),
            ("cluster.name=", "letters"),
            ("restart.strategy=exponential", "exponential-delay"),
            ("log.level=loud", "debug"),
            ("cluster.heartbeat_timeout_ms=1", "twice"),
        ];
        for (text, expected) in refused {
            let error = load_set(&[text]).unwrap_err();
            let key = text.split('=').next().unwrap_or_default();
            assert!(
                error.contains(expected) && error.contains(key),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_not_toml_is_named() {
        let missing = Config::load(Some(Path::new("/nowhere/tidemill.toml")), [], &[]).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/tidemill.toml"));
        let error = load_file("[taskmanager\nslots = 2").unwrap_err();
        assert!(
            error.contains("FILE is not valid TOML") && error.contains("line 1"),
            "{error}"
        );
        assert!(
            load_set(&["taskmanager.slots"])
                .unwrap_err()
                .contains("section.key=value")
        );
    }

    #[test]
    fn the_cluster_hash_tells_clusters_apart_and_nothing_else() {
        let same = load_set(&["taskmanager.slots=9"]).expect("good");
        let other = load_set(&["cluster.adoption_timeout_ms=9"]).expect("good");
        assert_eq!(Config::default().cluster.hash(), same.cluster.hash());
        assert_ne!(Config::default().cluster.hash(), other.cluster.hash());
    }

    #[test]
    fn a_job_overrules_its_own_sections_and_no_other() {
        let cluster = load_set(&["checkpoints.retained=5", "taskmanager.slots=3"]).expect("good");
        let job = |key: &str, value: &str| {
            cluster
                .for_job([(key.to_owned(), value.to_owned())])
                .map_err(|error| error.to_string())
        };
        let config = job("checkpoints.interval_ms", "250").expect("a job's own");
        assert_eq!(
            (config.checkpoints.interval_ms, config.checkpoints.retained),
            (250, 5)
        );
        assert_eq!(config.taskmanager.slots, 3);
        assert_eq!(
            job("restart.strategie", "none").unwrap_err(),
            "the submission: there is no setting `restart.strategie`; did you mean `restart.strategy`?"
        );
        assert!(
            job("taskmanager.slots", "1")
                .unwrap_err()
                .contains("no setting")
        );
        assert!(
            job("restart.strategy", "maybe")
                .unwrap_err()
                .contains("fixed-delay")
        );
    }

    #[test]
    fn an_advertised_host_replaces_the_bound_one() {
        let bound = "127.0.0.1:99".parse().expect("an address");
        let mut config = Config::default().taskmanager;
        assert_eq!(config.advertised_address(bound), "127.0.0.1:99");
        config.advertised_host = Some("worker-1".to_owned());
        assert_eq!(config.advertised_address(bound), "worker-1:99");
        config.advertised_host = Some("fd00::1".to_owned());
        assert_eq!(config.advertised_address(bound), "[fd00::1]:99");
    }
}
