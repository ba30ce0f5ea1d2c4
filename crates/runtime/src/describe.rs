//! Builds a job's graph in a sandbox: two fresh instances with limits, whose answers must be equal byte for byte.
//!
//! It never judges the graph's shape, and nothing that a builder emits or logs leaves the sandbox, except a panic.

use std::time::Duration;

use tidemill_abi::{DescribeRequest, DescribeResponse, JobGraph, LogLevel, export};

use crate::call_error::{CallError, TrapReason};
use crate::host::GuestHost;
use crate::instance::{Instance, InstanceError};
use crate::limits::InstanceLimits;
use crate::module::Module;

/// By how much the second run's heap is shifted. A graph built in the order of a hash map seeded by addresses, or one
/// that holds an address, comes out the same in any two fresh instances, and differs when a task opens.
const HEAP_SHIFT_BYTES: u32 = 70_008;

/// Why a module gave no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescribeError {
    /// The module cannot be instantiated within the limits.
    #[error("the job's graph cannot be built")]
    Instance(#[source] InstanceError),
    /// The job function is in error: a missing parameter, a value that does not parse, a graph that cannot be.
    #[error("the job refuses to describe itself: {0}")]
    Job(String),
    /// The job function panicked, or broke a limit other than time.
    #[error("the job's graph cannot be built: the job function failed")]
    Trapped(#[source] CallError),
    /// The job function does not come to an end.
    #[error(
        "the job's graph cannot be built: the job function ran for longer than {limit:?}; it must only describe the graph"
    )]
    Deadline {
        /// What it may take.
        limit: Duration,
        /// Where it was.
        #[source]
        call: CallError,
    },
    /// The answer cannot be read.
    #[error(
        "the job's graph cannot be read; build the job with a guest SDK of this host's version"
    )]
    Undecodable(#[source] CallError),
    /// Two runs gave different graphs.
    #[error(
        "the job function does not describe the same graph each time ({first_bytes} and {second_bytes} bytes, different from byte {differs_at}); it must not depend on the order of a hash map, on addresses or on static state"
    )]
    NotDeterministic {
        /// The length of the first answer.
        first_bytes: usize,
        /// The length of the second.
        second_bytes: usize,
        /// The first byte that differs.
        differs_at: usize,
    },
}

/// Runs the module's `describe` with the given parameters.
///
/// # Errors
/// When the job function fails in any way, or its answer is not the same twice.
pub fn describe_job(
    module: &Module,
    request: &DescribeRequest,
    limits: InstanceLimits,
) -> Result<JobGraph, DescribeError> {
    let mut sandbox = sandbox(module, limits)?;
    let first = sandbox.describe_bytes(request).map_err(failed)?;
    let mut shifted = self::sandbox(module, limits)?;
    shifted.shift_heap(HEAP_SHIFT_BYTES).map_err(failed)?;
    let second = shifted.describe_bytes(request).map_err(failed)?;
    if first != second {
        let differs_at = first
            .iter()
            .zip(&second)
            .take_while(|(first, second)| first == second)
            .count();
        let (first_bytes, second_bytes) = (first.len(), second.len());
        return Err(DescribeError::NotDeterministic {
            first_bytes,
            second_bytes,
            differs_at,
        });
    }
    let response: DescribeResponse = sandbox.decode(export::DESCRIBE, &first).map_err(failed)?;
    response.map_err(DescribeError::Job)
}

fn sandbox(module: &Module, limits: InstanceLimits) -> Result<Instance<Sandbox>, DescribeError> {
    Instance::new(module, limits, Sandbox).map_err(DescribeError::Instance)
}

fn failed(error: CallError) -> DescribeError {
    match error {
        CallError::Trap {
            reason: TrapReason::Deadline { limit },
            ..
        } => DescribeError::Deadline { limit, call: error },
        CallError::BadResponse { .. } => DescribeError::Undecodable(error),
        other => DescribeError::Trapped(other),
    }
}

/// Hears nothing.
struct Sandbox;

impl GuestHost for Sandbox {
    fn emit(&mut self, _output: u32, _target: u32, _batch: &[u8]) {}

    fn log(&mut self, level: LogLevel, line: &str) {
        tracing::debug!(?level, line, "the job function wrote");
    }
}
