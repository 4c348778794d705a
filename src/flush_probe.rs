//! Which way to stable storage is faster on this disk: a write and an fdatasync, or one write with O_DSYNC.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use metricstream_shards::log::{AlignedBuf, WriteMode};

/// A start is not held up for longer than this.
const BUDGET: Duration = Duration::from_millis(60);
const ROUNDS: usize = 16;
const WRITE_BYTES: usize = 16 << 10;

#[derive(Debug, Clone, Copy)]
pub struct Probed {
    pub mode: WriteMode,
    /// Medians, when both were measured
    pub fdatasync: Duration,
    pub dsync: Duration,
}

/// Tries both on a small file in `dir`, in turn, and takes the one with the lower median. Anything that goes wrong means
/// fdatasync, which every disk knows.
pub fn probe(dir: &Path) -> io::Result<Probed> {
    let path = dir.join("flush-probe");
    let result = measure(&path);
    let _ = std::fs::remove_file(&path);
    result
}

fn measure(path: &Path) -> io::Result<Probed> {
    let file_bytes = WRITE_BYTES * ROUNDS;
    std::fs::write(path, vec![0u8; file_bytes])?;
    let open = |flags: i32| OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | flags).open(path);
    let (plain, dsync) = (open(0)?, open(libc::O_DSYNC)?);
    plain.sync_all()?;
    let mut buffer = AlignedBuf::with_capacity(WRITE_BYTES);
    buffer.set_len(WRITE_BYTES);
    let begin = Instant::now();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let offset = (round * WRITE_BYTES) as u64;
        let at = Instant::now();
        plain.write_all_at(&buffer, offset)?;
        plain.sync_data()?;
        first.push(at.elapsed());
        let at = Instant::now();
        dsync.write_all_at(&buffer, offset)?;
        second.push(at.elapsed());
        if begin.elapsed() > BUDGET {
            break;
        }
    }
    first.sort_unstable();
    second.sort_unstable();
    let (fdatasync, dsync) = (first[first.len() / 2], second[second.len() / 2]);
    // A tie goes to the plainer way.
    let mode =
        if dsync.as_secs_f64() < 0.9 * fdatasync.as_secs_f64() { WriteMode::Dsync } else { WriteMode::WriteThenFlush };
    Ok(Probed { mode, fdatasync, dsync })
}

pub fn mode_name(mode: WriteMode) -> &'static str {
    match mode {
        WriteMode::WriteThenFlush => "fdatasync",
        WriteMode::Dsync => "dsync",
    }
}
