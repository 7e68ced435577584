"""The lock of tools as a part of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from kars_router.config.converter import to_plain
from kars_router.config.load import load, parse
from kars_router.config.schema import Config
from kars_router.config.tools_lock import read_lock, write_lock
from kars_router.errors import ConfigError, UserError
from kars_router.pinning import LockError, Pin, render

READ = Pin.of({"name": "read", "description": "Reads."})
LOCK = {"box": {"read": READ}}
FILE = (
    "toolsLock: tools.lock.json\n"
    "servers: {box: {url: 'http://h/'}, other: {url: 'http://i/'}}\n"
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kars.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "tools.lock.json"
    write_lock(path, LOCK)
    return path


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, environ={})
    assert caught.value.source == str(file)
    (line,) = caught.value.problems
    return line


def test_every_server_gets_its_accepted_definitions(file: Path, lock: Path) -> None:
    config = load(file, environ={})
    assert config.tools_lock == lock
    assert config.servers["box"].pins == {"read": READ}
    assert config.servers["other"].pins == {}  # nothing was accepted, which is not "no lock"
    assert config.pins == {"box": {"read": READ.digest}, "other": {}}
    assert hash(config) == hash(load(file, environ={}))


def test_without_a_lock_nothing_is_pinned() -> None:
    config = parse("servers: {box: {url: 'http://h/'}}")
    assert config.servers["box"].pins is None
    assert config.pins is None


def test_a_changed_lock_is_a_changed_configuration(file: Path, lock: Path) -> None:
    before = load(file, environ={})
    write_lock(lock, {"box": {}})
    after = load(file, environ={})
    assert before != after
    assert before.servers["other"] == after.servers["other"]


def test_a_lock_is_read_without_an_environment_too(file: Path, lock: Path) -> None:
    config = parse(FILE, base=lock.parent)
    assert config.servers["box"].pins == {"read": READ}


def test_who_writes_the_lock_does_without_it(file: Path) -> None:
    config = load(file, environ={}, pinned=False)
    assert config.tools_lock == file.parent / "tools.lock.json"
    assert config.servers["box"].pins is None


def test_pins_are_no_key_of_the_file(file: Path, lock: Path) -> None:
    shown = to_plain(load(file, environ={}))
    assert "digest" not in str(shown)
    with pytest.raises(ConfigError) as caught:
        parse("servers: {box: {url: 'http://h/', pins: {}}}")
    assert caught.value.problems == ("servers.box.pins: is not a known key",)


def test_a_lock_that_is_not_there_is_refused(file: Path) -> None:
    place = str(file.parent / "tools.lock.json")
    assert refusal(file) == f"toolsLock: {place!r} is not there; write it with 'kars tools lock'"


def test_a_lock_that_was_changed_by_hand_is_refused(file: Path, lock: Path) -> None:
    lock.write_bytes(lock.read_bytes().replace(b"Reads.", b"Runs."))
    # Not to write it anew: that would accept whatever the server says today.
    said = "was changed by hand: the digest of box/read is not of its definition"
    assert refusal(file).endswith(f"{said}; take it from where it was right")


def test_a_directory_is_no_lock(file: Path, tmp_path: Path) -> None:
    (tmp_path / "tools.lock.json").mkdir()
    assert "cannot be read: Is a directory" in refusal(file)


def test_a_flag_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("servers: {a: {url: 'http://h/'}}", base=tmp_path, overrides={"toolsLock": "none"})
    assert caught.value.problems[0].startswith("--toolsLock: ")


def test_the_plugin_that_withholds_cannot_be_blocked_beside_a_lock(file: Path, lock: Path) -> None:
    file.write_text(f"{FILE}plugins: {{blocked: [pins]}}\n")
    assert refusal(file) == "toolsLock: has no effect while plugins.blocked names 'pins'"
    assert parse("servers: {a: {url: 'http://h/'}}\nplugins: {blocked: [pins]}") != Config()


# Writing


def test_a_lock_is_replaced_in_one_step(lock: Path) -> None:
    with lock.open("rb") as reader:
        write_lock(lock, {})
        assert reader.read() == render(LOCK)
    assert read_lock(lock) == {}
    assert [path.name for path in lock.parent.iterdir()] == [lock.name]
    assert lock.stat().st_mode & 0o777 == 0o644


def test_rights_and_links_are_kept(lock: Path, tmp_path: Path) -> None:
    lock.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(lock.name)
    write_lock(link, {})
    assert link.is_symlink()
    assert read_lock(lock) == {}
    assert lock.stat().st_mode & 0o777 == 0o640


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        write_lock(tmp_path / "none" / "tools.lock.json", LOCK)
    assert str(caught.value).endswith("cannot be written: No such file or directory")
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError):
        write_lock(tmp_path / "directory", LOCK)
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_links_that_lead_to_each_other_are_no_place_for_a_lock(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("other")
    (tmp_path / "other").symlink_to("link")
    with pytest.raises(UserError, match=r"link cannot be written: Too many levels"):
        write_lock(link, {})
    link.unlink()
    write_lock(tmp_path / "other", {})  # one that leads to nothing yet is one
    assert link.is_file()


def test_a_name_that_no_file_has() -> None:
    with pytest.raises(LockError) as caught:
        read_lock(Path("a\0b"))
    assert str(caught.value) == "cannot be read: the name holds a forbidden character"
