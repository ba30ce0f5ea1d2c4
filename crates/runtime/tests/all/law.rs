//! The law of images: *run ≡ run, capture, restore elsewhere, run*, over random operator programs and random cut
//! points. The programs compute on memory cells and floats, mutate globals of every type, rewrite tables and call through them, grow
//! memory and tables, and stop in the middle of a frame.

use std::fmt::Write as _;

use proptest::prelude::*;
use tidemill_abi::Status;
use tidemill_runtime::{Instance, InstanceLimits, Module, ModuleLimits, prepare};

use crate::support::{Job, Recorder, elsewhere, engine, limits};

/// One operator of a program: reads and writes the accumulator `$acc` (i64), and some state.
#[derive(Clone, Copy, Debug)]
enum Op {
    Cell { from: u8, to: u8, rotate: u8 },
    GlobalI32 { add: i32 },
    GlobalI64 { xor: i64 },
    GlobalF32 { subtract: i8 },
    GlobalF64,
    GlobalV128,
    TableSet { slot: u8, function: u8 },
    TableClear { slot: u8 },
    TableGrow { by: u8, function: u8 },
    TableFill { slot: u8, function: u8 },
    TableCopy { from: u8, to: u8 },
    TableInit { slot: u8 },
    CallChangeable,
    CallStatic,
    MemoryGrow,
    LastPage,
    MemoryFill { value: u8 },
    MemoryInit,
    MemoryCopy,
    Emit { output: u8, target: u8 },
}

/// Entries of the changeable table from the start, and at most.
const TABLE_INITIAL: u32 = 8;
const TABLE_GROWN_MAX: u32 = 40;
const PAGES_MAX: u32 = 7;

