import math

import pytest

from bluesky_denoise.errors import ExposureNotFound
from bluesky_denoise.sources.exposure import Exposure, find_exposure


def number(units=None):
    return {"dtype": "number", "shape": [], "source": "sim"} | ({"units": units} if units else {})


def image(**more):
    return {"dtype": "array", "shape": [16, 20], "source": "sim", **more}


def descriptor(event=(), configuration=None, owner="det", key="det_image"):
    """Return the parts of a descriptor in which an exposure may be."""
    data_keys = {key: image(), **dict(event)}
    return {
        "name": "primary",
        "data_keys": data_keys,
        "object_keys": {owner: [k for k in data_keys if k.startswith(owner)]},
        "configuration": {
            device: {
                "data": {k: v for k, (v, _) in values.items()},
                "data_keys": {k: number(units) for k, (_, units) in values.items()},
            }
            for device, values in (configuration or {}).items()
        },
    }


@pytest.mark.parametrize(
    "key",
    [
        "det_cam_acquire_time",
        "det-driver-acquire_time",
        "det_exposure_time",
        "det_exposure_s",
        "det_exposure",
        "det_count_time",
    ],
)
def test_the_exposure_is_found_in_the_configuration_under_the_usual_names(key):
    found = find_exposure(descriptor(configuration={"det": {key: (0.25, None)}}), "det_image")
    assert found == Exposure(key, 0.25)
    assert found.of_event({}) == 0.25


def test_the_period_between_frames_is_no_exposure():
    with pytest.raises(ExposureNotFound):
        find_exposure(
            descriptor(configuration={"det": {"det_cam_acquire_period": (1.0, "s")}}), "det_image"
        )


@pytest.mark.parametrize(
    ("units", "seconds"),
    [
        ("s", 20.0),
        ("Seconds", 20.0),
        ("ms", 0.02),
        ("msec", 0.02),
        ("us", 2e-5),
        ("\u00b5s", 2e-5),
        ("\u03bcs", 2e-5),
        ("ns", 2e-8),
        ("min", 1200.0),
    ],
)
def test_units_are_turned_into_seconds(units, seconds):
    values = {"det": {"det_cam_acquire_time": (20.0, units)}}
    assert find_exposure(descriptor(configuration=values), "det_image").value_s == pytest.approx(
        seconds
    )
    in_event = find_exposure(descriptor({"det_exposure": number(units)}), "det_image")
    assert in_event.of_event({"det_exposure": 20.0}) == pytest.approx(seconds)


def test_an_event_tells_before_the_configuration_and_that_before_the_settings():
    configuration = {"det": {"det_cam_acquire_time": (0.5, "s")}}
    both = descriptor({"det_exposure_time": number()}, configuration)
    assert find_exposure(both, "det_image", default_s=9.0).key == "det_exposure_time"
    configured = descriptor(configuration=configuration)
    assert find_exposure(configured, "det_image", default_s=9.0).value_s == 0.5
    assert find_exposure(descriptor(), "det_image", default_s=9.0) == Exposure("settings", 9.0)


def test_keys_that_the_settings_name_are_looked_at_first():
    found = find_exposure(
        descriptor({"timer": number()}, {"det": {"det_cam_acquire_time": (0.5, "s")}}),
        "det_image",
        extra_keys=("timer",),
    )
    assert found.key == "timer"
    assert found.of_event({"timer": 3}) == 3.0


def test_a_key_that_the_settings_name_is_found_in_the_configuration_of_another_device():
    found = find_exposure(
        descriptor(configuration={"shutter": {"shutter_open_for": (2.0, "s")}}),
        "det_image",
        extra_keys=("shutter_open_for",),
    )
    assert found.value_s == 2.0


@pytest.mark.parametrize("in_events", [True, False])
def test_of_the_keys_that_the_settings_name_each_detector_has_its_own(in_events):
    timers = {"a_timer": number(), "b_timer": number()}
    configuration = {
        name: {"data": {f"{name}_timer": seconds}, "data_keys": {}}
        for name, seconds in (("a", 0.1), ("b", 5.0))
    }
    doc = {
        "data_keys": {"a_image": image(), "b_image": image(), **(timers if in_events else {})},
        "object_keys": {name: [f"{name}_image", f"{name}_timer"] for name in "ab"},
        "configuration": {} if in_events else configuration,
    }
    for extra_keys in (("a_timer", "b_timer"), ("b_timer", "a_timer")):
        assert find_exposure(doc, "a_image", extra_keys=extra_keys).key == "a_timer"
        assert find_exposure(doc, "b_image", extra_keys=extra_keys).key == "b_timer"


