//! `metricstream log replay`: a time range of the logs, sent to a configured sink once more.
//!
//! Promises: only reads the logs, takes no lock of a running server and moves no cursor; ids are those of the first
//! time; every point read is in one of the summary's counts; a replay that was ended tells the place to go on with.
//!
//! [`source`] reads a log, [`selection`] chooses, [`run`] sends and counts at the [`pace`] that was asked for, [`summary`] says it.

mod pace;
mod run;
mod selection;
mod source;
mod summary;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use metricstream_shards::log::AGGREGATE_LOG_ID;
use serde_json::json;

use super::filter::Filter;
use super::share::log_name;
use crate::args::{Exit, ReplayArgs};
use crate::config::{self, Config, Level, SinkType};
use crate::reducer::thread::wall_ns;
use crate::when::rfc3339;
use crate::{data_dir, logging};
use run::{Outcome, Parts, Replay, Target};
use selection::Selection;
use source::Source;
use summary::{Progress, Totals, size, time};

/// Where each log is gone on with: `0:1200,1:80,aggregate:7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume(Vec<(u32, u64)>);

pub fn parse_resume(text: &str) -> Result<Resume, String> {
    let place = |part: &str| {
        let (log, number) = part.split_once(':')?;
        let log_id = if log == "aggregate" { AGGREGATE_LOG_ID } else { log.parse().ok()? };
        Some((log_id, number.parse().ok()?))
    };
    let places = text.split(',').map(place).collect::<Option<Vec<_>>>();
    places.map(Resume).ok_or_else(|| format!("\"{text}\" is not what a replay prints, such as 0:1200,aggregate:7"))
}

impl std::fmt::Display for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (n, (log_id, number)) in self.0.iter().enumerate() {
            write!(f, "{}{}:{number}", if n > 0 { "," } else { "" }, log_name(*log_id))?;
        }
        Ok(())
    }
}

pub fn run(args: &ReplayArgs, config: &Config) -> Exit {
    match prepare(args, config).and_then(|plan| plan.carry_out(args, config)) {
        Ok(exit) => exit,
        Err(Refusal(exit, sentence)) => {
            eprintln!("{sentence}");
            exit
        }
    }
}

/// Why nothing was begun, or no more could be done.
struct Refusal(Exit, String);

fn failure(sentence: String) -> Refusal {
    Refusal(Exit::Failure, sentence)
}

struct Plan {
    root: PathBuf,
    node_id: u128,
    range_ns: Range<i64>,
    received_ns: Option<Range<i64>>,
    sink: config::Sink,
    sources: Vec<Source>,
}

fn prepare(args: &ReplayArgs, config: &Config) -> Result<Plan, Refusal> {
    let now_ns = wall_ns();
    let range_ns = args.from.ns(now_ns)..args.to.ns(now_ns);
    if range_ns.is_empty() {
        let (from, to) = (time(range_ns.start), time(range_ns.end));
        return Err(Refusal(Exit::Usage, format!("the range is empty: --to ({to}) is not after --from ({from})")));
    }
    let received = (args.received_from.map(|at| at.ns(now_ns)), args.received_to.map(|at| at.ns(now_ns)));
    let mut received_ns =
        (received != (None, None)).then(|| received.0.unwrap_or(i64::MIN)..received.1.unwrap_or(i64::MAX));
    if let Some(span) = received_ns.as_ref().filter(|span| span.is_empty()) {
        let (from, to) = (time(span.start), time(span.end));
        let sentence = format!("the span is empty: --received-to ({to}) is not after --received-from ({from})");
        return Err(Refusal(Exit::Usage, sentence));
    }
    if let Some(span) = &mut received_ns {
        // Where the clock went back, stamps stay ahead of it for a while, by this much at most.
        let ahead = i64::try_from(config.windows.horizon.as_nanos()).unwrap_or(i64::MAX);
        span.end = span.end.saturating_add(ahead);
    }
    let Some(sink) = config.sink.iter().find(|sink| sink.name == args.sink) else {
        let names: Vec<&str> = config.sink.iter().map(|sink| sink.name.as_str()).collect();
        let there = match &names[..] {
            [] => "the configuration has none; is it the right one (--config)?".to_owned(),
            names => format!("configured are: {}", names.join(", ")),
        };
        return Err(Refusal(Exit::Usage, format!("there is no sink \"{}\"; {there}", args.sink)));
    };
    let root = args.data_dir.clone().unwrap_or_else(|| config.node.data_dir.clone());
    let node_id = data_dir::read_node_id(&root);
    if node_id == 0 {
        let sentence = format!("{} is no data directory: it has no node-id, on which ids rest", root.display());
        return Err(failure(sentence));
    }
    let sources = sources(&root, node_id, sink, args.resume.as_ref())
        .map_err(|error| failure(format!("the logs below {} cannot be read: {error}", root.display())))?;
    Ok(Plan { root, node_id, range_ns, received_ns, sink: sink.clone(), sources })
}

