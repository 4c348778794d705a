//! Whether the generator, and not the server, was the limit.

use crate::result::RunResult;
use crate::units;

/// Lateness below this is the clock and the scheduler, whatever the server does.
const LATENESS_NOTICED_US: u64 = 1_000;
/// Share of the latency that may be the generator's own.
const LATENESS_SHARE: f64 = 0.1;
const CPU_SHARE: f64 = 0.9;
const UNSENT_SHARE: f64 = 0.01;

/// What a reader of the figures must know: [`generator_limits`], and requests that never left.
pub fn generator_warnings(result: &RunResult) -> Vec<String> {
    let mut warnings = generator_limits(result);
    let (due, unsent) = (result.totals.due, result.totals.never_sent());
    if unsent as f64 > UNSENT_SHARE * due as f64 {
        warnings.push(format!(
            "{} of {} requests that were due were never sent: every connection was busy; if the server could take more, \
             use more connections",
            units::count(unsent),
            units::count(due)
        ));
    }
    warnings
}

/// Sentences, each saying what to do. Empty when the figures are the server's.
pub fn generator_limits(result: &RunResult) -> Vec<String> {
    let mut warnings = Vec::new();
    let lateness_us = result.histograms.lateness_us.at(0.99);
    let latency_us = result.histograms.latency_us.at(0.99);
    if lateness_us > LATENESS_NOTICED_US && lateness_us as f64 > LATENESS_SHARE * latency_us as f64 {
        warnings.push(format!(
            "the generator itself was late (p99 {}), which the latencies include; lower the rate, or spread the load \
             over several processes and merge their results",
            units::time(lateness_us as f64)
        ));
    }
    let cpu = result.totals.generator_cpu_share();
    if cpu > CPU_SHARE {
        warnings.push(format!(
            "the generator used {:.0} % of its core: the rate may be its limit and not the server's; give it a core of \
             its own, or spread the load over several processes and merge their results",
            cpu * 100.0
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Recorded, fixture};

    #[test]
    fn only_a_limiting_generator_is_warned_of() {
        let good = fixture::steady("a", 5);
        assert_eq!(generator_warnings(&good), Vec::<String>::new());

        let mut late = good.clone();
        late.histograms.lateness_us.0.record_n(3_000, 4_000).unwrap();
        assert!(generator_warnings(&late)[0].starts_with("the generator itself was late (p99 3.00 ms)"));
        // The same lateness is nothing beside seconds of latency.
        late.histograms.latency_us = Recorded::default();
        late.histograms.latency_us.0.record(2_000_000).unwrap();
        assert_eq!(generator_warnings(&late), Vec::<String>::new());

        let mut busy = good.clone();
        busy.totals.generator_cpu_s = 4.8;
        assert!(generator_warnings(&busy)[0].contains("used 96 % of its core"));

        let mut unsent = good;
        unsent.totals.unknown = [("never_sent".to_string(), 1_000)].into();
        assert!(generator_warnings(&unsent)[0].starts_with("1,000 of 5,000 requests that were due were never sent"));
    }
}
