//! The loop: what is due is queued at its connection, what can leave is rendered and handed to the ring, what comes back
//! is counted. One enter a turn, for all of it.
//!
//! This file holds the loop and its clock; [`links`] the connections, [`fate`] what becomes of requests.
//!
//! Order of truth: a batch and the request that carries it are in the ledger, and the ledger's bytes with the kernel,
//! before the ring gets the request ([`Worker::submit`] is the only way out).

mod fate;
mod links;

use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::Options;
use super::connection::Connection;
use super::live::{Live, Moment};
use super::machine;
use super::render::Renderer;
use super::request::{Lanes, Later, NOT_SENT, Pending, Request, What};
use super::stats::{Finished, Loss, Stats};
use crate::commands::Failure;
use crate::ledger::{self, NoAnswer};
use crate::plan::{self, Plan, Retry, Shape};
use crate::ring::{Completion, Ring};
use crate::schedule::{self, Due, Schedule};
use crate::workload::Batch;

/// Requests handed to the ring in one enter: more would make the first of them wait for the rendering of the last.
const SENDS_A_SUBMIT: u32 = 32;
/// Requests that became due and wait for their connection. Beyond it the server is hopelessly behind, and the run ends.
const WAITING_MAX: u64 = 4_000_000;
/// A wait that ends this close to a due moment is spent looking at the ring instead: waking up takes longer.
const SPIN_NS: u64 = 60_000;
const MS_NS: u64 = 1_000_000;

pub struct Worker {
    plan: Plan,
    options_live: bool,
    ledger: Option<ledger::Writer>,
    ring: Ring,
    target: std::net::SocketAddr,
    renderer: Renderer,
    schedule: Schedule,
    next_due: Option<Due>,
    lanes: Lanes,
    depth: usize,
    is_closed_loop: bool,
    connections: Vec<Connection>,
    clients: Vec<Client>,
    later: BinaryHeap<Later>,
    order: u64,
    stats: Stats,
    random: Xoshiro256PlusPlus,
    /// Slots whose send was pushed and not yet submitted.
    unsent: Vec<u32>,
    /// Send buffers not in use.
    buffers: Vec<Vec<u8>>,
    batches: Vec<Batch>,
    completions: Vec<Completion>,
    next_id: u64,
    /// Requests without a final outcome, and those of them that wait at a connection.
    open: u64,
    waiting: u64,
    /// Read after each turn.
    now_ns: u64,
    /// Time 0 of the run on the ring's clock.
    zero_ns: u64,
    end_ns: u64,
    timeout_ns: u64,
    next_check_ns: u64,
    /// Nothing becomes due any more.
    is_draining: bool,
    /// What has no answer by now gets none.
    has_ended: bool,
    /// Looks at the ring for a while before it sleeps.
    spins: bool,
    spun_ns: u64,
    interrupted: Arc<AtomicBool>,
}

/// What the engine remembers of a client; only where the plan needs it.
#[derive(Default)]
struct Client {
    /// Closed loop: the next batch's number, and the last stamp given out.
    next_number: u64,
    last_stamp_ns: i64,
    /// Retry joined: a request is under way or waits for its next attempt; batches that became due meanwhile; a refused
    /// request whose time has come and that waits for a batch to join.
    is_busy: bool,
    backlog: VecDeque<Pending>,
    parked: Option<Request>,
}

