//! A stream under construction: a head and the operators after it, which become a pushing chain when the stream
//! ends at an exchange, a split or a sink. It never runs anything: `close` moves the closures to where they will run.

use std::cell::RefCell;
use std::rc::Rc;

use crate::context::Context;
use crate::operator::Operator;
use crate::plan::Plan;
use crate::push::{Applied, Progress, Push, Signal};
use crate::runner::{BatchRunner, Decoder, PollRunner, Runner};
use crate::source::Source;

/// The operators of a stream, from its head to its open end.
pub trait Chain: 'static {
    /// The records at the open end.
    type Out: 'static;

    /// Joins the chain to what receives its records, and puts the whole where its instance will find it.
    #[doc(hidden)]
    fn close(self, next: impl Push<Self::Out>);
}

/// Where a closed stage goes: into the plan if this instance runs the stage, else nowhere.
pub struct Seat {
    pub(crate) plan: Rc<Plan>,
    pub(crate) stage: u32,
}

impl Seat {
    fn take<R: Runner>(&self, runner: R) {
        if self.plan.keeps(self.stage) {
            self.plan.install(Box::new(runner));
        }
    }
}

/// The head of a stage that is given batches: by edges, or by a native source.
pub struct Batches<D> {
    pub(crate) seat: Seat,
    pub(crate) decoder: D,
}

impl<D: Decoder> Chain for Batches<D> {
    type Out = D::Item;

    fn close(self, next: impl Push<D::Item>) {
        let ports = self.seat.plan.ports(self.seat.stage);
        self.seat.take(BatchRunner::new(self.decoder, ports, next));
    }
}

/// The head of a stage whose records are made by a source in the guest.
pub struct Polled<S> {
    pub(crate) seat: Seat,
    pub(crate) source: S,
}

impl<S: Source> Chain for Polled<S> {
    type Out = S::Item;

    fn close(self, next: impl Push<S::Item>) {
        self.seat.take(PollRunner::new(self.source, next));
    }
}

/// A chain with one operator more.
pub(crate) struct Then<C, O> {
    pub(crate) before: C,
    pub(crate) operator: O,
}

impl<C: Chain, O: Operator<C::Out, Out: 'static>> Chain for Then<C, O> {
    type Out = O::Out;

    fn close(self, next: impl Push<O::Out>) {
        self.before.close(Applied::new(self.operator, next));
    }
}

/// Where one branch of a split is put once it is closed.
pub(crate) type BranchSlot<T> = Rc<RefCell<Option<Box<dyn Push<T>>>>>;

/// The head of one branch of a split.
pub(crate) struct Branch<T> {
    pub(crate) slot: BranchSlot<T>,
}

impl<T: 'static> Chain for Branch<T> {
    type Out = T;

    fn close(self, next: impl Push<T>) {
        *self.slot.borrow_mut() = Some(Box::new(next));
    }
}

/// Records that a split collects for a branch before it calls the branch once for all of them.
const BRANCH_RECORDS: usize = 256;

/// The end of a chain that is split: gives each record to the branch that a closure picks.
pub(crate) struct Split<T, F> {
    choose: F,
    branches: Vec<(Vec<T>, BranchSlot<T>)>,
}

impl<T, F> Split<T, F> {
    pub(crate) fn new(choose: F, slots: Vec<BranchSlot<T>>) -> Self {
        Self {
            choose,
            branches: slots.into_iter().map(|slot| (Vec::new(), slot)).collect(),
        }
    }
}

impl<T: 'static, F: FnMut(&T) -> usize + 'static> Push<T> for Split<T, F> {
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        let chosen = (self.choose)(&record);
        let count = self.branches.len();
        let Some((collected, slot)) = self.branches.get_mut(chosen) else {
            panic!(
                "a split chose branch {chosen}, but its branches are 0 to {}",
                count - 1
            )
        };
        collected.push(record);
        if collected.len() >= BRANCH_RECORDS {
            on_branch(slot, |branch| branch.push_all(collected, cx));
        }
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        let mut progress = Progress::Done;
        for (collected, slot) in &mut self.branches {
            let answer = on_branch(slot, |branch| {
                branch.push_all(collected, cx);
                branch.signal(signal, cx)
            });
            if answer == Progress::More {
                progress = Progress::More;
            }
        }
        progress
    }
}

/// Calls a branch, which is there because the plan refuses a graph with an open end.
fn on_branch<T, R>(slot: &BranchSlot<T>, call: impl FnOnce(&mut Box<dyn Push<T>>) -> R) -> R {
    call(
        slot.borrow_mut()
            .as_mut()
            .expect("every branch of a checked graph is closed"),
    )
}
