import subprocess
import sys

import numpy as np
import pytest
import torch

from bluesky_denoise.audit import audit_frame
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.errors import (
    FrameShapeError,
    FrameValueError,
    MaskError,
    ModelNotFound,
    SettingsError,
)
from bluesky_denoise.roi import ROI, measure_roi


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser.load(device="cpu", threads=1)


@pytest.fixture
def counts():
    rng = np.random.default_rng(3)
    level = 0.5 + 20 * np.exp(-((np.arange(75) - 30) ** 2) / 50)
    return rng.poisson(np.broadcast_to(level, (2, 52, 75))).astype(np.uint32)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, bluesky_denoise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_loaded_denoiser_says_what_it_is(denoiser):
    assert denoiser.name == "default"
    assert denoiser.device == "cpu"
    assert denoiser.weights_sha256 == denoiser.card["sha256"]
    assert len(denoiser.weights_sha256) == 64


def test_total_counts_are_kept_with_a_mask(denoiser, counts):
    mask = np.zeros((52, 75), bool)
    mask[20:27] = True
    rate = denoiser.denoise(counts, 0.5, mask).rate
    assert np.isnan(rate[:, mask]).all()
    kept = rate[:, ~mask].astype(np.float64)
    assert kept.min() >= 0
    # float32 sums.
    np.testing.assert_allclose(
        0.5 * kept.sum(1), counts[:, ~mask].sum(1, dtype=np.float64), rtol=1e-5
    )


def test_the_noise_falls_tenfold_on_a_smooth_scene(denoiser):
    rng = np.random.default_rng(0)
    level = 2 + np.cos(np.linspace(0, 3, 128))[:, None] * np.ones(160)
    n = rng.poisson(level)
    error = np.mean((denoiser.denoise(n, 1.0).rate - level) ** 2)
    assert error < 0.1 * np.mean((n - level) ** 2)


def test_exposure_only_divides(denoiser, counts):
    once = denoiser.denoise(counts, 1.0).rate
    np.testing.assert_allclose(denoiser.denoise(counts, 0.02).rate, once / 0.02, rtol=1e-6)
    each = denoiser.denoise(counts, np.array([2.0, 0.1])).rate
    np.testing.assert_allclose(each[0], once[0] / 2, rtol=1e-6)
    np.testing.assert_allclose(each[1], once[1] / 0.1, rtol=1e-6)


def test_a_frame_is_denoised_alike_alone_and_in_a_stack(denoiser, counts):
    stack = denoiser.denoise(counts, 1.0).rate
    alone = denoiser.denoise(counts[1], 1.0).rate
    assert alone.shape == counts[1].shape
    # Convolutions of other batch sizes sum in another order.
    np.testing.assert_allclose(alone, stack[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", ["bool", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
)
def test_every_dtype_gives_the_same_rate(denoiser, dtype):
    counts = np.zeros((32, 32), dtype)
    counts[::3, ::5] = 1
    rate = denoiser.denoise(counts, 1.0).rate
    assert rate.dtype == np.float32
    np.testing.assert_array_equal(rate, denoiser.denoise(counts.astype("f4"), 1.0).rate)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 37), (3, 2, 1), (17, 31), (2, 33, 16)])
def test_any_size_is_taken(denoiser, shape):
    rate = denoiser.denoise(np.full(shape, 3), 1.5).rate
    assert rate.shape == shape
    # A flat frame stays flat, up to its borders.
    np.testing.assert_allclose(rate, 2.0, rtol=1e-5)


def test_tiles_join_without_a_seam(denoiser, monkeypatch):
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:64, :1400]
    # From 0.003 to 30 counts: the sparser, the farther pixels look.
    level = 30 / (1 + ((rows - 30) ** 2 + (cols - 500) ** 2) / 100)
    counts = rng.poisson(level)
    counts[10, 655] = 100_000
    mask = np.zeros(counts.shape, bool)
    mask[:, 700:710] = True
    whole = denoiser.denoise(counts, 1.0, mask).rate
    monkeypatch.setattr(denoiser, "_most_pixels", 64 * 900)
    assert len(list(denoiser._tiles(64, 1400))) == 11
    tiled = denoiser.denoise(counts, 1.0, mask).rate
    # Rounding only: the field covers all that a pixel depends on.
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-6)


