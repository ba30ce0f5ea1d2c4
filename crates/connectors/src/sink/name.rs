//! The names of a file sink's files. All of them are made here, from identities and counters, so that restored bytes can
//! never name a foreign path; and read back here, to tell whose a file in the directory is.

use serde::{Deserialize, Serialize};
use tidemill_protocol::{AttemptId, CheckpointId, Epoch};

use super::SinkIdentity;

const HIDDEN_SUFFIX: &str = ".inprogress";

/// A file that no checkpoint shows yet: who began it, and which of that attempt's it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HiddenFile {
    pub(crate) attempt: AttemptId,
    pub(crate) number: u64,
}

/// The names of one sink subtask.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// `<job>-<stage>-<output>-<subtask>-`: what all its names contain.
    stem: String,
}

impl Names {
    pub(crate) fn new(identity: &SinkIdentity) -> Self {
        let job = identity.job.to_string();
        Self {
            stem: format!(
                "{}-{}-{}-{:05}-",
                &job[..8],
                identity.stage,
                identity.output,
                identity.subtask
            ),
        }
    }

    /// `.<job>-<stage>-<output>-<subtask>-<attempt>-<number>.inprogress`
    pub(crate) fn hidden(&self, file: HiddenFile) -> String {
        format!(
            ".{}{}-{}{HIDDEN_SUFFIX}",
            self.stem, file.attempt, file.number
        )
    }

    /// `part-<job>-<stage>-<output>-<subtask>-<epoch>-<counter>[-<roll>]`: the checkpoint at which it was prepared, and
    /// which of that checkpoint's files it is. The counter has leading zeros, so that names sort as they were written.
    pub(crate) fn visible(&self, checkpoint: CheckpointId, roll: u32) -> String {
        let (epoch, counter) = (checkpoint.epoch, checkpoint.counter);
        let name = format!("part-{}{epoch}-{counter:06}", self.stem);
        if roll == 0 {
            name
        } else {
            format!("{name}-{roll}")
        }
    }

    /// Which hidden file of this sink subtask has this name, if one has.
    pub(crate) fn parse_hidden(&self, name: &str) -> Option<HiddenFile> {
        let rest = name.strip_prefix('.')?.strip_prefix(&self.stem)?;
        let (attempt, number) = rest.strip_suffix(HIDDEN_SUFFIX)?.split_once('-')?;
        Some(HiddenFile {
            attempt: attempt.parse().ok()?,
            number: number.parse().ok()?,
        })
    }

    /// The checkpoint of the visible file of this sink subtask that has this name, if one has.
    pub(crate) fn parse_visible(&self, name: &str) -> Option<CheckpointId> {
        let mut parts = name
            .strip_prefix("part-")?
            .strip_prefix(&self.stem)?
            .split('-');
        let epoch = Epoch(parts.next()?.parse().ok()?);
        Some(CheckpointId::new(epoch, parts.next()?.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_protocol::JobId;

    #[test]
    fn names_read_back_and_foreign_ones_do_not() {
        let identity = SinkIdentity {
            job: JobId([0xab; 16]),
            stage: 2,
            output: 0,
            subtask: 1,
            attempt: AttemptId::new(Epoch(3), 17),
        };
        let names = Names::new(&identity);
        let file = HiddenFile {
            attempt: identity.attempt,
            number: 4,
        };
        assert_eq!(names.hidden(file), ".abababab-2-0-00001-3.17-4.inprogress");
        assert_eq!(names.parse_hidden(&names.hidden(file)), Some(file));

        let checkpoint = CheckpointId::new(Epoch(3), 42);
        assert_eq!(
            names.visible(checkpoint, 0),
            "part-abababab-2-0-00001-3-000042"
        );
        assert_eq!(
            names.visible(checkpoint, 7),
            "part-abababab-2-0-00001-3-000042-7"
        );
        assert_eq!(
            names.parse_visible(&names.visible(checkpoint, 7)),
            Some(checkpoint)
        );

        for other in [
            SinkIdentity {
                subtask: 10,
                ..identity
            },
            SinkIdentity {
                stage: 22,
                ..identity
            },
            SinkIdentity {
                output: 1,
                ..identity
            },
            SinkIdentity {
                job: JobId([0xac; 16]),
                ..identity
            },
        ] {
            let other = Names::new(&other);
            assert_eq!(names.parse_hidden(&other.hidden(file)), None);
            assert_eq!(names.parse_visible(&other.visible(checkpoint, 0)), None);
        }
        for foreign in [
            "",
            ".",
            "part-",
            ".abababab-2-0-00001-.inprogress",
            "part-abababab-2-0-00001-x-y",
        ] {
            assert_eq!(names.parse_hidden(foreign), None);
            assert_eq!(names.parse_visible(foreign), None);
        }
    }
}
