//! The job does right when it has no fault, and wrong at the record that it is told.

use faulty::{KeyCount, faulty};
use tidemill::testing::TestRun;

fn run(fault: &str, at: u64) -> Result<Vec<KeyCount>, String> {
    let run = TestRun::new(faulty)
        .parameter("fault", fault)
        .parameter("at", at)
        .parameter("count", 1_003)
        .parameter("ballast_bytes", 1_000)
        .parameter("output", "out");
    run.parallelism(2).run().map(|outputs| outputs.json("out"))
}

#[test]
fn without_a_fault_each_key_counts_up_to_its_share() {
    let mut written = run("none", 0).expect("runs");
    written.sort();
    let expected: Vec<KeyCount> = (0..10)
        .flat_map(|key| {
            (1..=if key < 3 { 101 } else { 100 }).map(move |count| KeyCount { key, count })
        })
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn a_fault_waits_for_its_record() {
    let written = run("panic", 1_003).expect("no such record comes");
    assert_eq!(written.len(), 1_003);
}

#[test]
#[should_panic(expected = "record 1002 was never expected")]
fn the_fateful_record_panics() {
    let outcome = run("panic", 1_002);
    unreachable!("it came to an end: {outcome:?}");
}

#[test]
fn an_unknown_fault_is_refused() {
    let error = run("panick", 0).expect_err("refused");
    assert!(error.contains("panick"), "{error}");
}
