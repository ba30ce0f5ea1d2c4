//! The builder that a job function is given. It only describes; nothing runs until an instance is opened.

use core::fmt::Display;
use std::rc::Rc;

use crate::chain::Seat;
use crate::connector::IntoSource;
use crate::param::Param;
use crate::plan::{Plan, Purpose};
use crate::stream::Stream;

/// A job under construction: where streams begin and parameters are read.
pub struct Job {
    plan: Rc<Plan>,
}

impl Job {
    /// Begins a stream: with a native source such as [`files`](crate::files) or [`generator`](crate::generator), or with
    /// a [`Source`](crate::Source) of the job's own.
    pub fn source<S: IntoSource>(&self, source: S) -> Stream<S::Head> {
        let (input, kind, closure_state) = source.describe();
        let stage = self.plan.open_stage(input, 0);
        let head = source.into_head(Seat {
            plan: Rc::clone(&self.plan),
            stage,
        });
        let place = self.plan.add_operator(stage, &kind, false, closure_state);
        Stream::begin(Rc::clone(&self.plan), place, head)
    }

    /// Asks for a parameter of the submission.
    pub fn param(&self, name: &str) -> Param<'_> {
        Param {
            plan: &self.plan,
            name: name.to_owned(),
        }
    }

    /// Names the job; without this it is called like its function. A submission may give another name.
    pub fn name(&self, name: &str) {
        self.plan.set_name(name);
    }
}

/// What a job function may return: nothing, or a result whose error refuses the submission in words.
pub trait Outcome {
    /// The error as text.
    #[doc(hidden)]
    fn mistake(self) -> Option<String>;
}

impl Outcome for () {
    fn mistake(self) -> Option<String> {
        None
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn mistake(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// Runs a job function and gives the plan it built, not yet checked.
pub(crate) fn build<R: Outcome>(
    function: fn(&mut Job) -> R,
    name: &str,
    purpose: Purpose,
) -> Rc<Plan> {
    let plan = Rc::new(Plan::new(name, purpose));
    let mut job = Job {
        plan: Rc::clone(&plan),
    };
    if let Some(mistake) = function(&mut job).mistake() {
        plan.mistake(mistake);
    }
    plan
}
