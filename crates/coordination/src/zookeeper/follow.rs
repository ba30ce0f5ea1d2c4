//! Who is there: follows the candidates and the TaskManagers by watches for as long as a session lasts, and publishes
//! them. It never decides anything by what it has seen: the fence does.

use std::convert::Infallible;
use std::time::Duration;

use tidemill_protocol::Epoch;
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::record::{JobManagerRecord, TaskManagerRecord};
use tokio::time;
use tracing::warn;
use zookeeper_client::{Error, OneshotWatcher};

use super::layout::{self, LEADER, TASK_MANAGERS};
use super::node::order;
use super::session::{Session, Shared};
use crate::KnownLeader;

/// Before a directory is read again that could not be.
const RETRY: Duration = Duration::from_secs(1);

/// A node below a directory.
struct Member {
    name: String,
    data: Vec<u8>,
    created_by: i64,
}

/// Publishes who leads and who stands for election.
pub(super) async fn job_managers<T>(shared: &Shared, session: &Session) -> T {
    let followed = follow(shared, session, LEADER, |members| {
        let mut candidates: Vec<(i64, &Member)> = members
            .iter()
            .filter_map(|member| Some((order(&member.name)?, member)))
            .collect();
        candidates.sort_by_key(|(order, _)| *order);
        let records: Vec<(Option<JobManagerRecord>, i64)> = candidates
            .into_iter()
            .map(|(_, member)| (decode(LEADER, member), member.created_by))
            .collect();
        let leader = records.first().and_then(|(record, created_by)| {
            Some(KnownLeader {
                epoch: epoch(*created_by),
                record: record.clone()?,
            })
        });
        publish(&shared.leader, leader);
        let records = records.into_iter().filter_map(|(record, _)| record);
        publish(&shared.job_managers, records.collect());
    });
    match followed.await {}
}

/// Publishes which TaskManagers have announced themselves.
pub(super) async fn task_managers<T>(shared: &Shared, session: &Session) -> T {
    let followed = follow(shared, session, TASK_MANAGERS, |members| {
        let mut records: Vec<TaskManagerRecord> = members
            .iter()
            .filter_map(|member| decode(TASK_MANAGERS, member))
            .collect();
        records.sort_by(|one, other| one.id.cmp(&other.id));
        publish(&shared.task_managers, records);
    });
    match followed.await {}
}

/// A leader's fencing number: that of the transaction which made its node.
pub(super) const fn epoch(created_by: i64) -> Epoch {
    Epoch(created_by.unsigned_abs())
}

/// Hands over what is below a directory, now and whenever it changes.
async fn follow(
    shared: &Shared,
    session: &Session,
    directory: &str,
    changed: impl Fn(&[Member]),
) -> Infallible {
    loop {
        match read(session, directory).await {
            Ok((members, watcher)) => {
                changed(&members);
                // It fires at the end of the session too, and whoever polls this knows that by himself.
                watcher.changed().await;
                if session.client.state().is_terminated() {
                    return std::future::pending().await;
                }
            }
            // The next question waits for the connection.
            Err(Error::ConnectionLoss) => {}
            Err(Error::SessionExpired | Error::ClientClosed) => {
                return std::future::pending().await;
            }
            Err(error) => {
                warn!(directory, "cannot be followed: {error}");
                if error == Error::NoNode
                    && let Err(error) = layout::make(&session.client, shared).await
                {
                    warn!(directory, "cannot be made again: {error}");
                }
                time::sleep(RETRY).await;
            }
        }
    }
}

async fn read(session: &Session, directory: &str) -> Result<(Vec<Member>, OneshotWatcher), Error> {
    let client = &session.client;
    let (names, watcher) = client.list_and_watch_children(directory).await?;
    // All are asked for before the first answer is waited for.
    let asked: Vec<_> = names
        .iter()
        .map(|name| client.get_data(&format!("{directory}/{name}")))
        .collect();
    let mut members = Vec::new();
    for (name, asked) in names.into_iter().zip(asked) {
        match asked.await {
            Ok((data, stat)) => members.push(Member {
                name,
                data,
                created_by: stat.czxid,
            }),
            // It went in between, and the watch has fired.
            Err(Error::NoNode) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((members, watcher))
}

fn decode<T: Versioned>(directory: &str, member: &Member) -> Option<T> {
    codec::decode(&member.data)
        .inspect_err(|error| {
            let name = &member.name;
            warn!(
                directory,
                name, "a node that cannot be read is passed over: {error}"
            );
        })
        .ok()
}

fn publish<T: PartialEq>(to: &tokio::sync::watch::Sender<T>, new: T) {
    to.send_if_modified(|known| {
        let changed = *known != new;
        *known = new;
        changed
    });
}
