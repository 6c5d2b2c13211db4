# What is looked up in `__init__.py` when it is asked for, told to type checkers and editors.
from bluesky_denoise.audit import audit_frame as audit_frame
from bluesky_denoise.backup import RawBackup as RawBackup
from bluesky_denoise.best_effort import DenoisedBestEffortCallback as DenoisedBestEffortCallback
from bluesky_denoise.catalog import DenoisedStream as DenoisedStream
from bluesky_denoise.catalog import denoised_streams as denoised_streams
from bluesky_denoise.denoised_detector import DenoisedDetector as DenoisedDetector
from bluesky_denoise.denoiser import Denoiser as Denoiser
from bluesky_denoise.devices import DenoisedSignals as DenoisedSignals
from bluesky_denoise.errors import DenoiseError as DenoiseError
from bluesky_denoise.frames import Denoised as Denoised
from bluesky_denoise.frames import Frame as Frame
from bluesky_denoise.from_bus import bus_denoiser as bus_denoiser
from bluesky_denoise.gaps import GapFiller as GapFiller
from bluesky_denoise.in_turn import InTurn as InTurn
from bluesky_denoise.nexus import export_nexus as export_nexus
from bluesky_denoise.process import DenoiseProcess as DenoiseProcess
from bluesky_denoise.raw_runs import raw_writer as raw_writer
from bluesky_denoise.reprocessing import reprocess as reprocess
from bluesky_denoise.roi import ROI as ROI
from bluesky_denoise.roi import measure_roi as measure_roi
from bluesky_denoise.roi import measure_rois as measure_rois
from bluesky_denoise.router import DenoiseRouter as DenoiseRouter
from bluesky_denoise.server import embedded_tiled as embedded_tiled
from bluesky_denoise.settings import DenoiseSettings as DenoiseSettings
from bluesky_denoise.tiled_sink import TiledSink as TiledSink
from bluesky_denoise.tiled_sink import replay_backup as replay_backup
from bluesky_denoise.viewer import FrameViewer as FrameViewer

__version__: str
