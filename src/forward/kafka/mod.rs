//! The Kafka sink: a record a point, through an idempotent producer, acknowledged by all in-sync replicas.
//!
//! Promises, as a consumer sees them that keeps the first of equal `id` headers:
//! - every point of a settled unit is there, or in the dead letters with Kafka's reason; a window that is too large for its
//!   topic is there in parts;
//! - records of one key, but for windows in parts, are in the order of the log, through retries, new producers and
//!   restarts of either side (as long as the topic keeps its number of partitions);
//! - a record's `id` is the same each time it is sent.
//!
//! [`flight`] decides, [`render`] writes, [`producer`] is librdkafka. Memory: what is on its way is bounded by
//! `in_flight_bytes_max`, give or take one unit.

mod again;
mod flight;
mod hurry;
mod letters;
mod native;
mod parts;
mod producer;
mod refusal;
mod render;
pub mod settings;
pub mod topic;

#[cfg(test)]
mod mock_tests;
#[cfg(test)]
mod size_tests;

use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::share::log_name;
use super::sink::{Report, Settled, Sink, SinkFailed};
use super::unit::{Item, Unit};
pub use again::resend;
use flight::{Blame, Failed, Flight, Trouble};
use hurry::Hurry;
pub use letters::LetterBox;
use parts::{Division, InParts, Told};
use producer::{Form, NotTaken, Outbound, Producer, Reports};
use refusal::Standing;
pub use render::KeyBy;
use render::Renderer;
pub use settings::Settings;

use crate::reducer::thread::wall_ns;

/// How soon reports are looked at while records are on their way.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long a unit may wait for room in librdkafka's queue, which is far larger than what is let in.
const ROOM_WITHIN: Duration = Duration::from_millis(500);
/// A record that has been on its way for longer is one that Kafka does not take now: it is away, or too few replicas are.
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// A batch is at most this part of what may be on its way: several partitions are to fill theirs.
const BATCHES_ON_THEIR_WAY_MIN: usize = 64;
/// One turn takes at most this many batches of reports in.
const REPORTS_A_TURN: usize = 256;

/// A record that Kafka refused for good.
pub struct Letter {
    /// As in the record's header
    pub id: String,
    pub headers: Vec<(String, String)>,
    pub topic: String,
    pub reason: String,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

/// Where refused records are kept. When `Ok` comes back they are on stable storage.
pub trait SetAside: Send {
    fn set_aside(&mut self, letters: Vec<Letter>) -> std::io::Result<()>;
}

pub struct KafkaSink {
    name: String,
    settings: Settings,
    renderer: Renderer,
    aside: Box<dyn SetAside>,
    flight: Flight,
    producer: Option<Producer>,
    /// Each unit on its way with its bytes, and when it was handed over
    bytes: std::collections::VecDeque<(u64, usize, Instant)>,
    bytes_in_flight: usize,
    /// The topic that the trouble is about
    trouble_topic: String,
    in_parts: InParts,
    reports: Reports,
    refused: Standing,
    hurry: Hurry,
}

impl KafkaSink {
    pub fn new(name: &str, node_id: u128, settings: Settings, aside: Box<dyn SetAside>) -> KafkaSink {
        KafkaSink {
            name: name.to_owned(),
            renderer: Renderer::new(
                node_id,
                settings.key_by,
                settings.topic_raw.clone(),
                settings.topic_aggregates.clone(),
            ),
            flight: Flight::new(settings.batch_bytes_max.min(share_of_a_batch(settings.in_flight_bytes_max))),
            settings,
            aside,
            producer: None,
            bytes: std::collections::VecDeque::new(),
            bytes_in_flight: 0,
            trouble_topic: String::new(),
            in_parts: InParts::default(),
            reports: Reports::default(),
            refused: Standing::default(),
            hurry: Hurry::new(Instant::now()),
        }
    }

