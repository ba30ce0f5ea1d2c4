//! The cluster's certificate authority and the certificates of its nodes, and their files. A certificate says "member
//! of this cluster, called so", and nothing about addresses. Private keys are never logged and never world-readable.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::tls;

/// The name that every node's certificate carries and every dialler asks for, whatever address it dials.
pub(crate) const CLUSTER_SERVER_NAME: &str = "tidemill-cluster";

const CA_CERTIFICATE_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const VALID_DAYS: u32 = 3650;

/// Why certificates cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error(
        "certificate file {path} cannot be {action}: make the cluster's certificates with `tidemill certs`, or correct the path or its permissions"
    )]
    File {
        /// Which file.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file exists and would be overwritten.
    #[error(
        "{path} exists: a new CA or key would cut off the nodes that use the present one; choose another directory or remove it"
    )]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// A file does not hold what its name says.
    #[error("{path} does not hold {expected}: make it anew with `tidemill certs`")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// The certificate and key cannot be used for TLS.
    #[error(
        "the certificate of `{name}` cannot be used ({reason}): issue it anew with `tidemill certs`"
    )]
    Unusable {
        /// The node's name.
        name: String,
        /// The details.
        reason: String,
    },
    /// The name is no file name or no certificate name.
    #[error(
        "`{name}` cannot name a node: use 1 to 64 letters, digits, `-`, `_` and `.`, beginning with a letter or digit, other than `ca`"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The library refused to make a certificate.
    #[error("a certificate for `{name}` cannot be made: {reason}")]
    Generate {
        /// The node's name, or the CA's.
        name: String,
        /// The details.
        reason: String,
    },
}

