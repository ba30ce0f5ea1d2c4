//! What the exports of a module call: reads what the host wrote, runs the instance, packs the answer. Only the
//! shims that `#[tidemill::job]` makes call it; it exists only in a Wasm module.

use std::cell::RefCell;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_abi::{DescribeRequest, OpenRequest, Step};

use crate::instance::{Instance, describe as describe_job};
use crate::job::{Job, Outcome};
use crate::log::install_panic_hook;

/// The whole of a module's own state, beside what the job's operators hold.
struct Module {
    instance: Option<Instance>,
    /// Where the host writes input. Never shrinks, so that a batch costs no clearing of memory.
    inbox: Vec<u8>,
    response: Vec<u8>,
}

thread_local! {
    static MODULE: RefCell<Module> = const { RefCell::new(Module { instance: None, inbox: Vec::new(), response: Vec::new() }) };
}

fn with<R>(call: impl FnOnce(&mut Module) -> R) -> R {
    MODULE.with_borrow_mut(call)
}

/// `tidemill_abi_version`.
#[must_use]
pub fn abi_version() -> u32 {
    tidemill_abi::ABI_VERSION
}

/// `tidemill_allocate`: 0 when there is no memory left.
#[must_use]
pub fn allocate(len: u32) -> u32 {
    with(|module| {
        let len = len.max(1) as usize;
        if module.inbox.len() < len {
            if module
                .inbox
                .try_reserve_exact(len - module.inbox.len())
                .is_err()
            {
                return 0;
            }
            module.inbox.resize(len, 0);
        }
        module.inbox.as_ptr() as u32
    })
}

/// `tidemill_describe`.
#[must_use]
pub fn describe<R: Outcome>(function: fn(&mut Job) -> R, name: &str, ptr: u32, len: u32) -> u64 {
    install_panic_hook();
    let request: DescribeRequest = with(|module| module.request(ptr, len));
    let response = describe_job(function, name, request);
    with(|module| module.respond(&response))
}

/// `tidemill_open`.
#[must_use]
pub fn open<R: Outcome>(function: fn(&mut Job) -> R, name: &str, ptr: u32, len: u32) -> u64 {
    install_panic_hook();
    let request: OpenRequest = with(|module| module.request(ptr, len));
    let opened = Instance::open(function, name, request);
    with(|module| {
        let response = opened.map(|(instance, hash)| {
            module.instance = Some(instance);
            hash
        });
        module.respond(&response)
    })
}

/// `tidemill_process`. The port and the split have no meaning to this version's operators: ports of one stage carry
/// one type of record.
#[must_use]
pub fn process(_port: u32, _split: u64, ptr: u32, len: u32, now_ms: u64) -> u64 {
    with(|module| {
        module.check_input(ptr, len);
        let Module {
            instance, inbox, ..
        } = module;
        opened(instance).process(inbox, len as usize, now_ms).pack()
    })
}

/// `tidemill_resume`.
#[must_use]
pub fn resume(now_ms: u64) -> u64 {
    with(|module| {
        opened(&mut module.instance)
            .resume(&mut module.inbox, now_ms)
            .pack()
    })
}

/// `tidemill_poll`.
#[must_use]
pub fn poll(now_ms: u64) -> u64 {
    step(|instance| instance.poll(now_ms))
}

/// `tidemill_watermark`.
#[must_use]
pub fn watermark(port: u32, timestamp_ms: i64, now_ms: u64) -> u64 {
    step(|instance| instance.watermark(port, timestamp_ms, now_ms))
}

/// `tidemill_timer`.
#[must_use]
pub fn timer(now_ms: u64) -> u64 {
    step(|instance| instance.timer(now_ms))
}

/// `tidemill_finish`.
#[must_use]
pub fn finish(now_ms: u64) -> u64 {
    step(|instance| instance.finish(now_ms))
}

/// `tidemill_flush`.
pub fn flush() {
    with(|module| opened(&mut module.instance).flush());
}

/// `tidemill_records`: 0 for records that came in or were made, 1 for records that went out, −1 for another question
/// or before `open`.
#[must_use]
pub fn records(which: u32) -> i64 {
    with(|module| match (&module.instance, which) {
        (Some(instance), 0) => instance.cx.records_in as i64,
        (Some(instance), 1) => instance.cx.records_out as i64,
        _ => -1,
    })
}

fn step(call: impl FnOnce(&mut Instance) -> Step) -> u64 {
    with(|module| call(opened(&mut module.instance)).pack())
}

fn opened(instance: &mut Option<Instance>) -> &mut Instance {
    match instance {
        Some(instance) => instance,
        None => panic!("the host called an instance before it opened it"),
    }
}

impl Module {
    fn check_input(&self, ptr: u32, len: u32) {
        let right = ptr == self.inbox.as_ptr() as u32 && len as usize <= self.inbox.len();
        assert!(
            right || len == 0,
            "the host passed {len} bytes at {ptr:#x}, which `tidemill_allocate` did not give"
        );
    }

    fn request<T: DeserializeOwned>(&self, ptr: u32, len: u32) -> T {
        self.check_input(ptr, len);
        match postcard::from_bytes(&self.inbox[..len as usize]) {
            Ok(request) => request,
            Err(error) => {
                panic!("the host's request cannot be read ({error}): is it of another ABI version?")
            }
        }
    }

    fn respond<T: Serialize>(&mut self, response: &T) -> u64 {
        self.response = postcard::to_allocvec(response).expect("graphs and texts always encode");
        (self.response.as_ptr() as u64) << 32 | self.response.len() as u64
    }
}
