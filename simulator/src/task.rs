//! One task: reads frames or positions, counts, emits, and does at a barrier what the real alignment says. It follows the
//! real task loop step by step, without threads and without a guest.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tidemill_core::worker::CheckpointWord;
use tidemill_core::{Alignment, AlignmentAction};
use tidemill_protocol::control::{
    CaptureStats, CheckpointAcknowledgement, DeployTimings, TaskState, ToLeader,
};
use tidemill_protocol::manifest::ObjectRef;
use tidemill_protocol::{AttemptId, ChannelId, CheckpointId, Epoch, ExecutionGraph, JobId, TaskId};

use crate::event::{Event, Input};
use crate::images::{Chain, Page, Pages};
use crate::late::Late;
use crate::node::Node;
use crate::workload::JobSpec;
use crate::world::World;

/// One attempt of one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaskKey {
    pub(crate) job: JobId,
    pub(crate) task: TaskId,
    pub(crate) attempt: AttemptId,
}

/// A record of the output: which record of the input, and the count of its key.
pub(crate) type Written = (u32, u32);

/// What goes over a channel.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Data(Rc<Vec<Written>>),
    Barrier(CheckpointId),
    End,
}

/// What a sink prepared at a barrier.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    /// One number for each in a world.
    pub(crate) id: u64,
    pub(crate) checkpoint: CheckpointId,
    pub(crate) records: Rc<Vec<Written>>,
}

/// What restores a task exactly.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskImage {
    pub(crate) finished: bool,
    /// Of a source: its next position.
    pub(crate) position: u32,
    pub(crate) counts: BTreeMap<u32, u32>,
    pub(crate) ended: Vec<ChannelId>,
    pub(crate) pending: Vec<Transaction>,
    /// What was recorded of channels whose barriers came late.
    pub(crate) recorded: Vec<(ChannelId, Frame)>,
}

/// A running task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) key: TaskKey,
    pub(crate) graph: Rc<ExecutionGraph>,
    pub(crate) spec: Rc<JobSpec>,
    pub(crate) restore: Option<CheckpointId>,
    pub(crate) running: bool,
    pub(crate) state: TaskImage,
    /// Written since the last barrier.
    buffer: Vec<Written>,
    pub(crate) inputs: Vec<ChannelId>,
    pub(crate) outputs: Vec<usize>,
    pub(crate) alignment: Alignment,
    /// What waits for late barriers.
    pub(crate) late: Late,
    /// Which input is looked at first next time.
    turn: usize,
    /// It works on its last frame until then.
    busy_until_us: u64,
    pub(crate) uploading: bool,
    /// What later captures build upon.
    pub(crate) chain: Chain,
    /// The counts when they were captured last.
    pub(crate) captured: Pages,
    /// Pages that the last captures could not store.
    pub(crate) again: BTreeSet<Page>,
    emits_at_us: u64,
    mailbox: Vec<(CheckpointId, CheckpointWord)>,
}

impl Task {
    /// A task that waits for its image.
    pub(crate) fn new(
        key: TaskKey,
        graph: Rc<ExecutionGraph>,
        spec: Rc<JobSpec>,
        restore: Option<CheckpointId>,
    ) -> Self {
        let inputs: Vec<ChannelId> = graph.incoming(key.task).map(|channel| channel.id).collect();
        Self {
            alignment: Alignment::new(inputs.len(), [].into_iter(), None),
            late: Late::new(inputs.len()),
            key,
            graph,
            spec,
            restore,
            running: false,
            state: TaskImage::default(),
            buffer: Vec::new(),
            inputs,
            outputs: Vec::new(),
            turn: 0,
            busy_until_us: 0,
            uploading: false,
            chain: Chain::default(),
            captured: Pages::new(),
            again: BTreeSet::new(),
            emits_at_us: 0,
            mailbox: Vec::new(),
        }
    }

    fn is_source(&self) -> bool {
        self.key.task.stage == 0
    }

    pub(crate) fn is_sink(&self) -> bool {
        self.key.task.stage as usize + 1 == self.spec.stages
    }

    /// The next record of a source, if there is one.
    fn next_record(&self) -> Option<u32> {
        let record = self.key.task.subtask + self.state.position * self.spec.parallelism[0];
        (self.is_source() && record < self.spec.records).then_some(record)
    }
}

