//! What is measured: sizes of state, and how much of them is written.

use std::fmt;

use super::{Arguments, PAGES_PER_MIB};

/// A size of state and how much of it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) tasks: u64,
    pub(super) mib_per_task: u64,
    /// Of the pages, each second.
    pub(super) percent: u64,
    /// How often a number is mixed for each record.
    pub(super) mixes: u32,
    /// Neither job has checkpoints.
    pub(super) is_null: bool,
}

impl Row {
    pub(super) const fn state_mib(self) -> u64 {
        self.tasks * self.mib_per_task
    }

    /// Whether two jobs of this size can be there at once.
    pub(super) const fn takes_turns(self) -> bool {
        self.state_mib() <= 1024
    }

    /// Pages that each task writes in a second.
    pub(super) const fn writes(self) -> u64 {
        self.mib_per_task * PAGES_PER_MIB * self.percent / 100
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = match self.state_mib() {
            mib if mib >= 1024 => format!("{} GiB", mib / 1024),
            mib => format!("{mib} MiB"),
        };
        write!(f, "{size} in {} task(s), {} %/s", self.tasks, self.percent)?;
        f.write_str(if self.is_null { ", none in either" } else { "" })
    }
}

/// Every row, the quickest first. Memory is 32-bit, so that 8 GiB take several tasks.
pub(super) fn rows(arguments: &Arguments) -> Vec<Row> {
    let sizes = [(1, 64), (1, 1024), (8, 1024)];
    let all = sizes.into_iter().flat_map(|(tasks, mib_per_task)| {
        [1, 10, 100]
            .into_iter()
            .flat_map(move |percent| [false, true].map(|is_null| (percent, is_null)))
            .map(move |(percent, is_null)| Row {
                tasks,
                mib_per_task,
                percent,
                mixes: arguments.mixes,
                is_null,
            })
    });
    let wanted = |list: &[u64], value| list.is_empty() || list.contains(&value);
    all.filter(|row| {
        wanted(&arguments.sizes_mib, row.state_mib())
            && wanted(&arguments.percents, row.percent)
            && (!row.is_null || arguments.null && row.takes_turns())
            && (!arguments.quick || row.state_mib() * row.percent <= 6400)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(quick: bool) -> Arguments {
        Arguments {
            quick,
            sizes_mib: Vec::new(),
            percents: Vec::new(),
            seconds: 8,
            rounds: 2,
            mixes: 0,
            null: false,
            binary: None,
        }
    }

    #[test]
    fn quick_rows_are_the_small_ones() {
        assert_eq!(rows(&arguments(false)).len(), 9);
        let quick: Vec<String> = rows(&arguments(true)).iter().map(Row::to_string).collect();
        assert_eq!(
            quick,
            [
                "64 MiB in 1 task(s), 1 %/s",
                "64 MiB in 1 task(s), 10 %/s",
                "64 MiB in 1 task(s), 100 %/s",
                "1 GiB in 1 task(s), 1 %/s"
            ]
        );
        let only = Arguments {
            sizes_mib: vec![8192],
            percents: vec![10],
            ..arguments(false)
        };
        assert_eq!(rows(&only)[0].writes(), 26_214);
    }
}
