//! The command line: what can be asked of the process, and the meaning of its exit code.
//!
//! Parsing only. What is missing on the command line is taken from the configuration; what stands there wins.

use crate::config::{Level, LogFormat, Overrides, parse_address, parse_duration};
use crate::when::{When, parse_time_ms};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// How the process ends. Service files and scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for `run`: stopped by a signal, everything received is answered and flushed
    Ok = 0,
    /// Something failed at run time
    Failure = 1,
    /// The command line or the configuration is wrong
    Usage = 2,
    /// `log verify`: acknowledged data is damaged or missing
    Damage = 3,
    /// Another process has the data directory or the port
    Refused = 4,
    /// This machine cannot run it: kernel too old, io_uring disabled, RLIMIT_MEMLOCK too small
    Unable = 5,
}

impl Exit {
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Names the configuration file where no `--config` is given; empty is as good as unset.
pub const CONFIG_VARIABLE: &str = "METRICSTREAM_CONFIG";

const AFTER_HELP: &str = "\
Exit codes:
  0  done (run: stopped by SIGTERM or SIGINT, everything received answered and flushed)
  1  failed at run time
  2  the command line or the configuration is wrong
  3  log verify, log replay: acknowledged data is damaged or missing
  4  refused to start: another process has the data directory or the port
  5  this machine cannot run it: kernel before 6.1, io_uring disabled, RLIMIT_MEMLOCK too small

Environment:
  METRICSTREAM_CONFIG    the configuration file, where no --config is given
  CREDENTIALS_DIRECTORY  where relative token_file paths are looked for (systemd sets it)

First minute:
  metricstream run
  curl -d '{\"metrics\":[{\"name\":\"hello\",\"value\":1}]}' http://127.0.0.1:8186/metrics";

/// An ingestion appliance for metrics: acknowledged means on disk
///
/// Takes metrics in over HTTP (JSON, InfluxDB line protocol), keeps every point it has acknowledged, and aggregates
/// them in event time. Without a configuration it serves this host only, and keeps its data in ./metricstream-data.
#[derive(Clone, Debug, PartialEq, Parser)]
#[command(name = "metricstream", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// Configuration file (TOML); without it, $METRICSTREAM_CONFIG, else the defaults
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Shape of the lines on standard error
    #[arg(long, global = true, value_name = "FORMAT", value_parser = log_formats())]
    pub log_format: Option<LogFormat>,
    /// Least severe line on standard error
    #[arg(long, global = true, value_name = "LEVEL", value_parser = log_levels())]
    pub log_level: Option<Level>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Serve, until SIGTERM or SIGINT
    ///
    /// Listens, answers, flushes, aggregates. On SIGTERM it stops accepting, answers what it has received, flushes, and
    /// exits 0. The options win over the configuration.
    #[command(after_help = "\
Examples:
  metricstream run
  metricstream run --listen 0.0.0.0:8186 --listen '[::]:8186' --data-dir /var/lib/metricstream
  metricstream --config /etc/metricstream.toml run --shards 4")]
    Run(RunArgs),
    /// Judge a configuration without serving
    ///
    /// Reads the configuration and the token files it names, and reports everything that is wrong, with its line.
    /// Exits 0 when there is nothing, 2 otherwise. Touches neither the data directory nor the network.
    #[command(after_help = "\
Examples:
  metricstream --config new.toml check && systemctl reload-or-restart metricstream")]
    Check,
    /// Print the complete configuration, every key explained
    ///
    /// The output is a configuration file: every key at its effective value, with its effect, default and bounds.
    /// Tokens are shown as "<hidden>", which is refused when read back; token_file avoids that.
    #[command(after_help = "\
Examples:
  metricstream config > metricstream.toml                       a first file, all defaults
  metricstream --config metricstream.toml config | diff metricstream.toml -")]
    Config,
    /// Look into the logs on disk, mend them, or send them again
    #[command(subcommand)]
    Log(LogCommand),
    /// What sinks have refused: look at it, or send it again
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Prepare an InfluxDB for this appliance
    #[command(subcommand)]
    Influx(InfluxCommand),
    /// Print the completions for a shell
    ///
    /// The script goes to standard output; source it, or put it where your shell looks.
    #[command(after_help = "\
Examples:
  source <(metricstream completions bash)
  metricstream completions fish > ~/.config/fish/completions/metricstream.fish")]
    Completions {
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct RunArgs {
    /// Directory for the node id and the logs [configuration: node.data_dir]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Serving threads, one core each; 0: one fewer than cores [node.shards]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub shards: Option<u32>,
    /// IP address and port for clients; may be repeated [listen]
    ///
    /// Replaces all listeners of the configuration by one with these addresses and the settings of the first.
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub listen: Vec<SocketAddr>,
    /// IP address and port for operators [admin.listen]
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub admin: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum LogCommand {
    /// Check every block of every log
    ///
    /// Reads all segments, checks every checksum and sequence, and counts blocks, records and points. Changes nothing.
    /// Exits 3 when something that was acknowledged is damaged or missing. A torn tail, which a crash may leave, is
    /// reported and is no damage.
    #[command(after_help = "\
Examples:
  metricstream log verify --data-dir /var/lib/metricstream
  metricstream log verify --shard aggregate --json")]
    Verify(LogArgs),
    /// Write the records out as NDJSON
    ///
    /// One JSON object a line on standard output, in log order: a point of a shard's log, or a window of the aggregate
    /// log. Damaged blocks are named on standard error and left out.
    #[command(after_help = "\
Examples:
  metricstream log dump --data-dir /var/lib/metricstream --from 2026-01-31T12:00:00Z | head
  metricstream log dump --shard 0 --from 1769860800000 --to 1769864400000 | jq -r .name | sort | uniq -c")]
    Dump(LogArgs),
    /// Show how far each sink has been served
    ///
    /// One line for each sink and log: where its cursor stands, how far that is behind the log, and what has become of
    /// the points before it. Reads files only, and works while a server runs. Exits 3 when a cursor is damaged.
    #[command(after_help = "\
Examples:
  metricstream --config /etc/metricstream.toml log cursors
  metricstream log cursors --data-dir /var/lib/metricstream --json | jq '.cursors[].lag_points'
  metricstream log cursors --data-dir /var/lib/metricstream --forget archive")]
    Cursors {
        /// Data directory [configuration: node.data_dir]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Report as JSON
        #[arg(long)]
        json: bool,
        /// Delete the cursors of a sink that is not configured any more
        #[arg(long, value_name = "SINK")]
        forget: Option<String>,
    },
    /// Send a time range of the log to a sink again
    ///
    /// Sends the points whose own timestamps lie in the range (windows: whose start does), as far as the logs still have
    /// them, to a sink of the configuration, past its filter and the ones given here. Ids are those of the first time; of
    /// windows only the latest revisions go. Everything kept is read, because a point may have come long after its time; a first
    /// line says how much that is, and --received-from and --received-to narrow it.
    ///
    /// Works beside a running server, and without one: it only reads the logs, takes no lock and moves no cursor. What
    /// comes in while it runs is looked at before it ends, so that an older value never replaces a newer one. If
    /// retention takes a segment away meanwhile, it says how many points that was. A file sink gets
    /// a directory of its own: replay-TIME-PID in its path.
    ///
    /// A time is RFC 3339 with an offset; Unix seconds, ms, us or ns, told by the number's size; `now`; or relative: -2h, -30m,
    /// -7d. Exits 0 when all of it was sent, 1 when it was not or there was nothing in the range, 2 for a sink that is not
    /// configured or an empty range, 3 when parts of the logs are damaged. Ctrl-C ends it with the summary
    /// and the command that goes on from there.
    #[command(after_help = "\
Examples:
  metricstream --config metricstream.toml log replay --from -2h --sink influx --dry-run
  metricstream --config metricstream.toml log replay --from 2026-01-31T12:00:00Z --to 2026-01-31T13:00:00Z --sink kafka
  metricstream --config metricstream.toml log replay --from -1d --to -1h --sink influx --client payments --name 'api.*' --rate 20000")]
    Replay(ReplayArgs),
    /// Cut torn tails and set damaged blocks aside, so that the next start need not
    ///
    /// Does what a start would do, and says it: zeroes what follows a torn tail and moves damaged blocks into the
    /// directory's quarantine. Nothing readable is removed. --dry-run only says it.
    #[command(after_help = "\
Examples:
  metricstream log repair --data-dir /var/lib/metricstream --dry-run")]
    Repair {
        #[command(flatten)]
        log: LogArgs,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum DeadLetterCommand {
    /// Print what was refused, with the reasons
    ///
    /// One NDJSON object a line on standard output, the oldest first: id, time, sink, target, reason, and what was sent.
    /// Works while a server runs.
    #[command(after_help = "\
Examples:
  metricstream --config /etc/metricstream.toml dead-letter list | jq -r .reason | sort | uniq -c
  metricstream dead-letter list --data-dir /var/lib/metricstream --sink influx")]
    List(DeadLetterArgs),
    /// Send what was refused once more
    ///
    /// Each entry goes to the sink that has refused it, as the configuration describes it now. What is refused again stays,
    /// with the new reason; what is taken is removed. Works while a server runs. Exits 1 when the sink cannot be reached; then
    /// the rest stays. A retry that was killed is gone on with: what it sent last, a hundred at most, goes again under equal ids.
    #[command(after_help = "\
Examples:
  metricstream --config /etc/metricstream.toml dead-letter retry --sink influx")]
    Retry(DeadLetterArgs),
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct DeadLetterArgs {
    /// Data directory [configuration: node.data_dir]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Only of this sink
    #[arg(long, value_name = "NAME")]
    pub sink: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum InfluxCommand {
    /// Create database, retention policies and continuous queries, or buckets and tasks
    ///
    /// Version 1: a database with the retention policies raw (7 days), agg_1m (30), agg_5m (90), agg_1h (a year) and agg_1d (for
    /// ever), and continuous queries that carry sum, count, min and max from each to the next. Version 2: a bucket and
    /// a task for each of these. What is there stays as it is; a second run changes nothing. What differs from what
    /// is meant is named and left alone.
    #[command(after_help = "\
Examples:
  metricstream influx init --url http://127.0.0.1:8086 --dry-run       shows the statements
  metricstream influx init --url http://127.0.0.1:8086
  metricstream influx init --url https://influx:8086 --api v2 --org example --token-file influx.token")]
    Init(InfluxInitArgs),
}

#[derive(Clone, Debug, PartialEq, Args)]
pub struct InfluxInitArgs {
    /// Where InfluxDB is
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// Which API it speaks
    #[arg(long, value_name = "VERSION", default_value = "v1", value_parser = ["v1", "v2"])]
    pub api: String,
    /// Database (v1), and what the names of buckets begin with (v2)
    #[arg(long, value_name = "NAME", default_value = "metrics")]
    pub database: String,
    /// Organisation (v2)
    #[arg(long, value_name = "NAME", default_value = "")]
    pub org: String,
    /// How the sink writes points [configuration: schema of its sink]
    #[arg(long, value_name = "SCHEMA", default_value = "platform", value_parser = ["platform", "natural"])]
    pub schema: String,
    /// User (v1)
    #[arg(long, value_name = "NAME", default_value = "")]
    pub username: String,
    /// File with the user's password
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// File with a token
    #[arg(long, value_name = "FILE", conflicts_with = "username")]
    pub token_file: Option<PathBuf>,
    /// Certificates to trust instead of Mozilla's list, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Own certificate, where the server asks for one, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct LogArgs {
    /// Data directory [configuration: node.data_dir]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Only this log: a shard's number, or "aggregate"
    #[arg(long, value_name = "N|aggregate")]
    pub shard: Option<LogName>,
    /// Only records received at or after this time: RFC 3339 with an offset, or Unix milliseconds
    #[arg(long, value_name = "TIME", value_parser = parse_time_ms, allow_negative_numbers = true)]
    pub from: Option<i64>,
    /// Only records received before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time_ms, allow_negative_numbers = true)]
    pub to: Option<i64>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, PartialEq, Args)]
pub struct ReplayArgs {
    /// First timestamp that is sent
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from: When,
    /// First timestamp that is not sent any more
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, default_value = "now")]
    pub to: When,
    /// Pass over what was received before, unread
    ///
    /// The range is about the points' own times, which no block of a log tells, so that everything kept is read for it. When
    /// its points were received is told, to a minute and, at the end, to windows.horizon: blocks that were received outside of
    /// this span are not read. (By the log's clock, which follows the machine's: where that was set forward, give more.) For points
    /// that came in time, give the range and some minutes more. What is passed over is not sent, late and early points of
    /// the range included; and where a sink overwrites (InfluxDB), a later value that is passed over is replaced.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub received_from: Option<When>,
    /// Pass over what was received from then on, unread
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub received_to: Option<When>,
    /// Name of a [[sink]] in the configuration
    #[arg(long, value_name = "NAME")]
    pub sink: String,
    /// Only of this client; a glob; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub client: Vec<String>,
    /// Only metrics of this name; a glob; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub name: Vec<String>,
    /// Points a second at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// Count what would be sent, and send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// End with an error when the sink takes nothing for this long
    ///
    /// What an operator has to mend (a missing topic or database, a refused token) ends it at once.
    #[arg(long, value_name = "DURATION", default_value = "60 s", value_parser = parse_duration)]
    pub give_up_after: std::time::Duration,
    /// Go on where an earlier replay has ended: as it has printed
    #[arg(long, value_name = "LOG:NUMBER,..", value_parser = crate::forward::replay::parse_resume)]
    pub resume: Option<crate::forward::replay::Resume>,
    /// Summary as JSON
    #[arg(long)]
    pub json: bool,
    /// Data directory [configuration: node.data_dir]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// One of the logs in a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogName {
    Shard(u32),
    Aggregate,
}

impl FromStr for LogName {
    type Err = String;
    fn from_str(text: &str) -> Result<LogName, String> {
        match text {
            "aggregate" => Ok(LogName::Aggregate),
            _ => text.parse().map(LogName::Shard).map_err(|_| "a shard's number or \"aggregate\" is meant".to_owned()),
        }
    }
}

impl Cli {
    /// The configuration file, if any; `environment` is looked up for [`CONFIG_VARIABLE`].
    pub fn config_path(&self, environment: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        self.config.clone().or_else(|| environment(CONFIG_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from))
    }

    /// What stands on the command line in place of the file's.
    pub fn overrides(&self) -> Overrides {
        let mut overrides =
            Overrides { log_level: self.log_level, log_format: self.log_format, ..Overrides::default() };
        match &self.command {
            Command::Run(run) => {
                overrides.data_dir.clone_from(&run.data_dir);
                overrides.shards = run.shards;
                overrides.listen.clone_from(&run.listen);
                overrides.admin = run.admin;
            }
            Command::Log(LogCommand::Verify(log) | LogCommand::Dump(log) | LogCommand::Repair { log, .. }) => {
                overrides.data_dir.clone_from(&log.data_dir);
            }
            Command::Log(LogCommand::Replay(args)) => overrides.data_dir.clone_from(&args.data_dir),
            Command::Log(LogCommand::Cursors { data_dir, .. }) => overrides.data_dir.clone_from(data_dir),
            Command::DeadLetter(DeadLetterCommand::List(args) | DeadLetterCommand::Retry(args)) => {
                overrides.data_dir.clone_from(&args.data_dir);
            }
            Command::Check | Command::Config | Command::Influx(_) | Command::Completions { .. } => {}
        }
        overrides
    }
}

/// Writes the completion script of a shell.
pub fn write_completions(shell: clap_complete::Shell, out: &mut dyn Write) -> std::io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "metricstream", &mut script);
    out.write_all(&script) // a closed pipe is the caller's to judge; `generate` would panic on it
}

fn log_levels() -> impl TypedValueParser<Value = Level> {
    PossibleValuesParser::new(Level::ALL.iter().map(|l| l.word()))
        .map(|word| *Level::ALL.iter().find(|l| l.word() == word).expect("one of the words above"))
}

fn log_formats() -> impl TypedValueParser<Value = LogFormat> {
    PossibleValuesParser::new(LogFormat::ALL.iter().map(|f| f.word()))
        .map(|word| *LogFormat::ALL.iter().find(|f| f.word() == word).expect("one of the words above"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("metricstream").chain(words.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_its_options_and_repeats_listen() {
        let cli = parse("run --listen 0.0.0.0:8186 --listen [::]:8186 --shards 2 --data-dir d --admin 127.0.0.1:1 --log-level debug")
            .expect("valid");
        let overrides = cli.overrides();
        assert_eq!(overrides.listen.len(), 2);
        assert_eq!(overrides.shards, Some(2));
        assert_eq!(overrides.data_dir, Some(PathBuf::from("d")));
        assert_eq!(overrides.admin, Some("127.0.0.1:1".parse().expect("address")));
        assert_eq!(overrides.log_level, Some(Level::Debug));
        assert_eq!(overrides.log_format, None);
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for words in ["--config f --log-format json check", "check --config f --log-format json"] {
            let cli = parse(words).expect(words);
            assert_eq!((cli.config, cli.log_format), (Some(PathBuf::from("f")), Some(LogFormat::Json)));
        }
    }

    #[test]
    fn what_is_wrong_ends_with_the_usage_code() {
        for words in [
            "",
            "serve",
            "run --listen localhost:8186",
            "run --shards -1",
            "run --shards 2000",
            "run --log-level loud",
            "log",
            "log verify --shard all",
            "log dump --from yesterday",
            "log dump --from 2026-01-31T12:00:00",
            "log dump --from 2026-02-30T12:00:00Z",
            "completions tcsh",
        ] {
            let error = parse(words).expect_err(words);
            assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()), "{words}");
        }
        assert_eq!(parse("--help").expect_err("help").exit_code(), 0);
        assert_eq!(parse("--version").expect_err("version").exit_code(), 0);
    }

    #[test]
    fn log_commands_name_a_log_and_a_time_range() {
        let cli =
            parse("log dump --data-dir d --shard aggregate --from 2026-01-31T12:00:00Z --to 1769864400000 --json")
                .expect("valid");
        let Command::Log(LogCommand::Dump(log)) = &cli.command else { panic!("{cli:?}") };
        assert_eq!(log.shard, Some(LogName::Aggregate));
        assert_eq!((log.from, log.to, log.json), (Some(1_769_860_800_000), Some(1_769_864_400_000), true));
        assert_eq!(cli.overrides().data_dir, Some(PathBuf::from("d")));
    }

    #[test]
    fn times_are_read_with_their_offset_and_fraction() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1969-12-31T23:59:59.5Z", -500),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("2024-03-01 00:00:00Z", 1_709_251_200_000),
            ("2100-03-01T00:00:00-00:30", 4_107_544_200_000),
            ("-5", -5),
        ] {
            assert_eq!(parse_time_ms(text), Ok(ms), "{text}");
        }
    }

    #[test]
    fn the_config_option_wins_over_the_variable_and_an_empty_variable_is_unset() {
        let variable = |value: &'static str| move |name: &str| (name == CONFIG_VARIABLE).then(|| OsString::from(value));
        let (plain, named) = (parse("check").expect("valid"), parse("check --config f").expect("valid"));
        assert_eq!(named.config_path(variable("g")), Some(PathBuf::from("f")));
        assert_eq!(plain.config_path(variable("g")), Some(PathBuf::from("g")));
        assert_eq!(plain.config_path(variable("")), None);
        assert_eq!(plain.config_path(|_| None), None);
    }

    #[test]
    fn every_command_teaches_with_a_paragraph_and_examples() {
        fn walk(command: &clap::Command) {
            for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
                if sub.has_subcommands() {
                    walk(sub);
                    continue;
                }
                assert!(sub.get_long_about().is_some_and(|a| a.to_string().len() > 80), "{}", sub.get_name());
                assert!(
                    sub.get_after_help().is_some_and(|a| a.to_string().contains("Examples:")),
                    "{}",
                    sub.get_name()
                );
            }
        }
        walk(&Cli::command());
    }

    #[test]
    fn help_names_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for exit in [Exit::Ok, Exit::Failure, Exit::Usage, Exit::Damage, Exit::Refused, Exit::Unable] {
            assert!(help.contains(&format!("\n  {}  ", exit.code())), "{exit:?} in {help}");
        }
    }

    #[test]
    fn completions_are_written_for_a_shell() {
        let mut script = Vec::new();
        write_completions(clap_complete::Shell::Bash, &mut script).expect("into memory");
        assert!(String::from_utf8(script).expect("UTF-8").contains("--data-dir"));
    }
}
