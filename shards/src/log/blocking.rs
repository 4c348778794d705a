//! A log driven by plain blocking calls: the aggregate log, tests and tools. The same writer as a shard's.

use super::block::RecordKind;
use super::prepare::{Prepare, prepare_segment};
use super::record::Envelope;
use super::writer::{AppendError, CommitSeq, LogEvent, LogWriter, Names, OpKind};
use crate::point::Batch;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub struct BlockingLog {
    writer: LogWriter,
    dir: PathBuf,
    /// Segments retention gave up, to be used again
    recyclable: Vec<PathBuf>,
}

impl BlockingLog {
    pub fn new(dir: &Path, writer: LogWriter) -> BlockingLog {
        BlockingLog { writer, dir: dir.to_path_buf(), recyclable: Vec::new() }
    }

    pub fn append_opaque(
        &mut self,
        kind: RecordKind,
        stamp_ns: i64,
        points: u32,
        bytes: &[u8],
    ) -> Result<CommitSeq, AppendError> {
        self.writer.append_opaque(kind, stamp_ns, points, bytes)
    }

    pub fn append_batch(
        &mut self,
        envelope: &Envelope,
        stamp_ns: i64,
        batch: &Batch,
        names: &impl Names,
    ) -> Result<CommitSeq, AppendError> {
        self.writer.append_batch(envelope, stamp_ns, batch, names)
    }

    /// Returns when everything appended is durable. After an error the records are kept and the next call writes them
    /// to a new segment; a failed flush is not tried again.
    pub fn flush(&mut self, names: &impl Names) -> io::Result<CommitSeq> {
        while !self.writer.is_idle() {
            if self.writer.needs_segment() {
                self.prepare()?;
            }
            let Some(op) = self.writer.next_op(names) else { continue };
            let Some((file, bytes)) = self.writer.op_bytes(op.id) else { continue };
            let result = match op.kind {
                OpKind::Write { offset, dsync, .. } => {
                    // Not `write_all_at`: a short write is a failure, for the writer to judge.
                    let written = file.write_at(bytes, offset).map(|n| n as i32);
                    if dsync { written.and_then(|n| file.sync_data().map(|()| n)) } else { written }
                }
                OpKind::Flush => file.sync_data().map(|()| 0),
            };
            let result = result.unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO));
            if let LogEvent::Failed { path, errno, .. } = self.writer.complete(op.id, result) {
                tracing::error!(path = %path.display(), errno, "a segment is given up");
                return Err(io::Error::from_raw_os_error(if errno == 0 { libc::EIO } else { errno }));
            }
        }
        Ok(self.writer.durable_commit())
    }

    /// For a clean stop: flushes, then [`LogWriter::append_seal`].
    pub fn seal(&mut self, stamp_ns: i64, names: &impl Names) -> io::Result<()> {
        self.flush(names)?;
        if self.writer.append_seal(stamp_ns) {
            self.flush(names)?;
        }
        Ok(())
    }

    fn prepare(&mut self) -> io::Result<()> {
        let (segment_id, bytes) = (self.writer.next_segment_id(), self.writer.config().segment_bytes);
        let recycle = self.recyclable.pop().filter(|path| path.exists());
        let segment = prepare_segment(Prepare { dir: &self.dir, segment_id, bytes, recycle: recycle.as_deref() })?;
        self.writer.offer_segment(segment).map_err(|_| io::Error::other("the prepared segment does not fit"))
    }

    /// A segment file that nothing reads any more.
    pub fn recycle(&mut self, path: PathBuf) {
        self.recyclable.push(path);
    }

    pub fn writer(&self) -> &LogWriter {
        &self.writer
    }

    pub fn writer_mut(&mut self) -> &mut LogWriter {
        &mut self.writer
    }
}
