//! The coordinating process of a Tidemill cluster: it joins the decisions of `tidemill-core` to the hands (transport,
//! registry, store, Wasm runtime) and answers users. It decides nothing about jobs itself.
//!
//! A body: `driver.rs` takes facts in with one `select!`, `tidemill-core` decides, `roles.rs` carries out what it decides
//! about this process's role, and `perform.rs` what a leader decides. One process lives through any number of reigns.
//!
//! Nouns: [`JobManagerHandle`] (a running one), [`ClusterHandle`] (what users can ask for), [`views`] (what they are told).

mod answers;
mod driver;
mod fit;
pub mod handle;
mod log_requests;
mod perform;
mod reign;
pub mod rest;
mod roles;
mod savepoints;
mod sessions;
mod standing;
mod start;
mod submission;
mod sweep;
mod take_over;
#[cfg(test)]
mod tests;
pub mod views;
mod vigil;

pub use handle::{
    CancelError, ClusterHandle, LogQuery, QueryError, SavepointError, SavepointInfo,
    SavepointListing, SavepointRequestId, SavepointStatus, SavepointStep, StoredSavepointError,
    SubmitError, SubmitOptions, Unavailable, UnusableSavepoint,
};
pub use start::{JobManagerHandle, StartError, start};

/// An error with its causes, joined by colons.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some libraries repeat their source in their own words.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}
