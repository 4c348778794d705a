//! The limit in total: shards in virtual time, arrivals skewed, and real threads racing for one table.

use super::*;
use crate::random::Random;
use proptest::prelude::*;
use std::sync::Arc;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

fn shards(n: usize) -> Vec<Local> {
    let shared = Arc::new(Shared::new(1000));
    (0..n).map(|_| Local::new(shared.clone(), 1000)).collect()
}

fn requests(rate: u64, burst: u64) -> ClientLimits {
    ClientLimits { requests: Some(Limit::with_burst(rate, burst)), points: None, bytes: None }
}

fn admitted(decision: Decision) -> bool {
    matches!(decision, Decision::Admit { .. })
}

/// Half of what is left to each shard goes to the next one: the first gets half of all.
fn skewed(random: &mut Random, shards: usize) -> usize {
    (random.draw().trailing_ones() as usize).min(shards - 1)
}

#[test]
fn five_times_the_rate_on_any_number_of_shards_gets_the_rate() {
    for shard_count in 1..=8 {
        for rate in [1, 7, 100, 250, 1000, 33_333] {
            // With less than some tokens, what a pause in the arrivals leaves unused is lost for good: a bucket's nature.
            let burst = (rate / 10).max(10);
            let limits = requests(rate, burst);
            let mut shards = shards(shard_count);
            let mut random = Random(rate * 8 + shard_count as u64);
            let (step, end) = (S / (5 * rate), 10 * S);
            let (mut now, mut total) = (S, 0);
            while now < S + end {
                let shard = skewed(&mut random, shard_count);
                total += u64::from(admitted(shards[shard].admit(ClientHash(7), &limits, now)));
                now += step / 2 + random.below(step + 1);
                shards[shard].tick(now);
            }
            let (fair, burst) = (10.0 * rate as f64, burst as f64);
            let got = total as f64 - burst;
            assert!(
                (got - fair).abs() <= (0.02 * fair).max(1.0),
                "{got} for {fair} at {rate}/s on {shard_count} shards (burst {burst})"
            );
        }
    }
}

#[test]
fn a_shard_decides_most_requests_alone() {
    let limits = requests(100_000, 100_000);
    let mut shards = shards(4);
    let mut now = S;
    for n in 0..400_000 {
        shards[n % 4].admit(ClientHash(7), &limits, now);
        shards[n % 4].tick(now);
        now += 2_000; // five times the rate
    }
    let visits: u64 = shards.iter().map(|shard| shard.counters().shared_visits).sum();
    assert!(visits < 4000, "{visits} visits to the shared bucket for 400,000 requests");
}

#[test]
fn a_client_at_its_rate_is_never_refused_though_it_moves_between_shards() {
    for shard_count in [1, 4, 8] {
        for (rate, burst) in [(1, 1), (3, 1), (100, 1), (100, 100), (150, 2), (300, 10), (1000, 1000), (10_000, 100)] {
            let limits = requests(rate, burst);
            let mut shards = shards(shard_count);
            let mut random = Random(rate);
            let step = S.div_ceil(rate);
            for n in 0..(10 * rate) {
                let now = S + n * step;
                shards.iter_mut().for_each(|shard| shard.tick(now));
                let shard = random.below(shard_count as u64) as usize;
                let decision = shards[shard].admit(ClientHash(7), &limits, now);
                assert!(
                    admitted(decision),
                    "request {n} at {rate}/s, burst {burst}, {shard_count} shards: {decision:?}"
                );
            }
        }
    }
}

#[test]
fn few_requests_on_many_shards_never_starve() {
    let limits = requests(200, 20);
    let mut shards = shards(8);
    for n in 0..2000u64 {
        let now = S + n * 10 * MS; // half the rate, each time elsewhere
        shards.iter_mut().for_each(|shard| shard.tick(now));
        assert!(admitted(shards[(n % 8) as usize].admit(ClientHash(7), &limits, now)), "request {n}");
    }
}

#[test]
fn another_client_is_never_affected() {
    let limits = requests(1000, 1000);
    let mut shards = shards(4);
    let mut random = Random(3);
    for n in 0..50_000u64 {
        let now = S + n * S / 5000;
        let shard = skewed(&mut random, 4);
        shards[shard].admit(ClientHash(7), &limits, now);
        shards[shard].tick(now);
        if n.is_multiple_of(10) {
            assert!(admitted(shards[(n / 10 % 4) as usize].admit(ClientHash(8), &limits, now)));
        }
    }
}

