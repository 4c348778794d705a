//! From durable blocks to the reducer's mailbox: the fold, its place in the log, and the mark.
//!
//! Blocks are folded in log order, each once. Usually they are still in memory; when the fold is behind (the mailbox
//! was full for long), it goes on from disk, through the same ring. A full mailbox stops the fold, never the log.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_queue::ArrayQueue;

use crate::counters::Counters;
use crate::log::{
    AlignedBuf, BLOCK_HEADER_BYTES, BatchDecoder, BlockHeader, LogWriter, PAGE_BYTES, Position, ReadSpan, RecordKind,
    Records, parse_block,
};
use crate::mailbox::Mailbox;
use crate::point::{FoldInput, SeriesId};
use crate::ring::{DiskIo, Io, Op, Token, TokenKind};
use crate::series::SeriesTable;
use crate::window::fold::Fold;
use crate::window::partial::ShardMessage;
use crate::window::protocol::shard_mark;

use super::commits::Commits;
use super::settings::{LogNotice, Settings, Shared};

/// Work of one turn is bounded, so that replies are not late because windows close.
const BLOCK_BYTES_A_TURN: usize = 1 << 20;
const MESSAGES_A_TURN: usize = 8;
const CELLS_A_MESSAGE: usize = 512;
/// How often a shard says how far it is.
const MARK_EVERY_NS: u64 = 100_000_000;
const READ_BYTES: usize = 1 << 20;

pub struct Folding {
    fold: Fold,
    decoder: BatchDecoder,
    mailbox: Arc<Mailbox<ShardMessage>>,
    /// Series the reducer has not heard of
    unannounced: VecDeque<ShardMessage>,
    /// Where the next block to be folded begins
    at: Position,
    /// The segment last folded from, and the newest point in it that windows hold
    newest: (u64, i64),
    future_bound_ns: i64,
    reading: Option<Reading>,
    marked_at_ns: u64,
    mark_ns: i64,
    /// F as last seen
    floor_ns: i64,
    lateness_ns: i64,
}

/// The fold is behind: what it reads from disk.
struct Reading {
    spans: VecDeque<ReadSpan>,
    file: Option<OwnedFd>,
    buffer: AlignedBuf,
    /// Everything up to this commit is in `spans`
    commit: u64,
    /// Bytes asked for by the read under way, 0 when there is none
    under_way: usize,
    /// Next read: at least this many bytes
    want_bytes: usize,
}

/// What one turn needs besides the fold itself.
pub struct Turn<'a, I: Io> {
    pub log: &'a mut LogWriter,
    pub series: &'a mut SeriesTable,
    pub commits: &'a mut Commits,
    pub io: &'a mut I,
    pub ops: &'a mut Vec<(Token, Op)>,
    pub shared: &'a Shared,
    pub counters: &'a Counters,
    pub notices: &'a ArrayQueue<LogNotice>,
    pub clock_ns: i64,
    pub now_ns: u64,
}

impl Folding {
    pub fn new(settings: &Settings, mailbox: Arc<Mailbox<ShardMessage>>, at: Position, floor_ns: i64) -> Folding {
        Folding {
            fold: Fold::new(settings.fold, floor_ns),
            decoder: BatchDecoder::default(),
            mailbox,
            unannounced: VecDeque::new(),
            at,
            newest: (0, i64::MIN),
            future_bound_ns: settings.fold.future_bound_ns,
            reading: None,
            marked_at_ns: 0,
            mark_ns: i64::MIN,
            floor_ns,
            lateness_ns: settings.fold.lateness_ns,
        }
    }

    pub fn fold_ref(&self) -> &Fold {
        &self.fold
    }

    /// An evicted series: the reducer forgets it too.
    pub fn forget(&mut self, series: SeriesId) {
        self.fold.forget(series);
        self.unannounced.push_back(ShardMessage::ForgetSeries { id: series.0 });
    }

    /// Says that nothing more will come; false while the mailbox is full.
    pub fn say_drained(&mut self) -> bool {
        self.unannounced.is_empty() && self.mailbox.send(ShardMessage::Drained).is_ok()
    }

