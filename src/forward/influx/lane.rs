//! A lane: one thread that delivers batches one after the other, so that points of one series, which share a lane, keep
//! their order. Everything that may take long happens here: compression, calls, waits, the dead letters' flush.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::answer::{self, Heard, Kind, Verdict};
use super::client::Client;
use super::delivery::{Action, Delivery, Fate};
use crate::forward::breaker::{Admission, Permit};
use crate::forward::calls::CallBooks;
use crate::forward::dead_letter::{DeadLetters, Entry};
use crate::forward::id::Ids;
use crate::forward::retry::Backoff;
use crate::forward::sink::{Settled, UnitId};
use crate::reducer::thread::wall_ns;

/// Lines for one target, in order.
pub struct Batch {
    pub generation: u64,
    /// 0: raw points, 1: windows
    pub target: usize,
    pub text: Vec<u8>,
    /// Where each line ends in `text`
    pub ends: Vec<u32>,
    /// Epoch and number of each line's point in its log
    pub places: Vec<(u64, u64)>,
    /// The units that lines come from: unit, log, first line
    pub units: Vec<(UnitId, u32, u32)>,
    pub begun: Instant,
}

impl Batch {
    pub fn new(generation: u64, target: usize, begun: Instant) -> Batch {
        Batch { generation, target, text: Vec::new(), ends: Vec::new(), places: Vec::new(), units: Vec::new(), begun }
    }

    fn start_of(&self, line: usize) -> usize {
        if line == 0 { 0 } else { self.ends[line - 1] as usize }
    }

    fn unit_of(&self, line: usize) -> (UnitId, u32) {
        let at = self.units.partition_point(|(_, _, first)| *first as usize <= line) - 1;
        (self.units[at].0, self.units[at].1)
    }

    /// Points of each unit by what became of them.
    fn settle(&self, delivery: &Delivery) -> Vec<(UnitId, Settled)> {
        let mut settled: Vec<(UnitId, Settled)> =
            self.units.iter().map(|(unit, _, _)| (*unit, Settled::default())).collect();
        for (range, fate) in delivery.fates() {
            let mut line = range.start;
            while line < range.end {
                let at = self.units.partition_point(|(_, _, first)| *first as usize <= line) - 1;
                let end = self.units.get(at + 1).map_or(range.end, |(_, _, first)| range.end.min(*first as usize));
                let points = (end - line) as u64;
                let of = &mut settled[at].1;
                match fate {
                    Fate::Delivered => of.delivered += points,
                    Fate::Refused => of.refused += points,
                    Fate::DeadLettered => of.dead_lettered += points,
                }
                line = end;
            }
        }
        settled
    }
}

/// A batch came to its end.
pub struct Done {
    pub generation: u64,
    pub bytes: usize,
    /// Empty: it was given up (a stop, a reset)
    pub settled: Vec<(UnitId, Settled)>,
}

/// What the lanes of a sink share.
pub struct Shared {
    pub name: String,
    pub ids: Ids,
    /// Made anew where the server refuses: somebody may have corrected a password or a certificate since
    pub client_now: Box<dyn Fn() -> Result<Client, String> + Send + Sync>,
    /// Where raw points and windows go, for people
    pub labels: [String; 2],
    pub urls: [String; 2],
    pub gzip: bool,
    pub retry_most: Duration,
    pub calls: Arc<CallBooks>,
    pub dead_letters: Mutex<DeadLetters>,
    /// Largest body that the server has not refused as too large
    pub batch_bytes_max: AtomicUsize,
    /// Batches of older generations are forgotten
    pub generation: AtomicU64,
    /// A stop: what cannot be delivered at once is given up
    pub finishing: AtomicBool,
    pub wake: (Mutex<()>, Condvar),
}

/// Smallest batch that 413 makes; a single line may be larger.
const BATCH_BYTES_LEAST: usize = 1024;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const FIRST_HOLD: Duration = Duration::from_secs(1);
const DEAD_LETTERS_AGAIN: Duration = Duration::from_secs(1);

