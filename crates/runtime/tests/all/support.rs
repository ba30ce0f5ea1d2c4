//! A job module in a few lines of text, and a host that remembers what it heard.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use tidemill_abi::LogLevel;
use tidemill_protocol::image::PageRun;
use tidemill_protocol::{Image, ImageHead};
use tidemill_runtime::{
    CAPTURE_PAGE_BYTES, Engine, EngineOptions, GuestHost, Instance, InstanceLimits, Module,
    ModuleLimits, PageSource, PreparedModule, prepare,
};

/// Where `tidemill_allocate` of [`Job`] puts every input.
pub(crate) const INPUT: u32 = 4096;

/// A module with every export of the ABI, each doing nothing until replaced.
#[derive(Clone)]
pub(crate) struct Job {
    functions: BTreeMap<&'static str, String>,
    items: String,
    memory: &'static str,
}

impl Default for Job {
    fn default() -> Self {
        let functions = [
            ("tidemill_abi_version", "(result i32) i32.const 1"),
            (
                "tidemill_allocate",
                "(param i32) (result i32) i32.const 4096",
            ),
            (
                "tidemill_describe",
                "(param i32 i32) (result i64) i64.const 0",
            ),
            ("tidemill_open", "(param i32 i32) (result i64) i64.const 0"),
            (
                "tidemill_process",
                "(param i32 i64 i32 i32 i64) (result i64) i64.const 0",
            ),
            ("tidemill_resume", "(param i64) (result i64) i64.const 0"),
            ("tidemill_poll", "(param i64) (result i64) i64.const 0"),
            (
                "tidemill_watermark",
                "(param i32 i64 i64) (result i64) i64.const 0",
            ),
            ("tidemill_timer", "(param i64) (result i64) i64.const 0"),
            ("tidemill_finish", "(param i64) (result i64) i64.const 0"),
            ("tidemill_flush", ""),
        ];
        Self {
            functions: functions.map(|(name, body)| (name, body.to_owned())).into(),
            items: String::new(),
            memory: "(memory (export \"memory\") 2)",
        }
    }
}

impl Job {
    /// Gives an export another type and body.
    pub(crate) fn function(mut self, name: &'static str, body: &str) -> Self {
        self.functions.insert(name, body.to_owned());
        self
    }

    /// Removes an export.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.functions.remove(name);
        self
    }

    /// Adds globals, tables, functions, segments.
    pub(crate) fn with(mut self, items: &str) -> Self {
        self.items.push_str(items);
        self
    }

    /// Replaces the memory.
    pub(crate) fn memory(mut self, memory: &'static str) -> Self {
        self.memory = memory;
        self
    }

    pub(crate) fn wasm(&self) -> Vec<u8> {
        let functions: String = self
            .functions
            .iter()
            .map(|(name, body)| format!("(func ${name} (export \"{name}\") {body})\n"))
            .collect();
        let text = format!(
            "(module\n(import \"tidemill\" \"emit\" (func $emit (param i32 i32 i32 i32)))\n\
             (import \"tidemill\" \"log\" (func $log (param i32 i32 i32)))\n{}\n{}\n{functions})",
            self.memory, self.items
        );
        wat::parse_str(&text)
            .unwrap_or_else(|error| panic!("the test's own module is wrong: {error}\n{text}"))
    }

    pub(crate) fn prepare(&self) -> PreparedModule {
        prepare(&self.wasm(), &ModuleLimits::default()).expect("the module is acceptable")
    }

    pub(crate) fn compile(&self) -> Module {
        engine()
            .compile(&self.prepare().bytes, None)
            .expect("the module compiles")
    }

    pub(crate) fn start(&self, limits: InstanceLimits) -> Instance<Recorder> {
        Instance::new(&self.compile(), limits, Recorder::default())
            .expect("the module can be instantiated")
    }
}

/// Remembers everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recorder {
    pub(crate) emitted: Vec<(u32, u32, Vec<u8>)>,
    pub(crate) logged: Vec<(LogLevel, String)>,
}

