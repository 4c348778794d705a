//! Points and bodies, as a pure function of the plan.

use crate::plan;

/// A batch of one client: its points follow from these three and the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Batch {
    pub client: u32,
    /// Counts from 0 per client.
    pub number: u64,
    /// Its intended moment, Unix ns.
    pub stamp_ns: i64,
}

/// What a body came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    pub points: u32,
    /// Of these, points a server must refuse
    pub bad: u32,
}

pub struct Workload {}

impl Workload {
    pub fn new(_plan: &plan::Plan) -> Workload {
        unimplemented!()
    }

    /// Appends one whole body with the points of these batches (one client's, oldest first).
    pub fn body(&self, _out: &mut Vec<u8>, _batches: &[Batch]) -> Rendered {
        unimplemented!()
    }
}

/// What a server's answer means for the points of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All good points were kept (bad ones, if any, were refused).
    Acknowledged,
    /// Nothing was kept.
    Refused,
}

/// Reads an answer as the protocol defines it; `body` may be cut at 4 KiB.
pub fn answer(_protocol: plan::Protocol, _status: u16, _body: &[u8]) -> Answer {
    unimplemented!()
}
