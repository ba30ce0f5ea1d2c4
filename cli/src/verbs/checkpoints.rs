//! `tidemill checkpoints`: a job's checkpoints with what each cost, and one of them task by task.

use tidemill_jobmanager::views::{
    CheckpointDetail, CheckpointStatus, CheckpointView, CheckpointsView, TaskCaptureView,
};

use super::Session;
use super::describe::checkpoint_status;
use crate::arguments::Checkpoints;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::print::{self, Table};
use crate::units;

/// What stands for the last complete checkpoint.
const LAST: &str = "last";

pub(crate) fn checkpoints(session: &Session, options: &Checkpoints) -> Result<(), Failure> {
    let client = session.client()?;
    let job = client.resolve(&options.job.job)?;
    if let Some(checkpoint) = &options.checkpoint {
        return detail(session, &client, &job.id, checkpoint);
    }
    let view = client.checkpoints(&job.id)?;
    if session.is_json() {
        return print::json(&view);
    }
    print::text(&list(&view))
}

fn detail(session: &Session, client: &Client, job: &str, checkpoint: &str) -> Result<(), Failure> {
    let id = match checkpoint {
        LAST => last(&client.checkpoints(job)?, job)?,
        id => id.to_owned(),
    };
    let view = client.checkpoint(job, &id)?;
    if session.is_json() {
        return print::json(&view);
    }
    print::text(&task_by_task(&view))
}

fn last(view: &CheckpointsView, job: &str) -> Result<String, Failure> {
    let is_complete =
        |checkpoint: &&CheckpointView| checkpoint.status == CheckpointStatus::Completed;
    let last = view.history.iter().rev().find(is_complete);
    let none = || {
        let message = format!("job {job} has no complete checkpoint that this JobManager saw");
        Failure::new(Exit::Refused, message)
            .help(format!("`tidemill checkpoints {job}` shows all there are"))
    };
    last.map(|checkpoint| checkpoint.id.clone())
        .ok_or_else(none)
}

fn list(view: &CheckpointsView) -> String {
    let mut table = Table::new(&[
        "ID",
        "STATUS",
        "STARTED",
        "DURATION",
        "TASKS",
        "ALIGNED IN",
        "PAUSE",
        "UPLOAD",
        "IMAGES",
        "DIRTY",
        "WRITTEN",
        "CHANNELS",
        "",
    ]);
    for checkpoint in view.history.iter().rev() {
        table.row(row(checkpoint));
    }
    let retained = if view.retained.is_empty() {
        "none".to_owned()
    } else {
        view.retained.join(", ")
    };
    let totals = &view.totals;
    format!(
        "{} completed ({} unaligned), {} failed; {} captured, {} written; a restart can go back to: {retained}\n\n{}",
        view.completed,
        totals.unaligned,
        view.failed,
        units::bytes(totals.dirty_bytes),
        units::bytes(totals.written_bytes),
        table.rendered("no checkpoints yet"),
    )
}

fn row(checkpoint: &CheckpointView) -> [String; 13] {
    let is_measured = checkpoint.status == CheckpointStatus::Completed;
    let measured = |text: String| if is_measured { text } else { "-".to_owned() };
    [
        checkpoint.id.clone(),
        checkpoint_status(checkpoint.status).to_owned(),
        units::time(checkpoint.started_at_ms),
        units::microseconds(checkpoint.duration_us),
        format!("{}/{}", checkpoint.tasks_acknowledged, checkpoint.tasks),
        measured(units::microseconds(checkpoint.alignment_us_max)),
        measured(units::microseconds(checkpoint.pause_us_max)),
        measured(units::microseconds(checkpoint.upload_us_max)),
        measured(units::bytes(checkpoint.image_bytes)),
        measured(units::bytes(checkpoint.dirty_bytes)),
        measured(units::bytes(checkpoint.written_bytes)),
        measured(units::bytes(checkpoint.channel_bytes)),
        note(checkpoint),
    ]
}

fn note(checkpoint: &CheckpointView) -> String {
    match (
        &checkpoint.failure,
        checkpoint.is_final,
        checkpoint.unaligned,
    ) {
        (Some(failure), _, _) => failure.clone(),
        (None, true, _) => "the final one".to_owned(),
        (None, false, true) => "unaligned".to_owned(),
        (None, false, false) => String::new(),
    }
}

fn task_by_task(view: &CheckpointDetail) -> String {
    let checkpoint = &view.checkpoint;
    let duration = units::microseconds(checkpoint.duration_us);
    let mut text = format!(
        "checkpoint {}: {} ({}/{} tasks), begun {}, {duration}",
        checkpoint.id,
        checkpoint_status(checkpoint.status),
        checkpoint.tasks_acknowledged,
        checkpoint.tasks,
        units::time(checkpoint.started_at_ms),
    );
    let note = note(checkpoint);
    if !note.is_empty() {
        text.push_str(&format!(" ({note})"));
    }
    if let Some(path) = &view.path {
        text.push_str(&format!("\nit is kept at {path}"));
    }
    if !view.tasks_missing.is_empty() {
        let missing = view.tasks_missing.join(", ");
        text.push_str(&format!("\nnothing has come of: {missing}"));
    }
    let Some(captures) = &view.captures else {
        return text + "\n\nwhat each task did for it is not remembered any more";
    };
    let mut table = Table::new(&[
        "TASK",
        "ATTEMPT",
        "ACKNOWLEDGED",
        "ALIGNED IN",
        "PAUSE",
        "UPLOAD",
        "IMAGE",
        "DIRTY",
        "AHEAD",
        "WRITTEN",
        "CHANNELS",
        "",
        "NAME",
    ]);
    let mut captures: Vec<&TaskCaptureView> = captures.iter().collect();
    captures.sort_by_key(|capture| task_order(&capture.task));
    for capture in captures {
        table.row(capture_row(capture));
    }
    format!("{text}\n\n{}", table.rendered("no task has acknowledged"))
}

