//! Every key there is, declared once: name, type, default, bounds and the words an operator reads.
//!
//! The declarations make the structs, the reader, and the output of `metricstream config`, so a key cannot exist
//! without its documentation. What can only be judged across keys is in `check`.

use super::declare::{choice, config, section};
use super::units::ByteSize;
use super::value::{ByteRate, Rate, Secret, Selector};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}
const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}
const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

choice! {
    /// When a request is acknowledged.
    Durability {
        /// after its points are on stable storage
        Disk = "disk",
        /// after they are in memory; [log] memory_flush_within later they are on disk
        Memory = "memory",
    }
}

choice! {
    /// What an integer timestamp counts.
    TimestampUnit {
        /// by its magnitude (read as a time between 1973 and 2286)
        Auto = "auto",
        /// seconds
        Seconds = "s",
        /// milliseconds
        Milliseconds = "ms",
        /// microseconds
        Microseconds = "us",
        /// nanoseconds
        Nanoseconds = "ns",
    }
}

choice! {
    /// What a client over its quota is told.
    OverQuota {
        /// 503 with Retry-After: every client keeps its points and comes again
        Defer = "defer",
        /// 429 with Retry-After: some clients (Telegraf's v1 output among them) then drop their points
        Shed = "shed",
    }
}

choice! {
    /// What two points of one series with the same explicit timestamp are.
    SameTimestamp {
        /// the same point, sent again: counted once
        Identity = "identity",
        /// two events: both counted, so a retry counts twice
        All = "all",
    }
}

choice! {
    /// How a connection finds its shard.
    Steering {
        /// the kernel's hash over addresses and ports: spreads anything
        Hash = "hash",
        /// a hash over the source address: a host stays on one shard; wrong behind one proxy
        Address = "address",
    }
}

choice! {
    /// How a commit reaches stable storage.
    FlushMode {
        /// what is faster on this disk, tried at start
        Auto = "auto",
        /// write, then fdatasync
        Fdatasync = "fdatasync",
        /// one write with RWF_DSYNC
        Dsync = "dsync",
    }
}

choice! {
    /// What happens when the log has reached its bytes and a sink has not caught up.
    WhenFull {
        /// 503 until there is room: nothing acknowledged is ever lost
        Refuse = "refuse",
        /// the oldest records go, counted, whether all sinks have them or not
        DropOldest = "drop_oldest",
    }
}

choice! {
    /// What a sink is.
    SinkType {
        /// files in a directory, written whole
        File = "file",
        /// topics of Apache Kafka: a record a point or window
        Kafka = "kafka",
        /// InfluxDB, version 1 or 2, or what speaks its write API
        Influx = "influx",
    }
}

choice! {
    /// Which write API of InfluxDB.
    InfluxApi {
        /// /write with a database and a retention policy
        V1 = "v1",
        /// /api/v2/write with an organisation and a bucket
        V2 = "v2",
    }
}

choice! {
    /// How points stand in InfluxDB.
    InfluxSchema {
        /// one measurement, server_metrics; the name is a tag, values are floats
        Platform = "platform",
        /// a measurement a metric, values as they came
        Natural = "natural",
    }
}

choice! {
    /// What the key of a Kafka record is; records of one key keep their order.
    KafkaKey {
        /// who sent the point
        Client = "client",
        /// the metric's name
        Name = "name",
    }
}

choice! {
    /// How batches to Kafka are compressed.
    KafkaCodec {
        /// fast, and small enough
        Lz4 = "lz4",
        /// smaller, with more work
        Zstd = "zstd",
        /// for brokers that know no better
        Gzip = "gzip",
        /// for consumers that know no better
        Snappy = "snappy",
        /// not at all
        None = "none",
    }
}

choice! {
    /// How the Kafka client proves who it is.
    KafkaSasl {
        /// it does not, unless by its certificate
        None = "none",
        /// name and password as they are: only over TLS
        Plain = "plain",
        /// by challenge, SHA-256
        ScramSha256 = "scram-sha-256",
        /// by challenge, SHA-512
        ScramSha512 = "scram-sha-512",
    }
}

