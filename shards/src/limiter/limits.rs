//! Limits as the operator states them, turned once into the arithmetic of the buckets.

/// Buckets count time in steps of 8 ns: 56 bits of it last 18 years, and the other 8 bits of a word are free for a
/// generation (see `shared`).
pub(super) const TICK_NS: u64 = 8;
pub(super) const TICKS_PER_S: u64 = 1_000_000_000 / TICK_NS;
pub(super) const TICKS_PER_MS: u64 = TICKS_PER_S / 1000;

/// 1 % of the rate, as time.
const LEASE_TICKS_MAX: u64 = TICKS_PER_S / 100;
/// Below this a lease is not worth a shared write, if the rate is so high that it is more than a token.
const LEASE_TICKS_MIN: u64 = TICKS_PER_S / 1000;
/// Four years; a longer burst is as good as this one.
const BURST_TICKS_MAX: u64 = 1 << 54;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dimension {
    Requests = 0,
    Points = 1,
    Bytes = 2,
}

impl Dimension {
    pub const COUNT: usize = 3;
    pub const ALL: [Dimension; Self::COUNT] = [Dimension::Requests, Dimension::Points, Dimension::Bytes];
    pub const fn name(self) -> &'static str {
        match self {
            Dimension::Requests => "requests",
            Dimension::Points => "points",
            Dimension::Bytes => "bytes",
        }
    }
}

/// One token bucket's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    rate_per_s: u64,
    burst: u64,
    ticks_per_token: f64,
    tokens_per_tick: f64,
    /// Of one token; at least 1
    pub(super) token_ticks: u64,
    pub(super) burst_ticks: u64,
    pub(super) lease_ticks_min: u64,
    pub(super) lease_ticks_max: u64,
}

impl Limit {
    /// `rate` tokens a second, and a burst of one second's worth. A rate of 0 refuses everything.
    pub fn per_second(rate: u64) -> Limit {
        Limit::with_burst(rate, rate)
    }

    /// `burst` is what a client that was silent may send at once, at least 1.
    pub fn with_burst(rate: u64, burst: u64) -> Limit {
        let burst = burst.max(1);
        // Rounded down, so that a client at exactly its rate is never refused over a fraction of a tick.
        let ticks_per_token = TICKS_PER_S as f64 / rate.max(1) as f64;
        let token_ticks = (ticks_per_token as u64).max(1);
        let burst_ticks =
            ((burst as f64 * ticks_per_token) as u64).clamp(token_ticks, BURST_TICKS_MAX.max(token_ticks));
        let lease_ticks_min = LEASE_TICKS_MIN.min(burst_ticks / 64).max(token_ticks);
        Limit {
            rate_per_s: rate,
            burst,
            ticks_per_token,
            tokens_per_tick: rate as f64 / TICKS_PER_S as f64,
            token_ticks,
            burst_ticks,
            lease_ticks_min,
            lease_ticks_max: LEASE_TICKS_MAX.max(lease_ticks_min),
        }
    }

    pub fn rate_per_s(&self) -> u64 {
        self.rate_per_s
    }
    pub fn burst(&self) -> u64 {
        self.burst
    }
    pub(super) fn ticks(&self, tokens: u64) -> u64 {
        (tokens as f64 * self.ticks_per_token + 0.5) as u64
    }
    pub(super) fn tokens(&self, ticks: u64) -> u64 {
        // A hair up, so that a whole number of tokens is not shown as one less.
        (ticks as f64 * self.tokens_per_tick + 1e-3) as u64
    }
}

/// What one client may send. `None` is unlimited, and costs nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClientLimits {
    pub requests: Option<Limit>,
    pub points: Option<Limit>,
    pub bytes: Option<Limit>,
}

impl ClientLimits {
    pub const UNLIMITED: ClientLimits = ClientLimits { requests: None, points: None, bytes: None };

    pub fn is_unlimited(&self) -> bool {
        self.requests.is_none() && self.points.is_none() && self.bytes.is_none()
    }
    pub(super) fn get(&self, dimension: Dimension) -> Option<&Limit> {
        match dimension {
            Dimension::Requests => self.requests.as_ref(),
            Dimension::Points => self.points.as_ref(),
            Dimension::Bytes => self.bytes.as_ref(),
        }
    }
}

impl Default for ClientLimits {
    /// 100 requests/s with a burst of 100; points and bytes unlimited.
    fn default() -> ClientLimits {
        ClientLimits { requests: Some(Limit::per_second(100)), points: None, bytes: None }
    }
}
