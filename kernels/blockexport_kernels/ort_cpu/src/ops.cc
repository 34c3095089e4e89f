// The operators that read weights: what they take, what they check, which core does the work.
//
// Every quantised matrix is given as in com.microsoft::MatMulNBits: codes (N, blocks, block_size * bits / 8) uint8,
// scales (N, blocks) fp32 and, if not every zero point is the default, zero points (N, ceil(blocks * bits / 8)) uint8.
#include "attention.h"
#include "checks.h"
#include "experts.h"
#include "multiply.h"

namespace blockexport {
namespace {

Matrix matrix_of(const char* op, const Layout& layout, const Tensor& codes, const Tensor& scales, const Tensor& zeros) {
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
  return {codes.bytes(), scales.floats(), zeros ? zeros.bytes() : nullptr, nullptr, rows};
}

// What the attributes of a product say of its inputs, which follow one another without a gap:
//
//     A, then for each output (with `gated` for each of two) the weights, and its bias with `bias`;
//     the residual with `residual`; the weight of an RMSNorm of A with `rms_epsilon`.
struct Inputs {
  const char* op;
  bool has_bias;
  bool has_residual;
  bool is_gated;
  bool has_norm;
  float epsilon;

  Inputs(const char* name, const Attributes& attributes)
      : op(name),
        has_bias(attributes.integer_or("bias", 0) != 0),
        has_residual(attributes.integer_or("residual", 0) != 0),
        is_gated(attributes.integer_or("gated", 0) != 0),
        has_norm(attributes.real("rms_epsilon", &epsilon)) {
    if (is_gated && (has_bias || has_residual)) refuse(op, "gated products take neither bias nor residual");
  }

  Ending ending() const { return is_gated ? Ending::kGated : has_residual ? Ending::kResidual : Ending::kNone; }

  // How many matrices there are, with `tensors` for the weights of each.
  size_t num_products(const Context& context, size_t tensors) const {
    const size_t count = is_gated ? 2 : context.num_outputs();
    const size_t wanted = 1 + count * (tensors + has_bias) + has_residual + has_norm;
    if (context.num_inputs() != wanted) {
      refuse(op, std::to_string(context.num_inputs()) + " inputs, wanted " + std::to_string(wanted) + " for " +
                     std::to_string(count) + " products by its attributes");
    }
    if (has_residual && count != 1) refuse(op, "a residual is added to one output, not to several");
    return count;
  }

  Rows rows(const Context& context, const Tensor& a, int64_t k) const {
    expect(!a.shape.empty() && a.shape.back() == k, op, "A", a, "(..., " + std::to_string(k) + ")");
    const float* norm = nullptr;
    if (has_norm) {
      const Tensor weight = context.input(context.num_inputs() - 1);
      expect(weight.type == ort::kFloat && weight.size() == k, op, "norm", weight, text_of({k}) + " fp32");
      norm = weight.floats();
    }
    return {a.floats(), a.size() / k, k, norm, has_norm ? epsilon : 0.0f};
  }

  const float* bias(const Context& context, size_t at, int64_t n) const {
    if (!has_bias) return nullptr;
    const Tensor given = context.input(at);
    expect(given.type == ort::kFloat && given.size() == n, op, "bias", given, text_of({n}) + " fp32");
    return given.floats();
  }

  const float* residual(const Context& context, const Tensor& a, int64_t n) const {
    if (!has_residual) return nullptr;
    const Tensor given = context.input(context.num_inputs() - 1 - has_norm);
    const Shape wanted = with_last(a.shape, n);
    expect(given.type == ort::kFloat && given.shape == wanted, op, "residual", given, text_of(wanted) + " fp32");
    return given.floats();
  }

  float* output(const Context& context, const Tensor& a, size_t index, int64_t n) const {
    return is_gated && index > 0 ? nullptr : context.output(index, with_last(a.shape, n));
  }

