//! Why a call into a guest failed, in words that name the function, the limit and the place in the guest's code.
//! Plain data: it holds nothing of the engine, compares in tests and travels in messages.

use std::time::Duration;

use wasmtime::{Trap, WasmBacktrace};

use crate::host::HostFault;
use crate::limits::HostOutOfMemory;

/// Why a call into a guest failed. The instance is of no use afterwards: every later call answers [`CallError::Failed`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The guest trapped, or was stopped at a limit.
    #[error("{function} {}{}", what(.reason, .panic.as_deref()), frames(.backtrace))]
    Trap {
        /// The export that was called.
        function: &'static str,
        /// What happened.
        reason: TrapReason,
        /// The panic message that the guest logged during this call.
        panic: Option<String>,
        /// The guest's frames, innermost first, with demangled names.
        backtrace: Vec<String>,
    },
    /// A step has a status that this ABI version does not know.
    #[error(
        "{function} returned {packed:#x}, which is no step of ABI version {}",
        tidemill_abi::ABI_VERSION
    )]
    BadStep {
        /// The export that was called.
        function: &'static str,
        /// What it returned.
        packed: u64,
    },
    /// The answer of `describe` or `open` cannot be read.
    #[error(
        "the answer of {function} cannot be read: {reason}; the guest SDK and this host do not match"
    )]
    BadResponse {
        /// The export that was called.
        function: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The guest gave no room, or no valid room, for the host to write its input to.
    #[error(
        "the guest has no room for the {len} bytes of input to {function}: tidemill_allocate answered {pointer:#x} with {memory_bytes} bytes of memory; send smaller frames, or raise memory_max_bytes"
    )]
    NoRoom {
        /// The export that was to be called.
        function: &'static str,
        /// The input's length, in bytes.
        len: u64,
        /// What the guest answered; 0 means refused.
        pointer: u32,
        /// The memory's size at that time, in bytes.
        memory_bytes: u64,
    },
    /// Pages of the image that the instance was restored from were still to come, and did not come.
    #[error(
        "the image that the instance was restored from is lost: {reason}; restore an older one into a new instance"
    )]
    ImageLost {
        /// Why they did not come.
        reason: String,
    },
    /// An earlier call failed; the guest's state is undefined.
    #[error(
        "{function} was called on an instance that has failed before; restore its last image into a new one"
    )]
    Failed {
        /// The export that was to be called.
        function: &'static str,
    },
}

/// What stopped a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrapReason {
    /// An `unreachable` instruction: in Rust a panic or an abort.
    #[error("panicked or aborted")]
    Unreachable,
    /// A load or store outside the memory.
    #[error("accessed memory out of bounds")]
    MemoryOutOfBounds,
    /// A table access outside the table.
    #[error("accessed a table out of bounds")]
    TableOutOfBounds,
    /// An indirect call through an empty table entry.
    #[error("called an empty table entry")]
    CallToNull,
    /// An indirect call to a function of another type.
    #[error("called a function of another type")]
    CallTypeMismatch,
    /// An integer operation without a result.
    #[error("did an integer operation that overflows")]
    IntegerOverflow,
    /// A division by zero.
    #[error("divided by zero")]
    DivisionByZero,
    /// A float that no integer represents was converted.
    #[error("converted a float that no integer represents")]
    BadConversion,
    /// The native stack is used up, usually by recursion without end.
    #[error("overflowed the stack ({limit_bytes} bytes): recurse less deeply")]
    StackOverflow {
        /// What a guest has, in bytes.
        limit_bytes: u64,
    },
    /// The guest asked for more memory than its limit and gave up.
    #[error(
        "needs {wanted_bytes} bytes of memory and may have {limit_bytes} (memory_max_bytes, or the module's own maximum): keep less, spread it over more tasks, or raise the limit"
    )]
    MemoryLimit {
        /// What the memory would have grown to.
        wanted_bytes: u64,
        /// What it may grow to.
        limit_bytes: u64,
    },
    /// The guest asked for more table entries than its limit and gave up.
    #[error(
        "needs {wanted} table entries and may have {limit} (table_elements_max, or the module's own maximum)"
    )]
    TableLimit {
        /// What the tables would have grown to, in entries.
        wanted: u64,
        /// What they may grow to, in entries.
        limit: u64,
    },
    /// The call outlasted its deadline.
    #[error(
        "ran for longer than {limit:?} (call_deadline_ms): do less for one record, or raise the limit"
    )]
    Deadline {
        /// The deadline.
        limit: Duration,
    },
    /// The call emitted more than its limit.
    #[error(
        "emitted more than {limit_bytes} bytes in one call (call_output_max_bytes): emit less for one record, or raise the limit"
    )]
    OutputLimit {
        /// What one call may emit.
        limit_bytes: u64,
    },
    /// A host function was given memory that does not exist.
    #[error(
        "passed {import} {len} bytes at {pointer:#x}, which is outside its {memory_bytes} bytes of memory"
    )]
    BadPointer {
        /// The host function.
        import: &'static str,
        /// The address.
        pointer: u32,
        /// The length, in bytes.
        len: u32,
        /// The memory's size, in bytes.
        memory_bytes: u64,
    },
    /// `log` was given a level that this ABI version does not know.
    #[error("logged at the unknown level {level}")]
    BadLogLevel {
        /// The level.
        level: u32,
    },
    /// The operating system refused memory that the guest may have.
    #[error("was refused memory by the operating system: {reason}")]
    HostOutOfMemory {
        /// The operating system's words.
        reason: String,
    },
    /// Anything else, in the engine's words.
    #[error("failed: {reason}")]
    Other {
        /// The words.
        reason: String,
    },
}