    fn hand_over(&mut self, unit: &mut Unit<'_>, now: Instant) -> Result<(), SinkFailed> {
        if self.flight.wants_new_producer() {
            self.end_producer();
            self.flight.change_batches();
        }
        if self.producer.is_none() {
            let made = self.settings.client_now().and_then(|client| {
                let made = Producer::new(&client, &self.name, self.flight.mode());
                made.map_err(|error| {
                    format!("the Kafka client cannot be made: {error}; see the sink's tls settings and properties")
                })
            });
            self.producer = Some(made.map_err(|message| SinkFailed { message, held: true, retry_after: None })?);
        }
        let producer = self.producer.as_mut().expect("made above");
        let (flight, renderer) = (&mut self.flight, &mut self.renderer);
        let (log, log_id, segment_id) = (log_name(unit.log_id), unit.log_id, unit.segment_id);
        let (mut bytes, mut letters) = (0, Vec::new());
        // Of the whole unit: a look at the clock for each record would cost as much as rendering it.
        let timestamp_ms = wall_ns() / 1_000_000;
        let mut form = Form::new();
        flight.begin(unit.id, log_id, unit.first_point);
        let shown = unit.for_each(|item| {
            let (number, record) = match &item {
                Item::Point(point) => (point.number, renderer.point((&log, log_id, segment_id), point)),
                Item::Window(window) => (window.number, renderer.window(&log, window)),
            };
            let ticket = flight.ticket(number);
            let (topic, key, value) = (record.topic, record.key, record.value);
            let outbound = Outbound { topic, key, value, headers: record.headers(), timestamp_ms };
            let mut full_since: Option<Instant> = None;
            loop {
                match producer.send(&mut form, &outbound, ticket) {
                    Ok(()) => {
                        bytes += record.bytes();
                        flight.sent();
                        return Ok(());
                    }
                    Err(NotTaken::Full) if full_since.get_or_insert_with(Instant::now).elapsed() < ROOM_WITHIN => {
                        // Reports make room; they are taken in at the next turn.
                        producer.wait(LOOK_EVERY);
                    }
                    Err(NotTaken::Failed(Code::MessageSizeTooLarge)) => {
                        flight.refused_at_once();
                        letters.push(Letter {
                            id: String::from_utf8_lossy(record.id).into_owned(),
                            headers: outbound.header_texts(),
                            topic: record.topic.to_owned(),
                            reason: "the record is larger than this sink sends (32 MiB)".to_owned(),
                            key: record.key.to_vec(),
                            value: record.value.to_vec(),
                        });
                        return Ok(());
                    }
                    Err(NotTaken::Full) => return Err((Code::QueueFull, String::new())),
                    Err(NotTaken::Failed(code)) => return Err((code, record.topic.to_owned())),
                }
            }
        });
        self.bytes.push_back((unit.id, bytes, now));
        self.hurry.moved(Instant::now());
        self.bytes_in_flight += bytes;
        match shown {
            Ok(()) => {}
            Err((Code::QueueFull, _)) => return Err(SinkFailed::retry("the Kafka client's queue is full")),
            Err((Code::Fatal, _)) => {
                // What has made it fatal stands in the reports.
                self.take_reports(Duration::from_millis(50))?;
                let trouble = self.flight.trouble().cloned();
                let trouble = trouble.unwrap_or(Trouble { blame: Blame::Producer, code: Code::Fatal, records: 0 });
                return Err(self.failure(&trouble));
            }
            Err((code, topic)) => {
                self.trouble_topic = topic;
                return Err(self.failure(&Trouble { blame: flight::blame(code), code, records: 1 }));
            }
        }
        self.put_aside(letters)?;
        self.flight.end();
        Ok(())
    }

