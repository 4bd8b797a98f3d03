"""The unmodified qdrant-client against a node: `qdrant_client_test.py http://127.0.0.1:PORT`."""

import sys
import uuid

import numpy as np
from qdrant_client import QdrantClient, models as m
from qdrant_client.http.exceptions import UnexpectedResponse

client = QdrantClient(url=sys.argv[1], timeout=30)
rng = np.random.default_rng(7)


def refused(status, *parts):
    """A context that wants an error with this status, whose message holds the parts."""

    class Refused:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, _trace):
            assert kind is UnexpectedResponse, f"expected {status}, got {error!r}"
            assert error.status_code == status, error
            for part in parts:
                assert part in error.content.decode(), error.content
            return True

    return Refused()


def unnamed_vector():
    name = "points"
    assert not client.collection_exists(name)
    assert client.create_collection(name, vectors_config=m.VectorParams(size=8, distance=m.Distance.COSINE))
    assert client.collection_exists(name)
    assert [c.name for c in client.get_collections().collections] == [name]
    with refused(409, "already exists!"):
        client.create_collection(name, vectors_config=m.VectorParams(size=8, distance=m.Distance.COSINE))

    info = client.get_collection(name)
    assert (info.status, info.points_count) == (m.CollectionStatus.GREEN, 0)
    assert info.config.params.vectors == m.VectorParams(size=8, distance=m.Distance.COSINE)

    # Rows, columns and numpy arrays.
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    rows = [
        m.PointStruct(id=i, vector=vectors[i].tolist(), payload={"n": i, "even": i % 2 == 0, "tags": [f"t{i % 3}"]})
        for i in range(100)
    ]
    done = client.upsert(name, points=rows)
    assert done.status == m.UpdateStatus.COMPLETED and done.operation_id > 0
    columns = m.Batch(
        ids=list(range(100, 200)),
        vectors=vectors[100:200].tolist(),
        payloads=[{"n": i, "even": i % 2 == 0} for i in range(100, 200)],
    )
    client.upsert(name, points=columns)
    client.upload_collection(
        name, vectors=vectors[200:], ids=range(200, 300), payload=[{"n": i} for i in range(200, 300)], wait=True
    )
    assert client.count(name).count == 300
    assert client.get_collection(name).points_count == 300

    # The nearest of a point's own vector is the point; scores are those of numpy.
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in (0, 150, 299):
        found = client.query_points(name, query=vectors[i], limit=5, with_payload=True).points
        exact = np.argsort(-(units @ units[i]))[:5]
        assert [p.id for p in found] == exact.tolist()
        assert np.allclose([p.score for p in found], (units @ units[i])[exact], atol=1e-5)
        assert found[0].payload["n"] == i and found[0].version > 0
    by_id = client.query_points(name, query=150, limit=3).points
    assert 150 not in [p.id for p in by_id] and by_id[0].payload is not None
    page = client.query_points(name, query=vectors[0].tolist(), limit=3, offset=2).points
    assert [p.id for p in page] == np.argsort(-(units @ units[0]))[2:5].tolist()
    near = client.query_points(name, query=vectors[0].tolist(), limit=300, score_threshold=0.5).points
    assert len(near) == int((units @ units[0] > 0.5).sum())
    exact = client.query_points(name, query=vectors[9].tolist(), search_params=m.SearchParams(exact=True, hnsw_ef=64))
    assert exact.points[0].id == 9
    batch = client.query_batch_points(
        name, requests=[m.QueryRequest(query=vectors[i].tolist(), limit=1) for i in range(20)]
    )
    assert [answer.points[0].id for answer in batch] == list(range(20))

    # Filters.
    def count(**clauses):
        return client.count(name, count_filter=m.Filter(**clauses)).count

    n = lambda **bounds: m.FieldCondition(key="n", range=m.Range(**bounds))
    assert count(must=[n(gte=10, lt=20)]) == 10
    assert count(must=[m.FieldCondition(key="even", match=m.MatchValue(value=True))]) == 100
    assert count(must=[m.FieldCondition(key="tags", match=m.MatchAny(any=["t0", "t1"]))]) == 67
    assert count(must=[m.FieldCondition(key="tags", match=m.MatchExcept(**{"except": ["t0"]}))]) == 66
    assert count(must_not=[n(lt=290)]) == 10
    assert count(should=[n(lt=5), n(gte=295)]) == 10
    assert count(must=[m.HasIdCondition(has_id=[1, 2, 9999])]) == 2
    assert count(must=[m.IsEmptyCondition(is_empty=m.PayloadField(key="even"))]) == 100
    assert count(min_should=m.MinShould(conditions=[n(lt=10), n(gte=5)], min_count=2)) == 5
    assert count(must=[m.FieldCondition(key="tags", values_count=m.ValuesCount(gte=1))]) == 100
    some = m.Filter(must=[n(gte=50, lt=60)])
    found = client.query_points(name, query=vectors[0].tolist(), query_filter=some, limit=100).points
    assert sorted(p.id for p in found) == list(range(50, 60))

    # Pages cover everything once.
    seen, offset = [], None
    while True:
        points, offset = client.scroll(name, limit=64, offset=offset, with_payload=["n"], with_vectors=False)
        seen += [(p.id, p.payload["n"]) for p in points]
        if offset is None:
            break
    assert seen == [(i, i) for i in range(300)]

    # Reading back: Cosine vectors come back normalised.
    got = client.retrieve(name, ids=[3, 77777, 1], with_vectors=True)
    assert sorted(p.id for p in got) == [1, 3]
    for p in got:
        assert np.allclose(p.vector, units[p.id], atol=1e-6)
    assert client.retrieve(name, ids=[3], with_payload=False)[0].payload is None

    # Field indexes change the plan, not the answer.
    for field, schema in [("n", m.PayloadSchemaType.INTEGER), ("tags", m.KeywordIndexParams(type="keyword", is_tenant=True))]:
        client.create_payload_index(name, field_name=field, field_schema=schema, wait=True)
    assert client.get_collection(name).payload_schema["n"].points == 300
    assert count(must=[n(gte=10, lt=20)]) == 10
    assert count(must=[m.FieldCondition(key="tags", match=m.MatchValue(value="t0"))]) == 34
    client.delete_payload_index(name, field_name="tags")
    assert list(client.get_collection(name).payload_schema) == ["n"]

    # Overwriting and deleting.
    client.upsert(name, points=[m.PointStruct(id=5, vector=vectors[6].tolist(), payload={"n": -5})])
    assert client.retrieve(name, ids=[5])[0].payload == {"n": -5}
    client.delete(name, points_selector=[0, 1, 2])
    client.delete(name, points_selector=m.FilterSelector(filter=m.Filter(must=[n(gte=200)])))
    assert client.count(name).count == 197
    assert 0 not in [p.id for p in client.query_points(name, query=vectors[0].tolist(), limit=300).points]

    # What does not fit is refused as a whole.
    with refused(400, "points[1].vector", "expected dim: 8, got 3"):
        client.upsert(name, points=[rows[0], m.PointStruct(id=1, vector=[1.0, 2.0, 3.0])])
    assert client.retrieve(name, ids=[0, 1]) == []
    with refused(400, "expected dim: 8, got 2"):
        client.query_points(name, query=[1.0, 2.0])
    with refused(404, "doesn't exist"):
        client.count("nowhere")
    with refused(501, "recommend"):
        client.query_points(name, query=m.RecommendQuery(recommend=m.RecommendInput(positive=[5])))
    with refused(501, "payload"):
        client.set_payload(name, payload={"a": 1}, points=[5])

    assert client.update_collection(name, optimizers_config=m.OptimizersConfigDiff(indexing_threshold=10_000))
    assert client.get_collection(name).config.optimizer_config.indexing_threshold == 10_000
    assert client.delete_collection(name)
    assert not client.collection_exists(name)