  void check_gated(int64_t gate, int64_t up) const {
    if (gate != up) refuse(op, "the gate has " + std::to_string(gate) + " rows and up has " + std::to_string(up));
  }
};

// MatMulNBits(A, B, scales[, zero_points], ...) -> Y, ...; see Inputs. `zero_points` says whether the matrices have them.
struct MatMulNBits final : Kernel {
  static constexpr const char* kName = "MatMulNBits";
  Layout layout;
  Inputs inputs;
  bool has_zeros;

  explicit MatMulNBits(const Attributes& attributes)
      : layout(layout_of(kName, attributes)),
        inputs(kName, attributes),
        has_zeros(attributes.integer_or("zero_points", 0) != 0) {}

  void compute(const Context& context) const override {
    const size_t tensors = size_t{2} + has_zeros;
    const Tensor a = context.input(0);
    std::vector<Product> products(inputs.num_products(context, tensors));
    size_t at = 1;
    for (size_t i = 0; i < products.size(); ++i, at += tensors + inputs.has_bias) {
      const Tensor zeros = has_zeros ? context.input(at + 2) : Tensor{};
      Matrix w = matrix_of(kName, layout, context.input(at), context.input(at + 1), zeros);
      w.bias = inputs.bias(context, at + tensors, w.n);
      products[i] = {w, inputs.output(context, a, i, w.n)};
    }
    if (inputs.is_gated) inputs.check_gated(products[0].w.n, products[1].w.n);
    const float* residual = inputs.residual(context, a, products[0].w.n);
    multiply(context, layout, inputs.rows(context, a, layout.k), products, inputs.ending(), residual);
  }
};

// MatMul(A, W, ...) -> Y, ... with W (N, K) as a checkpoint stores a linear layer, all fp32 or all bf16; see Inputs.
struct MatMul final : Kernel {
  static constexpr const char* kName = "MatMul";
  Inputs inputs;

  explicit MatMul(const Attributes& attributes) : inputs(kName, attributes) {}

  void compute(const Context& context) const override {
    const Tensor a = context.input(0);
    std::vector<DenseProduct> products(inputs.num_products(context, 1));
    const int64_t k = a.shape.empty() ? 0 : a.shape.back();
    int type = ort::kAny;
    size_t at = 1;
    for (size_t i = 0; i < products.size(); ++i, at += size_t{1} + inputs.has_bias) {
      const Tensor w = context.input(at);
      if (i == 0) type = w.type;
      expect((w.type == ort::kFloat || w.type == ort::kBfloat16) && w.shape.size() == 2 && w.shape[1] == k, kName, "W",
             w, "(N, " + std::to_string(k) + ") fp32 or bf16, K as in A " + text_of(a.shape));
      if (w.type != type) refuse(kName, "the matrices are of two types, wanted all fp32 or all bf16");
      const int64_t n = w.shape[0];
      products[i] = {w.data, inputs.bias(context, at + 1, n), n, inputs.output(context, a, i, n)};
    }
    if (inputs.is_gated) inputs.check_gated(products[0].n, products[1].n);
    const float* residual = inputs.residual(context, a, products[0].n);
    const WeightType weights = type == ort::kBfloat16 ? WeightType::kBf16 : WeightType::kFp32;
    multiply(context, inputs.rows(context, a, k), weights, products, inputs.ending(), residual);
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
    const Matrix w = matrix_of(kName, layout, context.input(0), context.input(2), context.input(3));
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
  const Port zeros{ort::kUint8, ort::kOptional}, several{ort::kFloat, ort::kVariadic};
  static const std::vector<Operator> all = {
      {MatMulNBits::kName, {floats, any}, {several}, make<MatMulNBits>},
      {MatMul::kName, {floats, any}, {several}, make<MatMul>},
      {GatherNBits::kName, {codes, indices, floats, zeros}, {floats}, make<GatherNBits>},
      cached_attention(),
      {kGatedExperts, {floats, indices, floats, floats, floats}, {floats}, make_gated_experts},
      {kGatedExpertsNBits,
       {floats, indices, floats, codes, floats, codes, floats, zeros, zeros},
       {floats},
       make_gated_experts_nbits},
  };
  return all;
}

}  // namespace blockexport
