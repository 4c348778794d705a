//! When each request is due, and whose it is: a pure function of the plan.
//!
//! A shape is a list of stretches whose rate changes linearly; request k is due where the integral of the rate reaches
//! k. So a run's requests number its integral, rounded, whatever the shape, and no error adds up. A fleet is different:
//! each client sends on its own clock, from a phase that the seed gives it.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::plan::{Plan, Shape};

/// A batch that becomes due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Since the run's time 0.
    pub at_ns: u64,
    pub client: u32,
    /// Of the client's batches, from 0.
    pub number: u64,
}

/// The requests of a plan in the order of their due times; none for a closed loop.
pub enum Schedule {
    Rated(Rated),
    Fleet(Fleet),
}

impl Schedule {
    pub fn new(plan: &Plan) -> Schedule {
        let clients = plan.workload.clients.max(1);
        match &plan.shape {
            Shape::Fleet { interval_ms, duration_ms } => {
                Schedule::Fleet(Fleet::new(clients, ms_to_ns(*interval_ms), ms_to_ns(*duration_ms), plan.seed))
            }
            shape => Schedule::Rated(Rated::new(stretches(shape), clients)),
        }
    }

    /// How many requests are due in all.
    pub fn total(&self) -> u64 {
        match self {
            Schedule::Rated(rated) => rated.total,
            Schedule::Fleet(fleet) => fleet.total(),
        }
    }

    /// The requests of one of `threads` threads: clients are dealt out like cards.
    pub fn part(self, thread: u32, threads: u32) -> impl Iterator<Item = Due> {
        self.filter(move |due| threads == 1 || due.client % threads == thread)
    }
}

impl Iterator for Schedule {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        match self {
            Schedule::Rated(rated) => rated.next(),
            Schedule::Fleet(fleet) => fleet.next(),
        }
    }
}

/// From the first due moment that can be to the last: how long the run lasts.
pub fn duration_ns(shape: &Shape) -> u64 {
    match shape {
        Shape::Closed { duration_ms }
        | Shape::Constant { duration_ms, .. }
        | Shape::Ramp { duration_ms, .. }
        | Shape::Burst { duration_ms, .. }
        | Shape::Fleet { duration_ms, .. } => ms_to_ns(*duration_ms),
        Shape::Steps { rates, each_ms } => rates.len() as u64 * ms_to_ns(*each_ms),
    }
}

/// The rate asked for at a moment of the run, in requests a second; `None` for a closed loop.
pub fn rate_at(plan: &Plan, at_ns: u64) -> Option<f64> {
    match &plan.shape {
        Shape::Closed { .. } => None,
        Shape::Fleet { interval_ms, .. } => {
            Some(f64::from(plan.workload.clients) * 1000.0 / (*interval_ms).max(1) as f64)
        }
        Shape::Burst { base, peak, every_ms, burst_ms, .. } => {
            Some(if at_ns % ms_to_ns((*every_ms).max(1)) < ms_to_ns(*burst_ms) { *peak } else { *base })
        }
        Shape::Constant { rate, .. } => Some(*rate),
        Shape::Steps { rates, each_ms } => {
            let step = (at_ns / ms_to_ns((*each_ms).max(1))) as usize;
            rates.get(step).or(rates.last()).copied()
        }
        Shape::Ramp { from, to, duration_ms } => {
            Some(from + (to - from) * (at_ns as f64 / ms_to_ns((*duration_ms).max(1)) as f64).min(1.0))
        }
    }
}

fn ms_to_ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

/// A time over which the rate goes in a straight line from one value to another.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    from_ns: u64,
    duration_s: f64,
    rate_from: f64,
    rate_to: f64,
    /// The integral before it.
    before: f64,
}

impl Stretch {
    fn integral(&self) -> f64 {
        (self.rate_from + self.rate_to) / 2.0 * self.duration_s
    }
}

fn stretches(shape: &Shape) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::new();
    let mut add = |duration_ms: u64, rate_from: f64, rate_to: f64| {
        if duration_ms > 0 {
            let (from_ns, before) = all.last().map_or((0, 0.0), |last: &Stretch| {
                (last.from_ns + (last.duration_s * 1e9).round() as u64, last.before + last.integral())
            });
            all.push(Stretch { from_ns, duration_s: duration_ms as f64 / 1e3, rate_from, rate_to, before });
        }
    };
    match shape {
        Shape::Closed { .. } | Shape::Fleet { .. } => {}
        Shape::Constant { rate, duration_ms } => add(*duration_ms, *rate, *rate),
        Shape::Steps { rates, each_ms } => rates.iter().for_each(|rate| add(*each_ms, *rate, *rate)),
        Shape::Ramp { from, to, duration_ms } => add(*duration_ms, *from, *to),
        Shape::Burst { base, peak, every_ms, burst_ms, duration_ms } => {
            let every_ms = (*every_ms).max(1);
            let mut at_ms = 0;
            while at_ms < *duration_ms {
                let period_ms = every_ms.min(duration_ms - at_ms);
                let burst_ms = (*burst_ms).min(period_ms);
                add(burst_ms, *peak, *peak);
                add(period_ms - burst_ms, *base, *base);
                at_ms += period_ms;
            }
        }
    }
    all
}

