//! Flight delays: for each carrier the number of flights, how many were cancelled, and the mean delay at departure. It
//! answers once, at the end of the input, and never guesses: a row that cannot be read is skipped or ends the job, as
//! the parameter `on_error` says.

use serde::{Deserialize, Serialize};
use tidemill::prelude::*;

/// What is wanted of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flight {
    /// The carrier's code of two letters.
    pub carrier: String,
    /// Minutes late at departure, negative when early; `None` for a cancelled flight.
    pub departure_delay_min: Option<i32>,
}

/// The answer for a carrier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delays {
    /// The carrier's code.
    pub carrier: String,
    /// Flights planned.
    pub flights: u64,
    /// Of them, flights that did not leave.
    pub cancelled: u64,
    /// Over the flights that left; `None` when none did.
    pub mean_departure_delay_min: Option<f64>,
}

/// Sums as they grow, whole numbers so that no order of the rows changes the result.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Sums {
    flights: u64,
    cancelled: u64,
    delay_min: i64,
}

/// What happens to a row that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnError {
    Skip,
    Fail,
}

/// Reads `input` (CSV files with the columns of `nycflights13`), writes to the directory `output`. `on_error` is `skip`
/// (the default) or `fail`.
#[tidemill::job]
pub fn flight_delays(job: &mut Job) {
    let on_error = job
        .param("on_error")
        .choice("skip", &[("skip", OnError::Skip), ("fail", OnError::Fail)]);
    job.source(files(job.param("input")).lines())
        // Files are read in parts, so a header is known by its look and not by its place.
        .filter(|line| !line.starts_with("year,"))
        .flat_map(move |line| match parse(&line) {
            Ok(flight) => Some(flight),
            Err(_) if on_error == OnError::Skip => None,
            Err(problem) => panic!("`{line}` is not a flight: {problem}"),
        })
        .name("parse")
        .key_by(|flight| flight.carrier.clone())
        .fold_until_end(Sums::default, |sums, flight| {
            sums.flights += 1;
            match flight.departure_delay_min {
                Some(delay_min) => sums.delay_min += i64::from(delay_min),
                None => sums.cancelled += 1,
            }
        })
        .id("sums")
        .map(|(carrier, sums)| {
            let left = sums.flights - sums.cancelled;
            let mean_departure_delay_min = (left > 0).then(|| sums.delay_min as f64 / left as f64);
            Delays {
                carrier,
                flights: sums.flights,
                cancelled: sums.cancelled,
                mean_departure_delay_min,
            }
        })
        .sink(files(job.param("output")).json());
}

/// Reads the sixth and tenth column of a row.
fn parse(line: &str) -> Result<Flight, &'static str> {
    let mut columns = line.split(',').skip(5);
    let delay = columns.next().ok_or("it has no sixth column")?;
    let carrier = columns.nth(3).ok_or("it has no tenth column")?;
    let departure_delay_min = match delay {
        "NA" => None,
        minutes => Some(
            minutes
                .parse()
                .map_err(|_| "its departure delay is neither a number nor `NA`")?,
        ),
    };
    if carrier.len() != 2 {
        return Err("its carrier is not a code of two letters");
    }
    Ok(Flight {
        carrier: carrier.to_owned(),
        departure_delay_min,
    })
}
