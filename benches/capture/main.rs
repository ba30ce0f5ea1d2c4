//! `cargo bench -p tidemill-benches --bench capture`: how long a task waits for a capture, by the size of its state and
//! by how much of it changed, for each way of finding what changed; what the guest pays for being watched; and how long
//! it takes to come back. With `--quick` it takes less than two minutes.
//!
//! It measures wall time, because a pause is one: run it where nothing else runs. The pause's CPU time stands beside it,
//! and tells how much of it was waiting for other work on the machine. It never stores what it captures.

#[path = "../guest/cpu.rs"]
mod cpu;
mod guest;
mod restore;
mod table;

use std::time::Instant;

use clap::Parser;
use tidemill_runtime::{CaptureRoom, DirtyMethod, Module};

use guest::Task;
use table::Row;

/// Measures captures and reverts of tasks with large state.
#[derive(Parser)]
struct Arguments {
    /// Sizes of a task's memory, in MiB.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024])]
    mib: Vec<u64>,

    /// Sizes of small memories, in KiB: where it pays to look for changes.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 128, 256, 512, 1024, 4096])]
    kib: Vec<u64>,

    /// How much of the memory is written between two captures.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    percent: Vec<u32>,

    /// Captures of each task in a row.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Tasks of each size that are captured in turn; the buffer is one.
    #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    tasks: usize,

    /// How often each restore and revert is done.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    restores: u32,

    /// Less of everything: write protection only, no small memories, few rounds.
    #[arg(long)]
    quick: bool,

    /// Only the kernel's write protection.
    #[arg(long)]
    protection_only: bool,

    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const METHODS: [DirtyMethod; 3] = [
    DirtyMethod::WriteProtection,
    DirtyMethod::Hashes,
    DirtyMethod::Whole,
];

fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        arguments.protection_only = true;
        arguments.kib.clear();
        arguments.rounds = arguments.rounds.min(5);
        arguments.restores = 1;
    }
    anyhow::ensure!(
        DirtyMethod::of_this_machine() == DirtyMethod::WriteProtection,
        "this machine offers no asynchronous write protection"
    );
    let module = guest::compile()?;
    let methods = if arguments.protection_only {
        &METHODS[..1]
    } else {
        &METHODS[..]
    };
    table::print_head();
    for kib in &arguments.kib {
        measure(&arguments, &module, kib << 10, methods)?;
    }
    for mib in &arguments.mib {
        measure(&arguments, &module, mib << 20, methods)?;
    }
    println!();
    for mib in &arguments.mib {
        ahead(&arguments, &module, mib << 20)?;
    }
    println!();
    for mib in &arguments.mib {
        let bytes = mib << 20;
        restore::restores(&module, bytes, &arguments.percent, arguments.restores)?;
        for percent in &arguments.percent {
            restore::revert(&module, bytes, *percent, arguments.restores)?;
        }
    }
    Ok(())
}

/// A row for each method and share of changed pages, of tasks of one size.
fn measure(
    arguments: &Arguments,
    module: &Module,
    bytes: u64,
    methods: &[DirtyMethod],
) -> anyhow::Result<()> {
    let mut tasks = Vec::new();
    for _ in 0..arguments.tasks {
        tasks.push(Task::new(module, bytes)?);
    }
    for method in methods {
        let mut room = CaptureRoom::default();
        for task in &mut tasks {
            task.instance.find_changes_by(*method);
            // The first is whole, and warms the buffer.
            room = task.instance.capture_changes(room)?.into_room();
        }
        for percent in &arguments.percent {
            let mut rows = Vec::new();
            for round in 0..arguments.rounds {
                for task in &mut tasks {
                    let (row, used) = capture(task, task.percent(*percent), round, room)?;
                    room = used;
                    rows.push(row);
                }
            }
            let task = &mut tasks[0];
            let pages = task.percent(*percent);
            let (fresh, _) = capture(task, pages, arguments.rounds, CaptureRoom::default())?;
            table::print_row(bytes, arguments.tasks, *method, *percent, &rows, &fresh);
        }
    }
    Ok(())
}

fn capture(
    task: &mut Task,
    pages: u32,
    round: u32,
    room: CaptureRoom,
) -> anyhow::Result<(Row, CaptureRoom)> {
    let began = Instant::now();
    task.write(pages, round)?;
    let wrote = began.elapsed();
    let (began, began_cpu) = (Instant::now(), cpu::thread_time());
    let capture = task.instance.capture_changes(room)?;
    let row = Row {
        wrote,
        written_pages: pages,
        pause: began.elapsed(),
        pause_cpu: cpu::thread_time() - began_cpu,
        scan: capture.cost.scan,
        copy: capture.cost.copy,
        captured_bytes: capture.bytes.len(),
    };
    Ok((row, capture.into_room()))
}

/// How many calls write what changes between two captures, where pages are copied ahead; from the half on they are.
const CALLS: u32 = 100;
/// Pages copied ahead at a time.
const AHEAD_PAGES: u32 = 1024;

/// The pause when pages are copied ahead between the later half of the calls, twice as many as a call writes.
fn ahead(arguments: &Arguments, module: &Module, bytes: u64) -> anyhow::Result<()> {
    let mut task = Task::new(module, bytes)?;
    task.instance.find_changes_by(DirtyMethod::WriteProtection);
    let mut room = task
        .instance
        .capture_changes(CaptureRoom::default())?
        .into_room();
    for percent in &arguments.percent {
        let pages = task.percent(*percent);
        let (mut pauses, mut slices) = (Vec::new(), Vec::new());
        let mut captured_bytes = 0;
        for round in 0..arguments.rounds {
            for call in 0..CALLS {
                let number = (round * CALLS + call).wrapping_mul(0x9E37_79B9) >> 8;
                task.write((pages / CALLS).max(1), number)?;
                let slices_wanted = (2 * pages / CALLS).div_ceil(AHEAD_PAGES);
                for _ in 0..slices_wanted * u32::from(call >= CALLS / 2) {
                    let began = Instant::now();
                    task.instance.capture_ahead(AHEAD_PAGES);
                    slices.push(began.elapsed());
                }
            }
            let began = Instant::now();
            let capture = task.instance.capture_changes(room)?;
            pauses.push(began.elapsed());
            captured_bytes = capture.bytes.len();
            room = capture.into_room();
        }
        table::print_ahead(bytes, *percent, captured_bytes, &pauses, &slices);
    }
    Ok(())
}
