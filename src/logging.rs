//! The process's own lines on standard error, as text or JSON, with a bound for each cause.
//!
//! A disk that fails or a client that errs can cause the same line a million times a second. At most N lines of one
//! cause are written in an interval; the rest are counted, and the count is written once the interval is over.
//!
//! The cause of a line is its field `cause`, else the place in the code that made it. Lines of level info and debug
//! are bounded only when they carry a `cause`: the start of 64 shards is no flood.

use crate::config::{Level, LogFormat, Logging};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Bounds the lines of each cause. Pure: time is an argument, in ns of any clock that does not go back.
#[derive(Debug)]
pub struct Throttle {
    lines_max: u32,
    interval_ns: u64,
    causes: HashMap<String, Cause>,
}

#[derive(Debug)]
struct Cause {
    since_ns: u64,
    written: u32,
    suppressed: u64,
}

impl Throttle {
    /// Causes remembered at a time; further ones share one bound, so that text from outside cannot fill memory.
    pub const CAUSES_MAX: usize = 256;
    const OTHER: &'static str = "other";

    pub fn new(lines_max: u32, interval: Duration) -> Throttle {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Throttle { lines_max, interval_ns, causes: HashMap::new() }
    }

    /// Whether a line of `cause` is written now. A line that is not is counted.
    pub fn admit(&mut self, cause: &str, now_ns: u64) -> bool {
        let known = self.causes.contains_key(cause);
        let cause = if known || self.causes.len() < Self::CAUSES_MAX { cause } else { Self::OTHER };
        if !self.causes.contains_key(cause) {
            self.causes.insert(cause.to_owned(), Cause { since_ns: now_ns, written: 0, suppressed: 0 });
        }
        let (lines_max, interval_ns) = (self.lines_max, self.interval_ns);
        let Some(state) = self.causes.get_mut(cause) else { return true };
        if now_ns.saturating_sub(state.since_ns) >= interval_ns {
            // what was suppressed before stays counted until it is told
            state.since_ns = now_ns;
            state.written = 0;
        }
        let admitted = state.written < lines_max;
        if admitted {
            state.written += 1;
        } else {
            state.suppressed += 1;
        }
        admitted
    }

    /// The causes of which lines were suppressed and whose interval is over, in order of their names; each count is
    /// told once. Quiet causes are forgotten.
    pub fn take_suppressed(&mut self, now_ns: u64) -> Vec<(String, u64)> {
        let interval_ns = self.interval_ns;
        let over = |cause: &Cause| now_ns.saturating_sub(cause.since_ns) >= interval_ns;
        let mut told: Vec<(String, u64)> = self
            .causes
            .iter()
            .filter(|(_, cause)| over(cause) && cause.suppressed > 0)
            .map(|(name, cause)| (name.clone(), cause.suppressed))
            .collect();
        told.sort();
        self.causes.retain(|_, cause| !over(cause));
        told
    }
}

/// Held by the process; its loop calls [`LogLines::report_suppressed`] about once a second, and at the end.
#[derive(Clone)]
pub struct LogLines {
    throttle: Arc<Mutex<Throttle>>,
    clock: Clock,
}

type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

impl LogLines {
    /// Writes one line for each cause of which lines were suppressed.
    pub fn report_suppressed(&self) {
        let told = lock(&self.throttle).take_suppressed((self.clock)());
        for (cause, lines) in told {
            // info: this line is itself not bounded
            tracing::info!(suppressed_cause = %cause, lines, "similar lines were suppressed");
        }
    }
}

/// Sends all lines of the process to standard error. Call once, before any thread is started; the error is a second
/// call.
pub fn start(logging: &Logging) -> Result<LogLines, tracing::subscriber::SetGlobalDefaultError> {
    start_with(logging, std::io::stderr)
}

/// The same through a writer that knows what else is on standard error.
pub fn start_with<W>(logging: &Logging, writer: W) -> Result<LogLines, tracing::subscriber::SetGlobalDefaultError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let started = Instant::now();
    let clock: Clock = Arc::new(move || u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let colour = std::io::stderr().is_terminal();
    let (subscriber, lines) = subscriber(logging, clock, colour, writer);
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(lines)
}

fn subscriber<W>(
    logging: &Logging,
    clock: Clock,
    colour: bool,
    writer: W,
) -> (impl Subscriber + Send + Sync + use<W>, LogLines)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let throttle = Arc::new(Mutex::new(Throttle::new(logging.lines_per_cause, logging.cause_interval)));
    let lines = LogLines { throttle, clock };
    let level = match logging.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
    };
    let format = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let format: Box<dyn Layer<_> + Send + Sync> = match logging.format {
        LogFormat::Text => Box::new(format.with_ansi(colour)),
        LogFormat::Json => {
            Box::new(format.with_ansi(false).json().flatten_event(true).with_current_span(false).with_span_list(false))
        }
    };
    (tracing_subscriber::registry().with(format).with(Bounded(lines.clone())).with(level), lines)
}

/// Stops events beyond the bound of their cause before they are formatted.
struct Bounded(LogLines);

