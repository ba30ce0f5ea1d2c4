//! The command line as clap reads it: every verb with its options. It never acts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

const EXIT_CODES: &str = "\
Exit codes:
  0    success; of `run`: the job finished
  1    failure; of `run`: the job failed; of `savepoint` and `stop`: none was written, or it is damaged
  2    the command line or the configuration is wrong
  3    of `run`: the job was cancelled
  4    no JobManager can be reached
  5    the JobManager refused the request
  130  of `run`, `savepoint` and `stop`: interrupted; what was asked for goes on";

/// Runs streaming jobs, written as WebAssembly, on clusters that survive losing a machine.
///
/// `tidemill new NAME` makes a job, `tidemill build` compiles it, `tidemill local` starts a cluster on this machine, and
/// `tidemill run JOB.wasm` runs the job on it.
#[derive(Debug, Parser)]
#[command(name = "tidemill", version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) everywhere: Everywhere,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options of every verb.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options everywhere")]
pub(crate) struct Everywhere {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Where a JobManager's REST API is; several may be given, and are tried in turn
    #[arg(
        long, global = true, value_name = "URL", env = "TIDEMILL_JOBMANAGER", value_delimiter = ',',
        default_value = "http://127.0.0.1:7421", value_hint = ValueHint::Url
    )]
    pub(crate) jobmanager: Vec<String>,
    /// How long a cluster that has no leader is waited for; also one that no address reaches, if given [default: 30]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub(crate) timeout: Option<u32>,
    /// What the REST API asks for, if jobmanager.rest_token is set there
    #[arg(long, global = true, env = "TIDEMILL_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a new job: a crate that builds and passes its test
    New(New),
    /// Compile jobs to WebAssembly
    Build(Build),
    /// Show what a job's module contains: its graph, parameters, imports, exports and sizes
    Inspect(Inspect),
    /// Run a job and wait for its end
    ///
    /// Progress goes to standard error: bars on a terminal, lines elsewhere. Ctrl-C leaves the job running and says so;
    /// with --local it cancels the job, since the cluster ends with the command.
    Run(Run),
    /// List every job
    List,
    /// Show everything about a job
    Info(Job),
    /// Cancel a job
    ///
    /// It ends where it is. If the job keeps its last checkpoint (--retain-on-cancel), this waits for its end and says where
    /// that checkpoint is. `tidemill stop` ends a job at a savepoint instead.
    Cancel(Job),
    /// Take a savepoint of a job; or list, show, verify or delete savepoints
    ///
    /// A savepoint is a whole image of a job, in a directory of its own that can be moved, and is never deleted by the
    /// cluster. The job runs on meanwhile. Its path is the one line on standard output. Ctrl-C leaves it going and says how
    /// to come back to it.
    Savepoint(Savepoint),
    /// Stop a job at a savepoint
    ///
    /// Nothing is processed after the savepoint, and everything before it is committed: a job that is started from it goes on
    /// as if there had been no pause. If no savepoint can be written the job runs on.
    Stop(Stop),
    /// Show what a job's tasks have written
    Logs(Logs),
    /// Show a job's checkpoints, or one of them task by task
    Checkpoints(Checkpoints),
    /// List the TaskManagers
    Nodes,
    /// Start a whole cluster in this process
    ///
    /// One JobManager and some TaskManagers, with certificates that exist only in memory. Ctrl-C ends it; with
    /// --data-dir it finds its jobs again when it is started again.
    Local(Local),
    /// Start a JobManager
    Jobmanager(Process),
    /// Start a TaskManager
    Taskmanager(Process),
    /// Make a cluster's certificates
    ///
    /// The first call in a directory makes the cluster's authority, ca.pem and ca.key; later calls issue more
    /// certificates of the same cluster. Copy ca.pem and a process's own NAME.pem and NAME.key to where it runs, and
    /// keep ca.key away from there.
    Certs(Certs),
    /// Print a script that completes commands in a shell
    Completions(Completions),
}

