// Products with weights (N, K) in fp32 or bf16; these are widened in registers, or for many rows once for all of them.
#include "avx512.h"

namespace blockexport::avx512 {
namespace {

static_assert(kDenseRows == 32);
constexpr int64_t kDepth = 512;  // of K, at a time: a panel of so many stays in the second cache
constexpr int kGroup = 12;       // rows of w, at a time
constexpr int64_t kWidened = kDepth + 16;  // from one widened row to the next: not all of them in the same lines of a cache

inline __m512 sixteen(const float* at, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, at); }

inline __m512 sixteen(const Bf16* at, __mmask16 mask) {
  const __m512i halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}

// kRows rows of w, `apart` rows from one another (long streams that the processor's prefetchers follow), times kVectors
// rows of activations, `stride` apart in y.
template <int kRows, int kVectors, typename Weight>
void dense_rows(int64_t k, const float* a, const Weight* w, int64_t apart, float* y, int64_t stride) {
  __m512 totals[kRows][kVectors];
  UNROLLED for (auto& row : totals) {
    UNROLLED for (auto& total : row) total = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t i, __mmask16 mask) __attribute__((always_inline)) {
    __m512 activations[kVectors];
    UNROLLED for (int v = 0; v < kVectors; ++v) activations[v] = _mm512_maskz_loadu_ps(mask, a + v * k + i);
    UNROLLED for (int r = 0; r < kRows; ++r) {
      prefetch_stream(w + r * apart * k + i);
      const __m512 weights = sixteen(w + r * apart * k + i, mask);
      UNROLLED for (int v = 0; v < kVectors; ++v) totals[r][v] = _mm512_fmadd_ps(activations[v], weights, totals[r][v]);
    }
  };
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) step(i, 0xffff);
  if (i < k) step(i, first_lanes(k - i));
  UNROLLED for (int r = 0; r < kRows; ++r) {
    UNROLLED for (int v = 0; v < kVectors; ++v) y[v * stride + r * apart] = _mm512_reduce_add_ps(totals[r][v]);
  }
}

template <int kVectors, typename Weight>
void dense_vectors(int64_t k, const float* a, const Weight* w, int64_t count, float* y, int64_t stride) {
  const int64_t apart = count / 4;
  for (int64_t n = 0; n < apart; ++n) dense_rows<4, kVectors>(k, a, w + n * k, apart, y + n, stride);
  for (int64_t n = 4 * apart; n < count; ++n) dense_rows<1, kVectors>(k, a, w + n * k, 0, y + n, stride);
}

// sums (kColumns, apart) += w (kColumns, length)[:, :depth] . panel (depth, kDenseRows)[:, :16 * kVectors]. Weights are
// taken one by one for 16 rows of activations each: nothing is packed but the activations.
template <int kColumns, int kVectors>
void tile(int64_t length, int64_t depth, const float* panel, const float* w, bool add, float* sums, int64_t apart) {
  __m512 totals[kColumns][kVectors];
  UNROLLED for (int c = 0; c < kColumns; ++c) {
    UNROLLED for (int v = 0; v < kVectors; ++v) {
      totals[c][v] = add ? _mm512_load_ps(sums + c * apart + v * 16) : _mm512_setzero_ps();
    }
  }
  for (int64_t i = 0; i < depth; ++i) {
    __m512 rows[kVectors];
    UNROLLED for (int v = 0; v < kVectors; ++v) rows[v] = _mm512_load_ps(panel + i * kDenseRows + v * 16);
    UNROLLED for (int c = 0; c < kColumns; ++c) {
      const __m512 weight = _mm512_set1_ps(w[c * length + i]);
      UNROLLED for (int v = 0; v < kVectors; ++v) totals[c][v] = _mm512_fmadd_ps(weight, rows[v], totals[c][v]);
    }
  }
  UNROLLED for (int c = 0; c < kColumns; ++c) {
    UNROLLED for (int v = 0; v < kVectors; ++v) _mm512_store_ps(sums + c * apart + v * 16, totals[c][v]);
  }
}

// w (count, k)[:, :depth] in fp32, its rows `length` from one another: where it lies, or widened into `memory`.
const float* in_fp32(const float* w, int64_t k, int64_t, int64_t, float*, int64_t* length) {
  *length = k;
  return w;
}

