//! Requests to HTTP services of other clusters.
//!
//! Invariants: connections are kept and shared; an error says whether the request can have been taken.
//! Deliberately absent: TLS (a tunnel between regions brings it), proxies, redirects.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
pub use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::{error::Error, time::Duration};

/// What a name may hold and still be a part of a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A name as a part of a path.
pub fn part_of_path(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// A body on its way out.
pub type Outgoing = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A request that was not answered.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Unanswered {
    /// Why.
    pub why: String,
    /// Whether it may have been taken.
    pub sent: bool,
}

/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long one that is not used is kept: less than servers keep theirs.
const IDLE_FOR: Duration = Duration::from_secs(15);

/// A client of HTTP services; cheap to clone.
#[derive(Clone)]
pub struct Http {
    client: Client<HttpConnector, Outgoing>,
}

impl Default for Http {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_WITHIN));
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_FOR).timer(TokioTimer::new());
        Http { client: client.build(connector) }
    }
}

impl Http {
    /// Sends a request; the answer's body comes as it is read.
    ///
    /// Errors: no answer; `sent` is false only if the request cannot have reached anybody.
    pub async fn send(&self, request: Request<Outgoing>) -> Result<Response<Incoming>, Unanswered> {
        self.client.request(request).await.map_err(|error| {
            let sent = !error.is_connect();
            let mut why = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                why = format!("{why}: {error}");
                source = error.source();
            }
            Unanswered { why, sent }
        })
    }
}

/// A body that is there.
pub fn whole(bytes: Bytes) -> Outgoing {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_part_of_a_path() {
        assert_eq!(part_of_path("a-b_c.d~9"), "a-b_c.d~9");
        assert_eq!(part_of_path("a b/é?"), "a%20b%2F%C3%A9%3F");
    }
}
