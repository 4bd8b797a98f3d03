//! A node as a client sees it: where it is, the key it wants, and requests that are sent again when they may be.

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::{Duration, Instant};
use ureq::{Agent, Body, http::Response};

// Which node to ask. No doc comment: it would take the place of the description of each command it is part of.
#[derive(Args, Clone, Debug)]
pub(super) struct Server {
    /// A node of the cluster.
    #[arg(long, default_value = "http://127.0.0.1:6333", value_parser = url)]
    url: String,
    /// The key, if the node wants one.
    #[arg(long, env = "ANNAL_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

/// An address with a scheme; `127.0.0.1:6333` is taken for http.
fn url(text: &str) -> Result<String, &'static str> {
    let (scheme, address) = text.split_once("://").unwrap_or(("http", text));
    let address = address.trim_end_matches('/');
    match scheme {
        "http" if address.is_empty() => Err("an address such as http://127.0.0.1:6333"),
        "http" => Ok(format!("http://{address}")),
        _ => Err("only http:// is spoken"),
    }
}

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a node answered, not looked at yet.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) text: String,
}

impl Reply {
    /// The body of an answer that must be a success, as what it holds; `what` was asked for.
    pub(super) fn expect<T: DeserializeOwned>(self, what: &str) -> Result<T, Failure> {
        match self.status {
            200..300 => serde_json::from_str(&self.text)
                .map_err(|e| format!("{what}: the answer is not what it should be: {e}").into()),
            _ => Err(self.parsed().failure(what)),
        }
    }

    /// Looked at as JSON.
    pub(super) fn parsed(self) -> Answer {
        Answer { status: self.status, body: serde_json::from_str(&self.text).unwrap_or_default() }
    }
}

/// What a node answered.
pub(super) struct Answer {
    pub(super) status: u16,
    /// Null if the body is no JSON.
    pub(super) body: Value,
}

impl Answer {
    /// The body of an answer that must be a success; `what` was asked for.
    pub(super) fn expect(self, what: &str) -> Result<Value, Failure> {
        match self.status {
            200..300 => Ok(self.body),
            _ => Err(self.failure(what)),
        }
    }

    /// The error the answer tells of.
    pub(super) fn failure(&self, what: &str) -> Failure {
        match self.body["status"]["error"].as_str() {
            Some(message) => format!("{what}: {message} (status {})", self.status).into(),
            None => format!("{what}: the node answers with status {}", self.status).into(),
        }
    }

    /// Whether the same request may be answered otherwise in a moment.
    pub(super) fn is_passing(&self) -> bool {
        is_passing(self.status)
    }
}

fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 503)
}

/// A client of one node; its connections are kept and shared.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    url: String,
    api_key: Option<String>,
}

/// How long a connection, a request on its way, and an answer may take each.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);
const SENT_WITHIN: Duration = Duration::from_secs(120);
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// How long the head of an answer that has no end may take.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Pauses before a request is sent again.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Server {
    pub(super) fn client(&self) -> Client {
        Client::new(self.url.clone(), self.api_key.clone())
    }
}

impl Client {
    pub(super) fn new(url: String, api_key: Option<String>) -> Self {
        // Each step has a time, and not the whole: within one, ureq looks up the address of each request on a thread that it
        // starts for that, which was a good part of what a bench took (`docs/BENCHMARKS.md`).
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECTED_WITHIN))
            .timeout_send_request(Some(SENT_WITHIN))
            .timeout_send_body(Some(SENT_WITHIN))
            .timeout_recv_response(Some(ANSWER_WITHIN))
            .timeout_recv_body(Some(ANSWER_WITHIN));
        Client { agent: config.build().into(), url, api_key }
    }

    /// Asks once.
    ///
    /// Errors: no answer came.
    pub(super) fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer, ureq::Error> {
        self.ask_plainly(method, path, body).map(Reply::parsed)
    }

    /// Asks once; the answer is not parsed.
    ///
    /// Errors: no answer came.
    pub(super) fn ask_plainly(&self, method: &str, path: &str, body: &str) -> Result<Reply, ureq::Error> {
        let mut response = self.agent.run(self.request(method, path, body)?)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string()?;
        Ok(Reply { status, text })
    }

    /// Asks until it is answered for good, or for `within`; only for what may be asked twice.
    pub(super) fn insist(
        &self,
        method: &str,
        path: &str,
        body: &str,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let (started, mut pause) = (Instant::now(), PAUSE);
        loop {
            let late = started.elapsed() + pause > within;
            match self.ask_plainly(method, path, body) {
                Ok(reply) if late || !is_passing(reply.status) => return Ok(reply),
                Err(error) if late => return Err(format!("{}: {error}", self.url).into()),
                Ok(_) | Err(_) => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// What the cluster looks like.
    pub(super) fn topology(&self) -> Result<Value, Failure> {
        let answer = self.ask("GET", "/annal/v1/cluster", "").map_err(|e| format!("{}: {e}", self.url))?;
        answer.expect("the cluster")
    }

    /// An answer whose body has no end.
    pub(super) fn stream(&self, path: &str) -> Result<Response<Body>, ureq::Error> {
        let request = self.agent.configure_request(self.request("GET", path, "")?);
        let request = request.timeout_recv_response(Some(HEAD_WITHIN)).timeout_recv_body(None).build();
        self.agent.run(request)
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> Result<ureq::http::Request<String>, ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        if let Some(key) = &self.api_key {
            request = request.header("api-key", key);
        }
        Ok(request.body(body.to_owned())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_times_with_which_ureq_starts_no_thread() {
        let times = Client::new("http://127.0.0.1:1".to_owned(), None).agent.config().timeouts();
        // Any of these would have it look up the address on a thread of its own.
        assert_eq!((times.global, times.per_call, times.resolve), (None, None, None));
        let each = [times.connect, times.send_request, times.send_body, times.recv_response, times.recv_body];
        assert!(each.iter().all(Option::is_some), "every step ends: {each:?}");
    }

    #[test]
    fn addresses() {
        assert_eq!(url("127.0.0.1:6333").unwrap(), "http://127.0.0.1:6333");
        assert_eq!(url("http://host:1/").unwrap(), "http://host:1");
        for bad in ["", "http://", "https://host", "ftp://host"] {
            url(bad).expect_err(bad);
        }
    }
}
