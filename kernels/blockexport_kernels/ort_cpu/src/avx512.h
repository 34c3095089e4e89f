// The parts of the path for AVX-512 with VNNI. Nothing of the standard library is instantiated in its files: the linker
// might keep that copy of a template for the whole library, and other processors could not run it.
#pragma once
#include <immintrin.h>

#include "paths.h"

// Before a loop over an array of registers. Only an index that the compiler knows early keeps the array out of memory.
#define UNROLLED _Pragma("GCC unroll 16")

namespace blockexport::avx512 {

void dot(const Layout& layout, const Record* records, const Matrix& w, int64_t first, int64_t count, float* y);
void tiles(const Layout& layout, const Panel* panels, int64_t num_rows, const Matrix& w, int64_t first, int64_t count,
           uint8_t* scratch, float* y, int64_t stride);
// For weights in fp32 and in bf16.
template <typename Weight>
void dense_dot(int64_t k, const float* a, int64_t num_rows, const Weight* w, int64_t count, float* y, int64_t stride);
template <typename Weight>
void dense_tiles(int64_t k, const float* panels, int64_t num_rows, const Weight* w, int64_t count, float* scratch,
                 float* y, int64_t stride);
void attend(const AttentionTask& task);

// out[i] = dword i of each of the 16 rows, of which each is read from its first dword on; dwords outside mask are zero.
static inline void transpose(const void* const rows[16], int64_t dword, __mmask16 mask, __m512i out[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_maskz_loadu_epi32(mask, static_cast<const int32_t*>(rows[i]) + dword);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // a[4r + i], quarter q: dword 4q + i of rows 4r ... 4r + 3
    const __m512i even_low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    out[i] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    out[4 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    out[8 + i] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    out[12 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}

// Ahead in a long stream, past the ends of pages, where the processor's own prefetchers start anew (measured: 5 to 9 %).
static inline void prefetch_stream(const void* at) {
  _mm_prefetch(static_cast<const char*>(at) + 1024, _MM_HINT_T1);
}

static inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (count < 0 ? 0 : count)) - 1);
}

}  // namespace blockexport::avx512
