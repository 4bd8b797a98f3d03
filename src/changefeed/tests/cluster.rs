//! The feed over several nodes: asked of any, served by any that reaches back, while replicas move and leaders go.

use super::*;
use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// How often the consumer is cut off at least.
const CUTS: u64 = 50;

/// The node that leads a shard, and those that hold a replica of it.
async fn holders(of: &Cluster, shard: u32) -> (Option<String>, Vec<String>) {
    let topology = of.topology().await;
    let row = topology["shards"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["collection"] == C && row["shard"] == shard);
    let row = row.expect("the shard is known").clone();
    let names = row["replicas"].as_array().unwrap().iter().map(|r| r["node"].as_str().unwrap().to_owned());
    (row["leader"].as_str().map(str::to_owned), names.collect())
}

/// Asks again until it is done.
async fn moved(of: &Cluster, shard: u32, from: &str, to: &str) {
    let (from, to) = (from.to_owned(), to.to_owned());
    let deadline = soon();
    while !matches!(of.move_shard(C, ShardNumber(shard), &from, &to, soon()).await, Ok(true)) {
        assert!(Instant::now() < deadline, "shard {shard} does not move from {from} to {to}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sole_replica_moves_and_its_follower_goes_with_it() {
    let mut nodes = nodes(2, annal_wal::Options::default()).await;
    create(&nodes[0].cluster, 1, 1).await;
    let (_, holding) = holders(&nodes[0].cluster, 0).await;
    // Asked of the node that does not hold it, now and after the move of the one that did.
    let (here, there) = if holding[0] == "n1" { (0, 1) } else { (1, 0) };
    for n in 0..60 {
        nodes[here].cluster.upsert(C, vec![point(n, n)], &options(None)).await.unwrap();
    }
    for asked in [here, there] {
        let changes = nodes[asked].read(From::Begin, all()).await;
        assert_eq!(changes.iter().filter_map(value_of).collect::<Vec<_>>(), (0..60).collect::<Vec<_>>());
    }
    let mut feed = Box::pin(open(&nodes[there].cluster, C, From::Begin, all()).await.unwrap());
    let mut next = async |count: usize| {
        let mut values = Vec::new();
        while values.len() < count {
            let event = timeout(Duration::from_secs(20), feed.next()).await.expect("the feed hangs");
            if let FeedEvent::Change(change) = event.unwrap().unwrap() {
                values.extend(value_of(&change));
            }
        }
        values
    };
    assert_eq!(next(60).await, (0..60).collect::<Vec<_>>());
    moved(&nodes[0].cluster, 0, &nodes[here].name, &nodes[there].name).await;
    for n in 60..90 {
        nodes[here].cluster.upsert(C, vec![point(n, n)], &options(None)).await.unwrap();
    }
    assert_eq!(next(30).await, (60..90).collect::<Vec<_>>());
    // A new replica that came by a snapshot does not reach back beyond it, and says from where on it does; one that
    // came by the log has it all.
    for asked in [here, there] {
        let from = match open(&nodes[asked].cluster, C, From::Begin, all()).await.err() {
            None => From::Begin,
            Some(ClusterError::TooOld { oldest, .. }) => oldest.parse().unwrap(),
            Some(other) => panic!("{other:?}"),
        };
        let changes = nodes[asked].read(from, all()).await;
        let values: Vec<_> = changes.iter().filter_map(value_of).collect();
        assert!(
            values.len() >= 30 && values == (90 - values.len() as u64..90).collect::<Vec<_>>(),
            "{values:?}"
        );
    }
    drop(feed);
    for node in nodes.drain(..) {
        node.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_at_any_node_gets_everything_once_through_kills_and_a_move() {
    let mut nodes = nodes(4, annal_wal::Options::default()).await;
    create(&nodes[0].cluster, 2, 3).await;
    let seed = rand::random();
    let mut writer = Writer::over(&nodes[0].cluster, 2, seed);
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(Relaxed) {
                writer.step().await;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            writer
        }
    });
    // Those that are up, for the consumer.
    let up: Arc<Mutex<Vec<Cluster>>> =
        Arc::new(Mutex::new(nodes.iter().map(|n| n.cluster.clone()).collect()));
    let ends: Arc<Mutex<Option<BTreeMap<ShardNumber, Position>>>> = Arc::default();
    let cuts: Arc<AtomicU64> = Arc::default();
    let consuming = tokio::spawn(consume(up.clone(), ends.clone(), cuts.clone(), seed));

    tokio::time::sleep(Duration::from_millis(500)).await;
    let (_, holding) = holders(&nodes[0].cluster, 0).await;
    let free = nodes.iter().map(|n| &n.name).find(|name| !holding.contains(name)).unwrap().clone();
    let from = holding.iter().find(|name| *name != "n1").unwrap();
    moved(&nodes[0].cluster, 0, from, &free).await;
    println!("shard 0 moved from {from} to {free}");
    for shard in [1, 0] {
        let (leader, holding) = holders(&nodes[0].cluster, shard).await;
        // The node the writer writes through stays.
        let leader =
            leader.filter(|name| name != "n1").or(holding.into_iter().find(|name| name != "n1")).unwrap();
        let at = nodes.iter().position(|node| node.name == leader).unwrap();
        up.lock().unwrap().remove(at);
        let stopped = nodes.remove(at).close().await;
        println!("{leader} is down");
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        let node = stopped.start().await;
        up.lock().unwrap().push(node.cluster.clone());
        nodes.push(node);
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while cuts.load(Relaxed) <= CUTS && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Relaxed);
    let writer = timeout(Duration::from_secs(30), writing).await.expect("the writer hangs").unwrap();
    let followed = nodes[0].cluster.followed(C, soon()).await.unwrap();
    let mut known = BTreeMap::new();
    for shard in [0, 1].map(ShardNumber) {
        known.insert(shard, nodes[0].cluster.shard_stand(&followed, shard, soon()).await.unwrap().position);
    }
    *ends.lock().unwrap() = Some(known);
    let changes = timeout(Duration::from_secs(30), consuming).await.expect("the consumer hangs").unwrap();
    let cuts = cuts.load(Relaxed);
    println!("{} changes, {cuts} cuts, {} commands", changes.len(), writer.expected.len());
    check(&changes, &writer.expected);
    assert!(cuts > CUTS, "too few cuts to say anything");
    for node in nodes {
        node.close().await;
    }
}

/// Reads a few lines at a time at a random node, until it is behind the ends.
async fn consume(
    up: Arc<Mutex<Vec<Cluster>>>,
    ends: Arc<Mutex<Option<BTreeMap<ShardNumber, Position>>>>,
    cuts: Arc<AtomicU64>,
    seed: u64,
) -> Vec<PointChange> {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut changes, mut from) = (Vec::new(), From::Begin);
    loop {
        let cluster = {
            let up = up.lock().unwrap();
            up[rng.random_range(0..up.len())].clone()
        };
        let options = FeedOptions { deadline: Instant::now() + Duration::from_secs(3), ..all() };
        let mut feed = match open(&cluster, C, from.clone(), options).await {
            Ok(feed) => Box::pin(feed),
            // The node stops, or is not what it was yet.
            Err(ClusterError::Unavailable(_) | ClusterError::Timeout { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        drop(cluster);
        cuts.fetch_add(1, Relaxed);
        for _ in 0..rng.random_range(1..60) {
            match timeout(Duration::from_secs(20), feed.next()).await.expect("the feed hangs").unwrap() {
                Ok(event) => {
                    from = From::Token(event.token().to_string().parse().unwrap());
                    let behind = ends.lock().unwrap().as_ref().is_some_and(|ends| {
                        event.token().shards.iter().all(|(shard, place)| place.position > ends[shard])
                    });
                    if let FeedEvent::Change(change) = event {
                        changes.push(change);
                    }
                    if behind {
                        return changes;
                    }
                }
                Err(ClusterError::Unavailable(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
