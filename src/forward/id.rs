//! The id of a record: what tells a second copy from a second point. The one place that writes it.
//!
//! `<node>-<log>-<epoch>-<number>`: the first 16 hexadecimal digits of the node id, the log (`0`, `1`, .. or `aggregate`), the
//! epoch of the start that wrote the record, and the number of the point in its log. All of it stands in the log beside the
//! point, so the id is the same whoever sends it and however often: the sink again after a crash, a start with
//! fewer shards that serves the log of one that is gone, a replay, a dead letter that is retried.
//!
//! Why the epoch, when numbers rise without gaps: a number can be given twice. The log of a shard that is gone is
//! recycled, and begins with number 0 when the shard comes back; a log whose end a disk has lost goes on where it can still be
//! read. A consumer that keeps the first of equal ids would then throw new points away. An epoch is given to one
//! start of one data directory only ([`crate::process`] takes the greatest of all logs and adds one).

use super::share::log_name;

/// Writes the ids of one node.
#[derive(Clone, Debug)]
pub struct Ids {
    /// With its hyphen
    node: String,
}

impl Ids {
    pub fn new(node_id: u128) -> Ids {
        Ids { node: format!("{:016x}-", (node_id >> 64) as u64) }
    }

    /// Appends the id of a point or window. `log`: the log's name.
    #[inline]
    pub fn put(&self, log: &str, epoch: u64, number: u64, out: &mut Vec<u8>) {
        self.put_prefix(log, epoch, out);
        out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// All but the number: the same for all points of a start.
    pub fn put_prefix(&self, log: &str, epoch: u64, out: &mut Vec<u8>) {
        for part in [&self.node, log, "-", itoa::Buffer::new().format(epoch), "-"] {
            out.extend_from_slice(part.as_bytes());
        }
    }

    pub fn text(&self, log_id: u32, epoch: u64, number: u64) -> String {
        let mut out = Vec::new();
        self.put(&log_name(log_id), epoch, number, &mut out);
        String::from_utf8(out).expect("ASCII")
    }
}

/// Whether an id is that of a window; others are raw points'.
pub fn is_of_a_window(id: &str) -> bool {
    id.split('-').nth(1) == Some("aggregate")
}

#[cfg(test)]
mod tests {
    use super::*;
    use metricstream_shards::log::AGGREGATE_LOG_ID;

    #[test]
    fn an_id_names_node_log_epoch_and_number() {
        let ids = Ids::new(0xAB << 64 | 0xCD);
        assert_eq!(ids.text(3, 7, 42), "00000000000000ab-3-7-42");
        assert_eq!(ids.text(AGGREGATE_LOG_ID, 1, 0), "00000000000000ab-aggregate-1-0");
        assert!(is_of_a_window(&ids.text(AGGREGATE_LOG_ID, 1, 0)) && !is_of_a_window(&ids.text(0, 1, 0)));
    }

    #[test]
    fn no_two_places_have_one_id() {
        let ids = Ids::new(1 << 64);
        let places = [(1, 1, 11), (1, 11, 1), (11, 1, 1), (1, 1, 1), (1, 1, 111), (AGGREGATE_LOG_ID, 1, 1)];
        let distinct: std::collections::HashSet<String> = places.iter().map(|&(l, e, n)| ids.text(l, e, n)).collect();
        assert_eq!(distinct.len(), places.len());
    }
}
