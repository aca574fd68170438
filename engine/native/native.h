/* The native step: what Python hands over and what it may call.
 *
 * One library is built for each element type: with ELEM_BF16 activations, weights and KV are
 * bfloat16, else float32. Sums, norms, softmax, rotation and the residual stream are float32 in
 * both. The mirror of these structs is engine/native/library.py; a change here is a change there.
 *
 * Not covered: float16, adapters, sliding windows, more than one device.
 */
#ifndef PDSERVE_NATIVE_H
#define PDSERVE_NATIVE_H

#include <stdint.h>

#ifdef ELEM_BF16
typedef uint16_t elem; /* bfloat16 bits */
#else
typedef float elem;
#endif

/* A weight [outputs, inputs] packed by pd_pack (panels.h describes the layout), or by pd_pack_int8
 * (int8_panels.h). */
typedef struct {
    const void *panels;
    int64_t outputs;
    int64_t inputs;
    int64_t is_int8;
} Linear;

typedef struct {
    Linear qkv, o, gate_up, down;
    const float *input_norm, *post_norm; /* [padded hidden] */
    const float *qkv_bias;               /* [(heads + 2 kv_heads) * head_dim] or NULL */
    const float *q_norm, *k_norm;        /* [head_dim] or NULL: RMSNorm of each head before rope */
} Layer;

typedef struct {
    int64_t hidden, intermediate, num_layers, num_heads, num_kv_heads, head_dim, vocab;
    int64_t block_size;
    float rms_norm_eps, score_scale;
    const Layer *layers;
    Linear lm_head;
    const float *norm;             /* [padded hidden] */
    const elem *embed;             /* [vocab, hidden], or NULL and instead of it: */
    const int8_t *embed_values;    /* [vocab, hidden] */
    const uint16_t *embed_scales;  /* [vocab, hidden / 32] float16 */
    const float *cos, *signed_sin; /* [positions, head_dim], as engine/rope.py makes them */
    elem *kv;                      /* [blocks, layers, 2, kv_heads, block_size, head_dim] */
} Model;

/* One step: rows of tokens, each a run of one sequence (engine/step.py's StepRow). */
typedef struct {
    int64_t num_tokens, num_rows, num_sampled;
    const int32_t *token_ids; /* [num_tokens], row by row */
    const int32_t *first;     /* [num_rows] index of the row's first token */
    const int32_t *start;     /* [num_rows] position of that token in its sequence */
    const int32_t *count;     /* [num_rows] */
    const int32_t *tables;    /* block ids of all rows, one after the other */
    const int32_t *table_of;  /* [num_rows] where a row's ids begin in `tables` */
    const int32_t *sampled;   /* [num_sampled] tokens whose logits are wanted */
    float *logits;            /* [num_sampled, vocab] */
    int32_t *best;            /* [num_sampled] id of the highest logit, the lowest among equals */
} Step;

enum { PHASE_NORM, PHASE_QKV, PHASE_ROPE, PHASE_ATTENTION, PHASE_O, PHASE_GATE_UP, PHASE_DOWN,
       PHASE_LM_HEAD, NUM_PHASES };

typedef struct Engine Engine;

/* Outputs in a panel: what the layout of packed weights depends on besides the element. */
int64_t pd_panel_width(void);

/* Words (of 4 bytes) that pd_pack writes for a weight of this shape. */
int64_t pd_packed_words(int64_t outputs, int64_t inputs);

/* Pack a row-major weight. With is_gated the first half of the outputs is the gate, the second the
 * value that silu(gate) multiplies; they are interleaved so that one panel holds both. */
void pd_pack(const elem *weight, int64_t outputs, int64_t inputs, int is_gated, void *panels);

/* The same for int8 values [outputs, inputs] with float16 scales [outputs, inputs / 32]. */
int64_t pd_packed_int8_words(int64_t outputs, int64_t inputs);
void pd_pack_int8(const int8_t *values, const uint16_t *scales, int64_t outputs, int64_t inputs,
                  int is_gated, void *panels);

/* out [rows, outputs] = x [rows, inputs] times the weight, for checks. 0, or -1: no memory. */
int pd_multiply(const Linear *linear, const elem *x, int64_t rows, float *out);

/* Starts num_threads - 1 threads. The model is copied, what it points to is not. NULL: no memory
 * or no threads. One step at a time; pd_close once. */
Engine *pd_open(const Model *model, int num_threads);
void pd_close(Engine *engine);

/* Compute a step, write its KV and its logits. 0, or -1: no memory for scratch (nothing written). */
int pd_forward(Engine *engine, const Step *step);

/* Seconds spent in each phase since the last call, as the first thread saw them, waits included. */
void pd_phase_seconds(Engine *engine, double seconds[NUM_PHASES]);

/* What the code was compiled for, e.g. "avx512-bf16". */
const char *pd_instructions(void);

#endif