const ITEMS: &str = "
(global $i32 (mut i32) (i32.const 3)) (global $step i64 (i64.const 11)) (global $i64 (export \"counter\") (mut i64) (i64.const -9))
(global $f32 (mut f32) (f32.const 1.5)) (global $f64 (mut f64) (f64.const -2.25)) (global $v128 (mut v128) (v128.const i64x2 1 2))
(type $fn (func (param i64) (result i64)))
(table $static 4 funcref) (elem (table $static) (i32.const 0) func $f0 $f1 $f2 $f3)
(table $changing 8 funcref) (elem (table $changing) (i32.const 2) func $f1 $f3)
(elem $passive func $f3 $f0 $f2)
(data $bytes \"the quick brown fox jumps over the lazy dog\")
(func $f0 (type $fn) (i64.add (local.get 0) (global.get $step)))
(func $f1 (type $fn) (i64.xor (i64.mul (local.get 0) (i64.const 6364136223846793005)) (i64.const 0x5bd1e995)))
(func $f2 (type $fn) (global.set $i64 (i64.add (global.get $i64) (local.get 0))) (global.get $i64))
(func $f3 (type $fn) (i64.rotl (local.get 0) (i64.const 23)))
(func $slot (param i64) (result i32) (i32.wrap_i64 (i64.rem_u (local.get 0) (i64.extend_i32_u (table.size $changing)))))
(func $call (param $acc i64) (result i64) (local $slot i32)
  (local.set $slot (call $slot (local.get $acc)))
  (if (result i64) (ref.is_null (table.get $changing (local.get $slot)))
    (then (i64.xor (local.get $acc) (i64.extend_i32_u (local.get $slot))))
    (else (call_indirect $changing (type $fn) (local.get $acc) (local.get $slot)))))
";

impl Op {
    /// The operator as text; leaves `$acc` changed, so that every divergence spreads.
    fn text(self) -> String {
        let slot = |slot: u8| format!("(i32.const {})", u32::from(slot) % TABLE_INITIAL);
        let reference = |function: u8| format!("(ref.func $f{})", function % 4);
        let mix = |value: &str| {
            format!("(local.set $acc (i64.add (i64.mul (local.get $acc) (i64.const 31)) {value}))")
        };
        match self {
            Self::Cell { from, to, rotate } => format!(
                "(i64.store (i32.const {}) (i64.rotl (i64.add (i64.load (i32.const {})) (local.get $acc)) (i64.const {rotate}))) {}",
                256 + u32::from(to % 16) * 8,
                256 + u32::from(from % 16) * 8,
                mix(&format!("(i64.load (i32.const {}))", 256 + u32::from(to % 16) * 8)),
            ),
            Self::GlobalI32 { add } => format!(
                "(global.set $i32 (i32.mul (i32.add (global.get $i32) (i32.const {add})) (i32.wrap_i64 (local.get $acc)))) {}",
                mix("(i64.extend_i32_s (global.get $i32))"),
            ),
            Self::GlobalI64 { xor } => format!(
                "(global.set $i64 (i64.xor (i64.sub (global.get $i64) (local.get $acc)) (i64.const {xor}))) {}",
                mix("(global.get $i64)"),
            ),
            // Runs through infinities and NaNs; their bits are the same everywhere, or the law fails.
            Self::GlobalF32 { subtract } => format!(
                "(global.set $f32 (f32.div (f32.convert_i64_s (local.get $acc)) (f32.sub (global.get $f32) (f32.const {subtract})))) {}",
                mix("(i64.extend_i32_u (i32.reinterpret_f32 (global.get $f32)))"),
            ),
            Self::GlobalF64 => format!(
                "(global.set $f64 (f64.sqrt (f64.add (global.get $f64) (f64.convert_i64_s (local.get $acc))))) {}",
                mix("(i64.reinterpret_f64 (global.get $f64))"),
            ),
            Self::GlobalV128 => format!(
                "(global.set $v128 (f32x4.add (i64x2.add (global.get $v128) (i64x2.splat (local.get $acc))) (global.get $v128))) {}",
                mix("(i64x2.extract_lane 1 (global.get $v128))"),
            ),
            Self::TableSet { slot: at, function } => {
                format!("(table.set $changing {} {})", slot(at), reference(function))
            }
            Self::TableClear { slot: at } => format!("(table.set $changing {} (ref.null func))", slot(at)),
            Self::TableGrow { by, function } => format!(
                "(if (i32.lt_u (table.size $changing) (i32.const {TABLE_GROWN_MAX})) (then (drop (table.grow $changing {} (i32.const {})))))",
                reference(function),
                by % 4,
            ),
            Self::TableFill { slot: at, function } => format!(
                "(table.fill $changing {} {} (i32.sub (i32.const {TABLE_INITIAL}) {}))",
                slot(at),
                reference(function),
                slot(at),
            ),
            Self::TableCopy { from, to } => format!(
                "(table.copy $changing $static (i32.const {}) (i32.const {}) (i32.const 2))",
                to % 7,
                from % 3,
            ),
            Self::TableInit { slot: at } => {
                format!("(table.init $changing $passive (i32.const {}) (i32.const 0) (i32.const 3))", at % 6)
            }
            Self::CallChangeable => "(local.set $acc (call $call (local.get $acc)))".into(),
            Self::CallStatic => {
                "(local.set $acc (call_indirect $static (type $fn) (local.get $acc) (i32.and (i32.wrap_i64 (local.get $acc)) (i32.const 3))))".into()
            }
            Self::MemoryGrow => format!(
                "(if (i32.lt_u (memory.size) (i32.const {PAGES_MAX})) (then (drop (memory.grow (i32.const 1))))) {}",
                mix("(i64.extend_i32_u (memory.size))"),
            ),
            Self::LastPage => {
                let last = "(i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 8))";
                format!("{} (i64.store {last} (local.get $acc))", mix(&format!("(i64.load {last})")))
            }
            Self::MemoryFill { value } => format!(
                "(memory.fill (i32.const 512) (i32.const {value}) (i32.and (i32.wrap_i64 (local.get $acc)) (i32.const 63)))"
            ),
            Self::MemoryInit => "(memory.init $bytes (i32.add (i32.const 512) (i32.and (i32.wrap_i64 (local.get $acc)) (i32.const 15))) (i32.const 4) (i32.const 20))".into(),
            Self::MemoryCopy => format!(
                "(memory.copy (i32.const 520) (i32.const 300) (i32.const 40)) {}",
                mix("(i64.load (i32.const 525))"),
            ),
            Self::Emit { output, target } => format!(
                "(i64.store (i32.const 600) (local.get $acc)) (call $emit (i32.const {output}) (i32.const {target}) (i32.const 596) (i32.const 12))"
            ),
        }
    }
}

/// A job that runs `before` on each frame, and `after` when it is resumed.
fn program(before: &[Op], after: &[Op]) -> Job {
    let text = |ops: &[Op]| {
        ops.iter().fold(String::new(), |mut text, op| {
            writeln!(text, "{}", op.text()).expect("a string takes anything");
            text
        })
    };
    // The continuation is in guest memory, as the ABI says: a capture may come between.
    let process = format!(
        "(param $port i32) (param $split i64) (param $pointer i32) (param $len i32) (param $now i64) (result i64) (local $acc i64)
         (local.set $acc (i64.xor (i64.load (local.get $pointer)) (i64.add (local.get $now) (i64.load (i32.const 248)))))
         {} (i64.store (i32.const 248) (local.get $acc)) (i64.const {})",
        text(before),
        i32::from(!after.is_empty()),
    );
    let resume = format!(
        "(param $now i64) (result i64) (local $acc i64) (local.set $acc (i64.load (i32.const 248)))
         {} (i64.store (i32.const 248) (local.get $acc))
         (call $emit (i32.const 0) (i32.const 0) (i32.const 248) (i32.const 8)) (i64.const 0)",
        text(after),
    );
    Job::default()
        .with(ITEMS)
        .function("tidemill_process", &process)
        .function("tidemill_resume", &resume)
}

/// What a run shows: everything emitted, and the state in the end.
type Outcome = (Vec<(u32, u32, Vec<u8>)>, tidemill_protocol::Image);

/// Runs the frames; before each call whose number is in `cuts` the instance is captured, thrown away, and restored
/// from its image on the other of the two engines.
fn run(modules: [&Module; 2], frames: &[u64], cuts: &[usize]) -> Outcome {
    let limits = InstanceLimits {
        call_output_max_bytes: 1 << 20,
        ..limits()
    };
    let mut instance = Instance::new(modules[0], limits, Recorder::default()).expect("it starts");
    let mut emitted = Vec::new();
    let mut restores = 0;
    let mut calls = 0;
    let mut cut = |instance: &mut Instance<Recorder>| {
        if cuts.contains(&calls) {
            let image = instance
                .capture()
                .expect("it can be captured between calls");
            emitted.append(&mut instance.host_mut().emitted);
            restores += 1;
            *instance =
                Instance::restore(modules[restores % 2], limits, Recorder::default(), &image)
                    .expect("it fits");
        }
        calls += 1;
    };
    for (number, frame) in frames.iter().enumerate() {
        cut(&mut instance);
        let now_ms = 1_000 + number as u64;
        let mut step = instance
            .process(0, 0, &frame.to_le_bytes(), now_ms)
            .expect("it runs");
        while step.status == Status::More {
            cut(&mut instance);
            step = instance.resume(now_ms).expect("it runs");
        }
    }
    emitted.append(&mut instance.host_mut().emitted);
    (emitted, instance.capture().expect("it can be captured"))
}

fn op() -> impl Strategy<Value = Op> {
    let byte = any::<u8>;
    prop_oneof![
        (byte(), byte(), 0u8..64).prop_map(|(from, to, rotate)| Op::Cell { from, to, rotate }),
        any::<i32>().prop_map(|add| Op::GlobalI32 { add }),
        any::<i64>().prop_map(|xor| Op::GlobalI64 { xor }),
        any::<i8>().prop_map(|subtract| Op::GlobalF32 { subtract }),
        Just(Op::GlobalF64),
        Just(Op::GlobalV128),
        (byte(), byte()).prop_map(|(slot, function)| Op::TableSet { slot, function }),
        byte().prop_map(|slot| Op::TableClear { slot }),
        (byte(), byte()).prop_map(|(by, function)| Op::TableGrow { by, function }),
        (byte(), byte()).prop_map(|(slot, function)| Op::TableFill { slot, function }),
        (byte(), byte()).prop_map(|(from, to)| Op::TableCopy { from, to }),
        byte().prop_map(|slot| Op::TableInit { slot }),
        Just(Op::CallChangeable),
        Just(Op::CallStatic),
        Just(Op::MemoryGrow),
        Just(Op::LastPage),
        byte().prop_map(|value| Op::MemoryFill { value }),
        Just(Op::MemoryInit),
        Just(Op::MemoryCopy),
        (byte(), byte()).prop_map(|(output, target)| Op::Emit { output, target }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_captured_and_restored_instance_is_the_instance_it_was(
        before in proptest::collection::vec(op(), 1..14),
        after in proptest::collection::vec(op(), 0..8),
        frames in proptest::collection::vec(any::<u64>(), 1..20),
        cuts in proptest::collection::vec(0usize..40, 1..6),
    ) {
        let prepared = prepare(&program(&before, &after).wasm(), &ModuleLimits::default()).expect("acceptable");
        let here = engine().compile(&prepared.bytes, None).expect("it compiles");
        let there = elsewhere().compile(&prepared.bytes, None).expect("it compiles");
        let whole = run([&here, &there], &frames, &[]);
        let cut = run([&here, &there], &frames, &cuts);
        prop_assert!(whole == cut, "outputs {:?} and {:?}", whole.0, cut.0);
    }
}

#[test]
fn every_operator_survives_a_cut_before_every_call() {
    let all = [
        Op::Cell {
            from: 1,
            to: 2,
            rotate: 7,
        },
        Op::GlobalI32 { add: 5 },
        Op::GlobalI64 { xor: -77 },
        Op::GlobalF32 { subtract: 1 },
        Op::GlobalF64,
        Op::GlobalV128,
        Op::TableSet {
            slot: 0,
            function: 2,
        },
        Op::TableGrow { by: 3, function: 1 },
        Op::TableCopy { from: 1, to: 4 },
        Op::TableInit { slot: 5 },
        Op::CallChangeable,
        Op::MemoryGrow,
        Op::LastPage,
        Op::MemoryFill { value: 9 },
        Op::MemoryInit,
        Op::MemoryCopy,
        Op::Emit {
            output: 3,
            target: 4,
        },
    ];
    let rest = [
        Op::TableClear { slot: 1 },
        Op::TableFill {
            slot: 6,
            function: 3,
        },
        Op::CallChangeable,
        Op::CallStatic,
        Op::LastPage,
    ];
    let prepared =
        prepare(&program(&all, &rest).wasm(), &ModuleLimits::default()).expect("acceptable");
    let here = engine()
        .compile(&prepared.bytes, None)
        .expect("it compiles");
    let there = elsewhere()
        .compile(&prepared.bytes, None)
        .expect("it compiles");
    let frames: Vec<u64> = (1u64..=20)
        .map(|frame| frame.wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .collect();
    let whole = run([&here, &there], &frames, &[]);
    let every: Vec<usize> = (0..2 * frames.len()).collect();
    assert!(whole == run([&here, &there], &frames, &every));
    assert_eq!(whole.0.len(), 2 * frames.len());
    let (_, image) = whole;
    assert_eq!(
        image.memory.len(),
        PAGES_MAX as usize * 65536,
        "memory grew"
    );
    assert!(
        image.tables.len() == 1 && image.tables[0].len() >= TABLE_GROWN_MAX as usize,
        "the changeable table grew"
    );
    assert_eq!(image.globals.len(), 5);
}
