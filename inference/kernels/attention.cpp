// Attention on x86 processors with AVX2, in place of ggml's flash attention for the CPU.
//
// A token's values depend on the tokens before it and their places in the cache, and on nothing
// else: not on how many tokens are evaluated with it, nor for whom, nor by how many threads.
// Each number is made by the same operations in the same order whatever the batch; only what
// is shared between rows (the cache, turned to 32 bits) is done once for all of them.

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

extern "C" void __real_ggml_compute_forward_flash_attn_ext(const ggml_compute_params *, ggml_tensor *);
extern "C" void __wrap_ggml_compute_forward_flash_attn_ext(const ggml_compute_params *, ggml_tensor *);

// For inference/engines/llama_library.py. The number is raised when a change makes other values.
extern "C" int chatsite_kernels();
extern "C" int chatsite_attention_ours();
extern "C" int chatsite_attention_passed_on();

int chatsite_kernels() { return 2; }

// How often an attention was ours; how often not (its format, or what its model adds) but ggml's.
static std::atomic<int> ours{0}, passed_on{0};
int chatsite_attention_ours() { return ours; }
int chatsite_attention_passed_on() { return passed_on; }

namespace {

constexpr int CELLS = 64;   // of the cache, looked at together
constexpr int ROWS = 32;    // of queries, most that share a look at the cache
constexpr int READING = 3;  // a look takes as long as so many rows of its work (measured; it changes no value)
constexpr int WIDEST = 256; // numbers in a head's key or value
constexpr int LANES = 8;
constexpr int AHEAD = 16;   // cells that are fetched from memory before they are read
constexpr uint16_t MASKED = 0xFC00; // minus infinity in 16 bits

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

void widen_f16(const char * from, size_t apart, float * to, int count, int cells) {
    for (int cell = 0; cell < cells; ++cell, from += apart, to += count) {
        for (int i = 0; i < count; i += LANES) {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 2 * i));
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
        }
    }
}

// Blocks of 32: a scale in 16 bits, then as many signed bytes.
void widen_q8_0(const char * from, size_t apart, float * to, int count, int cells) {
    for (int cell = 0; cell < cells; ++cell, from += apart) {
        const char * block = from;
        _mm_prefetch(from + AHEAD * apart, _MM_HINT_T0);
        _mm_prefetch(from + AHEAD * apart + 64, _MM_HINT_T0);
        for (const float * end = to + count; to < end; block += 34, to += 32) {
            uint16_t half;
            std::memcpy(&half, block, sizeof half);
            const __m256 scale = _mm256_set1_ps(_cvtsh_ss(half));
            for (int i = 0; i < 32; i += LANES) {
                const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(block + 2 + i));
                const __m256 whole = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                _mm256_storeu_ps(to + i, _mm256_mul_ps(whole, scale));
            }
        }
    }
}

Widen widening(const ggml_tensor * t) {
    const bool fits = t->ne[0] % LANES == 0 && t->ne[0] <= WIDEST;
    if (t->type == GGML_TYPE_F16 && fits) {
        return widen_f16;
    }
    return t->type == GGML_TYPE_Q8_0 && fits ? widen_q8_0 : nullptr;
}

// --- one row against one tile of cells ----------------------------------------------------

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
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(sums[4], sums[5]), _mm256_hadd_ps(sums[6], sums[7]));
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

