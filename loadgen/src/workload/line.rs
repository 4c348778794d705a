//! InfluxDB line protocol: `name,host=h,tag=v value=1.5 1767225600000000000`, one point a line, timestamps in ns.

use super::bad::Fault;
use super::encoder::{Answer, Encoder, SeriesText, integer};
use super::values::Decimal;

pub struct Line;

impl Line {
    #[inline]
    fn series(out: &mut Vec<u8>, series: SeriesText<'_>) {
        out.extend_from_slice(series.before);
        if let Some(life) = series.life {
            out.extend_from_slice(b",life=");
            integer(out, life as i64);
        }
    }

    #[inline]
    fn timestamp(out: &mut Vec<u8>, timestamp_ns: i64) {
        out.push(b' ');
        integer(out, timestamp_ns);
        out.push(b'\n');
    }
}

impl Encoder for Line {
    fn prepare(out: &mut Vec<u8>, name: &str, tags: &[(String, String)]) -> usize {
        let start = out.len();
        out.extend_from_slice(name.as_bytes());
        for (key, value) in tags {
            for part in [",", key, "=", value] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        out.len() - start
    }

    #[inline]
    fn begin(_out: &mut Vec<u8>) {}

    #[inline]
    fn point(out: &mut Vec<u8>, _first: bool, series: SeriesText<'_>, value: Decimal, timestamp_ns: i64) {
        Line::series(out, series);
        out.extend_from_slice(b" value=");
        value.write(out);
        Line::timestamp(out, timestamp_ns);
    }

    fn bad_point(out: &mut Vec<u8>, _first: bool, series: SeriesText<'_>, fault: Fault, timestamp_ns: i64) {
        Line::series(out, series);
        out.extend_from_slice(match fault {
            Fault::Missing => b" value=",
            Fault::Word => b" value=unavailable",
            Fault::Malformed => b" value=1.2.3",
        });
        Line::timestamp(out, timestamp_ns);
    }

    #[inline]
    fn end(_out: &mut Vec<u8>) {}

    /// 2xx is all kept. 400 with `partial write` is: the good lines were kept. (InfluxDB says so in v1 and v2, and in
    /// v3 with other words after these two.) `unable to parse` says that no line was good.
    fn answer(status: u16, body: &[u8]) -> Answer {
        let partial = status == 400 && body.windows(13).any(|words| words == b"partial write");
        if (200..300).contains(&status) || partial { Answer::Acknowledged } else { Answer::Refused }
    }
}
