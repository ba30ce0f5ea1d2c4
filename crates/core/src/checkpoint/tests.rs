//! The coordinator as scenarios.

use super::*;
use alloc::vec;
use tidemill_protocol::control::CaptureStats;
use tidemill_protocol::record::{JobState, RestartStrategy};

const EPOCH: Epoch = Epoch(3);
const SECOND: u64 = 1_000_000;

fn id(counter: u64) -> CheckpointId {
    CheckpointId::new(EPOCH, counter)
}

fn attempt(counter: u64) -> AttemptId {
    AttemptId::new(EPOCH, counter)
}

fn object(key: &str) -> ObjectRef {
    ObjectRef {
        key: key.into(),
        len: 1,
        hash: [0; 32],
    }
}

fn pointer(counter: u64) -> CheckpointPointer {
    CheckpointPointer {
        checkpoint: id(counter),
        metadata: object("metadata"),
    }
}

fn record() -> JobRecord {
    JobRecord {
        id: JobId([1; 16]),
        name: "job".into(),
        module: ModuleHash([2; 32]),
        graph: object("graph"),
        graph_hash: 9,
        parameters: BTreeMap::new(),
        options: JobOptions {
            parallelism: 2,
            max_parallelism: 128,
            checkpoint_interval_ms: 1000,
            checkpoint_timeout_ms: 10_000,
            tolerable_failed_checkpoints: 1,
            retained_checkpoints: 2,
            aligned_checkpoint_timeout_ms: 0,
            retain_on_cancel: false,
            standby: false,
            restart: RestartStrategy::None,
        },
        submitted_at_ms: 0,
        state: JobState::Active,
        restarts: 0,
        began_from: None,
        ended_at_ms: None,
    }
}

/// A coordinator of two tasks, driven by hand.
struct Driven {
    coordinator: Coordinator,
    now: Time,
}

impl Driven {
    fn ready() -> Self {
        let coordinator = Coordinator::new(EPOCH, &record(), CheckpointPointers::default());
        let mut driven = Self {
            coordinator,
            now: Time::ZERO,
        };
        driven.tell(ready(1));
        driven
    }

    fn tell(&mut self, event: Event) {
        self.coordinator.handle(self.now, event);
    }

    fn at(&mut self, micros: u64) -> &mut Self {
        self.now = Time::from_micros(micros);
        self.coordinator.handle_timeout(self.now);
        self
    }

    /// The actions that are not for logs.
    fn actions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(action) = self.coordinator.poll_action() {
            if !matches!(action, Action::Completed(_) | Action::Failed(_)) {
                actions.push(action);
            }
        }
        actions
    }

    fn acknowledge(&mut self, checkpoint: CheckpointId, finished: bool) {
        for subtask in 0..2 {
            self.tell(acknowledgement(checkpoint, subtask, attempt(1), finished));
        }
    }

    /// Takes a triggered checkpoint to the write of its pointers.
    fn collect(&mut self, checkpoint: CheckpointId, finished: bool) -> CheckpointPointers {
        self.acknowledge(checkpoint, finished);
        let [Action::WriteMetadata(metadata)] = &self.actions()[..] else {
            panic!("the metadata is written once all have acknowledged");
        };
        assert_eq!(metadata.tasks.len(), 2);
        self.tell(Event::MetadataWritten {
            checkpoint,
            object: object("metadata"),
        });
        let [Action::Publish { pointers, .. }] = &self.actions()[..] else {
            panic!("the pointer is written once the metadata is");
        };
        pointers.clone()
    }

    fn complete(&mut self, checkpoint: CheckpointId, finished: bool) -> Vec<Action> {
        self.collect(checkpoint, finished);
        self.tell(Event::Published { checkpoint });
        self.actions()
    }
}

fn ready(counter: u64) -> Event {
    let participants = (0..2).map(|subtask| (TaskId::new(0, subtask), attempt(counter)));
    Event::TasksReady {
        participants: participants.collect(),
    }
}

