//! What one guest instance may use, and the check that wasmtime asks before a memory or table grows. A refused growth
//! is remembered: the guest sees only that it failed, and usually traps on its own a moment later.
//!
//! It never frees or shrinks anything.

use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::call_error::TrapReason;
use crate::engine::TICK;

/// The most that 32-bit addresses reach.
const ADDRESSABLE_BYTES: u64 = 1 << 32;

/// What one instance may use. Past a limit the call fails with an error that names it; nothing else is hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceLimits {
    /// Linear memory, in bytes. More than 4 GiB means 4 GiB.
    pub memory_max_bytes: u64,
    /// Entries in all tables together.
    pub table_elements_max: u64,
    /// How long one call may run, exact to about 10 ms.
    pub call_deadline: Duration,
    /// What one call may emit, in bytes over all its batches.
    pub call_output_max_bytes: u64,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self {
            memory_max_bytes: ADDRESSABLE_BYTES,
            table_elements_max: 1 << 20,
            call_deadline: Duration::from_secs(5),
            call_output_max_bytes: 64 * 1024 * 1024,
        }
    }
}

impl InstanceLimits {
    /// The deadline in epoch ticks: rounded up, and one more because the current tick has already begun.
    pub(crate) fn deadline_ticks(&self) -> u64 {
        let ticks = self.call_deadline.as_nanos().div_ceil(TICK.as_nanos());
        // Far below the point where adding it to the current epoch would overflow; ten thousand years are forever.
        u64::try_from(ticks).unwrap_or(u64::MAX).min(1 << 45) + 1
    }
}

/// Answers wasmtime's questions about growth.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_max_bytes: u64,
    table_elements_max: u64,
    table_elements: u64,
    granted: bool,
    refused: Option<TrapReason>,
}

/// The operating system had no memory for a growth that the limits allow. Unlike a limit this is no fact about the
/// guest, so the call fails instead of letting the guest see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system refused memory: {reason}")]
pub(crate) struct HostOutOfMemory {
    pub(crate) reason: String,
}

impl Limiter {
    pub(crate) fn new(limits: &InstanceLimits) -> Self {
        Self {
            memory_max_bytes: limits.memory_max_bytes.min(ADDRESSABLE_BYTES),
            table_elements_max: limits.table_elements_max,
            table_elements: 0,
            granted: false,
            refused: None,
        }
    }

    /// The growth that was refused since the last time this was asked.
    pub(crate) fn take_refused(&mut self) -> Option<TrapReason> {
        self.refused.take()
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted_bytes = desired as u64;
        let limit_bytes = maximum.map_or(self.memory_max_bytes, |own| {
            self.memory_max_bytes.min(own as u64)
        });
        self.granted = wanted_bytes <= limit_bytes;
        if !self.granted {
            self.refused = Some(TrapReason::MemoryLimit {
                wanted_bytes,
                limit_bytes,
            });
        }
        Ok(self.granted)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if self.granted {
            return Err(HostOutOfMemory {
                reason: format!("{error:#}"),
            }
            .into());
        }
        // Past what 32-bit addresses reach wasmtime does not ask first.
        let limit_bytes = self.memory_max_bytes;
        self.refused = Some(TrapReason::MemoryLimit {
            wanted_bytes: ADDRESSABLE_BYTES + 1,
            limit_bytes,
        });
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self
            .table_elements
            .saturating_sub(current as u64)
            .saturating_add(desired as u64);
        let granted = wanted <= self.table_elements_max && maximum.is_none_or(|own| desired <= own);
        if granted {
            self.table_elements = wanted;
        } else {
            self.refused = Some(TrapReason::TableLimit {
                wanted,
                limit: self.table_elements_max,
            });
        }
        Ok(granted)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(HostOutOfMemory {
            reason: format!("{error:#}"),
        }
        .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_never_fires_early_and_never_overflows() {
        let ticks = |call_deadline| {
            InstanceLimits {
                call_deadline,
                ..InstanceLimits::default()
            }
            .deadline_ticks()
        };
        assert_eq!(ticks(Duration::from_millis(10)), 2);
        assert_eq!(ticks(Duration::from_millis(11)), 3);
        assert_eq!(ticks(Duration::ZERO), 1);
        assert_eq!(ticks(Duration::MAX), (1 << 45) + 1);
    }

    #[test]
    fn tables_share_one_limit() {
        let mut limiter = Limiter::new(&InstanceLimits {
            table_elements_max: 10,
            ..InstanceLimits::default()
        });
        assert!(limiter.table_growing(0, 6, None).expect("an answer"));
        assert!(!limiter.table_growing(0, 5, None).expect("an answer"));
        assert_eq!(
            limiter.take_refused(),
            Some(TrapReason::TableLimit {
                wanted: 11,
                limit: 10
            })
        );
        assert!(limiter.table_growing(6, 10, None).expect("an answer"));
    }
}
