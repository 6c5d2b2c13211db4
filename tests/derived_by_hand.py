"""Derived documents made by hand, and signals that listen to them."""

import event_model

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.runs.results import audit_keys, event_keys, number_keys

KEY = "det_image"


class Derived:
    """What a denoiser emits, when the test says so."""

    def __init__(self, *data_keys):
        data_keys = data_keys or [KEY]
        keys = number_keys({key: {} for key in data_keys}, "test") | audit_keys(data_keys, "test")
        self.keys = [*keys, *event_keys("test")]
        self.functions = []

    def subscribe(self, func):
        self.functions.append(func)
        return 0

    def emit(self, name, doc):
        for func in self.functions:
            func(name, doc)

    def open(self, raw_uid, stream="denoised"):
        self.bundle = event_model.compose_run(metadata={"original_run_uid": raw_uid})
        self.emit("start", self.bundle.start_doc)
        data_keys = {k: {"dtype": "number", "shape": [], "source": "test"} for k in self.keys}
        self.stream = self.bundle.compose_descriptor(name=stream, data_keys=data_keys)
        self.emit("descriptor", self.stream.descriptor_doc)

    def event(self, seq_num, value, time=1.0):
        data = dict.fromkeys(self.keys, value) | {"raw_seq_num": seq_num}
        stamps = dict.fromkeys(data, time)
        self.emit("event", self.stream.compose_event(data=data, timestamps=stamps, time=time))


def signals_of(derived, **kwargs):
    kwargs = {"data_keys": [KEY], "rois": [], "timeout_s": 5.0, **kwargs}
    return DenoisedSignals(derived, name="denoised", **kwargs)


def at(signals, seq_num, time=1.0, run="raw-run", stream="primary"):
    """Tell the signals which raw event was the last."""
    spec = {"dtype": "array", "shape": [16, 16], "source": "sim"}
    descriptor = {"uid": f"{run} {stream}", "run_start": run, "name": stream}
    signals.raw("descriptor", {**descriptor, "data_keys": {KEY: spec}})
    signals.raw("event", {"descriptor": descriptor["uid"], "seq_num": seq_num, "time": time})
