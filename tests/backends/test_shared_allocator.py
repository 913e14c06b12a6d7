"""Each case in a process of its own: the allocator is registered once per process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_PRELUDE = """
import os, sys
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as C
from parallax.machine import trim_heap
from parallax.backends.ort import RuntimeOptions
from parallax.backends.ort import make_session
from parallax.model import SegmentModel
from parallax.backends.ort import _shared_allocator as shared

WIDE = 4 << 20  # 16 MiB per tensor

def model():
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Exp", ["a"], ["b"]),
             helper.make_node("Transpose", ["b"], ["c"], perm=[1, 0]), helper.make_node("Relu", ["c"], ["y"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [info("x", TensorProto.FLOAT, [2, None])],
                              [info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()

def segment(**options):
    part = SegmentModel(name="s", proto=model(), weights={}, weight_types={})
    return make_session(part, width=1, options=RuntimeOptions(log_severity_level=4, **options))

def run(session, width=WIDE // 2):
    x = np.full((2, width), -1, np.float32)
    (y,) = session.run(["y"], {"x": x}, None)
    assert y.shape == (width, 2) and np.allclose(y, np.e)

def anonymous_mib():
    trim_heap()  # what numpy freed is of no interest
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("RssAnon"))
"""


def in_a_process(text: str) -> str:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PRELUDE + text],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_segments_share_what_they_allocate_and_it_goes_back_when_asked() -> None:
    out = in_a_process("""
one, other, plain = segment(), segment(), onnxruntime.InferenceSession(model())
before = anonymous_mib()
run(one)
after_one = anonymous_mib()
run(other)
after_both = anonymous_mib()
assert shared.shrink_shared_allocator()
print(after_one - before, after_both - after_one, anonymous_mib() - before)
""")
    first, second, left = map(int, out.split())
    assert first >= 32, "the interior tensors of the first are kept for later"
    assert second < 8, "the second finds them"
    assert left < 8


def test_sessions_of_other_code_do_not_see_it() -> None:
    in_a_process("""
session = segment()
run(session)
options = onnxruntime.SessionOptions()
plain = onnxruntime.InferenceSession(model(), options)
try:
    print(options.get_session_config_entry("session.use_env_allocators"))
except RuntimeError:
    pass
else:
    raise SystemExit("set on a plain session")
run(plain._sess)
""")


def test_an_allocator_that_the_application_registered_first_does_no_harm() -> None:
    in_a_process("""
where = onnxruntime.OrtMemoryInfo("Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                                  onnxruntime.OrtMemType.DEFAULT)
onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg({"arena_extend_strategy": 0}))
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.use_env_allocators", "1")
theirs = onnxruntime.InferenceSession(model(), options)
run(theirs._sess)
run(segment())
run(theirs._sess)
run(onnxruntime.InferenceSession(model(), options)._sess)
assert shared.shrink_shared_allocator()
""")


@pytest.mark.parametrize("options", ['config=(("session.use_env_allocators", "0"),)', "enable_cpu_mem_arena=False"])
def test_a_caller_who_wants_none_gets_none(options: str) -> None:
    in_a_process(f"""
run(segment({options}))
assert shared._usable is None
assert not shared.shrink_shared_allocator()
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_one_of_its_own() -> None:
    out = in_a_process("""
import threading
session = segment()
over = False
def busy():
    while not over:
        run(session, 1000)  # allocates all the time, so that a fork is likely to find its lock taken
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(5):
    child = os.fork()
    if not child:
        assert shared._usable is None
        mine = segment()
        run(mine, 1000)
        assert shared.shrink_shared_allocator()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
over = True
for thread in threads:
    thread.join()
run(session)
assert shared.shrink_shared_allocator()
print("whole")
""")
    assert out.strip() == "whole"


def test_it_shrinks_while_runs_go_on() -> None:
    in_a_process("""
import threading
sessions = [segment() for _ in range(3)]
wrong = []
def work(session):
    try:
        for _ in range(200):
            run(session, 3000)
    except BaseException as error:
        wrong.append(error)
threads = [threading.Thread(target=work, args=(session,)) for session in sessions]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    shared.shrink_shared_allocator()
for thread in threads:
    thread.join()
assert not wrong, wrong
""")


@linux
def test_the_last_plan_to_go_takes_what_is_held_for_later_with_it() -> None:
    out = in_a_process(
        f"""
import gc, sys
import parallax
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.session._dropin import branches_model
branches = branches_model(4, 6).SerializeToString()
x = np.full((1 << 19, 4), 0.5, np.float32)
def used():
    session = parallax.InferenceSession(branches, policy="adaptive", min_gain=0, threads=2)
    assert len(session.plan.segments) > 1
    session.run(None, {{"x": x}})
    return session
one, other = used(), used()
del one
gc.collect()
while_one_lives, users = anonymous_mib(), len(shared._users)
del other
gc.collect()
left = anonymous_mib()
assert shared.shrink_shared_allocator()
print(users, len(shared._users), while_one_lives - left, left - anonymous_mib())
"""
    )
    users, users_left, given_back, left = map(int, out.split())
    assert (users, users_left) == (1, 0)
    assert given_back >= 8, "the arena of the last, and what lay unused in the allocator"
    assert left < 4
