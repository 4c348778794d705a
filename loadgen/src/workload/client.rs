//! Who the clients are.

use std::net::Ipv4Addr;

use crate::plan::Identity;

/// As in `X-Client-ID`.
pub fn name(client: u32) -> String {
    format!("client-{client:06}")
}

/// The source address of a client: 127.1.0.1 and up, without those that end in .0 or .255, some 16 million of them and
/// then from the start again.
pub fn address(client: u32) -> Ipv4Addr {
    let place = client % (255 * 256 * 254);
    let high = 1 + place / (254 * 256);
    Ipv4Addr::new(127, high as u8, (place / 254 % 256) as u8, 1 + (place % 254) as u8)
}

/// What a server takes the client for, if it goes by what the plan sends. `None` when all look alike.
pub fn seen_as(identity: Identity, client: u32) -> Option<String> {
    match identity {
        Identity::None => None,
        Identity::Header => Some(name(client)),
        Identity::Address => Some(address(client).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_an_address_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for client in 0..200_000 {
            let address = address(client);
            assert!(address.is_loopback() && seen.insert(address), "{address}");
            assert!(![0, 255].contains(&address.octets()[3]));
        }
        assert_eq!(address(0), Ipv4Addr::new(127, 1, 0, 1));
        assert_eq!(address(254 * 256), Ipv4Addr::new(127, 2, 0, 1));
        assert_eq!(address(255 * 256 * 254 - 1), Ipv4Addr::new(127, 255, 255, 254));
    }
}
