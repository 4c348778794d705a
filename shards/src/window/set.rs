//! The state of one series in one base window: its points with their identities, so that each is counted once.
//!
//! A point with an explicit timestamp is identified by (series, timestamp). A client that missed an answer sends it
//! again, perhaps in a larger batch, perhaps to another shard: the repeat is counted once. Of two values for one
//! identity the greater wins, which does not depend on order. Points without identity are kept and never compared.
//!
//! Up to [`ENTRIES_MAX`] points are kept one by one; beyond that, or beyond a budget, a cell becomes a [`Summary`],
//! which cannot tell repeats and says so with [`Cell::is_unchecked`] when it holds identified points. As long as the
//! distinct points are at most `ENTRIES_MAX`, a cell's results depend on the set of points alone: not on order, not
//! on how the points came over shards and merges.
//!
//! Memory: a cell is 24 bytes and its first point lies inside it, which is all that most series need in 10 s. The
//! second point allocates room for four entries of 16 bytes.

use super::{
    prefetch::prefetch,
    summary::{Aggregates, Detail, Summary},
};

/// Points kept one by one.
pub const ENTRIES_MAX: usize = 64;

/// Tells points of one cell apart.
///
/// Bits 0..34 are the timestamp's offset in the window in ns; bits 34..63 are reserved for a weight, 0 means 1; bit 63
/// says that bits 0..63 are a hash of (series, timestamp) instead, for cells that several series share. All ones is
/// "no identity".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Identity(u64);

impl Identity {
    /// Sorts after all others.
    pub const ANONYMOUS: Identity = Identity(u64::MAX);
    /// Longest base window whose offsets fit.
    pub const OFFSET_MAX_NS: u64 = (1 << 34) - 1;
    const HASHED: u64 = 1 << 63;

    /// Of an offset in the window, in ns.
    #[inline]
    pub const fn at_offset(offset_ns: u64) -> Identity {
        debug_assert!(offset_ns <= Self::OFFSET_MAX_NS);
        Identity(offset_ns & Self::OFFSET_MAX_NS)
    }

    /// Of a point in a cell that several series share. Everyone who folds must agree on it, so the hash has no secret;
    /// a client who makes two of its own points collide loses one of its own.
    pub fn hashed(series_key: &[u8], timestamp_ns: i64) -> Identity {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let fold = |a: u64, b: u64| {
            let product = (a ^ MULTIPLIER) as u128 * (b ^ 0xd6e8_feb8_6659_fd93) as u128;
            product as u64 ^ (product >> 64) as u64
        };
        let mut hash = fold(timestamp_ns as u64, series_key.len() as u64);
        for chunk in series_key.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = fold(hash ^ u64::from_le_bytes(word), MULTIPLIER.rotate_left(17));
        }
        let hash = fold(hash, MULTIPLIER) | Self::HASHED;
        Identity(if hash == u64::MAX { hash - 1 } else { hash })
    }

    #[inline]
    pub const fn is_anonymous(self) -> bool {
        self.0 == u64::MAX
    }
}

/// One kept point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    pub identity: Identity,
    /// Finite, and +0 for -0
    pub value: f64,
}

/// What became of one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is new, or nobody can tell (no identity, or the cell is a summary)
    Counted,
    /// Known, with the same value
    Repeated,
    /// Known with another value; the greater one stays
    Conflict,
}

/// What became of the points of a merged cell: `counted + repeated` is what the other cell held; conflicts are among
/// the repeated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub counted: u64,
    pub repeated: u64,
    pub conflicts: u64,
}

/// The points of one series in one base window.
#[derive(Clone, Debug)]
pub struct Cell(Form);

#[derive(Clone, Debug)]
enum Form {
    One(Entry),
    /// Sorted by identity, the anonymous ones last in order of arrival. Empty only before the first point.
    Set(Vec<Entry>),
    Summary(Box<Summary>),
}

impl Default for Cell {
    fn default() -> Cell {
        Cell(Form::Set(Vec::new()))
    }
}

