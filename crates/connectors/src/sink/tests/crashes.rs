//! A sink task whose process is killed, whose machine loses power, and which is replaced while it still runs, at any
//! operation on its directory; beside it a coordinator that remembers the last complete checkpoint.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidemill_protocol::{AttemptId, CheckpointId, Epoch, JobId};

use crate::SinkError;
use crate::options::{FilesSinkOptions, RecordFormat};
use crate::sink::SinkIdentity;
use crate::sink::files::FileSink;
use crate::sink::memory::MemoryDirectory;

type Sink = FileSink<MemoryDirectory>;

/// A writer in a process of its own.
struct Process {
    sink: Sink,
    directory: MemoryDirectory,
}

impl Process {
    /// Ends it as SIGKILL does: no destructor reaches the directory.
    fn kill(self) {
        self.directory.kill();
    }
}

/// A checkpoint that the coordinator published.
#[derive(Clone)]
struct Complete {
    id: CheckpointId,
    state: Vec<u8>,
    /// Where the source stood: the number of the next record.
    position: u32,
}

struct Scenario {
    directory: MemoryDirectory,
    process: Option<Process>,
    attempt: u64,
    checkpoint: u64,
    complete: Option<Complete>,
    /// The next record.
    position: u32,
    /// Everything up to here has been shown.
    shown: u32,
    /// Replaced attempts that do not know it, with what they were last told.
    replaced: Vec<(Process, Option<CheckpointId>)>,
    /// An attempt that was planned when the present one was, and replaced by it before it ran.
    never_ran: Option<(u64, Option<Complete>)>,
    seed: u64,
}

fn identity(subtask: u32, attempt: u64) -> SinkIdentity {
    SinkIdentity {
        job: JobId([7; 16]),
        stage: 1,
        output: 0,
        subtask,
        attempt: AttemptId::new(Epoch(1), attempt),
    }
}

fn options() -> FilesSinkOptions {
    FilesSinkOptions {
        path: "/memory".into(),
        format: RecordFormat::Lines,
        roll_bytes: 24,
    }
}

fn checkpoint_id(counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(1), counter)
}

/// Starts a process that runs an attempt: begins anew, or restores a checkpoint and replays its commit.
fn open(
    directory: &MemoryDirectory,
    attempt: u64,
    from: Option<&Complete>,
) -> Result<Process, SinkError> {
    let directory = directory.other_process();
    let state = from.map(|complete| complete.state.as_slice());
    let sink = Sink::open(directory.clone(), &options(), identity(0, attempt), state)?;
    let mut process = Process { sink, directory };
    match from.map(|complete| process.sink.commit(complete.id)) {
        Some(Err(error)) => {
            process.kill();
            Err(error)
        }
        _ => Ok(process),
    }
}

impl Scenario {
    fn new(seed: u64) -> Self {
        let mut scenario = Self {
            directory: MemoryDirectory::default(),
            process: None,
            attempt: 0,
            checkpoint: 0,
            complete: None,
            position: 0,
            shown: 0,
            replaced: Vec::new(),
            never_ran: None,
            seed,
        };
        scenario.restart();
        scenario
    }

