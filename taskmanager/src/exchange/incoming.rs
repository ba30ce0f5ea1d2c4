//! Incoming remote channels: joins each arriving stream with the queue of the task that expects it, whichever comes
//! first, and pumps frames from one to the other. A slow task's stream is simply not read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidemill_protocol::{AttemptId, ChannelHeader, FrameBody, JobId, TaskManagerId};
use tidemill_transport::{ChannelError, ChannelReceiver};
use tokio::runtime::Handle;
use tracing::{debug, warn};

use super::queue::{Consumer, Producer, queue};

/// How long a stream may wait for its task: longer than a deployment takes to fetch and compile a module.
const PARKED_MAX: Duration = Duration::from_secs(60);

/// How many ended attempts are remembered, so that their late streams are refused at once.
const RETIRED_MAX: usize = 4096;

/// What a pump reports when its stream breaks.
pub(crate) type OnBroken = Arc<dyn Fn(ChannelHeader, TaskManagerId, ChannelError) + Send + Sync>;

/// The task's end of a channel that has not arrived yet, and who is to open it.
struct Expected {
    producer: Producer,
    peer: TaskManagerId,
}

#[derive(Default)]
struct State {
    expected: HashMap<ChannelHeader, Expected>,
    parked: HashMap<ChannelHeader, ChannelReceiver>,
    retired: BTreeSet<(AttemptId, JobId)>,
}

/// The meeting place of streams and queues.
#[derive(Clone)]
pub(crate) struct Incoming {
    state: Arc<Mutex<State>>,
    on_broken: OnBroken,
    runtime: Handle,
}

impl Incoming {
    pub(crate) fn new(runtime: Handle, on_broken: OnBroken) -> Self {
        Self {
            state: Arc::default(),
            on_broken,
            runtime,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue in which the frames of a channel from `peer` will arrive.
    pub(crate) fn expect(
        &self,
        header: ChannelHeader,
        peer: TaskManagerId,
        bytes_max: usize,
    ) -> Consumer {
        let (producer, consumer) = queue(bytes_max);
        let expected = Expected { producer, peer };
        let mut state = self.lock();
        match state.parked.remove(&header) {
            Some(stream) => self.pump(header, stream, expected),
            None => {
                state.expected.insert(header, expected);
            }
        }
        consumer
    }

    /// A stream has arrived: it meets its queue, waits for it, or is refused.
    pub(crate) fn arrived(&self, header: ChannelHeader, stream: ChannelReceiver) {
        let mut state = self.lock();
        if state.retired.contains(&(header.attempt, header.job)) {
            debug!(job = %header.job, attempt = %header.attempt, channel = %header.channel, "refused a stream of an ended attempt");
            stream.stop();
        } else if let Some(expected) = state.expected.remove(&header) {
            self.pump(header, stream, expected);
        } else if let Entry::Vacant(place) = state.parked.entry(header) {
            place.insert(stream);
            let this = self.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(PARKED_MAX).await;
                if let Some(stream) = this.lock().parked.remove(&header) {
                    warn!(job = %header.job, attempt = %header.attempt, channel = %header.channel, "dropped a stream that no task claimed");
                    stream.stop();
                }
            });
        } else {
            warn!(job = %header.job, attempt = %header.attempt, channel = %header.channel, "refused a second stream of one channel");
            stream.stop();
        }
    }

    /// An attempt is over: its streams, parked or yet to come, are refused.
    pub(crate) fn retire(&self, job: JobId, attempt: AttemptId) {
        let mut state = self.lock();
        let of = |header: &ChannelHeader| header.job == job && header.attempt == attempt;
        state.expected.retain(|header, _| !of(header));
        for (_, stream) in state.parked.extract_if(|header, _| of(header)) {
            stream.stop();
        }
        state.retired.insert((attempt, job));
        if state.retired.len() > RETIRED_MAX {
            state.retired.pop_first();
        }
    }

    fn pump(&self, header: ChannelHeader, stream: ChannelReceiver, expected: Expected) {
        let on_broken = Arc::clone(&self.on_broken);
        self.runtime.spawn(async move {
            if let Err(error) = receive_channel(stream, expected.producer).await {
                on_broken(header, expected.peer, error);
            }
        });
    }
}

/// Pumps frames from the stream to the queue until the end of input or until the task is gone.
async fn receive_channel(mut stream: ChannelReceiver, queue: Producer) -> Result<(), ChannelError> {
    loop {
        if poll_fn(|context| queue.poll_room(context)).await.is_err() {
            stream.stop();
            return Ok(());
        }
        let Some(frame) = stream.recv().await? else {
            return Ok(());
        };
        let last = frame.body == FrameBody::EndOfInput;
        queue.push(frame);
        if last {
            return Ok(());
        }
    }
}
