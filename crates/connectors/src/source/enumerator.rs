//! Hands out the splits of a source: lists the input once, cuts it as splits are asked for, and tells each subtask when
//! there are no more. A native task of parallelism 1 runs it. It never reads a file's bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tidemill_abi::ConnectorSpec;
use tidemill_protocol::codec::{self, Versioned};
use tidemill_protocol::split::SplitAssignment;

use super::files::SPLITS_AT_HAND;
use super::split::FileSplit;
use crate::SourceError;
use crate::options::{SPLIT_DEFAULT_MAX_BYTES, SPLIT_DEFAULT_MIN_BYTES, SourceOptions};
use crate::path::list_input;

/// Splits that each subtask gets of a small input, when the size of splits is not given.
const SPLITS_PER_SUBTASK: u64 = 4;

/// Hands out the splits of one source.
#[derive(Debug)]
pub struct Enumerator {
    state: State,
    /// The subtask that was served last: the next one in turn is served first.
    served_last: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    /// Path and length of each file of which something is unassigned.
    files: Vec<(Vec<u8>, u64)>,
    /// How many of `files` are done. Always 0 when encoded.
    files_done: usize,
    /// Where the next split begins in the first file that is not done.
    next_offset: u64,
    next_id: u64,
    split_bytes: u64,
    subtasks: Vec<Subtask>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Subtask {
    assigned_total: u64,
    wanted_total: u64,
    no_more_sent: bool,
}

impl Versioned for State {
    const KIND: [u8; 2] = *b"EN";
    const VERSION: u16 = 1;
    const NAME: &'static str = "state of a split enumerator";
}

impl State {
    fn is_sound(&self) -> bool {
        let offset_max = self
            .files
            .first()
            .map_or(0, |(_, length)| length.saturating_sub(1));
        self.files_done == 0
            && self.files.iter().all(|(_, length)| *length > 0)
            && self.next_offset <= offset_max
            && self.split_bytes > 0
            && self.subtasks.iter().all(|subtask| subtask.is_sound())
    }
}

impl Subtask {
    fn is_sound(&self) -> bool {
        (self.assigned_total..=self.assigned_total.saturating_add(SPLITS_AT_HAND))
            .contains(&self.wanted_total)
    }
}

impl Enumerator {
    /// Lists the input. Every subtask is owed two splits without asking: one to read and one in reserve.
    ///
    /// # Errors
    /// When the options are wrong, the source has no splits, or the input does not exist or cannot be listed.
    pub fn start(spec: &ConnectorSpec, subtasks: u32) -> Result<Self, SourceError> {
        let SourceOptions::Files(options) = SourceOptions::parse(spec)? else {
            return Err(SourceError::Assignment {
                reason: format!("the source `{}` has no splits", spec.kind),
            });
        };
        let listed = list_input(&options.path)?;
        let total: u64 = listed.iter().map(|file| file.length_bytes).sum();
        let files: Vec<_> = listed
            .into_iter()
            .filter(|file| file.length_bytes > 0)
            .map(|file| (file.path.into_os_string().into_vec(), file.length_bytes))
            .collect();
        tracing::info!(path = %options.path.display(), files = files.len(), bytes = total, "listed the input");
        let split_bytes = options.split_bytes.unwrap_or_else(|| {
            (total / (u64::from(subtasks.max(1)) * SPLITS_PER_SUBTASK))
                .clamp(SPLIT_DEFAULT_MIN_BYTES, SPLIT_DEFAULT_MAX_BYTES)
        });
        let owed = Subtask {
            assigned_total: 0,
            wanted_total: SPLITS_AT_HAND,
            no_more_sent: false,
        };
        Ok(Self::new(State {
            files,
            files_done: 0,
            next_offset: 0,
            next_id: 0,
            split_bytes,
            subtasks: vec![owed; subtasks as usize],
        }))
    }

    /// An enumerator that goes on where [`Enumerator::state`] was taken. The input is not listed again.
    ///
    /// # Errors
    /// When the options are wrong, or the state is not an enumerator's.
    pub fn restore(spec: &ConnectorSpec, state: &[u8]) -> Result<Self, SourceError> {
        SourceOptions::parse(spec)?;
        let state: State = codec::decode(state).map_err(|error| SourceError::state(&error))?;
        if !state.is_sound() {
            return Err(SourceError::State {
                reason: "it contradicts itself".into(),
            });
        }
        Ok(Self::new(state))
    }

    fn new(state: State) -> Self {
        Self {
            served_last: state.subtasks.len().saturating_sub(1),
            state,
        }
    }

    /// The unassigned splits, and what each subtask was assigned.
    #[must_use]
    pub fn state(&self) -> Vec<u8> {
        let mut state = self.state.clone();
        state.files.drain(..state.files_done);
        state.files_done = 0;
        codec::encode(&state)
    }

    /// A hint that a subtask wants to have been assigned this many splits in all. May be lost or come twice; one that
    /// asks for more than is useful, or comes from a subtask that is not there, is cut to what is sensible.
    pub fn request(&mut self, subtask: u32, wanted_total: u64) {
        if let Some(subtask) = self.state.subtasks.get_mut(subtask as usize) {
            let sensible = wanted_total.min(subtask.assigned_total.saturating_add(SPLITS_AT_HAND));
            subtask.wanted_total = subtask.wanted_total.max(sensible);
        }
    }

