//! How a request wants to be carried out: Annal's headers and Qdrant's query parameters.
//!
//! Invariants: what is not understood is refused, never ignored. A read is linearizable unless `Annal-Consistency`
//! asks for less, and of two wishes the stronger one counts: Qdrant's `consistency` of more than one replica makes it
//! linearizable. Every write is acknowledged only when a quorum has it, so `ordering` is checked and then met.

use super::error::{ApiError, Result};
use crate::{
    cluster::{Consistency, ReadOptions, Token, WriteOptions},
    model::RequestId,
};
use axum::{
    extract::{FromRequestParts, MatchedPath, Query, Request},
    http::{HeaderMap, Uri, request::Parts},
};
use serde::Deserialize;
use std::{str::FromStr, time::Duration};
use tokio::time::Instant;

/// The longest time a request may ask for.
const TIMEOUT_SECONDS_MAX: u64 = 86_400;

/// How this request wants to be carried out.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    /// When to give up.
    pub(super) deadline: Instant,
    wait: bool,
    at_least: Option<Token>,
    consistency: Consistency,
    /// Whether to tell what a search did; `None` where it is not said.
    explain: Option<bool>,
    request: Option<RequestId>,
}

/// Qdrant's parameters that every route understands.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    wait: Option<bool>,
    timeout: Option<u64>,
    #[serde(rename = "ordering")]
    _ordering: Option<Ordering>,
    consistency: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Ordering {
    Weak,
    Medium,
    Strong,
}

impl Wishes {
    /// Whether a read is to see all that was acknowledged before.
    pub(super) fn is_linearizable(&self) -> bool {
        self.consistency == Consistency::Linearizable
    }

    /// For a write.
    pub(super) fn write(self) -> WriteOptions {
        WriteOptions { wait: self.wait, deadline: self.deadline, request: self.request, token: self.at_least }
    }

    /// For a read.
    pub(super) fn read(self) -> ReadOptions {
        ReadOptions {
            deadline: self.deadline,
            at_least: self.at_least,
            consistency: self.consistency,
            explain: self.explain.unwrap_or_default(),
        }
    }

    /// Reads and checks everything a request says about how it wants to be carried out.
    fn parse(headers: &HeaderMap, uri: &Uri, now: Instant, timeout_default: Duration) -> Result<Self> {
        let Query(parameters) = Query::<Parameters>::try_from_uri(uri)
            .map_err(|e| ApiError::invalid("query parameters", root_cause(&e)))?;
        let several = parameters.consistency.as_deref().map(asks_several).transpose()?.unwrap_or(false);
        refuse_others(headers, &BUILT)?;
        let at_least = parsed::<Token>(headers, "Annal-Token")?;
        let asked = one(headers, "Annal-Consistency")?
            .map(|text| consistency(text, at_least.is_some()))
            .transpose()?
            .unwrap_or_default();
        let consistency = if several { Consistency::Linearizable } else { asked };
        let explain = one(headers, EXPLAIN)?.map(yes_or_no).transpose()?;
        let request = parsed(headers, "Idempotency-Key")?;
        let by_parameter = parameters
            .timeout
            .map(|s| bounded("timeout", s, TIMEOUT_SECONDS_MAX, "seconds"))
            .transpose()?
            .map(Duration::from_secs);
        let by_header = one(headers, "Annal-Timeout-Ms")?
            .map(|text| {
                bounded(
                    "Annal-Timeout-Ms",
                    number("Annal-Timeout-Ms", text)?,
                    TIMEOUT_SECONDS_MAX * 1_000,
                    "milliseconds",
                )
            })
            .transpose()?
            .map(Duration::from_millis);
        let timeout = by_parameter.into_iter().chain(by_header).min().unwrap_or(timeout_default);
        let wait = parameters.wait.unwrap_or(false);
        Ok(Wishes { deadline: now + timeout, wait, at_least, consistency, explain, request })
    }
}

/// Headers of the contract that are not honoured yet.
const UNBUILT: [&str; 1] = ["annal-as-of"];
const BUILT: [&str; 4] = ["annal-consistency", "annal-token", "annal-timeout-ms", "annal-explain"];

/// Only a search can be explained.
const EXPLAIN: &str = "Annal-Explain";
const EXPLAINED: [&str; 4] =
    ["/points/query", "/points/query/batch", "/points/search", "/points/search/batch"];

