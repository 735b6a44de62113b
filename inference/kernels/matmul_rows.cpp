// Products with weights that lie row after row (Q8_0, Q4_1), for x86 processors with AVX2.
//
// ggml multiplies each such row by each row of the other side for itself. Here, eight rows of
// weights (sixteen with AVX-512) are brought side by side once, and every row of the other side is
// multiplied by all of them together. A product's blocks are summed in whole numbers and added up in order, so a
// row of the other side gets the same values whether it comes alone or among others.

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "products.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

extern "C" bool __wrap_ggml_compute_forward_mul_mat_tiled(const ggml_compute_params *, ggml_tensor *);
extern "C" bool __wrap_ggml_compute_forward_mul_mat_id_tiled(const ggml_compute_params *, ggml_tensor *, int64_t, int64_t, const int32_t *, char *);

// How often such a product was made.
extern "C" int chatsite_rows_ours();
static std::atomic<int> ours{0};
int chatsite_rows_ours() { return ours; }

namespace {

constexpr int K = 32;        // numbers in a block, which share a scale
constexpr int SIDE = 8;      // rows of weights that are brought side by side together
constexpr int CHUNK = 64;    // rows of weights a thread takes at a time
constexpr int ALONE = 4;     // fewer rows of the other side are multiplied one by one

#ifdef CHATSITE_WIDE_VNNI
using Whole = __m512i;
using Numbers = __m512;
constexpr int PANEL = 16;    // rows of weights side by side
constexpr int TOGETHER = 8;  // rows of the other side that share a look at the weights

inline Whole all(int32_t it) { return _mm512_set1_epi32(it); }
inline Numbers all(float it) { return _mm512_set1_ps(it); }
inline Numbers product(Numbers a, Numbers b) { return _mm512_mul_ps(a, b); }
inline Numbers product(Numbers a, Numbers b, Numbers more) { return _mm512_fmadd_ps(a, b, more); }
inline Numbers numbers(Whole it) { return _mm512_cvtepi32_ps(it); }
inline void store(float * to, Numbers it, int rows) { _mm512_mask_storeu_ps(to, rows < PANEL ? 0xFF : 0xFFFF, it); }
#else
using Whole = __m256i;
using Numbers = __m256;
constexpr int PANEL = 8;
constexpr int TOGETHER = 4;

inline Whole all(int32_t it) { return _mm256_set1_epi32(it); }
inline Numbers all(float it) { return _mm256_set1_ps(it); }
inline Numbers product(Numbers a, Numbers b) { return _mm256_mul_ps(a, b); }
inline Numbers product(Numbers a, Numbers b, Numbers more) { return _mm256_fmadd_ps(a, b, more); }
inline Numbers numbers(Whole it) { return _mm256_cvtepi32_ps(it); }
inline void store(float * to, Numbers it, int) { _mm256_storeu_ps(to, it); }
#endif

// A block of rows side by side: for each four numbers of a block, those of row 0, of row 1, …
struct Panel {
    Whole numbers[SIDE];
    Numbers scales, least;
};

// A block of the other side, its scales widened. sum: of its numbers, times the scale.
// less: added to a product of weights made unsigned, which is too large by as much.
struct Other {
    int32_t numbers[K / 4]; // four signed bytes each
    float scale, sum;
    int32_t less;
};

inline float widened(const char * half) {
    uint16_t bits;
    std::memcpy(&bits, half, sizeof bits);
    return _cvtsh_ss(bits);
}

// A 16-bit number of each of eight rows, widened. (Put together in a register: eight small
// stores and one large load of them would wait for each other.)
inline __m256 widened(const char * first, size_t stride) {
    const auto at = [=](int row) {
        int16_t bits;
        std::memcpy(&bits, first + row * stride, sizeof bits);
        return bits;
    };
    return _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
}

// The sums of eight rows of eight numbers.
inline __m256i sums(const __m256i (&rows)[SIDE]) {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(rows[0], rows[1]), _mm256_hadd_epi32(rows[2], rows[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(rows[4], rows[5]), _mm256_hadd_epi32(rows[6], rows[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

// Eight rows of eight times four bytes, turned: what was a row is a column.
void turn(__m256i (&rows)[SIDE]) {
    __m256i pairs[SIDE], fours[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4) {
        fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
}

// --- the formats --------------------------------------------------------------------------

struct Q8_0 {
    static constexpr int BYTES = 34; // a scale, 32 signed bytes
    static constexpr bool HAS_LEAST = false;

    static __m256i numbers(const char * block) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block + 2));
    }

    static Other other(const char * block) {
        Other other;
        other.scale = widened(block);
        other.sum = 0;
        std::memcpy(other.numbers, block + 2, K);
        const __m256i sums = add_products(_mm256_setzero_si256(), _mm256_set1_epi8(1), numbers(block));
        const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        const __m128i two = _mm_hadd_epi32(four, four);
        other.less = -128 * (_mm_extract_epi32(two, 0) + _mm_extract_epi32(two, 1));
        return other;
    }

    // Signed by signed bytes: the sign goes over to the other side.
    static __m256i add(__m256i sum, __m256i w, __m256i y) {
        return add_products(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(y, w));
    }

#ifdef CHATSITE_VNNI
    // 128 more makes them unsigned.
    static __m256i in_panel(const char * block) { return _mm256_xor_si256(numbers(block), _mm256_set1_epi8(-128)); }
#else
    static __m256i in_panel(const char * block) { return numbers(block); }

    static __m256i product(const Panel & panel, const Other & other) {
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < SIDE; ++i) {
            sum = add(sum, panel.numbers[i], all(other.numbers[i]));
        }
        return sum;
    }
#endif
};

struct Q4_1 {
    static constexpr int BYTES = 20; // a scale, what the least number stands for, 32 times 4 bits
    static constexpr bool HAS_LEAST = true;

    static __m256i numbers(const char * block) {
        const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block + 4));
        const __m256i apart = _mm256_set_m128i(_mm_srli_epi16(both, 4), both);
        return _mm256_and_si256(apart, _mm256_set1_epi8(0x0F));
    }

    static Other other(const char * block) {
        Other other;
        other.scale = widened(block);
        other.sum = widened(block + 2);
        other.less = 0;
        std::memcpy(other.numbers, block + 4, K);
        return other;
    }

    static __m256i add(__m256i sum, __m256i w, __m256i y) { return add_products(sum, w, y); }

    static __m256i in_panel(const char * block) { return numbers(block); }

#ifndef CHATSITE_VNNI
    // Numbers up to 15: the products of a whole block still fit 16 bits.
    static __m256i product(const Panel & panel, const Other & other) {
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < SIDE; ++i) {
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(panel.numbers[i], all(other.numbers[i])));
        }
        return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    }
