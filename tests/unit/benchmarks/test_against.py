"""The benchmark beside peers: floors as computed by hand elsewhere, turns, and peers that fail."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.against import CELLS, Cell, parse_against
from benchmarks.contestant import Contestant
from benchmarks.limits import decode_floor, number_options, prefill_floor
from support.source_tree import ROOT

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_layers": 30,
    "num_heads": 9, "num_kv_heads": 3, "head_dim": 64,
}  # fmt: skip


@pytest.mark.parametrize(("tokens", "floor"), [(128, 1786), (512, 1686), (2048, 1370)])
def test_prefill_floors_of_smollm2_at_388_gflops(tokens: int, floor: float) -> None:
    assert prefill_floor(SMOLLM2, tokens, 388e9) == pytest.approx(floor, rel=0.005)


@pytest.mark.parametrize(
    ("dtype", "rate", "batch", "context", "floor"),
    [
        ("bfloat16", 388e9, 1, 128, 111), ("bfloat16", 388e9, 1, 1024, 103),
        ("bfloat16", 388e9, 8, 128, 826), ("float32", 194e9, 1, 128, 55.5),
        ("float32", 194e9, 8, 128, 413), ("float32", 194e9, 32, 128, 721),
    ],
)  # fmt: skip
def test_decode_floors_of_smollm2_at_30_gb_a_second(
    dtype: str, rate: float, batch: int, context: int, floor: float
) -> None:
    found = decode_floor(SMOLLM2, batch, context, dtype, operations_per_s=rate, bytes_per_s=30.2e9)
    assert found == pytest.approx(floor, rel=0.04)  # theirs leaves attention out of the products


def start(folder: Path, threads: int, dtype: str = "bfloat16") -> Contestant:
    settings = {"threads": threads, "dtype": dtype}
    module = "tests.support.stand_in_peer"
    return Contestant("stand-in", sys.executable, module, settings, folder / f"{threads}.log")


def state(contestant: Contestant) -> str:
    """As the kernel tells it: T is stopped."""
    stat = Path(f"/proc/{contestant.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def test_a_contestant_answers_and_is_stopped_between_its_turns(tmp_path: Path) -> None:
    with closing(start(tmp_path, 2)) as two, closing(start(tmp_path, 1)) as one:
        assert two.name == "stand-in 2"
        for _ in range(2):
            rates = [[cell.rate(peer, 4) for peer in (two, one)] for cell in CELLS]
            assert rates == [[pytest.approx(2000), pytest.approx(1000)]] * len(CELLS)
            assert one.ask("phases") == {"heard": "phases"}
        assert (state(two), state(one)) == ("T", "T")


def test_a_stopped_contestant_ends_with_whoever_started_it(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib; from benchmarks.contestant import Contestant;"
        "settings = {'threads': 1, 'dtype': 'bfloat16'}; log = pathlib.Path(sys.argv[1]);"
        "peer = Contestant('p', sys.executable, 'tests.support.stand_in_peer', settings, log);"
        "print(peer.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False).stdout
    try:
        descriptor = os.pidfd_open(int(told))
    except ProcessLookupError:
        return  # gone already
    with closing(os.fdopen(descriptor)):
        assert select.select([descriptor], [], [], 30)[0], "it lives on"


def test_a_contestant_that_dies_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="out of luck"):
        start(tmp_path, 1, "dies")


def test_names_of_cells() -> None:
    assert Cell("prefill", 2048).name == "prefill 2,048"
    assert Cell("decode", 1024, 8).name == "decode b=8 at 1,024"


def test_peers_are_named_with_their_python() -> None:
    assert parse_against("llama-cpp=/a/python,transformers") == {
        "llama-cpp": "/a/python",
        "transformers": sys.executable,
    }


@pytest.mark.parametrize("text", ["nobody=/a", "pdserve=/a", "llama-cpp=/a,,vllm=/b"])
def test_an_unknown_peer_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="none of llama-cpp, vllm, vllm-compiled, transformers"):
        parse_against(text)


def test_int8_weights_are_read_as_such_and_kv_as_bfloat16() -> None:
    """Nothing but reading: without context 34 bytes for 32 weights, and the same KV with one."""
    rates = {"operations_per_s": 1e18, "bytes_per_s": 30.2e9}

    def seconds(dtype: str, context: int) -> float:
        return 1 / decode_floor(SMOLLM2, 1, context, dtype, **rates)

    assert seconds("int8", 0) == pytest.approx(seconds("bfloat16", 0) * 34 / 64)
    kv_s = seconds("bfloat16", 1000) - seconds("bfloat16", 0)
    assert seconds("int8", 1000) - seconds("int8", 0) == pytest.approx(kv_s)
    assert number_options("int8") == {"dtype": "bfloat16", "weights": "int8"}
    assert number_options("float32") == {"dtype": "float32"}
