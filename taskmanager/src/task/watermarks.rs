//! Event time at a task: the least watermark over the live channels of each port, and over all ports. It only rises.

use tidemill_protocol::ChannelId;

#[derive(Clone, Copy, Debug)]
struct ChannelMark {
    /// `None` for split channels, which carry no event time.
    port: Option<u32>,
    timestamp_ms: i64,
    ended: bool,
}

/// The watermarks of a task's channels, by their index among its inputs.
#[derive(Debug)]
pub(crate) struct Watermarks {
    channels: Vec<ChannelMark>,
    /// What each port, and all of them together, were last told.
    told: Vec<(Option<u32>, i64)>,
}

impl Watermarks {
    /// No channel has sent one. `ports` has the port of each channel, `None` for split channels.
    pub(crate) fn new(ports: impl Iterator<Item = Option<u32>>) -> Self {
        let channels = ports
            .map(|port| ChannelMark {
                port,
                timestamp_ms: i64::MIN,
                ended: false,
            })
            .collect();
        Self {
            channels,
            told: Vec::new(),
        }
    }

    /// A channel's watermark has come to this; a lesser one changes nothing.
    pub(crate) fn advance(&mut self, index: usize, timestamp_ms: i64) {
        let mark = &mut self.channels[index];
        mark.timestamp_ms = mark.timestamp_ms.max(timestamp_ms);
    }

    /// A channel has ended and holds nothing back any more.
    pub(crate) fn end(&mut self, index: usize) {
        self.channels[index].ended = true;
    }

    /// The port's watermark, if it has risen since the last call.
    pub(crate) fn risen(&mut self, port: u32) -> Option<i64> {
        self.risen_of(Some(port))
    }

    /// The watermark over all ports, if it has risen since the last call.
    pub(crate) fn risen_over_all(&mut self) -> Option<i64> {
        self.risen_of(None)
    }

    fn risen_of(&mut self, port: Option<u32>) -> Option<i64> {
        let counts = |mark: &&ChannelMark| {
            mark.port.is_some() && (port.is_none() || mark.port == port) && !mark.ended
        };
        let least = self
            .channels
            .iter()
            .filter(counts)
            .map(|mark| mark.timestamp_ms)
            .min()?;
        match self.told.iter_mut().find(|(of, _)| *of == port) {
            Some((_, told)) if least > *told => *told = least,
            None if least > i64::MIN => self.told.push((port, least)),
            _ => return None,
        }
        Some(least)
    }

    /// The channels that have sent a watermark, for the image.
    pub(crate) fn save(&self, channel: impl Fn(usize) -> ChannelId) -> Vec<(ChannelId, i64)> {
        let sent = |(index, mark): (usize, &ChannelMark)| {
            (mark.timestamp_ms > i64::MIN).then(|| (channel(index), mark.timestamp_ms))
        };
        self.channels.iter().enumerate().filter_map(sent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_as_late_as_its_latest_channel_and_an_ended_one_holds_nothing_back() {
        let mut marks = Watermarks::new([Some(0), Some(0), None].into_iter());
        marks.advance(0, 10);
        assert_eq!(marks.risen(0), None, "the other channel has not spoken");
        marks.advance(1, 5);
        assert_eq!(marks.risen(0), Some(5));
        assert_eq!(marks.risen(0), None, "told once");
        marks.advance(1, 3);
        assert_eq!(marks.risen(0), None, "it never falls");
        marks.end(1);
        assert_eq!(marks.risen(0), Some(10));
        assert_eq!(marks.risen_over_all(), Some(10));
    }
}
