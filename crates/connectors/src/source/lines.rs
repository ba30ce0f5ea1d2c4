//! Reads the lines of one file split. A line ends with `\n` or `\r\n`, neither of which is part of the record; the last
//! one may end with the file. What a line's bytes mean is not looked at.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use memchr::memchr;
use tidemill_abi::framed;

use super::split::FileSplit;
use super::{BATCH_BYTES, BATCH_RECORDS_MAX};
use crate::SourceError;

const BUFFER_BYTES: usize = 256 << 10;

/// A split that is being read.
#[derive(Debug)]
pub(crate) struct LineReader {
    split: FileSplit,
    path: PathBuf,
    line_max_bytes: usize,
    /// Where the next line begins; `None` until the first one that belongs to the split is found.
    position: Option<u64>,
    file: Option<BufReader<File>>,
    /// The part of a line that lay in an earlier buffer.
    partial: Vec<u8>,
}

/// What one call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) records: u32,
    /// The split has no further line.
    pub(crate) finished: bool,
}

impl LineReader {
    /// A reader of a sound split, from its start or from a position at which a reader once stood.
    pub(crate) fn new(split: FileSplit, position: Option<u64>, line_max_bytes: usize) -> Self {
        Self {
            path: split.path(),
            split,
            line_max_bytes,
            position,
            file: None,
            partial: Vec::new(),
        }
    }

    pub(crate) fn split(&self) -> &FileSplit {
        &self.split
    }

    pub(crate) fn position(&self) -> Option<u64> {
        self.position
    }

