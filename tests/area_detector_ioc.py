"""An EPICS IOC: areaDetector with its HDF5 and TIFF plugins, and a motor.

Run as ``python FILE PREFIX [--no-swmr] [--dataset=PATH]``; the path is where a layout XML would put
the frames. It speaks Channel Access, by caproto, and does what devices of ophyd and ophyd-async
wait for: a busy record is done when its frames are written, a motor when it is there. A PV that
nobody has thought of is a number, or text if it is called so.
"""

import asyncio
import sys
from pathlib import Path

import h5py
import numpy as np
import tifffile
from caproto import ChannelDouble, ChannelEnum, ChannelInteger, ChannelString
from caproto.asyncio.server import run
from ioc_channels import PVs, Text, acting, choice

from bluesky_denoise.simulation import diffraction_scene

CAMERA, HDF, TIFF = "cam1:", "HDF1:", "TIFF1:"
MOTOR = "m1"
CLOCK_S = 1e-3
"""Exposures are whole multiples of it."""
YES = ("No", "Yes")
ON = ("Disable", "Enable")
TYPES = ("Int8", "UInt8", "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64")
TYPES += ("Float32", "Float64")
COLOURS = ("Mono", "Bayer", "RGB1", "RGB2", "RGB3", "YUV444", "YUV422", "YUV421")
STATES = ("Idle", "Acquire", "Readout", "Correct", "Saving", "Aborting", "Error", "Waiting")
STATES += ("Initializing", "Disconnected", "Aborted")
COMPRESSIONS = ("None", "N-bit", "szip", "zlib", "Blosc", "BSLZ4", "LZ4", "JPEG")
TRIGGERS = ("Internal", "Ext. Enable", "Ext. Trigger", "Mult. Trigger", "Alignment")
VERSIONS = ("ADCoreVersion", "DriverVersion", "SDKVersion", "FirmwareVersion")
NAMES = ("Manufacturer", "Model", "SerialNumber")