/// `stage/subtask` in the order of numbers.
fn task_order(task: &str) -> (u32, u32) {
    let (stage, subtask) = task.split_once('/').unwrap_or((task, ""));
    let number = |text: &str| text.parse().unwrap_or(u32::MAX);
    (number(stage), number(subtask))
}

fn capture_row(capture: &TaskCaptureView) -> [String; 13] {
    let note = match (capture.finished, capture.unaligned) {
        (true, _) => "finished",
        (false, true) => "unaligned",
        (false, false) => "",
    };
    [
        capture.task.clone(),
        capture.attempt.clone(),
        format!(
            "after {}",
            units::microseconds(capture.acknowledged_after_us)
        ),
        units::microseconds(capture.alignment_us),
        units::microseconds(capture.pause_us),
        units::microseconds(capture.upload_us),
        units::bytes(capture.image_bytes),
        units::bytes(capture.dirty_bytes),
        units::bytes(capture.ahead_bytes),
        units::bytes(capture.written_bytes),
        units::bytes(capture.channel_bytes),
        note.to_owned(),
        capture.name.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_jobmanager::views::CheckpointTotals;

    fn checkpoint(id: &str, status: CheckpointStatus) -> CheckpointView {
        CheckpointView {
            id: id.into(),
            status,
            is_final: false,
            started_at_ms: 0,
            duration_us: 12_345,
            tasks_acknowledged: 2,
            tasks: 2,
            image_bytes: 1 << 20,
            dirty_bytes: 8192,
            written_bytes: 4096,
            channel_bytes: 512,
            unaligned: true,
            alignment_us_max: 40,
            pause_us_max: 300,
            upload_us_max: 9_000,
            failure: None,
        }
    }

    fn capture(task: &str) -> TaskCaptureView {
        TaskCaptureView {
            task: task.into(),
            name: "count".into(),
            attempt: "3.2".into(),
            finished: false,
            acknowledged_after_us: 11_000,
            alignment_us: 40,
            pause_us: 300,
            upload_us: 9_000,
            image_bytes: 1 << 20,
            dirty_bytes: 8192,
            ahead_bytes: 2048,
            written_bytes: 4096,
            channel_bytes: 512,
            unaligned: task == "1/2",
        }
    }

    fn view(history: Vec<CheckpointView>) -> CheckpointsView {
        CheckpointsView {
            completed: 1,
            failed: 1,
            totals: CheckpointTotals {
                unaligned: 1,
                ..CheckpointTotals::default()
            },
            retained: vec!["3.17".into()],
            retained_at: Vec::new(),
            history,
        }
    }

    #[test]
    fn a_checkpoint_in_flight_has_no_measures_yet() {
        let text = list(&view(vec![
            checkpoint("3.17", CheckpointStatus::Completed),
            checkpoint("3.18", CheckpointStatus::InProgress),
        ]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("1 completed (1 unaligned), 1 failed"));
        assert!(lines[3].starts_with("3.18") && lines[3].contains("  -  "));
        assert!(lines[4].contains("8.0 KiB") && lines[4].ends_with("unaligned"));
    }

    #[test]
    fn the_last_complete_one_is_found_behind_others() {
        let history = vec![
            checkpoint("3.17", CheckpointStatus::Completed),
            checkpoint("3.18", CheckpointStatus::Failed),
        ];
        assert_eq!(last(&view(history), "j").ok().as_deref(), Some("3.17"));
        assert!(last(&view(Vec::new()), "j").is_err());
    }

    #[test]
    fn tasks_are_in_the_order_of_their_numbers_and_missing_ones_are_named() {
        let mut detail = CheckpointDetail {
            checkpoint: checkpoint("3.17", CheckpointStatus::Completed),
            path: Some("checkpoints/j/3-17".into()),
            captures: Some(vec![capture("1/10"), capture("1/2")]),
            tasks_missing: vec!["0/0".into()],
        };
        let text = task_by_task(&detail);
        let of = |task: &str| text.find(&format!("\n{task} ")).expect(task);
        assert!(of("1/2") < of("1/10"), "{text}");
        assert!(text.contains("kept at checkpoints/j/3-17"), "{text}");
        assert!(text.contains("nothing has come of: 0/0"), "{text}");
        detail.captures = None;
        assert!(task_by_task(&detail).contains("not remembered"));
    }
}
