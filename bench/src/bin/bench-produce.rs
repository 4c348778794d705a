//! What librdkafka itself costs: a bare producer of records as the Kafka sink makes them, with nothing around it.
//!
//! Records have the sink's sizes and headers, the producer its settings (acks=all, idempotent, gapless); they are made
//! beforehand, so that making them is not measured. Goes to the brokers given, or to librdkafka's own mock cluster, whose
//! thread is left out of the sum. Prints one line of JSON: CPU seconds for a million records, by thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A bare librdkafka producer.
#[derive(Parser)]
struct Args {
    /// Without it: librdkafka's mock cluster
    #[arg(long)]
    brokers: Option<String>,
    #[arg(long, default_value = "bench-produce")]
    topic: String,
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
    #[arg(long, default_value = "lz4")]
    codec: String,
    /// Records on their way at most
    #[arg(long, default_value_t = 90_000)]
    in_flight: u64,
}

#[derive(Default)]
struct Reports(AtomicU64);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, _: usize) {
        assert!(result.is_ok(), "delivery failed: {:?}", result.as_ref().err());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// CPU seconds by thread name, from the scheduler's own count in ns.
fn cpu_s() -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file));
        // A thread may end between the listing and the look.
        let (Ok(name), Ok(times)) = (read("comm"), read("schedstat")) else { continue };
        let ns: f64 = times.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
        *found.entry(name.trim().to_owned()).or_insert(0.0) += ns / 1e9;
    }
    found
}

struct Made {
    key: String,
    value: String,
    id: String,
    point: String,
}

/// 50 clients with 200 series each, a thousand points of one client in a row.
fn made(n: u64) -> Made {
    let (client, host, ns) = (n / 1000 % 50, n % 200, 1_795_278_412_380_000_000 + n * 1000);
    let hash = u128::from(client * 200 + host + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    Made {
        key: format!("client-{client:04}"),
        value: format!(
            "{{\"name\":\"cpu_usage.value\",\"client_id\":\"client-{client:04}\",\"tags\":{{\"datacenter\":\"fra1\",\
             \"environment\":\"production\",\"host\":\"web-{client:04}-{host:04}\"}},\"value\":{},\"timestamp\":{},\
             \"timestamp_ns\":{ns}}}",
            (n * 7919 % 100_000) as f64 / 1000.0,
            ns / 1_000_000
        ),
        id: format!("0123456789abcdef-0-1-{n}"),
        point: format!("{hash:032x}-{ns}"),
    }
}

fn main() {
    let args = Args::parse();
    let mock = args.brokers.is_none().then(|| {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic(&args.topic, 4, 1).expect("a topic");
        cluster
    });
    let brokers = args.brokers.clone().or_else(|| mock.as_ref().map(|mock| mock.bootstrap_servers()));
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", brokers.as_deref().expect("one of both")),
        ("compression.type", &args.codec),
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("enable.gapless.guarantee", "true"),
        ("message.timeout.ms", "0"),
        ("partitioner", "murmur2_random"),
        ("queue.buffering.max.messages", "10000000"),
        ("queue.buffering.max.kbytes", "2097151"),
        ("linger.ms", "1000"),
    ] {
        config.set(name, value);
    }
    let producer: BaseProducer<Reports> = config.create_with_context(Reports::default()).expect("a producer");
    let delivered = || producer.context().0.load(Ordering::Relaxed);
    let before = cpu_s();
    let begun = Instant::now();
    let (mut making, mut sent) = (0.0, 0);
    while sent < args.records {
        let own = cpu_of_this_thread();
        let batch: Vec<Made> = (sent..args.records.min(sent + 2000)).map(made).collect();
        making += cpu_of_this_thread() - own;
        for made in &batch {
            let headers = OwnedHeaders::new_with_capacity(2)
                .insert(Header { key: "id", value: Some(made.id.as_bytes()) })
                .insert(Header { key: "point", value: Some(made.point.as_bytes()) });
            let record = BaseRecord::with_opaque_to(&args.topic, 0)
                .key(made.key.as_bytes())
                .payload(made.value.as_bytes())
                .headers(headers);
            producer.send(record).map_err(|(error, _)| error).expect("its queue has room");
        }
        sent += batch.len() as u64;
        producer.poll(Duration::ZERO);
        while sent - delivered() > args.in_flight {
            std::thread::sleep(Duration::from_millis(2));
            producer.poll(Duration::ZERO);
        }
    }
    while delivered() < sent {
        std::thread::sleep(Duration::from_millis(2));
        producer.poll(Duration::ZERO);
    }
    let wall_s = begun.elapsed().as_secs_f64();
    let million = args.records as f64 / 1e6;
    let (mut total, mut by_thread) = (-making / million, String::new());
    for (name, after) in cpu_s() {
        let spent = (after - before.get(&name).unwrap_or(&0.0)) / million;
        if !name.starts_with("rdk:mock") {
            total += spent;
        }
        by_thread.push_str(&format!("{}\"{name}\": {spent:.3}", if by_thread.is_empty() { "" } else { ", " }));
    }
    println!(
        "{{\"cpu_s_per_million\": {total:.3}, \"records_per_s\": {:.0}, \"making_s_per_million\": {:.3}, \"threads\": {{{by_thread}}}}}",
        args.records as f64 / wall_s,
        making / million
    );
}

/// In seconds.
fn cpu_of_this_thread() -> f64 {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").expect("procfs");
    times.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}