@pytest.mark.parametrize("in_events", [True, False])
def test_a_key_that_is_named_for_one_detector_is_not_taken_for_one_that_has_its_own(in_events):
    own = "a_cam_acquire_time"
    doc = {
        "data_keys": {"a_image": image(), "b_image": image(), "b_timer": number()},
        "object_keys": {"a": ["a_image"], "b": ["b_image", "b_timer"]},
        "configuration": {} if in_events else {"a": {"data": {own: 0.1}}},
    }
    if in_events:
        doc["data_keys"][own] = number()
        doc["object_keys"]["a"].append(own)
    assert find_exposure(doc, "b_image", extra_keys=("b_timer",)).key == "b_timer"
    assert find_exposure(doc, "a_image", extra_keys=("b_timer",)).key == own
    doc["configuration"] = {}
    doc["data_keys"].pop(own, None)
    assert find_exposure(doc, "a_image", extra_keys=("b_timer",)).key == "b_timer"
    assert find_exposure(doc, "a_image", extra_keys=("b_timer",), default_s=1.0).value_s == 1.0


def test_the_exposure_of_one_detector_is_not_taken_for_another():
    two = descriptor(configuration={"other": {"other_cam_acquire_time": (0.5, "s")}})
    with pytest.raises(ExposureNotFound):
        find_exposure(two, "det_image")


def test_a_detector_whose_name_begins_with_that_of_another_is_not_taken_for_it():
    ten = descriptor({"det10_exposure": number()}, owner="det1", key="det1_image")
    with pytest.raises(ExposureNotFound):
        find_exposure(ten, "det1_image")


def test_the_owner_is_found_without_object_keys():
    doc = descriptor(configuration={"det": {"det_cam_acquire_time": (0.5, "s")}})
    del doc["object_keys"]
    doc["data_keys"]["det_image"]["object_name"] = "det"
    assert find_exposure(doc, "det_image").value_s == 0.5


@pytest.mark.parametrize("value", [0, -1.0, None, "long", math.nan, math.inf, True])
def test_a_configured_value_that_is_no_time_is_passed_over(value):
    doc = descriptor(configuration={"det": {"det_cam_acquire_time": (value, "s")}})
    assert find_exposure(doc, "det_image", default_s=1.0).key == "settings"
    with pytest.raises(
        ExposureNotFound, match=r"'det_cam_acquire_time' is .*expected a number > 0"
    ):
        find_exposure(doc, "det_image")


@pytest.mark.parametrize("value", [0, -1.0, None, "long", math.nan, math.inf, True])
def test_an_event_whose_exposure_is_no_time_says_so(value):
    found = find_exposure(descriptor({"det_exposure": number()}), "det_image")
    with pytest.raises(ExposureNotFound, match=r"'det_exposure' is .*expected a number > 0"):
        found.of_event({"det_exposure": value})


def test_an_event_without_its_exposure_says_so():
    with pytest.raises(ExposureNotFound, match=r"'det_exposure' is None"):
        Exposure("det_exposure", None).of_event({})


def test_where_there_is_none_the_keys_looked_at_and_those_present_are_named():
    doc = descriptor({"det_total": number()}, {"det": {"det_gain": (3, None)}})
    with pytest.raises(ExposureNotFound) as caught:
        find_exposure(doc, "det_image", extra_keys=("timer",))
    message = str(caught.value)
    assert "No exposure time for 'det_image' in stream 'primary'" in message
    assert "looked for timer, det*acquire_time, det*exposure_time" in message
    assert "(det_gain, det_total)" in message
    assert "Set `exposure_s`, or name the key in `exposure_keys`." in message
    assert isinstance(caught.value, LookupError)


def test_a_configuration_may_be_empty():
    doc = {**descriptor({"det_total": number()}), "configuration": {"det": {}}}
    with pytest.raises(ExposureNotFound, match=r"configuration keys \(det_total\)\."):
        find_exposure(doc, "det_image")


def test_an_exposure_of_a_detector_whose_name_begins_the_same_is_left_alone():
    two = descriptor({"det_2_image": image(), "det_2_exposure_time": number()})
    two["object_keys"] = {"det": ["det_image"], "det_2": ["det_2_image", "det_2_exposure_time"]}
    configuration = descriptor(configuration={"det": {"det_cam_acquire_time": (0.5, "s")}})
    two["configuration"] = configuration["configuration"]
    assert find_exposure(two, "det_image") == Exposure("det_cam_acquire_time", 0.5)
    assert find_exposure(two, "det_2_image") == Exposure("det_2_exposure_time", None)


