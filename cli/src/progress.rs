//! What `tidemill run` shows while it waits: bars on a terminal, lines elsewhere. Always on standard error, so that
//! standard output holds the result alone.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tidemill_jobmanager::views::{JobDetail, TaskStatus};

use crate::units;
use crate::verbs::describe;

/// How often a line is printed when nothing but numbers changes.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows how a job gets on.
pub(crate) enum Progress {
    /// Nothing, for programs.
    Silent,
    /// A bar for the job and one for each stage.
    Bars(Box<Bars>),
    /// A line when something happens, and one now and then.
    Lines(Lines),
}

impl Progress {
    pub(crate) fn new(is_silent: bool) -> Self {
        if is_silent {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bars(Box::new(Bars::new()))
        } else {
            Self::Lines(Lines { last: None })
        }
    }

    /// Something that happened, to stay on the screen.
    pub(crate) fn note(&self, text: &str) {
        match self {
            Self::Silent => {}
            Self::Bars(bars) => bars.all.suspend(|| eprintln!("{text}")),
            Self::Lines(_) => eprintln!("{text}"),
        }
    }

    /// How the job is now.
    pub(crate) fn show(&mut self, job: &JobDetail, rates: &Rates) {
        match self {
            Self::Silent => {}
            Self::Bars(bars) => bars.show(job, rates),
            Self::Lines(lines) => lines.show(job, rates),
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(&self) {
        if let Self::Bars(bars) = self {
            // A terminal that is gone cannot be cleared, and needs not be.
            let _ = bars.all.clear();
        }
    }
}

/// Bars on a terminal.
pub(crate) struct Bars {
    all: MultiProgress,
    job: ProgressBar,
    stages: Vec<ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let job = all.add(spinner("{spinner} {wide_msg}"));
        Self {
            all,
            job,
            stages: Vec::new(),
        }
    }

    fn show(&mut self, job: &JobDetail, rates: &Rates) {
        self.job.set_message(headline(job));
        self.job.tick();
        for stage in &job.stages {
            let index = stage.index as usize;
            while self.stages.len() <= index {
                self.stages.push(self.all.add(spinner("  {wide_msg}")));
            }
            let totals = StageTotals::of(job, stage.index);
            self.stages[index].set_message(format!(
                "{:<32} {}/{} tasks   {:>15} in {:>15} out {:>13}/s",
                clipped(&stage.name, 32),
                totals.alive,
                stage.parallelism,
                units::count(totals.records_in),
                units::count(totals.records_out),
                units::count(rates.of(index)),
            ));
            self.stages[index].tick();
        }
    }
}

fn spinner(template: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(template).expect("the templates above are well formed");
    ProgressBar::new_spinner().with_style(style)
}

/// Lines where there is no terminal. The job's events are notes already; these tell what it waits for, and numbers.
pub(crate) struct Lines {
    last: Option<(Instant, Option<String>)>,
}

impl Lines {
    fn show(&mut self, job: &JobDetail, rates: &Rates) {
        let summary = &job.summary;
        let is_news = |(at, message): &(Instant, Option<String>)| {
            at.elapsed() >= LINE_INTERVAL || *message != summary.message
        };
        if summary.status.is_terminal() || !self.last.as_ref().is_none_or(is_news) {
            return;
        }
        eprintln!(
            "{}, {} in, {}/s",
            headline(job),
            units::counted(summary.records_in, "record"),
            units::count(rates.fastest())
        );
        self.last = Some((Instant::now(), summary.message.clone()));
    }
}

/// The job in one line.
fn headline(job: &JobDetail) -> String {
    let summary = &job.summary;
    let mut text = format!("{}: {}", summary.name, describe::status(summary.status));
    if let Some(message) = &summary.message {
        text.push_str(&format!(" ({message})"));
    }
    text.push_str(&format!(
        ", {}/{} tasks",
        summary.tasks_running + summary.tasks_finished,
        summary.tasks
    ));
    if let Some(checkpoint) = &summary.last_checkpoint {
        text.push_str(&format!(", checkpoint {checkpoint}"));
    }
    if summary.restarts > 0 {
        let restarts = units::counted(u64::from(summary.restarts), "restart");
        text.push_str(&format!(", {restarts}"));
    }
    text
}

fn clipped(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// The tasks of a stage together.
struct StageTotals {
    alive: usize,
    records_in: u64,
    records_out: u64,
}

impl StageTotals {
    fn of(job: &JobDetail, stage: u32) -> Self {
        let tasks = || {
            job.tasks_detail
                .iter()
                .filter(move |task| task.stage == stage)
        };
        Self {
            alive: tasks()
                .filter(|task| matches!(task.status, TaskStatus::Running | TaskStatus::Finished))
                .count(),
            records_in: tasks().map(|task| task.progress.records_in).sum(),
            records_out: tasks().map(|task| task.progress.records_out).sum(),
        }
    }
}

/// Records a second into or out of each stage, from two looks at a job.
#[derive(Default)]
pub(crate) struct Rates {
    last: Option<(Instant, Vec<u64>)>,
    per_second: Vec<u64>,
}

impl Rates {
    pub(crate) fn update(&mut self, job: &JobDetail, now: Instant) {
        // A source that a guest makes up has nothing in; a sink's stage may have nothing out.
        let counts = job
            .stages
            .iter()
            .map(|stage| StageTotals::of(job, stage.index));
        let counts: Vec<u64> = counts
            .map(|totals| totals.records_in.max(totals.records_out))
            .collect();
        if let Some((then, before)) = &self.last {
            let seconds = now.duration_since(*then).as_secs_f64();
            if seconds < 0.2 {
                return;
            }
            // Counts begin anew with an attempt.
            let rate =
                |(now, before): (&u64, &u64)| (now.saturating_sub(*before) as f64 / seconds) as u64;
            self.per_second = counts.iter().zip(before).map(rate).collect();
        }
        self.last = Some((now, counts));
    }

    fn of(&self, stage: usize) -> u64 {
        self.per_second.get(stage).copied().unwrap_or(0)
    }

    fn fastest(&self) -> u64 {
        self.per_second.iter().copied().max().unwrap_or(0)
    }
}
