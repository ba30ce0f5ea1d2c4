//! A job that does wrong what its parameter `fault` says, for the end-to-end tests of what a cluster does about it.
//! Without a fault it is `keyed-count` with a stage before: the numbers 0, 1, 2, … counted by their remainder.

use serde::{Deserialize, Serialize};
use tidemill::prelude::*;

/// What the job does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The operator panics.
    Panic,
    /// The operator allocates without end.
    Allocate,
    /// The operator computes without end.
    Loop,
    /// The operator calls itself without end.
    Recurse,
    /// The operator emits without end.
    Emit,
    /// The job function panics.
    DescribePanic,
    /// The job function allocates without end.
    DescribeAllocate,
    /// The job function computes without end.
    DescribeLoop,
    /// The graph names an address.
    DescribeAddress,
}

const FAULTS: [(&str, Fault); 10] = [
    ("none", Fault::None),
    ("panic", Fault::Panic),
    ("allocate", Fault::Allocate),
    ("loop", Fault::Loop),
    ("recurse", Fault::Recurse),
    ("emit", Fault::Emit),
    ("describe-panic", Fault::DescribePanic),
    ("describe-allocate", Fault::DescribeAllocate),
    ("describe-loop", Fault::DescribeLoop),
    ("describe-address", Fault::DescribeAddress),
];

/// How much is allocated at a time by what allocates without end.
const HOARD_STEP_BYTES: usize = 1 << 20;

/// A key and how many numbers have had it so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyCount {
    /// The remainder.
    pub key: u64,
    /// Numbers so far.
    pub count: u64,
}

/// Lets every number pass until the fateful one comes.
struct Misbehave {
    fault: Fault,
    at: u64,
    ballast_bytes: usize,
    /// Memory without meaning that no compression makes smaller: what makes images large.
    ballast: Vec<u8>,
}

impl Operator<u64> for Misbehave {
    type Out = u64;

    fn process(&mut self, n: u64, out: &mut impl Emit<u64>) {
        if self.ballast.len() < self.ballast_bytes {
            self.ballast = noise(self.ballast_bytes);
        }
        match self.fault {
            Fault::Panic if n == self.at => complain(n),
            Fault::Allocate if n == self.at => hoard(),
            Fault::Loop if n == self.at => spin(),
            Fault::Recurse if n == self.at => out.emit(recurse(n)),
            Fault::Emit if n == self.at => loop {
                out.emit(n);
            },
            _ => out.emit(n),
        }
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        // Knuth's linear congruential generator; its high bits are the random ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// Never inlined, so that a backtrace names it.
#[inline(never)]
fn complain(n: u64) -> ! {
    panic!("record {n} was never expected");
}

/// Never inlined, so that a backtrace names it.
#[inline(never)]
fn hoard() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(std::hint::black_box(vec![1_u8; HOARD_STEP_BYTES]));
    }
}

/// Never inlined, so that a backtrace names it.
#[inline(never)]
fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Comes to an end where no stack reaches.
#[inline(never)]
fn recurse(n: u64) -> u64 {
    match std::hint::black_box(n) {
        u64::MAX => 0,
        n => recurse(n + 1) ^ n,
    }
}

/// Generates `count` numbers, at most `rate` a second in all (0 for no limit), does what `fault` says when number `at`
/// comes, holds `ballast_bytes` in memory from the first number on, counts the numbers by their remainder of division
/// by `keys`, and writes every change to the directory `output`.
#[tidemill::job]
pub fn faulty(job: &mut Job) -> Result<(), &'static str> {
    let fault = job.param("fault").choice("none", &FAULTS);
    let at: u64 = job.param("at").default(1_000);
    let count: u64 = job.param("count").default(100_000);
    let keys: u64 = job.param("keys").default(10);
    let rate: u64 = job.param("rate").default(0);
    let ballast_bytes = job.param("ballast_bytes").default(0_u32) as usize;
    if keys == 0 {
        return Err("parameter `keys` is 0: there must be at least one key");
    }
    let name = match fault {
        Fault::DescribePanic => panic!("this graph was never meant to be"),
        Fault::DescribeAllocate => hoard(),
        Fault::DescribeLoop => spin(),
        Fault::DescribeAddress => format!("misbehave at {:p}", Box::new(0_u8)),
        _ => "misbehave".to_owned(),
    };
    let operator = Misbehave {
        fault,
        at,
        ballast_bytes,
        ballast: Vec::new(),
    };
    job.source(generator(count).rate(rate))
        .apply(operator)
        .name(&name)
        .key_by(move |n| n % keys)
        .count()
        .id("counts")
        .map(|(key, count)| KeyCount { key, count })
        .sink(files(job.param("output")).json());
    Ok(())
}
