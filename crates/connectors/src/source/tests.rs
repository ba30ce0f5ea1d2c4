//! Every line exactly once: whatever the files, the splits, the schedule, the lost requests, and wherever the enumerator
//! and its readers are cut and restored. And state that nobody wrote.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tidemill_abi::{ConnectorSpec, framed};
use tidemill_protocol::split::SplitAssignment;

use super::{Enumerator, ReadOutcome, SourceReader};

fn files(path: &Path, options: &[(&str, &str)]) -> ConnectorSpec {
    let path = ("path", path.to_str().expect("it is UTF-8"));
    ConnectorSpec {
        kind: "files".into(),
        options: options
            .iter()
            .chain([&path])
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
    }
}

/// The lines of a file, computed another way.
fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let last = lines.pop().expect("split yields at least one piece");
    for line in &mut lines {
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    lines.extend((!last.is_empty()).then_some(last));
    lines
}

/// A source with its enumerator, as a cluster would run it.
struct Cluster {
    spec: ConnectorSpec,
    enumerator: Enumerator,
    readers: Vec<SourceReader>,
    /// Assignments on their way to each reader.
    channels: Vec<VecDeque<SplitAssignment>>,
    output: Vec<Vec<u8>>,
    now_ms: u64,
}

/// A consistent cut: each reader's state after all that the enumerator had sent.
struct Cut {
    enumerator: Vec<u8>,
    readers: Vec<Vec<u8>>,
    output: usize,
}

impl Cluster {
    fn start(spec: ConnectorSpec, subtasks: u32) -> Self {
        Self {
            enumerator: Enumerator::start(&spec, subtasks).expect("the input exists"),
            readers: (0..subtasks)
                .map(|subtask| {
                    SourceReader::start(&spec, subtask, subtasks).expect("valid options")
                })
                .collect(),
            channels: (0..subtasks).map(|_| VecDeque::new()).collect(),
            spec,
            output: Vec::new(),
            now_ms: 0,
        }
    }

    fn cut(&mut self) -> Cut {
        let enumerator = self.enumerator.state();
        for (reader, channel) in self.readers.iter_mut().zip(&mut self.channels) {
            for assignment in channel.drain(..) {
                reader.assign(assignment).expect("the enumerator's own");
            }
        }
        Cut {
            enumerator,
            readers: self.readers.iter().map(SourceReader::state).collect(),
            output: self.output.len(),
        }
    }

    fn restore(&mut self, cut: &Cut) {
        let subtasks = self.readers.len() as u32;
        self.enumerator = Enumerator::restore(&self.spec, &cut.enumerator).expect("its own state");
        self.readers = (0..subtasks)
            .zip(&cut.readers)
            .map(|(subtask, state)| {
                SourceReader::restore(&self.spec, subtask, subtasks, state).expect("its own state")
            })
            .collect();
        self.channels.iter_mut().for_each(VecDeque::clear);
        self.output.truncate(cut.output);
    }

    fn send(&mut self) {
        while let Some((subtask, assignment)) = self.enumerator.poll() {
            self.channels[subtask as usize].push_back(assignment);
        }
    }

    /// One step of one reader; whether it has ended.
    fn step(&mut self, subtask: usize, request_is_lost: bool) -> bool {
        if let Some(assignment) = self.channels[subtask].pop_front() {
            self.readers[subtask]
                .assign(assignment)
                .expect("the enumerator's own");
        }
        let reader = &mut self.readers[subtask];
        let mut batch = Vec::new();
        match reader
            .read(self.now_ms, &mut batch)
            .expect("the input is readable")
        {
            ReadOutcome::Batch { records, .. } => {
                let before = self.output.len();
                let read = framed::records(&batch).map(|record| record.expect("framed").to_vec());
                self.output.extend(read);
                assert_eq!(self.output.len() - before, records as usize);
                assert!(records > 0);
            }
            ReadOutcome::NeedSplit => assert!(batch.is_empty()),
            ReadOutcome::Wait { until_ms } => {
                assert!(until_ms > self.now_ms && batch.is_empty());
                self.now_ms = until_ms;
            }
            ReadOutcome::Ended => return true,
        }
        let wanted = reader.wanted_total();
        if !request_is_lost {
            self.enumerator.request(subtask as u32, wanted);
        }
        false
    }

