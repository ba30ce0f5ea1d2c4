//! What `prepare` refuses, and that it says why; what it accepts, and what it adds.

use proptest::prelude::*;
use tidemill_runtime::{ModuleError, ModuleLimits, TableReport, prepare};

use crate::support::Job;

fn refuse(wasm: &[u8]) -> ModuleError {
    prepare(wasm, &ModuleLimits::default()).expect_err("the module must be refused")
}

/// Refuses the job, and expects its message to hold every one of these.
fn refused(job: &Job, says: &[&str]) {
    let error = refuse(&job.wasm());
    let text = error.to_string();
    assert!(matches!(error, ModuleError::Refused { .. }), "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

#[test]
fn what_is_not_a_module_is_named() {
    let error = refuse(b"(module)");
    assert_eq!(
        error,
        ModuleError::NotWasm {
            begins: "(module)".into()
        }
    );
    assert!(matches!(refuse(b""), ModuleError::NotWasm { .. }));
    assert!(matches!(refuse(b"\0as"), ModuleError::NotWasm { .. }));
    assert_eq!(refuse(b"\0asm\x0d\0\x01\0"), ModuleError::Component);
    assert!(matches!(
        refuse(b"\0asm\x02\0\0\0"),
        ModuleError::Malformed { offset: 4, .. }
    ));
}

#[test]
fn a_module_over_the_limit_is_refused_with_both_sizes() {
    let wasm = Job::default().wasm();
    let limits = ModuleLimits {
        module_max_bytes: 100,
    };
    let expected = ModuleError::TooLarge {
        size_bytes: wasm.len() as u64,
        limit_bytes: 100,
    };
    assert_eq!(prepare(&wasm, &limits), Err(expected));
}

#[test]
fn a_truncated_module_is_malformed_at_an_offset() {
    let wasm = Job::default().wasm();
    let cut = wasm.len() - 40;
    let ModuleError::Malformed { offset, .. } = refuse(&wasm[..cut]) else {
        panic!("it is malformed")
    };
    assert!(offset <= cut as u64);
}

#[test]
fn imports_that_nobody_serves_are_all_named() {
    let wasm = wat::parse_str(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
                   (import "tidemill" "clock" (func (result i64))))"#,
    );
    let names = vec![
        "wasi_snapshot_preview1::fd_write".to_owned(),
        "tidemill::clock".to_owned(),
    ];
    assert_eq!(
        refuse(&wasm.expect("valid text")),
        ModuleError::UnknownImports { names }
    );
}

#[test]
fn a_host_function_of_another_type_is_refused_with_both_types() {
    let wasm = wat::parse_str(r#"(module (import "tidemill" "emit" (func (param i64))))"#)
        .expect("valid text");
    let text = refuse(&wasm).to_string();
    assert!(
        text.contains("tidemill::emit is (i64) and must be (i32, i32, i32, i32)"),
        "{text}"
    );
}

#[test]
fn a_module_without_the_abi_is_no_job_and_each_missing_export_is_named() {
    let ModuleError::MissingExports { names } = refuse(b"\0asm\x01\0\0\0") else {
        panic!("exports are missing")
    };
    assert_eq!(names.len(), 12);
    let one = refuse(&Job::default().without("tidemill_flush").wasm());
    assert_eq!(
        one,
        ModuleError::MissingExports {
            names: vec!["tidemill_flush".into()]
        }
    );
    let unexported = refuse(&Job::default().memory("(memory 1)").wasm());
    assert_eq!(
        unexported,
        ModuleError::MissingExports {
            names: vec!["memory".into()]
        }
    );
}

#[test]
fn an_export_of_another_type_is_refused_with_both_types() {
    let job = Job::default().function("tidemill_poll", "(result i64) i64.const 0");
    let text = refuse(&job.wasm()).to_string();
    assert!(
        text.contains("tidemill_poll is () -> i64 and must be (i64) -> i64"),
        "{text}"
    );
}

#[test]
fn the_abi_version_is_read_without_running_the_module() {
    let version = |body: &str| Job::default().function("tidemill_abi_version", body).wasm();
    assert_eq!(
        refuse(&version("(result i32) i32.const 7")),
        ModuleError::AbiVersion { found: 7 }
    );
    assert_eq!(
        refuse(&version("(result i32) i32.const 0")),
        ModuleError::AbiVersion { found: 0 }
    );
    let computed = version("(result i32) i32.const 0 i32.load");
    assert_eq!(refuse(&computed), ModuleError::AbiVersionUnreadable);
    let endless = version("(result i32) call $tidemill_abi_version");
    assert_eq!(refuse(&endless), ModuleError::AbiVersionUnreadable);

    // As an unoptimised build writes it: through a local and another function.
    let unoptimised = Job::default()
        .with("(func $inner (result i32) (local i32) i32.const 1 local.set 0 local.get 0 return)")
        .function(
            "tidemill_abi_version",
            "(result i32) (local i32) call $inner local.tee 0",
        );
    assert_eq!(unoptimised.prepare().report.abi_version, 1);
}

#[test]
fn state_that_no_image_holds_is_refused() {
    let job = Job::default();
    refused(
        &job.clone().with("(table 1 externref)"),
        &["externref", "cannot be captured"],
    );
    refused(
        &job.clone().with("(global (mut funcref) (ref.null func))"),
        &["mutable global 0 of funcref"],
    );
    refused(
        &job.clone().with("(memory 1)"),
        &["more than one memory", "2 memories"],
    );
    refused(
        &job.clone().memory("(memory (export \"memory\") i64 1)"),
        &["memory64", "32 bits"],
    );
    refused(
        &job.clone()
            .memory("(memory (export \"memory\") 1 1 shared)"),
        &["threads and shared memory"],
    );
    refused(
        &job.clone().with("(type (struct (field i32)))"),
        &["garbage-collected types"],
    );
    refused(&job.clone().with("(tag)"), &["exceptions", "panic=abort"]);
    refused(
        &job.clone().with("(type $f (func)) (type (cont $f))"),
        &["stack switching"],
    );
    refused(
        &job.clone().with("(type $f (func)) (table 1 (ref null $f))"),
        &["typed function references"],
    );
}

#[test]
fn dropping_a_segment_is_refused_with_the_function() {
    let job = Job::default().with("(data $d \"x\") (elem $e func 0)");
    refused(
        &job.clone().function("tidemill_flush", "data.drop $d"),
        &["data.drop in function", "no image holds"],
    );
    refused(
        &job.clone().function("tidemill_flush", "elem.drop $e"),
        &["elem.drop in function"],
    );
    job.prepare();
}

#[test]
fn imported_state_is_refused() {
    // Imports come before the module's own items.
    let table = Job::default()
        .memory("(import \"env\" \"table\" (table 1 funcref)) (memory (export \"memory\") 1)");
    refused(&table, &["imported table env::table", "must be its own"]);
    let global = Job::default()
        .memory("(import \"env\" \"base\" (global i32)) (memory (export \"memory\") 1)");
    refused(&global, &["imported global env::base"]);
    let memory = Job::default()
        .memory("(import \"env\" \"memory\" (memory 1)) (export \"memory\" (memory 0))");
    refused(&memory, &["imported memory env::memory"]);
}

#[test]
fn an_import_of_an_exact_function_type_is_refused() {
    let mut wasm = Job::default().wasm();
    let name = b"\x08tidemill\x04emit";
    let at = wasm
        .windows(name.len())
        .position(|window| window == name)
        .expect("it is imported")
        + name.len();
    wasm[at] = 0x20;
    let error = refuse(&wasm);
    assert!(
        error
            .to_string()
            .contains("imported exact function tidemill::emit"),
        "{error}"
    );
}

#[test]
fn a_start_function_is_refused_unless_it_does_nothing() {
    let job = Job::default().with("(start $start)");
    refused(
        &job.clone()
            .with("(func $start i32.const 0 i32.const 1 i32.store)"),
        &["start function", "run again"],
    );
    job.with("(func $start)").prepare();
}

#[test]
fn everything_that_stands_in_the_way_is_named_at_once() {
    let job = Job::default()
        .with("(global (mut funcref) (ref.null func)) (memory 1) (data $d \"x\")")
        .function("tidemill_flush", "data.drop $d");
    refused(&job, &["mutable global 0", "2 memories", "data.drop"]);
}

#[test]
fn what_toolchains_emit_is_accepted() {
    Job::default()
        .with(
            "(table 3 funcref) (elem (i32.const 0) $f) (elem declare func $g) (data $d \"x\")
             (global i32 (i32.add (i32.const 1) (i32.const 2)))
             (func $f (param i32) (result i32 i32) local.get 0 i32.extend8_s i32.const 2)
             (func $g (param f64) (result i64) local.get 0 i64.trunc_sat_f64_s)
             (func (result funcref) ref.func $g)
             (func (param v128) (result v128) local.get 0 local.get 0 i8x16.relaxed_swizzle)
             (func (param i32) (result i32 i32) local.get 0 return_call $f)
             (func (param i64 i64) (result i64 i64) local.get 0 local.get 1 i64.mul_wide_u)",
        )
        .function(
            "tidemill_flush",
            "i32.const 0 i32.const 0 i32.const 1 memory.init $d i32.const 0 i32.const 8 i32.const 8 memory.copy",
        )
        .compile();
}

#[test]
fn the_report_tells_what_is_inside() {
    let prepared = Job::default()
        .memory("(memory (export \"memory\") 2 9)")
        .with(
            "(global (mut i32) (i32.const 1)) (global f64 (f64.const 1)) (global (mut v128) (v128.const i64x2 0 0))
             (table $fixed 2 funcref) (table $dynamic 1 5 funcref) (elem (table $fixed) (i32.const 0) func $f)
             (func $f i32.const 0 ref.func $f table.set $dynamic) (data (i32.const 0) \"four\")",
        )
        .prepare();
    let report = prepared.report;
    assert_eq!(
        (report.memory.initial_bytes, report.memory.maximum_bytes),
        (2 * 65536, Some(9 * 65536))
    );
    assert_eq!(report.imports, ["tidemill::emit", "tidemill::log"]);
    assert_eq!(
        (
            report.data_bytes,
            report.functions,
            report.functions_referenced
        ),
        (4, 12, 1)
    );
    let globals: Vec<_> = report
        .mutable_globals
        .iter()
        .map(|global| (global.index, global.kind.as_str()))
        .collect();
    assert_eq!(globals, [(0, "i32"), (2, "v128")]);
    let fixed = TableReport {
        index: 0,
        initial: 2,
        maximum: None,
        is_static: true,
    };
    let dynamic = TableReport {
        index: 1,
        initial: 1,
        maximum: Some(5),
        is_static: false,
    };
    assert_eq!(report.tables, [fixed, dynamic]);
    let process = report
        .exports
        .iter()
        .find(|export| export.name == "tidemill_process")
        .expect("it is exported");
    assert_eq!(process.kind, "(i32, i64, i32, i32, i64) -> i64");
    assert!(
        report
            .exports
            .iter()
            .all(|export| !export.name.starts_with("tidemill:"))
    );
}

#[test]
fn preparing_twice_changes_nothing_and_code_is_untouched() {
    let job = Job::default().with(
        "(global (mut i64) (i64.const 1)) (table 1 funcref) (elem declare func $f)
         (func $f i32.const 0 ref.func $f table.set 0)",
    );
    let once = job.prepare();
    let twice =
        prepare(&once.bytes, &ModuleLimits::default()).expect("a prepared module is acceptable");
    assert_eq!(once.bytes, twice.bytes);
    assert_eq!(once.hash(), twice.hash());
    let exports: Vec<_> = wasmparser_exports(&once.bytes);
    for added in [
        "tidemill:global:0",
        "tidemill:table:0",
        "tidemill:function:2",
    ] {
        assert!(
            exports.iter().any(|name| name == added),
            "{added} in {exports:?}"
        );
    }
}

/// The export names, read from the bytes alone.
fn wasmparser_exports(wasm: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for payload in wasmparser::Parser::new(0).parse_all(wasm) {
        if let wasmparser::Payload::ExportSection(section) = payload.expect("valid") {
            names.extend(
                section
                    .into_iter()
                    .map(|export| export.expect("valid").name.to_owned()),
            );
        }
    }
    names
}

/// A module with something of everything that the scan looks at.
fn rich() -> Vec<u8> {
    Job::default()
        .with(
            "(global (mut i64) (i64.const 1)) (table 4 funcref) (elem (i32.const 1) func $f) (data (i32.const 9) \"abc\")
             (func $f i32.const 0 ref.func $f table.set 0 i32.const 3 i32.const 4 i32.const 5 memory.fill)",
        )
        .wasm()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_prepare_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let headed = [b"\0asm\x01\0\0\0", &bytes[..]].concat();
        for wasm in [&bytes, &headed] {
            prop_assert!(prepare(wasm, &ModuleLimits::default()).is_err());
        }
    }

    #[test]
    fn no_flipped_bit_makes_prepare_panic_or_prepare_what_does_not_compile(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut wasm = rich();
        for (position, bit) in flips {
            let position = position.index(wasm.len());
            wasm[position] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            wasm.truncate(cut.index(wasm.len()));
        }
        if let Ok(prepared) = prepare(&wasm, &ModuleLimits::default()) {
            crate::support::engine().compile(&prepared.bytes, None).expect("what is accepted compiles");
        }
    }
}
