//! The load as flags: what `run` and `sweep` have in common, and the shapes of `run`.
//!
//! Every flag says what it does and why one would want it. What makes no sense together is refused with one sentence.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, ValueEnum};

use super::Failure;
use crate::engine::Options;
use crate::ledger;
use crate::plan::{self, Plan, Shape};
use crate::units;

const SERIES_DEFAULT: u64 = 1000;
const CONNECTIONS_DEFAULT: u32 = 32;
const BATCH_DEFAULT: u32 = 100;
const ATTEMPTS_DEFAULT: u32 = 10;
const CONNECTIONS_MAX: u32 = 60_000;
const RATE_MAX: f64 = 1e7;

/// What is sent, over what, as whom.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Where to send: http://HOST:PORT, with a path if it is not the protocol's own (/write, /metrics)
    #[arg(long, value_name = "URL", help_heading = "Target")]
    target: String,
    /// Sent as `Authorization: Token …`; taken from METRICSTREAM_TOKEN when not given
    #[arg(long, help_heading = "Target")]
    token: Option<String>,
    /// Read the server's own acknowledgement histogram before and after, from URL/metrics
    #[arg(long, value_name = "URL", help_heading = "Target")]
    server_metrics: Option<String>,
    /// Account the CPU time and memory of this process
    #[arg(long, value_name = "PID", help_heading = "Target")]
    server_pid: Option<u32>,

    /// What the bodies are: InfluxDB line protocol or the native JSON
    #[arg(long, value_enum, default_value_t = ProtocolArg::Line, help_heading = "Points")]
    protocol: ProtocolArg,
    /// Points a request [default: 100; with --fleet: its metrics]
    #[arg(long, value_name = "POINTS", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Points")]
    batch: Option<u32>,
    /// Distinct series over all clients [default: 1000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000), help_heading = "Points")]
    series: Option<u64>,
    /// Tags of a series beside its host
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=30), help_heading = "Points")]
    tags: u32,
    /// Share of the series replaced by new ones each minute, as a deployment does: 10%
    #[arg(long, value_parser = parse_share, default_value = "0%", value_name = "SHARE", help_heading = "Points")]
    churn: f64,
    /// How values move: a gauge walks, a counter rises, a latency has a long tail
    #[arg(long, value_enum, default_value_t = ValuesArg::Gauge, help_heading = "Points")]
    values: ValuesArg,
    /// How timestamps relate to the moment of sending: now, skewed:5s (each client's clock is off by up to that),
    /// late:1%:30s (that share is older by up to that), shuffled:1s (random order within that)
    #[arg(long, value_parser = parse_timestamps, default_value = "now", value_name = "HOW", help_heading = "Points")]
    timestamps: plan::Timestamps,
    /// Share of points that a server must refuse: 0.1%
    #[arg(long, value_parser = parse_share, default_value = "0%", value_name = "SHARE", help_heading = "Points")]
    bad: f64,
    /// All points, bytes and moments follow from it
    #[arg(long, default_value_t = 1, help_heading = "Points")]
    seed: u64,
    /// Unix time in seconds that the run's first moment has in the timestamps [default: now]
    #[arg(long, value_name = "SECONDS", help_heading = "Points")]
    epoch: Option<f64>,

    /// Connections, all opened before the first request [default: 32; one for each client with --fleet or by address]
    #[arg(short = 'c', long, value_parser = clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX)), help_heading = "Clients")]
    connections: Option<u32>,
    /// Up to this many requests of a connection under way at once
    #[arg(long, value_name = "DEPTH", value_parser = clap::value_parser!(u32).range(2..=1000), conflicts_with = "reconnect", help_heading = "Clients")]
    pipeline: Option<u32>,
    /// A new connection for every request
    #[arg(long, help_heading = "Clients")]
    reconnect: bool,
    /// Senders with series and an identity of their own [default: 1; with --identity: one for each connection]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Clients")]
    clients: Option<u32>,
    /// How a server tells clients apart: by an X-Client-ID header, by source address (127.0.0.0/8), or not at all
    #[arg(long, value_enum, help_heading = "Clients")]
    identity: Option<IdentityArg>,
    /// Compress bodies with gzip
    #[arg(long, conflicts_with = "zstd", help_heading = "Clients")]
    gzip: bool,
    /// Compress bodies with zstd
    #[arg(long, help_heading = "Clients")]
    zstd: bool,
    /// Send again what was refused with 429 or 5xx or not answered: same (the same bytes, over a new connection) or join
    /// (with the client's next batch, as Telegraf does); with the number of attempts in all after a colon, as in same:5.
    /// Retry-After is honoured, else the wait doubles from 100 ms to 30 s
    #[arg(long, value_parser = parse_retry, value_name = "HOW[:ATTEMPTS]", help_heading = "Clients")]
    retry: Option<plan::Retry>,
    /// An answer that takes longer is not waited for; at the end of the run, outstanding answers are awaited as long
    #[arg(long, value_parser = parse_duration, default_value = "10s", value_name = "DURATION", help_heading = "Clients")]
    timeout: Duration,

    /// Write down what was sent and what became of it, before it leaves; `verify` compares it with what the server holds
    #[arg(long, value_name = "FILE", help_heading = "Generator")]
    ledger: Option<PathBuf>,
    /// Keep to this core: not the server's
    #[arg(long, help_heading = "Generator")]
    core: Option<usize>,
    /// No live line
    #[arg(long, help_heading = "Generator")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    Line,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ValuesArg {
    Gauge,
    Counter,
    Latency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IdentityArg {
    Header,
    Address,
    None,
}

