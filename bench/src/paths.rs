//! The paths of a shard, each set up so that one call does one measured step. The criterion benches time the steps,
//! `bench-counts` counts their instructions. A path is in its steady state once its constructor returns: its series
//! are known and its buffers have grown, unless it says otherwise.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use metricstream_shards::counters::Counters;
use metricstream_shards::decode::json::JsonDecoder;
use metricstream_shards::decode::line::LineDecoder;
use metricstream_shards::decode::{self, TimestampUnit};
use metricstream_shards::http::reply::OverQuota;
use metricstream_shards::http::{Assembler, Bounds, Inflater, Route, Router, Step};
use metricstream_shards::limiter::{self, ClientHash, ClientLimits, Decision, Limit};
use metricstream_shards::log::{Envelope, LogStart, LogWriter, Names, OpKind, PreparedSegment, WriterConfig};
use metricstream_shards::point::{
    Batch, FoldInput, Kind, Protocol, Rejections, SeriesId, SeriesRef, SeriesResolver as _,
};
use metricstream_shards::series::{ClientEntry, ClientProfile, ClientTable, SeriesBounds, SeriesTable};
use metricstream_shards::shard::caller::{Caller, Callers};
use metricstream_shards::shard::replies::Replies;
use metricstream_shards::shard::request::{Context, Now, Path, SeriesNames, Served};
use metricstream_shards::shard::settings::{Listener, Settings};
use metricstream_shards::window::fold::{Fold, FoldConfig};
use metricstream_shards::window::partial::ShardMessage;

use crate::inputs::{self, Format, Random, S_NS, SEEDS, START_NS};

/// Points that the decoders look up together; the benches of the table alone do as they do.
const GROUP: usize = 16;
/// A shard commits what came while the last commit was under way; this many requests is usual when it is busy.
pub const REQUESTS_A_COMMIT: usize = 64;

fn series_bounds(series: usize) -> SeriesBounds {
    SeriesBounds {
        series_max: series,
        series_per_client_max: series,
        cache_bytes_max: 512 << 20,
        cache_client_bytes_max: 512 << 20,
    }
}

fn client(clients: &mut ClientTable) -> &ClientEntry {
    clients.resolve("10.0.0.1", 1, |_| ClientProfile::default()).expect("a fine id")
}

/// Bodies to columns, over series that are all known.
pub struct Decode {
    format: Format,
    pub bodies: Vec<Vec<u8>>,
    next: usize,
    line: LineDecoder,
    json: JsonDecoder,
    pub series: SeriesTable,
    clients: ClientTable,
    pub batch: Batch,
    rejected: Rejections,
}

impl Decode {
    pub fn new(format: Format, points: usize, series: usize) -> Decode {
        Decode::of(format, inputs::bodies(format, series.div_ceil(points), points, series), points, series)
    }

    /// `bodies` of `points` points each, with at most `series` series in them.
    pub fn of(format: Format, bodies: Vec<Vec<u8>>, points: usize, series: usize) -> Decode {
        let mut this = Decode {
            format,
            next: 0,
            line: LineDecoder::new(),
            json: JsonDecoder::new(),
            series: SeriesTable::new(SEEDS, series_bounds(series), &[]),
            clients: ClientTable::new(SEEDS, 16),
            batch: Batch::default(),
            rejected: Rejections::default(),
            bodies,
        };
        for _ in 0..this.bodies.len() {
            assert_eq!(this.step(), points, "a good body");
        }
        this
    }

    /// Decodes the next body; how many points it had.
    pub fn step(&mut self) -> usize {
        let body = &self.bodies[self.next];
        self.next = (self.next + 1) % self.bodies.len();
        self.batch.clear();
        self.rejected.clear();
        let bounds = decode::Bounds::default();
        self.series.begin_request(client(&mut self.clients), 1);
        let (series, batch, rejected) = (&mut self.series, &mut self.batch, &mut self.rejected);
        match self.format {
            Format::Line => self.line.decode(body, TimestampUnit::Ns, &bounds, series, batch, rejected),
            Format::Json => self
                .json
                .decode(body, TimestampUnit::ByMagnitude, &bounds, series, batch, rejected)
                .expect("a good document"),
        }
        self.batch.len()
    }

    /// Mean length of a body.
    pub fn body_bytes(&self) -> u64 {
        self.bodies.iter().map(Vec::len).sum::<usize>() as u64 / self.bodies.len() as u64
    }
}

/// The table of live series alone: requests of 100 raw keys in an order of their own.
pub struct SeriesLookup {
    table: SeriesTable,
    clients: ClientTable,
    /// The keys one behind the other in the order in which they are asked for, as they would lie in bodies
    keys: Vec<u8>,
    ends: Vec<usize>,
    order: Vec<u32>,
    at: usize,
    overflow: Vec<u8>,
}

