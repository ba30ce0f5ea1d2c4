//! Alignment as scenarios, every short sequence of events against a model that only knows sets, and the law of
//! recordings on random channels: image and recording together are exactly what came before the barriers.

#[path = "tests/law.rs"]
mod law;

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
    let mut alignment = Alignment::new(1, none(), None);
    assert_eq!(alignment.barrier(at(5), 0, id(1)), [capture(1, 0)]);
    assert!(!alignment.is_blocked(0));
}

#[test]
fn the_capture_waits_for_the_last_barrier_and_says_how_long() {
    let mut alignment = Alignment::new(3, none(), None);
    assert_eq!(alignment.barrier(at(10), 2, id(1)), []);
    assert_eq!(alignment.barrier(at(15), 0, id(1)), []);
    assert!(alignment.is_blocked(2) && alignment.is_blocked(0) && !alignment.is_blocked(1));
    assert_eq!(alignment.barrier(at(40), 1, id(1)), [capture(1, 30)]);
    assert!((0..3).all(|channel| !alignment.is_blocked(channel)));
}

#[test]
fn a_greater_barrier_cancels_and_an_older_one_is_ignored() {
    let mut alignment = Alignment::new(2, none(), None);
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
    let mut alignment = Alignment::new(3, [2].into_iter(), None);
    assert_eq!(alignment.barrier(at(1), 0, id(1)), []);
    assert_eq!(alignment.end_of_input(at(4), 1), [capture(1, 3)]);
    assert!(alignment.ended(1) && alignment.ended(2) && !alignment.all_ended());
}

#[test]
fn without_channels_the_announcement_is_the_barrier() {
    let mut source = Alignment::new(0, none(), None);
    assert!(source.all_ended());
    assert_eq!(source.announced(at(1), id(1), false), [capture(1, 0)]);
    assert_eq!(source.announced(at(1), id(1), false), []);
}

#[test]
fn an_announced_checkpoint_is_captured_when_the_last_channel_ends_without_its_barrier() {
    let mut alignment = Alignment::new(2, none(), None);
    assert_eq!(alignment.announced(at(1), id(7), false), []);
    assert_eq!(alignment.end_of_input(at(2), 0), []);
    assert_eq!(alignment.end_of_input(at(3), 1), [capture(7, 0)]);
}

#[test]
fn an_abort_frees_the_channels_and_late_barriers_block_nothing() {
    let mut alignment = Alignment::new(2, none(), None);
    assert_eq!(alignment.barrier(at(1), 0, id(3)), []);
    assert_eq!(alignment.aborted(at(2), id(3)), [cancelled(3)]);
    assert!(!alignment.is_blocked(0));
    assert_eq!(alignment.barrier(at(3), 1, id(3)), []);
    assert!(!alignment.is_blocked(1));
}

#[test]
fn a_channel_that_does_not_exist_changes_nothing() {
    let mut alignment = Alignment::new(1, [9].into_iter(), None);
    assert_eq!(alignment.barrier(at(1), 5, id(1)), []);
    assert_eq!(alignment.end_of_input(at(1), 5), []);
    assert!(!alignment.is_blocked(5) && !alignment.all_ended());
}

fn late(counter: u64, alignment_us: u64) -> AlignmentAction {
    AlignmentAction::CaptureAndRecord {
        checkpoint: id(counter),
        alignment: Duration::from_micros(alignment_us),
    }
}

fn recorded(counter: u64) -> AlignmentAction {
    AlignmentAction::Recorded {
        checkpoint: id(counter),
    }
}

const PATIENCE: Option<Duration> = Some(Duration::from_micros(100));

#[test]
fn without_a_timeout_barriers_are_waited_for_for_ever() {
    let mut alignment = Alignment::new(2, none(), None);
    assert_eq!(alignment.announced(at(1), id(1), false), []);
    assert_eq!(alignment.barrier(at(1), 0, id(1)), []);
    assert_eq!(alignment.poll_timeout(), None);
    assert_eq!(alignment.handle_timeout(at(u64::MAX)), []);
}