choice! {
    /// What a sink is sent.
    Send {
        /// the points as they came
        Raw = "raw",
        /// closed windows
        Aggregates = "aggregates",
        /// both
        Both = "both",
    }
}

choice! {
    /// Where a sink begins that is new here.
    SinkStart {
        /// with everything that is left in the logs
        Oldest = "oldest",
        /// with what comes from now on
        Now = "now",
    }
}

choice! {
    /// How points are written.
    SinkFormat {
        /// one JSON object a line
        Json = "json",
        /// InfluxDB line protocol
        Line = "line",
    }
}

choice! {
    /// How files are compressed.
    Compression {
        /// not at all
        None = "none",
        /// .gz
        Gzip = "gzip",
        /// .zst: smaller, and less work
        Zstd = "zstd",
    }
}

choice! {
    /// The least severe line that is written.
    Level {
        /// only what needs a person
        Error = "error",
        /// and what may soon
        Warn = "warn",
        /// and what changed: start, stop, recovery, sinks
        Info = "info",
        /// and what explains single connections
        Debug = "debug",
    }
}

choice! {
    /// The shape of a line on standard error.
    LogFormat {
        /// for people and journald
        Text = "text",
        /// one JSON object a line
        Json = "json",
    }
}

section! {
    /// The process as a whole.
    Node {
        /// Directory that holds the node id and every log. Made when missing; one process at a time may use it. A
        /// relative path counts from the working directory. Change it to a disk of its own for production.
        data_dir: PathBuf = PathBuf::from("./metricstream-data");
        /// Threads that serve clients, one core each. 0 means one fewer than there are cores, at least one: the last
        /// core reads and recycles segments and merges windows. Change it when other services share the host.
        shards: u32 = 0, in 0, 1024;
        /// Whether each shard is bound to its core. Change it only where something else (a container's cpuset, a
        /// virtual machine's scheduler) already decides.
        pin: bool = true;
        /// How long a stop may take to answer and flush what has been received, before it is cut short. Must be less
        /// than the service manager's own limit (systemd: TimeoutStopSec, 90 s).
        drain_within: Duration = s(20), in s(1), s(600);
    }
}

section! {
    /// Where clients send points. One block for each kind of listener; without any, there is one with these defaults.
    Listen {
        /// IP addresses and ports, IPv4 or "[::]:8186" IPv6. Change it to be reached from other hosts, and then look at
        /// [auth] too: the default serves this host only.
        addresses: Vec<SocketAddr> = vec![loopback(8186)];
        /// When a request is acknowledged. "memory" answers sooner and can lose what a crash or power cut catches.
        durability: Durability = Durability::Disk;
        /// Served before every route: with "/ingest", points go to /ingest/metrics. Empty or beginning with "/". For
        /// those behind a proxy that shares a host name.
        path_prefix: String = String::new();
        /// Whether `X-Client-ID` names the client when there is no token. Only where each sender is trusted, as behind
        /// a gateway that sets it: whoever may choose a name may choose a fresh quota.
        trust_client_id_header: bool = false;
    }
}

section! {
    /// The listener for operators: /metrics, /healthz, /readyz, /api/v1/status. It asks for no password.
    Admin {
        /// One IP address and port. Change it to let another host scrape it, inside a network you trust.
        listen: SocketAddr = loopback(9186);
    }
}