    /// The next assignment to send, and to which subtask: splits to those that want some, in turn, and once there are
    /// none left [`SplitAssignment::NoMore`] to every subtask. `None` until something is requested.
    pub fn poll(&mut self) -> Option<(u32, SplitAssignment)> {
        let subtasks = self.state.subtasks.len();
        let in_turn = (1..=subtasks).map(|step| (self.served_last + step) % subtasks);
        let assignment = if self.state.files_done < self.state.files.len() {
            let wants = |subtask: &Subtask| subtask.assigned_total < subtask.wanted_total;
            let index = in_turn
                .into_iter()
                .find(|index| wants(&self.state.subtasks[*index]))?;
            self.served_last = index;
            self.state.subtasks[index].assigned_total += 1;
            (index, self.cut())
        } else {
            let index = in_turn
                .into_iter()
                .find(|index| !self.state.subtasks[*index].no_more_sent)?;
            self.state.subtasks[index].no_more_sent = true;
            (index, SplitAssignment::NoMore)
        };
        let (index, assignment) = assignment;
        Some((index as u32, assignment))
    }

    /// Cuts the next split off the first file that is not done.
    fn cut(&mut self) -> SplitAssignment {
        let state = &mut self.state;
        let (path, length) = &state.files[state.files_done];
        let start = state.next_offset;
        let end = start.saturating_add(state.split_bytes).min(*length);
        let path = PathBuf::from(OsString::from_vec(path.clone()));
        let description = FileSplit::new(&path, *length, start, end).encode();
        let id = state.next_id;
        state.next_id = state.next_id.wrapping_add(1);
        state.next_offset = end;
        if end == *length {
            state.files_done += 1;
            state.next_offset = 0;
        }
        SplitAssignment::Split { id, description }
    }

    /// Whether every subtask has been told that there are no more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state
            .subtasks
            .iter()
            .all(|subtask| subtask.no_more_sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    fn spec(path: &std::path::Path, split_bytes: Option<&str>) -> ConnectorSpec {
        let mut options = vec![("path", path.to_str().expect("it is UTF-8"))];
        options.extend(split_bytes.map(|bytes| ("split_bytes", bytes)));
        ConnectorSpec {
            kind: "files".into(),
            options: options
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        }
    }

    fn drain(enumerator: &mut Enumerator) -> Vec<(u32, Option<u64>)> {
        let next = |enumerator: &mut Enumerator| enumerator.poll();
        std::iter::from_fn(|| next(enumerator))
            .map(|(subtask, assignment)| match assignment {
                SplitAssignment::Split { id, .. } => (subtask, Some(id)),
                SplitAssignment::NoMore => (subtask, None),
            })
            .collect()
    }

    #[test]
    fn two_splits_each_then_as_requested_then_no_more() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("a"), [b'a'; 35]).expect("a small file");
        fs::write(directory.path().join("b"), [b'b'; 25]).expect("a small file");
        fs::write(directory.path().join("empty"), "").expect("a small file");
        let spec = spec(directory.path(), Some("10"));
        let mut enumerator = Enumerator::start(&spec, 2).expect("the input exists");

        let owed = [(0, Some(0)), (1, Some(1)), (0, Some(2)), (1, Some(3))];
        assert_eq!(drain(&mut enumerator), owed);
        enumerator.request(1, 3);
        enumerator.request(1, 3);
        enumerator.request(1, 2);
        enumerator.request(7, 100);
        assert_eq!(
            drain(&mut enumerator),
            [(1, Some(4))],
            "a repeated hint is the same hint"
        );
        assert!(!enumerator.is_done());

        let mut enumerator =
            Enumerator::restore(&spec, &enumerator.state()).expect("its own state");
        assert_eq!(drain(&mut enumerator), []);
        enumerator.request(0, u64::MAX);
        assert_eq!(
            drain(&mut enumerator),
            [(0, Some(5)), (0, Some(6)), (1, None), (0, None)],
            "a request beyond what is sensible is cut, and the end is told to all"
        );
        assert!(enumerator.is_done());
        let mut enumerator =
            Enumerator::restore(&spec, &enumerator.state()).expect("its own state");
        assert!(enumerator.is_done());
        enumerator.request(0, 9);
        assert_eq!(drain(&mut enumerator), []);
    }

    #[test]
    fn an_empty_input_ends_at_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut enumerator =
            Enumerator::start(&spec(directory.path(), None), 2).expect("it exists");
        assert_eq!(drain(&mut enumerator), [(0, None), (1, None)]);
        assert!(enumerator.is_done());
    }

    #[test]
    fn a_small_input_is_cut_so_that_every_subtask_gets_some() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("a"), vec![b'a'; 4 << 20]).expect("a file");
        let enumerator = Enumerator::start(&spec(directory.path(), None), 4).expect("it exists");
        assert_eq!(enumerator.state.split_bytes, 256 << 10);
        let enumerator = Enumerator::start(&spec(directory.path(), None), 4096).expect("it exists");
        assert_eq!(enumerator.state.split_bytes, 64 << 10);
    }

    #[test]
    fn a_missing_input_and_a_source_without_splits_are_named() {
        let missing = spec("/nonexistent/input".as_ref(), None);
        let error = Enumerator::start(&missing, 1).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/input"), "{error}");
        let generator = ConnectorSpec {
            kind: "generator".into(),
            options: [].into(),
        };
        let error = Enumerator::start(&generator, 1).unwrap_err();
        assert!(
            error.to_string().contains("`generator` has no splits"),
            "{error}"
        );
    }

    #[test]
    fn a_path_keeps_its_bytes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory
            .path()
            .join(OsString::from_vec(b"caf\xe9".to_vec()));
        fs::write(&path, "x").expect("a small file");
        let mut enumerator =
            Enumerator::start(&spec(directory.path(), None), 1).expect("it exists");
        let Some((0, SplitAssignment::Split { description, .. })) = enumerator.poll() else {
            panic!("there is one split");
        };
        let split = FileSplit::decode(&description).expect("its own encoding");
        assert_eq!(
            split.path().as_os_str().as_bytes(),
            path.as_os_str().as_bytes()
        );
    }
}