#endif
};

// --- the work -----------------------------------------------------------------------------

// As many of `rows` as a panel has; at the end of the weights there may be half as many left.
template <class Format> void bring_together(const char * weights, size_t stride, int rows, int blocks, Panel * to) {
    const char * next = weights + PANEL * stride;
    for (int b = 0; b < blocks; ++b, weights += Format::BYTES, ++to) {
        fetch(next + b * PANEL * Format::BYTES, PANEL * Format::BYTES);
        for (int first = 0; first < std::min(rows, PANEL); first += SIDE) {
            const char * from = weights + first * stride;
            __m256i side[SIDE];
            for (int row = 0; row < SIDE; ++row) {
                side[row] = Format::in_panel(from + row * stride);
            }
            turn(side);
            for (int i = 0; i < SIDE; ++i) {
                reinterpret_cast<__m256i *>(to->numbers + i)[first / SIDE] = side[i];
            }
            reinterpret_cast<__m256 *>(&to->scales)[first / SIDE] = widened(from, stride);
            if (Format::HAS_LEAST) {
                reinterpret_cast<__m256 *>(&to->least)[first / SIDE] = widened(from + 2, stride);
            }
        }
    }
}

// For few rows, bringing weights together costs more than it saves. The values are the same.
template <class Format> void multiply_alone(const char * weights, size_t stride, const Other * others, int blocks, float * to) {
    const char * next = weights + SIDE * stride;
    __m256 total = _mm256_setzero_ps();
    for (int b = 0; b < blocks; ++b, weights += Format::BYTES) {
        fetch(next + b * SIDE * Format::BYTES, SIDE * Format::BYTES);
        const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(others[b].numbers));
        __m256i products[SIDE];
        for (int row = 0; row < SIDE; ++row) {
            products[row] = Format::add(_mm256_setzero_si256(), Format::numbers(weights + row * stride), y);
        }
        const __m256 scale = _mm256_mul_ps(widened(weights, stride), _mm256_set1_ps(others[b].scale));
        total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums(products)), scale, total);
        if (Format::HAS_LEAST) {
            total = _mm256_fmadd_ps(widened(weights + 2, stride), _mm256_set1_ps(others[b].sum), total);
        }
    }
    _mm256_storeu_ps(to, total);
}

template <class Format> inline Whole whole(const Panel & panel, const Other & other) {
#ifdef CHATSITE_VNNI
    Whole sum = all(other.less);
    for (int i = 0; i < SIDE; ++i) {
        sum = add_products(sum, panel.numbers[i], all(other.numbers[i]));
    }
    return sum;
#else
    return Format::product(panel, other);
#endif
}

