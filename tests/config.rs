//! The configuration as an operator meets it: whole files in, whole problems and whole files out.

use metricstream::config::{self, *};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn parse(text: &str) -> Config {
    Config::parse(text, "test.toml").unwrap_or_else(|problems| panic!("{problems}\nin:\n{text}"))
}

fn problems(text: &str) -> Vec<String> {
    match Config::parse(text, "test.toml") {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(problems) => problems.list.iter().map(ToString::to_string).collect(),
    }
}

/// Every part and every kind of value, none at its default.
const FULL: &str = r#"
[node]
data_dir = "/var/lib/metric \"stream\"\t\u0007"
shards = 4
pin = false

[[listen]]
addresses = ["0.0.0.0:8186", "[::]:8186"]
path_prefix = "/ingest/v1"
trust_client_id_header = true

[[listen]]
addresses = ["127.0.0.1:8187"]
durability = "memory"

[admin]
listen = "10.0.0.1:9186"

[http]
head_timeout = "2.5 s"
body_bytes_max = "8 MB"
body_rate_min = "4 KiB"

[points]
per_request_max = 50_000

[json]
timestamp_unit = "ns"

[influx]
over_quota = "shed"
same_timestamp = "all"
databases = ["telegraf", "k6"]

[auth]
required = true

[[client]]
name = "payments"
token_file = "payments.token"
requests_per_s = 0.5
points_per_s = "unlimited"
bytes_per_s = "3 MiB"
burst = "1500 ms"
same_timestamp = "identity"
tags = { team = "billing", "odd key" = "\"quoted\" \\ and é" }

[[client]]
name = "agents"
token_file = "/run/secrets/agents"

[limiter]
requests_per_s = 1_000
points_per_s = 1e6
steering = "address"

[tags]
datacenter = "fra1"
"a.b" = "c"

[log]
bytes_max = "100 GB"
flush = "dsync"
when_full = "drop_oldest"

[series]
idle_after = "2 h"

[windows]
base = "5 s"
windows = ["1 min", "5 s", "5 min"]
horizon = "10 min"
per_series = false

[[aggregate]]
name = "latency.by_region"
match = { name = "api.*", tags = { region = "eu-*" } }
by = ["region"]
windows = ["1 min"]

[[aggregate]]
name = "all"
by = []

[[aggregate]]
name = "without.host"
match.name = "cpu*"
without = ["host", "cpu"]

[[sink]]
name = "archive.v1"
type = "file"
send = "raw"
names = ["api.*", "cpu"]
tags = { region = "eu-*" }
start = "now"
path = "/var/lib/archive"
format = "line"
compression = "zstd"
rotate_bytes = "1 GiB"
rotate_every = "5 min"
keep_files = 100
stop_within = "500 ms"

[[sink]]
name = "all"
path = "out"

[logging]
level = "debug"
format = "json"
"#;

#[test]
fn an_empty_file_is_the_default_configuration() {
    assert_eq!(parse(""), Config::default());
    assert_eq!(Config::load(None), Ok(Config::default()));
    assert_eq!(Config::default().validate(), vec![]);
}

#[test]
fn the_defaults_serve_this_host_only_with_the_platform_limit() {
    let config = Config::default();
    assert_eq!(config.listen[0].addresses, vec!["127.0.0.1:8186".parse::<std::net::SocketAddr>().expect("address")]);
    assert_eq!(config.listen[0].durability, Durability::Disk);
    assert_eq!(config.admin.listen, "127.0.0.1:9186".parse::<std::net::SocketAddr>().expect("address"));
    assert_eq!(config.node.data_dir, Path::new("./metricstream-data"));
    assert_eq!(config.limiter.requests_per_s, Rate(100.0));
    assert_eq!([0, 1, 2, 8].map(|cores| config.shard_count(cores)), [1, 1, 1, 7]);
}

#[test]
fn the_printed_defaults_read_back_to_the_same_configuration() {
    let text = Config::default().to_toml();
    assert_eq!(parse(&text), Config::default());
    assert_eq!(parse(&text).to_toml(), text);
}

