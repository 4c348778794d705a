//! The reducer's thread: empties the mailboxes, keeps the fold clock, appends to the aggregate log, and tells the rest
//! of the process how far it is.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metricstream_shards::log::{BlockingLog, Position, ReadSpan};
use metricstream_shards::mailbox::{Doorbell, Mailbox};
use metricstream_shards::shard::settings::Shared;
use metricstream_shards::window::ShardMessage;
use metricstream_shards::window::protocol::{ClockEvent, FoldClock};

use crate::forward::share::LogShare;

use super::core::Closed;
use super::exposition::aggregates_exposition;
use super::{AggregateLog, Books, Kind, LogRefused, Progress, ReducerCore, Source};

/// Messages taken from one mailbox before the next has its turn.
const MESSAGES_A_ROUND: usize = 64;
const RESULTS_A_STEP: usize = 2_000;
const ADVANCE_EVERY: Duration = Duration::from_millis(200);
const CLOCK_EVERY: Duration = Duration::from_millis(100);
const SLEEP: Duration = Duration::from_millis(50);
/// After the log refused.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// What others may see of the reducer: replaced whole, a few times a second.
#[derive(Clone, Debug)]
pub struct View {
    pub books: Books,
    pub closed: Closed,
    pub series: usize,
    pub windows: usize,
    pub bytes: usize,
    pub rebuilding: bool,
    pub log_end_block: u64,
    pub log_segments: usize,
    pub log_bytes: u64,
    pub log_unavailable: bool,
    /// Readable parts of the aggregate log, oldest first, with the last stamp before each later one
    pub spans: Vec<(ReadSpan, i64)>,
    /// `/aggregates`, rendered
    pub newest: Arc<str>,
}

/// The two sides meet here; held for moments only.
pub type SharedView = Arc<Mutex<View>>;

pub struct Retention {
    pub bytes_max: u64,
    pub age_max: Duration,
}

pub struct Reducer {
    pub core: ReducerCore,
    pub clock: FoldClock,
    pub origin: Instant,
    pub sources: Vec<(Source, Arc<Mailbox<ShardMessage>>)>,
    pub bell: Arc<Doorbell>,
    pub shared: Arc<Shared>,
    pub view: SharedView,
    /// Set when the shards have ended: take what is left, then end
    pub stop: Arc<AtomicBool>,
    /// What the clock's start came to
    pub started: ClockEvent,
    /// `/aggregates` as last rendered, and of which version; begins as `None`
    pub rendered: Option<(u64, Arc<str>)>,
}

/// One segment of the aggregate log.
pub struct Segment {
    pub id: u64,
    pub path: PathBuf,
    /// No record is younger
    pub last_stamp_ns: i64,
    /// What it counts for against the bound
    pub bytes: u64,
}

/// The aggregate log as recovery found it.
pub struct Store {
    pub log: BlockingLog,
    pub retention: Retention,
    /// Files that can be used again
    pub unused: Vec<PathBuf>,
    /// Segments of earlier runs
    pub old: Vec<Segment>,
    /// What sinks still need of it
    pub share: Arc<LogShare>,
    /// At the bound the oldest goes whether all sinks have it or not
    pub drop_oldest: bool,
}

