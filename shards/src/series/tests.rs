//! The table against a plain map that never forgets, floods, and the bounds.

use super::*;
use crate::point::{SeriesId, SeriesResolver, series_key};
use proptest::prelude::*;
use std::collections::HashMap;

const SEEDS: [u64; 4] = [1, 2, 3, 4];

struct Bench {
    clients: ClientTable,
    series: SeriesTable,
    /// Who has a number, until it may be reused: what the log's segment says it means
    names: HashMap<u32, Vec<u8>>,
}

fn bounds() -> SeriesBounds {
    SeriesBounds {
        series_max: 1000,
        series_per_client_max: 100,
        cache_bytes_max: 1 << 20,
        cache_client_bytes_max: 1 << 18,
    }
}

impl Bench {
    fn new(bounds: SeriesBounds, static_tags: &[(&str, &str)]) -> Bench {
        let clients = ClientTable::new(SEEDS, 1000);
        Bench { clients, series: SeriesTable::new(SEEDS, bounds, static_tags), names: HashMap::new() }
    }

    fn begin(&mut self, client: &str, now_s: u32) -> ClientIndex {
        let entry = self.clients.resolve(client, now_s, |_| ClientProfile::default()).unwrap();
        self.series.begin_request(entry, now_s);
        entry.index
    }

    /// One point as a decoder resolves it; the raw span is `name[,k=v]*`.
    fn point(&mut self, raw: &str) -> Result<SeriesId, Vec<u8>> {
        let hash = self.series.hash(raw.as_bytes());
        self.series.prefetch(hash);
        if let Some(id) = self.series.get(hash, raw.as_bytes()) {
            return Ok(id);
        }
        let mut parts = raw.split(',');
        let name = parts.next().unwrap();
        let mut tags = parts.map(|p| p.split_once('=').map(|(k, v)| (k.as_bytes(), v.as_bytes())).unwrap()).collect();
        let mut overflow = Vec::new();
        self.series.insert(hash, raw.as_bytes(), name.as_bytes(), &mut tags, &mut overflow).ok_or(overflow)
    }
}

/// The canonical key in the plainest way.
fn canonical(client: &str, raw: &str) -> Vec<u8> {
    let mut parts = raw.split(',');
    let name = parts.next().unwrap();
    let tags: std::collections::BTreeMap<_, _> = parts.map(|p| p.split_once('=').unwrap()).collect();
    let tags: Vec<_> = tags.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
    let mut key = Vec::new();
    series_key::write(&mut key, client.as_bytes(), name.as_bytes(), &tags);
    key
}

#[test]
fn spellings_of_a_series_are_one_series_and_clients_are_apart() {
    let mut b = Bench::new(bounds(), &[]);
    b.begin("a", 1);
    let id = b.point("cpu,host=x,dc=eu").unwrap();
    for spelling in ["cpu,dc=eu,host=x", "cpu,host=y,dc=eu,host=x", "cpu,host=x,dc=eu,empty="] {
        assert_eq!(b.point(spelling), Ok(id), "{spelling}");
        assert_eq!(b.point(spelling), Ok(id), "{spelling}, from the cache");
    }
    assert_eq!(series_key::parse(b.series.key(id)).unwrap().tags, [("dc", "eu"), ("host", "x")]);
    b.begin("b", 1);
    assert_ne!(b.point("cpu,host=x,dc=eu").unwrap(), id, "the same bytes from another client");
    assert_eq!(b.series.drain_created().count(), 2);
    assert_eq!(b.series.drain_created().count(), 0);
    assert_eq!((b.series.counters().cache_hits, b.series.counters().cache_misses), (3, 5));
}

#[test]
fn tags_of_the_operator_are_added_where_absent() {
    let mut b = Bench::new(bounds(), &[("dc", "eu"), ("env", "prod")]);
    let tags = b.series.add_tag_set(&[("dc", "us"), ("team", "core")]);
    b.begin("plain", 1);
    let id = b.point("cpu,env=test").unwrap();
    assert_eq!(series_key::parse(b.series.key(id)).unwrap().tags, [("dc", "eu"), ("env", "test")]);
    let entry = b.clients.resolve("special", 1, |_| ClientProfile { limits: 0, tags }).unwrap();
    b.series.begin_request(entry, 1);
    let id = b.point("cpu,host=a").unwrap();
    assert_eq!(
        series_key::parse(b.series.key(id)).unwrap().tags,
        [("dc", "us"), ("env", "prod"), ("host", "a"), ("team", "core")]
    );
}

