//! The decisions of a Tidemill cluster: every state machine, and nothing else.
//!
//! Each machine has four verbs: `handle(now, event)` takes a fact, `poll_action()` gives the next intention,
//! `poll_timeout()` says when it wants to be woken, `handle_timeout(now)` wakes it. It never performs IO, reads a clock,
//! draws a random number or starts a thread: the same events at the same times give the same actions.
//!
//! Nouns: [`Time`] (handed in), [`Alignment`] (barriers of one task), [`graph`] (what runs).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod alignment;
pub mod checkpoint;
pub mod graph;
pub mod membership;
pub mod recovery;
pub mod restart;
pub mod scheduler;
pub mod time;
pub mod worker;

pub use alignment::{Alignment, AlignmentAction};
pub use time::{Time, Timers};