impl Cell {
    #[inline]
    pub fn one(identity: Identity, value: f64) -> Cell {
        Cell(Form::One(Entry { identity, value: value + 0.0 }))
    }

    #[inline]
    pub fn insert(&mut self, identity: Identity, value: f64, detail: Detail) -> Inserted {
        self.insert_within(identity, value, ENTRIES_MAX, detail)
    }

    /// Inserts, and becomes a summary (of this detail) rather than hold more than `entries_max` entries.
    #[inline]
    pub fn insert_within(&mut self, identity: Identity, value: f64, entries_max: usize, detail: Detail) -> Inserted {
        let value = value + 0.0; // -0 becomes +0
        match &mut self.0 {
            Form::Summary(summary) => {
                summary.add(value);
                if !identity.is_anonymous() {
                    summary.mark_unchecked();
                }
                Inserted::Counted
            }
            Form::One(entry) => {
                if entry.identity == identity && !identity.is_anonymous() {
                    return settle(entry, value);
                }
                let mut entries = Vec::with_capacity(4);
                entries.push(*entry);
                self.0 = Form::Set(entries);
                self.insert_in_set(Entry { identity, value }, entries_max, detail)
            }
            Form::Set(_) => self.insert_in_set(Entry { identity, value }, entries_max, detail),
        }
    }

    fn insert_in_set(&mut self, new: Entry, entries_max: usize, detail: Detail) -> Inserted {
        let Form::Set(entries) = &mut self.0 else { unreachable!("callers have matched a set") };
        // Points mostly come in the order of their timestamps, and anonymous ones have their place at the end.
        let at = match entries.last() {
            Some(last) if last.identity > new.identity => entries.partition_point(|e| e.identity < new.identity),
            Some(last) if last.identity == new.identity && !new.identity.is_anonymous() => entries.len() - 1,
            _ => entries.len(),
        };
        let held = entries.len();
        match entries.get_mut(at) {
            Some(entry) if entry.identity == new.identity && !new.identity.is_anonymous() => settle(entry, new.value),
            _ if held < entries_max => {
                entries.insert(at, new);
                Inserted::Counted
            }
            _ => {
                self.make_summary(detail);
                self.insert_within(new.identity, new.value, entries_max, detail)
            }
        }
    }

    /// Takes in all points of another cell of the same series and window. Its counts say what became of `other`'s.
    pub fn merge(&mut self, other: Cell, detail: Detail) -> Merged {
        if self.is_empty() {
            let counted = other.count();
            *self = other;
            return Merged { counted, ..Merged::default() };
        }
        match other.0 {
            Form::Summary(theirs) => {
                let counted = theirs.count();
                self.make_summary(detail).merge(&theirs);
                Merged { counted, ..Merged::default() }
            }
            Form::One(entry) => self.merge_entries(&[entry], detail),
            Form::Set(entries) => self.merge_entries(&entries, detail),
        }
    }

    fn merge_entries(&mut self, entries: &[Entry], detail: Detail) -> Merged {
        let mut merged = Merged::default();
        for entry in entries {
            match self.insert(entry.identity, entry.value, detail) {
                Inserted::Counted => merged.counted += 1,
                Inserted::Repeated => merged.repeated += 1,
                Inserted::Conflict => {
                    merged.repeated += 1;
                    merged.conflicts += 1;
                }
            }
        }
        merged
    }

