//! What measurements came to, and the table of it.
//!
//! It never rounds a figure away.

use serde_json::{Value, json};

use super::super::own::Sample;
use super::super::place::Place;
use super::super::statistics::{mean, median, percentile, standard_error};
use super::rows::Row;
use super::{MIB, TURN_MS};
use crate::cluster::rest::number;

/// A turn by the time that is worked in it.
pub(super) const TURN_PER_WORK: f64 = 1.25;

/// One checkpoint of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Checkpoint {
    pub(super) started_at_ms: u64,
    pub(super) duration_ms: f64,
    pub(super) dirty_bytes: u64,
    pub(super) written_bytes: u64,
    pub(super) pauses_ms: Vec<f64>,
}

impl Checkpoint {
    /// Whether it began in the part of such a turn in which a second's writes had gone before.
    pub(super) const fn is_in_turn(&self, turn: u64) -> bool {
        let in_turn_ms = (self.started_at_ms % (2 * TURN_MS)).wrapping_sub(turn * TURN_MS);
        in_turn_ms >= 1000 && in_turn_ms < TURN_MS / 5 * 4
    }
}

/// One run of the job, or one turn.
pub(super) struct Run {
    pub(super) rate: f64,
    pub(super) processors: f64,
    pub(super) others: f64,
    pub(super) checkpoints: Vec<Checkpoint>,
    pub(super) failed: u64,
}

impl Run {
    /// One turn; its checkpoints are collected otherwise.
    pub(super) fn of_turn(before: &Sample, after: &Sample) -> anyhow::Result<Self> {
        let figures = after.since(before)?;
        Ok(Self {
            rate: figures.rate * TURN_PER_WORK,
            processors: figures.processors * TURN_PER_WORK,
            others: figures.others,
            checkpoints: Vec::new(),
            failed: 0,
        })
    }
}

pub(super) fn read_checkpoint(summary: &Value, detail: &Value) -> anyhow::Result<Checkpoint> {
    let ms = |of: &Value, field| anyhow::Ok(number(of, field)? as f64 / 1000.0);
    let captures = detail["captures"].as_array();
    let pauses_ms = captures
        .into_iter()
        .flatten()
        .map(|capture| ms(capture, "pause_us"))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Checkpoint {
        started_at_ms: number(summary, "started_at_ms")?,
        duration_ms: ms(summary, "duration_us")?,
        dirty_bytes: number(summary, "dirty_bytes")?,
        written_bytes: number(summary, "written_bytes")?,
        pauses_ms,
    })
}

/// What the runs of a row came to.
#[derive(Default)]
pub(super) struct Figures {
    with: Vec<f64>,
    without: Vec<f64>,
    processors_with: Vec<f64>,
    processors_without: Vec<f64>,
    others: Vec<f64>,
    /// Of each round.
    losses_percent: Vec<f64>,
    /// How many of the runs are of rounds that have ended.
    runs_of_rounds: usize,
    pub(super) checkpoints: Vec<Checkpoint>,
    pub(super) failed: u64,
}

impl Figures {
    pub(super) fn add(&mut self, run: Run, has_checkpoints: bool) {
        let (rates, processors) = match has_checkpoints {
            true => (&mut self.with, &mut self.processors_with),
            false => (&mut self.without, &mut self.processors_without),
        };
        rates.push(run.rate);
        processors.push(run.processors);
        self.others.push(run.others);
        self.checkpoints.extend(run.checkpoints);
        self.failed += run.failed;
    }

    fn pause_ms(&self, percent: usize) -> Option<f64> {
        let pauses = self.checkpoints.iter().flat_map(|it| it.pauses_ms.clone());
        percentile(pauses.collect(), percent)
    }

    fn duration_ms(&self, percent: usize) -> Option<f64> {
        let durations = self.checkpoints.iter().map(|it| it.duration_ms);
        percentile(durations.collect(), percent)
    }

    /// The middle checkpoint's, in MiB.
    fn mib(&self, bytes: impl Fn(&Checkpoint) -> u64) -> Option<f64> {
        let all = self.checkpoints.iter().map(|it| bytes(it) as f64);
        Some(median(all.collect())? / MIB as f64)
    }

    /// All bytes written by all dirty bytes.
    fn amplification(&self) -> Option<f64> {
        let sum = |bytes: fn(&Checkpoint) -> u64| self.checkpoints.iter().map(bytes).sum::<u64>();
        let (written, dirty) = (sum(|it| it.written_bytes), sum(|it| it.dirty_bytes));
        (dirty > 0).then(|| written as f64 / dirty as f64)
    }

