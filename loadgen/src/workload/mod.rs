//! Points and bodies, as a pure function of the plan.
//!
//! [`Workload::points`] makes the points of a batch, [`Workload::body`] their bytes: both go through one walk, so that
//! what `verify` expects is what was sent. Nothing is allocated for a point: the text of every series is prepared.

pub mod bad;
pub mod client;
pub mod encoder;
pub mod hash;
pub mod json;
pub mod line;
pub mod series;
pub mod timestamps;
pub mod values;

use bad::Fault;
pub use encoder::Answer;
use encoder::{Encoder, SeriesText};
use json::Json;
use line::Line;
use series::{Series, Slot};
use values::Decimal;

use crate::plan::{self, Protocol};

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

/// A point as sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// In its batch, from 0
    pub index: u32,
    pub slot: Slot,
    pub value: Decimal,
    pub timestamp_ns: i64,
    /// What a server must refuse it for
    pub fault: Option<Fault>,
}

pub struct Workload {
    protocol: Protocol,
    epoch_ns: i64,
    batch_points: u32,
    series: Series,
    values: values::Values,
    timestamps: timestamps::Timestamps,
    bad: bad::Bad,
    text: Text,
}

/// The prepared text of all series, one after the other.
#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// Of each series: where it begins, and the length of its first part
    at: Vec<(u64, u32)>,
    /// Of the longest
    bytes_max: usize,
}

impl Text {
    fn new<E: Encoder>(series: &Series) -> Text {
        let mut text = Text::default();
        for client in 0..series.clients() {
            for number in 0..series.slots(client) {
                let slot = Slot { client, number, life: 0 };
                let start = text.bytes.len();
                let before = E::prepare(&mut text.bytes, &series.name(slot), &series.tags(slot));
                text.at.push((start as u64, before as u32));
                text.bytes_max = text.bytes_max.max(text.bytes.len() - start);
            }
        }
        text.at.push((text.bytes.len() as u64, 0));
        text.bytes.shrink_to_fit();
        text
    }

    #[inline]
    fn of(&self, series: u64, life: Option<u64>) -> SeriesText<'_> {
        let series = series as usize;
        let (start, before) = self.at[series];
        let (before, after) = self.bytes[start as usize..self.at[series + 1].0 as usize].split_at(before as usize);
        SeriesText { before, after, life }
    }
}

impl Workload {
    pub fn new(plan: &plan::Plan) -> Workload {
        let mut workload = Workload::without_text(plan);
        workload.text = match workload.protocol {
            Protocol::Line => Text::new::<Line>(&workload.series),
            Protocol::Json => Text::new::<Json>(&workload.series),
        };
        workload
    }

    /// Only for [`Workload::points`], not for bodies: keeps no text.
    pub fn without_text(plan: &plan::Plan) -> Workload {
        let load = &plan.workload;
        Workload {
            protocol: load.protocol,
            epoch_ns: plan.epoch_ns,
            batch_points: load.batch_points.max(1),
            series: Series::new(plan),
            values: values::Values::new(plan.seed, load.values),
            timestamps: timestamps::Timestamps::new(plan.seed, load.timestamps),
            bad: bad::Bad::new(plan.seed, load.bad_share),
            text: Text::default(),
        }
    }

    pub fn series(&self) -> &Series {
        &self.series
    }

    pub fn batch_points(&self) -> u32 {
        self.batch_points
    }

    /// Appends one whole body with the points of these batches (one client's, oldest first).
    pub fn body(&self, out: &mut Vec<u8>, batches: &[Batch]) -> Rendered {
        match self.protocol {
            Protocol::Line => self.render::<Line>(out, batches),
            Protocol::Json => self.render::<Json>(out, batches),
        }
    }

    fn render<E: Encoder>(&self, out: &mut Vec<u8>, batches: &[Batch]) -> Rendered {
        // A value and a timestamp take 40 bytes, what goes round them another 40.
        out.reserve(batches.len() * self.batch_points as usize * (self.text.bytes_max + 100) + 32);
        let mut rendered = Rendered::default();
        let has_life = self.series.has_churn();
        E::begin(out);
        for batch in batches {
            self.walk(*batch, |point, series| {
                let text = self.text.of(series, has_life.then_some(point.slot.life));
                let first = rendered.points == 0;
                rendered.points += 1;
                match point.fault {
                    None => E::point(out, first, text, point.value, point.timestamp_ns),
                    Some(fault) => {
                        rendered.bad += 1;
                        E::bad_point(out, first, text, fault, point.timestamp_ns);
                    }
                }
            });
        }
        E::end(out);
        rendered
    }

    /// The points of a batch as they stand in the body, bad ones too.
    #[inline]
    pub fn points(&self, batch: Batch, mut visit: impl FnMut(Point)) {
        self.walk(batch, |point, _| visit(point));
    }

    /// One point of a batch.
    pub fn point(&self, batch: Batch, index: u32) -> Point {
        let number = batch.number * u64::from(self.batch_points) + u64::from(index);
        let slots = self.series.slots(batch.client);
        let clock_ns = self.timestamps.clock(batch.client, batch.stamp_ns);
        self.make(batch, index, clock_ns, number, number % slots, number / slots).0
    }

    #[inline(always)]
    fn walk(&self, batch: Batch, mut visit: impl FnMut(Point, u64)) {
        let first = batch.number * u64::from(self.batch_points);
        let slots = self.series.slots(batch.client);
        let clock_ns = self.timestamps.clock(batch.client, batch.stamp_ns);
        let (mut slot, mut nth) = (first % slots, first / slots);
        for index in 0..self.batch_points {
            let (point, series) = self.make(batch, index, clock_ns, first + u64::from(index), slot, nth);
            visit(point, series);
            slot += 1;
            if slot == slots {
                slot = 0;
                nth += 1;
            }
        }
    }

    /// `number` counts the client's points, `nth` those of the slot.
    #[inline(always)]
    fn make(&self, batch: Batch, index: u32, clock_ns: i64, number: u64, slot: u64, nth: u64) -> (Point, u64) {
        let series = self.series.first(batch.client) + slot;
        let life = self.series.life(batch.client, slot, batch.stamp_ns.saturating_sub(self.epoch_ns));
        let point = Point {
            index,
            slot: Slot { client: batch.client, number: slot, life },
            value: self.values.at(series, nth),
            timestamp_ns: self.timestamps.at(batch.client, clock_ns, number, nth),
            fault: self.bad.at(batch.client, number),
        };
        (point, series)
    }

    /// All tags of a point's series, `life` among them.
    pub fn tags(&self, slot: Slot) -> Vec<(String, String)> {
        let mut tags = self.series.tags(slot);
        if self.series.has_churn() {
            tags.push((series::LIFE_TAG.to_string(), slot.life.to_string()));
        }
        tags
    }
}

/// Reads an answer as the protocol defines it; `body` may be cut at 4 KiB.
pub fn answer(protocol: Protocol, status: u16, body: &[u8]) -> Answer {
    match protocol {
        Protocol::Line => Line::answer(status, body),
        Protocol::Json => Json::answer(status, body),
    }
}

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
