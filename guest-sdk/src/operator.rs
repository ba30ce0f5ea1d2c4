//! What an operator is: a struct with one required method and hooks that do nothing unless written. Closures passed to
//! `map`, `filter` and the like become such structs. An operator never sees encoding, batches or other subtasks.

use crate::push::Progress;
use crate::state::State;

/// Where an operator's records go, and its view of time.
pub trait Emit<T> {
    /// Sends a record on.
    fn emit(&mut self, record: T);

    /// Processing time in milliseconds since the Unix epoch, the same for all records of one call.
    fn now_ms(&self) -> u64;

    /// Asks for the `timer` hook at a processing time. An operator has one timer, a keyed operator one for each key:
    /// setting it again replaces it.
    fn set_timer_ms(&mut self, at_ms: u64);

    /// Which of the stage's subtasks this is, from 0.
    fn subtask(&self) -> u32;

    /// How many subtasks the stage has.
    fn parallelism(&self) -> u32;
}

/// An operator without keys, applied with [`Stream::apply`](crate::Stream::apply). Its fields are its state and are
/// checkpointed with the instance's memory.
///
/// ```
/// use tidemill::prelude::*;
///
/// /// Lets a record pass when it differs from the one before.
/// struct Changes(Option<i64>);
///
/// impl Operator<i64> for Changes {
///     type Out = i64;
///
///     fn process(&mut self, record: i64, out: &mut impl Emit<i64>) {
///         if self.0.replace(record) != Some(record) {
///             out.emit(record);
///         }
///     }
/// }
///
/// let mut changes = tidemill::testing::Harness::new(Changes(None));
/// assert_eq!(changes.process([1, 1, 2, 2, 1]), [1, 2, 1]);
/// ```
pub trait Operator<T>: 'static {
    /// The records it sends on.
    type Out;

    /// Handles one record.
    fn process(&mut self, record: T, out: &mut impl Emit<Self::Out>);

    /// The timer that [`Emit::set_timer_ms`] set is due.
    fn timer(&mut self, out: &mut impl Emit<Self::Out>) {
        let _ = out;
    }

    /// No record with an event time at or before this will follow.
    fn watermark(&mut self, timestamp_ms: i64, out: &mut impl Emit<Self::Out>) {
        let _ = (timestamp_ms, out);
    }

    /// The input has ended. Called again while it answers [`Progress::More`], so that much output can be given in steps.
    fn finish(&mut self, out: &mut impl Emit<Self::Out>) -> Progress {
        let _ = out;
        Progress::Done
    }
}

/// An operator with state for each key, used with [`KeyedStream::process`](crate::KeyedStream::process).
///
/// ```
/// use tidemill::prelude::*;
///
/// /// Gives the size of each run of equal readings of a sensor when the run ends.
/// struct Runs;
///
/// impl KeyedOperator<String, (String, i64)> for Runs {
///     type State = (i64, u32);
///     type Out = (String, i64, u32);
///
///     fn process(&mut self, key: &String, run: &mut (i64, u32), reading: (String, i64), out: &mut impl Emit<Self::Out>) {
///         if run.1 > 0 && run.0 != reading.1 {
///             out.emit((key.clone(), run.0, run.1));
///             run.1 = 0;
///         }
///         *run = (reading.1, run.1 + 1);
///     }
///
///     fn finish(&mut self, key: String, run: (i64, u32), out: &mut impl Emit<Self::Out>) {
///         out.emit((key, run.0, run.1));
///     }
/// }
/// ```
pub trait KeyedOperator<K, T>: 'static {
    /// What is kept for each key.
    type State: State;

    /// The records it sends on.
    type Out;

    /// Handles one record of a key.
    fn process(
        &mut self,
        key: &K,
        state: &mut Self::State,
        record: T,
        out: &mut impl Emit<Self::Out>,
    );

    /// The key's timer is due.
    fn timer(&mut self, key: &K, state: &mut Self::State, out: &mut impl Emit<Self::Out>) {
        let _ = (key, state, out);
    }

    /// The input has ended: called once for each key that has state, a bounded number of keys in each call of the host.
    fn finish(&mut self, key: K, state: Self::State, out: &mut impl Emit<Self::Out>) {
        let _ = (key, state, out);
    }

    /// Whether a state is worth no memory any more. Asked after each record and timer; the key is then forgotten.
    fn is_spent(&self, state: &Self::State) -> bool {
        let _ = state;
        false
    }
}

/// Gives each record to a closure and sends its result on.
pub(crate) struct Map<F>(pub(crate) F);

/// Sends on the records for which a closure says yes.
pub(crate) struct Filter<F>(pub(crate) F);

/// Sends on everything that a closure makes of a record.
pub(crate) struct FlatMap<F>(pub(crate) F);

/// Shows each record to a closure and sends it on.
pub(crate) struct Inspect<F>(pub(crate) F);

impl<T, R, F: FnMut(T) -> R + 'static> Operator<T> for Map<F> {
    type Out = R;

    #[inline]
    fn process(&mut self, record: T, out: &mut impl Emit<R>) {
        out.emit((self.0)(record));
    }
}

impl<T, F: FnMut(&T) -> bool + 'static> Operator<T> for Filter<F> {
    type Out = T;

    #[inline]
    fn process(&mut self, record: T, out: &mut impl Emit<T>) {
        if (self.0)(&record) {
            out.emit(record);
        }
    }
}

impl<T, I: IntoIterator, F: FnMut(T) -> I + 'static> Operator<T> for FlatMap<F> {
    type Out = I::Item;

    #[inline]
    fn process(&mut self, record: T, out: &mut impl Emit<I::Item>) {
        for part in (self.0)(record) {
            out.emit(part);
        }
    }
}

impl<T, F: FnMut(&T) + 'static> Operator<T> for Inspect<F> {
    type Out = T;

    #[inline]
    fn process(&mut self, record: T, out: &mut impl Emit<T>) {
        (self.0)(&record);
        out.emit(record);
    }
}
