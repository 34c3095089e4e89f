// Many rows of activations times quantised weights. Weights are unpacked once for kTileColumns columns, with these side by
// side in the lanes: a sum over a block needs no shuffle, and scales are applied to 16 columns at a time.
#include "avx512.h"

namespace blockexport::avx512 {
namespace {

static_assert(kTileRows == 6);

// kTileColumns columns of w, in `scratch` (unpacked_bytes(layout)).
struct Columns {
  uint8_t* codes;  // (k / 4, kTileColumns, 4), in the order of Panel
  float* scales;   // (blocks, kTileColumns)
  int32_t* zeros;  // (blocks, kTileColumns)

  Columns(const Layout& layout, uint8_t* scratch)
      : codes(scratch),
        scales(reinterpret_cast<float*>(codes + layout.padded_k() * kTileColumns)),
        zeros(reinterpret_cast<int32_t*>(scales + layout.blocks * kTileColumns)) {}
};

void unpack_codes(const Layout& layout, const void* const rows[16], uint8_t* out) {
  const __m512i low = _mm512_set1_epi8(15);
  const int64_t dwords = layout.row_bytes() / 4;
  __m512i column[16];
  for (int64_t dword = 0; dword < dwords; dword += 16) {
    transpose(rows, dword, first_lanes(dwords - dword), column);
    const int used = static_cast<int>(dwords - dword < 16 ? dwords - dword : 16);
    for (int i = 0; i < used; ++i) {
      if (layout.bits == 8) {
        _mm512_store_si512(out + (dword + i) * kTileColumns * 4, column[i]);
      } else {
        uint8_t* at = out + (dword + i) * kTileColumns * 8;
        _mm512_store_si512(at, _mm512_and_si512(column[i], low));
        _mm512_store_si512(at + kTileColumns * 4, _mm512_and_si512(_mm512_srli_epi16(column[i], 4), low));
      }
    }
  }
}

void unpack_scales(const Layout& layout, const void* const rows[16], float* out) {
  __m512i column[16];
  for (int64_t block = 0; block < layout.blocks; block += 16) {
    transpose(rows, block, first_lanes(layout.blocks - block), column);
    for (int64_t i = block; i < layout.blocks && i < block + 16; ++i) {
      _mm512_store_si512(out + i * kTileColumns, column[i - block]);
    }
  }
}

void unpack(const Layout& layout, const Matrix& w, int64_t first, int64_t count, const Columns& out) {
  for (int64_t half = 0; half < kTileColumns; half += 16) {
    const void* codes[16];
    const void* scales[16];
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t row = first + (half + i < count ? half + i : count - 1);  // columns not there repeat it
      codes[i] = w.codes + row * layout.row_bytes();
      scales[i] = w.scales + row * layout.blocks;
      for (int64_t block = 0; w.zeros != nullptr && block < layout.blocks; ++block) {
        out.zeros[block * kTileColumns + half + i] = zero_point(layout, w, row, block);
      }
    }
    unpack_codes(layout, codes, out.codes + half * 4);
    unpack_scales(layout, scales, out.scales + half);
  }
}

// Brings the next rows of w nearer, a share for each panel: the same thread mostly goes on with them.
class Prefetcher {
 public:
  Prefetcher(const Layout& layout, const Matrix& w, int64_t first, int64_t num_rows) {
    const int64_t rows = w.n - first < kTileColumns ? w.n - first : kTileColumns;
    const int64_t num_panels = (num_rows + kTileRows - 1) / kTileRows;
    add(w.codes + first * layout.row_bytes(), rows * layout.row_bytes(), num_panels, codes_);
    add(reinterpret_cast<const uint8_t*>(w.scales + first * layout.blocks), rows * layout.blocks * 4, num_panels,
        scales_);
  }

  void some() {
    codes_.advance();
    scales_.advance();
  }

 private:
  struct Range {
    const uint8_t* at;
    const uint8_t* end;
    int64_t share;

