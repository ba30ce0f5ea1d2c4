//! One guest instance: what a task calls. Every call is bounded in time, memory and output, and answers with plain data.
//!
//! It never calls a guest again after a failed call, and never runs guest code to make or restore an instance.

use std::io;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_abi::{DescribeRequest, DescribeResponse, OpenRequest, OpenResponse, Step, export};
use tidemill_protocol::Image;
use wasmtime::{Linker, Store, TypedFunc};

use crate::ahead::Ahead;
use crate::call_error::{CallError, TrapReason};
use crate::changes::Changes;
use crate::guest::Guest;
use crate::host::{self, GuestHost, State};
use crate::image::{self, CaptureError, ImageMismatch, OutsideMemory};
use crate::limits::InstanceLimits;
use crate::mapping::Mapping;
use crate::module::Module;

/// Why an instance could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// What the module or the image needs from the start is beyond a limit.
    #[error("the instance {0}")]
    Limit(TrapReason),
    /// The engine could not make it; often a data or element segment that does not fit.
    #[error("the module cannot be instantiated: {reason}")]
    Instantiation {
        /// The engine's words.
        reason: String,
    },
    /// The image is not one of this module.
    #[error("the image does not fit the module")]
    Image(#[source] ImageMismatch),
    /// The memory's bytes could not be had.
    #[error("the image's memory cannot be read: {reason}")]
    Memory {
        /// What their source said.
        reason: String,
    },
}

impl InstanceError {
    /// The operating system has no memory, or no addresses.
    pub(crate) fn no_memory(error: io::Error) -> Self {
        Self::Instantiation {
            reason: format!("the operating system refused memory: {error}"),
        }
    }
}

/// Which records [`Instance::records`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordCount {
    /// Those that came in.
    In,
    /// Those that went out.
    Out,
}

/// The functions a job exports.
struct Exports {
    allocate: TypedFunc<u32, u32>,
    describe: TypedFunc<(u32, u32), u64>,
    open: TypedFunc<(u32, u32), u64>,
    process: TypedFunc<(u32, u64, u32, u32, u64), u64>,
    resume: TypedFunc<u64, u64>,
    poll: TypedFunc<u64, u64>,
    watermark: TypedFunc<(u32, i64, u64), u64>,
    timer: TypedFunc<u64, u64>,
    finish: TypedFunc<u64, u64>,
    flush: TypedFunc<(), ()>,
    records: Option<TypedFunc<u32, i64>>,
}

impl Exports {
    fn find<H: GuestHost>(
        instance: &wasmtime::Instance,
        store: &mut Store<State<H>>,
    ) -> wasmtime::Result<Self> {
        Ok(Self {
            allocate: instance.get_typed_func(&mut *store, export::ALLOCATE)?,
            describe: instance.get_typed_func(&mut *store, export::DESCRIBE)?,
            open: instance.get_typed_func(&mut *store, export::OPEN)?,
            process: instance.get_typed_func(&mut *store, export::PROCESS)?,
            resume: instance.get_typed_func(&mut *store, export::RESUME)?,
            poll: instance.get_typed_func(&mut *store, export::POLL)?,
            watermark: instance.get_typed_func(&mut *store, export::WATERMARK)?,
            timer: instance.get_typed_func(&mut *store, export::TIMER)?,
            finish: instance.get_typed_func(&mut *store, export::FINISH)?,
            flush: instance.get_typed_func(&mut *store, export::FLUSH)?,
            records: instance.get_typed_func(&mut *store, export::RECORDS).ok(),
        })
    }
}

/// One instance of a module: one linear memory, entered by one thread at a time.
///
/// The thread that calls it needs [`crate::GUEST_STACK_BYTES`] of stack beyond its own.
pub struct Instance<H: GuestHost> {
    pub(crate) guest: Guest<H>,
    pub(crate) wasmtime: wasmtime::Instance,
    pub(crate) module: Module,
    exports: Exports,
    /// What the memory is made of.
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) changes: Changes,
    /// Changed pages that were copied before their capture.
    pub(crate) ahead: Ahead,
}

impl<H: GuestHost> std::fmt::Debug for Instance<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("module", &self.module)
            .field("failed", &self.guest.failed)
            .finish_non_exhaustive()
    }
}

