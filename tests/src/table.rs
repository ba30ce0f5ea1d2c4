//! What the job `state` of the module `bench` must put out: a row for each record of each task, and in the last the
//! checksum of the task's table. Computed from the definition of the table, without one.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::Value;

const WORDS: u64 = 512;
const PAGES_PER_MIB: u64 = 256;

/// A job of so many tasks, each with a table of so many MiB, which make so many records.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Tasks with a table.
    pub tasks: u64,
    /// MiB of each table.
    pub mib: u64,
    /// Records of each task; the row with the checksum comes after them.
    pub count: u64,
}

impl Tables {
    /// Rows that must come out.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.tasks * (self.count + 1)
    }

    /// Checks that every row is there exactly once.
    ///
    /// # Errors
    /// When one is missing, doubled or wrong.
    pub fn check(&self, rows: &[Value]) -> anyhow::Result<()> {
        self.check_all(rows)?;
        ensure!(
            rows.len() as u64 == self.rows(),
            "{} rows came where {} differ: some came twice",
            rows.len(),
            self.rows()
        );
        Ok(())
    }

    /// Checks that every row is there at least once: rows that were shown may be shown again when a job goes back behind
    /// the checkpoint that showed them.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn check_all(&self, rows: &[Value]) -> anyhow::Result<()> {
        let mut tasks: BTreeMap<u64, BTreeMap<u64, &Value>> = BTreeMap::new();
        for row in rows {
            let number = |field: &str| {
                let number = row[field].as_u64();
                number.with_context(|| format!("{row} has no number `{field}`"))
            };
            tasks
                .entry(number("subtask")?)
                .or_default()
                .insert(number("n")?, row);
        }
        ensure!(
            tasks.keys().copied().eq(0..self.tasks),
            "rows came of the tasks {:?}",
            tasks.keys()
        );
        for (task, rows) in &tasks {
            let missing = (0..=self.count).find(|n| !rows.contains_key(n));
            ensure!(missing.is_none(), "task {task}: row {missing:?} is lost");
        }
        self.check_ends(rows)
    }

    /// Checks that each task's last row is there and has its table's checksum, whatever came before.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn check_ends(&self, rows: &[Value]) -> anyhow::Result<()> {
        for task in 0..self.tasks {
            let of_task = rows.iter().filter(|row| row["subtask"] == task);
            let last = of_task.max_by_key(|row| row["n"].as_u64());
            let last = last.with_context(|| format!("no row came of task {task}"))?;
            ensure!(
                last["n"] == self.count,
                "the last row of task {task} is {last}"
            );
            let writes = last["writes"].as_u64().context("rows tell the writes")?;
            let truth = checksum(self.mib, writes);
            ensure!(
                last["checksum"].as_u64() == Some(truth),
                "task {task}: the table's checksum after {writes} writes is {truth}, not {}",
                last["checksum"]
            );
        }
        Ok(())
    }
}

/// The finaliser of SplitMix64 over n plus the golden ratio.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ n >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ n >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ n >> 31
}

/// How often each page is written by so many writes: whole rounds over all pages, and the first pages of a shuffled round.
fn rounds_of_pages(pages: u64, writes: u64) -> Vec<u64> {
    let bits = (0..).find(|bits| 1 << bits >= pages).unwrap_or(63).max(1);
    let shuffle = |mut place: u64| {
        for factor in [0x9E37_79B9_7F4A_7C15_u64, 0xBF58_476D_1CE4_E5B9] {
            place ^= place >> (bits / 2).max(1);
            place = place.wrapping_mul(factor) % (1 << bits);
        }
        place
    };
    let mut rounds = vec![writes / pages; pages as usize];
    for write in 0..writes % pages {
        let mut page = shuffle(write);
        while page >= pages {
            page = shuffle(page);
        }
        rounds[page as usize] += 1;
    }
    rounds
}

fn checksum(mib: u64, writes: u64) -> u64 {
    let mut sum = 0_u64;
    for (page, rounds) in (0..).zip(rounds_of_pages(mib * PAGES_PER_MIB, writes)) {
        for index in 0..WORDS {
            let word = match (index, rounds) {
                (0, _) => rounds,
                (256, 1..) => mix(page ^ (rounds << 32)),
                _ => mix(page * WORDS + index),
            };
            sum = (sum ^ word).wrapping_mul(0x100_0000_01B3).rotate_left(17);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_page_has_its_turn_in_a_round() {
        for pages in [1, 256, 768] {
            assert!(rounds_of_pages(pages, 2 * pages).iter().all(|n| *n == 2));
            let half = rounds_of_pages(pages, pages / 2);
            assert_eq!(half.iter().sum::<u64>(), pages / 2);
            assert!(half.iter().all(|n| *n < 2), "no page twice in a round");
        }
    }

    #[test]
    fn rows_are_counted_and_the_table_is_known() {
        let tables = Tables {
            tasks: 1,
            mib: 1,
            count: 1,
        };
        let row = json!({"subtask": 0, "n": 0, "writes": 0, "checksum": null});
        let last = |sum: u64| json!({"subtask": 0, "n": 1, "writes": 300, "checksum": sum});
        let truth = last(checksum(1, 300));
        tables.check(&[row.clone(), truth.clone()]).expect("exact");
        let doubled = [row.clone(), truth.clone(), row.clone()];
        tables.check_all(&doubled).expect("nothing is lost");
        assert!(tables.check(&doubled).is_err());
        assert!(tables.check_all(&[truth]).is_err());
        assert!(tables.check(&[row, last(1)]).is_err());
    }
}
