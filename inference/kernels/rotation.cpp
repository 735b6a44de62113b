// The rotation (Walsh-Hadamard) of queries, keys and values, in place of ggml's: a cache of eight
// bits is more exact with it. The same sums in the same order, so the same values, but the first
// three rounds are made in registers too.

#include "ggml-cpu-impl.h"
#include "ggml.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

extern "C" void __real_ggml_compute_forward_fwht(const ggml_compute_params *, ggml_tensor *);
extern "C" void __wrap_ggml_compute_forward_fwht(const ggml_compute_params *, ggml_tensor *);

// How often a rotation was ours.
extern "C" int chatsite_rotations_ours();
static std::atomic<int> ours{0};
int chatsite_rotations_ours() { return ours; }

namespace {

constexpr int LANES = 8;

// Rounds of neighbours 1, 2 and 4 numbers apart: of each two, the sum and the difference.
inline __m256 in_register(__m256 x) {
    const __m256 minus = _mm256_set1_ps(-0.0f), none = _mm256_setzero_ps();
    __m256 sign = _mm256_blend_ps(none, minus, 0b10101010);
    x = _mm256_add_ps(_mm256_moveldup_ps(x), _mm256_xor_ps(_mm256_movehdup_ps(x), sign));
    sign = _mm256_blend_ps(none, minus, 0b11001100);
    x = _mm256_add_ps(_mm256_permute_ps(x, 0x44), _mm256_xor_ps(_mm256_permute_ps(x, 0xEE), sign));
    sign = _mm256_blend_ps(none, minus, 0b11110000);
    return _mm256_add_ps(_mm256_permute2f128_ps(x, x, 0x00), _mm256_xor_ps(_mm256_permute2f128_ps(x, x, 0x11), sign));
}

void rotate(const float * from, float * to, int64_t count) {
    const __m256 scale = _mm256_set1_ps(1.0f / std::sqrt(static_cast<float>(count)));
    for (int64_t i = 0; i < count; i += LANES) {
        _mm256_storeu_ps(to + i, in_register(_mm256_mul_ps(_mm256_loadu_ps(from + i), scale)));
    }
    for (int64_t apart = LANES; apart < count; apart *= 2) {
        for (int64_t i = 0; i < count; i += i % apart == apart - LANES ? apart + LANES : LANES) {
            const __m256 u = _mm256_loadu_ps(to + i), v = _mm256_loadu_ps(to + i + apart);
            _mm256_storeu_ps(to + i, _mm256_add_ps(u, v));
            _mm256_storeu_ps(to + i + apart, _mm256_sub_ps(u, v));
        }
    }
}

} // namespace

extern "C" void __wrap_ggml_compute_forward_fwht(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * src = dst->src[1];
    const int64_t count = src->ne[0];
    if (src->type != GGML_TYPE_F32 || count < LANES || src->nb[0] != sizeof(float)) {
        __real_ggml_compute_forward_fwht(params, dst);
        return;
    }
    ours += params->ith == 0;
    const int64_t rows = ggml_nrows(src), each = (rows + params->nth - 1) / params->nth;
    for (int64_t row = params->ith * each; row < std::min(rows, (params->ith + 1) * each); ++row) {
        const int64_t i1 = row % src->ne[1], i2 = row / src->ne[1] % src->ne[2], i3 = row / src->ne[1] / src->ne[2];
        const char * from = static_cast<const char *>(src->data) + i1 * src->nb[1] + i2 * src->nb[2] + i3 * src->nb[3];
        char * to = static_cast<char *>(dst->data) + i1 * dst->nb[1] + i2 * dst->nb[2] + i3 * dst->nb[3];
        rotate(reinterpret_cast<const float *>(from), reinterpret_cast<float *>(to), count);
    }
}
