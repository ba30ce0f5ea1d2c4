//! What is of no use any more goes here: the kernel takes a tenth of a second to take a GiB back, of memory or of a file,
//! and a task may be waiting for whoever does that. One thread does, which gives way to tasks.
//!
//! It never decides what is of no use.

use std::any::Any;
use std::sync::mpsc::{Sender, channel};

use tracing::debug;

/// By so much is the thread nicer than a task: where both want one processor all the time, it gets a tenth of what the
/// task gets.
const NICE: i32 = 10;

/// Has things dropped. Cheap to clone; the thread ends after the last clone.
#[derive(Clone, Debug)]
pub(super) struct Discard(Sender<Box<dyn Any + Send>>);

impl Discard {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives none.
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, discarded) = channel::<Box<dyn Any + Send>>();
        std::thread::Builder::new()
            .name("images-discard".to_owned())
            .spawn(move || {
                // On Linux this is of the thread alone, and nobody is forbidden to be nicer.
                if let Err(error) = rustix::process::nice(NICE) {
                    debug!(%error, "the thread that discards images keeps its priority");
                }
                discarded.into_iter().for_each(drop);
            })?;
        Ok(Self(sender))
    }

    /// Drops it soon.
    pub(super) fn discard(&self, what: impl Any + Send) {
        // Without the thread, which ends with its last sender only, it is dropped here.
        let _ = self.0.send(Box::new(what));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Duration;

    use super::*;

    /// Tells how nice the thread is that drops it.
    struct Witness(Sender<i32>);

    impl Drop for Witness {
        fn drop(&mut self) {
            // proc(5): the 17th field after the name in parentheses is how nice it is.
            let stat = fs::read_to_string("/proc/thread-self/stat").expect("the kernel tells");
            let (_, fields) = stat.rsplit_once(") ").expect("a name");
            let nice = fields.split(' ').nth(16).and_then(|nice| nice.parse().ok());
            let _ = self.0.send(nice.expect("a number"));
        }
    }

    #[test]
    fn what_is_discarded_is_dropped_by_a_thread_that_gives_way() {
        let (told, dropped) = channel();
        let own = rustix::process::getpriority_process(None).expect("its own");
        let discard = Discard::start().expect("a thread");
        discard.discard(Witness(told));
        let nice = dropped.recv_timeout(Duration::from_secs(60));
        assert_eq!(nice, Ok((own + NICE).min(19)));
        let once = dropped.recv_timeout(Duration::from_secs(60));
        assert_eq!(once, Err(RecvTimeoutError::Disconnected));
    }
}
