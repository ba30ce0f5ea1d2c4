//! Layers the defaults, a file, the environment and overrides into one [`Config`], remembering where each value came
//! from. Later layers win, key by key.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::nearest::{nearest, nearest_key};
use crate::secret::SECRET_KEYS;
use crate::sections::DEFAULTS;
use crate::{Config, ConfigError, Origin, keys};

/// What the environment variables of settings begin with.
const VARIABLE_PREFIX: &str = "TIDEMILL_";

/// The sections that a job may overrule for itself.
const JOB_SECTIONS: [&str; 3] = ["checkpoints.", "recovery.", "restart."];
/// In these sections, but the cluster's.
const NOT_A_JOB_S: [&str; 1] = ["checkpoints.savepoint_dir"];

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

    /// This configuration with the settings of one job laid over it: keys of `[checkpoints]`,
    /// `[recovery]` and `[restart]` alone.
    ///
    /// # Errors
    /// When a key does not exist or is of another section, or a value cannot be.
    pub fn for_job(
        &self,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Layers::new();
        layers.values = Table::try_from(self).expect("plain values have a TOML form");
        layers.known.retain(|key| {
            JOB_SECTIONS.iter().any(|section| key.starts_with(section))
                && !NOT_A_JOB_S.contains(&key.as_str())
        });
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
        let key = key.trim();
        let is_secret = SECRET_KEYS.contains(&key);
        let shown = if is_secret { "(hidden)" } else { value };
        let origin = Origin::Override {
            text: format!("{key}={shown}"),
        };
        self.set_text(origin, key.to_owned(), value)
    }

    /// Sets a key from text, read as the type that the key has.
    fn set_text(&mut self, origin: Origin, key: String, text: &str) -> Result<(), ConfigError> {
        let Some(default) = self.default_of(&key) else {
            return Err(self.unknown(origin, key));
        };
        let trimmed = text.trim();
        let value = match default {
            Value::Integer(_) => trimmed.replace('_', "").parse().ok().map(Value::Integer),
            Value::Boolean(_) => trimmed.parse().ok().map(Value::Boolean),
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
            let is_secret = SECRET_KEYS.contains(&key.as_str());
            let found = if is_secret {
                describe_type(&value).to_owned()
            } else {
                describe_value(&value)
            };
            return Err(ConfigError::Type {
                origin,
                key,
                expected,
                found,
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
mod tests;
