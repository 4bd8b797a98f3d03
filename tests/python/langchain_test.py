"""LangChain's vector store over a node: `langchain_test.py http://127.0.0.1:PORT`."""

import sys

from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from qdrant_client import models as m

texts = ["a red fox", "a grey wolf", "a brown bear", "a white owl"]
store = QdrantVectorStore.from_texts(
    texts,
    DeterministicFakeEmbedding(size=32),
    metadatas=[{"legs": 4}, {"legs": 4}, {"legs": 4}, {"legs": 2}],
    ids=[1, 2, 3, 4],
    url=sys.argv[1],
    collection_name="animals",
)
for text in texts:
    assert store.similarity_search(text, k=1)[0].page_content == text
two_legs = m.Filter(must=[m.FieldCondition(key="metadata.legs", match=m.MatchValue(value=2))])
found = store.similarity_search_with_score("a red fox", k=4, filter=two_legs)
assert [document.page_content for document, _ in found] == ["a white owl"]
added = store.add_documents([Document(page_content="a green frog", metadata={"legs": 4})])
assert store.get_by_ids(added)[0].page_content == "a green frog"
assert store.similarity_search("a green frog", k=1)[0].metadata["legs"] == 4
assert store.delete(added)
assert store.get_by_ids(added) == []
again = QdrantVectorStore.from_existing_collection("animals", DeterministicFakeEmbedding(size=32), url=sys.argv[1])
assert again.similarity_search("a brown bear", k=1)[0].metadata["_id"] == 3
print("langchain-qdrant: ok")
