//! librdkafka's producer, as much of it as the sink needs: take a record, say later what became of it.
//!
//! `acks=all`, idempotent, never giving a record up for its age. Reports are gathered in [`Producer::poll`], on the caller's
//! thread; nothing here waits, except [`Producer::new`] and dropping (for librdkafka's own threads, some milliseconds).

use std::ffi::CStr;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{DeliveryResult, Headers, Message};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode as Code;

use super::flight::{Mode, Ticket};
pub use super::native::Form;
use super::native::{self, HEADERS_MAX, Outgoing, Topic};
use super::refusal::{self, Refusal, Way};

/// What the delivery reports said since they were last taken.
#[derive(Default)]
pub struct Reports {
    /// By unit, in the order of the reports
    pub delivered: Vec<(u16, u64)>,
    /// The same one by one, when records go singly
    pub singly: Vec<Ticket>,
    pub failed: Vec<FailedRecord>,
    /// The client as a whole is refused: the last one heard
    pub refusal: Option<Refusal>,
}

/// A record that did not get there, as librdkafka hands it back.
pub struct FailedRecord {
    pub ticket: Ticket,
    pub code: Code,
    pub topic: String,
    /// As in its header
    pub id: String,
    pub headers: Vec<(String, String)>,
    /// Of key and value
    pub bytes: usize,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

impl Reports {
    /// No record was reported.
    pub fn is_empty(&self) -> bool {
        self.delivered.is_empty() && self.failed.is_empty()
    }
    pub fn clear(&mut self) {
        self.delivered.clear();
        self.singly.clear();
        self.failed.clear();
        self.refusal = None;
    }
}

struct Context {
    sink: String,
    singly: bool,
    way: Way,
    reports: Mutex<Reports>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        // Whatever stops delivery is said by the sink, in its own words; librdkafka's help to find out why.
        match level {
            // That enable.gapless.guarantee is experimental: known, and its effect is tested.
            _ if fac == "CONFWARN" => tracing::debug!(sink = %self.sink, "librdkafka: {fac}: {message}"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(sink = %self.sink, "librdkafka: {fac}: {message}");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                tracing::warn!(sink = %self.sink, "librdkafka: {fac}: {message}");
            }
            // It takes a connection that was closed for nothing much, even if that says which setting is wrong.
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice if !refusal::advice(message, self.way).is_empty() => {
                tracing::warn!(
                    sink = %self.sink,
                    "Kafka cannot be reached, records wait in the log: {message}{}",
                    refusal::advice(message, self.way)
                );
            }
            _ => tracing::debug!(sink = %self.sink, "librdkafka: {fac}: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
        if let Some(refusal) = Refusal::of(code, reason) {
            tracing::debug!(sink = %self.sink, "{}", refusal.message);
            self.reports.lock().expect("nobody panics with the reports in hand").refusal = Some(refusal);
            return;
        }
        tracing::warn!(
            sink = %self.sink,
            "Kafka cannot be reached, records wait in the log: {error}: {reason}{}",
            refusal::advice(reason, self.way)
        );
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let ticket = Ticket::from_bits(opaque);
        let mut reports = self.reports.lock().expect("nobody panics with the reports in hand");
        match result {
            Ok(_) => {
                match reports.delivered.last_mut() {
                    Some((unit, records)) if *unit == ticket.unit() => *records += 1,
                    _ => reports.delivered.push((ticket.unit(), 1)),
                }
                if self.singly {
                    reports.singly.push(ticket);
                }
            }
            Err((error, message)) => {
                let key = message.key().unwrap_or(&[]);
                let value = message.payload().unwrap_or(&[]);
                let code = error.rdkafka_error_code().unwrap_or(Code::Fail);
                // Their contents are wanted only when they are set aside, which is in this mode.
                let keep = |bytes: &[u8]| if self.singly { bytes.to_vec() } else { Vec::new() };
                let headers = message.headers().map(texts).unwrap_or_default();
                let id = headers.iter().find(|(name, _)| name == "id").map(|(_, id)| id.clone());
                reports.failed.push(FailedRecord {
                    id: id.unwrap_or_default(),
                    headers: if self.singly { headers } else { Vec::new() },
                    ticket,
                    code,
                    topic: message.topic().to_owned(),
                    bytes: key.len() + value.len(),
                    key: keep(key),
                    value: keep(value),
                });
            }
        }
    }
}

/// Ours are texts.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn texts(headers: &impl Headers) -> Vec<(String, String)> {
    headers.iter().filter_map(|header| Some((header.key.to_owned(), text(header.value?)))).collect()
}

impl Outbound<'_> {
    pub fn header_texts(&self) -> Vec<(String, String)> {
        let given = self.headers.iter().filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| (text(name.to_bytes()), text(value))).collect()
    }
}

