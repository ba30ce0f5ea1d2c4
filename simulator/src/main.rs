//! The simulator's program: runs seeds or a scenario on all cores, and for whatever goes wrong prints the line that
//! replays it and writes the events. It never judges anything itself: the checkers of the library do.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use tidemill_simulator::run::{Report, run};
use tidemill_simulator::scenario::{SCENARIOS, Scenario};
use tidemill_simulator::{Counts, Failure};

/// Clusters in a simulated world, one for each seed.
///
/// Exit codes: 0 nothing found, 127 a machine panicked, 128 something did not come to its end, 129 something happened
/// that must never happen.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Play this scenario instead of faults that the seed chooses; `all` plays each
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Print the first N events of the first seed
    #[arg(long, value_name = "N")]
    until: Option<usize>,
    /// Print the events of the first seed, the next one on Enter
    #[arg(long)]
    step: bool,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Break the machines, one fault after the other, and expect the checkers to find each
    #[arg(long)]
    mutations: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let scenarios = match scenarios(arguments.scenario.as_deref()) {
        Ok(scenarios) => scenarios,
        Err(known) => {
            eprintln!("there is no scenario of that name; there are: {known}");
            return ExitCode::from(2);
        }
    };
    // What a machine says when it panics is in the report of its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if arguments.mutations {
        return hunt(&arguments);
    }
    if arguments.step || arguments.until.is_some() {
        return show(&arguments, scenarios[0]);
    }
    let mut worst = None;
    for scenario in scenarios {
        if let Some(failure) = run_all(&arguments, scenario) {
            worst = worst.max(Some(failure.exit_code()));
        }
    }
    worst.map_or(ExitCode::SUCCESS, ExitCode::from)
}

/// What to play: nothing but the seed's own faults, one scenario, or all.
fn scenarios(name: Option<&str>) -> Result<Vec<Option<&'static Scenario>>, String> {
    match name {
        None => Ok(vec![None]),
        Some("all") => Ok(SCENARIOS.iter().map(Some).collect()),
        Some(name) => match Scenario::named(name) {
            Some(scenario) => Ok(vec![Some(scenario)]),
            None => Err(SCENARIOS
                .iter()
                .map(|scenario| scenario.name)
                .collect::<Vec<_>>()
                .join(", ")),
        },
    }
}

/// Prints the events of one seed.
fn show(arguments: &Arguments, scenario: Option<&Scenario>) -> ExitCode {
    let report = run(arguments.seed, scenario, true);
    let shown = arguments.until.unwrap_or(usize::MAX);
    let mut input = std::io::stdin().lock();
    for line in report.lines.iter().take(shown) {
        if arguments.step {
            print!("{line}");
            let flushed = std::io::stdout().flush();
            let mut enter = String::new();
            if flushed.is_err() || input.read_line(&mut enter).map_or(true, |read| read == 0) {
                break;
            }
        } else {
            println!("{line}");
        }
    }
    match report.failure {
        Some(failure) => {
            println!("{failure:?}");
            ExitCode::from(failure.exit_code())
        }
        None => ExitCode::SUCCESS,
    }
}

/// Runs every seed; returns the first failure, by the order of the seeds.
fn run_all(arguments: &Arguments, scenario: Option<&'static Scenario>) -> Option<Failure> {
    let began = Instant::now();
    let reports = in_parallel(arguments, |seed| run(seed, scenario, false), |_| false);
    let mut totals = Counts::default();
    let mut events = 0;
    for report in reports.values() {
        totals.add(&report.counts);
        events += report.events;
    }
    let failed: Vec<&Report> = reports
        .values()
        .filter(|report| report.failure.is_some())
        .collect();
    for report in failed.iter().take(10) {
        explain(report, scenario);
    }
    let seconds = began.elapsed().as_secs_f64();
    let what = scenario.map_or("the full mix of faults", |scenario| scenario.says);
    println!(
        "{} seeds of {what}: {} failed, {:.1} s, {:.0} seeds/s, {events} events",
        reports.len(),
        failed.len(),
        seconds,
        reports.len() as f64 / seconds
    );
    print_totals(&totals);
    failed.first().and_then(|report| report.failure.clone())
}