const float* in_fp32(const Bf16* w, int64_t k, int64_t count, int64_t depth, float* memory, int64_t* length) {
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t i = 0; i < depth; i += 16) {
      _mm512_store_ps(memory + row * kWidened + i, sixteen(w + row * k + i, first_lanes(depth - i)));
    }
  }
  *length = kWidened;
  return memory;
}

template <int kColumns, typename Weight>
void group(int64_t k, int64_t depth, const float* panels, int64_t num_rows, const Weight* w, bool add, float* sums,
           int64_t apart) {
  alignas(64) float memory[kColumns * kWidened];
  int64_t length;
  const float* weights = in_fp32(w, k, kColumns, depth, memory, &length);
  for (int64_t row = 0; row < num_rows; row += kDenseRows, panels += k * kDenseRows) {
    const auto run = num_rows - row > 16 ? tile<kColumns, 2> : tile<kColumns, 1>;
    run(length, depth, panels, weights, add, sums + row, apart);
  }
}

// y (num_rows, stride)[:, :count] = sums (count, apart), the other way round.
void turn(const float* sums, int64_t apart, int64_t num_rows, int64_t count, float* y, int64_t stride) {
  __m512i columns[16];
  for (int64_t row = 0; row < num_rows; row += 16) {
    for (int64_t column = 0; column < count; column += 16) {
      const void* from[16];
      for (int64_t i = 0; i < 16; ++i) from[i] = sums + (column + i < count ? column + i : count - 1) * apart + row;
      transpose(from, 0, 0xffff, columns);
      const __mmask16 mask = first_lanes(count - column);
      for (int64_t i = 0; i < 16 && row + i < num_rows; ++i) {
        _mm512_mask_storeu_epi32(y + (row + i) * stride + column, mask, columns[i]);
      }
    }
  }
}

template <typename Weight>
void prefetch(const Weight* w, int64_t k, int64_t columns, int64_t depth) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t i = 0; i < depth; i += 64 / int64_t{sizeof(Weight)}) {
      _mm_prefetch(reinterpret_cast<const char*>(w + c * k + i), _MM_HINT_T1);
    }
  }
}

}  // namespace

template <typename Weight>
void dense_dot(int64_t k, const float* a, int64_t num_rows, const Weight* w, int64_t count, float* y, int64_t stride) {
  int64_t row = 0;
  for (; row + 4 <= num_rows; row += 4) dense_vectors<4>(k, a + row * k, w, count, y + row * stride, stride);
  if (num_rows - row >= 2) {
    dense_vectors<2>(k, a + row * k, w, count, y + row * stride, stride);
    row += 2;
  }
  if (row < num_rows) dense_vectors<1>(k, a + row * k, w, count, y + row * stride, stride);
}

template <typename Weight>
void dense_tiles(int64_t k, const float* panels, int64_t num_rows, const Weight* w, int64_t count, float* scratch,
                 float* y, int64_t stride) {
  const int64_t apart = dense_scratch(num_rows) / kDenseColumns;
  for (int64_t from = 0; from < k; from += kDepth) {
    const int64_t depth = k - from < kDepth ? k - from : kDepth;
    const float* at = panels + from * kDenseRows;
    int64_t column = 0;
    for (; column + kGroup <= count; column += kGroup) {
      const Weight* rows = w + column * k + from;
      // What is read next: the next rows of w, or more of the first.
      const bool last = column + 2 * kGroup > count;
      if (!last || from + depth < k) prefetch(last ? w + from + depth : rows + kGroup * k, k, kGroup, depth);
      group<kGroup>(k, depth, at, num_rows, rows, from > 0, scratch + column * apart, apart);
    }
    for (; column + 4 <= count; column += 4) {
      group<4>(k, depth, at, num_rows, w + column * k + from, from > 0, scratch + column * apart, apart);
    }
    for (; column < count; ++column) {
      group<1>(k, depth, at, num_rows, w + column * k + from, from > 0, scratch + column * apart, apart);
    }
  }
  turn(scratch, apart, num_rows, count, y, stride);
}

template void dense_dot(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t);
template void dense_dot(int64_t, const float*, int64_t, const Bf16*, int64_t, float*, int64_t);
template void dense_tiles(int64_t, const float*, int64_t, const float*, int64_t, float*, float*, int64_t);
template void dense_tiles(int64_t, const float*, int64_t, const Bf16*, int64_t, float*, float*, int64_t);

}  // namespace blockexport::avx512
