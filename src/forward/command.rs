//! `metricstream log cursors`: how far each sink has been served, from the files alone, whether a server runs or not.

use std::io::{self, Write};
use std::path::Path;

use metricstream_shards::log::{
    AGGREGATE_LOG_ID, PAGE_BYTES, Position, ReadItem, SegmentHeader, SegmentReader, TO_THE_TAIL,
};
use serde_json::json;

use super::books::lag_bytes;
use super::cursor::{self, Cursor};
use super::share::list_segments;
use crate::args::Exit;
use crate::config::Config;
use crate::data_dir;
use crate::reducer::thread::wall_ns;

/// Prints every cursor below `root`, or removes those of one sink.
pub fn run(config: &Config, root: &Path, as_json: bool, forget: Option<&str>) -> io::Result<Exit> {
    if let Some(sink) = forget {
        return forget_sink(config, root, sink);
    }
    let mut rows = Vec::new();
    for sink in cursor::sinks_with_cursors(root) {
        for log in cursor::logs_with_cursors(root, &sink) {
            if log == "aggregate" || log.parse::<u32>().is_ok() {
                rows.push(row(config, root, &sink, &log));
            }
        }
    }
    let mut out = io::stdout().lock();
    if as_json {
        writeln!(out, "{}", json!({ "cursors": rows.iter().map(Row::json).collect::<Vec<_>>() }))?;
    } else if rows.is_empty() {
        writeln!(out, "no cursors below {}: no sink was ever served from it", root.display())?;
    } else {
        table(&mut out, &rows)?;
    }
    let damaged = rows.iter().any(|row| row.cursor.is_err());
    Ok(if damaged { Exit::Damage } else { Exit::Ok })
}

struct Row {
    sink: String,
    log: String,
    configured: bool,
    cursor: Result<Cursor, String>,
    /// Of the log; `None`: it is not there
    end: Option<(Position, u64)>,
    lag_bytes: u64,
}

impl Row {
    fn lag_points(&self) -> Option<u64> {
        let cursor = self.cursor.as_ref().ok()?;
        Some(self.end.map_or(0, |(_, next_point)| next_point.saturating_sub(cursor.next_point)))
    }

    fn lag_seconds(&self) -> Option<f64> {
        let cursor = self.cursor.as_ref().ok()?;
        match (self.lag_points()?, cursor.settled_stamp_ns) {
            (0, _) => Some(0.0),
            (_, i64::MIN) => None,
            (_, stamp_ns) => Some(wall_ns().saturating_sub(stamp_ns).max(0) as f64 / 1e9),
        }
    }

    fn json(&self) -> serde_json::Value {
        match &self.cursor {
            Err(error) => {
                json!({"sink": self.sink, "log": self.log, "configured": self.configured, "error": error})
            }
            Ok(c) => json!({
                "sink": self.sink, "log": self.log, "configured": self.configured,
                "segment": c.at.segment_id, "offset": c.at.offset,
                "first_point": c.first_point, "next_point": c.next_point,
                "delivered": c.totals.delivered, "refused": c.totals.refused,
                "dead_lettered": c.totals.dead_lettered, "filtered": c.totals.filtered,
                "dropped": c.totals.dropped, "lost_to_damage": c.totals.lost_to_damage,
                "log_next_point": self.end.map(|(_, next_point)| next_point),
                "lag_points": self.lag_points(), "lag_bytes": self.lag_bytes, "lag_seconds": self.lag_seconds(),
            }),
        }
    }
}