/// When requests are due.
#[derive(Clone, Debug, clap::Args)]
#[command(group = ArgGroup::new("shape").required(true).args(["rate", "steps", "ramp", "closed", "fleet"]))]
pub struct ShapeArgs {
    /// Requests a second, whatever the server does (open loop): 5k
    #[arg(long, value_parser = units::parse_rate, help_heading = "Load")]
    rate: Option<f64>,
    /// One rate after the other, each for --each: 1k,2k,4k
    #[arg(long, value_parser = units::parse_rate, value_delimiter = ',', value_name = "RATES", conflicts_with = "duration", help_heading = "Load")]
    steps: Vec<f64>,
    /// How long a step lasts
    #[arg(long, value_parser = parse_duration, default_value = "10s", requires = "steps", value_name = "DURATION", help_heading = "Load")]
    each: Duration,
    /// A rate that goes evenly from one value to another: 1k..10k
    #[arg(long, value_parser = parse_ramp, value_name = "FROM..TO", help_heading = "Load")]
    ramp: Option<(f64, f64)>,
    /// With --rate: this rate instead, for 1 s of every 10 s, or as said: 20k:200ms/5s
    #[arg(long, value_parser = parse_burst, value_name = "RATE[:FOR/EVERY]", requires = "rate", help_heading = "Load")]
    burst: Option<Burst>,
    /// Each connection sends as soon as its last request is answered: for the highest rate, not for latency, since a
    /// server that stalls is asked less
    #[arg(long, help_heading = "Load")]
    closed: bool,
    /// That many clients, each with a series for every metric, sending all of them once an --interval, at moments of
    /// their own; over one connection each
    #[arg(long, value_name = "CLIENTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with_all = ["clients", "series", "batch"], help_heading = "Load")]
    fleet: Option<u32>,
    /// Between two batches of a fleet's client
    #[arg(long, value_parser = parse_duration, default_value = "10s", requires = "fleet", value_name = "DURATION", help_heading = "Load")]
    interval: Duration,
    /// Of a fleet's client
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000), requires = "fleet", help_heading = "Load")]
    metrics: u32,
    /// How long requests become due
    #[arg(long, value_parser = parse_duration, default_value = "30s", value_name = "DURATION", help_heading = "Load")]
    duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Burst {
    peak: f64,
    lasts: Duration,
    every: Duration,
}

/// A fleet decides what else is asked of clients and series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fleet {
    pub clients: u32,
    pub metrics: u32,
}

fn wrong(sentence: impl Into<String>) -> Failure {
    Failure(sentence.into())
}

