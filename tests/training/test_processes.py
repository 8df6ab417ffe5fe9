from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.errors import DataError, OtherProcessError, PneumoscopeError, RecipeError
from pneumoscope.parallel import Launch, launched_as
from pneumoscope.training import processes
from pneumoscope.training.processes import check_divides, end_together, make_fabric, own_parts, shared


def process(rank, processes):
    """Stands for the engine of one of several processes."""
    return SimpleNamespace(global_rank=rank, world_size=processes)


@given(st.integers(2, 200), st.integers(2, 8), st.integers(1, 6))
def test_processes_divide_every_batch_without_overlap(images, each, count):
    order = torch.randperm(images, generator=torch.Generator().manual_seed(images))
    batch = each * count
    parts = [own_parts(order, batch, process(rank, count)) for rank in range(count)]
    assert len({len(own) for own in parts}) == 1, "as many steps"
    alone = own_parts(order, batch, process(0, 1))
    for number, together in enumerate(zip(*parts, strict=True)):
        assert len({len(part) for part in together}) == 1, "equal parts"
        drawn = torch.cat(together).tolist()
        assert len(drawn) == len(set(drawn))
        if len(alone[number]) == batch:
            assert set(drawn) == set(alone[number].tolist()), "the batch of one process"
    left_out = images - sum(len(part) for own in parts for part in own)
    assert left_out < max(2, count)


def test_a_batch_that_cannot_be_divided_is_one_line():
    check_divides(32, 4)
    with pytest.raises(RecipeError, match="32 images cannot be divided over 3 processes") as caught:
        check_divides(32, 3)
    assert "\n" not in str(caught.value)


def test_one_process_does_it_by_itself():
    assert shared(make_fabric("cpu"), lambda: 5) == 5


@pytest.fixture
def launched(monkeypatch):
    def launch(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return launch


def test_torchrun_says_which_process_this_is(launched):
    assert launched_as() == Launch(0, 1, 0, 1)
    launched(RANK=3)
    assert launched_as() == Launch(0, 1, 0, 1), "another program's variable"
    launched(WORLD_SIZE=4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2)
    assert launched_as() == Launch(3, 4, 1, 2)


def test_more_processes_than_gpus_is_one_line(launched, monkeypatch):
    launched(RANK=0, WORLD_SIZE=4, LOCAL_RANK=0, LOCAL_WORLD_SIZE=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(PneumoscopeError, match="4 processes were started on 2 GPUs; use --nproc-per-node 2"):
        make_fabric()


@pytest.mark.parametrize("local_rank", [0, 1])
def test_before_they_know_each_other_the_first_of_a_machine_reports(launched, local_rank):
    launched(RANK=local_rank, WORLD_SIZE=2, LOCAL_RANK=local_rank, LOCAL_WORLD_SIZE=2)
    with pytest.raises(OtherProcessError if local_rank else DataError), end_together():
        raise DataError("absent: no such folder")


@pytest.mark.parametrize(
    ("first", "raised", "expected"),
    [
        (True, DataError("a.png: damaged"), "a.png: damaged"),
        (True, RuntimeError("Connection closed by peer [127.0.0.1]"), "ended without a message"),
        (True, RuntimeError("a defect"), "a defect"),
        (False, RuntimeError("Connection closed by peer [127.0.0.1]"), "has failed"),
        (False, DataError("a.png: damaged"), "has failed"),
    ],
)
def test_one_process_reports(launched, monkeypatch, first, raised, expected):
    launched(RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2)
    monkeypatch.setattr(processes, "_is_first_to_fail", lambda: first)
    with pytest.raises((PneumoscopeError, RuntimeError), match=expected) as caught, end_together():
        raise raised
    assert isinstance(caught.value, OtherProcessError) is not first


def test_one_process_alone_reports_what_it_was():
    with pytest.raises(RuntimeError, match="closed by peer"), end_together():
        raise RuntimeError("closed by peer")


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    """See `two_processes.py`, which also compares normalisation over both with that of one."""
    script, result = Path(__file__).with_name("two_processes.py"), tmp_path / "found"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(result)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(result.with_suffix(f".{rank}").read_text()) for rank in (0, 1))
    assert (first["error"], second["error"]) == ("DataError", "OtherProcessError")
    assert first["shared"]
    assert first["restored"]
    assert {"1.weight", "1.running_var", "4.bias", "7.running_mean"} <= set(first["norms"])
    assert (first["parts"], second["parts"]) == (
        [[0, 2, 4, 6], [8, 10, 12, 14], [16]],
        [[1, 3, 5, 7], [9, 11, 13, 15], [17]],
    )
    assert first["read"] == first["pretrained"]
    assert first["random_pyramid"]
    assert first["expert"][0]
    if platform.libc_ver()[0] == "glibc":  # other C libraries are left as they are
        before, kept = first["cleared"]
        assert before > 20 * 64
        assert kept < before / 2
    for name in ("shared", "network", "random_pyramid", "restored", "pretrained", "read", "expert"):
        assert first[name] == second[name], name
