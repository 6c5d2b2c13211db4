"""An agent of bluesky-adaptive gets denoised numbers for what it has suggested."""

from functools import partial

import numpy as np
import pytest
from beamline import denoised_here, detector, events_of
from bluesky_adaptive.plans import optimize
from bluesky_adaptive.protocols import OptimizationProblem
from bluesky_adaptive.scipy import SCP, Objective, RangeDOF, Scipy, normalizers
from bluesky_adaptive.scipy.inverter import InteractiveOptimizer
from live_path import wait_for
from scipy.optimize import dual_annealing

from bluesky_denoise.errors import DenoiseError, SettingsError
from bluesky_denoise.optimize import DenoisedEvaluation, denoised_acquire
from bluesky_denoise.testing import UnitDenoiser

KEYS = "denoised_satellite_intensity", "denoised_satellite_intensity_error"


class Listed:
    """Suggests the points of a list, and keeps what comes of them."""

    def __init__(self, points):
        self.points, self.outcomes = list(points), {}

    def suggest(self, num_points=None):
        taken, self.points = self.points[:num_points], self.points[num_points:]
        return [{"_id": f"at {x}", "motor": x} for x in taken]

    def ingest(self, points):
        self.outcomes |= {point["_id"]: point["outcome"] for point in points}

    def get_best_points(self):
        return []


@pytest.fixture
def det(motor):
    return detector(motor, exposure_s=2.0, width=0.5)


@pytest.fixture
def denoised(RE):
    return denoised_here(RE, UnitDenoiser(), timeout_s=2)


def test_each_suggestion_gets_the_outcome_that_was_measured_there(RE, raw, det, motor, denoised):
    agent = Listed([0.9, -1.0, 0.0, 0.5, -0.5, 1.0])
    evaluation = DenoisedEvaluation(denoised, {"outcome": KEYS[0]})
    RE.subscribe(evaluation.note)
    problem = OptimizationProblem(agent, [motor], [det], evaluation, denoised_acquire(denoised))
    RE(optimize(problem, iterations=2, n_points=3))
    measured = {f"at {round(e['motor'], 9)}": e[KEYS[0]] for e in events_of(raw, "signals")}
    assert len(measured) == 6
    assert agent.outcomes == measured
    assert max(agent.outcomes, key=agent.outcomes.get) == "at 0.0"
    # They were measured in another order than they were suggested.
    assert [e["motor"] for e in events_of(raw, "signals")][:3] != [0.9, -1.0, 0.0]
    hints = [start["hints"] for start in raw.by_name["start"] if "blop_suggestions" in start]
    assert hints[0]["dimensions"] == [(["motor"], "signals")]


def test_an_outcome_can_have_its_error(RE, raw, det, motor, denoised):
    agent = Listed([0.0])
    evaluation = DenoisedEvaluation(denoised, {"outcome": KEYS})
    RE.subscribe(evaluation.note)
    problem = OptimizationProblem(agent, [motor], [det], evaluation, denoised_acquire(denoised))
    RE(optimize(problem))
    (event,) = events_of(raw, "signals")
    assert agent.outcomes == {"at 0.0": tuple(event[key] for key in KEYS)}


@pytest.fixture
def patient(monkeypatch):
    """Let an agent wait for its optimiser: after 10 ms it would suggest nothing."""
    suggest = InteractiveOptimizer.suggest

    def suggest_when_ready(self, num_points=None):
        wait_for(lambda: self._active or not self._t.is_alive(), what="a suggestion")
        return suggest(self, num_points)

    monkeypatch.setattr(InteractiveOptimizer, "suggest", suggest_when_ready)


@pytest.mark.usefixtures("patient")
def test_an_agent_of_bluesky_adaptive_goes_where_the_peak_is(RE, det, motor, denoised, monkeypatch):
    # The agent has no argument for it. SciPy before 1.15 knows no "rng".
    annealing = partial(dual_annealing, seed=np.random.default_rng(0))
    monkeypatch.setattr(normalizers, "dual_annealing", annealing)
    evaluation = DenoisedEvaluation(denoised, {"intensity": KEYS[0]})
    RE.subscribe(evaluation.note)
    motor.set(0.6).wait()
    agent = Scipy.Agent(
        [det],
        [RangeDOF(actuator=motor, bounds=(-0.4, 0.9), parameter_type="float")],
        [Objective(name="intensity", minimize=False)],
        evaluation,
        denoised_acquire(denoised),
        optimizer=SCP.DUAL_ANNEALING,
    )
    positions = []
    RE.subscribe(lambda name, doc: positions.append(doc["data"]), "event")
    RE(agent.optimize(iterations=12))
    tried = [data for data in positions if KEYS[0] in data]
    assert len(tried) == 12
    assert abs(max(tried, key=lambda data: data[KEYS[0]])["motor"]) < 0.4


def test_what_cannot_be_an_outcome_is_refused(denoised):
    with pytest.raises(SettingsError, match=r"Outcome 'y' is to be 'nothing', which denoised does"):
        DenoisedEvaluation(denoised, {"y": "nothing"})
    evaluation = DenoisedEvaluation(denoised, {"y": KEYS[0]})
    with pytest.raises(DenoiseError, match=r"Run 01234567 has not been seen\. Subscribe"):
        evaluation("0123456789", [{"_id": 0}])


def test_a_run_that_was_acquired_without_denoised_numbers_is_named(RE, det, motor, denoised):
    evaluation = DenoisedEvaluation(denoised, {"outcome": KEYS[0]})
    RE.subscribe(evaluation.note)
    problem = OptimizationProblem(Listed([0.0]), [motor], [det], evaluation)
    with pytest.raises(DenoiseError, match=r"has 0 denoised points for the 1 suggestions"):
        RE(optimize(problem))