    fn coin(&mut self, choices: usize) -> usize {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.seed >> 33) as usize % choices
    }

    /// Does something with the sink; when that kills it, starts another.
    fn with_sink<T>(
        &mut self,
        power: bool,
        act: impl FnOnce(&mut Sink) -> Result<T, SinkError>,
    ) -> Option<T> {
        let process = self
            .process
            .as_mut()
            .expect("a scenario always has a process");
        match act(&mut process.sink) {
            Ok(value) => Some(value),
            Err(error) => {
                assert!(matches!(error, SinkError::Io { .. }), "{error}");
                self.kill(power);
                None
            }
        }
    }

    /// Kills the process, or its machine and with it those of replaced attempts.
    fn kill(&mut self, power: bool) {
        self.process
            .take()
            .expect("a scenario always has a process")
            .kill();
        if power {
            self.replaced
                .drain(..)
                .for_each(|(process, _)| process.kill());
            let directory = self.directory.clone();
            directory.lose_power(|choices| self.coin(choices));
        }
        self.restart();
    }

    /// Starts the next attempt from the last complete checkpoint.
    fn restart(&mut self) {
        let from = self.complete.clone();
        self.attempt += 1;
        self.never_ran = Some((self.attempt, from.clone()));
        loop {
            self.attempt += 1;
            match open(&self.directory, self.attempt, from.as_ref()) {
                Ok(process) => {
                    self.process = Some(process);
                    break;
                }
                Err(error) => {
                    assert!(matches!(error, SinkError::Io { .. }), "{error}");
                    self.directory.live();
                }
            }
        }
        self.directory.live();
        self.position = from.map_or(0, |complete| complete.position);
        self.shown = self.position;
    }

    fn write(&mut self, records: u32, power: bool) {
        for _ in 0..records {
            let record = self.position.to_string();
            if self
                .with_sink(power, |sink| sink.write(record.as_bytes()))
                .is_none()
            {
                return;
            }
            self.position += 1;
        }
    }

    /// Takes a checkpoint, which is published or given up, and tells the sink or does not.
    fn checkpoint(&mut self, publish: bool, tell: bool, power: bool) {
        self.checkpoint += 1;
        let id = checkpoint_id(self.checkpoint);
        let position = self.position;
        let Some(state) = self.with_sink(power, |sink| sink.prepare(id)) else {
            return;
        };
        if publish {
            self.complete = Some(Complete {
                id,
                state,
                position,
            });
            if tell && self.with_sink(power, |sink| sink.commit(id)).is_some() {
                self.shown = position;
            }
        }
    }

    /// The coordinator takes the task for lost, but it goes on.
    fn replace(&mut self) {
        let process = self
            .process
            .take()
            .expect("a scenario always has a process");
        self.replaced
            .push((process, self.complete.as_ref().map(|complete| complete.id)));
        self.restart();
    }

    /// The deployment of an attempt that was replaced since arrives only now.
    fn late_deployment(&mut self) {
        if let Some((attempt, from)) = self.never_ran.take()
            && let Ok(process) = open(&self.directory, attempt, from.as_ref())
        {
            self.replaced
                .push((process, from.map(|complete| complete.id)));
        }
    }

    /// A replaced attempt writes, prepares a checkpoint that never completes, or repeats its last commit. Its failures
    /// are its own.
    fn replaced_acts(&mut self, what: usize) {
        if self.replaced.is_empty() {
            return;
        }
        let index = self.coin(self.replaced.len());
        let (mut process, told) = self.replaced.swap_remove(index);
        let sink = &mut process.sink;
        self.checkpoint += 1;
        let outcome = match what {
            0 => sink.write(b"from a replaced attempt"),
            1 => sink.prepare(checkpoint_id(self.checkpoint)).map(|_| ()),
            2 => told.map_or(Ok(()), |told| sink.commit(told)),
            // It ends in order, and its destructor does reach the directory.
            _ => return,
        };
        match outcome {
            Ok(()) => self.replaced.push((process, told)),
            Err(_) => process.kill(),
        }
    }

    fn visible_records(&self) -> BTreeMap<String, u32> {
        let mut records = BTreeMap::new();
        for (name, bytes) in self.directory.visible() {
            if name.starts_with("part-07070707-1-0-00000-") {
                assert!(!bytes.is_empty(), "{name} is empty");
                for line in String::from_utf8(bytes).expect("numbers are UTF-8").lines() {
                    *records.entry(line.to_owned()).or_default() += 1;
                }
            }
        }
        records
    }

    /// Nothing twice, nothing that no complete checkpoint holds, and all that has been committed.
    fn check(&self) {
        let records = self.visible_records();
        let published = self
            .complete
            .as_ref()
            .map_or(0, |complete| complete.position);
        for (record, times) in &records {
            assert_eq!(*times, 1, "record {record} is shown more than once");
            let number: u32 = record
                .parse()
                .expect("only this attempt's records are shown");
            assert!(
                number < published,
                "record {record} is shown before its checkpoint"
            );
        }
        for number in 0..self.shown {
            assert!(
                records.contains_key(&number.to_string()),
                "record {number} is lost"
            );
        }
    }

    fn finish(&mut self) {
        self.directory.live();
        self.checkpoint(true, true, false);
        assert_eq!(self.shown, self.position);
        self.check();
        assert_eq!(self.visible_records().len(), self.position as usize);
    }
}

