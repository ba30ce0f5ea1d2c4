//! One task: the stage that it runs and the call that it has not completed. The exports of a module call it, and so
//! does the in-process interpreter: what a test runs is what a cluster runs. It never calls the host but to emit.

use core::mem;

use tidemill_abi::{DescribeRequest, JobGraph, OpenRequest, Status, Step, graph_hash};

use crate::context::Context;
use crate::job::{Job, Outcome, build};
use crate::plan::Purpose;
use crate::push::{Progress, Signal};
use crate::runner::{PollEnd, Runner};

/// Runs a job function for its graph.
pub(crate) fn describe<R: Outcome>(
    function: fn(&mut Job) -> R,
    name: &str,
    request: DescribeRequest,
) -> Result<JobGraph, String> {
    let DescribeRequest {
        parameters,
        allow_missing_parameters,
    } = request;
    let plan = build(
        function,
        name,
        Purpose {
            parameters,
            allow_missing_parameters,
            instance: None,
        },
    );
    plan.seal().map(|(graph, _)| graph)
}

/// A call that answered `More`.
#[derive(Clone, Copy, Debug)]
enum Pending {
    /// `process`, with the batch held and the position in it.
    Process,
    Poll,
    Signal(Signal),
}

/// One task of a job: a stage and its state.
pub(crate) struct Instance {
    runner: Box<dyn Runner>,
    pub(crate) cx: Context,
    pending: Option<Pending>,
    /// The batch of a pending `process`.
    held: Vec<u8>,
    held_len: usize,
    position: usize,
    /// When a guest-written source wants to be polled again.
    idle_until_ms: Option<u64>,
    /// Whether a guest-written source has ended.
    ended: bool,
    /// Whether the end of the input has been handled, after which no timer fires.
    finished: bool,
}

impl Instance {
    /// Builds the job's graph, keeps one stage of it, and gives the graph's hash.
    pub(crate) fn open<R: Outcome>(
        function: fn(&mut Job) -> R,
        name: &str,
        request: OpenRequest,
    ) -> Result<(Self, u64), String> {
        let cx = Context::new(request.subtask, request.parallelism);
        let stage = request.stage;
        let parameters = request.parameters.clone();
        let purpose = Purpose {
            parameters,
            allow_missing_parameters: false,
            instance: Some(request),
        };
        let (graph, runner) = build(function, name, purpose).seal()?;
        let stages = graph.stages.len();
        let runner =
            runner.ok_or_else(|| format!("the job has {stages} stages, and no stage {stage}"))?;
        let instance = Self {
            runner,
            cx,
            pending: None,
            held: Vec::new(),
            held_len: 0,
            position: 0,
            idle_until_ms: None,
            ended: false,
            finished: false,
        };
        Ok((instance, graph_hash(&graph)))
    }

    /// Runs a batch, the first `len` bytes of `inbox`. When the call answers `More` the batch is kept here, and `inbox`
    /// is another buffer, free to be written.
    pub(crate) fn process(&mut self, inbox: &mut Vec<u8>, len: usize, now_ms: u64) -> Step {
        self.begin("process", now_ms);
        self.position = 0;
        if self
            .runner
            .process(&inbox[..len], &mut self.position, &mut self.cx)
            == Progress::More
        {
            mem::swap(inbox, &mut self.held);
            self.held_len = len;
            return self.end(Some(Pending::Process));
        }
        self.end(None)
    }

    /// Goes on with the call that answered `More`; does nothing if there is none.
    pub(crate) fn resume(&mut self, inbox: &mut Vec<u8>, now_ms: u64) -> Step {
        match self.pending.take() {
            Some(Pending::Process) => self.resume_process(inbox, now_ms),
            Some(Pending::Poll) => self.poll(now_ms),
            Some(Pending::Signal(signal)) => self.signal(signal, now_ms),
            None => self.end(None),
        }
    }

    fn resume_process(&mut self, inbox: &mut Vec<u8>, now_ms: u64) -> Step {
        self.begin("resume", now_ms);
        let progress = self.runner.process(
            &self.held[..self.held_len],
            &mut self.position,
            &mut self.cx,
        );
        if progress == Progress::More {
            return self.end(Some(Pending::Process));
        }
        // One buffer serves from now on: the larger, so that it need not grow again.
        if self.held.len() > inbox.len() {
            mem::swap(inbox, &mut self.held);
        }
        self.held = Vec::new();
        self.end(None)
    }

