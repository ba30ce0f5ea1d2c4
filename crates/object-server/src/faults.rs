//! Which requests are to fail and how, and which have come. It never touches the network.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What happens to a request instead of its being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status, and the server never sees it.
    Status(u16),
    /// It is never answered, and the server never sees it.
    Hang,
    /// Its connection is cut, and the server never sees it.
    Cut,
    /// The server serves it, and its connection is cut instead of the answer.
    LostReply,
    /// The server serves it, and its connection is cut in the middle of the answer.
    HalfReply,
}

/// The faults of a server. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    requests: Vec<String>,
}

#[derive(Debug)]
struct Rule {
    part: String,
    fault: Fault,
    left: usize,
}

impl Faults {
    /// The next `count` requests whose first line (such as `PUT /bucket/key?query HTTP/1.1`) has this part fail so.
    /// Faults that are asked for earlier come first.
    pub fn next(&self, count: usize, part: &str, fault: Fault) {
        self.state().rules.push(Rule {
            part: part.into(),
            fault,
            left: count,
        });
    }

    /// No more faults.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// How many requests have come whose first line has this part, failed ones included.
    #[must_use]
    pub fn seen(&self, part: &str) -> usize {
        let state = self.state();
        state
            .requests
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }

    /// What is to happen to this request.
    pub(crate) fn meet(&self, line: &str) -> Option<Fault> {
        let mut state = self.state();
        state.requests.push(line.into());
        let rule = state
            .rules
            .iter_mut()
            .find(|rule| rule.left > 0 && line.contains(&rule.part))?;
        rule.left -= 1;
        Some(rule.fault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has left whole values behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