#[derive(Clone, Debug)]
enum Action {
    Write(u32),
    Checkpoint { publish: bool, tell: bool },
    Kill,
    DieAfter(u32),
    Replace,
    LateDeployment,
    ReplacedActs(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..20u32).prop_map(Action::Write),
        4 => (any::<bool>(), any::<bool>())
            .prop_map(|(publish, tell)| Action::Checkpoint { publish, tell }),
        1 => Just(Action::Kill),
        3 => (0..12u32).prop_map(Action::DieAfter),
        1 => Just(Action::Replace),
        1 => Just(Action::LateDeployment),
        2 => (0..4usize).prop_map(Action::ReplacedActs),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_record_is_shown_exactly_once_after_any_crashes(
        actions in prop::collection::vec((action(), any::<bool>()), 1..60),
        seed in any::<u64>(),
    ) {
        let mut scenario = Scenario::new(seed);
        // Another subtask's file, prepared all the while.
        let mut neighbour =
            Sink::open(scenario.directory.clone(), &options(), identity(1, 1), None).expect("it opens");
        neighbour.write(b"the neighbour's").expect("it is written");
        neighbour.prepare(checkpoint_id(0)).expect("it is prepared");

        for (action, power) in actions {
            match action {
                Action::Write(records) => scenario.write(records, power),
                Action::Checkpoint { publish, tell } => scenario.checkpoint(publish, tell, power),
                Action::Kill => scenario.kill(power),
                Action::DieAfter(operations) => scenario.directory.die_after(operations),
                Action::Replace => scenario.replace(),
                Action::LateDeployment => scenario.late_deployment(),
                Action::ReplacedActs(what) => scenario.replaced_acts(what),
            }
            scenario.check();
        }
        scenario.finish();
        neighbour.commit(checkpoint_id(0)).expect("nobody touched it");
        prop_assert!(
            scenario.directory.visible().values().any(|bytes| bytes == b"the neighbour's\n")
        );
    }
}

/// One run of a fixed script: three checkpoints, the second given up, the third shown late, then the end.
fn script(scenario: &mut Scenario, power: bool) {
    scenario.write(9, power);
    scenario.checkpoint(true, true, power);
    scenario.write(12, power);
    scenario.checkpoint(false, false, power);
    scenario.write(9, power);
    scenario.checkpoint(true, false, power);
    scenario.write(30, power);
    scenario.checkpoint(true, true, power);
    scenario.write(3, power);
}

#[test]
fn a_crash_at_each_single_operation_of_a_run() {
    let mut undisturbed = Scenario::new(0);
    script(&mut undisturbed, false);
    undisturbed.finish();
    let operations = undisturbed.directory.operations();
    assert!(operations > 40, "the script does something: {operations}");
    assert_eq!(undisturbed.visible_records().len(), 63);

    for power in [false, true] {
        for operation in 0..operations {
            let seeds = if power { 8 } else { 1 };
            for seed in 0..seeds {
                let mut scenario = Scenario::new(seed);
                scenario.directory.die_after(operation);
                script(&mut scenario, power);
                scenario.check();
                scenario.finish();
            }
        }
    }
}

#[test]
fn a_crash_at_each_operation_of_the_recovery_from_a_crash() {
    for operation in 0..12 {
        for seed in 0..8 {
            let mut scenario = Scenario::new(seed);
            scenario.write(20, false);
            scenario.checkpoint(true, false, false);
            scenario.write(20, false);
            scenario.directory.die_after(operation);
            scenario.kill(seed % 2 == 0);
            scenario.check();
            assert_eq!(
                scenario.shown, 20,
                "the checkpoint's records are shown by the recovery"
            );
            scenario.write(5, false);
            scenario.finish();
        }
    }
}
