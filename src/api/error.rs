//! Errors as users see them: the only place where an error becomes a status.
//!
//! Invariants: every error answer carries `annal-effect: none | unknown`; 429 and 503 carry an integer
//! `Retry-After`; the message names the field as the user wrote it; what was seen is passed on as for answers.
//! Not here: the body (see `envelope`), which needs the time the request took.
//! Source: the table in `docs/ARCHITECTURE.md`; it agrees with Qdrant's statuses where both have one.

use super::envelope::TOKEN;
use crate::{
    cluster::{ClusterError, Token},
    model::{Effect, Invalid, Kind, Position},
};
use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use std::fmt;

/// Says on every error whether the request may have changed something.
pub(super) const EFFECT: HeaderName = HeaderName::from_static("annal-effect");

/// An error on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    /// What the caller can do.
    pub(super) kind: Kind,
    /// Whether something may have changed.
    pub(super) effect: Effect,
    /// Path of the field it is about; empty if it is about none.
    pub(super) field: String,
    /// What is wrong, with the quantities.
    pub(super) why: String,
    /// What it tells beside that.
    pub(super) told: Told,
}

/// What an error tells beside its message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing.
    #[default]
    Nothing,
    /// The version a point is at: `version` in the body, null if there is no such point.
    Version(Option<Position>),
    /// Where a feed can still start: `oldest` in the body, and `Annal-Token`.
    Oldest(String),
    /// What was seen: `Annal-Token`.
    Seen(Token),
}

/// What every handler answers.
pub(super) type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    /// An error without effect.
    pub(super) fn new(kind: Kind, field: impl Into<String>, why: impl Into<String>) -> Self {
        let told = Told::Nothing;
        ApiError { kind, effect: Effect::None, field: field.into(), why: why.into(), told }
    }

    /// The same error, telling more.
    pub(super) fn telling(self, told: Told) -> Self {
        ApiError { told, ..self }
    }

    /// The caller must fix `field`.
    pub(super) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, field, why)
    }

    /// `what` (of `field`; the field itself if empty) is known, but not built yet.
    pub(super) fn unbuilt(field: impl Into<String>, what: &str) -> Self {
        let why = format!("{what} is not implemented yet");
        Self::new(Kind::Unimplemented, field, why.trim_start())
    }

    /// The same error seen from one level up: `points[3]` + `vector` becomes `points[3].vector`.
    pub(super) fn within(mut self, outer: impl fmt::Display) -> Self {
        self.field =
            if self.field.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.field) };
        self
    }

    /// The status for what the caller can do.
    pub(super) fn status(&self) -> StatusCode {
        match self.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Precondition => StatusCode::PRECONDITION_FAILED,
            Kind::Expired => StatusCode::GONE,
            Kind::Limited => StatusCode::TOO_MANY_REQUESTS,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Timeout => StatusCode::REQUEST_TIMEOUT,
            Kind::Full => StatusCode::INSUFFICIENT_STORAGE,
            Kind::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Kind::Corrupt | Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Seconds after which a retry makes sense.
    fn retry_after(&self) -> Option<HeaderValue> {
        matches!(self.kind, Kind::Limited | Kind::Unavailable).then(|| HeaderValue::from_static("1"))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.why),
            field => write!(f, "{field}: {}", self.why),
        }
    }
}

impl From<Invalid> for ApiError {
    fn from(e: Invalid) -> Self {
        ApiError::invalid(e.field, e.why)
    }
}

impl From<ClusterError> for ApiError {
    fn from(e: ClusterError) -> Self {
        let told = match &e {
            ClusterError::Precondition { version, .. } => Told::Version(*version),
            ClusterError::TooOld { oldest, .. } => Told::Oldest(oldest.clone()),
            _ => Told::Nothing,
        };
        ApiError { kind: e.kind(), effect: e.effect(), field: String::new(), why: e.to_string(), told }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        let headers = response.headers_mut();
        headers.insert(EFFECT, HeaderValue::from_static(self.effect.as_str()));
        if let Some(seconds) = self.retry_after() {
            headers.insert(RETRY_AFTER, seconds);
        }
        let token = match &self.told {
            Told::Oldest(token) => HeaderValue::try_from(token).ok(),
            Told::Seen(token) => HeaderValue::try_from(token.to_string()).ok(),
            Told::Nothing | Told::Version(_) => None,
        };
        headers.extend(token.map(|token| (TOKEN, token)));
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Panics unless `outcome` is an error with this status whose message starts so; `case` says which one it is.
    #[track_caller]
    pub(in crate::api) fn assert_refused<T: fmt::Debug>(
        outcome: Result<T>,
        status: u16,
        message: &str,
        case: impl fmt::Display,
    ) {
        let error = outcome.expect_err("is refused");
        assert!(error.to_string().starts_with(message), "{case}: {error}");
        assert_eq!(error.status().as_u16(), status, "{case}");
    }

    #[test]
    fn each_kind_has_its_status() {
        for (kind, status) in [
            (Kind::Invalid, 400),
            (Kind::TooLarge, 413),
            (Kind::Unauthorized, 401),
            (Kind::Forbidden, 403),
            (Kind::NotFound, 404),
            (Kind::Conflict, 409),
            (Kind::Precondition, 412),
            (Kind::Expired, 410),
            (Kind::Limited, 429),
            (Kind::Unavailable, 503),
            (Kind::Timeout, 408),
            (Kind::Full, 507),
            (Kind::Unimplemented, 501),
            (Kind::Corrupt, 500),
            (Kind::Internal, 500),
        ] {
            let response = ApiError::new(kind, "", "x").into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()[&EFFECT], "none");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), matches!(status, 429 | 503));
        }
    }

    #[test]
    fn an_unknown_effect_is_passed_on() {
        let timeout = ClusterError::Timeout { what: "the upsert".into(), effect: Effect::Unknown };
        let response = ApiError::from(timeout).into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()[&EFFECT]),
            (408, &"unknown".parse().unwrap())
        );
    }

    #[test]
    fn what_was_seen_is_passed_on() {
        let token = Token::default();
        let missing = ApiError::new(Kind::NotFound, "", "x").telling(Told::Seen(token.clone()));
        assert_eq!(missing.into_response().headers()[&TOKEN], token.to_string());
        let late = ClusterError::TooOld { message: "x".into(), oldest: "abc".into() };
        let late = ApiError::from(late).into_response();
        assert_eq!((late.status().as_u16(), &late.headers()[&TOKEN]), (410, &"abc".parse().unwrap()));
        let at = ClusterError::Precondition { message: "x".into(), version: Some(Position(7)) };
        assert_eq!(ApiError::from(at).told, Told::Version(Some(Position(7))));
    }

    #[test]
    fn messages_name_the_field() {
        let e = ApiError::invalid("vector", "has 3 numbers").within("points[3]");
        assert_eq!(e.to_string(), "points[3].vector: has 3 numbers");
        let e = ApiError::unbuilt("prefetch", "").within("searches[0]");
        assert_eq!(e.to_string(), "searches[0].prefetch: is not implemented yet");
        let e = ApiError::unbuilt("", "idf").within("modifier");
        assert_eq!(e.to_string(), "modifier: idf is not implemented yet");
        assert_eq!(ApiError::invalid("", "x").within("body").to_string(), "body: x");
    }
}