impl ShapeArgs {
    pub fn shape(&self) -> Result<(Shape, Option<Fleet>), Failure> {
        let duration_ms = self.duration.as_millis() as u64;
        for rate in self.rate.iter().chain(&self.steps) {
            check_rate(*rate)?;
        }
        if let Some(clients) = self.fleet {
            let interval_ms = self.interval.as_millis() as u64;
            let fleet = Fleet { clients, metrics: self.metrics };
            return Ok((Shape::Fleet { interval_ms, duration_ms }, Some(fleet)));
        }
        let shape = if self.closed {
            Shape::Closed { duration_ms }
        } else if let Some((from, to)) = self.ramp {
            check_rate(from.max(to))?;
            Shape::Ramp { from, to, duration_ms }
        } else if let (Some(base), Some(burst)) = (self.rate, self.burst) {
            check_rate(burst.peak)?;
            let (every_ms, burst_ms) = (burst.every.as_millis() as u64, burst.lasts.as_millis() as u64);
            Shape::Burst { base, peak: burst.peak, every_ms, burst_ms, duration_ms }
        } else if let Some(rate) = self.rate {
            Shape::Constant { rate, duration_ms }
        } else {
            Shape::Steps { rates: self.steps.clone(), each_ms: self.each.as_millis() as u64 }
        };
        Ok((shape, None))
    }
}

fn check_rate(rate: f64) -> Result<(), Failure> {
    match rate {
        0.0 => Err(wrong("a rate of 0 sends nothing; give a rate above 0")),
        _ if rate > RATE_MAX => {
            Err(wrong(format!("a rate of {rate:.0} requests a second is beyond any one generator; give at most 10M")))
        }
        _ => Ok(()),
    }
}

impl LoadArgs {
    /// Where to, and what, with the shape's moments. Checks what can be checked without the target.
    pub fn plan(&self, shape: Shape, fleet: Option<Fleet>) -> Result<(SocketAddr, Plan), Failure> {
        let (target, path) = self.resolve()?;
        let identity = match (self.identity, fleet) {
            (Some(IdentityArg::Header), _) | (None, Some(_)) => plan::Identity::Header,
            (Some(IdentityArg::Address), _) => plan::Identity::Address,
            (Some(IdentityArg::None), _) | (None, None) => plan::Identity::None,
        };
        let (clients, connections) = self.clients_and_connections(identity, fleet)?;
        let by_address = identity == plan::Identity::Address;
        if by_address && !target.ip().is_loopback() {
            return Err(wrong(format!(
                "clients can be told apart by address on loopback only, and {target} is not; use --identity header"
            )));
        }
        if by_address && target.is_ipv6() {
            return Err(wrong("source addresses are of 127.0.0.0/8; give a --target with an IPv4 address"));
        }
        if by_address && connections < clients {
            return Err(wrong(format!(
                "{clients} clients need {clients} connections to be told apart by address; give --connections {clients}"
            )));
        }
        let series = match fleet {
            Some(fleet) => u64::from(fleet.clients) * u64::from(fleet.metrics),
            None => self.series.unwrap_or(SERIES_DEFAULT.max(u64::from(clients))),
        };
        if series < u64::from(clients) {
            return Err(wrong(format!("{clients} clients need a series each; give --series {clients} or more")));
        }
        if self.timeout.is_zero() {
            return Err(wrong("a --timeout of 0 waits for nothing; give one above 0"));
        }
        let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        let epoch_ns = match self.epoch {
            None => now_ns,
            Some(seconds) if (0.0..9.2e9).contains(&seconds) => (seconds * 1e9) as i64,
            Some(seconds) => return Err(wrong(format!("an --epoch of {seconds} is no Unix time in seconds"))),
        };
        let plan = Plan {
            seed: self.seed,
            epoch_ns,
            workload: plan::Workload {
                protocol: match self.protocol {
                    ProtocolArg::Line => plan::Protocol::Line,
                    ProtocolArg::Json => plan::Protocol::Json,
                },
                clients,
                series,
                tags: self.tags,
                batch_points: fleet.map_or(self.batch.unwrap_or(BATCH_DEFAULT), |fleet| fleet.metrics),
                churn_per_minute: self.churn,
                values: match self.values {
                    ValuesArg::Gauge => plan::Values::Gauge,
                    ValuesArg::Counter => plan::Values::Counter,
                    ValuesArg::Latency => plan::Values::Latency,
                },
                timestamps: self.timestamps,
                bad_share: self.bad,
            },
            shape,
            transport: plan::Transport {
                path,
                connections,
                connection: match self.pipeline {
                    Some(depth) => plan::Connection::Pipelined { depth },
                    None if self.reconnect => plan::Connection::Reconnect,
                    None => plan::Connection::KeepAlive,
                },
                compression: match (self.gzip, self.zstd) {
                    (true, _) => plan::Compression::Gzip,
                    (_, true) => plan::Compression::Zstd,
                    _ => plan::Compression::None,
                },
                identity,
                token: self.token()?,
                retry: self.retry.unwrap_or(plan::Retry::Never),
                timeout_ms: self.timeout.as_millis() as u64,
            },
        };
        Ok((target, plan))
    }

