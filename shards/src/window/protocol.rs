//! When a window is closed, how late a point may come, what is kept to rebuild from: the pure part.
//!
//! No I/O and no clock of its own: every time is an argument, so that years of stalls, clock steps and restarts can be
//! played in a second. It promises:
//!
//! - [`FoldClock`] never goes back within an era; a new era is the only way back, and it is logged.
//! - [`MarkTable`]'s M never goes back within an era, and every window that ends at or before its `complete_ns` holds
//!   all that the shards had appended by then (lateness aside).
//! - [`Floor`] only rises within an era and never passes M.
//!
//! Words: *stamp*, receive time of a record on the fold clock; *mark*, "windows that end by here are handed over";
//! *M*, the mark of the whole process; *F*, the floor: windows that end at or before F are frozen.
//! None of it decides the content of a window at or above F, only when it is first published.

/// The distances of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    /// How long after its end a window is closed. Agents flush every 10 s, so 15 s.
    pub lateness_ns: i64,
    /// How long after that it can still be revised. Agents buffer for minutes, so 5 min.
    pub horizon_ns: i64,
    /// A shard whose mark stands still for longer is left out of M.
    pub stall_ns: i64,
}

impl Default for Spans {
    fn default() -> Self {
        Spans { lateness_ns: 15 * SECOND_NS, horizon_ns: 300 * SECOND_NS, stall_ns: 10 * SECOND_NS }
    }
}

pub const SECOND_NS: i64 = 1_000_000_000;

/// "No mark, no floor yet": below every window that can exist.
pub const BEFORE_ALL_NS: i64 = i64::MIN;

/// A wall clock this far ahead of the fold clock has stepped; anything less is drift, and followed at once.
const STEP_NS: i64 = SECOND_NS;

/// The one clock that stamps records. `fold time = monotonic + offset`; one thread observes the wall clock and publishes
/// the offset, all others read it from one atomic ([`FoldClock::published`], [`StampClock`]).
#[derive(Clone, Debug)]
pub struct FoldClock {
    spans: Spans,
    offset_ns: i64,
    era: u32,
    last_monotonic_ns: i64,
    /// Since when the wall clock has been a step ahead.
    ahead_since_ns: Option<i64>,
}

/// What an observation did to the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockEvent {
    /// Follows the wall clock.
    Steady,
    /// The wall clock stepped forward; runs on monotonic time until the step has lasted one lateness.
    Held { ahead_ns: i64 },
    /// The step lasted: jumped.
    Jumped { by_ns: i64 },
    /// The wall clock is behind by less than the horizon; runs at half speed until it is caught up.
    Slowed { behind_ns: i64 },
    /// The wall clock went back beyond the horizon. The era must be logged before anything is stamped in it.
    EraStarted { era: u32, from_ns: i64, to_ns: i64 },
}

impl FoldClock {
    /// Starts at the later of the wall clock and the last stamp in the logs. When the last stamp is ahead by more than
    /// the horizon (the clock was wrong in the last run), waiting for it would call everything late: a new era starts.
    pub fn start(
        monotonic_ns: i64,
        wall_ns: i64,
        last_stamp_ns: Option<i64>,
        era: u32,
        spans: Spans,
    ) -> (FoldClock, ClockEvent) {
        let last_ns = last_stamp_ns.unwrap_or(wall_ns);
        let behind_ns = last_ns.saturating_sub(wall_ns);
        let (start_ns, era, event) = if behind_ns > spans.horizon_ns {
            (wall_ns, era + 1, ClockEvent::EraStarted { era: era + 1, from_ns: last_ns, to_ns: wall_ns })
        } else if behind_ns > 0 {
            (last_ns, era, ClockEvent::Slowed { behind_ns })
        } else {
            (wall_ns, era, ClockEvent::Steady)
        };
        let clock = FoldClock {
            spans,
            offset_ns: start_ns.saturating_sub(monotonic_ns),
            era,
            last_monotonic_ns: monotonic_ns,
            ahead_since_ns: None,
        };
        (clock, event)
    }

    pub fn era(&self) -> u32 {
        self.era
    }

    pub fn now(&self, monotonic_ns: i64) -> i64 {
        monotonic_ns.saturating_add(self.offset_ns)
    }