#[test]
fn unused_leases_come_back_within_100_ms() {
    let limits = requests(10_000, 10_000);
    let mut shards = shards(4);
    for shard in &mut shards {
        assert!(admitted(shard.admit(ClientHash(7), &limits, S)));
        assert_eq!(shard.leases(), 1);
    }
    for ms in 1..=100 {
        shards.iter_mut().for_each(|shard| shard.tick(S + ms * MS));
    }
    assert!(shards.iter().all(|shard| shard.leases() == 0));
    // Small enough that leases would still show in the bucket: a debt of half a second, then two leases given back.
    let limits = ClientLimits { points: Some(Limit::per_second(1000)), ..ClientLimits::UNLIMITED };
    assert!(admitted(shards[0].admit(ClientHash(9), &limits, S)));
    shards[0].charge(ClientHash(9), &limits, 500, 0, S);
    assert!(admitted(shards[1].admit(ClientHash(9), &limits, S)));
    let Decision::Admit { .. } = shards[2].admit(ClientHash(9), &limits, S) else { panic!() };
    let level = |shards: &[Local]| {
        let limit = limits.points.as_ref().unwrap();
        shards[0]
            .shared
            .look(local::spread(ClientHash(9)), Dimension::Points, limit, limit.token_ticks, S / 8)
            .available
    };
    let before = level(&shards);
    shards.iter_mut().for_each(|shard| shard.tick(S + 100 * MS));
    let limit = limits.points.unwrap();
    assert_eq!(level(&shards), before + 20 * limit.token_ticks, "two leases of 1 %");
}

#[test]
fn a_second_of_debt_costs_a_second() {
    let limits = ClientLimits { points: Some(Limit::per_second(1000)), ..ClientLimits::UNLIMITED };
    let mut shards = shards(2);
    assert!(admitted(shards[0].admit(ClientHash(7), &limits, S)));
    shards[0].charge(ClientHash(7), &limits, 3000, 0, S);
    // The debt is seen by the other shard at once; 3000 points are paid after two seconds (1000 were in the bucket).
    let Decision::Refuse(refusal) = shards[1].admit(ClientHash(7), &limits, S) else {
        panic!("3 s of points were sent")
    };
    assert_eq!((refusal.dimension, refusal.limit_per_s, refusal.remaining), (Dimension::Points, 1000, 0));
    assert_eq!((refusal.retry_after_ms, refusal.reset_ms), (2001, 3000));
    assert!(!admitted(shards[0].admit(ClientHash(7), &limits, S + 1990 * MS)));
    assert!(admitted(shards[1].admit(ClientHash(7), &limits, S + 2001 * MS)));
}

#[test]
fn points_and_bytes_hold_on_the_average_whatever_a_request_holds() {
    for (batch, shard_count) in [(1, 1), (10, 4), (1000, 4), (50_000, 8)] {
        let limits = ClientLimits {
            requests: None,
            points: Some(Limit::per_second(100_000)),
            bytes: Some(Limit::per_second(100 << 20)),
        };
        let mut shards = shards(shard_count);
        let mut random = Random(batch);
        let (mut points, mut now) = (0, S);
        let step = S * batch / 500_000;
        while now < 11 * S {
            let shard = skewed(&mut random, shard_count);
            if admitted(shards[shard].admit(ClientHash(7), &limits, now)) {
                shards[shard].charge(ClientHash(7), &limits, batch, batch * 100, now);
                points += batch;
            }
            now += step;
            shards[shard].tick(now);
        }
        let fair = 1_000_000 + 100_000;
        let slack = fair / 50 + 2 * batch;
        assert!(points.abs_diff(fair) <= slack, "{points} points in batches of {batch} on {shard_count} shards");
    }
}

