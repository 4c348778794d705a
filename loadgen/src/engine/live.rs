//! What a person sees while a run goes on, on standard error: a line that renews itself each second on a terminal, a
//! plain line every five seconds elsewhere. It also says when
//! the generator itself is the limit.

use std::io::{IsTerminal, Write};

use super::stats::Stats;
use crate::units;

const PLAIN_EVERY_S: u64 = 5;
const LATENESS_P99_US_MAX: u64 = 1000;
const LATENESS_SHARE_MAX: f64 = 0.1;
const BUSY_SHARE_MAX: f64 = 0.95;

pub struct Live {
    is_shown: bool,
    is_terminal: bool,
    lines: u64,
}

/// Of the second just over.
pub struct Moment {
    pub elapsed_s: f64,
    pub left_s: f64,
    /// Requests a second asked for; `None` in a closed loop.
    pub intended: Option<f64>,
    /// Share of its core that the generator was busy.
    pub busy_share: f64,
    pub waiting: u64,
}

impl Live {
    pub fn new(is_shown: bool) -> Live {
        Live { is_shown, is_terminal: std::io::stderr().is_terminal(), lines: 0 }
    }

    pub fn show(&mut self, stats: &Stats, moment: &Moment) {
        self.lines += 1;
        if !self.is_shown || !self.is_terminal && !self.lines.is_multiple_of(PLAIN_EVERY_S) {
            return;
        }
        let Some(line) = line(stats, moment) else { return };
        let mut out = std::io::stderr().lock();
        // Nobody to read it is no reason to end a run.
        let _ = if self.is_terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }

    pub fn finish(&mut self) {
        if self.is_shown && self.is_terminal && self.lines > 0 {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(stats: &Stats, moment: &Moment) -> Option<String> {
    let second = stats.last_second()?;
    let rate = match moment.intended {
        Some(intended) => format!("{} of {} req/s", second.acknowledged, intended.round()),
        None => format!("{} req/s", second.acknowledged),
    };
    let errors = stats.errors();
    let errors = if errors.is_empty() { "no errors".to_owned() } else { errors };
    let mut line = format!(
        "{:>4.0} s | {rate} | {errors} | p50 {}, p99 {}, max {} | {:.0} s left",
        moment.elapsed_s,
        units::time(second.p50_us as f64),
        units::time(second.p99_us as f64),
        units::time(second.max_us as f64),
        moment.left_s.max(0.0),
    );
    if moment.waiting > 0 {
        line.push_str(&format!(" | {} waiting", moment.waiting));
    }
    if let Some(limit) = limit(second.lateness_p99_us, second.p50_us, moment.busy_share) {
        line.push_str(&format!(" | generator is the limit: {limit}"));
    }
    Some(line)
}

/// Why these figures tell of the generator rather than of the server, if they do.
fn limit(lateness_p99_us: u64, latency_p50_us: u64, busy_share: f64) -> Option<String> {
    if lateness_p99_us > LATENESS_P99_US_MAX {
        return Some(format!("p99 of its own lateness is {}", units::time(lateness_p99_us as f64)));
    }
    if busy_share > BUSY_SHARE_MAX {
        return Some(format!("its core is {:.0} % busy", busy_share * 100.0));
    }
    if lateness_p99_us as f64 > latency_p50_us as f64 * LATENESS_SHARE_MAX && lateness_p99_us > 0 && latency_p50_us > 0
    {
        return Some(format!(
            "p99 of its own lateness, {}, is more than a tenth of the p50 latency, {}",
            units::time(lateness_p99_us as f64),
            units::time(latency_p50_us as f64)
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Shape;

    #[test]
    fn the_line_tells_the_rate_the_errors_and_the_time_left() {
        let mut stats = Stats::new(&Shape::Constant { rate: 2.0, duration_ms: 5000 });
        stats.due(0);
        stats.acknowledged(1);
        stats.batch_acknowledged(0, 2_500_000);
        stats.refused(429);
        assert!(stats.turn_second(1_000_000_000));
        let moment = Moment { elapsed_s: 1.0, left_s: 4.0, intended: Some(2.0), busy_share: 0.5, waiting: 3 };
        let line = line(&stats, &moment).expect("a second is over");
        assert_eq!(
            line,
            "   1 s | 1 of 2 req/s | 429 ×1 | p50 2.50 ms, p99 2.50 ms, max 2.50 ms | 4 s left | 3 waiting"
        );
    }

    #[test]
    fn the_generator_is_the_limit_when_it_is_late_or_busy() {
        assert_eq!(limit(99, 1000, 0.5), None);
        assert!(limit(101, 1000, 0.5).is_some_and(|text| text.contains("a tenth")));
        assert!(limit(1001, 1_000_000, 0.5).is_some_and(|text| text.contains("1.00 ms")));
        assert!(limit(0, 1000, 0.96).is_some_and(|text| text.contains("96 %")));
    }
}
