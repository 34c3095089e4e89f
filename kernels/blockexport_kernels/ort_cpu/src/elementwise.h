// Plain loops that every path compiles with its own instruction set: what they compute is the same bit for bit, because
// they neither reorder sums of floats nor fuse.
#pragma once
#include <cstdint>
#include <cstring>

#include "paths.h"

namespace blockexport {
namespace {

// Vectors of GCC and Clang: each path has them in its own registers.
constexpr int kLanes = 16;  // every block is a multiple of it
typedef int8_t Bytes __attribute__((vector_size(kLanes)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float Floats __attribute__((vector_size(kLanes * 4)));

template <typename Vector>
inline Vector load(const void* at) {
  Vector out;
  std::memcpy(&out, at, sizeof(Vector));
  return out;
}

inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }

template <int kBy>
inline Ints rotated(Ints v) {
  const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#if defined(__clang__)
  Ints out = v;
  for (int i = 0; i < kLanes; ++i) out[i] = v[(i + kBy) % kLanes];
  return out;
#else
  return __builtin_shuffle(v, (lane + kBy) & (kLanes - 1));
#endif
}

inline int32_t bits_of(float value) {
  int32_t out;
  std::memcpy(&out, &value, 4);
  return out;
}

inline float float_of(int32_t bits) {
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline float widened(float value) { return value; }
inline float widened(Bf16 value) { return float_of(static_cast<int32_t>(uint32_t{value.bits} << 16)); }

// Adding 1.5 * 2^23 leaves the nearest integer (ties to even) in the low bits of the sum.
constexpr float kRounder = 12582912.0f;

// Bytes 0 2 4 6 1 3 5 7 of each 8: the even codes of four bytes of 4-bit weights, then the odd ones.
inline uint64_t even_then_odd(uint64_t bytes) {
  uint64_t swapped = (bytes ^ (bytes >> 8)) & 0x0000ff000000ff00;
  bytes ^= swapped ^ (swapped << 8);
  swapped = (bytes ^ (bytes >> 16)) & 0x00000000ffff0000;
  return bytes ^ swapped ^ (swapped << 16);
}

// scale = max|a| / 127, code = nearest(a / scale). Magnitudes compare as integers, where a NaN is the largest: a block
// with a NaN or an infinity gets a scale that is none, and so the result is not finite either.
inline void quantise_block(const float* in, int length, int8_t* codes, float* scale, int32_t* sum) {
  Ints largest = {};
  for (int at = 0; at < length; at += kLanes) {
    largest = larger(load<Ints>(in + at) & 0x7fffffff, largest);
  }
  largest = larger(largest, rotated<8>(largest));
  largest = larger(largest, rotated<4>(largest));
  largest = larger(largest, rotated<2>(largest));
  largest = larger(largest, rotated<1>(largest));
  const float most = float_of(largest[0]);
  const float inverse = largest[0] ? 127.0f / most : 0.0f;
  Ints total = {};
  for (int at = 0; at < length; at += kLanes) {
    const Floats rounded = load<Floats>(in + at) * inverse + kRounder;
    const Ints code = load<Ints>(&rounded) - bits_of(kRounder);
    const Bytes eight_bits = __builtin_convertvector(code, Bytes);
    std::memcpy(codes + at, &eight_bits, sizeof(Bytes));
    total += code;
  }
  total += rotated<8>(total);
  total += rotated<4>(total);
  total += rotated<2>(total);
  total += rotated<1>(total);
  *scale = most / 127.0f;
  *sum = total[0];
}

void quantise(const Layout& layout, const float* row, int8_t* codes, float* scales, int32_t* sums) {
  const int64_t length = layout.groups * layout.group_codes();
  const int64_t full = layout.k / layout.block;
  for (int64_t block = 0; block < full; ++block) {
    const int64_t at = block * layout.block;
    quantise_block(row + at, layout.block, codes + at, scales + block, sums + block);
  }
  if (full < layout.blocks) {
    float last[kLongestBlock] = {};
    const int64_t at = full * layout.block;
    std::memcpy(last, row + at, static_cast<size_t>(layout.k - at) * sizeof(float));
    quantise_block(last, layout.block, codes + at, scales + full, sums + full);
  }
  std::memset(codes + layout.padded_k(), 0, static_cast<size_t>(length - layout.padded_k()));
  if (layout.bits == 8) return;
  for (int64_t at = 0; at < length; at += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, codes + at, 8);
    bytes = even_then_odd(bytes);
    std::memcpy(codes + at, &bytes, 8);
  }
}

// exp(x) = 2^n * exp(r), |r| <= ln(2)/2, by the Taylor polynomial of degree 7: error below 2 units in the last place.
inline Floats exponential(Floats x) {
  const Floats zero = {};
  x = x < zero - 87.0f ? zero - 87.0f : x;
  x = x > zero + 88.0f ? zero + 88.0f : x;
  const Floats shifted = x * 1.44269504f + kRounder;
  const Floats n = shifted - kRounder;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two parts
  Floats p = zero + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints power = (load<Ints>(&shifted) - bits_of(kRounder) + 127) << 23;
  return p * load<Floats>(&power);
}

inline void silu_times_lanes(float* gate, const float* up) {
  const Floats x = load<Floats>(gate);
  const Floats y = x / (1.0f + exponential(-x)) * load<Floats>(up);
  std::memcpy(gate, &y, sizeof(Floats));
}

void silu_times(float* gate, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) silu_times_lanes(gate + i, up + i);
  if (i == count) return;
  const size_t left = static_cast<size_t>(count - i) * sizeof(float);
  float last_gate[kLanes] = {}, last_up[kLanes] = {};
  std::memcpy(last_gate, gate + i, left);
  std::memcpy(last_up, up + i, left);
  silu_times_lanes(last_gate, last_up);
  std::memcpy(gate + i, last_gate, left);
}

inline float sum_of(const Floats& v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  float total = 0.0f;
  for (float lane : lanes) total += lane;
  return total;
}

void rms_norm(const float* row, const float* weight, float epsilon, int64_t k, float* out) {
  Floats squares = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) squares += load<Floats>(row + i) * load<Floats>(row + i);
  float total = sum_of(squares);
  for (; i < k; ++i) total += row[i] * row[i];
  const float factor = 1.0f / __builtin_sqrtf(total / static_cast<float>(k) + epsilon);
  for (i = 0; i + kLanes <= k; i += kLanes) {
    const Floats scaled = load<Floats>(row + i) * factor * load<Floats>(weight + i);
    std::memcpy(out + i, &scaled, sizeof(scaled));
  }
  for (; i < k; ++i) out[i] = row[i] * factor * weight[i];
}

}  // namespace
}  // namespace blockexport