    /// Fold what is durable, hand out what is ready, say how far this shard is. Answers whether there is more to do
    /// at once.
    pub fn turn<I: Io>(&mut self, turn: &mut Turn<'_, I>) -> bool {
        let floor_ns = turn.shared.floor_ns.load(Ordering::Relaxed);
        if floor_ns < self.floor_ns {
            // F falls only when the clock went back and a new era began.
            self.fold.start_era(floor_ns);
        }
        self.floor_ns = floor_ns;
        self.fold.raise_floor(floor_ns);
        let mut more = self.fold_blocks(turn);
        let series = &mut *turn.series;
        if series.has_created() {
            let created: Vec<SeriesId> = series.drain_created().collect();
            self.unannounced
                .extend(created.into_iter().map(|id| ShardMessage::NewSeries { id: id.0, key: series.key(id).into() }));
        }
        more |= self.hand_out(turn);
        more
    }

    /// Whether the mailbox has been full: then nothing more is folded until it has room.
    fn is_stuck(&self) -> bool {
        self.mailbox.room() == 0
    }

    fn fold_blocks<I: Io>(&mut self, turn: &mut Turn<'_, I>) -> bool {
        if self.is_stuck() {
            return false;
        }
        let mut bytes = 0;
        while self.reading.is_none() {
            if bytes >= BLOCK_BYTES_A_TURN {
                return true;
            }
            let Some(block) = turn.log.take_durable() else {
                if turn.commits.folded_commit() < turn.commits.durable_commit() {
                    self.read_back(turn);
                }
                return false;
            };
            let next = turn.commits.folded_commit() + 1;
            if block.commit.0 == next {
                self.enter_segment(block.position.segment_id, turn.notices);
                self.fold_records(block.records(), turn.counters);
                bytes += block.header.block_bytes();
                self.at = block.end();
                turn.commits.folded(next);
                turn.log.recycle(block);
            } else {
                let dropped_before = block.commit.0 > next;
                turn.log.recycle(block);
                if dropped_before {
                    self.read_back(turn);
                }
            }
        }
        false
    }

    /// The fold goes on in this segment: says of the one before up to when its points reach, so that it can be
    /// recycled as soon as those windows are frozen.
    fn enter_segment(&mut self, segment_id: u64, notices: &ArrayQueue<LogNotice>) {
        let (before, newest_ns) = self.newest;
        if before != segment_id {
            if before != 0 {
                // Never full: the backplane looks many times while a segment fills. Lost, it only delays recycling.
                let _ = notices.push(LogNotice::Folded { segment_id: before, newest_ns });
            }
            self.newest = (segment_id, i64::MIN);
        }
    }

    fn fold_records(&mut self, records: Records<'_>, counters: &Counters) {
        for record in records.filter(|record| record.kind == RecordKind::Batch) {
            // Its block's checksum held, and this process encoded it.
            let (envelope, batch) = self.decoder.decode(record.bytes).expect("a record of a valid block decodes");
            let counts = self.fold.fold(&FoldInput {
                protocol: envelope.protocol,
                client: envelope.client,
                stamp_ns: envelope.stamp_ns,
                same_timestamp_all: envelope.same_timestamp_all,
                batch,
            });
            // Points further ahead are in no window; those without a timestamp have the stamp.
            let furthest_ns = envelope.stamp_ns.saturating_add(self.future_bound_ns);
            let newest_ns = batch.timestamps_ns.iter().fold(envelope.stamp_ns, |newest, &t| newest.max(t));
            self.newest.1 = self.newest.1.max(newest_ns.min(furthest_ns));
            let books = counters.points(envelope.protocol);
            books.folded.add(counts.folded);
            books.late.add(counts.late);
            books.late_beyond.add(counts.late_beyond);
            books.too_far_ahead.add(counts.too_far_ahead);
            books.not_aggregated.add(counts.not_aggregated);
            books.repeated_in_shard.add(counts.repeated_in_shard);
            books.conflicts_in_shard.add(counts.conflicts);
        }
    }

    /// Durable blocks were dropped from memory: read everything that is durable now from where the fold stands.
    fn read_back<I: Io>(&mut self, turn: &mut Turn<'_, I>) {
        let spans: VecDeque<ReadSpan> = turn.log.read_plan(self.at).into();
        self.reading = Some(Reading {
            spans,
            file: None,
            buffer: AlignedBuf::with_capacity(READ_BYTES),
            commit: turn.commits.durable_commit(),
            under_way: 0,
            want_bytes: READ_BYTES,
        });
        self.read_on(turn);
    }