#[derive(Args, Debug)]
pub(crate) struct New {
    /// The crate's name, and that of its directory
    pub(crate) name: String,
    /// The directory to make it in
    #[arg(long = "in", value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) parent: PathBuf,
    /// Depend on the guest SDK in this directory instead of a published version
    #[arg(long, value_name = "DIR", env = "TIDEMILL_SDK_PATH", value_hint = ValueHint::DirPath)]
    pub(crate) sdk_path: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Build {
    /// The job's Cargo.toml
    #[arg(long, value_name = "FILE", default_value = "Cargo.toml", value_hint = ValueHint::FilePath)]
    pub(crate) manifest_path: PathBuf,
    /// Only these packages of a workspace
    #[arg(long, short, value_name = "NAME")]
    pub(crate) package: Vec<String>,
    /// The cargo profile to build with
    #[arg(long, value_name = "NAME", default_value = "release")]
    pub(crate) profile: String,
    /// Fail when Cargo.lock would have to change
    #[arg(long)]
    pub(crate) locked: bool,
}

/// The job's own parameters.
#[derive(Args, Debug)]
pub(crate) struct Parameters {
    /// A parameter of the job; may be repeated
    #[arg(long = "param", short = 'p', value_name = "NAME=VALUE", value_parser = key_and_value)]
    pub(crate) parameters: Vec<(String, String)>,
}

#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// The module
    #[arg(value_name = "JOB.wasm", value_hint = ValueHint::FilePath)]
    pub(crate) module: PathBuf,
    #[command(flatten)]
    pub(crate) parameters: Parameters,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The module
    #[arg(value_name = "JOB.wasm", value_hint = ValueHint::FilePath)]
    pub(crate) module: PathBuf,
    #[command(flatten)]
    pub(crate) parameters: Parameters,
    /// The tasks of each stage that does not fix its own number [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) parallelism: Option<u32>,
    /// The number of key groups, and the largest parallelism [default: the cluster's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_parallelism: Option<u32>,
    /// The job's name [default: its own]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The time between the starts of two checkpoints; 0: none [default: the cluster's]
    #[arg(long, value_name = "MS")]
    pub(crate) checkpoint_interval_ms: Option<u64>,
    /// What a failure of a task leads to [default: the cluster's]
    #[arg(long, value_name = "STRATEGY", value_parser = ["none", "fixed-delay", "failure-rate", "exponential-delay"])]
    pub(crate) restart: Option<String>,
    /// Begin from a savepoint or a kept checkpoint of the same module: its path in the cluster's store, or its URL
    #[arg(long, value_name = "PATH")]
    pub(crate) from_savepoint: Option<String>,
    /// Keep the last checkpoint when the job is cancelled or fails, to be started from like a savepoint [default: the
    /// cluster's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) retain_on_cancel: Option<bool>,
    /// Keep the last image of each task at hand on a second TaskManager [default: the cluster's]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) standby: Option<bool>,
    /// How long a checkpoint waits for its barriers before the records in front of them become part of it; 0: for ever
    /// [default: the cluster's]
    #[arg(long, value_name = "MS")]
    pub(crate) aligned_timeout_ms: Option<u64>,
    /// Any other setting of the sections checkpoints, recovery or restart for this job, such as restart.fixed_delay_attempts=3; may
    /// be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) settings: Vec<(String, String)>,
    /// Submit the job and do not wait for its end
    #[arg(long)]
    pub(crate) detach: bool,
    /// Show what the tasks write while waiting
    #[arg(long, conflicts_with = "detach")]
    pub(crate) logs: bool,
    /// Run on a cluster that is started in this process and ends with it
    #[arg(long, conflicts_with = "detach")]
    pub(crate) local: bool,
    /// With --local: the number of TaskManagers
    #[arg(long, value_name = "N", default_value_t = 1, requires = "local", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) taskmanagers: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Job {
    /// The job: its id, the beginning of its id, or its name
    #[arg(value_name = "JOB")]
    pub(crate) job: String,
}

#[derive(Args, Debug)]
pub(crate) struct Checkpoints {
    #[command(flatten)]
    pub(crate) job: Job,
    /// Only this one, task by task: its id, such as 3.17, or `last` for the last that is complete
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: Option<String>,
}

/// Taking a savepoint, or a look at those that are stored.
#[derive(Args, Debug)]
#[command(subcommand_negates_reqs = true, subcommand_precedence_over_arg = true)]
pub(crate) struct Savepoint {
    #[command(subcommand)]
    pub(crate) stored: Option<StoredSavepoints>,
    /// The job: its id, the beginning of its id, or its name
    #[arg(value_name = "JOB", required = true)]
    pub(crate) job: Option<String>,
    /// Where to write it: a path in the cluster's store, or a URL [default: below the cluster's checkpoints.savepoint_dir]
    #[arg(value_name = "PATH", conflicts_with = "request")]
    pub(crate) path: Option<String>,
    #[command(flatten)]
    pub(crate) waiting: SavepointWaiting,
}

