//! The decisions of a Tidemill cluster: every state machine, and nothing else.
//!
//! Each machine has four verbs: `handle(now, event)` takes a fact, `poll_action()` gives the next intention,
//! `poll_timeout()` says when it wants to be woken, `handle_timeout(now)` wakes it. It never performs IO, reads a clock,
//! draws a random number or starts a thread: the same events at the same times give the same actions.
//!
//! Nouns: [`Time`] (handed in), [`leadership::Leadership`] (whether this JobManager leads), [`leader::Leader`] (decides for
//! a cluster), [`job::Job`] (one job), [`checkpoint::Coordinator`] (its checkpoints), [`worker::Worker`] (what a
//! TaskManager obeys), [`Alignment`] (barriers of one task).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod alignment;
pub mod checkpoint;
pub mod graph;
pub mod job;
pub mod leader;
pub mod leadership;
pub mod membership;
pub mod mutation;
pub mod recovery;
pub mod restart;
pub mod scheduler;
pub mod standby;
pub mod time;
pub mod worker;

pub use alignment::{Alignment, AlignmentAction};
pub use time::{Time, Timers};
