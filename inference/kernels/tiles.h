// Rows of queries against a tile of the cache: what attention.cpp is made of.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int CELLS = 64;   // of the cache, looked at together
constexpr int LANES = 8;
constexpr int AHEAD = 16;   // cells that are fetched from memory before they are read

// --- small things -------------------------------------------------------------------------

// e to the power of numbers <= 0, minus infinity included.
inline __m256 exp_of(__m256 x) {
    const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
    x = _mm256_max_ps(x, _mm256_set1_ps(-88.0f));
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), r);
    __m256 p = _mm256_set1_ps(1.0f / 720);
    for (float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(term));
    }
    const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_andnot_ps(tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23))));
}

inline float exp_of(float x) { return _mm256_cvtss_f32(exp_of(_mm256_set1_ps(x))); }

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define CHATSITE_WIDE_TILES 1

constexpr int WIDE = 16; // numbers at once, where the processor has AVX-512

inline __m512 exp_of(__m512 x) {
    const __mmask16 others = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    x = _mm512_max_ps(x, _mm512_set1_ps(-88.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 720);
    for (float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(term));
    }
    const __m512i power = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_maskz_mul_ps(others, p, _mm512_castsi512_ps(_mm512_slli_epi32(power, 23)));
}
#endif

inline float sum_of(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float largest_of(__m256 x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// --- the cache's formats ------------------------------------------------------------------

// `cells` of `count` numbers each, `apart` bytes from one to the next.
using Widen = void (*)(const char * from, size_t apart, float * to, int count, int cells);

constexpr int BLOCK = 32, BLOCK_BYTES = 34; // of Q8_0: a scale in 16 bits, then as many signed bytes

inline __m256 scale_of(const char * block) {
    uint16_t half;
    std::memcpy(&half, block, sizeof half);
    return _mm256_set1_ps(_cvtsh_ss(half));
}

// Eight numbers of a block, from the one at `i` on.
inline __m256 widened(const char * block, int i, __m256 scale) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(block + 2 + i));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), scale);
}

inline void fetch_later(const char * cell, size_t apart) {
    _mm_prefetch(cell + AHEAD * apart, _MM_HINT_T0);
    _mm_prefetch(cell + AHEAD * apart + 64, _MM_HINT_T0);
}

// --- one row against one tile of cells ----------------------------------------------------

inline __m256 sums_of(const __m256 (&x)[LANES]) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// sum += the values, each times its weight; values lie one after the other, `width` apart.
template <int VECTORS>
inline void add_values(float * sum, const float * weights, const float * values, int width, int cells) {
    __m256 total[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
        total[v] = _mm256_loadu_ps(sum + v * LANES);
    }
    for (int cell = 0; cell < cells; ++cell) {
        const __m256 weight = _mm256_broadcast_ss(weights + cell);
        for (int v = 0; v < VECTORS; ++v) {
            const __m256 value = _mm256_loadu_ps(values + cell * width + v * LANES);
            total[v] = _mm256_fmadd_ps(weight, value, total[v]);
        }
    }
    for (int v = 0; v < VECTORS; ++v) {
        _mm256_storeu_ps(sum + v * LANES, total[v]);
    }
}

struct Row {
    const uint16_t * mask; // of its query, or null
    float highest;         // score so far
    float total;           // of the weights so far
    int cells;             // of this tile, up to the last that it sees
};

void scale_by(float * numbers, float factor, int count) {
    const __m256 f = _mm256_set1_ps(factor);
    for (int i = 0; i < count; i += LANES) {
        _mm256_storeu_ps(numbers + i, _mm256_mul_ps(_mm256_loadu_ps(numbers + i), f));
    }
}

// In place of scores; the sum of them.
float make_weights(float * weights, int cells, float highest) {
    __m256 total = _mm256_setzero_ps();
    int cell = 0;
#if CHATSITE_WIDE_TILES
    for (; cell + LANES < cells; cell += WIDE) {
        const __m512 weight = exp_of(_mm512_sub_ps(_mm512_loadu_ps(weights + cell), _mm512_set1_ps(highest)));
        _mm512_storeu_ps(weights + cell, weight);
        total = _mm256_add_ps(total, _mm512_castps512_ps256(weight));
        total = _mm256_add_ps(total, _mm512_extractf32x8_ps(weight, 1));
    }
#endif
    for (; cell < cells; cell += LANES) {
        const __m256 weight = exp_of(_mm256_sub_ps(_mm256_loadu_ps(weights + cell), _mm256_set1_ps(highest)));
        _mm256_storeu_ps(weights + cell, weight);
        total = _mm256_add_ps(total, weight);
    }
    return sum_of(total);
}