impl<H: GuestHost> Instance<H> {
    /// Makes a fresh instance. No guest code runs.
    ///
    /// # Errors
    /// When its initial memory or tables are beyond the limits, or a segment does not fit.
    pub fn new(module: &Module, limits: InstanceLimits, host: H) -> Result<Self, InstanceError> {
        let mapping = Mapping::reserve().map_err(InstanceError::no_memory)?;
        Self::over(Arc::new(mapping), module, limits, host)
    }

    /// Makes an instance over a mapping. Where it is not a fresh one, memory is what was there, with the module's data
    /// segments over it.
    pub(crate) fn over(
        mapping: Arc<Mapping>,
        module: &Module,
        limits: InstanceLimits,
        host: H,
    ) -> Result<Self, InstanceError> {
        let failed = |error: wasmtime::Error| InstanceError::Instantiation {
            reason: format!("{error:#}"),
        };
        let mut store = Store::new(module.wasmtime().engine(), State::new(host, &limits));
        store.limiter(|state| &mut state.limiter);
        // Placing segments counts as execution.
        store.set_epoch_deadline(limits.deadline_ticks());
        let mut linker = Linker::new(module.wasmtime().engine());
        host::define(&mut linker).map_err(failed)?;
        let instantiated = mapping.lend(|| linker.instantiate(&mut store, module.wasmtime()));
        let wasmtime = match instantiated {
            Ok(instance) => instance,
            Err(error) => {
                let refused = store.data_mut().limiter.take_refused();
                return Err(refused.map_or_else(|| failed(error), InstanceError::Limit));
            }
        };
        let exports = Exports::find(&wasmtime, &mut store).map_err(failed)?;
        let memory = wasmtime
            .get_memory(&mut store, export::MEMORY)
            .ok_or_else(|| InstanceError::Instantiation {
                reason: "the memory is not exported".into(),
            })?;
        store.data_mut().memory = Some(memory);
        Ok(Self {
            guest: Guest::new(store, memory, &limits),
            wasmtime,
            module: module.clone(),
            exports,
            mapping,
            changes: Changes::default(),
            ahead: Ahead::default(),
        })
    }

    /// Captures the whole instance. `host_state` is left empty for the caller.
    ///
    /// # Errors
    /// When a call has failed, so that the guest's state is undefined, or when a table holds a function that
    /// instrumentation did not make reachable.
    pub fn capture(&mut self) -> Result<Image, CaptureError> {
        let (globals, tables) = self.capture_outside_memory()?;
        let memory = self.guest.memory.data(&self.guest.store).to_vec();
        self.check_memory()?;
        Ok(Image {
            memory,
            globals,
            tables,
            host_state: Vec::new(),
            channel_state: Vec::new(),
        })
    }

    pub(crate) fn capture_outside_memory(&mut self) -> Result<OutsideMemory, CaptureError> {
        self.check_memory()?;
        if self.guest.failed {
            return Err(CaptureError::Failed);
        }
        image::capture_outside_memory(&mut self.guest, &self.wasmtime, self.module.reachable())
    }

