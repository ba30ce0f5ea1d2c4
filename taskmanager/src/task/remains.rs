//! What a stopped task leaves to the attempt that follows it on this machine: its instance, whose memory mostly is what
//! the checkpoint says, and which pages are not.
//!
//! It never runs the instance, and answers "unknown" rather than with fewer pages than changed.

use tidemill_protocol::CheckpointId;
use tidemill_protocol::image::{PAGE_BYTES, PageRun};
use tidemill_runtime::Instance;

use super::capture::Change;
use super::outputs::Outputs;

/// Captures that are remembered one by one; with more of them, the oldest two become one.
const CAPTURES_MAX: usize = 64;

/// An instance that nobody enters any more.
pub(crate) struct Remains {
    pub(crate) instance: Instance<Outputs>,
    pub(crate) changed: Changed,
}

/// Which pages an instance's captures held, since a checkpoint that it can be taken back to.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// What is before the first capture.
    since: Option<CheckpointId>,
    captures: Vec<(CheckpointId, Vec<PageRun>)>,
}

impl Changed {
    /// Of an instance that was made from this checkpoint; `None` began anew.
    pub(crate) fn since_restore(checkpoint: Option<CheckpointId>) -> Self {
        Self {
            since: checkpoint,
            captures: Vec::new(),
        }
    }

    /// A capture was made. It counts from then on, whatever becomes of it.
    pub(crate) fn captured(&mut self, checkpoint: CheckpointId, change: &Change) {
        let mut runs = change.capture.runs.clone();
        if change.whole {
            // It does not tell changed pages from others.
            runs = vec![PageRun {
                first: 0,
                pages: (change.capture.memory_bytes / PAGE_BYTES as u64) as u32,
                zero: false,
            }];
        }
        self.captures.push((checkpoint, runs));
        if self.captures.len() > CAPTURES_MAX {
            let (_, oldest) = self.captures.remove(0);
            self.captures[0].1.extend(oldest);
        }
    }

    /// The checkpoint is complete: nothing goes back to before it.
    pub(crate) fn completed(&mut self, checkpoint: CheckpointId) {
        if self.captures.iter().any(|(of, _)| *of == checkpoint) {
            self.captures.retain(|(of, _)| *of > checkpoint);
            self.since = Some(checkpoint);
        }
    }

    /// The pages in captures after this checkpoint's; `None` when that is not known, as the checkpoint is older than
    /// what is remembered or none of this instance's.
    pub(crate) fn since(&self, checkpoint: CheckpointId) -> Option<Vec<PageRun>> {
        let known =
            self.since == Some(checkpoint) || self.captures.iter().any(|(of, _)| *of == checkpoint);
        let after = self.captures.iter().filter(|(of, _)| *of > checkpoint);
        known.then(|| after.flat_map(|(_, runs)| runs.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use tidemill_protocol::Epoch;
    use tidemill_protocol::image::StoredCapture;

    use super::*;

    fn checkpoint(counter: u64) -> CheckpointId {
        CheckpointId::new(Epoch(1), counter)
    }

    fn change(page: u32, whole: bool) -> Change {
        let run = PageRun {
            first: page,
            pages: 1,
            zero: false,
        };
        Change {
            capture: StoredCapture {
                memory_bytes: 16 * PAGE_BYTES as u64,
                runs: vec![run],
                ..StoredCapture::default()
            },
            whole,
        }
    }

    fn pages(changed: &Changed, counter: u64) -> Option<Vec<u32>> {
        let runs = changed.since(checkpoint(counter))?;
        Some(
            runs.iter()
                .flat_map(|run| run.first..run.first + run.pages)
                .collect(),
        )
    }

    #[test]
    fn what_changed_is_known_back_to_the_last_completed_checkpoint() {
        let mut changed = Changed::since_restore(Some(checkpoint(3)));
        changed.captured(checkpoint(4), &change(1, false));
        changed.captured(checkpoint(5), &change(2, false));
        changed.captured(checkpoint(6), &change(3, false));
        assert_eq!(pages(&changed, 3), Some(vec![1, 2, 3]));
        assert_eq!(pages(&changed, 5), Some(vec![3]));
        changed.completed(checkpoint(5));
        assert_eq!(pages(&changed, 5), Some(vec![3]));
        assert_eq!(pages(&changed, 6), Some(vec![]));
        assert_eq!(pages(&changed, 4), None);
        assert_eq!(pages(&changed, 3), None);
    }

    #[test]
    fn a_checkpoint_of_another_attempt_is_unknown() {
        let mut changed = Changed::since_restore(None);
        changed.captured(checkpoint(4), &change(1, true));
        changed.captured(checkpoint(6), &change(2, false));
        changed.completed(checkpoint(5));
        assert_eq!(pages(&changed, 5), None);
        assert_eq!(pages(&changed, 4), Some(vec![2]));
    }

    #[test]
    fn after_a_whole_capture_every_page_may_have_changed() {
        let mut changed = Changed::since_restore(Some(checkpoint(1)));
        changed.captured(checkpoint(2), &change(1, true));
        assert_eq!(pages(&changed, 1), Some((0..16).collect()));
    }

    #[test]
    fn captures_that_never_complete_are_bounded_and_none_of_their_pages_is_lost() {
        let mut changed = Changed::since_restore(Some(checkpoint(0)));
        for counter in 1..=200 {
            changed.captured(checkpoint(counter), &change(counter as u32, false));
        }
        assert_eq!(changed.captures.len(), CAPTURES_MAX);
        let mut all = pages(&changed, 0).expect("it is where the instance began");
        all.sort_unstable();
        assert_eq!(all, (1..=200).collect::<Vec<_>>());
        assert_eq!(pages(&changed, 10), None);
        assert_eq!(pages(&changed, 199), Some(vec![200]));
    }
}
