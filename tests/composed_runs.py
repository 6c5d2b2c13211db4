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
        self._keys = keys
        self.stream = self.begin("primary")

    def begin(self, name):
        """Begin another stream of the same data keys."""
        stream = self.run.compose_descriptor(name=name, data_keys=self._keys)
        self.add("descriptor", stream.descriptor_doc)
        return stream

    def add(self, name, doc):
        self.documents.append((name, doc))

    def file(self, name, frames):
        path = self._directory / name
        with h5py.File(path, "w") as file:
            file["entry/data/data"] = frames
        return path

    def event(self, stream=None, /, **data):
        data |= {"motor": 0.0}
        event = (stream or self.stream).compose_event(
            data=data,
            timestamps=dict.fromkeys(data, 0.0),
            filled={key: False for key in data if key != "motor"},
            validate=False,
        )
        self.add("event", event)

    def old_file(self, path):
        """Begin a file as a Resource; return what composes a Datum of it."""
        resource = self.run.compose_resource(
            spec="AD_HDF5",
            root="/",
            resource_path=str(path),
            resource_kwargs={"frame_per_point": 1},
        )
        self.add("resource", resource.resource_doc)

        def datum(**told):
            """Add a Datum; return its id."""
            doc = resource.compose_datum(datum_kwargs=told)
            self.add("datum", doc)
            return doc["datum_id"]

        return datum

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
