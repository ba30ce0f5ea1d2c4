//! Deletes the node of a leader whose process has ended, so that nobody waits for its session. The fence makes it safe:
//! whatever such a leader might still write is checked against that node.

use std::sync::Arc;

use tidemill_protocol::Epoch;
use zookeeper_client::{Error, Stat};

use super::follow;
use super::layout::LEADER;
use super::session::{Session, Shared};
use crate::WriteError;
use crate::error::Cause;

/// Deletes the candidate's node that was made by the transaction with this number, if it is there.
pub(super) async fn depose(shared: &Arc<Shared>, epoch: Epoch) -> Result<(), WriteError> {
    let failed = |source: Cause| WriteError::Failed {
        place: shared.place.clone(),
        what: format!("the end of the leadership with epoch {epoch}"),
        source,
    };
    let session = shared.session().await;
    let session = session.map_err(|trouble| failed(trouble.into()))?;
    let removed = remove(&session, epoch).await;
    // Whether it was removed or not, to remove it again does no harm.
    removed.map_err(|error| failed(error.into()))
}

async fn remove(session: &Session, epoch: Epoch) -> Result<(), Error> {
    let client = &session.client;
    for name in client.list_children(LEADER).await? {
        let path = format!("{LEADER}/{name}");
        let is_its = |stat: Stat| follow::epoch(stat.czxid) == epoch;
        if !client.check_stat(&path).await?.is_some_and(is_its) {
            continue;
        }
        return match client.delete(&path, None).await {
            Ok(()) | Err(Error::NoNode) => Ok(()),
            Err(error) => Err(error),
        };
    }
    Ok(())
}
