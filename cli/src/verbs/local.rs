//! `tidemill local`: a cluster in this process, until a signal ends it.

use serde_json::json;

use super::Session;
use crate::arguments::Local;
use crate::cluster::{LocalCluster, Plan};
use crate::failure::{Exit, Failure};
use crate::print;
use crate::process::{Signals, load_config, runtime, start_logging};
use crate::units;

pub(crate) fn local(session: &Session, options: &Local) -> Result<(), Failure> {
    let mut config = load_config(&options.process)?;
    start_logging(&config.log)?;
    if let Some(slots) = options.slots {
        config.taskmanager.slots = slots;
    }
    let slots = config.taskmanager.slots() * options.taskmanagers;
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("tidemill-")
                .tempdir()
                .map_err(|error| {
                    Failure::because(Exit::Failed, "no temporary directory can be made", &error)
                        .help("name one with --data-dir DIR")
                })?,
        ),
    };
    let data_dir = match (&options.data_dir, &temporary) {
        (Some(directory), _) => directory.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two is always there"),
    };
    let plan = Plan {
        config,
        taskmanagers: options.taskmanagers,
        data_dir,
    };
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        let mut cluster = LocalCluster::start(&plan).await?;
        announce(session, &cluster, &plan, slots)?;
        tokio::select! {
            _ = signals.next() => {}
            () = cluster.ended() => {
                return Err(Failure::new(Exit::Failed, "the JobManager could not go on").help("its log above says why"));
            }
        }
        tokio::select! {
            () = cluster.stop() => Ok(()),
            _ = signals.next() => Err(Failure::new(Exit::Interrupted, "stopped at once by a second signal")),
        }
    })
}

fn announce(
    session: &Session,
    cluster: &LocalCluster,
    plan: &Plan,
    slots: u32,
) -> Result<(), Failure> {
    let (url, taskmanagers) = (cluster.url(), plan.taskmanagers);
    if session.is_json() {
        return print::json(&json!({
            "url": url,
            "taskmanagers": taskmanagers,
            "slots": slots,
            "data_dir": plan.data_dir,
        }));
    }
    let option = if url == "http://127.0.0.1:7421" {
        String::new()
    } else {
        format!(" --jobmanager {url}")
    };
    print::text(&format!(
        "a cluster is running: {}, {}, data in {}\n\
         REST API: {url}\n\
         run a job: tidemill run JOB.wasm{option}\n\
         Ctrl-C ends it",
        units::counted(u64::from(taskmanagers), "TaskManager"),
        units::counted(u64::from(slots), "slot"),
        plan.data_dir.display(),
    ))
}