def test_a_stack_is_denoised_as_frame_by_frame(denoiser):
    counts = np.random.default_rng(0).poisson(2.0, (6, 195, 487))
    rate = denoiser.denoise(counts, 1.0).rate
    for frame, found in zip(counts, rate, strict=True):
        # Rounding only.
        np.testing.assert_allclose(found, denoiser.denoise(frame, 1.0).rate, rtol=1e-4)


def test_tiles_cover_every_pixel_once(denoiser, monkeypatch):
    monkeypatch.setattr(denoiser, "_most_pixels", 64**2)
    seen = np.zeros((150, 333), int)
    for outer, inner, core in denoiser._tiles(150, 333):
        seen[core] += 1
        assert seen[outer][inner].shape == seen[core].shape
        assert outer[0].start % 16 == outer[1].start % 16 == 0
    assert (seen == 1).all()


def test_out_of_memory_halves_the_work_and_goes_on(denoiser, monkeypatch, counts, caplog):
    expected = denoiser.denoise(counts, 1.0).rate
    monkeypatch.setattr(denoiser, "_most_pixels", 2 * 52 * 75)
    run, sizes = denoiser._run, []

    def crowded(frames, valid, seconds):
        sizes.append(len(frames))
        if len(frames) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(frames, valid, seconds)

    monkeypatch.setattr(denoiser, "_run", crowded)
    rate = denoiser.denoise(counts, 1.0).rate
    assert sizes == [2, 1, 1]
    assert "Out of memory on cpu: going on with 3900 pixels" in caplog.text
    np.testing.assert_allclose(rate, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most_pixels", [7_000_000, 52 * 75, 2000])
def test_each_frame_has_its_exposure_in_batches_and_in_tiles(
    denoiser, monkeypatch, counts, most_pixels
):
    one = denoiser.denoise(counts, 1.0)
    monkeypatch.setattr(denoiser, "_most_pixels", most_pixels)
    found = denoiser.denoise(counts, [0.5, 4.0])
    seconds = np.array([0.5, 4.0])[:, None, None]
    np.testing.assert_allclose(found.rate, one.rate / seconds, rtol=1e-4)
    np.testing.assert_allclose(found.sigma, one.sigma / seconds, rtol=1e-3)


def test_each_frame_has_its_exposure_when_memory_runs_out(denoiser, monkeypatch, counts):
    one = denoiser.denoise(counts, 1.0)
    monkeypatch.setattr(denoiser, "_most_pixels", 2 * 52 * 75)
    run, shapes = denoiser._run, []

    def crowded(frames, valid, seconds):
        shapes.append(frames.shape)
        if len(shapes) <= 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(frames, valid, seconds)

    monkeypatch.setattr(denoiser, "_run", crowded)
    found = denoiser.denoise(counts, [0.5, 4.0])
    assert [shape[0] for shape in shapes] == [2, 1, 1]
    seconds = np.array([0.5, 4.0])[:, None, None]
    np.testing.assert_allclose(found.rate, one.rate / seconds, rtol=1e-4)


def test_memory_that_never_suffices_is_an_error(denoiser, monkeypatch, counts):
    def full(frames, valid, seconds):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    monkeypatch.setattr(denoiser, "_most_pixels", 2 * 52 * 75)
    monkeypatch.setattr(denoiser, "_run", full)
    with pytest.raises(MemoryError, match=r"no memory to denoise frames of shape \(52, 75\)"):
        denoiser.denoise(counts, 1.0)


def test_pieces_do_not_become_so_small_that_overlaps_are_all_there_is(denoiser, monkeypatch):
    pieces = []

    def full(frames, valid, seconds):
        pieces.append(frames.shape[1:])
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    monkeypatch.setattr(denoiser, "_run", full)
    counts = np.zeros((1100, 1200), np.uint16)
    counts[5, 5] = 1
    with pytest.raises(MemoryError, match=r"frames of shape \(1100, 1200\), even by single tiles"):
        denoiser.denoise(counts, 1.0)
    assert denoiser._most_pixels == (256 + 2 * 384) ** 2
    assert pieces[0] == (1100, 1200)
    assert max(pieces[-1]) <= 256 + 2 * 384
    assert len(list(denoiser._tiles(1100, 1200))) == 25


def test_other_errors_of_torch_are_not_hidden(denoiser, monkeypatch, counts):
    def broken(frames, valid, seconds):
        raise RuntimeError("an illegal instruction")

    monkeypatch.setattr(denoiser, "_run", broken)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        denoiser.denoise(counts, 1.0)


def test_a_hot_pixel_neither_spreads_nor_grows(denoiser, counts):
    before = denoiser.denoise(counts[0], 1.0).rate
    hot = counts[0].astype(np.float64)
    hot[10, 60] = 1e6
    after = denoiser.denoise(hot, 1.0).rate
    assert after[10, 60] == pytest.approx(1e6, rel=1e-5)
    near = np.s_[8:13, 58:63]
    others = np.ones((5, 5), bool)
    others[2, 2] = False
    # The scene has 0.5 counts there; the network may share them otherwise, no more.
    assert np.abs(after[near] - before[near])[others].max() < 2


def test_an_empty_frame_gives_zeros(denoiser):
    assert (denoiser.denoise(np.zeros((40, 50), np.uint16), 1.0).rate == 0).all()


def test_an_all_masked_frame_gives_nan(denoiser):
    rate = denoiser.denoise(np.ones((40, 50)), 1.0, np.ones((40, 50), np.uint8)).rate
    assert np.isnan(rate).all()


def test_pixels_that_are_not_finite_count_as_masked(denoiser, counts):
    known = counts.astype(np.float32)
    known[0, 5, 6], known[0, 7, 8] = np.nan, np.inf
    mask = np.zeros((52, 75), bool)
    mask[5, 6] = mask[7, 8] = True
    rate = denoiser.denoise(known, 1.0).rate
    np.testing.assert_array_equal(rate[0], denoiser.denoise(counts, 1.0, mask).rate[0])
    assert np.isfinite(rate[1]).all()


@pytest.mark.parametrize(
    ("dtype", "flag"),
    [
        *[
            ("u2", 2**16 - 1),
            (">u2", 2**16 - 1),
            ("u2", 2**16 - 2),
            ("u8", 2**64 - 1),
            ("f8", 1e39),
            ("f4", 2.0**63),
        ],
        *((dtype, 2**32 - 1) for dtype in ("u4", "i8", "u8", "f4", ">f4", "f8")),
        *((dtype, 2**32 - 2) for dtype in ("u4", "i8", "f8")),
        ("f8", 2**32),  # has been a float32
    ],
)
def test_what_eiger_writes_into_masked_pixels_counts_as_masked(denoiser, counts, dtype, flag):
    flagged = counts.astype(dtype)
    flagged[:, 3, 4] = flag  # as an Eiger does
    rate = denoiser.denoise(flagged, 1.0).rate
    assert np.isnan(rate[:, 3, 4]).all()
    assert np.isnan(rate).sum() == 2


def test_masked_values_do_not_matter(denoiser, counts):
    mask = np.zeros((52, 75), bool)
    mask[0, :9] = True
    flagged = counts.astype(np.int32)
    flagged[:, mask] = -2
    np.testing.assert_array_equal(
        denoiser.denoise(flagged, 1.0, mask).rate, denoiser.denoise(counts, 1.0, mask).rate
    )


def test_an_empty_stack_gives_an_empty_stack(denoiser):
    assert denoiser.denoise(np.zeros((0, 16, 16)), 1.0).rate.shape == (0, 16, 16)


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 16, 16), (0, 16), (2, 16, 0)])
def test_wrong_shapes_are_refused(denoiser, shape):
    with pytest.raises(FrameShapeError, match=r"Frames of shape .* expected \(B, H, W\)"):
        denoiser.denoise(np.zeros(shape), 1.0)


