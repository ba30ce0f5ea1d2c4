//! The host's side of the ABI: the functions that a guest may call, and what a store holds while it runs.
//!
//! It never blocks, and never trusts an address: what lies outside the guest's memory stops the call by name.

use std::sync::Arc;

use tidemill_abi::{IMPORT_MODULE, LogLevel, import};
use wasmtime::{Caller, Linker, Memory};

use crate::call_error::TrapReason;
use crate::dirty::CAPTURE_PAGE_BYTES;
use crate::fill::Fill;
use crate::limits::{InstanceLimits, Limiter};

/// The longest line that reaches [`GuestHost::log`], in bytes; the rest of a longer one is cut.
pub const LOG_LINE_MAX_BYTES: usize = 16 * 1024;

/// Receives what a guest says during a call. It must not block: a task's thread waits for it.
pub trait GuestHost: Send + 'static {
    /// One encoded batch for subtask `target` behind output `output` of the stage. Neither number has been checked.
    fn emit(&mut self, output: u32, target: u32, batch: &[u8]);

    /// One line for the task's log. Nothing bounds how many a call writes, except its deadline.
    fn log(&mut self, level: LogLevel, line: &str);
}

/// What a store holds.
pub(crate) struct State<H> {
    pub(crate) host: H,
    pub(crate) limiter: Limiter,
    /// Set once the instance exists; host functions cannot run before.
    pub(crate) memory: Option<Memory>,
    output_max_bytes: u64,
    output_bytes: u64,
    /// The last panic message of this call.
    pub(crate) panic: Option<String>,
    /// While pages of the memory may still be missing, or when the memory is lost.
    pub(crate) fill: Option<Arc<Fill>>,
}

impl<H> State<H> {
    pub(crate) fn new(host: H, limits: &InstanceLimits) -> Self {
        Self {
            host,
            limiter: Limiter::new(limits),
            memory: None,
            output_max_bytes: limits.call_output_max_bytes,
            output_bytes: 0,
            panic: None,
            fill: None,
        }
    }

    /// Why the memory is lost, if it is.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.fill.as_deref()?.lost()
    }

    /// Whether pages of the memory may still be missing.
    pub(crate) fn is_filling(&mut self) -> bool {
        if self.fill.as_deref().is_some_and(Fill::is_complete) {
            self.fill = None;
        }
        self.fill.is_some()
    }

    /// Forgets what belonged to the call before.
    pub(crate) fn begin_call(&mut self) {
        self.output_bytes = 0;
        self.panic = None;
        self.limiter.take_refused();
    }
}

/// A host function stopped the guest.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HostFault(pub(crate) TrapReason);

/// Defines every host function.
pub(crate) fn define<H: GuestHost>(linker: &mut Linker<State<H>>) -> wasmtime::Result<()> {
    linker.func_wrap(
        IMPORT_MODULE,
        import::EMIT,
        |mut caller: Caller<'_, State<H>>,
         output: u32,
         target: u32,
         pointer: u32,
         len: u32|
         -> wasmtime::Result<()> {
            let (bytes, state) = guest_bytes(&mut caller, import::EMIT, pointer, len)?;
            state.output_bytes = state.output_bytes.saturating_add(u64::from(len));
            if state.output_bytes > state.output_max_bytes {
                return Err(HostFault(TrapReason::OutputLimit {
                    limit_bytes: state.output_max_bytes,
                })
                .into());
            }
            state.host.emit(output, target, bytes);
            Ok(())
        },
    )?;
    linker.func_wrap(
        IMPORT_MODULE,
        import::LOG,
        |mut caller: Caller<'_, State<H>>,
         level: u32,
         pointer: u32,
         len: u32|
         -> wasmtime::Result<()> {
            let (bytes, state) = guest_bytes(&mut caller, import::LOG, pointer, len)?;
            let level =
                LogLevel::from_u32(level).ok_or(HostFault(TrapReason::BadLogLevel { level }))?;
            let line = String::from_utf8_lossy(&bytes[..bytes.len().min(LOG_LINE_MAX_BYTES)]);
            if level == LogLevel::Panic {
                state.panic = Some(line.clone().into_owned());
            }
            state.host.log(level, &line);
            Ok(())
        },
    )?;
    Ok(())
}

/// The bytes that a guest points at, and the state beside them.
fn guest_bytes<'a, H: GuestHost>(
    caller: &'a mut Caller<'_, State<H>>,
    import: &'static str,
    pointer: u32,
    len: u32,
) -> Result<(&'a [u8], &'a mut State<H>), HostFault> {
    let memory = caller.data().memory;
    let (data, state) = match memory {
        Some(memory) => memory.data_and_store_mut(caller),
        None => (&mut [][..], caller.data_mut()),
    };
    let memory_bytes = data.len() as u64;
    let start = pointer as usize;
    let bytes = start
        .checked_add(len as usize)
        .and_then(|end| data.get(start..end));
    match bytes {
        Some(bytes) => {
            if state.fill.is_some() {
                // Whoever gets them may hand them to a system call, and the kernel does not wait for missing pages.
                touch(bytes);
            }
            match state.lost() {
                // The call ends here; what it answers says why.
                Some(reason) => Err(HostFault(TrapReason::Other {
                    reason: reason.to_owned(),
                })),
                None => Ok((bytes, state)),
            }
        }
        None => Err(HostFault(TrapReason::BadPointer {
            import,
            pointer,
            len,
            memory_bytes,
        })),
    }
}

/// Waits until every page of these bytes is there.
fn touch(bytes: &[u8]) {
    for page in bytes.chunks(CAPTURE_PAGE_BYTES) {
        std::hint::black_box(page[0]);
    }
    std::hint::black_box(bytes.last());
}
