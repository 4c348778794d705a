//! What can only be judged across keys (`Config::validate`), and on the machine itself (`check`: token files).

use super::problem::Problem;
use super::schema::Config;
use super::units::{ByteSize, format_duration};
use super::value::{ByteRate, Rate, check_token};
use super::{SameTimestamp, Secret, SinkType};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every log needs one segment to write, one that is flushed and may be recycled, and its spares.
const SEGMENTS_IN_USE: u64 = 2;
const NAME_BYTES_MAX: usize = 256;
/// Names of sinks are names of directories.
const SINK_NAME_BYTES_MAX: usize = crate::forward::cursor::NAME_BYTES_MAX;
/// The series that takes in what is over the limit of live series; no rule may make it.
const OVERFLOW_NAME: &str = "__overflow__";

impl Config {
    /// All that is wrong between keys. Empty for a configuration from `load`, `parse` or `apply`.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wrong = |key: String, message: String| problems.push(Problem::new(key, message));
        self.validate_listeners(&mut wrong);
        self.validate_clients(&mut wrong);
        self.validate_bounds(&mut wrong);
        self.validate_log(&mut wrong);
        self.validate_windows(&mut wrong);
        self.validate_aggregates(&mut wrong);
        self.validate_sinks(&mut wrong);
        problems
    }

    fn validate_listeners(&self, wrong: &mut impl FnMut(String, String)) {
        if self.listen.is_empty() {
            wrong("listen".into(), "no listener: leave the key out for the default one".into());
        }
        let mut taken: HashSet<SocketAddr> = HashSet::from([self.admin.listen]);
        for (n, listen) in self.listen.iter().enumerate() {
            let key = format!("listen[{n}].addresses");
            if listen.addresses.is_empty() {
                wrong(key.clone(), "at least one address is needed".into());
            }
            for address in &listen.addresses {
                if address.port() != 0 && !taken.insert(*address) {
                    wrong(key.clone(), format!("{address} is listened on twice (by another listener or [admin])"));
                }
            }
            let prefix = &listen.path_prefix;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b);
            let usable = prefix.starts_with('/') && !prefix.ends_with('/') && prefix.bytes().all(plain);
            if !usable && !prefix.is_empty() {
                wrong(
                    format!("listen[{n}].path_prefix"),
                    format!(
                        "\"{}\" cannot be used: a prefix is empty, or begins with \"/\", does not end with it, \
                         and holds only letters, digits and / - _ . ~",
                        prefix.escape_debug()
                    ),
                );
            }
        }
    }

    fn validate_clients(&self, wrong: &mut impl FnMut(String, String)) {
        let mut names = HashSet::new();
        let mut tokens = HashSet::new();
        for (n, client) in self.client.iter().enumerate() {
            let key = |field: &str| format!("client[{n}].{field}");
            if let Err(message) = check_name(&client.name) {
                wrong(key("name"), message);
            } else if !names.insert(client.name.as_str()) {
                wrong(key("name"), format!("another client is called \"{}\" too", client.name));
            }
            match (&client.token, &client.token_file) {
                (None, None) => wrong(key("token_file"), "a client needs a token or a token_file".into()),
                (Some(_), Some(_)) => wrong(key("token"), "either token or token_file, not both".into()),
                (Some(token), None) => {
                    // from a file it was judged when it was read; this is for configurations made in code
                    if let Err(message) = check_token(token.reveal()) {
                        wrong(key("token"), message);
                    } else if !tokens.insert(token.reveal()) {
                        wrong(key("token"), "another client has the same token".into());
                    }
                }
                (None, Some(_)) => {}
            }
            self.validate_tags(&key("tags"), &client.tags, wrong);
        }
        self.validate_tags("tags", &self.tags, wrong);
        if self.auth.required && self.client.is_empty() {
            wrong("auth.required".into(), "true without any [[client]]: nobody could send".into());
        }
        for (n, name) in self.influx.databases.iter().enumerate() {
            if let Err(message) = check_name(name) {
                wrong(format!("influx.databases[{n}]"), message);
            }
        }
    }

    fn validate_tags(&self, key: &str, tags: &BTreeMap<String, String>, wrong: &mut impl FnMut(String, String)) {
        for (name, value) in tags {
            let bad = |text: &str| {
                text.is_empty()
                    || text.len() as u64 > self.points.tag_bytes_max.bytes()
                    || text.chars().any(char::is_control)
            };
            if bad(name) || bad(value) {
                wrong(
                    format!("{key}.{}", super::value::quote_key(name)),
                    format!(
                        "a tag's key and value are not empty, hold no control characters, and have at most {} bytes (points.tag_bytes_max)",
                        self.points.tag_bytes_max.bytes()
                    ),
                );
            }
        }
        if tags.len() as u64 > u64::from(self.points.tags_max) {
            wrong(key.to_owned(), format!("more than points.tags_max ({}) tags", self.points.tags_max));
        }
    }

    fn validate_bounds(&self, wrong: &mut impl FnMut(String, String)) {
        let http = &self.http;
        if http.decompressed_bytes_max < http.body_bytes_max {
            wrong(
                "http.decompressed_bytes_max".into(),
                format!(
                    "{} is less than body_bytes_max ({}): a body that is not compressed must fit too",
                    http.decompressed_bytes_max, http.body_bytes_max
                ),
            );
        }
        if self.series.idle_after <= self.windows.horizon {
            wrong(
                "series.idle_after".into(),
                format!(
                    "{} is not more than windows.horizon ({}): a series must outlive the windows that may still be revised",
                    format_duration(self.series.idle_after),
                    format_duration(self.windows.horizon)
                ),
            );
        }
    }

    fn validate_log(&self, wrong: &mut impl FnMut(String, String)) {
        let log = &self.log;
        let segments = SEGMENTS_IN_USE + u64::from(log.spare_segments);
        let least = ByteSize(log.segment_bytes.bytes().saturating_mul(segments));
        for (key, bytes_max) in [("bytes_max", log.bytes_max), ("aggregate_bytes_max", log.aggregate_bytes_max)] {
            if bytes_max < least {
                wrong(
                    format!("log.{key}"),
                    format!(
                        "{bytes_max} is too little: {segments} segments of {} ({SEGMENTS_IN_USE} in use, {} spare) need {least}",
                        log.segment_bytes, log.spare_segments
                    ),
                );
            }
        }
        let rebuild = self.windows.horizon + self.windows.future_bound;
        if log.retention < rebuild {
            wrong(
                "log.retention".into(),
                format!(
                    "{} is less than windows.horizon + windows.future_bound ({}): windows could not be rebuilt after a restart",
                    format_duration(log.retention),
                    format_duration(rebuild)
                ),
            );
        }
        if log.aggregate_retention < self.windows.horizon {
            wrong(
                "log.aggregate_retention".into(),
                format!(
                    "{} is less than windows.horizon ({}): a window could be revised after it is gone",
                    format_duration(log.aggregate_retention),
                    format_duration(self.windows.horizon)
                ),
            );
        }
        if self.http.decompressed_bytes_max > log.unflushed_bytes_max {
            wrong(
                "log.unflushed_bytes_max".into(),
                format!(
                    "{} is less than http.decompressed_bytes_max ({}): the largest request could never be taken",
                    log.unflushed_bytes_max, self.http.decompressed_bytes_max
                ),
            );
        }
    }

    fn validate_windows(&self, wrong: &mut impl FnMut(String, String)) {
        let windows = &self.windows;
        let show = |d: Duration| format_duration(d);
        if windows.windows.is_empty() {
            wrong("windows.windows".into(), "at least one window is needed".into());
        }
        if windows.windows.len() > 8 {
            wrong("windows.windows".into(), "at most 8 windows".into());
        }
        if windows.base.subsec_nanos() != 0 {
            wrong("windows.base".into(), format!("{} is no whole number of seconds", show(windows.base)));
        }
        let mut seen = HashSet::new();
        for (n, window) in windows.windows.iter().enumerate() {
            let key = format!("windows.windows[{n}]");
            if window.is_zero() || !window.as_nanos().is_multiple_of(windows.base.as_nanos().max(1)) {
                wrong(key, format!("{} is no multiple of the base, {}", show(*window), show(windows.base)));
            } else if *window > Duration::from_secs(86_400) {
                wrong(key, format!("{} is longer than 1 d", show(*window)));
            } else if !seen.insert(*window) {
                wrong(key, format!("{} stands there twice", show(*window)));
            }
        }
        if windows.lateness >= windows.horizon {
            wrong(
                "windows.lateness".into(),
                format!(
                    "{} is not less than horizon ({}): a window would be final before it closes",
                    show(windows.lateness),
                    show(windows.horizon)
                ),
            );
        }
        if let Some(longest) = windows.windows.iter().max().filter(|longest| **longest > windows.horizon) {
            wrong(
                "windows.horizon".into(),
                format!("{} is less than the longest window ({})", show(windows.horizon), show(*longest)),
            );
        }
    }

    fn validate_aggregates(&self, wrong: &mut impl FnMut(String, String)) {
        let mut names = HashSet::new();
        for (n, rule) in self.aggregate.iter().enumerate() {
            let key = |field: &str| format!("aggregate[{n}].{field}");
            if let Err(message) = check_name(&rule.name) {
                wrong(key("name"), message);
            } else if rule.name == OVERFLOW_NAME {
                wrong(key("name"), format!("\"{OVERFLOW_NAME}\" is taken"));
            } else if !names.insert(rule.name.as_str()) {
                wrong(key("name"), format!("another rule is called \"{}\" too", rule.name));
            }
            match (&rule.by, &rule.without) {
                (Some(_), Some(_)) => wrong(key("without"), "either by or without, not both".into()),
                (None, None) => {
                    wrong(key("by"), "say which tags are kept (`by`, [] for none) or dropped (`without`)".into());
                }
                (Some(tags), None) | (None, Some(tags)) => {
                    let field = if rule.by.is_some() { "by" } else { "without" };
                    let unique: HashSet<&String> = tags.iter().collect();
                    if unique.len() != tags.len() || tags.iter().any(String::is_empty) {
                        wrong(key(field), "a tag is empty or stands there twice".into());
                    }
                }
            }
            if rule.r#match.name.is_empty() {
                wrong(key("match.name"), "an empty glob matches nothing; \"*\" matches every name".into());
            }
            for window in rule.windows.iter().flatten() {
                if !self.windows.windows.contains(window) {
                    wrong(key("windows"), format!("{} is none of [windows] windows", format_duration(*window)));
                }
            }
            if rule.windows.as_ref().is_some_and(Vec::is_empty) {
                wrong(key("windows"), "at least one window, or leave the key out for all".into());
            }
        }
    }

    fn validate_sinks(&self, wrong: &mut impl FnMut(String, String)) {
        let mut names = HashSet::new();
        for (n, sink) in self.sink.iter().enumerate() {
            let key = |field: &str| format!("sink[{n}].{field}");
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if sink.name.is_empty() {
                wrong(key("name"), "a name is needed".into());
            } else if sink.name.len() > SINK_NAME_BYTES_MAX
                || sink.name.starts_with('.')
                || !sink.name.bytes().all(plain)
            {
                wrong(
                    key("name"),
                    format!(
                        "\"{}\" cannot be used: a name has at most {SINK_NAME_BYTES_MAX} letters, digits, - _ and ., and \
                         does not begin with a dot",
                        sink.name.escape_debug()
                    ),
                );
            } else if !names.insert(sink.name.as_str()) {
                wrong(key("name"), format!("another sink is called \"{}\" too", sink.name));
            }
            if sink.names.iter().any(String::is_empty) {
                wrong(key("names"), "an empty glob matches nothing; leave the key out for every name".into());
            }
            let problems = match sink.r#type {
                SinkType::Kafka => crate::forward::kafka::settings::problems(sink),
                SinkType::Influx => crate::forward::influx::problems(sink),
                SinkType::File => Vec::new(),
            };
            for (field, message) in problems {
                wrong(key(field), message);
            }
            if sink.r#type != SinkType::File {
                continue;
            }
            match &sink.path {
                None => wrong(key("path"), "a sink of type \"file\" needs a path".into()),
                Some(path) => {
                    let same = |other: &&super::Sink| other.path.as_deref() == Some(path);
                    if self.sink[..n].iter().any(|other| same(&other)) {
                        wrong(key("path"), format!("another sink writes to {} too", path.display()));
                    }
                }
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("a name is needed".into()),
        name if name.len() > NAME_BYTES_MAX => Err(format!("a name has at most {NAME_BYTES_MAX} bytes")),
        name if name.chars().any(char::is_control) => Err("a name holds no control characters".into()),
        _ => Ok(()),
    }
}