def named_vectors():
    name = "named"
    client.create_collection(
        name,
        vectors_config={
            "image": m.VectorParams(size=4, distance=m.Distance.DOT, on_disk=True),
            "text": m.VectorParams(size=2, distance=m.Distance.EUCLID, hnsw_config=m.HnswConfigDiff(m=8)),
        },
        sparse_vectors_config={"words": m.SparseVectorParams()},
        shard_number=2,
        replication_factor=1,
        metadata={"made": "here"},
    )
    info = client.get_collection(name)
    assert info.config.params.vectors["image"].on_disk and info.config.params.vectors["text"].hnsw_config.m == 8
    assert info.config.params.shard_number == 2 and "words" in info.config.params.sparse_vectors
    assert info.config.metadata == {"made": "here"}

    ids = [str(uuid.UUID(int=i)) for i in range(10)]
    words = m.SparseVector(indices=[7, 3], values=[0.5, 1.0])
    points = [
        m.PointStruct(id=ids[i], vector={"image": [i, 1, 0, 0], "text": [i, 0], "words": words}) for i in range(9)
    ]
    client.upsert(name, points=points + [m.PointStruct(id=ids[9].replace("-", ""), vector={"text": [9, 0]})])
    assert client.count(name).count == 10

    best = client.query_points(name, query=[1.0, 0.0, 0.0, 0.0], using="image", limit=1).points[0]
    assert (best.id, best.score) == (ids[8], 8.0)
    nearest = client.query_points(name, query=[9.0, 0.0], using="text", limit=2, with_vectors=["text"]).points
    assert [(p.id, p.score, p.vector) for p in nearest] == [
        (ids[9], 0.0, {"text": [9.0, 0.0]}),
        (ids[8], 1.0, {"text": [8.0, 0.0]}),
    ]
    whole = client.retrieve(name, ids=[ids[2]], with_vectors=True)[0].vector
    assert whole == {
        "image": [2.0, 1.0, 0.0, 0.0],
        "text": [2.0, 0.0],
        "words": m.SparseVector(indices=[3, 7], values=[1.0, 0.5]),
    }
    has_image = m.Filter(must=[m.HasVectorCondition(has_vector="image")])
    assert client.count(name, count_filter=has_image).count == 9
    with refused(400, "Not existing vector name"):
        client.query_points(name, query=[1.0], using="sound")
    client.delete_collection(name)


