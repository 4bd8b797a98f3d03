//! Requests find their shards: any node takes them, any replica reads, whoever leads writes.

use super::*;
use crate::{
    cluster::{ClusterError, CollectionChange, PointSelector, Seen, Token, catalog::CatalogCommand},
    model::{
        Body, Effect, Kind, PayloadSelector, Position, Projection, ScrollRequest, SearchParams,
        SearchRequest, ShardNumber, Target, VectorSelector,
    },
};
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn everything() -> Projection {
    Projection { payload: PayloadSelector::All, vectors: VectorSelector::All }
}

pub(super) fn search(target: Target) -> SearchRequest {
    SearchRequest {
        target,
        using: String::new(),
        filter: None,
        limit: 5,
        offset: 0,
        score_threshold: None,
        params: SearchParams::default(),
        projection: everything(),
    }
}

async fn tag_of(node: &Node, collection: &str, id: u64, options: &ReadOptions) -> Option<u64> {
    let ids = vec![PointId::Num(id)];
    let seen = node.cluster.retrieve(collection, ids, everything(), options).await.unwrap();
    let payload = seen.value.first()?.payload.clone().unwrap();
    serde_json::from_slice::<serde_json::Value>(&payload).unwrap()["tag"].as_u64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_answers_any_request() {
    let nodes = nodes(3).await;
    // Three copies of each shard, and one copy each: then most of what is asked is elsewhere.
    for (name, copies) in [("whole", 3), ("cut", 1)] {
        create(&nodes, name, spec(3, copies)).await.unwrap();
        every_node_answers(&nodes, name).await;
        weaker_reads_keep_their_word(&nodes, name).await;
        versions_are_compared(&nodes, name).await;
    }
    copies_are_equal(&nodes).await;
    another_collection_of_the_name(&nodes).await;
    made_and_dropped_at_once(&nodes).await;
}

async fn every_node_answers(nodes: &[Node], name: &str) {
    for (i, node) in nodes.iter().enumerate() {
        let points = (0..20).map(|n| point(i as u64 * 100 + n, 1)).collect();
        let written = node.cluster.upsert(name, points, &writing()).await.unwrap();
        assert!(written.position > Some(Position(0)) && written.token.shards.len() == 3);
        for reader in nodes {
            assert_eq!(tag_of(reader, name, i as u64 * 100 + 7, &reading()).await, Some(1));
        }
    }
    let deleted = PointSelector::Ids(vec![PointId::Num(0), PointId::Num(1)]);
    nodes[1].cluster.delete_points(name, deleted, &writing()).await.unwrap();

    let scroll = |offset, limit| ScrollRequest { offset, limit, filter: None, projection: everything() };
    let first = &nodes[0].cluster;
    let page = first.scroll(name, scroll(None, 30), &reading()).await.unwrap().value;
    assert_eq!((page.points.len(), page.next), (30, Some(PointId::Num(112))));
    let near = search(Target::Nearest(vec![103.2, 1.0]));
    let hits = first.search(name, near.clone(), &reading()).await.unwrap().value;
    let ids: Vec<PointId> = hits.iter().map(|hit| hit.id).collect();
    assert_eq!(ids, [103, 104, 102, 105, 101].map(PointId::Num));
    let likes =
        [search(Target::NearestTo(PointId::Num(200))), search(Target::NearestTo(PointId::Num(110))), near];
    let alike = first.search_batch(name, likes.to_vec(), &reading()).await.unwrap().value;
    assert_eq!(
        alike[0].iter().map(|h| h.id).collect::<Vec<_>>(),
        [201, 202, 203, 204, 205].map(PointId::Num)
    );
    assert_eq!(alike[2], hits);
    let names: Vec<&String> = nodes.iter().map(|node| &node.name).collect();
    for node in nodes {
        // What each shard did comes with the same answer, wherever it was read.
        let explained = ReadOptions { explain: true, ..reading() };
        let seen = node.cluster.search_batch(name, likes.to_vec(), &explained).await.unwrap();
        assert_eq!(seen.value, alike);
        let shards = seen.explained.unwrap();
        let positions: Vec<_> = shards.iter().map(|told| (told.shard, told.position)).collect();
        assert_eq!(positions, seen.token.shards.into_iter().collect::<Vec<_>>());
        let mut compared = [0; 3];
        for told in &shards {
            assert!(names.contains(&told.node.as_ref().unwrap()), "{told:?}");
            assert_eq!(told.searches.len(), 3);
            for (sum, search) in compared.iter_mut().zip(&told.searches) {
                assert_eq!((search.rounds, search.parts.len()), (1, 1));
                *sum += search.cost.distances_f32;
            }
        }
        // All shards together compared every point.
        assert_eq!(compared, [58; 3]);
        let cluster = &node.cluster;
        let Seen { value, token, age, .. } =
            cluster.scroll(name, scroll(None, 30), &reading()).await.unwrap();
        assert_eq!((value, token.shards.len(), age), (page.clone(), 3, None));
        assert_eq!(cluster.count(name, None, &reading()).await.unwrap().value, 58);
        assert_eq!(cluster.search_batch(name, likes.to_vec(), &reading()).await.unwrap().value, alike);
        assert_eq!(cluster.collection(name, &reading()).await.unwrap().value.points, 58);
        let missing = cluster.search(name, search(Target::NearestTo(PointId::Num(0))), &reading()).await;
        assert!(matches!(missing, Err(ClusterError::NoPoint(PointId::Num(0)))), "{missing:?}");
        let wrong = cluster.search(name, search(Target::Nearest(vec![1.0])), &reading()).await;
        assert!(matches!(&wrong, Err(ClusterError::Invalid(e)) if e.field == "query"), "{wrong:?}");
        assert_eq!(
            cluster.search_batch(name, Vec::new(), &reading()).await.unwrap().value,
            Vec::<Vec<_>>::new()
        );
        let unknown = cluster.count("nothing", None, &reading()).await;
        assert!(matches!(unknown, Err(ClusterError::NoCollection(_))), "{unknown:?}");
    }
}

async fn weaker_reads_keep_their_word(nodes: &[Node], name: &str) {
    for tag in 10..16 {
        let (writer, reader) = (&nodes[tag as usize % 3], &nodes[(tag as usize + 1) % 3]);
        let written = writer.cluster.upsert(name, vec![point(7, tag)], &writing()).await.unwrap();
        // A session that passes its token on reads its own write anywhere.
        let own = ReadOptions { at_least: Some(written.token.clone()), ..weaker(Consistency::AtLeast) };
        assert_eq!(tag_of(reader, name, 7, &own).await, Some(tag));
        let limit = Duration::from_millis(300);
        let asked = vec![PointId::Num(7)];
        let bounded = weaker(Consistency::Bounded(limit));
        let seen = reader.cluster.retrieve(name, asked.clone(), everything(), &bounded).await.unwrap();
        assert!(seen.age.unwrap() <= limit, "{:?}", seen.age);
        let local = weaker(Consistency::Local);
        assert!(reader.cluster.retrieve(name, asked.clone(), everything(), &local).await.is_ok());
        // What nobody ever wrote is lost, and waiting does not bring it back.
        let mut beyond = written.token;
        beyond.shards.values_mut().for_each(|position| position.0 += 1_000);
        for consistency in [Consistency::Linearizable, Consistency::AtLeast, Consistency::Local] {
            let lost = ReadOptions { at_least: Some(beyond.clone()), ..weaker(consistency) };
            let lost = reader.cluster.retrieve(name, asked.clone(), everything(), &lost).await.unwrap_err();
            assert_eq!(lost.kind(), Kind::Expired, "{lost}");
        }
    }
    // After a weak read the age of the replica is asked for, and the next one knows it.
    let deadline = soon();
    loop {
        let seen = nodes[0].cluster.count(name, None, &weaker(Consistency::Local)).await.unwrap();
        if seen.age.is_some() {
            break;
        }
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(20)).await;
    }
}

