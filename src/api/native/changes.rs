//! The change feed over HTTP: a body without an end, a line for each change as soon as it is there.
//!
//! Invariants: lines that are ready together are sent together, and at once; nothing is kept for a consumer that is
//! slow; nothing is compressed, and no deadline ends it. A consumer that is cut off goes on with the last token it saw.
//! Deliberately absent: an error as a last line. After the head is sent, an error breaks the connection off, so
//! nobody takes it for the end; who resumes is told by a status.

use crate::{
    api::{
        Api,
        body::At,
        error::{ApiError, Result},
        metrics::FeedOpen,
        wishes::refuse_others,
    },
    changefeed::{self, FeedEvent, FeedOptions},
    cluster::ClusterError,
    model::{Kind, ShardNumber},
};
use axum::{
    Router,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
    routing::get,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Deserialize;

/// Routes that are neither counted among the requests in flight nor bound to a deadline.
pub(in crate::api) fn feeds() -> Router<Api> {
    Router::new().route("/annal/v1/collections/{collection}/changes", get(changes))
}

/// Lines sent in one piece, at most.
const LINES_TOGETHER: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    from: Option<String>,
    shard: Option<u32>,
    #[serde(default)]
    with_payload: bool,
    #[serde(default)]
    with_vector: bool,
}

