//! From what the operator wrote (`config`) to what the parts are made with.

use metricstream_shards::decode::{self, TimestampUnit as Unit};
use metricstream_shards::http::Bounds;
use metricstream_shards::http::reply::OverQuota as ToldOverQuota;
use metricstream_shards::limiter::{ClientLimits, Limit};
use metricstream_shards::series::SeriesBounds;
use metricstream_shards::shard::settings::{NamedClient, Settings};
use metricstream_shards::window::FoldConfig;
use metricstream_shards::window::protocol::Spans;
use metricstream_shards::window::summary::Detail;
use std::time::Duration;

use crate::config::{ByteRate, Config, OverQuota, Rate, ResolvedClient, SameTimestamp, TimestampUnit};
use crate::reducer;
use crate::reducer::rules::{Glob, Group, Rule};

fn ns(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn ns_i64(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A bucket counts whole tokens a second: a slower rate than one is one token a second with the smallest burst.
fn limit(rate: f64, burst: Duration) -> Limit {
    let rate = rate.max(1.0);
    Limit::with_burst(rate as u64, (rate * burst.as_secs_f64()).max(1.0) as u64)
}

fn limits(requests: Rate, points: Rate, bytes: ByteRate, burst: Duration) -> ClientLimits {
    ClientLimits {
        requests: requests.limit().map(|rate| limit(rate, burst)),
        points: points.limit().map(|rate| limit(rate, burst)),
        bytes: bytes.limit().map(|rate| limit(rate as f64, burst)),
    }
}

pub fn spans(config: &Config) -> Spans {
    Spans {
        lateness_ns: ns_i64(config.windows.lateness),
        horizon_ns: ns_i64(config.windows.horizon),
        ..Spans::default()
    }
}

/// Of shards, rebuilds and reducer alike.
fn detail(config: &Config) -> Detail {
    if config.windows.quantiles { Detail::Quantiles } else { Detail::Plain }
}

pub fn fold(config: &Config, shards: usize) -> FoldConfig {
    FoldConfig {
        window_ns: ns_i64(config.windows.base),
        lateness_ns: ns_i64(config.windows.lateness),
        future_bound_ns: ns_i64(config.windows.future_bound),
        // Evicted series keep their numbers for a while beside the live ones.
        series_max: (config.series.total_max as u64 * 2 + (1 << 20)).min(1 << 31) as u32,
        points_bytes_max: config.windows.set_bytes_max.bytes() as usize / shards,
        detail: detail(config),
        ..FoldConfig::default()
    }
}

pub struct Process {
    pub version: &'static str,
    pub seeds: [u64; 4],
    pub started: String,
}

pub fn settings(config: &Config, clients: &[ResolvedClient], shards: usize, process: Process) -> Settings {
    let http = &config.http;
    let quota = &config.limiter;
    Settings {
        version: process.version.to_string(),
        bounds: Bounds {
            body_bytes_max: http.body_bytes_max.bytes() as usize,
            inflated_bytes_max: http.decompressed_bytes_max.bytes() as usize,
            inflated_ratio_max: http.decompression_ratio_max as usize,
            head_timeout_ns: ns(http.head_timeout),
            body_grace_ns: ns(http.body_grace),
            body_rate_bytes_per_s: http.body_rate_min.limit().unwrap_or(u64::MAX),
            idle_timeout_ns: ns(http.idle_timeout),
            ..Bounds::default()
        },
        decode: decode::Bounds {
            points_max: config.points.per_request_max,
            name_bytes_max: config.points.name_bytes_max.bytes() as u16,
            tag_bytes_max: config.points.tag_bytes_max.bytes() as u16,
            tags_max: config.points.tags_max as u16,
            text_bytes_max: config.points.text_bytes_max.bytes() as u32,
            ..decode::Bounds::default()
        },
        json_unit: match config.json.timestamp_unit {
            TimestampUnit::Auto => Unit::ByMagnitude,
            TimestampUnit::Seconds => Unit::S,
            TimestampUnit::Milliseconds => Unit::Ms,
            TimestampUnit::Microseconds => Unit::Us,
            TimestampUnit::Nanoseconds => Unit::Ns,
        },
        json_same_timestamp_all: config.json.same_timestamp == SameTimestamp::All,
        influx_same_timestamp_all: config.influx.same_timestamp == SameTimestamp::All,
        over_quota: match config.influx.over_quota {
            OverQuota::Defer => ToldOverQuota::Defer,
            OverQuota::Shed => ToldOverQuota::Shed,
        },
        databases: config.influx.databases.clone(),
        auth_required: config.auth.required,
        clients: clients
            .iter()
            .map(|client| NamedClient {
                name: client.name.clone(),
                token: Some(client.token.reveal().as_bytes().into()),
                limits: limits(client.requests_per_s, client.points_per_s, client.bytes_per_s, client.burst),
                tags: client.tags.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
                same_timestamp_all: client.same_timestamp.map(|choice| choice == SameTimestamp::All),
            })
            .collect(),
        default_limits: limits(quota.requests_per_s, quota.points_per_s, quota.bytes_per_s, quota.burst),
        clients_max: quota.clients_max as usize,
        static_tags: config.tags.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        series: SeriesBounds {
            series_max: (config.series.total_max as usize).div_ceil(shards),
            series_per_client_max: (config.series.per_client_max as usize)
                .min((config.series.total_max as usize).div_ceil(shards)),
            ..SeriesBounds::default()
        },
        series_idle_after_s: config.series.idle_after.as_secs() as u32,
        fold: fold(config, shards),
        pipelined_bytes_max: http.pipelined_bytes_max.bytes() as usize,
        unread_reply_bytes_max: http.unread_reply_bytes_max.bytes() as usize,
        connections_max: http.connections_max as usize,
        connections_per_address_max: http.connections_per_address_max,
        io_deadline_ns: ns(config.log.io_deadline),
        memory_flush_within_ns: ns(config.log.memory_flush_within),
        unflushed_bytes_max: config.log.unflushed_bytes_max.bytes() as usize,
        drain_within_ns: ns(config.node.drain_within),
        seeds: process.seeds,
        started: process.started,
    }
}

pub fn reducer(config: &Config, shards: usize, rebuilds: usize, epoch: u64) -> reducer::Settings {
    let windows_s: Vec<u32> = config.windows.windows.iter().map(|window| window.as_secs() as u32).collect();
    reducer::Settings {
        spans: spans(config),
        base_s: config.windows.base.as_secs() as u32,
        per_series: config.windows.per_series,
        rules: config
            .aggregate
            .iter()
            .map(|rule| Rule {
                id: rule.name.as_str().into(),
                name: Some(rule.name.as_str().into()),
                match_name: Glob::new(&rule.r#match.name),
                match_tags: rule.r#match.tags.iter().map(|(k, v)| (k.as_str().into(), Glob::new(v))).collect(),
                group: match (&rule.by, &rule.without) {
                    (_, Some(without)) => Group::Without(without.iter().map(|tag| tag.as_str().into()).collect()),
                    (Some(by), None) => Group::By(by.iter().map(|tag| tag.as_str().into()).collect()),
                    (None, None) => Group::Without(Vec::new()),
                },
                windows_s: rule.windows.as_ref().map_or_else(
                    || windows_s.clone(),
                    |windows| windows.iter().map(|window| window.as_secs() as u32).collect(),
                ),
            })
            .collect(),
        detail: detail(config),
        windows_s,
        keep_state: config.sink.iter().any(|sink| {
            // Line protocol cannot say it.
            let says_json = match sink.r#type {
                crate::config::SinkType::Kafka => true,
                crate::config::SinkType::File => sink.format == crate::config::SinkFormat::Json,
                crate::config::SinkType::Influx => false,
            };
            says_json && sink.send != crate::config::Send::Raw
        }),
        memory_bytes_max: config.windows.reducer_bytes_max.bytes() as usize,
        shards: shards as u16,
        rebuilds: rebuilds as u16,
        epoch,
    }
}