    fn run_to_the_end(&mut self) {
        loop {
            self.send();
            let mut ended = true;
            for subtask in 0..self.readers.len() {
                ended &= self.step(subtask, false);
            }
            if ended {
                break;
            }
        }
        assert!(self.enumerator.is_done());
    }
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..12),
        3 => Just(b"\n".to_vec()),
        2 => Just(b"\r\n".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => (0..400usize).prop_map(|length| vec![b'x'; length]),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

#[derive(Clone, Debug)]
enum Event {
    Send,
    Step {
        subtask: usize,
        request_is_lost: bool,
    },
    Cut,
    Crash,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Send),
        8 => (0..4usize, any::<bool>())
            .prop_map(|(subtask, request_is_lost)| Event::Step { subtask, request_is_lost }),
        2 => Just(Event::Cut),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_line_exactly_once_across_cuts(
        texts in prop::collection::vec(text(), 0..4),
        split_bytes in prop_oneof![1..40u64, 40..2000u64],
        rate in prop_oneof![Just(0u64), 1..5000u64],
        subtasks in 1..4u32,
        events in prop::collection::vec(event(), 0..80),
    ) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut expected = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            fs::write(directory.path().join(format!("{number}.txt")), text).expect("a small file");
            expected.extend(lines(text));
        }
        let (split_bytes, rate) = (split_bytes.to_string(), rate.to_string());
        let options = [("split_bytes", split_bytes.as_str()), ("rate_per_second", rate.as_str())];
        let mut cluster = Cluster::start(files(directory.path(), &options), subtasks);
        let mut cut = cluster.cut();
        for event in events {
            match event {
                Event::Send => cluster.send(),
                Event::Step { subtask, request_is_lost } => {
                    cluster.step(subtask % subtasks as usize, request_is_lost);
                }
                Event::Cut => cut = cluster.cut(),
                Event::Crash => cluster.restore(&cut),
            }
        }
        cluster.run_to_the_end();
        cluster.output.sort();
        expected.sort();
        prop_assert_eq!(cluster.output, expected);
    }

    #[test]
    fn hostile_state_and_splits_are_errors_or_harmless(
        noise in prop::collection::vec(any::<u8>(), 0..80),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("a"), "one\ntwo\nthree\nfour\n").expect("a small file");
        let spec = files(directory.path(), &[("split_bytes", "5")]);
        let mut cluster = Cluster::start(spec.clone(), 1);
        cluster.send();
        cluster.step(0, true);
        let cut = cluster.cut();
        let Some((_, SplitAssignment::Split { description, .. })) =
            Enumerator::start(&spec, 1).expect("the input exists").poll()
        else {
            panic!("the first assignment is a split");
        };
        let damaged = |sound: &[u8]| {
            let mut flipped = sound.to_vec();
            for (index, byte) in &flips {
                let index = index.index(flipped.len());
                flipped[index] = *byte;
            }
            [noise.clone(), [&sound[..4], &noise].concat(), flipped]
        };
        for state in damaged(&cut.enumerator) {
            if let Ok(mut enumerator) = Enumerator::restore(&spec, &state) {
                for _ in 0..100 {
                    enumerator.request(0, u64::MAX);
                    let _assignment = enumerator.poll();
                }
            }
        }
        for state in damaged(&cut.readers[0]) {
            if let Ok(mut reader) = SourceReader::restore(&spec, 0, 1, &state) {
                let _wanted = reader.wanted_total();
                let _outcome = reader.read(0, &mut Vec::new());
            }
        }
        for description in damaged(&description) {
            let mut reader = SourceReader::start(&spec, 0, 1).expect("valid options");
            if reader.assign(SplitAssignment::Split { id: 0, description }).is_ok() {
                let _outcome = reader.read(0, &mut Vec::new());
            }
        }
    }
}