    /// Takes in what the delivery reports say: for at least `wait`, if nothing comes sooner.
    fn take_reports(&mut self, wait: Duration) -> Result<(), SinkFailed> {
        let KafkaSink { name, producer: Some(producer), flight, in_parts, reports, hurry, trouble_topic, .. } = self
        else {
            return Ok(());
        };
        let standing = &mut self.refused;
        let mut wait = wait;
        let mut refused = Vec::new();
        for _ in 0..REPORTS_A_TURN {
            reports.clear();
            producer.poll(wait, reports);
            if let Some(refusal) = reports.refusal.take() {
                standing.heard(refusal, Instant::now());
            }
            if reports.is_empty() {
                break;
            }
            if !reports.delivered.is_empty() {
                standing.clear();
            }
            wait = Duration::ZERO;
            hurry.moved(Instant::now());
            let mut told = Vec::new();
            for &ticket in &reports.singly {
                match in_parts.told(ticket, None) {
                    Told::Nothing => {
                        flight.settled_singly(ticket);
                        flight.delivered(ticket.unit(), 1);
                    }
                    of_part => told.push((ticket, of_part)),
                }
            }
            if reports.singly.is_empty() {
                reports.delivered.iter().for_each(|&(unit, records)| flight.delivered(unit, records));
            }
            for record in reports.failed.drain(..) {
                let ticket = record.ticket;
                if in_parts.holds(ticket) && matches!(flight::blame(record.code), Blame::TooLarge | Blame::Record) {
                    told.push((ticket, in_parts.told(ticket, Some(record.code))));
                    continue;
                }
                let had = flight.trouble().cloned();
                match flight.failed(ticket, record.code, record.bytes) {
                    Failed::Refused if flight::blame(record.code) == Blame::TooLarge => {
                        told.push((ticket, in_parts.begin(record)));
                    }
                    Failed::Refused => refused.push(record),
                    Failed::Noted => {
                        if flight.trouble().map(|t| t.code) != had.map(|t| t.code) {
                            *trouble_topic = record.topic;
                        }
                    }
                }
            }
            for (ticket, told) in told {
                match told {
                    Told::Nothing | Told::Waiting => {}
                    Told::Delivered => flight.delivered(ticket.unit(), 1),
                    Told::Refused(record) => refused.push(record),
                    Told::Smaller(division) => {
                        tracing::info!(
                            cause = "kafka_parts",
                            sink = %name,
                            topic = %division.topic,
                            parts = division.records.len(),
                            "a window is too large for its topic, and is sent in parts"
                        );
                        send_parts(producer, &division)?;
                    }
                }
            }
        }
        let tickets: Vec<_> = refused.iter().map(|record| record.ticket).collect();
        let letters = refused.into_iter().map(|record| Letter {
            id: record.id,
            headers: record.headers,
            topic: record.topic,
            reason: format!("Kafka does not take it: {}", words(record.code)),
            key: record.key,
            value: record.value,
        });
        self.put_aside(letters.collect())?;
        tickets.into_iter().for_each(|ticket| self.flight.dead_lettered(ticket));
        Ok(())
    }

    fn put_aside(&mut self, letters: Vec<Letter>) -> Result<(), SinkFailed> {
        if letters.is_empty() {
            return Ok(());
        }
        let records = letters.len();
        tracing::warn!(
            cause = "kafka_dead_letter",
            sink = %self.name,
            topic = %letters[0].topic,
            records,
            "records are set aside as dead letters: {}",
            letters[0].reason
        );
        self.aside.set_aside(letters).map_err(|error| {
            SinkFailed::retry(format!("{records} refused records cannot be written to the dead letters: {error}"))
        })
    }

    fn settle(&mut self, report: &mut Report) {
        let KafkaSink { flight, bytes, bytes_in_flight, .. } = self;
        flight.take_settled(|id, outcome| {
            while let Some(&(unit, size, _)) = bytes.front()
                && unit <= id
            {
                *bytes_in_flight -= size;
                bytes.pop_front();
            }
            if outcome.delivered + outcome.dead_lettered > 0 {
                let settled =
                    Settled { delivered: outcome.delivered, refused: 0, dead_lettered: outcome.dead_lettered };
                report.settled.push((id, settled));
            }
        });
    }

    fn failure(&self, trouble: &Trouble) -> SinkFailed {
        let (topic, said) = (&self.trouble_topic, words(trouble.code));
        let message = match trouble.blame {
            Blame::TooLarge | Blame::Record => format!(
                "Kafka refuses a batch of {} records for the topic {topic} ({said}); they are sent one by one",
                trouble.records
            ),
            Blame::Operator if matches!(trouble.code, Code::UnknownTopic | Code::UnknownTopicOrPartition) => format!(
                "Kafka has no topic {topic}, or does not show it to this client; create it or correct the sink's topic"
            ),
            Blame::Operator => format!("Kafka refuses this client at the topic {topic}: {said}; an operator must help"),
            Blame::Producer => format!("{} records are not known to be in Kafka: {said}", trouble.records),
        };
        let retry_after = matches!(trouble.blame, Blame::TooLarge | Blame::Record).then_some(Duration::ZERO);
        SinkFailed { message, held: trouble.blame == Blame::Operator, retry_after }
    }

    /// Nothing will come of what is on its way with this client.
    fn held_by_refusal(&self) -> Option<SinkFailed> {
        let waiting_since = self.bytes.front().map(|&(_, _, handed_over)| handed_over);
        let refusal = self.refused.holds(waiting_since, Instant::now())?;
        Some(SinkFailed { message: refusal.message.clone(), held: true, retry_after: None })
    }