impl World {
    /// Whatever a task needs is there: it goes on from its image, or begins.
    pub(crate) fn start_task(
        &mut self,
        node: Node,
        key: TaskKey,
        image: Option<(Rc<TaskImage>, Chain)>,
    ) {
        let Some(mut task) = self.take_task(node, key) else {
            return;
        };
        if let Some((image, chain)) = image {
            task.state = TaskImage::clone(&image);
            task.captured.clone_from(&image.counts);
            task.chain = chain;
        }
        if task.restore.is_some() {
            // It is published, so what it prepared is committed, by this attempt if no earlier one came to it. The numbers
            // of its checkpoints say nothing here: they may be another job's.
            self.commit(&mut task, CheckpointId::new(Epoch(u64::MAX), u64::MAX));
        }
        let ended = (0..)
            .zip(&task.inputs)
            .filter(|(_, channel)| task.state.ended.contains(channel));
        let ended: Vec<usize> = ended.map(|(index, _)| index).collect();
        let timeout_ms = task.spec.options.aligned_checkpoint_timeout_ms;
        let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
        task.alignment = Alignment::new(task.inputs.len(), ended.into_iter(), timeout);
        self.bring_back(node, &mut task);
        task.running = true;
        let timings = DeployTimings::default();
        self.task_changed(node, key, TaskState::Running { timings });
        self.log(|| format!("{node}: runs task {} of attempt {}", key.task, key.attempt));
        if task.state.finished {
            self.close_task(node, &task);
        }
        for (checkpoint, word) in std::mem::take(&mut task.mailbox) {
            self.word(node, &mut task, checkpoint, word);
        }
        self.put_task(node, task);
        self.run_task(node, key);
    }

    /// The leader says something about a checkpoint.
    pub(crate) fn tell_task(
        &mut self,
        node: Node,
        key: TaskKey,
        checkpoint: CheckpointId,
        word: CheckpointWord,
    ) {
        let Some(mut task) = self.take_task(node, key) else {
            return;
        };
        if task.running {
            self.word(node, &mut task, checkpoint, word);
        } else {
            task.mailbox.push((checkpoint, word));
        }
        self.put_task(node, task);
        self.run_task(node, key);
    }

    fn word(
        &mut self,
        node: Node,
        task: &mut Task,
        checkpoint: CheckpointId,
        word: CheckpointWord,
    ) {
        let now = self.local(node);
        let actions = match word {
            CheckpointWord::Announce { then_pause } => {
                task.alignment.announced(now, checkpoint, then_pause)
            }
            CheckpointWord::Abort => task.alignment.aborted(now, checkpoint),
            CheckpointWord::Complete => {
                self.commit(task, checkpoint);
                let TaskKey { job, task, attempt } = task.key;
                self.say(
                    node,
                    ToLeader::Committed {
                        job,
                        attempt,
                        task,
                        checkpoint,
                    },
                );
                return;
            }
        };
        self.aligned(node, task, &actions);
    }

    fn commit(&mut self, task: &mut Task, checkpoint: CheckpointId) {
        let up_to = task
            .state
            .pending
            .partition_point(|one| one.checkpoint <= checkpoint);
        let committed: Vec<Transaction> = task.state.pending.drain(..up_to).collect();
        for transaction in committed {
            let judged = self.checkers.committed(task.key, &transaction, &task.spec);
            self.judge(judged);
        }
    }

    pub(crate) fn aligned(&mut self, node: Node, task: &mut Task, actions: &[AlignmentAction]) {
        for action in actions {
            match *action {
                AlignmentAction::Capture { checkpoint, .. } => {
                    if let Some(image) = self.capture(node, task, checkpoint) {
                        self.upload(node, task, checkpoint, image);
                    }
                }
                AlignmentAction::CaptureAndRecord { checkpoint, .. } => {
                    self.counts.late_captures += 1;
                    task.late.held = self.capture(node, task, checkpoint);
                }
                AlignmentAction::Recorded { checkpoint } => {
                    if let Some(image) = task.late.held.take() {
                        self.upload(node, task, checkpoint, image);
                    }
                }
                AlignmentAction::Cancelled { checkpoint } => {
                    task.late.held = None;
                    self.decline(node, task.key, checkpoint);
                }
            }
        }
    }

    pub(crate) fn decline(&mut self, node: Node, key: TaskKey, checkpoint: CheckpointId) {
        let TaskKey { job, task, attempt } = key;
        let reason = "declined".to_owned();
        self.say(
            node,
            ToLeader::CheckpointDeclined {
                job,
                attempt,
                task,
                checkpoint,
                reason,
            },
        );
    }

    /// The task's image, unless an earlier one is still on its way.
    fn capture(
        &mut self,
        node: Node,
        task: &mut Task,
        checkpoint: CheckpointId,
    ) -> Option<TaskImage> {
        if task.is_sink() {
            self.last_transaction += 1;
            let records = Rc::new(std::mem::take(&mut task.buffer));
            task.state.pending.push(Transaction {
                id: self.last_transaction,
                checkpoint,
                records,
            });
        }
        if !task.state.finished {
            self.emit_to_all(node, task, &Frame::Barrier(checkpoint));
        }
        if task.uploading {
            self.decline(node, task.key, checkpoint);
            return None;
        }
        let ended = |(index, _): &(usize, &ChannelId)| task.alignment.ended(*index);
        let channels = (0..)
            .zip(&task.inputs)
            .filter(ended)
            .map(|(_, channel)| *channel);
        task.state.ended = channels.collect();
        Some(task.state.clone())
    }

