//! `verify`: compares a server with ledgers.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Outcome};
use crate::verify::expected::Expected;
use crate::verify::verdict::Verdict;
use crate::verify::{self, Options, influx, kafka, lines, listener};

/// Compare what a server has with what the ledgers say it was sent
///
/// Everything acknowledged must be there, once and unaltered; nothing refused, and nothing that was never sent. What is
/// unknown may be there. The first missing, doubled, altered, misplaced or foreign point is named. Exit code 1 when
/// anything differs.
#[derive(clap::Args)]
#[command(
    group = clap::ArgGroup::new("source").required(true).multiple(true).args([
        "log_dump", "windows", "ndjson", "kafka", "kafka_windows", "influx", "influx_windows",
    ]),
    after_help = "Examples:
  metricstream log dump --data-dir DIR | metricstream-loadgen verify --ledger run.ledger --log-dump -
  metricstream-loadgen verify --ledger run.ledger --windows http://127.0.0.1:9186
  kcat -C -e -J -o beginning -b 127.0.0.1:9092 -t metrics-raw \\
    | metricstream-loadgen verify --ledger run.ledger --kafka -
  metricstream-loadgen verify --ledger run.ledger --influx http://127.0.0.1:8086 \\
    --influx-windows http://127.0.0.1:8086"
)]
pub struct Args {
    /// A ledger that `run` wrote; several when several processes sent
    #[arg(long, value_name = "FILE", required = true)]
    ledger: Vec<PathBuf>,

    /// Points, as `metricstream log dump` prints them; `-` is standard input
    #[arg(long, value_name = "FILE|-")]
    log_dump: Option<String>,

    /// Windows: the operators' listener, or what `metricstream log dump --shard aggregate` prints
    #[arg(long, value_name = "URL|FILE|-")]
    windows: Option<String>,

    /// Points a line as JSON, as the file sink writes them: name, value, timestamp in ms or timestamp_ns, client_id,
    /// tags, and an id, if lines may be repeated
    #[arg(long, value_name = "FILE|-")]
    ndjson: Option<String>,

    /// Points in Kafka: what `kcat -C -e -J -o beginning` prints of the raw topics, one after the other. Records with
    /// equal ids count once
    #[arg(long, value_name = "FILE|-")]
    kafka: Option<String>,

    /// Windows in Kafka, in the same form
    #[arg(long, value_name = "FILE|-")]
    kafka_windows: Option<String>,

    /// Points in InfluxDB: its base URL. User name and password are taken from INFLUX_USERNAME and INFLUX_PASSWORD
    #[arg(long, value_name = "URL")]
    influx: Option<String>,

    /// Windows in InfluxDB: its base URL
    #[arg(long, value_name = "URL")]
    influx_windows: Option<String>,

    /// InfluxDB's database
    #[arg(long, value_name = "NAME", default_value = "metrics")]
    influx_database: String,

    /// Certificates to trust instead of Mozilla's list, PEM: for URLs that begin with https://
    #[arg(long, value_name = "FILE")]
    influx_tls_ca: Option<PathBuf>,

    /// The retention policy of raw points
    #[arg(long, value_name = "NAME", default_value = "raw")]
    influx_policy: String,

    /// The retention policy of windows
    #[arg(long, value_name = "NAME", default_value = "agg_1m")]
    influx_windows_policy: String,

    /// How points are laid out in InfluxDB
    #[arg(long, value_enum, default_value_t = influx::Schema::Platform)]
    influx_schema: influx::Schema,

    /// What the server takes all clients for, when not for what was sent: a token's client, or an address
    #[arg(long, value_name = "NAME")]
    client: Option<String>,

    /// Count points of series that no ledger has, instead of refusing them
    #[arg(long)]
    allow_others: bool,

    /// Take points in any order: for a sink behind several shards, with clients that change connections, unless the
    /// server keeps an address on one shard
    #[arg(long)]
    any_order: bool,

    /// Lengths of the windows to compare, in seconds
    #[arg(long, value_name = "S", value_delimiter = ',', default_values_t = [10, 60])]
    window_lengths: Vec<u32>,

    /// The server's horizon, in seconds: a point that came later after its window's start may be in it or not
    #[arg(long, value_name = "S", default_value_t = 300)]
    horizon: u64,

    /// How far ahead a timestamp may be, in seconds, to be in a window for sure
    #[arg(long, value_name = "S", default_value_t = 600)]
    future: u64,

    /// The verdict as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Outcome {
    if args.window_lengths.contains(&0) {
        return Err(Failure("a window of 0 seconds holds nothing; say --window-lengths 10,60".to_string()));
    }
    let sources = [&args.log_dump, &args.windows, &args.ndjson, &args.kafka, &args.kafka_windows];
    if sources.iter().filter(|source| source.as_deref() == Some("-")).count() > 1 {
        return Err(Failure("standard input can be read once only; name files for the others".to_string()));
    }
    let options = Options {
        client: args.client,
        others_allowed: args.allow_others,
        any_order: args.any_order,
        window_lengths_s: args.window_lengths,
        horizon_ms: args.horizon.saturating_mul(1_000),
        future_ms: args.future.saturating_mul(1_000),
        progress: true,
    };
    let expected = Expected::load(&args.ledger)?;
    let mut verdicts: Vec<Verdict> = Vec::new();
    if let Some(path) = &args.log_dump {
        verdicts.push(lines::compare_points(&expected, &options, "log dump", verify::open(path)?)?);
    }
    if let Some(source) = &args.windows {
        verdicts.push(match source.starts_with("http://") || source.starts_with("https://") {
            true => listener::compare_windows(&expected, &options, source)?,
            false => lines::compare_windows(&expected, &options, verify::open(source)?)?,
        });
    }
    if let Some(path) = &args.ndjson {
        verdicts.push(lines::compare_points(&expected, &options, "newline JSON", verify::open(path)?)?);
    }
    if let Some(path) = &args.kafka {
        verdicts.push(kafka::compare_points(&expected, &options, verify::open(path)?)?);
    }
    if let Some(path) = &args.kafka_windows {
        verdicts.push(kafka::compare_windows(&expected, &options, verify::open(path)?)?);
    }
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let name = variable("INFLUX_USERNAME");
    let credentials = name.map(|name| (name, variable("INFLUX_PASSWORD").unwrap_or_default()));
    let target = |url, retention_policy| influx::Target {
        url,
        database: &args.influx_database,
        retention_policy,
        schema: args.influx_schema,
        credentials: credentials.clone(),
        tls_ca: args.influx_tls_ca.as_deref(),
    };
    if let Some(url) = &args.influx {
        verdicts.push(influx::compare_points(&expected, &options, &target(url, &args.influx_policy))?);
    }
    if let Some(url) = &args.influx_windows {
        verdicts.push(influx::compare_windows(&expected, &options, &target(url, &args.influx_windows_policy))?);
    }
    if args.json {
        let text = serde_json::to_string_pretty(&verdicts).map_err(|error| Failure(error.to_string()))?;
        println!("{text}");
    } else {
        verdicts.iter().for_each(|verdict| print!("{}", verdict.to_text()));
    }
    Ok(ExitCode::from(u8::from(!verdicts.iter().all(|verdict| verdict.ok))))
}
