//! Runs whole jobs, and single operators, under plain `cargo test`: the same stages and the same encoded batches as on a
//! cluster, in one thread, with time that jumps. It never reads a file: a test gives the inputs.

mod harness;
mod run;
mod task;

pub use harness::Harness;
pub use run::{Outputs, TestRun};
pub use task::{Emitted, Task};

use tidemill_abi::{DescribeRequest, JobGraph};

use crate::instance;
use crate::job::{Job, Outcome};

/// The graph of a job, or its mistakes in words, one a line.
///
/// # Errors
/// Every mistake in the job or its parameters.
pub fn describe<R: Outcome>(
    job: fn(&mut Job) -> R,
    parameters: &[(&str, &str)],
) -> Result<JobGraph, String> {
    let parameters = parameters
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    instance::describe(
        job,
        "job",
        DescribeRequest {
            parameters,
            allow_missing_parameters: false,
        },
    )
}
