"""Key files are made for their owner alone, and what is no key is named by file and line, without the key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq

from engine.config import load
from engine.curve import CREDENTIAL, find_keys
from engine.errors import ConfigError
from engine.plan import make_plan
from tools.cli import main
from workers.errors import SettingsError
from workers.keys import AllowList, CurveKeys, make_pair, read_public, read_secret
from workers.spec import FanoutSettings


def test_the_command_makes_files_that_work_and_replaces_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "server", "alice", "--folder", str(tmp_path)]) == 0
    secret, public = tmp_path / "alice.key", tmp_path / "alice.pub"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert zmq.curve_public(read_secret(secret)) == read_public(public) == read_public(public.read_text().split()[0])
    output = capsys.readouterr().out
    assert read_public(public).decode() in output
    assert secret.read_text().strip() not in output
    before = secret.read_text()
    assert main(["keys", "alice", "--folder", str(tmp_path)]) == 1
    assert "alice.pub" in capsys.readouterr().err
    assert secret.read_text() == before
    assert main(["keys", "a/b", "--folder", str(tmp_path)]) == 2
    keys = CurveKeys.read(secret, tmp_path / "server.pub")
    assert keys.server == read_public(tmp_path / "server.pub")


def test_a_secret_that_everybody_may_open_is_refused_and_not_repeated(tmp_path: Path) -> None:
    secret, _ = make_pair(tmp_path, "server")
    secret.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600") as error:
        read_secret(secret)
    secret.chmod(0o600)
    assert read_secret(secret).decode() not in str(error.value)
    secret.write_text("no key")
    with pytest.raises(SettingsError, match=r"server.key: must be one secret key"):
        read_secret(secret)
    with pytest.raises(SettingsError, match="No such file"):
        read_secret(tmp_path / "missing.key")


def test_the_list_is_read_again_when_its_files_change_and_kept_when_they_are_broken(tmp_path: Path) -> None:
    keys = [zmq.curve_keypair()[0] for _ in range(3)]
    path = tmp_path / "clients"
    path.write_text(f"# who may\n\n{keys[0].decode()} alice of trading\n{keys[1].decode()}\n")
    allowed = AllowList(path)
    assert allowed.names == {keys[0]: "alice of trading", keys[1]: "clients"}
    assert not allowed.changed()
    path.write_text(f"{keys[2].decode()} carol\n")
    assert allowed.changed()
    assert allowed.names == {keys[2]: "carol"}
    path.write_text(f"{keys[0].decode()} alice\n{keys[1].decode()[:-1]} bob\n")
    with pytest.raises(SettingsError, match="clients, line 2"):
        allowed.changed()
    assert allowed.names == {keys[2]: "carol"}
    assert not allowed.changed()  # said once


def test_a_folder_of_public_keys_is_a_list(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    allowed = AllowList(tmp_path / "clients")
    assert allowed.names == {}
    _, public = make_pair(tmp_path / "clients", "alice")
    assert allowed.changed()
    assert allowed.names == {read_public(public): "alice"}
    public.unlink()
    assert allowed.changed()
    assert allowed.names == {}


def test_beyond_loopback_the_engine_wants_both_keys_and_says_which_is_missing(tmp_path: Path) -> None:
    secret, public = make_pair(tmp_path, "server")
    clients = {"zmq.client_keys": str(tmp_path)}
    server = {"zmq.server_key_file": str(secret)}
    beyond = {"zmq.host": "0.0.0.0"}
    for overrides, words in [
        (beyond, r"\[zmq\] host = '0.0.0.0' is reachable from other machines.*server_key_file.*client_keys"),
        ({**beyond, **server}, "set \\[zmq\\] client_keys too"),
        ({**beyond, **clients}, "of no use without a server key"),
        ({**server, "zmq.client_keys": str(tmp_path / "none")}, "client_keys = .*none'?: no such file"),
        ({**clients, "zmq.server_key_file": str(public)}, "server_key_file = .*must be a secret key"),
        ({**clients, "zmq.server_key_file": str(tmp_path / "none")}, "server_key_file = .*No such file"),
    ]:
        with pytest.raises(ConfigError, match=words):
            find_keys(load(None, {}, overrides), {})
    assert find_keys(load(None, {}), {}).server_key_file == ""
    config = load(None, {}, {**beyond, **server, **clients})
    found = find_keys(config, {})
    assert found.public.encode() == read_public(public)
    (fanout,) = [w.settings for w in make_plan(config, Path("/run/x"), curve=found).workers if w.role == "fanout"]
    assert isinstance(fanout, FanoutSettings)
    assert (fanout.server_key_file, fanout.client_keys) == (str(secret), str(tmp_path))
    (tmp_path / CREDENTIAL).write_text(secret.read_text())
    by_credential = find_keys(load(None, {}, {**beyond, **clients}), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert by_credential.server_key_file == os.path.join(tmp_path, CREDENTIAL)
    assert by_credential.public == found.public
