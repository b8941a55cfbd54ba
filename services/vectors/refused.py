import grpc


class Refused(Exception):
    """A request that is answered with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def wrong(message: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
