//! Reads durable segments for the sinks: a task on the backplane, by direct I/O, one read at a time.
//!
//! A sink asks for "what is durable of log L from here on, at most N bytes"; nothing is read ahead of what is asked for, so a
//! sink that is down costs nothing. The last pieces are kept, up to a bound, so that sinks which stand near each other
//! share one read. Promises: nothing at or behind a log's durable mark is ever handed out; nothing whose checksum
//! does not hold; blocks come in order, superseded and damaged ones are passed over, and the numbers of the
//! points tell what is missing; memory is the bound, the pieces that sinks hold, and the names of the segments they
//! stand in.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use crossbeam_queue::ArrayQueue;
use metricstream_shards::log::{
    BLOCK_HEADER_BYTES, BlockError, BlockHeader, PAGE_BYTES, Position, SegmentHeader, parse_block,
};

use super::piece::{Piece, SegmentNames};
use super::share::{LogShare, list_segments};
use crate::backplane::executor;

/// All cached pieces together.
pub const CACHE_BYTES_MAX: usize = 32 << 20;
/// Sinks that stand near each other ask within moments.
const KEEP_FOR: Duration = Duration::from_secs(3);
/// One read; a longer block is read by itself.
pub const READ_BYTES_MAX: usize = 1 << 20;
/// Files kept open between reads.
const OPEN_FILES_MAX: usize = 8;
/// A file that was deleted takes its space until it is closed.
const CLOSE_AFTER: Duration = Duration::from_secs(2);
/// How long a place may fail to be read before it counts as damage: a disk that is away comes back with everything.
const BAD_SECTOR_AFTER: Duration = Duration::from_secs(30);
const FIRST_BLOCK: u64 = PAGE_BYTES as u64;
/// An ask wakes the reader; a stop is seen after this time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// "What is durable of this log from here on."
pub struct Ask {
    pub log: Arc<LogShare>,
    pub from: Position,
    pub bytes_max: usize,
    /// Comes back with the answer, so that a late one can be told from the one that is waited for
    pub ticket: u64,
    pub reply: SyncSender<(u64, Answer)>,
}

pub enum Answer {
    /// The blocks of `piece` from offset `from` on
    Piece { piece: Arc<Piece>, from: u64 },
    /// Nothing here; go on at this place
    Skip(Position),
    /// Nothing more is durable
    End,
    /// The place is in a segment that was dropped: reading goes on in this one, the oldest that is left, whose header says
    /// what its first point is (`None`: its header is damaged)
    Dropped { to: Position, first_point: Option<u64> },
    /// The disk does not give it now
    Failed(String),
}

/// Where the sinks put what they ask, and what the reader counts.
pub struct ReaderPort {
    asks: ArrayQueue<Ask>,
    /// The reader, while it waits for an ask
    waiting: AtomicWaker,
    pub counters: ReaderCounters,
    stopped: AtomicBool,
}

#[derive(Default)]
pub struct ReaderCounters {
    pub read_bytes: AtomicU64,
    pub reads: AtomicU64,
    /// Answers that needed no read
    pub shared: AtomicU64,
    pub cached_bytes: AtomicU64,
    pub failures: AtomicU64,
    /// Stretches of log whose checksums did not hold
    pub damaged: AtomicU64,
}

impl ReaderPort {
    /// `asks_max`: each sink and log has at most one ask under way.
    pub fn new(asks_max: usize) -> Arc<ReaderPort> {
        Arc::new(ReaderPort {
            asks: ArrayQueue::new(asks_max.max(1)),
            waiting: AtomicWaker::new(),
            counters: ReaderCounters::default(),
            stopped: AtomicBool::new(false),
        })
    }

    /// False: the reader has ended, there will be no answer.
    pub fn ask(&self, ask: Ask) -> bool {
        if self.stopped.load(Ordering::Acquire) {
            return false;
        }
        assert!(self.asks.push(ask).is_ok(), "one ask a sink and log, and the queue has room for all");
        self.waiting.wake();
        true
    }

