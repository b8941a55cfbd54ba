import grpc


class Refused(Exception):
    """Ends a request with this gRPC status and message."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def wrong(message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
