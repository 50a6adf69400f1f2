"""The configuration promises: every key checked, every error helpful, every value traced to where it came from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from engine.access import read_tokens
from engine.byte_size import parse_bytes
from engine.config import ENVIRONMENT, SECTIONS, gateway_port, load
from engine.errors import ConfigError
from engine.feed_settings import FeedSection, QualitySection, RedundancySection
from engine.manual import describe_key, render
from engine.settings import Config
from workers.spec import QualitySettings, RedundancySettings


def write(folder: Path, text: str) -> Path:
    """A configuration file."""
    path = folder / "engine.toml"
    path.write_text(text)
    return path


def bare(config: Config) -> Config:
    """Without the origins, which differ between two ways to the same values."""
    return msgspec.structs.replace(config, origins={})


def test_every_key_has_a_description() -> None:
    kinds = {**SECTIONS, "feeds": FeedSection}
    silent = [
        f"{section}.{item.name}"
        for section, kind in kinds.items()
        for item in msgspec.structs.fields(kind)
        if not describe_key(item.type)
    ]
    assert silent == []


def test_defaults_without_a_file_simulate() -> None:
    config = load(None, {})
    assert config.simulate.enabled
    assert config.engine.name == "main"
    assert (config.http.port, config.zmq.base_port) == (8800, 8800)


def test_a_file_or_a_replay_switches_the_default_simulation_off(tmp_path: Path) -> None:
    assert not load(write(tmp_path, "[engine]\n"), {}).simulate.enabled
    assert not load(None, {}, {"replay.files": ["x.dbn"]}).simulate.enabled


def test_the_command_line_goes_before_the_environment_before_the_file_before_the_default(tmp_path: Path) -> None:
    path = write(
        tmp_path, "[workers]\ningest = 2\nfanout = 2\n[cache]\nrecords_per_instrument = 50\n[http]\nport = 9000\n"
    )
    config = load(path, {"MARKETDATA_WORKERS": "3", "MARKET_DATA_CACHE_SIZE": "60"}, {"workers.ingest": "4"})
    assert config.workers.ingest == 4
    assert config.cache.records_per_instrument == 60
    assert config.workers.fanout == 2
    assert config.origins["workers.ingest"] == "the command line"
    assert config.origins["cache.records_per_instrument"] == "environment variable MARKET_DATA_CACHE_SIZE"
    assert config.origins["http.port"] == str(path)
    assert "zmq.base_port" not in config.origins


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[htpp]\nport = 1\n", ["[htpp]", "did you mean 'http'"]),
        ("[http]\nprot = 1\n", ["'prot'", "[http]", "did you mean 'port'"]),
        ("[http]\nport = 99999\n", ["port = 99999", "from 1 to 65535", "default 8800"]),
        ("[http]\nport = true\n", ["port = True", "from 1 to 65535"]),
        ('[placement]\npolicy = "fast"\n', ["policy = 'fast'", '"auto", "none"']),
        ('[engine]\nname = "Main_1"\n', ["name = 'Main_1'", "a-z, 0-9 and -"]),
        ('[engine]\nmax_memory = "lots"\n', ["max_memory = 'lots'", "4GiB"]),
        ("[rings]\ndepth_slots = 5000\n", ["depth_slots = 5000", "power of two", "8192"]),
        ("[cache]\nbar_intervals_s = [0]\n", ["bar_intervals_s", "from 1 to 86400"]),
        ('[[feeds]]\nname = "a"\n', ["[[feeds]] number 1", "source is missing"]),
        ('[[feeds]]\nname = "a"\nsource = "x"\nsymbol = "A"\n', ["'symbol'", "did you mean 'symbols'"]),
        ('[[feeds]]\nname = "a"\nsource = "x"\n[[feeds]]\nname = "a"\nsource = "y"\n', ["two feeds are named 'a'"]),
        ('[replay]\nspeed = "0"\n', ["speed", "greater than 0"]),
        ('[replay]\nspeed = "fast"\n', ["speed = 'fast'", "max"]),
        ("[http]\nport = 8811\n", ["8811", "also a ZeroMQ port"]),
        ("http = 1\n", ["[http]", "section"]),
        ("[http\n", ["not valid TOML"]),
    ],
)
def test_an_error_names_file_key_value_and_what_is_allowed(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load(path, {})
    for word in words:
        assert word in str(error.value)
    assert error.value.exit_status == 2


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml", {})


def test_every_environment_variable_sets_its_key() -> None:
    values = {
        "MARKETDATA_WORKERS": ("2", 2),
        "MARKET_DATA_CACHE_SIZE": ("500", 500),
        "DATA_RETENTION_HOURS": ("48", 48.0),
        "MAX_SYMBOLS_TRACKED": ("1000", 1000),
        "FEED_UPDATE_INTERVAL_MS": ("5", 200.0),
        "LATENCY_ALERT_THRESHOLD_MS": ("7.5", 7.5),
        "LOW_LATENCY_MODE": ("true", True),
        "M4_MAX_OPTIMIZED": ("1", "auto"),
        "ENABLE_CPU_OPTIMIZATION": ("false", "none"),
        "HARDWARE_PLATFORM": ("m4-max", "m4-max"),
        "OPENBLAS_NUM_THREADS": ("2", 2),
        "OMP_NUM_THREADS": ("3", 3),
        "MARKETDATA_MAX_MEMORY": ("4GB", "4GB"),
        "MARKETDATA_MAX_CPU": ("400%", 4.0),
    }
    assert set(values) == set(ENVIRONMENT)
    for variable, (text, expected) in values.items():
        section, _, name = ENVIRONMENT[variable].partition(".")
        assert getattr(getattr(load(None, {variable: text}), section), name) == expected, variable


@pytest.mark.parametrize(
    ("variable", "text"),
    [("MARKETDATA_WORKERS", "many"), ("LOW_LATENCY_MODE", "perhaps"), ("FEED_UPDATE_INTERVAL_MS", "0")],
)
def test_a_bad_variable_is_named_with_its_value(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, {variable: text})
    assert variable in str(error.value)
    assert repr(text) in str(error.value)


def test_other_variables_are_not_looked_at() -> None:
    assert bare(load(None, {"PORT": "1", "HTTP_PORT": "2"})) == bare(load(None, {}))


def test_the_printed_configuration_is_a_file_that_gives_the_same(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[engine]\nname = "a-1"\n[placement]\ncores = { "ingest-0" = 2 }\n'
        '[[feeds]]\nname = "f"\nsource = "simulated"\nsymbols = ["A", "B\\"C"]\n'
        "options = { rate = 5.5, deep = { x = [1] } }\n",
    )
    config = load(path, {"LOW_LATENCY_MODE": "1"}, {"http.port": "9100"})
    text = render(config)
    assert tomllib.loads(text)["http"]["port"] == 9100
    assert "# set by environment variable LOW_LATENCY_MODE" in text
    again = tmp_path / "again.toml"
    again.write_text(text)
    assert bare(load(again, {})) == bare(config)


@pytest.mark.parametrize(
    ("text", "expected"), [("4GB", 4 * 10**9), ("1.5gib", 3 * 2**29), ("100", 100), ("7 MiB", 7 * 2**20), ("2k", 2000)]
)
def test_sizes_in_words(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


def test_quality_settings_are_those_of_the_ingest_worker_with_the_same_defaults() -> None:
    assert msgspec.structs.asdict(QualitySection()) == msgspec.structs.asdict(QualitySettings())
    assert msgspec.structs.asdict(RedundancySection()) == msgspec.structs.asdict(RedundancySettings())


def test_the_gateway_listens_beside_http_and_clashes_are_told() -> None:
    assert gateway_port(load(None, {})) == 8600
    assert gateway_port(load(None, {}, {"http.port": 9800, "zmq.base_port": 9800})) == 9600
    assert gateway_port(load(None, {}, {"gateway.port": 7000})) == 7000
    for overrides, words in [
        ({"http.port": 9001}, "8801 is also a ZeroMQ port"),
        ({"gateway.port": 8800}, "8800 is also the HTTP port"),
        ({"http.port": 200}, "200 less is no port"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load(None, {}, overrides)
        load(None, {}, {**overrides, "gateway.enabled": False})


def test_the_gateway_does_not_listen_beyond_loopback_without_a_token() -> None:
    beyond = load(None, {}, {"gateway.host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="bearer token"):
        read_tokens(beyond, {})
    (token,) = read_tokens(beyond, {"TICKENGINE_HTTP_TOKEN": "x" * 16})
    assert token.secret == b"x" * 16
    read_tokens(load(None, {}, {"gateway.host": "0.0.0.0", "gateway.enabled": False}), {})
