//! A task whose state is as large as is wanted and of which a call writes as many pages as is wanted. It never does
//! anything else.

use anyhow::Context;
use tidemill_abi::{LogLevel, SPLIT_NONE};
use tidemill_runtime::{
    CAPTURE_PAGE_BYTES, Engine, EngineOptions, GuestHost, Instance, InstanceLimits, Module,
    ModuleLimits, prepare,
};

/// `process` writes eight bytes to each page that its frame names: the first address, the bytes from one to the next,
/// how many, the value.
const TEXT: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "tidemill_abi_version") (result i32) i32.const 1)
    (func (export "tidemill_allocate") (param i32) (result i32) i32.const 1024)
    (func (export "tidemill_describe") (param i32 i32) (result i64) i64.const 0)
    (func (export "tidemill_open") (param i32 i32) (result i64) i64.const 0)
    (func (export "tidemill_resume") (param i64) (result i64) i64.const 0)
    (func (export "tidemill_poll") (param i64) (result i64) i64.const 0)
    (func (export "tidemill_watermark") (param i32 i64 i64) (result i64) i64.const 0)
    (func (export "tidemill_finish") (param i64) (result i64) i64.const 0)
    (func (export "tidemill_flush"))
    (func (export "tidemill_timer") (param i64) (result i64)
        (drop (memory.grow (i32.wrap_i64 (local.get 0)))) (i64.const 0))
    (func (export "tidemill_process") (param i32 i64 i32 i32 i64) (result i64)
        (local $address i32) (local $stride i32) (local $count i32) (local $value i64)
        (local.set $address (i32.load (local.get 2)))
        (local.set $stride (i32.load offset=4 (local.get 2)))
        (local.set $count (i32.load offset=8 (local.get 2)))
        (local.set $value (i64.load32_u offset=12 (local.get 2)))
        (block $done (loop $next
            (br_if $done (i32.eqz (local.get $count)))
            (i64.store (local.get $address) (local.get $value))
            (local.set $address (i32.add (local.get $address) (local.get $stride)))
            (local.set $count (i32.sub (local.get $count) (i32.const 1)))
            (br $next)))
        (i64.const 0)))"#;

/// A task with state.
pub(crate) struct Task {
    pub(crate) instance: Instance<Silent>,
    pages: u32,
}

/// Compiles the task's module.
pub(crate) fn compile() -> anyhow::Result<Module> {
    let prepared = prepare(&wat::parse_str(TEXT)?, &ModuleLimits::default())?;
    Ok(Engine::new(EngineOptions::default())?.compile(&prepared.bytes, None)?)
}

/// Limits that this benchmark never meets.
pub(crate) fn limits() -> InstanceLimits {
    InstanceLimits {
        call_deadline: std::time::Duration::from_secs(600),
        ..InstanceLimits::default()
    }
}

impl Task {
    /// A task with a memory of `bytes`, every page of it written once.
    pub(crate) fn new(module: &Module, bytes: u64) -> anyhow::Result<Self> {
        let mut instance = Instance::new(module, limits(), Silent)?;
        instance.timer((bytes - instance.memory_bytes()) / 65_536)?;
        anyhow::ensure!(instance.memory_bytes() == bytes, "the memory did not grow");
        let pages = u32::try_from(bytes / CAPTURE_PAGE_BYTES as u64).context("too large")?;
        let mut task = Self { instance, pages };
        task.write(pages, 0)?;
        Ok(task)
    }

    /// A task that has been restored.
    pub(crate) fn over(instance: Instance<Silent>) -> anyhow::Result<Self> {
        let pages = instance.memory_bytes() / CAPTURE_PAGE_BYTES as u64;
        let pages = u32::try_from(pages).context("too large")?;
        Ok(Self { instance, pages })
    }

    /// Writes to `count` pages, spread evenly over the memory, others in each round.
    pub(crate) fn write(&mut self, count: u32, round: u32) -> anyhow::Result<()> {
        let stride = self.pages / count.max(1);
        let page_bytes = CAPTURE_PAGE_BYTES as u32;
        let first = round.wrapping_mul(7) % stride.max(1);
        let words = [
            first * page_bytes + 2048,
            stride * page_bytes,
            count,
            round + 1,
        ];
        let frame: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.instance.process(0, SPLIT_NONE, &frame, 0)?;
        Ok(())
    }

    /// How many pages are this percentage of the memory.
    pub(crate) fn percent(&self, percent: u32) -> u32 {
        (u64::from(self.pages) * u64::from(percent) / 100).max(1) as u32
    }
}

/// Hears nothing.
pub(crate) struct Silent;

impl GuestHost for Silent {
    fn emit(&mut self, _output: u32, _target: u32, _batch: &[u8]) {}

    fn log(&mut self, _level: LogLevel, line: &str) {
        eprintln!("{line}");
    }
}