    /// Ends a round: what was added since the last one belongs together.
    pub(super) fn end_round(&mut self) {
        let from = self.runs_of_rounds;
        self.runs_of_rounds = self.with.len().min(self.without.len());
        let rate = |rates: &[f64]| mean(&rates[from..self.runs_of_rounds]);
        if let (Some(with), Some(without)) = (rate(&self.with), rate(&self.without)) {
            self.losses_percent.push((1.0 - with / without) * 100.0);
        }
    }

    /// The loss: the mean of all rounds, with its standard error where there are several.
    pub(super) fn loss(&self) -> String {
        let Some(loss) = mean(&self.losses_percent) else {
            return "-".to_owned();
        };
        match standard_error(&self.losses_percent) {
            Some(error) => format!("{loss:.1} ± {error:.1} %"),
            None => format!("{loss:.1} %"),
        }
    }

    pub(super) fn to_json(&self, row: Row, place: &Place) -> Value {
        json!({
            "state_mib": row.state_mib(),
            "null": row.is_null,
            "tasks": row.tasks,
            "percent": row.percent,
            "mixes": row.mixes,
            "pause_ms_p50": self.pause_ms(50),
            "pause_ms_p99": self.pause_ms(99),
            "duration_ms_p50": self.duration_ms(50),
            "duration_ms_max": self.duration_ms(100),
            "dirty_mib": self.mib(|it| it.dirty_bytes),
            "written_mib": self.mib(|it| it.written_bytes),
            "written_by_dirty": self.amplification(),
            "checkpoints": self.checkpoints.len(),
            "failed": self.failed,
            "rates_with": self.with,
            "rates_without": self.without,
            "losses_percent": self.losses_percent,
            "loss_percent": mean(&self.losses_percent),
            "loss_error_percent": standard_error(&self.losses_percent),
            "cores_with": mean(&self.processors_with),
            "cores_without": mean(&self.processors_without),
            "foreign_cores": mean(&self.others),
            "store": place.to_string(),
        })
    }

    pub(super) fn line(&self, row: Row) -> String {
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        let millions = |rates: &[f64]| number(median(rates.to_vec()).map(|rate| rate / 1e6), 2);
        let failed = match self.failed {
            0 => String::new(),
            failed => format!(" (+{failed} failed)"),
        };
        format!(
            "| {row} | {} / {} | {} / {} | {}{failed} | {} | {} | {} | {} | {} | {} | {} / {} | {} |",
            number(self.pause_ms(50), 2),
            number(self.pause_ms(99), 2),
            number(self.duration_ms(50), 0),
            number(self.duration_ms(100), 0),
            self.checkpoints.len(),
            number(self.mib(|it| it.dirty_bytes), 1),
            number(self.mib(|it| it.written_bytes), 1),
            number(self.amplification(), 3),
            millions(&self.without),
            millions(&self.with),
            self.loss(),
            number(mean(&self.processors_without), 2),
            number(mean(&self.processors_with), 2),
            number(mean(&self.others), 2),
        )
    }
}

pub(super) fn table(rows: &[(Row, Figures)]) -> String {
    let mut table = "| state, pages written | pause p50 / p99, ms | checkpoint p50 / max, ms | checkpoints | dirty MiB | written MiB | written ÷ dirty | M records/s without | with | loss ± standard error | cores without / with | others' cores |\n\
                     |---|---|---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (row, figures) in rows {
        table.push_str(&figures.line(*row));
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_all_runs_together() {
        let checkpoint = |duration_us: u64, written_bytes: u64| {
            let summary = json!({
                "started_at_ms": 0, "duration_us": duration_us, "dirty_bytes": MIB, "written_bytes": written_bytes,
            });
            let detail = json!({"captures": [{"pause_us": duration_us / 100}]});
            read_checkpoint(&summary, &detail).expect("all that is read")
        };
        let run = |rate: f64, checkpoints: Vec<Checkpoint>| Run {
            rate,
            processors: 1.0,
            others: 0.0,
            checkpoints,
            failed: 0,
        };
        let mut figures = Figures::default();
        figures.add(run(90.0, vec![checkpoint(100_000, 2 * MIB)]), true);
        figures.add(run(100.0, Vec::new()), false);
        figures.end_round();
        figures.add(run(95.0, vec![checkpoint(300_000, MIB)]), true);
        figures.add(run(100.0, Vec::new()), false);
        figures.add(run(99.0, Vec::new()), true);
        figures.add(run(100.0, Vec::new()), false);
        assert_eq!(figures.pause_ms(50), Some(1.0));
        assert_eq!(figures.pause_ms(99), Some(3.0));
        assert_eq!(figures.duration_ms(100), Some(300.0));
        assert_eq!(figures.amplification(), Some(1.5));
        assert_eq!(figures.loss(), "10.0 %");
        figures.end_round();
        assert_eq!(figures.loss(), "6.5 ± 3.5 %");
    }
}
