"""Devices by name, and waiting for them: what can be said without a GPU.

``FakeGpu`` stands where torch would talk to a driver. A whole step on torch's device without data
is in test_model_runner.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine import model_runner
from engine.config import EngineConfig
from engine.devices import CopyStream, free_bytes, host_memory, parse_device, wait_for_device
from engine.logit_edits import LogitEdits, edit_logits
from engine.model import LlamaModel
from engine.model_runner import ModelRunner, build_model_runner
from engine.sampler import SamplingRow
from engine.step import StepRow
from pdserve.errors import ConfigError
from pdserve.prepared import PreparedModel
from support.model_steps import StepDriver

PrepareTiny = Callable[..., PreparedModel]
MakeRunner = Callable[..., ModelRunner]
CUDA = torch.device("cuda", 1)
IDS = np.array([1, 5], np.int64)
EVERY_EDIT = LogitEdits(IDS, 1.5, IDS, IDS.astype(np.float32), IDS, IDS.astype(np.float32), IDS)


class FakeGpu:
    """Replaces the calls into the driver that engine/devices.py makes; ``calls`` in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, num_devices: int = 2) -> None:
        self.calls: list[str] = []
        cuda = {
            "device_count": lambda: num_devices,
            "mem_get_info": lambda device: (self._free(device), 80 << 30),
            "current_stream": lambda device: self._stream(f"{device} current"),
            "Stream": lambda device: self._stream(f"{device} own"),
            "stream": self._entered,
        }
        for name, stand_in in cuda.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def _free(self, device: torch.device) -> int:
        self.calls.append(f"free {device}")
        return 10 << 30

    def _stream(self, name: str) -> Any:
        return SimpleNamespace(name=name, synchronize=lambda: self.calls.append(f"wait {name}"))

    @contextmanager
    def _entered(self, stream: Any) -> Iterator[None]:
        self.calls.append(f"enter {stream.name}")
        yield


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


def test_names_of_devices(gpu: FakeGpu) -> None:
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device("cuda") == torch.device("cuda:0")
    assert parse_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("text", ["", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "meta"])
def test_other_names_are_refused_by_the_option(gpu: FakeGpu, text: str) -> None:
    with pytest.raises(ConfigError, match="^device: "):
        parse_device(text)


def test_absent_devices_are_refused_by_the_option(gpu: FakeGpu) -> None:
    with pytest.raises(ConfigError, match="^device: 'cuda:2' is not here: 2 GPUs"):
        parse_device("cuda:2")


def test_a_cpu_is_never_waited_for(gpu: FakeGpu) -> None:
    wait_for_device(torch.device("cpu"))
    with CopyStream(torch.device("cpu")).used():
        pass
    assert gpu.calls == []
    assert bytes(host_memory(3, torch.device("cpu"))) == bytes(3)


def test_a_device_is_waited_for(gpu: FakeGpu) -> None:
    wait_for_device(CUDA)
    assert free_bytes(CUDA) == 10 << 30
    assert gpu.calls == ["wait cuda:1 current", "free cuda:1"]


@pytest.mark.parametrize("fails", [False, True])
def test_copies_have_ended_when_their_stream_is_left(gpu: FakeGpu, fails: bool) -> None:
    try:
        with CopyStream(CUDA).used():
            assert gpu.calls == ["enter cuda:1 own"]
            if fails:
                raise RuntimeError("half of them")
    except RuntimeError:
        assert fails
    assert gpu.calls == ["enter cuda:1 own", "wait cuda:1 own"]


@pytest.mark.parametrize("memory_mib", [0.0, 1.0])
def test_the_pool_is_a_share_of_what_the_weights_leave_free(
    prepare_tiny: PrepareTiny, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, memory_mib: float
) -> None:
    prepared = prepare_tiny()
    made: dict[str, Any] = {}

    class Recorder:
        def __init__(self, prepared: PreparedModel, weights: object, **arguments: object) -> None:
            made.update(arguments)

        def warm_up(self) -> None:
            pass

    monkeypatch.setattr(model_runner, "ModelRunner", Recorder)
    monkeypatch.setattr(model_runner, "MAX_FULL_CONTEXTS", 10**9)
    config = EngineConfig(device="cuda:1", kv_memory_mib=memory_mib, threads=1)
    build_model_runner(config, prepared)
    block_bytes = 8192
    free = (10 << 30) - prepared.weights_path.stat().st_size
    wanted = memory_mib * 2**20 or 0.8 * free
    assert made["num_blocks"] == int(wanted // block_bytes)
    assert made["device"] == "cuda:1"


@pytest.mark.parametrize("native", ["off"])
async def test_every_step_waits_for_its_device_last(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that sample, that do not, and that raise: in the engine's thread, after the work."""
    runner = make_runner()
    driver = StepDriver(runner)
    events: list[str] = []
    forward, sample = LlamaModel.forward, model_runner.sample

    def noting_forward(model: LlamaModel, *args: Any) -> torch.Tensor:
        events.append("forward")
        return forward(model, *args)

    def noting_sample(logits: torch.Tensor, rows: list[SamplingRow]) -> Any:
        events.append("sample")
        if len(events) > 6:
            raise RuntimeError("out of memory")
        return sample(logits, rows)

    monkeypatch.setattr(LlamaModel, "forward", noting_forward)
    monkeypatch.setattr(model_runner, "sample", noting_sample)
    monkeypatch.setattr(model_runner, "wait_for_device", lambda device: events.append("wait"))
    sequence = driver.open(range(40))
    await driver.step([StepRow(sequence, 0, 32, samples=False)])
    assert events == ["forward", "wait"]
    await driver.step([StepRow(sequence, 32, 8, samples=True)])
    assert events[2:] == ["forward", "sample", "wait"]
    with pytest.raises(RuntimeError, match="out of memory"):
        await driver.decode([sequence])
    assert events[5:] == ["forward", "sample", "wait"]
    sequence.lease.release()


def test_edits_of_logits_stay_on_their_device() -> None:
    """On torch's device without data: an operation that mixes in the CPU raises."""
    line = torch.empty(32, device="meta")
    edit_logits(line, EVERY_EDIT)
    assert line.device == torch.device("meta")


def test_no_gpu_here_ends_the_build_before_any_weight_is_read(
    prepare_tiny: PrepareTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeGpu(monkeypatch, num_devices=0)
    monkeypatch.setattr(model_runner, "map_weights", lambda prepared: pytest.fail("read weights"))
    with pytest.raises(ConfigError, match="^device: 'cuda' is not here: 0 GPUs"):
        build_model_runner(EngineConfig(device="cuda"), prepare_tiny())
