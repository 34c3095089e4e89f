// Rows of quantised weights times one row of activations: 64 products of an unsigned weight and a signed activation an
// instruction, and no shuffle, because the activations were laid out for the weights.
#include <immintrin.h>

#include "avx512.h"

namespace blockexport::avx512 {
namespace {

inline __mmask64 first_bytes(int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

// Where a group's scales and zero points are. kPerGroup: how many blocks have a share in it (1 if a block is longer).
template <int kBits, int kPerGroup>
struct Blocks {
  __m512i lane_block;  // lane -> block within the group
  int shift;           // log2 of the groups that one block covers

  explicit Blocks(const Layout& layout) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    lane_block = _mm512_srli_epi32(lane, kPerGroup == 8 ? 1 : kPerGroup == 4 ? 2 : kPerGroup == 2 ? 3 : 4);
    shift = 0;
    while ((layout.group_codes() << shift) < layout.block) ++shift;
  }

  int64_t first(int64_t group) const { return kPerGroup > 1 ? group * kPerGroup : group >> shift; }

  // `left`: blocks of the row from this group's first on; no scale behind them is read.
  __m512 scales(const float* row, int64_t group, int64_t left) const {
    if (kPerGroup == 1) return _mm512_set1_ps(row[first(group)]);
    const __mmask16 mask = static_cast<__mmask16>((1u << (left < kPerGroup ? left : kPerGroup)) - 1);
    const __m512 packed = _mm512_maskz_loadu_ps(mask, row + first(group));
    return _mm512_permutexvar_ps(lane_block, packed);
  }

  __m512 full_scales(const float* row, int64_t group) const {
    if (kPerGroup == 1) return _mm512_set1_ps(row[first(group)]);
    const float* at = row + first(group);
    __m512 packed;
    if (kPerGroup == 8) packed = _mm512_castps256_ps512(_mm256_loadu_ps(at));
    if (kPerGroup == 4) packed = _mm512_castps128_ps512(_mm_loadu_ps(at));
    if (kPerGroup == 2) {
      packed = _mm512_castps128_ps512(_mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(at))));
    }
    return _mm512_permutexvar_ps(lane_block, packed);
  }

  // The zero point of each lane's block.
  __m512i zeros(const uint8_t* row, int64_t group, int64_t left) const {
    const int64_t bit = first(group) * kBits;
    const int64_t wanted = (left < kPerGroup ? left : kPerGroup) * kBits + bit % 8;
    uint32_t word = 0;
    for (int64_t byte = 0; byte * 8 < wanted; ++byte) word |= uint32_t{row[bit / 8 + byte]} << (byte * 8);
    const __m512i shifts = _mm512_mullo_epi32(lane_block, _mm512_set1_epi32(kBits));
    const __m512i spread = _mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(word >> (bit % 8))), shifts);
    return _mm512_and_si512(spread, _mm512_set1_epi32((1 << kBits) - 1));
  }
};

template <int kBits>
inline __m512i products(__m512i sums, __m512i codes, const Record& record) {
  const __m512i first = _mm512_load_si512(record.codes[0]);
  if (kBits == 8) return _mm512_dpbusd_epi32(sums, codes, first);
  const __m512i low = _mm512_set1_epi8(15);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
  sums = _mm512_dpbusd_epi32(sums, _mm512_and_si512(codes, low), first);
  return _mm512_dpbusd_epi32(sums, odd, _mm512_load_si512(record.codes[1]));
}

