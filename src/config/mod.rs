//! The configuration: one TOML file, typed once.
//!
//! Promises: every key is documented where it is declared (`schema`), and `metricstream config` prints all of them as a
//! file that reads back to the same configuration; an unknown key is an error with a suggestion; all problems of a file
//! are reported together, with their lines; what is accepted here needs no further checks by those who use it; no
//! secret is ever printed.

mod check;
mod declare;
mod problem;
mod schema;
pub mod units;
mod value;

pub use check::{ResolvedClient, SecretPlaces, check, resolve_clients};
pub use problem::{Problem, Problems};
pub use schema::*;
pub use units::{ByteSize, parse_duration};
pub use value::{ByteRate, Rate, Secret, Selector, parse_address};

use declare::{At, Printer};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// What the command line of `run` puts in place of the file's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    pub data_dir: Option<PathBuf>,
    pub shards: Option<u32>,
    /// Replaces the addresses of the first [[listen]] block and drops the other blocks.
    pub listen: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub log_level: Option<Level>,
    pub log_format: Option<LogFormat>,
}

/// A configuration is a page or two; what is larger is some other file.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl Config {
    /// Without a file, the defaults: loopback, `./metricstream-data`.
    pub fn load(file: Option<&Path>) -> Result<Config, Problems> {
        let Some(path) = file else { return Ok(Config::default()) };
        let source = path.display().to_string();
        let fail = |message: String| Problems { source: source.clone(), list: vec![Problem::new("", message)] };
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|error| fail(format!("cannot be read: {error}")))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(fail("larger than 4 MiB: this is no configuration file".to_owned()));
        }
        Config::parse(&text, &source)
    }

    /// `source` names the text in problems.
    pub fn parse(text: &str, source: &str) -> Result<Config, Problems> {
        let line_starts: Vec<usize> = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(n, _)| n + 1))
            .collect();
        let mut at = At::new(&line_starts);
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            // What was recovered after a syntax error would only add problems that are not there.
            let list = errors
                .iter()
                .map(|error| Problem {
                    line: error.span().map(|span| at.line(&span)),
                    key: String::new(),
                    message: error.message().trim().replace('\n', ", "),
                })
                .collect();
            return Err(Problems { source: source.to_owned(), list });
        }
        let mut config = Config::read(table.get_ref(), &mut at);
        // Judged across keys only when every value was read: a default in place of one would be blamed on others.
        if !at.unread {
            for mut problem in config.validate() {
                problem.line = check::line_of(&problem.key, &at.lines);
                at.problems.push(problem);
            }
        }
        if at.problems.is_empty() {
            config.windows.windows.sort();
            return Ok(config);
        }
        at.problems.sort_by_key(|problem| problem.line.unwrap_or(0));
        Err(Problems { source: source.to_owned(), list: at.problems })
    }

    /// Puts the command line's choices in place and judges the whole again.
    pub fn apply(mut self, overrides: &Overrides) -> Result<Config, Problems> {
        if let Some(data_dir) = &overrides.data_dir {
            self.node.data_dir.clone_from(data_dir);
        }
        if let Some(shards) = overrides.shards {
            self.node.shards = shards;
        }
        if !overrides.listen.is_empty() {
            self.listen.truncate(1);
            if let Some(listen) = self.listen.first_mut() {
                listen.addresses.clone_from(&overrides.listen);
            }
        }
        if let Some(admin) = overrides.admin {
            self.admin.listen = admin;
        }
        if let Some(level) = overrides.log_level {
            self.logging.level = level;
        }
        if let Some(format) = overrides.log_format {
            self.logging.format = format;
        }
        match self.validate() {
            list if list.is_empty() => Ok(self),
            list => Err(Problems { source: "command line".to_owned(), list }),
        }
    }

    /// The complete file: every key with its effect, default and bounds, at its value here. Reads back to the same
    /// configuration, but for tokens, which are not shown.
    pub fn to_toml(&self) -> String {
        let mut out = Printer { text: String::new(), commented: false };
        for line in [
            "MetricStream: the complete configuration. Every key is optional; what is left out has its default.",
            "Sizes and durations carry their unit: \"64 MiB\", \"1 GB\", \"250 ms\", \"10 s\", \"5 min\", \"2 h\", \"7 d\".",
            "Rates are a second. `#key = ..` shows a key that is not set. `metricstream check` judges a changed file.",
        ] {
            out.comment(line);
        }
        self.print(&mut out);
        out.text
    }

    /// How many shards serve, on a machine with this many cores.
    pub fn shard_count(&self, cores: usize) -> usize {
        match self.node.shards {
            0 => cores.saturating_sub(1).max(1),
            n => n as usize,
        }
    }
}
