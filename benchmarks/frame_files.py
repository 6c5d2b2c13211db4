"""How much room frames take, counted and denoised. ``python -m benchmarks.frame_files``."""

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from bluesky_denoise import Denoiser
from bluesky_denoise.errors import FrameValueError
from bluesky_denoise.evaluation.frame_sets import read_frame_set
from bluesky_denoise.runs.frame_store import FrameStore

FOLDER = Path(__file__).parents[1] / "training_data"
FRAMES = 8
TIMES = "time to save over time to denoise"


def main() -> None:
    """Print a line for each series, in bytes a pixel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="HDF5 files of frames")
    folder = parser.parse_args().folder
    denoiser = Denoiser.load("default")
    columns = ("series", "counted, compressed", "denoised, float32", "as saved", TIMES)
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    for path in sorted(folder.rglob("*.h5")):
        try:
            frames = read_frame_set(path)
        except FrameValueError:  # these are no counts
            continue
        counts = np.stack([frames.counts[i] for i in range(min(FRAMES, len(frames.counts)))])
        denoiser.denoise(counts[:1], 1.0, frames.mask)  # the first use is slow
        began = time.perf_counter()
        rates = denoiser.denoise(counts, 1.0, frames.mask).rate
        denoising_s = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as directory:
            raw = _compressed(Path(directory) / "raw.h5", counts)
            saved = Path(directory) / "denoised.h5"
            store = FrameStore(saved, {"frames": rates.shape[1:]}, {})
            began = time.perf_counter()
            for rate in rates:
                store.append("frames", rate[None])
            saving_s = time.perf_counter() - began
            store.close()
            with h5py.File(saved) as file:
                size = file["denoised/frames"].id.get_storage_size()
        print(
            f"| {path.stem} | {raw / counts.size:.2f} | {rates.itemsize:.2f} | "
            f"{size / rates.size:.2f} | {saving_s / denoising_s:.3f} |"
        )


def _compressed(path: Path, counts: np.ndarray) -> int:
    """Write frames as detectors do; return the bytes that they take."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "frames", data=counts, chunks=(1, *counts.shape[1:]), **hdf5plugin.Bitshuffle()
        )
        return dataset.id.get_storage_size()


if __name__ == "__main__":
    main()
