"""Databases in the configuration: what is refused, where passwords come from and where they never show."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import load
from engine.errors import ConfigError
from engine.plan import make_plan
from engine.stores import Passwords, read_passwords
from workers.spec import MirrorSettings
from workers.store import in_words, password_in, with_password

BOTH = {"redis.url": "redis://r@127.0.0.1:6379/0", "postgres.dsn": "host=127.0.0.1 dbname=market user=t"}


def test_each_store_that_is_configured_gets_a_mirror_of_the_journal(tmp_path: Path) -> None:
    config = load(None, {}, {**BOTH, "engine.data_dir": str(tmp_path), "postgres.retention_days": 30, "redis.hours": 2})
    plan = make_plan(config, Path("/run/x"), passwords=Passwords(redis="one", postgres="two"))
    mirrors = [worker.settings for worker in plan.workers if isinstance(worker.settings, MirrorSettings)]
    assert [(m.label, m.store, m.password) for m in mirrors] == [
        ("mirror-redis", "redis", "one"),
        ("mirror-postgres", "postgres", "two"),
    ]
    assert {m.folder for m in mirrors} == {str(tmp_path / "main")}
    assert (mirrors[0].hours, mirrors[1].retention_days) == (2, 30)
    assert not any("one" in repr(thing) or "two" in repr(thing) for thing in (*mirrors, Passwords("one", "two")))
    assert not any("127.0.0.1" in worker.does for worker in plan.workers if worker.role == "mirror")


def test_without_stores_there_is_no_mirror(tmp_path: Path) -> None:
    plan = make_plan(load(None, {}, {"engine.data_dir": str(tmp_path)}), Path("/run/x"))
    assert "mirror" not in [worker.role for worker in plan.workers]


@pytest.mark.parametrize(
    ("key", "value", "variable"),
    [
        ("redis.url", "redis://:hush@127.0.0.1/0", "TICKENGINE_REDIS_PASSWORD"),
        ("redis.url", "unix:///run/redis.sock?password=hush", "TICKENGINE_REDIS_PASSWORD"),
        ("postgres.dsn", "host=127.0.0.1 password=hush", "PGPASSWORD"),
        ("postgres.dsn", "postgresql://me:hush@127.0.0.1/market", "PGPASSWORD"),
    ],
)
def test_a_password_in_the_configuration_is_refused_and_not_repeated(key: str, value: str, variable: str) -> None:
    with pytest.raises(ConfigError, match=variable) as told:
        load(None, {}, {key: value})
    assert "hush" not in str(told.value)


def test_a_store_without_a_journal_and_a_url_of_something_else_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[storage\] enabled"):
        load(None, {}, {**BOTH, "storage.enabled": False})
    with pytest.raises(ConfigError, match=r"\[redis\] url.*redis://"):
        load(None, {}, {"redis.url": "http://127.0.0.1"})


def test_passwords_come_from_the_credential_before_the_environment(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    pytest.importorskip("psycopg")
    config = load(None, {}, BOTH)
    env = {"TICKENGINE_REDIS_PASSWORD": "from the environment", "PGPASSWORD": "also"}
    assert read_passwords(config, env) == Passwords("from the environment", "also")
    (tmp_path / "redis_password").write_text("from the credential\n")
    found = read_passwords(config, {**env, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert found == Passwords("from the credential", "also")
    assert read_passwords(load(None, {}, {}), env) == Passwords()


def test_a_missing_library_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.stores.find_spec", lambda name: None if name == "psycopg" else object())
    with pytest.raises(ConfigError, match=r"pip install 'tickengine\[postgres\]'"):
        read_passwords(load(None, {}, BOTH), {})


@pytest.mark.parametrize("password", ["simple", "with space", "a'b\\c", "p@ss:w/rd?&#%", "ü"])
@pytest.mark.parametrize(
    "address",
    [
        "redis://127.0.0.1:6379/0",
        "redis://me@127.0.0.1:6379/0",
        "unix:///run/redis.sock?db=1",
        "unix:///run/redis.sock",
        "host=127.0.0.1 dbname=x",
        "postgresql://me@127.0.0.1/market",
    ],
)
def test_an_address_takes_a_password_that_no_error_shows(address: str, password: str) -> None:
    secret = with_password(address, password)
    assert password_in(secret) == password
    assert password_in(address) == ""
    assert in_words(ValueError(f"no: {password}"), secret) == "no: ***"
    if address.startswith(("redis", "unix")):
        redis = pytest.importorskip("redis")
        assert redis.Redis.from_url(secret).connection_pool.connection_kwargs["password"] == password
    else:
        conninfo = pytest.importorskip("psycopg.conninfo")
        assert conninfo.conninfo_to_dict(secret)["password"] == password