    /// Makes the ledger's file, if one was asked for: only once everything else is known to be right.
    pub fn options(&self, target: SocketAddr, plan: &Plan) -> Result<Options, Failure> {
        let ledger = match &self.ledger {
            Some(path) => Some(ledger::Writer::create(path, plan).map_err(|error| wrong(error.to_string()))?),
            None => None,
        };
        Ok(Options {
            target,
            ledger,
            server_metrics: self.server_metrics.clone(),
            server_pid: self.server_pid,
            live: !self.quiet,
            core: self.core,
        })
    }

    /// The ledger asked for; a sweep of several runs has no use for one.
    pub fn ledger(&self) -> Option<&PathBuf> {
        self.ledger.as_ref()
    }

    fn clients_and_connections(&self, identity: plan::Identity, fleet: Option<Fleet>) -> Result<(u32, u32), Failure> {
        let clients = match (fleet, self.clients, self.connections) {
            (Some(fleet), ..) => fleet.clients,
            (None, Some(clients), _) => clients,
            (None, None, connections) if identity != plan::Identity::None => connections.unwrap_or(CONNECTIONS_DEFAULT),
            _ => 1,
        };
        let own = fleet.is_some() || identity == plan::Identity::Address;
        let connections = self.connections.unwrap_or(if own { clients } else { CONNECTIONS_DEFAULT });
        if connections > CONNECTIONS_MAX {
            return Err(wrong(format!(
                "{clients} clients with a connection each are more than the {CONNECTIONS_MAX} connections one generator \
                 opens; give --connections, or spread the clients over several processes and merge their results"
            )));
        }
        Ok((clients, connections))
    }

    fn token(&self) -> Result<Option<String>, Failure> {
        let token =
            self.token.clone().or_else(|| std::env::var("METRICSTREAM_TOKEN").ok().filter(|token| !token.is_empty()));
        match token {
            Some(token) if token.bytes().any(|byte| !(b'!'..=b'~').contains(&byte)) => {
                Err(wrong("a token holds printable characters only, without spaces; check --token"))
            }
            token => Ok(token),
        }
    }

    /// Address and request path.
    fn resolve(&self) -> Result<(SocketAddr, String), Failure> {
        let url = &self.target;
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return Err(wrong(format!(
                    "{url} asks for TLS, which this generator does not speak; give an http:// target"
                )));
            }
            Some((scheme, _)) => {
                return Err(wrong(format!(
                    "'{scheme}' is no protocol this generator speaks; give a --target such as http://127.0.0.1:8186"
                )));
            }
            None => url.as_str(),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        if path.bytes().any(|byte| !(b'!'..=b'~').contains(&byte)) || path.starts_with('?') || path.contains('#') {
            return Err(wrong(format!("the path of {url} holds what no request line can; percent-encode it")));
        }
        let path = match (path, self.protocol) {
            ("" | "/", ProtocolArg::Line) => "/write?precision=ns",
            ("" | "/", ProtocolArg::Json) => "/metrics",
            (path, _) => path,
        };
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty());
        if !has_port || authority.contains('@') {
            return Err(wrong(format!("{url} is no target; give one such as http://127.0.0.1:8186")));
        }
        let mut addresses = authority
            .to_socket_addrs()
            .map_err(|error| wrong(format!("{authority} is no address: {error}; check --target")))?;
        // A name may stand for both; servers here listen on IPv4 first.
        let all: Vec<SocketAddr> = addresses.by_ref().collect();
        let target = all.iter().find(|address| address.is_ipv4()).or(all.first());
        match target {
            Some(target) if target.port() != 0 => Ok((*target, path.to_owned())),
            _ => Err(wrong(format!("{url} has no port to connect to; give one such as http://127.0.0.1:8186"))),
        }
    }
}

