"""The last exchange, along bright lines."""

import numpy as np
import pytest
import torch

from benchmarks.judged import network_alone, without_and_with
from bluesky_denoise.denoiser import Denoiser
from bluesky_denoise.models import along_lines, kernels
from bluesky_denoise.models.along_lines import share_along_lines

rng = np.random.default_rng


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser.load(device="cpu")


def _image(array):
    return torch.from_numpy(np.asarray(array, np.float32))[None, None]


def _stripes(shape, angle, period=9.0):
    rows, cols = np.indices(shape)
    return 25 + 20 * np.cos(2 * np.pi * (cols * np.cos(angle) + rows * np.sin(angle)) / period)


def _circles(shape, angle):
    """Rings that walks go round, and back to where their rows came from."""
    rows, cols = np.indices(shape) - np.array([22.3, 40.6])[:, None, None]
    return 25 + 20 * np.cos(2 * np.pi * np.hypot(rows, cols) / 9)


def _frames(shape, seed=0, scene=_stripes):
    """Validity, an estimate that keeps much noise, its variance, and what may move."""
    draw = rng(seed)
    counts = draw.poisson(scene(shape, 0.5))
    valid = np.ones(shape)
    valid[:, 12:14] = valid[20, 30] = 0
    estimate = (0.7 * counts + 0.3 * scene(shape, 0.5)) * valid
    variance = draw.uniform(0, 0.6, shape) * (estimate + 1e-5) * valid
    return [_image(x) for x in (valid, estimate, variance, draw.uniform(0.2, 1, shape))]


def _ramp(x, ends):
    return np.clip((x - ends[0]) / (ends[1] - ends[0]), 0, 1)


def _walked(cell, step):
    """Yield a cell, the way to it in whole pixels, and how straight it is, for each window."""
    at, by, straight = np.ones(2, np.float32), step[:, *cell], 1.0

    def inside(place):
        return (place >= 0).all() and (place < step.shape[1:]).all()

    for window in along_lines.WINDOWS:
        half = np.array(cell) + np.floor((at + np.float32(window / 2) * by) / 2).astype(int)
        if not inside(half):
            return
        cosine = by @ step[:, *half]
        straight *= _ramp(abs(cosine), along_lines.TURN)
        by = step[:, *half] * np.sign(cosine)
        places = at + by * np.arange(1, window + 1, dtype=np.float32)[:, None]
        beside = (places - 1) - np.round(places - 1)
        place = places[np.argmin(abs(beside[:, 0] * by[1] - beside[:, 1] * by[0]))]
        moved = np.round(place - 1).astype(int)
        passed = np.array(cell) + moved // 2
        if inside(passed):
            yield tuple(passed), moved, straight
        at = places[-1]


def _by_hand(valid, estimate, variance, free):
    """The formula of the module, for one frame, walk by walk."""
    stable = estimate + 0.375
    noise = kernels.down(variance / stable)
    down, right, clear = along_lines._directions(2 * torch.sqrt(stable), noise, valid)
    noise, down, right, clear = (x[0, 0].numpy() for x in (noise, down, right, clear))
    estimate, variance, free = (x[0, 0].double().numpy() for x in (estimate, variance, free))
    noisy = _ramp(variance / np.maximum(estimate, 1), along_lines.NOISY) * free
    noisy *= np.clip(estimate - 1, 0, 1)
    root, step = np.pad(2 * np.sqrt(estimate + 0.375), (1, 2)), np.stack([down, right])
    # The last pixels of a cell that is passed may lie a pixel outside.
    estimate, variance, most = (np.pad(x, (0, 1)) for x in (estimate, variance, noisy))
    pairs = []
    for cell in zip(*np.nonzero(noisy.reshape(24, 2, 28, 2).any((1, 3)) * clear), strict=True):
        for passed, moved, straight in _walked(cell, step):
            left = straight * clear[cell] * clear[passed]
            for corner in np.ndindex(2, 2):
                start = tuple(2 * np.array(cell) + corner)
                place = tuple(np.array(start) + moved)
                mine, others = (root[r : r + 3, c : c + 3] for r, c in (start, place))
                apart = ((mine - others) ** 2).mean() / (noise[cell] + noise[passed])
                far = min(max(apart - 1, 0) / along_lines.BEYOND_NOISE, 1)
                pairs.append((start, place, left * (1 - far**2) ** 2))
    friends = np.ones_like(estimate)
    for one, other, w in pairs:
        friends[one] += w
        friends[other] += w
    out, kept, squares = estimate.copy(), np.ones_like(estimate), np.zeros_like(estimate)
    for one, other, w in pairs:
        share = w * min((most / friends)[one], (most / friends)[other])
        for here, there in ((one, other), (other, one)):
            out[here] += share * (estimate[there] - estimate[here])
            kept[here] -= share
            squares[here] += share**2
    least, most = along_lines.SHARED_NOISE
    shared = least + (most - least) * np.minimum(variance / np.maximum(estimate, 1e-3), 1)
    left = variance * (1 - (1 - shared) * (1 - kept**2 - squares))
    return out[:-1, :-1], left[:-1, :-1]


