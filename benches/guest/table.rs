//! The figures as a table. It never averages: of all rounds it shows the best, which others disturbed least, and how far
//! the median is above it.

use std::time::Duration;

use crate::pipeline::Spent;

/// Prints the names of the columns.
pub(crate) fn print_head() {
    println!(
        "| job | part | Wasm M records/s | Wasm ns/record | median | native ns/record | median | native / Wasm time |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
}

/// Prints a row for the whole job, and one for each stage.
pub(crate) fn print_rows(job: &str, wasm: &[Spent], native: &[Spent]) {
    print_row(job, "whole", wasm, native, |spent| {
        Some(spent.first_stage + spent.second_stage.unwrap_or_default())
    });
    if wasm.iter().any(|spent| spent.second_stage.is_some()) {
        print_row(job, "stage 0", wasm, native, |spent| {
            Some(spent.first_stage)
        });
        print_row(job, "stage 1", wasm, native, |spent| spent.second_stage);
    }
}

fn print_row(
    job: &str,
    part: &str,
    wasm: &[Spent],
    native: &[Spent],
    time: impl Fn(&Spent) -> Option<Duration>,
) {
    let figures = |rounds: &[Spent]| {
        let mut each_ns: Vec<f64> = rounds
            .iter()
            .filter_map(|spent| Some(time(spent)?.as_secs_f64() * 1e9 / spent.records as f64))
            .collect();
        each_ns.sort_by(f64::total_cmp);
        Some((*each_ns.first()?, each_ns[each_ns.len() / 2]))
    };
    let show = |figures: Option<(f64, f64)>| match figures {
        Some((best, median)) => format!("{best:.2} | +{:.0} %", (median / best - 1.0) * 100.0),
        None => "– | –".to_owned(),
    };
    let (wasm, native) = (figures(wasm), figures(native));
    let rate = wasm.map_or(0.0, |(best, _)| 1e3 / best);
    let ratio = match (wasm, native) {
        (Some((wasm, _)), Some((native, _))) => format!("{:.2}", native / wasm),
        _ => "–".to_owned(),
    };
    println!(
        "| {job} | {part} | {rate:.1} | {} | {} | {ratio} |",
        show(wasm),
        show(native)
    );
}
