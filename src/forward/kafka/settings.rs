//! What an operator chose for a Kafka sink, as librdkafka wants it.

use std::path::{Path, PathBuf};

use rdkafka::ClientConfig;

use super::hurry::LINGER;
use super::render::KeyBy;
use super::topic::Template;
use crate::config::{self, KafkaKey, KafkaSasl};

#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach Kafka, and what is passed on as it is
    pub client: ClientConfig,
    /// Read whenever a client is made
    pub password_file: Option<PathBuf>,
    pub topic_raw: Template,
    pub topic_aggregates: Template,
    pub key_by: KeyBy,
    /// Records handed over and not acknowledged, with librdkafka's own memory for them
    pub in_flight_bytes_max: usize,
    pub batch_bytes_max: u32,
}

/// Whether this build speaks TLS, and the SASL mechanisms that need its library.
const HAS_TLS: bool = cfg!(feature = "kafka-tls");

/// Properties that delivery, order or bounds depend on, or that have a key of their own here.
const OURS: &[(&str, &str)] = &[
    ("bootstrap.servers", "brokers"),
    ("metadata.broker.list", "brokers"),
    ("compression.type", "codec"),
    ("compression.codec", "codec"),
    ("batch.size", "batch_bytes_max"),
    ("batch.num.messages", "batch_bytes_max"),
    ("security.protocol", "tls"),
    ("sasl.mechanism", "sasl"),
    ("sasl.mechanisms", "sasl"),
    ("sasl.username", "username"),
    ("sasl.password", "password_file"),
    ("ssl.ca.location", "tls_ca"),
    ("ssl.certificate.location", "tls_certificate"),
    ("ssl.key.location", "tls_key"),
    ("acks", ""),
    ("request.required.acks", ""),
    ("enable.idempotence", ""),
    ("enable.gapless.guarantee", ""),
    ("transactional.id", ""),
    ("message.timeout.ms", ""),
    ("delivery.timeout.ms", ""),
    ("message.send.max.retries", ""),
    ("retries", ""),
    ("partitioner", ""),
    ("message.max.bytes", ""),
    ("queue.buffering.max.messages", ""),
    ("queue.buffering.max.kbytes", ""),
];

impl Settings {
    /// Of a sink without [`problems`].
    pub fn new(sink: &config::Sink) -> Settings {
        let template = |text: &str| Template::parse(text).expect("checked with the configuration");
        Settings {
            client: client(sink),
            password_file: sink.password_file.clone(),
            topic_raw: template(&sink.topic),
            topic_aggregates: template(&sink.topic_aggregates),
            key_by: match sink.key {
                KafkaKey::Client => KeyBy::Client,
                KafkaKey::Name => KeyBy::Name,
            },
            in_flight_bytes_max: sink.in_flight_bytes_max.bytes() as usize,
            batch_bytes_max: sink.batch_bytes_max.bytes() as u32,
        }
    }

    /// With the password as it is now.
    pub fn client_now(&self) -> Result<ClientConfig, String> {
        let mut client = self.client.clone();
        if let Some(file) = &self.password_file {
            let file = match std::env::var_os("CREDENTIALS_DIRECTORY").filter(|directory| !directory.is_empty()) {
                Some(directory) => Path::new(&directory).join(file),
                None => file.clone(),
            };
            let password = std::fs::read_to_string(&file)
                .map_err(|error| format!("password_file {} cannot be read: {error}", file.display()))?;
            client.set("sasl.password", password.trim());
        }
        Ok(client)
    }
}

