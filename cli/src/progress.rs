//! What `tidemill run`, `savepoint` and `stop` show while they wait: bars on a terminal, lines elsewhere. Always on standard error, so that
//! standard output holds the result alone.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tidemill_jobmanager::views::{JobDetail, SavepointRequestView, SavepointStepName, TaskStatus};

use crate::units;
use crate::verbs::describe;

/// How often a line is printed when nothing but numbers changes.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Over how long rates are averaged.
const RATE_WINDOW: Duration = Duration::from_secs(3);

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
            bars.stages
                .iter()
                .chain([&bars.job])
                .for_each(ProgressBar::finish_and_clear);
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

/// Shows how a savepoint gets on: a bar on a terminal, lines elsewhere.
pub(crate) struct SavepointProgress {
    name: String,
    display: SavepointDisplay,
}

enum SavepointDisplay {
    /// Nothing, for programs.
    Silent,
    Bar(ProgressBar),
    /// When the last line was printed, and for which step.
    Lines(Option<(Instant, SavepointStepName)>),
}

impl SavepointProgress {
    /// Of a job with this name.
    pub(crate) fn new(is_silent: bool, name: &str) -> Self {
        let display = if is_silent {
            SavepointDisplay::Silent
        } else if io::stderr().is_terminal() {
            SavepointDisplay::Bar(spinner("{spinner} {wide_msg}"))
        } else {
            SavepointDisplay::Lines(None)
        };
        let name = name.to_owned();
        Self { name, display }
    }

    /// Something that happened, to stay on the screen.
    pub(crate) fn note(&self, text: &str) {
        match &self.display {
            SavepointDisplay::Silent => {}
            SavepointDisplay::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            SavepointDisplay::Lines(_) => eprintln!("{text}"),
        }
    }

    /// How it stands now.
    pub(crate) fn show(&mut self, request: &SavepointRequestView) {
        let Some(step) = request.step else {
            return;
        };
        let text = format!("{}: {}", self.name, savepoint_step(step, request));
        match &mut self.display {
            SavepointDisplay::Silent => {}
            SavepointDisplay::Bar(bar) => {
                if step == SavepointStepName::Copy && request.total_bytes > 0 {
                    bar.set_style(style("{spinner} [{bar:30}] {wide_msg}"));
                    bar.set_length(request.total_bytes);
                    bar.set_position(request.done_bytes);
                } else {
                    bar.set_style(style("{spinner} {wide_msg}"));
                }
                bar.set_message(text);
                bar.tick();
            }
            SavepointDisplay::Lines(last) => {
                let is_news =
                    last.is_none_or(|(at, before)| at.elapsed() >= LINE_INTERVAL || before != step);
                if is_news {
                    eprintln!("{text}");
                    *last = Some((Instant::now(), step));
                }
            }
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let SavepointDisplay::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn savepoint_step(step: SavepointStepName, request: &SavepointRequestView) -> String {
    match step {
        SavepointStepName::Checkpoint => "a checkpoint is being taken".to_owned(),
        SavepointStepName::Copy if request.total_bytes == 0 => "it is being copied".to_owned(),
        SavepointStepName::Copy => format!(
            "it is being copied, {} of {}",
            units::bytes(request.done_bytes),
            units::bytes(request.total_bytes)
        ),
        SavepointStepName::Commit => "it is written, and the job stops".to_owned(),
    }
}

fn spinner(template: &str) -> ProgressBar {
    ProgressBar::new_spinner().with_style(style(template))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates above are well formed")
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

/// Records a second into or out of each stage, over the last few seconds: TaskManagers report in steps.
#[derive(Default)]
pub(crate) struct Rates {
    samples: VecDeque<(Instant, Vec<u64>)>,
}

impl Rates {
    /// Takes a look at the job.
    pub(crate) fn update(&mut self, job: &JobDetail, now: Instant) {
        // A source that a guest makes up has nothing in; a sink's stage may have nothing out.
        let counts = job
            .stages
            .iter()
            .map(|stage| StageTotals::of(job, stage.index));
        let counts = counts.map(|totals| totals.records_in.max(totals.records_out));
        self.sample(counts.collect(), now);
    }

    fn sample(&mut self, counts: Vec<u64>, now: Instant) {
        // Counts begin anew with an attempt, and with them the rates.
        let is_less = |(_, before): &(Instant, Vec<u64>)| {
            counts.iter().zip(before).any(|(now, before)| now < before)
        };
        if self.samples.back().is_some_and(is_less) {
            self.samples.clear();
        }
        let is_old = |(at, _): &(Instant, Vec<u64>)| now.duration_since(*at) > RATE_WINDOW;
        while self.samples.len() > 1 && self.samples.front().is_some_and(is_old) {
            self.samples.pop_front();
        }
        self.samples.push_back((now, counts));
    }

    fn of(&self, stage: usize) -> u64 {
        let (Some((then, before)), Some((now, after))) =
            (self.samples.front(), self.samples.back())
        else {
            return 0;
        };
        let seconds = now.duration_since(*then).as_secs_f64();
        let (Some(before), Some(after)) = (before.get(stage), after.get(stage)) else {
            return 0;
        };
        // A shorter look would show one report as a burst.
        if seconds < RATE_WINDOW.as_secs_f64() / 4.0 {
            return 0;
        }
        (after.saturating_sub(*before) as f64 / seconds) as u64
    }

    fn fastest(&self) -> u64 {
        let stages = self.samples.back().map_or(0, |(_, counts)| counts.len());
        (0..stages).map(|stage| self.of(stage)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_steady_between_reports_and_begin_anew_with_an_attempt() {
        let begin = Instant::now();
        let mut rates = Rates::default();
        let at = |ms| begin + Duration::from_millis(ms);
        for (ms, count) in [(0, 0), (1_000, 1_000), (1_500, 2_000), (2_000, 2_000)] {
            rates.sample(vec![count, 0], at(ms));
        }
        assert_eq!((rates.of(0), rates.of(1), rates.of(7)), (1_000, 0, 0));
        assert_eq!(rates.fastest(), 1_000);
        rates.sample(vec![10, 0], at(2_500));
        assert_eq!(rates.fastest(), 0);
        for second in 3..20 {
            rates.sample(vec![second * 500, 0], at(second * 1_000));
        }
        assert_eq!(rates.of(0), 500);
        assert!(rates.samples.len() < 6);
    }

    #[test]
    fn long_names_are_clipped_to_whole_letters() {
        assert_eq!(clipped("größe", 5), "größe");
        assert_eq!(clipped("größer", 5), "größ…");
    }
}
