//! Two nodes in one process, with a wire between them that can be counted, frozen and cut.

#![allow(clippy::unwrap_used)]

use super::{socket::Listener, *};
use futures::{StreamExt, stream};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// What the tests ask for.
#[derive(Default)]
struct Desk {
    seen: Arc<AtomicUsize>,
    given_up: Arc<AtomicUsize>,
    broken_uploads: Arc<AtomicUsize>,
}

/// Counts when dropped before it is defused.
struct GivenUp(Arc<AtomicUsize>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Service for Desk {
    fn is_open(&self, path: &str) -> bool {
        path == "/open"
    }

    fn answer(&self, from: &str, path: &str, body: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
        self.seen.fetch_add(1, SeqCst);
        let (from, path, given_up) = (from.to_owned(), path.to_owned(), self.given_up.clone());
        Box::pin(async move {
            match path.as_str() {
                "/echo" => Ok(body),
                "/open" | "/who" => Ok(from.into()),
                "/panic" => panic!("asked to"),
                "/late-panic" => {
                    tokio::task::yield_now().await;
                    panic!("asked to")
                }
                "/fail" => Err(Failure::new("sour", "the milk is sour")),
                "/hang" => {
                    let _guard = GivenUp(given_up);
                    std::future::pending().await
                }
                path => Err(Failure::no_path(path)),
            }
        })
    }

    fn receive(
        &self,
        _: &str,
        path: &str,
        head: Bytes,
        mut body: ByteStream,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let (path, broken) = (path.to_owned(), self.broken_uploads.clone());
        Box::pin(async move {
            if path == "/early" {
                return Ok(Bytes::from_static(b"enough"));
            }
            let (mut bytes, mut sum) = (0_usize, crc32fast::Hasher::new());
            while let Some(item) = body.next().await {
                let item = item.map_err(|e| {
                    broken.fetch_add(1, SeqCst);
                    Failure::new("broken", e.to_string())
                })?;
                bytes += item.len();
                sum.update(&item);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            Ok(format!("{head}: {bytes} bytes, {:08x}", sum.finalize()).into())
        })
    }

    fn stream(&self, _: &str, path: &str, body: Bytes) -> BoxFuture<'static, Result<ByteStream, Failure>> {
        let (path, given_up) = (path.to_owned(), self.given_up.clone());
        Box::pin(async move {
            let chunks: u64 = std::str::from_utf8(&body).unwrap().parse().unwrap();
            let good = stream::iter((0..chunks).map(chunk).map(Ok));
            match path.as_str() {
                "/chunks" => Ok(good.boxed()),
                "/snaps" => Ok(good.chain(torn()).boxed()),
                "/drip" => {
                    let guard = GivenUp(given_up);
                    Ok(good.chain(stream::pending()).inspect(move |_| _ = &guard).boxed())
                }
                path => Err(Failure::no_path(path)),
            }
        })
    }
}

/// Breaks after what came before it has been sent.
fn torn() -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
    stream::once(async {
        sleep(Duration::from_millis(100)).await;
        Err(io::Error::other("torn"))
    })
}

fn chunk(at: u64) -> Bytes {
    (0..8192_u64).flat_map(|n| (at * 8192 + n).to_le_bytes()).collect()
}

