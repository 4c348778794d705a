//! The path of a window: partials in, merged by series; closed windows, their revisions and a mark record out.
//!
//! It promises:
//!
//! - What is logged for a window is a pure function of the points that were folded into it: the number of shards, their
//!   order and restarts do not show in its latest revision.
//! - A result is appended only if it is new or changed; F is durable before memory is freed by it; a window is closed
//!   for readers ([`ReducerCore::closed`]) only when its results and the mark record after them are durable.
//! - With or without quantiles: what was logged before the setting changed stays as it is until its points do.
//! - No step loses state when the log refuses: it is taken up again at the next [`ReducerCore::advance`].
//!
//! Order in the log: windows by end, the shorter first; in a window first the series by key, then the rules in
//! the order of the configuration, each one's outputs by key. Revisions follow as they arise.
//!
//! `intake` takes messages, `rounds` closes windows with `results`, `restart` takes up where a run before ended.

mod intake;
mod lengths;
mod restart;
mod results;
mod rounds;

use super::{
    aggregate_log::{AggregateLog, Kind, LogRefused},
    encode::{AggregatesEncoder, EraRecord, MarkRecord},
    record::{Flags, WindowRecord},
    recovery::Recovered,
    rules::Rule,
    series::{SeriesTable, Subject, Unpacked},
    windows::Windows,
};
use lengths::{Length, least_common_multiple, lengths, seconds};
use metricstream_shards::window::{
    protocol::{BEFORE_ALL_NS, Floor, MarkTable, SECOND_NS, Spans, align_down},
    summary::{Aggregates, Detail, Summary},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use lengths::LENGTHS_MAX;

const NS_PER_MS: i64 = 1_000_000;
/// A record is appended when it has this many bytes: far below what the log takes, far above its block.
const RECORD_BYTES: usize = 64 * 1024;
const NO_SERIES: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub struct Settings {
    pub spans: Spans,
    /// Window of the shards' partials
    pub base_s: u32,
    /// Windows of every series, multiples of the base
    pub windows_s: Vec<u32>,
    /// Whether series' own windows are logged, or only what rules make of them
    pub per_series: bool,
    pub rules: Vec<Rule>,
    /// The same as the shards fold with
    pub detail: Detail,
    /// Whether results are logged with what they can be merged from elsewhere
    pub keep_state: bool,
    /// Above this F rises, as far as M
    pub memory_bytes_max: usize,
    pub shards: u16,
    /// How many logs are folded again from F before M moves: one source each
    pub rebuilds: u16,
    pub epoch: u64,
}

/// Where a message comes from. Series numbers are the source's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Shard(u16),
    Rebuild(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do until time passes or messages come.
    Idle,
    /// Stopped at the given number of results; call again.
    More,
    /// The log refused; call again later.
    Blocked,
}

/// Points unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    pub counted: u64,
    /// Known identities; what a shard found to be repeats itself is not among them
    pub repeated: u64,
    /// Among the repeated: with another value
    pub conflicts: u64,
    /// Handed over after F had passed their window
    pub late_beyond: u64,
    /// Folded again after a restart, in none of the above
    pub refolded: u64,
    /// Waiting for the rebuild's end to be counted
    pub held: u64,
    /// Results appended for the first time, and as revisions
    pub results: u64,
    pub revisions: u64,
    pub incomplete_results: u64,
    /// Results whose sum is beyond f64
    pub sum_overflows: u64,
    pub damaged_results: u64,
    /// Times that memory raised F
    pub floor_raised_by_memory: u64,
}

/// Durable progress, for readers, shards and the recycling of segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    pub era: u32,
    pub m_ns: i64,
    pub floor_ns: i64,
}

pub struct ReducerCore {
    base_ns: i64,
    lateness_ns: i64,
    memory_bytes_max: usize,
    /// F that the logs' byte bound asks for
    wanted_floor_ns: i64,
    detail: Detail,
    keep_state: bool,
    epoch: u64,
    era: u32,
    lengths: Vec<Length>,
    series: SeriesTable,
    numbers: HashMap<Source, Vec<u32>>,
    marks: MarkTable,
    floor: Floor,
    rebuilds_open: u16,
    windows: Windows,
    /// Partials of shards while a rebuild is under way
    live: Windows,
    instances: BTreeMap<InstanceKey, Instance>,
    /// Windows with cells or earlier results that were not closed yet in this run
    unbegun: BTreeSet<InstanceKey>,
    /// Closed windows with changes that are not logged yet
    changed: BTreeSet<InstanceKey>,
    /// Closed without a stalled shard
    incomplete: BTreeSet<InstanceKey>,
    round: Option<Round>,
    emitting: Option<Emitting>,
    encoder: AggregatesEncoder,
    group: Option<(InstanceKey, Option<u32>)>,
    scratch: Summary,
    /// State of the result at hand, when it is kept
    state: Vec<u8>,
    last_mark_ns: i64,
    newest: BTreeMap<NewestKey, WindowRecord>,
    newest_pending: Vec<(NewestKey, WindowRecord)>,
    /// Goes up when `newest` changes
    newest_version: u64,
    closed: Closed,
    books: Books,
}

/// (rule, window, key)
type NewestKey = (u32, u32, Box<[u8]>);

/// End first: windows are closed in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InstanceKey {
    end_ns: i64,
    length_ns: i64,
}

impl InstanceKey {
    fn start_ns(self) -> i64 {
        self.end_ns - self.length_ns
    }
}

/// What is remembered of one window beside its cells. For most results that is nothing: revision 0, logged.
#[derive(Default)]
struct Instance {
    begun: bool,
    incomplete: bool,
    /// To be logged again; `true`: for the first time
    changed: HashMap<Subject, bool>,
    /// Of series: those above 0. Of rule outputs: all that were logged
    revisions: HashMap<Subject, u32>,
    /// From before the restart, not compared yet
    loaded: HashMap<Subject, LastResult>,
    /// From before the restart, with more points than the logs still hold
    damaged: HashMap<Subject, LastResult>,
}

