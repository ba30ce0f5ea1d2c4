//! The figures as Markdown.
//!
//! It never rounds a figure away: small ones get more digits.

use std::fmt::Write as _;

use super::row::{Figures, Row};

/// The figures of one system. Each row's runs as measured; the median run is shown, and the range of the rates.
pub(super) fn of_one(rows: &[(Row, Vec<Figures>)]) -> String {
    let mut table = "| job | P | TMs | records/s | slowest / fastest run | CPU s per million | cores used | peak RSS JM + TM, MiB | idle RSS, MiB | ckpt avg / p99, ms | run to first record, s | others' cores |\n\
                     |---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (row, runs) in rows {
        let Some(median) = Figures::median(runs.clone()) else {
            continue;
        };
        let rates = || runs.iter().map(|run| run.rate);
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} / {} | {} | {:.2} | {:.0} + {:.0} | {:.0} | {} / {} | {:.2} | {:.2} |",
            row.job,
            row.shape.parallelism,
            row.shape.taskmanagers,
            whole(median.rate),
            whole(rates().fold(f64::INFINITY, f64::min)),
            whole(rates().fold(0.0, f64::max)),
            short(median.processor_s_per_million),
            median.processors,
            median.jobmanager_mib,
            median.taskmanagers_mib,
            median.idle_mib,
            optional(median.checkpoint_ms),
            optional(median.checkpoint_p99_ms),
            median.first_record_s,
            median.others.max(0.0),
        );
    }
    table
}

/// Ours divided by theirs, median by median.
pub(super) fn of_ratios(
    peer: &str,
    rows: &[(Row, Vec<Figures>)],
    peer_rows: &[(Row, Vec<Figures>)],
) -> String {
    let mut table = format!(
        "| tidemill / {peer} | P | TMs | records/s | CPU per record | peak RSS | run to first record |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for ((row, runs), (_, peer_runs)) in rows.iter().zip(peer_rows) {
        let (Some(own), Some(other)) = (
            Figures::median(runs.clone()),
            Figures::median(peer_runs.clone()),
        ) else {
            continue;
        };
        let memory = |figures: &Figures| figures.jobmanager_mib + figures.taskmanagers_mib;
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.job,
            row.shape.parallelism,
            row.shape.taskmanagers,
            short(own.rate / other.rate),
            short(own.processor_s_per_million / other.processor_s_per_million),
            short(memory(&own) / memory(&other)),
            short(own.first_record_s / other.first_record_s),
        );
    }
    table
}

fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// At least two significant digits.
fn short(number: f64) -> String {
    if number >= 10.0 {
        format!("{number:.0}")
    } else if number >= 1.0 {
        format!("{number:.2}")
    } else {
        format!("{number:.3}")
    }
}

fn optional(number: Option<f64>) -> String {
    number.map_or_else(|| "–".to_owned(), short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row::SHAPES;
    use crate::bench::row::tests::figures;

    #[test]
    fn ratios_are_ours_by_theirs() {
        let row = Row {
            job: "pass".to_owned(),
            shape: SHAPES[0],
        };
        let own = [(row.clone(), vec![figures(3e6), figures(1e6), figures(2e6)])];
        let peer = [(row, vec![figures(1e6)])];
        let table = of_ratios("flink", &own, &peer);
        assert_eq!(
            table.lines().last(),
            Some("| pass | 1 | 1 | 2.00 | 1.00 | 1.00 | 1.00 |")
        );
        let table = of_one(&own);
        let last = table.lines().last().unwrap();
        assert!(
            last.contains("| 2 000 000 | 1 000 000 / 3 000 000 |"),
            "{last}"
        );
        assert!(last.contains("| 12 / – |"), "{last}");
    }
}
