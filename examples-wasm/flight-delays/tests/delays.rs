//! Flight delays against a direct computation over the same rows.

use std::collections::BTreeMap;

use flight_delays::{Delays, flight_delays};
use tidemill::testing::{Outputs, TestRun};

const FLIGHTS: &str = include_str!("../../data/flights-sample.csv");

fn run(text: &str, on_error: &str) -> Result<Outputs, String> {
    TestRun::new(flight_delays)
        .parameter("input", "flights")
        .parameter("output", "delays")
        .parameter("on_error", on_error)
        .file("flights", text)
        .parallelism(3)
        .run()
}

#[test]
fn every_carrier_has_the_mean_of_its_rows() {
    let mut delays_of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in FLIGHTS.lines().skip(1) {
        let columns: Vec<&str> = row.split(',').collect();
        delays_of.entry(columns[9]).or_default().push(columns[5]);
    }
    let answers = run(FLIGHTS, "fail").expect("runs").json::<Delays>("delays");
    assert_eq!(
        answers.len(),
        delays_of.len(),
        "one answer for each carrier"
    );
    for answer in answers {
        let delays = &delays_of[answer.carrier.as_str()];
        let known: Vec<f64> = delays
            .iter()
            .filter_map(|delay| delay.parse().ok())
            .collect();
        assert_eq!(
            (answer.flights, answer.cancelled),
            (delays.len() as u64, (delays.len() - known.len()) as u64)
        );
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let answered = answer
            .mean_departure_delay_min
            .expect("every carrier of the sample flew");
        assert!(
            (answered - mean).abs() < 1e-9,
            "{}: {answered} is not {mean}",
            answer.carrier
        );
    }
    assert!(FLIGHTS.contains(",NA,"), "the sample has cancelled flights");
}

#[test]
fn a_row_that_cannot_be_read_is_skipped_when_asked() {
    let good: String = FLIGHTS
        .lines()
        .take(5)
        .map(|line| format!("{line}\n"))
        .collect();
    let bad = format!("{good}2013,1,1,517,515,late,830,819,11,UA,1545\nshort\n");
    let sorted = |text| {
        let mut lines = run(text, "skip").expect("runs").lines("delays");
        lines.sort();
        lines
    };
    assert_eq!(sorted(&bad), sorted(&good));
}

#[test]
#[should_panic(
    expected = "`2013,1,1,517,515,late,830,819,11,UA` is not a flight: its departure delay is neither a number nor `NA`"
)]
fn a_row_that_cannot_be_read_ends_the_job_when_asked() {
    let _ = run("2013,1,1,517,515,late,830,819,11,UA\n", "fail");
}

#[test]
fn a_policy_that_does_not_exist_is_refused() {
    let error = run(FLIGHTS, "explode").expect_err("refused");
    assert_eq!(
        error,
        "parameter `on_error` is `explode`, which is not `skip` or `fail`"
    );
}