// Scores of a row's cells, made into weights; sums so far are brought to the new highest score.
template <int WIDTH>
void weigh(Row & row, const float * query, const float * keys, int width, int first, float * weights, float * sum, int value_width) {
    __m256 highest = _mm256_set1_ps(-INFINITY);
    for (int cell = 0; cell < row.cells; cell += LANES) {
        __m256 score = products<WIDTH>(query, keys + cell * (WIDTH ? WIDTH : width), width);
        if (row.mask) {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(row.mask + first + cell));
            score = _mm256_add_ps(score, _mm256_cvtph_ps(half));
        }
        _mm256_storeu_ps(weights + cell, score);
        highest = _mm256_max_ps(highest, score);
    }
    const float now = std::max(row.highest, largest_of(highest));
    if (now > row.highest) {
        const float factor = exp_of(row.highest - now);
        scale_by(sum, factor, value_width);
        row.total *= factor;
        row.highest = now;
    }
    __m256 total = _mm256_setzero_ps();
    for (int cell = 0; cell < row.cells; cell += LANES) {
        const __m256 weight = exp_of(_mm256_sub_ps(_mm256_loadu_ps(weights + cell), _mm256_set1_ps(now)));
        _mm256_storeu_ps(weights + cell, weight);
        total = _mm256_add_ps(total, weight);
    }
    row.total += sum_of(total);
}

using Weigh = void (*)(Row &, const float *, const float *, int, int, float *, float *, int);

