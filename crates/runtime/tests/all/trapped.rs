//! A guest that traps in the middle of its work leaves its memory, its globals and its table half-changed. Put back in
//! place, it is the guest that it was at its capture, and goes on as one that never trapped.

use std::sync::Arc;

use tidemill_protocol::Image;
use tidemill_runtime::{
    CallError, Capture, CaptureRoom, DirtyMethod, Instance, InstanceLimits, MemoryImage, Module,
};

use crate::support::{Job, Recorder, Source, head, limits};

const METHODS: [Option<DirtyMethod>; 4] = [
    None,
    Some(DirtyMethod::WriteProtection),
    Some(DirtyMethod::Hashes),
    Some(DirtyMethod::Whole),
];

/// The round of which a guest does not come to the end.
const CUT_OFF: u64 = 7;

/// At each timer it adds to its globals and writes to 200 pages, one after the other, what depends on what is there. In one
/// round it traps on its way: half of the pages are written, the memory and the table have grown, and what has grown is
/// written to.
fn job() -> Job {
    Job::default()
        .memory("(memory (export \"memory\") 20)")
        .with(
            "(global $sum (mut i64) (i64.const 1)) (global $rounds (mut i32) (i32.const 0))
             (table $t 1 100 funcref) (elem declare func $tidemill_flush)
             (data (i32.const 70000) \"a data segment is placed again\")
             (func $grow
               (i64.store (i32.mul (memory.grow (i32.const 3)) (i32.const 65536)) (i64.const -1))
               (drop (table.grow $t (ref.func $tidemill_flush) (i32.const 2))))",
        )
        .function(
            "tidemill_timer",
            "(param $round i64) (result i64) (local $page i32) (local $at i32)
             (global.set $rounds (i32.add (global.get $rounds) (i32.const 1)))
             (loop $next
               (local.set $at (i32.add (i32.const 100000) (i32.mul (local.get $page) (i32.const 5000))))
               (global.set $sum (i64.add
                 (i64.mul (global.get $sum) (i64.const 6364136223846793005))
                 (i64.add (local.get $round) (i64.load (local.get $at)))))
               (i64.store (local.get $at) (global.get $sum))
               (if (i32.and
                     (i64.eq (local.get $round) (i64.const 7))
                     (i32.eq (local.get $page) (i32.const 100)))
                 (then (call $grow) (unreachable)))
               (local.set $page (i32.add (local.get $page) (i32.const 1)))
               (br_if $next (i32.lt_u (local.get $page) (i32.const 200))))
             (i64.const 0)",
        )
}

fn wide() -> InstanceLimits {
    InstanceLimits {
        memory_max_bytes: 64 * 65536,
        ..limits()
    }
}

fn capture(instance: &mut Instance<Recorder>) -> Capture {
    instance
        .capture_changes(CaptureRoom::default())
        .expect("between calls")
}

fn image(instance: &mut Instance<Recorder>) -> Image {
    instance.capture().expect("between calls")
}

/// Does rounds with both, and compares.
fn goes_on_as(instance: &mut Instance<Recorder>, twin: &mut Instance<Recorder>) {
    for round in [8, 9] {
        for guest in [&mut *instance, &mut *twin] {
            guest.timer(round).expect("it runs");
        }
        assert!(image(instance) == image(twin), "in round {round}");
    }
}

/// Traps in the middle, whatever has happened before.
fn trap(instance: &mut Instance<Recorder>) {
    let error = instance.timer(CUT_OFF).expect_err("it is unreachable");
    assert!(matches!(error, CallError::Trap { .. }), "{error:?}");
    let error = instance.timer(8).expect_err("nothing runs on half of it");
    assert!(!error.to_string().is_empty());
}

fn restored(module: &Module, image: &Image) -> Instance<Recorder> {
    Instance::restore(module, wide(), Recorder::default(), image).expect("it fits")
}

#[test]
fn a_guest_that_traps_in_the_middle_of_writing_goes_on_from_its_capture() {
    let module = job().compile();
    for method in METHODS {
        for captures_since in 0..2 {
            let mut instance =
                Instance::new(&module, wide(), Recorder::default()).expect("it starts");
            if let Some(method) = method {
                instance.find_changes_by(method);
            }
            instance.timer(1).expect("it runs");
            let first = capture(&mut instance);
            let then = image(&mut instance);
            let mut changed = Vec::new();
            for round in 0..captures_since {
                instance.timer(3 + round).expect("it runs");
                changed.extend(capture(&mut instance).runs);
            }
            trap(&mut instance);
            let host = Recorder::default();
            let mut instance = instance
                .revert(wide(), host, &then, first.sequence, changed)
                .expect("it fits");
            assert!(image(&mut instance) == then, "{method:?}");
            let mut twin = restored(&module, &then);
            goes_on_as(&mut instance, &mut twin);

            // The next capture adds to the one that it went back to, and says all that has changed since.
            let next = capture(&mut instance);
            let mut sum = then.clone();
            next.lay_over(&mut sum).expect("it is whole");
            assert!(sum == image(&mut twin), "{method:?}");
        }
    }
}

#[test]
fn a_guest_that_traps_while_its_pages_still_come_goes_on_from_where_they_come_from() {
    let module = job().compile();
    let mut before = Instance::new(&module, wide(), Recorder::default()).expect("it starts");
    before.timer(1).expect("it runs");
    let then = image(&mut before);
    let source = Arc::new(Source::of(then.memory.clone()));
    let memory = MemoryImage::Lazy(Arc::clone(&source) as _);
    let host = Recorder::default();
    let mut instance =
        Instance::restore_from(&module, wide(), host, &head(&then), memory).expect("it fits");
    instance.follow(0);
    trap(&mut instance);
    let host = Recorder::default();
    let mut instance = instance
        .revert(wide(), host, &then, 0, [])
        .expect("it fits");
    source.open();
    let mut twin = restored(&module, &then);
    assert!(image(&mut instance) == then);
    goes_on_as(&mut instance, &mut twin);
}
