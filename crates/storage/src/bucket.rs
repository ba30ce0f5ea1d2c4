//! Clients of object stores on the network: set up from the environment, patient with servers in trouble, and able to
//! say why a bucket cannot be used. It never puts a credential into a message.
//!
//! A request is tried again where trying again cannot do harm: after a refused or cut connection, a time-out, or an answer
//! of 408, 429 or 5xx. The pauses grow, and are random so that a whole cluster does not come back at once.

use std::env;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

use crate::location::{Bucket, Location, Service};
use crate::{OpenError, Store};

/// From when on a failed request is not tried again. With the longest single try (30 s) after it, it stays within the time
/// that a request may take in all, so that the error tells what was wrong and not merely that time ran out.
const RETRY_FOR: Duration = Duration::from_secs(85);

/// The same for the question at start whether the bucket is there, which a person waits for.
const PROBE_RETRY_FOR: Duration = Duration::from_secs(2);

/// How long that question may take in all.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);

/// Time ends the tries, not their number; this is more than fit into it.
const RETRIES_MAX: usize = 1_000;

/// Where no credentials are configured, the clients ask the machine they run on: at these addresses.
const METADATA_ADDRESSES: [&str; 3] = ["169.254.169.254", "169.254.170.2", "metadata.google"];

/// A bucket's clients.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) probe: Probe,
}

/// Asks a bucket whether it can be used.
#[derive(Debug)]
pub(crate) struct Probe {
    /// A client that gives up soon.
    objects: Arc<dyn ObjectStore>,
    bucket: Bucket,
}

impl Store {
    /// Whether objects are in a bucket, so that each read is a request to a service, and no file that this machine reads
    /// or keeps in its memory.
    #[must_use]
    pub fn is_bucket(&self) -> bool {
        matches!(Location::parse(self.url()), Ok(Location::Bucket(_)))
    }
}

impl Clients {
    /// Sets up the clients of a bucket by these variables.
    pub(crate) fn new(
        bucket: Bucket,
        url: &str,
        variables: &[(String, String)],
    ) -> Result<Self, OpenError> {
        // Where the process has chosen already, it chose the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let objects = connect(&bucket, url, variables, patience(RETRY_FOR))?;
        let impatient = connect(&bucket, url, variables, patience(PROBE_RETRY_FOR))?;
        Ok(Self {
            objects,
            probe: Probe {
                objects: impatient,
                bucket,
            },
        })
    }
}

impl Probe {
    /// Lists what is at the top of the bucket's prefix: a few names.
    pub(crate) async fn ask(&self, url: &str) -> Result<(), OpenError> {
        let answer = self.objects.list_with_delimiter(None);
        match tokio::time::timeout(PROBE_TIMEOUT, answer).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.explain(url, error)),
            Err(elapsed) => Err(OpenError::Unreachable {
                url: url.into(),
                source: elapsed.into(),
            }),
        }
    }

    fn explain(&self, url: &str, error: object_store::Error) -> OpenError {
        let url = url.into();
        let text = in_full(&error);
        let tells = |codes: &[&str]| codes.iter().any(|code| text.contains(code));
        let variables = self.bucket.service.credentials();
        if tells(&METADATA_ADDRESSES) {
            return OpenError::NoCredentials {
                url,
                variables,
                source: error.into(),
            };
        }
        if tells(&[
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
            "without LOCATION",
        ]) {
            return OpenError::WrongRegion {
                url,
                source: error.into(),
            };
        }
        // Of a listing the client tells nothing but the words of the service.
        if tells(&["status code: 404"]) {
            return OpenError::NoSuchBucket {
                url,
                bucket: self.bucket.name.clone(),
            };
        }
        if tells(&["status code: 401", "status code: 403"]) {
            return OpenError::Denied {
                url,
                variables,
                source: error.into(),
            };
        }
        OpenError::Unreachable {
            url,
            source: error.into(),
        }
    }
}

impl Service {
    /// The variables that credentials are given by.
    fn credentials(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Self::Google => "GOOGLE_SERVICE_ACCOUNT",
            Self::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        }
    }
}