    /// Gives up the identities. Marked unchecked when there were any.
    fn make_summary(&mut self, detail: Detail) -> &mut Summary {
        if !matches!(self.0, Form::Summary(_)) {
            let mut summary = Box::new(Summary::new(detail));
            for entry in self.entries() {
                summary.add(entry.value);
                if !entry.identity.is_anonymous() {
                    summary.mark_unchecked();
                }
            }
            self.0 = Form::Summary(summary);
        }
        match &mut self.0 {
            Form::Summary(summary) => summary,
            _ => unreachable!("made a summary just above"),
        }
    }

    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Form::Set(entries) if entries.is_empty())
    }

    /// Points counted.
    pub fn count(&self) -> u64 {
        match &self.0 {
            Form::Summary(summary) => summary.count(),
            _ => self.entries().len() as u64,
        }
    }

    /// Identified points may have been counted twice.
    pub fn is_unchecked(&self) -> bool {
        matches!(&self.0, Form::Summary(summary) if summary.is_unchecked())
    }

    /// The kept points; none when the cell is a summary.
    pub fn entries(&self) -> &[Entry] {
        match &self.0 {
            Form::One(entry) => std::slice::from_ref(entry),
            Form::Set(entries) => entries,
            Form::Summary(_) => &[],
        }
    }

    pub fn summary(&self) -> Option<&Summary> {
        match &self.0 {
            Form::Summary(summary) => Some(summary),
            _ => None,
        }
    }

    /// The window's results; `None` of no points. The detail is that of all inserts and merges.
    pub fn aggregates(&self, detail: Detail) -> Option<Aggregates> {
        match &self.0 {
            Form::Summary(summary) => summary.aggregates(),
            _ => {
                let entries = self.entries();
                if entries.len() <= ENTRIES_MAX {
                    let mut values = [0.0; ENTRIES_MAX];
                    let values = &mut values[..entries.len()];
                    values.iter_mut().zip(entries).for_each(|(value, entry)| *value = entry.value);
                    Aggregates::of(values, detail)
                } else {
                    Aggregates::of(&mut entries.iter().map(|entry| entry.value).collect::<Vec<_>>(), detail)
                }
            }
        }
    }

    /// Bytes beyond the cell's own 24.
    #[inline]
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Form::One(_) => 0,
            Form::Set(entries) => entries.capacity() * size_of::<Entry>(),
            Form::Summary(summary) => size_of::<Summary>() + summary.heap_bytes(),
        }
    }

    /// Asks for what an insert will read beyond the cell.
    #[inline]
    pub(super) fn prefetch_points(&self) {
        match &self.0 {
            Form::One(_) => {}
            Form::Set(entries) => prefetch(entries.as_ptr_range().end),
            Form::Summary(summary) => summary.prefetch(),
        }
    }

    /// Asks for the count that an insert of this value into a summary will change.
    #[inline]
    pub(super) fn prefetch_bin(&self, value: f64) {
        if let Form::Summary(summary) = &self.0 {
            summary.prefetch_bin(value);
        }
    }
}

