// Mixtures of gated experts: y of a token is the sum over its experts e of weight * down_e . (silu(gate_e . a) * up_e . a).
//
// Of gate_up (experts, 2h, d) the even rows are the gate's and the odd ones those of `up`, as com.microsoft::MoE has them.
#include <algorithm>
#include <cstring>

#include "checks.h"
#include "expert_products.h"
#include "experts.h"
#include "scratch.h"

namespace blockexport {
namespace {

// Rows of weights in a task, for all rows of a group (gate_up) or all groups (down): long enough for the prefetchers,
// and few enough that experts with many rows and with few even out over the threads.
constexpr int64_t kPiece = 64;
static_assert(kPiece % kTileColumns == 0 && kPiece % 2 == 0);
// Tokens at a time: bounds the memory for grouped rows, and leaves each expert enough of them.
constexpr int64_t kTokens = 512;
constexpr int64_t kGatherRows = 16;

int64_t pieces(int64_t n) { return (n + kPiece - 1) / kPiece; }

// The grouped matrix itself, (grouping.num_rows(), width).
const float* gather(const Context& context, const float* a, int64_t width, const Grouping& grouping) {
  thread_local std::vector<Line> memory;
  const int64_t rows = grouping.num_rows();
  auto* out = scratch<float>(memory, rows * width);
  context.parallel((rows + kGatherRows - 1) / kGatherRows, [&](int64_t task) {
    for (int64_t row = task * kGatherRows; row < std::min(rows, (task + 1) * kGatherRows); ++row) {
      std::memcpy(out + row * width, a + grouping.tokens[static_cast<size_t>(row)] * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
  });
  return out;
}

// out[i] = silu(pairs[2i]) * pairs[2i + 1]
void gate(const float* pairs, int64_t count, float* out) {
  float ups[kPiece / 2];
  for (int64_t i = 0; i < count; ++i) {
    out[i] = pairs[2 * i];
    ups[i] = pairs[2 * i + 1];
  }
  path().silu_times(out, ups, count);
}

// What the experts' down projections take, (grouping.num_rows(), h).
template <typename Experts>
const float* gated_rows(const Context& context, const Experts& gate_up, const Grouping& grouping) {
  thread_local std::vector<Line> memory;
  const int64_t h = gate_up.n() / 2;
  auto* out = scratch<float>(memory, grouping.num_rows() * h);
  const int64_t per_group = pieces(gate_up.n());
  context.parallel(static_cast<int64_t>(grouping.groups.size()) * per_group, [&](int64_t task) {
    const Group& group = grouping.groups[static_cast<size_t>(task / per_group)];
    const int64_t first = task % per_group * kPiece;
    const int64_t count = std::min(kPiece, gate_up.n() - first);
    thread_local std::vector<Line> products;
    auto* y = scratch<float>(products, group.num_rows * count);
    gate_up.multiply(group, first, count, y);
    for (int64_t r = 0; r < group.num_rows; ++r) gate(y + r * count, count / 2, out + (group.row + r) * h + first / 2);
  });
  return out;
}

// Adds each group's rows to its tokens' sums. A task has some columns of all tokens, so that no two write to the same.
template <typename Experts>
void add_up(const Context& context, const Experts& down, const Grouping& grouping, int64_t first_token,
            int64_t num_tokens, float* out) {
  const int64_t width = down.n();
  context.parallel(pieces(width), [&](int64_t task) {
    const int64_t first = task * kPiece;
    const int64_t count = std::min(kPiece, width - first);
    for (int64_t token = first_token; token < first_token + num_tokens; ++token) {
      std::fill_n(out + token * width + first, count, 0.0f);
    }
    thread_local std::vector<Line> products;
    for (const Group& group : grouping.groups) {
      auto* y = scratch<float>(products, group.num_rows * count);
      down.multiply(group, first, count, y);
      for (int64_t r = 0; r < group.num_rows; ++r) {
        const auto row = static_cast<size_t>(group.row + r);
        const float weight = grouping.weights[row];
        float* sum = out + grouping.tokens[row] * width + first;
        for (int64_t i = 0; i < count; ++i) sum[i] += weight * y[r * count + i];
      }
    }
  });
}

template <typename Experts>
void run(const Context& context, Experts& gate_up, Experts& down, const float* a, int64_t num_tokens,
         const Routing& routing, float* out) {
  for (int64_t first = 0; first < num_tokens; first += kTokens) {
    const int64_t count = std::min(kTokens, num_tokens - first);
    const Grouping grouping(routing, first, count, Experts::panel_rows());
    gate_up.load(context, gather(context, a, gate_up.k(), grouping), grouping);
    down.load(context, gated_rows(context, gate_up, grouping), grouping);
    add_up(context, down, grouping, first, count, out);
  }
}

// The first three inputs: activations (..., k), experts and weights (tokens, experts of a token).
Routing routing_of(const char* op, const Context& context, int64_t num_tokens, int64_t num_experts) {
  const Tensor experts = context.input(1), weights = context.input(2);
  expect(experts.shape.size() == 2 && experts.shape[0] == num_tokens, op, "experts", experts,
         "(" + std::to_string(num_tokens) + ", experts of a token)");
  expect(weights.shape == experts.shape, op, "weights", weights, text_of(experts.shape) + ", as experts");
  const auto* chosen = static_cast<const int64_t*>(experts.data);
  for (int64_t i = 0; i < experts.size(); ++i) {
    if (chosen[i] < 0 || chosen[i] >= num_experts) {
      refuse(op, "expert " + std::to_string(chosen[i]) + " is none of the " + std::to_string(num_experts));
    }
  }
  return {chosen, weights.floats(), experts.shape[1], num_experts};
}

int64_t tokens_of(const char* op, const Tensor& a, int64_t width) {
  expect(!a.shape.empty() && a.shape.back() == width, op, "A", a, "(..., " + std::to_string(width) + ")");
  return a.size() / width;
}

// GatedExperts(A, experts, weights, gate_up (E, 2h, d), down (E, d, h)) -> Y as A
struct GatedExperts final : Kernel {
  void compute(const Context& context) const override {
    const Tensor a = context.input(0), gate_up = context.input(3), down = context.input(4);
    expect(gate_up.shape.size() == 3 && gate_up.shape[1] % 2 == 0, kGatedExperts, "gate_up", gate_up, "(E, 2h, d)");
    const int64_t num_experts = gate_up.shape[0], h = gate_up.shape[1] / 2, width = gate_up.shape[2];
    const std::vector<int64_t> wanted = {num_experts, width, h};
    expect(down.shape == wanted, kGatedExperts, "down", down, text_of(wanted));
    const int64_t num_tokens = tokens_of(kGatedExperts, a, width);
    const Routing routing = routing_of(kGatedExperts, context, num_tokens, num_experts);
    DenseExperts first(gate_up.floats(), 2 * h, width), second(down.floats(), width, h);
    run(context, first, second, a.floats(), num_tokens, routing, context.output(0, a.shape));
  }
};

// GatedExpertsNBits(A, experts, weights, gate_up_B, gate_up_scales, down_B, down_scales
//                   [, gate_up_zero_points, down_zero_points]) -> Y as A
struct GatedExpertsNBits final : Kernel {
  Layout layout;  // of gate_up; that of down has its own K

  explicit GatedExpertsNBits(const Attributes& attributes) : layout(layout_of(kGatedExpertsNBits, attributes)) {}

  void compute(const Context& context) const override {
    const char* op = kGatedExpertsNBits;
    const Tensor a = context.input(0), gate_up = context.input(3), down = context.input(5);
    expect(gate_up.shape.size() == 3 && gate_up.shape[1] % 2 == 0, op, "gate_up_B", gate_up, "(E, 2h, bytes of a row)");
    const int64_t num_experts = gate_up.shape[0], h = gate_up.shape[1] / 2;
    const Layout hidden(layout.bits, layout.block, h);
    const Tensor zeros = context.input(7), down_zeros = context.input(8);
    const Matrix first = matrix_of("gate_up", layout, num_experts, 2 * h, gate_up, context.input(4), zeros);
    const Matrix second = matrix_of("down", hidden, num_experts, layout.k, down, context.input(6), down_zeros);
    const int64_t num_tokens = tokens_of(op, a, layout.k);
    const Routing routing = routing_of(op, context, num_tokens, num_experts);
    NBitsExperts up(layout, first, 2 * h), back(hidden, second, layout.k);
    run(context, up, back, a.floats(), num_tokens, routing, context.output(0, a.shape));
  }

  static Matrix matrix_of(const std::string& name, const Layout& layout, int64_t num_experts, int64_t n,
                          const Tensor& codes, const Tensor& scales, const Tensor& zeros) {
    const auto check = [&](const char* part, const Tensor& given, int64_t length) {
      const std::vector<int64_t> wanted = {num_experts, n, length};
      expect(given.shape == wanted, kGatedExpertsNBits, (name + part).c_str(), given, text_of(wanted));
    };
    check("_B", codes, layout.row_bytes());
    check("_scales", scales, layout.blocks);
    if (zeros) check("_zero_points", zeros, layout.zeros_bytes());
    return {codes.bytes(), scales.floats(), zeros ? zeros.bytes() : nullptr, nullptr, num_experts * n};
  }
};

}  // namespace

std::unique_ptr<Kernel> make_gated_experts(const Attributes&) { return std::make_unique<GatedExperts>(); }

std::unique_ptr<Kernel> make_gated_experts_nbits(const Attributes& attributes) {
  return std::make_unique<GatedExpertsNBits>(attributes);
}

}  // namespace blockexport
