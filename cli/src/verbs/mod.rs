//! A file per verb, or per few that resemble each other.

mod build;
mod certs;
mod completions;
pub(crate) mod describe;
mod info;
mod inspect;
mod jobs;
mod local;
pub(crate) mod logs;
mod new;
mod run;
mod servers;

use crate::arguments::{Arguments, Everywhere, Output, Verb};
use crate::client::Client;
use crate::failure::{Exit, Failure};

/// What every verb may need of the options everywhere.
pub(crate) struct Session {
    everywhere: Everywhere,
}

impl Session {
    pub(crate) fn output(&self) -> Output {
        self.everywhere.output
    }

    pub(crate) fn is_json(&self) -> bool {
        self.output() == Output::Json
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Client::new(
            &self.everywhere.jobmanager,
            self.everywhere.token.as_deref(),
        )
    }
}

/// Does what the command line says.
pub(crate) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let session = Session {
        everywhere: arguments.everywhere,
    };
    let done = match arguments.verb {
        Verb::New(options) => new::new(&session, &options),
        Verb::Build(options) => build::build(&session, &options),
        Verb::Inspect(options) => inspect::inspect(&session, &options),
        Verb::Run(options) => return run::run(&session, &options),
        Verb::List => jobs::list(&session),
        Verb::Info(options) => info::info(&session, &options),
        Verb::Cancel(options) => jobs::cancel(&session, &options),
        Verb::Logs(options) => logs::logs(&session, &options),
        Verb::Checkpoints(options) => jobs::checkpoints(&session, &options),
        Verb::Nodes => jobs::nodes(&session),
        Verb::Local(options) => local::local(&session, &options),
        Verb::Jobmanager(options) => servers::jobmanager(&options),
        Verb::Taskmanager(options) => servers::taskmanager(&options),
        Verb::Certs(options) => certs::certs(&session, &options),
        Verb::Completions(options) => completions::completions(&options),
    };
    done.map(|()| Exit::Success)
}