    /// Compares with the wall clock; call it a few times a second, from one thread.
    pub fn observe(&mut self, monotonic_ns: i64, wall_ns: i64) -> ClockEvent {
        let elapsed_ns = monotonic_ns.saturating_sub(self.last_monotonic_ns).max(0);
        self.last_monotonic_ns = self.last_monotonic_ns.max(monotonic_ns);
        let now_ns = self.now(monotonic_ns);
        let ahead_ns = wall_ns.saturating_sub(now_ns);
        if ahead_ns <= STEP_NS {
            self.ahead_since_ns = None;
        }
        if ahead_ns < -self.spans.horizon_ns {
            self.era += 1;
            self.offset_ns = wall_ns.saturating_sub(monotonic_ns);
            return ClockEvent::EraStarted { era: self.era, from_ns: now_ns, to_ns: wall_ns };
        }
        if ahead_ns < 0 {
            // Half speed: to stay ahead for good would close every window early by the step, for good.
            self.offset_ns -= (elapsed_ns / 2).min(-ahead_ns);
            return if -ahead_ns > STEP_NS { ClockEvent::Slowed { behind_ns: -ahead_ns } } else { ClockEvent::Steady };
        }
        if ahead_ns <= STEP_NS {
            self.offset_ns += ahead_ns;
            return ClockEvent::Steady;
        }
        // A jump at once would close windows whose points are still on their way with stamps from before the step.
        let since_ns = *self.ahead_since_ns.get_or_insert(monotonic_ns);
        if monotonic_ns.saturating_sub(since_ns) < self.spans.lateness_ns {
            return ClockEvent::Held { ahead_ns };
        }
        self.ahead_since_ns = None;
        self.offset_ns = self.offset_ns.saturating_add(ahead_ns);
        ClockEvent::Jumped { by_ns: ahead_ns }
    }

    /// Offset and era in one word for one atomic: the low byte is the era's, so the offset is exact to 256 ns.
    pub fn published(&self) -> i64 {
        (self.offset_ns & !0xFF) | i64::from(self.era as u8)
    }
}

/// One thread's reading of the published clock: never goes back until the era changes, so that log order is stamp order
/// also while the clock is being slowed.
#[derive(Clone, Debug, Default)]
pub struct StampClock {
    last_ns: i64,
    era_byte: u8,
}

impl StampClock {
    #[inline]
    pub fn now(&mut self, published: i64, monotonic_ns: i64) -> i64 {
        let era_byte = published as u8;
        let now_ns = monotonic_ns.saturating_add(published & !0xFF);
        if era_byte != self.era_byte || now_ns > self.last_ns {
            self.era_byte = era_byte;
            self.last_ns = now_ns;
        }
        self.last_ns
    }
}

/// A shard's mark: nothing that it has appended and not yet folded has a stamp below `mark + lateness`.
/// `oldest_unfolded_ns`: stamp of the oldest record appended but not folded, `None` when it has folded all.
/// It goes through the mailbox after the partials that it covers; an idle shard sends it too, and writes nothing.
pub fn shard_mark(clock_ns: i64, oldest_unfolded_ns: Option<i64>, lateness_ns: i64) -> i64 {
    oldest_unfolded_ns.map_or(clock_ns, |oldest| oldest.min(clock_ns)).saturating_sub(lateness_ns)
}

/// M over the shards' marks.
#[derive(Clone, Debug)]
pub struct MarkTable {
    spans: Spans,
    shards: Vec<ShardSlot>,
    m_ns: i64,
    complete_ns: i64,
    held: bool,
}

#[derive(Clone, Copy, Debug)]
struct ShardSlot {
    mark_ns: i64,
    moved_at_ns: i64,
    drained: bool,
}

/// How far windows may be closed. Those that end after `complete_ns` and at or before `m_ns` are closed without a
/// stalled shard: `incomplete`, and revised when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub m_ns: i64,
    pub complete_ns: i64,
}

impl MarkTable {
    /// `m_ns`: M from the aggregate log, or [`BEFORE_ALL_NS`]. While `held` (a rebuild is under way) M stands still.
    pub fn new(shards: usize, m_ns: i64, held: bool, monotonic_ns: i64, spans: Spans) -> MarkTable {
        let slot = ShardSlot { mark_ns: BEFORE_ALL_NS, moved_at_ns: monotonic_ns, drained: false };
        MarkTable { spans, shards: vec![slot; shards], m_ns, complete_ns: m_ns, held }
    }

    pub fn m_ns(&self) -> i64 {
        self.m_ns
    }