def test_negative_counts_are_refused_with_their_place(denoiser, counts):
    bad = counts.astype(np.int32)
    bad[1, 2, 3] = -7
    with pytest.raises(FrameValueError, match=r"1 pixels are negative, the first is -7 .*1, 2, 3"):
        denoiser.denoise(bad, 1.0)


@pytest.mark.parametrize("dtype", [complex, object, "U3", "datetime64[s]"])
def test_what_are_no_numbers_is_refused(denoiser, dtype):
    with pytest.raises(FrameValueError, match="expected integer or float counts"):
        denoiser.denoise(np.zeros((16, 16), int).astype(dtype), 1.0)


@pytest.mark.parametrize("exposure", [0, -1.0, np.nan, np.inf, [1.0, 0.0], 1e-40, 1e-50, 1e50])
def test_exposures_that_are_not_above_zero_are_refused(denoiser, counts, exposure):
    with pytest.raises(FrameValueError, match="expected seconds, > 0"):
        denoiser.denoise(counts, exposure)


@pytest.mark.parametrize(
    "exposure", ["soon", "1.0", True, np.timedelta64(1, "s"), [[1.0], [1.0, 2.0]]]
)
def test_an_exposure_that_is_no_number_is_refused(denoiser, counts, exposure):
    with pytest.raises(FrameValueError, match="is no number of seconds"):
        denoiser.denoise(counts, exposure)