/// `200ms`, `30s`, `5m`, `2h`, of at least a millisecond.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = units::split(text);
    let ms = match unit {
        "ms" => 1.0,
        "s" => 1e3,
        "m" | "min" => 60e3,
        "h" => 3600e3,
        "" if !number.is_empty() => return Err(format!("'{text}' lacks a unit: ms, s, m or h, as in '30s'")),
        _ => return Err(format!("'{text}' is no duration; one is '200ms', '30s', '5m' or '2h'")),
    };
    let ms = (units::positive(number)? * ms).round();
    match ms {
        1.0..=2_592_000_000.0 => Ok(Duration::from_millis(ms as u64)),
        _ if ms < 1.0 => Err(format!("'{text}' is less than a millisecond")),
        _ => Err(format!("'{text}' is more than 30 days")),
    }
}

/// `0.1%` or `0.001`.
fn parse_share(text: &str) -> Result<f64, String> {
    let (number, unit) = units::split(text);
    let share = match unit {
        "%" => units::positive(number)? / 100.0,
        "" => units::positive(number)?,
        _ => return Err(format!("'{text}' is no share; one is '0.1%'")),
    };
    if share > 1.0 { Err(format!("'{text}' is more than the whole; a share is at most 100%")) } else { Ok(share) }
}

fn parse_timestamps(text: &str) -> Result<plan::Timestamps, String> {
    let ms = |text: &str| parse_duration(text).map(|duration| duration.as_millis() as u64);
    match text.split(':').collect::<Vec<_>>()[..] {
        ["now"] => Ok(plan::Timestamps::Now),
        ["skewed", by] => Ok(plan::Timestamps::Skewed { by_ms: ms(by)? }),
        ["late", share, by] => Ok(plan::Timestamps::Late { share: parse_share(share)?, by_ms: ms(by)? }),
        ["shuffled", within] => Ok(plan::Timestamps::Shuffled { within_ms: ms(within)? }),
        _ => Err(format!("'{text}' is none of now, skewed:5s, late:1%:30s, shuffled:1s")),
    }
}

fn parse_retry(text: &str) -> Result<plan::Retry, String> {
    let (how, attempts) = match text.split_once(':') {
        None => (text, ATTEMPTS_DEFAULT),
        Some((how, attempts)) => match attempts.parse() {
            Ok(attempts @ 2..=1_000_000) => (how, attempts),
            _ => return Err(format!("'{attempts}' is no number of attempts; give 2 or more, as in same:5")),
        },
    };
    match how {
        "same" => Ok(plan::Retry::Same { attempts }),
        "join" => Ok(plan::Retry::Joined { attempts }),
        _ => Err(format!("'{how}' is neither same nor join")),
    }
}

fn parse_ramp(text: &str) -> Result<(f64, f64), String> {
    let (from, to) = text.split_once("..").ok_or_else(|| format!("'{text}' is no ramp; one is '1k..10k'"))?;
    let ramp = (units::parse_rate(from)?, units::parse_rate(to)?);
    if ramp == (0.0, 0.0) { Err("a ramp from 0 to 0 sends nothing".to_owned()) } else { Ok(ramp) }
}

