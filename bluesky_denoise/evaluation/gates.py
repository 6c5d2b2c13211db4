"""What a sceptic asks of a denoiser: each gate with its metric, its limit, and the figure found."""

from bluesky_denoise.evaluation.gate import Gate, Rule
from bluesky_denoise.evaluation.measured_rules import (
    BM3D,
    GAUSSIAN,
    audit_flags,
    awkward_frames,
    flux,
    held_out_deviance,
    line_contrast,
    line_error,
    neighbour_error,
    pixel_coverage,
    speed,
    spots_kept,
    statistical_fit,
)
from bluesky_denoise.evaluation.peak_rules import (
    exposure_ratio,
    false_peaks,
    fitted_exposure_ratio,
    intensity_bias,
    missed_peaks,
    position_bias,
    region_coverage,
    region_error,
    region_pulls,
    region_slope,
    seen_by_eye,
    shape_coverage,
    sum_bias,
    width_bias,
)
from bluesky_denoise.evaluation.results import Evaluation

__all__ = ["GATES", "Gate", "judge"]

GATES: tuple[tuple[str, str, str, Rule], ...] = (
    (
        "statistical fit",
        "Poisson deviance per degree of freedom of held-out counts, half of the photons",
        "1 ± 0.02",
        statistical_fit,
    ),
    ("intensity", "bias of measure_roi, by S/√B from 10", "< 2 %", intensity_bias(True)),
    ("intensity", "bias of measure_roi, by S/√B from 5", "< 5 %", intensity_bias(False)),
    (
        "intensity",
        "bias of sums of the denoised frame (not what is reported), S/√B of 10 to 20",
        "< 2 %",
        sum_bias(True),
    ),
    (
        "intensity",
        "bias of sums of the denoised frame (not what is reported), S/√B of 5",
        "< 5 %",
        sum_bias(False),
    ),
    ("intensity", "total of a frame over that of the raw one", "within 0.5 %", flux),
    (
        "intensity",
        "slope of measure_roi against the truth, without the photons' noise, weak satellites",
        "1 ± 0.02",
        region_slope,
    ),
    ("intensity", "error of measure_roi over that of the raw sum", "≤ 1", region_error),
    (
        "position",
        "bias of the centre of measure_roi, S/√B from 10",
        "≤ 0.1 px",
        position_bias(True),
    ),
    (
        "position",
        "bias of the centre in the denoised frame (not what is reported), S/√B from 10",
        "≤ 0.1 px",
        position_bias(False),
    ),
    (
        "width",
        "FWHM of measure_roi over the true one, each axis, S/√B from 10",
        "1 ± 0.05",
        width_bias(True),
    ),
    (
        "width",
        "FWHM in the denoised frame (not what is reported) over the true one, S/√B from 10",
        "1 ± 0.05",
        width_bias(False),
    ),
    (
        "false peaks",
        "per megapixel of signal-free Poisson frames, at the raw matched filter's threshold",
        "≤ raw",
        false_peaks,
    ),
    ("missed peaks", "strength of 50 % / 90 % recovery, standard deviations", "told", missed_peaks),
    (
        "detection limit",
        "honest exposure ratio of measure_roi, at equal error of intensities",
        "told",
        exposure_ratio,
    ),
    (
        "detection limit",
        "the same of peaks fitted in the denoised frame",
        "told",
        fitted_exposure_ratio,
    ),
    (
        "detection limit",
        "exposure ratio against the raw frame, for shapes seen by their brightest pixel",
        "told",
        seen_by_eye,
    ),
    (
        "calibration",
        "coverage of 68 / 90 / 95 % intervals of pixels, simulated",
        "± 3 points",
        pixel_coverage(False),
    ),
    (
        "calibration",
        "coverage of 68 / 90 / 95 % intervals of pixels, measured",
        "± 3 points",
        pixel_coverage(True),
    ),
    (
        "calibration",
        "coverage of 68 / 90 / 95 % intervals of measure_roi",
        "± 3 points",
        region_coverage,
    ),
    ("calibration", "spread of the pulls of measure_roi", "0.9 to 1.1", region_pulls),
    (
        "calibration",
        "coverage of 68 / 90 / 95 % intervals of centres and widths of measure_roi, S/√B from 10",
        "± 3 points",
        shape_coverage,
    ),
    ("shift", "failures on measured frames that the audit flags", "≥ 95 %", audit_flags),
    ("weak line", "noise-corrected error, below BM3D's", "< BM3D", line_error),
    ("weak line", "contrast over that of the long exposure", "1 ± 0.05", line_contrast),
    ("long exposures", "noise-corrected error, other series", "< BM3D", neighbour_error),
    ("held-out counts", "Poisson deviance below BM3D's", "all series", held_out_deviance(BM3D)),
    (
        "held-out counts",
        "Poisson deviance below the best Gaussian's",
        "all series",
        held_out_deviance(GAUSSIAN),
    ),
    ("Bragg spots", "counts kept, in each class; none lost", "1 ± 0.02", spots_kept),
    ("awkward frames", "right, or refused by a clear error", "all", awkward_frames),
    ("speed", "time of BM3D over ours", "≥ 100", speed("Anscombe + BM3D", 100)),
    ("speed", "time of VDSR, eager float32, over ours", "≥ 20", speed("VDSR", 20)),
)
"""Check, metric, limit, and what answers it."""


def judge(result: Evaluation) -> list[Gate]:
    """Answer every gate that an evaluation tells something about."""
    gates = []
    for check, metric, limit, rule in GATES:
        answer = rule(result)
        if answer is not None:
            gates.append(Gate(check, metric, limit, *answer))
    return gates