    /// Lets a guest-written source make its next batch.
    pub(crate) fn poll(&mut self, now_ms: u64) -> Step {
        if matches!(self.pending, Some(Pending::Poll)) {
            self.pending = None;
        }
        self.begin("poll", now_ms);
        // A source's stage has timers, too, and one deadline for both.
        if self.cx.deadline_ms().is_some_and(|at_ms| at_ms <= now_ms) {
            self.cx.disarm();
            let _ = self.runner.signal(Signal::Timer, &mut self.cx);
        }
        if self.ended {
            return self.ended();
        }
        self.idle_until_ms = None;
        match self.runner.poll(&mut self.cx) {
            PollEnd::More => self.end(Some(Pending::Poll)),
            PollEnd::IdleUntil(until_ms) => {
                // 0 would mean no deadline, and the source would never be polled again.
                self.idle_until_ms = Some(until_ms.max(1));
                self.end(None)
            }
            PollEnd::Ended => {
                self.ended = true;
                self.ended()
            }
        }
    }

    /// Takes a port's watermark.
    #[cfg_attr(
        not(target_arch = "wasm32"),
        allow(dead_code, reason = "only hosts have event time; unit tests call this")
    )]
    pub(crate) fn watermark(&mut self, port: u32, timestamp_ms: i64, now_ms: u64) -> Step {
        match self.runner.watermark(port, timestamp_ms) {
            Some(of_stage_ms) => self.signal(Signal::Watermark(of_stage_ms), now_ms),
            None => self.end(None),
        }
    }

    /// Runs the timers that are due.
    pub(crate) fn timer(&mut self, now_ms: u64) -> Step {
        self.signal(Signal::Timer, now_ms)
    }

    /// Goes on with the end of the input.
    pub(crate) fn finish(&mut self, now_ms: u64) -> Step {
        self.signal(Signal::Finish, now_ms)
    }

    /// Emits every partly filled buffer.
    pub(crate) fn flush(&mut self) {
        let _ = self.runner.signal(Signal::Settle, &mut self.cx);
        let _ = self.runner.signal(Signal::Flush, &mut self.cx);
    }

    fn signal(&mut self, signal: Signal, now_ms: u64) -> Step {
        if matches!(self.pending, Some(Pending::Signal(pending)) if pending == signal) {
            self.pending = None;
        }
        self.begin("signal", now_ms);
        if self.finished {
            return self.end(None);
        }
        if signal == Signal::Timer {
            self.cx.disarm();
        }
        let progress = self.runner.signal(signal, &mut self.cx);
        if signal == Signal::Finish && progress == Progress::Done {
            self.finished = true;
            self.cx.disarm();
        }
        self.end((progress == Progress::More).then_some(Pending::Signal(signal)))
    }

    fn begin(&mut self, call: &str, now_ms: u64) {
        assert!(
            self.pending.is_none(),
            "the host called `{call}` before an earlier call was complete ({:?})",
            self.pending
        );
        self.cx.begin_call(now_ms);
    }

    fn ended(&mut self) -> Step {
        let status = Status::Ended;
        Step {
            status,
            ..self.end(None)
        }
    }

    fn end(&mut self, pending: Option<Pending>) -> Step {
        self.pending = pending;
        let _ = self.runner.signal(Signal::Settle, &mut self.cx);
        let status = match pending {
            Some(_) => Status::More,
            None => Status::Done,
        };
        let deadline_ms = [self.cx.deadline_ms(), self.idle_until_ms]
            .into_iter()
            .flatten()
            .min();
        Step {
            status,
            deadline_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prelude::*;
    use tidemill_abi::{KEY_GROUP_DEFAULT_MAX, framed};

    fn open(job: fn(&mut Job), stage: u32, output_parallelism: &[u32]) -> Instance {
        let request = OpenRequest {
            stage,
            subtask: 0,
            parallelism: 1,
            max_parallelism: KEY_GROUP_DEFAULT_MAX,
            output_parallelism: output_parallelism.to_vec(),
            parameters: Default::default(),
        };
        Instance::open(job, "job", request)
            .expect("the job is right")
            .0
    }

    fn emitted(instance: &mut Instance) -> Vec<u8> {
        mem::take(&mut instance.cx.outbox)
            .into_iter()
            .flat_map(|emission| emission.batch)
            .collect()
    }

    /// Makes a hundred kilobytes of each number.
    fn inflate(job: &mut Job) {
        job.source(generator(10))
            .map(|n| n.to_string().repeat(100_000))
            .sink(files("out").text());
    }

    #[test]
    fn much_output_stops_a_call_between_two_records_and_the_next_goes_on_there() {
        let mut instance = open(inflate, 0, &[1]);
        let mut inbox = Vec::new();
        for n in 0..10u64 {
            framed::push(&mut inbox, &n.to_le_bytes());
        }
        let batch = inbox.len();
        let mut step = instance.process(&mut inbox, batch, 1);
        let mut calls = 1;
        let mut written = emitted(&mut instance);
        while step.status == Status::More {
            // The host may write its next batch meanwhile, and may bring a barrier.
            inbox.fill(0xff);
            instance.flush();
            step = instance.resume(&mut inbox, 2);
            calls += 1;
            written.extend(emitted(&mut instance));
        }
        let heads: Vec<u8> = framed::records(&written)
            .map(|record| record.expect("whole")[0])
            .collect();
        assert_eq!(heads, b"0123456789");
        assert_eq!(calls, 4, "each call stops after a quarter of a mebibyte");
        assert_eq!((instance.cx.records_in, instance.cx.records_out), (10, 10));
    }

    /// Passes watermarks on as records.
    struct Watermarks;

    impl Operator<u64> for Watermarks {
        type Out = i64;

        fn process(&mut self, _record: u64, _out: &mut impl Emit<i64>) {}

        fn watermark(&mut self, timestamp_ms: i64, out: &mut impl Emit<i64>) {
            out.emit(timestamp_ms);
        }
    }

    fn joined(job: &mut Job) {
        job.source(generator(1))
            .union(job.source(generator(1)))
            .apply(Watermarks)
            .sink(print());
    }

    #[test]
    fn a_stages_watermark_is_the_least_of_its_ports_and_never_goes_back() {
        let mut instance = open(joined, 2, &[1]);
        for (port, timestamp_ms) in [(0, 10), (1, 5), (1, 7), (0, 3), (1, 20), (7, 99)] {
            assert_eq!(instance.watermark(port, timestamp_ms, 1), Step::DONE);
        }
        instance.flush();
        let written = emitted(&mut instance);
        let lines: Vec<&[u8]> = framed::records(&written)
            .map(|record| record.expect("whole"))
            .collect();
        assert_eq!(lines, [b"5", b"7", &b"10"[..]]);
    }

    #[test]
    #[should_panic(expected = "before an earlier call was complete")]
    fn input_before_an_earlier_call_is_complete_is_a_hosts_mistake() {
        let mut instance = open(inflate, 0, &[1]);
        let mut inbox = Vec::new();
        for n in 0..10u64 {
            framed::push(&mut inbox, &n.to_le_bytes());
        }
        let batch = inbox.len();
        assert_eq!(instance.process(&mut inbox, batch, 1).status, Status::More);
        let _ = instance.timer(1);
    }

    /// Makes three numbers with a rest before the last.
    struct Three(u64);

    impl Source for Three {
        type Item = u64;

        fn next(&mut self, cx: &Context) -> Next<u64> {
            self.0 += 1;
            match self.0 {
                1 | 2 => Next::Record(self.0),
                3 if cx.now_ms() < 100 => {
                    self.0 = 2;
                    Next::Idle { until_ms: 100 }
                }
                3 => Next::Record(3),
                _ => Next::End,
            }
        }
    }

    /// Says a second after each record that it is late.
    struct Late;

    impl Operator<u64> for Late {
        type Out = String;

        fn process(&mut self, n: u64, out: &mut impl Emit<String>) {
            out.emit(n.to_string());
            out.set_timer_ms(out.now_ms() + 1_000);
        }

        fn timer(&mut self, out: &mut impl Emit<String>) {
            out.emit("late".to_owned());
        }
    }

    fn late(job: &mut Job) {
        job.source(Three(0)).apply(Late).sink(files("out").text());
    }

    #[test]
    fn a_source_rests_until_its_deadline_and_no_timer_fires_after_the_end() {
        let mut instance = open(late, 0, &[1]);
        let rest = Step {
            status: Status::Done,
            deadline_ms: Some(100),
        };
        assert_eq!(instance.poll(1), rest);
        assert_eq!(instance.poll(50), rest, "too early");
        // A timer that was moved to a later time may cost one call too early.
        let ended = Step {
            status: Status::Ended,
            deadline_ms: Some(1_001),
        };
        assert_eq!(instance.poll(100), ended);
        assert_eq!(instance.poll(101), ended, "an end is for ever");
        assert_eq!(instance.finish(102), Step::DONE);
        assert_eq!(instance.timer(5_000), Step::DONE);
        instance.flush();
        let written = emitted(&mut instance);
        let lines: Vec<&[u8]> = framed::records(&written)
            .map(|record| record.expect("whole"))
            .collect();
        assert_eq!(lines, [b"1", b"2", b"3"]);
    }

    #[test]
    fn a_stage_that_the_job_does_not_have_cannot_be_opened() {
        let request = OpenRequest {
            stage: 9,
            subtask: 0,
            parallelism: 1,
            max_parallelism: 128,
            output_parallelism: Vec::new(),
            parameters: Default::default(),
        };
        let error = Instance::open(inflate, "job", request).err();
        assert_eq!(
            error.as_deref(),
            Some("the job has 1 stages, and no stage 9")
        );
    }
}