    /// Appends lines until the batch is full, `records_max` is reached or the split ends.
    pub(crate) fn read(
        &mut self,
        records_max: u32,
        batch: &mut Vec<u8>,
    ) -> Result<Progress, SourceError> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let mut position = match self.position {
            Some(position) => position,
            None => self.first_line(&mut file)?,
        };
        let full = batch.len().saturating_add(BATCH_BYTES);
        let records_max = records_max.min(BATCH_RECORDS_MAX);
        let mut records = 0;
        while position < self.split.end && records < records_max && batch.len() < full {
            position = self.line(&mut file, position, batch)?;
            records += 1;
        }
        self.position = Some(position);
        self.file = Some(file);
        Ok(Progress {
            records,
            finished: position >= self.split.end,
        })
    }

    /// Opens the file at the position, or at the byte before the split: a newline there begins a line in it.
    fn open(&self) -> Result<BufReader<File>, SourceError> {
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SourceError::Disappeared {
                path: self.path.clone(),
            },
            _ => self.io_error("open", error),
        })?;
        let metadata = file
            .metadata()
            .map_err(|error| self.io_error("look at", error))?;
        if metadata.len() < self.split.length_bytes {
            return Err(self.shrunk(metadata.len()));
        }
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        let from = self.position.unwrap_or(self.split.start.saturating_sub(1));
        file.seek(SeekFrom::Start(from))
            .map_err(|error| self.io_error("read", error))?;
        Ok(file)
    }

    /// Passes over the end of the line that belongs to the split before; where the next one begins, at most at the
    /// split's end.
    fn first_line(&self, file: &mut BufReader<File>) -> Result<u64, SourceError> {
        if self.split.start == 0 {
            return Ok(0);
        }
        let mut position = self.split.start - 1;
        while position < self.split.end {
            let bytes = self.fill(file, position)?;
            let (used, found) = match memchr(b'\n', bytes) {
                Some(index) => (index + 1, true),
                None => (bytes.len(), false),
            };
            file.consume(used);
            position += used as u64;
            if found {
                return Ok(position);
            }
        }
        Ok(self.split.end)
    }

    /// Appends the line that begins at `start`; where the next one begins.
    fn line(
        &mut self,
        file: &mut BufReader<File>,
        start: u64,
        batch: &mut Vec<u8>,
    ) -> Result<u64, SourceError> {
        self.partial.clear();
        let mut position = start;
        while position < self.split.length_bytes {
            let bytes = self.fill(file, position)?;
            let newline = memchr(b'\n', bytes);
            let part = &bytes[..newline.unwrap_or(bytes.len())];
            if self.partial.len() + part.len() > self.line_max_bytes {
                return Err(SourceError::LineTooLong {
                    path: self.path.clone(),
                    offset: start,
                    max_bytes: self.line_max_bytes,
                });
            }
            if newline.is_some() && self.partial.is_empty() {
                framed::push(batch, without_return(part));
            } else {
                self.partial.extend_from_slice(part);
            }
            let used = part.len() + usize::from(newline.is_some());
            position += used as u64;
            file.consume(used);
            if newline.is_some() {
                if !self.partial.is_empty() {
                    framed::push(batch, without_return(&self.partial));
                }
                return Ok(position);
            }
        }
        framed::push(batch, &self.partial);
        Ok(position)
    }

    /// The bytes at `position`, at least one, none of them beyond the length at listing.
    fn fill<'a>(
        &self,
        file: &'a mut BufReader<File>,
        position: u64,
    ) -> Result<&'a [u8], SourceError> {
        let bytes = file
            .fill_buf()
            .map_err(|error| self.io_error("read", error))?;
        if bytes.is_empty() {
            return Err(self.shrunk(position));
        }
        let rest = self.split.length_bytes - position;
        Ok(&bytes[..bytes.len().min(usize::try_from(rest).unwrap_or(usize::MAX))])
    }

    fn shrunk(&self, found_bytes: u64) -> SourceError {
        SourceError::Shrunk {
            path: self.path.clone(),
            expected_bytes: self.split.length_bytes,
            found_bytes,
        }
    }

    fn io_error(&self, action: &'static str, source: io::Error) -> SourceError {
        SourceError::Io {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Input {
        _directory: tempfile::TempDir,
        path: PathBuf,
    }

    fn input(bytes: &[u8]) -> Input {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("input");
        fs::write(&path, bytes).expect("a small file");
        Input {
            _directory: directory,
            path,
        }
    }

    fn read_all(
        input: &Input,
        length: u64,
        start: u64,
        end: u64,
    ) -> Result<Vec<Vec<u8>>, SourceError> {
        let split = FileSplit::new(&input.path, length, start, end);
        let mut reader = LineReader::new(split, None, 1 << 20);
        let mut batch = Vec::new();
        while !reader.read(u32::MAX, &mut batch)?.finished {}
        Ok(framed::records(&batch)
            .map(|record| record.expect("framed").to_vec())
            .collect())
    }

    fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
        let input = input(bytes);
        read_all(&input, bytes.len() as u64, 0, bytes.len() as u64).expect("readable")
    }

    #[test]
    fn both_line_ends_a_missing_last_one_and_any_bytes() {
        assert_eq!(lines(b"a\r\nb\n\n\r\nc"), [&b"a"[..], b"b", b"", b"", b"c"]);
        assert_eq!(lines(b"a\n"), [b"a"]);
        assert_eq!(lines(b"\n"), [b""]);
        assert_eq!(lines(b"\xff\xfe\0\n\xc3"), [&b"\xff\xfe\0"[..], b"\xc3"]);
        assert_eq!(lines(b"x\ry\r"), [b"x\ry\r"], "a return alone ends no line");
    }

    #[test]
    fn a_line_longer_than_every_buffer_is_whole() {
        let long = vec![b'x'; BUFFER_BYTES * 2 + 17];
        let mut bytes = long.clone();
        bytes.extend_from_slice(b"\r\nshort\n");
        bytes.extend_from_slice(&long);
        assert_eq!(lines(&bytes), [&long[..], b"short", &long[..]]);
        // The return and the newline lie in different buffers.
        let mut bytes = vec![b'y'; BUFFER_BYTES - 1];
        bytes.extend_from_slice(b"\r\nz");
        assert_eq!(lines(&bytes), [&vec![b'y'; BUFFER_BYTES - 1][..], b"z"]);
        // A line of exactly one buffer, then its newline.
        let mut bytes = vec![b'y'; BUFFER_BYTES];
        bytes.extend_from_slice(b"\nz");
        assert_eq!(lines(&bytes), [&vec![b'y'; BUFFER_BYTES][..], b"z"]);
    }

    #[test]
    fn a_line_belongs_to_the_split_that_holds_its_first_byte() {
        let text = b"one\ntwo\nthree\n";
        let input = input(text);
        let read = |start, end| read_all(&input, 14, start, end).expect("readable");
        assert_eq!(read(0, 4), [b"one"]);
        assert_eq!(read(4, 5), [b"two"]);
        assert_eq!(read(3, 4), Vec::<Vec<u8>>::new());
        assert_eq!(read(9, 14), Vec::<Vec<u8>>::new(), "inside the last line");
        assert_eq!(read(1, 9), [&b"two"[..], b"three"]);
    }

    #[test]
    fn too_long_a_line_names_the_file_and_the_offset() {
        let input = input(b"ok\n12345678901\n");
        let split = FileSplit::new(&input.path, 15, 0, 15);
        let mut reader = LineReader::new(split, None, 10);
        let message = reader.read(9, &mut Vec::new()).unwrap_err().to_string();
        assert!(message.contains("the line at byte 3 of"), "{message}");
        assert!(
            message.contains(input.path.to_str().expect("it is UTF-8")),
            "{message}"
        );
        assert!(message.contains("line_max_bytes"), "{message}");
    }

    #[test]
    fn a_file_that_changed_after_listing() {
        let input = input(b"one\ntwo\n");
        let grown = read_all(&input, 6, 0, 6).expect("what was listed is there");
        assert_eq!(grown, [&b"one"[..], b"tw"], "only what was listed is read");
        let error = read_all(&input, 9, 0, 9).unwrap_err();
        assert!(
            matches!(
                error,
                SourceError::Shrunk {
                    expected_bytes: 9,
                    found_bytes: 8,
                    ..
                }
            ),
            "{error}"
        );
        fs::remove_file(&input.path).expect("it was there");
        let error = read_all(&input, 8, 0, 8).unwrap_err();
        assert!(matches!(error, SourceError::Disappeared { .. }), "{error}");
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read() {
        let mut bytes = Vec::new();
        while bytes.len() < 2 * BUFFER_BYTES {
            bytes.extend_from_slice(b"a line of some length\n");
        }
        let input = input(&bytes);
        let split = FileSplit::new(&input.path, bytes.len() as u64, 0, bytes.len() as u64);
        let mut reader = LineReader::new(split, None, 1 << 20);
        reader.read(1, &mut Vec::new()).expect("the file is whole");
        fs::write(&input.path, b"gone").expect("writable");
        let error = loop {
            match reader.read(u32::MAX, &mut Vec::new()) {
                Ok(progress) => assert!(!progress.finished, "not all of it can be read"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SourceError::Shrunk { .. }), "{error}");
    }
}
