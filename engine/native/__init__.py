"""C kernels of the whole step for x86-64 CPUs, compiled on first use; the plain twin is torch.

native.h is the interface, forward.c the way of a step. From Python: compiler.py builds the
library, library.py describes it, packed_weights.py shares the packed weights of a host,
native_steps.py runs steps. Which of the two engines computes is engine/step_models.py's choice.
"""
