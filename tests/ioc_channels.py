"""Channels of an EPICS IOC in caproto that do what the records of areaDetector do."""

from caproto import ChannelChar, ChannelDouble, ChannelEnum

__all__ = ["PVs", "Text", "acting", "choice"]


def choice(of, value=0):
    """Return a channel that is one of some names."""
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