pub struct Rated {
    stretches: Vec<Stretch>,
    at: usize,
    clients: u32,
    next: u64,
    client: u32,
    number: u64,
    total: u64,
}

impl Rated {
    fn new(stretches: Vec<Stretch>, clients: u32) -> Rated {
        let total = stretches.last().map_or(0.0, |last| last.before + last.integral()).round().max(0.0) as u64;
        Rated { stretches, at: 0, clients, next: 0, client: 0, number: 0, total }
    }
}

impl Iterator for Rated {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        if self.next >= self.total {
            return None;
        }
        let k = self.next as f64;
        let mut stretch = &self.stretches[self.at];
        while k >= stretch.before + stretch.integral() && self.at + 1 < self.stretches.len() {
            self.at += 1;
            stretch = &self.stretches[self.at];
        }
        let Stretch { duration_s, rate_from, rate_to, .. } = *stretch;
        let rise = (rate_to - rate_from) / duration_s;
        let wanted = k - stretch.before;
        // The root of rate_from·t + rise·t²/2 = wanted, in the form that does not cancel.
        let root = (rate_from * rate_from + 2.0 * rise * wanted).max(0.0).sqrt();
        let after_s = if wanted <= 0.0 { 0.0 } else { (2.0 * wanted / (rate_from + root)).min(duration_s) };
        let due =
            Due { at_ns: stretch.from_ns + (after_s * 1e9).round() as u64, client: self.client, number: self.number };
        self.next += 1;
        self.client += 1;
        if self.client == self.clients {
            self.client = 0;
            self.number += 1;
        }
        Some(due)
    }
}

pub struct Fleet {
    /// Phase and client, by phase.
    phases: Vec<(u64, u32)>,
    interval_ns: u64,
    duration_ns: u64,
    at: usize,
    round: u64,
}

impl Fleet {
    fn new(clients: u32, interval_ns: u64, duration_ns: u64, seed: u64) -> Fleet {
        let interval_ns = interval_ns.max(1);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5068_6173_6573);
        let mut phases: Vec<(u64, u32)> = (0..clients)
            .map(|client| (((u128::from(random.next_u64()) * u128::from(interval_ns)) >> 64) as u64, client))
            .collect();
        phases.sort_unstable();
        Fleet { phases, interval_ns, duration_ns, at: 0, round: 0 }
    }

    fn total(&self) -> u64 {
        self.phases
            .iter()
            .filter(|(phase, _)| *phase < self.duration_ns)
            .map(|(phase, _)| (self.duration_ns - phase).div_ceil(self.interval_ns))
            .sum()
    }
}

impl Iterator for Fleet {
    type Item = Due;

