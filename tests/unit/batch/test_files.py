"""Input and output of a batch: what is done stays, what is half written goes, nothing is mixed."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path

import pytest

from cluster.batch.files import BatchFileError, BatchOutput, check_input, read_input
from cluster.batch.lines import BatchLine, LineResult, RefusedLine, decode_result, encode_result
from pdserve.errors import InvalidRequest, PeerUnreachable


def request(custom_id: str) -> str:
    return json.dumps({"custom_id": custom_id, "url": "/v1/completions", "body": {"prompt": "x"}})


def written(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("\n".join(lines) + end)
    return path


def answered(number: int, custom_id: str) -> LineResult:
    return LineResult(number, custom_id, 200, "r", {"n": number})


def results_in(path: Path) -> list[LineResult]:
    return [decode_result(raw) for raw in path.read_bytes().splitlines(keepends=True)]


def test_lines_are_numbered_as_in_the_file_and_blank_ones_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "in", request("a"), "", "  ", request("b"), "{", end="")
    found = read_input(path, {})
    assert found.num_lines == 3
    lines = list(found.lines())
    assert [line.number for line in lines] == [1, 4, 5]
    assert [line.custom_id for line in lines] == ["a", "b", None]


def test_a_custom_id_that_is_there_twice_is_refused_the_second_time(tmp_path: Path) -> None:
    path = written(tmp_path / "in", request("a"), request("b"), request("a"), request("a"))
    first, second, *others = read_input(path, {}).lines()
    assert isinstance(first, BatchLine)
    assert isinstance(second, BatchLine)
    for line in others:
        assert isinstance(line, RefusedLine)
        assert "line 1 has 'a' already" in str(line.error)


def test_an_input_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(BatchFileError, match="No such file"):
        check_input(tmp_path / "in")
    with pytest.raises(BatchFileError, match="holds no requests"):
        read_input(written(tmp_path / "in", "", ""), {})


def test_results_of_another_input_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    path = written(tmp_path / "in", request("a"), request("b"))
    assert read_input(path, {2: "b"}).num_lines == 2
    with pytest.raises(BatchFileError, match="line 2 is 'b'.*another input"):
        read_input(path, {2: "c"})
    with pytest.raises(BatchFileError, match="no line 9"):
        read_input(path, {1: "a", 9: "z"})


def test_an_output_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with BatchOutput.open(path) as output:
        assert output.done == {}
        output.write(answered(2, "b"))
        output.write(LineResult.of_error(3, None, InvalidRequest("line", "bad")))
    with BatchOutput.open(path) as output:
        assert output.done == {2: "b", 3: None}
        output.write(answered(1, "a"))
    assert [result.number for result in results_in(path)] == [2, 3, 1]


@pytest.mark.parametrize("num_bytes", [1, 20, -1])
def test_half_a_last_line_is_cut_off(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "out"
    whole = encode_result(answered(1, "a"))
    path.write_bytes(whole + encode_result(answered(2, "b"))[:num_bytes])
    with BatchOutput.open(path) as output:
        assert output.done == {1: "a"}
        assert path.read_bytes() == whole
        output.write(answered(3, "c"))
    assert [result.number for result in results_in(path)] == [1, 3]


def test_failures_of_the_service_are_taken_out_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    refused = LineResult(3, "c", 400, "r", {"error": {"code": "invalid_request"}})
    with BatchOutput.open(path) as output:
        output.write(answered(1, "a"))
        output.write(LineResult.of_error(2, "b", PeerUnreachable("gone")))
        output.write(refused)
        output.write(LineResult(4, "d", 503, "r", {"error": {"code": "no_workers"}}))
    with BatchOutput.open(path) as output:
        assert output.done == {1: "a", 3: "c"}
        assert results_in(path) == [answered(1, "a"), refused]
        output.write(answered(2, "b"))
    assert [result.number for result in results_in(path)] == [1, 3, 2]
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_result_that_is_there_twice_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(encode_result(answered(1, "a")) * 2 + encode_result(answered(2, "b")))
    BatchOutput.open(path).close()
    assert [result.number for result in results_in(path)] == [1, 2]


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "out", request("a"))
    before = path.read_bytes()
    with pytest.raises(BatchFileError, match="line 1 is no result"):
        BatchOutput.open(path)
    assert path.read_bytes() == before


def test_two_batches_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with BatchOutput.open(path), pytest.raises(BatchFileError, match="another batch writes it"):
        BatchOutput.open(path)
    BatchOutput.open(path).close()


def test_the_lock_goes_over_to_a_file_that_was_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(encode_result(LineResult.of_error(1, "a", PeerUnreachable("gone"))))
    with BatchOutput.open(path), pytest.raises(BatchFileError, match="another batch writes it"):
        BatchOutput.open(path)


def test_an_output_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(BatchFileError, match="No such file"):
        BatchOutput.open(tmp_path / "nowhere" / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_is_told() -> None:
    full = Path("/dev/full")
    with FileIO(full, "r+") as file, pytest.raises(BatchFileError, match="No space left"):
        BatchOutput(full, file, {}).write(answered(1, "a"))
