//! Guests that panic, loop, recurse, allocate and emit without end, or return nonsense: each call fails by name, with
//! the function, the limit and the place, and the engine and other instances go on.

use std::time::{Duration, Instant};

use tidemill_abi::{LogLevel, SPLIT_NONE, Step};
use tidemill_runtime::{
    CallError, CaptureError, Instance, InstanceError, InstanceLimits, ModuleError, ModuleLimits,
    RecordCount, TrapReason, prepare,
};

use crate::support::{Job, Recorder, limits};

const PROCESS: &str = "(param i32 i64 i32 i32 i64) (result i64)";

fn job(process: &str) -> Job {
    Job::default().function(
        "tidemill_process",
        &format!("{PROCESS} {process} i64.const 0"),
    )
}

/// Calls `process` once and expects a trap.
fn trap(job: &Job, limits: InstanceLimits) -> (TrapReason, Option<String>, Vec<String>, String) {
    let error = job
        .start(limits)
        .process(0, SPLIT_NONE, b"frame", 1)
        .expect_err("the call must fail");
    let text = error.to_string();
    match error {
        CallError::Trap {
            function,
            reason,
            panic,
            backtrace,
        } => {
            assert_eq!(function, "tidemill_process");
            (reason, panic, backtrace, text)
        }
        other => panic!("a trap was expected: {other}"),
    }
}

fn reason(process: &str) -> TrapReason {
    trap(&job(process), limits()).0
}

#[test]
fn a_panic_tells_its_message_and_where() {
    let job = job("call $_ZN3job6parser5parse17h0123456789abcdefE").with(
        "(data (i32.const 16) \"no such carrier: XX\")
         (func $_ZN3job6parser5parse17h0123456789abcdefE i32.const 2 i32.const 16 i32.const 19 call $log unreachable)",
    );
    let (reason, panic, backtrace, text) = trap(&job, limits());
    assert_eq!(reason, TrapReason::Unreachable);
    assert_eq!(panic.as_deref(), Some("no such carrier: XX"));
    assert!(
        backtrace[0].starts_with("job::parser::parse (0x"),
        "{backtrace:?}"
    );
    assert!(
        backtrace[1].starts_with("tidemill_process (0x"),
        "{backtrace:?}"
    );
    assert!(
        text.starts_with("tidemill_process panicked: no such carrier: XX\n  at job::parser::parse"),
        "{text}"
    );
}

#[test]
fn each_kind_of_trap_has_its_words() {
    assert_eq!(
        reason("i32.const -1 i32.load drop"),
        TrapReason::MemoryOutOfBounds
    );
    assert_eq!(
        reason("i32.const 1 i32.const 0 i32.div_u drop"),
        TrapReason::DivisionByZero
    );
    assert_eq!(
        reason("i32.const 0x80000000 i32.const -1 i32.div_s drop"),
        TrapReason::IntegerOverflow
    );
    assert_eq!(
        reason("f32.const nan i32.trunc_f32_s drop"),
        TrapReason::BadConversion
    );
    let table = |process: &str| {
        trap(
            &job(process).with("(table 2 funcref) (elem (i32.const 0) $tidemill_flush)"),
            limits(),
        )
        .0
    };
    assert_eq!(table("i32.const 1 call_indirect"), TrapReason::CallToNull);
    assert_eq!(
        table("i32.const 2 call_indirect"),
        TrapReason::TableOutOfBounds
    );
    assert_eq!(
        table("i32.const 0 call_indirect (result i32) drop"),
        TrapReason::CallTypeMismatch
    );
}

#[test]
fn recursion_without_end_overflows_the_guests_stack_only() {
    let job = job("call $deeper drop")
        .with("(func $deeper (result i32) call $deeper i32.const 1 i32.add)");
    let (reason, _, backtrace, _) = trap(&job, limits());
    assert!(matches!(reason, TrapReason::StackOverflow { .. }));
    assert!(
        backtrace.iter().all(|frame| frame.starts_with("deeper")),
        "{backtrace:?}"
    );
}

#[test]
fn a_call_that_never_ends_is_stopped_at_its_deadline_and_not_before() {
    let limit = Duration::from_millis(50);
    let began = Instant::now();
    let (reason, _, _, text) = trap(
        &job("loop br 0 end"),
        InstanceLimits {
            call_deadline: limit,
            ..limits()
        },
    );
    assert_eq!(reason, TrapReason::Deadline { limit });
    assert!(began.elapsed() >= limit);
    assert!(
        text.contains("ran for longer than 50ms (call_deadline_ms)"),
        "{text}"
    );
}

