//! Runs whole jobs, and single operators, under plain `cargo test`.
