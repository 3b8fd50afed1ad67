"""Text to .npy by a peer, the whole process that bench_peers.py times: read, tokenise, sort, embed, write."""

import pathlib
import sys

import numpy as np
from peer_engines import FORM, Weights


def main():
    key, model, text, output, folder, *numbers = sys.argv[1:]
    batch, threads, streams = map(int, numbers)
    weights = Weights(model)
    texts = pathlib.Path(text).read_text(encoding="utf-8").split("\n")[:-1]
    engine = FORM[key].create(weights, pathlib.Path(folder), threads, streams, None)
    if FORM[key].texts_only:
        vectors = engine.encode(texts, batch)
    else:
        ids = [np.array(s, np.int32) for s in weights.tokenize(texts, threads * streams)]
        vectors = np.zeros((len(ids), weights.dim), np.float32)
        full = [i for i, s in enumerate(ids) if len(s)]
        vectors[full] = engine.corpus([ids[i] for i in full], batch)
    engine.close()
    np.save(output, vectors)


if __name__ == "__main__":  # the processes of a pool import this file
    main()