/// `GET /annal/v1/collections/{collection}/changes`
///
/// Errors: 410 with the oldest token that can be resumed.
async fn changes(
    State(api): State<Api>,
    At(collection): At<String>,
    parameters: std::result::Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response> {
    let Query(parameters) = parameters.map_err(|e| ApiError::invalid("query parameters", e.body_text()))?;
    refuse_others(&headers, &[])?;
    let from: changefeed::From =
        from(&parameters, &headers)?.parse().map_err(|why: &str| ApiError::invalid("from", why))?;
    if api.leaving.is_cancelled() {
        return Err(ApiError::new(Kind::Unavailable, "", "the node is stopping"));
    }
    let options = FeedOptions {
        shard: parameters.shard.map(ShardNumber),
        with_payload: parameters.with_payload,
        with_vector: parameters.with_vector,
        ..FeedOptions::default()
    };
    let events = changefeed::open(&api.cluster, &collection, from, options).await?;
    let lines = events.map(|event| event.map(Line::from));
    Ok(Style::of(&headers).answer(lines, api.leaving.cancelled_owned()))
}

/// Where to begin. A browser that reconnects asks for the same address again, and says in a header how far it came.
fn from<'a>(parameters: &'a Parameters, headers: &'a HeaderMap) -> Result<&'a str> {
    if let Some(last) = headers.get("last-event-id").filter(|id| !id.is_empty()) {
        return last
            .to_str()
            .map_err(|_| ApiError::invalid("Last-Event-ID", "holds bytes that are not ASCII"));
    }
    parameters.from.as_deref().ok_or_else(|| ApiError::invalid("from", "is missing: begin, now, or a token"))
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// A JSON object a line.
    Lines,
    /// Server-sent events, whose id is the token.
    Events,
}

/// One line of the feed, before it is written in a style.
struct Line {
    token: String,
    heartbeat: bool,
    json: Vec<u8>,
}

impl From<FeedEvent> for Line {
    fn from(event: FeedEvent) -> Self {
        let heartbeat = matches!(event, FeedEvent::Heartbeat(_));
        Line { token: event.token().to_string(), heartbeat, json: event.to_json() }
    }
}

impl Style {
    fn of(headers: &HeaderMap) -> Style {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut accepted = accepted.flat_map(|value| value.split(','));
        let events =
            |kind: &str| kind.split(';').next().is_some_and(|kind| kind.trim() == "text/event-stream");
        if accepted.any(events) { Style::Events } else { Style::Lines }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Style::Lines => "application/x-ndjson",
            Style::Events => "text/event-stream",
        })
    }

    fn write(self, line: &Line, out: &mut Vec<u8>) {
        if self == Style::Events {
            if line.heartbeat {
                out.extend(b"event: heartbeat\n");
            }
            out.extend(b"id: ");
            out.extend(line.token.as_bytes());
            out.extend(b"\ndata: ");
        }
        out.extend(&line.json);
        out.extend(if self == Style::Events { &b"\n\n"[..] } else { b"\n" });
    }

    /// The answer whose body is these lines, until they end, break, or `closing` is done.
    fn answer(
        self,
        lines: impl Stream<Item = std::result::Result<Line, ClusterError>> + Send + 'static,
        closing: impl Future<Output = ()> + Send + 'static,
    ) -> Response {
        let open = FeedOpen::enter();
        let pieces = lines.take_until(closing).ready_chunks(LINES_TOGETHER).map(move |lines| {
            let _open = &open;
            let mut piece = Vec::new();
            for line in lines {
                match line {
                    Ok(line) => self.write(&line, &mut piece),
                    Err(error) => {
                        tracing::debug!(%error, "a change feed breaks off");
                        // What came before it was not sent: it comes again after the last token that was.
                        return Err(error);
                    }
                }
            }
            Ok(Bytes::from(piece))
        });
        let mut response = Response::new(Body::from_stream(pieces));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, self.content_type());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::tests::assert_refused;
    use axum::body::to_bytes;
    use http_body_util::BodyExt;
    use std::future::pending;

    fn line(n: u32) -> Line {
        let json = format!(r#"{{"token":"t{n}","n":{n}}}"#);
        Line { token: format!("t{n}"), heartbeat: n == 0, json: json.into_bytes() }
    }

    fn accept(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(text))])
    }

    #[test]
    fn the_style_is_what_is_accepted() {
        for (text, style) in [
            ("text/event-stream", Style::Events),
            ("application/json, text/event-stream;q=0.9", Style::Events),
            ("*/*", Style::Lines),
            ("application/x-ndjson", Style::Lines),
        ] {
            assert_eq!(Style::of(&accept(text)), style, "{text}");
        }
        assert_eq!(Style::of(&HeaderMap::new()), Style::Lines);
    }

    #[test]
    fn a_reconnecting_browser_goes_on_where_it_was() {
        let parameters = |from: Option<&str>| Parameters {
            from: from.map(str::to_owned),
            shard: None,
            with_payload: false,
            with_vector: false,
        };
        let mut headers = HeaderMap::new();
        assert_eq!(from(&parameters(Some("begin")), &headers).unwrap(), "begin");
        assert_refused(from(&parameters(None), &headers), 400, "from: is missing", "");
        headers.insert("last-event-id", HeaderValue::from_static("t7"));
        assert_eq!(from(&parameters(Some("begin")), &headers).unwrap(), "t7");
    }

    #[tokio::test]
    async fn lines_and_events() {
        let lines = || futures::stream::iter([Ok(line(0)), Ok(line(1))]);
        let written = async |style: Style| {
            let body = style.answer(lines(), pending()).into_body();
            String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().into()).unwrap()
        };
        assert_eq!(written(Style::Lines).await, "{\"token\":\"t0\",\"n\":0}\n{\"token\":\"t1\",\"n\":1}\n");
        assert_eq!(
            written(Style::Events).await,
            "event: heartbeat\nid: t0\ndata: {\"token\":\"t0\",\"n\":0}\n\nid: t1\ndata: {\"token\":\"t1\",\"n\":1}\n\n"
        );
    }

    #[tokio::test]
    async fn what_is_ready_is_sent_at_once_and_a_closing_node_ends_it() {
        let (more, rest) = futures::channel::mpsc::unbounded();
        let lines = futures::stream::iter([Ok(line(0)), Ok(line(1))]).chain(rest);
        let (close, closing) = futures::channel::oneshot::channel::<()>();
        let mut body = Style::Lines
            .answer(lines, async {
                let _ = closing.await;
            })
            .into_body();
        let mut piece = async || body.frame().await.map(|frame| frame.unwrap().into_data().unwrap());
        assert_eq!(piece().await.unwrap().iter().filter(|byte| **byte == b'\n').count(), 2);
        more.unbounded_send(Ok(line(2))).unwrap();
        assert!(piece().await.unwrap().ends_with(b"\"n\":2}\n"));
        drop(close);
        assert_eq!(piece().await, None);
    }

    #[tokio::test]
    async fn an_error_breaks_the_connection_off() {
        let broken = ClusterError::Unavailable("the node stops".into());
        let lines = futures::stream::iter([Ok(line(0)), Err(broken)]);
        assert!(to_bytes(Style::Lines.answer(lines, pending()).into_body(), 999).await.is_err());
    }
}
