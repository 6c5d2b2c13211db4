"""An EPICS IOC: areaDetector with its HDF5 plugin, and a motor.

Run as ``python FILE PREFIX [--no-swmr]``. It speaks Channel Access, by caproto, and does what
devices of ophyd and ophyd-async wait for: a busy record is done when its frames are written, a
motor when it is there. A PV that nobody has thought of is a number, or text if it is called so.
"""

import asyncio
import sys
from pathlib import Path

import h5py
import numpy as np
from caproto import ChannelChar, ChannelDouble, ChannelEnum, ChannelInteger, ChannelString
from caproto.asyncio.server import run

from bluesky_denoise.simulation import diffraction_scene

CAMERA, HDF = "cam1:", "HDF1:"
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


def _choice(of, value=0):
    return ChannelEnum(value=value, enum_strings=list(of))


class Text(ChannelChar):
    """A waveform of characters."""

    def __init__(self, value=""):
        super().__init__(value=value, max_length=512, string_encoding="utf-8")

    async def write_from_dbr(self, *args, **kwargs):
        if not bytes(args[0]).strip(b"\0"):  # of which caproto makes a number
            return await self.write("")
        return await super().write_from_dbr(*args, **kwargs)

    def __str__(self):
        value = self.value if isinstance(self.value, str) else bytes(self.value).decode()
        return value.partition("\0")[0]


def acting(kind, act):
    """Return a kind of channel that calls a coroutine once it has been written to."""

    class Acting(kind):
        async def write_from_dbr(self, *args, **kwargs):
            done = await super().write_from_dbr(*args, **kwargs)
            await act()
            return done

    return Acting


class PVs(dict):
    """The channels by name; ``X`` and ``X_RBV`` are one unless both are there."""

    def __init__(self, prefix):
        super().__init__()
        self.prefix = prefix

    def __contains__(self, name):
        return name.startswith(self.prefix)

    def __missing__(self, name):
        if name not in self:
            raise KeyError(name)
        other = name.removesuffix("_RBV") if name.endswith("_RBV") else f"{name}_RBV"
        self[name] = self[other] if dict.__contains__(self, other) else _made_up(name)
        return self[name]


def _made_up(name):
    last = name.rpartition(":")[2]
    if any(word in last for word in ("Name", "Path", "File", "Template", "Message")):
        return Text()
    return ChannelDouble(value=0.0)


