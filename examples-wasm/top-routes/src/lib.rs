//! Top routes: the pairs of airports with the most flights. Counts per route in parallel, then ranks all routes
//! in one place at the end of the input; it never holds more than the counts and the best few.

use serde::{Deserialize, Serialize};
use tidemill::prelude::*;

/// A place in the ranking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// From 1.
    pub rank: u64,
    /// The airport of departure.
    pub origin: String,
    /// The airport of arrival.
    pub destination: String,
    /// Flights planned on the route.
    pub flights: u64,
}

/// A route and its flights.
type Route = ((String, String), u64);

/// Reads `input` (CSV files with the columns of `nycflights13`), writes the `top` (10) routes to the directory `output`.
#[tidemill::job]
pub fn top_routes(job: &mut Job) {
    let top: usize = job.param("top").default(10);
    job.source(files(job.param("input")).lines())
        .flat_map(|line| route(&line))
        .name("routes")
        .key_by(|route| route.clone())
        .fold_until_end(|| 0u64, |flights, _| *flights += 1)
        .id("flights")
        // Every record has the same key, so one task sees them all.
        .key_by(|_| ())
        .fold_until_end(Vec::new, move |best: &mut Vec<Route>, route| {
            insert(best, route, top)
        })
        .id("ranking")
        .parallelism(1)
        .flat_map(|((), best)| (1..).zip(best))
        .map(|(rank, ((origin, destination), flights))| Ranked {
            rank,
            origin,
            destination,
            flights,
        })
        .sink(files(job.param("output")).json());
}

/// The airports of a row; nothing for a header or a row that is too short.
fn route(line: &str) -> Option<(String, String)> {
    let mut columns = line.split(',').skip(12);
    let (origin, destination) = (columns.next()?, columns.next()?);
    (origin != "origin").then(|| (origin.to_owned(), destination.to_owned()))
}

/// Keeps the best routes: most flights first, then by name, so that ties fall the same way each time.
fn insert(best: &mut Vec<Route>, route: Route, top: usize) {
    let before = |other: &Route| (other.1, &route.0) > (route.1, &other.0);
    let place = best.partition_point(before);
    if place < top {
        best.insert(place, route);
        best.truncate(top);
    }
}