/// Reads what a failed call left behind. `refused` is a growth refused during the call: a guest that is refused memory
/// usually aborts (or, in C, follows a null pointer), and the limit is what its author needs to hear.
pub(crate) fn trap_reason(
    error: &wasmtime::Error,
    refused: Option<TrapReason>,
    deadline: Duration,
) -> TrapReason {
    if let Some(fault) = error.downcast_ref::<HostFault>() {
        return fault.0.clone();
    }
    if let Some(fault) = error.downcast_ref::<HostOutOfMemory>() {
        return TrapReason::HostOutOfMemory {
            reason: fault.reason.clone(),
        };
    }
    match (error.downcast_ref::<Trap>(), refused) {
        (
            Some(Trap::UnreachableCodeReached | Trap::MemoryOutOfBounds | Trap::TableOutOfBounds),
            Some(refused),
        ) => refused,
        (Some(Trap::UnreachableCodeReached), None) => TrapReason::Unreachable,
        (Some(Trap::MemoryOutOfBounds), None) => TrapReason::MemoryOutOfBounds,
        (Some(Trap::TableOutOfBounds), None) => TrapReason::TableOutOfBounds,
        (Some(Trap::IndirectCallToNull), _) => TrapReason::CallToNull,
        (Some(Trap::BadSignature), _) => TrapReason::CallTypeMismatch,
        (Some(Trap::IntegerOverflow), _) => TrapReason::IntegerOverflow,
        (Some(Trap::IntegerDivisionByZero), _) => TrapReason::DivisionByZero,
        (Some(Trap::BadConversionToInteger), _) => TrapReason::BadConversion,
        (Some(Trap::StackOverflow), _) => TrapReason::StackOverflow {
            limit_bytes: crate::engine::GUEST_STACK_BYTES as u64,
        },
        (Some(Trap::Interrupt), _) => TrapReason::Deadline { limit: deadline },
        _ => TrapReason::Other {
            reason: format!("{error:#}"),
        },
    }
}

/// The guest's frames as `function (offset)`. wasmtime demangles only in `Display`, one line a frame after a heading.
pub(crate) fn backtrace(error: &wasmtime::Error) -> Vec<String> {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return Vec::new();
    };
    backtrace.to_string().lines().skip(1).map(frame).collect()
}

/// Reads `3: 0x15c - module!name`; a frame at its function's entry has no offset.
fn frame(line: &str) -> String {
    let line = line.trim();
    let rest = line
        .split_once(": ")
        .map_or(line, |(_number, rest)| rest.trim_start());
    let (offset, name) = match rest.split_once(" - ") {
        Some((offset, name)) => (Some(offset), name),
        None => (None, rest),
    };
    let name = without_hashes(name.strip_prefix("<unknown>!").unwrap_or(name));
    match offset {
        Some(offset) => format!("{name} ({offset})"),
        None => name,
    }
}

/// Rust's symbols carry hashes that tell a reader nothing: the older ones at their end (`::h0123456789abcdef`), the
/// newer ones after each crate's name (`[0123456789abcdef]`).
fn without_hashes(name: &str) -> String {
    let is_hash =
        |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = match name.rsplit_once("::h") {
        Some((path, hash)) if is_hash(hash) => path,
        _ => name,
    };
    let mut plain = String::with_capacity(name.len());
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('[') {
        plain.push_str(before);
        rest = match after.split_once(']') {
            Some((hash, after)) if is_hash(hash) => after,
            _ => {
                plain.push('[');
                after
            }
        };
    }
    plain + rest
}

/// The reason, with the guest's own words where it had any.
fn what(reason: &TrapReason, panic: Option<&str>) -> String {
    match (reason, panic) {
        (TrapReason::Unreachable, Some(panic)) if panic.starts_with("panicked") => panic.to_owned(),
        (TrapReason::Unreachable, Some(panic)) => format!("panicked: {panic}"),
        (reason, Some(panic)) => format!("{reason}: {panic}"),
        (reason, None) => reason.to_string(),
    }
}

fn frames(backtrace: &[String]) -> String {
    backtrace
        .iter()
        .map(|frame| format!("\n  at {frame}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_whatever_they_lack() {
        assert_eq!(
            frame("    0:  0x15c - <unknown>!job::parse::h0123456789abcdef"),
            "job::parse (0x15c)"
        );
        assert_eq!(frame("   12: job.wasm!a::b: c"), "job.wasm!a::b: c");
        assert_eq!(frame("something else"), "something else");
        assert_eq!(
            frame("1: 0x9 - std[a543996e6e7dbf1e]::call::<core[0123456789abcdef]::f, [u8; 4]>"),
            "std::call::<core::f, [u8; 4]> (0x9)"
        );
    }
}
