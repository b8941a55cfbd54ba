"""Intake throughput, as a whole and step by step, against the limit that the encoder sets.

`intake` measures the whole and its steps, `decode` each transfer syntax, `encoding` ONNX Runtime against eager torch,
`runtimes` every installed runtime.
"""
