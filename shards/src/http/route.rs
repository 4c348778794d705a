//! Which resource a request is for, and in which dialect its errors are told.

use super::head::Method;

/// What is served to clients. (Reading back and the appliance's own state are the admin listener's.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `POST /metrics`, `/api/v1/metrics`
    NativeWrite,
    /// `POST /write`
    V1Write,
    /// `GET`, `HEAD` `/ping`
    V1Ping,
    /// `GET`, `POST` `/query`
    V1Query,
    /// `GET /health`
    Health,
    /// `POST /api/v2/write`
    V2Write,
    /// `GET /ready`
    V2Ready,
    /// `POST /api/v3/write_lp`
    V3Write,
}

/// Whose shapes a reply has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    Native,
    V1,
    V2,
    V3,
}

impl Route {
    pub const ALL: [Route; 8] = [
        Route::NativeWrite,
        Route::V1Write,
        Route::V1Ping,
        Route::V1Query,
        Route::Health,
        Route::V2Write,
        Route::V2Ready,
        Route::V3Write,
    ];
    /// Label of the counters.
    pub const fn name(self) -> &'static str {
        match self {
            Route::NativeWrite => "native_write",
            Route::V1Write => "v1_write",
            Route::V1Ping => "v1_ping",
            Route::V1Query => "v1_query",
            Route::Health => "health",
            Route::V2Write => "v2_write",
            Route::V2Ready => "v2_ready",
            Route::V3Write => "v3_write",
        }
    }
    pub const fn dialect(self) -> Dialect {
        match self {
            Route::NativeWrite => Dialect::Native,
            Route::V1Write | Route::V1Ping | Route::V1Query => Dialect::V1,
            Route::V2Write | Route::V2Ready | Route::Health => Dialect::V2,
            Route::V3Write => Dialect::V3,
        }
    }
    /// Whether its body is points: what authentication, limits and the log are for.
    pub const fn is_write(self) -> bool {
        matches!(self, Route::NativeWrite | Route::V1Write | Route::V2Write | Route::V3Write)
    }
    /// Value of the `Allow` field.
    pub const fn allow(self) -> &'static str {
        match self {
            Route::NativeWrite | Route::V1Write | Route::V2Write | Route::V3Write => "POST",
            Route::V1Ping | Route::Health | Route::V2Ready => "GET, HEAD",
            Route::V1Query => "GET, HEAD, POST",
        }
    }
    const fn takes(self, method: Method) -> bool {
        match method {
            Method::Post => self.is_write() || matches!(self, Route::V1Query),
            Method::Get | Method::Head => !self.is_write(),
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    To(Route),
    /// 405, with [`Route::allow`] of this route
    WrongMethod(Route),
    /// 404; the dialect is guessed from the path, so that an Influx client gets JSON of its kind
    Unknown(Dialect),
}

/// Paths under a prefix. Made once per listener.
#[derive(Clone, Debug, Default)]
pub struct Router {
    prefix: String,
}

impl Router {
    /// `prefix` is empty or like `/metrics-in` (a slash at its end is taken off, one missing at its start added).
    pub fn new(prefix: &str) -> Router {
        let bare = prefix.trim_matches('/');
        Router { prefix: if bare.is_empty() { String::new() } else { format!("/{bare}") } }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn route(&self, method: Method, path: &str) -> Routed {
        let under = match path.strip_prefix(self.prefix.as_str()) {
            Some(under) => under,
            None => return Routed::Unknown(Dialect::Native),
        };
        let route = match under {
            "/write" => Route::V1Write,
            "/metrics" | "/api/v1/metrics" => Route::NativeWrite,
            "/api/v2/write" => Route::V2Write,
            "/api/v3/write_lp" => Route::V3Write,
            "/ping" => Route::V1Ping,
            "/query" => Route::V1Query,
            "/health" => Route::Health,
            "/ready" => Route::V2Ready,
            _ if under.starts_with("/api/v2/") => return Routed::Unknown(Dialect::V2),
            _ if under.starts_with("/api/v3/") => return Routed::Unknown(Dialect::V3),
            _ => return Routed::Unknown(Dialect::Native),
        };
        if route.takes(method) { Routed::To(route) } else { Routed::WrongMethod(route) }
    }

    /// The sentence of a 404.
    pub fn known_routes(&self) -> String {
        let p = &self.prefix;
        format!(
            "no such route; there are POST {p}/metrics, {p}/api/v1/metrics (JSON), POST {p}/write, {p}/api/v2/write, \
             {p}/api/v3/write_lp (line protocol), GET {p}/ping, {p}/query, {p}/health, {p}/ready"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_and_method_has_one_answer() {
        let router = Router::default();
        for (method, path, routed) in [
            (Method::Post, "/metrics", Routed::To(Route::NativeWrite)),
            (Method::Post, "/api/v1/metrics", Routed::To(Route::NativeWrite)),
            (Method::Get, "/metrics", Routed::WrongMethod(Route::NativeWrite)),
            (Method::Post, "/write", Routed::To(Route::V1Write)),
            (Method::Head, "/write", Routed::WrongMethod(Route::V1Write)),
            (Method::Head, "/ping", Routed::To(Route::V1Ping)),
            (Method::Post, "/ping", Routed::WrongMethod(Route::V1Ping)),
            (Method::Post, "/query", Routed::To(Route::V1Query)),
            (Method::Get, "/query", Routed::To(Route::V1Query)),
            (Method::Post, "/api/v2/write", Routed::To(Route::V2Write)),
            (Method::Put, "/api/v3/write_lp", Routed::WrongMethod(Route::V3Write)),
            (Method::Get, "/ready", Routed::To(Route::V2Ready)),
            (Method::Get, "/api/v2/buckets", Routed::Unknown(Dialect::V2)),
            (Method::Other, "/", Routed::Unknown(Dialect::Native)),
            (Method::Options, "*", Routed::Unknown(Dialect::Native)),
            (Method::Post, "/write/", Routed::Unknown(Dialect::Native)),
        ] {
            assert_eq!(router.route(method, path), routed, "{method:?} {path}");
        }
    }

    #[test]
    fn a_prefix_belongs_to_every_path() {
        for given in ["/in/tsdb", "in/tsdb/", "/in/tsdb/"] {
            let router = Router::new(given);
            assert_eq!(router.route(Method::Post, "/in/tsdb/write"), Routed::To(Route::V1Write));
            assert_eq!(router.route(Method::Post, "/write"), Routed::Unknown(Dialect::Native));
            assert_eq!(router.route(Method::Post, "/in/tsdbx/write"), Routed::Unknown(Dialect::Native));
            assert!(router.known_routes().contains("POST /in/tsdb/write"));
        }
        assert_eq!(Router::new("/").prefix(), "");
    }
}
