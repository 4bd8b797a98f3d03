//! What a search says that it did is what it did.

use super::{
    real::{fill, is_noun, open_wordnet, settle, ten_nearest, wordnet},
    *,
};
use crate::model::{Explanation, PartKind, ScoredPoint, SearchPlan};

fn explained(
    view: &ReadView,
    query: &[f32],
    filter: Option<Filter>,
    params: SearchParams,
) -> (Vec<ScoredPoint>, Explanation) {
    let request = ten_nearest(query, filter, params);
    let mut explanation = Explanation::default();
    let hits = view.search(&request, None, Some(&mut explanation)).unwrap();
    assert_eq!(hits, view.search(&request, None, None).unwrap(), "telling changes nothing");
    let sum = explanation.parts.iter().fold(Default::default(), |mut sum, part| {
        sum += part.cost;
        sum
    });
    assert_eq!(explanation.cost, sum);
    (hits, explanation)
}

#[test]
fn a_search_says_how_each_part_was_searched() {
    let data = wordnet();
    let folder = tempfile::tempdir().unwrap();
    let shard = open_wordnet(folder.path(), 2 << 20);
    fill(&shard, &data, Distance::Cosine);
    settle(&shard);
    let upsert = |id: usize| PointWrite {
        id: PointId::Num(id as u64),
        vectors: [(String::new(), Vector::Dense(data.vectors[id].clone()))].into(),
        payload: data.payloads[id].clone(),
    };
    // Ten rows of the graph are dead, and live again in the delta.
    let again = (0..10).map(upsert).collect();
    shard.apply(vec![command(Body::Upsert(again)).encode()], Bookmark(Bytes::new())).unwrap();
    let view = shard.view();
    let nouns = view.count(Some(&is_noun())).unwrap();
    let in_graphs: u64 = view.vectors[""].segments.iter().map(|s| s.segment.rows().len() as u64).sum();
    assert!(in_graphs >= 1000, "{in_graphs}");
    let exact = SearchParams { exact: true, ef: None };
    let walk = SearchParams { exact: false, ef: Some(20) };
    let (mut walked, mut compared) = (0, 0);
    for query in &data.queries {
        let (_, all) = explained(&view, query, None, exact);
        assert_eq!((all.cost.distances_f32, all.cost.distances_codes), (2000, 0));
        assert_eq!(all.cost.bytes_read, 2000 * 384 * 4);
        assert!(all.parts.iter().all(|part| part.plan == SearchPlan::Exact), "{all:?}");
        assert_eq!((all.rounds, all.filter.as_ref()), (1, None));
        let kinds: Vec<PartKind> = all.parts.iter().map(|part| part.part).collect();
        let (last, graphs) = kinds.split_last().unwrap();
        assert_eq!(*last, PartKind::OpenDelta);
        assert_eq!(graphs.iter().filter(|kind| **kind == PartKind::Segment).count(), graphs.len());

        let (_, near) = explained(&view, query, None, walk);
        let graph = &near.parts[0];
        assert_eq!((graph.plan, graph.ef, graph.code_bits), (SearchPlan::Walk, Some(20), Some(4)));
        assert!((20..in_graphs).contains(&graph.cost.distances_codes), "{graph:?}");
        assert!(graph.cost.distances_f32 >= 10, "{graph:?}");
        // At the least the codes and vectors that were compared, and the links of each candidate kept.
        let least = graph.cost.distances_codes * 192 + graph.cost.distances_f32 * 1536 + 20 * 32 * 4;
        assert!(graph.cost.bytes_read >= least, "{graph:?}");
        walked += graph.cost.distances_codes;
        compared += graph.cost.distances_f32;

        let (_, of_nouns) = explained(&view, query, Some(is_noun()), exact);
        let filter = of_nouns.filter.unwrap();
        assert_eq!((filter.estimated_min, filter.estimated_max), (nouns, nouns));
        assert_eq!((filter.actual, filter.payloads_read), (Some(nouns), 0));
        assert_eq!(of_nouns.cost.distances_f32, nouns);
        let allowed = of_nouns.parts.iter().filter_map(|part| part.allowed_actual).sum::<u64>();
        let in_delta = of_nouns.parts.last().unwrap().cost.distances_f32;
        assert_eq!(allowed + in_delta, nouns);
    }
    // A walk sees a part of the graph, and compares few of what it sees by f32.
    assert!(walked < 100 * in_graphs / 2, "{walked}");
    assert!(compared * 4 < walked, "{compared} of {walked}");

    // A filter that no index knows: payloads are read, and more is asked for until enough pass.
    let glosses = Filter { must: vec![Condition::IsNull("nothing".parse().unwrap())], ..Filter::default() };
    let (none, told) = explained(&view, &data.queries[0], Some(glosses), SearchParams::default());
    let filter = told.filter.as_ref().unwrap();
    assert_eq!((filter.estimated_min, filter.estimated_max, filter.actual), (0, 2000, None));
    assert_eq!((none.len(), filter.payloads_read), (0, 2000));
    assert!(told.rounds > 1 && told.cost.distances_f32 > 2000, "{told:?}");
    shard.close();
}

/// Real vectors that no graph holds: sketches rule out most, and hardly any of the nearest.
#[test]
fn a_delta_of_real_vectors_is_scanned_by_sketches() {
    let data = wordnet();
    let folder = tempfile::tempdir().unwrap();
    let shard = open_wordnet(folder.path(), 1 << 30);
    fill(&shard, &data, Distance::Cosine);
    let view = shard.view();
    let (mut found, mut compared) = (0, 0);
    for query in &data.queries {
        let (right, _) = explained(&view, query, None, SearchParams { exact: true, ef: None });
        let (hits, told) = explained(&view, query, None, SearchParams::default());
        let [delta] = &told.parts[..] else { panic!("only a delta: {told:?}") };
        assert_eq!((delta.part, delta.plan), (PartKind::OpenDelta, SearchPlan::Scan));
        assert_eq!((delta.rows, delta.code_bits), (2000, Some(1)));
        found += right.iter().filter(|point| hits.contains(point)).count();
        compared += delta.cost.distances_f32;
    }
    let queries = data.queries.len();
    assert!(found * 1000 >= queries * 10 * 995, "{found} of {}", queries * 10);
    assert!(compared < queries as u64 * 2000 / 4, "{compared} rows compared by their vectors");
    shard.close();
}
