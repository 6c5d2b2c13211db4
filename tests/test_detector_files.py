"""Frames in files as ophyd and areaDetector have them, beside the scan and from Tiled."""

import json
import re

import h5py
import matplotlib as mpl
import numpy as np
import pytest
import tifffile
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from live_path import SHAPE, settings
from tiers import thorough
from tiled_fixtures import Live, in_tiled

from bluesky_denoise import denoised_streams, reprocess
from bluesky_denoise.backup import BackupFile
from bluesky_denoise.errors import BackupError, DenoiseError
from bluesky_denoise.in_tiled.stored_stream import StoredStream
from bluesky_denoise.restore import restore_run
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.sources.resources import RESOURCE_PATCHES, end_folder
from bluesky_denoise.testing import UnitDenoiser
from bluesky_denoise.viewer import FrameViewer

EXPOSURE_S = 0.5
FRAMES = np.random.default_rng(5).poisson(5, (6, *SHAPE)).astype(np.uint32)
SPECS = {"AD_TIFF": "tiff", "AD_HDF5_SINGLE": "h5"}


def write(path, frame):
    if path.suffix == ".tiff":
        tifffile.imwrite(path, frame)
    else:
        with h5py.File(path, "w") as file:
            file["/entry/data/data"] = frame


def number(shape=()):
    return {"source": "test", "dtype": "array" if shape else "number", "shape": list(shape)}