impl SeriesLookup {
    pub const REQUEST_POINTS: usize = 100;

    /// Nothing is known yet: the first [`SeriesLookup::make`] of each key is a miss.
    pub fn empty(series: usize) -> SeriesLookup {
        let all = inputs::raw_keys(series);
        let order = Random::new(2).order(series);
        let (mut keys, mut ends) = (Vec::new(), Vec::with_capacity(series));
        for &n in &order {
            keys.extend_from_slice(&all[n as usize]);
            ends.push(keys.len());
        }
        let mut this = SeriesLookup {
            table: SeriesTable::new(SEEDS, series_bounds(series), &[]),
            clients: ClientTable::new(SEEDS, 16),
            keys,
            ends,
            order,
            at: 0,
            overflow: Vec::new(),
        };
        this.begin();
        this
    }

    pub fn known(series: usize) -> SeriesLookup {
        let mut this = SeriesLookup::empty(series);
        let mut made = 0;
        while made < series {
            made += this.make();
        }
        this.at = 0;
        this
    }

    fn begin(&mut self) {
        self.table.begin_request(client(&mut self.clients), 1);
    }

    fn key(keys: &[u8], ends: &[usize], at: usize) -> std::ops::Range<usize> {
        debug_assert!(ends[at] <= keys.len());
        (if at == 0 { 0 } else { ends[at - 1] })..ends[at]
    }

    fn request(&mut self) -> std::ops::Range<usize> {
        let from = if self.at >= self.ends.len() { 0 } else { self.at };
        self.at = (from + Self::REQUEST_POINTS).min(self.ends.len());
        from..self.at
    }

    /// Looks up the next request's series, all known; how many.
    pub fn hit(&mut self) -> usize {
        let request = self.request();
        self.begin();
        let mut found = 0;
        for from in request.clone().step_by(GROUP) {
            let group = from..(from + GROUP).min(request.end);
            let mut hashes = [0; GROUP];
            for (hash, at) in hashes.iter_mut().zip(group.clone()) {
                *hash = self.table.hash(&self.keys[Self::key(&self.keys, &self.ends, at)]);
                self.table.prefetch(*hash);
            }
            for (&hash, at) in hashes.iter().zip(group) {
                let key = Self::key(&self.keys, &self.ends, at);
                found += usize::from(self.table.get(hash, &self.keys[key]).is_some());
            }
        }
        assert_eq!(found, request.len(), "seen before");
        found
    }

    /// Meets the next request's series for the first time; how many.
    pub fn make(&mut self) -> usize {
        let request = self.request();
        self.begin();
        for at in request.clone() {
            let raw = &self.keys[Self::key(&self.keys, &self.ends, at)];
            let series = self.order[at] as usize;
            let hash = self.table.hash(raw);
            assert!(self.table.get(hash, raw).is_none(), "never seen");
            let (name, tags) = (inputs::name(series), inputs::tags(series));
            let mut borrowed: Vec<(&[u8], &[u8])> =
                tags.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())).collect();
            self.table.insert(hash, raw, name.as_bytes(), &mut borrowed, &mut self.overflow).expect("below the limit");
        }
        self.table.drain_created().for_each(drop);
        request.len()
    }
}

/// Records into windows, and windows out.
pub struct Windows {
    fold: Fold,
    order: Vec<u32>,
    batch: Batch,
    random: Random,
    at: usize,
    /// Rounds through all series since the start
    round: i64,
    rounds_a_window: i64,
}

const WINDOW_NS: i64 = 10 * S_NS;

impl Windows {
    pub const BATCH_POINTS: usize = 100;

    /// `points` of each series fall into a window.
    pub fn new(series: usize, points: i64) -> Windows {
        let config = FoldConfig { points_bytes_max: 4 << 30, ..FoldConfig::default() };
        let mut this = Windows {
            fold: Fold::new(config, 0),
            order: Random::new(5).order(series),
            batch: Batch::default(),
            random: Random::new(6),
            at: 0,
            round: 0,
            rounds_a_window: points,
        };
        for _ in 0..2 {
            this.fill_window();
            this.take_window();
        }
        this
    }

    /// Makes the next batch: not part of what is measured.
    pub fn prepare(&mut self) {
        if self.at == self.order.len() {
            self.at = 0;
            self.round += 1;
        }
        let to = (self.at + Self::BATCH_POINTS).min(self.order.len());
        let time_ns = START_NS + self.round * WINDOW_NS / self.rounds_a_window;
        self.batch.clear();
        for &series in &self.order[self.at..to] {
            let value = 50.0 + self.random.below(100_000) as f64 / 1000.0;
            self.batch.push(SeriesRef::Known(SeriesId(series)), time_ns, Kind::Float, value.to_bits());
        }
        self.at = to;
    }

