//! The source `generator`: the numbers 0, 1, 2, … dealt over the subtasks in turn, each as eight little-endian bytes.
//! Its state is the next number.

use serde::{Deserialize, Serialize};
use tidemill_abi::framed;
use tidemill_protocol::codec::{self, Versioned};

use super::pace::{Allowance, Pace};
use super::{BATCH_RECORDS_MAX, ReadOutcome};
use crate::SourceError;
use crate::options::GeneratorOptions;

#[derive(Debug)]
pub(crate) struct Generator {
    subtask: u32,
    parallelism: u32,
    /// The first number that is not made; `u64::MAX` when unbounded, which no job lives to see.
    end: u64,
    next: u64,
    pace: Pace,
}

#[derive(Serialize, Deserialize)]
struct State {
    subtask: u32,
    parallelism: u32,
    next: u64,
}

impl Versioned for State {
    const KIND: [u8; 2] = *b"GR";
    const VERSION: u16 = 1;
    const NAME: &'static str = "state of a generator source";
}

impl Generator {
    pub(crate) fn start(options: &GeneratorOptions, subtask: u32, parallelism: u32) -> Self {
        Self {
            subtask,
            parallelism: parallelism.max(1),
            end: if options.count == 0 {
                u64::MAX
            } else {
                options.count
            },
            next: subtask.into(),
            pace: Pace::new(options.rate, parallelism),
        }
    }

    pub(crate) fn restore(
        options: &GeneratorOptions,
        subtask: u32,
        parallelism: u32,
        state: &[u8],
    ) -> Result<Self, SourceError> {
        let state: State = codec::decode(state).map_err(|error| SourceError::state(&error))?;
        if (state.subtask, state.parallelism) != (subtask, parallelism) {
            return Err(SourceError::State {
                reason: format!(
                    "it is of subtask {} of {}, not of subtask {subtask} of {parallelism}",
                    state.subtask, state.parallelism
                ),
            });
        }
        Ok(Self {
            next: state.next,
            ..Self::start(options, subtask, parallelism)
        })
    }

    pub(crate) fn state(&self) -> Vec<u8> {
        codec::encode(&State {
            subtask: self.subtask,
            parallelism: self.parallelism,
            next: self.next,
        })
    }

    pub(crate) fn read(&mut self, now_ms: u64, batch: &mut Vec<u8>) -> ReadOutcome {
        if self.next >= self.end {
            return ReadOutcome::Ended;
        }
        let records_max = match self.pace.allowance(now_ms) {
            Allowance::Records(records) => records.min(BATCH_RECORDS_MAX),
            Allowance::At { until_ms } => return ReadOutcome::Wait { until_ms },
        };
        let mut records = 0;
        while records < records_max && self.next < self.end {
            framed::push(batch, &self.next.to_le_bytes());
            self.next = self.next.saturating_add(self.parallelism.into());
            records += 1;
        }
        self.pace.spend(records);
        ReadOutcome::Batch {
            split: self.subtask.into(),
            records,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(batch: &[u8]) -> Vec<u64> {
        framed::records(batch)
            .map(|record| {
                let bytes = record.expect("framed").try_into().expect("eight bytes");
                u64::from_le_bytes(bytes)
            })
            .collect()
    }

    #[test]
    fn every_number_comes_once_from_some_subtask_across_restores() {
        let options = GeneratorOptions {
            count: 20_001,
            rate: 0,
        };
        let mut all = Vec::new();
        for subtask in 0..3 {
            let mut generator = Generator::start(&options, subtask, 3);
            loop {
                let mut batch = Vec::new();
                match generator.read(0, &mut batch) {
                    ReadOutcome::Batch { split, records } => {
                        assert_eq!(split, u64::from(subtask));
                        assert_eq!(numbers(&batch).len(), records as usize);
                        all.extend(numbers(&batch));
                    }
                    ReadOutcome::Ended => break,
                    other => panic!("an unlimited generator answered {other:?}"),
                }
                let state = generator.state();
                generator =
                    Generator::restore(&options, subtask, 3, &state).expect("its own state");
            }
        }
        all.sort_unstable();
        assert!(all.into_iter().eq(0..20_001));
    }

    #[test]
    fn the_rate_is_shared_by_the_subtasks() {
        let options = GeneratorOptions {
            count: 0,
            rate: 4000,
        };
        let mut generator = Generator::start(&options, 1, 4);
        let (mut now_ms, mut batch) = (0, Vec::new());
        while now_ms < 2000 {
            if let ReadOutcome::Wait { until_ms } = generator.read(now_ms, &mut batch) {
                now_ms = until_ms;
            }
        }
        let made = numbers(&batch).len();
        assert!((1980..=2000).contains(&made), "{made}");
    }

    #[test]
    fn the_last_numbers_there_are_end_the_source() {
        let options = GeneratorOptions { count: 0, rate: 0 };
        let state = codec::encode(&State {
            subtask: 0,
            parallelism: 7,
            next: u64::MAX - 3,
        });
        let mut generator = Generator::restore(&options, 0, 7, &state).expect("a state");
        let mut batch = Vec::new();
        assert_eq!(
            generator.read(0, &mut batch),
            ReadOutcome::Batch {
                split: 0,
                records: 1
            }
        );
        assert_eq!(generator.read(0, &mut batch), ReadOutcome::Ended);
    }

    #[test]
    fn a_state_of_another_subtask_or_of_nothing_is_refused() {
        let options = GeneratorOptions { count: 0, rate: 0 };
        let state = Generator::start(&options, 0, 2).state();
        for (subtask, parallelism) in [(1, 2), (0, 3)] {
            let error = Generator::restore(&options, subtask, parallelism, &state).unwrap_err();
            assert!(error.to_string().contains("subtask 0 of 2"), "{error}");
        }
        assert!(Generator::restore(&options, 0, 2, b"").is_err());
    }
}
