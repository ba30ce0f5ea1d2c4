//! The reader of the source `files` within one task: a split that is being read, and those received but not begun.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::split::SplitAssignment;

use super::ReadOutcome;
use super::lines::LineReader;
use super::pace::{Allowance, Pace};
use super::split::FileSplit;
use crate::SourceError;
use crate::options::FilesSourceOptions;

/// Splits that a task wants at hand: the one it reads and one in reserve.
pub(crate) const SPLITS_AT_HAND: u64 = 2;

#[derive(Debug)]
pub(crate) struct FilesReader {
    line_max_bytes: usize,
    pace: Pace,
    received_total: u64,
    no_more: bool,
    queue: VecDeque<(u64, FileSplit)>,
    current: Option<(u64, LineReader)>,
}

#[derive(Serialize, Deserialize)]
struct State {
    received_total: u64,
    no_more: bool,
    queue: Vec<(u64, FileSplit)>,
    current: Option<(u64, FileSplit, Option<u64>)>,
}

impl Versioned for State {
    const KIND: [u8; 2] = *b"FR";
    const VERSION: u16 = 1;
    const NAME: &'static str = "state of a file source";
}

impl State {
    fn is_sound(&self) -> bool {
        let current = self.current.iter().all(|(_, split, position)| {
            let in_file = |position| (split.start..=split.length_bytes).contains(&position);
            split.is_sound() && position.is_none_or(in_file)
        });
        let at_hand = self.queue.len() as u64 + u64::from(self.current.is_some());
        current
            && self.queue.iter().all(|(_, split)| split.is_sound())
            && at_hand <= self.received_total
    }
}

impl FilesReader {
    pub(crate) fn start(options: &FilesSourceOptions) -> Self {
        Self {
            line_max_bytes: options.line_max_bytes,
            pace: Pace::new(options.rate_per_second, 1),
            received_total: 0,
            no_more: false,
            queue: VecDeque::new(),
            current: None,
        }
    }

    pub(crate) fn restore(options: &FilesSourceOptions, state: &[u8]) -> Result<Self, SourceError> {
        let state: State = codec::decode(state).map_err(|error| SourceError::state(&error))?;
        if !state.is_sound() {
            return Err(SourceError::State {
                reason: "it contradicts itself".into(),
            });
        }
        let current = state.current.map(|(id, split, position)| {
            (id, LineReader::new(split, position, options.line_max_bytes))
        });
        Ok(Self {
            received_total: state.received_total,
            no_more: state.no_more,
            queue: state.queue.into(),
            current,
            ..Self::start(options)
        })
    }

    pub(crate) fn state(&self) -> Vec<u8> {
        codec::encode(&State {
            received_total: self.received_total,
            no_more: self.no_more,
            queue: self.queue.iter().cloned().collect(),
            current: self
                .current
                .as_ref()
                .map(|(id, reader)| (*id, reader.split().clone(), reader.position())),
        })
    }

    pub(crate) fn assign(&mut self, assignment: SplitAssignment) -> Result<(), SourceError> {
        let failed = |reason: String| Err(SourceError::Assignment { reason });
        if self.no_more {
            return failed("it comes after the last one".into());
        }
        match assignment {
            SplitAssignment::NoMore => self.no_more = true,
            SplitAssignment::Split { id, description } => match FileSplit::decode(&description) {
                Ok(split) => {
                    self.received_total += 1;
                    self.queue.push_back((id, split));
                }
                Err(error) => return failed(error.to_string()),
            },
        }
        Ok(())
    }

    pub(crate) fn wanted_total(&self) -> u64 {
        let at_hand = self.queue.len() as u64 + u64::from(self.current.is_some());
        let missing = if self.no_more {
            0
        } else {
            SPLITS_AT_HAND.saturating_sub(at_hand)
        };
        self.received_total.saturating_add(missing)
    }

    pub(crate) fn read(
        &mut self,
        now_ms: u64,
        batch: &mut Vec<u8>,
    ) -> Result<ReadOutcome, SourceError> {
        loop {
            let (id, mut reader) = match self.current.take() {
                Some(current) => current,
                None => match self.queue.pop_front() {
                    Some((id, split)) => (id, LineReader::new(split, None, self.line_max_bytes)),
                    None if self.no_more => return Ok(ReadOutcome::Ended),
                    None => return Ok(ReadOutcome::NeedSplit),
                },
            };
            let records_max = match self.pace.allowance(now_ms) {
                Allowance::Records(records) => records,
                Allowance::At { until_ms } => {
                    self.current = Some((id, reader));
                    return Ok(ReadOutcome::Wait { until_ms });
                }
            };
            let progress = reader.read(records_max, batch)?;
            if !progress.finished {
                self.current = Some((id, reader));
            }
            if progress.records > 0 {
                self.pace.spend(progress.records);
                return Ok(ReadOutcome::Batch {
                    split: id,
                    records: progress.records,
                });
            }
        }
    }
}
