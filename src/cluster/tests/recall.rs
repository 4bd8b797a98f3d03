//! Some searches are answered a second time, and figures tell how well the first answer was.

use super::{routing::search, *};
use crate::{cluster::RecallFigures, model::Target};

fn figures(node: &Node) -> RecallFigures {
    node.cluster.figures().replicas.iter().find_map(|replica| replica.recall).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approximate_searches_are_answered_again_one_at_a_time() {
    let node = nodes(1).await.pop().unwrap();
    node.cluster.create_collection("a", spec(1, 1), &writing()).await.unwrap();
    let near = || search(Target::Nearest(vec![7.2, 1.0]));
    // Nothing is there to be found.
    assert!(node.cluster.search("a", near(), &reading()).await.unwrap().value.is_empty());
    let points = (0..20).map(|id| point(id, 1)).collect();
    node.cluster.upsert("a", points, &writing()).await.unwrap();
    let exact = || {
        let mut exact = near();
        exact.params.exact = true;
        exact
    };
    let by_id = || search(Target::All);
    for request in [exact(), by_id()] {
        node.cluster.search("a", request, &reading()).await.unwrap();
    }
    until("no search is under way", || !node.cluster.inner.recall.is_busy()).await;
    assert_eq!(figures(&node), RecallFigures::default(), "none of these has a recall");

    for count in 1..=3 {
        // The exact one of a batch is not the one that is looked at.
        until("it has rested", || !node.cluster.inner.recall.is_busy()).await;
        node.cluster.search_batch("a", vec![exact(), near(), by_id()], &reading()).await.unwrap();
        until("it is answered again", || figures(&node).samples == count).await;
    }
    // 20 rows are all compared: nothing is missed.
    assert_eq!(figures(&node), RecallFigures { samples: 3, sum: 3.0 });

    // One is looked at already: what comes meanwhile is answered, and left out.
    until("it has rested", || !node.cluster.inner.recall.is_busy()).await;
    let turn = node.cluster.inner.recall.turn().unwrap();
    assert_eq!(node.cluster.search("a", near(), &reading()).await.unwrap().value.len(), 5);
    drop(turn);
    until("it has rested", || !node.cluster.inner.recall.is_busy()).await;
    node.cluster.search("a", near(), &reading()).await.unwrap();
    until("the next one is", || figures(&node).samples == 4).await;
    until("no search is under way", || !node.cluster.inner.recall.is_busy()).await;
    assert_eq!(figures(&node).samples, 4);
    node.leave().await;
}