fn client(sink: &config::Sink) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("client.id", format!("metricstream-{}", sink.name))
        .set("bootstrap.servers", sink.brokers.join(","))
        .set("compression.type", sink.codec.word())
        .set("linger.ms", LINGER.as_millis().to_string())
        // Deleted topics and new partitions are seen after this time at the latest (librdkafka's own: 300 s).
        .set("topic.metadata.refresh.interval.ms", "10000")
        // A topic that is missing is said so after this time; new ones are found as soon.
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("reconnect.backoff.max.ms", "2000");
    let protocol = match (sink.tls, sink.sasl) {
        (false, KafkaSasl::None) => "plaintext",
        (true, KafkaSasl::None) => "ssl",
        (false, _) => "sasl_plaintext",
        (true, _) => "sasl_ssl",
    };
    client.set("security.protocol", protocol);
    let mechanism = match sink.sasl {
        KafkaSasl::None => None,
        KafkaSasl::Plain => Some("PLAIN"),
        KafkaSasl::ScramSha256 => Some("SCRAM-SHA-256"),
        KafkaSasl::ScramSha512 => Some("SCRAM-SHA-512"),
    };
    if let Some(mechanism) = mechanism {
        client.set("sasl.mechanism", mechanism).set("sasl.username", &sink.username);
    }
    for (name, path) in [
        ("ssl.ca.location", &sink.tls_ca),
        ("ssl.certificate.location", &sink.tls_certificate),
        ("ssl.key.location", &sink.tls_key),
    ] {
        if let Some(path) = path {
            client.set(name, path.to_string_lossy());
        }
    }
    for (name, value) in &sink.properties {
        client.set(name, value);
    }
    client
}

/// What is wrong with a sink of this type: which key, and a sentence.
pub fn problems(sink: &config::Sink) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    if sink.brokers.is_empty() {
        wrong.push(("brokers", "a sink of type \"kafka\" needs brokers".to_owned()));
    }
    for broker in &sink.brokers {
        let port = broker.rsplit_once(':').map(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if port != Some(true) || broker.contains([',', ' ', '/']) {
            wrong.push(("brokers", format!("\"{}\" is no \"host:port\"", broker.escape_debug())));
        }
    }
    for (key, topic) in [("topic", &sink.topic), ("topic_aggregates", &sink.topic_aggregates)] {
        wrong.extend(Template::parse(topic).err().map(|message| (key, message)));
    }
    let rebuild =
        "this build has no TLS for Kafka (the cargo feature kafka-tls); build it without --no-default-features";
    if sink.tls && !HAS_TLS {
        wrong.push(("tls", rebuild.to_owned()));
    }
    if matches!(sink.sasl, KafkaSasl::ScramSha256 | KafkaSasl::ScramSha512) && !HAS_TLS {
        wrong.push(("sasl", format!("SCRAM comes with TLS: {rebuild}")));
    }
    if !sink.tls && [&sink.tls_ca, &sink.tls_certificate, &sink.tls_key].into_iter().any(Option::is_some) {
        wrong.push(("tls", "certificates are given, but tls is false; set tls = true".to_owned()));
    }
    if sink.tls_certificate.is_some() != sink.tls_key.is_some() {
        wrong.push(("tls_key", "tls_certificate and tls_key go together".to_owned()));
    }
    let proves = sink.sasl != KafkaSasl::None;
    if proves && sink.username.is_empty() {
        wrong.push(("username", "sasl needs a username".to_owned()));
    }
    if proves && sink.password_file.is_none() {
        wrong.push(("password_file", "sasl needs a password_file".to_owned()));
    }
    if !proves && (!sink.username.is_empty() || sink.password_file.is_some()) {
        wrong.push(("sasl", "a username or password_file is given, but sasl is \"none\"".to_owned()));
    }
    for (name, value) in &sink.properties {
        let message = match OURS.iter().find(|(ours, _)| ours == name) {
            Some((_, "")) => format!("\"{name}\" is the sink's own: that no point is lost or out of order rests on it"),
            Some((_, key)) => format!("\"{name}\" has a key of its own: {key}"),
            None => match try_property(name, value) {
                Ok(()) => continue,
                Err(message) => message,
            },
        };
        wrong.push(("properties", message));
    }
    wrong
}

