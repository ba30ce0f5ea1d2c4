//! The bounded frame queue: one producer, one consumer, each either a task's thread or an asynchronous pump.
//!
//! A push is never refused: a guest's call may overshoot the bound, and whoever pushes asks [`Producer::has_room`]
//! before it causes more. Nothing here blocks, and nothing is dropped unless the consumer is gone. Then there is never
//! room again: a task whose channel is broken waits to be stopped and does not work for nobody.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tidemill_protocol::Frame;

#[derive(Default)]
struct State {
    frames: VecDeque<Frame>,
    consumer_gone: bool,
    producer_gone: bool,
    consumer: Option<Waker>,
    producer: Option<Waker>,
}

struct Shared {
    bytes_max: usize,
    /// The weight of the queued frames, readable without the lock.
    bytes: AtomicUsize,
    /// The number of queued frames, readable without the lock.
    len: AtomicUsize,
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves the queue as it was: every critical section is a few moves.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that pushes.
pub(crate) struct Producer(Arc<Shared>);

/// The end that pops.
pub(crate) struct Consumer(Arc<Shared>);

/// A queue that has room as long as its frames weigh less than `bytes_max`.
pub(crate) fn queue(bytes_max: usize) -> (Producer, Consumer) {
    let shared = Arc::new(Shared {
        bytes_max,
        bytes: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        state: Mutex::default(),
    });
    (Producer(Arc::clone(&shared)), Consumer(shared))
}

impl Producer {
    /// Adds a frame, whatever the bound. A frame for a consumer that is gone is dropped.
    pub(crate) fn push(&self, frame: Frame) {
        if self.add(frame) {
            self.wake_consumer();
        }
    }

    /// As [`Self::push`], but leaves it to the caller to wake the consumer before it waits or works on for long: true when
    /// that is due. Several frames then cost one change of threads.
    #[must_use = "a consumer that is not woken waits for ever"]
    pub(crate) fn add(&self, frame: Frame) -> bool {
        let mut state = self.0.lock();
        if state.consumer_gone {
            return false;
        }
        self.0.bytes.fetch_add(frame.weight(), Ordering::Relaxed);
        self.0.len.fetch_add(1, Ordering::Release);
        state.frames.push_back(frame);
        state.frames.len() == 1
    }

    /// Wakes the consumer.
    pub(crate) fn wake_consumer(&self) {
        let waker = self.0.lock().consumer.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the queued frames weigh less than the bound; never, once the consumer is gone.
    pub(crate) fn has_room(&self) -> bool {
        self.0.bytes.load(Ordering::Acquire) < self.0.bytes_max
    }

    /// Who is woken when there is plenty of room again.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.0.lock().producer = Some(waker.clone());
    }