impl GuestHost for Recorder {
    fn emit(&mut self, output: u32, target: u32, batch: &[u8]) {
        self.emitted.push((output, target, batch.to_vec()));
    }

    fn log(&mut self, level: LogLevel, line: &str) {
        self.logged.push((level, line.to_owned()));
    }
}

/// One engine for the whole binary.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE
        .get_or_init(|| Engine::new(EngineOptions::default()).expect("this machine runs wasmtime"))
}

/// Another machine's engine.
pub(crate) fn elsewhere() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let options = EngineOptions {
        parallel_compilation: false,
    };
    ENGINE.get_or_init(|| Engine::new(options).expect("this machine runs wasmtime"))
}

/// Small enough that a test notices, large enough that a slow machine does not.
pub(crate) fn limits() -> InstanceLimits {
    InstanceLimits {
        memory_max_bytes: 16 * 65536,
        table_elements_max: 100,
        call_deadline: Duration::from_secs(30),
        call_output_max_bytes: 1024,
    }
}

/// Bytes as a WAT string.
pub(crate) fn escape(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

/// An image without its memory.
pub(crate) fn head(image: &Image) -> ImageHead {
    ImageHead {
        memory_bytes: image.memory.len() as u64,
        globals: image.globals.clone(),
        tables: image.tables.clone(),
        host_state: Vec::new(),
        channel_state: Vec::new(),
    }
}

/// Where a memory is not zero: runs of at most 16 pages.
pub(crate) fn pieces(memory: &[u8]) -> Vec<PageRun> {
    let mut pieces: Vec<PageRun> = Vec::new();
    for (page, bytes) in memory.chunks(CAPTURE_PAGE_BYTES).enumerate() {
        if bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        match pieces.last_mut() {
            Some(last) if last.end() == page && last.pages < 16 => last.pages += 1,
            _ => pieces.push(PageRun {
                first: page as u32,
                pages: 1,
                zero: false,
            }),
        }
    }
    pieces
}

/// What a test makes of the pieces that are read.
type Meddle = dyn Fn(Range<usize>) -> Result<(), String> + Send + Sync;

/// A memory as a source of its pages. What is read in the background waits until the test lets it pass; a single piece
/// does not wait.
pub(crate) struct Source {
    memory: Arc<Vec<u8>>,
    pieces: Vec<PageRun>,
    background: Mutex<bool>,
    opened: Condvar,
    meddle: Box<Meddle>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

impl Source {
    pub(crate) fn of(memory: impl Into<Arc<Vec<u8>>>) -> Self {
        let memory = memory.into();
        Self {
            pieces: pieces(&memory),
            memory,
            background: Mutex::new(false),
            opened: Condvar::new(),
            meddle: Box::new(|_| Ok(())),
        }
    }

    /// Asks the test before each reading.
    pub(crate) fn meddle(
        mut self,
        meddle: impl Fn(Range<usize>) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.meddle = Box::new(meddle);
        self
    }

    /// With other pieces than the memory has.
    pub(crate) fn pieces(mut self, pieces: Vec<PageRun>) -> Self {
        self.pieces = pieces;
        self
    }

    /// With another memory under the same pieces.
    pub(crate) fn with_memory(mut self, memory: Arc<Vec<u8>>) -> Self {
        self.memory = memory;
        self
    }

    /// Lets the background pass from now on.
    pub(crate) fn open(&self) {
        *self.background.lock().expect("no test panics in here") = true;
        self.opened.notify_all();
    }
}

impl PageSource for Source {
    fn pieces(&self) -> &[PageRun] {
        &self.pieces
    }

    fn read(
        &self,
        pieces: Range<usize>,
        lay: &mut dyn FnMut(PageRun, &[u8]),
    ) -> Result<(), String> {
        if pieces.len() > 1 {
            let passed = self.background.lock().expect("no test panics in here");
            let passed = self.opened.wait_while(passed, |open| !*open);
            drop(passed.expect("no test panics in here"));
        }
        (self.meddle)(pieces.clone())?;
        for piece in &self.pieces[pieces] {
            lay(*piece, &self.memory[piece.memory_range()]);
        }
        Ok(())
    }
}
