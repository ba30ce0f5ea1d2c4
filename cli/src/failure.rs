//! How a command ends, and how its failure is told: once, with causes and a remedy, in text or JSON.

use std::error::Error;
use std::process::ExitCode;

use serde_json::json;

use crate::arguments::Output;

/// How a command ended, as its exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Success = 0,
    Failed = 1,
    Usage = 2,
    Cancelled = 3,
    Unreachable = 4,
    Refused = 5,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: String,
    causes: Vec<String>,
    help: Option<String>,
    code: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            causes: Vec::new(),
            help: None,
            code: None,
        }
    }

    /// An error and all of its sources.
    pub(crate) fn of(exit: Exit, error: &dyn Error) -> Self {
        Self::new(exit, error.to_string()).caused_by(error.source())
    }

    /// Something that could not be done, because of an error and all of its sources.
    pub(crate) fn because(exit: Exit, message: impl Into<String>, error: &dyn Error) -> Self {
        Self::new(exit, message).caused_by(Some(error))
    }

    /// What could not be done, without causes and help.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same, but for the exit code.
    pub(crate) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// What a JobManager calls it.
    pub(crate) fn with_code(mut self, code: String) -> Self {
        self.code = Some(code);
        self
    }

    /// What a JobManager calls it, if one has refused a request.
    pub(crate) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    fn caused_by(mut self, mut source: Option<&dyn Error>) -> Self {
        while let Some(error) = source {
            let text = error.to_string();
            // Some libraries repeat their source in their own words.
            let told = self.causes.last().unwrap_or(&self.message);
            if !told.ends_with(&text) {
                self.causes.push(text);
            }
            source = error.source();
        }
        self
    }

    /// As it is printed to standard error.
    pub(crate) fn rendered(&self, output: Output) -> String {
        if output == Output::Json {
            let Self {
                message,
                causes,
                help,
                code,
                exit,
            } = self;
            let exit_code = *exit as u8;
            return json!({ "error": { "code": code, "message": message, "causes": causes, "help": help, "exit_code": exit_code } }).to_string();
        }
        let mut text = format!("error: {}", self.message);
        for cause in &self.causes {
            text.push_str("\n  because: ");
            text.push_str(&cause.replace('\n', "\n    "));
        }
        if let Some(help) = &self.help {
            text.push_str("\nhelp: ");
            text.push_str(help);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outer thing failed")]
    struct Outer(#[source] std::io::Error);

    fn failure() -> Failure {
        let error = Outer(std::io::Error::other("the disk is full"));
        Failure::of(Exit::Failed, &error).help("make room")
    }

    #[test]
    fn a_failure_is_told_once_with_causes_and_help() {
        let expected =
            "error: the outer thing failed\n  because: the disk is full\nhelp: make room";
        assert_eq!(failure().rendered(Output::Text), expected);
    }

    #[test]
    fn a_cause_that_was_told_already_is_not_repeated() {
        let error = Outer(std::io::Error::other("the disk is full"));
        let failure = Failure::because(Exit::Failed, "stopped: the outer thing failed", &error);
        assert_eq!(
            failure.rendered(Output::Text),
            "error: stopped: the outer thing failed\n  because: the disk is full"
        );
    }

    #[test]
    fn programs_get_json() {
        let json: serde_json::Value =
            serde_json::from_str(&failure().rendered(Output::Json)).expect("JSON");
        assert_eq!(json["error"]["causes"][0], "the disk is full");
        assert_eq!(json["error"]["exit_code"], 1);
    }
}
