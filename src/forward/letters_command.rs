//! `metricstream dead-letter list | retry`: what sinks have refused, beside a running server or without one.

use std::io::{self, Write};
use std::path::Path;

use super::dead_letter::{Bounds, DeadLetters, Entry};
use super::{influx, kafka};
use crate::args::{DeadLetterArgs, DeadLetterCommand, Exit};
use crate::config::{Config, Sink, SinkType};

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
    let taken = letters.take()?;
    let count = taken.entries.len();
    match resend(sink, root, taken.entries.clone()) {
        Ok((sent, refused)) => {
            letters.append(&refused)?;
            taken.done()?;
            println!("{name}: {sent} of {count} sent, {} refused again", refused.len());
            Ok(true)
        }
        Err(reason) => {
            eprintln!("{name}: nothing was removed, some may have been sent: {reason}");
            Ok(false)
        }
    }
}

fn resend(sink: &Sink, root: &Path, entries: Vec<Entry>) -> Result<(u64, Vec<Entry>), String> {
    match sink.r#type {
        SinkType::Influx => influx::send_again(&influx::Settings::new(sink, root), entries),
        SinkType::Kafka => kafka::send_again(&kafka::Settings::new(sink), &sink.name, entries),
        SinkType::File => Err("a file sink refuses nothing; these come from another sink of that name".to_owned()),
    }
}
