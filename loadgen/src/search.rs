//! The search of `sweep`: the highest rate that holds, found by trying. Pure, but for the trial that is handed in.
//!
//! It rises by doubling until a rate fails, then halves the gap (as a ratio) between the highest that held and the lowest
//! that failed, down to the precision. A failure is believed when the same rate fails twice: one hiccup of a shared
//! machine on the way up would otherwise end the search far below. That a rate holds is believed at once, since the next
//! higher one puts it to the proof.

/// Between which rates, and how closely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    pub from: f64,
    pub to: f64,
    /// The answer is within this share of the lowest rate that failed: 0.05 is 5 %.
    pub precision: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// None when even the lowest rate failed.
    pub highest: Option<f64>,
    /// The lowest rate that failed; None when everything up to the upper bound held.
    pub failed: Option<f64>,
}

/// Factor of the rise.
const RISE: f64 = 2.0;

/// `holds` tries a rate. Its first error ends the search.
pub fn search<E>(bounds: Bounds, mut holds: impl FnMut(f64) -> Result<bool, E>) -> Result<Found, E> {
    assert!(bounds.from > 0.0 && bounds.to >= bounds.from && bounds.precision > 0.0, "{bounds:?} was checked before");
    let mut holds = |rate: f64| Ok(holds(rate)? || holds(rate)?);
    let mut low = None;
    let mut rate = bounds.from;
    let mut high = loop {
        if !holds(rate)? {
            break rate;
        }
        low = Some(rate);
        if rate >= bounds.to {
            return Ok(Found { highest: low, failed: None });
        }
        rate = (rate * RISE).min(bounds.to);
    };
    let Some(mut low) = low else {
        return Ok(Found { highest: None, failed: Some(high) });
    };
    while high / low > 1.0 + bounds.precision {
        let middle = three_digits((low * high).sqrt());
        // Rates so close that they are the same in three digits.
        if middle <= low || middle >= high {
            break;
        }
        if holds(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(Found { highest: Some(low), failed: Some(high) })
}

/// Rates that people can read.
fn three_digits(rate: f64) -> f64 {
    let unit = 10f64.powf(rate.log10().floor() - 2.0);
    (rate / unit).round() * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { from: 1_000.0, to: 200_000.0, precision: 0.05 };

    /// What was found, and the rates that were tried.
    fn search_of(bounds: Bounds, mut holds: impl FnMut(f64) -> bool) -> (Found, Vec<f64>) {
        let mut tried = Vec::new();
        let found = search(bounds, |rate| {
            tried.push(rate);
            Ok::<_, std::convert::Infallible>(holds(rate))
        });
        (found.unwrap(), tried)
    }

    /// p99 in ms of a server with one queue that can do `capacity`: M/M/1 with a service time of 1 / capacity.
    fn p99_ms(rate: f64, capacity: f64) -> f64 {
        if rate >= capacity { f64::INFINITY } else { 100f64.ln() / (capacity - rate) * 1e3 }
    }

    #[test]
    fn the_knee_is_found_within_the_precision() {
        for capacity in [1_500.0, 5_000.0, 42_000.0, 123_456.0] {
            let (found, tried) = search_of(BOUNDS, |rate| p99_ms(rate, capacity) <= 20.0);
            let knee = capacity - 100f64.ln() / 0.020;
            let (low, high) = (found.highest.unwrap(), found.failed.unwrap());
            assert!(low <= knee && knee <= high, "{low} {knee} {high}");
            assert!(high / low <= 1.05, "{low} to {high}");
            assert!(tried.len() <= 22, "{} steps for {capacity}", tried.len());
        }
    }

    #[test]
    fn a_server_better_than_the_range_reaches_its_end() {
        let (found, tried) = search_of(BOUNDS, |_| true);
        assert_eq!(found, Found { highest: Some(200_000.0), failed: None });
        assert_eq!(tried, [1e3, 2e3, 4e3, 8e3, 16e3, 32e3, 64e3, 128e3, 200e3]);
    }

    #[test]
    fn a_server_worse_than_the_range_fails_after_two_tries() {
        let (found, tried) = search_of(BOUNDS, |_| false);
        assert_eq!(found, Found { highest: None, failed: Some(1_000.0) });
        assert_eq!(tried, [1_000.0, 1_000.0]);
    }

    #[test]
    fn one_rate_alone_is_judged() {
        let bounds = Bounds { from: 500.0, to: 500.0, ..BOUNDS };
        assert_eq!(search_of(bounds, |_| true).0.highest, Some(500.0));
        assert_eq!(search_of(bounds, |_| false).0.highest, None);
    }

    #[test]
    fn single_hiccups_change_nothing() {
        // Every third trial fails, whatever the rate.
        let mut n = 0;
        let (noisy, _) = search_of(BOUNDS, |rate| {
            n += 1;
            n % 3 != 0 && rate < 30_000.0
        });
        let (calm, _) = search_of(BOUNDS, |rate| rate < 30_000.0);
        assert_eq!(noisy, calm);
        assert!(calm.highest.unwrap() > 28_500.0);
    }

    #[test]
    fn a_noisy_knee_is_found_near_its_place() {
        // Around the knee (within 10 %) a step holds or not by chance.
        for seed in 0..200u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let (found, _) = search_of(BOUNDS, |rate| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let chance = ((50_000.0 - rate) / 10_000.0 + 0.5).clamp(0.0, 1.0);
                (state >> 11) as f64 / (1u64 << 53) as f64 <= chance
            });
            let highest = found.highest.unwrap();
            assert!((42_500.0..=55_000.0).contains(&highest), "seed {seed}: {highest}");
        }
    }

    #[test]
    fn fractional_rates_end() {
        let bounds = Bounds { from: 0.5, to: 3.0, precision: 0.000_001 };
        let (found, tried) = search_of(bounds, |rate| rate < 1.7);
        assert_eq!(found.highest.map(|rate| format!("{rate:.2}")), Some("1.69".into()));
        assert!(tried.len() < 30, "{}", tried.len());
    }

    #[test]
    fn an_error_ends_the_search() {
        let mut tried = 0;
        let outcome = search(BOUNDS, |_| {
            tried += 1;
            if tried == 3 { Err("unreachable") } else { Ok(true) }
        });
        assert_eq!((outcome, tried), (Err("unreachable"), 3));
    }
}