#[test]
fn a_full_configuration_survives_printing_and_reading() {
    let config = parse(FULL);
    let text = config.to_toml();
    assert_eq!(parse(&text), config, "{text}");
    assert_eq!(config.client[0].tags["odd key"], "\"quoted\" \\ and é");
    assert!(config.windows.windows.is_sorted(), "whatever the order in the file");
    assert_eq!(config.aggregate[2].r#match.name, "cpu*");
    assert_eq!(config.http.head_timeout, Duration::from_millis(2500));
    assert_eq!(config.client[0].points_per_s.and_then(Rate::limit), None);
}

#[test]
fn the_commented_examples_are_valid_when_their_marks_are_removed() {
    let text = Config::default().to_toml();
    // of each pair that excludes the other, one
    let excluded = |key: &str| key.starts_with("token =") || key.starts_with("without =");
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.is_empty() && !key.starts_with(' ') && !excluded(key) => key,
            _ => line,
        })
        .collect();
    let config = parse(&uncommented.join("\n"));
    assert_eq!(config.client.len(), 1);
    assert_eq!(config.client[0].name, "payments");
    assert_eq!(config.aggregate.len(), 1);
    assert_eq!(config.client[0].burst, Some(Duration::from_secs(5)));
}

#[test]
fn every_printed_key_has_words_a_default_and_its_bounds() {
    let text = Config::default().to_toml();
    let lines: Vec<&str> = text.lines().collect();
    let (mut keys, mut bounded) = (0, 0);
    for (n, line) in lines.iter().enumerate() {
        let is_key = !line.starts_with("# ") && line.contains(" = ");
        if !is_key {
            continue;
        }
        keys += 1;
        assert!(
            ["# Default ", "# Not set by default", "# Must be set"].iter().any(|fact| lines[n - 1].starts_with(fact)),
            "{line}: {}",
            lines[n - 1]
        );
        assert!(lines[n - 2].starts_with("# ") && lines[n - 2].len() > 10, "{line}");
        bounded += usize::from(lines[n - 1].contains("; from "));
    }
    assert!(keys >= 75 && bounded >= 40, "{keys} keys, {bounded} bounded");
    for line in [
        "# Default \"10 s\"; from \"100 ms\" to \"5 min\".",
        "#   \"defer\": 503 with Retry-After: every client keeps its points and comes again",
        "segment_bytes = \"64 MiB\"",
    ] {
        assert!(lines.contains(&line), "{line} in\n{text}");
    }
}

#[test]
fn all_problems_are_reported_together_with_line_and_suggestion() {
    let text = "\
[http]
body_byte_max = \"1 MiB\"
idle_timeout = 75
head_timeout = \"0 s\"

[influx]
over_quota = \"sched\"

[lmiter]
requests_per_s = 5
";
    assert_eq!(
        problems(text),
        [
            "line 2: http.body_byte_max: unknown key; did you mean `body_bytes_max`?",
            "line 3: http.idle_timeout: a plain number where a duration with its unit, such as \"10 s\" or \"250 ms\", is meant",
            "line 4: http.head_timeout: \"0 s\" is out of bounds: it goes from \"100 ms\" to \"5 min\"",
            "line 7: influx.over_quota: \"sched\" is not one of \"defer\", \"shed\"; did you mean \"shed\"?",
            "line 9: lmiter: unknown key; did you mean `limiter`?",
        ]
    );
    let shown = Config::parse(text, "/etc/m.toml").expect_err("wrong").to_string();
    assert!(shown.lines().all(|line| line.starts_with("/etc/m.toml: line ")), "{shown}");
}

#[test]
fn a_key_in_the_wrong_section_is_told_its_home() {
    for (text, message) in [
        ("[node]\nretention = \"1 h\"", "line 2: node.retention: unknown key here; it belongs to [log]"),
        ("data_dir = \"x\"", "line 1: data_dir: unknown key here; it belongs to [node]"),
        ("[http]\ncolour = 1", "line 2: http.colour: unknown key; known here: head_timeout, idle_timeout, "),
    ] {
        assert!(problems(text)[0].starts_with(message), "{text}: {:?}", problems(text));
    }
}

