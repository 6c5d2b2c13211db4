import copy
import pickle

import numpy as np
import pytest
from event_model import compose_run, compose_stream_resource

from bluesky_denoise.errors import FrameShapeError
from bluesky_denoise.testing import (
    DocumentCollector,
    UnitDenoiser,
    assert_emitted,
    validate_documents,
)

IMAGE = {
    "source": "SIM:det",
    "dtype": "array",
    "dtype_numpy": "<u4",
    "shape": [16, 20],
}


def run_of(n, name="primary"):
    """Compose a run of n events with an image each."""
    run = compose_run()
    docs = [("start", run.start_doc)]
    descriptor = run.compose_descriptor(name=name, data_keys={"det": dict(IMAGE)})
    docs.append(("descriptor", descriptor.descriptor_doc))
    for i in range(n):
        event = descriptor.compose_event(
            data={"det": np.full((16, 20), i, np.uint32)}, timestamps={"det": float(i)}
        )
        docs.append(("event", event))
    docs.append(("stop", run.compose_stop()))
    return docs


def streamed_run(*ranges):
    """Compose a run of stream datums alone, over the given ranges of indices."""
    run = compose_run()
    external = {**IMAGE, "external": "STREAM:"}
    descriptor = run.compose_descriptor(name="primary", data_keys={"det": external})
    resource = compose_stream_resource(
        data_key="det",
        mimetype="application/x-hdf5",
        uri="file://localhost/f.h5",
        parameters={},
        start=run.start_doc,
    )
    docs = [
        ("start", run.start_doc),
        ("descriptor", descriptor.descriptor_doc),
        ("stream_resource", resource.stream_resource_doc),
    ]
    for start, stop in ranges:
        datum = resource.compose_stream_datum(
            indices={"start": start, "stop": stop},
            seq_nums={"start": start + 1, "stop": stop + 1},
            descriptor=descriptor.descriptor_doc,
        )
        docs.append(("stream_datum", datum))
    stop_doc = {**run.compose_stop(), "num_events": {"primary": ranges[-1][1]}}
    return [*docs, ("stop", stop_doc)]


def altered(docs, index, **changes):
    docs = copy.deepcopy(docs)
    docs[index][1].update(changes)
    return docs


def test_a_whole_run_is_valid():
    validate_documents(run_of(3))
    validate_documents(run_of(0))
    validate_documents(streamed_run((0, 2), (2, 5)))


def test_interleaved_runs_are_valid():
    first, second = run_of(2), run_of(1)
    validate_documents([first[0], *second[:2], *first[1:3], *second[2:], *first[3:]])


def test_a_document_that_does_not_fit_its_schema_is_named():
    docs = altered(run_of(1), 2, seq_num="one")
    with pytest.raises(AssertionError, match=rf"event {docs[2][1]['uid'][:8]} does not fit its"):
        validate_documents(docs)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (0, r"descriptor \w+ refers to start \w+, which did not come"),
        (1, r"event \w+ refers to descriptor \w+, which did not come"),
        (2, r"event \w+ of stream 'primary' has seq_num 2; expected 1"),
        (-1, r"Run \w+ has no stop"),
    ],
)
def test_a_missing_document_is_found(left_out, message):
    docs = run_of(2)
    del docs[left_out]
    with pytest.raises(AssertionError, match=message):
        validate_documents(docs)


def test_no_documents_at_all_are_no_run():
    with pytest.raises(AssertionError, match=r"There is no start"):
        validate_documents([])


def test_a_document_after_the_stop_is_found():
    docs = run_of(2)
    docs[-2:] = [docs[-1], docs[-2]]
    docs[3] = ("stop", {**docs[3][1], "num_events": {"primary": 1}})
    with pytest.raises(AssertionError, match=r"event \w+ came after the stop"):
        validate_documents(docs)


def test_a_wrong_number_of_events_in_the_stop_is_found():
    docs = altered(run_of(2), -1, num_events={"primary": 3})
    message = r"num_events \{'primary': 3\}; the streams have \{'primary': 2\} points"
    with pytest.raises(AssertionError, match=message):
        validate_documents(docs)


def test_points_of_stream_datums_count_as_events():
    docs = altered(streamed_run((0, 4)), -1, num_events={})
    with pytest.raises(AssertionError, match=r"the streams have \{'primary': 4\} points"):
        validate_documents(docs)


