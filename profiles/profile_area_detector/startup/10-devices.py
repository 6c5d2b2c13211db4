"""Motors, detectors and the denoiser that `beamline.yaml` names."""
# ruff: noqa: F821 (startup files share one namespace)

from contextlib import suppress
from importlib.util import find_spec

from ophyd.signal import EpicsSignalBase

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.settings import DenoiseSettings

TIMEOUT_S = BEAMLINE.get("timeout_s") or 5
if BEAMLINE.get("motors") or BEAMLINE.get("detectors"):
    # ophyd asks for some PVs while it builds a device, and waits for 1 s unless it is told.
    with suppress(RuntimeError):  # this file is run again
        EpicsSignalBase.set_defaults(connection_timeout=TIMEOUT_S)


def area_detector(name, prefix, write_path, read_path=None):
    """Make an areaDetector with its HDF5 plugin, through ophyd."""
    from ophyd import Component, DetectorBase, SingleTrigger
    from ophyd.areadetector.cam import CamBase
    from ophyd.areadetector.filestore_mixins import FileStoreHDF5IterativeWrite
    from ophyd.areadetector.plugins import HDF5Plugin_V34

    class Writer(HDF5Plugin_V34, FileStoreHDF5IterativeWrite):
        def get_frames_per_point(self):
            return self.parent.cam.num_images.get()

    class Detector(SingleTrigger, DetectorBase):
        cam = Component(CamBase, "cam1:")
        hdf5 = Component(
            Writer,
            "HDF1:",
            write_path_template=write_path,
            read_path_template=read_path or write_path,
        )

    detector = Detector(prefix, name=name)
    # A reading is in each event: bluesky writes the configuration once a run.
    detector.read_attrs = ["hdf5", "cam"]
    detector.cam.read_attrs = ["acquire_time"]
    detector.cam.configuration_attrs = ["num_images", "num_exposures"]
    detector.configuration_attrs = ["cam"]
    detector.wait_for_connection(timeout=TIMEOUT_S)
    if detector.hdf5.swmr_supported.get() == "Supported":
        # Each frame can be read while the file grows.
        detector.hdf5.stage_sigs.update(swmr_mode="On", num_frames_flush=1)
        detector.hdf5.stage_sigs.move_to_end("capture")
    else:
        print(
            f"detector {name}: its HDF5 plugin has no SWMR mode, so frames can be read when a run "
            "has ended.\n  Those that wait for too long are left to `bluesky-denoise catch-up`."
        )
    if not any(detector.hdf5.array_size.get()):
        print(
            f"detector {name}: its HDF5 plugin has seen no frame since the IOC was started, so it "
            f"does not know how large they are.\n  `{name}.hdf5.warmup()` takes one."
        )
    return detector


KINDS = {
    "admerlin": "MerlinDetector",
    "adpilatus": "PilatusDetector",
    "adsimdetector": "SimDetector",
}
"""Modules of ophyd_async.epics, and their detectors."""


def async_detector(name, prefix, kind, write_path, read_path=None):
    """Make an areaDetector with its HDF5 plugin, through ophyd-async."""
    from importlib import import_module

    from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
    from ophyd_async.epics.adcore import ADWriterFactory

    if kind not in KINDS:
        raise KeyError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    detector_class = getattr(import_module(f"ophyd_async.epics.{kind}"), KINDS[kind])
    seen_at = f"file://localhost{read_path}" if read_path else None
    provider = StaticPathProvider(UUIDFilenameProvider(), write_path, seen_at)
    with init_devices(timeout=TIMEOUT_S):
        writer = ADWriterFactory.hdf(provider)
        detector = detector_class(prefix, writer, name=name)
    return detector


def motor_record(name, prefix):
    """Make an EPICS motor."""
    from ophyd import EpicsMotor

    motor = EpicsMotor(prefix, name=name, labels={"motors"})
    motor.wait_for_connection(timeout=TIMEOUT_S)
    return motor


MAKERS = {"ophyd": area_detector, "ophyd-async": async_detector}
_OPHYD, _ASYNC = ("epics", "caproto"), ("aioca", "p4p")
_CLIENTS = {motor_record: _OPHYD, area_detector: _OPHYD, async_detector: _ASYNC}
_NO_EPICS = "Install what speaks EPICS: `pip install pyepics` for ophyd, `aioca` for ophyd-async."
_WHY = {
    ImportError: _NO_EPICS,
    KeyError: "beamline.yaml says something that is not known, or lacks a line.",
    TypeError: "beamline.yaml lacks a line, or has one too many.",
}
_MISSING = "Is the prefix right, the IOC running, and EPICS_CA_ADDR_LIST set?"
_OTHER = (
    "The IOC answers, with other choices or types than are expected: is `kind` right, and does its "
    "areaDetector fit the version of ophyd-async?"
)


def to_install(package):
    """Say how to install a package that is not there."""
    if package in ("", *_OPHYD, *_ASYNC):
        return _NO_EPICS
    project = package.replace("_", "-")
    return f"Install it, `pip install {project}`, or the extra `beamline`, which has all of these."


def connected(kind, name, make, /, *args, **options):
    """Make a device that answers; say what to look at if it does not."""
    try:
        return make(name, *args, **options)
    except Exception as error:
        speaks_epics = any(find_spec(client) for client in _CLIENTS[make])
        answers = ": TypeError: " in str(error)  # of a PV, as ophyd-async lists them
        lacking = _OTHER if answers else _MISSING
        why = _WHY.get(type(error), lacking if speaks_epics else _NO_EPICS)
        if isinstance(error, ModuleNotFoundError):
            why = to_install((error.name or "").partition(".")[0])
        first, *more = f"{kind} {name}: {type(error).__name__}: {error}".strip().split("\n")
        if len(more) > 9:  # ophyd-async names each PV
            more[9:] = [f"    ... and {len(more) - 9} lines more"]
        print(first, *more, f"  {why}", sep="\n")
        return None


# A key with nothing behind it is None.
_found = {}
for _name, _prefix in (BEAMLINE.get("motors") or {}).items():
    _found[_name] = connected("motor", _name, motor_record, _prefix)
_detectors = {}
for _name, _options in (BEAMLINE.get("detectors") or {}).items():
    _options = dict(_options or {})
    _layer = _options.pop("layer", "ophyd")
    if _layer not in MAKERS:
        print(f"detector {_name}: layer is {_layer!r}; expected one of {', '.join(MAKERS)}.")
        continue
    _detectors[_name] = connected("detector", _name, MAKERS[_layer], **_options)
_found |= _detectors
globals().update({name: device for name, device in _found.items() if device is not None})

denoise = denoised = None
if any(device is not None for device in _detectors.values()):
    denoise = DenoiseProcess(DenoiseSettings.from_yaml(BEAMLINE_FILE))
    _session.callback(denoise.close)
    denoise_token = RE.subscribe(denoise)  # to replace it: docs/settings.md
    if denoise.settings.rois or denoise.settings.data_keys:
        denoised = DenoisedSignals(denoise)
