//! The protocol over random schedules in virtual time: shards that stall, mailboxes that lag, a log that refuses, a wall
//! clock that steps, crashes and restarts with another number of shards. The oracle is a direct fold of all durable
//! points. Every failure names its seed.

use super::{
    aggregate_log::{Kind, MemoryLog},
    core::{Progress, ReducerCore, Settings, Source},
    encode::{self, AggregatesEncoder, MarkRecord},
    record::{Flags, WindowRecord},
    recovery::{Recovered, Recovery},
    rules::{Glob, Group, Rule},
};
use metricstream_shards::{
    point::series_key,
    random::Random,
    window::{
        partial::{Partials, ShardMessage},
        protocol::{FoldClock, SECOND_NS, Spans, align_down, shard_mark},
        set::{Cell, Identity},
        summary::{Detail, Summary},
    },
};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

const S: i64 = SECOND_NS;
const BASE_NS: i64 = 10 * S;
const EPOCH_S: i64 = 1_000_000_020;

#[derive(Clone, Debug)]
struct Point {
    key: Vec<u8>,
    timestamp_ns: i64,
    value: f64,
    anonymous: bool,
}

struct Stamped {
    stamp_ns: i64,
    points: Vec<Point>,
}

/// What a shard folds into: the cells of open windows, by start and key.
#[derive(Default)]
struct FoldSim {
    cells: BTreeMap<(i64, Vec<u8>), Cell>,
    numbers: HashMap<Vec<u8>, u32>,
}

impl FoldSim {
    fn fold(&mut self, points: &[Point]) {
        for p in points {
            let start_ns = align_down(p.timestamp_ns, BASE_NS);
            let cell = self.cells.entry((start_ns, p.key.clone())).or_default();
            cell.insert(identity(p, start_ns), p.value, Detail::Quantiles);
        }
    }

    fn take_ready(&mut self, mark_ns: i64, out: &mut impl FnMut(ShardMessage)) {
        let ready: Vec<_> = self.cells.keys().filter(|(start, _)| start + BASE_NS <= mark_ns).cloned().collect();
        for place in ready {
            let cell = self.cells.remove(&place).expect("just seen");
            let (window_start_ns, key) = place;
            let fresh = self.numbers.len() as u32;
            let id = *self.numbers.entry(key.clone()).or_insert(fresh);
            if id == fresh {
                out(ShardMessage::NewSeries { id, key: key.into() });
            }
            out(ShardMessage::Partials(Partials { window_start_ns, cells: vec![(id, cell)] }));
        }
    }
}

fn identity(p: &Point, start_ns: i64) -> Identity {
    if p.anonymous { Identity::ANONYMOUS } else { Identity::at_offset((p.timestamp_ns - start_ns) as u64) }
}

struct ShardSim {
    fold: FoldSim,
    folded: usize,
    mailbox: VecDeque<ShardMessage>,
    stalled_until_ns: i64,
}

struct RebuildSim {
    fold: FoldSim,
    next: usize,
    end: usize,
    done: bool,
}

/// What a schedule may contain.
#[derive(Clone, Copy)]
struct Faults {
    delay_max_s: u64,
    stalls: bool,
    crashes: bool,
    refusals: bool,
    clock_steps: bool,
    damage: bool,
    /// Each restart may be with or without quantiles
    switches: bool,
    memory_bytes_max: usize,
}

const CALM: Faults = Faults {
    delay_max_s: 10,
    stalls: false,
    crashes: false,
    refusals: false,
    clock_steps: false,
    damage: false,
    switches: false,
    memory_bytes_max: usize::MAX,
};

struct World {
    rng: Random,
    faults: Faults,
    logs: Vec<Vec<Stamped>>,
    shards: Vec<ShardSim>,
    rebuilds: Vec<RebuildSim>,
    log: MemoryLog,
    core: ReducerCore,
    monotonic_ns: i64,
    wall_shift_ns: i64,
    clock: FoldClock,
    epoch: u64,
    sent: Vec<Point>,
    last_m_ns: i64,
    last_floor_ns: i64,
    late_beyond: u64,
    counted: u64,
    marks_seen: usize,
    detail: Detail,
}

