//! `tidemill info`: everything about one job.

use tidemill_jobmanager::views::{JobDetail, StageView, TaskView};

use super::Session;
use super::describe;
use crate::arguments::Job;
use crate::failure::Failure;
use crate::print::{self, Table};
use crate::units;

/// The last events and recoveries that are shown; JSON has them all.
const EVENTS_SHOWN: usize = 20;

pub(crate) fn info(session: &Session, options: &Job) -> Result<(), Failure> {
    let client = session.client()?;
    let id = client.resolve(&options.job)?.id;
    let job = client.job(&id)?;
    if session.is_json() {
        return print::json(&job);
    }
    let mut sections = vec![summary(&job), stages(&job), tasks(&job.tasks_detail)];
    if let Some(failure) = &job.last_failure {
        let heading = format!("Last failure, {} ago:", units::ago(failure.at_ms));
        sections.push(format!("{heading}\n  {}", describe::failure(failure)));
    }
    if !job.recoveries.is_empty() {
        sections.push(format!("Recoveries:\n{}", recoveries(&job)));
    }
    if !job.events.is_empty() {
        let last = job.events.iter().rev().take(EVENTS_SHOWN).rev();
        let lines = last.map(|event| format!("  {}  {}", units::time(event.at_ms), event.text));
        sections.push(format!("Events:\n{}", lines.collect::<Vec<_>>().join("\n")));
    }
    print::text(&sections.join("\n\n"))
}

