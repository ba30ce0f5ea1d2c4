//! The promise of the file sink, against every crash: each record is shown exactly once. And its behaviour in a real
//! directory, good and bad.

mod crashes;
mod local;
mod socket;