#[test]
fn beyond_the_limits_new_series_overflow_and_old_ones_go_on() {
    let mut b = Bench::new(SeriesBounds { series_max: 15, series_per_client_max: 10, ..bounds() }, &[]);
    let a = b.begin("a", 1);
    for n in 0..10 {
        b.point(&format!("m{n}")).unwrap();
    }
    assert_eq!(b.point("m10"), Err(canonical("a", "m10")), "its own key is kept for its identity");
    assert!(b.point("m3").is_ok());
    let c = b.begin("c", 1);
    for n in 0..5 {
        b.point(&format!("m{n}")).unwrap();
    }
    assert!(b.point("m5").is_err() && b.point("m5").is_err());
    let counters = b.series.counters();
    assert_eq!((counters.overflowed_client, counters.overflowed_total), (1, 2));
    assert_eq!((b.series.overflowed_of(a), b.series.overflowed_of(c)), (1, 2));
    assert_eq!((b.series.live(), b.series.live_of(a), b.series.live_of(c)), (15, 10, 5));
    // Where one goes, another may come.
    assert_eq!(b.series.evict_idle(100, 10, 1, 7, |_| true, |_, _| {}), 1);
    assert!(b.point("m5").is_ok());
}

#[test]
fn what_the_log_names_is_restored_beyond_the_limits() {
    let mut b = Bench::new(SeriesBounds { series_per_client_max: 1, ..bounds() }, &[("dc", "new")]);
    let entry = b.clients.resolve("a", 1, |_| ClientProfile::default()).unwrap();
    let key = canonical("a", "old,host=x");
    let id = b.series.restore(entry, &key, 1).unwrap();
    assert_eq!(b.series.restore(entry, &key, 2), Some(id));
    assert!(b.series.restore(entry, &canonical("a", "other"), 1).is_some());
    assert_eq!((b.series.key(id), b.series.live_of(entry.index)), (&key[..], 2));
    b.begin("a", 3);
    assert!(b.point("third").is_err());
}

#[test]
fn a_number_is_reused_only_when_the_segment_that_named_it_is_closed() {
    let mut b = Bench::new(bounds(), &[]);
    let client = b.begin("a", 1);
    let old = b.point("m,host=a").unwrap();
    let mut gone = Vec::new();
    let evicted = b.series.evict_idle(100, 10, 10, 5, |_| true, |id, key| gone.push((id, key.to_vec())));
    assert_eq!((evicted, gone), (1, vec![(old, canonical("a", "m,host=a"))]));
    assert!(!b.series.is_live(old));
    assert_eq!(b.series.key(old), canonical("a", "m,host=a"), "the log may have to name it again");
    assert_eq!(b.series.live_of(client), 0);
    b.begin("a", 100);
    let again = b.point("m,host=a").unwrap();
    assert_ne!(again, old, "the cache knows the bytes, but their number means nothing now");
    b.series.segment_closed(4);
    assert_ne!(b.point("second").unwrap(), old);
    b.series.segment_closed(5);
    assert!(b.series.key(old).is_empty());
    let reused = b.point("third").unwrap();
    assert_eq!(reused, old);
    assert_eq!(b.point("m,host=a"), Ok(again));
    assert_eq!(b.series.key(reused), canonical("a", "third"));
}

#[test]
fn only_idle_series_that_the_windows_let_go_are_evicted() {
    let mut b = Bench::new(bounds(), &[]);
    b.begin("a", 0);
    let ids: Vec<_> = (0..50).map(|n| b.point(&format!("m{n}")).unwrap()).collect();
    b.begin("a", 95);
    b.point("m3").unwrap();
    b.series.touch(ids[4], 95);
    let open = ids[5];
    let mut evicted = 0;
    for _ in 0..10 {
        evicted += b.series.evict_idle(100, 10, 10, 1, |id| id != open, |id, _| assert!(!ids[3..6].contains(&id)));
    }
    assert_eq!((evicted, b.series.live()), (47, 3));
}

#[test]
fn a_flood_of_spellings_costs_its_sender_and_stays_in_its_bounds() {
    let mut b = Bench::new(bounds(), &[]);
    b.begin("good", 1);
    let own: Vec<String> = (0..50).map(|n| format!("cpu,host=server-{n}")).collect();
    let ids: Vec<_> = own.iter().map(|raw| b.point(raw).unwrap()).collect();
    let mut good_misses = 0;
    for round in 0..300 {
        b.begin("flood", 1);
        for n in 0..200 {
            assert!(b.point(&format!("cpu,x={},x=1", round * 200 + n)).is_ok(), "one series in ever new words");
        }
        assert!(b.series.cache_bytes() <= 2 << 20, "{}", b.series.cache_bytes());
        b.begin("good", 1);
        let before = b.series.counters().cache_misses;
        for (raw, id) in own.iter().zip(&ids) {
            assert_eq!(b.point(raw), Ok(*id));
        }
        good_misses += b.series.counters().cache_misses - before;
    }
    assert_eq!(good_misses, 0, "60,000 spellings of another client, several generations, and nothing forgotten");
    assert_eq!(b.series.live(), 51);
}

#[test]
fn spans_whose_hashes_collide_are_told_apart() {
    // A client cannot choose hashes; if it could, this is what would happen: slow, and right.
    let mut cache = cache::Cache::new(1 << 20);
    let hash = 0x1234_5678_9ABC_DEF0;
    for n in 0..2000u32 {
        cache.insert(hash, n % 3, format!("m{n}").as_bytes(), n, 1);
    }
    for n in 0..2000u32 {
        let raw = format!("m{n}");
        assert_eq!(cache.get(hash, n % 3, raw.as_bytes(), |_, incarnation| incarnation == 1), Some(n));
        assert_eq!(cache.get(hash, n % 3 + 1, raw.as_bytes(), |_, _| true), None);
        assert_eq!(cache.get(hash, n % 3, raw.as_bytes(), |_, incarnation| incarnation == 2), None);
    }
}