#[test]
fn values_of_the_wrong_kind_are_refused_with_what_was_meant() {
    for (text, message) in [
        ("[node]\nshards = \"4\"", "a text where a whole number is meant"),
        ("[node]\nshards = -1", "-1 is out of bounds"),
        ("[node]\nshards = 1025", "1025 is out of bounds: it goes from 0 to 1024"),
        ("[node]\nshards = 99999999999999999999", ""),
        ("[node]\npin = 1", "true or false is meant"),
        ("[node]\ndata_dir = \"\"", "a path cannot be empty"),
        ("[log]\nsegment_bytes = 67108864", "a size with its unit"),
        ("[log]\nsegment_bytes = \"64\"", "the unit is missing"),
        ("[log]\nsegment_bytes = \"64 mb\"", "\"mb\" is no unit"),
        ("[limiter]\nrequests_per_s = \"100\"", "a number (a second)"),
        ("[limiter]\nrequests_per_s = 0", "out of bounds"),
        ("[limiter]\nrequests_per_s = -5", ""),
        ("[limiter]\nrequests_per_s = nan", "a rate is a positive number"),
        ("[limiter]\nrequests_per_s = inf", "a rate is a positive number"),
        ("[limiter]\nbytes_per_s = 1000", "a size with its unit (a second)"),
        ("[admin]\nlisten = \"localhost:9186\"", "is no IP address with a port"),
        ("[admin]\nlisten = \":9186\"", "is no IP address with a port"),
        ("[[listen]]\naddresses = \"127.0.0.1:1\"", "a list of addresses"),
        ("[listen]\naddresses = []", "`[[..]]`"),
        ("http = 5", "this is a section"),
        ("[tags]\na = 5", "a text in quotes"),
        ("[[aggregate]]\nname = \"x\"\nby = []\nmatch = { nam = \"y\" }", "did you mean `name`?"),
        ("[windows]\nwindows = [\"10 s\", 60]", "a plain number where a duration"),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|p| p.contains(message) && p.starts_with("line ")), "{text}: {found:?}");
    }
}

#[test]
fn keys_are_judged_against_each_other() {
    for (text, message) in [
        ("[windows]\nlateness = \"5 min\"", "line 2: windows.lateness: 5 min is not less than horizon"),
        ("[windows]\nwindows = [\"10 s\", \"25 s\"]", "line 2: windows.windows[1]: 25 s is no multiple of the base"),
        ("[windows]\nwindows = [\"10 s\", \"10 s\"]", "stands there twice"),
        ("[windows]\nwindows = []", "at least one window"),
        ("[windows]\nwindows = [\"10 min\"]", "line 1: windows.horizon: 5 min is less than the longest window"),
        ("[windows]\nbase = \"1500 ms\"\nwindows = [\"3 s\"]", "no whole number of seconds"),
        ("[windows]\nhorizon = \"2 h\"\n[log]\nretention = \"1 h\"", "line 4: log.retention"),
        ("[log]\nbytes_max = \"128 MiB\"", "line 2: log.bytes_max: 128 MiB is too little"),
        ("[log]\naggregate_bytes_max = \"64 MiB\"", "log.aggregate_bytes_max"),
        ("[log]\nunflushed_bytes_max = \"1 MiB\"", "the largest request could never be taken"),
        ("[http]\ndecompressed_bytes_max = \"1 MiB\"", "less than body_bytes_max"),
        ("[series]\nidle_after = \"1 min\"", "series.idle_after"),
        ("[auth]\nrequired = true", "nobody could send"),
        ("[admin]\nlisten = \"127.0.0.1:8186\"", "listened on twice"),
        ("[[listen]]\naddresses = []", "at least one address"),
        (
            "[log]\naggregate_retention = \"2 min\"",
            "line 2: log.aggregate_retention: 2 min is less than windows.horizon",
        ),
        ("[[listen]]\npath_prefix = \"x/\"", "begins with \"/\""),
        ("[[client]]\nname = \"a\"", "line 1: client[0].token_file: a client needs a token"),
        ("[[client]]\ntoken_file = \"f\"", "client[0].name: a name is needed"),
        ("[[client]]\nname = \"a\"\ntoken = \"12345678\"\ntoken_file = \"f\"", "not both"),
        (
            "[[client]]\nname = \"a\"\ntoken = \"12345678\"\n[[client]]\nname = \"a\"\ntoken = \"12345678\"",
            "line 5: client[1].name: another client",
        ),
        ("[[client]]\nname = \"a\"\ntoken = \"1234\"", "at least 8 characters"),
        ("[[client]]\nname = \"a\"\ntoken = \"<hidden>\"", "stands where `metricstream config` does not show"),
        ("[[client]]\nname = \"a\"\ntoken_file = \"f\"\ntags = { x = \"\" }", "client[0].tags.x"),
        ("[tags]\n\"\" = \"x\"", "are not empty"),
        ("[[aggregate]]\nname = \"a\"", "say which tags are kept"),
        ("[[aggregate]]\nname = \"a\"\nby = []\nwithout = []", "not both"),
        ("[[aggregate]]\nname = \"a\"\nby = [\"x\", \"x\"]", "twice"),
        ("[[aggregate]]\nname = \"a\"\nby = []\nwindows = [\"30 s\"]", "30 s is none of [windows] windows"),
        ("[[aggregate]]\nname = \"__overflow__\"\nby = []", "is taken"),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|p| p.contains(message)), "{text}: {found:?}");
    }
}