/// librdkafka did not take a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// Its queue is full: poll, and try again
    Full,
    Failed(Code),
}

pub struct Producer {
    /// Those that were sent to, by name; before `inner`, so that they go first
    topics: Vec<(String, Topic)>,
    /// Where the last record went
    last: usize,
    inner: BaseProducer<Context>,
}

/// A record, borrowed. Headers without a value are left out.
#[derive(Clone, Copy)]
pub struct Outbound<'a> {
    pub topic: &'a str,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub headers: [(&'static CStr, &'a [u8]); HEADERS_MAX],
    pub timestamp_ms: i64,
}

impl Producer {
    /// `base`: how to reach Kafka and what the operator chose. Connects in the background: brokers that are away are no
    /// error here.
    pub fn new(base: &ClientConfig, sink: &str, mode: Mode) -> KafkaResult<Producer> {
        let mut config = base.clone();
        must_be(&mut config);
        // The crate would hear errors only; what an operator asks for with the property `debug` comes below Info.
        let has_debug = config.get("debug").is_some();
        config.set_log_level(if has_debug { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        match mode {
            Mode::Batches { bytes_max } => {
                config.set("enable.gapless.guarantee", "true").set("batch.size", bytes_max.to_string());
            }
            Mode::Singly => {
                config.set("enable.gapless.guarantee", "false").set("batch.num.messages", "1").set("linger.ms", "0");
            }
        }
        let protocol = config.get("security.protocol").unwrap_or("plaintext");
        let way = Way { tls: protocol.ends_with("ssl"), login: protocol.starts_with("sasl") };
        let context = Context { sink: sink.to_owned(), singly: mode == Mode::Singly, way, reports: Mutex::default() };
        Ok(Producer { topics: Vec::new(), last: 0, inner: config.create_with_context(context)? })
    }

    /// Copies the record into librdkafka's queue.
    #[inline]
    pub fn send(&mut self, form: &mut Form, record: &Outbound<'_>, ticket: Ticket) -> Result<(), NotTaken> {
        if self.topics.get(self.last).is_none_or(|(name, _)| name != record.topic) {
            self.last = self.find(record.topic)?;
        }
        let &Outbound { key, value, headers, timestamp_ms, .. } = record;
        let outgoing = Outgoing { key, value, headers, timestamp_ms, opaque: ticket.to_bits() };
        native::produce(&self.inner, &self.topics[self.last].1, form, &outgoing).map_err(|code| match code {
            Code::QueueFull => NotTaken::Full,
            code => NotTaken::Failed(code),
        })
    }

    fn find(&mut self, topic: &str) -> Result<usize, NotTaken> {
        // Sorted: a template may make many of them.
        match self.topics.binary_search_by(|(name, _)| name.as_str().cmp(topic)) {
            Ok(at) => Ok(at),
            Err(at) => {
                let made = Topic::new(&self.inner, topic).map_err(NotTaken::Failed)?;
                self.topics.insert(at, (topic.to_owned(), made));
                Ok(at)
            }
        }
    }

    /// Swaps what the reports said so far with `reports`, which comes empty.
    pub fn poll(&self, wait: Duration, reports: &mut Reports) {
        self.inner.poll(wait);
        let mut gathered = self.inner.context().reports.lock().expect("nobody panics with the reports in hand");
        std::mem::swap(&mut *gathered, reports);
    }

    /// Lets reports come in, without handing them out.
    pub fn wait(&self, wait: Duration) {
        self.inner.poll(wait);
    }

    /// What is queued need not wait for company: waits up to `within` for it to leave.
    pub fn hurry(&self, within: Duration) {
        native::hurry(&self.inner, within);
    }

    /// Gives up what is on its way; the reports say so.
    pub fn purge(&self) {
        self.inner.purge(PurgeConfig::default().queue().inflight());
    }
}

/// What delivery and order depend on, whatever else is configured.
pub const FIXED: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "true"),
    // No record is given up because it is old.
    ("message.timeout.ms", "0"),
    // As Java clients do, so that a key is in the same partition whoever sends it.
    ("partitioner", "murmur2_random"),
    // The sink bounds what is on its way itself, by records and bytes.
    ("queue.buffering.max.messages", "10000000"),
    ("queue.buffering.max.kbytes", "2097151"),
    // The topic's own bound decides; this one is far above what a point can be.
    ("message.max.bytes", "33554432"),
];

fn must_be(config: &mut ClientConfig) {
    for (name, value) in FIXED {
        config.set(*name, *value);
    }
}
