//! `tidemill run`: submits a job and waits for its end.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use tidemill_config::Config;
use tidemill_jobmanager::views::{JobDetail, JobStatus, SubmittedView};
use tokio::runtime::Runtime;

use super::Session;
use super::describe;
use crate::arguments::{Process, Run};
use crate::client::{Client, Patience, pair};
use crate::cluster::{LocalCluster, Plan};
use crate::failure::{Exit, Failure};
use crate::print;
use crate::process::{interrupts, load_config, runtime, start_logging};
use crate::progress::Progress;
use crate::units;
use crate::watch::{Ending, Seen, Watch};

/// How long a job may take to be cancelled when its cluster ends with this command.
const CANCEL_MAX: Duration = Duration::from_secs(10);

pub(crate) fn run(session: &Session, options: &Run) -> Result<Exit, Failure> {
    let wasm = read_module(&options.module)?;
    let runtime = runtime()?;
    if !options.local {
        return run_on(session, options, &runtime, &session.client()?, &wasm);
    }
    let temporary = tempfile::Builder::new().prefix("tidemill-").tempdir();
    let temporary = temporary.map_err(|error| {
        Failure::because(Exit::Failed, "no temporary directory can be made", &error)
    })?;
    let plan = Plan {
        config: local_config(options)?,
        taskmanagers: options.taskmanagers,
        data_dir: temporary.path().to_owned(),
    };
    start_logging(&plan.config.log)?;
    let cluster = runtime.block_on(LocalCluster::start(&plan))?;
    let client = Client::new(
        &[cluster.url()],
        plan.config.jobmanager.rest_token.as_deref(),
    )?;
    let ran = run_on(session, options, &runtime, &client, &wasm);
    runtime.block_on(cluster.stop());
    ran
}

/// A cluster for one job: quiet, at any free port, with room for the job.
fn local_config(options: &Run) -> Result<Config, Failure> {
    let mut config = load_config(&Process {
        config: None,
        settings: Vec::new(),
    })?;
    config.jobmanager.rest_address = ([127, 0, 0, 1], 0).into();
    if std::env::var_os("TIDEMILL_LOG_LEVEL").is_none() {
        // What happens to the job is shown as its progress.
        config.log.level = "error".to_owned();
    }
    let wanted = options
        .parallelism
        .unwrap_or(1)
        .div_ceil(options.taskmanagers);
    config.taskmanager.slots = config.taskmanager.slots().max(wanted);
    Ok(config)
}

fn read_module(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| {
        Failure::because(
            Exit::Usage,
            format!("the module {} cannot be read", path.display()),
            &error,
        )
        .help("`tidemill build` makes one and prints where it is")
    })
}

fn run_on(
    session: &Session,
    options: &Run,
    runtime: &Runtime,
    client: &Client,
    wasm: &[u8],
) -> Result<Exit, Failure> {
    let submitted = client.submit(wasm, &query(options))?;
    if options.detach {
        announce(session, &submitted)?;
        return Ok(Exit::Success);
    }
    if !session.is_json() {
        eprintln!("{}", in_words(&submitted));
    }
    let interrupts = interrupts(runtime)?;
    // The watch waits by itself, and shows it.
    let watched = client.with(Patience::NONE);
    let mut watch = Watch {
        client: &watched,
        job: submitted.id.clone(),
        show_logs: options.logs,
        progress: Progress::new(session.is_json()),
        interrupts,
        seen: Seen::default(),
    };
    match watch.until_end()? {
        Ending::Job(job) => ended(session, &job),
        Ending::Interrupted if options.local => cancel(session, client, &mut watch),
        Ending::Interrupted => {
            let Watch { job, .. } = watch;
            eprintln!(
                "the job runs on: `tidemill info {job}` shows it, `tidemill cancel {job}` ends it"
            );
            Ok(Exit::Interrupted)
        }
    }
}

