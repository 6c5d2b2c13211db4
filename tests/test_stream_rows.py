"""Rows of a derived stream as they are sent to Tiled."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from bluesky_denoise.in_tiled import layouts, streams
from bluesky_denoise.in_tiled.layouts import DerivedRunWriter
from bluesky_denoise.in_tiled.streams import _Stream, streams_of

SPECS = {
    "beam": {"dtype": "number"},
    "count": {"dtype": "integer"},  # as a device says it
    "shut": {"dtype": "boolean"},
    "mode": {"dtype": "string"},
    "raw_seq_num": {"dtype": "integer"},
    "det": {"dtype": "array", "shape": [1, 2]},
}
DESCRIPTOR = {"data_keys": SPECS, "object_keys": {"denoiser": ["raw_seq_num", "det"]}}


def event(seq_num, **data):
    data = {"beam": 1.5, "count": 2, "shut": True, "mode": "a", "raw_seq_num": seq_num} | data
    data["det"] = np.full((1, 2), seq_num, np.float32)
    timestamps = dict.fromkeys(data, seq_num + 0.5)
    return {"seq_num": seq_num, "time": seq_num + 0.25, "data": data, "timestamps": timestamps}


@pytest.fixture
def node():
    return MagicMock(path_parts=["raw", "denoised"])


def pieces(node):
    """Return the rows of each request."""
    append = node.create_appendable_table.return_value.append_partition
    return [call.args[1].to_pylist() for call in append.call_args_list]


@pytest.mark.parametrize(
    ("key", "value"),
    [("beam", "off"), ("count", [1, 2]), ("beam", 10**400), ("raw_seq_num", "x"), ("count", {})],
)
def test_a_reading_of_another_kind_than_its_descriptor_says_costs_no_row(node, logged, key, value):
    stream = _Stream(node, DESCRIPTOR, None)
    stream.add_events([event(1), event(2, **{key: value}), event(3, **{key: value})])
    ((first, second, third),) = pieces(node)
    stamps = {f"ts_{name}": 1.5 for name in SPECS}
    told = {"beam": 1.5, "count": 2.0, "shut": True, "mode": "a", "raw_seq_num": 1}
    assert first == {"seq_num": 1, "time": 1.25, **told, **stamps}
    assert second[key] is third[key] is None
    assert [row["seq_num"] for row in (first, second, third)] == [1, 2, 3]
    assert all(second[other] is not None for other in SPECS.keys() - {key, "det"})
    (line,) = logged().splitlines()
    assert line.startswith(f"raw/denoised: {key} of event 2 is {value!r}"[:90])


def test_a_run_of_its_own_has_readings_of_one_kind_from_its_first_event_on(monkeypatch, logged):
    written = []
    monkeypatch.setattr(
        layouts, "TiledWriter", lambda *_, **__: lambda name, doc: written.append((name, doc))
    )
    descriptor = {"uid": "d", "run_start": "of-the-run", "name": "denoised", **DESCRIPTOR}
    events = [{**event(1, beam="off", mode=None), "descriptor": "d"}]
    events.append({**event(2, count=2.5), "descriptor": "d"})
    documents = [("descriptor", descriptor), *(("event", doc) for doc in events)]
    DerivedRunWriter(MagicMock()).write(documents)
    assert written[0] == ("descriptor", descriptor)
    first, second = (doc["data"] for _, doc in written[1:])
    assert np.isnan(first["beam"])
    assert (second["beam"], first["mode"], second["mode"]) == (1.5, None, "a")
    assert [type(data["count"]) for data in (first, second)] == [float, float]
    assert (second["count"], second["raw_seq_num"], second["shut"]) == (2.5, 2, True)
    assert first["det"] is events[0]["data"]["det"]
    assert events[0]["data"]["beam"] == "off"  # what came is as it was
    assert "of-the-run/denoised: beam of event 1 is 'off', and its descriptor" in logged()


def test_a_request_has_no_more_events_than_a_proxy_takes(node, monkeypatch):
    """Of these each has 8 + 8 + 1 + 1 + 8 + 8 bytes, and six time stamps of 16."""
    monkeypatch.setattr(streams, "_PIECE_BYTES", 3 * (34 + 6 * 16))
    stream = _Stream(node, DESCRIPTOR, None)
    stream.add_events([event(number) for number in range(1, 6)])
    assert [[row["seq_num"] for row in rows] for rows in pieces(node)] == [[1, 2, 3], [4, 5]]
    frames = node.write_array.call_args.args[0].compute()
    np.testing.assert_array_equal(frames[:, 0, 0], [1, 2, 3])
    (patched,) = node.write_array.return_value.patch.call_args_list
    np.testing.assert_array_equal(patched.args[0][:, 0, 0], [4, 5])
    assert patched.kwargs == {"offset": (3,), "extend": True}
    stream.add_events([event(5), event(6)])  # what is there is not written again
    assert [row["seq_num"] for row in pieces(node)[-1]] == [6]


def test_the_streams_of_a_derived_run_are_not_those_of_another():
    def stream(**metadata):
        return SimpleNamespace(base=SimpleNamespace(metadata=metadata))

    streams_in = {"primary": stream(), "put here": object(), "denoised": stream(denoise={})}
    streams_in |= {f"denoised_{uid}": stream(denoise={"run_uid": uid}) for uid in "ab"}
    run = SimpleNamespace(base=streams_in)
    assert list(streams_of(run, "b")) == [("denoised_b", streams_in["denoised_b"].base)]
