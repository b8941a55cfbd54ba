import os

#: ONNX Runtime reports this machine and its sessions to Microsoft unless this is set before its first import, which
#: may be one by torch's exporter.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
