// Many rows of queries against a tile of the cache, with AVX2.

#pragma once

#include "tiles.h"

namespace {

// --- the cache, widened -------------------------------------------------------------------

void values_f16(const char * from, size_t apart, float * to, int count, int cells) {
    for (int cell = 0; cell < cells; ++cell, from += apart, to += count) {
        for (int i = 0; i < count; i += LANES) {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 2 * i));
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
        }
    }
}

void values_q8_0(const char * from, size_t apart, float * to, int count, int cells) {
    for (int cell = 0; cell < cells; ++cell, from += apart) {
        fetch_later(from, apart);
        const char * block = from;
        for (const float * end = to + count; to < end; block += BLOCK_BYTES, to += BLOCK) {
            const __m256 scale = scale_of(block);
            for (int i = 0; i < BLOCK; i += LANES) {
                _mm256_storeu_ps(to + i, widened(block, i, scale));
            }
        }
    }
}

constexpr Widen keys_f16 = values_f16, keys_q8_0 = values_q8_0;

// --- one row after the other --------------------------------------------------------------

// The products of a query with eight keys; keys lie one after the other, `width` apart.
// WIDTH is the width, where the compiler is to know it (it then needs no register for each key).
template <int WIDTH>
inline __m256 products(const float * query, const float * keys, int width) {
    width = WIDTH ? WIDTH : width;
    __m256 sums[LANES] = {};
    for (int d = 0; d < width; d += LANES) {
        const __m256 q = _mm256_loadu_ps(query + d);
        for (int cell = 0; cell < LANES; ++cell) {
            sums[cell] = _mm256_fmadd_ps(q, _mm256_loadu_ps(keys + cell * width + d), sums[cell]);
        }
    }
    return sums_of(sums);
}

template <int WIDTH>
void score(const Row & row, const float * query, const float * keys, int width, float * scores) {
    for (int cell = 0; cell < row.cells; cell += LANES) {
        _mm256_storeu_ps(scores + cell, products<WIDTH>(query, keys + cell * (WIDTH ? WIDTH : width), width));
    }
}

using Score = void (*)(const Row &, const float *, const float *, int, float *);

Score scoring(int width) {
    return width == 64 ? score<64> : width == 128 ? score<128> : score<0>;
}

void add_all_values(float * sum, const float * weights, const float * values, int width, int cells) {
    int d = 0;
    for (; d + 64 <= width; d += 64) {
        add_values<8>(sum + d, weights, values + d, width, cells);
    }
    for (; d < width; d += LANES) {
        add_values<1>(sum + d, weights, values + d, width, cells);
    }
}

// Scores of the next row are CELLS on.
void score_rows(const Row * rows, int count, const float * queries, const float * keys, int width, float * scores) {
    const Score score = scoring(width);
    for (int r = 0; r < count; ++r) {
        score(rows[r], queries + r * width, keys, width, scores + r * CELLS);
    }
}

// Sums += the values, each times its row's weight.
void add_rows(const Row * rows, int count, const float * weights, const float * values, int width, float * sums) {
    for (int r = 0; r < count; ++r) {
        add_all_values(sums + r * width, weights + r * CELLS, values, width, rows[r].cells);
    }
}

} // namespace
