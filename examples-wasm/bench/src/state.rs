//! The job `state`: a table of a given size in each task, of which so many distinct pages are written each second, while
//! records are made as fast as it goes. What is on a page follows from the number of writes alone, so that the table
//! checks itself: each write looks first whether the page is what the writes before have made of it, and a task that ends
//! has looked at every word. It never makes up for writes of the time in which it did not run; its records, where they come
//! at a rate, have waited for it meanwhile, as those of a log would.

use core::hint::black_box;

use serde::{Deserialize, Serialize};
use tidemill::prelude::*;

use crate::mix;

/// Words of a page: 4 KiB, the grain in which checkpoints see what has changed.
const WORDS: usize = 512;

/// Pages of a MiB.
const PAGES_PER_MIB: u64 = 256;

/// The word that each write changes beside the first: in the other half of the page.
const FAR_WORD: usize = 256;

/// Pages that are filled or checked in one call.
const PAGES_PER_CALL: usize = 2048;

/// Pages that are written in one call at most.
const WRITES_PER_CALL: u64 = 32;

/// The longest stretch of time that counts between two calls.
const STRETCH_MAX_MS: u64 = 100;

/// What the job puts out: how far a task is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    /// Whose.
    pub subtask: u32,
    /// The number of the record.
    pub n: u64,
    /// Pages written so far.
    pub writes: u64,
    /// Of the whole table after so many writes; in the last row only.
    pub checksum: Option<u64>,
}

/// One page, which begins where a page of the memory begins.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
struct Page([u64; WORDS]);

/// What word `index` of page `page` is after so many writes of that page.
fn word(page: u64, index: usize, rounds: u64) -> u64 {
    match index {
        0 => rounds,
        FAR_WORD if rounds > 0 => mix(page ^ rounds << 32),
        _ => mix(page * WORDS as u64 + index as u64),
    }
}

/// The page that write number `write` goes to: in each round of `pages` writes every page has its turn once, in an order
/// that looks random.
fn place(write: u64, pages: u64) -> u64 {
    let bits = pages.next_power_of_two().trailing_zeros().max(1);
    let (mask, half) = ((1 << bits) - 1, (bits / 2).max(1));
    let mut place = write % pages;
    loop {
        // Each step can be undone, so that no two writes of a round meet; what falls outside goes round again.
        place ^= place >> half;
        place = place.wrapping_mul(0x9E37_79B9_7F4A_7C15) & mask;
        place ^= place >> half;
        place = place.wrapping_mul(0xBF58_476D_1CE4_E5B9) & mask;
        if place < pages {
            return place;
        }
    }
}

/// The checksum of a table of `mib` MiB after so many writes, computed without a table.
#[must_use]
pub fn checksum(mib: u64, writes: u64) -> u64 {
    let pages = mib * PAGES_PER_MIB;
    let mut rounds = vec![writes / pages; pages as usize];
    for write in 0..writes % pages {
        rounds[place(write, pages) as usize] += 1;
    }
    (0..pages).zip(rounds).fold(0, |sum, (page, rounds)| {
        (0..WORDS).fold(sum, |sum, index| add(sum, word(page, index, rounds)))
    })
}

fn add(sum: u64, word: u64) -> u64 {
    (sum ^ word)
        .wrapping_mul(0x0000_0100_0000_01B3)
        .rotate_left(17)
}

/// The table of a task.
#[derive(Debug)]
struct Table {
    pages: Vec<Page>,
    size: u64,
    writes: u64,
    checked: usize,
    sum: u64,
}

impl Table {
    fn new(mib: u64) -> Self {
        Self {
            pages: Vec::new(),
            size: mib * PAGES_PER_MIB,
            writes: 0,
            checked: 0,
            sum: 0,
        }
    }

    /// Fills some more pages; `true` once all are.
    fn fill(&mut self) -> bool {
        self.pages
            .reserve_exact(self.size as usize - self.pages.len());
        for _ in 0..PAGES_PER_CALL {
            let page = self.pages.len() as u64;
            if page == self.size {
                return true;
            }
            self.pages
                .push(Page(core::array::from_fn(|index| word(page, index, 0))));
        }
        false
    }

    /// Writes the page whose turn it is.
    fn write(&mut self) {
        let at = place(self.writes, self.size);
        let rounds = self.writes / self.size;
        let Page(words) = &mut self.pages[at as usize];
        for index in [0, FAR_WORD, WORDS - 1] {
            let (is, was) = (words[index], word(at, index, rounds));
            assert!(
                is == was,
                "word {index} of page {at} is {is:#x} before write {} and was {was:#x}",
                self.writes
            );
        }
        words[0] = rounds + 1;
        words[FAR_WORD] = word(at, FAR_WORD, rounds + 1);
        self.writes += 1;
    }

    /// A look at some word of the table, as a look-up of a key would have it.
    #[inline]
    fn look_up(&self, n: u64) -> u64 {
        let hash = mix(n);
        let page = ((hash >> 32) * self.size) >> 32;
        self.pages[page as usize].0[hash as usize % WORDS]
    }

