//! The coordinating process of a Tidemill cluster: it joins the decisions of `tidemill-core` to the hands (transport,
//! registry, store, Wasm runtime) and answers users. It decides nothing about jobs itself.
//!
//! Nouns: [`ClusterHandle`] (what users can ask for), [`views`] (what they are told).

pub mod handle;
pub mod rest;
pub mod views;

pub use handle::{
    CancelError, ClusterHandle, LogQuery, QueryError, SubmitError, SubmitOptions, Unavailable,
};
