//! The execution graph: the job graph with parallelism resolved and native helper stages (enumerators) added. It
//! answers which channels exist; it never decides where a task runs.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};
use tidemill_abi::{ConnectorSpec, Output, StageInput};

use crate::TaskId;

/// What runs: stages with their parallelism, joined by edges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionGraph {
    /// The job graph's stages at their own indices, then one enumerator per connector source that needs one.
    pub stages: Vec<ExecutionStage>,
    /// Every edge; edge `i` is `edges[i]`.
    pub edges: Vec<ExecutionEdge>,
    /// The number of key groups.
    pub max_parallelism: u32,
    /// [`tidemill_abi::graph_hash`] of the job graph; `open` must return it.
    pub job_graph_hash: u64,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionStage {
    /// For people.
    pub name: String,
    /// What its tasks are made of.
    pub kind: StageKind,
    /// The number of its tasks.
    pub parallelism: u32,
}

/// What the tasks of a stage are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageKind {
    /// Instances of the job's module, opened with the stage's own index.
    Wasm {
        /// Where records come from, as the module described it.
        input: StageInput,
        /// Number of guest input ports.
        ports: u32,
        /// Where records go, as the module described it; `emit`'s first argument indexes this list.
        outputs: Vec<Output>,
    },
    /// A native task that hands out the splits of a connector source.
    Enumerator {
        /// The source.
        connector: ConnectorSpec,
    },
}

/// One edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionEdge {
    /// The sending stage.
    pub from: u32,
    /// Which of the sender's outputs this is; 0 for an enumerator.
    pub from_output: u32,
    /// The receiving stage.
    pub to: u32,
    /// The receiving guest port; meaningless for splits, which the guest never sees.
    pub to_port: u32,
    /// Which pairs of subtasks have a channel.
    pub routing: Routing,
}

/// Which pairs of subtasks an edge connects, and who chooses among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Routing {
    /// Subtask i to subtask i.
    Forward,
    /// All pairs; the guest chooses the target of each batch (hash, rebalance) or says all (broadcast).
    AllToAll,
    /// All pairs from an enumerator to a source stage; the frames are split assignments.
    Splits,
}

/// One channel: an edge between two subtasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChannelId {
    /// Index into [`ExecutionGraph::edges`].
    pub edge: u32,
    /// Subtask of the sending stage.
    pub from: u32,
    /// Subtask of the receiving stage.
    pub to: u32,
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "edge {} from {} to {}", self.edge, self.from, self.to)
    }
}

/// A channel with its two tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Which channel.
    pub id: ChannelId,
    /// The sending task.
    pub from: TaskId,
    /// The receiving task.
    pub to: TaskId,
}

impl ExecutionGraph {
    /// The stage of a task, unless the task names none of this graph's.
    #[must_use]
    pub fn stage(&self, task: TaskId) -> Option<&ExecutionStage> {
        self.stages
            .get(task.stage as usize)
            .filter(|stage| task.subtask < stage.parallelism)
    }

    /// Every task, stage by stage.
    pub fn tasks(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.stages.iter().zip(0u32..).flat_map(|(stage, index)| {
            (0..stage.parallelism).map(move |subtask| TaskId::new(index, subtask))
        })
    }

    /// Every channel, edge by edge, sender by sender.
    pub fn channels(&self) -> impl Iterator<Item = Channel> + '_ {
        (0u32..).zip(&self.edges).flat_map(move |(index, edge)| {
            let senders = self.stages[edge.from as usize].parallelism;
            (0..senders).flat_map(move |from| self.edge_channels(index, edge, from))
        })
    }

    /// The channels that leave a task, by edge, then by target.
    pub fn outgoing(&self, task: TaskId) -> impl Iterator<Item = Channel> + '_ {
        (0u32..)
            .zip(&self.edges)
            .filter(move |(_, edge)| edge.from == task.stage)
            .flat_map(move |(index, edge)| self.edge_channels(index, edge, task.subtask))
    }

    /// The channels that reach a task, by edge, then by sender.
    pub fn incoming(&self, task: TaskId) -> impl Iterator<Item = Channel> + '_ {
        (0u32..)
            .zip(&self.edges)
            .filter(move |(_, edge)| edge.to == task.stage)
            .flat_map(move |(index, edge)| {
                let senders = self.stages[edge.from as usize].parallelism;
                (0..senders)
                    .flat_map(move |from| self.edge_channels(index, edge, from))
                    .filter(move |channel| channel.to.subtask == task.subtask)
            })
    }

    fn edge_channels(
        &self,
        index: u32,
        edge: &ExecutionEdge,
        from: u32,
    ) -> impl Iterator<Item = Channel> + use<> {
        let receivers = self.stages[edge.to as usize].parallelism;
        let targets = match edge.routing {
            Routing::Forward => from..from + 1,
            Routing::AllToAll | Routing::Splits => 0..receivers,
        };
        let (from_stage, to_stage) = (edge.from, edge.to);
        targets.map(move |to| Channel {
            id: ChannelId {
                edge: index,
                from,
                to,
            },
            from: TaskId::new(from_stage, from),
            to: TaskId::new(to_stage, to),
        })
    }
}