    /// Folds the batch that was prepared; how many points.
    pub fn fold(&mut self) -> u64 {
        let stamp_ns = self.batch.timestamps_ns[0];
        let input = FoldInput {
            protocol: Protocol::Influx,
            client: "10.0.0.1",
            stamp_ns,
            same_timestamp_all: false,
            batch: &self.batch,
        };
        self.fold.fold(&input).folded
    }

    /// All points of the next window: not part of what is measured.
    pub fn fill_window(&mut self) {
        loop {
            self.prepare();
            self.fold();
            if self.at == self.order.len() && (self.round + 1) % self.rounds_a_window == 0 {
                return;
            }
        }
    }

    /// Takes everything that is open; how many cells.
    pub fn take_window(&mut self) -> u64 {
        let mut cells = 0;
        while let Some(message) = self.fold.take_ready(i64::MAX, 512) {
            if let ShardMessage::Partials(partials) = message {
                cells += partials.cells.len() as u64;
            }
        }
        cells
    }
}

/// The log without a disk: the writer is told that all it asks for was done.
pub struct Log {
    pub writer: LogWriter,
}

impl Log {
    fn new() -> Log {
        let mut this = Log { writer: LogWriter::new(WriterConfig::new(0, 7, 9), LogStart::empty()) };
        this.offer();
        this
    }

    fn offer(&mut self) {
        Self::offer_to(&mut self.writer);
    }

    fn offer_to(writer: &mut LogWriter) {
        let segment = PreparedSegment {
            // Never written: operations are only completed. It is there because a segment has a descriptor.
            file: Arc::new(File::open("/dev/null").expect("/dev/null opens")),
            segment_id: writer.next_segment_id(),
            path: PathBuf::from("segment"),
            bytes: writer.config().segment_bytes,
        };
        writer.offer_segment(segment).expect("it is the next one and of the right length");
    }

    /// Header, CRC and bookkeeping of what was appended, up to "durable". Bytes that would have been written.
    pub fn commit(writer: &mut LogWriter, names: &impl Names) -> u64 {
        let mut bytes = 0;
        loop {
            if writer.needs_segment() {
                Self::offer_to(writer);
            }
            let Some(op) = writer.next_op(names) else { break };
            let result = match op.kind {
                OpKind::Write { len, .. } => {
                    bytes += u64::from(len);
                    len as i32
                }
                OpKind::Flush => 0,
            };
            writer.complete(op.id, result);
        }
        while let Some(block) = writer.take_durable() {
            writer.recycle(block);
        }
        bytes
    }
}

/// Batches into the log, their series named already.
pub struct Append {
    log: Log,
    decode: Decode,
}

impl Append {
    pub fn new(points: usize, series: usize) -> Append {
        let mut this = Append { log: Log::new(), decode: Decode::new(Format::Line, points, series) };
        for _ in 0..2 * this.decode.bodies.len() {
            this.prepare();
            this.append();
            this.commit();
        }
        this
    }

    pub fn prepare(&mut self) {
        self.decode.step();
    }

    pub fn append(&mut self) -> usize {
        let envelope = Envelope { route: Route::V1Write as u8, ..Envelope::of("10.0.0.1", Protocol::Influx) };
        let names = SeriesNames(&self.decode.series);
        self.log.writer.append_batch(&envelope, START_NS, &self.decode.batch, &names).expect("the log has room");
        self.decode.batch.len()
    }

    pub fn commit(&mut self) -> u64 {
        Log::commit(&mut self.log.writer, &SeriesNames(&self.decode.series))
    }
}

/// Whole requests as a shard serves them, from received bytes to the rendered answer: head, routing, caller, limiter,
/// decode, append. Without the ring and the disk.
pub struct Requests {
    pub requests: Vec<Vec<u8>>,
    next: usize,
    assembler: Assembler,
    path: Path,
    settings: Settings,
    counters: Counters,
    listener: Listener,
    caller: Caller,
    replies: Replies,
    sent: Vec<u8>,
}

