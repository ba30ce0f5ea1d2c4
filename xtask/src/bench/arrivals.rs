//! What listens where the job `state` shows its rows at once, and notes when each came.
//!
//! It never answers anything, and takes a moment when a read returns: what is measured is what a user of the stream
//! would see.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Context;
use serde_json::Value;

/// A listener, and the rows that came, by the task that made them.
pub(super) struct Arrivals {
    address: String,
    is_closed: Arc<AtomicBool>,
    rows: Arc<Mutex<Rows>>,
}

type Rows = BTreeMap<u64, Vec<(Instant, u64)>>;

impl Arrivals {
    /// Listens on a free port.
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let arrivals = Self {
            address: listener.local_addr()?.to_string(),
            is_closed: Arc::default(),
            rows: Arc::default(),
        };
        let (is_closed, rows) = (Arc::clone(&arrivals.is_closed), Arc::clone(&arrivals.rows));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if is_closed.load(Ordering::Relaxed) {
                    return;
                }
                let rows = Arc::clone(&rows);
                thread::spawn(move || receive(stream, &rows));
            }
        });
        Ok(arrivals)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// How many rows of a task have come.
    pub(super) fn number(&self, subtask: u64) -> usize {
        lock(&self.rows).get(&subtask).map_or(0, Vec::len)
    }

    /// The first row of a task that was new after an interruption at `from`; see [`first_new`].
    pub(super) fn first_new(&self, subtask: u64, from: Instant) -> Option<Instant> {
        first_new(lock(&self.rows).get(&subtask)?, from)
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(&self.address));
    }
}

fn lock(rows: &Mutex<Rows>) -> MutexGuard<'_, Rows> {
    rows.lock().unwrap_or_else(PoisonError::into_inner)
}

fn receive(stream: TcpStream, rows: &Mutex<Rows>) {
    for line in BufReader::new(stream).split(b'\n') {
        let Ok(line) = line else {
            return;
        };
        let now = Instant::now();
        // A line that a killed process cut short is no row.
        let Ok(row) = serde_json::from_slice::<Value>(&line) else {
            continue;
        };
        if let (Some(subtask), Some(n)) = (row["subtask"].as_u64(), row["n"].as_u64()) {
            lock(rows).entry(subtask).or_default().push((now, n));
        }
    }
}

/// When a record came that is beyond the highest seen before, after rows have come again that were seen already: what
/// the task had sent before its end may arrive after it, and is nothing new.
fn first_new(rows: &[(Instant, u64)], from: Instant) -> Option<Instant> {
    let mut in_order = rows.to_vec();
    in_order.sort_by_key(|(at, _)| *at);
    let mut highest = None;
    let mut goes_back = false;
    for (at, n) in in_order {
        let is_new = highest.is_none_or(|highest| n > highest);
        if at >= from {
            match (is_new, goes_back) {
                (false, _) => goes_back = true,
                (true, true) => return Some(at),
                (true, false) => {}
            }
        }
        highest = highest.max(Some(n));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::interrupt;

    #[test]
    fn what_was_under_way_is_nothing_new() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let rows = [
            (at(0), 1),
            (at(1), 2),
            (at(11), 3),
            (at(50), 2),
            (at(51), 3),
        ];
        assert_eq!(first_new(&rows, at(10)), None);
        let rows = [&rows[..], &[(at(52), 4), (at(53), 5)]].concat();
        assert_eq!(first_new(&rows, at(10)), Some(at(52)));
        assert_eq!(first_new(&rows, at(53)), None, "nothing went back since");
    }

    #[test]
    fn rows_are_noted_by_task() {
        let arrivals = Arrivals::listen().expect("a free port");
        let mut stream = TcpStream::connect(arrivals.address()).expect("it listens");
        let lines =
            "{\"subtask\":0,\"n\":7}\n{\"subtask\":1,\"n\":1}\n{\"subtask\":0,\"n\":8}\n{\"subt";
        stream.write_all(lines.as_bytes()).expect("it reads");
        interrupt::wait_for("the rows", Duration::from_secs(10), || {
            let have = (arrivals.number(0), arrivals.number(1));
            Ok((have == (2, 1)).then_some(()))
        })
        .expect("they come");
        assert_eq!(arrivals.number(2), 0);
    }
}
