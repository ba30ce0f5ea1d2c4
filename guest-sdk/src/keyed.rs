//! A stream partitioned by key, and the operators with state for each key. State is never shared between keys, nor
//! between operators.

use core::marker::PhantomData;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::hash_map::IntoIter;

use crate::chain::Chain;
use crate::context::Context;
use crate::operator::{Emit, KeyedOperator};
use crate::push::{Outlet, Progress, Push, Signal};
use crate::record::Record;
use crate::state::{Key, KeyTimers, KeyedState, State};
use crate::stream::{Received, Stream};

/// A stream whose records of one key are all in one subtask: see [`Stream::key_by`].
#[must_use = "a keyed stream goes on with `fold`, `count`, `reduce` or `process`"]
pub struct KeyedStream<T: Record, K, F> {
    stream: Received<T>,
    key: F,
    key_type: PhantomData<fn() -> K>,
}

impl<T: Record, K: Key, F: Fn(&T) -> K + 'static> KeyedStream<T, K, F> {
    pub(crate) fn new(stream: Received<T>, key: F) -> Self {
        Self {
            stream,
            key,
            key_type: PhantomData,
        }
    }

    /// Keeps a state for each key, changed by each record, and goes on with the key and its state after every record.
    pub fn fold<S, I, G>(self, create: I, fold: G) -> Stream<impl Chain<Out = (K, S)>>
    where
        S: State + Clone,
        I: Fn() -> S + 'static,
        G: FnMut(&mut S, T) + 'static,
    {
        let closure_state = size_of::<G>() > 0;
        self.keyed(
            "fold",
            closure_state,
            create,
            Rolling {
                fold,
                state: PhantomData,
            },
        )
    }

    /// Keeps a state for each key, changed by each record, and goes on with each key and its last state when the input
    /// has ended.
    pub fn fold_until_end<S, I, G>(self, create: I, fold: G) -> Stream<impl Chain<Out = (K, S)>>
    where
        S: State,
        I: Fn() -> S + 'static,
        G: FnMut(&mut S, T) + 'static,
    {
        let closure_state = size_of::<G>() > 0;
        self.keyed(
            "fold_until_end",
            closure_state,
            create,
            AtEnd {
                fold,
                state: PhantomData,
            },
        )
    }

    /// Counts the records of each key, and goes on with the key and its count after every record.
    pub fn count(self) -> Stream<impl Chain<Out = (K, u64)>> {
        let fold = |count: &mut u64, _: T| *count += 1;
        self.keyed(
            "count",
            false,
            || 0,
            Rolling {
                fold,
                state: PhantomData,
            },
        )
    }

    /// Combines the records of each key into one, and goes on with the key and the combination after every record.
    pub fn reduce<G>(self, combine: G) -> Stream<impl Chain<Out = (K, T)>>
    where
        T: Clone,
        G: FnMut(T, T) -> T + 'static,
    {
        let closure_state = size_of::<G>() > 0;
        self.keyed("reduce", closure_state, || None, Reduce(combine))
    }

    /// Goes on with the output of a keyed operator of the job's own, whose state for a new key is the default.
    pub fn process<O>(self, operator: O) -> Stream<impl Chain<Out = O::Out>>
    where
        O: KeyedOperator<K, T, State: Default, Out: 'static>,
    {
        let closure_state = size_of::<O>() > 0;
        self.keyed("process", closure_state, O::State::default, operator)
    }

    /// Names the exchange, for people.
    pub fn name(self, name: &str) -> Self {
        Self {
            stream: self.stream.name(name),
            ..self
        }
    }

    /// Fixes the number of subtasks of the stage that the exchange leads to.
    pub fn parallelism(self, parallelism: u32) -> Self {
        Self {
            stream: self.stream.parallelism(parallelism),
            ..self
        }
    }

    fn keyed<I, O>(
        self,
        kind: &str,
        closure_state: bool,
        create: I,
        operator: O,
    ) -> Stream<impl Chain<Out = O::Out>>
    where
        I: Fn() -> O::State + 'static,
        O: KeyedOperator<K, T, Out: 'static>,
    {
        let place = self.stream.add_operator(kind, true, closure_state);
        let logic = Logic {
            key: self.key,
            create,
            operator,
            key_type: PhantomData,
        };
        self.stream
            .become_chain(place, |before| Keyed { before, logic })
    }
}

/// A keyed operator with what it needs: the key of a record, and a new state.
struct Logic<K, F, I, O> {
    key: F,
    create: I,
    operator: O,
    key_type: PhantomData<fn() -> K>,
}

/// A chain that ends with a keyed operator.
struct Keyed<C, K, F, I, O> {
    before: C,
    logic: Logic<K, F, I, O>,
}

impl<C, K, F, I, O> Chain for Keyed<C, K, F, I, O>
where
    C: Chain,
    K: Key,
    F: Fn(&C::Out) -> K + 'static,
    I: Fn() -> O::State + 'static,
    O: KeyedOperator<K, C::Out, Out: 'static>,
{
    type Out = O::Out;

    fn close(self, next: impl Push<O::Out>) {
        let (states, timers) = (KeyedState::default(), KeyTimers::default());
        self.before.close(KeyedApplied {
            logic: self.logic,
            states,
            timers,
            ending: None,
            next,
        });
    }
}

/// Keys whose end is handled in one call, unless their output fills it before.
const FINISH_KEYS: u32 = 4096;

/// Keys whose timers are handled in one call, unless their output fills it before.
const TIMER_KEYS: u32 = 4096;

