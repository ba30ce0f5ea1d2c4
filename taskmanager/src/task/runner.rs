//! The loop of one task: takes a command or an input, makes one bounded call, and sees to barriers, backpressure and the
//! end of input. It runs on the task's own thread, the only one that enters the instance.
//!
//! It never blocks inside a call and never sleeps while there is something it may do; what it may do at a barrier is
//! decided by [`Alignment`], once per barrier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_abi::{SPLIT_NONE, Status, Step};
use tidemill_connectors::{ReadOutcome, SourceReader};
use tidemill_core::worker::CheckpointWord;
use tidemill_core::{Alignment, AlignmentAction, Time};
use tidemill_protocol::control::{Blame, TaskFailure, TaskState};
use tidemill_protocol::split::SplitAssignment;
use tidemill_protocol::{CheckpointId, Frame, FrameBody, codec};
use tokio::sync::oneshot;

use super::ahead::{Ahead, SLICE_PAGES};
use super::body::{Body, Call};
use super::capture::{Captured, Capturing};
use super::counters::{Counters, add_time, micros};
use super::inputs::{InputRole, Inputs};
use super::mailbox::{Mailbox, TaskCommand};
use super::recorded::Recorded;
use super::splits::SplitRequests;
use super::state::{HostState, Phase};
use super::watermarks::Watermarks;
use super::{failure, preview};

/// With nothing to read, partly filled buffers leave after this time.
const IDLE_FLUSH: Duration = Duration::from_millis(5);

/// However busy the task, partly filled buffers leave after this time.
const BUSY_FLUSH: Duration = Duration::from_millis(100);

/// How often the counters that need a call into the guest are read.
const COUNT_INTERVAL: Duration = Duration::from_millis(200);

/// Where a task's records come from, besides its channels.
pub(crate) enum Feed {
    /// Nowhere.
    None,
    /// The body makes them when polled.
    Polled,
    /// A native source reads them.
    Reader(Box<SourceReader>),
}

/// What a step of the loop came to.
enum Progress {
    Worked,
    /// Nothing to do before this instant, unless something arrives.
    Idle(Option<Instant>),
    /// An output is over its bound.
    Backpressured,
}

/// One running task.
pub(crate) struct Runner<B> {
    pub(crate) body: B,
    pub(crate) feed: Feed,
    pub(crate) inputs: Inputs,
    pub(crate) alignment: Alignment,
    pub(crate) watermarks: Watermarks,
    pub(crate) splits: Option<SplitRequests>,
    pub(crate) mailbox: Mailbox,
    pub(crate) capturing: Capturing,
    pub(crate) ahead: Ahead,
    pub(crate) counters: Arc<Counters>,
    pub(crate) started: Instant,
    pub(crate) phase: Phase,
    pub(crate) unfinished_call: bool,
    pub(crate) source_ended: bool,
    pub(crate) timer_at_ms: Option<u64>,
    pub(crate) poll_at_ms: Option<u64>,
    pub(crate) now_ms: u64,
    /// Something may wait in an output buffer of the guest.
    pub(crate) unflushed: bool,
    pub(crate) flushed_at: Instant,
    pub(crate) counted_at: Instant,
    pub(crate) batch: Vec<u8>,
}

