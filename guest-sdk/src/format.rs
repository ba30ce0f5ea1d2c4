//! How records are written for native sinks: the guest formats, the host frames lines. A format never writes the
//! newline that ends a line; the host does.

use core::fmt::{Debug, Display};
use std::io::Write;

/// Writes one record at the end of a buffer.
pub trait Format<T>: 'static {
    /// Appends the record's bytes, without a newline.
    fn write(&self, record: &T, buffer: &mut Vec<u8>);
}

/// Records as they display themselves.
#[derive(Clone, Copy, Debug)]
pub struct Text;

/// Records as Rust's debug format shows them, on one line.
#[derive(Clone, Copy, Debug)]
pub struct Debugged;

/// The bytes of records as they are.
#[derive(Clone, Copy, Debug)]
pub struct Raw;

/// Records as JSON, one on a line.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug)]
pub struct Json;

impl<T: Display> Format<T> for Text {
    fn write(&self, record: &T, buffer: &mut Vec<u8>) {
        write!(buffer, "{record}").expect("a vector takes every write");
    }
}

impl<T: Debug> Format<T> for Debugged {
    fn write(&self, record: &T, buffer: &mut Vec<u8>) {
        write!(buffer, "{record:?}").expect("a vector takes every write");
    }
}

impl<T: AsRef<[u8]>> Format<T> for Raw {
    fn write(&self, record: &T, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(record.as_ref());
    }
}

#[cfg(feature = "json")]
impl<T: serde::Serialize> Format<T> for Json {
    fn write(&self, record: &T, buffer: &mut Vec<u8>) {
        if let Err(error) = serde_json::to_writer(buffer, record) {
            panic!(
                "a record of type `{}` could not be written as JSON: {error}",
                core::any::type_name::<T>()
            );
        }
    }
}
