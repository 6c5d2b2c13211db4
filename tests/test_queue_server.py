"""A queue server runs our plans from its queue, with the startup files of the profile."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from live_path import NO_PROXY, free_port, wait_for

PROFILE = Path(__file__).parents[1] / "profiles" / "profile_simulated"
REDIS = shutil.which("redis-server")
LOADED_S = 100  # the worker imports torch, and starts a Tiled server and the denoiser

pytestmark = pytest.mark.skipif(
    REDIS is None, reason="no redis-server, which the queue server needs: apt install redis-server"
)


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Manager:
    """A running `start-re-manager`, and what is said to it."""

    def __init__(self, address, log):
        self.address, self.log = address, log

    def ask(self, method, **params):
        with zmq.Context() as context, context.socket(zmq.REQ) as request:
            request.setsockopt(zmq.LINGER, 0)
            request.connect(self.address)
            request.send_json({"method": method, "params": params})
            assert request.poll(20_000), f"{method}: no answer; see {self.log}"
            reply = request.recv_json()
        assert reply.get("success", True), f"{method}: {reply['msg']}"
        return reply

    def is_in(self, state):
        return self.ask("status")["manager_state"] == state

    def add(self, name, *args, **kwargs):
        item = {"item_type": "plan", "name": name, "args": list(args), "kwargs": kwargs}
        self.ask("queue_item_add", item=item, user="tests", user_group="primary")


@pytest.fixture
def manager(tmp_path):
    profile = tmp_path / "profile_simulated"
    shutil.copytree(PROFILE, profile, ignore=shutil.ignore_patterns("log", "pid", "security"))
    settings = profile / "settings.yaml"
    settings.write_text(
        settings.read_text().replace("data_directory: null", f"data_directory: {tmp_path}/data")
    )
    redis_port, control, info = free_port(), free_port(), free_port()
    environment = {**os.environ, **NO_PROXY, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    program = Path(sys.executable).with_name("start-re-manager")
    log = tmp_path / "manager.log"

    def start(stack, command):
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path
        )
        stack.callback(process.wait, 20)
        stack.callback(process.terminate)

    with open(log, "w") as output, ExitStack() as stack:
        start(stack, [REDIS, "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""])
        wait_for(lambda: answers(redis_port), what="Redis")
        options = {
            "--startup-dir": profile / "startup",
            "--redis-addr": f"127.0.0.1:{redis_port}",
            "--zmq-control-addr": f"tcp://127.0.0.1:{control}",
            "--zmq-info-addr": f"tcp://127.0.0.1:{info}",
        }
        start(stack, [str(program), *(str(part) for item in options.items() for part in item)])
        wait_for(lambda: answers(control), LOADED_S, "the queue server")
        manager = Manager(f"tcp://127.0.0.1:{control}", log)
        wait_for(lambda: manager.is_in("idle"), LOADED_S, "an idle queue server")
        yield manager
        manager.ask("environment_destroy")
        wait_for(lambda: not manager.ask("status")["worker_environment_exists"], what="the end")


@pytest.mark.slow
def test_plans_run_from_the_queue(manager):
    manager.ask("environment_open")
    wait_for(lambda: manager.ask("status")["worker_environment_exists"], LOADED_S, "the worker")
    manager.add("denoised_scan", ["det"], "motor", -0.5, 0.5, num=3, denoised="denoised")
    manager.add(
        "adaptive_exposure_scan",
        *(["det"], "denoised", "satellite_1", "motor", -0.2, 0.2, 2),
        relative_error=0.5,
        max_frames=4,
        exposure_s=0.5,
    )
    manager.ask("queue_start")
    history = wait_for(lambda: ended(manager, 2), 60, "the end of two plans")
    assert [item["result"]["exit_status"] for item in history] == ["completed"] * 2, history
    scan, adaptive = (item["result"] for item in history)
    assert len(scan["run_uids"]) == len(adaptive["run_uids"]) == 1
    streams = manager.ask("function_execute", **lookup(scan["run_uids"][0]))
    task = streams["task_uid"]
    wait_for(lambda: manager.ask("task_status", task_uid=task)["status"] == "completed")
    result = manager.ask("task_result", task_uid=task)["result"]
    assert result["success"], result
    assert result["return_value"] == {"denoised": 3, "primary": 3, "signals": 3}


def lookup(uid):
    item = {"item_type": "function", "name": "denoised_events", "args": [uid]}
    return {"item": item, "user": "tests", "user_group": "primary"}


def ended(manager, number):
    """Return the history once so many plans have ended, or one of them has failed."""
    items = manager.ask("history_get")["items"]
    failed = any(item["result"]["exit_status"] != "completed" for item in items)
    return items if failed or len(items) == number else None
