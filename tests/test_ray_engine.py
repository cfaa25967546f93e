"""Cells on a real Ray cluster of several nodes on this machine, one of which is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install '.[ray]'")

pytestmark = pytest.mark.slow
STAB = Path(sys.executable).parent / "stab"
SETTINGS = [
    *("compare", "--task", "cliff", "--stabilizers", "ema,weight_decay,dropout", "--seeds", "3"),
    *("train.updates=2400", "eval.checkpoint_every=120", "eval.starts=4"),
]


# By default Ray takes a silent node for dead after 15 seconds, in which a fast machine has finished everything.
PULSE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 5,
}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": PULSE}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


def start(run, *more):
    command = [str(STAB), *SETTINGS, "--out", str(run), *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )


def finished(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def cells(run):
    return {path.name: path.read_bytes() for path in sorted((run / "cells").glob("*.json"))}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    run = tmp_path_factory.mktemp("local") / "run"
    finished(start(run))
    return cells(run)


def test_a_lost_nodes_cells_run_again_elsewhere_and_the_rows_are_those_of_this_machine(
    cluster, local, tmp_path
):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    process = start(tmp_path / "run", "--engine", "ray", "--address", cluster.address)
    deadline = time.monotonic() + 240
    while (
        len(cells(tmp_path / "run")) < 1 and time.monotonic() < deadline and process.poll() is None
    ):
        time.sleep(0.1)
    assert 1 <= len(cells(tmp_path / "run")) < 9  # in the middle: all three nodes are at work
    cluster.remove_node(nodes[0], allow_graceful=False)
    _, err = finished(process)
    print(err)
    assert "Ray: 3 nodes, 3 cores" in err
    assert "now on Ray: 2 nodes, 2 cores" in err
    assert cells(tmp_path / "run") == local
    assert not (tmp_path / "run" / "parts").exists()
    assert len(list((tmp_path / "run" / "weights").iterdir())) == 4 * 3
    cluster.remove_node(nodes[1])


def test_what_was_interrupted_here_goes_on_there(cluster, local, tmp_path):
    process = start(tmp_path / "run")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("parts/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert len(cells(tmp_path / "run")) < 9
    finished(start(tmp_path / "run", "--engine", "ray", "--address", cluster.address, "--resume"))
    assert cells(tmp_path / "run") == local


def test_a_ray_of_its_own(local, tmp_path):
    _, err = finished(start(tmp_path / "run", "--engine", "ray", "--workers", "2"))
    assert "Ray: 1 node, 2 cores" in err
    assert cells(tmp_path / "run") == local


def test_a_cell_that_raises_is_an_entry_with_its_reason(cluster, tmp_path):
    _, err = finished(
        start(
            tmp_path / "run",
            "--engine",
            "ray",
            "--address",
            cluster.address,
            "train.lr=1e30",
            "train.optimizer=SGD",
        ),
        1,
    )
    assert err.count("training diverged: loss is") == 9
    assert cells(tmp_path / "run") == {}


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "nowhere", "host.invalid:6379", "127.0.0.1:99999"]
)
def test_no_cluster_at_the_address(tmp_path, address):
    out, err = finished(start(tmp_path / "run", "--engine", "ray", "--address", address), 2)
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith(f"stab: no Ray cluster at {address}: ")
    assert not (tmp_path / "run").exists()
