//! Which node is where below the root. It never puts two kinds of things below one node.

use tracing::info;
use zookeeper_client::{Client, CreateMode, Error};

use super::session::Shared;

/// Candidates; the one with the lowest number leads.
pub(super) const LEADER: &str = "/leader";
/// TaskManagers that are there.
pub(super) const TASK_MANAGERS: &str = "/taskmanagers";
/// Jobs.
pub(super) const JOBS: &str = "/jobs";
/// Pointers to completed checkpoints, by job.
pub(super) const CHECKPOINTS: &str = "/checkpoints";
/// Named locks.
pub(super) const LOCKS: &str = "/locks";

/// Makes the nodes that everything else is below.
pub(super) async fn make(client: &Client, shared: &Shared) -> Result<(), Error> {
    let directory = CreateMode::Persistent.with_acls(shared.options.acl.acls());
    for path in [LEADER, TASK_MANAGERS, JOBS, CHECKPOINTS, LOCKS] {
        if client.check_stat(path).await?.is_some() {
            continue;
        }
        match client.create(path, b"", &directory).await {
            Ok(_) | Err(Error::NodeExists) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Deletes the candidates that ended sessions of this process have left behind, so that it does not wait for itself.
/// (Servers that were out of reach of each other let a session live longer than its client does.)
pub(super) async fn exorcise(client: &Client, shared: &Shared) -> Result<(), Error> {
    for name in client.list_children(LEADER).await? {
        let path = format!("{LEADER}/{name}");
        let ghost = match client.check_stat(&path).await? {
            Some(stat) => {
                stat.ephemeral_owner != client.session_id().0
                    && shared.is_ghost(stat.ephemeral_owner)
            }
            None => false,
        };
        if ghost {
            info!(
                path,
                "a candidate of this process's ended session is deleted"
            );
            match client.delete(&path, None).await {
                Ok(()) | Err(Error::NoNode) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// A node's name for any text: what could not be in one is written `%` and two hexadecimal digits.
pub(super) fn node_name(text: &str) -> String {
    let only_dots = text.chars().all(|letter| letter == '.');
    let mut name = String::new();
    for byte in text.bytes() {
        let fits =
            byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || byte == b'.' && !only_dots;
        if fits {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02x}"));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_are_told_apart_and_hold_nothing_odd() {
        assert_eq!(node_name("tm-1.example"), "tm-1.example");
        assert_eq!(node_name(".."), "%2e%2e");
        assert_eq!(node_name("a/b%2f"), "a%2fb%252f");
        assert_eq!(node_name("é\n"), "%c3%a9%0a");
    }
}