    fn next(&mut self) -> Option<Due> {
        if self.at == self.phases.len() {
            self.at = 0;
            self.round += 1;
        }
        let (phase, client) = *self.phases.get(self.at)?;
        let at_ns = self.round * self.interval_ns + phase;
        if at_ns >= self.duration_ns {
            return None; // later ones of this round are later still
        }
        self.at += 1;
        Some(Due { at_ns, client, number: self.round })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing;

    fn plan(shape: Shape, clients: u32) -> Plan {
        let mut plan = testing::plan(shape);
        plan.workload.clients = clients;
        plan
    }

    fn integral(plan: &Plan) -> f64 {
        let duration_ns = duration_ns(&plan.shape);
        let steps = 1_000_000;
        let step_s = duration_ns as f64 / 1e9 / f64::from(steps);
        (0..steps)
            .map(|i| rate_at(plan, ((f64::from(i) + 0.5) * step_s * 1e9) as u64).expect("an open loop") * step_s)
            .sum()
    }

    fn shapes() -> Vec<Shape> {
        vec![
            Shape::Constant { rate: 5000.0, duration_ms: 3000 },
            Shape::Constant { rate: 0.7, duration_ms: 10_000 },
            Shape::Constant { rate: 333.3, duration_ms: 1700 },
            Shape::Steps { rates: vec![1000.0, 2000.0, 4000.0, 0.0, 10.5], each_ms: 1000 },
            Shape::Ramp { from: 1000.0, to: 10_000.0, duration_ms: 2000 },
            Shape::Ramp { from: 500.0, to: 0.0, duration_ms: 4000 },
            Shape::Ramp { from: 0.0, to: 1000.0, duration_ms: 2000 },
            Shape::Burst { base: 100.0, peak: 3000.0, every_ms: 1000, burst_ms: 150, duration_ms: 3500 },
            Shape::Burst { base: 0.0, peak: 1000.0, every_ms: 500, burst_ms: 100, duration_ms: 2000 },
            Shape::Fleet { interval_ms: 500, duration_ms: 4000 },
        ]
    }

    #[test]
    fn as_many_requests_are_due_as_the_shape_integrates_to() {
        for shape in shapes() {
            let plan = plan(shape, 7);
            let due: Vec<Due> = Schedule::new(&plan).collect();
            assert_eq!(due.len() as u64, Schedule::new(&plan).total(), "{:?}", plan.shape);
            let integral = integral(&plan);
            let off = (due.len() as f64 - integral).abs();
            // The sum over a million midpoints is itself off by a hair at a jump of the rate.
            assert!(off <= 0.55, "{} due, but the integral is {integral}: {:?}", due.len(), plan.shape);
        }
    }

    #[test]
    fn requests_are_due_in_order_and_within_the_run() {
        for shape in shapes() {
            let plan = plan(shape, 3);
            let mut last = 0;
            for due in Schedule::new(&plan) {
                assert!(due.at_ns >= last && due.at_ns <= duration_ns(&plan.shape), "{due:?} of {:?}", plan.shape);
                last = due.at_ns;
            }
        }
    }

    #[test]
    fn a_constant_rate_is_due_at_even_distances() {
        let plan = plan(Shape::Constant { rate: 8000.0, duration_ms: 1000 }, 1);
        for (k, due) in Schedule::new(&plan).enumerate() {
            assert_eq!((due.at_ns, due.number), (k as u64 * 125_000, k as u64));
        }
    }

    #[test]
    fn half_of_a_ramp_s_time_holds_what_the_integral_says() {
        let plan = plan(Shape::Ramp { from: 0.0, to: 10_000.0, duration_ms: 2000 }, 1);
        let first_half = Schedule::new(&plan).filter(|due| due.at_ns < 1_000_000_000).count();
        assert_eq!(first_half, 2500);
    }

    #[test]
    fn a_burst_sends_at_its_peak_first_and_at_its_base_then() {
        let shape = Shape::Burst { base: 100.0, peak: 1000.0, every_ms: 1000, burst_ms: 200, duration_ms: 2000 };
        let plan = plan(shape, 1);
        let within = |from_ms: u64, to_ms: u64| {
            Schedule::new(&plan).filter(|due| (from_ms..to_ms).contains(&(due.at_ns / 1_000_000))).count()
        };
        assert_eq!((within(0, 200), within(200, 1000), within(1000, 1200), within(1200, 2000)), (200, 80, 200, 80));
    }

    #[test]
    fn each_client_numbers_its_batches_without_a_gap() {
        for shape in shapes() {
            let plan = plan(shape, 5);
            let mut next = [0u64; 5];
            for due in Schedule::new(&plan) {
                assert_eq!(due.number, next[due.client as usize], "{:?}", plan.shape);
                next[due.client as usize] += 1;
            }
        }
    }

    #[test]
    fn a_fleet_s_client_keeps_its_interval_and_the_seed_gives_its_phase() {
        let mut plan = plan(Shape::Fleet { interval_ms: 1000, duration_ms: 10_000 }, 1000);
        let first: Vec<Due> = Schedule::new(&plan).collect();
        assert_eq!(first.len(), 10_000);
        for client in [0u32, 17, 999] {
            let at: Vec<u64> = first.iter().filter(|due| due.client == client).map(|due| due.at_ns).collect();
            assert!(at.windows(2).all(|pair| pair[1] - pair[0] == 1_000_000_000));
        }
        // Spread: each tenth of the interval holds about a tenth of the clients.
        for tenth in 0..10u64 {
            let here = first.iter().filter(|due| due.at_ns / 100_000_000 == tenth).count();
            assert!((60..140).contains(&here), "{here} clients in tenth {tenth}");
        }
        assert!(first.iter().copied().eq(Schedule::new(&plan)));
        plan.seed += 1;
        assert!(!first.iter().copied().eq(Schedule::new(&plan)));
    }

    #[test]
    fn threads_share_the_requests_and_none_is_left_over() {
        for shape in shapes() {
            let plan = plan(shape, 7);
            let parts: usize = (0..3).map(|thread| Schedule::new(&plan).part(thread, 3).count()).sum();
            assert_eq!(parts as u64, Schedule::new(&plan).total());
        }
    }

    #[test]
    fn a_closed_loop_has_no_due_times() {
        assert_eq!(Schedule::new(&plan(Shape::Closed { duration_ms: 1000 }, 4)).count(), 0);
    }
}
