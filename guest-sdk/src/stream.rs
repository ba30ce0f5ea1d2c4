//! A stream while a job is described, and the operators that need no key. Each method adds to the description and
//! gives the longer stream back; none of them runs a closure.

use core::marker::PhantomData;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tidemill_abi::{Partitioning, StageInput};

use crate::chain::{Batches, Branch, Chain, Seat, Split, Then};
use crate::connector::IntoSink;
use crate::keyed::KeyedStream;
use crate::operator::{Filter, FlatMap, Inspect, Map, Operator};
use crate::output::{BatchEdge, HashEdge};
use crate::plan::{Place, Plan};
use crate::record::Record;
use crate::runner::EdgeRecords;
use crate::state::Key;

/// The records that come out of the operators described so far.
///
/// Operators that follow one another without an exchange between them (`key_by`, `rebalance`, `broadcast`, `union`) are
/// compiled into one loop and run in one instance: a stage.
#[must_use = "a stream ends with `.sink(…)`"]
pub struct Stream<C> {
    plan: Rc<Plan>,
    place: Place,
    end: u32,
    chain: C,
}

/// A stream that begins a stage: what comes over an edge.
pub(crate) type Received<T> = Stream<Batches<EdgeRecords<T>>>;

impl<C: Chain> Stream<C> {
    pub(crate) fn begin(plan: Rc<Plan>, place: Place, chain: C) -> Self {
        let end = plan.open_end(place);
        Self {
            plan,
            place,
            end,
            chain,
        }
    }

    /// Gives each record to a closure and goes on with its results.
    pub fn map<R: 'static, F: FnMut(C::Out) -> R + 'static>(
        self,
        f: F,
    ) -> Stream<impl Chain<Out = R>> {
        self.then("map", Map(f))
    }

