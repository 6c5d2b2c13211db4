"""Raw runs whose results did not come, or are not in Tiled, and why: told once, by `wait`."""

from collections.abc import Iterable

from bluesky_denoise.errors import DenoiseFailed, TiledUnavailable
from bluesky_denoise.settings import DenoiseSettings

__all__ = ["Untold"]


class Untold:
    """What has gone wrong with runs since it was last told; for one thread at a time.

    Parameters
    ----------
    settings :
        Say where results wait that are not in Tiled.
    """

    def __init__(self, settings: DenoiseSettings) -> None:
        self._settings = settings
        self._lost: dict[str, str] = {}
        self._refused: dict[str, str] = {}

    def lose(self, raw_run_uids: Iterable[str], why: str) -> None:
        """Note runs that are not denoised, or not to the end."""
        self._lost |= dict.fromkeys(raw_run_uids, why)

    def written(self, raw_run_uid: str, refusal: str) -> None:
        """Note a run that is denoised, and why Tiled does not have it; '' if it does."""
        if refusal:
            self._refused[raw_run_uid] = refusal
        else:
            self._refused.pop(raw_run_uid, None)  # it is there after all

    def tell(self) -> None:
        """Raise what has not been told, what is lost before what Tiled refuses.

        Raises
        ------
        DenoiseFailed
            If runs were lost; those that Tiled refuses are told by the next call.
        TiledUnavailable
            If Tiled does not have some.
        """
        if self._lost:
            runs, why = _named(self._lost)
            self._lost = {}
            raise DenoiseFailed(
                f"Not denoised, or not to the end, as {why}: {runs}. Raw data is not "
                "concerned; `bluesky-denoise catch-up` denoises these runs."
            )
        if self._refused:
            runs, why = _named(self._refused)
            self._refused = {}
            raise TiledUnavailable(
                f"Denoised, but not in Tiled: {runs}. {why}. The results are kept in "
                f"{self._settings.backup_path}; `bluesky-denoise replay-backup` brings them in."
            )


def _named(runs: dict[str, str]) -> tuple[str, str]:
    """Return the beginnings of their uids, and why the first one is among them."""
    return ", ".join(uid[:8] for uid in runs), next(iter(runs.values()))