#[derive(Clone, Copy)]
struct LastResult {
    aggregates: Aggregates,
    series: u64,
    revision: u32,
    flags: Flags,
}

struct Round {
    m_ns: i64,
    complete_ns: i64,
    mark_appended: bool,
}

struct Emitting {
    key: InstanceKey,
    subjects: Vec<(Subject, bool)>,
    next: usize,
}

impl ReducerCore {
    pub fn new(settings: Settings, recovered: Recovered, monotonic_ns: i64) -> ReducerCore {
        assert!(settings.base_s > 0, "a base window has a length");
        let lengths = lengths(&settings);
        let align_ns = lengths.iter().map(|l| l.length_ns).fold(seconds(settings.base_s), least_common_multiple);
        let held = settings.rebuilds > 0;
        let mut core = ReducerCore {
            base_ns: seconds(settings.base_s),
            lateness_ns: settings.spans.lateness_ns,
            memory_bytes_max: settings.memory_bytes_max,
            wanted_floor_ns: BEFORE_ALL_NS,
            detail: settings.detail,
            keep_state: settings.keep_state,
            epoch: settings.epoch,
            era: recovered.era,
            lengths,
            series: SeriesTable::new(settings.rules),
            numbers: HashMap::new(),
            marks: MarkTable::new(usize::from(settings.shards), recovered.m_ns, held, monotonic_ns, settings.spans),
            floor: Floor::new(recovered.floor_ns, align_ns, settings.spans),
            rebuilds_open: settings.rebuilds,
            windows: Windows::default(),
            live: Windows::default(),
            instances: BTreeMap::new(),
            unbegun: BTreeSet::new(),
            changed: BTreeSet::new(),
            incomplete: BTreeSet::new(),
            round: None,
            emitting: None,
            encoder: AggregatesEncoder::default(),
            group: None,
            scratch: Summary::new(settings.detail),
            state: Vec::new(),
            last_mark_ns: recovered.m_ns,
            newest: BTreeMap::new(),
            newest_pending: Vec::new(),
            newest_version: 0,
            closed: Closed { era: recovered.era, m_ns: recovered.m_ns, floor_ns: recovered.floor_ns },
            books: Books::default(),
        };
        core.load(recovered.results);
        if !held {
            core.finish_rebuild(monotonic_ns);
        }
        core
    }

    /// The fold clock went back: logs it, and starts M and F over from the new time. Not before `Ok` may anything be
    /// stamped in the era; after an error it is called again with the same arguments.
    pub fn start_era(
        &mut self,
        era: u32,
        from_ns: i64,
        to_ns: i64,
        monotonic_ns: i64,
        log: &mut impl AggregateLog,
    ) -> Result<(), LogRefused> {
        self.send_record(to_ns, log)?;
        if self.era != era {
            log.append(Kind::Era, to_ns, 0, &EraRecord { era, epoch: self.epoch, from_ns, to_ns }.encode())?;
            self.era = era;
            self.round = None;
            let m_ns = align_down(to_ns.saturating_sub(self.lateness_ns), SECOND_NS);
            self.marks.start_era(m_ns, monotonic_ns);
            self.floor.start_era(m_ns);
            self.last_mark_ns = BEFORE_ALL_NS;
        }
        let m_ns = self.marks.m_ns();
        if self.last_mark_ns != m_ns {
            let mark = MarkRecord { era, epoch: self.epoch, m_ns, floor_ns: self.floor.logged_ns() };
            log.append(Kind::Mark, to_ns, 0, &mark.encode())?;
            self.last_mark_ns = m_ns;
        }
        log.flush()?;
        self.commit(m_ns);
        Ok(())
    }

    /// M and F as far as they are durable.
    pub fn closed(&self) -> Closed {
        self.closed
    }

    /// F as shards should know it: points of windows that end at or before it come too late for any revision.
    pub fn floor_ns(&self) -> i64 {
        self.floor.logged_ns()
    }

    /// A log is at its byte bound: F should rise to here, as far as M lets it, so that segments can go.
    pub fn want_floor(&mut self, floor_ns: i64) {
        self.wanted_floor_ns = self.wanted_floor_ns.max(floor_ns);
    }

    pub fn books(&self) -> Books {
        self.books
    }

    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    /// Base windows held.
    pub fn window_count(&self) -> usize {
        self.windows.0.len() + self.live.0.len()
    }

    /// An estimate of all that is held, by which F is raised.
    pub fn bytes(&self) -> usize {
        self.windows.bytes() + self.live.bytes() + self.series.bytes()
    }

    pub fn rebuilding(&self) -> bool {
        self.rebuilds_open > 0
    }

    /// The newest closed window of every rule's outputs. The flag says that its rule has several windows.
    pub fn newest_of_rules(&self) -> impl Iterator<Item = (&WindowRecord, bool)> {
        let rules = self.series.rules();
        self.newest.iter().map(|((rule, ..), record)| (record, rules[*rule as usize].windows_s.len() > 1))
    }

    /// Another number: [`ReducerCore::newest_of_rules`] may say something else.
    pub fn newest_version(&self) -> u64 {
        self.newest_version
    }

    fn length(&self, length_ns: i64) -> &Length {
        self.lengths.iter().find(|l| l.length_ns == length_ns).expect("only configured lengths are closed")
    }
}

fn release(series: &mut SeriesTable, subject: Subject) {
    match subject.unpack() {
        Unpacked::Series(n) => series.release(n),
        Unpacked::Target(n) => series.release_target(n),
    }
}
