//! Inputs of the benches: bodies, heads and values, made from fixed seeds. The same call gives the same bytes anywhere.
//!
//! A series looks as real ones do: a name, a host of its own, a region that many share; about 70 bytes a point as a line
//! and 120 as JSON. Values and times differ from body to body, so that branches are not learnt by heart.

use std::fmt::Write as _;

/// Receive stamp and time of the first point of all inputs: 2023-11-14T22:13:20Z, the start of a window.
pub const START_NS: i64 = 1_700_000_000 * S_NS;
pub const S_NS: i64 = 1_000_000_000;
/// Keys of all hashes: a table lays out the same way in each run.
pub const SEEDS: [u64; 4] = [0x51, 0x52, 0x53, 0x54];

/// xorshift64: enough to make inputs, and it has no versions.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.draw() % bound as u64) as usize
    }

    /// 0 to `count` - 1 in an order of its own.
    pub fn order(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for at in (1..count).rev() {
            order.swap(at, self.below(at + 1));
        }
        order
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Line,
    Json,
}

impl Format {
    pub const BOTH: [Format; 2] = [Format::Line, Format::Json];

    pub const fn name(self) -> &'static str {
        match self {
            Format::Line => "line",
            Format::Json => "json",
        }
    }
}

const NAMES: [&str; 10] = ["cpu", "mem", "disk", "net", "load", "api", "queue", "gc", "io", "temp"];

pub fn name(series: usize) -> String {
    format!("{}.usage", NAMES[series % NAMES.len()])
}

/// `host` and `region` of a series.
pub fn tags(series: usize) -> [(&'static str, String); 2] {
    [("host", format!("server-{:06}", series / NAMES.len())), ("region", format!("us-east-{}", series % 4))]
}

/// `count` bodies of `points` points each. Together they go through all series again and again, so that every series
/// is in one of them once `count * points` reaches `series`.
pub fn bodies(format: Format, count: usize, points: usize, series: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(1);
    let mut next = 0;
    let mut body = || {
        let mut text = String::new();
        for n in 0..points {
            let time_ns = START_NS + next as i64 * 1_000_003;
            put_point(&mut text, format, n == 0, next % series, random.draw(), time_ns);
            next += 1;
        }
        if format == Format::Json {
            text.push_str("]}");
        }
        text.into_bytes()
    };
    (0..count).map(|_| body()).collect()
}

fn put_point(text: &mut String, format: Format, first: bool, series: usize, random: u64, time_ns: i64) {
    let (name, [(_, host), (_, region)]) = (name(series), tags(series));
    let value = (random % 100_000) as f64 / 100.0;
    let written = match format {
        Format::Line => writeln!(text, "{name},host={host},region={region} value={value} {time_ns}"),
        Format::Json => {
            text.push_str(if first { "{\"metrics\":[" } else { "," });
            let time_ms = time_ns / 1_000_000;
            write!(
                text,
                r#"{{"name":"{name}","value":{value},"timestamp":{time_ms},"tags":{{"host":"{host}","region":"{region}"}}}}"#
            )
        }
    };
    written.expect("a String takes all");
}

/// Bodies of lines with five fields each, as agents send them, and so five series a line; `points` is a multiple of 5.
pub fn five_field_bodies(count: usize, points: usize, hosts: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(8);
    let mut line = |n: usize| {
        let (host, cpu) = (n % hosts, n % 8);
        let [user, system] = [random.below(10_000), random.below(10_000)].map(|v| v as f64 / 100.0);
        let time_ns = START_NS + n as i64 * 1_000_003;
        format!(
            "cpu,cpu=cpu{cpu},host=web-{host} usage_user={user},usage_system={system},usage_idle=96.91,usage_iowait=0,\
             usage_steal=0i {time_ns}\n"
        )
    };
    let lines = points / 5;
    (0..count).map(|body| (0..lines).flat_map(|n| line(body * lines + n).into_bytes()).collect()).collect()
}

/// The request that carries `body`, with the header fields that common clients send.
pub fn request(format: Format, body: &[u8]) -> Vec<u8> {
    let (target, content_type) = match format {
        Format::Line => ("/write?db=metrics&precision=ns", "text/plain; charset=utf-8"),
        Format::Json => ("/metrics", "application/json"),
    };
    let mut request = format!(
        "POST {target} HTTP/1.1\r\nHost: metrics.internal:8186\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n\
         Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// Values as a latency has them: most near 20, some far above, none equal by habit.
pub fn values(count: usize) -> Vec<f64> {
    let mut random = Random::new(7);
    let mut value = || {
        let tail = if random.below(100) == 0 { 50.0 } else { 1.0 };
        (5.0 + random.below(30_000) as f64 / 1000.0) * tail
    };
    (0..count).map(|_| value()).collect()
}

/// Raw keys as the line decoder makes them, for the series table alone.
pub fn raw_keys(series: usize) -> Vec<Vec<u8>> {
    (0..series)
        .map(|n| {
            let [(_, host), (_, region)] = tags(n);
            let mut key = format!("L{},host={host},region={region}", name(n)).into_bytes();
            key.push(0xFF);
            key.extend_from_slice(b"value");
            key
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stored instruction counts stand for these bytes: whoever changes them has to count again (`bench/counts --update`).
    #[test]
    fn the_inputs_are_the_same_bytes_everywhere() {
        let mut all = Vec::new();
        for format in Format::BOTH {
            bodies(format, 3, 10, 25).iter().for_each(|body| all.extend(request(format, body)));
        }
        values(100).iter().for_each(|value| all.extend(value.to_bits().to_le_bytes()));
        raw_keys(10).iter().for_each(|key| all.extend(key));
        Random::new(3).order(50).iter().for_each(|n| all.extend(n.to_le_bytes()));
        let fnv = all.iter().fold(0xCBF2_9CE4_8422_2325_u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
        assert_eq!((all.len(), fnv), (8350, 4_194_738_068_079_309_759), "the inputs have changed");
    }

    #[test]
    fn bodies_go_through_all_series() {
        let text: String = bodies(Format::Line, 4, 5, 20).into_iter().map(|b| String::from_utf8(b).unwrap()).collect();
        let keys: std::collections::BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!((text.lines().count(), keys.len()), (20, 20));
    }
}
