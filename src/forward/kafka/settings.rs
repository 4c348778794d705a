//! What an operator chose for a Kafka sink, as librdkafka wants it.

use rdkafka::ClientConfig;

use super::render::KeyBy;
use super::topic::Template;

#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach Kafka, and everything that is passed on as it is
    pub client: ClientConfig,
    pub topic_raw: Template,
    pub topic_aggregates: Template,
    pub key_by: KeyBy,
    /// Records handed over and not acknowledged, with librdkafka's own memory for them
    pub in_flight_bytes_max: usize,
    pub batch_bytes_max: u32,
}

/// Whether this build can speak TLS, and SASL mechanisms that need its library.
pub const HAS_TLS: bool = cfg!(feature = "kafka-tls");

/// librdkafka's properties that delivery or bounds depend on: the sink sets them itself.
pub fn is_ours(property: &str) -> bool {
    const OURS: &[&str] = &[
        "acks",
        "request.required.acks",
        "bootstrap.servers",
        "metadata.broker.list",
        "enable.idempotence",
        "enable.gapless.guarantee",
        "transactional.id",
        "message.timeout.ms",
        "delivery.timeout.ms",
        "message.send.max.retries",
        "retries",
        "partitioner",
        "batch.size",
        "batch.num.messages",
        "queue.buffering.max.messages",
        "queue.buffering.max.kbytes",
        "message.max.bytes",
        "compression.type",
        "compression.codec",
    ];
    OURS.contains(&property)
}

/// Asks librdkafka whether a property exists and takes this value. The error is its sentence.
pub fn try_property(name: &str, value: &str) -> Result<(), String> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    config.create_native_config().map(drop).map_err(|error| error.to_string())
}
