//! The law of recordings: a task that follows the alignment's word over random channels processes every frame once and in
//! order, and each complete capture, with what was recorded for it, is exactly what came before the barriers.

use alloc::collections::VecDeque;
use proptest::prelude::*;

use super::*;

/// What comes over a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Frame(u32),
    Barrier(u64),
    End,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many more items of a channel arrive.
    Arrive(usize, usize),
    /// The next item of a channel is processed, if it may be.
    Process(usize),
    /// Recorded channels are read as far as they can be.
    Read,
    Announce(u64),
    Timeout,
    Abort(u64),
    LeaderLost,
}

/// A capture of the task.
#[derive(Debug)]
struct Capture {
    id: u64,
    /// Of each channel, the frames that the image and the recording hold together.
    held: Vec<Vec<u32>>,
    is_complete: bool,
}

struct Task {
    alignment: Alignment,
    scripts: Vec<Vec<Item>>,
    arrived: Vec<VecDeque<Item>>,
    /// Read ahead of recorded channels.
    kept: Vec<VecDeque<Item>>,
    next: Vec<usize>,
    processed: Vec<Vec<u32>>,
    captures: Vec<Capture>,
    now: u64,
}

impl Task {
    fn new(scripts: Vec<Vec<Item>>) -> Self {
        let channels = scripts.len();
        Self {
            alignment: Alignment::new(channels, none(), PATIENCE),
            arrived: vec![VecDeque::new(); channels],
            kept: vec![VecDeque::new(); channels],
            next: vec![0; channels],
            processed: vec![Vec::new(); channels],
            captures: Vec::new(),
            scripts,
            now: 0,
        }
    }

    fn step(&mut self, step: Step) {
        self.now += 1;
        let now = at(self.now);
        let actions = match step {
            Step::Arrive(channel, items) => {
                for _ in 0..items {
                    let item = self.scripts[channel].get(self.next[channel]);
                    self.arrived[channel].extend(item);
                    self.next[channel] += usize::from(item.is_some());
                }
                return;
            }
            Step::Process(channel) => return self.process(channel),
            Step::Read => return self.read(),
            Step::Announce(counter) => self.alignment.announced(now, id(counter), false),
            Step::Timeout => {
                self.now += 200;
                self.alignment.handle_timeout(at(self.now))
            }
            Step::Abort(counter) => self.alignment.aborted(now, id(counter)),
            Step::LeaderLost => self.alignment.leader_lost(now),
        };
        self.follow(actions);
    }

    fn process(&mut self, channel: usize) {
        if self.alignment.is_blocked(channel) {
            return;
        }
        let next = if self.alignment.is_recorded(channel) {
            self.kept[channel].pop_front()
        } else {
            self.arrived[channel].pop_front()
        };
        let Some(item) = next else {
            return;
        };
        let actions = match item {
            Item::Frame(number) => {
                self.processed[channel].push(number);
                return;
            }
            Item::Barrier(counter) => self.alignment.barrier(at(self.now), channel, id(counter)),
            Item::End => self.alignment.end_of_input(at(self.now), channel),
        };
        self.follow(actions);
    }

    fn read(&mut self) {
        for channel in 0..self.arrived.len() {
            while self.alignment.is_recorded(channel) {
                let Some(item) = self.arrived[channel].pop_front() else {
                    break;
                };
                let recording = self.alignment.recording().map(|id| id.counter);
                self.kept[channel].push_back(item);
                let actions = match item {
                    Item::Frame(number) => {
                        if let Some(capture) = self.captures.last_mut()
                            && Some(capture.id) == recording
                        {
                            capture.held[channel].push(number);
                        }
                        continue;
                    }
                    Item::Barrier(counter) => {
                        self.alignment.recorded_to_barrier(channel, id(counter))
                    }
                    Item::End => self.alignment.recorded_to_end(channel),
                };
                self.follow(actions);
            }
        }
    }

    fn follow(&mut self, actions: Vec<AlignmentAction>) {
        for action in actions {
            match Done::from(action) {
                Done::Captured(id) | Done::CapturedLate(id) => self.captures.push(Capture {
                    id,
                    held: self.processed.clone(),
                    is_complete: matches!(action, AlignmentAction::Capture { .. }),
                }),
                Done::Recorded(id) => {
                    let last = self.captures.last_mut().filter(|capture| capture.id == id);
                    last.expect("the last capture was recorded").is_complete = true;
                }
                Done::Cancelled(_) => {}
            }
        }
        for channel in 0..self.arrived.len() {
            // What is no longer recorded comes from the channel again, what was read ahead first.
            if !self.alignment.is_recorded(channel) {
                for item in self.kept[channel].drain(..).rev() {
                    self.arrived[channel].push_front(item);
                }
            }
        }
    }

