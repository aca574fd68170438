"""A peer for tests of the benchmark: answers as benchmarks/peers/turns.py says, at set speeds.

Settings name nothing of a model: "threads" tokens/ms in every cell, "dtype" the text it gives.
"""

from __future__ import annotations

import json
import sys

from benchmarks.peers.turns import end_with_parent


def main() -> None:
    end_with_parent()
    settings = json.loads(sys.argv[1])
    if settings["dtype"] == "dies":
        sys.exit("out of luck")
    rate = 1000.0 * settings["threads"]
    print(json.dumps({"ready": f"stand-in {settings['threads']}"}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_answer(asked, rate, settings["dtype"])), flush=True)


def _answer(asked: dict[str, object], rate: float, text: str) -> dict[str, object]:
    match asked["kind"]:
        case "text":
            return {"ids": [len(text)] * 8}
        case "prefill":
            return {"seconds": float(str(asked["tokens"])) / rate}
        case "decode":
            return {"seconds": int(str(asked["batch"])) * int(str(asked["steps"])) / rate}
        case _:
            return {"heard": asked["kind"]}


if __name__ == "__main__":
    main()
