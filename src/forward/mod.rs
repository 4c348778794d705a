//! The forwarder: what the logs hold goes out to sinks, each from a durable cursor of its own.
//!
//! Sinks read logs, not queues: a sink that is down costs disk, not memory, and a restart resumes at the cursor. Every
//! acknowledged point that a sink's filter takes reaches it at least once, in log order, with an id that is the same each
//! time; what does not reach it is in a book that says why.
//!
//! ```text
//! writer of a log -> DurableMark ->  reader (backplane)  <- ask -  courier (one thread a sink) -> sink
//! keeper of a log <- LogShare: what is held, dropped                   | cursor, durable
//! ```

pub mod books;
pub mod breaker;
pub mod calls;
pub mod command;
pub mod courier;
pub mod cursor;
pub mod dead_letter;
pub mod exposition;
mod file;
mod filter;
pub mod id;
mod in_flight;
pub mod influx;
mod json;
pub mod kafka;
pub mod letters_command;
pub mod line;
mod ndjson;
mod piece;
pub mod reader;
pub mod replay;
pub mod retry;
pub mod share;
mod sink;
mod unit;

#[cfg(test)]
mod courier_tests;
#[cfg(test)]
mod reader_tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::{self, Config};
use books::{ForwardBooks, SinkBooks};
use calls::CallBooks;
use courier::{Courier, Parts, Place, Start};
use cursor::{Cursor, CursorError};
use filter::Filter;
use reader::ReaderPort;
use share::LogShare;
use sink::Sink;

/// The forwarder before its threads run.
pub struct Forward {
    pub books: Arc<ForwardBooks>,
    couriers: Vec<(String, Duration, Courier)>,
    stop: Arc<AtomicBool>,
}

/// The forwarder's threads.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<(String, Duration, JoinHandle<()>)>,
}

/// The names of the sinks that read a log.
pub fn readers_of(config: &Config, is_aggregate: bool) -> Vec<Arc<str>> {
    let reads = |sink: &&config::Sink| match sink.send {
        config::Send::Both => true,
        config::Send::Raw => !is_aggregate,
        config::Send::Aggregates => is_aggregate,
    };
    config.sink.iter().filter(reads).map(|sink| sink.name.as_str().into()).collect()
}

impl Forward {
    /// Finds the cursors and says which segments they hold: to be called before anything may be let go. An error is a
    /// cursor that must not be touched.
    pub fn new(
        config: &Config,
        data_dir: &Path,
        node_id: u128,
        logs: &[Arc<LogShare>],
    ) -> Result<Forward, CursorError> {
        warn_of_removed_sinks(config, data_dir);
        remove_cursors_of_logs_that_are_gone(data_dir, logs);
        let port = ReaderPort::new(config.sink.len() * logs.len());
        let stop = Arc::new(AtomicBool::new(false));
        let (mut couriers, mut books) = (Vec::new(), Vec::new());
        for configured in &config.sink {
            let name: Arc<str> = configured.name.as_str().into();
            let read: Vec<_> = logs.iter().filter(|log| log.is_read_by(&name)).cloned().collect();
            let (sink, calls) = make_sink(configured, node_id, data_dir);
            let of = SinkBooks::new(name.clone(), configured.r#type.word(), read.clone());
            let of = Arc::new(of.with_calls(calls));
            let start = match configured.start {
                config::SinkStart::Oldest => Start::Oldest,
                config::SinkStart::Now => Start::Now,
            };
            let mut with_cursors = Vec::new();
            for log in read {
                let path = cursor::cursor_path(data_dir, &name, &log.name());
                let (found, start) = find_cursor(&path, &name, node_id, &log, start)?;
                let oldest_point = oldest_point(&log);
                with_cursors.push(Place { log, found, path, start, oldest_point });
            }
            let courier = Courier::new(Parts {
                name: name.clone(),
                node_id,
                sink,
                filter: Filter::new(&configured.names, &configured.tags),
                logs: with_cursors,
                books: of.clone(),
                reader: port.clone(),
                retry_most: configured.retry_every_max,
                stop_within: configured.stop_within,
                stop: stop.clone(),
            });
            couriers.push((name.to_string(), configured.stop_within, courier));
            books.push(of);
        }
        Ok(Forward { books: Arc::new(ForwardBooks { sinks: books, reader: port }), couriers, stop })
    }

    /// `core`: where the backplane runs, when that is the one core left beside the shards.
    pub fn start(self, core: Option<usize>) -> std::io::Result<Running> {
        let mut threads = Vec::new();
        for (name, stop_within, courier) in self.couriers {
            let thread = std::thread::Builder::new().name(format!("ms-sink-{name}")).spawn(move || {
                if let Some(core) = core {
                    crate::placement::pin_this_thread(core);
                }
                courier.run();
            })?;
            threads.push((name, stop_within, thread));
        }
        Ok(Running { stop: self.stop, threads })
    }
}

impl Running {
    pub fn has_ended(&self) -> bool {
        self.threads.iter().any(|(_, _, thread)| thread.is_finished())
    }

