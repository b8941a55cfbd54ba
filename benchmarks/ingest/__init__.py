"""Taking images in, each step alone and all together, against the encoder's own limit.

`intake` the whole and its steps, `decode` by transfer syntax, `encoding` ONNX Runtime against eager torch, `runtimes`
every runtime that is installed.
"""
