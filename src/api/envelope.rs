//! Qdrant's envelope around every answer, and the time it took.
//!
//! A handler gives back a [`Reply`] or an [`ApiError`]; both travel outward as a response extension, and
//! [`wrap`] writes the body: `{"result":…,"status":"ok","time":…}` or `{"status":{"error":"…"},"time":…}`.
//! 401 and 403 are plain text, as Qdrant's are.

use super::error::ApiError;
use crate::{cluster::Token, model::Kind};
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use std::time::Instant;

/// What was written or seen, to be passed on.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("annal-token");

/// A result on its way out: JSON text, and what it had seen.
pub(super) struct Reply {
    result: Vec<u8>,
    token: Option<Token>,
}

impl Reply {
    /// A result without a position.
    pub(super) fn new(result: &impl Serialize) -> Self {
        Reply::json(serde_json::to_vec(result).expect("answers have string keys"))
    }

    /// A result that is JSON text already.
    pub(super) fn json(result: Vec<u8>) -> Self {
        Reply { result, token: None }
    }

    /// The same result with what it had seen (or wrote).
    pub(super) fn seen(self, token: Token) -> Self {
        Reply { token: Some(token), ..self }
    }
}

/// JSON text that waits for its envelope.
#[derive(Clone)]
struct Unwrapped(Bytes);

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        if let Some(token) = self.token {
            let text = HeaderValue::try_from(token.to_string()).expect("a token is URL-safe base64");
            response.headers_mut().insert(TOKEN, text);
        }
        response.extensions_mut().insert(Unwrapped(self.result.into()));
        response
    }
}

/// Writes the body of every answer that has none yet.
pub(super) async fn wrap(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let mut response = next.run(request).await;
    let time = || started.elapsed().as_secs_f64();
    if let Some(Unwrapped(result)) = response.extensions_mut().remove() {
        write_json(&mut response, success(&result, time()));
    } else if let Some(error) = response.extensions().get::<ApiError>() {
        if matches!(error.kind, Kind::Unauthorized | Kind::Forbidden) {
            let text = error.to_string();
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            *response.body_mut() = text.into();
        } else {
            let body = failure(&error.to_string(), time());
            write_json(&mut response, body);
        }
    }
    response
}

fn write_json(response: &mut Response, body: Vec<u8>) {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = body.into();
}

fn success(result: &[u8], seconds: f64) -> Vec<u8> {
    let end = format!(r#","status":"ok","time":{seconds:.9}}}"#);
    [br#"{"result":"#.as_slice(), result, end.as_bytes()].concat()
}

fn failure(message: &str, seconds: f64) -> Vec<u8> {
    let message = serde_json::Value::from(message);
    format!(r#"{{"status":{{"error":{message}}},"time":{seconds:.9}}}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_are_qdrants() {
        assert_eq!(success(b"true", 0.25), br#"{"result":true,"status":"ok","time":0.250000000}"#);
        assert_eq!(failure("no \"x\"", 0.0), br#"{"status":{"error":"no \"x\""},"time":0.000000000}"#,);
    }
}
