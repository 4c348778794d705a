//! Listening sockets: one per shard and address, in one SO_REUSEPORT group, and none beside another process.

#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel holds for a shard that has not accepted them yet.
const BACKLOG: i32 = 4096;

/// `shards` listeners on `address`, in shard order.
///
/// SO_REUSEPORT would let a second process join silently and take half of the traffic, so a plain listener is tried
/// first: that fails when anybody listens there already. Port 0 is resolved once for the whole group.
pub fn listen(address: SocketAddr, shards: usize, steering: Steering) -> io::Result<Vec<OwnedFd>> {
    let taken = bind_alone(address)?;
    taken.listen(1)?;
    let address = taken.local_addr()?.as_socket().expect("an IP socket has an IP address");
    drop(taken);
    let group = (0..shards)
        .map(|_| {
            let socket = socket(address, true)?;
            socket.bind(&address.into())?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    if steering == Steering::Address && shards > 1 {
        // The group exists from the first listen on; the program is one for the whole group.
        group[0].listen(BACKLOG)?;
        attach_address_steering(&group[0], shards as u32, address.is_ipv6())?;
    }
    for socket in &group {
        socket.listen(BACKLOG)?;
    }
    Ok(group.into_iter().map(OwnedFd::from).collect())
}

/// One listener that shares its port with nobody.
pub fn listen_alone(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = bind_alone(address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The kernel takes the rings of a killed process down after the process is gone, and its listeners with them: a start
/// right after a kill found the port taken for some 10 ms. So a taken port is tried for this long.
const PORT_PATIENCE: Duration = Duration::from_secs(1);

fn bind_alone(address: SocketAddr) -> io::Result<Socket> {
    let since = Instant::now();
    loop {
        let socket = socket(address, false)?;
        match socket.bind(&address.into()) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && since.elapsed() < PORT_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// The kernel's hash of both ends: connections spread evenly.
    Hash,
    /// By source address alone: a host lives on one shard.
    Address,
}

pub fn local_address(listener: &OwnedFd) -> io::Result<SocketAddr> {
    let socket = socket2::SockRef::from(listener);
    Ok(socket.local_addr()?.as_socket().expect("an IP socket has an IP address"))
}

fn socket(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` means IPv6: IPv4 has an address of its own in the list.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    // Inherited by what is accepted. Replies are written whole, once a turn.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// A classic BPF program: a multiplicative hash of the source address, scaled to `0..shards`.
///
/// Offsets are relative to the network header (SKF_NET_OFF): 12 is IPv4's source; IPv6's is 8..24, folded by XOR.
fn attach_address_steering(socket: &Socket, shards: u32, ipv6: bool) -> io::Result<()> {
    const SKF_NET_OFF: u32 = (-0x100000i32) as u32;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, SKF_NET_OFF.wrapping_add(offset));
    let mut program = Vec::new();
    if ipv6 {
        program.push(load(8));
        for offset in [12, 16, 20] {
            program.push(statement(libc::BPF_MISC | libc::BPF_TAX, 0));
            program.push(load(offset));
            program.push(statement(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0));
        }
    } else {
        program.push(load(12));
    }
    program.push(statement(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, 2_654_435_761));
    program.push(statement(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 16));
    program.push(statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, shards));
    program.push(statement(libc::BPF_RET | libc::BPF_A, 0));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the option takes a sock_fprog; its filter array lives until the call returns and has `len` entries.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the soft limit of open descriptors to `wanted`, or as far as the hard one goes; answers what it is now.
pub fn raise_descriptor_limit(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < wanted {
        limit.rlim_cur = wanted.min(limit.rlim_max);
        // SAFETY: a valid limit, not above the hard one.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_group_shares_one_port_and_refuses_a_stranger() {
        let group = listen("127.0.0.1:0".parse().expect("an address"), 4, Steering::Hash).expect("free port");
        let address = local_address(&group[0]).expect("bound");
        assert!(group.iter().all(|listener| local_address(listener).expect("bound") == address));
        let error = listen(address, 1, Steering::Hash).expect_err("the port is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    /// The admin listener lacked SO_REUSEADDR, so its old connections kept a restart from taking the port for a minute.
    #[test]
    fn a_port_with_connections_of_the_process_before_is_taken_again() {
        let first = listen_alone("127.0.0.1:0".parse().expect("an address")).expect("free port");
        let address = local_address(&first).expect("bound");
        let _client = TcpStream::connect(address).expect("connects");
        let first = std::net::TcpListener::from(first);
        // The server closes first: its end waits in FIN-WAIT-2.
        drop(first.accept().expect("accepts"));
        drop(first);
        listen_alone(address).expect("the port of a listener that is gone");
    }

    #[test]
    fn with_address_steering_all_connections_of_a_host_reach_one_shard() {
        let group = listen("127.0.0.1:0".parse().expect("an address"), 4, Steering::Address).expect("free port");
        let address = local_address(&group[0]).expect("bound");
        let _clients: Vec<_> = (0..20).map(|_| TcpStream::connect(address).expect("connects")).collect();
        let mut used = 0;
        for listener in group {
            let listener = std::net::TcpListener::from(listener);
            listener.set_nonblocking(true).expect("set");
            let accepted = std::iter::from_fn(|| listener.accept().ok()).count();
            assert!(accepted == 0 || accepted == 20, "{accepted} of 20 on one shard");
            used += usize::from(accepted > 0);
        }
        assert_eq!(used, 1);
    }
}