fn summary(job: &JobDetail) -> String {
    let summary = &job.summary;
    let status = match &summary.message {
        None => describe::status(summary.status).to_owned(),
        Some(message) => format!("{} ({message})", describe::status(summary.status)),
    };
    let (submitted, ago) = (
        units::time(summary.submitted_at_ms),
        units::ago(summary.submitted_at_ms),
    );
    let ended = summary
        .ended_at_ms
        .map(|ended| ("Ended:", units::time(ended)));
    let (records_in, records_out) = (
        units::count(summary.records_in),
        units::count(summary.records_out),
    );
    let mut lines = vec![
        ("Job:", format!("{} ({})", summary.name, summary.id)),
        ("Status:", status),
        ("Submitted:", format!("{submitted} ({ago} ago)")),
    ];
    lines.extend(ended);
    let kept = job.kept_checkpoint.iter();
    lines.extend(kept.map(|path| ("Kept:", path.clone())));
    lines.extend(options(job));
    lines.extend([
        ("Restarts:", summary.restarts.to_string()),
        ("Records:", format!("{records_in} in, {records_out} out")),
        ("Module:", job.module.clone()),
    ]);
    let lines = lines
        .iter()
        .map(|(label, value)| format!("{label:<13}{value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

fn recoveries(job: &JobDetail) -> String {
    let mut table = Table::new(&[
        "DETECTED",
        "TASKS",
        "FROM",
        "WITHIN",
        "PLAN",
        "FETCH",
        "RESTORE",
        "RESUME",
        "RUNNING AFTER",
        "IMAGES FROM",
        "CAUSE",
    ]);
    let step = |us: Option<u64>| us.map_or_else(|| "not yet".to_owned(), units::microseconds);
    for recovery in job.recoveries.iter().rev().take(EVENTS_SHOWN).rev() {
        let longest = &recovery.timings_max;
        let plan = match recovery.delay_us {
            0 => step(recovery.planned_after_us),
            delay => format!(
                "{} (delay {})",
                step(recovery.planned_after_us),
                units::microseconds(delay)
            ),
        };
        table.row([
            units::time(recovery.detected_at_ms),
            format!(
                "{} ({} lost)",
                recovery.tasks_restarted, recovery.tasks_lost
            ),
            recovery
                .checkpoint
                .clone()
                .unwrap_or_else(|| "the beginning".to_owned()),
            recovery
                .detected_within_us
                .map_or_else(|| "-".to_owned(), units::microseconds),
            plan,
            units::microseconds(longest.fetch_us),
            units::microseconds(longest.restore_us),
            step(recovery.resume_us),
            step(recovery.running_after_us),
            describe::restored(&recovery.restored),
            recovery.cause.clone(),
        ]);
    }
    table.rendered("none")
}

fn options(job: &JobDetail) -> [(&'static str, String); 7] {
    let (summary, options) = (&job.summary, &job.options);
    let parameters = job
        .parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let interval = match options.checkpoint_interval_ms {
        0 => "none".to_owned(),
        ms => format!("every {ms} ms, {} kept", options.retained_checkpoints),
    };
    let barriers = match options.aligned_checkpoint_timeout_ms {
        0 => "always waited for".to_owned(),
        ms => format!("waited for {ms} ms"),
    };
    let kept = match options.retain_on_cancel {
        true => ", the last stays when the job is cancelled or fails",
        false => "",
    };
    let standby = match options.standby {
        true => "the last images are kept warm on a second TaskManager",
        false => "none",
    };
    let last = summary.last_checkpoint.as_deref().unwrap_or("none");
    let completed = format!(
        "{} completed, the last is {last}",
        summary.checkpoints_completed
    );
    let (parallelism, at_most) = (summary.parallelism, options.max_parallelism);
    [
        ("Parameters:", parameters.collect::<Vec<_>>().join(", ")),
        ("Parallelism:", format!("{parallelism} (at most {at_most})")),
        (
            "Checkpoints:",
            format!("{interval}{kept}; barriers are {barriers}"),
        ),
        ("", completed),
        ("Standby:", standby.to_owned()),
        ("On failure:", options.restart.clone()),
        ("Began from:", began_from(job)),
    ]
}

fn began_from(job: &JobDetail) -> String {
    let from = job.began_from.as_deref();
    from.unwrap_or("the beginning").to_owned()
}

fn stages(job: &JobDetail) -> String {
    let mut table = Table::new(&["STAGE", "NAME", "TASKS", "SENDS TO"]);
    for stage in &job.stages {
        table.row([
            stage.index.to_string(),
            stage.name.clone(),
            stage.parallelism.to_string(),
            receivers(job, stage),
        ]);
    }
    table.rendered("no stages")
}

fn receivers(job: &JobDetail, stage: &StageView) -> String {
    let edges = job.edges.iter().filter(|edge| edge.from == stage.index);
    edges
        .map(|edge| format!("{} ({})", edge.to, edge.routing))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Who keeps a task's image at hand is shown where anybody does.
fn tasks(tasks: &[TaskView]) -> String {
    let has_standby = tasks.iter().any(|task| task.standby.is_some());
    let mut headings = vec![
        "TASK",
        "STATUS",
        "TASKMANAGER",
        "ATTEMPT",
        "RECORDS IN",
        "RECORDS OUT",
        "MEMORY",
        "BUSY",
        "WAITED FOR ROOM",
    ];
    headings.extend(has_standby.then_some("KEPT WARM ON"));
    let mut table = Table::new(&headings);
    for task in tasks {
        let progress = &task.progress;
        let cells = [
            task.id.clone(),
            describe::task_status(task.status).to_owned(),
            task.task_manager.clone().unwrap_or_else(|| "-".to_owned()),
            task.attempt.clone().unwrap_or_else(|| "-".to_owned()),
            units::count(progress.records_in),
            units::count(progress.records_out),
            units::bytes(progress.memory_bytes),
            units::microseconds(progress.busy_us),
            units::microseconds(progress.backpressured_us),
        ];
        table.row(
            cells
                .into_iter()
                .chain(has_standby.then(|| kept_warm(task))),
        );
    }
    table.rendered("no tasks")
}

/// The second TaskManager of a task, and the checkpoint whose image it has.
fn kept_warm(task: &TaskView) -> String {
    let Some(standby) = &task.standby else {
        return "-".to_owned();
    };
    let checkpoint = standby.checkpoint.as_deref().unwrap_or("not yet");
    format!("{} ({checkpoint})", standby.task_manager)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_jobmanager::views::{ProgressView, StandbyView, TaskStatus, TimingsView};

    fn task(standby: Option<StandbyView>) -> TaskView {
        TaskView {
            id: "1/0".into(),
            stage: 1,
            subtask: 0,
            name: "count".into(),
            status: TaskStatus::Running,
            attempt: Some("3.2".into()),
            task_manager: Some("worker-1".into()),
            standby,
            timings: TimingsView::default(),
            progress: ProgressView::default(),
        }
    }

    #[test]
    fn the_second_task_manager_is_shown_with_what_it_has_where_there_is_one() {
        assert!(!tasks(&[task(None)]).contains("WARM"));
        let standby = |checkpoint: Option<&str>| StandbyView {
            task_manager: "worker-2".into(),
            checkpoint: checkpoint.map(Into::into),
        };
        let shown = tasks(&[
            task(Some(standby(Some("3.7")))),
            task(Some(standby(None))),
            task(None),
        ]);
        let last_columns: Vec<&str> = shown
            .lines()
            .filter_map(|line| line.rsplit("  ").next())
            .collect();
        assert_eq!(
            last_columns,
            ["KEPT WARM ON", "worker-2 (3.7)", "worker-2 (not yet)", "-"]
        );
    }
}
