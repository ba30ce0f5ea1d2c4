//! Jobs that run to their end without failures, against independent computations; and what the cluster shows of them.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, ensure};
use tidemill_tests::oracle::records;
use tidemill_tests::{Cluster, ClusterOptions, data, module};

use crate::common::{JOB_LIMIT, arguments, keyed_count, word_count};

#[test]
fn words_are_counted_as_a_direct_count_does() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let running = word_count(&cluster, "output", 0)?;
    let detail = running.finish(&mut cluster)?;
    ensure!(detail["restarts"] == 0, "nothing failed: {detail}");
    ensure!(
        detail["recoveries"].as_array().is_some_and(Vec::is_empty),
        "nothing failed: {detail}"
    );
    let checkpoints = running.job.checkpoints()?;
    let history = checkpoints["history"]
        .as_array()
        .context("checkpoints have a history")?;
    ensure!(
        history
            .iter()
            .any(|checkpoint| checkpoint["is_final"] == true),
        "a job ends with a final checkpoint: {checkpoints}"
    );
    cluster.shut_down()
}

#[test]
fn generated_numbers_are_counted_by_key() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    keyed_count(&cluster, "output", 0)?.finish(&mut cluster)?;
    cluster.shut_down()
}

/// The rows of the flights, without the header, as columns.
fn flights() -> anyhow::Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(data("flights-sample.csv"))?;
    let columns = |row: &str| row.split(',').map(str::to_owned).collect();
    Ok(text.lines().skip(1).map(columns).collect())
}

#[test]
fn delays_per_carrier() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let output = cluster.directory().join("output");
    let parameters = [
        (
            "input",
            data("flights-sample.csv").to_string_lossy().into_owned(),
        ),
        ("output", output.to_string_lossy().into_owned()),
    ];
    let job = cluster.submit(&module("flight-delays")?, &arguments(&parameters))?;
    job.wait_until(&mut cluster, "finished", JOB_LIMIT)?;

    let mut truth: BTreeMap<String, (u64, u64, i64)> = BTreeMap::new();
    for row in flights()? {
        let (flights, cancelled, delay) = truth.entry(row[9].clone()).or_default();
        *flights += 1;
        match row[5].parse::<i64>() {
            Ok(minutes) => *delay += minutes,
            Err(_) => *cancelled += 1,
        }
    }
    let records = records(&output)?;
    ensure!(
        records.len() == truth.len(),
        "one record for each carrier, not {}",
        records.len()
    );
    for record in records {
        let carrier = record["carrier"].as_str().context("a carrier")?;
        let (flights, cancelled, delay) = truth.get(carrier).context("a known carrier")?;
        ensure!(
            record["flights"] == *flights && record["cancelled"] == *cancelled,
            "{record}"
        );
        let mean = record["mean_departure_delay_min"]
            .as_f64()
            .context("some flight has left")?;
        let expected = *delay as f64 / (flights - cancelled) as f64;
        ensure!(
            (mean - expected).abs() < 1e-9,
            "{record}: expected a mean of {expected}"
        );
    }
    cluster.shut_down()
}

#[test]
fn the_busiest_routes() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default())?;
    let output = cluster.directory().join("output");
    let parameters = [
        (
            "input",
            data("flights-sample.csv").to_string_lossy().into_owned(),
        ),
        ("output", output.to_string_lossy().into_owned()),
        ("top", "5".to_owned()),
    ];
    let job = cluster.submit(&module("top-routes")?, &arguments(&parameters))?;
    job.wait_until(&mut cluster, "finished", JOB_LIMIT)?;

    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for row in flights()? {
        *counts
            .entry((row[12].clone(), row[13].clone()))
            .or_default() += 1;
    }
    let mut truth: Vec<_> = counts.into_iter().collect();
    truth.sort_by(|(route, flights), (other, other_flights)| {
        other_flights.cmp(flights).then_with(|| route.cmp(other))
    });
    let mut ranked = records(&output)?;
    ranked.sort_by_key(|record| record["rank"].as_u64());
    ensure!(ranked.len() == 5, "five routes, not {}", ranked.len());
    for (record, ((origin, destination), flights)) in ranked.iter().zip(&truth) {
        ensure!(
            record["origin"] == **origin
                && record["destination"] == **destination
                && record["flights"] == *flights,
            "{record} where {origin} to {destination} with {flights} flights belongs"
        );
    }
    cluster.shut_down()
}

#[test]
fn two_jobs_at_once_do_not_disturb_each_other() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(ClusterOptions {
        slots: 4,
        ..ClusterOptions::default()
    })?;
    let words = word_count(&cluster, "words", 2)?;
    let numbers = keyed_count(&cluster, "numbers", 2)?;
    words.finish(&mut cluster)?;
    numbers.finish(&mut cluster)?;
    cluster.shut_down()
}
