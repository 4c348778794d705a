//! The file sink: points as lines in files that are whole when they have their name. FORMAT.md has names and fields.
//!
//! A unit is settled when the file that holds its end was flushed, renamed, and its directory flushed. Before that it
//! counts for nothing: after a failure or a crash the unfinished file is deleted and its points come again from the
//! cursor. So a file under its final name is whole, and memory holds one buffer a file, however long a file grows.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metricstream_shards::log::AGGREGATE_LOG_ID;

use super::line::{Lines, Schema};
use super::ndjson::JsonLines;
use super::share::log_name;
use super::sink::{Report, Settled, Sink, SinkFailed, UnitId};
use super::unit::{Item, Unit};
use crate::data_dir::sync_dir;
use crate::reducer::thread::wall_ns;

/// Ends the name of a file that is not finished.
const PART: &str = ".part";
const BUFFER_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Line,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub dir: PathBuf,
    pub format: Format,
    pub compression: Compression,
    /// A file is finished when it has grown to this, give or take a unit
    pub rotate_bytes: u64,
    /// .. or is as old as this
    pub rotate_every: Duration,
    /// Of finished files of each kind, the oldest beyond these bounds are deleted
    pub keep_files: Option<u32>,
    pub keep_bytes: Option<u64>,
}

pub struct FileSink {
    settings: Settings,
    json: JsonLines,
    lines: Lines,
    /// The directory is there, and holds nothing unfinished
    prepared: bool,
    raw: Output,
    aggregates: Output,
    text: Vec<u8>,
}

/// One kind of file.
struct Output {
    prefix: &'static str,
    open: Option<OpenFile>,
}

struct OpenFile {
    path: PathBuf,
    writer: Encoder,
    begun: Instant,
    /// Units that end in this file, with the points they have
    units: Vec<(UnitId, u64)>,
}

enum Encoder {
    Plain(BufWriter<Counted>),
    Gzip(flate2::write::GzEncoder<BufWriter<Counted>>),
    Zstd(zstd::stream::write::Encoder<'static, BufWriter<Counted>>),
}

/// A file that knows how much was written to it.
struct Counted {
    file: File,
    bytes: u64,
}

static FILES: AtomicU64 = AtomicU64::new(1);

impl FileSink {
    pub fn new(settings: Settings, node_id: u128) -> FileSink {
        FileSink {
            settings,
            json: JsonLines::new(node_id),
            // Whoever reads the file has room for every type.
            lines: Lines::new(Schema::Natural, true),
            prepared: false,
            raw: Output { prefix: "raw", open: None },
            aggregates: Output { prefix: "aggregates", open: None },
            text: Vec::new(),
        }
    }

    /// The first time, and after every failure: the directory may be another one by now.
    fn prepare(&mut self) -> io::Result<()> {
        std::fs::create_dir_all(&self.settings.dir)?;
        if let Some(parent) = self.settings.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        // The cursor stands before their points.
        for entry in std::fs::read_dir(&self.settings.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(PART) && (name.starts_with("raw-") || name.starts_with("aggregates-")) {
                std::fs::remove_file(&path)?;
                tracing::info!(path = %path.display(), "an unfinished file is removed; its points come again");
            }
        }
        self.prepared = true;
        Ok(())
    }

    fn write(&mut self, unit: &mut Unit<'_>, now: Instant) -> io::Result<()> {
        if !self.prepared {
            self.prepare()?;
        }
        let FileSink { settings, json, lines, raw, aggregates, text, .. } = self;
        let output = if unit.log_id == AGGREGATE_LOG_ID { aggregates } else { raw };
        let (log, segment) = (log_name(unit.log_id), (unit.log_id, unit.segment_id));
        unit.for_each(|item| {
            match (settings.format, item) {
                (Format::Json, Item::Point(point)) => json.point(segment, &log, &point, text),
                (Format::Json, Item::Window(window)) => json.window(&log, &window, text),
                (Format::Line, Item::Point(point)) => {
                    // Keys are checked where records are made.
                    if let Some(series) = lines.series(segment.0, segment.1, &point) {
                        series.point(point.value, point.timestamp_ns, text);
                    }
                }
                (Format::Line, Item::Window(window)) => lines.window(&window, text),
            }
            if text.len() >= BUFFER_BYTES {
                output.writer(settings, now)?.write_all(text)?;
                text.clear();
            }
            Ok::<(), io::Error>(())
        })?;
        if unit.passed() > 0 {
            let writer = output.writer(settings, now)?;
            writer.write_all(text)?;
            let open = output.open.as_mut().expect("opened above");
            open.units.push((unit.id, unit.passed()));
        }
        text.clear();
        Ok(())
    }

    /// Finishes every file that is due.
    fn finish_due(
        &mut self,
        report: &mut Report,
        due: impl Fn(&OpenFile, &Settings) -> bool,
    ) -> Result<(), SinkFailed> {
        for output in [&mut self.raw, &mut self.aggregates] {
            if output.open.as_ref().is_some_and(|open| due(open, &self.settings)) {
                let units = output.complete(&self.settings);
                match units {
                    Ok(units) => report.settled.extend(
                        units
                            .into_iter()
                            .map(|(unit, points)| (unit, Settled { delivered: points, ..Settled::default() })),
                    ),
                    Err(error) => return Err(failed(&self.settings, "finishing a file", &error)),
                }
            }
        }
        Ok(())
    }
}

fn failed(settings: &Settings, what: &str, error: &io::Error) -> SinkFailed {
    SinkFailed::retry(format!("{what} in {} failed: {error}", settings.dir.display()))
}

impl Sink for FileSink {
    fn has_room(&self) -> bool {
        true
    }