    /// Lets everything arrive and be processed, and holds the law against what has happened.
    fn judge(mut self) -> usize {
        self.step(Step::LeaderLost);
        for channel in 0..self.scripts.len() {
            self.step(Step::Arrive(channel, self.scripts[channel].len()));
            // A barrier of a checkpoint that nobody has announced opens an alignment; the leader's loss ends it.
            for _ in 0..self.scripts[channel].len() {
                self.step(Step::LeaderLost);
                self.step(Step::Process(channel));
            }
        }
        for (script, processed) in self.scripts.iter().zip(&self.processed) {
            assert_eq!(&frames(script), processed, "once and in order");
        }
        let complete = self.captures.iter().filter(|capture| capture.is_complete);
        for capture in complete.clone() {
            for (script, held) in self.scripts.iter().zip(&capture.held) {
                let before = script
                    .split(|item| *item == Item::Barrier(capture.id))
                    .next();
                assert_eq!(&frames(before.unwrap_or(&[])), held, "{capture:?}");
            }
        }
        complete.count()
    }
}

fn frames(items: &[Item]) -> Vec<u32> {
    let number = |item: &Item| match item {
        Item::Frame(number) => Some(*number),
        _ => None,
    };
    items.iter().filter_map(number).collect()
}

const CHECKPOINTS: u64 = 3;

/// Frames with most of the barriers between them, and perhaps an end before the last of those.
fn any_script() -> impl Strategy<Value = Vec<Item>> {
    let part = (0..4_u32, prop::bool::weighted(0.9));
    let parts = prop::collection::vec(part, CHECKPOINTS as usize + 1);
    (parts, prop::option::weighted(0.3, 0..12_usize)).prop_map(|(parts, end)| {
        let (mut items, mut number) = (Vec::new(), 0);
        for (counter, (frames, has_barrier)) in (1..).zip(parts) {
            for _ in 0..frames {
                items.push(Item::Frame(number));
                number += 1;
            }
            if has_barrier && counter <= CHECKPOINTS {
                items.push(Item::Barrier(counter));
            }
        }
        if let Some(end) = end {
            items.truncate(end);
        }
        items.push(Item::End);
        items
    })
}

fn any_step(channels: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..channels, 1..4_usize).prop_map(|(channel, items)| Step::Arrive(channel, items)),
        4 => (0..channels).prop_map(Step::Process),
        4 => Just(Step::Read),
        2 => (1..=CHECKPOINTS).prop_map(Step::Announce),
        2 => Just(Step::Timeout),
        1 => prop_oneof![(1..=CHECKPOINTS).prop_map(Step::Abort), Just(Step::LeaderLost)],
    ]
}

fn any_run() -> impl Strategy<Value = (Vec<Vec<Item>>, Vec<Step>)> {
    (1..4_usize).prop_flat_map(|channels| {
        (
            prop::collection::vec(any_script(), channels),
            prop::collection::vec(any_step(channels), 1..60),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn image_and_recording_are_what_came_before_the_barriers((scripts, steps) in any_run()) {
        let mut task = Task::new(scripts);
        for step in steps {
            task.step(step);
        }
        task.judge();
    }
}

#[test]
fn the_law_is_about_something() {
    let script = || {
        vec![
            Item::Frame(0),
            Item::Frame(1),
            Item::Barrier(1),
            Item::Frame(2),
            Item::End,
        ]
    };
    let mut task = Task::new(vec![script(), script()]);
    for step in [
        Step::Arrive(0, 4),
        Step::Arrive(1, 1),
        Step::Process(0),
        Step::Announce(1),
        Step::Timeout,
        Step::Read,
        Step::Process(1),
        Step::Arrive(1, 2),
        Step::Read,
    ] {
        task.step(step);
    }
    let held: Vec<_> = task.captures.iter().map(|capture| &capture.held).collect();
    assert_eq!(held, [&vec![vec![0, 1], vec![0, 1]]]);
    assert_eq!(task.judge(), 1);
}
