//! The native connectors as a job names them. Only a description: the host checks every option at submission, knows the
//! spelling of all, and does the reading and writing.

use core::fmt::Debug;
use core::marker::PhantomData;
use std::collections::BTreeMap;

use tidemill_abi::{ConnectorSpec, StageInput};

use crate::chain::{Batches, Chain, Polled, Seat};
use crate::format::{Debugged, Format, Raw, Text};
use crate::output::{DiscardOutput, SinkOutput};
use crate::push::Push;
use crate::record::Bytes;
use crate::runner::SourceRecords;
use crate::source::{FromFrame, Source};

/// Files: as a source a file, a directory or a glob; as a sink a directory.
///
/// A source says what a record is with [`lines`](Files::lines) or [`bytes`](Files::bytes), a sink how one is written with
/// [`json`](Files::json), [`text`](Files::text) or [`raw`](Files::raw).
pub fn files(path: impl Into<String>) -> Files {
    Files(spec("files").with("path", path.into()))
}

/// The numbers from 0 to `count`, each once, shared out among the subtasks; 0 means without end.
pub fn generator(count: u64) -> Generator {
    Generator(spec("generator").with("count", count))
}

/// A sink that prints each record to the task's log, for looking at small results. It is not transactional: after a
/// failure records may be printed again.
pub fn print() -> Print {
    Print(spec("print"))
}

/// A sink that sends each record as a line over TCP to `address`, `host:port`, from each of its tasks, at once. It is not
/// transactional: what was sent since the last checkpoint is sent again after a failure. The receiver acknowledges nothing,
/// so lines that it had not read when it died itself are lost.
pub fn socket(address: impl Into<String>) -> Socket {
    Socket(spec("socket").with("address", address.into()))
}

/// A sink that drops its records.
pub fn discard() -> Discard {
    Discard(spec("discard"))
}

fn spec(kind: &str) -> ConnectorSpec {
    ConnectorSpec {
        kind: kind.to_owned(),
        options: BTreeMap::new(),
    }
}

/// Adds options by value.
trait With {
    fn with(self, key: &str, value: impl ToString) -> Self;
}

impl With for ConnectorSpec {
    fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.options.insert(key.to_owned(), value.to_string());
        self
    }
}

/// See [`files`].
#[derive(Clone, Debug)]
#[must_use = "say what a record is, and give it to `job.source` or `.sink`"]
pub struct Files(ConnectorSpec);

impl Files {
    /// Sets any option of the connector; one that it does not know refuses the job.
    pub fn option(self, key: &str, value: impl ToString) -> Self {
        Self(self.0.with(key, value))
    }

    /// As a source: at most so many records a second from each subtask. 0 means no limit.
    pub fn rate(self, per_second: u64) -> Self {
        if per_second == 0 {
            self
        } else {
            self.option("rate_per_second", per_second)
        }
    }

    /// As a source: files longer than this are read in parts of this many bytes, by several subtasks.
    pub fn split_bytes(self, bytes: u64) -> Self {
        self.option("split_bytes", bytes)
    }

    /// As a source: each line of text is a record, without its end.
    pub fn lines(self) -> Native<String> {
        Native {
            connector: self.0,
            item: PhantomData,
        }
    }

    /// As a source: the bytes of each line are a record, without its end.
    pub fn bytes(self) -> Native<Bytes> {
        Native {
            connector: self.0,
            item: PhantomData,
        }
    }

    /// As a sink: each record a line of JSON.
    #[cfg(feature = "json")]
    pub fn json(self) -> Formatted<crate::format::Json> {
        self.lines_of(crate::format::Json)
    }

    /// As a sink: each record a line, as it displays itself.
    pub fn text(self) -> Formatted<Text> {
        self.lines_of(Text)
    }

    /// As a sink: the bytes of each record a line, or, with `option("records", "raw")`, one after the other.
    pub fn raw(self) -> Formatted<Raw> {
        self.lines_of(Raw)
    }

    fn lines_of<R>(mut self, format: R) -> Formatted<R> {
        let records = self.0.options.entry("records".to_owned());
        records.or_insert_with(|| "lines".to_owned());
        Formatted {
            connector: self.0,
            format,
        }
    }
}

/// See [`generator`].
#[derive(Clone, Debug)]
#[must_use = "give it to `job.source`"]
pub struct Generator(ConnectorSpec);

impl Generator {
    /// Sets any option of the connector; one that it does not know refuses the job.
    pub fn option(self, key: &str, value: impl ToString) -> Self {
        Self(self.0.with(key, value))
    }

    /// At most so many numbers a second over all subtasks. 0 means no limit.
    pub fn rate(self, per_second: u64) -> Self {
        if per_second == 0 {
            self
        } else {
            self.option("rate", per_second)
        }
    }
}

/// See [`print()`].
#[derive(Clone, Debug)]
#[must_use = "give it to `.sink`"]
pub struct Print(ConnectorSpec);

