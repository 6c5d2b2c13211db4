"""A detector with weak satellites that follow a motor, and its denoiser."""
# ruff: noqa: F821 (startup files share one namespace)

from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.errors import SettingsError
from bluesky_denoise.process import DenoiseProcess
from bluesky_denoise.roi import ROI
from bluesky_denoise.settings import DenoiseSettings
from bluesky_denoise.simulation import SceneFrames, diffraction_scene
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector, SimulatedMotor

motor = SimulatedMotor(name="motor", labels={"motors"})
try:
    scene = diffraction_scene(**(SETTINGS["scene"] or {}))
except TypeError as error:
    raise SettingsError(f"{SETTINGS_FILE}, scene: {error}.") from None
det = ReplayDetector(
    name="det",
    frames=SceneFrames(
        scene, seed=0, position=lambda: motor.position, width=SETTINGS["rocking_width"]
    ),
    exposure_s=SETTINGS["exposure_s"],
    realtime=SETTINGS["realtime"],
    labels={"detectors"},
)
# A reading is in each event: bluesky writes the configuration once a run.
det.cam.kind = det.cam.acquire_time.kind = "normal"


def _within(centre, reach, size):
    """Return a range of pixels around a place, as far as the frame goes."""
    return max(0, round(centre) - reach), min(size, round(centre) + reach + 1)


# A region around each of the two satellites of the stronger Bragg peak.
rois = {
    f"satellite_{i}": ROI(
        rows=_within(peak.row, 12, scene.rate.shape[0]),
        cols=_within(peak.col, 16, scene.rate.shape[1]),
        background_px=4,
    )
    for i, peak in enumerate(scene.satellites[:2], 1)
}

_defaults = {
    "data_keys": ["det_image"],
    "rois": rois,
    "mask": scene.mask,
    "tiled_uri": TILED_URI,
    "frames_directory": DATA / "denoised_frames",
}
_settings = _defaults | (SETTINGS["denoise"] or {})
denoise = DenoiseProcess(
    DenoiseSettings.from_values(_settings, PROFILE, f"{SETTINGS_FILE}, denoise")
)
_session.callback(denoise.close)
denoise_token = RE.subscribe(denoise)  # to replace it: docs/settings.md
denoised = DenoisedSignals(denoise, name="denoised")