impl Requests {
    pub fn new(format: Format, points: usize, series: usize) -> Requests {
        let settings = settings(series);
        let mut table = SeriesTable::new(SEEDS, settings.series, &[]);
        let callers = Callers::new(&settings, &mut table);
        let path = Path {
            callers,
            limiter: limiter::Local::new(Arc::new(limiter::Shared::new(1024)), 1024),
            series: table,
            log: Log::new().writer,
            log_stalled: false,
            inflater: Inflater::new().expect("memory for a decompressor"),
            lines: LineDecoder::new(),
            json: JsonDecoder::new(),
            batch: Batch::default(),
            rejected: Rejections::default(),
        };
        let bodies = inputs::bodies(format, series.div_ceil(points), points, series);
        let mut this = Requests {
            requests: bodies.iter().map(|body| inputs::request(format, body)).collect(),
            next: 0,
            assembler: Assembler::new(0),
            path,
            settings,
            counters: Counters::new(Route::ALL.len() + 1),
            listener: Listener {
                // Never used: what a socket would bring comes as an argument.
                socket: OwnedFd::from(File::open("/dev/null").expect("/dev/null opens")),
                router: Router::default(),
                memory: false,
                trust_client_id: false,
            },
            caller: Caller::new("10.0.0.1".parse().expect("an address")),
            replies: Replies::default(),
            sent: Vec::new(),
        };
        for n in 0..2 * this.requests.len().max(REQUESTS_A_COMMIT) {
            assert_eq!(this.serve(), points as u64, "a good request");
            if n % REQUESTS_A_COMMIT == 0 {
                this.commit();
            }
        }
        this.commit();
        this
    }

    /// Serves the next request; how many points it appended.
    pub fn serve(&mut self) -> u64 {
        let input = &self.requests[self.next];
        self.next = (self.next + 1) % self.requests.len();
        let step = self.assembler.push(input, 0, &self.settings.bounds);
        let Step::Request { body, .. } = step else { panic!("a whole request, not {step:?}") };
        let cx = Context {
            settings: &self.settings,
            counters: &self.counters,
            listener: &self.listener,
            caller: &self.caller,
            now: Now { monotonic_ns: 1_000_000_000, stamp_ns: START_NS },
            draining: false,
            up_s: 1,
        };
        let raw = self.assembler.body(&body, input);
        match self.path.serve(cx, self.assembler.head(), raw, &mut self.replies) {
            Served::Appended { points, .. } => points,
            Served::Answered => panic!("the request was refused"),
        }
    }

    /// Makes durable what was appended, and lets the answers go.
    pub fn commit(&mut self) -> u64 {
        self.path.series.drain_created().for_each(drop);
        let bytes = Log::commit(&mut self.path.log, &SeriesNames(&self.path.series));
        self.replies.release(self.path.log.durable_commit().0);
        self.sent.clear();
        self.replies.take(&mut self.sent);
        assert!(self.sent.starts_with(b"HTTP/1.1 20"), "the answers may leave once their points are durable");
        bytes
    }
}

/// What a shard without an operator's wishes works by, with room for these series and no quota.
fn settings(series: usize) -> Settings {
    Settings {
        version: "bench".to_string(),
        bounds: Bounds::default(),
        decode: decode::Bounds::default(),
        json_unit: TimestampUnit::ByMagnitude,
        json_same_timestamp_all: false,
        influx_same_timestamp_all: false,
        over_quota: OverQuota::Defer,
        databases: vec!["metrics".to_string()],
        auth_required: false,
        clients: Vec::new(),
        // As an operator would set it for a busy client: it is asked, and has leases, but is never met.
        default_limits: generous_limits(),
        clients_max: 1024,
        static_tags: Vec::new(),
        series: series_bounds(series),
        series_idle_after_s: 3600,
        fold: FoldConfig::default(),
        pipelined_bytes_max: 1 << 20,
        unread_reply_bytes_max: 1 << 20,
        connections_max: 1024,
        connections_per_address_max: 1024,
        io_deadline_ns: 30 * S_NS as u64,
        memory_flush_within_ns: S_NS as u64,
        unflushed_bytes_max: 64 << 20,
        drain_within_ns: S_NS as u64,
        seeds: SEEDS,
        started: "2023-11-14T22:13:20Z".to_string(),
    }
}

fn generous_limits() -> ClientLimits {
    let limit = Some(Limit::per_second(1_000_000_000));
    ClientLimits { requests: limit, points: limit, bytes: limit }
}

/// The limiter alone: clients that are all below their limits, taking turns.
pub struct Admit {
    local: limiter::Local,
    limits: ClientLimits,
    clients: u64,
    next: u64,
    now_ns: u64,
}

impl Admit {
    pub fn new(clients: u64) -> Admit {
        let mut this = Admit {
            local: limiter::Local::new(Arc::new(limiter::Shared::new(clients as usize)), clients as usize),
            limits: generous_limits(),
            clients,
            next: 0,
            now_ns: 1_000_000_000,
        };
        for _ in 0..4 * clients {
            this.step();
        }
        this
    }

    /// One request of 100 points and 7 KB, 10 us after the last one: asked before, charged after.
    pub fn step(&mut self) {
        self.next = (self.next + 1) % self.clients;
        self.now_ns += 10_000;
        let client = ClientHash(self.next.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let decision = self.local.admit(client, &self.limits, self.now_ns);
        assert!(matches!(decision, Decision::Admit { .. }), "the limits are far away");
        self.local.charge(client, &self.limits, 100, 7_000, self.now_ns);
        self.local.tick(self.now_ns);
    }
}