    /// Looks at some more pages, word by word; the checksum once all were looked at.
    fn check(&mut self) -> Option<u64> {
        let whole_rounds = self.writes / self.size;
        let end = (self.checked + PAGES_PER_CALL).min(self.pages.len());
        for at in self.checked..end {
            let Page(words) = &self.pages[at];
            let rounds = words[0];
            assert!(
                rounds == whole_rounds || rounds == whole_rounds + 1,
                "page {at} was written {rounds} times in {} writes",
                self.writes
            );
            for (index, is) in words.iter().enumerate() {
                let was = word(at as u64, index, rounds);
                assert!(
                    *is == was,
                    "word {index} of page {at} is {is:#x} at the end and was {was:#x}"
                );
                self.sum = add(self.sum, *is);
            }
        }
        self.checked = end;
        (end == self.pages.len()).then_some(self.sum)
    }
}

/// When a job works that takes turns with another one: so that both can be compared on a machine whose speed changes.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// The length of a turn by the clock; in the last fifth of it nobody works.
    pub turn_ms: u64,
    /// Of every two turns, which one: 0 or 1.
    pub turn: u64,
}

impl Turns {
    /// When the job may go on; `None` if that is now.
    const fn wait_until_ms(self, now_ms: u64) -> Option<u64> {
        let round_ms = 2 * self.turn_ms;
        let (round, in_round_ms) = (now_ms / round_ms, now_ms % round_ms);
        let begins_ms = self.turn * self.turn_ms;
        if in_round_ms < begins_ms {
            Some(round * round_ms + begins_ms)
        } else if in_round_ms - begins_ms >= self.turn_ms / 5 * 4 {
            Some((round + 1) * round_ms + begins_ms)
        } else {
            None
        }
    }
}

/// The source: records of a task with such a table.
pub struct Stateful {
    table: Table,
    subtask: u32,
    next: u64,
    count: u64,
    /// Records that come into being each second, whether the task runs or not; 0: as many as it takes.
    rate: u64,
    began_ms: u64,
    /// Writes each second that the task runs.
    writes: u64,
    /// In thousandths.
    writes_due: u64,
    now_ms: u64,
    turns: Option<Turns>,
    /// For each record.
    mixes: u32,
    is_filled: bool,
    has_ended: bool,
}

impl Stateful {
    /// A table of `mib` MiB of which `writes` pages are written each second, and `count` records, `rate` of them each
    /// second; 0 means without end, and as fast as it goes.
    #[must_use]
    pub fn new(mib: u64, writes: u64, count: u64, rate: u64) -> Self {
        Self {
            table: Table::new(mib),
            subtask: 0,
            next: 0,
            count: if count == 0 { u64::MAX } else { count },
            rate,
            began_ms: 0,
            writes,
            writes_due: 0,
            now_ms: 0,
            turns: None,
            mixes: 0,
            is_filled: false,
            has_ended: false,
        }
    }

    /// Makes records and writes pages in turns only.
    #[must_use]
    pub fn in_turns(mut self, turns: Option<Turns>) -> Self {
        self.turns = turns;
        self
    }

    /// Mixes a number so often for each record, which stands for what a job computes: without it there is nothing but
    /// waiting for memory.
    #[must_use]
    pub fn computing(mut self, mixes: u32) -> Self {
        self.mixes = mixes;
        self
    }

    fn pass_to(&mut self, now_ms: u64) {
        if now_ms != self.now_ms {
            self.writes_due += self.writes * (now_ms - self.now_ms).min(STRETCH_MAX_MS);
            self.now_ms = now_ms;
        }
    }

    const fn row(&self, checksum: Option<u64>) -> Row {
        Row {
            subtask: self.subtask,
            n: self.next,
            writes: self.table.writes,
            checksum,
        }
    }

    /// Looks at the table, and says the last word.
    fn end(&mut self, now_ms: u64) -> Next<Row> {
        if self.has_ended {
            return Next::End;
        }
        let Some(checksum) = self.table.check() else {
            return Next::Idle { until_ms: now_ms };
        };
        self.has_ended = true;
        Next::Record(self.row(Some(checksum)))
    }
}

impl Source for Stateful {
    type Item = Row;

    fn open(&mut self, subtask: u32, _parallelism: u32) {
        self.subtask = subtask;
    }

