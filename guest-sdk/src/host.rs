//! The host functions that a module imports. The only foreign functions in the SDK; never called natively.

#[link(wasm_import_module = "tidemill")]
unsafe extern "C" {
    #[link_name = "emit"]
    fn host_emit(output: u32, target: u32, ptr: *const u8, len: usize);
    #[link_name = "log"]
    fn host_log(level: u32, ptr: *const u8, len: usize);
}

/// Copies a batch to the host.
pub(crate) fn emit(output: u32, target: u32, batch: &[u8]) {
    // SAFETY: the host only reads the bytes of the slice, and only during the call.
    unsafe { host_emit(output, target, batch.as_ptr(), batch.len()) }
}

/// Writes a line to the task's log.
pub(crate) fn log(level: tidemill_abi::LogLevel, line: &str) {
    // SAFETY: the host only reads the bytes of the string, and only during the call.
    unsafe { host_log(level as u32, line.as_ptr(), line.len()) }
}
