//! The codes of a graph have the shape that the schema asks for; answers are those of the vectors.

use super::{
    real::{open_wordnet, settle, ten_nearest, wordnet},
    *,
};
use crate::model::{Explanation, Quantization, SearchPlan};

/// Enough for bits, and for a walk with few candidates.
const ROWS: usize = 1200;

#[test]
fn graphs_have_the_codes_that_the_schema_asks_for() {
    let data = wordnet();
    for (quantization, bits, walked_with) in [
        (Quantization::Scalar, Some(4), Some(20)),
        // Candidates enough to find ten among would be all of so small a graph: its bits are scanned.
        (Quantization::Binary, Some(1), None),
        (Quantization::None, None, Some(20)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // All of it is sealed at once.
        let shard = open_wordnet(folder.path(), 1 << 20);
        let params =
            VectorParams { quantization, ..VectorParams::new(384, Distance::Cosine, HnswParams::default()) };
        let schema = Schema { version: 1, vectors: [(String::new(), params)].into(), ..Schema::default() };
        let mut commands = vec![command(Body::Configure(schema)).encode()];
        let write = |(id, vector): (usize, &Vec<f32>)| PointWrite {
            id: PointId::Num(id as u64),
            vectors: [(String::new(), Vector::Dense(vector.clone()))].into(),
            payload: Bytes::new(),
        };
        commands.push(
            command(Body::Upsert(data.vectors[..ROWS].iter().enumerate().map(write).collect())).encode(),
        );
        shard.apply(commands, Bookmark(Bytes::new())).unwrap();
        settle(&shard);
        let search = |shard: &Shard, query: &[f32], exact| {
            let request = SearchRequest {
                target: Target::Nearest(query.to_vec()),
                using: String::new(),
                filter: None,
                limit: 10,
                offset: 0,
                score_threshold: None,
                params: SearchParams { exact, ef: Some(20) },
                projection: Projection::default(),
            };
            let mut told = Explanation::default();
            (shard.view().search(&request, None, Some(&mut told)).unwrap(), told.parts[0].clone())
        };
        assert_eq!(shard.view().vectors[""].segments[0].segment.rows().len(), ROWS);
        // Of bits, sixteen times as many are compared by their vectors as are wanted.
        for (limit, quick) in [(10, true), (20, quantization != Quantization::Binary)] {
            let request =
                SearchRequest { limit, ..ten_nearest(&data.queries[0], None, SearchParams::default()) };
            assert_eq!(shard.view().is_quick(&request), quick, "{quantization:?}, {limit}");
        }
        let mut hits = 0;
        for query in &data.queries[..50] {
            let (exact, _) = search(&shard, query, true);
            let (found, graph) = search(&shard, query, false);
            assert_eq!((graph.code_bits, graph.ef), (bits, walked_with), "{quantization:?}");
            let plan = if walked_with.is_some() { SearchPlan::Walk } else { SearchPlan::Scan };
            assert_eq!(graph.plan, plan, "{quantization:?}");
            // Scores are those of the vectors, to the bit.
            for hit in &found {
                let of = exact.iter().find(|other| other.id == hit.id);
                assert!(of.is_none_or(|of| of.score.to_bits() == hit.score.to_bits()));
            }
            hits += found.iter().filter(|hit| hit.score >= exact[9].score).count();
        }
        assert!(hits >= 475, "{quantization:?}: {hits} of 500");
        // Its file says which codes it has: it is opened again, not built.
        let before = search(&shard, &data.queries[0], false);
        shard.close();
        drop(shard);
        let shard = open_wordnet(folder.path(), 1 << 30);
        assert_eq!(search(&shard, &data.queries[0], false), before, "{quantization:?}");
        shard.close();
    }
}
