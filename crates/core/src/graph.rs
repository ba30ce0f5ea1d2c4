//! From the job graph that a module describes to the execution graph that runs: parallelism resolved, enumerators added,
//! everything checked. Also the regions of an execution graph. It never looks at a connector's options.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use tidemill_abi::{JobGraph, Output, Partitioning, Stage, StageInput, graph_hash};
use tidemill_protocol::{
    ExecutionEdge, ExecutionGraph, ExecutionStage, Routing, StageKind, TaskId,
};

/// The most stages a job may have, enumerators included.
pub const STAGES_MAX: usize = 1_000;
/// The most tasks a job may have.
pub const TASKS_MAX: u64 = 20_000;
/// The most channels a job may have.
pub const CHANNELS_MAX: u64 = 4_000_000;
/// The largest number of key groups, and so the largest parallelism: Flink's limit.
pub const MAX_PARALLELISM_MAX: u32 = 32_768;

/// What the cluster's connectors are like, as far as the graph depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectorTraits {
    /// Kinds of source connectors whose work is handed out as splits by an enumerator.
    pub enumerated: BTreeSet<String>,
}

/// A job graph that cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// There is nothing to run.
    #[error("the job has no stages: its function must build at least a source and a sink")]
    NoStages,
    /// Nothing brings records in.
    #[error("the job has no source: begin with `job.source(…)`")]
    NoSource,
    /// More stages than [`STAGES_MAX`].
    #[error("the job has {stages} stages, and at most {STAGES_MAX} are accepted")]
    TooManyStages {
        /// How many.
        stages: usize,
    },
    /// More tasks than [`TASKS_MAX`].
    #[error(
        "the job would have {tasks} tasks, and at most {TASKS_MAX} are accepted: lower the parallelism"
    )]
    TooManyTasks {
        /// How many.
        tasks: u64,
    },
    /// More channels than [`CHANNELS_MAX`].
    #[error(
        "the job would have {channels} channels, and at most {CHANNELS_MAX} are accepted: lower the parallelism"
    )]
    TooManyChannels {
        /// How many.
        channels: u64,
    },
    /// The number of key groups is 0 or above [`MAX_PARALLELISM_MAX`].
    #[error("max_parallelism is {max_parallelism}: it must be in 1..={MAX_PARALLELISM_MAX}")]
    MaxParallelism {
        /// What was asked for.
        max_parallelism: u32,
    },
    /// The parallelism is 0.
    #[error("{whose} is 0: it must be at least 1")]
    ParallelismZero {
        /// `the job's parallelism` or the stage's.
        whose: String,
    },
    /// The parallelism is above the number of key groups.
    #[error(
        "{whose} is {parallelism}, above max_parallelism {max_parallelism}: lower it, or raise max_parallelism"
    )]
    ParallelismAboveMax {
        /// `the job's parallelism` or the stage's.
        whose: String,
        /// What was asked for.
        parallelism: u32,
        /// The limit.
        max_parallelism: u32,
    },
    /// An edge leads nowhere.
    #[error("an output of stage `{from}` leads to stage {to}, and there are only {stages} stages")]
    DanglingEdge {
        /// The sending stage.
        from: String,
        /// The index that names no stage.
        to: u32,
        /// How many there are.
        stages: usize,
    },
    /// An edge leads to a port that the receiver does not have.
    #[error("stage `{from}` sends to port {port} of stage `{to}`, which has {ports} ports")]
    BadPort {
        /// The sending stage.
        from: String,
        /// The receiving stage.
        to: String,
        /// The port that does not exist.
        port: u32,
        /// How many there are.
        ports: u32,
    },
    /// A port that no edge reaches: the stage would wait for ever.
    #[error("nothing is connected to port {port} of stage `{stage}`")]
    UnconnectedPort {
        /// The stage.
        stage: String,
        /// The port.
        port: u32,
    },
    /// A stage that expects edges and has no port for any.
    #[error("stage `{stage}` cannot be reached from any source")]
    Unreachable {
        /// The stage.
        stage: String,
    },
    /// An edge leads into a source.
    #[error("stage `{from}` sends to stage `{to}`, which is a source and takes no input")]
    EdgeIntoSource {
        /// The sending stage.
        from: String,
        /// The source.
        to: String,
    },
    /// Records would go round in circles.
    #[error("the job's graph has a cycle: {}", path.join(" → "))]
    Cycle {
        /// The stages along the cycle; the first is repeated last.
        path: Vec<String>,
    },
    /// A forward edge joins subtask i to subtask i, so both sides need the same number.
    #[error(
        "stage `{from}` ({from_parallelism} tasks) forwards to stage `{to}` ({to_parallelism} tasks): give them the same parallelism, or rebalance between them"
    )]
    ForwardParallelism {
        /// The sending stage.
        from: String,
        /// Its tasks.
        from_parallelism: u32,
        /// The receiving stage.
        to: String,
        /// Its tasks.
        to_parallelism: u32,
    },
}

