//! What an operator chain is handed with every call: processing time, the identity of the subtask, the
//! counters and the way out. It never reads a clock: time is what the host passed with the call.

/// Output after which a call stops between two input records and asks to be called again.
const CALL_OUTPUT_BYTES: usize = 256 * 1024;

/// Output after which a guest-written source ends its batch.
const POLL_OUTPUT_BYTES: usize = 128 * 1024;

/// A batch that a stage emitted, as the in-process interpreter sees it.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Debug)]
pub(crate) struct Emission {
    pub(crate) output: u32,
    pub(crate) target: u32,
    pub(crate) batch: Vec<u8>,
}

/// The surroundings of one instance: which subtask it is, what time it is, what it has counted.
#[derive(Debug)]
pub struct Context {
    subtask: u32,
    parallelism: u32,
    now_ms: u64,
    deadline_ms: Option<u64>,
    emitted_bytes: usize,
    pub(crate) records_in: u64,
    pub(crate) records_out: u64,
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) outbox: Vec<Emission>,
}

impl Context {
    pub(crate) fn new(subtask: u32, parallelism: u32) -> Self {
        Self {
            subtask,
            parallelism,
            now_ms: 0,
            deadline_ms: None,
            emitted_bytes: 0,
            records_in: 0,
            records_out: 0,
            #[cfg(not(target_arch = "wasm32"))]
            outbox: Vec::new(),
        }
    }

    /// Which of the stage's subtasks this is, from 0.
    #[must_use]
    pub fn subtask(&self) -> u32 {
        self.subtask
    }

    /// How many subtasks the stage has.
    #[must_use]
    pub fn parallelism(&self) -> u32 {
        self.parallelism
    }

    /// Processing time in milliseconds since the Unix epoch: monotone in a task, and equal for all records of a call.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub(crate) fn begin_call(&mut self, now_ms: u64) {
        // A host that broke its promise must not make an operator's time run backwards.
        self.now_ms = self.now_ms.max(now_ms);
        self.emitted_bytes = 0;
    }

    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.deadline_ms
    }

    /// Asks for a call of `timer` at a time, or sooner.
    pub(crate) fn arm(&mut self, at_ms: u64) {
        self.deadline_ms = Some(self.deadline_ms.map_or(at_ms, |earlier| earlier.min(at_ms)));
    }

    /// Forgets every deadline: each operator arms its own again while the timer signal passes through it.
    pub(crate) fn disarm(&mut self) {
        self.deadline_ms = None;
    }

    /// Whether the call has produced enough to stop between two records.
    #[inline]
    pub(crate) fn call_is_full(&self) -> bool {
        self.emitted_bytes >= CALL_OUTPUT_BYTES
    }

    /// Whether a source's batch has produced enough.
    #[inline]
    pub(crate) fn poll_is_full(&self) -> bool {
        self.emitted_bytes >= POLL_OUTPUT_BYTES
    }

    /// Hands one encoded batch to the host, which copies it.
    pub(crate) fn emit(&mut self, output: u32, target: u32, batch: &[u8]) {
        self.emitted_bytes += batch.len();
        #[cfg(target_arch = "wasm32")]
        crate::host::emit(output, target, batch);
        #[cfg(not(target_arch = "wasm32"))]
        self.outbox.push(Emission {
            output,
            target,
            batch: batch.to_vec(),
        });
    }
}