fn rules() -> Vec<Rule> {
    vec![
        Rule {
            id: "by region".into(),
            name: None,
            match_name: Glob::new("api.*"),
            match_tags: vec![],
            group: Group::By(vec!["region".into()]),
            windows_s: vec![10, 60],
        },
        Rule {
            id: "all".into(),
            name: Some("everything".into()),
            match_name: Glob::new("*"),
            match_tags: vec![],
            group: Group::Without(vec!["host".into(), "region".into()]),
            windows_s: vec![30],
        },
    ]
}

fn settings(shards: usize, rebuilds: usize, epoch: u64, memory_bytes_max: usize, detail: Detail) -> Settings {
    Settings {
        spans: Spans::default(),
        base_s: 10,
        windows_s: vec![10, 60],
        per_series: true,
        rules: rules(),
        detail,
        keep_state: true,
        memory_bytes_max,
        shards: shards as u16,
        rebuilds: rebuilds as u16,
        epoch,
    }
}

impl World {
    fn new(seed: u64, shards: usize, faults: Faults) -> World {
        World {
            rng: Random(seed),
            faults,
            logs: (0..4).map(|_| Vec::new()).collect(),
            shards: new_shards(shards, &[]),
            rebuilds: Vec::new(),
            log: MemoryLog::default(),
            core: ReducerCore::new(
                settings(shards, 0, 1, faults.memory_bytes_max, Detail::Quantiles),
                Recovered::default(),
                0,
            ),
            monotonic_ns: 0,
            wall_shift_ns: EPOCH_S * S,
            clock: FoldClock::start(0, EPOCH_S * S, None, 0, Spans::default()).0,
            epoch: 1,
            sent: Vec::new(),
            last_m_ns: i64::MIN,
            last_floor_ns: i64::MIN,
            late_beyond: 0,
            counted: 0,
            marks_seen: 0,
            detail: Detail::Quantiles,
        }
    }

    fn clock_ns(&self) -> i64 {
        self.clock.now(self.monotonic_ns)
    }

    fn true_ns(&self) -> i64 {
        self.monotonic_ns + EPOCH_S * S
    }

    /// One batch of points, new and repeated, for one shard.
    fn receive(&mut self) {
        let now_ns = self.true_ns();
        let mut points = Vec::new();
        for _ in 0..=self.rng.below(4) {
            if !self.sent.is_empty() && self.rng.one_in(4) {
                let recent = self.sent.len().min(20) as u64;
                let mut again = self.sent[self.sent.len() - 1 - self.rng.below(recent) as usize].clone();
                if again.anonymous || now_ns - again.timestamp_ns > self.faults.delay_max_s as i64 * S {
                    continue;
                }
                if self.rng.one_in(2) {
                    again.value = self.value();
                }
                points.push(again);
                continue;
            }
            let delay_s = if self.rng.one_in(4) { self.rng.below(self.faults.delay_max_s) } else { self.rng.below(3) };
            let ahead_s = if self.rng.one_in(20) { self.rng.below(40) as i64 } else { 0 };
            let (host, region) = (self.rng.below(3), self.rng.below(2));
            let name = if self.rng.one_in(3) { "cpu" } else { "api.latency" };
            let mut key = Vec::new();
            let (host, region) = (format!("h{host}"), format!("r{region}"));
            series_key::write(
                &mut key,
                b"c1",
                name.as_bytes(),
                &[(b"host", host.as_bytes()), (b"region", region.as_bytes())],
            );
            points.push(Point {
                key,
                timestamp_ns: now_ns - delay_s as i64 * S + ahead_s * S - self.rng.below(10) as i64 * 100_000_000,
                value: self.value(),
                anonymous: self.rng.one_in(6),
            });
        }
        self.sent.extend(points.iter().cloned());
        let shard = self.rng.below(self.shards.len() as u64) as usize;
        let stamp_ns = self.clock_ns();
        self.logs[shard].push(Stamped { stamp_ns, points });
    }

    fn value(&mut self) -> f64 {
        [0.1, -0.0, 0.0, 1e-9, 1e300, -7.25, 3.0, 1234.5678][self.rng.below(8) as usize]
    }

