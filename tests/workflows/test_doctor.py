"""What would stop a run is found before the run, and named with what to do."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cli import _variables
from cli import atrous as command
from pipeline.errors import WeightsError
from workflows import doctor, folder_check, machine_check, self_test
from workflows.findings import ok


@pytest.fixture
def quick(monkeypatch):
    """Leave out the network."""
    monkeypatch.setattr(doctor, "check_network", lambda: ok("model", "not looked at"))


def states(findings):
    return {found.topic: found.state for found in findings}


def refuse(*_given, **_more):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def limited(n):
    return lambda _limit: (n, n)


# The folder


def test_a_good_folder_is_left_as_it_was(tmp_path):
    found = folder_check.check_folder(tmp_path)
    assert {topic: state for topic, state in states(found).items() if topic != "disk"} == dict.fromkeys(
        ("folder", "links", "lock", "room"), "ok"
    )
    assert list(tmp_path.iterdir()) == []
    assert not folder_check.is_unwritable(found)


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_what_is_no_folder(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "a file":
        path.touch()
    found = folder_check.check_folder(path)
    assert folder_check.is_unwritable(found)
    assert "is no folder" in found[0].text


def test_a_folder_that_cannot_be_written():
    found = folder_check.check_folder(Path("/proc"))  # not even by root
    assert folder_check.is_unwritable(found)
    assert "/proc cannot be written" in found[0].text


@pytest.mark.parametrize(
    ("place", "stand_in", "topic", "text"),
    [
        pytest.param("workflows.folder_check.replace_durably", refuse, "folder", "written and synced", id="no sync"),
        pytest.param(
            "workflows.folder_check.replace_durably", lambda path, _: path.write_bytes(b"old"), "folder", "still holds", id="lost"
        ),
        pytest.param("os.link", refuse, "links", "no hard links: Operation not permitted", id="no links"),
        pytest.param("os.link", lambda *_: None, "links", "replaced another file", id="links replace"),
        pytest.param("fcntl.flock", refuse, "lock", "files cannot be locked", id="no locks"),
        pytest.param("fcntl.flock", lambda *_: None, "lock", "does not stop another", id="locks that do not hold"),
        pytest.param("workflows.folder_check._another_gets", lambda _: False, "lock", "stays", id="locks that stay"),
    ],
)
def test_file_systems_that_break_a_promise(tmp_path, monkeypatch, place, stand_in, topic, text):
    monkeypatch.setattr(place, stand_in)
    found = folder_check.check_folder(tmp_path)
    bad = next(one for one in found if one.state == "problem")
    assert (bad.topic, text in bad.text, bad.advice != "") == (topic, True, True)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_or_full_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_check, "_SLOW_SYNC_S", 0.0)
    monkeypatch.setattr(folder_check, "_LITTLE_ROOM_BYTES", 2**80)
    found = states(folder_check.check_folder(tmp_path))
    assert (found["folder"], found["room"]) == ("warning", "warning")


MOUNTS = r"""/dev/sda1 / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
server:/x /shared/my\040data nfs4 rw 0 0
a bad
/dev/sdb /shared/my\040data/scratch xfs rw 0 0
first /twice nfs rw 0 0
second /twice ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/run", "tmpfs"),
        ("/runner", "ext4"),
        ("/shared/my data/out", "nfs4"),
        ("/shared/my data/scratch", "xfs"),
        ("/twice/a", "ext4"),
    ],
)
def test_the_deepest_mount_above_a_folder_is_its_file_system(path, kind):
    assert folder_check.file_system(Path(path), MOUNTS) == kind


def test_without_mounts_the_kind_is_not_known(tmp_path, monkeypatch):
    assert folder_check.file_system(tmp_path, "") is None
    monkeypatch.setattr(folder_check, "_MOUNTS", tmp_path / "none")
    assert "disk" not in states(folder_check.check_folder(tmp_path))


@pytest.mark.parametrize(("kind", "state"), [("nfs4", "warning"), ("fuse.sshfs", "warning"), ("tmpfs", "warning"), ("xfs", "ok")])
def test_file_systems_that_are_shared_or_in_memory_are_told(tmp_path, monkeypatch, kind, state):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"x / {kind} rw 0 0\n")
    monkeypatch.setattr(folder_check, "_MOUNTS", mounts)
    assert states(folder_check.check_folder(tmp_path))["disk"] == state


# The machine


def test_versions_and_drivers_are_there_and_what_is_optional_is_no_problem(monkeypatch):
    found = list(machine_check.check_versions())
    assert {one.state for one in found} == {"ok"}
    for name in ("Python 3", "atrous 0", "torch 2", "zarr 3", "distributed 2"):
        assert name in found[0].text
    monkeypatch.setattr(machine_check, "_OPTIONAL", {"no-such-thing": "nobody needs it"})
    assert [one.text for one in machine_check.check_versions() if one.topic == "optional"] == [
        "no-such-thing is not installed: nobody needs it"
    ]


def test_a_gdal_without_a_driver_is_a_problem(monkeypatch):
    monkeypatch.setattr("pipeline.gdal_build.DRIVERS", ("GTiff", "NoSuchDriver"))
    found = list(machine_check.check_versions())[-1]
    assert (found.topic, found.state) == ("gdal", "problem")
    assert found.text.endswith("was built without NoSuchDriver")


