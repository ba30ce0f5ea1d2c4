//! When a task copies changed pages before the barrier comes, so that few are left to copy in its pause.
//!
//! A barrier comes as long after the last one as that one after the one before: nobody has to announce it. From some time
//! before on, pages are copied in slices, between which the task works; a page that it writes again meanwhile is copied
//! again. This is how virtual machines are moved while they run (Clark et al., *Live Migration of Virtual Machines*, NSDI
//! 2005). A barrier that comes when none was expected costs a longer pause, and one that never comes a few slices.
//!
//! It decides only: it never copies a page, and it never asks what time it is.

use std::time::Duration;

use tidemill_core::Time;

/// How many pages are copied at a time: 4 MiB, which is the pause that is worth avoiding, of 1 to 3 ms.
pub(crate) const SLICE_PAGES: u32 = 1024;

/// Fewer pages than this, 16 MiB, are copied in the pause, within some 5 ms: to look for them twice costs as much.
const FROM_PAGES: u64 = 4096;

/// How long before its barrier each slice is begun, of those that are expected, so that the task does little else than work.
const SLICE_EVERY: Duration = Duration::from_millis(8);

/// Pages are written again while others are copied: for every four slices one more is expected.
const AGAIN: u32 = 4;

/// Of the pages that are expected to change between two barriers, what is forgotten with each capture that had fewer: an
/// eighth, so that a task that works in bursts is ready for the next one. To expect too many costs a few looks.
const FORGOTTEN: u64 = 8;

/// After all changed pages have been seen to, how many times as long as the last slice the next one waits, since it looks
/// at the whole memory for a few pages.
const REST: u32 = 15;

/// The slices between two captures of a task.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    captured_at: Option<Time>,
    /// Pages that are likely to change until the next capture.
    expected: u64,
    slices: Option<Slices>,
    /// Pages copied since the last capture.
    pages: u64,
}

/// Those that are to come.
#[derive(Clone, Copy, Debug)]
struct Slices {
    next: Time,
    every: Duration,
    /// The barrier that was expected will not come.
    until: Time,
}

impl Ahead {
    /// The task was captured, and so many pages had changed since the capture before. Returns how many of them
    /// had been copied ahead; a page that was copied twice counts twice.
    pub(crate) fn captured(&mut self, now: Time, changed: u64) -> u64 {
        let interval = self.captured_at.replace(now).map(|last| now.since(last));
        self.expected = changed.max(self.expected - self.expected.div_ceil(FORGOTTEN));
        self.slices = interval
            .filter(|_| self.expected >= FROM_PAGES)
            .map(|interval| Slices::before(now, interval, self.expected));
        std::mem::take(&mut self.pages)
    }

    /// When the next slice is due, if there is one.
    pub(crate) fn due_at(&self) -> Option<Time> {
        self.slices.map(|slices| slices.next)
    }

    /// A slice was copied, from then until now: so many pages.
    pub(crate) fn copied(&mut self, began: Time, now: Time, pages: u64) {
        self.pages += pages;
        let Some(slices) = &mut self.slices else {
            return;
        };
        let took = now.since(began);
        slices.next = if pages < u64::from(SLICE_PAGES) {
            now + took.saturating_mul(REST).max(slices.every)
        } else {
            // At most every second moment is the copies'.
            (began + slices.every).max(now + took)
        };
        if slices.next >= slices.until {
            self.slices = None;
        }
    }
}

impl Slices {
    fn before(captured: Time, interval: Duration, pages: u64) -> Self {
        let slices = pages.div_ceil(u64::from(SLICE_PAGES));
        let slices = u32::try_from(slices).unwrap_or(u32::MAX);
        let slices = slices.saturating_add(slices / AGAIN);
        let lead = SLICE_EVERY.saturating_mul(slices).min(interval / 2);
        Self {
            next: captured + (interval - lead),
            every: lead / slices,
            until: captured + interval * 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SLICE: u64 = SLICE_PAGES as u64;

    fn ms(ms: u64) -> Time {
        Time::from_micros(ms * 1000)
    }

    /// A task that was captured twice, a second apart.
    fn regular(changed: u64) -> Ahead {
        let mut ahead = Ahead::default();
        ahead.captured(ms(500), changed);
        assert_eq!(
            ahead.due_at(),
            None,
            "nobody knows when the next barrier comes"
        );
        assert_eq!(ahead.captured(ms(1500), changed), 0);
        ahead
    }

    /// Copies slices of so many pages until the barrier comes; when each began.
    fn slices(ahead: &mut Ahead, took_ms: u64, pages: u64, barrier: Time) -> Vec<Time> {
        let mut began = Vec::new();
        while let Some(due) = ahead.due_at().filter(|due| *due < barrier) {
            began.push(due);
            ahead.copied(due, due + Duration::from_millis(took_ms), pages);
        }
        began
    }

    #[test]
    fn few_pages_are_left_to_the_pause() {
        assert_eq!(regular(FROM_PAGES - 1).due_at(), None);
        assert!(regular(FROM_PAGES).due_at().is_some());
    }

    #[test]
    fn slices_come_just_before_the_barrier_and_are_enough() {
        let changed = 25 * SLICE;
        let mut ahead = regular(changed);
        let began = slices(&mut ahead, 2, SLICE, ms(2500));
        assert_eq!(began.len(), 31);
        assert_eq!(began[0], ms(2500 - 31 * 8));
        assert!(
            began
                .windows(2)
                .all(|pair| pair[1].since(pair[0]) == SLICE_EVERY)
        );
        assert_eq!(ahead.captured(ms(2500), changed), 31 * SLICE);
        assert_eq!(ahead.captured(ms(3500), changed), 0, "counted once");
    }

    #[test]
    fn the_task_has_half_of_the_time_at_least() {
        let mut ahead = regular(1000 * SLICE);
        let began = slices(&mut ahead, 4, SLICE, ms(2500));
        assert_eq!(began[0], ms(2000), "not before the second half");
        assert_eq!(began.len(), 63);
        assert!(
            began
                .windows(2)
                .all(|pair| pair[1].since(pair[0]) == ms(8).since(ms(0)))
        );
    }

    #[test]
    fn memories_with_little_left_are_looked_at_seldom_and_not_for_ever() {
        let mut ahead = regular(25 * SLICE);
        let began = slices(&mut ahead, 2, 10, ms(60_000));
        assert!(
            began
                .windows(2)
                .all(|pair| pair[1].since(pair[0]) == Duration::from_millis(32))
        );
        assert!(
            began
                .last()
                .is_some_and(|last| ms(3400) < *last && *last < ms(3500))
        );
        assert_eq!(ahead.due_at(), None);
        // The barrier comes after all, and is no measure for the next but its own.
        ahead.captured(ms(5500), 25 * SLICE);
        assert_eq!(ahead.due_at(), Some(ms(9500 - 31 * 8)));
    }

    #[test]
    fn a_task_that_works_in_bursts_is_ready_for_the_next_one_for_a_while() {
        let mut ahead = regular(2 * FROM_PAGES);
        let mut idle = 0;
        while ahead.due_at().is_some() {
            idle += 1;
            ahead.captured(ms(1500 + idle * 1000), 0);
        }
        assert_eq!(idle, 6);
    }

    #[test]
    fn a_barrier_that_comes_early_is_taken_as_it_comes() {
        let mut ahead = regular(25 * SLICE);
        assert_eq!(ahead.captured(ms(1510), 25 * SLICE), 0);
        assert_eq!(ahead.due_at(), Some(ms(1510) + (SECOND / 200)));
    }
}
