//! Who sent a request: its token, else the name it gives itself where the operator trusts that, else its address.

use std::net::IpAddr;

use ahash::{HashMap, RandomState};

use crate::http::Head;
use crate::http::auth::{Credential, constant_time_eq, credential};
use crate::limiter::{ClientHash, ClientLimits};
use crate::series::{ClientEntry, ClientError, ClientIndex, ClientProfile, ClientTable, SeriesTable, TagSetId};

use super::settings::Settings;

/// Kept with a connection: its address as a client id.
pub struct Caller {
    address: Box<str>,
}

impl Caller {
    pub fn new(peer: IpAddr) -> Caller {
        Caller { address: peer.to_string().into_boxed_str() }
    }
}

/// What the operator's configuration makes of a client.
#[derive(Clone, Copy)]
pub struct Terms {
    pub limits: ClientLimits,
    pub same_timestamp_all: Option<bool>,
}

type NamesByToken = HashMap<u64, Vec<(Box<[u8]>, String)>>;

/// The clients a shard has met, and what the operator said of them.
pub struct Callers {
    table: ClientTable,
    /// Terms by `ClientProfile::limits`; the first are those of everybody without a name.
    terms: Vec<Terms>,
    by_name: HashMap<String, ClientProfile>,
    /// Token hash to name; the bytes are compared in constant time.
    by_token: NamesByToken,
    hasher: RandomState,
    auth_required: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Unknown {
    /// No credential, and the operator asks for one
    Missing,
    /// A credential nobody has
    Wrong,
    /// The client id it gave itself cannot be one
    Id(ClientError),
}

impl Callers {
    pub fn new(settings: &Settings, series: &mut SeriesTable) -> Callers {
        let [a, b, c, d] = settings.seeds;
        let hasher = RandomState::with_seeds(b, a, d, c);
        let mut this = Callers {
            table: ClientTable::new(settings.seeds, settings.clients_max),
            terms: vec![Terms { limits: settings.default_limits, same_timestamp_all: None }],
            by_name: HashMap::default(),
            by_token: HashMap::default(),
            hasher,
            auth_required: settings.auth_required,
        };
        for client in &settings.clients {
            let tags: Vec<(&str, &str)> = client.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let tags = if tags.is_empty() { TagSetId::default() } else { series.add_tag_set(&tags) };
            let profile = ClientProfile { limits: this.terms.len() as u32, tags };
            this.terms.push(Terms { limits: client.limits, same_timestamp_all: client.same_timestamp_all });
            this.by_name.insert(client.name.clone(), profile);
            if let Some(token) = &client.token {
                let hash = this.hasher.hash_one(&token[..]);
                this.by_token.entry(hash).or_default().push((token.clone(), client.name.clone()));
            }
        }
        this
    }

    fn name_of_token(&self, token: &[u8]) -> Option<&str> {
        let candidates = self.by_token.get(&self.hasher.hash_one(token))?;
        candidates.iter().find(|(known, _)| constant_time_eq(known, token)).map(|(_, name)| name.as_str())
    }

    /// `now_s`: the fold clock, in seconds.
    pub fn resolve(
        &mut self,
        caller: &Caller,
        head: &Head,
        trust_client_id: bool,
        now_s: u32,
    ) -> Result<&ClientEntry, Unknown> {
        let named;
        let given;
        // Without any tokens configured a credential says nothing: agents send what their own configuration holds.
        let means_nothing = self.by_token.is_empty() && !self.auth_required;
        let id = if let Some(offered) = self.offered(head).filter(|_| !means_nothing) {
            let Credential { token, whole } = &offered;
            let name = self.name_of_token(token).or_else(|| whole.and_then(|whole| self.name_of_token(whole)));
            named = name.ok_or(Unknown::Wrong)?.to_string();
            &named
        } else if self.auth_required {
            return Err(Unknown::Missing);
        } else if trust_client_id && let Some(text) = head.client_id() {
            given = std::str::from_utf8(text).map_err(|_| Unknown::Id(ClientError::Control))?;
            given
        } else {
            &*caller.address
        };
        let by_name = &self.by_name;
        self.table.resolve(id, now_s, |id| by_name.get(id).copied().unwrap_or_default()).map_err(Unknown::Id)
    }

    fn offered<'h>(&self, head: &'h Head) -> Option<Credential<'h>> {
        credential(head)
    }

    pub fn terms(&self, client: &ClientEntry) -> Terms {
        self.terms[client.profile.limits as usize]
    }

    pub fn entry(&self, index: ClientIndex) -> Option<&ClientEntry> {
        self.table.entry(index)
    }

    pub fn live(&self) -> usize {
        self.table.len()
    }

    /// Looks at some clients and forgets those that were idle and have no live series.
    pub fn forget_idle(&mut self, now_s: u32, idle_after_s: u32, series: &SeriesTable) {
        self.table.forget_idle(now_s, idle_after_s, 64, |index| series.live_of(index) == 0);
    }
}

pub fn limiter_hash(client: &ClientEntry) -> ClientHash {
    ClientHash(client.hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Bounds, Step};

    fn callers(tokens: &[(&str, &str)]) -> Callers {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let by_token = tokens
            .iter()
            .map(|&(token, name)| {
                (hasher.hash_one(token.as_bytes()), vec![(token.as_bytes().into(), name.to_string())])
            })
            .collect();
        Callers {
            table: ClientTable::new([1, 2, 3, 4], 16),
            terms: vec![Terms { limits: ClientLimits::default(), same_timestamp_all: None }],
            by_name: HashMap::default(),
            by_token,
            hasher,
            auth_required: false,
        }
    }

    fn resolve(callers: &mut Callers, fields: &str, trust: bool) -> Result<String, Unknown> {
        let mut assembler = crate::http::Assembler::new(0);
        let request = format!("GET /ping HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let step = assembler.push(request.as_bytes(), 0, &Bounds::default());
        assert!(matches!(step, Step::Request { .. }), "{step:?}");
        let caller = Caller::new("192.0.2.7".parse().expect("an address"));
        callers.resolve(&caller, assembler.head(), trust, 1).map(|client| client.id().to_string())
    }

    #[test]
    fn a_client_is_its_token_else_its_own_word_where_trusted_else_its_address() {
        let (token, id) = ("Authorization: Token t1\r\n", "X-Client-ID: gateway-7\r\n");
        let both = format!("{token}{id}");
        let mut known = callers(&[("t1", "payments")]);
        assert_eq!(resolve(&mut known, &both, true).as_deref(), Ok("payments"));
        assert_eq!(resolve(&mut known, id, true).as_deref(), Ok("gateway-7"));
        assert_eq!(resolve(&mut known, id, false).as_deref(), Ok("192.0.2.7"));
        assert_eq!(resolve(&mut known, "Authorization: Token t2\r\n", true), Err(Unknown::Wrong));
        // InfluxDB libraries always send some token: where nobody has one, it hid the id and all were one address.
        let mut none = callers(&[]);
        assert_eq!(resolve(&mut none, &both, true).as_deref(), Ok("gateway-7"));
        assert_eq!(resolve(&mut none, &both, false).as_deref(), Ok("192.0.2.7"));
    }
}
