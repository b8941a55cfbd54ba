"""The sending half of Celery: the API rings, it never works. The workers' own app has the rest."""

from typing import TYPE_CHECKING

from shared.config import Settings

if TYPE_CHECKING:
    from celery import Celery


def producer(settings: Settings) -> "Celery | None":
    """None where no broker is named: the sweep then finds the work."""
    url = settings.broker.url.get_secret_value()
    if not url:
        return None
    from celery import Celery

    app = Celery("similis", broker=url)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue="ingest",
        # a request must not wait for a broker that hangs
        broker_transport_options={"socket_timeout": 2, "socket_connect_timeout": 2, "socket_keepalive": True},
    )
    return app
