//! How long a task takes to come back: from bytes at hand, while its pages are still read, over a mapped file, and by
//! going back in its own memory. The source is this process's memory, so what a store or a network takes is not in it.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_protocol::image::PageRun;
use tidemill_protocol::{Image, ImageHead};
use tidemill_runtime::{
    CAPTURE_PAGE_BYTES, CaptureRoom, DirtyMethod, Instance, MemoryImage, Module, PageSource,
};

use crate::guest::{self, Silent, Task};
use crate::table::quantile_ms;

/// As many pages as a block of a stored image has.
const PIECE_PAGES: u32 = 16;

/// Pages of a memory of which none is zero.
#[derive(Debug)]
struct Copy {
    memory: Arc<Vec<u8>>,
    pieces: Vec<PageRun>,
}

impl Copy {
    fn of(memory: &Arc<Vec<u8>>) -> Self {
        let pages = (memory.len() / CAPTURE_PAGE_BYTES) as u32;
        let piece = |first| PageRun {
            first,
            pages: PIECE_PAGES.min(pages - first),
            zero: false,
        };
        Self {
            memory: Arc::clone(memory),
            pieces: (0..pages)
                .step_by(PIECE_PAGES as usize)
                .map(piece)
                .collect(),
        }
    }
}

impl PageSource for Copy {
    fn pieces(&self) -> &[PageRun] {
        &self.pieces
    }

    fn read(
        &self,
        pieces: Range<usize>,
        lay: &mut dyn FnMut(PageRun, &[u8]),
    ) -> Result<(), String> {
        for piece in &self.pieces[pieces] {
            lay(*piece, &self.memory[piece.memory_range()]);
        }
        Ok(())
    }
}

/// What one restore took, each from its beginning.
#[derive(Default)]
struct Took {
    restored: Vec<Duration>,
    called: Vec<Duration>,
    complete: Vec<Duration>,
    captured: Vec<Duration>,
}

/// Prints a row for each way and each share of pages that the first call writes.
pub(crate) fn restores(
    module: &Module,
    bytes: u64,
    percents: &[u32],
    rounds: u32,
) -> anyhow::Result<()> {
    let mut task = Task::new(module, bytes)?;
    let Image {
        memory,
        globals,
        tables,
        ..
    } = task.instance.capture()?;
    let head = ImageHead {
        memory_bytes: bytes,
        globals,
        tables,
        ..ImageHead::default()
    };
    drop(task);
    let mut file = tempfile::tempfile()?;
    file.write_all(&memory)?;
    let (memory, file) = (Arc::new(memory), Arc::new(file));
    let source = Arc::new(Copy::of(&memory));
    for (number, percent) in percents.iter().enumerate() {
        // What is laid over at once does not depend on what is written afterwards.
        let ways: &[&str] = match number {
            0 => &["whole", "lazy", "file"],
            _ => &["lazy", "file"],
        };
        for way in ways {
            let mut took = Took::default();
            for round in 0..rounds {
                let image = match *way {
                    "whole" => MemoryImage::Whole(memory.to_vec()),
                    "lazy" => MemoryImage::Lazy(Arc::<Copy>::clone(&source)),
                    _ => MemoryImage::File(Arc::clone(&file)),
                };
                restore(module, &head, image, *percent, round, &mut took)?;
            }
            let ms = |durations: &Vec<Duration>| quantile_ms(durations.clone(), 0.5);
            println!(
                "restore {} MiB, {way}: restored {:.2} ms, first call with writes to {percent} % of the pages over {:.2} ms, all pages there {:.2} ms after the beginning; pause of the next capture {:.3} ms",
                bytes >> 20,
                ms(&took.restored),
                ms(&took.called),
                ms(&took.complete),
                ms(&took.captured),
            );
        }
    }
    Ok(())
}

fn restore(
    module: &Module,
    head: &ImageHead,
    image: MemoryImage,
    percent: u32,
    round: u32,
    took: &mut Took,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut instance = Instance::restore_from(module, guest::limits(), Silent, head, image)?;
    instance.follow(0);
    took.restored.push(began.elapsed());
    let mut task = Task::over(instance)?;
    task.write(task.percent(percent), round)?;
    took.called.push(began.elapsed());
    while let Some(filling) = task.instance.filling() {
        anyhow::ensure!(
            filling.error.is_none(),
            "the source is at hand: {filling:?}"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    took.complete.push(began.elapsed());
    let mut room = CaptureRoom::default();
    room.warm(task.instance.memory_bytes() as usize);
    let began = Instant::now();
    let capture = task.instance.capture_changes(room)?;
    took.captured.push(began.elapsed());
    // Not before: giving the buffer back takes longer than a capture.
    drop(capture);
    Ok(())
}

/// How long a survivor takes to go back, where only what changed is asked for.
pub(crate) fn revert(module: &Module, bytes: u64, percent: u32, rounds: u32) -> anyhow::Result<()> {
    let mut task = Task::new(module, bytes)?;
    task.instance.find_changes_by(DirtyMethod::WriteProtection);
    let whole = task.instance.capture_changes(CaptureRoom::default())?;
    let mut image = Image::default();
    whole.lay_over(&mut image)?;
    let head = ImageHead {
        memory_bytes: bytes,
        globals: image.globals.clone(),
        tables: image.tables.clone(),
        ..ImageHead::default()
    };
    let pages = task.percent(percent);
    let mut took = Vec::new();
    let mut asked = 0;
    for round in 0..rounds {
        task.write(pages, round)?;
        let began = Instant::now();
        task.instance = task.instance.revert_from(
            guest::limits(),
            Silent,
            &head,
            whole.sequence,
            [],
            &mut |wanted, lay| {
                asked = wanted.iter().map(|run| u64::from(run.pages)).sum();
                for run in wanted {
                    lay(*run, &image.memory[run.memory_range()]);
                }
                Ok(())
            },
        )?;
        took.push(began.elapsed());
    }
    println!(
        "revert {} MiB, {percent} % written since: median {:.2} ms, longest {:.2} ms; {asked} pages asked for",
        bytes >> 20,
        quantile_ms(took.clone(), 0.5),
        quantile_ms(took, 1.0),
    );
    Ok(())
}
