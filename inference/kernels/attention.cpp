// Attention on x86 processors with AVX2, in place of ggml's flash attention for the CPU.
//
// A token's values depend on the tokens before it and their places in the cache, and on nothing
// else: not on how many tokens are evaluated with it, nor for whom, nor by how many threads.
// Each number is made by the same operations in the same order whatever the batch; only what
// is shared between rows (the cache, turned to 32 bits) is done once for all of them.

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "tiles.h"
#if CHATSITE_WIDE_TILES
#include "tiles_wide.h"
#else
#include "tiles_plain.h"
#endif

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

constexpr int ROWS = 32;    // of queries, most that share a look at the cache
constexpr int READING = 3;  // a look takes as long as so many rows of its work (measured before few rows were read in registers; it changes no value)
constexpr int LINE = 64;    // bytes that come from memory together
constexpr int WIDEST = 256; // numbers in a head's key or value
constexpr uint16_t MASKED = 0xFC00; // minus infinity in 16 bits

Widen widening(const ggml_tensor * t, Widen of_f16, Widen of_q8_0) {
    const bool fits = t->ne[0] % LANES == 0 && t->ne[0] <= WIDEST;
    if (t->type == GGML_TYPE_F16 && fits) {
        return of_f16;
    }
    return t->type == GGML_TYPE_Q8_0 && fits ? of_q8_0 : nullptr;
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
    float scale;
    int key_width, value_width;
    int64_t cells, queries, heads, shared, groups, streams; // shared: query heads to one key
    int block, blocks;                                      // rows in a unit; units to a group

    Attention(ggml_tensor * to, int threads)
        : q(to->src[0]), k(to->src[1]), v(to->src[2]), mask(to->src[3]), dst(to),
          widen_key(widening(k, keys_f16, keys_q8_0)), widen_value(widening(v, values_f16, values_q8_0)), key_width(k->ne[0]), value_width(v->ne[0]),
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

    // What a thread needs for its work, in whole lines of memory. ggml reserves the room, for its own
    // tiles.
    size_t bytes() const {
        const size_t floats = CELLS * std::max(key_width, value_width) + ROWS * (key_width + value_width + CELLS);
        return (floats * sizeof(float) + LINE - 1) / LINE * LINE;
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
        bool alike = true;
        for (int r = 0; r < count; ++r) {
            const bool same = r && rows[r].mask == rows[r - 1].mask;
            rows[r].cells = same ? rows[r - 1].cells : rows[r].mask ? seen(rows[r].mask + first, CELLS) : CELLS;
            most = std::max(most, rows[r].cells);
            alike = alike && rows[r].cells == rows[0].cells;
        }
        if (!most) {
            return;
        }
        const bool few = count <= FEW && alike;
        const char * key = static_cast<const char *>(k->data) + first * k->nb[1] + group * k->nb[2] + stream * k->nb[3];
        score_all(few, rows, count, key, most, wide, query, weights);
        for (int r = 0; r < count; ++r) {
            if (rows[r].cells) {
                weigh(rows[r], first, weights + r * CELLS, sums + r * value_width, value_width);
            }
        }
        const char * value = static_cast<const char *>(v->data) + first * v->nb[1] + group * v->nb[2] + stream * v->nb[3];
        add_all(few, rows, count, value, most, wide, weights, sums);
    }

    void score_all(bool few, const Row * rows, int count, const char * key, int most, float * wide, const float * query, float * weights) const {
        if (few && k->type == GGML_TYPE_Q8_0) {
            SCORE_FEW[count - 1](key, k->nb[1], query, key_width, most, weights);
            return;
        }
        widen_key(key, k->nb[1], wide, key_width, (most + LANES - 1) / LANES * LANES);
        score_rows(rows, count, query, wide, key_width, weights);
    }

    void add_all(bool few, const Row * rows, int count, const char * value, int most, float * wide, const float * weights, float * sums) const {
        if (few && v->type == GGML_TYPE_Q8_0) {
            ADD_FEW[count - 1](value, v->nb[1], weights, value_width, most, sums);
            return;
        }
        widen_value(value, v->nb[1], wide, value_width, most);
        add_rows(rows, count, weights, wide, value_width, sums);
    }
};

} // namespace

extern "C" void __wrap_ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    const Attention attention(dst, params->nth);
    const size_t to_line = -reinterpret_cast<uintptr_t>(params->wdata) % LINE; // what lies across two takes twice as long
    const bool has_room = params->wsize >= to_line + params->nth * attention.bytes();
    if (params->use_ref || !attention.is_ours() || !has_room) {
        passed_on += params->ith == 0;
        __real_ggml_compute_forward_flash_attn_ext(params, dst);
        return;
    }
    ours += params->ith == 0;
    char * room = static_cast<char *>(params->wdata) + to_line + params->ith * attention.bytes();
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t unit = params->ith; unit < attention.units();
         unit = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        attention.unit(unit, reinterpret_cast<float *>(room));
    }
}
