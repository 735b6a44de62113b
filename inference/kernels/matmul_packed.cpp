// Products with weights of four bits (Q4_0, IQ4_NL), for x86 processors with AVX2.
//
// In place of ggml's for the layout it keeps such weights in on these processors: eight rows
// side by side. A block's products are summed in whole numbers, without loss, and the blocks
// added up in order; so every row of the other side gets the same values whether it comes
// alone or among others.

#include "products.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

// How often a piece of such a product was made.
extern "C" int chatsite_packed_ours();
static std::atomic<int> ours{0};
int chatsite_packed_ours() { return ours; }

extern "C" {
void __wrap_ggml_gemm_q4_0_8x8_q8_0(int, float *, size_t, const void *, const void *, int, int);
void __wrap_ggml_gemv_q4_0_8x8_q8_0(int, float *, size_t, const void *, const void *, int, int);
void __wrap_ggml_gemm_iq4_nl_8x8_q8_0(int, float *, size_t, const void *, const void *, int, int);
void __wrap_ggml_gemv_iq4_nl_8x8_q8_0(int, float *, size_t, const void *, const void *, int, int);
}

namespace {

constexpr int K = 32; // numbers in a block, which share a scale

// Eight rows of weights, one block of each: scales, then eight bytes of each row in turn.
struct Weights {
    uint16_t scales[8];
    uint8_t numbers[128];
};

// The other side, quantised to signed bytes: one row, or four whose bytes take turns by eights.
template <int ROWS> struct Other {
    uint16_t scales[ROWS];
    int8_t numbers[ROWS * K];
};

// What is to be added where weights were made unsigned (eight less than each for Q4_0, times EIGHTS),
// and the scales, widened once for all weights.
template <int ROWS> struct Aside {
    int32_t correction[ROWS];
    float scale[ROWS];
};

void correct(const Other<4> & block, Aside<4> & aside) {
    __m256i sum = _mm256_setzero_si256();
    for (int part = 0; part < 4; ++part) {
        const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block.numbers) + part);
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_set1_epi8(8), y));
    }
    sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(-1));
    sum = _mm256_hadd_epi32(sum, sum);
    const int64_t low = _mm256_extract_epi64(sum, 0), high = _mm256_extract_epi64(sum, 2);
    std::memcpy(aside.correction, &low, sizeof low);
    std::memcpy(aside.correction + 2, &high, sizeof high);
}

void correct(const Other<1> & block, Aside<1> & aside) {
    const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block.numbers));
    __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(8), y), _mm256_set1_epi16(-1));
    sum = _mm256_hadd_epi32(sum, sum);
    sum = _mm256_hadd_epi32(sum, sum);
    aside.correction[0] = _mm256_extract_epi32(sum, 0) + _mm256_extract_epi32(sum, 4);
}

template <int ROWS> void set_aside(const Other<ROWS> * blocks, int count, std::vector<Aside<ROWS>> & aside) {
    aside.resize(count);
    for (int b = 0; b < count; ++b) {
        correct(blocks[b], aside[b]);
        for (int row = 0; row < ROWS; ++row) {
            aside[b].scale[row] = _cvtsh_ss(blocks[b].scales[row]);
        }
    }
}

// --- the formats --------------------------------------------------------------------------

#ifdef CHATSITE_VNNI

// Sums of four rows each. Weights are made unsigned by adding to each, which the correction,
// EIGHTS times, takes away.
template <int EIGHTS> struct Sums {
    __m256i low = _mm256_setzero_si256(), high = low;

    void add(__m256i w03, __m256i w47, __m256i y) {
        low = add_products(low, w03, y);
        high = add_products(high, w47, y);
    }

    __m256i sum(int correction) const {
        return _mm256_add_epi32(_mm256_hadd_epi32(low, high), _mm256_set1_epi32(taken(correction)));
    }

    static int taken(int correction) { return EIGHTS * correction; }
};

// A weight is a number from 0 to 15, less 8.
struct Q4_0 : Sums<1> {
    // ggml keeps the numbers with their highest bit turned.
    static __m256i of_nibbles(__m256i it) { return _mm256_xor_si256(it, _mm256_set1_epi8(8)); }
#ifdef CHATSITE_WIDE_VNNI
    static __m512i of_nibbles(__m512i it) { return _mm512_xor_si512(it, _mm512_set1_epi8(8)); }
#endif
};

// A weight is one of sixteen signed bytes; here with 128 more.
struct IQ4_NL : Sums<16> {
    static __m128i table() {
        return _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15);
    }

    static __m256i of_nibbles(__m256i it) { return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table()), it); }
#ifdef CHATSITE_WIDE_VNNI
    static __m512i of_nibbles(__m512i it) { return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table()), it); }
