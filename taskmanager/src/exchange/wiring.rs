//! The channels of a deployment: every task here gets the consumers of its inputs and the producers of its outputs,
//! whether the other end is here or elsewhere. It follows the graph and decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tidemill_protocol::control::{Deployment, TaskLocation};
use tidemill_protocol::{Channel, ChannelHeader, ChannelId, TaskId};

use super::incoming::Incoming;
use super::queue::{Consumer, Producer, queue};

/// The ends of a task's channels, in the order of the graph's own listing.
#[derive(Default)]
pub(crate) struct Wires {
    pub(crate) incoming: Vec<(Channel, Consumer)>,
    pub(crate) outgoing: Vec<(Channel, Producer)>,
}

/// A channel whose receiver is on another TaskManager.
pub(crate) struct RemoteChannel {
    pub(crate) header: ChannelHeader,
    /// The sending task, which is here.
    pub(crate) from: TaskId,
    pub(crate) to: TaskLocation,
    pub(crate) queue: Consumer,
}

/// A deployment that cannot be wired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WiringError {
    #[error(
        "the deployment's {channels} channels may hold {bytes} bytes here (a queue of {queue_bytes} each, and two windows of {window_bytes} more for one that comes from another TaskManager), {total_bytes} with those of other tasks: that exceeds taskmanager.exchange_memory_max_bytes = {memory_max_bytes}; lower the parallelism or taskmanager.channel_queue_max_bytes, or raise the limit"
    )]
    Memory {
        channels: usize,
        bytes: u64,
        queue_bytes: u64,
        window_bytes: u64,
        total_bytes: u64,
        memory_max_bytes: u64,
    },
    #[error("the deployment says nothing of where task {0} runs")]
    NoLocation(TaskId),
    #[error("the deployment names task {0}, which its graph does not have")]
    NoTask(TaskId),
}

/// How much channels may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// The queue of one channel, in bytes.
    pub(crate) queue_bytes: u64,
    /// The flow-control window of a channel from another TaskManager, in bytes. Its reader reads one window ahead.
    pub(crate) window_bytes: u64,
    /// All channels here together, in bytes.
    pub(crate) memory_max_bytes: u64,
    /// What other deployments' channels may hold already, in bytes.
    pub(crate) held_bytes: u64,
}

/// A wired deployment.
pub(crate) struct Wiring {
    /// Each task's ends.
    pub(crate) wires: BTreeMap<TaskId, Wires>,
    /// The channels to pump.
    pub(crate) remote: Vec<RemoteChannel>,
    /// What all of its channels may hold here, in bytes.
    pub(crate) bytes: u64,
}

/// Wires the deployment's tasks.
pub(crate) fn wire(
    deployment: &Deployment,
    limits: QueueLimits,
    incoming: &Incoming,
) -> Result<Wiring, WiringError> {
    let graph = &deployment.graph;
    let here: BTreeSet<TaskId> = deployment.tasks.iter().map(|task| task.task).collect();
    if let Some(unknown) = here.iter().find(|task| graph.stage(**task).is_none()) {
        return Err(WiringError::NoTask(*unknown));
    }
    let is_here = |channel: &Channel| here.contains(&channel.from) || here.contains(&channel.to);
    let channels: Vec<Channel> = graph.channels().filter(is_here).collect();
    let bytes = memory_bytes(&channels, &here, limits)?;

    let bytes_max = usize::try_from(limits.queue_bytes).unwrap_or(usize::MAX);
    let mut wires: BTreeMap<TaskId, Wires> =
        here.iter().map(|task| (*task, Wires::default())).collect();
    let mut local: HashMap<ChannelId, Consumer> = HashMap::new();
    let mut remote = Vec::new();
    for channel in &channels {
        let from = channel.from;
        let Some(ends) = wires.get_mut(&from) else {
            continue;
        };
        let (producer, consumer) = queue(bytes_max);
        ends.outgoing.push((*channel, producer));
        if here.contains(&channel.to) {
            local.insert(channel.id, consumer);
        } else {
            let to = location(deployment, channel.to)?.clone();
            remote.push(RemoteChannel {
                header: header(deployment, channel.id),
                from,
                to,
                queue: consumer,
            });
        }
    }
    for channel in &channels {
        let Some(ends) = wires.get_mut(&channel.to) else {
            continue;
        };
        let consumer = match local.remove(&channel.id) {
            Some(consumer) => consumer,
            None => {
                let peer = location(deployment, channel.from)?.task_manager.clone();
                incoming.expect(header(deployment, channel.id), peer, bytes_max)
            }
        };
        ends.incoming.push((*channel, consumer));
    }
    Ok(Wiring {
        wires,
        remote,
        bytes,
    })
}

fn header(deployment: &Deployment, channel: ChannelId) -> ChannelHeader {
    ChannelHeader {
        job: deployment.job,
        attempt: deployment.attempt,
        channel,
    }
}

fn location(deployment: &Deployment, task: TaskId) -> Result<&TaskLocation, WiringError> {
    let found = deployment
        .locations
        .iter()
        .find(|location| location.task == task);
    found.ok_or(WiringError::NoLocation(task))
}

/// What the channels may hold here.
fn memory_bytes(
    channels: &[Channel],
    here: &BTreeSet<TaskId>,
    limits: QueueLimits,
) -> Result<u64, WiringError> {
    let QueueLimits {
        queue_bytes,
        window_bytes,
        memory_max_bytes,
        held_bytes,
    } = limits;
    let from_elsewhere = channels
        .iter()
        .filter(|channel| !here.contains(&channel.from))
        .count() as u64;
    let queues = (channels.len() as u64).saturating_mul(queue_bytes);
    let bytes = queues.saturating_add(from_elsewhere.saturating_mul(2 * window_bytes));
    let total_bytes = bytes.saturating_add(held_bytes);
    if total_bytes > memory_max_bytes {
        let channels = channels.len();
        return Err(WiringError::Memory {
            channels,
            bytes,
            queue_bytes,
            window_bytes,
            total_bytes,
            memory_max_bytes,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_protocol::ChannelId;

    #[test]
    fn a_deployment_that_needs_too_much_memory_is_refused_with_the_arithmetic() {
        let task = |subtask| TaskId::new(0, subtask);
        let channel = |from, to| Channel {
            id: ChannelId { edge: 0, from, to },
            from: task(from),
            to: task(to),
        };
        let channels = [channel(0, 0), channel(9, 0)];
        let here = BTreeSet::from([task(0)]);
        let limits = QueueLimits {
            queue_bytes: 100,
            window_bytes: 1000,
            memory_max_bytes: 2300,
            held_bytes: 100,
        };
        assert_eq!(memory_bytes(&channels, &here, limits), Ok(2200));
        let refused = memory_bytes(
            &channels,
            &here,
            QueueLimits {
                held_bytes: 101,
                ..limits
            },
        );
        let words = refused.expect_err("one byte too many").to_string();
        assert!(
            words.contains("2301") && words.contains("exchange_memory_max_bytes = 2300"),
            "{words}"
        );
    }
}
