/* See attention.h. */
#include "attention.h"

#include <math.h>
#include <string.h>

#define KEY_PANELS (KEY_TILE / PANEL)

INLINE int64_t padded_dim(int64_t head_dim) { return panels_of(head_dim) * PANEL; }
INLINE int64_t weights_stride(void) { return operand_stride(KEY_TILE); }

static int64_t aligned(int64_t bytes) { return round_up(bytes, 64); }

/* Sizes in the order of the fields of AttentionScratch. */
static void scratch_sizes(int64_t rows, int64_t head_dim, int64_t sizes[8]) {
    sizes[0] = aligned(KEY_PANELS * words_of(head_dim) * PANEL * 4);
    sizes[1] = aligned(padded_dim(head_dim) * words_of(KEY_TILE) * 4);
    sizes[2] = aligned(rows * operand_stride(head_dim) * (int64_t)sizeof(elem));
    sizes[3] = aligned(rows * weights_stride() * (int64_t)sizeof(elem));
    sizes[4] = aligned(rows * KEY_TILE * 4);
    sizes[5] = aligned(rows * padded_dim(head_dim) * 4);
    sizes[6] = sizes[7] = aligned(rows * 4);
}

int64_t attention_scratch_bytes(int64_t rows, int64_t head_dim) {
    int64_t sizes[8], total = 0;
    scratch_sizes(rows, head_dim, sizes);
    for (int i = 0; i < 8; i++) total += sizes[i];
    return total;
}

AttentionScratch attention_scratch(void *memory, int64_t rows, int64_t head_dim) {
    int64_t sizes[8];
    void *parts[8];
    scratch_sizes(rows, head_dim, sizes);
    memset(memory, 0, (size_t)attention_scratch_bytes(rows, head_dim));
    for (int i = 0; i < 8; i++) {
        parts[i] = memory;
        memory = (char *)memory + sizes[i];
    }
    return (AttentionScratch){parts[0], parts[1], parts[2], parts[3],
                              parts[4], parts[5], parts[6], parts[7]};
}

#define MAX_FAST_DIM 1024
#if LANES == 16
static const elem zeros[MAX_FAST_DIM]; /* stands where there is no key */
#endif

/* Rows of keys or values at the positions tile .. tile + KEY_TILE; those from num_keys on are zero. */
static void tile_rows(const PagedKv *kv, const elem *base, int64_t tile, int64_t num_keys,
                      const elem *rows[KEY_TILE]) {
    int64_t block = tile / kv->block_size, slot = tile % kv->block_size;
    for (int64_t j = 0; j < KEY_TILE; j++) {
        rows[j] = j >= num_keys ? NULL : base + kv->table[block] * kv->block_stride + slot * kv->head_dim;
        if (++slot == kv->block_size) {
            slot = 0;
            block++;
        }
    }
}

#if LANES == 16
/* The transpose of 16 x 16 words: in rows[i] word j -> out[j] word i. */
INLINE void transpose(const void *const rows[16], uint32_t *out, int64_t out_stride) {
    __m512i a[16], b[16];
    UNROLL for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(rows[i]);
    UNROLL for (int i = 0; i < 8; i++) {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 8] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(out + i * out_stride, _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88));
        _mm512_storeu_si512(out + (i + 8) * out_stride, _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd));
        _mm512_storeu_si512(out + (i + 4) * out_stride, _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88));
        _mm512_storeu_si512(out + (i + 12) * out_stride, _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd));
    }
}
#endif

/* Keys as a weight with KEY_TILE outputs and head_dim inputs. */
static void pack_keys(const PagedKv *kv, const elem *rows[KEY_TILE], int64_t num_keys, void *panels) {
    const int64_t num_words = words_of(kv->head_dim);
    for (int64_t j = 0; j < round_up(num_keys, PANEL); j += LANES) {
        uint32_t *panel = (uint32_t *)panels + j / PANEL * num_words * PANEL + j % PANEL;
        int64_t word = 0;
#if LANES == 16
        for (; word + 16 <= num_words && kv->head_dim <= MAX_FAST_DIM; word += 16) {
            const void *at[16];
            for (int lane = 0; lane < 16; lane++)
                at[lane] = (const uint32_t *)(rows[j + lane] ? rows[j + lane] : zeros) + word;
            transpose(at, panel + word * PANEL, PANEL);
        }
#endif
        for (; word < num_words; word++)
            for (int lane = 0; lane < LANES; lane++) {
                elem pair[PER_WORD] = {0};
                for (int i = 0; i < PER_WORD; i++) {
                    const int64_t k = word * PER_WORD + i;
                    if (rows[j + lane] && k < kv->head_dim) pair[i] = rows[j + lane][k];
                }
                memcpy(panel + word * PANEL + lane, pair, 4);
            }
    }
}

/* Values as a weight with head_dim outputs and KEY_TILE inputs. */
static void pack_values(const PagedKv *kv, const elem *rows[KEY_TILE], int64_t num_keys, void *panels) {
    const int64_t num_words = words_of(KEY_TILE), used = words_of(num_keys), dim = kv->head_dim;
    for (int64_t word = 0; word < used; word++) {
        elem *out = (elem *)panels + word * PANEL * PER_WORD;
        const elem *first = rows[word * PER_WORD];
#ifdef ELEM_BF16
        const elem *second = rows[word * 2 + 1];
        for (int64_t p = 0; p * PANEL < dim; p++) {
            const int64_t width = dim - p * PANEL < PANEL ? dim - p * PANEL : PANEL;
            elem *pairs = out + p * num_words * PANEL * 2;
            int64_t i = 0;
            for (; i + LANES <= width && second; i += LANES)
                vi_store(pairs + 2 * i, vi_pairs(first + p * PANEL + i, second + p * PANEL + i));
            for (; i < width; i++) {
                pairs[2 * i] = first[p * PANEL + i];
                pairs[2 * i + 1] = second ? second[p * PANEL + i] : 0;
            }
        }
#else
        for (int64_t p = 0; p * PANEL < dim; p++) {
            const int64_t width = dim - p * PANEL < PANEL ? dim - p * PANEL : PANEL;
            memcpy(out + p * num_words * PANEL, first + p * PANEL, (size_t)width * 4);
        }
#endif
    }
}

