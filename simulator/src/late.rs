//! What a task does about barriers that are late: it is captured without them, reads their channels ahead of what it
//! processes, and brings back what was recorded when it is restored. When that is so the real alignment says.

use std::collections::VecDeque;

use tidemill_core::Time;
use tidemill_core::mutation::{self, Mutation};

use crate::event::{Event, Input};
use crate::node::Node;
use crate::task::{Frame, Task, TaskImage};
use crate::world::World;

/// What of a task waits for late barriers.
#[derive(Debug)]
pub(crate) struct Late {
    /// The image that lacks what is being recorded.
    pub(crate) held: Option<TaskImage>,
    /// Of each input, what was read ahead of what is processed.
    ahead: Vec<VecDeque<Frame>>,
    /// When it is to be woken.
    wakes_at: Option<Time>,
}

impl Late {
    pub(crate) fn new(inputs: usize) -> Self {
        Self {
            held: None,
            ahead: vec![VecDeque::new(); inputs],
            wakes_at: None,
        }
    }
}

impl World {
    /// Frames that are part of the image come first on their channels.
    pub(crate) fn bring_back(&mut self, node: Node, task: &mut Task) {
        let recorded = std::mem::take(&mut task.state.recorded);
        if mutation::is(Mutation::RecordedFramesLost) {
            return;
        }
        for index in 0..task.inputs.len() {
            let of_channel = recorded
                .iter()
                .filter(|(channel, _)| *channel == task.inputs[index]);
            let frames = of_channel.map(|(_, frame)| frame.clone());
            self.put_first(node, task, index, frames);
        }
    }

    /// The next frame of an input that is to be processed.
    pub(crate) fn next_frame(
        &mut self,
        node: Node,
        task: &mut Task,
        index: usize,
    ) -> Option<Frame> {
        if task.alignment.is_recorded(index) {
            task.late.ahead[index].pop_front()
        } else {
            self.take_frame(node, task, index)
        }
    }

    /// Waits no longer for barriers than it should, and reads the channels whose barriers are late.
    pub(crate) fn see_to_late_barriers(&mut self, node: Node, task: &mut Task) {
        if !task.running {
            return;
        }
        let actions = task.alignment.handle_timeout(self.local(node));
        self.aligned(node, task, &actions);
        for index in 0..task.inputs.len() {
            self.read_ahead(node, task, index);
        }
        for index in 0..task.inputs.len() {
            if !task.alignment.is_recorded(index) {
                let ahead = std::mem::take(&mut task.late.ahead[index]);
                self.put_first(node, task, index, ahead.into_iter());
            }
        }
    }

    fn read_ahead(&mut self, node: Node, task: &mut Task, index: usize) {
        while task.alignment.is_recorded(index)
            && let Some(frame) = self.take_frame(node, task, index)
        {
            task.late.ahead[index].push_back(frame.clone());
            let actions = match frame {
                Frame::Data(_) => {
                    let channel = task.inputs[index];
                    if let Some(image) = &mut task.late.held {
                        image.recorded.push((channel, frame));
                    }
                    continue;
                }
                Frame::Barrier(checkpoint) => task.alignment.recorded_to_barrier(index, checkpoint),
                Frame::End => task.alignment.recorded_to_end(index),
            };
            self.aligned(node, task, &actions);
        }
    }

    /// Has the task look again when barriers will be late.
    pub(crate) fn wake_when_late(&mut self, node: Node, task: &mut Task) {
        let due = task.alignment.poll_timeout();
        if due == task.late.wakes_at {
            return;
        }
        task.late.wakes_at = due;
        if let Some(due) = due {
            let process = &self.processes[node.0];
            let (at_us, life) = (process.clock.world_us(due), process.life);
            let input = Input::TaskDue { task: task.key };
            self.schedule(at_us.max(self.now_us), Event::Process { node, life, input });
        }
    }
}
