//! Several results as one: of processes that ran beside each other, or of runs after each other.
//!
//! What can be added exactly is added: totals, histograms, counts of seconds. Percentiles of one second cannot; the
//! greater one stands, which bounds the true one from above. Time is the wall clock's: the earliest start is 0 s, and the
//! duration is the time in which at least one of them ran.

use std::collections::BTreeMap;

use super::{Machine, RunResult, Second, ServerSide, Stretch, Totals};

impl RunResult {
    /// The fault completes a sentence that begins "cannot merge: ".
    pub fn merge(mut results: Vec<RunResult>) -> Result<RunResult, String> {
        results.sort_by_key(|result| result.started_unix_ms);
        let mut rest = results.into_iter();
        let mut whole = rest.next().ok_or("there are no results")?;
        let mut spans = Vec::from([span(&whole)]);
        whole.totals.generator_wall_s = wall_s(&whole.totals);
        for other in rest {
            if other.is_closed_loop() != whole.is_closed_loop() {
                return Err("latency counts from the intended moment in an open loop and from the send in a closed \
                            one; merge results of one kind"
                    .into());
            }
            let beside = spans.iter().any(|&(from, to)| from < span(&other).1 && span(&other).0 < to);
            spans.push(span(&other));
            whole.take(other, beside);
        }
        whole.totals.duration_s = covered_s(spans);
        Ok(whole)
    }

    /// `other` started later. `beside`: while another one was running.
    fn take(&mut self, other: RunResult, beside: bool) {
        let offset_s = (other.started_unix_ms - self.started_unix_ms) as f64 / 1000.0;
        for note in other.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        let same_target = self.target == other.target;
        join(&mut self.command, &other.command, "; ");
        join(&mut self.target, &other.target, ", ");
        take_machine(&mut self.machine, other.machine);
        take_totals(&mut self.totals, other.totals);
        self.histograms.latency_us.add(&other.histograms.latency_us);
        self.histograms.service_us.add(&other.histograms.service_us);
        self.histograms.lateness_us.add(&other.histograms.lateness_us);
        self.seconds = aligned(std::mem::take(&mut self.seconds), other.seconds, offset_s);
        take_steps(&mut self.steps, other.steps, offset_s);
        self.server = match (self.server.take(), other.server) {
            // One server seen twice at the same time: adding would count its answers double.
            (Some(ours), Some(theirs)) if same_target && beside => {
                Some(if answers(&theirs) > answers(&ours) { theirs } else { ours })
            }
            (Some(ours), Some(theirs)) => Some(added(ours, theirs)),
            (ours, theirs) => ours.or(theirs),
        };
    }
}

fn span(result: &RunResult) -> (f64, f64) {
    let from_s = result.started_unix_ms as f64 / 1000.0;
    (from_s, from_s + result.totals.duration_s)
}

/// Length of the union.
fn covered_s(mut spans: Vec<(f64, f64)>) -> f64 {
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut covered_s = 0.0;
    let mut end = f64::NEG_INFINITY;
    for (from, to) in spans {
        covered_s += (to - from.max(end)).max(0.0);
        end = end.max(to);
    }
    covered_s
}

fn join(ours: &mut String, theirs: &str, separator: &str) {
    if !ours.split(separator).any(|part| part == theirs) {
        ours.push_str(separator);
        ours.push_str(theirs);
    }
}

fn take_machine(ours: &mut Machine, theirs: Machine) {
    if ours.host.split(", ").any(|host| host == theirs.host) {
        return;
    }
    ours.cores = ours.cores.saturating_add(theirs.cores);
    ours.memory_mib = ours.memory_mib.saturating_add(theirs.memory_mib);
    join(&mut ours.host, &theirs.host, ", ");
    join(&mut ours.cpu, &theirs.cpu, ", ");
    join(&mut ours.kernel, &theirs.kernel, ", ");
}

fn wall_s(totals: &Totals) -> f64 {
    if totals.generator_wall_s > 0.0 { totals.generator_wall_s } else { totals.duration_s }
}

