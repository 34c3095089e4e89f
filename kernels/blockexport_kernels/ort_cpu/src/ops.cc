// The operators: what they take, what they check, which core does the work.
//
// Every quantised matrix is given as in com.microsoft::MatMulNBits: codes (N, blocks, block_size * bits / 8) uint8,
// scales (N, blocks) fp32 and, if not every zero point is the default, zero points (N, ceil(blocks * bits / 8)) uint8.
#include "checks.h"
#include "experts.h"
#include "multiply.h"

namespace blockexport {
namespace {

using Shape = std::vector<int64_t>;

Shape with_last(Shape shape, int64_t length) {
  shape.back() = length;
  return shape;
}

// Checks activations (..., k); returns the number of rows.
int64_t rows_of(const char* op, const Tensor& a, int64_t k) {
  expect(!a.shape.empty() && a.shape.back() == k, op, "A", a, "(..., " + std::to_string(k) + ")");
  return a.size() / k;
}

Matrix matrix_of(const char* op, const Layout& layout, const Tensor& codes, const Tensor& scales, const Tensor& zeros,
                 const Tensor& bias) {
  const int64_t block_bytes = layout.block * layout.bits / 8;
  expect(codes.type == ort::kUint8 && codes.shape.size() == 3 && codes.shape[1] == layout.blocks &&
             codes.shape[2] == block_bytes,
         op, "B", codes, "(N, " + std::to_string(layout.blocks) + ", " + std::to_string(block_bytes) + ") uint8");
  const int64_t rows = codes.shape[0];
  expect(scales.type == ort::kFloat && scales.size() == rows * layout.blocks, op, "scales", scales,
         text_of({rows, layout.blocks}) + " fp32");
  if (zeros) {
    expect(zeros.type == ort::kUint8 && zeros.size() == rows * layout.zeros_bytes(), op, "zero_points", zeros,
           text_of({rows, layout.zeros_bytes()}) + " uint8");
  }
  if (bias) expect(bias.type == ort::kFloat && bias.size() == rows, op, "bias", bias, text_of({rows}) + " fp32");
  return {codes.bytes(), scales.floats(), zeros ? zeros.bytes() : nullptr, bias ? bias.floats() : nullptr, rows};
}

DenseProduct dense_of(const char* op, const Tensor& w, const Tensor& bias, int64_t k) {
  expect(w.type == ort::kFloat && w.shape.size() == 2 && w.shape[1] == k, op, "W", w,
         "(N, " + std::to_string(k) + ") fp32");
  if (bias) expect(bias.type == ort::kFloat && bias.size() == w.shape[0], op, "bias", bias, text_of({w.shape[0]}));
  return {w.floats(), bias ? bias.floats() : nullptr, w.shape[0], nullptr};
}

// MatMulNBits(A, B, scales[, zero_points][, bias]) -> Y
struct MatMulNBits final : Kernel {
  static constexpr const char* kName = "MatMulNBits";
  Layout layout;

  explicit MatMulNBits(const Attributes& attributes) : layout(layout_of(kName, attributes)) {}

  void compute(const Context& context) const override {
    const Tensor a = context.input(0);
    const int64_t rows = rows_of(kName, a, layout.k);
    const Matrix w =
        matrix_of(kName, layout, context.input(1), context.input(2), context.input(3), context.input(4));
    multiply(context, layout, a.floats(), rows, {{w, context.output(0, with_last(a.shape, w.n))}});
  }
};

// MatMulNBitsMulti(A, then for each product B, scales[, zero_points][, bias]) -> Y0, Y1, ...
// The attributes zero_points and bias (0 or 1) say whether the products have them: all or none.
struct MatMulNBitsMulti final : Kernel {
  static constexpr const char* kName = "MatMulNBitsMulti";
  Layout layout;
  bool has_zeros;
  bool has_bias;

  explicit MatMulNBitsMulti(const Attributes& attributes)
      : layout(layout_of(kName, attributes)),
        has_zeros(attributes.integer_or("zero_points", 0) != 0),
        has_bias(attributes.integer_or("bias", 0) != 0) {}

  void compute(const Context& context) const override {
    const Tensor a = context.input(0);
    const int64_t rows = rows_of(kName, a, layout.k);
    const size_t per_product = size_t{2} + has_zeros + has_bias;
    const size_t num_products = context.num_outputs();
    if (context.num_inputs() != 1 + num_products * per_product) {
      refuse(kName, std::to_string(context.num_inputs()) + " inputs for " + std::to_string(num_products) +
                        " outputs, wanted A and " + std::to_string(per_product) + " for each");
    }
    std::vector<Product> products;
    for (size_t i = 0; i < num_products; ++i) {
      const size_t at = 1 + i * per_product;
      const Tensor zeros = has_zeros ? context.input(at + 2) : Tensor{};
      const Tensor bias = has_bias ? context.input(at + 2 + has_zeros) : Tensor{};
      const Matrix w = matrix_of(kName, layout, context.input(at), context.input(at + 1), zeros, bias);
      products.push_back({w, context.output(i, with_last(a.shape, w.n))});
    }
    multiply(context, layout, a.floats(), rows, products);
  }
};

// GatedMatMulNBits(A, gate_B, gate_scales, up_B, up_scales[, gate_zero_points, up_zero_points]) -> silu(gate) * up
struct GatedMatMulNBits final : Kernel {
  static constexpr const char* kName = "GatedMatMulNBits";
  Layout layout;

  explicit GatedMatMulNBits(const Attributes& attributes) : layout(layout_of(kName, attributes)) {}