    /// What is on its way is given up; the thread that ends librdkafka's own is not waited for.
    fn end_producer(&mut self) {
        let Some(producer) = self.producer.take() else { return };
        producer.purge();
        let ended = std::thread::Builder::new().name("ms-kafka-end".to_owned()).spawn(move || drop(producer));
        if let Err(error) = ended {
            // The closure, and the producer with it, was dropped here: slower, and just as good.
            tracing::debug!(%error, "no thread to end a Kafka producer");
        }
    }
}

fn share_of_a_batch(in_flight_bytes_max: usize) -> u32 {
    u32::try_from(in_flight_bytes_max / BATCHES_ON_THEIR_WAY_MIN).unwrap_or(u32::MAX)
}

fn send_parts(producer: &mut Producer, division: &Division) -> Result<(), SinkFailed> {
    let (mut form, timestamp_ms) = (Form::new(), wall_ns() / 1_000_000);
    let Division { ticket, topic, key, records } = division;
    let begun = Instant::now();
    for (id, value) in records {
        let headers = [(c"id", id.as_bytes()), (c"point", b""), (c"request_id", b""), (c"traceparent", b"")];
        let record = Outbound { topic, key, value, headers, timestamp_ms };
        loop {
            match producer.send(&mut form, &record, *ticket) {
                Ok(()) => break,
                Err(NotTaken::Full) if begun.elapsed() < ROOM_WITHIN => producer.wait(LOOK_EVERY),
                Err(NotTaken::Full) => return Err(SinkFailed::retry("the Kafka client's queue is full")),
                Err(NotTaken::Failed(code)) => {
                    return Err(SinkFailed::retry(format!("a part of a window is not taken: {}", words(code))));
                }
            }
        }
    }
    Ok(())
}

/// librdkafka's sentence for a code.
fn words(code: Code) -> String {
    code.to_string()
}

impl Sink for KafkaSink {
    fn has_room(&self) -> bool {
        let room = self.bytes_in_flight < self.settings.in_flight_bytes_max && self.flight.trouble().is_none();
        // Singly, one unit at a time: then the mode ends as soon as it may. The same before another producer takes over.
        let alone = self.flight.is_singly() || self.flight.wants_new_producer();
        room && (self.flight.is_empty() || !alone)
    }

    fn send(&mut self, unit: &mut Unit<'_>, now: Instant) -> Result<(), SinkFailed> {
        self.hand_over(unit, now)
    }

    fn turn(&mut self, _: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        let taken = self.take_reports(Duration::ZERO);
        self.settle(report);
        taken?;
        if let Some(trouble) = self.flight.trouble().cloned() {
            return Err(self.failure(&trouble));
        }
        if let Some(held) = self.held_by_refusal() {
            return Err(held);
        }
        if let (Some(producer), false, false) = (&self.producer, self.flight.is_empty(), self.flight.is_singly())
            && let Some(within) = self.hurry.due(Instant::now(), self.has_room())
        {
            producer.hurry(within);
        }
        Ok(())
    }

    fn next_turn(&self, now: Instant) -> Option<Instant> {
        // Without anything on its way, librdkafka still has errors to tell.
        let every = if self.flight.is_empty() { 250 * LOOK_EVERY } else { LOOK_EVERY };
        self.producer.is_some().then(|| now + every)
    }

    fn is_stalled(&self, now: Instant) -> bool {
        self.bytes
            .front()
            .is_some_and(|&(_, _, handed_over)| now.saturating_duration_since(handed_over) > STALLED_AFTER)
    }

    fn finish(&mut self, deadline: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let (Some(producer), false) = (&self.producer, self.flight.is_singly()) {
                producer.hurry(left.min(LOOK_EVERY));
            }
            let taken = self.take_reports(left.min(5 * LOOK_EVERY));
            self.settle(report);
            taken?;
            if let Some(trouble) = self.flight.trouble().cloned() {
                return Err(self.failure(&trouble));
            }
            if self.flight.is_empty() {
                return Ok(());
            }
            if let Some(held) = self.held_by_refusal() {
                return Err(held);
            }
            if left.is_zero() {
                return Err(SinkFailed::retry(format!(
                    "{} records were not acknowledged in time",
                    self.flight.records()
                )));
            }
        }
    }

    fn reset(&mut self) {
        self.end_producer();
        self.flight.reset();
        self.in_parts.forget();
        self.bytes.clear();
        self.bytes_in_flight = 0;
        self.reports.clear();
        self.refused.clear();
    }
}
