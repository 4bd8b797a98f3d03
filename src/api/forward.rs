//! Sends what only the home of a collection can answer to the region where that is.
//!
//! ```text
//!                      writes, linearizable reads    weaker reads, administration of shards
//!   home here          here                          here
//!   home elsewhere     there                         here
//!   on the way         waits, then as above          here
//! ```
//!
//! Invariants: a request is sent on once; an error says whether the home may have taken it. A collection that follows is
//! not dropped by the way: that is said where it is meant.
//! Not here: which keys a client has (checked before), what the home does.

use super::{ApiOptions, auth::only_reads, error::ApiError, wishes::Wishes};
use crate::{
    cluster::{Cluster, Elsewhere},
    model::{Effect, Kind},
    net::http::{Http, Unanswered, part_of_path},
};
use axum::{
    RequestExt,
    body::Body,
    extract::{MatchedPath, RawPathParams, Request},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Uri,
        header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE, VIA},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

/// Sends requests to other regions.
pub(super) struct Forwarder {
    cluster: Cluster,
    http: Http,
    /// Whether it does.
    forward: bool,
    /// The key that they want.
    key: Option<String>,
}

impl Forwarder {
    pub(super) fn new(cluster: Cluster, options: &ApiOptions) -> Self {
        let (forward, key) = (options.forward, options.region_key.clone());
        Forwarder { cluster, http: Http::default(), forward, key }
    }
}

/// A request's address with the collection's own name in the place of another; `path`: the route that it matched.
fn renamed(uri: &Uri, path: &str, own: &str) -> Result<Uri, ApiError> {
    let own = part_of_path(own);
    let parts = uri.path().split('/').zip(path.split('/'));
    let there: Vec<&str> =
        parts.map(|(part, of)| if of == "{collection}" { own.as_str() } else { part }).collect();
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}{query}", there.join("/"))
        .parse()
        .map_err(|e| ApiError::new(Kind::Internal, "", format!("the collection's own path: {e}")))
}

/// What belongs to one connection and not to the request.
const OF_A_CONNECTION: [HeaderName; 7] =
    [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, TE, UPGRADE, ACCEPT_ENCODING];
const API_KEY: HeaderName = HeaderName::from_static("api-key");
/// Names Annal among those that a request has passed.
const PASSED: HeaderValue = HeaderValue::from_static("1.1 annal");

impl Forwarder {
    /// Answers here, or has the home answer.
    pub(super) async fn forward(&self, mut request: Request, next: Next) -> Response {
        let Ok(params) = request.extract_parts::<RawPathParams>().await else {
            return next.run(request).await;
        };
        let name = params.iter().find(|(key, _)| *key == "collection").map(|(_, name)| name);
        let Some(mut elsewhere) = name.and_then(|name| self.cluster.elsewhere(name)) else {
            return next.run(request).await;
        };
        let name = name.unwrap_or_default().to_owned();
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
        let wishes = request.extensions().get::<Wishes>().cloned();
        let reads = only_reads(request.method(), Some(&path));
        let weaker = wishes.as_ref().is_some_and(|wishes| !wishes.is_linearizable());
        // Of the cluster here, whatever the collection is.
        let local = path.contains("/shards/") || path.ends_with("/cluster");
        if local || (reads && weaker) {
            return next.run(request).await;
        }
        if path == "/collections/{collection}" && *request.method() == Method::DELETE {
            let why = format!(
                "{name} follows its home: it is dropped there, or DELETE /annal/v1/regions/follow drops the copy here"
            );
            return ApiError::new(Kind::Conflict, "collection", why).into_response();
        }
        let deadline = wishes.map_or_else(Instant::now, |wishes| wishes.deadline);
        while elsewhere == Elsewhere::OnTheWay {
            let news = self.cluster.news();
            if timeout_at(deadline, news).await.is_err() {
                let why = format!("the home of {name} is being handed over");
                return ApiError::new(Kind::Unavailable, "", why).into_response();
            }
            match self.cluster.elsewhere(&name) {
                None => return next.run(request).await,
                Some(now) => elsewhere = now,
            }
        }
        let Elsewhere::At { home, name: own } = elsewhere else { return next.run(request).await };
        if own != name {
            match renamed(request.uri(), &path, &own) {
                Ok(uri) => *request.uri_mut() = uri,
                Err(error) => return error.into_response(),
            }
        }
        self.send(&home, request, reads, deadline).await.unwrap_or_else(|error| error.into_response())
    }

    async fn send(
        &self,
        home: &str,
        request: Request,
        reads: bool,
        deadline: Instant,
    ) -> Result<Response, ApiError> {
        if !self.forward {
            let why = format!("the collection has its home at {home}, and requests are not sent on");
            return Err(ApiError::new(Kind::Unavailable, "", why));
        }
        if request.headers().get_all(VIA).iter().any(|passed| *passed == PASSED) {
            return Err(ApiError::new(Kind::Unavailable, "", "two regions each take the other for the home"));
        }
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        parts.uri = format!("{home}{target}").parse::<Uri>().map_err(|e| {
            ApiError::new(Kind::Internal, "", format!("the home's address {home} is none: {e}"))
        })?;
        strip(&mut parts.headers);
        parts.headers.remove(API_KEY);
        parts.headers.remove(axum::http::header::AUTHORIZATION);
        parts.headers.append(VIA, PASSED);
        if let Some(key) = self.key.as_ref().and_then(|key| HeaderValue::from_str(key).ok()) {
            parts.headers.insert(API_KEY, key);
        }
        parts.extensions.clear();
        let body = body.map_err(|e| Box::new(e) as Box<dyn std::error::Error + Send + Sync>).boxed_unsync();
        let unheard = |why: String, sent: bool| {
            let error = ApiError::new(Kind::Unavailable, "", format!("the home at {home}: {why}"));
            ApiError { effect: if sent && !reads { Effect::Unknown } else { Effect::None }, ..error }
        };
        let sent = timeout_at(deadline, self.http.send(axum::http::Request::from_parts(parts, body)));
        match sent.await {
            Ok(Ok(response)) => {
                let (mut parts, body) = response.into_parts();
                strip(&mut parts.headers);
                Ok(Response::from_parts(parts, Body::new(body)))
            }
            Ok(Err(Unanswered { why, sent })) => Err(unheard(why, sent)),
            Err(_) => {
                let error =
                    ApiError::new(Kind::Timeout, "", format!("the home at {home} did not answer in time"));
                Err(ApiError { effect: if reads { Effect::None } else { Effect::Unknown }, ..error })
            }
        }
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in OF_A_CONNECTION {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_sent_on_as_what_it_stands_for() {
        for (asked, route, there) in [
            (
                "/collections/prod/points?wait=true",
                "/collections/{collection}/points",
                "/collections/a%20b/points?wait=true",
            ),
            ("/collections/prod", "/collections/{collection}", "/collections/a%20b"),
            (
                "/annal/v1/collections/prod/points/cas",
                "/annal/v1/collections/{collection}/points/cas",
                "/annal/v1/collections/a%20b/points/cas",
            ),
            (
                "/collections/prod/points/prod",
                "/collections/{collection}/points/{id}",
                "/collections/a%20b/points/prod",
            ),
        ] {
            let uri = renamed(&asked.parse().expect("a path"), route, "a b").expect("a path");
            assert_eq!(uri.to_string(), there);
        }
    }
}
