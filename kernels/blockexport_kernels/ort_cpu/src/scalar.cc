// The path that defines the arithmetic; runs on any processor.
#include "attention_body.h"
#include "elementwise.h"
#include "paths.h"

namespace blockexport {
namespace {

// Sum of (code - zero point) * activation over one block: an integer, and exact.
int32_t block_sum(const Layout& layout, const Record* records, const uint8_t* codes, int64_t block) {
  int32_t sum = 0;
  const int64_t bytes = layout.block * layout.bits / 8;
  for (int64_t at = block * bytes; at < (block + 1) * bytes; ++at) {
    const Record& record = records[at / 64];
    if (layout.bits == 8) {
      sum += codes[at] * record.codes[0][at % 64];
    } else {
      sum += (codes[at] & 15) * record.codes[0][at % 64] + (codes[at] >> 4) * record.codes[1][at % 64];
    }
  }
  return sum;
}

void dot(const Layout& layout, const Record* records, const Matrix& w, int64_t first, int64_t count, float* y) {
  const int64_t lanes_per_block = layout.block * layout.bits / 32;
  for (int64_t row = first; row < first + count; ++row) {
    float total = 0.0f;
    for (int64_t block = 0; block < layout.blocks; ++block) {
      const int64_t lane = block * lanes_per_block;
      const Record& record = records[lane / 16];
      const int32_t zero = w.zeros ? zero_point(layout, w, row, block) : 1;
      const int32_t sum = block_sum(layout, records, w.codes + row * layout.row_bytes(), block) +
                          record.correction[lane % 16] * zero;
      total += static_cast<float>(sum) * (record.scale[lane % 16] * w.scales[row * layout.blocks + block]);
    }
    y[row - first] = total + (w.bias ? w.bias[row] : 0.0f);
  }
}

template <typename Weight>
void dense_dot(int64_t k, const float* a, int64_t num_rows, const Weight* w, int64_t count, float* y, int64_t stride) {
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t n = 0; n < count; ++n) {
      float total = 0.0f;
      for (int64_t i = 0; i < k; ++i) total += a[row * k + i] * widened(w[n * k + i]);
      y[row * stride + n] = total;
    }
  }
}

void attend(const AttentionTask& task) { attend_with(task, turn_one_by_one); }

}  // namespace

const Path kScalar = {"scalar",   quantise, dot, nullptr, {dense_dot<float>, nullptr}, {dense_dot<Bf16>, nullptr},
                      silu_times, rms_norm, rotate, attend};

}  // namespace blockexport
