//! Who may do what: one key for everything, one for reading.
//!
//! A key comes as `api-key: KEY` or `Authorization: Bearer KEY`. Without configured keys everybody may do
//! everything (a node refuses to listen beyond its own host then). The version and the probes are open.
//! Not here: keys by collection, JWT.

use super::error::{ApiError, Result};
use crate::model::Kind;
use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, Method, header::AUTHORIZATION},
};

const OPEN: [&str; 4] = ["/", "/healthz", "/livez", "/readyz"];

/// Last parts of the routes that read although they are POSTs.
const READING_POSTS: [&str; 6] = ["/points", "/scroll", "/count", "/query", "/search", "/batch"];

/// Whether a request can change nothing.
pub(super) fn only_reads(method: &Method, path: Option<&str>) -> bool {
    match *method {
        Method::GET | Method::HEAD => true,
        // `points/batch` changes points; `query/batch` and `search/batch` do not.
        Method::POST => path.is_some_and(|path| {
            !path.ends_with("/points/batch") && READING_POSTS.iter().any(|last| path.ends_with(last))
        }),
        _ => false,
    }
}

/// The keys of a node.
#[derive(Clone, Default)]
pub struct Keys {
    /// May do everything.
    pub full: Option<String>,
    /// May read.
    pub read_only: Option<String>,
}

impl Keys {
    /// Errors: whoever asks may not do what the request asks for.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        if path.is_some_and(|path| OPEN.contains(&path)) {
            return Ok(());
        }
        self.admit(request.headers(), only_reads(request.method(), path))
    }

    fn admit(&self, headers: &HeaderMap, only_reads: bool) -> Result<()> {
        if self.full.is_none() && self.read_only.is_none() {
            return Ok(());
        }
        let key = presented(headers).ok_or_else(|| {
            refused(Kind::Unauthorized, "Must provide an API key or an Authorization bearer token")
        })?;
        let is = |known: &Option<String>| known.as_ref().is_some_and(|known| same(known, key));
        match (is(&self.full), is(&self.read_only)) {
            (true, _) => Ok(()),
            (false, true) if only_reads => Ok(()),
            (false, true) => Err(refused(Kind::Forbidden, "Write access denied: this API key may only read")),
            (false, false) => Err(refused(Kind::Unauthorized, "Invalid API key")),
        }
    }
}

fn refused(kind: Kind, why: &str) -> ApiError {
    ApiError::new(kind, "", why)
}

fn presented(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("api-key").or_else(|| {
        let (scheme, key) = text(AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    })
}

/// Compares in a time that tells nothing of where the keys differ.
fn same(known: &str, presented: &str) -> bool {
    known.len() == presented.len()
        && known.bytes().zip(presented.bytes()).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_open_what_they_should() {
        let both = Keys { full: Some("all".into()), read_only: Some("look".into()) };
        let full = Keys { full: Some("all".into()), read_only: None };
        let admit = |keys: &Keys, header: Option<(&'static str, &str)>, only_reads| {
            let headers = header.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
            keys.admit(&headers, only_reads).map_err(|e| e.status().as_u16())
        };
        for (keys, header, only_reads, expected) in [
            (&Keys::default(), None, false, Ok(())),
            (&both, None, true, Err(401)),
            (&both, Some(("api-key", "all")), false, Ok(())),
            (&both, Some(("authorization", "Bearer all")), false, Ok(())),
            (&both, Some(("authorization", "Basic all")), false, Err(401)),
            (&both, Some(("api-key", "al")), true, Err(401)),
            (&both, Some(("api-key", "alm")), true, Err(401)),
            (&both, Some(("api-key", "look")), true, Ok(())),
            (&both, Some(("api-key", "look")), false, Err(403)),
            (&full, Some(("api-key", "look")), true, Err(401)),
            (&full, Some(("api-key", "")), true, Err(401)),
        ] {
            assert_eq!(admit(keys, header, only_reads), expected, "{header:?} {only_reads}");
        }
    }

    #[test]
    fn reading_posts_are_known() {
        let reads =
            |method, path: &str| only_reads(&method, Some(&format!("/collections/{{collection}}{path}")));
        for path in [
            "/points",
            "/points/scroll",
            "/points/count",
            "/points/query",
            "/points/query/batch",
            "/points/search/batch",
        ] {
            assert!(reads(Method::POST, path), "{path}");
        }
        for path in ["/points/delete", "/points/batch", "/index", "/points/payload", "/points/vectors"] {
            assert!(!reads(Method::POST, path), "{path}");
        }
        assert!(!reads(Method::PUT, "/points") && !only_reads(&Method::POST, None));
        assert!(only_reads(&Method::GET, None));
    }
}