    fn step(&mut self) {
        self.monotonic_ns += self.rng.below(1500) as i64 * 1_000_000;
        if self.faults.clock_steps && self.rng.one_in(40) {
            let to_s = self.rng.below(80) as i64 - 20;
            self.wall_shift_ns = (EPOCH_S + to_s) * S;
        }
        self.clock.observe(self.monotonic_ns, self.monotonic_ns + self.wall_shift_ns);
        for _ in 0..self.rng.below(3) {
            self.receive();
        }
        self.run_shards(true);
        if self.faults.refusals && self.rng.one_in(6) {
            self.log.refusals = self.rng.below(3) as u32;
            self.log.flush_refusals = self.rng.below(3) as u32;
        }
        let results_max = 1 + self.rng.below(40) as usize;
        // Crashes are likelier in between an append and its flush, where they do most harm.
        let odds = if self.advance(results_max) == Progress::Blocked { 8 } else { 70 };
        if self.faults.crashes && self.rng.one_in(odds) {
            self.crash();
        }
    }

    fn run_shards(&mut self, lag: bool) {
        let clock_ns = self.clock_ns();
        for (n, shard) in self.shards.iter_mut().enumerate() {
            if lag && self.faults.stalls && self.rng.one_in(50) {
                shard.stalled_until_ns = self.monotonic_ns + self.rng.below(30) as i64 * S;
            }
            if lag && self.monotonic_ns < shard.stalled_until_ns {
                continue;
            }
            let log = &self.logs[n];
            let keep = if lag { self.rng.below(2) as usize } else { 0 };
            while shard.folded + keep < log.len() {
                shard.fold.fold(&log[shard.folded].points);
                shard.folded += 1;
            }
            let oldest = log.get(shard.folded).map(|r| r.stamp_ns);
            let mark_ns = shard_mark(clock_ns, oldest, Spans::default().lateness_ns);
            let mailbox = &mut shard.mailbox;
            shard.fold.take_ready(mark_ns, &mut |message| mailbox.push_back(message));
            mailbox.push_back(ShardMessage::Mark { mark_ns });
            let deliver = if lag { self.rng.below(mailbox.len() as u64 + 1) as usize } else { mailbox.len() };
            for message in mailbox.drain(..deliver) {
                self.core.apply(Source::Shard(n as u16), message, self.monotonic_ns, clock_ns);
            }
        }
        for (n, rebuild) in self.rebuilds.iter_mut().enumerate() {
            if rebuild.done || lag && self.rng.one_in(2) {
                continue;
            }
            let source = Source::Rebuild(n as u16);
            if rebuild.next < rebuild.end {
                let until = if lag { (rebuild.next + 20).min(rebuild.end) } else { rebuild.end };
                self.logs[n][rebuild.next..until].iter().for_each(|r| rebuild.fold.fold(&r.points));
                rebuild.next = until;
            }
            // Also in pieces: a rebuild may hand over a window before it has seen all of its points.
            let everything = rebuild.next == rebuild.end;
            let upto_ns = if everything { i64::MAX } else { clock_ns - 60 * S };
            let (core, monotonic_ns) = (&mut self.core, self.monotonic_ns);
            rebuild.fold.take_ready(upto_ns, &mut |message| core.apply(source, message, monotonic_ns, clock_ns));
            if everything {
                self.core.apply(source, ShardMessage::Drained, self.monotonic_ns, clock_ns);
                rebuild.done = true;
            }
        }
    }

    fn advance(&mut self, results_max: usize) -> Progress {
        let clock_ns = self.clock_ns();
        let before = self.log.records.len();
        let progress = self.core.advance(self.monotonic_ns, clock_ns, &mut self.log, results_max);
        self.check_quantiles(before);
        let closed = self.core.closed();
        assert!(closed.m_ns >= self.last_m_ns, "M went back");
        assert!(closed.floor_ns >= self.last_floor_ns, "F went back");
        assert!(closed.floor_ns <= closed.m_ns);
        (self.last_m_ns, self.last_floor_ns) = (closed.m_ns, closed.floor_ns);
        for (kind, bytes) in &self.log.records[self.marks_seen..self.log.durable] {
            if *kind == Kind::Mark {
                let mark = MarkRecord::decode(bytes).expect("just written");
                assert!(mark.m_ns <= closed.m_ns, "M is published late, never early");
            }
        }
        self.marks_seen = self.log.durable;
        progress
    }

    /// What is appended has quantiles as configured; what was damaged cannot get back what it never had.
    fn check_quantiles(&self, from: usize) {
        for (_, bytes) in self.log.records[from..].iter().filter(|(kind, _)| *kind == Kind::Aggregates) {
            encode::decode_aggregates(bytes, &mut |view| {
                let has = view.aggregates.quantiles.is_some();
                assert!(has == (self.detail == Detail::Quantiles) || !has && view.flags.damaged, "{view:?}");
            })
            .expect("just written");
        }
    }

