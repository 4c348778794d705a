//! What a lookup in the series table costs: `cargo run --release -p metricstream-shards --example series_speed`.
//!
//! Points come in requests of 100, each series once a round in an order of its own, resolved in groups of 16 with
//! prefetching, as the decoders do. The time of the hash is included; that of finding the spans in a body is not.

use metricstream_shards::point::SeriesResolver;
use metricstream_shards::series::{ClientProfile, ClientTable, SeriesBounds, SeriesTable};
use std::hint::black_box;

const GROUP: usize = 16;

fn main() {
    let before = rss_bytes();
    let empty = black_box(SeriesTable::new([1, 2, 3, 4], SeriesBounds::default(), &[]));
    println!("an empty table with room for a million series: {} KiB", rss_bytes().saturating_sub(before) >> 10);
    drop(empty);
    println!("{:>9} {:>12} {:>12} {:>12} {:>14}", "series", "first ns", "hit ns", "no prefetch", "RSS B/series");
    for count in [1_000, 10_000, 100_000, 1_000_000] {
        run(count);
    }
}

fn run(count: usize) {
    let mut clients = ClientTable::new([1, 2, 3, 4], 1000);
    let bounds = SeriesBounds {
        series_max: count,
        series_per_client_max: count,
        cache_bytes_max: 512 << 20, // all in the young half: 1 million spans take 130 MiB
        cache_client_bytes_max: 512 << 20,
    };
    let spans: Vec<String> = (0..count)
        .map(|n| format!("Jhttp_request_duration,region=eu-west-{},service=checkout,host=server-{n:06}", n % 4))
        .collect();
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut random = 1u64;
    for at in (1..count).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (random >> 33) as usize % (at + 1));
    }
    // The bodies lie in memory in the order in which they are read, as they would come from a socket.
    let body: Vec<u8> = order.iter().flat_map(|&n| spans[n as usize].bytes()).collect();
    let mut ends = Vec::with_capacity(count);
    let mut end = 0;
    for &n in &order {
        end += spans[n as usize].len() as u32;
        ends.push(end);
    }
    let span = |at: usize| &body[if at == 0 { 0 } else { ends[at - 1] as usize }..ends[at] as usize];
    let region: Vec<String> = (0..4).map(|n| format!("eu-west-{n}")).collect();
    let host: Vec<String> = order.iter().map(|n| format!("server-{n:06}")).collect();

    let before = rss_bytes();
    let mut series = SeriesTable::new([5, 6, 7, 8], bounds, &[]);
    let mut overflow = Vec::new();
    let start = now_ns();
    for at in 0..count {
        if at % 100 == 0 {
            let client = clients.resolve("10.0.0.1", 1, |_| ClientProfile::default()).expect("a fine id");
            series.begin_request(client, 1);
        }
        let raw = span(at);
        let hash = series.hash(raw);
        if series.get(hash, raw).is_none() {
            let region = &region[order[at] as usize % 4];
            let mut tags = vec![
                (&b"region"[..], region.as_bytes()),
                (&b"service"[..], &b"checkout"[..]),
                (&b"host"[..], host[at].as_bytes()),
            ];
            series.insert(hash, raw, b"http_request_duration", &mut tags, &mut overflow).expect("below the limit");
        }
    }
    let first = (now_ns() - start) as f64 / count as f64;
    series.drain_created().for_each(|id| {
        black_box(id);
    });
    let memory = rss_bytes().saturating_sub(before) / count as u64;

    let rounds = (4_000_000 / count).max(3);
    let mut hit = |ahead: bool| {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let start = now_ns();
            for _ in 0..rounds {
                for from in (0..count).step_by(100) {
                    let client = clients.resolve("10.0.0.1", 2, |_| ClientProfile::default()).expect("a fine id");
                    series.begin_request(client, 2);
                    let to = (from + 100).min(count);
                    for group in (from..to).step_by(GROUP) {
                        let points = group..(group + GROUP).min(to);
                        let mut hashes = [0; GROUP];
                        for (hash, at) in hashes.iter_mut().zip(points.clone()) {
                            *hash = series.hash(span(at));
                            if ahead {
                                series.prefetch(*hash);
                            }
                        }
                        for (hash, at) in hashes.iter().zip(points) {
                            black_box(series.get(*hash, span(at)).expect("seen before"));
                        }
                    }
                }
            }
            best = best.min((now_ns() - start) as f64 / (rounds * count) as f64);
        }
        best
    };
    let (with, without) = (hit(true), hit(false));
    println!("{count:>9} {first:>12.0} {with:>12.1} {without:>12.1} {memory:>14}");
}

#[expect(clippy::disallowed_methods, reason = "a measurement, not a shard")]
fn now_ns() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
