"""The child process runner: answers, crashes, limits, interrupts."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from opfuse import child
from opfuse.errors import EngineError, InputError, TimeLimit

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The child takes sys.path from the parent, so it can import the functions below."""
    monkeypatch.syspath_prepend(str(HERE))


def call(name, *args, **options):
    return child.run(f"test_child:{name}", args, **options)


def add(a, b):
    return a + b


def refuse():
    raise InputError("the tensor is wrong", "mend it")


def stumble():
    raise ZeroDivisionError("no foresight")


def die(number):
    os.kill(os.getpid(), number)
    time.sleep(10)


def leave():
    print("last words", flush=True)
    os._exit(7)


def deep(levels):
    """Burn about 200 bytes of C stack a level: qsort's comparison calls qsort again."""
    libc = ctypes.CDLL(None)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    state = {"left": levels}

    def again(a, b):
        state["left"] -= 1
        if state["left"] > 0:
            libc.qsort((ctypes.c_int * 2)(2, 1), 2, 4, callback)
        return 0

    sys.setrecursionlimit(10 * levels)
    callback = compare(again)
    libc.qsort((ctypes.c_int * 2)(2, 1), 2, 4, callback)
    return state["left"]


def limits():
    return resource.getrlimit(resource.RLIMIT_STACK)[0], resource.getrlimit(resource.RLIMIT_CORE)


def report(count):
    threads = [threading.Thread(target=child.emit, args=({"step": i},)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count


def sleep_with_grandchild(pid_file):
    grandchild = subprocess.Popen(["sleep", "60"])
    Path(pid_file).write_text(f"{os.getpid()} {grandchild.pid}")
    time.sleep(60)


def echo_noise():
    os.write(2, b"from C\n")
    return "done"


def big(size):
    return b"x" * size


def path_and_environment(name):
    return sys.path, os.environ[name]


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return value


def test_returns_what_the_function_returns():
    assert call("add", 2, 3) == 5


def test_large_arguments_and_results_pass():
    assert len(call("add", b"y" * 10_000_000, b"z")) == 10_000_001
    assert len(call("big", 5_000_000)) == 5_000_000


def test_foreseen_errors_keep_their_class_and_fix():
    with pytest.raises(InputError) as caught:
        call("refuse")
    assert (caught.value.what, caught.value.fix) == ("the tensor is wrong", "mend it")


def test_a_bug_keeps_the_childs_traceback():
    with pytest.raises(child.ChildBug, match=r"in stumble(.|\n)*ZeroDivisionError: no foresight"):
        call("stumble")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGTERM])
def test_death_by_signal_names_the_signal(number):
    with pytest.raises(EngineError, match=f"TensorRT's build was killed by {number.name}"):
        call("die", int(number), task="TensorRT's build")


def test_sigkill_hints_at_memory():
    with pytest.raises(EngineError, match=r"SIGKILL.*out of memory"):
        call("die", int(signal.SIGKILL))


def test_exit_without_an_answer_shows_the_last_output():
    with pytest.raises(EngineError, match=r"exit code 7(.|\n)*last words"):
        call("leave")


def test_the_main_thread_gets_a_large_stack_and_no_core_file():
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    wanted = child.STACK_BYTES
    stack = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    assert call("limits") == (stack, (0, 0))


def test_a_small_stack_overflows_where_the_default_holds():
    assert call("deep", 20_000) == 0
    with pytest.raises(EngineError, match="SIGSEGV"):
        call("deep", 20_000, stack_bytes=1 << 20)


def test_events_of_many_threads_arrive_whole():
    steps = []
    assert call("report", 50, on_event=lambda event: steps.append(event["step"])) == 50
    assert sorted(steps) == list(range(50))


def test_output_is_captured_and_can_be_followed(capfd):
    heard = []
    assert call("echo_noise", on_output=heard.append) == "done"
    assert "".join(heard) == "from C\n"
    assert capfd.readouterr() == ("", "")


def test_the_child_has_the_parents_path_and_the_variables_given():
    path, value = call("path_and_environment", "OPFUSE_TEST", env={"OPFUSE_TEST": "set"})
    assert path == sys.path
    assert value == "set"


def test_time_limit_kills_the_whole_group(tmp_path):
    pid_file = tmp_path / "pids"
    began = time.monotonic()
    with pytest.raises(TimeLimit, match=r"1\.5 s"):
        call("sleep_with_grandchild", str(pid_file), time_limit=1.5)
    assert time.monotonic() - began < 2.5
    pids = [int(pid) for pid in pid_file.read_text().split()]
    assert wait_for(lambda: not any(map(alive, pids)))


def test_a_raising_callback_kills_the_child():
    def refuse_event(event):
        raise InputError("enough")

    before = psutil.Process().children()
    with pytest.raises(InputError, match="enough"):
        call("report", 3, on_event=refuse_event)
    assert psutil.Process().children() == before


PARENT = """
import sys
sys.path.insert(0, {here!r})
from opfuse import child
child.run("test_child:sleep_with_grandchild", [{pids!r}])
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_interrupting_the_parent_ends_everything_at_once(tmp_path, number, code):
    parent, pids = start_parent(tmp_path)
    began = time.monotonic()
    parent.send_signal(number)
    assert parent.wait(5) == code
    assert time.monotonic() - began < 1.0
    assert wait_for(lambda: not any(map(alive, pids)))


def test_killing_the_parent_takes_the_child_along(tmp_path):
    parent, pids = start_parent(tmp_path)
    parent.kill()
    parent.wait(5)
    assert wait_for(lambda: not alive(pids[0]))
    os.kill(pids[1], signal.SIGKILL)


def start_parent(tmp_path):
    pid_file = tmp_path / "pids"
    program = PARENT.format(here=str(HERE), pids=str(pid_file))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL
    )
    text = wait_for(lambda: pid_file.exists() and pid_file.read_text())
    return parent, [int(pid) for pid in text.split()]


def test_the_working_directory_lends_no_modules(tmp_path, monkeypatch):
    for name in ("resource", "ctypes", "pickle"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert child.run("os:getcwd") == str(tmp_path)