/// What begins a checkpoint that nothing follows.
fn trigger(checkpoint: CheckpointId) -> Action {
    Action::Trigger {
        checkpoint,
        then_pause: false,
    }
}

fn acknowledgement(
    checkpoint: CheckpointId,
    subtask: u32,
    attempt: AttemptId,
    finished: bool,
) -> Event {
    let stats = CaptureStats {
        pause_us: u64::from(subtask),
        image_bytes: 10,
        ..CaptureStats::default()
    };
    Event::Acknowledged(CheckpointAcknowledgement {
        job: record().id,
        attempt,
        task: TaskId::new(0, subtask),
        checkpoint,
        manifest: object("manifest"),
        finished,
        stats,
    })
}

fn committed(subtask: u32, checkpoint: CheckpointId) -> Event {
    Event::Committed {
        attempt: attempt(1),
        task: TaskId::new(0, subtask),
        checkpoint,
    }
}

#[test]
fn a_checkpoint_is_published_after_its_metadata_and_completed_after_that() {
    let mut driven = Driven::ready();
    assert_eq!(driven.actions(), []);
    assert_eq!(
        driven.coordinator.poll_timeout(),
        Some(Time::from_micros(SECOND))
    );
    assert_eq!(driven.at(SECOND).actions(), [trigger(id(1))]);
    assert_eq!(
        driven.at(3 * SECOND).actions(),
        [],
        "one is in flight at a time"
    );
    assert_eq!(
        driven.complete(id(1), false),
        [Action::Complete(id(1)), trigger(id(2))]
    );
    assert_eq!(driven.coordinator.last(), Some(&pointer(1)));
    let record = driven
        .coordinator
        .history()
        .records()
        .next()
        .expect("it is remembered");
    assert_eq!((record.stats.image_bytes, record.stats.pause_us), (20, 1));
}

#[test]
fn two_are_retained_and_what_is_older_is_deleted_after_publication() {
    let mut driven = Driven::ready();
    for counter in 1..=2 {
        driven.at(counter * SECOND).actions();
        driven.complete(id(counter), false);
    }
    driven.at(3 * SECOND).actions();
    let published = driven.collect(id(3), false);
    assert_eq!(published.completed, [pointer(2), pointer(3)]);
    driven.tell(Event::Published { checkpoint: id(3) });
    let deletion = Action::Delete {
        obsolete: vec![pointer(1)],
        retained: vec![pointer(2), pointer(3)],
    };
    assert_eq!(driven.actions(), [Action::Complete(id(3)), deletion]);
}

#[test]
fn old_attempts_strangers_and_repetitions_do_not_count() {
    let mut driven = Driven::ready();
    driven.at(SECOND).actions();
    driven.tell(acknowledgement(id(1), 0, attempt(1), false));
    driven.tell(acknowledgement(id(1), 0, attempt(1), false));
    driven.tell(acknowledgement(id(1), 1, attempt(0), false));
    driven.tell(acknowledgement(id(9), 1, attempt(1), false));
    driven.tell(acknowledgement(id(1), 7, attempt(1), false));
    assert_eq!(driven.actions(), []);
    driven.tell(Event::MetadataWritten {
        checkpoint: id(1),
        object: object("early"),
    });
    driven.tell(Event::Published { checkpoint: id(1) });
    assert_eq!(
        driven.actions(),
        [],
        "nothing is published that was not asked for"
    );
}

