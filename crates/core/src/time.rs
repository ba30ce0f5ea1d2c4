//! Time as the machines know it: microseconds since an arbitrary start, handed in by whoever drives them. It never
//! reads a clock, and two machines of different processes never compare theirs.

use alloc::collections::BTreeMap;
use core::ops::Add;
pub use core::time::Duration;

/// A moment, in microseconds since an arbitrary start that stays the same for one machine's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The arbitrary start.
    pub const ZERO: Self = Self(0);

    /// The moment so many microseconds after the start.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero when it is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    /// A duration too long to count in microseconds means never, which is the last moment there is.
    fn add(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

/// When a machine wants to be woken, and for what: at most one moment for each kind of timer.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    deadlines: BTreeMap<K, Time>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self {
            deadlines: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Sets a timer; an earlier setting of it is forgotten.
    pub fn set(&mut self, timer: K, deadline: Time) {
        self.deadlines.insert(timer, deadline);
    }

    /// Stops a timer, if it runs.
    pub fn stop(&mut self, timer: K) {
        self.deadlines.remove(&timer);
    }

    /// Stops every timer.
    pub fn stop_all(&mut self) {
        self.deadlines.clear();
    }

    /// Whether a timer runs.
    #[must_use]
    pub fn is_set(&self, timer: K) -> bool {
        self.deadlines.contains_key(&timer)
    }

    /// The earliest deadline.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        self.deadlines.values().min().copied()
    }

    /// Takes one timer whose deadline has come, the earliest first; of equal ones the lesser.
    pub fn take_expired(&mut self, now: Time) -> Option<K> {
        let (&timer, _) = self
            .deadlines
            .iter()
            .filter(|(_, deadline)| **deadline <= now)
            .min_by_key(|(_, deadline)| **deadline)?;
        self.deadlines.remove(&timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Timer {
        Early,
        Late,
    }

    #[test]
    fn timers_expire_once_in_order_of_their_deadlines() {
        let mut timers = Timers::default();
        timers.set(Timer::Early, Time::from_micros(30));
        timers.set(Timer::Late, Time::from_micros(20));
        assert_eq!(timers.next_timeout(), Some(Time::from_micros(20)));
        assert_eq!(timers.take_expired(Time::from_micros(19)), None);
        assert_eq!(
            timers.take_expired(Time::from_micros(40)),
            Some(Timer::Late)
        );
        assert_eq!(
            timers.take_expired(Time::from_micros(40)),
            Some(Timer::Early)
        );
        assert_eq!(timers.take_expired(Time::from_micros(40)), None);
        assert_eq!(timers.next_timeout(), None);
    }

    #[test]
    fn setting_again_replaces_and_stopping_forgets() {
        let mut timers = Timers::default();
        timers.set(Timer::Early, Time::from_micros(1));
        timers.set(Timer::Early, Time::from_micros(9));
        assert_eq!(timers.take_expired(Time::from_micros(5)), None);
        timers.stop(Timer::Early);
        assert!(!timers.is_set(Timer::Early));
        assert_eq!(timers.next_timeout(), None);
    }

    #[test]
    fn time_never_wraps() {
        let end = Time::from_micros(u64::MAX);
        assert_eq!(Time::from_micros(5) + Duration::MAX, end);
        assert_eq!(Time::ZERO.since(end), Duration::ZERO);
    }
}
