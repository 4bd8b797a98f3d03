//! The stack around the handlers, on a router with handlers made for it.

use super::{body::Json, envelope::Reply, error::Result, *};
use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::Response,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::ServiceExt;

const BODY_BYTES_MAX: usize = 20_000;

fn options() -> ApiOptions {
    ApiOptions { body_bytes_max: BODY_BYTES_MAX, in_flight_max: 1, ..Default::default() }
}

/// `/echo` gives back its JSON, `/hang` never ends, `/panic` does.
fn stack(options: &ApiOptions) -> Router {
    let built = Router::new()
        .route("/echo", post(async |Json(body): Json<Value>| Reply::new(&body)))
        .route("/hang", get(hang).post(hang))
        .route("/panic", post(panic))
        .route("/lines", get(async || ([(CONTENT_TYPE, "application/x-ndjson")], "x".repeat(10_000))));
    let later = refusing(&["GET PUT /later/{thing}"]);
    layered((built, Guard::new(None, options)), (later, Door::new(options)))
        .with_state(BodyLimit(options.body_bytes_max))
}

async fn hang() -> Result<Reply> {
    std::future::pending().await
}

async fn panic() -> Result<Reply> {
    panic!("the sky fell")
}

async fn send(
    stack: &Router,
    request: axum::http::request::Builder,
    body: impl Into<Body>,
) -> (Response<()>, Vec<u8>) {
    let response = stack.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (Response::from_parts(parts, ()), to_bytes(body, usize::MAX).await.unwrap().into())
}

fn post_to(path: &str) -> axum::http::request::Builder {
    Request::post(path)
}

/// Status, effect and message of an error.
fn error((response, body): (Response<()>, Vec<u8>)) -> (u16, String, String) {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let effect = response.headers()["annal-effect"].to_str().unwrap().to_owned();
    (response.status().as_u16(), effect, body["status"]["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn answers_are_wrapped_and_traceable() {
    let stack = stack(&options());
    let (response, body) = send(&stack, post_to("/echo").header("x-request-id", "mine"), r#"{"a":1}"#).await;
    assert_eq!(
        (response.status(), &response.headers()["x-request-id"]),
        (StatusCode::OK, &"mine".parse().unwrap())
    );
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["result"], &body["status"]), (&json!({"a": 1}), &json!("ok")));
    assert!(body["time"].as_f64().unwrap() >= 0.0);
    let (response, _) = send(&stack, post_to("/echo"), "1").await;
    assert_eq!(response.headers()["x-request-id"].len(), 32);
}

#[tokio::test]
async fn a_panic_is_an_answer_of_unknown_effect() {
    let (status, effect, message) = error(send(&stack(&options()), post_to("/panic"), "").await);
    assert_eq!((status, effect.as_str(), message.as_str()), (500, "unknown", "a bug: the sky fell"));
}

#[tokio::test]
async fn what_hangs_is_cut_off() {
    let stack = stack(&ApiOptions { in_flight_max: 2, ..options() });
    let request =
        |method: &str| Request::builder().method(method).uri("/hang").header("annal-timeout-ms", "1");
    let (read, write) = tokio::join!(send(&stack, request("GET"), ""), send(&stack, request("POST"), ""));
    let message = "the request did not finish in time".to_owned();
    assert_eq!(error(read), (408, "none".into(), message.clone()));
    assert_eq!(error(write), (408, "unknown".into(), message));
}

#[tokio::test]
async fn a_body_that_does_not_arrive_had_no_effect() {
    let body = Body::from_stream(futures::stream::pending::<io::Result<bytes::Bytes>>());
    let answer = send(&stack(&options()), post_to("/echo").header("annal-timeout-ms", "1"), body).await;
    assert_eq!(error(answer), (408, "none".into(), "body: did not arrive in time".into()));
}

#[tokio::test]
async fn load_beyond_the_limit_is_turned_away() {
    let stack = stack(&options());
    let started = Arc::new(Notify::new());
    let held = Body::from_stream(futures::stream::once({
        let started = started.clone();
        async move {
            started.notify_one();
            std::future::pending::<io::Result<bytes::Bytes>>().await
        }
    }));
    let hanging = tokio::spawn({
        let stack = stack.clone();
        async move { send(&stack, post_to("/echo"), held).await }
    });
    started.notified().await;
    let answer = send(&stack, post_to("/echo"), "1").await;
    assert_eq!(answer.0.headers()["retry-after"], "1");
    assert_eq!(error(answer).0, 429);
    // What is open is answered all the same, and a place is free again once its request is gone.
    assert_eq!(send(&stack, Request::get("/later/x"), "").await.0.status(), 501);
    hanging.abort();
    assert!(hanging.await.unwrap_err().is_cancelled());
    assert_eq!(send(&stack, post_to("/echo"), "1").await.0.status(), 200);
}

#[tokio::test]
async fn bodies_are_limited_also_when_compressed_or_of_unknown_length() {
    let stack = stack(&options());
    let message = "body: is larger than the limit of 20000 bytes".to_owned();
    let blanks = vec![b' '; BODY_BYTES_MAX + 1];
    let announced = post_to("/echo").header(CONTENT_LENGTH, blanks.len());
    assert_eq!(error(send(&stack, announced, blanks.clone()).await), (413, "none".into(), message.clone()));
    let pieces = Body::from_stream(futures::stream::iter(
        blanks.clone().into_iter().map(|b| Ok::<_, io::Error>(vec![b])),
    ));
    assert_eq!(error(send(&stack, post_to("/echo"), pieces).await), (413, "none".into(), message.clone()));
    let small = gzip_stored(b"[1,2]");
    let (response, _) = send(&stack, post_to("/echo").header("content-encoding", "gzip"), small).await;
    assert_eq!(response.status(), 200);
    let bomb = gzip_stored(&blanks);
    let bomb = send(&stack, post_to("/echo").header("content-encoding", "gzip"), bomb).await;
    assert_eq!(error(bomb), (413, "none".into(), message));
    let odd = send(&stack, post_to("/echo").header("content-encoding", "snappy"), "1").await;
    assert_eq!(error(odd), (400, "none".into(), "Content-Encoding: \"snappy\" is not known".into()));
}

/// A gzip file whose one block is stored as it is.
fn gzip_stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    let [crc, size] = [crc32fast::hash(bytes).to_le_bytes(), u32::from(length).to_le_bytes()];
    [&head[..], &length.to_le_bytes(), &(!length).to_le_bytes(), bytes, &crc, &size].concat()
}