/// How a savepoint is waited for.
#[derive(Args, Debug)]
pub(crate) struct SavepointWaiting {
    /// Print the request's id and do not wait
    #[arg(long, conflicts_with = "request")]
    pub(crate) detach: bool,
    /// Ask for nothing, and wait for what was asked for before
    #[arg(long, value_name = "ID", value_parser = request_id)]
    pub(crate) request: Option<String>,
}

/// What can be done with savepoints that are stored.
#[derive(Debug, Subcommand)]
pub(crate) enum StoredSavepoints {
    /// List the cluster's savepoints, and the checkpoints that cancelled and failed jobs have left
    List,
    /// Show what a savepoint is of
    Show(StoredSavepoint),
    /// Read a whole savepoint and check every byte
    Verify(StoredSavepoint),
    /// Delete a savepoint, or a checkpoint that an ended job has left
    Delete(StoredSavepoint),
}

#[derive(Args, Debug)]
pub(crate) struct StoredSavepoint {
    /// Where it is: its path in the cluster's store, or its URL
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
}

#[derive(Args, Debug)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) job: Job,
    /// Where to write the savepoint: a path in the cluster's store, or a URL; a place is chosen if none is named
    #[arg(long, value_name = "PATH", num_args = 0..=1, conflicts_with = "request")]
    pub(crate) savepoint: Option<Option<String>>,
    #[command(flatten)]
    pub(crate) waiting: SavepointWaiting,
}

#[derive(Args, Debug)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) job: Job,
    /// Only this task
    #[arg(long, value_name = "STAGE/SUBTASK")]
    pub(crate) task: Option<String>,
    /// Wait for more, until the job has ended
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Begin with at most this many lines of each TaskManager
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) lines: u32,
}

#[derive(Args, Debug)]
pub(crate) struct Local {
    /// The number of TaskManagers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) taskmanagers: u32,
    /// The slots of each TaskManager [default: the cores of this machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) slots: Option<u32>,
    /// Where jobs and checkpoints are kept [default: a new directory, removed at the end]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) process: Process,
}

#[derive(Args, Debug)]
pub(crate) struct Process {
    /// The configuration file; conf/tidemill.toml is a sample
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// A setting that overrules file and environment, such as taskmanager.slots=4; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Certs {
    /// The directory to write to
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// Whom to make a certificate for: a name for each process, or one for each kind
    #[arg(value_name = "NAME", default_values = ["jobmanager", "taskmanager"])]
    pub(crate) names: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn request_id(text: &str) -> Result<String, String> {
    match text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_lowercase()),
        false => Err("expected 32 hexadecimal digits, as the request printed them".to_owned()),
    }
}