/// Refuses headers of Annal's that the route does not honour.
pub(super) fn refuse_others(headers: &HeaderMap, honoured: &[&str]) -> Result<()> {
    let ours = headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("annal-"));
    match ours.into_iter().find(|name| !honoured.contains(name)) {
        None => Ok(()),
        Some(name) if UNBUILT.contains(&name) => Err(ApiError::unbuilt(format!("header {name}"), "")),
        Some(name) if BUILT.contains(&name) => {
            Err(ApiError::invalid(format!("header {name}"), "means nothing on this route"))
        }
        Some(name) => Err(ApiError::invalid(format!("header {name}"), "is not known")),
    }
}

/// The one value of a header, if it is there.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(text) => Ok(Some(text.trim())),
            Err(_) => Err(ApiError::invalid(name, "holds bytes that are not visible ASCII")),
        },
        (Some(_), Some(_)) => Err(ApiError::invalid(name, "is given twice")),
    }
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(headers: &HeaderMap, name: &str) -> Result<Option<T>> {
    one(headers, name)?
        .map(|text| text.parse().map_err(|why: T::Err| ApiError::invalid(name, why.to_string())))
        .transpose()
}

fn yes_or_no(text: &str) -> Result<bool> {
    text.parse().map_err(|_| ApiError::invalid(EXPLAIN, format!("\"{text}\" is neither true nor false")))
}

fn number(name: &str, text: &str) -> Result<u64> {
    text.parse().map_err(|_| ApiError::invalid(name, format!("\"{text}\" is not an unsigned number")))
}

fn bounded(name: &str, value: u64, max: u64, unit: &str) -> Result<u64> {
    if (1..=max).contains(&value) {
        return Ok(value);
    }
    Err(ApiError::invalid(name, format!("{value} is not within 1 to {max} {unit}")))
}

/// `linearizable`, `at-least` (with a token), `bounded=50ms` or `local`.
fn consistency(text: &str, has_token: bool) -> Result<Consistency> {
    const NAME: &str = "Annal-Consistency";
    match text {
        "linearizable" => Ok(Consistency::Linearizable),
        "local" => Ok(Consistency::Local),
        "at-least" if has_token => Ok(Consistency::AtLeast),
        "at-least" => Err(ApiError::invalid(NAME, "at-least needs an Annal-Token to be at least at")),
        _ => match text.strip_prefix("bounded=").and_then(|bound| bound.strip_suffix("ms")) {
            Some(ms) => match number(NAME, ms)? {
                // Nothing that was acknowledged before may be missing.
                0 => Ok(Consistency::Linearizable),
                ms => Ok(Consistency::Bounded(Duration::from_millis(ms))),
            },
            None => Err(ApiError::invalid(
                NAME,
                format!("\"{text}\" is none of linearizable, at-least, bounded=…ms, local"),
            )),
        },
    }
}

/// A count of replicas, or `majority`, `quorum`, `all`: whether the newest of several is wanted.
fn asks_several(text: &str) -> Result<bool> {
    match (text, text.parse::<u32>()) {
        ("majority" | "quorum" | "all", _) => Ok(true),
        (_, Ok(replicas)) if replicas > 0 => Ok(replicas > 1),
        _ => Err(ApiError::invalid(
            "consistency",
            format!("\"{text}\" is neither a positive number nor majority, quorum or all"),
        )),
    }
}

/// The innermost reason; axum's own sentence around it names Rust types.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Reads the wishes once, before anything else of a request is looked at, and leaves them for its handler; gives the
/// deadline.
pub(super) fn read(request: &mut Request, timeout_default: Duration) -> Result<Instant> {
    let wishes = Wishes::parse(request.headers(), request.uri(), Instant::now(), timeout_default)?;
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if wishes.explain.is_some() && !EXPLAINED.iter().any(|end| route.ends_with(end)) {
        return Err(ApiError::invalid("header annal-explain", "means nothing on this route"));
    }
    let deadline = wishes.deadline;
    request.extensions_mut().insert(wishes);
    Ok(deadline)
}