    void advance() {
      const uint8_t* stop = end - at < share ? end : at + share;
      for (; at < stop; at += 64) _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
    }
  };

  static void add(const uint8_t* begin, int64_t bytes, int64_t num_panels, Range& range) {
    range = {begin, begin + bytes, bytes / num_panels + 64};
  }

  Range codes_;
  Range scales_;
};

// kRows: the rows of the panel that are used.
template <bool kZeros, int kRows>
void tile(const Layout& layout, const Panel& panel, const Columns& w, const float* bias, int64_t num_rows,
          int64_t count, float* y, int64_t stride) {
  const __mmask16 masks[2] = {first_lanes(count), first_lanes(count - 16)};
  __m512 totals[kRows][2];
  UNROLLED for (int half = 0; half < 2; ++half) {
    const __m512 start = bias ? _mm512_maskz_loadu_ps(masks[half], bias + half * 16) : _mm512_setzero_ps();
    UNROLLED for (int r = 0; r < kRows; ++r) totals[r][half] = start;
  }
  const int8_t* a = panel.codes;
  const uint8_t* codes = w.codes;
  for (int64_t block = 0; block < layout.blocks; ++block) {
    const int32_t* corrections = panel.corrections + block * kTileRows;
    __m512i sums[kRows][2];
    UNROLLED for (int r = 0; r < kRows; ++r) {
      const __m512i correction = _mm512_set1_epi32(corrections[r]);
      UNROLLED for (int half = 0; half < 2; ++half) {
        sums[r][half] = correction;
        if (kZeros) {  // zero points and sums fit in 16 bits, and the upper half of a zero point is zero
          const __m512i zero = _mm512_load_si512(w.zeros + block * kTileColumns + half * 16);
          sums[r][half] = _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero, correction);
        }
      }
    }
    for (int step = 0; step < layout.block / 4; ++step) {
      const __m512i left = _mm512_load_si512(codes);
      const __m512i right = _mm512_load_si512(codes + 64);
      UNROLLED for (int r = 0; r < kRows; ++r) {
        const __m512i four = _mm512_set1_epi32(reinterpret_cast<const int32_t*>(a)[r]);
        sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], left, four);
        sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], right, four);
      }
      codes += kTileColumns * 4;
      a += kTileRows * 4;
    }
    UNROLLED for (int half = 0; half < 2; ++half) {
      const __m512 scale = _mm512_load_ps(w.scales + block * kTileColumns + half * 16);
      UNROLLED for (int r = 0; r < kRows; ++r) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(panel.scales[block * kTileRows + r]));
        totals[r][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][half]), both, totals[r][half]);
      }
    }
  }
  UNROLLED for (int r = 0; r < kRows; ++r) {
    if (r >= num_rows) break;
    UNROLLED for (int half = 0; half < 2; ++half) {
      _mm512_mask_storeu_ps(y + r * stride + half * 16, masks[half], totals[r][half]);
    }
  }
}

template <bool kZeros>
auto tile_of(int64_t rows) {
  return rows > 4 ? tile<kZeros, 6> : rows > 2 ? tile<kZeros, 4> : tile<kZeros, 2>;
}

}  // namespace

void tiles(const Layout& layout, const Panel* panels, int64_t num_rows, const Matrix& w, int64_t first, int64_t count,
           uint8_t* scratch, float* y, int64_t stride) {
  const Columns columns(layout, scratch);
  unpack(layout, w, first, count, columns);
  Prefetcher next(layout, w, first + count, num_rows);
  const float* bias = w.bias ? w.bias + first : nullptr;
  for (int64_t row = 0; row < num_rows; row += kTileRows, ++panels) {
    const int64_t rows = num_rows - row < kTileRows ? num_rows - row : kTileRows;
    next.some();
    const auto run = w.zeros ? tile_of<true>(rows) : tile_of<false>(rows);
    run(layout, *panels, columns, bias, rows, count, y + row * stride, stride);
  }
}

}  // namespace blockexport::avx512