#[test]
fn a_reader_keeps_one_split_in_reserve() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("a"), "one\ntwo\nthree\nfour\n").expect("a small file");
    let spec = files(directory.path(), &[("split_bytes", "4")]);
    let mut enumerator = Enumerator::start(&spec, 1).expect("the input exists");
    let mut reader = SourceReader::start(&spec, 0, 1).expect("valid options");
    let mut batch = Vec::new();
    assert_eq!(reader.wanted_total(), 2);
    assert_eq!(
        reader.read(0, &mut batch).expect("nothing to read"),
        ReadOutcome::NeedSplit
    );
    while let Some((0, assignment)) = enumerator.poll() {
        reader.assign(assignment).expect("the enumerator's own");
    }
    assert_eq!(reader.wanted_total(), 2, "two are at hand");
    let first = reader.read(0, &mut batch).expect("readable");
    assert_eq!(
        first,
        ReadOutcome::Batch {
            split: 0,
            records: 1
        }
    );
    assert_eq!(reader.wanted_total(), 3, "the first is read");
    reader
        .assign(SplitAssignment::NoMore)
        .expect("it may come at any time");
    assert_eq!(reader.wanted_total(), 2, "there are no more");
    let error = reader.assign(SplitAssignment::NoMore).unwrap_err();
    assert!(error.to_string().contains("after the last one"), "{error}");
    assert!(matches!(
        reader.read(0, &mut batch),
        Ok(ReadOutcome::Batch { split: 1, .. })
    ));
    assert_eq!(
        reader.read(0, &mut batch).expect("readable"),
        ReadOutcome::Ended
    );
}

#[test]
fn batches_are_bounded_and_the_rate_holds() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("short"), "\n".repeat(10_000)).expect("a file");
    fs::write(
        directory.path().join("wide"),
        format!("{}\n", "x".repeat(1000)).repeat(500),
    )
    .expect("a file");
    let read_all = |options: &[(&str, &str)]| {
        let mut cluster = Cluster::start(files(directory.path(), options), 1);
        let mut largest = (0, 0);
        let mut batch = Vec::new();
        loop {
            cluster.send();
            while let Some(assignment) = cluster.channels[0].pop_front() {
                cluster.readers[0]
                    .assign(assignment)
                    .expect("the enumerator's own");
            }
            batch.clear();
            match cluster.readers[0]
                .read(cluster.now_ms, &mut batch)
                .expect("readable")
            {
                ReadOutcome::Batch { records, .. } => {
                    largest = (largest.0.max(records), largest.1.max(batch.len()));
                }
                ReadOutcome::Wait { until_ms } => cluster.now_ms = until_ms,
                ReadOutcome::NeedSplit => {
                    let wanted = cluster.readers[0].wanted_total();
                    cluster.enumerator.request(0, wanted);
                }
                ReadOutcome::Ended => return (largest, cluster.now_ms),
            }
        }
    };
    let ((records, bytes), elapsed_ms) = read_all(&[]);
    assert_eq!((records, elapsed_ms), (4096, 0));
    assert!((64 << 10..(64 << 10) + 1004).contains(&bytes), "{bytes}");
    let (_, elapsed_ms) = read_all(&[("rate_per_second", "1000")]);
    assert!(
        (10_500..=10_520).contains(&elapsed_ms),
        "10,500 records at 1000 a second: {elapsed_ms} ms"
    );
}

#[test]
fn an_assignment_to_a_generator_is_refused() {
    let spec = ConnectorSpec {
        kind: "generator".into(),
        options: [].into(),
    };
    let mut reader = SourceReader::start(&spec, 0, 1).expect("valid options");
    assert_eq!(reader.wanted_total(), 0);
    assert!(reader.assign(SplitAssignment::NoMore).is_err());
}
