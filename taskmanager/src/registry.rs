//! The registry as a TaskManager uses it: to be found there, and to find the leader. It never reads or writes anything
//! else of it, and nothing that runs here depends on its being in reach.

use std::time::Duration;

use tidemill_config::{Config, Coordination, ZooKeeperAcl};
use tidemill_coordination::{
    Access, Credentials, OpenError, Presence, TlsFiles, ZooKeeper, ZooKeeperOptions,
};
use tidemill_protocol::control::Registration;
use tidemill_protocol::record::TaskManagerRecord;
use tracing::warn;

use crate::leaders::{Leaders, Named};

/// How long the registry may take to forget a TaskManager that leaves: it forgets it anyhow when the session ends.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(2);

/// A TaskManager's node in the registry, and the session that keeps it there.
pub(crate) struct Announcement {
    presence: Presence,
    // The last to go.
    _registry: ZooKeeper,
}

/// Opens the registry, if the cluster has one that TaskManagers share, and announces this TaskManager in it; returns
/// where leaders are to be looked for as well.
///
/// # Errors
/// When an option cannot be right or a file that it names cannot be used. Servers that do not answer are no error.
pub(crate) fn announce(
    config: &Config,
    registration: &Registration,
) -> Result<(Leaders, Option<Announcement>), OpenError> {
    if config.cluster.coordination == Coordination::Embedded {
        let addresses = config.taskmanager.jobmanagers.clone();
        return Ok((Leaders::Fixed(addresses), None));
    }
    let registry = ZooKeeper::open(options(config))?;
    let presence = registry.announce(TaskManagerRecord {
        id: registration.id.clone(),
        incarnation: registration.incarnation,
        data_address: registration.data_address.clone(),
        slots: registration.slots,
    });
    let leaders = Leaders::Named(Named::of(&registry));
    let announcement = Announcement {
        presence,
        _registry: registry,
    };
    Ok((leaders, Some(announcement)))
}

impl Announcement {
    /// Takes the node away, or leaves it to the session's end when the registry is out of reach.
    pub(crate) async fn withdraw(self) {
        let withdrawn = tokio::time::timeout(WITHDRAW_TIMEOUT, self.presence.withdraw()).await;
        if withdrawn.is_err() {
            warn!(
                "the registry did not forget this TaskManager in time; its node there ends with its session"
            );
        }
    }
}

fn options(config: &Config) -> ZooKeeperOptions {
    let options = &config.zookeeper;
    let credentials = options.user.clone().zip(options.password.as_ref());
    let tls = options.tls_ca.clone().filter(|_| options.tls);
    ZooKeeperOptions {
        servers: options.servers.clone(),
        root: config.zookeeper_root(),
        session_timeout: Duration::from_millis(options.session_timeout_ms),
        connection_timeout: Duration::from_millis(options.connection_timeout_ms),
        credentials: credentials.map(|(user, password)| Credentials {
            user,
            password: password.to_string(),
        }),
        acl: match options.acl {
            ZooKeeperAcl::Open => Access::Open,
            ZooKeeperAcl::Creator => Access::Creator,
        },
        tls: tls.map(|ca| TlsFiles {
            ca,
            identity: options.tls_certificate.clone().zip(options.tls_key.clone()),
        }),
    }
}
