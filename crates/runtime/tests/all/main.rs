//! Scenarios over tiny hand-written modules: what is refused at upload, what limits do, what a cache may return, and
//! the law that a captured and restored instance is the instance it was.

mod cache;
mod describe;
mod filling;
mod incremental;
mod law;
mod limits;
mod refusals;
mod restore;
mod support;
mod trapped;
