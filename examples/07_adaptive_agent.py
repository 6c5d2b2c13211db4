"""Let an agent find where a weak satellite is brightest, from denoised short frames.

python examples/07_adaptive_agent.py
"""

import itertools
import math

import numpy as np
from bluesky import RunEngine
from bluesky_adaptive.plans import optimize
from bluesky_adaptive.protocols import OptimizationProblem
from ophyd.sim import SynAxis

from bluesky_denoise import DenoiseProcess
from bluesky_denoise.devices import DenoisedSignals
from bluesky_denoise.optimize import DenoisedEvaluation, denoised_acquire
from bluesky_denoise.roi import ROI
from bluesky_denoise.simulation import Peak, Scene, SceneFrames, gaussian_peak
from bluesky_denoise.simulation.ophyd_devices import ReplayDetector


class GaussianProcess:
    """Suggests where the intensity may be highest, given its counting errors.

    Any `Optimizer` of bluesky-adaptive does, such as its own for Ax; this one needs numpy.
    """

    def __init__(self, names, low, high, length, rng):
        self.names, self.low, self.high, self.length, self.rng = names, low, high, length, rng
        self.numbers = itertools.count()
        self.asked = {}
        self.x, self.y, self.error = [], [], []

    def suggest(self, num_points=None):
        """Return points where the mean, or what is not known of it, is high."""
        suggestions = []
        for _ in range(num_points or 1):
            x = self.rng.uniform(self.low, self.high, (2000, len(self.names)))
            if len(self.x) >= 6:
                mean, sigma = self.predict(x)
                x = x[np.argsort(mean + 2 * sigma)[::-1]]
            number = next(self.numbers)
            self.asked[number] = x[0]
            suggestions.append({"_id": number, **dict(zip(self.names, x[0], strict=True))})
        return suggestions

    def ingest(self, points):
        """Take what was measured."""
        for point in points:
            if math.isfinite(point["intensity"]):
                self.x.append(self.asked[point["_id"]])
                self.y.append(point["intensity"])
                self.error.append(point["error"])

    def predict(self, x):
        """Return mean and standard deviation at points, (n,) each."""
        seen, y, error = map(np.array, (self.x, self.y, self.error))
        centre, scale = y.mean(), max(y.std(), error.mean())
        covariance = self.kernel(seen, seen) + np.diag((error / scale) ** 2)
        across = self.kernel(x, seen)  # (n, m)
        mean = across @ np.linalg.solve(covariance, (y - centre) / scale)
        spread = 1 - np.einsum("nm,mn->n", across, np.linalg.solve(covariance, across.T))
        return centre + scale * mean, scale * np.sqrt(np.maximum(spread, 0))

    def kernel(self, a, b):
        """Return how much points have to do with each other, (n, m)."""
        distance = ((a[:, None] - b[None]) ** 2).sum(-1)
        return np.exp(-distance / (2 * self.length**2))

    def get_best_points(self):
        """Return the measured point with the highest mean."""
        mean, _ = self.predict(np.array(self.x))
        best = int(mean.argmax())
        parameters = dict(zip(self.names, self.x[best], strict=True))
        return [(best, parameters, {"intensity": float(mean[best])})]


def main(iterations: int = 25) -> None:
    x, y = SynAxis(name="x"), SynAxis(name="y")
    peak = Peak(row=32.0, col=32.0, intensity_cps=400.0, width_row_px=2.0, width_col_px=2.5)
    rate = np.full((64, 64), 0.5) + gaussian_peak((64, 64), peak)
    scene = Scene(rate, np.zeros((64, 64), bool), (peak,), ())
    frames = SceneFrames(
        scene, position=lambda: math.hypot(x.position - 0.4, y.position + 0.3), width=0.5
    )
    det = ReplayDetector(name="det", frames=frames, exposure_s=0.2)
    rois = {"satellite": ROI(rows=(24, 41), cols=(23, 42), background_px=4)}
    RE = RunEngine()
    with DenoiseProcess(data_keys=["det_image"], rois=rois) as denoise:
        RE.subscribe(denoise)
        denoised = DenoisedSignals(denoise, timeout_s=30)
        outcomes = {
            "intensity": "denoised_satellite_intensity",
            "error": "denoised_satellite_intensity_error",
        }
        evaluation = DenoisedEvaluation(denoised, outcomes)
        RE.subscribe(evaluation.note)
        agent = GaussianProcess(["x", "y"], -1.5, 1.5, 0.6, np.random.default_rng(0))
        problem = OptimizationProblem(agent, [x, y], [det], evaluation, denoised_acquire(denoised))
        RE(optimize(problem, iterations=iterations))
    ((_, where, outcome),) = agent.get_best_points()
    print(f"{len(agent.y)} frames of 0.2 s; brightest at x = {where['x']:.2f}, ", end="")
    print(f"y = {where['y']:.2f}, {outcome['intensity']:.0f} counts / s")


if __name__ == "__main__":
    main()
