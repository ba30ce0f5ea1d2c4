//! The figures as a table: medians, and the longest of what a task waits for. It never averages.

use std::time::Duration;

use tidemill_runtime::DirtyMethod;

/// One capture.
pub(crate) struct Row {
    /// What the guest needed to write its pages.
    pub(crate) wrote: Duration,
    pub(crate) written_pages: u32,
    /// What the task waited for: scan, copy, and what lies outside memory.
    pub(crate) pause: Duration,
    /// The same in CPU time.
    pub(crate) pause_cpu: Duration,
    pub(crate) scan: Duration,
    pub(crate) copy: Duration,
    pub(crate) captured_bytes: usize,
}

/// Prints the names of the columns.
pub(crate) fn print_head() {
    println!(
        "| state | method | written | pause p50 ms | p99 ms | p99 CPU ms | scan p50 ms | copy p50 ms | captured MiB | pause with a fresh buffer ms | guest ns/page written |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
}

/// Prints one row; the captures are in any order. `fresh` is one into a buffer that was not used before.
pub(crate) fn print_row(
    bytes: u64,
    tasks: usize,
    method: DirtyMethod,
    percent: u32,
    rows: &[Row],
    fresh: &Row,
) {
    let quantile = |of: &dyn Fn(&Row) -> Duration, quantile: f64| {
        quantile_ms(rows.iter().map(of).collect(), quantile)
    };
    let size = match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    };
    let size = match tasks {
        1 => size,
        _ => format!("{tasks} × {size}"),
    };
    let captured = rows.iter().map(|row| row.captured_bytes).max().unwrap_or(0);
    let page = |row: &Row| row.wrote / row.written_pages.max(1);
    println!(
        "| {size} | {method} | {percent} % | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.2} | {:.3} | {:.0} |",
        quantile(&|row| row.pause, 0.5),
        quantile(&|row| row.pause, 0.99),
        quantile(&|row| row.pause_cpu, 0.99),
        quantile(&|row| row.scan, 0.5),
        quantile(&|row| row.copy, 0.5),
        captured as f64 / f64::from(1 << 20),
        fresh.pause.as_secs_f64() * 1e3,
        quantile(&page, 0.5) * 1e6,
    );
}

/// Prints what copying ahead makes of a pause.
pub(crate) fn print_ahead(
    bytes: u64,
    percent: u32,
    captured_bytes: usize,
    pauses: &[Duration],
    slices: &[Duration],
) {
    let of = |durations: &[Duration], quantile: f64| quantile_ms(durations.to_vec(), quantile);
    println!(
        "copied ahead, {} MiB, writes to {percent} % of the pages: pause p50 {:.3} ms, p99 {:.3} ms; each of {} slices p50 {:.3} ms, p99 {:.3} ms; captured {:.2} MiB",
        bytes >> 20,
        of(pauses, 0.5),
        of(pauses, 0.99),
        slices.len(),
        of(slices, 0.5),
        of(slices, 0.99),
        captured_bytes as f64 / f64::from(1 << 20),
    );
}

/// A quantile of durations, in milliseconds.
pub(crate) fn quantile_ms(mut durations: Vec<Duration>, quantile: f64) -> f64 {
    durations.sort();
    let rank = (durations.len() as f64 * quantile).ceil() as usize;
    let at = rank.clamp(1, durations.len());
    durations[at - 1].as_secs_f64() * 1e3
}
