//! HdrHistogram's own text of a percentile distribution, which its plotter and other tools read: what
//! `AbstractHistogram.outputPercentileDistribution` prints, with five ticks a half distance and values in ms.

use std::fmt::Write as _;

use crate::result::Recorded;

const TICKS_PER_HALF: u32 = 5;
const US_PER_MS: f64 = 1000.0;
/// Of three significant digits.
const SUB_BUCKETS: u32 = 2048;

pub fn distribution(recorded: &Recorded) -> String {
    let histogram = &recorded.0;
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut total = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let value_ms = step.value_iterated_to() as f64 / US_PER_MS;
        let quantile = step.quantile_iterated_to();
        write!(text, "{value_ms:12.3} {quantile:.12} {total:10}").expect("a String takes everything");
        // The last has no finite one.
        if quantile < 1.0 {
            write!(text, " {:14.2}", 1.0 / (1.0 - quantile)).expect("a String takes everything");
        }
        text.push('\n');
    }
    let footer = |text: &mut String, a: &str, a_value: String, b: &str, b_value: String| {
        writeln!(text, "#[{a:<7} = {a_value:>12}, {b:<14} = {b_value:>12}]").expect("a String takes everything");
    };
    let ms = |us: f64| format!("{:.3}", us / US_PER_MS);
    footer(&mut text, "Mean", ms(histogram.mean()), "StdDeviation", ms(histogram.stdev()));
    footer(&mut text, "Max", ms(histogram.max() as f64), "Total count", histogram.len().to_string());
    footer(&mut text, "Buckets", histogram.buckets().to_string(), "SubBuckets", SUB_BUCKETS.to_string());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_as_the_java_implementation_prints_it() {
        let mut recorded = Recorded::default();
        for ms in 1..=1_000 {
            recorded.0.record(ms * 1_000).unwrap();
        }
        let text = distribution(&recorded);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "       Value     Percentile TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], "       1.000 0.000000000000          1           1.00");
        assert_eq!(lines[3], "     100.031 0.100000000000        100           1.11");
        // Half way, five ticks later.
        assert_eq!(lines[7], "     500.223 0.500000000000        500           2.00");
        let last = lines[lines.len() - 4];
        assert_eq!(last, "    1000.447 1.000000000000       1000");
        assert_eq!(lines[lines.len() - 2], "#[Max     =     1000.447, Total count    =         1000]");
        assert_eq!(lines[lines.len() - 1], "#[Buckets =           22, SubBuckets     =         2048]");
        assert!(lines[lines.len() - 3].starts_with("#[Mean    =      500."), "{text}");
        assert!(lines[lines.len() - 3].contains(", StdDeviation   =      288."), "{text}");
    }

    #[test]
    fn a_plotter_reads_every_line_of_it() {
        let recorded = crate::result::fixture::steady("a", 5).histograms.latency_us;
        let text = distribution(&recorded);
        let mut before = (0.0, -1.0, 0);
        let rows = text.lines().skip(2).filter(|line| !line.starts_with('#'));
        for row in rows.clone() {
            let columns: Vec<&str> = row.split_whitespace().collect();
            let now = (columns[0].parse().unwrap(), columns[1].parse().unwrap(), columns[2].parse().unwrap());
            assert!(now.0 >= before.0 && now.1 > before.1 && now.2 >= before.2, "{row} after {before:?}");
            before = now;
        }
        assert!(rows.count() > 30);
        assert_eq!((before.1, before.2), (1.0, 5_000));
    }

    #[test]
    fn nothing_recorded_is_still_a_document() {
        assert!(distribution(&Recorded::default()).contains("Total count    =            0]"));
    }
}
