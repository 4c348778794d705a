//! The ports and descriptors of a start: taken before anything is recovered, so that a second process ends at once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use metricstream_shards::http::Router;
use metricstream_shards::shard::settings::Listener;

use super::RunError;
use crate::config::{Config, Durability, Steering};
use crate::sockets;

/// Sockets that listen; nothing is accepted yet.
pub(super) struct Doors {
    /// A set a shard
    pub listeners: Vec<Vec<Listener>>,
    /// Of all listeners, as they were bound
    pub addresses: Vec<String>,
    pub admin: OwnedFd,
}

impl Doors {
    pub fn open(config: &Config, shards: usize) -> Result<Doors, RunError> {
        let steering = match config.limiter.steering {
            Steering::Hash => sockets::Steering::Hash,
            Steering::Address => sockets::Steering::Address,
        };
        let mut listeners: Vec<Vec<Listener>> = (0..shards).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for listen in &config.listen {
            for &address in &listen.addresses {
                let sockets =
                    sockets::listen(address, shards, steering).map_err(|error| refused(error, address, "--listen"))?;
                addresses
                    .push(sockets::local_address(&sockets[0]).map(|address| address.to_string()).unwrap_or_default());
                for (listeners, socket) in listeners.iter_mut().zip(sockets) {
                    listeners.push(Listener {
                        socket,
                        router: Router::new(&listen.path_prefix),
                        memory: listen.durability == Durability::Memory,
                        trust_client_id: listen.trust_client_id_header,
                    });
                }
            }
        }
        let address = config.admin.listen;
        let admin = sockets::listen_alone(address).map_err(|error| refused(error, address, "--admin"))?;
        Ok(Doors { listeners, addresses, admin })
    }
}

fn refused(error: io::Error, address: SocketAddr, option: &'static str) -> RunError {
    match error.kind() {
        io::ErrorKind::AddrInUse => RunError::PortInUse { address, option },
        _ => RunError::Listen { address, error },
    }
}

/// What a newcomer may not mean: doors open to other hosts that ask nobody who they are.
pub(super) fn open_doors(config: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    if !config.auth.required {
        for address in config.listen.iter().flat_map(|listen| &listen.addresses).filter(|a| !a.ip().is_loopback()) {
            sentences.push(format!(
                "{address} can be reached from other hosts and anybody may write: set required = true in [auth] and \
                 give each sender a token in a [[client]] block, unless the network keeps strangers out"
            ));
        }
    }
    if !config.admin.listen.ip().is_loopback() {
        sentences.push(format!(
            "the admin listener {} can be reached from other hosts and asks for no password: everybody there may read \
             all windows and counters",
            config.admin.listen
        ));
    }
    sentences
}

/// The soft limit of descriptors, raised as far as allowed. Answers how many of `connections_max` it allows: some are
/// kept for the logs and the admin listener, which connections must never take.
pub(super) fn raise_descriptor_limit(connections_max: u32) -> usize {
    let (connections_max, own) = (u64::from(connections_max), 256);
    let wanted = connections_max + own;
    let limit = match sockets::raise_descriptor_limit(wanted) {
        Ok(limit) => limit,
        Err(error) => {
            tracing::warn!(%error, "the limit of descriptors cannot be read");
            wanted
        }
    };
    let connections = connections_max.min(limit.saturating_sub(own).max(limit / 2));
    if connections < connections_max {
        tracing::warn!(
            limit,
            wanted,
            connections,
            "fewer descriptors than http.connections_max needs, so fewer connections: raise LimitNOFILE= (or \
             `ulimit -n`), or lower the setting"
        );
    }
    connections as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_doors_are_told_and_closed_ones_are_not() {
        let config = |text: &str| Config::parse(text, "test.toml").expect("valid");
        assert_eq!(open_doors(&config("")), Vec::<String>::new());
        let open = "[[listen]]\naddresses = [\"127.0.0.1:1\", \"[::]:2\"]\n[admin]\nlisten = \"0.0.0.0:3\"\n";
        let told = open_doors(&config(open));
        assert!(told.len() == 2 && told[0].starts_with("[::]:2 ") && told[1].contains("0.0.0.0:3 "), "{told:?}");
        let locked = format!("{open}[auth]\nrequired = true\n[[client]]\nname = \"a\"\ntoken = \"0123456789abcdef\"\n");
        assert_eq!(open_doors(&config(&locked)).len(), 1, "the admin listener stays open");
    }
}
