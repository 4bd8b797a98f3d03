//! A client of one cluster, honest about how a request failed.
//!
//! Invariants: an operation is `Fail` only if no byte of it left, or the node says `annal-effect: none`; a read that
//! failed had no effect whatever happened; everything else that is not an answer is `Info`.
//! Not here: retries (an operation is sent once), which node is asked (see `workload`).

use crate::history::{Event, Kind};
use serde_json::Value;
use std::time::Duration;

/// Connections to all nodes; one for each process, since a process does one thing at a time.
pub struct Client {
    agent: ureq::Agent,
    api_key: Option<String>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP's.
    pub status: u16,
    /// Whether the node says that nothing has changed.
    pub no_effect: bool,
    /// `Annal-Token`.
    pub token: Option<String>,
    /// `Annal-Age-Ms`.
    pub age_ms: Option<u64>,
    /// The body; null if it is no JSON.
    pub body: Value,
}

/// Why there was no answer.
#[derive(Clone, Debug)]
pub enum Failed {
    /// The node never saw the request.
    NotSent(String),
    /// The node may have seen it and done what it says.
    Lost(String),
}

/// Whether what is sent may change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It only reads.
    Reads,
    /// It writes.
    Writes,
}

/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

impl Client {
    /// `within`: how long an answer may take.
    pub fn new(api_key: Option<&str>, within: Duration) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(1)))
            .timeout_global(Some(within))
            .build()
            .new_agent();
        Client { agent, api_key: api_key.map(str::to_owned) }
    }

    /// Asks for something.
    pub fn get(&self, url: &str) -> Result<Reply, Failed> {
        self.send("GET", url, &[], None)
    }

    /// Sends a request and waits for its whole answer.
    pub fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Reply, Failed> {
        let mut answer = self.open(method, url, headers, body)?;
        let status = answer.status().as_u16();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let no_effect = header("annal-effect") == Some("none");
        let token = header("annal-token").map(str::to_owned);
        let age_ms = header("annal-age-ms").and_then(|age| age.parse().ok());
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.map_err(|e| Failed::Lost(e.to_string()))?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Reply { status, no_effect, token, age_ms, body })
    }

    /// Sends a request; the answer's body is still to be read.
    pub fn open(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<ureq::http::Response<ureq::Body>, Failed> {
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.api_key {
            request = request.header("api-key", key);
        }
        let not_sent = |e: ureq::http::Error| Failed::NotSent(e.to_string());
        let answer = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                self.agent.run(request.map_err(not_sent)?)
            }
            None => self.agent.run(request.body(()).map_err(not_sent)?),
        };
        answer.map_err(|error| {
            let why = error.to_string();
            if is_before_sending(&error) { Failed::NotSent(why) } else { Failed::Lost(why) }
        })
    }
}

/// Whether no byte can have left: the connection was never made.
fn is_before_sending(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
        ureq::Error::Timeout(at) => matches!(at, ureq::Timeout::Connect | ureq::Timeout::Resolve),
        ureq::Error::Io(e) => {
            use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
            matches!(e.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
        }
        _ => false,
    }
}

impl Reply {
    /// What was learned without asking a node.
    pub fn here() -> Self {
        Reply { status: 200, no_effect: false, token: None, age_ms: None, body: Value::Null }
    }

    /// `result` of the body.
    pub fn result(&self) -> &Value {
        &self.body["result"]
    }

    /// What the node says is wrong.
    pub fn error(&self) -> String {
        let why = self.body["status"]["error"].as_str().unwrap_or("no reason given");
        format!("{} {}", self.status, why.chars().take(160).collect::<String>())
    }
}

/// What an answer that is not the wanted one means for an operation.
pub fn outcome(effect: Effect, answer: &Result<Reply, Failed>) -> (Kind, Event) {
    let (certain, why) = match answer {
        Ok(reply) => (reply.no_effect, reply.error()),
        Err(Failed::NotSent(why)) => (true, why.clone()),
        Err(Failed::Lost(why)) => (false, why.clone()),
    };
    let kind = if certain || effect == Effect::Reads { Kind::Fail } else { Kind::Info };
    (kind, Event { error: Some(why), ..Event::of("") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, no_effect: bool) -> Result<Reply, Failed> {
        Ok(Reply { status, no_effect, token: None, age_ms: None, body: Value::Null })
    }

    #[test]
    fn only_what_certainly_had_no_effect_has_failed() {
        let of = |effect, answer| outcome(effect, &answer).0;
        assert_eq!(of(Effect::Writes, reply(503, true)), Kind::Fail);
        assert_eq!(of(Effect::Writes, reply(503, false)), Kind::Info);
        assert_eq!(of(Effect::Writes, Err(Failed::Lost("reset".into()))), Kind::Info);
        assert_eq!(of(Effect::Writes, Err(Failed::NotSent("refused".into()))), Kind::Fail);
        assert_eq!(of(Effect::Reads, Err(Failed::Lost("reset".into()))), Kind::Fail);
    }

    #[test]
    fn a_port_where_nobody_listens_is_not_sent() {
        let client = Client::new(None, Duration::from_secs(2));
        let answer = client.send("PUT", "http://127.0.0.1:1/x", &[], Some(&Value::Null));
        assert!(matches!(answer, Err(Failed::NotSent(_))), "{answer:?}");
    }
}