#[test]
fn one_total_can_be_lowered_alone() {
    assert_eq!(parse("[http]\nconnections_max = 10").http.connections_max, 10);
    assert_eq!(parse("[series]\ntotal_max = 10").series.total_max, 10);
}

#[test]
fn syntax_errors_carry_their_line() {
    for (text, line) in [("[http\n", 1), ("[http]\nidle_timeout = \n", 2), ("a = 1\na = 2\n", 2), ("x = \"\n", 1)] {
        let found = problems(text);
        assert!(found[0].starts_with(&format!("line {line}: ")), "{text}: {found:?}");
    }
}

#[test]
fn tokens_are_never_shown() {
    let config = parse("[[client]]\nname = \"a\"\ntoken = \"s3cret-token\"\n");
    assert!(!config.to_toml().contains("s3cret") && !format!("{config:?}").contains("s3cret"));
    assert!(config.to_toml().contains("token = \"<hidden>\""));
    assert!(problems(&config.to_toml())[0].contains("client[0].token: \"<hidden>\" stands where"));
    for text in [
        "[[client]]\nname = \"a\"\ntoken = \"s3 cret\"",
        "[[client]]\nname = \"a\"\ntoken = \"s3c\"",
        "[[client]]\nname = \"a\"\ntoken = [\"s3c\"]",
    ] {
        assert!(!problems(text).concat().contains("s3"), "{text}");
    }
}

#[test]
fn token_files_are_found_in_the_credentials_directory_or_beside_the_configuration() {
    let (credentials, beside) = (tempfile::tempdir().expect("temp"), tempfile::tempdir().expect("temp"));
    std::fs::write(credentials.path().join("payments.token"), "from-credentials\n").expect("write");
    std::fs::write(beside.path().join("payments.token"), "from-beside\n").expect("write");
    let config = parse(
        "[tags]\ndc = \"x\"\nteam = \"none\"\n[[client]]\nname = \"p\"\ntoken_file = \"payments.token\"\nrequests_per_s = 7\ntags = { team = \"billing\" }\n",
    );
    let file = beside.path().join("m.toml");
    let token = |directory: Option<PathBuf>| {
        let places = SecretPlaces::new(Some(&file), directory);
        assert_eq!(config::check(&config, &places), vec![]);
        resolve_clients(&config, &places).expect("readable")[0].clone()
    };
    assert_eq!(token(Some(credentials.path().to_owned())).token.reveal(), "from-credentials");
    assert_eq!(token(None).token.reveal(), "from-beside");
    let client = token(Some(PathBuf::new()));
    assert_eq!(client.token.reveal(), "from-beside", "an empty variable is unset");
    assert_eq!((client.requests_per_s, client.burst), (Rate(7.0), config.limiter.burst));
    assert_eq!((client.tags["team"].as_str(), client.tags["dc"].as_str()), ("billing", "x"));
}