    fn crash(&mut self) {
        let books = self.core.books();
        self.late_beyond += books.late_beyond;
        self.counted += books.counted;
        let more = self.rng.below((self.log.records.len() - self.log.durable) as u64 + 1) as usize;
        self.log.crash(more);
        self.marks_seen = self.marks_seen.min(self.log.durable);
        let mut recovery = Recovery::default();
        for (kind, bytes) in &self.log.records {
            recovery.feed(*kind, bytes).expect("our own records");
        }
        let recovered = recovery.finish();
        assert!(recovered.m_ns >= self.last_m_ns, "what was published is durable");
        self.epoch += 1;
        if self.faults.damage {
            let log = self.rng.below(4) as usize;
            if !self.logs[log].is_empty() {
                let at = self.rng.below(self.logs[log].len() as u64) as usize;
                self.logs[log].remove(at);
            }
        }
        if self.faults.switches && self.rng.one_in(2) {
            self.detail = if self.detail == Detail::Plain { Detail::Quantiles } else { Detail::Plain };
        }
        let shards = 1 + self.rng.below(4) as usize;
        let last_stamp = self.logs.iter().filter_map(|log| log.last()).map(|r| r.stamp_ns).max();
        let wall_ns = self.monotonic_ns + self.wall_shift_ns;
        let start = FoldClock::start(self.monotonic_ns, wall_ns, last_stamp, self.clock.era(), Spans::default());
        assert_eq!(start.0.era(), self.clock.era(), "these steps are within the horizon");
        self.clock = start.0;
        let from_ns = recovered.floor_ns.saturating_sub(600 * S);
        self.rebuilds = self
            .logs
            .iter()
            .map(|log| RebuildSim {
                fold: FoldSim::default(),
                next: log.partition_point(|r| r.stamp_ns < from_ns),
                end: log.len(),
                done: false,
            })
            .collect();
        self.core = ReducerCore::new(
            settings(shards, self.logs.len(), self.epoch, self.faults.memory_bytes_max, self.detail),
            recovered,
            self.monotonic_ns,
        );
        self.shards = new_shards(shards, &self.logs);
    }

    /// Faults end, time passes until every window is closed.
    fn settle(&mut self) {
        (self.log.refusals, self.log.flush_refusals) = (0, 0);
        for _ in 0..14 {
            self.monotonic_ns += 10 * S;
            self.clock.observe(self.monotonic_ns, self.monotonic_ns + self.wall_shift_ns);
            self.run_shards(false);
            while self.advance(usize::MAX) != Progress::Idle {}
        }
        let books = self.core.books();
        self.late_beyond += books.late_beyond;
    }

    fn latest(&self) -> BTreeMap<Place, WindowRecord> {
        let mut latest: BTreeMap<Place, WindowRecord> = BTreeMap::new();
        for (kind, bytes) in &self.log.records[..self.log.durable] {
            if *kind == Kind::Aggregates {
                encode::decode_aggregates(bytes, &mut |view| {
                    let record = view.to_record();
                    if let Some(old) = latest.insert(place(&record), record.clone()) {
                        assert_eq!(old.revision + 1, record.revision, "revisions count up one by one");
                    } else {
                        assert_eq!(record.revision, 0);
                    }
                })
                .expect("our own records");
            }
        }
        latest
    }