class Beamline:
    """A camera that looks at a simulated scene, the file that it writes, and a motor."""

    def __init__(self, prefix, swmr):
        self.swmr = swmr
        self.scene = diffraction_scene()
        self.rng = np.random.default_rng(0)
        self.file = None
        self.pvs = PVs(prefix)
        height, width = self.scene.rate.shape
        self._add(CAMERA, self._camera(width, height))
        self._add(HDF, self._plugin(width, height))
        self._add("", self._motor())

    def _add(self, group, channels):
        self.pvs.update({f"{self.pvs.prefix}{group}{key}": pv for key, pv in channels.items()})

    def __getitem__(self, name):
        return self.pvs[self.pvs.prefix + name]

    def number(self, name):
        value = self[name].value
        return self[name].enum_strings.index(value) if isinstance(value, str) else value

    async def count(self, name):
        await self[name].write(int(self.number(name)) + 1)

    def _both(self):
        versions = {f"{name}_RBV": ChannelString(value="3.14") for name in VERSIONS}
        names = {f"{name}_RBV": ChannelString(value="simulated") for name in NAMES}
        return versions | names | {"ColorMode": _choice(COLOURS), "DataType": _choice(TYPES, 5)}

    def _camera(self, width, height):
        return self._both() | {
            "Acquire": acting(ChannelEnum, self.acquire)(enum_strings=["Done", "Acquire"], value=0),
            "AcquireTime": acting(ChannelDouble, self.round)(value=1.0, precision=3),
            "AcquirePeriod": ChannelDouble(value=1.0, precision=3),
            "NumImages": ChannelInteger(value=1),
            "ImageMode": _choice(("Single", "Multiple", "Continuous")),
            "TriggerMode": _choice(TRIGGERS),
            "Armed": _choice(("Unarmed", "Armed"), 1),
            "WaitForPlugins": _choice(YES),
            "ArrayCallbacks": _choice(ON, 1),
            "ArrayCounter": ChannelInteger(value=0),
            "DetectorState_RBV": _choice(STATES),
            "PortName_RBV": ChannelString(value="CAM"),
            "ArraySizeX_RBV": ChannelInteger(value=width),
            "ArraySizeY_RBV": ChannelInteger(value=height),
        }

    def _plugin(self, width, height):
        numbers = {"NumCapture": 0, "NumCaptured_RBV": 0, "FileNumber": 0, "ArrayCounter": 0}
        numbers |= {
            "NumFramesFlush": 0,
            "NumFramesChunks": 1,
            "NumRowChunks": height,
            "NumColChunks": width,
        }
        # It has seen no frame yet, so it does not know how large they are.
        numbers |= {"NDimensions_RBV": 2, "ArraySize0_RBV": 0, "ArraySize1_RBV": 0}
        numbers |= {"ArraySize2_RBV": 0, "CreateDirectory": 0}
        choices = {"EnableCallbacks": ON, "Compression": COMPRESSIONS, "WriteStatus": ("Ok", "Bad")}
        switches = ("BlockingCallbacks", "AutoIncrement", "AutoSave", "ChunkSizeAuto", "LazyOpen")
        choices |= dict.fromkeys((*switches, "PositionMode", "StoreAttr", "StorePerform"), YES)
        choices |= {"SWMRMode": ("Off", "On")}
        choices |= {"FileWriteMode": ("Single", "Capture", "Stream"), "FilePathExists_RBV": YES}
        return self._both() | {
            **{name: ChannelInteger(value=value) for name, value in numbers.items()},
            **{name: _choice(of) for name, of in choices.items()},
            "SWMRSupported_RBV": _choice(("Not Supported", "Supported"), int(self.swmr)),
            "FlushNow": acting(ChannelEnum, self.flush)(enum_strings=["Done", "Flush"], value=0),
            "Capture": acting(ChannelEnum, self.capture)(enum_strings=["Done", "Capture"], value=0),
            "FilePath": acting(Text, self.look_for_path)(),
            "FileTemplate": Text("%s%s_%6.6d.h5"),
            "FullFileName_RBV": Text(),
            "NDArrayPort": ChannelString(value="CAM"),
            "PortName_RBV": ChannelString(value="HDF"),
            "PluginType_RBV": ChannelString(value="NDFileHDF5"),
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
            f"{MOTOR}.DIR": _choice(("Pos", "Neg")),
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

    async def look_for_path(self):
        path = str(self[f"{HDF}FilePath"])
        await self[f"{HDF}FilePathExists_RBV"].write(int(Path(path).is_dir()))
        if path and not path.endswith("/"):
            await self[f"{HDF}FilePath"].write(f"{path}/")

    async def capture(self):
        if self.file is not None:
            self.file.close()
            self.file = None
        if not self.number(f"{HDF}Capture"):
            return
        template, number = str(self[f"{HDF}FileTemplate"]), int(self.number(f"{HDF}FileNumber"))
        parts = (str(self[f"{HDF}FilePath"]), str(self[f"{HDF}FileName"]), number)
        name = template % parts[: template.count("%")]
        shape, swmr = self.scene.rate.shape, self.number(f"{HDF}SWMRMode")
        self.file = h5py.File(name, "w", libver="latest" if swmr else None)
        self.file.create_dataset(
            "/entry/data/data", (0, *shape), np.uint32, maxshape=(None, *shape), chunks=(1, *shape)
        )
        if swmr:
            self.file.swmr_mode = True
        await self[f"{HDF}FullFileName_RBV"].write(name)
        await self[f"{HDF}NumCaptured_RBV"].write(0)
        await self.count(f"{HDF}FileNumber")

    async def flush(self):
        if self.file is not None and self.file.swmr_mode:
            self.file["/entry/data/data"].flush()
        await self[f"{HDF}FlushNow"].write(0)

    async def acquire(self):
        if not self.number(f"{CAMERA}Acquire"):
            return
        for _ in range(max(1, int(self.number(f"{CAMERA}NumImages")))):
            exposure_s = self.number(f"{CAMERA}AcquireTime")
            await asyncio.sleep(exposure_s)
            frame = self.rng.poisson(self.scene.rate * exposure_s).astype(np.uint32)
            frame[self.scene.mask] = np.iinfo(np.uint32).max
            await self.count(f"{CAMERA}ArrayCounter")
            if self.number(f"{HDF}EnableCallbacks"):
                await self.write(frame)
        await self[f"{CAMERA}Acquire"].write(0)

    async def write(self, frame):
        for axis, size in enumerate(reversed(frame.shape)):
            await self[f"{HDF}ArraySize{axis}_RBV"].write(size)
        await self.count(f"{HDF}ArrayCounter")
        if self.file is not None:
            frames = self.file["/entry/data/data"]
            frames.resize(len(frames) + 1, 0)
            frames[-1] = frame
            each = self.number(f"{HDF}NumFramesFlush")
            if self.file.swmr_mode and each and len(frames) % each == 0:
                frames.flush()
            await self[f"{HDF}NumCaptured_RBV"].write(len(frames))


async def ready(library):
    print("ready", flush=True)


if __name__ == "__main__":
    beamline = Beamline(sys.argv[1], "--no-swmr" not in sys.argv)
    run(beamline.pvs, interfaces=["127.0.0.1"], startup_hook=ready)
