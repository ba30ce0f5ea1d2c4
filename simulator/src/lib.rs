//! The simulator: the real machines of `tidemill-core` for three JobManagers and ten TaskManagers, in a simulated world
//! that is driven by one seed.
#![forbid(unsafe_code)]

pub mod random;
pub mod scenario;
mod time;