class Beamline:
    """A camera that looks at a simulated scene, the files that are written, and a motor."""

    def __init__(self, prefix, *, swmr=True, dataset="/entry/data/data"):
        self.scene = diffraction_scene()
        self.rng = np.random.default_rng(0)
        self.pvs = PVs(prefix)
        self.plugins = [HDF5Plugin(self, HDF, swmr, dataset), TIFFPlugin(self, TIFF)]
        self.add(CAMERA, self._camera(*reversed(self.scene.rate.shape)))
        self.add("", self._motor())

    def add(self, group, channels):
        self.pvs.update({f"{self.pvs.prefix}{group}{key}": pv for key, pv in channels.items()})

    def __getitem__(self, name):
        return self.pvs[self.pvs.prefix + name]

    def number(self, name):
        value = self[name].value
        return self[name].enum_strings.index(value) if isinstance(value, str) else value

    async def count(self, name):
        await self[name].write(int(self.number(name)) + 1)

    def both(self):
        """Return what a camera and a plugin have."""
        versions = {f"{name}_RBV": ChannelString(value="3.14") for name in VERSIONS}
        names = {f"{name}_RBV": ChannelString(value="simulated") for name in NAMES}
        return versions | names | {"ColorMode": choice(COLOURS), "DataType": choice(TYPES, 5)}

    def _camera(self, width, height):
        return self.both() | {
            "Acquire": acting(ChannelEnum, self.acquire)(enum_strings=["Done", "Acquire"], value=0),
            "AcquireTime": acting(ChannelDouble, self.round)(value=1.0, precision=3),
            "AcquirePeriod": ChannelDouble(value=1.0, precision=3),
            "NumImages": ChannelInteger(value=1),
            "ImageMode": choice(("Single", "Multiple", "Continuous")),
            "TriggerMode": choice(TRIGGERS),
            "Armed": choice(("Unarmed", "Armed"), 1),
            "WaitForPlugins": choice(YES),
            "ArrayCallbacks": choice(ON, 1),
            "ArrayCounter": ChannelInteger(value=0),
            "DetectorState_RBV": choice(STATES),
            "PortName_RBV": ChannelString(value="CAM"),
            "SizeX": ChannelInteger(value=width),
            "SizeY": ChannelInteger(value=height),
            # Of the last frame, whatever region has been set since.
            "ArraySizeX_RBV": ChannelInteger(value=width),
            "ArraySizeY_RBV": ChannelInteger(value=height),
        }

    def _motor(self):
        fields = dict.fromkeys(("RBV", "OFF", "VELO", "ACCL", "HLM", "LLM"), 0.0)
        flags = dict.fromkeys(("MOVN", "STOP", "HLS", "LLS", "HOMF", "HOMR", "FOFF", "SET"), 0)
        target = acting(ChannelDouble, self.move)(value=0.0, precision=3, units="deg")
        return {
            MOTOR: target,
            f"{MOTOR}.VAL": target,
            f"{MOTOR}.EGU": ChannelString(value="deg"),
            f"{MOTOR}.DMOV": ChannelInteger(value=1),
            f"{MOTOR}.DIR": choice(("Pos", "Neg")),
            **{
                f"{MOTOR}.{name}": ChannelDouble(value=value, precision=3)
                for name, value in fields.items()
            },
            **{f"{MOTOR}.{name}": ChannelInteger(value=value) for name, value in flags.items()},
        }

    async def move(self):
        await self[f"{MOTOR}.DMOV"].write(0)
        await asyncio.sleep(0.05)
        await self[f"{MOTOR}.RBV"].write(self.number(MOTOR))
        await self[f"{MOTOR}.DMOV"].write(1)

    async def round(self):
        exposure_s = self.number(f"{CAMERA}AcquireTime")
        await self[f"{CAMERA}AcquireTime"].write(
            max(CLOCK_S, round(exposure_s / CLOCK_S) * CLOCK_S)
        )

    async def acquire(self):
        if not self.number(f"{CAMERA}Acquire"):
            return
        for _ in range(max(1, int(self.number(f"{CAMERA}NumImages")))):
            exposure_s = self.number(f"{CAMERA}AcquireTime")
            await asyncio.sleep(exposure_s)
            frame = self.frame(exposure_s)
            for axis, size in zip("YX", frame.shape[:2], strict=True):
                await self[f"{CAMERA}ArraySize{axis}_RBV"].write(size)
            await self.count(f"{CAMERA}ArrayCounter")
            for plugin in self.plugins:
                await plugin.take(frame)
        await self[f"{CAMERA}Acquire"].write(0)

    def frame(self, exposure_s):
        """Return what the camera sees, (H, W), or (H, W, 3) in colours."""
        dtype = np.dtype(TYPES[self.number(f"{CAMERA}DataType")].lower())
        frame = self.rng.poisson(self.scene.rate * exposure_s).astype(dtype)
        frame[self.scene.mask] = np.iinfo(dtype).max if dtype.kind == "u" else 0
        height, width = (int(self.number(f"{CAMERA}Size{axis}")) for axis in "YX")
        frame = frame[:height, :width]
        colours = COLOURS[self.number(f"{CAMERA}ColorMode")] == "RGB1"
        return np.repeat(frame[..., None], 3, axis=-1) if colours else frame


class FilePlugin:
    """What writes frames into files."""

    ending = kind = ""

    def __init__(self, beamline, group):
        self.beamline, self.group = beamline, group
        beamline.add(group, self.channels())

    def channels(self):
        numbers = {"NumCapture": 0, "NumCaptured_RBV": 0, "FileNumber": 0, "ArrayCounter": 0}
        # It has seen no frame yet, so it does not know how large they are.
        numbers |= {"NDimensions_RBV": 2, "ArraySize0_RBV": 0, "ArraySize1_RBV": 0}
        numbers |= {"ArraySize2_RBV": 0, "CreateDirectory": 0}
        choices = {"EnableCallbacks": ON, "WriteStatus": ("Ok", "Bad"), "FilePathExists_RBV": YES}
        choices |= dict.fromkeys(
            ("BlockingCallbacks", "AutoIncrement", "AutoSave", "LazyOpen"), YES
        )
        choices |= {"FileWriteMode": ("Single", "Capture", "Stream")}
        return self.beamline.both() | {
            **{name: ChannelInteger(value=value) for name, value in numbers.items()},
            **{name: choice(of) for name, of in choices.items()},
            "Capture": acting(ChannelEnum, self.capture)(enum_strings=["Done", "Capture"], value=0),
            "FilePath": acting(Text, self.look_for_path)(),
            "FileTemplate": Text(f"%s%s_%6.6d.{self.ending}"),
            "FullFileName_RBV": Text(),
            "NDArrayPort": ChannelString(value="CAM"),
            "PortName_RBV": ChannelString(value=self.group.removesuffix("1:")),
            "PluginType_RBV": ChannelString(value=self.kind),
        }

    def __getitem__(self, name):
        return self.beamline[self.group + name]

    def number(self, name):
        return self.beamline.number(self.group + name)

    async def look_for_path(self):
        path = str(self["FilePath"])
        await self["FilePathExists_RBV"].write(int(Path(path).is_dir()))
        if path and not path.endswith("/"):
            await self["FilePath"].write(f"{path}/")

    async def next_name(self):
        """Return the name of the next file."""
        template, number = str(self["FileTemplate"]), int(self.number("FileNumber"))
        parts = (str(self["FilePath"]), str(self["FileName"]), number)
        name = template % parts[: template.count("%")]
        await self["FullFileName_RBV"].write(name)
        await self.beamline.count(f"{self.group}FileNumber")
        return name

    async def capture(self):
        await self["NumCaptured_RBV"].write(0)

    async def take(self, frame):
        if not self.number("EnableCallbacks"):
            return
        for axis, size in enumerate(reversed(frame.shape)):
            await self[f"ArraySize{axis}_RBV"].write(size)
        await self.beamline.count(f"{self.group}ArrayCounter")
        single = not self.number("FileWriteMode") and self.number("AutoSave")
        if single or self.number("Capture"):
            await self.write(frame, single)
            await self.beamline.count(f"{self.group}NumCaptured_RBV")


