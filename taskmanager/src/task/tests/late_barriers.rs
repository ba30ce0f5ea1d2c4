//! One task whose barriers are late: it is captured all the same, and what was in front of them is part of its image. And
//! one that is to stop at a checkpoint.

use super::*;
use crate::task::recorded::Recorded;
use crate::task::state::HostState;
use tidemill_protocol::{ChannelId, Image, codec};

const FIRST: CheckpointId = checkpoint(1, 1);

fn impatient() -> World {
    World {
        aligned_timeout_ms: 20,
        ..World::new()
    }
}

impl Subject {
    fn announce(&self, checkpoint: CheckpointId, then_pause: bool) {
        self.word(checkpoint, CheckpointWord::Announce { then_pause });
    }

    /// A task that was captured though the barrier on its other channel has not come: what follows the barrier on the
    /// first flows again.
    fn captured_late(world: &World) -> Self {
        let mut task = world.start(AttemptId::new(Epoch(1), 1));
        task.send(0, "before");
        task.barrier(0, FIRST);
        task.announce(FIRST, false);
        task.send(0, "after");
        task.wait_processed(0);
        task
    }
}

fn image(world: &World, acknowledged: &CheckpointAcknowledgement) -> Image {
    let read = world.store.read_image(JOB, TASK, &acknowledged.manifest);
    world.runtime.block_on(read).expect("stored").0
}

fn recorded(image: &Image, from: u32) -> Vec<FrameBody> {
    let channel = ChannelId {
        edge: 0,
        from,
        to: 0,
    };
    let recorded = Recorded::decode(&image.channel_state).expect("own frames");
    recorded.frames(channel).map(|frame| frame.body).collect()
}

fn data(record: &str) -> FrameBody {
    let mut batch = Vec::new();
    framed::push(&mut batch, record.as_bytes());
    FrameBody::Data(Bytes::from(batch))
}

#[test]
fn frames_in_front_of_a_late_barrier_are_recorded_and_processed_meanwhile() {
    let world = impatient();
    let mut task = Subject::captured_late(&world);
    task.send(1, "late");
    task.push(1, FrameBody::Watermark(7));
    task.wait_processed(0);
    task.send(1, "later");
    task.barrier(1, FIRST);
    task.send(1, "next");
    let acknowledged = task.acknowledged(&world);
    let stats = acknowledged.stats;
    assert!(stats.unaligned && stats.channel_bytes > 0, "{stats:?}");
    assert!(stats.alignment_us >= 20_000, "{stats:?}");
    let image = image(&world, &acknowledged);
    let expected = [data("late"), FrameBody::Watermark(7), data("later")];
    assert_eq!(recorded(&image, 1), expected);
    assert_eq!(recorded(&image, 0), []);
    // Whatever was recorded has been processed once, and the next checkpoint finds every channel in order.
    task.wait_processed(0);
    task.barriers(checkpoint(1, 2));
    // The two barriers may be further from each other than is waited for; nothing is between them.
    let aligned = task.acknowledged(&world);
    assert_eq!(aligned.stats.channel_bytes, 0);
    task.word(checkpoint(1, 2), CheckpointWord::Complete);
    task.committed(&world);
    assert_eq!(
        world.visible(),
        ["before", "after", "late", "later", "next"]
    );
    task.stop();
}

#[test]
fn a_late_channel_that_ends_is_recorded_to_its_end_and_ended_only_afterwards() {
    let world = impatient();
    let mut task = Subject::captured_late(&world);
    task.send(1, "last");
    task.push(1, FrameBody::EndOfInput);
    let acknowledged = task.acknowledged(&world);
    let image = image(&world, &acknowledged);
    assert_eq!(recorded(&image, 1), [data("last")]);
    let host: HostState = codec::decode(&image.host_state).expect("own state");
    assert_eq!(
        host.ended_channels,
        [],
        "its sender says again that it has ended"
    );
    task.wait_processed(0);
    task.stop();
}

#[test]
fn a_recording_that_is_for_nothing_leaves_every_frame_to_be_processed() {
    let world = impatient();
    let mut task = Subject::captured_late(&world);
    task.send(1, "late");
    task.word(FIRST, CheckpointWord::Abort);
    assert_eq!(task.declined(&world), FIRST);
    task.send(1, "later");
    task.barrier(1, FIRST);
    task.wait_processed(0);
    task.barriers(checkpoint(1, 2));
    task.acknowledged(&world);
    task.word(checkpoint(1, 2), CheckpointWord::Complete);
    task.committed(&world);
    assert_eq!(world.visible(), ["before", "after", "late", "later"]);
    task.stop();
}

#[test]
fn a_barrier_of_a_later_checkpoint_behind_recorded_frames_ends_the_recording() {
    let world = impatient();
    let mut task = Subject::captured_late(&world);
    task.send(1, "late");
    task.barrier(1, checkpoint(1, 2));
    task.send(1, "behind");
    assert_eq!(task.declined(&world), FIRST);
    task.barrier(0, checkpoint(1, 2));
    let acknowledged = task.acknowledged(&world);
    assert_eq!(acknowledged.checkpoint, checkpoint(1, 2));
    assert_eq!(acknowledged.stats.channel_bytes, 0);
    task.word(checkpoint(1, 2), CheckpointWord::Complete);
    task.committed(&world);
    assert_eq!(world.visible(), ["before", "after", "late"]);
    task.stop();
}

#[test]
fn who_is_to_stop_at_a_checkpoint_commits_it_and_goes_on_only_when_it_is_given_up() {
    let world = World::new();
    let mut task = world.start(AttemptId::new(Epoch(1), 1));
    task.announce(FIRST, true);
    task.send(0, "before");
    task.send(1, "before");
    task.barriers(FIRST);
    task.acknowledged(&world);
    task.send(0, "after");
    task.word(FIRST, CheckpointWord::Complete);
    assert_eq!(task.committed(&world), FIRST);
    assert_eq!(world.visible(), ["before", "before"]);
    // A word's answer comes after another round through the loop, which processed nothing.
    task.word(FIRST, CheckpointWord::Complete);
    task.committed(&world);
    task.wait_processed(framed_bytes("after"));
    task.word(FIRST, CheckpointWord::Abort);
    task.wait_processed(0);
    task.stop();
}

#[test]
fn who_has_stopped_at_a_checkpoint_goes_on_with_the_next_and_without_a_leader() {
    for leader_lost in [false, true] {
        let world = World::new();
        let mut task = world.start(AttemptId::new(Epoch(1), 1));
        task.announce(FIRST, true);
        task.barriers(FIRST);
        task.acknowledged(&world);
        task.send(0, "after");
        if leader_lost {
            task.handle.tell(TaskCommand::LeaderLost);
        } else {
            task.announce(checkpoint(1, 2), false);
        }
        task.wait_processed(0);
        task.stop();
    }
}
