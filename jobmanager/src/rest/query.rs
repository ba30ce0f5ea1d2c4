//! Query strings, read strictly: a key that no handler knows is an error that suggests the nearest, so that a misspelt
//! option is never silently ignored.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use tidemill_config::nearest;

use super::problem::Refusal;

/// The pairs of a query, taken out one by one.
pub(super) struct Pairs {
    by_key: BTreeMap<String, Vec<String>>,
}

/// The query of a path that takes no options: it is empty.
pub(super) struct NoOptions;

impl<S: Sync> FromRequestParts<S> for Pairs {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Self::of(&parts.uri)
    }
}

impl<S: Sync> FromRequestParts<S> for NoOptions {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Pairs::of(&parts.uri)?.finish(&[])?;
        Ok(Self)
    }
}

impl Pairs {
    pub(super) fn of(uri: &Uri) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Refusal::bad_request("bad-query", error.body_text()))?;
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in pairs {
            by_key.entry(key).or_default().push(value);
        }
        Ok(Self { by_key })
    }

    /// The value of a key that may be given once.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.by_key.remove(key).as_deref() {
            None => Ok(None),
            Some([value]) => Ok(Some(value.clone())),
            Some(values) => Err(Refusal::bad_request(
                "bad-query",
                format!(
                    "`{key}` is given {} times, and can be given once",
                    values.len()
                ),
            )),
        }
    }

    /// The value of a key that may be given once, as what `expected` describes.
    pub(super) fn parsed<T: FromStr>(
        &mut self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, Refusal> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            Refusal::bad_request(
                "bad-query",
                format!("`{key}` must be {expected}, but it is `{text}`"),
            )
        })
    }

    /// Every value of a key that may be repeated.
    pub(super) fn all(&mut self, key: &str) -> Vec<String> {
        self.by_key.remove(key).unwrap_or_default()
    }

    /// Every key that begins with `prefix` with its value, under the key's rest.
    pub(super) fn with_prefix(&mut self, prefix: &str) -> Result<Vec<(String, String)>, Refusal> {
        let keys: Vec<String> = self
            .by_key
            .keys()
            .filter(|key| key.starts_with(prefix))
            .cloned()
            .collect();
        let mut pairs = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(value) = self.text(&key)? {
                pairs.push((key[prefix.len()..].to_owned(), value));
            }
        }
        Ok(pairs)
    }

    /// Refuses what was not taken.
    pub(super) fn finish(self, known: &[&str]) -> Result<(), Refusal> {
        let Some(unknown) = self.by_key.keys().next() else {
            return Ok(());
        };
        let refusal = Refusal::bad_request(
            "unknown-option",
            format!("there is no option `{unknown}` here"),
        );
        Err(match nearest(unknown, known.iter().copied()) {
            Some(known) => refusal.help(format!("did you mean `{known}`?")),
            None if known.is_empty() => refusal.help("this path takes no options"),
            None => refusal.help(format!("the options are {}", known.join(", "))),
        })
    }
}
