// Products of one matrix of activations with several of weights.
#pragma once
#include "ort.h"
#include "paths.h"

namespace blockexport {

// y = a . w^T (+ bias), (rows, n).
struct Product {
  Matrix w;
  float* y;
};

// y = a . w^T (+ bias) with w fp32 (n, k).
struct DenseProduct {
  const float* w;
  const float* bias;  // (n) or null
  int64_t n;
  float* y;
};

// With fewer rows, packing fp32 weights for tiles costs more than it saves.
constexpr int64_t kManyDenseRows = 24;

// Rows of activations transposed for Path::dense_tiles: (k, kDenseRows) each. The memory belongs to the calling thread
// and is good until its next call.
const float* dense_panels(const Context& context, int64_t k, const float* a, int64_t rows);

// Multiplies `a` (rows, k) by each matrix. Gated: there are two, and y of the first becomes silu(first) * second; y of
// the second is not used.
void multiply(const Context& context, const Layout& layout, const float* a, int64_t rows,
              const std::vector<Product>& products, bool gated = false);
void multiply(const Context& context, int64_t k, const float* a, int64_t rows, const std::vector<DenseProduct>& products,
              bool gated = false);

}  // namespace blockexport
