//! Runs one program to its end, line by line, within a time limit.
//!
//! It never interprets what the program says; it hands lines on and keeps the last few for error messages.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// How many of the last lines an error message repeats.
const TAIL_LINES_MAX: usize = 12;

/// How often a silent program is checked for its end or for its time limit.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// After a program's end, how long its pipes may stay open (a daemon that it left behind may hold them).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// One line that a program wrote, and where.
pub(crate) enum Line {
    /// On its standard output.
    Output(String),
    /// On its standard error.
    Error(String),
}

/// Why a program did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// It could not be started.
    #[error("cannot start `{program}`: {source}")]
    Start {
        /// The program's name or path.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ran longer than allowed and was killed.
    #[error("`{command}` did not end within {seconds} s")]
    TimedOut {
        /// The command line.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// It ended with a failure.
    #[error("`{command}` failed ({status}){tail}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines, each on a line of its own, indented; empty when it said nothing.
        tail: String,
    },
}

/// Runs `command` without standard input and passes each of its lines to `on_line` as it comes.
///
/// Past `timeout` the program is killed. An exit status other than success is an error.
pub(crate) fn run(
    command: &mut Command,
    timeout: Option<Duration>,
    on_line: &mut dyn FnMut(&Line),
) -> Result<(), RunError> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| RunError::Start {
            program: command.get_program().display().to_string(),
            source,
        })?;
    let (sender, lines) = mpsc::channel();
    forward(child.stdout.take(), sender.clone(), Line::Output);
    forward(child.stderr.take(), sender, Line::Error);

    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut ended_at: Option<Instant> = None;
    let mut tail = Vec::new();
    loop {
        match lines.recv_timeout(POLL_INTERVAL) {
            Ok(line) => {
                on_line(&line);
                let (Line::Output(text) | Line::Error(text)) = line;
                if tail.len() == TAIL_LINES_MAX {
                    tail.remove(0);
                }
                tail.push(text);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => match ended_at {
                Some(at) if at.elapsed() > DRAIN_TIMEOUT => break,
                None if has_ended(&mut child) => ended_at = Some(Instant::now()),
                _ => {}
            },
        }
        if ended_at.is_none() && deadline.is_some_and(|deadline| Instant::now() > deadline) {
            // Already gone is as good as killed.
            let _ = child.kill();
            let _ = child.wait();
            let seconds = timeout.map_or(0, |timeout| timeout.as_secs());
            return Err(RunError::TimedOut {
                command: shown(command),
                seconds,
            });
        }
    }
    let status = child.wait().map_err(|source| RunError::Start {
        program: shown(command),
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    let tail = tail.iter().map(|line| format!("\n      {line}")).collect();
    Err(RunError::Failed {
        command: shown(command),
        status,
        tail,
    })
}

/// Runs `command` and returns what it wrote to its standard output.
pub(crate) fn output_of(command: &mut Command) -> Result<String, RunError> {
    let mut output = String::new();
    run(command, None, &mut |line| {
        if let Line::Output(text) = line {
            output.push_str(text);
            output.push('\n');
        }
    })?;
    Ok(output)
}

fn has_ended(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(Some(_)))
}

/// Sends the lines of `stream` from a thread of its own, which ends with the stream.
fn forward<Stream: Read + Send + 'static>(
    stream: Option<Stream>,
    sender: Sender<Line>,
    wrap: fn(String) -> Line,
) {
    let Some(stream) = stream else { return };
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { return };
            if sender
                .send(wrap(String::from_utf8_lossy(&line).trim_end().to_owned()))
                .is_err()
            {
                return;
            }
        }
    });
}

/// The command line as a person would type it, without its environment.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_arrive_by_stream() {
        let mut seen = Vec::new();
        run(
            &mut shell("echo one; echo two >&2; printf three"),
            None,
            &mut |line| {
                seen.push(match line {
                    Line::Output(text) => format!("out {text}"),
                    Line::Error(text) => format!("err {text}"),
                });
            },
        )
        .expect("the script succeeds");
        seen.sort();
        assert_eq!(seen, ["err two", "out one", "out three"]);
    }

    #[test]
    fn a_failure_repeats_the_last_lines() {
        let error = output_of(&mut shell("seq 100; exit 3"))
            .expect_err("the script fails")
            .to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("\n      99\n      100"), "{error}");
        assert!(
            !error.contains("      88\n"),
            "only the last lines are kept: {error}"
        );
    }

    #[test]
    fn a_silent_program_is_killed_at_its_limit() {
        let started = Instant::now();
        let error = run(
            &mut shell("exec sleep 60"),
            Some(Duration::from_millis(100)),
            &mut |_| {},
        );
        assert!(matches!(error, Err(RunError::TimedOut { .. })), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error =
            output_of(&mut Command::new("/no/such/program")).expect_err("there is no such program");
        assert!(
            error
                .to_string()
                .starts_with("cannot start `/no/such/program`"),
            "{error}"
        );
    }

    #[test]
    fn a_daemon_that_holds_the_pipes_does_not_hold_the_caller() {
        let started = Instant::now();
        output_of(&mut shell("sleep 20 & echo started")).expect("the script succeeds");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