#[test]
fn a_guest_that_allocates_without_end_meets_its_limit_by_name() {
    // As Rust's allocator does it: grow, and abort when refused.
    let grow = "loop i32.const 1 memory.grow i32.const -1 i32.ne br_if 0 end unreachable";
    let expected = TrapReason::MemoryLimit {
        wanted_bytes: 17 * 65536,
        limit_bytes: 16 * 65536,
    };
    assert_eq!(reason(grow), expected);
    // The module's own maximum, when that is lower.
    let (reason, ..) = trap(
        &job(grow).memory("(memory (export \"memory\") 1 3)"),
        limits(),
    );
    assert_eq!(
        reason,
        TrapReason::MemoryLimit {
            wanted_bytes: 4 * 65536,
            limit_bytes: 3 * 65536
        }
    );
    // Past what addresses reach.
    let (reason, ..) = trap(&job("i32.const -1 memory.grow drop unreachable"), limits());
    assert!(
        matches!(
            reason,
            TrapReason::MemoryLimit {
                limit_bytes: 1_048_576,
                ..
            }
        ),
        "{reason:?}"
    );
}

#[test]
fn a_refused_growth_that_the_guest_survives_is_no_error() {
    let mut instance = job("i32.const 100 memory.grow drop").start(limits());
    assert_eq!(instance.process(0, SPLIT_NONE, b"", 1), Ok(Step::DONE));
    assert_eq!(instance.memory_bytes(), 2 * 65536);
    // Nor is it blamed for a later panic.
    let later = job("i32.const 100 memory.grow drop").function("tidemill_flush", "unreachable");
    let mut instance = later.start(limits());
    instance
        .process(0, SPLIT_NONE, b"", 1)
        .expect("it survives");
    let error = instance.flush().expect_err("it panics");
    assert!(
        matches!(
            error,
            CallError::Trap {
                reason: TrapReason::Unreachable,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn tables_have_a_limit_too() {
    let job = job(
        "loop ref.null func i32.const 30 table.grow 0 i32.const -1 i32.ne br_if 0 end unreachable",
    )
    .with("(table 1 funcref)");
    assert_eq!(
        trap(&job, limits()).0,
        TrapReason::TableLimit {
            wanted: 121,
            limit: 100
        }
    );
}

#[test]
fn output_is_limited_per_call() {
    let emit = "i32.const 1 i32.const 2 i32.const 0 i32.const 512 call $emit";
    let mut instance = job(&format!("{emit} {emit}")).start(limits());
    for _ in 0..3 {
        assert_eq!(instance.process(0, SPLIT_NONE, b"", 1), Ok(Step::DONE));
    }
    assert_eq!(instance.host_mut().emitted.len(), 6);
    assert_eq!(instance.host_mut().emitted[0], (1, 2, vec![0; 512]));
    assert_eq!(
        reason(&format!("loop {emit} br 0 end")),
        TrapReason::OutputLimit { limit_bytes: 1024 }
    );
}

#[test]
fn host_functions_trust_no_address() {
    let memory_bytes = 2 * 65536;
    let bad = |import, pointer, len| TrapReason::BadPointer {
        import,
        pointer,
        len,
        memory_bytes,
    };
    let emit = |pointer: u32, len: u32| {
        reason(&format!(
            "i32.const 0 i32.const 0 i32.const {pointer} i32.const {len} call $emit"
        ))
    };
    assert_eq!(emit(u32::MAX, u32::MAX), bad("emit", u32::MAX, u32::MAX));
    assert_eq!(emit(131_072, 1), bad("emit", 131_072, 1));
    assert_eq!(
        reason("i32.const 0 i32.const 131000 i32.const 73 call $log"),
        bad("log", 131_000, 73)
    );
    assert_eq!(
        reason("i32.const 9 i32.const 0 i32.const 0 call $log"),
        TrapReason::BadLogLevel { level: 9 }
    );
}

#[test]
fn log_lines_reach_the_host_even_when_they_are_not_text() {
    let mut instance = job("i32.const 0 i32.const 16 i32.const 4 call $log i32.const 1 i32.const 0 i32.const 70000 call $log")
        .with("(data (i32.const 16) \"ab\\ff!\")")
        .start(limits());
    instance.process(0, SPLIT_NONE, b"", 1).expect("it runs");
    let logged = &instance.host_mut().logged;
    assert_eq!(logged[0], (LogLevel::Out, "ab\u{fffd}!".to_owned()));
    assert_eq!(
        (logged[1].0, logged[1].1.len()),
        (LogLevel::Err, tidemill_runtime::LOG_LINE_MAX_BYTES + 2)
    );
}

#[test]
fn a_guest_without_room_for_its_input_is_told_so() {
    let refuse =
        Job::default().function("tidemill_allocate", "(param i32) (result i32) i32.const 0");
    let error = refuse
        .start(limits())
        .process(0, SPLIT_NONE, b"frame", 1)
        .expect_err("there is no room");
    assert_eq!(
        error,
        CallError::NoRoom {
            function: "tidemill_process",
            len: 5,
            pointer: 0,
            memory_bytes: 2 * 65536
        }
    );
    let outside = Job::default().function(
        "tidemill_allocate",
        "(param i32) (result i32) i32.const 131070",
    );
    let error = outside
        .start(limits())
        .process(0, SPLIT_NONE, b"frame", 1)
        .expect_err("the room is outside");
    assert!(
        matches!(
            error,
            CallError::NoRoom {
                pointer: 131_070,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_step_that_is_none_is_refused() {
    let job = Job::default().function("tidemill_poll", "(param i64) (result i64) i64.const 0x7703");
    let error = job.start(limits()).poll(1).expect_err("3 is no status");
    assert_eq!(
        error,
        CallError::BadStep {
            function: "tidemill_poll",
            packed: 0x7703
        }
    );
}

#[test]
fn after_a_failure_an_instance_is_neither_called_nor_captured() {
    let job = Job::default().function("tidemill_timer", "(param i64) (result i64) unreachable");
    let mut instance = job.start(limits());
    instance.timer(1).expect_err("it panics");
    assert_eq!(
        instance.flush(),
        Err(CallError::Failed {
            function: "tidemill_flush"
        })
    );
    assert_eq!(instance.capture(), Err(CaptureError::Failed));
    // Others of the same module are not hurt.
    let module = job.compile();
    let mut other =
        Instance::new(&module, limits(), Recorder::default()).expect("a fresh instance");
    assert_eq!(other.flush(), Ok(()));
}

#[test]
fn what_a_module_needs_from_the_start_is_limited_too() {
    let start = |job: Job| {
        Instance::new(&job.compile(), limits(), Recorder::default())
            .expect_err("it must be refused")
    };
    assert_eq!(
        start(Job::default().memory("(memory (export \"memory\") 17)")),
        InstanceError::Limit(TrapReason::MemoryLimit {
            wanted_bytes: 17 * 65536,
            limit_bytes: 16 * 65536
        })
    );
    assert_eq!(
        start(Job::default().with("(table 101 funcref)")),
        InstanceError::Limit(TrapReason::TableLimit {
            wanted: 101,
            limit: 100
        })
    );
    let segment = start(Job::default().with("(data (i32.const 131070) \"four\")"));
    assert!(
        matches!(segment, InstanceError::Instantiation { .. }),
        "{segment}"
    );
}

#[test]
fn calls_carry_their_arguments_and_steps_their_deadlines() {
    // Stores every argument where `flush` emits it from.
    let job = Job::default()
        .function(
            "tidemill_process",
            "(param i32 i64 i32 i32 i64) (result i64)
             i32.const 0 local.get 0 i64.extend_i32_u i64.store
             i32.const 8 local.get 1 i64.store
             i32.const 16 local.get 2 local.get 3 memory.copy
             i32.const 24 local.get 4 i64.store
             i64.const 0x2a01",
        )
        .function("tidemill_flush", "i32.const 0 i32.const -1 i32.const 0 i32.const 32 call $emit")
        .function("tidemill_watermark", "(param i32 i64 i64) (result i64) local.get 1 i64.const 0 i64.lt_s i64.extend_i32_u")
        .with("(func (export \"tidemill_records\") (param i32) (result i64) local.get 0 i64.extend_i32_u i64.const 40 i64.add)");
    let mut instance = job.start(limits());
    let step = instance
        .process(3, 77, b"12345678", 1_700_000_000_000)
        .expect("it runs");
    assert_eq!(
        step,
        Step {
            status: tidemill_abi::Status::More,
            deadline_ms: Some(0x2a)
        }
    );
    instance.flush().expect("it runs");
    let [(0, u32::MAX, bytes)] = &instance.host_mut().emitted[..] else {
        panic!("one batch to all")
    };
    let expected = [
        3u64.to_le_bytes(),
        77u64.to_le_bytes(),
        *b"12345678",
        1_700_000_000_000u64.to_le_bytes(),
    ]
    .concat();
    assert_eq!(*bytes, expected);
    assert_eq!(
        instance.watermark(0, -5, 1).map(|step| step.status),
        Ok(tidemill_abi::Status::More)
    );
    assert_eq!(instance.records(RecordCount::In), Ok(Some(40)));
    assert_eq!(instance.records(RecordCount::Out), Ok(Some(41)));
    assert_eq!(
        Job::default().start(limits()).records(RecordCount::In),
        Ok(None)
    );
    let unopened = Job::default()
        .with("(func (export \"tidemill_records\") (param i32) (result i64) i64.const -1)");
    assert_eq!(unopened.start(limits()).records(RecordCount::In), Ok(None));
    let mistyped = Job::default().with("(func (export \"tidemill_records\"))");
    let error =
        prepare(&mistyped.wasm(), &ModuleLimits::default()).expect_err("it has another type");
    assert!(matches!(error, ModuleError::ExportTypes { .. }), "{error}");
}