impl Shared {
    fn is_over(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) != generation
    }

    /// Waits, unless the batch is over. Answers whether to go on.
    fn sleep(&self, wait: Duration, generation: u64) -> bool {
        let until = Instant::now() + wait;
        let mut held = self.wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.is_over(generation) || self.finishing.load(Ordering::Acquire) {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            held = self.wake.1.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn wake_all(&self) {
        // Under the lock: nobody may be between its look at the flags and its wait.
        let _held = self.wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.wake.1.notify_all();
    }
}

/// Until the sink is gone.
pub fn run(shared: &Shared, client: Client, batches: &Receiver<Batch>, done: &Sender<Done>, seed: u64) {
    let mut lane = Lane {
        shared,
        client,
        later: Backoff::new(FIRST_WAIT, shared.retry_most, seed),
        hold: Backoff::new(FIRST_HOLD, shared.retry_most, !seed),
        body: Vec::new(),
    };
    while let Ok(batch) = batches.recv() {
        let settled = lane.deliver(&batch).unwrap_or_default();
        let end = Done { generation: batch.generation, bytes: batch.text.len(), settled };
        if done.send(end).is_err() {
            return;
        }
    }
}

struct Lane<'a> {
    shared: &'a Shared,
    client: Client,
    later: Backoff,
    hold: Backoff,
    /// Compressed
    body: Vec<u8>,
}

