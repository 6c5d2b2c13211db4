import numpy as np

from bluesky_denoise.evaluation.results import Evaluation
from bluesky_denoise.evaluation.run import time_on
from bluesky_denoise.evaluation.speed import speed_scores


def quiet(items, what):
    return items


def test_bm3d_and_the_networks_of_the_paper_take_several_times_longer():
    counts = np.random.default_rng(0).poisson(3, (96, 96))
    scores = {s.method: s for s in speed_scores("default", counts, quiet, rounds=1)}
    assert set(scores) == {
        "VDSR, eager float32",
        "IRUNet, eager float32",
        "non-local means",
        "Anscombe + BM3D",
    }
    # 6 and more on an idle machine: what a call costs in any case counts on so small a frame.
    assert scores["Anscombe + BM3D"].times_longer > 2 < scores["VDSR, eager float32"].times_longer
    assert {s.frame for s in scores.values()} == {"96 x 96"}


def test_a_process_that_cannot_time_says_why_and_the_evaluation_goes_on():
    result = Evaluation("nothing", {})
    time_on(result, "nothing", np.ones((32, 32)), quiet)
    assert not result.speed
    assert "There are no weights 'nothing'" in result.left_out[0]
