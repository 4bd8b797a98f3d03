//! Nodes in one process, over real connections, with a catalog that only counts.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::net::{Credentials, serve, socket};
use std::{collections::BTreeMap, path::PathBuf, sync::Mutex};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// The catalog of a cluster: one for all of its nodes.
#[derive(Default)]
struct Register {
    seats: Mutex<BTreeMap<Incarnation, (Newcomer, Seat)>>,
}

impl Admission for Arc<Register> {
    fn admit(&self, newcomer: Newcomer) -> BoxFuture<'static, Result<Seat, Failure>> {
        let mut seats = self.seats.lock().unwrap();
        let taken =
            seats.values().find(|(n, _)| n.node == newcomer.node && n.incarnation != newcomer.incarnation);
        let answer = match taken {
            Some((other, _)) if other.zone != "gone" => {
                Err(Failure::new(NOT_ADMITTED, format!("a node of this name is alive at {}", other.peer)))
            }
            _ => {
                let peers = seats.values().map(|(n, _)| n.peer.clone()).collect();
                let seat = Seat { catalog_replica: ReplicaId(seats.len() as u64 + 1), peers };
                let entry = seats.entry(newcomer.incarnation.clone());
                Ok(entry.or_insert((newcomer, seat)).1.clone())
            }
        };
        Box::pin(async { answer })
    }
}

/// A node as far as finding its cluster goes.
struct Node {
    door: Door,
    dir: TempDir,
    stop: CancellationToken,
    settled: JoinHandle<Result<IdentityFile, FoundError>>,
}

/// Reserves addresses, so that all can be named before any listens. On an interface of their own, whose ports nobody's
/// outgoing connection takes meanwhile.
async fn addresses(count: usize) -> Vec<String> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(socket::listen("127.0.0.43:0").await.unwrap());
    }
    held.iter().map(|l| l.local_addr().unwrap().to_string()).collect()
}

/// Starts a node on `address` over `dir`; once it has founded, `register` takes newcomers in.
async fn start(name: &str, address: &str, join: &[String], dir: TempDir, register: &Arc<Register>) -> Node {
    let path: PathBuf = dir.path().join("node.json");
    let known = IdentityFile::read(&path).unwrap();
    let incarnation = known.as_ref().map_or_else(Incarnation::fresh, |known| known.get().incarnation);
    let listener = socket::listen(address).await.unwrap();
    let me = Newcomer {
        node: name.into(),
        incarnation,
        region: "r".into(),
        zone: "z".into(),
        http: "127.0.0.1:1".into(),
        peer: listener.local_addr().unwrap().to_string(),
    };
    let peers = Peers::new(Credentials { node: name.into(), secret: Some("s".into()) });
    let (door, stop) = (Door::new(me, peers.clone()), CancellationToken::new());
    tokio::spawn(serve(listener, peers, Arc::new(door.clone()), stop.clone()));
    let (of, join, register) = (door.clone(), join.to_vec(), register.clone());
    let settled = tokio::spawn(async move {
        let file = settle(&of, known, &path, &join).await?;
        if file.get().founding {
            register.admit(of.me().clone()).await.unwrap();
        }
        of.admit(Arc::new(register));
        Ok(file)
    });
    Node { door, dir, stop, settled }
}

impl Node {
    async fn identity(&mut self) -> Identity {
        let settled = timeout(Duration::from_secs(20), &mut self.settled).await.expect("a cluster is found");
        settled.unwrap().unwrap().get()
    }
}

fn empty() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_empty_nodes_found_one_cluster_in_any_order() {
    let orders = [[0, 1, 2], [2, 1, 0], [1, 2, 0]];
    join_all(orders.map(|order| async move {
        let (list, register) = (addresses(3).await, Arc::new(Register::default()));
        let mut nodes = BTreeMap::new();
        for at in order {
            nodes.insert(at, start(&format!("n{at}"), &list[at], &list, empty(), &register).await);
            sleep(Duration::from_millis(120)).await;
        }
        let mut identities = Vec::new();
        for node in nodes.values_mut() {
            identities.push(node.identity().await);
        }
        assert!(identities.iter().all(|i| i.cluster_id == identities[0].cluster_id), "{order:?}");
        assert_eq!(identities.iter().map(|i| i.founding).collect::<Vec<_>>(), [true, false, false]);
        let replicas: BTreeSet<_> = identities.iter().map(|i| i.catalog_replica.unwrap()).collect();
        assert_eq!(replicas, BTreeSet::from([ReplicaId(1), ReplicaId(2), ReplicaId(3)]));
        assert!(identities[1].peers.contains(&list[0]) && identities[2].peers.contains(&list[0]));
    }))
    .await;
}

#[tokio::test]
async fn without_the_first_named_or_with_one_silent_nobody_founds() {
    let (list, register) = (addresses(3).await, Arc::new(Register::default()));
    let second = start("n1", &list[1], &list, empty(), &register).await;
    let third = start("n2", &list[2], &list, empty(), &register).await;
    sleep(Duration::from_millis(1_500)).await;
    assert!(!second.settled.is_finished() && !third.settled.is_finished());
    third.stop.cancel();
    third.settled.abort();
    sleep(Duration::from_millis(100)).await;
    // The first alone may not found while the third says nothing.
    let mut first = start("n0", &list[0], &list, empty(), &register).await;
    sleep(Duration::from_millis(1_500)).await;
    assert!(!first.settled.is_finished() && !second.settled.is_finished());
    let _third = start("n2", &list[2], &list, empty(), &register).await;
    assert!(first.identity().await.founding);
}