/* Scores of one row become weights; the row's running maximum, total and sums follow. */
static void soften(const AttentionScratch *s, int64_t row, int64_t num_visible, float scale, int64_t dim) {
    float *scores = s->scores + row * KEY_TILE;
    elem *weights = s->weights + row * weights_stride();
    vf x[KEY_TILE / LANES], largest = vf_set(-INFINITY);
    UNROLL for (int i = 0; i < KEY_TILE / LANES; i++) {
        x[i] = vf_mul(vf_load(scores + i * LANES), vf_set(scale));
        x[i] = vf_first((int)(num_visible - i * LANES < 0 ? 0 : num_visible - i * LANES), x[i], vf_set(-INFINITY));
        largest = vf_max(largest, x[i]);
    }
    const float before = s->largest[row], tile_largest = vf_largest(largest);
    const float now = tile_largest > before ? tile_largest : before;
    vf total = vf_zero();
    UNROLL for (int i = 0; i < KEY_TILE / LANES; i++) {
        vf weight = vf_exp(vf_sub(x[i], vf_set(now)));
        weight = vf_first((int)(num_visible - i * LANES < 0 ? 0 : num_visible - i * LANES), weight, vf_zero());
        total = vf_add(total, weight);
        vf_store_elems(weights + i * LANES, weight);
    }
    if (now != before) {
        float fade[LANES];
        vf_store(fade, vf_exp(vf_set(before - now)));
        const vf factor = vf_set(before == -INFINITY ? 0.0f : fade[0]);
        float *sums = s->sums + row * padded_dim(dim);
        for (int64_t i = 0; i < padded_dim(dim); i += LANES)
            vf_store(sums + i, vf_mul(vf_load(sums + i), factor));
        s->totals[row] *= before == -INFINITY ? 0.0f : fade[0];
    }
    s->totals[row] += vf_sum(total);
    s->largest[row] = now;
}

static void attend_tile(const AttentionScratch *s, const PagedKv *kv, int64_t num_queries,
                        int64_t heads_per_kv, int64_t start, int64_t tile, float scale) {
    const int64_t dim = kv->head_dim, last = start + num_queries - 1;
    const int64_t num_keys = last + 1 - tile < KEY_TILE ? last + 1 - tile : KEY_TILE;
    const elem *keys[KEY_TILE], *values[KEY_TILE];
    tile_rows(kv, kv->keys, tile, num_keys, keys);
    tile_rows(kv, kv->values, tile, num_keys, values);
    pack_keys(kv, keys, num_keys, s->key_panels);
    pack_values(kv, values, num_keys, s->value_panels);
    /* Queries before the tile see none of it. */
    const int64_t skipped = (tile > start ? tile - start : 0) * heads_per_kv;
    const int64_t num_rows = num_queries * heads_per_kv - skipped;
    for (int64_t p = 0; p * PANEL < num_keys; p++)
        multiply_rows(num_rows, s->queries + skipped * operand_stride(dim), operand_stride(dim),
                      (uint32_t *)s->key_panels + p * words_of(dim) * PANEL, words_of(dim),
                      s->scores + skipped * KEY_TILE + p * PANEL, KEY_TILE, 0);
    for (int64_t row = skipped; row < skipped + num_rows; row++) {
        const int64_t visible = start + row / heads_per_kv + 1 - tile;
        soften(s, row, visible < KEY_TILE ? visible : KEY_TILE, scale, dim);
    }
    for (int64_t p = 0; p * PANEL < dim; p++)
        multiply_rows(num_rows, s->weights + skipped * weights_stride(), weights_stride(),
                      (uint32_t *)s->value_panels + p * words_of(KEY_TILE) * PANEL, words_of(num_keys),
                      s->sums + skipped * padded_dim(dim) + p * PANEL, padded_dim(dim), 1);
}

void attend(const AttentionScratch *s, const PagedKv *kv, int64_t num_queries, int64_t heads_per_kv,
            int64_t start, float score_scale, elem *out, int64_t out_stride) {
    const int64_t dim = kv->head_dim, num_rows = num_queries * heads_per_kv;
    memset(s->sums, 0, (size_t)(num_rows * padded_dim(dim)) * 4);
    for (int64_t row = 0; row < num_rows; row++) {
        s->largest[row] = -INFINITY;
        s->totals[row] = 0.0f;
    }
    for (int64_t tile = 0; tile < start + num_queries; tile += KEY_TILE)
        attend_tile(s, kv, num_queries, heads_per_kv, start, tile, score_scale);
    for (int64_t row = 0; row < num_rows; row++) {
        const vf total = vf_set(s->totals[row]);
        const float *sums = s->sums + row * padded_dim(dim);
        elem *to = out + row / heads_per_kv * out_stride + row % heads_per_kv * dim;
        elem last[LANES];
        for (int64_t i = 0; i < dim; i += LANES) {
            const vf x = vf_div(vf_load(sums + i), total);
            if (i + LANES <= dim) {
                vf_store_elems(to + i, x);
            } else {
                vf_store_elems(last, x);
                memcpy(to + i, last, (size_t)(dim - i) * sizeof(elem));
            }
        }
    }
}
