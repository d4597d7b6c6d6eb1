"""Texts that are nearly the same: a word changed, a greeting added.

Two texts are near-duplicates where the Jaccard similarity of their shingles reaches a threshold. A shingle is a pair of
neighbouring words; the text's edges count as words, so that a changed last word weighs as much as any. Of n words with
one changed, (n - 1) / (n + 3) is alike; with a word put before them, n / (n + 3).

MinHash (Broder 1997) in bands (Leskovec et al., Mining of Massive Datasets, chapter 3) finds the pairs worth a look: of
those that are 0.6 alike 98.7%, at 0.7 99.98%. They are then compared exactly: MinHash alone is off by 0.04, and short
texts have many neighbours just below the threshold.
"""

import re
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from core.words import UNSPACED

PERMUTATIONS, BAND, SEED = 128, 4, 1  # hash functions, how many of them have to agree, and which they are
MIXING = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], dtype=np.uint64)
MARGIN = 0.15  # how far MinHash's estimate may lie below the threshold: 3.5 times its standard error
NEIGHBOURS = 32  # texts of one bucket that each is compared with: thousands from one template take linear time
PAIRS_AT_ONCE = 65_536
EDGE = "\n"  # no word: words hold no spaces
BETWEEN = r"\s!-/:-@\[-`{-~\u2000-\u206f\u3000-\u303f"  # spaces and punctuation
WORD = re.compile(f"[{UNSPACED}]|[^{UNSPACED}{BETWEEN}]+")  # each character of Thai, Japanese, Chinese ... is a word


def first_of_each(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the index of the first one that a chain of near-duplicates joins it to; its own where none does.

    A text without a word is joined to none.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shingles_of = cache(lambda i: shingles(texts[i]))
    pairs = [(i, j) for i, j in _candidates(texts, threshold) if jaccard(shingles_of(i), shingles_of(j)) >= threshold]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(texts), len(texts)))
    _, component = connected_components(graph, directed=False)
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    return first[number].tolist()


def shingles(text: str) -> set[bytes]:
    """The pairs of neighbouring words of a text, in UTF-8; none where it has no word."""
    words = WORD.findall(text)
    return {f"{left} {right}".encode() for left, right in pairwise([EDGE, *words, EDGE])} if words else set()


def jaccard(first: set[bytes], second: set[bytes]) -> float:
    """The share that two sets have in common of all that they hold; 0 where they hold nothing."""
    shared = len(first & second)
    return shared / max(len(first) + len(second) - shared, 1)


def _candidates(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """Pairs i < j of texts whose MinHashes agree in a band and are not clearly less alike than `threshold`."""
    from datasketch import MinHash

    sketches = MinHash.generator(map(shingles, texts), num_perm=PERMUTATIONS, seed=SEED, hashfunc=zlib.crc32)
    hashes = np.empty((len(texts), PERMUTATIONS), dtype=np.uint32)
    for row, sketch in enumerate(sketches):
        hashes[row] = sketch.hashvalues
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, PERMUTATIONS, BAND):
        bucket = hashes[:, start : start + BAND] @ MIXING
        order = np.argsort(bucket, kind="stable")
        for distance in range(1, min(NEIGHBOURS + 1, len(texts))):
            first, second = order[:-distance], order[distance:]
            same = bucket[first] == bucket[second]
            if not same.any():
                break
            found.append(first[same] * len(texts) + second[same])
    unique = np.unique(np.concatenate(found))
    pairs: list[tuple[int, int]] = []
    for part in np.array_split(unique, 1 + len(unique) // PAIRS_AT_ONCE):
        first, second = np.divmod(part, max(len(texts), 1))
        likely = (hashes[first] == hashes[second]).mean(axis=1) >= threshold - MARGIN
        pairs += zip(first[likely].tolist(), second[likely].tolist(), strict=True)
    return pairs