section! {
    /// What one HTTP connection may take. The defaults suit agents and libraries as they come.
    Http {
        /// From the first byte of a request head to its last; then 408. Protects against clients that trickle.
        head_timeout: Duration = s(10), in ms(100), s(300);
        /// How long a connection may be silent between requests. Longer than the senders' flush interval, or every
        /// flush makes a connection.
        idle_timeout: Duration = s(75), in ms(100), s(86_400);
        /// Largest body as sent; beyond it 413. Raise it for senders that batch more.
        body_bytes_max: ByteSize = ByteSize::mib(16), in ByteSize::kib(1), ByteSize::gib(1);
        /// Largest body after decompression; beyond it 413.
        decompressed_bytes_max: ByteSize = ByteSize::mib(64), in ByteSize::kib(1), ByteSize::gib(2);
        /// How many times larger than the sent body the decompressed one may be, beyond its first 1 MiB. Real metrics
        /// stay below 50; a bomb does not.
        decompression_ratio_max: u32 = 200, in 2, 10_000;
        /// Slowest pace of a body once body_grace is over; then 408. Lower it for senders on very thin lines.
        body_rate_min: ByteRate = ByteRate::bytes(1024), in ByteRate::bytes(1), ByteRate::bytes(1 << 30);
        /// How long a body may be slower than body_rate_min, and how long it may stand still.
        body_grace: Duration = s(10), in ms(100), s(300);
        /// Open connections, over all listeners and shards; more are closed when they are accepted. Needs as many file
        /// descriptors (LimitNOFILE).
        connections_max: u32 = 16_384, in 1, 1_000_000;
        /// Open connections from one source address; connections_max holds in any case. Raise it where many senders share
        /// one address, as behind a proxy; lower it where none should take half of all.
        connections_per_address_max: u32 = 8_192, in 1, 1_000_000;
        /// Bytes received on one connection and not yet served, a body being read aside; at the bound no more is read
        /// until answers have left. One client that pipelines cannot take the buffers of the others.
        pipelined_bytes_max: ByteSize = ByteSize::kib(256), in ByteSize::kib(32), ByteSize::mib(64);
        /// Bytes of answers that one connection has not taken yet; at the bound its requests wait.
        unread_reply_bytes_max: ByteSize = ByteSize::kib(64), in ByteSize::kib(4), ByteSize::mib(16);
    }
}

section! {
    /// What one point, and one request, may hold. Points beyond a bound are rejected one by one, with the reason.
    Points {
        /// Points a request; those after it are rejected. Raise it together with the body bounds.
        per_request_max: u32 = 100_000, in 1, 10_000_000;
        /// Bytes of a metric name.
        name_bytes_max: ByteSize = ByteSize(1024), in ByteSize(16), ByteSize::kib(16);
        /// Tags of a point, those added here included.
        tags_max: u32 = 64, in 1, 1024;
        /// Bytes of a tag's key, and of its value.
        tag_bytes_max: ByteSize = ByteSize(1024), in ByteSize(16), ByteSize::kib(16);
        /// Bytes of a string field (line protocol). Such fields are stored for sinks, not aggregated.
        text_bytes_max: ByteSize = ByteSize::kib(64), in ByteSize(16), ByteSize::mib(1);
    }
}

section! {
    /// The native routes, POST /metrics and /api/v1/metrics.
    Json {
        /// What `timestamp` counts in the native shape. Set it when all senders agree on one unit.
        timestamp_unit: TimestampUnit = TimestampUnit::Auto;
        /// For senders of several events under one coarse timestamp: "all".
        same_timestamp: SameTimestamp = SameTimestamp::Identity;
    }
}

section! {
    /// The InfluxDB routes: /write, /api/v2/write, /api/v3/write_lp.
    Influx {
        /// What a client over its quota is told here. Native JSON routes always say 429.
        over_quota: OverQuota = OverQuota::Defer;
        /// For senders of several events under one coarse timestamp: "all".
        same_timestamp: SameTimestamp = SameTimestamp::Identity;
        /// What SHOW DATABASES answers. Any name is accepted in `db` and `bucket`; some tools first look for theirs.
        databases: Vec<String> = vec!["metrics".to_owned()];
    }
}

section! {
    /// Who may send.
    Auth {
        /// Whether every request needs the token of a [[client]]. Without it, a client with no token is known by its
        /// address (a wrong token is still refused). Set it wherever a listener can be reached by others.
        required: bool = false;
    }
}

