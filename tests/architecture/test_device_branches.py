"""Every place where a CUDA device is told from a CPU, listed: nothing that no CPU runs may hide.

A place is a function (or a class or module body) that names ``torch.cuda``, compares a device's
``type``, or holds the word in a string. A new one is added here with what tests it, and to the
table in docs/gpu.md if it has never run on a GPU.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from support.source_tree import package_files, parse, relative

PLACES = {
    # The seam: what the rest of the engine asks instead of naming a device.
    "engine/devices.py parse_device",
    "engine/devices.py free_bytes",
    "engine/devices.py wait_for_device",
    "engine/devices.py CopyStream.__init__",
    "engine/devices.py CopyStream.used",
    "engine/devices.py host_memory",
    "engine/devices.py enter_device",
    "engine/devices.py has_paged_kernels",
    "engine/devices.py open_recorder",
    "engine/devices.py CudaRecorder.__init__",
    "engine/devices.py CudaRecorder.record",
    "engine/devices.py _CudaRecording.__init__",
    # Where memory lies and which kernels there are: each has a CPU side and another one.
    "engine/kv_cache.py KvCache.__init__",
    "engine/linear.py choose_kernel",
    "engine/model_choice.py open_step_model",
    "engine/model_choice.py check_native_support",
    "engine/model_runner.py ModelRunner.device",
    "engine/model_runner.py _num_blocks",
    "engine/sampler.py _best_ids",
    # The library's name for recording.
    "engine/flashinfer_attention.py FlashInferAttention.fixed_decode",
    # Options, messages and the choice of a device for each worker: all of it runs without a GPU.
    "engine/config.py EngineConfig",
    "engine/attention_choice.py _checked",
    "cluster/commands/compare.py run_compare",
    "cluster/commands/serve.py launcher_of",
    "cluster/compare/resources.py equal_setups",
    "cluster/config.py ServeConfig",
    "cluster/demo.py run_demo",
    "cluster/doctor.py _cores",
    "cluster/doctor.py _cuda",
    "cluster/host.py _count_cuda_devices",
    "cluster/onray/config.py module",
    "cluster/onray/placement.py _gpus",
    "cluster/plan.py ServicePlan.wants_cuda",
    "cluster/spec.py _own_devices",
    "cluster/spec.py _place_on_devices",
    "cluster/spec.py _take",
    "cluster/spec.py _there_are",
    "cluster/spec.py _too_few",
}


def test_the_places_are_those_listed() -> None:
    found = {f"{relative(path)} {name}" for path in package_files() for name in _places(path)}
    assert found - PLACES == set(), "new places that tell devices apart"
    assert PLACES - found == set(), "listed, but no longer there"


def test_a_place_is_found() -> None:
    source = """
class A:
    def one(self, device):
        "Says cuda, does nothing."
        return 1
    def two(self, device):
        return device.type == "x"
def three():
    return torch.cuda.device_count()
def four(device):
    def inner():
        return str(device).startswith("cuda:")
"""
    assert set(_named(ast.parse(source), "")) == {"A.two", "three", "four.inner"}


def _places(path: object) -> Iterator[str]:
    yield from _named(parse(path), "")  # type: ignore[arg-type]


def _named(node: ast.AST, name: str) -> Iterator[str]:
    """Names of the innermost functions or classes that hold a mark; "module" for the file."""
    documents = _docstring(node)
    for child in ast.iter_child_nodes(node):
        if child is documents:
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _named(child, f"{name}.{child.name}".lstrip("."))
            continue
        if _is_mark(child):
            yield name or "module"
        yield from _named(child, name)


def _docstring(node: ast.AST) -> ast.AST | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if is_text else None


def _is_mark(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "cuda" or "cuda" in node.attr.lower()
    if isinstance(node, ast.keyword):
        return "cuda" in (node.arg or "")
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and "cuda" in node.value.lower()
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(_is_device_type(side) for side in sides)
    return False


def _is_device_type(node: ast.AST) -> bool:
    """``device.type``, ``self._device.type``, ``x.device.type``."""
    if not isinstance(node, ast.Attribute) or node.attr != "type":
        return False
    owner = node.value
    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
    return name.endswith("device")