/// Two values for one identity: the greater stays, so that order does not matter.
fn settle(entry: &mut Entry, value: f64) -> Inserted {
    if entry.value == value {
        return Inserted::Repeated;
    }
    if value > entry.value {
        entry.value = value;
    }
    Inserted::Conflict
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const Q: Detail = Detail::Quantiles;

    fn identity() -> impl Strategy<Value = Identity> {
        prop_oneof![
            6 => (0u64..50).prop_map(|n| Identity::at_offset(n * 200_000_000)),
            1 => Just(Identity::ANONYMOUS),
            1 => (0i64..5).prop_map(|n| Identity::hashed(b"key", n)),
        ]
    }

    fn cell_of(points: &[(Identity, f64)]) -> Cell {
        let mut cell = Cell::default();
        points.iter().for_each(|&(identity, value)| {
            cell.insert(identity, value, Q);
        });
        cell
    }

    fn same(a: &Cell, b: &Cell) -> bool {
        match (a.aggregates(Q), b.aggregates(Q)) {
            (Some(x), Some(y)) => x.same_bits(&y) && a.is_unchecked() == b.is_unchecked(),
            (x, y) => x.is_none() && y.is_none(),
        }
    }

    #[test]
    fn a_cell_is_24_bytes_and_its_first_point_needs_no_more() {
        assert_eq!(size_of::<Cell>(), 24);
        assert_eq!(Cell::one(Identity::at_offset(5), 1.0).heap_bytes(), 0);
        assert_eq!(Cell::default().heap_bytes(), 0);
    }

    #[test]
    fn identities_of_different_kinds_never_meet() {
        let largest = Identity::at_offset(Identity::OFFSET_MAX_NS);
        for n in 0..1000 {
            let hashed = Identity::hashed(b"some key", n);
            assert!(hashed > largest && hashed < Identity::ANONYMOUS);
            assert_ne!(hashed, Identity::hashed(b"some kez", n));
            assert_ne!(hashed, Identity::hashed(b"some key\0", n));
            assert_ne!(hashed, Identity::hashed(b"some key", n + 1));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_cell_holds_the_greatest_value_of_each_identity_in_any_order_and_grouping(
            mut points in prop::collection::vec((identity(), prop::sample::select(vec![-0.0, 0.0, 1.0, 1e300, -2.5, 0.1])), 0..64),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut expected: Vec<f64> = Vec::new();
            let mut known: std::collections::BTreeMap<Identity, f64> = Default::default();
            for &(identity, value) in &points {
                if identity.is_anonymous() {
                    expected.push(value + 0.0);
                } else {
                    let greatest = known.entry(identity).or_insert(value + 0.0);
                    *greatest = greatest.max(value + 0.0);
                }
            }
            expected.extend(known.values());
            let whole = cell_of(&points);
            prop_assert_eq!(whole.count(), expected.len() as u64);
            let mut summary = Summary::new(Q);
            expected.iter().for_each(|&v| summary.add(v));
            let (from_set, from_summary) = (whole.aggregates(Q), summary.aggregates());
            prop_assert_eq!(from_set.is_some(), from_summary.is_some());
            if let (Some(a), Some(b)) = (from_set, from_summary) {
                prop_assert!(a.same_bits(&b), "{:?} {:?}", a, b);
            }

            let at = if points.is_empty() { 0 } else { cut.index(points.len()) };
            let (mut left, right) = (cell_of(&points[..at]), cell_of(&points[at..]));
            let held = right.count();
            let merged = left.merge(right.clone(), Q);
            prop_assert!(same(&left, &whole));
            prop_assert_eq!(merged.counted + merged.repeated, held);
            let mut other_way = right;
            other_way.merge(cell_of(&points[..at]), Q);
            prop_assert!(same(&other_way, &whole));
            points.reverse();
            prop_assert!(same(&cell_of(&points), &whole));
        }

        #[test]
        fn without_identities_a_cell_of_any_size_is_exact(
            values in prop::collection::vec(-1e3..1e3f64, 1..200), cut in any::<prop::sample::Index>(),
        ) {
            let points: Vec<_> = values.iter().map(|&v| (Identity::ANONYMOUS, v)).collect();
            let at = cut.index(points.len());
            let mut merged = cell_of(&points[at..]);
            merged.merge(cell_of(&points[..at]), Q);
            let mut values = values.clone();
            let expected = Aggregates::of(&mut values, Q).expect("not empty");
            prop_assert!(merged.aggregates(Q).expect("not empty").same_bits(&expected));
            prop_assert!(cell_of(&points).aggregates(Q).expect("not empty").same_bits(&expected));
            prop_assert!(!merged.is_unchecked());
        }
    }

    #[test]
    fn the_64th_point_is_still_checked_and_the_65th_is_not() {
        let mut cell = Cell::default();
        for n in 0..64 {
            assert_eq!(cell.insert(Identity::at_offset(n), n as f64, Q), Inserted::Counted);
        }
        assert_eq!(cell.insert(Identity::at_offset(3), 3.0, Q), Inserted::Repeated);
        assert_eq!(cell.insert(Identity::at_offset(3), 2.0, Q), Inserted::Conflict);
        assert_eq!(cell.entries()[3].value, 3.0, "the greater value stays");
        assert!(!cell.is_unchecked());
        cell.insert(Identity::at_offset(64), 0.0, Q);
        assert!(cell.is_unchecked());
        assert_eq!(cell.count(), 65);
        assert_eq!(cell.insert(Identity::at_offset(3), 3.0, Q), Inserted::Counted, "it can no longer tell");
    }
}