Weigh weighing(int width) {
    return width == 64 ? weigh<64> : width == 128 ? weigh<128> : weigh<0>;
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

// How many of these cells there are up to the last one a query sees.
int seen(const uint16_t * mask, int cells) {
    while (cells && mask[cells - 1] == MASKED) {
        --cells;
    }
    return cells;
}

// --- the whole operation ------------------------------------------------------------------

struct Attention {
    const ggml_tensor *q, *k, *v, *mask;
    ggml_tensor * dst;
    Widen widen_key, widen_value;
    Weigh weigh;
    float scale;
    int key_width, value_width;
    int64_t cells, queries, heads, shared, groups, streams; // shared: query heads to one key
    int block, blocks;                                      // rows in a unit; units to a group

    Attention(ggml_tensor * to, int threads)
        : q(to->src[0]), k(to->src[1]), v(to->src[2]), mask(to->src[3]), dst(to),
          widen_key(widening(k)), widen_value(widening(v)), weigh(weighing(k->ne[0])), key_width(k->ne[0]), value_width(v->ne[0]),
          cells(k->ne[1]), queries(q->ne[1]), heads(q->ne[2]), shared(heads / k->ne[2]), groups(k->ne[2]),
          streams(q->ne[3]) {
        std::memcpy(&scale, to->op_params, sizeof scale);
        share_out(threads);
    }

    // Units of a size with which all threads end at about the same time. Each unit reads the cache
    // anew, which takes about as long as READING rows.
    void share_out(int threads) {
        const int64_t rows = queries * shared;
        const int64_t fewest = std::max<int64_t>(1, (rows + ROWS - 1) / ROWS);
        int64_t least = INT64_MAX;
        for (int64_t parts = fewest; parts <= std::min(rows, 2 * fewest + threads); ++parts) {
            const int64_t size = (rows + parts - 1) / parts;
            const int64_t turns = (streams * groups * parts + threads - 1) / threads;
            if (turns * (size + READING) < least) {
                least = turns * (size + READING);
                block = size;
            }
        }
        blocks = (rows + block - 1) / block;
    }

    bool is_ours() const {
        float bias, cap;
        std::memcpy(&bias, dst->op_params + 1, sizeof bias);
        std::memcpy(&cap, dst->op_params + 2, sizeof cap);
        return widen_key && widen_value && q->type == GGML_TYPE_F32 && bias == 0 && cap == 0 && !dst->src[4] &&
               cells % CELLS == 0 && heads % groups == 0 && v->ne[2] == groups && k->ne[3] == streams &&
               v->ne[3] == streams && (!mask || mask->type == GGML_TYPE_F16);
    }

    int64_t units() const { return streams * groups * blocks; }

    // What a thread needs for its work. ggml reserves the room, for its own tiles.
    size_t floats() const {
        return CELLS * std::max(key_width, value_width) + ROWS * (key_width + value_width + CELLS);
    }

    const uint16_t * mask_of(int64_t query, int64_t head, int64_t stream) const {
        if (!mask) {
            return nullptr;
        }
        const char * at = static_cast<const char *>(mask->data) + query * mask->nb[1];
        at += head % mask->ne[2] * mask->nb[2] + stream % mask->ne[3] * mask->nb[3];
        return reinterpret_cast<const uint16_t *>(at);
    }

    void unit(int64_t number, float * work) const {
        const int64_t first = number % blocks * block;
        const int64_t group = number / blocks % groups, stream = number / blocks / groups;
        const int count = std::min<int64_t>(block, queries * shared - first);
        float * wide = work;
        float * query = wide + CELLS * std::max(key_width, value_width);
        float * sums = query + ROWS * key_width;
        float * weights = sums + ROWS * value_width;
        Row rows[ROWS];
        for (int r = 0; r < count; ++r) {
            const int64_t at = (first + r) / shared, head = group * shared + (first + r) % shared;
            const char * from = static_cast<const char *>(q->data) + at * q->nb[1] + head * q->nb[2] + stream * q->nb[3];
            std::memcpy(query + r * key_width, from, key_width * sizeof(float));
            scale_by(query + r * key_width, scale, key_width);
            rows[r] = {mask_of(at, head, stream), -INFINITY, 0, 0};
        }
        std::fill_n(sums, count * value_width, 0.0f);
        for (int64_t cell = 0; cell < cells; cell += CELLS) {
            tile(rows, count, cell, group, stream, wide, query, sums, weights);
        }
        for (int r = 0; r < count; ++r) {
            const int64_t at = (first + r) / shared, head = group * shared + (first + r) % shared;
            float * to = sums + r * value_width;
            scale_by(to, rows[r].total == 0 ? 0 : 1 / rows[r].total, value_width);
            char * out = static_cast<char *>(dst->data) + ((stream * queries + at) * heads + head) * dst->nb[1];
            std::memcpy(out, to, value_width * sizeof(float));
        }
    }

    // First the keys, for all rows, then the values: both at once would not fit in the nearest memory.
    void tile(Row * rows, int count, int64_t first, int64_t group, int64_t stream, float * wide, const float * query, float * sums, float * weights) const {
        int most = 0;
        for (int r = 0; r < count; ++r) {
            const bool same = r && rows[r].mask == rows[r - 1].mask;
            rows[r].cells = same ? rows[r - 1].cells : rows[r].mask ? seen(rows[r].mask + first, CELLS) : CELLS;
            most = std::max(most, rows[r].cells);
        }
        if (!most) {
            return;
        }
        const char * key = static_cast<const char *>(k->data) + first * k->nb[1] + group * k->nb[2] + stream * k->nb[3];
        widen_key(key, k->nb[1], wide, key_width, (most + LANES - 1) / LANES * LANES);
        for (int r = 0; r < count; ++r) {
            if (rows[r].cells) {
                weigh(rows[r], query + r * key_width, wide, key_width, first, weights + r * CELLS, sums + r * value_width, value_width);
            }
        }
        const char * value = static_cast<const char *>(v->data) + first * v->nb[1] + group * v->nb[2] + stream * v->nb[3];
        widen_value(value, v->nb[1], wide, value_width, most);
        for (int r = 0; r < count; ++r) {
            add_all_values(sums + r * value_width, weights + r * CELLS, wide, value_width, rows[r].cells);
        }
    }
};

} // namespace

extern "C" void __wrap_ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    const Attention attention(dst, params->nth);
    const bool has_room = params->wsize >= params->nth * attention.floats() * sizeof(float);
    if (params->use_ref || !attention.is_ours() || !has_room) {
        passed_on += params->ith == 0;
        __real_ggml_compute_forward_flash_attn_ext(params, dst);
        return;
    }
    ours += params->ith == 0;
    float * work = static_cast<float *>(params->wdata) + params->ith * attention.floats();
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t unit = params->ith; unit < attention.units();
         unit = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        attention.unit(unit, work);
    }
}
