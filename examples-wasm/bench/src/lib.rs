//! The jobs that `cargo xtask bench` measures. Every record is a pure function of its number and is made in the guest,
//! so that nothing but the engine is measured; the streams are bit for bit those of the Flink jobs they are compared with.
//!
//! * `count-gen`: a key of 100,000 and 100 bytes, partitioned by key, counted, discarded;
//! * `pass`: 100 bytes of text, parsed, scaled, filtered, discarded;
//! * `pass-rebalance`: the same with an exchange before the parsing;
//! * `state`: a large table in each task, of which so much is written each second (see [`state`]).

pub mod state;

use core::hint::black_box;

use tidemill::prelude::*;

/// Keys of `count-gen`.
const KEYS: u64 = 100_000;

/// A record of `count-gen`: key and value.
pub type Keyed = (i64, ByteArray<100>);

/// A record of `pass`.
pub type Line = ByteArray<100>;

#[derive(Clone, Copy, Debug)]
enum Kind {
    CountGen,
    Pass,
    PassRebalance,
    State,
}

/// Runs the stream named by `job`; `count` records in all, 0 for no end.
#[tidemill::job]
pub fn bench(job: &mut Job) -> Result<(), &'static str> {
    let count: u64 = job.param("count").default(0);
    let kinds = [
        ("count-gen", Kind::CountGen),
        ("pass", Kind::Pass),
        ("pass-rebalance", Kind::PassRebalance),
        ("state", Kind::State),
    ];
    match job.param("job").choice("count-gen", &kinds) {
        Kind::CountGen => {
            job.source(Numbered::new(count, keyed()))
                .key_by(|(key, _)| *key)
                .count()
                // Makes every result be computed, although nobody looks at it.
                .inspect(|result| {
                    black_box(result);
                })
                .sink(discard());
        }
        Kind::Pass => parse_and_filter(job.source(Numbered::new(count, line()))),
        Kind::PassRebalance => {
            parse_and_filter(job.source(Numbered::new(count, line())).rebalance())
        }
        Kind::State => state::describe(job)?,
    }
    Ok(())
}

fn parse_and_filter(lines: Stream<impl Chain<Out = Line>>) {
    lines
        .map(parse)
        .filter(|(_, scaled, _)| scaled % 10 != 0)
        .inspect(|result| {
            black_box(result);
        })
        .sink(discard());
}

/// Makes record n from n alone; subtask s of P makes n = s, s + P, s + 2P, …
pub struct Numbered<F> {
    next: u64,
    step: u64,
    end: u64,
    record: F,
}

impl<F> Numbered<F> {
    /// A source of `count` records, or without end when that is 0.
    pub fn new(count: u64, record: F) -> Self {
        let end = if count == 0 { u64::MAX } else { count };
        Self {
            next: 0,
            step: 1,
            end,
            record,
        }
    }
}

impl<T: 'static, F: FnMut(u64) -> T + 'static> Source for Numbered<F> {
    type Item = T;

    fn open(&mut self, subtask: u32, parallelism: u32) {
        (self.next, self.step) = (subtask.into(), parallelism.into());
    }

    #[inline(always)]
    fn next(&mut self, _cx: &Context) -> Next<T> {
        let n = self.next;
        if n >= self.end {
            return Next::End;
        }
        self.next = n.saturating_add(self.step);
        Next::Record((self.record)(n))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood) over n plus the golden ratio.
#[inline]
pub fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Makes the records of `count-gen`: n big-endian in the first eight bytes of the value, zeros after.
pub fn keyed() -> impl FnMut(u64) -> Keyed {
    // Copying zeros is cheaper than making them: clearing memory is a library call in a Wasm engine.
    let mut value = [0; 100];
    move |n| {
        value[..8].copy_from_slice(&n.to_be_bytes());
        (((mix(n) >> 1) % KEYS) as i64, ByteArray(value))
    }
}

/// Makes the records of `pass`: n as ten digits, six digits of its hash, 82 times `x`.
pub fn line() -> impl FnMut(u64) -> Line {
    let mut record = [b'x'; 100];
    record[10] = b',';
    record[17] = b',';
    move |n| {
        record[..2].copy_from_slice(&digits((n / 100_000_000 % 100) as u32)[6..]);
        record[2..10].copy_from_slice(&digits((n % 100_000_000) as u32));
        record[11..17].copy_from_slice(&digits(((mix(n) >> 1) % 1_000_000) as u32)[2..]);
        ByteArray(record)
    }
}

/// A number below 10^8 as eight digits: halves of four digits, then pairs, then digits, all halves and pairs at once.
/// For numbers this small, dividing by 100 and by 10 is multiplying by 10486 / 2^20 and by 103 / 2^10.
#[inline]
fn digits(number: u32) -> [u8; 8] {
    let number = u64::from(number);
    let halves = (number / 10_000) | ((number % 10_000) << 32);
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let pairs = hundreds | ((halves - 100 * hundreds) << 16);
    let tens = ((pairs * 103) >> 10) & 0x000f_000f_000f_000f;
    let digits = tens | ((pairs - 10 * tens) << 8);
    (digits | 0x3030_3030_3030_3030).to_le_bytes()
}

/// Reads both numbers of a record and scales the second.
#[inline]
pub fn parse(record: Line) -> (i64, i64, Line) {
    (
        read_digits(&record[..10]),
        read_digits(&record[11..17]) * 908 / 1000,
        record,
    )
}

#[inline]
fn read_digits(digits: &[u8]) -> i64 {
    digits.iter().fold(0, |number, digit| {
        number * 10 + i64::from(digit.wrapping_sub(b'0'))
    })
}