    /// A capture is stored, or not.
    pub(crate) fn uploaded(
        &mut self,
        node: Node,
        key: TaskKey,
        checkpoint: CheckpointId,
        manifest: Option<ObjectRef>,
        finished: bool,
    ) {
        let Some(mut task) = self.take_task(node, key) else {
            return;
        };
        task.uploading = false;
        if let Some(manifest) = &manifest {
            task.manifest_stored(manifest);
        }
        self.put_task(node, task);
        let Some(manifest) = manifest else {
            return self.decline(node, key, checkpoint);
        };
        let TaskKey { job, task, attempt } = key;
        self.say(
            node,
            ToLeader::CheckpointAcknowledged(CheckpointAcknowledgement {
                job,
                attempt,
                task,
                checkpoint,
                manifest,
                finished,
                stats: CaptureStats::default(),
            }),
        );
    }

    /// Says the last word on every channel, and to the leader.
    fn close_task(&mut self, node: Node, task: &Task) {
        self.emit_to_all(node, task, &Frame::End);
        self.task_changed(node, task.key, TaskState::Finished);
    }

    /// Lets a task do whatever it can do now.
    pub(crate) fn run_task(&mut self, node: Node, key: TaskKey) {
        let Some(mut task) = self.take_task(node, key) else {
            return;
        };
        loop {
            self.see_to_late_barriers(node, &mut task);
            let works = task.running
                && !task.state.finished
                && !task.alignment.is_paused()
                && task.busy_until_us <= self.now_us
                && self.has_room(&task);
            if !works || !self.task_step(node, &mut task) {
                break;
            }
        }
        self.wake_when_late(node, &mut task);
        self.put_task(node, task);
    }

    /// One bounded step; whether there may be another.
    fn task_step(&mut self, node: Node, task: &mut Task) -> bool {
        for offset in 0..task.inputs.len() {
            let index = (task.turn + offset) % task.inputs.len();
            if task.alignment.is_blocked(index) {
                continue;
            }
            if let Some(frame) = self.next_frame(node, task, index) {
                task.turn = index + 1;
                self.frame(node, task, index, frame);
                return true;
            }
        }
        if task.next_record().is_some() {
            return self.emit_records(node, task);
        }
        if task.alignment.all_ended() {
            task.state.finished = true;
            self.close_task(node, task);
        }
        false
    }

    fn frame(&mut self, node: Node, task: &mut Task, index: usize, frame: Frame) {
        let now = self.local(node);
        match frame {
            Frame::Data(records) => {
                self.process(node, task, &records);
                self.work_on(node, task);
            }
            Frame::Barrier(checkpoint) => {
                let actions = task.alignment.barrier(now, index, checkpoint);
                self.aligned(node, task, &actions);
            }
            // A restored sender says again what this task's image already knows.
            Frame::End if task.alignment.ended(index) => {}
            Frame::End => {
                let actions = task.alignment.end_of_input(now, index);
                self.aligned(node, task, &actions);
            }
        }
    }

    /// A slow sink does nothing else for a while.
    fn work_on(&mut self, node: Node, task: &mut Task) {
        if task.spec.slow_us == 0 || !task.is_sink() {
            return;
        }
        task.busy_until_us = self.now_us + task.spec.slow_us;
        let life = self.processes[node.0].life;
        let input = Input::TaskDue { task: task.key };
        self.schedule(task.busy_until_us, Event::Process { node, life, input });
    }

    fn process(&mut self, node: Node, task: &mut Task, records: &[Written]) {
        let mut results = Vec::with_capacity(records.len());
        for (record, count) in records {
            let mut count = *count;
            if task.key.task.stage == 1 {
                let counted = task
                    .state
                    .counts
                    .entry(task.spec.key_of(*record))
                    .or_default();
                *counted += 1;
                count = *counted;
            }
            results.push((*record, count));
        }
        if task.is_sink() {
            task.buffer.extend(results);
        } else {
            self.emit(node, task, &results);
        }
    }

    fn emit_records(&mut self, node: Node, task: &mut Task) -> bool {
        if task.emits_at_us > self.now_us {
            return false;
        }
        let mut batch = Vec::new();
        for _ in 0..task.spec.batch {
            let Some(record) = task.next_record() else {
                break;
            };
            batch.push((record, 0));
            task.state.position += 1;
        }
        self.emit(node, task, &batch);
        task.emits_at_us = self.now_us + task.spec.interval_us;
        let life = self.processes[node.0].life;
        let input = Input::TaskDue { task: task.key };
        self.schedule(task.emits_at_us, Event::Process { node, life, input });
        true
    }

    /// Sends records to the tasks that their keys belong to.
    fn emit(&mut self, node: Node, task: &Task, records: &[Written]) {
        let stage = task.key.task.stage;
        let mut batches: Vec<Vec<Written>> = vec![Vec::new(); task.outputs.len()];
        for written in records {
            let target = task.spec.target_of(stage, written.0).unwrap_or(0) as usize;
            batches[target].push(*written);
        }
        for (stream, batch) in task.outputs.iter().zip(batches) {
            if !batch.is_empty() {
                self.send_frame(node, *stream, Frame::Data(Rc::new(batch)));
            }
        }
    }

    fn emit_to_all(&mut self, node: Node, task: &Task, frame: &Frame) {
        for stream in &task.outputs {
            self.send_frame(node, *stream, frame.clone());
        }
    }
}
