"""callbacks/kafka.py, with the broker that is built into Kafka's own client library."""

import logging
import os
import runpy
import sys
import threading
import time
from unittest.mock import Mock

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky_kafka import Publisher, RemoteDispatcher
from bluesky_tiled_plugins import TiledWriter
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient
from live_path import ROOT, UNIT, start_program, wait_for
from ophyd.sim import motor

from bluesky_denoise import DenoisedSignals, DenoiseSettings, denoised_streams
from bluesky_denoise.plans import denoised_scan
from bluesky_denoise.testing import DocumentCollector, validate_documents

RAW, DENOISED = "xyz.bluesky.runengine.documents", "xyz.bluesky.runengine.documents.denoised"


LOGGER = logging.getLogger("librdkafka")
"""What the library says of connections; otherwise it writes to the screen itself."""


@pytest.fixture(scope="module")
def broker():
    """Run a broker that has two topics; yield its address."""
    producer = Producer({"test.mock.num.brokers": 1, "logger": LOGGER})
    for topic in (RAW, DENOISED):  # to ask for them makes them
        (node,) = producer.list_topics(topic, timeout=10).brokers.values()
    yield f"{node.host}:{node.port}"
    producer.flush(10)


@pytest.fixture
def start():
    """Return a function that starts the program; what it started is ended at the end."""
    started = []

    def start(*arguments, **environment):
        command = ["callbacks/kafka.py", *map(str, arguments)]
        process = start_program(command, {**os.environ, **environment})
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def results(broker):
    """Return a dispatcher of what is published back, which listens on a thread."""
    options = {"auto.offset.reset": "latest", "logger": LOGGER}
    dispatcher = RemoteDispatcher([DENOISED], broker, "results", options)
    done = threading.Event()
    thread = threading.Thread(
        target=dispatcher.start, kwargs={"continue_polling": lambda: not done.is_set()}
    )
    thread.start()
    yield dispatcher
    done.set()
    thread.join(20)


@pytest.mark.slow
def test_kafka_denoises_what_is_published_and_a_plan_reads_the_results(
    RE, tiled, tmp_path, camera, broker, start, results
):
    address = DenoiseSettings(tiled_uri=tiled.uri).tiled_uri
    (tmp_path / "settings.yaml").write_text(f"tiled_uri: {address}\nmodel: {UNIT!r}\n")
    (tmp_path / "kafka.yml").write_text(
        f"bootstrap_servers:\n- {broker}\n"
        "producer_consumer_security_config:\n  security.protocol: PLAINTEXT\n"
    )
    publisher = Publisher(RAW, broker, key="xyz", producer_config={"logger": LOGGER})
    RE.subscribe(publisher)
    (before,) = RE(bp.count([camera], 1))
    publisher.flush()
    process = start(
        *(tmp_path / "settings.yaml", "--topic", RAW, "--config", tmp_path / "kafka.yml"),
        TILED_API_KEY=tiled.uri.partition("api_key=")[2],
    )
    assert process.stdout.readline().startswith("Denoising what comes from")
    derived = DocumentCollector()
    results.subscribe(derived)
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))

    def count_until_one_comes_back():
        """It listens some seconds after it has said so."""
        (uid,) = RE(bp.count([camera], 3))
        time.sleep(0.5)
        return uid if derived.by_name.get("stop") else None

    uid = wait_for(count_until_one_comes_back, what="a denoised stop over Kafka")

    def whole_runs():
        """What came back, once no run of those that were counted in vain is still under way."""
        documents = list(derived.documents)
        names = [name for name, _ in documents]
        return documents if names.count("start") == names.count("stop") else None

    validate_documents(wait_for(whole_runs, what="the stop of each run over Kafka"))
    raw = tiled.client[uid]["primary"]["det_image"].read()

    def stream_of(uid):
        streams = denoised_streams(tiled.client[uid])
        return next((s for s in streams if s.exit_status is not None), None)

    stream = wait_for(lambda: stream_of(uid), what="the denoised stream in Tiled")
    assert (stream.exit_status, stream.num_events) == ("success", 3)
    np.testing.assert_allclose(stream.stream["det_image"].read(), raw / 0.5)

    denoised = DenoisedSignals(results, name="denoised", data_keys=["det_image"])
    RE.subscribe(denoised.raw)
    read = DocumentCollector()
    RE.subscribe(read)
    (uid,) = RE(denoised_scan([camera], motor, -1, 1, 3, denoised=denoised))
    raw = tiled.client[uid]["primary"]["det_image"].read()
    totals = [
        event["data"]["denoised_det_image_denoised_total"]
        for event in read.by_name["event"]
        if "denoised_det_image_denoised_total" in event["data"]
    ]
    np.testing.assert_allclose(totals, raw.sum(axis=(-2, -1)).ravel() / 0.5, rtol=1e-5)

    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "ERROR" not in output
    assert f"{uid:.8}" in output
    assert f"{before:.8}" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--topic", "xyz.documents", "--config", "elsewhere.yml"],
            "--topic 'xyz.documents': {broker} has no such topic; it has",
        ),
        (
            ["--topic", RAW, "--bootstrap-servers", "localhost:1"],
            "No broker answers at localhost:1",
        ),
        (["--topic", RAW, "--config", "list.yml"], "expected a YAML file with `bootstrap_servers`"),
        (["--topic", RAW, "--config", "wrong.yml"], "it comes from --config"),
        (["--topic", RAW, "--config", "group.yml"], "do not specify 'group.id'"),
        (["--topic", RAW, "--config", "acks.yml"], "`acks` must be set to `all`"),
        (["--topic", RAW], "There are no weights 'defualt'"),
    ],
    ids=["topic", "server", "no mapping", "property", "group", "acks", "settings"],
)
def test_kafka_says_in_a_line_what_is_wrong(broker, told, tmp_path, arguments, message):
    (tmp_path / "settings.yaml").write_text("model: defualt\n")
    (tmp_path / "list.yml").write_text("- localhost:9092\n")
    (tmp_path / "wrong.yml").write_text(
        "producer_consumer_security_config:\n  security.protocol: NONSENSE\n"
    )
    # Of producers alone, which need another one.
    (tmp_path / "acks.yml").write_text("producer_consumer_security_config:\n  acks: 0\n")
    (tmp_path / "elsewhere.yml").write_text("bootstrap_servers: [localhost:1]\n")
    (tmp_path / "group.yml").write_text("producer_consumer_security_config:\n  group.id: xyz\n")
    arguments = [tmp_path / word if word.endswith(".yml") else word for word in arguments]
    program = ["callbacks/kafka.py", tmp_path / "settings.yaml", "--bootstrap-servers", broker]
    assert message.format(broker=broker) in told(*program, *arguments)