impl<S: Subscriber> Layer<S> for Bounded {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let mut cause = CauseField(None);
        event.record(&mut cause);
        let metadata = event.metadata();
        let severe = *metadata.level() <= tracing::Level::WARN;
        let cause = match &cause.0 {
            Some(cause) => cause.as_str(),
            None if severe => metadata.name(), // "event file:line"
            None => return true,
        };
        lock(&self.0.throttle).admit(cause, (self.0.clock)())
    }
}

struct CauseField(Option<String>);

impl Visit for CauseField {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "cause" {
            self.0 = Some(value.to_owned());
        }
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "cause" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

/// A panic elsewhere while the lock was held leaves counts, nothing that could be inconsistent.
fn lock(throttle: &Mutex<Throttle>) -> std::sync::MutexGuard<'_, Throttle> {
    throttle.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn lines_beyond_the_bound_are_counted_and_told_once() {
        let mut throttle = Throttle::new(3, Duration::from_secs(10));
        let written = (0..10).filter(|n| throttle.admit("flush", n * SECOND_NS / 10)).count();
        assert_eq!(written, 3);
        assert!(throttle.admit("accept", SECOND_NS), "another cause has its own bound");
        assert_eq!(throttle.take_suppressed(9 * SECOND_NS), vec![], "the interval is not over");
        assert_eq!(throttle.take_suppressed(10 * SECOND_NS), vec![("flush".to_owned(), 7)]);
        assert_eq!(throttle.take_suppressed(30 * SECOND_NS), vec![]);
        assert!(throttle.admit("flush", 30 * SECOND_NS));
    }

    #[test]
    fn a_count_survives_the_next_interval_until_it_is_told() {
        let mut throttle = Throttle::new(1, Duration::from_secs(10));
        assert!(throttle.admit("flush", 0));
        assert!(!throttle.admit("flush", 1));
        assert!(throttle.admit("flush", 10 * SECOND_NS));
        assert!(!throttle.admit("flush", 11 * SECOND_NS));
        assert_eq!(throttle.take_suppressed(20 * SECOND_NS), vec![("flush".to_owned(), 2)]);
    }

    #[test]
    fn causes_made_up_from_outside_share_one_bound_and_take_bounded_memory() {
        let mut throttle = Throttle::new(1, Duration::from_secs(10));
        let written = (0..10_000).filter(|n| throttle.admit(&format!("cause {n}"), 0)).count();
        assert_eq!(written, Throttle::CAUSES_MAX + 1);
        assert!(throttle.causes.len() <= Throttle::CAUSES_MAX + 1);
    }

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `body` writes; it may move the clock.
    fn lines_of(logging: &Logging, body: impl FnOnce(&AtomicU64, &LogLines)) -> Vec<String> {
        let (memory, now) = (Memory::default(), Arc::new(AtomicU64::new(0)));
        let clock: Clock = {
            let now = now.clone();
            Arc::new(move || now.load(Ordering::Relaxed))
        };
        let writer = memory.clone();
        let (subscriber, lines) = subscriber(logging, clock, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || body(&now, &lines));
        let bytes = memory.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8").lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_flood_of_one_cause_becomes_a_few_lines_and_a_count() {
        let logging = Logging { lines_per_cause: 2, ..Logging::default() };
        let lines = lines_of(&logging, |now, lines| {
            for n in 0..100 {
                tracing::warn!(cause = "flush_failed", shard = n, "the flush failed");
            }
            for n in 0..50 {
                tracing::info!(shard = n, "shard started");
            }
            now.store(10 * SECOND_NS, Ordering::Relaxed);
            lines.report_suppressed();
        });
        assert_eq!(lines.iter().filter(|l| l.contains("the flush failed")).count(), 2);
        assert_eq!(lines.iter().filter(|l| l.contains("shard started")).count(), 50);
        assert!(lines.last().is_some_and(|l| l.contains("flush_failed") && l.contains("lines=98")), "{lines:?}");
    }

    #[test]
    fn severe_lines_without_a_cause_are_bounded_by_their_place_in_the_code() {
        let logging = Logging { lines_per_cause: 2, ..Logging::default() };
        let lines = lines_of(&logging, |_, _| {
            for _ in 0..9 {
                tracing::error!("here");
                tracing::error!("there");
            }
        });
        assert_eq!(lines.len(), 4, "{lines:?}");
    }

    #[test]
    fn the_level_and_the_format_are_kept() {
        let logging = Logging { level: Level::Warn, format: LogFormat::Json, ..Logging::default() };
        let lines = lines_of(&logging, |_, _| {
            tracing::info!("not this");
            tracing::warn!(request_id = "r\n1", "that");
        });
        assert_eq!(lines.len(), 1);
        let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("one JSON object a line");
        assert_eq!(
            (&line["message"], &line["request_id"], &line["level"]),
            (&"that".into(), &"r\n1".into(), &"WARN".into())
        );
    }

    #[test]
    fn text_from_outside_cannot_forge_a_line() {
        let lines = lines_of(&Logging::default(), |_, _| {
            tracing::warn!(path = "/x\nERROR forged \u{1b}[31m", "refused");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
    }
}