#[test]
fn a_lost_reply_is_read_back_before_anything_is_said() {
    let mut driven = Driven::ready();
    driven.at(SECOND).actions();
    let pointers = driven.collect(id(1), false);
    driven.tell(Event::PublishUnknown { checkpoint: id(1) });
    assert_eq!(
        driven.actions(),
        [Action::ReadPointers { checkpoint: id(1) }]
    );
    driven.tell(Event::TasksLost {
        reason: "a machine died".into(),
    });
    assert!(
        driven.coordinator.is_publication_pending(),
        "nobody may restore before it is known"
    );
    driven.tell(Event::PointersUnreadable { checkpoint: id(1) });
    assert_eq!(driven.actions(), []);
    assert_eq!(
        driven.at(2 * SECOND).actions(),
        [Action::ReadPointers { checkpoint: id(1) }]
    );
    driven.tell(Event::PointersRead {
        checkpoint: id(1),
        pointers,
    });
    assert_eq!(
        driven.actions(),
        [],
        "the tasks are gone: their restore replays the commit"
    );
    assert_eq!(driven.coordinator.last(), Some(&pointer(1)));
}

#[test]
fn a_pointer_that_is_not_there_is_written_again() {
    let mut driven = Driven::ready();
    driven.at(SECOND).actions();
    let pointers = driven.collect(id(1), false);
    driven.tell(Event::PublishUnknown { checkpoint: id(1) });
    driven.actions();
    let nothing = CheckpointPointers::default();
    driven.tell(Event::PointersRead {
        checkpoint: id(1),
        pointers: nothing,
    });
    assert_eq!(
        driven.actions(),
        [Action::Publish {
            checkpoint: id(1),
            pointers
        }]
    );
}

#[test]
fn losing_tasks_gives_up_what_is_not_being_published_and_counts_as_no_failure() {
    let mut driven = Driven::ready();
    for counter in 1..=5 {
        driven.at(counter * SECOND);
        driven.tell(Event::TasksLost {
            reason: "a machine died".into(),
        });
        assert_eq!(
            driven.actions(),
            [trigger(id(counter)), Action::Abort(id(counter))]
        );
        driven.tell(ready(1));
    }
    assert_eq!(driven.coordinator.history().failed(), 5);
}

#[test]
fn failures_in_a_row_fail_the_job_once_they_are_too_many() {
    let mut driven = Driven::ready();
    let decline = |driven: &mut Driven, counter| {
        driven.at(counter * 2 * SECOND).actions();
        let (attempt, task, checkpoint) = (attempt(1), TaskId::new(0, 1), id(counter));
        driven.tell(Event::Declined {
            attempt,
            task,
            checkpoint,
            reason: "disk full".into(),
        });
        driven.actions()
    };
    assert_eq!(decline(&mut driven, 1), [Action::Abort(id(1))]);
    driven.at(4 * SECOND).actions();
    driven.complete(id(2), false);
    assert_eq!(
        decline(&mut driven, 3),
        [Action::Abort(id(3))],
        "a success forgives"
    );
    let last = decline(&mut driven, 4);
    assert!(
        matches!(&last[..], [Action::Abort(_), Action::FailJob { reason }] if reason.contains("disk full")),
        "{last:?}"
    );
}

#[test]
fn a_checkpoint_that_takes_too_long_names_who_is_missing() {
    let mut driven = Driven::ready();
    driven.at(SECOND).actions();
    driven.tell(acknowledgement(id(1), 0, attempt(1), false));
    let aborted = driven.at(11 * SECOND).actions();
    assert_eq!(aborted, [Action::Abort(id(1)), trigger(id(2))]);
    let first = driven
        .coordinator
        .history()
        .records()
        .next()
        .expect("it is remembered");
    let Outcome::Failed { reason } = &first.outcome else {
        panic!("it was given up")
    };
    assert_eq!(reason, "1 tasks had not acknowledged in 10s: 0/1");
}