fn take_totals(ours: &mut Totals, theirs: Totals) {
    ours.generator_wall_s += wall_s(&theirs);
    // Named one by one, so that a new field cannot be forgotten here.
    let Totals {
        duration_s: _,
        due,
        sent,
        acknowledged,
        refused,
        unknown,
        retries,
        given_up,
        points_sent,
        points_acknowledged,
        sent_bytes,
        received_bytes,
        connections_opened,
        generator_cpu_s,
        generator_wall_s: _,
    } = theirs;
    for (sum, more) in [
        (&mut ours.due, due),
        (&mut ours.sent, sent),
        (&mut ours.acknowledged, acknowledged),
        (&mut ours.retries, retries),
        (&mut ours.given_up, given_up),
        (&mut ours.points_sent, points_sent),
        (&mut ours.points_acknowledged, points_acknowledged),
        (&mut ours.sent_bytes, sent_bytes),
        (&mut ours.received_bytes, received_bytes),
        (&mut ours.connections_opened, connections_opened),
    ] {
        *sum = sum.saturating_add(more);
    }
    for (status, count) in refused {
        let sum = ours.refused.entry(status).or_default();
        *sum = sum.saturating_add(count);
    }
    for (cause, count) in unknown {
        let sum = ours.unknown.entry(cause).or_default();
        *sum = sum.saturating_add(count);
    }
    ours.generator_cpu_s += generator_cpu_s;
}

/// Seconds of both on one clock; those that fall into the same whole second become one.
fn aligned(ours: Vec<Second>, theirs: Vec<Second>, offset_s: f64) -> Vec<Second> {
    let mut seconds: BTreeMap<u64, Second> = BTreeMap::new();
    let moved = theirs.into_iter().map(|second| Second { at_s: second.at_s + offset_s, ..second });
    for second in ours.into_iter().chain(moved) {
        match seconds.entry(second.at_s.round() as u64) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(second);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                let sum = place.get_mut();
                for (sum, more) in [
                    (&mut sum.due, second.due),
                    (&mut sum.sent, second.sent),
                    (&mut sum.acknowledged, second.acknowledged),
                    (&mut sum.refused, second.refused),
                    (&mut sum.unknown, second.unknown),
                ] {
                    *sum = sum.saturating_add(more);
                }
                for (greatest, other) in [
                    (&mut sum.p50_us, second.p50_us),
                    (&mut sum.p99_us, second.p99_us),
                    (&mut sum.max_us, second.max_us),
                    (&mut sum.lateness_p99_us, second.lateness_p99_us),
                ] {
                    *greatest = (*greatest).max(other);
                }
            }
        }
    }
    seconds.into_values().collect()
}

/// Processes that walked the same steps together loaded the server with the sum of their rates; other steps stand for
/// themselves.
fn take_steps(ours: &mut Vec<Stretch>, mut theirs: Vec<Stretch>, offset_s: f64) {
    for step in &mut theirs {
        step.from_s += offset_s;
        step.to_s += offset_s;
    }
    let together = !ours.is_empty()
        && ours.len() == theirs.len()
        && ours.iter().zip(&theirs).all(|(a, b)| {
            let common_s = a.to_s.min(b.to_s) - a.from_s.max(b.from_s);
            common_s > 0.5 * (a.to_s - a.from_s).min(b.to_s - b.from_s)
        });
    if together {
        for (sum, more) in ours.iter_mut().zip(theirs) {
            sum.rate += more.rate;
            sum.from_s = sum.from_s.min(more.from_s);
            sum.to_s = sum.to_s.max(more.to_s);
            sum.due = sum.due.saturating_add(more.due);
            sum.acknowledged = sum.acknowledged.saturating_add(more.acknowledged);
            sum.errors = sum.errors.saturating_add(more.errors);
            sum.latency_us.add(&more.latency_us);
        }
    } else {
        ours.extend(theirs);
        ours.sort_by(|a, b| a.from_s.total_cmp(&b.from_s));
    }
}