/// Ends a job whose cluster ends with this command.
fn cancel(session: &Session, client: &Client, watch: &mut Watch<'_>) -> Result<Exit, Failure> {
    client.cancel(&watch.job)?;
    let (end, deadline) = mpsc::channel();
    watch.interrupts = deadline;
    // Held open until the time is up, since a closed channel counts as an interrupt.
    let timer = std::thread::spawn(move || {
        std::thread::park_timeout(CANCEL_MAX);
        drop(end);
    });
    let ending = watch.until_end();
    timer.thread().unpark();
    match ending? {
        Ending::Job(job) => ended(session, &job),
        Ending::Interrupted => Ok(Exit::Interrupted),
    }
}

fn query(options: &Run) -> Vec<(String, String)> {
    let mut query = Vec::new();
    query.extend(options.name.iter().map(|name| pair("name", name)));
    query.extend(
        options
            .parallelism
            .map(|number| pair("parallelism", number)),
    );
    query.extend(
        options
            .max_parallelism
            .map(|number| pair("max_parallelism", number)),
    );
    query.extend(
        options
            .checkpoint_interval_ms
            .map(|ms| pair("checkpoint_interval_ms", ms)),
    );
    query.extend(
        options
            .aligned_timeout_ms
            .map(|ms| pair("aligned_timeout_ms", ms)),
    );
    query.extend(
        options
            .retain_on_cancel
            .map(|is| pair("retain_on_cancel", is)),
    );
    query.extend(options.standby.map(|is| pair("standby", is)));
    query.extend(
        options
            .from_savepoint
            .iter()
            .map(|path| pair("from_savepoint", path)),
    );
    query.extend(
        options
            .restart
            .iter()
            .map(|strategy| pair("restart", strategy)),
    );
    query.extend(options.settings.iter().cloned());
    let parameters = options.parameters.parameters.iter();
    query.extend(parameters.map(|(name, value)| pair(format!("param.{name}"), value)));
    query
}

fn announce(session: &Session, submitted: &SubmittedView) -> Result<(), Failure> {
    if session.is_json() {
        return print::json(submitted);
    }
    eprintln!("{}", in_words(submitted));
    print::text(&submitted.id)
}

fn in_words(submitted: &SubmittedView) -> String {
    let mut text = format!("submitted {} as {}", submitted.name, submitted.id);
    if submitted.slots_free < submitted.slots_needed {
        text.push_str(&format!(
            "\nit waits: {} needed, {} free",
            units::counted(u64::from(submitted.slots_needed), "slot"),
            submitted.slots_free,
        ));
    }
    for warning in &submitted.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    text
}

/// Tells how the job ended, and says it as an exit code.
fn ended(session: &Session, job: &JobDetail) -> Result<Exit, Failure> {
    if session.is_json() {
        print::json(job)?;
    }
    let summary = &job.summary;
    let took = summary
        .ended_at_ms
        .map(|ended| Duration::from_millis(ended.saturating_sub(summary.submitted_at_ms)));
    let took = took
        .map(|took| format!(" after {}", units::duration(took)))
        .unwrap_or_default();
    match summary.status {
        JobStatus::Finished => {
            if !session.is_json() {
                print::text(&format!(
                    "{} finished{took}: {} in, {} out, {}, {}",
                    summary.name,
                    units::counted(summary.records_in, "record"),
                    units::count(summary.records_out),
                    units::counted(summary.checkpoints_completed, "checkpoint"),
                    units::counted(u64::from(summary.restarts), "restart"),
                ))?;
            }
            Ok(Exit::Success)
        }
        JobStatus::Cancelled => {
            eprintln!("{} was cancelled{took}", summary.name);
            if let Some(path) = &job.kept_checkpoint {
                eprintln!("{}", describe::kept_checkpoint(path));
            }
            Ok(Exit::Cancelled)
        }
        _ => {
            let reason = match (&job.last_failure, &summary.message) {
                (Some(failure), _) => describe::failure(failure),
                (None, Some(message)) => message.clone(),
                (None, None) => "no reason is known".to_owned(),
            };
            let kept = match &job.kept_checkpoint {
                Some(path) => format!("; {}", describe::kept_checkpoint(path)),
                None => String::new(),
            };
            Err(Failure::new(
                Exit::Failed,
                format!("{} failed{took}: {reason}", summary.name),
            )
            .help(format!(
                "`tidemill info {0}` and `tidemill logs {0}` tell more{kept}",
                summary.id
            )))
        }
    }
}