#endif
};

#else

// A weight is a number from 0 to 15, less 8. It is multiplied as it is, and eight times the sum
// of the other side taken away in the end. A block's products fit 16 bits.
struct Q4_0 {
    __m256i low = _mm256_setzero_si256(), high = low;

    // ggml keeps the numbers with their highest bit turned.
    static __m256i of_nibbles(__m256i it) { return _mm256_xor_si256(it, _mm256_set1_epi8(8)); }

    void add(__m256i w03, __m256i w47, __m256i y) {
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(w03, y));
        high = _mm256_add_epi16(high, _mm256_maddubs_epi16(w47, y));
    }

    __m256i sum(int correction) const {
        const __m256i one = _mm256_set1_epi16(1);
        const __m256i sums = _mm256_hadd_epi32(_mm256_madd_epi16(low, one), _mm256_madd_epi16(high, one));
        return _mm256_add_epi32(sums, _mm256_set1_epi32(correction));
    }
};

// A weight is one of sixteen signed bytes. Two products fit 16 bits, and no more.
struct IQ4_NL {
    __m256i low = _mm256_setzero_si256(), high = low;

    static __m256i of_nibbles(__m256i it) {
        const __m128i table = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), it);
    }

    void add(__m256i w03, __m256i w47, __m256i y) {
        low = add_products(low, _mm256_abs_epi8(w03), _mm256_sign_epi8(y, w03));
        high = add_products(high, _mm256_abs_epi8(w47), _mm256_sign_epi8(y, w47));
    }

    __m256i sum(int) const { return _mm256_hadd_epi32(low, high); }
};

#endif

// --- weights as bytes ---------------------------------------------------------------------

// The order of rows that adding neighbours leaves; doing it twice undoes it.
inline __m256 in_order(__m256 rows) {
    return _mm256_permutevar8x32_ps(rows, _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7));
}

// A block of eight rows: for each eight numbers of the other side, rows 0-3 and 4-7.
template <class Format> struct Eight {
    using Numbers = __m256;
    static constexpr int WEIGHTS = 8;
    static constexpr int TOGETHER = 1; // groups of the other side; there are no registers for more

    __m256i numbers[4][2];
    __m256 scales;

    Eight(const Weights * block, int, int) {
        const __m256i low = _mm256_set1_epi8(0x0F);
        for (int half = 0; half < 2; ++half) {
            for (int rows = 0; rows < 2; ++rows) {
                const auto * from = reinterpret_cast<const __m256i *>(block->numbers) + 2 * half + rows;
                const __m256i both = _mm256_loadu_si256(from);
                const __m256i second = _mm256_srli_epi16(both, 4);
                numbers[half][rows] = Format::of_nibbles(_mm256_and_si256(both, low));
                numbers[half + 2][rows] = Format::of_nibbles(_mm256_and_si256(second, low));
            }
        }
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block->scales));
        scales = in_order(_mm256_cvtph_ps(halves));
    }

    __m256 times(const int8_t * other, size_t apart, int correction) const {
        Format products;
        for (int part = 0; part < 4; ++part) {
            int64_t eight;
            std::memcpy(&eight, other + part * apart, sizeof eight);
            products.add(numbers[part][0], numbers[part][1], _mm256_set1_epi64x(eight));
        }
        return _mm256_cvtepi32_ps(products.sum(correction));
    }

    __m256 add(__m256 total, __m256 sum, float scale) const {
        return _mm256_fmadd_ps(sum, _mm256_mul_ps(scales, _mm256_set1_ps(scale)), total);
    }

    static void store(float * to, __m256 total, int) { _mm256_storeu_ps(to, in_order(total)); }
};

#ifdef CHATSITE_WIDE_VNNI

