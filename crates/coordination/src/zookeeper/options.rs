//! How ZooKeeper is reached, and as whom; checked before anything is opened. It never shows a password.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zookeeper_client::{Acls, Connector, TlsOptions};

use crate::OpenError;

/// How a registry in ZooKeeper is reached.
#[derive(Clone, Debug)]
pub struct ZooKeeperOptions {
    /// The servers of the ensemble, `host:port` each.
    pub servers: Vec<String>,
    /// The node below which the cluster keeps everything, such as `/tidemill/main`. It is made when it is missing.
    pub root: String,
    /// How long the session outlives the last contact. The servers may grant another (2 to 20 of their ticks).
    pub session_timeout: Duration,
    /// How long a server may be silent before another is tried; less than the session's.
    pub connection_timeout: Duration,
    /// As whom (scheme `digest`).
    pub credentials: Option<Credentials>,
    /// Who may read and change the nodes that are made.
    pub acl: Access,
    /// TLS to the servers; plain TCP without.
    pub tls: Option<TlsFiles>,
}

/// A user's name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name; without a colon.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Who may read and change nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody who reaches ZooKeeper.
    Open,
    /// Only who has the credentials with which a node was made.
    Creator,
}

/// Files in PEM format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that signed the servers' certificates.
    pub ca: PathBuf,
    /// This client's certificate and its key, where the servers ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Access {
    pub(super) const fn acls(self) -> Acls<'static> {
        match self {
            Self::Open => Acls::anyone_all(),
            Self::Creator => Acls::creator_all(),
        }
    }
}

impl ZooKeeperOptions {
    /// Finds what cannot be right.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        let bad = |setting, value: &str, reason: &str| {
            Err(OpenError::BadSetting {
                setting,
                value: value.into(),
                reason: reason.into(),
            })
        };
        if self.servers.is_empty() {
            return bad("zookeeper.servers", "", "name at least one server");
        }
        for server in &self.servers {
            if !is_host_and_port(server) {
                let reason = "a server is written host:port, such as 10.0.0.1:2181";
                return bad("zookeeper.servers", server, reason);
            }
        }
        if !is_root(&self.root) {
            let reason = "it is the path of a node, such as /tidemill/main: it begins with `/`, does not end with it, \
                          has no empty part, no `.` or `..`, and is not below /zookeeper";
            return bad("zookeeper.root", &self.root, reason);
        }
        let milliseconds = |time: Duration| time.as_millis().to_string();
        if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&self.session_timeout)
        {
            let value = milliseconds(self.session_timeout);
            let reason = "it must be from 100 ms to an hour";
            return bad("zookeeper.session_timeout_ms", &value, reason);
        }
        if self.connection_timeout.is_zero() || self.connection_timeout > self.session_timeout {
            let value = milliseconds(self.connection_timeout);
            let reason = "it must be at least 1 ms and less than zookeeper.session_timeout_ms: about a third of it \
                          leaves time to try other servers";
            return bad("zookeeper.connection_timeout_ms", &value, reason);
        }
        match &self.credentials {
            None if self.acl == Access::Creator => {
                let reason = "there is no creator without zookeeper.user and zookeeper.password";
                bad("zookeeper.acl", "creator", reason)
            }
            Some(credentials) if credentials.user.is_empty() || credentials.user.contains(':') => {
                let reason = "a user has a name, and no colon in it";
                bad("zookeeper.user", &credentials.user, reason)
            }
            _ => Ok(()),
        }
    }

    /// What opens sessions, and the servers as it wants them.
    pub(super) fn connector(&self) -> Result<(Connector, String), OpenError> {
        let mut connector = zookeeper_client::Client::connector()
            .with_session_timeout(self.session_timeout)
            .with_connection_timeout(self.connection_timeout)
            .with_fail_eagerly();
        if let Some(Credentials { user, password }) = &self.credentials {
            connector = connector.with_auth("digest", format!("{user}:{password}").as_bytes());
        }
        let mut protocol = "tcp";
        if let Some(files) = &self.tls {
            connector = connector.with_tls(files.load()?);
            protocol = "tcp+tls";
        }
        let servers: Vec<String> = self
            .servers
            .iter()
            .map(|server| format!("{protocol}://{server}"))
            .collect();
        Ok((connector, servers.join(",")))
    }

    /// The ensemble and the node, for messages.
    pub(super) fn place(&self) -> String {
        format!("zookeeper://{}{}", self.servers.join(","), self.root)
    }
}