impl<S: Sync> FromRequestParts<S> for Wishes {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Ok(parts.extensions.get::<Wishes>().expect("every built route reads the wishes first").clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::tests::assert_refused;

    fn parse(query: &str, headers: &[(&'static str, &str)]) -> Result<(Wishes, Duration)> {
        let now = Instant::now();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let uri = format!("/collections/a?{query}").parse().unwrap();
        let wishes = Wishes::parse(&map, &uri, now, Duration::from_secs(30))?;
        let timeout = wishes.deadline - now;
        Ok((wishes, timeout))
    }

    #[test]
    fn good_wishes() {
        let (wishes, timeout) = parse("", &[]).unwrap();
        assert_eq!((wishes.wait, timeout, wishes.request), (false, Duration::from_secs(30), None));
        let (wishes, timeout) =
            parse("wait=true&ordering=weak&consistency=quorum&timeout=5", &[("idempotency-key", "me/7")])
                .unwrap();
        assert_eq!((wishes.wait, timeout), (true, Duration::from_secs(5)));
        assert_eq!(wishes.request, Some(RequestId { client: "me".into(), seq: 7 }));
    }

    #[test]
    fn of_two_wishes_the_stronger_one_counts() {
        let token = Token::default().to_string();
        for (query, header, consistency) in [
            ("", None, Consistency::Linearizable),
            ("", Some("linearizable"), Consistency::Linearizable),
            ("", Some("bounded=50ms"), Consistency::Bounded(Duration::from_millis(50))),
            ("", Some("bounded=0ms"), Consistency::Linearizable),
            ("", Some("local"), Consistency::Local),
            ("", Some("at-least"), Consistency::AtLeast),
            ("consistency=1", Some("local"), Consistency::Local),
            ("consistency=1", None, Consistency::Linearizable),
            ("consistency=2", Some("local"), Consistency::Linearizable),
            ("consistency=majority", Some("bounded=50ms"), Consistency::Linearizable),
            ("consistency=quorum", Some("at-least"), Consistency::Linearizable),
            ("consistency=all", Some("local"), Consistency::Linearizable),
        ] {
            let mut headers = vec![("annal-token", token.as_str())];
            headers.extend(header.map(|text| ("annal-consistency", text)));
            let read = parse(query, &headers).unwrap().0.read();
            assert_eq!(read.consistency, consistency, "{query} {header:?}");
            assert_eq!(read.at_least, Some(Token::default()), "seen at all of them");
        }
    }

    #[test]
    fn a_route_names_the_headers_it_does_not_honour() {
        let headers =
            |name: &'static str| HeaderMap::from_iter([(name.parse().unwrap(), "1".parse().unwrap())]);
        refuse_others(&headers("accept"), &[]).unwrap();
        refuse_others(&headers("annal-token"), &["annal-token"]).unwrap();
        assert_refused(
            refuse_others(&headers("annal-token"), &[]),
            400,
            "header annal-token: means nothing",
            "",
        );
    }

    #[test]
    fn the_shorter_timeout_counts() {
        assert_eq!(parse("timeout=5", &[("annal-timeout-ms", "20")]).unwrap().1, Duration::from_millis(20));
        assert_eq!(parse("timeout=1", &[("annal-timeout-ms", "2000")]).unwrap().1, Duration::from_secs(1));
    }

    #[test]
    fn bad_wishes_are_named() {
        for (query, headers, status, message) in [
            ("wait=yes", &[][..], 400, "query parameters: wait: "),
            ("wat=true", &[], 400, "query parameters: wat: unknown field `wat`"),
            ("timeout=0", &[], 400, "timeout: 0 is not within 1 to 86400 seconds"),
            ("timeout=-1", &[], 400, "query parameters: timeout: "),
            ("ordering=sideways", &[], 400, "query parameters: ordering: unknown variant `sideways`"),
            ("consistency=0", &[], 400, "consistency: \"0\""),
            ("consistency=most", &[], 400, "consistency: \"most\""),
            ("", &[("annal-consistency", "eventual")], 400, "Annal-Consistency: \"eventual\""),
            ("", &[("annal-consistency", "bounded=5")], 400, "Annal-Consistency: "),
            ("", &[("annal-consistency", "bounded=xms")], 400, "Annal-Consistency: \"x\""),
            ("", &[("annal-consistency", "at-least")], 400, "Annal-Consistency: at-least needs"),
            ("", &[("annal-timeout-ms", "soon")], 400, "Annal-Timeout-Ms: \"soon\""),
            (
                "",
                &[("annal-timeout-ms", "1"), ("annal-timeout-ms", "2")],
                400,
                "Annal-Timeout-Ms: is given twice",
            ),
            ("", &[("annal-as-of", "1")], 501, "header annal-as-of: is not implemented yet"),
            ("", &[("annal-explain", "1")], 400, "Annal-Explain: \"1\" is neither true nor false"),
            ("", &[("annal-wish", "1")], 400, "header annal-wish: is not known"),
            ("", &[("idempotency-key", "me")], 400, "Idempotency-Key: wants CLIENT/SEQ"),
            ("", &[("idempotency-key", "a/b/1")], 400, "Idempotency-Key: wants CLIENT/SEQ"),
        ] {
            assert_refused(parse(query, headers), status, message, format_args!("{query} {headers:?}"));
        }
    }
}