#[test]
fn a_span_too_long_for_the_cache_is_resolved_each_time() {
    let mut b = Bench::new(bounds(), &[]);
    b.begin("a", 1);
    let raw = format!("m,host={}", "x".repeat(10_000));
    let id = b.point(&raw).unwrap();
    assert_eq!(b.point(&raw), Ok(id));
    assert_eq!(b.series.counters().cache_hits, 0);
}

#[test]
fn a_cache_that_was_filled_takes_new_entries_without_end() {
    // Small and large spans in turn: neither buckets nor records may get stuck at their half of the bytes.
    let mut cache = cache::Cache::new(1 << 20);
    for n in 0..200_000u32 {
        let len = if n / 20_000 % 2 == 0 { 4 } else { 400 };
        let raw = [&n.to_le_bytes()[..], &vec![b'x'; len]].concat();
        let hash = u64::from(n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        cache.insert(hash, 0, &raw, n, 1);
        assert_eq!(cache.get(hash, 0, &raw, |_, _| true), Some(n));
        assert!(cache.bytes() <= 3 << 19, "{} at {n}", cache.bytes());
        if n % 10_000 == 5_000 {
            let recent = n - 500;
            let len = if recent / 20_000 % 2 == 0 { 4 } else { 400 };
            let raw = [&recent.to_le_bytes()[..], &vec![b'x'; len]].concat();
            let hash = u64::from(recent).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            assert_eq!(cache.get(hash, 0, &raw, |_, _| true), Some(recent));
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Point { client: u8, raw: u16, spelling: u8 },
    Evict { budget: u8, keep: u8 },
    CloseSegment,
    ForgetClients,
    ClearCache,
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => (0u8..4, 0u16..60, 0u8..4).prop_map(|(client, raw, spelling)| Step::Point { client, raw, spelling }),
        4 => (1u8..40, 0u8..8).prop_map(|(budget, keep)| Step::Evict { budget, keep }),
        2 => Just(Step::CloseSegment),
        1 => Just(Step::ForgetClients),
        1 => Just(Step::ClearCache),
        4 => (1u8..20).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against a map from live keys to numbers: never the wrong series, never a number that is still named elsewhere.
    #[test]
    fn the_table_agrees_with_a_plain_map(steps in proptest::collection::vec(step(), 1..600)) {
        let mut b = Bench::new(SeriesBounds { series_per_client_max: 40, series_max: 90, cache_client_bytes_max: 2000, ..bounds() }, &[]);
        let mut live: HashMap<Vec<u8>, SeriesId> = HashMap::new();
        let (mut now_s, mut segment) = (0, 1);
        for step in steps {
            match step {
                Step::Point { client, raw, spelling } => {
                    let client = format!("client-{client}");
                    let raw = match spelling {
                        0 => format!("m{},a={raw},b=2", raw % 7),
                        1 => format!("m{},b=2,a={raw}", raw % 7),
                        2 => format!("m{},b=1,b=2,a={raw},c=", raw % 7),
                        _ => format!("m{raw}"),
                    };
                    let key = canonical(&client, &raw);
                    let index = b.begin(&client, now_s);
                    match b.point(&raw) {
                        Ok(id) => {
                            prop_assert_eq!(b.series.key(id), &key[..]);
                            prop_assert_eq!(b.series.last_seen_s(id), Some(now_s));
                            prop_assert_eq!(b.series.client_of(id), Some(index));
                            if let Some(known) = live.insert(key.clone(), id) {
                                prop_assert_eq!(known, id);
                            }
                            // Until its segment is closed, a number means one thing.
                            let name = b.names.entry(id.0).or_insert_with(|| key.clone());
                            prop_assert_eq!(&*name, &key);
                        }
                        Err(overflow) => {
                            prop_assert_eq!(&overflow, &key);
                            prop_assert!(!live.contains_key(&key));
                            prop_assert!(live.len() >= 40);
                        }
                    }
                }
                Step::Evict { budget, keep } => {
                    b.series.evict_idle(now_s, 10, budget.into(), segment, |id| id.0 % 8 != u32::from(keep), |id, key| {
                        assert_eq!(live.remove(key), Some(id));
                    });
                }
                Step::CloseSegment => {
                    b.series.segment_closed(segment);
                    segment += 1;
                    b.names = live.iter().map(|(key, id)| (id.0, key.clone())).collect();
                }
                Step::ForgetClients => {
                    let series = &b.series;
                    b.clients.forget_idle(now_s, 10, 10, |client| series.live_of(client) == 0);
                }
                Step::ClearCache => b.series.clear_cache(),
                Step::Wait(s) => now_s += u32::from(s),
            }
            prop_assert_eq!(b.series.live(), live.len());
        }
    }
}