impl<B: Body> Runner<B> {
    /// Runs until the task is stopped; what it runs can then be handed on.
    ///
    /// # Errors
    /// What ended the task, when it was not asked to end.
    pub(crate) fn run(&mut self) -> Result<(), TaskFailure> {
        let waker = self.mailbox.waker();
        self.inputs.set_waker(&waker);
        self.body.outputs().set_waker(&waker);
        if self.phase == Phase::Finished {
            self.close();
        }
        loop {
            while let Some(command) = self.mailbox.take() {
                match command {
                    TaskCommand::Stop => return Ok(()),
                    TaskCommand::Split(request) => {
                        self.body.hint(&request);
                        self.poll_at_ms = None;
                    }
                    TaskCommand::Checkpoint(checkpoint, word) => self.on_word(checkpoint, word)?,
                    TaskCommand::LeaderLost => self.on_leader_lost()?,
                }
            }
            self.see_to_late_barriers()?;
            self.copy_ahead();
            self.body.outputs().wake_receivers();
            let progress = self.step()?;
            self.count();
            if matches!(progress, Progress::Worked) {
                self.flush_if_older(BUSY_FLUSH)?;
            }
            self.body.outputs().wake_receivers();
            match progress {
                Progress::Worked => {}
                Progress::Idle(until) => self.idle(until)?,
                Progress::Backpressured => {
                    let began = Instant::now();
                    self.mailbox.wait(self.wake_at());
                    add_time(&self.counters.backpressured_us, began.elapsed());
                }
            }
        }
    }

    fn core_time(&self) -> Time {
        Time::from_micros(micros(self.started.elapsed()))
    }

    fn step(&mut self) -> Result<Progress, TaskFailure> {
        if self.alignment.is_paused() {
            return Ok(Progress::Idle(None));
        }
        if !self.body.outputs().has_room() {
            return Ok(Progress::Backpressured);
        }
        self.now_ms = self.now_ms.max(crate::logs::wall_clock_ms());
        if self.unfinished_call {
            self.call(Call::Resume)?;
            return Ok(Progress::Worked);
        }
        match self.phase {
            Phase::Running => self.step_running(),
            Phase::Finishing => {
                let step = self.call_once(Call::Finish)?;
                if step.status != Status::More {
                    self.body.flush()?;
                    self.phase = Phase::Finished;
                    self.close();
                }
                Ok(Progress::Worked)
            }
            Phase::Finished => Ok(Progress::Idle(None)),
        }
    }