/// A cluster's certificate authority. Whoever holds it can make members.
pub struct ClusterCa {
    name: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A node's certificate chain and key, as PEM.
pub struct NodeIdentity {
    name: String,
    certificate_pem: String,
    key_pem: String,
}

/// What a process shows to its peers and by what it knows them: the CA's certificate, its own, and its key.
#[derive(Debug)]
pub struct Credentials {
    name: String,
    ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl ClusterCa {
    /// A new authority with a new key, valid for ten years.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, CertificateError> {
        // Two clusters' authorities must differ in name too, so that TLS says "unknown issuer" and not "bad signature".
        let name = format!("Tidemill cluster {:016x}", rand::random::<u64>());
        let failed = |error: rcgen::Error| CertificateError::Generate {
            name: name.clone(),
            reason: error.to_string(),
        };
        let key = KeyPair::generate().map_err(failed)?;
        let params = ca_params(&name);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
            name,
        })
    }

    /// Makes the certificate and key of the node called `node_name`, valid for ten years.
    ///
    /// # Errors
    /// When the name is no name or the system gives no randomness.
    pub fn issue(&self, node_name: &str) -> Result<NodeIdentity, CertificateError> {
        check_node_name(node_name)?;
        self.issue_until(node_name, SystemTime::now() + DAY * VALID_DAYS)
    }

    /// The same, valid until a moment that may have passed.
    pub(crate) fn issue_until(
        &self,
        node_name: &str,
        not_after: SystemTime,
    ) -> Result<NodeIdentity, CertificateError> {
        let failed = |error: rcgen::Error| CertificateError::Generate {
            name: node_name.to_owned(),
            reason: error.to_string(),
        };
        let mut params =
            CertificateParams::new(vec![CLUSTER_SERVER_NAME.to_owned()]).map_err(failed)?;
        params.distinguished_name = common_name(node_name);
        // Clocks of a cluster's machines differ; a certificate made here must be valid there at once.
        params.not_before = (SystemTime::now() - DAY).min(not_after - DAY).into();
        params.not_after = not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(NodeIdentity {
            name: node_name.to_owned(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) into a directory, which is made.
    ///
    /// # Errors
    /// When one exists or cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), CertificateError> {
        write_new(
            &directory.join(CA_KEY_FILE),
            &self.issuer.key().serialize_pem(),
            0o600,
        )?;
        write_new(
            &directory.join(CA_CERTIFICATE_FILE),
            &self.certificate_pem,
            0o644,
        )
    }

    /// Reads what [`ClusterCa::write`] wrote, to issue more certificates.
    ///
    /// # Errors
    /// When a file is missing or does not hold a Tidemill CA.
    pub fn load(directory: &Path) -> Result<Self, CertificateError> {
        let certificate_path = directory.join(CA_CERTIFICATE_FILE);
        let key_path = directory.join(CA_KEY_FILE);
        let certificate_pem = read(&certificate_path)?;
        let content = |path: &Path, expected| CertificateError::Content {
            path: path.to_owned(),
            expected,
        };
        let not_a_ca = || {
            content(
                &certificate_path,
                "the certificate of a Tidemill cluster CA",
            )
        };
        let certificate =
            CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| not_a_ca())?;
        let name = tls::common_name(&certificate)
            .filter(|name| name.starts_with("Tidemill cluster "))
            .ok_or_else(not_a_ca)?;
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|_| content(&key_path, "a private key"))?;
        if !certificate
            .windows(key.public_key_raw().len())
            .any(|at| at == key.public_key_raw())
        {
            return Err(content(
                &key_path,
                "the key of the CA certificate beside it",
            ));
        }
        Ok(Self {
            issuer: Issuer::new(ca_params(&name), key),
            certificate,
            certificate_pem,
            name,
        })
    }

    /// The authority's own name: `Tidemill cluster` and a random number.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl NodeIdentity {
    /// Writes `NAME.pem` and `NAME.key` (mode 0600) into a directory, which is made.
    ///
    /// # Errors
    /// When one exists or cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), CertificateError> {
        write_new(
            &directory.join(format!("{}.key", self.name)),
            &self.key_pem,
            0o600,
        )?;
        write_new(
            &directory.join(format!("{}.pem", self.name)),
            &self.certificate_pem,
            0o644,
        )
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Credentials {
    /// The credentials of a node whose certificate was just issued.
    ///
    /// # Errors
    /// When the identity does not parse, which one from [`ClusterCa::issue`] does.
    pub fn new(ca: &ClusterCa, identity: &NodeIdentity) -> Result<Self, CertificateError> {
        let unusable = |reason: &str| CertificateError::Unusable {
            name: identity.name.clone(),
            reason: reason.to_owned(),
        };
        Ok(Self {
            name: identity.name.clone(),
            ca: ca.certificate.clone(),
            chain: parse_chain(&identity.certificate_pem)
                .ok_or_else(|| unusable("it is no certificate"))?,
            key: PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
                .map_err(|_| unusable("its key is no key"))?,
        })
    }

    /// Reads `ca.pem`, `NAME.pem` and `NAME.key` from a directory.
    ///
    /// # Errors
    /// When one is missing or is not what its name says.
    pub fn load(directory: &Path, name: &str) -> Result<Self, CertificateError> {
        check_node_name(name)?;
        let ca_path = directory.join(CA_CERTIFICATE_FILE);
        let chain_path = directory.join(format!("{name}.pem"));
        let key_path = directory.join(format!("{name}.key"));
        let content = |path: &Path, expected| CertificateError::Content {
            path: path.to_owned(),
            expected,
        };
        let ca = CertificateDer::from_pem_slice(read(&ca_path)?.as_bytes())
            .map_err(|_| content(&ca_path, "a certificate"))?;
        let chain = parse_chain(&read(&chain_path)?)
            .ok_or_else(|| content(&chain_path, "a certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(read(&key_path)?.as_bytes())
            .map_err(|_| content(&key_path, "a private key"))?;
        warn_if_readable_by_others(&key_path);
        Ok(Self {
            name: name.to_owned(),
            ca,
            chain,
            key,
        })
    }

    /// A new cluster of one identity, called `local`, which exists in memory only. All processes or endpoints that are
    /// to trust each other must share the value.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn ephemeral() -> Result<Self, CertificateError> {
        let ca = ClusterCa::generate()?;
        Self::new(&ca, &ca.issue("local")?)
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// A secret that is the same in each life of the node's process and known to no other.
    pub(crate) fn secret(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, self.key.secret_der())
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            ca: self.ca.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + DAY * VALID_DAYS).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

fn check_node_name(name: &str) -> Result<(), CertificateError> {
    let fits = (1..=64).contains(&name.len())
        && name != "ca"
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if fits {
        Ok(())
    } else {
        Err(CertificateError::Name {
            name: name.to_owned(),
        })
    }
}

fn parse_chain(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .ok()?;
    (!chain.is_empty()).then_some(chain)
}

fn read(path: &Path) -> Result<String, CertificateError> {
    fs::read_to_string(path).map_err(|source| CertificateError::File {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => CertificateError::Exists {
            path: path.to_owned(),
        },
        _ => CertificateError::File {
            path: path.to_owned(),
            action: "written",
            source,
        },
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|source| CertificateError::File {
            path: directory.to_owned(),
            action: "written",
            source,
        })?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

fn warn_if_readable_by_others(path: &Path) {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(
            path = %path.display(),
            "this private key can be read by other users of the machine: `chmod 600` it"
        );
    }
}

#[cfg(test)]
mod tests;
