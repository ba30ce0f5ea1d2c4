use tidemill::prelude::*;

#[tidemill::job(name = "x")]
fn named(job: &mut Job) {
    job.source(generator(1)).sink(discard());
}

#[tidemill::job]
fn two(job: &mut Job, count: u64) {
    job.source(generator(count)).sink(discard());
}

#[tidemill::job]
async fn later(job: &mut Job) {
    job.source(generator(1)).sink(discard());
}

#[tidemill::job]
fn of_any<T>(job: &mut Job) {
    job.source(generator(1)).sink(discard());
}

fn main() {}
