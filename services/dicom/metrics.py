"""The receiver's metrics for Prometheus, on a port of its own because the receiver is a separate process.

No label holds a UID, a patient or an AE title that a sender chooses.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, start_http_server


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.associations = Counter(
            "similis_dicom_associations", "Connections by result", ("result",), registry=self.registry
        )
        self.instances = Counter(
            "similis_instances_received",
            "Instances that were received, by result",
            ("source", "result"),
            registry=self.registry,
        )
        self.bytes = Counter(
            "similis_received_bytes", "Bytes of instances that were taken in", ("source",), registry=self.registry
        )
        self.open = Gauge("similis_dicom_associations_open", "Connections that are open now", registry=self.registry)
        self.receivers = Gauge("similis_dicom_receivers", "Receiver processes that are running", registry=self.registry)
        self.restarts = Counter("similis_dicom_restarts", "Restarts of receiver processes", registry=self.registry)
        self.checks = Counter(
            "similis_dicom_checks", "C-ECHOs by which Similis checks itself", ("result",), registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def serve(self, host: str, port: int) -> None:
        start_http_server(port, addr=host, registry=self.registry)