#[test]
fn late_channels_are_recorded_until_each_has_its_barrier() {
    let mut alignment = Alignment::new(3, none(), PATIENCE);
    assert_eq!(alignment.announced(at(10), id(1), false), []);
    assert_eq!(alignment.barrier(at(50), 1, id(1)), []);
    assert_eq!(alignment.poll_timeout(), Some(at(110)));
    assert_eq!(alignment.handle_timeout(at(109)), [], "not before the time");
    assert_eq!(alignment.handle_timeout(at(115)), [late(1, 105)]);
    assert_eq!(alignment.poll_timeout(), None);
    assert!(!alignment.is_blocked(1), "the capture is made, so it flows");
    let recording: Vec<bool> = (0..3)
        .map(|channel| alignment.is_recorded(channel))
        .collect();
    assert_eq!(recording, [true, false, true]);
    assert_eq!(alignment.recorded_to_barrier(2, id(1)), []);
    assert!(!alignment.is_recorded(2) && alignment.is_recorded(0));
    assert_eq!(
        alignment.barrier(at(120), 2, id(1)),
        [],
        "processed as far as that"
    );
    assert!(!alignment.is_blocked(2));
    assert_eq!(alignment.recorded_to_barrier(0, id(1)), [recorded(1)]);
    assert_eq!(alignment.recording(), None);
}

#[test]
fn a_checkpoint_of_which_nothing_has_arrived_is_captured_all_the_same() {
    let mut alignment = Alignment::new(1, none(), PATIENCE);
    assert_eq!(alignment.announced(at(0), id(1), false), []);
    assert_eq!(alignment.handle_timeout(at(100)), [late(1, 100)]);
    assert_eq!(alignment.recorded_to_barrier(0, id(1)), [recorded(1)]);
}

#[test]
fn the_first_barrier_starts_the_clock_when_it_overtakes_the_announcement() {
    let mut alignment = Alignment::new(2, none(), PATIENCE);
    assert_eq!(alignment.barrier(at(20), 0, id(1)), []);
    assert_eq!(alignment.announced(at(90), id(1), false), []);
    assert_eq!(alignment.poll_timeout(), Some(at(120)));
    assert_eq!(alignment.barrier(at(95), 1, id(1)), [capture(1, 75)]);
    assert_eq!(alignment.announced(at(99), id(1), false), [], "all is done");
    assert_eq!(alignment.poll_timeout(), None);
}

#[test]
fn a_late_channel_that_ends_needs_no_barrier() {
    let mut alignment = Alignment::new(2, none(), PATIENCE);
    alignment.announced(at(0), id(1), false);
    assert_eq!(alignment.handle_timeout(at(100)), [late(1, 100)]);
    assert_eq!(alignment.recorded_to_end(0), []);
    assert!(
        !alignment.ended(0),
        "frames before the end are still to be processed"
    );
    assert_eq!(alignment.end_of_input(at(101), 0), []);
    assert_eq!(
        alignment.end_of_input(at(102), 1),
        [recorded(1)],
        "read and processed at once"
    );
    assert!(alignment.all_ended());
}

#[test]
fn a_recording_ends_with_its_checkpoint() {
    let recording = || {
        let mut alignment = Alignment::new(2, none(), PATIENCE);
        alignment.announced(at(0), id(1), false);
        assert_eq!(alignment.handle_timeout(at(100)), [late(1, 100)]);
        alignment
    };
    assert_eq!(recording().aborted(at(101), id(1)), [cancelled(1)]);
    assert_eq!(recording().leader_lost(at(101)), [cancelled(1)]);
    assert_eq!(recording().announced(at(101), id(2), false), [cancelled(1)]);
    assert_eq!(recording().recorded_to_barrier(0, id(2)), [cancelled(1)]);
    let mut alignment = recording();
    assert_eq!(alignment.recorded_to_barrier(0, id(1)), []);
    assert_eq!(alignment.barrier(at(101), 0, id(2)), [cancelled(1)]);
    assert!(alignment.is_blocked(0) && !alignment.is_recorded(1));
}

#[test]
fn a_greater_announcement_ends_an_alignment_whose_barriers_never_come() {
    let mut alignment = Alignment::new(2, none(), None);
    assert_eq!(alignment.barrier(at(1), 0, id(1)), []);
    assert_eq!(alignment.announced(at(2), id(2), false), [cancelled(1)]);
    assert!(!alignment.is_blocked(0));
    assert_eq!(
        alignment.barrier(at(3), 1, id(1)),
        [],
        "late, and of nothing"
    );
    assert!(!alignment.is_blocked(1));
}