@pytest.fixture
def program(monkeypatch):
    """Return what the program defines, with little patience."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = runpy.run_path(str(ROOT / "callbacks/kafka.py"))
    monkeypatch.setitem(names["check_topics"].__globals__, "ANSWERS_S", 1)
    return names


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("bootstrap_servers: [a:1, b:2]", ("a:1,b:2", {})),
        ("bootstrap_servers: a:1", ("a:1", {})),
        ("bootstrap_servers:\nproducer_consumer_security_config:", ("", {})),
        ("producer_consumer_security_config: {acks: 1}", ("", {"acks": 1})),
    ],
)
def test_a_config_may_lack_what_the_command_line_has(program, tmp_path, text, config):
    (tmp_path / "kafka.yml").write_text(text)
    assert program["read_config"](str(tmp_path / "kafka.yml")) == config


@pytest.mark.parametrize(
    "text", ["", "- a:1", "bootstrap_servers: 9092", "bootstrap_servers: [9092]", "a: [", "\x00"]
)
def test_a_config_of_another_kind_is_told(program, tmp_path, text):
    (tmp_path / "kafka.yml").write_text(text)
    with pytest.raises(SystemExit, match="expected a YAML file with `bootstrap_servers`"):
        program["read_config"](str(tmp_path / "kafka.yml"))


def test_a_topic_for_results_that_cannot_be_made_is_told(broker, program):
    """The broker here makes each topic that it is asked for; most do, and some do not."""
    refused = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    publisher = Mock(topic="results")
    publisher.get_cluster_metadata().topics = {"results": Mock(error=refused)}
    told = f"--publish 'results', at {broker}: .*Unknown topic"
    with pytest.raises(SystemExit, match=told):
        program["check_topics"](RAW, publisher, {"bootstrap.servers": broker, "logger": LOGGER})


def test_a_topic_that_is_misspelt_has_none_made_for_its_results(broker, program):
    publisher = Publisher("mispelt.denoised", broker, "x", {"logger": LOGGER})
    connection = {"bootstrap.servers": broker, "logger": LOGGER}
    with pytest.raises(SystemExit, match="--topic 'mispelt'"):
        program["check_topics"]("mispelt", publisher, connection)
    assert "mispelt.denoised" not in AdminClient(connection).list_topics(timeout=10).topics


def test_the_last_results_are_published_unless_no_broker_takes_them(program, caplog):
    waiting, published = threading.Event(), Mock()
    with program["flushed"](published):
        published.flush.assert_not_called()
    published.flush.assert_called_once()
    assert caplog.text == ""
    with program["flushed"](Mock(flush=lambda: waiting.wait(60))):
        pass
    assert "No broker takes the last results" in caplog.text
    waiting.set()