#[test]
fn a_rate_of_zero_refuses_all_and_none_refuses_nothing() {
    let mut shard = shards(1).remove(0);
    for limits in [
        requests(0, 0),
        ClientLimits { points: Some(Limit::per_second(0)), ..ClientLimits::UNLIMITED },
        ClientLimits { bytes: Some(Limit::per_second(0)), ..ClientLimits::default() },
    ] {
        let Decision::Refuse(refusal) = shard.admit(ClientHash(7), &limits, S) else { panic!("{limits:?}") };
        assert_eq!((refusal.limit_per_s, refusal.retry_after_ms), (0, 30_000));
    }
    for _ in 0..10_000 {
        assert_eq!(shard.admit(ClientHash(7), &ClientLimits::UNLIMITED, S), Decision::Admit { remaining: u64::MAX });
    }
    assert_eq!(shard.counters().shared_visits, 0);
}

#[test]
fn a_refusal_says_when_to_come_back() {
    let mut shard = shards(1).remove(0);
    let limits = ClientLimits::default();
    for n in 0..100 {
        assert_eq!(shard.admit(ClientHash(7), &limits, S), Decision::Admit { remaining: 99 - n });
    }
    let refusal =
        Refusal { dimension: Dimension::Requests, limit_per_s: 100, remaining: 0, retry_after_ms: 10, reset_ms: 1000 };
    assert_eq!(shard.admit(ClientHash(7), &limits, S), Decision::Refuse(refusal));
    let later = Refusal { retry_after_ms: 6, reset_ms: 996, ..refusal };
    assert_eq!(shard.admit(ClientHash(7), &limits, S + 4 * MS), Decision::Refuse(later), "from memory");
    assert_eq!(shard.admit(ClientHash(7), &limits, S + 10 * MS), Decision::Admit { remaining: 0 });
}

#[test]
fn huge_numbers_do_not_overflow() {
    let mut shard = shards(1).remove(0);
    for rate in [1, 1 << 20, u64::MAX] {
        for burst in [1, u64::MAX] {
            let limit = Some(Limit::with_burst(rate, burst));
            let limits = ClientLimits { requests: limit, points: limit, bytes: limit };
            for now in [0, S, 1 << 58] {
                let client = ClientHash(rate ^ burst ^ now);
                shard.admit(client, &limits, now);
                shard.charge(client, &limits, u64::MAX, u64::MAX, now);
                shard.admit(client, &limits, now);
                shard.tick(now);
            }
        }
    }
}

#[test]
fn beyond_the_bound_of_leases_the_limit_is_as_right() {
    let shared = Arc::new(Shared::new(1000));
    let mut shard = Local::new(shared, 0);
    let limits = requests(1000, 100);
    let total = (0..50_000).filter(|n| admitted(shard.admit(ClientHash(7), &limits, S + n * S / 5000))).count();
    assert!(total.abs_diff(10_100) < 100, "{total}");
    assert_eq!((shard.leases(), shard.memory_bytes()), (0, 0));
}

#[test]
fn a_full_group_shares_an_overflow_bucket_and_is_bounded() {
    let shared = Arc::new(Shared::new(1)); // one group: 32 slots
    let mut shard = Local::new(shared.clone(), 1000);
    let limits = requests(10, 10);
    for client in 0..32 {
        assert!(admitted(shard.admit(ClientHash(client), &limits, S)));
    }
    assert_eq!(shared.totals().overflows, 0);
    let total = (32..10_000).filter(|&client| admitted(shard.admit(ClientHash(client), &limits, S))).count();
    assert_eq!(total, 10, "one burst for all that found no slot");
    assert!(shared.totals().overflows >= 10);
    assert!(admitted(shard.admit(ClientHash(5), &limits, S)), "those that have slots do not notice");
    // A moment later all slots but one are idle again, and go to newcomers.
    let later = S + 150 * MS;
    let total = (20_000..20_020).filter(|&client| admitted(shard.admit(ClientHash(client), &limits, later))).count();
    assert_eq!(total, 20);
    assert!(shared.totals().takeovers >= 20);
}

