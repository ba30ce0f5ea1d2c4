//! How long failures took, from the kill to the job's going on: a table, and the median and maximum of each column.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

const COLUMNS: [&str; 6] = ["detect", "plan", "delay", "fetch", "restore", "resume"];

/// The time on this machine's clock, in milliseconds since the Unix epoch, as JobManagers tell it.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A row for each recovery. *detect*: from the kill until the JobManager learned of it. *plan*: from then until it had
/// decided what to do, without the restart strategy's *delay*. *fetch* and *restore*: the slowest task's reading of its
/// image and laying it over a new instance. *resume*: from detection until every task ran.
#[derive(Clone, Debug, Default)]
pub struct RecoveryTable {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    label: String,
    columns_us: [Option<u64>; COLUMNS.len()],
    note: String,
}

impl RecoveryTable {
    /// Adds the recoveries of a job that were detected since `killed_at_ms`, as `/v1/jobs/{id}` tells them; a row that
    /// says so if there are none.
    pub fn add(&mut self, label: &str, killed_at_ms: u64, detail: &Value) {
        let recoveries = detail["recoveries"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        // The JobManager's clock is this machine's, cut to milliseconds.
        let later = |recovery: &&Value| {
            recovery["detected_at_ms"]
                .as_u64()
                .is_some_and(|at| at + 1 >= killed_at_ms)
        };
        let before = self.rows.len();
        self.rows
            .extend(recoveries.iter().filter(later).map(|recovery| Row {
                label: label.to_owned(),
                columns_us: columns(killed_at_ms, recovery),
                note: note(recovery),
            }));
        if self.rows.len() == before {
            self.note(label, "no task was lost");
        }
    }

    /// Adds a row without figures.
    pub fn note(&mut self, label: &str, text: impl Into<String>) {
        self.rows.push(Row {
            label: label.to_owned(),
            columns_us: [None; COLUMNS.len()],
            note: text.into(),
        });
    }

    fn column(&self, index: usize) -> Vec<u64> {
        let mut values: Vec<u64> = self
            .rows
            .iter()
            .filter_map(|row| row.columns_us[index])
            .collect();
        values.sort_unstable();
        values
    }

    /// The median of *detect*, in milliseconds, if there is any.
    #[must_use]
    pub fn median_detect_ms(&self) -> Option<u64> {
        median(&self.column(0)).map(|us| us / 1000)
    }
}

fn columns(killed_at_ms: u64, recovery: &Value) -> [Option<u64>; COLUMNS.len()] {
    let delay = recovery["delay_us"].as_u64();
    let planned = recovery["planned_after_us"].as_u64();
    let timing = |name: &str| recovery["timings_max"][name].as_u64();
    [
        recovery["detected_at_ms"]
            .as_u64()
            .map(|at| at.saturating_sub(killed_at_ms) * 1000),
        planned.map(|planned| planned.saturating_sub(delay.unwrap_or(0))),
        delay,
        timing("fetch_us"),
        timing("restore_us"),
        recovery["running_after_us"].as_u64(),
    ]
}

fn note(recovery: &Value) -> String {
    let number = |name: &str| recovery[name].as_u64().unwrap_or(0);
    let checkpoint = recovery["checkpoint"].as_str().unwrap_or("the beginning");
    let (lost, restarted) = (number("tasks_lost"), number("tasks_restarted"));
    let cause = recovery["cause"].as_str().unwrap_or("no cause is told");
    format!("from {checkpoint}; {lost} lost, {restarted} restarted; {cause}")
}

fn median(sorted: &[u64]) -> Option<u64> {
    sorted.get(sorted.len() / 2).copied()
}

fn milliseconds(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{:.1}", us as f64 / 1000.0))
}

impl fmt::Display for RecoveryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14}", "ms")?;
        for column in COLUMNS {
            write!(f, "{column:>9}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{:<14}", row.label)?;
            for us in row.columns_us {
                write!(f, "{:>9}", milliseconds(us))?;
            }
            writeln!(f, "  {}", row.note)?;
        }
        for (name, pick) in [
            ("median", median as fn(&[u64]) -> Option<u64>),
            ("max", |sorted| sorted.last().copied()),
        ] {
            write!(f, "{name:<14}")?;
            for index in 0..COLUMNS.len() {
                write!(f, "{:>9}", milliseconds(pick(&self.column(index))))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kill_becomes_a_row_and_earlier_recoveries_do_not() {
        let recovery = |at: u64| {
            json!({
                "detected_at_ms": at, "planned_after_us": 1500, "delay_us": 500, "running_after_us": 30_000,
                "checkpoint": "1.4", "tasks_lost": 2, "tasks_restarted": 9, "cause": "tm-1 is lost",
                "timings_max": { "fetch_us": 2000, "restore_us": 300 },
            })
        };
        let mut table = RecoveryTable::default();
        table.add(
            "seed 1",
            1000,
            &json!({ "recoveries": [recovery(900), recovery(1012)] }),
        );
        table.add("seed 2", 2000, &json!({ "recoveries": [recovery(1012)] }));
        let text = table.to_string();
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 5, "{text}");
        let words: Vec<&str> = rows[1].split_whitespace().collect();
        assert_eq!(
            words[..8],
            ["seed", "1", "12.0", "1.0", "0.5", "2.0", "0.3", "30.0"]
        );
        assert!(rows[1].ends_with("from 1.4; 2 lost, 9 restarted; tm-1 is lost"));
        assert!(rows[2].ends_with("no task was lost"));
        assert_eq!(table.median_detect_ms(), Some(12));
    }
}