def test_exposures_must_be_as_many_as_frames(denoiser, counts):
    with pytest.raises(FrameShapeError, match=r"Exposures of shape \(3,\) .* 2 frames"):
        denoiser.denoise(counts, [1.0, 1.0, 1.0])


def test_a_mask_of_another_shape_is_refused(denoiser, counts):
    with pytest.raises(MaskError, match=r"mask has shape \(75, 52\); the frames need \(52, 75\)"):
        denoiser.denoise(counts, 1.0, np.zeros((75, 52), bool))


def test_a_mask_may_be_of_any_numbers_and_of_nothing_else(denoiser, counts):
    mask = np.zeros((52, 75))
    mask[3, 4] = 1.0
    assert np.isnan(denoiser.denoise(counts, 1.0, mask).rate[..., 3, 4]).all()
    with pytest.raises(MaskError, match="dtype <U1; expected bool or numbers"):
        denoiser.denoise(counts, 1.0, np.full((52, 75), "0"))


def test_what_a_masked_array_hides_is_not_taken_for_counts(denoiser, counts):
    hidden = np.ma.masked_greater(counts, 2)
    for use in (
        lambda frame: denoiser.denoise(frame, 1.0),
        lambda frame: audit_frame(frame[0], 1.0, denoiser),
        lambda frame: measure_roi(frame[0], 1.0, ROI((8, 40), (8, 40)), denoiser),
    ):
        with pytest.raises(FrameValueError, match=r"A masked array was given\. Give its `data`"):
            use(hidden)
        use(np.ma.masked_array(counts))  # nothing is hidden


def test_an_unknown_name_is_refused():
    with pytest.raises(ModelNotFound, match="shipped are"):
        Denoiser.load("sharpest")


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(SettingsError, match=f"Device '{device}'"):
        Denoiser.load(device=device)


def test_threads_below_one_are_refused():
    with pytest.raises(SettingsError, match="threads is 0"):
        Denoiser.load(threads=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_with_the_cpu(denoiser, counts):
    rate = Denoiser.load(device="cuda").denoise(counts, 1.0).rate
    # bfloat16 convolutions change the shares by about a percent; photons are kept.
    np.testing.assert_allclose(rate, denoiser.denoise(counts, 1.0).rate, rtol=0.1, atol=0.3)
    np.testing.assert_allclose(rate.sum(), counts.sum(), rtol=1e-5)