    /// Takes a shard's mark. One above `clock_ns` can only be left over from before the clock went back: ignored (a
    /// shard's reading of the clock may be ahead of ours by moments, hence the lateness as tolerance).
    pub fn set(&mut self, shard: usize, mark_ns: i64, monotonic_ns: i64, clock_ns: i64) {
        let Some(slot) = self.shards.get_mut(shard) else { return };
        if mark_ns > slot.mark_ns && mark_ns <= clock_ns {
            slot.mark_ns = mark_ns;
            slot.moved_at_ns = monotonic_ns;
        }
    }

    /// The shard has sent its last message. Its mark stays in force: what it left to the log is not closed without it.
    pub fn drained(&mut self, shard: usize) {
        if let Some(slot) = self.shards.get_mut(shard) {
            slot.drained = true;
        }
    }

    /// The rebuild is done. Shards have their full time from here before they count as stalled.
    pub fn release(&mut self, monotonic_ns: i64) {
        self.held = false;
        for slot in &mut self.shards {
            slot.moved_at_ns = slot.moved_at_ns.max(monotonic_ns);
        }
    }

    pub fn held(&self) -> bool {
        self.held
    }

    /// A new era: marks start over from what the shards send in it.
    pub fn start_era(&mut self, m_ns: i64, monotonic_ns: i64) {
        self.m_ns = m_ns;
        self.complete_ns = m_ns;
        for slot in &mut self.shards {
            slot.mark_ns = BEFORE_ALL_NS;
            slot.moved_at_ns = monotonic_ns;
        }
    }

    pub fn advance(&mut self, monotonic_ns: i64) -> Marks {
        if !self.held {
            let stall_ns = self.spans.stall_ns;
            let moving = |slot: &&ShardSlot| slot.drained || monotonic_ns - slot.moved_at_ns <= stall_ns;
            // With no shard moving there is no one to say that time has passed: M stands.
            let least_moving = self.shards.iter().filter(moving).map(|slot| slot.mark_ns).min();
            let least = self.shards.iter().map(|slot| slot.mark_ns).min();
            self.m_ns = self.m_ns.max(least_moving.unwrap_or(BEFORE_ALL_NS));
            self.complete_ns = self.complete_ns.max(least.unwrap_or(BEFORE_ALL_NS)).min(self.m_ns);
        }
        Marks { m_ns: self.m_ns, complete_ns: self.complete_ns }
    }
}

/// F. A window is below it when it *ends* at or before it. Always a multiple of `align_ns`, a common multiple of all
/// window lengths, so that no long window has lost a part of its short ones.
///
/// Two steps, because of what a crash in between must find: [`Floor::propose`] gives the F to log; [`Floor::commit`]
/// follows when that mark record, and with it every result before it, is durable. Memory is freed, and segments are
/// recycled, by the committed one only.
#[derive(Clone, Copy, Debug)]
pub struct Floor {
    align_ns: i64,
    horizon_ns: i64,
    proposed_ns: i64,
    committed_ns: i64,
}

impl Floor {
    pub fn new(floor_ns: i64, align_ns: i64, spans: Spans) -> Floor {
        assert!(align_ns > 0, "a floor needs a window length");
        Floor { align_ns, horizon_ns: spans.horizon_ns, proposed_ns: floor_ns, committed_ns: floor_ns }
    }

    /// What is (or is about to be) in the log: partials below it are late beyond revision.
    pub fn logged_ns(&self) -> i64 {
        self.proposed_ns
    }

    /// What is durable.
    pub fn committed_ns(&self) -> i64 {
        self.committed_ns
    }

    /// Raises F to `max(M - horizon, budget floor)`, but not above M. `m_ns` is the M whose results are in the log before
    /// the mark record that will carry F.
    pub fn propose(&mut self, m_ns: i64, budget_floor_ns: i64) -> i64 {
        let wanted_ns = m_ns.saturating_sub(self.horizon_ns).max(budget_floor_ns).min(m_ns);
        self.proposed_ns = self.proposed_ns.max(align_down(wanted_ns, self.align_ns));
        self.proposed_ns
    }

    pub fn commit(&mut self) -> i64 {
        self.committed_ns = self.proposed_ns;
        self.committed_ns
    }