impl Reducer {
    pub fn run(mut self, store: Store) {
        self.bell.own();
        let mut log = Appender {
            log: store.log,
            segments: store.old.into(),
            retention: store.retention,
            refused: false,
            share: store.share,
            drop_oldest: store.drop_oldest,
        };
        for path in store.unused {
            log.log.recycle(path);
        }
        self.follow(self.started, &mut log);
        let (mut next_advance, mut next_clock) = (self.origin, self.origin);
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            let mut taken = 0;
            let (monotonic_ns, clock_ns) = self.now();
            for (source, mailbox) in &self.sources {
                for _ in 0..MESSAGES_A_ROUND {
                    let Some(message) = mailbox.receive() else { break };
                    self.core.apply(*source, message, monotonic_ns, clock_ns);
                    taken += 1;
                }
            }
            let now = Instant::now();
            if now >= next_clock {
                next_clock = now + CLOCK_EVERY;
                self.observe(&mut log);
            }
            if now >= next_advance || (stopping && taken == 0) {
                let (monotonic_ns, clock_ns) = self.now();
                self.core.want_floor(self.shared.wanted_floor_ns.load(Ordering::Relaxed));
                let progress = self.core.advance(monotonic_ns, clock_ns, &mut log, RESULTS_A_STEP);
                self.shared.floor_ns.store(self.core.floor_ns(), Ordering::Relaxed);
                self.shared.durable_floor_ns.store(self.core.closed().floor_ns, Ordering::Relaxed);
                next_advance = match progress {
                    Progress::Idle => now + ADVANCE_EVERY,
                    Progress::More => now,
                    Progress::Blocked => now + LOG_PAUSE,
                };
                if progress == Progress::Idle {
                    log.retain(clock_ns);
                    self.publish(&log);
                }
                if progress == Progress::Blocked {
                    self.publish(&log);
                }
                if stopping && taken == 0 && progress != Progress::More {
                    break;
                }
            } else if taken == 0 {
                let sources = &self.sources;
                self.bell.sleep(SLEEP.min(next_advance - now), || sources.iter().any(|(_, m)| m.depth() > 0));
            }
        }
        if let Err(error) = log.log.seal(self.now().1, &()) {
            tracing::warn!(%error, "the aggregate log's end cannot be sealed");
        }
        self.publish(&log);
    }

    fn now(&self) -> (i64, i64) {
        let monotonic_ns = self.origin.elapsed().as_nanos() as i64;
        (monotonic_ns, self.clock.now(monotonic_ns))
    }

    fn observe(&mut self, log: &mut Appender) {
        let (monotonic_ns, _) = self.now();
        let event = self.clock.observe(monotonic_ns, wall_ns());
        self.follow(event, log);
        self.shared.clock.store(self.clock.published(), Ordering::Relaxed);
    }

    fn follow(&mut self, event: ClockEvent, log: &mut Appender) {
        let (monotonic_ns, _) = self.now();
        match event {
            ClockEvent::Steady => {}
            ClockEvent::Held { ahead_ns } => tracing::warn!(
                cause = "clock",
                ahead_s = ahead_ns / 1_000_000_000,
                "the wall clock stepped forward; following it once it has held for the lateness"
            ),
            ClockEvent::Jumped { by_ns } => {
                tracing::warn!(by_s = by_ns / 1_000_000_000, "the fold clock follows the wall clock's step");
            }
            ClockEvent::Slowed { behind_ns } => tracing::warn!(
                cause = "clock",
                behind_s = behind_ns / 1_000_000_000,
                "the wall clock is behind; running at half speed until it has caught up"
            ),
            ClockEvent::EraStarted { era, from_ns, to_ns } => {
                tracing::error!(
                    era,
                    back_s = (from_ns - to_ns) / 1_000_000_000,
                    "the wall clock is behind the last stamps by more than the horizon: a new era of windows begins"
                );
                while self.core.start_era(era, from_ns, to_ns, monotonic_ns, log).is_err()
                    && !self.stop.load(Ordering::Acquire)
                {
                    std::thread::sleep(LOG_PAUSE);
                }
                self.shared.floor_ns.store(self.core.floor_ns(), Ordering::Relaxed);
            }
        }
    }

    fn publish(&mut self, log: &Appender) {
        // Rendered when it has changed: ten thousand outputs of rules are megabytes of text.
        if self.rendered.as_ref().is_none_or(|(version, _)| *version != self.core.newest_version()) {
            let text = aggregates_exposition(self.core.newest_of_rules());
            self.rendered = Some((self.core.newest_version(), text.into()));
        }
        let newest = self.rendered.as_ref().map_or_else(|| "".into(), |(_, text)| text.clone());
        let spans = log.log.writer().read_plan(Position::default());
        // The segment being written has no last stamp yet.
        let closed = log.segments.len().saturating_sub(1);
        let stamps: std::collections::HashMap<u64, i64> =
            log.segments.iter().take(closed).map(|segment| (segment.id, segment.last_stamp_ns)).collect();
        let view = View {
            books: self.core.books(),
            closed: self.core.closed(),
            series: self.core.series_count(),
            windows: self.core.window_count(),
            bytes: self.core.bytes(),
            rebuilding: self.core.rebuilding(),
            log_end_block: log.log.writer().durable_commit().0,
            log_segments: log.segments.len(),
            log_bytes: log.bytes(),
            log_unavailable: log.refused,
            spans: spans
                .into_iter()
                .map(|span| {
                    let last = stamps.get(&span.segment_id).copied().unwrap_or(i64::MAX);
                    (span, last)
                })
                .collect(),
            newest,
        };
        *self.view.lock().expect("nobody panics with the view in hand") = view;
    }
}

