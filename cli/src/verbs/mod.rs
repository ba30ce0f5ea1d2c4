//! A file per verb, or per few that resemble each other.

mod build;
mod certs;
mod checkpoints;
mod completions;
pub(crate) mod describe;
mod info;
mod inspect;
mod jobs;
mod local;
pub(crate) mod logs;
mod new;
mod run;
mod savepoint;
mod savepoints;
mod servers;

use std::time::Duration;

use crate::arguments::{Arguments, Everywhere, Output, Verb};
use crate::client::{Client, Patience};
use crate::failure::{Exit, Failure};

/// How long a cluster without a leader is waited for when the command line does not say.
const TIMEOUT: Duration = Duration::from_secs(30);

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
        let Everywhere {
            jobmanager,
            timeout,
            token,
            ..
        } = &self.everywhere;
        let seconds = timeout.map(|seconds| Duration::from_secs(seconds.into()));
        let patience = Patience {
            limit: seconds.unwrap_or(TIMEOUT),
            // One address at which nobody is means that no cluster runs, more often than not.
            with_nobody: timeout.is_some() || jobmanager.len() > 1,
            is_told: !self.is_json(),
        };
        Ok(Client::new(jobmanager, token.as_deref())?.with(patience))
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
        Verb::Savepoint(options) => return savepoint::savepoint(&session, &options),
        Verb::Stop(options) => return savepoint::stop(&session, &options),
        Verb::Checkpoints(options) => checkpoints::checkpoints(&session, &options),
        Verb::Nodes => jobs::nodes(&session),
        Verb::Local(options) => local::local(&session, &options),
        Verb::Jobmanager(options) => servers::jobmanager(&options),
        Verb::Taskmanager(options) => servers::taskmanager(&options),
        Verb::Certs(options) => certs::certs(&session, &options),
        Verb::Completions(options) => completions::completions(&options),
    };
    done.map(|()| Exit::Success)
}
