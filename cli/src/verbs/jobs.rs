//! `tidemill list`, `cancel`, `checkpoints` and `nodes`: one question, one table.

use serde::Serialize;
use tidemill_jobmanager::views::{
    CheckpointStatus, CheckpointView, JobManagerView, NodeStatus, NodeView,
};

use super::Session;
use super::describe::{checkpoint_status, short_id, status};
use crate::arguments::Job;
use crate::failure::Failure;
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

pub(crate) fn cancel(session: &Session, options: &Job) -> Result<(), Failure> {
    let client = session.client()?;
    let job = client.resolve(&options.job)?;
    let accepted = client.cancel(&job.id)?;
    if session.is_json() {
        return print::json(&accepted);
    }
    print::text(&format!("job {} ({}) is being cancelled", job.name, job.id))
}

pub(crate) fn checkpoints(session: &Session, options: &Job) -> Result<(), Failure> {
    let client = session.client()?;
    let job = client.resolve(&options.job)?;
    let view = client.checkpoints(&job.id)?;
    if session.is_json() {
        return print::json(&view);
    }
    let headings = [
        "ID",
        "STATUS",
        "STARTED",
        "DURATION",
        "TASKS",
        "IMAGES",
        "WRITTEN",
        "ALIGNED IN",
        "PAUSE",
        "",
    ];
    let mut table = Table::new(&headings);
    for checkpoint in view.history.iter().rev() {
        table.row(checkpoint_row(checkpoint));
    }
    let retained = if view.retained.is_empty() {
        "none".to_owned()
    } else {
        view.retained.join(", ")
    };
    print::text(&format!(
        "{} completed, {} failed; a restart can go back to: {retained}\n\n{}",
        view.completed,
        view.failed,
        table.rendered("no checkpoints yet"),
    ))
}

fn checkpoint_row(checkpoint: &CheckpointView) -> [String; 10] {
    let note = match (&checkpoint.failure, checkpoint.is_final) {
        (Some(failure), _) => failure.clone(),
        (None, true) => "the final one".to_owned(),
        (None, false) => String::new(),
    };
    let is_measured = checkpoint.status == CheckpointStatus::Completed;
    let measured = |text: String| if is_measured { text } else { "-".to_owned() };
    [
        checkpoint.id.clone(),
        checkpoint_status(checkpoint.status).to_owned(),
        units::time(checkpoint.started_at_ms),
        units::microseconds(checkpoint.duration_us),
        format!("{}/{}", checkpoint.tasks_acknowledged, checkpoint.tasks),
        measured(units::bytes(checkpoint.image_bytes)),
        measured(units::bytes(checkpoint.written_bytes)),
        measured(units::microseconds(checkpoint.alignment_us_max)),
        measured(units::microseconds(checkpoint.pause_us_max)),
        note,
    ]
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
