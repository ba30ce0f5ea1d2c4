//! How a task's thread is told things and woken. The thread parks; whoever has something for it unparks it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use tidemill_core::worker::CheckpointWord;
use tidemill_protocol::CheckpointId;
use tidemill_protocol::split::SplitRequest;

/// What a task is told.
#[derive(Clone, Debug)]
pub(crate) enum TaskCommand {
    /// End at once, without a word to anybody.
    Stop,
    /// The leader's word about a checkpoint.
    Checkpoint(CheckpointId, CheckpointWord),
    /// Nobody is left who could complete the checkpoint that is under way.
    LeaderLost,
    /// A source task wants more splits; for enumerators.
    Split(SplitRequest),
}

/// The task's end.
pub(crate) struct Mailbox {
    commands: Receiver<TaskCommand>,
}

/// A mailbox and what puts commands into it; the sender does not wake, see [`TaskHandle`](super::TaskHandle).
pub(crate) fn mailbox() -> (Sender<TaskCommand>, Mailbox) {
    let (sender, commands) = channel();
    (sender, Mailbox { commands })
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

impl Mailbox {
    /// The next command, if there is one.
    pub(crate) fn take(&self) -> Option<TaskCommand> {
        self.commands.try_recv().ok()
    }

    /// What wakes the calling thread, which must be the task's own.
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(Arc::new(Unpark(std::thread::current())))
    }

    /// Waits until woken, or until the instant. May return early; the caller looks again at everything.
    pub(crate) fn wait(&self, until: Option<Instant>) {
        match until {
            None => std::thread::park(),
            Some(until) => {
                std::thread::park_timeout(until.saturating_duration_since(Instant::now()))
            }
        }
    }
}