/// The variables of this process that are text.
pub(crate) fn environment() -> Vec<(String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Whether an object is missing only since its whole bucket is, which may come back.
pub(crate) fn misses_bucket(error: &object_store::Error) -> bool {
    let text = in_full(error);
    text.contains("NoSuchBucket") || text.contains("ContainerNotFound")
}

fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn patience(retry_timeout: Duration) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 3.0,
        },
        max_retries: RETRIES_MAX,
        retry_timeout,
    }
}

fn connect(
    bucket: &Bucket,
    url: &str,
    variables: &[(String, String)],
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let objects: Arc<dyn ObjectStore> = match bucket.service {
        Service::S3 => {
            let builder = s3(bucket, variables).with_retry(retry);
            check_s3(&builder, url)?;
            Arc::new(
                builder
                    .build()
                    .map_err(|error| unusable(bucket, url, error))?,
            )
        }
        Service::Google => {
            let builder = google(bucket, variables).with_retry(retry);
            Arc::new(
                builder
                    .build()
                    .map_err(|error| unusable(bucket, url, error))?,
            )
        }
        Service::Azure => {
            let builder = azure(bucket, variables).with_retry(retry);
            Arc::new(
                builder
                    .build()
                    .map_err(|error| unusable(bucket, url, error))?,
            )
        }
    };
    if bucket.prefix.as_ref().is_empty() {
        return Ok(objects);
    }
    Ok(Arc::new(PrefixStore::new(objects, bucket.prefix.clone())))
}

fn unusable(bucket: &Bucket, url: &str, error: object_store::Error) -> OpenError {
    OpenError::Settings {
        url: url.into(),
        variables: bucket.service.credentials(),
        source: error.into(),
    }
}

/// The variables with one of these beginnings, in lower case as the clients' keys are.
fn settings<'a>(
    variables: &'a [(String, String)],
    beginning: &'a str,
) -> impl Iterator<Item = (String, &'a str)> {
    variables
        .iter()
        .filter(move |(name, _)| name.starts_with(beginning))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
}

/// Variables that the client does not know are other programs'.
fn s3(bucket: &Bucket, variables: &[(String, String)]) -> AmazonS3Builder {
    settings(variables, "AWS_")
        .filter_map(|(name, value)| Some((name.parse::<AmazonS3ConfigKey>().ok()?, value)))
        .fold(AmazonS3Builder::new(), |builder, (key, value)| {
            builder.with_config(key, value)
        })
        .with_bucket_name(&bucket.name)
}

fn google(bucket: &Bucket, variables: &[(String, String)]) -> GoogleCloudStorageBuilder {
    settings(variables, "GOOGLE_")
        .filter_map(|(name, value)| Some((name.parse::<GoogleConfigKey>().ok()?, value)))
        .fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| {
            builder.with_config(key, value)
        })
        .with_bucket_name(&bucket.name)
}

fn azure(bucket: &Bucket, variables: &[(String, String)]) -> MicrosoftAzureBuilder {
    settings(variables, "AZURE_")
        .filter_map(|(name, value)| Some((name.parse::<AzureConfigKey>().ok()?, value)))
        .fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| {
            builder.with_config(key, value)
        })
        .with_container_name(&bucket.name)
}

/// What the client itself would say too late or not at all: it takes a region of its own where none is given, and refuses
/// plain HTTP only request by request.
fn check_s3(builder: &AmazonS3Builder, url: &str) -> Result<(), OpenError> {
    let setting = |key| builder.get_config_value(&key);
    let endpoint =
        setting(AmazonS3ConfigKey::S3Endpoint).or_else(|| setting(AmazonS3ConfigKey::Endpoint));
    let Some(endpoint) = endpoint else {
        let region = setting(AmazonS3ConfigKey::Region)
            .or_else(|| setting(AmazonS3ConfigKey::DefaultRegion));
        return match region {
            Some(_) => Ok(()),
            None => Err(OpenError::NoRegion { url: url.into() }),
        };
    };
    let allowed = setting(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
    let allowed = allowed.is_some_and(|text| {
        ["1", "true", "on", "yes", "y"].contains(&text.to_ascii_lowercase().as_str())
    });
    if endpoint.starts_with("http://") && !allowed {
        return Err(OpenError::PlainHttp {
            url: url.into(),
            endpoint,
        });
    }
    Ok(())
}
