//! A request's JSON body, read within the limit and the deadline, and parsed with the field's path in the error.
//!
//! A body is parsed straight into its type; only when that fails it is parsed again with every step tracked, to
//! name the field (`points[3].vector: …`). So the good case pays nothing for good messages.

use super::{
    error::{ApiError, Result},
    wishes::Wishes,
};
use crate::model::Kind;
use axum::{
    RequestExt,
    extract::{FromRef, FromRequest, FromRequestParts, Path, Request},
    http::{header::CONTENT_ENCODING, header::CONTENT_LENGTH, request::Parts},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::cell::Cell;

/// Bodies above this are parsed off the async threads, in bytes.
const PARSED_ASIDE_BYTES: usize = 64 * 1024;

/// Largest body in bytes, decompressed.
#[derive(Clone, Copy)]
pub(super) struct BodyLimit(pub(super) usize);

/// A parsed JSON body.
pub(super) struct Json<T>(pub(super) T);

/// A parsed JSON body, or the default if the body is empty.
pub(super) struct JsonIfAny<T>(pub(super) T);

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send + 'static,
    BodyLimit: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        parsed(request, state, parse).await.map(Json)
    }
}

impl<S, T> FromRequest<S> for JsonIfAny<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Default + Send + 'static,
    BodyLimit: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let bytes = arrived(request, BodyLimit::from_ref(state)).await?;
        if bytes.is_empty() {
            return Ok(JsonIfAny(T::default()));
        }
        parse_aside(bytes, parse).await.map(JsonIfAny)
    }
}

/// The body of a request as `parse` reads it.
pub(super) async fn parsed<S, T: Send + 'static>(
    request: Request,
    state: &S,
    parse: fn(&[u8]) -> Result<T>,
) -> Result<T>
where
    BodyLimit: FromRef<S>,
{
    parse_aside(arrived(request, BodyLimit::from_ref(state)).await?, parse).await
}

/// The whole body, within the request's deadline.
async fn arrived(mut request: Request, limit: BodyLimit) -> Result<Bytes> {
    let wishes = request.extract_parts::<Wishes>().await?;
    tokio::time::timeout_at(wishes.deadline, collect(request, limit))
        .await
        .map_err(|_| ApiError::new(Kind::Timeout, "body", "did not arrive in time"))?
}

async fn parse_aside<T: Send + 'static>(bytes: Bytes, parse: fn(&[u8]) -> Result<T>) -> Result<T> {
    if bytes.len() <= PARSED_ASIDE_BYTES {
        return parse(&bytes);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&bytes)).await;
    parsed.map_err(|e| ApiError::new(Kind::Internal, "body", e.to_string()))?
}

async fn collect(request: Request, BodyLimit(bytes_max): BodyLimit) -> Result<Bytes> {
    let too_large =
        || ApiError::new(Kind::TooLarge, "body", format!("is larger than the limit of {bytes_max} bytes"));
    let (parts, body) = request.into_parts();
    if let Some(encoding) = parts.headers.get(CONTENT_ENCODING).filter(|e| *e != "identity") {
        return Err(ApiError::invalid("Content-Encoding", format!("{encoding:?} is not known")));
    }
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(too_large());
    }
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(too_large()),
        Err(e) => Err(ApiError::invalid("body", format!("broke off: {e}"))),
    }
}

thread_local! {
    /// Whether this thread parses a text again, to name what is wrong with it.
    static NAMES_ERRORS: Cell<bool> = const { Cell::new(false) };
}

/// Whether what is parsed now must go step by step, since one of them fails and is to be named.
pub(super) fn names_errors() -> bool {
    NAMES_ERRORS.get()
}

/// Parses JSON text; an error names the field's path.
pub(super) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|untracked| {
        let deserializer = &mut serde_json::Deserializer::from_slice(text);
        NAMES_ERRORS.set(true);
        let tracked = serde_path_to_error::deserialize::<_, T>(deserializer).err();
        NAMES_ERRORS.set(false);
        let path =
            tracked.as_ref().map(|e| e.path().to_string()).filter(|path| !matches!(path.as_str(), "." | "?"));
        let why = tracked.map_or(untracked, serde_path_to_error::Error::into_inner);
        ApiError::invalid(path.unwrap_or_else(|| "Format error in JSON body".into()), why.to_string())
    })
}

/// Parses a JSON value; an error names the field's path within it.
pub(super) fn parse_value<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let why = e.into_inner().to_string();
        ApiError::invalid(if path == "." { String::new() } else { path }, why)
    })
}

/// Parts of the request's path.
pub(super) struct At<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for At<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(at)| At(at)).map_err(|e| ApiError::invalid("path", e.body_text()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::tests::assert_refused;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its parsing is tested")]
    struct Outer {
        points: Vec<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its parsing is tested")]
    struct Inner {
        n: u8,
    }

    #[test]
    fn errors_name_the_path() {
        for (text, message) in [
            (r#"{"points":[{"n":1},{"n":300}]}"#, "points[1].n: invalid value: integer `300`"),
            (r#"{"points":[{"n":1,"m":2}]}"#, "points[0].m: unknown field `m`"),
            (r#"{"points":[{}]}"#, "points[0]: missing field `n`"),
            (r#"{"points":7}"#, "points: invalid type"),
            ("", "Format error in JSON body: EOF"),
            (r#"{"points":[]} x"#, "Format error in JSON body: trailing characters"),
        ] {
            assert_refused(parse::<Outer>(text.as_bytes()), 400, message, text);
        }
        parse::<Outer>(br#"{"points":[{"n":1}]}"#).unwrap();
    }
}
