//! The job graph as a module describes it, and the requests that describe and open carry. Wire format: postcard.
//! It never holds code or records; parallelism is resolved, and the graph checked, by the host.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a job is: stages joined by edges. Stage `i` is `stages[i]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobGraph {
    /// The job's name, unless the submission gives another.
    pub name: String,
    /// Every stage, in the order in which the builder closed them.
    pub stages: Vec<Stage>,
    /// Every parameter that the builder asked for, in order of the first use.
    pub parameters: Vec<ParameterSpec>,
}

/// A maximal chain of operators with no exchange inside; runs fused, in one instance per subtask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// For people: the operators' names joined by arrows, unless the user named it.
    pub name: String,
    /// Where its records come from.
    pub input: StageInput,
    /// Number of input ports; each edge into this stage names one. 0 for sources.
    pub ports: u32,
    /// Where its records go; `emit`'s first argument is an index into this list.
    pub outputs: Vec<Output>,
    /// A parallelism fixed by the job; otherwise the submission's.
    pub parallelism: Option<u32>,
    /// The operators fused here, in order.
    pub operators: Vec<Operator>,
}

/// One operator of a stage, as far as the host needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// The user's id, else one derived from the position.
    pub id: String,
    /// What it is: `map`, `filter`, `fold`, …
    pub kind: String,
    /// Whether the id was given by the user.
    pub named: bool,
    /// Whether state is held in SDK containers (portable) — `false` with `closure_state` means only images hold it.
    pub portable_state: bool,
    /// Whether state may be held by a plain closure or operator struct.
    pub closure_state: bool,
}

/// Where a stage's records come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StageInput {
    /// Edges from other stages.
    Edges,
    /// A source written in the guest: the host calls `poll`.
    Guest,
    /// A native source: the host calls `process` on port 0 with framed records.
    Connector(ConnectorSpec),
}

/// Where a stage's records go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// To a port of another stage.
    Edge {
        /// The receiving stage.
        to: u32,
        /// The receiving port.
        port: u32,
        /// Which subtask gets which record.
        partitioning: Partitioning,
    },
    /// To a native sink in the same task, as framed records.
    Sink(ConnectorSpec),
}

/// How records find their subtask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Partitioning {
    /// Subtask i to subtask i; both stages have the same parallelism.
    Forward,
    /// By key group of the key's hash.
    Hash,
    /// Batches in turn to every subtask.
    Rebalance,
    /// Every record to every subtask.
    Broadcast,
}

/// A native connector and its options, checked by the host at submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorSpec {
    /// `files`, `generator`, `print`, `discard`.
    pub kind: String,
    /// Options as text; unknown or misspelt ones refuse the job.
    pub options: BTreeMap<String, String>,
}

/// A parameter that the job asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterSpec {
    /// Its name in `--param name=value`.
    pub name: String,
    /// For people: `integer`, `text`, `true or false`, …
    pub kind: String,
    /// The default as text; `None` means required.
    pub default: Option<String>,
}

/// What `describe` is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribeRequest {
    /// The submission's parameters.
    pub parameters: BTreeMap<String, String>,
    /// Fill missing required parameters with placeholders instead of failing: for inspection, never for running.
    pub allow_missing_parameters: bool,
}

/// What `describe` answers: the graph, or the user's mistake in words (a missing parameter, a value that does not parse).
pub type DescribeResponse = Result<JobGraph, String>;

/// What `open` is given: which part of the graph this instance runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// The stage whose closures this instance keeps.
    pub stage: u32,
    /// Which of the stage's subtasks this is.
    pub subtask: u32,
    /// How many there are.
    pub parallelism: u32,
    /// The number of key groups.
    pub max_parallelism: u32,
    /// For each of the stage's outputs, the parallelism of the receiving stage (1 for a sink).
    pub output_parallelism: Vec<u32>,
    /// The submission's parameters, the same that `describe` was given.
    pub parameters: BTreeMap<String, String>,
}

/// What `open` answers: the graph's hash ([`crate::graph_hash`]), which must equal the stored one, or why it could not.
pub type OpenResponse = Result<u64, String>;
