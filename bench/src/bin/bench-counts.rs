//! Runs one path of a shard under callgrind, for `bench/counts`: everything before the steps that count is set-up.
//!
//! Callgrind collects only inside [`measured`] (`--toggle-collect=*measured*`), so a count is that of the steps alone.
//! The last line of output says how many points (or values, requests, cells) the steps had.

use metricstream_bench::inputs::{self, Format};
use metricstream_bench::paths::{Admit, Append, Decode, REQUESTS_A_COMMIT, Requests, SeriesLookup, Windows};
use metricstream_shards::http::{Assembler, Bounds, Step};
use metricstream_shards::window::sketch::Sketch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The name is what `bench/counts` knows a path by, the unit is what its count is divided by.
struct Counted {
    name: &'static str,
    unit: &'static str,
    run: fn() -> u64,
}

const PATHS: &[Counted] = &[
    Counted { name: "line_decode_100", unit: "point", run: || decode(Format::Line) },
    Counted { name: "json_decode_100", unit: "point", run: || decode(Format::Json) },
    Counted { name: "line_request_1", unit: "request", run: || requests(Format::Line, 1) },
    Counted { name: "json_request_1", unit: "request", run: || requests(Format::Json, 1) },
    Counted { name: "line_request_100", unit: "point", run: || requests(Format::Line, 100) },
    Counted { name: "json_request_100", unit: "point", run: || requests(Format::Json, 100) },
    Counted { name: "http_head", unit: "request", run: http_head },
    Counted { name: "limiter_admit", unit: "request", run: limiter_admit },
    Counted { name: "series_hit", unit: "lookup", run: series_hit },
    Counted { name: "series_miss", unit: "series", run: series_miss },
    Counted { name: "log_append_100", unit: "point", run: log_append },
    Counted { name: "log_commit", unit: "page", run: log_commit },
    Counted { name: "fold_100", unit: "point", run: fold },
    Counted { name: "window_close", unit: "cell", run: window_close },
    Counted { name: "sketch_add", unit: "value", run: sketch_add },
    Counted { name: "sketch_merge", unit: "merge", run: sketch_merge },
];

const SERIES: usize = 10_000;

/// What is counted happens in here and nowhere else: the name is part of `bench/counts`.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [only] if only == "--list" => PATHS.iter().for_each(|path| println!("{} {}", path.name, path.unit)),
        [only] if only == "--features" => println!("{}", features()),
        [name] => match PATHS.iter().find(|path| path.name == name) {
            Some(path) => println!("{}", (path.run)()),
            None => fail(&format!("no path is called {name}; --list shows them")),
        },
        _ => fail("say which path, or --list, or --features"),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("bench-counts: {message}");
    std::process::exit(2)
}

/// What code that looks for features at run time finds here: under valgrind, what valgrind shows of the machine.
fn features() -> String {
    let mut found = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    {
        let has = [
            ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
            ("pclmulqdq", std::is_x86_feature_detected!("pclmulqdq")),
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ];
        found.extend(has.iter().filter(|(_, there)| *there).map(|(name, _)| *name));
    }
    found.join("+")
}

fn decode(format: Format) -> u64 {
    let mut path = Decode::new(format, 100, SERIES);
    (0..20).map(|_| measured(|| path.step()) as u64).sum()
}

fn requests(format: Format, points: usize) -> u64 {
    let mut path = Requests::new(format, points, 1000);
    let mut units = 0;
    for _ in 0..8 {
        units += (0..REQUESTS_A_COMMIT).map(|_| measured(|| path.serve())).sum::<u64>();
        path.commit();
    }
    units
}

fn http_head() -> u64 {
    let request = inputs::request(Format::Line, &inputs::bodies(Format::Line, 1, 1, 1)[0]);
    let (mut assembler, bounds) = (Assembler::new(0), Bounds::default());
    let mut step = || matches!(assembler.push(&request, 0, &bounds), Step::Request { .. });
    assert!(step(), "a whole request");
    (0..500).map(|_| u64::from(measured(&mut step))).sum()
}

fn limiter_admit() -> u64 {
    let mut path = Admit::new(100);
    (0..2000).for_each(|_| measured(|| path.step()));
    2000
}

fn series_hit() -> u64 {
    let mut path = SeriesLookup::known(SERIES);
    (0..20).map(|_| measured(|| path.hit()) as u64).sum()
}

fn series_miss() -> u64 {
    let mut path = SeriesLookup::empty(SERIES);
    // Half of them first: the tables have grown.
    let half = SERIES / 2 / SeriesLookup::REQUEST_POINTS;
    let known: usize = (0..half).map(|_| path.make()).sum();
    assert_eq!(known, SERIES / 2);
    (0..20).map(|_| measured(|| path.make()) as u64).sum()
}

fn log_append() -> u64 {
    let mut path = Append::new(100, 1000);
    let mut points = 0;
    for _ in 0..20 {
        path.prepare();
        points += measured(|| path.append()) as u64;
        path.commit();
    }
    points
}

fn log_commit() -> u64 {
    let mut path = Append::new(100, 1000);
    let mut bytes = 0;
    for _ in 0..10 {
        for _ in 0..REQUESTS_A_COMMIT {
            path.prepare();
            path.append();
        }
        bytes += measured(|| path.commit());
    }
    bytes / 4096
}

fn fold() -> u64 {
    let mut path = Windows::new(SERIES, 10);
    let mut points = 0;
    for _ in 0..300 {
        path.prepare();
        points += measured(|| path.fold());
    }
    points
}

fn window_close() -> u64 {
    let mut path = Windows::new(SERIES, 10);
    path.fill_window();
    measured(|| path.take_window())
}

fn sketch_add() -> u64 {
    let values = inputs::values(20_000);
    let mut sketch = Sketch::new();
    values[..10_000].iter().for_each(|&value| sketch.add(value));
    measured(|| values[10_000..].iter().for_each(|&value| sketch.add(value)));
    sketch.count() - 10_000
}

fn sketch_merge() -> u64 {
    let values = inputs::values(20_000);
    let mut parts = [Sketch::new(), Sketch::new()];
    for (part, values) in parts.iter_mut().zip(values.chunks(10_000)) {
        values.iter().for_each(|&value| part.add(value));
    }
    let [mut all, part] = parts;
    all.merge(&part);
    (0..100).for_each(|_| measured(|| all.merge(&part)));
    100
}
