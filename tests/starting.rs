//! A node that has no cluster yet: alive, unavailable without effect, and stopped in order.

#![allow(clippy::unwrap_used)]

mod process;

use process::{Node, NodeOptions};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// An address at which nobody listens.
fn silent() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_node_that_waits_for_its_peers_is_alive_and_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = NodeOptions::new(dir.path());
    options.arguments.extend(["--join".to_owned(), silent()]);
    let mut node = Node::start(options);
    let client = node.client();
    for _ in 0..3 {
        assert_eq!(client.get("/healthz").status, 200);
        assert_eq!(client.get("/livez").status, 200);
        for path in ["/readyz", "/collections", "/annal/v1/cluster", "/nowhere"] {
            let answer = client.get(path);
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}");
            assert_eq!(answer.header("annal-effect"), Some("none"));
            assert_eq!(answer.json()["status"]["error"], "the node is starting");
        }
        thread::sleep(Duration::from_millis(200));
    }
    assert!(!dir.path().join("node.json").exists());
    assert!(node.stop().success());
}

#[test]
fn a_node_with_data_asks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::ready(dir.path());
    let info = node.client().get("/annal/v1/info").json();
    assert!(node.stop().success());
    let mut options = NodeOptions::new(dir.path());
    options.arguments.extend(["--join".to_owned(), silent()]);
    // The name it has in its cluster stays.
    options.arguments.extend(["--node".to_owned(), "renamed".to_owned()]);
    let mut node = Node::start(options);
    node.wait_ready();
    assert_eq!(node.client().get("/annal/v1/info").json(), info);
}

#[test]
fn a_node_whose_disk_is_full_from_the_start_says_what_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Node::ready(dir.path()).stop().success());
    let mut node = Command::new(env!("CARGO_BIN_EXE_annal"))
        .args(["serve", "--http", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--grpc", "off", "--data-dir"])
        .arg(dir.path())
        // No disk has as much to spare.
        .env("ANNAL__LOG__FREE_BYTES_MIN", (1u64 << 60).to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (told, seen) = mpsc::channel();
    let lines = BufReader::new(node.stderr.take().unwrap()).lines();
    thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| told.send(line)));
    let started = Instant::now();
    let waits = std::iter::from_fn(|| seen.recv_timeout(Duration::from_secs(30)).ok())
        .find(|line| line.contains("waits for space"));
    node.kill().unwrap();
    node.wait().unwrap();
    let waits = waits.unwrap_or_else(|| panic!("nothing was said for {:?}", started.elapsed()));
    assert!(waits.contains("WARN") && waits.contains("its floor is"), "{waits}");
}
