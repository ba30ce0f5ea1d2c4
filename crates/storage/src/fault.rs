//! Named points at which a process can be made to die, so that tests can try a crash between any two steps of what
//! must survive one. They do nothing unless the environment variable `TIDEMILL_FAULT_POINT` names one of them, and
//! nothing else can set them off.

use std::process;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The environment variable that names the point: `<name>`, or `<name>:<n>` for the n-th time that it is passed.
const VARIABLE: &str = "TIDEMILL_FAULT_POINT";

static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
    std::env::var(VARIABLE)
        .ok()
        .as_deref()
        .and_then(Armed::parse)
});

#[derive(Debug)]
struct Armed {
    name: String,
    /// How often it is still to be passed, the last time included.
    left: AtomicU64,
}

impl Armed {
    fn parse(value: &str) -> Option<Self> {
        let (name, nth) = match value.split_once(':') {
            Some((name, nth)) => (name, nth.parse().ok()?),
            None => (value, 1),
        };
        (!name.is_empty() && nth > 0).then(|| Self {
            name: name.into(),
            left: AtomicU64::new(nth),
        })
    }

    /// Whether this is the time.
    fn passes(&self, name: &str) -> bool {
        self.name == name && self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Ends the process here, as suddenly as a crash does, if the environment variable `TIDEMILL_FAULT_POINT` names this
/// point. Nothing is unwound, flushed or said goodbye to.
pub fn fault_point(name: &'static str) {
    if ARMED.as_ref().is_some_and(|armed| armed.passes(name)) {
        eprintln!("{VARIABLE} names `{name}`: this process ends here");
        process::abort();
    }
}

/// The point at which this process is to end, for its log to say so when it starts; `None` for every process that is
/// not under test.
#[must_use]
pub fn armed_fault_point() -> Option<&'static str> {
    ARMED.as_ref().map(|armed| armed.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_point_is_named_with_or_without_a_number() {
        let parsed = |value| {
            let armed = Armed::parse(value)?;
            Some((armed.name.clone(), armed.left.into_inner()))
        };
        assert_eq!(parsed("delete.done"), Some(("delete.done".into(), 1)));
        assert_eq!(parsed("delete.done:3"), Some(("delete.done".into(), 3)));
        for nothing in ["", ":1", "delete.done:0", "delete.done:", "delete.done:x"] {
            assert_eq!(parsed(nothing), None, "{nothing}");
        }
    }

    /// Run by the next test in a process of its own; passes two points, one of them three times.
    #[test]
    fn passing_points() {
        fault_point("test.other");
        for round in 1..=3 {
            println!("round {round}");
            fault_point("test.here");
        }
    }

    #[test]
    fn the_process_dies_at_the_named_point_and_at_no_other() {
        for (value, rounds) in [
            ("test.here", 1),
            ("test.here:2", 2),
            ("test.here:4", 3),
            ("test.elsewhere", 3),
        ] {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "fault::tests::passing_points", "--nocapture"])
                .env(VARIABLE, value)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&child.stdout);
            assert_eq!(said.matches("round").count(), rounds, "{value}: {said}");
            let died = child.status.signal().is_some();
            assert_eq!(
                died,
                value.starts_with("test.here") && rounds < 3,
                "{value}"
            );
        }
    }
}