fn parse_burst(text: &str) -> Result<Burst, String> {
    let (peak, times) = text.split_once(':').unwrap_or((text, "1s/10s"));
    let (lasts, every) = times.split_once('/').ok_or_else(|| format!("'{text}' is no burst; one is '20k:200ms/5s'"))?;
    let burst = Burst { peak: units::parse_rate(peak)?, lasts: parse_duration(lasts)?, every: parse_duration(every)? };
    if burst.lasts >= burst.every {
        return Err(format!("a burst of {lasts} in every {every} never ends; make its period longer"));
    }
    Ok(burst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        shape: ShapeArgs,
    }

    fn plan(args: &str) -> Result<(SocketAddr, Plan), String> {
        let all = ["x", "--target", "http://127.0.0.1:8186"].into_iter().chain(args.split_whitespace());
        let cli = Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        let (shape, fleet) = cli.shape.shape().map_err(|failure| failure.0)?;
        cli.load.plan(shape, fleet).map_err(|failure| failure.0)
    }

    #[test]
    fn shapes_are_as_asked_for() {
        let shape = |args: &str| plan(args).unwrap_or_else(|error| panic!("{args}: {error}")).1.shape;
        assert_eq!(shape("--rate 5k"), Shape::Constant { rate: 5000.0, duration_ms: 30_000 });
        assert_eq!(shape("--closed --duration 2m"), Shape::Closed { duration_ms: 120_000 });
        assert_eq!(
            shape("--steps 1k,2k,4k --each 5s"),
            Shape::Steps { rates: vec![1000.0, 2000.0, 4000.0], each_ms: 5000 }
        );
        assert_eq!(shape("--ramp 1k..10k"), Shape::Ramp { from: 1000.0, to: 10_000.0, duration_ms: 30_000 });
        assert_eq!(
            shape("--rate 1k --burst 20k:200ms/5s --duration 1m"),
            Shape::Burst { base: 1000.0, peak: 20_000.0, every_ms: 5000, burst_ms: 200, duration_ms: 60_000 }
        );
    }

    #[test]
    fn a_fleet_sets_its_clients_series_batches_and_connections() {
        let (_, plan) = plan("--fleet 10000 --interval 10s --metrics 50 --duration 2m").expect("good");
        assert_eq!(plan.shape, Shape::Fleet { interval_ms: 10_000, duration_ms: 120_000 });
        assert_eq!((plan.workload.clients, plan.workload.series, plan.workload.batch_points), (10_000, 500_000, 50));
        assert_eq!((plan.transport.connections, plan.transport.identity), (10_000, plan::Identity::Header));
    }

    #[test]
    fn paths_follow_the_protocol_unless_given() {
        let path = |args: &str| plan(args).expect("good").1.transport.path;
        assert_eq!(path("--rate 1"), "/write?precision=ns");
        assert_eq!(path("--rate 1 --protocol json"), "/metrics");
        let all = ["x", "--target", "http://localhost:8186/api/v2/write?bucket=a", "--rate", "1"];
        let cli = Cli::try_parse_from(all).expect("good");
        let (target, plan) = cli.load.plan(cli.shape.shape().expect("good").0, None).expect("good");
        assert_eq!((target.port(), plan.transport.path.as_str()), (8186, "/api/v2/write?bucket=a"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        for (args, reason) in [
            ("", "required"),
            ("--rate 0", "sends nothing"),
            ("--rate 1 --closed", "cannot be used with"),
            ("--rate 20M", "beyond any one generator"),
            ("--steps 1k,0", "sends nothing"),
            ("--ramp 5", "no ramp"),
            ("--burst 5k", "--rate"),
            ("--rate 1 --burst 5k:5s/5s", "never ends"),
            ("--rate 1 --pipeline 4 --reconnect", "cannot be used with"),
            ("--rate 1 --gzip --zstd", "cannot be used with"),
            ("--rate 1 --clients 10 --series 5", "a series each"),
            ("--rate 1 --identity address --clients 10 --connections 5", "to be told apart by address"),
            ("--rate 1 --timestamps late:1%", "none of now"),
            ("--rate 1 --timestamps late:200%:1s", "more than the whole"),
            ("--rate 1 --retry perhaps", "neither same nor join"),
            ("--rate 1 --retry same:1", "2 or more"),
            ("--rate 1 --duration 5", "lacks a unit"),
            ("--rate 1 --timeout 0s", "less than a millisecond"),
            ("--rate 1 --token a\u{7f}b", "printable"),
            ("--fleet 100000", "more than the 60000 connections"),
            ("--fleet 10 --series 5", "cannot be used with"),
            ("--rate 1 --epoch -5", "unexpected argument"),
        ] {
            let error = plan(args).expect_err(args);
            assert!(error.contains(reason), "{args}: {error}");
        }
        for (target, reason) in [
            ("https://127.0.0.1:1", "TLS"),
            ("ftp://127.0.0.1:1", "no protocol"),
            ("127.0.0.1", "is no target"),
            ("http://127.0.0.1:0", "no port"),
            ("http://127.0.0.1:99999", "no address"),
            ("http://127.0.0.1:1/a b", "percent-encode"),
        ] {
            let cli = Cli::try_parse_from(["x", "--target", target, "--rate", "1"]).expect("parses");
            let error = cli.load.plan(cli.shape.shape().expect("good").0, None).expect_err(target);
            assert!(error.0.contains(reason), "{target}: {error}");
        }
    }
}
