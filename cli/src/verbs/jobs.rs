//! `tidemill list`, `cancel` and `nodes`: one question, one table.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tidemill_jobmanager::rest::CancelAccepted;
use tidemill_jobmanager::views::{JobDetail, JobManagerView, NodeStatus, NodeView};

use super::Session;
use super::describe::{kept_checkpoint as kept_checkpoint_in_words, short_id, status};
use crate::arguments::Job;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::print::{self, Table};
use crate::units;

pub(crate) fn list(session: &Session) -> Result<(), Failure> {
    let jobs = session.client()?.jobs()?;
    if session.is_json() {
        return print::json(&jobs);
    }
    let mut table = Table::new(&[
        "ID",
        "NAME",
        "STATUS",
        "TASKS",
        "RESTARTS",
        "CHECKPOINT",
        "SUBMITTED",
        "",
    ]);
    for job in jobs {
        table.row([
            short_id(&job.id),
            job.name,
            status(job.status).to_owned(),
            format!("{}/{}", job.tasks_running + job.tasks_finished, job.tasks),
            job.restarts.to_string(),
            job.last_checkpoint.unwrap_or_else(|| "-".to_owned()),
            format!("{} ago", units::ago(job.submitted_at_ms)),
            job.message.unwrap_or_default(),
        ]);
    }
    print::text(&table.rendered("no jobs; `tidemill run JOB.wasm` submits one"))
}

/// How long a cancelled job may take to end, when it is awaited.
const CANCEL_MAX: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What programs are told of a cancelled job.
#[derive(Serialize)]
struct Cancelled {
    #[serde(flatten)]
    accepted: CancelAccepted,
    /// Where the checkpoint is that it has left, if it was to leave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_checkpoint: Option<String>,
}

pub(crate) fn cancel(session: &Session, options: &Job) -> Result<(), Failure> {
    let client = session.client()?;
    let job = client.resolve(&options.job)?;
    let keeps = client.job(&job.id)?.options.retain_on_cancel;
    let accepted = client.cancel(&job.id)?;
    if keeps && !session.is_json() {
        eprintln!(
            "job {} ({}) is being cancelled, and its last checkpoint kept",
            job.name, job.id
        );
    }
    let ended = match keeps {
        true => Some(until_ended(&client, &job.id)?),
        false => None,
    };
    let kept_checkpoint = ended.as_ref().and_then(|job| job.kept_checkpoint.clone());
    if session.is_json() {
        return print::json(&Cancelled {
            accepted,
            kept_checkpoint,
        });
    }
    let (name, id) = (&job.name, &job.id);
    print::text(&match (ended, kept_checkpoint) {
        (None, _) => format!("job {name} ({id}) is being cancelled"),
        (Some(_), Some(path)) => format!(
            "job {name} ({id}) is cancelled; {}",
            kept_checkpoint_in_words(&path)
        ),
        (Some(job), None) => format!(
            "job {name} ({id}) is {}; no checkpoint of it was complete, so none is kept",
            status(job.summary.status)
        ),
    })
}

/// The last view of a job whose end is stored.
fn until_ended(client: &Client, id: &str) -> Result<JobDetail, Failure> {
    let begun = Instant::now();
    loop {
        let job = client.job(id)?;
        if job.summary.status.is_terminal() {
            return Ok(job);
        }
        if begun.elapsed() > CANCEL_MAX {
            let message = format!(
                "job {id} was asked to end, and has not in {} s",
                CANCEL_MAX.as_secs()
            );
            return Err(Failure::new(Exit::Failed, message).help(format!(
                "`tidemill info {id}` shows when it has, and where its last checkpoint is kept"
            )));
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

pub(crate) fn nodes(session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let nodes = Nodes {
        jobmanagers: client.jobmanagers()?,
        taskmanagers: client.nodes()?,
    };
    if session.is_json() {
        return print::json(&nodes);
    }
    let (jobmanagers, taskmanagers) = (
        jobmanager_table(nodes.jobmanagers),
        taskmanager_table(nodes.taskmanagers),
    );
    print::text(&format!("{jobmanagers}\n\n{taskmanagers}"))
}

/// Every process of a cluster.
#[derive(Serialize)]
struct Nodes {
    jobmanagers: Vec<JobManagerView>,
    taskmanagers: Vec<NodeView>,
}

fn jobmanager_table(jobmanagers: Vec<JobManagerView>) -> String {
    let mut table = Table::new(&["JOBMANAGER", "ROLE", "EPOCH", "REST", "CONTROL"]);
    for jobmanager in jobmanagers {
        table.row([
            jobmanager.id,
            jobmanager.role.name().to_owned(),
            jobmanager
                .epoch
                .map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
            jobmanager.rest_url,
            jobmanager.control_address,
        ]);
    }
    table.rendered("no JobManagers")
}

fn taskmanager_table(taskmanagers: Vec<NodeView>) -> String {
    let mut table = Table::new(&[
        "TASKMANAGER",
        "STATUS",
        "SLOTS FREE",
        "TASKS",
        "ADDRESS",
        "VERSION",
        "REGISTERED",
        "",
    ]);
    for node in taskmanagers {
        let status = match node.status {
            NodeStatus::Connected => "connected",
            NodeStatus::Draining => "draining",
            NodeStatus::Announced => "announced",
            NodeStatus::Lost => "lost",
        };
        table.row([
            node.id,
            status.to_owned(),
            format!("{}/{}", node.slots_free, node.slots),
            node.tasks.to_string(),
            node.data_address,
            node.version,
            format!("{} ago", units::ago(node.registered_at_ms)),
            node.lost
                .map(|lost| format!("{} ago: {}", units::ago(lost.at_ms), lost.text))
                .unwrap_or_default(),
        ]);
    }
    table.rendered("no TaskManagers; `tidemill taskmanager` starts one")
}