/// The logs that the sink reads.
fn sources(root: &Path, node_id: u128, sink: &config::Sink, resume: Option<&Resume>) -> io::Result<Vec<Source>> {
    let mut logs = Vec::new();
    if sink.send != config::Send::Aggregates {
        logs.extend(data_dir::shards(root)?.into_iter().map(|shard| (shard, data_dir::shard_log(root, shard))));
    }
    if sink.send != config::Send::Raw {
        logs.push((AGGREGATE_LOG_ID, data_dir::aggregate_log(root)));
    }
    let mut sources = Vec::new();
    for (log_id, dir) in logs {
        let opened = match Source::open(&dir, log_id, node_id) {
            // The log of a shard that is gone may go meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => opened?,
        };
        let Some(mut source) = opened else { continue };
        let place = resume.and_then(|Resume(places)| places.iter().find(|(log, _)| *log == log_id));
        if let Some(&(_, number)) = place {
            source.seek(number.max(source.first_point), node_id)?;
        }
        sources.push(source);
    }
    Ok(sources)
}

impl Plan {
    fn carry_out(self, args: &ReplayArgs, config: &Config) -> Result<Exit, Refusal> {
        let Plan { root, node_id, range_ns, received_ns, sink, sources } = self;
        say_how_much(&sources, received_ns.is_some());
        let mut progress = Progress::new();
        start_lines(config, &progress);
        let stop = stop_on_signals().map_err(|error| failure(format!("signals cannot be handled: {error}")))?;
        let files = (sink.r#type == SinkType::File && !args.dry_run).then(|| replay_dir(&sink));
        let target = (!args.dry_run).then(|| target(&sink, files.as_deref(), node_id, &root));
        let filter = Filter::new(&sink.names, &sink.tags).narrowed(&args.client, &args.name);
        let begun = Instant::now();
        let mut replay = Replay::new(Parts {
            node_id,
            sources,
            selection: Selection::new(range_ns.clone()),
            received_ns: received_ns.clone(),
            filter,
            target,
            rate: args.rate,
            give_up_after: args.give_up_after,
            stop,
        });
        let outcome = replay.run(&mut progress);
        progress.end();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => Outcome::GaveUp(format!("the logs below {} cannot be read: {error}", root.display())),
        };
        let end = Ended {
            args,
            sink: &sink.name,
            range_ns,
            received_ns,
            totals: *replay.totals(),
            read_bytes: replay.read_bytes(),
            resume: Resume(replay.places()),
            outcome,
            took: begun.elapsed(),
            files,
        };
        Ok(end.say())
    }
}

/// What there is to wait for. Blocks do not say what times the points in them have.
fn say_how_much(sources: &[Source], is_narrowed: bool) {
    let logs = size(sources.iter().map(Source::log_bytes).sum());
    if is_narrowed {
        eprintln!("replay: of {logs} of logs, what was received outside of the span is passed over");
    } else {
        eprintln!(
            "replay: all {logs} of logs are read, whatever the range; --received-from and --received-to narrow that"
        );
    }
}

/// Warnings of the sink, above the bar.
fn start_lines(config: &Config, progress: &Progress) {
    let mut settings = config.logging.clone();
    if settings.level == Level::Info {
        settings.level = Level::Warn;
    }
    let above = progress.lines();
    // A second start in one process has its lines already.
    let _ = logging::start_with(&settings, move || above.clone());
}

/// The first signal ends it in order, the second at once.
fn stop_on_signals() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Nothing of the first time is overwritten, deleted or added to, and whoever reads those files does not meet these.
fn replay_dir(sink: &config::Sink) -> PathBuf {
    let time: String = rfc3339(wall_ns()).chars().filter(char::is_ascii_alphanumeric).collect();
    let path = sink.path.as_ref().expect("checked: a file sink has a path");
    path.join(format!("replay-{time}-{}", std::process::id()))
}

fn target(sink: &config::Sink, files: Option<&Path>, node_id: u128, root: &Path) -> Target {
    let mut configured = sink.clone();
    if let Some(files) = files {
        configured.path = Some(files.to_owned());
        (configured.keep_files, configured.keep_bytes) = (None, None);
    }
    let (made, calls) = super::make_sink(&configured, node_id, root);
    Target { sink: made, calls, settles_at_end: sink.r#type == SinkType::File, stop_within: sink.stop_within }
}

/// What there is to say at the end.
struct Ended<'a> {
    args: &'a ReplayArgs,
    sink: &'a str,
    range_ns: Range<i64>,
    received_ns: Option<Range<i64>>,
    totals: Totals,
    read_bytes: u64,
    resume: Resume,
    outcome: Outcome,
    took: Duration,
    files: Option<PathBuf>,
}