    fn read_on<I: Io>(&mut self, turn: &mut Turn<'_, I>) {
        let Some(reading) = &mut self.reading else { return };
        if reading.under_way > 0 {
            return;
        }
        while reading.spans.front().is_some_and(|span| span.from >= span.to) {
            reading.spans.pop_front();
            reading.file = None;
        }
        let Some(span) = reading.spans.front() else {
            turn.commits.folded(reading.commit);
            self.reading = None;
            return;
        };
        if reading.file.is_none() {
            match turn.io.open_for_reading(&span.path) {
                Ok(file) => reading.file = Some(file),
                Err(error) => {
                    // Retention took it, or the disk is gone. What was in it is counted as damaged by the rebuild.
                    tracing::error!(path = %span.path.display(), %error, "a segment the fold still needs cannot be opened");
                    reading.spans.pop_front();
                    return;
                }
            }
        }
        let len = reading.want_bytes.min((span.to - span.from) as usize);
        reading.buffer.set_len(len);
        reading.under_way = len;
        let file = reading.file.as_ref().expect("opened above").as_raw_fd();
        let pointer = reading.buffer.as_mut_ptr();
        let io = DiskIo { file, offset_bytes: span.from, pointer, len_bytes: len as u32, dsync: false };
        turn.ops.push((Token::new(TokenKind::LogRead, 0, 0), Op::Read(io)));
    }

    /// A read of this shard's own log has completed.
    pub fn read_done<I: Io>(&mut self, result: i32, turn: &mut Turn<'_, I>) {
        let Some(mut reading) = self.reading.take() else { return };
        let asked = std::mem::take(&mut reading.under_way);
        let got = usize::try_from(result).unwrap_or(0).min(asked);
        reading.want_bytes = READ_BYTES;
        let mut done = 0;
        let Some(span) = reading.spans.front().cloned() else { return };
        while done + PAGE_BYTES <= got {
            match parse_block(&reading.buffer[done..got]) {
                Ok((header, _, _)) => {
                    let payload = BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + header.payload_bytes as usize;
                    self.enter_segment(span.segment_id, turn.notices);
                    self.fold_records(Records::new(&reading.buffer[done..got][payload]), turn.counters);
                    turn.counters.fold_from_disk_blocks.add(1);
                    done += header.block_bytes();
                }
                Err(_) => match BlockHeader::parse(&reading.buffer[done..got]) {
                    Ok((header, _)) if done + header.block_bytes() > got && span.from + (got as u64) < span.to => {
                        // The block goes on behind what was read.
                        reading.want_bytes = READ_BYTES.max(header.block_bytes());
                        break;
                    }
                    Ok((header, _)) => {
                        tracing::error!(path = %span.path.display(), offset = span.from + done as u64, "a durable block is damaged");
                        turn.counters.damaged_points.add(u64::from(header.points));
                        done += header.block_bytes();
                    }
                    Err(_) => done += PAGE_BYTES,
                },
            }
        }
        if done == 0 && reading.want_bytes == READ_BYTES {
            tracing::error!(path = %span.path.display(), result, "a durable part of the log cannot be read back");
            done = (span.to - span.from) as usize;
        }
        self.at = Position { segment_id: span.segment_id, offset: span.from + done as u64 };
        if let Some(span) = reading.spans.front_mut() {
            span.from += done as u64;
        }
        self.reading = Some(reading);
        if !self.is_stuck() {
            self.read_on(turn);
        }
    }

    fn hand_out<I: Io>(&mut self, turn: &mut Turn<'_, I>) -> bool {
        if let Some(reading) = &self.reading
            && reading.under_way == 0
            && !self.is_stuck()
        {
            self.read_on(turn);
        }
        while let Some(message) = self.unannounced.pop_front() {
            if let Err(message) = self.mailbox.send(message) {
                self.unannounced.push_front(message);
                turn.counters.mailbox_full.add(1);
                return false;
            }
        }
        let mark_ns = shard_mark(turn.clock_ns, turn.commits.oldest_unfolded_ns(), self.lateness_ns);
        for _ in 0..MESSAGES_A_TURN {
            if self.is_stuck() {
                turn.counters.mailbox_full.add(1);
                return false;
            }
            match self.fold.take_ready(mark_ns, CELLS_A_MESSAGE) {
                Some(message) => {
                    assert!(self.mailbox.send(message).is_ok(), "only this shard fills its mailbox, and it had room");
                }
                None => {
                    if turn.now_ns >= self.marked_at_ns + MARK_EVERY_NS && mark_ns != self.mark_ns {
                        assert!(
                            self.mailbox.send(ShardMessage::Mark { mark_ns }).is_ok(),
                            "only this shard fills its mailbox, and it had room"
                        );
                        self.marked_at_ns = turn.now_ns;
                        self.mark_ns = mark_ns;
                    }
                    return false;
                }
            }
        }
        true
    }
}
