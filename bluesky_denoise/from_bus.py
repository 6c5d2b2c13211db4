"""All that denoises what a message bus brings, put together and closed in turn."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from bluesky_denoise.as_settings import SettingsLike, as_settings
from bluesky_denoise.gaps import GapFiller
from bluesky_denoise.in_tiled.layouts import connect
from bluesky_denoise.router import DenoiseRouter
from bluesky_denoise.tiled_sink import TiledSink

__all__ = ["bus_denoiser"]

_SINK_CLOSES_S = 30.0


@contextmanager
def bus_denoiser(
    settings: SettingsLike, publish: Callable[[str, Mapping[str, Any]], Any] | None = None
) -> Iterator[GapFiller]:
    """Give what takes the documents of a message bus, denoises them, and writes the results.

    Results go into the Tiled server that the settings name, if they name one. What the bus has
    lost of the raw runs is read from there, too. On leaving, runs that have ended are completed,
    those that are open end as failed, and what is left is written.

    Parameters
    ----------
    settings :
        What to denoise, and where results go; or a YAML file of it.
    publish :
        Is called with the documents of derived runs as well, to send them over a bus.

    Yields
    ------
    GapFiller
        Call it with the name and the document of whatever comes.

    Raises
    ------
    SettingsError, ModelNotFound, CheckpointError
        If it could not work.

    Examples
    --------
    >>> with bus_denoiser("settings.yaml", Publisher("localhost:5577", prefix=b"denoised")) as take:
    ...     dispatcher.subscribe(take)
    ...     dispatcher.start()
    """
    settings = as_settings(settings)
    router = DenoiseRouter(settings)
    if publish:
        router.subscribe(publish)
    with ExitStack() as in_turn:  # the last one first; each of them whatever another raises
        open_catalog = None
        if settings.tiled_uri:
            of_raw_runs = settings.model_copy(update={"tiled_layout": "stream"})
            open_catalog = partial(connect, of_raw_runs)  # when it is needed: it may be down now
            sink = TiledSink(settings)
            in_turn.callback(sink.close, _SINK_CLOSES_S)
            router.subscribe(sink)
        in_turn.callback(router.close)
        filler = GapFiller(router, open_catalog)
        in_turn.callback(filler.close)
        yield filler
