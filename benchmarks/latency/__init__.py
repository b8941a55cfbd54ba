"""Which vector index reaches which recall at what latency, memory and build cost: FAISS, Qdrant and others.

An engine is one file in `engines/` (build, search, close), a kind of data one in `datasets/`. `runner` starts a fresh
process (`child`) for every data set, engine and round, which writes raw measurements; `summary` and the modules after
it compute everything else from these.
"""
