//! Who reaches whom, and how long it takes. Datagrams of a blocked direction do not arrive; what a connection carries is
//! sent again and arrives when the direction is open again, unless the connection was given up before.

use crate::node::{NODES, Node};
use crate::options::NetworkOptions;
use crate::random::Random;

/// The links between all machines, each direction for itself.
#[derive(Debug)]
pub(crate) struct Network {
    options: NetworkOptions,
    /// How many faults block a direction: they may overlap.
    blocked: [[u8; NODES]; NODES],
}

impl Network {
    pub(crate) fn new(options: NetworkOptions) -> Self {
        Self {
            options,
            blocked: [[0; NODES]; NODES],
        }
    }

    pub(crate) fn block(&mut self, from: Node, to: Node) {
        self.blocked[from.0][to.0] += 1;
    }

    pub(crate) fn unblock(&mut self, from: Node, to: Node) {
        let count = &mut self.blocked[from.0][to.0];
        *count = count.saturating_sub(1);
    }

    pub(crate) fn heal(&mut self) {
        self.blocked = [[0; NODES]; NODES];
    }

    /// What is sent now arrives.
    pub(crate) fn passes(&self, from: Node, to: Node) -> bool {
        self.blocked[from.0][to.0] == 0
    }

    /// Question and answer arrive.
    pub(crate) fn round_trips(&self, one: Node, other: Node) -> bool {
        self.passes(one, other) && self.passes(other, one)
    }

    /// How long something is on its way, in microseconds.
    pub(crate) fn delay_us(&self, random: &mut Random) -> u64 {
        if random.chance(self.options.spike_per_mille) {
            return random.between(self.options.delay_max_us, self.options.spike_max_us);
        }
        random.between(self.options.delay_min_us, self.options.delay_max_us)
    }

    /// An attempt to connect is lost for so long that it is given up.
    pub(crate) fn loses_attempt(&self, random: &mut Random) -> bool {
        random.chance(self.options.lost_attempts_per_mille)
    }
}