def test_a_key_whose_unit_is_none_of_time_is_not_used_but_named():
    in_event = {"det_exposure": number("counts")}
    configured = {"det": {"det_cam_acquire_time": (0.5, "mm")}}
    with pytest.raises(ExposureNotFound) as refusal:
        find_exposure(descriptor(in_event, configured), "det_image")
    for told in ("det_exposure in 'counts'", "det_cam_acquire_time in 'mm'", "expected s, ms"):
        assert told in str(refusal.value)
    found = find_exposure(descriptor(in_event, configured), "det_image", default_s=2.0)
    assert found == Exposure("settings", 2.0)


def test_an_exposure_in_the_configuration_stands_whatever_else_is_scanned():
    key = "det_cam_acquire_time"
    doc = descriptor(configuration={"det": {key: (0.5, None)}})
    assert find_exposure(doc, "det_image", motors=["motor"]) == Exposure(key, 0.5)
    with pytest.raises(ExposureNotFound, match=f"'det_image' .* is scanned .'{key}'"):
        find_exposure(doc, "det_image", motors=["motor", key])


STATION = {
    "data_keys": {"station_saxs_image": image(), "station_waxs_image": image()},
    "object_keys": {"station": ["station_saxs_image", "station_waxs_image"]},
    "name": "primary",
}


def _configured(**values):
    return STATION | {"configuration": {"station": {"data": values, "data_keys": {}}}}


def test_each_detector_of_a_device_has_the_exposure_that_is_named_like_it():
    one = _configured(station_saxs_cam_acquire_time=0.1, station_waxs_cam_acquire_time=5.0)
    assert find_exposure(one, "station_saxs_image").value_s == 0.1
    assert find_exposure(one, "station_waxs_image").value_s == 5.0
    keys = {key: number() for key in one["configuration"]["station"]["data"]}
    in_events = STATION | {
        "data_keys": STATION["data_keys"] | keys,
        "object_keys": {"station": [*STATION["data_keys"], *keys]},
    }
    assert find_exposure(in_events, "station_waxs_image").key == "station_waxs_cam_acquire_time"


def test_an_exposure_that_may_be_of_another_detector_is_refused():
    one = _configured(station_t1_acquire_time=0.1, station_t2_acquire_time=5.0)
    with pytest.raises(ExposureNotFound, match=r"t1_acquire_time' or 'station_t2_acquire_time'"):
        find_exposure(one, "station_saxs_image")
    named = find_exposure(one, "station_saxs_image", extra_keys=("station_t2_acquire_time",))
    assert named.value_s == 5.0
    in_events = STATION | {"data_keys": STATION["data_keys"] | {"station_open_for": number()}}
    named = find_exposure(in_events, "station_saxs_image", extra_keys=("station_open_for",))
    assert named.key == "station_open_for"
    same = _configured(station_t1_acquire_time=0.1, station_t2_acquire_time=0.1)
    assert find_exposure(same, "station_saxs_image").value_s == 0.1


def test_exposures_that_are_summed_into_an_image_are_counted():
    time, times = "det_cam_acquire_time", "det_cam_num_exposures"
    both = {"det": {time: (0.1, "s"), times: (10, None)}}
    assert find_exposure(descriptor(configuration=both), "det_image").of_event({}) == 1.0
    in_event = descriptor(event={time: number("ms")}, configuration={"det": {times: (10, None)}})
    assert find_exposure(in_event, "det_image").of_event({time: 100}) == pytest.approx(1.0)
    all_in_event = descriptor(event={time: number("s"), times: number()})
    found = find_exposure(all_in_event, "det_image")
    assert found.of_event({time: 0.1, times: 10}) == pytest.approx(1.0)
    with pytest.raises(ExposureNotFound, match="number of exposures 'det_cam_num_exposures' is 0"):
        found.of_event({time: 0.1, times: 0})
    number_in_event = descriptor(event={times: number()}, configuration={"det": {time: (0.1, "s")}})
    found = find_exposure(number_in_event, "det_image")
    assert found.of_event({times: 10}) == pytest.approx(1.0)
    other = {"det": {"det_exposure_time": (0.1, "s"), times: (10, None)}}
    assert find_exposure(descriptor(configuration=other), "det_image").of_event({}) == 0.1


def test_a_key_in_the_configuration_of_another_device_goes_before_the_settings():
    doc = descriptor(configuration={"timer": {"gate": (0.2, "s")}})
    assert find_exposure(doc, "det_image", extra_keys=("gate",), default_s=9.0).value_s == 0.2


def test_a_device_with_one_image_may_have_several_exposures():
    keys = {"det_a_acquire_time": (1.0, "s"), "det_b_acquire_time": (2.0, "s")}
    found = find_exposure(descriptor(configuration={"det": keys}), "det_image")
    assert found == Exposure("det_a_acquire_time", 1.0)
