//! Images that do not fit are refused by name, and restoring obeys the limits.

use tidemill_protocol::Image;
use tidemill_protocol::image::GlobalValue;
use tidemill_runtime::{ImageMismatch, Instance, InstanceError, InstanceLimits, TrapReason};

use crate::support::{Job, Recorder, limits};

fn job() -> Job {
    Job::default()
        .with(
            "(global $g (mut i32) (i32.const 5)) (table 2 10 funcref) (elem declare func $tidemill_flush)
             (func $set i32.const 1 ref.func $tidemill_flush table.set 0)",
        )
        .function("tidemill_timer", "(param i64) (result i64) call $set i32.const 9 global.set $g i64.const 0")
}

fn image() -> Image {
    let mut instance = job().start(limits());
    instance.timer(1).expect("it runs");
    instance.capture().expect("it can be captured")
}

fn restore(image: &Image) -> Result<Instance<Recorder>, InstanceError> {
    Instance::restore(&job().compile(), limits(), Recorder::default(), image)
}

fn mismatch(change: impl FnOnce(&mut Image)) -> ImageMismatch {
    let mut image = image();
    change(&mut image);
    match restore(&image) {
        Err(InstanceError::Image(mismatch)) => mismatch,
        other => panic!("the image must not fit: {other:?}"),
    }
}

#[test]
fn an_image_holds_memory_globals_and_changeable_tables() {
    let image = image();
    assert_eq!(image.memory.len(), 2 * 65536);
    assert_eq!(image.globals, [GlobalValue::I32(9)]);
    let [table] = &image.tables[..] else {
        panic!("one table can change")
    };
    assert!(matches!(table[..], [None, Some(_)]));
    let mut restored = restore(&image).expect("it fits");
    assert_eq!(restored.capture(), Ok(image));
}

#[test]
fn a_static_table_is_not_captured() {
    let mut instance = Job::default()
        .with("(table 1 funcref) (elem (i32.const 0) $tidemill_flush)")
        .start(limits());
    assert_eq!(
        instance.capture().expect("it can be captured").tables,
        Vec::<Vec<Option<u32>>>::new()
    );
}

#[test]
fn images_of_other_modules_are_refused_by_what_differs() {
    let initial_bytes = 2 * 65536;
    assert_eq!(
        mismatch(|image| image.memory.truncate(65536)),
        ImageMismatch::Memory {
            image_bytes: 65536,
            initial_bytes
        }
    );
    assert_eq!(
        mismatch(|image| image.memory.push(0)),
        ImageMismatch::Memory {
            image_bytes: initial_bytes + 1,
            initial_bytes
        }
    );
    assert_eq!(
        mismatch(|image| image.globals.clear()),
        ImageMismatch::Globals {
            image: 0,
            module: 1
        }
    );
    assert_eq!(
        mismatch(|image| image.globals[0] = GlobalValue::F32(0)),
        ImageMismatch::GlobalType {
            index: 0,
            expected: "i32".into()
        }
    );
    assert_eq!(
        mismatch(|image| image.tables.clear()),
        ImageMismatch::Tables {
            image: 0,
            module: 1
        }
    );
    assert_eq!(
        mismatch(|image| image.tables[0].truncate(1)),
        ImageMismatch::TableSize {
            index: 0,
            image: 1,
            initial: 2
        }
    );
    assert_eq!(
        mismatch(|image| image.tables[0].resize(11, None)),
        ImageMismatch::TableSize {
            index: 0,
            image: 11,
            initial: 2
        }
    );
    assert_eq!(
        mismatch(|image| image.tables[0][0] = Some(0)),
        ImageMismatch::Function {
            table: 0,
            element: 0,
            function: 0
        }
    );
}

#[test]
fn restoring_obeys_the_limits() {
    let mut image = image();
    image.memory.resize(17 * 65536, 0);
    let expected = TrapReason::MemoryLimit {
        wanted_bytes: 17 * 65536,
        limit_bytes: 16 * 65536,
    };
    assert_eq!(
        restore(&image).expect_err("it is too large"),
        InstanceError::Limit(expected)
    );
    let narrow = InstanceLimits {
        table_elements_max: 3,
        ..limits()
    };
    image.memory.truncate(2 * 65536);
    image.tables[0].resize(4, None);
    let error = Instance::restore(&job().compile(), narrow, Recorder::default(), &image)
        .expect_err("the table is too large");
    assert_eq!(
        error,
        InstanceError::Limit(TrapReason::TableLimit {
            wanted: 4,
            limit: 3
        })
    );
}