    fn step_running(&mut self) -> Result<Progress, TaskFailure> {
        if self.timer_at_ms.is_some_and(|at| at <= self.now_ms) {
            self.timer_at_ms = None;
            self.call(Call::Timer)?;
            return Ok(Progress::Worked);
        }
        if let Some((index, frame)) = self.inputs.pop(&self.alignment) {
            self.on_frame(index, frame)?;
            return Ok(Progress::Worked);
        }
        let mut wake_at_ms = self.timer_at_ms;
        match self.read_feed()? {
            Fed::Records => return Ok(Progress::Worked),
            Fed::Nothing { until_ms } => {
                wake_at_ms = [wake_at_ms, until_ms].into_iter().flatten().min();
            }
        }
        if self.alignment.all_ended() && self.feed_ended() {
            self.phase = Phase::Finishing;
            return Ok(Progress::Worked);
        }
        let until = wake_at_ms
            .map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(self.now_ms)));
        Ok(Progress::Idle(until))
    }

    fn feed_ended(&self) -> bool {
        matches!(self.feed, Feed::None) || self.source_ended
    }

    fn read_feed(&mut self) -> Result<Fed, TaskFailure> {
        if self.source_ended {
            return Ok(Fed::Nothing { until_ms: None });
        }
        match &mut self.feed {
            Feed::None => Ok(Fed::Nothing { until_ms: None }),
            Feed::Polled => {
                if let Some(at) = self.poll_at_ms.filter(|at| *at > self.now_ms) {
                    return Ok(Fed::Nothing { until_ms: Some(at) });
                }
                let step = self.call_once(Call::Poll)?;
                self.source_ended = step.status == Status::Ended;
                // Nothing now and no deadline: only a command can bring more.
                self.poll_at_ms = match step.status {
                    Status::More => None,
                    Status::Done | Status::Ended => Some(step.deadline_ms.unwrap_or(u64::MAX)),
                };
                Ok(if step.status == Status::Done {
                    Fed::Nothing {
                        until_ms: step.deadline_ms,
                    }
                } else {
                    Fed::Records
                })
            }
            Feed::Reader(reader) => {
                self.batch.clear();
                let outcome = reader
                    .read(self.now_ms, &mut self.batch)
                    .map_err(|error| failure(Blame::Cluster, crate::error_chain(&error)))?;
                let wanted_total = reader.wanted_total();
                let starved = matches!(outcome, ReadOutcome::NeedSplit);
                let ask_again_ms = self
                    .splits
                    .as_mut()
                    .and_then(|splits| splits.want(wanted_total, starved, self.now_ms));
                match outcome {
                    ReadOutcome::Batch { split, .. } => {
                        let batch = std::mem::take(&mut self.batch);
                        let result = self.call(Call::Process {
                            port: 0,
                            split,
                            batch: &batch,
                        });
                        self.batch = batch;
                        result.map(|()| Fed::Records)
                    }
                    ReadOutcome::NeedSplit => Ok(Fed::Nothing {
                        until_ms: ask_again_ms,
                    }),
                    ReadOutcome::Wait { until_ms } => Ok(Fed::Nothing {
                        until_ms: Some(until_ms),
                    }),
                    ReadOutcome::Ended => {
                        self.source_ended = true;
                        Ok(Fed::Records)
                    }
                }
            }
        }
    }

    /// Calls the body and keeps what its step says about the next call.
    fn call(&mut self, call: Call<'_>) -> Result<(), TaskFailure> {
        let step = self.call_once(call)?;
        self.unfinished_call = step.status == Status::More;
        self.timer_at_ms = step.deadline_ms;
        Ok(())
    }

    fn call_once(&mut self, call: Call<'_>) -> Result<Step, TaskFailure> {
        let batch_preview = match &call {
            Call::Process { batch, .. } => &batch[..batch.len().min(super::PREVIEW_MAX_BYTES)],
            _ => &[],
        };
        let began = Instant::now();
        if let Call::Process { batch, .. } = &call {
            self.counters
                .bytes_in
                .fetch_add(batch.len() as u64, std::sync::atomic::Ordering::Relaxed);
        }
        self.unflushed = true;
        let preview_of = batch_preview;
        let result = self.body.call(call, self.now_ms);
        add_time(&self.counters.busy_us, began.elapsed());
        result.map_err(|failure| TaskFailure {
            batch_preview: preview(preview_of),
            ..failure
        })
    }

    fn on_frame(&mut self, index: usize, frame: Frame) -> Result<(), TaskFailure> {
        match frame.body {
            FrameBody::Data(payload) => match self.inputs.get(index).role {
                InputRole::Records { port } => self.call(Call::Process {
                    port,
                    split: SPLIT_NONE,
                    batch: &payload,
                }),
                InputRole::Splits => self.on_split(&payload),
            },
            FrameBody::Barrier(checkpoint) => {
                let actions = self.alignment.barrier(self.core_time(), index, checkpoint);
                self.on_alignment(actions)
            }
            FrameBody::Watermark(timestamp_ms) => {
                let role = self.inputs.get(index).role;
                self.watermarks.advance(index, timestamp_ms);
                self.on_watermark(role)
            }
            FrameBody::EndOfInput => {
                if self.alignment.ended(index) {
                    // A restored sender says again what this task's image already knows.
                    return Ok(());
                }
                let actions = self.alignment.end_of_input(self.core_time(), index);
                self.watermarks.end(index);
                self.on_alignment(actions)?;
                self.on_watermark(self.inputs.get(index).role)
            }
        }
    }

    fn on_watermark(&mut self, role: InputRole) -> Result<(), TaskFailure> {
        let InputRole::Records { port } = role else {
            return Ok(());
        };
        if let Some(timestamp_ms) = self.watermarks.risen(port) {
            self.call(Call::Watermark { port, timestamp_ms })?;
        }
        if let Some(timestamp_ms) = self.watermarks.risen_over_all() {
            self.body.flush()?;
            self.body.outputs().watermark(timestamp_ms);
        }
        Ok(())
    }

    fn on_split(&mut self, payload: &[u8]) -> Result<(), TaskFailure> {
        let assignment: SplitAssignment = codec::decode(payload)
            .map_err(|error| failure(Blame::Bug, crate::error_chain(&error)))?;
        match &mut self.feed {
            Feed::Reader(reader) => reader
                .assign(assignment)
                .map_err(|error| failure(Blame::Cluster, crate::error_chain(&error))),
            Feed::None | Feed::Polled => Err(failure(
                Blame::Bug,
                "a split was assigned to a task without a native source".to_owned(),
            )),
        }
    }

    fn on_word(
        &mut self,
        checkpoint: CheckpointId,
        word: CheckpointWord,
    ) -> Result<(), TaskFailure> {
        let now = self.core_time();
        let actions = match word {
            CheckpointWord::Announce { then_pause } => {
                self.alignment.announced(now, checkpoint, then_pause)
            }
            CheckpointWord::Abort => {
                self.capturing.abandon(checkpoint);
                self.alignment.aborted(now, checkpoint)
            }
            CheckpointWord::Complete => {
                self.body.outputs().commit(checkpoint)?;
                self.capturing.committed(checkpoint);
                Vec::new()
            }
        };
        self.on_alignment(actions)
    }

    /// Its checkpoint will not complete without a leader, and a channel that waits for the barrier of a task that was
    /// not told of it would wait until there is another.
    fn on_leader_lost(&mut self) -> Result<(), TaskFailure> {
        self.capturing.abandon_all();
        let actions = self.alignment.leader_lost(self.core_time());
        self.on_alignment(actions)
    }

    /// When there is something to do though nothing arrives: barriers will be late, if they are not already, or pages can
    /// be copied.
    fn wake_at(&self) -> Option<Instant> {
        let now = self.core_time();
        let late = self.alignment.poll_timeout().filter(|due| *due > now);
        let due = [late, self.ahead.due_at()].into_iter().flatten().min()?;
        Some(Instant::now() + due.since(now))
    }

    /// Copies some of the pages that the next capture takes, if it is time to.
    fn copy_ahead(&mut self) {
        let Some(due) = self.ahead.due_at() else {
            return;
        };
        let began = self.core_time();
        if due <= began {
            let pages = self.body.capture_ahead(SLICE_PAGES);
            self.ahead.copied(began, self.core_time(), pages);
        }
    }

    /// Waits no longer for barriers than it should, and reads the channels whose barriers are late: whether the task is
    /// called or not.
    fn see_to_late_barriers(&mut self) -> Result<(), TaskFailure> {
        if let Some(due) = self.alignment.poll_timeout() {
            let now = self.core_time();
            if due <= now && self.inputs.may_record() {
                let actions = self.alignment.handle_timeout(now);
                self.on_alignment(actions)?;
            }
        }
        let Some(checkpoint) = self.alignment.recording() else {
            return Ok(());
        };
        match self.inputs.record(&mut self.alignment) {
            Ok(actions) => self.on_alignment(actions),
            Err(too_much) => {
                // What it would say to do about it follows here, with the reason.
                self.alignment.aborted(self.core_time(), checkpoint);
                self.give_up_recording(checkpoint);
                self.capturing.decline(checkpoint, &too_much.to_string());
                Ok(())
            }
        }
    }

    fn give_up_recording(&mut self, checkpoint: CheckpointId) {
        self.capturing.abandon(checkpoint);
        self.inputs.drop_recording();
    }

    fn on_alignment(&mut self, actions: Vec<AlignmentAction>) -> Result<(), TaskFailure> {
        for action in actions {
            match action {
                AlignmentAction::Capture {
                    checkpoint,
                    alignment,
                } => self.capture(checkpoint, alignment, None)?,
                AlignmentAction::CaptureAndRecord {
                    checkpoint,
                    alignment,
                } => {
                    let (done, recorded) = oneshot::channel();
                    self.capture(checkpoint, alignment, Some(recorded))?;
                    self.inputs.begin_recording(done);
                }
                AlignmentAction::Recorded { .. } => self.inputs.finish_recording(),
                AlignmentAction::Cancelled { checkpoint } => {
                    self.give_up_recording(checkpoint);
                    self.capturing.decline(
                        checkpoint,
                        "its alignment was given up: it was aborted, or a later barrier came first",
                    );
                }
            }
        }
        Ok(())
    }

    fn capture(
        &mut self,
        checkpoint: CheckpointId,
        alignment: Duration,
        recorded: Option<oneshot::Receiver<Recorded>>,
    ) -> Result<(), TaskFailure> {
        let began = Instant::now();
        if self.phase != Phase::Finished {
            self.body.flush()?;
            self.unflushed = false;
            self.flushed_at = began;
        }
        let sinks = self.body.outputs().barrier(checkpoint)?;
        let (again, room) = (self.capturing.again(), self.capturing.room());
        let mut change = self.body.capture(again, room)?;
        self.capturing.captured(checkpoint, &change);
        let ahead_pages = self
            .ahead
            .captured(self.core_time(), change.changed_pages());
        change.capture.host_state = codec::encode(&self.host_state(sinks));
        let finished = self.phase == Phase::Finished;
        self.capturing.upload(Captured {
            checkpoint,
            change,
            finished,
            alignment,
            pause: began.elapsed(),
            ahead_pages,
            recorded,
        });
        Ok(())
    }

    fn host_state(&self, sinks: Vec<(u32, Vec<u8>)>) -> HostState {
        let ended = |(index, _): &(usize, _)| self.alignment.ended(*index);
        HostState {
            now_ms: self.now_ms,
            phase: self.phase,
            unfinished_call: self.unfinished_call,
            timer_at_ms: self.timer_at_ms,
            source_ended: self.source_ended,
            ended_channels: self
                .inputs
                .iter()
                .enumerate()
                .filter(ended)
                .map(|(_, input)| input.channel)
                .collect(),
            watermarks: self.watermarks.save(|index| self.inputs.get(index).channel),
            reader: match &self.feed {
                Feed::Reader(reader) => Some(reader.state()),
                Feed::None | Feed::Polled => None,
            },
            sinks,
            body: self.body.native_state(),
        }
    }

    /// Says the last word to everyone who waits for it.
    fn close(&mut self) {
        self.body.outputs().end();
        self.unflushed = false;
        self.count_now();
        self.capturing.report(TaskState::Finished);
    }

    fn idle(&mut self, until: Option<Instant>) -> Result<(), TaskFailure> {
        let until = [until, self.wake_at()].into_iter().flatten().min();
        if !self.unflushed {
            self.mailbox.wait(until);
            return Ok(());
        }
        let flush_at = self.flushed_at + IDLE_FLUSH;
        if flush_at <= Instant::now() {
            return self.flush_if_older(Duration::ZERO);
        }
        self.mailbox
            .wait(Some(until.map_or(flush_at, |until| until.min(flush_at))));
        Ok(())
    }

    fn flush_if_older(&mut self, age: Duration) -> Result<(), TaskFailure> {
        let now = Instant::now();
        if self.unflushed && now.duration_since(self.flushed_at) >= age {
            self.body.flush()?;
            self.unflushed = false;
            self.flushed_at = now;
        }
        Ok(())
    }

    fn count(&mut self) {
        if self.counted_at.elapsed() >= COUNT_INTERVAL {
            self.count_now();
        }
    }

    fn count_now(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.counted_at = Instant::now();
        let records = self.body.records();
        self.counters.records_in.store(records.input, Relaxed);
        self.counters.records_out.store(records.output, Relaxed);
        self.counters
            .bytes_out
            .store(self.body.outputs().bytes_out(), Relaxed);
        self.counters
            .memory_bytes
            .store(self.body.memory_bytes(), Relaxed);
    }
}

/// What reading the feed came to.
enum Fed {
    /// Something was processed, or the feed has just ended.
    Records,
    /// Nothing before this time, in milliseconds since the Unix epoch.
    Nothing { until_ms: Option<u64> },
}
