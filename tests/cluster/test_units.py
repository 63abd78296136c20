"""Quantities: what is read, what is refused, and that what is shown reads back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import units
from cluster.errors import ClusterError, UnitError

QUANTITIES = {
    "bandwidth": units.BANDWIDTH,
    "duration": units.DURATION,
    "size": units.SIZE,
    "power": units.POWER,
    "price": units.PRICE,
    "price_per_byte": units.PRICE_PER_BYTE,
    "energy_per_byte": units.ENERGY_PER_BYTE,
}
amounts = st.floats(min_value=1e-9, max_value=1e15)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_bandwidth, "5.85 Mbps", 731250.0),
        (units.parse_bandwidth, "1 Gbps", 125e6),
        (units.parse_bandwidth, "100 kbit/s", 12500.0),
        (units.parse_bandwidth, "8Mb/s", 1e6),
        (units.parse_bandwidth, "2 MB/s", 2e6),
        (units.parse_bandwidth, "2 MiB/s", 2097152.0),
        (units.parse_bandwidth, " 1e3 bps ", 125.0),
        (units.parse_duration, "20 ms", 0.02),
        (units.parse_duration, "35 ms", 0.035),
        (units.parse_duration, "0.5 s", 0.5),
        (units.parse_duration, "100 us", 1e-4),
        (units.parse_duration, "100 \u00b5s", 1e-4),
        (units.parse_duration, "100 \u03bcs", 1e-4),
        (units.parse_duration, "0", 0.0),
        (units.parse_duration, 0, 0.0),
        (units.parse_size, "4 GiB", 4 * 2**30),
        (units.parse_size, "512 MB", 512_000_000),
        (units.parse_size, "64 KiB", 65536),
        (units.parse_size, "9007199254740993 B", 2**53 + 1),
        (units.parse_power, "5 W", 5.0),
        (units.parse_power, "900 mW", 0.9),
        (units.parse_price, "3.6 $/h", 0.001),
        (units.parse_price, "0.001 $/s", 0.001),
        (units.parse_price, "0 $/h", 0.0),
        (units.parse_price_per_byte, "0.09 $/GB", 0.09e-9),
        (units.parse_energy_per_byte, "1 uJ/B", 1e-6),
        (units.parse_energy_per_byte, "100 nJ/bit", 8e-7),
    ],
)
def test_reads_what_people_write(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "'5' has no unit; write for example '5 Mbps'"),
        (5, "'5' has no unit; write for example '5 Mbps'"),
        ("fast", "'fast' is not a bandwidth; write for example '5.85 Mbps'"),
        ("5 mbps", "unknown unit 'mbps'; did you mean 'Mbps' or 'MBps'"),
        ("5 mb/s", "did you mean 'Mb/s' or 'MB/s'"),
        ("5 ms", "'5 ms' is not a bandwidth: unknown unit 'ms'"),
        ("-1 Mbps", "'-1 Mbps' is negative"),
        ("1e400 Mbps", "out of range"),
        ("1e99999999999999999999 Mbps", "out of range"),
        ("nan Mbps", "is not a bandwidth"),
        ("1" * 70 + " Mbps", "is not a bandwidth"),
        ("", "is not a bandwidth"),
        (None, "None is not a bandwidth"),
        (True, "True is not a bandwidth"),
        ([1], r"\[1\] is not a bandwidth"),
    ],
)
def test_refuses_with_what_to_write(text, message):
    with pytest.raises(UnitError, match=message):
        units.parse_bandwidth(text)


def test_an_error_is_a_value_error_and_one_of_ours():
    with pytest.raises(ValueError, match="no unit") as caught:
        units.parse_size(4)
    assert isinstance(caught.value, ClusterError)


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_every_example_and_every_unit_reads(quantity):
    assert quantity.parse(quantity.example) > 0
    for unit, scale in quantity.units.items():
        assert quantity.parse(f"1 {unit}") == pytest.approx(float(scale), rel=1e-15)


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
@given(value=amounts)
def test_shown_values_read_back(quantity, value):
    assert quantity.parse(quantity.format(value)) == pytest.approx(value, rel=5e-4)
    assert quantity.parse(quantity.format(value, digits=17)) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
def test_zero_reads_back(quantity):
    assert quantity.parse(quantity.format(0)) == 0


@given(nbytes=st.integers(min_value=0, max_value=2**50))
def test_sizes_read_back_exactly_with_all_digits(nbytes):
    assert units.parse_size(units.format_bytes(nbytes, digits=17)) == nbytes


@given(text=st.text(max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        seconds = units.parse_duration(text)
    except UnitError:
        return
    assert 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (units.format_bandwidth(731250.0), "5.85 Mbps"),
        (units.format_seconds(0.02), "20 ms"),
        (units.format_seconds(0), "0 s"),
        (units.format_seconds(-0.005), "-5 ms"),
        (units.format_seconds(float("inf")), "inf s"),
        (units.format_bytes(1536), "1.5 KiB"),
        (units.format_bytes(0), "0 B"),
        (units.PRICE.format(0.1 / 3600), "0.1 $/h"),
    ],
)
def test_shows_for_people(shown, text):
    assert shown == text
