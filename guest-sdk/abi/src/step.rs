//! What a bounded call into a guest returns: a status and the next processing-time deadline, packed into 64 bits.
//! It never says how much work was done; a guest keeps its own continuation in its memory.

/// What the host does next with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The call is complete.
    Done,
    /// The call stopped at a bound: call again to continue. A barrier may come between.
    More,
    /// A source has ended and must not be polled again.
    Ended,
}

/// The result of `process`, `resume`, `poll`, `watermark`, `timer` and `finish`.
///
/// Packed: bits 0–7 the status (0 done, 1 more, 2 ended), bits 8–63 the deadline in milliseconds since the Unix
/// epoch at which the guest wants `timer` (or `poll`, for a source) called; 0 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whether, and how, the call goes on.
    pub status: Status,
    /// When the guest wants to be called again, in milliseconds since the Unix epoch.
    pub deadline_ms: Option<u64>,
}

impl Step {
    /// A complete call with no deadline.
    pub const DONE: Self = Self {
        status: Status::Done,
        deadline_ms: None,
    };

    /// Packs for the return value of an export. Deadlines past 2^56 − 1 ms are cut to that.
    #[must_use]
    pub fn pack(self) -> u64 {
        let status = match self.status {
            Status::Done => 0,
            Status::More => 1,
            Status::Ended => 2,
        };
        let deadline = self.deadline_ms.unwrap_or(0).min((1 << 56) - 1);
        deadline << 8 | status
    }

    /// Reads a packed step; `None` when the status is not one of this version's.
    #[must_use]
    pub fn unpack(packed: u64) -> Option<Self> {
        let status = match packed & 0xff {
            0 => Status::Done,
            1 => Status::More,
            2 => Status::Ended,
            _ => return None,
        };
        let deadline = packed >> 8;
        Some(Self {
            status,
            deadline_ms: (deadline != 0).then_some(deadline),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_survives_packing() {
        for status in [Status::Done, Status::More, Status::Ended] {
            for deadline_ms in [None, Some(1), Some(1_700_000_000_000)] {
                let step = Step {
                    status,
                    deadline_ms,
                };
                assert_eq!(Step::unpack(step.pack()), Some(step));
            }
        }
        assert_eq!(Step::unpack(77), None);
    }
}
