//! What runs inside a task: a Wasm instance, or a native enumerator. One interface, so that barriers, backpressure and
//! capture are written once. A body never sees a channel or a checkpoint id.

use std::ops::Range;

use tidemill_abi::Status;
use tidemill_abi::Step;
use tidemill_connectors::Enumerator;
use tidemill_protocol::codec;
use tidemill_protocol::control::{Blame, TaskFailure};
use tidemill_protocol::image::StoredCapture;
use tidemill_protocol::split::SplitRequest;
use tidemill_runtime::{CallError, CaptureRoom, GuestHost, Instance, RecordCount};

use super::capture::Change;
use super::failure;
use super::outputs::Outputs;

/// One bounded call.
pub(crate) enum Call<'a> {
    /// A frame of records for a port, from a split (or [`tidemill_abi::SPLIT_NONE`]).
    Process {
        port: u32,
        split: u64,
        batch: &'a [u8],
    },
    /// Continue the call that answered `More`.
    Resume,
    /// A source is to make its next batch.
    Poll,
    /// Event time has come to this, in milliseconds, on a port.
    Watermark { port: u32, timestamp_ms: i64 },
    /// The deadline that a step named has come.
    Timer,
    /// Every input has ended.
    Finish,
}

/// Records in and out, as far as the body counts them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Records {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// What a task runs.
pub(crate) trait Body {
    /// Makes one bounded call at a processing time, in milliseconds since the Unix epoch.
    fn call(&mut self, call: Call<'_>, now_ms: u64) -> Result<Step, TaskFailure>;

    /// Emits every partly filled output buffer.
    fn flush(&mut self) -> Result<(), TaskFailure>;

    /// Takes a hint that a source task wants more splits.
    fn hint(&mut self, request: &SplitRequest);

    /// What changed since the last capture, all but the host's state; only between calls. `again` names pages that it
    /// holds whether they changed or not.
    fn capture(&mut self, again: Vec<Range<u32>>, room: CaptureRoom)
    -> Result<Change, TaskFailure>;

    /// Copies pages that changed, at most about so many, so that the next capture takes less time; how many it was.
    fn capture_ahead(&mut self, _pages_max: u32) -> u64 {
        0
    }

    /// A native body's own state, which goes into the host's part of the image.
    fn native_state(&self) -> Vec<u8>;

    /// Records so far.
    fn records(&mut self) -> Records;

    /// The linear memory's size.
    fn memory_bytes(&self) -> u64;

    /// Where it emits.
    fn outputs(&mut self) -> &mut Outputs;

    /// The instance, for the attempt after this one. Its outputs are closed.
    fn into_instance(self) -> Option<Instance<Outputs>>
    where
        Self: Sized,
    {
        None
    }
}

/// A Wasm instance.
pub(crate) struct WasmBody {
    instance: Instance<Outputs>,
}

impl WasmBody {
    pub(crate) fn new(instance: Instance<Outputs>) -> Self {
        Self { instance }
    }

    fn checked<T>(&mut self, result: Result<T, CallError>) -> Result<T, TaskFailure> {
        // An emission that failed is the cause when the guest then fails as well.
        self.instance.host_mut().take_failure()?;
        result.map_err(|error| call_failure(&error))
    }
}

/// A failed call, as the leader hears it. The frames travel beside the message, which stays short enough for a log.
pub(crate) fn call_failure(error: &CallError) -> TaskFailure {
    let CallError::Trap {
        function,
        reason,
        panic,
        backtrace,
    } = error
    else {
        return failure(Blame::Job, crate::error_chain(error));
    };
    let without_frames = CallError::Trap {
        function,
        reason: reason.clone(),
        panic: panic.clone(),
        backtrace: Vec::new(),
    };
    TaskFailure {
        backtrace: backtrace.clone(),
        ..failure(Blame::Job, crate::error_chain(&without_frames))
    }
}

impl Body for WasmBody {
    fn call(&mut self, call: Call<'_>, now_ms: u64) -> Result<Step, TaskFailure> {
        let instance = &mut self.instance;
        let result = match call {
            Call::Process { port, split, batch } => instance.process(port, split, batch, now_ms),
            Call::Resume => instance.resume(now_ms),
            Call::Poll => instance.poll(now_ms),
            Call::Watermark { port, timestamp_ms } => {
                instance.watermark(port, timestamp_ms, now_ms)
            }
            Call::Timer => instance.timer(now_ms),
            Call::Finish => instance.finish(now_ms),
        };
        self.checked(result)
    }

    fn flush(&mut self) -> Result<(), TaskFailure> {
        let result = self.instance.flush();
        self.checked(result)
    }

    fn hint(&mut self, _request: &SplitRequest) {}

    fn capture(
        &mut self,
        again: Vec<Range<u32>>,
        room: CaptureRoom,
    ) -> Result<Change, TaskFailure> {
        self.instance.capture_again(again);
        let captured = self.instance.capture_changes(room);
        let captured = captured.map_err(|error| failure(Blame::Job, crate::error_chain(&error)))?;
        Ok(Change {
            whole: captured.base.is_none(),
            capture: captured.into_stored(),
        })
    }

    fn capture_ahead(&mut self, pages_max: u32) -> u64 {
        self.instance.capture_ahead(pages_max)
    }

    fn native_state(&self) -> Vec<u8> {
        Vec::new()
    }

    fn records(&mut self) -> Records {
        let mut count = |which| self.instance.records(which).ok().flatten().unwrap_or(0);
        Records {
            input: count(RecordCount::In),
            output: count(RecordCount::Out),
        }
    }

    fn memory_bytes(&self) -> u64 {
        self.instance.memory_bytes()
    }

    fn outputs(&mut self) -> &mut Outputs {
        self.instance.host_mut()
    }

    fn into_instance(mut self) -> Option<Instance<Outputs>> {
        self.instance.host_mut().leave();
        Some(self.instance)
    }
}

/// A native task that hands out splits.
pub(crate) struct EnumeratorBody {
    enumerator: Enumerator,
    outputs: Outputs,
    assigned: u64,
}

impl EnumeratorBody {
    pub(crate) fn new(enumerator: Enumerator, outputs: Outputs) -> Self {
        Self {
            enumerator,
            outputs,
            assigned: 0,
        }
    }
}

impl Body for EnumeratorBody {
    fn call(&mut self, call: Call<'_>, _now_ms: u64) -> Result<Step, TaskFailure> {
        if let Call::Poll = call {
            while let Some((subtask, assignment)) = self.enumerator.poll() {
                self.assigned += 1;
                self.outputs.emit(0, subtask, &codec::encode(&assignment));
            }
            self.outputs.take_failure()?;
            if self.enumerator.is_done() {
                return Ok(Step {
                    status: Status::Ended,
                    deadline_ms: None,
                });
            }
        }
        Ok(Step::DONE)
    }

    fn flush(&mut self) -> Result<(), TaskFailure> {
        Ok(())
    }

    fn hint(&mut self, request: &SplitRequest) {
        self.enumerator
            .request(request.subtask, request.wanted_total);
    }

    fn capture(
        &mut self,
        _again: Vec<Range<u32>>,
        _room: CaptureRoom,
    ) -> Result<Change, TaskFailure> {
        Ok(Change {
            capture: StoredCapture::default(),
            whole: true,
        })
    }

    fn native_state(&self) -> Vec<u8> {
        self.enumerator.state()
    }

    fn records(&mut self) -> Records {
        Records {
            input: 0,
            output: self.assigned,
        }
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn outputs(&mut self) -> &mut Outputs {
        &mut self.outputs
    }
}
