//! Reads the configured place of the store. It never touches the disk or the network.

use std::path::PathBuf;

use object_store::path::Path;

use crate::OpenError;

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// In a directory.
    Directory(PathBuf),
    /// In this process.
    Memory,
    /// In a bucket.
    Bucket(Bucket),
}

/// A part of a bucket, which Azure calls a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) service: Service,
    pub(crate) name: String,
    /// What all keys begin with; may be empty.
    pub(crate) prefix: Path,
}

/// Who keeps a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// Amazon S3, and all that speak its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
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
        if let Some((scheme, rest)) = url.split_once("://") {
            let service = match scheme {
                "s3" => Service::S3,
                "gs" => Service::Google,
                "az" => Service::Azure,
                _ => {
                    return Err(OpenError::UnsupportedScheme {
                        url: hide_secret(url),
                    });
                }
            };
            return Bucket::parse(service, url, rest).map(Self::Bucket);
        }
        if !url.starts_with('/') {
            return Err(OpenError::RelativePath { url: url.into() });
        }
        Ok(Self::Directory(url.into()))
    }
}

impl Bucket {
    fn parse(service: Service, url: &str, rest: &str) -> Result<Self, OpenError> {
        let malformed = |reason| OpenError::MalformedBucket {
            url: hide_secret(url),
            reason,
        };
        if rest.contains('@') {
            return Err(malformed(
                "credentials belong into the environment, since URLs are logged",
            ));
        }
        if rest.contains(['?', '#']) {
            return Err(malformed("it has a query or a fragment"));
        }
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() {
            return Err(malformed("it names no bucket"));
        }
        let may_be_in_a_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !name.chars().all(may_be_in_a_name) {
            return Err(malformed(
                "the name of a bucket is made of letters, digits, `-`, `_` and `.`",
            ));
        }
        let prefix = percent_decode(prefix)
            .and_then(|prefix| Path::parse(prefix).ok())
            .ok_or_else(|| malformed("what follows the bucket cannot be the beginning of a key"))?;
        Ok(Self {
            service,
            name: name.into(),
            prefix,
        })
    }
}

/// The URL without what stands before an `@`.
fn hide_secret(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.into(),
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
    fn a_bucket_is_named_by_its_service_its_name_and_a_prefix() {
        for (url, service, name, prefix) in [
            ("s3://mill", Service::S3, "mill", ""),
            ("s3://mill.eu-1/", Service::S3, "mill.eu-1", ""),
            (
                "gs://mill_2/tide/mill",
                Service::Google,
                "mill_2",
                "tide/mill",
            ),
            (
                "az://mill/mill%20stone/",
                Service::Azure,
                "mill",
                "mill stone",
            ),
        ] {
            let expected = Bucket {
                service,
                name: name.into(),
                prefix: Path::parse(prefix).unwrap(),
            };
            let found = Location::parse(url).unwrap();
            assert_eq!(found, Location::Bucket(expected), "{url}");
        }
    }

    #[test]
    fn what_cannot_be_a_store_is_refused_with_the_remedy() {
        for (url, remedy) in [
            ("ftp://host/prefix", "this release supports"),
            ("checkpoints", "absolute"),
            ("", "absolute"),
            ("file://nas/share", "three slashes"),
            ("file:///100%", "hexadecimal"),
            ("file:///%ff", "hexadecimal"),
            ("file:///%00", "hexadecimal"),
            ("file:///%+1", "hexadecimal"),
            ("file:///a?b", "query"),
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
            ("gs://bu cket/prefix", "letters, digits"),
            ("s3://bucket:9000/prefix", "letters, digits"),
            ("az://bucket/a//b", "beginning of a key"),
            ("az://bucket/../b", "beginning of a key"),
            ("s3://bucket/prefix?region=x", "query"),
        ] {
            let message = Location::parse(url).unwrap_err().to_string();
            assert!(message.contains(&format!("`{url}`")), "{message}");
            assert!(message.contains(remedy), "{message}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in ["s3://AKIA:hush@bucket/prefix", "ftp://me:hush@host/"] {
            let message = Location::parse(url).unwrap_err().to_string();
            assert!(!message.contains("hush"), "{message}");
        }
    }
}
