//! What the demo shows: a line for each thing that happens, with the time since the demo began and what happened first.
//!
//! It never redraws a line, so that a log holds the same as a screen. What was shown is kept, for a recording.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

/// How a line looks where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it is.
    Plain,
    /// Something went well.
    Good,
    /// Something was broken.
    Bad,
    /// A heading.
    Strong,
    /// Progress, which repeats.
    Faint,
}

impl Tone {
    fn escape(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[1;31m",
            Self::Strong => "\x1b[1m",
            Self::Faint => "\x1b[2m",
        }
    }
}

/// A line that was shown.
pub(super) struct Shown {
    /// Since the demo began.
    pub(super) at: Duration,
    /// How it looks.
    pub(super) tone: Tone,
    /// What it says.
    pub(super) text: String,
}

/// Shows lines.
pub(super) struct Screen {
    began: Instant,
    colours: bool,
    shown: Vec<Shown>,
}

impl Screen {
    /// The demo begins now.
    pub(super) fn new() -> Self {
        let colours = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        Self {
            began: Instant::now(),
            colours,
            shown: Vec::new(),
        }
    }

    /// How long ago the demo began.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Shows that something happened.
    pub(super) fn event(&mut self, tone: Tone, verb: &str, what: impl Display) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.line(tone, format!("{seconds:6.2} s  {verb:<10} {what}"));
    }

    /// Shows a line without a time.
    pub(super) fn line(&mut self, tone: Tone, text: impl Into<String>) {
        let text = text.into();
        match tone.escape() {
            escape if self.colours && !escape.is_empty() => println!("{escape}{text}\x1b[0m"),
            _ => println!("{text}"),
        }
        self.shown.push(Shown {
            at: self.began.elapsed(),
            tone,
            text,
        });
    }

    /// Everything so far.
    pub(super) fn shown(&self) -> &[Shown] {
        &self.shown
    }
}

/// A number with its thousands apart.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// "1 task", "2 tasks".
pub(super) fn counted(number: u64, noun: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{} {noun}{end}", thousands(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1 000"),
            (202_651, "202 651"),
            (1_000_000, "1 000 000"),
        ] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!(counted(1, "task"), "1 task");
        assert_eq!(counted(1200, "task"), "1 200 tasks");
    }
}