    /// Goes on with the records for which a closure says yes.
    pub fn filter<F: FnMut(&C::Out) -> bool + 'static>(
        self,
        f: F,
    ) -> Stream<impl Chain<Out = C::Out>> {
        self.then("filter", Filter(f))
    }

    /// Goes on with everything that a closure makes of each record: a vector, an option, any iterator.
    pub fn flat_map<I, F>(self, f: F) -> Stream<impl Chain<Out = I::Item>>
    where
        I: IntoIterator<Item: 'static>,
        F: FnMut(C::Out) -> I + 'static,
    {
        self.then("flat_map", FlatMap(f))
    }

    /// Shows each record to a closure and goes on with the same records.
    pub fn inspect<F: FnMut(&C::Out) + 'static>(self, f: F) -> Stream<impl Chain<Out = C::Out>> {
        self.then("inspect", Inspect(f))
    }

    /// Goes on with the output of an operator of the job's own.
    pub fn apply<O: Operator<C::Out, Out: 'static>>(
        self,
        operator: O,
    ) -> Stream<impl Chain<Out = O::Out>> {
        self.then("apply", operator)
    }

    fn then<O>(self, kind: &str, operator: O) -> Stream<Then<C, O>>
    where
        Then<C, O>: Chain,
    {
        // A closure or operator without a size captures nothing, and so holds no state.
        let place = self.add_operator(kind, false, size_of::<O>() > 0);
        self.become_chain(place, |before| Then { before, operator })
    }

    pub(crate) fn add_operator(&self, kind: &str, portable: bool, closure: bool) -> Place {
        self.plan
            .add_operator(self.place.stage, kind, portable, closure)
    }

    pub(crate) fn become_chain<D: Chain>(
        self,
        place: Place,
        make: impl FnOnce(C) -> D,
    ) -> Stream<D> {
        self.plan.close_end(self.end);
        Stream::begin(self.plan, place, make(self.chain))
    }

    /// Names the last operator, for people.
    pub fn name(self, name: &str) -> Self {
        self.plan.name_operator(self.place, name);
        self
    }

    /// Gives the last operator a lasting id, by which an upgraded job will find its state.
    pub fn id(self, id: &str) -> Self {
        self.plan.identify(self.place, id);
        self
    }

    /// Names the stage of the last operator, for people.
    pub fn stage_name(self, name: &str) -> Self {
        self.plan.name_stage(self.place.stage, name);
        self
    }

    /// Fixes the number of subtasks of the stage of the last operator, whatever the submission asks for.
    pub fn parallelism(self, parallelism: u32) -> Self {
        self.plan.set_parallelism(self.place.stage, parallelism);
        self
    }

    /// Partitions by a key: all records of one key go to one subtask. The closure runs on both sides of the exchange, so
    /// it must give the same key for the same record each time.
    pub fn key_by<K, F>(self, key: F) -> KeyedStream<C::Out, K, F>
    where
        C::Out: Record,
        K: Key,
        F: Fn(&C::Out) -> K + Clone + 'static,
    {
        let plan = Rc::clone(&self.plan);
        let to = plan.open_stage(StageInput::Edges, 1);
        let port = plan.add_edge(self.place.stage, to, 0, Partitioning::Hash);
        self.plan.close_end(self.end);
        self.chain.close(HashEdge::new(port, key.clone()));
        KeyedStream::new(receive(plan, to, "key_by"), key)
    }

    /// Deals batches of records out to all subtasks of the next stage in turn.
    pub fn rebalance(self) -> Stream<impl Chain<Out = C::Out>>
    where
        C::Out: Record,
    {
        self.exchange(Partitioning::Rebalance, "rebalance")
    }

    /// Gives every record to every subtask of the next stage.
    pub fn broadcast(self) -> Stream<impl Chain<Out = C::Out>>
    where
        C::Out: Record,
    {
        self.exchange(Partitioning::Broadcast, "broadcast")
    }

    fn exchange(self, partitioning: Partitioning, kind: &str) -> Received<C::Out>
    where
        C::Out: Record,
    {
        let plan = Rc::clone(&self.plan);
        let to = plan.open_stage(StageInput::Edges, 1);
        let port = plan.add_edge(self.place.stage, to, 0, partitioning);
        self.plan.close_end(self.end);
        self.chain.close(BatchEdge::new(
            port,
            plan.subtask(),
            Rc::new(Cell::new(partitioning)),
        ));
        receive(plan, to, kind)
    }

    /// One stream of the records of both.
    pub fn union<D: Chain<Out = C::Out>>(self, other: Stream<D>) -> Stream<impl Chain<Out = C::Out>>
    where
        C::Out: Record,
    {
        let plan = Rc::clone(&self.plan);
        let to = plan.open_stage(StageInput::Edges, 2);
        self.join_union(to, 0);
        other.join_union(to, 1);
        receive(plan, to, "union")
    }

    fn join_union(self, to: u32, port: u32)
    where
        C::Out: Record,
    {
        let (port, partitioning) = self.plan.add_union_edge(self.place.stage, to, port);
        self.plan.close_end(self.end);
        let subtask = self.plan.subtask();
        self.chain
            .close(BatchEdge::new(port, subtask, partitioning));
    }

    /// Two streams: the records for which a closure says yes, and the others.
    pub fn split<F>(
        self,
        mut is_first: F,
    ) -> (
        Stream<impl Chain<Out = C::Out>>,
        Stream<impl Chain<Out = C::Out>>,
    )
    where
        F: FnMut(&C::Out) -> bool + 'static,
    {
        let [first, second] = self.split_into(move |record| usize::from(!is_first(record)));
        (first, second)
    }

    /// Several streams: a closure picks, by its number from 0, the one that each record goes to. A number that is too
    /// large ends the task. Each stream needs an end of its own.
    ///
    /// ```
    /// use tidemill::prelude::*;
    ///
    /// fn by_size(job: &mut Job) {
    ///     let [small, medium, large] = job.source(generator(1_000)).split_into(|n| match *n {
    ///         0..10 => 0,
    ///         10..100 => 1,
    ///         _ => 2,
    ///     });
    ///     small.sink(files("small").json());
    ///     medium.sink(files("medium").json());
    ///     large.sink(discard());
    /// }
    ///
    /// let outputs = tidemill::testing::TestRun::new(by_size).parallelism(2).run().unwrap();
    /// assert_eq!((outputs.lines("small").len(), outputs.lines("medium").len()), (10, 90));
    /// ```
    pub fn split_into<const N: usize, F>(self, choose: F) -> [Stream<impl Chain<Out = C::Out>>; N]
    where
        F: FnMut(&C::Out) -> usize + 'static,
    {
        let place = self
            .plan
            .add_operator(self.place.stage, "split", false, size_of::<F>() > 0);
        let slots = (0..N)
            .map(|_| Rc::new(RefCell::new(None)))
            .collect::<Vec<_>>();
        self.plan.close_end(self.end);
        self.chain.close(Split::new(choose, slots.clone()));
        let plan = self.plan;
        core::array::from_fn(|n| {
            Stream::begin(
                Rc::clone(&plan),
                place,
                Branch {
                    slot: Rc::clone(&slots[n]),
                },
            )
        })
    }

    /// Ends the stream in a sink.
    pub fn sink<S: IntoSink<C::Out>>(self, sink: S) -> Sink {
        let connector = sink.connector();
        let place = self
            .plan
            .add_operator(self.place.stage, &connector.kind, false, false);
        let port = self.plan.add_sink(self.place.stage, connector);
        self.plan.close_end(self.end);
        self.chain.close(sink.into_end(port.output));
        Sink {
            plan: self.plan,
            place,
        }
    }
}

/// Begins a stage that receives what an edge brings.
fn receive<T: Record>(plan: Rc<Plan>, stage: u32, kind: &str) -> Received<T> {
    let place = plan.add_operator(stage, kind, false, false);
    let head = Batches {
        seat: Seat {
            plan: Rc::clone(&plan),
            stage,
        },
        decoder: EdgeRecords(PhantomData),
    };
    Stream::begin(plan, place, head)
}

/// A sink that was added, to be named.
pub struct Sink {
    plan: Rc<Plan>,
    place: Place,
}

impl Sink {
    /// Names the sink, for people.
    pub fn name(self, name: &str) -> Self {
        self.plan.name_operator(self.place, name);
        self
    }

    /// Gives the sink a lasting id, by which an upgraded job will find its state.
    pub fn id(self, id: &str) -> Self {
        self.plan.identify(self.place, id);
        self
    }

    /// Fixes the number of subtasks of the sink's stage, whatever the submission asks for.
    pub fn parallelism(self, parallelism: u32) -> Self {
        self.plan.set_parallelism(self.place.stage, parallelism);
        self
    }
}
