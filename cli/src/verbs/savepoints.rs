//! `tidemill savepoint list`, `show`, `verify` and `delete`: savepoints that are stored.

use std::io::{self, IsTerminal};

use tidemill_jobmanager::views::{SavepointKind, SavepointView};

use super::Session;
use super::describe::short_id;
use crate::arguments::StoredSavepoints;
use crate::failure::{Exit, Failure};
use crate::print::{self, Table};
use crate::units;

/// The code of a problem that is the answer to a verification, and no refusal.
const DAMAGED: &str = "savepoint-damaged";

pub(crate) fn stored(session: &Session, verb: &StoredSavepoints) -> Result<(), Failure> {
    match verb {
        StoredSavepoints::List => list(session),
        StoredSavepoints::Show(which) => show(session, &which.path),
        StoredSavepoints::Verify(which) => verify(session, &which.path),
        StoredSavepoints::Delete(which) => delete(session, &which.path),
    }
}

fn list(session: &Session) -> Result<(), Failure> {
    let found = session.client()?.savepoints()?;
    if session.is_json() {
        return print::json(&found);
    }
    let mut table = Table::new(&[
        "PATH",
        "KIND",
        "JOB",
        "ID",
        "CHECKPOINT",
        "TASKS",
        "SIZE",
        "CREATED",
    ]);
    for savepoint in found.savepoints {
        table.row([
            savepoint.path,
            kind(savepoint.kind).to_owned(),
            savepoint.job_name,
            short_id(&savepoint.job),
            savepoint.checkpoint,
            savepoint.tasks.to_string(),
            units::bytes(savepoint.bytes),
            format!("{} ago", units::ago(savepoint.created_at_ms)),
        ]);
    }
    for unusable in &found.unusable {
        let kind = match unusable.incomplete {
            true => "incomplete",
            false => "unusable",
        };
        let bytes = units::bytes(unusable.bytes);
        let [path, kind, none] = [&unusable.path, kind, "-"].map(str::to_owned);
        let none = || none.clone();
        table.row([path, kind, none(), none(), none(), none(), bytes, none()]);
    }
    print::text(&table.rendered("no savepoints; `tidemill savepoint JOB` takes one"))?;
    for unusable in &found.unusable {
        eprintln!("{}", unusable.reason);
    }
    Ok(())
}

fn show(session: &Session, path: &str) -> Result<(), Failure> {
    let savepoint = session.client()?.savepoint(path)?;
    if session.is_json() {
        return print::json(&savepoint);
    }
    print::text(&in_words(&savepoint))
}

fn verify(session: &Session, path: &str) -> Result<(), Failure> {
    if !session.is_json() && io::stderr().is_terminal() {
        eprintln!("reading all of {path}");
    }
    let verified = session.client()?.verify_savepoint(path);
    let savepoint = verified.map_err(|failure| match failure.code() {
        Some(DAMAGED) => failure.with_exit(Exit::Failed),
        _ => failure,
    })?;
    if session.is_json() {
        return print::json(&savepoint);
    }
    print::text(&format!(
        "{} is whole: {} of {}, {} read and checked",
        savepoint.path,
        units::counted(u64::from(savepoint.tasks), "task"),
        savepoint.job_name,
        units::bytes(savepoint.bytes)
    ))
}

fn delete(session: &Session, path: &str) -> Result<(), Failure> {
    let deleted = session.client()?.delete_savepoint(path)?;
    if session.is_json() {
        return print::json(&deleted);
    }
    print::text(&format!("{} is deleted", deleted.path))
}

fn kind(kind: SavepointKind) -> &'static str {
    match kind {
        SavepointKind::Savepoint => "savepoint",
        SavepointKind::Checkpoint => "kept checkpoint",
    }
}

fn in_words(savepoint: &SavepointView) -> String {
    let parameters = savepoint.parameters.iter();
    let parameters = parameters.map(|(name, value)| format!("{name}={value}"));
    let created = savepoint.created_at_ms;
    let lines = [
        ("Path:", savepoint.path.clone()),
        ("Kind:", kind(savepoint.kind).to_owned()),
        (
            "Job:",
            format!("{} ({})", savepoint.job_name, savepoint.job),
        ),
        ("Checkpoint:", savepoint.checkpoint.clone()),
        (
            "Created:",
            format!("{} ({} ago)", units::time(created), units::ago(created)),
        ),
        ("Size:", units::bytes(savepoint.bytes)),
        ("Tasks:", savepoint.tasks.to_string()),
        (
            "Parallelism:",
            format!(
                "{} (at most {})",
                savepoint.parallelism, savepoint.max_parallelism
            ),
        ),
        ("Parameters:", parameters.collect::<Vec<_>>().join(", ")),
        ("Module:", savepoint.module.clone()),
        ("Written by:", format!("tidemill {}", savepoint.version)),
    ];
    let lines = lines
        .iter()
        .map(|(label, value)| format!("{label:<13}{value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}