/// The line of a key, or of the nearest thing around it that stands in the file.
pub(super) fn line_of(key: &str, lines: &HashMap<String, usize>) -> Option<usize> {
    let mut path = key;
    loop {
        if let Some(line) = lines.get(path) {
            return Some(*line);
        }
        path = &path[..path.rfind(['.', '['])?];
    }
}

/// Where a relative `token_file` is looked for.
#[derive(Clone, Debug, Default)]
pub struct SecretPlaces {
    /// $CREDENTIALS_DIRECTORY
    pub credentials_directory: Option<PathBuf>,
    /// Directory of the configuration file
    pub config_directory: Option<PathBuf>,
}

impl SecretPlaces {
    pub fn new(config_file: Option<&Path>, credentials_directory: Option<PathBuf>) -> SecretPlaces {
        SecretPlaces {
            credentials_directory: credentials_directory.filter(|d| !d.as_os_str().is_empty()),
            config_directory: config_file.and_then(Path::parent).map(Path::to_path_buf),
        }
    }

    fn find(&self, file: &Path) -> PathBuf {
        match self.credentials_directory.as_ref().or(self.config_directory.as_ref()) {
            Some(directory) => directory.join(file), // an absolute `file` replaces the directory
            None => file.to_path_buf(),
        }
    }
}

