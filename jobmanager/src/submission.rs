//! A submission, from bytes to everything a job record needs: the module is checked and instrumented, its graph is built
//! in a sandbox, resolved and checked, and its connectors' options are read. It stores nothing and starts nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use tidemill_abi::{ConnectorSpec, DescribeRequest, JobGraph, Output, StageInput};
use tidemill_config::Config;
use tidemill_core::graph::{ConnectorTraits, resolve};
use tidemill_protocol::record::JobOptions;
use tidemill_protocol::{ExecutionGraph, StageKind};
use tidemill_runtime::{Engine, InstanceLimits, ModuleError, ModuleLimits, describe_job, prepare};

use crate::error_chain;
use crate::handle::{SubmitError, SubmitOptions};

/// A submission that may become a job.
pub(crate) struct CheckedSubmission {
    /// The instrumented module.
    pub(crate) module: Bytes,
    pub(crate) name: String,
    pub(crate) graph: JobGraph,
    /// The graph, resolved.
    pub(crate) execution: ExecutionGraph,
    pub(crate) options: JobOptions,
    /// The directories that its sinks write to; no other job may write there at the same time.
    pub(crate) output_directories: BTreeSet<PathBuf>,
    /// What the submitter may want to know.
    pub(crate) warnings: Vec<String>,
}

impl CheckedSubmission {
    /// The graph as it is stored.
    pub(crate) fn encoded_graph(&self) -> Vec<u8> {
        postcard::to_allocvec(&self.graph).expect("derived serialisation into memory never fails")
    }
}

/// Reads a stored graph.
///
/// # Errors
/// When the bytes are no graph.
pub(crate) fn decoded_graph(bytes: &[u8]) -> Result<JobGraph, String> {
    postcard::from_bytes(bytes).map_err(|error| format!("the stored graph is damaged: {error}"))
}

/// Reads a stored graph and resolves it again.
///
/// # Errors
/// When the bytes are no graph, or not one that can run with these options.
pub(crate) fn stored_graph(bytes: &[u8], options: &JobOptions) -> Result<ExecutionGraph, String> {
    let graph = decoded_graph(bytes)?;
    resolve(
        &graph,
        options.parallelism,
        options.max_parallelism,
        &connector_traits(&graph),
    )
    .map_err(|error| error_chain(&error))
}

/// Which connectors hand out their work as splits.
pub(crate) fn connector_traits(graph: &JobGraph) -> ConnectorTraits {
    let needs_enumerator = |spec: &&ConnectorSpec| {
        tidemill_connectors::check_source(spec).is_ok_and(|source| source.needs_enumerator)
    };
    ConnectorTraits {
        enumerated: sources(graph)
            .filter(needs_enumerator)
            .map(|spec| spec.kind.clone())
            .collect(),
    }
}

/// The directories that a graph's sinks write to.
pub(crate) fn output_directories(graph: &ExecutionGraph) -> BTreeSet<PathBuf> {
    let outputs = graph.stages.iter().flat_map(|stage| match &stage.kind {
        StageKind::Wasm { outputs, .. } => outputs.as_slice(),
        StageKind::Enumerator { .. } => &[],
    });
    sinks(outputs)
        .filter_map(tidemill_connectors::sink_directory)
        .collect()
}

fn sources(graph: &JobGraph) -> impl Iterator<Item = &ConnectorSpec> {
    graph.stages.iter().filter_map(|stage| match &stage.input {
        StageInput::Connector(spec) => Some(spec),
        StageInput::Edges | StageInput::Guest => None,
    })
}

fn sinks<'a>(
    outputs: impl IntoIterator<Item = &'a Output>,
) -> impl Iterator<Item = &'a ConnectorSpec> {
    outputs.into_iter().filter_map(|output| match output {
        Output::Sink(spec) => Some(spec),
        Output::Edge { .. } => None,
    })
}

