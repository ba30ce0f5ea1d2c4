//! Reads the configured place of the store. It never touches the disk.

use std::path::PathBuf;

use crate::OpenError;

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// In a directory.
    Directory(PathBuf),
    /// In this process.
    Memory,
}

impl Location {
    pub(crate) fn parse(url: &str) -> Result<Self, OpenError> {
        let malformed = |reason| OpenError::Malformed {
            url: url.into(),
            reason,
        };
        if url == "memory://" {
            return Ok(Self::Memory);
        }
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(malformed("a host is named: three slashes follow `file:`"));
            }
            if path.contains(['?', '#']) {
                return Err(malformed("it has a query or a fragment"));
            }
            let path = percent_decode(path).ok_or_else(|| {
                malformed("a `%` is not followed by two hexadecimal digits of UTF-8")
            })?;
            return Ok(Self::Directory(path.into()));
        }
        if url.contains("://") {
            return Err(OpenError::UnsupportedScheme { url: url.into() });
        }
        if !url.starts_with('/') {
            return Err(OpenError::RelativePath { url: url.into() });
        }
        Ok(Self::Directory(url.into()))
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let value = |digit: u8| char::from(digit).to_digit(16);
        bytes.push(u8::try_from(value(digits[0])? * 16 + value(digits[1])?).ok()?);
        rest = tail;
    }
    String::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_named_by_its_path_or_its_url() {
        for url in [
            "/var/lib/mill stone",
            "file:///var/lib/mill%20stone",
            "file:///var/lib/mill stone",
        ] {
            assert_eq!(
                Location::parse(url).unwrap(),
                Location::Directory("/var/lib/mill stone".into()),
                "{url}"
            );
        }
        assert_eq!(Location::parse("memory://").unwrap(), Location::Memory);
    }

    #[test]
    fn what_cannot_be_a_store_is_refused_with_the_remedy() {
        for (url, remedy) in [
            ("s3://bucket/prefix", "this release supports"),
            ("checkpoints", "absolute"),
            ("", "absolute"),
            ("file://nas/share", "three slashes"),
            ("file:///100%", "hexadecimal"),
            ("file:///%ff", "hexadecimal"),
            ("file:///%00", "hexadecimal"),
            ("file:///%+1", "hexadecimal"),
            ("file:///a?b", "query"),
        ] {
            let message = Location::parse(url).unwrap_err().to_string();
            assert!(message.contains(&format!("`{url}`")), "{message}");
            assert!(message.contains(remedy), "{message}");
        }
    }
}