fn answers(server: &ServerSide) -> u64 {
    server.acknowledge.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

fn added(mut ours: ServerSide, theirs: ServerSide) -> ServerSide {
    for (bound, count) in theirs.acknowledge {
        match ours.acknowledge.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => ours.acknowledge.push((bound, count)),
        }
    }
    ours.acknowledge.sort_by(|a, b| a.0.total_cmp(&b.0));
    ours.cpu_s = match (ours.cpu_s, theirs.cpu_s) {
        (Some(ours), Some(theirs)) => Some(ours + theirs),
        (ours, theirs) => ours.or(theirs),
    };
    ours.rss_bytes = ours.rss_bytes.max(theirs.rss_bytes);
    ours
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn processes_beside_each_other_load_with_the_sum() {
        let a = fixture::steady("a", 10);
        let b = fixture::steady("a", 10);
        let (count, due) = (a.histograms.latency_us.0.len(), a.totals.due);
        let whole = RunResult::merge(vec![a, b.clone()]).unwrap();
        assert_eq!(whole.histograms.latency_us.0.len(), 2 * count);
        assert_eq!(whole.totals.due, 2 * due);
        assert_eq!(whole.totals.duration_s, 10.0);
        assert_eq!(whole.due_rate(), 2.0 * b.due_rate());
        assert_eq!(whole.seconds.len(), 10);
        assert_eq!(whole.seconds[3].due, 2 * b.seconds[3].due);
        assert_eq!(whole.seconds[3].p99_us, b.seconds[3].p99_us);
        // Two processes at half a core each are not one at a whole core.
        assert!((whole.totals.generator_cpu_share() - b.totals.generator_cpu_share()).abs() < 1e-9);
        // The same server, scraped by both, answered once.
        assert_eq!(answers(&whole.server.unwrap()), answers(&b.server.unwrap()));
        assert_eq!(whole.command, b.command);
    }

    #[test]
    fn runs_after_each_other_keep_their_rate_and_leave_a_gap() {
        let a = fixture::steady("a", 10);
        let mut b = fixture::steady("a", 10);
        b.started_unix_ms += 60_000;
        // Given in the wrong order.
        let whole = RunResult::merge(vec![b, a.clone()]).unwrap();
        assert_eq!(whole.started_unix_ms, a.started_unix_ms);
        assert_eq!(whole.totals.duration_s, 20.0);
        assert!((whole.due_rate() - a.due_rate()).abs() < 1e-9);
        assert_eq!(whole.seconds.len(), 20);
        assert_eq!((whole.seconds[9].at_s, whole.seconds[10].at_s), (9.0, 60.0));
        assert_eq!(answers(&whole.server.unwrap()), 2 * answers(&a.server.unwrap()));
    }

    #[test]
    fn merging_is_associative_in_what_is_added() {
        let parts: Vec<RunResult> = (0..3)
            .map(|n| {
                let mut part = fixture::steady("a", 5);
                part.started_unix_ms += n * 2_500;
                part
            })
            .collect();
        let at_once = RunResult::merge(parts.clone()).unwrap();
        let first = RunResult::merge(parts[..2].to_vec()).unwrap();
        let in_turn = RunResult::merge(vec![first, parts[2].clone()]).unwrap();
        assert_eq!(at_once.totals.duration_s, 10.0);
        assert_eq!(at_once.to_json(), in_turn.to_json());
    }

    #[test]
    fn steps_walked_together_add_their_rates_and_others_stand_apart() {
        let a = fixture::sweep("a");
        let mut beside = a.clone();
        beside.started_unix_ms += 100;
        let together = RunResult::merge(vec![a.clone(), beside]).unwrap();
        assert_eq!(together.steps.len(), a.steps.len());
        assert_eq!(together.steps[0].rate, 2.0 * a.steps[0].rate);
        assert_eq!(together.steps[0].latency_us.0.len(), 2 * a.steps[0].latency_us.0.len());
        let mut after = a.clone();
        after.started_unix_ms += 1_000_000;
        let apart = RunResult::merge(vec![a.clone(), after]).unwrap();
        assert_eq!(apart.steps.len(), 2 * a.steps.len());
    }

    #[test]
    fn machines_are_joined_and_kinds_of_loops_are_not() {
        let a = fixture::steady("a", 2);
        let mut b = fixture::steady("b", 2);
        b.machine.host = "elsewhere".into();
        let whole = RunResult::merge(vec![a.clone(), b.clone()]).unwrap();
        assert_eq!(whole.machine.host, format!("{}, elsewhere", a.machine.host));
        assert_eq!(whole.machine.cores, 2 * a.machine.cores);
        b.plan.shape = crate::plan::Shape::Closed { duration_ms: 2_000 };
        let fault = RunResult::merge(vec![a, b]).unwrap_err();
        assert!(fault.contains("merge results of one kind"), "{fault}");
        assert_eq!(RunResult::merge(Vec::new()).unwrap_err(), "there are no results");
    }
}