#[test]
fn a_lost_leader_leaves_no_clock_running() {
    let mut alignment = Alignment::new(2, none(), PATIENCE);
    alignment.announced(at(0), id(1), false);
    assert_eq!(alignment.leader_lost(at(1)), []);
    assert_eq!(alignment.poll_timeout(), None);
    assert_eq!(alignment.barrier(at(2), 0, id(1)), []);
    assert!(!alignment.is_blocked(0), "its checkpoint is nobody's");
}

#[test]
fn who_is_to_pause_does_so_once_captured_and_until_there_is_no_reason() {
    let paused = || {
        let mut alignment = Alignment::new(1, none(), PATIENCE);
        alignment.announced(at(0), id(1), true);
        assert!(!alignment.is_paused(), "not captured yet");
        assert_eq!(alignment.barrier(at(1), 0, id(1)), [capture(1, 0)]);
        assert!(alignment.is_paused());
        alignment
    };
    let mut aborted = paused();
    aborted.aborted(at(2), id(1));
    assert!(!aborted.is_paused());
    let mut next = paused();
    next.announced(at(2), id(2), false);
    assert!(!next.is_paused());
    let mut alone = paused();
    alone.leader_lost(at(2));
    assert!(!alone.is_paused());
    let mut older = paused();
    older.aborted(at(2), id(0));
    assert!(older.is_paused(), "another checkpoint's end is no reason");
}

#[test]
fn a_pause_is_heard_of_late_and_not_after_its_end() {
    let mut alignment = Alignment::new(1, none(), None);
    assert_eq!(alignment.barrier(at(1), 0, id(1)), [capture(1, 0)]);
    alignment.announced(at(2), id(1), true);
    assert!(alignment.is_paused());
    let mut given_up = Alignment::new(1, none(), None);
    given_up.aborted(at(1), id(1));
    given_up.announced(at(2), id(1), true);
    assert!(!given_up.is_paused());
}

#[test]
fn a_task_that_records_may_be_paused() {
    let mut alignment = Alignment::new(1, none(), PATIENCE);
    alignment.announced(at(0), id(1), true);
    assert_eq!(alignment.handle_timeout(at(100)), [late(1, 100)]);
    assert!(alignment.is_paused() && alignment.is_recorded(0));
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Barrier(usize, u64),
    End(usize),
    Announced(u64),
    Aborted(u64),
    Timeout,
    ReadToBarrier(usize, u64),
    ReadToEnd(usize),
}

/// What an alignment does, without times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Captured(u64),
    CapturedLate(u64),
    Recorded(u64),
    Cancelled(u64),
}

impl From<AlignmentAction> for Done {
    fn from(action: AlignmentAction) -> Self {
        match action {
            AlignmentAction::Capture { checkpoint, .. } => Self::Captured(checkpoint.counter),
            AlignmentAction::CaptureAndRecord { checkpoint, .. } => {
                Self::CapturedLate(checkpoint.counter)
            }
            AlignmentAction::Recorded { checkpoint } => Self::Recorded(checkpoint.counter),
            AlignmentAction::Cancelled { checkpoint } => Self::Cancelled(checkpoint.counter),
        }
    }
}

/// What alignment means, in sets: who has ended, which barriers came, which checkpoints are over, which channels are late.
#[derive(Clone, Debug, Default)]
struct Model {
    channels: BTreeSet<usize>,
    ended: BTreeSet<usize>,
    barriers: BTreeMap<u64, BTreeSet<usize>>,
    over: BTreeSet<u64>,
    announced: BTreeSet<u64>,
    recording: Option<(u64, BTreeSet<usize>)>,
}

impl Model {
    fn open(&self) -> Option<u64> {
        self.barriers.keys().copied().find(|id| !self.is_over(*id))
    }

    fn is_over(&self, id: u64) -> bool {
        self.over.range(id..).next().is_some() || self.announced.range(id + 1..).next().is_some()
    }

    fn blocked(&self, channel: usize) -> bool {
        let at_barrier = |open| self.barriers[&open].contains(&channel);
        !self.ended.contains(&channel) && self.open().is_some_and(at_barrier)
    }

    fn is_recorded(&self, channel: usize) -> bool {
        let recording = self.recording.as_ref();
        recording.is_some_and(|(_, late)| late.contains(&channel))
    }

    /// A recorded channel has been read as far as it is to be.
    fn read(&mut self, channel: usize, actions: &mut Vec<Done>) {
        if let Some((id, late)) = &mut self.recording
            && late.remove(&channel)
            && late.is_empty()
        {
            actions.push(Done::Recorded(*id));
            self.recording = None;
        }
    }

