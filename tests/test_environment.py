"""Tests what the environment decides, and how a mistake in it is said."""

import pytest

from stagewire.environment import Environment, EnvironmentMistake, search_path


@pytest.mark.parametrize(
    ("value", "pipes"), [(None, "direct"), ("", "direct"), ("direct", "direct"), ("libzmq", "libzmq")]
)
def test_trains_go_by_the_transport_that_is_named(value: str | None, pipes: str) -> None:
    assert Environment.read({} if value is None else {"STAGEWIRE_PIPES": value}).pipes == pipes


def test_an_unknown_transport_is_refused() -> None:
    with pytest.raises(EnvironmentMistake, match="STAGEWIRE_PIPES: 'zmq' is unknown; set direct or libzmq"):
        Environment.read({"STAGEWIRE_PIPES": "zmq"})


@pytest.mark.parametrize(("value", "kernel"), [(None, ""), ("", ""), ("plain", "plain"), ("compiled", "compiled")])
def test_a_worker_has_the_kernel_that_is_named(value: str | None, kernel: str) -> None:
    assert Environment.read({} if value is None else {"STAGEWIRE_KERNEL": value}).kernel == kernel


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(EnvironmentMistake, match="STAGEWIRE_KERNEL: 'fast' is unknown; set plain or compiled"):
        Environment.read({"STAGEWIRE_KERNEL": "fast"})


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (None, ("127.0.0.1", 9586)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9586", ("::1", 9586)),
        ("off", None),
    ],
)
def test_metrics_lie_where_they_are_wanted(value: str | None, place: tuple[str, int] | None) -> None:
    assert Environment.read({} if value is None else {"STAGEWIRE_METRICS": value}).metrics == place


def test_metrics_have_the_names_that_are_set() -> None:
    assert Environment.read({}).metrics_names == ()
    set_names = Environment.read({"STAGEWIRE_METRICS_NAMES": "Gw.example.net., metrics_1"})
    assert set_names.metrics_names == ("gw.example.net", "metrics_1")
    for bad in ("gw:9586", "a,,b", "*", "http://gw"):
        with pytest.raises(EnvironmentMistake, match=r"STAGEWIRE_METRICS_NAMES: .* is no host name"):
            Environment.read({"STAGEWIRE_METRICS_NAMES": bad})


@pytest.mark.parametrize("value", ["9586", "localhost:9586", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:", "::1:x"])
def test_a_place_for_metrics_that_is_none(value: str) -> None:
    with pytest.raises(
        EnvironmentMistake, match=r"STAGEWIRE_METRICS: .* is no ADDRESS:PORT such as 127.0.0.1:9586; `off`"
    ):
        Environment.read({"STAGEWIRE_METRICS": value})


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/usr/local/bin:/usr/bin:/bin", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ("/usr/sbin:/usr/bin", "/usr/sbin:/usr/bin"),
        ("/opt/tools", "/opt/tools"),
        ("", "/bin:/usr/bin:/sbin:/usr/sbin"),
        (None, "/bin:/usr/bin:/sbin:/usr/sbin"),
    ],
)
def test_the_administrators_folders_are_searched_last(path: str | None, wanted: str) -> None:
    assert search_path(path) == wanted


@pytest.mark.parametrize("name", ["STAGEWIRE_CONFIG", "STAGEWIRE_RUN_DIR"])
def test_a_path_that_is_no_text_is_refused(name: str) -> None:
    """Supervisord could not read its configuration with such a path in it."""
    with pytest.raises(EnvironmentMistake, match=r"^'/b\\udcfcro/x' is no path in UTF-8"):
        Environment.read({name: "/b\udcfcro/x"})
    assert Environment.read({name: "/büro/x"}).interface == "wg0"
