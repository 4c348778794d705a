//! What a restart takes from the aggregate log: M, F, the era, and the last results of windows above F.

use super::{
    aggregate_log::Kind,
    encode::{self, EraRecord, Malformed, MarkRecord, RecordView},
    record::WindowRecord,
};
use metricstream_shards::window::protocol::BEFORE_ALL_NS;
use std::collections::HashMap;

const NS_PER_MS: i64 = 1_000_000;

/// Fed with the log's records in order. It needs no more than the last two floors' worth of the log, but may be given
/// all of it.
#[derive(Debug, Default)]
pub struct Recovery {
    recovered: Recovered,
    latest: HashMap<Identity, WindowRecord>,
}

type Identity = (u32, i64, Option<Box<str>>, Box<[u8]>);

/// What [`super::ReducerCore`] starts from.
#[derive(Clone, Debug)]
pub struct Recovered {
    pub m_ns: i64,
    pub floor_ns: i64,
    pub era: u32,
    pub epoch: u64,
    /// Latest result of every window above F, in no order
    pub results: Vec<WindowRecord>,
}

impl Default for Recovered {
    fn default() -> Recovered {
        Recovered { m_ns: BEFORE_ALL_NS, floor_ns: BEFORE_ALL_NS, era: 0, epoch: 0, results: Vec::new() }
    }
}

impl Recovery {
    /// A record that is refused changes nothing: its windows are compared with nothing, and so written again.
    pub fn feed(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), Malformed> {
        match kind {
            Kind::Aggregates => {
                let floor_ns = self.recovered.floor_ns;
                let latest = &mut self.latest;
                encode::decode_aggregates(bytes, &mut |view: RecordView<'_>| {
                    let record = view.to_record();
                    if record.end_ms().saturating_mul(NS_PER_MS) <= floor_ns {
                        return;
                    }
                    let identity = (record.window_s, record.start_ms, record.rule.clone(), record.key.clone());
                    let newer = |old: &WindowRecord| (old.era, old.revision) <= (record.era, record.revision);
                    if latest.get(&identity).is_none_or(newer) {
                        latest.insert(identity, record);
                    }
                })
            }
            Kind::Mark => {
                let mark = MarkRecord::decode(bytes)?;
                let now = &mut self.recovered;
                (now.m_ns, now.era, now.epoch) = (mark.m_ns, mark.era, now.epoch.max(mark.epoch));
                if mark.floor_ns > now.floor_ns {
                    let floor_ns = mark.floor_ns;
                    self.latest.retain(|_, record| record.end_ms().saturating_mul(NS_PER_MS) > floor_ns);
                }
                now.floor_ns = mark.floor_ns;
                Ok(())
            }
            Kind::Era => {
                let era = EraRecord::decode(bytes)?;
                let now = &mut self.recovered;
                (now.era, now.epoch) = (era.era, now.epoch.max(era.epoch));
                // The era's own M and F come with the mark record that is appended with it. Should that one be missing,
                // nothing was stamped in the era yet.
                now.m_ns = now.m_ns.min(era.to_ns);
                now.floor_ns = now.floor_ns.min(era.to_ns);
                Ok(())
            }
        }
    }

    pub fn finish(self) -> Recovered {
        Recovered { results: self.latest.into_values().collect(), ..self.recovered }
    }
}