impl Verb {
    /// Whether the verb asks a JobManager over REST, and so heeds --jobmanager and --token.
    pub(crate) fn asks_a_jobmanager(&self) -> bool {
        match self {
            Self::Run(run) => !run.local,
            Self::List
            | Self::Info(_)
            | Self::Cancel(_)
            | Self::Savepoint(_)
            | Self::Stop(_)
            | Self::Logs(_)
            | Self::Checkpoints(_)
            | Self::Nodes => true,
            Self::New(_)
            | Self::Build(_)
            | Self::Inspect(_)
            | Self::Local(_)
            | Self::Jobmanager(_)
            | Self::Taskmanager(_)
            | Self::Certs(_)
            | Self::Completions(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("tidemill").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_verb_and_option_has_a_help_text() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let is_builtin = ["help", "version"].contains(&argument.get_id().as_str());
                assert!(
                    is_builtin || argument.get_help().is_some(),
                    "{}: {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            for verb in command.get_subcommands() {
                assert!(verb.get_about().is_some(), "{}", verb.get_name());
                check(verb);
            }
        }
        check(&Arguments::command());
    }

    #[test]
    fn a_run_reads_its_options() {
        let line = "run job.wasm -p input=/a=b --param output=/out --parallelism 4 --name n --restart none \
                    --set checkpoints.retained=3 --detach --jobmanager http://a:1 --jobmanager http://b:2";
        let arguments = parse(line).expect("a good line");
        assert_eq!(
            arguments.everywhere.jobmanager,
            ["http://a:1", "http://b:2"]
        );
        let Verb::Run(run) = arguments.verb else {
            panic!("not a run");
        };
        assert_eq!(
            run.parameters.parameters[0],
            ("input".to_owned(), "/a=b".to_owned())
        );
        assert_eq!(
            (run.parallelism, run.detach, run.local),
            (Some(4), true, false)
        );
        assert_eq!(
            run.settings,
            [("checkpoints.retained".to_owned(), "3".to_owned())]
        );
    }

    #[test]
    fn a_run_says_yes_and_no_to_the_cluster_s_defaults() {
        let line = "run job.wasm --standby --retain-on-cancel=false --aligned-timeout-ms 0 --from-savepoint sp/1";
        let Verb::Run(run) = parse(line).expect("a good line").verb else {
            panic!("not a run");
        };
        assert_eq!(
            (run.standby, run.retain_on_cancel, run.aligned_timeout_ms),
            (Some(true), Some(false), Some(0))
        );
        assert_eq!(run.from_savepoint.as_deref(), Some("sp/1"));
        // What follows a flag is not its value.
        let Verb::Run(run) = parse("run --standby job.wasm").expect("a good line").verb else {
            panic!("not a run");
        };
        assert_eq!((run.standby, run.module), (Some(true), "job.wasm".into()));
    }

    #[test]
    fn savepoints_are_taken_of_jobs_or_looked_at() {
        let savepoint = |line: &str| match parse(line).expect(line).verb {
            Verb::Savepoint(savepoint) => savepoint,
            other => panic!("{other:?}"),
        };
        let taken = savepoint("savepoint count s3://bucket/x --detach");
        assert_eq!(
            (taken.job.as_deref(), taken.path.as_deref()),
            (Some("count"), Some("s3://bucket/x"))
        );
        assert!(taken.waiting.detach && taken.stored.is_none());
        for line in [
            "savepoint list",
            "savepoint list --output json",
            "savepoint --output json list",
            "--output json savepoint list",
        ] {
            let listed = savepoint(line);
            assert!(
                matches!(listed.stored, Some(StoredSavepoints::List)),
                "{line}"
            );
        }
        let shown = savepoint("savepoint show savepoints/a");
        assert!(matches!(
            shown.stored,
            Some(StoredSavepoints::Show(StoredSavepoint { path })) if path == "savepoints/a"
        ));
    }

    #[test]
    fn a_job_is_stopped_with_and_without_a_place() {
        let stop = |line: &str| match parse(line).expect(line).verb {
            Verb::Stop(stop) => (stop.job.job, stop.savepoint),
            other => panic!("{other:?}"),
        };
        assert_eq!(stop("stop count"), ("count".to_owned(), None));
        assert_eq!(
            stop("stop count --savepoint"),
            ("count".to_owned(), Some(None))
        );
        assert_eq!(
            stop("stop count --savepoint savepoints/x"),
            ("count".to_owned(), Some(Some("savepoints/x".to_owned())))
        );
    }

    #[test]
    fn global_options_may_stand_before_and_after_the_verb() {
        for line in ["--output json list", "list --output json"] {
            assert_eq!(
                parse(line).expect("a good line").everywhere.output,
                Output::Json
            );
        }
    }

    #[test]
    fn bad_lines_are_usage_errors() {
        let bad = [
            "",
            "rum",
            "run",
            "run job.wasm --parallelism 0",
            "run job.wasm --param input",
            "run job.wasm --param =x",
            "run job.wasm --local --detach",
            "run job.wasm --taskmanagers 3",
            "run job.wasm --restart sometimes",
            "local --slots 0",
            "local --taskmanagers 65",
            "logs",
            "savepoint",
            "savepoint show",
            "savepoint count --request 12",
            "savepoint count sp/x --request 00000000000000000000000000000001",
            "stop",
            "stop count --detach --request 00000000000000000000000000000001",
            "run job.wasm --standby=perhaps",
            "run job.wasm --aligned-timeout-ms -1",
            "checkpoints",
            "certs",
            "list --output yaml",
        ];
        for line in bad {
            let error = parse(line).map(|_| ()).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        assert!(
            parse("rum")
                .map(|_| ())
                .unwrap_err()
                .to_string()
                .contains("'run'")
        );
    }
}