    /// A direct fold of all points that are in the logs.
    fn oracle(&self) -> BTreeMap<Place, WindowRecord> {
        let mut fold = FoldSim::default();
        self.logs.iter().flatten().for_each(|r| fold.fold(&r.points));
        let mut sums: BTreeMap<Place, (Summary, BTreeSet<Vec<u8>>)> = BTreeMap::new();
        for ((start_ns, key), cell) in &fold.cells {
            assert!(!cell.is_unchecked(), "schedules stay within the sets");
            let mut add = |window_s: u32, rule: Option<&str>, out_key: &[u8]| {
                let start_ms = align_down(*start_ns, i64::from(window_s) * S) / 1_000_000;
                let place = (start_ms, window_s, rule.map(Into::into), out_key.into());
                let (summary, series) =
                    sums.entry(place).or_insert_with(|| (Summary::new(Detail::Quantiles), BTreeSet::new()));
                summary.add_cell(cell);
                series.insert(key.clone());
            };
            add(10, None, key);
            add(60, None, key);
            let parsed = series_key::parse(key).expect("ours");
            for rule in rules() {
                if let Some(target) = rule.target_key(&parsed) {
                    rule.windows_s.iter().for_each(|&window_s| add(window_s, Some(&rule.id), &target));
                }
            }
        }
        let results = sums.into_iter().map(|(place, (summary, series))| {
            let (start_ms, window_s, rule, key) = place.clone();
            let series = if rule.is_some() { series.len() as u64 } else { 1 };
            let aggregates = summary.aggregates().expect("not empty");
            let record = WindowRecord {
                key,
                rule,
                window_s,
                start_ms,
                aggregates,
                series,
                era: 0,
                revision: 0,
                flags: Flags::default(),
            };
            (place, record)
        });
        results.collect()
    }

    /// Windows that end at or before `floor_ns` are left out.
    fn check(&self, floor_ns: i64, seed: u64) {
        let above = |r: &&WindowRecord| r.end_ms() * 1_000_000 > floor_ns;
        let (latest, oracle) = (self.latest(), self.oracle());
        for expected in oracle.values().filter(above) {
            let got = latest.get(&place(expected));
            let same = got.is_some_and(|got| {
                // Of a result without quantiles, all the rest.
                got.aggregates.same_values(&expected.aggregates)
                    && (self.faults.switches || got.aggregates.quantiles.is_some())
                    && (got.series, got.flags) == (expected.series, expected.flags)
            });
            assert!(same, "seed {seed}: expected {expected:?}\ngot {got:?}");
        }
        let extra: Vec<_> = latest.values().filter(above).filter(|r| !oracle.contains_key(&place(r))).collect();
        assert!(extra.is_empty(), "seed {seed}: {extra:?}");
    }
}

/// (start, window, rule, key)
type Place = (i64, u32, Option<Box<str>>, Box<[u8]>);

fn place(r: &WindowRecord) -> Place {
    (r.start_ms, r.window_s, r.rule.clone(), r.key.clone())
}

fn new_shards(count: usize, logs: &[Vec<Stamped>]) -> Vec<ShardSim> {
    let folded = |n: usize| logs.get(n).map_or(0, Vec::len);
    (0..count)
        .map(|n| ShardSim {
            fold: FoldSim::default(),
            folded: folded(n),
            mailbox: VecDeque::new(),
            stalled_until_ns: 0,
        })
        .collect()
}

fn run(seed: u64, shards: usize, steps: usize, faults: Faults) -> World {
    let mut world = World::new(seed, shards, faults);
    for _ in 0..steps {
        world.step();
    }
    world.settle();
    world
}

const ROUGH: Faults = Faults {
    delay_max_s: 100,
    stalls: true,
    crashes: true,
    refusals: true,
    clock_steps: true,
    damage: false,
    switches: false,
    memory_bytes_max: usize::MAX,
};

#[test]
fn latest_revisions_equal_a_direct_fold_whatever_happened() {
    for seed in 0..600 {
        let world = run(seed, 1 + (seed % 4) as usize, 120, ROUGH);
        assert_eq!(world.late_beyond, 0, "seed {seed}: delays are within the horizon");
        world.check(i64::MIN, seed);
    }
}

#[test]
fn no_window_above_the_floor_misses_a_durable_point() {
    let mut late_beyond = 0;
    for seed in 0..150 {
        let world = run(seed, 1 + (seed % 4) as usize, 500, Faults { delay_max_s: 800, ..ROUGH });
        late_beyond += world.late_beyond;
        world.check(world.core.closed().floor_ns, seed);
    }
    assert!(late_beyond > 0, "the schedules reach below the floor");
}

#[test]
fn memory_raises_the_floor_and_nothing_above_it_is_missing() {
    let mut raised = 0;
    for seed in 0..200 {
        let world = run(seed, 2, 200, Faults { memory_bytes_max: 20_000, crashes: false, ..ROUGH });
        raised += world.core.books().floor_raised_by_memory;
        world.check(world.core.closed().floor_ns, seed);
        assert!(world.core.window_count() < 40, "seed {seed}");
    }
    assert!(raised > 0);
}