// Unrolled, so that the totals are kept in registers.
template <class Format, int ROWS> void multiply(const Panel * panels, const Other * others, int blocks, float * to, size_t stride, int columns) {
    Numbers totals[ROWS] = {};
    for (int b = 0; b < blocks; ++b) {
        const Panel & panel = panels[b];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const Other & other = others[row * blocks + b];
            const Numbers scale = product(panel.scales, all(other.scale));
            totals[row] = product(numbers(whole<Format>(panel, other)), scale, totals[row]);
            if (Format::HAS_LEAST) {
                totals[row] = product(panel.least, all(other.sum), totals[row]);
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
        store(to + row * stride, totals[row], columns);
    }
}

struct Work {
    std::vector<Panel> panels;
    std::vector<Other> others;
};

template <class Format> struct Product {
    const ggml_compute_params * params;
    const ggml_tensor *weights, *other;
    ggml_tensor * dst;
    ggml_type kind; // that the other side is quantised to
    size_t row_bytes, stride;
    int blocks, rows;

    Product(const ggml_compute_params * p, ggml_tensor * to)
        : params(p), weights(to->src[0]), other(to->src[1]), dst(to),
          kind(ggml_get_type_traits_cpu(weights->type)->vec_dot_type), row_bytes(ggml_row_size(kind, other->ne[0])), stride(to->nb[1] / sizeof(float)),
          blocks(weights->ne[0] / K), rows(other->ne[1]) {}

    void quantise() const {
        const auto quantised = ggml_get_type_traits_cpu(kind)->from_float;
        for (int row = params->ith; row < rows; row += params->nth) {
            const char * from = static_cast<const char *>(other->data) + row * other->nb[1];
            char * to = static_cast<char *>(params->wdata) + row * row_bytes;
            quantised(reinterpret_cast<const float *>(from), to, other->ne[0]);
        }
    }

    void widen(std::vector<Other> & others) const {
        others.resize(static_cast<size_t>(rows) * blocks);
        const size_t block_bytes = row_bytes / blocks;
        for (size_t i = 0; i < others.size(); ++i) {
            const char * row = static_cast<const char *>(params->wdata) + i / blocks * row_bytes;
            others[i] = Format::other(row + i % blocks * block_bytes);
        }
    }

    void chunk(int64_t first, Work & work) const {
        const int64_t end = std::min<int64_t>(first + CHUNK, weights->ne[1]);
        const int step = rows < ALONE ? SIDE : PANEL;
        for (int64_t column = first; column < end; column += step) {
            const char * from = static_cast<const char *>(weights->data) + column * weights->nb[1];
            float * to = static_cast<float *>(dst->data) + column;
            rows < ALONE ? few(from, work, to) : many(from, work, to, end - column);
        }
    }

    const Other * others_of(const Work & work, int row) const {
        return work.others.data() + static_cast<size_t>(row) * blocks;
    }

    void few(const char * from, Work & work, float * to) const {
        for (int row = 0; row < rows; ++row, to += stride) {
            multiply_alone<Format>(from, weights->nb[1], others_of(work, row), blocks, to);
        }
    }

    void many(const char * from, Work & work, float * to, int columns) const {
        bring_together<Format>(from, weights->nb[1], columns, blocks, work.panels.data());
        int row = 0;
        const auto some = [&](auto count) {
            for (; row + count <= rows; row += count) {
                multiply<Format, count>(work.panels.data(), others_of(work, row), blocks, to + row * stride, stride, columns);
            }
        };
        some(std::integral_constant<int, TOGETHER>());
        some(std::integral_constant<int, TOGETHER / 2>());
        some(std::integral_constant<int, 1>());
    }

    bool has_room() const { return params->wsize >= rows * row_bytes; }

    bool run() const {
        if (!has_room()) {
            return false;
        }
        ours += params->ith == 0;
        quantise();
        if (params->ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, params->nth);
        }
        ggml_barrier(params->threadpool);
        static thread_local Work work;
        widen(work.others);
        work.panels.resize(blocks);
        const int64_t chunks = (weights->ne[1] + CHUNK - 1) / CHUNK;
        for (int64_t it = params->ith; it < chunks; it = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            chunk(it * CHUNK, work);
        }
        return true;
    }
};

bool fits(const ggml_tensor * dst) {
    const ggml_tensor *w = dst->src[0], *y = dst->src[1];
    return y->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F32 && w->ne[1] % SIDE == 0 && w->ne[2] == 1 &&
           w->ne[3] == 1 && y->ne[2] == 1 && y->ne[3] == 1 && ggml_is_contiguous(w) && y->nb[0] == sizeof(float) &&
           dst->nb[0] == sizeof(float);
}

} // namespace

// ggml's own function here, for other formats, gives a row other values when it comes among many:
// it is left out, and they are multiplied row by row.
extern "C" bool __wrap_ggml_compute_forward_mul_mat_tiled(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->use_ref || !fits(dst)) {
        return false;
    }
    switch (dst->src[0]->type) {
        case GGML_TYPE_Q8_0: return Product<Q8_0>(params, dst).run();
        case GGML_TYPE_Q4_1: return Product<Q4_1>(params, dst).run();
        default: return false;
    }
}

// As much for mixtures of experts, whose products are made an expert at a time.
extern "C" bool __wrap_ggml_compute_forward_mul_mat_id_tiled(const ggml_compute_params *, ggml_tensor *, int64_t, int64_t, const int32_t *, char *) {
    return false;
}