section! {
    /// A client with a name and a token, and with limits and tags of its own. One block each.
    Client {
        /// What it is called in series, counters and messages. At most 256 bytes, no control characters.
        name: String = String::new(), like "payments".to_owned();
        /// The token itself: `Authorization: Bearer ..`, `Token ..`, or an InfluxDB password. Better in a file:
        /// `metricstream config` prints "<hidden>" here, and that word is refused when it is read back.
        token: Option<Secret> = None, like Some(Secret::new("<hidden>"));
        /// A file that holds the token; whitespace around it is cut off. A relative path counts from
        /// $CREDENTIALS_DIRECTORY (systemd's LoadCredential) when that is set, else from this file's directory.
        token_file: Option<PathBuf> = None, like Some(PathBuf::from("payments.token"));
        /// Instead of that of [limiter].
        requests_per_s: Option<Rate> = None, in Some(Rate(0.001)), Some(Rate::UNLIMITED), like Some(Rate(1000.0));
        /// Instead of that of [limiter].
        points_per_s: Option<Rate> = None, in Some(Rate(0.001)), Some(Rate::UNLIMITED), like Some(Rate(50_000.0));
        /// Instead of that of [limiter].
        bytes_per_s: Option<ByteRate> = None, in Some(ByteRate::bytes(1)), Some(ByteRate::UNLIMITED),
            like Some(ByteRate::bytes(8 << 20));
        /// Instead of that of [limiter].
        burst: Option<Duration> = None, in Some(ms(1)), Some(s(3600)), like Some(s(5));
        /// Instead of that of the route ([json], [influx]).
        same_timestamp: Option<SameTimestamp> = None, like Some(SameTimestamp::All);
        /// Added to its points where they lack the key. They win over [tags].
        tags: BTreeMap<String, String> = BTreeMap::new(), like BTreeMap::from([("team".to_owned(), "billing".to_owned())]);
    }
}

section! {
    /// The quota of a client that has none of its own: of each address, where there are no tokens. In total, over all
    /// its connections and shards.
    Limiter {
        /// Requests a second, or "unlimited". Raise it when many senders share an address, or to measure.
        requests_per_s: Rate = Rate(100.0), in Rate(0.001), Rate::UNLIMITED;
        /// Points a second, or "unlimited". Known only after decoding, so charged to the next request.
        points_per_s: Rate = Rate::UNLIMITED, in Rate(0.001), Rate::UNLIMITED;
        /// Body bytes a second as sent, such as "8 MiB", or "unlimited". Charged to the next request.
        bytes_per_s: ByteRate = ByteRate::UNLIMITED, in ByteRate::bytes(1), ByteRate::UNLIMITED;
        /// How much may come at once after silence, as time: "1 s" is one second's worth of each rate. Raise it for
        /// senders that come rarely and then with much.
        burst: Duration = s(1), in ms(1), s(3600);
        /// Clients remembered at a time; each takes at most 128 bytes a shard. When all are active, further ones share
        /// one quota.
        clients_max: u32 = 1_000_000, in 16, 16_000_000;
        /// How a connection finds its shard. "address" for a fleet that sends directly, never behind one proxy.
        steering: Steering = Steering::Hash;
    }
}

section! {
    /// The segment logs on disk: everything that was acknowledged, until it may go.
    Log {
        /// Size of one segment file, filled with zeros ahead of its use. Larger ones mean fewer files and coarser
        /// recycling.
        segment_bytes: ByteSize = ByteSize::mib(64), in ByteSize::mib(1), ByteSize::gib(1);
        /// Disk for the log of one shard, its spare segments included; all shards together take that many times this. At
        /// the bound, when_full decides. Set it to what the disk can give: it is how long a sink may be down.
        bytes_max: ByteSize = ByteSize::gib(4), in ByteSize::mib(4), ByteSize::tib(1024);
        /// Disk for the aggregate log (closed windows), one a process.
        aggregate_bytes_max: ByteSize = ByteSize::gib(2), in ByteSize::mib(4), ByteSize::tib(1024);
        /// Age at which a record that all sinks have, and that no window can need, is recycled.
        retention: Duration = s(24 * 3600), in s(60), s(3650 * 86_400);
        /// The same for closed windows: how far back /api/v1/windows can see.
        aggregate_retention: Duration = s(7 * 86_400), in s(60), s(3650 * 86_400);
        /// What gives way when bytes_max is reached: new requests, or the oldest records.
        when_full: WhenFull = WhenFull::Refuse;
        /// Segments a shard keeps ready. More of them bridge a slow disk when a load begins.
        spare_segments: u32 = 2, in 1, 64;
        /// How a commit reaches stable storage. The start says which was taken; fix it to keep machines alike.
        flush: FlushMode = FlushMode::Auto;
        /// How long one disk operation may take before the shard answers 503 and looks for the disk to come back.
        io_deadline: Duration = s(10), in ms(100), s(600);
        /// With durability = "memory": how long after its acknowledgement a point is on disk at the latest.
        memory_flush_within: Duration = ms(200), in ms(1), s(60);
        /// Bytes of a shard received and not yet on disk; at the bound, 503.
        unflushed_bytes_max: ByteSize = ByteSize::mib(64), in ByteSize::mib(1), ByteSize::gib(4);
    }
}