impl Worker {
    pub fn new(plan: &Plan, options: Options, interrupted: Arc<AtomicBool>) -> Result<Worker, Failure> {
        let transport = &plan.transport;
        let clients = plan.workload.clients.max(1);
        let lanes = Lanes {
            clients,
            connections: transport.connections.max(1),
            single: matches!(transport.retry, Retry::Joined { .. }),
        };
        let is_closed_loop = matches!(plan.shape, Shape::Closed { .. });
        let is_pipelined = matches!(transport.connection, plan::Connection::Pipelined { .. });
        if lanes.single && is_closed_loop && (is_pipelined || lanes.connections > clients) {
            return Err(Failure(
                "in a closed loop, joined retries need a client for each connection and no pipelining: give as many \
                 --clients as --connections"
                    .to_owned(),
            ));
        }
        let ring = Ring::new(Instant::now(), options.target).map_err(|error| {
            Failure(format!("io_uring cannot be used: {error}; a kernel of 6.1 or later that allows it is needed"))
        })?;
        let keeps_clients = is_closed_loop || matches!(transport.retry, Retry::Joined { .. });
        let mut schedule = Schedule::new(plan);
        Ok(Worker {
            options_live: options.live,
            ledger: options.ledger,
            ring,
            target: options.target,
            renderer: Renderer::new(plan, options.target),
            next_due: schedule.next(),
            schedule,
            lanes,
            depth: match transport.connection {
                plan::Connection::Pipelined { depth } => depth.max(1) as usize,
                plan::Connection::KeepAlive | plan::Connection::Reconnect => 1,
            },
            is_closed_loop,
            connections: (0..lanes.connections).map(|slot| Connection::new(lanes.client(slot))).collect(),
            clients: (0..if keeps_clients { clients } else { 0 }).map(|_| Client::default()).collect(),
            later: BinaryHeap::new(),
            order: 0,
            stats: Stats::new(&plan.shape),
            random: Xoshiro256PlusPlus::seed_from_u64(plan.seed ^ 0x6A69_7474_6572),
            unsent: Vec::new(),
            buffers: Vec::new(),
            batches: Vec::new(),
            completions: Vec::new(),
            next_id: 0,
            open: 0,
            waiting: 0,
            now_ns: 0,
            zero_ns: 0,
            end_ns: 0,
            timeout_ns: (transport.timeout_ms * MS_NS).max(MS_NS),
            next_check_ns: 0,
            is_draining: false,
            has_ended: false,
            // A single core has better uses for the time: the server's.
            spins: std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) || options.core.is_some(),
            spun_ns: 0,
            interrupted,
            plan: plan.clone(),
        })
    }

    /// Since the run's time 0.
    fn read_clock(&mut self) -> u64 {
        self.now_ns = self.ring.now_ns().saturating_sub(self.zero_ns);
        self.now_ns
    }

    pub fn run(mut self) -> Result<Finished, Failure> {
        let mut live = Live::new(self.options_live);
        let cpu_before_s = machine::cpu_s();
        let (mut second_cpu_s, mut second_spun_ns) = (cpu_before_s, 0);
        self.zero_ns = self.ring.now_ns();
        self.end_ns = schedule::duration_ns(&self.plan.shape);
        self.read_clock();
        if self.is_closed_loop {
            for slot in 0..self.connections.len() as u32 {
                self.pump(slot)?;
            }
        }
        let mut drain_until_ns = u64::MAX;
        loop {
            self.take_due()?;
            self.take_later()?;
            if !self.is_draining && (self.now_ns >= self.end_ns || self.must_end_early()) {
                self.is_draining = true;
                self.end_ns = self.end_ns.min(self.now_ns);
                drain_until_ns = self.end_ns + self.timeout_ns;
                self.begin_drain()?;
            }
            if self.is_draining && (self.open == 0 || self.now_ns >= drain_until_ns) {
                break;
            }
            if self.now_ns >= self.next_check_ns {
                self.next_check_ns = self.now_ns + (self.timeout_ns / 50).clamp(MS_NS, 100 * MS_NS);
                self.check_timeouts()?;
            }
            if self.stats.turn_second(self.now_ns) {
                let cpu_s = machine::cpu_s();
                let spun_s = (self.spun_ns - second_spun_ns) as f64 / 1e9;
                let moment = Moment {
                    elapsed_s: self.now_ns as f64 / 1e9,
                    left_s: (self.end_ns as f64 - self.now_ns as f64) / 1e9,
                    intended: schedule::rate_at(&self.plan, self.now_ns),
                    busy_share: cpu_s - second_cpu_s - spun_s,
                    waiting: self.waiting,
                };
                (second_cpu_s, second_spun_ns) = (cpu_s, self.spun_ns);
                live.show(&self.stats, &moment);
            }
            let until_ns = self.next_moment_ns().min(drain_until_ns);
            self.turn(until_ns)?;
        }
        self.end_what_is_left()?;
        live.finish();
        let cpu_s = machine::cpu_s() - cpu_before_s;
        // Looking at the ring in the last microseconds before a due moment is waiting, not work.
        let busy_s = (cpu_s - self.spun_ns as f64 / 1e9).max(0.0);
        Ok(self.stats.finish(self.now_ns, self.end_ns as f64 / 1e9, busy_s))
    }

    fn must_end_early(&mut self) -> bool {
        if self.waiting > WAITING_MAX {
            self.stats.notes.push(format!(
                "the run was ended after {:.1} s: {WAITING_MAX} requests waited for those before them, for the rate is \
                 far beyond what the server takes over these connections",
                self.now_ns as f64 / 1e9
            ));
            return true;
        }
        if self.interrupted.load(Ordering::Relaxed) {
            self.stats.notes.push(format!("the run was interrupted after {:.1} s", self.now_ns as f64 / 1e9));
            return true;
        }
        false
    }

    /// When something has to be done even if nothing completes.
    fn next_moment_ns(&self) -> u64 {
        let due = self.next_due.map_or(u64::MAX, |due| due.at_ns);
        let later = self.later.peek().map_or(u64::MAX, |later| later.at_ns);
        let end = if self.is_draining { u64::MAX } else { self.end_ns };
        due.min(later).min(self.stats.second_end_ns()).min(self.next_check_ns).min(end)
    }

    /// Queues the requests whose moment has come.
    fn take_due(&mut self) -> Result<(), Failure> {
        while let Some(due) = self.next_due.filter(|due| due.at_ns <= self.now_ns && !self.is_draining) {
            self.next_due = self.schedule.next();
            let stamp_ns = self.plan.epoch_ns + due.at_ns as i64;
            let batch = Batch { client: due.client, number: due.number, stamp_ns };
            self.stats.due(due.at_ns);
            self.became_due(Pending { batch, due_ns: due.at_ns })?;
        }
        Ok(())
    }

    fn take_later(&mut self) -> Result<(), Failure> {
        while self.later.peek().is_some_and(|later| later.at_ns <= self.now_ns) {
            match self.later.pop().expect("just seen").what {
                What::Send(request) => self.send_again(request)?,
                What::Connect(slot) => {
                    self.connections[slot as usize].paused = false;
                    self.pump(slot)?;
                }
            }
        }
        Ok(())
    }

    fn push_later(&mut self, at_ns: u64, what: What) {
        self.order += 1;
        self.later.push(Later { at_ns, order: self.order, what });
    }

    /// A batch of a closed loop, for a connection that is free now.
    fn next_of_closed_loop(&mut self, slot: u32) -> Pending {
        let connection = &mut self.connections[slot as usize];
        let id = connection.client;
        connection.client = self.lanes.next_client(slot, id);
        self.next_of_client(id)
    }

    fn next_of_client(&mut self, id: u32) -> Pending {
        let client = &mut self.clients[id as usize];
        let number = client.next_number;
        client.next_number += 1;
        client.last_stamp_ns = (self.plan.epoch_ns + self.now_ns as i64).max(client.last_stamp_ns + 1);
        let batch = Batch { client: id, number, stamp_ns: client.last_stamp_ns };
        self.stats.due(self.now_ns);
        self.open += 1;
        Pending { batch, due_ns: self.now_ns }
    }

    /// Hands all that was pushed to the kernel, the ledger's notes first.
    fn hand_over(&mut self) -> Result<(), Failure> {
        if let Some(ledger) = &mut self.ledger {
            // Its error is a whole sentence.
            ledger.flush().map_err(|error| Failure(error.to_string()))?;
        }
        if self.unsent.is_empty() {
            return Ok(());
        }
        let now_ns = self.ring.now_ns().saturating_sub(self.zero_ns);
        for slot in self.unsent.drain(..) {
            for request in self.connections[slot as usize].under_way.iter_mut().rev() {
                if request.sent_ns != NOT_SENT {
                    break;
                }
                request.sent_ns = now_ns;
                if request.was_free && request.attempt == 0 {
                    self.stats.late(now_ns.saturating_sub(request.newest.due_ns));
                }
            }
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<(), Failure> {
        self.hand_over()?;
        self.ring.submit();
        Ok(())
    }

    /// Hands over what was pushed and takes what completed, until `until_ns` (on the run's clock) at the latest.
    fn turn(&mut self, until_ns: u64) -> Result<(), Failure> {
        self.hand_over()?;
        let mut completions = std::mem::take(&mut self.completions);
        if self.spins {
            self.ring.poll(&mut completions);
            self.read_clock();
            if completions.is_empty() {
                self.wait_spinning(until_ns, &mut completions);
            }
        } else {
            self.ring.turn(until_ns.saturating_sub(self.now_ns), &mut completions);
            self.read_clock();
        }
        for completion in completions.drain(..) {
            self.complete(completion)?;
            if self.ring.queued() >= SENDS_A_SUBMIT {
                self.submit()?;
            }
        }
        self.completions = completions;
        Ok(())
    }

    /// Sleeping and waking up takes tens of microseconds, which would be the generator's own: so it looks at the ring
    /// for as long before it sleeps, and wakes up as long before the moment it waits for.
    fn wait_spinning(&mut self, until_ns: u64, completions: &mut Vec<Completion>) {
        let is_found = self.spin(until_ns.min(self.now_ns + SPIN_NS));
        if is_found || self.now_ns >= until_ns {
            self.ring.poll(completions);
        } else {
            self.ring.turn(until_ns.saturating_sub(self.now_ns + SPIN_NS), completions);
            self.read_clock();
            if completions.is_empty() && self.spin(until_ns) {
                self.ring.poll(completions);
            }
        }
        self.read_clock();
    }

    /// Looks at the ring until it holds something (true) or the moment has come.
    fn spin(&mut self, until_ns: u64) -> bool {
        let since_ns = self.now_ns;
        let is_found = loop {
            if self.ring.is_ready() {
                break true;
            }
            if self.read_clock() >= until_ns {
                break false;
            }
            std::hint::spin_loop();
        };
        self.spun_ns += self.now_ns.saturating_sub(since_ns);
        is_found
    }

    /// The end: what has no answer yet will not get one.
    fn end_what_is_left(&mut self) -> Result<(), Failure> {
        self.has_ended = true;
        for slot in 0..self.connections.len() {
            while let Some(request) = self.connections[slot].under_way.pop_front() {
                self.lost_for_good(request, Loss::Unanswered(NoAnswer::Timeout));
            }
            while let Some(request) = self.connections[slot].waiting.pop_front() {
                self.waiting -= 1;
                self.lost_for_good(request, Loss::NeverSent);
            }
        }
        while let Some(later) = self.later.pop() {
            if let What::Send(request) = later.what {
                self.give_up(request, false);
            }
        }
        for client in 0..self.clients.len() {
            if let Some(request) = self.clients[client].parked.take() {
                self.give_up(request, false);
            }
            while let Some(pending) = self.clients[client].backlog.pop_front() {
                self.lost_for_good(Request::new(pending, 0), Loss::NeverSent);
            }
        }
        self.hand_over()
    }
}