    /// To be called when nothing is added to the logs any more, and while the reader still runs. Each sink has the time
    /// it was given; one that does not come back is left behind.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        let begun = Instant::now();
        for (name, stop_within, thread) in self.threads {
            while !thread.is_finished() && begun.elapsed() < stop_within {
                std::thread::sleep(Duration::from_millis(2));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                tracing::warn!(
                    sink = name,
                    "the sink does not end in its time (stop_within); the next start goes on at its cursor"
                );
            }
        }
    }
}

/// The sink, and what it counts of its calls.
fn make_sink(configured: &config::Sink, node_id: u128, data_dir: &Path) -> (Box<dyn Sink>, Option<Arc<CallBooks>>) {
    let sink: Box<dyn Sink> = match configured.r#type {
        config::SinkType::Influx => {
            let calls =
                Arc::new(CallBooks::new(&configured.name, influx::KINDS, crate::reducer::thread::wall_ns() as u64));
            let settings = influx::Settings::new(configured, data_dir);
            let sink = influx::InfluxSink::new(settings, node_id, calls.clone());
            return (Box::new(sink), Some(calls));
        }
        config::SinkType::Kafka => {
            let letters = kafka::LetterBox::new(&configured.name, data_dir);
            let settings = kafka::Settings::new(configured);
            Box::new(kafka::KafkaSink::new(&configured.name, node_id, settings, Box::new(letters)))
        }
        config::SinkType::File => Box::new(file::FileSink::new(
            file::Settings {
                dir: configured.path.clone().expect("checked: a file sink has a path"),
                format: match configured.format {
                    config::SinkFormat::Json => file::Format::Json,
                    config::SinkFormat::Line => file::Format::Line,
                },
                compression: match configured.compression {
                    config::Compression::None => file::Compression::None,
                    config::Compression::Gzip => file::Compression::Gzip,
                    config::Compression::Zstd => file::Compression::Zstd,
                },
                rotate_bytes: configured.rotate_bytes.bytes(),
                rotate_every: configured.rotate_every,
                keep_files: configured.keep_files,
                keep_bytes: configured.keep_bytes.map(|bytes| bytes.bytes()),
            },
            node_id,
        )),
    };
    (sink, None)
}

/// The cursor where it can be believed. Where it cannot, the sink begins with the oldest there is: too much under the same
/// ids, and nothing lost.
fn find_cursor(
    path: &Path,
    sink: &str,
    node_id: u128,
    log: &LogShare,
    start: Start,
) -> Result<(Option<Cursor>, Start), CursorError> {
    let mark = log.mark.get();
    let why = match cursor::read(path) {
        Ok(None) => return Ok((None, start)),
        Ok(Some(found)) => {
            if (found.node_id, found.log_id, found.sink.as_str()) != (node_id, log.log_id, sink) {
                "it belongs to another data directory, log or sink".to_owned()
            } else if mark.next_point == 0 && found.next_point > 0 {
                tracing::info!(log = log.name(), sink, "this log begins anew, and the sink with it");
                let _ = std::fs::remove_file(path);
                return Ok((None, Start::Oldest));
            } else if found.next_point > mark.next_point || found.at > mark.end {
                "it is beyond the end of the log, which was replaced or has lost its end".to_owned()
            } else {
                return Ok((Some(found), start));
            }
        }
        Err(error @ (CursorError::Newer { .. } | CursorError::Io { .. })) => return Err(error),
        Err(error) => error.to_string(),
    };
    tracing::error!(path = %path.display(), sink, "a cursor cannot be used: {why}. The sink begins with the oldest points");
    // Kept for whoever wants to know.
    let _ = std::fs::rename(path, path.with_extension("unusable"));
    // `start = "now"` is for new sinks: this one is to get what it has not got.
    Ok((None, Start::Oldest))
}

/// Number of the first point that the log still has.
fn oldest_point(log: &LogShare) -> u64 {
    let segments = share::list_segments(&log.dir).unwrap_or_default();
    let header = |path: &Path| {
        use std::io::Read;
        let mut page = [0; metricstream_shards::log::PAGE_BYTES];
        std::fs::File::open(path).ok()?.read_exact(&mut page).ok()?;
        metricstream_shards::log::SegmentHeader::parse(&page).ok()
    };
    let first = segments.iter().find_map(|(id, path)| header(path).filter(|header| header.segment_id == *id));
    first.map_or_else(|| log.mark.get().next_point, |header| header.first_point)
}

fn warn_of_removed_sinks(config: &Config, data_dir: &Path) {
    for name in cursor::sinks_with_cursors(data_dir) {
        if !config.sink.iter().any(|sink| sink.name == name) {
            tracing::warn!(
                sink = name,
                "this sink is not configured any more: it holds nothing, and what the logs let go is lost to it. Its cursors \
                 stay until `metricstream log cursors --forget {name}`"
            );
        }
    }
}

/// A shard that comes back later numbers its points from 0 again.
fn remove_cursors_of_logs_that_are_gone(data_dir: &Path, logs: &[Arc<LogShare>]) {
    for sink in cursor::sinks_with_cursors(data_dir) {
        for log in cursor::logs_with_cursors(data_dir, &sink) {
            let is_number = log.parse::<u32>().is_ok();
            if is_number && !logs.iter().any(|known| known.name() == log) {
                let _ = std::fs::remove_file(cursor::cursor_path(data_dir, &sink, &log));
            }
        }
    }
}
