// Many rows of queries against a tile of the cache, on processors with AVX-512: twice the numbers
// at once, and each key and value read once for four rows.
//
// Every number is made by the same operations in the same order as in tiles.h, where few rows and
// processors without AVX-512 are served. So what is side by side here is what does not meet: the
// sums of two cells, or of a value's two halves.

#pragma once

#include "tiles.h"

namespace {

constexpr int TOGETHER = 4; // most rows

inline __m512 beside(__m256 low, __m256 high) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

// --- the cache, widened -------------------------------------------------------------------

// Eight numbers of one cell and of another, from the one at `i` of a block on.
inline __m512 widened(const char * block, const char * other, int i, __m512 scales) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(block + 2 + i));
    const __m128i both = _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64 *>(other + 2 + i)));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(both)), scales);
}

// Keys by eights of cells: a cell's next eight numbers lie beside those of the fourth cell after it,
// then come the next pair's, and only then the eight numbers after these.
void keys_q8_0(const char * from, size_t apart, float * to, int width, int cells) {
    for (int first = 0; first < cells; first += LANES, to += LANES * width) {
        for (int pair = 0; pair < LANES / 2; ++pair) {
            const char *block = from + (first + pair) * apart, *other = block + LANES / 2 * apart;
            fetch_later(block, apart);
            fetch_later(other, apart);
            for (int d = 0; d < width; d += BLOCK, block += BLOCK_BYTES, other += BLOCK_BYTES) {
                const __m512 scales = beside(scale_of(block), scale_of(other));
                for (int i = 0; i < BLOCK; i += LANES) {
                    _mm512_storeu_ps(to + (d + i) * LANES + pair * WIDE, widened(block, other, i, scales));
                }
            }
        }
    }
}

void values_q8_0(const char * from, size_t apart, float * to, int width, int cells) {
    for (int cell = 0; cell < cells; ++cell, from += apart) {
        fetch_later(from, apart);
        const char * block = from;
        for (const float * end = to + width; to < end; block += BLOCK_BYTES, to += BLOCK) {
            const __m512 scales = beside(scale_of(block), scale_of(block));
            for (int i = 0; i < BLOCK; i += WIDE) {
                _mm512_storeu_ps(to + i, widened(block, block + LANES, i, scales));
            }
        }
    }
}

void values_f16(const char * from, size_t apart, float * to, int width, int cells) {
    for (int cell = 0; cell < cells; ++cell, from += apart, to += width) {
        for (int i = 0; i < width; i += LANES) {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 2 * i));
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
        }
    }
}

void keys_f16(const char * from, size_t apart, float * to, int width, int cells) {
    for (int first = 0; first < cells; first += LANES, to += LANES * width) {
        for (int pair = 0; pair < LANES / 2; ++pair) {
            const char *cell = from + (first + pair) * apart, *other = cell + LANES / 2 * apart;
            for (int d = 0; d < width; d += LANES) {
                const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i *>(cell + 2 * d));
                const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i *>(other + 2 * d));
                const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
                _mm512_storeu_ps(to + d * LANES + pair * WIDE, _mm512_cvtph_ps(both));
            }
        }
    }
}

// --- rows that see equally many cells of a tile -------------------------------------------

// Neighbours in each quarter added up, those of x before those of y.
inline __m512 neighbours(__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x88), _mm512_shuffle_ps(x, y, 0xDD));
}

