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
        "{channels} channels of {bytes_max} bytes ({} bytes with those of other tasks here) exceed taskmanager.exchange_memory_max_bytes = {memory_max_bytes}: \
         lower the parallelism, lower taskmanager.channel_queue_max_bytes, or raise the limit",
        total_bytes
    )]
    Memory {
        channels: u64,
        bytes_max: u64,
        total_bytes: u64,
        memory_max_bytes: u64,
    },
    #[error("the deployment says nothing of where task {0} runs")]
    NoLocation(TaskId),
    #[error("the deployment names task {0}, which its graph does not have")]
    NoTask(TaskId),
}

/// How much the queues of channels may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// Of one channel.
    pub(crate) bytes_max: u64,
    /// Of all channels here.
    pub(crate) memory_max_bytes: u64,
    /// Channels that other deployments hold.
    pub(crate) held_channels: u64,
}

/// A wired deployment.
pub(crate) struct Wiring {
    /// Each task's ends.
    pub(crate) wires: BTreeMap<TaskId, Wires>,
    /// The channels to pump.
    pub(crate) remote: Vec<RemoteChannel>,
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
    check_memory(channels.len() as u64, limits)?;

    let bytes_max = usize::try_from(limits.bytes_max).unwrap_or(usize::MAX);
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
    Ok(Wiring { wires, remote })
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

fn check_memory(channels: u64, limits: QueueLimits) -> Result<(), WiringError> {
    let total_bytes = (channels + limits.held_channels).saturating_mul(limits.bytes_max);
    if total_bytes > limits.memory_max_bytes {
        let QueueLimits {
            bytes_max,
            memory_max_bytes,
            ..
        } = limits;
        return Err(WiringError::Memory {
            channels,
            bytes_max,
            total_bytes,
            memory_max_bytes,
        });
    }
    Ok(())
}