#[test]
fn a_million_clients_cost_at_most_128_bytes_each() {
    let shared = Arc::new(Shared::new(1_000_000));
    assert!(shared.totals().memory_bytes < 2 << 20, "idle: {}", shared.totals().memory_bytes);
    let mut shard = Local::new(shared.clone(), 65_536);
    let limits = ClientLimits {
        requests: Some(Limit::per_second(1000)),
        points: Some(Limit::per_second(100_000)),
        bytes: Some(Limit::per_second(10 << 20)),
    };
    for client in 0..1_000_000 {
        let now = S + client * 2_000; // half a million requests/s
        assert!(admitted(shard.admit(ClientHash(client), &limits, now)), "client {client}");
        shard.charge(ClientHash(client), &limits, 10, 1000, now);
        if client % 16 == 0 {
            shard.tick(now);
        }
    }
    let bytes = (shared.totals().memory_bytes + shard.memory_bytes() as u64) as f64 / 1e6;
    println!("{bytes} bytes a client with one shard, {:?}, {} bytes local", shared.totals(), shard.memory_bytes());
    assert!(bytes <= 128.0, "{bytes}");
    assert_eq!(shared.totals().overflows, 0);
}

#[test]
fn threads_that_race_for_one_bucket_never_spend_more_than_it_has() {
    // Time stands still: exactly the burst can be spent, whoever asks and however leases go back and forth.
    let shared = Arc::new(Shared::new(16));
    let limits = requests(10_000, 10_000);
    let total: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let shared = shared.clone();
                scope.spawn(move || {
                    let mut shard = Local::new(shared, 100);
                    let mut total = 0;
                    for n in 0..20_000 {
                        total += usize::from(admitted(shard.admit(ClientHash(7), &limits, S)));
                        if n % 7 == 0 {
                            shard.give_back_all();
                        }
                    }
                    shard.give_back_all();
                    total
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // What a thread gave back after the others had been refused is still there, to the token.
    let mut shard = Local::new(shared, 0);
    let rest = (0..10_000).filter(|_| admitted(shard.admit(ClientHash(7), &limits, S))).count();
    assert_eq!(total + rest, 10_000);
    assert!(rest < 400, "{rest} left");
}

#[test]
fn threads_that_take_over_slots_from_each_other_lose_no_debt() {
    // 64 clients on 32 slots, time going on: every client is idle again when its turn comes, its slot perhaps another's.
    // Each turn, 4 threads race for 12 clients with a burst of 5 each: exactly 5 are let in for each client and turn.
    let shared = Arc::new(Shared::new(1));
    let limits = requests(1000, 5);
    let turns = 400;
    let barrier = std::sync::Barrier::new(4);
    let totals: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (shared, barrier) = (shared.clone(), &barrier);
                scope.spawn(move || {
                    let mut random = Random(thread);
                    let mut totals = vec![0; turns * 12];
                    for turn in 0..turns {
                        barrier.wait();
                        let mut shard = Local::new(shared.clone(), 0);
                        let now = S + turn as u64 * S;
                        for _ in 0..100 {
                            let n = random.below(12);
                            let client = ClientHash((turn as u64 * 5 + n) % 64);
                            totals[turn * 12 + n as usize] += u32::from(admitted(shard.admit(client, &limits, now)));
                        }
                    }
                    totals
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // A thread that lost its core while it claimed sends the others to the overflow bucket: allowed, and counted.
    let overflows = shared.totals().overflows as u32;
    let mut wrong = 0;
    for at in 0..turns * 12 {
        let total: u32 = totals.iter().map(|t| t[at]).sum();
        wrong += total.abs_diff(5);
    }
    assert!(wrong <= overflows, "{wrong} off, {overflows} overflows");
    assert!(shared.totals().takeovers > 100, "{:?}", shared.totals());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the arrivals: never more than burst + rate * t, debt and all.
    #[test]
    fn no_schedule_gets_more_than_the_burst_and_the_rate(
        rate in 1u64..5000,
        burst in 1u64..500,
        shard_count in 1usize..8,
        steps in proptest::collection::vec((0u64..30_000, 0usize..8, any::<bool>()), 1..2000),
    ) {
        let limits = requests(rate, burst);
        let mut shards = shards(shard_count);
        let (start, mut now, mut total) = (S, S, 0);
        for (wait_us, shard, tick) in steps {
            now += wait_us * 1000;
            let shard = &mut shards[shard % shard_count];
            total += u64::from(admitted(shard.admit(ClientHash(7), &limits, now)));
            if tick {
                shard.tick(now);
            }
            let allowed = burst as f64 + rate as f64 * (now - start) as f64 / 1e9 * 1.000_1 + 1.0;
            prop_assert!(total as f64 <= allowed, "{} in {} ns", total, now - start);
        }
    }
}