def aliases_and_the_cluster():
    for name, size in (("blue", 2), ("green", 3)):
        client.create_collection(name, vectors_config=m.VectorParams(size=size, distance=m.Distance.DOT))
    client.upsert("blue", points=[m.PointStruct(id=1, vector=[1, 0])])

    def change(*actions):
        return client.update_collection_aliases(change_aliases_operations=list(actions))

    create = lambda alias, of: m.CreateAliasOperation(
        create_alias=m.CreateAlias(alias_name=alias, collection_name=of)
    )
    drop = lambda alias: m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=alias))
    assert change(create("live", "blue"))
    assert [(a.alias_name, a.collection_name) for a in client.get_aliases().aliases] == [("live", "blue")]
    assert client.collection_exists("live") and client.count("live").count == 1
    assert client.query_points("live", query=[1.0, 0.0]).points[0].id == 1
    assert change(drop("live"), create("live", "green"), create("old", "blue"))
    assert [a.alias_name for a in client.get_collection_aliases("green").aliases] == ["live"]
    assert client.get_collection("live").config.params.vectors.size == 3
    rename = m.RenameAlias(old_alias_name="old", new_alias_name="older")
    assert change(m.RenameAliasOperation(rename_alias=rename))
    assert change(drop("nobody"))
    with refused(404, "`nowhere` doesn't exist!"):
        change(create("x", "nowhere"))
    with refused(404, "Alias old does not exists!"):
        change(m.RenameAliasOperation(rename_alias=rename))
    with refused(409, "already exists!"):
        change(create("blue", "green"))
    assert sorted(a.alias_name for a in client.get_aliases().aliases) == ["live", "older"]

    cluster = client.cluster_status()
    assert cluster.status == "enabled" and str(cluster.peer_id) in cluster.peers
    assert cluster.raft_info.leader == cluster.peer_id and cluster.raft_info.role == m.StateRole.LEADER
    assert cluster.consensus_thread_status.consensus_thread_status == "working"
    info = client.collection_cluster_info("older")
    assert (info.peer_id, info.shard_count, info.remote_shards) == (cluster.peer_id, 1, [])
    shard = info.local_shards[0]
    assert (shard.shard_id, shard.points_count, shard.state) == (0, 1, m.ReplicaState.ACTIVE)
    with refused(404, "there is no peer 1"):
        move = m.MoveShard(shard_id=0, from_peer_id=1, to_peer_id=2)
        client.cluster_collection_update("blue", cluster_operation=m.MoveShardOperation(move_shard=move))
    for consistency in (m.ReadConsistencyType.MAJORITY, m.ReadConsistencyType.ALL, 2):
        assert client.retrieve("blue", ids=[1], consistency=consistency)[0].id == 1
    client.upsert("blue", points=[m.PointStruct(id=2, vector=[1, 0])], ordering=m.WriteOrdering.STRONG)
    for name in ("blue", "green"):
        client.delete_collection(name)
    assert client.get_aliases().aliases == []


unnamed_vector()
named_vectors()
aliases_and_the_cluster()
print("qdrant-client: ok")
