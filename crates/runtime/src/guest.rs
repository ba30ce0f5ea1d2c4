//! The store of one guest and the way into it: every call gets a deadline and fresh counters, and after a failed one
//! there is no other. It knows no export by name; [`crate::instance`] does.

use std::time::Duration;

use tidemill_abi::export;
use wasmtime::{Memory, Store, TypedFunc, WasmParams, WasmResults};

use crate::call_error::{CallError, backtrace, trap_reason};
use crate::engine::TICK;
use crate::host::{GuestHost, State};
use crate::limits::InstanceLimits;

/// What a call may take longer while pages of its memory are still to come: a minute, for a store that is slow. A source
/// gives up on its own.
const FILLING_GRACE_TICKS: u64 = 60_000 / TICK.as_millis() as u64;

/// A store with its one memory.
pub(crate) struct Guest<H: GuestHost> {
    pub(crate) store: Store<State<H>>,
    pub(crate) memory: Memory,
    pub(crate) failed: bool,
    call_deadline: Duration,
    deadline_ticks: u64,
    response_max_bytes: u64,
}

impl<H: GuestHost> Guest<H> {
    pub(crate) fn new(store: Store<State<H>>, memory: Memory, limits: &InstanceLimits) -> Self {
        let deadline_ticks = limits.deadline_ticks();
        Self {
            store,
            memory,
            failed: false,
            call_deadline: limits.call_deadline,
            deadline_ticks,
            response_max_bytes: limits.call_output_max_bytes,
        }
    }

    /// Calls the guest. `name` is for the error.
    #[inline]
    pub(crate) fn enter<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &'static str,
        function: &TypedFunc<P, R>,
        params: P,
    ) -> Result<R, CallError> {
        let filling = self.store.data_mut().is_filling();
        if filling {
            self.check_memory()?;
        }
        if self.failed {
            return Err(CallError::Failed { function: name });
        }
        self.store.data_mut().begin_call();
        let grace_ticks = if filling { FILLING_GRACE_TICKS } else { 0 };
        self.store
            .set_epoch_deadline(self.deadline_ticks + grace_ticks);
        let answer = function
            .call(&mut self.store, params)
            .map_err(|error| self.trapped(name, &error));
        if filling {
            // Whatever it answered, it may have read a page that did not come.
            self.check_memory()?;
        }
        answer
    }

    /// Whether every page of the memory is there, or still comes.
    #[cold]
    fn check_memory(&mut self) -> Result<(), CallError> {
        let Some(reason) = self.store.data().lost() else {
            return Ok(());
        };
        let reason = reason.to_owned();
        self.failed = true;
        Err(CallError::ImageLost { reason })
    }

    #[cold]
    fn trapped(&mut self, function: &'static str, error: &wasmtime::Error) -> CallError {
        self.failed = true;
        let state = self.store.data_mut();
        let reason = trap_reason(error, state.limiter.take_refused(), self.call_deadline);
        CallError::Trap {
            function,
            reason,
            panic: state.panic.take(),
            backtrace: backtrace(error),
        }
    }

    /// Copies the input of a call into the guest, where the guest says. Returns its address and length.
    pub(crate) fn put(
        &mut self,
        name: &'static str,
        allocate: &TypedFunc<u32, u32>,
        input: &[u8],
    ) -> Result<(u32, u32), CallError> {
        let len = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let pointer = if len == u32::MAX {
            0
        } else {
            self.enter(export::ALLOCATE, allocate, len)?
        };
        let memory = self.memory.data_mut(&mut self.store);
        let memory_bytes = memory.len() as u64;
        let start = pointer as usize;
        let room = start
            .checked_add(input.len())
            .and_then(|end| memory.get_mut(start..end));
        match room.filter(|_| pointer != 0) {
            // Where pages are missing this waits for them; the call that follows asks whether they came.
            Some(room) => room.copy_from_slice(input),
            None => {
                self.failed = true;
                return Err(CallError::NoRoom {
                    function: name,
                    len: input.len() as u64,
                    pointer,
                    memory_bytes,
                });
            }
        }
        Ok((pointer, len))
    }

    /// Copies out the bytes that a packed answer (`pointer << 32 | len`) names.
    pub(crate) fn take(&mut self, name: &'static str, packed: u64) -> Result<Vec<u8>, CallError> {
        let (pointer, len) = ((packed >> 32) as usize, (packed & 0xffff_ffff) as usize);
        let memory = self.memory.data(&self.store);
        let answer = pointer
            .checked_add(len)
            .and_then(|end| memory.get(pointer..end));
        let reason = match answer {
            Some(_) if len as u64 > self.response_max_bytes => {
                format!(
                    "it has {len} bytes, more than {} (call_output_max_bytes)",
                    self.response_max_bytes
                )
            }
            Some(answer) => {
                let answer = answer.to_vec();
                self.check_memory()?;
                return Ok(answer);
            }
            None => format!(
                "{len} bytes at {pointer:#x} are outside its {} bytes of memory",
                memory.len()
            ),
        };
        self.failed = true;
        Err(CallError::BadResponse {
            function: name,
            reason,
        })
    }
}
