//! Sources: [`Enumerator`] hands out splits, [`SourceReader`] turns them into batches of framed records. Both are plain
//! values whose state can be saved between any two calls and restored elsewhere.

mod enumerator;
mod files;
mod generator;
mod lines;
mod pace;
mod split;

pub use enumerator::Enumerator;

use tidemill_abi::ConnectorSpec;
use tidemill_protocol::split::SplitAssignment;

use crate::SourceError;
use crate::options::SourceOptions;
use files::FilesReader;
use generator::Generator;

/// A batch is closed at this size. One record may take it beyond.
pub(crate) const BATCH_BYTES: usize = 64 << 10;
/// A batch is closed at this number of records.
pub(crate) const BATCH_RECORDS_MAX: u32 = 4096;

/// What one call of [`SourceReader::read`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Records were appended to the batch.
    Batch {
        /// The split that they come from.
        split: u64,
        /// How many; never 0.
        records: u32,
    },
    /// Nothing to read until a split is assigned. Ask for [`SourceReader::wanted_total`], now and again after a while,
    /// since requests may be lost.
    NeedSplit,
    /// The rate allows no record before this time, in the milliseconds of `now_ms`.
    Wait {
        /// When to read again.
        until_ms: u64,
    },
    /// There will never be more.
    Ended,
}

/// Reads a native source within one source task.
#[derive(Debug)]
pub struct SourceReader {
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    Files(Box<FilesReader>),
    Generator(Generator),
}

impl SourceReader {
    /// A reader that begins anew. It touches no file before the first split is read.
    ///
    /// # Errors
    /// When the options are wrong.
    pub fn start(
        spec: &ConnectorSpec,
        subtask: u32,
        parallelism: u32,
    ) -> Result<Self, SourceError> {
        let reader = match SourceOptions::parse(spec)? {
            SourceOptions::Files(options) => Reader::Files(FilesReader::start(&options).into()),
            SourceOptions::Generator(options) => {
                Reader::Generator(Generator::start(&options, subtask, parallelism))
            }
        };
        Ok(Self { reader })
    }

    /// A reader that goes on where [`SourceReader::state`] was taken.
    ///
    /// # Errors
    /// When the options are wrong, or the state is not this source's or of another parallelism.
    pub fn restore(
        spec: &ConnectorSpec,
        subtask: u32,
        parallelism: u32,
        state: &[u8],
    ) -> Result<Self, SourceError> {
        let reader = match SourceOptions::parse(spec)? {
            SourceOptions::Files(options) => {
                Reader::Files(FilesReader::restore(&options, state)?.into())
            }
            SourceOptions::Generator(options) => {
                Reader::Generator(Generator::restore(&options, subtask, parallelism, state)?)
            }
        };
        Ok(Self { reader })
    }

    /// Where reading stands: positions, splits received but not begun, and whether more may come.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        match &self.reader {
            Reader::Files(reader) => reader.state(),
            Reader::Generator(reader) => reader.state(),
        }
    }

    /// Takes what the enumerator sent.
    ///
    /// # Errors
    /// When the split is not one of this source's, or comes after [`SplitAssignment::NoMore`].
    pub fn assign(&mut self, assignment: SplitAssignment) -> Result<(), SourceError> {
        match &mut self.reader {
            Reader::Files(reader) => reader.assign(assignment),
            Reader::Generator(_) => Err(SourceError::Assignment {
                reason: "a generator has no splits".into(),
            }),
        }
    }

    /// How many splits this task wants to have received in all: what a request for more says. Equal to the number
    /// received when it wants none.
    #[must_use]
    pub fn wanted_total(&self) -> u64 {
        match &self.reader {
            Reader::Files(reader) => reader.wanted_total(),
            Reader::Generator(_) => 0,
        }
    }

    /// Appends the next records, framed, to `batch`: about 64 KiB or 4096 records, from one split.
    ///
    /// # Errors
    /// When a file cannot be read, has shrunk since it was listed, or has too long a line. The batch is then undefined.
    pub fn read(&mut self, now_ms: u64, batch: &mut Vec<u8>) -> Result<ReadOutcome, SourceError> {
        match &mut self.reader {
            Reader::Files(reader) => reader.read(now_ms, batch),
            Reader::Generator(reader) => Ok(reader.read(now_ms, batch)),
        }
    }
}

#[cfg(test)]
mod tests;