#[test]
fn quantiles_may_come_and_go_with_every_restart() {
    let mut kinds = [0, 0];
    for seed in 0..300 {
        let damage = seed % 3 == 0;
        let world = run(seed, 1 + (seed % 4) as usize, 150, Faults { switches: true, damage, ..ROUGH });
        if !damage {
            world.check(i64::MIN, seed);
        }
        world.latest().values().for_each(|r| kinds[usize::from(r.aggregates.quantiles.is_some())] += 1);
    }
    assert!(kinds.iter().all(|&n| n > 1000), "{kinds:?}");
}

#[test]
fn any_number_of_shards_gives_the_same_bytes() {
    for seed in 0..40 {
        let mut reference: Option<Vec<u8>> = None;
        for shards in [1, 2, 4] {
            let mut world = World::new(seed, 1, CALM);
            for _ in 0..150 {
                world.step();
            }
            // The same points, dealt out anew in another order of arrival within the lateness.
            let mut points = std::mem::take(&mut world.logs).into_iter().flatten().collect::<Vec<_>>();
            let mut again = World::new(seed ^ shards as u64, shards, CALM);
            let end_ns = world.monotonic_ns;
            while again.monotonic_ns < end_ns + S {
                again.monotonic_ns += S;
                again.clock.observe(again.monotonic_ns, again.monotonic_ns + again.wall_shift_ns);
                let now_ns = again.clock_ns();
                let (mut due, rest): (Vec<_>, Vec<_>) = points.into_iter().partition(|r| r.stamp_ns <= now_ns);
                points = rest;
                while !due.is_empty() {
                    let record = due.swap_remove(again.rng.below(due.len() as u64) as usize);
                    let shard = again.rng.below(shards as u64) as usize;
                    again.logs[shard].push(Stamped { stamp_ns: now_ns, ..record });
                }
                again.run_shards(true);
                again.advance(usize::MAX);
            }
            again.settle();
            again.check(i64::MIN, seed);
            let bytes = bytes_of(&again.latest());
            assert_eq!(*reference.get_or_insert_with(|| bytes.clone()), bytes, "seed {seed}, {shards} shards");
        }
    }
}

/// As they would be logged, the revision aside.
fn bytes_of(latest: &BTreeMap<Place, WindowRecord>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = AggregatesEncoder::default();
    for r in latest.values() {
        encoder.begin(r.rule.as_deref(), r.window_s, r.start_ms, r.era);
        encoder.push(&r.key, 0, r.flags, r.series, &r.aggregates, &[]);
        out.extend_from_slice(encoder.bytes());
    }
    out
}

#[test]
fn after_damage_the_larger_count_stays_and_is_incomplete() {
    let mut damaged = 0;
    for seed in 0..300 {
        let world = run(seed, 2, 200, Faults { damage: true, stalls: false, clock_steps: false, ..ROUGH });
        let mut counts: HashMap<Place, u64> = HashMap::new();
        for (kind, bytes) in &world.log.records {
            if *kind == Kind::Aggregates {
                encode::decode_aggregates(bytes, &mut |view| {
                    let before = counts.insert(place(&view.to_record()), view.aggregates.count).unwrap_or(0);
                    assert!(view.aggregates.count >= before, "seed {seed}: a count fell");
                    assert!(!view.flags.damaged || view.flags.incomplete);
                })
                .expect("our own records");
            }
        }
        let oracle = world.oracle();
        for (place, record) in world.latest() {
            let left = oracle.get(&place).map_or(0, |r| r.aggregates.count);
            if left < record.aggregates.count && record.end_ms() * 1_000_000 > world.last_floor_ns {
                // Lost after it was published: either it says so, or it was lost after the last restart's look.
                damaged += u64::from(record.flags.damaged);
            }
        }
    }
    assert!(damaged > 0, "the schedules damage published windows");
}

#[test]
fn a_restart_without_news_appends_no_result_whatever_its_setting_of_quantiles() {
    for detail in [Detail::Quantiles, Detail::Plain] {
        let mut world = run(5, 2, 100, CALM);
        let before = world.log.records.len();
        world.detail = detail;
        world.crash();
        world.settle();
        let results = world.log.records[before..].iter().filter(|(kind, _)| *kind == Kind::Aggregates).count();
        assert_eq!(results, 0);
        assert!(world.core.books().refolded > 0);
        assert_eq!(world.core.books().counted, 0);
    }
}