  void compute(const Context& context) const override {
    const Tensor a = context.input(0);
    const int64_t rows = rows_of(kName, a, layout.k);
    const Matrix gate = matrix_of(kName, layout, context.input(1), context.input(2), context.input(5), {});
    const Tensor up_codes = context.input(3);
    const Matrix up = matrix_of(kName, layout, up_codes, context.input(4), context.input(6), {});
    expect(gate.n == up.n, kName, "up_B", up_codes, std::to_string(gate.n) + " rows, as gate_B");
    if ((gate.zeros == nullptr) != (up.zeros == nullptr)) {
      refuse(kName, "one matrix has zero_points and the other has not: give them for both or for none");
    }
    float* y = context.output(0, with_last(a.shape, gate.n));
    multiply(context, layout, a.floats(), rows, {{gate, y}, {up, nullptr}}, true);
  }
};

// MatMul(A, W[, bias]) -> Y with W (N, K) as a checkpoint stores a linear layer.
struct MatMul final : Kernel {
  static constexpr const char* kName = "MatMul";

  explicit MatMul(const Attributes&) {}

  void compute(const Context& context) const override {
    const Tensor a = context.input(0);
    const Tensor w = context.input(1);
    expect(w.shape.size() == 2, kName, "W", w, "(N, K)");
    const int64_t rows = rows_of(kName, a, w.shape[1]);
    DenseProduct product = dense_of(kName, w, context.input(2), w.shape[1]);
    product.y = context.output(0, with_last(a.shape, product.n));
    multiply(context, w.shape[1], a.floats(), rows, {product});
  }
};

// GatedMatMul(A, gate_W, up_W) -> silu(A . gate_W^T) * (A . up_W^T)
struct GatedMatMul final : Kernel {
  static constexpr const char* kName = "GatedMatMul";

  explicit GatedMatMul(const Attributes&) {}

  void compute(const Context& context) const override {
    const Tensor a = context.input(0);
    const Tensor w = context.input(1);
    const Tensor up = context.input(2);
    expect(w.shape.size() == 2, kName, "gate_W", w, "(N, K)");
    expect(up.shape == w.shape, kName, "up_W", up, text_of(w.shape) + ", as gate_W");
    const int64_t k = w.shape[1];
    const int64_t rows = rows_of(kName, a, k);
    DenseProduct gate = dense_of(kName, w, {}, k);
    gate.y = context.output(0, with_last(a.shape, gate.n));
    multiply(context, k, a.floats(), rows, {gate, dense_of(kName, up, {}, k)}, true);
  }
};

void dequantise(const Layout& layout, const Matrix& w, int64_t row, float* out) {
  const uint8_t* codes = w.codes + row * layout.row_bytes();
  for (int64_t i = 0; i < layout.k; ++i) {
    const int64_t block = i / layout.block;
    const int code = layout.bits == 8 ? codes[i] : (codes[i / 2] >> (i % 2 * 4)) & 15;
    out[i] = static_cast<float>(code - zero_point(layout, w, row, block)) * w.scales[row * layout.blocks + block];
  }
}

// GatherNBits(B, indices, scales[, zero_points]) -> Y (..., K): rows of a quantised matrix as fp32.
struct GatherNBits final : Kernel {
  static constexpr const char* kName = "GatherNBits";
  Layout layout;

  explicit GatherNBits(const Attributes& attributes) : layout(layout_of(kName, attributes)) {}

  void compute(const Context& context) const override {
    const Tensor indices = context.input(1);
    const Matrix w = matrix_of(kName, layout, context.input(0), context.input(2), context.input(3), {});
    Shape shape = indices.shape;
    shape.push_back(layout.k);
    float* y = context.output(0, shape);
    const int64_t count = indices.size();
    for (int64_t i = 0; i < count; ++i) dequantise(layout, w, row_of(indices, i, w.n), y + i * layout.k);
  }

  static int64_t row_of(const Tensor& indices, int64_t at, int64_t n) {
    const int64_t given = static_cast<const int64_t*>(indices.data)[at];
    if (given < -n || given >= n) {
      refuse(kName, "index " + std::to_string(given) + " is outside the " + std::to_string(n) + " rows of B");
    }
    return given < 0 ? given + n : given;
  }
};

template <typename Op>
std::unique_ptr<Kernel> make(const Attributes& attributes) {
  return std::make_unique<Op>(attributes);
}

}  // namespace

const std::vector<Operator>& operators() {
  const Port floats{ort::kFloat}, codes{ort::kUint8}, indices{ort::kInt64}, any{ort::kAny, ort::kVariadic};
  const Port bias{ort::kFloat, ort::kOptional}, zeros{ort::kUint8, ort::kOptional};
  static const std::vector<Operator> all = {
      {MatMulNBits::kName, {floats, codes, floats, zeros, bias}, {floats}, make<MatMulNBits>},
      {MatMulNBitsMulti::kName, {floats, any}, {{ort::kFloat, ort::kVariadic}}, make<MatMulNBitsMulti>},
      {GatedMatMulNBits::kName, {floats, codes, floats, codes, floats, zeros, zeros}, {floats}, make<GatedMatMulNBits>},
      {MatMul::kName, {floats, floats, bias}, {floats}, make<MatMul>},
      {GatedMatMul::kName, {floats, floats, floats}, {floats}, make<GatedMatMul>},
      {GatherNBits::kName, {codes, indices, floats, zeros}, {floats}, make<GatherNBits>},
      {kGatedExperts, {floats, indices, floats, floats, floats}, {floats}, make_gated_experts},
      {kGatedExpertsNBits,
       {floats, indices, floats, codes, floats, codes, floats, zeros, zeros},
       {floats},
       make_gated_experts_nbits},
  };
  return all;
}

}  // namespace blockexport