/// Says what is wrong, how to see it again, and where the events are.
fn explain(report: &Report, scenario: Option<&Scenario>) {
    let Some(failure) = &report.failure else {
        return;
    };
    let named = scenario
        .map(|scenario| format!(" --scenario {}", scenario.name))
        .unwrap_or_default();
    println!("seed {}: {failure:?}", report.seed);
    println!(
        "  replay: cargo xtask sim --seed {}{named} --step",
        report.seed
    );
    let again = run(report.seed, scenario, true);
    let file = std::env::temp_dir().join(format!("tidemill-sim-{}.log", report.seed));
    match std::fs::write(&file, again.lines.join("\n")) {
        Ok(()) => println!("  {} events are in {}", again.lines.len(), file.display()),
        Err(error) => println!(
            "  the events cannot be written to {}: {error}",
            file.display()
        ),
    }
}

fn print_totals(totals: &Counts) {
    println!(
        "  {} jobs ended, {} checkpoints, {} late captures, {} elections, {} take-overs, {} step-downs, {} adoptions, {} recoveries, {} deployments",
        totals.jobs_ended,
        totals.checkpoints,
        totals.late_captures,
        totals.elections,
        totals.take_overs,
        totals.step_downs,
        totals.adoptions,
        totals.recoveries,
        totals.deployments
    );
    println!(
        "  {} sessions lost, {} writes fenced, {} messages disobeyed, {} replies lost, {} store requests failed, {} objects damaged, {} images kept warm, {} scans for orphans, {} savepoints, {} jobs begun from them or from kept checkpoints",
        totals.sessions_lost,
        totals.fenced,
        totals.disobeyed,
        totals.lost_replies,
        totals.store_failures,
        totals.damaged,
        totals.warm_images,
        totals.orphan_scans,
        totals.savepoints,
        totals.begun_from
    );
    let faults: Vec<String> = totals
        .faults
        .iter()
        .map(|(kind, count)| format!("{kind:?} {count}"))
        .collect();
    if !faults.is_empty() {
        println!("  faults: {}", faults.join(", "));
    }
}

/// Runs seeds on all threads, until one is enough.
fn in_parallel(
    arguments: &Arguments,
    run: impl Fn(u64) -> Report + Sync,
    is_enough: impl Fn(&Report) -> bool + Sync,
) -> BTreeMap<u64, Report> {
    let next = AtomicU64::new(arguments.seed);
    let end = arguments.seed.saturating_add(arguments.seeds);
    let enough = AtomicBool::new(false);
    let reports = Mutex::new(BTreeMap::new());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.threads.unwrap_or(cores).max(1);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = run(seed);
                    if is_enough(&report) {
                        enough.store(true, Ordering::Relaxed);
                    }
                    let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
                    reports.insert(seed, report);
                    if reports.len().is_multiple_of(1_000) {
                        eprintln!("{} of {} seeds", reports.len(), arguments.seeds);
                    }
                }
            });
        }
    });
    reports.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Breaks one thing after the other and looks for the seed that shows it.
#[cfg(feature = "mutations")]
fn hunt(arguments: &Arguments) -> ExitCode {
    use tidemill_simulator::mutations::{self, Mutation, SEEDS_MAX};

    let seeds = Arguments {
        seeds: arguments.seeds.max(SEEDS_MAX),
        step: false,
        until: None,
        scenario: None,
        ..*arguments
    };
    let mut missed = 0;
    for mutation in Mutation::ALL {
        mutations::set(Some(mutation));
        let reports = in_parallel(
            &seeds,
            |seed| run(seed, None, false),
            |report| report.failure.is_some(),
        );
        mutations::set(None);
        match reports.values().find(|report| report.failure.is_some()) {
            Some(found) => println!(
                "{mutation:?}: seed {} shows it: {:?}",
                found.seed, found.failure
            ),
            None => {
                missed += 1;
                println!("{mutation:?}: NOT FOUND in {} seeds", reports.len());
            }
        }
    }
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

/// Without the feature nothing can be broken.
#[cfg(not(feature = "mutations"))]
fn hunt(_: &Arguments) -> ExitCode {
    eprintln!(
        "this simulator was built without the feature `mutations`: use `cargo xtask sim --mutations`"
    );
    ExitCode::from(2)
}