/// A client as the shards need it: nothing left to look up.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedClient {
    pub name: String,
    pub token: Secret,
    pub requests_per_s: Rate,
    pub points_per_s: Rate,
    pub bytes_per_s: ByteRate,
    pub burst: Duration,
    /// `None`: as the route says
    pub same_timestamp: Option<SameTimestamp>,
    /// Its own and the static ones, its own first in a conflict
    pub tags: BTreeMap<String, String>,
}

/// Reads the token files and fills in the defaults. All problems, or all clients.
pub fn resolve_clients(config: &Config, places: &SecretPlaces) -> Result<Vec<ResolvedClient>, Vec<Problem>> {
    let (mut clients, mut problems) = (Vec::new(), Vec::new());
    let mut owners: HashMap<String, String> = HashMap::new();
    for (n, client) in config.client.iter().enumerate() {
        let token = match (&client.token, &client.token_file) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(file)) => read_token(&places.find(file)),
            (None, None) => Err("a client needs a token or a token_file".to_owned()),
        };
        let token = match token {
            Ok(token) => token,
            Err(message) => {
                problems.push(Problem::new(format!("client[{n}].token_file"), message));
                continue;
            }
        };
        if let Some(other) = owners.insert(token.reveal().to_owned(), client.name.clone()) {
            let message = format!("the client \"{other}\" has the same token");
            problems.push(Problem::new(format!("client[{n}].token_file"), message));
        }
        let mut tags = config.tags.clone();
        tags.extend(client.tags.clone());
        clients.push(ResolvedClient {
            name: client.name.clone(),
            token,
            requests_per_s: client.requests_per_s.unwrap_or(config.limiter.requests_per_s),
            points_per_s: client.points_per_s.unwrap_or(config.limiter.points_per_s),
            bytes_per_s: client.bytes_per_s.unwrap_or(config.limiter.bytes_per_s),
            burst: client.burst.unwrap_or(config.limiter.burst),
            same_timestamp: client.same_timestamp,
            tags,
        });
    }
    if problems.is_empty() { Ok(clients) } else { Err(problems) }
}

/// Everything `metricstream check` can say: keys against each other, and the secrets they name. Changes nothing.
pub fn check(config: &Config, places: &SecretPlaces) -> Vec<Problem> {
    let mut problems = config.validate();
    if problems.is_empty() {
        problems.extend(resolve_clients(config, places).err().unwrap_or_default());
    }
    problems
}

/// The message never quotes the file's content.
fn read_token(path: &Path) -> Result<Secret, String> {
    let shown = path.display();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(4096).read_to_string(&mut text))
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let token = text.trim();
    check_token(token).map_err(|message| format!("{shown}: {message}"))?;
    Ok(Secret::new(token))
}