impl Lane<'_> {
    /// `None`: given up.
    fn deliver(&mut self, batch: &Batch) -> Option<Vec<(UnitId, Settled)>> {
        let shared = self.shared;
        let mut delivery = Delivery::new(batch.ends.len());
        let mut compressed = None;
        while let Some(range) = delivery.next() {
            let text = &batch.text[batch.start_of(range.start)..batch.ends[range.end - 1] as usize];
            let permit = self.permit(batch)?;
            if shared.gzip && compressed.as_ref() != Some(&range) {
                self.body.clear();
                let mut encoder = GzEncoder::new(std::mem::take(&mut self.body), Compression::fast());
                encoder.write_all(text).expect("into memory");
                self.body = encoder.finish().expect("into memory");
                compressed = Some(range.clone());
            }
            let body = if shared.gzip { &self.body } else { text };
            let heard = self.client.write(&shared.urls[batch.target], body, shared.gzip);
            let verdict = answer::judge(&heard, SystemTime::now());
            shared.calls.count(Kind::of(&verdict, &heard) as usize);
            shared.calls.sent_bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
            match &verdict {
                Verdict::Later { retry_after, .. } => shared.calls.finished(permit, false, *retry_after),
                _ => shared.calls.finished(permit, true, None),
            }
            if matches!(verdict, Verdict::TooLarge { .. }) && range.len() > 1 {
                self.learn_bytes(text.len() / 2);
            }
            if let Verdict::Partial { dropped, reason } = &verdict {
                tracing::warn!(
                    cause = "influx_partial",
                    sink = shared.name,
                    target = shared.labels[batch.target],
                    points = dropped,
                    "InfluxDB has dropped points of a write and taken the rest: {reason}"
                );
            }
            let halvings = delivery.halvings();
            let action = delivery.answered(verdict);
            shared.calls.halvings.fetch_add(delivery.halvings() - halvings, Ordering::Relaxed);
            if !matches!(action, Action::Hold { .. } | Action::Wait { .. }) {
                self.later.succeeded();
                self.hold.succeeded();
            }
            match action {
                Action::GoOn => {}
                Action::SetAside { line, reason } => self.set_aside(batch, line, reason)?,
                Action::Hold { reason } => {
                    let init = match heard {
                        Heard::Answer { .. } => "; `metricstream influx init` makes what is missing",
                        Heard::Nothing { .. } | Heard::NoTls { .. } => "",
                    };
                    tracing::error!(
                        cause = "influx_held",
                        sink = shared.name,
                        target = shared.labels[batch.target],
                        "InfluxDB refuses until somebody acts: {reason}. The log keeps the points{init}"
                    );
                    let wait = self.hold.failed(None);
                    self.pause(&shared.calls.held, wait.max(FIRST_HOLD / 2), batch)?;
                    match (shared.client_now)() {
                        Ok(client) => self.client = client,
                        Err(message) => tracing::error!(cause = "influx_held", sink = shared.name, "{message}"),
                    }
                }
                Action::Wait { reason, retry_after } => {
                    let wait = self.later.failed(retry_after).max(shared.calls.retry());
                    tracing::warn!(
                        cause = "influx_later",
                        sink = shared.name,
                        again_in_ms = wait.as_millis() as u64,
                        "a write has failed and is made again: {reason}"
                    );
                    self.pause(&shared.calls.waiting, wait, batch)?;
                }
            }
        }
        Some(batch.settle(&delivery))
    }

    fn pause(&self, gauge: &AtomicU64, wait: Duration, batch: &Batch) -> Option<()> {
        gauge.fetch_add(1, Ordering::Relaxed);
        let on = self.shared.sleep(wait, batch.generation);
        gauge.fetch_sub(1, Ordering::Relaxed);
        on.then_some(())
    }

    /// From the breaker.
    fn permit(&self, batch: &Batch) -> Option<Permit> {
        if self.shared.is_over(batch.generation) {
            return None;
        }
        loop {
            match self.shared.calls.admit() {
                Admission::Go(permit) => return Some(permit),
                Admission::WaitMs(ms) => self.pause(&self.shared.calls.waiting, Duration::from_millis(ms), batch)?,
            }
        }
    }

    fn learn_bytes(&self, bytes: usize) {
        let bytes = bytes.max(BATCH_BYTES_LEAST);
        if self.shared.batch_bytes_max.fetch_min(bytes, Ordering::Relaxed) > bytes {
            tracing::warn!(
                cause = "influx_too_large",
                sink = self.shared.name,
                bytes,
                "InfluxDB takes no larger writes (413): batches are made smaller from now on"
            );
        }
    }

    /// Not before it is on disk may the cursor move past the line; a disk that fails is waited for.
    fn set_aside(&self, batch: &Batch, line: usize, reason: String) -> Option<()> {
        let shared = self.shared;
        let ((_, log_id), (epoch, number)) = (batch.unit_of(line), batch.places[line]);
        let text = &batch.text[batch.start_of(line)..batch.ends[line] as usize - 1];
        let entry = Entry {
            id: shared.ids.text(log_id, epoch, number),
            time_ms: wall_ns() / 1_000_000,
            sink: shared.name.clone(),
            target: shared.labels[batch.target].clone(),
            reason,
            key: None,
            headers: Default::default(),
            body: String::from_utf8_lossy(text).into_owned(),
        };
        tracing::warn!(
            cause = "influx_dead_letter",
            sink = shared.name,
            id = entry.id,
            "InfluxDB refuses a line: {}. It is among the dead letters (`metricstream dead-letter list`)",
            entry.reason
        );
        loop {
            let appended = {
                let mut letters = shared.dead_letters.lock().unwrap_or_else(PoisonError::into_inner);
                let appended = letters.append(std::slice::from_ref(&entry));
                shared.calls.dead_letters_dropped.store(letters.dropped(), Ordering::Relaxed);
                if let Ok(stock) = letters.stock() {
                    shared.calls.dead_letter_bytes.store(stock.bytes, Ordering::Relaxed);
                }
                appended
            };
            shared.calls.dead_letters_failing.store(appended.is_err(), Ordering::Relaxed);
            let Err(error) = appended else { return Some(()) };
            tracing::error!(
                cause = "dead_letters",
                sink = shared.name,
                "a refused line cannot be written to the dead letters: {error}; the sink waits for it"
            );
            self.pause(&shared.calls.held, DEAD_LETTERS_AGAIN, batch)?;
        }
    }
}