/// Checks a submission. Compiles and runs guest code: for a thread that may block.
///
/// # Errors
/// What is wrong with it, and where.
pub(crate) fn check(
    engine: &Engine,
    config: &Config,
    wasm: &[u8],
    submitted: SubmitOptions,
) -> Result<CheckedSubmission, SubmitError> {
    let limits = ModuleLimits {
        module_max_bytes: config.jobmanager.module_bytes_max,
    };
    let prepared = prepare(wasm, &limits).map_err(|error| match error {
        ModuleError::TooLarge { .. } => SubmitError::TooLarge {
            len: wasm.len() as u64,
            max: config.jobmanager.module_bytes_max,
        },
        other => SubmitError::Module {
            reason: error_chain(&other),
        },
    })?;
    let cache_dir = config.jobmanager.data_dir.join("compiled");
    let module = engine
        .compile(&prepared.bytes, Some(&cache_dir))
        .map_err(|error| SubmitError::Module {
            reason: error_chain(&error),
        })?;
    let request = DescribeRequest {
        parameters: submitted.parameters.clone(),
        allow_missing_parameters: false,
    };
    let graph = describe_job(&module, &request, describe_limits(config)).map_err(|error| {
        SubmitError::Describe {
            reason: error_chain(&error),
        }
    })?;
    let options = job_options(config, &submitted);
    check_connectors(&graph)?;
    let execution = resolve(
        &graph,
        options.parallelism,
        options.max_parallelism,
        &connector_traits(&graph),
    )
    .map_err(|error| SubmitError::Graph {
        reason: error_chain(&error),
    })?;
    Ok(CheckedSubmission {
        module: prepared.bytes.into(),
        name: submitted.name.unwrap_or_else(|| graph.name.clone()),
        output_directories: output_directories(&execution),
        warnings: warnings(&options),
        graph,
        execution,
        options,
    })
}

fn warnings(options: &JobOptions) -> Vec<String> {
    let no_checkpoints = (options.checkpoint_interval_ms == 0).then(|| {
        "periodic checkpoints are off: a failure begins the job anew, and transactional sinks show nothing before its end".to_owned()
    });
    no_checkpoints.into_iter().collect()
}

fn describe_limits(config: &Config) -> InstanceLimits {
    InstanceLimits {
        memory_max_bytes: config.jobmanager.describe_memory_max_bytes,
        call_deadline: std::time::Duration::from_millis(config.jobmanager.describe_deadline_ms),
        ..InstanceLimits::default()
    }
}

fn job_options(config: &Config, submitted: &SubmitOptions) -> JobOptions {
    let defaults = config.job_options(submitted.parallelism);
    JobOptions {
        parallelism: defaults.parallelism,
        max_parallelism: submitted
            .max_parallelism
            .unwrap_or(defaults.max_parallelism),
        checkpoint_interval_ms: submitted
            .checkpoint_interval_ms
            .unwrap_or(defaults.checkpoint_interval_ms),
        checkpoint_timeout_ms: submitted
            .checkpoint_timeout_ms
            .unwrap_or(defaults.checkpoint_timeout_ms),
        tolerable_failed_checkpoints: submitted
            .tolerable_failed_checkpoints
            .unwrap_or(defaults.tolerable_failed_checkpoints),
        retained_checkpoints: submitted
            .retained_checkpoints
            .unwrap_or(defaults.retained_checkpoints)
            .max(1),
        aligned_checkpoint_timeout_ms: submitted
            .aligned_checkpoint_timeout_ms
            .unwrap_or(defaults.aligned_checkpoint_timeout_ms),
        retain_on_cancel: submitted
            .retain_on_cancel
            .unwrap_or(defaults.retain_on_cancel),
        standby: submitted.standby.unwrap_or(defaults.standby),
        restart: submitted.restart.clone().unwrap_or(defaults.restart),
    }
}

fn check_connectors(graph: &JobGraph) -> Result<(), SubmitError> {
    for stage in &graph.stages {
        let refused = |error: &dyn std::error::Error| SubmitError::Connector {
            stage: stage.name.clone(),
            reason: error_chain(error),
        };
        if let StageInput::Connector(spec) = &stage.input {
            tidemill_connectors::check_source(spec).map_err(|error| refused(&error))?;
            tidemill_connectors::preflight(spec).map_err(|error| refused(&error))?;
        }
        for sink in sinks(&stage.outputs) {
            tidemill_connectors::check_sink(sink).map_err(|error| refused(&error))?;
        }
    }
    Ok(())
}
