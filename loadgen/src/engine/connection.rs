//! A slot for one connection at a time, with the requests that wait for it and those under way on it.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{IntoRawFd, RawFd};

use super::request::Request;
use super::response::Reader;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Down,
    Connecting,
    Open,
    /// Shut down; waits for the operations on it to complete.
    Closing,
}

#[derive(Debug)]
pub struct Connection {
    pub state: State,
    pub socket: RawFd,
    /// Of the lives of this slot.
    pub generation: u32,
    pub receiving: bool,
    pub sending: bool,
    /// No more requests on this connection: it is closed as soon as those under way are answered.
    pub retired: bool,
    pub connecting_since_ns: u64,
    /// Not before this moment, after a failure.
    pub paused: bool,
    pub waiting: VecDeque<Request>,
    /// In the order sent, which is the order of the answers.
    pub under_way: VecDeque<Request>,
    /// Of a closed loop: requests that wait for their next attempt and keep their place meanwhile.
    pub retrying: u32,
    /// Of a closed loop: whose batch comes next.
    pub client: u32,
    pub reader: Reader,
}

impl Connection {
    pub fn new(client: u32) -> Connection {
        Connection {
            state: State::Down,
            socket: -1,
            generation: 0,
            receiving: false,
            sending: false,
            retired: false,
            connecting_since_ns: 0,
            paused: false,
            waiting: VecDeque::new(),
            under_way: VecDeque::new(),
            retrying: 0,
            client,
            reader: Reader::default(),
        }
    }

    /// A request that came now would leave at once.
    pub fn is_free(&self, depth: usize) -> bool {
        self.state == State::Open
            && !self.sending
            && !self.retired
            && self.waiting.is_empty()
            && self.under_way.len() < depth
    }
}

/// A new TCP socket, bound to `source` when there is one.
pub fn socket(target: SocketAddr, source: Option<Ipv4Addr>) -> std::io::Result<RawFd> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::STREAM, None)?;
    // Pipelined requests must not wait for each other's acknowledgement.
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    Ok(socket.into_raw_fd())
}
