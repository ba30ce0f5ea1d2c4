//! A task as a cluster runs it: an instance of the module, which copies each batch that it emits, as a task's outputs do.

use anyhow::anyhow;
use tidemill_abi::{LogLevel, OpenRequest, SPLIT_NONE, Step};
use tidemill_runtime::{GuestHost, Instance, InstanceLimits, Module, RecordCount};

use crate::pipeline::{Emission, Task};

/// An instance.
pub(crate) struct Wasm(Instance<Outbox>);

impl Wasm {
    pub(crate) fn open(module: &Module, request: &OpenRequest) -> anyhow::Result<Self> {
        let outbox = Outbox(Vec::new());
        let mut instance = Instance::new(module, InstanceLimits::default(), outbox)?;
        instance
            .open(request)?
            .map_err(|mistake| anyhow!(mistake))?;
        Ok(Self(instance))
    }
}

impl Task for Wasm {
    fn poll(&mut self) -> anyhow::Result<Step> {
        Ok(self.0.poll(1)?)
    }

    fn process(&mut self, batch: &[u8]) -> anyhow::Result<Step> {
        Ok(self.0.process(0, SPLIT_NONE, batch, 1)?)
    }

    fn resume(&mut self) -> anyhow::Result<Step> {
        Ok(self.0.resume(1)?)
    }

    fn take_emitted(&mut self) -> Vec<Emission> {
        std::mem::take(&mut self.0.host_mut().0)
    }

    fn records_in(&mut self) -> anyhow::Result<u64> {
        let records = self.0.records(RecordCount::In)?;
        records.ok_or_else(|| anyhow!("the module does not count its records"))
    }
}

/// Keeps what an instance emits.
struct Outbox(Vec<Emission>);

impl GuestHost for Outbox {
    fn emit(&mut self, _output: u32, target: u32, batch: &[u8]) {
        let batch = batch.to_vec();
        self.0.push(Emission { target, batch });
    }

    fn log(&mut self, _level: LogLevel, line: &str) {
        eprintln!("{line}");
    }
}
