//! Serves the front on a listener until asked to stop, then lets requests in flight finish.

use super::{ApiOptions, metrics, router, starting};
use crate::cluster::Cluster;
use arc_swap::ArcSwap;
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{io, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tower::ServiceExt;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// What answers requests: a node that is starting, then its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    router: Arc<ArcSwap<Router>>,
    options: Arc<ApiOptions>,
}

impl Front {
    /// The front of a node that is starting: alive, and everything else is unavailable without effect.
    pub fn starting(options: ApiOptions) -> Front {
        Front { router: Arc::new(ArcSwap::from_pointee(starting())), options: Arc::new(options) }
    }

    /// From now on `cluster` answers.
    ///
    /// Errors: another metrics recorder is installed in this process.
    pub fn open(&self, cluster: Cluster) -> io::Result<()> {
        self.router.store(Arc::new(router(cluster, &self.options)?));
        Ok(())
    }
}

/// Serves `front` over HTTP/1.1 and HTTP/2 until `shutdown` is ready; then accepts nothing new, and gives
/// what is in flight [`ApiOptions::drain`] to finish.
///
/// Errors: another metrics recorder is installed in this process. A failing connection ends alone.
pub async fn serve(listener: TcpListener, front: Front, shutdown: impl Future) -> io::Result<()> {
    let drain = front.options.drain;
    let exporter = metrics::exporter()?;
    let service = TowerToHyperService::new(tower::service_fn(move |request| {
        let router = Router::clone(&front.router.load());
        router.oneshot(request)
    }));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT);
    let connections = GracefulShutdown::new();
    let mut upkeep = tokio::time::interval(metrics::UPKEEP);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            _ = &mut shutdown => break,
            _ = upkeep.tick() => exporter.run_upkeep(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Answers are small and one write each: waiting to fill a packet would only delay them.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "connection went away");
                        continue;
                    }
                    let connection = server.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
                    let connection = connections.watch(connection);
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "connection broke");
                        }
                    });
                }
                // Most often no descriptor is free: waiting lets some come back.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    if tokio::time::timeout(drain, connections.shutdown()).await.is_err() {
        tracing::warn!(?drain, "requests were still in flight");
    }
    Ok(())
}