def test_overlapping_stream_datums_are_found():
    message = r"of 'det' has indices 1 to 3; expected a range from 2 on"
    with pytest.raises(AssertionError, match=message):
        validate_documents(streamed_run((0, 2), (1, 3)))


def test_stream_datums_that_go_back_without_their_events_are_found():
    docs = altered(streamed_run((0, 2), (2, 4)), 4, seq_nums={"start": 2, "stop": 5})
    with pytest.raises(AssertionError, match=r"'primary' go back to the seq_nums \[2\], its"):
        validate_documents(docs)


def test_a_point_that_is_taken_again_has_its_number_again():
    docs = run_of(3)
    again = altered(docs, 4, seq_num=2)
    again[-1][1]["num_events"] = {"primary": 2}
    validate_documents(again)
    with pytest.raises(AssertionError, match=r"has seq_num 0; expected 3"):
        validate_documents(altered(docs, 4, seq_num=0))


def test_a_stream_datum_without_its_resource_is_found():
    docs = streamed_run((0, 2))
    del docs[2]
    with pytest.raises(AssertionError, match=r"refers to stream_resource \w+, which did not come"):
        validate_documents(docs)


def test_an_event_without_a_key_of_its_descriptor_is_found():
    docs = altered(run_of(1), 2, data={})
    with pytest.raises(AssertionError, match=r"data of \[\]; its descriptor says \['det'\]"):
        validate_documents(docs)


def test_an_array_of_another_shape_than_described_is_found():
    docs = altered(run_of(1), 2, data={"det": np.zeros((16, 21))})
    with pytest.raises(AssertionError, match=r"'det' of shape \(16, 21\); .* says \(16, 20\)"):
        validate_documents(docs)


def test_a_datum_that_never_comes_is_found():
    docs = run_of(1)
    docs[1][1]["data_keys"]["det"]["external"] = "FILESTORE:"
    docs = altered(docs, 2, data={"det": "resource/0"}, filled={"det": False})
    with pytest.raises(AssertionError, match=r"datums that never came: resource/0"):
        validate_documents(docs)


def test_emitted_documents_are_counted_in_any_order():
    collector = DocumentCollector()
    for name, doc in run_of(2):
        collector(name, doc)
    assert_emitted(collector.by_name, stop=1, start=1, event=2, descriptor=1, datum=0)
    with pytest.raises(AssertionError, match=r"Emitted .*'event': 2.* expected .*'event': 3"):
        assert_emitted(collector.by_name, start=1, descriptor=1, event=3, stop=1)
    with pytest.raises(AssertionError, match=r"Emitted"):
        assert_emitted(collector.by_name, start=1, descriptor=1, event=2)


def test_a_collector_keeps_the_order_and_forgets_when_told():
    docs = run_of(1)
    collector = DocumentCollector()
    for name, doc in docs:
        collector(name, doc)
    collector.validate()
    assert [name for name, _ in collector.documents] == ["start", "descriptor", "event", "stop"]
    assert all(kept is doc for (_, kept), (_, doc) in zip(collector.documents, docs, strict=True))
    collector.clear()
    assert not collector.documents
    assert not collector.by_name


def test_the_unit_denoiser_returns_the_rate_with_masked_pixels_as_nan():
    mask = np.zeros((16, 20), bool)
    mask[3, 4] = True
    denoiser = UnitDenoiser()
    rate = denoiser.denoise(np.full((2, 16, 20), 6, np.uint32), 2.0, mask).rate
    assert rate.dtype == np.float32
    assert np.isnan(rate[:, 3, 4]).all()
    assert (rate[:, ~mask] == 3).all()


def test_the_unit_denoiser_remembers_its_batches_and_can_be_sent_to_a_process():
    denoiser = pickle.loads(pickle.dumps(UnitDenoiser(delay_s=0.001)))
    for n in (1, 3):
        denoiser.denoise(np.ones((n, 16, 20)), 1.0)
    assert denoiser.calls == [1, 3]
    assert denoiser.name == "unit"
    assert denoiser.weights_sha256 == "0" * 64


def test_the_unit_denoiser_takes_stacks_only():
    with pytest.raises(FrameShapeError, match=r"shape \(16, 20\); expected \(B, H, W\)"):
        UnitDenoiser().denoise(np.ones((16, 20)), 1.0)