/// Resolves and checks a job graph.
///
/// # Errors
/// The first thing found that cannot run, with the names of the stages.
pub fn resolve(
    graph: &JobGraph,
    parallelism: u32,
    max_parallelism: u32,
    connectors: &ConnectorTraits,
) -> Result<ExecutionGraph, GraphError> {
    if max_parallelism == 0 || max_parallelism > MAX_PARALLELISM_MAX {
        return Err(GraphError::MaxParallelism { max_parallelism });
    }
    check_parallelism("the job's parallelism", parallelism, max_parallelism)?;
    check_shape(graph)?;
    let mut stages = Vec::with_capacity(graph.stages.len());
    for stage in &graph.stages {
        let own = stage.parallelism.unwrap_or(parallelism);
        let whose = format!("the parallelism of stage `{}`", stage.name);
        check_parallelism(&whose, own, max_parallelism)?;
        stages.push(ExecutionStage {
            name: stage.name.clone(),
            kind: StageKind::Wasm {
                input: stage.input.clone(),
                ports: stage.ports,
                outputs: stage.outputs.clone(),
            },
            parallelism: own,
        });
    }
    let mut edges = job_edges(graph, &stages)?;
    add_enumerators(graph, connectors, &mut stages, &mut edges);
    check_size(&stages, &edges)?;
    Ok(ExecutionGraph {
        stages,
        edges,
        max_parallelism,
        job_graph_hash: graph_hash(graph),
    })
}

/// The regions of a graph: tasks joined by channels, which fail and restart as one. In order of their least task.
#[must_use]
pub fn regions(graph: &ExecutionGraph) -> Vec<BTreeSet<TaskId>> {
    let mut parents: BTreeMap<TaskId, TaskId> = graph.tasks().map(|task| (task, task)).collect();
    for channel in graph.channels() {
        let (a, b) = (
            root(&mut parents, channel.from),
            root(&mut parents, channel.to),
        );
        parents.insert(a.max(b), a.min(b));
    }
    let mut regions: BTreeMap<TaskId, BTreeSet<TaskId>> = BTreeMap::new();
    for task in graph.tasks() {
        regions
            .entry(root(&mut parents, task))
            .or_default()
            .insert(task);
    }
    regions.into_values().collect()
}

/// The root of a task's tree, halving the path to it.
fn root(parents: &mut BTreeMap<TaskId, TaskId>, mut task: TaskId) -> TaskId {
    loop {
        let parent = parents[&task];
        if parent == task {
            return task;
        }
        let grandparent = parents[&parent];
        parents.insert(task, grandparent);
        task = grandparent;
    }
}

fn check_parallelism(
    whose: &str,
    parallelism: u32,
    max_parallelism: u32,
) -> Result<(), GraphError> {
    if parallelism == 0 {
        return Err(GraphError::ParallelismZero {
            whose: whose.into(),
        });
    }
    if parallelism > max_parallelism {
        return Err(GraphError::ParallelismAboveMax {
            whose: whose.into(),
            parallelism,
            max_parallelism,
        });
    }
    Ok(())
}

fn edges_of(stage: &Stage) -> impl Iterator<Item = (u32, u32, u32, Partitioning)> + '_ {
    (0u32..)
        .zip(&stage.outputs)
        .filter_map(|(output, target)| match target {
            Output::Edge {
                to,
                port,
                partitioning,
            } => Some((output, *to, *port, *partitioning)),
            Output::Sink(_) => None,
        })
}

fn check_shape(graph: &JobGraph) -> Result<(), GraphError> {
    let stages = &graph.stages;
    if stages.is_empty() {
        return Err(GraphError::NoStages);
    }
    if stages.len() > STAGES_MAX {
        return Err(GraphError::TooManyStages {
            stages: stages.len(),
        });
    }
    let mut connected: BTreeSet<(u32, u32)> = BTreeSet::new();
    for stage in stages {
        for (_, to, port, _) in edges_of(stage) {
            check_edge(stages, stage, to, port)?;
            connected.insert((to, port));
        }
    }
    if stages.iter().all(|stage| stage.input == StageInput::Edges) {
        return Err(GraphError::NoSource);
    }
    for (index, stage) in (0u32..).zip(stages) {
        if stage.input != StageInput::Edges {
            continue;
        }
        let name = || stage.name.clone();
        let mut reached = connected.range((index, 0)..=(index, u32::MAX));
        if reached.next().is_none() {
            return Err(GraphError::Unreachable { stage: name() });
        }
        // Ports beyond the connected ones may be any number, so look for the first gap instead of trying each.
        let used = connected
            .range((index, 0)..=(index, u32::MAX))
            .map(|(_, port)| *port);
        let gap = (0u32..)
            .zip(used)
            .find(|(wanted, port)| wanted != port)
            .map(|(wanted, _)| wanted);
        let count = connected.range((index, 0)..=(index, u32::MAX)).count();
        let missing = gap.or_else(|| u32::try_from(count).ok().filter(|next| *next < stage.ports));
        if let Some(port) = missing {
            return Err(GraphError::UnconnectedPort {
                stage: name(),
                port,
            });
        }
    }
    check_cycles(stages)
}