    fn send(&mut self, unit: &mut Unit<'_>, now: Instant) -> Result<(), SinkFailed> {
        self.write(unit, now).map_err(|error| failed(&self.settings, "writing a file", &error))
    }

    fn turn(&mut self, now: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        self.finish_due(report, |open, settings| {
            open.writer.bytes() >= settings.rotate_bytes || now.duration_since(open.begun) >= settings.rotate_every
        })
    }

    fn next_turn(&self, _: Instant) -> Option<Instant> {
        let due = |output: &Output| output.open.as_ref().map(|open| open.begun + self.settings.rotate_every);
        [due(&self.raw), due(&self.aggregates)].into_iter().flatten().min()
    }

    fn finish(&mut self, _: Instant, report: &mut Report) -> Result<(), SinkFailed> {
        self.finish_due(report, |_, _| true)
    }

    fn reset(&mut self) {
        for output in [&mut self.raw, &mut self.aggregates] {
            if let Some(open) = output.open.take() {
                // What cannot be removed now is removed by the next `prepare`.
                let _ = std::fs::remove_file(&open.path);
            }
        }
        self.text.clear();
        self.prepared = false;
    }
}

impl Output {
    fn writer(&mut self, settings: &Settings, now: Instant) -> io::Result<&mut Encoder> {
        if self.open.is_none() {
            self.open = Some(OpenFile::create(self.prefix, settings, now)?);
        }
        Ok(&mut self.open.as_mut().expect("made above").writer)
    }

    /// The file gets its name. Answers the units that end in it.
    fn complete(&mut self, settings: &Settings) -> io::Result<Vec<(UnitId, u64)>> {
        let Some(open) = self.open.take() else { return Ok(Vec::new()) };
        let done = open.path.with_extension("");
        let finished = open.writer.finish().and_then(|file| {
            file.sync_all()?;
            std::fs::rename(&open.path, &done)?;
            sync_dir(&settings.dir)
        });
        if let Err(error) = finished {
            let _ = std::fs::remove_file(&open.path);
            return Err(error);
        }
        if let Err(error) = self.let_go(settings) {
            tracing::warn!(cause = "file_retention", dir = %settings.dir.display(), %error, "old files cannot be deleted");
        }
        Ok(open.units)
    }

    /// Deletes the oldest finished files beyond the bounds.
    fn let_go(&self, settings: &Settings) -> io::Result<()> {
        if settings.keep_files.is_none() && settings.keep_bytes.is_none() {
            return Ok(());
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&settings.dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            let ours =
                name.strip_prefix(self.prefix).is_some_and(|rest| rest.starts_with('-')) && !name.ends_with(PART);
            if ours {
                files.push((name, entry.metadata()?.len()));
            }
        }
        // Names begin with the time.
        files.sort_unstable();
        let (files_max, bytes_max) = (settings.keep_files.unwrap_or(u32::MAX), settings.keep_bytes.unwrap_or(u64::MAX));
        let (mut left, mut bytes) = (files.len(), files.iter().map(|(_, bytes)| bytes).sum::<u64>());
        // The one just finished always stays.
        for (name, length) in &files[..files.len().saturating_sub(1)] {
            if left <= files_max as usize && bytes <= bytes_max {
                break;
            }
            std::fs::remove_file(settings.dir.join(name))?;
            left -= 1;
            bytes -= length;
        }
        Ok(())
    }
}

impl OpenFile {
    fn create(prefix: &str, settings: &Settings, now: Instant) -> io::Result<OpenFile> {
        let path = loop {
            let name = file_name(prefix, settings, wall_ns(), FILES.fetch_add(1, Ordering::Relaxed));
            let path = settings.dir.join(name);
            if !path.exists() {
                break path;
            }
        };
        let path = path.with_file_name(format!("{}{PART}", path.file_name().expect("named").to_string_lossy()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, Counted { file, bytes: 0 });
        let writer = match settings.compression {
            Compression::None => Encoder::Plain(file),
            Compression::Gzip => Encoder::Gzip(flate2::write::GzEncoder::new(file, flate2::Compression::fast())),
            Compression::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(file, 3)?),
        };
        Ok(OpenFile { path, writer, begun: now, units: Vec::new() })
    }
}

fn file_name(prefix: &str, settings: &Settings, wall_ns: i64, number: u64) -> String {
    let time: String = crate::when::rfc3339(wall_ns).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let format = match settings.format {
        Format::Json => "ndjson",
        Format::Line => "lp",
    };
    let compression = match settings.compression {
        Compression::None => "",
        Compression::Gzip => ".gz",
        Compression::Zstd => ".zst",
    };
    format!("{prefix}-{time}-{number:06}.{format}{compression}")
}

impl Encoder {
    fn bytes(&self) -> u64 {
        let inner = match self {
            Encoder::Plain(file) => file,
            Encoder::Gzip(encoder) => encoder.get_ref(),
            Encoder::Zstd(encoder) => encoder.get_ref(),
        };
        inner.get_ref().bytes + inner.buffer().len() as u64
    }

    fn finish(self) -> io::Result<File> {
        let file = match self {
            Encoder::Plain(file) => file,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        Ok(file.into_inner().map_err(io::IntoInnerError::into_error)?.file)
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Plain(file) => file.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Plain(file) => file.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
