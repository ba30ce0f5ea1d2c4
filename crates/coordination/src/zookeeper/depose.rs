//! Deletes the node of a leader whose process has ended, so that nobody waits for its session. The fence makes it safe:
//! whatever such a leader might still write is checked against that node.

use std::sync::Arc;

use tidemill_protocol::Epoch;
use zookeeper_client::{Error, Stat};

use super::follow;
use super::layout::LEADER;
use super::session::{Session, Shared};
use crate::WriteError;

/// Deletes the candidate's node that was made by the transaction with this number, if it is there.
pub(super) async fn depose(shared: &Arc<Shared>, epoch: Epoch) -> Result<(), WriteError> {
    let (place, what) = (
        shared.place.clone(),
        format!("the end of the leadership with epoch {epoch}"),
    );
    let session = match shared.session().await {
        Ok(session) => session,
        Err(trouble) => {
            let source = trouble.into();
            return Err(WriteError::Failed {
                place,
                what,
                source,
            });
        }
    };
    // Its answer may have been lost; to ask again does no harm.
    let removed = remove(&session, epoch).await;
    removed.map_err(|error| WriteError::Unknown {
        place,
        what,
        source: error.into(),
    })
}

async fn remove(session: &Session, epoch: Epoch) -> Result<(), Error> {
    let client = &session.client;
    // A server that lags may not have heard of the node yet: it would be left there although nothing failed.
    let (synced, names) = (client.sync(LEADER), client.list_children(LEADER));
    synced.await?;
    for name in names.await? {
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