/// Asks librdkafka whether a property exists and takes this value.
fn try_property(name: &str, value: &str) -> Result<(), String> {
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("librdkafka does not take \"{name}\" = \"{value}\": {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn problems_of(lines: &str) -> Vec<String> {
        let text = format!("[[sink]]\nname = \"k\"\ntype = \"kafka\"\n{lines}\n");
        match Config::parse(&text, "test") {
            Ok(_) => Vec::new(),
            Err(problems) => problems.list.into_iter().map(|p| format!("{}: {}", p.key, p.message)).collect(),
        }
    }

    #[test]
    fn a_sink_is_judged_with_the_configuration() {
        let brokers = "brokers = [\"127.0.0.1:9092\", \"[::1]:9092\"]\n";
        for (lines, expected) in [
            ("", ""),
            ("topic = \"raw.{client}\"\nkey = \"name\"\ncodec = \"zstd\"\nbatch_bytes_max = \"64 KiB\"", ""),
            ("properties = { \"linger.ms\" = \"50\", \"debug\" = \"broker\" }", ""),
            ("sasl = \"plain\"\nusername = \"u\"\npassword_file = \"p\"", ""),
            ("brokers = []", "sink[0].brokers: a sink of type \"kafka\" needs brokers"),
            ("brokers = [\"kafka\"]", "sink[0].brokers: \"kafka\" is no \"host:port\""),
            ("topic = \"a b\"", "sink[0].topic: a topic may hold"),
            ("topic_aggregates = \"{host}\"", "sink[0].topic_aggregates: in the topic"),
            ("sasl = \"plain\"\nusername = \"u\"", "sink[0].password_file: sasl needs a password_file"),
            ("username = \"u\"", "sink[0].sasl: a username"),
            ("tls_ca = \"ca.pem\"", "sink[0].tls: certificates are given"),
            (
                "properties = { \"ssl.ca.location\" = \"ca.pem\" }",
                "sink[0].properties: \"ssl.ca.location\" has a key of its own: tls_ca",
            ),
            ("properties = { \"acks\" = \"1\" }", "sink[0].properties: \"acks\" is the sink's own"),
            (
                "properties = { \"batch.size\" = \"1\" }",
                "sink[0].properties: \"batch.size\" has a key of its own: batch_bytes_max",
            ),
            ("properties = { \"linger\" = \"1\" }", "sink[0].properties: librdkafka does not take \"linger\""),
            ("properties = { \"linger.ms\" = \"soon\" }", "sink[0].properties: librdkafka does not take \"linger.ms\""),
        ] {
            let brokers = if lines.starts_with("brokers") { "" } else { brokers };
            let found = problems_of(&format!("{brokers}{lines}"));
            match expected {
                "" => assert_eq!(found, Vec::<String>::new(), "{lines}"),
                _ => assert!(found.len() == 1 && found[0].starts_with(expected), "{lines}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_build_without_tls_says_so() {
        let found = problems_of(
            "brokers = [\"k:9092\"]\ntls = true\nsasl = \"scram-sha-512\"\nusername = \"u\"\npassword_file = \"p\"",
        );
        let told = found.iter().filter(|p| p.contains("the cargo feature kafka-tls")).count();
        assert_eq!(told, if HAS_TLS { 0 } else { 2 }, "{found:?}");
    }

    #[test]
    fn every_codec_is_in_this_build() {
        for codec in config::KafkaCodec::ALL {
            try_property("compression.type", codec.word()).expect("built in");
        }
    }

    #[test]
    fn the_password_is_read_when_a_client_is_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("password");
        let settings = Settings {
            client: ClientConfig::new(),
            password_file: Some(file.clone()),
            topic_raw: Template::parse("a").expect("good"),
            topic_aggregates: Template::parse("b").expect("good"),
            key_by: KeyBy::Client,
            in_flight_bytes_max: 1,
            batch_bytes_max: 1,
        };
        assert!(settings.client_now().expect_err("no file yet").contains("cannot be read"));
        for password in ["one", "two"] {
            std::fs::write(&file, format!("{password}\n")).expect("written");
            assert_eq!(settings.client_now().expect("readable").get("sasl.password"), Some(password));
        }
    }
}
