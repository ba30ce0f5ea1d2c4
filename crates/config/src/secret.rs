//! Text that opens doors: it can be used, and it is never shown by `{:?}`.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// The settings whose values no message may repeat.
pub(crate) const SECRET_KEYS: [&str; 2] = ["jobmanager.rest_token", "zookeeper.password"];

/// A password or token. It reads as text where it is used; its `Debug` form hides it, and `Display` there is none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}