#[tokio::test]
async fn large_answers_are_compressed_for_who_asks() {
    let stack = stack(&options());
    let long = json!("x".repeat(10_000)).to_string();
    for (body, accept, encoding) in
        [(long.as_str(), "gzip", Some("gzip")), (&long, "identity", None), ("1", "gzip", None)]
    {
        let request = post_to("/echo").header("accept-encoding", accept);
        let (response, _) = send(&stack, request, body.to_owned()).await;
        assert_eq!(response.headers().get("content-encoding").map(|e| e.to_str().unwrap()), encoding);
    }
    let twice = post_to("/echo").header("accept-encoding", "br").header("accept-encoding", "gzip");
    let (response, _) = send(&stack, twice, long.clone()).await;
    assert_eq!(response.headers()["content-encoding"], "gzip", "said in two lines");
}

#[tokio::test]
async fn feeds_are_never_compressed() {
    let request = Request::get("/lines").header("accept-encoding", "gzip");
    let (response, body) = send(&stack(&options()), request, "").await;
    assert_eq!((response.headers().get("content-encoding"), body.len()), (None, 10_000));
}

#[tokio::test]
async fn known_and_unknown_routes() {
    let stack = stack(&options());
    for (method, path, status, message) in [
        ("PUT", "/later/x", 501, "PUT /later/{thing}: is not implemented yet"),
        ("DELETE", "/later/x", 404, "Not found: there is no DELETE /later/x"),
        ("GET", "/never", 404, "Not found: there is no GET /never"),
        ("POST", "/hang?wiat=true", 400, "query parameters: wiat: unknown field"),
    ] {
        let (got, effect, text) = error(send(&stack, Request::builder().method(method).uri(path), "").await);
        assert_eq!((got, effect.as_str()), (status, "none"), "{method} {path}");
        assert!(text.starts_with(message), "{text}");
    }
}

#[tokio::test]
async fn without_a_key_nothing_but_the_probes_is_open() {
    let keys = Keys { full: Some("all".into()), read_only: None };
    let stack = stack(&ApiOptions { keys, ..options() });
    for (path, key, status) in [
        ("/echo", "", 401),
        ("/echo", "all", 200),
        ("/later/x", "", 401),
        ("/never", "", 401),
        ("/never", "all", 404),
    ] {
        let (response, body) = send(&stack, post_to(path).header("api-key", key), "1").await;
        assert_eq!(response.status().as_u16(), status, "{path} {key}");
        assert_eq!(body.starts_with(b"{"), status != 401, "401 is plain text");
    }
}

/// The route tables agree with each other: building the router panics if two routes are the same.
#[test]
fn every_route_stands_once() {
    let _ = layered((built(), Guard::new(None, &options())), (open(), Door::new(&options())));
}
