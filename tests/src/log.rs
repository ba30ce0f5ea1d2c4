//! What processes logged: JSON, a line each. A line of level ERROR, and one that is not JSON at all (a panic's message, a
//! refused command line), is a complaint.

use serde_json::Value;

/// The complaints of a log that none of `expected` is part of.
pub(crate) fn complaints<'a>(log: &'a str, expected: &[String]) -> Vec<&'a str> {
    log.lines()
        .filter(|line| !line.trim().is_empty())
        .filter(|line| match serde_json::from_str::<Value>(line) {
            Ok(record) => record["level"] == "ERROR",
            Err(_) => true,
        })
        .filter(|line| !expected.iter().any(|expected| line.contains(expected)))
        .collect()
}

/// The last lines of a log.
pub(crate) fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_panics_are_complaints_unless_expected() {
        let log = r#"{"level":"INFO","fields":{"message":"ERROR is but a word here"}}
{"level":"WARN","fields":{"message":"a TaskManager is lost"}}

{"level":"ERROR","fields":{"message":"the disk is full"}}
thread 'main' panicked at src/main.rs:1:1:
"#;
        assert_eq!(complaints(log, &[]).len(), 2);
        let expected = ["the disk is full".to_owned()];
        assert_eq!(
            complaints(log, &expected),
            ["thread 'main' panicked at src/main.rs:1:1:"]
        );
        assert_eq!(tail(log, 1), "thread 'main' panicked at src/main.rs:1:1:");
    }
}
