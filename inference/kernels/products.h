// What products with all formats of weights are made of.

#pragma once

#include <immintrin.h>

namespace {

// Weights are asked for in the order in which they lie, before they are read in another: the
// processor looks ahead for itself only where reading goes straight on, and memory is what takes time.
inline void fetch(const void * from, int bytes) {
    for (int at = 0; at < bytes; at += 64) {
        _mm_prefetch(static_cast<const char *>(from) + at, _MM_HINT_T0);
    }
}

// --- four products of unsigned by signed bytes, added to a whole number -------------------

#if (defined(__AVX512VNNI__) && defined(__AVX512VL__)) || defined(__AVXVNNI__)
#define CHATSITE_VNNI 1

inline __m256i add_products(__m256i sum, __m256i w, __m256i y) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, w, y);
#else
    return _mm256_dpbusd_avx_epi32(sum, w, y);
#endif
}

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define CHATSITE_WIDE_VNNI 1 // for 64 bytes at once, too

inline __m512i add_products(__m512i sum, __m512i w, __m512i y) { return _mm512_dpbusd_epi32(sum, w, y); }
#endif

#else

// Two products must fit 16 bits.
inline __m256i add_products(__m256i sum, __m256i w, __m256i y) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, y), _mm256_set1_epi16(1)));
}

#endif

} // namespace