def test_devices_and_what_auto_means():
    found = {one.topic: one for one in machine_check.check_devices()}
    assert set(found) == {"memory", "cores", "cuda", "engine"}
    assert found["engine"].text.startswith(("auto is openvino fp32 on cpu", "auto is torch fp32 on "))


def test_cuda_devices_are_described(monkeypatch):
    card = SimpleNamespace(name="Card", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**32))
    found = [one.text for one in machine_check._cuda()]
    assert found == [f"cuda:{number} Card, capability 9.0, 1.0 of 4.0 GiB free" for number in (0, 1)]


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine_check, "share_here", lambda _: (1, 2, 2**28))
    assert states(machine_check.check_devices())["memory"] == "warning"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_cores_of_a_container(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine_check.cpu_quota(tmp_path) == quota


def test_a_container_with_less_than_its_cores_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine_check, "cpu_quota", lambda _: 0.5)
    found = machine_check._cores(1, 2)
    assert (found.state, found.advice) == ("warning", "give --threads 1")


def test_limits_that_would_stop_a_run_are_told(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", limited(resource.RLIM_INFINITY))
    assert [one.text for one in machine_check.check_limits()] == ["any number of open files"]
    monkeypatch.setattr(resource, "getrlimit", limited(300))
    found = list(machine_check.check_limits())
    assert [one.state for one in found] == ["warning"] * 3
    assert [one.advice.rpartition("ulimit ")[2] for one in found] == ["-n 1024 or above", "-v unlimited", "-f unlimited"]


# The environment


def test_variables_are_shown_but_no_secrets():
    given = {
        "ATROUS_SEGMENT_WINDOW": "512",
        "DASK_GATEWAY__AUTH__TYPE": "hub",
        "DASK_SCHEDULER_ADDRESS": "tls://me:hunter2@node:8786",
        "DASK_X__TOKEN": "hunter3",
        "HOME": "/home/me",
        "AWS_SECRET": "hunter4",
    }
    found = list(machine_check.check_environment(given, frozenset(["ATROUS_SEGMENT_WINDOW"])))
    assert [one.text for one in found] == [
        "ATROUS_SEGMENT_WINDOW=512",
        "DASK_GATEWAY__AUTH__TYPE=(not shown)",
        "DASK_SCHEDULER_ADDRESS=tls://(not shown)@node:8786",
        "DASK_X__TOKEN=(not shown)",
    ]
    assert {one.state for one in found} == {"ok"}


def test_a_variable_that_stands_for_no_option_is_a_warning():
    known = frozenset(_variables(command, "ATROUS"))
    assert {"ATROUS_SEGMENT_WINDOW", "ATROUS_MODELS_IMPORT_OUT", "ATROUS_CRF_REFINE_CRF_PARAM"} <= known
    found = list(machine_check.check_environment({"ATROUS_SEGMENT_WINDOWS": "1", "ATROUS_Q": "1"}, known))
    assert [(one.state, one.advice[:32]) for one in found] == [
        ("warning", "they are called ATROUS_SEGMENT_W"),
        ("warning", "did you mean ATROUS_SEGMENT_WIND"),
    ]


# The network


def test_the_shipped_model_gives_the_labels_that_it_should():
    found = self_test.check_network()
    assert (found.topic, found.state) == ("model", "ok")


def test_a_model_that_gives_other_labels_is_a_problem(monkeypatch):
    monkeypatch.setattr(self_test, "_COUNTS", (10349, 7169, 38891, 9127, 0))
    found = self_test.check_network()
    assert (found.state, found.text.endswith("in torch: 100 of 65536 pixels")) == ("problem", True)


def test_an_engine_that_gives_other_labels_is_a_warning(monkeypatch):
    reference = np.repeat(np.arange(5), self_test._COUNTS).reshape(256, 256)
    labels = {"torch": reference, "auto": np.roll(reference, 1, axis=0)}
    monkeypatch.setattr(self_test, "network_labels", lambda spec: labels[spec.engine])
    found = self_test.check_network()
    assert (found.state, "--engine torch" in found.advice) == ("warning", True)


def test_a_model_that_does_not_run_is_a_problem(monkeypatch):
    def fail(_path):
        raise WeightsError("the file is cut short")

    monkeypatch.setattr(self_test, "late_network", fail)
    found = self_test.check_network()
    assert (found.state, found.text) == ("problem", "dubai-mobilenetv2 does not run: the file is cut short")


# The command


def test_the_command_in_a_good_folder(atrous, home, quick):
    code, stdout, stderr = atrous("doctor")
    assert (code, stderr, list(home.iterdir())) == (0, "", [])
    lines = stdout.splitlines()
    assert lines[-1].startswith("no problems, ")
    assert all(line.startswith(("ok ", "warning ")) for line in lines[:-1])
    code, stdout, _ = atrous("doctor", home, "--json")
    told = json.loads(stdout)
    assert (code, told["folder"], told["writable"], told["n_problems"]) == (0, str(home), True, 0)
    assert set(told["findings"][0]) == {"state", "topic", "text", "advice"}


def test_the_command_has_an_exit_code_for_a_folder_and_one_for_the_rest(atrous, home, quick, monkeypatch):
    code, stdout, _ = atrous("doctor", home / "none")
    assert (code, "problem  folder" in stdout, "1 problem, " in stdout) == (73, True, True)
    monkeypatch.setattr(os, "link", refuse)
    code, stdout, _ = atrous("doctor")
    assert (code, "problem  links       no hard links: Operation not permitted: choose another file system" in stdout) == (
        1,
        True,
    )