    /// Every lesser checkpoint, open or recorded, is over.
    fn supersede(&mut self, open: Option<u64>, id: u64, actions: &mut Vec<Done>) {
        if let Some(open) = open.filter(|open| *open < id) {
            self.over.insert(open);
            actions.push(Done::Cancelled(open));
        }
        if let Some((recording, _)) = self.recording.take_if(|(recording, _)| *recording < id) {
            actions.push(Done::Cancelled(recording));
        }
    }

    fn handle(&mut self, event: Event) -> Vec<Done> {
        let mut actions = Vec::new();
        let open = self.open();
        match event {
            Event::Barrier(channel, id) => {
                let is_late = open.is_some_and(|open| open > id) || self.is_over(id);
                if !is_late && !self.ended.contains(&channel) {
                    self.supersede(open, id, &mut actions);
                    self.barriers.entry(id).or_default().insert(channel);
                }
            }
            Event::End(channel) => {
                self.read(channel, &mut actions);
                self.ended.insert(channel);
            }
            Event::Announced(id) => {
                if self.announced.last().is_none_or(|last| *last < id) {
                    self.announced.insert(id);
                    self.supersede(open, id, &mut actions);
                }
            }
            Event::Aborted(id) => {
                self.supersede(open, id + 1, &mut actions);
                self.over.insert(id);
            }
            Event::Timeout => {
                let awaited = open.max(self.announced.last().copied());
                if let Some(id) = awaited.filter(|id| !self.is_over(*id)) {
                    let blocked = |channel: &usize| self.blocked(*channel);
                    let live = self.channels.difference(&self.ended).copied();
                    let late = live.filter(|channel| !blocked(channel)).collect();
                    self.recording = Some((id, late));
                    self.over.insert(id);
                    actions.push(Done::CapturedLate(id));
                }
            }
            Event::ReadToBarrier(channel, id) if self.is_recorded(channel) => {
                match self.recording.as_ref().map(|(recording, _)| *recording) {
                    Some(recording) if recording == id => self.read(channel, &mut actions),
                    Some(_) => self.supersede(None, id, &mut actions),
                    None => {}
                }
            }
            Event::ReadToEnd(channel) => self.read(channel, &mut actions),
            Event::ReadToBarrier(..) => {}
        }
        self.capture(&mut actions);
        actions
    }

    fn capture(&mut self, actions: &mut Vec<Done>) {
        if let Some(open) = self.open() {
            let arrived: BTreeSet<usize> = &self.barriers[&open] | &self.ended;
            if arrived == self.channels {
                self.over.insert(open);
                actions.push(Done::Captured(open));
            }
        }
        if let Some(&announced) = self.announced.last()
            && self.ended == self.channels
            && !self.is_over(announced)
        {
            self.over.insert(announced);
            actions.push(Done::Captured(announced));
        }
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
            Event::Announced(counter) => alignment.announced(now, id(counter), false),
            Event::Aborted(counter) => alignment.aborted(now, id(counter)),
            Event::Timeout => alignment.handle_timeout(at(1_000)),
            Event::ReadToBarrier(channel, counter) => {
                alignment.recorded_to_barrier(channel, id(counter))
            }
            Event::ReadToEnd(channel) => alignment.recorded_to_end(channel),
        };
        let actions: Vec<Done> = actions.into_iter().map(Done::from).collect();
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
            assert_eq!(alignment.is_recorded(channel), model.is_recorded(channel));
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
    for (channels, checkpoints, depth) in [(1, 3, 4), (2, 2, 5), (3, 2, 4), (2, 3, 4)] {
        let ids = 1..=checkpoints;
        let of_each = |event: fn(usize, u64) -> Event| {
            let ids = ids.clone();
            (0..channels).flat_map(move |channel| ids.clone().map(move |id| event(channel, id)))
        };
        let events: Vec<Event> = of_each(Event::Barrier)
            .chain(of_each(Event::ReadToBarrier))
            .chain((0..channels).map(Event::End))
            .chain((0..channels).map(Event::ReadToEnd))
            .chain(ids.clone().map(Event::Announced))
            .chain(ids.clone().map(Event::Aborted))
            .chain([Event::Timeout])
            .collect();
        let model = Model {
            channels: (0..channels).collect(),
            ..Model::default()
        };
        let alignment = Alignment::new(channels, none(), PATIENCE);
        explore(&alignment, &model, &events, depth);
    }
}