/// The aggregate log behind the reducer's trait, with its retention.
struct Appender {
    log: BlockingLog,
    /// The one being written last
    segments: VecDeque<Segment>,
    retention: Retention,
    refused: bool,
    share: Arc<LogShare>,
    drop_oldest: bool,
}

impl AggregateLog for Appender {
    fn append(&mut self, kind: Kind, stamp_ns: i64, results: u32, bytes: &[u8]) -> Result<(), LogRefused> {
        if self.is_held_full() {
            let oldest = self.segments[0].id;
            self.share.blame(oldest);
            tracing::warn!(
                cause = "aggregate_log_bound",
                sinks = self.share.holders(oldest).join(", "),
                bytes_max = self.retention.bytes_max,
                "the aggregate log is at its bound because these sinks have not read it; windows wait, and then clients \
                 get 503"
            );
            self.refused = true;
            return Err(LogRefused);
        }
        let appended = self.log.append(kind, stamp_ns, results, bytes);
        if appended.is_ok()
            && let Some(segment) = self.segments.back_mut()
        {
            segment.last_stamp_ns = segment.last_stamp_ns.max(stamp_ns);
        }
        self.noted(appended, "closed windows cannot be appended; trying again")
    }

    fn flush(&mut self) -> Result<(), LogRefused> {
        let flushed = AggregateLog::flush(&mut self.log);
        for span in self.log.writer().read_plan(Position::default()) {
            if self.segments.back().is_none_or(|segment| segment.id < span.segment_id) {
                let last_stamp_ns = self.segments.back().map_or(i64::MIN, |segment| segment.last_stamp_ns);
                let bytes = self.log.writer().config().segment_bytes;
                self.segments.push_back(Segment { id: span.segment_id, path: span.path, last_stamp_ns, bytes });
            }
        }
        self.noted(flushed, "closed windows cannot be made durable; trying again")
    }
}

impl Appender {
    fn noted(&mut self, result: Result<(), LogRefused>, what: &str) -> Result<(), LogRefused> {
        self.refused = result.is_err();
        if self.refused {
            tracing::error!(cause = "aggregate_log", "{what}");
        }
        result
    }

    /// Lets go of segments beyond the bounds. A restart needs the results above F: the newest two always stay.
    fn retain(&mut self, clock_ns: i64) {
        let oldest_kept_ns = clock_ns.saturating_sub(self.retention.age_max.as_nanos() as i64);
        while self.segments.len() > 2 {
            let full = self.is_full();
            let held = self.segments[0].id >= self.share.held_from();
            let goes = match (full, held) {
                (true, true) => self.drop_oldest,
                (true, false) => true,
                (false, _) => self.segments[0].last_stamp_ns < oldest_kept_ns && !held,
            };
            if !goes {
                break;
            }
            let Segment { id, path, .. } = self.segments.pop_front().expect("more than two");
            if held {
                tracing::warn!(
                    cause = "aggregate_log_dropped",
                    sinks = self.share.holders(id).join(", "),
                    "the aggregate log is at its bound: its oldest segment goes although these sinks have not read it"
                );
            }
            // Before the file is touched: a reader in it then knows what has become of it.
            self.share.drop_below(id + 1);
            self.log.writer_mut().forget_segments_below(id + 1);
            self.log.recycle(path);
        }
        if !self.is_held_full() {
            self.share.blame(0);
        }
    }

    /// One more than is on disk now: the next segment has to fit, too.
    fn is_full(&self) -> bool {
        self.bytes() + self.log.writer().config().segment_bytes > self.retention.bytes_max
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Another segment would be one too many, a sink keeps the oldest from going, and the last is nearly used up: what is
    /// left of it is for the records that are on their way.
    fn is_held_full(&self) -> bool {
        let held = self.segments.front().is_some_and(|segment| segment.id >= self.share.held_from());
        let used = self.log.writer().durable_end().offset;
        held && !self.drop_oldest && self.is_full() && used > self.log.writer().config().segment_bytes / 4 * 3
    }
}

pub fn wall_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}