@pytest.mark.parametrize("scene", [_stripes, _circles])
def test_it_is_the_formula(monkeypatch, scene):
    monkeypatch.setattr(along_lines, "AT_ONCE", 500)  # walks are followed in parts
    frames = _frames((48, 56), scene=scene)
    frames[1][..., 20:30] *= 0.05  # of so few counts pixels take part in part, or not at all
    found, variance = share_along_lines(*frames)
    expected, expected_variance = _by_hand(*frames)
    assert abs(expected - frames[1][0, 0].numpy()).max() > 3
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(variance[0, 0], expected_variance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 4, 1.3, np.pi / 2, 2.0, 3.0])
def test_a_step_goes_along_the_line(angle):
    image, valid = _image(_stripes((32, 40), angle)), torch.ones(1, 1, 32, 40)
    down, right, clear = along_lines._directions(image, 0.1 * kernels.down(valid), valid)
    inner = (..., slice(3, -3), slice(3, -3))
    assert clear[inner].min() > 0.9
    # The slope is (sin, cos) of the angle in rows and columns; a line has two directions.
    across = (np.sin(angle) * down + np.cos(angle) * right)[inner]
    assert across.abs().max() < 0.1
    torch.testing.assert_close(down**2 + right**2, torch.ones_like(down))


@pytest.mark.parametrize("angle", [0.0, 0.2, 0.7, -1.1])
def test_of_each_window_the_place_nearest_to_the_line_is_taken(angle):
    beyond, direction = along_lines.BEYOND_PX, np.array([np.cos(angle), np.sin(angle)])
    width = 2 * beyond + 2  # one cell, and what is around it
    steps = torch.from_numpy(direction).float()[:, None].expand(2, (width // 2) ** 2)
    middle = torch.tensor([beyond // 2 * (width // 2 + 1)])
    moved, passed, straight = along_lines._walk(middle, width, steps)
    rows, cols = np.divmod(moved[:, 0].numpy() + beyond * (width + 1), width) - np.int64(beyond)
    ends = np.cumsum(along_lines.WINDOWS)
    for row, col, window, end in zip(rows, cols, along_lines.WINDOWS, ends, strict=True):
        whole = np.round(direction * np.arange(end - window + 1, end + 1)[:, None])
        off = abs(whole @ [-direction[1], direction[0]])
        assert [row, col] in whole.tolist()
        assert abs(col * direction[0] - row * direction[1]) == pytest.approx(off.min(), abs=1e-6)
    at = (rows // 2 + beyond // 2) * (width // 2) + cols // 2 + beyond // 2
    np.testing.assert_array_equal(passed[:, 0], at)
    assert straight.min() == 1


def test_a_walk_that_turns_at_each_step_stays_in_what_is_around_the_image():
    width = 2 * along_lines.BEYOND_PX + 2
    angle = torch.from_numpy(rng(6).uniform(0, np.pi, (width // 2) ** 2)).float()
    steps = torch.stack([angle.cos(), angle.sin()])
    cell = torch.tensor([along_lines.BEYOND_PX // 2 * (width // 2 + 1)])
    moved, passed, straight = along_lines._walk(cell, width, steps)
    assert abs(moved).max() < (along_lines.BEYOND_PX - 1) * width
    assert passed.min() >= 0
    assert straight[-1] == 0


def test_there_is_no_line_where_slopes_are_noise_have_all_directions_or_are_masked():
    valid = torch.ones(1, 1, 32, 32)
    noise = kernels.down(valid)

    def clear(image, valid=valid, noise=noise):
        return along_lines._directions(_image(image), noise, valid)[2]

    assert clear(_stripes((32, 32), 0.3), noise=1e4 * noise).max() == 0
    rows, cols = np.indices((32, 32)) - 15.5
    round_spot = 60 * np.exp(-(rows**2 + cols**2) / 8)
    assert clear(round_spot, noise=0.01 * noise)[..., 7:9, 7:9].max() == 0
    # Of what a mask hides no slope is made.
    valid[..., 14:18] = 0
    assert clear(100 * valid[0, 0].numpy(), valid).max() == 0


def test_sums_and_signs_are_kept_and_what_is_flat_stays_flat():
    valid, estimate, variance, free = _frames((64, 96), 1)
    found, squares = share_along_lines(valid, estimate, variance, free)
    assert found.double().sum() == pytest.approx(float(estimate.double().sum()), rel=1e-6)
    assert found.min() >= 0
    assert (found[valid == 0] == 0).all()
    assert (squares <= variance).all()
    assert squares.sum() < 0.9 * variance.sum()
    flat, _ = share_along_lines(valid, 7 * valid, variance, free)
    torch.testing.assert_close(flat, 7 * valid)


def test_a_pixel_that_may_not_move_photons_stays():
    valid, estimate, variance, free = _frames((48, 48), 2)
    free[..., 10:20, :] = 0
    found, squares = share_along_lines(valid, estimate, variance, free)
    assert torch.equal(found[..., 10:20, :], estimate[..., 10:20, :])
    assert torch.equal(squares[..., 10:20, :], variance[..., 10:20, :])
    assert not torch.equal(found, estimate)


def test_where_no_noise_is_left_or_no_line_is_the_frame_is_left_alone():
    valid, estimate, variance, free = _frames((48, 48), 3)
    found, squares = share_along_lines(valid, estimate, 0 * variance, free)
    assert found is estimate
    assert squares.max() == 0
    flat = 30 * valid
    found, squares = share_along_lines(valid, flat, flat, free)
    assert found is flat
    assert squares is flat


def test_only_what_is_near_noisy_pixels_is_looked_at():
    valid, estimate, _, _ = _frames((96, 112), 4)
    noisy = torch.zeros_like(valid)
    noisy[..., 30:51, 40:61] = 0.5 * (estimate[..., 30:51, 40:61] > 2)
    variance = 0.6 * noisy * estimate  # so much that they take part in full
    found = share_along_lines(valid, estimate, variance, 0.5 * valid)
    expected = along_lines._shared(valid, estimate, variance, noisy)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found[0], estimate)


def test_frames_of_a_stack_do_not_know_of_each_other():
    first, second = _frames((64, 64), 4), _frames((64, 64), 5)
    both = share_along_lines(*(torch.cat(pair) for pair in zip(first, second, strict=True)))
    torch.testing.assert_close(both[0][1:], share_along_lines(*second)[0])
    torch.testing.assert_close(both[1][:1], share_along_lines(*first)[1])


def _lines(shape=(160, 160), top=200.0, beside=5.0):
    rows, cols = np.indices(shape)
    across = (cols * np.cos(0.5) + rows * np.sin(0.5)) % 30 - 15
    return beside + top * np.exp(-0.5 * (across / 1.5) ** 2)


def _rings():
    rows, cols = np.indices((160, 160))
    return 5 + 200 * np.exp(-0.5 * ((np.hypot(rows - 80, cols - 80) % 30 - 15) / 1.5) ** 2)


@pytest.mark.parametrize("scene", [_lines, _rings])
def test_lines_lose_noise_that_they_keep_otherwise(denoiser, scene):
    truth = scene()
    counts, line = rng(0).poisson(truth), truth > 100
    better = denoiser.denoise(counts, 1.0)
    with network_alone():
        plain = denoiser.denoise(counts, 1.0)
    before, after = (((d.rate - truth) ** 2 / truth)[line].mean() for d in (plain, better))
    assert before > 0.6
    assert after < 0.3
    assert better.rate.sum(dtype=float) == pytest.approx(counts.sum(), rel=1e-6)
    # The peaks of the lines are not cut: what is taken away is noise.
    assert better.rate[line].mean() / truth[line].mean() == pytest.approx(1, abs=0.015)
    held = (abs(better.rate - truth) <= better.sigma)[line].mean()
    assert 0.55 < held < 0.9
    assert better.sigma[line].mean() < 0.7 * plain.sigma[line].mean()


def test_what_is_unlike_along_a_line_is_not_averaged(denoiser):
    rows, cols = np.indices((160, 160)) - 80
    textured = 1 + 0.8 * np.cos(16 * np.arctan2(rows, cols))
    truth = 5 + (_rings() - 5) * textured
    counts, line = rng(0).poisson(truth), _rings() > 100
    before, after = (
        np.polyfit(truth[line], rate[line], 1)[0] for rate in without_and_with(denoiser, counts)
    )
    assert before == pytest.approx(1, abs=0.02)
    assert after == pytest.approx(1, abs=0.02)


def test_round_peaks_stay_where_they_are(denoiser):
    rows, cols = np.indices((160, 160))
    truth, centres = np.full((160, 160), 10.0), np.arange(20, 160, 30)
    for row in centres:
        for col in centres:
            truth += 60 * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 32)
    before, after = without_and_with(denoiser, rng(3).poisson(truth))
    moved = (after - before)[5:155, 5:155].reshape(5, 30, 5, 30).sum((0, 2))
    from_centre = np.arange(30) - 15
    photons = (truth[5:155, 5:155] - 10).sum()
    assert abs(after - before).sum() > 0.02 * photons
    assert abs((moved * from_centre[:, None]).sum()) < 0.005 * photons  # pixels
    assert abs((moved * from_centre).sum()) < 0.005 * photons


def test_spots_keep_their_counts(denoiser):
    truth = np.full((96, 96), 2.0)
    truth[20:80:15, 20:80:15] += 60
    truth[21:80:15, 20:80:15] += 30
    counts = rng(1).poisson(truth)
    plain, better = without_and_with(denoiser, counts)
    np.testing.assert_allclose(better[20:80:15, 20:80:15], plain[20:80:15, 20:80:15], rtol=1e-3)


def test_tiles_that_memory_asks_for_do_not_show(denoiser):
    counts = rng(2).poisson(_lines((1100, 64)))
    whole = denoiser.denoise(counts, 1.0)
    cut = Denoiser.load(device="cpu")
    cut._most_pixels = 900 * 64
    found = cut.denoise(counts, 1.0)
    np.testing.assert_allclose(found.rate, whole.rate, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.sigma, whole.sigma, rtol=1e-2, atol=1e-3)