    /// Until there is an ask.
    async fn asked(&self) {
        poll_fn(|context| {
            // Registered first: an ask that comes in between wakes it.
            self.waiting.register(context.waker());
            if self.asks.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }
}

/// Answers until `stop`.
pub async fn run(port: Arc<ReaderPort>, stop: Rc<Cell<bool>>) {
    let mut reader = SegmentsReader::new(port.clone());
    let mut looked_at_files = Instant::now();
    while !stop.get() {
        match port.asks.pop() {
            Some(ask) => {
                let answer = reader.answer(&ask).await;
                // A sink that has ended does not listen any more.
                let _ = ask.reply.try_send((ask.ticket, answer));
                executor::yield_now().await;
            }
            None => executor::wait_for(port.asked(), LOOK_EVERY).await,
        }
        if looked_at_files.elapsed() > CLOSE_AFTER {
            looked_at_files = Instant::now();
            reader.let_go();
            reader.close_unused().await;
        }
    }
    port.stopped.store(true, Ordering::Release);
    reader.close().await;
}

/// What is known of a segment file.
struct OpenSegment {
    file: executor::Reader,
    file_bytes: u64,
    /// `Err`: its first page is damaged
    header: Option<SegmentHeader>,
    /// Where its durable blocks end, once that is known
    end: Option<u64>,
    used: Instant,
}

/// Names as far as somebody has read the segment.
struct Known {
    names: Weak<SegmentNames>,
    /// Every block below is learned
    upto: u64,
}

type Place = (u32, u64);

/// What one read came to.
struct Stretch {
    /// Sound blocks, and where they begin in `bytes`
    blocks: Vec<(BlockHeader, usize)>,
    bytes: Vec<u8>,
    /// Offsets of what is not sound
    damage: Vec<(u64, u64)>,
    /// Where to go on
    end: u64,
}

pub struct SegmentsReader {
    port: Arc<ReaderPort>,
    open: HashMap<Place, OpenSegment>,
    names: HashMap<Place, Known>,
    cache: BTreeMap<(u32, u64, u64), Arc<Piece>>,
    /// Keys of `cache` and when they came, oldest first
    cached: VecDeque<((u32, u64, u64), Instant)>,
    cached_bytes: usize,
    /// Since when the disk has refused this place
    unreadable: Option<(Place, u64, Instant)>,
}

impl SegmentsReader {
    pub fn new(port: Arc<ReaderPort>) -> SegmentsReader {
        SegmentsReader {
            port,
            open: HashMap::new(),
            names: HashMap::new(),
            cache: BTreeMap::new(),
            cached: VecDeque::new(),
            cached_bytes: 0,
            unreadable: None,
        }
    }

    pub async fn answer(&mut self, ask: &Ask) -> Answer {
        match self.look(ask).await {
            Ok(answer) => answer,
            Err(error) => {
                self.forget(ask.log.log_id, ask.from.segment_id).await;
                // The file may be another segment by now.
                if ask.from.segment_id < ask.log.dropped_below() {
                    return self.dropped(&ask.log).await;
                }
                self.port.counters.failures.fetch_add(1, Ordering::Relaxed);
                Answer::Failed(format!(
                    "segment {} of {} cannot be read: {error}",
                    ask.from.segment_id,
                    ask.log.dir.display()
                ))
            }
        }
    }

    async fn dropped(&mut self, log: &LogShare) -> Answer {
        let dropped_below = log.dropped_below();
        match list(log).await {
            Ok(segments) => match segments.into_iter().find(|(id, _)| *id >= dropped_below) {
                Some((segment_id, path)) => {
                    let header = read_header(segment_id, path).await.ok().flatten();
                    let to = Position { segment_id, offset: FIRST_BLOCK };
                    Answer::Dropped { to, first_point: header.map(|header| header.first_point) }
                }
                None => Answer::End,
            },
            Err(error) => Answer::Failed(format!("{} cannot be listed: {error}", log.dir.display())),
        }
    }

    async fn look(&mut self, ask: &Ask) -> std::io::Result<Answer> {
        let (log, from) = (&*ask.log, ask.from);
        let mark = log.mark.get().end;
        if from >= mark {
            return Ok(Answer::End);
        }
        if from.segment_id < log.dropped_below() {
            return Ok(self.dropped(log).await);
        }
        if let Some(piece) = self.cached_at(log.log_id, from) {
            self.port.counters.shared.fetch_add(1, Ordering::Relaxed);
            return Ok(Answer::Piece { piece, from: from.offset });
        }
        let place = (log.log_id, from.segment_id);
        if !self.open.contains_key(&place) {
            // Before the first segment, or in one that is not there any more: the next one there is.
            let segments = list(log).await?;
            let Some((segment_id, path)) = segments.into_iter().find(|(id, _)| *id >= from.segment_id) else {
                return Ok(Answer::End);
            };
            if segment_id != from.segment_id {
                let next = Position { segment_id, offset: FIRST_BLOCK };
                return Ok(if next < mark { Answer::Skip(next) } else { Answer::End });
            }
            self.open_segment(place, path).await?;
        }
        // The durable blocks of a segment before the mark's end where a later segment's header says.
        let limit = if from.segment_id == mark.segment_id {
            mark.offset
        } else {
            match self.open.get(&place).and_then(|segment| segment.end) {
                Some(end) => end,
                None => {
                    let end = self.find_end(log, from.segment_id, mark.segment_id).await?;
                    let segment = self.open.get_mut(&place).expect("opened above");
                    *segment.end.insert(end.unwrap_or(segment.file_bytes))
                }
            }
        };
        let offset = from.offset.max(FIRST_BLOCK);
        let segment = self.open.get_mut(&place).expect("opened above");
        segment.used = Instant::now();
        let limit = limit.min(segment.file_bytes);
        if offset >= limit {
            if from.segment_id == mark.segment_id {
                return Ok(Answer::End);
            }
            return Ok(Answer::Skip(Position { segment_id: from.segment_id + 1, offset: FIRST_BLOCK }));
        }
        let names = self.names_until(log.log_id, from.segment_id, offset).await?;
        let len = ask.bytes_max.clamp(PAGE_BYTES, READ_BYTES_MAX);
        let Stretch { blocks, bytes, damage, end } = self.read_blocks(place, offset, limit, len).await?;
        if from.segment_id < log.dropped_below() {
            // Dropped during the read: what was read may be another segment's.
            return Ok(self.dropped(log).await);
        }
        for (from, to) in damage {
            self.note_damage(place, from, to);
        }
        for (header, at) in &blocks {
            let start = at + BLOCK_HEADER_BYTES;
            names.learn(&bytes[start..start + header.payload_bytes as usize]);
        }
        self.learned(place, &names, offset, end);
        let end = Position { segment_id: from.segment_id, offset: end };
        if blocks.is_empty() {
            return Ok(Answer::Skip(end));
        }
        let first = blocks[0].0.offset;
        let piece = Arc::new(Piece::new(log.log_id, end, bytes, blocks, names));
        self.keep((log.log_id, from.segment_id, first), piece.clone());
        Ok(Answer::Piece { piece, from: offset })
    }

    fn cached_at(&self, log_id: u32, from: Position) -> Option<Arc<Piece>> {
        let upto = (log_id, from.segment_id, from.offset);
        let (key, piece) = self.cache.range(..=upto).next_back()?;
        let same = (key.0, key.1) == (log_id, from.segment_id);
        (same && piece.has_block_at(from.offset)).then(|| piece.clone())
    }

    fn keep(&mut self, key: (u32, u64, u64), piece: Arc<Piece>) {
        self.cached_bytes += piece.bytes();
        match self.cache.insert(key, piece) {
            Some(before) => self.cached_bytes -= before.bytes(),
            None => self.cached.push_back((key, Instant::now())),
        }
        self.let_go();
    }

    /// Pieces beyond the bound, and those that nobody near can want any more.
    fn let_go(&mut self) {
        while let Some(&(oldest, since)) = self.cached.front()
            && (self.cached_bytes > CACHE_BYTES_MAX || since.elapsed() > KEEP_FOR)
        {
            self.cached.pop_front();
            if let Some(piece) = self.cache.remove(&oldest) {
                self.cached_bytes -= piece.bytes();
            }
        }
        self.port.counters.cached_bytes.store(self.cached_bytes as u64, Ordering::Relaxed);
    }

    /// The blocks between `from` and `limit`, about `len` bytes of them. What is not sound is passed over, page by page.
    async fn read_blocks(
        &mut self,
        (log_id, segment_id): Place,
        from: u64,
        limit: u64,
        len: usize,
    ) -> std::io::Result<Stretch> {
        let segment = self.open.get(&(log_id, segment_id)).expect("opened by the caller");
        let salt = segment.header.map(|header| header.salt);
        let ours = |header: &BlockHeader, at: u64| {
            (header.log_id, header.segment_id, header.offset) == (log_id, segment_id, at)
                && salt.is_none_or(|salt| header.salt == salt)
        };
        let mut want = len;
        let (mut blocks, mut damage) = (Vec::new(), Vec::new());
        let mut damaged_from = None;
        loop {
            let asked = want.min((limit - from) as usize).next_multiple_of(PAGE_BYTES);
            let bytes = match segment.file.read_at(from, asked).await {
                Ok(bytes) => bytes,
                // A bad sector costs its own page, not everything read along with it.
                Err(error) if self.is_bad_sector(&error, (log_id, segment_id), from) => {
                    let end = from + PAGE_BYTES as u64;
                    return Ok(Stretch { blocks, bytes: Vec::new(), damage: vec![(from, end)], end });
                }
                Err(error) => return Err(error),
            };
            self.unreadable = None;
            self.port.counters.reads.fetch_add(1, Ordering::Relaxed);
            self.port.counters.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if bytes.len() < asked {
                return Err(std::io::Error::other(format!("{} bytes of {asked} at {from}", bytes.len())));
            }
            let mut done = 0;
            while done < bytes.len() {
                let at = from + done as u64;
                match parse_block(&bytes[done..]) {
                    Ok((header, ..)) if ours(&header, at) => {
                        if let Some(began) = damaged_from.take() {
                            damage.push((began, at));
                        }
                        blocks.push((header, done));
                        done += header.block_bytes();
                    }
                    Err(BlockError::Payload)
                        if BlockHeader::parse(&bytes[done..]).is_ok_and(|(header, _)| {
                            let end = at + header.block_bytes() as u64;
                            ours(&header, at) && end > from + bytes.len() as u64 && end <= limit
                        }) =>
                    {
                        // Goes on behind what was read.
                        break;
                    }
                    _ => {
                        damaged_from.get_or_insert(at);
                        done += PAGE_BYTES;
                    }
                }
            }
            if blocks.is_empty()
                && done < bytes.len()
                && let Ok((header, _)) = BlockHeader::parse(&bytes[done..])
            {
                // A block longer than a read: once more, as much as it needs.
                want = done + header.block_bytes();
                damaged_from = None;
                damage.clear();
                continue;
            }
            if let Some(began) = damaged_from {
                damage.push((began, from + done as u64));
            }
            return Ok(Stretch { blocks, bytes, damage, end: from + done as u64 });
        }
    }

    /// EIO at one place, for long.
    fn is_bad_sector(&mut self, error: &std::io::Error, place: Place, at: u64) -> bool {
        const EIO: i32 = 5;
        let since = match self.unreadable {
            Some((known, offset, since)) if (known, offset) == (place, at) => since,
            _ => Instant::now(),
        };
        self.unreadable = Some((place, at, since));
        error.raw_os_error() == Some(EIO) && since.elapsed() > BAD_SECTOR_AFTER
    }

    fn note_damage(&self, (log_id, segment_id): Place, from: u64, to: u64) {
        self.port.counters.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            cause = "forward_damage",
            log = super::share::log_name(log_id),
            segment_id,
            from,
            to,
            "a part of the log is damaged; the sinks go on behind it, and what it held is counted as lost"
        );
    }

    /// The names of a segment with at least all that stand before `offset`.
    async fn names_until(&mut self, log_id: u32, segment_id: u64, offset: u64) -> std::io::Result<Arc<SegmentNames>> {
        let place = (log_id, segment_id);
        let known = self.names.get(&place).and_then(|known| Some((known.names.upgrade()?, known.upto)));
        let (names, upto) = known.unwrap_or_else(|| (SegmentNames::new(), FIRST_BLOCK));
        let mut at = upto;
        while at < offset {
            let Stretch { blocks, bytes, end, .. } = self.read_blocks(place, at, offset, READ_BYTES_MAX).await?;
            for (header, start) in &blocks {
                let start = start + BLOCK_HEADER_BYTES;
                names.learn(&bytes[start..start + header.payload_bytes as usize]);
            }
            at = end;
            executor::yield_now().await;
        }
        self.learned(place, &names, upto, at);
        Ok(names)
    }

    fn learned(&mut self, place: Place, names: &Arc<SegmentNames>, from: u64, to: u64) {
        let known = self.names.entry(place).or_insert(Known { names: Arc::downgrade(names), upto: FIRST_BLOCK });
        if !std::ptr::eq(known.names.as_ptr(), Arc::as_ptr(names)) {
            *known = Known { names: Arc::downgrade(names), upto: from };
        }
        if from <= known.upto {
            known.upto = known.upto.max(to);
        }
        // Segments that no piece is left of.
        self.names.retain(|_, known| known.names.strong_count() > 0);
    }

    async fn open_segment(&mut self, place: Place, path: PathBuf) -> std::io::Result<()> {
        let file = executor::Reader::open(&path).await?;
        let file_bytes = file.size_bytes().await?;
        let page = file.read_at(0, PAGE_BYTES).await?;
        let header = SegmentHeader::parse(&page).ok().filter(|header| header.segment_id == place.1);
        while self.open.len() >= OPEN_FILES_MAX
            && let Some((&least, _)) = self.open.iter().min_by_key(|(_, segment)| segment.used)
        {
            self.forget(least.0, least.1).await;
        }
        self.open.insert(place, OpenSegment { file, file_bytes, header, end: None, used: Instant::now() });
        Ok(())
    }

    /// Where the durable blocks of a segment end, from the first readable header behind it. `None`: none tells.
    async fn find_end(&mut self, log: &LogShare, segment_id: u64, upto: u64) -> std::io::Result<Option<u64>> {
        for (id, path) in list(log).await? {
            if id <= segment_id || id > upto {
                continue;
            }
            if let Some(header) = read_header(id, path).await? {
                return Ok(match header.previous_segment.cmp(&segment_id) {
                    std::cmp::Ordering::Equal => Some(header.previous_end),
                    // Nothing in it ever became durable.
                    std::cmp::Ordering::Less => Some(FIRST_BLOCK),
                    std::cmp::Ordering::Greater => None,
                });
            }
        }
        Ok(None)
    }

    async fn forget(&mut self, log_id: u32, segment_id: u64) {
        if let Some(segment) = self.open.remove(&(log_id, segment_id)) {
            segment.file.close().await;
        }
    }

    async fn close_unused(&mut self) {
        let unused =
            |(place, segment): (&Place, &OpenSegment)| (segment.used.elapsed() > CLOSE_AFTER).then_some(*place);
        for (log_id, segment_id) in self.open.iter().filter_map(unused).collect::<Vec<_>>() {
            self.forget(log_id, segment_id).await;
        }
    }

    pub async fn close(mut self) {
        for (_, segment) in self.open.drain() {
            segment.file.close().await;
        }
    }
}

/// `None`: it is blank, damaged, or another segment's.
async fn read_header(segment_id: u64, path: PathBuf) -> std::io::Result<Option<SegmentHeader>> {
    let file = executor::Reader::open(&path).await?;
    let page = file.read_at(0, PAGE_BYTES).await;
    file.close().await;
    Ok(SegmentHeader::parse(&page?).ok().filter(|header| header.segment_id == segment_id))
}

/// Elsewhere: where the disk hangs this call hangs with it.
async fn list(log: &LogShare) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let dir = log.dir.clone();
    executor::unblock(move || list_segments(&dir)).await
}