/// A node that serves, and what stops it.
struct Served {
    address: String,
    desk: Arc<Desk>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Served {
    async fn start(on: &str, credentials: Credentials, cluster: Option<&str>) -> Served {
        let listener = socket::listen(on).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (desk, stop) = (Arc::new(Desk::default()), CancellationToken::new());
        let peers = Peers::new(credentials);
        if let Some(cluster) = cluster {
            peers.set_cluster(cluster.into());
        }
        let task = tokio::spawn(serve(listener, peers, desk.clone(), stop.clone()));
        Served { address, desk, stop, task }
    }

    async fn stop(self) -> String {
        self.stop.cancel();
        self.task.await.unwrap();
        self.address
    }
}

fn credentials(node: &str, secret: Option<&str>) -> Credentials {
    Credentials { node: node.into(), secret: secret.map(Into::into) }
}

async fn two() -> (Served, Peers) {
    let served = Served::start("127.0.0.1:0", credentials("b", Some("s")), Some("c1")).await;
    let peers = Peers::new(credentials("a", Some("s")));
    peers.set_cluster("c1".into());
    (served, peers)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// How a wire treats what is sent over it.
#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Flows,
    Frozen,
    Cut,
}

/// A wire to `to`: its address, how many connections went over it, and the switch.
async fn wire(to: String) -> (String, Arc<AtomicUsize>, watch::Sender<Wire>) {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (connections, switch) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(Wire::Flows));
    let (count, state) = (connections.clone(), switch.subscribe());
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            count.fetch_add(1, SeqCst);
            let (to, mut state) = (to.clone(), state.clone());
            tokio::spawn(async move {
                state.wait_for(|s| *s != Wire::Frozen).await.unwrap();
                let Ok(far) = socket::connect(&to).await else { return };
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                let cut = async |mut state: watch::Receiver<Wire>| {
                    state.wait_for(|s| *s == Wire::Cut).await.unwrap();
                };
                tokio::select! {
                    () = pump(near_in, far_out, state.clone()) => {}
                    () = pump(far_in, near_out, state.clone()) => {}
                    () = cut(state.clone()) => {}
                }
            });
        }
    });
    (address, connections, switch)
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut state: watch::Receiver<Wire>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        state.wait_for(|s| *s != Wire::Frozen).await.unwrap();
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_share_one_connection() {
    let (served, peers) = two().await;
    let (address, connections, _switch) = wire(served.address.clone()).await;
    let calls = (0..2_000_u32).map(|n| {
        let (peers, address) = (peers.clone(), address.clone());
        // Some are empty, some need several frames.
        let body = Bytes::from(vec![n as u8; if n % 100 == 0 { 700_000 } else { n as usize % 50 }]);
        async move { (peers.call(&address, "/echo", body.clone(), soon()).await, body) }
    });
    let mut calls = stream::iter(calls).buffer_unordered(500);
    while let Some((answer, body)) = calls.next().await {
        assert_eq!(answer.unwrap(), body);
    }
    assert_eq!(connections.load(SeqCst), 1);
    assert_eq!(served.desk.seen.load(SeqCst), 2_000);
    assert_eq!(peers.call(&address, "/who", Bytes::new(), soon()).await.unwrap(), "a");
}

#[tokio::test]
async fn failures_and_refusals_are_told_apart() {
    let (served, peers) = two().await;
    let to = served.address.clone();
    let call = async |path| peers.call(&to, path, Bytes::new(), soon()).await.unwrap_err();
    assert_eq!(
        call("/fail").await,
        CallError::Failed { to: to.clone(), code: "sour".into(), message: "the milk is sour".into() }
    );
    assert!(
        matches!(call("/nothing").await, CallError::Refused { why, .. } if why == "there is no /nothing")
    );
    let refused = peers.download(&to, "/nothing", Bytes::from_static(b"1"), soon()).await.err().unwrap();
    assert!(matches!(refused, CallError::Refused { .. }));
    let huge = Bytes::from(vec![0; CALL_BYTES_MAX + 1]);
    let refused = peers.call(&to, "/echo", huge, soon()).await.unwrap_err();
    assert!(matches!(&refused, CallError::Refused { why, .. } if why.contains("not sent")), "{refused}");
    assert!(refused.never_handled());
}

#[tokio::test]
async fn a_service_that_panics_loses_that_call_alone() {
    let (served, peers) = two().await;
    let call = async |path| peers.call(&served.address, path, Bytes::from_static(b"x"), soon()).await;
    for path in ["/panic", "/late-panic"] {
        let (hurt, other) = tokio::join!(call(path), call("/echo"));
        assert!(matches!(&hurt, Err(error @ CallError::Lost { .. }) if !error.never_handled()), "{hurt:?}");
        assert_eq!(other.unwrap(), "x");
    }
}

#[tokio::test]
async fn strangers_are_refused_and_open_paths_are_open() {
    let (served, _) = two().await;
    let to = served.address.clone();
    let asks = async |secret, cluster: Option<&str>, path| {
        let peers = Peers::new(credentials("x", secret));
        if let Some(cluster) = cluster {
            peers.set_cluster(cluster.into());
        }
        peers.call(&to, path, Bytes::new(), soon()).await
    };
    for (secret, cluster, path, expected) in [
        (Some("s"), Some("c1"), "/who", Ok("x")),
        (Some("s"), Some("c2"), "/who", Err("this node belongs to cluster c1, the caller to c2")),
        (Some("s"), None, "/who", Err("this node belongs to cluster c1, the caller to none")),
        (Some("s"), None, "/open", Ok("x")),
        (Some("s"), Some("c2"), "/open", Ok("x")),
        (Some("t"), Some("c1"), "/who", Err("cluster.secret is another here")),
        (None, Some("c1"), "/open", Err("no cluster.secret came")),
    ] {
        match (asks(secret, cluster, path).await, expected) {
            (Ok(answer), Ok(expected)) => assert_eq!(answer, expected),
            (Err(CallError::Refused { why, .. }), Err(expected)) => assert_eq!(why, expected),
            (got, expected) => panic!("{secret:?} {cluster:?} {path}: {got:?}, expected {expected:?}"),
        }
    }
    assert_eq!(served.desk.seen.load(SeqCst), 3);
}

