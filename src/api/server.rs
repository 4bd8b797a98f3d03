//! Serves the front on a listener until asked to stop, then lets requests in flight finish.
//!
//! A connection that is closed while a request is on its way to it loses that request, and its client does not know
//! whether it was served. So a node leaves in steps: it serves for a while yet and asks every client that it answers to
//! come back on another connection; then it turns all of them away, without effect, so that they go to other nodes;
//! then it takes what the kernel has accepted and listens no more; and only when that too had time to ask is it
//! closed. What is closed in the end is idle.

use super::{ApiOptions, metrics, router, unready};
use crate::{cluster::Cluster, region::Regions};
use arc_swap::ArcSwap;
use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    http::{HeaderValue, Request, Response, Version, header::CONNECTION},
};
use futures::FutureExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{convert::Infallible, io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What answers requests: a node that is starting, then its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    router: Arc<ArcSwap<Router>>,
    options: Arc<ApiOptions>,
    leaving: CancellationToken,
}

impl Front {
    /// The front of a node that is starting: alive, and everything else is unavailable without effect.
    pub fn starting(options: ApiOptions) -> Front {
        let router = Arc::new(ArcSwap::from_pointee(unready("the node is starting")));
        Front { router, options: Arc::new(options), leaving: CancellationToken::new() }
    }

    /// From now on `cluster` answers.
    ///
    /// Errors: another metrics recorder is installed in this process.
    pub fn open(&self, cluster: Cluster, regions: Regions) -> io::Result<()> {
        self.router.store(Arc::new(router(cluster, regions, &self.options, self.leaving.clone())?));
        Ok(())
    }

    /// From now on clients are asked to go elsewhere, and feeds end. What comes is still served.
    fn leave(&self) {
        self.leaving.cancel();
    }

    /// From now on what comes is unavailable without effect.
    fn turn_away(&self) {
        self.router.store(Arc::new(unready("the node is leaving")));
    }

    async fn answer<B>(self, request: Request<B>) -> Result<Response<Body>, Infallible>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let has_goodbyes_of_its_own = request.version() >= Version::HTTP_2;
        let mut response = Router::clone(&self.router.load()).oneshot(request).await?;
        if self.leaving.is_cancelled() && !has_goodbyes_of_its_own {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Serves `front` over HTTP/1.1 and HTTP/2 until `shutdown` is ready; then leaves in three steps of
/// [`ApiOptions::linger`] each, and gives what is in flight [`ApiOptions::drain`] to finish.
///
/// Errors: another metrics recorder is installed in this process. A failing connection ends alone.
pub async fn serve(listener: TcpListener, front: Front, shutdown: impl Future) -> io::Result<()> {
    let (linger, drain) = (front.options.linger, front.options.drain);
    let exporter = metrics::exporter()?;
    let answering = front.clone();
    let service =
        TowerToHyperService::new(tower::service_fn(move |request| answering.clone().answer(request)));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT);
    let connections = GracefulShutdown::new();
    let take = |stream: TcpStream| {
        // Answers are small and one write each: waiting to fill a packet would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            return tracing::debug!(%error, "connection went away");
        }
        let connection = server.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection broke");
            }
        });
    };
    let mut upkeep = tokio::time::interval(metrics::UPKEEP);
    let mut end = std::pin::pin!(async {
        shutdown.await;
        front.leave();
        sleep(linger).await;
        front.turn_away();
        sleep(linger).await;
    });
    loop {
        tokio::select! {
            () = &mut end => break,
            _ = upkeep.tick() => exporter.run_upkeep(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => take(stream),
                // Most often no descriptor is free: waiting lets some come back.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    // The kernel resets what it has accepted and nobody has taken.
    while let Some(Ok((stream, _))) = listener.accept().now_or_never() {
        take(stream);
    }
    drop(listener);
    sleep(linger).await;
    if tokio::time::timeout(drain, connections.shutdown()).await.is_err() {
        tracing::warn!(?drain, "requests were still in flight");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::oneshot,
    };

    const PING: &[u8] = b"GET /ping HTTP/1.1\r\nhost: a\r\n\r\n";

    async fn answer(connection: &mut TcpStream) -> String {
        let mut buffer = vec![0; 4_096];
        let read = connection.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..read].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_node_that_leaves_serves_then_turns_away_then_closes() {
        let linger = Duration::from_millis(300);
        let front = Front::starting(ApiOptions { linger, ..ApiOptions::default() });
        front.router.store(Arc::new(Router::new().route("/ping", get(async || "pong"))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve(listener, front, stopped));
        let open = async || TcpStream::connect(address).await.unwrap();
        let mut kept = open().await;
        kept.write_all(PING).await.unwrap();
        assert!(!answer(&mut kept).await.contains("connection: close"));
        let (mut unused, mut late) = (open().await, open().await);
        stop.send(()).unwrap();
        sleep(linger / 2).await;
        // Connections of before and new ones are served, and closed behind the answer.
        for connection in [&mut kept, &mut open().await] {
            connection.write_all(PING).await.unwrap();
            let text = answer(connection).await;
            assert!(text.contains("connection: close") && text.ends_with("pong"), "{text}");
            assert_eq!(answer(connection).await, "", "closed");
        }
        // Then they are turned away, for certain,
        sleep(linger).await;
        for connection in [&mut unused, &mut open().await] {
            connection.write_all(PING).await.unwrap();
            let text = answer(connection).await;
            assert!(text.starts_with("HTTP/1.1 503") && text.contains("connection: close"), "{text}");
            assert!(text.contains("annal-effect: none"), "{text}");
        }
        // also when nobody new is let in any more.
        sleep(linger).await;
        TcpStream::connect(address).await.unwrap_err();
        late.write_all(PING).await.unwrap();
        assert!(answer(&mut late).await.starts_with("HTTP/1.1 503"));
        serving.await.unwrap().unwrap();
    }
}
