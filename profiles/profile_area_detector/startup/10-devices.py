"""Motors, detectors and the denoiser that `beamline.yaml` names."""
# ruff: noqa: F821 (startup files share one namespace)

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.settings import DenoiseSettings


def area_detector(name, prefix, write_path, read_path, **_):
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
            Writer, "HDF1:", write_path_template=write_path, read_path_template=read_path
        )

    detector = Detector(prefix, name=name)
    detector.read_attrs = ["hdf5"]
    detector.cam.configuration_attrs = ["acquire_time", "num_images"]
    detector.configuration_attrs = ["cam"]
    return detector


def async_detector(name, prefix, kind, write_path, **_):
    """Make an areaDetector with its HDF5 plugin, through ophyd-async."""
    from importlib import import_module

    from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
    from ophyd_async.epics.adcore import ADWriterFactory

    module = import_module(f"ophyd_async.epics.{kind}")
    detector_class = {"adsimdetector": "SimDetector", "adpilatus": "PilatusDetector"}[kind]
    provider = StaticPathProvider(UUIDFilenameProvider(), Path(write_path))
    with init_devices():
        writer = ADWriterFactory.hdf(provider)
        detector = getattr(module, detector_class)(prefix, writer, name=name)
    return detector


def motor_record(name, prefix):
    """Make an EPICS motor."""
    from ophyd import EpicsMotor

    return EpicsMotor(prefix, name=name, labels={"motors"})


MAKERS = {"ophyd": area_detector, "ophyd-async": async_detector}
for _name, _prefix in BEAMLINE["motors"].items():
    globals()[_name] = motor_record(_name, _prefix)
for _name, _options in BEAMLINE["detectors"].items():
    _options = dict(_options)
    globals()[_name] = MAKERS[_options.pop("layer")](_name, **_options)

denoise = denoised = None
if BEAMLINE["detectors"]:
    _settings = dict(BEAMLINE["denoise"])
    if BEAMLINE["tiled_uri"]:
        _settings["tiled_uri"] = BEAMLINE["tiled_uri"]
    denoise = DenoiseProcess(DenoiseSettings(**_settings))
    _session.callback(denoise.close)
    RE.subscribe(denoise)
    if denoise.settings.rois or denoise.settings.data_keys:
        denoised = DenoisedSignals(denoise)
