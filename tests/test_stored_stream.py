"""What lies in a stream of Tiled."""

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky_tiled_plugins import TiledWriter
from ophyd.sim import SynSignal

from bluesky_denoise.catalog import DenoisedStream, events_of
from bluesky_denoise.in_tiled.archive import archived_documents, find_raw
from bluesky_denoise.in_tiled.stored_stream import StoredStream


@pytest.fixture
def numbers(RE, tiled, motor):
    """Return a run of three points without a frame."""
    RE.subscribe(TiledWriter(tiled.client, batch_size=1))
    (uid,) = RE(bp.scan([SynSignal(name="lamp", func=lambda: 3)], motor, 1, 3, 3))
    return tiled.client[uid]


def test_a_stream_of_numbers_has_its_events_and_no_array(numbers):
    stored = StoredStream(numbers["primary"])
    assert stored.count_events() == 3
    assert stored.nodes == {}
    assert not stored.read_a_pixel()
    assert list(stored.read_table(["motor"])["motor"]) == [1, 2, 3]


def test_arrays_without_a_table_are_counted_and_the_shortest_has_its_say(tiled):
    metadata = {"data_keys": {key: {"shape": [1, 4, 4]} for key in ("det", "other")}}
    node = tiled.client.create_container("arrays", metadata=metadata)
    assert StoredStream(node).count_events() == 0
    for key, length in (("det", 5), ("other", 4)):
        node.write_array(np.ones((length, 4, 4)), key=key)
    stored = StoredStream(node)
    assert stored.read_table() is None
    assert stored.count_events() == 4
    assert stored.frames("det")[1:3].shape == (2, 4, 4)
    assert stored.read_a_pixel()


def test_a_stream_that_a_run_does_not_have_is_none_and_left_out(numbers):
    assert find_raw(numbers, "dark") is None
    names = [name for name, _ in archived_documents(numbers, ("dark", "primary"))]
    assert names == ["start", "descriptor", "event", "event", "event", "stop"]


def test_no_events_of_a_stream_that_is_not_there_were_taken(numbers):
    about = {"model": "unit", "weights_sha256": "0", "version": "1", "reason": "", "time": 1.0}
    found = {"name": "denoised_dark", "exit_status": "success", "num_events": 2, "run_uid": "a"}
    of_dark = DenoisedStream(**about, **found, stream=None, provenance={"raw_stream": "dark"})
    assert events_of(numbers, of_dark) == (2, 0)
