// Products with fp32 weights (N, K).
#include "avx512.h"

namespace blockexport::avx512 {
namespace {

static_assert(kDenseRows == 12);
constexpr int64_t kDepth = kDenseScratch / kTileColumns;  // of K, at a time

// kRows rows of w, `apart` rows from one another (long streams that the processor's prefetchers follow), times kVectors
// rows of activations, `stride` apart in y.
template <int kRows, int kVectors>
void dense_rows(int64_t k, const float* a, const float* w, int64_t apart, float* y, int64_t stride) {
  __m512 totals[kRows][kVectors];
  UNROLLED for (auto& row : totals) {
    UNROLLED for (auto& total : row) total = _mm512_setzero_ps();
  }
  const auto step = [&](int64_t i, __mmask16 mask) __attribute__((always_inline)) {
    __m512 activations[kVectors];
    UNROLLED for (int v = 0; v < kVectors; ++v) activations[v] = _mm512_maskz_loadu_ps(mask, a + v * k + i);
    UNROLLED for (int r = 0; r < kRows; ++r) {
      const __m512 weights = _mm512_maskz_loadu_ps(mask, w + r * apart * k + i);
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

template <int kVectors>
void dense_vectors(int64_t k, const float* a, const float* w, int64_t count, float* y, int64_t stride) {
  const int64_t apart = count / 4;
  for (int64_t n = 0; n < apart; ++n) dense_rows<4, kVectors>(k, a, w + n * k, apart, y + n, stride);
  for (int64_t n = 4 * apart; n < count; ++n) dense_rows<1, kVectors>(k, a, w + n * k, 0, y + n, stride);
}

// out (depth, kTileColumns) = columns of w from `from` on; those that are not there repeat the last.
void pack(int64_t k, const float* w, int64_t count, int64_t from, int64_t depth, float* out) {
  __m512i column[16];
  for (int64_t half = 0; half < kTileColumns; half += 16) {
    const void* rows[16];
    for (int64_t i = 0; i < 16; ++i) rows[i] = w + (half + i < count ? half + i : count - 1) * k + from;
    for (int64_t at = 0; at < depth; at += 16) {
      transpose(rows, at, first_lanes(depth - at), column);
      for (int64_t i = at; i < depth && i < at + 16; ++i) {
        _mm512_store_si512(out + i * kTileColumns + half, column[i - at]);
      }
    }
  }
}

void prefetch(const float* row) {
  for (int64_t i = 0; i < kDepth; i += 16) _mm_prefetch(reinterpret_cast<const char*>(row + i), _MM_HINT_T1);
}

// kRows: the rows of the panel that are used.
template <int kRows>
void tile(int64_t depth, const float* a, const float* w, bool add, int64_t num_rows, int64_t count, float* y,
          int64_t stride) {
  const __mmask16 masks[2] = {first_lanes(count), first_lanes(count - 16)};
  __m512 totals[kRows][2];
  UNROLLED for (int r = 0; r < kRows; ++r) {
    UNROLLED for (int half = 0; half < 2; ++half) {
      totals[r][half] = add && r < num_rows ? _mm512_maskz_loadu_ps(masks[half], y + r * stride + half * 16)
                                            : _mm512_setzero_ps();
    }
  }
  for (int64_t i = 0; i < depth; ++i) {
    const __m512 left = _mm512_load_ps(w + i * kTileColumns);
    const __m512 right = _mm512_load_ps(w + i * kTileColumns + 16);
    UNROLLED for (int r = 0; r < kRows; ++r) {
      const __m512 one = _mm512_set1_ps(a[i * kDenseRows + r]);
      totals[r][0] = _mm512_fmadd_ps(one, left, totals[r][0]);
      totals[r][1] = _mm512_fmadd_ps(one, right, totals[r][1]);
    }
  }
  UNROLLED for (int r = 0; r < kRows; ++r) {
    if (r >= num_rows) break;
    UNROLLED for (int half = 0; half < 2; ++half) {
      _mm512_mask_storeu_ps(y + r * stride + half * 16, masks[half], totals[r][half]);
    }
  }
}

}  // namespace

void dense_dot(int64_t k, const float* a, int64_t num_rows, const float* w, int64_t count, float* y, int64_t stride) {
  int64_t row = 0;
  for (; row + 4 <= num_rows; row += 4) dense_vectors<4>(k, a + row * k, w, count, y + row * stride, stride);
  if (num_rows - row >= 2) {
    dense_vectors<2>(k, a + row * k, w, count, y + row * stride, stride);
    row += 2;
  }
  if (row < num_rows) dense_vectors<1>(k, a + row * k, w, count, y + row * stride, stride);
}

void dense_tiles(int64_t k, const float* panels, int64_t num_rows, const float* w, int64_t count, float* scratch,
                 float* y, int64_t stride) {
  const int64_t rows_ahead = kTileColumns * kDenseRows / num_rows + 1;
  for (int64_t from = 0; from < k; from += kDepth) {
    const int64_t depth = k - from < kDepth ? k - from : kDepth;
    pack(k, w, count, from, depth, scratch);
    // What is packed next: more of the same columns, or else the first of the next ones.
    const float* next = from + depth < k ? w + from + depth : w + count * k;
    for (int64_t row = 0; row < num_rows; row += kDenseRows) {
      for (int64_t ahead = 0; ahead < rows_ahead; ++ahead, next += k) prefetch(next);
      const int64_t rows = num_rows - row < kDenseRows ? num_rows - row : kDenseRows;
      const auto run = rows > 8 ? tile<12> : rows > 4 ? tile<8> : tile<4>;
      run(depth, panels + row * k + from * kDenseRows, scratch, from > 0, rows, count, y + row * stride, stride);
    }
  }
}

}  // namespace blockexport::avx512