// A block of sixteen rows: for each four numbers of the other side, all rows. No neighbours are
// left to be added; the sums are the same whole numbers.
template <class Format> struct Sixteen {
    using Numbers = __m512;
    static constexpr int WEIGHTS = 16;
    static constexpr int TOGETHER = 4;

    __m512i numbers[8];
    __m512 scales;

    // The other eight lie `apart` blocks on; of eight rows alone, they are the same again.
    Sixteen(const Weights * block, int apart, int rows) {
        const Weights * other = rows < WEIGHTS ? block : block + apart;
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
        for (int half = 0; half < 2; ++half) {
            const __m512i a = _mm512_loadu_si512(block->numbers + 64 * half);
            const __m512i b = _mm512_loadu_si512(other->numbers + 64 * half);
            set(2 * half, _mm512_permutex2var_epi32(a, even, b));
            set(2 * half + 1, _mm512_permutex2var_epi32(a, odd, b));
        }
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block->scales));
        const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(other->scales));
        scales = _mm512_cvtph_ps(_mm256_set_m128i(b, a));
    }

    void set(int at, __m512i both) {
        const __m512i low = _mm512_set1_epi8(0x0F);
        numbers[at] = Format::of_nibbles(_mm512_and_si512(both, low));
        numbers[at + 4] = Format::of_nibbles(_mm512_and_si512(_mm512_srli_epi16(both, 4), low));
    }

    __m512 times(const int8_t * other, size_t apart, int correction) const {
        __m512i sums = _mm512_set1_epi32(Format::taken(correction));
        for (int i = 0; i < 8; ++i) {
            int32_t four;
            std::memcpy(&four, other + i / 2 * apart + i % 2 * sizeof four, sizeof four);
            sums = _mm512_dpbusd_epi32(sums, numbers[i], _mm512_set1_epi32(four));
        }
        return _mm512_cvtepi32_ps(sums);
    }

    __m512 add(__m512 total, __m512 sum, float scale) const {
        return _mm512_fmadd_ps(sum, _mm512_mul_ps(scales, _mm512_set1_ps(scale)), total);
    }

    static void store(float * to, __m512 total, int rows) {
        _mm512_mask_storeu_ps(to, rows < WEIGHTS ? 0xFF : 0xFFFF, total);
    }
};

template <class Format> using Many = Sixteen<Format>;
#else
template <class Format> using Many = Eight<Format>;
#endif

// --- the work -----------------------------------------------------------------------------

// Weights of up to so many `columns` of results with GROUPS of ROWS of the other side: `blocks` of
// each; results `stride` apart. Unrolled, so that the totals are kept in registers.
template <class Side, int ROWS, int GROUPS>
void multiply(const Weights * w, int columns, const Other<ROWS> * y, const Aside<ROWS> * aside, int blocks, float * to, size_t stride) {
    typename Side::Numbers totals[GROUPS * ROWS] = {};
    for (int b = 0; b < blocks; ++b) {
        constexpr int GROUP = Side::WEIGHTS / 8;
        fetch(w + GROUP * (blocks + b), GROUP * sizeof *w);
        const Side side(w + b, blocks, columns);
#pragma GCC unroll 16
        for (int row = 0; row < GROUPS * ROWS; ++row) {
            const int at = row / ROWS * blocks + b, own = row % ROWS;
            const auto sum = side.times(y[at].numbers + own * 8, ROWS * 8, aside[at].correction[own]);
            totals[row] = side.add(totals[row], sum, aside[at].scale[own]);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < GROUPS * ROWS; ++row) {
        Side::store(to + row * stride, totals[row], columns);
    }
}

// So many groups, where there are registers for them.
template <class Side, int GROUPS> using together = std::integral_constant<int, std::min(GROUPS, Side::TOGETHER)>;

template <class Side, int ROWS>
void multiply_all(int n, float * to, size_t stride, const void * weights, const void * other, int rows, int columns) {
    static thread_local std::vector<Aside<ROWS>> aside;
    ours.fetch_add(1, std::memory_order_relaxed);
    const int blocks = n / K;
    const auto * w = static_cast<const Weights *>(weights);
    const auto * y = static_cast<const Other<ROWS> *>(other);
    set_aside(y, rows / ROWS * blocks, aside);
    for (int column = 0; column < columns; column += Side::WEIGHTS) {
        const auto some = [&](auto groups, int first) {
            multiply<Side, ROWS, groups>(w + column / 8 * blocks, columns - column, y + first * blocks, aside.data() + first * blocks, blocks, to + first * ROWS * stride + column, stride);
        };
        // The weights are made bytes once for all groups that are multiplied together.
        for (int group = 0, left; (left = rows / ROWS - group) > 0; group += std::min(left, Side::TOGETHER)) {
            switch (std::min(left, Side::TOGETHER)) {
            case 1: some(together<Side, 1>(), group); break;
            case 2: some(together<Side, 2>(), group); break;
            case 3: some(together<Side, 3>(), group); break;
            default: some(together<Side, 4>(), group);
            }
        }
    }
}

} // namespace

void __wrap_ggml_gemm_q4_0_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<Many<Q4_0>, 4>(n, s, bs, vx, vy, nr, nc);
}

void __wrap_ggml_gemv_q4_0_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<Eight<Q4_0>, 1>(n, s, bs, vx, vy, nr, nc);
}

void __wrap_ggml_gemm_iq4_nl_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<Many<IQ4_NL>, 4>(n, s, bs, vx, vy, nr, nc);
}

void __wrap_ggml_gemv_iq4_nl_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<Eight<IQ4_NL>, 1>(n, s, bs, vx, vy, nr, nc);
}