section! {
    /// How many series may be alive. Points of further ones are kept, but aggregated as `__overflow__`.
    Series {
        /// Of one client; total_max holds in any case. Raise it for a client that speaks for many hosts.
        per_client_max: u32 = 100_000, in 1, 100_000_000;
        /// Of all clients, divided among the shards. Needs memory: README has the figure for a million.
        total_max: u32 = 1_000_000, in 1, 100_000_000;
        /// Silence after which a series is forgotten (its next point makes it anew).
        idle_after: Duration = s(3600), in s(60), s(30 * 86_400);
    }
}

section! {
    /// Aggregation in event time.
    Windows {
        /// The smallest window, in which points are told apart; every other window is made of it. Windows on disk are
        /// made with one base: change it on an empty data directory.
        base: Duration = s(10), in s(1), s(15);
        /// The windows that are closed and stored, each a whole multiple of the base. Add longer ones for dashboards; the
        /// longest sets the least horizon.
        windows: Vec<Duration> = vec![s(10), s(60)];
        /// How long after its end a window is closed: longer than the senders' flush interval and their clock error.
        /// More means later windows, less means more revisions.
        lateness: Duration = s(15), in s(0), s(3600);
        /// How far back a late point still revises a closed window: as long as the senders buffer. Costs memory for
        /// every series.
        horizon: Duration = s(300), in s(10), s(86_400);
        /// How far ahead of the clock a point may be and still be aggregated; those beyond it are kept raw and counted.
        future_bound: Duration = s(600), in s(1), s(86_400);
        /// Memory, over all shards, in which the points of open windows are told apart. Beyond it windows become
        /// sums and sketches early and are marked `unchecked`.
        set_bytes_max: ByteSize = ByteSize::mib(256), in ByteSize::mib(1), ByteSize::tib(1);
        /// Memory of the reducer for windows that may still be revised. Beyond it the horizon shrinks.
        reducer_bytes_max: ByteSize = ByteSize::mib(512), in ByteSize::mib(8), ByteSize::tib(1);
        /// Whether each series' own windows are stored, beside those of [[aggregate]] rules. Without them the aggregate
        /// log is much smaller.
        per_series: bool = true;
        /// Whether windows have p50, p95 and p99. Without them (`null` in JSON, no row at /aggregates) nothing is sketched:
        /// busy series take less memory and CPU, and the aggregate log is smaller. All else stays exact. Change it
        /// freely: windows closed before keep what they have until a late point revises them.
        quantiles: bool = true;
    }
}

section! {
    /// A rule that folds many series into fewer. One block each; their windows are at /aggregates and /api/v1/windows.
    Aggregate {
        /// Name of the rule, and of the series it makes. Unique.
        name: String = String::new(), like "api.latency.by_region".to_owned();
        /// Which series: globs (`*` any run, `?` one character) on the metric's name and on tags, which must exist.
        r#match: Selector = Selector::default(), like Selector::example();
        /// Tags that are kept; series that agree in them become one. [] makes one series of all.
        by: Option<Vec<String>> = None, like Some(vec!["region".to_owned()]);
        /// Tags that are dropped, all others kept. Either `by` or `without`.
        without: Option<Vec<String>> = None, like Some(vec!["host".to_owned()]);
        /// Which of [windows] windows; all of them when not set.
        windows: Option<Vec<Duration>> = None, like Some(vec![s(60)]);
    }
}

