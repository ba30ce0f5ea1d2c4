//! How records move inside a stage: each operator pushes into the next, all of them one static type that the compiler
//! inlines into one loop. It never boxes between two operators; only the ends of a chain are boxed.

use crate::context::Context;
use crate::operator::{Emit, Operator};

/// Whether a step is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is no more to do.
    Done,
    /// The step stopped at a bound and wants to be called again.
    More,
}

/// What a chain is told besides records. Each is passed on from operator to operator until its end, and repeated after
/// [`Progress::More`]: what an operator has done it does not do again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// No record with an event time at or before this will follow.
    Watermark(i64),
    /// Processing time has moved to a deadline.
    Timer,
    /// The input has ended.
    Finish,
    /// The call ends: pass on what was only collected to be passed on together.
    Settle,
    /// Emit every partly filled buffer.
    Flush,
}

/// The receiving end of a chain of operators.
pub trait Push<T>: 'static {
    /// Takes a record.
    fn push(&mut self, record: T, cx: &mut Context);

    /// Takes a signal.
    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress;

    /// Takes many records by one virtual call.
    fn push_all(&mut self, records: &mut Vec<T>, cx: &mut Context) {
        for record in records.drain(..) {
            self.push(record, cx);
        }
    }
}

/// An operator joined to what follows it.
pub(crate) struct Applied<O, P> {
    operator: O,
    timer_ms: Option<u64>,
    watermark_ms: i64,
    finished: bool,
    next: P,
}

impl<O, P> Applied<O, P> {
    pub(crate) fn new(operator: O, next: P) -> Self {
        Self {
            operator,
            timer_ms: None,
            watermark_ms: i64::MIN,
            finished: false,
            next,
        }
    }

    /// What follows, for a test to look at.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn next_mut(&mut self) -> &mut P {
        &mut self.next
    }
}

impl<T: 'static, O: Operator<T>, P: Push<O::Out>> Push<T> for Applied<O, P> {
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        self.operator.process(
            record,
            &mut Outlet {
                next: &mut self.next,
                cx,
                timer_ms: &mut self.timer_ms,
            },
        );
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        let Self {
            operator,
            timer_ms,
            watermark_ms,
            finished,
            next,
        } = self;
        match signal {
            Signal::Timer => {
                if timer_ms.take_if(|at_ms| *at_ms <= cx.now_ms()).is_some() {
                    operator.timer(&mut Outlet { next, cx, timer_ms });
                }
                if let Some(at_ms) = *timer_ms {
                    cx.arm(at_ms);
                }
            }
            Signal::Watermark(timestamp_ms) if timestamp_ms > *watermark_ms => {
                *watermark_ms = timestamp_ms;
                operator.watermark(timestamp_ms, &mut Outlet { next, cx, timer_ms });
            }
            Signal::Finish if !*finished => {
                if operator.finish(&mut Outlet { next, cx, timer_ms }) == Progress::More {
                    return Progress::More;
                }
                *finished = true;
            }
            _ => {}
        }
        next.signal(signal, cx)
    }
}

/// What an operator emits into.
pub(crate) struct Outlet<'a, P> {
    pub(crate) next: &'a mut P,
    pub(crate) cx: &'a mut Context,
    pub(crate) timer_ms: &'a mut Option<u64>,
}

impl<T, P: Push<T>> Emit<T> for Outlet<'_, P> {
    #[inline]
    fn emit(&mut self, record: T) {
        self.next.push(record, self.cx);
    }

    fn now_ms(&self) -> u64 {
        self.cx.now_ms()
    }

    fn set_timer_ms(&mut self, at_ms: u64) {
        *self.timer_ms = Some(at_ms);
        self.cx.arm(at_ms);
    }

    fn subtask(&self) -> u32 {
        self.cx.subtask()
    }

    fn parallelism(&self) -> u32 {
        self.cx.parallelism()
    }
}