async fn versions_are_compared(nodes: &[Node], name: &str) {
    let id = PointId::Num(900);
    let cas = async |node: &Node, version, point, options: WriteOptions| {
        node.cluster.cas(name, id, version, point, &options).await
    };
    let first = cas(&nodes[0], None, Some(point(900, 0)), named(1)).await.unwrap().position;
    let again = cas(&nodes[1], None, Some(point(900, 0)), named(1)).await.unwrap().position;
    assert_eq!(first, again, "a retry under the same name at another node");
    let other = cas(&nodes[2], None, Some(point(900, 5)), named(1)).await.unwrap_err();
    assert_eq!((other.kind(), other.effect()), (Kind::Conflict, Effect::None), "{other}");
    let there = cas(&nodes[2], None, Some(point(900, 1)), writing()).await.unwrap_err();
    assert!(matches!(there, ClusterError::Precondition { version, .. } if version == first), "{there:?}");
    // Each adds one, many at once through all nodes: none is lost.
    let adders = (0..12u64).map(|adder| {
        let node = &nodes[adder as usize % 3];
        async move {
            for _ in 0..5 {
                loop {
                    let seen = node.cluster.retrieve(name, vec![id], everything(), &reading()).await.unwrap();
                    let record = &seen.value[0];
                    let payload: serde_json::Value =
                        serde_json::from_slice(record.payload.as_ref().unwrap()).unwrap();
                    let next = point(900, payload["tag"].as_u64().unwrap() + 1);
                    match node.cluster.cas(name, id, Some(record.version), Some(next), &writing()).await {
                        Ok(_) => break,
                        Err(ClusterError::Precondition { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
        }
    });
    futures::future::join_all(adders).await;
    assert_eq!(tag_of(&nodes[0], name, 900, &reading()).await, Some(60));
    let version = nodes[0].cluster.retrieve(name, vec![id], everything(), &reading()).await.unwrap();
    cas(&nodes[1], Some(version.value[0].version), None, writing()).await.unwrap();
    assert_eq!(tag_of(&nodes[2], name, 900, &reading()).await, None);
}

async fn copies_are_equal(nodes: &[Node]) {
    for node in nodes {
        for scrub in [false, true] {
            let hashes = node.cluster.state_hash("whole", None, scrub, &reading()).await.unwrap();
            assert_eq!(hashes.len(), 3);
            for hash in hashes {
                assert_eq!(hash.replicas.len(), 3, "{hash:?}");
                assert_eq!(hash.replicas.values().collect::<BTreeSet<_>>().len(), 1, "{hash:?}");
            }
        }
        let cut = node.cluster.state_hash("cut", None, false, &reading()).await.unwrap();
        assert!(cut.iter().all(|hash| hash.replicas.len() == 1), "{cut:?}");
        let at = Token {
            collection: node.cluster.inner.catalog.state().collections["whole"].id,
            ..Token::default()
        };
        let none = node.cluster.state_hash("whole", Some(&at), false, &reading()).await.unwrap();
        assert!(none.iter().all(|hash| hash.position == Position(0) && hash.replicas.is_empty()), "{none:?}");
    }
}

/// Dropped and made anew again and again: whoever writes or reads meanwhile finds one of them or none.
async fn another_collection_of_the_name(nodes: &[Node]) {
    let (stop, writes) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 3]);
    let users = nodes.iter().enumerate().map(|(i, node)| {
        let (stop, writes) = (&stop, &writes);
        async move {
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                at += 1;
                match node.cluster.upsert("again", vec![point(at * 3 + i as u64, at)], &writing()).await {
                    Ok(_) => _ = writes[i].fetch_add(1, Ordering::Relaxed),
                    // Whether the collection that was dropped took it first.
                    Err(e) if e.effect() == Effect::Unknown => {}
                    Err(e) => assert!(matches!(e.kind(), Kind::NotFound | Kind::Unavailable), "{e:?}"),
                }
                match node.cluster.count("again", None, &reading()).await {
                    Ok(_) => {}
                    Err(e) => assert!(matches!(e.kind(), Kind::NotFound | Kind::Unavailable), "{e:?}"),
                }
            }
        }
    });
    let dropper = async {
        for round in 0..4u64 {
            let (maker, other) = (&nodes[round as usize % 3], &nodes[(round as usize + 1) % 3]);
            maker.cluster.create_collection("again", spec(2, 3), &writing()).await.unwrap();
            let marked =
                other.cluster.upsert("again", vec![point(1_000_000 + round, round)], &writing()).await;
            marked.unwrap();
            for reader in nodes {
                // What the collections before it held is not in this one.
                for before in 0..=round {
                    let tag = tag_of(reader, "again", 1_000_000 + before, &reading()).await;
                    assert_eq!(tag, (before == round).then_some(round));
                }
            }
            let before: Vec<u64> = writes.iter().map(|writes| writes.load(Ordering::Relaxed)).collect();
            until("everybody writes to the new one", || {
                writes.iter().zip(&before).all(|(writes, before)| writes.load(Ordering::Relaxed) > *before)
            })
            .await;
            assert!(other.cluster.delete_collection("again", &writing()).await.unwrap());
            for reader in nodes {
                let gone = reader.cluster.count("again", None, &reading()).await;
                assert!(matches!(gone, Err(ClusterError::NoCollection(_))), "{gone:?}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    futures::future::join(futures::future::join_all(users), dropper).await;
}

/// A collection that is dropped before its maker has told all its shards was made all the same.
async fn made_and_dropped_at_once(nodes: &[Node]) {
    let makers = nodes.iter().map(|node| async {
        let mut made = 0;
        for _ in 0..10 {
            match node.cluster.create_collection("brief", spec(2, 3), &writing()).await {
                Ok(_) => made += 1,
                Err(e) if e.effect() == Effect::Unknown => {}
                Err(e) => assert!(matches!(e.kind(), Kind::Conflict | Kind::Unavailable), "{e:?}"),
            }
        }
        made
    });
    let stop = AtomicBool::new(false);
    let dropper = async {
        while !stop.load(Ordering::Relaxed) {
            match nodes[1].cluster.delete_collection("brief", &writing()).await {
                Ok(_) => {}
                Err(e) if e.effect() == Effect::Unknown => {}
                Err(e) => assert!(matches!(e.kind(), Kind::Unavailable), "{e:?}"),
            }
        }
    };
    let making = async {
        let made: u32 = futures::future::join_all(makers).await.into_iter().sum();
        stop.store(true, Ordering::Relaxed);
        made
    };
    let (made, ()) = futures::future::join(making, dropper).await;
    assert!(made > 0, "none was made");
    nodes[0].cluster.delete_collection("brief", &writing()).await.unwrap();
}

/// What one writer did: what it wrote to which point, how often, and the longest that one request took.
struct Wrote {
    id: u64,
    times: u64,
    longest: Duration,
}

/// Writes through nodes and reads each write back, four at a time through each, while `meanwhile` runs.
async fn busy(through: &[&Node], meanwhile: impl Future<Output = ()>) -> Vec<Wrote> {
    let stop = AtomicBool::new(false);
    let writers = (0..through.len() as u64 * 4).map(|id| {
        let (stop, node) = (&stop, through[id as usize % through.len()]);
        async move {
            let mut wrote = Wrote { id, times: 0, longest: Duration::ZERO };
            while !stop.load(Ordering::Relaxed) {
                let next = wrote.times + 1;
                let at = Instant::now();
                node.cluster.upsert("c", vec![point(id, next)], &writing()).await.unwrap();
                wrote.longest = wrote.longest.max(at.elapsed());
                wrote.times = next;
                let at = Instant::now();
                assert_eq!(tag_of(node, "c", id, &reading()).await, Some(next));
                wrote.longest = wrote.longest.max(at.elapsed());
            }
            wrote
        }
    });
    let meanwhile = async {
        meanwhile.await;
        stop.store(true, Ordering::Relaxed);
    };
    futures::future::join(futures::future::join_all(writers), meanwhile).await.0
}

/// Every node sees the last write of every writer, and all copies are equal.
async fn nothing_is_lost(nodes: &[&Node], wrote: &[Wrote]) {
    for node in nodes {
        for Wrote { id, times, .. } in wrote {
            assert_eq!(tag_of(node, "c", *id, &reading()).await, Some(*times), "at {}", node.name);
        }
    }
    let hashes = nodes[0].cluster.state_hash("c", None, true, &reading()).await.unwrap();
    assert_eq!(hashes[0].replicas.len(), nodes.len(), "{hashes:?}");
    assert_eq!(hashes[0].replicas.values().collect::<BTreeSet<_>>().len(), 1, "{hashes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_stands_still_and_comes_back_and_another_one_leaves() {
    let nodes = nodes(3).await;
    create(&nodes, "c", spec(1, 3)).await.unwrap();
    let cluster_id = nodes[0].cluster.info().cluster_id;
    let (leader, others) = leader(&nodes, "c").await;
    let all: Vec<&Node> = nodes.iter().collect();
    let frozen = async {
        sleep(Duration::from_millis(500)).await;
        leader.freeze();
        sleep(Duration::from_secs(5)).await;
        leader.thaw(&cluster_id);
    };
    let wrote = busy(&others, frozen).await;
    let (writes, pause) = sums(&wrote);
    println!("{writes} writes, longest pause {pause:?} while the leader stood still");
    assert!(pause > Duration::from_millis(500), "nobody noticed: {pause:?}");
    assert!(pause < Duration::from_secs(4), "the longest pause was {pause:?}");
    nothing_is_lost(&all, &wrote).await;

    let (leader, others) = self::leader(&nodes, "c").await;
    let left = async {
        sleep(Duration::from_millis(300)).await;
        leader.leave().await;
        sleep(Duration::from_millis(500)).await;
    };
    let wrote = busy(&others, left).await;
    let (writes, pause) = sums(&wrote);
    println!("{writes} writes, longest pause {pause:?} while the leader left");
    assert!(pause < Duration::from_secs(2), "the longest pause was {pause:?}");
    nothing_is_lost(&others, &wrote).await;
}

fn sums(wrote: &[Wrote]) -> (u64, Duration) {
    let longest = wrote.iter().map(|wrote| wrote.longest).max().unwrap_or_default();
    (wrote.iter().map(|wrote| wrote.times).sum(), longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_that_a_shard_has_not_heard_of_is_in_doubt() {
    let nodes = nodes(3).await;
    create(&nodes, "c", spec(1, 1)).await.unwrap();
    let cluster_id = nodes[0].cluster.info().cluster_id;
    let (holder, others) = leader(&nodes, "c").await;
    holder.freeze();
    // From now on the catalog has a leader among the others.
    assert_eq!(others[0].cluster.collections(&reading()).await.unwrap(), ["c"]);
    let briefly = WriteOptions::until(Instant::now() + Duration::from_secs(4));
    let dropped = others[0].cluster.delete_collection("c", &briefly).await;
    // The catalog has dropped it: that there was no effect would be wrong.
    assert_eq!(dropped.unwrap_err().effect(), Effect::Unknown);
    assert_eq!(others[1].cluster.collections(&reading()).await.unwrap(), Vec::<String>::new());
    holder.thaw(&cluster_id);
    let forgotten = || nodes.iter().all(|node| node.cluster.inner.catalog.state().dropping.is_empty());
    until("all know that it is dropped", forgotten).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_a_collection_at_once_are_all_made() {
    let nodes = nodes(3).await;
    create(&nodes, "c", spec(1, 1)).await.unwrap();
    // Each adds its own to what is there, so that one made from what was there before would take another's away.
    let add = |node: &Node, key: String| {
        let cluster = node.cluster.clone();
        async move {
            let how = |now: &CollectionSpec| {
                let mut metadata = now.passthrough.get("metadata").cloned().unwrap_or_else(|| json!({}));
                metadata[&key] = json!(true);
                let passthrough = [("metadata".to_owned(), metadata)].into_iter().collect();
                Ok::<_, ClusterError>(CollectionChange { passthrough, ..CollectionChange::default() })
            };
            cluster.update_collection("c", how, &writing()).await.unwrap();
            key
        }
    };
    let changes = (0..12).map(|n| add(&nodes[n % 3], format!("key {n}")));
    let keys = futures::future::join_all(changes).await;
    for node in &nodes {
        let spec = node.cluster.collection("c", &reading()).await.unwrap().value.spec;
        let metadata = spec.passthrough["metadata"].as_object().unwrap();
        assert!(keys.iter().all(|key| metadata.contains_key(key)), "{metadata:?}");
    }
    // What is acknowledged is seen by who asks next, wherever it asks.
    for n in 0..12 {
        let key = add(&nodes[n % 3], format!("then {n}")).await;
        let next = &nodes[(n + 1) % 3].cluster;
        let spec = next.collection("c", &reading()).await.unwrap().value.spec;
        assert!(spec.passthrough["metadata"].get(&key).is_some(), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_collection_that_is_dropped_is_told_so_at_once() {
    let nodes = nodes(3).await;
    create(&nodes, "c", spec(1, 1)).await.unwrap();
    let (holder, others) = leader(&nodes, "c").await;
    let writer = &others[0].cluster;
    writer.upsert("c", vec![point(1, 1)], &writing()).await.unwrap();
    let collection = writer.lookup("c", soon()).await.unwrap();
    holder.freeze();
    assert_eq!(writer.collections(&reading()).await.unwrap(), ["c"]);

    let deadline = Instant::now() + Duration::from_secs(60);
    let (long, long_read) = (WriteOptions { deadline, ..writing() }, ReadOptions::linearizable(deadline));
    let write = writer.upsert("c", vec![point(1, 2)], &long);
    let read = writer.count("c", None, &long_read);
    let dropped = async {
        // Both have been sent, and are not answered.
        sleep(Duration::from_millis(200)).await;
        let id = collection.record.id;
        writer.propose_catalog(CatalogCommand::Drop { name: "c".to_owned() }, soon()).await.unwrap();
        writer.catch_up_with_catalog(soon()).await.unwrap();
        let dropping =
            writer.inner.catalog.state().dropping.iter().find(|(_, c)| c.id == id).map(|(n, _)| *n);
        let told = CatalogCommand::Dropped { id: dropping.unwrap() };
        others[1].cluster.propose_catalog(told, soon()).await.unwrap();
    };
    let (in_doubt, nothing, ()) = futures::future::join3(write, read, dropped).await;
    assert_eq!(nothing.unwrap_err(), ClusterError::NoCollection("c".to_owned()));
    let in_doubt = in_doubt.unwrap_err();
    assert_eq!(in_doubt.effect(), Effect::Unknown, "{in_doubt}");
    assert!(in_doubt.to_string().contains("no more"), "{in_doubt}");

    // Who comes with what it knew before asks nobody.
    let bodies = [(ShardNumber(0), Body::Delete(vec![PointId::Num(1)]))].into();
    let late = writer.write(&collection, bodies, &long).await.unwrap_err();
    assert_eq!(late, ClusterError::Gone(collection.record.id));
    let late = writer.shard_stats(&collection, &long_read).await.unwrap_err();
    assert_eq!(late, ClusterError::Gone(collection.record.id));
    assert!(Instant::now() + Duration::from_secs(20) < deadline, "they waited for their deadline");
}
