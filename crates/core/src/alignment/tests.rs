//! Alignment as scenarios, and every short sequence of events against a model that only knows sets.

use super::*;
use alloc::collections::{BTreeMap, BTreeSet};
use tidemill_protocol::Epoch;

fn id(counter: u64) -> CheckpointId {
    CheckpointId::new(Epoch(1), counter)
}

fn at(micros: u64) -> Time {
    Time::from_micros(micros)
}

fn none() -> impl Iterator<Item = usize> {
    core::iter::empty()
}

fn capture(counter: u64, alignment_us: u64) -> AlignmentAction {
    AlignmentAction::Capture {
        checkpoint: id(counter),
        alignment: Duration::from_micros(alignment_us),
    }
}

fn cancelled(counter: u64) -> AlignmentAction {
    AlignmentAction::Cancelled {
        checkpoint: id(counter),
    }
}

#[test]
fn a_single_channel_never_waits() {
    let mut alignment = Alignment::new(1, none());
    assert_eq!(alignment.barrier(at(5), 0, id(1)), [capture(1, 0)]);
    assert!(!alignment.is_blocked(0));
}

#[test]
fn the_capture_waits_for_the_last_barrier_and_says_how_long() {
    let mut alignment = Alignment::new(3, none());
    assert_eq!(alignment.barrier(at(10), 2, id(1)), []);
    assert_eq!(alignment.barrier(at(15), 0, id(1)), []);
    assert!(alignment.is_blocked(2) && alignment.is_blocked(0) && !alignment.is_blocked(1));
    assert_eq!(alignment.barrier(at(40), 1, id(1)), [capture(1, 30)]);
    assert!((0..3).all(|channel| !alignment.is_blocked(channel)));
}

#[test]
fn a_greater_barrier_cancels_and_an_older_one_is_ignored() {
    let mut alignment = Alignment::new(2, none());
    assert_eq!(alignment.barrier(at(1), 0, id(1)), []);
    assert_eq!(alignment.barrier(at(2), 1, id(2)), [cancelled(1)]);
    assert!(!alignment.is_blocked(0) && alignment.is_blocked(1));
    assert_eq!(alignment.barrier(at(3), 0, id(1)), []);
    assert!(!alignment.is_blocked(0), "an older barrier blocks nothing");
    assert_eq!(alignment.barrier(at(4), 0, id(2)), [capture(2, 2)]);
    assert_eq!(alignment.barrier(at(5), 0, id(2)), [], "captured once only");
}

#[test]
fn an_ended_channel_is_not_waited_for() {
    let mut alignment = Alignment::new(3, [2].into_iter());
    assert_eq!(alignment.barrier(at(1), 0, id(1)), []);
    assert_eq!(alignment.end_of_input(at(4), 1), [capture(1, 3)]);
    assert!(alignment.ended(1) && alignment.ended(2) && !alignment.all_ended());
}

#[test]
fn without_channels_the_announcement_is_the_barrier() {
    let mut source = Alignment::new(0, none());
    assert!(source.all_ended());
    assert_eq!(source.announced(at(1), id(1)), [capture(1, 0)]);
    assert_eq!(source.announced(at(1), id(1)), []);
}

#[test]
fn an_announced_checkpoint_is_captured_when_the_last_channel_ends_without_its_barrier() {
    let mut alignment = Alignment::new(2, none());
    assert_eq!(alignment.announced(at(1), id(7)), []);
    assert_eq!(alignment.end_of_input(at(2), 0), []);
    assert_eq!(alignment.end_of_input(at(3), 1), [capture(7, 0)]);
}

#[test]
fn an_abort_frees_the_channels_and_late_barriers_block_nothing() {
    let mut alignment = Alignment::new(2, none());
    assert_eq!(alignment.barrier(at(1), 0, id(3)), []);
    assert_eq!(alignment.aborted(at(2), id(3)), [cancelled(3)]);
    assert!(!alignment.is_blocked(0));
    assert_eq!(alignment.barrier(at(3), 1, id(3)), []);
    assert!(!alignment.is_blocked(1));
}

#[test]
fn a_channel_that_does_not_exist_changes_nothing() {
    let mut alignment = Alignment::new(1, [9].into_iter());
    assert_eq!(alignment.barrier(at(1), 5, id(1)), []);
    assert_eq!(alignment.end_of_input(at(1), 5), []);
    assert!(!alignment.is_blocked(5) && !alignment.all_ended());
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Barrier(usize, u64),
    End(usize),
    Announced(u64),
    Aborted(u64),
}

