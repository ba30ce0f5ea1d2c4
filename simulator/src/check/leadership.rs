//! At most one effective leader per epoch, and no effect of an older epoch after one of a newer: not in the registry, not at
//! any TaskManager, and not even an action, since a leader stops before its session can have expired.

use tidemill_protocol::Epoch;

use super::{Checkers, Judged};
use crate::node::Node;

impl Checkers {
    /// A candidate is first in the queue for the lock.
    pub(crate) fn elected(&mut self, epoch: Epoch, node: Node, life: u64) -> Judged {
        if let Some((newest, _)) = self.elected.last_key_value()
            && *newest >= epoch
        {
            return Err(format!(
                "{node} is elected under epoch {epoch} after epoch {newest}"
            ));
        }
        self.elected.insert(epoch, (node, life));
        Ok(())
    }

    /// A session is ended though its client is heard: only the fence keeps its leader from doing harm.
    pub(crate) fn forced(&mut self, epoch: Epoch) {
        self.forced.insert(epoch);
    }

    /// A leader does something.
    pub(crate) fn acts(&self, node: Node, life: u64, epoch: Epoch) -> Judged {
        if self.elected.get(&epoch) != Some(&(node, life)) {
            return Err(format!(
                "{node} acts under epoch {epoch}, which is not its own"
            ));
        }
        match self.elected.last_key_value() {
            Some((newest, (other, _))) if *newest > epoch && !self.forced.contains(&epoch) => {
                Err(format!(
                    "{node} acts under epoch {epoch} after {other} was elected under epoch {newest}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// The registry carries out a write.
    pub(super) fn written_under(&mut self, epoch: Epoch) -> Judged {
        if epoch < self.written_under {
            let newer = self.written_under;
            return Err(format!(
                "a write of epoch {epoch} is carried out after one of epoch {newer}"
            ));
        }
        self.written_under = epoch;
        Ok(())
    }

    /// A TaskManager obeys.
    pub(crate) fn obeyed(&mut self, node: Node, life: u64, epoch: Epoch) -> Judged {
        let newest = self.obeyed.entry((node, life)).or_default();
        if epoch < *newest {
            return Err(format!("{node} obeys epoch {epoch} after epoch {newest}"));
        }
        *newest = epoch;
        Ok(())
    }
}