section! {
    /// Where acknowledged points and closed windows are sent. One block each. A sink is served from the logs on disk, from a
    /// durable cursor of its own: while it is down, the logs keep what it has not got (up to [log] bytes_max).
    Sink {
        /// Its name in metrics, messages and cursors: letters, digits, - _ and ., at most 64. Unique. A sink under a new
        /// name begins anew.
        name: String = String::new(), like "archive".to_owned();
        /// What it is.
        r#type: SinkType = SinkType::File;
        /// What it is sent.
        send: Send = Send::Both;
        /// Only metrics whose name matches one of these globs (`*` any run, `?` one character). [] for all.
        names: Vec<String> = Vec::new(), like vec!["api.*".to_owned()];
        /// Only points that have all of these tags, with values that match the globs.
        tags: BTreeMap<String, String> = BTreeMap::new(), like BTreeMap::from([("region".to_owned(), "eu-*".to_owned())]);
        /// Where it begins when it is new.
        start: SinkStart = SinkStart::Oldest;
        /// Longest wait before a sink that failed is tried again; waits begin short and double.
        retry_every_max: Duration = s(30), in ms(100), s(3600);
        /// How long a stop of the process may wait for it. Nothing is lost when the time is over: the next start goes on at
        /// the cursor.
        stop_within: Duration = s(2), in ms(100), s(600);
        /// Its directory; made when missing. A relative path counts from the working directory. No other sink may have it.
        path: Option<PathBuf> = None, like Some(PathBuf::from("./metricstream-out"));
        /// How points are written.
        format: SinkFormat = SinkFormat::Json;
        /// How files are compressed.
        compression: Compression = Compression::None;
        /// Size at which a file is finished, give or take what is written at once (some MiB). Only finished files have their name.
        rotate_bytes: ByteSize = ByteSize::mib(64), in ByteSize::kib(64), ByteSize::tib(1);
        /// Age at which a file is finished: how late points are seen, and what a crash writes again.
        rotate_every: Duration = s(60), in ms(100), s(86_400);
        /// How many finished files of each kind (raw, aggregates) are left; older ones are deleted. For ever when not set.
        keep_files: Option<u32> = None, in Some(1), Some(u32::MAX), like Some(1440);
        /// The same in bytes.
        keep_bytes: Option<ByteSize> = None, in Some(ByteSize::kib(64)), Some(ByteSize::tib(1024)),
            like Some(ByteSize::gib(10));
        /// Kafka: some of the brokers, "host:port"; they tell of the others.
        brokers: Vec<String> = Vec::new(), like vec!["kafka-1:9092".to_owned(), "kafka-2:9092".to_owned()];
        /// Kafka: topic of the points. `{client}` and `{name}` stand for a point's own; what Kafka does not allow in a topic
        /// becomes `_`.
        topic: String = "metrics-raw".to_owned();
        /// Kafka: topic of the windows, in the same way.
        topic_aggregates: String = "metrics-aggregated".to_owned();
        /// Kafka: what the key of a record is. By client, what one host sends stays in order; by name, a metric is in one
        /// partition.
        key: KafkaKey = KafkaKey::Client;
        /// Kafka: how batches are compressed.
        codec: KafkaCodec = KafkaCodec::Lz4;
        /// Kafka: largest batch before compression; at most a 64th of in_flight_bytes_max. Smaller ones are made by
        /// themselves where a topic takes no more.
        batch_bytes_max: ByteSize = ByteSize::kib(976), in ByteSize::kib(1), ByteSize::mib(16);
        /// Kafka: memory for records that are not acknowledged yet, give or take some MiB.
        in_flight_bytes_max: ByteSize = ByteSize::mib(64), in ByteSize::mib(1), ByteSize::gib(1);
        /// Kafka: whether to speak TLS. (Influx speaks it when its url begins with https://.)
        tls: bool = false;
        /// Kafka, Influx: the certificate authority that the servers' certificates come from (PEM). When not set, the system's
        /// list (Kafka) or Mozilla's (Influx). This file and the next two are read again whenever the client is made anew.
        tls_ca: Option<PathBuf> = None, like Some(PathBuf::from("/etc/metricstream/kafka-ca.pem"));
        /// Kafka, Influx: this client's own certificate (PEM), where servers ask for one.
        tls_certificate: Option<PathBuf> = None, like Some(PathBuf::from("/etc/metricstream/kafka.pem"));
        /// Kafka, Influx: the key of tls_certificate (PEM).
        tls_key: Option<PathBuf> = None, like Some(PathBuf::from("/etc/metricstream/kafka.key"));
        /// Kafka: how the client proves who it is. "plain" sends the password as it is: use it with tls.
        sasl: KafkaSasl = KafkaSasl::None;
        /// Kafka, Influx: the user's name; for Kafka with sasl.
        username: String = String::new(), like "metricstream".to_owned();
        /// Kafka, Influx: a file that holds the password; whitespace around it is cut off. A relative path counts from
        /// $CREDENTIALS_DIRECTORY (systemd's LoadCredential) when that is set, else from the working directory. Read again
        /// whenever the client is made anew: at a start, and at every try after the server has refused it.
        password_file: Option<PathBuf> = None, like Some(PathBuf::from("kafka.password"));
        /// Kafka: more properties of librdkafka by their own names (its CONFIGURATION.md). Those that delivery depends on
        /// are refused.
        properties: BTreeMap<String, String> = BTreeMap::new(), like BTreeMap::from([("linger.ms".to_owned(), "20".to_owned())]);
        /// Influx: where it is. `metricstream influx init` makes there what is needed.
        url: String = String::new(), like "http://influxdb:8086".to_owned();
        /// Influx: which write API is spoken.
        api: InfluxApi = InfluxApi::V1;
        /// Influx v1: the database.
        database: String = "metrics".to_owned();
        /// Influx v1: the retention policy of points; "" for the database's default one.
        retention_policy: String = "raw".to_owned();
        /// Influx v1: the retention policy of windows.
        retention_policy_aggregates: String = "agg_1m".to_owned();
        /// Influx v2: the organisation.
        org: String = String::new(), like "example".to_owned();
        /// Influx v2: the bucket of points.
        bucket: String = "metrics_raw".to_owned();
        /// Influx v2: the bucket of windows.
        bucket_aggregates: String = "metrics_1m".to_owned();
        /// Influx: a file that holds the token, found like password_file. Version 1 takes username and password_file too.
        token_file: Option<PathBuf> = None, like Some(PathBuf::from("influxdb.token"));
        /// Influx: how points stand there. Fix it before the first point: InfluxDB keeps both, and queries see one.
        schema: InfluxSchema = InfluxSchema::Platform;
        /// Influx: whether writes are compressed (gzip).
        gzip: bool = true;
        /// Influx: points of one write.
        batch_points: u32 = 5_000, in 1, 100_000;
        /// Influx: how long points wait for others before they are written.
        batch_within: Duration = ms(200), in ms(1), s(60);
        /// Influx: writes in flight at a time. A series keeps its order at any number.
        in_flight: u32 = 4, in 1, 64;
        /// Influx: how long one write may take before it is given up and made again.
        request_within: Duration = s(30), in ms(100), s(600);
    }
}

