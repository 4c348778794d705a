//! What a start finds in the logs: their tails, read side by side. Clients wait for this, so it never reads a backlog.

use std::path::Path;
use std::sync::Arc;

use metricstream_shards::log::{
    AGGREGATE_LOG_ID, DurableMark, LogStart, Mark, NotGivenBack, Recovered, WriteMode, recover,
};

use super::{RunError, aggregate_log};
use crate::backplane::segments;
use crate::config::{Config, FlushMode};
use crate::data_dir::DataDir;
use crate::flush_probe;
use crate::forward;
use crate::forward::share::LogShare;
use crate::reducer::{self, segment_log};

/// All logs of the data directory, recovered.
pub(super) struct Logs {
    /// By shard, also of shards that no longer exist
    pub shards: Vec<(u32, Recovered)>,
    pub aggregate: Recovered,
    /// M, F and the era, as the aggregate log has them
    pub closed: reducer::Recovered,
    /// How commits reach stable storage; tried beside the recovery
    pub mode: WriteMode,
}

impl Logs {
    pub fn recover(config: &Config, data: &DataDir, shard_count: usize) -> Result<Logs, RunError> {
        let mut numbers = data.shards().map_err(|error| RunError::Io { what: "the logs cannot be listed", error })?;
        numbers.extend((0..shard_count as u32).filter(|n| !numbers.contains(n)).collect::<Vec<_>>());
        numbers.sort_unstable();
        let (node_id, aggregate_dir) = (data.node_id(), data.aggregate_log());
        let mut logs = std::thread::scope(|scope| {
            let mode = scope.spawn(|| flush_mode(config));
            let shards: Vec<_> = numbers
                .iter()
                .map(|&number| {
                    let dir = data.shard_log(number);
                    scope.spawn(move || recover_log(&dir, number, node_id).map(|log| (number, log)))
                })
                .collect();
            let aggregate = recover_log(&aggregate_dir, AGGREGATE_LOG_ID, node_id)?;
            let closed = segment_log::recover_place(&aggregate.start.history);
            let joined = shards.into_iter().map(|log| log.join().expect("recovery does not panic"));
            let shards = joined.collect::<Result<Vec<_>, RunError>>()?;
            Ok::<_, RunError>(Logs { shards, aggregate, closed, mode: mode.join().expect("the probe does not panic") })
        })?;
        warn_of_kept_space(logs.all(), config);
        one_epoch(logs.shards.iter_mut().map(|(_, log)| &mut log.start).chain([&mut logs.aggregate.start]));
        Ok(logs)
    }

    fn all(&self) -> impl Iterator<Item = &Recovered> {
        self.shards.iter().map(|(_, log)| log).chain([&self.aggregate])
    }

    pub fn last_stamp_ns(&self) -> Option<i64> {
        self.all().filter_map(|log| log.last_stamp_ns).max()
    }

    /// What keeper, reader and sinks will know of each log in common.
    pub fn shares(&self, config: &Config, data: &DataDir, shard_count: usize) -> Vec<Arc<LogShare>> {
        let share = |number: u32, dir: &Path, segment_bytes: u64, mark: Mark| {
            let sinks = forward::readers_of(config, number == AGGREGATE_LOG_ID);
            let is_orphan = number != AGGREGATE_LOG_ID && number >= shard_count as u32;
            Arc::new(LogShare::new(number, dir, segment_bytes, Arc::new(DurableMark::new(mark)), is_orphan, &sinks))
        };
        let segment_bytes = config.log.segment_bytes.bytes();
        let of_shards = self.shards.iter();
        let mut shares: Vec<_> = of_shards
            .map(|(number, log)| share(*number, &data.shard_log(*number), segment_bytes, log.start.mark()))
            .collect();
        let segment_bytes = aggregate_log::segment_bytes(config);
        shares.push(share(AGGREGATE_LOG_ID, &data.aggregate_log(), segment_bytes, self.aggregate.start.mark()));
        shares
    }
}

pub(super) fn share_of(shares: &[Arc<LogShare>], log_id: u32) -> Arc<LogShare> {
    shares.iter().find(|share| share.log_id == log_id).expect("every log has one").clone()
}

/// How commits reach stable storage: as configured, or what is faster here.
fn flush_mode(config: &Config) -> WriteMode {
    match config.log.flush {
        FlushMode::Fdatasync => WriteMode::WriteThenFlush,
        FlushMode::Dsync => WriteMode::Dsync,
        FlushMode::Auto => match flush_probe::probe(&config.node.data_dir) {
            Ok(probed) => {
                tracing::info!(
                    fdatasync_us = probed.fdatasync.as_micros() as u64,
                    dsync_us = probed.dsync.as_micros() as u64,
                    taken = flush_probe::mode_name(probed.mode),
                    "tried how this disk flushes"
                );
                probed.mode
            }
            Err(error) => {
                tracing::info!(%error, "this disk's flushes cannot be timed; taking fdatasync");
                WriteMode::WriteThenFlush
            }
        },
    }
}

fn recover_log(path: &Path, log_id: u32, node_id: u128) -> Result<Recovered, RunError> {
    segments::remove_half_filled(path);
    let recovered =
        recover(path, log_id, node_id).map_err(|error| RunError::Recover { path: path.to_path_buf(), error })?;
    for note in &recovered.notes {
        tracing::warn!(log = %path.display(), "{note}");
    }
    for damage in &recovered.damage {
        tracing::error!(
            log = %path.display(),
            segment_id = damage.segment_id,
            from = damage.from,
            to = damage.to,
            points = damage.points,
            "acknowledged data is damaged; everything around it is kept. See `metricstream log verify`"
        );
    }
    if recovered.torn {
        tracing::info!(log = %path.display(), "the last write of the previous run was cut off before its flush; dropped");
    }
    Ok(recovered)
}

/// One line a start: where the file system makes no holes, each segment of earlier runs has something to tell.
fn warn_of_kept_space<'a>(logs: impl Iterator<Item = &'a Recovered>, config: &Config) {
    let mut kept = NotGivenBack::default();
    logs.for_each(|log| kept.add(log.not_given_back.clone()));
    if kept.segments > 0 {
        tracing::warn!(
            segments = kept.segments,
            bytes = kept.bytes,
            data_dir = %config.node.data_dir.display(),
            error = kept.why,
            "the unused ends of old segments cannot be given back, so each start takes a whole segment of the log's bound: \
             keep the data directory on a file system that can make holes (ext4, XFS, Btrfs), or make log.segment_bytes \
             smaller"
        );
    }
}

/// The same epoch for all logs, that no start of this directory has had: ids rest on it ([`forward::id`]). The log of a
/// shard that was gone is empty and would begin with epoch 1 again, as it begins with point 0 again.
fn one_epoch<'a>(starts: impl Iterator<Item = &'a mut LogStart>) {
    let starts: Vec<_> = starts.collect();
    let epoch = starts.iter().map(|start| start.epoch).max().unwrap_or(1);
    for start in starts {
        start.epoch = epoch;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shard that went and came back had epoch 1 and number 0 again, and its new points the ids of its old ones.
    #[test]
    fn a_log_that_begins_anew_has_an_epoch_that_no_start_had() {
        let mut starts = [LogStart::empty(), LogStart::empty(), LogStart::empty()];
        (starts[0].epoch, starts[2].epoch) = (9, 7);
        one_epoch(starts.iter_mut());
        assert_eq!(starts.map(|start| start.epoch), [9, 9, 9]);
    }
}