impl Ended<'_> {
    fn say(&self) -> Exit {
        let Totals { missing, .. } = self.totals;
        let nothing = self.outcome == Outcome::Done && self.totals.chosen() == 0;
        if self.args.json {
            println!("{}", self.json());
        } else {
            println!("{}", self.text());
        }
        if let Outcome::GaveUp(sentence) = &self.outcome {
            eprintln!("{sentence}");
        }
        if self.outcome != Outcome::Done {
            eprintln!("to go on from there: {}", self.command());
        }
        if nothing {
            eprintln!("{}", self.nothing());
        }
        if missing.removed > 0 {
            eprintln!(
                "{} points were removed by retention before they were read: the log is shorter than the range; begin later, \
                 or keep more (log.retention, log.bytes_max)",
                missing.removed
            );
        }
        let damaged = missing.damaged + self.totals.unreadable;
        if damaged > 0 {
            eprintln!("{damaged} points are damaged in the logs and were not sent; see `metricstream log verify`");
        }
        match &self.outcome {
            Outcome::Done if damaged > 0 => Exit::Damage,
            Outcome::Done if !nothing && missing.removed == 0 => Exit::Ok,
            _ => Exit::Failure,
        }
    }

    fn text(&self) -> String {
        let what = if self.args.dry_run { "counted for" } else { "replayed to" };
        let Ended { sink, range_ns, totals, took, .. } = self;
        let rate = totals.chosen() as f64 / took.as_secs_f64().max(0.001);
        let mut text = format!(
            "{what} {sink}, {} to {}: {}; {} of logs read; {:.1} s, {rate:.0} points/s",
            time(range_ns.start),
            time(range_ns.end),
            totals.sentence(self.args.dry_run),
            size(self.read_bytes),
            took.as_secs_f64(),
        );
        if let Some(files) = self.files.as_ref().filter(|_| totals.sent > 0) {
            text.push_str(&format!("\nfiles: {}", files.display()));
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let mut out = self.totals.json();
        let outcome = match &self.outcome {
            Outcome::Done => "done",
            Outcome::Stopped => "stopped",
            Outcome::GaveUp(_) => "gave_up",
        };
        for (field, value) in [
            ("sink", json!(self.sink)),
            ("from_ns", json!(self.range_ns.start)),
            ("to_ns", json!(self.range_ns.end)),
            ("read_bytes", json!(self.read_bytes)),
            ("dry_run", json!(self.args.dry_run)),
            ("outcome", json!(outcome)),
            ("resume", json!(self.resume.to_string())),
            ("duration_s", json!(self.took.as_secs_f64())),
            ("files", json!(self.files.as_ref().map(|files| files.display().to_string()))),
        ] {
            out.insert(field.to_owned(), value);
        }
        out.into()
    }

    fn nothing(&self) -> String {
        let there = match self.totals.times_ns {
            Some((least, greatest)) => {
                format!("those that pass the filters are from {} to {}", time(least), time(greatest))
            }
            None if self.totals.passed_over > 0 => {
                format!("{} points were received outside of the span, and passed over", self.totals.passed_over)
            }
            None if self.totals.read == 0 => "the logs that this sink reads hold no points".to_owned(),
            None => "no point passes the filters".to_owned(),
        };
        let (from, to) = (time(self.range_ns.start), time(self.range_ns.end));
        format!("nothing to send has a time from {from} to {to}: {there}")
    }

    /// The range as it is now, so that relative times do not move.
    fn command(&self) -> String {
        let ReplayArgs { client, name, rate, data_dir, .. } = self.args;
        let mut words = vec![
            format!("metricstream log replay --from {} --to {}", time(self.range_ns.start), time(self.range_ns.end)),
            format!("--sink {}", quoted(self.sink)),
        ];
        let received = self.received_ns.iter().flat_map(|span| {
            let from = (span.start != i64::MIN).then(|| format!("--received-from {}", time(span.start)));
            let to = (span.end != i64::MAX).then(|| format!("--received-to {}", time(span.end)));
            from.into_iter().chain(to)
        });
        words.extend(received);
        words.extend(client.iter().map(|client| format!("--client {}", quoted(client))));
        words.extend(name.iter().map(|name| format!("--name {}", quoted(name))));
        words.extend(rate.map(|rate| format!("--rate {rate}")));
        words.extend(data_dir.iter().map(|dir| format!("--data-dir {}", quoted(&dir.display().to_string()))));
        words.push(format!("--resume {}", self.resume));
        words.join(" ")
    }
}

/// For a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod word_tests {
    use super::*;

    #[test]
    fn what_a_replay_prints_to_go_on_with_is_read_back() {
        let resume = Resume(vec![(0, 1200), (3, 0), (AGGREGATE_LOG_ID, 7)]);
        assert_eq!(resume.to_string(), "0:1200,3:0,aggregate:7");
        assert_eq!(parse_resume(&resume.to_string()), Ok(resume));
        for text in ["", "0", "0:", "x:1", "0:1,", "0:-1"] {
            assert!(parse_resume(text).is_err_and(|message| message.contains("0:1200,aggregate:7")), "{text}");
        }
    }

    #[test]
    fn words_are_quoted_as_a_shell_needs_it() {
        for (word, shown) in [
            ("payments", "payments"),
            ("api.*", "'api.*'"),
            ("", "''"),
            ("it's", "'it'\\''s'"),
            ("/var/lib", "/var/lib"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }
}