    #[inline]
    fn next(&mut self, cx: &Context) -> Next<Row> {
        let now_ms = cx.now_ms();
        if !self.is_filled {
            self.is_filled = self.table.fill();
            (self.began_ms, self.now_ms) = (now_ms, now_ms);
            return Next::Idle { until_ms: now_ms };
        }
        // A table that is being looked at stays as it is.
        if self.next == self.count {
            return self.end(now_ms);
        }
        if let Some(until_ms) = self.turns.and_then(|turns| turns.wait_until_ms(now_ms)) {
            return Next::Idle { until_ms };
        }
        self.pass_to(now_ms);
        // With a rate of records it is called about once in a millisecond.
        let due = self.writes_due / 1000;
        let end = due.min(self.table.writes + WRITES_PER_CALL);
        while self.table.writes < end {
            self.table.write();
        }
        if self.rate > 0 && self.next >= (now_ms - self.began_ms) * self.rate / 1000 {
            return Next::Idle {
                until_ms: now_ms + 1,
            };
        }
        let word = self.table.look_up(self.next);
        black_box((0..self.mixes).fold(word, |word, _| mix(word)));
        let row = self.row(None);
        self.next += 1;
        Next::Record(row)
    }
}

/// Describes the job: `mib` and `writes` of each task's table, `rate` and `count` of its records, and how many `mixes` each of
/// them takes. Rows go to the directory `output` and, at once, to the address `socket`, where these are given; with
/// `exchange=yes` by way of another stage. With `turn_ms` it takes turns with a job that has another `turn`, 0 or 1.
pub(crate) fn describe(job: &mut Job) -> Result<(), &'static str> {
    let mib: u64 = job.param("mib").default(64);
    if !(1..=1024).contains(&mib) {
        return Err("parameter `mib` is not from 1 to 1024: a table must fit into a task's memory");
    }
    let source = Stateful::new(
        mib,
        job.param("writes").default(1_000),
        job.param("count").default(0),
        job.param("rate").default(0),
    );
    let turns = Turns {
        turn_ms: job.param("turn_ms").default(0),
        turn: job.param("turn").default(0),
    };
    let source = source
        .in_turns((turns.turn_ms > 0).then_some(turns))
        .computing(job.param("mixes").default(0));
    let rows = job.source(source).id("table");
    match job
        .param("exchange")
        .choice("no", &[("no", false), ("yes", true)])
    {
        false => show(job, rows),
        true => show(job, rows.rebalance()),
    }
    Ok(())
}

fn show(job: &mut Job, rows: Stream<impl Chain<Out = Row>>) {
    let output: String = job.param("output").default(String::new());
    let address: String = job.param("socket").default(String::new());
    match (output.is_empty(), address.is_empty()) {
        (true, true) => drop(
            rows.inspect(|row| {
                black_box(row);
            })
            .sink(discard()),
        ),
        (false, true) => drop(rows.sink(files(output).json())),
        (true, false) => drop(rows.sink(socket(address).json())),
        (false, false) => {
            let (at_once, with_a_checkpoint) = rows
                .flat_map(|row| [(true, row.clone()), (false, row)])
                .split(|(at_once, _)| *at_once);
            at_once.map(|(_, row)| row).sink(socket(address).json());
            with_a_checkpoint
                .map(|(_, row)| row)
                .sink(files(output).json());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_its_turn_once_in_a_round() {
        for pages in [1, 2, 3, 256, 768, 1000] {
            for round in 0..2 {
                let mut turns: Vec<u64> = (0..pages)
                    .map(|write| place(round * pages + write, pages))
                    .collect();
                turns.sort_unstable();
                assert_eq!(turns, (0..pages).collect::<Vec<_>>(), "{pages} pages");
            }
        }
    }

    #[test]
    fn the_table_is_what_the_oracle_says() {
        for writes in [0, 1, 255, 256, 1000] {
            let mut table = Table::new(1);
            while !table.fill() {}
            (0..writes).for_each(|_| table.write());
            assert_eq!(table.check(), Some(checksum(1, writes)), "{writes} writes");
        }
        assert_ne!(checksum(1, 256), checksum(1, 257));
    }

    #[test]
    #[should_panic(expected = "word 256 of page")]
    fn a_page_that_is_not_what_it_was_is_noticed() {
        let mut table = Table::new(1);
        while !table.fill() {}
        let lost = table.pages.clone();
        (0..256).for_each(|_| table.write());
        for (page, before) in table.pages.iter_mut().zip(lost) {
            page.0[FAR_WORD] = before.0[FAR_WORD];
        }
        table.write();
    }

    #[test]
    fn turns_follow_each_other_with_a_gap() {
        let waits = |turn, now_ms| Turns { turn_ms: 100, turn }.wait_until_ms(now_ms);
        assert_eq!(waits(0, 1000), None);
        assert_eq!(waits(0, 1079), None);
        assert_eq!(waits(0, 1080), Some(1200));
        assert_eq!(waits(1, 1080), Some(1100));
        assert_eq!(waits(1, 1100), None);
        assert_eq!(waits(1, 1180), Some(1300));
    }

    #[test]
    fn time_without_the_task_does_not_count() {
        let mut source = Stateful::new(1, 1000, 0, 0);
        for now_ms in [50, 70, 1_000_070, 1_000_071] {
            source.pass_to(now_ms);
        }
        assert_eq!(source.writes_due / 1000, 50 + 20 + STRETCH_MAX_MS + 1);
    }
}
