//! The way to other regions over HTTP: `POST /annal/v1/regions/ask` and `POST /annal/v1/regions/stream`.

use super::link::{Answer, Link, Question, Wanted};
use crate::{
    cluster::ClusterError,
    model::Effect,
    net::{
        ByteStream,
        http::{Http, Incoming, Request, Response, Unanswered, whole},
    },
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use http_body_util::{BodyExt, BodyStream, Limited};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::time::{Instant, timeout_at};

type Result<T> = std::result::Result<T, ClusterError>;

/// Speaks to other regions with one key.
#[derive(Clone)]
pub struct HttpLink {
    http: Http,
    api_key: Option<String>,
}

/// Where questions are asked,
pub const ASK: &str = "/annal/v1/regions/ask";
/// and streams opened.
pub const STREAM: &str = "/annal/v1/regions/stream";
/// No answer is longer.
const ANSWER_BYTES_MAX: usize = 64 << 20;

impl HttpLink {
    /// With the key that other regions want, if they want one.
    pub fn new(http: Http, api_key: Option<String>) -> Self {
        HttpLink { http, api_key }
    }

    async fn post(self, url: String, body: impl Serialize, deadline: Instant) -> Result<Response<Incoming>> {
        let away = |why: String| ClusterError::Unavailable(format!("{url}: {why}"));
        let json = serde_json::to_vec(&body).expect("string keys, finite numbers");
        let mut request = Request::post(&url).header("content-type", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("api-key", key);
        }
        let request = request.body(whole(json.into())).map_err(|e| away(e.to_string()))?;
        match timeout_at(deadline, self.http.send(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(Unanswered { why, .. })) => Err(away(why)),
            Err(_) => Err(ClusterError::Timeout { what: format!("asking {url}"), effect: Effect::Unknown }),
        }
    }
}

impl Link for HttpLink {
    fn ask(&self, url: &str, question: Question, deadline: Instant) -> BoxFuture<'static, Result<Answer>> {
        let (link, url) = (self.clone(), format!("{url}{ASK}"));
        Box::pin(async move {
            let response = link.post(url.clone(), question, deadline).await?;
            told(&url, response, deadline).await
        })
    }

    fn stream(&self, url: &str, wanted: Wanted, deadline: Instant) -> BoxFuture<'static, Result<ByteStream>> {
        let (link, url) = (self.clone(), format!("{url}{STREAM}"));
        Box::pin(async move {
            let response = link.post(url.clone(), wanted, deadline).await?;
            if response.headers().get("content-type").is_some_and(|kind| kind == "application/octet-stream") {
                let pieces = TryStreamExt::map_err(BodyStream::new(response.into_body()), io::Error::other);
                let pieces = pieces.map_ok(|frame| frame.into_data().unwrap_or_default());
                return Ok(pieces.boxed());
            }
            match told::<Answer>(&url, response, deadline).await {
                Ok(_) => Err(ClusterError::Unavailable(format!("{url}: it answers something else"))),
                Err(error) => Err(error),
            }
        })
    }
}

/// What a region says: the answer or its error, or a page of something that is none.
async fn told<T: DeserializeOwned>(url: &str, response: Response<Incoming>, deadline: Instant) -> Result<T> {
    let away = |why: String| ClusterError::Unavailable(format!("{url}: {why}"));
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
    let body: Bytes = match timeout_at(deadline, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Err(away(error.to_string())),
        Err(_) => {
            return Err(ClusterError::Timeout { what: format!("hearing {url}"), effect: Effect::Unknown });
        }
    };
    match serde_json::from_slice::<std::result::Result<T, ClusterError>>(&body) {
        Ok(answer) => answer,
        Err(_) => {
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            Err(away(format!("status {}: {text}", status.as_u16())))
        }
    }
}
