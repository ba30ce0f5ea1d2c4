//! The simulator's program.

fn main() {
    let seeds: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(10);
    let base: u64 = std::env::args().nth(2).and_then(|a| a.parse().ok()).unwrap_or(0);
    let logs = std::env::args().nth(3).is_some();
    let began = std::time::Instant::now();
    let mut counts = tidemill_simulator::Counts::default();
    let mut events = 0;
    let mut bad = 0;
    for seed in base..base + seeds {
        let report = tidemill_simulator::run::run(seed, None, logs);
        if logs {
            for line in &report.lines {
                println!("{line}");
            }
        }
        counts.add(&report.counts);
        events += report.events;
        if let Some(failure) = report.failure {
            bad += 1;
            println!("seed {seed}: {failure:?}");
        }
    }
    println!("{bad} bad; {counts:?} {events} events, {:?}", began.elapsed());
}
