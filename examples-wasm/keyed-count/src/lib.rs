//! A generated stream and a count per key: the numbers 0, 1, 2, … counted by their remainder. What comes out can
//! be checked without looking at what went in, which makes it the job to try failures on.

use core::hint::black_box;

use serde::{Deserialize, Serialize};
use tidemill::prelude::*;

/// A key and how many numbers have had it so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyCount {
    /// The remainder.
    pub key: u64,
    /// Numbers so far.
    pub count: u64,
}

/// What a result takes on its way to a slow sink, in bytes: a call is then given few of them, and is short.
const WIDE_BYTES: usize = 256;

/// Computes for so many rounds, none of which can be left out.
fn work(rounds: u64) {
    let mut number = rounds;
    for round in 0..rounds {
        number = black_box(number ^ round).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    black_box(number);
}

/// Generates `count` numbers (0 for no end), at most `rate` a second in all (0 for no limit), counts them by
/// their remainder of division by `keys`, and writes every change to the directory `output`. With a parameter `socket`,
/// `host:port`, every change is also sent there at once, while the directory shows it with the next checkpoint. With a
/// parameter `work`, the sink is tasks of their own that compute for so many rounds before each change is written.
#[tidemill::job]
pub fn keyed_count(job: &mut Job) -> Result<(), &'static str> {
    let count: u64 = job.param("count").required();
    let keys: u64 = job.param("keys").default(1_000);
    let rate: u64 = job.param("rate").default(0);
    if keys == 0 {
        return Err("parameter `keys` is 0: there must be at least one key");
    }
    let socket_address: String = job.param("socket").default(String::new());
    let output = files(job.param("output")).json();
    let counts = job
        .source(generator(count).rate(rate))
        .key_by(move |n| n % keys)
        .count()
        .id("counts")
        .map(|(key, count)| KeyCount { key, count });
    let rounds: u64 = job.param("work").default(0);
    if rounds > 0 {
        counts
            .map(|count| (count, ByteArray([0; WIDE_BYTES])))
            .rebalance()
            .map(move |(count, _)| {
                work(rounds);
                count
            })
            .sink(output);
        return Ok(());
    }
    if socket_address.is_empty() {
        counts.sink(output);
        return Ok(());
    }
    let (shown_at_once, shown_with_a_checkpoint) = counts
        .flat_map(|count| [(true, count.clone()), (false, count)])
        .split(|(at_once, _)| *at_once);
    shown_at_once
        .map(|(_, count)| count)
        .sink(socket(socket_address).json());
    shown_with_a_checkpoint.map(|(_, count)| count).sink(output);
    Ok(())
}
