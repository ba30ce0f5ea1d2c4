//! The same task as native code: what LLVM makes of the SDK and the job without Wasm between.

use anyhow::anyhow;
use tidemill::testing;
use tidemill_abi::{OpenRequest, Step};

use crate::pipeline::{Emission, Task};

/// A task of the job's native build.
pub(crate) struct Native(testing::Task);

impl Native {
    pub(crate) fn open(request: OpenRequest) -> anyhow::Result<Self> {
        let task = testing::Task::open(bench::bench, request);
        Ok(Self(task.map_err(|mistake| anyhow!(mistake))?))
    }
}

impl Task for Native {
    fn poll(&mut self) -> anyhow::Result<Step> {
        Ok(self.0.poll(1))
    }

    fn process(&mut self, batch: &[u8]) -> anyhow::Result<Step> {
        Ok(self.0.process(batch, 1))
    }

    fn resume(&mut self) -> anyhow::Result<Step> {
        Ok(self.0.resume(1))
    }

    fn take_emitted(&mut self) -> Vec<Emission> {
        self.0
            .take_emitted()
            .map(|emitted| Emission {
                target: emitted.target,
                batch: emitted.batch,
            })
            .collect()
    }

    fn records_in(&mut self) -> anyhow::Result<u64> {
        Ok(self.0.records_in())
    }
}
