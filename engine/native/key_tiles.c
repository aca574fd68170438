/* See key_tiles.h. */
#include "key_tiles.h"

#include <string.h>

#define MAX_FAST_DIM 1024
#if LANES == 16
static const elem zeros[MAX_FAST_DIM]; /* stands where there is no key */
#endif

/* Rows of keys or values at the positions tile .. tile + KEY_TILE; those from num_keys on are zero. */
void tile_rows(const PagedKv *kv, const elem *base, int64_t tile, int64_t num_keys,
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
void pack_keys(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels) {
    const int64_t num_words = words_of(head_dim);
    for (int64_t j = 0; j < round_up(num_keys, PANEL); j += LANES) {
        uint32_t *panel = (uint32_t *)panels + j / PANEL * num_words * PANEL + j % PANEL;
        int64_t word = 0;
#if LANES == 16
        for (; word + 16 <= num_words && head_dim <= MAX_FAST_DIM; word += 16) {
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
                    if (rows[j + lane] && k < head_dim) pair[i] = rows[j + lane][k];
                }
                memcpy(panel + word * PANEL + lane, pair, 4);
            }
    }
}

/* Values as a weight with head_dim outputs and KEY_TILE inputs. */
void pack_values(const elem *const rows[KEY_TILE], int64_t num_keys, int64_t head_dim, void *panels) {
    const int64_t num_words = words_of(KEY_TILE), used = words_of(num_keys), dim = head_dim;
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