#[tokio::test]
async fn two_that_name_themselves_first_keep_each_other_from_founding() {
    let (list, register) = (addresses(2).await, Arc::new(Register::default()));
    let turned: Vec<String> = list.iter().rev().cloned().collect();
    let nodes = [
        start("n0", &list[0], &list, empty(), &register).await,
        start("n1", &list[1], &turned, empty(), &register).await,
    ];
    sleep(Duration::from_millis(1_500)).await;
    assert!(nodes.iter().all(|n| !n.settled.is_finished()));
}

#[tokio::test]
async fn who_has_data_asks_nobody_and_who_was_wiped_joins() {
    let (list, register) = (addresses(2).await, Arc::new(Register::default()));
    let mut first = start("n0", &list[0], &list, empty(), &register).await;
    let mut second = start("n1", &list[1], &list, empty(), &register).await;
    let (founder, member) = (first.identity().await, second.identity().await);
    // The second comes back with its data, and nobody to ask.
    let Node { dir, stop, .. } = second;
    stop.cancel();
    let Node { stop, .. } = first;
    stop.cancel();
    sleep(Duration::from_millis(200)).await;
    let mut second = start("n1", &list[1], &["127.0.0.1:9".into()], dir, &register).await;
    assert_eq!(second.identity().await, member);
    // The first comes back with nothing, although it is the first named: it joins what it founded.
    for (_, (newcomer, _)) in register.seats.lock().unwrap().iter_mut() {
        newcomer.zone = if newcomer.node == "n0" { "gone".into() } else { newcomer.zone.clone() };
    }
    let mut first = start("n0", &list[0], &list, empty(), &register).await;
    let again = first.identity().await;
    assert_eq!((again.cluster_id.as_str(), again.founding), (founder.cluster_id.as_str(), false));
    assert_ne!(again.incarnation, founder.incarnation);
    assert_ne!(again.catalog_replica, founder.catalog_replica);
}

#[tokio::test]
async fn a_lost_log_is_taken_in_again_through_the_peers_last_known() {
    let (list, register) = (addresses(2).await, Arc::new(Register::default()));
    let mut first = start("n0", &list[0], &[], empty(), &register).await;
    let founder = first.identity().await;
    let dir = empty();
    let path = dir.path().join("node.json");
    let lost = Identity::member(
        founder.cluster_id.clone(),
        "n1".into(),
        Incarnation::fresh(),
        ReplicaId(90),
        vec![list[0].clone()],
    );
    IdentityFile::create(&path, lost.clone()).unwrap().set_lost().unwrap();
    // What it was told to join does not matter: it knows its cluster.
    let mut second = start("n1", &list[1], &["127.0.0.1:9".into()], dir, &register).await;
    let again = second.identity().await;
    assert_eq!(again.cluster_id, founder.cluster_id);
    assert_eq!(again.catalog_replica, Some(ReplicaId(2)));
    assert_ne!(again.incarnation, lost.incarnation);
    assert_eq!(IdentityFile::read(&path).unwrap().unwrap().get(), again);
    drop(second.dir);
}

#[tokio::test]
async fn a_taken_name_and_an_address_nobody_can_dial_are_refused() {
    let (list, register) = (addresses(3).await, Arc::new(Register::default()));
    let mut first = start("n0", &list[0], &[], empty(), &register).await;
    first.identity().await;
    let twin = start("n0", &list[1], &list[..1], empty(), &register).await;
    match timeout(Duration::from_secs(5), twin.settled).await.unwrap().unwrap() {
        Err(FoundError::NotAdmitted { why, .. }) => {
            assert_eq!(why, format!("a node of this name is alive at {}", list[0]));
        }
        other => panic!("{:?}", other.map(|file| file.get())),
    }
    let mut newcomer = first.door.me().clone();
    (newcomer.node, newcomer.incarnation, newcomer.peer) =
        ("n2".into(), Incarnation::fresh(), list[2].clone());
    let join = async |newcomer: &Newcomer| {
        let why =
            ask::<Joined>(twin.door.peers(), &list[0], JOIN, newcomer, JOIN_WITHIN).await.err().unwrap();
        why.to_string()
    };
    assert!(join(&newcomer).await.contains("n2 says it is reached at"));
    newcomer.peer = list[0].clone();
    assert!(join(&newcomer).await.contains("but there n0 answers"));
    assert_eq!(register.seats.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn addresses_of_two_clusters_are_an_error() {
    let list = addresses(3).await;
    let registers = [Arc::new(Register::default()), Arc::new(Register::default())];
    let mut nodes = Vec::new();
    for (at, register) in registers.iter().enumerate() {
        nodes.push(start(&format!("n{at}"), &list[at], &[], empty(), register).await);
        nodes[at].identity().await;
    }
    let third = start("n2", &list[2], &list[..2], empty(), &registers[0]).await;
    let settled = timeout(Duration::from_secs(5), third.settled).await.unwrap().unwrap();
    assert!(matches!(settled, Err(FoundError::SeveralClusters(_))));
}

#[tokio::test]
async fn the_rest_is_answered_once_the_cluster_is_open() {
    struct Echo;
    impl Service for Echo {
        fn answer(&self, _: &str, _: &str, body: Bytes) -> BoxFuture<'static, Result<Bytes, Failure>> {
            Box::pin(async { Ok(body) })
        }
    }
    let (list, register) = (addresses(1).await, Arc::new(Register::default()));
    let mut node = start("n0", &list[0], &[], empty(), &register).await;
    node.identity().await;
    let peers = node.door.peers().clone();
    let echo = async || {
        peers.call(&list[0], "/echo", Bytes::from_static(b"x"), Instant::now() + Duration::from_secs(5)).await
    };
    assert!(matches!(echo().await, Err(CallError::Failed { code, .. }) if code == NOT_YET));
    node.door.open(Arc::new(Echo));
    assert_eq!(echo().await.unwrap(), "x");
}
