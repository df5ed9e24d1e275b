"""Outputs are written whole or not at all; links, pipes, devices and other people's files stay."""

import json
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

from diffjax.pretrained.state_dict import save_safetensors
from diffjax.writing import replace_file, write_atomically, write_json


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "here" / "link"
    (tmp_path / "here" / "second").symlink_to("../there/file")
    link.symlink_to("second")
    target.write_text("old")
    before = target.stat().st_ino
    write_atomically(link, "new")
    assert link.is_symlink() and os.readlink(link) == "second" and target.read_text() == "new"
    assert target.stat().st_ino != before  # replaced, not written over
    assert os.listdir(tmp_path / "there") == ["file"]
    target.unlink()
    write_atomically(link, "again")  # of a link that leads nowhere yet
    assert link.is_symlink() and target.read_text() == "again"


def test_a_folder_that_is_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link" / "file", b"\x00")
    assert (tmp_path / "real" / "file").read_bytes() == b"\x00"


def test_a_named_pipe_is_written_into(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_atomically(pipe, "text" * 100_000)
    reader.join(30)
    assert found == ["text" * 100_000] and stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_the_standard_output_stays_and_gets_the_text(tmp_path, name, kind):
    # A link in the tests' folder, not the machine's: today's code would replace that one.
    if name.startswith("/dev/std"):
        (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
        name = str(tmp_path / "stdout")
    if name == "link":
        (tmp_path / "link").symlink_to("/dev/fd/1")
        name = str(tmp_path / "link")
    code = (
        "import sys\nfrom diffjax.writing import write_atomically\nprint('before')\n"
        "write_atomically(sys.argv[1], '{}\\n')\nprint('after')"
    )
    command = [sys.executable, "-c", code, name]
    if kind == "pipe":
        text = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    else:
        with (tmp_path / "out").open("w") as stream:
            subprocess.run(command, stdout=stream, check=True)
        text = (tmp_path / "out").read_text()
    assert text.splitlines() == ["before", "{}", "after"]
    assert not os.path.lexists(name) or os.path.islink(name)


def test_devices_are_written_into_and_stay(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    write_atomically(tmp_path / "null", "gone")
    assert (tmp_path / "null").is_symlink() and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"cannot write {tmp_path}/full: No space left"):
        write_atomically(tmp_path / "full", "text")
    assert sorted(os.listdir(tmp_path)) == ["full", "null"]


def test_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    write_atomically(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "another", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "another").stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_file_stays_its_owners(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 1234, 1235)
    write_atomically(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


def test_what_is_no_output_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "loop": "a link that leads back to itself",
        "folder": "it is a folder",
        "none/file": "No such file or directory",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(OSError, match=f"cannot write {tmp_path / name}: .*{reason}"):
            write_atomically(tmp_path / name, "text")
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    with pytest.raises(PermissionError, match="file: it is write-protected"):
        write_atomically(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "loop"]


def test_names_of_temporary_files_are_nobodys(tmp_path):
    for name in ("a.json.tmp", "a.partial", ".a.json.partial"):
        (tmp_path / name).write_text("mine")
    write_atomically(tmp_path / "a.json", "{}")
    with pytest.raises(RuntimeError), replace_file(tmp_path / "a.json") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.json").read_text() == "{}"
    assert sorted(p.name for p in tmp_path.iterdir() if p.read_text() == "mine") == [
        *(".a.json.partial", "a.json.tmp", "a.partial"),
    ]
    assert len(list(tmp_path.iterdir())) == 4


def test_weights_go_through_links_and_pipes_too(tmp_path):
    from safetensors.numpy import load

    params = {"layer": {"kernel": np.ones((2, 3), np.float32)}}
    (tmp_path / "link").symlink_to("real.safetensors")
    save_safetensors(tmp_path / "link", params)
    assert (tmp_path / "link").is_symlink()
    assert load((tmp_path / "real.safetensors").read_bytes())["layer.weight"].shape == (3, 2)
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    save_safetensors(tmp_path / "pipe", params)
    reader.join(30)
    assert found == [(tmp_path / "real.safetensors").read_bytes()]


def test_save_json_goes_where_a_link_leads(tmp_path):

    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text()) == {"a": 1}
