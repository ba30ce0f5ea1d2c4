//! The `tidemill` command: every verb, and the two kinds of process as sub-commands.
//!
//! It parses the command line, calls one verb, and prints a failure in one place. It never talks to a cluster but over
//! REST, and decides nothing about jobs.

mod arguments;
mod client;
mod cluster;
mod failure;
mod print;
mod process;
mod progress;
mod units;
mod verbs;
mod watch;

use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches};

use arguments::{Arguments, Verb};
use failure::{Exit, Failure};

fn main() -> ExitCode {
    let matches = Arguments::command().get_matches();
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let output = arguments.everywhere.output;
    let names_a_jobmanager = matches
        .subcommand()
        .is_some_and(|(_, verb)| verb.value_source("jobmanager") == Some(ValueSource::CommandLine));
    match check(&arguments, names_a_jobmanager).and_then(|()| verbs::run(arguments)) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            eprintln!("{}", failure.rendered(output));
            failure.exit.into()
        }
    }
}

/// Refuses options that the verb would ignore.
fn check(arguments: &Arguments, names_a_jobmanager: bool) -> Result<(), Failure> {
    if arguments.verb.asks_a_jobmanager() || !names_a_jobmanager {
        return Ok(());
    }
    let failure = Failure::new(
        Exit::Usage,
        "this command does not ask a JobManager: --jobmanager does nothing here",
    );
    Err(match arguments.verb {
        Verb::Taskmanager(_) => {
            failure.help("a TaskManager is told by --set taskmanager.jobmanagers=HOST:PORT")
        }
        _ => failure.help("leave it out"),
    })
}
