"""Denoise what comes over Kafka, and publish the results back.

    python callbacks/kafka.py settings.yaml --topic xyz.bluesky.runengine.documents

The RunEngine publishes with bluesky-kafka, of which each facility has its way:
``RE.subscribe(Publisher("xyz.bluesky.runengine.documents", "localhost:9092", key="xyz"))``.
Results go into a topic of their own. What was published before this program listens, or while it
was down, is read from Tiled. bluesky-kafka unpickles arrays of objects that it receives: let
nobody publish whom you do not trust.
"""

import sys
from pathlib import Path

# Beside this file is one with the name of a package that is needed; look for that elsewhere.
sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import logging  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402

import yaml  # noqa: E402
from bluesky_kafka import Publisher, RemoteDispatcher  # noqa: E402
from confluent_kafka import KafkaError, KafkaException  # noqa: E402
from confluent_kafka.admin import AdminClient  # noqa: E402

from bluesky_denoise import DenoiseError, bus_denoiser  # noqa: E402

logger = logging.getLogger("kafka")

ANSWERS_S = 5
"""How long a broker may take to answer, seconds."""
LISTENS = {
    # Each start listens anew: what was missed is in Tiled, and old frames would hold up new ones.
    "auto.offset.reset": "latest",
    "enable.auto.commit": False,
    # A run that is read from Tiled may take hours, which is no sign of death: as long as may be.
    "max.poll.interval.ms": 24 * 3600 * 1000,
}


def read_config(path: str | None) -> tuple[str, dict[str, Any]]:
    """Return the addresses of brokers, or nothing, and what a connection needs beside them."""
    if path is None:
        return "", {}
    try:
        config = yaml.safe_load(Path(path).read_text())
        servers = config.get("bootstrap_servers") or []
        servers = servers if isinstance(servers, str) else ",".join(servers)
        connection = dict(config.get("producer_consumer_security_config") or {})
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        sys.exit(
            f"--config {path!r}: {error}; expected a YAML file with `bootstrap_servers`, a list, "
            "and `producer_consumer_security_config`, properties of librdkafka"
        )
    return servers, connection


def check_topics(topic: str, publisher: Publisher, connection: dict[str, Any]) -> None:
    """End the program where no broker answers, or a topic is none."""
    servers = connection["bootstrap.servers"]
    try:
        there = AdminClient(connection).list_topics(timeout=ANSWERS_S).topics
        if topic not in there:
            names = ", ".join(sorted(name for name in there if not name.startswith("__")))
            sys.exit(
                f"--topic {topic!r}: {servers} has no such topic; it has {names or 'none'}. Where "
                "brokers let it, what publishes to a topic first makes it."
            )
        asked_until = time.monotonic() + ANSWERS_S
        # To ask for it makes it, where the broker lets it, which takes a moment.
        while unknown := publisher.get_cluster_metadata(ANSWERS_S).topics[publisher.topic].error:
            if time.monotonic() > asked_until:
                sys.exit(f"--publish {publisher.topic!r}, at {servers}: {unknown.str()}")
            time.sleep(0.2)
    except KafkaException as error:
        reason = error.args[0]
        hint = ""
        if reason.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
            hint = f". No broker answers at {servers}: see --bootstrap-servers and --config"
        sys.exit(f"Kafka: {reason.str()}{hint}")


@contextmanager
def flushed(publisher: Publisher) -> Iterator[None]:
    """Publish what waits at the end, unless no broker takes it, which would hold up for minutes."""
    try:
        yield
    finally:
        last = threading.Thread(target=publisher.flush, daemon=True)  # it hears no Ctrl-C
        last.start()
        last.join(ANSWERS_S)
        if last.is_alive():
            logger.error("No broker takes the last results, which are not published")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", help="YAML file")
    parser.add_argument("--topic", required=True, help="where documents come from")
    parser.add_argument("--publish", help="the topic that results go to; default: TOPIC.denoised")
    parser.add_argument("--bootstrap-servers", help="default: localhost:9092; several: with commas")
    parser.add_argument(
        "--config", help="YAML file: bootstrap_servers, producer_consumer_security_config"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    servers, connection = read_config(arguments.config)
    servers = arguments.bootstrap_servers or servers or "localhost:9092"
    connection["logger"] = logger
    try:
        publisher = Publisher(
            arguments.publish or f"{arguments.topic}.denoised",
            servers,
            key="denoised",  # of one key, so that they stay in order
            producer_config={**connection, "enable.idempotence": True},
        )
        # Before anything listens: where brokers let it, to listen to a topic may make it.
        check_topics(arguments.topic, publisher, {**connection, "bootstrap.servers": servers})
        group = f"bluesky-denoise-{uuid.uuid4()}"
        dispatcher = RemoteDispatcher([arguments.topic], servers, group, {**connection, **LISTENS})
    except (KafkaException, ValueError) as error:
        reason = error.args[0]
        told = reason.str() if isinstance(reason, KafkaError) else reason
        sys.exit(f"Kafka: {told}; it comes from --config {arguments.config}")

    ended = threading.Event()

    def end(number: int, frame: Any) -> None:
        """Let what has come be denoised, and end; a second Ctrl-C ends at once."""
        ended.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Service managers end a program by SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        with flushed(publisher), bus_denoiser(arguments.settings, publisher) as take:
            dispatcher.subscribe(take)
            print(f"Denoising what comes from {arguments.topic}; end with Ctrl-C.", flush=True)
            dispatcher.start(continue_polling=lambda: not ended.is_set())
    except KeyboardInterrupt:
        pass
    except DenoiseError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