#[test]
fn unusable_token_files_are_all_reported_without_their_content() {
    let directory = tempfile::tempdir().expect("temp");
    for (name, content) in
        [("short", "abc"), ("spaced", "pass word pass"), ("good", "same-token"), ("twin", " same-token ")]
    {
        std::fs::write(directory.path().join(name), content).expect("write");
    }
    let text: String = ["missing", "short", "spaced", "good", "twin"]
        .iter()
        .map(|name| format!("[[client]]\nname = \"{name}\"\ntoken_file = \"{name}\"\n"))
        .collect();
    let places = SecretPlaces { config_directory: Some(directory.path().to_owned()), ..SecretPlaces::default() };
    let found: Vec<String> = config::check(&parse(&text), &places).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found[0].contains("client[0].token_file") && found[0].contains("cannot be read"), "{found:?}");
    assert!(found[3].contains("the client \"good\" has the same token"), "{found:?}");
    assert!(!found.concat().contains("abc") && !found.concat().contains("same-token"), "{found:?}");
}

#[test]
fn the_command_line_wins_and_is_judged_with_the_rest() {
    let overrides = Overrides {
        data_dir: Some("d".into()),
        shards: Some(2),
        listen: vec!["127.0.0.1:1".parse().expect("address"), "[::1]:1".parse().expect("address")],
        log_level: Some(Level::Error),
        ..Overrides::default()
    };
    let config = parse(FULL).apply(&overrides).expect("valid");
    assert_eq!((config.listen.len(), config.listen[0].addresses.len()), (1, 2));
    assert_eq!(config.listen[0].path_prefix, "/ingest/v1", "the first listener's settings stay");
    assert_eq!((config.node.shards, config.logging.level), (2, Level::Error));
    let twice =
        Overrides { admin: Some("127.0.0.1:8186".parse::<SocketAddr>().expect("address")), ..Overrides::default() };
    let problems = Config::default().apply(&twice).expect_err("one address for both");
    assert!(problems.to_string().starts_with("command line: listen[0].addresses: 127.0.0.1:8186"), "{problems}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let problems = Config::load(Some(Path::new("/nonexistent/m.toml"))).expect_err("missing");
    assert!(problems.to_string().starts_with("/nonexistent/m.toml: cannot be read: "), "{problems}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\[{1,2}(http|listen|tags|client)\\]{1,2}\n|[a-z_]{1,9} = |\"[^\"]{0,9}\"\n|[0-9]{1,20}\n|\\PC|\n){0,12}") {
        let _ = Config::parse(&text, "test.toml");
    }

    #[test]
    fn tags_of_any_text_survive_printing(key in "[^\\p{Cc}]{1,12}", value in "[^\\p{Cc}]{1,20}") {
        let mut config = Config::default();
        config.tags.insert(key, value);
        proptest::prop_assert_eq!(Config::parse(&config.to_toml(), "printed"), Ok(config));
    }
}

#[test]
fn a_sink_that_cannot_be_is_told_why() {
    let sink = |more: &str| format!("[[sink]]\nname = \"a\"\npath = \"out\"\n{more}");
    assert_eq!(parse(&sink("")).sink[0].rotate_every, Duration::from_secs(60));
    for (text, part) in [
        ("[[sink]]\npath = \"out\"\n".to_owned(), "a name is needed"),
        ("[[sink]]\nname = \"a\"\n".to_owned(), "needs a path"),
        ("[[sink]]\nname = \"a/b\"\npath = \"out\"\n".to_owned(), "cannot be used"),
        ("[[sink]]\nname = \"..\"\npath = \"out\"\n".to_owned(), "cannot be used"),
        (sink("type = \"fil\"\n"), "did you mean \"file\"?"),
        (sink("names = [\"\"]\n"), "matches nothing"),
        (sink("rotate_every = \"1 ms\"\n"), "out of bounds"),
        (sink("rotate_byte = \"1 GiB\"\n"), "did you mean `rotate_bytes`?"),
        (format!("{}{}", sink(""), sink("").replace("out", "other")), "another sink is called \"a\" too"),
        (format!("{}{}", sink(""), sink("").replace("\"a\"", "\"b\"")), "another sink writes to out too"),
    ] {
        let found = problems(&text);
        assert!(found.iter().any(|problem| problem.contains(part)), "{found:?} for\n{text}");
    }
}
