// How quantised weights lie in memory (that of com.microsoft::MatMulNBits) and how activations are laid out for them.
#pragma once
#include <cstdint>

namespace blockexport {

constexpr int kLongestBlock = 256;

// A (N, K) matrix is N rows of `blocks` blocks of `block` codes; a row's last block is filled up. 4-bit codes lie two a
// byte, the even one low. Kernels walk a row in groups of 64 bytes: 128 codes of 4 bits, or 64 of 8.
struct Layout {
  int bits;
  int block;
  int64_t k;
  int64_t blocks;
  int64_t groups;

  Layout(int bits_, int block_, int64_t k_)
      : bits(bits_), block(block_), k(k_), blocks((k_ + block_ - 1) / block_), groups((row_bytes() + 63) / 64) {}

  int64_t padded_k() const { return blocks * block; }
  int64_t row_bytes() const { return padded_k() * bits / 8; }
  int64_t zeros_bytes() const { return (blocks * bits + 7) / 8; }
  int group_codes() const { return 64 * 8 / bits; }
  int default_zero() const { return bits == 4 ? 8 : 128; }
};

struct Matrix {
  const uint8_t* codes;   // (N, blocks, block * bits / 8)
  const float* scales;    // (N, blocks)
  const uint8_t* zeros;   // (N, ceil(blocks * bits / 8)) or null: every zero point is the default
  const float* bias;      // (N) or null
  int64_t n;
};

inline int zero_point(const Layout& layout, const Matrix& w, int64_t row, int64_t block) {
  if (w.zeros == nullptr) return layout.default_zero();
  const int64_t bit = block * layout.bits;
  return (w.zeros[row * layout.zeros_bytes() + bit / 8] >> (bit % 8)) & ((1 << layout.bits) - 1);
}

// One group of one row of activations, ready for one pass over 64 bytes of weights. Lane i of `correction` and `scale`
// belongs to the four codes 8i, 8i+2, 8i+4, 8i+6 (and the odd ones behind them) of 4 bits, or 4i ... 4i+3 of 8.
struct alignas(64) Record {
  int8_t codes[2][64];     // 4 bits: even codes, odd codes. 8 bits: all in the first
  int32_t correction[16];  // lane 0 of a block: minus the sum of its codes (times the zero point, if all have the same)
  float scale[16];         // of the block that the lane belongs to
};

// Rows of activations transposed for many rows at once: `kTileRows` of them side by side.
constexpr int kTileRows = 6;
constexpr int kTileColumns = 32;  // of the product, that is rows of weights

struct Panel {
  const int8_t* codes;         // (steps, kTileRows, 4); with 4 bits a step of even codes, then one of odd ones
  const int32_t* corrections;  // (blocks, kTileRows), as in Record
  const float* scales;         // (blocks, kTileRows)
};

// What a thread unpacks kTileColumns rows of weights into: codes, scales and zero points.
inline int64_t unpacked_bytes(const Layout& layout) {
  return kTileColumns * (layout.padded_k() + layout.blocks * int64_t{sizeof(float) + sizeof(int32_t)});
}

}  // namespace blockexport
