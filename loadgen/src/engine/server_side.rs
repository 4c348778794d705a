//! What the server says of itself, before and after a run: its acknowledgement histogram, CPU time and memory.

use std::fs;
use std::time::Duration;

use super::Options;
use crate::commands::Failure;
use crate::result::ServerSide;

/// The appliance's name for it; another server's histogram is taken if its name ends alike.
const HISTOGRAM: &str = "acknowledge_seconds_bucket";

/// Cumulative buckets over all of the server's shards, and CPU seconds.
#[derive(Default)]
pub struct Look {
    buckets: Vec<(f64, u64)>,
    cpu_s: Option<f64>,
    rss_bytes: Option<u64>,
}

pub fn look(options: &Options) -> Result<Look, Failure> {
    look_at(options.server_metrics.as_deref(), options.server_pid)
}

fn look_at(metrics: Option<&str>, pid: Option<u32>) -> Result<Look, Failure> {
    let mut look = Look::default();
    if let Some(base) = metrics {
        let url = if base.ends_with("/metrics") {
            base.to_owned()
        } else {
            format!("{}/metrics", base.trim_end_matches('/'))
        };
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build().into();
        let text =
            agent.get(&url).call().and_then(|mut answer| answer.body_mut().read_to_string()).map_err(|error| {
                Failure(format!("the server's own figures cannot be read from {url}: {error}; check --server-metrics"))
            })?;
        look.buckets = buckets(&text);
    }
    if let Some(pid) = pid {
        let (cpu_s, rss_bytes) = process(pid)
            .ok_or_else(|| Failure(format!("no process {pid} can be seen; check --server-pid, or leave it out")))?;
        look.cpu_s = Some(cpu_s);
        look.rss_bytes = Some(rss_bytes);
    }
    Ok(look)
}

/// What happened since `before`; `None` when nothing was to be looked at. A server that is gone by now leaves what is
/// known: a crash is a finding, not a reason to lose the run.
pub fn since(before: Look, metrics: Option<&str>, pid: Option<u32>) -> Result<Option<ServerSide>, Failure> {
    if metrics.is_none() && pid.is_none() {
        return Ok(None);
    }
    let after = look_at(metrics, pid).unwrap_or_else(|failure| {
        eprintln!("warning: {failure}");
        Look::default()
    });
    let mut acknowledge = Vec::new();
    let mut below = 0;
    for (bound, count) in &after.buckets {
        let earlier = before.buckets.iter().find(|(other, _)| other == bound).map_or(0, |(_, count)| *count);
        let cumulative = count.saturating_sub(earlier);
        acknowledge.push((*bound, cumulative.saturating_sub(below)));
        below = below.max(cumulative);
    }
    let cpu_s = after.cpu_s.zip(before.cpu_s).map(|(after, before)| after - before);
    Ok(Some(ServerSide { acknowledge, cpu_s, rss_bytes: after.rss_bytes }))
}

/// Cumulative counts by upper bound, summed over all other labels, ascending. The open last bucket is left out when it
/// holds no more than the one before (JSON has no infinity): what it holds beyond goes to the highest bound.
fn buckets(text: &str) -> Vec<(f64, u64)> {
    let mut all: Vec<(f64, u64)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once('}') else { continue };
        if !name.ends_with(HISTOGRAM) {
            continue;
        }
        let bound = labels.split(',').find_map(|label| label.trim().strip_prefix("le=\"")?.strip_suffix('"'));
        let Some(Ok(bound)) = bound.map(str::parse::<f64>) else { continue };
        let Some(Ok(count)) = value.split_whitespace().next().map(str::parse::<f64>) else { continue };
        match all.iter_mut().find(|(other, _)| *other == bound) {
            Some((_, sum)) => *sum += count as u64,
            None => all.push((bound, count as u64)),
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    if all.last().is_some_and(|(bound, _)| bound.is_infinite()) {
        let (_, whole) = all.pop().expect("just seen");
        if let Some(last) = all.last_mut() {
            last.1 = last.1.max(whole);
        }
    }
    all
}

/// CPU seconds (user and system) and resident bytes.
fn process(pid: u32) -> Option<(f64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // SAFETY: plain library call without arguments that could be wrong.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let time = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let cpu_s = (time(11)? + time(12)?) / ticks;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some((cpu_s, rss.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# TYPE metricstream_acknowledge_seconds histogram\n\
        metricstream_acknowledge_seconds_bucket{shard=\"0\",le=\"0.001\"} 5\n\
        metricstream_acknowledge_seconds_bucket{shard=\"0\",le=\"0.01\"} 6\n\
        metricstream_acknowledge_seconds_bucket{shard=\"0\",le=\"+Inf\"} 6\n";
    const AFTER: &str = "metricstream_acknowledge_seconds_bucket{shard=\"0\",le=\"0.001\"} 10\n\
        metricstream_acknowledge_seconds_bucket{shard=\"1\",le=\"0.001\"} 1\n\
        metricstream_acknowledge_seconds_bucket{shard=\"0\",le=\"0.01\"} 14\n\
        metricstream_acknowledge_seconds_bucket{shard=\"1\",le=\"0.01\"} 2\n\
        metricstream_acknowledge_seconds_bucket{shard=\"0\",le=\"+Inf\"} 15\n\
        metricstream_acknowledge_seconds_bucket{shard=\"1\",le=\"+Inf\"} 2\n\
        metricstream_acknowledge_seconds_count{shard=\"1\"} 2\n";

    #[test]
    fn buckets_of_all_shards_are_summed_and_the_open_one_joins_the_last() {
        assert_eq!(buckets(BEFORE), [(0.001, 5), (0.01, 6)]);
        assert_eq!(buckets(AFTER), [(0.001, 11), (0.01, 17)]);
        assert!(buckets("nonsense{ 5\nx_acknowledge_seconds_bucket{le=\"x\"} 1\n").is_empty());
    }

    #[test]
    fn our_own_process_can_be_seen() {
        let (cpu_s, rss_bytes) = process(std::process::id()).expect("it is there");
        assert!(cpu_s >= 0.0 && rss_bytes > 100_000);
        assert!(process(u32::MAX).is_none());
    }
}
