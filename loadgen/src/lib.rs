//! A load generator that tells the truth: latency counts from the intended moment, and what was sent is written down
//! before it leaves. It shares nothing with the server, so that it can disagree with it.
//!
//! [`plan::Plan`] is the load as asked for; all bytes and times follow from it. [`workload`] turns it into points and
//! bodies, [`schedule`] into moments, [`engine`] sends and times, [`ledger`] remembers, [`verify`] compares, [`result`]
//! is what a run comes to, [`report`] shows it.

pub mod commands;
pub mod engine;
pub mod ledger;
pub mod null_server;
pub mod objective;
pub mod plan;
pub mod report;
pub mod result;
pub mod ring;
pub mod schedule;
pub mod search;
pub mod units;
pub mod verify;
pub mod workload;
