//! The path of a window: partials in, merged by series; closed windows, their revisions and a mark record out.
//!
//! It promises:
//!
//! - What is logged for a window is a pure function of the points that were folded into it: the number of shards, their
//!   order and restarts do not show in its latest revision.
//! - A result is appended only if it is new or changed; F is durable before memory is freed by it; a window is closed
//!   for readers ([`ReducerCore::closed`]) only when its results and the mark record after them are durable.
//! - No step loses state when the log refuses: it is taken up again at the next [`ReducerCore::advance`].
//!
//! Order in the log: windows by end, the shorter first; in a window first the series by key, then the rules in
//! the order of the configuration, each one's outputs by key. Revisions follow as they arise.

use super::{
    aggregate_log::{AggregateLog, Kind, LogRefused},
    encode::{AggregatesEncoder, EraRecord, MarkRecord},
    record::{Flags, WindowRecord},
    recovery::Recovered,
    rules::Rule,
    series::{SeriesTable, Subject, Unpacked},
    windows::Windows,
};
use metricstream_shards::{
    point::series_key::{self, OVERFLOW_NAME},
    window::{
        partial::ShardMessage,
        protocol::{BEFORE_ALL_NS, Floor, MarkTable, SECOND_NS, Spans, align_down},
        set::Cell,
        state,
        summary::{Aggregates, Summary},
    },
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

const NS_PER_MS: i64 = 1_000_000;
/// A record is appended when it has this many bytes: far below what the log takes, far above its block.
const RECORD_BYTES: usize = 64 * 1024;

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
    keep_state: bool,
    /// F that the logs' byte bound asks for
    wanted_floor_ns: i64,
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

struct Length {
    window_s: u32,
    length_ns: i64,
    per_series: bool,
    /// By rule
    rules: Vec<bool>,
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
            keep_state: settings.keep_state,
            wanted_floor_ns: BEFORE_ALL_NS,
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
            scratch: Summary::new(),
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

    /// Takes one message of a mailbox. `clock_ns` is the fold clock's now.
    pub fn apply(&mut self, source: Source, message: ShardMessage, monotonic_ns: i64, clock_ns: i64) {
        match message {
            ShardMessage::NewSeries { id, key } => {
                let series = self.series.acquire(&key);
                let numbers = self.numbers.entry(source).or_default();
                if numbers.len() <= id as usize {
                    numbers.resize(id as usize + 1, NO_SERIES);
                }
                let before = std::mem::replace(&mut numbers[id as usize], series);
                if before != NO_SERIES {
                    self.series.release(before);
                }
            }
            ShardMessage::ForgetSeries { id } => {
                if let Some(number) = self.numbers.get_mut(&source).and_then(|n| n.get_mut(id as usize)) {
                    let series = std::mem::replace(number, NO_SERIES);
                    if series != NO_SERIES {
                        self.series.release(series);
                    }
                }
            }
            ShardMessage::Partials(partials) => {
                for (id, cell) in partials.cells {
                    let numbers = self.numbers.get(&source).map_or(&[][..], Vec::as_slice);
                    let series = numbers.get(id as usize).copied().unwrap_or(NO_SERIES);
                    assert!(series != NO_SERIES, "a series is announced before its first partial");
                    self.take_cell(source, partials.window_start_ns, series, cell);
                }
            }
            ShardMessage::OverflowPartials(partials) => {
                for (client, cell) in partials.cells {
                    let mut key = Vec::with_capacity(client.len() + OVERFLOW_NAME.len() + 1);
                    series_key::write(&mut key, client.as_bytes(), OVERFLOW_NAME.as_bytes(), &[]);
                    // Held by its cells only: overflow series have no number.
                    let series = self.series.acquire(&key);
                    self.take_cell(source, partials.window_start_ns, series, cell);
                    self.series.release(series);
                }
            }
            ShardMessage::Mark { mark_ns } => {
                if let Source::Shard(shard) = source {
                    self.marks.set(usize::from(shard), mark_ns, monotonic_ns, clock_ns);
                }
            }
            ShardMessage::Drained => match source {
                Source::Shard(shard) => self.marks.drained(usize::from(shard)),
                Source::Rebuild(_) => {
                    for series in self.numbers.remove(&source).unwrap_or_default() {
                        if series != NO_SERIES {
                            self.series.release(series);
                        }
                    }
                    self.rebuilds_open = self.rebuilds_open.checked_sub(1).expect("a rebuild ends once");
                    if self.rebuilds_open == 0 {
                        self.finish_rebuild(monotonic_ns);
                    }
                }
            },
        }
    }

    /// Appends what is due: at most `results_max` results, then says [`Progress::More`]. Once a second of fold time is
    /// enough: revisions of a window are gathered that long.
    pub fn advance(
        &mut self,
        monotonic_ns: i64,
        clock_ns: i64,
        log: &mut impl AggregateLog,
        results_max: usize,
    ) -> Progress {
        match self.try_advance(monotonic_ns, clock_ns, log, results_max) {
            Ok(progress) => progress,
            Err(LogRefused) => Progress::Blocked,
        }
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

    fn try_advance(
        &mut self,
        monotonic_ns: i64,
        clock_ns: i64,
        log: &mut impl AggregateLog,
        results_max: usize,
    ) -> Result<Progress, LogRefused> {
        if self.round.is_none() && !self.begin_round(monotonic_ns) {
            return Ok(Progress::Idle);
        }
        let mut left = results_max.max(1);
        loop {
            if self.emitting.is_none() {
                match self.next_due() {
                    Some(key) => self.begin_instance(key),
                    None => break,
                }
            }
            while let Some((key, subject, first)) = self.next_subject() {
                if left == 0 {
                    return Ok(Progress::More);
                }
                if self.encoder.bytes().len() >= RECORD_BYTES || self.group != Some((key, self.rule_of(subject))) {
                    self.send_record(clock_ns, log)?;
                }
                left -= 1;
                self.emit(key, subject, first);
                self.emitting.as_mut().expect("a subject was next").next += 1;
            }
            self.emitting = None;
        }
        self.send_record(clock_ns, log)?;
        self.finish_round(clock_ns, log)?;
        Ok(Progress::Idle)
    }

    /// A round works with one M from its first result to its mark record.
    fn begin_round(&mut self, monotonic_ns: i64) -> bool {
        let marks = self.marks.advance(monotonic_ns);
        if self.marks.held() {
            return false;
        }
        let m_ns = align_down(marks.m_ns, SECOND_NS);
        let moved = m_ns > self.last_mark_ns;
        // A rebuild has results to log although M stands where it was.
        let rebuilt = self.unbegun.first().is_some_and(|key| key.end_ns <= m_ns);
        if !moved && !rebuilt {
            return false;
        }
        self.round = Some(Round { m_ns, complete_ns: marks.complete_ns, mark_appended: false });
        // A mark a base window even when there is nothing to say: readers wait for time to pass, not only for points.
        let crossed = align_down(m_ns, self.base_ns) > align_down(self.last_mark_ns, self.base_ns);
        if !crossed && self.next_due().is_none() {
            self.round = None;
        }
        self.round.is_some()
    }

    /// The first window by end that has something to log.
    fn next_due(&self) -> Option<InstanceKey> {
        let round = self.round.as_ref()?;
        let (m_ns, complete_ns) = (round.m_ns, round.complete_ns);
        let first = |set: &BTreeSet<InstanceKey>, limit_ns: i64| set.first().copied().filter(|k| k.end_ns <= limit_ns);
        [first(&self.unbegun, m_ns), first(&self.changed, m_ns), first(&self.incomplete, complete_ns.min(m_ns))]
            .into_iter()
            .flatten()
            .min()
    }

    fn begin_instance(&mut self, key: InstanceKey) {
        let round = self.round.as_ref().expect("windows are closed in rounds");
        let first_time = self.unbegun.remove(&key);
        let completed = self.incomplete.contains(&key) && key.end_ns <= round.complete_ns;
        self.changed.remove(&key);
        let all = first_time || completed;
        let mut subjects = if all { self.subjects(key) } else { Vec::new() };
        let instance = self.instances.entry(key).or_default();
        if first_time {
            instance.begun = true;
            instance.incomplete = key.end_ns > round.complete_ns;
            if instance.incomplete {
                self.incomplete.insert(key);
            }
            subjects.extend(instance.loaded.keys().map(|&subject| (subject, true)));
        } else if completed {
            instance.incomplete = false;
            self.incomplete.remove(&key);
            subjects.iter_mut().for_each(|(s, first)| *first = instance.changed.get(s).copied().unwrap_or(false));
        }
        if !all {
            subjects.extend(instance.changed.iter().map(|(&subject, &first)| (subject, first)));
        }
        self.series.order();
        self.series.sort_subjects(&mut subjects);
        subjects.dedup_by_key(|(subject, _)| *subject);
        // A second pass over the same window starts at the first key again, so in a record of its own.
        self.group = None;
        self.emitting = Some(Emitting { key, subjects, next: 0 });
    }

    /// All series and rule outputs with points in a window.
    fn subjects(&self, key: InstanceKey) -> Vec<(Subject, bool)> {
        let length = self.length(key.length_ns);
        let mut members: Vec<u32> = Vec::new();
        for (_, window) in self.windows.0.range(key.start_ns()..key.end_ns) {
            members.extend(window.cells.keys());
        }
        if key.length_ns > self.base_ns {
            members.sort_unstable();
            members.dedup();
        }
        let mut targets: HashSet<u32> = HashSet::new();
        if length.rules.iter().any(|&wanted| wanted) {
            for &series in &members {
                for &target in self.series.targets_for(series) {
                    if length.rules[self.series.target_at(target).rule as usize] {
                        targets.insert(target);
                    }
                }
            }
        }
        let mut subjects = Vec::with_capacity(members.len() + targets.len());
        if length.per_series {
            subjects.extend(members.into_iter().map(|series| (Subject::series(series), true)));
        }
        subjects.extend(targets.into_iter().map(|target| (Subject::target(target), true)));
        subjects
    }

    fn next_subject(&self) -> Option<(InstanceKey, Subject, bool)> {
        let emitting = self.emitting.as_ref()?;
        let &(subject, first) = emitting.subjects.get(emitting.next)?;
        Some((emitting.key, subject, first))
    }

    fn rule_of(&self, subject: Subject) -> Option<u32> {
        match subject.unpack() {
            Unpacked::Series(_) => None,
            Unpacked::Target(target) => Some(self.series.target_at(target).rule),
        }
    }

    /// Puts one result into the open record, unless it says nothing new.
    fn emit(&mut self, key: InstanceKey, subject: Subject, first: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut state = std::mem::take(&mut self.state);
        state.clear();
        let computed = self.compute(key, subject, &mut scratch, self.keep_state.then_some(&mut state));
        (self.scratch, self.state) = (scratch, state);
        let instance = self.instances.get_mut(&key).expect("a window is begun before its results");
        instance.changed.remove(&subject);
        let loaded = instance.loaded.remove(&subject);
        if loaded.is_some() {
            release(&mut self.series, subject);
        }
        let damaged = instance.damaged.get(&subject);
        let mut result = match (computed, damaged) {
            // The larger count stays; of what state, only the log before the damage knew.
            (Some(computed), Some(last)) if computed.aggregates.count < last.aggregates.count => {
                self.state.clear();
                *last
            }
            (None, Some(last)) => {
                self.state.clear();
                *last
            }
            (Some(computed), _) => computed,
            (None, None) => return,
        };
        result.flags.damaged |= damaged.is_some();
        result.flags.incomplete = instance.incomplete || result.flags.damaged;
        let is_target = matches!(subject.unpack(), Unpacked::Target(_));
        let mut last_revision = instance.revisions.get(&subject).copied();
        if let Some(last) = loaded {
            last_revision = Some(last.revision);
            if last.revision > 0 || is_target {
                instance.revisions.insert(subject, last.revision);
            }
            let same = last.aggregates.same_bits(&result.aggregates)
                && (last.series, last.flags) == (result.series, result.flags);
            if same {
                return self.remember_newest(key, subject, last.revision, &result);
            }
        }
        let known = last_revision.is_some() || !is_target && !first;
        let revision = if known { last_revision.unwrap_or(0) + 1 } else { 0 };
        if revision > 0 || is_target {
            instance.revisions.insert(subject, revision);
        }
        if known {
            self.books.revisions += 1;
        } else {
            self.books.results += 1;
        }
        self.books.incomplete_results += u64::from(result.flags.incomplete);
        self.books.damaged_results += u64::from(result.flags.damaged);
        self.books.sum_overflows += u64::from(result.aggregates.sum.is_infinite());
        self.encode(key, subject, revision, &result);
        self.remember_newest(key, subject, revision, &result);
    }

    fn encode(&mut self, key: InstanceKey, subject: Subject, revision: u32, result: &LastResult) {
        let rule = self.rule_of(subject);
        if self.encoder.is_empty() {
            let rule_id = rule.map(|rule| &*self.series.rules()[rule as usize].id);
            let window_s = self.length(key.length_ns).window_s;
            self.encoder.begin(rule_id, window_s, key.start_ns() / NS_PER_MS, self.era);
            self.group = Some((key, rule));
        }
        let series_key = match subject.unpack() {
            Unpacked::Series(series) => &self.series.key(series)[..],
            Unpacked::Target(target) => &self.series.target_at(target).key[..],
        };
        self.encoder.push(series_key, revision, result.flags, result.series, &result.aggregates, &self.state);
    }

    /// For scrapes: the newest window of each output, visible when the round is durable.
    fn remember_newest(&mut self, key: InstanceKey, subject: Subject, revision: u32, result: &LastResult) {
        let Unpacked::Target(target) = subject.unpack() else { return };
        let target = self.series.target_at(target);
        let window_s = self.length(key.length_ns).window_s;
        let record = WindowRecord {
            key: target.key.clone(),
            rule: Some(self.series.rules()[target.rule as usize].id.clone()),
            window_s,
            start_ms: key.start_ns() / NS_PER_MS,
            aggregates: result.aggregates,
            series: result.series,
            era: self.era,
            revision,
            flags: result.flags,
        };
        self.newest_pending.push(((target.rule, window_s, target.key.clone()), record));
    }

    /// The result as the cells say; `None` without points. `state`: where what it can be merged from is to be put.
    fn compute(
        &self,
        key: InstanceKey,
        subject: Subject,
        scratch: &mut Summary,
        state: Option<&mut Vec<u8>>,
    ) -> Option<LastResult> {
        let last = |aggregates, series, unchecked| LastResult {
            aggregates,
            series,
            revision: 0,
            flags: Flags { unchecked, ..Flags::default() },
        };
        let windows = || self.windows.0.range(key.start_ns()..key.end_ns).map(|(_, window)| &window.cells);
        match subject.unpack() {
            Unpacked::Series(series) if key.length_ns == self.base_ns => {
                let cell = windows().next()?.get(&series)?;
                if let Some(state) = state.filter(|_| cell.count() > 1) {
                    scratch.add_cell(cell);
                    state::put(scratch, state);
                    scratch.clear();
                }
                Some(last(cell.aggregates()?, 1, cell.is_unchecked()))
            }
            Unpacked::Series(series) => {
                let mut unchecked = false;
                for cell in windows().filter_map(|cells| cells.get(&series)) {
                    scratch.add_cell(cell);
                    unchecked |= cell.is_unchecked();
                }
                let aggregates = (scratch.count() > 0).then(|| scratch.aggregates()).flatten();
                if let Some(state) = state.filter(|_| scratch.count() > 1) {
                    state::put(scratch, state);
                }
                scratch.clear();
                Some(last(aggregates?, 1, unchecked))
            }
            Unpacked::Target(target) => {
                let (mut reported, mut unchecked) = (0, false);
                for series in &self.series.target_at(target).members {
                    let before = scratch.count();
                    for cell in windows().filter_map(|cells| cells.get(series)) {
                        scratch.add_cell(cell);
                        unchecked |= cell.is_unchecked();
                    }
                    reported += u64::from(scratch.count() > before);
                }
                let aggregates = (scratch.count() > 0).then(|| scratch.aggregates()).flatten();
                if let Some(state) = state.filter(|_| scratch.count() > 1) {
                    state::put(scratch, state);
                }
                scratch.clear();
                Some(last(aggregates?, reported, unchecked))
            }
        }
    }

    /// Appends the open record, if there is one. When the log refuses, it stays as it is.
    fn send_record(&mut self, clock_ns: i64, log: &mut impl AggregateLog) -> Result<(), LogRefused> {
        if !self.encoder.is_empty() {
            log.append(Kind::Aggregates, clock_ns, self.encoder.entries(), self.encoder.bytes())?;
            self.encoder.clear();
        }
        Ok(())
    }

    /// The mark record, the flush, and only then the freeing.
    fn finish_round(&mut self, clock_ns: i64, log: &mut impl AggregateLog) -> Result<(), LogRefused> {
        let round = self.round.as_ref().expect("a round is under way");
        let m_ns = round.m_ns;
        if !round.mark_appended {
            let by_horizon_ns = self.floor.propose(m_ns, BEFORE_ALL_NS);
            let floor_ns = self.floor.propose(m_ns, self.budget_floor_ns());
            self.books.floor_raised_by_memory += u64::from(floor_ns > by_horizon_ns);
            let mark = MarkRecord { era: self.era, epoch: self.epoch, m_ns, floor_ns };
            log.append(Kind::Mark, clock_ns, 0, &mark.encode())?;
            self.last_mark_ns = m_ns;
            self.round.as_mut().expect("a round is under way").mark_appended = true;
        }
        log.flush()?;
        self.round = None;
        self.commit(m_ns);
        Ok(())
    }

    /// Everything appended is durable: readers may see it, and what F has passed is freed.
    fn commit(&mut self, m_ns: i64) {
        let floor_ns = self.floor.commit();
        self.closed = Closed { era: self.era, m_ns, floor_ns };
        self.newest_version += u64::from(!self.newest_pending.is_empty());
        for (key, record) in self.newest_pending.drain(..) {
            let newer = |old: &WindowRecord| (old.era, old.start_ms) <= (record.era, record.start_ms);
            if self.newest.get(&key).is_none_or(newer) {
                self.newest.insert(key, record);
            }
        }
        let frozen_before = self.windows.0.len() + self.instances.len();
        while let Some(entry) = self.windows.0.first_entry()
            && entry.key().saturating_add(self.base_ns) <= floor_ns
        {
            entry.remove().cells.into_keys().for_each(|series| self.series.release(series));
        }
        while let Some(entry) = self.instances.first_entry()
            && entry.key().end_ns <= floor_ns
        {
            let instance = entry.remove();
            let left = instance.loaded.into_keys().chain(instance.damaged.into_keys());
            left.for_each(|subject| release(&mut self.series, subject));
        }
        for set in [&mut self.unbegun, &mut self.changed, &mut self.incomplete] {
            while set.first().is_some_and(|key| key.end_ns <= floor_ns) {
                set.pop_first();
            }
        }
        if self.windows.0.len() + self.instances.len() < frozen_before {
            self.newest_version += 1;
            self.newest.retain(|_, record| record.end_ms().saturating_mul(NS_PER_MS) > floor_ns);
            self.series.sweep();
        }
    }

    /// The floor below which enough would be freed to come back under the bound.
    fn budget_floor_ns(&self) -> i64 {
        let mut over = self.bytes().saturating_sub(self.memory_bytes_max);
        if over == 0 && self.wanted_floor_ns == BEFORE_ALL_NS {
            return BEFORE_ALL_NS;
        }
        let mut floor_ns = self.wanted_floor_ns;
        for (start_ns, window) in &self.windows.0 {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(window.bytes());
            floor_ns = floor_ns.max(start_ns + self.base_ns);
        }
        // Aligned upwards, or a part of a long window's length would never be freed.
        let align_ns = self.lengths.iter().map(|l| l.length_ns).fold(self.base_ns, least_common_multiple);
        align_down(floor_ns.saturating_add(align_ns - 1), align_ns)
    }

    /// A cell on its way in: below F it is only counted, beside a rebuild it waits.
    fn take_cell(&mut self, source: Source, start_ns: i64, series: u32, cell: Cell) {
        assert!(start_ns.rem_euclid(self.base_ns) == 0, "shards and reducer agree on the base window");
        let refold = matches!(source, Source::Rebuild(_));
        let points = cell.count();
        if refold {
            self.books.refolded += points;
        }
        if points == 0 {
            return;
        }
        if start_ns.saturating_add(self.base_ns) <= self.floor.logged_ns() {
            if !refold {
                self.books.late_beyond += points;
            }
            return;
        }
        if self.rebuilding() && !refold {
            let (merged, is_new) = self.live.merge(start_ns, series, cell);
            self.books.repeated += merged.repeated;
            self.books.conflicts += merged.conflicts;
            self.books.held += merged.counted;
            if is_new {
                self.series.add_ref(series);
            }
            return;
        }
        self.merge_cell(start_ns, series, cell, refold);
    }

    fn merge_cell(&mut self, start_ns: i64, series: u32, cell: Cell, refold: bool) {
        let reported = |core: &ReducerCore, length: &Length| {
            let start_ns = align_down(start_ns, length.length_ns);
            core.windows.0.range(start_ns..start_ns + length.length_ns).any(|(_, w)| w.cells.contains_key(&series))
        };
        // Which closed windows it falls into, and whether the series is new there: to be known before the merge.
        let mut closed: [Option<(usize, bool)>; LENGTHS_MAX] = [None; LENGTHS_MAX];
        for (n, length) in self.lengths.iter().enumerate() {
            let key = length.instance_at(start_ns);
            if key.start_ns() < self.floor.logged_ns() {
                // Only after the window lengths were changed: a part of it is frozen, so it stays as it is in the log.
                continue;
            }
            if self.instances.get(&key).is_some_and(|instance| instance.begun) {
                closed[n] = Some((n, !reported(self, length)));
            } else {
                self.unbegun.insert(key);
            }
        }
        let (merged, is_new) = self.windows.merge(start_ns, series, cell);
        if is_new {
            self.series.add_ref(series);
        }
        if !refold {
            self.books.counted += merged.counted;
            self.books.repeated += merged.repeated;
            self.books.conflicts += merged.conflicts;
        }
        // A conflict may have left the greater value, which was there: then this logs a revision with equal results.
        // Telling it apart would cost two results for every conflict in a window of any length.
        if !merged.changed {
            return;
        }
        for (n, first) in closed.into_iter().flatten() {
            let length = &self.lengths[n];
            let key = length.instance_at(start_ns);
            let instance = self.instances.get_mut(&key).expect("closed windows are remembered until F passes");
            let targets = self
                .series
                .targets_for(series)
                .iter()
                .filter(|&&target| length.rules[self.series.target_at(target).rule as usize]);
            if length.per_series {
                *instance.changed.entry(Subject::series(series)).or_insert(first) |= first;
            }
            instance.changed.extend(targets.map(|&target| (Subject::target(target), false)));
            if !instance.changed.is_empty() {
                self.changed.insert(key);
            }
        }
    }

    /// Takes in the results from before the restart. Those of windows and rules that are not configured any more stay as
    /// they are in the log.
    fn load(&mut self, results: Vec<WindowRecord>) {
        for record in results {
            let Some(length) = self.lengths.iter().find(|l| l.window_s == record.window_s) else { continue };
            let start_ns = record.start_ms.saturating_mul(NS_PER_MS);
            let key = length.instance_at(start_ns);
            if key.start_ns() != start_ns || start_ns < self.floor.logged_ns() {
                continue;
            }
            let subject = match &record.rule {
                None if length.per_series => Subject::series(self.series.acquire(&record.key)),
                None => continue,
                Some(id) => {
                    let Some(rule) = self.series.rules().iter().position(|rule| rule.id == *id) else { continue };
                    if !length.rules[rule] {
                        continue;
                    }
                    Subject::target(self.series.acquire_target(rule as u32, &record.key))
                }
            };
            let last = LastResult {
                aggregates: record.aggregates,
                series: record.series,
                revision: record.revision,
                flags: record.flags,
            };
            if self.instances.entry(key).or_default().loaded.insert(subject, last).is_some() {
                release(&mut self.series, subject);
            }
            self.unbegun.insert(key);
        }
    }

    /// Everything durable above F is folded again: finds what was lost, lets the live partials in, lets M go.
    fn finish_rebuild(&mut self, monotonic_ns: i64) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut lost = Vec::new();
        for (&key, instance) in &self.instances {
            for (&subject, last) in &instance.loaded {
                let count = self.compute(key, subject, &mut scratch, None).map_or(0, |r| r.aggregates.count);
                // Once damaged, always: an equal count is then the count of what was left.
                if count < last.aggregates.count || last.flags.damaged {
                    lost.push((key, subject, *last));
                }
            }
        }
        self.scratch = scratch;
        for (key, subject, last) in lost {
            match subject.unpack() {
                Unpacked::Series(series) => self.series.add_ref(series),
                Unpacked::Target(target) => {
                    let slot = self.series.target_at(target);
                    let (rule, key) = (slot.rule, slot.key.clone());
                    self.series.acquire_target(rule, &key);
                }
            }
            self.instances.entry(key).or_default().damaged.insert(subject, last);
        }
        self.books.held = 0;
        for (start_ns, window) in std::mem::take(&mut self.live).0 {
            for (series, cell) in window.cells {
                self.merge_cell(start_ns, series, cell, false);
                self.series.release(series);
            }
        }
        self.marks.release(monotonic_ns);
    }

    fn length(&self, length_ns: i64) -> &Length {
        self.lengths.iter().find(|l| l.length_ns == length_ns).expect("only configured lengths are closed")
    }
}

const NO_SERIES: u32 = u32::MAX;
/// Distinct window lengths, rules included.
pub const LENGTHS_MAX: usize = 16;

impl Length {
    fn instance_at(&self, t_ns: i64) -> InstanceKey {
        InstanceKey { end_ns: align_down(t_ns, self.length_ns) + self.length_ns, length_ns: self.length_ns }
    }
}

fn lengths(settings: &Settings) -> Vec<Length> {
    let mut all: BTreeSet<u32> = settings.rules.iter().flat_map(|rule| rule.windows_s.iter().copied()).collect();
    if settings.per_series {
        all.extend(&settings.windows_s);
    }
    assert!(all.len() <= LENGTHS_MAX, "the configuration bounds the number of window lengths");
    all.into_iter()
        .map(|window_s| {
            assert!(window_s > 0 && window_s % settings.base_s == 0, "windows are multiples of the base window");
            Length {
                window_s,
                length_ns: seconds(window_s),
                per_series: settings.per_series && settings.windows_s.contains(&window_s),
                rules: settings.rules.iter().map(|rule| rule.windows_s.contains(&window_s)).collect(),
            }
        })
        .collect()
}

fn seconds(s: u32) -> i64 {
    i64::from(s) * SECOND_NS
}

fn least_common_multiple(a: i64, b: i64) -> i64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

fn release(series: &mut SeriesTable, subject: Subject) {
    match subject.unpack() {
        Unpacked::Series(n) => series.release(n),
        Unpacked::Target(n) => series.release_target(n),
    }
}