fn row(config: &Config, root: &Path, sink: &str, log: &str) -> Row {
    let found = cursor::read(&cursor::cursor_path(root, sink, log));
    let cursor = match found {
        Ok(Some(cursor)) => Ok(cursor),
        Ok(None) => Err("it is gone".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let (dir, log_id) = match log.parse() {
        Ok(shard) => (data_dir::shard_log(root, shard), shard),
        Err(_) => (data_dir::aggregate_log(root), AGGREGATE_LOG_ID),
    };
    let end = log_end(&dir, log_id);
    let bytes = match (&cursor, end) {
        (Ok(cursor), Some((end, next_point))) if next_point > cursor.next_point => {
            let at = (cursor.at.segment_id, cursor.at.offset);
            lag_bytes(segment_bytes(&dir), at, (end.segment_id, end.offset))
        }
        _ => 0,
    };
    let configured = config.sink.iter().any(|known| known.name == sink);
    Row { sink: sink.to_owned(), log: log.to_owned(), configured, cursor, end, lag_bytes: bytes }
}

fn header(path: &Path) -> Option<SegmentHeader> {
    use std::io::Read;
    let mut page = [0; PAGE_BYTES];
    std::fs::File::open(path).ok()?.read_exact(&mut page).ok()?;
    SegmentHeader::parse(&page).ok()
}

fn segment_bytes(dir: &Path) -> u64 {
    let segments = list_segments(dir).unwrap_or_default();
    segments.last().and_then(|(_, path)| path.metadata().ok()).map_or(0, |file| file.len())
}

/// Where the blocks of a log end, and the number of its next point: the newest segment, read to its end.
fn log_end(dir: &Path, log_id: u32) -> Option<(Position, u64)> {
    let segments = list_segments(dir).ok()?;
    let used = |(id, path): &&(u64, std::path::PathBuf)| {
        header(path).is_some_and(|header| (header.segment_id, header.log_id) == (*id, log_id))
    };
    let (segment_id, path) = segments.iter().rev().find(used)?;
    let mut reader = SegmentReader::open(path, *segment_id, 0, TO_THE_TAIL).ok()?;
    loop {
        if let ReadItem::End { position, .. } = reader.next_item() {
            return Some((position, reader.next_point().unwrap_or(0)));
        }
    }
}

fn table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let head = [
        "SINK",
        "LOG",
        "AT",
        "NEXT",
        "LAG POINTS",
        "LAG BYTES",
        "LAG",
        "DELIVERED",
        "REFUSED",
        "DEAD",
        "FILTERED",
        "DROPPED",
        "DAMAGED",
    ];
    let mut cells: Vec<Vec<String>> = vec![head.iter().map(|word| (*word).to_owned()).collect()];
    for row in rows {
        let sink = if row.configured { row.sink.clone() } else { format!("{} (not configured)", row.sink) };
        cells.push(match &row.cursor {
            Err(error) => vec![sink, row.log.clone(), error.clone()],
            Ok(cursor) => {
                let t = &cursor.totals;
                let mut line = vec![
                    sink,
                    row.log.clone(),
                    format!("{}:{}", cursor.at.segment_id, cursor.at.offset),
                    cursor.next_point.to_string(),
                    row.lag_points().unwrap_or(0).to_string(),
                    row.lag_bytes.to_string(),
                    row.lag_seconds().map_or("?".to_owned(), |seconds| format!("{seconds:.1} s")),
                ];
                let totals = [t.delivered, t.refused, t.dead_lettered, t.filtered, t.dropped, t.lost_to_damage];
                line.extend(totals.iter().map(u64::to_string));
                line
            }
        });
    }
    let whole = |line: &&Vec<String>| line.len() == head.len();
    let widths: Vec<usize> = (0..head.len())
        .map(|n| cells.iter().filter(whole).map(|line| line[n].chars().count()).max().unwrap_or(0))
        .collect();
    for line in &cells {
        let text: Vec<String> = line
            .iter()
            .enumerate()
            .map(
                |(n, cell)| {
                    if n < 2 { format!("{cell:<w$}", w = widths[n]) } else { format!("{cell:>w$}", w = widths[n]) }
                },
            )
            .collect();
        writeln!(out, "{}", text.join("  ").trim_end())?;
    }
    Ok(())
}

fn forget_sink(config: &Config, root: &Path, sink: &str) -> io::Result<Exit> {
    if config.sink.iter().any(|known| known.name == sink) {
        eprintln!("the sink {sink} is configured: take it out of the configuration first, or it would begin anew");
        return Ok(Exit::Usage);
    }
    if !cursor::sinks_with_cursors(root).iter().any(|known| known == sink) {
        eprintln!("there are no cursors of a sink {sink} below {}", root.display());
        return Ok(Exit::Failure);
    }
    std::fs::remove_dir_all(cursor::cursors_dir(root).join(sink))?;
    data_dir::sync_dir(&cursor::cursors_dir(root))?;
    println!("forgotten: the cursors of the sink {sink}");
    Ok(Exit::Ok)
}