impl Print {
    /// Sets any option of the connector; one that it does not know refuses the job.
    pub fn option(self, key: &str, value: impl ToString) -> Self {
        Self(self.0.with(key, value))
    }

    /// Prints records as JSON.
    #[cfg(feature = "json")]
    pub fn json(self) -> Formatted<crate::format::Json> {
        Formatted {
            connector: self.0,
            format: crate::format::Json,
        }
    }

    /// Prints records as they display themselves.
    pub fn text(self) -> Formatted<Text> {
        Formatted {
            connector: self.0,
            format: Text,
        }
    }
}

/// See [`socket`].
#[derive(Clone, Debug)]
#[must_use = "say how a record is written, and give it to `.sink`"]
pub struct Socket(ConnectorSpec);

impl Socket {
    /// Sets any option of the connector; one that it does not know refuses the job.
    pub fn option(self, key: &str, value: impl ToString) -> Self {
        Self(self.0.with(key, value))
    }

    /// Sends records as JSON.
    #[cfg(feature = "json")]
    pub fn json(self) -> Formatted<crate::format::Json> {
        Formatted {
            connector: self.0,
            format: crate::format::Json,
        }
    }

    /// Sends records as they display themselves.
    pub fn text(self) -> Formatted<Text> {
        Formatted {
            connector: self.0,
            format: Text,
        }
    }
}

/// See [`discard`].
#[derive(Clone, Debug)]
#[must_use = "give it to `.sink`"]
pub struct Discard(ConnectorSpec);

/// A native source with the type of its records.
#[must_use = "give it to `job.source`"]
pub struct Native<T> {
    connector: ConnectorSpec,
    item: PhantomData<fn() -> T>,
}

/// A native sink with the format of its records.
#[derive(Clone, Debug)]
#[must_use = "give it to `.sink`"]
pub struct Formatted<R> {
    connector: ConnectorSpec,
    format: R,
}

/// What [`Job::source`](crate::Job::source) takes: a native source, or a [`Source`] written in the guest.
pub trait IntoSource {
    /// The head of the stream.
    type Head: Chain;

    /// How the graph describes it, what it is called, and whether it holds state of its own.
    #[doc(hidden)]
    fn describe(&self) -> (StageInput, String, bool);

    #[doc(hidden)]
    fn into_head(self, seat: Seat) -> Self::Head;
}

impl<T: FromFrame> IntoSource for Native<T> {
    type Head = Batches<SourceRecords<T>>;

    fn describe(&self) -> (StageInput, String, bool) {
        (
            StageInput::Connector(self.connector.clone()),
            self.connector.kind.clone(),
            false,
        )
    }

    fn into_head(self, seat: Seat) -> Self::Head {
        Batches {
            seat,
            decoder: SourceRecords(PhantomData),
        }
    }
}

impl IntoSource for Generator {
    type Head = Batches<SourceRecords<u64>>;

    fn describe(&self) -> (StageInput, String, bool) {
        (
            StageInput::Connector(self.0.clone()),
            self.0.kind.clone(),
            false,
        )
    }

    fn into_head(self, seat: Seat) -> Self::Head {
        Batches {
            seat,
            decoder: SourceRecords(PhantomData),
        }
    }
}

impl<S: Source> IntoSource for S {
    type Head = Polled<S>;

    fn describe(&self) -> (StageInput, String, bool) {
        (StageInput::Guest, "source".to_owned(), true)
    }

    fn into_head(self, seat: Seat) -> Self::Head {
        Polled { seat, source: self }
    }
}

/// What [`Stream::sink`](crate::Stream::sink) takes for records of type `T`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot take records of type `{T}`",
    note = "a files sink needs a format: `files(path).json()` for serde types, `.text()` for those that implement `Display`, `.raw()` for bytes",
    note = "so does a socket sink: `socket(address).json()` or `.text()`",
    note = "`print()` needs `Debug`"
)]
pub trait IntoSink<T> {
    /// How the graph describes it.
    #[doc(hidden)]
    fn connector(&self) -> ConnectorSpec;

    #[doc(hidden)]
    fn into_end(self, output: u32) -> impl Push<T>;
}

impl<T: 'static, R: Format<T>> IntoSink<T> for Formatted<R> {
    fn connector(&self) -> ConnectorSpec {
        self.connector.clone()
    }

    fn into_end(self, output: u32) -> impl Push<T> {
        SinkOutput::new(output, self.format)
    }
}

impl<T: Debug + 'static> IntoSink<T> for Print {
    fn connector(&self) -> ConnectorSpec {
        self.0.clone()
    }

    fn into_end(self, output: u32) -> impl Push<T> {
        SinkOutput::new(output, Debugged)
    }
}

impl<T: 'static> IntoSink<T> for Discard {
    fn connector(&self) -> ConnectorSpec {
        self.0.clone()
    }

    fn into_end(self, _output: u32) -> impl Push<T> {
        DiscardOutput
    }
}
