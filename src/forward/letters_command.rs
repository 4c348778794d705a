//! `metricstream dead-letter list | retry`: what sinks have refused, beside a running server or without one.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::dead_letter::{Bounds, DeadLetters, Entry, Fate, Taken};
use super::{influx, kafka};
use crate::args::{DeadLetterArgs, DeadLetterCommand, Exit};
use crate::config::{Config, Sink, SinkType};

/// So many are settled at once, and come again at most when a retry is killed,
const BATCH_LETTERS: usize = 100;
/// .. or as many as this was enough for.
const BATCH_WITHIN: Duration = Duration::from_secs(1);

/// Sends one letter and waits for what becomes of it. An error is a sink that does not answer, or needs an operator.
pub type Resend = Box<dyn FnMut(&Entry) -> Result<Fate, String>>;

pub fn run(command: &DeadLetterCommand, config: &Config) -> Exit {
    let (args, retry) = match command {
        DeadLetterCommand::List(args) => (args, false),
        DeadLetterCommand::Retry(args) => (args, true),
    };
    let root = args.data_dir.clone().unwrap_or_else(|| config.node.data_dir.clone());
    match each(&root, args, config, retry) {
        Ok(exit) => exit,
        // `metricstream dead-letter list | head` is no error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !retry => Exit::Ok,
        Err(error) => {
            eprintln!("the dead letters below {} cannot be used: {error}", root.display());
            Exit::Failure
        }
    }
}

fn each(root: &Path, args: &DeadLetterArgs, config: &Config, retry: bool) -> io::Result<Exit> {
    let mut sinks: Vec<String> = match std::fs::read_dir(root.join("dead-letters")) {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| args.sink.as_ref().is_none_or(|wanted| wanted == name))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    sinks.sort();
    let mut exit = Exit::Ok;
    if sinks.is_empty() {
        eprintln!("no dead letters");
    }
    for sink in sinks {
        let letters = DeadLetters::open(&influx::dead_letters_dir(root, &sink), Bounds::default())?;
        if !retry {
            list(&letters, &sink)?;
        } else if !send_again(letters, &sink, root, config)? {
            exit = Exit::Failure;
        }
    }
    Ok(exit)
}

fn list(letters: &DeadLetters, sink: &str) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (entries, unreadable) = letters.list()?;
    for entry in entries {
        serde_json::to_writer(&mut out, &entry)?;
        out.write_all(b"\n")?;
    }
    if unreadable > 0 {
        eprintln!("{sink}: {unreadable} lines cannot be read");
    }
    out.flush()
}

/// Whether everything found its place.
fn send_again(mut letters: DeadLetters, name: &str, root: &Path, config: &Config) -> io::Result<bool> {
    let Some(sink) = config.sink.iter().find(|sink| sink.name == name) else {
        eprintln!("{name}: no sink of this name is configured, so nothing is sent");
        return Ok(false);
    };
    let Some(_held) = letters.hold_retry()? else {
        eprintln!("{name}: another retry is at work on these; nothing was sent");
        return Ok(false);
    };
    let mut taken = letters.take()?;
    let (count, unreadable) = (taken.waiting().len(), taken.unreadable);
    let (mut sent, mut refused_again) = (0, 0);
    let mut trouble = None;
    if count > 0 {
        match resend(sink, root) {
            Ok(mut resend) => {
                while !taken.waiting().is_empty() && trouble.is_none() {
                    let batch = send_batch(&taken, &mut resend);
                    // In this order: a crash between the two gives a letter twice, never none.
                    letters.append(&batch.refused)?;
                    taken.settle(batch.settled)?;
                    sent += batch.settled - batch.refused.len();
                    refused_again += batch.refused.len();
                    trouble = batch.trouble;
                }
            }
            Err(reason) => trouble = Some(reason),
        }
    }
    println!("{name}: {sent} of {count} sent, {refused_again} refused again");
    if let Some(reason) = trouble {
        let left = taken.waiting().len();
        eprintln!("{name}: {left} letters stay for the next retry, the first of them may have been sent: {reason}");
        return Ok(false);
    }
    taken.done()?;
    if unreadable > 0 {
        eprintln!("{name}: {unreadable} lines cannot be read; their files are kept beside, as *.unreadable");
    }
    Ok(true)
}

#[derive(Default)]
struct SentBatch {
    settled: usize,
    /// Of these
    refused: Vec<Entry>,
    /// Why it ended before its time
    trouble: Option<String>,
}

fn send_batch(taken: &Taken, resend: &mut Resend) -> SentBatch {
    let begun = Instant::now();
    let mut batch = SentBatch::default();
    for letter in taken.waiting().iter().take(BATCH_LETTERS) {
        match resend(&letter.entry) {
            Ok(Fate::Taken) => {}
            Ok(Fate::Refused(reason)) => batch.refused.push(Entry { reason, ..letter.entry.clone() }),
            Err(reason) => {
                batch.trouble = Some(reason);
                break;
            }
        }
        batch.settled += 1;
        if begun.elapsed() >= BATCH_WITHIN {
            break;
        }
    }
    batch
}

fn resend(sink: &Sink, root: &Path) -> Result<Resend, String> {
    match sink.r#type {
        SinkType::Influx => influx::resend(influx::Settings::new(sink, root)),
        SinkType::Kafka => kafka::resend(&kafka::Settings::new(sink), &sink.name),
        SinkType::File => Err("a file sink refuses nothing; these come from another sink of that name".to_owned()),
    }
}
