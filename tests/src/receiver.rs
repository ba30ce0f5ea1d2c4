//! What listens where the sink `socket` sends to: it notes when lines arrive, and keeps them for the oracle.
//!
//! The moments are of this process's monotonic clock, taken when a read returns: what is measured is what a user of the
//! stream would see. It never answers anything.

use std::fmt;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

/// A listener, and all that came.
#[derive(Debug)]
pub struct Receiver {
    address: String,
    is_closed: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// When something came, in order.
    arrivals: Vec<Instant>,
    connections: u32,
    lines: Vec<String>,
}

/// The pauses between arrivals within a stretch of time, its two ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gaps {
    /// How many arrivals there were.
    pub arrivals: usize,
    /// The pause that half of all do not exceed.
    pub median: Duration,
    /// The pause that 99 of 100 do not exceed.
    pub p99: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Receiver {
    /// Listens on a free port of `host`.
    ///
    /// # Errors
    /// When there is none.
    pub fn listen(host: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((host, 0)).with_context(|| format!("bind to {host}"))?;
        let receiver = Self {
            address: listener.local_addr()?.to_string(),
            is_closed: Arc::default(),
            state: Arc::default(),
        };
        let (is_closed, state) = (Arc::clone(&receiver.is_closed), Arc::clone(&receiver.state));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if is_closed.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&state);
                lock(&state).connections += 1;
                thread::spawn(move || receive(stream, &state));
            }
        });
        Ok(receiver)
    }

    /// Where it listens, `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many lines have come.
    #[must_use]
    pub fn lines(&self) -> usize {
        lock(&self.state).lines.len()
    }

    /// How often a sink task has connected.
    #[must_use]
    pub fn connections(&self) -> u32 {
        lock(&self.state).connections
    }

    /// Every line that has come, as JSON.
    ///
    /// # Errors
    /// When one is not.
    pub fn records(&self) -> anyhow::Result<Vec<Value>> {
        let state = lock(&self.state);
        let parse = |line: &String| {
            serde_json::from_str(line).with_context(|| format!("`{line}` is not JSON"))
        };
        state.lines.iter().map(parse).collect()
    }

    /// The pauses between two moments.
    #[must_use]
    pub fn gaps(&self, from: Instant, to: Instant) -> Gaps {
        gaps(&lock(&self.state).arrivals, from, to)
    }

    /// When the last line came.
    #[must_use]
    pub fn last_arrival(&self) -> Option<Instant> {
        lock(&self.state).arrivals.iter().max().copied()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(&self.address));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a connection's lines until it ends. The sink sends whole lines; one that a killed task cut short is not one.
fn receive(mut stream: TcpStream, state: &Mutex<State>) {
    let mut buffer = vec![0; 64 << 10];
    let mut rest = Vec::new();
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let now = Instant::now();
        rest.extend_from_slice(&buffer[..length]);
        let mut state = lock(state);
        state.arrivals.push(now);
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        let whole = rest.drain(..=end).collect::<Vec<_>>();
        let text = String::from_utf8_lossy(&whole);
        state.lines.extend(text.lines().map(str::to_owned));
    }
}

fn moments(arrivals: &[Instant], from: Instant, to: Instant) -> Vec<Instant> {
    let mut moments = vec![from];
    moments.extend(arrivals.iter().filter(|at| (from..=to).contains(at)));
    moments.push(to);
    // Connections are read by threads of their own.
    moments.sort_unstable();
    moments
}

fn gaps(arrivals: &[Instant], from: Instant, to: Instant) -> Gaps {
    let moments = moments(arrivals, from, to);
    let mut pauses: Vec<Duration> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
    pauses.sort_unstable();
    let at = |share: f64| pauses[((pauses.len() - 1) as f64 * share) as usize];
    Gaps {
        arrivals: moments.len() - 2,
        median: at(0.5),
        p99: at(0.99),
        longest: at(1.0),
    }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |pause: Duration| pause.as_secs_f64() * 1000.0;
        write!(
            f,
            "{} arrivals, pauses of {:.1} ms (median), {:.1} ms (99 %), {:.1} ms (longest)",
            self.arrivals,
            ms(self.median),
            ms(self.p99),
            ms(self.longest)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::wait_for;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn the_ends_of_a_stretch_count_as_moments() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let all = gaps(&[at(30), at(10), at(20), at(99)], at(5), at(80));
        assert_eq!(all.arrivals, 3);
        assert_eq!(all.longest, Duration::from_millis(50), "from 30 to the end");
        assert_eq!(all.median, Duration::from_millis(10));
        let silent = gaps(&[], at(0), at(7));
        assert_eq!(
            (silent.arrivals, silent.longest),
            (0, Duration::from_millis(7))
        );
    }

    #[test]
    fn whole_lines_are_kept_and_their_arrival_noted() {
        let receiver = Receiver::listen("127.0.0.1").expect("a free port");
        let before = Instant::now();
        for text in ["{\"n\":1}\n{\"n\":2}\n", "{\"n\":3}\n{\"cut"] {
            let mut stream = TcpStream::connect(receiver.address()).expect("it listens");
            stream.write_all(text.as_bytes()).expect("it reads");
        }
        wait_for("three lines", LIMIT, || {
            Ok((receiver.lines() == 3).then_some(()))
        })
        .expect("they come");
        assert_eq!(receiver.connections(), 2);
        let numbers: Vec<_> = receiver.records().expect("JSON");
        let sum: u64 = numbers.iter().filter_map(|it| it["n"].as_u64()).sum();
        assert_eq!(sum, 6);
        assert!(receiver.gaps(before, Instant::now()).arrivals >= 2);
    }
}