    /// Ready when there is room, or nobody to make any.
    pub(crate) fn poll_room(&self, context: &mut Context<'_>) -> Poll<Result<(), ConsumerGone>> {
        let mut state = self.0.lock();
        if state.consumer_gone {
            return Poll::Ready(Err(ConsumerGone));
        }
        if self.has_room() {
            return Poll::Ready(Ok(()));
        }
        state.producer = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The consumer of a queue has been dropped: its task is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConsumerGone;

impl Drop for Producer {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.lock();
            state.producer_gone = true;
            state.consumer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Consumer {
    /// Whether a frame is queued; costs one atomic load.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.len.load(Ordering::Acquire) > 0
    }

    /// Takes the oldest frame. A producer that waits is woken when the queue is half empty: woken at the first room, it
    /// would make one frame and wait again.
    pub(crate) fn pop(&self) -> Option<Frame> {
        let mut state = self.0.lock();
        self.take(&mut state)
    }

    fn take(&self, state: &mut MutexGuard<'_, State>) -> Option<Frame> {
        let frame = state.frames.pop_front()?;
        self.0.len.fetch_sub(1, Ordering::Release);
        let before = self.0.bytes.fetch_sub(frame.weight(), Ordering::AcqRel);
        let after = before - frame.weight();
        let wake_below = self.0.bytes_max.div_ceil(2);
        if before >= wake_below
            && after < wake_below
            && let Some(waker) = &state.producer
        {
            waker.wake_by_ref();
        }
        Some(frame)
    }

    /// Puts frames in front of all others, whatever the bound, in this order: they were read ahead, or come from an image.
    pub(crate) fn put_first(&self, frames: impl DoubleEndedIterator<Item = Frame>) {
        let mut state = self.0.lock();
        for frame in frames.rev() {
            self.0.bytes.fetch_add(frame.weight(), Ordering::Relaxed);
            self.0.len.fetch_add(1, Ordering::Release);
            state.frames.push_front(frame);
        }
    }

    /// The weight of the queued frames, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// The bound, in bytes.
    pub(crate) fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    /// Who is woken when a frame arrives in the empty queue.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        self.0.lock().consumer = Some(waker.clone());
    }

    /// Moves every queued frame to `frames`; pending while there is none, `false` once the producer is gone as well.
    pub(crate) fn poll_drain(
        &self,
        context: &mut Context<'_>,
        frames: &mut VecDeque<Frame>,
    ) -> Poll<bool> {
        let mut state = self.0.lock();
        while let Some(frame) = self.take(&mut state) {
            frames.push_back(frame);
        }
        if !frames.is_empty() {
            return Poll::Ready(true);
        }
        if state.producer_gone {
            return Poll::Ready(false);
        }
        state.consumer = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.lock();
            state.consumer_gone = true;
            state.frames.clear();
            self.0.bytes.store(usize::MAX, Ordering::Release);
            self.0.len.store(0, Ordering::Release);
            state.producer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    use bytes::Bytes;
    use tidemill_protocol::{FRAME_HEADER_BYTES, FrameBody};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn data(sequence: u64, bytes: usize) -> Frame {
        Frame {
            sequence,
            body: FrameBody::Data(Bytes::from(vec![0; bytes])),
        }
    }

    #[test]
    fn a_push_past_the_bound_is_kept_and_room_returns_when_it_is_read() {
        let (producer, consumer) = queue(100);
        let woken = Arc::new(Count::default());
        producer.set_waker(&Waker::from(Arc::clone(&woken)));
        producer.push(data(0, 60));
        assert!(
            producer.has_room(),
            "{FRAME_HEADER_BYTES} + 60 bytes are below the bound"
        );
        producer.push(data(1, 500));
        assert!(!producer.has_room());
        assert_eq!(consumer.pop().map(|frame| frame.sequence), Some(0));
        assert_eq!(woken.0.load(Ordering::SeqCst), 0, "still above the bound");
        assert_eq!(consumer.pop().map(|frame| frame.sequence), Some(1));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert!(producer.has_room());
    }

    #[test]
    fn the_consumer_is_woken_once_for_each_time_the_queue_fills_from_empty() {
        let (producer, consumer) = queue(1000);
        let woken = Arc::new(Count::default());
        consumer.set_waker(&Waker::from(Arc::clone(&woken)));
        producer.push(data(0, 1));
        producer.push(data(1, 1));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        while consumer.pop().is_some() {}
        producer.push(data(2, 1));
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn added_frames_wake_nobody_until_told_and_a_full_queue_wakes_its_producer_at_the_half() {
        let (producer, consumer) = queue(400);
        let [reader, writer] = [(); 2].map(|()| Arc::new(Count::default()));
        consumer.set_waker(&Waker::from(Arc::clone(&reader)));
        producer.set_waker(&Waker::from(Arc::clone(&writer)));
        let due: Vec<bool> = (0..4)
            .map(|sequence| producer.add(data(sequence, 100)))
            .collect();
        assert_eq!(due, [true, false, false, false]);
        assert_eq!(reader.0.load(Ordering::SeqCst), 0);
        producer.wake_consumer();
        assert_eq!(reader.0.load(Ordering::SeqCst), 1);
        assert!(!producer.has_room());
        consumer.pop();
        assert!(producer.has_room());
        assert_eq!(writer.0.load(Ordering::SeqCst), 0, "more than half full");
        while consumer.pop().is_some() {}
        assert_eq!(writer.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_is_put_back_comes_first_in_its_order_and_takes_room() {
        let (producer, consumer) = queue(100);
        producer.push(data(2, 1));
        consumer.put_first([data(0, 60), data(1, 60)].into_iter());
        assert!(!producer.has_room());
        assert_eq!(consumer.bytes(), 121 + 3 * FRAME_HEADER_BYTES);
        let order: Vec<_> = std::iter::from_fn(|| consumer.pop())
            .map(|frame| frame.sequence)
            .collect();
        assert_eq!(order, [0, 1, 2]);
        assert!(producer.has_room() && consumer.bytes() == 0);
    }

    #[test]
    fn frames_outlive_their_producer_and_a_gone_consumer_is_seen() {
        let (producer, consumer) = queue(1000);
        producer.push(data(0, 1));
        drop(producer);
        let mut context = Context::from_waker(Waker::noop());
        let mut frames = VecDeque::new();
        assert_eq!(
            consumer.poll_drain(&mut context, &mut frames),
            Poll::Ready(true)
        );
        frames.clear();
        assert_eq!(
            consumer.poll_drain(&mut context, &mut frames),
            Poll::Ready(false)
        );

        let (producer, consumer) = queue(1);
        producer.push(data(0, 10));
        drop(consumer);
        assert_eq!(
            producer.poll_room(&mut context),
            Poll::Ready(Err(ConsumerGone))
        );
    }
}
