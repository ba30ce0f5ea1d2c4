//! One operator, with neither a job nor an exchange around it.

use core::marker::PhantomData;

use crate::context::Context;
use crate::operator::Operator;
use crate::push::{Applied, Progress, Push, Signal};

/// Feeds an [`Operator`] by hand and gives back what it emits.
///
/// ```
/// use tidemill::prelude::*;
/// use tidemill::testing::Harness;
///
/// /// Passes on how many records came, one second after the first of them.
/// #[derive(Default)]
/// struct CountForASecond(u64);
///
/// impl Operator<String> for CountForASecond {
///     type Out = u64;
///
///     fn process(&mut self, _record: String, out: &mut impl Emit<u64>) {
///         if self.0 == 0 {
///             out.set_timer_ms(out.now_ms() + 1_000);
///         }
///         self.0 += 1;
///     }
///
///     fn timer(&mut self, out: &mut impl Emit<u64>) {
///         out.emit(std::mem::take(&mut self.0));
///     }
/// }
///
/// let mut counting = Harness::new(CountForASecond::default());
/// assert!(counting.process(["a".to_owned(), "b".to_owned()]).is_empty());
/// assert!(counting.advance_to(999).is_empty());
/// assert_eq!(counting.advance_to(1_000), [2]);
/// ```
pub struct Harness<T, O: Operator<T>> {
    applied: Applied<O, Collected<O::Out>>,
    cx: Context,
    input: PhantomData<fn(T)>,
}

impl<T: 'static, O: Operator<T, Out: 'static>> Harness<T, O> {
    /// The operator as the only subtask, at time 0.
    pub fn new(operator: O) -> Self {
        Self {
            applied: Applied::new(operator, Collected(Vec::new())),
            cx: Context::new(0, 1),
            input: PhantomData,
        }
    }

    /// Gives it records; answers what it emitted.
    pub fn process(&mut self, records: impl IntoIterator<Item = T>) -> Vec<O::Out> {
        for record in records {
            self.applied.push(record, &mut self.cx);
        }
        self.take()
    }

    /// Moves processing time, and runs the timer if it is due.
    pub fn advance_to(&mut self, now_ms: u64) -> Vec<O::Out> {
        self.cx.begin_call(now_ms);
        self.cx.disarm();
        self.signal(Signal::Timer)
    }

    /// Tells it that event time has come to a point.
    pub fn watermark(&mut self, timestamp_ms: i64) -> Vec<O::Out> {
        self.signal(Signal::Watermark(timestamp_ms))
    }

    /// Tells it that the input has ended, until it has said everything.
    pub fn finish(&mut self) -> Vec<O::Out> {
        self.signal(Signal::Finish)
    }

    fn signal(&mut self, signal: Signal) -> Vec<O::Out> {
        while self.applied.signal(signal, &mut self.cx) == Progress::More {}
        self.take()
    }

    fn take(&mut self) -> Vec<O::Out> {
        core::mem::take(&mut self.applied.next_mut().0)
    }
}

/// Keeps what it is given.
struct Collected<T>(Vec<T>);

impl<T: 'static> Push<T> for Collected<T> {
    fn push(&mut self, record: T, _cx: &mut Context) {
        self.0.push(record);
    }

    fn signal(&mut self, _signal: Signal, _cx: &mut Context) -> Progress {
        Progress::Done
    }
}
