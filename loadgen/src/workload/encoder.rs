//! What a protocol is to the workload: a file that says how points become a body, and what its answers mean.

use super::bad::Fault;
use super::values::Decimal;

/// The text of a series, in the two parts between which a point's own text goes.
#[derive(Clone, Copy, Debug)]
pub struct SeriesText<'a> {
    pub before: &'a [u8],
    pub after: &'a [u8],
    /// The value of the tag `life`, which both parts leave out
    pub life: Option<u64>,
}

pub trait Encoder {
    /// Appends the two parts of a series' text; answers the length of the first. Names and tags need no escaping.
    fn prepare(out: &mut Vec<u8>, name: &str, tags: &[(String, String)]) -> usize;

    fn begin(out: &mut Vec<u8>);

    /// One point; `first` of its body or not.
    fn point(out: &mut Vec<u8>, first: bool, series: SeriesText<'_>, value: Decimal, timestamp_ns: i64);

    /// One point that a server must refuse for this fault, and nothing else.
    fn bad_point(out: &mut Vec<u8>, first: bool, series: SeriesText<'_>, fault: Fault, timestamp_ns: i64);

    fn end(out: &mut Vec<u8>);

    /// `body` may be cut.
    fn answer(status: u16, body: &[u8]) -> Answer;
}

/// What a server's answer means for the points of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All good points were kept (bad ones, if any, were refused).
    Acknowledged,
    /// Nothing was kept.
    Refused,
}

#[inline]
pub(super) fn integer(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}
