//! A whole job in one thread: every task of every stage, and the channels between them. Which task runs next is drawn
//! from a seed, so that a test sees many orders and can see each again.

use std::collections::{BTreeMap, VecDeque};

use tidemill_abi::{
    DescribeRequest, JobGraph, KEY_GROUP_DEFAULT_MAX, OpenRequest, Output, Partitioning, Stage,
    StageInput, Status, Step, TARGET_ALL, framed, graph_hash,
};

use crate::context::Emission;
use crate::instance::{Instance, describe};
use crate::job::{Job, Outcome};

/// Steps after which a run is given up: a job that has not ended by then never will.
const STEPS_MAX: u64 = 10_000_000;

/// A run of a job in a test.
///
/// ```
/// use tidemill::prelude::*;
/// use tidemill::testing::TestRun;
///
/// fn longest(job: &mut Job) {
///     job.source(files("in").lines())
///         .key_by(|line| line.chars().next())
///         .reduce(|a, b| if b.len() > a.len() { b } else { a })
///         .map(|(_, line)| line)
///         .sink(files("out").text());
/// }
///
/// let outputs = TestRun::new(longest).file("in", "a\nb\nabc\nbc\n").run().unwrap();
/// assert_eq!(outputs.lines("out"), ["a", "b", "abc", "bc"]);
/// ```
#[derive(Clone, Debug)]
#[must_use = "a run happens when `run` is called"]
pub struct TestRun<R> {
    job: fn(&mut Job) -> R,
    parameters: BTreeMap<String, String>,
    files: BTreeMap<String, Vec<Vec<u8>>>,
    parallelism: u32,
    seed: u64,
}

impl<R: Outcome> TestRun<R> {
    /// A run with parallelism 1 and no parameters.
    pub fn new(job: fn(&mut Job) -> R) -> Self {
        Self {
            job,
            parameters: BTreeMap::new(),
            files: BTreeMap::new(),
            parallelism: 1,
            seed: 0,
        }
    }

    /// Gives a parameter.
    pub fn parameter(mut self, name: &str, value: impl ToString) -> Self {
        self.parameters.insert(name.to_owned(), value.to_string());
        self
    }

    /// Gives the lines that a files source with this path reads.
    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(
            path.to_owned(),
            text.lines().map(|line| line.as_bytes().to_vec()).collect(),
        );
        self
    }

    /// Runs each stage in this many subtasks, unless the job fixes another number.
    pub fn parallelism(mut self, parallelism: u32) -> Self {
        self.parallelism = parallelism.max(1);
        self
    }

    /// Draws another order of the steps.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Runs the job to the end of its inputs.
    ///
    /// # Errors
    /// Every mistake that `describe` finds, a source without input, or a job that does not end.
    ///
    /// # Panics
    /// Where an operator of the job panics.
    pub fn run(&self) -> Result<Outputs, String> {
        let request = DescribeRequest {
            parameters: self.parameters.clone(),
            allow_missing_parameters: false,
        };
        let graph = describe(self.job, "job", request)?;
        let mut run = Run {
            tasks: Vec::new(),
            first_task: Vec::new(),
            now_ms: 1,
            dice: Dice(self.seed),
            written: BTreeMap::new(),
            graph,
        };
        run.open_tasks(self)?;
        run.connect();
        for stage in 0..run.graph.stages.len() {
            run.feed(stage, self)?;
        }
        run.finish()?;
        Ok(run.outputs())
    }

    fn parallelism_of(&self, stage: &Stage) -> u32 {
        stage.parallelism.unwrap_or(self.parallelism)
    }
}

/// What a run wrote.
#[derive(Clone, Debug)]
pub struct Outputs {
    records: BTreeMap<String, Vec<Vec<u8>>>,
    records_per_stage: Vec<(u64, u64)>,
    graph: JobGraph,
}

impl Outputs {
    /// The records that reached the sinks with this path, or, for a sink without one, of this kind (`print`).
    #[must_use]
    pub fn records(&self, sink: &str) -> &[Vec<u8>] {
        self.records.get(sink).map_or(&[], Vec::as_slice)
    }

    /// The same as text.
    #[must_use]
    pub fn lines(&self, sink: &str) -> Vec<String> {
        self.records(sink)
            .iter()
            .map(|record| String::from_utf8_lossy(record).into_owned())
            .collect()
    }

    /// The same, read as JSON.
    ///
    /// # Panics
    /// When a record is not JSON of this type.
    #[cfg(feature = "json")]
    #[must_use]
    pub fn json<T: serde::de::DeserializeOwned>(&self, sink: &str) -> Vec<T> {
        let read = |record: &Vec<u8>| match serde_json::from_slice(record) {
            Ok(value) => value,
            Err(error) => panic!(
                "`{}` is no {}: {error}",
                String::from_utf8_lossy(record),
                core::any::type_name::<T>()
            ),
        };
        self.records(sink).iter().map(read).collect()
    }

    /// For each stage how many records all its tasks took in (or made), and how many they gave out.
    #[must_use]
    pub fn records_per_stage(&self) -> &[(u64, u64)] {
        &self.records_per_stage
    }