#[test]
fn the_job_is_finished_when_the_final_checkpoint_is_published_and_all_have_committed() {
    let mut driven = Driven::ready();
    driven.at(SECOND / 2);
    driven.tell(Event::AllFinished);
    assert_eq!(driven.actions(), [trigger(id(1))], "at once");
    assert_eq!(driven.complete(id(1), true), [Action::Complete(id(1))]);
    assert_eq!(driven.coordinator.poll_timeout(), None, "nothing follows");
    driven.tell(committed(0, id(1)));
    driven.tell(committed(0, id(1)));
    assert!(driven.coordinator.is_done(TaskId::new(0, 0)));
    assert_eq!(driven.actions(), []);
    driven.tell(committed(1, id(1)));
    assert_eq!(driven.actions(), [Action::Finished]);
}

#[test]
fn a_checkpoint_in_flight_when_all_finish_is_followed_by_the_final_one() {
    let mut driven = Driven::ready();
    driven.at(SECOND).actions();
    driven.tell(Event::AllFinished);
    assert_eq!(driven.actions(), []);
    assert_eq!(
        driven.complete(id(1), false),
        [Action::Complete(id(1)), trigger(id(2))]
    );
    assert_eq!(driven.complete(id(2), true), [Action::Complete(id(2))]);
}

#[test]
fn a_failed_final_checkpoint_is_tried_again_after_a_pause() {
    let mut driven = Driven::ready();
    driven.tell(Event::AllFinished);
    driven.acknowledge(id(1), true);
    driven.actions();
    driven.tell(Event::MetadataFailed {
        checkpoint: id(1),
        reason: "disk full".into(),
    });
    assert_eq!(driven.actions(), [Action::Abort(id(1))]);
    assert_eq!(driven.at(SECOND).actions(), [trigger(id(2))]);
}

#[test]
fn periodic_checkpoints_can_be_off_and_the_final_one_still_comes() {
    let mut record = record();
    record.options.checkpoint_interval_ms = 0;
    let coordinator = Coordinator::new(EPOCH, &record, CheckpointPointers::default());
    let mut driven = Driven {
        coordinator,
        now: Time::ZERO,
    };
    driven.tell(ready(1));
    assert_eq!(driven.coordinator.poll_timeout(), None);
    driven.tell(Event::AllFinished);
    assert_eq!(driven.actions(), [trigger(id(1))]);
}

#[test]
fn a_damaged_checkpoint_is_not_used_again_and_is_deleted_after_the_next() {
    let mut driven = Driven::ready();
    for counter in 1..=2 {
        driven.at(counter * SECOND).actions();
        driven.complete(id(counter), false);
    }
    assert!(driven.coordinator.damaged(id(2)));
    assert_eq!(driven.coordinator.last(), Some(&pointer(1)));
    driven.at(3 * SECOND).actions();
    let actions = driven.complete(id(3), false);
    let deletion = Action::Delete {
        obsolete: vec![pointer(2)],
        retained: vec![pointer(1), pointer(3)],
    };
    assert_eq!(actions, [Action::Complete(id(3)), deletion]);
    assert!(!driven.coordinator.damaged(id(1)), "none is left");
}

const SAVEPOINT: Option<Wish> = Some(Wish { stop: false });
const STOP: Option<Wish> = Some(Wish { stop: true });

fn stop_at(checkpoint: CheckpointId) -> Action {
    Action::Trigger {
        checkpoint,
        then_pause: true,
    }
}

#[test]
fn a_savepoint_is_taken_after_the_wish_and_at_once() {
    let mut driven = Driven::ready();
    assert_eq!(driven.at(SECOND).actions(), [trigger(id(1))]);
    driven.coordinator.wish(driven.now, SAVEPOINT);
    assert_eq!(driven.actions(), [], "the one in flight may lack something");
    assert_eq!(
        driven.complete(id(1), false),
        [Action::Complete(id(1)), trigger(id(2))],
        "and the next does not wait for the interval"
    );
    driven.complete(id(2), false);
    assert_eq!(driven.at(SECOND + SECOND / 2).actions(), []);
}

