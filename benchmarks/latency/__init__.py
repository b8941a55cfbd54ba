"""Which index, at which recall, at what latency, memory and build cost: FAISS against Qdrant and the rest.

An engine is one file in `engines/` (build, search, close), a kind of data one in `datasets/`. `runner` gives every
(data set, engine, round) a fresh process (`child`), which writes raw measurements; `summary` and what follows it
compute everything else from those.
"""