    /// The graph that ran.
    #[must_use]
    pub fn graph(&self) -> &JobGraph {
        &self.graph
    }
}

/// Randomness from a seed (SplitMix64, by Steele, Lea and Flood).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) % bound as u64) as usize
    }
}

/// Batches on their way from one task, or from a native source, to another task.
#[derive(Default)]
struct Channel {
    batches: VecDeque<Vec<u8>>,
    ended: bool,
}

/// Which output of which task a channel comes from.
type Sender = (usize, u32);

struct Task {
    stage: usize,
    subtask: u32,
    instance: Instance,
    inbox: Vec<u8>,
    polled: bool,
    channels: BTreeMap<Sender, Channel>,
    last: Step,
    finishing: bool,
    finished: bool,
}

/// What a task could do now.
#[derive(Clone, Copy, Debug)]
enum Action {
    Resume,
    Poll,
    Process(Sender),
    Timer,
    Finish,
}

struct Run {
    graph: JobGraph,
    tasks: Vec<Task>,
    /// Where the tasks of each stage begin in `tasks`.
    first_task: Vec<usize>,
    now_ms: u64,
    dice: Dice,
    written: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Run {
    fn open_tasks<R: Outcome>(&mut self, test: &TestRun<R>) -> Result<(), String> {
        let parallelisms: Vec<u32> = self
            .graph
            .stages
            .iter()
            .map(|stage| test.parallelism_of(stage))
            .collect();
        for (number, stage) in self.graph.stages.iter().enumerate() {
            self.first_task.push(self.tasks.len());
            let parallelism_behind = |output: &Output| match output {
                Output::Edge { to, .. } => parallelisms[*to as usize],
                Output::Sink(_) => 1,
            };
            for subtask in 0..parallelisms[number] {
                let request = OpenRequest {
                    stage: number as u32,
                    subtask,
                    parallelism: parallelisms[number],
                    max_parallelism: KEY_GROUP_DEFAULT_MAX,
                    output_parallelism: stage.outputs.iter().map(parallelism_behind).collect(),
                    parameters: test.parameters.clone(),
                };
                let (instance, hash) = Instance::open(test.job, "job", request)?;
                if hash != graph_hash(&self.graph) {
                    return Err("the job gives another graph each time it is described".to_owned());
                }
                let polled = stage.input == StageInput::Guest;
                let (inbox, channels) = (Vec::new(), BTreeMap::new());
                self.tasks.push(Task {
                    stage: number,
                    subtask,
                    instance,
                    inbox,
                    polled,
                    channels,
                    last: Step::DONE,
                    finishing: false,
                    finished: false,
                });
            }
        }
        self.first_task.push(self.tasks.len());
        Ok(())
    }

    fn connect(&mut self) {
        for sender in 0..self.tasks.len() {
            let (stage, subtask) = (self.tasks[sender].stage, self.tasks[sender].subtask);
            for (output, edge) in (0..).zip(&self.graph.stages[stage].outputs) {
                let Output::Edge {
                    to, partitioning, ..
                } = edge
                else {
                    continue;
                };
                for receiver in self.first_task[*to as usize]..self.first_task[*to as usize + 1] {
                    if *partitioning != Partitioning::Forward
                        || self.tasks[receiver].subtask == subtask
                    {
                        self.tasks[receiver]
                            .channels
                            .insert((sender, output), Channel::default());
                    }
                }
            }
        }
    }

    /// Gives the tasks of a native source everything they will read.
    fn feed<R: Outcome>(&mut self, stage: usize, test: &TestRun<R>) -> Result<(), String> {
        let StageInput::Connector(connector) = &self.graph.stages[stage].input else {
            return Ok(());
        };
        let option = |name: &str| connector.options.get(name).map_or("", String::as_str);
        let records: Vec<Vec<u8>> = match connector.kind.as_str() {
            "files" => {
                let path = option("path");
                test.files
                    .get(path)
                    .ok_or_else(|| {
                        format!("the test gives no file `{path}`: add `.file(\"{path}\", …)`")
                    })?
                    .clone()
            }
            "generator" => {
                let count = option("count")
                    .parse::<u64>()
                    .ok()
                    .filter(|count| *count > 0);
                let count =
                    count.ok_or("a generator without end cannot run to its end in a test")?;
                (0..count).map(|n| n.to_le_bytes().to_vec()).collect()
            }
            kind => return Err(format!("there is no native source `{kind}` in tests")),
        };
        let tasks = self.first_task[stage]..self.first_task[stage + 1];
        for task in tasks.clone() {
            // A native source is no task; no sender has its number.
            self.tasks[task].channels.insert(
                (usize::MAX, 0),
                Channel {
                    ended: true,
                    ..Channel::default()
                },
            );
        }
        let mut records = records.iter().peekable();
        while records.peek().is_some() {
            let mut batch = Vec::new();
            for record in records.by_ref().take(1 + self.dice.below(64)) {
                framed::push(&mut batch, record);
            }
            let task = tasks.start + self.dice.below(tasks.len());
            if let Some(channel) = self.tasks[task].channels.get_mut(&(usize::MAX, 0)) {
                channel.batches.push_back(batch);
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        for _ in 0..STEPS_MAX {
            let mut possible = Vec::new();
            for (number, task) in self.tasks.iter().enumerate() {
                task.actions(self.now_ms, |action| possible.push((number, action)));
            }
            if possible.is_empty() {
                if self.tasks.iter().all(|task| task.finished) {
                    return Ok(());
                }
                let unfinished = self.tasks.iter().filter(|task| !task.finished);
                let next_ms = unfinished.filter_map(|task| task.last.deadline_ms).min();
                self.now_ms = next_ms.ok_or("the job stands still: no task has anything to do")?;
                continue;
            }
            let (task, action) = possible[self.dice.below(possible.len())];
            self.step(task, action);
        }
        Err(format!("the job has not ended after {STEPS_MAX} steps"))
    }

    fn outputs(self) -> Outputs {
        let mut records_per_stage = vec![(0, 0); self.graph.stages.len()];
        for task in &self.tasks {
            records_per_stage[task.stage].0 += task.instance.cx.records_in;
            records_per_stage[task.stage].1 += task.instance.cx.records_out;
        }
        Outputs {
            records: self.written,
            records_per_stage,
            graph: self.graph,
        }
    }

    fn step(&mut self, number: usize, action: Action) {
        let now_ms = self.now_ms;
        let barrier = self.dice.below(8) == 0;
        let task = &mut self.tasks[number];
        if barrier {
            task.instance.flush();
        }
        task.last = match action {
            Action::Resume => task.instance.resume(&mut task.inbox, now_ms),
            Action::Poll => task.instance.poll(now_ms),
            Action::Timer => task.instance.timer(now_ms),
            Action::Finish => task.instance.finish(now_ms),
            Action::Process(sender) => task.process(sender, now_ms),
        };
        task.finishing |= matches!(action, Action::Finish);
        if task.finishing && task.last.status != Status::More {
            task.instance.flush();
            task.finished = true;
        }
        let emissions = core::mem::take(&mut task.instance.cx.outbox);
        for emission in emissions {
            self.route(number, emission);
        }
        if self.tasks[number].finished {
            for channel in self
                .tasks
                .iter_mut()
                .flat_map(|task| task.channels.iter_mut())
            {
                if channel.0.0 == number {
                    channel.1.ended = true;
                }
            }
        }
    }

    fn route(&mut self, sender: usize, emission: Emission) {
        let Emission {
            output,
            target,
            batch,
        } = emission;
        let (stage, subtask) = (self.tasks[sender].stage, self.tasks[sender].subtask);
        match &self.graph.stages[stage].outputs[output as usize] {
            Output::Sink(connector) => {
                let name = connector.options.get("path").unwrap_or(&connector.kind);
                let records = self.written.entry(name.clone()).or_default();
                records.extend(
                    framed::records(&batch)
                        .map(|record| record.expect("sinks are given whole records").to_vec()),
                );
            }
            Output::Edge {
                to, partitioning, ..
            } => {
                let (first, end) = (
                    self.first_task[*to as usize],
                    self.first_task[*to as usize + 1],
                );
                let receivers = match partitioning {
                    _ if target == TARGET_ALL => first..end,
                    Partitioning::Forward => first + subtask as usize..first + subtask as usize + 1,
                    _ => first + target as usize..first + target as usize + 1,
                };
                for receiver in receivers {
                    let channel = self.tasks[receiver]
                        .channels
                        .get_mut(&(sender, output))
                        .expect("edges were connected");
                    channel.batches.push_back(batch.clone());
                }
            }
        }
    }
}

impl Task {
    fn actions(&self, now_ms: u64, mut possible: impl FnMut(Action)) {
        if self.finished {
            return;
        }
        if self.last.status == Status::More {
            return possible(Action::Resume);
        }
        let due = self.last.deadline_ms.is_some_and(|at_ms| at_ms <= now_ms);
        if self.polled {
            match self.last {
                Step {
                    status: Status::Ended,
                    ..
                } => possible(Action::Finish),
                Step {
                    deadline_ms: None, ..
                } => possible(Action::Poll),
                _ if due => possible(Action::Poll),
                _ => {}
            }
            return;
        }
        if due {
            possible(Action::Timer);
        }
        let mut waiting = false;
        for (sender, channel) in &self.channels {
            if !channel.batches.is_empty() {
                possible(Action::Process(*sender));
            }
            waiting |= !channel.batches.is_empty() || !channel.ended;
        }
        if !waiting {
            possible(Action::Finish);
        }
    }

    fn process(&mut self, sender: Sender, now_ms: u64) -> Step {
        let channel = self
            .channels
            .get_mut(&sender)
            .expect("only channels with batches are processed");
        let batch = channel
            .batches
            .pop_front()
            .expect("only channels with batches are processed");
        self.inbox.clear();
        self.inbox.extend_from_slice(&batch);
        self.instance.process(&mut self.inbox, batch.len(), now_ms)
    }
}
