// AVX2: the same sums with 32 bytes of weights at a time. Many rows of activations are taken one by one.
#include <immintrin.h>

#include "attention_body.h"
#include "elementwise.h"
#include "paths.h"

namespace blockexport {
namespace {

// For one half (8 lanes) of a group: which of the group's blocks a lane belongs to.
__m256i lane_blocks(const Layout& layout, int half) {
  alignas(32) int32_t out[8];
  const int lanes_per_block = layout.block * layout.bits / 32;
  for (int lane = 0; lane < 8; ++lane) out[lane] = (half * 8 + lane) / lanes_per_block;
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(out));
}

// Sums over 4 codes (4 bits: 8) each. 8-bit codes are taken as code - 128, for which the pairs of products fit 16 bits.
__m256i products(const Layout& layout, __m256i codes, const Record& record, int half) {
  const auto activations = [&](int which) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(record.codes[which] + half * 32));
  };
  __m256i pairs;
  if (layout.bits == 8) {
    const __m256i shifted = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(shifted), _mm256_sign_epi8(activations(0), shifted));
  } else {
    const __m256i low = _mm256_set1_epi8(15);
    pairs = _mm256_add_epi16(
        _mm256_maddubs_epi16(_mm256_and_si256(codes, low), activations(0)),
        _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(codes, 4), low), activations(1)));
  }
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// What is to be added to the sums for the zero points.
__m256i corrections(const Layout& layout, const uint8_t* zeros, int64_t block, const Record& record, int half,
                    __m256i lane_block) {
  const __m256i correction = _mm256_load_si256(reinterpret_cast<const __m256i*>(record.correction + half * 8));
  if (zeros == nullptr) return layout.bits == 8 ? _mm256_setzero_si256() : correction;
  const int64_t bit = block * layout.bits;
  uint32_t word = 0;
  for (int64_t byte = 0; byte < 4 && bit / 8 + byte < layout.zeros_bytes(); ++byte) {
    word |= uint32_t{zeros[bit / 8 + byte]} << (byte * 8);
  }
  const __m256i shifts = _mm256_mullo_epi32(lane_block, _mm256_set1_epi32(layout.bits));
  const __m256i spread = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(word >> (bit % 8))), shifts);
  const __m256i zero = _mm256_and_si256(spread, _mm256_set1_epi32((1 << layout.bits) - 1));
  const __m256i taken = _mm256_set1_epi32(layout.bits == 8 ? 128 : 0);
  return _mm256_mullo_epi32(correction, _mm256_sub_epi32(zero, taken));
}

float sum_of(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

float dot_row(const Layout& layout, const Record* records, const Matrix& w, int64_t row) {
  const __m256i lane_block[2] = {lane_blocks(layout, 0), lane_blocks(layout, 1)};
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const uint8_t* codes = w.codes + row * layout.row_bytes();
  const uint8_t* zeros = w.zeros ? w.zeros + row * layout.zeros_bytes() : nullptr;
  const float* scales = w.scales + row * layout.blocks;
  __m256 total = _mm256_setzero_ps();
  for (int64_t group = 0; group < layout.groups; ++group) {
    alignas(32) uint8_t last[64] = {};
    const uint8_t* at = codes + group * 64;
    const int64_t left = layout.row_bytes() - group * 64;
    if (left < 64) at = static_cast<const uint8_t*>(std::memcpy(last, at, static_cast<size_t>(left)));
    const Record& record = records[group];
    const int64_t block = group * layout.group_codes() / layout.block;
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(layout.blocks - block)), lane);
    const __m256 block_scales = _mm256_maskload_ps(scales + block, there);
    for (int half = 0; half < 2; ++half) {
      const __m256i half_codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + half * 32));
      const __m256i sums = _mm256_add_epi32(products(layout, half_codes, record, half),
                                            corrections(layout, zeros, block, record, half, lane_block[half]));
      const __m256 scale = _mm256_mul_ps(_mm256_permutevar8x32_ps(block_scales, lane_block[half]),
                                         _mm256_load_ps(record.scale + half * 8));
      total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, total);
    }
  }
  return sum_of(total) + (w.bias ? w.bias[row] : 0.0f);
}

void dot(const Layout& layout, const Record* records, const Matrix& w, int64_t first, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = dot_row(layout, records, w, first + i);
}

__m256 eight(const float* at) { return _mm256_loadu_ps(at); }

__m256 eight(const Bf16* at) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

template <typename Weight>
float dense_product(int64_t k, const float* row, const Weight* w) {
  __m256 totals[4] = {};
  int64_t i = 0;
  for (; i + 32 <= k; i += 32) {
    for (int64_t part = 0; part < 4; ++part) {
      const int64_t at = i + part * 8;
      totals[part] = _mm256_fmadd_ps(eight(row + at), eight(w + at), totals[part]);
    }
  }
  float rest = 0.0f;
  for (; i < k; ++i) rest += row[i] * widened(w[i]);
  return rest + sum_of(_mm256_add_ps(_mm256_add_ps(totals[0], totals[1]), _mm256_add_ps(totals[2], totals[3])));
}

template <typename Weight>
void dense_dot(int64_t k, const float* a, int64_t num_rows, const Weight* w, int64_t count, float* y, int64_t stride) {
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t row = 0; row < num_rows; ++row) y[row * stride + n] = dense_product(k, a + row * k, w + n * k);
  }
}

void attend(const AttentionTask& task) { attend_with(task, turn_one_by_one); }

}  // namespace

const Path kAvx2 = {"avx2",     quantise, dot, nullptr, {dense_dot<float>, nullptr}, {dense_dot<Bf16>, nullptr},
                    silu_times, rms_norm, rotate, attend};

}  // namespace blockexport