/// A keyed operator joined to what follows it, with the state of its keys.
struct KeyedApplied<K, S, F, I, O, P> {
    logic: Logic<K, F, I, O>,
    states: KeyedState<K, S>,
    timers: KeyTimers<K>,
    /// The keys whose end is still to be handled, once the input has ended.
    ending: Option<IntoIter<K, S>>,
    next: P,
}

impl<T, K, F, I, O, P> Push<T> for KeyedApplied<K, O::State, F, I, O, P>
where
    T: 'static,
    K: Key,
    F: Fn(&T) -> K + 'static,
    I: Fn() -> O::State + 'static,
    O: KeyedOperator<K, T>,
    P: Push<O::Out>,
{
    #[inline]
    fn push(&mut self, record: T, cx: &mut Context) {
        let Logic {
            key,
            create,
            operator,
            ..
        } = &mut self.logic;
        let key = key(&record);
        let state = self.states.get_or_create(&key, &*create);
        let mut timer_ms = None;
        operator.process(
            &key,
            state,
            record,
            &mut Outlet {
                next: &mut self.next,
                cx,
                timer_ms: &mut timer_ms,
            },
        );
        let spent = operator.is_spent(state);
        self.settle_key(key, timer_ms, spent);
    }

    fn signal(&mut self, signal: Signal, cx: &mut Context) -> Progress {
        let progress = match signal {
            Signal::Timer => self.fire_timers::<T>(cx),
            Signal::Finish => self.finish_keys::<T>(cx),
            Signal::Watermark(_) | Signal::Settle | Signal::Flush => Progress::Done,
        };
        match progress {
            Progress::More => Progress::More,
            Progress::Done => self.next.signal(signal, cx),
        }
    }
}

impl<K: Key, S: State, F, I, O, P> KeyedApplied<K, S, F, I, O, P> {
    #[inline]
    fn settle_key(&mut self, key: K, timer_ms: Option<u64>, spent: bool) {
        if spent {
            self.states.remove(&key);
            self.timers.remove(&key);
        } else if let Some(at_ms) = timer_ms {
            self.timers.set(&key, at_ms);
        }
    }

    fn fire_timers<T>(&mut self, cx: &mut Context) -> Progress
    where
        O: KeyedOperator<K, T, State = S>,
        P: Push<O::Out>,
    {
        let mut fired = 0;
        while let Some(key) = self.timers.pop_due(cx.now_ms()) {
            let Some(state) = self.states.get_mut(&key) else {
                continue;
            };
            let mut timer_ms = None;
            self.logic.operator.timer(
                &key,
                state,
                &mut Outlet {
                    next: &mut self.next,
                    cx,
                    timer_ms: &mut timer_ms,
                },
            );
            let spent = self.logic.operator.is_spent(state);
            self.settle_key(key, timer_ms, spent);
            fired += 1;
            if fired == TIMER_KEYS || cx.call_is_full() {
                break;
            }
        }
        let Some(at_ms) = self.timers.next_deadline_ms() else {
            return Progress::Done;
        };
        cx.arm(at_ms);
        if at_ms <= cx.now_ms() {
            Progress::More
        } else {
            Progress::Done
        }
    }

    fn finish_keys<T>(&mut self, cx: &mut Context) -> Progress
    where
        O: KeyedOperator<K, T, State = S>,
        P: Push<O::Out>,
    {
        let ending = self.ending.get_or_insert_with(|| self.states.drain());
        for _ in 0..FINISH_KEYS {
            let Some((key, state)) = ending.next() else {
                return Progress::Done;
            };
            // Nothing will call a timer after the end.
            let mut timer_ms = None;
            self.logic.operator.finish(
                key,
                state,
                &mut Outlet {
                    next: &mut self.next,
                    cx,
                    timer_ms: &mut timer_ms,
                },
            );
            if cx.call_is_full() {
                break;
            }
        }
        Progress::More
    }
}

/// Folds, and emits the state after every record.
struct Rolling<S, G> {
    fold: G,
    state: PhantomData<fn() -> S>,
}

impl<K: Key, T, S: State + Clone, G: FnMut(&mut S, T) + 'static> KeyedOperator<K, T>
    for Rolling<S, G>
{
    type State = S;
    type Out = (K, S);

    #[inline]
    fn process(&mut self, key: &K, state: &mut S, record: T, out: &mut impl Emit<(K, S)>) {
        (self.fold)(state, record);
        out.emit((key.clone(), state.clone()));
    }
}

/// Folds, and emits the state at the end of the input.
struct AtEnd<S, G> {
    fold: G,
    state: PhantomData<fn() -> S>,
}

impl<K: Key, T, S: State, G: FnMut(&mut S, T) + 'static> KeyedOperator<K, T> for AtEnd<S, G> {
    type State = S;
    type Out = (K, S);

    #[inline]
    fn process(&mut self, _key: &K, state: &mut S, record: T, _out: &mut impl Emit<(K, S)>) {
        (self.fold)(state, record);
    }

    fn finish(&mut self, key: K, state: S, out: &mut impl Emit<(K, S)>) {
        out.emit((key, state));
    }
}

/// Combines records two by two.
struct Reduce<G>(G);

impl<K, T, G> KeyedOperator<K, T> for Reduce<G>
where
    K: Key,
    T: Serialize + DeserializeOwned + Clone + 'static,
    G: FnMut(T, T) -> T + 'static,
{
    type State = Option<T>;
    type Out = (K, T);

    #[inline]
    fn process(&mut self, key: &K, state: &mut Option<T>, record: T, out: &mut impl Emit<(K, T)>) {
        let combined = match state.take() {
            Some(before) => (self.0)(before, record),
            None => record,
        };
        *state = Some(combined.clone());
        out.emit((key.clone(), combined));
    }
}
