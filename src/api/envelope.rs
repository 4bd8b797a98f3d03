//! Qdrant's envelope around every answer, and the time it took.
//!
//! A handler gives back a [`Reply`] or an [`ApiError`]; both travel outward as a response extension, and
//! [`wrap`] writes the body: `{"result":…,"status":"ok","time":…}` or `{"status":{"error":"…"},"time":…}`, with a
//! key more where the error tells more, and `explain` beside a result that was to be explained. 401 and 403 are plain text, as Qdrant's are.

use super::error::{ApiError, Told};
use crate::{
    cluster::{Seen, ShardExplanation, Token, Written},
    model::Kind,
};
use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// What was written or seen, to be passed on.
pub(super) const TOKEN: HeaderName = HeaderName::from_static("annal-token");

/// How old an answer may be that is weaker than linearizable, in milliseconds, rounded up.
const AGE: HeaderName = HeaderName::from_static("annal-age-ms");

/// A result on its way out: JSON text, and what it had seen.
pub(super) struct Reply {
    result: Vec<u8>,
    token: Option<Token>,
    age: Option<Duration>,
    explained: Option<Vec<ShardExplanation>>,
}

impl Reply {
    /// A result without a position.
    pub(super) fn new(result: &impl Serialize) -> Self {
        Reply::json(serde_json::to_vec(result).expect("answers have string keys"))
    }

    /// A result that is JSON text already.
    pub(super) fn json(result: Vec<u8>) -> Self {
        Reply { result, token: None, age: None, explained: None }
    }

    /// The same result with what its read had seen.
    pub(super) fn seen<T>(self, seen: Seen<T>) -> Self {
        Reply { token: Some(seen.token), age: seen.age, explained: seen.explained, ..self }
    }

    /// The same result with what was written.
    pub(super) fn wrote(self, written: Written) -> Self {
        Reply { token: Some(written.token), ..self }
    }
}

/// JSON text that waits for its envelope: a result, and what the search of it did.
#[derive(Clone)]
struct Unwrapped(Bytes, Option<Bytes>);

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        if let Some(token) = self.token {
            let text = HeaderValue::try_from(token.to_string()).expect("a token is URL-safe base64");
            response.headers_mut().insert(TOKEN, text);
        }
        if let Some(age) = self.age {
            let ms = age.as_micros().div_ceil(1_000) as u64;
            response.headers_mut().insert(AGE, ms.into());
        }
        let explained = self.explained.map(|shards| {
            serde_json::to_vec(&serde_json::json!({"shards": shards}))
                .expect("answers have string keys")
                .into()
        });
        response.extensions_mut().insert(Unwrapped(self.result.into(), explained));
        response
    }
}

/// Writes the body of an answer that has none yet.
pub(super) fn wrap(response: &mut Response, took: Duration) {
    let seconds = took.as_secs_f64();
    if let Some(Unwrapped(result, explained)) = response.extensions_mut().remove() {
        write_json(response, success(&result, explained.as_deref(), seconds));
    } else if let Some(error) = response.extensions().get::<ApiError>() {
        if matches!(error.kind, Kind::Unauthorized | Kind::Forbidden) {
            let text = error.to_string();
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            *response.body_mut() = text.into();
        } else {
            let body = failure(error, seconds);
            write_json(response, body);
        }
    }
}

fn write_json(response: &mut Response, body: Vec<u8>) {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *response.body_mut() = body.into();
}

fn success(result: &[u8], explained: Option<&[u8]>, seconds: f64) -> Vec<u8> {
    let end = format!(r#","status":"ok","time":{seconds:.9}}}"#);
    let key: &[u8] = if explained.is_some() { br#","explain":"# } else { b"" };
    [br#"{"result":"#, result, key, explained.unwrap_or_default(), end.as_bytes()].concat()
}

fn failure(error: &ApiError, seconds: f64) -> Vec<u8> {
    let message = Value::from(error.to_string());
    let more = match &error.told {
        Told::Version(version) => format!(r#""version":{},"#, Value::from(version.map(|v| v.0))),
        Told::Oldest(token) => format!(r#""oldest":{},"#, Value::from(token.as_str())),
        Told::Nothing | Told::Seen(_) => String::new(),
    };
    format!(r#"{{"status":{{"error":{message}}},{more}"time":{seconds:.9}}}"#).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Position;

    #[test]
    fn envelopes_are_qdrants() {
        assert_eq!(success(b"true", None, 0.25), br#"{"result":true,"status":"ok","time":0.250000000}"#);
        assert_eq!(
            success(b"[]", Some(b"{}"), 0.0),
            br#"{"result":[],"explain":{},"status":"ok","time":0.000000000}"#
        );
        let error = ApiError::invalid("", "no \"x\"");
        assert_eq!(failure(&error, 0.0), br#"{"status":{"error":"no \"x\""},"time":0.000000000}"#);
    }

    #[test]
    fn errors_that_tell_more_have_a_key_more() {
        for (told, key) in [
            (Told::Version(Some(Position(7))), r#""version":7,"#),
            (Told::Version(None), r#""version":null,"#),
            (Told::Oldest("abc".to_owned()), r#""oldest":"abc","#),
        ] {
            let body = failure(&ApiError::new(Kind::Precondition, "", "x").telling(told), 0.0);
            let wanted = format!(r#"{{"status":{{"error":"x"}},{key}"time":0.000000000}}"#);
            assert_eq!(String::from_utf8(body).unwrap(), wanted);
        }
    }

    #[test]
    fn the_age_is_never_understated() {
        let reply =
            |age| Reply::new(&true).seen(Seen { value: (), token: Token::default(), age, explained: None });
        let age =
            |age| reply(age).into_response().headers().get(AGE).map(|ms| ms.to_str().unwrap().to_owned());
        assert_eq!(age(None), None);
        assert_eq!(age(Some(Duration::from_micros(1))).as_deref(), Some("1"));
        assert_eq!(age(Some(Duration::from_micros(2_001))).as_deref(), Some("3"));
        assert_eq!(age(Some(Duration::from_secs(2))).as_deref(), Some("2000"));
    }
}