section! {
    /// The process's own lines on standard error.
    Logging {
        /// The least severe line that is written. --log-level overrides it.
        level: Level = Level::Info;
        /// The shape of a line. --log-format overrides it.
        format: LogFormat = LogFormat::Text;
        /// Lines of one cause in each cause_interval; the rest are counted in one line at its end.
        lines_per_cause: u32 = 5, in 1, 100_000;
        /// The interval of lines_per_cause.
        cause_interval: Duration = s(10), in s(1), s(3600);
    }
}

config! {
    /// The whole configuration, as `metricstream config` prints it.
    Config {
        node: Node = Node::default();
        listen: Vec<Listen> = vec![Listen::default()];
        admin: Admin = Admin::default();
        http: Http = Http::default();
        points: Points = Points::default();
        json: Json = Json::default();
        influx: Influx = Influx::default();
        auth: Auth = Auth::default();
        client: Vec<Client> = Vec::new();
        limiter: Limiter = Limiter::default();
        /// Tags added to every point that lacks the key, such as datacenter = "fra1", environment = "production".
        tags: BTreeMap<String, String> = BTreeMap::new();
        log: Log = Log::default();
        series: Series = Series::default();
        windows: Windows = Windows::default();
        aggregate: Vec<Aggregate> = Vec::new();
        sink: Vec<Sink> = Vec::new();
        logging: Logging = Logging::default();
    }
}
