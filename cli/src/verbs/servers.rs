//! `tidemill jobmanager` and `tidemill taskmanager`: one process of a cluster, until a signal ends it.

use serde_json::json;
use tracing::info;

use crate::arguments::Process;
use crate::cluster::Addresses;
use crate::failure::{Exit, Failure};
use crate::process::{Signals, credentials, load_config, runtime, start_logging, write_addresses};

pub(crate) fn jobmanager(options: &Process) -> Result<(), Failure> {
    let config = load_config(options)?;
    start_logging(&config.log)?;
    let credentials = credentials(&config, "jobmanager")?;
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let mut handle = tidemill_jobmanager::start(&config, credentials)
            .await
            .map_err(|error| Failure::of(Exit::Failed, &error))?;
        write_addresses(&config.jobmanager.data_dir, &Addresses::of(&handle))?;
        info!(rest = %handle.rest_address(), quic = %handle.quic_address(), "listening");
        tokio::select! {
            signal = signals.next() => info!(signal, "stopping; TaskManagers keep their tasks running for a while"),
            () = handle.stopped() => return Err(ended_by_itself("JobManager")),
        }
        handle.shutdown();
        tokio::select! {
            _ = signals.next() => Err(stopped_at_once()),
            () = handle.stopped() => Ok(()),
        }
    })
}

pub(crate) fn taskmanager(options: &Process) -> Result<(), Failure> {
    let config = load_config(options)?;
    start_logging(&config.log)?;
    let credentials = credentials(&config, "taskmanager")?;
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let mut handle = tidemill_taskmanager::start(&config, credentials)
            .await
            .map_err(|error| Failure::of(Exit::Failed, &error))?;
        let addresses = json!({
            "pid": std::process::id(),
            "id": handle.id(),
            "data_address": handle.data_address(),
            "metrics_address": handle.metrics_address(),
        });
        write_addresses(&config.taskmanager.data_dir, &addresses)?;
        info!(id = %handle.id(), data = %handle.data_address(), "listening");
        tokio::select! {
            signal = signals.next() => {
                info!(signal, "leaving once the tasks have moved; a second signal stops at once");
            }
            () = handle.stopped() => return Err(ended_by_itself("TaskManager")),
        }
        handle.shutdown();
        tokio::select! {
            _ = signals.next() => {
                handle.stop();
                Err(stopped_at_once())
            }
            () = handle.stopped() => Ok(()),
        }
    })
}

fn ended_by_itself(kind: &str) -> Failure {
    Failure::new(Exit::Failed, format!("the {kind} could not go on")).help("its log above says why")
}

fn stopped_at_once() -> Failure {
    Failure::new(Exit::Interrupted, "stopped at once by a second signal")
}
