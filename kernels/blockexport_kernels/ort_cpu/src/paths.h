// The same arithmetic written for different processors; which one runs is decided when the library is loaded.
#pragma once
#include "attention_task.h"
#include "layout.h"

namespace blockexport {

// The upper half of the bits of an fp32 number.
struct Bf16 {
  uint16_t bits;
};

constexpr int kDenseRows = 32;       // of activations, in a panel
constexpr int64_t kDenseColumns = 48;  // of the product, in a task

constexpr int64_t dense_scratch(int64_t num_rows) {
  return kDenseColumns * ((num_rows + kDenseRows - 1) / kDenseRows * kDenseRows);
}

// Products with weights (count, k) of one type, without bias; all arithmetic is fp32.
template <typename Weight>
struct DensePath {
  // y[r * stride + n] = a[r] . w[n], for few rows of activations.
  void (*dot)(int64_t k, const float* a, int64_t num_rows, const Weight* w, int64_t count, float* y, int64_t stride);

  // The same for many rows, count <= kDenseColumns. Panels are (k, kDenseRows) each, one behind the other; scratch has
  // dense_scratch(num_rows). Null: `dot` is used.
  void (*tiles)(int64_t k, const float* panels, int64_t num_rows, const Weight* w, int64_t count, float* scratch,
                float* y, int64_t stride);
};

struct Path {
  const char* name;

  // Quantises one row (k) of activations, block by block, to codes (filled up to whole groups; with 4 bits, of each 8 the
  // even ones first), scales and sums of codes.
  void (*quantise)(const Layout& layout, const float* row, int8_t* codes, float* scales, int32_t* sums);

  // y[i] = row . w[first + i] for i < count. `records` is (groups).
  void (*dot)(const Layout& layout, const Record* records, const Matrix& w, int64_t first, int64_t count, float* y);

  // Many rows: rows [first, first + count) of w, count <= kTileColumns, times num_rows rows of activations.
  // y is (num_rows, stride), scratch has unpacked_bytes(layout). Null: `dot` is used for each row.
  void (*tiles)(const Layout& layout, const Panel* panels, int64_t num_rows, const Matrix& w, int64_t first,
                int64_t count, uint8_t* scratch, float* y, int64_t stride);

  DensePath<float> fp32;
  DensePath<Bf16> bf16;

  // gate = silu(gate) * up
  void (*silu_times)(float* gate, const float* up, int64_t count);

  // out = row / sqrt(mean(row^2) + epsilon) * weight
  void (*rms_norm)(const float* row, const float* weight, float epsilon, int64_t k, float* out);

  // The rotary embedding of one head, by halves (as in GPT-NeoX), in place; cos and sin have `half`.
  void (*rotate)(float* head, const float* cos, const float* sin, int64_t half);

  // What one task of an attention does.
  void (*attend)(const AttentionTask& task);
};

extern const Path kScalar;
extern const Path kAvx2;
extern const Path kAvx512;

// The fastest path of this processor, or the one that BLOCKEXPORT_CPU_PATH names.
const Path& path();
// Why BLOCKEXPORT_CPU_PATH cannot be followed; null if it can.
const char* path_problem();

}  // namespace blockexport
