//! Serves the router on a listener until asked to stop, then lets requests in flight finish.

use super::{ApiOptions, metrics, router};
use crate::cluster::Cluster;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{io, time::Duration};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves `cluster` over HTTP/1.1 and HTTP/2 until `shutdown` is ready; then accepts nothing new, and gives
/// what is in flight [`ApiOptions::drain`] to finish.
///
/// Errors: another metrics recorder is installed in this process. A failing connection ends alone.
pub async fn serve(
    listener: TcpListener,
    cluster: Cluster,
    options: ApiOptions,
    shutdown: impl Future,
) -> io::Result<()> {
    let drain = options.drain;
    let exporter = metrics::exporter()?;
    let closing = CancellationToken::new();
    let service = TowerToHyperService::new(router(cluster, &options, closing.clone())?);
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
    closing.cancel();
    if tokio::time::timeout(drain, connections.shutdown()).await.is_err() {
        tracing::warn!(?drain, "requests were still in flight");
    }
    Ok(())
}