def documents(spec, folder, per_point=1, shape=SHAPE, root="/", **resource_kwargs):
    """Return a run of ophyd's `FileStore...IterativeWrite`, all frames in one Resource."""
    exposure = {"det_cam_acquire_time": EXPOSURE_S}
    run = compose_run()
    stream = run.compose_descriptor(
        name="primary",
        data_keys={
            "det_image": {
                **number((per_point, *shape)),
                "dtype_numpy": "<u4",
                "external": "FILESTORE:",
            },
            "m": number(),
        },
        object_keys={"det": ["det_image"], "m": ["m"]},
        configuration={
            "det": {
                "data": exposure,
                "timestamps": dict.fromkeys(exposure, 0),
                "data_keys": {key: number() for key in exposure},
            }
        },
    )
    resource = run.compose_resource(
        spec=spec,
        root=root,
        # As `str(PurePath)` has it, without a slash at the end.
        resource_path=str(folder.relative_to(root)),
        resource_kwargs={**resource_kwargs, "frame_per_point": per_point},
    )
    made = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    made.append(("resource", resource.resource_doc))
    for point in range(len(FRAMES) // per_point):
        datum = resource.compose_datum(datum_kwargs={"point_number": point})
        data = {"det_image": datum["datum_id"], "m": float(point)}
        event = stream.compose_event(
            data=data, timestamps=dict.fromkeys(data, 0), filled={"det_image": False}
        )
        made += [("datum", datum), ("event", event)]
    return [*made, ("stop", run.compose_stop())]


@pytest.fixture
def taken(tiled, tmp_path):
    """Return a function that writes a run to Tiled and denoises it beside."""
    opened = []

    def taken(documents, patches=RESOURCE_PATCHES, **values):
        write = TiledWriter(tiled.client, batch_size=1, patches=patches)
        one = Live(
            tiled_uri=tiled.uri,
            frames_directory=tmp_path / "denoised",
            backup_directory=tmp_path / "backup",
            read_timeout_s=0.1,
            **values,
        )
        opened.append(one)
        for name, doc in documents:
            write(name, doc)
            one.router(name, doc)
        one.sink.close(30)
        return in_tiled(tiled, documents[0][1]["uid"]), one.settings

    yield taken
    for one in opened:
        assert one.sink.close(30) == []


def series(tmp_path, spec, per_point, shape=SHAPE, **kwargs):
    """Write a file for each frame; return the documents."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for index, frame in enumerate(FRAMES):
        write(folder / f"a_{index:06d}.{SPECS[spec]}", frame)
    template = f"%s%s_%6.6d.{SPECS[spec]}"
    return documents(spec, folder, per_point, shape, filename="a", template=template, **kwargs)


@pytest.mark.parametrize(
    ("spec", "per_point", "rooted"),
    [  # each pair of options once
        thorough("AD_TIFF", 1, False),
        ("AD_TIFF", 3, True),
        ("AD_HDF5_SINGLE", 1, True),
        thorough("AD_HDF5_SINGLE", 3, False),
    ],
)
def test_a_file_for_each_frame_is_denoised_beside_the_scan_and_again(
    tmp_path, taken, spec, per_point, rooted
):
    root = str(tmp_path / "raw") if rooted else "/"
    run, used = taken(series(tmp_path, spec, per_point, root=root))
    raw = FRAMES.reshape(-1, per_point, *SHAPE)
    np.testing.assert_array_equal(run["primary"]["det_image"].read(), raw)
    reprocess(run, used)
    again, live = denoised_streams(run)
    for found in (again, live):
        rates = found.stream["det_image"].read()
        np.testing.assert_array_equal(rates * np.float32(EXPOSURE_S), raw)


def test_a_run_that_was_kept_is_restored_with_its_files(tmp_path, tiled):
    made = series(tmp_path, "AD_TIFF", 1)
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps({"name": name, "doc": doc}) + "\n" for name, doc in made))
    restore_run(tiled.client, kept)
    read = in_tiled(tiled, made[0][1]["uid"])["primary"]["det_image"].read()
    np.testing.assert_array_equal(read[:, 0], FRAMES)


@pytest.mark.thorough
def test_a_run_with_files_that_tiled_cannot_look_into_is_restored(tmp_path, tiled):
    *begun, stop = documents("AD_EIGER_MX", tmp_path / "a")
    BackupFile(tmp_path, "kept").append(begun)
    told = restore_run(tiled.client, tmp_path / "kept.jsonl")
    assert f"is in Tiled, with {len(FRAMES)} events of primary, and without an end" in told
    BackupFile(tmp_path, "whole").append([*begun, stop])
    with pytest.raises(BackupError, match=rf"\(primary, {len(FRAMES)} events\) are deleted"):
        restore_run(tiled.client, tmp_path / "whole.jsonl")
    told = restore_run(tiled.client, tmp_path / "whole.jsonl", replace=True)
    assert told.startswith(f"run {stop[1]['run_start']} is in Tiled, with {len(FRAMES)} events")


def test_other_resources_keep_their_path():
    one_file = {"resource_path": "raw/a.h5", "resource_kwargs": {"frame_per_point": 1}}
    ended = {"resource_path": "raw/", "resource_kwargs": {"template": "%s%s_%d.tiff"}}
    joined = {"resource_path": "raw/a", "resource_kwargs": {"template": "_{:d}.tiff"}}
    for resource in (one_file, ended, joined):
        assert end_folder(resource) == resource


def test_files_that_tiled_looks_for_elsewhere_are_named_with_what_to_do(tmp_path, taken):
    run, used = taken(series(tmp_path, "AD_TIFF", 1), patches=None)
    (live,) = denoised_streams(run)
    assert list(live.stream["denoise_reason"].read()) == [""] * len(FRAMES)
    with pytest.raises(DenoiseError) as refusal:
        reprocess(run, used)
    for told in ("'det_image'", "Tiled answers 500", str(tmp_path), "rawa_000000.tiff"):
        assert told in str(refusal.value)


def test_frames_of_another_size_than_the_descriptor_has_are_told_with_what_to_do(
    tmp_path, taken, logged
):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["/entry/data/data"] = FRAMES
    run, used = taken(documents("AD_HDF5", tmp_path / "a.h5", shape=(40, 50)))
    (live,) = denoised_streams(run)
    rates = live.stream["det_image"].read()
    np.testing.assert_array_equal(rates[:, 0] * np.float32(EXPOSURE_S), FRAMES)
    told = f"frames of det_image are {SHAPE}, and the descriptor has (40, 50); they are denoised"
    assert logged().count(told) == 1
    with pytest.raises(DenoiseError, match=r"another shape than .*validate\(\)` corrects what"):
        reprocess(run, used)
    with pytest.warns(UserWarning, match="primary/det_image"):
        run.validate(raise_on_error=True)
    reprocess(run, used)  # as the message says
    rates = denoised_streams(run)[0].stream["det_image"].read()
    np.testing.assert_array_equal(rates.reshape(FRAMES.shape) * np.float32(EXPOSURE_S), FRAMES)
    assert "zeros were put" not in logged()  # those of a file are as they were


NO_SIZE = "A detector tells the size of its last frame: .* take one before the scan"


def test_a_detector_that_has_seen_no_frame_is_told_with_what_to_do(tmp_path, taken, caplog):
    run, _ = taken(documents("AD_HDF5", tmp_path / "a.h5", shape=()))
    assert set(run) == {"primary"}
    told = (
        r"undenoised: the descriptor has det_image with the shape \[1\]; expected frames of 16 x 16"
    )
    assert re.search(f"{told}.* {NO_SIZE}", caplog.text)


@pytest.mark.thorough
def test_frames_without_a_size_are_denoised_where_they_are_named(tmp_path, taken, caplog):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["/entry/data/data"] = FRAMES
    made = documents("AD_HDF5", tmp_path / "a.h5", shape=())
    run, _ = taken(made, data_keys=["det_image"])
    rates = denoised_streams(run)[0].stream["det_image"].read()
    np.testing.assert_array_equal(rates * np.float32(EXPOSURE_S), FRAMES)
    assert re.search(rf"the descriptor has \(1,\); they are denoised.* {NO_SIZE}", caplog.text)


def test_a_file_for_each_frame_is_in_the_live_view(tmp_path):
    mpl.use("Agg")
    router = DenoiseRouter(settings(), UnitDenoiser())
    viewer = FrameViewer("det_image", interval_s=0.01, save_to=tmp_path / "live.png")
    router.subscribe(viewer.derived)
    for name, doc in series(tmp_path, "AD_TIFF", 1):
        viewer.raw(name, doc)
        router(name, doc)
    viewer.close()
    images = [axes.images[0].get_array() for axes in viewer.figure.axes if axes.images]
    np.testing.assert_allclose(images[0], images[1], rtol=1e-6)  # a unit denoiser


def test_colours_are_not_denoised(tmp_path, taken):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["/entry/data/data"] = np.repeat(FRAMES[..., None], 3, axis=-1)
    run, _ = taken(documents("AD_HDF5", tmp_path / "a.h5"))
    (live,) = denoised_streams(run)
    assert (reasons := list(live.stream["denoise_reason"].read()))
    assert all("which is colours" in reason and "ColorMode Mono" in reason for reason in reasons)


def test_points_with_frames_on_two_axes_are_refused_before_the_first(tmp_path, taken):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["/entry/data/data"] = FRAMES
    run, _ = taken(documents("AD_HDF5", tmp_path / "a.h5", per_point=3, shape=(2, *SHAPE)))
    (live,) = denoised_streams(run)
    assert live.exit_status == "fail"
    assert live.reason == (
        "Data key 'det_image' has shape [3, 2, 16, 20]; expected frames (H, W) or (n, H, W)."
    )


def test_files_that_tiled_cannot_look_into_are_told(tmp_path, taken, logged):
    run, used = taken(documents("AD_EIGER_MX", tmp_path / "a"))
    (live,) = denoised_streams(run)
    assert (reasons := list(live.stream["denoise_reason"].read()))
    assert all("'AD_EIGER_MX'" in reason and "HDF5 plugin" in reason for reason in reasons)
    with pytest.raises(DenoiseError, match="holds no frames in primary"):
        reprocess(run, used)
    told = (
        "det_image is left out. Tiled cannot look into the files of 'det_image', of Resources with"
    )
    assert told in logged()
    assert "could not be handled" not in logged()
    with pytest.raises(DenoiseError, match="'AD_EIGER_MX', and has them as files, not as an array"):
        StoredStream(run["primary"]).frames("det_image")


@pytest.mark.thorough
def test_the_dataset_of_a_layout_is_read_where_the_resource_names_it(tmp_path, taken):
    elsewhere = "/entry/instrument/detector/data"
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[elsewhere] = FRAMES
    run, used = taken(documents("AD_HDF5", tmp_path / "a.h5", dataset=elsewhere))
    reprocess(run, used)
    for found in denoised_streams(run):
        rates = found.stream["det_image"].read()
        np.testing.assert_array_equal(rates[:, 0] * np.float32(EXPOSURE_S), FRAMES)
