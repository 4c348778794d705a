//! What each sink has done with each log, for `/metrics`: counted by the sink's own thread, read by any.
//!
//! `read = delivered + refused + dead_lettered + filtered + dropped + lost_to_damage + waiting`, at every moment when the
//! sink's thread is between two steps, since the start of the process. The cursors have the same over all starts.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use metricstream_shards::counters::Counter;

use super::calls::CallBooks;
use super::cursor::Totals;
use super::reader::ReaderPort;
use super::share::LogShare;

/// What a sink is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum State {
    /// It takes what there is
    Running = 0,
    /// It failed and is tried again
    Retrying = 1,
    /// It refuses in a way that needs an operator
    Held = 2,
    /// The process is ending
    Stopped = 3,
}

impl State {
    pub const ALL: [State; 4] = [State::Running, State::Retrying, State::Held, State::Stopped];
    pub const fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Retrying => "retrying",
            State::Held => "held",
            State::Stopped => "stopped",
        }
    }
}

/// One sink and log.
#[derive(Default)]
pub struct LogBooks {
    pub read: Counter,
    pub delivered: Counter,
    pub refused: Counter,
    pub dead_lettered: Counter,
    pub filtered: Counter,
    pub dropped: Counter,
    pub lost_to_damage: Counter,
    /// Where the cursor stands
    pub segment_id: AtomicU64,
    pub offset: AtomicU64,
    pub next_point: AtomicU64,
    /// Receive stamp of the oldest record that waits, or of the last settled one; `i64::MIN`: none
    pub oldest_stamp_ns: AtomicI64,
}

impl LogBooks {
    pub fn settled(&self) -> u64 {
        self.totals().sum()
    }

    pub fn totals(&self) -> Totals {
        Totals {
            delivered: self.delivered.get(),
            refused: self.refused.get(),
            dead_lettered: self.dead_lettered.get(),
            filtered: self.filtered.get(),
            dropped: self.dropped.get(),
            lost_to_damage: self.lost_to_damage.get(),
        }
    }

    pub fn add(&self, more: &Totals) {
        self.delivered.add(more.delivered);
        self.refused.add(more.refused);
        self.dead_lettered.add(more.dead_lettered);
        self.filtered.add(more.filtered);
        self.dropped.add(more.dropped);
        self.lost_to_damage.add(more.lost_to_damage);
    }
}

/// How far a cursor is behind its log.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lag {
    pub bytes: u64,
    pub points: u64,
    pub seconds: f64,
}

/// One sink.
pub struct SinkBooks {
    pub name: Arc<str>,
    pub kind: &'static str,
    pub logs: Vec<(Arc<LogShare>, Arc<LogBooks>)>,
    /// Calls that failed
    pub errors: Counter,
    pub cursor_stores: Counter,
    pub cursor_failures: Counter,
    /// Of sinks that make their calls, and repeat them, by themselves
    pub calls: Option<Arc<CallBooks>>,
    state: AtomicU64,
}

impl SinkBooks {
    pub fn new(name: Arc<str>, kind: &'static str, logs: Vec<Arc<LogShare>>) -> SinkBooks {
        SinkBooks {
            name,
            kind,
            logs: logs.into_iter().map(|log| (log, Arc::default())).collect(),
            errors: Counter::new(),
            cursor_stores: Counter::new(),
            cursor_failures: Counter::new(),
            calls: None,
            state: AtomicU64::new(State::Running as u64),
        }
    }

    pub fn set_state(&self, state: State) {
        self.state.store(state as u64, Ordering::Relaxed);
    }

    pub fn with_calls(self, calls: Option<Arc<CallBooks>>) -> SinkBooks {
        SinkBooks { calls, ..self }
    }

    /// What an operator should see: a sink that repeats its calls by itself is not running well meanwhile.
    pub fn shown_state(&self) -> State {
        match (self.state(), &self.calls) {
            (State::Running, Some(calls)) if calls.held.load(Ordering::Relaxed) > 0 => State::Held,
            (State::Running, Some(calls)) if calls.waiting.load(Ordering::Relaxed) > 0 => State::Retrying,
            (state, _) => state,
        }
    }

    pub fn state(&self) -> State {
        State::ALL[self.state.load(Ordering::Relaxed) as usize]
    }
}

pub fn lag(log: &LogShare, books: &LogBooks, wall_ns: i64) -> Lag {
    let mark = log.mark.get();
    let (segment_id, offset) = (books.segment_id.load(Ordering::Relaxed), books.offset.load(Ordering::Relaxed));
    let points = mark.next_point.saturating_sub(books.next_point.load(Ordering::Relaxed));
    // A block without points, or an empty segment, is nothing to wait for.
    let bytes = match points {
        0 => 0,
        _ => lag_bytes(log.segment_bytes, (segment_id, offset), (mark.end.segment_id, mark.end.offset)),
    };
    let oldest_ns = books.oldest_stamp_ns.load(Ordering::Relaxed);
    let seconds =
        if points == 0 || oldest_ns == i64::MIN { 0.0 } else { wall_ns.saturating_sub(oldest_ns).max(0) as f64 / 1e9 };
    Lag { bytes, points, seconds }
}

/// Segments in between count whole: a little too much where one was given up early.
pub fn lag_bytes(segment_bytes: u64, at: (u64, u64), end: (u64, u64)) -> u64 {
    match end.0.saturating_sub(at.0) {
        0 => end.1.saturating_sub(at.1),
        // Before the first segment that was ever read nothing is known of how many there are.
        segments if at.0 > 0 => segment_bytes.saturating_sub(at.1) + (segments - 1) * segment_bytes + end.1,
        _ => end.1,
    }
}

/// All of the forwarder, for the admin listener.
pub struct ForwardBooks {
    pub sinks: Vec<Arc<SinkBooks>>,
    pub reader: Arc<ReaderPort>,
}
