"""Options that more than one class has: one definition each, used as the annotation of a field.

    dtype: Dtype = DEFAULT_DTYPE

Options of one class alone are defined in that class.
"""

from __future__ import annotations

from typing import Annotated

from pdserve.config import Option

DEFAULT_MODEL = "smollm2"
DEFAULT_DTYPE = "float32"
DEFAULT_WEIGHTS = "full"
DEFAULT_ROUTERS = ("127.0.0.1:9100",)
DEFAULT_GRPC_TARGET = "127.0.0.1:9000"

# In [engine] these five are every role's: the router serves the model that the workers compute.
Model = Annotated[
    str,
    Option(
        "model: 'smollm2', a Hugging Face folder or hub id, a GGUF file or a prepared folder",
        table="engine",
    ),
]
ServedModelName = Annotated[
    str, Option("name clients use for the model; empty: the model's own", table="engine")
]
Engine = Annotated[
    str,
    Option(
        "model: the real one; fake: checks every byte of KV, for tests; simulated: only takes time,"
        " for loads and plans",
        choices=("model", "fake", "simulated"),
        table="engine",
    ),
]
Dtype = Annotated[
    str,
    Option(
        "type of weights, activations and KV",
        choices=("float32", "bfloat16", "float16"),
        table="engine",
    ),
]
Weights = Annotated[
    str,
    Option(
        "weights in 'dtype', or matrices as int8 in blocks of 32 with a scale (Q8_0's form)",
        choices=("full", "int8"),
        table="engine",
    ),
]

# Both worker roles.
WorkerName = Annotated[str, Option("name of this worker; empty: made from role and host")]
Routers = Annotated[tuple[str, ...], Option("worker port of a router, host:port; may be repeated")]

# Commands that talk to a running service.
GrpcTarget = Annotated[str, Option("address of the gRPC face, host:port")]
Json = Annotated[bool, Option("print JSON", private=True)]