/// What alignment means, in sets: who has ended, which barriers came, which checkpoints are over.
#[derive(Clone, Debug, Default)]
struct Model {
    channels: BTreeSet<usize>,
    ended: BTreeSet<usize>,
    barriers: BTreeMap<u64, BTreeSet<usize>>,
    over: BTreeSet<u64>,
    announced: BTreeSet<u64>,
}

impl Model {
    fn open(&self) -> Option<u64> {
        self.barriers.keys().copied().find(|id| !self.is_over(*id))
    }

    fn is_over(&self, id: u64) -> bool {
        self.over.range(id..).next().is_some()
    }

    fn blocked(&self, channel: usize) -> bool {
        let at_barrier = |open| self.barriers[&open].contains(&channel);
        !self.ended.contains(&channel) && self.open().is_some_and(at_barrier)
    }

    /// The captures and cancellations, in order, without times.
    fn handle(&mut self, event: Event) -> Vec<(bool, u64)> {
        let mut actions = Vec::new();
        match event {
            Event::Barrier(channel, id) => {
                let late = self.open().is_some_and(|open| open > id) || self.is_over(id);
                if !late && !self.ended.contains(&channel) {
                    if let Some(open) = self.open().filter(|open| *open < id) {
                        self.over.insert(open);
                        actions.push((false, open));
                    }
                    self.barriers.entry(id).or_default().insert(channel);
                }
            }
            Event::End(channel) => {
                self.ended.insert(channel);
            }
            Event::Announced(id) => {
                self.announced.insert(id);
            }
            Event::Aborted(id) => {
                if let Some(open) = self.open().filter(|open| *open <= id) {
                    actions.push((false, open));
                }
                self.over.insert(id);
            }
        }
        if let Some(open) = self.open() {
            let arrived: BTreeSet<usize> = &self.barriers[&open] | &self.ended;
            if arrived == self.channels {
                self.over.insert(open);
                actions.push((true, open));
            }
        }
        if let Some(&announced) = self.announced.last()
            && self.ended == self.channels
            && !self.is_over(announced)
        {
            self.over.insert(announced);
            actions.push((true, announced));
        }
        actions
    }
}

fn explore(alignment: &Alignment, model: &Model, events: &[Event], depth: u32) {
    if depth == 0 {
        return;
    }
    for event in events {
        let (mut alignment, mut model) = (alignment.clone(), model.clone());
        let now = at(1);
        let actions = match *event {
            Event::Barrier(channel, counter) => alignment.barrier(now, channel, id(counter)),
            Event::End(channel) => alignment.end_of_input(now, channel),
            Event::Announced(counter) => alignment.announced(now, id(counter)),
            Event::Aborted(counter) => alignment.aborted(now, id(counter)),
        };
        let actions: Vec<_> = actions
            .into_iter()
            .map(|action| match action {
                AlignmentAction::Capture { checkpoint, .. } => (true, checkpoint.counter),
                AlignmentAction::Cancelled { checkpoint } => (false, checkpoint.counter),
            })
            .collect();
        assert_eq!(
            actions,
            model.handle(*event),
            "after {event:?} on {alignment:?}"
        );
        for channel in model.channels.clone() {
            assert_eq!(
                alignment.is_blocked(channel),
                model.blocked(channel),
                "{alignment:?}"
            );
            assert_eq!(alignment.ended(channel), model.ended.contains(&channel));
        }
        let live = model.channels.difference(&model.ended);
        assert!(
            live.clone().next().is_none()
                || live.clone().any(|channel| !alignment.is_blocked(*channel)),
            "every live channel is blocked: nothing could ever unblock {alignment:?}"
        );
        explore(&alignment, &model, events, depth - 1);
    }
}

#[test]
fn every_short_sequence_of_events_agrees_with_the_model() {
    for (channels, checkpoints, depth) in [(1, 3, 5), (2, 2, 5), (3, 2, 4), (2, 3, 4)] {
        let ids = 1..=checkpoints;
        let events: Vec<Event> = (0..channels)
            .flat_map(|channel| ids.clone().map(move |id| Event::Barrier(channel, id)))
            .chain((0..channels).map(Event::End))
            .chain(ids.clone().map(Event::Announced))
            .chain(ids.clone().map(Event::Aborted))
            .collect();
        let model = Model {
            channels: (0..channels).collect(),
            ..Model::default()
        };
        explore(&Alignment::new(channels, none()), &model, &events, depth);
    }
}