class TIFFPlugin(FilePlugin):
    """A file for each frame."""

    ending, kind = "tiff", "NDFileTIFF"

    async def write(self, frame, single):
        tifffile.imwrite(await self.next_name(), frame)


class HDF5Plugin(FilePlugin):
    """A file for all frames of a capture; in the mode Single, for each."""

    ending, kind = "h5", "NDFileHDF5"

    def __init__(self, beamline, group, swmr, dataset):
        self.swmr, self.dataset, self.file = swmr, dataset, None
        super().__init__(beamline, group)

    def channels(self):
        height, width = self.beamline.scene.rate.shape
        numbers = {"NumFramesFlush": 0, "NumFramesChunks": 1}
        numbers |= {"NumRowChunks": height, "NumColChunks": width}
        switches = ("ChunkSizeAuto", "PositionMode", "StoreAttr", "StorePerform")
        return super().channels() | {
            **{name: ChannelInteger(value=value) for name, value in numbers.items()},
            **{name: choice(YES) for name in switches},
            "Compression": choice(COMPRESSIONS),
            "SWMRMode": choice(("Off", "On")),
            "SWMRSupported_RBV": choice(("Not Supported", "Supported"), int(self.swmr)),
            "FlushNow": acting(ChannelEnum, self.flush)(enum_strings=["Done", "Flush"], value=0),
        }

    async def capture(self):
        await super().capture()
        if self.file is not None:
            self.file.close()
            self.file = None
        if self.number("Capture"):
            libver = "latest" if self.number("SWMRMode") else None
            self.file = h5py.File(await self.next_name(), "w", libver=libver)
            if not self.number("LazyOpen"):
                self.make_dataset(self.beamline.frame(0))

    def make_dataset(self, frame):
        shape = frame.shape
        self.file.create_dataset(
            self.dataset, (0, *shape), frame.dtype, maxshape=(None, *shape), chunks=(1, *shape)
        )
        if self.number("SWMRMode"):
            self.file.swmr_mode = True

    async def flush(self):
        if self.file is not None and self.file.swmr_mode:
            self.file[self.dataset].flush()
        await self["FlushNow"].write(0)

    async def write(self, frame, single):
        if single:
            with h5py.File(await self.next_name(), "w") as file:
                file[self.dataset] = frame
            return
        if self.dataset not in self.file:
            self.make_dataset(frame)
        frames = self.file[self.dataset]
        frames.resize(len(frames) + 1, 0)
        frames[-1] = frame
        each = self.number("NumFramesFlush")
        if self.file.swmr_mode and each and len(frames) % each == 0:
            frames.flush()


async def ready(library):
    print("ready", flush=True)


if __name__ == "__main__":
    options = {"swmr": "--no-swmr" not in sys.argv}
    for given in sys.argv:
        if given.startswith("--dataset="):
            options["dataset"] = given.partition("=")[2]
    beamline = Beamline(sys.argv[1], **options)
    run(beamline.pvs, interfaces=["127.0.0.1"], startup_hook=ready)