// Scores are made into weights; sums so far are brought to the new highest score.
void weigh(Row & row, int first, float * weights, float * sum, int value_width) {
    __m256 highest = _mm256_set1_ps(-INFINITY);
    for (int cell = 0; cell < row.cells; cell += LANES) {
        __m256 score = _mm256_loadu_ps(weights + cell);
        if (row.mask) {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row.mask + first + cell));
            score = _mm256_add_ps(score, _mm256_cvtph_ps(half));
            _mm256_storeu_ps(weights + cell, score);
        }
        highest = _mm256_max_ps(highest, score);
    }
    const float now = std::max(row.highest, largest_of(highest));
    if (now > row.highest) {
        const float factor = exp_of(row.highest - now);
        scale_by(sum, factor, value_width);
        row.total *= factor;
        row.highest = now;
    }
    row.total += make_weights(weights, row.cells, now);
}

// --- few rows against one tile of cells of Q8_0 -------------------------------------------
// The same operations on the same numbers, which are not written down widened in between: for few
// rows, that is most of the work.

constexpr int FEW = 4;

// Scores of ROWS queries, which see equally many cells; scores of the next row are CELLS on.
template <int ROWS>
void score_few(const char * keys, size_t apart, const float * queries, int width, int cells, float * scores) {
    for (int first = 0; first < cells; first += LANES) {
        __m256 sums[ROWS][LANES];
        for (int cell = 0; cell < LANES; ++cell, keys += apart) {
            fetch_later(keys, apart);
            __m256 sum[ROWS] = {};
            const char * block = keys;
            for (int d = 0; d < width; d += BLOCK, block += BLOCK_BYTES) {
                const __m256 scale = scale_of(block);
                for (int i = 0; i < BLOCK; i += LANES) {
                    const __m256 key = widened(block, i, scale);
                    for (int row = 0; row < ROWS; ++row) {
                        sum[row] = _mm256_fmadd_ps(_mm256_loadu_ps(queries + row * width + d + i), key, sum[row]);
                    }
                }
            }
            for (int row = 0; row < ROWS; ++row) {
                sums[row][cell] = sum[row];
            }
        }
        for (int row = 0; row < ROWS; ++row) {
            _mm256_storeu_ps(scores + row * CELLS + first, sums_of(sums[row]));
        }
    }
}

// Sums of ROWS rows, `width` apart, += the values, each times its row's weight.
template <int ROWS>
void add_few(const char * values, size_t apart, const float * weights, int width, int cells, float * sums) {
    for (int d = 0; d < width; d += BLOCK, values += BLOCK_BYTES) {
        __m256 totals[ROWS][BLOCK / LANES];
        for (int row = 0; row < ROWS; ++row) {
            for (int v = 0; v < BLOCK / LANES; ++v) {
                totals[row][v] = _mm256_loadu_ps(sums + row * width + d + v * LANES);
            }
        }
        const char * block = values;
        for (int cell = 0; cell < cells; ++cell, block += apart) {
            if (d == 0) {
                fetch_later(block, apart);
            }
            const __m256 scale = scale_of(block);
            for (int v = 0; v < BLOCK / LANES; ++v) {
                const __m256 value = widened(block, v * LANES, scale);
                for (int row = 0; row < ROWS; ++row) {
                    totals[row][v] = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + row * CELLS + cell), value, totals[row][v]);
                }
            }
        }
        for (int row = 0; row < ROWS; ++row) {
            for (int v = 0; v < BLOCK / LANES; ++v) {
                _mm256_storeu_ps(sums + row * width + d + v * LANES, totals[row][v]);
            }
        }
    }
}

using Few = void (*)(const char *, size_t, const float *, int, int, float *);
constexpr Few SCORE_FEW[] = {score_few<1>, score_few<2>, score_few<3>, score_few<4>};
constexpr Few ADD_FEW[] = {add_few<1>, add_few<2>, add_few<3>, add_few<4>};

} // namespace