#[test]
fn a_savepoint_that_fails_fails_no_job_and_is_not_repeated() {
    let mut driven = Driven::ready();
    for counter in 1..=5 {
        driven.coordinator.wish(driven.now, SAVEPOINT);
        assert_eq!(driven.actions(), [trigger(id(counter))]);
        let reason = "no room".into();
        let (attempt, task) = (attempt(1), TaskId::new(0, 0));
        let checkpoint = id(counter);
        driven.tell(Event::Declined {
            attempt,
            task,
            checkpoint,
            reason,
        });
        assert_eq!(driven.actions(), [Action::Abort(id(counter))]);
    }
}

#[test]
fn a_job_stops_when_all_have_committed_and_nothing_begins_meanwhile() {
    let mut driven = Driven::ready();
    driven.coordinator.wish(driven.now, STOP);
    assert_eq!(driven.actions(), [stop_at(id(1))]);
    assert_eq!(driven.complete(id(1), false), [Action::Complete(id(1))]);
    assert!(driven.coordinator.is_stopping() && !driven.coordinator.has_stopped());
    for subtask in 0..2 {
        driven.tell(Event::Committed {
            attempt: attempt(1),
            task: TaskId::new(0, subtask),
            checkpoint: id(1),
        });
    }
    assert!(driven.coordinator.has_stopped());
    assert_eq!(driven.at(60 * SECOND).actions(), []);
    assert_eq!(driven.coordinator.restart_point(), Some(&pointer(1)));
}

#[test]
fn a_job_that_does_not_stop_after_all_goes_on() {
    let mut driven = Driven::ready();
    driven.coordinator.wish(driven.now, STOP);
    driven.actions();
    driven.complete(id(1), false);
    driven.coordinator.resume(driven.now);
    assert_eq!(driven.actions(), [Action::Abort(id(1))]);
    assert_eq!(driven.at(SECOND).actions(), [trigger(id(2))]);
}

#[test]
fn whoever_paused_goes_on_when_others_are_lost() {
    let mut driven = Driven::ready();
    driven.coordinator.wish(driven.now, STOP);
    driven.actions();
    driven.complete(id(1), false);
    let reason = "a TaskManager is lost".into();
    driven.tell(Event::TasksLost { reason });
    assert!(!driven.coordinator.is_stopping());
    assert_eq!(driven.actions(), [Action::Abort(id(1))]);
    // And when that happened while the pointer was being written.
    let mut driven = Driven::ready();
    driven.coordinator.wish(driven.now, STOP);
    driven.actions();
    driven.collect(id(1), false);
    let reason = "a TaskManager is lost".into();
    driven.tell(Event::TasksLost { reason });
    driven.tell(Event::Published { checkpoint: id(1) });
    assert_eq!(driven.actions(), [Action::Abort(id(1))]);
    assert!(!driven.coordinator.is_stopping());
}

#[test]
fn a_checkpoint_that_is_being_copied_stays_until_every_copy_is_over() {
    let mut driven = Driven::ready();
    driven.at(SECOND).actions();
    driven.complete(id(1), false);
    driven.coordinator.pin(id(1));
    driven.coordinator.pin(id(1));
    for counter in 2..=4 {
        driven.at(counter * SECOND).actions();
        let actions = driven.complete(id(counter), false);
        let deletes = |action: &Action| matches!(action, Action::Delete { obsolete, retained } if obsolete.contains(&pointer(1)) || !retained.contains(&pointer(1)));
        assert!(!actions.iter().any(deletes), "{actions:?}");
    }
    let retained: Vec<_> = driven.coordinator.retained().cloned().collect();
    assert_eq!(
        retained,
        [pointer(3), pointer(4)],
        "no restart goes back to it"
    );
    driven.coordinator.unpin(id(1));
    assert_eq!(driven.actions(), []);
    driven.coordinator.unpin(id(1));
    let obsolete = [pointer(1)].into();
    assert_eq!(driven.actions(), [Action::Delete { obsolete, retained }]);
}
