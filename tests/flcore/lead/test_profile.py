"""Profiles: what is written is read, by its owner only, and errors say what to do."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flcore.errors import ProfileError
from flcore.lead.profile import Profile, find_profile, profiles_path, read_profiles, write_profile

ALICE = Profile(kit="/home/alice/kits/alice", server="fl.example.org:8470")


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "config/flcore/profiles.toml"
    odd = Profile(kit='/home/a "quoted" \\ back\x7f\n/ünï/😀', server="[::1]:8470")
    write_profile(path, "default", ALICE)
    write_profile(path, "v1.2", odd)
    assert read_profiles(path) == {"default": ALICE, "v1.2": odd}
    assert path.read_text().startswith('[default]\nkit = "/home/alice/kits/alice"\nserver = "fl.example.org:8470"\n')
    assert find_profile(path, None) == ALICE and find_profile(path, "v1.2") == odd
    write_profile(path, "default", odd)
    assert find_profile(path, None) == odd


def test_others_can_read_neither_the_file_nor_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "flcore/profiles.toml"
    write_profile(path, "default", ALICE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_logins_at_once_keep_all_profiles(tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_profile(path, f"p{number}", ALICE), range(24)))
    assert set(read_profiles(path)) == {f"p{number}" for number in range(24)}
    assert [each.name for each in tmp_path.iterdir() if "partial" in each.name] == []


def test_the_place_is_that_of_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/xdg-of-a-user")
    assert profiles_path() == Path("/etc/xdg-of-a-user/flcore/profiles.toml")
    for absent in ("", "relative/path"):
        monkeypatch.setenv("XDG_CONFIG_HOME", absent)
        assert profiles_path() == tmp_path / ".config/flcore/profiles.toml"


def test_a_missing_profile_says_how_to_write_it(tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    with pytest.raises(ProfileError, match=r"expected a profile 'default' in .*: flcore login KIT \(or give --kit\)"):
        find_profile(path, None)
    write_profile(path, "north", ALICE)
    with pytest.raises(
        ProfileError, match=r"'south'.*the profiles are north; write it: flcore login KIT --profile south"
    ):
        find_profile(path, "south")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"kit = 1", "kit: expected kit and server"),
        (b"[default]\nkit = 1\nserver = 'a:1'", "default.kit: expected kit and server"),
        (b"[default]\nkit = 'a'", "server: expected kit and server"),
        (b"[default]\nkit = 'a'\nserver = 'b:1'\ntoken = 'x'", "token: expected kit and server"),
        (b"[default", "expected TOML"),
        (b"\xff\xfe[", "expected UTF-8, got UTF-16"),
        (b"#" * (2 << 20), "at most 1048576 bytes"),
    ],
)
def test_a_malformed_file_is_named_and_left_as_it_is(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "profiles.toml"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=problem) as raised:
        write_profile(path, "default", ALICE)
    assert str(path) in str(raised.value) and "flcore login KIT" in str(raised.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 65, "[a]"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="the name of a profile"):
        write_profile(tmp_path / "profiles.toml", name, ALICE)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="expected UTF-8"):
        write_profile(tmp_path / "profiles.toml", "default", Profile(kit="/kits/\udcff", server="a:1"))