#[tokio::test]
async fn a_node_without_a_cluster_serves_open_paths_until_it_has_one() {
    let listener = socket::listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let theirs = Peers::new(credentials("b", None));
    tokio::spawn(serve(listener, theirs.clone(), Arc::new(Desk::default()), CancellationToken::new()));
    let peers = Peers::new(credentials("a", None));
    let who = async || peers.call(&to, "/who", Bytes::new(), soon()).await;
    assert!(peers.call(&to, "/open", Bytes::new(), soon()).await.is_ok());
    assert!(matches!(who().await, Err(CallError::Refused { .. })));
    theirs.set_cluster("c".into());
    assert!(matches!(who().await, Err(CallError::Refused { .. })));
    // The next connection says so.
    peers.set_cluster("c".into());
    assert_eq!(who().await.unwrap(), "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_and_downloads_of_64_mib_arrive_whole() {
    const CHUNKS: u64 = 1024;
    let (served, peers) = two().await;
    let mut sum = crc32fast::Hasher::new();
    (0..CHUNKS).for_each(|at| sum.update(&chunk(at)));
    let sum = sum.finalize();
    let body = stream::iter((0..CHUNKS).map(chunk).map(Ok)).boxed();
    let head = Bytes::from(vec![b'h'; 300_000]);
    let answer = peers.upload(&served.address, "/sum", head, body, soon()).await.unwrap();
    let answer = String::from_utf8(answer.into()).unwrap();
    assert_eq!(answer.trim_start_matches('h'), format!(": {} bytes, {sum:08x}", CHUNKS * 65536));
    assert_eq!(answer.find(':'), Some(300_000));

    let asked = CHUNKS.to_string();
    let mut body = peers.download(&served.address, "/chunks", asked.into(), soon()).await.unwrap();
    let (mut bytes, mut again) = (0, crc32fast::Hasher::new());
    while let Some(item) = body.next().await {
        let item = item.unwrap();
        bytes += item.len() as u64;
        again.update(&item);
    }
    assert_eq!((bytes, again.finalize()), (CHUNKS * 65536, sum));

    // Nothing at all is a stream too.
    let answer = peers.upload(&served.address, "/sum", Bytes::new(), stream::empty().boxed(), soon()).await;
    assert_eq!(answer.unwrap(), ": 0 bytes, 00000000");
    let body = peers.download(&served.address, "/chunks", "0".into(), soon()).await.unwrap();
    assert_eq!(body.count().await, 0);
}

#[tokio::test]
async fn a_stream_waits_for_its_reader_and_lets_calls_pass() {
    let (served, peers) = two().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    let body = stream::repeat_with(move || {
        count.fetch_add(65536, SeqCst);
        Ok(chunk(0))
    });
    let (to, sender) = (served.address.clone(), peers.clone());
    // Nobody reads: the service hangs with the body in hand.
    struct Holds;
    impl Service for Holds {
        fn receive(
            &self,
            _: &str,
            _: &str,
            _: Bytes,
            body: ByteStream,
        ) -> BoxFuture<'static, Result<Bytes, Failure>> {
            Box::pin(async move {
                let _body = body;
                std::future::pending().await
            })
        }
        fn answer(&self, _: &str, _: &str, body: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
            Box::pin(async move { Ok(body) })
        }
    }
    drop(to);
    let listener = socket::listen("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let theirs = Peers::new(credentials("h", Some("s")));
    theirs.set_cluster("c1".into());
    tokio::spawn(serve(listener, theirs, Arc::new(Holds), CancellationToken::new()));
    let address = to.clone();
    let upload = tokio::spawn(async move {
        sender.upload(&address, "/hold", Bytes::new(), body.boxed(), within(2_000)).await
    });
    sleep(Duration::from_millis(600)).await;
    let held = taken.load(SeqCst);
    assert!(held <= 4 * STREAM_WINDOW as usize, "{held} bytes were taken and nobody reads");
    let started = Instant::now();
    assert_eq!(peers.call(&to, "/echo", Bytes::from_static(b"x"), soon()).await.unwrap(), "x");
    assert!(started.elapsed() < Duration::from_millis(500));
    assert_eq!(upload.await.unwrap(), Err(CallError::Deadline { to, sent: true }));
}

#[tokio::test]
async fn broken_streams_are_errors_on_both_sides() {
    let (served, peers) = two().await;
    let to = served.address.as_str();
    let broken = || served.desk.broken_uploads.load(SeqCst);
    // The sender's body fails.
    let body = stream::iter((0..50).map(chunk).map(Ok)).chain(torn());
    let error = peers.upload(to, "/sum", Bytes::new(), body.boxed(), soon()).await.unwrap_err();
    assert!(matches!(&error, CallError::Lost { why, .. } if why.contains("torn")), "{error:?}");
    until(|| broken() == 1).await;
    // The sender gives up: a quiet end in HTTP/2, and an error all the same.
    let body = stream::iter((0..50).map(chunk).map(Ok)).chain(stream::pending());
    let error = peers.upload(to, "/sum", Bytes::new(), body.boxed(), within(200)).await.unwrap_err();
    assert_eq!(error, CallError::Deadline { to: to.into(), sent: true });
    until(|| broken() == 2).await;
    // The answer's body fails.
    let mut body = peers.download(to, "/snaps", "3".into(), soon()).await.unwrap();
    let mut bytes = 0;
    let error = loop {
        match body.next().await.expect("an error comes before the end") {
            Ok(item) => bytes += item.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(bytes, 3 * 65536, "{error}");
    assert!(body.next().await.is_none());
    // The receiver answers early.
    let body = stream::iter((0..1_000).map(chunk).map(Ok)).boxed();
    assert_eq!(peers.upload(to, "/early", Bytes::new(), body, soon()).await.unwrap(), "enough");
    // The reader goes away.
    let given_up = served.desk.given_up.load(SeqCst);
    let mut body = peers.download(to, "/drip", "1".into(), soon()).await.unwrap();
    assert!(body.next().await.unwrap().is_ok());
    drop(body);
    until(|| served.desk.given_up.load(SeqCst) == given_up + 1).await;
}

#[tokio::test]
async fn a_cut_wire_ends_streams_with_an_error() {
    let (served, peers) = two().await;
    let (to, _, switch) = wire(served.address.clone()).await;
    let mut body = peers.download(&to, "/drip", "2".into(), soon()).await.unwrap();
    let mut left = 2 * 65536;
    while left > 0 {
        left -= body.next().await.unwrap().unwrap().len();
    }
    let endless = stream::repeat_with(|| Ok(chunk(0))).then(async |item| {
        sleep(Duration::from_millis(1)).await;
        item
    });
    let (uploader, address) = (peers.clone(), to.clone());
    let upload = tokio::spawn(async move {
        uploader.upload(&address, "/sum", Bytes::new(), endless.boxed(), soon()).await
    });
    let (caller, address) = (peers.clone(), to.clone());
    let call = tokio::spawn(async move { caller.call(&address, "/hang", Bytes::new(), soon()).await });
    sleep(Duration::from_millis(100)).await;
    switch.send(Wire::Cut).unwrap();
    assert!(body.next().await.unwrap().is_err());
    assert!(matches!(upload.await.unwrap(), Err(CallError::Lost { .. })));
    assert!(matches!(call.await.unwrap(), Err(CallError::Lost { .. })));
    until(|| served.desk.broken_uploads.load(SeqCst) == 1 && served.desk.given_up.load(SeqCst) == 2).await;
}

#[tokio::test]
async fn a_call_that_hangs_ends_at_its_deadline_and_is_cancelled_there() {
    let (served, peers) = two().await;
    let started = Instant::now();
    let error = peers.call(&served.address, "/hang", Bytes::new(), within(200)).await.unwrap_err();
    assert_eq!(error, CallError::Deadline { to: served.address.clone(), sent: true });
    assert!(!error.never_handled());
    assert!((200..700).contains(&started.elapsed().as_millis()));
    until(|| served.desk.given_up.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn a_peer_that_is_gone_is_unreached_until_it_is_back() {
    let (served, peers) = two().await;
    let to = served.address.clone();
    let echo = async || peers.call(&to, "/echo", Bytes::from_static(b"x"), within(2_000)).await;
    echo().await.unwrap();
    let on = served.stop().await;
    for _ in 0..3 {
        let started = Instant::now();
        let error = echo().await.unwrap_err();
        assert!(matches!(error, CallError::Unreached { .. }), "{error:?}");
        assert!(error.never_handled());
        assert!(started.elapsed() < Duration::from_millis(500));
    }
    let _served = Served::start(&on, credentials("b", Some("s")), Some("c1")).await;
    sleep(RETRY_AFTER).await;
    assert_eq!(echo().await.unwrap(), "x");
}

#[tokio::test]
async fn a_stopping_server_finishes_what_it_looked_at_and_nothing_is_lost() {
    let (served, peers) = two().await;
    let to = served.address.clone();
    peers.call(&to, "/echo", Bytes::new(), soon()).await.unwrap();
    let stop = served.stop.clone();
    let calls = (0..400_u64).map(|n| {
        let (peers, to, stop) = (peers.clone(), to.clone(), stop.clone());
        async move {
            if n == 200 {
                stop.cancel();
            }
            peers.call(&to, "/echo", Bytes::from(vec![7; 1000]), soon()).await
        }
    });
    let answers: Vec<_> = stream::iter(calls).buffered(50).collect().await;
    let answered = answers.iter().filter(|a| a.is_ok()).count();
    let unreached = answers.iter().filter(|a| matches!(a, Err(e) if e.never_handled())).count();
    // Answered exactly when handled: nobody is left in doubt.
    assert_eq!(
        answered + unreached,
        400,
        "{:?}",
        answers.iter().find(|a| matches!(a, Err(e) if !e.never_handled()))
    );
    assert_eq!(served.desk.seen.load(SeqCst), answered + 1);
    assert!(unreached > 0);
    served.task.await.unwrap();
}

#[tokio::test]
async fn a_frozen_peer_is_noticed_and_then_not_reached_at_all() {
    let (served, peers) = two().await;
    let (to, connections, switch) = wire(served.address.clone()).await;
    let echo = async |ms| peers.call(&to, "/echo", Bytes::from_static(b"x"), within(ms)).await;
    echo(1_000).await.unwrap();
    switch.send(Wire::Frozen).unwrap();
    let started = Instant::now();
    let error = echo(10_000).await.unwrap_err();
    assert!(matches!(error, CallError::Lost { .. }), "{error:?}");
    assert!(started.elapsed() < PING_EVERY + PING_WITHIN + Duration::from_millis(1_500));
    // Connections are taken, but nobody says hello: nothing is sent that might be handled later.
    let error = echo(10_000).await.unwrap_err();
    assert!(matches!(error, CallError::Unreached { .. }), "{error:?}");
    sleep(RETRY_AFTER).await;
    assert_eq!(echo(100).await.unwrap_err(), CallError::Deadline { to: to.clone(), sent: false });
    let seen = served.desk.seen.load(SeqCst);
    switch.send(Wire::Flows).unwrap();
    let mut answered = echo(2_000).await;
    for _ in 0..5 {
        if answered.is_ok() {
            break;
        }
        sleep(RETRY_AFTER).await;
        answered = echo(2_000).await;
    }
    answered.unwrap();
    assert!(connections.load(SeqCst) >= 2);
    // What was written off as lost came through late; what was unreached never did.
    until(|| served.desk.seen.load(SeqCst) <= seen + 2).await;
}

#[tokio::test]
async fn an_address_where_nobody_speaks_http_is_unreached() {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let peers = Peers::new(credentials("a", None));
    // It accepts (in the kernel) and says nothing.
    let error = peers.call(&to, "/echo", Bytes::new(), soon()).await.unwrap_err();
    assert!(matches!(error, CallError::Unreached { .. }), "{error:?}");
    let error = peers.call("no.such.host.invalid:1", "/echo", Bytes::new(), soon()).await.unwrap_err();
    assert!(matches!(error, CallError::Unreached { .. }), "{error:?}");
}

async fn until(done: impl Fn() -> bool) {
    timeout(Duration::from_secs(5), async {
        while !done() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it came to that within five seconds");
}