// Eight cells' sums of one row and of another.
inline __m512 sums_of(const __m512 (&x)[LANES / 2], const __m512 (&y)[LANES / 2]) {
    const __m512 a = neighbours(neighbours(x[0], x[1]), neighbours(x[2], x[3]));
    const __m512 b = neighbours(neighbours(y[0], y[1]), neighbours(y[2], y[3]));
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

// Scores of ROWS queries; keys lie in pairs, scores of the next row are CELLS on.
template <int ROWS>
void score_wide(const float * queries, const float * keys, int width, int cells, float * scores) {
    for (int first = 0; first < cells; first += LANES, keys += LANES * width) {
        __m512 sums[ROWS + 1][LANES / 2] = {};
        for (int d = 0; d < width; d += LANES) {
            for (int row = 0; row < ROWS; ++row) {
                const __m512 query = _mm512_broadcast_f32x8(_mm256_loadu_ps(queries + row * width + d));
                for (int pair = 0; pair < LANES / 2; ++pair) {
                    const __m512 key = _mm512_loadu_ps(keys + d * LANES + pair * WIDE);
                    sums[row][pair] = _mm512_fmadd_ps(query, key, sums[row][pair]);
                }
            }
        }
        for (int row = 0; row < ROWS; row += 2) {
            const __m512 both = sums_of(sums[row], sums[row + 1]);
            _mm256_storeu_ps(scores + row * CELLS + first, _mm512_castps512_ps256(both));
            if (row + 1 < ROWS) {
                _mm256_storeu_ps(scores + (row + 1) * CELLS + first, _mm512_extractf32x8_ps(both, 1));
            }
        }
    }
}

// Sums of ROWS rows += the values, each times its row's weight. Values lie one after the other.
template <int ROWS>
void add_wide(const float * values, const float * weights, int width, int cells, float * sums) {
    int d = 0;
    for (; d + 4 * WIDE <= width; d += 4 * WIDE) {
        __m512 totals[ROWS][4];
        for (int row = 0; row < ROWS; ++row) {
            for (int v = 0; v < 4; ++v) {
                totals[row][v] = _mm512_loadu_ps(sums + row * width + d + v * WIDE);
            }
        }
        for (int cell = 0; cell < cells; ++cell) {
            for (int row = 0; row < ROWS; ++row) {
                const __m512 weight = _mm512_set1_ps(weights[row * CELLS + cell]);
                for (int v = 0; v < 4; ++v) {
                    const __m512 value = _mm512_loadu_ps(values + cell * width + d + v * WIDE);
                    totals[row][v] = _mm512_fmadd_ps(weight, value, totals[row][v]);
                }
            }
        }
        for (int row = 0; row < ROWS; ++row) {
            for (int v = 0; v < 4; ++v) {
                _mm512_storeu_ps(sums + row * width + d + v * WIDE, totals[row][v]);
            }
        }
    }
    for (; d < width; d += LANES) {
        for (int row = 0; row < ROWS; ++row) {
            add_values<1>(sums + row * width + d, weights + row * CELLS, values + d, width, cells);
        }
    }
}

using ScoreWide = void (*)(const float *, const float *, int, int, float *);
using AddWide = void (*)(const float *, const float *, int, int, float *);
constexpr ScoreWide SCORE_WIDE[] = {score_wide<1>, score_wide<2>, score_wide<3>, score_wide<4>};
constexpr AddWide ADD_WIDE[] = {add_wide<1>, add_wide<2>, add_wide<3>, add_wide<4>};

// How many of the first rows see as many cells as the first.
int alike(const Row * rows, int count) {
    int same = 1;
    while (same < std::min(count, TOGETHER) && rows[same].cells == rows[0].cells) {
        ++same;
    }
    return same;
}

void score_rows(const Row * rows, int count, const float * queries, const float * keys, int width, float * scores) {
    for (int r = 0, some; r < count; r += some) {
        some = alike(rows + r, count - r);
        SCORE_WIDE[some - 1](queries + r * width, keys, width, rows[r].cells, scores + r * CELLS);
    }
}

void add_rows(const Row * rows, int count, const float * weights, const float * values, int width, float * sums) {
    for (int r = 0, some; r < count; r += some) {
        some = alike(rows + r, count - r);
        ADD_WIDE[some - 1](values, weights + r * CELLS, width, rows[r].cells, sums + r * width);
    }
}

} // namespace
