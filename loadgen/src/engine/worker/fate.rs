//! What becomes of a batch: due, answered, refused, lost, tried again, given up.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::backoff::backoff_ns;
use super::super::request::{Pending, Request, What};
use super::super::response::Answer;
use super::super::stats::Loss;
use super::*;
use crate::workload;

/// Batches that one request may carry when they are joined.
const JOINED_MAX: usize = 16;

impl Worker {
    fn is_joined(&self) -> bool {
        matches!(self.plan.transport.retry, Retry::Joined { .. })
    }

    /// How often a batch may be sent in all.
    fn attempts_max(&self) -> u32 {
        match self.plan.transport.retry {
            Retry::Never => 1,
            Retry::Same { attempts } | Retry::Joined { attempts } => attempts.max(1),
        }
    }

    /// Of an open loop.
    pub(super) fn became_due(&mut self, pending: Pending) -> Result<(), Failure> {
        self.open += 1;
        if self.is_joined() {
            let client = &mut self.clients[pending.batch.client as usize];
            if let Some(mut request) = client.parked.take() {
                request.join(pending);
                return self.queue(request);
            }
            if client.is_busy {
                client.backlog.push_back(pending);
                self.waiting += 1;
                return Ok(());
            }
            client.is_busy = true;
        }
        let slot = self.lanes.connection(pending.batch.client, pending.batch.number);
        self.queue(Request::new(pending, slot))
    }

    fn queue(&mut self, mut request: Request) -> Result<(), Failure> {
        let slot = request.slot;
        let connection = &mut self.connections[slot as usize];
        request.was_free = connection.is_free(self.depth);
        connection.waiting.push_back(request);
        self.waiting += 1;
        self.pump(slot)
    }

    pub(super) fn answered(&mut self, slot: u32, request: Request, answer: Answer) {
        self.stats.service(self.now_ns.saturating_sub(request.sent_ns));
        let attempts_max = self.attempts_max();
        let connection = &mut self.connections[slot as usize];
        let meaning = workload::answer(self.plan.workload.protocol, answer.status, connection.reader.body());
        match meaning {
            workload::Answer::Acknowledged => {
                if let Some(ledger) = &mut self.ledger {
                    ledger.acknowledged(request.id, answer.status);
                }
                self.stats.acknowledged(request.good_points);
                self.open -= request.batch_count();
                for pending in request.batches() {
                    self.stats.batch_acknowledged(pending.due_ns, self.now_ns);
                }
                self.client_is_free(request.newest.batch.client);
            }
            workload::Answer::Refused => {
                if let Some(ledger) = &mut self.ledger {
                    ledger.refused(request.id, answer.status);
                }
                self.stats.refused(answer.status);
                let can_change = answer.status == 429 || answer.status >= 500;
                if !can_change || request.attempt + 1 >= attempts_max {
                    return self.give_up(request, true);
                }
                // The next attempt takes a new connection, as after a reset.
                connection.retired = true;
                let wait_ns = match answer.retry_after {
                    Some(asked) => {
                        let now_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                        u64::try_from(asked.wait(now_unix).as_nanos()).unwrap_or(u64::MAX)
                    }
                    None => backoff_ns(request.attempt + 1, &mut self.random),
                };
                self.try_again(request, wait_ns);
            }
        }
    }

    pub(super) fn lost(&mut self, request: Request, cause: NoAnswer) {
        if let Some(ledger) = &mut self.ledger {
            ledger.unknown(request.id, cause);
        }
        self.stats.lost(Loss::Unanswered(cause));
        if request.attempt + 1 >= self.attempts_max() {
            return self.give_up(request, false);
        }
        let wait_ns = backoff_ns(request.attempt + 1, &mut self.random);
        self.try_again(request, wait_ns);
    }

    fn try_again(&mut self, mut request: Request, wait_ns: u64) {
        request.attempt += 1;
        if self.is_closed_loop {
            self.connections[request.slot as usize].retrying += 1;
        }
        self.push_later(self.now_ns.saturating_add(wait_ns), What::Send(request));
    }

    /// A refused or lost request's time has come.
    pub(super) fn send_again(&mut self, mut request: Request) -> Result<(), Failure> {
        let newest = request.newest.batch;
        if request.attempt == 0 {
            return self.queue(request);
        }
        if self.is_closed_loop {
            let slot = request.slot;
            self.connections[slot as usize].retrying -= 1;
            if self.is_joined() && !self.is_draining && request.older.len() + 1 < JOINED_MAX {
                let pending = self.next_of_client(newest.client);
                request.join(pending);
            }
            self.connections[slot as usize].waiting.push_back(request);
            self.waiting += 1;
            return self.pump(slot);
        }
        if self.is_joined() {
            let client = &mut self.clients[newest.client as usize];
            let mut has_new = false;
            while request.older.len() + 1 < JOINED_MAX
                && let Some(pending) = client.backlog.pop_front()
            {
                self.waiting -= 1;
                request.join(pending);
                has_new = true;
            }
            let is_full = request.older.len() + 1 >= JOINED_MAX;
            if !has_new && !is_full && !self.is_draining {
                client.parked = Some(request);
                return Ok(());
            }
        }
        self.queue(request)
    }

    /// All attempts are used up.
    pub(super) fn give_up(&mut self, request: Request, answered: bool) {
        self.open -= request.batch_count();
        for pending in request.batches() {
            self.stats.batch_given_up(pending.due_ns, self.now_ns, answered);
        }
        self.client_is_free(request.newest.batch.client);
    }

    /// Retry joined: the client's next batch may leave.
    fn client_is_free(&mut self, id: u32) {
        if !self.is_joined() || self.is_closed_loop || self.has_ended {
            return;
        }
        let client = &mut self.clients[id as usize];
        client.is_busy = false;
        if let Some(pending) = client.backlog.pop_front() {
            self.waiting -= 1;
            client.is_busy = true;
            // Through the heap, for this may be in the middle of reading a connection.
            let slot = self.lanes.connection(id, pending.batch.number);
            self.push_later(self.now_ns, What::Send(Request::new(pending, slot)));
        }
    }

    /// Nothing becomes due any more: what waits for a batch to join goes alone.
    pub(super) fn begin_drain(&mut self) -> Result<(), Failure> {
        self.next_due = None;
        for client in 0..self.clients.len() {
            if let Some(request) = self.clients[client].parked.take() {
                self.queue(request)?;
            }
        }
        Ok(())
    }
}
