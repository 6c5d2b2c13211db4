"""Runs whose documents are composed one by one, for orders that no device gives here."""

import h5py
from event_model import compose_run


class ComposedRun:
    """Documents of a run, composed one by one, with HDF5 files of rising counts."""

    def __init__(self, directory, *, motor=True, **shapes):
        self._directory, self.documents, self._counts = directory, [], 0
        self.run = compose_run()
        self.add("start", self.run.start_doc)
        keys = {
            key: {
                "dtype": "array",
                "shape": shape,
                "source": "test",
                "external": external,
                "dtype_numpy": "<u2",
            }
            for key, (shape, external) in shapes.items()
        }
        if motor:
            keys["motor"] = {"dtype": "number", "shape": [], "source": "test"}
        self.stream = self.run.compose_descriptor(name="primary", data_keys=keys)
        self.add("descriptor", self.stream.descriptor_doc)

    def add(self, name, doc):
        self.documents.append((name, doc))

    def file(self, name, frames):
        path = self._directory / name
        with h5py.File(path, "w") as file:
            file["entry/data/data"] = frames
        return path

    def event(self, **data):
        data |= {"motor": 0.0}
        event = self.stream.compose_event(
            data=data,
            timestamps=dict.fromkeys(data, 0.0),
            filled={key: False for key in data if key != "motor"},
            validate=False,
        )
        self.add("event", event)

    def ended(self):
        return [*self.documents, ("stop", self.run.compose_stop())]

    def files(self, key, path, **parameters):
        """Begin a file of frames; return what adds a stream datum of some of its events."""
        resource, datum = self.run.compose_stream_resource(
            mimetype="application/x-hdf5",
            uri=f"file://localhost{path}",
            data_key=key,
            parameters={"dataset": "/entry/data/data", **parameters},
        )
        self.add("stream_resource", resource)

        def span(first, last):
            """Add a stream datum of the events from `first` up to `last`."""
            indices = {"start": first - 1, "stop": last}
            self.add(
                "stream_datum",
                datum(
                    indices=indices,
                    seq_nums={"start": first, "stop": last + 1},
                    descriptor=self.stream.descriptor_doc,
                ),
            )

        return span