    /// A new era may revise windows as far back as any era: F comes down with the clock.
    pub fn start_era(&mut self, m_ns: i64) -> i64 {
        self.proposed_ns = self.proposed_ns.min(align_down(m_ns.saturating_sub(self.horizon_ns), self.align_ns));
        self.proposed_ns
    }
}

/// The largest multiple of `align` at or below `t`; below all time it stays there.
pub fn align_down(t: i64, align: i64) -> i64 {
    t.checked_sub(t.rem_euclid(align)).unwrap_or(BEFORE_ALL_NS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const S: i64 = SECOND_NS;

    fn clock(wall_s: i64) -> FoldClock {
        FoldClock::start(0, wall_s * S, None, 0, Spans::default()).0
    }

    #[test]
    fn the_clock_starts_at_the_later_of_wall_and_last_stamp() {
        let (c, _) = FoldClock::start(7, 1000 * S, Some(1100 * S), 3, Spans::default());
        assert_eq!((c.now(7), c.era()), (1100 * S, 3));
        let (c, _) = FoldClock::start(7, 1000 * S, Some(900 * S), 3, Spans::default());
        assert_eq!((c.now(7), c.era()), (1000 * S, 3));
    }

    #[test]
    fn a_last_stamp_beyond_the_horizon_ahead_starts_an_era_at_the_wall_clock() {
        let (c, event) = FoldClock::start(0, 1000 * S, Some(1301 * S), 3, Spans::default());
        assert_eq!(event, ClockEvent::EraStarted { era: 4, from_ns: 1301 * S, to_ns: 1000 * S });
        assert_eq!((c.now(0), c.era()), (1000 * S, 4));
    }

    #[test]
    fn a_forward_step_is_followed_after_one_lateness() {
        let mut c = clock(1000);
        for s in 1..=15 {
            assert!(matches!(c.observe(s * S, (1000 + s + 3600) * S), ClockEvent::Held { .. }));
            assert_eq!(c.now(s * S), (1000 + s) * S);
        }
        assert_eq!(c.observe(16 * S, (1016 + 3600) * S), ClockEvent::Jumped { by_ns: 3600 * S });
        assert_eq!(c.now(16 * S), (1016 + 3600) * S);
    }

    #[test]
    fn a_forward_step_that_is_taken_back_leaves_no_trace() {
        let mut c = clock(1000);
        c.observe(S, 5000 * S);
        assert_eq!(c.observe(2 * S, 1002 * S), ClockEvent::Steady);
        assert!(matches!(c.observe(14 * S, 5000 * S), ClockEvent::Held { .. }), "the wait starts over");
        assert!(matches!(c.observe(28 * S, 5000 * S), ClockEvent::Held { .. }));
        assert_eq!(c.now(28 * S), 1028 * S);
    }

    #[test]
    fn a_small_step_back_slows_the_clock_and_never_turns_it() {
        let mut c = clock(1000);
        let mut stamps = StampClock::default();
        let mut last = stamps.now(c.published(), 0);
        for tenth in 1..=400 {
            let monotonic = tenth * S / 10;
            c.observe(monotonic, 990 * S + monotonic);
            let now = stamps.now(c.published(), monotonic);
            assert!(now >= last);
            last = now;
        }
        assert!((c.now(40 * S) - 1030 * S).abs() < S, "caught up: {}", c.now(40 * S));
    }

    #[test]
    fn a_step_back_beyond_the_horizon_starts_an_era() {
        let mut c = clock(10_000);
        let mut stamps = StampClock::default();
        stamps.now(c.published(), S);
        let event = c.observe(S, 9_000 * S);
        assert_eq!(event, ClockEvent::EraStarted { era: 1, from_ns: 10_001 * S, to_ns: 9_000 * S });
        let now = stamps.now(c.published(), S);
        assert!((now - 9_000 * S).abs() <= 256, "readers follow: {now}");
    }

    #[test]
    fn the_clock_never_goes_back_within_an_era_whatever_the_wall_clock_does() {
        for seed in 0..2_000 {
            let mut rng = Random(seed);
            let (mut monotonic, mut wall) = (0i64, 1_000_000 * S);
            let (mut c, _) = FoldClock::start(monotonic, wall, None, 0, Spans::default());
            let mut stamps = StampClock::default();
            let (mut last, mut last_stamp, mut era) = (c.now(0), 0, 0);
            for _ in 0..60 {
                let dt = rng.below(3 * S as u64) as i64;
                monotonic += dt;
                wall += dt;
                match rng.below(8) {
                    0 => wall += rng.below(7200 * S as u64) as i64,
                    1 => wall -= rng.below(200 * S as u64) as i64,
                    2 => wall -= rng.below(2000 * S as u64) as i64,
                    _ => {}
                }
                let event = c.observe(monotonic, wall);
                let (now, stamp) = (c.now(monotonic), stamps.now(c.published(), monotonic));
                if let ClockEvent::EraStarted { era: n, .. } = event {
                    assert_eq!(n, era + 1, "seed {seed}");
                    assert_eq!(now, wall, "seed {seed}");
                    era = n;
                } else {
                    assert!(now >= last && stamp >= last_stamp, "seed {seed}");
                }
                assert!(now <= wall + Spans::default().horizon_ns, "seed {seed}: never ahead beyond the horizon");
                (last, last_stamp) = (now, stamp);
            }
        }
    }

    #[test]
    fn an_unfolded_record_holds_the_mark() {
        assert_eq!(shard_mark(100 * S, None, 15 * S), 85 * S);
        assert_eq!(shard_mark(100 * S, Some(40 * S), 15 * S), 25 * S);
        assert_eq!(shard_mark(100 * S, Some(140 * S), 15 * S), 85 * S);
    }

    #[test]
    fn m_is_the_least_mark_until_a_shard_stalls() {
        let mut t = MarkTable::new(2, BEFORE_ALL_NS, false, 0, Spans::default());
        let far = i64::MAX;
        t.set(0, 50 * S, 0, far);
        assert_eq!(t.advance(0).m_ns, BEFORE_ALL_NS, "shard 1 has said nothing yet");
        t.set(1, 40 * S, 0, far);
        assert_eq!(t.advance(0), Marks { m_ns: 40 * S, complete_ns: 40 * S });
        t.set(0, 61 * S, 11 * S, far);
        assert_eq!(t.advance(11 * S), Marks { m_ns: 61 * S, complete_ns: 40 * S });
        t.set(1, 45 * S, 12 * S, far);
        assert_eq!(t.advance(12 * S), Marks { m_ns: 61 * S, complete_ns: 45 * S }, "M does not go back");
        t.set(1, 70 * S, 13 * S, far);
        assert_eq!(t.advance(13 * S), Marks { m_ns: 61 * S, complete_ns: 61 * S });
    }

    #[test]
    fn m_stands_while_held_while_all_stall_and_behind_a_drained_shard() {
        let mut t = MarkTable::new(2, 10 * S, true, 0, Spans::default());
        t.set(0, 50 * S, 0, i64::MAX);
        t.set(1, 50 * S, 0, i64::MAX);
        assert_eq!(t.advance(0).m_ns, 10 * S);
        t.release(30 * S);
        assert_eq!(t.advance(30 * S).m_ns, 50 * S);
        assert_eq!(t.advance(300 * S).m_ns, 50 * S);
        t.drained(1);
        t.set(0, 400 * S, 400 * S, i64::MAX);
        assert_eq!(t.advance(400 * S).m_ns, 50 * S, "half windows are not emitted");
    }

    #[test]
    fn a_mark_from_before_the_clock_went_back_is_ignored() {
        let mut t = MarkTable::new(1, 1000 * S, false, 0, Spans::default());
        t.start_era(100 * S, 0);
        t.set(0, 1000 * S, 0, 115 * S);
        assert_eq!(t.advance(0).m_ns, 100 * S);
        t.set(0, 101 * S, 0, 116 * S);
        assert_eq!(t.advance(0).m_ns, 101 * S);
    }

    #[test]
    fn the_floor_only_rises_stays_aligned_and_never_passes_m() {
        let mut f = Floor::new(BEFORE_ALL_NS, 60 * S, Spans::default());
        assert_eq!(f.propose(BEFORE_ALL_NS, BEFORE_ALL_NS), BEFORE_ALL_NS);
        assert_eq!(f.propose(1000 * S, BEFORE_ALL_NS), 660 * S);
        assert_eq!(f.committed_ns(), BEFORE_ALL_NS, "not before it is durable");
        assert_eq!(f.commit(), 660 * S);
        assert_eq!(f.propose(1000 * S, 5000 * S), 960 * S, "the budget cannot free open windows");
        assert_eq!(f.propose(1001 * S, BEFORE_ALL_NS), 960 * S);
    }
}