    /// Whether every page that was read so far is what was captured.
    pub(crate) fn check_memory(&self) -> Result<(), CaptureError> {
        match self.guest.store.data().lost() {
            Some(reason) => Err(CaptureError::ImageLost {
                reason: reason.to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Asks for the job's graph.
    ///
    /// # Errors
    /// See [`CallError`]; the user's own mistakes are in the response.
    pub fn describe(&mut self, request: &DescribeRequest) -> Result<DescribeResponse, CallError> {
        let response = self.describe_bytes(request)?;
        self.decode(export::DESCRIBE, &response)
    }

    /// The encoded answer of `describe`.
    pub(crate) fn describe_bytes(
        &mut self,
        request: &DescribeRequest,
    ) -> Result<Vec<u8>, CallError> {
        let request = encode(request);
        let (pointer, len) = self
            .guest
            .put(export::DESCRIBE, &self.exports.allocate, &request)?;
        let packed = self
            .guest
            .enter(export::DESCRIBE, &self.exports.describe, (pointer, len))?;
        self.guest.take(export::DESCRIBE, packed)
    }

    /// Decodes an answer; a guest whose answers cannot be read is not called again.
    pub(crate) fn decode<R: DeserializeOwned>(
        &mut self,
        function: &'static str,
        bytes: &[u8],
    ) -> Result<R, CallError> {
        let reason = match postcard::take_from_bytes(bytes) {
            Ok((response, [])) => return Ok(response),
            Ok((_, rest)) => format!("{} bytes follow it", rest.len()),
            Err(error) => error.to_string(),
        };
        self.guest.failed = true;
        Err(CallError::BadResponse { function, reason })
    }

    /// Starts a fresh instance as one subtask. Never called after a restore.
    ///
    /// # Errors
    /// See [`CallError`]; the user's own mistakes are in the response.
    pub fn open(&mut self, request: &OpenRequest) -> Result<OpenResponse, CallError> {
        let request = encode(request);
        let (pointer, len) = self
            .guest
            .put(export::OPEN, &self.exports.allocate, &request)?;
        let packed = self
            .guest
            .enter(export::OPEN, &self.exports.open, (pointer, len))?;
        let response = self.guest.take(export::OPEN, packed)?;
        self.decode(export::OPEN, &response)
    }

    /// Hands over one frame of input on `port`, from `split` of a source or [`tidemill_abi::SPLIT_NONE`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn process(
        &mut self,
        port: u32,
        split: u64,
        frame: &[u8],
        now_ms: u64,
    ) -> Result<Step, CallError> {
        let (pointer, len) = self
            .guest
            .put(export::PROCESS, &self.exports.allocate, frame)?;
        let params = (port, split, pointer, len, now_ms);
        let packed = self
            .guest
            .enter(export::PROCESS, &self.exports.process, params)?;
        self.step(export::PROCESS, packed)
    }

    /// Continues a call that answered [`tidemill_abi::Status::More`].
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn resume(&mut self, now_ms: u64) -> Result<Step, CallError> {
        let packed = self
            .guest
            .enter(export::RESUME, &self.exports.resume, now_ms)?;
        self.step(export::RESUME, packed)
    }

    /// Lets a guest-written source make its next batch.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn poll(&mut self, now_ms: u64) -> Result<Step, CallError> {
        let packed = self.guest.enter(export::POLL, &self.exports.poll, now_ms)?;
        self.step(export::POLL, packed)
    }

    /// Advances event time on `port`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn watermark(
        &mut self,
        port: u32,
        timestamp_ms: i64,
        now_ms: u64,
    ) -> Result<Step, CallError> {
        let packed = self.guest.enter(
            export::WATERMARK,
            &self.exports.watermark,
            (port, timestamp_ms, now_ms),
        )?;
        self.step(export::WATERMARK, packed)
    }

    /// Says that the deadline of an earlier step has come.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn timer(&mut self, now_ms: u64) -> Result<Step, CallError> {
        let packed = self
            .guest
            .enter(export::TIMER, &self.exports.timer, now_ms)?;
        self.step(export::TIMER, packed)
    }

    /// Says that every input has ended.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn finish(&mut self, now_ms: u64) -> Result<Step, CallError> {
        let packed = self
            .guest
            .enter(export::FINISH, &self.exports.finish, now_ms)?;
        self.step(export::FINISH, packed)
    }

    /// Lets the guest emit its partly filled buffers.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn flush(&mut self) -> Result<(), CallError> {
        self.guest.enter(export::FLUSH, &self.exports.flush, ())
    }

    /// How many records this instance has seen since it was opened; `None` if the guest does not count them, or is not
    /// open yet.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn records(&mut self, which: RecordCount) -> Result<Option<u64>, CallError> {
        let Some(function) = &self.exports.records else {
            return Ok(None);
        };
        let which = match which {
            RecordCount::In => 0,
            RecordCount::Out => 1,
        };
        let count = self.guest.enter(export::RECORDS, function, which)?;
        Ok(u64::try_from(count).ok())
    }

    /// The size of the linear memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.guest.memory.data_size(&self.guest.store) as u64
    }

    /// What receives the guest's output.
    pub fn host_mut(&mut self) -> &mut H {
        &mut self.guest.store.data_mut().host
    }

    /// Reserves room in the guest that stays unused, so that what it allocates next lies elsewhere.
    pub(crate) fn shift_heap(&mut self, bytes: u32) -> Result<(), CallError> {
        self.guest
            .enter(export::ALLOCATE, &self.exports.allocate, bytes)
            .map(|_pointer| ())
    }

    fn step(&mut self, function: &'static str, packed: u64) -> Result<Step, CallError> {
        let step = Step::unpack(packed).ok_or(CallError::BadStep { function, packed });
        self.guest.failed |= step.is_err();
        step
    }
}

fn encode(request: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(request).expect("requests hold only what postcard encodes")
}