fn check_edge(stages: &[Stage], from: &Stage, to: u32, port: u32) -> Result<(), GraphError> {
    let Some(target) = stages.get(to as usize) else {
        return Err(GraphError::DanglingEdge {
            from: from.name.clone(),
            to,
            stages: stages.len(),
        });
    };
    if target.input != StageInput::Edges {
        return Err(GraphError::EdgeIntoSource {
            from: from.name.clone(),
            to: target.name.clone(),
        });
    }
    if port >= target.ports {
        return Err(GraphError::BadPort {
            from: from.name.clone(),
            to: target.name.clone(),
            port,
            ports: target.ports,
        });
    }
    Ok(())
}

/// Depth-first search with its own stack, so that a long chain cannot exhaust the thread's.
fn check_cycles(stages: &[Stage]) -> Result<(), GraphError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let targets: Vec<Vec<usize>> = stages
        .iter()
        .map(|stage| edges_of(stage).map(|(_, to, _, _)| to as usize).collect())
        .collect();
    let mut marks = vec![Mark::New; stages.len()];
    for start in 0..stages.len() {
        // Each entry of the path: a stage and how many of its targets have been followed.
        let mut path: Vec<(usize, usize)> = Vec::new();
        if marks[start] == Mark::New {
            marks[start] = Mark::OnPath;
            path.push((start, 0));
        }
        while let Some((stage, followed)) = path.last_mut() {
            let stage = *stage;
            let Some(&next) = targets[stage].get(*followed) else {
                marks[stage] = Mark::Done;
                path.pop();
                continue;
            };
            *followed += 1;
            match marks[next] {
                Mark::Done => {}
                Mark::New => {
                    marks[next] = Mark::OnPath;
                    path.push((next, 0));
                }
                Mark::OnPath => {
                    let on_path = path.iter().map(|(stage, _)| *stage);
                    let cycle = on_path.skip_while(|stage| *stage != next).chain([next]);
                    let path = cycle.map(|stage| stages[stage].name.clone()).collect();
                    return Err(GraphError::Cycle { path });
                }
            }
        }
    }
    Ok(())
}

fn job_edges(
    graph: &JobGraph,
    stages: &[ExecutionStage],
) -> Result<Vec<ExecutionEdge>, GraphError> {
    let mut edges = Vec::new();
    for (from, stage) in (0u32..).zip(&graph.stages) {
        for (from_output, to, to_port, partitioning) in edges_of(stage) {
            let (sender, receiver) = (&stages[from as usize], &stages[to as usize]);
            let routing = match partitioning {
                Partitioning::Forward => Routing::Forward,
                Partitioning::Hash | Partitioning::Rebalance | Partitioning::Broadcast => {
                    Routing::AllToAll
                }
            };
            if routing == Routing::Forward && sender.parallelism != receiver.parallelism {
                return Err(GraphError::ForwardParallelism {
                    from: sender.name.clone(),
                    from_parallelism: sender.parallelism,
                    to: receiver.name.clone(),
                    to_parallelism: receiver.parallelism,
                });
            }
            edges.push(ExecutionEdge {
                from,
                from_output,
                to,
                to_port,
                routing,
            });
        }
    }
    Ok(edges)
}

fn add_enumerators(
    graph: &JobGraph,
    connectors: &ConnectorTraits,
    stages: &mut Vec<ExecutionStage>,
    edges: &mut Vec<ExecutionEdge>,
) {
    for (source, stage) in (0u32..).zip(&graph.stages) {
        let StageInput::Connector(connector) = &stage.input else {
            continue;
        };
        if !connectors.enumerated.contains(&connector.kind) {
            continue;
        }
        let enumerator = u32::try_from(stages.len()).expect("STAGES_MAX fits");
        stages.push(ExecutionStage {
            name: format!("splits of {}", stage.name),
            kind: StageKind::Enumerator {
                connector: connector.clone(),
            },
            parallelism: 1,
        });
        edges.push(ExecutionEdge {
            from: enumerator,
            from_output: 0,
            to: source,
            to_port: 0,
            routing: Routing::Splits,
        });
    }
}

fn check_size(stages: &[ExecutionStage], edges: &[ExecutionEdge]) -> Result<(), GraphError> {
    if stages.len() > STAGES_MAX {
        return Err(GraphError::TooManyStages {
            stages: stages.len(),
        });
    }
    let tasks = stages
        .iter()
        .map(|stage| u64::from(stage.parallelism))
        .sum();
    if tasks > TASKS_MAX {
        return Err(GraphError::TooManyTasks { tasks });
    }
    let parallelism = |stage: u32| u64::from(stages[stage as usize].parallelism);
    let channels = edges
        .iter()
        .map(|edge| match edge.routing {
            Routing::Forward => parallelism(edge.from),
            Routing::AllToAll | Routing::Splits => parallelism(edge.from) * parallelism(edge.to),
        })
        .sum();
    if channels > CHANNELS_MAX {
        return Err(GraphError::TooManyChannels { channels });
    }
    Ok(())
}

#[cfg(test)]
#[path = "graph/tests.rs"]
mod tests;
