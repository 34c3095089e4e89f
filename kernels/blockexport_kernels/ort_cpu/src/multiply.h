// Products of one matrix of activations with several of weights.
#pragma once
#include "activations.h"

namespace blockexport {

// y = a . w^T (+ bias), (rows, n).
struct Product {
  Matrix w;
  float* y;
};

enum class WeightType { kFp32, kBf16 };

// y = a . w^T (+ bias) with w (n, k).
struct DenseProduct {
  const void* w;
  const float* bias;  // (n) or null
  int64_t n;
  float* y;
};

// With fewer rows, laying fp32 activations out for tiles costs more than it saves (measured: even at 26, 6 % won at 28).
constexpr int64_t kManyDenseRows = 28;

// Rows of activations transposed for DensePath::tiles: (k, kDenseRows) each. The memory belongs to the calling thread
// and is good until its next call.
const float* dense_panels(const Context& context, const Rows& rows);

enum class Ending {
  kNone,
  kResidual,  // there is one product, and `residual` (rows, n) is added to y
  kGated,     // there are two, and y of the first becomes silu(first) * second; y of the second is not used
};

// Multiplies rows by each matrix; dense ones are all of one type.
void multiply(const Context& context, const Layout& layout, const Rows& rows, const std::vector<Product>& products,
              Ending ending = Ending::kNone, const float* residual = nullptr);
void multiply(const Context& context, const Rows& rows, WeightType type, const std::vector<DenseProduct>& products,
              Ending ending = Ending::kNone, const float* residual = nullptr);

}  // namespace blockexport