impl TlsFiles {
    fn load(&self) -> Result<TlsOptions, OpenError> {
        // Both of rustls' providers are compiled in, so it does not choose one by itself. Another crate may have
        // chosen before, and that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let bad = |setting, file: &Path, source| OpenError::BadFile {
            setting,
            file: file.display().to_string(),
            source,
        };
        let read = |setting, file: &Path| {
            fs::read_to_string(file).map_err(|error| bad(setting, file, error.into()))
        };
        let ca = read("zookeeper.tls_ca", &self.ca)?;
        let mut tls = TlsOptions::new()
            .with_pem_ca(&ca)
            .map_err(|error| bad("zookeeper.tls_ca", &self.ca, error.into()))?;
        if let Some((certificate, key)) = &self.identity {
            let setting = "zookeeper.tls_certificate and zookeeper.tls_key";
            let (certificate_pem, key_pem) = (read(setting, certificate)?, read(setting, key)?);
            tls = tls
                .with_pem_identity(&certificate_pem, &key_pem)
                .map_err(|error| bad(setting, certificate, error.into()))?;
        }
        Ok(tls)
    }
}

/// Whether it is `host:port`, where the host may be `[an IPv6 address]`.
fn is_host_and_port(server: &str) -> bool {
    let Some((host, port)) = server.rsplit_once(':') else {
        return false;
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_fits = match bare {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '/', ',', '[', ']']),
    };
    host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Whether it is the path of a node that may be ours.
fn is_root(root: &str) -> bool {
    let Some(parts) = root.strip_prefix('/') else {
        return false;
    };
    let fits = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.chars().any(char::is_control)
    };
    parts.split('/').all(fits) && parts.split('/').next() != Some("zookeeper")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ZooKeeperOptions {
        ZooKeeperOptions {
            servers: vec!["127.0.0.1:2181".into(), "[::1]:2181".into(), "zk:1".into()],
            root: "/tidemill/main".into(),
            session_timeout: Duration::from_secs(6),
            connection_timeout: Duration::from_secs(2),
            credentials: Some(Credentials {
                user: "tidemill".into(),
                password: "hush:hush".into(),
            }),
            acl: Access::Creator,
            tls: None,
        }
    }

    /// The setting that the error names.
    fn refused(change: impl FnOnce(&mut ZooKeeperOptions)) -> &'static str {
        let mut options = options();
        change(&mut options);
        match options.check() {
            Err(OpenError::BadSetting { setting, .. }) => setting,
            other => panic!("{other:?} of {options:?}"),
        }
    }

    #[test]
    fn what_can_be_right_is_accepted() {
        options().check().unwrap();
        assert_eq!(
            options().connector().unwrap().1,
            "tcp://127.0.0.1:2181,tcp://[::1]:2181,tcp://zk:1"
        );
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_its_name() {
        assert_eq!(
            refused(|options| options.servers.clear()),
            "zookeeper.servers"
        );
        for server in [
            "", "host", "host:", "host:0", "host:x", ":1", "::1:2", "a/b:1", "a,b:1", "[x]:1",
        ] {
            let setting = refused(|options| options.servers[1] = server.into());
            assert_eq!(setting, "zookeeper.servers", "{server}");
        }
        for root in [
            "",
            "/",
            "main",
            "/a/",
            "/a//b",
            "/a/../b",
            "/.",
            "/zookeeper",
            "/zookeeper/x",
            "/a\n",
        ] {
            let setting = refused(|options| options.root = root.into());
            assert_eq!(setting, "zookeeper.root", "{root}");
        }
        assert_eq!(
            refused(|options| options.session_timeout = Duration::from_millis(1)),
            "zookeeper.session_timeout_ms"
        );
        assert_eq!(
            refused(|options| options.connection_timeout = Duration::from_secs(7)),
            "zookeeper.connection_timeout_ms"
        );
        assert_eq!(
            refused(|options| options.credentials = None),
            "zookeeper.acl"
        );
        let unnamed = |options: &mut ZooKeeperOptions| {
            options.credentials = Some(Credentials {
                user: "a:b".into(),
                password: "x".into(),
            });
        };
        assert_eq!(refused(unnamed), "zookeeper.user");
    }

    #[test]
    fn a_password_is_never_shown() {
        assert!(!format!("{:?}", options()).contains("hush"));
    }

    #[test]
    fn a_missing_or_foreign_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        let files = TlsFiles {
            ca: ca.clone(),
            identity: None,
        };
        let message = files.load().unwrap_err().to_string();
        assert!(
            message.contains("zookeeper.tls_ca") && message.contains("ca.pem"),
            "{message}"
        );
        fs::write(&ca, "not PEM").unwrap();
        assert!(matches!(files.load(), Err(OpenError::BadFile { .. })));
    }
}
