// Products with weights of four bits (Q4_0, IQ4_NL), for x86 processors with AVX2.
//
// In place of ggml's for the layout it keeps such weights in on these processors: eight rows
// side by side. A block's products are summed in whole numbers, without loss, and the blocks
// added up in order; so every row of the other side gets the same values whether it comes
// alone or among others.

#include <immintrin.h>

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

// What is to be added for Q4_0's "less 8", and the scales, widened once for all weights.
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

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

// --- with AVX-512: eight rows in a register, four products added up by one instruction ----
// The sums are the same whole numbers as below, so the results are the same to the bit.

constexpr int TOGETHER = 2; // groups of the other side that share a look at the weights

// A weight is a number from 0 to 15, less 8. It is multiplied as it is, and eight times the sum
// of the other side taken away in the end.
struct Q4_0 {
    static constexpr int EIGHTS = 1;

    // ggml keeps the numbers with their highest bit turned.
    static __m512i of_nibbles(__m512i it) { return _mm512_xor_si512(it, _mm512_set1_epi8(8)); }
};

// A weight is one of sixteen signed bytes; 128 more makes them unsigned.
struct IQ4_NL {
    static constexpr int EIGHTS = 16;

    static __m512i of_nibbles(__m512i it) {
        const __m128i table = _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15);
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), it);
    }
};

inline __m256 in_order(__m256 rows) { return rows; }

// A block of eight rows of weights as bytes: for each eight of the other side, all rows.
template <class Format> struct Unpacked {
    __m512i numbers[4];
    __m256 scales;

    explicit Unpacked(const Weights & block) {
        const __m512i low = _mm512_set1_epi8(0x0F);
        for (int half = 0; half < 2; ++half) {
            const __m512i both = _mm512_loadu_si512(block.numbers + 64 * half);
            numbers[half] = Format::of_nibbles(_mm512_and_si512(both, low));
            numbers[half + 2] = Format::of_nibbles(_mm512_and_si512(_mm512_srli_epi16(both, 4), low));
        }
        scales = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(block.scales)));
    }

    __m256i times(const int8_t * other, size_t apart, int correction) const {
        __m512i sums = _mm512_setzero_si512();
        for (int part = 0; part < 4; ++part) {
            int64_t eight;
            std::memcpy(&eight, other + part * apart, sizeof eight);
            sums = _mm512_dpbusd_epi32(sums, numbers[part], _mm512_set1_epi64(eight));
        }
        sums = _mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32));
        return _mm256_add_epi32(_mm512_cvtepi64_epi32(sums), _mm256_set1_epi32(Format::EIGHTS * correction));
    }
};

#else

constexpr int TOGETHER = 1; // there are no registers for more

// The order of rows that adding neighbours leaves; doing it twice undoes it.
inline __m256 in_order(__m256 rows) {
    return _mm256_permutevar8x32_ps(rows, _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7));
}

// --- the formats --------------------------------------------------------------------------

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

    static __m256i products(__m256i w, __m256i y) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(y, w));
        return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }

    void add(__m256i w03, __m256i w47, __m256i y) {
        low = _mm256_add_epi32(low, products(w03, y));
        high = _mm256_add_epi32(high, products(w47, y));
    }

    __m256i sum(int) const { return _mm256_hadd_epi32(low, high); }
};

// A block of eight rows of weights as bytes: for each eight of the other side, rows 0-3 and 4-7.
template <class Format> struct Unpacked {
    __m256i numbers[4][2];
    __m256 scales;

    explicit Unpacked(const Weights & block) {
        const __m256i low = _mm256_set1_epi8(0x0F);
        for (int half = 0; half < 2; ++half) {
            for (int rows = 0; rows < 2; ++rows) {
                const auto * from = reinterpret_cast<const __m256i *>(block.numbers) + 2 * half + rows;
                const __m256i both = _mm256_loadu_si256(from);
                const __m256i second = _mm256_srli_epi16(both, 4);
                numbers[half][rows] = Format::of_nibbles(_mm256_and_si256(both, low));
                numbers[half + 2][rows] = Format::of_nibbles(_mm256_and_si256(second, low));
            }
        }
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block.scales));
        scales = in_order(_mm256_cvtph_ps(halves));
    }

    __m256i times(const int8_t * other, size_t apart, int correction) const {
        Format products;
        for (int part = 0; part < 4; ++part) {
            int64_t eight;
            std::memcpy(&eight, other + part * apart, sizeof eight);
            products.add(numbers[part][0], numbers[part][1], _mm256_set1_epi64x(eight));
        }
        return products.sum(correction);
    }
};

#endif

// --- the work -----------------------------------------------------------------------------

template <class Format, int ROWS>
inline __m256 add_block(__m256 total, const Unpacked<Format> & w, const Other<ROWS> & y, const Aside<ROWS> & aside, int row) {
    const __m256 sum = _mm256_cvtepi32_ps(w.times(y.numbers + row * 8, ROWS * 8, aside.correction[row]));
    return _mm256_fmadd_ps(sum, _mm256_mul_ps(w.scales, _mm256_set1_ps(aside.scale[row])), total);
}

// Eight rows of weights with GROUPS of ROWS of the other side: `blocks` of each; results
// `stride` apart.
template <class Format, int ROWS, int GROUPS>
void multiply(const Weights * w, const Other<ROWS> * y, const Aside<ROWS> * aside, int blocks, float * to, size_t stride) {
    __m256 totals[GROUPS * ROWS] = {};
    for (int b = 0; b < blocks; ++b) {
        const Unpacked<Format> unpacked(w[b]);
        for (int row = 0; row < GROUPS * ROWS; ++row) {
            const int at = row / ROWS * blocks + b;
            totals[row] = add_block<Format, ROWS>(totals[row], unpacked, y[at], aside[at], row % ROWS);
        }
    }
    for (int row = 0; row < GROUPS * ROWS; ++row) {
        _mm256_storeu_ps(to + row * stride, in_order(totals[row]));
    }
}

template <class Format, int ROWS>
void multiply_all(int n, float * to, size_t stride, const void * weights, const void * other, int rows, int columns) {
    static thread_local std::vector<Aside<ROWS>> aside;
    ours.fetch_add(1, std::memory_order_relaxed);
    const int blocks = n / K;
    const auto * w = static_cast<const Weights *>(weights);
    const auto * y = static_cast<const Other<ROWS> *>(other);
    set_aside(y, rows / ROWS * blocks, aside);
    for (int eight = 0; eight < columns / 8; ++eight) {
        const auto some = [&](auto groups, int first) {
            float * at = to + first * ROWS * stride + eight * 8;
            multiply<Format, ROWS, groups>(w + eight * blocks, y + first * blocks, aside.data() + first * blocks, blocks, at, stride);
        };
        int group = 0;
        for (; group + TOGETHER <= rows / ROWS; group += TOGETHER) {
            some(std::integral_constant<int, TOGETHER>(), group);
        }
        for (; group < rows / ROWS; ++group) {
            some(std::integral_constant<int, 1>(), group);
        }
    }
}

} // namespace

void __wrap_ggml_gemm_q4_0_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<Q4_0, 4>(n, s, bs, vx, vy, nr, nc);
}

void __wrap_ggml_gemv_q4_0_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<Q4_0, 1>(n, s, bs, vx, vy, nr, nc);
}

void __wrap_ggml_gemm_iq4_nl_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<IQ4_NL, 4>(n, s, bs, vx, vy, nr, nc);
}

void __wrap_ggml_gemv_iq4_nl_8x8_q8_0(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    multiply_all<IQ4_NL, 1>(n, s, bs, vx, vy, nr, nc);
}