// kRows rows of w at once, so that each record is read once for them. They lie `apart` rows from one another: each is
// then a long stream of its own that the processor's prefetchers follow (measured: 27 GB/s a core; neighbouring rows: 11), and
// prefetch_stream helps them along.
template <int kBits, int kPerGroup, bool kZeros, int kRows>
void dot_rows(const Layout& layout, const Blocks<kBits, kPerGroup>& blocks, const Record* records, const Matrix& w,
              int64_t first, int64_t apart, float* y) {
  const int64_t bytes = layout.row_bytes();
  const uint8_t* codes = w.codes + first * bytes;
  const float* scales = w.scales + first * layout.blocks;
  const uint8_t* zeros = kZeros ? w.zeros + first * layout.zeros_bytes() : nullptr;
  __m512 totals[kRows];
  UNROLLED for (auto& total : totals) total = _mm512_setzero_ps();
  const auto step = [&](int64_t group, bool full) __attribute__((always_inline)) {
    const Record& record = records[group];
    const __m512i correction = _mm512_load_si512(record.correction);
    const __m512 scale = _mm512_load_ps(record.scale);
    const int64_t left = full ? kPerGroup : layout.blocks - blocks.first(group);
    UNROLLED for (int r = 0; r < kRows; ++r) {
      const uint8_t* at = codes + r * apart * bytes + group * 64;
      prefetch_stream(at);
      const __m512i packed =
          full ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi8(first_bytes(bytes - group * 64), at);
      __m512i sums = correction;
      if (kZeros) {
        const __m512i zero = blocks.zeros(zeros + r * apart * layout.zeros_bytes(), group, left);
        sums = _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero, correction);
      }
      sums = products<kBits>(sums, packed, record);
      const float* row_scales = scales + r * apart * layout.blocks;
      const __m512 weight_scale =
          full ? blocks.full_scales(row_scales, group) : blocks.scales(row_scales, group, left);
      totals[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(scale, weight_scale), totals[r]);
    }
  };
  const int64_t full_groups = bytes / 64;
  for (int64_t group = 0; group < full_groups; ++group) step(group, true);
  if (full_groups < layout.groups) step(full_groups, false);
  UNROLLED for (int r = 0; r < kRows; ++r) {
    const float bias = w.bias ? w.bias[first + r * apart] : 0.0f;
    y[r * apart] = _mm512_reduce_add_ps(totals[r]) + bias;
  }
}

template <int kBits, int kPerGroup, bool kZeros>
void dot_blocks(const Layout& layout, const Record* records, const Matrix& w, int64_t first, int64_t count, float* y) {
  const Blocks<kBits, kPerGroup> blocks(layout);
  const int64_t apart = count / 4;
  for (int64_t row = 0; row < apart; ++row) {
    dot_rows<kBits, kPerGroup, kZeros, 4>(layout, blocks, records, w, first + row, apart, y + row);
  }
  for (int64_t row = 4 * apart; row < count; ++row) {
    dot_rows<kBits, kPerGroup, kZeros, 1>(layout, blocks, records, w, first + row, 0, y + row);
  }
}

template <int kBits, bool kZeros>
void dot_bits(const Layout& layout, const Record* records, const Matrix& w, int64_t first, int64_t count, float* y) {
  const int per_group = layout.group_codes() / layout.block;
  if constexpr (kBits == 4) {  // blocks of 16
    if (per_group == 8) return dot_blocks<kBits, 8, kZeros>(layout, records, w, first, count, y);
  }
  if (per_group == 4) return dot_blocks<kBits, 4, kZeros>(layout, records, w, first, count, y);
  if (per_group == 2) return dot_blocks<kBits, 2, kZeros>(layout, records, w, first, count, y);
  return dot_blocks<kBits, 1, kZeros>(layout, records, w, first, count, y);
}

}  // namespace

void dot(const Layout& layout, const Record* records, const Matrix& w, int64_t first, int64_t count, float* y) {
  if (layout.bits == 4) {
    return w.zeros ? dot_bits<4, true>(layout, records, w, first, count, y)
                   : dot_bits<4, false>(layout, records, w, first, count, y);
  }
  return w.zeros ? dot_bits<8, true>(layout, records, w, first, count, y)
                 : dot_bits<8, false>(layout, records, w, first, count, y);
}

}  // namespace blockexport::avx512
